"""Set the number of threads of a torch product, and set it back whatever runs beside it.

torch keeps the number for each thread, and the last one set, by whichever thread, for threads that start later.
Products of several threads overlap, so what one of them finds when it starts may be what another one has set.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from threading import Lock
from weakref import WeakSet

import torch

__all__ = ["hold_torch_threads", "torch_threads"]


class _Holder:
    """A product that runs at a number of threads of its own; it goes with the product, however that ends."""


class _Held:
    """Which products run at a number of threads of their own, and what that was before the first.

    An interrupt may come between any two lines, so the number is known before it is changed and forgotten after it is
    set back, and what it left undone is done by `heal`.
    """

    def __init__(self) -> None:
        self.lock = Lock()
        self.holders: WeakSet[_Holder] = WeakSet()
        self.before: int | None = None

    def hold(self, holder: _Holder, n_threads: int) -> None:
        with self.lock:
            self.holders.add(holder)
            if self.before is None:
                self.before = torch.get_num_threads()
            torch.set_num_threads(n_threads)

    def set_back(self) -> None:
        with self.lock:
            if self.before is not None:
                torch.set_num_threads(self.before)
                if not self.holders:
                    self.before = None

    def heal(self) -> None:
        if not self.holders:
            self.set_back()


_held = _Held()
if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    # a child must not wait for a lock that a thread of its parent held; mypy objects to calling __init__ again
    os.register_at_fork(after_in_child=_held.__init__)  # type: ignore[misc]


@contextmanager
def torch_threads(n_threads: int) -> Iterator[None]:
    """Let the calling thread's torch products use so many threads; then set back what was there before any ran."""
    _held.heal()
    holder = _Holder()
    try:
        _held.hold(holder, n_threads)
        yield
    finally:
        _held.holders.discard(holder)
        _held.set_back()


def hold_torch_threads() -> AbstractContextManager[None]:
    """Have threads that multiply meanwhile set back the calling thread's number: their own may be an old one."""
    _held.heal()
    return torch_threads(torch.get_num_threads())
