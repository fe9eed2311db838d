"""The sparse autoencoder in torch, for accelerators: products on dense blocks of masked activations.

On an accelerator a dense product costs about what the gathers do that it would save, so a block's codes stand in dense
(block, n_components) arrays that stay on the device; blocks bound their size. In float32, which runs outside the tensor
cores, four of the eight products give way to gathers where Triton is there. Gradients are written out by hand, from the
same formulas as the CPU kernels, and agree with them (a test compares the two step by step).

Invariant: a step asks the device for nothing, so the host queues the next ones meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from skcompressae._core._threads import row_blocks
from skcompressae._torch import _devices
from skcompressae._torch._device_choice import Device
from skcompressae._torch._products import Products
from skcompressae._torch._ranks import Ranks
from skcompressae._torch._selection import select_dense
from skcompressae._torch._staging import RowStream, recorded_event, upload
from skcompressae._torch._step_graph import StepGraphs
from skcompressae._torch._step_ops import cosine_gradients, neighborhood_gradient, write_slopes
from skcompressae._torch._weights import Losses, Moments, StepSettings, Weights

__all__ = ["DeviceLosses", "TorchEngine", "is_out_of_memory"]

# Bytes of one dense (block, n_components) array; a step holds about five of them.
_BLOCK_BYTES = 512 * 2**20
# Rows that are brought to the device at a time where all of them stay there.
_RESIDENT_BLOCK_ROWS = 32768
# Batches of up to so many rows are steps of a CUDA graph: three times faster at 2,048, where 100,000 gain nothing.
_GRAPH_ROWS = 16384
# Share of the free device memory that resident training rows may take.
_RESIDENT_SHARE = 0.5


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether torch ran out of device memory (MPS says so in a plain RuntimeError)."""
    return isinstance(error, torch.cuda.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "out of memory" in str(error).lower()
    )


class DeviceLosses:
    """What a step found (see :class:`Losses`), still on the device; whoever asks waits for it.

    Parameters
    ----------
    cosines : tensor of shape (2,)
    fired : int64 tensor of shape (n_components,)
    """

    def __init__(self, cosines: torch.Tensor, fired: torch.Tensor) -> None:
        self._cosines = cosines
        self._fired = fired
        self._arrived: torch.cuda.Event | None = None
        if cosines.is_cuda:
            self._cosines = torch.empty(2, dtype=cosines.dtype, device="cpu", pin_memory=True)
            self._cosines.copy_(cosines, non_blocking=True)
            self._arrived = recorded_event(cosines.device)

    def _known(self) -> tuple[float, float]:
        if self._arrived is not None:
            self._arrived.synchronize()
        cosine, cosine_wide = self._cosines.tolist()
        return cosine, cosine_wide

    @property
    def cosine(self) -> float:
        """Mean cosine similarity with k latents."""
        return self._known()[0]

    @property
    def cosine_wide(self) -> float:
        """Mean cosine similarity with n_active latents."""
        return self._known()[1]

    @property
    def fired(self) -> NDArray[np.int64]:
        """How often each latent was among the k."""
        return self._fired.cpu().numpy()

    def loss(self, weights: tuple[float, float]) -> float:
        """Weighted sum of the two cosine distances."""
        cosine, cosine_wide = self._known()
        return weights[0] * (1 - cosine) + weights[1] * (1 - cosine_wide)


def _take_out(rows: torch.Tensor, direction: torch.Tensor) -> None:
    """Subtract from rows, in place, their components along a unit vector."""
    rows.addcmul_((rows @ direction)[:, None], direction, value=-1)


class TorchEngine:
    """Train with torch on any device; takes and gives the same NumPy weights as the CPU engine.

    Parameters
    ----------
    rows : array of shape (n_samples, n_features)
        Training rows. Moved to a CUDA device once where they fit, else batch by batch.
    weights : Weights
    moments : Moments
    settings : StepSettings
    device : Device
    ranks : Ranks or None, default=None
        The processes that share every batch.
    captures : bool or None, default=None
        Record a step as a CUDA graph, and replay it; None does so where batches are small. It saves the host's
        launches, which there take longer than the work. Not with `ranks`.
    """

    def __init__(
        self,
        rows: NDArray[Any],
        weights: Weights,
        moments: Moments,
        settings: StepSettings,
        device: Device,
        ranks: Ranks | None = None,
        *,
        captures: bool | None = None,
    ) -> None:
        device = _devices.torch_device(device)
        self._device = device
        self._ranks = ranks
        self._settings = settings
        with _devices.own_modes(device):
            # torch shares memory with NumPy on the CPU, and the caller's arrays are not ours to write
            self._parameters = [torch.from_numpy(array).to(device, copy=True) for array in weights.arrays]
            self._moments = [torch.from_numpy(array).to(device, copy=True) for array in moments.arrays]
            self._gradients = [torch.zeros_like(parameter) for parameter in self._parameters]
            # An update makes no other array of this size, as memory that ends amid it would leave it half done.
            self._scratch = torch.empty_like(self._parameters[0])
        self._n_steps = moments.n_steps
        self._products = Products(settings.precision, device)
        self._block_rows = max(256, _BLOCK_BYTES // (self._products.dtype.itemsize * weights.n_components))
        self._gathers = settings.precision == "float32" and self._can_gather()
        if captures is None:
            captures = settings.batch_size <= _GRAPH_ROWS
        self._graphs = StepGraphs(device) if captures and ranks is None and device.type == "cuda" else None
        self._stream = RowStream(rows, device, min(self._block_rows, settings.batch_size))
        self._resident: torch.Tensor | None = None
        if device.type == "cuda":
            stream = RowStream(rows, device, _RESIDENT_BLOCK_ROWS)
            if 4 * rows.size + stream.staged_bytes <= _RESIDENT_SHARE * _devices.free_bytes(device):
                self._resident = self._bring(stream, rows.shape)

    def step(self, row_indices: NDArray[np.intp], learning_rate: float) -> Losses:
        """Take one optimiser step on a batch of rows."""
        with _devices.own_modes(self._device):
            settings = self._settings.of_step(self._n_steps)
            mine = row_indices if self._ranks is None else self._ranks.share(row_indices)
            correction = 1 - settings.beta1 ** (self._n_steps + 1), 1 - settings.beta2 ** (self._n_steps + 1)
            rates = upload(np.array([learning_rate / correction[0], correction[1] ** -0.5], np.float32), self._device)
            share = len(mine) / len(row_indices)
            given = self._blocks(mine), len(mine), rates, settings, share
            cosines, fired = self._take_step(*given) if self._graphs is None else self._graphs(self._take_step, *given)
            self._n_steps += 1
            return DeviceLosses(cosines, fired)

    def losses(self, row_indices: NDArray[np.intp]) -> Losses:
        """Evaluate rows without training."""
        mine = row_indices if self._ranks is None else self._ranks.share(row_indices)
        with _devices.own_modes(self._device):
            cosines, fired = self._accumulate(self._blocks(mine), len(mine), self._settings, has_gradients=False)
            if self._ranks is not None:
                self._ranks.combine(cosines, fired, len(mine) / len(row_indices), ())
            return DeviceLosses(cosines, fired)

    def current_weights(self) -> Weights:
        """Return a NumPy copy of the weights."""
        encoder, bias, decoder = (parameter.cpu().numpy().copy() for parameter in self._parameters)
        # Once more: an interrupt may have come between the update and its normalisation.
        norms = np.linalg.norm(decoder, axis=1, keepdims=True)
        np.divide(decoder, norms, out=decoder, where=norms > 0)
        return Weights(encoder, bias, decoder)

    def current_moments(self) -> Moments:
        """Return a NumPy copy of the moments."""
        encoder, bias, decoder = (moment.cpu().numpy().copy() for moment in self._moments)
        return Moments(encoder, bias, decoder, n_steps=self._n_steps)

    def _bring(self, stream: RowStream, shape: tuple[int, ...]) -> torch.Tensor:
        """Return all rows, scaled to unit norm, on the device."""
        with _devices.own_modes(self._device):
            resident = torch.empty(shape, dtype=torch.float32, device=self._device)
            for start, stop in row_blocks(len(resident), _RESIDENT_BLOCK_ROWS):
                resident[start:stop] = stream.fetch(slice(start, stop))[0]
        return resident

    def _can_gather(self) -> bool:
        if not _devices.uses_triton(self._parameters[2]):
            return False
        from skcompressae._torch._triton_step import can_hold_rows

        return can_hold_rows(self._parameters[2].shape[1])

    def _blocks(self, row_indices: NDArray[np.intp]) -> Iterator[torch.Tensor]:
        """Yield the unit rows of a batch on the device, in blocks of about one size."""
        n_rows = len(row_indices)
        n_blocks = -(-n_rows // min(self._block_rows, self._settings.batch_size))
        places = None if self._resident is None else upload(row_indices, self._device)
        for start, stop in row_blocks(n_rows, -(-n_rows // n_blocks)):
            if self._resident is not None and places is not None:
                yield self._resident[places[start:stop]]
            else:
                yield self._stream.fetch(row_indices[start:stop])[0]

    def _take_step(
        self, blocks: Iterable[torch.Tensor], n_rows: int, rates: torch.Tensor, settings: StepSettings, share: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Take one step on the blocks of a batch; return mean cosines and counts of use, on the device.

        `rates` are the learning rate and the inverse root of the second moments' correction, on the device too.
        """
        for gradient in self._gradients:
            gradient.zero_()
        cosines, fired = self._accumulate(blocks, n_rows, settings, has_gradients=True)
        if self._ranks is not None:
            self._ranks.combine(cosines, fired, share, self._gradients)
        decoder = self._parameters[2]
        self._gradients[2] -= (self._gradients[2] * decoder).sum(dim=1, keepdim=True) * decoder
        mean_direction = decoder[0].clone()
        if settings.keeps_mean_latent:
            for gradient in (self._gradients[0], self._gradients[2]):
                _take_out(gradient[1:], mean_direction)
        is_used = (self._gradients[1] != 0).float() if settings.rests_idle else torch.ones_like(self._gradients[1])
        for parameter, gradient, moments in zip(self._parameters, self._gradients, self._moments, strict=True):
            moves = is_used.reshape(-1, *[1] * (gradient.ndim - 1))
            moments[0].lerp_(gradient, (1 - settings.beta1) * moves)
            scratch = self._scratch.view(-1)[: gradient.numel()].view(gradient.shape)
            moments[1].lerp_(torch.mul(gradient, gradient, out=scratch), (1 - settings.beta2) * moves)
            denominator = torch.sqrt(moments[1], out=scratch).mul_(rates[1]).add_(settings.epsilon)
            parameter.sub_(torch.div(moments[0], denominator, out=scratch).mul_(rates[0] * moves))
        if settings.keeps_mean_latent:
            decoder[0] = mean_direction
            for parameter in (self._parameters[0], decoder):
                _take_out(parameter[1:], mean_direction)
        norm = decoder.norm(dim=1, keepdim=True)
        decoder.div_(torch.where(norm > 0, norm, torch.ones_like(norm)))
        return cosines, fired

    def _accumulate(
        self, blocks: Iterable[torch.Tensor], n_rows: int, settings: StepSettings, *, has_gradients: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean cosines and counts of use; add up gradients, where asked for, over blocks of the batch."""
        encoder, bias, decoder = self._parameters
        dtype = self._products.dtype
        factors = encoder.to(dtype), bias, decoder.to(dtype)
        wide = torch.float64 if _devices.has_float64(self._device) else torch.float32
        totals = torch.zeros(2, dtype=wide, device=self._device)
        fired = torch.zeros(len(bias), dtype=torch.int64, device=self._device)
        weights = settings.loss_weights[0] / n_rows, settings.loss_weights[1] / n_rows
        with torch.no_grad():
            for number, x in enumerate(blocks):
                has_neighborhood = number == 0 and settings.neighborhood_weight > 0 and n_rows > 1
                totals += self._add_block(
                    x, factors, fired, weights, settings, has_gradients=has_gradients, has_neighborhood=has_neighborhood
                ).sum(dim=0, dtype=wide)
        return totals / n_rows, fired

    def _add_block(
        self,
        x: torch.Tensor,
        factors: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        fired: torch.Tensor,
        weights: tuple[float, float],
        settings: StepSettings,
        *,
        has_gradients: bool,
        has_neighborhood: bool,
    ) -> torch.Tensor:
        """Add the gradients of a block of rows, where asked for; return the cosines, shape (n_rows, 2)."""
        encoder, bias, decoder = factors
        multiply, add, k = self._products.multiply, self._products.add, settings.k
        x_factor = x.to(encoder.dtype)
        selection = select_dense(multiply(x_factor, encoder.T), bias, k, settings.n_active, fired, encoder.dtype)
        indices, values, leading, others = selection
        if self._gathers:
            from skcompressae._torch._triton_step import gathered_gradients_triton

            found = gathered_gradients_triton(x, decoder, indices, values, k, weights)
            cosines, gradient, gradient_wide, slopes = found
        else:
            rest = multiply(others, decoder)
            cosines, gradient, gradient_wide = cosine_gradients(x, multiply(leading, decoder), rest, weights)
        if not has_gradients:
            return cosines
        add(self._gradients[2], leading.T, gradient)
        add(self._gradients[2], others.T, gradient_wide)
        del others
        pulls = None
        if has_neighborhood:
            n_rows = min(settings.neighborhood_rows, len(x))
            first = leading[:n_rows]
            pulls = neighborhood_gradient(x[:n_rows], first, settings.neighborhood_temperatures, self._products)
            pulls *= settings.neighborhood_weight * (1 - cosines[:, 0].mean())
        if self._gathers:
            latent = leading.scatter_(1, indices.long(), slopes.to(leading.dtype))
        else:
            slopes, slopes_wide = multiply(gradient, decoder.T), multiply(gradient_wide, decoder.T)
            latent = write_slopes(selection, slopes, slopes_wide, k)
        if pulls is not None:
            chosen = indices[: len(pulls), :k].long()
            latent[: len(pulls)].scatter_add_(1, chosen, pulls.gather(1, chosen).to(latent.dtype))
        add(self._gradients[0], latent.T, x_factor)
        self._gradients[1] += latent.sum(dim=0, dtype=torch.float32)
        return cosines
