"""What do packed codes cost: bytes, recall, speed, for each value quantiser and number of bits?

Codes are those of a saved model (`--model`, fitted to the documents of the protocol), or come from a quick dictionary
(data rows, one-shot selection and a least-squares refit). Protocol: the first `--queries` rows of
``RandomState(0).permutation(n)`` are queries, the true neighbours are the exact cosine top 100 of the rest.

    python benchmarks/packing.py --data rows.npy --model model.safetensors --file-gigabytes 2 --output packing.json

"search" is the time of the same search on CSR and on packed codes.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
from _common import environment, write_json

from skcompressae import CompresSAETransformer
from skcompressae._core._packing_levels import lloyd_max
from skcompressae._core._search import search
from skcompressae._core._search_store import PackedStore, RowStore, make_chunk
from skcompressae.packed import PackedCodes, ValueQuantizer

# Single queries for each repeat of a batch: they differ, and are short.
_SINGLE_QUERIES = 8


def encode(data: np.ndarray, dictionary: np.ndarray, k: int) -> sp.csr_matrix:
    """Select the k largest correlations of every row and refit their values by least squares."""
    gram = dictionary @ dictionary.T
    indices = np.empty((len(data), k), np.int32)
    values = np.empty((len(data), k), np.float32)
    for start in range(0, len(data), 2048):
        correlations = data[start : start + 2048] @ dictionary.T
        chosen = np.sort(np.argpartition(-np.abs(correlations), k, axis=1)[:, :k], axis=1)
        system = gram[chosen[:, :, None], chosen[:, None, :]] + 1e-3 * np.eye(k, dtype=np.float32)
        right = np.take_along_axis(correlations, chosen, axis=1)
        indices[start : start + 2048] = chosen
        values[start : start + 2048] = np.linalg.solve(system, right[..., None])[..., 0]
    indptr = np.arange(0, indices.size + 1, k)
    return sp.csr_matrix((values.ravel(), indices.ravel(), indptr), shape=(len(data), len(dictionary)))


def recall(codes: sp.csr_matrix, dictionary: np.ndarray, queries: np.ndarray, truth: np.ndarray) -> float:
    """Return the share of true neighbours among the first of asymmetric search."""
    decoded = codes @ dictionary
    decoded /= np.linalg.norm(decoded, axis=1, keepdims=True) + 1e-12
    n = truth.shape[1]
    found = np.argpartition(-(queries @ decoded.T), n - 1, axis=1)[:, :n]
    return float(np.mean([np.isin(a, b).mean() for a, b in zip(truth, found, strict=True)]))


def seconds(work: Callable[[], Any], repeats: int) -> float:
    """Return the least processor time of this thread: the machine may be shared."""
    best = np.inf
    for _ in range(repeats):
        start = time.thread_time()
        work()
        best = min(best, time.thread_time() - start)
    return best


def one_codebook(codes: sp.csr_matrix, value_bits: int) -> sp.csr_matrix:
    """Quantise with one Lloyd-Max codebook for all ranks, relative to the maximum: what index order would allow."""
    k = np.diff(codes.indptr)
    scale = np.repeat(np.maximum.reduceat(np.abs(codes.data), codes.indptr[:-1]), k)
    relative = np.abs(codes.data) / scale
    levels = lloyd_max(np.sort(relative[::7].astype(np.float64)), 2 ** (value_bits - 1))
    chosen = levels[np.searchsorted((levels[1:] + levels[:-1]) / 2, relative)]
    data = (np.sign(codes.data) * chosen * scale).astype(np.float32)
    return sp.csr_matrix((data, codes.indices, codes.indptr), shape=codes.shape)


def search_times(codes: sp.csr_matrix, packed: PackedCodes, targets: np.ndarray, repeats: int) -> dict[str, float]:
    """Return milliseconds a query of the best 100 by cosine of codes, one thread, CSR and packed in turn."""
    stores = {"csr": RowStore.from_csr(codes), "packed": PackedStore(packed)}
    chunks = {name: make_chunk(store, metric="cosine") for name, store in stores.items()}
    n_best = min(100, codes.shape[0])
    times: dict[str, list[float]] = {}
    for batch in sorted({min(batch, targets.shape[1]) for batch in (1, 64, 1024)}):
        # how many rows are scored twice differs from query to query, so one query is another one each time
        n_repeats = _SINGLE_QUERIES * repeats if batch == 1 else repeats
        for repeat in range(n_repeats + 1):
            first = repeat * batch % (targets.shape[1] - batch + 1)
            part = np.ascontiguousarray(targets[:, first : first + batch])
            for name, chunk in chunks.items():
                start = time.thread_time()
                search([chunk], part, n_best)
                if repeat:  # the first compiles
                    spent = (time.thread_time() - start) / batch * 1e3
                    times.setdefault(f"{name}_batch_{batch}_ms", []).append(spent)
    return {name: float(np.median(values)) for name, values in times.items()}


def opening_times(packed: PackedCodes, gigabytes: float) -> dict[str, float]:
    """Write a store of that size, then time opening it memory-mapped, and reading one row of it."""
    copies = max(1, round(gigabytes * 1e9 / packed.nbytes))
    large = PackedCodes.concatenate([packed] * copies)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "large.skc"
        start = time.perf_counter()
        large.save(path)
        report = {"bytes": path.stat().st_size, "n": len(large), "save_s": time.perf_counter() - start}
        opening, reading = [], []
        for _ in range(9):
            start = time.perf_counter()
            store = PackedCodes.load(path, mmap=True)
            opening.append(time.perf_counter() - start)
            store[len(store) // 2].to_csr()
            reading.append(time.perf_counter() - start)
            del store
    return report | {
        "open_ms": float(np.median(opening)) * 1e3,
        "open_and_read_row_ms": float(np.median(reading)) * 1e3,
    }


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help=".npy of shape (n, d)")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--queries", type=int, default=2000)
    parser.add_argument("--components", type=int, default=4096)
    parser.add_argument("--k", type=int, nargs="+", default=[32])
    parser.add_argument("--bits", type=int, nargs="+", default=[1, 2, 3, 4, 5, 6, 8, 16])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--file-gigabytes", type=float, default=0.0, help="time opening a file of this size")
    parser.add_argument("--dictionary", type=Path, help=".npy of shape (components, d) to use instead of data rows")
    parser.add_argument("--model", type=Path, help="a saved model, which then makes the codes, with its own norm")
    options = parser.parse_args(arguments)
    data = np.load(options.data).astype(np.float32)
    data /= np.linalg.norm(data, axis=1, keepdims=True)
    order = np.random.RandomState(0).permutation(len(data))
    queries, documents = data[order[: options.queries]], data[order[options.queries :]]
    n_truth = min(100, len(documents))
    truth = np.argpartition(-(queries @ documents.T), n_truth - 1, axis=1)[:, :n_truth]
    model = None if options.model is None else CompresSAETransformer.load(options.model)
    if model is not None:
        dictionary = model.components_
    elif options.dictionary is not None:
        dictionary = np.load(options.dictionary).astype(np.float32)
    else:
        rows = np.random.RandomState(options.seed).choice(len(documents), options.components, replace=False)
        dictionary = documents[rows]
    source = "rows of the data" if options.dictionary is None else options.dictionary.stem
    if model is not None:
        source = f"a model of {model.n_iter_} steps at k = {model.k_}, coding {model.coding}"
    report: dict[str, Any] = {
        "data": options.data.stem,
        "shape": list(data.shape),
        "dictionary": source,
        "n_components": len(dictionary),
        "n_queries": len(queries),
        "n_neighbors": n_truth,
        "seed": options.seed,
        "times": "processor time of one thread; fastest of the repeats, searches: the median",
        "environment": environment(),
        "results": [],
    }

    def write() -> None:
        if options.output is not None:
            write_json(options.output, report)

    for k in options.k:
        codes = encode(documents, dictionary, k) if model is None else model.set_params(k=k).transform(documents)
        csr_bytes = codes.data.nbytes + codes.indices.nbytes + codes.indptr.nbytes
        exact = recall(codes, dictionary, queries, truth)
        for bits in options.bits:
            single = recall(one_codebook(codes, bits), dictionary, queries, truth) if bits <= 8 else None
            for kind in ("ranked", "uniform"):
                if kind == "ranked" and bits > 8:
                    continue
                start = time.thread_time()
                quantizer = ValueQuantizer.fit(codes, value_bits=bits, k=k, kind=kind)
                fit_s = time.thread_time() - start

                def pack(quantizer: ValueQuantizer = quantizer) -> PackedCodes:
                    # called within this turn of the loop
                    return PackedCodes.pack(codes, k=k, quantizer=quantizer)  # noqa: B023

                packed = pack()
                back = packed.to_csr()
                pack_s, unpack_s = seconds(pack, options.repeats), seconds(packed.to_csr, options.repeats)
                report["results"].append(
                    {
                        "k": k,
                        "kind": kind,
                        "value_bits": bits,
                        "bytes_per_row": packed.bytes_per_row,
                        "bytes_per_nonzero": packed.bytes_per_row / k,
                        "recall_float32": exact,
                        "recall": recall(back, dictionary, queries, truth),
                        "recall_one_codebook": single,
                        "fit_s": fit_s,
                        "pack_mb_per_s": csr_bytes / pack_s / 1e6,
                        "unpack_mb_per_s": csr_bytes / unpack_s / 1e6,
                        "archive": packed.archive_report(),
                        "search": search_times(codes, packed, dictionary @ queries.T, options.repeats),
                    }
                )
                print(json.dumps(report["results"][-1]), flush=True)
                write()
                if options.file_gigabytes > 0 and (kind, bits) == ("ranked", 4) and "file" not in report:
                    report["file"] = opening_times(packed, options.file_gigabytes)
                    print(json.dumps(report["file"]), flush=True)
                    write()
    return report


if __name__ == "__main__":
    main()
