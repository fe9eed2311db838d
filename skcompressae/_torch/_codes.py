"""Codes of unit rows in torch, a block at a time and on the rows' device.

The product only proposes candidates; activations recomputed in float32 decide, so a code hardly depends on the
precision of the product, or on the rows beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from skcompressae._core._flattening import MIN_LEFT
from skcompressae._core._pursuit import PURSUITS, RIDGE, count_candidates
from skcompressae._core._refinement import ABOVE_ALL, N_REFINEMENTS, count_refined
from skcompressae._core._rows import MIN_STRETCHED
from skcompressae._torch import _devices
from skcompressae._torch._products import Products
from skcompressae._torch._pursuit import GramTable, pursuit_codes_torch
from skcompressae._torch._row_ops import decoded_norms, decoded_rows, gathered_dots
from skcompressae._torch._selection import select

__all__ = ["Codes", "encode_batch", "encode_unit_rows", "flattened", "scale_factors"]

# Candidates beyond k that the product proposes: it may order neighbours of the k-th wrongly.
_MARGIN = 8


class Codes(NamedTuple):
    """Codes of unit rows; `norms` and `overlaps`, inner products with the rows, are of the reconstructions."""

    indices: torch.Tensor
    values: torch.Tensor
    norms: torch.Tensor
    overlaps: torch.Tensor


def encode_unit_rows(
    x: torch.Tensor,
    proposals: torch.Tensor,
    encoder: torch.Tensor,
    bias: torch.Tensor,
    grams: GramTable,
    k: int,
    n_candidates: int,
    coding: str,
    correlate: Callable[[torch.Tensor], torch.Tensor],
) -> Codes:
    """Encode unit rows.

    Parameters
    ----------
    x : float32 tensor of shape (n_rows, n_features), unit-norm (or zero) rows
    proposals : tensor of shape (n_rows, n_components), float32 or bfloat16
        ``x @ encoder.T``, in any precision.
    encoder : float32 tensor of shape (n_components, n_features)
    bias : float32 tensor of shape (n_components,)
    grams : GramTable
        Of the decoder.
    k, n_candidates : int
        ``1 <= k <= n_candidates <= n_components``.
    coding : {"pursuit", "refined_pursuit", "least_squares", "activations"}
    correlate : callable
        Returns the products of what a code leaves of the rows with all decoder rows, in any precision; called where
        `coding` is "refined_pursuit".

    Returns
    -------
    codes : Codes
        Indices, integers, of shape (n_rows, k), ascending in each row; values of the same shape; norms and overlaps of
        shape (n_rows,). All but the indices float32.
    """
    pursues = coding in PURSUITS and n_candidates > k
    if coding in PURSUITS and not pursues:
        # With nothing to pick it is least squares, whose support a product's rounding must not decide.
        n_candidates = min(len(bias), k + _MARGIN)
    candidates, _ = select(proposals, bias, n_candidates)
    activations = gathered_dots(x, encoder, candidates) + bias[candidates.long()]
    if not pursues:
        chosen, values = select(activations, bias.new_zeros(n_candidates), k)
        candidates, activations = candidates.gather(1, chosen.long()), values
        if coding == "activations":
            return Codes(candidates, values, *decoded_norms(x, values, grams.decoder, candidates))
    codes = Codes(*pursuit_codes_torch(x, grams, candidates, activations, k))
    for _ in range(N_REFINEMENTS if coding == "refined_pursuit" else 0):
        codes = _refined(x, codes, grams, correlate)
    return codes


def _refined(
    x: torch.Tensor, codes: Codes, grams: GramTable, correlate: Callable[[torch.Tensor], torch.Tensor]
) -> Codes:
    """Return codes pursued among the latents of these and as many others that explain most of what they leave."""
    decoder, own = grams.decoder, codes.indices.long()
    rest = x - decoded_rows(codes.values, decoder, codes.indices)
    proposals = correlate(rest)
    proposals.scatter_(1, own, ABOVE_ALL)  # so that all of them are among the candidates
    n_candidates = count_refined(own.shape[1], len(decoder))
    candidates, _ = select(proposals, x.new_zeros(len(decoder)), n_candidates)
    correlations = gathered_dots(rest, decoder, candidates)
    # both ascend
    places = torch.searchsorted(candidates.long(), own)
    activations = correlations.scatter(1, places, codes.values)
    return Codes(*pursuit_codes_torch(x, grams, candidates, activations, own.shape[1]))


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
    flattening: float,
    keeps_mean: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Encode rows of any scale, in float32 whatever autocast says, for models that run, and learn, in torch.

    Gradients pass through the values; the choice of the latents has none, nor has how far values are drawn together.

    Parameters
    ----------
    rows : tensor of shape (n_rows, n_features), of any floating dtype, finite
    encoder, decoder : float32 tensors of shape (n_components, n_features), on the device of `rows`
    bias : float32 tensor of shape (n_components,)
    k : int in [1, n_components]
    coding : {"pursuit", "refined_pursuit", "least_squares", "activations"}
    candidate_factor : float or None
        Used where `coding` is one of the pursuits.
    norm : {"input", "unit", None}
    flattening : float in [0, 1)
        See `flattened`; used, as `keeps_mean` is, where `norm` is not None, and of fitted values.
    keeps_mean : bool
        See `scale_factors`.

    Returns
    -------
    indices : int64 tensor of shape (n_rows, k), ascending in each row
    values : float32 tensor of shape (n_rows, k); all zero for an all-zero row

    Raises
    ------
    ValueError
        If `k` is below 1.
    """
    if k < 1:
        raise ValueError(f"a code must have at least 1 nonzero; got {k}.")
    with _devices.own_modes(rows.device):
        unit, norms = _unit_rows(rows.float())
        if coding in PURSUITS and candidate_factor is not None:
            n_candidates = count_candidates(k, candidate_factor, len(decoder))
        else:
            n_candidates = min(len(decoder), k + _MARGIN)
        with torch.no_grad():
            # the support; what is fitted beside it has no gradient
            products = Products("float32", rows.device)
            proposals = products.multiply(unit, encoder.T)
            grams = GramTable(decoder, is_kept=False)
            chooser = coding if coding in PURSUITS else "activations"
            found = encode_unit_rows(
                unit,
                proposals,
                encoder,
                bias,
                grams,
                k,
                n_candidates,
                chooser,
                lambda rest: products.multiply(rest, decoder.T),
            )
            indices = found.indices.long()
        with _devices.matmul_precision("float32", rows.device):
            values, decoded = _values(unit, encoder, bias, decoder, indices, is_fitted=coding != "activations")
            if norm is not None and flattening > 0 and coding != "activations":
                values = flattened(indices, values, decoded.detach(), flattening, keeps_mean=keeps_mean)
                decoded = _decoded(values, decoder[indices])
        if norm is not None:
            values = values * scale_factors(indices, values, decoded, keeps_mean=keeps_mean)
            if norm == "input":
                return indices, values * norms
        return indices, values * (norms > 0).to(values.dtype)


def flattened(
    indices: torch.Tensor, values: torch.Tensor, decoded: torch.Tensor, flattening: float, *, keeps_mean: bool
) -> torch.Tensor:
    """Draw fitted values of unit rows together, see `skcompressae._core._flattening`.

    Parameters
    ----------
    indices, values : tensors of shape (n_rows, k), indices ascending in each row
    decoded : tensor of shape (n_rows, 1)
        Norms of what the values decode to.
    flattening : float in [0, 1)
    keeps_mean : bool
        Leave latent 0 as it is.

    Returns
    -------
    values : tensor of shape (n_rows, k)
    """
    explained, squares = decoded.square(), values.detach().square().sum(dim=1, keepdim=True)
    left = 1 - explained
    share = (explained / torch.where(squares > 0, squares, torch.ones_like(squares))).clamp_max(1)
    powers = 1 - flattening * share * torch.where(left > MIN_LEFT, left, torch.zeros_like(left)).sqrt()
    magnitudes = values.abs()
    # the gradient of a power is infinite at 0
    found = torch.where(magnitudes > 0, magnitudes, torch.ones_like(values)) ** powers * values.sign()
    return torch.where(indices == 0, values, found) if keeps_mean else found


def scale_factors(
    indices: torch.Tensor, values: torch.Tensor, decoded: torch.Tensor, *, keeps_mean: bool
) -> torch.Tensor:
    """Return what to multiply codes of unit rows by so that they decode to norm 1.

    Parameters
    ----------
    indices, values : tensors of shape (n_rows, k), indices ascending in each row
    decoded : tensor of shape (n_rows, 1)
        Norms of what the values decode to; where 0, the factor is 1.
    keeps_mean : bool
        Leave latent 0 at the row's share of the mean and stretch the others, see
        `skcompressae._core._rows.scale_codes`.

    Returns
    -------
    factors : tensor of shape (n_rows, 1), or (n_rows, k) with `keeps_mean`
    """
    one = torch.ones_like(decoded)
    factors = one / torch.where(decoded > 0, decoded, one)
    if not keeps_mean:
        return factors
    is_mean = indices == 0
    fitted = (values * is_mean).sum(dim=1, keepdim=True)
    share = fitted * (1 + RIDGE)
    stretched = decoded.square() - fitted.square()
    is_stretched = (fitted != 0) & (stretched > MIN_STRETCHED) & (share.square() < 1)
    # chosen before the division and the root: their gradients are infinite at 0
    missing = torch.where(is_stretched, 1 - share.square(), one)
    stretch = (missing / torch.where(is_stretched, stretched, one)).sqrt()
    return torch.where(is_stretched, torch.where(is_mean, one * (1 + RIDGE), stretch), factors)


def _values(
    unit: torch.Tensor,
    encoder: torch.Tensor,
    bias: torch.Tensor,
    decoder: torch.Tensor,
    indices: torch.Tensor,
    *,
    is_fitted: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the values on a support and the norms, (n_rows, 1), of what they decode to; both pass on gradients."""
    atoms = decoder[indices]
    if not is_fitted:
        values = (encoder[indices] @ unit[:, :, None])[..., 0] + bias[indices]
        return values, _decoded(values, atoms)
    system = atoms @ atoms.mT + RIDGE * torch.eye(indices.shape[1], dtype=unit.dtype, device=unit.device)
    correlations = atoms @ unit[:, :, None]
    values = torch.linalg.solve(system, correlations)[..., 0]
    # s G s = s (c - ridge s), as s solves the system
    squares = (values * (correlations[..., 0] - RIDGE * values)).sum(dim=1, keepdim=True)
    # the gradient of a root is infinite at 0, where a row is all zero
    is_positive = squares > 0
    return values, torch.where(is_positive, squares, torch.ones_like(squares)).sqrt() * is_positive


def _decoded(values: torch.Tensor, atoms: torch.Tensor) -> torch.Tensor:
    """Return the norms, (n_rows, 1), of what values decode to, whose squares may leave float32."""
    scale = values.detach().abs().amax(dim=1, keepdim=True)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return ((values / scale)[:, None, :] @ atoms)[:, 0].norm(dim=1, keepdim=True) * scale


def _unit_rows(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Divide rows by their norms, zero rows by 1; return both. Squares are of x / max |x|, which cannot overflow."""
    largest = rows.abs().amax(dim=1, keepdim=True)
    one = torch.ones_like(largest)
    scaled = rows / torch.where(largest > 0, largest, one)
    lengths = scaled.norm(dim=1, keepdim=True)
    return scaled / torch.where(largest > 0, lengths, one), largest * lengths
