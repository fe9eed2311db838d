"""Search on a torch device: sparse-dense products there, proof of exactness and final scores here.

The device returns, per query, a few rows more than asked for, ranked by float32 scores. Those are scored
again in float64. The answer is exact when the last exact score beats what any row left out could reach within
the float32 error bound; a query for which it does not (many near ties) is searched again by the CPU kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from skcompressae._core._search import rounding_margins, scan_units, search
from skcompressae._core._search_kernels import score_pairs
from skcompressae._core._search_store import BLOCK_ROWS, Chunk
from skcompressae._core._threads import row_blocks

__all__ = ["DeviceIndex"]

# Rows kept beyond n_neighbors: with random scores one or two fall within the float32 margin; 32 leave room
# for ties.
_SPARE = 32


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
        self.device = torch.device(device)
        self.chunks = list(chunks)
        self.n_rows = sum(chunk.store.n_rows for chunk in self.chunks)
        self._blocks: list[tuple[torch.Tensor, torch.Tensor, int]] = []
        first_row = 0
        for chunk in self.chunks:
            for start, stop in row_blocks(chunk.store.n_rows, BLOCK_ROWS):
                self._blocks.append((*self._upload(chunk, start, stop), first_row + start))
            first_row += chunk.store.n_rows

    def _upload(self, chunk: Chunk, start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
        indptr, indices, values = chunk.store.block(start, stop)
        low, high = int(indptr[0]), int(indptr[-1])
        parts = (
            torch.as_tensor((indptr - low).astype(np.int64), device=self.device),
            torch.as_tensor(indices[low:high].astype(np.int64), device=self.device),
            torch.as_tensor(values[low:high].astype(np.float32), device=self.device),
        )
        shape = (stop - start, chunk.store.n_components)
        matrix = torch.sparse_csr_tensor(*parts, size=shape, check_invariants=False)
        scale = torch.as_tensor(chunk.scale[start:stop].astype(np.float32), device=self.device)
        return matrix, scale[:, None]

    def _candidates(
        self, targets: torch.Tensor, n_kept: int, exclude: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the `n_kept` best float32 scores and their rows, both of shape (n_kept, n_queries)."""
        n_queries = targets.shape[1]
        best = torch.empty((0, n_queries), device=self.device)
        rows = torch.empty((0, n_queries), dtype=torch.int64, device=self.device)
        for matrix, scale, first_row in self._blocks:
            scores = (matrix @ targets).mul_(scale)
            skip = exclude - first_row
            inside = (skip >= 0) & (skip < scores.shape[0])
            scores[skip[inside], inside.nonzero().flatten()] = -torch.inf
            top, top_rows = torch.topk(scores, min(n_kept, scores.shape[0]), dim=0)
            best = torch.cat([best, top])
            rows = torch.cat([rows, top_rows + first_row])
            best, order = torch.topk(best, min(n_kept, best.shape[0]), dim=0)
            rows = torch.gather(rows, 0, order)
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
        scores = np.empty((n_queries, n_neighbors))
        rows = np.empty((n_queries, n_neighbors), np.int64)
        if exclude is None:
            exclude = np.full(n_queries, -1, np.int64)
        n_kept = min(n_neighbors + _SPARE, self.n_rows)
        to_scan_unit = scan_units(targets)
        scan = np.empty(targets.shape, np.float32)
        np.multiply(targets, to_scan_unit, out=scan, casting="same_kind")
        norms = np.sqrt(np.einsum("ij,ij->j", scan, scan, dtype=np.float64))
        found = self._candidates(
            torch.as_tensor(scan, device=self.device),
            n_kept,
            torch.as_tensor(exclude, device=self.device),
        )
        approximate, candidates = (part.T.cpu().numpy() for part in found)
        unsettled = []
        margins = np.max([rounding_margins(chunk, norms) for chunk in self.chunks], axis=0)
        exact_targets = np.ascontiguousarray(targets.T)
        for query in range(n_queries):
            kept = candidates[query][np.isfinite(approximate[query])]
            exact = self._exact(kept, exact_targets[query])
            order = np.lexsort((kept, -exact))[:n_neighbors]
            rows[query], scores[query] = kept[order], exact[order]
            # a row left out has a float32 score of at most the last one kept
            ceiling = (approximate[query, -1] + margins[query]) / to_scan_unit[query]
            if n_kept < self.n_rows and scores[query, -1] <= ceiling:
                unsettled.append(query)
        if unsettled:
            part = np.ascontiguousarray(targets[:, unsettled])
            scores[unsettled], rows[unsettled] = search(
                self.chunks, part, n_neighbors, exclude=exclude[unsettled], n_threads=n_threads
            )
        return scores, rows

    def _exact(self, rows: NDArray[np.int64], target: NDArray[Any]) -> NDArray[np.float64]:
        scores = np.empty(len(rows))
        first_row = 0
        for chunk in self.chunks:
            last_row = first_row + chunk.store.n_rows
            for start, stop in row_blocks(chunk.store.n_rows, BLOCK_ROWS):
                inside = (rows >= first_row + start) & (rows < first_row + stop)
                if inside.any():
                    part = np.empty(int(inside.sum()))
                    block = chunk.store.block(start, stop)
                    local = rows[inside] - (first_row + start)
                    score_pairs(*block, chunk.scale[start:stop], local, target, part)
                    scores[inside] = part
            first_row = last_row
        return scores
