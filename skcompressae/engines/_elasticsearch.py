"""Elasticsearch and OpenSearch: bulk files, mappings and query bodies for split codes. Nothing here opens a connection.

Both store a sparse vector as Lucene feature fields, which keep positive weights to 9 significant bits, a relative error
of up to 0.4 %. The files follow the engines' documentation; benchmarks/engines.py gives them to Lucene itself, not to a
server.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy.sparse import csr_matrix

from skcompressae._files import atomic_write
from skcompressae.engines._validation import check_count, check_ids, check_split, rows_of

__all__ = ["elasticsearch_mapping", "elasticsearch_query", "write_elasticsearch_bulk"]

FieldType = Literal["sparse_vector", "rank_features"]
QueryType = Literal["sparse_vector", "rank_feature", "neural_sparse"]

# Lucene's FeatureField refuses smaller values in documents, and larger weights in queries; a boost has no such limit.
_SMALLEST_VALUE = float(np.finfo(np.float32).tiny)
_LARGEST_WEIGHT = 64.0


def elasticsearch_mapping(field: str = "code", *, field_type: FieldType = "sparse_vector") -> dict[str, Any]:
    """Return the mapping of an index for split codes.

    Codes are stored as Lucene feature fields, which keep 9 significant bits of a weight.

    Parameters
    ----------
    field : str, default="code"
        Without dots, which would make it an object.
    field_type : {"sparse_vector", "rank_features"}, default="sparse_vector"
        "sparse_vector" is Elasticsearch's (8.15 or newer, for queries by vector), "rank_features" both engines'.

    Returns
    -------
    dict
        The body of an index's creation.

    Raises
    ------
    ValueError
        If a parameter is not as described.

    See Also
    --------
    write_elasticsearch_bulk : The documents.
    elasticsearch_query : The query.

    Examples
    --------
    >>> from skcompressae.engines import elasticsearch_mapping
    >>> elasticsearch_mapping(field_type="rank_features")
    {'mappings': {'properties': {'code': {'type': 'rank_features'}}}}
    """
    _check_choice("field_type", field_type, ("sparse_vector", "rank_features"))
    return {"mappings": {"properties": {_check_field(field): {"type": field_type}}}}


def write_elasticsearch_bulk(
    path: str | os.PathLike[str],
    codes: Any,
    n_components: int,
    ids: ArrayLike | None = None,
    *,
    index: str | None = None,
    field: str = "code",
) -> None:
    """Write split codes as the JSON lines of the ``_bulk`` interface: an action and a document per row.

    Features are named by their column, values are written to nine digits, which hold a float32 exactly. The file
    appears whole or not at all. Split large sets over several files: servers accept some 100 MB per request.

    Parameters
    ----------
    path : path-like
        The file; one that exists is replaced.
    codes : sparse matrix or array-like of shape (n_documents, 2 * n_components)
        Of :func:`~skcompressae.engines.split_signs`.
    n_components : int
        Width of the signed codes.
    ids : array-like of int of shape (n_documents,), default=None
        Distinct; None numbers the documents from 0.
    index : str or None, default=None
        Named in every action; None leaves it to the address that the file is sent to.
    field : str, default="code"
        As in :func:`elasticsearch_mapping`.

    Raises
    ------
    ValueError
        If `codes` are signed, not finite, of another width or hold a value below 1.2e-38, or `ids` are not one
        distinct number per row.
    TypeError
        If `ids` are not integers.

    See Also
    --------
    split_signs : Makes codes that Lucene takes.
    elasticsearch_mapping : The index to send them to.
    elasticsearch_query : The query.

    Examples
    --------
    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> from scipy.sparse import csr_matrix
    >>> from skcompressae.engines import split_signs, write_elasticsearch_bulk
    >>> codes = split_signs(csr_matrix([[0.5, -2.0, 0.0]]))
    >>> with TemporaryDirectory() as folder:
    ...     path = Path(folder) / "codes.jsonl"
    ...     write_elasticsearch_bulk(path, codes, n_components=3, index="items")
    ...     print(path.read_text().rstrip())
    {"index": {"_index": "items", "_id": "0"}}
    {"code": {"0": 0.5, "4": 2}}
    """
    width = check_count(n_components, "n_components")
    checked = check_split(codes, width, name="codes", engine="Elasticsearch")
    if checked.nnz and checked.data.min() < _SMALLEST_VALUE:
        raise ValueError(
            f"codes must hold no value below {_SMALLEST_VALUE:.3g}, the smallest that Lucene indexes; got "
            f"{checked.data.min():.3g}. Multiply them by a number, which does not change the order."
        )
    numbers = check_ids(ids, checked.shape[0]).tolist()
    name = json.dumps(_check_field(field))
    target = {} if index is None else {"_index": index}
    with atomic_write(path) as stream:
        for id_, features in zip(numbers, _features(checked), strict=True):
            action = json.dumps({"index": {**target, "_id": str(id_)}})
            stream.write(f"{action}\n{{{name}: {features}}}\n".encode())


def elasticsearch_query(
    query: Any, n_components: int, *, query_type: QueryType = "sparse_vector", field: str = "code"
) -> dict[str, Any]:
    """Return the query that scores documents by split rows.

    Documents are scored by the inner product of split rows, to the 9 bits that Lucene keeps: take more candidates than
    you need and order them by :func:`rerank_signed`.

    Parameters
    ----------
    query : sparse matrix or array-like of shape (1, 2 * n_components)
        One split row: of codes, or of ``transform_query``.
    n_components : int
        Width of the signed codes.
    query_type : {"sparse_vector", "rank_feature", "neural_sparse"}, default="sparse_vector"
        "sparse_vector" for a field of that type in Elasticsearch; for "rank_features" fields, "rank_feature" in either
        engine (one clause per nonzero: at most ``indices.query.bool.max_clause_count`` of them) or OpenSearch's
        "neural_sparse". Lucene takes weights above 64 as "rank_feature" only.
    field : str, default="code"
        As in :func:`elasticsearch_mapping`.

    Returns
    -------
    dict
        The value of ``"query"`` in a search request.

    Raises
    ------
    ValueError
        If `query` is signed, not finite, of another shape or all zero, a value is above what `query_type` takes, or
        another parameter is not as described.

    See Also
    --------
    elasticsearch_mapping : The field that it asks.
    rerank_signed : Restores the signed order.

    Examples
    --------
    >>> from scipy.sparse import csr_matrix
    >>> from skcompressae.engines import elasticsearch_query, split_signs
    >>> elasticsearch_query(split_signs(csr_matrix([[0.5, -2.0, 0.0]])), n_components=3)
    {'sparse_vector': {'field': 'code', 'query_vector': {'0': 0.5, '4': 2}, 'prune': False}}
    """
    _check_choice("query_type", query_type, ("sparse_vector", "rank_feature", "neural_sparse"))
    width, name = check_count(n_components, "n_components"), _check_field(field)
    checked = check_split(query, width, name="query", engine="Elasticsearch")
    if checked.shape[0] != 1 or not checked.nnz:
        raise ValueError(
            f"query must be one row with a nonzero; got {checked.shape[0]} row(s), {checked.nnz} nonzeros."
        )
    largest = float(checked.data.max())
    if largest > _LARGEST_WEIGHT and query_type != "rank_feature":
        raise ValueError(
            f"query must hold no value above {_LARGEST_WEIGHT:g} for query_type={query_type!r}, Lucene's largest "
            f"weight; got {largest:g}. Divide it by a number, which does not change the order, or use "
            "query_type='rank_feature'."
        )
    weights: dict[str, float] = json.loads(next(_features(checked)))
    if query_type == "sparse_vector":
        # pruning, the default of newer versions, would leave out latents that many documents have
        return {"sparse_vector": {"field": name, "query_vector": weights, "prune": False}}
    if query_type == "neural_sparse":
        return {"neural_sparse": {name: {"query_tokens": weights}}}
    clauses = [
        {"rank_feature": {"field": f"{name}.{feature}", "linear": {}, "boost": weight}}
        for feature, weight in weights.items()
    ]
    return {"bool": {"should": clauses}}


def _features(codes: csr_matrix) -> Iterator[str]:
    """Yield rows as JSON objects from column to value."""
    for indices, values in rows_of(codes):
        entries = (f'"{i}": {v:.9g}' for i, v in zip(indices.tolist(), values.tolist(), strict=True))
        yield "{" + ", ".join(entries) + "}"


def _check_field(field: str) -> str:
    if not isinstance(field, str) or not field or "." in field:
        raise ValueError(f"field must be a non-empty string without dots; got {field!r}.")
    return field


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}; got {value!r}.")
