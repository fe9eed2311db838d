"""Which tiles, warps and registers are fastest for the Triton kernels, at one shape?

    python benchmarks/gpu_launches.py --out benchmarks/results/gpu_launches.json

Each kernel is timed with the library's own settings and with others, one change of settings at a time, on one block of
rows that lies on the device. What does not compile (too few registers, say) is recorded as such.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
from _common import environment, write_json
from _gpu import describe, device_of, queued_seconds

from skcompressae._torch import _triton_pursuit, _triton_rows, _triton_selection, _triton_step
from skcompressae._torch._pursuit import GramTable

Settings = dict[str, int]


def launches(options: argparse.Namespace, device: torch.device) -> list[tuple[str, ModuleType, Callable[[], Any], Any]]:
    """Return name, module, call and the settings to try of each kernel."""
    generator = torch.Generator(device).manual_seed(options.seed)
    n_rows, m, k = options.n_rows, options.n_components, options.k

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=device, generator=generator)

    x, _ = _triton_rows.unit_rows_triton(normal(n_rows, options.n_features))
    decoder, _ = _triton_rows.unit_rows_triton(normal(m, options.n_features))
    bias, block = torch.zeros(m, device=device), x @ decoder.T
    n_active, n_pursued = min(4 * k, m), min(options.candidate_factor * k, m)
    fired = torch.zeros(m, dtype=torch.int64, device=device)
    grams = GramTable(decoder)
    select, rows = _triton_selection.select_triton, _triton_rows.gathered_dots_triton
    active, active_values = select(block, bias, k, n_active)
    near, _ = select(block, bias, k + 8, k + 8)
    pursued, pursued_values = select(block, bias, n_pursued, n_pursued)
    support, values = select(block, bias, k, k)
    narrow = block.bfloat16()
    selections = [{"_COLUMNS_PER_WARP": 256}, {"_COLUMNS_PER_WARP": 512}, {"_COLUMNS_PER_WARP": 2048},
                  {"_COLUMNS_PER_WARP": 2048, "_MAX_REGISTERS": 128}, {"_MAX_REGISTERS": 96}, {"_PART_PER_WARP": 64},
                  {"_PART_PER_WARP": 256}]  # fmt: skip
    tiles = [{"_N_WARPS": 2}, {"_N_WARPS": 4}, {"_TILE_ROWS": 4}, {"_TILE_ROWS": 16}, {"_TILE_ROWS": 16, "_N_WARPS": 4},
             {"_TILE_COLUMNS": 256}]  # fmt: skip
    entries = [{"_ENTRIES_PER_WARP": 1024}, {"_ENTRIES_PER_WARP": 2048}, {"_MAX_REGISTERS": 128},
               {"_MAX_REGISTERS": 255}]  # fmt: skip
    gathers = [{"_TILE_ROWS": 4}, {"_TILE_ROWS": 16}, {"_COLUMNS_PER_WARP": 64}, {"_COLUMNS_PER_WARP": 256}]
    pursue = _triton_pursuit.pursue_triton
    correlations = rows(x, decoder, pursued)
    fit = rows(x, decoder, support)
    spread = _triton_selection.spread_triton
    return [
        ("select", _triton_selection, lambda: select(narrow, bias, k + 8, k + 8), selections),
        ("select_pursued", _triton_selection, lambda: select(narrow, bias, n_pursued, n_pursued), selections),
        ("spread", _triton_selection, lambda: spread(narrow, bias, k, n_active, fired, narrow.dtype), selections),
        ("gathered_dots", _triton_rows, lambda: rows(x, decoder, near), tiles),
        ("decoded_norms", _triton_rows, lambda: _triton_rows.decoded_norms_triton(x, values, decoder, support), tiles),
        ("refit", _triton_pursuit, lambda: pursue(grams, fit, support, values, k), entries),
        ("pursue", _triton_pursuit, lambda: pursue(grams, correlations, pursued, pursued_values, k), entries),
        (
            "gathered_gradients",
            _triton_step,
            lambda: _triton_step.gathered_gradients_triton(x, decoder, active, active_values, k, (1e-5, 1e-6)),
            gathers,
        ),
    ]  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--n-rows", type=int, default=16_384)
    parser.add_argument("--n-features", type=int, default=768)
    parser.add_argument("--n-components", type=int, default=4096)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--candidate-factor", type=int, default=2)
    parser.add_argument("--n-repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    device = device_of(options.device)
    found: dict[str, list[dict[str, Any]]] = {}
    result = {
        "environment": environment(),
        "device": describe(device),
        "settings": {name: value for name, value in vars(options).items() if name != "out"},
        "seconds_per_million_rows": found,
    }
    for name, module, call, choices in launches(options, device):
        found[name] = []
        for settings in ({}, *choices):
            with ExitStack() as stack:
                for constant, value in settings.items():
                    stack.enter_context(patch.object(module, constant, value))
                record: dict[str, Any] = dict(settings)
                try:
                    seconds = queued_seconds(call, device, options.n_repeats, 3)
                    record["seconds"] = 1e6 / options.n_rows * seconds
                except Exception as error:  # of a kind that depends on Triton's version
                    record["error"] = f"{type(error).__name__}: {error}"[:200]
            found[name].append(record)
        print(name, *({key: round(v, 4) if key == "seconds" else v for key, v in r.items()} for r in found[name]))
        if options.out is not None:
            write_json(options.out, result)


if __name__ == "__main__":
    main()
