"""A Triton kernel that selects a row's entries of largest magnitude, reading the block of pre-activations once.

One program holds a row's magnitudes in registers and searches by thresholds on their bits, which order as the numbers
do: half a dozen counts over registers, of two thresholds each, settle the k-th largest. Ties go to the lowest index, by
a second bisection over the columns that only rows with ties enter. The entries' places in the output are running counts
over the row, so that they come out in ascending order; the same pass writes the dense rows that training's products
read.

A row wider than the registers hold is selected from in two rounds: from each chunk its largest, then from those.
"""

# No `from __future__ import annotations`: Triton reads the annotations of its kernels.
import torch
import triton
import triton.language as tl

from skcompressae._torch._triton_rows import OPTIONS, launching_on

__all__ = ["can_select", "can_select_dense", "select_triton", "spread_triton"]

# Columns that one program holds: 32 a thread at the 256 threads of 8 warps.
_MAX_WIDTH = 8192
_COLUMNS_PER_WARP = 1024
# Columns of a part of the last pass.
_PART_PER_WARP = 128
# Registers of a thread. More would spill less and hold fewer programs to a multiprocessor, which work through one's
# waits with another: slower (benchmarks/gpu_launches.py).
_MAX_REGISTERS = 64
# Running counts of the leading and the other entries share one integer, 16 bits each.
_MAX_ACTIVE = 2**15
# The largest number of columns that two rounds are used for.
_MAX_COMPONENTS = 2**17


@triton.jit
def _narrow(low, n_low, high, threshold, n_reached, n_kept):  # type: ignore[no-untyped-def]
    """Narrow an interval by the count at a threshold, which may lie outside; see `_bounds`."""
    is_lower = (n_reached >= n_kept) & (threshold > low)
    is_upper = (n_reached < n_kept) & (threshold < high)
    return (
        tl.where(is_lower, threshold, low),
        tl.where(is_lower, n_reached, n_low),
        tl.where(is_upper, threshold, high),
    )


@triton.jit
def _bounds(magnitudes, n_kept, n_leading, WIDTH: tl.constexpr, IS_SPLIT: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return, for the `n_kept` and for the `n_leading` largest, what the last of them is and how many reach it.

    Two thresholds are counted in one sum, 16 bits each, and both counts serve both searches. Invariant: at least as
    many as are looked for are `low` or more, fewer are `high` or more. The first thresholds are an eighth and a half
    of the largest magnitude: 2**23 halves a number.
    """
    low = tl.zeros((), tl.int32)
    n_low = tl.zeros((), tl.int32) + WIDTH
    high = tl.max(magnitudes, axis=0) + 1
    low_leading, n_low_leading, high_leading = low, n_low, high
    one, other = tl.maximum(high - (3 << 23), high // 3), tl.maximum(high - (1 << 23), high - high // 3)
    is_open = (high - low > 1) & (n_low != n_kept)
    is_open_leading = IS_SPLIT & (high - low > 1) & (n_low != n_leading)
    while is_open | is_open_leading:
        # the sign bit of the difference says that a magnitude is below
        below = (magnitudes - one).to(tl.uint32, bitcast=True) >> 31
        below += ((magnitudes - other).to(tl.uint32, bitcast=True) >> 31) << 16
        n_below = tl.sum(below.to(tl.int32, bitcast=True), axis=0)
        n_one, n_other = WIDTH - (n_below & 0xFFFF), WIDTH - (n_below >> 16)
        low, n_low, high = _narrow(low, n_low, high, one, n_one, n_kept)
        low, n_low, high = _narrow(low, n_low, high, other, n_other, n_kept)
        is_open = (high - low > 1) & (n_low != n_kept)
        start, width = low, high - low
        start_other, width_other = low, high - low
        if IS_SPLIT:
            low_leading, n_low_leading, high_leading = _narrow(
                low_leading, n_low_leading, high_leading, one, n_one, n_leading
            )
            low_leading, n_low_leading, high_leading = _narrow(
                low_leading, n_low_leading, high_leading, other, n_other, n_leading
            )
            is_open_leading = (high_leading - low_leading > 1) & (n_low_leading != n_leading)
            # both thresholds for one search where the other is done
            start = tl.where(is_open, low, low_leading)
            width = tl.where(is_open, high, high_leading) - start
            start_other = tl.where(is_open_leading, low_leading, low)
            width_other = tl.where(is_open_leading, high_leading, high) - start_other
        is_shared = (start == start_other) & (width == width_other)
        third = tl.maximum(width // 3, 1)
        one = start + tl.where(is_shared, third, width // 2)
        other = tl.where(is_shared, start + width - third, start_other + width_other // 2)
    return low, n_low, low_leading, n_low_leading


@triton.jit
def _last_tie(magnitudes, columns, low, n_low, n_kept, WIDTH: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return the last column whose magnitude, where it equals `low`, is among the `n_kept` largest."""
    last = tl.zeros((), tl.int32) + (WIDTH - 1)
    if n_low != n_kept:
        first = tl.zeros((), tl.int32) - 1
        n_ties = n_kept - tl.sum((magnitudes > low).to(tl.int32), axis=0)
        while last - first > 1:
            middle = first + (last - first) // 2
            is_reached = tl.sum(((magnitudes == low) & (columns <= middle)).to(tl.int32), axis=0) >= n_ties
            last = tl.where(is_reached, middle, last)
            first = tl.where(is_reached, first, middle)
    return last


@triton.jit
def _load(block, bias, start, columns, inside, HAS_BIAS: tl.constexpr):  # type: ignore[no-untyped-def]
    value = tl.load(block + start + columns, mask=inside, other=0.0).to(tl.float32)
    if HAS_BIAS:
        value += tl.load(bias + columns, mask=inside, other=0.0)
    # Columns beyond the row count as zeros of higher index than any inside: none is taken in place of one inside, and
    # those that fill up a last chunk of fewer than n_active columns lose in the second round.
    # What is no number counts as one size, above infinity: one more must not overflow.
    return value, tl.minimum(value.to(tl.int32, bitcast=True) & 0x7FFFFFFF, 0x7F800001)


@triton.jit(do_not_specialize=["chunk", "k", "n_active"])
def _select(  # type: ignore[no-untyped-def]
    block, bias, indices, values, leading, others, fired,
    n_columns, chunk, n_chunks, k, n_active,
    WIDTH: tl.constexpr, PART: tl.constexpr, HAS_BIAS: tl.constexpr, IS_SPLIT: tl.constexpr, IS_DENSE: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    first_column = (program % n_chunks).to(tl.int32) * chunk
    n_inside = tl.minimum(chunk, n_columns - first_column)
    start = program // n_chunks * n_columns + first_column
    bias += first_column
    all_columns = tl.arange(0, WIDTH)
    _, all_magnitudes = _load(block, bias, start, all_columns, all_columns < n_inside, HAS_BIAS)
    low, n_low, low_leading, n_low_leading = _bounds(all_magnitudes, n_active, k, WIDTH, IS_SPLIT)
    last = _last_tie(all_magnitudes, all_columns, low, n_low, n_active, WIDTH)
    last_leading = last
    if IS_SPLIT:
        last_leading = _last_tie(all_magnitudes, all_columns, low_leading, n_low_leading, k, WIDTH)
    # The row once more, from the cache, part by part: what the stores need would not fit the registers at once.
    n_before = tl.zeros((), tl.int32)
    for first in range(0, WIDTH, PART):
        columns = first + tl.arange(0, PART)
        inside = columns < n_inside
        value, magnitudes = _load(block, bias, start, columns, inside, HAS_BIAS)
        is_active = (magnitudes > low) | ((magnitudes == low) & (columns <= last))
        is_leading = is_active
        if IS_SPLIT:
            is_leading = (magnitudes > low_leading) | ((magnitudes == low_leading) & (columns <= last_leading))
        entries = tl.where(is_leading, 1 << 16, tl.where(is_active, 1, 0))
        counts = n_before + tl.cumsum(entries, axis=0)
        n_before += tl.sum(entries, axis=0)
        place = tl.where(is_leading, counts >> 16, k + (counts & 0xFFFF)) - 1
        tl.store(indices + program * n_active + place, first_column + columns, mask=is_active)
        tl.store(values + program * n_active + place, value, mask=is_active)
        if IS_DENSE:
            one = tl.full((PART,), 1, tl.int64)
            tl.atomic_add(fired + columns, one, mask=is_leading, sem="relaxed")
            kind = leading.dtype.element_ty
            rest = tl.where(is_leading, 0.0, tl.where(is_active, value, 0.0))
            tl.store(leading + start + columns, tl.where(is_leading, value, 0.0).to(kind), mask=inside)
            tl.store(others + start + columns, rest.to(kind), mask=inside)


def can_select_dense(n_components: int) -> bool:
    """Tell whether one program holds a row, and so can write its dense rows."""
    return n_components <= _MAX_WIDTH


def can_select(n_components: int, n_active: int, max_width: int = _MAX_WIDTH) -> bool:
    """Tell whether the kernel selects from rows of this width, in one round or two."""
    n_chunks = -(-n_components // max_width)
    is_narrow = n_chunks == 1 or (n_active <= max_width and n_chunks * n_active <= max_width)
    return is_narrow and n_active < _MAX_ACTIVE and n_components <= _MAX_COMPONENTS


def _launch(
    block: torch.Tensor, bias: torch.Tensor | None, k: int, n_active: int, chunk: int, dense: list[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    n_rows, n_columns = block.shape
    n_chunks = -(-n_columns // chunk)
    indices = torch.empty((n_rows, n_chunks * n_active), dtype=torch.int32, device=block.device)
    values = torch.empty((n_rows, n_chunks * n_active), dtype=torch.float32, device=block.device)
    width = max(32, triton.next_power_of_2(chunk))
    n_warps = max(1, width // _COLUMNS_PER_WARP)
    with launching_on(block):
        _select[(n_rows * n_chunks,)](
            block.contiguous(), block if bias is None else bias, indices, values, *(dense or [values] * 3),
            n_columns, chunk, n_chunks, k, n_active,
            WIDTH=width, PART=min(width, n_warps * _PART_PER_WARP),
            HAS_BIAS=bias is not None, IS_SPLIT=k < n_active, IS_DENSE=bool(dense),
            num_warps=n_warps, maxnreg=_MAX_REGISTERS, **OPTIONS,
        )  # fmt: skip
    return indices, values


def select_triton(
    block: torch.Tensor, bias: torch.Tensor, k: int, n_active: int, max_width: int = _MAX_WIDTH
) -> tuple[torch.Tensor, torch.Tensor]:
    """Select the n_active entries of largest magnitude of each row of ``block + bias``, the k largest of them first.

    Parameters
    ----------
    block : tensor of shape (n_rows, n_components), float32, float16 or bfloat16
    bias : float32 tensor of shape (n_components,)
    k, n_active : int
        ``1 <= k <= n_active <= n_components``, such that :func:`can_select` says yes.
    max_width : int
        Columns of a chunk, a power of two.

    Returns
    -------
    indices : int32 tensor of shape (n_rows, n_active), the k first ascending, and the others
    values : float32 tensor of shape (n_rows, n_active)
    """
    if block.shape[1] <= max_width:
        return _launch(block, bias, k, n_active, block.shape[1], [])
    # Candidates stand in the order of their columns, so ties still go to the lowest.
    indices, values = _launch(block, bias, n_active, n_active, max_width, [])
    places, values = _launch(values, None, k, n_active, values.shape[1], [])
    return indices.gather(1, places.long()), values


def spread_triton(
    block: torch.Tensor, bias: torch.Tensor, k: int, n_active: int, fired: torch.Tensor, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Select as :func:`select_triton`, write the two groups as dense rows of `dtype` too, and count in `fired`."""
    leading, others = (torch.empty(block.shape, dtype=dtype, device=block.device) for _ in range(2))
    indices, values = _launch(block, bias, k, n_active, block.shape[1], [leading, others, fired])
    return indices, values, leading, others
