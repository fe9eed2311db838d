"""How documents become an index: validation of codes and compressor, stores, chunks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from joblib import effective_n_jobs
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, vstack
from sklearn.pipeline import Pipeline
from sklearn.utils import check_array
from sklearn.utils.validation import assert_all_finite, validate_data

from skcompressae._compat import validate_parameters
from skcompressae._core._rows import canonical_csr
from skcompressae._core._search_store import (
    BLOCK_ROWS,
    Chunk,
    CodeStore,
    PackedStore,
    PostingStore,
    RowStore,
    block_to_csr,
    make_chunk,
)
from skcompressae._neighbors_queries import is_packed
from skcompressae._neighbors_rerank import check_residuals, refined_scales
from skcompressae._restoring import twin_of

__all__ = ["FLOATS", "SEARCH_PARAMETERS", "IndexBuildMixin", "is_components"]

FLOATS = [np.float64, np.float32]
SEARCH_PARAMETERS = ("n_neighbors", "mode", "metric", "radius", "n_jobs", "device", "batch_size", "rerank")


def is_components(compressor: Any) -> bool:
    """Tell an array of components, or a data frame, which has a `transform` of its own, from a transformer."""
    return not hasattr(compressor, "transform") or hasattr(compressor, "__array__")


class IndexBuildMixin:
    """The building half of `CodeNearestNeighbors`."""

    n_features_in_: int
    feature_names_in_: NDArray[np.object_]
    components_: NDArray[Any] | None
    effective_mode_: str
    # of the compressor, as they were last found equal to `components_`; pickles of older versions have none
    _verified_components: Any = None
    compressor: Any
    mode: str
    metric: str
    device: str
    n_jobs: int | None
    rerank: int | None
    _built_for: tuple[str, str]
    _chunks: list[Chunk]
    _refined: list[NDArray[np.float32]]
    _device_index: Any

    def _validate_codes(self, X: Any, *, reset: bool) -> CodeStore | csr_matrix:
        if is_packed(X):
            X = PackedStore(X)
        if not isinstance(X, CodeStore):
            return canonical_csr(self._read_codes(X, reset=reset))
        if X.n_rows == 0:
            raise ValueError("Found array with 0 sample(s) while a minimum of 1 is required by fit.")
        if reset:
            self.n_features_in_ = X.n_components
            if hasattr(self, "feature_names_in_"):
                del self.feature_names_in_
        elif X.n_components != self.n_features_in_:
            raise ValueError(f"X has {X.n_components} components, but the index has {self.n_features_in_}")
        return X

    def _read_codes(self, X: Any, **options: Any) -> Any:
        """Validate codes as scikit-learn does.

        Their finiteness without the estimator's name, with which it would recommend estimators of targets.
        """
        X = validate_data(self, X, accept_sparse="csr", dtype=FLOATS, ensure_all_finite=False, **options)
        assert_all_finite(X, input_name="X")
        return X

    def _index_mode(self) -> str:
        if self.compressor is None and self.mode in ("reconstructed", "asymmetric"):
            raise ValueError(f"mode={self.mode!r} needs a compressor with components_, got compressor=None")
        if self.mode == "sparse" or self.compressor is None:
            return "sparse"
        return "reconstructed"

    def _compressor_components(self) -> Any:
        """Return the compressor's `components_`, or the array that was given in its place."""
        if is_components(self.compressor):
            return self.compressor
        if isinstance(self.compressor, Pipeline):
            raise ValueError(
                "compressor must be a fitted transformer with components_, which a Pipeline is not; pass its step that "
                "is one, a CompresSAETransformer, and queries that went through the steps before it"
            )
        components = getattr(self.compressor, "components_", None)
        if components is None:
            raise ValueError(
                f"compressor must be fitted: {type(self.compressor).__name__} has no components_. "
                "clone() unfits it; sklearn.frozen.FrozenEstimator keeps it fitted"
            )
        return components

    def _validate_components(self) -> NDArray[Any] | None:
        self._verified_components = None
        if self.compressor is None:
            return None
        components = check_array(self._compressor_components(), dtype=FLOATS, order="C", input_name="components_")
        if components.shape[0] != self.n_features_in_:
            raise ValueError(f"X has {self.n_features_in_} components, but the compressor has {components.shape[0]}")
        return components

    def _device(self) -> str:
        if self.device == "cpu":
            return "cpu"
        kind, _, number = self.device.partition(":")
        if kind not in ("cuda", "auto") or (number and not (kind == "cuda" and number.isdigit())):
            raise ValueError(f"device must be 'cpu', 'cuda', 'cuda:<number>' or 'auto', got device={self.device!r}")
        from skcompressae._torch._device_choice import finds_cuda

        if finds_cuda():
            return "cuda" if kind == "auto" else self.device
        if kind == "auto":
            return "cpu"
        raise ValueError(f"device={self.device!r} was asked for, but torch finds no CUDA device")

    def _build_key(self) -> tuple[str, str]:
        """Return what decides what the index holds: a change of these parameters asks for a new fit."""
        return self._index_mode(), self.metric

    def _check_parameters(self) -> None:
        """Raise for parameters that were set since fitting to what is not allowed."""
        validate_parameters(self, SEARCH_PARAMETERS)

    def _check_refined(self) -> None:
        if self.rerank is not None and len(self._refined) != len(self._chunks):
            when = "documents were added" if self._refined else "fitting"
            raise ValueError(f"rerank={self.rerank} was set after {when} with rerank=None; fit the index again")

    def _check_unchanged(self) -> None:
        if self._build_key() != self._built_for:
            mode, metric = self._built_for
            raise ValueError(
                f"the index was fitted for mode={mode!r}, metric={metric!r}; after changing these parameters, fit it "
                "again"
            )

    def _check_compressor(self) -> None:
        """Raise unless the compressor's components are those that the documents were indexed with."""
        if self.components_ is None or self.compressor is None:
            return
        components = self._compressor_components()
        # Fitting replaces the array. Equal ones, as of a loaded compressor, are compared once: it takes milliseconds.
        if components is self.components_ or components is self._verified_components:
            return
        if not np.array_equal(np.asarray(components, dtype=self.components_.dtype), self.components_):
            raise ValueError(
                "compressor must have the weights that the documents were indexed with, but its components_ are "
                "others: it was fitted again, or another one was set. Encode the documents with it and fit the index "
                "again"
            )
        self._verified_components = components

    def _build(self, X: Any) -> None:
        """Index documents in place of those that are there: all at once, as other threads may be searching."""
        built = twin_of(self)
        store = built._validate_codes(X, reset=True)
        built.effective_mode_ = built._index_mode()
        built.components_ = built._validate_components()
        built._built_for = built._build_key()
        built._chunks, built._refined = [], []
        built._append(store)
        self.__dict__ = built.__dict__

    def _append(self, codes: Any) -> None:
        """Add documents; what is there changes only once all of them are built."""
        self._check_refined()
        if self.rerank is not None:
            check_residuals(codes, self.components_ if self._built_for[0] == "reconstructed" else None)
        chunks = self._extended(list(self._chunks), codes)
        refined = self._refined
        if self.rerank is not None and self.components_ is not None:
            earlier: Any = [chunk.store for chunk in self._chunks]
            scales = refined_scales(codes, self.components_, self.metric, self._n_threads(), earlier)
            refined = [*refined, scales]
        n_samples = sum(chunk.store.n_rows for chunk in chunks)
        # in one step: see `_as_it_is`
        self.__dict__.update(_device_index=None, _chunks=chunks, _refined=refined, n_samples_fit_=n_samples)

    @contextmanager
    def _as_it_is(self) -> Iterator[Any]:
        """Give an index that stays as this one is now, whatever other threads do to it, and keep what that learns."""
        twin = twin_of(self)
        yield twin
        if self._chunks is twin._chunks:
            self._device_index, self._verified_components = twin._device_index, twin._verified_components

    def _extended(self, chunks: list[Chunk], codes: Any) -> list[Chunk]:
        """Return `chunks` with those of `codes` at the end."""
        if isinstance(codes, PackedStore) and self._lists_postings():
            # a query of k nonzeros visits k posting lists of thousands: far faster than a scan of every word
            for start in range(0, codes.n_rows, BLOCK_ROWS):
                block = codes.block(start, min(start + BLOCK_ROWS, codes.n_rows))
                chunks = self._extended(chunks, block_to_csr(block, codes.n_components))
            return chunks
        if not isinstance(codes, csr_matrix):
            return [*chunks, self._make_chunk(codes)]
        last = chunks[-1].store if chunks else None
        if (
            last is not None
            and isinstance(last, RowStore | PostingStore)
            and last.n_rows + codes.shape[0] <= BLOCK_ROWS
            and last.dtype == codes.dtype
        ):
            # many small additions would otherwise leave many small chunks, each with its own overhead
            codes = vstack([block_to_csr(last.block(0, last.n_rows), last.n_components), codes], format="csr")
            chunks = chunks[:-1]
        return chunks + [self._make_chunk(store) for store in self._stores(codes)]

    def _lists_postings(self) -> bool:
        """Return whether new documents are listed by component: where codes are compared on the CPU.

        Either kind of store is searched on any device.
        """
        return self._device() == "cpu" and self._built_for[0] == "sparse"

    def _stores(self, codes: csr_matrix) -> Iterator[RowStore | PostingStore]:
        if self._lists_postings():
            for start in range(0, codes.shape[0], BLOCK_ROWS):
                yield PostingStore.from_csr(codes[start : start + BLOCK_ROWS])
        else:
            yield RowStore.from_csr(codes)

    def _make_chunk(self, store: CodeStore) -> Chunk:
        components = None if self._built_for[0] == "sparse" else self.components_
        return make_chunk(store, metric=self.metric, components=components, n_threads=self._n_threads())

    def _n_threads(self) -> int:
        return int(effective_n_jobs(self.n_jobs))
