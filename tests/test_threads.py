"""Blocks over threads: every block once, errors surface, the BLAS limit is shared and restored."""

import _weakrefset
import contextlib
import gc
import os
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor, wait

import numpy as np
import pytest
import torch
from threadpoolctl import ThreadpoolController, threadpool_info, threadpool_limits

from skcompressae._core import _threads
from skcompressae._core._threads import (
    effective_n_threads,
    exactly_n_threads,
    run_blocks,
    run_product_blocks,
    single_threaded_blas,
)
from skcompressae._torch import _torch_threads
from skcompressae.packed import _rows


@pytest.mark.parametrize("n_threads", [1, 2, 5])
def test_every_row_is_visited_once(n_threads):
    visits = np.zeros(1003, dtype=int)

    def work(start, stop):
        visits[start:stop] += 1

    run_blocks(work, len(visits), 10, n_threads)
    assert (visits == 1).all()


@pytest.mark.parametrize(("n_rows", "expected"), [(50, 4), (1000, 1)])
def test_product_blocks_say_how_many_threads_they_may_use(n_rows, expected):
    visits, told = np.zeros(n_rows, dtype=int), set()

    def work(start, stop, n_threads):
        visits[start:stop] += 1
        told.add(n_threads)

    run_product_blocks(work, n_rows, 128, 4)
    assert (visits == 1).all()
    assert told == {expected}


def test_an_error_in_a_block_surfaces():
    def work(start, stop):
        if start == 30:
            raise ValueError("row 30 is no good")

    with pytest.raises(ValueError, match="row 30 is no good"):
        run_blocks(work, 100, 10, 3)


def test_no_interrupt_leaves_threads_at_work(monkeypatch):
    begun, end, n_waits, done = threading.Event(), threading.Event(), [], []

    def work(start, stop):
        if threading.current_thread() is threading.main_thread():
            assert begun.wait(10)
            raise KeyboardInterrupt("the first")
        begun.set()
        assert end.wait(10)
        done.append(start)

    def interrupted(futures):
        n_waits.append(len(futures))
        if len(n_waits) < 3:
            raise KeyboardInterrupt(f"one of wait {len(n_waits)}")
        end.set()
        return wait(futures)

    monkeypatch.setattr(_threads, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt, match="one of wait 2"):
        run_blocks(work, 2, 1, 2)
    assert (n_waits, len(done)) == ([1, 1, 1], 1)


@pytest.fixture
def pool_of_few(monkeypatch):
    """Make the pool one whose threads cannot be started beyond a number."""
    pool = ThreadPoolExecutor(max_workers=4)
    monkeypatch.setattr(_threads, "_pool", lambda _: pool)
    start = threading.Thread.start

    def limit(n_threads):
        started = []

        def start_or_fail(thread):
            if len(started) == n_threads:
                raise RuntimeError("can't start new thread")
            started.append(thread)
            start(thread)

        monkeypatch.setattr(threading.Thread, "start", start_or_fail)
        return pool

    yield limit
    pool.shutdown()


@pytest.mark.parametrize("n_threads", [0, 1])
def test_where_no_thread_can_be_started_those_that_there_are_take_all_blocks(pool_of_few, n_threads):
    pool = pool_of_few(n_threads)
    visits = np.zeros(1003, dtype=int)

    def work(start, stop):
        visits[start:stop] += 1

    run_blocks(work, len(visits), 10, 4)
    assert (visits == 1).all()
    if n_threads == 0:  # what was handed over is in the pool's queue all the same, but holds nothing
        assert pool._work_queue.qsize() == 1
        gone = weakref.ref(work)
        del work
        gc.collect()
        assert gone() is None


def test_nothing_goes_on_after_an_error_where_threads_are_short(pool_of_few):
    pool = pool_of_few(1)
    busy, leave = threading.Event(), threading.Event()
    pool.submit(lambda: busy.set() or leave.wait(10))  # the one thread comes by when the call is over
    assert busy.wait(10)
    seen = []

    def work(start, stop):
        seen.append(start)
        raise ValueError("row 0 is no good")

    with pytest.raises(ValueError, match="row 0 is no good"):
        run_blocks(work, 100, 10, 3)
    assert pool._work_queue.qsize() == 1
    leave.set()
    pool.shutdown()
    assert seen == [0]


@contextlib.contextmanager
def held_elsewhere():
    """Hold in another thread meanwhile."""
    entered, leave = threading.Event(), threading.Event()

    def hold():
        with single_threaded_blas():
            entered.set()
            leave.wait(10)

    other = threading.Thread(target=hold)
    other.start()
    assert entered.wait(10)
    try:
        yield
    finally:
        leave.set()
        other.join()


@contextlib.contextmanager
def held_longer_elsewhere():
    """Hold in the calling thread, and in another one until after that."""
    with contextlib.ExitStack() as other, single_threaded_blas():
        other.enter_context(held_elsewhere())
        yield


def test_overlapping_holders_share_and_restore_the_blas_limit():
    with threadpool_limits(2, user_api="blas"):
        before = effective_n_threads()
        with held_elsewhere(), single_threaded_blas():
            assert effective_n_threads() == before  # what the user allowed, not what is held for the moment
        assert effective_n_threads() == before


@pytest.fixture
def openmp_library(monkeypatch):
    """An OpenBLAS whose limits are OpenMP's, each thread's own, in place of those that NumPy and SciPy use: FAISS's."""
    pytest.importorskip("faiss")
    found = map(_threads._Library, ThreadpoolController().select(user_api="blas").lib_controllers)
    library = next((library for library in found if library.is_per_thread), None)
    if library is None:
        # the wheels of some versions and systems have it within, where nothing can set its limit, ours included
        pytest.skip(
            "this FAISS loads no OpenBLAS made with OpenMP as a library of its own, so there is no limit to hold"
        )
    monkeypatch.setattr(_threads, "_blas_libraries", lambda process_id: {False: [], True: [library]})
    _threads._pool.cache_clear()
    before, library.limit = library.limit, 2
    yield library
    library.limit = before
    _threads._pool.cache_clear()


def test_the_last_holder_restores_what_another_thread_found():
    with threadpool_limits(2, user_api="blas"):
        before = blas_limits()
        with held_longer_elsewhere():
            assert {library.limit for library in _threads._held.libraries} <= {1}
        assert blas_limits() == before
        assert effective_n_threads() == 2


def test_each_thread_holds_and_restores_its_own_limit_of_openmp(openmp_library):
    with held_longer_elsewhere():
        assert openmp_library.limit == 1
        assert effective_n_threads() == 2
    assert openmp_library.limit == effective_n_threads() == 2


def test_openmp_beside_numpys_library_is_left_alone():
    pytest.importorskip("faiss")
    _threads._blas_libraries.cache_clear()
    of_process, own = _threads._held.libraries, _threads._own.held.libraries
    assert not (of_process and own)  # both, were FAISS's held; only the second where NumPy's is made with OpenMP, too
    assert all(not library.is_per_thread for library in of_process)


def test_holding_leaves_other_threads_free_to_set_limits():
    """threadpoolctl 3.8 lets only one thread set them until it is done, the first that did."""

    def count():
        with threadpool_limits(1, user_api="blas"):
            return effective_n_threads()

    with single_threaded_blas():
        pass
    before = effective_n_threads()
    with ThreadPoolExecutor(1) as executor:
        assert executor.submit(count).result() == 1
    assert effective_n_threads() == before


# a child that is not forked, as on Windows, begins with limits of its own
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork, so no child inherits a limit")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_child_is_not_left_at_one_thread_by_a_block_of_its_parent():
    with threadpool_limits(2, user_api="blas"):
        before = effective_n_threads(), blas_limits()
        with held_longer_elsewhere():
            child = os.fork()
            if child == 0:
                is_restored = False
                try:
                    is_restored = before == (effective_n_threads(), blas_limits())
                finally:
                    os._exit(0 if is_restored else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_threads_of_the_pool_multiply_by_one_thread_each(openmp_library):
    limits = {}
    both = threading.Barrier(2, timeout=10)

    def work(start, stop):
        both.wait()
        limits[threading.get_ident()] = openmp_library.limit

    with single_threaded_blas():
        run_blocks(work, 2, 1, 2)
    assert len(limits) == 2
    assert set(limits.values()) == {1}


def test_a_choice_of_threads_is_that_of_one_thread():
    with threadpool_limits(2, user_api="blas"):
        before = effective_n_threads()
        entered, leave = threading.Event(), threading.Event()
        seen = []

        def choose():
            with exactly_n_threads(5):
                entered.set()
                leave.wait(10)
                seen.append(effective_n_threads())

        other = threading.Thread(target=choose)
        other.start()
        assert entered.wait(10)
        assert effective_n_threads() == before
        with exactly_n_threads(1):
            leave.set()
            other.join()
            assert effective_n_threads() == 1
        assert seen == [5]
        assert effective_n_threads() == before


@pytest.mark.parametrize(
    ("n_rows", "block_rows"), [(1_000, 1_024), (3_600, 1_200)], ids=["too few for several", "shared evenly"]
)
def test_packing_takes_the_threads_that_encoding_takes(fitted, embeddings, monkeypatch, n_rows, block_rows):
    rows = np.tile(embeddings, (9, 1))[:n_rows]
    with exactly_n_threads(1):
        expected = fitted.transform_packed(rows)
    shares = []

    def run_and_note(work, n_rows, block_size, n_threads):
        shares.append((n_rows, block_size, n_threads))
        run_blocks(work, n_rows, block_size, n_threads)

    monkeypatch.setattr(_rows, "run_blocks", run_and_note)
    with exactly_n_threads(3):
        assert fitted.transform_packed(rows) == expected
    assert shares == [(n_rows, block_rows, 3)]


def interrupted_at(number, module, call):
    """Call, and interrupt it at the `number`-th moment at which Python looks for signals; tell whether it has so many.

    They are the start of a function and the return of one in C; here those in `module` and in what it is made of.
    """
    files = {module.__file__, contextlib.__file__, _weakrefset.__file__}
    n_left = number

    def profile(frame, event, _):
        nonlocal n_left
        if event in ("call", "c_return") and frame.f_code.co_filename in files:
            n_left -= 1
            if n_left == 0:
                raise KeyboardInterrupt

    sys.setprofile(profile)
    try:
        call()
    except KeyboardInterrupt:
        pass
    finally:
        sys.setprofile(None)
    return n_left <= 0


def blas_limits():
    libraries = [library for library in threadpool_info() if library["user_api"] == "blas"]
    return [library["num_threads"] for library in libraries if library["threading_layer"] != "openmp"]


def test_no_interrupt_leaves_the_blas_library_at_one_thread():
    def hold():
        with single_threaded_blas(), single_threaded_blas():
            assert set(blas_limits()) <= {1}

    with threadpool_limits(3, user_api="blas"):
        before, number = blas_limits(), 1
        while interrupted_at(number, _threads, hold):
            assert effective_n_threads() == 3
            assert blas_limits() == before
            number += 1
        assert number > 30


@pytest.mark.parametrize("enter", [lambda: _torch_threads.torch_threads(1), _torch_threads.hold_torch_threads])
def test_no_interrupt_leaves_torch_at_one_thread(enter):
    def hold():
        with enter(), _torch_threads.torch_threads(1):
            assert torch.get_num_threads() == 1

    before, number = torch.get_num_threads(), 1
    torch.set_num_threads(3)
    try:
        while interrupted_at(number, _torch_threads, hold):
            with _torch_threads.hold_torch_threads():
                assert torch.get_num_threads() == 3
            assert torch.get_num_threads() == 3
            number += 1
        assert number > 20
    finally:
        torch.set_num_threads(before)
