"""A Triton kernel that eliminates each row's small system in registers; see `_pursuit.py` for the algorithm.

The elimination is the symmetric one of stepwise regression ("sweep", Goodnight 1979): the matrix stays symmetric, so a
picked row is its column too and is read once, down the registers of each thread. What the diagonal holds of the picked
is of no use.
"""

# No `from __future__ import annotations`: Triton reads the annotations of its kernels.
import torch
import triton
import triton.language as tl

from skcompressae._core._pursuit import GUIDANCE, RIDGE, pursuit_starts
from skcompressae._torch._pursuit import GramTable
from skcompressae._torch._triton_rows import OPTIONS, launching_on

__all__ = ["can_pursue", "pursue_triton"]

# A system of 128 x 128 float32 takes 64 KB, a quarter of a multiprocessor's registers.
_MAX_WIDTH = 128
# So one warp holds 64 x 64, and waits for no other.
_ENTRIES_PER_WARP = 4096
# Registers of a thread: a seventh faster for 128 candidates than without a limit, and no slower for fewer.
_MAX_REGISTERS = 168


@triton.jit(do_not_specialize=["n_candidates", "k", "start_first", "start_second", "start_third"])
def _pursue(  # type: ignore[no-untyped-def]
    grams, correlations, candidates, activations, scales, indices, values, norms, overlaps,
    n_candidates, n_components, k, start_first, start_second, start_third, ridge,
    WIDTH: tl.constexpr, HAS_TABLE: tl.constexpr, IS_FIXED: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    entries = tl.arange(0, WIDTH)
    inside = entries < n_candidates
    candidate = tl.load(candidates + program * n_candidates + entries, mask=inside, other=0)
    correlation = tl.load(correlations + program * n_candidates + entries, mask=inside, other=0.0)
    # One-dimensional, then folded: so the threads lie along the rows in every version of Triton.
    entry = tl.arange(0, WIDTH * WIDTH)
    first, second = entry // WIDTH, entry % WIDTH
    both = (first < n_candidates) & (second < n_candidates)
    if HAS_TABLE:
        # Of the two places of a product the one below the diagonal, so that half the table serves all.
        one = tl.load(candidates + program * n_candidates + first, mask=both, other=0).to(tl.int64)
        other = tl.load(candidates + program * n_candidates + second, mask=both, other=0).to(tl.int64)
        place = tl.maximum(one, other) * n_components + tl.minimum(one, other)
    else:
        place = program * n_candidates * n_candidates + first * n_candidates + second
    system = tl.load(grams + place, mask=both, other=0.0)
    system = tl.reshape(tl.where(first == second, system + ridge, system), (WIDTH, WIDTH))
    right = correlation
    is_open = inside
    score = tl.zeros((WIDTH,), tl.float32)
    guidance = score
    if not IS_FIXED:
        score = tl.abs(tl.load(activations + program * n_candidates + entries, mask=inside, other=0.0))
        guidance = score * tl.load(scales + program)
    for step in range(k):
        pick = step
        if not IS_FIXED:
            starts_round = (step == start_first) | (step == start_second) | (step == start_third)
            score = tl.where(starts_round, tl.abs(right) + guidance, score)
            score = tl.where(score == score, score, 0.0)  # so that k are picked of what is no number too
            pick = tl.argmax(tl.where(is_open, score, -1.0), axis=0)
        is_pick = entries == pick
        row = tl.sum(tl.where(is_pick[:, None], system, 0.0), axis=0)
        pivot = tl.maximum(tl.sum(tl.where(is_pick, row, 0.0), axis=0), ridge)
        # With pivot - 1 in place of the pivot one update serves all: it divides the picked row by the pivot.
        row = tl.where(is_pick, pivot - 1.0, row)
        factor = row / pivot
        system -= factor[:, None] * row[None, :]
        right -= factor * tl.sum(tl.where(is_pick, right, 0.0), axis=0)
        is_open = is_open & (entries != pick)
    is_picked = inside & (is_open == 0)
    value = tl.where(is_picked, right, 0.0)
    squares = tl.sum(value * (correlation - ridge * value), axis=0)
    tl.store(norms + program, tl.sqrt(tl.maximum(squares, 0.0)))
    tl.store(overlaps + program, tl.sum(value * correlation, axis=0))
    place = program * k + tl.cumsum(is_picked.to(tl.int32), axis=0) - 1
    tl.store(indices + place, candidate, mask=is_picked)
    tl.store(values + place, value, mask=is_picked)


def can_pursue(n_candidates: int) -> bool:
    """Tell whether the kernel holds the system of this many candidates."""
    return n_candidates <= _MAX_WIDTH


def pursue_triton(
    grams: GramTable, correlations: torch.Tensor, candidates: torch.Tensor, activations: torch.Tensor, k: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Do what :func:`skcompressae._torch._pursuit.pursuit_codes_torch` does, from the correlations on."""
    n_rows, n_candidates = candidates.shape
    candidates, correlations = candidates.to(torch.int32).contiguous(), correlations.contiguous()
    activations = scales = activations.contiguous()
    if n_candidates > k:
        kth = activations.abs().topk(k, dim=1).values[:, -1]
        scales = torch.where(kth > 0, GUIDANCE / kth, 0.0)
    indices = torch.empty((n_rows, k), dtype=torch.int32, device=candidates.device)
    values = torch.empty((n_rows, k), dtype=torch.float32, device=candidates.device)
    norms, overlaps = torch.empty((2, n_rows), dtype=torch.float32, device=candidates.device)
    gram = grams.gather(candidates) if grams.table is None else grams.table
    width = max(16, triton.next_power_of_2(n_candidates))
    with launching_on(candidates):
        _pursue[(n_rows,)](
            gram, correlations, candidates, activations, scales, indices, values, norms, overlaps,
            n_candidates, grams.decoder.shape[0], k, *pursuit_starts(k), RIDGE,
            WIDTH=width, HAS_TABLE=grams.table is not None, IS_FIXED=n_candidates == k,
            num_warps=max(1, width * width // _ENTRIES_PER_WARP), maxnreg=_MAX_REGISTERS, **OPTIONS,
        )  # fmt: skip
    return indices, values, norms, overlaps
