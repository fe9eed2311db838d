"""Decoder rows rounded to 16-bit integers: products of such take half the time, and half the memory, of float32.

One instruction multiplies sixteen pairs of integers and adds the products two by two (`_int16_products.py`). Rows of
norm 1 at most are rounded to multiples of one step for all, so that an entry is off by 1.5e-5 at most, and no sum of
products leaves 32 bits (Cauchy and Schwarz). Columns are zeros up to a multiple of sixteen.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from skcompressae._core._arrays import FloatArray, IndexArray, aligned_empty
from skcompressae._core._compiling import njit
from skcompressae._core._gathers import FAST, dot
from skcompressae._core._int16_products import pairwise_products
from skcompressae._core._processor import HAS_AVX2
from skcompressae._core._threads import run_blocks

__all__ = ["add_integer_rows", "dot_integer_rows", "gram_of_integers", "round_decoder", "rounded_decoder_pays"]

# Rows from which rounding the decoder takes less than it saves, and columns from which a product saves anything.
_MIN_ROWS, _MIN_COLUMNS = 1024, 160
# Steps to 1: the largest entry that a row of norm 1 can have still fits.
_SCALE = 32766.0
# Norms of decoder rows are 1 but for rounding.
_LARGEST_NORM = 1.00003
# Integers that one instruction multiplies, and that the widths of rounded rows are a multiple of.
_N_INTEGERS = 16
_TILE_ROWS, _TILE_COLUMNS = 4, 3

_int16, _int32, _int64 = (ir.IntType(bits) for bits in (16, 32, 64))
_shorts, _ints = ir.VectorType(_int16, _N_INTEGERS), ir.VectorType(_int32, _N_INTEGERS // 2)


@njit(nogil=True, fastmath=FAST)
def _round(row: Any, scale: Any, integers: Any) -> None:
    for j in range(row.shape[0]):
        integers[j] = np.int16(np.int32(np.rint(row[j] * scale)))


@njit(nogil=True)
def _round_decoder(rows: Any, start: Any, stop: Any, integers: Any) -> int:
    n_too_long = 0
    for i in range(start, stop):
        norm = np.sqrt(dot(rows[i], rows[i]))
        if norm <= rows.dtype.type(_LARGEST_NORM):
            _round(rows[i], rows.dtype.type(_SCALE), integers[i])
        else:  # or not a number
            n_too_long += 1
    return n_too_long


def rounded_decoder_pays(n_rows: int, n_features: int) -> bool:
    """Whether fitting the values of so many rows is faster with `round_decoder`'s integers, on this processor."""
    return HAS_AVX2 and n_rows >= _MIN_ROWS and n_features >= _MIN_COLUMNS


def round_decoder(decoder: FloatArray, *, n_threads: int) -> IndexArray | None:
    """Return unit-norm rows of shape (n_components, n_features) as integers; None where some are longer than that.

    Integers are int16 of shape (n_components, n_features rounded up to a multiple of 16).
    """
    n_features = decoder.shape[1]
    integers: IndexArray = aligned_empty((len(decoder), -(-n_features // _N_INTEGERS) * _N_INTEGERS), np.int16)
    integers[:, n_features:] = 0
    counts: list[int] = []
    run_blocks(
        lambda start, stop: counts.append(_round_decoder(decoder, start, stop, integers)),
        len(decoder),
        256,
        n_threads,
    )
    return None if sum(counts) else integers


def _multiply(context: Any, builder: Any, left: list[Any], right: list[Any], n_groups: Any, sums: Any) -> Any:
    """Write the products of all rows on the left with all on the right, pointers to integers, one row after another."""
    multiply = pairwise_products(builder)
    add_up = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(_int32, [_ints]), f"llvm.vector.reduce.add.v{_ints.count}i32"
    )
    before, loop, after = builder.block, builder.append_basic_block("groups"), builder.append_basic_block("summed")
    builder.branch(loop)

    builder.position_at_end(loop)
    group = builder.phi(_int64)
    totals = [builder.phi(_ints) for _ in range(len(left) * len(right))]
    start = builder.mul(group, ir.Constant(_int64, _N_INTEGERS))

    def load(row: Any) -> Any:
        return builder.load(builder.bitcast(builder.gep(row, [start]), _shorts.as_pointer()), align=2)

    of_right = [load(row) for row in right]
    grown: list[Any] = []
    for row in left:
        integers = load(row)
        products = [builder.call(multiply, [integers, others]) for others in of_right]
        grown += [builder.add(total, product) for total, product in zip(totals[len(grown) :], products, strict=False)]
    following = builder.add(group, ir.Constant(_int64, 1))
    group.add_incoming(ir.Constant(_int64, 0), before)
    group.add_incoming(following, loop)
    for total, sum_ in zip(totals, grown, strict=True):
        total.add_incoming(ir.Constant(_ints, None), before)
        total.add_incoming(sum_, loop)
    builder.cbranch(builder.icmp_signed("<", following, n_groups), loop, after)

    builder.position_at_end(after)
    for place, vector in enumerate(grown):
        builder.store(builder.call(add_up, [vector]), builder.gep(sums, [ir.Constant(_int64, place)]), align=4)
    return context.get_dummy_value()


def _data(context: Any, builder: Any, signature: Any, arguments: Any, place: int) -> Any:
    return context.make_array(signature.args[place])(context, builder, arguments[place]).data


def _rows_at(builder: Any, items: Any, picks: Any, n_picks: int, n_groups: Any) -> list[Any]:
    width = builder.mul(n_groups, ir.Constant(_int64, _N_INTEGERS))
    return [builder.gep(items, [builder.mul(builder.extract_value(picks, n), width)]) for n in range(n_picks)]


@intrinsic
def _multiply_tile(typing_context: Any, rows: Any, left: Any, right: Any, n_groups: Any, sums: Any) -> Any:
    """Write to `sums` the products of four of the rows with three; all numbers are int64."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        items, sums = (_data(context, builder, signature, arguments, place) for place in (0, 4))
        _, left, right, n_groups, _ = arguments
        of_left = _rows_at(builder, items, left, _TILE_ROWS, n_groups)
        of_right = _rows_at(builder, items, right, _TILE_COLUMNS, n_groups)
        return _multiply(context, builder, of_left, of_right, n_groups, sums)

    picks = types.UniTuple(types.int64, _TILE_ROWS), types.UniTuple(types.int64, _TILE_COLUMNS)
    return types.void(rows, *picks, types.int64, sums), generate


@intrinsic
def _multiply_four(typing_context: Any, row: Any, rows: Any, picks: Any, n_groups: Any, sums: Any) -> Any:
    """Write to `sums` the products of one row with four of others; all numbers are int64."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        one, items, sums = (_data(context, builder, signature, arguments, place) for place in (0, 1, 4))
        _, _, picks, n_groups, _ = arguments
        others = _rows_at(builder, items, picks, _TILE_ROWS, n_groups)
        return _multiply(context, builder, [one], others, n_groups, sums)

    return types.void(row, rows, types.UniTuple(types.int64, _TILE_ROWS), types.int64, sums), generate


@njit(nogil=True, fastmath=FAST)
def gram_of_integers(rows: Any, picks: Any, first: Any, n: Any, gram: Any) -> None:
    """Write the inner products of the rows ``picks[first:n]`` with those of ``picks[:n]``, as `gram_of` does."""
    kind = gram.dtype.type
    square = kind((1 / _SCALE) ** 2)
    n_groups = rows.shape[1] // _N_INTEGERS
    sums = np.empty(_TILE_ROWS * _TILE_COLUMNS, dtype=np.int32)
    for i0 in range(first - first % _TILE_ROWS, n, _TILE_ROWS):
        i1, i2, i3 = min(i0 + 1, n - 1), min(i0 + 2, n - 1), min(i0 + 3, n - 1)
        left = np.int64(picks[i0]), np.int64(picks[i1]), np.int64(picks[i2]), np.int64(picks[i3])
        for j0 in range(0, i3 + 1, _TILE_COLUMNS):
            j1, j2 = min(j0 + 1, i3), min(j0 + 2, i3)
            right = np.int64(picks[j0]), np.int64(picks[j1]), np.int64(picks[j2])
            _multiply_tile(rows, left, right, n_groups, sums)
            place = 0
            for i in (i0, i1, i2, i3):
                for j in (j0, j1, j2):
                    gram[i, j] = kind(sums[place]) * square
                    place += 1
    for i in range(first, n):
        for j in range(i):
            gram[j, i] = gram[i, j]


@njit(nogil=True, fastmath=FAST)
def dot_integer_rows(row: Any, rows: Any, picks: Any, n_picks: Any, products: Any) -> None:
    """Write ``rows[picks[p]] . row`` to ``products[p]``; `row` is rounded for it."""
    kind = row.dtype.type
    norm = np.sqrt(dot(row, row))
    largest = max(norm, kind(1e-30))
    n_groups = rows.shape[1] // _N_INTEGERS
    integers = np.zeros(rows.shape[1], dtype=np.int16)
    _round(row, kind(_SCALE) / largest, integers)
    step = largest * kind((1 / _SCALE) ** 2)
    sums = np.empty(_TILE_ROWS, dtype=np.int32)
    last = n_picks - 1
    for p in range(0, n_picks, _TILE_ROWS):
        p1, p2, p3 = min(p + 1, last), min(p + 2, last), min(p + 3, last)
        others = np.int64(picks[p]), np.int64(picks[p1]), np.int64(picks[p2]), np.int64(picks[p3])
        _multiply_four(integers, rows, others, n_groups, sums)
        for n in range(min(_TILE_ROWS, n_picks - p)):
            products[p + n] = kind(sums[n]) * step


@njit(nogil=True, fastmath=FAST)
def add_integer_rows(total: Any, rows: Any, coefficients: Any, picks: Any, n_picks: Any) -> None:
    """Add ``sum_p coefficients[p] * rows[picks[p]]`` to `total`."""
    kind = total.dtype.type
    step = kind(1 / _SCALE)
    n_columns = total.shape[0]
    last = n_picks - 1
    for p in range(0, n_picks, 4):
        p1, p2, p3 = min(p + 1, last), min(p + 2, last), min(p + 3, last)
        c0 = coefficients[p] * step
        c1 = coefficients[p1] * step if p1 == p + 1 else kind(0)
        c2 = coefficients[p2] * step if p2 == p + 2 else kind(0)
        c3 = coefficients[p3] * step if p3 == p + 3 else kind(0)
        r0, r1, r2, r3 = rows[picks[p]], rows[picks[p1]], rows[picks[p2]], rows[picks[p3]]
        for j in range(n_columns):
            total[j] += c0 * kind(r0[j]) + c1 * kind(r1[j]) + c2 * kind(r2[j]) + c3 * kind(r3[j])
