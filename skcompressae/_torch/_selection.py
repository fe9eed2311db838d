"""Select the latents of largest magnitude on a device, in plain torch; on CUDA with Triton as one kernel.

The plain form takes torch's top-k, which leaves open which of equals it returns. The kernel (`_triton_selection.py`)
returns the lowest indices, as the CPU's top-k does.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from skcompressae._torch import _devices

__all__ = ["Selection", "select", "select_dense"]


class Selection(NamedTuple):
    """Selected latents: the k leading ones of each row first, both groups ascending; values in float32.

    `leading` and `others` hold the values of the two groups in dense rows, (n_rows, n_components), for products.
    """

    indices: torch.Tensor
    values: torch.Tensor
    leading: torch.Tensor
    others: torch.Tensor


def select(block: torch.Tensor, bias: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Select the k entries of largest magnitude of each row of ``block + bias``.

    Parameters
    ----------
    block : tensor of shape (n_rows, n_components), float32 or bfloat16
    bias : float32 tensor of shape (n_components,)
    k : int in [1, n_components]

    Returns
    -------
    indices : integer tensor of shape (n_rows, k), ascending in each row
    values : float32 tensor of shape (n_rows, k), with their signs
    """
    if _devices.uses_triton(block):
        from skcompressae._torch._triton_selection import can_select, select_triton

        if can_select(block.shape[1], k):
            return select_triton(block, bias, k, k)
    return _top_k(block.float() + bias, k)


def select_dense(
    block: torch.Tensor, bias: torch.Tensor, k: int, n_active: int, fired: torch.Tensor, dtype: torch.dtype
) -> Selection:
    """Select the n_active entries of largest magnitude of each row of ``block + bias``, the k largest apart.

    Parameters
    ----------
    block, bias
        As :func:`select` takes them.
    k, n_active : int
        ``1 <= k <= n_active <= n_components``.
    fired : int64 tensor of shape (n_components,)
        Gains, for each latent, how often it is among the k.
    dtype : torch.dtype
        Of the dense rows.
    """
    if _devices.uses_triton(block):
        from skcompressae._torch._triton_selection import can_select, can_select_dense, select_triton, spread_triton

        if can_select_dense(block.shape[1]):
            return Selection(*spread_triton(block, bias, k, n_active, fired, dtype))
        if can_select(block.shape[1], n_active):
            indices, values = select_triton(block, bias, k, n_active)
            return _spread(indices.long(), values, k, block.shape[1], fired, dtype)
    pre_activations = block.float() + bias
    indices = pre_activations.abs().topk(n_active, dim=1, sorted=True).indices
    indices = torch.cat([indices[:, :k].sort(dim=1).values, indices[:, k:].sort(dim=1).values], dim=1)
    return _spread(indices, pre_activations.gather(1, indices), k, block.shape[1], fired, dtype)


def _top_k(pre_activations: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    indices = pre_activations.abs().topk(k, dim=1, sorted=False).indices.sort(dim=1).values
    return indices, pre_activations.gather(1, indices)


def _spread(
    indices: torch.Tensor, values: torch.Tensor, k: int, n_components: int, fired: torch.Tensor, dtype: torch.dtype
) -> Selection:
    leading = torch.zeros((len(indices), n_components), dtype=dtype, device=indices.device)
    others = torch.zeros_like(leading)
    leading.scatter_(1, indices[:, :k], values[:, :k].to(dtype))
    others.scatter_(1, indices[:, k:], values[:, k:].to(dtype))
    chosen = indices[:, :k].reshape(-1)
    # Not bincount: it asks the device for the largest index, and waits.
    fired.scatter_add_(0, chosen, torch.ones_like(chosen))
    return Selection(indices, values, leading, others)
