"""Packed codes to and from Arrow: list columns that sparse engines and Parquet understand."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from skcompressae.exceptions import CodesFormatError
from skcompressae.packed._quantizer import ValueQuantizer
from skcompressae.packed._residual import ResidualQuantizer
from skcompressae.packed._store import PackedCodes

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["from_arrow", "to_arrow"]

_KEY = b"skcompressae"
_VERSION = 1


def _pyarrow() -> Any:
    try:
        import pyarrow
    except ImportError as error:
        raise ImportError(
            "Arrow tables of packed codes need pyarrow: install it with pip install 'skcompressae[arrow]'"
        ) from error
    return pyarrow


def _text(array: Any) -> dict[str, Any]:
    data = np.ascontiguousarray(array, dtype="<f4")
    return {"shape": list(data.shape), "data": base64.b64encode(data.tobytes()).decode()}


def _array(entry: dict[str, Any]) -> Any:
    data = np.frombuffer(base64.b64decode(entry["data"], validate=True), dtype="<f4")
    return data.reshape(entry["shape"])


def to_arrow(store: PackedCodes) -> pa.Table:
    """Return indices, values and residual codes as columns; the quantisers go into the schema's metadata."""
    pa = _pyarrow()
    csr = store.to_csr()
    index_type = np.uint16 if store.n_components <= 1 << 16 else np.int32
    # list<> has 32-bit offsets; a table beyond them is made in blocks by the caller
    if csr.nnz > np.iinfo(np.int32).max:
        raise ValueError(
            f"an Arrow list column holds at most 2**31 - 1 nonzeros, got {csr.nnz}; convert blocks of iter_blocks()"
        )
    offsets = pa.array(csr.indptr.astype(np.int32))
    columns = {
        "indices": pa.ListArray.from_arrays(offsets, pa.array(csr.indices.astype(index_type))),
        "values": pa.ListArray.from_arrays(offsets, pa.array(csr.data)),
    }
    meta: dict[str, Any] = {
        "version": _VERSION,
        "n_components": store.n_components,
        "k": store.k,
        "kind": store.quantizer.kind,
        "value_bits": store.value_bits,
        "levels": _text(store.quantizer.levels) if store.quantizer.kind == "ranked" else None,
    }
    residual, quantizer = store.residual_codes, store.residual_quantizer
    if residual is not None and quantizer is not None:
        flat = pa.array(np.ascontiguousarray(residual).reshape(-1))
        columns["residual_codes"] = pa.FixedSizeListArray.from_arrays(flat, residual.shape[1])
        meta["residual_centroids"] = _text(quantizer.centroids)
        meta["residual_rotation"] = None if quantizer.rotation is None else _text(quantizer.rotation)
    return pa.table(columns).replace_schema_metadata({_KEY: json.dumps(meta).encode()})


def from_arrow(table: pa.Table, *, n_threads: int = 1) -> PackedCodes:
    """Pack a table of `to_arrow` with the quantiser it carries."""
    pa = _pyarrow()
    if not isinstance(table, pa.Table):
        raise TypeError(f"table must be a pyarrow.Table, got {type(table).__name__}")
    metadata = (table.schema.metadata or {}).get(_KEY)
    if metadata is None or not {"indices", "values"} <= set(table.column_names):
        raise CodesFormatError(
            "the table has no 'skcompressae' schema metadata or lacks the columns 'indices' and 'values'; "
            "only tables of PackedCodes.to_arrow() can be read"
        )
    try:
        meta = json.loads(metadata)
        if meta["version"] != _VERSION:
            raise CodesFormatError(f"the table has version {meta['version']!r}, expected {_VERSION}")
        if meta["kind"] == "uniform":
            quantizer = ValueQuantizer.fit(np.zeros((0, 1)), value_bits=meta["value_bits"], kind="uniform")
        else:
            quantizer = ValueQuantizer(meta["kind"], meta["value_bits"], _array(meta["levels"]))
        indices = _combined(table, "indices")
        values = _combined(table, "values")
        offsets = indices.offsets.to_numpy().astype(np.int64)
        starts = values.offsets.to_numpy().astype(np.int64)
        if not np.array_equal(offsets - offsets[0], starts - starts[0]):
            raise CodesFormatError("the columns 'indices' and 'values' have lists of different lengths")
        csr = sp.csr_matrix(
            (
                values.flatten().to_numpy(zero_copy_only=False),
                indices.flatten().to_numpy(zero_copy_only=False),
                offsets - offsets[0],
            ),
            shape=(len(table), meta["n_components"]),
        )
        store = PackedCodes.pack(csr, k=meta["k"], quantizer=quantizer, n_threads=n_threads)
        if "residual_codes" not in table.column_names:
            return store
        rotation = meta["residual_rotation"]
        residual_quantizer = ResidualQuantizer(
            _array(meta["residual_centroids"]), None if rotation is None else _array(rotation)
        )
        column = _combined(table, "residual_codes")
        codes = column.flatten().to_numpy(zero_copy_only=False).astype(np.uint8)
        return store.with_residual(codes.reshape(len(table), residual_quantizer.n_bytes), residual_quantizer)
    except CodesFormatError:
        raise
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise CodesFormatError(f"the table does not hold packed codes: {error}") from error


def _combined(table: pa.Table, name: str) -> Any:
    """Return a column as one array, without nulls."""
    pa = _pyarrow()
    column = table.column(name)
    if column.null_count:
        raise CodesFormatError(f"column {name!r} holds nulls")
    chunks = column.chunks
    if len(chunks) == 1:
        return chunks[0]
    return pa.concat_arrays(chunks) if chunks else pa.array([], type=column.type)
