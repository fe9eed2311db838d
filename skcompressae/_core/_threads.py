"""Run nogil kernels over blocks of rows in a pool of threads: no threading layer, safe under fork and joblib."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

from threadpoolctl import ThreadpoolController

__all__ = ["effective_n_threads", "row_blocks", "run_blocks"]


@lru_cache(maxsize=1)
def _blas_controller(process_id: int) -> ThreadpoolController:
    """Find the loaded BLAS libraries once per process; asking each for its limit afterwards costs microseconds."""
    return ThreadpoolController().select(user_api="blas")


def effective_n_threads() -> int:
    """Count the threads that kernels may use now: what the BLAS library is allowed to use.

    So one setting governs products and kernels alike: ``OMP_NUM_THREADS`` and its kin, ``threadpoolctl`` limits, and
    the limits that joblib sets in its worker processes.
    """
    limits = [library.num_threads for library in _blas_controller(os.getpid()).lib_controllers]
    if limits:
        return max(1, min(limits))
    return os.cpu_count() or 1


def row_blocks(n_rows: int, block_size: int) -> Iterator[tuple[int, int]]:
    """Yield ``(start, stop)`` of consecutive blocks that cover ``range(n_rows)``."""
    for start in range(0, n_rows, block_size):
        yield start, min(start + block_size, n_rows)


def run_blocks(work: Callable[[int, int], None], n_rows: int, block_size: int, n_threads: int) -> None:
    """Call ``work(start, stop)`` for every block of rows, on up to `n_threads` threads.

    The kernels release the GIL, so plain Python threads use every core; a pool per call costs tens of
    microseconds, so one block or one thread stays on the calling thread.
    """
    blocks = list(row_blocks(n_rows, block_size))
    if n_threads <= 1 or len(blocks) <= 1:
        for start, stop in blocks:
            work(start, stop)
        return
    with ThreadPoolExecutor(max_workers=min(n_threads, len(blocks))) as pool:
        for future in [pool.submit(work, start, stop) for start, stop in blocks]:
            future.result()
