"""Dense rows in .npy files: checked before anything is allocated, read block by block.

Blocks are read, not mapped, so that memory is bounded whatever the size of the file and a file that is cut short while
it is read is an error instead of a SIGBUS. `map_rows` maps the file for what needs rows in any order.
"""

from __future__ import annotations

import math
import os
import tokenize
import warnings
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from skcompressae._cli._errors import CommandError

__all__ = ["NpyHeader", "NpyRows", "read_npy_header"]

# What a damaged header makes NumPy's parser raise, beside the ValueError that it documents.
_HEADER_ERRORS = (
    ValueError,
    TypeError,
    SyntaxError,
    OverflowError,
    RecursionError,
    MemoryError,
    EOFError,
    KeyError,
    AttributeError,
    IndexError,
    tokenize.TokenError,
)


class NpyHeader:
    """Shape, order and dtype of an array in .npy format, and where its data begins."""

    def __init__(self, shape: tuple[int, ...], is_fortran: bool, dtype: np.dtype[Any], offset: int) -> None:
        self.shape = shape
        self.is_fortran = is_fortran
        self.dtype = dtype
        self.offset = offset

    @property
    def nbytes(self) -> int:
        """Bytes of the data, exact: Python's integers do not overflow."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_npy_header(stream: Any, name: str) -> NpyHeader:
    """Read the header at the start of a stream.

    Raises
    ------
    CommandError
        If it is damaged, or the array is of Python objects or of several fields.
    """
    try:
        with warnings.catch_warnings():
            # what NumPy and Python say about odd headers; they are refused or read
            warnings.simplefilter("ignore")
            version = npy_format.read_magic(stream)
            if version == (1, 0):
                shape, is_fortran, dtype = npy_format.read_array_header_1_0(stream)
                offset = 10
            elif version == (2, 0):
                shape, is_fortran, dtype = npy_format.read_array_header_2_0(stream)
                offset = 12
            else:
                raise ValueError(f"format version {version} is for arrays of several fields")
    except _HEADER_ERRORS as error:
        first_line = str(error).strip().split("\n", 1)[0]
        raise CommandError(f"{name} has a damaged header: {first_line or type(error).__name__}") from error
    if dtype.hasobject or dtype.fields is not None or dtype.subdtype is not None or dtype.itemsize == 0:
        raise CommandError(f"{name} must hold plain numbers; its dtype is {dtype}")
    if any(type(size) is not int or not 0 <= size < 2**62 for size in shape):
        raise CommandError(f"{name} has a damaged header: the shape is {shape}")
    return NpyHeader(shape, bool(is_fortran), dtype, offset)


class NpyRows:
    """Rows of a two-dimensional .npy file.

    Parameters
    ----------
    path : path-like

    Raises
    ------
    CommandError
        If the file is damaged, or not a matrix of real numbers.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.name = str(path)
        with self.path.open("rb") as stream:
            header = read_npy_header(stream, self.name)
            self._offset = stream.tell()
            size = os.fstat(stream.fileno()).st_size
        if len(header.shape) != 2 or 0 in header.shape:
            raise CommandError(f"{self.name} must hold a matrix, one row per embedding; its shape is {header.shape}")
        if header.dtype.kind not in "fiu" or header.dtype.itemsize > 8:
            raise CommandError(
                f"{self.name} must hold floats of 16, 32 or 64 bits or integers; it holds {header.dtype}"
            )
        if size != self._offset + header.nbytes:
            raise CommandError(
                f"{self.name} has {size} bytes where its header announces {self._offset + header.nbytes}; it is "
                "truncated or damaged"
            )
        self._header = header
        self.n_rows, self.n_features = header.shape
        self.dtype = header.dtype.newbyteorder("=")

    def map_rows(self) -> NDArray[Any]:
        """Return the whole array, mapped and read-only."""
        order: Any = "F" if self._header.is_fortran else "C"
        return np.memmap(
            self.path, dtype=self._header.dtype, mode="r", offset=self._offset, shape=self._header.shape, order=order
        )

    def take(self, rows: NDArray[np.intp]) -> NDArray[Any]:
        """Return the chosen rows."""
        if self._header.is_fortran:
            return np.ascontiguousarray(self.map_rows()[rows], dtype=self.dtype)
        taken = np.empty((len(rows), self.n_features), self._header.dtype)
        with self.path.open("rb", buffering=0) as stream:
            for i, row in enumerate(rows.tolist()):
                stream.seek(self._offset + row * self._row_bytes)
                _read_into(stream, taken[i], self.name)
        return taken.astype(self.dtype, copy=False)

    @property
    def _row_bytes(self) -> int:
        return self.n_features * self._header.dtype.itemsize

    def blocks(self, start: int, n_block_rows: int) -> Iterator[NDArray[Any]]:
        """Yield consecutive rows from `start` on, at most `n_block_rows` at a time."""
        if self._header.is_fortran:
            # its rows are scattered over the file: only a map reaches them
            mapped = self.map_rows()
            for first in range(start, self.n_rows, n_block_rows):
                yield np.ascontiguousarray(mapped[first : first + n_block_rows], dtype=self.dtype)
            return
        with self.path.open("rb", buffering=0) as stream:
            stream.seek(self._offset + start * self._row_bytes)
            for first in range(start, self.n_rows, n_block_rows):
                block = np.empty((min(n_block_rows, self.n_rows - first), self.n_features), self._header.dtype)
                _read_into(stream, block, self.name)
                yield block.astype(self.dtype, copy=False)


def _read_into(stream: FileIO, block: NDArray[Any], name: str) -> None:
    view = block.reshape(-1).view(np.uint8).data
    while view:
        n_read = stream.readinto(view)
        if not n_read:
            raise CommandError(f"{name} ended while it was read")
        view = view[n_read:]
