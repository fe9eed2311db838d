"""`CodeNearestNeighbors` against brute force in float64, scikit-learn, and its own files."""

from __future__ import annotations

import importlib.util
import json
import pickle
import struct
import tracemalloc
import zlib
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csc_matrix, csr_array, csr_matrix, issparse
from sklearn.base import BaseEstimator, TransformerMixin, clone
from sklearn.cluster import DBSCAN
from sklearn.exceptions import NotFittedError
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

from skcompressae._core._search_store import PostingStore, RowStore, make_chunk
from skcompressae._neighbors import CodeNearestNeighbors
from skcompressae._torch._search import DeviceIndex
from skcompressae.exceptions import CodesFormatError

N_COMPONENTS, N_FEATURES = 40, 12


class Compressor(TransformerMixin, BaseEstimator):
    """Keep the `k` largest products with the atoms: a stand-in with the interface of the real one."""

    def __init__(self, k=4, dtype="float64"):
        self.k = k
        self.dtype = dtype

    def fit(self, X, y=None):
        atoms = np.random.default_rng(0).standard_normal((N_COMPONENTS, N_FEATURES))
        self.components_ = (atoms / np.linalg.norm(atoms, axis=1, keepdims=True)).astype(self.dtype)
        return self

    def transform(self, X):
        products = X @ self.components_.T
        small = np.argsort(-np.abs(products), axis=1)[:, self.k :]
        np.put_along_axis(products, small, 0.0, axis=1)
        return csr_matrix(products)


def fitted_compressor(dtype="float64"):
    return Compressor(dtype=dtype).fit(None)


def random_codes(rng, n_rows, n_components=N_COMPONENTS, dtype=np.float64, longest=6):
    """Ragged rows, some of them empty."""
    dense = np.zeros((n_rows, n_components), dtype)
    for row in dense:
        columns = rng.choice(n_components, rng.integers(0, longest + 1), replace=False)
        row[columns] = rng.standard_normal(len(columns))
    return csr_matrix(dense)


def brute_force(queries, documents, metric):
    """Return float64 distances between dense rows, zero rows as scikit-learn's cosine has them."""
    queries, documents = np.asarray(queries, np.float64), np.asarray(documents, np.float64)
    if metric == "dot":
        return -(queries @ documents.T)
    unit = [v / np.maximum(np.linalg.norm(v, axis=1, keepdims=True), 1e-300) for v in (queries, documents)]
    return np.clip(1.0 - unit[0] @ unit[1].T, 0.0, 2.0)


def check_neighbors(expected, distances, indices, n_neighbors, atol=1e-12):
    """The distances are the smallest ones, belong to their indices, and ties do not repeat an index."""
    np.testing.assert_allclose(distances, np.sort(expected, axis=1)[:, :n_neighbors], rtol=0, atol=atol)
    np.testing.assert_allclose(distances, np.take_along_axis(expected, indices, axis=1), rtol=0, atol=atol)
    assert all(len(set(row)) == n_neighbors for row in indices)


@parametrize_with_checks([CodeNearestNeighbors(n_neighbors=2)])
def test_scikit_learn_checks(estimator, check):
    check(estimator)


# ------------------------------------------------------------------------------------------------- exactness
@pytest.mark.parametrize("metric", ["cosine", "dot"])
@pytest.mark.parametrize("mode", ["sparse", "reconstructed", "asymmetric"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n_queries", [1, 50])
def test_all_modes_equal_brute_force(mode, metric, dtype, n_queries):
    rng = np.random.default_rng(1)
    compressor = fitted_compressor(dtype)
    documents = random_codes(rng, 120, dtype=dtype)
    embeddings = rng.standard_normal((n_queries, N_FEATURES)).astype(dtype)
    index = CodeNearestNeighbors(7, compressor=compressor, mode=mode, metric=metric, batch_size=33)
    index.fit(documents)
    decoder = compressor.components_.astype(np.float64)
    codes = compressor.transform(embeddings).toarray().astype(np.float64)
    left, right = {
        "sparse": (codes, documents.toarray()),
        "reconstructed": (codes @ decoder, documents @ decoder),
        "asymmetric": (embeddings, documents @ decoder),
    }[mode]
    distances, indices = index.kneighbors(embeddings)
    assert distances.dtype == dtype
    assert indices.dtype == np.int64
    expected = brute_force(left, right, metric)
    check_neighbors(expected, distances, indices, 7, atol=1e-12 if dtype == "float64" else 5e-6)
    if mode != "asymmetric":
        again = index.kneighbors(compressor.transform(embeddings))
        np.testing.assert_array_equal(again[0], distances)
        np.testing.assert_array_equal(again[1], indices)


def test_the_kernel_trick_equals_explicit_decoding():
    """To 1e-5 relative in float32, distance by distance."""
    rng = np.random.default_rng(2)
    compressor = fitted_compressor("float32")
    documents = compressor.transform(rng.standard_normal((200, N_FEATURES)).astype(np.float32))
    queries = compressor.transform(rng.standard_normal((20, N_FEATURES)).astype(np.float32))
    decoder = compressor.components_.astype(np.float64)
    explicit = brute_force(queries @ decoder, documents @ decoder, "dot")
    index = CodeNearestNeighbors(200, compressor=compressor, mode="reconstructed", metric="dot")
    distances, indices = index.fit(documents).kneighbors(queries)
    expected = np.take_along_axis(explicit, indices, axis=1)
    np.testing.assert_allclose(distances, expected, rtol=1e-5, atol=1e-5 * np.abs(explicit).mean())


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 2**32 - 1),
    n_documents=st.integers(1, 40),
    n_queries=st.integers(0, 40),
    mode=st.sampled_from(["sparse", "reconstructed"]),
    metric=st.sampled_from(["cosine", "dot"]),
    n_jobs=st.integers(1, 2),
    data=st.data(),
)
def test_any_ragged_codes_equal_brute_force(seed, n_documents, n_queries, mode, metric, n_jobs, data):
    rng = np.random.default_rng(seed)
    documents = random_codes(rng, n_documents, 7, longest=4)
    documents = documents[rng.integers(0, n_documents, n_documents)]  # duplicates
    queries = random_codes(rng, n_queries, 7, longest=4)
    decoder = rng.standard_normal((7, 3))
    n_neighbors = data.draw(st.integers(1, n_documents))
    compressor = None if mode == "sparse" else decoder
    index = CodeNearestNeighbors(n_neighbors, compressor=compressor, mode=mode, metric=metric, n_jobs=n_jobs).fit(
        documents
    )
    distances, indices = index.kneighbors(queries)
    assert distances.shape == indices.shape == (n_queries, n_neighbors)
    left, right = (queries.toarray(), documents.toarray())
    if mode == "reconstructed":
        left, right = left @ decoder, right @ decoder
    check_neighbors(brute_force(left, right, metric), distances, indices, n_neighbors, atol=1e-9)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_sparse_mode_equals_scikit_learn(dtype):
    rng = np.random.default_rng(3)
    documents, queries = random_codes(rng, 300, dtype=dtype), random_codes(rng, 40, dtype=dtype)
    peer = NearestNeighbors(n_neighbors=12, metric="cosine", algorithm="brute").fit(documents)
    index = CodeNearestNeighbors(12).fit(documents)
    for X in (queries, None):
        expected, _ = peer.kneighbors(X)
        distances, _ = index.kneighbors(X)
        assert distances.dtype == expected.dtype
        np.testing.assert_allclose(distances, expected, rtol=0, atol=1e-6 if dtype == "float32" else 1e-12)


def test_equal_distances_come_in_the_order_of_the_documents():
    documents = csr_matrix(np.array([[1.0, 0], [0, 1], [2, 0], [0, 0], [1, 0], [0, 3]]))
    index = CodeNearestNeighbors(6).fit(documents)
    distances, indices = index.kneighbors(np.array([[1.0, 0], [0, 0]]))
    np.testing.assert_array_equal(indices, [[0, 2, 4, 1, 3, 5], [0, 1, 2, 3, 4, 5]])
    np.testing.assert_array_equal(distances, [[0, 0, 0, 1, 1, 1], [1, 1, 1, 1, 1, 1]])


@pytest.mark.parametrize("metric", ["cosine", "dot"])
@pytest.mark.parametrize("mode", ["sparse", "reconstructed"])
def test_without_queries_a_document_is_not_its_own_neighbor(mode, metric):
    rng = np.random.default_rng(4)
    documents = random_codes(rng, 60)[rng.integers(0, 30, 90)]
    decoder = fitted_compressor().components_
    index = CodeNearestNeighbors(9, compressor=decoder, mode=mode, metric=metric, batch_size=7)
    index.fit(documents[:50]).partial_fit(documents[50:])
    vectors = documents.toarray() if mode == "sparse" else documents @ decoder
    expected = brute_force(vectors, vectors, metric)
    np.fill_diagonal(expected, np.inf)
    distances, indices = index.kneighbors()
    check_neighbors(expected, distances, indices, 9)


def test_a_document_has_distance_zero_to_itself_in_float32():
    documents = random_codes(np.random.default_rng(5), 50, dtype=np.float32, longest=20)
    documents = documents[documents.getnnz(axis=1) > 0]
    distances, indices = CodeNearestNeighbors(1).fit(documents).kneighbors(documents)
    np.testing.assert_array_equal(indices[:, 0], np.arange(documents.shape[0]))
    assert distances.max() < 1e-7


@pytest.mark.parametrize("metric", ["cosine", "dot"])
@pytest.mark.parametrize("mode", ["sparse", "reconstructed", "asymmetric"])
def test_radius_neighbors_equal_brute_force(mode, metric):
    rng = np.random.default_rng(6)
    compressor = fitted_compressor()
    documents, embeddings = random_codes(rng, 90), rng.standard_normal((40, N_FEATURES))
    codes = compressor.transform(embeddings)
    decoder = compressor.components_
    left, right = {
        "sparse": (codes.toarray(), documents.toarray()),
        "reconstructed": (codes @ decoder, documents @ decoder),
        "asymmetric": (embeddings, documents @ decoder),
    }[mode]
    expected = brute_force(left, right, metric)
    radius = 0.85 if metric == "cosine" else -0.2
    index = CodeNearestNeighbors(compressor=compressor, mode=mode, metric=metric, radius=radius, batch_size=16)
    distances, indices = index.fit(documents).radius_neighbors(embeddings)
    assert sum(map(len, indices)) > 100
    for query in range(40):
        near = np.flatnonzero(expected[query] <= radius)
        np.testing.assert_array_equal(np.sort(indices[query]), near)
        np.testing.assert_allclose(distances[query], np.sort(expected[query, near]), rtol=0, atol=1e-12)
    graph = index.radius_neighbors_graph(embeddings, mode="distance")
    assert graph.nnz == sum(map(len, indices))
    np.testing.assert_allclose(graph.toarray(), np.where(expected <= radius, expected, 0.0), atol=1e-12)
    np.testing.assert_array_equal(
        index.radius_neighbors_graph(embeddings).toarray(), (expected <= radius).astype(float)
    )


def test_radius_neighbors_of_the_documents_leave_themselves_out():
    documents = random_codes(np.random.default_rng(7), 30)
    index = CodeNearestNeighbors(radius=2.0).fit(documents)
    indices = index.radius_neighbors(return_distance=False)
    for document in range(30):
        np.testing.assert_array_equal(np.sort(indices[document]), np.delete(np.arange(30), document))


# ------------------------------------------------------------------------------------------------- input
def test_messy_csr_is_put_in_order_without_touching_it():
    """Row 0 is [2, 0, 3] out of order; row 1 is [0, 4, 0] in two parts."""
    data, columns, starts = [3.0, 2.0, 1.0, 3.0], [2, 0, 1, 1], [0, 2, 4]
    messy = csr_matrix((data, columns, starts), shape=(2, 3))
    index = CodeNearestNeighbors(2).fit(messy)
    np.testing.assert_array_equal(messy.indices, columns)
    np.testing.assert_array_equal(messy.data, data)
    clean = csr_matrix(np.array([[2.0, 0, 3], [0, 4, 0]]))
    query = csr_matrix(([1.0, 1.0], [1, 0], [0, 2]), shape=(1, 3))
    expected = CodeNearestNeighbors(2).fit(clean).kneighbors(query)
    np.testing.assert_array_equal(index.kneighbors(query), expected)
    np.testing.assert_array_equal(query.indices, [1, 0])


@pytest.mark.parametrize("form", [csr_matrix, csr_array, csc_matrix, np.asarray])
@pytest.mark.parametrize("compressed", [False, True])
def test_every_form_of_codes_gives_the_same_index(form, compressed):
    codes = random_codes(np.random.default_rng(8), 20).toarray()
    decoder = fitted_compressor().components_ if compressed else None
    expected = CodeNearestNeighbors(3, compressor=decoder).fit(csr_matrix(codes)).kneighbors(csr_matrix(codes))
    index = CodeNearestNeighbors(3, compressor=decoder).fit(form(codes))
    np.testing.assert_array_equal(index.kneighbors(form(codes)), expected)


def test_integer_codes_become_float64():
    index = CodeNearestNeighbors(1, metric="dot").fit(np.array([[1, 2], [3, 0]]))
    distances, _ = index.kneighbors(np.array([[1, 1]]))
    assert distances.dtype == np.float64
    assert distances.item() == -3.0


def test_no_queries_give_no_neighbors():
    compressor = fitted_compressor()
    documents = random_codes(np.random.default_rng(9), 10)
    for mode in ("sparse", "reconstructed", "asymmetric"):
        index = CodeNearestNeighbors(3, compressor=compressor, mode=mode).fit(documents)
        distances, indices = index.kneighbors(np.empty((0, N_FEATURES)))
        assert distances.shape == indices.shape == (0, 3)
        assert index.radius_neighbors(np.empty((0, N_FEATURES)), return_distance=False).shape == (0,)


def test_embeddings_and_codes_of_the_same_width_are_told_apart_by_their_form():
    square = np.linalg.qr(np.random.default_rng(10).standard_normal((5, 5)))[0]
    documents = csr_matrix(np.eye(5))
    index = CodeNearestNeighbors(1, compressor=square).fit(documents)
    np.testing.assert_array_equal(index.kneighbors(square, return_distance=False).ravel(), np.arange(5))
    found = index.kneighbors(csr_matrix(np.eye(5)), return_distance=False)
    np.testing.assert_array_equal(found.ravel(), np.arange(5))
    np.testing.assert_allclose(index.kneighbors(np.eye(5)[:1])[0].item(), 1 - np.max(square[:, 0]))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"mode": "asymmetric"}, r"mode='asymmetric' needs a compressor with components_, got compressor=None"),
        ({"mode": "reconstructed"}, r"mode='reconstructed' needs a compressor"),
        ({"compressor": Compressor()}, r"compressor must be fitted: Compressor has no components_"),
        ({"compressor": np.ones((3, 2))}, r"X has 40 components, but the compressor has 3"),
        ({"mode": "nearest"}, r"The 'mode' parameter of CodeNearestNeighbors must be a str among"),
        ({"metric": "l2"}, r"The 'metric' parameter of CodeNearestNeighbors must be a str among"),
        ({"n_neighbors": 0}, r"The 'n_neighbors' parameter of CodeNearestNeighbors must be an int"),
        ({"device": "tpu"}, r"device must be 'cpu', 'cuda', 'cuda:<number>' or 'auto', got device='tpu'"),
        ({"device": "cuda:x"}, r"device must be 'cpu'"),
    ],
)
def test_wrong_parameters_are_named(parameters, message):
    documents = random_codes(np.random.default_rng(11), 10)
    with pytest.raises(ValueError, match=message):
        CodeNearestNeighbors(**parameters).fit(documents)


def test_wrong_queries_are_named():
    compressor = fitted_compressor()
    documents = random_codes(np.random.default_rng(12), 10)
    index = CodeNearestNeighbors(compressor=compressor).fit(documents)
    with pytest.raises(ValueError, match="X has 7 features, but queries must be codes with 40 components or embedd"):
        index.kneighbors(np.ones((1, 7)))
    with pytest.raises(ValueError, match="X has 7 features, but CodeNearestNeighbors is expecting 40 features"):
        index.kneighbors(csr_matrix(np.ones((1, 7))))
    with pytest.raises(ValueError, match="Input X contains NaN"):
        index.kneighbors(np.full((1, 40), np.nan))
    with pytest.raises(ValueError, match=r"Expected n_neighbors <= n_samples_fit, but n_neighbors = 11, n_samples"):
        index.kneighbors(documents, 11)
    with pytest.raises(ValueError, match=r"Expected n_neighbors < n_samples_fit, but n_neighbors = 10, n_samples"):
        index.kneighbors(n_neighbors=10)
    with pytest.raises(ValueError, match=r"Expected n_neighbors > 0\. Got 0"):
        index.kneighbors(documents, 0)
    with pytest.raises(TypeError, match="n_neighbors does not take <class 'float'> value"):
        index.kneighbors(documents, 2.5)
    with pytest.raises(ValueError, match='Unsupported mode, must be one of "connectivity", or "distance" but got'):
        index.kneighbors_graph(documents, mode="weights")
    asymmetric = CodeNearestNeighbors(compressor=compressor, mode="asymmetric").fit(documents)
    with pytest.raises(ValueError, match="needs dense embeddings as queries, got codes"):
        asymmetric.kneighbors(documents)
    with pytest.raises(ValueError, match="got the fitted codes"):
        asymmetric.kneighbors()
    by_array = CodeNearestNeighbors(compressor=compressor.components_, mode="reconstructed").fit(documents)
    with pytest.raises(ValueError, match="the compressor is an array of components without transform"):
        by_array.kneighbors(np.ones((1, N_FEATURES)))
    with pytest.raises(NotFittedError, match="not fitted yet"):
        CodeNearestNeighbors().kneighbors(documents)


def test_changed_parameters_ask_for_a_new_fit():
    documents = random_codes(np.random.default_rng(13), 10)
    index = CodeNearestNeighbors(2).fit(documents).set_params(metric="dot")
    with pytest.raises(ValueError, match="fitted for mode='sparse', metric='cosine', on the CPU; after changing"):
        index.kneighbors(documents)
    with pytest.raises(ValueError, match="fit it again"):
        index.partial_fit(documents)


# ------------------------------------------------------------------------------------------------- growing
@pytest.mark.parametrize("mode", ["sparse", "reconstructed"])
@pytest.mark.parametrize("block_rows", [8, 65_536])
def test_partial_fit_equals_fit(mode, block_rows, monkeypatch):
    monkeypatch.setattr("skcompressae._neighbors_build.BLOCK_ROWS", block_rows)
    rng = np.random.default_rng(14)
    documents, queries = random_codes(rng, 60), random_codes(rng, 9)
    decoder = fitted_compressor().components_
    whole = CodeNearestNeighbors(8, compressor=decoder, mode=mode).fit(documents)
    grown = CodeNearestNeighbors(8, compressor=decoder, mode=mode)
    for start, stop in [(0, 1), (1, 4), (4, 30), (30, 60)]:
        grown.partial_fit(documents[start:stop])
        assert grown.n_samples_fit_ == stop
    for X in (queries, None):
        for got, expected in zip(grown.kneighbors(X), whole.kneighbors(X), strict=True):
            np.testing.assert_array_equal(got, expected)


def test_partial_fit_does_not_touch_full_blocks(monkeypatch):
    monkeypatch.setattr("skcompressae._neighbors_build.BLOCK_ROWS", 16)
    documents = random_codes(np.random.default_rng(15), 40)
    index = CodeNearestNeighbors(2).fit(documents)
    before = list(index._chunks)
    index.partial_fit(documents[:4])
    assert all(a is b for a, b in zip(before[:2], index._chunks[:2], strict=True))
    assert [chunk.store.n_rows for chunk in index._chunks] == [16, 16, 12]


def test_partial_fit_of_another_precision():
    rng = np.random.default_rng(16)
    single, double = random_codes(rng, 20, dtype=np.float32), random_codes(rng, 20)
    index = CodeNearestNeighbors(5).fit(single).partial_fit(double)
    everything = np.vstack([single.toarray(), double.toarray()])
    distances, indices = index.kneighbors(double)
    check_neighbors(brute_force(double.toarray(), everything, "cosine"), distances, indices, 5)


# ------------------------------------------------------------------------------------------------- scikit-learn
def test_graphs_and_transform():
    rng = np.random.default_rng(17)
    documents, queries = random_codes(rng, 30), random_codes(rng, 5)
    index = CodeNearestNeighbors(4).fit(documents)
    distances, indices = index.kneighbors(queries)
    connectivity, graph = index.kneighbors_graph(queries), index.kneighbors_graph(queries, mode="distance")
    assert connectivity.shape == graph.shape == (5, 30)
    for row in range(5):
        np.testing.assert_array_equal(graph[row].indices, indices[row])
        np.testing.assert_array_equal(graph[row].data, distances[row])
        np.testing.assert_array_equal(np.flatnonzero(connectivity[row].toarray()), np.sort(indices[row]))
    transformed = index.transform(queries)
    assert issparse(transformed)
    np.testing.assert_array_equal(np.diff(transformed.indptr), 5)
    assert index.get_feature_names_out()[29] == "codenearestneighbors29"


def test_serves_as_neighbors_transformer_in_a_pipeline():
    """Two groups of embeddings, compressed, searched, clustered."""
    rng = np.random.default_rng(18)
    centers = np.repeat(np.eye(N_FEATURES)[:2] * 10, 25, axis=0)
    embeddings = centers + rng.standard_normal((50, N_FEATURES))
    compressor = fitted_compressor()
    pipeline = make_pipeline(
        Compressor(), CodeNearestNeighbors(10, compressor=compressor), DBSCAN(eps=0.3, metric="precomputed")
    )
    labels = pipeline.fit_predict(embeddings)
    assert len(set(labels[:25])) == len(set(labels[25:])) == 1
    assert labels[0] != labels[-1]


def test_a_frozen_compressor_survives_clone():
    frozen = pytest.importorskip("sklearn.frozen").FrozenEstimator(fitted_compressor())
    documents = random_codes(np.random.default_rng(19), 10)
    index = clone(CodeNearestNeighbors(2, compressor=frozen)).fit(documents)
    assert index.kneighbors(np.ones((1, N_FEATURES)), return_distance=False).shape == (1, 2)
    with pytest.raises(ValueError, match=r"sklearn\.frozen\.FrozenEstimator keeps it fitted"):
        clone(CodeNearestNeighbors(2, compressor=fitted_compressor())).fit(documents)


def test_pickling_keeps_the_index():
    documents = random_codes(np.random.default_rng(20), 20)
    index = CodeNearestNeighbors(3, compressor=fitted_compressor()).fit(documents)
    again = pickle.loads(pickle.dumps(index))
    np.testing.assert_array_equal(again.kneighbors(documents), index.kneighbors(documents))


def test_memory_is_counted():
    """6 bytes a float32 nonzero and an 8-byte factor; a row start or posting offsets."""
    documents = random_codes(np.random.default_rng(21), 100, dtype=np.float32)
    rows = CodeNearestNeighbors(compressor=fitted_compressor("float32")).fit(documents)
    assert rows.nbytes_ == 6 * documents.nnz + 8 * 100 + 4 * 101
    assert rows.nbytes_per_document_ == rows.nbytes_ / 100
    postings = CodeNearestNeighbors().fit(documents)
    assert postings.nbytes_ == 6 * documents.nnz + 8 * 100 + 8 * (N_COMPONENTS + 1)


def test_packed_codes_stay_packed():
    packed = pytest.importorskip("skcompressae.packed").PackedCodes
    codes = random_codes(np.random.default_rng(22), 50, dtype=np.float32)
    store = packed.pack(codes, value_bits=8)
    unpacked = csr_matrix(store.to_csr())
    decoder = fitted_compressor("float32").components_
    for mode in ("sparse", "reconstructed"):
        index = CodeNearestNeighbors(5, compressor=decoder, mode=mode).fit(store)
        assert mode == "sparse" or index.nbytes_ == store.nbytes + 8 * 50
        expected = CodeNearestNeighbors(5, compressor=decoder, mode=mode).fit(unpacked)
        for X in (codes, store, None):
            other = unpacked if X is store else X
            distances, indices = index.kneighbors(X)
            expected_distances, expected_indices = expected.kneighbors(other)
            np.testing.assert_allclose(distances, expected_distances, atol=1e-6)
            assert (indices == expected_indices).mean() > 0.99


# ------------------------------------------------------------------------------------------------- files
@pytest.fixture
def saved(tmp_path):
    rng = np.random.default_rng(23)
    documents = random_codes(rng, 40, dtype=np.float32)
    compressor = fitted_compressor("float32")
    index = CodeNearestNeighbors(4, compressor=compressor, batch_size=9).fit(documents)
    index.save(tmp_path / "index.skc")
    return index, documents, tmp_path / "index.skc"


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("mode", ["sparse", "reconstructed", "asymmetric"])
def test_a_loaded_index_is_the_saved_one(tmp_path, mode, mmap):
    rng = np.random.default_rng(24)
    documents, embeddings = random_codes(rng, 40, dtype=np.float32), rng.standard_normal((6, N_FEATURES))
    compressor = fitted_compressor("float32")
    index = CodeNearestNeighbors(4, compressor=compressor, mode=mode, n_jobs=2).fit(documents)
    path = tmp_path / "index.skc"
    index.save(path)
    content = path.read_bytes()
    loaded = CodeNearestNeighbors.load(path, mmap=mmap, compressor=compressor)
    assert loaded.get_params()["n_jobs"] == 2
    assert loaded.nbytes_ == index.nbytes_
    for got, expected in zip(loaded.kneighbors(embeddings), index.kneighbors(embeddings), strict=True):
        np.testing.assert_array_equal(got, expected)
    loaded.partial_fit(documents)
    assert loaded.n_samples_fit_ == 80
    assert path.read_bytes() == content


def test_a_loaded_index_needs_no_compressor_for_asymmetric_queries(saved):
    index, documents, path = saved
    loaded = CodeNearestNeighbors.load(path)
    assert isinstance(loaded._chunks[0].store.values.base, np.memmap)
    for X in (np.ones((3, N_FEATURES), np.float32), documents):
        np.testing.assert_array_equal(loaded.kneighbors(X), index.kneighbors(X))


def test_saving_replaces_a_file_in_one_step(saved, monkeypatch):
    index, documents, path = saved
    before = path.read_bytes()
    index.partial_fit(documents)

    def fail(*_):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", fail)
        with pytest.raises(OSError, match="disk full"):
            index.save(path)
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    index.save(path)
    assert CodeNearestNeighbors.load(path).n_samples_fit_ == 80


def test_another_compressor_is_refused(saved):
    path = saved[2]
    other = fitted_compressor("float32")
    other.components_ = other.components_[::-1]
    with pytest.raises(ValueError, match="must have the components_ of the saved index, got others"):
        CodeNearestNeighbors.load(path, compressor=other)


def rewrite(path, change):
    """Apply `change` to the header and write the file anew, header padded to its old length."""
    content = path.read_bytes()
    length = struct.unpack("<Q", content[8:16])[0]
    header = json.loads(content[24 : 24 + length])
    change(header)
    encoded = json.dumps(header, separators=(",", ":")).encode()
    assert len(encoded) <= length
    encoded = encoded.ljust(length)
    checksum = struct.pack("<Q", zlib.crc32(content[:16] + encoded))
    path.write_bytes(content[:16] + checksum + encoded + content[24 + length :])


def set_first_column(value):
    def change(path):
        content = bytearray(path.read_bytes())
        length = struct.unpack("<Q", content[8:16])[0]
        header = json.loads(content[24 : 24 + length])
        base = -(-(24 + length) // 64) * 64
        struct.pack_into("<H", content, base + header["arrays"]["0.indices"]["offset"], value)
        path.write_bytes(content)

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: p.write_bytes(b""), "is not a saved search index"),
        (lambda p: p.write_bytes(b"\x93NUMPY" + bytes(200)), "is not a saved search index"),
        (lambda p: p.write_bytes(p.read_bytes()[:100]), "is truncated: its header should have"),
        (lambda p: p.write_bytes(p.read_bytes()[:-8]), "is truncated or damaged"),
        (lambda p: p.write_bytes(p.read_bytes()[:16] + b"\xff" + p.read_bytes()[17:]), "has a damaged header"),
        (lambda p: rewrite(p, lambda h: h.update(format_version=9)), "has format version 9; this release reads 2"),
        (lambda p: rewrite(p, lambda h: h.pop("arrays")), "has a damaged header: KeyError"),
        (lambda p: rewrite(p, lambda h: h["arrays"].pop("0.scale")), "has a damaged header: KeyError"),
        (lambda p: rewrite(p, lambda h: h["arrays"]["0.scale"].update(dtype="|O")), "has dtype '|O'"),
        (lambda p: rewrite(p, lambda h: h["arrays"]["0.scale"].update(shape=[9])), "arrays that do not fit"),
        (lambda p: rewrite(p, lambda h: h["arrays"]["0.scale"].update(shape=[10**9])), "lies outside of the file"),
        (lambda p: rewrite(p, lambda h: h["meta"]["chunks"][0].update(kind="x")), "chunk 0 has kind 'x'"),
        (lambda p: rewrite(p, lambda h: h["meta"]["chunks"].clear()), "it holds no documents"),
        (lambda p: rewrite(p, lambda h: h["meta"].update(n_features_in=9)), r"numbers outside of range\(9\)"),
        (set_first_column(65_535), r"numbers outside of range\(40\)"),
    ],
)
def test_damaged_files_are_refused(saved, damage, message):
    path = saved[2]
    damage(path)
    with pytest.raises(CodesFormatError, match=message.replace("|O", r"\|O")):
        CodeNearestNeighbors.load(path)


@pytest.mark.parametrize("name", ["0.values", "0.scale", "components"])
def test_a_changed_bit_is_noticed_where_checksums_are_compared(saved, name):
    path = saved[2]
    content = bytearray(path.read_bytes())
    length = struct.unpack("<Q", content[8:16])[0]
    header = json.loads(content[24 : 24 + length])
    content[-(-(24 + length) // 64) * 64 + header["arrays"][name]["offset"]] ^= 1
    path.write_bytes(content)
    for options in ({"mmap": False}, {"verify": True}):
        with pytest.raises(CodesFormatError, match=f"checksum of array '{name}' does not match"):
            CodeNearestNeighbors.load(path, **options)
    assert CodeNearestNeighbors.load(path).n_samples_fit_ == 40


# ------------------------------------------------------------------------------------------------- devices
def device_cases(kind):
    rng = np.random.default_rng(25)
    dtype = np.float32
    if kind == "ties":
        codes = csr_matrix(rng.choice([-1.0, 0.0, 0.0, 1.0], (300, 4)).astype(dtype))
        targets = rng.choice([-1.0, 1.0], (4, 21)).astype(dtype)
    else:
        codes = random_codes(rng, 300, dtype=dtype)
        targets = rng.standard_normal((N_COMPONENTS, 21)).astype(dtype)
    bounds = [0, 130, 300]
    chunks = [make_chunk(RowStore.from_csr(codes[a:b]), metric="cosine") for a, b in pairwise(bounds)]
    return chunks, targets, rng.integers(-1, 300, 21)


def torch_devices():
    return ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA"))]


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta state")
@pytest.mark.parametrize("kind", ["random", "ties"])
@pytest.mark.parametrize("device", torch_devices())
@pytest.mark.parametrize("n_neighbors", [1, 20, 299])
def test_a_torch_device_finds_what_the_kernels_find(kind, device, n_neighbors):
    from skcompressae._core._search import search

    chunks, targets, exclude = device_cases(kind)
    scores, rows = DeviceIndex(chunks, device).search(targets, n_neighbors, exclude=exclude)
    expected_scores, expected_rows = search(chunks, targets, n_neighbors, exclude=exclude)
    np.testing.assert_array_equal(rows, expected_rows)
    np.testing.assert_array_equal(scores, expected_scores)


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


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is there")
def test_without_cuda():
    documents = random_codes(np.random.default_rng(27), 10)
    with pytest.raises(ValueError, match="device='cuda' was asked for, but torch finds no CUDA device"):
        CodeNearestNeighbors(device="cuda").fit(documents)
    index = CodeNearestNeighbors(2, device="auto").fit(documents)
    assert isinstance(index._chunks[0].store, PostingStore)


# ------------------------------------------------------------------------------------------------- benchmark
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:Sparse CSR tensor support is in beta state")
@pytest.mark.filterwarnings("ignore:WARNING clustering:UserWarning")
def test_the_speed_benchmark_runs(tmp_path, monkeypatch):
    """On tiny input, all peers that are installed; a second run keeps the rows of the first."""
    path = Path(__file__).parents[1] / "benchmarks" / "search_speed.py"
    monkeypatch.syspath_prepend(str(path.parent))
    specification = importlib.util.spec_from_file_location("search_speed", path)
    benchmark = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(benchmark)
    sizes = "--n-docs 400 --n-components 64 --n-features 16 --k 4 --top 5 --batches 1 3 --pq-train 400 --pq-bits 2"
    output = tmp_path / "speed.json"
    arguments = [*sizes.split(), "--seconds", "0.01", "--output", str(output), "--cache", str(tmp_path)]
    benchmark.main([*arguments, "--threads", "1"])
    benchmark.main([*arguments, "--threads", "2", "--parts", "own", "flat"])
    report = json.loads(output.read_text())
    own = [row for row in report["results"] if row["name"].startswith("skcompressae")]
    assert len(own) == 3 * 2 * 2
    assert {row["n_threads"] for row in own} == {1, 2}
    assert all(row["first_call_s"] > 0 and row["per_query_ms"] > 0 for row in report["results"])
    assert report["settings"]["seed"] == 0
    assert report["environment"]["n_cpus"] >= 1
    assert report["environment"]["versions"]["numba"]
    assert str(tmp_path) not in output.read_text()
    assert report["limits"]["kernel_ms"] > 0


def test_benchmark_codes_have_distinct_sorted_latents_and_skewed_use(monkeypatch):
    path = Path(__file__).parents[1] / "benchmarks" / "search_speed.py"
    monkeypatch.syspath_prepend(str(path.parent))
    specification = importlib.util.spec_from_file_location("search_speed", path)
    benchmark = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(benchmark)
    codes = benchmark.make_codes(500, 100, 20, 1.2, 0)
    assert codes.has_canonical_format
    np.testing.assert_array_equal(np.diff(codes.indptr), 20)
    uses = np.sort(codes.getnnz(axis=0))
    assert uses[-10:].sum() > 5 * uses[:10].sum()
    assert (benchmark.make_codes(500, 100, 20, 1.2, 0) != codes).nnz == 0


def test_the_memory_of_a_search_does_not_grow_with_the_queries():
    """Beyond the result itself and the queries' validation, a batch at a time."""
    rng = np.random.default_rng(28)
    compressor = fitted_compressor("float32")
    index = CodeNearestNeighbors(2, compressor=compressor, batch_size=64).fit(
        random_codes(rng, 3_000, dtype=np.float32)
    )
    peaks = []
    for n_queries in (200, 3_200):
        queries = rng.standard_normal((n_queries, N_FEATURES)).astype(np.float32)
        index.kneighbors(queries)
        tracemalloc.start()
        index.kneighbors(queries)
        peaks.append(tracemalloc.get_traced_memory()[1] - 2 * n_queries * 12)
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 3_000 * N_FEATURES + 20_000
    assert peaks[1] < 3_000 * 3_200
