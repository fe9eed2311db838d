"""Entropy-coded layout of packed rows: static range coding (rANS) of the words, lossless.

Stream of one block of rows (64-bit state, 32-bit little-endian units, 16-bit probabilities)
--------------------------------------------------------------------------------------------
Entries keep the rank order of the packed layout, and of every entry the value comes first, then the index:

- value, value_bits <= 4: the code, with the model of (rank, previous code);
- value above: ``zigzag(code - previous code)`` as its bit length, with the model of the rank, then the bits below the
  leading one, raw;
- index: ``t = index << 1 | sign``; ``t >> index_shift`` with one model for all ranks (components are far from equally
  frequent, and most fire with one sign), then the low `index_shift` bits raw.

The decoder starts from the last two units (low, then high) and reads the rest backwards; a block that decodes must end
at its first unit with the initial state. Frequencies of a model sum to 2**16, a symbol that never occurs has 0.

References
----------
J. Duda, "Asymmetric numeral systems: entropy coding combining speed of Huffman coding with compression rate of
arithmetic coding", arXiv 1311.2540.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from skcompressae._core._compiling import njit
from skcompressae._core._packing import row_length

__all__ = [
    "PROBABILITY_BITS",
    "count_symbols",
    "decode_block",
    "encode_block",
    "entropy_bits",
    "index_shift_for",
    "model_shape",
    "normalise_counts",
    "slots_of",
]

Array: TypeAlias = NDArray[Any]
PROBABILITY_BITS = 16
_INITIAL_STATE = 1 << 31
# An index model of at most 2**14 symbols: above, the low bits are nearly uniform and not worth their table.
_MAX_INDEX_SYMBOL_BITS = 14
_N_LENGTHS = 18


def index_shift_for(index_bits: int) -> int:
    """Return how many low bits of ``index << 1 | sign`` are stored raw."""
    return max(0, index_bits + 1 - _MAX_INDEX_SYMBOL_BITS)


def model_shape(k: int, value_bits: int) -> tuple[int, int]:
    """Return (n_contexts, n_symbols) of the value models."""
    if value_bits <= 4:
        n_levels = 1 << (value_bits - 1)
        return k * n_levels, n_levels
    return k, _N_LENGTHS


@njit(nogil=True, inline="always")
def _zigzag(delta: int) -> int:
    return 2 * delta if delta >= 0 else -2 * delta - 1


@njit(nogil=True, inline="always")
def _bit_length(x: int) -> int:
    n = 0
    while x > 0:
        n += 1
        x >>= 1
    return n


@njit(nogil=True)
def count_symbols(
    words: Array, scales: Array, value_bits: int, index_shift: int, value_counts: Array, index_counts: Array
) -> None:
    """Add the symbols of `words` (n, k) to `value_counts` (contexts, symbols) and `index_counts` (symbols,)."""
    small = value_bits <= 4
    code_mask = (np.int64(1) << (value_bits - 1)) - 1
    n_levels = code_mask + 1
    for i in range(words.shape[0]):
        if scales[i] == 0:
            continue
        previous = np.int64(0)
        for j in range(row_length(words, i)):
            word = np.int64(words[i, j])
            code = word & code_mask
            if small:
                value_counts[j * n_levels + previous, code] += 1
            else:
                value_counts[j, _bit_length(_zigzag(code - previous))] += 1
            previous = code
            t = ((word >> value_bits) << 1) | ((word >> (value_bits - 1)) & 1)
            index_counts[t >> index_shift] += 1


def normalise_counts(counts: NDArray[np.int64]) -> NDArray[np.uint32]:
    """Scale each row of counts to frequencies that sum to 2**16, at least 1 where the count is positive."""
    rows = np.atleast_2d(counts)
    target = 1 << PROBABILITY_BITS
    frequencies = np.zeros(rows.shape, dtype=np.int64)
    for i, row in enumerate(rows):
        total = int(row.sum())
        if not total:
            continue
        present = np.flatnonzero(row)
        # what is left after one each is shared in proportion, the remainder goes to the most frequent
        frequencies[i, present] = 1 + row[present] * (target - present.size) // total
        frequencies[i, present[np.argmax(row[present])]] += target - int(frequencies[i].sum())
    return frequencies.astype(np.uint32).reshape(counts.shape)


def entropy_bits(counts: NDArray[np.int64]) -> float:
    """Return the empirical entropy of all counted symbols, conditional on their context, in bits."""
    rows = np.atleast_2d(counts).astype(np.float64)
    totals = np.broadcast_to(rows.sum(axis=1, keepdims=True), rows.shape)
    positive = rows > 0
    return float(-(rows[positive] * np.log2(rows[positive] / totals[positive])).sum())


def slots_of(frequencies: NDArray[np.uint32]) -> NDArray[np.uint16]:
    """Return the symbol of each of the 2**16 probability slots of one model."""
    return np.repeat(np.arange(frequencies.size, dtype=np.uint16), frequencies)


@njit(nogil=True)
def _put(state: Any, units: Array, n_units: int, start: Any, frequency: Any) -> tuple[Any, int]:
    limit = ((np.uint64(1) << np.uint64(31)) >> np.uint64(16) << np.uint64(32)) * frequency
    if state >= limit:
        units[n_units] = np.uint32(state & np.uint64(0xFFFFFFFF))
        n_units += 1
        state >>= np.uint64(32)
    state = ((state // frequency) << np.uint64(16)) + np.uint64(state - (state // frequency) * frequency) + start
    return state, n_units


@njit(nogil=True)
def encode_block(
    words: Array,
    scales: Array,
    value_bits: int,
    index_shift: int,
    value_frequencies: Array,
    value_starts: Array,
    index_frequencies: Array,
    index_starts: Array,
    units: Array,
) -> int:
    """Encode the rows of `words` (n, k) into `units`; return the count.

    `units` is uint32, at least ``2 * n * k + 2`` long: no entry takes more than 64 bits.
    """
    small = value_bits <= 4
    code_mask = (np.int64(1) << (value_bits - 1)) - 1
    n_levels = code_mask + 1
    state = np.uint64(1) << np.uint64(31)
    n_units = 0
    for i in range(words.shape[0] - 1, -1, -1):
        if scales[i] == 0:
            continue
        for j in range(row_length(words, i) - 1, -1, -1):
            word = np.int64(words[i, j])
            t = ((word >> value_bits) << 1) | ((word >> (value_bits - 1)) & 1)
            if index_shift > 0:
                low = t & ((np.int64(1) << index_shift) - 1)
                width = np.uint64(1) << np.uint64(16 - index_shift)
                state, n_units = _put(state, units, n_units, np.uint64(low) * width, width)
            s = t >> index_shift
            state, n_units = _put(state, units, n_units, np.uint64(index_starts[s]), np.uint64(index_frequencies[s]))
            code = word & code_mask
            previous = np.int64(0)
            if j > 0:
                previous = np.int64(words[i, j - 1]) & code_mask
            if small:
                context = j * n_levels + previous
                symbol = code
            else:
                context = np.int64(j)
                z = _zigzag(code - previous)
                symbol = np.int64(_bit_length(z))
                if symbol > 1:
                    low = z - (np.int64(1) << (symbol - 1))
                    width = np.uint64(1) << np.uint64(17 - symbol)
                    state, n_units = _put(state, units, n_units, np.uint64(low) * width, width)
            state, n_units = _put(
                state,
                units,
                n_units,
                np.uint64(value_starts[context, symbol]),
                np.uint64(value_frequencies[context, symbol]),
            )
    units[n_units] = np.uint32(state >> np.uint64(32))
    units[n_units + 1] = np.uint32(state & np.uint64(0xFFFFFFFF))
    return n_units + 2


@njit(nogil=True)
def decode_block(
    units: Array,
    lengths: Array,
    value_bits: int,
    index_shift: int,
    value_frequencies: Array,
    value_starts: Array,
    index_frequencies: Array,
    index_starts: Array,
    index_slots: Array,
    n_components: int,
    words: Array,
) -> bool:
    """Decode one block into `words` (n, k), rows of `lengths` entries; return whether the stream is well formed."""
    k = words.shape[1]
    small = value_bits <= 4
    n_levels = np.int64(1) << (value_bits - 1)
    slot_mask = np.uint64(0xFFFF)
    position = units.shape[0] - 2
    if position < 0:
        return False
    state = np.uint64(units[position + 1]) | (np.uint64(units[position]) << np.uint64(32))
    for i in range(words.shape[0]):
        previous = np.int64(0)
        for j in range(lengths[i]):
            context = j * n_levels + previous if small else np.int64(j)
            slot = state & slot_mask
            symbol = np.int64(0)
            while symbol + 1 < value_starts.shape[1] and np.uint64(value_starts[context, symbol + 1]) <= slot:
                symbol += 1
            frequency = np.uint64(value_frequencies[context, symbol])
            if frequency == 0:
                return False
            state = frequency * (state >> np.uint64(16)) + slot - np.uint64(value_starts[context, symbol])
            if state < np.uint64(_INITIAL_STATE):
                position -= 1
                if position < 0:
                    return False
                state = (state << np.uint64(32)) | np.uint64(units[position])
            code = symbol
            if not small:
                z = symbol
                if symbol > 1:
                    bits = np.uint64(symbol - 1)
                    slot = state & slot_mask
                    z = np.int64(slot >> (np.uint64(16) - bits)) | (np.int64(1) << (symbol - 1))
                    width = np.uint64(1) << (np.uint64(16) - bits)
                    state = width * (state >> np.uint64(16)) + (slot & (width - np.uint64(1)))
                    if state < np.uint64(_INITIAL_STATE):
                        position -= 1
                        if position < 0:
                            return False
                        state = (state << np.uint64(32)) | np.uint64(units[position])
                delta = (z >> 1) if z & 1 == 0 else -((z + 1) >> 1)
                code = previous + delta
                if code < 0 or code >= n_levels:
                    return False
            previous = code
            slot = state & slot_mask
            t = np.int64(index_slots[np.int64(slot)])
            state = np.uint64(index_frequencies[t]) * (state >> np.uint64(16)) + slot - np.uint64(index_starts[t])
            if state < np.uint64(_INITIAL_STATE):
                position -= 1
                if position < 0:
                    return False
                state = (state << np.uint64(32)) | np.uint64(units[position])
            if index_shift > 0:
                bits = np.uint64(index_shift)
                slot = state & slot_mask
                width = np.uint64(1) << (np.uint64(16) - bits)
                t = (t << index_shift) | np.int64(slot >> (np.uint64(16) - bits))
                state = width * (state >> np.uint64(16)) + (slot & (width - np.uint64(1)))
                if state < np.uint64(_INITIAL_STATE):
                    position -= 1
                    if position < 0:
                        return False
                    state = (state << np.uint64(32)) | np.uint64(units[position])
            if t >> 1 >= n_components:
                return False
            words[i, j] = ((t >> 1) << value_bits) | ((t & 1) << (value_bits - 1)) | code
        last = max(int(lengths[i]) - 1, 0)
        for j in range(lengths[i], k):
            words[i, j] = words[i, last] if lengths[i] > 0 else 0
    return position == 0 and state == np.uint64(_INITIAL_STATE)
