"""How long does a training step take on a GPU, beside plain PyTorch, and does reduced precision cost recall?

    python benchmarks/gpu_training.py --out benchmarks/results/gpu_training.json

All in one run on one card: the bare products, plain PyTorch's step of the paper's equations in float32, TF32 and
bfloat16 (autocast), ours in every precision with and without the Triton kernels and as a CUDA graph, the stages of
ours, a whole fit of the paper's recipe, and the recall of models trained in each precision. Times are medians, of
queued steps.
"""

from __future__ import annotations

import argparse
import time
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _common import cosine_neighbors, environment, recall, write_json
from _data import clustered
from _gpu import ceilings, describe, device_of, kernel_choices, kernels, peak_bytes, queued_seconds, wait
from _peers import PaperModel

from skcompressae import CodeNearestNeighbors, CompresSAETransformer
from skcompressae._core._initialise import kaiming_weights
from skcompressae._torch import _torch_engine
from skcompressae._torch._devices import matmul_precision
from skcompressae._torch._products import Products
from skcompressae._torch._row_ops import unit_rows_torch
from skcompressae._torch._selection import select_dense
from skcompressae._torch._step_ops import cosine_gradients, write_slopes
from skcompressae._torch._torch_engine import TorchEngine
from skcompressae._torch._weights import Moments, StepSettings, Weights

PRECISIONS = ("float32", "tf32", "bfloat16")


def plain_step(rows: torch.Tensor, options: argparse.Namespace, precision: str) -> Any:
    """Return a function that takes one step of the paper's equations in plain PyTorch on a random batch."""
    device = rows.device
    generator = torch.Generator().manual_seed(options.seed)
    model = PaperModel(rows.shape[1], options.n_components, generator).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    autocast = torch.autocast(device.type, torch.bfloat16) if precision == "bfloat16" else nullcontext()

    def step() -> None:
        batch = rows[torch.randint(len(rows), (options.batch_size,), device=device)]
        optimizer.zero_grad()
        with matmul_precision(precision, device):
            with autocast:
                loss = model.loss(batch, options.k)
            loss.backward()
        optimizer.step()
        model.normalize_decoder()

    return step


def our_step(X: np.ndarray, options: argparse.Namespace, precision: str, **choices: Any) -> Any:
    """Return a function that takes one of our steps on a random batch."""
    random_state = np.random.RandomState(options.seed)
    weights = Weights(*kaiming_weights(X.shape[1], options.n_components, random_state))
    n_active = min(4 * options.k, options.n_components)
    settings = StepSettings(options.k, n_active, (1.0, 0.125), options.batch_size, precision)
    device = device_of(options.device)
    gathers = choices.pop("gathers", None)
    engine = TorchEngine(X, weights, Moments.zeros_like(weights), settings, device, **choices)
    if gathers is not None:
        engine._gathers = gathers
    batches = [random_state.permutation(len(X))[: options.batch_size] for _ in range(3)]
    return lambda: engine.step(batches[random_state.randint(3)], 1e-3)


def step_times(X: np.ndarray, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Time plain PyTorch's and our steps."""
    device = device_of(options.device)
    found = []

    def measure(step: Any, **record: Any) -> None:
        peak = peak_bytes(device, step)
        seconds = queued_seconds(step, device, options.n_repeats, options.n_calls)
        found.append({**record, "step_s": seconds, "peak_bytes": peak})
        print(found[-1], flush=True)

    rows = unit_rows_torch(torch.from_numpy(X).to(device))[0]
    for precision in PRECISIONS:
        measure(plain_step(rows, options, precision), who="plain", precision=precision)
    del rows
    for has_kernels in kernel_choices(device):
        for precision in PRECISIONS:
            with kernels(has_kernels):
                record = {"who": "ours", "precision": precision, "kernels": has_kernels}
                measure(our_step(X, options, precision, captures=False), **record)
                if has_kernels:
                    is_gathering = precision == "float32"
                    step = our_step(X, options, precision, captures=False, gathers=not is_gathering)
                    measure(step, **record, gathers=not is_gathering)
                    measure(our_step(X, options, precision, captures=True), **record, is_graph=True)
    for n_bytes in options.block_bytes:
        before, _torch_engine._BLOCK_BYTES = _torch_engine._BLOCK_BYTES, n_bytes
        try:
            measure(
                our_step(X, options, "bfloat16", captures=False), who="ours", precision="bfloat16", block_bytes=n_bytes
            )
        finally:
            _torch_engine._BLOCK_BYTES = before
    return found


def small_batch_times(X: np.ndarray, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Time our steps at the default recipe's batch, where the host's launches count, with and without a graph."""
    device = device_of(options.device)
    small = argparse.Namespace(**{**vars(options), "batch_size": min(1024, options.batch_size)})
    found = []
    for is_graph in (False, True) if device.type == "cuda" else (False,):
        step = our_step(X, small, "bfloat16", captures=is_graph)
        seconds = queued_seconds(step, device, options.n_repeats, 20)
        found.append({"batch_size": small.batch_size, "is_graph": is_graph, "step_s": seconds})
        print(found[-1], flush=True)
    return found


def stage_times(X: np.ndarray, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Time the stages of a step one by one, on one block."""
    device = device_of(options.device)
    n_rows, k, n_active = len(X[: options.batch_size]), options.k, min(4 * options.k, options.n_components)
    x = unit_rows_torch(torch.from_numpy(X[:n_rows]).to(device))[0]
    arrays = kaiming_weights(X.shape[1], options.n_components, np.random.RandomState(options.seed))
    encoder, bias, decoder = (torch.from_numpy(array).to(device) for array in arrays)
    fired = torch.zeros(options.n_components, dtype=torch.int64, device=device)
    found: dict[str, dict[str, float]] = {}
    for precision in PRECISIONS:
        products = Products(precision, device)
        x_factor, decoder_factor = x.to(products.dtype), decoder.to(products.dtype)
        block = products.multiply(x_factor, encoder.to(products.dtype).T)
        total = torch.zeros_like(encoder)
        for has_kernels in kernel_choices(device):
            with kernels(has_kernels):

                def timed(work: Any) -> float:
                    return queued_seconds(work, device, options.n_repeats, options.n_calls)

                def select(block: Any = block, dtype: Any = products.dtype) -> Any:
                    return select_dense(block, bias, k, n_active, fired, dtype)

                selection = select()
                near = products.multiply(selection.leading, decoder_factor)
                rest = products.multiply(selection.others, decoder_factor)
                _, gradient, _ = cosine_gradients(x, near, rest, (1e-5, 1e-6))
                slopes = products.multiply(gradient, decoder_factor.T)
                stages = {
                    "select_s": timed(select),
                    "decode_one_of_two_s": timed(
                        lambda s=selection, p=products, d=decoder_factor: p.multiply(s.leading, d)
                    ),
                    "cosine_gradients_s": timed(lambda n=near, r=rest: cosine_gradients(x, n, r, (1e-5, 1e-6))),
                    "slopes_one_of_two_s": timed(lambda g=gradient, p=products, d=decoder_factor: p.multiply(g, d.T)),
                    "write_slopes_s": timed(lambda s=selection, v=slopes: write_slopes(s, v, v, k)),
                    "gradient_one_of_three_s": timed(
                        lambda s=selection, g=gradient, p=products, t=total: p.add(t, s.leading.T, g)
                    ),
                }
                if has_kernels:
                    from skcompressae._torch._triton_step import gathered_gradients_triton

                    stages["gathered_gradients_s"] = timed(
                        lambda s=selection, d=decoder_factor: gathered_gradients_triton(
                            x, d, s.indices, s.values, k, (1e-5, 1e-6)
                        )
                    )
                name = f"{precision}{'' if has_kernels else '_plain'}"
                found[name] = stages
                print(name, {stage: f"{1e3 * value:.3f} ms" for stage, value in stages.items()}, flush=True)
    return found


def whole_fits(X: np.ndarray, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Time whole fits of both recipes, the rows' way to the device and the statistics afterwards included."""
    device = device_of(options.device)
    found = []
    paper = {"batch_size": options.batch_size, "max_iter": options.n_steps}
    recipes: dict[str, dict[str, int]] = {"paper": paper, "default": {"max_iter": 4 * options.n_steps}}
    for recipe, parameters in recipes.items():
        for precision in PRECISIONS[recipe == "paper" :]:  # float32 outside the tensor cores: see its steps
            compressor = CompresSAETransformer(
                options.n_components, k=options.k, recipe=recipe, precision=precision, device=options.device,
                random_state=options.seed, validation_fraction=0.0, **parameters,
            )  # fmt: skip
            wait(device)
            start = time.perf_counter()
            compressor.fit(X)
            seconds = time.perf_counter() - start
            record = {"recipe": recipe, "precision": precision, "n_rows": len(X), "fit_s": seconds}
            found.append({**record, "n_steps": compressor.n_iter_, "score": compressor.score(X[:10_000])})
            print("fit", found[-1], flush=True)
    return found


def recall_by_precision(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Train on synthetic rows in each precision and search held-out queries."""
    X = clustered(options.n_features, n_samples=options.n_recall_rows)
    n_queries = min(1000, len(X) // 5)
    queries, documents = X[:n_queries], X[n_queries:]
    true = cosine_neighbors(queries, documents, 100)
    found = []
    for precision in PRECISIONS:
        compressor = CompresSAETransformer(
            options.n_components, k=options.k, max_iter=options.n_recall_steps, precision=precision,
            device=options.device, random_state=options.seed,
        ).fit(documents)  # fmt: skip
        index = CodeNearestNeighbors(100, compressor=compressor, mode="asymmetric", device="cpu")
        neighbors = index.fit(compressor.transform(documents)).kneighbors(queries, return_distance=False)
        record = {"precision": precision, "score": compressor.score(queries)}
        found.append(record | {f"recall_at_{n}": recall(neighbors, true, n) for n in (10, 100)})
        print(found[-1], flush=True)
    return found


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--n-samples", type=int, default=300_000)
    parser.add_argument("--batch-size", type=int, default=100_000)
    parser.add_argument("--n-features", type=int, default=768)
    parser.add_argument("--n-components", type=int, default=4096)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--n-steps", type=int, default=500, help="of the whole fit")
    parser.add_argument("--n-repeats", type=int, default=3)
    parser.add_argument("--n-calls", type=int, default=5, help="steps queued one after the other")
    parser.add_argument(
        "--block-bytes", type=int, nargs="*", default=[2**26, 2**28, 2**30], help="sizes of blocks to try"
    )
    parser.add_argument("--n-recall-rows", type=int, default=60_000)
    parser.add_argument("--n-recall-steps", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    device = device_of(options.device)
    shape = options.n_samples, options.n_features
    X = np.random.default_rng(options.seed).standard_normal(shape, dtype=np.float32)
    result: dict[str, Any] = {
        "environment": environment(),
        "device": describe(device),
        "settings": {name: value for name, value in vars(options).items() if name != "out"},
    }

    def save() -> None:
        if options.out is not None:
            write_json(options.out, result)

    size = min(options.batch_size, options.n_samples), options.n_features, options.n_components
    result["ceilings"] = ceilings(device, *size, options.n_repeats)
    print(result["ceilings"], flush=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of latents left unused by fits on noise
        for name, measure in (
            ("steps", lambda: step_times(X, options)),
            ("fits", lambda: whole_fits(X, options)),
            ("small_batches", lambda: small_batch_times(X, options)),
            ("recall", lambda: recall_by_precision(options)),
            ("stages", lambda: stage_times(X, options)),
        ):
            result[name] = measure()
            save()  # as much as there is, if time runs out
            if device.type == "cuda":
                torch.cuda.empty_cache()
    plain = {row["precision"]: row["step_s"] for row in result["steps"] if row["who"] == "plain"}
    ours = {row["precision"]: row["step_s"] for row in reversed(result["steps"]) if row["who"] == "ours"}
    result["speedups"] = {
        f"{ours_precision}_over_plain_{plain_precision}": plain[plain_precision] / ours[ours_precision]
        for ours_precision in PRECISIONS
        for plain_precision in PRECISIONS
    }
    print({name: round(value, 2) for name, value in result["speedups"].items()})
    save()


if __name__ == "__main__":
    main()
