"""State dicts of torch that others wrote: what reading damaged ones raises, and their tensors as checked arrays."""

from __future__ import annotations

import os
import pickle
import struct
import zipfile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skcompressae.exceptions import ModelFormatError

__all__ = ["DAMAGED_STATE_ERRORS", "reason_of", "state_array"]

# Neither torch nor zipfile documents its errors; damaged files were seen to raise each of these.
DAMAGED_STATE_ERRORS = (
    zipfile.BadZipFile, pickle.UnpicklingError, RuntimeError, EOFError, ValueError, TypeError, LookupError,
    AttributeError, AssertionError, OverflowError, MemoryError, ImportError, struct.error,
)  # fmt: skip


def reason_of(error: BaseException) -> str:
    """Return the first line of what a reader raised, but for PyTorch, which recommends to let the file execute code."""
    if isinstance(error, pickle.UnpicklingError | RuntimeError):
        return "PyTorch refuses it"
    return (str(error).splitlines() or [repr(error)])[0]


def state_array(path: str | os.PathLike[str], key: str, tensor: Any) -> NDArray[np.float32]:
    """Return an entry of a state dict as a finite float32 array of its own memory.

    Raises
    ------
    ModelFormatError
        If it is no dense floating point tensor of finite numbers, all of them in the file.
    """
    import torch

    if not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided or not tensor.is_floating_point():
        kind = f"a tensor of {tensor.dtype}" if isinstance(tensor, torch.Tensor) else f"a {type(tensor).__name__}"
        raise ModelFormatError(f"{path}: {key} must be a dense tensor of floating point numbers; got {kind}.")
    # A view that repeats few numbers would become as large as it says it is.
    if tensor.device.type != "cpu" or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise ModelFormatError(f"{path}: {key} of shape {tuple(tensor.shape)} does not hold as many numbers.")
    array = tensor.detach().to(torch.float32).numpy().copy(order="C")
    if not np.isfinite(array).all():
        raise ModelFormatError(f"{path}: {key} holds NaN or infinity (or numbers beyond float32).")
    return array
