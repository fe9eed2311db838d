"""The points of the trade-off between recall and bytes: ours in each mode at each k, and the references'."""

from __future__ import annotations

from collections.abc import Iterable
from numbers import Integral
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.utils import check_scalar

from skcompressae._compat import copy_of_plain_output
from skcompressae._core._rows import unit_rows
from skcompressae._plot._references import MIN_PQ_DOCUMENTS, REFERENCES, has_faiss, reference_points
from skcompressae.metrics import (
    bytes_per_vector,
    enter_compressor,
    exact_neighbors,
    neighbor_recall_score,
    of_moderate_codes,
    search_codes,
    split_queries,
    warn_of_lost_lengths,
)

__all__ = ["measure_tradeoff"]

_MODE_NAMES = {
    "asymmetric": "CompresSAE, asymmetric",
    "reconstructed": "CompresSAE, reconstructed",
    "sparse": "CompresSAE, sparse",
}
_REFERENCE_NAMES = {"pca": "PCA", "pq": "PQ (FAISS)", "opq": "OPQ (FAISS)"}


def measure_tradeoff(
    estimator: Any,
    X: Any,
    *,
    X_queries: Any,
    k: Iterable[int] | int,
    modes: Iterable[str] | str,
    n_neighbors: int,
    metric: str,
    reference: Any,
    random_state: Any,
) -> list[dict[str, Any]]:
    """Measure one record per point; the parameters are those of `CompressionTradeoffDisplay.from_estimator`."""
    ks, mode_names = _distinct(k), _distinct(modes)
    for value in ks:
        check_scalar(value, "k", Integral, min_val=1)
    if not ks:
        raise ValueError("k must hold at least one number of nonzeros, got none.")
    if not mode_names or any(mode not in _MODE_NAMES for mode in mode_names):
        raise ValueError(f"modes must be some of {', '.join(map(repr, _MODE_NAMES))}, got {mode_names}.")
    check_scalar(n_neighbors, "n_neighbors", Integral, min_val=1)
    documents, queries = X, X_queries
    if queries is None:
        documents, queries = split_queries(X, None, n_neighbors, random_state)
    compressor, documents, queries = enter_compressor(estimator, documents, queries)
    documents_array, queries_array = np.asarray(documents), np.asarray(queries)
    warn_of_lost_lengths(compressor, documents_array, metric)
    true = exact_neighbors(documents_array, queries_array, n_neighbors, metric=metric)
    names = _check_reference(reference, documents_array.shape[0])

    dense_bytes = 4.0 * documents_array.shape[1]
    compressor = of_moderate_codes(compressor, metric)
    results: list[dict[str, Any]] = []

    def add(series: str, label: str, size_bytes: float, found: Any, is_reference: bool) -> None:
        results.append(
            {
                "series": series,
                "label": label,
                "compression_factor": dense_bytes / size_bytes,
                "bytes_per_vector": size_bytes,
                "recall": float(neighbor_recall_score(true, found)),
                "n_neighbors": int(n_neighbors),
                "is_reference": is_reference,
            }
        )

    sizes: list[float] = []
    measured: set[int] = set()
    for value in ks:
        model = _of_sparse_codes(compressor).set_params(k=value)
        codes = model.transform(documents)
        n_kept = min(int(value), codes.shape[1])
        if n_kept in measured:
            continue
        measured.add(n_kept)
        with np.errstate(over="ignore"):  # the search says where values are too large
            sizes.append(bytes_per_vector(codes.astype(np.float32)))  # beside float32 vectors
        for mode in mode_names:
            found = search_codes(model, codes, queries, mode, n_neighbors, metric)
            add(_MODE_NAMES[mode], f"k={n_kept}", sizes[-1], found, False)
    rows = _reference_rows(documents_array, metric)
    for name in names:
        rule = "dot" if name == "pca" else metric
        for label, size_bytes, kept in reference_points(name, rows, sizes, random_state):
            found = exact_neighbors(kept, queries_array, n_neighbors, metric=rule)
            add(_REFERENCE_NAMES[name], label, size_bytes, found, True)
    return results


def _reference_rows(documents: npt.NDArray[Any], metric: str) -> npt.NDArray[np.float32]:
    """Return documents as float32 rows of moderate length that are ranked alike: unit rows, or all times one factor."""
    if metric == "cosine":
        return unit_rows(documents)[0]
    rows: npt.NDArray[Any] = np.ldexp(documents, -np.frexp(np.abs(documents).max())[1])
    return rows.astype(np.float32)


def _of_sparse_codes(compressor: Any) -> Any:
    """Return a copy whose codes are sparse matrices, of which sizes are measured, whatever its output is set to."""
    model = copy_of_plain_output(compressor)
    if "sparse_output" in model.get_params(deep=False):
        model.set_params(sparse_output=True)
    return model


def _distinct(values: Any) -> list[Any]:
    """Return values, or a single one, as a list without repeats."""
    return list(dict.fromkeys(values)) if np.iterable(values) and not isinstance(values, str) else [values]


def _check_reference(reference: Any, n_documents: int) -> list[str]:
    if reference is None:
        return []
    if isinstance(reference, str) and reference == "auto":
        return list(REFERENCES) if has_faiss() and n_documents >= MIN_PQ_DOCUMENTS else ["pca"]
    names = _distinct(reference)
    if any(name not in REFERENCES for name in names):
        raise ValueError(f"reference must be 'auto', None or some of {', '.join(map(repr, REFERENCES))}, got {names}.")
    if {"pq", "opq"} & set(names):
        if not has_faiss():
            raise ImportError("reference 'pq' and 'opq' require FAISS: install the extra 'benchmark' of skcompressae")
        if n_documents < MIN_PQ_DOCUMENTS:
            raise ValueError(f"reference 'pq' and 'opq' need at least {MIN_PQ_DOCUMENTS} documents, got {n_documents}.")
    return names
