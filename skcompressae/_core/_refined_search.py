"""Exact search by sparse code and residual code together: ``(s . t + r . q) * factor`` of packed rows.

A row's score is its inner product in code space, in float64, plus that of its residual code with the query, which is
one entry of a table for each byte, in float32. Either some rows of each query are scored, candidates of another search,
or all of them; then most are rejected by a bound of the first part, and only the others scored in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from skcompressae._core._refined_rows import RefinedRows, offer_rows, refined_scores
from skcompressae._core._search import Found, TargetGroup, prepare_group
from skcompressae._core._search_kernels import merge_heaps, sort_heaps
from skcompressae._core._search_store import BLOCK_ROWS, PackedStore
from skcompressae._core._threads import row_blocks, run_blocks

__all__ = ["RefinedChunk", "search_refined", "within_refined"]

_NO_ROW = np.iinfo(np.int64).max


@dataclass(frozen=True)
class RefinedChunk:
    """Packed rows with residual codes, and what turns their inner products into scores.

    Attributes
    ----------
    store : PackedStore
        The rows.
    factors : ndarray of shape (n_rows,), dtype=float32
        What scores are multiplied by.
    """

    store: PackedStore
    factors: NDArray[np.float32]


class _Heap(NamedTuple):
    """The best rows of one query so far, and a row that is not to be among them, or -1."""

    scores: NDArray[np.float64]
    numbers: NDArray[np.int64]
    excluded: int


def _is_short(rows: RefinedRows) -> bool:
    """Return whether the scales of rows are stored in 16 bits."""
    return bool(rows.row_scales.dtype == np.uint16)


def _offer(
    rows: RefinedRows,
    which: NDArray[np.int64],
    start: int,
    first_row: int,
    target: NDArray[Any],
    tables: NDArray[np.float32],
    heap: _Heap,
) -> None:
    """Score the rows ``start + which``, ascending, each by itself; `first_row` is the number of row 0."""
    place = (start, which, first_row, heap.excluded)
    offer_rows(rows, _is_short(rows), *place, target, tables, heap.scores, heap.numbers)


def _scan(
    chunk: RefinedChunk,
    rows: RefinedRows,
    bounds: tuple[int, int],
    first_row: int,
    group: TargetGroup,
    tables: NDArray[np.float32],
    heap: _Heap,
) -> None:
    """Score the rows within `bounds`; `first_row` is the number of row 0."""
    store, (start, stop) = chunk.store, bounds
    words = store.words_of(start, stop)
    if store.kernels is None or words is None:
        for block, end in row_blocks(stop - start, BLOCK_ROWS):
            _offer(rows, np.arange(end - block), start + block, first_row, group.exact[0], tables, heap)
        return
    queries = (group.scan, group.exact, group.to_scan_unit, store.rounding * float(group.norms[0]))
    codes, factors = rows.codes[start:stop], rows.factors[start:stop]
    place = (first_row + start, queries, heap.excluded)
    store.kernels.refined(words, codes, factors, *place, tables, heap.scores, heap.numbers)


def _target(targets: NDArray[Any], query: int, n_rows: int) -> NDArray[Any]:
    """Return one of the targets, with zeros up to any index that a word can hold."""
    target = np.zeros(n_rows, targets.dtype)
    target[: len(targets)] = targets[:, query]
    return target


def _n_target_rows(chunks: Sequence[RefinedChunk]) -> int:
    return max(chunk.store.n_targets for chunk in chunks)


def search_refined(
    chunks: Sequence[RefinedChunk],
    targets: NDArray[Any],
    tables_of: Callable[[int, int], NDArray[np.float32]],
    candidates: NDArray[np.int64] | None,
    n_neighbors: int,
    *,
    exclude: NDArray[np.int64],
    n_threads: int = 1,
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Find the `n_neighbors` best rows of each query by code and residual code.

    Parameters
    ----------
    chunks : sequence of RefinedChunk
        The documents, numbered through.
    targets : ndarray of shape (n_components, n_queries)
        Queries in code space.
    tables_of : callable
        Takes the number of a query and that of a chunk, and returns the tables of inner products with the centroids,
        float32 of shape (n_bytes, 256).
    candidates : ndarray of shape (n_queries, n_candidates), dtype=int64, or None
        Rows that are scored, all different; None for all.
    n_neighbors : int
        At most the number of rows that are scored, less an excluded one.
    exclude : ndarray of shape (n_queries,), dtype=int64
        A row to leave out per query; -1 for none.
    n_threads : int, default=1
        Threads. Queries are shared out among them; fewer queries than threads share out all rows.

    Returns
    -------
    scores, rows : ndarrays of shape (n_queries, n_neighbors), dtype float64 and int64
        Best first; equal scores by ascending row.
    """
    n_queries = targets.shape[1]
    rows = [chunk.store.refined_rows(chunk.factors) for chunk in chunks]
    starts = np.cumsum([0, *(len(chunk.factors) for chunk in chunks)])
    n_target_rows = _n_target_rows(chunks)
    n_shares = n_threads if candidates is None and n_queries < n_threads else 1
    bounds = np.linspace(0, starts[-1], n_shares + 1).astype(np.int64)
    heaps = np.full((n_shares, n_queries, n_neighbors), -np.inf)
    numbers = np.full((n_shares, n_queries, n_neighbors), _NO_ROW, np.int64)
    if candidates is None:
        for chunk in chunks:
            if chunk.store.kernels is not None:
                chunk.store.prepare(n_threads)

    def scan(share: int, query: int, heap: _Heap) -> None:
        group = prepare_group(targets, query, query + 1, n_target_rows)
        for i, chunk in enumerate(chunks):
            begin, end = int(starts[i]), int(starts[i + 1])
            start, stop = max(begin, int(bounds[share])), min(end, int(bounds[share + 1]))
            if start < stop:
                _scan(chunk, rows[i], (start - begin, stop - begin), begin, group, tables_of(query, i), heap)

    def offer(query: int, mine: NDArray[np.int64], heap: _Heap) -> None:
        target = _target(targets, query, n_target_rows)
        for i in range(len(chunks)):
            begin, end = np.searchsorted(mine, starts[i : i + 2])
            if begin < end:
                first_row = int(starts[i])
                _offer(rows[i], mine[begin:end] - first_row, 0, first_row, target, tables_of(query, i), heap)

    def work(first: int, last: int) -> None:
        for unit in range(first, last):
            share, query = divmod(unit, n_queries)
            heap = _Heap(heaps[share, query], numbers[share, query], int(exclude[query]))
            if candidates is None:
                scan(share, query, heap)
            else:
                offer(query, np.sort(candidates[query]), heap)

    n_units = n_shares * n_queries
    run_blocks(work, n_units, max(1, -(-n_units // max(1, n_threads))), n_threads)
    scores, found = heaps[0], numbers[0]
    for share in range(1, n_shares):
        merge_heaps(scores, found, heaps[share], numbers[share])
    sort_heaps(scores, found, 0, n_queries)
    return scores, found


def within_refined(
    chunks: Sequence[RefinedChunk],
    targets: NDArray[Any],
    tables_of: Callable[[int, int], NDArray[np.float32]],
    limits: NDArray[np.float64],
    *,
    n_threads: int = 1,
) -> list[Found]:
    """Find all rows whose score by code and residual code reaches the limit of the query.

    Parameters
    ----------
    chunks, targets, tables_of, n_threads
        As in `search_refined`.
    limits : ndarray of shape (n_queries,)
        Smallest score kept.

    Returns
    -------
    found : list of (rows, scores)
        One pair per query, by ascending row.
    """
    n_target_rows = _n_target_rows(chunks)
    rows = [chunk.store.refined_rows(chunk.factors) for chunk in chunks]
    parts: list[list[Found]] = [[] for _ in limits]

    def work(first: int, last: int) -> None:
        for query in range(first, last):
            target, first_row = _target(targets, query, n_target_rows), 0
            for number, stored in enumerate(rows):
                tables = tables_of(query, number)
                for start, stop in row_blocks(len(stored.factors), BLOCK_ROWS):
                    which = np.arange(stop - start)
                    scores = refined_scores(stored, _is_short(stored), start, which, target, tables)
                    kept = np.flatnonzero(scores >= limits[query])
                    parts[query].append((kept + first_row + start, scores[kept]))
                first_row += len(stored.factors)

    run_blocks(work, len(limits), 1, n_threads)
    return [(np.concatenate([part[0] for part in of]), np.concatenate([part[1] for part in of])) for of in parts]
