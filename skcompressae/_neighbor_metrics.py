"""Neighbour metrics: exact dense neighbours, recall and nDCG of found lists."""

from __future__ import annotations

from numbers import Integral
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse
from sklearn.utils import check_scalar

from skcompressae._core._exact import exact_search

__all__ = ["as_dense", "check_option", "exact_neighbors", "neighbor_ndcg_score", "neighbor_recall_score"]

METRICS = ("cosine", "dot")


def exact_neighbors(
    X_documents: npt.ArrayLike,
    X_queries: npt.ArrayLike,
    n_neighbors: int = 10,
    *,
    metric: str = "cosine",
    return_similarity: bool = False,
    document_batch_size: int = 16384,
    query_batch_size: int = 256,
) -> Any:
    """Find the exact nearest documents of dense queries, block by block.

    The product runs in float32 (BLAS). Every document whose float32 score comes within the rounding bound of
    the last place [1]_ is scored again in float64, so the result is that of a float64 search. Equal float64
    scores are ordered by index, lowest first.

    Memory beside the result is bounded by ``document_batch_size * (8 * n_features + 8 * query_batch_size)``
    bytes in ordinary data, whatever the number of rows. Only when nearly all documents tie with the last
    place does it rise, to about five times that. The documents are read once, in order, so either input may
    be a memory-mapped file.

    Parameters
    ----------
    X_documents : array-like of shape (n_documents, n_features)
        Dense documents of any real dtype.
    X_queries : array-like of shape (n_queries, n_features)
        Dense queries of any real dtype.
    n_neighbors : int, default=10
        Neighbours per query, at most `n_documents`.
    metric : {"cosine", "dot"}, default="cosine"
        Similarity to rank by. The cosine with a zero row is 0.
    return_similarity : bool, default=False
        Whether to return the similarities too.
    document_batch_size : int, default=16384
        Documents per block.
    query_batch_size : int, default=256
        Queries per block.

    Returns
    -------
    similarities : ndarray of shape (n_queries, n_neighbors), dtype float64
        Similarities in descending order. Only if `return_similarity` is True.
    indices : ndarray of shape (n_queries, n_neighbors), dtype int64
        Rows of `X_documents`, most similar first.

    Raises
    ------
    TypeError
        If `n_neighbors` or a batch size is no integer.
    ValueError
        If an input is sparse, not two-dimensional, empty of features or not finite; if the widths differ; if
        there are fewer documents than `n_neighbors`; or, for dot products, if a squared norm overflows float64.

    See Also
    --------
    neighbor_recall_score : Compares what a search found with its result.
    skcompressae.CodeNearestNeighbors : Searches codes.

    References
    ----------
    .. [1] N. J. Higham, "Accuracy and Stability of Numerical Algorithms", 2nd ed., SIAM, 2002, section 3.1.

    Examples
    --------
    >>> from skcompressae.metrics import exact_neighbors
    >>> exact_neighbors([[1, 0], [0, 1], [1, 1]], [[2, 1]], n_neighbors=2)
    array([[2, 0]])
    """
    documents = as_dense(X_documents, "X_documents")
    queries = as_dense(X_queries, "X_queries")
    check_option(metric, "metric", METRICS)
    for name, size in (("document_batch_size", document_batch_size), ("query_batch_size", query_batch_size)):
        check_scalar(size, name, Integral, min_val=1)
    check_scalar(n_neighbors, "n_neighbors", Integral, min_val=1)
    n_documents, n_features = documents.shape
    if queries.shape[1] != n_features:
        raise ValueError(f"X_queries must have as many columns as X_documents ({n_features}), got {queries.shape[1]}.")
    if n_neighbors > n_documents:
        raise ValueError(f"n_neighbors must be at most the number of documents ({n_documents}), got {n_neighbors}.")
    similarities, indices = exact_search(
        documents,
        queries,
        int(n_neighbors),
        is_cosine=metric == "cosine",
        document_batch_size=document_batch_size,
        query_batch_size=query_batch_size,
    )
    return (similarities, indices) if return_similarity else indices


def neighbor_recall_score(
    neighbors_true: npt.ArrayLike,
    neighbors_pred: npt.ArrayLike,
    *,
    n_neighbors: int | None = None,
    average: bool = True,
) -> Any:
    """Compute the share of the true neighbours that a search found.

    For one query this is ``|true & pred| / |true|``, whatever the order in the lists.

    Parameters
    ----------
    neighbors_true : array-like of shape (n_queries, n_true), dtype int
        Indices of the true neighbours, best first, without repeats.
    neighbors_pred : array-like of shape (n_queries, n_pred), dtype int
        Indices found, best first, without repeats. Negative entries are padding and match nothing.
    n_neighbors : int or None, default=None
        Cut both lists to their first `n_neighbors` (recall@n). None compares the lists as they are, so that
        lists of 10 and of 100 give ``10-recall@100``.
    average : bool, default=True
        Whether to return the mean over the queries instead of one value for each.

    Returns
    -------
    float or ndarray of shape (n_queries,), dtype float64
        Between 0 and 1.

    Raises
    ------
    TypeError
        If `n_neighbors` is no integer.
    ValueError
        If a list is not a two-dimensional integer array, repeats an index or is empty, if the numbers of
        queries differ, or if `n_neighbors` exceeds `n_true`.

    See Also
    --------
    neighbor_ndcg_score : Counts the order too.
    exact_neighbors : Finds the true neighbours.
    RetrievalRecallScorer : Recall as a scorer for grid search.

    Examples
    --------
    >>> from skcompressae.metrics import neighbor_recall_score
    >>> neighbor_recall_score([[4, 2, 7], [0, 1, 3]], [[2, 9, 4], [0, 1, 3]], average=False)
    array([0.66666667, 1.        ])
    """
    true, pred = _check_neighbor_lists(neighbors_true, neighbors_pred, n_neighbors)
    recall = np.count_nonzero(_true_ranks(true, pred) >= 0, axis=1) / true.shape[1]
    return float(recall.mean()) if average else recall


def neighbor_ndcg_score(
    neighbors_true: npt.ArrayLike,
    neighbors_pred: npt.ArrayLike,
    *,
    gains: npt.ArrayLike | None = None,
    n_neighbors: int | None = None,
    average: bool = True,
) -> Any:
    r"""Compute the normalised discounted cumulative gain of found neighbours against the true ranking.

    With :math:`g(i)` the gain of document i, 0 outside the true list, the score of one query is

    .. math:: \frac{\sum_r g(\mathrm{pred}_r) / \log_2(1 + r)}{\sum_r g_{(r)} / \log_2(1 + r)}

    with ranks r from 1 and :math:`g_{(r)}` the r-th largest gain of the true list: the cumulated gain of [1]_
    with the logarithmic discount of [2]_. Unlike recall it falls when the right documents come in the wrong
    order.

    Parameters
    ----------
    neighbors_true : array-like of shape (n_queries, n_true), dtype int
        Indices of the true neighbours, best first, without repeats.
    neighbors_pred : array-like of shape (n_queries, n_pred), dtype int
        Indices found, best first, without repeats. Negative entries are padding and match nothing.
    gains : array-like of shape (n_queries, n_true) or None, default=None
        Gain of each true neighbour, not negative, for instance its similarity. None takes the gain from the
        true rank r: ``(n_true + 1 - r) / n_true``.
    n_neighbors : int or None, default=None
        Cut all lists to their first `n_neighbors` (nDCG@n). None compares the lists as they are.
    average : bool, default=True
        Whether to return the mean over the queries instead of one value for each.

    Returns
    -------
    float or ndarray of shape (n_queries,), dtype float64
        Between 0 and 1. A query whose gains are all 0 scores 0.

    Raises
    ------
    TypeError
        If `n_neighbors` is no integer.
    ValueError
        As :func:`neighbor_recall_score`, and if `gains` has another shape than `neighbors_true`, or is
        negative or not finite.

    See Also
    --------
    neighbor_recall_score : The share that was found, whatever the order.
    exact_neighbors : Finds the true neighbours, with their similarities.

    References
    ----------
    .. [1] K. Jarvelin and J. Kekalainen, "Cumulated gain-based evaluation of IR techniques", ACM Transactions
       on Information Systems 20(4), 2002.
    .. [2] C. Burges et al., "Learning to rank using gradient descent", ICML 2005.

    Examples
    --------
    >>> from skcompressae.metrics import neighbor_ndcg_score
    >>> neighbor_ndcg_score([[4, 2, 7]], [[4, 2, 7]])
    1.0
    >>> round(neighbor_ndcg_score([[4, 2, 7]], [[7, 2, 4]]), 4)
    0.79
    """
    full_shape = np.shape(neighbors_true)
    true, pred = _check_neighbor_lists(neighbors_true, neighbors_pred, n_neighbors)
    n_true, n_pred = true.shape[1], pred.shape[1]
    if gains is None:
        weights = np.broadcast_to((n_true - np.arange(n_true)) / n_true, true.shape)
    else:
        weights = np.asarray(gains, dtype=np.float64)
        if weights.shape != full_shape:
            raise ValueError(f"gains must have the shape of neighbors_true {full_shape}, got {weights.shape}.")
        weights = weights[:, :n_true]
        if not (np.isfinite(weights) & (weights >= 0)).all():
            raise ValueError(f"gains must be finite and not negative, got a minimum of {weights.min()}.")
    ranks = _true_ranks(true, pred)
    found = np.where(ranks >= 0, np.take_along_axis(weights, np.maximum(ranks, 0), axis=1), 0.0)
    discounts = 1.0 / np.log2(2.0 + np.arange(max(n_true, n_pred)))
    gained = found @ discounts[:n_pred]
    ideal = -np.sort(-weights, axis=1) @ discounts[:n_true]
    ndcg = np.divide(gained, ideal, out=np.zeros_like(ideal), where=ideal > 0)
    # a perfect list adds the same numbers in the same order up to rounding
    ndcg = np.minimum(ndcg, 1.0)
    return float(ndcg.mean()) if average else ndcg


def as_dense(X: Any, name: str) -> npt.NDArray[Any]:
    """Return `X` as a real two-dimensional array without a copy where it is one; memory maps stay mapped."""
    if sparse.issparse(X):
        raise ValueError(f"{name} must be dense, got a {type(X).__name__}.")
    rows = np.asanyarray(X)
    if rows.ndim != 2 or rows.shape[1] == 0:
        raise ValueError(f"{name} must be two-dimensional with at least one column, got shape {rows.shape}.")
    if rows.dtype.kind not in "fiub":
        raise ValueError(f"{name} must hold real numbers, got dtype {rows.dtype}.")
    return rows


def check_option(value: Any, name: str, options: tuple[str, ...]) -> None:
    if not isinstance(value, str) or value not in options:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, options))}, got {value!r}.")


def _check_neighbor_lists(
    neighbors_true: npt.ArrayLike, neighbors_pred: npt.ArrayLike, n_neighbors: int | None
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Return both lists as integer arrays cut to `n_neighbors`, after checking that they can be compared."""
    lists = []
    for name, values in (("neighbors_true", neighbors_true), ("neighbors_pred", neighbors_pred)):
        array = np.asarray(values)
        if array.ndim != 2 or array.dtype.kind not in "iu" or array.size == 0:
            raise ValueError(
                f"{name} must be a non-empty two-dimensional array of integers, "
                f"got shape {array.shape} and dtype {array.dtype}."
            )
        ordered = np.sort(array, axis=1)
        repeats = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)
        if repeats.any():
            row, place = np.argwhere(repeats)[0]
            raise ValueError(f"{name} must not repeat an index, got {ordered[row, place]} twice in row {row}.")
        lists.append(array)
    true, pred = lists
    if true.min() < 0:
        raise ValueError(f"neighbors_true must not be negative, got {true.min()}.")
    if true.shape[0] != pred.shape[0]:
        raise ValueError(
            f"neighbors_pred must have as many rows as neighbors_true ({true.shape[0]}), got {pred.shape[0]}."
        )
    if n_neighbors is not None:
        check_scalar(n_neighbors, "n_neighbors", Integral, min_val=1)
        if n_neighbors > true.shape[1]:
            raise ValueError(
                f"n_neighbors must be at most the columns of neighbors_true ({true.shape[1]}), got {n_neighbors}."
            )
    return true[:, :n_neighbors], pred[:, :n_neighbors]


def _true_ranks(true: npt.NDArray[Any], pred: npt.NDArray[Any]) -> npt.NDArray[np.intp]:
    """Return for each predicted index its place in the true list of its row, from 0, or -1."""
    # ids become ranks among the ids that occur, so that row * n_ids + id cannot overflow
    # and are of one type: uint64 beside int64 would be compared as float64, which merges numbers beyond 2**53
    is_id = pred >= 0
    sides = [side.ravel().astype(np.uint64) for side in (true, np.where(is_id, pred, 0))]
    ids, compact = np.unique(np.concatenate(sides), return_inverse=True)
    rows = np.arange(true.shape[0])[:, None] * ids.size
    keys = (compact[: true.size].reshape(true.shape) + rows).ravel()
    wanted = compact[true.size :].reshape(pred.shape) + rows
    order = np.argsort(keys)
    at = order[np.minimum(np.searchsorted(keys, wanted, sorter=order), keys.size - 1)]
    return np.where(is_id & (keys[at] == wanted), at % true.shape[1], -1)
