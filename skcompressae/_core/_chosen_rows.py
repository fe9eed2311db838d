"""Sums over chosen rows of a matrix, by what the matrix holds: floats, bfloat16 in words, or 16-bit integers.

Numba chooses what these names stand for by the dtype of the rows (it does not prune branches on an array's type);
interpreted, they have no body to run and must not pass for done.
"""

from __future__ import annotations

from typing import Any

from numba import types
from numba.extending import overload

from skcompressae._core._gathers import add_combination, dots, gram_of
from skcompressae._core._integer_rows import add_integer_rows, dot_integer_rows, gram_of_integers
from skcompressae._core._words import add_word_rows, dot_word_rows

__all__ = ["add_rows", "dot_rows", "gram_rows"]


def add_rows(total: Any, rows: Any, coefficients: Any, picks: Any, n_picks: Any) -> None:
    """Add a combination of rows to `total`, as `add_combination` does."""
    raise NotImplementedError("compiled code only")


@overload(add_rows)
def _choose_add_rows(total: Any, rows: Any, coefficients: Any, picks: Any, n_picks: Any) -> Any:
    add = {types.uint32: add_word_rows, types.int16: add_integer_rows}.get(rows.dtype, add_combination)

    def chosen(total: Any, rows: Any, coefficients: Any, picks: Any, n_picks: Any) -> None:
        add(total, rows, coefficients, picks, n_picks)

    return chosen


def dot_rows(row: Any, rows: Any, picks: Any, n_picks: Any, products: Any) -> None:
    """Write the products of a row with others, as `dots` does."""
    raise NotImplementedError("compiled code only")


@overload(dot_rows)
def _choose_dot_rows(row: Any, rows: Any, picks: Any, n_picks: Any, products: Any) -> Any:
    multiply = {types.uint32: dot_word_rows, types.int16: dot_integer_rows}.get(rows.dtype, dots)

    def chosen(row: Any, rows: Any, picks: Any, n_picks: Any, products: Any) -> None:
        multiply(row, rows, picks, n_picks, products)

    return chosen


def gram_rows(rows: Any, picks: Any, first: Any, n: Any, gram: Any) -> None:
    """Write the inner products of some rows, floats or integers, with others, as `gram_of` does."""
    raise NotImplementedError("compiled code only")


@overload(gram_rows)
def _choose_gram_rows(rows: Any, picks: Any, first: Any, n: Any, gram: Any) -> Any:
    multiply = gram_of_integers if rows.dtype == types.int16 else gram_of

    def chosen(rows: Any, picks: Any, first: Any, n: Any, gram: Any) -> None:
        multiply(rows, picks, first, n, gram)

    return chosen
