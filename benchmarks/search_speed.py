"""How fast is the search over codes beside its peers, on one machine, in one run?

Sparse mode is compared with scikit-learn's ``NearestNeighbors``, `sparse_dot_topn` with a prebuilt transpose
and a SciPy product with a partial sort, on the same codes. Asymmetric and reconstructed modes are compared
with ``faiss.IndexFlatIP`` on the dense originals and ``faiss.IndexPQ`` at the bytes of the codes, and with
other engines for the same product (SciPy and torch CSR times dense).

    python benchmarks/search_speed.py --n-docs 200000 1000000 --threads 1 2 --output search_speed.json

The file is written after every row, and rows that it holds are kept unless measured again, so the table can be made
in parts (``--parts``, ``--only``). `--cache` names a folder for the data and the trained peers, to make them once.

Codes are synthetic: k distinct latents a row, drawn with log-normal popularity (``--skew`` is its sigma, 1.2
by default: the busiest 1 % of 4,096 latents take 12 % of the nonzeros), gamma-distributed magnitudes, random
signs. Originals are decoded codes of a random unit-norm decoder. No recall is measured here: the searches of
codes are exact.

First calls, compilation included where the cache is empty, are reported apart (``first_call_s``). Each time
is the median of repeated runs after that. Where a batch of IndexPQ would take longer than ``--longest``, fewer queries
are timed (``n_timed_queries``): its time a query does not depend on the batch. All others run the whole batch.

What bounds the scan for many queries (part "limits", one thread, kernel alone, no candidates):

- `kernel_ms` a query, and `kernel_l1_ms` for the same rows with their indices folded into 64 components, whose
  targets stay in the L1 cache: the difference is what the caches cost;
- every nonzero of a document reads a row of 64 targets of 16 bits (128 bytes) from a block of 128 bytes a
  component: ``target_gb_s``, beside the measured bandwidth of reading a block of that size (``cache_gb_s``);
- one multiply-add for every nonzero and query: ``scan_gflop_s``, beside what the matrix product of NumPy's BLAS
  reaches on one core (``sgemm_gflop_s``). The scan also widens its 16-bit targets: three vector instructions for every
  two multiply-adds;
- every nonzero of a document is read once per pass over the documents, one pass per 64 queries: ``document_gb_s``,
  against the measured bandwidth of memory (``memory_gb_s``). For one query, `document_gb_s` is of the whole search.
"""

from __future__ import annotations

import argparse
import json
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from _common import environment, write_json
from numba import njit
from scipy.sparse import csr_matrix, load_npz, save_npz
from threadpoolctl import threadpool_limits

from skcompressae._core._search import prepare_group
from skcompressae._core._search_kernels import scan_rows_wide
from skcompressae._core._search_pending import new_pending
from skcompressae._core._search_vectors import LANES
from skcompressae._neighbors import CodeNearestNeighbors
from skcompressae.packed import PackedCodes

Run = Callable[[int], object]
Row = tuple[str, str, Run, dict[str, float]]


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


def measure(run: Run, batch: int, seconds: float, longest: float, known_s: float) -> dict[str, float]:
    """Time the first call, then the median of repeated calls within a budget (2 to 200 calls).

    `known_s` is the time of one query as known so far: fewer queries are run where the batch would take over `longest`.
    """
    n_timed = batch if known_s * batch <= longest else max(1, int(longest / known_s))
    start = time.perf_counter()
    run(n_timed)
    first = time.perf_counter() - start
    times: list[float] = []
    while len(times) < 2 or (sum(times) < seconds and len(times) < 200):
        start = time.perf_counter()
        run(n_timed)
        times.append(time.perf_counter() - start)
    median = float(np.median(times))
    return {
        "n_timed_queries": n_timed,
        "first_call_s": first,
        "per_query_ms": median / n_timed * 1e3,
        "fastest_per_query_ms": min(times) / n_timed * 1e3,
        "n_runs": len(times),
    }


def peak_bytes(run: Run, batch: int) -> int:
    """Measure the peak of NumPy's allocations during a search; Numba's scratch, a few KiB, is not counted."""
    tracemalloc.start()
    run(batch)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


class Data:
    """Documents, queries and what is made of them, kept in a folder where one is given."""

    def __init__(self, n_docs: int, args: argparse.Namespace) -> None:
        self.n_docs, self.args = n_docs, args
        rng = np.random.default_rng(args.seed + 1)
        self.decoder = rng.standard_normal((args.n_components, args.n_features), dtype=np.float32)
        self.decoder /= np.linalg.norm(self.decoder, axis=1, keepdims=True)
        self.codes = make_codes(max(args.batches), args.n_components, args.k, args.skew, args.seed + 2)
        self.dense = np.ascontiguousarray(self.codes @ self.decoder)
        path = self._path("documents.npz")
        if path and path.exists():
            self.documents = csr_matrix(load_npz(path))
            return
        self.documents = make_codes(n_docs, args.n_components, args.k, args.skew, args.seed)
        if path:
            save_npz(path, self.documents, compressed=False)

    def _path(self, name: str) -> Path | None:
        args = self.args
        if args.cache is None:
            return None
        args.cache.mkdir(parents=True, exist_ok=True)
        key = (self.n_docs, args.n_components, args.n_features, args.k, args.skew, args.seed)
        return args.cache / f"{'-'.join(map(str, key))}-{name}"

    def originals(self) -> np.ndarray:
        """Return the dense documents, unit rows."""
        originals = np.empty((self.n_docs, self.args.n_features), np.float32)
        for i in range(0, self.n_docs, 10_000):
            rows = self.documents[i : i + 10_000] @ self.decoder
            originals[i : i + 10_000] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        return originals

    def faiss_index(self, name: str, make: Callable[[], object]) -> object:
        """Return a FAISS index, from the folder if it is there."""
        import faiss

        path = self._path(f"{name}.faiss")
        if path and path.exists():
            return faiss.read_index(str(path))
        index = make()
        if path:
            faiss.write_index(index, str(path))
        return index


def own_engines(data: Data, args: argparse.Namespace, n_threads: int) -> Iterator[Row]:
    """Yield (task, name, run, facts) of this library's modes, over CSR and over codes packed with values of 4 bits."""
    for mode, queries, form in (
        ("asymmetric", data.dense, ""),
        ("asymmetric", data.dense, ", packed"),
        ("reconstructed", data.codes, ""),
        ("reconstructed", data.codes, ", packed"),
        ("sparse", data.codes, ""),
    ):
        name = f"skcompressae {mode}{form}"
        if args.only not in name:
            continue
        index = CodeNearestNeighbors(
            args.top, compressor=None if mode == "sparse" else data.decoder, mode=mode, n_jobs=n_threads
        )
        documents = PackedCodes.pack(data.documents, value_bits=4) if form else data.documents
        start = time.perf_counter()
        index.fit(documents)
        facts = {"fit_s": time.perf_counter() - start, "bytes_per_document": index.nbytes_per_document_}
        task = "sparse" if mode == "sparse" else "dense"
        yield task, name, lambda batch, i=index, q=queries: i.kneighbors(q[:batch]), facts


def sparse_peers(data: Data, args: argparse.Namespace, n_threads: int) -> Iterator[Row]:
    """Yield the peers that search codes."""
    documents, codes = data.documents, data.codes
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


def dense_engines(data: Data, args: argparse.Namespace, n_threads: int) -> Iterator[Row]:
    """Yield other engines for the product that asymmetric search needs: CSR codes times dense targets."""
    documents, dense, decoder = data.documents, data.dense, data.decoder
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
        torch.set_num_threads(n_threads)
        scores = matrix @ torch.as_tensor(decoder @ dense[:batch].T)
        return torch.topk(scores, args.top, dim=0)

    if documents.shape[0] * max(args.batches) <= args.largest_score_matrix:
        yield "dense", "SciPy CSR x dense + partition", by_scipy, {}
        yield "dense", "torch CSR x dense + topk", by_torch, {}


def flat_peer(data: Data, args: argparse.Namespace, n_threads: int) -> Iterator[Row]:
    """Yield FAISS's exact search of the dense originals."""
    try:
        import faiss
    except ImportError:
        return

    faiss.omp_set_num_threads(n_threads)

    def make() -> object:
        flat = faiss.IndexFlatIP(args.n_features)
        flat.add(data.originals())
        return flat

    flat = data.faiss_index("flat", make)
    facts = {"bytes_per_document": 4.0 * args.n_features}
    yield "dense", "faiss IndexFlatIP", lambda batch: flat.search(data.dense[:batch], args.top), facts


def pq_peer(data: Data, args: argparse.Namespace, n_threads: int) -> Iterator[Row]:
    """Yield FAISS's product quantiser at the divisor of n_features nearest to the bytes of a code in this index."""
    try:
        import faiss
    except ImportError:
        return

    faiss.omp_set_num_threads(n_threads)
    divisors = [n for n in range(1, args.n_features + 1) if args.n_features % n == 0]
    parts = min(divisors, key=lambda n: abs(n - 6 * args.k))

    def make() -> object:
        product = faiss.IndexPQ(args.n_features, parts, args.pq_bits, faiss.METRIC_INNER_PRODUCT)
        originals = data.originals()
        product.train(originals[: args.pq_train])
        product.add(originals)
        return product

    product = data.faiss_index(f"pq{parts}x{args.pq_bits}", make)
    facts = {"bytes_per_document": parts * args.pq_bits / 8}
    name = f"faiss IndexPQ{parts}x{args.pq_bits}"
    yield "dense", name, lambda batch: product.search(data.dense[:batch], args.top), facts


PARTS: dict[str, Callable[[Data, argparse.Namespace, int], Iterator[Row]]] = {
    "own": own_engines,
    "sparse": sparse_peers,
    "dense": dense_engines,
    "flat": flat_peer,
    "pq": pq_peer,
}


def sgemm_gflop_s(n: int = 1024) -> float:
    """Return what one thread of NumPy's BLAS reaches on a large float32 product."""
    a = np.ones((n, n), np.float32)
    times = []
    for _ in range(8):
        start = time.perf_counter()
        a @ a
        times.append(time.perf_counter() - start)
    return 2 * n**3 / min(times) / 1e9


def kernel_limits(data: Data, args: argparse.Namespace) -> dict[str, float]:
    """Time the scan for many queries alone, one thread, beside what the machine can do."""
    n_rows = min(data.n_docs, 200_000)
    rows = data.documents[:n_rows]
    targets = data.decoder @ data.dense[:LANES].T
    group = prepare_group(targets, 0, LANES, args.n_components)
    limits, exclude, margins = np.full(LANES, np.inf, np.float32), np.full(LANES, -1), np.zeros(LANES)

    def kernel_s(indices: np.ndarray) -> float:
        pending, times = new_pending(LANES, args.top, n_rows), []
        for _ in range(7):
            start = time.perf_counter()
            scan_rows_wide(
                rows.indptr,
                indices,
                rows.data,
                np.ones(n_rows),
                0,
                0,
                group.scan,
                margins,
                exclude,
                args.top,
                limits,
                pending,
            )
            times.append(time.perf_counter() - start)
        return min(times[1:])

    columns = rows.indices.astype(np.uint16 if args.n_components <= 65_536 else np.int32)
    seconds, seconds_l1 = kernel_s(columns), kernel_s(columns % 64)
    return {
        "n_docs": n_rows,
        "kernel_ms": seconds / LANES * 1e3,
        "kernel_l1_ms": seconds_l1 / LANES * 1e3,
        "scan_gflop_s": 2 * rows.nnz * LANES / seconds / 1e9,
        "sgemm_gflop_s": sgemm_gflop_s(),
        "target_gb_s": rows.nnz * 2 * LANES / seconds / 1e9,
        "cache_gb_s": read_bandwidth(args.n_components * 2 * LANES, 1 << 30),
        "cache_l1_gb_s": read_bandwidth(64 * 2 * LANES, 1 << 30),
        "document_gb_s": (6 * rows.nnz + 12 * n_rows) / seconds / 1e9,
        "memory_gb_s": read_bandwidth(1 << 28, 1 << 28),
    }


def measure_part(part: str, data: Data, args: argparse.Namespace, n_threads: int) -> Iterator[dict[str, object]]:
    """Yield a record for each engine of a part and each batch size."""
    for task, name, run, facts in PARTS[part](data, args, n_threads):
        if args.only not in name:
            continue
        known_s = 0.0
        for batch in args.batches:
            record: dict[str, object] = {
                "task": task,
                "name": name,
                "n_docs": data.n_docs,
                "n_threads": n_threads,
                "batch": batch,
            }
            timing = measure(run, batch, args.seconds, args.longest if part == "pq" else np.inf, known_s)
            known_s = timing["per_query_ms"] / 1e3
            record |= facts | timing
            if part == "own":
                record["search_peak_bytes"] = peak_bytes(run, batch)
                record["result_bytes"] = 16 * args.top * batch
                if task == "dense":
                    passes = -(-batch // LANES)
                    gigabytes = passes * data.n_docs * facts["bytes_per_document"] / 1e9
                    record["document_gb_s"] = gigabytes / (known_s * batch)
            yield record
            print(
                f"{data.n_docs:>9} docs {n_threads} threads batch {batch:>5}  {name:<32}"
                f"{record['per_query_ms']:>10.4f} ms/query",
                flush=True,
            )


def identity(record: dict[str, object]) -> tuple[object, ...]:
    return tuple(record.get(key) for key in ("name", "n_docs", "n_threads", "batch"))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n-docs", type=int, nargs="+", default=[200_000])
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 64, 1024])
    parser.add_argument("--parts", nargs="+", choices=["limits", *PARTS], default=["limits", *PARTS])
    parser.add_argument("--only", default="", help="run only names that contain this")
    parser.add_argument("--n-components", type=int, default=4096)
    parser.add_argument("--n-features", type=int, default=768)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--top", type=int, default=100)
    parser.add_argument("--skew", type=float, default=1.2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pq-train", type=int, default=20_000)
    parser.add_argument("--pq-bits", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=2.0, help="time for each measurement")
    parser.add_argument("--longest", type=float, default=6.0, help="longest call, in seconds, before queries are cut")
    parser.add_argument("--largest-score-matrix", type=int, default=220_000_000, help="leave out peers above")
    parser.add_argument("--cache", type=Path, help="folder for data and trained peers")
    parser.add_argument("--prepare", action="store_true", help="only fill the cache")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args(argv)
    ways = ("n_docs", "threads", "batches", "parts", "only", "cache", "prepare", "output")
    settings = {key: value for key, value in vars(args).items() if key not in ways}
    content = json.loads(args.output.read_text()) if args.output.exists() else {}
    if content.get("settings", settings) != settings:
        parser.error(f"{args.output} was made with other settings: {content['settings']}")
    results = {identity(record): record for record in content.get("results", [])}
    limits = content.get("limits", {})

    def write() -> None:
        record = {"settings": settings, "environment": environment(), "limits": limits}
        write_json(args.output, record | {"results": list(results.values())})

    for n_docs in args.n_docs:
        data = Data(n_docs, args)
        for n_threads in args.threads:
            with threadpool_limits(n_threads):
                for part in args.parts:
                    if args.prepare:
                        if part in ("flat", "pq"):
                            next(PARTS[part](data, args, n_threads), None)
                    elif part == "limits":
                        with threadpool_limits(1):
                            limits = kernel_limits(data, args)
                        print(json.dumps(limits), flush=True)
                        write()
                    else:
                        for record in measure_part(part, data, args, n_threads):
                            results[identity(record)] = record
                            write()


if __name__ == "__main__":
    main()
