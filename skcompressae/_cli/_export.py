"""`export`: the same model or the same codes in another format."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from skcompressae._cli._errors import CommandError, UsageError
from skcompressae._cli._formats import check_output, kind_of, output_kind
from skcompressae._cli._messages import say
from skcompressae._cli._models import ENCODING_OPTIONS, check_value_kind, read_model, with_arguments
from skcompressae._cli._npz import write_npz
from skcompressae._cli._parquet import ParquetCodes, parquet_writer
from skcompressae._cli._progress import progress_bar
from skcompressae._cli._sources import CodeSource, PackedSource, has_residual_codes, open_codes, packed_store
from skcompressae._files import atomic_write

__all__ = ["export"]

_BLOCK_ROWS = 1 << 16


def export(arguments: argparse.Namespace) -> None:
    """Run ``skcompressae export``."""
    kind = kind_of(arguments.input)
    if kind in ("model", "reference"):
        to = output_kind(arguments.output, ("model", "reference", "onnx") if kind == "model" else ("model",))
        check_output(arguments.output, force=arguments.force)
        for option in ("value_bits", "value_kind", "n_components"):
            if getattr(arguments, option) is not None:
                raise UsageError(f"--{option.replace('_', '-')} is for codes; {arguments.input} holds a model")
        _export_model(kind, to, arguments)
    else:
        to = output_kind(arguments.output, ("npz", "parquet", "packed", "archive"))
        check_output(arguments.output, force=arguments.force)
        if given := [name for name in ENCODING_OPTIONS if getattr(arguments, name) is not None]:
            raise UsageError(f"--{given[0]} is for models; {arguments.input} holds codes, which stay as they are")
        source = open_codes(arguments.input, arguments.n_components)
        if to not in ("packed", "archive") or _has_quantizer(source):
            for option in ("value_bits", "value_kind"):
                if getattr(arguments, option) is not None:
                    flag = option.replace("_", "-")
                    raise UsageError(f"--{flag} is for packing codes that are not packed yet, into .skc or .ska")
        check_value_kind(arguments)
        _WRITERS[to](source, arguments)
    say(f"{arguments.output}: {Path(arguments.output).stat().st_size} bytes", is_quiet=arguments.quiet)


def _export_model(kind: str, to: str, arguments: argparse.Namespace) -> None:
    from skcompressae._residual_codes import fitted_quantizer
    from skcompressae.persistence import from_reference_checkpoint, to_reference_checkpoint

    if kind == "reference":
        if arguments.k is None:
            raise UsageError(f"{arguments.input} does not say how many nonzeros a code has; give --k")
        norm = None if arguments.norm in (None, "none") else arguments.norm
        model = with_arguments(from_reference_checkpoint(arguments.input, k=arguments.k, norm=norm), arguments)
    else:
        model = read_model(arguments.input, arguments)
    if to == "model":
        if model.residual_bytes is not None and arguments.norm is not None and model.norm != model.residual_norm_:
            if fitted_quantizer(model) is not None:
                say("residual codes are left out: they were learned at another norm", is_quiet=arguments.quiet)
            model.set_params(residual_bytes=None)
            model.residual_quantizer_ = None
        model.save(arguments.output, with_moments=False)
    elif to == "onnx":
        from skcompressae.onnx import to_onnx

        to_onnx(model, arguments.output)
    else:
        to_reference_checkpoint(model, arguments.output)


def _record(source: CodeSource) -> dict[str, Any]:
    """Return what the codes' file says about the model that made them, for another file of them."""
    from skcompressae._model_weights import RECORDED

    if "model_hash" not in source.meta:
        return {}
    return {name: source.meta[name] for name in RECORDED if name in source.meta}


def _has_quantizer(source: CodeSource) -> bool:
    return isinstance(source, PackedSource) or (isinstance(source, ParquetCodes) and source.is_packed)


def _blocks(source: CodeSource, what: str, arguments: argparse.Namespace) -> Any:
    with progress_bar(source.n_rows, what, n_done=0, is_quiet=arguments.quiet) as bar:
        for block in source.blocks(0, _BLOCK_ROWS):
            yield sp.csr_matrix(block)
            bar.update(block.shape[0])


def _to_npz(source: CodeSource, arguments: argparse.Namespace) -> None:
    """Read the codes once for each of the three arrays that follow each other in the file."""
    if has_residual_codes(source):
        say("residual codes are left out: .npz files hold none", is_quiet=arguments.quiet)
    nnz = sum(block.nnz for block in _blocks(source, "count", arguments))
    dtype = np.dtype(getattr(source, "dtype", np.float32))
    with atomic_write(arguments.output, replaces=arguments.force) as stream:
        write_npz(
            stream,
            (source.n_rows, source.n_components),
            nnz,
            (np.diff(block.indptr) for block in _blocks(source, "row ends", arguments)),
            (block.indices for block in _blocks(source, "indices", arguments)),
            (block.data for block in _blocks(source, "values", arguments)),
            dtype,
            _record(source),
        )


def _to_packed(source: CodeSource, arguments: argparse.Namespace) -> None:
    from skcompressae.packed._archiving import to_archive
    from skcompressae.packed._files import save

    packed = _packed(source, arguments)
    if output_kind(arguments.output, ("packed", "archive")) == "packed":
        check_output(arguments.output, force=arguments.force)  # it may have appeared meanwhile
        save(packed, arguments.output, _record(source))
        return
    with atomic_write(arguments.output, replaces=arguments.force) as stream:
        stream.write(to_archive(packed, _record(source))[0])


def _packed(source: CodeSource, arguments: argparse.Namespace) -> Any:
    """Return the codes packed: as they are where they were, else with a quantiser learned on a sample of rows."""
    from skcompressae.packed import PackedCodes, ValueQuantizer
    from skcompressae.packed._quantizer import quantizer_rows

    store = packed_store(source)
    if store is not None:
        return store
    wanted = quantizer_rows(source.n_rows)
    k, start, sample = 1, 0, []
    for block in _blocks(source, "sample", arguments):
        stop = start + block.shape[0]
        _check_range(block, source, start)
        k = max(k, int(np.diff(block.indptr).max()))
        sample.append(block[wanted[(wanted >= start) & (wanted < stop)] - start])
        start = stop
    learning: dict[str, Any] = {"value_bits": arguments.value_bits or 4, "kind": arguments.value_kind or "auto"}
    try:
        quantizer = ValueQuantizer.fit(sp.vstack(sample, format="csr"), k=k, **learning)
    except ValueError as error:
        raise CommandError(f"{source.name}: {error}") from error
    n_threads = arguments.threads or 1
    start, packed = 0, []
    for block in _blocks(source, "pack", arguments):
        try:
            packed.append(PackedCodes.pack(block, k=k, quantizer=quantizer, n_threads=n_threads))
        except ValueError as error:
            raise CommandError(f"{source.name}: {error}, counted from row {start}") from error
        start += block.shape[0]
    return PackedCodes.concatenate(packed)


def _check_range(block: Any, source: CodeSource, start: int) -> None:
    """Refuse values beyond float32, in which packed codes are; `start` is the number of the first row."""
    beyond = np.flatnonzero(np.abs(block.data) > np.finfo(np.float32).max)
    if len(beyond):
        row = start + int(np.searchsorted(block.indptr, beyond[0], side="right")) - 1
        raise CommandError(
            f"{source.name}: row {row} has a value of magnitude {abs(block.data[beyond[0]]):.3g}, beyond float32"
        )


def _to_parquet(source: CodeSource, arguments: argparse.Namespace) -> None:
    """Write columns of codes; packed ones carry their quantiser, so that they come back equal."""
    import pyarrow as pa

    from skcompressae._arrow_columns import METADATA_KEY, METADATA_VERSION, compact_index_type, lists_of_csr
    from skcompressae.packed._arrow import to_arrow

    if isinstance(source, PackedSource):
        record = _record(source)
        schema = to_arrow(source.store[:0], record).schema
        with (
            atomic_write(arguments.output, replaces=arguments.force) as stream,
            parquet_writer(stream, schema) as writer,
        ):
            for part in source.store.iter_blocks(_BLOCK_ROWS):
                writer.write_table(to_arrow(part, record))
        return
    if isinstance(source, ParquetCodes):
        raise UsageError(f"{source.name} is a Parquet file of codes already")
    index_type = compact_index_type(source.n_components)
    meta = {
        **_record(source),
        "version": METADATA_VERSION,
        "n_components": source.n_components,
        "columns": ["indices", "values"],
        "layout": "compact",
    }
    fields = [pa.field("indices", pa.list_(index_type)), pa.field("values", pa.list_(pa.float32()))]
    schema = pa.schema(fields, {METADATA_KEY: json.dumps(meta).encode()})
    with atomic_write(arguments.output, replaces=arguments.force) as stream, parquet_writer(stream, schema) as writer:
        start = 0
        for block in _blocks(source, "export", arguments):
            arrays = list(lists_of_csr(block, index_type, pa.float32(), first_row=start))
            start += block.shape[0]
            writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=schema))


_WRITERS = {"npz": _to_npz, "parquet": _to_parquet, "packed": _to_packed, "archive": _to_packed}
