"""Training steps as CUDA graphs: recorded once, replayed by one launch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch

from skcompressae._torch._weights import StepSettings

__all__ = ["StepGraphs"]

TakeStep = Callable[[Iterable[torch.Tensor], int, torch.Tensor, StepSettings, float], tuple[torch.Tensor, torch.Tensor]]


class _StepGraph(NamedTuple):
    """A recorded step, what it reads and what it writes."""

    graph: torch.cuda.CUDAGraph
    x: list[torch.Tensor]
    rates: torch.Tensor
    cosines: torch.Tensor
    fired: torch.Tensor


class StepGraphs:
    """Take steps by replaying graphs, one for each size of a batch and k.

    The first step of a kind runs as it is, so that kernels are compiled and libraries loaded; the second is recorded.

    Parameters
    ----------
    take_step : callable
        ``take_step(blocks, n_rows, rates, settings, share)`` returns mean cosines and counts of use. It must ask the
        device for nothing, and do the same work for the same shapes and settings.
    """

    def __init__(self, take_step: TakeStep) -> None:
        self._take_step = take_step
        self._graphs: dict[tuple[int, int], _StepGraph | None] = {}

    def __call__(
        self, blocks: Iterable[torch.Tensor], n_rows: int, rates: torch.Tensor, settings: StepSettings, share: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Take one step."""
        key = n_rows, settings.k
        if key not in self._graphs:
            self._graphs[key] = None
            return self._take_step(blocks, n_rows, rates, settings, share)
        recorded = self._graphs[key]
        if recorded is None:
            # The tensors of this batch are the graph's from here on.
            recorded = self._graphs[key] = self._record(list(blocks), n_rows, rates, settings, share)
        else:
            for target, block in zip(recorded.x, blocks, strict=True):
                target.copy_(block)
            recorded.rates.copy_(rates)
        recorded.graph.replay()
        return recorded.cosines, recorded.fired.clone()

    def _record(
        self, x: list[torch.Tensor], n_rows: int, rates: torch.Tensor, settings: StepSettings, share: float
    ) -> _StepGraph:
        """Record the step, which does not take it."""
        graph = torch.cuda.CUDAGraph()
        # "thread_local": other threads of a search over parameters may use the device meanwhile
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            cosines, fired = self._take_step(x, n_rows, rates, settings, share)
        return _StepGraph(graph, x, rates, cosines, fired)
