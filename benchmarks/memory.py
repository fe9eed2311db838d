"""How much memory do fit and transform take beyond their input and output?

    python benchmarks/memory.py --out benchmarks/results/memory.json

Each task runs in a process of its own, with X in memory or memory-mapped; see `_peak.py` for what is counted. Budgets:
fit may add the weights, Adam's moments and 300 MB to X, transform 300 MB to its output.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import warnings
from pathlib import Path

import numpy as np
from _common import environment, write_json
from _peak import measure, run_child

from skcompressae import CompresSAETransformer

ALLOWANCE_BYTES = 300e6


def make_rows(path, n_samples, n_features, seed):
    """Write random rows to a .npy file, block by block."""
    random_state = np.random.RandomState(seed)
    rows = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(n_samples, n_features))
    for start in range(0, n_samples, 65536):
        block = rows[start : start + 65536]
        block[:] = random_state.standard_normal(block.shape)
    rows.flush()


def compressor_for(task):
    """Return an unfitted compressor of the task's shape."""
    return CompresSAETransformer(
        task["n_components"], k=task["k"], max_iter=task["n_steps"], batch_size=task["batch_size"], device="cpu",
        random_state=0,
    )  # fmt: skip


def run_task(task):
    """Measure one task in this process."""
    warnings.simplefilter("ignore")  # a fit of few steps leaves latents unused
    rows = np.load(task["path"], mmap_mode="r")
    # everything that is compiled or loaded once is the baseline's
    compressor_for(task).set_params(n_components=64, k=4, max_iter=2).fit(rows[:600]).transform(rows[:600])
    compressor = compressor_for(task)
    weights_bytes = 4 * (2 * task["n_components"] * rows.shape[1] + task["n_components"])
    if task["what"] == "fit":
        record, _ = measure(lambda: compressor.fit(rows if task["is_mapped"] else np.array(rows)))
        budget = rows.nbytes + 3 * weights_bytes + ALLOWANCE_BYTES
    else:
        compressor.set_params(max_iter=2).fit(rows[: task["batch_size"]])
        X = rows if task["is_mapped"] else np.array(rows)
        record, codes = measure(lambda: compressor.transform(X))
        record["output_bytes"] = codes.data.nbytes + codes.indices.nbytes + codes.indptr.nbytes
        budget = record["output_bytes"] + ALLOWANCE_BYTES
    # The pages of a mapped file count where the budget has room for X; in memory, X is a copy of the file's.
    key = "resident_growth_bytes" if task["what"] == "fit" and task["is_mapped"] else "private_growth_bytes"
    return {**record, "X_bytes": rows.nbytes, "weights_bytes": weights_bytes, "counted": key, "budget_bytes": budget,
            "is_within_budget": record[key] <= budget}  # fmt: skip


def main(arguments=None):
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n-samples", type=int, default=200_000)
    parser.add_argument("--n-features", type=int, default=768)
    parser.add_argument("--n-components", type=int, default=4096)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--batch-size", type=int, nargs="+", default=[4096, 100_000])
    parser.add_argument("--n-steps", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--directory", type=Path, help="where the rows go; a temporary directory by default")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--task", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.task is not None:
        print(json.dumps(run_task(json.loads(options.task)), default=lambda value: value.item()))
        return
    results = []
    with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        path = Path(directory) / "rows.npy"
        make_rows(path, options.n_samples, options.n_features, options.seed)
        for what, batch_sizes in (("fit", options.batch_size), ("transform", options.batch_size[:1])):
            for batch_size in batch_sizes:
                for is_mapped in (False, True):
                    task = {"what": what, "is_mapped": is_mapped, "batch_size": batch_size, "n_steps": options.n_steps,
                            "n_components": options.n_components, "k": options.k}  # fmt: skip
                    record = run_child(__file__, {**task, "path": str(path)})
                    results.append({**task, **record})
                    megabytes = {name[:-6]: round(value / 1e6) for name, value in record.items() if "bytes" in name}
                    print(f"{what}, batch {batch_size}, mapped {is_mapped}: MB {megabytes}")
    if options.out is not None:
        settings = {name: value for name, value in vars(options).items() if name not in ("out", "directory", "task")}
        write_json(options.out, {"environment": environment(), "settings": settings, "results": results})


if __name__ == "__main__":
    main()
