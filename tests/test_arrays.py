"""Arrays that begin where a line of the cache does."""

import numpy as np
import pytest

from skcompressae import CompresSAETransformer, load_model
from skcompressae._core._arrays import aligned, aligned_empty


def is_aligned(array):
    return array.ctypes.data % 64 == 0


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int16, np.uint32])
@pytest.mark.parametrize("shape", [(7,), (0, 4), (16384,), (300, 60), (20, 30, 40), (1000, 768)])
def test_an_empty_array_is_as_asked_for(shape, dtype):
    array = aligned_empty(shape, dtype)
    assert (array.shape, array.dtype) == (shape, np.dtype(dtype))
    assert is_aligned(array) or array.nbytes < 2**14
    assert array.flags.c_contiguous
    assert array.flags.writeable


@pytest.mark.parametrize("offset", range(0, 17, 4))
def test_only_what_is_not_aligned_is_copied(offset):
    memory = aligned_empty((5000,), np.float32)
    memory[:] = np.arange(5000)
    array = memory[offset : offset + 4200].reshape(70, 60)
    found = aligned(array)
    assert (found is array) == (offset % 16 == 0)
    assert is_aligned(found)
    np.testing.assert_array_equal(found, array)


def test_small_arrays_are_left_where_they_are():
    array = aligned_empty((5000,), np.float32)[1:33]
    assert aligned(array) is array


def test_another_order_is_copied():
    array = np.asfortranarray(np.arange(12.0).reshape(3, 4))
    found = aligned(array)
    assert found.flags.c_contiguous
    np.testing.assert_array_equal(found, array)


def test_a_fitted_model_is_aligned_and_any_other_encodes_alike(tmp_path):
    X = np.random.RandomState(0).standard_normal((4200, 80)).astype(np.float32)
    compressor = CompresSAETransformer(n_components=64, k=4, max_iter=5, n_refits=1, device="cpu", random_state=0).fit(
        X
    )
    assert is_aligned(compressor.components_)
    assert is_aligned(compressor.encoder_weights_)
    path = tmp_path / "model.safetensors"
    compressor.save(path)
    assert is_aligned(load_model(path).components_)
    codes = compressor.transform(X)
    memory = np.empty(64 * 80 + 1, dtype=np.float32)
    shifted = memory[1:].reshape(64, 80)
    shifted[...] = compressor.components_
    compressor.components_ = shifted
    found = compressor.transform(X)
    np.testing.assert_array_equal(found.indices, codes.indices)
    np.testing.assert_array_equal(found.data, codes.data)
    assert compressor.components_ is shifted
