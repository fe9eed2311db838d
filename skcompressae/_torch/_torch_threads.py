"""Set the number of threads of a torch product, and set it back whatever runs beside it.

torch keeps the number for each thread, and the last one set, by whichever thread, for threads that start later.
Products of several threads overlap, so what one of them finds when it starts may be what another one has set.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from threading import Lock

import torch

__all__ = ["hold_torch_threads", "torch_threads"]


class _Held:
    """How many products run at a number of threads of their own, and what that was before the first."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.n_holders = 0
        self.before = 0


_held = _Held()
if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    # a child must not wait for a lock that a thread of its parent held; mypy objects to calling __init__ again
    os.register_at_fork(after_in_child=_held.__init__)  # type: ignore[misc]


@contextmanager
def torch_threads(n_threads: int) -> Iterator[None]:
    """Let the calling thread's torch products use so many threads; then set back what was there before any ran."""
    with _held.lock:
        if _held.n_holders == 0:
            _held.before = torch.get_num_threads()
        _held.n_holders += 1
        before = _held.before
        torch.set_num_threads(n_threads)
    try:
        yield
    finally:
        with _held.lock:
            torch.set_num_threads(before)
            _held.n_holders -= 1


def hold_torch_threads() -> AbstractContextManager[None]:
    """Have threads that multiply meanwhile set back the calling thread's number: their own may be an old one."""
    return torch_threads(torch.get_num_threads())
