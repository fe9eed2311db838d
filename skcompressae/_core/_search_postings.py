"""Compiled kernels of the search that scan posting lists: codes listed by component.

Sums are float64 throughout, so every score is final at once. The rules of the heaps are those of `_search_kernels`.
All kernels release the GIL and none starts threads.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from skcompressae._core._compiling import njit
from skcompressae._core._search_kernels import replace_worst
from skcompressae._core._search_vectors import any_above

__all__ = ["build_postings", "collect_postings", "postings_to_rows", "scan_postings"]

# Accumulators are compared in groups so that one branch rejects a whole group.
_GROUP = 64


@njit(nogil=True)
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


@njit(nogil=True)
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


@njit(nogil=True)
def _add_postings(offsets: Any, posting_rows: Any, posting_values: Any, columns: Any, weights: Any, sums: Any) -> None:
    for i in range(columns.shape[0]):
        weight = np.float64(weights[i])
        column = columns[i]
        for position in range(np.uint64(offsets[column]), np.uint64(offsets[column + 1])):
            sums[np.uint64(posting_rows[position])] += weight * np.float64(posting_values[position])


@njit(nogil=True)
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


@njit(nogil=True)
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
