"""Sums of chosen rows, one tile of columns at a time, so that the rows chosen from are in the second-level cache.

Layout: the tiles of an (n_rows, n_columns) array are (n_tiles, n_rows, TILE_COLUMNS), C-contiguous; tile t holds the
columns ``[t * TILE_COLUMNS, (t + 1) * TILE_COLUMNS)``, the last one filled up with zeros. A sum over chosen rows of one
tile stays in registers from the first row to the last, which compilers do not see in a loop over arrays: the loop is
therefore written in LLVM's vector instructions, for any processor and for float32 and float64.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
from numpy.typing import NDArray

from skcompressae._core._lanes import broadcast

__all__ = ["TILE_COLUMNS", "TILE_ROWS", "add_tile_rows", "empty_tiles", "fill_tile"]

# Columns of a tile. Of 16 to 128, 64 was the fastest: wide enough to spread the cost of reading an index, narrow enough
# for TILE_ROWS rows to fit a second-level cache (docs/research_notes_speed.md).
TILE_COLUMNS = 64
# Rows whose tile of float32 is 1 MB.
TILE_ROWS = 4096
# Lanes of a vector of the sums (LLVM splits them where the processor's are narrower) and sums kept for every lane, to
# hide the latency of an addition behind the other.
_LANES = 16
_N_SUMS = 2


@intrinsic
def add_tile_rows(typing_context, total, tile, picks, coefficients, first, last):  # type: ignore[no-untyped-def]
    """Add ``sum_p coefficients[p] * tile[picks[p]]`` over p in [first, last) to `total`.

    `total` (TILE_COLUMNS,), `tile` (n_rows, TILE_COLUMNS) and `coefficients` are C-contiguous and of one dtype, `picks`
    are int32 and not negative.
    """
    signature = types.void(total, tile, picks, coefficients, types.intp, types.intp)
    return signature, _generate_add_tile_rows


def _generate_add_tile_rows(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    total, tile, picks, coefficients = (
        context.make_array(kind)(context, builder, value).data
        for kind, value in zip(signature.args[:4], arguments[:4], strict=True)
    )
    first, last = arguments[4:]
    element = context.get_value_type(signature.args[1].dtype)
    alignment = signature.args[1].dtype.bitwidth // 8
    vector, integer = ir.VectorType(element, _LANES), first.type
    n_vectors = TILE_COLUMNS // _LANES
    total_vectors = builder.bitcast(total, vector.as_pointer())

    def constant(value: int) -> Any:
        return ir.Constant(integer, value)

    def term(position: Any, sums: list[Any]) -> list[Any]:
        """Add one entry's multiple of its row to the sums."""
        pick = builder.zext(builder.load(builder.gep(picks, [position])), integer)
        coefficient = broadcast(builder, vector, builder.load(builder.gep(coefficients, [position])))
        row = builder.bitcast(builder.gep(tile, [builder.mul(pick, constant(TILE_COLUMNS))]), vector.as_pointer())
        return [
            builder.fadd(
                sums[v],
                builder.fmul(
                    coefficient, builder.load(builder.gep(row, [constant(v)]), align=alignment), flags=("contract",)
                ),
                flags=("contract",),
            )
            for v in range(n_vectors)
        ]

    def loop(start: Any, stop: Any, sums: list[list[Any]]) -> list[list[Any]]:
        """Walk the entries, ``len(sums)`` at a time, each with sums of its own."""
        entry = builder.block
        head, body, end = (builder.append_basic_block(name) for name in ("head", "body", "end"))
        builder.branch(head)
        builder.position_at_end(head)
        position = builder.phi(integer)
        position.add_incoming(start, entry)
        running = [[builder.phi(vector) for _ in group] for group in sums]
        for group, initial in zip(running, sums, strict=True):
            for phi, value in zip(group, initial, strict=True):
                phi.add_incoming(value, entry)
        builder.cbranch(builder.icmp_signed("<", position, stop), body, end)
        builder.position_at_end(body)
        for n, group in enumerate(running):
            for phi, value in zip(group, term(builder.add(position, constant(n)), group), strict=True):
                phi.add_incoming(value, builder.block)
        position.add_incoming(builder.add(position, constant(len(sums))), builder.block)
        builder.branch(head)
        builder.position_at_end(end)
        return running

    initial = [builder.load(builder.gep(total_vectors, [constant(v)]), align=alignment) for v in range(n_vectors)]
    zeros = [ir.Constant(vector, [0.0] * _LANES)] * n_vectors
    middle = builder.sub(last, builder.srem(builder.sub(last, first), constant(_N_SUMS)))
    sums = loop(first, middle, [initial] + [zeros] * (_N_SUMS - 1))
    (final,) = loop(middle, last, [sums[0]])
    for v in range(n_vectors):
        value = final[v]
        for group in sums[1:]:
            value = builder.fadd(value, group[v])
        builder.store(value, builder.gep(total_vectors, [constant(v)]), align=alignment)
    return context.get_dummy_value()


@njit(cache=True, nogil=True)
def fill_tile(rows, number, tile):  # type: ignore[no-untyped-def]
    """Copy the columns of tile `number` of `rows` to `tile`, (n_rows, TILE_COLUMNS), zeros beyond the last column."""
    first = number * TILE_COLUMNS
    width = min(TILE_COLUMNS, rows.shape[1] - first)
    if width == TILE_COLUMNS:
        for i in range(rows.shape[0]):
            for j in range(TILE_COLUMNS):
                tile[i, j] = rows[i, first + j]
        return
    for i in range(rows.shape[0]):
        for j in range(width):
            tile[i, j] = rows[i, first + j]
        for j in range(width, TILE_COLUMNS):
            tile[i, j] = 0


def empty_tiles(leading_shape: tuple[int, ...], n_columns: int, dtype: Any) -> NDArray[Any]:
    """Allocate tiles, shape (n_tiles, *leading_shape, TILE_COLUMNS); only the filling columns of the last are set."""
    n_tiles = -(-n_columns // TILE_COLUMNS)
    tiles = np.empty((n_tiles, *leading_shape, TILE_COLUMNS), dtype=dtype)
    tiles[-1, ..., n_columns - (n_tiles - 1) * TILE_COLUMNS :] = 0
    return tiles
