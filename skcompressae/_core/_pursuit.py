"""Choose k of a row's candidate latents and fit their values by least squares, against the decoder.

For a unit-norm row x, candidates C and the decoder rows D_C, orthogonal matching pursuit (Pati et al. 1993, in the
Cholesky form of Rubinstein et al. 2008, "Batch-OMP") picks, k times, the candidate whose decoder row correlates most
with what is still unexplained and refits all values picked so far. With exactly k candidates there is nothing to pick
and one elimination gives the least-squares values on the support.

Only the Gram matrix of the candidates' decoder rows is built, a few kilobytes per row that stay in the first-level
cache; the sums run in a fixed order, so a row's values depend on nothing but the row and its candidates.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from skcompressae._core._arrays import FloatArray, IndexArray
from skcompressae._core._gathers import FAST, dot, dots
from skcompressae._core._lanes import N_LANES, add_multiple
from skcompressae._core._threads import run_blocks

__all__ = ["RIDGE", "count_candidates", "least_squares_codes"]

# Added to the unit diagonal of the Gram matrix: keeps the solve stable when two latents (nearly) coincide, and is
# far below the squared reconstruction error of any code.
RIDGE = 1e-5


def count_candidates(k: int, candidate_factor: float, n_components: int) -> int:
    """Return how many latents pursuit chooses k from."""
    return min(n_components, max(k, round(candidate_factor * k)))


@njit(cache=True, nogil=True, fastmath=FAST)
def _gram(rows, picks, n, gram):  # type: ignore[no-untyped-def]
    """Write the inner products of ``rows[picks[:n]]`` to `gram`, in 4 x 4 register tiles."""
    kind = rows.dtype.type
    n_columns = rows.shape[1]
    n_tiled = n - n % 4
    for i in range(0, n_tiled, 4):
        left0, left1, left2, left3 = rows[picks[i]], rows[picks[i + 1]], rows[picks[i + 2]], rows[picks[i + 3]]
        for j in range(0, i + 4, 4):
            row0, row1, row2, row3 = rows[picks[j]], rows[picks[j + 1]], rows[picks[j + 2]], rows[picks[j + 3]]
            s00, s01, s02, s03 = kind(0), kind(0), kind(0), kind(0)
            s10, s11, s12, s13 = kind(0), kind(0), kind(0), kind(0)
            s20, s21, s22, s23 = kind(0), kind(0), kind(0), kind(0)
            s30, s31, s32, s33 = kind(0), kind(0), kind(0), kind(0)
            for c in range(n_columns):
                a0, a1, a2, a3 = left0[c], left1[c], left2[c], left3[c]
                b0, b1, b2, b3 = row0[c], row1[c], row2[c], row3[c]
                s00 += a0 * b0
                s01 += a0 * b1
                s02 += a0 * b2
                s03 += a0 * b3
                s10 += a1 * b0
                s11 += a1 * b1
                s12 += a1 * b2
                s13 += a1 * b3
                s20 += a2 * b0
                s21 += a2 * b1
                s22 += a2 * b2
                s23 += a2 * b3
                s30 += a3 * b0
                s31 += a3 * b1
                s32 += a3 * b2
                s33 += a3 * b3
            gram[i, j], gram[i, j + 1], gram[i, j + 2], gram[i, j + 3] = s00, s01, s02, s03
            gram[i + 1, j], gram[i + 1, j + 1], gram[i + 1, j + 2], gram[i + 1, j + 3] = s10, s11, s12, s13
            gram[i + 2, j], gram[i + 2, j + 1], gram[i + 2, j + 2], gram[i + 2, j + 3] = s20, s21, s22, s23
            gram[i + 3, j], gram[i + 3, j + 1], gram[i + 3, j + 2], gram[i + 3, j + 3] = s30, s31, s32, s33
    for i in range(n_tiled, n):
        for j in range(i + 1):
            gram[i, j] = dot(rows[picks[i]], rows[picks[j]])
    for i in range(n):
        for j in range(i):
            gram[j, i] = gram[i, j]


@njit(cache=True, nogil=True, fastmath=FAST)
def _append_to_cholesky(factor, gram, picked, step, ridge):  # type: ignore[no-untyped-def]
    """Extend the lower Cholesky factor of ``gram[picked][:, picked] + ridge I`` by row `step`."""
    new = picked[step]
    rest = gram[new, new] + ridge
    for a in range(step):
        total = gram[new, picked[a]]
        for b in range(a):
            total -= factor[step, b] * factor[a, b]
        total /= factor[a, a]
        factor[step, a] = total
        rest -= total * total
    factor[step, step] = np.sqrt(max(rest, ridge))


@njit(cache=True, nogil=True, fastmath=FAST)
def _back_substitute(factor, forward, n, solution):  # type: ignore[no-untyped-def]
    for a in range(n - 1, -1, -1):
        total = forward[a]
        for b in range(a + 1, n):
            total -= factor[b, a] * solution[b]
        solution[a] = total / factor[a, a]


@njit(cache=True, nogil=True, fastmath=FAST)
def _pursue_rows(x, decoder, candidates, k, ridge, start, stop, indices, values, norms):  # type: ignore[no-untyped-def]
    n_candidates = candidates.shape[1]
    kind = x.dtype.type
    gram = np.empty((n_candidates, n_candidates), dtype=x.dtype)
    factor = np.empty((k, k), dtype=x.dtype)
    correlations = np.empty(n_candidates, dtype=x.dtype)
    unexplained = np.empty(n_candidates, dtype=x.dtype)
    forward = np.empty(k, dtype=x.dtype)
    solution = np.empty(k, dtype=x.dtype)
    picked = np.empty(k, dtype=np.int64)
    is_picked = np.empty(n_candidates, dtype=np.bool_)
    position = np.empty(n_candidates, dtype=np.int64)
    for i in range(start, stop):
        _gram(decoder, candidates[i], n_candidates, gram)
        dots(x[i], decoder, candidates[i], n_candidates, correlations)
        unexplained[:] = correlations
        is_picked[:] = False
        for step in range(k):
            best = -1
            largest = kind(-1)
            for c in range(n_candidates):
                if not is_picked[c] and abs(unexplained[c]) > largest:
                    largest = abs(unexplained[c])
                    best = c
            picked[step] = best
            is_picked[best] = True
            _append_to_cholesky(factor, gram, picked, step, ridge)
            total = correlations[best]
            for b in range(step):
                total -= factor[step, b] * forward[b]
            forward[step] = total / factor[step, step]
            if step < k - 1:
                _back_substitute(factor, forward, step + 1, solution)
                unexplained[:] = correlations
                for b in range(step + 1):
                    weight = solution[b]
                    gram_row = gram[picked[b]]
                    for c in range(n_candidates):
                        unexplained[c] -= weight * gram_row[c]
        _back_substitute(factor, forward, k, solution)
        squares = kind(0)
        for step in range(k):
            position[picked[step]] = step
            gram_row = gram[picked[step]]
            for b in range(k):
                squares += solution[step] * solution[b] * gram_row[picked[b]]
        norms[i] = np.sqrt(max(squares, kind(0)))
        written = 0
        for c in range(n_candidates):  # candidates ascend, so the code does
            if is_picked[c]:
                indices[i, written] = candidates[i, c]
                values[i, written] = solution[position[c]]
                written += 1


@njit(cache=True, nogil=True, fastmath=FAST)
def _solve(system, n, ridge, solution):  # type: ignore[no-untyped-def]
    """Solve a positive definite system by elimination, its right side in column n, its width a multiple of N_LANES."""
    for a in range(n):
        upper = system[a]
        upper[a] = max(upper[a], ridge)
        for i in range(a + 1, n):
            row = system[i]
            factor = -row[a] / upper[a]
            for lane in range(a // N_LANES * N_LANES, system.shape[1], N_LANES):
                add_multiple(row, upper, lane, factor)
    for a in range(n - 1, -1, -1):
        total = system[a, n]
        for b in range(a + 1, n):
            total -= system[a, b] * solution[b]
        solution[a] = total / system[a, a]


@njit(cache=True, nogil=True, fastmath=FAST)
def _refit_rows(x, decoder, supports, ridge, start, stop, values, norms):  # type: ignore[no-untyped-def]
    k = supports.shape[1]
    kind = x.dtype.type
    system = np.zeros((k, (k // N_LANES + 1) * N_LANES), dtype=x.dtype)
    correlations = np.empty(k, dtype=x.dtype)
    solution = np.empty(k, dtype=x.dtype)
    for i in range(start, stop):
        _gram(decoder, supports[i], k, system)
        dots(x[i], decoder, supports[i], k, correlations)
        for a in range(k):
            system[a, a] += ridge
            system[a, k] = correlations[a]
        _solve(system, k, ridge, solution)
        squares = kind(0)  # s G s = s (c - ridge s)
        for a in range(k):
            values[i, a] = solution[a]
            squares += solution[a] * (correlations[a] - ridge * solution[a])
        norms[i] = np.sqrt(max(squares, kind(0)))


def least_squares_codes(
    x: FloatArray, decoder: FloatArray, candidates: IndexArray, k: int, *, n_threads: int
) -> tuple[IndexArray, FloatArray, FloatArray]:
    """Pick k of each row's candidates by orthogonal matching pursuit and fit their values by least squares.

    Parameters
    ----------
    x : array of shape (n_rows, n_features), unit-norm rows
    decoder : array of shape (n_components, n_features), unit-norm rows, same dtype as `x`
    candidates : int32 array of shape (n_rows, n_candidates), ascending and distinct in each row
    k : int in [1, n_candidates]
        With ``k == n_candidates`` the support is taken as it is and only the values are fitted.
    n_threads : int

    Returns
    -------
    indices : array of shape (n_rows, k), int32, ascending in each row
    values : array of shape (n_rows, k), of the dtype of `x`
    norms : array of shape (n_rows,), of the dtype of `x`
        L2 norm of each row's reconstruction.

    References
    ----------
    R. Rubinstein, M. Zibulevsky, M. Elad, "Efficient Implementation of the K-SVD Algorithm using Batch Orthogonal
    Matching Pursuit", Technion CS-2008-08, algorithm 3.
    """
    n_rows = x.shape[0]
    values = np.empty((n_rows, k), dtype=x.dtype)
    norms = np.empty(n_rows, dtype=x.dtype)
    ridge = x.dtype.type(RIDGE)
    if candidates.shape[1] == k:

        def refit(start: int, stop: int) -> None:
            _refit_rows(x, decoder, candidates, ridge, start, stop, values, norms)

        run_blocks(refit, n_rows, 64, n_threads)
        return candidates, values, norms
    indices = np.empty((n_rows, k), dtype=np.int32)

    def pursue(start: int, stop: int) -> None:
        _pursue_rows(x, decoder, candidates, k, ridge, start, stop, indices, values, norms)

    run_blocks(pursue, n_rows, 64, n_threads)
    return indices, values, norms
