"""Record batches with embeddings in, record batches with codes out: the kernel that every engine's adapter wraps."""

from __future__ import annotations

import json
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from skcompressae._arrow_codes import codes_from_arrow, decode_batch
from skcompressae._arrow_columns import (
    METADATA_KEY,
    METADATA_VERSION,
    compact_index_type,
    embedding_rows,
    import_pyarrow,
    lists_of_csr,
)
from skcompressae._model_weights import coding_record
from skcompressae._transformer import CompresSAETransformer
from skcompressae._worker_model import bare_model, encode_rows

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["ArrowEncoder", "codes_from_arrow", "decode_batch", "encode_batch", "output_schema"]

_LAYOUTS = ("compact", "int32", "struct")


class ArrowEncoder:
    """Encode the embedding column of record batches; every other column is passed on as it is.

    A picklable callable for engines that map batches of Arrow. It keeps a copy of the model's parameters (not of its
    weights), so changing the model afterwards does not change it.

    Parameters
    ----------
    model : CompresSAETransformer
        Fitted.
    column : str, default="embedding"
        The embedding column: fixed-size lists or lists of float16, float32 or float64, without nulls.
    layout : {"compact", "int32", "struct"}, default="compact"
        - "compact": ``indices: list<uint16>`` (``list<int32>`` above 65,536 components), ``values: list<float32>``.
        - "int32": ``indices: list<int32>``, ``values: list<float32>``; Spark's ``array<int>``, ``array<float>``, which
          the Qdrant connector reads too.
        - "struct": ``code: struct<indices: list<uint32>, values: list<float32>>``, as Milvus imports in bulk. Milvus
          takes no negative values: add ``split_signs=True``.
    value_type : {"float32", "float16"}, default="float32"
        "float16" halves the bytes of values in the layout "compact". Each is off by at most 2**-11 of itself, or 3e-8
        below 6e-5, and left out where it becomes 0; codes with none above 6e-5 are refused. Spark cannot read it, nor
        can most engines.
    split_signs : bool, default=False
        Store ``[max(s, 0), max(-s, 0)]``, twice as wide and never negative, as
        :func:`skcompressae.engines.split_signs` does.
    code_columns : tuple of str or None, default=None
        Names of the new columns; None means ``("indices", "values")``, or ``("code",)`` in the layout "struct".
    keep_embedding : bool, default=False
        Whether the embedding column is passed on too.

    Attributes
    ----------
    metadata : dict of bytes to bytes
        What the schema's metadata gets: one JSON text under ``b"skcompressae.codes"`` with version, `n_components`,
        `k`, `norm`, `flattening`, `candidate_factor` (None where `coding` is no pursuit), `model_hash`, `layout`,
        `columns`, `split_signs`.

    Raises
    ------
    TypeError
        If `model` is no CompresSAETransformer.
    sklearn.exceptions.NotFittedError
        If it is not fitted.
    ValueError
        If a parameter has no such value.

    See Also
    --------
    codes_from_arrow : Reads the columns back.
    encode_batch : The same for a single batch.
    skcompressae.dask.encode_dataframe : On a Dask cluster.
    skcompressae.spark.encode_dataframe : On a Spark cluster.

    Examples
    --------
    >>> import numpy as np, pyarrow as pa
    >>> from skcompressae import CompresSAETransformer
    >>> from skcompressae.arrow import ArrowEncoder, codes_from_arrow
    >>> X = np.random.RandomState(0).standard_normal((200, 8)).astype(np.float32)
    >>> compressor = CompresSAETransformer(n_components=16, k=3, max_iter=5, random_state=0).fit(X)
    >>> batch = pa.record_batch({"id": pa.array(range(200)), "embedding": pa.array(list(X))})
    >>> encoded = ArrowEncoder(compressor)(batch)
    >>> encoded.schema.names, str(encoded.schema.field("indices").type)
    (['id', 'indices', 'values'], 'list<item: uint16>')
    >>> bool((codes_from_arrow(encoded) != compressor.transform(X)).nnz == 0)
    True
    """

    def __init__(
        self,
        model: CompresSAETransformer,
        column: str = "embedding",
        *,
        layout: str = "compact",
        value_type: str = "float32",
        split_signs: bool = False,
        code_columns: tuple[str, ...] | None = None,
        keep_embedding: bool = False,
    ) -> None:
        if layout not in _LAYOUTS:
            raise ValueError(f"layout must be one of {', '.join(map(repr, _LAYOUTS))}; got {layout!r}.")
        if value_type not in ("float32", "float16"):
            raise ValueError(f"value_type must be 'float32' or 'float16'; got {value_type!r}.")
        if value_type == "float16" and layout != "compact":
            raise ValueError(
                f"value_type='float16' needs layout='compact'; got layout={layout!r}, which is read by Spark, Qdrant's "
                "connector or Milvus, and they take float32 only."
            )
        self.model = bare_model(model)
        self.column = column
        self.layout = layout
        self.value_type = value_type
        self.split_signs = split_signs
        expected = ("code",) if layout == "struct" else ("indices", "values")
        self.code_columns = expected if code_columns is None else tuple(code_columns)
        if len(set(self.code_columns)) != len(expected):
            raise ValueError(
                f"code_columns must be {len(expected)} different name(s), as {expected!r}, for layout={layout!r}; got "
                f"{code_columns!r}."
            )
        self.keep_embedding = keep_embedding
        width = self.model.components_.shape[0]
        self.n_components = 2 * width if split_signs else width
        content = {
            "version": METADATA_VERSION,
            "n_components": self.n_components,
            **coding_record(self.model),
            "layout": layout,
            "columns": list(self.code_columns),
            "split_signs": split_signs,
        }
        self.metadata = {METADATA_KEY: json.dumps(content).encode()}

    def output_schema(self, schema: pa.Schema) -> pa.Schema:
        """Return the schema of encoded batches.

        Engines that plan before they compute ask for it. It depends on the schema alone, so nothing is encoded.

        Parameters
        ----------
        schema : pyarrow.Schema
            Of the batches that come in.

        Returns
        -------
        pyarrow.Schema
            The other columns, those of the codes, and the metadata.

        Raises
        ------
        KeyError
            If it has no embedding column of the given name.
        ValueError
            If a column that is kept has the name of a new one.

        See Also
        --------
        output_schema : The same as a function.
        encode_column : Encodes.

        Examples
        --------
        >>> import numpy as np, pyarrow as pa
        >>> from skcompressae import CompresSAETransformer
        >>> from skcompressae.arrow import ArrowEncoder
        >>> X = np.random.RandomState(0).standard_normal((200, 8)).astype(np.float32)
        >>> compressor = CompresSAETransformer(n_components=16, k=3, max_iter=5, random_state=0).fit(X)
        >>> schema = pa.schema({"id": pa.int64(), "embedding": pa.list_(pa.float32())})
        >>> ArrowEncoder(compressor).output_schema(schema).names
        ['id', 'indices', 'values']
        """
        pa = import_pyarrow("Arrow batches of codes")
        if self.column not in schema.names:
            raise KeyError(f"column={self.column!r} is not among the columns {', '.join(map(repr, schema.names))}.")
        kept = [field for field in schema if self.keep_embedding or field.name != self.column]
        if taken := sorted({field.name for field in kept} & set(self.code_columns)):
            raise ValueError(
                f"the column(s) {', '.join(map(repr, taken))} are there already; rename them or choose other names by "
                "code_columns."
            )
        return pa.schema([*kept, *self._code_fields()], {**(schema.metadata or {}), **self.metadata})

    def __call__(self, batch: Any, first_row: int = 0) -> Any:
        """Encode a pyarrow.RecordBatch; a pyarrow.Table too, batch by batch.

        Errors number rows from `first_row` on, for batches that are blocks of something longer.

        Raises
        ------
        TypeError
            If it is neither, or its embedding column does not hold lists of floats.
        KeyError
            If it has no embedding column of the given name.
        ValueError
            If embeddings are null, of another width than the model's, or not finite, or a column that is kept has the
            name of a new one.
        """
        pa = import_pyarrow("Arrow batches of codes")
        if isinstance(batch, pa.Table):
            schema = self.output_schema(batch.schema)
            parts = batch.to_batches()
            starts = accumulate(map(len, parts), initial=first_row)
            return pa.Table.from_batches([self(*pair) for pair in zip(parts, starts, strict=False)], schema)
        if not isinstance(batch, pa.RecordBatch):
            raise TypeError(f"batch must be a pyarrow.RecordBatch or Table; got {type(batch).__name__}.")
        schema = self.output_schema(batch.schema)
        kept = [
            batch.column(place)
            for place, field in enumerate(batch.schema)
            if self.keep_embedding or field.name != self.column
        ]
        return pa.RecordBatch.from_arrays(
            [*kept, *self.encode_column(batch.column(self.column), first_row)], schema=schema
        )

    def encode_column(self, column: Any, first_row: int = 0) -> list[Any]:
        """Encode an embedding column alone.

        For callers that keep the other columns themselves, as Dask's data frames do.

        Parameters
        ----------
        column : pyarrow.Array or pyarrow.ChunkedArray
            Lists of floats, without nulls.
        first_row : int, default=0
            The number of its first row where it is a block of a longer column, for the messages of errors.

        Returns
        -------
        list of pyarrow.Array
            One for each of `code_columns`.

        Raises
        ------
        TypeError
            If the column does not hold lists of floats.
        ValueError
            If embeddings are null, of another width than the model's, or not finite.

        See Also
        --------
        code_arrays : For rows that were encoded before.
        output_schema : Names and types of the arrays.

        Examples
        --------
        >>> import numpy as np, pyarrow as pa
        >>> from skcompressae import CompresSAETransformer
        >>> from skcompressae.arrow import ArrowEncoder
        >>> X = np.random.RandomState(0).standard_normal((200, 8)).astype(np.float32)
        >>> compressor = CompresSAETransformer(n_components=16, k=3, max_iter=5, random_state=0).fit(X)
        >>> [str(array.type) for array in ArrowEncoder(compressor).encode_column(pa.array(list(X)))]
        ['list<item: uint16>', 'list<item: float>']
        """
        rows = embedding_rows(column, self.model.n_features_in_, self.column, first_row=first_row)
        return self.code_arrays(encode_rows(self.model, rows, self.column, first_row=first_row), first_row)

    def code_arrays(self, codes: Any, first_row: int = 0) -> list[Any]:
        """Return codes that exist already as Arrow arrays.

        The layout, the type of values and the split of signs are the encoder's.

        Parameters
        ----------
        codes : CSR matrix of shape (n_rows, n_components)
            As the model's `transform` returns them.
        first_row : int, default=0
            The number of their first row where they are a block of more codes, for the messages of errors.

        Returns
        -------
        list of pyarrow.Array
            One for each of `code_columns`.

        Raises
        ------
        TypeError
            If the codes are no CSR matrix.
        ValueError
            If they have another width than the model's, or values do not fit `value_type`.

        See Also
        --------
        encode_column : Encodes the rows too.
        codes_from_arrow : The way back.

        Examples
        --------
        >>> import numpy as np, pyarrow as pa
        >>> from skcompressae import CompresSAETransformer
        >>> from skcompressae.arrow import ArrowEncoder
        >>> X = np.random.RandomState(0).standard_normal((200, 8)).astype(np.float32)
        >>> compressor = CompresSAETransformer(n_components=16, k=3, max_iter=5, random_state=0).fit(X)
        >>> arrays = ArrowEncoder(compressor, value_type="float16").code_arrays(compressor.transform(X))
        >>> [str(array.type) for array in arrays]
        ['list<item: uint16>', 'list<item: halffloat>']
        """
        pa = import_pyarrow("Arrow batches of codes")
        if getattr(codes, "format", None) != "csr":
            raise TypeError(f"codes must be a CSR matrix; got {type(codes).__name__}. Convert sparse ones by tocsr().")
        width = self.model.components_.shape[0]
        if codes.shape[1] != width:
            raise ValueError(f"codes must have the model's n_components={width} columns; got {codes.shape[1]}.")
        if self.split_signs:
            from skcompressae.engines import split_signs

            codes = split_signs(codes)
        fields = self._code_fields()
        if self.layout == "struct":
            pair = list(fields[0].type)
            lists = lists_of_csr(codes, *(field.type.value_type for field in pair), first_row=first_row)
            return [pa.StructArray.from_arrays(lists, fields=pair)]
        return list(lists_of_csr(codes, *(field.type.value_type for field in fields), first_row=first_row))

    def _code_fields(self) -> list[Any]:
        pa = import_pyarrow("Arrow batches of codes")
        if self.layout == "struct":
            pair = [("indices", pa.list_(pa.uint32())), ("values", pa.list_(pa.float32()))]
            return [pa.field(self.code_columns[0], pa.struct(pair))]
        index_type = pa.int32() if self.layout == "int32" else compact_index_type(self.n_components)
        value_type = pa.float16() if self.value_type == "float16" else pa.float32()
        return [
            pa.field(name, pa.list_(kind))
            for name, kind in zip(self.code_columns, (index_type, value_type), strict=True)
        ]


def encode_batch(model: CompresSAETransformer, batch: Any, column: str = "embedding", **options: Any) -> Any:
    """Encode the embedding column of a record batch.

    An :class:`ArrowEncoder` made for one call. For many batches make it once: it copies the model and computes its
    hash.

    Parameters
    ----------
    model : CompresSAETransformer
        Fitted.
    batch : pyarrow.RecordBatch or pyarrow.Table
        With an embedding column.
    column : str, default="embedding"
        The embedding column.
    **options
        Further parameters of :class:`ArrowEncoder`.

    Returns
    -------
    pyarrow.RecordBatch or pyarrow.Table
        The other columns and those of the codes.

    Raises
    ------
    TypeError
        If `batch` is neither a RecordBatch nor a Table, or its column does not hold lists of floats.
    KeyError
        If there is no such column.
    ValueError
        If embeddings are null, of another width than the model's, or not finite.

    See Also
    --------
    decode_batch : The way back.
    codes_from_arrow : The codes as a matrix.
    ArrowEncoder : For many batches.

    Examples
    --------
    >>> import numpy as np, pyarrow as pa
    >>> from skcompressae import CompresSAETransformer
    >>> from skcompressae.arrow import encode_batch
    >>> X = np.random.RandomState(0).standard_normal((200, 8)).astype(np.float32)
    >>> compressor = CompresSAETransformer(n_components=16, k=3, max_iter=5, random_state=0).fit(X)
    >>> batch = pa.record_batch({"id": pa.array(range(200)), "embedding": pa.array(list(X))})
    >>> encode_batch(compressor, batch, layout="int32").schema.names
    ['id', 'indices', 'values']
    """
    return ArrowEncoder(model, column, **options)(batch)


def output_schema(model: CompresSAETransformer, schema: pa.Schema, column: str = "embedding", **options: Any) -> Any:
    """Return the schema of what :func:`encode_batch` makes.

    Metadata included. It needs no batch, so a table can be created before the first is encoded.

    Parameters
    ----------
    model : CompresSAETransformer
        Fitted.
    schema : pyarrow.Schema
        Of the batches that come in.
    column : str, default="embedding"
        The embedding column.
    **options
        Further parameters of :class:`ArrowEncoder`.

    Returns
    -------
    pyarrow.Schema
        Of the batches that :func:`encode_batch` returns.

    Raises
    ------
    KeyError
        If the schema has no such column.
    ValueError
        If a column that is kept has the name of a new one.

    See Also
    --------
    encode_batch : Encodes.
    ArrowEncoder.output_schema : The same as a method.

    Examples
    --------
    >>> import numpy as np, pyarrow as pa
    >>> from skcompressae import CompresSAETransformer
    >>> from skcompressae.arrow import output_schema
    >>> X = np.random.RandomState(0).standard_normal((200, 8)).astype(np.float32)
    >>> compressor = CompresSAETransformer(n_components=16, k=3, max_iter=5, random_state=0).fit(X)
    >>> schema = pa.schema({"id": pa.int64(), "embedding": pa.list_(pa.float32())})
    >>> output_schema(compressor, schema, layout="struct").names
    ['id', 'code']
    """
    return ArrowEncoder(model, column, **options).output_schema(schema)
