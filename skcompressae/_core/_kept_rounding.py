"""An encoder kept in 8 bits between calls: what encodes row after row waits for it to be read, and reads a quarter.

The product of integers rules out latents, as it does for blocks (`_screening.py`), and activations of those that it
leaves are computed in float32. Encoder rows are rounded with the dither of `_integer_products.py`, the few rows to 16
bits (`_int16_products.py`): the processor multiplies such anyway, and their errors do not count then.

Weights may be written to between two calls. They are others than those that were kept where the bias, or the entry that
is remembered of each row of the encoder, is another, or an activation is further from the rounded one than it can be.
"""

from __future__ import annotations

import weakref
from typing import Any, Literal, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from skcompressae._core._arrays import FloatArray, aligned_empty
from skcompressae._core._compiling import njit
from skcompressae._core._gathers import FAST
from skcompressae._core._int16_products import MAX_COLUMNS, pairwise_products, round_row
from skcompressae._core._integer_products import dithers, of_latents, round_rows
from skcompressae._core._processor import HAS_AVX2
from skcompressae._core._screening import ErrorBounds, activation_error, integer_error_bounds
from skcompressae._core._topk import collect_at_least, kth_largest

__all__ = [
    "FEW_ROWS",
    "MAX_RECOMPUTED",
    "NEAR_TIES",
    "NOT_KEPT",
    "OTHER_WEIGHTS",
    "Keeper",
    "KeptEncoder",
    "bounds_of",
    "encoder_role",
    "is_kept",
    "keeper_of",
    "multiply_kept",
    "rule_out",
]

# Rows up to which one thread that reads an encoder kept in 8 bits is faster than all that read float32.
FEW_ROWS = 4
# Smaller encoders stay in the second-level cache, or are read from it soon enough.
_MIN_BYTES = 4 * 2**20
# Elsewhere it is not known whether it is the faster way.
_PAYS_HERE = HAS_AVX2
# Encoders and decoders that are kept: a quarter of the memory of each, and more models by turns than a process has.
_N_KEPT = 32
# Products computed again per latent asked for, from which reading the encoder itself is the faster way.
MAX_RECOMPUTED = 6
# Calls after which it is asked whether screening pays, and the share that it must have been of use for.
_N_PROBED, _USEFUL_SHARE = 32, 0.6
# Calls that save the time of rounding: for so many it was of no use where weights were written to.
_CALLS_PER_ROUNDING = 10
# Encoder rows of larger norm might overflow.
_MAX_WEIGHT = 1e37
# Columns by which the widths of rounded rows grow: as many as one instruction multiplies.
_COLUMN_STEP = 16
# Of the rows that `KeptEncoder.per_latent` holds.
_FACTOR, _OFFSET, _FIXED, _SLOPE, _SPREAD, _OWN, _DIVISOR, _BIAS, _ENTRY = range(9)


class KeptEncoder(NamedTuple):
    """Encoder rows as ``factors (integers - dither)``, how far activations may be off, and what tells them from others.

    Few arrays, as a kernel takes half a microsecond for each that it is handed.
    """

    integers: NDArray[np.int8]  # (n_components, n_features), zeros beyond the features
    per_latent: FloatArray  # (9, n_components): factors, offsets, four bounds, divisor, bias, entry of the encoder row
    dithers: FloatArray  # (2, n_features), of rows and of encoder rows
    share: np.float32  # of magnitudes, by which activations may be off as well


# What may become of the rows that meet it: else it is how many activations were computed in float32.
OTHER_WEIGHTS, NEAR_TIES = -1, -2

_NOTHING = np.empty((0, 0), dtype=np.float32)
NOT_KEPT = KeptEncoder(np.empty((0, 0), dtype=np.int8), _NOTHING, _NOTHING, np.float32(0))


@intrinsic
def _multiply_four(
    typing_context: Any, row: Any, first: Any, second: Any, third: Any, fourth: Any, n_groups: Any, sums: Any
) -> Any:
    """Write to ``sums[:4]`` the products of a row of int16 with four of int8, of `n_groups` times sixteen columns."""
    return types.void(row, first, second, third, fourth, types.intp, sums), _generate_multiply_four


_int8, _int16, _int32, _int64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_bytes, _shorts = ir.VectorType(_int8, _COLUMN_STEP), ir.VectorType(_int16, _COLUMN_STEP)
_ints = ir.VectorType(_int32, _COLUMN_STEP // 2)


def _multiply_pairs(builder: Any, shorts: Any, others: Any) -> Any:
    """Return the products of two vectors of sixteen integers, neighbours added up."""
    if HAS_AVX2:
        return builder.call(pairwise_products(builder), [shorts, others])
    # for other processors, on which it is compiled with the rest of a kernel, and not used
    wide = ir.VectorType(_int32, _COLUMN_STEP)
    products = builder.mul(builder.sext(shorts, wide), builder.sext(others, wide))
    even, odd = (
        builder.shuffle_vector(products, products, ir.Constant(_ints, list(range(first, _COLUMN_STEP, 2))))
        for first in (0, 1)
    )
    return builder.add(even, odd)


def _generate_multiply_four(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    add_up = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(_int32, [_ints]), f"llvm.vector.reduce.add.v{_ints.count}i32"
    )
    n_groups = arguments[5]
    of_row, *of_latents, of_sums = (
        context.make_array(signature.args[place])(context, builder, arguments[place]).data
        for place in (0, 1, 2, 3, 4, 6)
    )
    before, loop, after = builder.block, builder.append_basic_block("groups"), builder.append_basic_block("summed")
    builder.branch(loop)

    builder.position_at_end(loop)
    group = builder.phi(_int64)
    totals = [builder.phi(_ints) for _ in of_latents]
    start = builder.mul(group, ir.Constant(_int64, _COLUMN_STEP))
    shorts = builder.load(builder.bitcast(builder.gep(of_row, [start]), _shorts.as_pointer()), align=2)
    following = builder.add(group, ir.Constant(_int64, 1))
    group.add_incoming(ir.Constant(_int64, 0), before)
    group.add_incoming(following, loop)
    grown = []
    for total, of_latent in zip(totals, of_latents, strict=True):
        loaded = builder.load(builder.bitcast(builder.gep(of_latent, [start]), _bytes.as_pointer()), align=1)
        grown.append(builder.add(total, _multiply_pairs(builder, builder.sext(loaded, _shorts), shorts)))
        total.add_incoming(ir.Constant(_ints, None), before)
        total.add_incoming(grown[-1], loop)
    builder.cbranch(builder.icmp_signed("<", following, n_groups), loop, after)

    builder.position_at_end(after)
    for place, vector in enumerate(grown):
        builder.store(builder.call(add_up, [vector]), builder.gep(of_sums, [ir.Constant(_int64, place)]), align=4)
    return context.get_dummy_value()


@njit(nogil=True)
def multiply_kept(unit: Any, kept: Any, rounded: Any, products: Any) -> None:
    """Write the products of unit (or zero) rows with all encoder rows, divided, and how the rows were rounded.

    Four encoder rows, far apart, meet a row at once.
    """
    factors, offsets = kept.per_latent[_FACTOR], kept.per_latent[_OFFSET]
    of_latents = kept.integers
    last, n_groups = of_latents.shape[0] - 1, of_latents.shape[1] // _COLUMN_STEP
    stride = last // 4 + 1
    sums = np.empty(4, dtype=np.int32)
    of_row = np.zeros(of_latents.shape[1], dtype=np.int16)
    for q in range(unit.shape[0]):
        step, offset, distance, norm = round_row(unit[q], kept.dithers[0], kept.dithers[1], of_row)
        rounded.steps[q], rounded.distances[q], rounded.norms[q] = step, distance, norm
        for i in range(stride):
            latents = i, min(i + stride, last), min(i + 2 * stride, last), min(i + 3 * stride, last)
            a, b, c, d = latents
            _multiply_four(of_row, of_latents[a], of_latents[b], of_latents[c], of_latents[d], n_groups, sums)
            for place in range(4):
                j = latents[place]
                products[q, j] = ((np.float32(sums[place]) - offset) - offsets[j]) * (step * factors[j])


@njit(nogil=True)
def bounds_of(kept: Any) -> Any:
    """Return the bounds of a kept encoder's errors."""
    rows = kept.per_latent
    return ErrorBounds(rows[_FIXED], rows[_SLOPE], rows[_SPREAD], rows[_OWN], kept.share)


@njit(nogil=True, fastmath=FAST)
def _add_errors(activations: Any, bounds: Any, rounded: Any, q: int, reached: Any) -> None:
    """Write how large the activations of row q may be, by magnitude."""
    for j in range(activations.shape[0]):
        magnitude = abs(activations[j])
        reached[j] = magnitude + activation_error(bounds, j, rounded, q, magnitude)


@njit(nogil=True)
def rule_out(activations: Any, picks: Any, n: int, kept: Any, rounded: Any, q: int, left: Any, errors: Any) -> int:
    """Write the latents of row q that may be among the n of largest exact activation, ascending, and their errors.

    `activations` are the rounded ones, `picks` n latents at least of the largest of those; there is room for all
    latents. Returns how many are left.
    """
    kind = np.float32
    bounds = bounds_of(kept)
    reached = np.empty(activations.shape[0], dtype=kind)
    _add_errors(activations, bounds, rounded, q, reached)
    for c in range(picks.shape[0]):
        magnitude = abs(activations[picks[c]])
        errors[c] = max(kind(0), magnitude - activation_error(bounds, picks[c], rounded, q, magnitude))
    n_left = collect_at_least(reached, kth_largest(errors, picks.shape[0], n), left)  # n are at least that
    for c in range(n_left):
        errors[c] = activation_error(bounds, left[c], rounded, q, abs(activations[left[c]]))
    return n_left


@njit(nogil=True)
def _remember(encoder: Any, bias: Any, divisors: Any, per_latent: Any) -> None:
    """Write what tells these weights from others: bias, divisors, and of each encoder row an entry."""
    for i in range(encoder.shape[0]):
        per_latent[_DIVISOR, i] = divisors[i] if divisors.shape[0] > 0 else np.float32(1)
        per_latent[_BIAS, i] = bias[i]
        per_latent[_ENTRY, i] = encoder[i, i % encoder.shape[1]]


@njit(nogil=True)
def is_kept(kept: Any, encoder: Any, bias: Any, divisors: Any) -> bool:
    """Return whether there is a kept encoder, and these look like its weights."""
    if kept.integers.shape[0] == 0:
        return False
    n_others = 0
    for i in range(encoder.shape[0]):  # without a branch, so that many entries are on their way at once
        divisor = divisors[i] if divisors.shape[0] > 0 else np.float32(1)
        n_others += int(kept.per_latent[_DIVISOR, i] != divisor)
        n_others += int(kept.per_latent[_BIAS, i] != bias[i])
        n_others += int(kept.per_latent[_ENTRY, i] != encoder[i, i % encoder.shape[1]])
    return n_others == 0


def _round(encoder: FloatArray, bias: FloatArray, divisors: FloatArray | None) -> KeptEncoder | None:
    """Round float32 weights, or return None where they are too large for that."""
    n_components, n_features = encoder.shape
    per_latent = np.empty((9, n_components), dtype=np.float32)
    # before they are rounded: what another thread writes meanwhile is not what is remembered, and seen by the next call
    _remember(encoder, bias, np.empty(0, dtype=np.float32) if divisors is None else divisors, per_latent)
    both = dithers(n_features)
    rounded = round_rows(encoder, *both[::-1], n_threads=1)
    factors, offsets = of_latents(rounded.steps, rounded.offsets, divisors, both)
    bounds = integer_error_bounds(rounded, n_features, bias, divisors)
    if not max(bound.max() for bound in bounds[:4]) < _MAX_WEIGHT:
        return None
    integers = aligned_empty((n_components, -(-n_features // _COLUMN_STEP) * _COLUMN_STEP), np.int8)
    integers[:, :n_features] = rounded.integers
    integers[:, n_features:] = 0
    per_latent[:6] = factors, offsets, *bounds[:4]
    return KeptEncoder(integers, per_latent, np.stack(both), bounds.share)


# What an array is multiplied for: activations, activations that are divided, or expanded queries.
Role = Literal["encoder", "divided encoder", "decoder"]


def encoder_role(divisors: FloatArray | None) -> Role:
    """Return the role of an encoder whose products are divided by `divisors`."""
    return "encoder" if divisors is None else "divided encoder"


class Keeper:
    """What is kept of one array in one role, and whether that pays."""

    def __init__(self, source: weakref.ref[Any], role: Role) -> None:
        self.source, self.role = source, role
        self._rounded: KeptEncoder | None = None
        self._n_calls = self._n_useful = 0
        self._is_new = self.pays = True

    def rounded(self, encoder: FloatArray, bias: FloatArray, divisors: FloatArray | None) -> KeptEncoder:
        """Return the encoder in 8 bits, from the second call on, if it pays; products are divided by `divisors`."""
        if self._is_new or not self.pays:
            self._is_new = False
            return NOT_KEPT
        kept = self._rounded
        if kept is None:
            kept = self._rounded = _round(encoder, bias, divisors)
            self.pays = kept is not None
        return NOT_KEPT if kept is None else kept

    def learn(self, outcome: int) -> None:
        """Take account of the `outcome` of `FewCodes` or of expanded queries, where the encoder in 8 bits was used."""
        if outcome == OTHER_WEIGHTS:
            self._rounded = None
            self._n_calls += _CALLS_PER_ROUNDING
        else:
            self._n_calls += 1
            self._n_useful += outcome != NEAR_TIES
        if self._n_calls >= _N_PROBED and self._n_useful < _USEFUL_SHARE * self._n_calls:
            self.pays, self._rounded = False, None


_keepers: list[Keeper] = []


def keeper_of(encoder: FloatArray, role: Role) -> Keeper | None:
    """Return what is kept of an encoder, or of a decoder, or None where nothing is to be.

    One array may be both, with tied weights, and have a bias as the one only. What is kept leaves with its array, or as
    the oldest of too many. Two threads that ask first may get two, of which one lasts.
    """
    if not _PAYS_HERE or encoder.nbytes < _MIN_BYTES or encoder.shape[1] > MAX_COLUMNS:
        return None
    for keeper in tuple(_keepers):
        if keeper.source() is encoder and keeper.role == role:
            return keeper
    keeper = Keeper(weakref.ref(encoder, _forget), role)
    _keepers.append(keeper)
    del _keepers[:-_N_KEPT]
    return keeper


def _forget(source: weakref.ref[Any]) -> None:
    _keepers[:] = [keeper for keeper in _keepers if keeper.source is not source]
