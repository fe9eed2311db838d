"""Columns of Arrow to and from arrays: embeddings as a dense matrix, codes as lists of indices and of values.

Layout of codes: one list of indices and one of values per row, of the same length, without explicit zeros. Everything
is checked on the way in, since Arrow itself allows nulls, ragged lists and non-finite numbers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from skcompressae.exceptions import CodesFormatError

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "METADATA_KEY",
    "METADATA_VERSION",
    "PACKED_KEY",
    "combined",
    "compact_index_type",
    "csr_of_lists",
    "embedding_rows",
    "import_pyarrow",
    "lists_of_csr",
]

# Of the schema's metadata that says what columns of codes hold.
METADATA_KEY = b"skcompressae.codes"
METADATA_VERSION = 1
# Of the tables of PackedCodes.to_arrow, whose metadata has the same version and tells the width by the same name.
PACKED_KEY = b"skcompressae"
# Indices of the compact layout are uint16 up to this many components.
_MAX_UINT16_COMPONENTS = 1 << 16


def import_pyarrow(purpose: str) -> Any:
    """Import pyarrow, or say what needs it and which extra installs it."""
    try:
        import pyarrow
    except ImportError as error:
        raise ImportError(f"{purpose} need pyarrow: install the extra 'arrow' of skcompressae") from error
    return pyarrow


def compact_index_type(n_components: int) -> pa.DataType:
    """Return uint16 where it can number the components, else int32."""
    pa = import_pyarrow("Arrow columns of codes")
    return pa.uint16() if n_components <= _MAX_UINT16_COMPONENTS else pa.int32()


def combined(column: Any) -> Any:
    """Return a column, chunked or not, as one array."""
    pa = import_pyarrow("Arrow columns")
    if not isinstance(column, pa.ChunkedArray):
        return column
    chunks = column.chunks
    if len(chunks) == 1:
        return chunks[0]
    return pa.concat_arrays(chunks) if chunks else pa.array([], type=column.type)


def embedding_rows(
    column: Any, n_features: int, name: str, *, first_row: int = 0, whose: str = "the model's"
) -> NDArray[np.floating[Any]]:
    """Return an embedding column as a matrix, without a copy where Arrow's memory allows it.

    Parameters
    ----------
    column : pyarrow.Array or ChunkedArray
        Fixed-size lists, lists or large lists of float16, float32 or float64; also the canonical tensor extension.
    n_features : int
        The length that every list must have.
    name : str
        The column's name, for messages.
    first_row : int, default=0
        The number of the column's first row in what it is a block of, for messages.
    whose : str, default="the model's"
        What has `n_features` features, for messages.

    Returns
    -------
    rows : array of shape (n_rows, n_features), dtype of the lists' items; finiteness is not checked

    Raises
    ------
    TypeError
        If the column is of another type.
    ValueError
        If a row or a number is null, or a list has another length.
    """
    pa = import_pyarrow("Arrow columns")
    array = combined(column)
    if isinstance(array.type, pa.BaseExtensionType):
        array = array.storage
    kind = array.type
    is_fixed = pa.types.is_fixed_size_list(kind)
    if not (is_fixed or pa.types.is_list(kind) or pa.types.is_large_list(kind)) or not pa.types.is_floating(
        kind.value_type
    ):
        raise TypeError(
            f"column {name!r} must hold lists of float16, float32 or float64, one embedding of {n_features} numbers a "
            f"row; got {column.type}. Cast it first."
        )
    if array.null_count:
        row = first_row + _first(array.is_null())
        raise ValueError(
            f"column {name!r} holds {array.null_count} nulls, the first in row {row}; a null has no code. Drop or fill "
            "these rows first."
        )
    if is_fixed:
        if kind.list_size != n_features and len(array):
            raise ValueError(f"column {name!r} must have {whose} {n_features} features; got lists of {kind.list_size}.")
    else:
        lengths = np.diff(array.offsets.to_numpy())
        wrong = np.flatnonzero(lengths != n_features)
        if len(wrong):
            raise ValueError(
                f"column {name!r} must have {whose} {n_features} features in every row; got {lengths[wrong[0]]} in "
                f"row {first_row + wrong[0]}."
            )
    flat = array.flatten()
    if flat.null_count:
        row = first_row + _first(flat.is_null()) // n_features
        raise ValueError(
            f"column {name!r} holds {flat.null_count} nulls within embeddings, the first in row {row}; fill them first."
        )
    return flat.to_numpy(zero_copy_only=False).reshape(len(array), n_features)


def _first(mask: Any) -> int:
    """Return the position of the first true entry of a boolean array."""
    return int(np.argmax(mask.to_numpy(zero_copy_only=False)))


def lists_of_csr(
    codes: Any, index_type: pa.DataType, value_type: pa.DataType, *, first_row: int = 0
) -> tuple[pa.ListArray, pa.ListArray]:
    """Return the rows of a CSR matrix as lists of indices and lists of values.

    Zeros are left out. `first_row` is the number of its first row in what it is a block of, for messages.

    Raises
    ------
    ValueError
        If there are more nonzeros than 32-bit offsets can number, a value is beyond the range of `value_type`, or all
        values of a code are below it.
    """
    pa = import_pyarrow("Arrow columns of codes")
    # list<> has 32-bit offsets; a table beyond them is made in blocks by the caller
    if codes.nnz > np.iinfo(np.int32).max:
        raise ValueError(
            f"an Arrow list column holds at most 2**31 - 1 nonzeros, got {codes.nnz}; convert blocks of fewer rows"
        )
    dtype = np.dtype(value_type.to_pandas_dtype())
    with np.errstate(over="ignore"):
        values = codes.data.astype(dtype, copy=False)
    if not np.isfinite(values).all():
        largest = np.abs(codes.data).max()
        raise ValueError(
            f"a code has a value of magnitude {largest:.3g}, beyond {dtype.name}; scale the embeddings down, use "
            "norm='unit', or a wider value type"
        )
    if values.dtype != codes.data.dtype and codes.nnz:
        starts = codes.indptr[:-1][np.diff(codes.indptr) > 0]
        peaks = np.maximum.reduceat(np.abs(codes.data), starts)
        too_small = np.flatnonzero((peaks > 0) & (peaks < np.finfo(dtype).tiny))
        if len(too_small):
            row = first_row + np.flatnonzero(np.diff(codes.indptr) > 0)[too_small[0]]
            raise ValueError(
                f"the code of row {row} has no value above {peaks[too_small[0]]:.3g}, too small for {dtype.name}; "
                "scale the embeddings up, use norm='unit', or a wider value type"
            )
    indptr, indices = codes.indptr, codes.indices
    is_kept = values != 0
    if not is_kept.all():  # some that are stored are zero, or became it in a narrower type
        indptr = np.concatenate([[0], np.cumsum(is_kept)])[indptr]
        indices, values = indices[is_kept], values[is_kept]
    offsets = pa.array(indptr.astype(np.int32, copy=False))
    indices = pa.array(indices.astype(index_type.to_pandas_dtype(), copy=False))
    return pa.ListArray.from_arrays(offsets, indices), pa.ListArray.from_arrays(offsets, pa.array(values))


def csr_of_lists(indices: Any, values: Any, n_components: int) -> sp.csr_array:
    """Return lists of indices and values as canonical CSR, after checking them.

    Parameters
    ----------
    indices, values : pyarrow.Array or ChunkedArray of lists
        Integers and floats of any width.
    n_components : int
        Width of the codes.

    Returns
    -------
    codes : csr_array of shape (n_rows, n_components), float32 (float64 for float64 values)

    Raises
    ------
    CodesFormatError
        If a column is of another type or holds nulls, lists differ in length, an index is out of range or repeated, or
        a value is not finite.
    """
    pa = import_pyarrow("Arrow columns of codes")
    offsets, flat = [], []
    for name, column, is_item in (
        ("indices", indices, pa.types.is_integer),
        ("values", values, pa.types.is_floating),
    ):
        array = combined(column)
        kind = array.type
        if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)) or not is_item(kind.value_type):
            expected = "integers" if name == "indices" else "floats"
            raise CodesFormatError(f"the column of {name} must hold lists of {expected}; got {kind}")
        items = array.flatten()
        if array.null_count or items.null_count:
            raise CodesFormatError(f"the column of {name} holds nulls")
        starts = array.offsets.to_numpy().astype(np.int64)
        offsets.append(starts - starts[0])
        flat.append(items.to_numpy(zero_copy_only=False))
    if not np.array_equal(*offsets):
        raise CodesFormatError("the columns 'indices' and 'values' have lists of different lengths")
    columns, data = flat
    if len(columns) and (columns.min() < 0 or columns.max() >= n_components):
        raise CodesFormatError(
            f"the column of indices must lie within [0, {n_components}); got {columns.min()} to {columns.max()}"
        )
    if not np.isfinite(data).all():
        raise CodesFormatError("the column of values holds NaN or infinity")
    dtype = np.float64 if data.dtype == np.float64 else np.float32
    index_dtype = np.int32 if max(len(data), n_components) <= np.iinfo(np.int32).max else np.int64
    codes = sp.csr_array(
        (data.astype(dtype), columns.astype(index_dtype), offsets[0].astype(index_dtype)),
        shape=(len(offsets[0]) - 1, n_components),
    )
    codes.sort_indices()
    if not codes.has_canonical_format:
        raise CodesFormatError("the column of indices repeats an index within a row")
    codes.eliminate_zeros()
    return codes
