"""How long do the first calls take, while kernels are compiled, and once they are kept on disk?

    python benchmarks/first_calls.py --out benchmarks/results/first_calls.json

Every repetition starts two processes with an empty folder for compiled kernels: the first compiles them, the second
finds them. Rows are few and small, so that the time of the work itself is small beside that of the compiler.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
from _common import environment, write_json
from _peak import run_child

N_SAMPLES, N_FEATURES, N_COMPONENTS, K = 5000, 128, 512, 16
CALLS = ("import", "fit", "transform", "transform of one row", "inverse_transform", "search", "search of one query")


def run_task(_):
    """Return the seconds of each call in this process."""
    warnings.simplefilter("ignore")  # a fit of few steps leaves latents unused
    seconds, before = {}, time.perf_counter()

    def done(call):
        nonlocal before
        seconds[call] = time.perf_counter() - before
        before = time.perf_counter()

    from skcompressae import CodeNearestNeighbors, CompresSAETransformer

    done("import")
    X = np.random.RandomState(0).standard_normal((N_SAMPLES, N_FEATURES)).astype(np.float32)
    compressor = CompresSAETransformer(N_COMPONENTS, k=K, max_iter=20, device="cpu", random_state=0).fit(X)
    done("fit")
    codes = compressor.transform(X)
    done("transform")
    compressor.transform(X[:1])
    done("transform of one row")
    compressor.inverse_transform(codes)
    done("inverse_transform")
    index = CodeNearestNeighbors(10, compressor=compressor).fit(codes)
    index.kneighbors(X[:100])
    done("search")
    index.kneighbors(X[:1])
    done("search of one query")
    return seconds


def main(arguments=None):
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n-repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--task", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.task is not None:
        print(json.dumps(run_task(json.loads(options.task))))
        return
    runs = {"compiled": [], "kept": []}
    before = os.environ.get("NUMBA_CACHE_DIR")
    try:
        for _ in range(options.n_repeats):
            with tempfile.TemporaryDirectory() as os.environ["NUMBA_CACHE_DIR"]:
                for name in runs:
                    runs[name].append(run_child(__file__, {}))
    finally:
        os.environ.pop("NUMBA_CACHE_DIR", None)
        if before is not None:
            os.environ["NUMBA_CACHE_DIR"] = before
    rows = []
    for call in CALLS:
        row = {"call": call, **{f"{name}_s": [run[call] for run in of_name] for name, of_name in runs.items()}}
        rows.append(row)
        print(f"{call:22}" + "".join(f"  {name} {np.median(row[f'{name}_s']):6.2f} s" for name in runs))
    totals = {name: float(np.median([sum(run.values()) for run in of_name])) for name, of_name in runs.items()}
    print("all".ljust(22) + "".join(f"  {name} {seconds:6.2f} s" for name, seconds in totals.items()))
    if options.out is not None:
        settings = {"n_samples": N_SAMPLES, "n_features": N_FEATURES, "n_components": N_COMPONENTS, "k": K,
                    "n_repeats": options.n_repeats, "random_state": 0}  # fmt: skip
        write_json(options.out, {"environment": environment(), "settings": settings, "rows": rows, "medians_s": totals})


if __name__ == "__main__":
    main()
