"""Fit codes against a decoder rounded to integers, and again against the decoder itself where rounding tells.

Products of rounded rows are off by some 1e-5 (`_integer_rows.py`). A fit divides that by how far its latents are from
lying in each other's span, and a norm of what values decode to, by what they cancel of one another.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from skcompressae._core._arrays import FloatArray, IndexArray
from skcompressae._core._flattening import Flattening
from skcompressae._core._pursuit import Inexact, least_squares_codes, pursuit_codes

__all__ = ["fit_codes"]

Codes = tuple[IndexArray, FloatArray, FloatArray]

# Squared distance of a decoder row to the span of others in the code, from which values are off by some 1e-3.
_MIN_PIVOT = 0.02
# How many times the squared norm of what they decode to the squares of values may be, for that norm to be told to 1e-4.
_MAX_CANCELLED = 4.0
# Squared norm of what the latents beside the mean's decode to, from which stretching them alone is off by some 1e-3.
_MIN_STRETCHED = 0.005


def fit_codes(
    x: FloatArray,
    decoder: FloatArray,
    rounded: IndexArray | None,
    candidates: IndexArray,
    activations: FloatArray | None,
    k: int,
    *,
    n_threads: int,
    flattening: Flattening,
    inexact: Inexact | None = None,
) -> Codes:
    """Fit values of k of the candidates to each row.

    Parameters
    ----------
    x : float32 array of shape (n_rows, n_features), unit-norm rows
    decoder : float32 array of shape (n_components, n_features), unit-norm rows
    rounded : int16 array, optional
        `decoder` as `round_decoder` returns it, for rows where that does not tell.
    candidates : int32 array of shape (n_rows, n_candidates), ascending and distinct in each row
    activations : float32 array of shape (n_rows, n_candidates), optional
        Pre-activations of the candidates, for a pursuit. Without them all are kept, k of them, by least squares.
    k : int
    n_threads : int
    flattening : Flattening
    inexact : Inexact, optional
        How far the activations may be off.

    Returns
    -------
    indices : int32 array of shape (n_rows, k), ascending in each row
    values : float32 array of shape (n_rows, k)
    norms : float32 array of shape (n_rows,)
        L2 norm of each row's reconstruction.
    """

    def fit(rows: Any, by: FloatArray | IndexArray, pivots: FloatArray | None) -> Codes:
        if activations is None:
            fitted = least_squares_codes(
                x[rows], by, candidates[rows], n_threads=n_threads, flattening=flattening, pivots=pivots
            )
            return candidates[rows], *fitted
        errors = None if inexact is None else inexact._replace(errors=inexact.errors[rows])
        return pursuit_codes(
            x[rows],
            by,
            candidates[rows],
            activations[rows],
            k,
            n_threads=n_threads,
            inexact=errors,
            flattening=flattening,
            pivots=pivots,
        )

    everything = slice(None)
    if rounded is None:
        return fit(everything, decoder, None)
    pivots = np.empty(len(x), dtype=x.dtype)
    indices, values, norms = fit(everything, rounded, pivots)
    explained = norms * norms
    tells = (pivots < _MIN_PIVOT) | (np.einsum("ij,ij->i", values, values) > _MAX_CANCELLED * explained)
    if flattening.keeps_mean:
        tells |= explained - np.where(indices[:, 0] == 0, values[:, 0] ** 2, 0) < _MIN_STRETCHED
    if tells.any():
        again = np.flatnonzero(tells)
        indices[again], values[again], norms[again] = fit(again, decoder, None)
    return indices, values, norms
