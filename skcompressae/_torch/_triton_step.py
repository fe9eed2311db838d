"""Triton kernels of the training step: one pass over each row where plain torch takes a dozen.

`gathered_gradients_triton` also replaces four of the eight dense products: it decodes a row from the few decoder rows
it uses, twice, reading them from the second-level cache. That beats float32 products, which run outside the tensor
cores; for the others it does not (docs/research_notes_speed.md has the count).
"""

# No `from __future__ import annotations`: Triton reads the annotations of its kernels.
from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from skcompressae._torch._triton_rows import OPTIONS, launching_on

__all__ = ["can_hold_rows", "cosine_gradients_triton", "gathered_gradients_triton", "write_slopes_triton"]

# Columns of a row that one program holds, in several copies.
_MAX_WIDTH = 4096
_COLUMNS_PER_WARP = 128
# Decoder rows gathered at a time.
_TILE_ROWS = 8


@triton.jit
def _cosine_gradient(x, x_hat, weight):  # type: ignore[no-untyped-def]
    """Return the cosine of a unit row x with x_hat and the gradient of ``weight * (1 - cosine)``."""
    squares = tl.sum(x_hat * x_hat, axis=0)
    safe = tl.where(squares > 0, squares, 1.0)
    inverse = 1.0 / tl.sqrt(safe)
    overlap = tl.sum(x * x_hat, axis=0)
    cosine = overlap * inverse
    along_x = tl.where(squares > 0, -weight * inverse, 0.0)
    along_x_hat = tl.where(squares > 0, weight * cosine / safe, 0.0)
    return cosine, along_x * x + along_x_hat * x_hat


@triton.jit
def _cosine_gradients(  # type: ignore[no-untyped-def]
    x, near, rest, cosines, gradient, gradient_wide, weight, weight_wide, n_columns, WIDTH: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, WIDTH)
    inside = columns < n_columns
    place = row * n_columns + columns
    x_row = tl.load(x + place, mask=inside, other=0.0)
    x_hat = tl.load(near + place, mask=inside, other=0.0).to(tl.float32)
    cosine, slope = _cosine_gradient(x_row, x_hat, weight)
    x_hat += tl.load(rest + place, mask=inside, other=0.0).to(tl.float32)
    cosine_wide, slope_wide = _cosine_gradient(x_row, x_hat, weight_wide)
    tl.store(cosines + 2 * row, cosine)
    tl.store(cosines + 2 * row + 1, cosine_wide)
    kind = gradient.dtype.element_ty
    tl.store(gradient + place, (slope + slope_wide).to(kind), mask=inside)
    tl.store(gradient_wide + place, slope_wide.to(kind), mask=inside)


@triton.jit(do_not_specialize=["n_active", "k"])
def _write_slopes(indices, slopes, slopes_wide, latent, n_components, n_active, k, WIDTH: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    for first in range(0, n_active, WIDTH):
        entries = first + tl.arange(0, WIDTH)
        place = row * n_components + tl.load(indices + row * n_active + entries, mask=entries < n_active, other=0)
        is_leading = entries < k
        slope = tl.load(slopes + place, mask=is_leading, other=0.0)
        slope += tl.load(slopes_wide + place, mask=(entries >= k) & (entries < n_active), other=0.0)
        tl.store(latent + place, slope, mask=entries < n_active)


@triton.jit
def _add_decoded(x_hat, decoder, indices, values, first, last, n_columns, columns, inside, TILE_ROWS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Add what the entries from `first` to `last` decode to."""
    for start in range(first, last, TILE_ROWS):
        entries = start + tl.arange(0, TILE_ROWS)
        is_entry = entries < last
        pick = tl.load(indices + entries, mask=is_entry, other=0).to(tl.int64)
        value = tl.load(values + entries, mask=is_entry, other=0.0)
        both = is_entry[:, None] & inside[None, :]
        tile = tl.load(decoder + pick[:, None] * n_columns + columns[None, :], mask=both, other=0.0).to(tl.float32)
        x_hat += tl.sum(tile * value[:, None], axis=0)
    return x_hat


@triton.jit
def _store_slopes(gradient, decoder, indices, slopes, first, last, n_columns, columns, inside, TILE_ROWS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Multiply a gradient with the decoder rows of the entries from `first` to `last`."""
    for start in range(first, last, TILE_ROWS):
        entries = start + tl.arange(0, TILE_ROWS)
        is_entry = entries < last
        pick = tl.load(indices + entries, mask=is_entry, other=0).to(tl.int64)
        both = is_entry[:, None] & inside[None, :]
        tile = tl.load(decoder + pick[:, None] * n_columns + columns[None, :], mask=both, other=0.0).to(tl.float32)
        tl.store(slopes + entries, tl.sum(tile * gradient[None, :], axis=1), mask=is_entry)


@triton.jit(do_not_specialize=["n_active", "k"])
def _gathered_gradients(  # type: ignore[no-untyped-def]
    x, decoder, indices, values, cosines, gradient, gradient_wide, slopes, weight, weight_wide,
    n_columns, n_active, k, WIDTH: tl.constexpr, TILE_ROWS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, WIDTH)
    inside = columns < n_columns
    place = row * n_columns + columns
    indices += row * n_active
    values += row * n_active
    slopes += row * n_active
    x_row = tl.load(x + place, mask=inside, other=0.0)
    x_hat = tl.zeros((WIDTH,), tl.float32)
    x_hat = _add_decoded(x_hat, decoder, indices, values, 0, k, n_columns, columns, inside, TILE_ROWS)
    cosine, slope = _cosine_gradient(x_row, x_hat, weight)
    x_hat = _add_decoded(x_hat, decoder, indices, values, k, n_active, n_columns, columns, inside, TILE_ROWS)
    cosine_wide, slope_wide = _cosine_gradient(x_row, x_hat, weight_wide)
    slope += slope_wide
    tl.store(cosines + 2 * row, cosine)
    tl.store(cosines + 2 * row + 1, cosine_wide)
    kind = gradient.dtype.element_ty
    tl.store(gradient + place, slope.to(kind), mask=inside)
    tl.store(gradient_wide + place, slope_wide.to(kind), mask=inside)
    _store_slopes(slope, decoder, indices, slopes, 0, k, n_columns, columns, inside, TILE_ROWS)
    _store_slopes(slope_wide, decoder, indices, slopes, k, n_active, n_columns, columns, inside, TILE_ROWS)


def can_hold_rows(n_features: int) -> bool:
    """Tell whether one program holds a row of this many features."""
    return n_features <= _MAX_WIDTH


def _width(n_columns: int) -> int:
    return max(32, triton.next_power_of_2(n_columns))


def cosine_gradients_triton(
    x: torch.Tensor, near: torch.Tensor, rest: torch.Tensor, weights: Sequence[float]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Do what :func:`skcompressae._torch._step_ops.cosine_gradients` does."""
    x, near, rest = x.contiguous(), near.contiguous(), rest.contiguous()
    cosines = torch.empty((len(x), 2), dtype=torch.float32, device=x.device)
    gradient, gradient_wide = torch.empty_like(near), torch.empty_like(near)
    width = _width(x.shape[1])
    with launching_on(x):
        _cosine_gradients[(len(x),)](
            x, near, rest, cosines, gradient, gradient_wide, *weights, x.shape[1],
            WIDTH=width, num_warps=max(1, width // _COLUMNS_PER_WARP // 2), **OPTIONS,
        )  # fmt: skip
    return cosines, gradient, gradient_wide


def write_slopes_triton(
    indices: torch.Tensor, slopes: torch.Tensor, slopes_wide: torch.Tensor, k: int, latent: torch.Tensor
) -> None:
    """Do what :func:`skcompressae._torch._step_ops.write_slopes` does, to `latent`."""
    n_rows, n_active = indices.shape
    arguments = indices.contiguous(), slopes.contiguous(), slopes_wide.contiguous(), latent, latent.shape[1]
    with launching_on(latent):
        _write_slopes[(n_rows,)](*arguments, n_active, k, WIDTH=128, num_warps=1, **OPTIONS)


def gathered_gradients_triton(
    x: torch.Tensor,
    decoder: torch.Tensor,
    indices: torch.Tensor,
    values: torch.Tensor,
    k: int,
    weights: Sequence[float],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Decode rows from their active latents and differentiate both cosine distances, without a dense product.

    Parameters
    ----------
    x : float32 tensor of shape (n_rows, n_features), unit (or zero) rows
    decoder : tensor of shape (n_components, n_features), float32 or bfloat16
    indices, values : tensors of shape (n_rows, n_active), the k leading latents of each row first
    k : int
    weights : two floats
        As :func:`cosine_gradients_triton` takes them.

    Returns
    -------
    cosines, gradient, gradient_wide
        As :func:`cosine_gradients_triton` gives them, the gradients in the dtype of `decoder`.
    slopes : float32 tensor of shape (n_rows, n_active)
        Gradients of the active latents.
    """
    x, decoder, indices, values = x.contiguous(), decoder.contiguous(), indices.contiguous(), values.contiguous()
    cosines = torch.empty((len(x), 2), dtype=torch.float32, device=x.device)
    gradient, gradient_wide = torch.empty((2, *x.shape), dtype=decoder.dtype, device=x.device)
    slopes = torch.empty_like(values)
    width = _width(x.shape[1])
    with launching_on(x):
        _gathered_gradients[(len(x),)](
            x, decoder, indices, values, cosines, gradient, gradient_wide, slopes, *weights,
            x.shape[1], indices.shape[1], k,
            WIDTH=width, TILE_ROWS=_TILE_ROWS, num_warps=max(1, min(8, width // _COLUMNS_PER_WARP)), **OPTIONS,
        )  # fmt: skip
    return cosines, gradient, gradient_wide, slopes
