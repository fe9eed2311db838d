"""Few rows encoded by CUDA graphs: recorded once for a number of rows, replayed by one launch.

A code takes some thirty launches, which for a few rows last longer than the work.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["EncodeGraphs"]

# Calls of a kind that run as they are. Recording takes as long as several, and keeps memory.
_N_PLAIN = 8
# Kinds that are recorded: rows, their dtype and what is asked of the codes.
_MAX_GRAPHS = 16

Work = Callable[[torch.Tensor], tuple[torch.Tensor, ...]]


class _Graph(NamedTuple):
    graph: torch.cuda.CUDAGraph
    rows: torch.Tensor
    found: tuple[torch.Tensor, ...]


class EncodeGraphs:
    """Call work on few rows, by replaying it once it was called often enough; safe from several threads.

    Parameters
    ----------
    device : torch.device
        A CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._lock = Lock()
        self._n_calls: dict[tuple[Any, ...], int] = {}
        self._graphs: dict[tuple[Any, ...], _Graph] = {}

    def __call__(self, rows: NDArray[Any], kind: tuple[Any, ...], work: Work) -> tuple[NDArray[Any], ...]:
        """Return on the host what `work` finds for rows.

        Parameters
        ----------
        rows : array of shape (n_rows, n_features)
        kind : tuple
            What else decides what `work` does.
        work : callable
            Takes rows on the device, returns tensors of as many rows there. It must ask the device for nothing.
        """
        n_rows = len(rows)
        # The number of rows rounded up to a power of two: rows too many are encoded for nothing.
        n_recorded = 1 << (n_rows - 1).bit_length()
        key = (n_recorded, rows.dtype, *kind)
        with self._lock:
            n_calls = self._n_calls[key] = self._n_calls.get(key, 0) + 1
            recorded = self._graphs.get(key)
            if recorded is None and n_calls > _N_PLAIN and len(self._graphs) < _MAX_GRAPHS:
                recorded = self._graphs[key] = self._record(n_recorded, rows, work)
            if recorded is not None:
                recorded.rows[:n_rows].copy_(_tensor(rows))
                recorded.graph.replay()
                return tuple(part[:n_rows].cpu().numpy() for part in recorded.found)
        return tuple(part.cpu().numpy() for part in work(_tensor(rows).to(self._device)))

    def _record(self, n_rows: int, rows: NDArray[Any], work: Work) -> _Graph:
        on_device = torch.zeros((n_rows, rows.shape[1]), dtype=_tensor(rows).dtype, device=self._device)
        now, stream = torch.cuda.current_stream(self._device), torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        stream.wait_stream(now)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self._device), torch.cuda.stream(stream):
            work(on_device)  # so that all that is made once, for this stream too, is there
            graph.capture_begin(capture_error_mode="thread_local")
            try:
                found = work(on_device)
            finally:
                graph.capture_end()
        now.wait_stream(stream)
        return _Graph(graph, on_device, found)


def _tensor(rows: NDArray[Any]) -> torch.Tensor:
    # torch warns about arrays that are read-only, as memory-mapped ones are
    return torch.from_numpy(rows if rows.flags.writeable else np.array(rows))
