"""Round rows to 8-bit integers so that products of rounded rows are unbiased, with errors that are known to be small.

Processors multiply such integers four times as fast as float32, but rounding to 255 steps is coarse: the largest error
that a product may have, by Cauchy and Schwarz, is some 25 times a typical one, and would rule out next to nothing. So
rounding is dithered (Schuchman, "Dither signals and their effect on quantization noise", IEEE Trans. Commun. Tech. 12,
1964). With s the step of a row and u_j drawn uniformly from [-1/2, 1/2],

    q_j = round(x_j / s + u_j),    x'_j = s (q_j - u_j),

and the errors x_j - x'_j are independent of one another and of x, and uniform in [-s/2, s/2], whatever x is. Such an
error is sub-Gaussian with its own variance, s^2 / 12, so one in a product with w exceeds z s |w| / sqrt(12) with
probability 2 exp(-z^2 / 2) at most. All rows share one u, all encoder rows another v, so what the product of integers
lacks is one number per row and one per latent:

    w'.x' = s_w s_x (sum q_w q_x - sum q_w u - sum q_x v + sum u v).

The step of a row is its largest entry's, so what all rows have in common is subtracted before, and its product added to
the bias: a column far from 0 would otherwise coarsen all others.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from skcompressae._core._arrays import FloatArray, IndexArray
from skcompressae._core._compiling import njit
from skcompressae._core._gathers import FAST
from skcompressae._core._threads import run_blocks
from skcompressae._core._topk import max_and_count

__all__ = [
    "DEVIATIONS",
    "IntegerProducts",
    "IntegerRows",
    "dithers",
    "largest_magnitude",
    "of_latents",
    "products_of_sums",
    "round_rows",
]

# z: an error beyond it is to be expected once in 2e17 products.
DEVIATIONS = 9.0 / np.sqrt(12.0)
# A little below 127, which x / s + u must round to at most.
_LARGEST = 126.9
# Of a smaller step the inverse might overflow.
_SMALLEST_STEP = 1e-37
_SEED = 0x5CAE


class IntegerRows(NamedTuple):
    """Rows, less the centre, as ``steps (integers - dither)``."""

    integers: IndexArray  # (n_rows, n_columns), int8
    steps: FloatArray  # (n_rows,)
    offsets: FloatArray  # (n_rows,): sum of the integers times the other factor's dither
    distances: FloatArray  # (n_rows,), of the row to what it was rounded to
    norms: FloatArray  # (n_rows,)


class IntegerProducts(NamedTuple):
    """Products as ``steps (sums - row_offsets - offsets) factors``, steps those of the rows."""

    sums: IndexArray  # (n_rows, n_components), int32
    factors: FloatArray  # (n_components,)
    offsets: FloatArray  # (n_components,)
    row_offsets: FloatArray  # (n_rows,)


def dithers(n_columns: int) -> tuple[FloatArray, FloatArray]:
    """Return the dither of rows and that of encoder rows, the same in every call."""
    drawn = np.random.RandomState(_SEED).uniform(-0.5, 0.5, (2, n_columns)).astype(np.float32)
    return drawn[0], drawn[1]


def of_latents(
    steps: FloatArray, offsets: FloatArray, divisors: FloatArray | None, both_dithers: tuple[FloatArray, FloatArray]
) -> tuple[FloatArray, FloatArray]:
    """Return what the sums of a latent's products are multiplied by, and what is subtracted from them before."""
    factors = steps if divisors is None else (steps / divisors).astype(np.float32)
    dither, encoder_dither = both_dithers
    constant = np.dot(dither.astype(np.float64), encoder_dither)
    return factors, (offsets - constant).astype(np.float32)


@njit(nogil=True)
def largest_magnitude(row: Any) -> Any:
    """Return the largest magnitude of a row."""
    return max_and_count(row, row.dtype.type(np.inf))[0]


@njit(nogil=True)
def _round(row, scale, dither, rounded, integers):  # type: ignore[no-untyped-def]
    for j in range(row.shape[0]):
        nearest = np.rint(row[j] * scale + dither[j])
        rounded[j] = nearest
        integers[j] = np.int8(np.int32(nearest))


@njit(nogil=True, fastmath=FAST)
def _measure(row, scale, rounded, dither, other_dither):  # type: ignore[no-untyped-def]
    # distance and norm in steps, as squares of weights of any scale may leave float32
    offset, distance, norm = np.float32(0), np.float32(0), np.float32(0)
    for j in range(row.shape[0]):
        scaled = row[j] * scale
        offset += rounded[j] * other_dither[j]
        difference = scaled - (rounded[j] - dither[j])
        distance += difference * difference
        norm += scaled * scaled
    return offset, np.sqrt(distance), np.sqrt(norm)


@njit(nogil=True)
def _round_rows(rows, centre, dither, other_dither, start, stop, rounded):  # type: ignore[no-untyped-def]
    nearest = np.empty(rows.shape[1], dtype=np.float32)
    row = np.empty(rows.shape[1], dtype=np.float32)
    for i in range(start, stop):
        for j in range(rows.shape[1]):
            row[j] = rows[i, j] - centre[j]
        largest = largest_magnitude(row)
        step = largest / np.float32(_LARGEST)
        if step > np.float32(_SMALLEST_STEP):
            scale = np.float32(1) / step
            _round(row, scale, dither, nearest, rounded.integers[i])
            rounded.offsets[i], distance, norm = _measure(row, scale, nearest, dither, other_dither)
            rounded.steps[i], rounded.distances[i], rounded.norms[i] = step, step * distance, step * norm
        else:  # the row is taken for zeros
            rounded.integers[i] = 0
            rounded.offsets[i] = rounded.steps[i] = np.float32(0)
            rounded.distances[i] = rounded.norms[i] = largest * np.sqrt(np.float32(rows.shape[1]))  # at most


def round_rows(
    rows: FloatArray,
    dither: FloatArray,
    other_dither: FloatArray,
    centre: FloatArray | None = None,
    *,
    n_threads: int,
) -> IntegerRows:
    """Round float32 rows of shape (n_rows, n_columns) with `dither`; `other_dither` is that of the other factor."""
    subtracted = np.zeros(rows.shape[1], dtype=np.float32) if centre is None else centre
    rounded = IntegerRows(
        np.empty(rows.shape, dtype=np.int8), *(np.empty(len(rows), dtype=np.float32) for _ in range(4))
    )
    run_blocks(
        lambda start, stop: _round_rows(rows, subtracted, dither, other_dither, start, stop, rounded),
        len(rows),
        256,
        n_threads,
    )
    return rounded


@njit(nogil=True, fastmath={"contract"})
def products_of_sums(integers, i, step, products):  # type: ignore[no-untyped-def]
    """Write the products of row i, rounded to multiples of `step`: see `IntegerProducts`."""
    sums, row_offset = integers.sums[i], integers.row_offsets[i]
    factors, offsets = integers.factors, integers.offsets
    for j in range(sums.shape[0]):
        products[j] = ((np.float32(sums[j]) - row_offset) - offsets[j]) * (step * factors[j])
