"""Sums over chosen rows of a matrix: what decoding, its gradients and least squares are made of.

The sums run in a fixed order, so a result depends on its operands alone, not on the batch or the threads around it.
Four rows are read at a time, to hide the latency of a cache miss behind the other three.
"""

from __future__ import annotations

from typing import Any

from skcompressae._core._compiling import njit

__all__ = ["FAST", "add_combination", "dot", "dots", "gram_of"]

# What the kernels let the compiler assume: operands are finite, and sums may be split over vector lanes.
FAST = {"nnan", "ninf", "nsz", "contract", "reassoc"}


@njit(nogil=True, fastmath=FAST, inline="always")
def dot(a, b):  # type: ignore[no-untyped-def]
    total = a.dtype.type(0)
    for j in range(a.shape[0]):
        total += a[j] * b[j]
    return total


@njit(nogil=True, fastmath=FAST)
def add_combination(total, rows, coefficients, picks, n_picks):  # type: ignore[no-untyped-def]
    """Add ``sum_p coefficients[p] * rows[picks[p]]`` to `total`, four rows in flight to hide cache latency."""
    n_columns = total.shape[0]
    n_quads = n_picks - n_picks % 4
    for p in range(0, n_quads, 4):
        c0, c1, c2, c3 = coefficients[p], coefficients[p + 1], coefficients[p + 2], coefficients[p + 3]
        r0, r1, r2, r3 = rows[picks[p]], rows[picks[p + 1]], rows[picks[p + 2]], rows[picks[p + 3]]
        for j in range(n_columns):
            total[j] += c0 * r0[j] + c1 * r1[j] + c2 * r2[j] + c3 * r3[j]
    for p in range(n_quads, n_picks):
        c0, r0 = coefficients[p], rows[picks[p]]
        for j in range(n_columns):
            total[j] += c0 * r0[j]


@njit(nogil=True, fastmath=FAST)
def dots(vector, rows, picks, n_picks, products):  # type: ignore[no-untyped-def]
    """Write ``rows[picks[p]] . vector`` to ``products[p]``, four rows in flight.

    All in one loop, the last row read again where there are no four left: a loop of its own for those would be compiled
    to another order of summation on some processors, and a product would depend on its place.
    """
    n_columns = vector.shape[0]
    kind = vector.dtype.type
    for p in range(0, n_picks, 4):
        p1, p2, p3 = min(p + 1, n_picks - 1), min(p + 2, n_picks - 1), min(p + 3, n_picks - 1)
        r0, r1, r2, r3 = rows[picks[p]], rows[picks[p1]], rows[picks[p2]], rows[picks[p3]]
        t0, t1, t2, t3 = kind(0), kind(0), kind(0), kind(0)
        for j in range(n_columns):
            t0 += r0[j] * vector[j]
            t1 += r1[j] * vector[j]
            t2 += r2[j] * vector[j]
            t3 += r3[j] * vector[j]
        products[p], products[p1], products[p2], products[p3] = t0, t1, t2, t3


@njit(nogil=True, fastmath=FAST)
def gram_of(rows: Any, picks: Any, first: Any, n: Any, gram: Any) -> None:
    """Write the inner products of the rows ``picks[first:n]`` with those of ``picks[:n]``.

    In tiles of 4 x 3 sums, which fit the 16 vector registers of processors without AVX-512. The last tile of a row of
    tiles reads its last row twice where there are not three left.
    """
    kind = rows.dtype.type
    n_columns = rows.shape[1]
    n_tiled = n - n % 4
    for i in range(first - first % 4, n_tiled, 4):
        left0, left1, left2, left3 = rows[picks[i]], rows[picks[i + 1]], rows[picks[i + 2]], rows[picks[i + 3]]
        for j0 in range(0, i + 4, 3):
            j1, j2 = min(j0 + 1, i + 3), min(j0 + 2, i + 3)
            row0, row1, row2 = rows[picks[j0]], rows[picks[j1]], rows[picks[j2]]
            s00, s01, s02 = kind(0), kind(0), kind(0)
            s10, s11, s12 = kind(0), kind(0), kind(0)
            s20, s21, s22 = kind(0), kind(0), kind(0)
            s30, s31, s32 = kind(0), kind(0), kind(0)
            for c in range(n_columns):
                a0, a1, a2, a3 = left0[c], left1[c], left2[c], left3[c]
                b0, b1, b2 = row0[c], row1[c], row2[c]
                s00 += a0 * b0
                s01 += a0 * b1
                s02 += a0 * b2
                s10 += a1 * b0
                s11 += a1 * b1
                s12 += a1 * b2
                s20 += a2 * b0
                s21 += a2 * b1
                s22 += a2 * b2
                s30 += a3 * b0
                s31 += a3 * b1
                s32 += a3 * b2
            gram[i, j0], gram[i, j1], gram[i, j2] = s00, s01, s02
            gram[i + 1, j0], gram[i + 1, j1], gram[i + 1, j2] = s10, s11, s12
            gram[i + 2, j0], gram[i + 2, j1], gram[i + 2, j2] = s20, s21, s22
            gram[i + 3, j0], gram[i + 3, j1], gram[i + 3, j2] = s30, s31, s32
    for i in range(max(first, n_tiled), n):
        for j in range(i + 1):
            gram[i, j] = dot(rows[picks[i]], rows[picks[j]])
    for i in range(first, n):
        for j in range(i):
            gram[j, i] = gram[i, j]
