"""The demo in small: what it collects, what it reports, what it leaves."""

import json
import warnings

import numpy as np
import pytest
from conftest import EXAMPLES, importable


@pytest.fixture(scope="module")
def example():
    """Import an example by name, as a script beside its siblings."""
    with importable(EXAMPLES) as import_module:
        yield import_module


@pytest.fixture(scope="module")
def corpus(example):
    return example("docstring_corpus")


def write_package(folder, name, **modules):
    package = folder / name
    package.mkdir()
    (package / "__init__.py").write_text("")
    for module, source in modules.items():
        (package / f"{module}.py").write_text(source)
    return package


def test_collects_definitions_and_attached_docstrings_without_importing(corpus, tmp_path, monkeypatch):
    write_package(
        tmp_path,
        "some_package",
        a='''
raise RuntimeError("importing this would fail")

class Thing:
    """Hold one thing, and one thing only, here."""

    def method(self):
        """Do something to it, in place and quickly."""

def short():
    """Too short."""

def again():
    """Hold  one thing, and one THING only, here."""
''',
        b='''
add_newdoc("place", "function", """Add two arrays element by element, in C.""")
add_newdoc("place", "Class", ("attribute", """The number of entries of the whole array."""))
add_docstr(torch.abs, r"""
abs(input) -> Tensor

Compute the absolute value of each """ + r"""element. {extra}
""".format(**common))
''',
        broken="def (:\n",
    )
    monkeypatch.syspath_prepend(tmp_path)
    found = {
        entry.name: entry for entry in corpus.collect_docstrings(packages=["some_package", "not_installed_package"])
    }
    assert list(found) == [
        "some_package.a.Thing",
        "some_package.a.Thing.method",
        "place.function",
        "place.Class.attribute",
        "torch.abs",
    ]
    assert found["place.Class.attribute"].text == "The number of entries of the whole array."
    # the call signature is not the summary
    assert corpus.summary(found["torch.abs"]) == "Compute the absolute value of each element. {extra}"
    assert corpus.searchable_text(found["some_package.a.Thing.method"]) == (
        "Thing.method: Do something to it, in place and quickly."
    )


def test_collecting_is_deterministic_silent_and_limited(corpus):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first, second = (corpus.collect_docstrings(300, packages=["sklearn"]) for _ in range(2))
    assert first == second
    assert len(first) == 300 == len({entry.text for entry in first})


def test_demo_reports_sizes_recall_and_searches(example, corpus, tmp_path, capsys):
    demo = example("demo")
    arguments = ["--max-docs", "1500", "--n-features", "48", "--n-components", "128", "--k", "4", "8"]
    arguments += ["--params", '{"max_iter": 60}', "--out", str(tmp_path)]
    demo.run(demo.parse_options(arguments))
    content = json.loads((tmp_path / "demo.json").read_text())
    assert content["n_documents"] == 1350
    assert content["n_queries"] == 150
    small, large = content["results"]
    # 4 nonzeros of 8 bytes and a row pointer of 4 (and one pointer more for the matrix)
    assert small["csr_bytes_per_vector"] == pytest.approx(36, abs=0.01)
    assert small["recall_at_100"]["asymmetric"] > 0.5
    assert large["recall_at_100"]["asymmetric"] > small["recall_at_100"]["asymmetric"]
    assert len(content["searches"]) == len(demo.QUESTIONS)
    assert all(len(search["compressed"]) == 5 for search in content["searches"])
    assert (tmp_path / "recall_against_bytes.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "area under the ROC curve" in printed
    assert "bytes a vector" in printed


def test_demo_ranks_by_inner_product(example, corpus):
    demo = example("demo")
    rng = np.random.RandomState(0)
    queries, documents = rng.standard_normal((300, 5)), rng.standard_normal((40, 5))
    expected = np.argsort(-queries @ documents.T, axis=1)[:, :7]
    np.testing.assert_array_equal(demo.neighbors_by_score(queries, documents, 7), expected)
