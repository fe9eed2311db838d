"""Run all that needs a GPU in one go, within ten minutes: the tests on the device, then the benchmarks.

    python benchmarks/gpu_suite.py --out results

Writes into the folder what each part printed, the benchmarks' results, gpu_training.json, gpu_encoding.json and
gpu_search.json, and suite.json, which says what ran, how it ended and how long it took. What would run past the limit
is stopped; the benchmarks keep what they had by then.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TextIO

from _common import environment, write_json

ROOT = Path(__file__).resolve().parent.parent
TESTS = ("test_triton_kernels", "test_device_encoder", "test_training_step", "test_gpu", "test_neighbor_devices")
# Sizes at which everything is done in seconds on a CPU.
TINY = {
    "gpu_training": [
        "--n-samples", "600", "--batch-size", "128", "--n-features", "16", "--n-components", "64", "--k", "4",
        "--n-steps", "3", "--n-repeats", "1", "--n-calls", "1", "--block-bytes", "65536",
        "--n-recall-rows", "500", "--n-recall-steps", "5",
    ],
    "gpu_encoding": [
        "--n-samples", "600", "--n-on-device", "300", "--n-checked", "100", "--n-features", "16",
        "--n-components", "64", "--k", "4", "--n-repeats", "1", "--n-calls", "1",
    ],
    "gpu_search": [
        "--n-documents", "300", "--batches", "1", "7", "--n-features", "16", "--n-components", "64", "--k", "4",
        "--top", "5", "--n-repeats", "1",
    ],
}  # fmt: skip


def run_part(command: list[str], log: TextIO, limit_s: float) -> int | str:
    """Run a command, its output to a file; return its exit status, or that it ran out of time."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    variables = {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
    try:
        return subprocess.run(
            command, cwd=ROOT, env=variables, stdout=log, stderr=subprocess.STDOUT, check=False, timeout=limit_s
        ).returncode
    except subprocess.TimeoutExpired:
        return "out of time"


def main(arguments: list[str] | None = None) -> int:
    """Run the suite from the command line; return how many parts failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a folder")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--minutes", type=float, default=9.5)
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--skip-tests", action="store_true")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    # The environment's own deprecations are no failures here.
    test_options = ["-q", "-W", "default", "-p", "no:cacheprovider", "--durations=10"]
    tests = [str(ROOT / "tests" / f"{name}.py") for name in TESTS]
    parts = {"tests": [sys.executable, "-m", "pytest", *test_options, *tests]}
    if options.skip_tests:
        parts = {}
    for name, tiny in TINY.items():
        out = ["--device", options.device, "--out", str(options.out / f"{name}.json")]
        parts[name] = [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), *out, *(tiny if options.tiny else [])]
    # Shares of the time that is left: what ends early leaves the rest to the others.
    shares = {"tests": 0.35, "gpu_training": 0.6, "gpu_encoding": 0.7, "gpu_search": 1.0}
    record: dict[str, dict[str, object]] = {}
    for name, command in parts.items():
        left = 60 * options.minutes - (time.perf_counter() - start)
        part_start = time.perf_counter()
        with (options.out / f"{name}.txt").open("w", encoding="utf-8") as log:
            code = run_part(command, log, max(1.0, shares[name] * left))
        record[name] = {"ended": code, "time_s": round(time.perf_counter() - part_start, 1)}
        print(f"== {name}: {record[name]}")
        print("\n".join((options.out / f"{name}.txt").read_text(encoding="utf-8").splitlines()[-40:]), flush=True)
        write_json(options.out / "suite.json", {"environment": environment(), "parts": record})
    return sum(part["ended"] != 0 for part in record.values())


if __name__ == "__main__":
    sys.exit(main())
