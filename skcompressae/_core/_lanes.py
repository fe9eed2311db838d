"""Sixteen entries of a row at once, where compilers do not make vector instructions of a loop.

Written in LLVM's vector instructions, for any processor and for float32 and float64.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

__all__ = [
    "N_LANES",
    "add_max_and_count_lanes",
    "add_multiple",
    "broadcast",
    "count_lanes",
    "folded",
    "lanes_at_least",
    "lowest_lane",
    "max_and_count_lanes",
    "midway",
]

N_LANES = 16


def broadcast(builder: Any, vector: Any, value: Any) -> Any:
    """Return a vector of a type with a value in all its lanes."""
    undefined = ir.Constant(vector, ir.Undefined)
    lane = builder.insert_element(undefined, value, ir.Constant(ir.IntType(32), 0))
    places = ir.Constant(ir.VectorType(ir.IntType(32), vector.count), [0] * vector.count)
    return builder.shuffle_vector(lane, undefined, places)


def _vector_at(context: Any, builder: Any, kind: Any, array: Any, start: Any) -> tuple[Any, Any, int]:
    """Return the type of a vector, a pointer to the lanes from `start` on, and their alignment in bytes."""
    vector = ir.VectorType(context.get_value_type(kind.dtype), N_LANES)
    first = builder.gep(context.make_array(kind)(context, builder, array).data, [start])
    return vector, builder.bitcast(first, vector.as_pointer()), kind.dtype.bitwidth // 8


def _magnitudes(builder: Any, entries: Any) -> Any:
    name = f"llvm.fabs.v{N_LANES}f{32 if isinstance(entries.type.element, ir.FloatType) else 64}"
    kind = ir.FunctionType(entries.type, [entries.type])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [entries])


@intrinsic
def lanes_at_least(typing_context: Any, row: Any, start: Any, threshold: Any) -> Any:
    """Return the bits of the lanes j with ``abs(row[start + j]) >= threshold``; `row` is C-contiguous."""
    return types.int32(row, types.intp, row.dtype), _generate_lanes_at_least


def _generate_lanes_at_least(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    row, start, threshold = arguments
    vector, pointer, alignment = _vector_at(context, builder, signature.args[0], row, start)
    magnitudes = _magnitudes(builder, builder.load(pointer, align=alignment))
    passing = builder.fcmp_ordered(">=", magnitudes, broadcast(builder, vector, threshold))
    return builder.zext(builder.bitcast(passing, ir.IntType(N_LANES)), ir.IntType(32))


@intrinsic
def count_lanes(typing_context: Any, lanes: Any) -> Any:
    """Return how many lanes' bits are set."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.zext(builder.ctpop(arguments[0]), ir.IntType(64))

    return types.int64(types.int32), generate


@intrinsic
def max_and_count_lanes(typing_context: Any, row: Any, n_groups: Any, threshold: Any) -> Any:
    """Return the largest magnitude of the first `n_groups` times N_LANES entries, and how many reach `threshold`.

    At least one group; `row` is C-contiguous. NaN counts as less than all numbers.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        row, n_groups, threshold = arguments
        return _generate_max_and_count(context, builder, signature, row, None, n_groups, threshold)

    return types.Tuple((row.dtype, types.int64))(row, types.int64, row.dtype), generate


@intrinsic
def add_max_and_count_lanes(typing_context: Any, row: Any, bias: Any, n_groups: Any, threshold: Any) -> Any:
    """Add the bias to the row in place; else as :func:`max_and_count_lanes`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _generate_max_and_count(context, builder, signature, *arguments)

    return types.Tuple((row.dtype, types.int64))(row, bias, types.int64, row.dtype), generate


def _generate_max_and_count(
    context: Any, builder: Any, signature: Any, row: Any, bias: Any, n_groups: Any, threshold: Any
) -> Any:
    kind = signature.args[0]
    vector = ir.VectorType(context.get_value_type(kind.dtype), N_LANES)
    counts_kind = ir.VectorType(ir.IntType(kind.dtype.bitwidth), N_LANES)
    integer = n_groups.type
    thresholds = broadcast(builder, vector, threshold)
    before, loop, after = builder.block, builder.append_basic_block("groups"), builder.append_basic_block("reduced")
    builder.branch(loop)
    builder.position_at_end(loop)
    group, maxima, counts = builder.phi(integer), builder.phi(vector), builder.phi(counts_kind)
    start = builder.mul(group, ir.Constant(integer, N_LANES))
    _, pointer, alignment = _vector_at(context, builder, kind, row, start)
    entries = builder.load(pointer, align=alignment)
    if bias is not None:
        _, added, _ = _vector_at(context, builder, signature.args[1], bias, start)
        entries = builder.fadd(entries, builder.load(added, align=alignment))
        builder.store(entries, pointer, align=alignment)
    magnitudes = _magnitudes(builder, entries)
    larger = builder.select(builder.fcmp_ordered(">", magnitudes, maxima), magnitudes, maxima)
    more = builder.sub(counts, builder.sext(builder.fcmp_ordered(">=", magnitudes, thresholds), counts_kind))
    following = builder.add(group, ir.Constant(integer, 1))
    for phi, initial, grown in (
        (group, ir.Constant(integer, 0), following),
        (maxima, ir.Constant(vector, [0.0] * N_LANES), larger),
        (counts, ir.Constant(counts_kind, [0] * N_LANES), more),
    ):
        phi.add_incoming(initial, before)
        phi.add_incoming(grown, loop)
    builder.cbranch(builder.icmp_signed("<", following, n_groups), loop, after)
    builder.position_at_end(after)
    largest = folded(builder, larger, lambda a, b: builder.select(builder.fcmp_ordered(">", a, b), a, b))
    count = folded(builder, more, builder.add)
    if count.type != ir.IntType(64):
        count = builder.sext(count, ir.IntType(64))
    return context.make_tuple(builder, signature.return_type, (largest, count))


def folded(builder: Any, vector: Any, combine: Any) -> Any:
    """Combine the lanes of a vector, one half with the other until one is left."""
    n_lanes = width = vector.type.count
    undefined = ir.Constant(vector.type, ir.Undefined)
    while width > 1:
        width //= 2
        places = [(lane + width) % n_lanes for lane in range(n_lanes)]
        shuffle = ir.Constant(ir.VectorType(ir.IntType(32), n_lanes), places)
        vector = combine(vector, builder.shuffle_vector(vector, undefined, shuffle))
    return builder.extract_element(vector, ir.Constant(ir.IntType(32), 0))


@intrinsic
def midway(typing_context: Any, low: Any, high: Any) -> Any:
    """Return the number half way between two that are not negative, in the order of all floats of their type.

    So between 0 and infinity there are no more than 31 or 63 such steps. It is `low` where there is none between them.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        integer = ir.IntType(low.bitwidth)
        first, last = (builder.bitcast(argument, integer) for argument in arguments)
        half = builder.lshr(builder.sub(last, first), ir.Constant(integer, 1))
        return builder.bitcast(builder.add(first, half), context.get_value_type(low))

    return low(low, low), generate


@intrinsic
def add_multiple(typing_context: Any, items: Any, target: Any, source: Any, factor: Any) -> Any:
    """Add ``factor * items[source + j]`` to ``items[target + j]`` for every lane j; `items` is flat and contiguous."""
    return types.void(items, types.intp, types.intp, items.dtype), _generate_add_multiple


def _generate_add_multiple(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    items, target, source, factor = arguments
    vector, to, alignment = _vector_at(context, builder, signature.args[0], items, target)
    _, of, _ = _vector_at(context, builder, signature.args[0], items, source)
    multiple = builder.fmul(broadcast(builder, vector, factor), builder.load(of, align=alignment), flags=("contract",))
    total = builder.fadd(builder.load(to, align=alignment), multiple, flags=("contract",))
    builder.store(total, to, align=alignment)
    return context.get_dummy_value()


@intrinsic
def lowest_lane(typing_context: Any, lanes: Any) -> Any:
    """Return the lowest of the lanes whose bits are set, in a word of 64; at least one is."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.uint64), generate
