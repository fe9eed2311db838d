"""Search on a torch device: sparse-dense products there, proof of exactness and final scores here.

The device returns, per query, a few rows more than asked for, ranked by float32 scores. Those are scored
again in float64. The answer is exact when the last exact score beats what any row left out could reach within
the float32 error bound; a query for which it does not (many near ties) is searched again by the CPU kernels.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from skcompressae._core._search import rounding_margins, scan_units, search
from skcompressae._core._search_kernels import score_pairs
from skcompressae._core._search_store import Chunk, CsrBlock, PackedStore, PostingStore, RowStore
from skcompressae._core._threads import row_blocks, run_blocks
from skcompressae._torch import _devices

__all__ = ["DeviceIndex"]

# Rows kept beyond n_neighbors: with random scores one or two fall within the float32 margin; 32 leave room
# for ties.
_SPARE = 32
# Rows of a block on the device: few enough for the scores of 1,024 queries (1 GB, held twice), many enough that one
# query is not all launches.
_BLOCK_ROWS = 2**18
# Queries whose final scores one thread computes at a time.
_QUERIES_PER_TASK = 16


class DeviceIndex:
    """Chunks of codes on a torch device.

    Parameters
    ----------
    chunks : sequence of Chunk
        The documents; kept on the CPU too, for the final scores.
    device : str
        A torch device.
    """

    def __init__(self, chunks: Sequence[Chunk], device: str) -> None:
        self.device = _devices.with_index(torch.device(device))
        self.chunks = list(chunks)
        self._by_rows = [_listed_by_row(chunk) for chunk in self.chunks]
        self.n_rows = sum(chunk.store.n_rows for chunk in self.chunks)
        self._blocks: list[tuple[torch.Tensor, torch.Tensor, int]] = []
        first_row = 0
        with _devices.own_modes(self.device):
            for chunk in self._by_rows:
                for start, stop in row_blocks(chunk.store.n_rows, _BLOCK_ROWS):
                    self._blocks.append((*self._upload(chunk, start, stop), first_row + start))
                first_row += chunk.store.n_rows

    def holds(self, chunks: Sequence[Chunk], device: str) -> bool:
        """Tell whether this is what an index of these chunks on that device would be."""
        is_there = self.device == _devices.with_index(torch.device(device))
        return is_there and len(chunks) == len(self.chunks) and all(map(operator.is_, chunks, self.chunks))

    def _upload(self, chunk: Chunk, start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
        indptr, indices, values = chunk.store.block(start, stop)
        low, high = int(indptr[0]), int(indptr[-1])
        parts = (
            torch.as_tensor((indptr - low).astype(np.int64), device=self.device),
            torch.as_tensor(indices[low:high].astype(np.int64), device=self.device),
            torch.as_tensor(values[low:high].astype(np.float32), device=self.device),
        )
        shape = (stop - start, chunk.store.n_components)
        matrix = torch.sparse_csr_tensor(*parts, size=shape, device=self.device, check_invariants=False)
        scale = torch.as_tensor(chunk.scale[start:stop].astype(np.float32), device=self.device)
        return matrix, scale

    def _candidates(
        self, targets: torch.Tensor, n_kept: int, exclude: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the `n_kept` best float32 scores of each query and their rows, both of shape (n_queries, n_kept)."""
        n_queries = targets.shape[1]
        best = torch.empty((n_queries, 0), dtype=torch.float32, device=self.device)
        rows = torch.empty((n_queries, 0), dtype=torch.int64, device=self.device)
        for matrix, scale, first_row in self._blocks:
            # a query's scores side by side, as top-k wants them
            scores = torch.empty((n_queries, len(scale)), dtype=torch.float32, device=self.device)
            torch.mul((matrix @ targets).T, scale, out=scores)
            if exclude is not None:
                skip = exclude - first_row
                inside = (skip >= 0) & (skip < len(scale))
                scores[inside.nonzero().flatten(), skip[inside]] = -torch.inf
            found = torch.topk(scores, min(n_kept, len(scale)), dim=1)
            best, rows = torch.cat([best, found.values], dim=1), torch.cat([rows, found.indices + first_row], dim=1)
            if best.shape[1] > found.values.shape[1]:  # not the first block
                best, order = torch.topk(best, min(n_kept, best.shape[1]), dim=1)
                rows = torch.gather(rows, 1, order)
        return best, rows

    def search(
        self,
        targets: NDArray[Any],
        n_neighbors: int,
        *,
        exclude: NDArray[np.int64] | None = None,
        n_threads: int = 1,
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Find the `n_neighbors` best rows of each target; the same result as
        `skcompressae._core._search.search`.

        Parameters
        ----------
        targets : ndarray of shape (n_components, n_queries)
            Dense queries in code space.
        n_neighbors : int
            At most the number of rows less the excluded one.
        exclude : ndarray of shape (n_queries,), dtype=int64, default=None
            A row to leave out per query; -1 for none.
        n_threads : int, default=1
            Threads of the CPU search that settles near ties.

        Returns
        -------
        scores, rows : ndarrays of shape (n_queries, n_neighbors), dtype float64 and int64
            Best first; equal scores by ascending row.
        """
        n_queries = targets.shape[1]
        if exclude is None:
            exclude = np.full(n_queries, -1, np.int64)
        n_kept = min(n_neighbors + _SPARE, self.n_rows)
        to_scan_unit = scan_units(targets)
        scan = np.empty(targets.shape, np.float32)
        of_query = np.empty(targets.shape[::-1], targets.dtype)
        norms = np.empty(n_queries)

        def prepare(first: int, last: int) -> None:
            part = slice(first, last)
            np.multiply(targets[:, part], to_scan_unit[part], out=scan[:, part], casting="same_kind")
            of_query[part] = targets[:, part].T
            norms[part] = np.sqrt(np.einsum("ij,ij->j", scan[:, part], scan[:, part], dtype=np.float64))

        run_blocks(prepare, n_queries, _QUERIES_PER_TASK, n_threads)
        with _devices.own_modes(self.device):
            found = self._candidates(
                torch.as_tensor(scan, device=self.device),
                n_kept,
                torch.as_tensor(exclude, device=self.device) if exclude.max(initial=-1) >= 0 else None,
            )
        approximate, candidates = (part.cpu().numpy() for part in found)
        # by ascending row first, which a stable sort keeps among equal scores
        order = np.argsort(candidates, axis=1)
        approximate_last = approximate[:, -1].astype(np.float64)
        approximate, candidates = (np.take_along_axis(part, order, axis=1) for part in (approximate, candidates))
        exact = self._exact(np.where(np.isfinite(approximate), candidates, -1), of_query, n_threads)
        order = np.argsort(-exact, axis=1, kind="stable")[:, :n_neighbors]
        scores, rows = (np.take_along_axis(part, order, axis=1) for part in (exact, candidates))
        # a row left out has a float32 score of at most the last one kept
        margins = np.max([rounding_margins(chunk, norms) for chunk in self.chunks], axis=0)
        ceilings = (approximate_last + margins) / to_scan_unit
        unsettled = np.flatnonzero(scores[:, -1] <= ceilings) if n_kept < self.n_rows else np.empty(0, np.intp)
        if len(unsettled):
            part = np.ascontiguousarray(targets[:, unsettled])
            scores[unsettled], rows[unsettled] = search(
                self._by_rows, part, n_neighbors, exclude=exclude[unsettled], n_threads=n_threads
            )
        return scores, rows

    def _exact(self, rows: NDArray[np.int64], of_query: NDArray[Any], n_threads: int) -> NDArray[np.float64]:
        """Return the float64 scores of each query's rows, minus infinity for rows below 0.

        `of_query` holds the target of each query, shape (n_queries, n_components).
        """
        scores = np.full(rows.shape, -np.inf)
        first_row = 0
        for chunk in self._by_rows:
            local = rows - first_row
            local[(local < 0) | (local >= chunk.store.n_rows) | (rows < 0)] = -1
            block, scale, local = _csr_of(chunk, local)

            def work(
                first: int, last: int, block: CsrBlock = block, scale: Any = scale, local: NDArray[np.int64] = local
            ) -> None:
                score_pairs(*block, scale, local, of_query, first, last, scores)

            run_blocks(work, len(rows), _QUERIES_PER_TASK, n_threads)
            first_row += chunk.store.n_rows
        return scores


def _listed_by_row(chunk: Chunk) -> Chunk:
    """Return a chunk whose codes are listed by row, as the final scores take them; on the CPU it may not have been."""
    if not isinstance(chunk.store, PostingStore):
        return chunk
    return replace(chunk, store=RowStore(*chunk.store.block(0, chunk.store.n_rows), chunk.store.n_components))


def _csr_of(chunk: Chunk, rows: NDArray[np.int64]) -> tuple[CsrBlock, NDArray[Any], NDArray[np.int64]]:
    """Return a chunk's codes as CSR with their factors, and where `rows` are there; of packed codes only those rows."""
    if not isinstance(chunk.store, PackedStore):
        return chunk.store.block(0, chunk.store.n_rows), chunk.scale, rows
    needed, places = np.unique(rows[rows >= 0], return_inverse=True)
    codes = chunk.store.packed.take(needed).to_csr()
    local = np.full(rows.shape, -1)
    local[rows >= 0] = places
    return CsrBlock(codes.indptr, codes.indices, codes.data), chunk.scale[needed], local
