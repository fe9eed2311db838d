"""Neighbors as graphs: what an estimator gains from `kneighbors` and `radius_neighbors` alone."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from sklearn.base import TransformerMixin
from sklearn.utils.validation import check_is_fitted

from skcompressae._compat import csr_type

__all__ = ["NeighborsGraphMixin"]


class NeighborsGraphMixin(TransformerMixin):
    """Graphs of neighbors, and `transform` into one as `sklearn.neighbors.KNeighborsTransformer` does.

    `TransformerMixin` wraps the `transform` of the class that names it as a base, and no inherited one: `set_output`
    would be ignored.
    """

    n_neighbors: int
    n_samples_fit_: int
    kneighbors: Any
    radius_neighbors: Any
    _as_it_is: Any

    def kneighbors_graph(self, X: Any = None, n_neighbors: int | None = None, mode: str = "connectivity") -> Any:
        """Compute the graph of nearest documents.

        Row i has the neighbors of query i, so the graph is not symmetric. It serves what takes a sparse graph, such as
        spectral clustering or UMAP.

        Parameters
        ----------
        X : {array-like, sparse matrix} or None, default=None
            As for `kneighbors`.
        n_neighbors : int, default=None
            As for `kneighbors`.
        mode : {"connectivity", "distance"}, default="connectivity"
            Values of the graph: ones or distances.

        Returns
        -------
        CSR matrix (or array) of shape (n_queries, `n_samples_fit_`)
            Row i holds the neighbors of query i, nearest first.

        Raises
        ------
        TypeError
            If `n_neighbors` is no integer.
        ValueError
            If `mode` is unknown, or queries and `n_neighbors` are not as :meth:`kneighbors` requires.

        See Also
        --------
        radius_neighbors_graph : All documents within a distance.
        transform : The graph of distances, for ``metric="precomputed"``.

        Examples
        --------
        >>> import numpy as np
        >>> from scipy.sparse import csr_matrix
        >>> from skcompressae import CodeNearestNeighbors
        >>> codes = csr_matrix(np.array([[2.0, 0.0, 0.0], [1.0, -1.0, 0.0], [0.0, 0.0, 3.0]]))
        >>> index = CodeNearestNeighbors(n_neighbors=2).fit(codes)
        >>> index.kneighbors_graph(codes[:1]).toarray()
        array([[1., 1., 0.]])
        """
        _check_graph_mode(mode)
        with self._as_it_is() as index:
            distances, indices = index.kneighbors(X, n_neighbors, return_distance=True)
        n_queries, width = indices.shape
        values = distances.ravel() if mode == "distance" else np.ones(indices.size)
        indptr = np.arange(0, n_queries * width + 1, width)
        return _graph(values, indices.ravel(), indptr, index.n_samples_fit_)

    def radius_neighbors_graph(
        self, X: Any = None, radius: float | None = None, mode: str = "connectivity", sort_results: bool = False
    ) -> Any:
        """Compute the graph of documents within a distance.

        Row i has as many entries as there are documents within `radius` of query i.

        Parameters
        ----------
        X : {array-like, sparse matrix} or None, default=None
            As for `kneighbors`.
        radius : float, default=None
            As for `radius_neighbors`.
        mode : {"connectivity", "distance"}, default="connectivity"
            Values of the graph: ones or distances.
        sort_results : bool, default=False
            Ignored: results are sorted always. scikit-learn's neighbors have it.

        Returns
        -------
        CSR matrix (or array) of shape (n_queries, `n_samples_fit_`)
            Row i holds the documents within `radius` of query i, nearest first.

        Raises
        ------
        ValueError
            If `mode` is unknown, or queries are not as :meth:`radius_neighbors` requires.

        See Also
        --------
        kneighbors_graph : A fixed number of documents.
        radius_neighbors : The same as arrays.

        Examples
        --------
        >>> import numpy as np
        >>> from scipy.sparse import csr_matrix
        >>> from skcompressae import CodeNearestNeighbors
        >>> codes = csr_matrix(np.array([[2.0, 0.0, 0.0], [1.0, -1.0, 0.0], [0.0, 0.0, 3.0]]))
        >>> index = CodeNearestNeighbors(n_neighbors=2).fit(codes)
        >>> index.radius_neighbors_graph(codes[:1], radius=0.5, mode="distance").toarray().round(3)
        array([[0.   , 0.293, 0.   ]])
        """
        _check_graph_mode(mode)
        with self._as_it_is() as index:
            distances, indices = index.radius_neighbors(X, radius, return_distance=True)
        indptr = np.concatenate([[0], np.cumsum([len(rows) for rows in indices], dtype=np.int64)])
        columns = np.concatenate([np.empty(0, np.int64), *indices])
        values = np.ones(len(columns))
        if mode == "distance" and len(distances):
            values = np.concatenate(list(distances))
        return _graph(values, columns, indptr, index.n_samples_fit_)

    def transform(self, X: Any) -> Any:
        """Compute the graph of distances to the nearest documents.

        It serves estimators with ``metric="precomputed"``. As `sklearn.neighbors.KNeighborsTransformer` does, it
        returns ``n_neighbors + 1`` neighbors, since a document given again is its own neighbor.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_queries, n_components) or (n_queries, n_features)
            As for `kneighbors`.

        Returns
        -------
        CSR matrix (or array) of shape (n_queries, `n_samples_fit_`)
            Distances, explicit even where they are 0.

        See Also
        --------
        kneighbors_graph : The same, with the choice of neighbors and values.
        sklearn.neighbors.KNeighborsTransformer : The same over dense vectors.

        Examples
        --------
        >>> import numpy as np
        >>> from scipy.sparse import csr_matrix
        >>> from skcompressae import CodeNearestNeighbors
        >>> codes = csr_matrix(np.array([[2.0, 0.0, 0.0], [1.0, -1.0, 0.0], [0.0, 0.0, 3.0]]))
        >>> index = CodeNearestNeighbors(n_neighbors=1).fit(codes)
        >>> index.transform(codes).shape, index.transform(codes).nnz
        ((3, 3), 6)
        """
        check_is_fitted(self)
        return self.kneighbors_graph(X, self.n_neighbors + 1, mode="distance")


def _graph(values: NDArray[Any], columns: NDArray[Any], indptr: NDArray[Any], n_documents: int) -> Any:
    # by way of a matrix, which takes 32-bit indices where they suffice; an array would keep 64 bits
    return csr_type()(csr_matrix((values, columns, indptr), shape=(len(indptr) - 1, n_documents)))


def _check_graph_mode(mode: str) -> None:
    if mode not in ("connectivity", "distance"):
        raise ValueError(f'Unsupported mode, must be one of "connectivity", or "distance" but got "{mode}" instead')
