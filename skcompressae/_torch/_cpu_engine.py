"""The sparse autoencoder on the CPU: one product, then kernels over the active latents only.

The float32 product is NumPy's (its BLAS beat torch's on the machine timed by benchmarks/training_speed.py); the
bfloat16 product is torch's on processors that multiply bfloat16 natively. On others that takes several times as long as
float32. There the factors are rounded to 16-bit integers, closer than to bfloat16, where our kernel multiplies those
faster; else they are rounded to bfloat16 and multiplied in float32. With "bfloat16" the kernels read rounded rows, too.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from threading import local
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from skcompressae._core._adam import apply_adam
from skcompressae._core._arrays import FloatArray, IndexArray, WordArray, aligned_empty
from skcompressae._core._few_products import FEW_VECTORS, count_few_threads, multiply_few
from skcompressae._core._int16_products import MAX_COLUMNS, Int16Encoder
from skcompressae._core._neighborhood import neighborhood_gradients
from skcompressae._core._processor import MULTIPLIES_BFLOAT16, MULTIPLIES_INT16
from skcompressae._core._rows import unit_rows
from skcompressae._core._sparse_step import (
    BATCH_ROWS,
    count_leading,
    group_by_latent,
    reconstruction_gradients,
    sum_gradients,
)
from skcompressae._core._threads import effective_n_threads, row_blocks, run_blocks, run_product_blocks
from skcompressae._core._topk import top_k
from skcompressae._core._words import round_rows
from skcompressae._torch._weights import Moments, StepLosses, StepSettings, Weights, adam_rates

if TYPE_CHECKING:
    from skcompressae._torch._ranks import Ranks

__all__ = ["CpuEngine", "PreActivations", "to_bfloat16"]

# Bytes of one block of pre-activations. Small enough to be in the cache still when top-k reads it, large enough for
# the product to run at full speed: 256 to 1,024 rows of 4,096 are within 3 % of one another.
_BLOCK_BYTES = 8 * 2**20
# Rows below which rounding the encoder to bfloat16 takes longer than the faster product saves: 1 ms against 17 us a row
# at 4,096 x 768, see the profile in benchmarks/results.
_MIN_ROUNDED_ROWS = 64
# Rows of a batch that a thread copies at a time.
_COPIED_ROWS = 256


class PreActivations:
    """Compute blocks of ``x @ encoder.T`` into one reused buffer per thread; the bias is top-k's to add.

    Parameters
    ----------
    encoder : array of shape (n_components, n_features), float32 or float64
    precision : {"float32", "tf32", "bfloat16"}
        "bfloat16" rounds both factors to bfloat16, or more closely, and accumulates in float32 or exactly; "tf32" is
        float32 on a CPU.
    divisors : array of shape (n_components,), optional
        What products are divided by.
    """

    def __init__(self, encoder: FloatArray, precision: str = "float32", divisors: FloatArray | None = None) -> None:
        self.encoder = encoder
        self.block_rows = max(16, min(1024, _BLOCK_BYTES // (encoder.dtype.itemsize * encoder.shape[0])))
        self._divisors = divisors
        self._buffers = local()  # one for each thread
        self._is_rounded = precision == "bfloat16"
        self._rounded_encoder: Any = None

    def round_for(self, n_rows: int) -> None:
        """Round the encoder, where `precision` says so and the rows are many enough; to be called before products."""
        if self._is_rounded and self._rounded_encoder is None and n_rows >= _MIN_ROUNDED_ROWS:
            self._rounded_encoder = self._round()

    def refresh(self) -> None:
        """Round the encoder anew after its array has changed."""
        if self._rounded_encoder is not None:
            self._rounded_encoder = self._round()

    def _round(self) -> Any:
        encoder = self.encoder
        if MULTIPLIES_INT16 and encoder.dtype == np.float32 and encoder.shape[1] <= MAX_COLUMNS:
            return Int16Encoder(encoder, self._divisors, n_threads=effective_n_threads())
        return _rounded(encoder)

    def hold_torch_threads(self) -> AbstractContextManager[None]:
        """Where torch multiplies, hold the calling thread's number of threads while others do so."""
        if self._rounded_encoder is None or isinstance(self._rounded_encoder, Int16Encoder):
            return nullcontext()
        from skcompressae._torch._torch_threads import hold_torch_threads

        return hold_torch_threads()

    def __call__(self, x: FloatArray, n_threads: int) -> FloatArray:
        """Return products of shape (n_rows, n_components), valid until this thread's next call."""
        n_rows = x.shape[0]
        buffer = getattr(self._buffers, "block", None)
        if buffer is None or len(buffer) < n_rows:
            buffer = self._buffers.block = aligned_empty((n_rows, len(self.encoder)), self.encoder.dtype)
        block = buffer[:n_rows]
        if self._rounded_encoder is None and n_rows <= FEW_VECTORS:
            multiply_few(x, self.encoder, block, min(n_threads, count_few_threads(n_rows, self.encoder)))
        elif self._rounded_encoder is None:
            np.dot(x, self.encoder.T, out=block)
        elif isinstance(self._rounded_encoder, Int16Encoder):
            self._rounded_encoder.multiply(x, block, n_threads=n_threads)
            return block  # divided by now
        else:
            import torch

            from skcompressae._torch._devices import own_modes
            from skcompressae._torch._torch_threads import torch_threads

            with torch_threads(n_threads), own_modes(torch.device("cpu")):
                if MULTIPLIES_BFLOAT16:
                    torch.from_numpy(block).copy_(torch.mm(_rounded(x), self._rounded_encoder.T))
                else:
                    np.dot(_rounded(x).numpy(), self._rounded_encoder.numpy().T, out=block)
        if self._divisors is not None:
            block /= self._divisors
        return block


def to_bfloat16(array: FloatArray) -> Any:
    """Return a tensor of the array rounded to bfloat16."""
    import torch

    from skcompressae._torch._staging import tensor_of

    return tensor_of(array).to(torch.bfloat16)


def _rounded(array: FloatArray) -> Any:
    """Return a tensor of the array rounded to bfloat16, in the dtype to multiply it in."""
    import torch

    rounded = to_bfloat16(array)
    return rounded if MULTIPLIES_BFLOAT16 else rounded.to(torch.float64 if array.dtype == np.float64 else torch.float32)


class CpuEngine:
    """Train on the CPU.

    Parameters
    ----------
    rows : array of shape (n_samples, n_features)
        Training rows, of any scale; may be memory-mapped. Only the rows of a batch are ever copied.
    weights : Weights
        Updated in place.
    moments : Moments
        Updated in place.
    settings : StepSettings
    ranks : Ranks or None, default=None
        The processes that share every batch.
    """

    def __init__(
        self,
        rows: NDArray[Any],
        weights: Weights,
        moments: Moments,
        settings: StepSettings,
        ranks: Ranks | None = None,
    ) -> None:
        self._rows = rows
        self._weights = weights
        self._moments = moments
        self._settings = settings
        self._ranks = ranks
        self._n_threads = effective_n_threads()
        self._pre_activations: PreActivations | None = None
        encoder, bias, decoder = (aligned_empty(array.shape, array.dtype) for array in weights.arrays)
        self._gradients = encoder, bias, decoder

    def step(self, row_indices: NDArray[np.intp], learning_rate: float) -> StepLosses:
        """Take one optimiser step on a batch of rows."""
        for gradient in self._gradients:
            gradient.fill(0)
        losses = self._share(row_indices, self._gradients, self._settings.of_step(self._moments.n_steps))
        self._moments.n_steps += 1
        apply_adam(
            self._weights.arrays,
            self._gradients,
            self._moments.arrays,
            adam_rates(learning_rate, self._settings, self._moments.n_steps),
            keeps_mean_latent=self._settings.keeps_mean_latent,
            rests_idle=self._settings.rests_idle,
            n_threads=self._n_threads,
        )
        if self._pre_activations is not None:
            self._pre_activations.refresh()
        return losses

    def losses(self, row_indices: NDArray[np.intp]) -> StepLosses:
        """Evaluate the two cosine similarities on rows, without training."""
        return self._share(row_indices, None, self._settings)

    def current_weights(self) -> Weights:
        """Return the weights as they stand (not a copy)."""
        return self._weights

    def current_moments(self) -> Moments:
        """Return the optimiser's moments as they stand (not a copy)."""
        return self._moments

    def _share(
        self,
        row_indices: NDArray[np.intp],
        gradients: tuple[FloatArray, FloatArray, FloatArray] | None,
        settings: StepSettings,
    ) -> StepLosses:
        """Accumulate over the rows, or this rank's share of them, and then over the ranks."""
        mine = row_indices if self._ranks is None else self._ranks.share(row_indices)
        cosines, fired = self._accumulate(mine, gradients, settings)
        if self._ranks is not None:
            import torch

            share = len(mine) / len(row_indices)
            self._ranks.combine(torch.from_numpy(cosines), torch.from_numpy(fired), share, gradients or ())
        return StepLosses(float(cosines[0]), float(cosines[1]), fired)

    def _accumulate(
        self,
        row_indices: NDArray[np.intp],
        gradients: tuple[FloatArray, FloatArray, FloatArray] | None,
        settings: StepSettings,
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Return mean cosines and counts of use; add gradients, where asked for, over blocks of the batch."""
        weights = self._weights
        loss_weights = settings.loss_weights[0] / len(row_indices), settings.loss_weights[1] / len(row_indices)
        decoder = self._decoder(len(row_indices))
        totals = np.zeros(2)
        fired = np.zeros(weights.n_components, dtype=np.int64)
        for start, stop in row_blocks(len(row_indices), BATCH_ROWS):
            x = self._unit_rows(row_indices[start:stop])
            indices, values = self._activate(x, settings)
            latent_gradients, is_leading, x_gradients, cosines = reconstruction_gradients(
                x, decoder, indices, values, settings.k, loss_weights, n_threads=self._n_threads
            )
            totals += cosines.sum(axis=0, dtype=np.float64)
            count_leading(indices, is_leading, fired)
            if gradients is None:
                continue
            if start == 0 and settings.neighborhood_weight > 0 and len(x) > 1:
                weight = settings.neighborhood_weight * (1 - float(cosines[:, 0].mean(dtype=np.float64)))
                self._add_neighborhood(x, indices, values, is_leading, latent_gradients, weight, settings)
            sum_gradients(
                x,
                values,
                latent_gradients,
                is_leading,
                x_gradients,
                *group_by_latent(indices, weights.n_components),
                gradients,
                n_threads=self._n_threads,
            )
        return totals / len(row_indices), fired

    def _unit_rows(self, row_indices: NDArray[np.intp]) -> FloatArray:
        """Copy rows and divide each by its norm."""
        x = aligned_empty((len(row_indices), self._rows.shape[1]), np.float32)

        def copy(start: int, stop: int) -> None:
            unit_rows(self._rows[row_indices[start:stop]], out=x[start:stop])

        run_blocks(copy, len(x), _COPIED_ROWS, self._n_threads)
        return x

    def _decoder(self, n_rows: int) -> FloatArray | WordArray:
        """Return the decoder to gather rows of so large a batch from: rounded where that saves more than it costs."""
        decoder = self._weights.decoder
        if self._settings.precision != "bfloat16" or decoder.dtype != np.float32 or n_rows < _MIN_ROUNDED_ROWS:
            return decoder
        return round_rows(decoder, n_threads=self._n_threads)

    def _add_neighborhood(
        self,
        x: FloatArray,
        indices: IndexArray,
        values: FloatArray,
        is_leading: NDArray[np.bool_],
        latent_gradients: FloatArray,
        weight: float,
        settings: StepSettings,
    ) -> None:
        """Add the neighbourhood term of the batch's first rows to the gradients of their leading latents."""
        n_rows = min(settings.neighborhood_rows, len(x))
        leading = is_leading[:n_rows]
        shape = (n_rows, settings.k)
        gradients, _ = neighborhood_gradients(
            x[:n_rows],
            indices[:n_rows][leading].reshape(shape),
            values[:n_rows][leading].reshape(shape),
            self._weights.n_components,
            settings.neighborhood_temperatures,
            weight,
            n_threads=self._n_threads,
        )
        latent_gradients[:n_rows][leading] += gradients.reshape(-1)

    def _activate(self, x: FloatArray, settings: StepSettings) -> tuple[IndexArray, FloatArray]:
        weights = self._weights
        if self._pre_activations is None:
            self._pre_activations = PreActivations(weights.encoder, settings.precision)
        pre_activations = self._pre_activations
        pre_activations.round_for(len(x))
        indices = np.empty((len(x), settings.n_active), dtype=np.int32)
        values = np.empty((len(x), settings.n_active), dtype=x.dtype)

        def activate(start: int, stop: int, n_threads: int) -> None:
            block = pre_activations(x[start:stop], n_threads)
            indices[start:stop], values[start:stop] = top_k(
                block, settings.n_active, bias=weights.bias, n_threads=n_threads
            )

        with pre_activations.hold_torch_threads():
            run_product_blocks(activate, len(x), pre_activations.block_rows, self._n_threads)
        if not np.isfinite(values).all():
            raise ValueError("Training diverged: activations are no longer finite. Lower learning_rate.")
        return indices, values
