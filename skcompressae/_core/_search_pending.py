"""Rows that may belong to the best of a query, kept until enough have come to say which do not.

A scan scores every row approximately, within a known margin. A row whose approximate score reaches the limit of a query
is only written down; when the list is full, the n-th best score of the list, less twice the margin, is a new limit: n
rows are sure to be better than what lies below. What is left at the end of a run of rows is scored in float64. So few
rows are ever scored twice, and those of one query one after the other, while its target is in the L1 cache.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from skcompressae._core._compiling import njit
from skcompressae._core._topk import partition_largest

__all__ = ["Pending", "compact", "new_pending", "reject_below"]


class Pending(NamedTuple):
    """Rows and approximate scores noted down for each query, in ascending order of the rows."""

    rows: NDArray[np.int32]
    scores: NDArray[np.float32]
    counts: NDArray[np.int64]
    scratch: NDArray[np.float32]


def new_pending(n_queries: int, n_neighbors: int, n_rows: int) -> Pending:
    """Return empty lists for blocks of at most `n_rows` rows."""
    capacity = max(1, min(3 * n_neighbors + 64, n_rows))
    return Pending(
        np.empty((n_queries, capacity), np.int32),
        np.empty((n_queries, capacity), np.float32),
        np.zeros(n_queries, np.int64),
        np.empty(capacity, np.float32),
    )


@njit(nogil=True)
def reject_below(worst: float, to_scan_unit: float, margin: float) -> np.float32:
    """Return the float32 limit under which an approximate score cannot belong to a score above `worst`."""
    limit = worst * to_scan_unit - margin
    # 1.2e-7 = 2**-23 pays for rounding the limit itself to float32
    return np.float32(limit - abs(limit) * 1.2e-7)


@njit(nogil=True)
def compact(pending: Pending, query: int, n_neighbors: int, margin: float, limits: Any) -> bool:
    """Raise the limit of a query by what its list says and drop the rows below; return whether it stays crowded."""
    rows, scores, scratch = pending.rows[query], pending.scores[query], pending.scratch
    count = pending.counts[query]
    if count >= n_neighbors:
        for i in range(count):
            scratch[i] = scores[i]
        nth_best = np.float64(partition_largest(scratch, count, n_neighbors))
        limits[query] = max(limits[query], reject_below(nth_best, 1.0, 2.0 * margin))
    limit = limits[query]
    kept = 0
    for i in range(count):
        rows[kept] = rows[i]
        scores[kept] = scores[i]
        kept += int(scores[i] >= limit)
    pending.counts[query] = kept
    return kept > scores.shape[0] - scores.shape[0] // 4
