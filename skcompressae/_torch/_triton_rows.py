"""Triton kernels over rows and the few latents of each: norms, inner products with gathered rows, decoded norms.

One program a row. Rows of a weight matrix of a few thousand latents stay in an H100's second-level cache, so gathers
read that, not memory; tiles of 8 gathered rows keep enough loads in flight.
"""

# No `from __future__ import annotations`: Triton reads the annotations of its kernels.
from contextlib import AbstractContextManager, nullcontext

import torch
import triton
import triton.language as tl

__all__ = ["OPTIONS", "decoded_norms_triton", "gathered_dots_triton", "launching_on", "unit_rows_triton"]

# Of every launch. Triton 3.9 warns where this is left open; without it a multiplication and an addition take two
# instructions.
OPTIONS = {"enable_fp_fusion": True}

# Gathered rows and columns of a tile: a warp reads 128 float32 columns, 512 bytes, of a row at a time.
_TILE_ROWS = 8
_TILE_COLUMNS = 128
_N_WARPS = 1


def launching_on(tensor: torch.Tensor) -> AbstractContextManager[object]:
    """Make a tensor's device the current one, where Triton launches; nothing on the CPU, where it interprets."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


@triton.jit
def _unit_rows(x, unit, norms, n_columns, WIDTH: tl.constexpr, SCALES: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, WIDTH)
    largest = tl.zeros((), tl.float64) + 1.0
    if SCALES:
        peak = tl.zeros((WIDTH,), tl.float64)
        for first in range(0, n_columns, WIDTH):
            inside = first + columns < n_columns
            part = tl.load(x + row * n_columns + first + columns, mask=inside, other=0.0).to(tl.float64)
            peak = tl.maximum(peak, tl.abs(part))
        largest = tl.max(peak, axis=0)
    divisor = tl.where(largest > 0, largest, 1.0)
    squares = tl.zeros((WIDTH,), tl.float64)
    for first in range(0, n_columns, WIDTH):
        inside = first + columns < n_columns
        part = tl.load(x + row * n_columns + first + columns, mask=inside, other=0.0).to(tl.float64) / divisor
        squares += part * part
    norm = tl.sqrt(tl.sum(squares, axis=0))
    tl.store(norms + row, norm * largest)
    safe = tl.where(norm > 0, norm, 1.0)
    for first in range(0, n_columns, WIDTH):
        inside = first + columns < n_columns
        part = tl.load(x + row * n_columns + first + columns, mask=inside, other=0.0).to(tl.float64) / divisor
        tl.store(unit + row * n_columns + first + columns, (part / safe).to(tl.float32), mask=inside)


@triton.jit(do_not_specialize=["n_picks"])
def _gathered_dots(  # type: ignore[no-untyped-def]
    x, matrix, picks, dots, n_columns, n_picks, TILE_ROWS: tl.constexpr, TILE_COLUMNS: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    entries = tl.arange(0, TILE_ROWS)
    columns = tl.arange(0, TILE_COLUMNS)
    for first_pick in range(0, n_picks, TILE_ROWS):
        is_pick = first_pick + entries < n_picks
        pick = tl.load(picks + row * n_picks + first_pick + entries, mask=is_pick, other=0).to(tl.int64)
        total = tl.zeros((TILE_ROWS, TILE_COLUMNS), tl.float32)
        for first in range(0, n_columns, TILE_COLUMNS):
            inside = first + columns < n_columns
            part = tl.load(x + row * n_columns + first + columns, mask=inside, other=0.0).to(tl.float32)
            tile = tl.load(
                matrix + pick[:, None] * n_columns + first + columns[None, :],
                mask=is_pick[:, None] & inside[None, :],
                other=0.0,
            )
            total += tile.to(tl.float32) * part[None, :]
        tl.store(dots + row * n_picks + first_pick + entries, tl.sum(total, axis=1), mask=is_pick)


@triton.jit(do_not_specialize=["n_picks"])
def _decoded_norms(  # type: ignore[no-untyped-def]
    x, values, matrix, picks, norms, overlaps, n_columns, n_picks, TILE_ROWS: tl.constexpr, TILE_COLUMNS: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    entries = tl.arange(0, TILE_ROWS)
    columns = tl.arange(0, TILE_COLUMNS)
    squares = tl.zeros((TILE_COLUMNS,), tl.float32)
    products = tl.zeros((TILE_COLUMNS,), tl.float32)
    for first in range(0, n_columns, TILE_COLUMNS):
        inside = first + columns < n_columns
        decoded = tl.zeros((TILE_ROWS, TILE_COLUMNS), tl.float32)
        for first_pick in range(0, n_picks, TILE_ROWS):
            is_pick = first_pick + entries < n_picks
            place = row * n_picks + first_pick + entries
            pick = tl.load(picks + place, mask=is_pick, other=0).to(tl.int64)
            value = tl.load(values + place, mask=is_pick, other=0.0)
            tile = tl.load(
                matrix + pick[:, None] * n_columns + first + columns[None, :],
                mask=is_pick[:, None] & inside[None, :],
                other=0.0,
            )
            decoded += tile.to(tl.float32) * value[:, None]
        part = tl.sum(decoded, axis=0)
        squares += part * part
        products += part * tl.load(x + row * n_columns + first + columns, mask=inside, other=0.0)
    tl.store(norms + row, tl.sqrt(tl.sum(squares, axis=0)))
    tl.store(overlaps + row, tl.sum(products, axis=0))


def unit_rows_triton(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Do what :func:`skcompressae._torch._row_ops.unit_rows_torch` does."""
    x = x.contiguous()
    unit = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    norms = torch.empty(len(x), dtype=torch.float64, device=x.device)
    width = min(1024, max(32, triton.next_power_of_2(x.shape[1])))
    with launching_on(x):
        _unit_rows[(len(x),)](
            x,
            unit,
            norms,
            x.shape[1],
            WIDTH=width,
            SCALES=x.dtype == torch.float64,
            num_warps=max(1, width // 256),
            **OPTIONS,
        )
    return unit, norms


def gathered_dots_triton(x: torch.Tensor, matrix: torch.Tensor, picks: torch.Tensor) -> torch.Tensor:
    """Do what :func:`skcompressae._torch._row_ops.gathered_dots` does."""
    dots = torch.empty(picks.shape, dtype=torch.float32, device=x.device)
    arguments = x.contiguous(), matrix.contiguous(), picks.contiguous(), dots, x.shape[1], picks.shape[1]
    with launching_on(x):
        _gathered_dots[(len(x),)](
            *arguments, TILE_ROWS=_TILE_ROWS, TILE_COLUMNS=_TILE_COLUMNS, num_warps=_N_WARPS, **OPTIONS
        )
    return dots


def decoded_norms_triton(
    x: torch.Tensor, values: torch.Tensor, matrix: torch.Tensor, picks: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Do what :func:`skcompressae._torch._row_ops.decoded_norms` does."""
    norms, overlaps = torch.empty((2, len(values)), dtype=torch.float32, device=values.device)
    inputs = x.contiguous(), values.contiguous(), matrix.contiguous(), picks.contiguous()
    with launching_on(values):
        _decoded_norms[(len(values),)](
            *inputs, norms, overlaps, matrix.shape[1], picks.shape[1],
            TILE_ROWS=_TILE_ROWS, TILE_COLUMNS=_TILE_COLUMNS, num_warps=_N_WARPS, **OPTIONS,
        )  # fmt: skip
    return norms, overlaps
