"""From the streams of finished work to a file: .npz, .npy and Parquet, none of them held in memory."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.lib import format as npy_format

from skcompressae._cli._errors import UsageError
from skcompressae._cli._npz import write_npz
from skcompressae._cli._parquet import ParquetCodes, ParquetRows, parquet_batches, parquet_writer
from skcompressae._cli._spool import Spool

__all__ = [
    "kept_fields",
    "planned_codes",
    "write_codes_npz",
    "write_codes_parquet",
    "write_rows_npy",
    "write_rows_parquet",
]

# Rows of a row group: readers skip by row groups, and one of 32 nonzeros a row has 13 MB.
_GROUP_ROWS = 1 << 16
_GROUP_BYTES = 64 << 20


def write_codes_npz(path: Path, spool: Spool, model: Any) -> None:
    """Write the streams "lengths", "indices", "values" as a CSR matrix that names the model."""
    from skcompressae._model_weights import coding_record

    shape = spool.n_rows, len(model.components_)
    with path.open("xb") as stream:
        parts = (spool.pieces("lengths"), spool.pieces("indices"), spool.pieces("values"))
        write_npz(stream, shape, spool.n_items("values"), *parts, spool.dtype("values"), coding_record(model))


def _code_reader(spool: Spool, n_components: int) -> Callable[[int], Any]:
    """Return a function that gives the next rows of the streams as CSR."""
    lengths, indices, values = (spool.reader(name) for name in ("lengths", "indices", "values"))

    def read(n_rows: int) -> Any:
        indptr = np.concatenate([[0], np.cumsum(lengths.read(n_rows), dtype=np.int64)])
        nnz = int(indptr[-1])
        return sp.csr_matrix((values.read(nnz), indices.read(nnz), indptr), shape=(n_rows, n_components))

    return read


def planned_codes(model: Any, source: ParquetRows | None, arguments: argparse.Namespace) -> tuple[Any, Any]:
    """Return the encoder of the columns of codes and the schema of the output; `source` is a Parquet input.

    Raises
    ------
    UsageError
        If a column that is kept has the name of one of the codes.
    """
    import pyarrow as pa

    from skcompressae.arrow import ArrowEncoder

    column = "embedding" if source is None else source.column
    layout, value_type = arguments.layout or "compact", arguments.value_type or "float32"
    encoder = ArrowEncoder(model, column, layout=layout, value_type=value_type)
    schema = pa.schema([pa.field(column, pa.list_(pa.float32()))]) if source is None else source.schema
    if arguments.drop_columns:
        schema = pa.schema([schema.field(column)])
    taken = [name for name in encoder.code_columns if name != column and name in schema.names]
    if taken:
        raise UsageError(
            f"{encoder.column!r} becomes the columns {', '.join(map(repr, encoder.code_columns))}, but the input has "
            f"{', '.join(map(repr, taken))} already; rename it there, or leave the other columns out by --drop-columns"
        )
    return encoder, encoder.output_schema(schema)


def write_codes_parquet(path: Path, spool: Spool, encoder: Any, schema: Any, source: ParquetRows | None) -> None:
    """Write the streams of codes as columns, beside the other columns of the input where that is a Parquet file."""
    import pyarrow as pa

    others = [name for name in schema.names if name not in encoder.code_columns]
    read_codes = _code_reader(spool, encoder.n_components)
    with path.open("xb") as stream, parquet_writer(stream, schema) as writer:
        start = 0
        for n_rows, kept in _groups(spool.n_rows, _GROUP_ROWS, source, others):
            arrays = [*kept, *encoder.code_arrays(read_codes(n_rows), start)]
            writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=schema))
            start += n_rows


def _groups(
    n_rows: int, n_group_rows: int, source: ParquetRows | ParquetCodes | None, others: list[str]
) -> Iterator[tuple[int, list[Any]]]:
    """Yield the sizes of row groups, and the other columns of the input for them."""
    if source is None or not others:
        for start in range(0, n_rows, n_group_rows):
            yield min(n_group_rows, n_rows - start), []
        return
    for batch in parquet_batches(source.file, source.name, others, 0, n_group_rows):
        yield len(batch), [batch.column(name) for name in others]


def write_rows_npy(path: Path, spool: Spool, n_features: int, dtype: np.dtype[Any]) -> None:
    """Write the stream "rows" as a matrix."""
    with path.open("xb") as stream:
        header = {
            "descr": npy_format.dtype_to_descr(dtype),
            "fortran_order": False,
            "shape": (spool.n_rows, n_features),
        }
        npy_format.write_array_header_1_0(stream, header)
        for piece in spool.pieces("rows"):
            stream.write(piece.data)


def kept_fields(source: ParquetCodes | None, column: str) -> list[Any]:
    """Return the columns of a Parquet input beside those of its codes, in whose place `column` comes.

    Raises
    ------
    UsageError
        If one of them is called like that.
    """
    fields = [] if source is None else [field for field in source.schema if field.name not in source.columns]
    if column in [field.name for field in fields]:
        raise UsageError(f"{column!r} is a column of the input already; choose another name with --column")
    return fields


def write_rows_parquet(
    path: Path, spool: Spool, n_features: int, source: ParquetCodes | None, fields: list[Any], column: str
) -> None:
    """Write the stream "rows" as a column of fixed-size lists, beside the columns `fields` of the input."""
    import pyarrow as pa

    others = [field.name for field in fields]
    item = pa.float64() if spool.dtype("rows") == np.float64 else pa.float32()
    schema = pa.schema([*fields, pa.field(column, pa.list_(item, n_features))])
    n_group_rows = max(1, min(_GROUP_ROWS, _GROUP_BYTES // (n_features * 4)))
    rows = spool.reader("rows")
    with path.open("xb") as stream, parquet_writer(stream, schema) as writer:
        for n_rows, kept in _groups(spool.n_rows, n_group_rows, source, others):
            flat = pa.array(rows.read(n_rows * n_features))
            array = pa.FixedSizeListArray.from_arrays(flat, n_features)
            writer.write_batch(pa.RecordBatch.from_arrays([*kept, array], schema=schema))
