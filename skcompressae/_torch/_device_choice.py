"""Choose the device that trains and encodes; torch is asked only where there may be another one than the CPU.

Importing torch takes seconds and 180 MB, which a process that encodes on a CPU need not spend.
"""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Protocol

__all__ = ["CPU", "Device", "finds_cuda", "may_have_accelerator", "resolve_device", "torch_version"]

# What drivers of CUDA (on Linux, and on Windows' own Linux) and of ROCm make; a glob each.
_DEVICE_FILES = "nvidia*", "nvhost*", "nvgpu*", "dxg", "kfd"


class Device(Protocol):
    """What a ``torch.device`` has, and :data:`CPU`: its kind, and its number where it has one."""

    @property
    def type(self) -> str:
        """Its kind: "cpu", "cuda" or "mps"."""

    @property
    def index(self) -> int | None:
        """Its number, if that was said."""


@dataclass(frozen=True)
class _Cpu:
    """The CPU, without torch."""

    type: str = "cpu"
    index: int | None = None

    def __str__(self) -> str:
        return self.type


CPU = _Cpu()


def torch_version() -> str:
    """Return the version of torch, which is loaded for it only where it was installed without metadata."""
    try:
        return version("torch")
    except PackageNotFoundError:  # made from source, perhaps
        import torch

        return str(torch.__version__)


@lru_cache(maxsize=1)
def may_have_accelerator() -> bool:
    """Tell whether torch might find another device than the CPU; False only where it certainly would not.

    That is where it was made for CPUs only, or on Linux, where no driver is to be seen.
    """
    if sys.platform == "darwin":
        return True
    try:
        if version("torch").endswith("+cpu"):
            return False
    except PackageNotFoundError:  # made from source, perhaps
        pass
    if sys.platform != "linux":
        return True
    if any(next(Path("/dev").glob(pattern), None) for pattern in _DEVICE_FILES):
        return True
    try:  # the driver may make its files only when it is first used
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def resolve_device(device: str) -> Device:
    """Turn a `device` parameter into a device that exists.

    Parameters
    ----------
    device : str
        "auto" takes CUDA, then MPS, then the CPU; anything else is a torch device string such as "cuda:1".

    Returns
    -------
    Device
        :data:`CPU`, or a ``torch.device`` of another kind.

    Raises
    ------
    ValueError
        If the string is no torch device, or this machine has no such device.
    """
    if device == "cpu" or (device == "auto" and not may_have_accelerator()):
        return CPU
    from skcompressae._torch._devices import existing_device

    return existing_device(device)


def finds_cuda() -> bool:
    """Tell whether torch finds a CUDA device."""
    if not may_have_accelerator():
        return False
    import torch

    return torch.cuda.is_available()
