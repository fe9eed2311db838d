"""Exact float32 activations at the price of a product in reduced precision, on processors that multiply it faster."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from threading import local
from typing import Any

import numpy as np
import torch

from skcompressae._core._arrays import FloatArray, IndexArray
from skcompressae._core._deciding import decide
from skcompressae._core._int16_products import MAX_COLUMNS, Int16Encoder
from skcompressae._core._integer_products import IntegerProducts, dithers, of_latents, round_rows
from skcompressae._core._processor import MULTIPLIES_BFLOAT16, MULTIPLIES_INT8, MULTIPLIES_INT16
from skcompressae._core._screening import (
    ErrorBounds,
    RoundedRows,
    Survivors,
    distances_to,
    error_bounds,
    integer_error_bounds,
    n_computed,
    room_for,
    survive,
)
from skcompressae._core._threads import run_product_blocks
from skcompressae._torch._cpu_engine import to_bfloat16
from skcompressae._torch._torch_threads import hold_torch_threads, torch_threads

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
    if MULTIPLIES_INT8 and n_features <= _MAX_COLUMNS and _has_integer_product():
        roundings.append("int8")
    if MULTIPLIES_BFLOAT16:
        roundings.append("bfloat16")
    return roundings


@lru_cache(maxsize=1)
def _has_integer_product() -> bool:
    """Whether torch multiplies 8-bit integers on the CPU exactly, and not in a plain loop, as it does without oneDNN.

    Before torch 2.4 it did not at all, and oneDNN that is held to older instructions (ONEDNN_MAX_CPU_ISA) adds pairs of
    products in 16 bits. So a product that would leave those is tried.
    """
    if not (hasattr(torch, "_int_mm") and torch.backends.mkldnn.is_available()):  # type: ignore[no-untyped-call]
        return False
    left = np.full((64, 128), 127, dtype=np.int8)
    right = np.where(np.arange(96)[:, None] % 4 < np.arange(128) % 5, 127, -127).astype(np.int8)
    try:
        found = torch._int_mm(torch.from_numpy(left), torch.from_numpy(right).T)
    except RuntimeError:  # there is no such kernel for the CPU, or not for this processor
        return False
    return bool((found.numpy() == left.astype(np.int32) @ right.T.astype(np.int32)).all())


class _Buffers:
    """Arrays that a thread uses again for every block of rows."""

    def __init__(self, dtypes: list[torch.dtype], n_columns: int) -> None:
        self._dtypes, self._n_columns, self._local = dtypes, n_columns, local()

    def of_rows(self, n_rows: int) -> list[torch.Tensor]:
        """Return views of `n_rows` rows, valid until this thread's next call."""
        held = getattr(self._local, "held", None)
        if held is None or len(held[0]) < n_rows:
            shape = n_rows, self._n_columns
            held = self._local.held = [torch.empty(shape, dtype=dtype, device="cpu") for dtype in self._dtypes]
        return [tensor[:n_rows] for tensor in held]


class _Bfloat16Products:
    """Products of rows and encoder, both rounded to bfloat16."""

    is_fine = False  # whether errors are so small that few thresholds are within them

    def __init__(self, encoder: FloatArray, bias: FloatArray, divisors: FloatArray | None, n_threads: int) -> None:
        self._divisors = divisors
        self.bias = bias
        self._rounded = to_bfloat16(encoder)
        self.bounds: ErrorBounds = error_bounds(
            encoder, self._rounded.to(torch.float32).numpy(), bias, divisors, n_threads=n_threads
        )
        self._buffers = _Buffers([torch.bfloat16, torch.float32], len(encoder))

    def centre_on(self, x: FloatArray) -> None:
        """Do nothing: bfloat16 is as exact in columns far from 0 as in others."""

    def __call__(self, x: FloatArray, rounded: RoundedRows, n_threads: int) -> FloatArray:
        rounded_x = to_bfloat16(x)
        distances_to(x, rounded_x.to(torch.float32).numpy(), rounded.distances)
        rounded.steps.fill(0)
        rounded.norms.fill(0)
        rounded_products, in_float32 = self._buffers.of_rows(len(x))
        with torch_threads(n_threads):
            in_float32.copy_(torch.mm(rounded_x, self._rounded.T, out=rounded_products))
        products: FloatArray = in_float32.numpy()
        if self._divisors is not None:
            products /= self._divisors
        return products


class _IntegerProducts:
    """Products of rows and encoder, both rounded to 8-bit integers with a dither."""

    is_fine = False

    def __init__(self, encoder: FloatArray, bias: FloatArray, divisors: FloatArray | None, n_threads: int) -> None:
        self._encoder, self._bias, self._divisors = encoder, bias, divisors
        self._centre: FloatArray | None = None
        self.bias = bias
        self._dither, self._encoder_dither = dithers(encoder.shape[1])
        rounded = round_rows(encoder, self._encoder_dither, self._dither, n_threads=n_threads)
        self._integers = torch.from_numpy(rounded.integers)
        self._factors, self._offsets = of_latents(
            rounded.steps, rounded.offsets, divisors, (self._dither, self._encoder_dither)
        )
        self.bounds: ErrorBounds = integer_error_bounds(rounded, encoder.shape[1], bias, divisors)
        self._buffers = _Buffers([torch.int32], len(encoder))

    def centre_on(self, x: FloatArray) -> None:
        """Subtract the mean of these rows from all that follow."""
        self._centre = x.mean(axis=0, dtype=np.float64).astype(np.float32)
        shift = np.einsum("ij,j->i", self._encoder, self._centre, dtype=np.float64)
        self.bias = (self._bias + (shift if self._divisors is None else shift / self._divisors)).astype(np.float32)

    def __call__(self, x: FloatArray, rounded: RoundedRows, n_threads: int) -> IntegerProducts:
        rows = round_rows(x, self._dither, self._encoder_dither, self._centre, n_threads=n_threads)
        rounded.distances[:], rounded.steps[:], rounded.norms[:] = rows.distances, rows.steps, rows.norms
        (sums,) = self._buffers.of_rows(len(x))
        with torch_threads(n_threads):
            torch._int_mm(torch.from_numpy(rows.integers), self._integers.T, out=sums)
        return IntegerProducts(sums.numpy(), self._factors, self._offsets, rows.offsets)


class _Int16Products:
    """Products of rows and encoder, both rounded to 16-bit integers with a dither."""

    is_fine = True

    def __init__(self, encoder: FloatArray, bias: FloatArray, divisors: FloatArray | None, n_threads: int) -> None:
        self.bias = np.empty(0, dtype=np.float32)  # products contain it
        self._encoder = Int16Encoder(encoder, divisors, bias, n_threads=n_threads)
        self.bounds: ErrorBounds = integer_error_bounds(self._encoder.rounded, encoder.shape[1], bias, divisors)
        self._buffers = _Buffers([torch.float32], len(encoder))

    def centre_on(self, x: FloatArray) -> None:
        """Do nothing: steps are fine enough for the other columns where one is far from 0."""

    def __call__(self, x: FloatArray, rounded: RoundedRows, n_threads: int) -> FloatArray:
        products: FloatArray = self._buffers.of_rows(len(x))[0].numpy()
        rows = self._encoder.multiply(x, products, n_threads=n_threads)
        rounded.distances[:], rounded.steps[:], rounded.norms[:] = rows.distances, rows.steps, rows.norms
        return products


_PRODUCTS: dict[str, Callable[..., Any]] = {
    "int8": _IntegerProducts,
    "int16": _Int16Products,
    "bfloat16": _Bfloat16Products,
}


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
        self._multiply = _PRODUCTS[rounding](encoder, bias, divisors, n_threads)
        self._bounds = self._multiply.bounds
        self.is_fine: bool = self._multiply.is_fine
        self._n_asked = self._n_recomputed = 0
        self._is_probed = False
        # False once products were off by more than they can be, or so many latents are near ties that it does not pay
        self.pays = bool(max(bound.max() for bound in self._bounds) < _MAX_WEIGHT)

    def largest(
        self, x: FloatArray, n: int, block_rows: int, n_threads: int, *, computes_all: bool = True
    ) -> tuple[IndexArray, FloatArray, FloatArray] | None:
        """Return the n largest activations of each unit row, indices and values, and how far a row's may be off.

        That is not at all, unless `computes_all` is False: then only those are exact that had to be for the choice.
        None where it would not pay, as some of the rows tell, or where the bounds turn out not to hold, as with a
        library that does not sum as exactly as it should. All rows pass the product before any is computed again, so
        that the weights of either stage stay in the cache.
        """
        found = self._screen(x, n, block_rows, n_threads)
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
            computes_all=computes_all,
        )
        if n_violations:
            self.pays = False
            return None
        return indices, values, errors

    def _screen(
        self, x: FloatArray, n: int, block_rows: int, n_threads: int
    ) -> tuple[RoundedRows, ErrorBounds, Survivors] | None:
        """Return how rows were rounded, the bounds, and what survives, once it is known that this pays."""
        if not (self._is_probed or self.is_fine):
            self._is_probed = True
            probed = x[:: max(1, len(x) // _N_PROBED)]
            self._multiply.centre_on(probed)
            self._survivors(np.ascontiguousarray(probed), n, block_rows, n_threads)
        found = self._survivors(x, n, block_rows, n_threads) if self.pays else None
        return None if found is None else (found[0], self._bounds, found[1])

    def _survivors(
        self, x: FloatArray, n: int, block_rows: int, n_threads: int
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
            )

        with hold_torch_threads():
            run_product_blocks(propose, len(x), block_rows, n_threads)
        self._n_asked += n * len(x)
        self._n_recomputed += n_computed(survivors, len(self._encoder))
        if self._n_recomputed > _MAX_RECOMPUTED * self._n_asked:
            self.pays = False
        return (rounded, survivors) if self.pays else None
