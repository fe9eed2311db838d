"""Compiled kernels of the search: scan rows of codes, scan posting lists, keep the best in a heap.

Invariants shared by every kernel:

- a *score* is ``scale[row] * sum_j code[row, j] * target[j]``; larger is better. It is always accumulated in
  float64 before it decides anything; float32 is used only to reject rows, with a rigorous error margin;
- a heap of `n` (score, row) pairs keeps its *worst* pair at slot 0, and begins filled with ``(-inf,
  INT64_MAX)``; of two equal scores the larger row is the worse one, so ties are won by the lowest row;
- rows are visited in ascending order within one heap, so a row that only ties with the worst pair never
  enters.

All kernels release the GIL and none starts threads.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from skcompressae._core._search_vectors import LANES, VECTOR, any_above, score_blocks, score_row_wide

__all__ = [
    "build_postings",
    "collect_postings",
    "collect_rows",
    "exact_score",
    "merge_heaps",
    "postings_to_rows",
    "reject_below",
    "replace_worst",
    "row_norms",
    "scan_postings",
    "scan_rows_single",
    "scan_rows_wide",
    "score_pairs",
    "sort_heaps",
]

# Accumulators are compared in groups so that one branch rejects a whole group.
_GROUP = 64


# ---------------------------------------------------------------------------------------------- heaps
@njit(cache=True, nogil=True, inline="never")
def replace_worst(scores: Any, rows: Any, score: float, row: int) -> None:
    """Put ``(score, row)`` in the place of the worst pair and restore the heap."""
    size = scores.shape[0]
    slot = 0
    while True:
        child = 2 * slot + 1
        if child >= size:
            break
        other = child + 1
        if other < size and (
            scores[other] < scores[child] or (scores[other] == scores[child] and rows[other] > rows[child])
        ):
            child = other
        if scores[child] > score or (scores[child] == score and rows[child] < row):
            break
        scores[slot] = scores[child]
        rows[slot] = rows[child]
        slot = child
    scores[slot] = score
    rows[slot] = row


@njit(cache=True, nogil=True)
def sort_heaps(scores: Any, rows: Any, first: int, last: int) -> None:
    """Sort the heaps ``first:last`` in place: best score first, equal scores by ascending row."""
    for query in range(first, last):
        for size in range(scores.shape[1] - 1, 0, -1):
            score, row = scores[query, 0], rows[query, 0]
            last_score, last_row = scores[query, size], rows[query, size]
            replace_worst(scores[query, :size], rows[query, :size], last_score, last_row)
            scores[query, size] = score
            rows[query, size] = row


@njit(cache=True, nogil=True)
def merge_heaps(scores: Any, rows: Any, other_scores: Any, other_rows: Any) -> None:
    """Offer every pair of the heaps `other_*` to the heaps `scores`, `rows` of the same queries."""
    for query in range(scores.shape[0]):
        for slot in range(other_scores.shape[1]):
            score, row = other_scores[query, slot], other_rows[query, slot]
            if score > scores[query, 0] or (score == scores[query, 0] and row < rows[query, 0]):
                replace_worst(scores[query], rows[query], score, row)


# ---------------------------------------------------------------------------------------------- rows
@njit(cache=True, nogil=True)
def row_norms(indptr: Any, values: Any) -> Any:
    """Return the float64 Euclidean norms of the rows."""
    norms = np.empty(indptr.shape[0] - 1, np.float64)
    for row in range(norms.shape[0]):
        total = 0.0
        for position in range(indptr[row], indptr[row + 1]):
            value = np.float64(values[position])
            total += value * value
        norms[row] = np.sqrt(total)
    return norms


@njit(cache=True, nogil=True)
def exact_score(indices: Any, values: Any, start: int, stop: int, targets: Any, lane: int) -> float:
    """Return the float64 inner product of the nonzeros ``start:stop`` with one target."""
    total = 0.0
    for position in range(start, stop):
        total += np.float64(values[position]) * np.float64(targets[np.uint64(indices[position]), lane])
    return total


@njit(cache=True, nogil=True)
def reject_below(worst: float, to_scan_unit: float, margin: float) -> np.float32:
    """Return the float32 limit under which a float32 score cannot belong to a score above `worst`."""
    limit = worst * to_scan_unit
    # 1.2e-7 = 2**-23 pays for rounding the limit itself to float32
    return np.float32(limit - abs(limit) * 1.2e-7 - margin)


@njit(cache=True, nogil=True)
def scan_rows_wide(
    indptr: Any,
    indices: Any,
    values: Any,
    scale: Any,
    first_row: int,
    scan_targets: Any,
    exact_targets: Any,
    to_scan_unit: Any,
    to_score: Any,
    margins: Any,
    exclude: Any,
    n_queries: int,
    heap_scores: Any,
    heap_rows: Any,
) -> None:
    """Offer all rows to the heaps of up to `LANES` queries.

    `scan_targets` is float32 of shape (n_components, LANES), scaled per query by the power of two
    `to_scan_unit`; `exact_targets` has the same shape; its sums times `to_score` are scores.
    """
    limits = np.full(LANES, np.inf, np.float32)
    for lane in range(n_queries):
        limits[lane] = reject_below(heap_scores[lane, 0], to_scan_unit[lane], margins[lane])
    scores = np.empty(LANES, np.float32)
    for row in range(indptr.shape[0] - 1):
        start, stop = np.intp(indptr[row]), np.intp(indptr[row + 1])
        if score_row_wide(indices, values, start, stop, scan_targets, np.float32(scale[row]), limits, scores):
            for lane in range(n_queries):
                if scores[lane] >= limits[lane] and exclude[lane] != first_row + row:
                    score = exact_score(indices, values, start, stop, exact_targets, lane)
                    score *= scale[row] * to_score[lane]
                    if score > heap_scores[lane, 0]:
                        replace_worst(heap_scores[lane], heap_rows[lane], score, first_row + row)
                        limits[lane] = reject_below(heap_scores[lane, 0], to_scan_unit[lane], margins[lane])


@njit(cache=True, nogil=True)
def scan_rows_single(
    indptr: Any,
    indices: Any,
    values: Any,
    scale: Any,
    first_row: int,
    scan_targets: Any,
    exact_targets: Any,
    to_scan_unit: Any,
    to_score: Any,
    margins: Any,
    exclude: Any,
    heap_scores: Any,
    heap_rows: Any,
) -> None:
    """Offer all rows to the heap of one query; the targets have the shape (n_components, 1)."""
    limit = reject_below(heap_scores[0, 0], to_scan_unit[0], margins[0])
    for row in range(indptr.shape[0] - 1):
        start, stop = np.intp(indptr[row]), np.intp(indptr[row + 1])
        n_blocks = (stop - start) // VECTOR
        approximate = score_blocks(indices, values, start, n_blocks, scan_targets)
        for position in range(np.uint64(start + n_blocks * VECTOR), np.uint64(stop)):
            approximate += np.float32(values[position]) * scan_targets[np.uint64(indices[position]), 0]
        approximate *= np.float32(scale[row])
        if approximate >= limit and exclude[0] != first_row + row:
            score = exact_score(indices, values, start, stop, exact_targets, 0) * (scale[row] * to_score[0])
            if score > heap_scores[0, 0]:
                replace_worst(heap_scores[0], heap_rows[0], score, first_row + row)
                limit = reject_below(heap_scores[0, 0], to_scan_unit[0], margins[0])


@njit(cache=True, nogil=True)
def collect_rows(
    indptr: Any,
    indices: Any,
    values: Any,
    scale: Any,
    exact_targets: Any,
    to_score: Any,
    limits: Any,
    found_rows: Any,
    found_scores: Any,
) -> Any:
    """Write, per query, the rows whose score reaches its limit; return how many each query found."""
    n_queries = limits.shape[0]
    counts = np.zeros(n_queries, np.int64)
    sums = np.empty(n_queries, np.float64)
    for row in range(indptr.shape[0] - 1):
        sums[:] = 0.0
        for position in range(indptr[row], indptr[row + 1]):
            value = np.float64(values[position])
            column = np.uint64(indices[position])
            for lane in range(n_queries):
                sums[lane] += value * np.float64(exact_targets[column, lane])
        for lane in range(n_queries):
            score = sums[lane] * (scale[row] * to_score[lane])
            if score >= limits[lane]:
                found_rows[lane, counts[lane]] = row
                found_scores[lane, counts[lane]] = score
                counts[lane] += 1
    return counts


@njit(cache=True, nogil=True)
def score_pairs(
    indptr: Any, indices: Any, values: Any, scale: Any, rows: Any, lane: int, exact_targets: Any, scores: Any
) -> None:
    """Write the float64 scores of the listed `rows` against one query (before its `to_score` factor)."""
    for i in range(rows.shape[0]):
        row = rows[i]
        start, stop = np.intp(indptr[row]), np.intp(indptr[row + 1])
        scores[i] = exact_score(indices, values, start, stop, exact_targets, lane) * scale[row]


# ---------------------------------------------------------------------------------------------- postings
@njit(cache=True, nogil=True)
def build_postings(indptr: Any, indices: Any, values: Any, n_components: int) -> Any:
    """Transpose at most 65,536 rows: (offsets int64, rows uint16, values), rows ascending in each list."""
    n_nonzero = indptr[-1] - indptr[0]
    offsets = np.zeros(n_components + 1, np.int64)
    for position in range(indptr[0], indptr[-1]):
        offsets[np.uint64(indices[position]) + np.uint64(1)] += 1
    for column in range(n_components):
        offsets[column + 1] += offsets[column]
    cursor = offsets[:-1].copy()
    posting_rows = np.empty(n_nonzero, np.uint16)
    posting_values = np.empty(n_nonzero, values.dtype)
    for row in range(indptr.shape[0] - 1):
        for position in range(indptr[row], indptr[row + 1]):
            slot = cursor[np.uint64(indices[position])]
            posting_rows[slot] = row
            posting_values[slot] = values[position]
            cursor[np.uint64(indices[position])] += 1
    return offsets, posting_rows, posting_values


@njit(cache=True, nogil=True)
def postings_to_rows(offsets: Any, posting_rows: Any, posting_values: Any, n_rows: int) -> Any:
    """Undo `build_postings`: (indptr int64, indices int32, values), columns ascending per row."""
    indptr = np.zeros(n_rows + 1, np.int64)
    for position in range(posting_rows.shape[0]):
        indptr[np.uint64(posting_rows[position]) + np.uint64(1)] += 1
    for row in range(n_rows):
        indptr[row + 1] += indptr[row]
    cursor = indptr[:-1].copy()
    indices = np.empty(posting_rows.shape[0], np.int32)
    values = np.empty(posting_rows.shape[0], posting_values.dtype)
    for column in range(offsets.shape[0] - 1):
        for position in range(offsets[column], offsets[column + 1]):
            slot = cursor[np.uint64(posting_rows[position])]
            indices[slot] = column
            values[slot] = posting_values[position]
            cursor[np.uint64(posting_rows[position])] += 1
    return indptr, indices, values


@njit(cache=True, nogil=True)
def _add_postings(offsets: Any, posting_rows: Any, posting_values: Any, columns: Any, weights: Any, sums: Any) -> None:
    for i in range(columns.shape[0]):
        weight = np.float64(weights[i])
        column = columns[i]
        for position in range(np.uint64(offsets[column]), np.uint64(offsets[column + 1])):
            sums[np.uint64(posting_rows[position])] += weight * np.float64(posting_values[position])


@njit(cache=True, nogil=True)
def scan_postings(
    offsets: Any,
    posting_rows: Any,
    posting_values: Any,
    scale: Any,
    first_row: int,
    query_indptr: Any,
    query_indices: Any,
    query_values: Any,
    exclude: Any,
    first_query: int,
    last_query: int,
    sums: Any,
    heap_scores: Any,
    heap_rows: Any,
) -> None:
    """Offer the rows of one block of postings to the heaps of the queries ``first_query:last_query``.

    `sums` is zeroed float64 scratch of at least n_rows entries, left zeroed. The sums are float64 throughout:
    it costs nothing here (the loop waits for posting entries, not for arithmetic) and makes every score final
    at once.
    """
    n_rows = scale.shape[0]
    for query in range(first_query, last_query):
        start, stop = query_indptr[query], query_indptr[query + 1]
        _add_postings(offsets, posting_rows, posting_values, query_indices[start:stop], query_values[start:stop], sums)
        scores, rows = heap_scores[query], heap_rows[query]
        skip = exclude[query] - first_row
        for low in range(0, n_rows, _GROUP):
            high = min(low + _GROUP, n_rows)
            if high - low < _GROUP or any_above(sums, scale, low, low, scores[0], _GROUP // 8):
                for row in range(low, high):
                    score = sums[row] * scale[row]
                    if score > scores[0] and row != skip:
                        replace_worst(scores, rows, score, first_row + row)
            sums[low:high] = 0.0


@njit(cache=True, nogil=True)
def collect_postings(
    offsets: Any,
    posting_rows: Any,
    posting_values: Any,
    scale: Any,
    columns: Any,
    weights: Any,
    limit: float,
    sums: Any,
    found_rows: Any,
    found_scores: Any,
) -> int:
    """Write the rows of one block whose score reaches `limit` for one query; return how many."""
    _add_postings(offsets, posting_rows, posting_values, columns, weights, sums)
    count = 0
    for row in range(scale.shape[0]):
        score = sums[row] * scale[row]
        if score >= limit:
            found_rows[count] = row
            found_scores[count] = score
            count += 1
        sums[row] = 0.0
    return count
