"""Search on a torch device finds what the kernels find."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from neighbor_cases import (
    N_COMPONENTS,
    N_FEATURES,
    fitted_compressor,
    random_codes,
)
from scipy.sparse import csr_matrix

from skcompressae._core._search_store import PackedStore, PostingStore, RowStore, make_chunk
from skcompressae._neighbors import CodeNearestNeighbors
from skcompressae._torch._search import DeviceIndex
from skcompressae.packed import PackedCodes


def device_cases(kind, is_packed=False):
    rng = np.random.default_rng(25)
    dtype = np.float32
    if kind == "ties":
        codes = csr_matrix(rng.choice([-1.0, 0.0, 0.0, 1.0], (300, 4)).astype(dtype))
        targets = rng.choice([-1.0, 1.0], (4, 21)).astype(dtype)
    else:
        codes = random_codes(rng, 300, dtype=dtype)
        targets = rng.standard_normal((N_COMPONENTS, 21)).astype(dtype)
    bounds = [0, 130, 300]
    stores = (PackedStore(PackedCodes.pack(codes[a:b])) if is_packed else RowStore.from_csr(codes[a:b])
              for a, b in pairwise(bounds))  # fmt: skip
    chunks = [make_chunk(store, metric="cosine") for store in stores]
    return chunks, targets, rng.integers(-1, 300, 21)


def torch_devices():
    return ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA"))]


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta state")
@pytest.mark.parametrize("kind", ["random", "ties"])
@pytest.mark.parametrize("device", torch_devices())
@pytest.mark.parametrize("n_neighbors", [1, 20, 299])
@pytest.mark.parametrize("is_packed", [False, True])
def test_a_torch_device_finds_what_the_kernels_find(kind, device, n_neighbors, is_packed):
    from skcompressae._core._search import search

    chunks, targets, exclude = device_cases(kind, is_packed)
    scores, rows = DeviceIndex(chunks, device).search(targets, n_neighbors, exclude=exclude)
    expected_scores, expected_rows = search(chunks, targets, n_neighbors, exclude=exclude)
    np.testing.assert_array_equal(rows, expected_rows)
    # words are in another order than the columns they unpack to, so float64 sums differ in their last digit
    np.testing.assert_allclose(scores, expected_scores, rtol=1e-14 if is_packed else 0)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta state")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
@pytest.mark.parametrize("mode", ["sparse", "reconstructed", "asymmetric"])
def test_cuda_equals_cpu(mode):
    rng = np.random.default_rng(26)
    documents, compressor = random_codes(rng, 500, dtype=np.float32), fitted_compressor("float32")
    embeddings = rng.standard_normal((50, N_FEATURES)).astype(np.float32)
    found = [
        CodeNearestNeighbors(9, compressor=compressor, mode=mode, device=device).fit(documents).kneighbors(embeddings)
        for device in ("cpu", "cuda")
    ]
    np.testing.assert_array_equal(found[0][1], found[1][1])
    np.testing.assert_allclose(found[0][0], found[1][0], atol=1e-6)


def test_an_index_is_of_the_device_that_was_current(monkeypatch):
    current = [1]
    monkeypatch.setattr(torch.cuda, "current_device", lambda: current[0])
    monkeypatch.setattr(DeviceIndex, "_upload", lambda self, chunk, start, stop: (None, None))
    chunks, _, _ = device_cases("random")
    index = DeviceIndex(chunks, "cuda")
    assert index.device == torch.device("cuda:1")
    assert index.holds(chunks, "cuda")
    assert index.holds(list(chunks), "cuda:1")
    assert not index.holds(chunks[:1], "cuda")
    assert not index.holds(chunks[::-1], "cuda")
    current[0] = 0
    assert not index.holds(chunks, "cuda")


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta state")
def test_an_index_of_documents_that_were_there_before_is_not_used(monkeypatch):
    """A search that runs beside `partial_fit` may leave one."""
    monkeypatch.setattr(CodeNearestNeighbors, "_device", lambda self: "cpu:0")
    documents = random_codes(np.random.default_rng(27), 10, dtype=np.float32)
    index = CodeNearestNeighbors(1).fit(documents[:5])
    index.kneighbors(documents)
    before = index._device_index
    index.kneighbors(documents)
    assert index._device_index is before
    index.partial_fit(documents[5:])
    index._device_index = before
    found = index.kneighbors(documents, return_distance=False)
    monkeypatch.undo()
    expected = CodeNearestNeighbors(1).fit(documents).kneighbors(documents, return_distance=False)
    np.testing.assert_array_equal(found, expected)
    assert expected.max() > 4


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is there")
def test_without_cuda():
    documents = random_codes(np.random.default_rng(27), 10)
    with pytest.raises(ValueError, match="device='cuda' was asked for, but torch finds no CUDA device"):
        CodeNearestNeighbors(device="cuda").fit(documents)
    index = CodeNearestNeighbors(2, device="auto").fit(documents)
    assert isinstance(index._chunks[0].store, PostingStore)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta state")
@pytest.mark.parametrize("is_packed", [False, True])
@pytest.mark.parametrize("mode", ["sparse", "reconstructed", "asymmetric"])
def test_an_index_may_move_to_another_device(monkeypatch, tmp_path, mode, is_packed):
    """Fitted, added to, saved and searched here and there, in any order; a torch device of the CPU plays the GPU."""
    rng = np.random.default_rng(28)
    there = [False]
    monkeypatch.setattr(CodeNearestNeighbors, "_device", lambda self: "cpu:0" if there[0] else "cpu")
    compressor = fitted_compressor("float32")
    documents = random_codes(rng, 300, dtype=np.float32)
    documents = PackedCodes.pack(documents) if is_packed else documents
    queries = rng.standard_normal((20, N_FEATURES)).astype(np.float32)
    parameters = {"n_neighbors": 9, "compressor": compressor, "mode": mode, "device": "auto"}
    expected = CodeNearestNeighbors(**parameters).fit(documents).kneighbors(queries)
    for first in (False, True):
        there[0] = first
        index = CodeNearestNeighbors(**parameters).fit(documents[:200])
        there[0] = not first
        index.partial_fit(documents[200:])
        index.save(tmp_path / "index")
        for moved in (False, True):
            there[0] = moved
            for other in (index, CodeNearestNeighbors.load(tmp_path / "index", compressor=compressor)):
                distances, indices = other.kneighbors(queries)
                np.testing.assert_array_equal(indices, expected[1])
                np.testing.assert_allclose(distances, expected[0], atol=1e-6)
                assert len(other.radius_neighbors(queries, radius=0.9)[1]) == len(queries)
                assert other.set_params(device="cpu").kneighbors(queries)[1].shape == (20, 9)
                other.set_params(device="auto")
