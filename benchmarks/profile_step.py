"""Where does the time of a training step, of transform and of a single row go, stage by stage?

    python benchmarks/profile_step.py --out benchmarks/results/profile_step.json

The stages are the functions that the hot paths call, each with a clock around it while the path runs as it always does.
Stages that several threads run at once count the mean over the threads. What no stage covers is "other". Every time is
the median over repetitions.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections import defaultdict
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from _common import environment, write_json
from threadpoolctl import threadpool_limits
from training_speed import our_step

from skcompressae import CompresSAETransformer, _encoding
from skcompressae._core import _rounded_fit
from skcompressae._core._rows import unit_rows
from skcompressae._torch import _cpu_engine, _screened
from skcompressae._torch._device_choice import resolve_device

# (object, attribute) of the stages of each path; the product is a method that top-k does not include.
STEP_STAGES = {
    "unit_rows": (_cpu_engine, "unit_rows"),
    "product": (_cpu_engine.PreActivations, "__call__"),
    "top_k": (_cpu_engine, "top_k"),
    "reconstruction_gradients": (_cpu_engine, "reconstruction_gradients"),
    "group_by_latent": (_cpu_engine, "group_by_latent"),
    "sum_gradients": (_cpu_engine, "sum_gradients"),
    "apply_adam": (_cpu_engine, "apply_adam"),
    "round_encoder": (_cpu_engine.PreActivations, "refresh"),
}
TRANSFORM_STAGES = {
    "validate": (CompresSAETransformer, "_check_rows"),
    "check_parameters": (CompresSAETransformer, "_check_encoding_parameters"),
    "encode_few": (_encoding, "encode_few"),  # all of a few rows, in one kernel
    "unit_rows": (_encoding, "unit_rows"),
    "product": (_cpu_engine.PreActivations, "__call__"),
    "top_k": (_encoding, "top_k"),
    "screening": (_encoding.ScreenedActivations, "_screen"),  # product and survivors in one
    "decide": (_screened, "decide"),
    "candidate_activations": (_encoding, "candidate_activations"),
    "activation_codes": (_encoding, "activation_codes"),
    "rounding_margin": (_encoding, "rounding_margin"),
    "supports": (_encoding, "supports"),
    "decode_norms": (_encoding, "decode_norms"),
    "round_decoder": (_encoding, "round_decoder"),
    "pursuit_codes": (_rounded_fit, "pursuit_codes"),
    "least_squares_codes": (_rounded_fit, "least_squares_codes"),
    "codes_to_csr": (_encoding, "codes_to_csr"),
}


@contextmanager
def clocks(stages):
    """Put a clock around every stage; yield a dict that gains, per stage and thread, the seconds spent."""
    seconds = defaultdict(float)

    def clocked(name, function):
        def call(*arguments, **keywords):
            start = time.perf_counter()
            try:
                return function(*arguments, **keywords)
            finally:
                seconds[name, threading.get_ident()] += time.perf_counter() - start

        return call

    with ExitStack() as stack:
        for name, (owner, attribute) in stages.items():
            stack.enter_context(patch.object(owner, attribute, clocked(name, getattr(owner, attribute))))
        yield seconds


def profile(work, stages, n_repeats):
    """Return the median seconds of a call and of each of its stages, and the stages' shares."""
    work()
    totals, by_stage = [], defaultdict(list)
    with clocks(stages) as seconds:
        for _ in range(n_repeats):
            seconds.clear()
            start = time.perf_counter()
            work()
            totals.append(time.perf_counter() - start)
            for name in stages:
                spent = [value for (stage, _), value in seconds.items() if stage == name]
                by_stage[name].append(sum(spent) / max(1, len(spent)))
    total = float(np.median(totals))
    result = {name: float(np.median(spent)) for name, spent in by_stage.items() if max(spent) > 0}
    result["other"] = max(0.0, total - sum(result.values()))
    return {
        "total_s": total,
        "stages_s": result,
        "shares": {name: round(value / total, 4) for name, value in result.items()},
    }


def main(arguments=None):
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=4096)
    parser.add_argument("--n-samples", type=int, default=20_000)
    parser.add_argument("--n-features", type=int, default=768)
    parser.add_argument("--n-components", type=int, default=4096)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--n-repeats", type=int, default=7)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    X = np.random.RandomState(options.seed).standard_normal((options.n_samples, options.n_features)).astype(np.float32)
    batch = unit_rows(X[: options.batch_size])[0]
    results = {}
    with threadpool_limits(options.threads):
        for precision in ("float32", "bfloat16"):
            step = our_step(batch, options.n_components, options.k, options.seed, precision, resolve_device("cpu"))
            results[f"step_{precision}"] = profile(step, STEP_STAGES, options.n_repeats)
        compressor = CompresSAETransformer(
            options.n_components, k=options.k, max_iter=2, batch_size=1024, device="cpu", random_state=options.seed
        ).fit(X[: options.batch_size])
        for coding in ("activations", "least_squares", "pursuit"):
            for precision in ("float32", "bfloat16"):
                compressor.set_params(coding=coding, precision=precision)
                for name, rows, n_repeats in (
                    ("transform", X, options.n_repeats),
                    ("single_row", X[:1], 20 * options.n_repeats),
                ):
                    results[f"{name}_{coding}_{precision}"] = profile(
                        lambda rows=rows: compressor.transform(rows), TRANSFORM_STAGES, n_repeats
                    )
    for name, result in results.items():
        stages = ", ".join(f"{stage} {1e3 * value:.3g}" for stage, value in result["stages_s"].items())
        print(f"{name}: {1e3 * result['total_s']:.4g} ms = {stages}")
    if options.out is not None:
        settings = {name: value for name, value in vars(options).items() if name != "out"}
        write_json(options.out, {"environment": environment(), "settings": settings, "results": results})


if __name__ == "__main__":
    main()
