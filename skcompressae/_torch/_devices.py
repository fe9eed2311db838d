"""Describe devices to torch, and set how it computes on them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import lru_cache
from importlib.util import find_spec
from threading import RLock
from typing import Any

import torch

from skcompressae._torch._device_choice import CPU, Device

__all__ = [
    "existing_device",
    "free_bytes",
    "has_float64",
    "matmul_precision",
    "own_modes",
    "torch_device",
    "uses_triton",
    "with_index",
]

# The oldest Triton that the kernels were compiled and interpreted with; it came with torch 2.7.
_MIN_TRITON = (3, 3)
# The oldest devices that the kernels compile for; torch 2.7 and 2.8 still came for older ones, too.
_MIN_CAPABILITY = (7, 0)
# torch has one setting of float32 products for all threads, and reads it as a product is launched.
_launching = RLock()


def existing_device(device: str) -> Device:
    """Do what :func:`resolve_device` does, by asking torch."""
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        if torch.backends.mps.is_available():
            return torch.device("mps")
        return CPU
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
    return CPU if resolved.type == "cpu" else resolved


def torch_device(device: Device) -> torch.device:
    """Return a device as torch knows it, the CPU included."""
    return device if isinstance(device, torch.device) else torch.device(device.type)


def with_index(device: Device) -> torch.device:
    """Return the device, as torch knows it, that "cuda" without a number means now."""
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return torch_device(device)


def free_bytes(device: torch.device) -> int:
    """Return how much memory of a CUDA device nothing uses."""
    return torch.cuda.mem_get_info(with_index(device))[0]  # torch before 2.5 takes no device without its number


@lru_cache(maxsize=1)
def _has_triton() -> bool:
    if torch.version.cuda is None or find_spec("triton") is None:  # ROCm's devices call themselves CUDA too
        return False
    import triton

    return tuple(map(int, triton.__version__.split(".")[:2])) >= _MIN_TRITON


@lru_cache(maxsize=64)
def _compiles_for(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) >= _MIN_CAPABILITY


def uses_triton(tensor: torch.Tensor) -> bool:
    """Tell whether the Triton kernels work on this tensor: on a CUDA device that they compile for, with Triton there.

    Else plain torch does the work. The one place that decides; the kernels' own limits are checked beside each.
    """
    return tensor.is_cuda and _has_triton() and _compiles_for(tensor.device)


def has_float64(device: torch.device) -> bool:
    """Tell whether a device computes in float64; Apple's do not."""
    return device.type != "mps"


@lru_cache(maxsize=8)
def _has_autocast(kind: str) -> bool:
    known = getattr(torch.amp.autocast_mode, "is_autocast_available", None)
    return kind in ("cpu", "cuda") if known is None else known(kind)  # torch before 2.4 has it there only


@contextmanager
def own_modes(device: torch.device) -> Iterator[None]:
    """Compute on a device inside the block as outside of the caller's autocast and inference mode.

    Autocast would round factors of products whose precision we choose ourselves, and what is made in inference mode
    could not be written to outside of it. Gradients stay on or off. Not to be held across a yield: both are the
    thread's.
    """
    has_gradients = torch.is_grad_enabled()
    without_autocast = torch.autocast(device.type, enabled=False) if _has_autocast(device.type) else nullcontext()
    # leaving inference mode turns gradients on
    with without_autocast, torch.inference_mode(False), torch.set_grad_enabled(has_gradients):
        yield


@contextmanager
def matmul_precision(precision: str, device: torch.device) -> Iterator[None]:
    """Run float32 products on a CUDA device as TF32 inside the block where `precision` says so, and only there.

    One thread at a time is in such a block, so it should hold little more than the launch. Nothing is written where the
    setting is the wanted one already.
    """
    if device.type != "cuda":
        yield
        return
    is_wanted = precision == "tf32"
    with _launching:
        if _rounds_to_tf32() == is_wanted:
            yield
            return
        settings = _Float32Settings()
        settings.write(is_wanted)
        try:
            yield
        finally:
            settings.restore()


def _rounds_to_tf32() -> bool:
    """Tell whether a float32 product that is launched on CUDA now rounds its factors to TF32."""
    newer = getattr(torch.backends.cuda.matmul, "fp32_precision", None)
    return torch.backends.cuda.matmul.allow_tf32 if newer is None else newer == "tf32"


class _Float32Settings:
    """torch's settings of float32 products, as the user left them.

    From torch 2.9 on there are two: an older one, and newer ones for CUDA and the CPU, which decide. Writing the older
    one writes the newer ones, not the other way round, and reading it fails where they contradict it.
    """

    def __init__(self) -> None:
        self._newer: list[tuple[Any, str]] = []
        backends: Any = torch.backends
        if hasattr(backends.cuda.matmul, "fp32_precision"):
            matmuls = backends.cuda.matmul, backends.mkldnn.matmul
            self._newer = [(matmul, matmul.fp32_precision) for matmul in matmuls]
        self._older: str | None = None
        with suppress(RuntimeError):
            self._older = torch.get_float32_matmul_precision()

    def write(self, rounds_to_tf32: bool) -> None:
        """Let products on CUDA round to TF32 or not."""
        if self._older is None:
            self._newer[0][0].fp32_precision = "tf32" if rounds_to_tf32 else "ieee"
        else:
            torch.backends.cuda.matmul.allow_tf32 = rounds_to_tf32

    def restore(self) -> None:
        """Put back what was there."""
        if self._older is not None:
            torch.set_float32_matmul_precision(self._older)  # "medium" is nothing that `allow_tf32` could say
        for matmul, precision in self._newer:
            matmul.fp32_precision = "none"  # follows `torch.backends.fp32_precision`
            if matmul.fp32_precision != precision:
                matmul.fp32_precision = precision
