"""Where compiled kernels cannot be kept."""

import warnings
from types import SimpleNamespace

import numba
import numpy as np
import pytest

from skcompressae._core import _compiling
from skcompressae._core._compiling import njit, readable


def refuse_to_cache(monkeypatch, message):
    def compile_(**options):
        if options.pop("cache", False):
            raise RuntimeError(message)
        return numba.njit(**options)

    monkeypatch.setattr(_compiling, "numba", SimpleNamespace(njit=compile_))
    monkeypatch.setattr(_compiling, "_refused", [])


def double(x):
    return 2 * x


def test_kernels_are_kept_on_disk():
    assert njit(nogil=True)(double).stats.cache_path


def test_without_a_writable_folder_kernels_are_compiled_for_this_process(monkeypatch):
    refuse_to_cache(monkeypatch, "cannot cache function 'double': no locator available for file 'x.py'")
    with pytest.warns(RuntimeWarning, match="NUMBA_CACHE_DIR") as caught:
        kernel = njit(nogil=True)(double)
    assert caught[0].filename == __file__
    assert kernel(21) == 42
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # once a process
        assert njit()(double)(3) == 6


def test_kernels_within_kernels_are_compiled_once_for_numbers_of_a_type(monkeypatch):
    plus_one = njit()(lambda number: number + 1)

    def count(n):
        total = 0
        for _ in range(n):
            total = plus_one(total)
        return total + plus_one(1)

    assert njit()(count)(5) == 7
    assert [str(types) for types in plus_one.signatures] == ["(int64,)"]
    # Numba's own way, else there is nothing to mend
    monkeypatch.setattr(_compiling, "_take_constants_as_numbers", lambda kernel: kernel)
    plus_one = njit()(lambda number: number + 1)
    assert numba.njit(count)(5) == 7
    assert len(plus_one.signatures) > 1


def test_plain_functions_are_left_alone(monkeypatch):
    """As with NUMBA_DISABLE_JIT, for debuggers and coverage."""
    monkeypatch.setattr(_compiling, "numba", SimpleNamespace(njit=lambda **_: lambda function: function))
    assert njit()(double) is double


def test_other_errors_of_the_compiler_are_raised(monkeypatch):
    refuse_to_cache(monkeypatch, "out of memory")
    with pytest.raises(RuntimeError, match="out of memory"):
        njit()(double)


def test_read_only_arrays_are_lent_to_kernels_as_they_are(tmp_path):
    array = np.arange(12.0).reshape(3, 4)
    assert readable(array) is array
    np.save(tmp_path / "array.npy", array)
    total = njit()(lambda rows: rows[1:].sum())
    for kept in (np.load(tmp_path / "array.npy", mmap_mode="r"), np.load(tmp_path / "array.npy", mmap_mode="r")[::2]):
        lent = readable(kept)
        assert type(lent) is np.ndarray
        assert lent.flags.writeable
        assert np.shares_memory(lent, kept)
        assert lent.strides == kept.strides
        assert not kept.flags.writeable
        assert total(lent) == kept[1:].sum()
    del kept
    np.testing.assert_array_equal(lent, array[::2])  # it keeps the map


def test_lent_arrays_share_a_signature():
    array = np.arange(4.0)
    array.setflags(write=False)
    double = njit()(lambda x: 2 * x[0])
    assert double(readable(array)) == double(np.ones(4)) - 2
    assert len(double.signatures) == 1
