"""Whether fits share their batches with other processes; see `_ranks.py`, which needs torch."""

from __future__ import annotations

from contextvars import ContextVar

__all__ = ["is_shared"]

is_shared: ContextVar[bool] = ContextVar("skcompressae_data_parallel", default=False)
