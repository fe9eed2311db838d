"""Exact float32 activations at the price of a bfloat16 product, on processors that multiply bfloat16."""

from __future__ import annotations

from threading import local

import numpy as np
import torch

from skcompressae._core._arrays import FloatArray, IndexArray
from skcompressae._core._processor import MULTIPLIES_BFLOAT16
from skcompressae._core._screening import decide, error_bounds, room_for, survive
from skcompressae._core._threads import run_product_blocks
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
        self._n_asked = self._n_recomputed = 0
        # False once products were off by more than they can be, or so many latents are near ties that it does not pay
        self.pays = bool(max(bound.max() for bound in self._bounds) < _MAX_WEIGHT)

    def largest(self, x: FloatArray, n: int, block_rows: int, n_threads: int) -> tuple[IndexArray, FloatArray] | None:
        """Return indices and activations, both (n_rows, n), of the n largest magnitudes of each unit row.

        None where the bounds turn out not to hold, as with a library that does not sum in float32. All rows pass the
        product before any is computed again, so that the weights of either stage stay in the cache.
        """
        survivors = room_for(len(x), n, len(self._encoder))

        def propose(start: int, stop: int, n_threads: int) -> None:
            rows = x[start:stop]
            rounded_rows = to_bfloat16(rows)
            survive(
                self._multiply(rounded_rows, n_threads),
                rows,
                rounded_rows.to(torch.float32).numpy(),
                self._bias,
                self._bounds,
                n,
                survivors.of_rows(start, stop),
                n_threads=n_threads,
            )

        run_product_blocks(propose, len(x), block_rows, n_threads)
        indices, values, n_recomputed, n_violations = decide(
            x,
            self._encoder,
            self._bias,
            self._bounds,
            survivors,
            n,
            n_threads=n_threads,
            divisors=self._divisors,
        )
        self._n_asked += n * len(x)
        self._n_recomputed += n_recomputed
        if n_violations or self._n_recomputed > _MAX_RECOMPUTED * self._n_asked:
            self.pays = False
        return None if n_violations else (indices, values)

    def _multiply(self, rounded_rows: torch.Tensor, n_threads: int) -> FloatArray:
        """Return products, divided, valid until this thread's next call."""
        shape = (len(rounded_rows), len(self._encoder))
        buffers = getattr(self._buffers, "pair", None)
        if buffers is None or len(buffers[1]) < shape[0]:
            buffers = self._buffers.pair = (torch.empty(shape, dtype=torch.bfloat16), np.empty(shape, np.float32))
        rounded_products, products = buffers[0][: shape[0]], buffers[1][: shape[0]]
        before = torch.get_num_threads()
        torch.set_num_threads(n_threads)  # of this thread
        try:
            torch.from_numpy(products).copy_(torch.mm(rounded_rows, self._rounded.T, out=rounded_products))
        finally:
            torch.set_num_threads(before)
        if self._divisors is not None:
            products /= self._divisors
        return products
