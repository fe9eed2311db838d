"""A Triton kernel that selects a row's entries of largest magnitude, reading the block of pre-activations once.

One program holds a row in registers and bisects on the bits of its magnitudes, which order as the numbers do: about ten
counts over registers settle the k-th largest. Ties go to the lowest index, by a second bisection over the columns that
only rows with ties enter. The entries' places in the output are running counts over the row, so that they come out in
ascending order; the same pass writes the dense rows that training's products read.

A row wider than the registers hold is selected from in two rounds: from each chunk its largest, then from those.
"""

# No `from __future__ import annotations`: Triton reads the annotations of its kernels.
import torch
import triton
import triton.language as tl

from skcompressae._torch._triton_rows import OPTIONS, launching_on

__all__ = ["can_select", "can_select_dense", "select_triton", "spread_triton"]

# Columns that one program holds: 8 a thread at the 1,024 threads of 32 warps.
_MAX_WIDTH = 8192
_COLUMNS_PER_WARP = 256
# Registers of a thread: left alone the compiler takes up to 168, and then a multiprocessor holds too few programs to
# work through one's waits with another. At 64 nothing is spilled (benchmarks/compile_kernels.py).
_MAX_REGISTERS = 64
# Running counts of the leading and the other entries share one integer, 16 bits each.
_MAX_ACTIVE = 2**15
# The largest number of columns that two rounds are used for.
_MAX_COMPONENTS = 2**17


@triton.jit
def _bound(magnitudes, columns, n_kept, WIDTH: tl.constexpr, GUESS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return `low` and `last`: the `n_kept` largest are those above `low`, and those equal to it up to column `last`.

    Invariant: at least `n_kept` magnitudes are `low` or more, fewer are `high` or more. The first threshold tried is
    GUESS below the largest magnitude; 2**23 of it halve the number.
    """
    low = tl.zeros((), tl.int32)
    n_low = tl.zeros((), tl.int32) + WIDTH
    high = tl.max(magnitudes, axis=0) + 1
    middle = tl.maximum(high - GUESS, high // 2)
    while (high - low > 1) & (n_low != n_kept):
        n_middle = tl.sum((magnitudes >= middle).to(tl.int32), axis=0)
        is_reached = n_middle >= n_kept
        low = tl.where(is_reached, middle, low)
        n_low = tl.where(is_reached, n_middle, n_low)
        high = tl.where(is_reached, high, middle)
        middle = low + (high - low) // 2
    last = tl.zeros((), tl.int32) + (WIDTH - 1)
    first = tl.where(n_low == n_kept, last - 1, -1)  # nothing to bisect without ties
    n_ties = n_kept - tl.sum((magnitudes > low).to(tl.int32), axis=0)
    while last - first > 1:
        middle = first + (last - first) // 2
        is_reached = tl.sum(((magnitudes == low) & (columns <= middle)).to(tl.int32), axis=0) >= n_ties
        last = tl.where(is_reached, middle, last)
        first = tl.where(is_reached, first, middle)
    return low, last


@triton.jit(do_not_specialize=["chunk", "k", "n_active"])
def _select(  # type: ignore[no-untyped-def]
    block, bias, indices, values, leading, others, fired,
    n_columns, chunk, n_chunks, k, n_active,
    WIDTH: tl.constexpr, HAS_BIAS: tl.constexpr, IS_DENSE: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    row = program // n_chunks
    first_column = (program % n_chunks).to(tl.int32) * chunk
    columns = tl.arange(0, WIDTH)
    inside = columns < tl.minimum(chunk, n_columns - first_column)
    start = row * n_columns + first_column
    value = tl.load(block + start + columns, mask=inside, other=0.0).to(tl.float32)
    if HAS_BIAS:
        value += tl.load(bias + first_column + columns, mask=inside, other=0.0)
    # Columns beyond the row count as zeros of higher index than any inside: none is taken in place of one inside, and
    # those that fill up a last chunk of fewer than n_active columns lose in the second round.
    magnitudes = value.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    low, last = _bound(magnitudes, columns, n_active, WIDTH, 3 << 23)
    is_active = (magnitudes > low) | ((magnitudes == low) & (columns <= last))
    is_leading = is_active
    if k < n_active:
        low, last = _bound(tl.where(is_active, magnitudes, 0), columns, k, WIDTH, 1 << 23)
        is_leading = is_active & ((magnitudes > low) | ((magnitudes == low) & (columns <= last)))
    counts = tl.cumsum(tl.where(is_leading, 1 << 16, tl.where(is_active, 1, 0)), axis=0)
    place = tl.where(is_leading, counts >> 16, k + (counts & 0xFFFF)) - 1
    tl.store(indices + program * n_active + place, first_column + columns, mask=is_active)
    tl.store(values + program * n_active + place, value, mask=is_active)
    if IS_DENSE:
        one = tl.full((WIDTH,), 1, tl.int64)
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
    with launching_on(block):
        _select[(n_rows * n_chunks,)](
            block.contiguous(), block if bias is None else bias, indices, values, *(dense or [values] * 3),
            n_columns, chunk, n_chunks, k, n_active,
            WIDTH=width, HAS_BIAS=bias is not None, IS_DENSE=bool(dense),
            num_warps=max(1, width // _COLUMNS_PER_WARP), maxnreg=_MAX_REGISTERS, **OPTIONS,
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
