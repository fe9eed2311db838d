"""Packed codes to and from Arrow: list columns that sparse engines and Parquet understand."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

import numpy as np

from skcompressae._arrow_columns import (
    METADATA_VERSION,
    PACKED_KEY,
    combined,
    compact_index_type,
    csr_of_lists,
    import_pyarrow,
    lists_of_csr,
)
from skcompressae.exceptions import CodesFormatError
from skcompressae.packed._quantizer import as_packable_csr, stored_quantizer
from skcompressae.packed._residual import ResidualQuantizer
from skcompressae.packed._store import PackedCodes

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["from_arrow", "to_arrow"]

_PURPOSE = "Arrow tables of packed codes"


def _text(array: Any) -> dict[str, Any]:
    data = np.ascontiguousarray(array, dtype="<f4")
    return {"shape": list(data.shape), "data": base64.b64encode(data.tobytes()).decode()}


def _array(entry: dict[str, Any]) -> Any:
    data = np.frombuffer(base64.b64decode(entry["data"], validate=True), dtype="<f4")
    return data.reshape(entry["shape"])


def to_arrow(store: PackedCodes, record: dict[str, Any] | None = None) -> pa.Table:
    """Return indices, values and residual codes as columns.

    The quantisers, and what is known of the model that made the codes, go into the schema's metadata.
    """
    pa = import_pyarrow(_PURPOSE)
    indices, values = lists_of_csr(store.to_csr(), compact_index_type(store.n_components), pa.float32())
    columns = {"indices": indices, "values": values}
    meta: dict[str, Any] = {
        **({"model": record} if record else {}),
        "version": METADATA_VERSION,
        "n_components": store.n_components,
        "k": store.k,
        "kind": store.quantizer.kind,
        "value_bits": store.value_bits,
        "levels": _text(store.quantizer.levels) if store.quantizer._is_ranked else None,
    }
    residual, quantizer = store.residual_codes, store.residual_quantizer
    if residual is not None and quantizer is not None:
        flat = pa.array(np.ascontiguousarray(residual).reshape(-1))
        columns["residual_codes"] = pa.FixedSizeListArray.from_arrays(flat, residual.shape[1])
        meta["residual_centroids"] = _text(quantizer.centroids)
        meta["residual_rotation"] = None if quantizer.rotation is None else _text(quantizer.rotation)
    return pa.table(columns).replace_schema_metadata({PACKED_KEY: json.dumps(meta).encode()})


def from_arrow(table: pa.Table, *, n_threads: int = 1) -> PackedCodes:
    """Pack a table of `to_arrow` with the quantiser it carries."""
    pa = import_pyarrow(_PURPOSE)
    if not isinstance(table, pa.Table):
        raise TypeError(f"table must be a pyarrow.Table, got {type(table).__name__}")
    metadata = (table.schema.metadata or {}).get(PACKED_KEY)
    if metadata is None or not {"indices", "values"} <= set(table.column_names):
        raise CodesFormatError(
            "the table has no 'skcompressae' schema metadata or lacks the columns 'indices' and 'values'; "
            "only tables of PackedCodes.to_arrow() can be read"
        )
    try:
        meta = json.loads(metadata)
        if meta["version"] != METADATA_VERSION:
            raise CodesFormatError(f"the table has version {meta['version']!r}, expected {METADATA_VERSION}")
        quantizer = stored_quantizer(meta["kind"], meta["value_bits"], lambda: _array(meta["levels"]))
        csr = as_packable_csr(csr_of_lists(table.column("indices"), table.column("values"), meta["n_components"]))
        store = PackedCodes.pack(csr, k=meta["k"], quantizer=quantizer, n_threads=n_threads)
        _check_exact(store, csr)
        if "residual_codes" not in table.column_names:
            return store
        rotation = meta["residual_rotation"]
        residual_quantizer = ResidualQuantizer(
            _array(meta["residual_centroids"]), None if rotation is None else _array(rotation)
        )
        column = combined(table.column("residual_codes"))
        if column.null_count:
            raise CodesFormatError("column 'residual_codes' holds nulls")
        codes = column.flatten().cast(pa.uint8()).to_numpy(zero_copy_only=False)  # raises rather than wraps around
        return store.with_residual(codes.reshape(len(table), residual_quantizer.n_bytes), residual_quantizer)
    except CodesFormatError:
        raise
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise CodesFormatError(f"the table does not hold packed codes: {error}") from error


def _check_exact(store: PackedCodes, csr: Any) -> None:
    """Raise if packing rounded a value: joined tables keep the metadata, and so the quantiser, of the first alone."""
    start = 0
    for i, block in enumerate(store.iter_blocks()):
        values = block.to_csr().data
        if not np.array_equal(values, csr.data[start : start + len(values)]):
            raise CodesFormatError(
                f"block {i} of {len(block)} rows has values that the table's quantizer does not have; join tables of "
                "one quantizer, or pack the matrix of skcompressae.arrow.codes_from_arrow"
            )
        start += len(values)
