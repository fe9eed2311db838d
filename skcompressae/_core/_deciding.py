"""Decide which survivors of a screening are among the latents of largest activation.

Activations are computed again in float32, in a fixed order, so that they depend on the row alone: those of all
survivors, or, where only the choice is wanted, those whose place the bounds of their errors leave open.

Invariant: the latents are those that a selection among the recomputed activations of all latents would return. Where
reduced precision was asked for, activations of the rounded product may decide instead, as `n_decided_by_product` says.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from skcompressae._core._arrays import FloatArray, IndexArray
from skcompressae._core._compiling import njit
from skcompressae._core._screening import ErrorBounds, RoundedRows, Survivors, error_bound
from skcompressae._core._supports import compute_activations
from skcompressae._core._threads import run_blocks
from skcompressae._core._topk import kth_largest, write_largest

__all__ = ["ALL", "MANY", "OPEN", "decide", "n_decided_by_product"]

# Which survivors are computed again: all; those whose place is open; all, but only of rows with many survivors.
ALL, OPEN, MANY = range(3)
# Survivors per latent asked for that are not many yet.
_FEW_SURVIVORS = 3


def n_decided_by_product(n: int, computes: int) -> int:
    """Return how many survivors of a row may be left for activations of the rounded product to decide between n."""
    return _FEW_SURVIVORS * n if computes == MANY else 0


@njit(nogil=True)
def _decide(
    x: Any,
    encoder: Any,
    bias: Any,
    divisors: Any,
    rounded: Any,
    bounds: Any,
    n: Any,
    computes: Any,
    n_decided: Any,
    start: Any,
    stop: Any,
    survivors: Any,
    indices: Any,
    values: Any,
    errors: Any,
) -> int:
    n_components = len(encoder)
    everything = np.arange(n_components).astype(np.int32)
    activations = np.empty(n_components, dtype=np.float32)
    magnitudes = np.empty(n_components, dtype=np.float32)
    computed = np.empty(n_components, dtype=np.float32)
    scratch = np.empty(n_components, dtype=np.float32)
    own_bounds = np.empty(n_components, dtype=np.float32)
    unsure = np.empty(n_components, dtype=np.int32)
    places = np.empty(n_components, dtype=np.int64)
    n_violations = 0
    for i in range(start, stop):
        n_picks = np.int64(survivors.counts[i])  # as counts are elsewhere: selections are compiled for each type
        picks, proposed = survivors.latents[i], survivors.activations[i]
        errors[i] = np.float32(0)
        if n_picks > len(picks):
            n_violations += n_picks > n_components
            compute_activations(x[i], encoder, bias, divisors, everything, n_components, activations)
            for c in range(n_components):
                magnitudes[c] = abs(activations[c])
            write_largest(everything, activations, magnitudes, n_components, n, scratch, indices[i], values[i])
            continue
        if n_picks <= n_decided:
            compute_activations(x[i], encoder, bias, divisors, picks, 1, computed)  # do the bounds hold?
            error = error_bound(bounds, picks[0], rounded, i) + bounds.share * abs(proposed[0])
            n_violations += abs(computed[0] - proposed[0]) > error
            if n_picks == n:
                for c in range(n):
                    indices[i, c], values[i, c] = picks[c], proposed[c]
                continue
            for c in range(n_picks):
                magnitudes[c] = abs(proposed[c])
            write_largest(picks, proposed, magnitudes, n_picks, n, scratch, indices[i], values[i])
            continue
        for c in range(n_picks):
            magnitude = abs(proposed[c])
            own_bounds[c] = error_bound(bounds, picks[c], rounded, i) + bounds.share * magnitude
            scratch[c] = magnitude + own_bounds[c]
        # no more than n can reach what one exceeds that is larger than this
        following = np.float32(-np.inf if computes == OPEN else np.inf)
        if n_picks > n and computes == OPEN:
            following = kth_largest(scratch, n_picks, n + 1)
        n_unsure = 0
        for c in range(n_picks):
            if abs(proposed[c]) - own_bounds[c] > following:
                errors[i] = max(errors[i], own_bounds[c])
                activations[c], magnitudes[c] = proposed[c], np.float32(np.inf)
            else:
                unsure[n_unsure], places[n_unsure] = picks[c], c
                n_unsure += 1
        compute_activations(x[i], encoder, bias, divisors, unsure, n_unsure, computed)
        for u in range(n_unsure):
            c = places[u]
            activations[c], magnitudes[c] = computed[u], abs(computed[u])
            n_violations += abs(computed[u] - proposed[c]) > own_bounds[c]
        write_largest(picks, activations, magnitudes, n_picks, n, scratch, indices[i], values[i])
    return n_violations


def decide(
    x: FloatArray,
    encoder: FloatArray,
    bias: FloatArray,
    rounded: RoundedRows,
    bounds: ErrorBounds,
    survivors: Survivors,
    n: int,
    *,
    n_threads: int,
    divisors: FloatArray | None = None,
    computes: int = ALL,
) -> tuple[IndexArray, FloatArray, FloatArray, int]:
    """Return the n largest activations of each row, survivors computed again in float32.

    Parameters
    ----------
    x : float32 array of shape (n_rows, n_features)
        Unit (or zero) rows.
    bias, rounded, bounds, n, survivors
        As in :func:`~skcompressae._core._screening.survive`.
    encoder : float32 array of shape (n_components, n_features)
    n_threads : int
    divisors : float32 array of shape (n_components,), optional
        As in :func:`~skcompressae._core._screening.error_bounds`.
    computes : {ALL, OPEN, MANY}, default=ALL
        Compute all survivors again; or only those that might or might not be among the n largest; or all, but only of
        rows of which more survived than `n_decided_by_product` allows.

    Returns
    -------
    indices : int32 array of shape (n_rows, n), ascending in each row
    values : float32 array of shape (n_rows, n)
        The activations, as `candidate_activations` computes them, or those of the rounded product.
    errors : float32 array of shape (n_rows,)
        How far any of a row's activations may be off, where that matters; 0 where all were computed again, or none.
    n_violations : int
        How many of those computed again the product had further off than the bounds allow: 0, unless products are
        worse than assumed.
    """
    indices = np.empty((len(x), n), dtype=np.int32)
    values = np.empty((len(x), n), dtype=np.float32)
    errors = np.empty(len(x), dtype=np.float32)
    divided = np.empty(0, dtype=np.float32) if divisors is None else divisors
    shared = x, encoder, bias, divided, rounded, bounds, n, computes, n_decided_by_product(n, computes)
    counts: list[int] = []
    run_blocks(
        lambda start, stop: counts.append(_decide(*shared, start, stop, survivors, indices, values, errors)),
        len(x),
        64,
        n_threads,
    )
    return indices, values, errors, sum(counts)
