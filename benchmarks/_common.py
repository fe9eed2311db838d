"""What the benchmarks share: the record of the environment, exact neighbours, recall, scoring, JSON."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

Array = np.ndarray
BLOCK_BYTES = 64 * 2**20  # one block of scores: large enough for BLAS, small beside any data set
REPOSITORY = Path(__file__).resolve().parent.parent
VERSIONED = ("numpy", "scipy", "scikit-learn", "torch", "numba", "faiss-cpu", "onnx", "onnxruntime", "skcompressae")


def environment() -> dict[str, Any]:
    """Return hardware, threads, versions and commit, as every result file records them."""
    import torch

    record: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "platform": platform.platform(),
        "cpu": _cpu_model(),
        "n_cpus": os.cpu_count(),
        "n_threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "versions": {},
        "commit": _git("rev-parse", "--short", "HEAD"),
        "is_modified": bool(_git("status", "--porcelain", "--untracked-files=no")),
    }
    for package in VERSIONED:
        try:
            record["versions"][package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            record["versions"][package] = None
    return record


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        fields: dict[str, str] = {}
        for line in info.read_text().splitlines():
            key, _, value = line.partition(":")
            fields.setdefault(key.strip(), value.strip())
        family = f"family {fields.get('cpu family', '?')} model {fields.get('model', '?')}"
        has_avx512 = "AVX-512" if "avx512f" in fields.get("flags", "") else "no AVX-512"
        return f"{fields.get('model name', platform.machine())} ({family}, {has_avx512})"
    return platform.processor() or platform.machine()


def _git(*arguments: str) -> str | None:
    try:
        run = subprocess.run(["git", *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return run.stdout.strip()


def peak_memory_bytes() -> int:
    """Return the process's peak resident size."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@contextmanager
def stopwatch(clock: Callable[[], float] = time.perf_counter) -> Iterator[Callable[[], float]]:
    """Yield a function that gives the seconds since entry, and stops counting on exit."""
    start, stopped = clock(), []
    try:
        yield lambda: (stopped[0] if stopped else clock()) - start
    finally:
        stopped.append(clock())


def cpu_stopwatch() -> AbstractContextManager[Callable[[], float]]:
    """Count CPU seconds of all threads instead: what a fair share of work is, also beside other programs."""
    return stopwatch(time.process_time)


def median_seconds(work: Callable[[], Any], n_repeats: int) -> float:
    """Return the median time of `n_repeats` calls, after one that warms caches and compilers up."""
    work()
    times = []
    for _ in range(n_repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a result file, numbers of NumPy included."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1, default=lambda value: value.item()) + "\n", encoding="utf-8")


def unit_rows(X: Array) -> Array:
    """Return the rows scaled to unit norm, float32; zero rows stay zero."""
    X = np.asarray(X, dtype=np.float32)
    norms = np.linalg.norm(X, axis=1, keepdims=True)
    return X / np.where(norms > 0, norms, 1.0)


def top_of_blocks(score: Callable[[slice], Array], n_queries: int, n_documents: int, n_neighbors: int) -> Array:
    """Return the documents of highest score, best first; ``score(rows)`` gives (n_rows, n_documents)."""
    n_neighbors = min(n_neighbors, n_documents)
    n_rows = max(1, BLOCK_BYTES // (4 * n_documents))
    best = np.empty((n_queries, n_neighbors), dtype=np.int32)
    for start in range(0, n_queries, n_rows):
        rows = slice(start, min(start + n_rows, n_queries))
        scores = score(rows)
        top = np.argpartition(-scores, n_neighbors - 1, axis=1)[:, :n_neighbors]
        order = np.argsort(-np.take_along_axis(scores, top, axis=1), axis=1, kind="stable")
        best[rows] = np.take_along_axis(top, order, axis=1)
    return best


def cosine_neighbors(queries: Array, documents: Array, n_neighbors: int) -> Array:
    """Return the nearest documents by cosine of dense rows, (n_queries, n_neighbors), best first."""
    queries, transposed = unit_rows(queries), np.ascontiguousarray(unit_rows(documents)).T
    return top_of_blocks(lambda rows: queries[rows] @ transposed, len(queries), transposed.shape[1], n_neighbors)


def code_neighbors(queries: Any, codes: sp.csr_matrix, n_neighbors: int) -> Array:
    """Return the documents whose codes have the largest inner product with code-space queries, best first."""
    by_document = sp.csr_matrix(codes)

    def score(rows: slice) -> Array:
        block = queries[rows]
        dense = block.toarray() if sp.issparse(block) else np.asarray(block)
        return (by_document @ np.ascontiguousarray(dense.T)).T

    return top_of_blocks(score, queries.shape[0], codes.shape[0], n_neighbors)


def recall(found: Array, true: Array, n_neighbors: int) -> float:
    """Return the mean share of the `n_neighbors` true neighbours among as many found."""
    n_neighbors = min(n_neighbors, true.shape[1])
    shares = [np.intersect1d(f[:n_neighbors], t[:n_neighbors]).size for f, t in zip(found, true, strict=True)]
    return float(np.mean(shares) / n_neighbors)


def agreement(found: sp.csr_matrix, expected: sp.csr_matrix, k: int) -> dict[str, float]:
    """Return the share of rows with equal supports, and how far apart their values are.

    Differences are relative to the largest value of the row. Rows of which `expected` stores fewer than k entries do
    not count.
    """
    is_full = np.diff(expected.indptr) == k
    both = is_full & (np.diff(found.indptr) == k)
    one, other = (codes.indptr[:-1][both, None] + np.arange(k) for codes in (found, expected))
    is_same = (found.indices[one] == expected.indices[other]).all(axis=1)
    values, wanted = found.data[one][is_same], expected.data[other][is_same]
    differences = np.abs(values - wanted) / np.abs(wanted).max(axis=1, keepdims=True)
    return {
        "equal_supports": float(is_same.sum() / is_full.sum()),
        "largest_difference": float(differences.max()) if is_same.any() else float("nan"),
    }


def mean_cosine(X: Array, X_hat: Array) -> float:
    """Return the mean cosine similarity of rows and their reconstructions."""
    return float(np.einsum("ij,ij->i", unit_rows(X), unit_rows(X_hat)).mean(dtype=np.float64))


def scale_rows(codes: sp.csr_matrix, norms: Array) -> sp.csr_matrix:
    """Return the codes with every row divided by its entry of `norms` (left alone where that is zero)."""
    inverse = 1.0 / np.where(norms > 0, norms, 1.0)
    scaled = sp.csr_matrix(codes, copy=True)
    scaled.data *= np.repeat(inverse, np.diff(scaled.indptr)).astype(scaled.dtype)
    return scaled


def unit_codes(codes: sp.csr_matrix) -> sp.csr_matrix:
    """Return the codes with rows of unit norm, so that inner products are code-to-code cosines."""
    return scale_rows(codes, np.sqrt(np.asarray(codes.multiply(codes).sum(axis=1)).ravel()))


def csr_size_bytes(k: int) -> float:
    """Return the bytes of one CSR row: int32 indices, float32 values (the row pointer left out)."""
    return 8.0 * k
