"""Code columns of Arrow back to matrices and embeddings, with what the metadata says about them."""

from __future__ import annotations

import json
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np

from skcompressae._arrow_columns import METADATA_KEY, METADATA_VERSION, PACKED_KEY, csr_of_lists, import_pyarrow
from skcompressae._compat import align_sparse_interface
from skcompressae._transformer import CompresSAETransformer
from skcompressae._worker_model import bare_model
from skcompressae.exceptions import CodesFormatError
from skcompressae.persistence import model_hash

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["codes_from_arrow", "decode_batch", "metadata_of"]

_MAX_COMPONENTS = np.iinfo(np.int32).max  # what 32-bit indices can number
# Where Spark keeps its own schema, with the metadata of its columns, in the Parquet files that it writes.
_SPARK_KEY = b"org.apache.spark.sql.parquet.row.metadata"


def codes_from_arrow(data: Any, *, n_components: int | None = None, code_columns: tuple[str, ...] | None = None) -> Any:
    """Read code columns back as a sparse matrix.

    Layout, width and split signs are told by the schema's metadata, where they are still there; Parquet, Spark and Dask
    keep them.

    Parameters
    ----------
    data : pyarrow.RecordBatch or pyarrow.Table
        Of :func:`encode_batch`, in any layout, or read from Parquet, as Spark or Dask wrote it.
    n_components : int or None, default=None
        Width of the codes. None takes it from the schema's metadata; give it where an engine has dropped that, or for
        `code_columns` that other columns were encoded after, as the metadata tells of those.
    code_columns : tuple of str or None, default=None
        Names of the columns of indices and values, or of the one struct column. None takes them from the metadata,
        else ``("indices", "values")``.

    Returns
    -------
    CSR matrix (or array) of shape (n_rows, n_components), float32
        Signed, also where the columns hold split signs and the metadata says so.

    Raises
    ------
    TypeError
        If `data` is neither a RecordBatch nor a Table.
    skcompressae.exceptions.CodesFormatError
        If the width is unknown, a column is missing, or the columns do not hold codes.

    See Also
    --------
    encode_batch : Makes the columns.
    decode_batch : Goes on to embeddings.
    skcompressae.PackedCodes.from_arrow : Packs a table of packed codes.

    Examples
    --------
    >>> import numpy as np, pyarrow as pa
    >>> from skcompressae import CompresSAETransformer
    >>> from skcompressae.arrow import codes_from_arrow, encode_batch
    >>> X = np.random.RandomState(0).standard_normal((200, 8)).astype(np.float32)
    >>> compressor = CompresSAETransformer(n_components=16, k=3, max_iter=5, random_state=0).fit(X)
    >>> batch = pa.record_batch({"id": pa.array(range(200)), "embedding": pa.array(list(X))})
    >>> codes = codes_from_arrow(encode_batch(compressor, batch))
    >>> bool((codes != compressor.transform(X)).nnz == 0)
    True
    """
    pa = import_pyarrow("Arrow batches of codes")
    if not isinstance(data, (pa.RecordBatch, pa.Table)):
        raise TypeError(f"data must be a pyarrow.RecordBatch or Table; got {type(data).__name__}.")
    meta = metadata_of(data.schema)
    names = tuple(meta.get("columns", ("indices", "values"))) if code_columns is None else tuple(code_columns)
    if missing := [name for name in names if name not in data.schema.names]:
        raise CodesFormatError(
            f"the column(s) {', '.join(map(repr, missing))} are missing; there are "
            f"{', '.join(map(repr, data.schema.names))}. Name the columns of the codes by code_columns."
        )
    if list(names) != meta.get("columns", list(names)):
        meta = {}  # it tells of other columns, which were encoded last
    width = meta.get("n_components") if n_components is None else n_components
    if isinstance(width, bool) or not isinstance(width, Integral) or not 1 <= int(width) <= _MAX_COMPONENTS:
        raise CodesFormatError(
            "n_components must be a positive int below 2**31 where the schema's metadata does not tell it of these "
            f"columns; got {width!r}."
        )
    columns: list[Any] = [data.column(name) for name in names]
    if len(columns) == 1:
        if not pa.types.is_struct(columns[0].type) or {field.name for field in columns[0].type} != {
            "indices",
            "values",
        }:
            raise CodesFormatError(
                f"column {names[0]!r} must be a struct of 'indices' and 'values'; got {columns[0].type}"
            )
        if columns[0].null_count:
            raise CodesFormatError(f"column {names[0]!r} holds nulls")
        struct = columns[0].combine_chunks() if isinstance(columns[0], pa.ChunkedArray) else columns[0]
        parts = dict(zip((field.name for field in struct.type), struct.flatten(), strict=True))
        columns = [parts["indices"], parts["values"]]
    if len(columns) != 2:
        raise CodesFormatError(f"code_columns must name two columns or one struct column; got {names!r}")
    codes = csr_of_lists(columns[0], columns[1], int(width))
    if meta.get("split_signs"):
        from skcompressae.engines import join_signs

        try:
            return join_signs(codes)
        except ValueError as error:
            raise CodesFormatError(
                f"the columns do not hold the split signs that their metadata announces: {error}"
            ) from error
    return align_sparse_interface(codes)


def decode_batch(model: CompresSAETransformer, batch: Any, column: str = "embedding") -> Any:
    """Replace the code columns of a record batch by the decoded embeddings.

    Codes of another model are refused, as far as the metadata can tell: they would decode to noise.

    Parameters
    ----------
    model : CompresSAETransformer
        The one that encoded, as far as the metadata can tell.
    batch : pyarrow.RecordBatch or pyarrow.Table
        As :func:`codes_from_arrow` reads it.
    column : str, default="embedding"
        Name of the new column, of fixed-size lists of float32.

    Returns
    -------
    pyarrow.RecordBatch or pyarrow.Table
        The other columns, and `column` last.

    Raises
    ------
    skcompressae.exceptions.CodesFormatError
        If the batch does not hold codes.
    TypeError
        If `batch` is neither a RecordBatch nor a Table.
    ValueError
        If they were made by another model (told by its hash or their width), or there is a column of that name.

    See Also
    --------
    encode_batch : The way here.
    skcompressae.CompresSAETransformer.inverse_transform : Decodes a matrix.

    Examples
    --------
    >>> import numpy as np, pyarrow as pa
    >>> from skcompressae import CompresSAETransformer
    >>> from skcompressae.arrow import decode_batch, encode_batch
    >>> X = np.random.RandomState(0).standard_normal((200, 8)).astype(np.float32)
    >>> compressor = CompresSAETransformer(n_components=16, k=3, max_iter=5, random_state=0).fit(X)
    >>> batch = pa.record_batch({"id": pa.array(range(200)), "embedding": pa.array(list(X))})
    >>> decode_batch(compressor, encode_batch(compressor, batch)).schema.names
    ['id', 'embedding']
    """
    pa = import_pyarrow("Arrow batches of codes")
    model = bare_model(model)
    if not isinstance(batch, (pa.RecordBatch, pa.Table)):
        raise TypeError(f"batch must be a pyarrow.RecordBatch or Table; got {type(batch).__name__}.")
    meta = metadata_of(batch.schema)
    codes = codes_from_arrow(batch, n_components=None if meta else model.components_.shape[0])
    if meta.get("model_hash", model_hash(model)) != model_hash(model):
        raise ValueError(
            f"the codes were made by a model of hash {meta['model_hash']}; got one of {model_hash(model)}. Load that "
            "model, or decode by model.inverse_transform(codes_from_arrow(batch))."
        )
    names = meta.get("columns", ["indices", "values"])
    kept = [place for place, field in enumerate(batch.schema) if field.name not in names]
    if column in (batch.schema.field(place).name for place in kept):
        raise ValueError(f"column={column!r} is there already; choose another name.")
    x_hat = model.inverse_transform(codes) if codes.shape[0] else np.empty((0, model.n_features_in_), np.float32)
    values = pa.array(x_hat.astype(np.float32, copy=False).reshape(-1))
    array = pa.FixedSizeListArray.from_arrays(values, model.n_features_in_)
    fields = [*(batch.schema.field(place) for place in kept), pa.field(column, array.type)]
    metadata = {
        key: value
        for key, value in (batch.schema.metadata or {}).items()
        if key not in (METADATA_KEY, PACKED_KEY, _SPARK_KEY)
    }
    return type(batch).from_arrays([*map(batch.column, kept), array], schema=pa.schema(fields, metadata or None))


def metadata_of(schema: pa.Schema) -> dict[str, Any]:
    """Return what the schema says about its codes; nothing where it says nothing."""
    metadata = schema.metadata or {}
    try:
        if METADATA_KEY in metadata:
            found = json.loads(metadata[METADATA_KEY])
        else:
            fields = json.loads(metadata.get(_SPARK_KEY, b'{"fields": []}'))["fields"]
            texts = [
                field["metadata"][METADATA_KEY.decode()]
                for field in fields
                if METADATA_KEY.decode() in field["metadata"]
            ]
            packed = json.loads(metadata.get(PACKED_KEY, b"{}"))
            found = json.loads(texts[0]) if texts else {**packed, **packed.get("model", {})}
        if found and found["version"] != METADATA_VERSION:
            raise CodesFormatError(
                f"the codes have version {found['version']!r} of the metadata, expected {METADATA_VERSION}"
            )
        names = found.get("columns", ["indices", "values"])
        if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
            raise CodesFormatError(f"the metadata names the columns {names!r}")
        width = found.get("n_components", 1)
        if type(width) is not int or not 1 <= width <= _MAX_COMPONENTS:
            raise CodesFormatError(f"the metadata tells n_components={width!r}, expected a positive int below 2**31")
        if not isinstance(found.get("model_hash", ""), str):
            raise CodesFormatError(f"the metadata tells model_hash={found['model_hash']!r}, expected a text")
    except CodesFormatError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError) as error:
        raise CodesFormatError(f"the metadata of the codes is damaged: {error!r}") from error
    return found
