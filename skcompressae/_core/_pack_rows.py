"""Kernels that quantise rows and write them in the layout of `_packing`.

Of all ways to write a row one is canonical, so a row that came out of a store is written the same way again by the same
quantiser.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from skcompressae._core._compiling import njit
from skcompressae._core._lanes import N_LANES
from skcompressae._core._pack_entries import emit, gather, has_duplicate, sort_descending
from skcompressae._core._rank_vectors import count_thresholds

__all__ = ["MAX_SCALE", "MIN_SCALE", "PACK_ERRORS", "pack_ranked", "pack_uniform"]

Array: TypeAlias = NDArray[Any]

# Outside this range a product of scale and level could leave the normal float32 numbers and lose the support.
MIN_SCALE = 2.0**-100
MAX_SCALE = 2.0**100

PACK_ERRORS = {
    1: "contain NaN, infinity or a value beyond float32",
    2: "have a largest magnitude outside [2**-100, 2**100]; rescale them, or encode at norm='unit'",
    3: "have an index outside [0, n_components)",
    4: "have more nonzeros than the store's k",
    5: "hold an index twice",
    6: "have a row of zeros, which a quantizer of kind='fixed' cannot tell; pack with kind='ranked'",
    7: "are longer than what the quantizer of kind='fixed' was learned on; pack with kind='ranked', or at norm=None",
}
# Times the largest level of a fixed codebook: far beyond what a row of one length can have that is unlike the others.
_FAR = 8.0


@njit(nogil=True)
def _dot(a: Array, b: Array, n: int) -> float:
    """Return the inner product in float64; four sums in a fixed order, so that every machine rounds alike."""
    s0 = 0.0
    s1 = 0.0
    s2 = 0.0
    s3 = 0.0
    whole = n - n % 4
    for j in range(0, whole, 4):
        s0 += np.float64(a[j]) * np.float64(b[j])
        s1 += np.float64(a[j + 1]) * np.float64(b[j + 1])
        s2 += np.float64(a[j + 2]) * np.float64(b[j + 2])
        s3 += np.float64(a[j + 3]) * np.float64(b[j + 3])
    for j in range(whole, n):
        s0 += np.float64(a[j]) * np.float64(b[j])
    return (s0 + s1) + (s2 + s3)


@njit(nogil=True)
def _lay_out(thresholds: Array) -> tuple[Array, Array]:
    """Return the thresholds of every rank as `count_thresholds` reads them."""
    k, n = thresholds.shape
    n_coarse = n // N_LANES
    coarse = np.full((n_coarse, k + N_LANES), np.inf, np.float32)
    fine = np.full((k, N_LANES * (n_coarse + 1)), np.inf, np.float32)
    for j in range(k):
        for t in range(n):
            fine[j, t] = thresholds[j, t]
        for t in range(n_coarse):
            coarse[t, j] = thresholds[j, N_LANES * t + N_LANES - 1]
    return coarse, fine


# error_model: a division that may raise keeps the loop over the levels from becoming vector instructions
@njit(nogil=True, error_model="numpy")
def _represent(
    magnitudes: Array,
    n: int,
    levels: Array,
    thresholds: Array,
    n_first: int,
    codes: Array,
    f32: Array,
    u32: Array,
) -> int:
    """Return the stored scale that represents the row exactly with the smallest first code below n_first, or -1.

    This is what makes packing idempotent: of all ways to write a row, one is canonical, and a row that came
    out of the store is written that way again.
    """
    first = magnitudes[0]
    # Almost every row fails here, in registers: subtracting as Veltkamp and Dekker do rounds to the 9 bits of a
    # stored scale.
    hits = 0
    for c0 in range(n_first):
        quotient = np.float32(first / levels[0, c0])
        stretched = np.float32(quotient * np.float32(32769.0))
        rounded = np.float32(stretched - np.float32(stretched - quotient))
        hits += int(np.float32(levels[0, c0] * rounded) == first)
    if hits == 0:
        return -1
    for c0 in range(n_first):
        f32[0] = first / levels[0, c0]
        stored = (u32[0] + np.uint32(0x3FFF) + ((u32[0] >> np.uint32(15)) & np.uint32(1))) >> np.uint32(15)
        u32[0] = stored << np.uint32(15)
        scale = f32[0]
        if np.float32(levels[0, c0] * scale) != first:
            continue
        codes[0] = c0
        exact = True
        for j in range(1, n):
            c = _nearest(magnitudes[j] / scale, thresholds, j)
            if np.float32(levels[j, c] * scale) != magnitudes[j]:
                exact = False
                break
            codes[j] = c
        if exact:
            return int(stored)
    return -1


@njit(nogil=True)
def _nearest(x: float, thresholds: Array, j: int) -> int:
    """Return the level of rank j nearest to x."""
    n = thresholds.shape[1]
    if n <= 15:
        c = 0
        for t in range(n):
            c += int(x > thresholds[j, t])
        return c
    low = 0
    high = n
    while low < high:
        middle = (low + high) >> 1
        if x > thresholds[j, middle]:
            low = middle + 1
        else:
            high = middle
    return low


@njit(nogil=True)
def pack_ranked(
    indptr: Array,
    indices: Array,
    value_bits_view: Array,
    n_components: int,
    levels: Array,
    thresholds: Array,
    layout: tuple[int, int],
    check_duplicates: bool,
    is_fixed: bool,
    rows: Array,
    scales: Array,
) -> tuple[int, int]:
    """Pack rows with a codebook per rank; scales are relative to the root mean square of the row.

    Of a fixed codebook levels are the magnitudes themselves, and there are no scales.

    Parameters
    ----------
    indptr : int64 array of shape (n + 1,)
    indices : int array
    value_bits_view : uint32 array
        The float32 values, reinterpreted.
    levels : float32 array of shape (k, n_levels)
        Magnitudes, strictly increasing along a row, nonincreasing down a column.
    thresholds : float32 array of shape (k, n_levels - 1)
    layout : tuple of int
        Bits of a word and of a value.
    check_duplicates : bool
    is_fixed : bool
    rows : uint8 array of shape (n, row_bytes), output
    scales : uint16 array of shape (n,), output; not used where levels are fixed

    Returns
    -------
    error : int
        0, or a key of `PACK_ERRORS`.
    row : int
        The row of the error.
    """
    k = levels.shape[0]
    words = np.empty(k, np.uint64)
    keys = np.empty(max(k, 1), np.uint64)
    ordered = np.empty(max(k, 1), np.uint64)
    high = np.empty(k + N_LANES, np.int32)
    rank = np.empty(k + N_LANES, np.int32)
    entries = np.empty(k + N_LANES, np.int32)
    flat = np.empty(max(k, 1), np.uint64)
    codes = np.empty(max(k, 1), np.int64)
    other = np.empty(max(k, 1), np.int64)
    magnitudes = np.empty(max(k, 1), np.float32)
    products = np.empty(max(k, 1), np.float32)
    relative = np.empty(k + N_LANES, np.float32)
    nearest = np.empty(k + N_LANES, np.int32)
    coarse, fine = _lay_out(thresholds)
    magnitude_bits = magnitudes.view(np.uint32)
    product_bits = products.view(np.uint32)
    f32 = np.empty(2, np.float32)
    u32 = f32.view(np.uint32)
    for i in range(rows.shape[0]):
        n, error = gather(indices, value_bits_view, indptr[i], indptr[i + 1], k, n_components, keys)
        if error:
            return error, i
        if n == 0:
            if is_fixed:
                return 6, i
            scales[i] = 0
            rows[i, :] = 0
            continue
        if check_duplicates and has_duplicate(keys, n, flat):
            return 5, i
        sort_descending(keys, n, ordered, high, rank)
        for j in range(n):
            magnitude_bits[j] = np.uint32(ordered[j] >> np.uint64(32))
        if magnitudes[0] < MIN_SCALE or magnitudes[0] > MAX_SCALE:
            return 2, i
        if is_fixed and magnitudes[0] > np.float32(_FAR) * levels[0, levels.shape[1] - 1]:
            return 7, i
        stored = -1
        if not is_fixed:
            stored = _represent(magnitudes, n, levels, thresholds, levels.shape[1], codes, f32, u32)
        if stored < 0:
            inverse = np.float32(1.0 if is_fixed else 1.0 / np.sqrt(_dot(magnitudes, magnitudes, n) / n))
            for j in range(n):
                relative[j] = magnitudes[j] * inverse
            count_thresholds(relative, n, coarse, fine, nearest)
            n_rising = np.int32(0)
            for j in range(n):
                codes[j] = nearest[j]
                products[j] = levels[j, np.uint64(nearest[j])]
            for j in range(1, n):
                n_rising += np.int32(products[j] > products[j - 1])
            if n_rising > 0:
                previous = products[0]
                for j in range(1, n):
                    c = codes[j]
                    while levels[j, c] > previous:
                        c -= 1
                    codes[j] = c
                    previous = levels[j, c]
                    products[j] = previous
            if not is_fixed:
                # the least-squares scale of the chosen levels: quantising alone would bias the norm
                f32[0] = _dot(magnitudes, products, n) / _dot(products, products, n)
                rounded = (u32[0] + np.uint32(0x3FFF) + ((u32[0] >> np.uint32(15)) & np.uint32(1))) >> np.uint32(15)
                stored = np.int64(rounded)
                u32[0] = rounded << np.uint32(15)
                scale = f32[0]
                for j in range(n):
                    products[j] *= scale
                canonical = _represent(products, n, levels, thresholds, codes[0], other, f32, u32)
                if canonical >= 0:
                    stored = canonical
                    for j in range(n):
                        codes[j] = other[j]
        else:
            for j in range(n):
                products[j] = magnitudes[j]
        if not is_fixed:
            scales[i] = np.uint16(stored)
        emit(keys, ordered, high, rank, entries, codes, product_bits, n, layout, words, rows[i])
    return 0, 0


@njit(nogil=True)
def pack_uniform(
    indptr: Array,
    indices: Array,
    value_bits_view: Array,
    n_components: int,
    n_levels: int,
    k: int,
    layout: tuple[int, int],
    check_duplicates: bool,
    is_narrow: bool,
    rows: Array,
    scales: Array,
) -> tuple[int, int]:
    """Pack rows with equal steps of the row's largest magnitude; arguments and result as in `pack_ranked`.

    `scales` is float32; `is_narrow` rounds it upwards, so that no magnitude exceeds it, to what 16 bits can store.
    """
    words = np.empty(k, np.uint64)
    keys = np.empty(max(k, 1), np.uint64)
    ordered = np.empty(max(k, 1), np.uint64)
    high = np.empty(k + N_LANES, np.int32)
    rank = np.empty(k + N_LANES, np.int32)
    entries = np.empty(k + N_LANES, np.int32)
    flat = np.empty(max(k, 1), np.uint64)
    codes = np.empty(max(k, 1), np.int64)
    products = np.empty(max(k, 1), np.float32)
    product_bits = products.view(np.uint32)
    f32 = np.empty(2, np.float32)
    u32 = f32.view(np.uint32)
    for i in range(rows.shape[0]):
        n, error = gather(indices, value_bits_view, indptr[i], indptr[i + 1], k, n_components, keys)
        if error:
            return error, i
        if n == 0:
            scales[i] = 0
            rows[i, :] = 0
            continue
        if check_duplicates and has_duplicate(keys, n, flat):
            return 5, i
        sort_descending(keys, n, ordered, high, rank)
        u32[0] = np.uint32(ordered[0] >> np.uint64(32))
        if f32[0] < MIN_SCALE or f32[0] > MAX_SCALE:
            return 2, i
        if is_narrow:
            u32[0] = ((u32[0] + np.uint32(0x7FFF)) >> np.uint32(15)) << np.uint32(15)
        scale = f32[0]
        scales[i] = scale
        inverse = n_levels / np.float64(scale)
        for j in range(n):
            u32[1] = np.uint32(ordered[j] >> np.uint64(32))
            c = max(1, min(n_levels, int(np.float64(f32[1]) * inverse + 0.5)))
            codes[j] = c - 1
            f32[1] = np.float32(c / n_levels)
            products[j] = f32[1] * scale
        emit(keys, ordered, high, rank, entries, codes, product_bits, n, layout, words, rows[i])
    return 0, 0
