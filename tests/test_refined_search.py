"""Searches by code and residual code: candidates put in order, all documents scored, and what the metrics mean then."""

import pickle

import numpy as np
import pytest
import scipy.sparse as sp
from neighbor_cases import brute_force
from test_packed_search import model, ragged_codes

from skcompressae._core._refined_search import RefinedChunk, search_refined
from skcompressae._core._search_store import PackedStore
from skcompressae._neighbors import CodeNearestNeighbors
from skcompressae._neighbors_rerank import refined_scales
from skcompressae.packed import PackedCodes, ResidualQuantizer


def squares(rows):
    """Return the squared norms of rows in float64."""
    return np.square(rows.astype(np.float64)).sum(axis=1)


def lengths_of_rows(hats, residuals, n_first):
    """Return the guesses of cos(x, x_hat + r_hat), by the formula of the docstring."""
    left = np.maximum(1.0 - squares(hats), 0.0)
    kept = min(squares(residuals)[:n_first].sum() / (1.0 - squares(hats)[:n_first]).sum(), 1.0)
    expected = kept * left
    guesses = squares(hats) + expected + (1.0 - kept) * (np.minimum(squares(residuals), left) - expected)
    return np.sqrt(np.minimum(guesses, 1.0))


def geometric(queries, hats, residuals, n_first):
    """Return negated geometric means of cosines and of inner products with projections on the sums."""
    cosines = 1.0 - brute_force(queries, hats + residuals, "cosine")
    return -cosines * np.sqrt(lengths_of_rows(hats, residuals, n_first))


@pytest.mark.parametrize("metric", ["cosine", "geometric", "dot"])
@pytest.mark.parametrize("mode", ["reconstructed", "asymmetric"])
def test_reranked_neighbors_are_those_of_code_and_residual(tmp_path, mode, metric):
    """With every document a candidate, the order is that of q . (x_hat + r_hat), by the metric."""
    rng = np.random.default_rng(4)
    X, decoder, codes = model(rng)
    packed = PackedCodes.pack(codes).with_residual_of(X, decoder, n_bytes=4, n_iter=3)
    queries = X[:20] if mode == "asymmetric" else sp.csr_matrix(codes[:20])
    parameters = {"n_neighbors": 9, "compressor": decoder, "mode": mode, "metric": metric, "rerank": 300}
    index = CodeNearestNeighbors(**parameters, n_jobs=2).fit(packed[:120]).partial_fit(packed[120:])
    left = X[:20] if mode == "asymmetric" else codes[:20] @ decoder
    hats, residuals = packed.to_csr() @ decoder, packed.residual_quantizer.decode(packed.residual_codes)
    expected = brute_force(left, hats + residuals, metric)
    if metric == "geometric":  # what is added later goes by the share that residual codes keep of the first documents
        expected = geometric(left, hats, residuals, n_first=120)
    index.save(tmp_path / "index")
    for other in (index, CodeNearestNeighbors.load(tmp_path / "index")):
        distances, indices = other.kneighbors(queries)
        np.testing.assert_allclose(distances, np.sort(expected, axis=1)[:, :9], rtol=0, atol=2e-6)
        np.testing.assert_allclose(np.take_along_axis(expected, indices, axis=1), distances, rtol=0, atol=2e-6)
    few = CodeNearestNeighbors(**{**parameters, "rerank": 1}).fit(packed).kneighbors(queries)[1]
    first = CodeNearestNeighbors(**{**parameters, "rerank": None}).fit(packed).kneighbors(queries)[1]
    np.testing.assert_array_equal(np.sort(few, axis=1), np.sort(first, axis=1))
    # documents as queries leave themselves out
    if mode == "reconstructed":
        assert (index.kneighbors(n_neighbors=299)[1] != np.arange(300)[:, None]).all()


def test_residual_codes_bring_neighbors_nearer_to_the_truth():
    rng = np.random.default_rng(5)
    X, decoder, codes = model(rng, n_rows=600)
    packed = PackedCodes.pack(codes).with_residual_of(X, decoder, n_bytes=6, n_iter=5)
    truth = np.argsort(-(X[:50] @ X.T), axis=1)[:, :10]
    recalls = []
    for rerank in (None, 60):
        index = CodeNearestNeighbors(10, compressor=decoder, rerank=rerank).fit(packed)
        found = index.kneighbors(X[:50], return_distance=False)
        recalls.append(np.mean([np.isin(a, b).mean() for a, b in zip(truth, found, strict=True)]))
    assert recalls[1] > recalls[0] + 0.1


@pytest.mark.parametrize(
    ("m", "k", "value_bits", "kind", "n_bytes", "dtype"),
    [
        (16, 1, 4, "ranked", 1, np.float32),  # one word a row
        (2048, 20, 4, "ranked", 7, np.float32),  # 15-bit words, k no multiple of 16
        (4096, 17, 6, "ranked", 8, np.float32),
        (4096, 17, 6, "ranked", 8, np.float64),  # targets whose rounding to float32 counts
        (4096, 33, 16, "uniform", 5, np.float32),  # 28-bit words, two a load of 64 bits
        (1 << 19, 6, 8, "uniform", 3, np.float32),  # 27-bit words, which no kernel scans
        (1 << 20, 6, 16, "uniform", 2, np.float64),  # 36-bit words
    ],
)
def test_all_rows_or_candidates_are_found_as_float64_finds_them(m, k, value_bits, kind, n_bytes, dtype):
    rng = np.random.default_rng(m + k)
    n, d, n_queries = 700, 9, 5
    quantizer = ResidualQuantizer.fit(rng.standard_normal((300, d)), n_bytes, n_iter=1)
    packed = PackedCodes.pack(ragged_codes(rng, n, m, k), value_bits=value_bits, kind=kind, k=k)
    codes = quantizer.encode(rng.standard_normal((n, d)))
    packed = packed.with_residual(codes, quantizer)
    factors = rng.random(n).astype(np.float32)
    factors[rng.random(n) < 0.1] = 0
    bounds = ((0, 40), (40, 41), (41, n))
    chunks = [RefinedChunk(PackedStore(packed[a:b]), factors[a:b]) for a, b in bounds]
    targets, queries = rng.standard_normal((m, n_queries)).astype(dtype), rng.standard_normal((n_queries, d))
    exclude = np.array([-1, 0, 40, 699, 5])
    tables = [quantizer.tables(query) for query in queries]
    residuals = np.stack([table[np.arange(n_bytes), codes].sum(axis=1, dtype=np.float64) for table in tables])
    products = (packed.to_csr().astype(np.float64) @ targets.astype(np.float64)).T
    expected = (products + residuals) * factors
    expected[exclude >= 0, exclude[exclude >= 0]] = -np.inf
    candidates = np.stack([rng.permutation(np.setdiff1d(np.arange(n), [row]))[:100] for row in exclude])
    for scored, n_threads in ((None, 1), (None, 2), (None, 8), (candidates, 1), (candidates, 2)):
        found = expected
        if scored is not None:
            found = np.full_like(expected, -np.inf)
            np.put_along_axis(found, scored, np.take_along_axis(expected, scored, axis=1), axis=1)
        arguments = (targets, lambda query, chunk: tables[query], scored, 60)
        scores, rows = search_refined(chunks, *arguments, exclude=exclude, n_threads=n_threads)
        np.testing.assert_allclose(scores, -np.sort(-found, axis=1)[:, :60], rtol=0, atol=2e-5)
        np.testing.assert_allclose(np.take_along_axis(found, rows, axis=1), scores, rtol=0, atol=2e-5)
        assert all(len(set(row)) == 60 for row in rows)


@pytest.mark.parametrize("scale", [1e-25, 1.0, 1e25])
@pytest.mark.parametrize("n_queries", [1, 3])
def test_candidates_and_all_documents_score_alike(scale, n_queries):
    """One less than all documents are candidates of a search before, all are not: the same neighbors but for one."""
    rng = np.random.default_rng(9)
    X, decoder, codes = model(rng, n_rows=2_000, d=24)
    packed = PackedCodes.pack(codes).with_residual_of(X, decoder, n_bytes=6, n_iter=3)
    queries = (scale * rng.standard_normal((n_queries, 24))).astype(np.float32)
    parameters = {"compressor": decoder, "metric": "geometric", "n_jobs": 2}
    every = CodeNearestNeighbors(50, **parameters, rerank=10_000).fit(packed).kneighbors(queries)
    most = CodeNearestNeighbors(50, **parameters, rerank=1_999).fit(packed).kneighbors(queries)
    np.testing.assert_array_equal(every[1], most[1])
    np.testing.assert_array_equal(every[0], most[0])


def test_equal_documents_score_alike_wherever_they_were_added(tmp_path):
    """By what the first documents say of residual codes, also in an index from a file; others have their own."""
    rng = np.random.default_rng(10)
    X, decoder, codes = model(rng)
    packed = PackedCodes.pack(codes).with_residual_of(X, decoder, n_bytes=4, n_iter=3)
    other = packed.with_residual_of(X, decoder, n_bytes=2, n_iter=3)
    parameters = {"n_neighbors": 4, "compressor": decoder, "metric": "geometric", "rerank": 1_000}
    index = CodeNearestNeighbors(**parameters).fit(packed[:200])
    index.save(tmp_path / "index")
    others = [CodeNearestNeighbors.load(tmp_path / "index"), pickle.loads(pickle.dumps(index))]
    for grown in (index, *others):
        grown.partial_fit(packed[3:50])
        distances, found = grown.kneighbors(X[3:50])
        np.testing.assert_array_equal(np.sort(found[:, :2], axis=1), np.arange(3, 50)[:, None] + [0, 197])
        np.testing.assert_array_equal(distances[:, 0], distances[:, 1])
        np.testing.assert_array_equal(found[:, 0], np.arange(3, 50))
        grown.partial_fit(other[:100]).partial_fit(other[90:100])
        first, second, third, fourth = grown._refined
        np.testing.assert_array_equal(second, first[3:50])
        np.testing.assert_array_equal(fourth, third[90:])
        alone = refined_scales(PackedStore(other[:100]), decoder, "geometric")
        np.testing.assert_array_equal(third, alone)


def test_a_bound_that_rejects_a_row_holds():
    """Full rows, of which most are rejected by values that are approximated: the same as each row scored by itself."""
    rng = np.random.default_rng(14)
    n, m, k, n_queries = 20_000, 4096, 17, 10
    columns = rng.permuted(np.tile(np.arange(m), (n * k // m + 1, 1)), axis=1).ravel()[: n * k]
    codes = sp.csr_matrix((rng.standard_normal(n * k), columns, np.arange(n + 1) * k), shape=(n, m), dtype=np.float32)
    codes.sum_duplicates()
    packed = PackedCodes.pack(codes, value_bits=6, k=k)
    quantizer = ResidualQuantizer.fit(0.01 * rng.standard_normal((300, 6)), 3, n_iter=1)
    packed = packed.with_residual(rng.integers(0, 256, (n, 3)).astype(np.uint8), quantizer)
    chunks = [RefinedChunk(PackedStore(packed), np.ones(n, np.float32))]
    targets, queries = rng.standard_normal((m, n_queries)).astype(np.float32), rng.standard_normal((n_queries, 6))
    tables = [quantizer.tables(query) for query in queries]
    candidates = np.tile(np.arange(n), (n_queries, 1))
    found = [
        search_refined(
            chunks, targets, lambda query, chunk: tables[query], scored, 2_000, exclude=np.full(n_queries, -1)
        )
        for scored in (None, candidates)
    ]
    np.testing.assert_array_equal(found[0][1], found[1][1])
    np.testing.assert_array_equal(found[0][0], found[1][0])


@pytest.mark.parametrize(("k", "value_bits", "n_bytes"), [(5, 8, 4), (16, 4, 12), (20, 3, 20)])
def test_the_guess_of_a_cosine_is_nearer_than_the_norm_of_the_sum(k, value_bits, n_bytes):
    """Also where hardly anything is left, and the quantisation of values makes projections longer than the rows."""
    rng = np.random.default_rng(11)
    X, decoder, codes = model(rng, n_rows=3_000, d=24, k=k)
    packed = PackedCodes.pack(codes, value_bits=value_bits).with_residual_of(X, decoder, n_bytes=n_bytes)
    hats, residuals = packed.to_csr() @ decoder, packed.residual_quantizer.decode(packed.residual_codes)
    norms = np.sqrt(squares(hats + residuals))
    cosines = np.einsum("ij,ij->i", X, hats + residuals) / norms
    store = PackedStore(packed)
    scales = refined_scales(store, decoder, "geometric")
    guesses = (scales * norms) ** 2
    np.testing.assert_allclose(guesses, lengths_of_rows(hats, residuals, len(X)), rtol=1e-5)
    assert 0.2 < store.kept_share <= 1.0
    assert (squares(hats) > 1.0).any() == (k > 12)
    assert guesses.max() <= 1.0 + 1e-6
    assert np.abs(guesses - cosines).mean() < 0.5 * np.abs(norms - cosines).mean()


@pytest.mark.parametrize("spread", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("middle", [0.5, 1.0, 3.0])
def test_codes_as_long_as_their_rows_say_nothing_of_how_much_they_hold(middle, spread):
    """They rank by the cosine times the square root of the length, whatever that is."""
    rng = np.random.default_rng(12)
    X, decoder, codes = model(rng)
    lengths = (middle * np.exp(spread * rng.standard_normal((len(X), 1)))).astype(np.float32)
    codes *= lengths / np.linalg.norm(codes @ decoder, axis=1, keepdims=True)
    packed = PackedCodes.pack(codes, value_bits=16)
    packed = packed.with_residual_of(lengths * X, decoder, n_bytes=4, n_iter=3, normalize=False)
    cosines = 1.0 - brute_force(
        X[:30], packed.to_csr() @ decoder + packed.residual_quantizer.decode(packed.residual_codes), "cosine"
    )
    expected = -cosines * np.sqrt(lengths.ravel())
    index = CodeNearestNeighbors(300, compressor=decoder, metric="geometric", rerank=300).fit(packed)
    distances, found = index.kneighbors(X[:30])
    np.testing.assert_allclose(distances, np.take_along_axis(expected, found, axis=1), rtol=0, atol=1e-4 * middle)


@pytest.mark.parametrize("metric", ["cosine", "geometric", "dot"])
def test_documents_within_a_radius_are_the_neighbors_up_to_it(monkeypatch, metric):
    """Distances by code and residual code, as of `kneighbors`, whatever the number of candidates."""
    monkeypatch.setattr("skcompressae._core._refined_search.BLOCK_ROWS", 64)
    rng = np.random.default_rng(13)
    X, decoder, codes = model(rng)
    packed = PackedCodes.pack(codes).with_residual_of(X, decoder, n_bytes=5, n_iter=3)
    index = CodeNearestNeighbors(300, compressor=decoder, metric=metric, rerank=300)
    index.fit(packed[:100]).partial_fit(packed[100:])
    distances, indices = index.kneighbors(X[:20])
    radius = float(distances[3, 40])
    for rerank in (300, 1):
        found = index.set_params(rerank=rerank).radius_neighbors(X[:20], radius)
        for i in range(20):
            n = int((distances[i] <= radius).sum())
            np.testing.assert_array_equal(found[1][i], indices[i, :n])
            np.testing.assert_array_equal(found[0][i], distances[i, :n])
    assert 40 < len(found[1][3]) < 50
    # documents as queries leave themselves out
    own = index.radius_neighbors(radius=radius, return_distance=False)
    assert all(row not in near for row, near in enumerate(own))
    graph = index.radius_neighbors_graph(X[:20], radius)
    np.testing.assert_array_equal(graph.getnnz(axis=1), (distances <= radius).sum(axis=1))


@pytest.mark.parametrize("metric", ["cosine", "geometric"])
def test_equal_documents_come_in_the_order_in_which_they_were_fitted(metric):
    rng = np.random.default_rng(11)
    X, decoder, codes = model(rng, n_rows=1_005)
    packed = PackedCodes.pack(codes).with_residual_of(X, decoder, n_bytes=4, n_iter=3)
    twice = PackedCodes.concatenate([packed, packed])
    for rerank in (50, len(twice)):
        index = CodeNearestNeighbors(2, compressor=decoder, metric=metric, rerank=rerank).fit(twice)
        distances, found = index.kneighbors(X)
        is_twin = found[:, 1] == found[:, 0] + len(packed)
        assert is_twin.mean() > 0.9
        np.testing.assert_array_equal(distances[is_twin, 0], distances[is_twin, 1])
        assert not (found[:, 0] == found[:, 1] + len(packed)).any()


@pytest.mark.parametrize("mode", ["auto", "reconstructed"])
def test_documents_as_queries_are_what_they_are_as_documents(mode):
    """Code and residual code, whether they are the fitted ones or packed ones that are passed."""
    rng = np.random.default_rng(12)
    X, decoder, codes = model(rng)
    packed = PackedCodes.pack(codes).with_residual_of(X, decoder, n_bytes=4, n_iter=3)
    index = CodeNearestNeighbors(6, compressor=decoder, mode=mode, rerank=len(packed), batch_size=70)
    index.fit(packed[:120]).partial_fit(packed[120:])
    sums = packed.to_csr() @ decoder + packed.residual_quantizer.decode(packed.residual_codes)
    expected = brute_force(sums, sums, "cosine")
    distances, found = index.kneighbors(packed[40:90])
    np.testing.assert_array_equal(found[:, 0], np.arange(40, 90))
    np.testing.assert_allclose(distances[:, 0], 0, atol=1e-6)
    np.testing.assert_allclose(np.take_along_axis(expected[40:90], found, axis=1), distances, atol=2e-6)
    np.fill_diagonal(expected, np.inf)
    distances, found = index.kneighbors()
    np.testing.assert_allclose(distances, np.sort(expected, axis=1)[:, :6], atol=2e-6)
    assert not (found == np.arange(len(packed))[:, None]).any()
    radius = float(np.median(distances[:, 3]))
    for rows, (near, numbers) in zip(expected, zip(*index.radius_neighbors(radius=radius), strict=True), strict=True):
        assert abs(len(near) - (rows <= radius).sum()) <= 1
        np.testing.assert_allclose(rows[numbers], near, atol=2e-6)
    # codes alone, without residual codes, are what they were
    plain = PackedCodes.pack(codes, quantizer=packed.quantizer)
    np.testing.assert_array_equal(index.kneighbors(plain[:9])[1], index.kneighbors(plain[:9].to_csr())[1])
    with pytest.raises(ValueError, match="the residual codes have 3 features, but the compressor has"):
        index.kneighbors(
            plain.with_residual_of(np.ones((len(plain), 3), np.float32), np.ones((len(decoder), 3)), n_bytes=1)
        )
    asymmetric = CodeNearestNeighbors(2, compressor=decoder, mode="asymmetric", rerank=9).fit(packed)
    with pytest.raises(ValueError, match="mode='asymmetric' needs dense embeddings as queries, got codes"):
        asymmetric.kneighbors(packed[:3])
