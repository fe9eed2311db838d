"""Recording work on a CUDA device as graphs, each replayed by one launch."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from threading import Lock
from typing import Any, TypeVar

import torch

__all__ = ["N_PLAIN", "GraphRecorder"]

# Times that work of a kind runs as it is before it is recorded: recording takes as long as several, and keeps memory.
N_PLAIN = 8

# Recording is one thread's business at a time, in the whole process.
_recording = Lock()

Found = TypeVar("Found")


class GraphRecorder:
    """Record work as graphs that share one stream and one pool of memory.

    A replay may overwrite what other graphs of the recorder found: replay them one after another, and copy what one
    found before the next.

    Parameters
    ----------
    device : torch.device
        A CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        # Not those of other recorders: products of one stream share a workspace.
        self._stream: Any = None
        self._pool: Any = None
        self._has_failed = False

    def record(
        self, work: Callable[[], Found], *, runs_first: bool = False
    ) -> tuple[torch.cuda.CUDAGraph, Found] | None:
        """Record what `work` queues, without running it; None, after a warning, where that once failed.

        Parameters
        ----------
        work : callable
            It must ask the device for nothing.
        runs_first : bool, default=False
            Run it once on the recorder's stream, so that all that is made once for a stream is there.
        """
        if self._has_failed:
            return None
        try:
            return self._record(work, runs_first)
        except RuntimeError as error:
            self._has_failed = True
            warnings.warn(
                f"no CUDA graph could be recorded on {self._device}, so small batches take longer there: {error}",
                RuntimeWarning,
                stacklevel=2,
            )
            return None

    def _record(self, work: Callable[[], Found], runs_first: bool) -> tuple[torch.cuda.CUDAGraph, Found]:
        with _recording, torch.cuda.device(self._device):
            if self._stream is None:
                self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
                self._pool = torch.cuda.graph_pool_handle()
            if runs_first:
                now = torch.cuda.current_stream(self._device)
                self._stream.wait_stream(now)
                with torch.cuda.stream(self._stream):
                    work()
                now.wait_stream(self._stream)
            graph = torch.cuda.CUDAGraph()
            # "thread_local": other threads of a search over parameters may use the device meanwhile
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                found = work()
        return graph, found
