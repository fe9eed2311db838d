"""Matrix products on a device in the precision that was asked for."""

from __future__ import annotations

import torch

from skcompressae._torch._devices import matmul_precision

__all__ = ["Products"]

# torch.mm takes an out_dtype on CUDA from here on.
_HAS_WIDE_SUMS = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 8)


class Products:
    """Products of float32 matrices, or of matrices rounded to bfloat16, with sums in float32.

    Parameters
    ----------
    precision : {"float32", "tf32", "bfloat16"}
        "tf32" lets CUDA round float32 factors to TF32; elsewhere it is float32.
    device : torch.device
    """

    def __init__(self, precision: str, device: torch.device) -> None:
        self.dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
        self._precision = precision
        self._device = device
        self._sums_wide = self.dtype == torch.bfloat16 and device.type == "cuda" and _HAS_WIDE_SUMS

    def multiply(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """Return ``a @ b``, of :attr:`dtype`."""
        with matmul_precision(self._precision, self._device):
            return a.to(self.dtype) @ b.to(self.dtype)

    def add(self, total: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
        """Add ``a @ b`` to a float32 `total`."""
        a, b = a.to(self.dtype), b.to(self.dtype)
        with matmul_precision(self._precision, self._device):
            if self.dtype == torch.float32:
                total.addmm_(a, b)
            elif self._sums_wide:  # not rounded to bfloat16 once more on the way
                total.add_(torch.mm(a, b, out_dtype=torch.float32))
            else:
                total.add_(a @ b)
