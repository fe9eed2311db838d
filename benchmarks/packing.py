"""What do packed codes cost: bytes, recall, speed, for each value quantiser and number of bits?

Codes come from a quick dictionary (data rows, blended with nothing, one-shot selection and a least-squares refit), so
this compares quantisers on real coefficients, not models. Protocol: the first `--queries` rows of
``RandomState(0).permutation(n)`` are queries, the true neighbours are the exact cosine top 100 of the rest.

    python benchmarks/packing.py --data embeddings.npy --output packing.json
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np
import scipy.sparse as sp

import skcompressae
from skcompressae._core._packing_levels import lloyd_max
from skcompressae.packed import PackedCodes, ValueQuantizer


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
    parser.add_argument("--dictionary", type=Path, help=".npy of shape (components, d) to use instead of data rows")
    options = parser.parse_args(arguments)
    data = np.load(options.data).astype(np.float32)
    data /= np.linalg.norm(data, axis=1, keepdims=True)
    order = np.random.RandomState(0).permutation(len(data))
    queries, documents = data[order[: options.queries]], data[order[options.queries :]]
    n_truth = min(100, len(documents))
    truth = np.argpartition(-(queries @ documents.T), n_truth - 1, axis=1)[:, :n_truth]
    if options.dictionary is not None:
        dictionary = np.load(options.dictionary).astype(np.float32)
    else:
        rows = np.random.RandomState(options.seed).choice(len(documents), options.components, replace=False)
        dictionary = documents[rows]
    results = []
    for k in options.k:
        codes = encode(documents, dictionary, k)
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
                results.append(
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
                    }
                )
                print(json.dumps(results[-1]), flush=True)
    report = {
        "data": options.data.name,
        "shape": list(data.shape),
        "n_components": len(dictionary),
        "n_queries": len(queries),
        "n_neighbors": n_truth,
        "seed": options.seed,
        "hardware": f"{platform.machine()}, {numba.config.CPU_NAME or 'host'} code, one thread",
        "versions": {
            "python": platform.python_version(),
            "numpy": np.__version__,
            "numba": numba.__version__,
            "skcompressae": skcompressae.__version__,
        },
        "results": results,
    }
    if options.output is not None:
        options.output.write_text(json.dumps(report, indent=1) + "\n")
    return report


if __name__ == "__main__":
    main()
