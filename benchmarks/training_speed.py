"""How long does one training step take, beside plain PyTorch and beside the one product that cannot be avoided?

    python benchmarks/training_speed.py --out benchmarks/results/training_speed.json

All in one run on the same random rows: the bare product ``(b, d) @ (d, m)`` in NumPy and in torch, a plain PyTorch
step of the paper's equations, our step in float32 and bfloat16, and the parts of ours. Medians of several repetitions.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from _common import environment, median_seconds, write_json
from _gpu import device_of
from _peers import PaperModel
from threadpoolctl import threadpool_limits

from skcompressae._core._adam import apply_adam
from skcompressae._core._initialise import data_weights
from skcompressae._core._rows import unit_rows
from skcompressae._core._sparse_step import group_by_latent, reconstruction_gradients, sum_gradients
from skcompressae._core._topk import top_k
from skcompressae._torch._training import _make_engine
from skcompressae._torch._weights import Moments, StepSettings, Weights, adam_rates


def plain_step(x, n_components, k, seed, device):
    """Return a function that takes one plain PyTorch step, and its model."""
    generator = torch.Generator().manual_seed(seed)
    model = PaperModel(x.shape[1], n_components, generator).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    rows = torch.from_numpy(x).to(device)

    def step():
        optimizer.zero_grad()
        model.loss(rows, k).backward()
        optimizer.step()
        model.normalize_decoder()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return step


def our_step(x, n_components, k, seed, precision, device):
    """Return a function that takes one of our steps."""
    weights = Weights(*data_weights(x, n_components, 0.5, np.random.RandomState(seed)))
    settings = StepSettings(k, min(4 * k, n_components), (1.0, 0.125), len(x), precision)
    engine = _make_engine(x, weights, Moments.zeros_like(weights), settings, device)
    everything = np.arange(len(x))
    # A step on a device is only queued; asking for its loss waits for it.
    return lambda: engine.step(everything, 1e-3).cosine


def parts(x, n_components, k, n_threads, n_repeats, seed):
    """Time the parts of our float32 CPU step one after the other."""
    weights = Weights(*data_weights(x, n_components, 0.5, np.random.RandomState(seed)))
    moments = Moments.zeros_like(weights)
    n_active = min(4 * k, n_components)
    settings = StepSettings(k, n_active, (1.0, 0.125), len(x))
    rates = adam_rates(1e-3, settings, 1)
    block = np.empty((min(512, len(x)), n_components), dtype=np.float32)
    np.dot(x[: len(block)], weights.encoder.T, out=block)
    indices, values = top_k(x @ weights.encoder.T, n_active, n_threads=n_threads)

    def gradients():
        return reconstruction_gradients(x, weights.decoder, indices, values, k, (1.0, 0.125), n_threads=n_threads)

    latent_gradients, is_leading, x_gradients, _ = gradients()
    grouped = group_by_latent(indices, n_components)
    sums = tuple(np.zeros_like(array) for array in weights.arrays)

    def add_sums():
        sum_gradients(x, values, latent_gradients, is_leading, x_gradients, *grouped, sums, n_threads=n_threads)

    def update():
        apply_adam(weights.arrays, sums, moments.arrays, rates, n_threads=n_threads)

    scale = len(x) / len(block)
    return {
        "unit_rows_s": median_seconds(lambda: unit_rows(x), n_repeats),
        "top_k_s": scale
        * median_seconds(lambda: top_k(block, n_active, bias=weights.bias, n_threads=n_threads), n_repeats),
        "reconstruction_gradients_s": median_seconds(gradients, n_repeats),
        "group_by_latent_s": median_seconds(lambda: group_by_latent(indices, n_components), n_repeats),
        "sum_gradients_s": median_seconds(add_sums, n_repeats),
        "apply_adam_s": median_seconds(update, n_repeats),
    }


def measure(options, n_threads):
    """Time everything at one number of threads."""
    torch.set_num_threads(n_threads)
    device = device_of(options.device)
    random_state = np.random.RandomState(options.seed)
    x = unit_rows(random_state.standard_normal((options.batch_size, options.n_features)).astype(np.float32))[0]
    shape = (options.n_components, options.n_features)
    encoder = random_state.standard_normal(shape).astype(np.float32)
    torch_x, torch_encoder = torch.from_numpy(x).to(device), torch.from_numpy(encoder).to(device)
    bf16_x, bf16_encoder = torch_x.bfloat16(), torch_encoder.bfloat16()
    arguments = (x, options.n_components, options.k, options.seed)
    n_repeats = options.n_repeats

    def product(a, b):
        result = a @ b.T
        if device.type == "cuda":
            torch.cuda.synchronize()
        return result

    with threadpool_limits(n_threads):
        row = {
            "n_threads": n_threads,
            "product_numpy_s": median_seconds(lambda: x @ encoder.T, n_repeats),
            "product_torch_s": median_seconds(lambda: product(torch_x, torch_encoder), n_repeats),
            "product_torch_bfloat16_s": median_seconds(lambda: product(bf16_x, bf16_encoder), n_repeats),
            "plain_pytorch_step_s": median_seconds(plain_step(*arguments, device), n_repeats),
            "our_step_float32_s": median_seconds(our_step(*arguments, "float32", device), n_repeats),
            "our_step_bfloat16_s": median_seconds(our_step(*arguments, "bfloat16", device), n_repeats),
        }
        if device.type == "cpu":
            row["parts"] = parts(*arguments[:3], n_threads, n_repeats, options.seed)
    product_s = min(row["product_numpy_s"], row["product_torch_s"])
    row["speedup_float32"] = row["plain_pytorch_step_s"] / row["our_step_float32_s"]
    row["speedup_bfloat16"] = row["plain_pytorch_step_s"] / row["our_step_bfloat16_s"]
    row["float32_step_in_products"] = row["our_step_float32_s"] / product_s
    return row


def main(arguments=None):
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=4096)
    parser.add_argument("--n-features", type=int, default=768)
    parser.add_argument("--n-components", type=int, default=4096)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--n-repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    rows = [measure(options, n_threads) for n_threads in options.threads]
    settings = {name: value for name, value in vars(options).items() if name != "out"}
    result = {"environment": environment(), "settings": settings, "rows": rows}
    for row in rows:
        print({name: round(value, 4) if isinstance(value, float) else value for name, value in row.items()})
    if options.out is not None:
        write_json(options.out, result)


if __name__ == "__main__":
    main()
