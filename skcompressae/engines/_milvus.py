"""Milvus: sparse vectors without negative values, so codes and queries go through `split_signs`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_array, csr_matrix

from skcompressae._compat import csr_type
from skcompressae.engines._validation import (
    check_codes,
    check_count,
    check_ids,
    check_split,
    import_engine,
    name_rows,
    rows_of,
    to_arrays,
)

__all__ = ["MilvusIndex"]

# Rows per request: far below the 64 MB of a gRPC message at any number of nonzeros that codes have.
_BATCH_ROWS = 1_000
# Few, since Milvus Lite may take seconds for a query of thousands of nonzeros: a request that runs for tens of seconds
# is cut off by the connection's keep-alive, and pymilvus sends it again without end.
_BATCH_QUERIES = 4
# Milvus' own limit of results per query
_MAX_NEIGHBORS = 16_384


class MilvusIndex:
    """Split codes in a Milvus collection, searched by inner product.

    Milvus refuses negative values, so codes and queries go through :func:`~skcompressae.engines.split_signs`, and what
    is found through :func:`~skcompressae.engines.rerank_signed`.

    Parameters
    ----------
    client : pymilvus.MilvusClient
        Of a server, or of a file of Milvus Lite (``MilvusClient("codes.db")``). It stays open, it is the caller's.
    n_components : int
        Width of the signed codes; what is stored has twice as many columns.
    collection : str, default="codes"
        Created where there is none, with the fields ``id`` (int64, primary) and ``code`` (sparse float vector), an
        inverted index of metric IP and the consistency level Session: a search finds all that its client added.

    See Also
    --------
    split_signs : Makes codes that Milvus takes.
    rerank_signed : Restores the signed order.
    QdrantIndex : An engine that takes signs.

    Notes
    -----
    The dot product of split rows counts agreeing signs only, so the order is not that of signed codes: search for more
    candidates than you need and pass them to :func:`~skcompressae.engines.rerank_signed`. Documents with no latent of
    the query's sign in common are never returned.

    Examples
    --------
    >>> from scipy.sparse import csr_matrix
    >>> from skcompressae.engines import MilvusIndex, rerank_signed, split_signs
    >>> codes = csr_matrix([[1.0, -1.0, 0.0], [-1.0, 0.0, 2.0]])
    >>> from pymilvus import MilvusClient  # doctest: +SKIP
    >>> client = MilvusClient("codes.db")  # doctest: +SKIP
    >>> index = MilvusIndex(client, n_components=3)  # doctest: +SKIP
    >>> index.add(split_signs(codes))  # doctest: +SKIP
    >>> candidates = index.search(split_signs(codes[:1]), n_neighbors=2)[1]  # doctest: +SKIP
    >>> rerank_signed(codes[:1], candidates, codes, n_neighbors=2)[1]  # doctest: +SKIP
    array([[ 0, -1]])
    """

    def __init__(self, client: Any, n_components: int, *, collection: str = "codes") -> None:
        module = import_engine("pymilvus", package="pymilvus", extra="milvus", caller="MilvusIndex")
        if not isinstance(client, module.MilvusClient):
            raise TypeError(f"client must be a pymilvus.MilvusClient; got {type(client).__name__}.")
        self.n_components = check_count(n_components, "n_components")
        self.client = client
        self.collection = collection
        if client.has_collection(collection):
            fields = {field["name"]: field["type"] for field in client.describe_collection(collection)["fields"]}
            expected = {"id": module.DataType.INT64, "code": module.DataType.SPARSE_FLOAT_VECTOR}
            if {name: fields.get(name) for name in expected} != expected:
                raise ValueError(f"collection {collection!r} must have the fields {expected}; it has {fields}.")
        else:
            schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
            schema.add_field("id", module.DataType.INT64, is_primary=True)
            schema.add_field("code", module.DataType.SPARSE_FLOAT_VECTOR)
            parameters = client.prepare_index_params()
            parameters.add_index("code", index_type="SPARSE_INVERTED_INDEX", metric_type="IP")
            # Milvus' default, Bounded, may search without what was added seconds ago. Session waits for the client's
            # own writes and no longer; Strong would wait at every request.
            client.create_collection(collection, schema=schema, index_params=parameters, consistency_level="Session")
        client.load_collection(collection)

    def add(self, codes: Any, ids: ArrayLike | None = None) -> None:
        """Store split codes.

        Written in requests of a thousand rows. A document whose id is there already is replaced.

        Parameters
        ----------
        codes : sparse matrix or array-like of shape (n_documents, 2 * n_components)
            Of :func:`~skcompressae.engines.split_signs`. Store ``norm="unit"`` codes where queries come from
            ``transform_query``.
        ids : array-like of int of shape (n_documents,), default=None
            Distinct. None numbers the documents of an empty collection from 0.

        Raises
        ------
        ValueError
            If `codes` are signed, not finite, of another width or have all-zero rows, which Milvus refuses, or `ids`
            are not one distinct number per row.
        TypeError
            If `ids` are not integers.

        See Also
        --------
        search : Finds them.
        optimize : Seals them, so that they are indexed.

        Examples
        --------
        >>> from scipy.sparse import csr_matrix
        >>> from skcompressae.engines import MilvusIndex, split_signs
        >>> codes = csr_matrix([[1.0, -1.0, 0.0], [-1.0, 0.0, 2.0]])
        >>> from pymilvus import MilvusClient  # doctest: +SKIP
        >>> client = MilvusClient("codes.db")  # doctest: +SKIP
        >>> index = MilvusIndex(client, n_components=3)  # doctest: +SKIP
        >>> index.add(split_signs(codes))  # doctest: +SKIP
        >>> len(index)  # doctest: +SKIP
        2
        """
        checked = check_split(codes, self.n_components, name="codes", engine="Milvus")
        numbers = check_ids(ids, checked.shape[0], n_stored=len(self) if ids is None else 0)
        empty = np.flatnonzero(np.diff(checked.indptr) == 0)
        if len(empty):
            raise ValueError(
                "codes must have a nonzero in every row, since Milvus refuses empty vectors and would find them by no "
                f"query; leave out {name_rows(empty)}."
            )
        for start in range(0, checked.shape[0], _BATCH_ROWS):
            vectors = _vectors(checked[start : start + _BATCH_ROWS])
            block = numbers[start : start + _BATCH_ROWS].tolist()
            self.client.upsert(
                self.collection, [{"id": id_, "code": vector} for id_, vector in zip(block, vectors, strict=True)]
            )

    def search(self, queries: Any, n_neighbors: int = 10) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return the documents of largest inner product of split rows.

        The order is that of agreeing signs, and only documents that share a column with the query are returned.

        Parameters
        ----------
        queries : sparse matrix or array-like of shape (n_queries, 2 * n_components)
            Split codes or split rows of ``transform_query``.
        n_neighbors : int, default=10
            At most 16,384.

        Returns
        -------
        scores : ndarray of shape (n_queries, n_neighbors), float32
            Inner products of split rows, descending; -inf where fewer documents share a column with the query.
        ids : ndarray of shape (n_queries, n_neighbors), int64
            -1 where fewer documents share a column with the query.

        Raises
        ------
        ValueError
            If `queries` are signed, not finite or of another width, or `n_neighbors` is out of range.

        See Also
        --------
        rerank_signed : Restores the signed order.
        fetch : Codes of what was found.

        Examples
        --------
        >>> from scipy.sparse import csr_matrix
        >>> from skcompressae.engines import MilvusIndex, split_signs
        >>> codes = csr_matrix([[1.0, -1.0, 0.0], [-1.0, 0.0, 2.0]])
        >>> from pymilvus import MilvusClient  # doctest: +SKIP
        >>> client = MilvusClient("codes.db")  # doctest: +SKIP
        >>> index = MilvusIndex(client, n_components=3)  # doctest: +SKIP
        >>> index.add(split_signs(codes))  # doctest: +SKIP
        >>> index.search(split_signs(codes[:1]), n_neighbors=1)  # doctest: +SKIP
        (array([[2.]], dtype=float32), array([[0]]))
        """
        checked = check_split(queries, self.n_components, name="queries", engine="Milvus")
        n_neighbors = check_count(n_neighbors, "n_neighbors", max_value=_MAX_NEIGHBORS)
        asked = np.flatnonzero(np.diff(checked.indptr))
        scores, ids = to_arrays([], checked.shape[0], n_neighbors)
        for start in range(0, len(asked), _BATCH_QUERIES):
            rows = asked[start : start + _BATCH_QUERIES]
            found = self.client.search(
                self.collection,
                data=_vectors(checked[rows]),
                anns_field="code",
                limit=n_neighbors,
                search_params={"metric_type": "IP"},
                output_fields=["id"],
            )
            hits = [[(hit["distance"], hit["id"]) for hit in of_query] for of_query in found]
            scores[rows], ids[rows] = to_arrays(hits, len(rows), n_neighbors)
        return scores, ids

    def optimize(self) -> None:
        """Seal what was added, so that it is indexed at once.

        Milvus Lite scans rows that are not sealed, slowly; call this after a load. A server seals by itself, and
        limits how often it may be asked to.

        See Also
        --------
        add : What it seals.
        search : What becomes faster.

        Examples
        --------
        >>> from scipy.sparse import csr_matrix
        >>> from skcompressae.engines import MilvusIndex, split_signs
        >>> codes = csr_matrix([[1.0, -1.0, 0.0], [-1.0, 0.0, 2.0]])
        >>> from pymilvus import MilvusClient  # doctest: +SKIP
        >>> client = MilvusClient("codes.db")  # doctest: +SKIP
        >>> index = MilvusIndex(client, n_components=3)  # doctest: +SKIP
        >>> index.add(split_signs(codes))  # doctest: +SKIP
        >>> index.optimize()  # doctest: +SKIP
        """
        self.client.flush(self.collection)

    def fetch(self, ids: ArrayLike) -> csr_array | csr_matrix:
        """Return the split codes of documents.

        For reranking where the codes are not at hand: :func:`~skcompressae.engines.join_signs` makes them signed again.

        Parameters
        ----------
        ids : array-like of int of shape (n_ids,)
            Distinct.

        Returns
        -------
        CSR matrix of shape (n_ids, 2 * n_components), float32
            In the order of `ids`.

        Raises
        ------
        ValueError
            If an id is not in the collection.

        See Also
        --------
        rerank_signed : Takes ``lambda ids: join_signs(index.fetch(ids))``.
        search : Finds the ids.

        Examples
        --------
        >>> from scipy.sparse import csr_matrix
        >>> from skcompressae.engines import MilvusIndex, split_signs
        >>> codes = csr_matrix([[1.0, -1.0, 0.0], [-1.0, 0.0, 2.0]])
        >>> from pymilvus import MilvusClient  # doctest: +SKIP
        >>> client = MilvusClient("codes.db")  # doctest: +SKIP
        >>> index = MilvusIndex(client, n_components=3)  # doctest: +SKIP
        >>> index.add(split_signs(codes))  # doctest: +SKIP
        >>> index.fetch([1]).toarray()  # doctest: +SKIP
        array([[0., 0., 2., 1., 0., 0.]], dtype=float32)
        """
        numbers = check_ids(ids, len(np.atleast_1d(np.asarray(ids)))).tolist()
        stored: dict[int, dict[int, float]] = {}
        for start in range(0, len(numbers), _BATCH_ROWS):
            block = numbers[start : start + _BATCH_ROWS]
            rows = self.client.get(self.collection, block, output_fields=["id", "code"], consistency_level="Strong")
            stored.update((row["id"], row["code"]) for row in rows)
        missing = [id_ for id_ in numbers if id_ not in stored]
        if missing:
            raise ValueError(f"ids must be in collection {self.collection!r}; {len(missing)} are not: {missing[:5]}.")
        vectors = [stored[id_] for id_ in numbers]
        codes = check_codes(
            csr_matrix(
                (
                    np.array([value for vector in vectors for value in vector.values()], dtype=np.float32),
                    np.array([column for vector in vectors for column in vector], dtype=np.int64),
                    np.cumsum([0, *map(len, vectors)]),
                ),
                shape=(len(numbers), 2 * self.n_components),
            ),
            2 * self.n_components,
        )
        return csr_type()(codes)

    def __len__(self) -> int:
        """Return the number of documents."""
        # Strong, whatever the collection's level: `add` would number documents anew from a count that lags behind
        found = self.client.query(self.collection, filter="", output_fields=["count(*)"], consistency_level="Strong")
        return int(found[0]["count(*)"])


def _vectors(codes: csr_matrix) -> list[dict[int, float]]:
    return [dict(zip(indices.tolist(), values.tolist(), strict=True)) for indices, values in rows_of(codes)]
