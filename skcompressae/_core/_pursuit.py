"""Choose k of a row's candidate latents and fit their values by least squares, against the decoder.

Orthogonal matching pursuit (Pati et al. 1993) picks, one after the other, the candidate whose decoder row correlates
most with what is still unexplained. Close rows then end with different supports, and code-to-code search loses what
reconstruction gains. The pursuit here is guided by the encoder, which learned where close rows meet: the half of the
code with the largest activations is taken as it is; the rest is picked by correlation plus a share of the activation,
a quarter of k at once, then an eighth, and another, with all values refitted in between
(docs/research_notes_sparse.md). With exactly k
candidates there is nothing to pick and one elimination gives the least-squares values on the support.

Only the Gram matrix of the picked decoder rows is built, a few kilobytes per row that stay in the first-level cache;
the sums run in a fixed order, so a row's code depends on nothing but the row, its candidates and their activations.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from skcompressae._core._arrays import FloatArray, IndexArray
from skcompressae._core._chosen_rows import add_rows, dot_rows, gram_rows
from skcompressae._core._compiling import njit
from skcompressae._core._flattening import AS_FITTED, Flattening, flatten_row
from skcompressae._core._gathers import FAST, dots
from skcompressae._core._lanes import N_LANES, add_multiple
from skcompressae._core._threads import run_blocks
from skcompressae._core._topk import kth_largest

__all__ = [
    "GUIDANCE",
    "PURSUITS",
    "RIDGE",
    "Inexact",
    "count_candidates",
    "least_squares_codes",
    "pursue_rows",
    "pursuit_codes",
    "pursuit_rounds",
    "pursuit_starts",
    "refit_rows",
]

# The codings that pick latents by pursuit.
PURSUITS = "pursuit", "refined_pursuit"
# Added to the unit diagonal of the Gram matrix: keeps the solve stable when two latents (nearly) coincide, and is
# far below the squared reconstruction error of any code.
RIDGE = 1e-5
# What an activation as large as the k-th largest counts for, beside a correlation with the unexplained rest of a unit
# row. From 0.04 to 0.12 code-to-code recall is that of the encoder's own choice and most of the pursuit's gain is kept.
GUIDANCE = 0.06
# Four epsilons of float32: what rounding may add to the difference of two scores, as a share of them.
_SCORE_ROUNDING = 4.8e-7
# Rows that a thread takes at a time; eight take 0.2 to 0.4 ms.
_MIN_BLOCK_ROWS, _MAX_BLOCK_ROWS = 8, 64


class Inexact(NamedTuple):
    """How far proposed activations of each row may be off, and what to compute them again with."""

    errors: FloatArray  # (n_rows,), 0 where all are exact; or (0,) where those of all rows are
    encoder: FloatArray  # (n_components, n_features)
    bias: FloatArray  # (n_components,)


def count_candidates(k: int, candidate_factor: float, n_components: int) -> int:
    """Return how many latents pursuit chooses k from."""
    return min(n_components, max(k, round(min(candidate_factor * k, n_components))))  # the product may be infinite


def pursuit_rounds(k: int) -> tuple[int, int, int]:
    """Return how many latents pursuit takes by their activations, and how many it picks in the two rounds after that.

    A last round picks what is missing. One latent at a time would gain 0.001 of recall at most; two rounds lose up to
    0.004 of it (words, k = 16).
    """
    n_left = k - k // 2
    n_after = n_left // 2
    return k // 2, n_left - n_after, n_after - n_after // 2


def pursuit_starts(k: int) -> tuple[int, int, int]:
    """Return how many latents are picked when each round starts; as many as all, or as the round before, for none."""
    n_first, n_next, n_then = pursuit_rounds(k)
    return n_first, n_first + n_next, n_first + n_next + n_then


def _block_rows(n_rows: int, n_threads: int) -> int:
    """Return the rows of a block: a share for every thread, but not so few that waking it takes longer."""
    return min(_MAX_BLOCK_ROWS, max(_MIN_BLOCK_ROWS, -(-n_rows // n_threads)))


@njit(nogil=True, fastmath=FAST)
def _eliminate(system: Any, width: int, first: int, n: int, ridge: Any, reciprocals: Any) -> Any:
    """Eliminate the rows ``first:n`` of a positive definite system, after those before; return their least pivot.

    `system` is flat, rows of `width` entries, a multiple of N_LANES: the columns so far, zeros, and the right side
    last of all. The rows to eliminate need their columns up to n only. What is left of a pivot afterwards is rubbish
    that nothing reads. `reciprocals` are of the pivots, or 0: of more rows than there are features some pivots are what
    rounding leaves, and what is divided by those grows beyond all numbers. Such a latent gets the value 0.
    """
    half = system.dtype.type(0.5)
    least = system.dtype.type(np.inf)
    for a in range(n):
        upper = a * width
        begin = a + 1
        if a < first:
            # what is left of a symmetric system stays symmetric: the columns that earlier rows lack
            begin = first
            for i in range(first, n):
                system[upper + i] = system[i * width + a]
        else:
            pivot = system[upper + a]
            least = min(least, pivot)
            reciprocals[a] = system.dtype.type(1) / max(pivot, ridge) if pivot > half * ridge else system.dtype.type(0)
        for i in range(begin, n):
            row = i * width
            factor = -system[row + a] * reciprocals[a]
            for lane in range(a // N_LANES * N_LANES, width, N_LANES):
                add_multiple(system, row + lane, upper + lane, factor)
    return least


@njit(nogil=True, fastmath=FAST)
def _substitute(system: Any, width: int, n: int, reciprocals: Any, solution: Any) -> None:
    """Solve the eliminated system of n rows."""
    for a in range(n - 1, -1, -1):
        row = a * width
        total = system[row + width - 1]
        for b in range(a + 1, n):
            total -= system[row + b] * solution[b]
        solution[a] = total * reciprocals[a]


@njit(nogil=True, fastmath=FAST)
def refit_rows(
    x: Any,
    decoder: Any,
    supports: Any,
    ridge: Any,
    flattening: Any,
    start: int,
    stop: int,
    values: Any,
    norms: Any,
    pivots: Any,
) -> None:
    k = supports.shape[1]
    kind = x.dtype.type
    width = (k // N_LANES + 1) * N_LANES
    gram = np.empty((k, k), dtype=x.dtype)
    system = np.zeros((k, width), dtype=x.dtype)
    flat = system.reshape(-1)
    x_hat = np.empty(x.shape[1], dtype=x.dtype)
    correlations = np.empty(k, dtype=x.dtype)
    reciprocals = np.empty(k, dtype=x.dtype)
    solution = np.empty(k, dtype=x.dtype)
    for i in range(start, stop):
        gram_rows(decoder, supports[i], 0, k, gram)
        dot_rows(x[i], decoder, supports[i], k, correlations)
        for a in range(k):
            for b in range(k):
                system[a, b] = gram[a, b]
            system[a, a] += ridge
            system[a, width - 1] = correlations[a]
        pivots[i] = _eliminate(flat, width, 0, k, ridge, reciprocals)
        _substitute(flat, width, k, reciprocals, solution)
        # Alone, as a loop that also writes is compiled twice, and where its arrays lie decides which sum is taken.
        squares = kind(0)  # s G s = s (c - ridge s)
        for a in range(k):
            squares += solution[a] * (correlations[a] - ridge * solution[a])
        norm = np.sqrt(max(squares, kind(0)))
        norms[i] = flatten_row(gram, decoder, supports[i], solution, norm, flattening, x_hat)
        for a in range(k):
            values[i, a] = solution[a]


@njit(nogil=True, fastmath=FAST)
def _compute_again(x: Any, inexact: Any, latents: Any, places: Any, n: Any, scratch: Any, activations: Any) -> None:
    """Write the activations of some latents to their places, summed as `candidate_activations` sums them."""
    dots(x, inexact.encoder, latents, n, scratch)
    for p in range(n):
        activations[places[p]] = scratch[p] + inexact.bias[latents[p]]


@njit(nogil=True)
def _exact_threshold(
    x: Any, inexact: Any, candidates: Any, threshold: Any, rank: int, error: Any, near: Any, near_places: Any,
    scratch: Any, activations: Any,
) -> Any:  # fmt: skip
    """Return the exact magnitude of a rank, once the activations too near to `threshold`, which may be off, are exact.

    Some may be so already, and so may the threshold.
    """
    n_above, n_near = 0, 0
    for c in range(candidates.shape[0]):
        difference = abs(activations[c]) - threshold
        if abs(difference) <= 2 * error:
            near[n_near], near_places[n_near] = candidates[c], c
            n_near += 1
        else:
            n_above += difference > 0
    _compute_again(x, inexact, near, near_places, n_near, scratch, activations)
    for p in range(n_near):
        scratch[p] = abs(activations[near_places[p]])
    # within 1 and n_near, unless something is further off than was said
    return kth_largest(scratch, n_near, min(max(rank - n_above, 1), n_near)) if n_near > 0 else threshold


@njit(nogil=True)
def _mark_best(
    unexplained: Any, guidance: Any, activations: Any, places: Any, n: int, n_wanted: int, scores: Any
) -> Any:
    """Score n latents, mark the `n_wanted` best by scores of -1, and return the lowest of those scores and the next.

    Exactly so many are marked, also where scores are no numbers.
    """
    kind = scores.dtype.type
    for p in range(n):
        score = unexplained[p] + guidance * abs(activations[places[p]])
        scores[p] = score if score >= 0 else kind(0)
    lowest = kind(0)
    for _ in range(n_wanted):
        best = 0
        for p in range(1, n):
            if scores[p] > scores[best]:  # of equals the lowest index
                best = p
        lowest = scores[best]
        scores[best] = kind(-1)
    following = kind(-1)
    for p in range(n):
        following = max(following, scores[p])
    return lowest, following


@njit(nogil=True, fastmath=FAST)
def pursue_rows(
    x: Any,
    decoder: Any,
    candidates: Any,
    proposed: Any,
    inexact: Any,
    k: int,
    rounds: Any,
    ridge: Any,
    flattening: Any,
    start: int,
    stop: int,
    indices: Any,
    values: Any,
    norms: Any,
    pivots: Any,
) -> None:
    n_first = rounds[0]
    n_candidates = candidates.shape[1]
    kind = x.dtype.type
    width = (k // N_LANES + 1) * N_LANES
    gram = np.empty((k, k), dtype=x.dtype)
    system = np.empty((k, width), dtype=x.dtype)
    flat = system.reshape(-1)
    reciprocals = np.empty(k, dtype=x.dtype)
    activations = np.empty(n_candidates, dtype=x.dtype)
    magnitudes = np.empty(n_candidates, dtype=x.dtype)
    correlations = np.empty(k, dtype=x.dtype)
    unexplained = np.empty(n_candidates, dtype=x.dtype)
    scores = np.empty(n_candidates, dtype=x.dtype)
    solution = np.empty(k, dtype=x.dtype)
    rest = np.empty(x.shape[1], dtype=x.dtype)
    picked = np.empty(k, dtype=np.int32)
    left = np.empty(n_candidates, dtype=np.int32)  # latents not picked, their positions among the candidates
    left_places = np.empty(n_candidates, dtype=np.int64)
    near = np.empty(n_candidates, dtype=np.int32)  # latents too near a threshold for an inexact activation
    near_places = np.empty(n_candidates, dtype=np.int64)
    position = np.empty(n_candidates, dtype=np.int64)  # of a candidate in the code, or -1
    for i in range(start, stop):
        error = inexact.errors[i] if inexact.errors.shape[0] > 0 else kind(0)
        for c in range(n_candidates):
            activations[c] = proposed[i, c]
            magnitudes[c] = abs(activations[c])
        kth = kth_largest(magnitudes, n_candidates, k)
        first = kth_largest(magnitudes, n_candidates, n_first) if n_first > 0 else kind(0)
        if error > 0:
            kth = _exact_threshold(
                x[i], inexact, candidates[i], kth, k, error, near, near_places, unexplained, activations
            )
            if n_first > 0:
                first = _exact_threshold(
                    x[i], inexact, candidates[i], first, n_first, error, near, near_places, unexplained, activations
                )
        guidance = kind(GUIDANCE) / kth if kth > 0 else kind(0)
        margin = 2 * guidance * error  # how far apart two scores may be and be in the wrong order, but for rounding
        n_ties = n_first
        for c in range(n_candidates):
            n_ties -= n_first > 0 and abs(activations[c]) > first
        n = 0
        for c in range(n_candidates):
            magnitude = abs(activations[c])
            position[c] = -1
            if n < n_first and (magnitude > first or (magnitude == first and n_ties > 0)):
                n_ties -= magnitude == first
                picked[n] = candidates[i, c]
                position[c] = n
                n += 1
        n_known, n_rounds = 0, 0
        pivots[i] = kind(np.inf)
        while True:
            if n > 0:
                gram_rows(decoder, picked, n_known, n, gram)
                dot_rows(x[i], decoder, picked[n_known:], n - n_known, correlations[n_known:])
                for a in range(n_known, n):
                    for b in range(n):
                        system[a, b] = gram[a, b]
                    system[a, n:] = kind(0)
                    system[a, a] += ridge
                    system[a, width - 1] = correlations[a]
                pivots[i] = min(pivots[i], _eliminate(flat, width, n_known, n, ridge, reciprocals))
                _substitute(flat, width, n, reciprocals, solution)
            n_known = n
            if n == k:
                break
            for a in range(n):
                solution[a] = -solution[a]
            for j in range(rest.shape[0]):
                rest[j] = x[i, j]
            add_rows(rest, decoder, solution, picked, n)
            n_left = 0
            for c in range(n_candidates):
                if position[c] < 0:
                    left[n_left] = candidates[i, c]
                    left_places[n_left] = c
                    n_left += 1
            dot_rows(rest, decoder, left, n_left, unexplained)
            for p in range(n_left):
                unexplained[p] = abs(unexplained[p])
            n_rounds += 1
            n_wanted = min(rounds[n_rounds], k - n) if n_rounds < len(rounds) else k - n
            lowest, following = _mark_best(unexplained, guidance, activations, left_places, n_left, n_wanted, scores)
            lowest_near = lowest - (margin + kind(_SCORE_ROUNDING) * lowest)
            if margin > 0 and following >= lowest_near:
                n_near = 0
                for p in range(n_left):
                    if unexplained[p] + guidance * abs(activations[left_places[p]]) >= lowest_near:
                        near[n_near], near_places[n_near] = left[p], left_places[p]
                        n_near += 1
                _compute_again(x[i], inexact, near, near_places, n_near, scores, activations)
                _mark_best(unexplained, guidance, activations, left_places, n_left, n_wanted, scores)
            for p in range(n_left):  # in the order of latents, so that scores but for the choice change nothing
                if scores[p] == -1:
                    picked[n] = left[p]
                    position[left_places[p]] = n
                    n += 1
        squares = kind(0)  # s G s = s (c - ridge s)
        for a in range(k):
            squares += solution[a] * (correlations[a] - ridge * solution[a])
        norm = np.sqrt(max(squares, kind(0)))
        norms[i] = flatten_row(gram, decoder, picked, solution, norm, flattening, rest)
        written = 0
        for c in range(n_candidates):  # candidates ascend, so the code does
            if position[c] >= 0:
                indices[i, written] = candidates[i, c]
                values[i, written] = solution[position[c]]
                written += 1


def least_squares_codes(
    x: FloatArray,
    decoder: FloatArray | IndexArray,
    supports: IndexArray,
    *,
    n_threads: int,
    flattening: Flattening = AS_FITTED,
    pivots: FloatArray | None = None,
) -> tuple[FloatArray, FloatArray]:
    """Fit the values of codes of given supports by least squares, and draw them together.

    Parameters
    ----------
    x : array of shape (n_rows, n_features), unit-norm rows
    decoder : array of shape (n_components, n_features), unit-norm rows, same dtype as `x`, or those of `round_decoder`
    supports : int32 array of shape (n_rows, k), distinct in each row
    n_threads : int
    flattening : Flattening, default=AS_FITTED
    pivots : array of shape (n_rows,), of the dtype of `x`, optional
        Written to: the least squared distance of a unit decoder row to the span of those before it in the code.

    Returns
    -------
    values : array of shape (n_rows, k), of the dtype of `x`
    norms : array of shape (n_rows,), of the dtype of `x`
        L2 norm of each row's reconstruction.
    """
    values = np.empty(supports.shape, dtype=x.dtype)
    norms = np.empty(len(x), dtype=x.dtype)
    pivots = np.empty_like(norms) if pivots is None else pivots
    ridge = x.dtype.type(RIDGE)
    run_blocks(
        lambda start, stop: refit_rows(x, decoder, supports, ridge, flattening, start, stop, values, norms, pivots),
        len(x),
        _block_rows(len(x), n_threads),
        n_threads,
    )
    return values, norms


def pursuit_codes(
    x: FloatArray,
    decoder: FloatArray | IndexArray,
    candidates: IndexArray,
    activations: FloatArray,
    k: int,
    *,
    n_threads: int,
    inexact: Inexact | None = None,
    flattening: Flattening = AS_FITTED,
    pivots: FloatArray | None = None,
) -> tuple[IndexArray, FloatArray, FloatArray]:
    """Pick k of each row's candidates by a matching pursuit that the encoder guides; fit values by least squares.

    Parameters
    ----------
    x : array of shape (n_rows, n_features), unit-norm rows
    decoder : array of shape (n_components, n_features), unit-norm rows, same dtype as `x`, or those of `round_decoder`
    candidates : int32 array of shape (n_rows, n_candidates), ascending and distinct in each row
    activations : array of shape (n_rows, n_candidates), of the dtype of `x`
        The encoder's pre-activations of the candidates.
    k : int in [1, n_candidates]
        With ``k == n_candidates`` only the values are fitted.
    n_threads : int
    inexact : Inexact, optional
        How far the activations may be off; those that decide are computed again, so the codes are what exact ones give.
    flattening : Flattening, default=AS_FITTED
        How far the values are drawn together.
    pivots : array of shape (n_rows,), of the dtype of `x`, optional
        Written to, as :func:`least_squares_codes` does.

    Returns
    -------
    indices : array of shape (n_rows, k), int32, ascending in each row
    values : array of shape (n_rows, k), of the dtype of `x`
    norms : array of shape (n_rows,), of the dtype of `x`
        L2 norm of each row's reconstruction.
    """
    if candidates.shape[1] == k:
        fitted = least_squares_codes(x, decoder, candidates, n_threads=n_threads, flattening=flattening, pivots=pivots)
        return candidates, *fitted
    n_rows = x.shape[0]
    indices = np.empty((n_rows, k), dtype=np.int32)
    values = np.empty((n_rows, k), dtype=x.dtype)
    norms = np.empty(n_rows, dtype=x.dtype)
    pivots = np.empty_like(norms) if pivots is None else pivots
    ridge = x.dtype.type(RIDGE)
    rounds = pursuit_rounds(k)
    if inexact is None:
        inexact = Inexact(np.empty(0, dtype=x.dtype), np.empty((0, 0), dtype=x.dtype), np.empty(0, dtype=x.dtype))
    run_blocks(
        lambda start, stop: pursue_rows(
            x,
            decoder,
            candidates,
            activations,
            inexact,
            k,
            rounds,
            ridge,
            flattening,
            start,
            stop,
            indices,
            values,
            norms,
            pivots,
        ),
        n_rows,
        _block_rows(n_rows, n_threads),
        n_threads,
    )
    return indices, values, norms
