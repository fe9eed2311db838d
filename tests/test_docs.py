"""The documentation covers the package: public names, messages, architecture, citation; docstrings are numpydoc."""

import ast
import importlib
import inspect
import json
import re

import numpy as np
import pytest
from conftest import BENCHMARKS, DOCS, EXAMPLES, ROOT, importable

import skcompressae
from skcompressae import CodeNearestNeighbors, CompresSAETransformer

PUBLIC_MODULES = sorted(
    ".".join(("skcompressae", *path.relative_to(ROOT / "skcompressae").with_suffix("").parts)).removesuffix(".__init__")
    for path in (ROOT / "skcompressae").rglob("*.py")
    if not any(part.startswith("_") and part != "__init__.py" for part in path.relative_to(ROOT / "skcompressae").parts)
)


@pytest.fixture(scope="module")
def docs_module():
    """Import one of the modules that the site is built with."""
    with importable(DOCS / "_ext", DOCS) as import_module:
        yield import_module


def public_objects():
    """Yield the dotted names of what `__all__` of every public module lists, and of their public members of ours."""
    seen = set()
    for module_name in PUBLIC_MODULES:
        module = importlib.import_module(module_name)
        for name in getattr(module, "__all__", ()):
            value = getattr(module, name)
            if name.startswith("__") or not callable(value) or id(value) in seen:
                continue
            seen.add(id(value))
            yield f"{module_name}.{name}"
            if inspect.isclass(value):
                for member in dir(value):
                    raw = inspect.getattr_static(value, member)
                    # class methods, properties and cached properties wrap the function that has the docstring
                    wrapped = (getattr(raw, part, None) for part in ("__func__", "fget", "func"))
                    target = inspect.unwrap(next((function for function in wrapped if function), raw))
                    # what is defined outside skcompressae (scikit-learn's own methods) is not ours to document
                    is_ours = (getattr(target, "__module__", None) or "").startswith("skcompressae")
                    if not member.startswith("_") and is_ours and callable(target):
                        yield f"{module_name}.{name}.{member}"


def test_docstrings_pass_every_check_of_numpydoc():
    validate = pytest.importorskip("numpydoc.validate").validate
    names = list(public_objects())
    assert {"skcompressae.CompresSAETransformer.score", "skcompressae.packed.ValueQuantizer.thresholds"} <= set(names)
    wrong = [f"{name}: {code} {text}" for name in names for code, text in validate(name)["errors"]]
    assert not wrong, "\n" + "\n".join(wrong)


def test_every_public_name_has_a_page(docs_module, tmp_path):
    docs_module("api_pages").write_api(tmp_path)
    sections = (tmp_path / "index.rst").read_text(encoding="utf-8").split("\n``skcompressae")[1:]
    links = {}
    for section in sections:
        module_name = "skcompressae" + section.partition("``")[0]
        links |= {(module_name, name): home for name, home in re.findall(r"`(\w+)[^`<]*<([\w.]+)>`", section)}
    for module_name in PUBLIC_MODULES:
        module = importlib.import_module(module_name)
        for name in getattr(module, "__all__", ()):
            if not name.startswith("__"):
                home_module, _, home_name = links[module_name, name].rpartition(".")
                assert getattr(importlib.import_module(home_module), home_name) is getattr(module, name)
                page = (tmp_path / f"{home_module}.{home_name}.rst").read_text(encoding="utf-8")
                assert f".. currentmodule:: {home_module}\n" in page
                assert f":: {home_name}\n" in page


def plain(text):
    """Return the words of a text: small letters, no punctuation."""
    return " ".join(re.findall(r"[a-z_]+", text.lower()))


def test_every_message_is_listed_and_every_warning_explained(docs_module, tmp_path):
    messages = docs_module("messages")
    page = (DOCS / "guide" / "troubleshooting.md").read_text(encoding="utf-8")
    found = messages.all_messages()
    n_raised = sum(
        isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)
        for path in (ROOT / "skcompressae").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    )
    assert n_raised / 2 < len(found) <= 2 * n_raised
    messages.write_messages(tmp_path)
    listed = ""
    for group in messages.GROUPS:
        assert f"generated/messages_{group}.md" in page, group
        listed += (tmp_path / f"messages_{group}.md").read_text(encoding="utf-8")
    for message in found:
        text = " ".join(message.text.split())
        if text.strip("… "):
            assert f"{message.kind}: {messages.escape(text)}" in listed
    headings = [plain(heading) for heading in re.findall(r"^### (.*)$", page, flags=re.MULTILINE)]
    for message in found:
        if message.is_warning:
            own = message.kind.lower() if message.kind != "UserWarning" else "-"
            assert any(heading in plain(message.text) or heading.startswith(own) for heading in headings), message


def test_message_templates(docs_module):
    source = """
def f(k):
    if k: raise ValueError(f"k={k} is " + "above {}".format(3))
    warnings.warn("it is late", category=LateWarning)
    raise
    raise error
"""
    found = list(docs_module("messages").messages_of(ast.parse(source), "m"))
    assert [(m.kind, m.text, m.is_warning) for m in found] == [
        ("ValueError", "k=… is above {}", False),
        ("LateWarning", "it is late", True),
    ]


def test_architecture_is_drawn_from_the_imports(docs_module, tmp_path):
    architecture = docs_module("architecture")
    modules, graph, _ = architecture.import_graph()
    assert graph["_core"] == set()
    assert graph["_torch"] == {"_core"}
    assert "metrics" in graph["_plot"]
    n_files = sum(path.name != "__init__.py" for path in (ROOT / "skcompressae").rglob("*.py"))
    n_drawn = sum(map(len, modules.values()))
    assert n_files - 4 <= n_drawn <= n_files  # exceptions, version, compat and __main__ have no box
    levels = architecture.levels_of(graph)
    assert all(levels[box] > levels[below] for box in graph for below in graph[box])
    architecture.draw_architecture(tmp_path / "a.svg")
    assert "<svg" in (tmp_path / "a.svg").read_text(encoding="utf-8")


def test_committed_results_make_tables(docs_module):
    results = docs_module("results")
    studies = results.load_studies(BENCHMARKS / "results")
    assert len(studies) > 5
    assert all(results.full_table(study) for study in studies)


def test_tables_hold_what_the_results_say(docs_module, tmp_path):
    results = docs_module("results")
    row = {"method": "ours", "params": {"k": 16}, "mode": "asymmetric_4bit", "size_bytes": 32.0, "cosine": 0.9}
    row |= {"recall_at_10": 0.5, "recall_at_100": 0.75, "seed": 0, "fit_s": 1.0, "encode_s": 1.0}
    dense = {**row, "params": {"k": 16, "recipe": "dense"}, "recall_at_100": 0.78}
    new = {**row, "method": "new_method", "params": {}, "mode": "asymmetric", "size_bytes": 100.0, "recall_at_100": 0.8}
    content = {"data": {"name": "t", "n_documents": 9, "n_queries": 2, "n_features": 8}}
    content["environment"] = {"cpu": "c", "n_threads": 1, "date": "d"}
    (tmp_path / "one.json").write_text(json.dumps({**content, "results": [row, dense]}))
    (tmp_path / "two.json").write_text(json.dumps({**content, "results": [new]}))
    (tmp_path / "speed.json").write_text(json.dumps({"rows": []}))
    measured = {"recall_at_10": 0.1, "seed": 0, "budget_bytes": 64}
    hybrid = [
        {
            **measured,
            "method": "sparse",
            "params": {"k": 8, "residual_bytes": 0},
            "size_bytes": 16,
            "recall_at_100": 0.6,
        },
        {**measured, "method": "hybrid", "params": {"k": 16}, "size_bytes": 64, "recall_at_100": 0.85},
        {
            **measured,
            "method": "sparse",
            "params": {"k": 8, "residual_bytes": 0, "recipe": "dense"},
            "size_bytes": 16,
            "recall_at_100": 0.65,
        },
        {
            **measured,
            "method": "new_method",
            "params": {},
            "size_bytes": 64,
            "recall_at_100": 0.99,
        },  # is measured above
    ]
    (tmp_path / "hybrid-t.json").write_text(json.dumps({**content, "options": {"k": 16}, "results": hybrid}))
    (study,) = results.load_studies(tmp_path)
    table = results.budget_table(study)
    assert "| skcompressae, sparse codes alone | 0.600 (16) | 0.750 (32) |  |  |  |  |" in table
    assert "| skcompressae, sparse codes and a PQ of the rest |  |  | 0.850 (64) |  |  |  |" in table
    assert "| skcompressae, sparse codes alone, dense recipe | 0.650 (16) | 0.780 (32) |  |  |  |  |" in table
    assert "| new_method |  |  |  | 0.800 (100) |  |  |" in table
    full = results.full_table(study)
    assert "| 32 | skcompressae | asymmetric, packed | k=16 | 0.500 | 0.750 | 1 |" in full
    assert (
        "| 16 | skcompressae, one model | asymmetric, geometric mean, packed | k=8, k_fit=16 | 0.100 | 0.600 |  |"
        in full
    )
    assert all(name in results.describe(study) for name in ("one.json", "two.json", "hybrid-t.json"))
    fewer = {**content, "data": {**content["data"], "n_documents": 5}, "results": [{**row, "recall_at_100": 0.99}]}
    (tmp_path / "fewer.json").write_text(json.dumps(fewer))
    other = {**content, "data": {**content["data"], "sha256": "1"}, "results": [row]}
    (tmp_path / "other.json").write_text(json.dumps(other))
    studies = results.load_studies(tmp_path)
    assert [study["title"] for study in studies] == ["t", "t, d", "t, 5 documents"]
    assert results.budget_table(studies[0]) == table


def test_a_point_measured_again_stands_as_measured_last(docs_module, tmp_path):
    results = docs_module("results")
    data = {"name": "t", "n_documents": 9, "n_queries": 2, "n_features": 8}
    row = {"method": "ours", "params": {"k": 8}, "mode": "sparse", "size_bytes": 68.0, "cosine": 0.9, "seed": 0}
    row |= {"recall_at_10": 0.5, "recall_at_100": 0.6, "fit_s": 1.0, "encode_s": 1.0}
    # the last by name is not the last by date; a row's own date counts, where it has one
    files = {
        "a": ("2026-11-02", [{**row, "recall_at_100": 0.7, "date": "2026-11-29"}]),
        "b": ("2026-11-28", [{**row, "recall_at_100": 0.3}, {**row, "recall_at_100": 0.8, "seed": 1}]),
        "c": ("2026-11-27", [row]),
    }
    for name, (date, rows) in files.items():
        environment = {"cpu": "c", "n_threads": 1, "date": date}
        content = {"data": data, "environment": environment, "results": rows}
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    (study,) = results.load_studies(tmp_path)
    assert sorted((row["seed"], row["recall_at_100"]) for row in study["results"]) == [(0, 0.7), (1, 0.8)]
    assert "| sparse | 0.750 |" in results.modes_table(study)


def test_results_of_a_modified_tree_are_named():
    text = (DOCS / "measured.md").read_text(encoding="utf-8")
    for path in (ROOT / "benchmarks" / "results").glob("*.json"):
        is_modified = '"is_modified": true' in path.read_text(encoding="utf-8")
        assert (f"`{path.name}`" in text) == is_modified, path.name


def test_margins_are_over_the_paper_at_equal_k_and_mean_over_seeds(docs_module):
    results = docs_module("results")
    modes = ("sparse", "sparse_query128", "reconstructed", "asymmetric", "asymmetric_dot")

    def rows(method, k, seed, recalls):
        shared = {"method": method, "params": {"k": k}, "seed": seed, "dead_fraction": 0.01 * seed}
        return [{**shared, "mode": mode, "recall_at_100": r} for mode, r in zip(modes, recalls, strict=True)]

    measured = rows("ours", 8, 0, (0.5, 0.6, 0.7, 0.8, 0.9)) + rows("ours", 8, 1, (0.6, 0.6, 0.7, 0.8, 0.9))
    measured += rows("paper", 8, 0, (0.4, 0.9, 0.5, 0.9, 0.9)) + rows("paper", 8, 1, (0.5, 0.9, 0.5, 0.9, 0.9))
    measured += rows("ours", 8, 2, (0.7, 0.6, 0.7, 0.8, 0.9))  # without a paper's of the same seed
    measured += rows("ours", 32, 0, (0.9, 0.9, 0.9, 0.9, 0.9)) + rows("paper", 32, 0, (0.8, 0.8, 0.8, 0.8, 0.8))
    measured += rows("ours", 16, 0, (1, 1, 1, 1, 1))
    study = {"title": "t", "results": [*measured, {"method": "pq", "params": {}}]}
    lines = results.margins_table([study]).splitlines()
    spread = "0.600 (+0.100 ± 0.000) | 0.600 (+0.150 ± 0.071) | 0.700 (+0.200 ± 0.000) | 0.800 (+0.300 ± 0.000)"
    one = " | ".join(["0.900 (+0.100)"] * 5)
    assert lines[2:] == [  # at k = 16 there is nothing to compare with
        f"| t | 8 | 2 | {spread} | 0.900 (+0.400 ± 0.000) | 2.0% |",
        f"| t | 32 | 1 | {one} | 0.0% |",
    ]


def test_links_that_lead_nowhere_are_found(docs_module, tmp_path):
    check_links = docs_module("check_links")
    (tmp_path / "a.html").write_text('<a id="x" href="b.html#y">1</a><a href="https://example.org/">2</a>')
    (tmp_path / "b.html").write_text('<p id="y"></p><a href="a.html#x">3</a>')
    assert check_links.check_site(tmp_path) == (3, [])
    (tmp_path / "b.html").write_text(
        '<a href="c.html">1</a><a href="a.html#z">2</a><a href="https:/nowhere">3</a><script src="https://cdn.org/s.js">'
    )
    _, errors = check_links.check_site(tmp_path)
    assert [error.partition(": ")[2] for error in errors] == [
        "b.html#y: no such anchor",
        "c.html: no such page",
        "a.html#z: no such anchor",
        "https:/nowhere: no well-formed address",
        "https://cdn.org/s.js is loaded from outside",
    ]


def test_examples_are_short_and_have_their_place(docs_module):
    gallery = docs_module("gallery")
    paths = sorted(EXAMPLES.glob("plot_*.py"))
    assert {path.stem.removeprefix("plot_") for path in paths} == set(gallery.ORDER)
    for path in paths:
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) < 100, path.name
        assert "plt.show()" in text, path.name
        assert "?" in ast.get_docstring(ast.parse(text)), path.name


def test_citation_names_the_version():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {skcompressae.__version__}\n" in citation
    assert "2505.11388" in citation


def test_fitted_estimators_show_parameters_in_a_notebook(fitted, embeddings):
    search = CodeNearestNeighbors(compressor=fitted).fit(fitted.transform(embeddings[:20]))
    for estimator in (fitted, search):
        html = estimator._repr_html_()
        assert type(estimator).__name__ in html
        assert "Fitted" in html
        assert "n_neighbors" in html if estimator is search else "n_components" in html
        assert "href=" not in html  # scikit-learn's link would lead to pages that it does not have
    assert "Not fitted" in CompresSAETransformer()._repr_html_()
    assert np.all(np.isfinite(fitted.components_))
