"""The parts of a training step on a device beside its products, in plain torch; on CUDA with Triton as one kernel each.

Nothing here asks the device for a number, so the host can queue steps ahead.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from skcompressae._core._neighborhood import MIN_SPREAD
from skcompressae._torch import _devices
from skcompressae._torch._products import Products
from skcompressae._torch._selection import Selection

__all__ = ["cosine_gradients", "neighborhood_gradient", "write_slopes"]


def cosine_gradients(
    x: torch.Tensor, near: torch.Tensor, rest: torch.Tensor, weights: Sequence[float]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Differentiate both cosine distances of unit rows from their reconstructions.

    Parameters
    ----------
    x : float32 tensor of shape (n_rows, n_features), unit (or zero) rows
    near, rest : tensors of the shape of `x`, of one dtype
        What the k leading latents decode to, and what the others add.
    weights : two floats
        Of the sums of the distances with k latents and with all.

    Returns
    -------
    cosines : float32 tensor of shape (n_rows, 2)
    gradient, gradient_wide : tensors of the shape and dtype of `near`
        With respect to the decoded row, as it reaches leading (both terms) and other latents.
    """
    if _devices.uses_triton(x):
        from skcompressae._torch._triton_step import can_hold_rows, cosine_gradients_triton

        if can_hold_rows(x.shape[1]):
            return cosine_gradients_triton(x, near, rest, weights)
    near_wide = near.float()
    cosine, gradient = _cosine_gradient(x, near_wide, weights[0])
    cosine_wide, gradient_wide = _cosine_gradient(x, near_wide + rest, weights[1])
    cosines = torch.stack([cosine, cosine_wide], dim=1)
    return cosines, (gradient + gradient_wide).to(near.dtype), gradient_wide.to(near.dtype)


def _cosine_gradient(x: torch.Tensor, x_hat: torch.Tensor, weight: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return cosines of unit rows x with x_hat, and the gradient of ``weight * sum(cosdist)``."""
    norm = x_hat.norm(dim=1, keepdim=True)
    safe = torch.where(norm > 0, norm, torch.ones_like(norm))
    cosine = (x * x_hat).sum(dim=1, keepdim=True) / safe
    gradient = -weight * (x / safe - cosine * x_hat / safe**2)
    return cosine[:, 0], torch.where(norm > 0, gradient, torch.zeros_like(gradient))


def write_slopes(selection: Selection, slopes: torch.Tensor, slopes_wide: torch.Tensor, k: int) -> torch.Tensor:
    """Take the gradients of the active latents out of two dense products; return them as dense rows.

    Parameters
    ----------
    selection : Selection
        Its `leading` is overwritten, and is what comes back: beside the active latents it holds zeros already.
    slopes, slopes_wide : tensors of shape (n_rows, n_components)
        Of which leading and other latents take theirs.
    k : int
    """
    latent = selection.leading
    if _devices.uses_triton(latent):
        from skcompressae._torch._triton_step import write_slopes_triton

        write_slopes_triton(selection.indices, slopes, slopes_wide, k, latent)
        return latent
    leading, others = selection.indices[:, :k], selection.indices[:, k:]
    latent.scatter_(1, leading, slopes.gather(1, leading))
    latent.scatter_(1, others, slopes_wide.gather(1, others))
    return latent


def neighborhood_gradient(
    x: torch.Tensor, latents: torch.Tensor, temperatures: tuple[float, float], products: Products
) -> torch.Tensor:
    """Return the gradient of the neighbourhood term of weight 1 with respect to dense latents, float32."""
    latents = latents.float()
    norms = latents.norm(dim=1, keepdim=True)
    safe = torch.where(norms > 0, norms, torch.ones_like(norms))
    unit = latents / safe
    cosines = products.multiply(x, x.T).float()
    n_rows = len(x)
    n_pairs = n_rows * (n_rows - 1)
    is_itself = torch.eye(n_rows, dtype=torch.bool, device=x.device)
    mean = cosines.masked_fill(is_itself, 0.0).sum() / n_pairs
    squares = (cosines - mean).masked_fill(is_itself, 0.0).square().sum() / n_pairs
    spread = squares.sqrt().clamp_min(MIN_SPREAD)
    wanted = cosines / (temperatures[0] * spread)
    found = products.multiply(unit, unit.T).float() / (temperatures[1] * spread)
    wanted.fill_diagonal_(-torch.inf)
    found.fill_diagonal_(-torch.inf)
    pairs = (found.softmax(dim=1) - wanted.softmax(dim=1)) / (temperatures[1] * spread * n_rows)
    gradient = products.multiply(pairs + pairs.T, unit).float()
    gradient = (gradient - (gradient * unit).sum(dim=1, keepdim=True) * unit) / safe
    return torch.where(norms > 0, gradient, torch.zeros_like(gradient))
