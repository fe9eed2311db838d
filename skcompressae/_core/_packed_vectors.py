"""Unpacking of bit-packed words sixteen at a time, in LLVM vector types for Numba kernels to call.

Sixteen words of `word_bits` bits take ``2 * word_bits`` bytes, so every block of sixteen begins on a byte. One load and
one constant shuffle bring the bytes of each word into a 32-bit lane; a constant shift and a mask leave the word. Its
value comes from `levels`, float32 of shape (n_blocks, n, 16), lane by lane as ranks differ in their codebooks; how
depends on `method`:

- ``"grid3"``, or another number: the codebooks of a block are windows into one ascending grid of that many parts of 16
  magnitudes, n is one more. First the starts of the windows, int32 bits, beyond the grid in lanes above k, whose value
  is then zero; then the grid. Each part is a vector register that the places of the lanes permute;
- ``"lookup"``: any n magnitudes, zero in lanes above k; one load a lane;
- ``"linear"``: n = 1, the step of equal steps: ``(code + 1) * step``.

The sign bit of the word becomes the sign bit of the value. A block reads up to 64 bytes from its first.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir  # type: ignore[import-untyped, unused-ignore]
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from skcompressae._core._search_vectors import VECTOR, load_columns, prefetch, splat, sum_lanes

__all__ = [
    "MAX_GRID_PARTS",
    "READ_AHEAD",
    "fits_lanes",
    "load_bits",
    "score_words",
    "store_bits",
    "unpack_words",
]

# Eight permutations are still cheaper than sixteen loads; 18 (ranked codebooks of 8 bits) were not.
MAX_GRID_PARTS = 8
# Bytes that must be readable from the first byte of any block.
READ_AHEAD = 64
# Bytes that the scan of one query prefetches ahead, into the second-level cache.
_AHEAD = 8_192


def fits_lanes(word_bits: int) -> bool:
    """Return whether each of sixteen words, with the bits before it in its first byte, fits a 32-bit lane."""
    return all(lane * word_bits % 8 + word_bits <= 32 for lane in range(VECTOR))


def _constants(kind: Any, values: list[Any]) -> Any:
    return ir.Constant(ir.VectorType(kind, len(values)), values)


def _load_words(builder: Any, base: Any, word_bits: int) -> Any:
    """Return sixteen words as 32-bit lanes."""
    byte, lane_type = ir.IntType(8), ir.IntType(32)
    n_loaded = 32 if word_bits <= 16 else 64
    loaded = ir.VectorType(byte, n_loaded)
    data = builder.load(builder.bitcast(base, loaded.as_pointer()), align=1)
    chosen = []
    for lane in range(VECTOR):
        first, offset = divmod(lane * word_bits, 8)
        needed = -(-(offset + word_bits) // 8)
        # index n_loaded is the first byte of the second operand: zero
        chosen += [first + i if i < needed else n_loaded for i in range(4)]
    zero = ir.Constant(loaded, [0] * n_loaded)
    lanes = builder.shuffle_vector(data, zero, _constants(lane_type, chosen))
    words = builder.bitcast(lanes, ir.VectorType(lane_type, VECTOR))
    shifts = [lane * word_bits % 8 for lane in range(VECTOR)]
    words = builder.lshr(words, _constants(lane_type, shifts))
    return builder.and_(words, _constants(lane_type, [(1 << word_bits) - 1] * VECTOR))


def _values(builder: Any, words: Any, levels: Any, value_bits: int, method: str) -> Any:
    """Return the values of sixteen words; `levels` points at those of the block."""
    single, lane_type, address = ir.FloatType(), ir.IntType(32), ir.IntType(64)
    vector = ir.VectorType(single, VECTOR)
    integers = ir.VectorType(lane_type, VECTOR)

    def same(value: int) -> Any:
        return _constants(lane_type, [value] * VECTOR)

    def magnitudes(number: int) -> Any:
        place = builder.gep(levels, [ir.Constant(address, number * VECTOR)])
        return builder.load(builder.bitcast(place, vector.as_pointer()), align=4)

    code = builder.and_(words, same((1 << (value_bits - 1)) - 1))
    if method.startswith("grid"):
        first = builder.bitcast(levels, integers.as_pointer())
        place = builder.add(code, builder.load(first, align=4))
        part, inside = builder.lshr(place, same(4)), builder.and_(place, same(VECTOR - 1))
        lanes = [ir.Constant(lane_type, lane) for lane in range(VECTOR)]
        places = [builder.extract_element(inside, lane) for lane in lanes]
        value = ir.Constant(vector, [0.0] * VECTOR)
        for number in range(int(method[4:])):
            # sixteen items chosen by sixteen places: LLVM makes it one permutation where the machine has that
            grid, found = magnitudes(number + 1), ir.Constant(vector, ir.Undefined)
            for lane, chosen in zip(lanes, places, strict=True):
                found = builder.insert_element(found, builder.extract_element(grid, chosen), lane)
            value = builder.select(builder.icmp_signed("==", part, same(number)), found, value)
    elif method == "lookup":
        value = ir.Constant(vector, ir.Undefined)
        places = builder.add(builder.mul(code, same(VECTOR)), _constants(lane_type, list(range(VECTOR))))
        for lane in range(VECTOR):
            number = ir.Constant(lane_type, lane)
            place = builder.zext(builder.extract_element(places, number), address)
            value = builder.insert_element(value, builder.load(builder.gep(levels, [place])), number)
    else:
        value = builder.fmul(builder.uitofp(builder.add(code, same(1)), vector), magnitudes(0))
    sign = builder.and_(builder.shl(words, same(32 - value_bits)), same(1 << 31))
    return builder.bitcast(builder.xor(builder.bitcast(value, integers), sign), vector)


def _decode(
    builder: Any, row: Any, number: Any, levels: Any, word_bits: int, value_bits: int, method: str
) -> tuple[Any, Any, Any]:
    """Return the address of block `number` of a row, its words, and their values before the scale."""
    word = ir.IntType(64)
    if method.startswith("grid"):
        n_levels = VECTOR * (1 + int(method[4:]))
    else:
        n_levels = VECTOR * (1 if method == "linear" else 1 << (value_bits - 1))
    base = builder.gep(row, [builder.mul(number, ir.Constant(word, 2 * word_bits))])
    prefetch(builder, builder.gep(base, [ir.Constant(word, _AHEAD)]), locality=2)
    words = _load_words(builder, base, word_bits)
    block = builder.gep(levels, [builder.mul(number, ir.Constant(word, n_levels))])
    return base, words, _values(builder, words, block, value_bits, method)


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
    k: Any,
    levels: Any,
    target: Any,
    word_bits: Any,
    value_bits: Any,
    method: Any,
) -> Any:
    """Score the k words at byte `position` of `rows` against one target of shape (2**index_bits, 1)."""
    n_word, n_value, how = word_bits.literal_value, value_bits.literal_value, method.literal_value
    signature = types.float32(rows, types.intp, types.intp, levels, target, word_bits, value_bits, method)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        def pointer(number: int) -> Any:
            return context.make_array(signature.args[number])(context, builder, args[number]).data

        single, word, lane_type = ir.FloatType(), ir.IntType(64), ir.IntType(32)
        vector = ir.VectorType(single, VECTOR)
        total = cgutils.alloca_once(builder, vector)
        builder.store(ir.Constant(vector, [0.0] * VECTOR), total)
        row, target_data = builder.gep(pointer(0), [args[1]]), pointer(4)
        n_blocks = builder.sdiv(builder.add(args[2], ir.Constant(word, VECTOR - 1)), ir.Constant(word, VECTOR))
        with cgutils.for_range(builder, n_blocks, intp=word) as loop:
            base, _, values = _decode(builder, row, loop.index, pointer(3), n_word, n_value, how)
            # read again rather than taken from the vector of words, whose lanes leave it one move at a time
            chosen = ir.Constant(vector, ir.Undefined)
            for lane, column in enumerate(load_columns(builder, base, n_word, n_value)):
                item = builder.load(builder.gep(target_data, [column]))
                chosen = builder.insert_element(chosen, item, ir.Constant(lane_type, lane))
            product = builder.fmul(values, chosen, flags=("contract",))
            builder.store(builder.fadd(builder.load(total), product, flags=("contract",)), total)
        return sum_lanes(builder, builder.load(total))

    return signature, codegen


@intrinsic(prefer_literal=True)
def unpack_words(
    typingctx: Any,
    rows: Any,
    position: Any,
    k: Any,
    levels: Any,
    row_scale: Any,
    columns: Any,
    values: Any,
    place: Any,
    word_bits: Any,
    value_bits: Any,
    method: Any,
) -> Any:
    """Write the indices and values of the k words at byte `position` of `rows` from slot `place` on.

    Whole blocks of 16 are written: what lies beyond k is zero or is for the next row to overwrite.
    """
    n_word, n_value, how = word_bits.literal_value, value_bits.literal_value, method.literal_value
    signature = types.void(
        rows,
        types.intp,
        types.intp,
        levels,
        types.float32,
        columns,
        values,
        types.intp,
        word_bits,
        value_bits,
        method,
    )

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        def pointer(number: int) -> Any:
            return context.make_array(signature.args[number])(context, builder, args[number]).data

        single, word, lane_type = ir.FloatType(), ir.IntType(64), ir.IntType(32)
        vector, integers = ir.VectorType(single, VECTOR), ir.VectorType(lane_type, VECTOR)
        row = builder.gep(pointer(0), [args[1]])
        column_data, value_data = builder.gep(pointer(5), [args[7]]), builder.gep(pointer(6), [args[7]])
        factor = splat(builder, args[4], vector)
        n_blocks = builder.sdiv(builder.add(args[2], ir.Constant(word, VECTOR - 1)), ir.Constant(word, VECTOR))
        with cgutils.for_range(builder, n_blocks, intp=word) as loop:
            _, words, unscaled = _decode(builder, row, loop.index, pointer(3), n_word, n_value, how)
            # one rounding, as unpacking does it: the products are the stored float32 values
            scaled = builder.fmul(unscaled, factor)
            chosen = builder.lshr(words, _constants(lane_type, [n_value] * VECTOR))
            at = builder.mul(loop.index, ir.Constant(word, VECTOR))
            place = builder.bitcast(builder.gep(column_data, [at]), integers.as_pointer())
            builder.store(chosen, place, align=4)
            place = builder.bitcast(builder.gep(value_data, [at]), vector.as_pointer())
            builder.store(scaled, place, align=4)
        return context.get_dummy_value()

    return signature, codegen
