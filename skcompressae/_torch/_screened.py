"""Exact float32 activations at the price of a bfloat16 product, on processors that multiply bfloat16."""

from __future__ import annotations

from threading import Lock, local

import numpy as np
import torch

from skcompressae._core._arrays import FloatArray, IndexArray
from skcompressae._core._processor import MULTIPLIES_BFLOAT16
from skcompressae._core._screening import error_bounds, screen
from skcompressae._torch._cpu_engine import to_bfloat16

__all__ = ["ScreenedActivations", "is_worth_screening"]

# Rows from which the faster product saves more than rounding the encoder and measuring the errors takes.
_MIN_ROWS = 1024
# Encoder rows of larger norm might overflow.
_MAX_WEIGHT = 1e37
# Activations computed again per latent asked for, from which the float32 product is the faster way.
_MAX_RECOMPUTED = 6


def is_worth_screening(n_rows: int) -> bool:
    """Whether this processor multiplies bfloat16, and the rows are many enough for it to pay."""
    return MULTIPLIES_BFLOAT16 and n_rows >= _MIN_ROWS


class ScreenedActivations:
    """Find the latents of largest activation as a float32 product would.

    Parameters
    ----------
    encoder : float32 array of shape (n_components, n_features)
    bias : float32 array of shape (n_components,)
    divisors : float32 array of shape (n_components,), optional
        What products are divided by before the bias is added.
    n_threads : int
    """

    def __init__(
        self, encoder: FloatArray, bias: FloatArray, divisors: FloatArray | None = None, *, n_threads: int
    ) -> None:
        self._encoder, self._bias, self._divisors = encoder, bias, divisors
        self._rounded = to_bfloat16(encoder)
        self._bounds = error_bounds(
            encoder, self._rounded.to(torch.float32).numpy(), bias, divisors, n_threads=n_threads
        )
        self._buffers = local()  # a pair for each thread
        self._lock = Lock()
        self._n_asked = self._n_recomputed = 0
        # False once products were off by more than they can be, or so many latents are near ties that it does not pay
        self.pays = bool(max(bound.max() for bound in self._bounds) < _MAX_WEIGHT)

    def largest(self, x: FloatArray, n: int, n_threads: int) -> tuple[IndexArray, FloatArray] | None:
        """Return indices and activations, both (n_rows, n), of the n largest magnitudes of each unit row.

        None where the bounds turn out not to hold, as with a library that does not sum in float32.
        """
        rounded_x = to_bfloat16(x)
        rounded_products, products = self._buffers_for(len(x))
        before = torch.get_num_threads()
        torch.set_num_threads(n_threads)  # of this thread
        try:
            torch.from_numpy(products).copy_(torch.mm(rounded_x, self._rounded.T, out=rounded_products))
        finally:
            torch.set_num_threads(before)
        if self._divisors is not None:
            products /= self._divisors
        indices, values, n_recomputed, n_violations = screen(
            products,
            x,
            rounded_x.to(torch.float32).numpy(),
            self._encoder,
            self._bias,
            self._bounds,
            n,
            n_threads=n_threads,
            divisors=self._divisors,
        )
        with self._lock:
            self._n_asked += n * len(x)
            self._n_recomputed += n_recomputed
            if n_violations or self._n_recomputed > _MAX_RECOMPUTED * self._n_asked:
                self.pays = False
        return None if n_violations else (indices, values)

    def _buffers_for(self, n_rows: int) -> tuple[torch.Tensor, FloatArray]:
        """Return this thread's buffers for products, bfloat16 and float32."""
        buffers = getattr(self._buffers, "pair", None)
        if buffers is None or len(buffers[1]) < n_rows:
            shape = (n_rows, len(self._encoder))
            buffers = self._buffers.pair = (torch.empty(shape, dtype=torch.bfloat16), np.empty(shape, np.float32))
        return buffers[0][:n_rows], buffers[1][:n_rows]
