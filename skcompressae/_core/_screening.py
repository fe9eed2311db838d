"""Rule out latents by a product in reduced precision: what may be among those of largest exact activation.

A product of rounded factors costs a half (bfloat16, 16-bit integers) or a quarter (8-bit integers) of one in float32.
How far it can be off is known: the rounding errors of the factors are there to be measured, and what the sums and the
result's own rounding add is bounded. A latent whose approximate magnitude plus its bound is below the n-th largest of
magnitude minus bound is not among the n largest, whatever the errors were. All others survive; `_deciding.py` decides
between them. (The bounds of integer products fail for one of 2e17 activations.)
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from skcompressae._core._arrays import FloatArray, IndexArray
from skcompressae._core._compiling import njit
from skcompressae._core._gathers import FAST
from skcompressae._core._int16_products import Int16Rows
from skcompressae._core._integer_products import DEVIATIONS, IntegerProducts, IntegerRows, products_of_sums
from skcompressae._core._threads import run_blocks
from skcompressae._core._topk import (
    GUESS,
    SLACK,
    add_max_and_count,
    candidate_threshold,
    collect_at_least,
    kth_largest,
    leading,
    max_and_count,
    n_at_least,
)

__all__ = [
    "ErrorBounds",
    "RoundedRows",
    "Survivors",
    "activation_error",
    "distances_to",
    "error_bound",
    "error_bounds",
    "integer_error_bounds",
    "n_computed",
    "room_for",
    "survive",
]

# Half a unit in the last place of bfloat16, relative to the rounded number, and a little.
_ROUNDED_SHARE = 1.01 * 2.0**-8
# Survivors by the largest bound may exceed the latents asked for by an eighth; more are thinned by bounds of their own.
_FEW_SHARE = 8
# For the rounding of the bounds themselves.
_INFLATION = 1.001


class ErrorBounds(NamedTuple):
    """How far the activation of latent j for a unit row x may be off.

    ``fixed[j] + slope[j] |x - rounded x| + sqrt((spread[j] step)^2 + (own[j] |x|)^2)``, where x is the row less the
    centre, if there is one, and step what it was rounded to multiples of; and `share` of the approximate magnitude.
    """

    fixed: FloatArray
    slope: FloatArray
    spread: FloatArray
    own: FloatArray
    share: np.float32


class RoundedRows(NamedTuple):
    """How far rows are from what they were rounded to, the steps of that, and norms; 0 where rounding had no steps."""

    distances: FloatArray  # (n_rows,)
    steps: FloatArray  # (n_rows,)
    norms: FloatArray  # (n_rows,), after the centre was subtracted

    def of_rows(self, start: int, stop: int) -> RoundedRows:
        """Return a view of some rows."""
        return RoundedRows(self.distances[start:stop], self.steps[start:stop], self.norms[start:stop])


@njit(nogil=True, fastmath=FAST)
def error_bound(bounds: Any, j: Any, rounded: Any, i: Any) -> Any:
    """Return how far the activation of latent j for row i may be off, but for the share of its magnitude."""
    noise, own = bounds.spread[j] * rounded.steps[i], bounds.own[j] * rounded.norms[i]
    # at least the root of the sum of squares, which might overflow or vanish
    root = max(noise, own) + np.float32(0.4143) * min(noise, own)
    return bounds.fixed[j] + bounds.slope[j] * rounded.distances[i] + root


@njit(nogil=True, fastmath=FAST)
def activation_error(bounds: Any, j: Any, rounded: Any, i: Any, magnitude: Any) -> Any:
    """Return how far the activation of latent j for row i, of rounded `magnitude`, may be off."""
    return error_bound(bounds, j, rounded, i) + bounds.share * magnitude


@njit(nogil=True, fastmath=FAST)
def distances_to(rows, rounded, distances):  # type: ignore[no-untyped-def]
    """Write the distance of each row to the rounded one."""
    for i in range(rows.shape[0]):
        total = rows.dtype.type(0)
        for j in range(rows.shape[1]):
            difference = rows[i, j] - rounded[i, j]
            total += difference * difference
        distances[i] = np.sqrt(total)


@njit(nogil=True, fastmath=FAST)
def _measure_rounding(rows, rounded, start, stop, distances, norms):  # type: ignore[no-untyped-def]
    for i in range(start, stop):
        # float64, as squares of weights of any scale may leave float32
        distance, norm = 0.0, 0.0
        for j in range(rows.shape[1]):
            after = np.float64(rounded[i, j])
            difference = np.float64(rows[i, j]) - after
            distance += difference * difference
            norm += after * after
        distances[i], norms[i] = np.sqrt(distance), np.sqrt(norm)


def error_bounds(
    encoder: FloatArray, rounded: FloatArray, bias: FloatArray, divisors: FloatArray | None, *, n_threads: int
) -> ErrorBounds:
    """Bound the errors of the activations of unit rows when both factors were rounded to bfloat16.

    With w and x rounded to w' and x', ``|w.x - w'.x'| <= |w - w'||x| + |w'||x - x'|``. The sums, in float32 in any
    order, here and where activations are computed again, are each off by at most ``gamma_n |w||x|`` (Higham, "Accuracy
    and Stability of Numerical Algorithms", 2nd ed., section 3.1).

    Parameters
    ----------
    encoder : float32 array of shape (n_components, n_features)
    rounded : float32 array of shape (n_components, n_features)
        `encoder` rounded to bfloat16.
    bias : array of shape (n_components,)
        Added to the product, after the division.
    divisors : array of shape (n_components,), optional
        What products are divided by.
    n_threads : int
    """
    distances, norms = np.empty(len(encoder)), np.empty(len(encoder))
    run_blocks(
        lambda start, stop: _measure_rounding(encoder, rounded, start, stop, distances, norms),
        len(encoder),
        256,
        n_threads,
    )
    sums = 2 * (encoder.shape[1] + 8) * float(np.finfo(np.float32).eps)
    # Subnormal factors and results may be taken for 0.
    vanished = (encoder.shape[1] + 1) * float(np.finfo(np.float32).tiny)
    fixed = distances + sums * (norms + distances) + vanished
    slope = norms
    if divisors is not None:
        fixed, slope = fixed / divisors, slope / divisors
    # The product is rounded before the bias is added.
    fixed = fixed + (_ROUNDED_SHARE + sums) * np.abs(bias) + vanished
    nothing = np.zeros_like(fixed)
    return _inflated(fixed, slope, nothing, nothing, _ROUNDED_SHARE)


def _inflated(fixed: FloatArray, slope: FloatArray, spread: FloatArray, own: FloatArray, share: float) -> ErrorBounds:
    """Return bounds in float32 that are no smaller for their own rounding; infinite ones of weights beyond it."""
    with np.errstate(over="ignore"):
        fixed, slope, spread, own = ((_INFLATION * bound).astype(np.float32) for bound in (fixed, slope, spread, own))
    return ErrorBounds(fixed, slope, spread, own, np.float32(share))


def integer_error_bounds(
    rounded: IntegerRows | Int16Rows, n_features: int, bias: FloatArray, divisors: FloatArray | None
) -> ErrorBounds:
    """Bound the errors of the activations of unit rows when both factors were rounded to integers, with a dither.

    With a = x - x' and b = w - w' the error is ``w.a + b.x - b.a``. The first two are the sub-Gaussian ones of
    `_integer_products.py`, independent of one another; the last is at most ``|a||b|``. A bound fails with a probability
    of 5e-18 for an activation. `rounded` is the encoder; the other parameters are those of :func:`error_bounds`.
    """
    steps, slope, norms = (array.astype(np.float64) for array in (rounded.steps, rounded.distances, rounded.norms))
    epsilon = float(np.finfo(np.float32).eps)
    # where activations are computed again only, and half an epsilon for each operation there; a little for products of
    # such errors
    sums = 1.01 * (n_features + 8) * epsilon / 2
    # what the sums, exact integers, and the numbers subtracted from them lose when they are taken for float32
    # (rows less a centre, both of at most unit norm, have one of 2 at most)
    lost = 32 * epsilon * (norms + np.sqrt(n_features) * steps) * (1 + np.sqrt(n_features) / 100)
    vanished = (n_features + 1) * float(np.finfo(np.float32).tiny)
    fixed = sums * norms + lost + np.where(steps == 0, 2 * norms, 0) + vanished
    spread, own = DEVIATIONS * norms, DEVIATIONS * steps
    if divisors is not None:
        fixed, slope, spread, own = (bound / divisors for bound in (fixed, slope, spread, own))
    fixed = fixed + sums * np.abs(bias) + vanished
    return _inflated(fixed, slope, spread, own, 4 * epsilon)


class Survivors(NamedTuple):
    """Latents that may be among the n largest of each row: `counts` of them, or more than there was room for."""

    latents: IndexArray  # (n_rows, room), int32, ascending
    activations: FloatArray  # (n_rows, room), approximate
    counts: IndexArray  # (n_rows,), int32

    def of_rows(self, start: int, stop: int) -> Survivors:
        """Return a view of some rows."""
        where = slice(start, stop)
        return Survivors(self.latents[where], self.activations[where], self.counts[where])


def room_for(n_rows: int, n: int, n_components: int) -> Survivors:
    """Return arrays for `survive` to fill."""
    shape = (n_rows, min(n_components, SLACK * n))
    return Survivors(
        np.empty(shape, dtype=np.int32),
        np.empty(shape, dtype=np.float32),
        np.empty(n_rows, dtype=np.int32),
    )


@njit(nogil=True)
def _survive(
    integers: Any,
    products: Any,
    bias: Any,
    rounded: Any,
    bounds: Any,
    largest: Any,
    n: int,
    n_decided: int,
    start: int,
    stop: int,
    survivors: Any,
) -> None:
    kind = np.float32
    share = bounds.share
    n_components = len(bounds.fixed)
    room = survivors.latents.shape[1]
    found = np.empty(n_components, dtype=np.int32)
    scratch = np.empty(n_components, dtype=np.float32)
    from_sums = np.empty(n_components, dtype=np.float32)
    guess = kind(0)
    largest_count = min(n_components, SLACK * n)
    for i in range(start, stop):
        if len(integers.sums) > 0:  # one row at a time, so that what is made of it is in the cache for the next pass
            row = from_sums
            products_of_sums(integers, i, rounded.steps[i], row)
        else:
            row = products[i]
        peak, count = add_max_and_count(row, bias, guess) if len(bias) > 0 else max_and_count(row, guess)
        threshold = candidate_threshold(row, n, guess, count, peak, largest_count)
        n_found = collect_at_least(row, threshold, found)
        for c in range(n_found):
            scratch[c] = abs(row[found[c]])
        nth = kth_largest(scratch, n_found, n)
        guess = kind(GUESS) * nth
        # no magnitude below this one, plus the largest of the bounds, reaches the n-th largest minus that
        bound = error_bound(largest, 0, rounded, i)
        lowest = max(kind(0), (nth * (kind(1) - share) - kind(2) * bound) / (kind(1) + share))
        if n_decided > 0 and peak < np.inf and n_at_least(row, n_components, lowest) <= n_decided:
            n_kept = leading(found, scratch, n_found, nth, n)
            for c in range(n):
                j = found[c] if n_kept == n else c  # too few are numbers
                survivors.latents[i, c], survivors.activations[i, c] = j, row[j]
            survivors.counts[i] = n
            continue
        if lowest < threshold:
            n_found = collect_at_least(row, lowest, found)
        n_kept = 0
        for c in range(n_found):
            n_kept += abs(row[found[c]]) >= lowest
        is_few = n_kept <= n + n // _FEW_SHARE
        floor = lowest
        if not is_few:  # the same with each latent's own bound
            for c in range(n_found):
                j = found[c]
                scratch[c] = max(kind(0), abs(row[j]) * (kind(1) - share) - error_bound(bounds, j, rounded, i))
            floor = kth_largest(scratch, n_found, n)
        n_kept = 0
        for c in range(n_found):  # without a branch on what is not foreseen
            j = found[c]
            magnitude = abs(row[j])
            if not is_few:
                magnitude = magnitude * (kind(1) + share) + error_bound(bounds, j, rounded, i)
            found[n_kept] = j
            n_kept += int(magnitude >= floor)
        for c in range(min(n_kept, room)):
            survivors.latents[i, c] = found[c]
            survivors.activations[i, c] = row[found[c]]
        # an infinite one makes the others look small: all are to be computed again
        survivors.counts[i] = n_components + 1 if peak == np.inf else n_kept


def n_computed(survivors: Survivors, n_components: int) -> int:
    """Count the activations that `decide` will compute."""
    room = survivors.latents.shape[1]
    return int(np.where(survivors.counts > room, n_components, survivors.counts).sum())


def survive(
    products: FloatArray | IntegerProducts,
    rounded: RoundedRows,
    bias: FloatArray,
    bounds: ErrorBounds,
    n: int,
    survivors: Survivors,
    *,
    n_threads: int,
    n_decided: int = 0,
) -> None:
    """Write which latents may be among the n of largest exact activation of each row.

    Parameters
    ----------
    products : float32 array of shape (n_rows, n_components), or IntegerProducts
        Products of the rounded factors, rounded to bfloat16 themselves or not, and divided. The bias is added to an
        array in place.
    rounded : RoundedRows
        Of as many unit (or zero) rows.
    bias : float32 array of shape (n_components,), or (0,) where products contain it
    bounds : ErrorBounds
    n : int in [1, n_components]
    survivors : Survivors
        Of as many rows.
    n_threads : int
    n_decided : int, default=0
        Rows with at most so many survivors are left with the n of largest approximate activation.
    """
    fixed, slope, spread, own = (bound.max(keepdims=True) for bound in bounds[:4])
    largest = ErrorBounds(fixed, slope, spread, own, bounds.share)
    nothing = np.empty(0, dtype=np.float32)
    integers = IntegerProducts(np.empty((0, len(bounds.fixed)), dtype=np.int32), nothing, nothing, nothing)
    if isinstance(products, IntegerProducts):
        integers, products = products, np.empty((0, len(bounds.fixed)), dtype=np.float32)
    run_blocks(
        lambda start, stop: _survive(
            integers, products, bias, rounded, bounds, largest, n, n_decided, start, stop, survivors
        ),
        len(rounded.distances),
        64,
        n_threads,
    )
