"""Products of rows and encoder that torch computes in reduced precision, for screening (`_screened.py`)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import lru_cache
from threading import local
from typing import Any

import numpy as np
import torch

from skcompressae._core._arrays import FloatArray
from skcompressae._core._integer_products import IntegerProducts, dithers, of_latents, round_rows
from skcompressae._core._screening import ErrorBounds, RoundedRows, distances_to, error_bounds, integer_error_bounds
from skcompressae._torch._cpu_engine import to_bfloat16
from skcompressae._torch._torch_threads import hold_torch_threads, torch_threads

__all__ = ["PRODUCTS", "has_integer_product"]


@lru_cache(maxsize=1)
def has_integer_product() -> bool:
    """Whether torch multiplies 8-bit integers on the CPU exactly, and not in a plain loop, as it does without oneDNN.

    Before torch 2.4 it did not at all, and oneDNN that is held to older instructions (ONEDNN_MAX_CPU_ISA) adds pairs of
    products in 16 bits. So a product that would leave those is tried.
    """
    has_onednn = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]  # torch has no types for it
    if not (has_onednn and hasattr(torch, "_int_mm")):
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


class _TorchProducts:
    """Products that torch computes."""

    is_fine = False  # whether errors are so small that few thresholds are within them

    def hold_threads(self) -> AbstractContextManager[None]:
        """Have threads that multiply meanwhile set back the calling thread's number."""
        return hold_torch_threads()


class _Bfloat16Products(_TorchProducts):
    """Products of rows and encoder, both rounded to bfloat16."""

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


class _IntegerProducts(_TorchProducts):
    """Products of rows and encoder, both rounded to 8-bit integers with a dither."""

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


PRODUCTS: dict[str, Callable[..., Any]] = {"int8": _IntegerProducts, "bfloat16": _Bfloat16Products}
