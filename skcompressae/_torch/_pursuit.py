"""Matching pursuit and least squares on a device, by elimination: many small systems at once.

Orthogonal matching pursuit is Gaussian elimination on the candidates' Gram matrix, with the ridge on its diagonal and
the correlations as right side: once the picked candidates are eliminated, the right side of every other one is its
correlation with what they leave unexplained (a Schur complement), which the next picks are made by. Eliminating
from the rows picked earlier too (Gauss and Jordan) leaves the values on the diagonal. Least squares on a given support
is the same with the picks in order. How picks are guided by the activations, `_core/_pursuit.py` says.
"""

from __future__ import annotations

import torch

from skcompressae._core._pursuit import GUIDANCE, RIDGE, pursuit_starts
from skcompressae._core._threads import row_blocks
from skcompressae._torch import _devices
from skcompressae._torch._row_ops import TEMPORARY_BYTES, gathered_dots

__all__ = ["GramTable", "pursuit_codes_torch"]

# Bytes of the table of all inner products of decoder rows. Above it (16,384 latents) the table would take long to
# fill and gathers from it would miss the cache, so each row computes its own few products.
_TABLE_BYTES = 2**30


class GramTable:
    """Inner products of decoder rows, gathered for the candidates of a row.

    Parameters
    ----------
    decoder : float32 tensor of shape (n_components, n_features)
    is_kept : bool, default=True
        Whether the table will serve enough rows to be worth filling; else each row computes its own products.
    """

    def __init__(self, decoder: torch.Tensor, *, is_kept: bool = True) -> None:
        self.decoder = decoder
        self.table: torch.Tensor | None = None
        if is_kept and 4 * decoder.shape[0] ** 2 <= _TABLE_BYTES:
            with _devices.matmul_precision("float32", decoder.device):
                self.table = decoder @ decoder.T

    def gather(self, picks: torch.Tensor) -> torch.Tensor:
        """Return the Gram matrices of the picked rows, shape (n_rows, n_picks, n_picks)."""
        picks = picks.long()
        if self.table is not None:
            return self.table.reshape(-1)[picks[:, :, None] * self.decoder.shape[0] + picks[:, None, :]]
        gram = self.decoder.new_empty((*picks.shape, picks.shape[1]))
        n_rows = max(1, TEMPORARY_BYTES // (4 * picks.shape[1] * self.decoder.shape[1]))
        with _devices.matmul_precision("float32", self.decoder.device):
            for start, stop in row_blocks(len(picks), n_rows):
                rows = self.decoder[picks[start:stop]]
                torch.bmm(rows, rows.transpose(1, 2), out=gram[start:stop])
        return gram


def pursuit_codes_torch(
    x: torch.Tensor, grams: GramTable, candidates: torch.Tensor, activations: torch.Tensor, k: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pick k of each row's candidates by a matching pursuit that the encoder guides; fit values by least squares.

    Parameters
    ----------
    x : float32 tensor of shape (n_rows, n_features), unit-norm rows
    grams : GramTable
    candidates : integer tensor of shape (n_rows, n_candidates), ascending and distinct in each row
    activations : float32 tensor of shape (n_rows, n_candidates)
        The encoder's pre-activations of the candidates.
    k : int in [1, n_candidates]
        With ``k == n_candidates`` the support is taken as it is and only the values are fitted.

    Returns
    -------
    indices : integer tensor of shape (n_rows, k), ascending in each row
    values : float32 tensor of shape (n_rows, k)
    norms : float32 tensor of shape (n_rows,)
        L2 norm of each row's reconstruction.
    overlaps : float32 tensor of shape (n_rows,)
        Inner product of each row with its reconstruction.
    """
    correlations = gathered_dots(x, grams.decoder, candidates)
    if _devices.uses_triton(x):
        from skcompressae._torch._triton_pursuit import can_pursue, pursue_triton

        if can_pursue(candidates.shape[1]):
            return pursue_triton(grams, correlations, candidates, activations, k)
    n_candidates = candidates.shape[1]
    n_rows = max(1, TEMPORARY_BYTES // (8 * n_candidates**2))
    parts = []
    for start, stop in list(row_blocks(len(x), n_rows)) or [(0, 0)]:  # no rows have codes of the right shape too
        gram = grams.gather(candidates[start:stop])
        parts.append(_pursue(gram, correlations[start:stop], candidates[start:stop], activations[start:stop].abs(), k))
    indices, values, norms, overlaps = (torch.cat(part) for part in zip(*parts, strict=True))
    return indices, values, norms, overlaps


def _pursue(
    system: torch.Tensor, correlations: torch.Tensor, candidates: torch.Tensor, magnitudes: torch.Tensor, k: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Eliminate k picks; overwrites `system`."""
    n_candidates = candidates.shape[1]
    system.diagonal(dim1=1, dim2=2).add_(RIDGE)
    right = correlations.clone()
    is_picked = torch.zeros_like(candidates, dtype=torch.bool)
    pivots = torch.ones_like(right)
    starts = pursuit_starts(k)
    kth = magnitudes.topk(k, dim=1).values[:, -1:]
    guidance = GUIDANCE * magnitudes / torch.where(kth > 0, kth, torch.ones_like(kth))
    scores = magnitudes.nan_to_num(nan=0.0)  # so that k are picked of what is no number too
    for step in range(k):
        if n_candidates == k:
            pick = candidates.new_full((len(candidates), 1), step, dtype=torch.int64)
        else:
            if step in starts:
                scores = (right.abs() + guidance).nan_to_num(nan=0.0)
            pick = scores.masked_fill(is_picked, -1.0).argmax(dim=1, keepdim=True)
        is_picked.scatter_(1, pick, True)
        row = system.gather(1, pick[:, :, None].expand(-1, -1, n_candidates))[:, 0]
        pivot = row.gather(1, pick).clamp_min(RIDGE)
        pivots.scatter_(1, pick, pivot)
        factor = system.gather(2, pick[:, None, :].expand(-1, n_candidates, -1))[:, :, 0] / pivot
        factor.scatter_(1, pick, 0.0)
        system.baddbmm_(factor[:, :, None], row[:, None, :], alpha=-1)
        right.sub_(factor * right.gather(1, pick))
    # k of every row are picked, and come in ascending order
    indices = candidates[is_picked].reshape(-1, k)
    values = (right / pivots)[is_picked].reshape(-1, k)
    picked = correlations[is_picked].reshape(-1, k)
    squares = (values * (picked - RIDGE * values)).sum(dim=1)
    return indices, values, squares.clamp_min(0).sqrt(), (values * picked).sum(dim=1)
