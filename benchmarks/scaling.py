"""How do time and peak memory of fit and transform grow with rows, latents, nonzeros and threads?

    python benchmarks/scaling.py --out benchmarks/results/scaling.json
    python benchmarks/scaling.py --plot docs/figures --out benchmarks/results/scaling.json

Each point is one process (see `_peak.py` for how memory is counted) on memory-mapped random rows; the others of (n, m,
k, threads) stay at the base point. "fit" is the whole call at a fixed number of steps. The rows repeat one block of
100,000 with its columns permuted, which changes neither time nor memory.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import warnings
from pathlib import Path

import numpy as np
from _common import environment, write_json
from _peak import measure, run_child

BASE = {"n": 100_000, "m": 1024, "k": 16, "threads": 2}
AXES = {
    "n": [10_000, 100_000, 1_000_000, 10_000_000],
    "m": [256, 1024, 4096, 16384],
    "k": [4, 8, 16, 32, 64],
    "threads": [1, 2],
}
LABELS = {"n": "rows", "m": "latents (n_components)", "k": "nonzeros (k)", "threads": "threads"}
BLOCK_ROWS = 100_000


def make_rows(path, n_samples, n_features, seed):
    """Write random rows to a .npy file, block by block."""
    random_state = np.random.RandomState(seed)
    block = random_state.standard_normal((min(BLOCK_ROWS, n_samples), n_features)).astype(np.float32)
    rows = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(n_samples, n_features))
    for start in range(0, n_samples, BLOCK_ROWS):
        part = rows[start : start + BLOCK_ROWS]
        part[:] = block[: len(part), random_state.permutation(n_features)]
    rows.flush()


def run_task(task):
    """Measure fit and transform at one point, in this process."""
    from skcompressae import CompresSAETransformer

    warnings.simplefilter("ignore")  # random rows leave latents unused
    rows = np.load(task["path"], mmap_mode="r")[: task["n"]]
    compressor = CompresSAETransformer(
        64, k=4, max_iter=2, batch_size=256, device="cpu", early_stopping=False, random_state=0
    )
    compressor.fit(rows[:600]).transform(rows[:600])  # compile and load
    compressor.set_params(n_components=task["m"], k=task["k"], max_iter=task["n_steps"], batch_size=task["batch_size"])
    fit, _ = measure(lambda: compressor.fit(rows))
    transform, codes = measure(lambda: compressor.transform(rows))
    transform["output_bytes"] = codes.data.nbytes + codes.indices.nbytes + codes.indptr.nbytes
    return {"fit": fit, "transform": transform}


def plot(results, settings, directory):
    """Draw one picture for each axis: seconds above, memory below, fit and transform."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    directory.mkdir(parents=True, exist_ok=True)
    for axis in AXES:
        points = sorted((row for row in results if row["axis"] == axis), key=lambda row: row[axis])
        if not points:
            continue
        x = [row[axis] for row in points]
        figure, (above, below) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
        for what, marker in (("fit", "o"), ("transform", "s")):
            above.plot(x, [row[what]["seconds"] for row in points], marker=marker, label=what)
            below.plot(x, [row[what]["private_growth_bytes"] / 1e6 for row in points], marker=marker, label=what)
        below.plot(x, [row["transform"]["output_bytes"] / 1e6 for row in points], ":", color="0.4", label="the codes")
        for axes, label in ((above, "seconds"), (below, "peak private memory added, MB")):
            axes.set(xlabel=LABELS[axis], ylabel=label)
            if axis == "threads":
                axes.set(ylim=(0, None))
            else:
                axes.set(xscale="log", yscale="log")
            axes.set_xticks(x, [f"{value:,}" for value in x])
            axes.set_xticks([], minor=True)
            axes.legend()
            axes.grid(alpha=0.3)
        fixed = ", ".join(f"{name} = {value:,}" for name, value in BASE.items() if name != axis)
        figure.suptitle(f"d = {settings['n_features']}, {fixed}, {settings['n_steps']} steps of "
                        f"{settings['batch_size']:,} rows", fontsize=10)  # fmt: skip
        figure.savefig(directory / f"scaling_{axis}.png", dpi=110)
        plt.close(figure)


def main(arguments=None):
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n-features", type=int, default=128)
    parser.add_argument("--n-steps", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=4096)
    parser.add_argument("--axes", nargs="+", choices=list(AXES), default=list(AXES))
    parser.add_argument("--max-n", type=int, default=AXES["n"][-1], help="leave out points of more rows")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--directory", type=Path, help="where the rows go; a temporary directory by default")
    parser.add_argument("--out", type=Path, help="the result; axes that are not run are kept from an earlier one")
    parser.add_argument("--plot", type=Path, help="draw the pictures of --out into this directory; measures nothing")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.task is not None:
        print(json.dumps(run_task(json.loads(options.task))))
        return
    if options.plot is not None:
        content = json.loads(options.out.read_text(encoding="utf-8"))
        plot(content["results"], content["settings"], options.plot)
        return
    points = [{**BASE, axis: value, "axis": axis} for axis in options.axes for value in AXES[axis]]
    points = [{**point, "n": min(point["n"], options.max_n)} for point in points]
    points = list({json.dumps(point): point for point in points}.values())
    shape = {name: getattr(options, name) for name in ("n_steps", "batch_size")}
    results = []
    if options.out is not None and options.out.exists():
        earlier = json.loads(options.out.read_text(encoding="utf-8"))["results"]
        results = [row for row in earlier if row["axis"] not in options.axes]
    with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        path = Path(directory) / "rows.npy"
        make_rows(path, max(point["n"] for point in points), options.n_features, options.seed)
        for point in points:
            for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
                os.environ[variable] = str(point["threads"])  # the child's
            record = run_child(__file__, {**point, **shape, "path": str(path)})
            results.append({**point, **record})
            seconds = ", ".join(f"{what} {record[what]['seconds']:.3g} s" for what in record)
            print(f"{point}: {seconds}", flush=True)
    if options.out is not None:
        settings = {"n_features": options.n_features, **shape, "seed": options.seed, "base": BASE}
        write_json(options.out, {"environment": environment(), "settings": settings, "results": results})


if __name__ == "__main__":
    main()
