"""Metrics of retrieval, reconstruction and size, and a scorer for grid search."""

from __future__ import annotations

import copy
import warnings
from numbers import Integral
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import train_test_split
from sklearn.pipeline import Pipeline
from sklearn.utils import check_scalar

from skcompressae._compat import transform_plainly
from skcompressae._core._callers import caller_level
from skcompressae._core._threads import row_blocks
from skcompressae._neighbor_metrics import (
    METRICS,
    as_dense,
    check_option,
    exact_neighbors,
    neighbor_ndcg_score,
    neighbor_recall_score,
)
from skcompressae._neighbors import CodeNearestNeighbors

__all__ = [
    "RetrievalRecallScorer",
    "bytes_per_vector",
    "compression_factor",
    "exact_neighbors",
    "mean_cosine_similarity",
    "neighbor_ndcg_score",
    "neighbor_recall_score",
]

MODES = ("asymmetric", "reconstructed", "sparse")
# Rows taken at once where a metric needs float64 copies of its input: 4096 x 768 float64 is 24 MiB.
_ROW_BLOCK = 4096
# Rows whose lengths differ by less are of one length.
_SAME_LENGTH = 1.01
# The arrays that make up each sparse format.
_SPARSE_PARTS = {
    "csr": ("data", "indices", "indptr"),
    "csc": ("data", "indices", "indptr"),
    "bsr": ("data", "indices", "indptr"),
    "coo": ("data", "row", "col"),
}


def mean_cosine_similarity(X: npt.ArrayLike, X_hat: npt.ArrayLike) -> float:
    """Compute the mean cosine between rows and their reconstructions.

    In float64 and in blocks, so that neither input is copied as a whole. A row that is zero on both sides is
    reconstructed exactly and counts 1; a row that is zero on one side only counts 0.

    Parameters
    ----------
    X : array-like of shape (n_samples, n_features)
        Dense rows.
    X_hat : array-like of shape (n_samples, n_features)
        Their reconstructions.

    Returns
    -------
    float
        Between -1 and 1; 1 is a perfect reconstruction up to the scale of each row.

    Raises
    ------
    ValueError
        If an input is sparse, not two-dimensional, empty or not finite, or if the shapes differ.

    See Also
    --------
    neighbor_recall_score : What is left of neighbours rather than of directions.
    skcompressae.CompresSAETransformer.score : The same of a compressor's own reconstructions.

    Examples
    --------
    >>> from skcompressae.metrics import mean_cosine_similarity
    >>> mean_cosine_similarity([[1.0, 0.0], [0.0, 2.0]], [[3.0, 0.0], [1.0, 0.0]])
    0.5
    """
    rows, rows_hat = as_dense(X, "X"), as_dense(X_hat, "X_hat")
    if rows.shape != rows_hat.shape:
        raise ValueError(f"X_hat must have the shape of X {rows.shape}, got {rows_hat.shape}.")
    if rows.shape[0] == 0:
        raise ValueError("X must have at least one row, got 0.")
    total = 0.0
    for start, stop in row_blocks(rows.shape[0], _ROW_BLOCK):
        a, b = (np.asarray(side[start:stop], dtype=np.float64) for side in (rows, rows_hat))
        for name, side in (("X", a), ("X_hat", b)):
            if not np.isfinite(side).all():
                raise ValueError(f"{name} must be finite, got NaN or infinity.")
        # the largest entry of a row is taken out first, so that no square over- or underflows
        peak_a, peak_b = np.abs(a).max(axis=1), np.abs(b).max(axis=1)
        a = a / np.where(peak_a == 0, 1.0, peak_a)[:, None]
        b = b / np.where(peak_b == 0, 1.0, peak_b)[:, None]
        norms = np.sqrt(np.einsum("ij,ij->i", a, a) * np.einsum("ij,ij->i", b, b))
        cosines = np.divide(np.einsum("ij,ij->i", a, b), norms, out=np.zeros_like(norms), where=norms > 0)
        cosines[(peak_a == 0) & (peak_b == 0)] = 1.0
        total += float(np.clip(cosines, -1.0, 1.0).sum())
    return total / rows.shape[0]


def bytes_per_vector(codes: Any) -> float:
    """Compute the mean number of bytes that one row takes in memory.

    What is stored for every row; weights and codebooks, which do not grow with the rows, are not counted, except where
    `codes` counts them in its `nbytes`, as packed codes do.

    Parameters
    ----------
    codes : sparse matrix or array in CSR, CSC, BSR or COO format, array, or object with `nbytes`
        For a sparse container the values, the indices and the row pointers are counted, in the dtypes they
        are stored in. Anything else states its own `nbytes` and its number of rows by `shape` or ``len()``,
        as NumPy arrays and packed codes do.

    Returns
    -------
    float
        Bytes per row.

    Raises
    ------
    TypeError
        If the size of `codes` cannot be known.
    ValueError
        If `codes` has no rows.

    See Also
    --------
    compression_factor : Compares it with the vectors.
    skcompressae.PackedCodes.bytes_per_row : Packed codes, without codebooks.

    Examples
    --------
    >>> import numpy as np
    >>> from skcompressae.metrics import bytes_per_vector
    >>> bytes_per_vector(np.zeros((10, 768), dtype=np.float32))
    3072.0
    """
    size_bytes: int
    if sparse.issparse(codes):
        container: Any = codes
        if container.format not in _SPARSE_PARTS:
            raise TypeError(f"codes must be in CSR, CSC, BSR or COO format, got {container.format!r}.")
        size_bytes = sum(getattr(container, part).nbytes for part in _SPARSE_PARTS[container.format])
        n_rows = container.shape[0]
    else:
        if not hasattr(codes, "nbytes") or not (hasattr(codes, "shape") or hasattr(codes, "__len__")):
            raise TypeError(
                "codes must be a sparse container, an array or an object with nbytes and a length, "
                f"got {type(codes).__name__}."
            )
        size_bytes = codes.nbytes
        n_rows = codes.shape[0] if getattr(codes, "shape", ()) else len(codes)
    if n_rows == 0:
        raise ValueError("codes must have at least one row, got 0.")
    return float(size_bytes) / int(n_rows)


def compression_factor(X: Any, codes: Any) -> float:
    """Compute how many times smaller the codes are than the vectors they replace.

    The ratio ``bytes_per_vector(X) / bytes_per_vector(codes)``, each side in the form and dtype in which it is passed.

    Parameters
    ----------
    X : array of shape (n_samples, n_features), or anything that :func:`bytes_per_vector` takes
        The vectors in the dtype they would be stored in: float64 doubles the factor of float32.
    codes : as in :func:`bytes_per_vector`
        The codes of the same number of rows.

    Returns
    -------
    float
        Above 1 where the codes are smaller.

    Raises
    ------
    TypeError
        If a size cannot be known.
    ValueError
        If there are no rows, if the codes take no bytes, or if the numbers of rows differ.

    See Also
    --------
    bytes_per_vector : What is compared.
    skcompressae.CompressionTradeoffDisplay : Draws recall against it.

    Examples
    --------
    >>> import numpy as np
    >>> from skcompressae.metrics import compression_factor
    >>> compression_factor(np.zeros((10, 768), dtype=np.float32), np.zeros((10, 96), dtype=np.uint8))
    32.0
    """
    dense_bytes, code_bytes = bytes_per_vector(X), bytes_per_vector(codes)
    n_rows, n_codes = (side.shape[0] if getattr(side, "shape", ()) else len(side) for side in (X, codes))
    if n_rows != n_codes:
        raise ValueError(f"codes must have as many rows as X ({n_rows}), got {n_codes}.")
    if code_bytes == 0:
        raise ValueError("codes must take at least one byte, got 0.")
    return dense_bytes / code_bytes


class RetrievalRecallScorer:
    """Score a fitted compressor by the share of the true neighbours that search over its codes finds.

    A callable for the `scoring` parameter of :class:`sklearn.model_selection.GridSearchCV` and its kin. At
    each call the rows are split by `random_state` into queries and documents, the exact dense neighbours of
    the queries are computed, the documents are encoded and searched in `mode`, and the recall is returned.

    If the estimator is a :class:`sklearn.pipeline.Pipeline`, its last step is the compressor and both
    sides go through the earlier steps first: the true neighbours are those in the space that enters the
    compressor. The recall therefore says nothing about what the earlier steps lost.

    Parameters
    ----------
    mode : {"asymmetric", "reconstructed", "sparse"}, default="asymmetric"
        Search mode: dense queries against reconstructions, reconstructions against reconstructions, or codes
        against codes.
    n_neighbors : int, default=10
        Neighbours per query, the n of recall@n.
    metric : {"cosine", "dot"}, default="cosine"
        Similarity of the true neighbours and of the search. By cosine, codes of ``norm="input"`` are taken at
        ``norm="unit"``: lengths do not matter, and rows of any length find what unit rows find.
    n_queries : int or None, default=None
        Rows that become queries; the others are the documents. None takes a fifth of the rows, at least 1 and
        at most 1,000.
    random_state : int, RandomState instance or None, default=0
        Seed of the split. An int gives every candidate of a grid search the same split of a fold; None gives
        each call its own.

    Raises
    ------
    TypeError
        If `n_neighbors` or `n_queries` is no integer.
    ValueError
        If a parameter is out of its range.

    See Also
    --------
    neighbor_recall_score : The measure itself.
    skcompressae.CompresSAETransformer.score : Reconstruction, which is faster to compute.
    sklearn.model_selection.GridSearchCV : What it is made for.

    Examples
    --------
    >>> from skcompressae.metrics import RetrievalRecallScorer
    >>> RetrievalRecallScorer(mode="sparse", n_neighbors=20)
    RetrievalRecallScorer(mode='sparse', n_neighbors=20)
    """

    def __init__(
        self,
        mode: str = "asymmetric",
        *,
        n_neighbors: int = 10,
        metric: str = "cosine",
        n_queries: int | None = None,
        random_state: Any = 0,
    ) -> None:
        check_option(mode, "mode", MODES)
        check_option(metric, "metric", METRICS)
        check_scalar(n_neighbors, "n_neighbors", Integral, min_val=1)
        if n_queries is not None:
            check_scalar(n_queries, "n_queries", Integral, min_val=1)
        self.mode = mode
        self.n_neighbors = n_neighbors
        self.metric = metric
        self.n_queries = n_queries
        self.random_state = random_state

    def __repr__(self) -> str:
        defaults = {"n_neighbors": 10, "metric": "cosine", "n_queries": None, "random_state": 0}
        changed = [
            f"{name}={getattr(self, name)!r}" for name, value in defaults.items() if getattr(self, name) != value
        ]
        return f"RetrievalRecallScorer({', '.join([f'mode={self.mode!r}', *changed])})"

    def __call__(self, estimator: Any, X: Any, y: Any = None) -> float:
        """Return the recall of `estimator` on `X`.

        Parameters
        ----------
        estimator : fitted CompresSAETransformer, or Pipeline that ends in one
            The compressor to score. It is not changed.
        X : array-like of shape (n_samples, n_features)
            Dense rows, usually the validation fold.
        y : None
            Ignored; present for scikit-learn's convention.

        Returns
        -------
        recall : float
            Between 0 and 1.

        Raises
        ------
        TypeError
            If the last step of a pipeline is not a compressor.
        ValueError
            If `X` has too few rows for `n_queries` and `n_neighbors`.
        """
        documents, queries = split_queries(X, self.n_queries, self.n_neighbors, self.random_state)
        compressor, documents, queries = enter_compressor(estimator, documents, queries)
        warn_of_lost_lengths(compressor, documents, self.metric)
        true = exact_neighbors(documents, queries, self.n_neighbors, metric=self.metric)
        compressor = of_moderate_codes(compressor, self.metric)
        codes = transform_plainly(compressor, documents)
        found = search_codes(compressor, codes, queries, self.mode, self.n_neighbors, self.metric)
        return float(neighbor_recall_score(true, found))


def split_queries(X: Any, n_queries: int | None, n_neighbors: int, random_state: Any) -> tuple[Any, Any]:
    """Split rows into ``(documents, queries)`` by seed, keeping the container (array, data frame)."""
    n_rows = X.shape[0] if hasattr(X, "shape") else len(X)
    if n_queries is None:
        n_queries = min(1000, max(1, n_rows // 5))
    if n_rows - n_queries < n_neighbors:
        raise ValueError(
            f"X must have at least n_queries + n_neighbors = {n_queries} + {n_neighbors} rows, got {n_rows}."
        )
    documents, queries = train_test_split(X, test_size=int(n_queries), random_state=random_state)
    return documents, queries


def enter_compressor(estimator: Any, *inputs: Any) -> tuple[Any, ...]:
    """Return the compressor and the `inputs` as they enter it, after the earlier steps of its pipelines."""
    compressor = estimator
    while isinstance(compressor, Pipeline | FrozenEstimator):
        if isinstance(compressor, FrozenEstimator):  # whose parameters cannot be set, not even those of a copy
            compressor = compressor.estimator
        else:
            if len(compressor.steps) > 1:
                inputs = tuple(compressor[:-1].transform(rows) for rows in inputs)
            compressor = compressor.steps[-1][1]
    if not hasattr(compressor, "transform_query"):
        raise TypeError(
            "estimator must be a CompresSAETransformer or a Pipeline that ends in one, "
            f"got {type(compressor).__name__}."
        )
    return (compressor, *inputs)


def warn_of_lost_lengths(compressor: Any, documents: Any, metric: str) -> None:
    """Warn where the true neighbours go by lengths of rows of which codes of the compressor's norm know nothing."""
    norm = getattr(compressor, "norm", "input")
    if metric != "dot" or norm == "input":
        return
    rows = np.asarray(documents)
    lengths = np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64))
    lengths = lengths[lengths > 0]
    if lengths.size and lengths.max() > _SAME_LENGTH * lengths.min():
        warnings.warn(
            f"metric='dot' takes true neighbours by inner products of the rows as they are, and codes of norm={norm!r} "
            f"keep nothing of the rows' lengths, of which the largest is {lengths.max() / lengths.min():.3g} times the "
            "smallest: recall will mostly tell of that. Scale the rows to unit length first, or use norm='input'.",
            UserWarning,
            stacklevel=caller_level(),
        )


def of_moderate_codes(compressor: Any, metric: str) -> Any:
    """Return a copy whose codes, by cosine, are of unit length where they would be as long as the rows.

    Of codes of extreme length the search knows no cosine: their norms count as 0, or are beyond float32.
    """
    if metric != "cosine" or getattr(compressor, "norm", None) != "input":
        return compressor
    return copy.copy(compressor).set_params(norm="unit")


def search_codes(
    compressor: Any, codes: Any, queries: Any, mode: str, n_neighbors: int, metric: str, *, rerank: int | None = None
) -> npt.NDArray[np.int64]:
    """Return the indices that a search of `mode` over `codes` finds for dense `queries`."""
    search = CodeNearestNeighbors(n_neighbors, compressor=compressor, mode=mode, metric=metric, rerank=rerank)
    index = search.fit(codes)
    entering = np.asarray(queries) if mode == "asymmetric" else transform_plainly(compressor, queries)
    indices: npt.NDArray[np.int64] = index.kneighbors(entering, return_distance=False)
    return indices
