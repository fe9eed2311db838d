"""`search`: the nearest codes of queries, as a table of numbers."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skcompressae._cli._errors import CommandError, UsageError
from skcompressae._cli._formats import check_output, kind_of, output_kind
from skcompressae._cli._models import ENCODING_OPTIONS, matching_model, read_model
from skcompressae._cli._parquet import codes_metadata, open_parquet, parquet_writer
from skcompressae._cli._progress import progress_bar
from skcompressae._cli._sources import (
    CodeSource,
    RowSource,
    check_column,
    check_finite,
    check_width,
    has_residual_codes,
    open_codes,
    open_rows,
    packed_store,
)
from skcompressae._files import atomic_write
from skcompressae.exceptions import CodesFormatError

__all__ = ["search"]

_QUERY_BLOCK = 1024
_BLOCK_ROWS = 1 << 16

Found = tuple[NDArray[Any], NDArray[np.int64]]


def search(arguments: argparse.Namespace) -> None:
    """Run ``skcompressae search``."""
    kind = "tsv" if arguments.output is None else output_kind(arguments.output, ("tsv", "npz", "parquet"))
    for output in (arguments.output, arguments.save_index):
        if output is not None:
            check_output(output, force=arguments.force)
    is_index = kind_of(arguments.codes) == "index"
    _check_options(arguments, is_index=is_index)
    queries = _open_queries(arguments)
    model = None if arguments.model is None else read_model(arguments.model, arguments)
    if isinstance(queries, RowSource) and model is None and not is_index:
        raise UsageError(f"{queries.name} holds embeddings; name the model that compresses them with --model")
    if isinstance(queries, RowSource) and model is not None:
        check_width(queries, model.n_features_in_, f"the model {arguments.model}")
    if not isinstance(queries, RowSource) and arguments.mode == "asymmetric":
        raise UsageError(f"--mode asymmetric compares embeddings with codes, and {queries.name} holds codes")
    if not isinstance(queries, RowSource) and model is not None:
        matching_model(model, queries.meta, queries.name)
    source = None if is_index else open_codes(arguments.codes, None if model is None else len(model.components_))
    hash_of_codes = _hash_of_codes(arguments.codes, source, model)
    if not isinstance(queries, RowSource) and model is None:
        _check_same_hash(arguments.codes, hash_of_codes, queries, is_index=is_index)
    index = _load_index(arguments, model) if source is None else _make_index(source, arguments, model)
    if isinstance(queries, RowSource) and model is None:
        if index.components_ is None:
            raise UsageError(
                f"{queries.name} holds embeddings, and {arguments.codes} was built without a model; build it with "
                "--model, from the codes"
            )
        if index.effective_mode_ == "sparse" or index.mode == "reconstructed":  # compared as codes
            raise UsageError(f"{queries.name} holds embeddings; name the model that compresses them with --model")
        check_width(queries, index.components_.shape[1], f"the model of {arguments.codes}")
    if arguments.n_neighbors > index.n_samples_fit_:
        raise UsageError(f"-n {arguments.n_neighbors} is more than the {index.n_samples_fit_} documents")
    if arguments.save_index is not None:
        check_output(arguments.save_index, force=arguments.force)  # it may have appeared meanwhile
        index._save(arguments.save_index, model_hash=hash_of_codes)
    found = _found(index, queries, arguments)
    if arguments.output is None:
        for start, part in _numbered(found):
            sys.stdout.write(_table(start, part))
        return
    if kind == "tsv":
        with atomic_write(arguments.output, replaces=arguments.force) as stream:
            for start, part in _numbered(found):
                stream.write(_table(start, part).encode())
    elif kind == "npz":
        distances, indices = (np.concatenate(parts) for parts in zip(*found, strict=True))
        with atomic_write(arguments.output, replaces=arguments.force) as stream:
            np.savez(stream, distances=distances, indices=indices)
    else:
        _write_parquet(found, arguments)


def _check_options(arguments: argparse.Namespace, *, is_index: bool) -> None:
    """Refuse options that would do nothing, or ask for a model that is not there."""
    check_column(arguments.column, arguments.queries)
    if is_index:
        parts = ("mode", "metric", "rerank", *(["device"] if arguments.model is None else []))
        if given := [name for name in parts if getattr(arguments, name) is not None]:
            raise UsageError(f"--{given[0]} is part of a saved index; build one from codes for another")
    if arguments.model is not None:
        return
    if given := [name for name in ENCODING_OPTIONS if name != "device" and getattr(arguments, name) is not None]:
        raise UsageError(f"--{given[0]} is a parameter of the model; name that with --model")
    if arguments.mode in ("reconstructed", "asymmetric") or arguments.rerank is not None:
        option = "--rerank" if arguments.rerank is not None else f"--mode {arguments.mode}"
        raise UsageError(f"{option} needs the model that encoded the codes; name it with --model")


def _open_queries(arguments: argparse.Namespace) -> RowSource | CodeSource:
    kind = kind_of(arguments.queries)
    if kind == "parquet" and arguments.column is None:
        schema = open_parquet(arguments.queries).schema_arrow
        try:
            columns = codes_metadata(schema, arguments.queries).get("columns", ["indices", "values"])
        except CommandError:  # of codes; there may be embeddings
            columns = ["indices", "values"]
        if set(columns) <= set(schema.names):
            return open_codes(arguments.queries)
    return (
        open_rows(arguments.queries, arguments.column) if kind in ("npy", "parquet") else open_codes(arguments.queries)
    )


def _hash_of_codes(path: str, source: CodeSource | None, model: Any) -> str | None:
    """Return the hash of the model of the documents, as far as they or `model` tell; without `source` of an index."""
    from skcompressae._neighbors_io import read_model_hash
    from skcompressae.persistence import model_hash

    if source is None:
        return read_model_hash(path)
    if model is None:
        return source.meta.get("model_hash")
    matching_model(model, source.meta, source.name)
    # first their own: the model may have been given other parameters than they were encoded with
    return source.meta.get("model_hash", model_hash(model))


def _load_index(arguments: argparse.Namespace, model: Any) -> Any:
    from skcompressae import CodeNearestNeighbors

    try:
        index = CodeNearestNeighbors.load(arguments.codes, verify=True, compressor=model)
    except CodesFormatError:
        raise
    except ValueError as error:
        raise CommandError(
            f"{arguments.codes} was built with another model than {arguments.model}, or without one; build it with "
            "--model, from the codes"
        ) from error
    return index.set_params(n_jobs=arguments.threads or -1)


def _make_index(source: CodeSource, arguments: argparse.Namespace, model: Any) -> Any:
    from skcompressae import CodeNearestNeighbors

    index = CodeNearestNeighbors(
        compressor=model,
        mode=arguments.mode or "auto",
        metric=arguments.metric or "cosine",
        rerank=arguments.rerank,
        n_jobs=arguments.threads or -1,
        device=arguments.device or "cpu",
    )
    if arguments.rerank is not None and not has_residual_codes(source):
        raise UsageError("--rerank needs packed codes with residual codes")
    store = packed_store(source)
    if store is not None:
        return index.fit(store)
    with progress_bar(source.n_rows, "index", n_done=0, is_quiet=arguments.quiet) as bar:
        for block in source.blocks(0, _BLOCK_ROWS):
            index.partial_fit(block)
            bar.update(block.shape[0])
    return index


def _check_same_hash(name: str, hash_of_codes: str | None, queries: CodeSource, *, is_index: bool) -> None:
    """Refuse documents and queries that say they were made by different models, where no model can tell more."""
    wanted = queries.meta.get("model_hash")
    if None not in (hash_of_codes, wanted) and hash_of_codes != wanted:
        where = ", here and where the index is built" if is_index else ""
        raise CommandError(
            f"{name} and {queries.name} were encoded by models of different hashes, {hash_of_codes} and {wanted}; if "
            f"one model with other parameters made them, name it with --model{where}"
        )


def _found(index: Any, queries: RowSource | CodeSource, arguments: argparse.Namespace) -> Iterator[Found]:
    """Yield distances and indices, block by block."""
    with progress_bar(queries.n_rows, "search", n_done=0, is_quiet=arguments.quiet) as bar:
        row = 0
        for block in _query_blocks(queries):
            if isinstance(queries, RowSource):
                check_finite(block, queries, row)
            row += block.shape[0]
            yield index.kneighbors(block, n_neighbors=arguments.n_neighbors)
            bar.update(block.shape[0])


def _query_blocks(queries: RowSource | CodeSource) -> Iterator[Any]:
    store = packed_store(queries) if not isinstance(queries, RowSource) and has_residual_codes(queries) else None
    if store is not None:
        return store.iter_blocks(_QUERY_BLOCK)  # packed: their residual codes are compared, too
    return queries.blocks(0, _QUERY_BLOCK)


def _numbered(found: Iterator[Found]) -> Iterator[tuple[int, Found]]:
    start = 0
    for part in found:
        yield start, part
        start += len(part[0])


def _table(start: int, found: Found) -> str:
    """Return lines of query, rank, document and distance; the first block begins with their names."""
    lines = ["query\trank\tdocument\tdistance\n"] if start == 0 else []
    for query, (distances, indices) in enumerate(zip(*found, strict=True), start):
        lines += [
            f"{query}\t{rank}\t{document}\t{distance:.6g}\n"
            for rank, (distance, document) in enumerate(zip(distances.tolist(), indices.tolist(), strict=True), 1)
        ]
    return "".join(lines)


def _write_parquet(found: Iterator[Found], arguments: argparse.Namespace) -> None:
    import pyarrow as pa

    n_neighbors = arguments.n_neighbors
    first = next(found)
    distance = pa.from_numpy_dtype(first[0].dtype)
    fields = [pa.field("query", pa.int64())]
    fields += [pa.field("documents", pa.list_(pa.int64(), n_neighbors))]
    fields += [pa.field("distances", pa.list_(distance, n_neighbors))]
    schema = pa.schema(fields)
    with (
        atomic_write(arguments.output, replaces=arguments.force) as stream,
        parquet_writer(stream, schema) as writer,
    ):
        for start, (distances, indices) in _numbered(chain([first], found)):
            numbers = pa.array(np.arange(start, start + len(indices)))
            documents = pa.FixedSizeListArray.from_arrays(pa.array(indices.reshape(-1)), n_neighbors)
            flat = pa.array(distances.reshape(-1))
            columns = [numbers, documents, pa.FixedSizeListArray.from_arrays(flat, n_neighbors)]
            writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))
