"""Sums of chosen rows, one tile of columns at a time, so that the rows chosen from are in the second-level cache.

Layout: the tiles of an (n_rows, n_columns) array are (n_tiles, n_rows, TILE_COLUMNS), C-contiguous; tile t holds the
columns ``[t * TILE_COLUMNS, (t + 1) * TILE_COLUMNS)``, the last one filled up with zeros. Rounded to bfloat16, the rows
of a tile are half as many words (see `_words.py`). A sum over chosen rows of one tile stays in registers from the first
row to the last, which compilers do not see in a loop over arrays: the loop is therefore written in LLVM's vector
instructions, for any processor and for float32, float64 and words.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload
from numpy.typing import NDArray

from skcompressae._core._arrays import aligned_empty
from skcompressae._core._compiling import njit
from skcompressae._core._lanes import N_LANES, broadcast
from skcompressae._core._words import halves, round_row

__all__ = ["TILE_COLUMNS", "TILE_ROWS", "add_tile_rows", "empty_tiles", "fill_tile", "write_part"]

# Columns of a tile: wide enough to spread the cost of reading an index, narrow enough for TILE_ROWS rows to fit a
# second-level cache of 512 KB (docs/research_notes_speed.md).
TILE_COLUMNS = 32
# Rows whose tile of float32 is 512 KB.
TILE_ROWS = 4096
# Sums kept for every lane, to hide the latency of an addition behind the other.
_N_SUMS = 2


@intrinsic
def add_tile_rows(
    typing_context: Any, total: Any, tile: Any, picks: Any, coefficients: Any, first: Any, last: Any
) -> Any:
    """Add ``sum_p coefficients[p] * tile[picks[p]]`` over p in [first, last) to `total`.

    `total` (TILE_COLUMNS,), `tile` (n_rows, TILE_COLUMNS) and `coefficients` are C-contiguous and of one dtype, but for
    a tile of words; `picks` are int32 and not negative.
    """
    signature = types.void(total, tile, picks, coefficients, types.intp, types.intp)
    return signature, _generate_add_tile_rows


def _generate_add_tile_rows(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    total, tile, picks, coefficients = (
        context.make_array(kind)(context, builder, value).data
        for kind, value in zip(signature.args[:4], arguments[:4], strict=True)
    )
    first, last = arguments[4:]
    element, of_tile = (context.get_value_type(kind.dtype) for kind in signature.args[:2])
    alignment = signature.args[0].dtype.bitwidth // 8
    vector, stored, integer = ir.VectorType(element, N_LANES), ir.VectorType(of_tile, N_LANES), first.type
    n_vectors = TILE_COLUMNS // N_LANES
    total_vectors = builder.bitcast(total, vector.as_pointer())
    is_rounded = signature.args[1].dtype == types.uint32
    n_stored = n_vectors // 2 if is_rounded else n_vectors

    def constant(value: int) -> Any:
        return ir.Constant(integer, value)

    def term(position: Any, sums: list[Any]) -> list[Any]:
        """Add one entry's multiple of its row to the sums."""
        pick = builder.zext(builder.load(builder.gep(picks, [position])), integer)
        coefficient = broadcast(builder, vector, builder.load(builder.gep(coefficients, [position])))
        offset = builder.mul(pick, constant(n_stored * N_LANES))
        row = builder.bitcast(builder.gep(tile, [offset]), stored.as_pointer())
        parts = [builder.load(builder.gep(row, [constant(v)]), align=alignment) for v in range(n_stored)]
        if is_rounded:
            low, high = zip(*(halves(builder, words) for words in parts), strict=True)
            parts = [*low, *high]
        fused = {"flags": ("contract",)}
        return [
            builder.fadd(running, builder.fmul(coefficient, part, **fused), **fused)
            for running, part in zip(sums, parts, strict=True)
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
    zeros = [ir.Constant(vector, [0.0] * N_LANES)] * n_vectors
    middle = builder.sub(last, builder.srem(builder.sub(last, first), constant(_N_SUMS)))
    sums = loop(first, middle, [initial] + [zeros] * (_N_SUMS - 1))
    (final,) = loop(middle, last, [sums[0]])
    for v in range(n_vectors):
        value = final[v]
        for group in sums[1:]:
            value = builder.fadd(value, group[v])
        builder.store(value, builder.gep(total_vectors, [constant(v)]), align=alignment)
    return context.get_dummy_value()


# Numba chooses its body by the dtype of the tile; interpreted, it has none and must not pass for done.
def write_part(row: Any, number: Any, part: Any) -> None:
    """Write the columns of a row that tile `number` holds to `part`, one row of that tile."""
    raise NotImplementedError("compiled code only")


@overload(write_part)
def _write_part(row: Any, number: Any, part: Any) -> Any:
    def copy(row: Any, number: Any, part: Any) -> None:
        first = number * TILE_COLUMNS
        width = row.shape[0] - first
        if width >= TILE_COLUMNS:
            for j in range(TILE_COLUMNS):
                part[j] = row[first + j]
            return
        for j in range(TILE_COLUMNS):
            part[j] = row[first + j] if j < width else 0

    def rounded(row: Any, number: Any, part: Any) -> None:
        first = number * TILE_COLUMNS
        round_row(row[first : min(first + TILE_COLUMNS, row.shape[0])], part)

    return rounded if part.dtype == types.uint32 else copy


@njit(nogil=True)
def fill_tile(rows: Any, number: Any, tile: Any) -> None:
    """Write the columns of tile `number` of `rows` to `tile`, zeros beyond the last column."""
    for i in range(rows.shape[0]):
        write_part(rows[i], number, tile[i])


def empty_tiles(leading_shape: tuple[int, ...], n_columns: int, dtype: Any) -> NDArray[Any]:
    """Allocate tiles of an array of so many columns, of shape (n_tiles, *leading_shape, columns or words of a tile)."""
    n_tiles = -(-n_columns // TILE_COLUMNS)
    width = TILE_COLUMNS // 2 if dtype == np.uint32 else TILE_COLUMNS
    return aligned_empty((n_tiles, *leading_shape, width), dtype)
