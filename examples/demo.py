"""Compress the embeddings of the installed packages' docstrings, and see that search still finds the same.

Prints bytes, recall and example searches, and leaves recall_against_bytes.png and demo.json in --out.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
from docstring_corpus import CORE_PACKAGES, collect_docstrings, embed, searchable_text
from sklearn.decomposition import PCA
from sklearn.preprocessing import normalize

from skcompressae import CodeNearestNeighbors, CompresSAETransformer
from skcompressae.metrics import exact_neighbors

QUESTIONS = (
    "sparse matrix times vector",
    "area under the ROC curve",
    "fast Fourier transform of real input",
    "clip the norm of gradients",
    "parse command line arguments",
)
N_NEIGHBORS = 100
VERSIONED = ("skcompressae", "scikit-learn", "torch", "numpy", "scipy", "numba")
OURS = "skcompressae, {}"
STYLES = {
    OURS.format("asymmetric, packed"): ("#0072B2", "o-", 2.5),
    OURS.format("asymmetric"): ("#0072B2", "o--", 1.3),
    OURS.format("reconstructed"): ("#56B4E9", "s--", 1.3),
    OURS.format("sparse"): ("#009E73", "^--", 1.3),
    "PCA, int8": ("#E69F00", "x-", 1.3),
    "PCA, float32": ("#777777", "x-", 1.3),
}


def neighbors_by_score(queries: Any, documents: Any, n_neighbors: int = N_NEIGHBORS) -> np.ndarray:
    """Return the documents of largest inner product with each query row, best first; both dense or sparse."""
    found = []
    for start in range(0, queries.shape[0], 256):
        block = queries[start : start + 256]
        # a query in code space has many nonzeros: as a dense block against the sparse documents it is fastest
        scores = (documents @ (block.toarray() if sp.issparse(block) else block).T).T
        best = np.argpartition(-scores, n_neighbors - 1, axis=1)[:, :n_neighbors]
        order = np.argsort(-np.take_along_axis(scores, best, axis=1), axis=1)
        found.append(np.take_along_axis(best, order, axis=1))
    return np.vstack(found)


def recall(found: np.ndarray, true: np.ndarray, n: int) -> float:
    """Return the mean share of the `n` true neighbours among as many found."""
    return float(np.mean([np.intersect1d(f[:n], t[:n]).size / n for f, t in zip(found, true, strict=True)]))


def csr_bytes(codes: sp.csr_matrix) -> int:
    """Return the bytes of the three arrays of a CSR matrix."""
    return codes.data.nbytes + codes.indices.nbytes + codes.indptr.nbytes


def search(model: Any, codes: Any, queries: Any, mode: str, n_neighbors: int = N_NEIGHBORS) -> np.ndarray:
    """Return the documents that the library finds among codes."""
    neighbors = CodeNearestNeighbors(n_neighbors, compressor=model, mode=mode).fit(codes)
    return neighbors.kneighbors(queries, return_distance=False)


def pca_curve(queries: np.ndarray, documents: np.ndarray, true: np.ndarray) -> dict[str, list[tuple[float, float]]]:
    """Return (bytes, recall@100) of truncating to principal components, as float32 and as int8."""
    curve: dict[str, list[tuple[float, float]]] = {"PCA, float32": [], "PCA, int8": []}
    model = PCA(min(128, *documents.shape), random_state=0).fit(documents)
    # not centred, so that inner products with a query approximate the cosine
    documents, queries = documents @ model.components_.T, queries @ model.components_.T
    for rank in (rank for rank in (16, 32, 64, 128) if rank <= documents.shape[1]):
        kept = documents[:, :rank]
        scale = np.abs(kept).max(axis=0) / 127
        for label, rows, size in (
            ("PCA, float32", kept, 4 * rank),
            ("PCA, int8", np.round(kept / scale) * scale, rank),
        ):
            found = neighbors_by_score(queries[:, :rank], normalize(rows))
            curve[label].append((size, recall(found, true, 100)))
    return curve


def draw(curves: dict[str, list[tuple[float, float]]], labels: dict[str, list[str]], n_dense: int, path: Path) -> None:
    """Draw recall@100 against bytes per vector."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.5, 5.5), layout="constrained")
    axis = figure.subplots()
    for name, points in curves.items():
        sizes, recalls = zip(*points, strict=True)
        color, line, width = STYLES[name]
        axis.plot(sizes, recalls, line, color=color, label=name, linewidth=width)
        for text, x, y in zip(labels.get(name, ()), sizes, recalls, strict=False):
            axis.annotate(text, (x, y), textcoords="offset points", xytext=(0, 8), ha="center", color=color)
    axis.axvline(n_dense, color="black", linewidth=1, linestyle=":")
    axis.annotate("dense float32", (n_dense, 0.02), textcoords="offset points", xytext=(-5, 0), ha="right")
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_ylim(0, 1.08)
    axis.grid(alpha=0.3)
    axis.set_xlabel("bytes per vector (log scale)")
    axis.set_ylabel("recall@100 of the true dense neighbours")
    axis.set_title("Docstring search: neighbours kept against size")
    figure.legend(loc="outside lower center", ncols=3)
    figure.savefig(path, dpi=130)


def print_searches(names: list[str], dense: np.ndarray, compressed: np.ndarray) -> list[dict[str, Any]]:
    """Print the answers side by side and return them; a star marks a dense answer that compression kept."""
    answers = []
    for question, from_dense, from_codes in zip(QUESTIONS, dense, compressed, strict=True):
        left, right = [names[i] for i in from_dense], [names[i] for i in from_codes]
        answers.append({"question": question, "dense": left, "compressed": right})
        print(f"\n  {question!r}\n    {'from dense embeddings':<52}   from compressed codes (* = also a dense answer)")
        for a, b in zip(left, right, strict=True):
            print(f"    {shortened(a):<52} {'*' if b in left else ' '} {shortened(b)}")
    return answers


def shortened(name: str, width: int = 50) -> str:
    """Return a name with its middle left out where it is too long for a column."""
    return name if len(name) <= width else f"{name[:16]}...{name[-(width - 19) :]}"


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Run the demo and return what it writes to demo.json."""
    started = time.perf_counter()
    # the core packages alone, so that the numbers do not depend on what else is installed
    entries = collect_docstrings(options.max_docs, packages=CORE_PACKAGES)
    names, texts = [entry.name for entry in entries], [searchable_text(entry) for entry in entries]
    collected_s = time.perf_counter() - started
    print(f"{len(entries):,} docstrings collected in {collected_s:.1f} s")
    X, pipeline = embed(texts, n_components=options.n_features)
    print(f"embedded to {X.shape[1]} dimensions, {X.nbytes / 1e6:.1f} MB")

    order = np.random.RandomState(0).permutation(len(X))
    n_queries = min(2000, len(X) // 10)
    queries, documents = X[order[:n_queries]], X[order[n_queries:]]
    document_names = [names[i] for i in order[n_queries:]]
    true = exact_neighbors(documents, queries, N_NEIGHBORS)

    questions = pipeline.transform(QUESTIONS).astype(np.float32)
    start = time.perf_counter()
    params = {"n_components": options.n_components, "k": max(options.k), "random_state": 0, **options.params}
    model = CompresSAETransformer(**params).fit(documents)
    fit_s = time.perf_counter() - start
    print(
        f"fitted {options.n_components} latents at k={max(options.k)} in {fit_s:.1f} s; every k below is this model's"
    )
    results = []
    for k in options.k:
        model.set_params(k=k)
        start = time.perf_counter()
        codes = model.transform(documents)
        encode_s = time.perf_counter() - start
        packed = model.transform_packed(documents)
        query_codes = model.transform(queries)
        found = {
            "sparse": search(model, codes, query_codes, "sparse"),
            "reconstructed": search(model, codes, query_codes, "reconstructed"),
            "asymmetric": search(model, codes, queries, "asymmetric"),
            "asymmetric, packed": search(model, packed, queries, "asymmetric"),
        }
        result = {
            "k": k,
            "encode_s": encode_s,
            "mean_cosine": float(model.score(queries)),
            "csr_bytes_per_vector": csr_bytes(codes) / len(documents),
            "packed_bytes_per_vector": packed.nbytes / len(documents),
            "recall_at_10": {mode: recall(indices, true, 10) for mode, indices in found.items()},
            "recall_at_100": {mode: recall(indices, true, 100) for mode, indices in found.items()},
        }
        results.append(result)
        print_result(result, documents)
        if k == options.k[len(options.k) // 2]:
            n = 5
            dense = exact_neighbors(documents, questions, n)
            answers = (k, dense, search(model, packed, questions, "asymmetric", n))

    k_shown, dense, compressed = answers
    print(f"\nexample searches, k={k_shown}, a dense query against compressed documents:")
    searches = print_searches(document_names, dense, compressed)
    curves: dict[str, list[tuple[float, float]]] = {}
    for mode in results[0]["recall_at_100"]:
        of_row = "packed_bytes_per_vector" if "packed" in mode else "csr_bytes_per_vector"
        curves[OURS.format(mode)] = [(result[of_row], result["recall_at_100"][mode]) for result in results]
    labels = {name: [f"k={k}" for k in options.k] for name in curves if "asymmetric" in name}
    curves |= pca_curve(queries, documents, true)
    options.out.mkdir(parents=True, exist_ok=True)
    picture = options.out / "recall_against_bytes.png"
    draw(curves, labels, 4 * X.shape[1], picture)
    content = {
        "environment": {
            "cpu": platform.processor() or platform.machine(),
            "n_cpus": os.cpu_count(),
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in VERSIONED},
        },
        "seed": 0,
        "n_documents": len(documents),
        "n_queries": n_queries,
        "n_features": X.shape[1],
        "n_components": options.n_components,
        "fit_s": fit_s,
        "dense_bytes": documents.nbytes,
        "results": results,
        "curves": curves,
        "searches": searches,
        "time_s": time.perf_counter() - started,
    }
    (options.out / "demo.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(f"\n{content['time_s']:.0f} s in all; picture: {picture}")
    return content


def print_result(result: dict[str, Any], documents: np.ndarray) -> None:
    """Print one line per search mode for one k, under the sizes."""
    n_rows, dense = len(documents), 4 * documents.shape[1]
    csr, packed = result["csr_bytes_per_vector"], result["packed_bytes_per_vector"]
    print(
        f"\nk={result['k']}: encode {result['encode_s']:.2f} s, "
        f"held-out mean cosine {result['mean_cosine']:.3f}\n"
        f"  dense {dense * n_rows / 1e6:.1f} MB ({dense} bytes a vector)"
        f" -> CSR {csr * n_rows / 1e6:.1f} MB ({csr:.0f}, {dense / csr:.1f}x smaller)"
        f" -> packed {packed * n_rows / 1e6:.1f} MB ({packed:.0f}, {dense / packed:.0f}x)"
    )
    for mode, at_10 in result["recall_at_10"].items():
        print(f"  {mode:<20} recall@10 {at_10:.3f}   recall@100 {result['recall_at_100'][mode]:.3f}")


def parse_options(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max-docs", type=int, default=None, help="default: all")
    parser.add_argument("--n-features", type=int, default=256, help="width of the dense embeddings")
    parser.add_argument("--n-components", type=int, default=4096)
    parser.add_argument("--k", nargs="+", type=int, default=[8, 16, 32])
    parser.add_argument("--params", type=json.loads, default={}, help="more estimator parameters, a JSON object")
    parser.add_argument("--out", type=Path, default=Path("demo-output"))
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run(parse_options())
