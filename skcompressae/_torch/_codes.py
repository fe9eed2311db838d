"""Codes of rows in plain torch, whole batches at once and on the rows' device, for models that run in torch.

The same codes as :class:`skcompressae._encoding.Encoder` computes, up to rounding: nothing is recomputed in a fixed
order, so near ties may fall otherwise.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch

from skcompressae._core._pursuit import RIDGE, count_candidates
from skcompressae._torch._devices import matmul_precision
from skcompressae._torch._torch_engine import encode_rows_torch

__all__ = ["encode_batch"]


def encode_batch(
    rows: torch.Tensor,
    encoder: torch.Tensor,
    bias: torch.Tensor,
    decoder: torch.Tensor,
    k: int,
    *,
    coding: str,
    candidate_factor: float | None,
    norm: str | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Encode rows of any scale, in float32 whatever autocast says.

    Parameters
    ----------
    rows : tensor of shape (n_rows, n_features), of any floating dtype, finite
    encoder, decoder : float32 tensors of shape (n_components, n_features), on the device of `rows`
    bias : float32 tensor of shape (n_components,)
    k : int in [1, n_components]
    coding : {"pursuit", "least_squares", "activations"}
    candidate_factor : float or None
        Used where `coding` is "pursuit".
    norm : {"input", "unit", None}

    Returns
    -------
    indices : int64 tensor of shape (n_rows, k), ascending in each row
    values : float32 tensor of shape (n_rows, k); all zero for an all-zero row
    """
    kind = rows.device.type
    # Older torch knows no autocast on other devices, and refuses to disable it there.
    without_autocast = torch.autocast(kind, enabled=False) if kind in ("cpu", "cuda") else nullcontext()
    with without_autocast, matmul_precision("float32", rows.device):
        unit, norms = _unit_rows(rows.float())
        n = k
        if coding == "pursuit" and candidate_factor is not None:
            n = count_candidates(k, candidate_factor, len(decoder))
        indices, values = encode_rows_torch(unit, encoder, bias, n, "float32")
        if coding == "activations":
            decoded_norms = (values[:, None, :] @ decoder[indices])[:, 0].norm(dim=1, keepdim=True)
        else:
            indices, values, decoded_norms = _fit(unit, decoder, indices, k)
        scales = torch.ones_like(norms)
        if norm is not None:
            wanted = norms if norm == "input" else scales
            scales = wanted / torch.where(decoded_norms > 0, decoded_norms, torch.ones_like(norms))
        return indices, values * torch.where(norms > 0, scales, torch.zeros_like(norms))


def _unit_rows(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Divide rows by their norms, zero rows by 1; return both. Squares are of x / max |x|, which cannot overflow."""
    largest = rows.abs().amax(dim=1, keepdim=True)
    one = torch.ones_like(largest)
    scaled = rows / torch.where(largest > 0, largest, one)
    lengths = scaled.norm(dim=1, keepdim=True)
    return scaled / torch.where(largest > 0, lengths, one), largest * lengths


def _fit(
    unit: torch.Tensor, decoder: torch.Tensor, candidates: torch.Tensor, k: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the indices of k of the candidates, their fitted values, and the norms of the reconstructions."""
    n = candidates.shape[1]
    atoms = decoder[candidates]
    system = atoms @ atoms.mT + RIDGE * torch.eye(n, device=unit.device)
    correlations = atoms @ unit[:, :, None]
    if n == k:
        values = torch.linalg.solve(system, correlations)[..., 0]
        correlations = correlations[..., 0]
    else:
        picks, values = _pursue(torch.cat([system, correlations], dim=2), k)
        candidates, correlations = candidates.gather(1, picks), correlations[..., 0].gather(1, picks)
    # s G s = s (c - ridge s), as s solves the system
    squares = (values * (correlations - RIDGE * values)).sum(dim=1, keepdim=True)
    return candidates, values, squares.clamp_min(0).sqrt()


def _pursue(system: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pick k of n candidates by orthogonal matching pursuit; return where they are, ascending, and their values.

    Gauss-Jordan elimination of the augmented system, of shape (n_rows, n, n + 1): once the pivots picked so far are
    eliminated, its last column holds their values and, for every other candidate, its product with what is unexplained.
    """
    n_rows, n, _ = system.shape
    numbers = torch.arange(n, device=system.device)
    every = torch.arange(n_rows, device=system.device)
    is_picked = torch.zeros((n_rows, n), dtype=torch.bool, device=system.device)
    for _ in range(k):
        best = system[:, :, n].abs().masked_fill(is_picked, -1).argmax(dim=1)
        is_best = numbers == best[:, None]
        row, column = system[every, best], system[every, :, best]
        pivot = row.gather(1, best[:, None]).clamp_min(RIDGE)
        factors = torch.where(is_best, pivot - 1, column)
        system = system - factors[:, :, None] * (row / pivot)[:, None, :]
        is_picked = is_picked | is_best
    picks = torch.where(is_picked, numbers, numbers + n).sort(dim=1).values[:, :k]
    return picks, system[:, :, n].gather(1, picks)
