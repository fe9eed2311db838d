"""Rows scored by sparse code and residual code together, one after the other: ``(s . t + r . q) * factor``."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from skcompressae._core._compiling import njit
from skcompressae._core._packed_search import packed_score, row_scale_of
from skcompressae._core._residual import add_residuals
from skcompressae._core._search_kernels import replace_worst

__all__ = ["RefinedRows", "offer_rows", "refined_scores"]


class RefinedRows(NamedTuple):
    """Packed rows with residual codes.

    Attributes
    ----------
    rows : uint8 array
        The bytes of the words, flat.
    row_bytes, k, word_bits, value_bits : int
        Bytes and words of a row, bits of a word and of the value in it.
    row_scales : uint16 or float32 array of shape (n_rows,)
        See `row_scale_of`.
    levels : float32 array of shape (k or 1, 2**value_bits)
        The codebook, with signs.
    codes : uint8 array of shape (n_rows, n_bytes)
        Residual codes.
    factors : float32 array of shape (n_rows,)
        What scores are multiplied by.
    """

    rows: NDArray[np.uint8]
    row_bytes: int
    k: int
    word_bits: int
    value_bits: int
    row_scales: NDArray[Any]
    levels: NDArray[np.float32]
    codes: NDArray[np.uint8]
    factors: NDArray[np.float32]


@njit(nogil=True)
def refined_scores(stored: RefinedRows, is_short: bool, begin: int, which: Any, target: Any, tables: Any) -> Any:
    """Return the scores of the rows ``begin + which`` for one query, float64."""
    rows, row_bytes, k = stored.rows, stored.row_bytes, stored.k
    row_scales, levels = stored.row_scales, stored.levels
    word_bits, value_bits = stored.word_bits, stored.value_bits
    products = np.empty(which.shape[0])
    for i in range(which.shape[0]):
        row = begin + which[i]
        row_scale = row_scale_of(row_scales, row, is_short)
        products[i] = packed_score(rows, row * row_bytes, k, row_scale, levels, target, word_bits, value_bits)
    add_residuals(stored.codes, begin, which, tables, 1.0, stored.factors, products)
    return products


@njit(nogil=True)
def offer_rows(
    stored: RefinedRows,
    is_short: bool,
    begin: int,
    which: Any,
    first_row: int,
    excluded: int,
    target: Any,
    tables: Any,
    scores: Any,
    numbers: Any,
) -> None:
    """Offer the rows ``begin + which``, ascending, to the heap of one query; `first_row` is the number of row 0."""
    found = refined_scores(stored, is_short, begin, which, target, tables)
    for i in range(which.shape[0]):
        number = first_row + begin + which[i]
        if found[i] > scores[0] and number != excluded:
            replace_worst(scores, numbers, found[i], number)
