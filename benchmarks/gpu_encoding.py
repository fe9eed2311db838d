"""How many rows a second does a GPU encode, beside plain PyTorch, and are the codes those of the CPU?

    python benchmarks/gpu_encoding.py --out benchmarks/results/gpu_encoding.json

Three rates, all in one run on one card: rows that are on the device already, to codes there; `transform`, from a NumPy
array to CSR; and decoding. Plain PyTorch is the paper's formulation, likewise on the device and from NumPy to CSR. The
stages of ours are timed one by one, and codes of every precision are compared with those of the CPU's float32.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from _common import agreement, environment, median_seconds, write_json
from _gpu import ceilings, describe, device_of, kernel_choices, kernels, queued_seconds

from skcompressae import CompresSAETransformer
from skcompressae._core._pursuit import PURSUITS
from skcompressae._core._threads import row_blocks
from skcompressae._recipes import RECIPES
from skcompressae._torch._device_encoder import DeviceEncoder
from skcompressae._torch._devices import matmul_precision
from skcompressae._torch._products import Products
from skcompressae._torch._pursuit import GramTable, pursuit_codes_torch
from skcompressae._torch._row_ops import decoded_norms, gathered_dots, unit_rows_torch
from skcompressae._torch._selection import select
from skcompressae._torch._weights import Weights

PRECISIONS = ("float32", "tf32", "bfloat16")
CODINGS = ("activations", "least_squares", "pursuit", "refined_pursuit")
MARGIN = 8  # candidates beyond k, as the library takes


def plain_codes(
    x: torch.Tensor, encoder: torch.Tensor, bias: torch.Tensor, k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Encode rows on the device as the paper's formulas read."""
    pre_activations = torch.nn.functional.normalize(x, dim=1) @ encoder.T + bias
    indices = pre_activations.abs().topk(k, dim=1).indices.sort(dim=1).values
    return indices, pre_activations.gather(1, indices)


def plain_transform(X: np.ndarray, encoder: torch.Tensor, bias: torch.Tensor, k: int, block_rows: int) -> sp.csr_matrix:
    """Encode from NumPy to CSR, block by block."""
    parts = []
    for start, stop in row_blocks(len(X), block_rows):
        block = torch.from_numpy(X[start:stop]).to(encoder.device)
        parts.append([part.cpu().numpy() for part in plain_codes(block, encoder, bias, k)])
    indices, values = (np.concatenate(part) for part in zip(*parts, strict=True))
    indptr = np.arange(0, indices.size + 1, k)
    return sp.csr_matrix((values.ravel(), indices.ravel().astype(np.int32), indptr), shape=(len(X), len(bias)))


def on_device_rates(
    x: torch.Tensor, weights: Weights, options: argparse.Namespace, device: torch.device
) -> list[dict[str, Any]]:
    """Time codes of rows that are on the device, which stay there."""
    n_rows, k = len(x), options.k
    n_candidates = min(options.n_components, k + MARGIN)
    n_pursued = min(options.n_components, round(options.candidate_factor * k))
    encoder, bias = (torch.from_numpy(array).to(device) for array in weights.arrays[:2])
    found = []
    block_rows = DeviceEncoder(weights, device, "float32", "activations", scales_mean_apart=False).block_rows
    for precision in ("float32", "tf32"):
        with matmul_precision(precision, device):
            seconds = queued_seconds(
                lambda: [plain_codes(x[a:b], encoder, bias, k) for a, b in row_blocks(n_rows, block_rows)],
                device, options.n_repeats, options.n_calls,
            )  # fmt: skip
        found.append({"who": "plain", "precision": precision, "rows_per_s": n_rows / seconds})
        print(found[-1], flush=True)
    for has_kernels in kernel_choices(device):
        for coding in CODINGS:
            for precision in PRECISIONS:
                ours = DeviceEncoder(weights, device, precision, coding, False, RECIPES["default"].flattening)
                wanted = n_pursued if coding in PURSUITS else n_candidates

                def encode(ours: DeviceEncoder = ours, wanted: int = wanted) -> None:
                    for start, stop in row_blocks(n_rows, ours.block_rows):
                        unit, _ = unit_rows_torch(x[start:stop])
                        ours._encode(unit, k, wanted, "unit")

                # without kernels it is slow: once is enough
                n_times = (options.n_repeats, options.n_calls) if has_kernels else (1, 1)
                with kernels(has_kernels):
                    seconds = queued_seconds(encode, device, *n_times)
                record = {"who": "ours", "coding": coding, "precision": precision, "kernels": has_kernels}
                found.append({**record, "rows_per_s": n_rows / seconds})
                print(found[-1], flush=True)
    return found


def stage_times(
    x: torch.Tensor, weights: Weights, options: argparse.Namespace, device: torch.device
) -> dict[str, dict[str, float]]:
    """Time the stages one by one on one block of rows, in seconds a million rows."""
    encoder, bias, decoder = (torch.from_numpy(array).to(device) for array in weights.arrays)
    k = options.k
    x = x[: DeviceEncoder(weights, device, "float32", "activations", scales_mean_apart=False).block_rows].contiguous()
    n_candidates = min(options.n_components, k + MARGIN)
    n_pursued = min(options.n_components, round(options.candidate_factor * k))
    grams = GramTable(decoder)
    found = {}
    for has_kernels in kernel_choices(device):
        with kernels(has_kernels):
            unit, _ = unit_rows_torch(x)
            stages: dict[str, Any] = {"unit_rows": lambda x=x: unit_rows_torch(x)}
            for precision in PRECISIONS:
                products = Products(precision, device)
                factor = encoder.to(products.dtype)
                block = products.multiply(unit, factor.T)
                stages[f"product_{precision}"] = lambda p=products, f=factor, u=unit: p.multiply(u, f.T)
                if precision != "tf32":
                    stages[f"select_{precision}"] = lambda block=block: select(block, bias, n_candidates)
            candidates, _ = select(block, bias, n_candidates)
            support = candidates[:, :k].contiguous()
            values = gathered_dots(unit, decoder, support)
            fitted = support, values  # with k candidates activations choose nothing
            pursued = select(block, bias, n_pursued)
            stages |= {
                "activations_of_candidates": lambda u=unit, c=candidates: gathered_dots(u, encoder, c),
                "correlations": lambda u=unit, s=support: gathered_dots(u, decoder, s),
                "correlations_and_refit": lambda u=unit, f=fitted: pursuit_codes_torch(u, grams, *f, k),
                "correlations_and_pursuit": lambda u=unit, p=pursued: pursuit_codes_torch(u, grams, *p, k),
                "decoded_norms": lambda u=unit, v=values, s=support: decoded_norms(u, v, decoder, s),
            }
            name = "kernels" if has_kernels else "plain"
            found[name] = {
                stage: 1e6 / len(x) * queued_seconds(work, device, options.n_repeats, options.n_calls)
                for stage, work in stages.items()
            }
        print(
            name, "seconds a million rows", {stage: round(value, 4) for stage, value in found[name].items()}, flush=True
        )
    return found


def transform_rates(
    compressor: CompresSAETransformer, X: np.ndarray, options: argparse.Namespace, device: torch.device
) -> list[dict[str, Any]]:
    """Time transform and decoding from NumPy to NumPy, and compare codes with the CPU's."""
    n_checked = min(options.n_checked, len(X))
    encoder, bias = (
        torch.from_numpy(array).to(device) for array in (compressor.encoder_weights_, compressor.encoder_bias_)
    )
    block_rows = 16384
    seconds = median_seconds(lambda: plain_transform(X, encoder, bias, options.k, block_rows), options.n_repeats)
    found: list[dict[str, Any]] = [{"who": "plain", "precision": "float32", "rows_per_s": len(X) / seconds}]
    print(found[0], flush=True)
    expected = {}
    for coding in CODINGS:
        compressor.set_params(device="cpu", precision="float32", coding=coding)
        expected[coding] = compressor.transform(X[:n_checked])
    compressor.set_params(device=options.device)
    for coding in CODINGS:
        for precision in PRECISIONS:
            compressor.set_params(coding=coding, precision=precision)
            seconds = median_seconds(lambda: compressor.transform(X), options.n_repeats)
            codes = compressor.transform(X[:n_checked])
            found.append(
                {
                    "who": "ours", "coding": coding, "precision": precision, "rows_per_s": len(X) / seconds,
                    "score": compressor.score(X[:n_checked]), **agreement(codes, expected[coding], options.k),
                }
            )  # fmt: skip
            print(found[-1], flush=True)
    codes = compressor.transform(X[: 4 * n_checked])
    seconds = median_seconds(lambda: compressor.inverse_transform(codes), options.n_repeats)
    found.append({"who": "ours", "what": "inverse_transform", "rows_per_s": codes.shape[0] / seconds})
    print(found[-1], flush=True)
    return found


def small_batch_times(
    compressor: CompresSAETransformer, X: np.ndarray, options: argparse.Namespace, device: torch.device
) -> list[dict[str, Any]]:
    """Time single calls of transform on few rows, after as many as a service would have made before."""
    encoder, bias = (
        torch.from_numpy(array).to(device) for array in (compressor.encoder_weights_, compressor.encoder_bias_)
    )
    compressor.set_params(device=options.device, precision="float32")
    found = []
    for n_rows in (1, 16, 256, 1024):
        rows = X[:n_rows]
        calls = {"plain": lambda rows=rows: plain_transform(rows, encoder, bias, options.k, len(rows))}
        for coding in CODINGS:
            calls[coding] = lambda rows=rows, coding=coding: compressor.set_params(coding=coding).transform(rows)
        record: dict[str, Any] = {"n_rows": n_rows}
        for name, call in calls.items():
            for _ in range(12):
                call()
            record[f"{name}_s"] = median_seconds(call, 10 * options.n_repeats)
        found.append(record)
        print(record, flush=True)
    return found


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--n-samples", type=int, default=1_000_000)
    parser.add_argument("--n-on-device", type=int, default=262_144)
    parser.add_argument("--n-checked", type=int, default=20_000)
    parser.add_argument("--n-features", type=int, default=768)
    parser.add_argument("--n-components", type=int, default=4096)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--n-repeats", type=int, default=3)
    parser.add_argument("--n-calls", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    device = device_of(options.device)
    X = np.random.default_rng(options.seed).standard_normal((options.n_samples, options.n_features), dtype=np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of latents left unused by a short fit on noise
        compressor = CompresSAETransformer(
            options.n_components, k=options.k, max_iter=20, device=options.device, random_state=options.seed
        ).fit(X[: min(len(X), 20_000)])
    options.candidate_factor = compressor.candidate_factor
    weights = Weights(compressor.encoder_weights_, compressor.encoder_bias_, compressor.components_)
    result: dict[str, Any] = {
        "environment": environment(),
        "device": describe(device),
        "settings": {name: value for name, value in vars(options).items() if name != "out"},
    }
    x = torch.from_numpy(X[: options.n_on_device]).to(device)
    result["ceilings"] = ceilings(device, len(x), options.n_features, options.n_components, options.n_repeats)
    print(result["ceilings"], flush=True)
    for name, measure in (
        ("on_device", lambda: on_device_rates(x, weights, options, device)),
        ("small_batches", lambda: small_batch_times(compressor, X, options, device)),
        ("stages_s_per_million_rows", lambda: stage_times(x, weights, options, device)),
        ("transform", lambda: transform_rates(compressor, X, options, device)),
    ):
        result[name] = measure()
        if options.out is not None:
            write_json(options.out, result)  # as much as there is, if time runs out


if __name__ == "__main__":
    main()
