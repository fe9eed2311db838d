"""`info`: what a file holds."""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

from skcompressae._cli._errors import CommandError
from skcompressae._cli._formats import kind_of
from skcompressae._cli._messages import one_line, say
from skcompressae._cli._npy import NpyRows
from skcompressae._cli._npz import NpzCodes
from skcompressae._cli._parquet import ParquetCodes, open_parquet
from skcompressae._cli._sources import CodeSource, PackedSource

__all__ = ["describe", "info"]


def info(arguments: argparse.Namespace) -> None:
    """Run ``skcompressae info``."""
    records, refused = [], []
    for path in arguments.files:
        try:
            records.append(describe(path))
        except (CommandError, OSError, ValueError) as error:  # the other files are described all the same
            refused.append(error)
    if records:
        _print(records, arguments)
    for refusal in refused[:-1]:  # a line each, and the exit code with the last one
        say(f"skcompressae: error: {one_line(refusal, arguments)}")
    if refused:
        raise refused[-1]


def _print(records: list[dict[str, Any]], arguments: argparse.Namespace) -> None:
    if arguments.json:
        sys.stdout.write(json.dumps(_plain(records), indent=1, default=str, allow_nan=False) + "\n")
        return
    for number, record in enumerate(records):
        if number:
            sys.stdout.write("\n")
        width = max(map(len, record))
        sys.stdout.write("".join(f"{name.ljust(width)}  {_text(value)}\n" for name, value in record.items()))


def _plain(value: Any) -> Any:
    """Return what JSON can hold: nothing where a number is not known."""
    if isinstance(value, dict):
        return {name: _plain(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}={_text(entry)}" for name, entry in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def describe(path: str) -> dict[str, Any]:
    """Return what a file holds, after its checks."""
    kind = kind_of(path)
    record: dict[str, Any] = {"file": path, "kind": kind, "size_bytes": Path(path).stat().st_size}
    record.update(_DESCRIPTIONS[kind](path))
    return record


def _npy(path: str) -> dict[str, Any]:
    rows = NpyRows(path)
    return {"kind": "embeddings", "n_rows": rows.n_rows, "n_features": rows.n_features, "dtype": str(rows.dtype)}


def _npz(path: str) -> dict[str, Any]:
    codes = NpzCodes(path)
    return {
        "kind": "codes",
        "n_rows": codes.n_rows,
        "n_components": codes.n_components,
        "nonzeros_per_row": codes.nnz / codes.n_rows,
        "dtype": str(codes.dtype),
        **_told(codes),
    }


def _parquet(path: str) -> dict[str, Any]:
    file = open_parquet(path)
    record: dict[str, Any] = {
        "kind": "Parquet table",
        "n_rows": file.metadata.num_rows,
        "n_row_groups": file.num_row_groups,
        "columns": {field.name: str(field.type) for field in file.schema_arrow},
    }
    try:
        codes = ParquetCodes(path)
    except CommandError:
        return record  # a table without codes, such as one of embeddings
    return {**record, "kind": "codes", "n_components": codes.n_components, **_told(codes)}


def _told(codes: CodeSource) -> dict[str, Any]:
    """Return what a file of codes says about how they were made."""
    return {name: codes.meta[name] for name in ("k", "norm", "layout", "model_hash") if name in codes.meta}


def _packed(path: str) -> dict[str, Any]:
    source = PackedSource(path)
    store = source.store
    described = {
        "kind": "archive of packed codes" if source.is_archive else "packed codes",
        "n_rows": source.n_rows,
        "n_components": source.n_components,
        "k": store.k,
        "value_bits": store.value_bits,
        "quantizer": store.quantizer.kind,
        "bytes_per_row": store.bytes_per_row,
        "residual_bytes_per_row": 0 if store.residual_codes is None else store.residual_codes.shape[1],
    }
    return {**described, **_told(source), "k": store.k}  # of rows that are shorter, less than the model's


def _index(path: str) -> dict[str, Any]:
    from skcompressae import CodeNearestNeighbors
    from skcompressae._neighbors_io import read_model_hash

    index = CodeNearestNeighbors.load(path, verify=True)
    model_hash = read_model_hash(path)
    described = {} if model_hash is None else {"model_hash": model_hash}
    return {
        "kind": "search index",
        "n_documents": index.n_samples_fit_,
        "n_components": index.n_features_in_,
        "mode": index.mode,
        "metric": index.metric,
        "has_components": index.components_ is not None,
        "bytes_per_document": index.nbytes_per_document_,
        **described,
    }


def _model(path: str) -> dict[str, Any]:
    from skcompressae._model_io import RESOLVED_PARAMETERS
    from skcompressae._recipes import RECIPES
    from skcompressae.persistence import load_model, model_hash

    model = load_model(path)
    unchanged = type(model)().get_params()
    for name in RESOLVED_PARAMETERS:  # of which files hold what the recipe makes of "auto"
        unchanged[name] = getattr(RECIPES[model.recipe], name)
    parameters = {name: value for name, value in model.get_params().items() if value != unchanged[name]}
    return {
        "kind": "model",
        "n_components": len(model.components_),
        "n_features": model.n_features_in_,
        "k": model.k,
        "model_hash": model_hash(model),
        "n_iter": model.n_iter_,
        "loss": float(model.loss_curve_[-1]) if len(model.loss_curve_) else None,
        "dead_latents_fraction": model.dead_latents_fraction_,
        "changed_parameters": parameters,
    }


def _reference(_: str) -> dict[str, Any]:
    return {"kind": "checkpoint of PyTorch"}


_DESCRIPTIONS = {
    "npy": _npy,
    "npz": _npz,
    "parquet": _parquet,
    "packed": _packed,
    "index": _index,
    "model": _model,
    "reference": _reference,
}
