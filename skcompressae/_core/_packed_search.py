"""Kernels that search bit-packed words where they lie (see `_packing` for the layout).

For many queries each word is read and looked up by itself, beside the vector instructions that score it. One query
scores sixteen words at a time, with a polynomial of low degree in place of the codebook of each rank (`Polynomials`): a
row whose score, plus the most that this can be off, is too low is left; any other is scored in float64 at once. Either
way the rules of `_search_kernels` hold, and float64 decides, on the very float32 values that `unpack_rows` gives.

Targets have ``2 ** index_bits`` rows, zero above n_components, so no content of a damaged file reads out of bounds.
`rows` is the flat uint8 array from the first row of a block to the end of the store; vector code reads up to
`READ_AHEAD` bytes from a block of words on, so rows too near the end of the array are scored in float64 alone.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from skcompressae._core._compiling import njit
from skcompressae._core._lanes import N_LANES
from skcompressae._core._packed_vectors import (
    READ_AHEAD,
    fits_lanes,
    load_bits,
    score_words,
    score_words_wide,
)
from skcompressae._core._residual import add_residuals
from skcompressae._core._search_kernels import first_limits, make_room, note_down, offer, replace_worst
from skcompressae._core._search_pending import compact, reject_below
from skcompressae._core._search_vectors import LANES, ROWS_AT_ONCE
from skcompressae._core._topk import partition_largest

__all__ = [
    "RAGGED_ROWS",
    "PackedKernels",
    "Polynomials",
    "Words",
    "fit_polynomials",
    "largest_norm",
    "mark_ragged",
    "n_terms_of",
    "packed_kernels",
    "packed_score",
    "row_scale_of",
]

# Rows that are scored before any is looked at, and that share a mark when one of them is short.
RAGGED_ROWS = 256
_FIT_ITERATIONS = 20
_SMALLEST_WEIGHT = 1e-9


class PackedKernels(NamedTuple):
    """The scans of one word layout: for one query, for many, and for one by residual codes, too."""

    single: Any
    wide: Any
    refined: Any


class Words(NamedTuple):
    """Packed rows, and what the kernels need to read them.

    Attributes
    ----------
    rows : uint8 array
        The bytes from the first of the rows to the end of the store.
    row_bytes, k : int
        Bytes and words of a row.
    row_scales : uint16 or float32 array
        Stored scales of the rows, see `decode_scales`.
    levels : float32 array of shape (k or 1, 2**value_bits)
        The codebook, with signs.
    codebook : float32 array
        The same times 2**-31, the unit in which `score_lanes` takes values.
    coefficients, error
        `Polynomials` of the codebook.
    ragged : bool array
        See `mark_ragged`; of the whole store.
    offset : int
        Number in the store of the first row.
    """

    rows: NDArray[np.uint8]
    row_bytes: int
    k: int
    row_scales: NDArray[Any]
    levels: NDArray[np.float32]
    codebook: NDArray[np.float32]
    coefficients: NDArray[np.float32]
    error: np.float32
    ragged: NDArray[np.bool_]
    offset: int


class Polynomials(NamedTuple):
    """What stands for a codebook in the scan of one query.

    Attributes
    ----------
    coefficients : float32 array of shape (n_blocks, n_terms, 16)
        The magnitude at rank ``16 i + lane`` and code c is about ``sum_j coefficients[i, j, lane] c**j``.
    error : float
        Norm over the ranks of the largest difference from the codebook: by Cauchy-Schwarz, a row with scale 1 scores at
        most this times the norm of as many of the largest entries of the target off, float32 sums included.
    """

    coefficients: NDArray[np.float32]
    error: np.float32


def n_terms_of(levels: NDArray[np.float32]) -> int:
    """Return the terms of the polynomials of a codebook, (k or 1, n_codes): two for equal steps, else three."""
    return 2 if len(levels) == 1 else 3


def fit_polynomials(levels: NDArray[np.float32], k: int) -> Polynomials:
    """Fit a polynomial to the levels of each rank, (k or 1, n_codes).

    The largest error of a rank counts, so least squares are repeated with weights that grow where the error is large
    (Lawson's algorithm). Equal steps are met by the first fit.
    """
    magnitudes = levels.astype(np.float64)
    n_terms, n_codes = n_terms_of(levels), levels.shape[1]
    n_used, last = min(n_terms, n_codes), max(1.0, n_codes - 1.0)
    codes = np.arange(n_codes, dtype=np.float64)
    basis = np.vander(codes / last, n_used, increasing=True)
    products = (basis[:, :, None] * basis[:, None, :]).reshape(n_codes, -1)
    weights = np.ones_like(magnitudes)
    coefficients = np.zeros((len(levels), n_terms))
    least = np.full(len(levels), np.inf)
    for _ in range(_FIT_ITERATIONS if len(levels) > 1 else 1):
        normal = (weights @ products).reshape(-1, n_used, n_used)
        moments = (weights * magnitudes) @ basis
        fitted = np.linalg.solve(normal, moments[:, :, None])[:, :, 0]
        errors = np.abs(fitted @ basis.T - magnitudes)
        is_better = errors.max(axis=1) < least
        least[is_better] = errors[is_better].max(axis=1)
        coefficients[is_better, :n_used] = fitted[is_better] / last ** np.arange(n_used)
        weights *= errors + _SMALLEST_WEIGHT * magnitudes
        weights = np.maximum(weights / weights.max(axis=1, keepdims=True), _SMALLEST_WEIGHT)
    rounded = coefficients.astype(np.float32)
    powers = np.vander(codes, n_terms, increasing=True)
    largest = np.abs(rounded @ powers.T - magnitudes).max(axis=1)
    # the float32 of the kernel: a polynomial, and a sum of k / 16 products in each lane
    roundoff = 2.0**-20 + (k / N_LANES + 8) * 2.0**-24
    largest += roundoff * (np.abs(rounded) @ powers.T).max(axis=1)
    error = np.linalg.norm(np.broadcast_to(largest, k)) * (1 + 2.0**-20)
    n_blocks = -(-k // N_LANES)
    padded = np.zeros((n_blocks * N_LANES, n_terms), np.float32)
    padded[:k] = rounded
    laid_out = np.ascontiguousarray(padded.reshape(n_blocks, N_LANES, n_terms).transpose(0, 2, 1))
    return Polynomials(laid_out, np.float32(error))


@njit(nogil=True)
def largest_norm(target: Any, n: int) -> np.float32:
    """Return the norm of the n largest entries of a target of shape (n_rows, 1), rounded up."""
    n_entries = target.shape[0]
    n = min(n, n_entries)
    magnitudes = np.empty(n_entries, np.float32)
    for i in range(n_entries):
        magnitudes[i] = abs(target[i, 0])
    n_runs = n_entries // N_LANES
    count = n_entries
    if n_runs > n:
        # no entry below the n-th largest of the maxima of runs can be among the n largest: few are left to select from
        maxima = np.zeros(n_runs, np.float32)
        for run in range(n_runs):
            for i in range(run * N_LANES, (run + 1) * N_LANES):
                maxima[run] = max(maxima[run], magnitudes[i])
        least = partition_largest(maxima, n_runs, n)
        count = 0
        for i in range(n_entries):
            if magnitudes[i] >= least:
                magnitudes[count] = magnitudes[i]
                count += 1
    # leaves no entry after the first n larger than one of those
    partition_largest(magnitudes, count, n)
    total = 0.0
    for i in range(n):
        total += np.float64(magnitudes[i]) ** 2
    return np.float32(np.sqrt(total) * (1 + 2.0**-20))


# ------------------------------------------------------------------------- words, of a layout known at run time
@njit(nogil=True)
def row_scale_of(row_scales: Any, row: int, is_short: bool) -> np.float32:
    """Return the scale of a row, as `decode_scales` does."""
    if is_short:
        return np.uint32(np.uint32(row_scales[row]) << np.uint32(15)).view(np.float32)
    return np.float32(row_scales[row])


@njit(nogil=True)
def _safe_rows(rows: Any, row_bytes: int) -> int:
    """Return how many rows may be read a block at a time."""
    return max(0, (rows.shape[0] - READ_AHEAD) // row_bytes)


@njit(nogil=True)
def _mask(n_bits: int) -> Any:
    return (np.uint64(1) << np.uint64(n_bits)) - np.uint64(1)


@njit(nogil=True)
def _words_from(rows: Any, first: int, number: int, word_bits: int) -> Any:
    """Return a uint64 that begins with word `number` of the row at byte `first`, zeros beyond the array."""
    bit = np.uint64(number) * np.uint64(word_bits)
    position = first + np.intp(bit >> np.uint64(3))
    if position + 8 <= rows.shape[0]:
        return load_bits(rows, position) >> (bit & np.uint64(7))
    bits = np.uint64(0)
    for i in range(rows.shape[0] - position):
        bits |= np.uint64(rows[position + i]) << np.uint64(8 * i)
    return bits >> (bit & np.uint64(7))


@njit(nogil=True)
def _is_repeated(rows: Any, first: int, number: int, word_bits: int) -> bool:
    """Return whether word `number` of the row at byte `first` and the next one are equal."""
    word = _words_from(rows, first, number, word_bits)
    # both in one load, but for the widest
    following = word >> np.uint64(word_bits) if word_bits <= 28 else _words_from(rows, first, number + 1, word_bits)
    return (word ^ following) & _mask(word_bits) == 0


@njit(nogil=True)
def _is_ragged(rows: Any, first: int, k: int, word_bits: int) -> bool:
    """Return whether the row at byte `first` ends in padding."""
    return k > 1 and _is_repeated(rows, first, k - 2, word_bits)


@njit(nogil=True)
def mark_ragged(rows: Any, row_bytes: int, k: int, word_bits: int, start: int, stop: int, ragged: Any) -> None:
    """Set `ragged`, one bool for `RAGGED_ROWS` rows, where one of the rows ``start:stop`` ends in padding."""
    for row in range(start, stop):
        if _is_ragged(rows, row * row_bytes, k, word_bits):
            ragged[row // RAGGED_ROWS] = True


@njit(nogil=True)
def _bound(sums: Any, slack: Any, row_scales: Any, scale: Any, is_short: bool) -> None:
    """Turn sums of approximate values into the most that the scores can be."""
    for i in range(np.uint64(scale.shape[0])):
        sums[i] = (sums[i] + slack) * np.float32(row_scale_of(row_scales, i, is_short) * scale[i])


@njit(nogil=True)
def _row_length(rows: Any, first: int, k: int, word_bits: int) -> int:
    """Return the entries of the row at byte `first`: what stands before the repetitions of its last word."""
    n = k
    while n > 1 and _is_repeated(rows, first, n - 2, word_bits):
        n -= 1
    return n


@njit(nogil=True)
def _product(bits: Any, rank: Any, row_scale: Any, levels: Any, target: Any, word_bits: int, value_bits: int) -> float:
    """Return what the word in the low bits adds to the score of its row."""
    word = bits & _mask(word_bits)
    value = levels[rank * np.uint64(levels.shape[0] > 1), word & _mask(value_bits)] * row_scale
    return np.float64(value) * np.float64(target[word >> np.uint64(value_bits)])


@njit(nogil=True)
def packed_score(
    rows: Any, first: int, k: int, row_scale: Any, levels: Any, target: Any, word_bits: int, value_bits: int
) -> float:
    """Return the float64 inner product of the row at byte `first` with one target."""
    n = np.uint64(_row_length(rows, first, k, word_bits))
    # words that may be read eight bytes at a time: a check for each took twice the time
    n_safe = min(n, np.uint64(max(0, (8 * (rows.shape[0] - first - 8)) // word_bits)))
    total = 0.0
    for j in range(n_safe):
        bit = j * np.uint64(word_bits)
        bits = load_bits(rows, first + np.intp(bit >> np.uint64(3))) >> (bit & np.uint64(7))
        total += _product(bits, j, row_scale, levels, target, word_bits, value_bits)
    for j in range(n_safe, n):
        bits = _words_from(rows, first, j, word_bits)
        total += _product(bits, j, row_scale, levels, target, word_bits, value_bits)
    return total


@njit(nogil=True)
def _settle(
    words: Words,
    scale: Any,
    first_row: int,
    queries: Any,
    limits: Any,
    pending: Any,
    scores: Any,
    numbers: Any,
    word_bits: int,
    value_bits: int,
    is_short: bool,
) -> None:
    """Offer the rows noted down to the heaps, in float64, and empty the lists."""
    rows, k, levels = words.rows, words.k, words.levels
    _, exact, to_scan_unit, margins = queries
    row_scales, row_bytes = words.row_scales, words.row_bytes
    noted_rows, noted, counts = pending.rows, pending.scores, pending.counts
    for lane in range(scores.shape[0]):
        compact(pending, lane, scores.shape[1], margins[lane], limits)
        target = exact[lane]
        for i in range(counts[lane]):
            if noted[lane, i] >= limits[lane]:
                row = np.intp(noted_rows[lane, i])
                row_scale = row_scale_of(row_scales, row, is_short)
                score = packed_score(rows, row * row_bytes, k, row_scale, levels, target, word_bits, value_bits)
                offer(lane, score * scale[row], first_row + row, to_scan_unit, margins, limits, scores, numbers)
        counts[lane] = 0


# ---------------------------------------------------------------------------- scans, compiled for each layout
@lru_cache(maxsize=64)
def packed_kernels(word_bits: int, value_bits: int, n_terms: int, row_scale_type: str) -> PackedKernels | None:
    """Return the kernels of a layout, each compiled at its first call; None if its words do not fit vector lanes.

    They take `PackedStore.words_of` and what `search_rows_single` and `search_rows` take after the three CSR arrays,
    but that one query needs no lists of pending rows.
    """
    if not fits_lanes(word_bits):
        return None
    # Nothing but numbers may be taken from around the kernels: with other compiled functions among it, Numba's cache on
    # disk never finds them again.
    is_short = row_scale_type == "<u2"

    def compiled(kernel: Any) -> Any:
        # A name, and with it a file of the cache, for each layout: in one file, two processes that first compile two
        # layouts at the same moment could leave the one under the name of the other.
        kernel.__qualname__ += f"_{word_bits}_{value_bits}_{n_terms}_{int(is_short)}"
        return njit(nogil=True)(kernel)

    @compiled
    def single(words: Words, scale: Any, first_row: int, queries: Any, exclude: Any, scores: Any, numbers: Any) -> None:
        rows, row_bytes, k, levels = words.rows, words.row_bytes, words.k, words.levels
        row_scales, ragged, offset = words.row_scales, words.ragged, words.offset
        scan, exact, to_scan_unit, margins = queries
        limit = first_limits(scores, to_scan_unit, margins)[0]
        slack = words.error * largest_norm(scan, k)
        # views of their own: made for every row they would cost more than its score
        target, heap, heap_rows = exact[0], scores[0], numbers[0]
        most = np.empty(RAGGED_ROWS, np.float32)
        n_rows = scale.shape[0]
        # so many are read a block at a time
        n_scanned = min(n_rows, _safe_rows(rows, row_bytes)) // ROWS_AT_ONCE * ROWS_AT_ONCE
        for start in range(0, n_rows, RAGGED_ROWS):
            n = min(RAGGED_ROWS, n_rows - start)
            n_here = max(0, min(n, n_scanned - start))
            for i in range(0, n_here, ROWS_AT_ONCE):
                first = (start + i) * row_bytes
                score_words(rows, first, row_bytes, words.coefficients, scan, most, i, word_bits, value_bits, n_terms)
            _bound(most, slack, row_scales[start : start + n_here], scale[start : start + n_here], is_short)
            most[n_here:n] = np.inf
            if ragged[(offset + start) // RAGGED_ROWS] or ragged[(offset + start + n - 1) // RAGGED_ROWS]:
                for i in range(n_here):
                    # the score of a short row counts its padding
                    if _is_ragged(rows, (start + i) * row_bytes, k, word_bits):
                        most[i] = np.inf
            for i in range(n):
                if most[i] < limit or exclude[0] == first_row + start + i:
                    continue
                row = start + i
                row_scale = row_scale_of(row_scales, row, is_short)
                score = packed_score(rows, row * row_bytes, k, row_scale, levels, target, word_bits, value_bits)
                score *= scale[row]
                if score > heap[0]:
                    replace_worst(heap, heap_rows, score, first_row + row)
                    limit = max(limit, reject_below(heap[0], to_scan_unit[0], margins[0]))

    @compiled
    def wide(
        words: Words, scale: Any, first_row: int, queries: Any, exclude: Any, pending: Any, scores: Any, numbers: Any
    ) -> None:
        rows, row_bytes, k, levels = words.rows, words.row_bytes, words.k, words.levels
        codebook, row_scales, ragged, offset = words.codebook, words.row_scales, words.ragged, words.offset
        noted_rows, noted, counts = pending.rows, pending.scores, pending.counts
        pairs, exact, to_scan_unit, margins = queries
        limits = first_limits(scores, to_scan_unit, margins)
        found = np.empty(LANES, np.float32)
        n_safe = _safe_rows(rows, row_bytes)
        for row in range(scale.shape[0]):
            first = row * row_bytes
            row_scale = row_scale_of(row_scales, row, is_short)
            if row < n_safe:
                n = k
                if ragged[(offset + row) // RAGGED_ROWS]:
                    n = _row_length(rows, first, k, word_bits)
                factor = np.float32(row_scale * scale[row])
                reached = score_words_wide(
                    rows, first, n, codebook, pairs, factor, limits, found, word_bits, value_bits
                )
            else:
                reached = np.uint64(0)
                for lane in range(scores.shape[0]):
                    score = packed_score(rows, first, k, row_scale, levels, exact[lane], word_bits, value_bits)
                    found[lane] = np.float32(score * scale[row] * to_scan_unit[lane])
                    reached |= np.uint64(found[lane] >= limits[lane]) << np.uint64(lane)
            full = note_down(reached, row, first_row + row, found, exclude, noted_rows, noted, counts)
            if full and make_room(full, scores.shape[1], margins, limits, pending):
                _settle(
                    words,
                    scale,
                    first_row,
                    queries,
                    limits,
                    pending,
                    scores,
                    numbers,
                    word_bits,
                    value_bits,
                    is_short,
                )
        _settle(words, scale, first_row, queries, limits, pending, scores, numbers, word_bits, value_bits, is_short)

    @compiled
    def refined(
        words: Words,
        codes: Any,
        factors: Any,
        first_row: int,
        queries: Any,
        excluded: int,
        tables: Any,
        scores: Any,
        numbers: Any,
    ) -> None:
        rows, row_bytes, k, levels = words.rows, words.row_bytes, words.k, words.levels
        row_scales, ragged, offset = words.row_scales, words.ragged, words.offset
        scan, exact, to_scan_unit, slack = queries
        target, unit = exact[0], to_scan_unit[0]
        slack += np.float64(words.error * largest_norm(scan, k))
        sums, most, counted = np.empty(RAGGED_ROWS, np.float32), np.empty(RAGGED_ROWS), np.arange(RAGGED_ROWS)
        n_rows = factors.shape[0]
        n_scanned = min(n_rows, _safe_rows(rows, row_bytes)) // ROWS_AT_ONCE * ROWS_AT_ONCE
        for start in range(0, n_rows, RAGGED_ROWS):
            n = min(RAGGED_ROWS, n_rows - start)
            n_here = max(0, min(n, n_scanned - start))
            for i in range(0, n_here, ROWS_AT_ONCE):
                first = (start + i) * row_bytes
                score_words(rows, first, row_bytes, words.coefficients, scan, sums, i, word_bits, value_bits, n_terms)
            sums[n_here:n] = np.inf
            if ragged[(offset + start) // RAGGED_ROWS] or ragged[(offset + start + n - 1) // RAGGED_ROWS]:
                for i in range(n_here):
                    if _is_ragged(rows, (start + i) * row_bytes, k, word_bits):
                        sums[i] = np.inf
            for i in range(np.uint64(n)):
                most[i] = (np.float64(sums[i]) + slack) * row_scale_of(row_scales, start + i, is_short)
            residuals = add_residuals(codes, start, counted[:n], tables, unit, factors, most)
            limit = scores[0] * unit
            for i in range(n):
                # NaN, of rows of scale 0 that are not scanned, is not below
                if most[i] < limit or excluded == first_row + start + i:
                    continue
                row = start + i
                row_scale = row_scale_of(row_scales, row, is_short)
                score = packed_score(rows, row * row_bytes, k, row_scale, levels, target, word_bits, value_bits)
                score = (score + np.float64(residuals[i])) * np.float64(factors[row])
                if score > scores[0]:
                    replace_worst(scores, numbers, score, first_row + row)
                    limit = scores[0] * unit

    return PackedKernels(single, wide, refined)
