"""Signed codes for engines that refuse negative values, and the way back to the signed order.

A code s becomes ``[max(s, 0), max(-s, 0)]``, 2m non-negative columns. The dot product of two such rows is the part of
the signed one where signs agree; what opposite signs would take off is missing, so documents are found in an order of
their own. Scoring the candidates again with signed codes restores the order among them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_array, csr_matrix, issparse

from skcompressae._compat import csr_type
from skcompressae.engines._validation import check_codes, check_count

__all__ = ["join_signs", "rerank_signed", "split_signs"]


def split_signs(codes: Any) -> csr_array | csr_matrix:
    """Split signed codes into non-negative ones of twice the width, ``[s+, s-]``.

    For engines that refuse negative values. Agreeing signs meet in one column, so the dot product of two split rows is
    the part of the signed one in which signs agree.

    Parameters
    ----------
    codes : sparse matrix or array, PackedCodes, or array-like of shape (n_rows, n_components)
        Codes of documents, or queries in code space; both have to be split.

    Returns
    -------
    CSR matrix of shape (n_rows, 2 * n_components), float32
        Column j holds positive values of latent j, column ``n_components + j`` the magnitudes of negative ones.

    Raises
    ------
    ValueError
        If `codes` is not two-dimensional or not finite.

    See Also
    --------
    join_signs : The way back.
    rerank_signed : Restores the order of signed products among candidates.
    MilvusIndex : An engine that needs it.

    Examples
    --------
    >>> from scipy.sparse import csr_matrix
    >>> from skcompressae.engines import split_signs
    >>> split_signs(csr_matrix([[0.5, -2.0, 0.0]])).toarray()
    array([[0.5, 0. , 0. , 0. , 2. , 0. ]], dtype=float32)
    """
    n_components = _width(codes)
    signed = check_codes(codes, n_components)
    is_negative = signed.data < 0
    # int64, since twice a width may not fit into int32; SciPy goes back to int32 where it does
    indices = signed.indices + np.where(is_negative, np.int64(n_components), np.int64(0))
    split = csr_type()((np.abs(signed.data), indices, signed.indptr), shape=(signed.shape[0], 2 * n_components))
    split.has_sorted_indices = False
    split.sort_indices()
    return split


def join_signs(split: Any) -> csr_array | csr_matrix:
    """Undo :func:`split_signs`.

    The signed codes ``s+ - s-``, for instance of vectors that an engine stores.

    Parameters
    ----------
    split : sparse matrix or array-like of shape (n_rows, 2 * n_components)
        Non-negative.

    Returns
    -------
    CSR matrix of shape (n_rows, n_components), float32
        Signed codes.

    Raises
    ------
    ValueError
        If the width is odd, or a value is negative or not finite.

    See Also
    --------
    split_signs : The way here.
    MilvusIndex.fetch : Split codes of documents.
    rerank_signed : Needs signed codes.

    Examples
    --------
    >>> from scipy.sparse import csr_matrix
    >>> from skcompressae.engines import join_signs
    >>> join_signs(csr_matrix([[0.5, 0.0, 0.0, 0.0, 2.0, 0.0]])).toarray()
    array([[ 0.5, -2. ,  0. ]], dtype=float32)
    """
    width = _width(split)
    if width % 2:
        raise ValueError(f"split must have an even number of columns, [s+, s-]; got {width}.")
    checked = check_codes(split, width, name="split")
    if checked.nnz and checked.data.min() < 0:
        raise ValueError(
            f"split must not be negative, as nothing of split_signs is; got {checked.data.min():g}. Codes that were "
            "never split need no join_signs."
        )
    return csr_type()(check_codes(checked[:, : width // 2] - checked[:, width // 2 :], width // 2))


def rerank_signed(
    queries: Any,
    candidates: ArrayLike,
    codes: Any | Callable[[NDArray[np.int64]], Any],
    n_neighbors: int,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Order candidates by the dot product of signed queries and signed codes.

    An engine that stores split signs leaves out what opposite signs take off a product, so its order is another one.
    Among enough candidates this restores the signed order, exactly.

    Parameters
    ----------
    queries : sparse matrix, PackedCodes or array-like of shape (n_queries, n_components)
        Signed, as they were before :func:`split_signs`.
    candidates : array-like of int of shape (n_queries, n_candidates)
        Ids that the engine found; -1 where it found fewer.
    codes : matrix of shape (n_documents, n_components), or callable
        Signed codes; row i is that of id i. Or a function that gives the rows for an array of distinct ids, in their
        order, such as ``lambda ids: join_signs(index.fetch(ids))``.
    n_neighbors : int
        At most n_candidates.

    Returns
    -------
    scores : ndarray of shape (n_queries, n_neighbors), float32
        Descending; -inf where there are fewer candidates.
    ids : ndarray of shape (n_queries, n_neighbors), int64
        Equal scores by ascending id; -1 where there are fewer candidates.

    Raises
    ------
    ValueError
        If shapes do not fit, an id is no row of `codes`, or values are not finite.

    See Also
    --------
    split_signs : What makes it necessary.
    MilvusIndex.search : Finds candidates.
    join_signs : Signed codes from stored ones.

    Examples
    --------
    >>> from scipy.sparse import csr_matrix
    >>> from skcompressae.engines import rerank_signed
    >>> codes = csr_matrix([[1.0, 0.0], [2.0, -3.0]])
    >>> rerank_signed(csr_matrix([[1.0, 1.0]]), [[1, 0]], codes, n_neighbors=2)[1]
    array([[0, 1]])
    """
    n_neighbors = check_count(n_neighbors, "n_neighbors")
    n_components = _width(queries, name="queries")
    signed = check_codes(queries, n_components, name="queries")
    found = np.asarray(candidates)
    if found.ndim != 2 or found.shape[0] != signed.shape[0] or (found.dtype.kind not in "iu" and found.size):
        raise ValueError(
            f"candidates must be integers of shape (n_queries={signed.shape[0]}, n_candidates); got dtype "
            f"{found.dtype} and shape {found.shape}."
        )
    if n_neighbors > found.shape[1]:
        raise ValueError(f"n_neighbors={n_neighbors} must be at most the {found.shape[1]} candidates per query.")
    ids = np.unique(found)
    ids = ids[ids >= 0].astype(np.int64)
    documents = check_codes(_rows_of_ids(codes, ids), n_components, name="codes")
    if documents.shape[0] != len(ids):
        raise ValueError(f"codes gave {documents.shape[0]} rows for {len(ids)} ids; one per id is needed.")
    best_scores = np.full((signed.shape[0], n_neighbors), -np.inf, dtype=np.float32)
    best_ids = np.full((signed.shape[0], n_neighbors), -1, dtype=np.int64)
    for row in range(signed.shape[0]):
        own = np.unique(found[row])
        own = own[own >= 0]
        products = documents[np.searchsorted(ids, own)] @ signed[row].toarray().ravel()
        order = np.argsort(-products, kind="stable")[:n_neighbors]
        best_scores[row, : len(order)], best_ids[row, : len(order)] = products[order], own[order]
    return best_scores, best_ids


def _rows_of_ids(codes: Any, ids: NDArray[np.int64]) -> Any:
    if callable(codes):
        return codes(ids)
    n_rows = np.shape(codes)[0] if not hasattr(codes, "shape") else codes.shape[0]
    if len(ids) and ids[-1] >= n_rows:
        raise ValueError(
            f"candidates must be rows of codes, 0 .. {n_rows - 1}; got {ids[-1]}. For ids of another kind, pass a "
            "function that gives the codes of ids."
        )
    rows: Any = codes if hasattr(codes, "shape") else np.asarray(codes)
    if hasattr(rows, "tocsr"):
        rows = rows.tocsr()  # not all formats have rows to pick
    return getattr(rows, "iloc", rows)[ids]  # brackets of a pandas frame would pick columns


def _width(codes: Any, name: str = "codes") -> int:
    shape = codes.shape if hasattr(codes, "shape") or issparse(codes) else np.shape(codes)
    if len(shape) != 2:
        raise ValueError(f"{name} must be two-dimensional; got shape {tuple(shape)}.")
    return int(shape[1])
