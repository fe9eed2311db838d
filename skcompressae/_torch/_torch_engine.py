"""The sparse autoencoder in plain torch, for accelerators: products on dense blocks of masked activations.

On an accelerator a dense product costs less than the gathers it would save, so a block's codes are scattered into a
dense (block, n_components) array that stays on the device; blocks bound its size. Gradients are written out by hand,
from the same formulas as the CPU kernels, and agree with them (a test compares the two step by step).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from skcompressae._core._arrays import FloatArray, IndexArray
from skcompressae._core._neighborhood import MIN_SPREAD
from skcompressae._core._rows import unit_rows
from skcompressae._core._threads import row_blocks
from skcompressae._torch._devices import matmul_precision
from skcompressae._torch._ranks import Ranks
from skcompressae._torch._weights import Moments, StepLosses, StepSettings, Weights

__all__ = ["TorchEncoder", "TorchEngine", "encode_rows_torch", "is_out_of_memory"]

# Bytes of one dense (block, n_components) float32 array; a step holds about six of them.
_BLOCK_BYTES = 512 * 2**20
# Share of the free device memory that resident training rows may take.
_RESIDENT_SHARE = 0.5


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether torch ran out of device memory (MPS says so in a plain RuntimeError)."""
    return isinstance(error, torch.cuda.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "out of memory" in str(error).lower()
    )


def _largest(pre_activations: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return indices and signed values of the k entries of largest magnitude, largest first."""
    indices = pre_activations.abs().topk(k, dim=1, sorted=True).indices
    return indices, pre_activations.gather(1, indices)


def _product(a: torch.Tensor, b: torch.Tensor, precision: str) -> torch.Tensor:
    """Multiply float32 matrices, rounding the factors to bfloat16 first where `precision` says so."""
    if precision == "bfloat16":
        return (a.to(torch.bfloat16) @ b.to(torch.bfloat16)).to(a.dtype)
    return a @ b


def _cosine_gradient(x: torch.Tensor, x_hat: torch.Tensor, weight: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return cosines of unit rows x with x_hat, and the gradient of ``weight * sum(cosdist)``."""
    norm = x_hat.norm(dim=1, keepdim=True)
    safe = torch.where(norm > 0, norm, torch.ones_like(norm))
    cosine = (x * x_hat).sum(dim=1, keepdim=True) / safe
    gradient = -weight * (x / safe - cosine * x_hat / safe**2)
    return cosine[:, 0], torch.where(norm > 0, gradient, torch.zeros_like(gradient))


def _neighborhood_gradient(
    x: torch.Tensor, latents: torch.Tensor, temperatures: tuple[float, float], precision: str
) -> torch.Tensor:
    """Return the gradient of the neighbourhood term of weight 1 with respect to dense latents."""
    norms = latents.norm(dim=1, keepdim=True)
    safe = torch.where(norms > 0, norms, torch.ones_like(norms))
    unit = latents / safe
    cosines = _product(x, x.T, precision)
    spread = cosines[~torch.eye(len(x), dtype=torch.bool, device=x.device)].std(correction=0).clamp_min(MIN_SPREAD)
    wanted = cosines / (temperatures[0] * spread)
    found = _product(unit, unit.T, precision) / (temperatures[1] * spread)
    wanted.fill_diagonal_(-torch.inf)
    found.fill_diagonal_(-torch.inf)
    pairs = (found.softmax(dim=1) - wanted.softmax(dim=1)) / (temperatures[1] * spread * len(x))
    gradient = _product(pairs + pairs.T, unit, precision)
    gradient = (gradient - (gradient * unit).sum(dim=1, keepdim=True) * unit) / safe
    return torch.where(norms > 0, gradient, torch.zeros_like(gradient))


def encode_rows_torch(
    x: torch.Tensor, encoder: torch.Tensor, bias: torch.Tensor, k: int, precision: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Select the k latents of largest magnitude of unit rows on the device.

    Returns
    -------
    indices : int64 tensor of shape (n_rows, k), ascending in each row
    values : tensor of shape (n_rows, k)
    """
    with matmul_precision(precision, x.device):
        pre_activations = _product(x, encoder.T, precision) + bias
    indices, values = _largest(pre_activations, k)
    indices, order = indices.sort(dim=1)
    return indices, values.gather(1, order)


class TorchEngine:
    """Train with torch on any device; takes and gives the same NumPy weights as the CPU engine.

    Parameters
    ----------
    rows : array of shape (n_samples, n_features)
        Training rows. Moved to the device once where they fit, else batch by batch.
    weights : Weights
    moments : Moments
    settings : StepSettings
    device : torch.device
    ranks : Ranks or None, default=None
        The processes that share every batch.
    """

    def __init__(
        self,
        rows: NDArray[Any],
        weights: Weights,
        moments: Moments,
        settings: StepSettings,
        device: torch.device,
        ranks: Ranks | None = None,
    ) -> None:
        self._device = device
        self._ranks = ranks
        self._settings = settings
        self._rows = rows
        self._resident: torch.Tensor | None = None
        self._parameters = [torch.from_numpy(array).to(device) for array in weights.arrays]
        self._moments = [torch.from_numpy(array).to(device) for array in moments.arrays]
        if device.type == "cpu":  # torch shares memory with NumPy there; the caller's arrays are not ours to write
            self._parameters = [parameter.clone() for parameter in self._parameters]
            self._moments = [moment.clone() for moment in self._moments]
        self._n_steps = moments.n_steps
        self._block_rows = min(settings.batch_size, max(256, _BLOCK_BYTES // (4 * weights.n_components)))
        if device.type == "cuda":
            free_bytes, _ = torch.cuda.mem_get_info(device)
            if rows.shape[0] * rows.shape[1] * 4 <= _RESIDENT_SHARE * free_bytes:
                self._resident = torch.empty(rows.shape, dtype=torch.float32, device=device)
                for start, stop in row_blocks(len(rows), 65536):
                    self._resident[start:stop] = torch.from_numpy(unit_rows(rows[start:stop])[0]).to(device)

    def step(self, row_indices: NDArray[np.intp], learning_rate: float) -> StepLosses:
        """Take one optimiser step on a batch of rows."""
        decoder = self._parameters[2]
        gradients = [torch.zeros_like(parameter) for parameter in self._parameters]
        losses = self._share(row_indices, gradients, self._settings.of_step(self._n_steps))
        gradients[2] -= (gradients[2] * decoder).sum(dim=1, keepdim=True) * decoder
        settings = self._settings
        correction1 = 1 - settings.beta1 ** (self._n_steps + 1)
        correction2 = (1 - settings.beta2 ** (self._n_steps + 1)) ** 0.5
        mean_direction = decoder[0].clone()
        for parameter, gradient, moments in zip(self._parameters, gradients, self._moments, strict=True):
            moments[0].lerp_(gradient, 1 - settings.beta1)
            moments[1].mul_(settings.beta2).addcmul_(gradient, gradient, value=1 - settings.beta2)
            denominator = (moments[1].sqrt() / correction2).add_(settings.epsilon)
            parameter.addcdiv_(moments[0], denominator, value=-learning_rate / correction1)
        self._n_steps += 1
        if settings.keeps_mean_latent:
            decoder -= torch.outer(decoder @ mean_direction, mean_direction)
            decoder[0] = mean_direction
        norm = decoder.norm(dim=1, keepdim=True)
        decoder.div_(torch.where(norm > 0, norm, torch.ones_like(norm)))
        return losses

    def losses(self, row_indices: NDArray[np.intp]) -> StepLosses:
        """Evaluate rows without training."""
        return self._share(row_indices, None, self._settings)

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

    def _fetch(self, row_indices: NDArray[np.intp]) -> torch.Tensor:
        if self._resident is not None:
            return self._resident[torch.from_numpy(row_indices).to(self._device)]
        unit = torch.from_numpy(unit_rows(self._rows[row_indices])[0])
        if self._device.type == "cuda":
            return unit.pin_memory().to(self._device, non_blocking=True)
        return unit.to(self._device)

    def _share(
        self, row_indices: NDArray[np.intp], gradients: list[torch.Tensor] | None, settings: StepSettings
    ) -> StepLosses:
        """Accumulate over the rows, or this rank's share of them, and then over the ranks."""
        if self._ranks is None:
            return self._accumulate(row_indices, gradients, settings)
        mine = self._ranks.share(row_indices)
        losses = self._accumulate(mine, gradients, settings)
        return self._ranks.combine(losses, len(mine), len(row_indices), gradients or ())

    def _accumulate(
        self, row_indices: NDArray[np.intp], gradients: list[torch.Tensor] | None, settings: StepSettings
    ) -> StepLosses:
        """Sum cosines and, where asked for, gradients over blocks of the batch."""
        encoder, bias, decoder = self._parameters
        n_components = decoder.shape[0]
        totals = torch.zeros(2, dtype=torch.float64 if self._device.type != "mps" else torch.float32)
        totals = totals.to(self._device)
        fired = torch.zeros(n_components, dtype=torch.int64, device=self._device)
        k, precision = settings.k, settings.precision
        weight, weight_wide = (w / len(row_indices) for w in settings.loss_weights)
        with torch.no_grad(), matmul_precision(precision, self._device):
            for start, stop in row_blocks(len(row_indices), self._block_rows):
                x = self._fetch(row_indices[start:stop])
                indices, values = _largest(_product(x, encoder.T, precision) + bias, settings.n_active)
                leading = torch.zeros((len(x), n_components), device=self._device)
                others = torch.zeros_like(leading)
                leading.scatter_(1, indices[:, :k], values[:, :k])
                others.scatter_(1, indices[:, k:], values[:, k:])
                x_hat = _product(leading, decoder, precision)
                cosines, gradient = _cosine_gradient(x, x_hat, weight)
                x_hat = x_hat + _product(others, decoder, precision)
                cosines_wide, gradient_wide = _cosine_gradient(x, x_hat, weight_wide)
                totals[0] += cosines.sum()
                totals[1] += cosines_wide.sum()
                fired += torch.bincount(indices[:, :k].reshape(-1), minlength=n_components)
                if gradients is None:
                    continue
                gradient = gradient + gradient_wide
                gradients[2] += _product(leading.T, gradient, precision)
                gradients[2] += _product(others.T, gradient_wide, precision)
                latent = torch.zeros_like(leading)
                slopes = _product(gradient, decoder.T, precision).gather(1, indices[:, :k])
                latent.scatter_(1, indices[:, :k], slopes)
                slopes = _product(gradient_wide, decoder.T, precision).gather(1, indices[:, k:])
                latent.scatter_(1, indices[:, k:], slopes)
                if start == 0 and settings.neighborhood_weight > 0 and len(row_indices) > 1:
                    n_rows = min(settings.neighborhood_rows, len(x))
                    pulls = _neighborhood_gradient(
                        x[:n_rows], leading[:n_rows], settings.neighborhood_temperatures, precision
                    )
                    chosen = indices[:n_rows, :k]
                    pulls = settings.neighborhood_weight * (1 - cosines.mean()) * pulls.gather(1, chosen)
                    latent[:n_rows].scatter_add_(1, chosen, pulls)
                gradients[0] += _product(latent.T, x, precision)
                gradients[1] += latent.sum(dim=0)
        cosine, cosine_wide = (totals / len(row_indices)).tolist()
        return StepLosses(cosine, cosine_wide, fired=fired.cpu().numpy())


class TorchEncoder:
    """Encode and decode blocks of rows on a device that is not the CPU.

    Parameters
    ----------
    weights : Weights
    device : torch.device
    precision : {"float32", "tf32", "bfloat16"}
    """

    def __init__(self, weights: Weights, device: torch.device, precision: str) -> None:
        # Copied rather than shared: weights that joblib memory-maps are read-only, which torch warns about.
        self._parameters = [torch.tensor(array, device=device) for array in weights.arrays]
        self._device = device
        self._precision = precision
        self.block_rows = max(256, _BLOCK_BYTES // (4 * weights.n_components))

    def top_k(self, x: FloatArray, k: int) -> tuple[IndexArray, FloatArray]:
        """Select k latents of each unit row; see :func:`encode_rows_torch`."""
        encoder, bias, _ = self._parameters
        indices, values = encode_rows_torch(torch.from_numpy(x).to(self._device), encoder, bias, k, self._precision)
        return indices.to(torch.int32).cpu().numpy(), values.cpu().numpy()

    def decode(self, latents: FloatArray) -> FloatArray:
        """Multiply a dense block of codes by the decoder, in the precision of the codes."""
        block = torch.from_numpy(latents)
        decoder = self._parameters[2].to(block.dtype)
        return (block.to(decoder.device) @ decoder).cpu().numpy()
