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
    collect_rows,
    merge_heaps,
    pair_targets,
    search_rows,
    search_rows_single,
    sort_heaps,
)
from skcompressae._core._search_pending import new_pending
from skcompressae._core._search_postings import collect_postings, scan_postings
from skcompressae._core._search_store import BLOCK_ROWS, Chunk, CodeStore, PackedStore, PostingStore, RowStore
from skcompressae._core._search_vectors import LANES
from skcompressae._core._threads import row_blocks, run_blocks

__all__ = ["Found", "TargetGroup", "prepare_group", "rounding_margins", "scan_units", "search", "within"]

Found = tuple[NDArray[np.int64], NDArray[np.float64]]

_NO_ROW = np.iinfo(np.int64).max
_UNIT_ROUNDOFF = 2.0**-24
# Rows and targets that `within` looks at together: bounds its scratch to 32 * 8,192 * 16 bytes = 4 MiB per thread.
_COLLECT_ROWS = 8_192
_COLLECT_LANES = 32
# Rows searched at once where they need no unpacking. The longer the run, the fewer rows are scored in float64.
_ROWS_IN_PLACE = 2**20
# Groups that are prepared at once and share each unpacked block of rows: 512 targets.
_GROUPS_AT_ONCE = 8


@dataclass(frozen=True)
class TargetGroup:
    """Up to `LANES` targets: as the scan reads them, and as they came for the scores that decide.

    Attributes
    ----------
    scan : int32 of shape (n_rows, LANES // 2), or float32 of shape (n_rows, 1) for a single target
        Scaled by `to_scan_unit`, a power of two per target; see `pair_targets`.
    exact : ndarray of shape (size, n_rows)
        The targets as they came.
    norms, errors : ndarrays of shape (size,)
        Norms of the scaled targets, and of what `scan` differs from them.
    """

    scan: NDArray[Any]
    exact: NDArray[Any]
    to_scan_unit: NDArray[np.float64]
    norms: NDArray[np.float64]
    errors: NDArray[np.float64]
    first: int

    @property
    def size(self) -> int:
        """Number of targets."""
        return len(self.norms)

    def margins(self, chunk: Chunk) -> NDArray[np.float64]:
        """Bound the error of an approximate score: that of its sum, and by Cauchy-Schwarz that of the targets."""
        return rounding_margins(chunk, self.norms + self.errors) + 1.0001 * chunk.reach * self.errors


def rounding_margins(chunk: Chunk, norms: NDArray[np.float64]) -> NDArray[np.float64]:
    """Bound the error of float32 scores against scaled targets of the given norms.

    A sum of n products has a relative error below ``n * u`` of the sum of magnitudes, at most
    ``reach * norm(target)`` by Cauchy-Schwarz; the conversions, the factors and the norm itself add a few
    ``u``. The last term pays for values that underflow float32, by themselves or times 2**-31.
    """
    relative = (chunk.longest + 12) * _UNIT_ROUNDOFF * 1.01
    tiny = 2.0**-94 * (chunk.longest + 2) * (float(chunk.scale.max(initial=0.0)) + 2.0**20 * chunk.reach)
    return relative * chunk.reach * norms + tiny


def scan_units(targets: NDArray[Any]) -> NDArray[np.float64]:
    """Return the power of two for each column of `targets` that brings its largest magnitude into [0.5, 1).

    Where float64 has no such power, for subnormal columns, the largest one it has.
    """
    peak = np.abs(targets).max(axis=0, initial=0.0).astype(np.float64)
    return np.ldexp(1.0, np.where(peak > 0, np.minimum(-np.frexp(peak)[1], 1023), 0))


def _aligned(n_rows: int, n_columns: int, kind: Any) -> NDArray[Any]:
    """Return zeros of 4 bytes that begin on a cache line: a vector across two lines costs two loads from L2."""
    line = 64 // 4
    buffer = np.zeros(n_rows * n_columns + line, kind)
    skip = (-buffer.ctypes.data // 4) % line
    return buffer[skip : skip + n_rows * n_columns].reshape(n_rows, n_columns)


def prepare_group(targets: NDArray[Any], first: int, last: int, n_rows: int) -> TargetGroup:
    """Lay out the targets ``first:last`` of (n_components, n_queries) for the kernels.

    `n_rows` above n_components adds zero rows, for kernels that look up by an index of whole bits.
    """
    n_components, size = len(targets), last - first
    part = targets[:, first:last]
    to_scan_unit = scan_units(part)
    exact = np.zeros((size, n_rows), targets.dtype)
    if size == 1:
        exact[:, :n_components] = part.T
        scan = _aligned(n_rows, 1, np.float32)
        np.multiply(part, to_scan_unit, out=scan[:n_components], casting="same_kind")
        norms, errors = np.sqrt(np.einsum("ij,ij->j", scan, scan, dtype=np.float64)), np.zeros(1)
    else:
        scan = _aligned(n_rows, LANES // 2, np.int32)
        norms, errors = np.zeros(LANES), np.zeros(LANES)
        pair_targets(targets, first, to_scan_unit, exact, scan, norms, errors)
        norms, errors = np.sqrt(norms[:size]), np.sqrt(errors[:size])
    return TargetGroup(scan, exact, to_scan_unit, norms, errors, first)


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


def _is_scanned_in_place(store: CodeStore) -> bool:
    """Return whether the kernels read the rows where they are; other stores are unpacked a block at a time."""
    return isinstance(store, RowStore) or (isinstance(store, PackedStore) and store.kernels is not None)


def _pieces(chunks: Sequence[Chunk], size: int = BLOCK_ROWS, size_in_place: int = _ROWS_IN_PLACE) -> list[_Piece]:
    pieces, first_row = [], 0
    for chunk in chunks:
        for start, stop in row_blocks(chunk.store.n_rows, size_in_place if _is_scanned_in_place(chunk.store) else size):
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
    size = max((group.size for group in groups), default=0)
    largest = max((piece.stop - piece.start for piece in pieces), default=0)
    pending = new_pending(size, heap_scores.shape[1], largest)
    for piece in pieces:
        store = piece.chunk.store
        scale = piece.chunk.scale[piece.start : piece.stop]
        words = store.words_of(piece.start, piece.stop) if isinstance(store, PackedStore) else None
        block = store.block(piece.start, piece.stop) if words is None else None
        for group in groups:
            lanes = slice(group.first, group.first + group.size)
            queries = (group.scan, group.exact, group.to_scan_unit, group.margins(piece.chunk))
            heaps = (heap_scores[lanes], heap_rows[lanes])
            if isinstance(store, PackedStore) and store.kernels is not None and words is not None:
                if group.size == 1:
                    store.kernels.single(words, scale, piece.first_row, queries, exclude[lanes], *heaps)
                else:
                    store.kernels.wide(words, scale, piece.first_row, queries, exclude[lanes], pending, *heaps)
            elif block is not None:
                scan = search_rows_single if group.size == 1 else search_rows
                scan(*block, scale, piece.first_row, queries, exclude[lanes], pending, *heaps)


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
    codes: Any = None if isinstance(queries, np.ndarray) else queries
    n_queries = queries.shape[1] if codes is None else codes.shape[0]
    if exclude is None:
        exclude = np.full(n_queries, -1, np.int64)
    scores, rows = _empty_heaps(n_queries, n_neighbors)
    if n_queries == 0:
        return scores, rows
    for chunk in chunks:
        if isinstance(chunk.store, PackedStore) and chunk.store.kernels is not None:
            chunk.store.prepare(n_threads)
    pieces = _pieces(chunks)
    lanes = list(row_blocks(n_queries, LANES))
    n_shares = len(lanes) if codes is None else n_queries
    n_target_rows = _target_rows(chunks)
    targets: Any = queries

    def prepare(first: int, last: int) -> list[TargetGroup]:
        return [prepare_group(targets, *bounds, n_target_rows) for bounds in lanes[first:last]]

    def scan(first: int, last: int) -> None:
        if codes is not None:
            _scan_codes(pieces, codes, exclude, first, last, scores, rows)
            return
        for start, stop in row_blocks(last - first, _GROUPS_AT_ONCE):
            _scan_targets(pieces, prepare(first + start, first + stop), exclude, scores, rows)

    if n_threads == 1 or n_shares % n_threads == 0 or n_shares >= 4 * n_threads:
        per_thread = -(-n_shares // n_threads)
        run_blocks(scan, n_shares, per_thread, n_threads)
    else:
        # rows are shared out evenly; within each share they stay in ascending order
        n_rows = sum(chunk.store.n_rows for chunk in chunks)
        if codes is None:
            share = max(1, -(-n_rows // n_threads))
            pieces = _pieces(chunks, min(BLOCK_ROWS, share), min(_ROWS_IN_PLACE, share))
        per_share = -(-len(pieces) // n_threads)
        partial = {start: _empty_heaps(n_queries, n_neighbors) for start, _ in row_blocks(len(pieces), per_share)}
        groups = prepare(0, n_shares) if codes is None else []

        def scan_rows(start: int, stop: int) -> None:
            if codes is None:
                _scan_targets(pieces[start:stop], groups, exclude, *partial[start])
            else:
                _scan_codes(pieces[start:stop], codes, exclude, 0, n_shares, *partial[start])

        run_blocks(scan_rows, len(pieces), per_share, n_threads)
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
    codes: Any = None if isinstance(queries, np.ndarray) else queries
    n_queries = len(limits)
    size = _COLLECT_ROWS if codes is None else BLOCK_ROWS
    pieces = _pieces(chunks, size, size)
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
        for first, last in row_blocks(n_queries, _COLLECT_LANES):
            n_lanes = last - first
            lane_rows, lane_found = np.empty((n_lanes, size), np.int64), np.empty((n_lanes, size))
            targets = np.ascontiguousarray(queries[:, first:last])
            counts = collect_rows(*block, scale, targets, limits[first:last], lane_rows, lane_found)
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
