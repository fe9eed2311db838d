"""Ranks and levels of short lists by counting, in LLVM vector types for Numba kernels to call.

Counting compares every pair, yet for the few dozen entries of a code it beats sorting: sixteen comparisons are one
instruction, nothing depends on an outcome, and the counts stay in registers. Numba would keep them in memory.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir  # type: ignore[import-untyped, unused-ignore]
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from skcompressae._core._lanes import N_LANES, broadcast

__all__ = ["count_larger", "count_smaller", "count_thresholds"]


def _count(order: str, signature: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        keys, counts = (
            context.make_array(signature.args[number])(context, builder, args[number]).data for number in (0, 2)
        )
        word, integer = ir.IntType(64), ir.IntType(32)
        vector = ir.VectorType(integer, N_LANES)
        total = cgutils.alloca_once(builder, vector)
        n_blocks = builder.sdiv(builder.add(args[1], ir.Constant(word, N_LANES - 1)), ir.Constant(word, N_LANES))
        with cgutils.for_range(builder, n_blocks, intp=word) as block:
            at = builder.mul(block.index, ir.Constant(word, N_LANES))
            own = builder.load(builder.bitcast(builder.gep(keys, [at]), vector.as_pointer()), align=4)
            builder.store(ir.Constant(vector, [0] * N_LANES), total)
            with cgutils.for_range(builder, args[1], intp=word) as entry:
                other = broadcast(builder, vector, builder.load(builder.gep(keys, [entry.index])))
                # a true comparison, widened, is -1
                is_before = builder.sext(builder.icmp_signed(order, other, own), vector)
                builder.store(builder.sub(builder.load(total), is_before), total)
            place = builder.bitcast(builder.gep(counts, [at]), vector.as_pointer())
            builder.store(builder.load(total), place, align=4)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def count_larger(typingctx: Any, keys: Any, n: Any, counts: Any) -> Any:
    """Write how many of ``keys[:n]``, int32, are larger than each; room for `N_LANES` more in both."""
    return _count(">", types.void(keys, types.intp, counts))


@intrinsic
def count_smaller(typingctx: Any, keys: Any, n: Any, counts: Any) -> Any:
    """Write how many of ``keys[:n]``, int32, are smaller than each; room for `N_LANES` more in both."""
    return _count("<", types.void(keys, types.intp, counts))


@intrinsic
def count_thresholds(typingctx: Any, values: Any, n: Any, coarse: Any, fine: Any, counts: Any) -> Any:
    """Write how many thresholds of its place each of ``values[:n]``, float32, exceeds; room for `N_LANES` more.

    `coarse`, float32 of shape (n_coarse, padded places), holds every sixteenth threshold: it chooses the sixteen of
    `fine`, float32 of shape (n, 16 * (n_coarse + 1)), that are compared as one vector. Absent thresholds are infinite.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        single, word, integer = ir.FloatType(), ir.IntType(64), ir.IntType(32)
        vector, integers = ir.VectorType(single, N_LANES), ir.VectorType(integer, N_LANES)
        arrays = {i: context.make_array(signature.args[i])(context, builder, args[i]) for i in (0, 2, 3, 4)}
        items, every, each, out = (arrays[i].data for i in (0, 2, 3, 4))
        n_coarse, n_places = cgutils.unpack_tuple(builder, arrays[2].shape, 2)
        width = cgutils.unpack_tuple(builder, arrays[3].shape, 2)[1]
        total = cgutils.alloca_once(builder, integers)
        n_blocks = builder.sdiv(builder.add(args[1], ir.Constant(word, N_LANES - 1)), ir.Constant(word, N_LANES))
        with cgutils.for_range(builder, n_blocks, intp=word) as block:
            at = builder.mul(block.index, ir.Constant(word, N_LANES))
            own = builder.load(builder.bitcast(builder.gep(items, [at]), vector.as_pointer()), align=4)
            builder.store(ir.Constant(integers, [0] * N_LANES), total)
            with cgutils.for_range(builder, n_coarse, intp=word) as level:
                place = builder.gep(every, [builder.add(builder.mul(level.index, n_places), at)])
                limit = builder.load(builder.bitcast(place, vector.as_pointer()), align=4)
                is_above = builder.sext(builder.fcmp_ordered(">", own, limit), integers)
                builder.store(builder.sub(builder.load(total), is_above), total)
            place = builder.bitcast(builder.gep(out, [at]), integers.as_pointer())
            builder.store(builder.shl(builder.load(total), ir.Constant(integers, [4] * N_LANES)), place, align=4)
        with cgutils.for_range(builder, args[1], intp=word) as entry:
            place = builder.gep(out, [entry.index])
            passed = builder.load(place)
            first = builder.add(builder.mul(entry.index, width), builder.zext(passed, word))
            limit = builder.load(builder.bitcast(builder.gep(each, [first]), vector.as_pointer()), align=4)
            own = broadcast(builder, vector, builder.load(builder.gep(items, [entry.index])))
            bits = builder.bitcast(builder.fcmp_ordered(">", own, limit), ir.IntType(N_LANES))
            builder.store(builder.add(passed, builder.ctpop(builder.zext(bits, integer))), place)
        return context.get_dummy_value()

    return types.void(values, types.intp, coarse, fine, counts), codegen
