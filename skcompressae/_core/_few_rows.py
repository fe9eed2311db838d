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
from skcompressae._core._pursuit import RIDGE, Inexact, pursue_rows, pursuit_rounds, refit_rows
from skcompressae._core._rows import divide_by_norms, scale_code_rows, write_decoded_norms
from skcompressae._core._supports import write_activation_codes
from skcompressae._core._topk import top_k_rows

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


@njit(nogil=True)
def _propose(rows: Any, encoder: Any, bias: Any, divisors: Any, n_candidates: int, norms: Any) -> Any:
    """Write the norms of rows; return unit rows, their candidates and the activations of those."""
    n_rows, n_components = rows.shape[0], encoder.shape[0]
    unit = np.empty(rows.shape, dtype=rows.dtype)
    divide_by_norms(rows, unit, norms)
    for i in range(n_rows):
        if np.isnan(norms[i]):  # refused in the end; kernels that assume numbers must not choose by it
            unit[i] = 0
    products = np.empty((n_rows, n_components), dtype=rows.dtype)
    multiply_rows(unit, encoder, 0, n_components, products)
    if divisors.shape[0] > 0:
        for i in range(n_rows):
            for j in range(n_components):
                products[i, j] /= divisors[j]
    candidates = np.empty((n_rows, n_candidates), dtype=np.int32)
    activations = np.empty((n_rows, n_candidates), dtype=rows.dtype)
    top_k_rows(products, bias, True, n_candidates, 0, n_rows, candidates, activations)
    return unit, candidates, activations


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
    rows: Any, encoder: Any, bias: Any, divisors: Any, decoder: Any, n_candidates: int, rounds: Any, exact: Any,
    ridge: Any, flattening: Any, is_scaled: bool, is_of_input: bool, norms: Any, indices: Any, values: Any,
) -> bool:  # fmt: skip
    n_rows, k = indices.shape
    unit, candidates, activations = _propose(rows, encoder, bias, divisors, n_candidates, norms)
    fitted = np.empty((n_rows, k), dtype=rows.dtype)
    decoded = np.empty(n_rows, dtype=rows.dtype)
    pursue_rows(
        unit, decoder, candidates, activations, exact, k, rounds, ridge, flattening, 0, n_rows, indices, fitted, decoded
    )
    return _scale(indices, fitted, decoded, norms, is_scaled, is_of_input, flattening.keeps_mean, values)


@njit(nogil=True)
def _choose_few(
    rows: Any, encoder: Any, bias: Any, divisors: Any, decoder: Any, n_candidates: int, is_fitted: bool,
    ridge: Any, flattening: Any, is_scaled: bool, is_of_input: bool, norms: Any, indices: Any, values: Any,
) -> bool:  # fmt: skip
    n_rows, k = indices.shape
    unit, candidates, _ = _propose(rows, encoder, bias, divisors, n_candidates, norms)
    chosen = np.empty((n_rows, k), dtype=rows.dtype)
    write_activation_codes(unit, encoder, bias, divisors, candidates, k, 0, n_rows, indices, chosen)
    decoded = np.empty(n_rows)
    if is_fitted:
        fitted_norms = np.empty(n_rows, dtype=rows.dtype)
        refit_rows(unit, decoder, indices, ridge, flattening, 0, n_rows, chosen, fitted_norms)
        for i in range(n_rows):
            decoded[i] = fitted_norms[i]
    else:
        write_decoded_norms(decoder, indices, chosen, 0, n_rows, decoded)
    return _scale(indices, chosen, decoded, norms, is_scaled, is_of_input, flattening.keeps_mean, values)


def encode_few(
    rows: FloatArray,
    encoder: FloatArray,
    bias: FloatArray,
    decoder: FloatArray,
    k: int,
    n_candidates: int,
    *,
    coding: str,
    divisors: FloatArray | None,
    flattening: Flattening,
    norm: str | None,
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
        With "pursuit" more than k.
    coding : {"pursuit", "least_squares", "activations"}
    divisors : array of shape (n_components,), float32, or None
        What products are divided by before the bias is added.
    flattening : Flattening
    norm : {"input", "unit", None}
    """
    indices = np.empty((len(rows), k), dtype=np.int32)
    values = np.empty((len(rows), k), dtype=np.float32)
    norms = np.empty(len(rows))
    proposing = rows, encoder, bias, _NONE if divisors is None else divisors, decoder, n_candidates
    scaling = _RIDGE, flattening, norm is not None, norm == "input", norms, indices, values
    if coding == "pursuit":
        is_finite = _pursue_few(*proposing, pursuit_rounds(k), _EXACT, *scaling)
    else:
        is_finite = _choose_few(*proposing, coding == "least_squares", *scaling)
    return FewCodes(indices, values, norms, is_finite)
