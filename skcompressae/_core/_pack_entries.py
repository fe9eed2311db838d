"""Steps of packing a row: its entries as sort keys, their order, and their bits; `_pack_rows` quantises between them.

An entry is a uint64 key ``magnitude << 32 | ~index << 1 | sign`` whose descending order is that of the layout.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from skcompressae._core._compiling import njit
from skcompressae._core._packing import COUNTING_LIMIT, sort_ascending, write_bits
from skcompressae._core._rank_vectors import count_larger, count_smaller

__all__ = ["emit", "gather", "has_duplicate", "sort_descending"]

Array: TypeAlias = NDArray[Any]


@njit(nogil=True)
def gather(
    indices: Array,
    value_bits_view: Array,
    start: int,
    stop: int,
    k: int,
    n_components: int,
    keys: Array,
) -> tuple[int, int]:
    """Collect the nonzeros of a row as sort keys ``magnitude << 32 | ~index << 1 | sign``; return count, error."""
    limit = np.int32(n_components)
    n_stored = stop - start
    n_special: Any = 0
    for j in range(n_stored):
        place = np.uint64(start + j)
        magnitude = value_bits_view[place] & np.uint32(0x7FFFFFFF)
        column = indices[place]
        n_special += int((magnitude == 0) | (magnitude >= np.uint32(0x7F800000)) | (column < 0) | (column >= limit))
    if n_special == 0 and n_stored <= k:
        # most rows: no branch, and several entries an instruction
        for j in range(n_stored):
            place = np.uint64(start + j)
            raw = value_bits_view[place]
            keys[j] = (
                (np.uint64(raw & np.uint32(0x7FFFFFFF)) << np.uint64(32))
                | (np.uint64(0x7FFFFFFF - np.int64(indices[place])) << np.uint64(1))
                | np.uint64(raw >> np.uint32(31))
            )
        return n_stored, 0
    n = 0
    for p in range(start, stop):
        raw = value_bits_view[p]
        magnitude = raw & np.uint32(0x7FFFFFFF)
        if magnitude == 0:
            continue
        if magnitude >= np.uint32(0x7F800000):
            return n, 1
        index = np.int64(indices[p])
        if index < 0 or index >= n_components:
            return n, 3
        if n == k:
            return n, 4
        keys[n] = (
            (np.uint64(magnitude) << np.uint64(32))
            | (np.uint64(0x7FFFFFFF - index) << np.uint64(1))
            | np.uint64(raw >> np.uint32(31))
        )
        n += 1
    return n, 0


@njit(nogil=True)
def sort_descending(keys: Array, n: int, out: Array, high: Array, rank: Array) -> None:
    """Sort ``keys[:n]``, all different, into ``out[:n]``."""
    if n > COUNTING_LIMIT:
        sort_ascending(keys, n)
        for i in range(n):
            out[i] = keys[n - 1 - i]
        return
    # 32-bit lanes hold the magnitude alone; equal ones give equal ranks, which the sum of all ranks betrays
    for i in range(n):
        high[i] = np.int32(keys[i] >> np.uint64(32))
    count_larger(high, n, rank)
    total: Any = 0
    for i in range(n):
        total += rank[i]
        out[np.uint64(rank[i])] = keys[i]
    if 2 * total == n * (n - 1):
        return
    for i in range(n):
        key = keys[i]
        larger64 = np.int64(0)
        for j in range(n):
            larger64 += np.int64(keys[j] > key)
        out[np.uint64(larger64)] = key


@njit(nogil=True)
def has_duplicate(keys: Array, n: int, flat: Array) -> bool:
    for i in range(n):
        flat[i] = keys[i] & np.uint64(0xFFFFFFFE)
    if n > COUNTING_LIMIT:
        sort_ascending(flat, n)
        repeated = 0
        for i in range(1, n):
            repeated += int(flat[i] == flat[i - 1])
        return repeated > 0
    same: Any = 0
    for i in range(n):
        for j in range(n):
            same += np.int64(flat[i] == flat[j])
    return same != n


@njit(nogil=True)
def emit(
    keys: Array,
    ordered: Array,
    high: Array,
    rank: Array,
    entries: Array,
    codes: Array,
    product_bits: Array,
    n: int,
    layout: tuple[int, int],
    words: Array,
    out_row: Array,
) -> None:
    """Write the bits of a row; entries whose products tie are put in order of their index first."""
    word_bits, value_bits = layout
    n_ties = np.int32(0)
    for j in range(1, n):
        n_ties += np.int32(product_bits[j] == product_bits[j - 1])
    if n_ties > 0 and n > COUNTING_LIMIT:
        low = np.uint64(0xFFFFFFFF)
        for j in range(n):
            keys[j] = (np.uint64(product_bits[j]) << np.uint64(32)) | (ordered[j] & low)
        sort_descending(keys, n, ordered, high, rank)
    for j in range(n):
        index = np.uint64(0x7FFFFFFF) - ((ordered[j] >> np.uint64(1)) & np.uint64(0x7FFFFFFF))
        high[j] = np.int32((index << np.uint64(1)) | (ordered[j] & np.uint64(1)))
    if n_ties > 0 and n <= COUNTING_LIMIT:
        # 7 bits number the run of equal products, 21 hold index and sign: all keys differ
        run = np.int32(0)
        for j in range(1, n):
            run += np.int32(product_bits[j] != product_bits[j - 1])
            high[j] |= run << np.int32(21)
        count_smaller(high, n, rank)
        for j in range(n):
            entries[np.uint64(rank[j])] = high[j]
        chosen = entries
    else:
        chosen = high
    for j in range(n):
        entry = np.uint64(chosen[j] & np.int32(0x1FFFFF))
        sign = entry & np.uint64(1)
        words[j] = (
            ((entry >> np.uint64(1)) << np.uint64(value_bits))
            | (sign << np.uint64(value_bits - 1))
            | np.uint64(codes[j])
        )
    for j in range(n, words.shape[0]):
        words[j] = words[n - 1]
    write_bits(words, word_bits, out_row)
