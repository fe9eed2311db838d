"""Kernels that search bit-packed words (see `_packing` for the layout) a tile of rows at a time.

For many queries a tile of some thousand words is unpacked into scratch that stays in the L1 cache, as the very float32
values that `unpack_rows` gives, and scanned there by `scan_rows_wide`. One query multiplies the words in registers and
unpacks only rows that may enter. Either way the rules of `_search_kernels` hold, and float64 decides. An unpacked row
keeps its rank order and all its k entries, the padding of a short one with value 0.

Targets have ``2 ** index_bits`` rows, zero above n_components, so no content of a damaged file reads out of bounds.
`rows` is the flat uint8 array from the first row of a block to the end of the store; vector code reads up to
`READ_AHEAD` bytes from a block of words on, so rows too near the end of the array are decoded word by word.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from skcompressae._core._packed_vectors import (
    MAX_GRID_PARTS,
    READ_AHEAD,
    fits_lanes,
    load_bits,
    score_words,
    unpack_words,
)
from skcompressae._core._search_kernels import exact_score, first_limits, replace_worst, scan_rows_wide
from skcompressae._core._search_pending import compact, reject_below
from skcompressae._core._search_vectors import VECTOR

__all__ = ["PackedKernels", "packed_kernels", "vector_levels"]

# 2,048 words unpack into 16 KiB: half of a common L1 data cache.
_TILE_WORDS = 2_048


class PackedKernels(NamedTuple):
    """The two scans of one word layout."""

    single: Any
    wide: Any


def vector_levels(signed_levels: NDArray[np.float32], k: int, *, is_uniform: bool) -> tuple[NDArray[np.float32], str]:
    """Lay out a codebook, (n_ranks, 2**value_bits) with signs, for `_packed_vectors`; return its method too."""
    n_magnitudes = 1 if is_uniform else signed_levels.shape[1] // 2
    n_blocks = -(-k // VECTOR)
    by_rank = np.zeros((n_blocks * VECTOR, n_magnitudes), np.float32)
    by_rank[:k] = signed_levels[:, :n_magnitudes]
    if is_uniform:
        return by_rank.reshape(n_blocks, 1, VECTOR), "linear"
    blocks = by_rank.reshape(n_blocks, VECTOR, n_magnitudes)
    exists = (np.arange(n_blocks * VECTOR) < k).reshape(n_blocks, VECTOR)
    grids = [np.unique(block[real]) for block, real in zip(blocks, exists, strict=True)]
    n_parts = -(-max(grid.size for grid in grids) // VECTOR)
    laid_out = np.zeros((n_blocks, 1 + n_parts, VECTOR), np.float32)
    is_grid = n_parts <= MAX_GRID_PARTS
    for block, real, grid, rows in zip(blocks, exists, grids, laid_out, strict=True):
        places = np.searchsorted(grid, block)
        is_grid &= bool((np.diff(places[real], axis=1) == 1).all())
        rows[0] = np.where(real, places[:, 0], VECTOR * n_parts).astype(np.int32).view(np.float32)
        rows[1:].reshape(-1)[: grid.size] = grid
    if is_grid:
        return laid_out, f"grid{n_parts}"
    return np.ascontiguousarray(blocks.transpose(0, 2, 1)), "lookup"


@njit(cache=True, nogil=True)
def _unpack_slowly(
    rows: Any, first: int, k: int, levels: Any, row_scale: Any, layout: Any, columns: Any, values: Any, place: int
) -> None:
    """Write the words of the row at byte `first`, reading no byte beyond the array."""
    word_bits, value_bits = layout
    shift = np.uint64(value_bits)
    step = int(levels.shape[0] > 1)
    for j in range(k):
        bit = j * word_bits
        position = first + (bit >> 3)
        word = np.uint64(0)
        for i in range(min(8, rows.shape[0] - position)):
            word |= np.uint64(rows[position + i]) << np.uint64(8 * i)
        word = (word >> np.uint64(bit & 7)) & ((np.uint64(1) << np.uint64(word_bits)) - np.uint64(1))
        columns[place + j] = word >> shift
        values[place + j] = levels[j * step, word & ((np.uint64(1) << shift) - np.uint64(1))] * row_scale


@njit(cache=True, nogil=True)
def _clear_padding(rows: Any, first: int, k: int, word_bits: int, values: Any, place: int) -> None:
    """Set the values of repeated last words to 0."""
    mask = (np.uint64(1) << np.uint64(word_bits)) - np.uint64(1)
    for j in range(k - 1, 0, -1):
        bit = (j - 1) * word_bits
        position = first + (bit >> 3)
        pair = np.uint64(0)
        for i in range(min(8, rows.shape[0] - position)):
            pair |= np.uint64(rows[position + i]) << np.uint64(8 * i)
        pair >>= np.uint64(bit & 7)
        if (pair ^ (pair >> np.uint64(word_bits))) & mask != 0:
            return
        values[place + j] = 0.0


@lru_cache(maxsize=64)
def packed_kernels(word_bits: int, value_bits: int, method: str) -> PackedKernels | None:
    """Return the kernels of a layout, each compiled at its first call; None if its words do not fit vector lanes.

    They take `PackedStore.words_of` and what `scan_rows_single` and `scan_rows_wide` take after the three CSR arrays.
    """
    if not fits_lanes(word_bits):
        return None
    layout = (word_bits, value_bits)

    @njit(cache=True, nogil=True)
    def unpack(words: Any, start: int, stop: int, columns: Any, values: Any) -> None:
        rows, row_bytes, k, row_scales, levels, by_lane = words
        n_safe = (rows.shape[0] - READ_AHEAD) // row_bytes
        end = max(k - 2, 0) * word_bits
        mask = (np.uint64(1) << np.uint64(word_bits)) - np.uint64(1)
        for row in range(start, stop):
            first, place = row * row_bytes, (row - start) * k
            if row >= n_safe:
                _unpack_slowly(rows, first, k, levels, row_scales[row], layout, columns, values, place)
                _clear_padding(rows, first, k, word_bits, values, place)
                continue
            unpack_words(
                rows, first, k, by_lane, row_scales[row], columns, values, place, word_bits, value_bits, method
            )
            last_two = load_bits(rows, first + (end >> 3)) >> np.uint64(end & 7)
            if k > 1 and (last_two ^ (last_two >> np.uint64(word_bits))) & mask == 0:
                _clear_padding(rows, first, k, word_bits, values, place)

    @njit(cache=True, nogil=True)
    def settle(
        words: Any,
        scale: Any,
        first_row: int,
        queries: Any,
        limits: Any,
        pending: Any,
        heap_scores: Any,
        heap_rows: Any,
        columns: Any,
        values: Any,
    ) -> None:
        _, exact, to_scan_unit, margins = queries
        k = words[2]
        for lane in range(heap_scores.shape[0]):
            compact(pending, lane, heap_scores.shape[1], margins[lane], limits)
            for i in range(pending.counts[lane]):
                if pending.scores[lane, i] >= limits[lane]:
                    row = np.intp(pending.rows[lane, i])
                    unpack(words, row, row + 1, columns, values)
                    score = exact_score(columns, values, 0, k, exact[lane]) * scale[row]
                    if score > heap_scores[lane, 0]:
                        replace_worst(heap_scores[lane], heap_rows[lane], score, first_row + row)
                        worst = reject_below(heap_scores[lane, 0], to_scan_unit[lane], margins[lane])
                        limits[lane] = max(limits[lane], worst)
            pending.counts[lane] = 0

    @njit(cache=True, nogil=True)
    def single(
        words: Any, scale: Any, first_row: int, queries: Any, exclude: Any, pending: Any, scores: Any, rows: Any
    ) -> None:
        words_of_rows, row_bytes, k, row_scales, _, by_lane = words
        columns = np.empty(k + VECTOR, np.int32)
        values = np.empty(k + VECTOR, np.float32)
        scan, _, to_scan_unit, margins = queries
        limits = first_limits(scores, to_scan_unit, margins)
        capacity = pending.rows.shape[1]
        n_safe = (words_of_rows.shape[0] - READ_AHEAD) // row_bytes
        end = max(k - 2, 0) * word_bits
        mask = (np.uint64(1) << np.uint64(word_bits)) - np.uint64(1)
        limit = limits[0]
        for row in range(scale.shape[0]):
            first = row * row_bytes
            approximate = np.float32(np.inf)
            if row < n_safe:
                last_two = load_bits(words_of_rows, first + (end >> 3)) >> np.uint64(end & 7)
                # the padding of a short row counts for nothing
                if k == 1 or (last_two ^ (last_two >> np.uint64(word_bits))) & mask != 0:
                    approximate = score_words(words_of_rows, first, k, by_lane, scan, word_bits, value_bits, method)
                    approximate *= np.float32(row_scales[row] * scale[row])
                    if approximate < limit:
                        continue
            if exclude[0] == first_row + row:
                continue
            if approximate == np.inf:
                unpack(words, row, row + 1, columns, values)
                total = np.float32(0.0)
                for position in range(k):
                    total += values[position] * scan[columns[position], 0]
                approximate = total * np.float32(scale[row])
                if approximate < limit:
                    continue
            count = pending.counts[0]
            pending.rows[0, count] = row
            pending.scores[0, count] = approximate
            pending.counts[0] = count + 1
            if count + 1 == capacity:
                if compact(pending, 0, scores.shape[1], margins[0], limits):
                    settle(words, scale, first_row, queries, limits, pending, scores, rows, columns, values)
                limit = limits[0]
        settle(words, scale, first_row, queries, limits, pending, scores, rows, columns, values)

    @njit(cache=True, nogil=True)
    def wide(
        words: Any, scale: Any, first_row: int, queries: Any, exclude: Any, pending: Any, scores: Any, rows: Any
    ) -> None:
        k = words[2]
        height = max(1, _TILE_WORDS // k)
        indptr = np.arange(0, (height + 1) * k, k)
        columns = np.empty(height * k + VECTOR, np.int32)
        values = np.empty(height * k + VECTOR, np.float32)
        row_columns = np.empty(k + VECTOR, np.int32)
        row_values = np.empty(k + VECTOR, np.float32)
        pairs, _, to_scan_unit, margins = queries
        limits = first_limits(scores, to_scan_unit, margins)
        n_neighbors = scores.shape[1]
        for start in range(0, scale.shape[0], height):
            stop = min(start + height, scale.shape[0])
            unpack(words, start, stop, columns, values)
            part, bounds, row = scale[start:stop], indptr[: stop - start + 1], 0
            while row < stop - start:
                row, is_crowded = scan_rows_wide(
                    bounds,
                    columns,
                    values,
                    part,
                    row,
                    start,
                    first_row,
                    pairs,
                    margins,
                    exclude,
                    n_neighbors,
                    limits,
                    pending,
                )
                if is_crowded:
                    settle(words, scale, first_row, queries, limits, pending, scores, rows, row_columns, row_values)
        settle(words, scale, first_row, queries, limits, pending, scores, rows, row_columns, row_values)

    return PackedKernels(single, wide)
