"""Exact dense nearest neighbours in blocks: a float32 product proposes, a float64 score decides.

Invariant: after each block of documents, a query's list holds its best documents so far by float64 score,
equal scores by lowest index. A document is left out only if its float32 score is below the last place by
more than float32 rounding can explain: ``|fl(x.y) - x.y| <= gamma_d |x||y|`` (Higham, "Accuracy and Stability
of Numerical Algorithms", 2nd ed., section 3.1).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from skcompressae._core._threads import row_blocks

__all__ = ["exact_search"]

FloatArray = npt.NDArray[np.float64]
IndexArray = npt.NDArray[np.int64]

# Float64 copies of the candidate pairs that one rescoring step may hold.
_RESCORE_BYTES = 16 * 2**20
# Squares of what is a few digits smaller than the largest entry of such a row are still normal numbers.
_TINY = 1e-130
# Sums of the squares of rows below, however long they are, do not overflow.
_HUGE = 1e130


def exact_search(
    documents: npt.NDArray[Any],
    queries: npt.NDArray[Any],
    n_neighbors: int,
    *,
    is_cosine: bool,
    document_batch_size: int,
    query_batch_size: int,
) -> tuple[FloatArray, IndexArray]:
    """Return ``(similarities, indices)``, both (n_queries, n_neighbors), of the best documents of each query.

    Parameters
    ----------
    documents : ndarray of shape (n_documents, n_features)
        Any real dtype; read in order, once.
    queries : ndarray of shape (n_queries, n_features)
        Any real dtype; read once per block of documents.
    n_neighbors : int
        At most `n_documents`.
    is_cosine : bool
        Cosine, 0 for zero rows, or else the dot product.
    document_batch_size, query_batch_size : int
        Rows per block.
    """
    n_queries = queries.shape[0]
    similarities = np.full((n_queries, n_neighbors), -np.inf)
    indices = np.full((n_queries, n_neighbors), -1, dtype=np.int64)
    for first, last in row_blocks(documents.shape[0], document_batch_size):
        rows = _without_extreme_rows(documents[first:last]) if is_cosine else documents[first:last]
        norms = _row_norms(rows, "X_documents")
        # for the dot product one scale for the block keeps the order and keeps float32 from overflowing
        block = _Block(rows, norms, scale=norms if is_cosine else norms.max(keepdims=True), is_cosine=is_cosine)
        for start, stop in row_blocks(n_queries, query_batch_size):
            rows = _without_extreme_rows(queries[start:stop]) if is_cosine else queries[start:stop]
            norms = _row_norms(rows, "X_queries")
            batch = _Block(rows, norms, scale=norms, is_cosine=is_cosine)
            _merge_block(batch, block, first, similarities[start:stop], indices[start:stop])
    return similarities, indices


class _Block:
    """Rows of one block, as float32 rows of norm <= 1 too, their scale, and the cosine divisor."""

    def __init__(self, rows: npt.NDArray[Any], norms: FloatArray, scale: FloatArray, *, is_cosine: bool) -> None:
        self.rows = rows
        scale = np.where(scale == 0, 1.0, scale)
        self.divisor = np.where(norms == 0, 1.0, norms) if is_cosine else np.ones_like(norms)
        # similarity = float32 product * query.scale * document.scale
        self.scale = np.ones(1) if is_cosine else scale
        self.unit_rows = np.empty(rows.shape, dtype=np.float32)
        np.divide(rows, scale[:, None], out=self.unit_rows, casting="same_kind")


def _without_extreme_rows(rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return rows, those whose squares leave float64 times a power of two, which changes no cosine."""
    if rows.dtype != np.float64:
        return rows
    peaks = np.abs(rows).max(axis=1, initial=0.0)
    is_extreme = (peaks > 0) & ((peaks < _TINY) | (peaks > _HUGE)) & np.isfinite(peaks)
    if not is_extreme.any():
        return rows
    exponents = np.where(is_extreme, np.minimum(-np.frexp(peaks)[1], 1023), 0)
    return np.ldexp(rows, exponents[:, None])


def _row_norms(rows: npt.NDArray[Any], name: str) -> FloatArray:
    with np.errstate(over="ignore", invalid="ignore"):
        norms = np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64, casting="same_kind"))
    if not np.isfinite(norms).all():
        if np.isfinite(rows).all():
            raise ValueError(
                f"{name} has rows whose squared norms overflow float64, as their dot products may: divide all rows by "
                "one number, which keeps the order."
            )
        raise ValueError(f"{name} must be finite, got NaN or infinity.")
    return norms


def _merge_block(
    queries: _Block, documents: _Block, offset: int, similarities: FloatArray, indices: IndexArray
) -> None:
    """Merge the documents of one block into the best lists of one batch of queries, in place."""
    n_queries, n_neighbors = similarities.shape
    scores = queries.unit_rows @ documents.unit_rows.T
    # both norms are <= 1, so one product errs by less than d u (u = eps / 2), plus a few u for the rounding
    # of the rows themselves; two products are compared below
    margin = (queries.rows.shape[1] + 8) * float(np.finfo(np.float32).eps)
    # compared in float32: one rounding of the threshold is inside the margin
    thresholds = (similarities[:, -1] / queries.scale / documents.scale - margin).astype(np.float32)
    is_candidate = scores >= thresholds[:, None]
    # a block better than all before it would pass whole: hold such rows to their own n_neighbors best
    crowded = np.flatnonzero(np.count_nonzero(is_candidate, axis=1) > 4 * n_neighbors)
    if crowded.size:
        place = scores.shape[1] - n_neighbors
        nth_best = np.partition(scores[crowded], place, axis=1)[:, place]
        is_candidate[crowded] &= scores[crowded] >= (nth_best - np.float32(margin))[:, None]
    rows, columns = np.nonzero(is_candidate)
    exact = _rescore(queries, documents, rows, columns)

    rows = np.concatenate([np.repeat(np.arange(n_queries), n_neighbors), rows])
    exact = np.concatenate([similarities.ravel(), exact])
    columns = np.concatenate([indices.ravel(), columns + offset])
    order = np.lexsort((columns, -exact, rows))
    # every query brings its n_neighbors old places, so each run starts with a full new list
    counts = np.bincount(rows, minlength=n_queries)
    starts = np.cumsum(counts) - counts
    best = order[starts[:, None] + np.arange(n_neighbors)]
    similarities[...] = exact[best]
    indices[...] = columns[best]


def _rescore(
    queries: _Block, documents: _Block, rows: npt.NDArray[np.intp], columns: npt.NDArray[np.intp]
) -> FloatArray:
    """Score the pairs ``(rows[i], columns[i])`` in float64."""
    exact = np.empty(rows.size)
    step = max(1, _RESCORE_BYTES // (16 * documents.rows.shape[1]))
    for start, stop in row_blocks(rows.size, step):
        left = queries.rows[rows[start:stop]].astype(np.float64)
        right = documents.rows[columns[start:stop]].astype(np.float64)
        # cannot overflow: the squared norms are finite, and |x.y| <= |x||y|
        exact[start:stop] = np.einsum("ij,ij->i", left, right)
    # divided by the norms one after the other: their product could overflow
    return exact / queries.divisor[rows] / documents.divisor[columns]
