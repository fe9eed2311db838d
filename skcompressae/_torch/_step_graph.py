"""Training steps as CUDA graphs: recorded once, replayed by one launch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch

from skcompressae._torch._graph_recorder import N_PLAIN, GraphRecorder
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
    """Take steps by replaying graphs, one for each size of a batch and k, once a few were taken as they are.

    Parameters
    ----------
    device : torch.device
        A CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self._recorder = GraphRecorder(device)
        self._n_steps: dict[tuple[int, int], int] = {}
        self._graphs: dict[tuple[int, int], _StepGraph] = {}

    # The callable is not kept: the bound method of an engine that keeps this object would keep the engine.
    def __call__(
        self,
        take_step: TakeStep,
        blocks: Iterable[torch.Tensor],
        n_rows: int,
        rates: torch.Tensor,
        settings: StepSettings,
        share: float,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Take one step.

        Parameters
        ----------
        take_step : callable
            ``take_step(blocks, n_rows, rates, settings, share)`` returns mean cosines and counts of use. It must ask
            the device for nothing, and do the same work for the same shapes and settings.
        blocks, n_rows, rates, settings, share
            What it takes.
        """
        key = n_rows, settings.k
        n_steps = self._n_steps[key] = self._n_steps.get(key, 0) + 1
        recorded = self._graphs.get(key)
        if recorded is not None:
            for target, block in zip(recorded.x, blocks, strict=True):
                target.copy_(block)
            recorded.rates.copy_(rates)
        elif n_steps > N_PLAIN:
            # The tensors of this batch are the graph's from here on.
            blocks = x = list(blocks)
            made = self._recorder.record(lambda: take_step(x, n_rows, rates, settings, share))
            if made is not None:
                recorded = self._graphs[key] = _StepGraph(made[0], x, rates, *made[1])
        if recorded is None:
            return take_step(blocks, n_rows, rates, settings, share)
        recorded.graph.replay()
        # copies, as the next replay of any graph may write there
        return recorded.cosines.clone(), recorded.fired.clone()
