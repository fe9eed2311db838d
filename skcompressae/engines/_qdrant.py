"""Qdrant: sparse vectors and their dot product, with signs. Embedded (qdrant-edge-py) or through qdrant-client."""

from __future__ import annotations

import os
from collections.abc import Iterable
from inspect import signature
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_matrix

from skcompressae._files import atomic_write
from skcompressae.engines._validation import check_codes, check_count, check_ids, import_engine, rows_of, to_arrays

__all__ = ["QdrantIndex"]

# Points per request: a few hundred kilobytes at 32 nonzeros, far below the server's limit of 32 MB.
_BATCH_ROWS = 1_000
_BATCH_QUERIES = 32
# Of the file, or of the entry in a collection's metadata, that tells the width of the codes.
_WIDTH_NAME = "skcompressae_n_components"


class QdrantIndex:
    """Signed codes in a Qdrant collection, searched exactly by dot product.

    Qdrant validates little: in the embedded engine NaN and repeated indices pass and unequal lengths stop the
    interpreter's call with a panic. Everything is therefore checked here, before the engine sees it.

    Parameters
    ----------
    location : path-like or qdrant_client.QdrantClient
        A folder for the embedded engine, created where there is none, or a client of a server (or of its local mode).
    n_components : int
        Width of the codes. Qdrant's sparse vectors have no width of their own: it is written into a new folder, and
        into the metadata of a new collection by clients and servers that have them, and one of another is refused.
    collection : str, default="codes"
        Name of the collection, created where there is none; the embedded engine has one per folder and ignores it.
    vector_name : str, default="code"
        Name of the sparse vector. :meth:`add` replaces whole points: write their other vectors and payloads after it,
        with the engine's own client.

    Attributes
    ----------
    engine : qdrant_edge.EdgeShard or qdrant_client.QdrantClient
        For what the adapter leaves to the engine: payloads, filters, deletion.

    See Also
    --------
    PostgresIndex : The same in PostgreSQL.
    MilvusIndex : The same in Milvus.
    skcompressae.CompresSAETransformer.transform_query : Queries of best recall.

    Notes
    -----
    The inverted index lists documents that share a latent with the query: one with no overlap is never returned, even
    where everything above it has a negative score. A query may therefore find fewer than `n_neighbors` documents.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> from scipy.sparse import csr_matrix
    >>> from skcompressae.engines import QdrantIndex
    >>> with TemporaryDirectory() as folder, QdrantIndex(folder, n_components=3) as index:
    ...     index.add(csr_matrix([[1.0, -1.0, 0.0], [-1.0, 0.0, 2.0]]))
    ...     scores, ids = index.search(csr_matrix([[1.0, -1.0, 0.0]]), n_neighbors=2)
    >>> ids, scores
    (array([[0, 1]]), array([[ 2., -1.]], dtype=float32))
    """

    def __init__(
        self, location: Any, n_components: int, *, collection: str = "codes", vector_name: str = "code"
    ) -> None:
        self.n_components = check_count(n_components, "n_components")
        if isinstance(location, str | os.PathLike):
            self._backend: _Backend = _Embedded(Path(location), vector_name, self.n_components)
        else:
            self._backend = _Client(location, collection, vector_name, self.n_components)

    @property
    def engine(self) -> Any:
        """The engine's own object.

        For what the adapter leaves to the engine: payloads, filters, deletion, other vectors of the same points.

        See Also
        --------
        add : Writes points.
        close : Ends the embedded engine.

        Examples
        --------
        >>> from tempfile import TemporaryDirectory
        >>> from scipy.sparse import csr_matrix
        >>> from skcompressae.engines import QdrantIndex
        >>> codes = csr_matrix([[1.0, -1.0, 0.0], [-1.0, 0.0, 2.0]])
        >>> with TemporaryDirectory() as folder, QdrantIndex(folder, n_components=3) as index:
        ...     print(type(index.engine).__name__)
        EdgeShard
        """
        return self._backend.engine

    def add(self, codes: Any, ids: ArrayLike | None = None) -> None:
        """Store codes.

        Points are written in requests of a thousand; when the call returns, all of them can be searched. A document
        whose id is there already is replaced, its payload included.

        Parameters
        ----------
        codes : sparse matrix, PackedCodes or array-like of shape (n_documents, n_components)
            Store ``norm="unit"`` codes where queries come from ``transform_query``.
        ids : array-like of int of shape (n_documents,), default=None
            Distinct. None numbers the documents of an empty index from 0.

        Raises
        ------
        ValueError
            If `codes` are not finite or of another width, or `ids` are not one distinct number per row.
        TypeError
            If `ids` are not integers.

        See Also
        --------
        search : Finds them.
        optimize : Builds the embedded engine's index.

        Examples
        --------
        >>> from tempfile import TemporaryDirectory
        >>> from scipy.sparse import csr_matrix
        >>> from skcompressae.engines import QdrantIndex
        >>> codes = csr_matrix([[1.0, -1.0, 0.0], [-1.0, 0.0, 2.0]])
        >>> with TemporaryDirectory() as folder, QdrantIndex(folder, n_components=3) as index:
        ...     index.add(codes, ids=[7, 8])
        ...     len(index)
        2
        """
        checked = check_codes(codes, self.n_components)
        numbers = check_ids(ids, checked.shape[0], n_stored=len(self) if ids is None else 0)
        for start in range(0, checked.shape[0], _BATCH_ROWS):
            self._backend.upsert(numbers[start : start + _BATCH_ROWS], checked[start : start + _BATCH_ROWS])
        self._backend.flush()

    def search(self, queries: Any, n_neighbors: int = 10) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return the documents of largest dot product.

        Exact, among the documents that share a latent with the query; others are never returned.

        Parameters
        ----------
        queries : sparse matrix, PackedCodes or array-like of shape (n_queries, n_components)
            Codes, or rows of ``transform_query``.
        n_neighbors : int, default=10
            Documents returned for each query, at most.

        Returns
        -------
        scores : ndarray of shape (n_queries, n_neighbors), float32
            Dot products, descending; -inf where fewer documents share a latent with the query.
        ids : ndarray of shape (n_queries, n_neighbors), int64
            -1 where fewer documents share a latent with the query. Ties are in the engine's order.

        Raises
        ------
        ValueError
            If `queries` are not finite or of another width, `n_neighbors` is not a positive integer, or a point found
            has a UUID or a number of 2**63 or more for its id.

        See Also
        --------
        skcompressae.CompresSAETransformer.transform_query : Queries of best recall.
        add : Stores documents.

        Examples
        --------
        >>> from tempfile import TemporaryDirectory
        >>> from scipy.sparse import csr_matrix
        >>> from skcompressae.engines import QdrantIndex
        >>> codes = csr_matrix([[1.0, -1.0, 0.0], [-1.0, 0.0, 2.0]])
        >>> with TemporaryDirectory() as folder, QdrantIndex(folder, n_components=3) as index:
        ...     index.add(codes, ids=[7, 8])
        ...     scores, ids = index.search(csr_matrix([[0.0, 0.0, 1.0]]), n_neighbors=2)
        >>> ids
        array([[ 8, -1]])
        """
        checked = check_codes(queries, self.n_components, name="queries")
        n_neighbors = check_count(n_neighbors, "n_neighbors")
        n_queries = checked.shape[0]
        # an empty vector is no query to every version of the engine; nothing overlaps with it anyway
        asked = np.flatnonzero(np.diff(checked.indptr))
        scores, ids = to_arrays([], n_queries, n_neighbors)
        for start in range(0, len(asked), _BATCH_QUERIES):
            rows = asked[start : start + _BATCH_QUERIES]
            hits = self._backend.query(checked[rows], n_neighbors)
            scores[rows], ids[rows] = to_arrays(hits, len(rows), n_neighbors)
        return scores, ids

    def optimize(self) -> bool:
        """Merge what was added into a read-only index.

        The embedded engine merges what was added into a read-only index only when asked; a server does so by itself.
        Searches before it find the same.

        Returns
        -------
        bool
            Whether there was anything to do; False for a server.

        See Also
        --------
        add : What it merges.
        search : Finds what was added, before and after.

        Examples
        --------
        >>> from tempfile import TemporaryDirectory
        >>> from scipy.sparse import csr_matrix
        >>> from skcompressae.engines import QdrantIndex
        >>> codes = csr_matrix([[1.0, -1.0, 0.0], [-1.0, 0.0, 2.0]])
        >>> with TemporaryDirectory() as folder, QdrantIndex(folder, n_components=3) as index:
        ...     index.add(codes)
        ...     is_changed = index.optimize()
        ...     len(index)
        2
        """
        return self._backend.optimize()

    def __len__(self) -> int:
        """Return the number of points."""
        return self._backend.count()

    def close(self) -> None:
        """Close the embedded engine.

        An index is a context manager, which does so at the end of its block. A client stays open, it is the caller's.

        See Also
        --------
        engine : What is closed.
        add : Leaves nothing unwritten, so that closing loses nothing.

        Examples
        --------
        >>> from tempfile import TemporaryDirectory
        >>> from scipy.sparse import csr_matrix
        >>> from skcompressae.engines import QdrantIndex
        >>> codes = csr_matrix([[1.0, -1.0, 0.0], [-1.0, 0.0, 2.0]])
        >>> with TemporaryDirectory() as folder:
        ...     index = QdrantIndex(folder, n_components=3)
        ...     index.add(codes)
        ...     index.close()
        """
        self._backend.close()

    def __enter__(self) -> QdrantIndex:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Backend(Protocol):
    engine: Any

    def upsert(self, ids: NDArray[np.int64], codes: csr_matrix) -> None: ...
    def query(self, queries: csr_matrix, limit: int) -> Iterable[Iterable[tuple[float, Any]]]: ...
    def count(self) -> int: ...
    def flush(self) -> None: ...
    def optimize(self) -> bool: ...
    def close(self) -> None: ...


def _check_width(n_components: int, stored: Any, where: str) -> None:
    """Raise for codes of another width than those of an index, where it tells its width."""
    if stored is not None and str(stored) != str(n_components):
        raise ValueError(f"n_components must be {stored}, the width of the codes in {where}; got {n_components}.")


class _Embedded:
    def __init__(self, folder: Path, vector_name: str, n_components: int) -> None:
        self._edge = edge = import_engine("qdrant_edge", package="qdrant-edge-py", extra="qdrant", caller="QdrantIndex")
        self._name = vector_name
        config = edge.EdgeConfig(sparse_vectors={vector_name: edge.EdgeSparseVectorParams()})
        is_new = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
        if not is_new and not (folder / "edge_config.json").is_file():
            raise ValueError(f"location must be a new or empty folder or one of qdrant-edge-py; got {str(folder)!r}.")
        width = folder / _WIDTH_NAME
        if width.exists():  # not in folders of others
            _check_width(n_components, width.read_text(), f"location {str(folder)!r}")
        try:
            self.engine = (edge.EdgeShard.create if is_new else edge.EdgeShard.load)(str(folder), config)
        except Exception as error:  # the engine has no classes of its own for its errors
            raise ValueError(
                f"location {str(folder)!r} could not be opened with the sparse vector {vector_name!r}: {error}"
            ) from error
        if is_new:
            with atomic_write(width) as stream:
                stream.write(str(n_components).encode())

    def upsert(self, ids: NDArray[np.int64], codes: csr_matrix) -> None:
        edge, name = self._edge, self._name
        points = [
            edge.Point(id_, {name: edge.SparseVector(indices.tolist(), values.tolist())})
            for id_, (indices, values) in zip(ids.tolist(), rows_of(codes), strict=True)
        ]
        self.engine.update(edge.UpdateOperation.upsert_points(points))

    def query(self, queries: csr_matrix, limit: int) -> Iterable[Iterable[tuple[float, Any]]]:
        edge = self._edge
        # one by one: measured faster than query_batch for queries of hundreds of nonzeros
        for indices, values in rows_of(queries):
            vector = edge.SparseVector(indices.tolist(), values.tolist())
            request = edge.QueryRequest(
                limit=limit,
                query=edge.Query.Nearest(vector, using=self._name),
                with_payload=False,
                with_vector=False,
            )
            yield [(point.score, point.id) for point in self.engine.query(request)]

    def count(self) -> int:
        return int(self.engine.count(self._edge.CountRequest()))

    def flush(self) -> None:
        self.engine.flush()

    def optimize(self) -> bool:
        return bool(self.engine.optimize())

    def close(self) -> None:
        self.engine.close()


class _Client:
    def __init__(self, client: Any, collection: str, vector_name: str, n_components: int) -> None:
        module = import_engine("qdrant_client", package="qdrant-client", extra="qdrant", caller="QdrantIndex")
        if not isinstance(client, module.QdrantClient):
            raise TypeError(f"location must be a path or a QdrantClient; got {type(client).__name__}.")
        self.engine = client
        self._models, self._collection, self._name = module.models, collection, vector_name
        if not client.collection_exists(collection):
            has_metadata = "metadata" in signature(client.create_collection).parameters  # not of old clients
            client.create_collection(
                collection,
                vectors_config={},
                sparse_vectors_config={vector_name: module.models.SparseVectorParams()},
                **({"metadata": {_WIDTH_NAME: n_components}} if has_metadata else {}),
            )
            return
        config = client.get_collection(collection).config
        stored = config.params.sparse_vectors or {}
        if vector_name not in stored or stored[vector_name].modifier not in (None, module.models.Modifier.NONE):
            raise ValueError(
                f"collection {collection!r} must have a sparse vector {vector_name!r} without a modifier; "
                f"its sparse vectors are {stored}."
            )
        width = (getattr(config, "metadata", None) or {}).get(_WIDTH_NAME)
        _check_width(n_components, width, f"collection {collection!r}")

    def upsert(self, ids: NDArray[np.int64], codes: csr_matrix) -> None:
        models, name = self._models, self._name
        points = [
            models.PointStruct(
                id=id_, vector={name: models.SparseVector(indices=indices.tolist(), values=values.tolist())}
            )
            for id_, (indices, values) in zip(ids.tolist(), rows_of(codes), strict=True)
        ]
        self.engine.upsert(self._collection, points, wait=True)

    def query(self, queries: csr_matrix, limit: int) -> Iterable[Iterable[tuple[float, Any]]]:
        models = self._models
        requests = [
            models.QueryRequest(
                query=models.SparseVector(indices=indices.tolist(), values=values.tolist()),
                using=self._name,
                limit=limit,
                with_payload=False,
                with_vector=False,
            )
            for indices, values in rows_of(queries)
        ]
        responses = self.engine.query_batch_points(self._collection, requests)
        return [[(point.score, point.id) for point in response.points] for response in responses]

    def count(self) -> int:
        return int(self.engine.count(self._collection, exact=True).count)

    def flush(self) -> None:
        """Do nothing: every request waited until it was applied."""

    def optimize(self) -> bool:
        return False

    def close(self) -> None:
        """Leave the client to its owner."""
