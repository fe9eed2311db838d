"""The innermost loops of the search, written in LLVM vector types for Numba kernels to call.

Numba keeps small arrays in memory, and LLVM vectorises neither a sum over targets chosen by an index nor a
search for one large value. Vectors make both explicit; LLVM lowers them to whatever registers the machine
has.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from llvmlite import ir  # type: ignore[import-untyped, unused-ignore]
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from skcompressae._core._lanes import N_LANES, broadcast

__all__ = [
    "LANES",
    "ROWS_AT_ONCE",
    "any_above",
    "any_set",
    "load_columns",
    "lowest_bit",
    "prefetch",
    "prefetch_item",
    "score_lanes",
    "score_row_wide",
    "score_rows",
    "sum_lanes",
]

# Queries that share one pass over the rows, 64 targets of 16 bits: their (4096, 64) block, 512 KiB, still fits a 1 MiB
# L2 cache (docs/research_notes_search.md).
LANES = 64
# Rows whose sums are added up together: a quarter of the instructions of each alone.
ROWS_AT_ONCE = 4

# Nonzeros that the scan of one query prefetches ahead, into the second-level cache: 16 KiB of float32 values. 1,024 to
# 16,384 measured alike; into the first-level cache, which lets fewer lines be on their way, slower at any distance.
_AHEAD = 4_096


def any_set(builder: Any, mask: Any, width: int) -> Any:
    """Return whether any of the `width` lanes of a mask is set."""
    bits = ir.IntType(width)
    return builder.icmp_unsigned("!=", builder.bitcast(mask, bits), ir.Constant(bits, 0))


def prefetch(builder: Any, address: Any, locality: int = 3) -> None:
    """Ask for a cache line, in all caches (3) or from the second level on (2); an address outside is no error."""
    byte = ir.IntType(8).as_pointer()
    flag = ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), [byte, flag, flag, flag])
    function = builder.module.declare_intrinsic("llvm.prefetch", (byte,), kind)
    # read (0), data (1)
    builder.call(function, [builder.bitcast(address, byte), flag(0), flag(locality), flag(1)])


def load_columns(builder: Any, base: Any, word_bits: int, value_bits: int) -> list[Any]:
    """Return the indices in the upper bits of sixteen words at byte `base`, as 64-bit numbers.

    Each load of 64 bits holds two words or more. Least significant byte first.
    """
    word = ir.IntType(64)
    mask = ir.Constant(word, (1 << (word_bits - value_bits)) - 1)
    columns: list[Any] = []
    loaded, loaded_bit = None, 0
    for lane in range(N_LANES):
        bit = lane * word_bits
        if loaded is None or bit + word_bits > loaded_bit + 64:
            loaded_bit = bit - bit % 8
            place = builder.gep(base, [ir.Constant(word, loaded_bit // 8)])
            loaded = builder.load(builder.bitcast(place, word.as_pointer()), align=1)
        column = builder.lshr(loaded, ir.Constant(word, bit - loaded_bit + value_bits))
        columns.append(builder.and_(column, mask))
    return columns


def sum_lanes(builder: Any, vectors: list[Any]) -> Any:
    """Return the sum of the lanes of each of one, two or four vectors, as one vector: added by halves, all together."""
    integer = ir.IntType(32)

    def halve(left: Any, right: Any, width: int) -> Any:
        firsts = range(0, (1 if left is right else 2) * left.type.count, width)
        halves = []
        for begin in (0, width // 2):
            places = [first + begin + lane for first in firsts for lane in range(width // 2)]
            chosen = ir.Constant(ir.VectorType(integer, len(places)), places)
            halves.append(builder.shuffle_vector(left, right, chosen))
        return builder.fadd(*halves)

    # lanes that belong to one sum stand side by side, `width` of them
    width = vectors[0].type.count
    while width > 1:
        if len(vectors) > 1:
            vectors = [halve(*pair, width) for pair in zip(vectors[::2], vectors[1::2], strict=True)]
        else:
            vectors = [halve(vectors[0], vectors[0], width)]
        width //= 2
    return vectors[0]


def score_lanes(
    builder: Any,
    bounds: tuple[Any, Any],
    entry: Callable[[Any], tuple[Any, Any]],
    targets: Any,
    scale: Any,
    thresholds: Any,
    scores: Any,
) -> Any:
    """Score the nonzeros between `bounds` against `LANES` targets with the sums held in registers.

    ``entry(position)`` emits the column of a nonzero, 64 bits, and its value times 2**-31; `targets`, `thresholds` and
    `scores` are data pointers, `scale` a float. Returns a bit for each target whose threshold is reached.

    Written in LLVM vector types since Numba keeps small arrays in memory: a store and a load per nonzero
    would cost more than the multiplication. LLVM lowers the vectors to whatever the machine has.
    """
    single, word, integer = ir.FloatType(), ir.IntType(64), ir.IntType(32)
    vector, integers = ir.VectorType(single, N_LANES), ir.VectorType(integer, N_LANES)
    half = ir.Constant(integers, [16] * N_LANES)
    zero = ir.Constant(vector, [0.0] * N_LANES)
    sums = [cgutils.alloca_once(builder, vector) for _ in range(LANES // N_LANES)]
    for total in sums:
        builder.store(zero, total)
    with cgutils.for_range_slice(builder, *bounds, ir.Constant(word, 1), intp=word) as (position, _):
        column, value = entry(position)
        factor = broadcast(builder, vector, value)
        row = builder.bitcast(
            builder.gep(targets, [builder.mul(column, ir.Constant(word, LANES // 2))]), integers.as_pointer()
        )
        for i in range(LANES // (2 * N_LANES)):
            pair = builder.load(builder.gep(row, [ir.Constant(word, i)]), align=4)
            for target, total in ((builder.shl(pair, half), sums[2 * i]), (pair, sums[2 * i + 1])):
                target = builder.sitofp(target, vector)
                product = builder.fmul(factor, target, flags=("contract",))
                builder.store(builder.fadd(builder.load(total), product, flags=("contract",)), total)
    factor = broadcast(builder, vector, scale)
    out = builder.bitcast(scores, vector.as_pointer())
    limits = builder.bitcast(thresholds, vector.as_pointer())
    reached = ir.Constant(word, 0)
    for i, total in enumerate(sums):
        scaled = builder.fmul(builder.load(total), factor)
        builder.store(scaled, builder.gep(out, [ir.Constant(word, i)]), align=4)
        limit = builder.load(builder.gep(limits, [ir.Constant(word, i)]), align=4)
        bits = builder.bitcast(builder.fcmp_ordered(">=", scaled, limit), ir.IntType(N_LANES))
        bits = builder.shl(builder.zext(bits, word), ir.Constant(word, i * N_LANES))
        reached = builder.or_(reached, bits)
    return reached


@intrinsic
def score_row_wide(
    typingctx: Any,
    indices: Any,
    values: Any,
    start: Any,
    stop: Any,
    pairs: Any,
    scale: Any,
    thresholds: Any,
    scores: Any,
) -> Any:
    """Score one row against `LANES` targets as `score_lanes` does.

    `pairs` is int32 of shape (n_components, LANES // 2), see `pair_targets`.
    """
    signature = types.uint64(indices, values, types.intp, types.intp, pairs, types.float32, thresholds, scores)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        def pointer(position: int) -> Any:
            return context.make_array(signature.args[position])(context, builder, args[position]).data

        single, word = ir.FloatType(), ir.IntType(64)
        index_data, value_data = pointer(0), pointer(1)
        index_is_signed = signature.args[0].dtype.signed

        def entry(position: Any) -> tuple[Any, Any]:
            column = builder.load(builder.gep(index_data, [position]))
            if column.type.width < 64:
                column = builder.sext(column, word) if index_is_signed else builder.zext(column, word)
            value = builder.load(builder.gep(value_data, [position]))
            if signature.args[1].dtype == types.float64:
                value = builder.fptrunc(value, single)
            return column, builder.fmul(value, ir.Constant(single, 2.0**-31))

        return score_lanes(builder, (args[2], args[3]), entry, pointer(4), args[5], pointer(6), pointer(7))

    return signature, codegen


@intrinsic
def prefetch_item(typingctx: Any, array: Any, position: Any) -> Any:
    """Ask for the cache line of an item of a flat array."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        prefetch(builder, builder.gep(data, [args[1]]))
        return context.get_dummy_value()

    return types.void(array, types.intp), codegen


@intrinsic
def lowest_bit(typingctx: Any, bits: Any) -> Any:
    """Return the place of the lowest set bit of a nonzero uint64."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))

    return types.intp(types.uint64), codegen


@intrinsic(prefer_literal=True)
def score_rows(
    typingctx: Any,
    indices: Any,
    values: Any,
    start: Any,
    length: Any,
    target: Any,
    scale: Any,
    row: Any,
    limit: Any,
    scores: Any,
    n_rows: Any,
) -> Any:
    """Score one or four rows of equal `length`, one after the other from `start` on, against one target.

    `target` has the shape (n_components, 1). Writes the scores, times the factors at `row` of `scale`, to `scores`,
    float32, and returns a bit for each row whose score reaches `limit`.

    Loads a vector of values and collects the targets lane by lane: the gather instruction of Zen 4 is slower
    than its parts. Loads bound it, so 16-bit indices come four to a load (a tenth faster in cache). Prefetching hides
    the page walks that a plain stream waits for (2.2 instead of 2.6 ms for 200,000 rows). Four rows share what is done
    after their nonzeros.
    """
    n = n_rows.literal_value
    signature = types.uint64(
        indices, values, types.intp, types.intp, target, scale, types.intp, types.float32, scores, n_rows
    )

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        def pointer(position: int) -> Any:
            return context.make_array(signature.args[position])(context, builder, args[position]).data

        single, word, integer = ir.FloatType(), ir.IntType(64), ir.IntType(32)
        vector, few = ir.VectorType(single, N_LANES), ir.VectorType(single, n)
        index_is_signed = signature.args[0].dtype.signed
        comes_in_fours = signature.args[0].dtype == types.uint16 and sys.byteorder == "little"
        wide = ir.VectorType(ir.DoubleType() if signature.args[1].dtype == types.float64 else single, N_LANES)
        index_data, value_data, target_data = pointer(0), pointer(1), pointer(4)
        length = args[3]
        starts = [builder.add(args[2], builder.mul(length, ir.Constant(word, number))) for number in range(n)]

        def to_single(value: Any, kind: Any) -> Any:
            return value if value.type == kind else builder.fptrunc(value, kind)

        def add_product(total: Any, factors: Any, columns: list[Any]) -> None:
            chosen = ir.Constant(factors.type, ir.Undefined)
            for lane, column in enumerate(columns):
                if column.type.width < 64:
                    column = builder.sext(column, word) if index_is_signed else builder.zext(column, word)
                item = builder.load(builder.gep(target_data, [column]))
                chosen = builder.insert_element(chosen, item, ir.Constant(integer, lane))
            product = builder.fmul(factors, chosen, flags=("contract",))
            builder.store(builder.fadd(builder.load(total), product, flags=("contract",)), total)

        totals = [cgutils.alloca_once(builder, vector) for _ in range(n)]
        for total in totals:
            builder.store(ir.Constant(vector, [0.0] * N_LANES), total)
        n_blocks = builder.udiv(length, ir.Constant(word, N_LANES))
        with cgutils.for_range(builder, n_blocks, intp=word) as loop:
            offset = builder.mul(loop.index, ir.Constant(word, N_LANES))
            for start, total in zip(starts, totals, strict=True):
                base = builder.add(start, offset)
                index_base, value_base = (builder.gep(data, [base]) for data in (index_data, value_data))
                for stream in (index_base, value_base):
                    prefetch(builder, builder.gep(stream, [ir.Constant(word, _AHEAD)]), locality=2)
                factors = builder.load(builder.bitcast(value_base, wide.as_pointer()), align=4)
                if comes_in_fours:
                    columns = load_columns(builder, builder.bitcast(index_base, ir.IntType(8).as_pointer()), 16, 0)
                else:
                    places = [builder.gep(index_base, [ir.Constant(word, lane)]) for lane in range(N_LANES)]
                    columns = [builder.load(place) for place in places]
                add_product(total, to_single(factors, vector), columns)
        sums = cgutils.alloca_once_value(builder, sum_lanes(builder, [builder.load(total) for total in totals]))
        bounds = (builder.mul(n_blocks, ir.Constant(word, N_LANES)), length)
        with cgutils.for_range_slice(builder, *bounds, ir.Constant(word, 1), intp=word) as (position, _):
            # what is left of each row, a lane for each
            factors, columns = ir.Constant(few, ir.Undefined), []
            for number, start in enumerate(starts):
                place = builder.add(start, position)
                value = to_single(builder.load(builder.gep(value_data, [place])), single)
                factors = builder.insert_element(factors, value, ir.Constant(integer, number))
                columns.append(builder.load(builder.gep(index_data, [place])))
            add_product(sums, factors, columns)
        factors = builder.bitcast(builder.gep(pointer(5), [args[6]]), ir.VectorType(ir.DoubleType(), n).as_pointer())
        scaled = builder.fmul(builder.load(sums), builder.fptrunc(builder.load(factors, align=8), few))
        builder.store(scaled, builder.bitcast(pointer(8), few.as_pointer()), align=4)
        reached = builder.fcmp_ordered(">=", scaled, broadcast(builder, few, args[7]))
        return builder.zext(builder.bitcast(reached, ir.IntType(n)), word)

    return signature, codegen


@intrinsic
def any_above(
    typingctx: Any, sums: Any, scale: Any, sums_start: Any, scale_start: Any, limit: Any, n_vectors: Any
) -> Any:
    """Say whether any of ``8 * n_vectors`` scaled float64 sums exceeds `limit`."""
    signature = types.boolean(sums, scale, types.intp, types.intp, types.float64, types.intp)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        def pointer(position: int) -> Any:
            return context.make_array(signature.args[position])(context, builder, args[position]).data

        word = ir.IntType(64)
        vector = ir.VectorType(ir.DoubleType(), 8)
        mask = ir.VectorType(ir.IntType(1), 8)
        limit = broadcast(builder, vector, args[4])
        seen = cgutils.alloca_once(builder, mask)
        builder.store(ir.Constant(mask, [0] * 8), seen)
        left = builder.bitcast(builder.gep(pointer(0), [args[2]]), vector.as_pointer())
        right = builder.bitcast(builder.gep(pointer(1), [args[3]]), vector.as_pointer())
        with cgutils.for_range(builder, args[5], intp=word) as loop:
            a = builder.load(builder.gep(left, [loop.index]), align=8)
            b = builder.load(builder.gep(right, [loop.index]), align=8)
            above = builder.fcmp_ordered(">", builder.fmul(a, b), limit)
            builder.store(builder.or_(builder.load(seen), above), seen)
        return any_set(builder, builder.load(seen), 8)

    return signature, codegen
