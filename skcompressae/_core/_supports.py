"""Decide which candidate latents are in a row's code, so that a code depends on its row alone.

A matrix product rounds a row differently in batches of different sizes, and more so in reduced precision. It proposes;
activations recomputed in a fixed order decide. Where only the support is wanted, no candidate needs to be recomputed
whose place among the k largest no rounding error could change, and in float32 those are nearly all.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from skcompressae._core._arrays import FloatArray, IndexArray
from skcompressae._core._compiling import njit, readable
from skcompressae._core._gathers import FAST, dot, dots
from skcompressae._core._threads import run_blocks
from skcompressae._core._topk import kth_largest, write_largest

__all__ = [
    "activation_codes",
    "candidate_activations",
    "compute_activations",
    "rounding_margin",
    "supports",
]


@njit(nogil=True, fastmath=FAST)
def compute_activations(
    x: Any, encoder: Any, bias: Any, divisors: Any, picks: Any, n_picks: Any, activations: Any
) -> None:
    """Write the activations of the latents ``picks[:n_picks]`` for one row, in a fixed order of summation."""
    dots(x, encoder, picks, n_picks, activations)
    for p in range(n_picks):
        if divisors.shape[0] > 0:
            activations[p] /= divisors[picks[p]]
        activations[p] += bias[picks[p]]


@njit(nogil=True, fastmath=FAST)
def _write_activation_codes(
    x: Any, encoder: Any, bias: Any, divisors: Any, candidates: Any, k: int,
    start: Any, stop: Any, indices: Any, values: Any,
) -> None:  # fmt: skip
    """Write the k largest of the candidates' activations, recomputed, for the rows ``start:stop``."""
    n_candidates = candidates.shape[1]
    activations = np.empty(n_candidates, dtype=x.dtype)
    magnitudes = np.empty(n_candidates, dtype=x.dtype)
    scratch = np.empty(n_candidates, dtype=x.dtype)
    for i in range(start, stop):
        compute_activations(x[i], encoder, bias, divisors, candidates[i], n_candidates, activations)
        for c in range(n_candidates):
            magnitudes[c] = abs(activations[c])
        write_largest(candidates[i], activations, magnitudes, n_candidates, k, scratch, indices[i], values[i])


def activation_codes(
    x: FloatArray,
    encoder: FloatArray,
    bias: FloatArray,
    candidates: IndexArray,
    k: int,
    *,
    n_threads: int,
    divisors: FloatArray | None = None,
) -> tuple[IndexArray, FloatArray]:
    """Recompute the pre-activations of each row's candidates, in a fixed order, and keep the k largest magnitudes.

    Parameters
    ----------
    x : array of shape (n_rows, n_features), unit-norm rows
    encoder : array of shape (n_components, n_features)
    bias : array of shape (n_components,)
    candidates : int32 array of shape (n_rows, n_candidates), ascending in each row
    k : int in [1, n_candidates]
    n_threads : int
    divisors : array of shape (n_components,), optional
        What products are divided by before the bias is added.

    Returns
    -------
    indices : array of shape (n_rows, k), int32, ascending in each row
    values : array of shape (n_rows, k)
    """
    indices = np.empty((len(x), k), dtype=np.int32)
    values = np.empty((len(x), k), dtype=x.dtype)
    divided = np.empty(0, dtype=x.dtype) if divisors is None else divisors
    run_blocks(
        lambda start, stop: _write_activation_codes(
            x, encoder, bias, divided, candidates, k, start, stop, indices, values
        ),
        len(x),
        64,
        n_threads,
    )
    return indices, values


@njit(nogil=True, fastmath=FAST)
def _candidate_activations(x, encoder, bias, candidates, start, stop, activations):  # type: ignore[no-untyped-def]
    for i in range(start, stop):
        dots(x[i], encoder, candidates[i], candidates.shape[1], activations[i])
        for c in range(candidates.shape[1]):
            activations[i, c] += bias[candidates[i, c]]


def candidate_activations(
    x: FloatArray, encoder: FloatArray, bias: FloatArray, candidates: IndexArray, *, n_threads: int
) -> FloatArray:
    """Recompute the pre-activations of each row's candidates, in a fixed order; arguments as in `activation_codes`."""
    activations = np.empty(candidates.shape, dtype=x.dtype)
    encoder = readable(encoder)
    run_blocks(
        lambda start, stop: _candidate_activations(x, encoder, bias, candidates, start, stop, activations),
        len(x),
        64,
        n_threads,
    )
    return activations


@njit(nogil=True, fastmath=FAST)
def _largest_norm(rows):  # type: ignore[no-untyped-def]
    largest = rows.dtype.type(0)
    for i in range(rows.shape[0]):
        largest = max(largest, dot(rows[i], rows[i]))
    return np.sqrt(largest)


def rounding_margin(encoder: FloatArray, bias: FloatArray) -> float:
    """Bound the difference of one activation of a unit row between two orders of summation in the encoder's dtype.

    Each order is off by at most ``gamma_n |x||w|``, about n times half the machine epsilon, with n = d + 2 for the bias
    and the rounding of the row's norm (Higham, "Accuracy and Stability of Numerical Algorithms", 2nd ed., section 3.1).
    """
    scale = float(_largest_norm(encoder)) + float(np.abs(bias).max())
    return (encoder.shape[1] + 2) * float(np.finfo(encoder.dtype).eps) * scale


@njit(nogil=True, fastmath=FAST)
def _supports(x, encoder, bias, candidates, proposed, margin, k, start, stop, indices):  # type: ignore[no-untyped-def]
    n_candidates = candidates.shape[1]
    magnitudes = np.empty(n_candidates, dtype=x.dtype)
    unsure = np.empty(n_candidates, dtype=np.int32)
    place = np.empty(n_candidates, dtype=np.int64)
    is_chosen = np.empty(n_candidates, dtype=np.bool_)
    for i in range(start, stop):
        for c in range(n_candidates):
            magnitudes[c] = abs(proposed[i, c])
        following = kth_largest(magnitudes, n_candidates, k + 1)
        kth = kth_largest(magnitudes, n_candidates, k)
        n_open, n_unsure = k, 0
        for c in range(n_candidates):
            magnitude = abs(proposed[i, c])
            is_chosen[c] = magnitude > following + 2 * margin
            if is_chosen[c]:
                n_open -= 1
            elif magnitude >= kth - 2 * margin:
                unsure[n_unsure] = candidates[i, c]
                place[n_unsure] = c
                n_unsure += 1
        if n_unsure == n_open:
            for u in range(n_unsure):
                is_chosen[place[u]] = True
        else:
            activations = magnitudes  # no longer needed
            dots(x[i], encoder, unsure, n_unsure, activations)
            for u in range(n_unsure):
                activations[u] = abs(activations[u] + bias[unsure[u]])
            for _ in range(n_open):
                best = 0
                for u in range(1, n_unsure):
                    if activations[u] > activations[best]:  # of equals the lowest index
                        best = u
                is_chosen[place[best]] = True
                activations[best] = -1
        written = 0
        for c in range(n_candidates):
            if is_chosen[c]:
                indices[i, written] = candidates[i, c]
                written += 1


def supports(
    x: FloatArray,
    encoder: FloatArray,
    bias: FloatArray,
    candidates: IndexArray,
    proposed: FloatArray,
    margin: float,
    k: int,
    *,
    n_threads: int,
) -> IndexArray:
    """Return the indices that :func:`activation_codes` would, recomputing only what `margin` leaves open.

    Parameters
    ----------
    x, encoder, bias, candidates, k, n_threads
        As :func:`activation_codes` takes them.
    proposed : array of shape (n_rows, n_candidates)
        The candidates' activations, each within `margin` of what is recomputed.
    margin : float

    Returns
    -------
    indices : array of shape (n_rows, k), int32, ascending in each row
    """
    if candidates.shape[1] == k:
        return candidates
    indices = np.empty((len(x), k), dtype=np.int32)
    bound = x.dtype.type(margin)
    run_blocks(
        lambda start, stop: _supports(x, encoder, bias, candidates, proposed, bound, k, start, stop, indices),
        len(x),
        64,
        n_threads,
    )
    return indices
