"""Few rows encoded by CUDA graphs: recorded once for a number of rows, replayed by one launch.

A code takes some thirty launches, which for a few rows last longer than the work.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray

from skcompressae._torch._graph_recorder import N_PLAIN, GraphRecorder
from skcompressae._torch._staging import tensor_of

__all__ = ["EncodeGraphs"]

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
        self._recorder = GraphRecorder(device)
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
            may_record = len(self._graphs) < _MAX_GRAPHS and not self._recorder.has_failed
            if recorded is None and n_calls > N_PLAIN and may_record:
                given = torch.zeros((n_recorded, rows.shape[1]), dtype=tensor_of(rows[:0]).dtype, device=self._device)
                made = self._recorder.record(lambda: work(given), runs_first=True)
                if made is not None:
                    recorded = self._graphs[key] = _Graph(made[0], given, made[1])
            if recorded is not None:
                recorded.rows[:n_rows].copy_(tensor_of(rows))
                recorded.graph.replay()
                return tuple(part[:n_rows].cpu().numpy() for part in recorded.found)
        return tuple(part.cpu().numpy() for part in work(tensor_of(rows).to(self._device)))
