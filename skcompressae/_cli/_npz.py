"""Sparse codes in .npz files as SciPy writes them: streamed, so that neither side holds the matrix."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import scipy.sparse as sp
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from skcompressae._cli._errors import CommandError, is_of_the_system
from skcompressae._cli._formats import ZIP_ERRORS
from skcompressae._cli._npy import NpyHeader, read_npy_header

__all__ = ["NpzCodes", "write_npz"]

# Deflate cannot make data smaller than this; an entry that claims more lies about its size.
_LARGEST_RATIO = 1032
# Nonzeros of a block: 32 MiB of values and indices.
_BLOCK_NONZEROS = 1 << 22
# The member that says which model made the codes, JSON; SciPy passes it over.
_RECORD, _MAX_RECORD_BYTES = "model", 1 << 16
_EPOCH = (1980, 1, 1, 0, 0, 0)


class _Member:
    """An array inside the archive, read from front to back."""

    def __init__(self, archive: zipfile.ZipFile, member: str, name: str) -> None:
        self.name = f"{name} ({member})"
        try:
            info = archive.getinfo(member + ".npy")
        except KeyError:
            raise CommandError(
                f"{name} holds no sparse matrix as scipy.sparse.save_npz writes it: {member} is missing"
            ) from None
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise CommandError(f"{self.name} is compressed by a method that NumPy never writes")
        largest = _LARGEST_RATIO * info.compress_size + 1024
        if info.file_size > (largest if info.compress_type == zipfile.ZIP_DEFLATED else info.compress_size):
            raise CommandError(f"{self.name} cannot be as large as it claims ({info.file_size} bytes); it is damaged")
        self._stream = archive.open(info)
        self.header: NpyHeader = read_npy_header(self._stream, self.name)
        self._left = self.header.nbytes
        if self._stream.tell() + self._left != info.file_size:
            raise CommandError(f"{self.name} has a header that does not fit its {info.file_size} bytes; it is damaged")

    def read(self, n_items: int) -> NDArray[Any]:
        """Return the next items; the last ones only after the checksum of them all has been compared."""
        nbytes = n_items * self.header.dtype.itemsize
        data = self._stream.read(nbytes) if nbytes else b""
        self._left -= nbytes
        # reading on at the end is what makes zipfile compare the checksum
        if len(data) != nbytes or (self._left == 0 and self._stream.read(1)):
            raise CommandError(f"{self.name} ended while it was read, or goes on beyond its end; it is damaged")
        array = np.frombuffer(data, self.header.dtype)
        return array.astype(self.header.dtype.newbyteorder("="), copy=False)

    def read_all(self, limit: int) -> NDArray[Any]:
        if self.header.nbytes > limit or self.header.is_fortran:
            raise CommandError(f"{self.name} has the unexpected shape {self.header.shape}")
        return self.read(self.header.nbytes // self.header.dtype.itemsize).reshape(self.header.shape)


class NpzCodes:
    """Codes in a CSR matrix that `scipy.sparse.save_npz` wrote.

    Parameters
    ----------
    path : path-like

    Raises
    ------
    CommandError
        If the file is damaged, or holds something else.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.name = str(path)
        with self._opened() as archive:
            layout = _Member(archive, "format", self.name).read_all(64)
            if layout.dtype.kind not in "SU" or layout.size != 1:
                raise CommandError(f"{self.name} holds no format of a sparse matrix; it is damaged")
            text = layout.item()
            text = text.decode("latin-1") if isinstance(text, bytes) else text
            if text != "csr":
                raise CommandError(f"{self.name} holds a sparse matrix in format {text!r}; save it as CSR: X.tocsr()")
            shape = _Member(archive, "shape", self.name).read_all(64)
            if shape.shape != (2,) or shape.dtype.kind not in "iu" or not (0 <= shape.min() <= shape.max() < 2**31):
                raise CommandError(f"{self.name} has the shape {shape.tolist()}; rows and columns must be below 2**31")
            self.n_rows, self.n_components = (int(size) for size in shape)
            if self.n_rows == 0 or self.n_components == 0:
                raise CommandError(f"{self.name} is empty: its shape is {(self.n_rows, self.n_components)}")
            self.meta = self._record(archive)
            sizes = {}
            for member, kinds in (("indptr", "iu"), ("indices", "iu"), ("data", "fiu")):
                header = _Member(archive, member, self.name).header
                if len(header.shape) != 1 or header.dtype.kind not in kinds or header.dtype.itemsize > 8:
                    raise CommandError(f"{self.name}: {member} has shape {header.shape} and dtype {header.dtype}")
                sizes[member] = header.shape[0]
                if member == "data":
                    self.dtype = np.dtype(np.float64 if header.dtype != np.float32 else np.float32)
        self.nnz = sizes["data"]
        if sizes["indptr"] != self.n_rows + 1 or sizes["indices"] != self.nnz:
            raise CommandError(f"{self.name} has arrays of lengths {sizes} for {self.n_rows} rows; it is damaged")

    def _record(self, archive: zipfile.ZipFile) -> dict[str, Any]:
        """Return what the file says about the model that made its codes; nothing where it says nothing."""
        if f"{_RECORD}.npy" not in archive.namelist():
            return {}
        text = _Member(archive, _RECORD, self.name).read_all(_MAX_RECORD_BYTES)
        try:
            record = json.loads(text.item())
            if not isinstance(record.get("model_hash", ""), str):
                raise TypeError(f"model_hash={record['model_hash']!r}")
        except (AttributeError, TypeError, ValueError, RecursionError) as error:
            raise CommandError(f"{self.name} says of its model what cannot be read ({error}); it is damaged") from error
        return dict(record)

    def _opened(self) -> Any:
        return _translating(self.name, self.path)

    def blocks(self, start: int, n_block_rows: int) -> Iterator[sp.csr_matrix]:
        """Yield consecutive rows from `start` on as canonical CSR, at most `n_block_rows` at a time."""
        with self._opened() as archive:
            indptr, indices, data = (_Member(archive, member, self.name) for member in ("indptr", "indices", "data"))
            end, row = int(indptr.read(1)[0]), 0
            if end != 0:
                raise CommandError(f"{self.name} has rows that start at {end} instead of 0; it is damaged")
            while row < self.n_rows:
                ends = indptr.read(min(n_block_rows, self.n_rows - row)).astype(np.int64)
                if (np.diff(ends, prepend=end) < 0).any() or ends[-1] > self.nnz:
                    raise CommandError(f"{self.name} has row ends out of order; it is damaged")
                first = 0
                while first < len(ends):
                    last = max(int(np.searchsorted(ends, end + _BLOCK_NONZEROS, "right")), first + 1)
                    n = int(ends[last - 1]) - end
                    block = self._block(np.concatenate([[end], ends[first:last]]) - end, indices.read(n), data.read(n))
                    # lines after `start` are read and checked all the same: a stream cannot be skipped
                    if row + last - first > start:
                        yield block[max(0, start - row) :]
                    end, row, first = int(ends[last - 1]), row + last - first, last
            if end != self.nnz:
                raise CommandError(f"{self.name} has {self.nnz} nonzeros, its rows {end}; it is damaged")

    def _block(self, indptr: NDArray[np.int64], indices: NDArray[Any], data: NDArray[Any]) -> sp.csr_matrix:
        if len(indices) and not (int(indices.min()) >= 0 and int(indices.max()) < self.n_components):
            raise CommandError(f"{self.name} has an index outside of range({self.n_components}); it is damaged")
        values = data.astype(self.dtype, copy=False)
        if not np.isfinite(values).all():
            raise CommandError(f"{self.name} must hold finite values; it holds NaN or infinity")
        block = sp.csr_matrix(
            (values, indices.astype(np.int32), indptr), shape=(len(indptr) - 1, self.n_components), copy=True
        )
        block.sum_duplicates()
        return block


class _translating:
    """An open archive; what `zipfile` raises about damage becomes our error."""

    def __init__(self, name: str, path: Path) -> None:
        self._name = name
        self._path = path

    def __enter__(self) -> zipfile.ZipFile:
        try:
            self._archive = zipfile.ZipFile(self._path)
        except ZIP_ERRORS as error:
            if is_of_the_system(error):
                raise
            raise CommandError(f"{self._name} is damaged: {error}") from error
        return self._archive

    def __exit__(self, kind: Any, error: BaseException | None, traceback: object) -> None:
        self._archive.close()
        if isinstance(error, ZIP_ERRORS) and not is_of_the_system(error):
            raise CommandError(f"{self._name} is damaged: {error}") from error


def write_npz(
    stream: BinaryIO,
    shape: tuple[int, int],
    nnz: int,
    lengths: Iterable[NDArray[Any]],
    indices: Iterable[NDArray[Any]],
    values: Iterable[NDArray[Any]],
    dtype: np.dtype[Any],
    record: dict[str, Any],
) -> None:
    """Write a CSR matrix from blocks of its parts; the same parts make the same bytes.

    Parameters
    ----------
    stream : binary file
    shape : (n_rows, n_components)
    nnz : int
    lengths, indices, values : iterables of arrays
        Nonzeros of each row, their columns and their values, one block after the other.
    dtype : dtype of the values
    record : dict
        What is known of the model that made the codes, JSON; empty for nothing.
    """
    index_dtype = np.dtype(np.int32 if max(nnz, *shape) < 2**31 else np.int64)

    def pointers() -> Iterator[NDArray[Any]]:
        end = 0
        yield np.zeros(1, index_dtype)
        for block in lengths:
            ends = end + np.cumsum(block, dtype=np.int64)
            yield ends.astype(index_dtype)
            end = int(ends[-1]) if len(ends) else end

    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        _write_member(archive, "indices", (nnz,), index_dtype, (block.astype(index_dtype) for block in indices))
        _write_member(archive, "indptr", (shape[0] + 1,), index_dtype, pointers())
        _write_member(archive, "format", (), np.dtype("S3"), [np.array(b"csr")])
        _write_member(archive, "shape", (2,), np.dtype(np.int64), [np.array(shape, np.int64)])
        _write_member(archive, "data", (nnz,), dtype, values)
        if record:
            text = np.array(json.dumps(record, sort_keys=True).encode())
            _write_member(archive, _RECORD, (), text.dtype, [text])


def _write_member(
    archive: zipfile.ZipFile, member: str, shape: tuple[int, ...], dtype: np.dtype[Any], blocks: Iterable[NDArray[Any]]
) -> None:
    # a fixed date: the file is a function of its content
    info = zipfile.ZipInfo(member + ".npy", date_time=_EPOCH)
    info.external_attr = 0o600 << 16
    with archive.open(info, "w", force_zip64=True) as stream:
        header = {"descr": npy_format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        npy_format.write_array_header_1_0(stream, header)
        for block in blocks:
            stream.write(np.ascontiguousarray(block, dtype).tobytes())
