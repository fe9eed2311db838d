"""The order of equal distances, radii that are distances, indices that grow, and rows at the edge of what counts."""

import pickle

import numpy as np
import pytest
from neighbor_cases import N_COMPONENTS, N_FEATURES, brute_force, check_neighbors, fitted_compressor, random_codes
from scipy.sparse import csr_matrix
from test_packed_search import model

from skcompressae import CodeNearestNeighbors, PackedCodes
from skcompressae._core import _search_store
from skcompressae.packed import ResidualQuantizer


@pytest.mark.parametrize("metric", ["cosine", "geometric", "dot"])
@pytest.mark.parametrize("mode", ["sparse", "asymmetric"])
def test_a_radius_that_is_a_distance_found_includes_it(mode, metric):
    """Distances are rounded to float32, so a limit in float64 must leave room."""
    rng = np.random.default_rng(0)
    documents = random_codes(rng, 200, dtype=np.float32)
    compressor = fitted_compressor("float32")
    queries = rng.standard_normal((60, N_FEATURES)).astype(np.float32)
    index = CodeNearestNeighbors(5, compressor=compressor, mode=mode, metric=metric).fit(documents)
    for i in range(60):  # one by one: the rounding of products depends on how many rows they are of
        distances, indices = index.kneighbors(queries[i : i + 1])
        found = index.radius_neighbors(queries[i : i + 1], radius=float(distances[0, -1]), return_distance=False)[0]
        assert set(indices[0]) <= set(found)


def test_equal_distances_within_a_radius_come_in_the_order_of_the_documents():
    rng = np.random.default_rng(1)
    documents = csr_matrix(np.eye(3)[rng.integers(0, 3, 300)])
    (found,) = CodeNearestNeighbors(radius=2.0).fit(documents).radius_neighbors(np.eye(3)[:1], return_distance=False)
    same = documents[:, [0]].toarray().ravel() == 1
    np.testing.assert_array_equal(found, [*np.flatnonzero(same), *np.flatnonzero(~same)])


def test_equal_scores_of_candidates_come_in_the_order_of_the_documents():
    X, decoder, codes = model(np.random.default_rng(4), n_rows=3)
    packed = PackedCodes.pack(codes).with_residual_of(X, decoder, n_bytes=4, n_iter=3)
    which = np.random.default_rng(5).integers(0, 3, 120)
    index = CodeNearestNeighbors(30, compressor=decoder, rerank=120, metric="dot").fit(packed.take(which))
    for i, found in enumerate(index.kneighbors(X, return_distance=False)):
        order = which[found]
        assert order[0] == i
        for kind in range(3):
            assert (np.diff(found[order == kind]) > 0).all()
        best = np.flatnonzero(which == i)
        np.testing.assert_array_equal(found[: len(best)], best[:30])


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta state")
@pytest.mark.parametrize("mode", ["sparse", "reconstructed", "asymmetric"])
def test_an_index_on_a_device_grows(monkeypatch, mode):
    """PyTorch's own CPU stands for the device."""
    monkeypatch.setattr(CodeNearestNeighbors, "_device", lambda self: "cpu:0")
    rng = np.random.default_rng(26)
    documents, compressor = random_codes(rng, 300, dtype=np.float32), fitted_compressor("float32")
    queries = rng.standard_normal((20, N_FEATURES)).astype(np.float32)
    grown = CodeNearestNeighbors(9, compressor=compressor, mode=mode).fit(documents[:200])
    grown.kneighbors(queries)
    grown.partial_fit(documents[200:])
    found = grown.kneighbors(queries)
    monkeypatch.undo()
    expected = CodeNearestNeighbors(9, compressor=compressor, mode=mode).fit(documents).kneighbors(queries)
    np.testing.assert_array_equal(found[1], expected[1])
    np.testing.assert_allclose(found[0], expected[0], atol=1e-6)


@pytest.mark.parametrize("order", ["C", "F"])
def test_embeddings_that_are_not_finite_are_refused(order):
    compressor = fitted_compressor("float32")
    index = CodeNearestNeighbors(2, compressor=compressor).fit(
        random_codes(np.random.default_rng(0), 10, dtype=np.float32)
    )
    queries = np.zeros((3, N_FEATURES), np.float32, order=order)
    for value, what in ((np.nan, "NaN"), (np.inf, "infinity")):
        queries[1, 2] = value
        for call in (index.kneighbors, index.radius_neighbors):
            with pytest.raises(ValueError, match=f"Input X contains {what}"):
                call(queries)


def test_documents_of_a_tiny_norm_count_as_zero():
    documents = csr_matrix(np.array([[1e-31, 0.0], [0.0, 1e-29]]))
    distances, _ = CodeNearestNeighbors(2).fit(documents).kneighbors(np.eye(2))
    np.testing.assert_allclose(distances, [[1, 1], [0, 1]])


def test_the_longest_row_of_any_block_counts(monkeypatch):
    monkeypatch.setattr(_search_store, "BLOCK_ROWS", 8)
    codes = random_codes(np.random.default_rng(0), 30, longest=6)
    dense = codes.toarray()
    dense[3] = 1
    chunk = _search_store.make_chunk(_search_store.RowStore.from_csr(csr_matrix(dense)), metric="dot")
    assert chunk.longest == N_COMPONENTS


def test_equal_scores_of_many_candidates_come_in_the_order_of_the_documents():
    X, decoder, codes = model(np.random.default_rng(4), n_rows=40, k=2)
    packed = PackedCodes.pack(codes).with_residual_of(X, decoder, n_bytes=4, n_iter=3)
    which = np.random.default_rng(5).integers(0, 40, 800)
    index = CodeNearestNeighbors(800, compressor=decoder, rerank=800, metric="dot").fit(packed.take(which))
    distances, found = index.kneighbors(X)
    is_tie = np.diff(distances, axis=1) == 0
    assert is_tie.sum() > 20_000
    assert (np.diff(found, axis=1)[is_tie] > 0).all()


@pytest.mark.parametrize("is_packed", [False, True])
def test_norms_of_more_rows_than_a_block(is_packed):
    rng = np.random.default_rng(0)
    documents = random_codes(rng, 5_000, dtype=np.float32)
    if is_packed:
        documents = PackedCodes.pack(documents, value_bits=8)
    decoder = fitted_compressor("float32").components_
    queries = rng.standard_normal((5, N_FEATURES)).astype(np.float32)
    distances, indices = CodeNearestNeighbors(50, compressor=decoder).fit(documents).kneighbors(queries)
    codes = documents.to_csr() if is_packed else documents
    check_neighbors(brute_force(queries, codes @ decoder, "cosine"), distances, indices, 50, atol=5e-6)


def test_residual_codes_of_more_rows_than_a_block():
    X, decoder, codes = model(np.random.default_rng(4), n_rows=5_000)
    packed = PackedCodes.pack(codes)
    residuals = X - packed.to_csr() @ decoder
    quantizer = ResidualQuantizer.fit(residuals, 4, n_iter=2)
    packed = packed.with_residual_of(X, decoder, quantizer=quantizer)
    assert (packed.residual_codes == quantizer.encode(residuals)).mean() > 0.999
    index = CodeNearestNeighbors(50, compressor=decoder, rerank=5_000).fit(packed)
    distances, indices = index.kneighbors(X[:5])
    refined = packed.to_csr() @ decoder + quantizer.decode(packed.residual_codes)
    check_neighbors(brute_force(X[:5], refined, "cosine"), distances, indices, 50, atol=5e-6)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta state")
def test_pickles_of_an_index_on_a_device_hold_nothing_of_the_device(monkeypatch):
    monkeypatch.setattr(CodeNearestNeighbors, "_device", lambda self: "cpu:0")
    rng = np.random.default_rng(26)
    documents = random_codes(rng, 300, dtype=np.float32)
    index = CodeNearestNeighbors(9).fit(documents)
    expected = index.kneighbors(documents)
    assert index._device_index is not None
    again = pickle.loads(pickle.dumps(index))
    assert again._device_index is None
    np.testing.assert_array_equal(again.kneighbors(documents), expected)
    first = index._device_index
    monkeypatch.setattr(CodeNearestNeighbors, "_device", lambda self: "cpu:1")
    index.kneighbors(documents)
    assert index._device_index is not first
