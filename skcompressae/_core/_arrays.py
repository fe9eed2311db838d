"""The array types that the pure layer passes around, and arrays that begin where a line of the cache does."""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["FloatArray", "IndexArray", "WordArray", "aligned", "aligned_empty"]

FloatArray: TypeAlias = NDArray[np.floating[Any]]
IndexArray: TypeAlias = NDArray[np.int32]
WordArray: TypeAlias = NDArray[np.uint32]  # two columns rounded to bfloat16 in each, see `_words.py`

_LINE_BYTES = 64
# Smaller arrays are read too fast for it to matter, and some are made for every row.
_MIN_BYTES = 2**14


def aligned_empty(shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """Allocate an array that begins with a line of the cache, as do its rows that are whole lines; or a small one.

    NumPy's large arrays begin 16 bytes into one, so that every other vector of AVX2 is of two lines, and every one of
    AVX-512 (docs/research_notes_speed.md).
    """
    n_bytes = math.prod(shape) * np.dtype(dtype).itemsize
    if n_bytes < _MIN_BYTES:
        return np.empty(shape, dtype=dtype)
    memory = np.empty(n_bytes + _LINE_BYTES, dtype=np.uint8)
    start = -_address(memory) % _LINE_BYTES
    return memory[start : start + n_bytes].view(dtype).reshape(shape)


def aligned(array: NDArray[Any]) -> NDArray[Any]:
    """Return a C-contiguous array that is small or begins with a line of the cache, else a copy that does."""
    if array.flags.c_contiguous and (array.nbytes < _MIN_BYTES or _address(array) % _LINE_BYTES == 0):
        return array
    copied = aligned_empty(array.shape, array.dtype)
    copied[...] = array
    return copied


def _address(array: NDArray[Any]) -> int:
    return int(array.__array_interface__["data"][0])
