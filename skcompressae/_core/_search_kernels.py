"""Compiled kernels of the search that scan rows of codes, and the heaps of the best.

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

from skcompressae._core._compiling import njit
from skcompressae._core._lanes import N_LANES
from skcompressae._core._search_pending import compact, reject_below
from skcompressae._core._search_vectors import (
    LANES,
    ROWS_AT_ONCE,
    lowest_bit,
    prefetch_item,
    score_row_wide,
    score_rows,
)

__all__ = [
    "collect_rows",
    "exact_score",
    "first_limits",
    "make_room",
    "merge_heaps",
    "note_down",
    "offer",
    "pair_targets",
    "replace_worst",
    "row_norms",
    "scan_rows_single",
    "scan_rows_wide",
    "score_pairs",
    "search_rows",
    "search_rows_single",
    "settle_rows",
    "sort_heaps",
]

# Rows that are fetched from memory while others are scored.
_ROWS_AHEAD = 8
# Components transposed together: the target entries of 64 queries fit half of an L1 cache.
_TRANSPOSED = 16


# ---------------------------------------------------------------------------------------------- heaps
@njit(nogil=True, inline="never")
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


@njit(nogil=True)
def sort_heaps(scores: Any, rows: Any, first: int, last: int) -> None:
    """Sort the heaps ``first:last`` in place: best score first, equal scores by ascending row."""
    for query in range(first, last):
        for size in range(scores.shape[1] - 1, 0, -1):
            score, row = scores[query, 0], rows[query, 0]
            last_score, last_row = scores[query, size], rows[query, size]
            replace_worst(scores[query, :size], rows[query, :size], last_score, last_row)
            scores[query, size] = score
            rows[query, size] = row


@njit(nogil=True)
def merge_heaps(scores: Any, rows: Any, other_scores: Any, other_rows: Any) -> None:
    """Offer every pair of the heaps `other_*` to the heaps `scores`, `rows` of the same queries."""
    for query in range(scores.shape[0]):
        for slot in range(other_scores.shape[1]):
            score, row = other_scores[query, slot], other_rows[query, slot]
            if score > scores[query, 0] or (score == scores[query, 0] and row < rows[query, 0]):
                replace_worst(scores[query], rows[query], score, row)


# ---------------------------------------------------------------------------------------------- rows
@njit(nogil=True)
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


@njit(nogil=True)
def exact_score(indices: Any, values: Any, start: int, stop: int, target: Any) -> float:
    """Return the float64 inner product of the nonzeros ``start:stop`` with one target."""
    total = 0.0
    for position in range(np.uint64(start), np.uint64(stop)):
        total += np.float64(values[position]) * np.float64(target[np.uint64(indices[position])])
    return total


@njit(nogil=True)
def pair_targets(targets: Any, first: int, to_scan_unit: Any, exact: Any, pairs: Any, norms: Any, errors: Any) -> None:
    """Transpose targets to `exact`; write them, scaled below 1, as pairs of 16-bit fractions; sum squares.

    The low half of a word is the target of query ``32 i + lane`` in units of 2**-15; the whole word in units of 2**-31
    is the target of query ``32 i + 16 + lane``: its upper half is the one that brings it nearest, whatever the lower
    one holds. `norms` and `errors` gain the squares of the scaled targets and of the errors made.
    """
    n_queries = to_scan_unit.shape[0]
    scaled = np.zeros(2 * pairs.shape[1])
    for begin in range(0, targets.shape[0], _TRANSPOSED):
        end = min(begin + _TRANSPOSED, targets.shape[0])
        for query in range(n_queries):
            for component in range(begin, end):
                exact[query, component] = targets[component, first + query]
        for component in range(begin, end):
            row = pairs[component]
            for query in range(n_queries):
                scaled[query] = np.float64(targets[component, first + query]) * to_scan_unit[query]
            for block in range(0, row.shape[0], N_LANES):
                for lane in range(N_LANES):
                    low = np.floor(scaled[2 * block + lane] * 32768.0 + 0.5)
                    low = min(max(low, -32768.0), 32767.0)
                    bottom = low + 65536.0 * (low < 0.0)
                    top = np.floor((scaled[2 * block + N_LANES + lane] * 2147483648.0 - bottom) / 65536.0 + 0.5)
                    top = min(max(top, -32768.0), 32767.0)
                    row[block + lane] = np.int32(top * 65536.0 + bottom)
                for lane in range(N_LANES):
                    word = row[block + lane]
                    value = scaled[2 * block + lane]
                    error = value - np.float64(np.float32(np.int32(word << 16))) * 2.0**-31
                    norms[2 * block + lane] += value * value
                    errors[2 * block + lane] += error * error
                    value = scaled[2 * block + N_LANES + lane]
                    error = value - np.float64(np.float32(word)) * 2.0**-31
                    norms[2 * block + N_LANES + lane] += value * value
                    errors[2 * block + N_LANES + lane] += error * error


@njit(nogil=True, inline="always")
def note_down(
    reached: Any, row: int, number: int, scores: Any, exclude: Any, rows: Any, noted: Any, counts: Any
) -> Any:
    """Note a row, `number` in the whole index, for each query whose bit is set in `reached`.

    The last three arrays are those of `Pending`, one by one, and nothing is called here: Numba would count references
    at every row noted, which takes five times as long. Returns a bit for each list that is full; see `make_room`.
    """
    full = np.uint64(0)
    while reached:
        lane = lowest_bit(reached)
        reached &= reached - np.uint64(1)
        if exclude[lane] != number:
            count = counts[lane]
            rows[lane, count] = row
            noted[lane, count] = scores[lane]
            counts[lane] = count + 1
            full |= np.uint64(count + 1 == rows.shape[1]) << np.uint64(lane)
    return full


@njit(nogil=True)
def make_room(full: Any, n_neighbors: int, margins: Any, limits: Any, pending: Any) -> bool:
    """Raise the limits of the full lists and drop what lies below; return whether one stays crowded."""
    is_crowded = False
    while full:
        lane = lowest_bit(full)
        full &= full - np.uint64(1)
        is_crowded |= compact(pending, lane, n_neighbors, margins[lane], limits)
    return is_crowded


@njit(nogil=True)
def scan_rows_wide(
    indptr: Any,
    indices: Any,
    values: Any,
    scale: Any,
    begin: int,
    first_row: int,
    pairs: Any,
    margins: Any,
    exclude: Any,
    n_neighbors: int,
    limits: Any,
    pending: Any,
) -> tuple[int, bool]:
    """Note down the rows from `begin` on that may be among the best of up to `LANES` queries.

    Returns the row to go on with, and whether a list is crowded: it must be settled first.
    """
    scores = np.empty(LANES, np.float32)
    rows, noted, counts = pending.rows, pending.scores, pending.counts
    for row in range(begin, indptr.shape[0] - 1):
        start, stop = np.intp(indptr[row]), np.intp(indptr[row + 1])
        reached = score_row_wide(indices, values, start, stop, pairs, np.float32(scale[row]), limits, scores)
        full = note_down(reached, row, first_row + row, scores, exclude, rows, noted, counts)
        if full and make_room(full, n_neighbors, margins, limits, pending):
            return row + 1, True
    return indptr.shape[0] - 1, False


@njit(nogil=True)
def _are_alike(indptr: Any, row: int, length: int) -> bool:
    """Return whether `ROWS_AT_ONCE` rows from `row` on all have `length` nonzeros, as the first has."""
    is_alike = True
    for i in range(1, ROWS_AT_ONCE):
        is_alike &= indptr[row + i + 1] - indptr[row + i] == length
    return is_alike


@njit(nogil=True)
def scan_rows_single(
    indptr: Any,
    indices: Any,
    values: Any,
    scale: Any,
    begin: int,
    first_row: int,
    target: Any,
    margins: Any,
    exclude: Any,
    n_neighbors: int,
    limits: Any,
    pending: Any,
) -> int:
    """Do what `scan_rows_wide` does for one query, whose target has the shape (n_components, 1)."""
    capacity, n_rows = pending.rows.shape[1], indptr.shape[0] - 1
    limit, count = limits[0], pending.counts[0]
    scores = np.empty(ROWS_AT_ONCE, np.float32)
    row = begin
    while row < n_rows:
        start = np.intp(indptr[row])
        length = np.intp(indptr[row + 1]) - start
        if row + ROWS_AT_ONCE <= n_rows and _are_alike(indptr, row, length):
            reached = score_rows(indices, values, start, length, target, scale, row, limit, scores, ROWS_AT_ONCE)
            n_scored = ROWS_AT_ONCE
        else:
            reached = score_rows(indices, values, start, length, target, scale, row, limit, scores, 1)
            n_scored = 1
        while reached:
            i = lowest_bit(reached)
            reached &= reached - np.uint64(1)
            if exclude[0] == first_row + row + i:
                continue
            pending.rows[0, count] = row + i
            pending.scores[0, count] = scores[i]
            count += 1
            if count == capacity:
                pending.counts[0] = count
                if compact(pending, 0, n_neighbors, margins[0], limits):
                    return row + i + 1
                limit, count = limits[0], pending.counts[0]
        row += n_scored
    pending.counts[0] = count
    return n_rows


@njit(nogil=True)
def offer(
    lane: int,
    score: float,
    number: int,
    to_scan_unit: Any,
    margins: Any,
    limits: Any,
    heap_scores: Any,
    heap_rows: Any,
) -> None:
    """Offer a row of the index with its float64 score to the heap of a query; raise the query's limit if it enters."""
    if score > heap_scores[lane, 0]:
        replace_worst(heap_scores[lane], heap_rows[lane], score, number)
        limits[lane] = max(limits[lane], reject_below(heap_scores[lane, 0], to_scan_unit[lane], margins[lane]))


@njit(nogil=True)
def settle_rows(
    indptr: Any,
    indices: Any,
    values: Any,
    scale: Any,
    first_row: int,
    exact_targets: Any,
    to_scan_unit: Any,
    margins: Any,
    limits: Any,
    pending: Any,
    heap_scores: Any,
    heap_rows: Any,
) -> None:
    """Offer the rows noted down to the heaps, in float64, and empty the lists."""
    rows, noted, counts = pending.rows, pending.scores, pending.counts
    for lane in range(heap_scores.shape[0]):
        compact(pending, lane, heap_scores.shape[1], margins[lane], limits)
        target, count = exact_targets[lane], counts[lane]
        for i in range(-_ROWS_AHEAD, count):
            if i + _ROWS_AHEAD < count:
                row = rows[lane, i + _ROWS_AHEAD]
                start, stop = np.intp(indptr[row]), np.intp(indptr[row + 1])
                for position in range(start, stop, 32):
                    prefetch_item(indices, position)
                    prefetch_item(values, position)
                    prefetch_item(values, position + 16)
            if i < 0:
                continue
            if noted[lane, i] >= limits[lane]:
                row = rows[lane, i]
                score = exact_score(indices, values, indptr[row], indptr[row + 1], target)
                offer(lane, score * scale[row], first_row + row, to_scan_unit, margins, limits, heap_scores, heap_rows)
        counts[lane] = 0


@njit(nogil=True)
def first_limits(heap_scores: Any, to_scan_unit: Any, margins: Any) -> Any:
    """Return the limits that the heaps set, NaN for lanes without a query: no score reaches it, were it infinite."""
    n_queries = heap_scores.shape[0]
    limits = np.full(LANES, np.nan, np.float32)
    for lane in range(n_queries):
        limits[lane] = reject_below(heap_scores[lane, 0], to_scan_unit[lane], margins[lane])
    return limits


@njit(nogil=True)
def search_rows(
    indptr: Any,
    indices: Any,
    values: Any,
    scale: Any,
    first_row: int,
    queries: Any,
    exclude: Any,
    pending: Any,
    heap_scores: Any,
    heap_rows: Any,
) -> None:
    """Offer all rows to the heaps of up to `LANES` queries."""
    pairs, exact_targets, to_scan_unit, margins = queries
    limits = first_limits(heap_scores, to_scan_unit, margins)
    n_neighbors = heap_scores.shape[1]
    row = 0
    while row < scale.shape[0]:
        row, _ = scan_rows_wide(
            indptr, indices, values, scale, row, first_row, pairs, margins, exclude, n_neighbors, limits, pending
        )
        settle_rows(
            indptr,
            indices,
            values,
            scale,
            first_row,
            exact_targets,
            to_scan_unit,
            margins,
            limits,
            pending,
            heap_scores,
            heap_rows,
        )


@njit(nogil=True)
def search_rows_single(
    indptr: Any,
    indices: Any,
    values: Any,
    scale: Any,
    first_row: int,
    queries: Any,
    exclude: Any,
    pending: Any,
    heap_scores: Any,
    heap_rows: Any,
) -> None:
    """Offer all rows to the heap of one query."""
    target, exact_targets, to_scan_unit, margins = queries
    limits = first_limits(heap_scores, to_scan_unit, margins)
    n_neighbors = heap_scores.shape[1]
    row = 0
    while row < scale.shape[0]:
        row = scan_rows_single(
            indptr, indices, values, scale, row, first_row, target, margins, exclude, n_neighbors, limits, pending
        )
        settle_rows(
            indptr,
            indices,
            values,
            scale,
            first_row,
            exact_targets,
            to_scan_unit,
            margins,
            limits,
            pending,
            heap_scores,
            heap_rows,
        )


@njit(nogil=True)
def collect_rows(
    indptr: Any,
    indices: Any,
    values: Any,
    scale: Any,
    exact_targets: Any,
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
            score = sums[lane] * scale[row]
            if score >= limits[lane]:
                found_rows[lane, counts[lane]] = row
                found_scores[lane, counts[lane]] = score
                counts[lane] += 1
    return counts


@njit(nogil=True)
def score_pairs(
    indptr: Any, indices: Any, values: Any, scale: Any, rows: Any, targets: Any, first: int, last: int, scores: Any
) -> None:
    """Write the float64 scores of each query's own rows, for the queries ``first:last``; those of rows below 0 stay.

    `rows` and `scores` are of shape (n_queries, n_rows), `targets` of shape (n_queries, n_components).
    """
    for query in range(first, last):
        for i in range(rows.shape[1]):
            row = rows[query, i]
            if row >= 0:
                start, stop = np.intp(indptr[row]), np.intp(indptr[row + 1])
                scores[query, i] = exact_score(indices, values, start, stop, targets[query]) * scale[row]
