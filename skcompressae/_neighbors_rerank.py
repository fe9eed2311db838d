"""The second stage of a search: candidates scored again with the residual codes of packed documents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skcompressae._core._residual import score_pq
from skcompressae._core._search_store import Chunk, PackedStore, norm_factors
from skcompressae._core._threads import run_blocks

__all__ = ["check_residuals", "refined_scales", "rerank_candidates"]

_NORM_BLOCK_ROWS = 2_048


def check_residuals(store: Any, components: NDArray[Any] | None) -> None:
    """Raise unless `store` holds packed codes with residual codes of the width of the embeddings."""
    if components is None:
        raise ValueError("rerank needs mode='asymmetric', 'reconstructed' or 'auto' and a compressor")
    if not isinstance(store, PackedStore) or store.packed.residual_codes is None:
        found = "PackedCodes without them" if isinstance(store, PackedStore) else "codes that are not packed"
        raise ValueError(
            f"rerank needs PackedCodes with residual codes, got {found}; PackedCodes.with_residual_of adds them"
        )
    width = store.packed.residual_quantizer.n_features
    if width != components.shape[1]:
        raise ValueError(f"the residual codes have {width} features, but the compressor has {components.shape[1]}")


def refined_scales(
    store: PackedStore, components: NDArray[Any], metric: str, n_threads: int = 1
) -> NDArray[np.float32]:
    """Return the factor of each row by the norm of ``x_hat + r_hat``, 1 for dot."""
    packed = store.packed
    scales = np.ones(len(packed), np.float32)
    if metric == "dot":
        return scales

    def work(start: int, stop: int) -> None:
        block = packed[start:stop]
        refined = block.to_csr() @ components + packed.residual_quantizer.decode(block.residual_codes)
        norms = np.sqrt(np.einsum("ij,ij->i", refined, refined, dtype=np.float64))
        scales[start:stop] = norm_factors(norms, metric)

    run_blocks(work, len(packed), _NORM_BLOCK_ROWS, n_threads)
    return scales


def rerank_candidates(
    chunks: Sequence[Chunk],
    refined: Sequence[NDArray[np.float32]],
    embeddings: NDArray[Any],
    scores: NDArray[np.float64],
    rows: NDArray[np.int64],
    n_neighbors: int,
    n_threads: int = 1,
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Score candidates by ``q . (x_hat + r_hat)`` times the refined factor of the row; return the best.

    Parameters
    ----------
    chunks : sequence of Chunk
        Of `PackedStore` with residual codes.
    refined : sequence of ndarrays
        `refined_scales` of every chunk.
    embeddings : ndarray of shape (n_queries, n_features)
        The queries as they were compared with the reconstructions.
    scores, rows : ndarrays of shape (n_queries, n_candidates)
        What `search` found.
    n_neighbors : int

    Returns
    -------
    scores, rows : ndarrays of shape (n_queries, n_neighbors), dtype float64 and int64
        Best first; equal scores by ascending row.
    """
    starts = np.cumsum([0, *(chunk.store.n_rows for chunk in chunks)])
    best_scores = np.empty((len(rows), n_neighbors))
    best_rows = np.empty((len(rows), n_neighbors), np.int64)

    def work(first: int, last: int) -> None:
        for query in range(first, last):
            owners = np.searchsorted(starts, rows[query], side="right") - 1
            final = np.empty(rows.shape[1])
            for number in np.unique(owners):
                mine = owners == number
                local = rows[query, mine] - starts[number]
                store: Any = chunks[number].store
                packed = store.packed
                tables = packed.residual_quantizer.tables(embeddings[query])
                residual = np.zeros(len(local), np.float32)
                score_pq(np.asarray(packed.residual_codes)[local], tables, residual)
                scale = chunks[number].scale[local]
                # the factor of the first stage is taken back: what is refined is the inner product
                products = np.divide(scores[query, mine], scale, out=np.zeros(len(local)), where=scale > 0)
                final[mine] = (products + residual) * refined[number][local]
            order = np.lexsort((rows[query], -final))[:n_neighbors]
            best_scores[query], best_rows[query] = final[order], rows[query, order]

    run_blocks(work, len(rows), max(1, -(-len(rows) // max(1, n_threads))), n_threads)
    return best_scores, best_rows
