"""Queries of a search over codes, handed out in batches in the form in which the search takes them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, issparse, vstack

from skcompressae._core._few_products import FEW_VECTORS, multiply_few
from skcompressae._core._search_store import CodeStore, PackedStore, PostingStore, block_to_csr
from skcompressae._core._threads import run_blocks, single_threaded_blas

__all__ = ["Codes", "Queries", "Sums", "is_packed", "score_limits", "scores_to_distances"]

# Between these, float32 sums of products with thousands of components neither overflow nor lose digits.
_MODERATE = (2.0**-60, 2.0**60)


class Codes:
    """Stored codes as queries: ``[start:stop]`` gives CSR, that of one store of postings in memory at a time."""

    def __init__(self, stores: Sequence[CodeStore]) -> None:
        self._stores = stores
        self._cached: tuple[int, csr_matrix] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        return sum(store.n_rows for store in self._stores), self._stores[0].n_components

    def _rows(self, number: int, start: int, stop: int) -> Any:
        store = self._stores[number]
        if not isinstance(store, PostingStore):
            return block_to_csr(store.block(start, stop), store.n_components)
        if self._cached is None or self._cached[0] != number:
            self._cached = number, block_to_csr(store.block(0, store.n_rows), store.n_components)
        return self._cached[1][start:stop]

    def __getitem__(self, rows: slice) -> Any:
        parts, first_row = [], 0
        for number, store in enumerate(self._stores):
            start, stop = max(rows.start - first_row, 0), min(rows.stop - first_row, store.n_rows)
            if start < stop:
                parts.append(self._rows(number, start, stop))
            first_row += store.n_rows
        if len(parts) == 1:
            return parts[0]
        return vstack(parts, format="csr") if issparse(parts[0]) else np.concatenate(parts)


class Sums(Codes):
    """Packed codes with residual codes as queries: ``[start:stop]`` gives ``x_hat + r_hat``, dense."""

    def __init__(self, stores: Sequence[PackedStore], components: NDArray[Any]) -> None:
        super().__init__(stores)
        self._packed = [store.packed for store in stores]
        self._components = components

    @property
    def shape(self) -> tuple[int, int]:
        return super().shape[0], self._components.shape[1]

    def _rows(self, number: int, start: int, stop: int) -> Any:
        block = self._packed[number][start:stop]
        return block.to_csr() @ self._components + block.residual_quantizer.decode(block.residual_codes)


def _moderate_rows(rows: Any) -> tuple[Any, NDArray[np.float64]]:
    """Return `rows`, dense or CSR, those of extreme length times a power of two, and the factor of each.

    Their norms and products would overflow, or underflow to those of a zero row.
    """
    factors = np.ones(rows.shape[0])
    is_sparse = issparse(rows)
    values: NDArray[Any] = rows.data if is_sparse else rows
    if not values.size:
        return rows, factors
    if is_sparse:
        lengths = np.diff(rows.indptr)
        peaks = np.zeros(len(lengths), values.dtype)
        filled = lengths > 0
        peaks[filled] = np.maximum.reduceat(np.abs(values), rows.indptr[:-1][filled])
    else:
        peaks = np.maximum(values.max(axis=1), -values.min(axis=1))
    extreme = ((peaks < _MODERATE[0]) & (peaks > 0)) | (peaks > _MODERATE[1])
    if not extreme.any():
        return rows, factors
    # of the smallest float64 there is no such power
    exponents = np.where(extreme, np.minimum(-np.frexp(peaks)[1], 1023), 0)
    factors = np.ldexp(factors, exponents)
    if not is_sparse:
        return np.ldexp(values, exponents[:, None]), factors
    scaled = np.ldexp(values, np.repeat(exponents, lengths))
    return csr_matrix((scaled, rows.indices, rows.indptr), shape=rows.shape), factors


def _targets(decoder: NDArray[Any], rows: NDArray[Any], n_threads: int) -> NDArray[Any]:
    """Return ``decoder @ rows.T``, each of our threads multiplying some of the components.

    The threads of a BLAS library would go on spinning on the cores that the search then runs on.
    """
    targets = np.empty((len(decoder), len(rows)), np.result_type(decoder, rows))

    if len(rows) <= FEW_VECTORS:
        multiply_few(np.ascontiguousarray(rows, targets.dtype), decoder, targets.T, n_threads)
        return targets

    def multiply(start: int, stop: int) -> None:
        np.matmul(decoder[start:stop], rows.T, out=targets[start:stop])

    with single_threaded_blas():
        run_blocks(multiply, len(decoder), max(1, -(-len(decoder) // n_threads)), n_threads)
    return targets


class Queries:
    """Queries, handed out in batches in the form `search` takes: CSR codes, or targets in code space."""

    def __init__(
        self,
        source: Any,
        decoder: NDArray[Any] | None,
        by_postings: bool,
        dtype: np.dtype[Any],
        *,
        metric: str,
        exclude_self: bool = False,
    ) -> None:
        self.n_queries = int(source.shape[0])
        self.dtype = dtype
        self._source = source
        self._decoder = decoder
        self._by_postings = by_postings
        self._metric = metric
        self._exclude_self = exclude_self

    def batches(
        self, size: int, n_threads: int = 1
    ) -> Iterator[tuple[int, int, Any, NDArray[np.float64], NDArray[np.int64], Any]]:
        """Yield ``(start, stop, queries, norms, exclude, embeddings)``.

        `norms` are what scores are to be divided by: where the query is zero 1, and for dot the power of two that a
        query of extreme length was multiplied by, else 1. `embeddings` are the queries in the space of the embeddings,
        or the codes where only codes are compared.

        Raises
        ------
        ValueError
            If the product of a query with the components overflows.
        """
        for start in range(0, self.n_queries, size):
            stop = min(start + size, self.n_queries)
            part = self._source[start:stop]
            has_norms = self._metric != "dot"
            part, norms = _moderate_rows(part)
            if self._decoder is not None:
                part = part @ self._decoder if issparse(part) else part
                if has_norms:
                    norms = np.sqrt(np.einsum("ij,ij->i", part, part, dtype=np.float64))
                batch: Any = _targets(self._decoder, part, n_threads)
                if not np.isfinite(batch).all():
                    raise ValueError(
                        f"the product of a query with components_ is beyond {batch.dtype}; scale the components or the "
                        "values of the codes down"
                    )
            else:
                if has_norms:
                    squares = part.data.astype(np.float64) ** 2
                    norms = np.sqrt(np.add.reduceat(np.append(squares, 0.0), part.indptr[:-1]))
                    norms[np.diff(part.indptr) == 0] = 0.0
                batch = part if self._by_postings else np.ascontiguousarray(part.toarray().T)
            norms[norms == 0] = 1.0
            own = np.arange(start, stop) if self._exclude_self else np.full(stop - start, -1)
            yield start, stop, batch, norms, own.astype(np.int64), part


def scores_to_distances(metric: str, scores: NDArray[np.float64], norms: Any) -> NDArray[np.float64]:
    """Turn scores into ascending distances; `norms` are those of `Queries.batches`."""
    if metric != "cosine":
        with np.errstate(over="ignore"):
            return 0.0 - np.divide(scores, norms)
    return np.clip(1.0 - np.divide(scores, norms), 0.0, 2.0)


def score_limits(metric: str, radius: float, norms: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return scores below which no distance is within `radius`; the slack of 1e-6 pays for rounding distances."""
    if metric != "cosine":
        with np.errstate(over="ignore"):
            return (-radius - 1e-6 * abs(radius)) * norms
    if radius >= 2:
        return np.full(len(norms), -np.inf)
    return (1.0 - radius - 2e-6) * norms


def is_packed(codes: Any) -> bool:
    """Tell packed codes by what they can do; SciPy's matrices have ``tocsr``, not ``to_csr``."""
    return not isinstance(codes, np.ndarray) and all(
        hasattr(codes, name) for name in ("to_csr", "n_components", "signed_levels", "__len__", "__getitem__")
    )
