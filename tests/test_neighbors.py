"""`CodeNearestNeighbors` against brute force in float64, scikit-learn, and its own files."""

from __future__ import annotations

import pickle
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from neighbor_cases import (
    N_COMPONENTS,
    N_FEATURES,
    Compressor,
    brute_force,
    check_neighbors,
    fitted_compressor,
    random_codes,
)
from scipy.sparse import csc_matrix, csr_array, csr_matrix, issparse
from sklearn.base import clone
from sklearn.cluster import DBSCAN
from sklearn.exceptions import NotFittedError
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

from skcompressae._neighbors import CodeNearestNeighbors


@parametrize_with_checks([CodeNearestNeighbors(n_neighbors=2)])
def test_scikit_learn_checks(estimator, check):
    check(estimator)


# ------------------------------------------------------------------------------------------------- exactness
@pytest.mark.parametrize("metric", ["cosine", "geometric", "dot"])
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
    metric=st.sampled_from(["cosine", "geometric", "dot"]),
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


@pytest.mark.parametrize("metric", ["cosine", "geometric", "dot"])
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


@pytest.mark.parametrize("metric", ["cosine", "geometric", "dot"])
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
        (
            {"compressor": make_pipeline(fitted_compressor())},
            r"which a Pipeline is not; pass its step that is one, a Comp",
        ),
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
    with pytest.raises(ValueError, match="fitted for mode='sparse', metric='cosine'; after changing"):
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
