"""Bit-packed words, read and scored in LLVM types for Numba kernels to call (see `_packing` for the layout).

Sixteen words of `word_bits` bits take ``2 * word_bits`` bytes, so every block of sixteen begins on a byte. One load and
one constant shuffle bring the bytes of each word into a 32-bit lane; a constant shift leaves the word in its low bits.
A block reads up to 64 bytes from its first.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir  # type: ignore[import-untyped, unused-ignore]
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from skcompressae._core._lanes import N_LANES
from skcompressae._core._search_vectors import ROWS_AT_ONCE, load_columns, prefetch, score_lanes, sum_lanes

__all__ = [
    "READ_AHEAD",
    "fits_lanes",
    "load_bits",
    "score_words",
    "score_words_wide",
    "store_bits",
]

# Bytes that must be readable from the first byte of any block.
READ_AHEAD = 64
# Bytes that the scan of one query prefetches ahead, into the second-level cache.
_AHEAD = 8_192


def fits_lanes(word_bits: int) -> bool:
    """Return whether each of sixteen words, with the bits before it in its first byte, fits a 32-bit lane."""
    return all(lane * word_bits % 8 + word_bits <= 32 for lane in range(N_LANES))


def _constants(kind: Any, values: list[Any]) -> Any:
    return ir.Constant(ir.VectorType(kind, len(values)), values)


def _load_words(builder: Any, base: Any, word_bits: int) -> Any:
    """Return sixteen words in the low `word_bits` bits of 32-bit lanes, with anything above."""
    byte, lane_type = ir.IntType(8), ir.IntType(32)
    n_loaded = 32 if word_bits <= 16 else 64
    loaded = ir.VectorType(byte, n_loaded)
    data = builder.load(builder.bitcast(base, loaded.as_pointer()), align=1)
    chosen = []
    for lane in range(N_LANES):
        first, offset = divmod(lane * word_bits, 8)
        needed = -(-(offset + word_bits) // 8)
        # Byte n_loaded is the first of the second operand, zero, which makes a plain widening of 16-bit words. Beyond
        # the word any byte will do; of 64 loaded, one operand alone takes one instruction less.
        chosen += [first + i if i < needed or n_loaded == 64 else n_loaded for i in range(4)]
    zero = ir.Constant(loaded, [0] * n_loaded)
    lanes = builder.shuffle_vector(data, zero, _constants(lane_type, chosen))
    words = builder.bitcast(lanes, ir.VectorType(lane_type, N_LANES))
    return builder.lshr(words, _constants(lane_type, [lane * word_bits % 8 for lane in range(N_LANES)]))


def _values(builder: Any, words: Any, coefficients: Any, n_terms: int, value_bits: int) -> Any:
    """Return the polynomials of the codes of sixteen words, with their signs."""
    lane_type = ir.IntType(32)
    vector, integers = ir.VectorType(ir.FloatType(), N_LANES), ir.VectorType(lane_type, N_LANES)

    def same(value: int) -> Any:
        return _constants(lane_type, [value] * N_LANES)

    def coefficient(number: int) -> Any:
        place = builder.gep(coefficients, [ir.Constant(ir.IntType(64), number * N_LANES)])
        return builder.load(builder.bitcast(place, vector.as_pointer()), align=4)

    code = builder.uitofp(builder.and_(words, same((1 << (value_bits - 1)) - 1)), vector)
    value = coefficient(n_terms - 1)
    for number in range(n_terms - 2, -1, -1):
        product = builder.fmul(value, code, flags=("contract",))
        value = builder.fadd(product, coefficient(number), flags=("contract",))
    sign = builder.and_(builder.shl(words, same(32 - value_bits)), same(1 << 31))
    return builder.bitcast(builder.xor(builder.bitcast(value, integers), sign), vector)


@intrinsic
def load_bits(typingctx: Any, rows: Any, position: Any) -> Any:
    """Return the eight bytes at `position` as uint64."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        place = builder.bitcast(builder.gep(data, [args[1]]), ir.IntType(64).as_pointer())
        return builder.load(place, align=1)

    return types.uint64(rows, types.intp), codegen


@intrinsic
def store_bits(typingctx: Any, rows: Any, position: Any, bits: Any) -> Any:
    """Write a uint64 to the eight bytes at `position`."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        place = builder.bitcast(builder.gep(data, [args[1]]), ir.IntType(64).as_pointer())
        builder.store(args[2], place, align=1)
        return context.get_dummy_value()

    return types.void(rows, types.intp, types.uint64), codegen


@intrinsic(prefer_literal=True)
def score_words(
    typingctx: Any,
    rows: Any,
    position: Any,
    row_bytes: Any,
    coefficients: Any,
    target: Any,
    sums: Any,
    place: Any,
    word_bits: Any,
    value_bits: Any,
    n_terms: Any,
) -> Any:
    """Score the words of `ROWS_AT_ONCE` rows from byte `position` on, their values approximated, against one target.

    `coefficients` is float32 of shape (n_blocks, n_terms, 16): those of the polynomial in the code that gives the
    magnitude at each rank, zero for ranks above the last. `target` has the shape (2**index_bits, 1). The scores, but
    for the scales of the rows, go to `sums`, float32, from `place` on.
    """
    n_word, n_value, n_powers = word_bits.literal_value, value_bits.literal_value, n_terms.literal_value
    signature = types.void(
        rows, types.intp, types.intp, coefficients, target, sums, types.intp, word_bits, value_bits, n_terms
    )

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        def array(number: int) -> Any:
            return context.make_array(signature.args[number])(context, builder, args[number])

        word = ir.IntType(64)
        vector = ir.VectorType(ir.FloatType(), N_LANES)
        totals = [cgutils.alloca_once(builder, vector) for _ in range(ROWS_AT_ONCE)]
        for total in totals:
            builder.store(ir.Constant(vector, [0.0] * N_LANES), total)
        first, polynomials, target_data = builder.gep(array(0).data, [args[1]]), array(3), array(4).data
        with cgutils.for_range(builder, builder.extract_value(polynomials.shape, 0), intp=word) as loop:
            block = builder.gep(polynomials.data, [builder.mul(loop.index, ir.Constant(word, n_powers * N_LANES))])
            offset = builder.mul(loop.index, ir.Constant(word, 2 * n_word))
            for number, total in enumerate(totals):
                row = builder.add(builder.mul(args[2], ir.Constant(word, number)), offset)
                base = builder.gep(first, [row])
                prefetch(builder, builder.gep(base, [ir.Constant(word, _AHEAD)]), locality=2)
                # Loads of their own, as lanes leave a vector one move at a time; before that of the vector, from which
                # LLVM would otherwise take them by double shifts, which are slow on AMD's processors.
                columns = load_columns(builder, base, n_word, n_value)
                values = _values(builder, _load_words(builder, base, n_word), block, n_powers, n_value)
                chosen = ir.Constant(vector, ir.Undefined)
                for lane, column in enumerate(columns):
                    item = builder.load(builder.gep(target_data, [column]))
                    chosen = builder.insert_element(chosen, item, ir.Constant(ir.IntType(32), lane))
                product = builder.fmul(values, chosen, flags=("contract",))
                builder.store(builder.fadd(builder.load(total), product, flags=("contract",)), total)
        scores = sum_lanes(builder, [builder.load(total) for total in totals])
        out = builder.bitcast(builder.gep(array(5).data, [args[6]]), scores.type.as_pointer())
        builder.store(scores, out, align=4)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic(prefer_literal=True)
def score_words_wide(
    typingctx: Any,
    rows: Any,
    position: Any,
    n: Any,
    codebook: Any,
    pairs: Any,
    scale: Any,
    thresholds: Any,
    scores: Any,
    word_bits: Any,
    value_bits: Any,
) -> Any:
    """Score the n words at byte `position` of `rows` against `LANES` targets as `score_lanes` does.

    `codebook` is float32 of shape (k or 1, 2**value_bits): signed levels times 2**-31. Each word is read and looked up
    by itself: next to the vector instructions of 64 targets that is free.
    """
    n_word, n_value = word_bits.literal_value, value_bits.literal_value
    signature = types.uint64(
        rows, types.intp, types.intp, codebook, pairs, types.float32, thresholds, scores, word_bits, value_bits
    )

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        def array(number: int) -> Any:
            return context.make_array(signature.args[number])(context, builder, args[number])

        word = ir.IntType(64)

        def same(value: int) -> Any:
            return ir.Constant(word, value)

        row = builder.gep(array(0).data, [args[1]])
        level_data = array(3).data
        n_ranks = builder.extract_value(array(3).shape, 0)
        is_ranked = builder.zext(builder.icmp_signed(">", n_ranks, same(1)), word)
        step = builder.mul(is_ranked, same(1 << n_value))
        kind = ir.IntType(n_word if n_word in (16, 32) else 64)

        def entry(number: Any) -> tuple[Any, Any]:
            bit = builder.mul(number, same(n_word))
            place = builder.bitcast(builder.gep(row, [builder.lshr(bit, same(3))]), kind.as_pointer())
            bits = builder.load(place, align=1)
            bits = bits if kind.width == 64 else builder.zext(bits, word)
            bits = builder.lshr(bits, builder.and_(bit, same(7)))
            column = builder.and_(builder.lshr(bits, same(n_value)), same((1 << (n_word - n_value)) - 1))
            code = builder.and_(bits, same((1 << n_value) - 1))
            level = builder.gep(level_data, [builder.add(builder.mul(number, step), code)])
            return column, builder.load(level)

        bounds = (same(0), args[2])
        return score_lanes(builder, bounds, entry, array(4).data, args[5], array(6).data, array(7).data)

    return signature, codegen
