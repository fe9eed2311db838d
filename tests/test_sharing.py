"""One fitted compressor used by many threads and processes at once: each gets the codes that it would get alone."""

import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import joblib
import numpy as np
import pytest
import scipy.sparse as sp
from conftest import make_embeddings
from joblib import Parallel, delayed
from numba.core.registry import CPUDispatcher
from threadpoolctl import threadpool_limits

from skcompressae import CodeNearestNeighbors, CompresSAETransformer, load_model, model_hash

N_THREADS = 4


@pytest.fixture(scope="module")
def rows():
    return make_embeddings(n_rows=600, n_features=24, seed=1)


def digest_of(codes):
    dense = codes.toarray() if hasattr(codes, "toarray") else codes
    return np.asarray(dense).tobytes()


def use(model, X):
    """Call every method that reads a fitted model; return what came as bytes."""
    codes = model.transform(X)
    return [
        digest_of(codes),
        digest_of(model.transform_query(X, n_nonzero=7)),
        digest_of(model.transform_packed(X).to_csr()),
        digest_of(model.inverse_transform(codes)),
        model.score(X),
        model_hash(model),
    ]


@pytest.mark.parametrize(
    "parameters",
    [{}, {"coding": "pursuit", "sparse_output": False}, {"coding": "activations", "precision": "bfloat16"}],
)
def test_threads_share_a_model(fitted, rows, parameters):
    model = CompresSAETransformer(**{**fitted.get_params(), **parameters})
    vars(model).update({name: value for name, value in vars(fitted).items() if name.endswith("_")})
    state = {name: value.copy() for name, value in vars(model).items() if isinstance(value, np.ndarray)}
    # blocks of several sizes, so that threads are in different methods at the same time
    blocks = [rows[start : start + size] for size in (7, 100, 250) for start in (0, 250)]
    expected = [use(model, block) for block in blocks]
    barrier = threading.Barrier(N_THREADS)

    def work(number):
        barrier.wait()
        order = np.random.RandomState(number).permutation(len(blocks))
        return {i: use(model, blocks[i]) for i in order}

    with ThreadPoolExecutor(N_THREADS) as threads:
        for found in threads.map(work, range(N_THREADS)):
            assert [found[i] for i in range(len(blocks))] == expected
    for name, array in state.items():
        np.testing.assert_array_equal(getattr(model, name), array, err_msg=name)


def test_threads_save_and_load_while_others_encode(fitted, rows, tmp_path):
    path = tmp_path / "model"
    fitted.save(path)
    expected = use(fitted, rows)

    def work(number):
        for _ in range(3):
            if number % 2:
                fitted.save(path)
            else:
                assert use(load_model(path), rows) == expected

    with ThreadPoolExecutor(N_THREADS) as threads:
        list(threads.map(work, range(N_THREADS)))
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


def test_processes_share_a_model_and_its_file(fitted, rows, tmp_path):
    path = tmp_path / "model"
    fitted.save(path)
    with threadpool_limits(1):  # as in the workers: how a product of BLAS is rounded may depend on its threads
        expected = use(fitted, rows)

    def load_and_use(path, X):
        return use(load_model(path), X)

    workers = Parallel(n_jobs=2, max_nbytes=1000)  # the weights go as read-only memory maps
    for found in workers(delayed(use)(fitted, rows) for _ in range(2)):
        assert found == expected
    for found in workers(delayed(load_and_use)(path, rows) for _ in range(2)):
        assert found == expected


def compiled_signatures():
    """Count for how many types of arguments each kernel has been compiled or loaded."""
    modules = [module for name, module in list(sys.modules.items()) if name.startswith("skcompressae._core.")]
    kernels = {kernel for module in modules for kernel in vars(module).values() if isinstance(kernel, CPUDispatcher)}
    return {f"{kernel.__module__}.{kernel.__name__}": len(kernel.signatures) for kernel in kernels}


def read_only(array):
    copy = np.array(array)
    copy.setflags(write=False)
    return copy


def read_only_codes(codes):
    return sp.csr_array(tuple(map(read_only, (codes.data, codes.indices, codes.indptr))), shape=codes.shape)


def use_and_search(model, X, folder, *, mmap):
    """Use a model and an index that is saved and loaded; return what came."""
    codes = model.transform(X)
    codes = read_only_codes(codes) if mmap else codes
    found = [*use(model, X), digest_of(model.transform(X[:1])), digest_of(model.inverse_transform(codes))]
    for mode, queries in (("asymmetric", X), ("sparse", codes)):
        for documents in (codes, model.transform_packed(X)):
            path = folder / f"{mode}-{mmap}-{len(found)}"
            CodeNearestNeighbors(compressor=model, mode=mode).fit(documents).save(path)
            index = CodeNearestNeighbors.load(path, compressor=model, mmap=mmap)
            for n_queries in (1, 100):
                found.append([array.tobytes() for array in index.kneighbors(queries[:n_queries])])
    return found


@pytest.mark.parametrize("coding", ["pursuit", "activations"])
def test_read_only_arrays_take_the_same_kernels(fitted, rows, coding, tmp_path):
    model = CompresSAETransformer(**{**fitted.get_params(), "coding": coding})
    vars(model).update({name: value for name, value in vars(fitted).items() if name.endswith("_")})
    expected = use_and_search(model, rows, tmp_path, mmap=False)
    before = compiled_signatures()
    assert before["skcompressae._core._rows.divide_by_norms"] > 0
    for name, value in vars(model).items():
        if isinstance(value, np.ndarray):
            setattr(model, name, read_only(value))
    assert use_and_search(model, read_only(rows), tmp_path, mmap=True) == expected
    assert compiled_signatures() == before


def test_an_index_that_joblib_maps_takes_the_same_kernels(fitted, rows, tmp_path):
    """By codes, packed codes and residual codes; and joblib finds the maps again, so that nothing is written twice."""
    packed = fitted.transform_packed(rows)
    hybrid = packed.with_residual_of(rows, fitted.components_, n_bytes=4, n_iter=2, normalize=False)
    indexes = [
        CodeNearestNeighbors(compressor=fitted, mode="sparse").fit(packed),
        CodeNearestNeighbors(compressor=fitted).fit(fitted.transform(rows)),
        CodeNearestNeighbors(compressor=fitted).fit(packed),
        CodeNearestNeighbors(compressor=fitted, rerank=20).fit(hybrid),
        CodeNearestNeighbors(compressor=fitted, rerank=len(rows)).fit(hybrid[::2]).partial_fit(hybrid[::-2]),
    ]

    def search(index):
        found = [index.kneighbors(rows[:n]) for n in (1, 100)]
        return [array.tobytes() for pair in found for array in pair] + [index.radius_neighbors(rows[:2], 0.9)[1][0]]

    joblib.dump(indexes, tmp_path / "indexes")
    expected = [search(index) for index in indexes]
    before = compiled_signatures()
    mapped = joblib.load(tmp_path / "indexes", mmap_mode="r")
    for index, wanted in zip(mapped, expected, strict=True):
        for found, array in zip(search(index), wanted, strict=True):
            np.testing.assert_array_equal(found, array)
    assert compiled_signatures() == before
    values = mapped[1]._chunks[0].store.values
    while not isinstance(values, np.memmap):
        values = values.base
    assert not values.flags.writeable
