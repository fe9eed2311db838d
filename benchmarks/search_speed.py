"""How fast is the search over codes beside its peers, on one machine, in one run?

Sparse mode is compared with scikit-learn's ``NearestNeighbors``, `sparse_dot_topn` with a prebuilt transpose
and a SciPy product with a partial sort, on the same codes. Asymmetric and reconstructed modes are compared
with ``faiss.IndexFlatIP`` on the dense originals and ``faiss.IndexPQ`` at the bytes of the codes, and with
other engines for the same product (SciPy and torch CSR times dense).

    python benchmarks/search_speed.py --n-docs 200000 1000000 --threads 1 2 --output search_speed.json

Codes are synthetic: k distinct latents a row, drawn with log-normal popularity (``--skew`` is its sigma, 1.2
by default: the busiest 1 % of 4,096 latents take 12 % of the nonzeros), gamma-distributed magnitudes, random
signs. Originals are decoded codes of a random unit-norm decoder. No recall is measured here: the searches of
codes are exact.

First calls, compilation included where the cache is empty, are reported apart (``first_call_s``). Each time
is the median of repeated runs after that.

What bounds the two scans, as the output reports it:

- every nonzero of a document is read once per pass over the documents: ``document_gb_s``, against the
  measured bandwidth of memory (``memory_gb_s``). One query makes one pass, a batch one pass per 32 queries;
- in a batch, every nonzero of a document reads one row of 32 targets (128 bytes) from a (n_components, 32)
  block that fills half of a 1 MiB L2 cache: ``target_gb_s``, against the measured bandwidth of reading a
  block of that size (``cache_gb_s``).

Alternatives that were tried on 200,000 codes of k=32 (one core of a Zen 4 server, other work running; a guide
to the ratios only), in milliseconds per query:

=============================================================================  =============
asymmetric, batch of 64, score tile in registers, 16 / 32 / 64 lanes            0.34 / 0.28 / 0.32
the same with int32 columns in place of uint16 (32 lanes)                       0.30
the same with the targets off cache-line boundaries (32 lanes)                  0.48
asymmetric, one query, int32 columns, one / four partial sums                    3.8 / 4.1
asymmetric, one query, uint16 columns, one / four partial sums                   2.9 / 3.0
asymmetric, one query, uint16 columns, vectors of 16, without / with prefetch    2.5 / 2.2
sparse, posting lists, float64 sums, blocks of 8,192 / 16,384 / 65,536 rows      0.77 / 0.48 / 0.16
sparse, posting lists, float32 sums, blocks of 8,192 / 16,384 / 65,536 rows      0.81 / 0.54 / 0.16
selecting candidates by a scalar loop / by vector compares of 64 sums            0.28 / 0.10
=============================================================================  =============
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
import tracemalloc
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
from numba import njit
from scipy.sparse import csr_matrix
from threadpoolctl import threadpool_limits

from skcompressae._neighbors import CodeNearestNeighbors

Run = Callable[[int], object]
PACKAGES = ("skcompressae", "numpy", "scipy", "scikit-learn", "numba", "torch", "faiss-cpu", "sparse-dot-topn")


def make_codes(n_rows: int, n_components: int, k: int, skew: float, seed: int) -> csr_matrix:
    """Draw codes with log-normal latent popularity; the popularity does not depend on `seed`."""
    rng = np.random.default_rng(seed)
    popularity = np.exp(skew * np.random.default_rng(0).standard_normal(n_components))
    cumulative = np.cumsum(popularity / popularity.sum())
    cumulative[-1] = 1.0
    indices = np.empty((n_rows, k), np.int32)
    for start in range(0, n_rows, 20_000):
        stop = min(start + 20_000, n_rows)
        pending = np.arange(start, stop)
        while len(pending):
            drawn = np.sort(np.searchsorted(cumulative, rng.random((len(pending), k)), side="right"), axis=1)
            distinct = (np.diff(drawn, axis=1) > 0).all(axis=1)
            indices[pending[distinct]] = drawn[distinct]
            pending = pending[~distinct]
            if len(pending) and not distinct.any():
                # few rows are distinct by luck where k is large for the popularity: draw those exactly
                for row in pending:
                    keys = np.log(popularity) + rng.gumbel(size=n_components)
                    indices[row] = np.sort(np.argpartition(-keys, k - 1)[:k])
                break
    values = (rng.gamma(2.0, 0.5, (n_rows, k)) * rng.choice([-1.0, 1.0], (n_rows, k))).astype(np.float32)
    indptr = np.arange(0, n_rows * k + 1, k)
    return csr_matrix((values.ravel(), indices.ravel(), indptr), shape=(n_rows, n_components))


@njit(fastmath=True)
def _sum(values: np.ndarray, repeats: int) -> float:
    total = np.float32(0.0)
    for _ in range(repeats):
        for i in range(values.shape[0]):
            total += values[i]
    return total


def read_bandwidth(size_bytes: int, total_bytes: int) -> float:
    """Measure GB/s of one core reading a block of `size_bytes` again and again."""
    values = np.ones(size_bytes // 4, np.float32)
    repeats = max(1, total_bytes // size_bytes)
    _sum(values, 1)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        _sum(values, repeats)
        times.append(time.perf_counter() - start)
    return repeats * values.nbytes / min(times) / 1e9


def measure(run: Run, batch: int, seconds: float) -> dict[str, float]:
    """Time the first call, then the median of repeated calls within a budget (3 to 200 calls)."""
    start = time.perf_counter()
    run(batch)
    first = time.perf_counter() - start
    times: list[float] = []
    while len(times) < 3 or (sum(times) < seconds and len(times) < 200):
        start = time.perf_counter()
        run(batch)
        times.append(time.perf_counter() - start)
    median = float(np.median(times))
    return {
        "first_call_s": first,
        "batch_s": median,
        "per_query_ms": median / batch * 1e3,
        "fastest_per_query_ms": min(times) / batch * 1e3,
        "n_runs": len(times),
    }


def peak_bytes(run: Run, batch: int) -> int:
    """Measure the peak of NumPy's allocations during a search; Numba's scratch, a few KiB, is not counted."""
    tracemalloc.start()
    run(batch)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def own_engines(
    documents: csr_matrix,
    codes: csr_matrix,
    dense: np.ndarray,
    decoder: np.ndarray,
    args: argparse.Namespace,
    n_threads: int,
) -> Iterator[tuple[str, str, Run, dict[str, float]]]:
    """Yield (task, name, run, facts) of this library's modes."""
    for mode, queries in (("sparse", codes), ("reconstructed", codes), ("asymmetric", dense)):
        index = CodeNearestNeighbors(
            args.top, compressor=None if mode == "sparse" else decoder, mode=mode, n_jobs=n_threads
        )
        start = time.perf_counter()
        index.fit(documents)
        facts = {"fit_s": time.perf_counter() - start, "bytes_per_document": index.nbytes_per_document_}
        task = "sparse" if mode == "sparse" else "dense"
        yield task, f"skcompressae {mode}", lambda batch, i=index, q=queries: i.kneighbors(q[:batch]), facts


def sparse_peers(
    documents: csr_matrix, codes: csr_matrix, args: argparse.Namespace, n_threads: int
) -> Iterator[tuple[str, str, Run, dict[str, float]]]:
    """Yield the peers that search codes."""
    from sklearn.neighbors import NearestNeighbors

    index = NearestNeighbors(n_neighbors=args.top, metric="cosine", algorithm="brute", n_jobs=n_threads)
    index.fit(documents)
    yield "sparse", "scikit-learn NearestNeighbors", lambda batch: index.kneighbors(codes[:batch]), {}
    norms = np.sqrt(np.add.reduceat(documents.data.astype(np.float64) ** 2, documents.indptr[:-1]))
    unit = csr_matrix(documents.multiply((1.0 / norms)[:, None]), dtype=np.float32)
    transposed = csr_matrix(unit.T)

    def product(batch: int) -> np.ndarray:
        scores = (codes[:batch] @ transposed).toarray()
        best = np.argpartition(-scores, args.top - 1, axis=1)[:, : args.top]
        order = np.argsort(-np.take_along_axis(scores, best, axis=1), axis=1)
        return np.take_along_axis(best, order, axis=1)

    if documents.shape[0] * max(args.batches) <= args.largest_score_matrix:
        yield "sparse", "SciPy product + partition", product, {}
    try:
        from sparse_dot_topn import sp_matmul_topn
    except ImportError:
        return

    def topn(batch: int) -> object:
        return sp_matmul_topn(codes[:batch], transposed, args.top, sort=True, n_threads=n_threads)

    yield "sparse", "sparse_dot_topn", topn, {}


def dense_engines(
    documents: csr_matrix, dense: np.ndarray, decoder: np.ndarray, args: argparse.Namespace
) -> Iterator[tuple[str, str, Run, dict[str, float]]]:
    """Yield other engines for the product that asymmetric search needs: CSR codes times dense targets."""
    import torch

    matrix = torch.sparse_csr_tensor(
        torch.as_tensor(documents.indptr.astype(np.int64)),
        torch.as_tensor(documents.indices.astype(np.int64)),
        torch.as_tensor(documents.data),
        size=documents.shape,
        check_invariants=False,
    )

    def by_scipy(batch: int) -> np.ndarray:
        scores = documents @ (decoder @ dense[:batch].T)
        return np.argpartition(-scores, args.top - 1, axis=0)[: args.top]

    def by_torch(batch: int) -> object:
        scores = matrix @ torch.as_tensor(decoder @ dense[:batch].T)
        return torch.topk(scores, args.top, dim=0)

    if documents.shape[0] * max(args.batches) <= args.largest_score_matrix:
        yield "dense", "SciPy CSR x dense + partition", by_scipy, {}
        yield "dense", "torch CSR x dense + topk", by_torch, {}


def faiss_peers(
    originals: np.ndarray, dense: np.ndarray, args: argparse.Namespace, n_threads: int
) -> Iterator[tuple[str, str, Run, dict[str, float]]]:
    """Yield the FAISS indexes of the dense originals."""
    try:
        import faiss
    except ImportError:
        return
    faiss.omp_set_num_threads(n_threads)
    flat = faiss.IndexFlatIP(originals.shape[1])
    flat.add(originals)
    yield (
        "dense",
        "faiss IndexFlatIP",
        lambda batch: flat.search(dense[:batch], args.top),
        {"bytes_per_document": 4.0 * originals.shape[1]},
    )
    n_features = originals.shape[1]
    # the divisor of n_features nearest to the bytes of a code of uint16 columns and float32 values
    divisors = [n for n in range(1, n_features + 1) if n_features % n == 0]
    parts = min(divisors, key=lambda n: abs(n - 6 * args.k))
    product = faiss.IndexPQ(n_features, parts, args.pq_bits, faiss.METRIC_INNER_PRODUCT)
    start = time.perf_counter()
    product.train(originals[: args.pq_train])
    product.add(originals)
    facts = {"fit_s": time.perf_counter() - start, "bytes_per_document": parts * args.pq_bits / 8}
    yield "dense", f"faiss IndexPQ{parts}x{args.pq_bits}", lambda batch: product.search(dense[:batch], args.top), facts


def versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def hardware() -> dict[str, object]:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {"cpu": model or platform.processor(), "n_cpus": os.cpu_count(), "load_at_start": load}


def limits(record: dict[str, object], args: argparse.Namespace, batch: int, bandwidth: dict[str, float]) -> None:
    """Add how much the scan read per second, beside what the machine can read."""
    seconds, n_docs = float(record["batch_s"]), int(record["n_docs"])  # type: ignore[arg-type]
    passes = -(-batch // 32)
    record["document_gb_s"] = passes * n_docs * (6 * args.k + 12) / seconds / 1e9
    if batch > 1:
        record["target_gb_s"] = passes * n_docs * args.k * 128 / seconds / 1e9
    record["limits"] = bandwidth


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n-docs", type=int, nargs="+", default=[200_000])
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 64, 1024])
    parser.add_argument("--n-components", type=int, default=4096)
    parser.add_argument("--n-features", type=int, default=768)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--top", type=int, default=100)
    parser.add_argument("--skew", type=float, default=1.2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pq-train", type=int, default=20_000)
    parser.add_argument("--pq-bits", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=3.0, help="time for each measurement")
    parser.add_argument("--largest-score-matrix", type=int, default=220_000_000, help="leave out peers above")
    parser.add_argument("--only", default="", help="run only names that contain this")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args(argv)
    bandwidth = {
        "memory_gb_s": read_bandwidth(1 << 28, 1 << 28),
        "cache_gb_s": read_bandwidth(args.n_components * 128, 1 << 30),
    }
    rng = np.random.default_rng(args.seed + 1)
    decoder = rng.standard_normal((args.n_components, args.n_features), dtype=np.float32)
    decoder /= np.linalg.norm(decoder, axis=1, keepdims=True)
    codes = make_codes(max(args.batches), args.n_components, args.k, args.skew, args.seed + 2)
    dense = np.ascontiguousarray(codes @ decoder)
    results: list[dict[str, object]] = []
    for n_docs in args.n_docs:
        documents = make_codes(n_docs, args.n_components, args.k, args.skew, args.seed)
        originals = np.concatenate([documents[i : i + 10_000] @ decoder for i in range(0, n_docs, 10_000)])
        originals /= np.linalg.norm(originals, axis=1, keepdims=True)
        for n_threads in args.threads:
            with threadpool_limits(n_threads):
                engines = [
                    own_engines(documents, codes, dense, decoder, args, n_threads),
                    sparse_peers(documents, codes, args, n_threads),
                    dense_engines(documents, dense, decoder, args),
                    faiss_peers(originals, dense, args, n_threads),
                ]
                for task, name, run, facts in (row for engine in engines for row in engine):
                    if args.only not in name:
                        continue
                    for batch in args.batches:
                        record: dict[str, object] = {
                            "task": task,
                            "name": name,
                            "n_docs": n_docs,
                            "n_threads": n_threads,
                            "batch": batch,
                        }
                        record |= facts | measure(run, batch, args.seconds)
                        if name.startswith("skcompressae"):
                            record["search_peak_bytes"] = peak_bytes(run, batch)
                            if task == "dense":
                                limits(record, args, batch, bandwidth)
                        results.append(record)
                        print(
                            f"{n_docs:>9} docs {n_threads} threads batch {batch:>5}  {name:<32}"
                            f"{record['per_query_ms']:>10.4f} ms/query",
                            flush=True,
                        )
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}
    report = {"settings": settings, "hardware": hardware(), "versions": versions(), "results": results}
    args.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
