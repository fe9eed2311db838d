"""Sums over rows of a matrix: what decoding, its gradients, least squares and single queries are made of.

The sums run in a fixed order, so a result depends on its operands alone, not on the batch or the threads around it.
Four rows are read at a time, to hide the latency of a cache miss behind the other three.
"""

from __future__ import annotations

from numba import njit

__all__ = ["FAST", "FEW_VECTORS", "add_combination", "dot", "dots", "products_with"]

# What the kernels let the compiler assume: operands are finite, and sums may be split over vector lanes.
FAST = {"nnan", "ninf", "nsz", "contract", "reassoc"}
# Up to so many vectors `products_with` is faster than NumPy's matrix product: of 2, 8 and 32 by a (4096, 768) matrix on
# one core 0.2, 0.6 and 2.8 against 1.8, 2.1 and 3.6 ms.
FEW_VECTORS = 32
# Rows that stay in the second-level cache while several vectors meet them.
_BLOCK_ROWS = 64


@njit(cache=True, nogil=True, fastmath=FAST, inline="always")
def dot(a, b):  # type: ignore[no-untyped-def]
    total = a.dtype.type(0)
    for j in range(a.shape[0]):
        total += a[j] * b[j]
    return total


@njit(cache=True, nogil=True, fastmath=FAST)
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


@njit(cache=True, nogil=True, fastmath=FAST)
def dots(vector, rows, picks, n_picks, products):  # type: ignore[no-untyped-def]
    """Write ``rows[picks[p]] . vector`` to ``products[p]``, four rows in flight."""
    n_columns = vector.shape[0]
    kind = vector.dtype.type
    n_quads = n_picks - n_picks % 4
    for p in range(0, n_quads, 4):
        r0, r1, r2, r3 = rows[picks[p]], rows[picks[p + 1]], rows[picks[p + 2]], rows[picks[p + 3]]
        t0, t1, t2, t3 = kind(0), kind(0), kind(0), kind(0)
        for j in range(n_columns):
            t0 += r0[j] * vector[j]
            t1 += r1[j] * vector[j]
            t2 += r2[j] * vector[j]
            t3 += r3[j] * vector[j]
        products[p], products[p + 1], products[p + 2], products[p + 3] = t0, t1, t2, t3
    for p in range(n_quads, n_picks):
        products[p] = dot(rows[picks[p]], vector)


@njit(cache=True, nogil=True, fastmath=FAST)
def products_with(vectors, rows, first, last, products):  # type: ignore[no-untyped-def]
    """Write ``vectors[q] . rows[i]`` to ``products[q, i]`` for all q and for i in [first, last).

    For few vectors, where a library reads `rows` slowly: two vectors and four rows, far apart, at once.
    """
    n_vectors, n_columns = vectors.shape
    kind = vectors.dtype.type
    n_paired = n_vectors - n_vectors % 2
    block = _BLOCK_ROWS if n_vectors > 2 else max(last - first, 1)
    for begin in range(first, last, block):
        end = min(begin + block, last)
        step = (end - begin) // 4
        for q in range(0, n_paired, 2):
            x, y = vectors[q], vectors[q + 1]
            for i in range(begin, begin + step):
                r0, r1, r2, r3 = rows[i], rows[i + step], rows[i + 2 * step], rows[i + 3 * step]
                t0, t1, t2, t3 = kind(0), kind(0), kind(0), kind(0)
                u0, u1, u2, u3 = kind(0), kind(0), kind(0), kind(0)
                for j in range(n_columns):
                    t0 += r0[j] * x[j]
                    t1 += r1[j] * x[j]
                    t2 += r2[j] * x[j]
                    t3 += r3[j] * x[j]
                    u0 += r0[j] * y[j]
                    u1 += r1[j] * y[j]
                    u2 += r2[j] * y[j]
                    u3 += r3[j] * y[j]
                products[q, i], products[q, i + step] = t0, t1
                products[q, i + 2 * step], products[q, i + 3 * step] = t2, t3
                products[q + 1, i], products[q + 1, i + step] = u0, u1
                products[q + 1, i + 2 * step], products[q + 1, i + 3 * step] = u2, u3
        for q in range(n_paired, n_vectors):
            x = vectors[q]
            for i in range(begin, begin + step):
                r0, r1, r2, r3 = rows[i], rows[i + step], rows[i + 2 * step], rows[i + 3 * step]
                t0, t1, t2, t3 = kind(0), kind(0), kind(0), kind(0)
                for j in range(n_columns):
                    t0 += r0[j] * x[j]
                    t1 += r1[j] * x[j]
                    t2 += r2[j] * x[j]
                    t3 += r3[j] * x[j]
                products[q, i], products[q, i + step] = t0, t1
                products[q, i + 2 * step], products[q, i + 3 * step] = t2, t3
        for i in range(begin + 4 * step, end):
            for q in range(n_vectors):
                products[q, i] = dot(rows[i], vectors[q])
