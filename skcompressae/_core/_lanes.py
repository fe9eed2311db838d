"""Compare sixteen entries of a row at once and visit those that pass: what compilers do not make of a loop.

Written in LLVM's vector instructions, for any processor and for float32 and float64.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

__all__ = ["N_LANES", "lanes_at_least", "lowest_lane"]

N_LANES = 16


@intrinsic
def lanes_at_least(typing_context, row, start, threshold):  # type: ignore[no-untyped-def]
    """Return the bits of the lanes j with ``abs(row[start + j]) >= threshold``; `row` is C-contiguous."""
    return types.int32(row, types.intp, row.dtype), _generate_lanes_at_least


def _generate_lanes_at_least(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    kind = signature.args[0]
    row, start, threshold = arguments
    vector = ir.VectorType(context.get_value_type(kind.dtype), N_LANES)
    first = builder.gep(context.make_array(kind)(context, builder, row).data, [start])
    entries = builder.load(builder.bitcast(first, vector.as_pointer()), align=kind.dtype.bitwidth // 8)

    def broadcast(value: Any) -> Any:
        undefined = ir.Constant(vector, ir.Undefined)
        return builder.shuffle_vector(
            builder.insert_element(undefined, value, ir.Constant(ir.IntType(32), 0)),
            undefined,
            ir.Constant(ir.VectorType(ir.IntType(32), N_LANES), [0] * N_LANES),
        )

    passing = builder.or_(
        builder.fcmp_ordered(">=", entries, broadcast(threshold)),
        builder.fcmp_ordered("<=", entries, broadcast(builder.fneg(threshold))),
    )
    return builder.zext(builder.bitcast(passing, ir.IntType(N_LANES)), ir.IntType(32))


@intrinsic
def lowest_lane(typing_context, lanes):  # type: ignore[no-untyped-def]
    """Return the lowest of the lanes whose bits are set; at least one is."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.int32(types.int32), generate
