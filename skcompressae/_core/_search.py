"""Exact search over chunks of codes: the best n per query, or all within a limit, in bounded memory.

Two kinds of query: *targets*, dense vectors of code space (reconstructed and asymmetric search; one column
per query), and *codes*, CSR rows (sparse search). A score is ``scale * (code . query)``; scores come out in
float64, best first, equal scores by ascending row. Beside the chunks, memory is bounded by one batch of
queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from skcompressae._core._search_kernels import (
    collect_postings,
    collect_rows,
    merge_heaps,
    scan_postings,
    scan_rows_single,
    scan_rows_wide,
    sort_heaps,
)
from skcompressae._core._search_store import BLOCK_ROWS, Chunk, PackedStore, PostingStore
from skcompressae._core._search_vectors import LANES
from skcompressae._core._threads import row_blocks, run_blocks

__all__ = ["TargetGroup", "prepare_targets", "search", "within"]

Found = tuple[NDArray[np.int64], NDArray[np.float64]]

_NO_ROW = np.iinfo(np.int64).max
_UNIT_ROUNDOFF = 2.0**-24
# Rows collected at once by `within`: bounds its scratch to LANES * 8,192 * 16 bytes = 4 MiB per thread.
_COLLECT_ROWS = 8_192


@dataclass(frozen=True)
class TargetGroup:
    """Up to `LANES` targets laid out for the kernels: lane by lane within each component."""

    scan: NDArray[np.float32]
    exact: NDArray[Any]
    to_scan_unit: NDArray[np.float64]
    to_score: NDArray[np.float64]
    norms: NDArray[np.float64]
    first: int
    size: int

    def margins(self, chunk: Chunk) -> NDArray[np.float64]:
        """Bound the error of a float32 score.

        A sum of n products has a relative error below ``n * u`` of the sum of magnitudes, at most
        ``reach * norm(target)`` by Cauchy-Schwarz; the conversions, the factors and the norm itself add a few
        ``u``. The last term pays for values that underflow float32.
        """
        relative = (chunk.longest + 12) * _UNIT_ROUNDOFF * 1.01
        tiny = 1.2e-38 * (chunk.longest + 2) * (float(chunk.scale.max(initial=0.0)) + 2.0**20 * chunk.reach)
        return relative * chunk.reach * self.norms + tiny


def _aligned_zeros(n_rows: int, n_columns: int) -> NDArray[np.float32]:
    """Return float32 zeros that begin on a cache line: a vector across two lines costs two loads from L2."""
    line = 64 // 4
    buffer = np.zeros(n_rows * n_columns + line, np.float32)
    skip = (-buffer.ctypes.data // 4) % line
    return buffer[skip : skip + n_rows * n_columns].reshape(n_rows, n_columns)


def prepare_targets(targets: NDArray[Any], n_rows: int | None = None) -> list[TargetGroup]:
    """Split targets, (n_components, n_queries), in groups of `LANES`; scale each by a power of two.

    `n_rows` at or above n_components adds zero rows, for kernels that look up by an index of whole bits.
    """
    groups = []
    n_components, n_queries = targets.shape
    n_rows = n_components if n_rows is None else n_rows
    for start, stop in row_blocks(n_queries, LANES):
        size = stop - start
        part = targets[:, start:stop]
        peak = np.abs(part).max(axis=0, initial=0.0).astype(np.float64)
        exponent = np.where(peak > 0, np.frexp(peak)[1], 0)
        to_scan_unit = np.ldexp(1.0, -exponent)
        scan = _aligned_zeros(n_rows, 1 if size == 1 else LANES)
        np.multiply(part, to_scan_unit, out=scan[:n_components, :size], casting="same_kind")
        norms = np.sqrt(np.einsum("ij,ij->j", scan[:, :size], scan[:, :size])).astype(np.float64)
        if targets.dtype == np.float32:
            exact, to_score = scan, np.ldexp(1.0, exponent)
        else:
            exact, to_score = np.zeros((n_rows, size), targets.dtype), np.ones(size)
            exact[:n_components] = part
        groups.append(TargetGroup(scan, exact, to_scan_unit, to_score, norms, start, size))
    return groups


def _target_rows(chunks: Sequence[Chunk]) -> int:
    """Return the rows that targets must have for every store to look up any index it can hold."""
    stores = [chunk.store for chunk in chunks]
    return max((s.n_targets if isinstance(s, PackedStore) else s.n_components for s in stores), default=0)


def _empty_heaps(n_queries: int, n_neighbors: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    scores = np.full((n_queries, n_neighbors), -np.inf)
    return scores, np.full((n_queries, n_neighbors), _NO_ROW, np.int64)


@dataclass(frozen=True)
class _Piece:
    """Rows ``start:stop`` of a chunk; `first_row` is the row number of ``start`` in the whole index."""

    chunk: Chunk
    start: int
    stop: int
    first_row: int


def _pieces(chunks: Sequence[Chunk], size: int) -> list[_Piece]:
    pieces, first_row = [], 0
    for chunk in chunks:
        for start, stop in row_blocks(chunk.store.n_rows, size):
            pieces.append(_Piece(chunk, start, stop, first_row + start))
        first_row += chunk.store.n_rows
    return pieces


def _scan_targets(
    pieces: Sequence[_Piece],
    groups: Sequence[TargetGroup],
    exclude: NDArray[np.int64],
    heap_scores: NDArray[np.float64],
    heap_rows: NDArray[np.int64],
) -> None:
    for piece in pieces:
        store = piece.chunk.store
        scale = piece.chunk.scale[piece.start : piece.stop]
        words = store.words_of(piece.start, piece.stop) if isinstance(store, PackedStore) else None
        block = store.block(piece.start, piece.stop) if words is None else None
        for group in groups:
            lanes = slice(group.first, group.first + group.size)
            queries = (group.scan, group.exact, group.to_scan_unit, group.to_score, group.margins(piece.chunk))
            heaps = (heap_scores[lanes], heap_rows[lanes])
            size = () if group.size == 1 else (group.size,)
            if isinstance(store, PackedStore) and store.kernels is not None and words is not None:
                scan = store.kernels.single if group.size == 1 else store.kernels.wide
                scan(words, scale, piece.first_row, queries, exclude[lanes], *size, *heaps)
            elif block is not None:
                scan = scan_rows_single if group.size == 1 else scan_rows_wide
                scan(*block, scale, piece.first_row, *queries, exclude[lanes], *size, *heaps)


def _scan_codes(
    pieces: Sequence[_Piece],
    queries: csr_matrix,
    exclude: NDArray[np.int64],
    first: int,
    last: int,
    heap_scores: NDArray[np.float64],
    heap_rows: NDArray[np.int64],
) -> None:
    sums = np.zeros(max((piece.stop - piece.start for piece in pieces), default=0))
    for piece in pieces:
        store = piece.chunk.store
        if not isinstance(store, PostingStore):
            raise TypeError(f"code queries need a PostingStore, got {type(store).__name__}")
        scan_postings(
            store.offsets,
            store.rows,
            store.values,
            piece.chunk.scale,
            piece.first_row,
            queries.indptr,
            queries.indices,
            queries.data,
            exclude,
            first,
            last,
            sums,
            heap_scores,
            heap_rows,
        )


def search(
    chunks: Sequence[Chunk],
    queries: NDArray[Any] | csr_matrix,
    n_neighbors: int,
    *,
    exclude: NDArray[np.int64] | None = None,
    n_threads: int = 1,
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Find the `n_neighbors` best rows of each query.

    Parameters
    ----------
    chunks : sequence of Chunk
        The documents.
    queries : ndarray of shape (n_components, n_queries) or CSR of shape (n_queries, n_components)
        Targets, or codes; codes need chunks of postings.
    n_neighbors : int
        At most the number of rows less the excluded one.
    exclude : ndarray of shape (n_queries,), dtype=int64, default=None
        A row to leave out per query; -1 for none.
    n_threads : int, default=1
        Threads. Many queries are shared out among them; few queries share out the rows.

    Returns
    -------
    scores, rows : ndarrays of shape (n_queries, n_neighbors), dtype float64 and int64
        Best first; equal scores by ascending row.
    """
    groups = prepare_targets(queries, _target_rows(chunks)) if isinstance(queries, np.ndarray) else []
    codes: Any = None if isinstance(queries, np.ndarray) else queries
    n_queries = queries.shape[1] if codes is None else codes.shape[0]
    if exclude is None:
        exclude = np.full(n_queries, -1, np.int64)
    scores, rows = _empty_heaps(n_queries, n_neighbors)
    if n_queries == 0:
        return scores, rows
    pieces = _pieces(chunks, BLOCK_ROWS)
    n_shares = len(groups) if codes is None else n_queries

    def scan(some: Sequence[_Piece], first: int, last: int, heaps: tuple[Any, Any]) -> None:
        if codes is None:
            _scan_targets(some, groups[first:last], exclude, *heaps)
        else:
            _scan_codes(some, codes, exclude, first, last, *heaps)

    if n_threads == 1 or n_shares % n_threads == 0 or n_shares >= 4 * n_threads:
        per_thread = -(-n_shares // n_threads)
        run_blocks(lambda first, last: scan(pieces, first, last, (scores, rows)), n_shares, per_thread, n_threads)
    else:
        # rows are shared out evenly; within each share they stay in ascending order
        n_rows = sum(chunk.store.n_rows for chunk in chunks)
        if codes is None:
            pieces = _pieces(chunks, max(1, min(BLOCK_ROWS, -(-n_rows // n_threads))))
        per_share = -(-len(pieces) // n_threads)
        partial = {start: _empty_heaps(n_queries, n_neighbors) for start, _ in row_blocks(len(pieces), per_share)}
        run_blocks(
            lambda start, stop: scan(pieces[start:stop], 0, n_shares, partial[start]),
            len(pieces),
            per_share,
            n_threads,
        )
        for heaps in partial.values():
            merge_heaps(scores, rows, *heaps)
    run_blocks(lambda first, last: sort_heaps(scores, rows, first, last), n_queries, 256, n_threads)
    return scores, rows


def within(
    chunks: Sequence[Chunk],
    queries: NDArray[Any] | csr_matrix,
    limits: NDArray[np.float64],
    *,
    n_threads: int = 1,
) -> list[Found]:
    """Find all rows whose score reaches the limit of the query.

    Parameters
    ----------
    chunks, queries, n_threads
        As in `search`.
    limits : ndarray of shape (n_queries,)
        Smallest score kept.

    Returns
    -------
    found : list of (rows, scores)
        One pair per query, by ascending row.
    """
    groups = prepare_targets(queries) if isinstance(queries, np.ndarray) else []
    codes: Any = None if isinstance(queries, np.ndarray) else queries
    n_queries = len(limits)
    pieces = _pieces(chunks, _COLLECT_ROWS if codes is None else BLOCK_ROWS)
    parts: list[list[Found]] = [[] for _ in pieces]

    def collect(number: int) -> None:
        piece = pieces[number]
        scale = piece.chunk.scale[piece.start : piece.stop]
        size = piece.stop - piece.start
        if codes is not None:
            store: Any = piece.chunk.store
            sums, rows, found = np.zeros(size), np.empty(size, np.int64), np.empty(size)
            for query in range(n_queries):
                part = slice(codes.indptr[query], codes.indptr[query + 1])
                code = (codes.indices[part], codes.data[part])
                count = collect_postings(
                    store.offsets, store.rows, store.values, scale, *code, limits[query], sums, rows, found
                )
                parts[number].append((rows[:count] + piece.first_row, found[:count].copy()))
            return
        block = piece.chunk.store.block(piece.start, piece.stop)
        for group in groups:
            lane_rows, lane_found = np.empty((group.size, size), np.int64), np.empty((group.size, size))
            limit = limits[group.first : group.first + group.size]
            counts = collect_rows(*block, scale, group.exact, group.to_score, limit, lane_rows, lane_found)
            for lane, count in enumerate(counts):
                parts[number].append((lane_rows[lane, :count] + piece.first_row, lane_found[lane, :count].copy()))

    def work(start: int, stop: int) -> None:
        for number in range(start, stop):
            collect(number)

    run_blocks(work, len(pieces), 1, n_threads)
    nothing: Found = (np.empty(0, np.int64), np.empty(0))
    result = []
    for query in range(n_queries):
        found_parts = [part[query] for part in parts] or [nothing]
        result.append((np.concatenate([rows for rows, _ in found_parts]), np.concatenate([s for _, s in found_parts])))
    return result
