"""Products of rows rounded to 16-bit integers, which AVX2 multiplies nearly twice as fast as float32.

One instruction multiplies sixteen pairs of such integers and adds the products two by two to 32 bits. Sums cannot
leave those: rows are rounded to multiples of a step that leaves them a norm of 46,000, and no sum over some of the
columns is larger than the product of two norms (Cauchy and Schwarz). So an entry of a unit row is off by 2e-5 at most,
and products a tenth as much as those of bfloat16. Rounding is dithered as that to 8 bits is (`_integer_products.py`),
for bounds that are as tight.

Both factors are rearranged, so that one pass over two columns at a time reads either from one place: tiles of six rows
and panels of sixteen latents, whose 96 sums fill twelve of the sixteen vector registers.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from skcompressae._core._arrays import FloatArray, IndexArray, aligned_empty
from skcompressae._core._compiling import njit
from skcompressae._core._gathers import FAST
from skcompressae._core._integer_products import dithers, largest_magnitude, of_latents
from skcompressae._core._lanes import broadcast
from skcompressae._core._threads import run_blocks

__all__ = [
    "MAX_COLUMNS",
    "ROWS_PER_PANEL",
    "ROWS_PER_TILE",
    "Int16Encoder",
    "Int16Rows",
    "multiply_int16",
    "pairwise_products",
    "round_row",
    "round_to_int16",
]

# Of wider rows the rounding, which may add 1 to every entry, could add too much to the norm.
MAX_COLUMNS = 2**16

ROWS_PER_TILE = 6
ROWS_PER_PANEL = 16
# Columns by which the widths of rounded rows grow: the innermost loop takes two pairs at a time.
_COLUMN_STEP = 4
# 32-bit lanes of a vector register.
_LANES = 8
# Of a row before it is rounded; afterwards the square of its norm is below 2^31.
_LARGEST_NORM = 46000.0
_LARGEST_ENTRY = 32766.0
# Of a smaller step the inverse might overflow.
_SMALLEST_STEP = 1e-37


class Int16Rows(NamedTuple):
    """Rows as ``steps (integers - dither)``, in groups of `rows_per_group`, pairs of columns together."""

    integers: IndexArray  # (n_groups, n_columns // 2, rows_per_group, 2), int16; zeros beyond the rows and columns
    steps: FloatArray  # (n_rows,), 0 for rows taken for zeros, NaN for rows that are not finite
    offsets: FloatArray  # (n_rows,): sum of the integers times the other factor's dither
    distances: FloatArray  # (n_rows,), of the row to what it was rounded to
    norms: FloatArray  # (n_rows,)


@njit(nogil=True, fastmath=FAST)
def _scaled_norm(row: Any, scale: Any) -> Any:
    squares = row.dtype.type(0)
    for j in range(row.shape[0]):
        scaled = row[j] * scale
        squares += scaled * scaled
    return np.sqrt(squares)


@njit(nogil=True, fastmath=FAST)
def _round(row: Any, scale: Any, dither: Any, other_dither: Any, integers: Any) -> Any:
    """Write the rounded multiples of a row; return its offset and its distance to what it was rounded to, in steps."""
    kind = row.dtype.type
    offset, squares = kind(0), kind(0)
    for j in range(row.shape[0]):
        dithered = row[j] * scale + dither[j]
        nearest = np.rint(dithered)
        integers[j] = np.int16(np.int32(nearest))
        offset += nearest * other_dither[j]
        squares += (dithered - nearest) * (dithered - nearest)
    return offset, np.sqrt(squares)


@njit(nogil=True)
def round_row(row: Any, dither: Any, other_dither: Any, integers: Any) -> Any:
    """Write the rounded multiples of a row; return step, offset, distance and norm, as in `Int16Rows`."""
    kind = row.dtype.type
    largest = largest_magnitude(row)
    # relative to the largest entry, as squares of weights of any scale may leave float32
    unit = max(largest, kind(_SMALLEST_STEP))
    norm = unit * _scaled_norm(row, kind(1) / unit)
    step = max(largest / kind(_LARGEST_ENTRY), norm / kind(_LARGEST_NORM))
    if np.isfinite(norm) and step > kind(_SMALLEST_STEP):
        offset, distance = _round(row, kind(1) / step, dither, other_dither, integers)
        return step, offset, step * distance, norm
    # taken for zeros; one that is not finite makes all its products NaN
    for j in range(row.shape[0]):
        integers[j] = 0
    return kind(0) if np.isfinite(norm) else kind(np.nan), kind(0), largest * np.sqrt(kind(row.shape[0])), norm


@njit(nogil=True)
def _round_groups(rows: Any, dither: Any, other_dither: Any, start: Any, stop: Any, rounded: Any) -> None:
    n_pairs, per_group = rounded.integers.shape[1:3]
    integers = np.zeros(2 * n_pairs, dtype=np.int16)
    pairs = integers.view(np.int32)
    targets = rounded.integers.view(np.int32)
    for group in range(start, stop):
        for lane in range(per_group):
            i = group * per_group + lane
            if i >= rows.shape[0]:
                targets[group, :, lane] = 0
                continue
            step, offset, distance, norm = round_row(rows[i], dither, other_dither, integers)
            rounded.steps[i], rounded.offsets[i], rounded.distances[i], rounded.norms[i] = step, offset, distance, norm
            for pair in range(n_pairs):
                targets[group, pair, lane, 0] = pairs[pair]


def round_to_int16(
    rows: FloatArray, rows_per_group: int, dither: FloatArray, other_dither: FloatArray, *, n_threads: int
) -> Int16Rows:
    """Round float32 rows of shape (n_rows, n_columns), in groups of `rows_per_group`, with `dither`.

    `other_dither` is that of the other factor.
    """
    n_rows, n_columns = rows.shape
    width = -(-n_columns // _COLUMN_STEP) * _COLUMN_STEP
    n_groups = -(-n_rows // rows_per_group)
    rounded = Int16Rows(
        aligned_empty((n_groups, width // 2, rows_per_group, 2), np.int16),
        *(np.empty(n_rows, dtype=np.float32) for _ in range(4)),
    )
    run_blocks(
        lambda start, stop: _round_groups(rows, dither, other_dither, start, stop, rounded),
        n_groups,
        max(1, 128 // rows_per_group),
        n_threads,
    )
    return rounded


@intrinsic
def _multiply_tile(typing_context: Any, tile: Any, panel: Any, n_pairs: Any, sums: Any) -> Any:
    """Write to `sums` the products of the rows of a tile, (n_pairs, 6, 2), with those of a panel, (n_pairs, 16, 2)."""
    return types.void(tile, panel, types.intp, sums), _generate_multiply_tile


_int16, _int32, _int64 = ir.IntType(16), ir.IntType(32), ir.IntType(64)
_shorts, _ints = ir.VectorType(_int16, 2 * _LANES), ir.VectorType(_int32, _LANES)
_floats = ir.VectorType(ir.FloatType(), _LANES)


def pairwise_products(builder: Any) -> Any:
    """Return the function of two vectors of sixteen integers that multiplies them and adds neighbours."""
    kind = ir.FunctionType(_ints, [_shorts, _shorts])
    return cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.avx2.pmadd.wd")


def _items_of(context: Any, builder: Any, kind: Any, array: Any) -> Any:
    return context.make_array(kind)(context, builder, array).data


def _at(builder: Any, items: Any, offset: Any, kind: Any) -> Any:
    place = builder.gep(items, [offset if isinstance(offset, ir.Value) else ir.Constant(_int64, offset)])
    return builder.bitcast(place, kind.as_pointer())


def _generate_multiply_tile(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    n_pairs = arguments[2]
    n_vectors = ROWS_PER_PANEL // _LANES
    multiply = pairwise_products(builder)
    before = builder.block
    loop = builder.append_basic_block("pairs")
    after = builder.append_basic_block("after_pairs")
    of_tile, of_panel, of_sums = (
        _items_of(context, builder, signature.args[position], arguments[position]) for position in (0, 1, 3)
    )
    builder.branch(loop)

    builder.position_at_end(loop)
    pair = builder.phi(_int64)
    totals = [builder.phi(_ints) for _ in range(ROWS_PER_TILE * n_vectors)]
    running = list(totals)
    rows = builder.gep(of_tile, [builder.mul(pair, ir.Constant(_int64, 2 * ROWS_PER_TILE))])
    latents = builder.gep(of_panel, [builder.mul(pair, ir.Constant(_int64, 2 * ROWS_PER_PANEL))])
    n_unrolled = _COLUMN_STEP // 2  # of four pairs in a row LLVM would keep some sums in memory
    for u in range(n_unrolled):
        vectors = [
            builder.load(_at(builder, latents, 2 * (u * ROWS_PER_PANEL + v * _LANES), _shorts), align=2)
            for v in range(n_vectors)
        ]
        for r in range(ROWS_PER_TILE):
            of_row = builder.load(_at(builder, rows, 2 * (u * ROWS_PER_TILE + r), _int32), align=2)
            everywhere = builder.bitcast(broadcast(builder, _ints, of_row), _shorts)
            for v in range(n_vectors):
                place = r * n_vectors + v
                running[place] = builder.add(running[place], builder.call(multiply, [vectors[v], everywhere]))
    following = builder.add(pair, ir.Constant(_int64, n_unrolled))
    pair.add_incoming(ir.Constant(_int64, 0), before)
    pair.add_incoming(following, loop)
    for total, grown in zip(totals, running, strict=True):
        total.add_incoming(ir.Constant(_ints, None), before)
        total.add_incoming(grown, loop)
    builder.cbranch(builder.icmp_signed("<", following, n_pairs), loop, after)

    builder.position_at_end(after)
    for place, total in enumerate(running):
        builder.store(total, _at(builder, of_sums, place * _LANES, _ints), align=4)
    return context.get_dummy_value()


@intrinsic
def _scale_sums(
    typing_context: Any, sums: Any, offset: Any, step: Any, offsets: Any, factors: Any, bias: Any, products: Any
) -> Any:
    """Write the first ROWS_PER_PANEL products, ``((sums - offset) - offsets) (step factors) + bias``.

    Numba leaves this loop to scalar instructions, which took a fifth of the whole product at 256 columns.
    """
    return types.void(sums, offset, step, offsets, factors, bias, products), _generate_scale_sums


def _generate_scale_sums(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    of_sums, of_offsets, of_factors, of_bias, of_products = (
        _items_of(context, builder, signature.args[position], arguments[position]) for position in (0, 3, 4, 5, 6)
    )
    offset, step = (broadcast(builder, _floats, argument) for argument in arguments[1:3])
    fused = {"flags": ("contract",)}
    for start in range(0, ROWS_PER_PANEL, _LANES):
        total = builder.sitofp(builder.load(_at(builder, of_sums, start, _ints), align=4), _floats)
        offsets, factors, bias = (
            builder.load(_at(builder, items, start, _floats), align=4) for items in (of_offsets, of_factors, of_bias)
        )
        centred = builder.fsub(builder.fsub(total, offset, **fused), offsets, **fused)
        scaled = builder.fmul(centred, builder.fmul(step, factors, **fused), **fused)
        place = _at(builder, of_products, start, _floats)
        builder.store(builder.fadd(scaled, bias, **fused), place, align=4)
    return context.get_dummy_value()


@njit(nogil=True, fastmath={"contract"})
def _multiply_int16(
    rows: Any, latents: Any, offsets: Any, factors: Any, bias: Any, first: Any, last: Any, products: Any
) -> None:
    n_rows, n_latents = products.shape
    tiles, panels = rows.integers, latents.integers
    n_pairs = panels.shape[1]
    sums = np.empty((ROWS_PER_TILE, ROWS_PER_PANEL), dtype=np.int32)
    for p in range(first, last):  # a panel stays in the first-level cache while the tiles meet it
        start = p * ROWS_PER_PANEL
        n_lanes = min(ROWS_PER_PANEL, n_latents - start)
        for t in range(tiles.shape[0]):
            _multiply_tile(tiles[t], panels[p], n_pairs, sums)
            for r in range(min(ROWS_PER_TILE, n_rows - t * ROWS_PER_TILE)):
                i = t * ROWS_PER_TILE + r
                step, offset = rows.steps[i], rows.offsets[i]
                if n_lanes == ROWS_PER_PANEL:
                    found = products[i, start:]
                    _scale_sums(sums[r], offset, step, offsets[start:], factors[start:], bias[start:], found)
                else:
                    for lane in range(n_lanes):
                        j = start + lane
                        products[i, j] = ((np.float32(sums[r, lane]) - offset) - offsets[j]) * (
                            step * factors[j]
                        ) + bias[j]


def multiply_int16(
    rows: Int16Rows,
    latents: Int16Rows,
    offsets: FloatArray,
    factors: FloatArray,
    bias: FloatArray,
    products: FloatArray,
    *,
    n_threads: int,
) -> None:
    """Write ``steps (sums - row offsets - offsets) factors + bias``, sums the products of the integers.

    Parameters
    ----------
    rows : Int16Rows
        In groups of ROWS_PER_TILE.
    latents : Int16Rows
        In groups of ROWS_PER_PANEL, of as many columns.
    offsets : float32 array of shape (n_latents,)
        Those of the latents, less the product of the dithers.
    factors : float32 array of shape (n_latents,)
        The steps of the latents, divided by what products are divided by.
    bias : float32 array of shape (n_latents,)
    products : float32 array of shape (n_rows, n_latents)
    n_threads : int
    """
    n_panels = len(latents.integers)
    run_blocks(
        lambda first, last: _multiply_int16(rows, latents, offsets, factors, bias, first, last, products),
        n_panels,
        max(1, -(-n_panels // n_threads)),
        n_threads,
    )


class Int16Encoder:
    """An encoder rounded once, to be multiplied with many blocks of rows.

    Parameters
    ----------
    encoder : float32 array of shape (n_components, n_features)
    divisors : float32 array of shape (n_components,), optional
        What products are divided by.
    bias : float32 array of shape (n_components,), optional
        What is added to them then.
    n_threads : int
    """

    def __init__(
        self,
        encoder: FloatArray,
        divisors: FloatArray | None = None,
        bias: FloatArray | None = None,
        *,
        n_threads: int,
    ) -> None:
        self._bias = np.zeros(len(encoder), dtype=np.float32) if bias is None else bias
        self._dithers = dithers(encoder.shape[1])
        self.rounded = round_to_int16(encoder, ROWS_PER_PANEL, *self._dithers[::-1], n_threads=n_threads)
        self._factors, self._offsets = of_latents(self.rounded.steps, self.rounded.offsets, divisors, self._dithers)

    def multiply(self, x: FloatArray, products: FloatArray, *, n_threads: int) -> Int16Rows:
        """Write the products with float32 rows to `products`, (n_rows, n_components); return the rounded rows."""
        rows = round_to_int16(x, ROWS_PER_TILE, *self._dithers, n_threads=n_threads)
        multiply_int16(rows, self.rounded, self._offsets, self._factors, self._bias, products, n_threads=n_threads)
        return rows
