"""What a refined pursuit chooses from: the latents of a code, and those that correlate most with what it leaves.

A pursuit sees only candidates that the encoder proposed. Afterwards ``|D (x - s D)|`` tells which of all latents would
explain most of the rest. As many of those as the code has, beside its own, are the candidates of another pursuit, as in
subspace pursuit (Dai and Milenkovic 2009); `docs/recipes.md` says what it brings.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from skcompressae._core._arrays import FloatArray, IndexArray
from skcompressae._core._chosen_rows import add_rows
from skcompressae._core._compiling import njit
from skcompressae._core._gathers import FAST, dot
from skcompressae._core._threads import run_blocks

__all__ = ["ABOVE_ALL", "N_REFINEMENTS", "count_refined", "merged_candidates", "unexplained_rows"]

# How often a code is refined. The second time gains less than the first, a third next to nothing
# (docs/research_notes_sparse.md).
N_REFINEMENTS = 2
# More than what a code leaves of a unit row can correlate with a decoder row: where all latents are scored at once, it
# puts a code's own before the others.
ABOVE_ALL = 4.0
_BLOCK_ROWS = 64


def count_refined(k: int, n_components: int) -> int:
    """Return how many candidates a refinement chooses k from."""
    return min(2 * k, n_components)


@njit(nogil=True, fastmath=FAST)
def _unexplained_rows(
    x: Any, decoder: Any, indices: Any, values: Any, start: int, stop: int, rest: Any, norms: Any
) -> None:
    kind = x.dtype.type
    negative = np.empty(values.shape[1], dtype=x.dtype)
    for i in range(start, stop):
        for a in range(values.shape[1]):
            negative[a] = -values[i, a]
        rest[i] = x[i]
        add_rows(rest[i], decoder, negative, indices[i], indices.shape[1])
        norm = np.sqrt(dot(rest[i], rest[i]))
        norms[i] = norm
        inverse = kind(1) / norm if norm > 0 else kind(0)
        for j in range(x.shape[1]):
            rest[i, j] *= inverse


def unexplained_rows(
    x: FloatArray, decoder: FloatArray | IndexArray, indices: IndexArray, values: FloatArray, *, n_threads: int
) -> tuple[FloatArray, FloatArray]:
    """Return what codes leave of their rows, divided by its norm.

    Parameters
    ----------
    x : array of shape (n_rows, n_features)
    decoder : array of shape (n_components, n_features), of the dtype of `x`, or integers of `round_decoder`
    indices, values : arrays of shape (n_rows, k)
    n_threads : int

    Returns
    -------
    rest : array of shape (n_rows, n_features)
        Rows of norm 1, or 0 where nothing is left.
    norms : array of shape (n_rows,)
    """
    rest, norms = np.empty_like(x), np.empty(len(x), dtype=x.dtype)
    run_blocks(
        lambda start, stop: _unexplained_rows(x, decoder, indices, values, start, stop, rest, norms),
        len(x),
        _BLOCK_ROWS,
        n_threads,
    )
    return rest, norms


@njit(nogil=True)
def _merge_rows(
    indices: Any,
    values: Any,
    proposed: Any,
    correlations: Any,
    norms: Any,
    n_components: int,
    start: int,
    stop: int,
    candidates: Any,
    activations: Any,
) -> None:
    k, n_proposed, n_candidates = indices.shape[1], proposed.shape[1], candidates.shape[1]
    for i in range(start, stop):
        own, other, n_both = 0, 0, 0
        while own < k and other < n_proposed:
            difference = indices[i, own] - proposed[i, other]
            n_both += difference == 0
            own += difference <= 0
            other += difference >= 0
        n_missing = n_candidates - (k + n_proposed - n_both)
        own, other, free = 0, 0, 0
        for c in range(n_candidates):
            following = indices[i, own] if own < k else n_components
            proposal = proposed[i, other] if other < n_proposed else n_components
            if n_missing > 0 and free < min(following, proposal):
                candidates[i, c], activations[i, c] = free, 0
                n_missing -= 1
                free += 1
            elif following <= proposal:
                candidates[i, c], activations[i, c] = following, values[i, own]
                own += 1
                other += following == proposal
                free = following + 1
            else:
                candidates[i, c], activations[i, c] = proposal, norms[i] * correlations[i, other]
                other += 1
                free = proposal + 1


def merged_candidates(
    indices: IndexArray,
    values: FloatArray,
    proposed: IndexArray,
    correlations: FloatArray,
    norms: FloatArray,
    n_components: int,
    *,
    n_threads: int,
) -> tuple[IndexArray, FloatArray]:
    """Return the candidates of a refinement, and what stands for their activations: the entries of ``s + D (x - s D)``.

    Least squares leaves next to no correlation with a code's own latents. Where one of them is proposed nevertheless,
    hardly anything is left to explain, and the latent of the lowest number takes its place.

    Parameters
    ----------
    indices, values : arrays of shape (n_rows, k), indices ascending in each row
    proposed : int32 array of shape (n_rows, min(k, n_components)), ascending in each row
        Latents that correlate most with what the code leaves of the row.
    correlations : array of the shape of `proposed`
        With that, divided by its norm.
    norms : array of shape (n_rows,)
    n_components : int
    n_threads : int

    Returns
    -------
    candidates : int32 array of shape (n_rows, count_refined(k, n_components)), ascending and distinct in each row
    activations : array of the same shape
    """
    n_candidates = count_refined(indices.shape[1], n_components)
    candidates = np.empty((len(indices), n_candidates), dtype=np.int32)
    activations = np.empty(candidates.shape, dtype=values.dtype)
    run_blocks(
        lambda start, stop: _merge_rows(
            indices, values, proposed, correlations, norms, n_components, start, stop, candidates, activations
        ),
        len(indices),
        _BLOCK_ROWS,
        n_threads,
    )
    return candidates, activations
