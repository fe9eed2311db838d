"""Operations on rows and the few latents of each, in plain torch; on CUDA with Triton as one kernel each.

The plain forms gather the latents' rows, (n_rows, n_picks, n_features), a bounded number of rows at a time. The kernels
(`_triton_rows.py`) hold them in registers only. Both sum in float32.
"""

from __future__ import annotations

import torch

from skcompressae._core._threads import row_blocks
from skcompressae._torch import _devices

__all__ = ["TEMPORARY_BYTES", "decoded_norms", "decoded_rows", "gathered_dots", "unit_rows_torch"]

# Bytes of what a plain form may gather at a time.
TEMPORARY_BYTES = 256 * 2**20


def unit_rows_torch(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Divide each row by its L2 norm, on a device that has float64; see :func:`skcompressae._core._rows.unit_rows`.

    Parameters
    ----------
    x : tensor of shape (n_rows, n_features), float16, float32 or float64, finite

    Returns
    -------
    unit : float32 tensor of the shape of `x`; an all-zero row stays zero
    norms : float64 tensor of shape (n_rows,)
    """
    if _devices.uses_triton(x):
        from skcompressae._torch._triton_rows import unit_rows_triton

        return unit_rows_triton(x)
    wide = x.to(torch.float64)
    # Squares of float32 fit float64 whatever their scale; those of float64 do not.
    largest = wide.abs().amax(dim=1) if x.dtype == torch.float64 else wide.new_ones(len(x))
    divisor = torch.where(largest > 0, largest, 1.0)[:, None]
    wide = wide / divisor
    norms = wide.norm(dim=1)
    unit = (wide / torch.where(norms > 0, norms, 1.0)[:, None]).to(torch.float32)
    return unit, norms * largest


def gathered_dots(x: torch.Tensor, matrix: torch.Tensor, picks: torch.Tensor) -> torch.Tensor:
    """Multiply each row with a few rows of a matrix; float32, in an order that depends on nothing but the shape.

    Parameters
    ----------
    x : tensor of shape (n_rows, n_features)
    matrix : tensor of shape (n_components, n_features)
    picks : integer tensor of shape (n_rows, n_picks)

    Returns
    -------
    dots : float32 tensor of shape (n_rows, n_picks)
    """
    if _devices.uses_triton(x):
        from skcompressae._torch._triton_rows import gathered_dots_triton

        return gathered_dots_triton(x, matrix, picks)
    dots = x.new_empty(picks.shape, dtype=torch.float32)
    for start, stop in _bounded_blocks(picks, matrix.shape[1]):
        dots[start:stop] = (matrix[picks[start:stop].long()] * x[start:stop, None, :]).sum(dim=2)
    return dots


def decoded_norms(
    x: torch.Tensor, values: torch.Tensor, matrix: torch.Tensor, picks: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the L2 norm of each row's ``values @ matrix[picks]`` and its inner product with the row of `x`.

    Both float32, of shape (n_rows,); `values` and `picks` of shape (n_rows, n_picks), `x` (n_rows, n_features).
    """
    scale = values.abs().amax(dim=1)  # squares of activations of an encoder of any scale may leave float32
    scale = torch.where(scale > 0, scale, 1.0)
    norms, overlaps = _decoded_norms(x, values / scale[:, None], matrix, picks)
    return norms * scale, overlaps * scale


def _decoded_norms(
    x: torch.Tensor, values: torch.Tensor, matrix: torch.Tensor, picks: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    if _devices.uses_triton(values):
        from skcompressae._torch._triton_rows import decoded_norms_triton

        return decoded_norms_triton(x, values, matrix, picks)
    norms, overlaps = values.new_empty((2, len(values)), dtype=torch.float32)
    for start, stop in _bounded_blocks(picks, matrix.shape[1]):
        decoded = decoded_rows(values[start:stop], matrix, picks[start:stop])
        norms[start:stop] = decoded.norm(dim=1)
        overlaps[start:stop] = (decoded * x[start:stop]).sum(dim=1)
    return norms, overlaps


def decoded_rows(values: torch.Tensor, matrix: torch.Tensor, picks: torch.Tensor) -> torch.Tensor:
    """Return each row's ``values @ matrix[picks]``, float32; `values` and `picks` of shape (n_rows, n_picks)."""
    decoded = values.new_empty((len(values), matrix.shape[1]), dtype=torch.float32)
    for start, stop in _bounded_blocks(picks, matrix.shape[1]):
        decoded[start:stop] = (matrix[picks[start:stop].long()] * values[start:stop, :, None]).sum(dim=1)
    return decoded


def _bounded_blocks(picks: torch.Tensor, n_features: int) -> list[tuple[int, int]]:
    n_rows = max(1, TEMPORARY_BYTES // (4 * picks.shape[1] * n_features))
    return list(row_blocks(len(picks), n_rows))
