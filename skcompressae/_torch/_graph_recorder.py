"""Recording work on a CUDA device as graphs, each replayed by one launch."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from threading import Lock
from typing import Any, TypeVar

import torch

from skcompressae._core._callers import caller_level
from skcompressae._torch._staging import new_stream

__all__ = ["N_PLAIN", "GraphRecorder"]

# Times that work of a kind runs as it is before it is recorded: recording takes as long as several, and keeps memory.
N_PLAIN = 8

# Recording is one thread's business at a time, in the whole process.
_recording = Lock()
# Graphs whose recording was broken off: torch's allocator may still point at them, so no more are begun after one.
_abandoned: list[torch.cuda.CUDAGraph] = []

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
        self._stream: Any = None
        self._pool: Any = None
        self._has_failed = False

    @property
    def has_failed(self) -> bool:
        """Whether no graph will be recorded any more: one failed here, or was broken off in this process."""
        return self._has_failed or bool(_abandoned)

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
        if self.has_failed:
            return None
        try:
            return self._record(work, runs_first)
        except RuntimeError as error:
            self._has_failed = True
            warnings.warn(
                f"no CUDA graph could be recorded on {self._device}, so small batches take longer there: {error}",
                RuntimeWarning,
                stacklevel=caller_level(),
            )
            return None

    def _record(self, work: Callable[[], Found], runs_first: bool) -> tuple[torch.cuda.CUDAGraph, Found]:
        with _recording, torch.cuda.device(self._device):
            if self._stream is None:
                # urgent, as no stream of copies is: those must not land on one that is recorded
                self._stream = new_stream(self._device, priority=-1)
                self._pool = torch.cuda.graph_pool_handle()
            now = torch.cuda.current_stream(self._device)
            if runs_first:
                self._stream.wait_stream(now)
                try:
                    with torch.cuda.stream(self._stream):
                        work()
                finally:
                    now.wait_stream(self._stream)
            graph = torch.cuda.CUDAGraph()
            try:
                # "thread_local": other threads of a search over parameters may use the device meanwhile
                with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                    found = work()
            except BaseException as error:
                # which torch leaves on the recorder's stream where the capture cannot be ended
                torch.cuda.set_stream(now)
                if not isinstance(error, torch.cuda.OutOfMemoryError):
                    _abandoned.append(graph)
                raise
        return graph, found
