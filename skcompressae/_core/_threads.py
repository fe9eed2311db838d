"""Run nogil kernels over blocks of rows in a pool of threads: no threading layer, safe under joblib and simple forks.

A forked child makes threads of its own. It may hang, though, where another thread was in a product or a search when the
process forked: what the BLAS library had locked then stays locked in the child.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import lru_cache
from threading import Lock, local
from typing import Any
from weakref import WeakSet

from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

__all__ = [
    "copy_blocks",
    "copy_rows",
    "effective_n_threads",
    "exactly_n_threads",
    "row_blocks",
    "run_blocks",
    "run_product_blocks",
    "single_threaded_blas",
]

# Rows per thread below which one product over all threads beats one product in each: a product of few rows spends its
# time on rearranging the other factor.
_MIN_ROWS_PER_THREAD = 96


# The most and the fewest rows that one thread copies at a time. With 64 of 768 columns, 200 KB, for all, 16 threads
# stood in each other's way in the interpreter and copied at half the speed.
_COPY_ROWS = 64, 1024

# By how the library's symbols were renamed when it was made, as for NumPy's and SciPy's wheels.
_OPENBLAS_SETTERS = [
    f"{prefix}openblas_set_num_threads{suffix}" for prefix in ("", "scipy_") for suffix in ("", "64_", "_64")
]

# Per thread, so that tasks that run at the same time do not see one another's choice.
_chosen: ContextVar[int | None] = ContextVar("skcompressae_n_threads", default=None)


class _Library:
    """A loaded BLAS library's limit of threads.

    That of an OpenBLAS made with OpenMP is OpenMP's, which every thread has for itself: what OpenBLAS's own functions
    set holds until some thread's next product. Other limits are the process's. Those of OpenBLAS are set without
    threadpoolctl, which from 3.8 on lets only one thread set any, the first that did.
    """

    def __init__(self, controller: Any) -> None:
        self._controller = controller
        self._openmp: Any = None
        self._set: Callable[[int], Any] = controller.set_num_threads
        if controller.internal_api != "openblas":
            return
        library = ctypes.CDLL(controller.filepath)
        if controller.threading_layer == "openmp":
            if hasattr(library, "omp_get_max_threads") and hasattr(library, "omp_set_num_threads"):
                self._openmp, self._set = library, library.omp_set_num_threads
            return
        for name in _OPENBLAS_SETTERS:
            if hasattr(library, name):
                self._set = getattr(library, name)

    @property
    def is_per_thread(self) -> bool:
        return self._openmp is not None

    @property
    def limit(self) -> int:
        found = self._controller.num_threads if self._openmp is None else self._openmp.omp_get_max_threads()
        return int(found)

    @limit.setter
    def limit(self, n_threads: int) -> None:
        self._set(n_threads)


@lru_cache(maxsize=1)
def _blas_libraries(process_id: int) -> dict[bool, list[_Library]]:
    """Find NumPy's BLAS library, and its kin, once per process, by whether their limits are per thread.

    Beside another one, an OpenBLAS made with OpenMP is of a package with libraries of its own, and its OpenMP may be
    that of torch: they are left alone. Asking each for its limit afterwards costs microseconds.
    """
    controllers = ThreadpoolController().select(user_api="blas").lib_controllers
    found = [_Library(library) for library in controllers if library.num_threads is not None]
    of_process = [library for library in found if not library.is_per_thread]
    return {False: of_process, True: [] if of_process else found}


def effective_n_threads() -> int:
    """Count the threads that kernels may use now: what the BLAS library is allowed to use.

    So one setting governs products and kernels alike: ``OMP_NUM_THREADS`` and its kin, ``threadpoolctl`` limits, and
    the limits that joblib sets in its worker processes. :func:`exactly_n_threads` overrides it.
    """
    chosen = _chosen.get()
    if chosen is not None:
        return chosen
    limits = [*_held.limits(), *_own.held.limits()]
    if limits:
        return max(1, min(limits))
    return os.cpu_count() or 1


class _Holder:
    """A block that holds the BLAS library at one thread; it goes with the block, however that ends."""


class _HeldLimit:
    """Which blocks hold BLAS libraries at one thread, and what each library was allowed before the first did.

    An interrupt may come between any two lines, so the limits are known before they are changed and forgotten after
    they are restored, and what it left undone is done by `heal`.
    """

    def __init__(self, is_own: bool = False) -> None:
        self.is_own = is_own
        self.lock = Lock()
        self.holders: WeakSet[_Holder] = WeakSet()
        self.before: list[tuple[_Library, int]] | None = None

    def begin_in_child(self) -> None:
        """Forget the blocks of a forked process's parent, whose threads it does not have, but not what to restore."""
        self.lock = Lock()
        self.holders = WeakSet()

    @property
    def libraries(self) -> list[_Library]:
        """Those whose limits are this thread's own, or those whose limits are the process's."""
        return _blas_libraries(os.getpid())[self.is_own]

    def limits(self) -> list[int]:
        """Return what the libraries are allowed, but for what is held for the moment."""
        self.heal()
        before = self.before
        return [library.limit for library in self.libraries] if before is None else [limit for _, limit in before]

    def hold(self, holder: _Holder) -> None:
        with self.lock:
            self.holders.add(holder)
            if self.before is None:
                self.before = [(library, library.limit) for library in self.libraries]
                for library, _ in self.before:
                    library.limit = 1

    def release(self, holder: _Holder) -> None:
        self.holders.discard(holder)
        self.heal()

    def heal(self) -> None:
        """Restore the limits where no block holds them any more."""
        if self.before is None:
            return
        with self.lock:
            if self.before is not None and not self.holders:
                for library, limit in self.before:
                    library.limit = limit
                self.before = None


class _OwnLimit(local):
    """The calling thread's limits."""

    def __init__(self) -> None:
        self.held = _HeldLimit(is_own=True)


_held = _HeldLimit()
_own = _OwnLimit()
if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_held.begin_in_child)


@contextmanager
def single_threaded_blas() -> Iterator[None]:
    """Hold the BLAS library at one thread while our own threads multiply, each for itself.

    The library's threads would otherwise spin for a while after every product, on the very cores that the kernels run
    on (a quarter of the time of `transform` on two cores). The limit is the process's, and calls that overlap share it;
    OpenMP's is the calling thread's, which must be the one that leaves, and that of the pool's threads is one from the
    start.
    """
    own = _own.held
    _held.heal()
    own.heal()
    holder = _Holder()
    try:
        _held.hold(holder)
        own.hold(holder)
        yield
    finally:
        own.release(holder)
        _held.release(holder)


@contextmanager
def exactly_n_threads(n_threads: int) -> Iterator[None]:
    """Let the calling thread use `n_threads`, itself included, and the BLAS library none of its own.

    For tasks that run beside one another in one process, where the BLAS library's limit, which is the process's, would
    count for all of them together.
    """
    with single_threaded_blas():  # first: what it restores is the process's limit, not this one
        token = _chosen.set(n_threads)
        try:
            yield
        finally:
            _chosen.reset(token)


def row_blocks(n_rows: int, block_size: int) -> Iterator[tuple[int, int]]:
    """Yield ``(start, stop)`` of consecutive blocks that cover ``range(n_rows)``."""
    for start in range(0, n_rows, block_size):
        yield start, min(start + block_size, n_rows)


@lru_cache(maxsize=1)
def _pool(process_id: int) -> ThreadPoolExecutor:
    """Return this process's pool; a forked child, whose copy of the threads is dead, makes its own."""
    n_workers = max(1, (os.cpu_count() or 1) - 1)
    return ThreadPoolExecutor(n_workers, thread_name_prefix="skcompressae", initializer=_begin_in_pool)


def _begin_in_pool() -> None:
    for library in _own.held.libraries:
        library.limit = 1


class _Helper:
    """A call that is handed to the pool, and what became of it.

    The pool's own future does not do: where no thread can be started, ``submit`` raises and returns none, yet leaves
    the call queued for a thread that comes by later.
    """

    def __init__(self, call: Callable[[], None]) -> None:
        self._call: Callable[[], None] | None = call
        self.future: Future[None] = Future()

    def __call__(self) -> None:
        call = self._call
        if call is None or not self.future.set_running_or_notify_cancel():
            return
        try:
            call()
        except BaseException as error:
            self.future.set_exception(error)
        else:
            self.future.set_result(None)

    def dismiss(self) -> bool:
        """Take the call back, with all that it refers to, unless a thread has begun; return whether none has."""
        if is_unused := self.future.cancel():
            self._call = None
        return is_unused


def run_blocks(work: Callable[[int, int], None], n_rows: int, block_size: int, n_threads: int) -> None:
    """Call ``work(start, stop)`` for every block of rows, on up to `n_threads` threads.

    The kernels release the GIL, so plain Python threads use every core. The caller works too and each thread takes
    the next block when it is done with one, so a call costs one hand-over per further thread, whatever the number of
    blocks, and callers that share the pool never wait for one another's blocks. Where no further thread can be started,
    those that there are take all blocks.
    """
    blocks = row_blocks(n_rows, block_size)
    n_helpers = min(n_threads, -(-n_rows // block_size)) - 1
    if n_helpers <= 0:
        for start, stop in blocks:
            work(start, stop)
        return
    queue = iter(list(blocks))  # next() of a list's iterator is atomic; that of a generator is not

    def take_blocks() -> None:
        for start, stop in queue:
            work(start, stop)

    helpers = [_Helper(take_blocks) for _ in range(n_helpers)]
    try:
        _hand_over(helpers)
        take_blocks()
    finally:  # also where a block failed or the user interrupted: nothing may go on writing after the return
        _dismiss_all(helpers)
    for helper in helpers:
        if not helper.future.cancelled():
            helper.future.result()


def _dismiss_all(helpers: list[_Helper]) -> None:
    """Wait for the helpers that have begun, whatever interrupts that, and take back the others."""
    interrupt: BaseException | None = None
    while True:
        try:
            wait([helper.future for helper in helpers if not helper.dismiss()])
            break
        except BaseException as error:
            interrupt = error
    if interrupt is not None:
        raise interrupt


def _hand_over(helpers: list[_Helper]) -> None:
    pool = _pool(os.getpid())
    with suppress(RuntimeError):  # memory or the number of threads is short, or the interpreter is about to end
        for helper in helpers:
            pool.submit(helper)


def copy_blocks(work: Callable[[int, int], None], n_rows: int) -> None:
    """Call ``work(start, stop)``, which copies rows, for every block of rows, on as many threads as may be used."""
    fewest, most = _COPY_ROWS
    if n_rows <= fewest:
        work(0, n_rows)
        return
    n_threads = effective_n_threads()
    run_blocks(work, n_rows, max(fewest, min(most, -(-n_rows // n_threads))), n_threads)


def copy_rows(target: NDArray[Any], source: NDArray[Any]) -> None:
    """Copy rows on several threads: where `target` is new memory, mapping it takes longer than the copy."""

    def work(start: int, stop: int) -> None:
        target[start:stop] = source[start:stop]

    copy_blocks(work, len(source))


def run_product_blocks(work: Callable[[int, int, int], None], n_rows: int, block_size: int, n_threads: int) -> None:
    """Call ``work(start, stop, n_threads)`` for blocks of rows that are multiplied with a matrix and then processed.

    Where there are rows enough, every thread takes whole blocks, and `work` is told to use one thread. Else `work` is
    called for one block after the other and told to use all.
    """
    if n_threads > 1 and n_rows >= _MIN_ROWS_PER_THREAD * n_threads:
        block_size = min(block_size, -(-n_rows // n_threads))
        with single_threaded_blas():
            run_blocks(lambda start, stop: work(start, stop, 1), n_rows, block_size, n_threads)
        return
    for start, stop in row_blocks(n_rows, block_size):
        work(start, stop, n_threads)
