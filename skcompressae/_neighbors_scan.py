"""How an index is searched for a batch of queries: by codes or by residual codes, too, on the CPU or on a device."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from skcompressae._core._refined_search import search_refined, within_refined
from skcompressae._core._search import Found, search, within
from skcompressae._core._search_store import Chunk
from skcompressae._neighbors_rerank import refined_chunks, tables_by

__all__ = ["IndexScanMixin"]


class IndexScanMixin:
    """The searching half of `CodeNearestNeighbors`, for queries that are validated and in code space."""

    rerank: int | None
    n_samples_fit_: int
    _chunks: list[Chunk]
    _refined: list[NDArray[np.float32]]
    _device_index: Any
    _check_refined: Any
    _device: Any
    _n_threads: Any

    def _search(
        self, batch: Any, embeddings: Any, n_neighbors: int, exclude: NDArray[np.int64]
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        if self.rerank is None:
            return self._search_codes(batch, n_neighbors, exclude)
        self._check_refined()
        n_candidates, candidates = max(self.rerank, n_neighbors), None
        if n_candidates < self.n_samples_fit_:
            candidates = self._search_codes(batch, n_candidates, exclude)[1]
        documents = (refined_chunks(self._chunks, self._refined), batch, tables_by(self._chunks, embeddings))
        return search_refined(*documents, candidates, n_neighbors, exclude=exclude, n_threads=self._n_threads())

    def _within(self, batch: Any, embeddings: Any, limits: NDArray[np.float64]) -> list[Found]:
        if self.rerank is None:
            return within(self._chunks, batch, limits, n_threads=self._n_threads())
        self._check_refined()
        documents = (refined_chunks(self._chunks, self._refined), batch, tables_by(self._chunks, embeddings))
        return within_refined(*documents, limits, n_threads=self._n_threads())

    def _search_codes(
        self, batch: Any, n_neighbors: int, exclude: NDArray[np.int64]
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        device, chunks, n_threads = self._device(), self._chunks, self._n_threads()
        if device == "cpu":
            return search(chunks, batch, n_neighbors, exclude=exclude, n_threads=n_threads)
        from skcompressae._torch._search import DeviceIndex

        index = self._device_index
        if index is None or not index.holds(chunks, device):
            index = self._device_index = DeviceIndex(chunks, device)
        return index.search(batch, n_neighbors, exclude=exclude, n_threads=n_threads)
