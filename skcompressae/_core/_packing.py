"""The layout of packed rows, and the kernels that read it; `_pack_rows` writes it, `_packed_search` searches it.

Layout of one row of k entries (everything a reader needs)
----------------------------------------------------------
- ``index_bits = max(1, ceil(log2(n_components)))``; ``word_bits = index_bits + value_bits``.
- Entry j is the word ``index << value_bits | sign << (value_bits - 1) | code`` (sign 1 is negative). It
  occupies the bits ``[j * word_bits, (j + 1) * word_bits)`` of the row, least significant bit first within
  each byte, and a row takes ``ceil(k * word_bits / 8)`` bytes. At 16 and 32 bits a row is therefore a
  little-endian uint16 or uint32 vector.
- Entries stand in order of **descending reconstructed magnitude**, ties by ascending index. The order of a set is free:
  spending it on the magnitudes tells the decoder what each rank can hold, worth more than one bit of value.
- A short row repeats its last word up to k: a set holds an index once, so a repetition can only be padding,
  and no level has to be given away for it (at 3 bits that level is worth 0.005 of recall@100). `row_length`
  finds the end with one comparison for a full row. A zero row has scale 0 and words 0.
- The value is ``float32(levels[min(j, len(levels) - 1), word & (2**value_bits - 1)] * scale)``, where `levels` is
  float32 of shape (k or 1, 2**value_bits) and already carries the sign. ``index = word >> value_bits``.
- `scale` is one float per row: float32, or for value_bits <= 8 its top 16 bits after the sign (8 bits of exponent, 8 of
  mantissa, at most 0.2 % off), see `decode_scales`. Cosines do not depend on it. Codebooks of kind "fixed" hold the
  magnitudes themselves: all scales are 1, none is stored, and there are no zero rows.

A table that a scoring kernel indexes with ``word >> value_bits`` must have ``2**index_bits`` entries (zeros above
n_components), so that no content of a damaged file can make it read out of bounds.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from skcompressae._core._compiling import njit
from skcompressae._core._lanes import N_LANES
from skcompressae._core._packed_vectors import load_bits, store_bits
from skcompressae._core._rank_vectors import count_smaller

__all__ = [
    "COUNTING_LIMIT",
    "compress_bits",
    "decode_scales",
    "expand_bits",
    "index_bits_for",
    "max_word_dtype",
    "row_length",
    "row_lengths",
    "sort_ascending",
    "unpack_rows",
    "write_bits",
]

Array: TypeAlias = NDArray[Any]

# Counting ranks is quadratic but vectorises; above this length rows are sorted. The switch point is not tuned.
COUNTING_LIMIT = 128


def index_bits_for(n_components: int) -> int:
    """Return the bits of one index."""
    return max(1, (n_components - 1).bit_length())


def max_word_dtype(word_bits: int) -> np.dtype[Any]:
    """Return the unsigned dtype that holds one word: two widths, as every kernel is compiled for each."""
    return np.dtype("<u2" if word_bits <= 16 else "<u8")


def decode_scales(scales: Array) -> NDArray[np.float32]:
    """Return the stored scales, uint16 or float32 of shape (n,), as float32."""
    if scales.dtype == np.uint16:
        return (scales.astype(np.uint32) << np.uint32(15)).view(np.float32)
    return np.asarray(scales, dtype=np.float32)


@njit(nogil=True)
def sort_ascending(keys: Array, n: int) -> None:
    """Sort ``keys[:n]`` in place by Shell's method: it compiles in a tenth of the time of NumPy's quicksort."""
    gap = 1
    while gap < n:
        gap = 3 * gap + 1
    while gap > 1:
        gap //= 3
        for i in range(gap, n):
            key = keys[i]
            j = i
            while j >= gap and keys[j - gap] > key:
                keys[j] = keys[j - gap]
                j -= gap
            keys[j] = key


@njit(nogil=True, inline="always")
def row_length(words: Array, i: int) -> int:
    """Return the entries of row i of `words` (n, k), 1 for a zero row: what stands before the repeated last word."""
    n = words.shape[1]
    while n > 1 and words[i, n - 1] == words[i, n - 2]:
        n -= 1
    return n


@njit(nogil=True)
def row_lengths(words: Array, scales: Array, out: Array) -> None:
    """Write the number of entries of every row of `words` (n, k), 0 where the scale is 0."""
    for i in range(words.shape[0]):
        out[i] = 0 if scales[i] == 0 else row_length(words, i)


@njit(nogil=True)
def unpack_rows(
    words: Array,
    scales: Array,
    levels: Array,
    value_bits: int,
    n_components: int,
    indptr: Array,
    indices: Array,
    data: Array,
) -> int:
    """Write the rows of `words` as canonical CSR; `indptr` (n + 1,) comes from `row_lengths`.

    Returns -1, or the first row that no packer writes (an index out of range or repeated).
    """
    k = words.shape[1]
    shift = np.uint64(value_bits)
    mask = (np.uint64(1) << shift) - np.uint64(1)
    last = levels.shape[0] - 1
    found = np.empty(k + N_LANES, np.int32)
    values = np.empty(max(k, 1), np.float32)
    rank = np.empty(k + N_LANES, np.int32)
    keys = np.empty(max(k, 1), np.uint64)
    for i in range(words.shape[0]):
        start = indptr[i]
        n = indptr[i + 1] - start
        scale = scales[i]
        bad: Any = 0
        for j in range(n):
            word = np.uint64(words[i, j])
            index = word >> shift
            bad += np.int64(index >= np.uint64(n_components))
            found[j] = np.int32(index)
        if last > 0:
            for j in range(n):
                values[j] = levels[j, np.uint64(words[i, j]) & mask] * scale
        else:
            for j in range(n):
                values[j] = levels[0, np.uint64(words[i, j]) & mask] * scale
        if bad:
            return i
        if n > COUNTING_LIMIT:
            for j in range(n):
                keys[j] = (np.uint64(found[j]) << np.uint64(32)) | np.uint64(j)
            sort_ascending(keys, n)
            for j in range(n):
                rank[keys[j] & np.uint64(0xFFFFFFFF)] = j
        else:
            count_smaller(found, n, rank)
        total = 0
        for j in range(n):
            total += rank[j]
            target = np.uint64(start + rank[j])
            indices[target] = found[j]
            data[target] = values[j]
        if 2 * total != n * (n - 1):
            return i
        if n > COUNTING_LIMIT:
            for j in range(1, n):
                if indices[start + j] == indices[start + j - 1]:
                    return i
    return -1


@njit(nogil=True)
def write_bits(words: Array, word_bits: int, out: Array) -> None:
    """Write the words (k,) of one row as a bit string, least significant bit first, into its uint8 bytes."""
    width = np.uint64(word_bits)
    buffer = np.uint64(0)
    held = np.uint64(0)
    position = 0
    for j in range(words.shape[0]):
        word = np.uint64(words[j])
        buffer |= word << held
        held += width
        if held >= np.uint64(64):
            store_bits(out, position, buffer)
            position += 8
            held -= np.uint64(64)
            buffer = word >> (width - held)
    for i in range(position, out.shape[0]):
        out[i] = np.uint8(buffer & np.uint64(255))
        buffer >>= np.uint64(8)


@njit(nogil=True)
def compress_bits(words: Array, word_bits: int, out: Array) -> None:
    """Write words (n, k) as bit strings into the uint8 rows of `out`, row by row as `write_bits` does."""
    for i in range(words.shape[0]):
        write_bits(words[i], word_bits, out[i])


@njit(nogil=True)
def expand_bits(rows: Array, word_bits: int, words: Array) -> None:
    """Read bit-packed uint8 `rows` into `words` (n, k): the inverse of `compress_bits`."""
    k = words.shape[1]
    width = rows.shape[1]
    mask = (np.uint64(1) << np.uint64(word_bits)) - np.uint64(1)
    flat = rows.reshape(-1)
    # rows of which any eight bytes from a word on lie in the array
    n_safe = max(0, (flat.shape[0] - 8) // max(width, 1))
    for i in range(min(n_safe, words.shape[0])):
        first = i * width
        for j in range(k):
            bit = j * word_bits
            words[i, j] = (load_bits(flat, first + (bit >> 3)) >> np.uint64(bit & 7)) & mask
    for i in range(n_safe, words.shape[0]):
        buffer = np.uint64(0)
        held = 0
        position = 0
        for j in range(k):
            while held < word_bits:
                buffer |= np.uint64(rows[i, position]) << np.uint64(held)
                position += 1
                held += 8
            words[i, j] = buffer & mask
            buffer >>= np.uint64(word_bits)
            held -= word_bits
