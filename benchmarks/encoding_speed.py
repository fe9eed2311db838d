"""How long does transform take, beside plain PyTorch and beside the bare product? And a single row, and decoding?

    python benchmarks/encoding_speed.py --out benchmarks/results/encoding_speed.json

Plain PyTorch is the paper's formulation: ``x @ W + b``, ``topk`` of the magnitudes, a dense masked array, CSR from it
block by block (decode: dense product of the dense array). All in one run on the same rows and weights.
"""

from __future__ import annotations

import argparse
import time
import tracemalloc
from pathlib import Path

import numpy as np
import scipy.sparse as sp
import torch
from _common import environment, median_seconds, write_json
from threadpoolctl import threadpool_limits

from skcompressae import CompresSAETransformer
from skcompressae._core._rows import unit_rows

PLAIN_BLOCK_ROWS = 2048
CODINGS = ("activations", "least_squares", "pursuit", "refined_pursuit")
SMALL_BATCHES = (1, 2, 4, 8, 16, 32, 64, 256)


def plain_transform(x, encoder, bias, k):
    """Encode as the paper's formulas read: dense pre-activations, dense mask, then CSR."""
    blocks = []
    for start in range(0, len(x), PLAIN_BLOCK_ROWS):
        rows = torch.nn.functional.normalize(x[start : start + PLAIN_BLOCK_ROWS], dim=1)
        pre_activations = rows @ encoder.T + bias
        top = pre_activations.abs().topk(k, dim=1).indices
        latents = torch.zeros_like(pre_activations).scatter_(1, top, pre_activations.gather(1, top))
        blocks.append(sp.csr_matrix(latents.numpy()))
    return sp.vstack(blocks)


def plain_query(x, encoder, bias, decoder, importance, n_nonzero):
    """Expand queries and cut them as the formula of `transform_query` reads."""
    queries = torch.nn.functional.normalize(x, dim=1)
    targets = queries @ decoder.T
    weights = targets.abs() * importance * (queries @ encoder.T + bias).abs() ** 0.25
    top = weights.topk(n_nonzero, dim=1).indices
    return sp.csr_matrix(torch.zeros_like(targets).scatter_(1, top, targets.gather(1, top)).numpy())


def in_turns(works, n_rounds):
    """Return the median time of each work, all taking turns, so that a busy moment of the machine meets all alike."""
    for work in works.values():
        work()
    times = {name: [] for name in works}
    for _ in range(n_rounds):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            times[name].append(time.perf_counter() - start)
    return {name: float(np.median(spent)) for name, spent in times.items()}


def small_batch(compressor, X, torch_x, torch_encoder, torch_bias):
    """Time the encoding of a few rows, and cutting them as queries, in turns as above."""
    times = {}
    decoder, n_nonzero = torch.from_numpy(compressor.components_), min(128, compressor.n_components // 2)
    importance = torch.from_numpy(np.sqrt(compressor.latent_rms_).astype(np.float32))
    for _ in range(6):
        for coding in ("activations", "pursuit"):
            compressor.set_params(coding=coding)
            spent = median_seconds(lambda: compressor.transform(X), 10)
            times.setdefault(f"transform_{coding}_s", []).append(spent)
        spent = median_seconds(lambda: plain_transform(torch_x, torch_encoder, torch_bias, compressor.k), 10)
        times.setdefault("plain_pytorch_s", []).append(spent)
        spent = median_seconds(lambda: compressor.transform_query(X, n_nonzero=n_nonzero), 10)
        times.setdefault(f"transform_query_{n_nonzero}_s", []).append(spent)
        spent = median_seconds(
            lambda: plain_query(torch_x, torch_encoder, torch_bias, decoder, importance, n_nonzero), 10
        )
        times.setdefault(f"plain_query_{n_nonzero}_s", []).append(spent)
    compressor.set_params(coding="auto")
    return {name: float(np.median(spent)) for name, spent in times.items()}


def measure(options, n_threads):
    """Time everything at one number of threads."""
    torch.set_num_threads(n_threads)
    n_repeats = options.n_repeats
    random_state = np.random.RandomState(options.seed)
    X = random_state.standard_normal((options.n_samples, options.n_features)).astype(np.float32)
    compressor = CompresSAETransformer(
        options.n_components, k=options.k, max_iter=2, batch_size=1024, device="cpu", random_state=options.seed
    ).fit(X[:4096])
    encoder, bias = compressor.encoder_weights_, compressor.encoder_bias_
    unit = unit_rows(X)[0]
    torch_x, torch_encoder, torch_bias = (torch.from_numpy(array) for array in (X, encoder, bias))
    block = np.empty((512, options.n_components), dtype=np.float32)

    def product():
        for start in range(0, len(unit), 512):
            rows = unit[start : start + 512]
            np.dot(rows, encoder.T, out=block[: len(rows)])

    def product_torch():
        for start in range(0, len(unit), PLAIN_BLOCK_ROWS):
            torch_x[start : start + PLAIN_BLOCK_ROWS] @ torch_encoder.T

    with threadpool_limits(n_threads):

        def transform(coding, precision, rows):
            compressor.set_params(coding=coding, precision=precision).transform(rows)

        variants = [(coding, precision) for coding in CODINGS for precision in ("float32", "bfloat16")]
        row = {
            "n_threads": n_threads,
            **in_turns(
                {
                    "product_numpy_s": product,
                    "product_torch_s": product_torch,
                    "plain_pytorch_s": lambda: plain_transform(torch_x, torch_encoder, torch_bias, options.k),
                    **{f"transform_{c}_{p}_s": lambda c=c, p=p: transform(c, p, X) for c, p in variants},
                },
                n_repeats,
            ),
            "plain_pytorch_single_row_s": median_seconds(
                lambda: plain_transform(torch_x[:1], torch_encoder, torch_bias, options.k), 50
            ),
            **{
                f"single_row_{c}_{p}_s": median_seconds(lambda c=c, p=p: transform(c, p, X[:1]), 50)
                for c, p in variants
            },
        }
        compressor.set_params(coding="auto", precision="float32")
        tracemalloc.start()
        codes = compressor.transform(X)
        row["transform_peak_bytes"] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        row["codes_bytes"] = codes.data.nbytes + codes.indices.nbytes + codes.indptr.nbytes
        dense = torch.from_numpy(codes[:2048].toarray())
        decoder = torch.from_numpy(compressor.components_)
        row["inverse_transform_2048_rows_s"] = median_seconds(
            lambda: compressor.inverse_transform(codes[:2048]), n_repeats
        )
        row["plain_decode_2048_rows_s"] = median_seconds(lambda: dense @ decoder, n_repeats)
        row["inverse_transform_single_row_s"] = median_seconds(lambda: compressor.inverse_transform(codes[:1]), 50)
        row["plain_decode_single_row_s"] = median_seconds(lambda: dense[:1] @ decoder, 50)
        row["small_batches"] = [
            {
                "n_rows": n_rows,
                **small_batch(compressor, X[:n_rows], torch_x[:n_rows], torch_encoder, torch_bias),
                "inverse_transform_s": median_seconds(lambda n=n_rows: compressor.inverse_transform(codes[:n]), 30),
                "plain_decode_s": median_seconds(lambda n=n_rows: dense[:n] @ decoder, 30),
            }
            for n_rows in SMALL_BATCHES
        ]
    product_s = min(row["product_numpy_s"], row["product_torch_s"])
    for name in CODINGS:
        row[f"{name}_float32_in_products"] = row[f"transform_{name}_float32_s"] / product_s
        row[f"{name}_float32_speedup"] = row["plain_pytorch_s"] / row[f"transform_{name}_float32_s"]
        row[f"{name}_bfloat16_speedup"] = row["plain_pytorch_s"] / row[f"transform_{name}_bfloat16_s"]
    return row


def main(arguments=None):
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n-samples", type=int, default=20_000)
    parser.add_argument("--n-features", type=int, default=768)
    parser.add_argument("--n-components", type=int, default=4096)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--n-repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    rows = [measure(options, n_threads) for n_threads in options.threads]
    settings = {name: value for name, value in vars(options).items() if name != "out"}
    for row in rows:
        print({name: round(value, 5) if isinstance(value, float) else value for name, value in row.items()})
    if options.out is not None:
        write_json(options.out, {"environment": environment(), "settings": settings, "rows": rows})


if __name__ == "__main__":
    main()
