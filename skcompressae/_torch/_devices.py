"""Choose and describe the device that trains and encodes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["matmul_precision", "resolve_device"]


def resolve_device(device: str) -> torch.device:
    """Turn a `device` parameter into a torch device that exists.

    Parameters
    ----------
    device : str
        "auto" takes CUDA, then MPS, then the CPU; anything else is a torch device string such as "cuda:1".

    Raises
    ------
    ValueError
        If the string is no torch device, or this machine has no such device.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        if torch.backends.mps.is_available():
            return torch.device("mps")
        return torch.device("cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device must be 'auto', 'cpu', 'cuda', 'cuda:N' or 'mps'; got {device!r}.") from error
    if resolved.type == "cuda":
        n_devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (resolved.index or 0) >= n_devices:
            raise ValueError(
                f"device={device!r} was asked for, but torch sees {n_devices} CUDA device(s) here. "
                "Use device='auto' or device='cpu'."
            )
    elif resolved.type == "mps":
        if not torch.backends.mps.is_available():
            raise ValueError("device='mps' was asked for, but torch has no MPS here. Use device='auto'.")
    elif resolved.type != "cpu":
        raise ValueError(f"device must be 'auto', 'cpu', 'cuda', 'cuda:N' or 'mps'; got {device!r}.")
    return resolved


@contextmanager
def matmul_precision(precision: str, device: torch.device) -> Iterator[None]:
    """Let float32 products on a CUDA device run as TF32 inside the block where `precision` says so."""
    if device.type != "cuda":
        yield
        return
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
