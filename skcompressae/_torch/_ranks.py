"""Data-parallel training: every rank of a torch process group takes its share of each batch; gradients are averaged.

Invariant: all ranks hold the same weights, moments and order of rows; what decides anything (gradients, losses) comes
from the same reduction, so no rank stops before another.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.distributed
from numpy.typing import NDArray

from skcompressae._core._arrays import FloatArray
from skcompressae._core._threads import row_blocks
from skcompressae._torch._device_choice import Device
from skcompressae._torch._devices import torch_device
from skcompressae._torch._sharing import is_shared

__all__ = ["Ranks", "data_parallel"]

# Rows of X by which ranks are compared, evenly spaced: all of a large file would take longer to read than to train on.
_MAX_COMPARED_ROWS = 65_536
_COMPARED_BLOCK_ROWS = 4096


@contextmanager
def data_parallel() -> Iterator[None]:
    """Share the batches of every fit inside the block among the ranks of torch's default process group.

    Start one process for each GPU with ``torchrun``, set up the process group, and let every process fit the same
    estimator on the same X, which may be one memory-mapped file. `batch_size` counts the rows of all ranks together, so
    that a recipe means the same on any number of them, and the weights are those of a single process up to rounding,
    but for what follows. All ranks end with the same weights; rank 0 writes checkpoints, and it is for the caller to
    save from one rank only.

    The neighbourhood term is computed by each rank on the first rows of its own share, and averaged. A device that runs
    out of memory raises rather than halving the batch, and interrupting one process leaves the others waiting: end them
    together, as ``torchrun`` does.

    Yields
    ------
    None
        Nothing; the block is what counts.

    Raises
    ------
    RuntimeError
        If there is no default process group.
    ValueError
        From fit, if the ranks do not start alike (X, of which up to 65,536 rows are compared, parameters and an int
        `random_state` must be the same), or if a batch has fewer rows than there are ranks.

    See Also
    --------
    skcompressae.CompresSAETransformer.fit : What is shared.
    skcompressae.exceptions.DeviceMemoryWarning : What a single process does when memory is short.

    Examples
    --------
    The script ``train.py``, started by ``torchrun --nproc-per-node=4 train.py``::

        import os
        import numpy as np, torch
        from skcompressae import CompresSAETransformer
        from skcompressae.distributed import data_parallel

        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        torch.distributed.init_process_group("nccl")
        compressor = CompresSAETransformer(device="cuda", random_state=0)
        with data_parallel():
            compressor.fit(np.load("embeddings.npy", mmap_mode="r"))
        if torch.distributed.get_rank() == 0:
            compressor.save("compressor.safetensors")
        torch.distributed.destroy_process_group()
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        raise RuntimeError(
            "data_parallel() needs torch's default process group, and there is none. Call "
            "torch.distributed.init_process_group first, in processes started by torchrun."
        )
    token = is_shared.set(True)
    try:
        yield
    finally:
        is_shared.reset(token)


class Ranks:
    """The place of this process among the ranks, and the sums over all of them.

    Parameters
    ----------
    device : Device
        Where gradients are.
    """

    def __init__(self, device: Device) -> None:
        self.rank = torch.distributed.get_rank()
        self.n_ranks = torch.distributed.get_world_size()
        self._device = torch_device(device)

    def check_alike(self, description: str, rows: NDArray[Any], *arrays: NDArray[np.generic]) -> None:
        """Raise ValueError on all ranks if descriptions, rows (a sample of many) or arrays differ between any two."""
        checksum = zlib.crc32(f"{description} {rows.shape} {rows.dtype.str}".encode())
        picks = np.linspace(0, len(rows) - 1, min(len(rows), _MAX_COMPARED_ROWS)).astype(np.intp)
        for start, stop in row_blocks(len(picks), _COMPARED_BLOCK_ROWS):
            checksum = zlib.crc32(np.ascontiguousarray(rows[picks[start:stop]]).data, checksum)
        for array in arrays:
            checksum = zlib.crc32(np.ascontiguousarray(array).data, checksum)
        extremes = torch.tensor([checksum, -checksum], dtype=torch.int64, device=self._device)
        torch.distributed.all_reduce(extremes, op=torch.distributed.ReduceOp.MAX)
        largest, smallest = extremes.tolist()
        if largest != -smallest:
            raise ValueError(
                "the ranks of data_parallel() start from different weights, rows, parameters or random numbers. Pass "
                "the same X, the same parameters and an int random_state on every rank."
            )

    def share(self, row_indices: NDArray[np.intp]) -> NDArray[np.intp]:
        """Return this rank's rows of a batch; all ranks' together are the batch."""
        if len(row_indices) < self.n_ranks:
            raise ValueError(
                f"each batch must have a row for every rank; got {len(row_indices)} row(s) for {self.n_ranks} ranks."
            )
        return row_indices[self.rank :: self.n_ranks]

    def combine(
        self,
        cosines: torch.Tensor,
        fired: torch.Tensor,
        share: float,
        gradients: Sequence[torch.Tensor | FloatArray],
    ) -> None:
        """Average gradients and cosines over the rows of all ranks, and add the counts up; all in place.

        `share` is the share of this rank in those rows.
        """
        for array in gradients:
            gradient = array if isinstance(array, torch.Tensor) else torch.from_numpy(array)  # shares its memory
            gradient.mul_(share)
            torch.distributed.all_reduce(gradient)
        torch.distributed.all_reduce(fired)
        cosines.mul_(share)
        torch.distributed.all_reduce(cosines)
