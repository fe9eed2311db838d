"""Encode a few rows in one call of one kernel, for services that encode row after row.

Between the stages of a block there are a dozen calls of Python functions. While a row meets the encoder, which is
larger than the caches of a core, their code leaves those, and then takes as long as the kernels that they call.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from skcompressae._core._arrays import FloatArray, IndexArray
from skcompressae._core._compiling import njit
from skcompressae._core._few_products import multiply_rows
from skcompressae._core._flattening import Flattening
from skcompressae._core._kept_rounding import (
    MAX_RECOMPUTED,
    NEAR_TIES,
    NOT_KEPT,
    OTHER_WEIGHTS,
    KeptEncoder,
    is_kept,
    multiply_kept,
    rule_out,
)
from skcompressae._core._pursuit import RIDGE, Inexact, pursue_rows, pursuit_rounds, refit_rows
from skcompressae._core._rows import divide_by_norms, scale_code_rows, write_decoded_norms
from skcompressae._core._screening import RoundedRows
from skcompressae._core._supports import compute_activations
from skcompressae._core._topk import top_k_rows, write_largest

__all__ = ["FewCodes", "encode_few"]

_RIDGE = np.float32(RIDGE)
_NONE = np.empty(0, dtype=np.float32)
_EXACT = Inexact(_NONE, np.empty((0, 0), dtype=np.float32), _NONE)


class FewCodes(NamedTuple):
    """Codes of a few rows, and what is known of them."""

    indices: IndexArray  # (n_rows, k), ascending in each row
    values: FloatArray  # (n_rows, k), float32
    norms: NDArray[np.float64]  # (n_rows,), of the rows
    is_finite: bool  # whether all rows were, and all values are: scaled to norms of the rows they may not be
    outcome: int  # activations computed again by way of a kept encoder, OTHER_WEIGHTS or NEAR_TIES; 0 without one


@njit(nogil=True, inline="always")  # compiled once with what calls it, instead of twice
def _choose(rows: Any, encoder: Any, bias: Any, divisors: Any, kept: Any, n: int, n_proposed: int, norms: Any) -> Any:
    """Write the norms of rows; return unit rows, their n latents of largest activation, the activations, and `outcome`.

    A product proposes latents, of the encoder or, where there is one, of what is kept of it. Activations are computed
    in a fixed order, for a code to be the same in every call.
    """
    n_rows, n_components = rows.shape[0], encoder.shape[0]
    kind = rows.dtype.type
    unit = np.empty(rows.shape, dtype=kind)
    divide_by_norms(rows, unit, norms)
    for i in range(n_rows):
        if np.isnan(norms[i]):  # refused in the end; kernels that assume numbers must not choose by it
            unit[i] = 0
    products = np.empty((n_rows, n_components), dtype=kind)
    rounded = RoundedRows(np.empty(n_rows, dtype=kind), np.empty(n_rows, dtype=kind), np.empty(n_rows, dtype=kind))
    chosen = np.empty((n_rows, n), dtype=np.int32)
    activations = np.empty((n_rows, n), dtype=kind)
    is_rounded = is_kept(kept, encoder, bias, divisors)
    outcome = 0 if is_rounded or kept.integers.shape[0] == 0 else OTHER_WEIGHTS
    while True:
        if is_rounded:
            multiply_kept(unit, kept, rounded, products)
            n_picks = min(n_components, 2 * n)
        else:
            multiply_rows(unit, encoder, 0, n_components, products)
            if divisors.shape[0] > 0:
                for i in range(n_rows):
                    for j in range(n_components):
                        products[i, j] /= divisors[j]
            n_picks = n_proposed
        picks = np.empty((n_rows, n_picks), dtype=np.int32)
        proposed = np.empty((n_rows, n_picks), dtype=kind)
        top_k_rows(products, bias, True, n_picks, 0, n_rows, picks, proposed)
        left, errors = np.empty(n_components, dtype=np.int32), np.empty(n_components, dtype=kind)
        computed, magnitudes = np.empty(n_components, dtype=kind), np.empty(n_components, dtype=kind)
        scratch = np.empty(n_components, dtype=kind)
        n_done = 0
        for i in range(n_rows):
            n_left = n_picks
            if is_rounded:
                n_left = rule_out(products[i], picks[i], n, kept, rounded, i, left, errors)
                if n_left > MAX_RECOMPUTED * n:
                    outcome = NEAR_TIES
                    break
            else:
                for c in range(n_picks):
                    left[c] = picks[i, c]
            compute_activations(unit[i], encoder, bias, divisors, left, n_left, computed)
            n_violations = 0
            for c in range(n_left):
                magnitudes[c] = abs(computed[c])
                n_violations += int(is_rounded and abs(computed[c] - products[i, left[c]]) > errors[c])
            if n_violations > 0:
                outcome = OTHER_WEIGHTS
                break
            write_largest(left, computed, magnitudes, n_left, n, scratch, chosen[i], activations[i])
            outcome += n_left * int(is_rounded)
            n_done += 1
        if n_done == n_rows:
            break
        is_rounded = False
    return unit, chosen, activations, outcome


@njit(nogil=True)
def _scale(
    indices: Any, fitted: Any, decoded: Any, norms: Any, is_scaled: bool, is_of_input: bool, keeps_mean: bool,
    values: Any,
) -> bool:  # fmt: skip
    """Scale values to a norm, if to any, and return whether all of them, and the rows, are finite."""
    wanted = np.empty(norms.shape[0])
    for i in range(norms.shape[0]):
        if np.isnan(norms[i]):
            return False
        wanted[i] = norms[i] if is_of_input else np.float64(norms[i] > 0)
        if not is_scaled:
            decoded[i] = 0  # which multiplies values by what is wanted alone
    scale_code_rows(indices, fitted, decoded, wanted, keeps_mean, values)
    for i in range(values.shape[0]):
        for a in range(values.shape[1]):
            if not np.isfinite(values[i, a]):
                return False
    return True


@njit(nogil=True)
def _pursue_few(
    rows: Any, encoder: Any, bias: Any, divisors: Any, kept: Any, n: int, n_proposed: int, decoder: Any, rounds: Any,
    exact: Any, ridge: Any, flattening: Any, is_scaled: bool, is_of_input: bool, norms: Any, indices: Any, values: Any,
) -> Any:  # fmt: skip
    n_rows, k = indices.shape
    unit, candidates, activations, outcome = _choose(rows, encoder, bias, divisors, kept, n, n_proposed, norms)
    fitted = np.empty((n_rows, k), dtype=rows.dtype)
    decoded, pivots = np.empty(n_rows, dtype=rows.dtype), np.empty(n_rows, dtype=rows.dtype)
    pursue_rows(
        unit, decoder, candidates, activations, exact, k, rounds, ridge, flattening, 0, n_rows, indices, fitted,
        decoded, pivots,
    )  # fmt: skip
    is_finite = _scale(indices, fitted, decoded, norms, is_scaled, is_of_input, flattening.keeps_mean, values)
    return is_finite, outcome


@njit(nogil=True)
def _choose_few(
    rows: Any, encoder: Any, bias: Any, divisors: Any, kept: Any, n: int, n_proposed: int, decoder: Any,
    is_fitted: bool, ridge: Any, flattening: Any, is_scaled: bool, is_of_input: bool, norms: Any, indices: Any,
    values: Any,
) -> Any:  # fmt: skip
    n_rows = indices.shape[0]
    unit, chosen, found, outcome = _choose(rows, encoder, bias, divisors, kept, n, n_proposed, norms)
    for i in range(n_rows):
        for a in range(n):
            indices[i, a] = chosen[i, a]
    decoded = np.empty(n_rows)
    if is_fitted:
        fitted_norms, pivots = np.empty(n_rows, dtype=rows.dtype), np.empty(n_rows, dtype=rows.dtype)
        refit_rows(unit, decoder, indices, ridge, flattening, 0, n_rows, found, fitted_norms, pivots)
        for i in range(n_rows):
            decoded[i] = fitted_norms[i]
    else:
        write_decoded_norms(decoder, indices, found, 0, n_rows, decoded)
    is_finite = _scale(indices, found, decoded, norms, is_scaled, is_of_input, flattening.keeps_mean, values)
    return is_finite, outcome


def encode_few(
    rows: FloatArray,
    encoder: FloatArray,
    bias: FloatArray,
    decoder: FloatArray,
    k: int,
    n_candidates: int,
    n_proposed: int,
    *,
    coding: str,
    divisors: FloatArray | None,
    flattening: Flattening,
    norm: str | None,
    kept: KeptEncoder = NOT_KEPT,
) -> FewCodes:
    """Encode rows on the calling thread, stage by stage as `Encoder.encode_blocks` does.

    Parameters
    ----------
    rows : C-contiguous array of shape (n_rows, n_features), float32
        Of any scale.
    encoder, decoder : C-contiguous arrays of shape (n_components, n_features), float32
    bias : array of shape (n_components,), float32
    k : int
    n_candidates : int in [k, n_components]
        Of largest activation, of which the pursuit picks k; else they are the code, and k.
    n_proposed : int in [n_candidates, n_components]
        By a product whose rounding must not decide between the first.
    coding : {"pursuit", "least_squares", "activations"}
    divisors : array of shape (n_components,), float32, or None
        What products are divided by before the bias is added.
    flattening : Flattening
    norm : {"input", "unit", None}
    kept : KeptEncoder, default=NOT_KEPT
        `encoder` as it was kept.
    """
    indices = np.empty((len(rows), k), dtype=np.int32)
    values = np.empty((len(rows), k), dtype=np.float32)
    norms = np.empty(len(rows))
    weights = rows, encoder, bias, _NONE if divisors is None else divisors, kept, n_candidates, n_proposed, decoder
    scaling = _RIDGE, flattening, norm is not None, norm == "input", norms, indices, values
    if coding == "pursuit":
        is_finite, outcome = _pursue_few(*weights, pursuit_rounds(k), _EXACT, *scaling)
    else:
        is_finite, outcome = _choose_few(*weights, coding == "least_squares", *scaling)
    return FewCodes(indices, values, norms, is_finite, outcome)
