"""`encode` and `decode`: a stream of rows through a model, resumed where it stopped."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skcompressae._cli._errors import CommandError, UsageError
from skcompressae._cli._formats import check_output, output_kind
from skcompressae._cli._messages import say
from skcompressae._cli._models import ENCODING_OPTIONS, check_value_kind, matching_model, read_model
from skcompressae._cli._parquet import ParquetCodes, ParquetRows
from skcompressae._cli._progress import progress_bar
from skcompressae._cli._sinks import (
    kept_fields,
    planned_codes,
    write_codes_npz,
    write_codes_parquet,
    write_rows_npy,
    write_rows_parquet,
)
from skcompressae._cli._sources import (
    RowSource,
    block_rows_for,
    check_column,
    check_finite,
    check_width,
    fingerprint,
    open_codes,
    open_rows,
)
from skcompressae._cli._spool import Spool

__all__ = ["decode", "encode"]


def encode(arguments: argparse.Namespace) -> None:
    """Run ``skcompressae encode``."""
    kind = output_kind(arguments.output, ("npz", "parquet", "packed"))
    for option in ("value_bits", "value_kind"):
        if kind != "packed" and getattr(arguments, option) is not None:
            raise UsageError(f"--{option.replace('_', '-')} is for packed codes, an output that ends in .skc")
    check_value_kind(arguments)
    if kind != "packed" and arguments.no_residual:
        raise UsageError("--no-residual is for packed codes, an output that ends in .skc")
    for option in ("layout", "value_type", "drop_columns"):
        if kind != "parquet" and getattr(arguments, option):
            raise UsageError(f"--{option.replace('_', '-')} is for an output that ends in .parquet")
    if arguments.value_type == "float16" and arguments.layout not in (None, "compact"):
        raise UsageError(f"--value-type float16 needs --layout compact; got --layout {arguments.layout}")
    check_output(arguments.output, force=arguments.force)
    check_column(arguments.column, arguments.input)
    source = open_rows(arguments.input, arguments.column)
    model = read_model(arguments.model, arguments)
    check_width(source, model.n_features_in_, f"the model {arguments.model}")
    has_scales = arguments.value_kind != "fixed"
    if model.norm == "input" and not has_scales:
        raise UsageError("--value-kind fixed stores no scale per row; give --norm unit or --norm none with it")
    if arguments.no_residual:
        model.set_params(residual_bytes=None)
    residual = _residual_identity(model) if kind == "packed" else None
    options = {"output": kind, "column": arguments.column, "value_bits": arguments.value_bits}
    if kind == "packed":
        options["residual"] = residual
        if arguments.value_kind not in (None, "auto"):
            options["value_kind"] = arguments.value_kind
    dtype = np.dtype(np.float32 if source.dtype in (np.float16, np.float32) or kind != "npz" else np.float64)
    streams: dict[str, np.dtype[Any]]
    if kind == "packed":
        streams = {"rows": np.dtype(np.uint8)}
        if has_scales:
            streams["scales"] = np.dtype("<u2" if (arguments.value_bits or 4) <= 8 else "<f4")
        if residual is not None:
            streams["residual_codes"] = np.dtype(np.uint8)
    else:
        streams = {"lengths": np.dtype("<i4"), "indices": np.dtype("<i4"), "values": dtype.newbyteorder("<")}
    parquet = source if isinstance(source, ParquetRows) else None
    plan = planned_codes(model, parquet, arguments) if kind == "parquet" else None
    identity = _identity("encode", model, source.path, options)
    spool = Spool(arguments.output, identity, streams, restart=arguments.restart, force=arguments.force)
    try:
        _report_resumed(spool, source.n_rows, arguments)
        quantizer = _quantizer(spool, model, source, arguments) if kind == "packed" else None
        n_block_rows = block_rows_for(source.n_features, source.dtype)
        with progress_bar(source.n_rows, "encode", n_done=spool.n_rows, is_quiet=arguments.quiet) as bar:
            for block in source.blocks(spool.n_rows, n_block_rows):
                if quantizer is None:
                    _append_codes(spool, _encoded(model, block, source, spool.n_rows), source)
                else:
                    _append_packed(spool, model, block, quantizer, source)
                bar.update(len(block))
        shape = (spool.n_rows, int(model.components_.shape[0]))
        if shape[0] != source.n_rows:
            raise CommandError(f"{source.name} gave {shape[0]} rows, expected {source.n_rows}; it is damaged")
        if kind == "packed":
            k = min(model.k, shape[1])
            spool.finish(arguments.output, lambda path: _write_packed(path, spool, model, k, quantizer))
        elif plan is None:
            spool.finish(arguments.output, lambda path: write_codes_npz(path, spool, model))
        else:
            spool.finish(arguments.output, lambda path: write_codes_parquet(path, spool, *plan, parquet))
    finally:
        spool.close()
    size = Path(arguments.output).stat().st_size
    keeps_columns = plan is not None and set(plan[1].names) > set(plan[0].code_columns)
    what = "a row with the kept columns" if keeps_columns else "each"
    say(f"{arguments.output}: {shape[0]} codes, {size / shape[0]:.1f} bytes {what}", is_quiet=arguments.quiet)


def _identity(command: str, model: Any, path: Path, options: dict[str, Any]) -> dict[str, Any]:
    from skcompressae._model_weights import code_settings
    from skcompressae._version import __version__
    from skcompressae.persistence import model_hash

    settings = code_settings(model)
    named = {name: settings[name] for name in ENCODING_OPTIONS if name in settings}
    return {
        "command": command,
        "model": {"hash": model_hash(model), **named},
        "input": fingerprint(path),
        "options": options,
        "skcompressae": __version__,
    }


def _residual_identity(model: Any) -> str | None:
    """Return a digest of what the residual codes are made by, None if there are to be none.

    Raises
    ------
    UsageError
        If the model makes none of the codes that the arguments ask for.
    """
    from skcompressae._model_format import array_digest
    from skcompressae._residual_codes import checked_quantizer

    try:
        quantizer = checked_quantizer(model)
    except ValueError as error:
        raise UsageError(f"{error} Or give --no-residual.") from error
    if quantizer is None:
        return None
    rotation = {} if quantizer.rotation is None else {"rotation": quantizer.rotation}
    return array_digest({"centroids": quantizer.centroids, **rotation})


def _report_resumed(spool: Spool, n_rows: int, arguments: argparse.Namespace) -> None:
    if spool.n_rows > n_rows:
        raise CommandError(f"{spool.folder} holds more rows than the input; give --restart to throw it away")
    if spool.n_rows:
        say(f"continuing after row {spool.n_rows} of {n_rows}", is_quiet=arguments.quiet)


def _encoded(model: Any, block: NDArray[Any], source: RowSource, rows: NDArray[np.intp] | int) -> Any:
    try:
        return model.transform(block)
    except ValueError as error:
        check_finite(block, source, rows, error)
        raise


def _append_codes(spool: Spool, codes: Any, source: RowSource) -> None:
    is_beyond = np.abs(codes.data) > np.finfo(spool.dtype("values")).max
    if is_beyond.any():
        row = spool.n_rows + int(np.searchsorted(codes.indptr, np.argmax(is_beyond), side="right")) - 1
        raise CommandError(
            f"{source.name}, row {row}: the values of its code are beyond float32, which the output holds; "
            "give --norm unit, or an output that ends in .npz"
        )
    arrays = {"lengths": np.diff(codes.indptr), "indices": codes.indices, "values": codes.data}
    spool.append(codes.shape[0], arrays)


def _append_packed(spool: Spool, model: Any, block: NDArray[Any], quantizer: Any, source: RowSource) -> None:
    with _naming(source, spool.n_rows, model, has_scales=quantizer._has_scales):
        try:
            packed = model.transform_packed(block, quantizer=quantizer)
        except ValueError as error:
            check_finite(block, source, spool.n_rows, error)
            raise
    arrays = {"rows": packed.rows}
    if quantizer._has_scales:
        arrays["scales"] = packed._scales
    if packed.residual_codes is not None:
        arrays["residual_codes"] = packed.residual_codes
    spool.append(len(packed), arrays)


@contextmanager
def _naming(source: RowSource, first_row: int | None, model: Any, *, has_scales: bool) -> Iterator[None]:
    """Raise errors of values that cannot be packed in the name of the file, with a remedy."""
    try:
        yield
    except ValueError as error:
        which = "" if first_row is None else f", counted from row {first_row}"
        remedy = "--norm unit" if has_scales else "--value-kind ranked"
        if has_scales and model.residual_bytes is not None:
            remedy += " --no-residual"
        raise CommandError(f"{source.name}: {str(error).rstrip('.')}{which}; give {remedy}") from error


def _quantizer(spool: Spool, model: Any, source: RowSource, arguments: argparse.Namespace) -> Any:
    """Return the quantiser of the values, learned once and kept in the journal, from the first rows on."""
    from skcompressae.packed import ValueQuantizer
    from skcompressae.packed._quantizer import quantizer_rows

    value_bits: int = arguments.value_bits or 4
    kind: Any = arguments.value_kind or "auto"
    if "levels" not in spool.state:
        rows = quantizer_rows(source.n_rows)
        k = min(model.k, int(model.components_.shape[0]))
        codes = _encoded(model, source.take(rows), source, rows)
        with _naming(source, None, model, has_scales=kind != "fixed"):
            learned = ValueQuantizer.fit(codes, value_bits=value_bits, k=k, kind=kind)
        # committed with the first rows: where those cannot be packed, nothing is left that --restart had to throw away
        spool.state.update(kind=learned.kind, levels=learned.levels.astype(np.float64).tolist())
    levels = np.array(spool.state["levels"], dtype=np.float32)
    return ValueQuantizer(spool.state["kind"], value_bits, levels)


def _write_packed(path: Path, spool: Spool, model: Any, k: int, quantizer: Any) -> None:
    from skcompressae._model_weights import coding_record
    from skcompressae._residual_codes import fitted_quantizer
    from skcompressae.packed import PackedCodes
    from skcompressae.packed._files import save

    rows = spool.map_stream("rows").reshape(spool.n_rows, -1)
    scales = spool.map_stream("scales") if quantizer._has_scales else None
    packed = PackedCodes(rows, scales, n_components=len(model.components_), k=k, quantizer=quantizer)
    residual = None if model.residual_bytes is None else fitted_quantizer(model)
    if residual is not None:
        packed = packed.with_residual(spool.map_stream("residual_codes").reshape(spool.n_rows, -1), residual)
    save(packed, path, coding_record(model))


def decode(arguments: argparse.Namespace) -> None:
    """Run ``skcompressae decode``."""
    kind = output_kind(arguments.output, ("npy", "parquet"))
    if kind != "parquet" and arguments.column is not None:
        raise UsageError("--column is for an output that ends in .parquet")
    check_output(arguments.output, force=arguments.force)
    source = open_codes(arguments.input, arguments.n_components)
    model = read_model(arguments.model, arguments)
    n_components, n_features = model.components_.shape
    if source.n_components != n_components:
        raise CommandError(
            f"{source.name} has codes of {source.n_components} components, "
            f"the model {arguments.model} has {n_components}"
        )
    matching_model(model, source.meta, source.name)
    parquet = source if isinstance(source, ParquetCodes) else None
    column = arguments.column or "embedding"
    fields = kept_fields(parquet, column) if kind == "parquet" else []
    dtype = np.dtype(getattr(source, "dtype", np.float32))
    identity = _identity("decode", model, source.path, {"output": kind})
    streams = {"rows": dtype.newbyteorder("<")}
    spool = Spool(arguments.output, identity, streams, restart=arguments.restart, force=arguments.force)
    try:
        _report_resumed(spool, source.n_rows, arguments)
        with progress_bar(source.n_rows, "decode", n_done=spool.n_rows, is_quiet=arguments.quiet) as bar:
            for block in source.blocks(spool.n_rows, block_rows_for(n_features, dtype)):
                rows = model.inverse_transform(block)
                spool.append(len(rows), {"rows": rows})
                bar.update(len(rows))
        if spool.n_rows != source.n_rows:
            raise CommandError(f"{source.name} gave {spool.n_rows} rows, expected {source.n_rows}; it is damaged")
        n_rows = spool.n_rows
        if kind == "npy":
            spool.finish(arguments.output, lambda path: write_rows_npy(path, spool, n_features, dtype))
        else:
            rest = n_features, parquet, fields, column
            spool.finish(arguments.output, lambda path: write_rows_parquet(path, spool, *rest))
    finally:
        spool.close()
    say(f"{arguments.output}: {n_rows} embeddings of {n_features} features", is_quiet=arguments.quiet)
