"""Searches by the residual codes of packed documents: candidates scored again, or all documents at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from skcompressae._core._refined_search import RefinedChunk, search_refined
from skcompressae._core._search_store import Chunk, PackedStore, norm_factors
from skcompressae._core._threads import run_blocks

__all__ = ["check_residuals", "refined_scales", "rerank_documents"]

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


class _Energies(NamedTuple):
    """Norms of ``x_hat + r_hat``, and squared norms of ``x_hat`` and of ``r_hat``, float64, a number a row."""

    norms: NDArray[np.float64]
    hats: NDArray[np.float64]
    residuals: NDArray[np.float64]

    @property
    def left(self) -> NDArray[np.float64]:
        """Squared norms of what projections of unit rows leave of them, 0 where codes are no projections."""
        return np.maximum(1.0 - self.hats, 0.0)

    def kept_share(self) -> float:
        """Return the share of the energy that codes leave which residual codes keep.

        A centroid is the mean of its residuals r, so that ``r . r_hat`` is |r_hat|^2 on average, and |r|^2 is
        1 - |x_hat|^2 where x_hat is the projection of a unit row. It is 0 where codes, being no projections, do not
        tell.
        """
        left = float(self.left.sum())
        return min(float(self.residuals.sum()) / left, 1.0) if left > 0 else 0.0


def _energies(store: PackedStore, components: NDArray[Any], n_threads: int) -> _Energies:
    packed = store.packed
    sums, hats, residuals = (np.empty(len(packed)) for _ in range(3))

    def work(start: int, stop: int) -> None:
        block = packed[start:stop]
        hat, residual = block.to_csr() @ components, packed.residual_quantizer.decode(block.residual_codes)
        for out, rows in ((hats, hat), (residuals, residual), (sums, hat + residual)):
            out[start:stop] = np.einsum("ij,ij->i", rows, rows, dtype=np.float64)

    run_blocks(work, len(packed), _NORM_BLOCK_ROWS, n_threads)
    return _Energies(np.sqrt(sums), hats, residuals)


def refined_scales(
    store: PackedStore,
    components: NDArray[Any],
    metric: str,
    n_threads: int = 1,
    *,
    first: PackedStore | None = None,
    kept: float | None = None,
) -> tuple[NDArray[np.float32], float | None]:
    """Return what inner products with ``v = x_hat + r_hat`` are multiplied by: for cosine 1 / |v|, for dot 1.

    The geometric mean of the cosine and of the inner product with the projection of the row x on v asks for the length
    of that, ``cos(x, v)``, which stands for x as |x_hat| does where there is no residual. |v| is a poor guess of it, as
    x_hat . r_hat is only noise. ``|x_hat|^2 + r . r_hat`` is its square, and of r . r_hat there are two guesses:
    |r_hat|^2, and the share of |r|^2 that residual codes keep. The less they keep, the more the first one tells: its
    weight is the share that is lost.

    Parameters
    ----------
    store : PackedStore
        Documents with residual codes.
    components : ndarray of shape (n_components, n_features)
        The decoder.
    metric : {"cosine", "geometric", "dot"}
    n_threads : int, default=1
    first : PackedStore, default=None
        The documents that were indexed first, whose residual codes say what share they keep; by default these.
    kept : float, default=None
        That share, where it is known.

    Returns
    -------
    scales : ndarray of shape (n_rows,), dtype=float32
    kept : float or None
        The share; None for the metrics that do not ask.
    """
    if metric == "dot":
        return np.ones(len(store.packed), np.float32), None
    energies = _energies(store, components, n_threads)
    scales = norm_factors(energies.norms, "cosine")
    if metric == "cosine":
        return scales.astype(np.float32), None
    if kept is None:
        kept = (energies if first is None else _energies(first, components, n_threads)).kept_share()
    # |r_hat|^2, drawn towards its expectation
    guess = (1.0 - kept) * np.minimum(energies.residuals, energies.left) + kept * kept * energies.left
    return (scales * np.sqrt(np.sqrt(energies.hats + guess))).astype(np.float32), kept


def rerank_documents(
    chunks: Sequence[Chunk],
    refined: Sequence[NDArray[np.float32]],
    targets: NDArray[Any],
    embeddings: NDArray[Any],
    candidates: NDArray[np.int64] | None,
    n_neighbors: int,
    *,
    exclude: NDArray[np.int64],
    n_threads: int = 1,
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Find the best candidates by ``q . (x_hat + r_hat)`` times the refined factor of the row.

    Parameters
    ----------
    chunks : sequence of Chunk
        Of `PackedStore` with residual codes.
    refined : sequence of ndarrays
        `refined_scales` of every chunk.
    targets : ndarray of shape (n_components, n_queries)
        The queries in code space.
    embeddings : ndarray of shape (n_queries, n_features)
        The queries as they were compared with the reconstructions.
    candidates : ndarray of shape (n_queries, n_candidates) or None
        What `search` found; None for all documents.
    n_neighbors : int
    exclude : ndarray of shape (n_queries,)
        A document to leave out per query; -1 for none.
    n_threads : int, default=1

    Returns
    -------
    scores, rows : ndarrays of shape (n_queries, n_neighbors), dtype float64 and int64
        Best first; equal scores by ascending row.
    """
    stores: list[Any] = [chunk.store for chunk in chunks]
    documents = [RefinedChunk(store, factors) for store, factors in zip(stores, refined, strict=True)]

    def tables(query: int, number: int) -> NDArray[np.float32]:
        return stores[number].packed.residual_quantizer.tables(embeddings[query])

    return search_refined(documents, targets, tables, candidates, n_neighbors, exclude=exclude, n_threads=n_threads)
