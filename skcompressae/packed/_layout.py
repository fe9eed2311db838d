"""What packed codes are: sizes, parts and bytes."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from skcompressae._core._packing import decode_scales, index_bits_for
from skcompressae.packed._quantizer import ValueQuantizer
from skcompressae.packed._residual import ResidualQuantizer

__all__ = ["PackedLayoutMixin"]

Array: TypeAlias = NDArray[Any]


class PackedLayoutMixin:
    """Read-only properties of `PackedCodes`."""

    __slots__ = ()
    _k: int
    _n_components: int
    _quantizer: ValueQuantizer
    _residual_codes: NDArray[np.uint8] | None
    _residual_quantizer: ResidualQuantizer | None
    _rows: NDArray[np.uint8]
    _scales: Array

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def shape(self) -> tuple[int, int]:
        """(n, n_components)."""
        return len(self._rows), self._n_components

    @property
    def ndim(self) -> int:
        """Always 2."""
        return 2

    @property
    def dtype(self) -> np.dtype[np.float32]:
        """Dtype of the unpacked values."""
        return np.dtype(np.float32)

    @property
    def n_components(self) -> int:
        """Width of the code space."""
        return self._n_components

    @property
    def k(self) -> int:
        """Entries a row can hold."""
        return self._k

    @property
    def quantizer(self) -> ValueQuantizer:
        """The value quantiser."""
        return self._quantizer

    @property
    def value_bits(self) -> int:
        """Bits of a value with its sign."""
        return self._quantizer.value_bits

    @property
    def index_bits(self) -> int:
        """Bits of an index; tables looked up by index need ``2 ** index_bits`` entries."""
        return index_bits_for(self._n_components)

    @property
    def word_bits(self) -> int:
        """Bits of one entry."""
        return self.index_bits + self.value_bits

    @property
    def rows(self) -> NDArray[np.uint8]:
        """The bit-packed words, read-only uint8 of shape (n, row bytes)."""
        return self._rows

    @property
    def scales(self) -> NDArray[np.float32]:
        """The scale of every row as float32 (a copy if stored in 16 bits); 0 marks a zero row."""
        return decode_scales(self._scales)

    @property
    def signed_levels(self) -> NDArray[np.float32]:
        """Table of values before the scale: ``value = signed_levels[min(rank, last), word & mask] * scale``."""
        return self._quantizer.signed_levels

    @property
    def residual_codes(self) -> NDArray[np.uint8] | None:
        """Residual code per row, uint8 of shape (n, n_bytes), or None."""
        return self._residual_codes

    @property
    def residual_quantizer(self) -> ResidualQuantizer | None:
        """What the residual codes mean, or None."""
        return self._residual_quantizer

    @property
    def bytes_per_row(self) -> int:
        """Words, scale and residual code of one row in bytes."""
        residual = 0 if self._residual_codes is None else self._residual_codes.shape[1]
        return self._rows.shape[1] + self._scales.itemsize + residual

    @property
    def nbytes(self) -> int:
        """Bytes of the rows and of the codebooks."""
        residual = 0 if self._residual_quantizer is None else self._residual_quantizer.nbytes
        return len(self) * self.bytes_per_row + self._quantizer.levels.nbytes + residual

    def __repr__(self) -> str:
        residual = "" if self._residual_codes is None else f", residual_bytes={self._residual_codes.shape[1]}"
        return (
            f"PackedCodes(n={len(self)}, n_components={self._n_components}, k={self._k}, "
            f"value_bits={self.value_bits}{residual}, bytes_per_row={self.bytes_per_row})"
        )
