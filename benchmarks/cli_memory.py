"""How much memory does `skcompressae encode` take for a file larger than the machine's memory?

The command runs as its own process whose whole address space is limited (RLIMIT_AS), on a file larger than the limit
and on a small one. Recorded are the peaks of resident memory of both; the times are those of a shared machine, and the
codes of the first and last rows are compared with `transform`.

    python benchmarks/cli_memory.py --gigabytes 10 --limit-gib 4
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from _common import Array, environment, stopwatch, write_json

from skcompressae import CompresSAETransformer, PackedCodes

COMMAND = Path(sys.executable).with_name("skcompressae")
N_FEATURES = 1024
TILE_ROWS = 8192


def write_rows(path: Path, n_rows: int, tile: Array) -> None:
    """Write a matrix of `n_rows` rows that repeats the rows of `tile`."""
    with path.open("wb") as stream:
        header = {"descr": tile.dtype.str, "fortran_order": False, "shape": (n_rows, tile.shape[1])}
        np.lib.format.write_array_header_1_0(stream, header)
        for start in range(0, n_rows, len(tile)):
            tile[: n_rows - start].tofile(stream)


def run(arguments: list[str], limit_bytes: int) -> dict[str, Any]:
    """Run the command under the limit and return what it took."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (limit_bytes, limit_bytes))

    with stopwatch() as time_s:
        process = subprocess.Popen([str(COMMAND), *arguments, "-q"], preexec_fn=limit)
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise RuntimeError(f"skcompressae {' '.join(arguments)} ended with exit code {process.returncode}")
    peak_bytes = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {"peak_resident_bytes": peak_bytes, "time_s": time_s()}


def is_right(model: CompresSAETransformer, tile: Array, n_rows: int, codes: Path) -> bool:
    """Return whether the first and the last rows have the codes that the API gives."""
    store = PackedCodes.load(codes, mmap=True)
    n_checked = min(1000, n_rows)
    last = tile[np.arange(n_rows - n_checked, n_rows) % len(tile)]
    return len(store) == n_rows and all(
        model.transform_packed(rows, quantizer=store.quantizer) == part
        for rows, part in ((tile[:n_checked], store[:n_checked]), (last, store[n_rows - n_checked :]))
    )


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=10.0, help="size of the large file, 10**9 bytes")
    parser.add_argument("--limit-gib", type=float, default=4.0, help="limit of the address space, 2**30 bytes")
    parser.add_argument("--n-components", type=int, default=1024)
    parser.add_argument("--k", type=int, default=16)
    parser.add_argument("--outputs", nargs="+", choices=["skc", "npz", "parquet"], default=["skc", "npz"])
    parser.add_argument("--folder", type=Path, help="where the files go; takes their size in free space")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "cli_memory.json")
    options = parser.parse_args(argv)

    tile = np.random.RandomState(0).standard_normal((TILE_ROWS, N_FEATURES)).astype(np.float32)
    model = CompresSAETransformer(
        n_components=options.n_components, k=options.k, max_iter=2, random_state=0, device="cpu"
    ).fit(tile[:2048])
    n_large = round(options.gigabytes * 1e9 / (4 * N_FEATURES))
    limit_bytes = round(options.limit_gib * 2**30)
    results = []
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        folder = Path(scratch)
        model.save(folder / "model.safetensors")
        for name, n_rows in (("small", min(1000, n_large)), ("large", n_large)):
            write_rows(folder / "rows.npy", n_rows, tile)
            size_bytes = (folder / "rows.npy").stat().st_size
            for suffix in options.outputs:
                output = folder / f"codes.{suffix}"
                taken = run(
                    ["encode", *(str(path) for path in (folder / "model.safetensors", folder / "rows.npy", output))],
                    limit_bytes,
                )
                row = {"input": name, "n_rows": n_rows, "input_bytes": size_bytes, "output": suffix, **taken}
                if suffix == "skc":
                    row["is_right"] = is_right(model, tile, n_rows, output)
                row["output_bytes"] = output.stat().st_size
                output.unlink()
                results.append(row)
                print(row)
    content = {
        "environment": environment(),
        "options": {
            "gigabytes": options.gigabytes,
            "limit_bytes": limit_bytes,
            "n_features": N_FEATURES,
            "n_components": options.n_components,
            "k": options.k,
            "data": f"{TILE_ROWS} rows of standard normal numbers, seed 0, repeated; every byte is written",
        },
        "results": results,
    }
    write_json(options.out, content)


if __name__ == "__main__":
    main()
