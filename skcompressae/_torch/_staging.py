"""Rows on their way to a device and results on their way back, so that copies overlap with work on CUDA.

On CUDA rows pass through two pinned buffers and two buffers on the device, in turn: while the device works on one, the
host fills the other and a second stream copies it. Two orders keep that safe. The host writes to a pinned buffer only
after the copy out of it has ended (`copied`), and that copy starts only after the work on what its target held before
(`used`). On other devices the same calls copy and wait.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from skcompressae._core._rows import unit_rows
from skcompressae._core._threads import copy_blocks
from skcompressae._torch._devices import has_float64, own_modes
from skcompressae._torch._row_ops import unit_rows_torch

__all__ = ["RowStream", "download_blocks", "new_stream", "recorded_event", "tensor_of", "upload", "wait_for_queued"]

# While the device works on one buffer, the host fills the other.
_N_SLOTS = 2

Key = TypeVar("Key")


def tensor_of(array: NDArray[Any]) -> torch.Tensor:
    """Return a tensor of an array, on the CPU; it shares the array's memory where torch takes it.

    torch takes no negative strides, and warns about arrays that are read-only, as memory-mapped ones are.
    """
    array = np.ascontiguousarray(array)
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def upload(array: NDArray[Any], device: torch.device) -> torch.Tensor:
    """Copy a small array to a device; on CUDA without waiting for the work queued there."""
    tensor = torch.from_numpy(array)
    if device.type == "cuda":
        # A pinned copy for each call: torch keeps it until the transfer has ended, and then reuses it.
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device, copy=True)


def new_stream(device: torch.device, priority: int = 0) -> torch.cuda.Stream:
    """Return a stream of a CUDA device; torch has some thirty of each priority, which take turns."""
    return torch.cuda.Stream(device, priority=priority)  # type: ignore[no-untyped-call]  # torch has no types for its constructor


def recorded_event(device: torch.device) -> torch.cuda.Event:
    """Return an event that comes when the work queued on a CUDA device so far is done."""
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch has no types for its constructor
    event.record(torch.cuda.current_stream(device))
    return event


def wait_for_queued(device: torch.device) -> None:
    """Wait for the work queued on a CUDA device so far, so that any stream may read what it made."""
    if device.type == "cuda":
        recorded_event(device).synchronize()


class _Slot:
    """One pinned buffer, its place on the device, and the two events that say when they are free."""

    def __init__(self, shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> None:
        self.pinned = torch.empty(shape, dtype=dtype, device="cpu", pin_memory=True)
        self.on_device = torch.empty(shape, dtype=dtype, device=device)
        # Not before what is queued now: the memory may have been freed a moment ago by work that is yet to come.
        self.used = self.copied = recorded_event(device)


class RowStream:
    """Bring rows of an array to a device, scaled to unit norm there.

    Parameters
    ----------
    rows : array of shape (n_rows, n_features), float16, float32 or float64
        May be memory-mapped; only what is fetched is read.
    device : torch.device
    block_rows : int
        Most rows of one fetch.
    """

    def __init__(self, rows: NDArray[Any], device: torch.device, block_rows: int) -> None:
        self._rows = rows
        self._device = device
        self._shape = min(block_rows, len(rows)), rows.shape[1]
        self._slots: list[_Slot] = []
        self._n_fetched = 0
        self._copy_stream: Any = None

    @property
    def staged_bytes(self) -> int:
        """Bytes that the buffers on a CUDA device will take."""
        return _N_SLOTS * self._shape[0] * self._shape[1] * self._rows.itemsize

    def fetch(self, which: slice | NDArray[np.intp]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return unit rows, float32, on the device, and their norms, float64.

        The norms are on the device, or on the CPU where the device has no float64.
        """
        # own modes: the buffers serve later calls, which the caller may make in other modes
        with own_modes(self._device):
            return self._fetch(which)

    def _fetch(self, which: slice | NDArray[np.intp]) -> tuple[torch.Tensor, torch.Tensor]:
        if not has_float64(self._device):
            found = unit_rows(self._rows[which])
            return torch.from_numpy(found[0]).to(self._device), torch.from_numpy(found[1])
        if self._device.type != "cuda":
            raw = self._rows[which]
            # Copied where it is a view: torch warns about arrays that are read-only, as memory-mapped ones are.
            return unit_rows_torch(torch.from_numpy(raw.copy() if isinstance(which, slice) else raw).to(self._device))
        slot = self._next_slot()
        unit, norms = unit_rows_torch(self._copy(slot, which))
        slot.used = recorded_event(self._device)
        return unit, norms

    def _next_slot(self) -> _Slot:
        if not self._slots:
            dtype = torch.from_numpy(np.empty(0, dtype=self._rows.dtype)).dtype
            self._slots = [_Slot(self._shape, dtype, self._device) for _ in range(_N_SLOTS)]
            self._copy_stream = new_stream(self._device)
        self._n_fetched += 1
        return self._slots[self._n_fetched % _N_SLOTS]

    def _copy(self, slot: _Slot, which: slice | NDArray[np.intp]) -> torch.Tensor:
        """Queue the copy of rows to a slot's place on the device, and return that place."""
        slot.copied.synchronize()
        n_rows = self._fill(slot.pinned.numpy(), which)
        self._copy_stream.wait_event(slot.used)
        with torch.cuda.stream(self._copy_stream):
            slot.on_device[:n_rows].copy_(slot.pinned[:n_rows], non_blocking=True)
            slot.copied = recorded_event(self._device)
        torch.cuda.current_stream(self._device).wait_event(slot.copied)
        return slot.on_device[:n_rows]

    def _fill(self, target: NDArray[Any], which: slice | NDArray[np.intp]) -> int:
        """Copy rows to the front of a buffer, on several threads; return how many."""
        rows = self._rows
        if isinstance(which, slice):
            first, last, _ = which.indices(len(rows))

            def work(start: int, stop: int) -> None:
                target[start:stop] = rows[first + start : first + stop]

            n_rows = last - first
        else:
            picks, n_rows = which, len(which)

            def work(start: int, stop: int) -> None:
                # "clip" because "raise" goes through a buffer; the row numbers are ours and in range
                np.take(rows, picks[start:stop], axis=0, out=target[start:stop], mode="clip")

        copy_blocks(work, n_rows)
        return n_rows


def download_blocks(
    blocks: Iterable[tuple[Key, tuple[torch.Tensor, ...]]], device: torch.device
) -> Iterator[tuple[Key, tuple[NDArray[Any], ...]]]:
    """Bring the tensors of each block to the host, one block behind the work that makes them.

    Parameters
    ----------
    blocks : iterable of (key, tensors)
        Asked for the next block before the one before is waited for, so that the device is never idle.
    device : torch.device

    Yields
    ------
    key, arrays
        In the order of `blocks`.
    """
    if device.type != "cuda":
        for key, tensors in blocks:
            yield key, tuple(tensor.cpu().numpy() for tensor in tensors)
        return
    waiting: tuple[Key, list[torch.Tensor], torch.cuda.Event] | None = None
    for key, tensors in blocks:
        copies = [torch.empty(part.shape, dtype=part.dtype, device="cpu", pin_memory=True) for part in tensors]
        for copy, tensor in zip(copies, tensors, strict=True):
            copy.copy_(tensor, non_blocking=True)
        arrived = recorded_event(device)  # at once: after the yield another stream may be the current one
        if waiting is not None:
            waiting[2].synchronize()
            yield waiting[0], tuple(copy.numpy() for copy in waiting[1])
        waiting = key, copies, arrived
    if waiting is not None:
        waiting[2].synchronize()
        yield waiting[0], tuple(copy.numpy() for copy in waiting[1])
