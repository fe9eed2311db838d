import copy
import types

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from sklearn import config_context
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.metrics import ndcg_score
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.validation import check_is_fitted, validate_data

from skcompressae.metrics import (
    RetrievalRecallScorer,
    bytes_per_vector,
    compression_factor,
    exact_neighbors,
    mean_cosine_similarity,
    neighbor_ndcg_score,
    neighbor_recall_score,
    split_queries,
)

# --- exact_neighbors ---


def naive_neighbors(documents, queries, n_neighbors, metric):
    """Float64 brute force with a stable sort."""
    documents, queries = np.asarray(documents, np.float64), np.asarray(queries, np.float64)
    scores = np.array([[np.dot(q, x) for x in documents] for q in queries])
    if metric == "cosine":
        for axis, rows in ((0, queries), (1, documents)):
            norms = np.array([np.sqrt(np.dot(row, row)) for row in rows])
            norms[norms == 0] = 1.0
            scores = scores / np.expand_dims(norms, 1 - axis)
    indices = np.argsort(-scores, axis=1, kind="stable")[:, :n_neighbors]
    return np.take_along_axis(scores, indices, axis=1), indices


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    n_documents=st.integers(1, 40),
    n_queries=st.integers(1, 9),
    metric=st.sampled_from(["cosine", "dot"]),
    dtype=st.sampled_from(["f2", "f4", "f8", "i1", "i8"]),
    document_batch_size=st.integers(1, 50),
    query_batch_size=st.integers(1, 10),
    data=st.data(),
)
def test_exact_neighbors_equals_brute_force_with_many_ties(
    seed, n_documents, n_queries, metric, dtype, document_batch_size, query_batch_size, data
):
    # small integers: every dot product is exact, so ties are true ties, and zero rows occur
    rng = np.random.default_rng(seed)
    documents = rng.integers(-2, 3, (n_documents, 3)).astype(dtype)
    queries = rng.integers(-2, 3, (n_queries, 3)).astype(dtype)
    n_neighbors = data.draw(st.integers(1, n_documents))
    similarities, indices = exact_neighbors(
        documents,
        queries,
        n_neighbors,
        metric=metric,
        return_similarity=True,
        document_batch_size=document_batch_size,
        query_batch_size=query_batch_size,
    )
    expected_similarities, expected = naive_neighbors(documents, queries, n_neighbors, metric)
    np.testing.assert_array_equal(indices, expected)
    np.testing.assert_allclose(similarities, expected_similarities, rtol=1e-15)


@pytest.mark.parametrize("metric", ["cosine", "dot"])
def test_exact_neighbors_tells_apart_what_float32_cannot(metric):
    rng = np.random.default_rng(0)
    center = rng.normal(size=48)
    documents = center + 1e-9 * rng.normal(size=(200, 48))
    queries = rng.normal(size=(5, 48))
    assert np.unique(documents.astype(np.float32) @ queries[0].astype(np.float32)).size < 20
    found = exact_neighbors(documents, queries, 10, metric=metric, document_batch_size=30)
    np.testing.assert_array_equal(found, naive_neighbors(documents, queries, 10, metric)[1])


def test_exact_neighbors_orders_duplicates_by_index_across_blocks():
    rng = np.random.default_rng(1)
    unique = rng.normal(size=(7, 37)).astype(np.float32)
    owners = rng.integers(0, 7, 500)
    indices = exact_neighbors(unique[owners], unique, 20, document_batch_size=64, query_batch_size=3)
    for query, found in enumerate(indices):
        np.testing.assert_array_equal(found, np.flatnonzero(owners == query)[:20])


def test_exact_neighbors_of_dot_products_of_very_different_lengths():
    rng = np.random.default_rng(2)
    documents = rng.normal(size=(300, 8)) * 10.0 ** rng.uniform(-60, 60, (300, 1))
    queries = rng.normal(size=(6, 8)) * 10.0 ** rng.uniform(-60, 60, (6, 1))
    found = exact_neighbors(documents, queries, 30, metric="dot", document_batch_size=50)
    np.testing.assert_array_equal(found, naive_neighbors(documents, queries, 30, "dot")[1])


def test_exact_neighbors_is_the_same_for_any_block_and_for_a_memory_map(tmp_path):
    rng = np.random.default_rng(3)
    documents = rng.normal(size=(900, 24)).astype(np.float16)
    queries = rng.normal(size=(70, 24)).astype(np.float16)
    np.save(tmp_path / "documents.npy", documents)
    mapped = np.load(tmp_path / "documents.npy", mmap_mode="r")
    expected = naive_neighbors(documents, queries, 12, "cosine")[1]
    np.testing.assert_array_equal(exact_neighbors(documents, queries, 12), expected)
    np.testing.assert_array_equal(
        exact_neighbors(mapped, queries, 12, document_batch_size=7, query_batch_size=11), expected
    )


def test_exact_neighbors_of_no_queries_is_empty():
    similarities, indices = exact_neighbors(np.eye(3), np.empty((0, 3)), 2, return_similarity=True)
    assert similarities.shape == indices.shape == (0, 2)
    assert (similarities.dtype, indices.dtype) == (np.float64, np.int64)


@pytest.mark.parametrize("factor", [1e-150, 1e-160, 1e-200, 1e-300, 1e160, 1e300])
def test_exact_neighbors_of_rows_whose_squares_leave_float64(factor):
    rng = np.random.default_rng(12)
    documents, queries = rng.standard_normal((60, 5)), rng.standard_normal((4, 5))
    documents[::2] *= factor
    queries[1] *= factor
    similarities, indices = exact_neighbors(documents, queries, 60, return_similarity=True)
    units = documents / np.where(np.arange(60)[:, None] % 2 == 0, factor, 1)
    queries[1] /= factor
    expected, expected_indices = exact_neighbors(units, queries, 60, return_similarity=True)
    np.testing.assert_array_equal(indices, expected_indices)
    np.testing.assert_allclose(similarities, expected, atol=1e-9)


def test_exact_neighbors_of_rows_near_the_end_of_float64():
    documents, queries = 1e153 * np.array([[1.0, 0.0], [1.0, 1.0]]), np.array([[1e153, 1e153]])
    for metric in ("cosine", "dot"):
        np.testing.assert_array_equal(exact_neighbors(documents, queries, 2, metric=metric), [[1, 0]])


@pytest.mark.parametrize(
    ("documents", "queries", "kwargs", "error", "match"),
    [
        (np.eye(3), np.eye(2), {}, ValueError, r"X_queries must have as many columns .* \(3\), got 2"),
        (np.eye(3), np.eye(3), {"n_neighbors": 4}, ValueError, r"number of documents \(3\), got 4"),
        (np.eye(3), np.eye(3), {"n_neighbors": 0}, ValueError, "n_neighbors == 0, must be >= 1"),
        (np.eye(3), np.eye(3), {"n_neighbors": 1.0}, TypeError, "n_neighbors must be an instance of"),
        (np.eye(3), np.eye(3), {"metric": "l2"}, ValueError, "metric must be one of .* got 'l2'"),
        (np.eye(3), np.eye(3), {"query_batch_size": 0}, ValueError, "query_batch_size == 0"),
        (np.eye(3), np.eye(3), {"document_batch_size": -1}, ValueError, "document_batch_size == -1"),
        (sparse.csr_array(np.eye(3)), np.eye(3), {}, ValueError, "X_documents must be dense"),
        (np.zeros(3), np.eye(3), {}, ValueError, r"X_documents must be two-dimensional .* \(3,\)"),
        (np.eye(3), np.array([["a", "b", "c"]]), {}, ValueError, "X_queries must hold real numbers"),
        (np.eye(3), np.full((1, 3), np.nan), {}, ValueError, "X_queries must be finite"),
        (np.full((3, 3), np.inf), np.eye(3), {}, ValueError, "X_documents must be finite"),
        (np.full((3, 3), 1e300), np.eye(3), {"metric": "dot"}, ValueError, "X_documents has rows .* overflow float64"),
    ],
)
def test_exact_neighbors_names_what_is_wrong(documents, queries, kwargs, error, match):
    kwargs = {"n_neighbors": 1, **kwargs}
    with pytest.raises(error, match=match):
        exact_neighbors(documents, queries, **kwargs)


# --- recall and nDCG ---


@st.composite
def neighbor_lists(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    n_queries, n_ids = draw(st.integers(1, 6)), draw(st.integers(1, 30))
    n_true, n_pred = draw(st.integers(1, n_ids)), draw(st.integers(1, n_ids))
    true = np.array([rng.permutation(n_ids)[:n_true] for _ in range(n_queries)])
    pred = np.array([rng.permutation(n_ids)[:n_pred] for _ in range(n_queries)])
    return rng, true, pred, n_ids


@settings(deadline=None)
@given(neighbor_lists())
def test_recall_equals_the_intersection_of_sets_in_any_order(lists):
    rng, true, pred, _ = lists
    naive = [len(set(t) & set(p)) / len(t) for t, p in zip(true.tolist(), pred.tolist(), strict=True)]
    recall = neighbor_recall_score(true, pred, average=False)
    np.testing.assert_allclose(recall, naive, rtol=1e-15)
    assert neighbor_recall_score(true, pred) == pytest.approx(np.mean(naive))
    np.testing.assert_array_equal(neighbor_recall_score(true, rng.permuted(pred, axis=1), average=False), recall)
    assert neighbor_recall_score(true, true) == 1.0


@settings(deadline=None)
@given(neighbor_lists())
def test_ndcg_equals_scikit_learn_and_falls_when_the_order_is_wrong(lists):
    rng, true, _, n_ids = lists
    gains = np.sort(rng.uniform(0, 1, true.shape), axis=1)[:, ::-1]
    order = np.array([rng.permutation(n_ids) for _ in true])
    relevance, score = np.zeros(order.shape), np.zeros(order.shape)
    np.put_along_axis(relevance, true, gains, axis=1)
    np.put_along_axis(score, order, np.broadcast_to(-np.arange(n_ids, dtype=float), order.shape), axis=1)
    ndcg = neighbor_ndcg_score(true, order, gains=gains)
    if n_ids > 1:  # scikit-learn refuses a single document
        assert ndcg == pytest.approx(ndcg_score(relevance, score, ignore_ties=True))
    assert 0 <= ndcg <= 1
    assert neighbor_ndcg_score(true, true, gains=gains) == pytest.approx(1.0)
    reverse = neighbor_ndcg_score(true, true[:, ::-1])
    assert reverse < 1.0 if true.shape[1] > 1 else reverse == 1.0


def test_default_gains_fall_linearly_with_the_true_rank():
    # gains 1, 2/3, 1/3; found: rank 3, miss, rank 1
    ideal = 1 + (2 / 3) / np.log2(3) + (1 / 3) / 2
    expected = (1 / 3 + 1 / 2) / ideal
    assert neighbor_ndcg_score([[4, 2, 7]], [[7, 0, 4]]) == pytest.approx(expected, rel=1e-14)


def test_given_gains_need_not_be_sorted_and_are_cut_with_the_list():
    second = 1 / np.log2(3)
    ndcg = neighbor_ndcg_score([[4, 2]], [[4, 2]], gains=[[0.5, 1.0]])
    assert ndcg == pytest.approx((0.5 + second) / (1 + 0.5 * second), rel=1e-14)
    cut = neighbor_ndcg_score([[4, 2, 7]], [[7, 4]], gains=[[1.0, 0.5, 0.9]], n_neighbors=2)
    assert cut == pytest.approx(second / (1 + 0.5 * second), rel=1e-14)


def test_neighbor_scores_cut_both_lists_and_skip_padding():
    true, pred = [[0, 1, 2, 3]], [[1, 9, 0, -1, -1]]
    assert neighbor_recall_score(true, pred) == 0.5
    assert neighbor_recall_score(true, pred, n_neighbors=2) == 0.5
    assert neighbor_recall_score(true, pred, n_neighbors=1) == 0.0
    assert neighbor_recall_score(true, [[-1]]) == 0.0
    assert neighbor_ndcg_score(true, [[-1, 0]], n_neighbors=1) == 0.0
    assert neighbor_ndcg_score(true, pred, gains=[[0, 0, 0, 0]]) == 0.0
    # the ids themselves may be anything that fits in 64 bits
    assert neighbor_recall_score([[2**62, 5]], [[5, 2**62 - 1]]) == 0.5
    unsigned = np.array([[2**60 + 1, 2**60 + 2]], np.uint64)
    assert neighbor_recall_score(unsigned, np.array([[2**60 + 3, 2**60 + 1]])) == 0.5
    assert neighbor_recall_score(unsigned, np.array([[2**60, -1]])) == 0.0
    assert neighbor_recall_score(np.array([[2**63 + 1]], np.uint64), np.array([[2**63 + 1]], np.uint64)) == 1.0


@pytest.mark.parametrize("score", [neighbor_recall_score, neighbor_ndcg_score])
@pytest.mark.parametrize(
    ("true", "pred", "kwargs", "match"),
    [
        ([[0, 1]], [[0.0, 1.0]], {}, "neighbors_pred must be .* integers, got .* float64"),
        ([0, 1], [[0, 1]], {}, r"neighbors_true must be .* got shape \(2,\)"),
        (np.empty((0, 2), int), [[0, 1]], {}, "neighbors_true must be a non-empty"),
        ([[0, 0]], [[0, 1]], {}, "neighbors_true must not repeat an index, got 0 twice in row 0"),
        ([[0, 1], [0, 1]], [[0, 1], [7, 7]], {}, "neighbors_pred must not repeat .* 7 twice in row 1"),
        ([[0, -1]], [[0, 1]], {}, "neighbors_true must not be negative, got -1"),
        ([[0, 1]], [[0, 1], [0, 1]], {}, r"as many rows as neighbors_true \(1\), got 2"),
        ([[0, 1]], [[0, 1]], {"n_neighbors": 3}, r"columns of neighbors_true \(2\), got 3"),
        ([[0, 1]], [[0, 1]], {"n_neighbors": 0}, "n_neighbors == 0, must be >= 1"),
    ],
)
def test_neighbor_scores_name_what_is_wrong(score, true, pred, kwargs, match):
    with pytest.raises(ValueError, match=match):
        score(true, pred, **kwargs)


@pytest.mark.parametrize(
    ("gains", "match"),
    [
        ([[1.0]], r"gains must have the shape of neighbors_true \(1, 2\), got \(1, 1\)"),
        ([[1.0, -0.5]], "gains must be finite and not negative, got a minimum of -0.5"),
        ([[1.0, np.nan]], "gains must be finite"),
    ],
)
def test_ndcg_checks_gains(gains, match):
    with pytest.raises(ValueError, match=match):
        neighbor_ndcg_score([[0, 1]], [[0, 1]], gains=gains)


# --- cosine and sizes ---


def test_mean_cosine_similarity_equals_a_loop_over_several_blocks():
    rng = np.random.default_rng(4)
    X = rng.normal(size=(5000, 5)).astype(np.float32)
    X_hat = (X + rng.normal(size=X.shape)).astype(np.float32)
    X[:3], X_hat[2:5] = 0, 0
    naive = []
    for a, b in zip(X.astype(float), X_hat.astype(float), strict=True):
        if not a.any() and not b.any():
            naive.append(1.0)
        elif not a.any() or not b.any():
            naive.append(0.0)
        else:
            naive.append(a @ b / np.sqrt((a @ a) * (b @ b)))
    assert mean_cosine_similarity(X, X_hat) == pytest.approx(np.mean(naive), rel=1e-12)


@settings(deadline=None)
@given(seed=st.integers(0, 2**16), scale=st.floats(1e-150, 1e150))
def test_mean_cosine_similarity_ignores_scale(seed, scale):
    X = np.random.default_rng(seed).normal(size=(4, 3))
    assert mean_cosine_similarity(X, scale * X) == pytest.approx(1.0, abs=1e-12)
    assert mean_cosine_similarity(X, -scale * X) == pytest.approx(-1.0, abs=1e-12)


@pytest.mark.parametrize(
    ("X", "X_hat", "match"),
    [
        (np.eye(3), np.eye(2), r"X_hat must have the shape of X \(3, 3\), got \(2, 2\)"),
        (np.empty((0, 2)), np.empty((0, 2)), "X must have at least one row"),
        (np.eye(2), np.full((2, 2), np.nan), "X_hat must be finite"),
        (sparse.csr_array(np.eye(2)), np.eye(2), "X must be dense"),
    ],
)
def test_mean_cosine_similarity_names_what_is_wrong(X, X_hat, match):
    with pytest.raises(ValueError, match=match):
        mean_cosine_similarity(X, X_hat)


def test_bytes_count_values_indices_and_pointers():
    codes = sparse.csr_array(np.tile(np.float32([1, 0, 2, 3, 0, 4]), (10, 1)))
    assert codes.nnz == 40
    assert codes.indices.dtype == np.int32
    assert bytes_per_vector(codes) == (40 * 4 + 40 * 4 + 11 * 4) / 10
    assert bytes_per_vector(sparse.csr_matrix(codes)) == bytes_per_vector(codes)
    assert bytes_per_vector(codes.tocoo()) == 40 * (4 + 4 + 4) / 10
    assert bytes_per_vector(np.zeros((10, 3), np.float16)) == 6.0
    packed = types.SimpleNamespace(nbytes=120, shape=(10, 64))
    assert bytes_per_vector(packed) == 12.0
    assert bytes_per_vector(memoryview(b"abcd")) == 1.0
    assert compression_factor(np.zeros((10, 96), np.float32), packed) == 32.0


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: bytes_per_vector([[1, 2]]), TypeError, "codes must be .* got list"),
        (lambda: bytes_per_vector(sparse.lil_array(np.eye(2))), TypeError, "CSR, CSC, BSR or COO .* 'lil'"),
        (lambda: bytes_per_vector(np.empty((0, 2))), ValueError, "at least one row, got 0"),
        (lambda: compression_factor(np.eye(3), np.eye(2)), ValueError, r"as many rows as X \(3\), got 2"),
        (lambda: compression_factor(np.eye(3), np.empty((3, 0))), ValueError, "at least one byte, got 0"),
    ],
)
def test_sizes_name_what_is_wrong(call, error, match):
    with pytest.raises(error, match=match):
        call()


# --- scorer ---


class TopKCompressor(TransformerMixin, BaseEstimator):
    """A compressor with what the scorer asks of one: the largest projections on random unit vectors."""

    def __init__(self, k=4, n_components=32):
        self.k = k
        self.n_components = n_components

    def fit(self, X, y=None):
        X = validate_data(self, X)
        D = np.random.default_rng(0).normal(size=(self.n_components, X.shape[1]))
        self.components_ = D / np.linalg.norm(D, axis=1, keepdims=True)
        return self

    def transform(self, X):
        check_is_fitted(self)
        latents = validate_data(self, X, reset=False) @ self.components_.T
        order = np.argsort(-np.abs(latents), axis=1)
        np.put_along_axis(latents, order[:, self.k :], 0.0, axis=1)
        return sparse.csr_array(latents)

    def transform_query(self, X):
        return sparse.csr_array(np.asarray(X) @ self.components_.T)


def make_rows(n_rows=160, n_features=8):
    rng = np.random.default_rng(5)
    return rng.normal(size=(n_rows, n_features)) * np.linspace(1, 3, n_features) + 0.3


@pytest.mark.parametrize("mode", ["asymmetric", "reconstructed", "sparse"])
@pytest.mark.parametrize("metric", ["cosine", "dot"])
def test_scorer_equals_the_recall_computed_by_hand(mode, metric):
    X = make_rows()
    model = TopKCompressor().fit(X)
    scorer = RetrievalRecallScorer(mode, n_neighbors=7, metric=metric, n_queries=20, random_state=3)
    documents, queries = train_test_split(X, test_size=20, random_state=3)
    codes, query_codes = model.transform(documents).toarray(), model.transform(queries).toarray()
    left, right = {
        "asymmetric": (queries, codes @ model.components_),
        "reconstructed": (query_codes @ model.components_, codes @ model.components_),
        "sparse": (query_codes, codes),
    }[mode]
    true = naive_neighbors(documents, queries, 7, metric)[1]
    found = naive_neighbors(right, left, 7, metric)[1]
    expected = np.mean([len(set(t) & set(f)) / 7 for t, f in zip(true, found, strict=True)])
    assert 0 < expected < 1
    assert scorer(model, X) == pytest.approx(expected)


def test_scorer_takes_true_neighbors_in_the_space_that_enters_the_compressor():
    X = make_rows()
    pipeline = make_pipeline(StandardScaler(), TopKCompressor()).fit(X)
    scorer = RetrievalRecallScorer(n_neighbors=5, n_queries=30)
    assert scorer(pipeline, X) == scorer(pipeline[-1], pipeline[0].transform(X))
    assert scorer(pipeline, X) != scorer(TopKCompressor().fit(X), X)


@pytest.mark.parametrize("mode", ["asymmetric", "reconstructed", "sparse"])
@pytest.mark.parametrize("exponent", [-170, -125, 110, 170])
def test_cosine_scores_are_those_of_rows_of_any_length(fitted, embeddings, mode, exponent):
    scorer = RetrievalRecallScorer(mode, n_neighbors=5)
    rows = embeddings.astype(np.float64)
    assert scorer(fitted, np.ldexp(rows, exponent)) == scorer(fitted, rows) > 0.1
    assert fitted.norm == "input"


@pytest.mark.parametrize("mode", ["asymmetric", "sparse"])
def test_scorer_needs_no_codes_in_data_frames(fitted, embeddings, mode):
    scorer = RetrievalRecallScorer(mode, n_neighbors=5)
    expected = scorer(fitted, embeddings)
    with config_context(transform_output="pandas"):
        assert scorer(fitted, embeddings) == expected
    assert scorer(copy.deepcopy(fitted).set_output(transform="pandas"), embeddings) == expected


@pytest.mark.parametrize("container", [np.asarray, lambda X: pd.DataFrame(X, columns=list("abcdefgh"))])
def test_scorer_chooses_k_in_a_grid_search(container):
    search = GridSearchCV(
        make_pipeline(StandardScaler(), TopKCompressor()),
        {"topkcompressor__k": [1, 4, 16]},
        scoring=RetrievalRecallScorer(n_neighbors=5),
        cv=2,
        error_score="raise",
    ).fit(container(make_rows()))
    means = search.cv_results_["mean_test_score"]
    assert np.all(np.diff(means) > 0)
    assert search.best_params_ == {"topkcompressor__k": 16}


def test_scorer_repeats_itself_only_with_a_seed():
    X = make_rows()
    model = TopKCompressor().fit(X)
    seeded = RetrievalRecallScorer(n_neighbors=5)
    assert seeded(model, X) == seeded(model, X)
    unseeded = RetrievalRecallScorer(n_neighbors=5, random_state=np.random.RandomState(0))
    assert len({unseeded(model, X) for _ in range(5)}) > 1


@pytest.mark.parametrize(
    ("kwargs", "error", "match"),
    [
        ({"mode": "dense"}, ValueError, "mode must be one of .* got 'dense'"),
        ({"metric": "l2"}, ValueError, "metric must be one of .* got 'l2'"),
        ({"n_neighbors": 0}, ValueError, "n_neighbors == 0"),
        ({"n_queries": 0}, ValueError, "n_queries == 0"),
        ({"n_queries": 0.2}, TypeError, "n_queries must be an instance of"),
    ],
)
def test_scorer_checks_its_parameters(kwargs, error, match):
    with pytest.raises(error, match=match):
        RetrievalRecallScorer(**kwargs)


def test_scorer_checks_what_it_scores():
    X = make_rows(12)
    with pytest.raises(ValueError, match=r"n_queries \+ n_neighbors = 2 \+ 11 rows, got 12"):
        RetrievalRecallScorer(n_neighbors=11)(TopKCompressor().fit(X), X)
    with pytest.raises(ValueError, match=r"= 10 \+ 5 rows, got 12"):
        RetrievalRecallScorer(n_neighbors=5, n_queries=10)(TopKCompressor().fit(X), X)
    with pytest.raises(TypeError, match=r"must be a CompresSAETransformer .* got StandardScaler"):
        RetrievalRecallScorer(n_neighbors=5)(make_pipeline(StandardScaler()).fit(X), X)


def test_ndcg_of_a_perfect_list_is_1_at_most():
    rng = np.random.default_rng(0)
    for _ in range(300):
        n = rng.integers(1, 40)
        true = rng.permutation(n)[None]
        assert neighbor_ndcg_score(true, true[:, np.argsort(-(g := rng.uniform(size=n)))], gains=[g]) <= 1.0


def test_at_most_a_thousand_queries_by_default():
    assert len(split_queries(np.zeros((6000, 1)), None, 10, 0)[1]) == 1000
