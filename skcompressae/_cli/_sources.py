"""Open what a command reads: dense rows or codes, recognised by content; and tell one input from another."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from skcompressae._cli._errors import CommandError, UsageError
from skcompressae._cli._formats import kind_of
from skcompressae._cli._npy import NpyRows
from skcompressae._cli._npz import NpzCodes
from skcompressae._cli._parquet import ParquetCodes, ParquetRows
from skcompressae.exceptions import CodesFormatError

if TYPE_CHECKING:
    from skcompressae.packed import PackedCodes

__all__ = [
    "CodeSource",
    "PackedSource",
    "RowSource",
    "block_rows_for",
    "check_column",
    "check_finite",
    "check_width",
    "fingerprint",
    "has_residual_codes",
    "open_codes",
    "open_rows",
    "packed_store",
]

# Bytes of a block of rows: large enough for the kernels, small beside any model.
_BLOCK_BYTES = 32 << 20
_MAX_BLOCK_ROWS = 16384
# An input is told from another by its size, its date and this much of it.
_N_SAMPLES, _SAMPLE_BYTES = 64, 1 << 16


@runtime_checkable
class RowSource(Protocol):
    """Dense rows of a file."""

    name: str
    path: Path
    n_rows: int
    n_features: int
    dtype: np.dtype[Any]

    def blocks(self, start: int, n_block_rows: int) -> Iterator[NDArray[Any]]: ...
    def take(self, rows: NDArray[np.intp]) -> NDArray[Any]: ...


class CodeSource(Protocol):
    """Sparse codes of a file."""

    name: str
    path: Path
    n_rows: int
    n_components: int
    meta: dict[str, Any]  # what the file says about its codes: of their model, the names in `RECORDED`

    def blocks(self, start: int, n_block_rows: int) -> Iterator[Any]: ...


class PackedSource:
    """Packed codes, mapped, or an archive of them, decoded; every checksum is compared."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        from skcompressae._packed_io import Container
        from skcompressae.packed import PackedCodes
        from skcompressae.packed._files import read_record

        self.path = Path(path)
        self.name = str(path)
        try:
            with Container(path) as container:
                self.is_archive = container.meta.get("content") == "archive"
                self.meta = read_record(container)
            if self.is_archive:
                self.store = PackedCodes.from_archive(path)
            else:
                self.store = PackedCodes.load(path, mmap=True, verify=True)
        except CodesFormatError as error:
            raise CommandError(str(error)) from error
        if len(self.store) == 0:
            raise CommandError(f"{self.name} has no rows")
        self.n_rows, self.n_components = self.store.shape

    def blocks(self, start: int, n_block_rows: int) -> Iterator[Any]:
        """Yield consecutive rows from `start` on as CSR, at most `n_block_rows` at a time."""
        for block in self.store[start:].iter_blocks(n_block_rows):
            try:
                yield block.to_csr()
            except CodesFormatError as error:
                raise CommandError(f"{self.name}: {error}") from error


def open_rows(path: str | os.PathLike[str], column: str | None = None) -> RowSource:
    """Open a file of embeddings: .npy or Parquet.

    Raises
    ------
    CommandError
        If it is damaged or holds something else.
    OSError
        If it cannot be read.
    """
    kind = kind_of(path)
    if kind == "npy":
        return NpyRows(path)
    if kind == "parquet":
        return ParquetRows(path, column)
    raise CommandError(f"{path} must hold embeddings, .npy or Parquet; it holds {_NAMES[kind]}")


def open_codes(path: str | os.PathLike[str], n_components: int | None = None) -> CodeSource:
    """Open a file of codes: .npz, Parquet, packed codes or an archive of them.

    Raises
    ------
    CommandError
        If it is damaged or holds something else.
    OSError
        If it cannot be read.
    """
    kind = kind_of(path)
    source: CodeSource
    if kind == "npz":
        source = NpzCodes(path)
    elif kind == "parquet":
        source = ParquetCodes(path, n_components)
    elif kind == "packed":
        source = PackedSource(path)
    else:
        raise CommandError(f"{path} must hold codes, .npz, Parquet or packed; it holds {_NAMES[kind]}")
    if n_components is not None and source.n_components != n_components:
        raise CommandError(f"{path} has codes of {source.n_components} components, not {n_components}")
    return source


def has_residual_codes(source: CodeSource) -> bool:
    """Return whether a file holds residual codes beside its packed codes."""
    if isinstance(source, PackedSource):
        return source.store.residual_codes is not None
    return isinstance(source, ParquetCodes) and source.is_packed and "residual_codes" in source.schema.names


def packed_store(source: CodeSource) -> PackedCodes | None:
    """Return codes that were packed as they were, with their residual codes; None of others.

    Raises
    ------
    CommandError
        If the file is damaged.
    """
    if isinstance(source, PackedSource):
        return source.store
    return source.read_packed() if isinstance(source, ParquetCodes) and source.is_packed else None


_NAMES = {
    "npy": "a dense array",
    "npz": "arrays of NumPy or SciPy",
    "parquet": "a Parquet table",
    "packed": "packed codes",
    "index": "a search index",
    "model": "a model",
    "reference": "a checkpoint of PyTorch",
}


def check_column(column: str | None, *paths: str) -> None:
    """Refuse the name of a column where no file has columns.

    Raises
    ------
    UsageError
    """
    if column is not None and all(kind_of(path) != "parquet" for path in paths):
        raise UsageError(f"--column is for Parquet files; got {' and '.join(paths)}")


def check_width(source: RowSource, n_features: int, whose: str) -> None:
    """Refuse embeddings of another width than the model's.

    Raises
    ------
    CommandError
    """
    if source.n_features != n_features:
        raise CommandError(
            f"{source.name} has embeddings of {source.n_features} features, {whose} encodes {n_features}"
        )


def check_finite(
    block: NDArray[Any], source: RowSource, rows: NDArray[np.intp] | int, cause: BaseException | None = None
) -> None:
    """Refuse NaN and infinity.

    Parameters
    ----------
    block : float array of shape (n_rows, n_features)
    source : RowSource
        Where they come from.
    rows : int array of shape (n_rows,) or int
        Their numbers in the file, or that of the first of consecutive ones.
    cause : exception or None
        What brought it up.

    Raises
    ------
    CommandError
    """
    is_finite = np.isfinite(block).all(axis=1)
    if not is_finite.all():
        bad = int(np.argmin(is_finite))
        row = rows + bad if isinstance(rows, int) else rows[bad]
        raise CommandError(f"{source.name} must hold finite numbers; row {row} has NaN or infinity") from cause


def block_rows_for(n_features: int, dtype: np.dtype[Any]) -> int:
    """Return how many rows to hold at once."""
    return int(np.clip(_BLOCK_BYTES // (n_features * dtype.itemsize), 64, _MAX_BLOCK_ROWS))


def fingerprint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return what tells a file from another or changed one, without reading all of a large one."""
    status = Path(path).stat()
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        last = max(status.st_size - _SAMPLE_BYTES, 0)
        for offset in np.unique(np.linspace(0, last, _N_SAMPLES).astype(np.int64)):
            stream.seek(int(offset))
            digest.update(stream.read(_SAMPLE_BYTES))
    return {"size": status.st_size, "modified_ns": status.st_mtime_ns, "sha256_of_samples": digest.hexdigest()}
