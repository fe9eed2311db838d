"""Sixteen entries of a row at once, where compilers do not make vector instructions of a loop.

Written in LLVM's vector instructions, for any processor and for float32 and float64.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

__all__ = ["N_LANES", "add_multiple", "lanes_at_least", "lowest_lane"]

N_LANES = 16


def _broadcast(builder: Any, vector: Any, value: Any) -> Any:
    undefined = ir.Constant(vector, ir.Undefined)
    lane = builder.insert_element(undefined, value, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(lane, undefined, ir.Constant(ir.VectorType(ir.IntType(32), N_LANES), [0] * N_LANES))


def _vector_at(context: Any, builder: Any, kind: Any, array: Any, start: Any) -> tuple[Any, Any, int]:
    """Return the type of a vector, a pointer to the lanes from `start` on, and their alignment in bytes."""
    vector = ir.VectorType(context.get_value_type(kind.dtype), N_LANES)
    first = builder.gep(context.make_array(kind)(context, builder, array).data, [start])
    return vector, builder.bitcast(first, vector.as_pointer()), kind.dtype.bitwidth // 8


@intrinsic
def lanes_at_least(typing_context, row, start, threshold):  # type: ignore[no-untyped-def]
    """Return the bits of the lanes j with ``abs(row[start + j]) >= threshold``; `row` is C-contiguous."""
    return types.int32(row, types.intp, row.dtype), _generate_lanes_at_least


def _generate_lanes_at_least(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    row, start, threshold = arguments
    vector, pointer, alignment = _vector_at(context, builder, signature.args[0], row, start)
    entries = builder.load(pointer, align=alignment)
    passing = builder.or_(
        builder.fcmp_ordered(">=", entries, _broadcast(builder, vector, threshold)),
        builder.fcmp_ordered("<=", entries, _broadcast(builder, vector, builder.fneg(threshold))),
    )
    return builder.zext(builder.bitcast(passing, ir.IntType(N_LANES)), ir.IntType(32))


@intrinsic
def add_multiple(typing_context: Any, items: Any, target: Any, source: Any, factor: Any) -> Any:
    """Add ``factor * items[source + j]`` to ``items[target + j]`` for every lane j; `items` is flat and contiguous."""
    return types.void(items, types.intp, types.intp, items.dtype), _generate_add_multiple


def _generate_add_multiple(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    items, target, source, factor = arguments
    vector, to, alignment = _vector_at(context, builder, signature.args[0], items, target)
    _, of, _ = _vector_at(context, builder, signature.args[0], items, source)
    multiple = builder.fmul(_broadcast(builder, vector, factor), builder.load(of, align=alignment), flags=("contract",))
    total = builder.fadd(builder.load(to, align=alignment), multiple, flags=("contract",))
    builder.store(total, to, align=alignment)
    return context.get_dummy_value()


@intrinsic
def lowest_lane(typing_context, lanes):  # type: ignore[no-untyped-def]
    """Return the lowest of the lanes whose bits are set; at least one is."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.int32(types.int32), generate
