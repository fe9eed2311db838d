"""Rows rounded to bfloat16, two columns to a 32-bit word: gathers of rows wait for memory, and read half of it.

Layout: of a row of 2h columns, zeros beyond the last one, word j holds column j in its low half and column h + j in its
high half. A shift or a mask turns either into the float32 that it stands for, so that sums stay in the order of the
columns, and in float32. Compilers do not see vector instructions in such loops: they are written in LLVM's.
"""

from __future__ import annotations

from itertools import chain
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from skcompressae._core._arrays import FloatArray, WordArray, aligned_empty
from skcompressae._core._compiling import njit
from skcompressae._core._lanes import N_LANES, broadcast, folded
from skcompressae._core._threads import run_blocks

__all__ = ["add_word_rows", "dot_word_rows", "halves", "round_row", "round_rows"]

_WORDS, _FLOATS = ir.VectorType(ir.IntType(32), N_LANES), ir.VectorType(ir.FloatType(), N_LANES)
_FUSED = {"flags": ("contract",)}
# Half of a bfloat16's last place, so that cutting off what is below rounds (ties away from zero), and what is kept.
_NEAREST, _HIGH_HALF = 0x8000, 0xFFFF0000


@intrinsic
def _round_lanes(typing_context: Any, row: Any, start: Any, half: Any, words: Any) -> Any:
    """Round columns ``start + j`` and ``half + start + j`` of a float32 row to word ``start + j``, for every lane j."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        row, words = (context.make_array(signature.args[n])(context, builder, arguments[n]).data for n in (0, 3))
        start, half = arguments[1:3]

        def lanes(items: Any, place: Any) -> Any:
            return builder.bitcast(builder.gep(items, [place]), _WORDS.as_pointer())

        def constant(value: int) -> Any:
            return ir.Constant(_WORDS, [value] * N_LANES)

        low, high = (
            builder.add(builder.load(lanes(row, place), align=4), constant(_NEAREST))
            for place in (start, builder.add(half, start))
        )
        low, high = builder.lshr(low, constant(16)), builder.and_(high, constant(_HIGH_HALF))
        builder.store(builder.or_(low, high), lanes(words, start), align=4)
        return context.get_dummy_value()

    return types.void(row, types.intp, types.intp, words), generate


@njit(nogil=True)
def round_row(row: Any, words: Any) -> None:
    """Round a contiguous float32 row to the nearest bfloat16; of at most twice as many columns as there are words."""
    half, n_columns = words.shape[0], row.shape[0]
    n_vectors = max(0, n_columns - half) // N_LANES
    for v in range(n_vectors):
        _round_lanes(row, v * N_LANES, half, words)
    bits = row.view(np.uint32)
    for j in range(n_vectors * N_LANES, half):
        low = bits[j] + np.uint32(_NEAREST) if j < n_columns else np.uint32(0)
        high = bits[half + j] + np.uint32(_NEAREST) if half + j < n_columns else np.uint32(0)
        words[j] = (low >> np.uint32(16)) | (high & np.uint32(_HIGH_HALF))


@njit(nogil=True)
def _round_rows(rows: Any, words: Any, start: Any, stop: Any) -> None:
    for i in range(start, stop):
        round_row(rows[i], words[i])


def round_rows(rows: FloatArray, *, n_threads: int) -> WordArray:
    """Return float32 rows of shape (n_rows, n_columns) as words of shape (n_rows, h), uint32, h a multiple of 16."""
    words = aligned_empty((len(rows), -(-rows.shape[1] // (2 * N_LANES)) * N_LANES), np.uint32)
    run_blocks(lambda start, stop: _round_rows(rows, words, start, stop), len(rows), 256, n_threads)
    return words


def halves(builder: Any, words: Any) -> tuple[Any, Any]:
    """Return the floats in the low and those in the high halves of a vector of words."""
    shift = ir.Constant(words.type, [16] * words.type.count)
    mask = ir.Constant(words.type, [_HIGH_HALF] * words.type.count)
    floats = ir.VectorType(ir.FloatType(), words.type.count)
    return builder.bitcast(builder.shl(words, shift), floats), builder.bitcast(builder.and_(words, mask), floats)


class _Walk:
    """A loop over the words of four rows and both halves of a float32 row, a vector of each at a time."""

    def __init__(self, context: Any, builder: Any, signature: Any, arguments: Any, n_lanes: int) -> None:
        self.builder = builder
        self._n_lanes = n_lanes
        row, words, self._half, *picks = arguments[:7]
        data, rows = (
            context.make_array(kind)(context, builder, array).data
            for kind, array in zip(signature.args[:2], (row, words), strict=True)
        )
        self._starts = [data, builder.gep(data, [self._half])]
        self._rows = [builder.gep(rows, [builder.mul(pick, self._half)]) for pick in picks]
        self.before = builder.block
        self.loop, self._after = (builder.append_basic_block(name) for name in ("words", "after_words"))
        builder.branch(self.loop)
        builder.position_at_end(self.loop)
        self._place = builder.phi(self._half.type)

    def places(self) -> list[Any]:
        """Return pointers to the vectors of the low and of the high half of the float32 row."""
        builder, vector = self.builder, ir.VectorType(ir.FloatType(), self._n_lanes)
        return [builder.bitcast(builder.gep(half, [self._place]), vector.as_pointer()) for half in self._starts]

    def of_rows(self) -> list[tuple[Any, Any]]:
        """Return the vectors of the low and of the high halves of the four rows."""
        builder, vector = self.builder, ir.VectorType(ir.IntType(32), self._n_lanes)
        places = (builder.bitcast(builder.gep(row, [self._place]), vector.as_pointer()) for row in self._rows)
        return [halves(builder, builder.load(place, align=4)) for place in places]

    def end(self) -> None:
        """Close the loop; what follows is built behind it."""
        builder, kind = self.builder, self._half.type
        following = builder.add(self._place, ir.Constant(kind, self._n_lanes))
        self._place.add_incoming(ir.Constant(kind, 0), self.before)
        self._place.add_incoming(following, self.loop)
        builder.cbranch(builder.icmp_signed("<", following, self._half), self.loop, self._after)
        builder.position_at_end(self._after)


@intrinsic
def _add_four(
    typing_context: Any, total: Any, words: Any, half: Any, p0: Any, p1: Any, p2: Any, p3: Any, coefficients: Any
) -> Any:
    """Add the four rows' multiples to `total`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        factors = [broadcast(builder, _FLOATS, builder.extract_value(arguments[7], n)) for n in range(4)]
        walk = _Walk(context, builder, signature, arguments, N_LANES)
        places = walk.places()
        sums = [builder.load(place, align=4) for place in places]
        for factor, row in zip(factors, walk.of_rows(), strict=True):
            sums = [
                builder.fadd(value, builder.fmul(factor, part, **_FUSED), **_FUSED)
                for value, part in zip(sums, row, strict=True)
            ]
        for value, place in zip(sums, places, strict=True):
            builder.store(value, place, align=4)
        walk.end()
        return context.get_dummy_value()

    place = types.intp
    return types.void(total, words, place, place, place, place, place, types.UniTuple(types.float32, 4)), generate


@intrinsic
def _dot_four(typing_context: Any, row: Any, words: Any, half: Any, p0: Any, p1: Any, p2: Any, p3: Any) -> Any:
    """Return the products of a row with four rows."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        # of 16 lanes AVX2 has no registers for the sums
        walk = _Walk(context, builder, signature, arguments, N_LANES // 2)
        nothing = ir.Constant(ir.VectorType(ir.FloatType(), N_LANES // 2), None)
        totals = [[builder.phi(nothing.type) for _ in range(2)] for _ in range(4)]  # of four rows, for either half
        factors = [builder.load(place, align=4) for place in walk.places()]
        grown = [
            [
                builder.fadd(total, builder.fmul(factor, part, **_FUSED), **_FUSED)
                for total, factor, part in zip(of_row, factors, parts, strict=True)
            ]
            for of_row, parts in zip(totals, walk.of_rows(), strict=True)
        ]
        for total, sums in zip(chain(*totals), chain(*grown), strict=True):
            total.add_incoming(nothing, walk.before)
            total.add_incoming(sums, walk.loop)
        walk.end()
        products = [folded(builder, builder.fadd(*of_row), builder.fadd) for of_row in grown]
        return context.make_tuple(builder, signature.return_type, products)

    place = types.intp
    return types.UniTuple(types.float32, 4)(row, words, place, place, place, place, place), generate


@njit(nogil=True)
def add_word_rows(total: Any, words: Any, coefficients: Any, picks: Any, n_picks: Any) -> None:
    """Add ``sum_p coefficients[p] * words[picks[p]]`` to `total`, float32 of twice as many columns as there are words.

    Arrays are C-contiguous. Four rows are in flight, as in `_gathers.py`.
    """
    half = words.shape[1]
    for p in range(0, n_picks - 3, 4):
        factors = coefficients[p], coefficients[p + 1], coefficients[p + 2], coefficients[p + 3]
        _add_four(total, words, half, picks[p], picks[p + 1], picks[p + 2], picks[p + 3], factors)
    for p in range(n_picks - n_picks % 4, n_picks):
        factors = coefficients[p], np.float32(0), np.float32(0), np.float32(0)
        _add_four(total, words, half, picks[p], picks[p], picks[p], picks[p], factors)


@njit(nogil=True)
def dot_word_rows(row: Any, words: Any, picks: Any, n_picks: Any, products: Any) -> None:
    """Write ``words[picks[p]] . row`` to ``products[p]``; `row` is as `total` of :func:`add_word_rows`."""
    half = words.shape[1]
    for p in range(0, n_picks - 3, 4):
        products[p], products[p + 1], products[p + 2], products[p + 3] = _dot_four(
            row, words, half, picks[p], picks[p + 1], picks[p + 2], picks[p + 3]
        )
    for p in range(n_picks - n_picks % 4, n_picks):
        products[p], _, _, _ = _dot_four(row, words, half, picks[p], picks[p], picks[p], picks[p])
