"""What a search is asked for: the number of neighbors, and queries brought to the side on which they are compared."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, issparse
from sklearn.utils import check_array
from sklearn.utils.validation import assert_all_finite, validate_data

from skcompressae._compat import transform_plainly
from skcompressae._core._rows import canonical_csr
from skcompressae._core._search_store import Chunk, CodeStore, PackedStore, PostingStore, block_to_csr
from skcompressae._neighbors_build import FLOATS, is_components
from skcompressae._neighbors_queries import Codes, Queries, Sums, is_packed
from skcompressae._neighbors_rerank import check_residuals
from skcompressae._plain_rows import are_plain_rows, own_dtype_first, refuse_unread_lists

__all__ = ["QueryValidationMixin"]


class QueryValidationMixin:
    """The asking half of `CodeNearestNeighbors`."""

    n_neighbors: int
    n_samples_fit_: int
    n_features_in_: int
    components_: NDArray[Any] | None
    compressor: Any
    mode: str
    metric: str
    radius: float
    rerank: int | None
    effective_mode_: str
    _chunks: list[Chunk]
    _check_parameters: Any
    _check_unchanged: Any
    _check_compressor: Any
    _check_refined: Any
    _read_codes: Any
    _device: Any

    def _check_n_neighbors(self, n_neighbors: Any, *, exclude_self: bool) -> int:
        n_neighbors = self.n_neighbors if n_neighbors is None else n_neighbors
        if not isinstance(n_neighbors, Integral):
            raise TypeError(f"n_neighbors does not take {type(n_neighbors)} value, enter integer value")
        n_neighbors = int(n_neighbors)
        if n_neighbors < 1:
            raise ValueError(f"Expected n_neighbors > 0. Got {n_neighbors}")
        if n_neighbors + exclude_self > self.n_samples_fit_:
            sign = "<" if exclude_self else "<="
            raise ValueError(
                f"Expected n_neighbors {sign} n_samples_fit, but n_neighbors = {n_neighbors}, "
                f"n_samples_fit = {self.n_samples_fit_}, n_samples = {self.n_samples_fit_}"
            )
        return n_neighbors

    def _check_radius(self, radius: Any) -> float:
        radius = self.radius if radius is None else radius
        try:
            number = float(radius) if isinstance(radius, Real) else math.nan
        except OverflowError:
            raise ValueError("radius must be a number of float64, got one that is beyond") from None
        if math.isnan(number):
            raise ValueError(f"radius must be a real number, got {radius!r}")
        return number

    def _queries(self, X: Any) -> Queries:
        """Decide what the queries are, and bring them to the side on which they are compared."""
        self._check_parameters()
        self._check_unchanged()
        fit_dtype = np.result_type(*(chunk.store.dtype for chunk in self._chunks))
        stores: Any = [chunk.store for chunk in self._chunks]
        by_postings = self._device() == "cpu" and all(isinstance(store, PostingStore) for store in stores)
        decoder = None if self.effective_mode_ == "sparse" else self.components_
        if X is None:
            self._refuse_codes("the fitted codes (X=None)")
            return Queries(self._stored(stores), decoder, by_postings, fit_dtype, metric=self.metric, exclude_self=True)
        if is_packed(X):
            if self.rerank is not None and X.residual_codes is not None and X.n_components == self.n_features_in_:
                self._refuse_codes("codes")
                packed = PackedStore(X)
                check_residuals(packed, self.components_)
                return Queries(self._stored([packed]), decoder, False, fit_dtype, metric=self.metric)
            X = X.to_csr()
        elif not isinstance(X, np.ndarray) and not issparse(X) and isinstance(X, CodeStore):
            X = block_to_csr(X.block(0, X.n_rows), X.n_components)
        if not issparse(X) and self.components_ is not None:
            if are_plain_rows(X, FLOATS, self.components_.shape[1]):
                assert_all_finite(X, input_name="X")
                dense = X
            else:
                try:
                    dense = check_array(X, dtype=own_dtype_first(X, FLOATS), ensure_min_samples=0, input_name="X")
                except ValueError as error:
                    refuse_unread_lists(X, error)
                    raise
            if dense.shape[1] == self.components_.shape[1]:
                if decoder is not None and self.mode != "reconstructed":
                    if self._are_names_known(X):
                        validate_data(self.compressor, X, reset=False, skip_check_array=True)
                    dtype = np.result_type(fit_dtype, dense.dtype)
                    return Queries(dense, decoder, False, dtype, metric=self.metric)
                return self._of_codes(self._compress(X, dense), decoder, by_postings, fit_dtype)
            if dense.shape[1] != self.n_features_in_:
                raise ValueError(
                    f"X has {dense.shape[1]} features, but queries must be codes with {self.n_features_in_} "
                    f"components or embeddings with {self.components_.shape[1]} features"
                )
        self._refuse_codes("codes")
        X = self._read_codes(X, reset=False, ensure_min_samples=0)
        return self._of_codes(X, decoder, by_postings, fit_dtype)

    def _stored(self, stores: Any) -> Codes:
        """Return stored codes as queries, with their residual codes where documents are compared by those, too."""
        if self.rerank is None or self.components_ is None:
            return Codes(stores)
        self._check_refined()
        return Sums(stores, self.components_)

    def _of_codes(self, X: Any, decoder: NDArray[Any] | None, by_postings: bool, fit_dtype: np.dtype[Any]) -> Queries:
        X = canonical_csr(X)
        return Queries(X, decoder, by_postings, np.result_type(fit_dtype, X.dtype), metric=self.metric)

    def _refuse_codes(self, what: str) -> None:
        if self.mode == "asymmetric":
            raise ValueError(
                f"mode='asymmetric' needs dense embeddings as queries, got {what}; "
                "mode='reconstructed' or 'auto' takes codes"
            )

    def _are_names_known(self, X: Any) -> bool:
        """Tell whether X is a data frame, and the compressor was fitted with one."""
        return hasattr(X, "columns") and hasattr(self.compressor, "feature_names_in_")

    def _compress(self, X: Any, dense: NDArray[Any]) -> Any:
        if is_components(self.compressor):
            raise ValueError(
                f"mode={self.mode!r} compresses dense queries, but the compressor is an array of components "
                "without transform; pass the fitted transformer, or codes as queries"
            )
        self._check_compressor()
        if len(dense) == 0:
            return csr_matrix((0, self.n_features_in_), dtype=dense.dtype)
        # as a data frame, for the compressor to compare its columns with those it knows
        codes = transform_plainly(self.compressor, X if self._are_names_known(X) else dense)
        # not as the caller's codes are: these have no names to compare with those of the fitted codes
        codes = check_array(codes, accept_sparse="csr", dtype=FLOATS, input_name="codes")
        if codes.shape[1] != self.n_features_in_:
            raise ValueError(
                f"compressor must give codes of {self.n_features_in_} components, got {codes.shape[1]} columns"
            )
        return codes
