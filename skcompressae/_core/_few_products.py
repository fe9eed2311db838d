"""Products of a few vectors with all rows of a matrix, which BLAS libraries read slowly for so few.

Unlike in `_gathers`, the last digits of a product may depend on where its row lies and on the vectors beside it.
"""

from __future__ import annotations

from typing import Any

from skcompressae._core._arrays import FloatArray
from skcompressae._core._compiling import njit, readable
from skcompressae._core._gathers import FAST, dot
from skcompressae._core._threads import run_blocks

__all__ = ["FEW_VECTORS", "count_few_threads", "multiply_few", "multiply_rows"]

# Up to so many vectors this is faster than NumPy's matrix product: 2, 8 and 32 by a (4096, 768) matrix take one core
# 0.2, 0.6 and 2.8 ms against 1.8, 2.1 and 3.6.
FEW_VECTORS = 32
# Rows that stay in the second-level cache while several vectors meet them.
_BLOCK_ROWS = 64
# Products that a thread does in the time that waking another takes.
_PRODUCTS_PER_THREAD = 2 * 2**20


def count_few_threads(n_vectors: int, rows: FloatArray) -> int:
    """Return how many threads are worth waking to multiply a few vectors with all rows."""
    return max(1, -(-n_vectors // 2) * rows.size // _PRODUCTS_PER_THREAD)  # two vectors meet the rows at once


def multiply_few(vectors: FloatArray, rows: FloatArray, products: FloatArray, n_threads: int) -> None:
    """Write ``vectors @ rows.T`` to `products`, each thread multiplying some of the rows; all of one dtype."""
    vectors, rows = readable(vectors), readable(rows)

    def multiply(start: int, stop: int) -> None:
        multiply_rows(vectors, rows, start, stop, products)

    run_blocks(multiply, len(rows), max(1, -(-len(rows) // n_threads)), n_threads)


@njit(nogil=True, fastmath=FAST)
def multiply_rows(vectors: Any, rows: Any, first: int, last: int, products: Any) -> None:
    """Write ``vectors[q] . rows[i]`` to ``products[q, i]`` for all q and for i in [first, last).

    Two vectors meet four rows, far apart, at once; a last vector without a partner meets them twice, which costs
    nothing: reading the rows takes longer.
    """
    n_vectors, n_columns = vectors.shape
    kind = vectors.dtype.type
    block = _BLOCK_ROWS if n_vectors > 2 else max(last - first, 1)
    for begin in range(first, last, block):
        end = min(begin + block, last)
        step = (end - begin) // 4
        for q in range(0, n_vectors, 2):
            partner = min(q + 1, n_vectors - 1)
            x, y = vectors[q], vectors[partner]
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
                products[partner, i], products[partner, i + step] = u0, u1
                products[partner, i + 2 * step], products[partner, i + 3 * step] = u2, u3
        for i in range(begin + 4 * step, end):
            for q in range(n_vectors):
                products[q, i] = dot(rows[i], vectors[q])
