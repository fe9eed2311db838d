"""What a search by the residual codes of packed documents needs: checks, factors of rows, tables of queries."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from skcompressae._core._refined_search import RefinedChunk
from skcompressae._core._residual import decode_pq
from skcompressae._core._search_store import Chunk, PackedStore, norm_factors
from skcompressae._core._threads import run_blocks

__all__ = ["check_residuals", "refined_chunks", "refined_scales", "tables_by"]

_NORM_BLOCK_ROWS = 2_048
# Of a unit row, values of few bits and all.
_LONGEST_PROJECTION = 1.25


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
    """Squared norms of ``x_hat + r_hat``, of ``x_hat`` and of ``r_hat``, float64, a number a row."""

    sums: NDArray[np.float64]
    hats: NDArray[np.float64]
    residuals: NDArray[np.float64]

    @property
    def left(self) -> NDArray[np.float64]:
        """Squared norms of what projections of unit rows leave of them."""
        return np.maximum(1.0 - self.hats, 0.0)

    def are_projections(self) -> bool:
        """Return whether the codes look like projections of unit rows, by what holds of those on average.

        They are no longer than 1, but for the quantisation of their values, and what they leave is orthogonal to them.
        Of codes as long as their rows (``norm="unit"`` or "input") ``x_hat . r`` is ``-|r|^2 / 2``.
        """
        along = 0.5 * float((self.sums - self.hats - self.residuals).sum())
        return float(self.hats.max(initial=0.0)) < _LONGEST_PROJECTION**2 and along > -0.1 * self.residuals.sum()

    def kept_share(self) -> float:
        """Return the share of the energy that projections leave which residual codes keep; NaN if they are none.

        A centroid is the mean of its residuals r, so that ``r . r_hat`` is |r_hat|^2 on average, and |r|^2 is
        1 - |x_hat|^2, but for the quantisation of values, which cancels in the mean.
        """
        if not self.are_projections():
            return np.nan
        left, kept = float((1.0 - self.hats).sum()), float(self.residuals.sum())
        return kept / left if kept < left else 1.0


def _decoded(quantizer: Any, codes: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Decode residual codes in float64.

    How BLAS rounds a row's product depends on its place among the others: in float32, equal documents would get factors
    that differ, and would not come in the order in which they were fitted.
    """
    decoded = decode_pq(codes, quantizer.centroids).astype(np.float64)
    return decoded if quantizer.rotation is None else decoded @ quantizer.rotation.astype(np.float64)


def _energies(store: PackedStore, components: NDArray[Any], n_threads: int) -> _Energies:
    packed = store.packed
    sums, hats, residuals = (np.empty(len(packed)) for _ in range(3))

    def work(start: int, stop: int) -> None:
        block = packed[start:stop]
        hat, residual = block.to_csr() @ components, _decoded(packed.residual_quantizer, block.residual_codes)
        for out, rows in ((hats, hat), (residuals, residual), (sums, hat + residual)):
            out[start:stop] = np.einsum("ij,ij->i", rows, rows, dtype=np.float64)

    run_blocks(work, len(packed), _NORM_BLOCK_ROWS, n_threads)
    return _Energies(sums, hats, residuals)


def refined_scales(
    store: PackedStore,
    components: NDArray[Any],
    metric: str,
    n_threads: int = 1,
    earlier: Sequence[PackedStore] = (),
) -> NDArray[np.float32]:
    """Return what inner products with ``v = x_hat + r_hat`` are multiplied by: for cosine 1 / |v|, for dot 1.

    The geometric mean of the cosine and of the inner product with the projection of the row x on v asks for the length
    of that, ``cos(x, v)``, which stands for x as |x_hat| does where there is no residual. |v| is a poor guess of it, as
    x_hat . r_hat is only noise. ``|x_hat|^2 + r . r_hat`` is its square, and of r . r_hat there are two guesses:
    |r_hat|^2, and the share of |r|^2 that residual codes keep. The less they keep, the more the first one tells: its
    weight is the share that is lost. Where codes are no projections of unit rows, |x_hat| is taken, the length of the
    row.

    Parameters
    ----------
    store : PackedStore
        Documents with residual codes.
    components : ndarray of shape (n_components, n_features)
        The decoder.
    metric : {"cosine", "geometric", "dot"}
    n_threads : int, default=1
    earlier : sequence of PackedStore
        What was indexed before: the first with the same residual quantiser says what share it keeps, so that equal
        documents have equal scores.
    """
    if metric == "dot":
        return np.ones(len(store.packed), np.float32)
    energies = _energies(store, components, n_threads)
    scales = norm_factors(np.sqrt(energies.sums), "cosine")
    if metric == "cosine":
        return scales.astype(np.float32)
    quantizer = store.packed.residual_quantizer
    first = next((other for other in earlier if other.packed.residual_quantizer == quantizer), store)
    if first.kept_share is None:
        first.kept_share = (energies if first is store else _energies(first, components, n_threads)).kept_share()
    kept, left = first.kept_share, energies.left
    # |r_hat|^2, drawn towards its expectation
    guess = (1.0 - kept) * np.minimum(energies.residuals, left) + kept * kept * left
    # values of few bits make some projections longer than 1, which no cosine is
    squares = energies.hats if np.isnan(kept) else np.minimum(energies.hats + guess, 1.0)
    return (scales * np.sqrt(np.sqrt(squares))).astype(np.float32)


def refined_chunks(chunks: Sequence[Chunk], refined: Sequence[NDArray[np.float32]]) -> list[RefinedChunk]:
    """Return chunks of `PackedStore` as what is searched by residual codes, with the `refined_scales` of each."""
    stores: Any = [chunk.store for chunk in chunks]
    return [RefinedChunk(store, factors) for store, factors in zip(stores, refined, strict=True)]


def tables_by(chunks: Sequence[Chunk], embeddings: NDArray[Any]) -> Callable[[int, int], NDArray[np.float32]]:
    """Return what gives the tables of one query, as it was compared with reconstructions, for one chunk."""

    def tables(query: int, number: int) -> NDArray[np.float32]:
        store: Any = chunks[number].store
        table: NDArray[np.float32] = store.packed.residual_quantizer.tables(embeddings[query])
        return table

    return tables
