"""Collect the docstrings of installed Python packages and embed them: real text with nothing to download.

The sources are parsed with `ast`, never imported, so collecting has no side effects and raises no warnings.
"""

from __future__ import annotations

import ast
import functools
import gc
import importlib.util
import inspect
import itertools
import os
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import Normalizer

CORE_PACKAGES = ("numpy", "scipy", "sklearn", "torch", "stdlib")
EXTRA_PACKAGES = ("matplotlib", "pandas", "sympy", "networkx", "pyarrow", "numba", "joblib", "hypothesis")

# Tests and vendored copies repeat each other; the standard library's folder also holds site-packages
SKIPPED_FOLDERS = frozenset(
    {"tests", "test", "testing", "site-packages", "idlelib", "lib2to3", "__pycache__", "_vendor"}
)
# How numpy, scipy.special and torch attach docstrings to functions written in C
DOC_CALLS = frozenset({"add_newdoc", "add_docstr", "add_docstr_all"})
MIN_WORDS = 6


class Docstring(NamedTuple):
    """The qualified name of a function, class or method, and its docstring."""

    name: str
    text: str


def package_folder(package: str) -> Path | None:
    """Return the folder of an installed top-level package without importing it, or None."""
    if package == "stdlib":
        return Path(sysconfig.get_path("stdlib"))
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None or not spec.submodule_search_locations:
        return None
    return Path(spec.origin).parent


def source_files(folder: Path) -> Iterator[Path]:
    """Yield the Python files below a folder in a fixed order, without tests and vendored code."""
    for path in sorted(folder.rglob("*.py"), key=lambda path: path.relative_to(folder).parts):
        parts = path.relative_to(folder).parts
        if SKIPPED_FOLDERS.isdisjoint(parts[:-1]) and not parts[-1].startswith(("test_", "conftest")):
            yield path


def parse_source(path: Path) -> ast.Module | None:
    """Parse a file, or return None for one that this Python cannot read (templates, newer syntax)."""
    was_collecting = gc.isenabled()
    gc.disable()  # the collector would walk the growing tree again and again: half of the parsing time
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's strings are not our business
            return ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, RecursionError):
        return None
    finally:
        if was_collecting:
            gc.enable()


def docstrings_of(tree: ast.AST, scope: str) -> Iterator[Docstring]:
    """Yield what the definitions below a node, and the calls that attach docstrings to C code, say."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = f"{scope}.{node.name}"
            text = ast.get_docstring(node)
            if text:
                yield Docstring(name, text)
            yield from docstrings_of(node, name)
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            yield from _docstrings_of_call(node.value, scope)
        elif isinstance(node, ast.If | ast.Try | ast.With):
            yield from docstrings_of(node, scope)


def _docstrings_of_call(call: ast.Call, scope: str) -> Iterator[Docstring]:
    """Yield the docstrings of ``add_newdoc(place, name, text)`` and ``add_docstr(object, text)`` calls."""
    function = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", None)
    if function not in DOC_CALLS or len(call.args) < 2:
        return
    parts = [arg.value if isinstance(arg, ast.Constant) else ast.unparse(arg) for arg in call.args[:-1]]
    if not all(isinstance(part, str) for part in parts):
        return
    if len(parts) == 1 and isinstance(call.args[0], ast.Constant):  # a bare name: of this package
        parts.insert(0, scope.rpartition(".")[0])
    name = ".".join(parts)
    last = call.args[-1]
    if isinstance(last, ast.Tuple) and len(last.elts) == 2:  # add_newdoc(place, object, (attribute, text))
        name, last = f"{name}.{literal_text(last.elts[0])}", last.elts[1]
    text = inspect.cleandoc(literal_text(last))
    if text:
        yield Docstring(name, text)


def literal_text(node: ast.expr) -> str:
    """Return the words that an expression spells out: literals, f-strings, sums and ``.format`` templates."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(literal_text(part) for part in node.values)
    if isinstance(node, ast.BinOp):
        return literal_text(node.left) + literal_text(node.right)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        return literal_text(node.func.value)
    return ""


def iter_docstrings(packages: Iterable[str]) -> Iterator[Docstring]:
    """Yield the unique, non-trivial docstrings of the installed packages, always in the same order."""
    seen: set[str] = set()
    for package in packages:
        folder = package_folder(package)
        if folder is None:
            continue
        prefix = () if package == "stdlib" else (package,)
        for path in source_files(folder):
            tree = parse_source(path)
            if tree is None:
                continue
            parts = (*prefix, *path.relative_to(folder).with_suffix("").parts)
            module = ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)
            for entry in docstrings_of(tree, module):
                key = " ".join(entry.text.split()).lower()
                if len(key.split()) >= MIN_WORDS and key not in seen:
                    seen.add(key)
                    yield entry


def collect_docstrings(max_docs: int | None = None, packages: Iterable[str] | None = None) -> list[Docstring]:
    """Return up to `max_docs` docstrings of the core packages, then of the others that are installed."""
    chosen = (*CORE_PACKAGES, *EXTRA_PACKAGES) if packages is None else packages
    return list(itertools.islice(iter_docstrings(chosen), max_docs))


def summary(entry: Docstring) -> str:
    """Return a docstring's first paragraph on one line, or its second where the first is a call signature."""
    paragraphs = [" ".join(paragraph.split()) for paragraph in entry.text.split("\n\n", 2)[:2]]
    is_signature = paragraphs[0].startswith(f"{entry.name.rpartition('.')[2]}(")
    return paragraphs[-1] if is_signature else paragraphs[0]


def searchable_text(entry: Docstring) -> str:
    """Return the name's last two parts and the summary: longer texts drown what tells entries apart."""
    return f"{'.'.join(entry.name.split('.')[-2:])}: {summary(entry)}"


def embed(texts: list[str], n_components: int = 256, random_state: int = 0) -> tuple[np.ndarray, Pipeline]:
    """Return unit-norm LSA embeddings, float32 (n_texts, n_components), and the fitted pipeline."""
    pipeline = make_pipeline(
        # letters only, so that snake_case names fall into their words
        TfidfVectorizer(token_pattern=r"[A-Za-z]{2,}", stop_words="english", sublinear_tf=True, min_df=2),
        TruncatedSVD(n_components=n_components, random_state=random_state),
        Normalizer(copy=False),
    )
    return pipeline.fit_transform(texts).astype(np.float32, copy=False), pipeline


@functools.cache
def embedded_docstrings(
    n_docs: int | None = None, n_components: int = 64
) -> tuple[list[Docstring], np.ndarray, Pipeline]:
    """Return scikit-learn's docstrings, their embeddings and the pipeline: small, and made once for all examples.

    Without `n_docs` there are as many as the environment variable SKCOMPRESSAE_EXAMPLES_DOCS says, else 2,000.
    """
    if n_docs is None:
        n_docs = int(os.environ.get("SKCOMPRESSAE_EXAMPLES_DOCS", "2000"))
    entries = collect_docstrings(n_docs, packages=("sklearn",))
    X, pipeline = embed([searchable_text(entry) for entry in entries], n_components=n_components)
    X.setflags(write=False)
    return entries, X, pipeline
