"""Fitted values drawn together: magnitudes to the power of 1 - strength r, r what the fit leaves of a unit row.

docs/research_notes_sparse.md says what that brings. Where values cancel one another, as where k is near the number of
features, changing them would undo that: there r is divided by how many times their squares exceed the square of what
they decode to.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from skcompressae._core._chosen_rows import add_rows
from skcompressae._core._compiling import njit
from skcompressae._core._gathers import FAST, dot

__all__ = ["AS_FITTED", "MIN_LEFT", "Flattening", "flatten_row"]

# Squared norm of what a code leaves of a unit row, below which it is what the ridge and float32 leave.
MIN_LEFT = 3e-5
# How many times what they decode to the squares of values may be, for the Gram matrix in float32 to tell their norm.
_MAX_CANCELLED = 4.0


class Flattening(NamedTuple):
    """How far values are drawn together."""

    strength: float  # in [0, 1)
    keeps_mean: bool  # whether latent 0 stays as it is, see `scale_codes`


AS_FITTED = Flattening(0.0, False)


@njit(nogil=True, fastmath=FAST)
def _gram_square(gram: Any, values: Any) -> Any:
    """Return the squared norm of what values decode to."""
    total = gram.dtype.type(0)
    for a in range(values.shape[0]):
        total += values[a] * dot(gram[a], values)
    return total


@njit(nogil=True)
def flatten_row(gram: Any, decoder: Any, latents: Any, values: Any, norm: Any, flattening: Any, x_hat: Any) -> Any:
    """Draw the values of a unit row's code together, in place.

    Parameters
    ----------
    gram : array of shape (k, k), the inner products of the decoder's rows of the latents
    decoder : array of shape (n_components, n_features)
    latents, values : arrays of shape (k,)
    norm : the L2 norm of what the values decode to
    flattening : Flattening
    x_hat : array of shape (n_features,), overwritten

    Returns
    -------
    norm : the L2 norm of what they decode to now
    """
    explained = np.float64(norm) ** 2
    left = 1.0 - explained
    squares = 0.0
    for a in range(values.shape[0]):
        squares += np.float64(values[a]) ** 2
    if flattening.strength == 0 or left <= MIN_LEFT or squares == 0:
        return norm
    power = 1.0 - flattening.strength * np.sqrt(min(left, 1.0)) * min(1.0, explained / squares)
    for a in range(values.shape[0]):
        if not (flattening.keeps_mean and latents[a] == 0):
            value = np.float64(values[a])
            values[a] = np.copysign(abs(value) ** power, value)
    if squares > _MAX_CANCELLED * explained:
        x_hat[:] = 0
        add_rows(x_hat, decoder, values, latents, values.shape[0])
        return np.sqrt(dot(x_hat, x_hat))
    return np.sqrt(max(_gram_square(gram, values), gram.dtype.type(0)))
