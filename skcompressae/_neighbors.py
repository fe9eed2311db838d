"""Nearest neighbors over sparse codes, without decompressing them."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from skcompressae._compat import HasMethods, Interval, StrOptions, _fit_context, validated_every_time
from skcompressae._neighbors_build import IndexBuildMixin
from skcompressae._neighbors_graph import NeighborsGraphMixin
from skcompressae._neighbors_io import IndexFileMixin
from skcompressae._neighbors_queries import score_limits, scores_to_distances
from skcompressae._neighbors_scan import IndexScanMixin
from skcompressae._neighbors_validation import QueryValidationMixin

__all__ = ["CodeNearestNeighbors"]


class CodeNearestNeighbors(
    IndexBuildMixin,
    IndexScanMixin,
    QueryValidationMixin,
    NeighborsGraphMixin,
    IndexFileMixin,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
    BaseEstimator,
):
    r"""Exact nearest neighbors over sparse codes.

    The documents are sparse codes :math:`s \in R^m` with few nonzeros, as `CompresSAETransformer` makes them.
    A code stands for the vector :math:`\hat x = s D`, where the rows of :math:`D` are the `components_` of
    the compressor. Scores between such vectors are computed in code space and never decompress a document:
    :math:`\hat q \cdot \hat x = (D \hat q) \cdot s`, one dense vector :math:`t = D \hat q` per query, then
    one product per nonzero of a document.

    Results equal a brute-force search in float64 up to the rounding of the query's :math:`t`, which has the
    precision of the query and of `components_`. Of documents with equal scores, the one fitted first comes first.
    Scores are float64; distances are clipped and may be float32, so equal ones may stand for scores that are not.

    Parameters
    ----------
    n_neighbors : int, default=5
        Number of neighbors returned by default.
    compressor : fitted transformer, array-like of shape (n_components, n_features) or None, default=None
        What relates codes to embeddings: a fitted object with `components_` of shape (n_components,
        n_features) and `transform`, or the array of `components_` alone, with which dense queries cannot be
        compressed and so serve ``mode="asymmetric"`` only. `None` leaves ``mode="sparse"``. The compressor is
        never refitted or changed. As for every estimator that takes a fitted one, :func:`sklearn.base.clone`
        (and so cross-validation) would make it unfitted: wrap it in :class:`sklearn.frozen.FrozenEstimator`
        where that matters.
    mode : {"auto", "sparse", "reconstructed", "asymmetric"}, default="auto"
        What is compared:

        - "sparse": the codes themselves, as ``NearestNeighbors(algorithm="brute")`` on the same matrix;
        - "reconstructed": the reconstruction of the query's code with the reconstructions of the documents;
        - "asymmetric": the dense query as it is with the reconstructions of the documents: the best recall;
        - "auto": "sparse" without a compressor; with one, "asymmetric" for dense queries and "reconstructed"
          for codes.

        Dense queries are compressed first where the mode compares codes.
    metric : {"cosine", "geometric", "dot"}, default="cosine"
        "cosine" is the cosine distance, ``1 - cosine``, clipped to [0, 2]; a zero vector has distance 1 to
        everything. "dot" is the maximum inner product; the distance returned is the negative inner product,
        so that it ascends too. "geometric" is the geometric mean of both for a query of unit norm, the inner product
        with the document over the square root of its norm, and the distance its negative, 0 for zero vectors: for
        codes of ``norm=None``, whose norms say how much of a row they hold. With `rerank` the cosine times the square
        root of an estimate of that, as the norm of a sum says little (:ref:`hybrid codes <hybrid-codes>`).
    radius : float, default=1.0
        Largest distance returned by default by `radius_neighbors`.
    n_jobs : int or None, default=None
        Threads of the search, in joblib's counting: None is 1, -1 is all. BLAS counts its own.
    device : str, default="cpu"
        "cpu"; "cuda" or "cuda:<number>": search on that GPU; "auto": "cuda" where there is one. All return
        the same neighbors: final scores, and queries with many near ties, are computed on the CPU, and so is
        `radius_neighbors`. It may change after fitting, and an index may be loaded where there is another; only codes
        that were indexed on a GPU and are compared with codes on the CPU are searched faster after a new fit.
    batch_size : int, default=256
        Queries searched at once; bounds the memory of a search to about ``16 * n_components * batch_size``
        bytes beside the codes and the result. A GPU takes 2 MB a query besides.
    rerank : int or None, default=None
        Candidates that the codes propose for the residual codes to order; at least `n_neighbors` are taken. Needs
        packed documents with residual codes (of a compressor with `residual_bytes`, or made by
        `PackedCodes.with_residual_of`), which stand for :math:`\hat x + \hat r`: candidates are compared with that
        sum, by `metric`, residual codes in float32. Each takes some 24 bytes a query of the batch, but as many as there
        are documents none: those are scored in one pass on the CPU (:ref:`hybrid codes <hybrid-codes>`), as by
        `radius_neighbors`. Queries that are such documents, packed or fitted (``X=None``), stand for that sum, too. An
        index fitted with `None` has to be fitted again to rerank.

    Attributes
    ----------
    n_features_in_ : int
        Number of components of the codes.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the components; only if the fitted codes had names, all of them strings.
    n_samples_fit_ : int
        Number of documents.
    effective_mode_ : {"sparse", "reconstructed"}
        Which of the two kinds of index was built: over codes or over their reconstructions.
    components_ : ndarray of shape (n_components, n_features) or None
        The decoder in use.
    nbytes_ : int
        Bytes of the index: codes, row factors and posting offsets.
    nbytes_per_document_ : float
        `nbytes_` divided by `n_samples_fit_`.

    See Also
    --------
    sklearn.neighbors.NearestNeighbors : The same interface over any vectors.

    Notes
    -----
    A query is a *code* if it is a sparse matrix, or dense but as wide as the codes; it is an *embedding* if
    it is dense and as wide as the embeddings. Where both have the same width, dense is an embedding and
    sparse is a code. Codes are taken for those of the compressor as it was when the documents were indexed: what it
    makes after another fit cannot be told from them.

    Fitted codes are referred to, not copied, where their form allows it: do not change the array afterwards.
    Documents of a norm below 1e-30 count as zero, but for ``metric="dot"``.

    References
    ----------
    .. [1] "The Future is Sparse: Embedding Compression for Scalable Retrieval in Recommender Systems",
       arXiv:2505.11388, section 3.

    Examples
    --------
    >>> import numpy as np
    >>> from scipy.sparse import csr_matrix
    >>> from skcompressae import CodeNearestNeighbors
    >>> codes = csr_matrix(np.array([[2.0, 0.0, 0.0], [1.0, -1.0, 0.0], [0.0, 0.0, 3.0]]))
    >>> index = CodeNearestNeighbors(n_neighbors=2).fit(codes)
    >>> distances, documents = index.kneighbors(csr_matrix(np.array([[1.0, 0.0, 0.0]])))
    >>> documents
    array([[0, 1]])
    >>> distances.round(3)
    array([[0.   , 0.293]])

    With the decoder, dense queries are compared with the reconstructions:

    >>> decoder = np.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    >>> index = CodeNearestNeighbors(n_neighbors=1, compressor=decoder).fit(codes)
    >>> index.kneighbors(np.array([[0.0, 5.0]]), return_distance=False)
    array([[2]])
    """

    _parameter_constraints: dict[str, list[Any]] = {
        "n_neighbors": [Interval(Integral, 1, None, closed="left")],
        "compressor": [HasMethods(["transform"]), "array-like", None],
        "mode": [StrOptions({"auto", "sparse", "reconstructed", "asymmetric"})],
        "metric": [StrOptions({"cosine", "geometric", "dot"})],
        "radius": [Interval(Real, None, None, closed="both")],
        "n_jobs": [Integral, None],
        "device": [str],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "rerank": [Interval(Integral, 1, None, closed="left"), None],
    }

    def __init__(
        self,
        n_neighbors: int = 5,
        *,
        compressor: Any = None,
        mode: str = "auto",
        metric: str = "cosine",
        radius: float = 1.0,
        n_jobs: int | None = None,
        device: str = "cpu",
        batch_size: int = 256,
        rerank: int | None = None,
    ) -> None:
        self.n_neighbors = n_neighbors
        self.compressor = compressor
        self.mode = mode
        self.metric = metric
        self.radius = radius
        self.n_jobs = n_jobs
        self.device = device
        self.batch_size = batch_size
        self.rerank = rerank

    # ------------------------------------------------------------------------------------------ fitting
    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: Any, y: Any = None) -> CodeNearestNeighbors:
        """Index the codes of the documents.

        For the sparse mode posting lists are built, for the others the norms of reconstructions are computed. Nothing
        is trained, and the embeddings are not needed. An index that was there stays in memory until
        the new one is built.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_components) or PackedCodes
            Codes, float32 or float64; anything else numeric becomes float64. Unsorted or duplicated entries
            of a CSR matrix are sorted and summed in a copy. Packed codes stay packed and are searched as they
            are; for ``mode="sparse"`` on the CPU, posting lists of the size of those of CSR are built from them.
        y : Ignored
            Present for API consistency.

        Returns
        -------
        CodeNearestNeighbors
            The fitted index.

        Raises
        ------
        ValueError
            If the codes are not finite, have norms of 1e30 or more, or no rows, or `mode`, `compressor` and `rerank` do
            not fit each other or the codes.

        See Also
        --------
        partial_fit : Adds documents to an index.
        CompresSAETransformer.transform : Makes codes.
        PackedCodes : Codes in fewer bytes.

        Examples
        --------
        >>> import numpy as np
        >>> from scipy.sparse import csr_matrix
        >>> from skcompressae import CodeNearestNeighbors
        >>> codes = csr_matrix(np.array([[2.0, 0.0, 0.0], [1.0, -1.0, 0.0], [0.0, 0.0, 3.0]]))
        >>> CodeNearestNeighbors().fit(codes).n_samples_fit_
        3
        """
        self._build(X)
        return self

    @validated_every_time
    @_fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X: Any, y: Any = None) -> CodeNearestNeighbors:
        """Append documents to the index.

        What is there is not built again. Small additions of CSR are merged with the one before; packed codes become a
        part of their own every time, with an overhead in each search, so add them in large blocks. What "geometric"
        reckons residual codes to keep, it goes on reckoning by the documents that were indexed first.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_components) or PackedCodes
            Codes, as for `fit`. They are numbered after the documents already there.
        y : Ignored
            Present for API consistency.

        Returns
        -------
        CodeNearestNeighbors
            The index with the documents added.

        Raises
        ------
        ValueError
            If the codes have another width, or `mode`, `metric` or the compressor's weights were changed since fitting.

        See Also
        --------
        fit : Starts anew.
        save : Keeps the index in a file.

        Examples
        --------
        >>> import numpy as np
        >>> from scipy.sparse import csr_matrix
        >>> from skcompressae import CodeNearestNeighbors
        >>> codes = csr_matrix(np.array([[2.0, 0.0, 0.0], [1.0, -1.0, 0.0], [0.0, 0.0, 3.0]]))
        >>> index = CodeNearestNeighbors(n_neighbors=2).fit(codes)
        >>> index.partial_fit(codes[:1]).n_samples_fit_
        4
        >>> index.kneighbors(codes[:1], return_distance=False)
        array([[0, 3]])
        """
        if not hasattr(self, "n_samples_fit_"):
            return self.fit(X)
        self._check_unchanged()
        self._check_compressor()
        self._append(self._validate_codes(X, reset=False))
        return self

    # ------------------------------------------------------------------------------------------ queries
    def kneighbors(
        self, X: Any = None, n_neighbors: int | None = None, return_distance: bool = True
    ) -> tuple[NDArray[Any], NDArray[np.int64]] | NDArray[np.int64]:
        """Find the nearest documents of each query.

        What is compared is decided by `mode` and by what `X` holds, codes or embeddings. The answer is that of a full
        scan, equal scores in the order of the documents; with `rerank`, it is the best of the candidates.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_queries, n_components or n_features), default=None
            Codes, or dense embeddings where there is a compressor; see Notes of the class. Without it, the
            neighbors of each document are returned, which is not its own neighbor.
        n_neighbors : int, default=None
            Neighbors per query; default is the parameter.
        return_distance : bool, default=True
            Whether to return the distances.

        Returns
        -------
        distances : ndarray of shape (n_queries, n_neighbors)
            Ascending; float32 if documents and queries are, else float64; infinite where beyond that. Only if
            `return_distance`.
        indices : ndarray of shape (n_queries, n_neighbors), dtype=int64
            Numbers of the documents; those of equal scores in ascending order.

        Raises
        ------
        TypeError
            If `n_neighbors` is no integer.
        ValueError
            If there are fewer documents than neighbors asked for, the queries have the wrong width or are so long that
            their products overflow, a parameter was set to what is not allowed, or queries would be compressed with
            other weights than the documents, since the compressor was fitted again.

        See Also
        --------
        radius_neighbors : All documents within a distance.
        kneighbors_graph : The same as a sparse graph.
        skcompressae.metrics.neighbor_recall_score : Compares what is found with the true neighbours.

        Examples
        --------
        >>> import numpy as np
        >>> from scipy.sparse import csr_matrix
        >>> from skcompressae import CodeNearestNeighbors
        >>> codes = csr_matrix(np.array([[2.0, 0.0, 0.0], [1.0, -1.0, 0.0], [0.0, 0.0, 3.0]]))
        >>> index = CodeNearestNeighbors(n_neighbors=2).fit(codes)
        >>> distances, documents = index.kneighbors(csr_matrix(np.array([[1.0, 0.0, 0.0]])))
        >>> documents
        array([[0, 1]])
        >>> distances.round(3)
        array([[0.   , 0.293]])
        """
        check_is_fitted(self)
        with self._as_it_is() as index:
            n_neighbors = index._check_n_neighbors(n_neighbors, exclude_self=X is None)
            queries = index._queries(X)
            distances = np.empty((queries.n_queries, n_neighbors), queries.dtype)
            indices = np.empty((queries.n_queries, n_neighbors), np.int64)
            batches = queries.batches(index.batch_size, index._n_threads())
            for start, stop, batch, norms, exclude, embeddings in batches:
                scores, rows = index._search(batch, embeddings, n_neighbors, exclude)
                _check_found(scores)
                indices[start:stop] = rows
                with np.errstate(over="ignore"):
                    distances[start:stop] = scores_to_distances(index.metric, scores, norms[:, None])
        return (distances, indices) if return_distance else indices

    def radius_neighbors(
        self, X: Any = None, radius: float | None = None, return_distance: bool = True, sort_results: bool = False
    ) -> tuple[NDArray[Any], NDArray[Any]] | NDArray[Any]:
        """Find all documents within a distance of each query.

        The number of documents differs from query to query, so arrays of arrays are returned. On any device this is
        computed on the CPU; with `rerank`, whatever its value, all documents are scored by their residual codes, too.

        Parameters
        ----------
        X : {array-like, sparse matrix} or None, default=None
            As for `kneighbors`.
        radius : float, default=None
            Largest distance; default is the parameter. For ``metric="dot"`` and "geometric" it is the negative of
            the smallest product kept.
        return_distance : bool, default=True
            Whether to return the distances.
        sort_results : bool, default=False
            Ignored: results are sorted always. scikit-learn's neighbors have it.

        Returns
        -------
        distances : ndarray of shape (n_queries,), dtype=object
            Arrays of distances, ascending. Only if `return_distance`.
        indices : ndarray of shape (n_queries,), dtype=object
            Arrays of document numbers, nearest first, those of equal scores in ascending order.

        Raises
        ------
        ValueError
            As for `kneighbors`, or if `radius` is no number.

        See Also
        --------
        kneighbors : A fixed number of documents.
        radius_neighbors_graph : The same as a sparse graph.

        Examples
        --------
        >>> import numpy as np
        >>> from scipy.sparse import csr_matrix
        >>> from skcompressae import CodeNearestNeighbors
        >>> codes = csr_matrix(np.array([[2.0, 0.0, 0.0], [1.0, -1.0, 0.0], [0.0, 0.0, 3.0]]))
        >>> index = CodeNearestNeighbors(n_neighbors=2).fit(codes)
        >>> distances, documents = index.radius_neighbors(csr_matrix(np.array([[1.0, 0.0, 0.0]])), radius=0.5)
        >>> documents[0]
        array([0, 1])
        """
        check_is_fitted(self)
        with self._as_it_is() as index:
            radius = index._check_radius(radius)
            queries = index._queries(X)
            with np.errstate(over="ignore"):  # infinite in float32, as distances beyond that are
                largest = np.asarray(radius, queries.dtype)
            distances = np.empty(queries.n_queries, object)
            indices = np.empty(queries.n_queries, object)
            batches = queries.batches(index.batch_size, index._n_threads())
            for start, _, batch, norms, exclude, embeddings in batches:
                found = index._within(batch, embeddings, score_limits(index.metric, radius, norms))
                for i, (rows, scores) in enumerate(found):
                    near = scores_to_distances(index.metric, scores, norms[i]).astype(queries.dtype, copy=False)
                    kept = (near <= largest) & (rows != exclude[i])
                    order = np.lexsort((rows[kept], -scores[kept]))
                    distances[start + i], indices[start + i] = near[kept][order], rows[kept][order]
        return (distances, indices) if return_distance else indices

    # ------------------------------------------------------------------------------------------ memory, files
    @property
    def nbytes_(self) -> int:
        """Bytes of the index.

        What the codes take in the form in which they are searched, row factors and posting offsets included; the
        `components_` are not.

        See Also
        --------
        nbytes_per_document_ : The same for each document.
        skcompressae.metrics.bytes_per_vector : Size of the codes before they are indexed.

        Examples
        --------
        >>> import numpy as np
        >>> from scipy.sparse import csr_matrix
        >>> from skcompressae import CodeNearestNeighbors
        >>> codes = csr_matrix(np.array([[2.0, 0.0, 0.0], [1.0, -1.0, 0.0], [0.0, 0.0, 3.0]]))
        >>> index = CodeNearestNeighbors(n_neighbors=2).fit(codes)
        >>> index.nbytes_ > codes.data.nbytes
        True
        """
        check_is_fitted(self)
        return sum(chunk.nbytes for chunk in self._chunks) + sum(scales.nbytes for scales in self._refined)

    @property
    def nbytes_per_document_(self) -> float:
        """Bytes of the index per document.

        To be compared with the bytes of a dense row, ``4 * n_features``.

        See Also
        --------
        nbytes_ : Of all documents.
        PackedCodes : Codes that make it smaller.

        Examples
        --------
        >>> import numpy as np
        >>> from scipy.sparse import csr_matrix
        >>> from skcompressae import CodeNearestNeighbors
        >>> codes = csr_matrix(np.array([[2.0, 0.0, 0.0], [1.0, -1.0, 0.0], [0.0, 0.0, 3.0]]))
        >>> index = CodeNearestNeighbors(n_neighbors=2).fit(codes)
        >>> index.nbytes_per_document_ == index.nbytes_ / 3
        True
        """
        return self.nbytes_ / self.n_samples_fit_

    # ------------------------------------------------------------------------------------------ conventions
    @property
    def _n_features_out(self) -> int:
        return self.n_samples_fit_

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        return state | {name: None for name in ("_device_index", "_verified_components") if name in state}

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


def _check_found(scores: NDArray[np.float64]) -> None:
    """Raise if a score is beyond float64: what is not more than minus infinity is in no result."""
    if not np.isfinite(scores).all():
        raise ValueError(
            "the product of a query with a document is beyond float64; scale the components or the values of the codes "
            "down"
        )
