"""Exact float32 activations at the price of a product in reduced precision, on processors that multiply it faster."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from threading import local
from typing import Any

import numpy as np

from skcompressae._core._arrays import FloatArray, IndexArray, aligned_empty
from skcompressae._core._deciding import ALL, decide, n_decided_by_product
from skcompressae._core._int16_products import MAX_COLUMNS, Int16Encoder
from skcompressae._core._processor import MULTIPLIES_BFLOAT16, MULTIPLIES_INT8, MULTIPLIES_INT16
from skcompressae._core._screening import (
    ErrorBounds,
    RoundedRows,
    Survivors,
    integer_error_bounds,
    n_computed,
    room_for,
    survive,
)
from skcompressae._core._threads import run_product_blocks

__all__ = ["ScreenedActivations", "roundings_worth_screening"]

# Rows from which the faster product saves more than rounding the encoder and measuring the errors takes.
_MIN_ROWS = 1024
# The same for 16-bit integers, of which no rows are tried first.
_MIN_INT16_ROWS = 192
# Columns below which a product is over so soon that it does not matter how fast it is (docs/research_notes_speed.md).
_MIN_COLUMNS = 160
# Encoder rows of larger norm might overflow.
_MAX_WEIGHT = 1e37
# Activations computed again per latent asked for, from which the float32 product is the faster way.
_MAX_RECOMPUTED = 6
# Rows by which it is decided whether the others are screened at all.
_N_PROBED = 256
# Products of so many columns cannot leave 32 bits.
_MAX_COLUMNS = 2**31 // 127**2


def roundings_worth_screening(n_rows: int, n_features: int) -> list[str]:
    """Return what to round to, best first: what this processor multiplies fast, if rows are many and long enough."""
    roundings: list[str] = []
    if n_features < _MIN_COLUMNS:
        return roundings
    if MULTIPLIES_INT16 and n_features <= MAX_COLUMNS and n_rows >= _MIN_INT16_ROWS:
        roundings.append("int16")
    if n_rows < _MIN_ROWS:
        return roundings
    if MULTIPLIES_INT8 and n_features <= _MAX_COLUMNS:
        from skcompressae._torch._rounded_products import has_integer_product

        if has_integer_product():
            roundings.append("int8")
    if MULTIPLIES_BFLOAT16:
        roundings.append("bfloat16")
    return roundings


class _Int16Products:
    """Products of rows and encoder, both rounded to 16-bit integers with a dither."""

    is_fine = True

    def __init__(self, encoder: FloatArray, bias: FloatArray, divisors: FloatArray | None, n_threads: int) -> None:
        self.bias = np.empty(0, dtype=np.float32)  # products contain it
        self._encoder = Int16Encoder(encoder, divisors, bias, n_threads=n_threads)
        self.bounds: ErrorBounds = integer_error_bounds(self._encoder.rounded, encoder.shape[1], bias, divisors)
        self._n_latents, self._local = len(encoder), local()

    def hold_threads(self) -> AbstractContextManager[None]:
        """Do nothing: torch multiplies nothing here."""
        return nullcontext()

    def centre_on(self, x: FloatArray) -> None:
        """Do nothing: steps are fine enough for the other columns where one is far from 0."""

    def __call__(self, x: FloatArray, rounded: RoundedRows, n_threads: int) -> FloatArray:
        held = getattr(self._local, "products", None)
        if held is None or len(held) < len(x):
            held = self._local.products = aligned_empty((len(x), self._n_latents), np.float32)
        products: FloatArray = held[: len(x)]
        rows = self._encoder.multiply(x, products, n_threads=n_threads)
        rounded.distances[:], rounded.steps[:], rounded.norms[:] = rows.distances, rows.steps, rows.norms
        return products


def _products(rounding: str) -> Any:
    if rounding == "int16":
        return _Int16Products
    from skcompressae._torch._rounded_products import PRODUCTS

    return PRODUCTS[rounding]


class ScreenedActivations:
    """Find the latents of largest activation as a float32 product would.

    Parameters
    ----------
    encoder : float32 array of shape (n_components, n_features)
    bias : float32 array of shape (n_components,)
    divisors : float32 array of shape (n_components,), optional
        What products are divided by before the bias is added.
    rounding : {"int8", "int16", "bfloat16"}
        What the factors of the product that is done for all latents are rounded to.
    n_threads : int
    """

    def __init__(
        self,
        encoder: FloatArray,
        bias: FloatArray,
        divisors: FloatArray | None = None,
        *,
        rounding: str,
        n_threads: int,
    ) -> None:
        self._encoder, self._bias, self._divisors = encoder, bias, divisors
        self._multiply = _products(rounding)(encoder, bias, divisors, n_threads)
        self._bounds = self._multiply.bounds
        self.is_fine: bool = self._multiply.is_fine
        self._n_asked = self._n_recomputed = 0
        self._is_probed = False
        # False once products were off by more than they can be, or so many latents are near ties that it does not pay
        self.pays = bool(max(bound.max() for bound in self._bounds) < _MAX_WEIGHT)

    def largest(
        self, x: FloatArray, n: int, block_rows: int, n_threads: int, *, computes: int = ALL
    ) -> tuple[IndexArray, FloatArray, FloatArray] | None:
        """Return the n largest activations of each unit row, indices and values, and how far a row's may be off.

        That is not at all, unless `computes` is OPEN: then only those are exact that had to be for the choice. With
        MANY, activations of a row may be those of the rounded product, which then choose too: see `decide`.
        None where it would not pay, as some of the rows tell, or where the bounds turn out not to hold, as with a
        library that does not sum as exactly as it should. All rows pass the product before any is computed again, so
        that the weights of either stage stay in the cache.
        """
        found = self._screen(x, n, n_decided_by_product(n, computes), block_rows, n_threads)
        if found is None:
            return None
        indices, values, errors, n_violations = decide(
            x,
            self._encoder,
            self._bias,
            *found,
            n,
            n_threads=n_threads,
            divisors=self._divisors,
            computes=computes,
        )
        if n_violations:
            self.pays = False
            return None
        return indices, values, errors

    def _screen(
        self, x: FloatArray, n: int, n_decided: int, block_rows: int, n_threads: int
    ) -> tuple[RoundedRows, ErrorBounds, Survivors] | None:
        """Return how rows were rounded, the bounds, and what survives, once it is known that this pays."""
        if not (self._is_probed or self.is_fine):
            self._is_probed = True
            probed = x[:: max(1, len(x) // _N_PROBED)]
            self._multiply.centre_on(probed)
            self._survivors(np.ascontiguousarray(probed), n, n_decided, block_rows, n_threads)
        found = self._survivors(x, n, n_decided, block_rows, n_threads) if self.pays else None
        return None if found is None else (found[0], self._bounds, found[1])

    def _survivors(
        self, x: FloatArray, n: int, n_decided: int, block_rows: int, n_threads: int
    ) -> tuple[RoundedRows, Survivors] | None:
        """Return what may be in the rows' codes, or None where that is too much."""
        survivors = room_for(len(x), n, len(self._encoder))
        rounded = RoundedRows(*(np.empty(len(x), dtype=np.float32) for _ in range(3)))

        def propose(start: int, stop: int, n_threads: int) -> None:
            of_block = rounded.of_rows(start, stop)
            products = self._multiply(x[start:stop], of_block, n_threads)
            survive(
                products,
                of_block,
                self._multiply.bias,
                self._bounds,
                n,
                survivors.of_rows(start, stop),
                n_threads=n_threads,
                n_decided=n_decided,
            )

        with self._multiply.hold_threads():
            run_product_blocks(propose, len(x), block_rows, n_threads)
        self._n_asked += n * len(x)
        self._n_recomputed += n_computed(survivors, len(self._encoder))
        if self._n_recomputed > _MAX_RECOMPUTED * self._n_asked:
            self.pays = False
        return (rounded, survivors) if self.pays else None
