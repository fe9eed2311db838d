"""Parquet: an embedding column in, columns of codes or embeddings in and out, in batches of bounded size."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from skcompressae._arrow_columns import embedding_rows, import_pyarrow
from skcompressae._cli._errors import CommandError, UsageError, is_of_the_system
from skcompressae.exceptions import CodesFormatError

__all__ = ["ParquetCodes", "ParquetRows", "codes_metadata", "open_parquet", "parquet_batches", "parquet_writer"]

# Bytes read ahead for each column: without a limit Arrow holds whole row groups.
_BUFFER_BYTES = 1 << 20


def _pyarrow() -> Any:
    pa = import_pyarrow("Parquet files")
    import pyarrow.parquet  # noqa: F401 - a submodule, loaded only when asked for

    return pa


def open_parquet(path: str | os.PathLike[str]) -> Any:
    """Open a Parquet file; page checksums, where it has them, are verified.

    Raises
    ------
    CommandError
        If it is damaged.
    """
    pa = _pyarrow()
    try:
        # bytes: Arrow writes a text in UTF-8, which a name need not be in
        source = pa.OSFile(os.fsencode(path))
        return pa.parquet.ParquetFile(
            source, pre_buffer=False, buffer_size=_BUFFER_BYTES, page_checksum_verification=True
        )
    except (pa.ArrowException, ValueError, OSError) as error:
        if is_of_the_system(error):
            raise
        raise CommandError(f"{path} is no readable Parquet file: {_first_line(error)}") from error


def parquet_batches(file: Any, name: str, columns: list[str], start: int, n_batch_rows: int) -> Iterator[Any]:
    """Yield record batches of some columns from row `start` on; row groups before it are not read."""
    pa = _pyarrow()
    try:
        first = 0
        for group in range(file.num_row_groups):
            n_rows = file.metadata.row_group(group).num_rows
            if first + n_rows > start:
                n_found = 0
                for batch in file.iter_batches(n_batch_rows, row_groups=[group], columns=columns, use_threads=False):
                    n_skipped = min(max(start - first - n_found, 0), len(batch))
                    n_found += len(batch)
                    if n_skipped < len(batch):
                        yield batch.slice(n_skipped)
                if n_found != n_rows:
                    raise CommandError(f"{name} has {n_found} rows in row group {group}, expected {n_rows}; damaged")
            first += n_rows
    except MemoryError as error:  # Arrow believes the sizes that a file tells
        raise CommandError(f"{name} is damaged, or too large for the memory: {_first_line(error)}") from error
    except (pa.ArrowException, ValueError, OSError, KeyError, IndexError, OverflowError) as error:
        if is_of_the_system(error):
            raise
        raise CommandError(f"{name} is damaged: {_first_line(error)}") from error


def parquet_writer(stream: BinaryIO, schema: Any) -> Any:
    """Return a writer of a file whose pages carry checksums."""
    return _pyarrow().parquet.ParquetWriter(stream, schema, write_page_checksum=True)


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0] or type(error).__name__


def _storage_type(kind: Any) -> Any:
    """Return the type that an extension, such as the canonical tensors, is stored as; any other type as it is."""
    return kind.storage_type if isinstance(kind, _pyarrow().BaseExtensionType) else kind


class ParquetRows:
    """Rows of the embedding column of a Parquet file.

    Parameters
    ----------
    path : path-like
    column : str or None
        The column; None takes the only one that holds lists of floats or tensors.

    Raises
    ------
    UsageError
        If `column` does not name the embeddings, or has to be given.
    CommandError
        If the file is damaged, rows have different lengths, or the column is one of codes.
    """

    def __init__(self, path: str | os.PathLike[str], column: str | None = None) -> None:
        self.path = Path(path)
        self.name = str(path)
        self.file = open_parquet(path)
        self.schema = self.file.schema_arrow
        self.column = self._choose(column)
        self.n_rows = int(self.file.metadata.num_rows)
        if self.n_rows < 1:
            raise CommandError(f"{self.name} has no rows")
        groups = range(self.file.num_row_groups)
        if sum(self.file.metadata.row_group(group).num_rows for group in groups) != self.n_rows:
            raise CommandError(f"{self.name} announces other numbers of rows than its row groups; it is damaged")
        self.n_features = self._width()
        self.dtype = np.dtype(self._type().value_type.to_pandas_dtype())

    def _choose(self, column: str | None) -> str:
        pa = _pyarrow()
        schema = self.schema

        def holds_floats(kind: Any) -> bool:
            is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
            return is_list and pa.types.is_floating(kind.value_type)

        candidates = [field.name for field in schema if holds_floats(_storage_type(field.type))]
        found = ", ".join(f"{field.name}: {field.type}" for field in schema)
        if column is None:
            if not candidates:
                raise UsageError(f"{self.name} has no column of float lists; it has {found}")
            if len(candidates) > 1:
                raise UsageError(
                    f"{self.name} has {len(candidates)} columns of float lists ({', '.join(candidates)}); name one "
                    "with --column"
                )
            column = candidates[0]
        if column not in candidates:
            raise UsageError(f"{self.name} has no column {column!r} of float lists; it has {found}")
        if schema.names.count(column) != 1:
            raise CommandError(f"{self.name} has several columns {column!r}")
        if column in self._columns_of_codes():
            raise CommandError(f"{self.name}: column {column!r} holds codes, not embeddings; decode it first")
        return column

    def _columns_of_codes(self) -> list[str]:
        try:
            meta = codes_metadata(self.schema, self.name)
        except CommandError:  # of codes; there may be embeddings
            return []
        return list(meta.get("columns", ["indices", "values"])) if meta else []

    def _type(self) -> Any:
        return _storage_type(self.schema.field(self.column).type)

    def _width(self) -> int:
        kind = self._type()
        if _pyarrow().types.is_fixed_size_list(kind):
            width = int(kind.list_size)
        else:
            first = next(parquet_batches(self.file, self.name, [self.column], 0, 1)).column(0)
            if first.null_count:
                raise CommandError(f"{self.name}: column {self.column!r} holds a null in its first row")
            width = len(getattr(first, "storage", first).flatten())
        if width < 1:
            raise CommandError(f"{self.name}: column {self.column!r} holds an empty embedding in its first row")
        return width

    def blocks(self, start: int, n_block_rows: int) -> Iterator[NDArray[Any]]:
        """Yield consecutive rows from `start` on, at most `n_block_rows` at a time."""
        row = start
        for batch in parquet_batches(self.file, self.name, [self.column], start, n_block_rows):
            try:
                yield embedding_rows(
                    batch.column(0), self.n_features, self.column, first_row=row, whose="the first row's"
                )
            except (TypeError, ValueError) as error:
                raise CommandError(f"{self.name}: {_first_line(error)}") from error
            row += len(batch)

    def take(self, rows: NDArray[np.intp]) -> NDArray[Any]:
        """Return the chosen rows, which ascend; only their row groups are read."""
        found, wanted = [], rows
        bounds = np.cumsum([0, *(self.file.metadata.row_group(g).num_rows for g in range(self.file.num_row_groups))])
        for start, stop in pairwise(bounds):
            here = wanted[(wanted >= start) & (wanted < stop)]
            first = int(start)
            for block in self.blocks(first, 4096) if len(here) else ():
                inside = here[(here >= first) & (here < first + len(block))]
                found.append(block[inside - first])
                first += len(block)
                if first > here[-1]:
                    break
        return np.concatenate(found)


def _dtype_of_values(kind: Any) -> np.dtype[Any]:
    """Return the dtype of codes in lists of this type, or in a struct of such: float64 of doubles, else float32."""
    place = getattr(kind, "get_field_index", lambda _: -1)("values")
    values = kind.field(place).type if place >= 0 else kind
    return np.dtype(np.float64 if str(getattr(values, "value_type", None)) == "double" else np.float32)


class ParquetCodes:
    """Codes in the columns that `skcompressae.arrow` or `PackedCodes.to_arrow` writes, or in columns like these.

    Parameters
    ----------
    path : path-like
    n_components : int or None, default=None
        Width of the codes where the file's metadata does not tell it.

    Raises
    ------
    CommandError
        If the file is damaged, holds no codes, or does not tell their width.
    """

    def __init__(self, path: str | os.PathLike[str], n_components: int | None = None) -> None:
        from skcompressae._arrow_codes import codes_from_arrow
        from skcompressae._arrow_columns import METADATA_KEY, PACKED_KEY

        self.path = Path(path)
        self.name = str(path)
        self.file = open_parquet(path)
        self.schema = self.file.schema_arrow
        schema = self.schema
        self.meta = codes_metadata(schema, self.name)
        #: Whether the file carries the quantiser of packed codes.
        self.is_packed = PACKED_KEY in (schema.metadata or {}) and METADATA_KEY not in schema.metadata
        self.columns = list(self.meta.get("columns", ["indices", "values"]))
        if missing := [name for name in self.columns if name not in schema.names]:
            raise CommandError(
                f"{self.name} holds no codes: it has the columns {', '.join(schema.names)}, not {', '.join(missing)}"
            )
        # with split signs twice as wide as the codes they are read as
        n_parts = 2 if self.meta.get("split_signs") else 1
        width = self.meta.get("n_components", n_components and n_components * n_parts)
        if width is None:
            raise CommandError(f"{self.name} does not tell the width of its codes; give --n-components")
        self._width, self.n_components = width, width // n_parts
        self.n_rows = int(self.file.metadata.num_rows)
        groups = range(self.file.num_row_groups)
        if self.n_rows < 1 or sum(self.file.metadata.row_group(group).num_rows for group in groups) != self.n_rows:
            raise CommandError(f"{self.name} has no rows, or another number of them than its row groups")
        self.dtype = _dtype_of_values(schema.field(self.columns[-1]).type)
        self._from_arrow = codes_from_arrow

    def blocks(self, start: int, n_block_rows: int) -> Iterator[Any]:
        """Yield consecutive rows from `start` on as CSR, at most `n_block_rows` at a time."""
        for batch in parquet_batches(self.file, self.name, self.columns, start, n_block_rows):
            try:
                yield self._from_arrow(batch, n_components=self._width)
            except (CodesFormatError, TypeError) as error:
                raise CommandError(f"{self.name}: {_first_line(error)}") from error

    def read_packed(self) -> Any:
        """Return the store that `PackedCodes.to_arrow` wrote."""
        from skcompressae.packed import PackedCodes

        pa = _pyarrow()
        schema = self.schema
        batches = parquet_batches(self.file, self.name, schema.names, 0, 1 << 16)
        try:
            return PackedCodes.concatenate(
                [
                    PackedCodes.from_arrow(pa.Table.from_batches([batch.replace_schema_metadata(schema.metadata)]))
                    for batch in batches
                ]
            )
        except CodesFormatError as error:
            raise CommandError(f"{self.name}: {_first_line(error)}") from error


def codes_metadata(schema: Any, name: str) -> dict[str, Any]:
    """Return what a file says about its codes; nothing where it says nothing."""
    from skcompressae._arrow_codes import metadata_of

    try:
        return metadata_of(schema)
    except CodesFormatError as error:
        raise CommandError(f"{name} has damaged metadata of codes: {_first_line(error)}") from error
