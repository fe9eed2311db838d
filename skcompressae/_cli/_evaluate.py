"""`evaluate`: what compression keeps of the neighbours, against its bytes."""

from __future__ import annotations

import argparse
import copy
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from skcompressae._cli._errors import UsageError
from skcompressae._cli._formats import check_output, output_kind
from skcompressae._cli._messages import say
from skcompressae._cli._models import read_model
from skcompressae._cli._sources import RowSource, check_column, check_finite, check_width, open_rows
from skcompressae._files import atomic_write

__all__ = ["evaluate"]

_PACKED = "CompresSAE, asymmetric, packed"
_RERANKED = "CompresSAE, packed, reranked by residual codes"
# Of the first stage, for each neighbour that is wanted of the second.
_CANDIDATES_PER_NEIGHBOR = 10
_VALUE_BITS = 4


def evaluate(arguments: argparse.Namespace) -> None:
    """Run ``skcompressae evaluate``."""
    for output, kinds in ((arguments.json, ("json",)), (arguments.picture, ("png", "svg", "pdf"))):
        if output is not None:
            output_kind(output, kinds)
            check_output(output, force=arguments.force)
    if not 0 <= arguments.seed < 2**32:
        raise UsageError(f"--seed must be from 0 to 2**32 - 1; got {arguments.seed}")
    if arguments.k is not None and arguments.nonzeros:
        raise UsageError("--k is the middle of what is measured where --nonzeros does not name it; give one of the two")
    check_column(arguments.column, arguments.input, *([arguments.queries] if arguments.queries else []))
    source = open_rows(arguments.input, arguments.column)
    model = read_model(arguments.model, arguments)
    check_width(source, model.n_features_in_, f"the model {arguments.model}")
    documents, queries = _held_out(source, arguments)
    from skcompressae._plot._tradeoff_points import measure_tradeoff

    ks = arguments.nonzeros or sorted({max(1, model.k // 2), model.k, min(2 * model.k, len(model.components_))})
    modes = [mode for mode in arguments.modes if mode != "packed"]
    results = measure_tradeoff(
        model,
        documents,
        X_queries=queries,
        k=ks,
        modes=modes or ["asymmetric"],
        n_neighbors=arguments.n_neighbors,
        metric=arguments.metric,
        reference=arguments.references or None,
        random_state=arguments.seed,
    )
    if not modes:
        results = [point for point in results if point["is_reference"]]
    if "packed" in arguments.modes:
        results += _packed_points(model, documents, queries, ks, arguments)
    sys.stdout.write(_table(results, arguments.n_neighbors))
    if arguments.json is not None:
        record = _record(model, source, documents, queries, results, arguments)
        with atomic_write(arguments.json, replaces=arguments.force) as stream:
            stream.write((json.dumps(record, indent=1) + "\n").encode())
    if arguments.picture is not None:
        from matplotlib.figure import Figure

        from skcompressae import CompressionTradeoffDisplay

        figure = Figure(figsize=(8, 5), layout="constrained")
        axes = figure.subplots()
        CompressionTradeoffDisplay.from_results(results, ax=axes)
        axes.set_title(f"{len(documents):,} documents, {len(queries):,} queries")
        with atomic_write(arguments.picture, replaces=arguments.force) as stream:
            figure.savefig(stream, format=Path(arguments.picture).suffix[1:].lower(), dpi=150)


def _packed_points(
    model: Any, documents: Any, queries: Any, ks: list[int], arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """Measure packed codes of each k, and those with residual codes where the model makes them."""
    from skcompressae.metrics import exact_neighbors, neighbor_recall_score, of_moderate_codes, search_codes

    n_neighbors, metric = arguments.n_neighbors, arguments.metric
    true = exact_neighbors(documents, queries, n_neighbors, metric=metric)
    n_candidates = min(_CANDIDATES_PER_NEIGHBOR * n_neighbors, len(documents))
    plain = copy.copy(of_moderate_codes(model, metric)).set_params(residual_bytes=None)
    variants: list[tuple[str, Any, int | None]] = [(_PACKED, plain, None)]
    if model.residual_bytes is not None:
        variants.append((_RERANKED, copy.copy(model), n_candidates))
    points = []
    for series, variant, rerank in variants:
        for k in dict.fromkeys(min(k, len(model.components_)) for k in ks):
            smaller = variant.set_params(k=k)
            try:
                packed = smaller.transform_packed(documents, value_bits=_VALUE_BITS)
            except ValueError as error:
                if rerank is None:
                    raise
                say(f"residual codes are left out: {error}", is_quiet=arguments.quiet)
                break
            found = search_codes(smaller, packed, queries, "asymmetric", n_neighbors, metric, rerank=rerank)
            size_bytes = float(packed.bytes_per_row)  # without codebooks, as of all methods
            points.append(
                {
                    "series": series,
                    "label": f"k={k}",
                    "compression_factor": 4.0 * documents.shape[1] / size_bytes,
                    "bytes_per_vector": size_bytes,
                    "recall": float(neighbor_recall_score(true, found)),
                    "n_neighbors": n_neighbors,
                    "is_reference": False,
                }
            )
    return points


def _held_out(source: RowSource, arguments: argparse.Namespace) -> tuple[Any, Any]:
    """Return documents and queries, which are never among the documents."""
    random_state = np.random.RandomState(arguments.seed)
    if arguments.queries is not None:
        held_out = open_rows(arguments.queries, arguments.column)
        check_width(held_out, source.n_features, f"the model {arguments.model}")
        n_queries = min(arguments.n_queries, held_out.n_rows)
        queries = _finite_rows(held_out, _chosen(held_out.n_rows, n_queries, random_state))
        documents = _finite_rows(source, _chosen(source.n_rows, arguments.max_documents, random_state))
    else:
        n_queries = min(arguments.n_queries, max(1, source.n_rows // 5))
        chosen = _chosen(source.n_rows, min(source.n_rows, arguments.max_documents + n_queries), random_state)
        is_query = np.zeros(len(chosen), dtype=bool)
        is_query[random_state.permutation(len(chosen))[:n_queries]] = True
        rows = _finite_rows(source, chosen)
        documents, queries = rows[~is_query], rows[is_query]
    if len(documents) < arguments.n_neighbors:
        raise UsageError(f"-n {arguments.n_neighbors} (100 unless given) is more than the {len(documents)} documents")
    return documents, queries


def _finite_rows(source: RowSource, chosen: Any) -> Any:
    """Return the chosen rows, in float32 or float64; refuse NaN and infinity in them."""
    rows = source.take(chosen)
    check_finite(rows, source, chosen)
    return rows.astype(np.result_type(rows.dtype, np.float32), copy=False)


def _chosen(n_rows: int, n_wanted: int, random_state: np.random.RandomState) -> Any:
    """Return up to `n_wanted` row numbers, ascending."""
    if n_wanted >= n_rows:
        return np.arange(n_rows)
    return np.sort(random_state.choice(n_rows, n_wanted, replace=False))


def _table(results: list[dict[str, Any]], n_neighbors: int) -> str:
    """Return the points as lines, the smallest vectors first."""
    rows = [("bytes", "times smaller", f"recall@{n_neighbors}", "setting", "method")]
    for point in sorted(results, key=lambda point: (point["bytes_per_vector"], -point["recall"])):
        numbers = f"{point['bytes_per_vector']:.0f}", f"{point['compression_factor']:.1f}", f"{point['recall']:.3f}"
        rows.append((*numbers, point["label"], point["series"]))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [text.rjust(width) for text, width in zip(row[:3], widths, strict=False)]
        lines.append("  ".join([*cells, row[3].ljust(widths[3]), row[4]]).rstrip() + "\n")
    return "".join(lines)


def _record(
    model: Any, source: RowSource, documents: Any, queries: Any, results: list[Any], arguments: argparse.Namespace
) -> dict[str, Any]:
    from skcompressae._model_io import library_versions
    from skcompressae.persistence import model_hash

    return {
        "model_hash": model_hash(model),
        "data": source.path.name,
        "n_documents": len(documents),
        "n_queries": len(queries),
        "queries": "of the same file" if arguments.queries is None else Path(arguments.queries).name,
        "n_features": source.n_features,
        "n_neighbors": arguments.n_neighbors,
        "metric": arguments.metric,
        "seed": arguments.seed,
        "packed_value_bits": _VALUE_BITS,
        "versions": library_versions(),
        "results": results,
    }
