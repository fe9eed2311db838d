"""Laws that every code obeys, over drawn shapes, dtypes, scales, memory orders and memory-mapped files."""

import copy
import warnings
from functools import cache

import numpy as np
import pytest
import scipy.sparse as sp
from conftest import make_embeddings, stored_as
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_pursuit import naive_flattening

from skcompressae import CompresSAETransformer

CODINGS = ["pursuit", "refined_pursuit", "least_squares", "activations"]
laws = settings(deadline=None, max_examples=40)
# Pre-activations of unit rows are of order 1; selections whose last and first-left-out magnitudes lie closer than this
# may differ with the rounding of a float32 product.
NEAR_TIE = 1e-5


@cache
def compressor(n_features, n_components, k):
    """A barely trained compressor with a bias; never changed, see `variant`."""
    estimator = CompresSAETransformer(
        n_components=n_components, k=k, max_iter=2, validation_fraction=0, usage_power=0, random_state=0, device="cpu"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # dead latents, of course
        estimator.fit(make_embeddings(n_rows=60, n_features=n_features))
    estimator.encoder_bias_ = 0.1 * np.random.RandomState(1).standard_normal(n_components).astype(np.float32)
    estimator.scales_mean_apart_ = False
    return estimator


def variant(estimator, **params):
    return copy.deepcopy(estimator).set_params(**params)


@st.composite
def compressors(draw, **params):
    n_components = draw(st.sampled_from([1, 5, 40, 65]))
    k = draw(st.sampled_from([k for k in (1, 3, 8, 17, 65) if k <= n_components]))
    estimator = compressor(draw(st.sampled_from([1, 2, 16, 33])), n_components, k)
    params.setdefault("coding", draw(st.sampled_from(CODINGS)))
    params.setdefault("norm", draw(st.sampled_from(["input", "unit", None])))
    return variant(estimator, **params)


@st.composite
def rows_for(draw, estimator, dtypes=(np.float32, np.float64), zero_rows=True, scales=True):
    """Rows of mixed scales, some of them zero."""
    n_rows = draw(st.integers(1, 30))
    random_state = np.random.RandomState(draw(st.integers(0, 2**31)))
    rows = random_state.standard_normal((n_rows, estimator.n_features_in_)) + 0.3
    if scales:
        exponents = draw(st.sampled_from(["one", "mixed", -30, 30]))
        if exponents == "mixed":
            rows *= 10.0 ** random_state.randint(-29, 30, (n_rows, 1))
        elif exponents != "one":
            rows *= 10.0**exponents
    if zero_rows:
        rows[random_state.uniform(size=n_rows) < 0.2] = 0
    rows = rows.astype(draw(st.sampled_from(dtypes)))
    return stored_as(rows, draw(st.sampled_from(["C", "F", "strided", "memmap"])))


def pre_activations(estimator, rows):
    """W x / ||x|| + b in float64."""
    rows = np.asarray(rows, dtype=np.float64)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit @ estimator.encoder_weights_.astype(np.float64).T + estimator.encoder_bias_


def naive_support(magnitudes, k):
    return np.sort(np.argsort(-magnitudes, axis=1, kind="stable")[:, :k], axis=1)


def is_clear(magnitudes, k):
    """Whether the k-th magnitude of each row stands clear of the next."""
    if k >= magnitudes.shape[1]:
        return np.ones(len(magnitudes), dtype=bool)
    ordered = -np.sort(-magnitudes, axis=1)
    return ordered[:, k - 1] - ordered[:, k] > NEAR_TIE


def n_selected(estimator):
    """Entries that the encoder's product decides on: k, or the candidates of the pursuit."""
    k = min(estimator.k, estimator.n_components)
    if estimator.coding == "pursuit":
        return min(estimator.n_components, max(k, round(estimator.candidate_factor * k)))
    return k


@laws
@given(data=st.data())
def test_codes_are_canonical_csr_of_exactly_k_per_row(data):
    estimator = data.draw(compressors())
    rows = data.draw(rows_for(estimator))
    codes = estimator.transform(rows)
    assert codes.format == "csr"
    assert codes.shape == (len(rows), estimator.n_components)
    assert codes.dtype == rows.dtype
    again = sp.csr_matrix((codes.data.copy(), codes.indices.copy(), codes.indptr.copy()), shape=codes.shape)
    assert again.has_canonical_format
    assert again.has_sorted_indices
    assert (codes.data != 0).all()
    assert np.isfinite(codes.data).all()
    is_zero = ~np.asarray(rows).any(axis=1)
    n_stored = np.diff(codes.indptr)
    assert not n_stored[is_zero].any()
    if estimator.coding == "activations" or estimator.k <= estimator.n_features_in_:
        assert (n_stored[~is_zero] == estimator.k).all()
    else:  # once a row is explained completely, what is left for further latents can be exactly zero
        assert (n_stored[~is_zero] <= estimator.k).all()
        assert (n_stored[~is_zero] > 0).all()
    x_hat = estimator.inverse_transform(codes)
    assert x_hat.shape == rows.shape
    assert x_hat.dtype == rows.dtype
    assert not x_hat[is_zero].any()


@laws
@given(data=st.data())
def test_norm_is_what_it_says(data):
    estimator = data.draw(compressors(norm="input"))
    rows = data.draw(rows_for(estimator, zero_rows=False))
    codes = estimator.transform(rows).astype(np.float64)
    decoded = np.linalg.norm(codes @ estimator.components_.astype(np.float64), axis=1)
    np.testing.assert_allclose(decoded, np.linalg.norm(rows.astype(np.float64), axis=1), rtol=1e-3)
    units = variant(estimator, norm="unit").transform(rows).astype(np.float64)
    np.testing.assert_allclose(np.linalg.norm(units @ estimator.components_.astype(np.float64), axis=1), 1, rtol=1e-3)
    # without flattening the three differ by a positive factor per row and nothing else
    codes, units = (
        variant(estimator, norm=norm, flattening=0).transform(rows).astype(np.float64) for norm in ("input", "unit")
    )
    raw = variant(estimator, norm=None).transform(rows).astype(np.float64).toarray()
    for other in (codes.toarray(), units.toarray()):
        factors = np.linalg.norm(other, axis=1) / np.linalg.norm(raw, axis=1)
        np.testing.assert_allclose(other, raw * factors[:, None], rtol=1e-4, atol=1e-6 * np.abs(other).max())


@laws
@given(data=st.data(), flattening=st.floats(0, 0.99))
def test_values_are_flattened_by_what_the_fit_leaves(data, flattening):
    estimator = data.draw(compressors(norm="unit", flattening=flattening))
    rows = data.draw(rows_for(estimator, zero_rows=False))
    found = estimator.transform(rows).toarray().astype(np.float64)
    fitted = variant(estimator, norm=None).transform(rows).toarray().astype(np.float64)
    decoder = estimator.components_.astype(np.float64)
    for values, flat in zip(fitted, found, strict=True):
        if estimator.coding != "activations":
            values = naive_flattening(values, decoder, flattening)
        expected = values / np.linalg.norm(values @ decoder)
        # what is left of a row that is explained nearly completely is a difference of two ones
        np.testing.assert_allclose(flat, expected, atol=2e-3 * np.abs(expected).max())


@laws
@given(data=st.data(), exponent=st.integers(-60, 60))
def test_scaling_a_row_by_a_power_of_two_scales_its_code_exactly(data, exponent):
    estimator = data.draw(compressors())
    rows = np.asarray(data.draw(rows_for(estimator, scales=False)))
    codes = estimator.transform(rows).toarray()
    scaled = estimator.transform(np.ldexp(rows, exponent)).toarray()
    np.testing.assert_array_equal(scaled, np.ldexp(codes, exponent) if estimator.norm == "input" else codes)


@laws
@given(data=st.data(), log_scale=st.floats(-30, 30))
def test_scaling_a_row_scales_its_code(data, log_scale):
    estimator = data.draw(compressors())
    rows = np.asarray(data.draw(rows_for(estimator, dtypes=(np.float64,), scales=False, zero_rows=False)))
    scale = 10.0**log_scale
    clear = is_clear(np.abs(pre_activations(estimator, rows)), n_selected(estimator))
    codes = estimator.transform(rows).toarray()
    scaled = estimator.transform(scale * rows).toarray()
    expected = scale * codes if estimator.norm == "input" else codes
    np.testing.assert_allclose(scaled[clear], expected[clear], rtol=1e-4, atol=1e-6 * np.abs(expected).max())


@laws
@given(data=st.data())
def test_negating_a_row_negates_its_code_where_the_bias_is_zero(data):
    estimator = data.draw(compressors())
    estimator.encoder_bias_ = np.zeros_like(estimator.encoder_bias_)
    rows = data.draw(rows_for(estimator))
    np.testing.assert_array_equal(estimator.transform(-rows).toarray(), -estimator.transform(rows).toarray())


@laws
@given(data=st.data())
def test_a_code_depends_on_its_row_alone(data):
    estimator = data.draw(compressors())
    rows = np.asarray(data.draw(rows_for(estimator, zero_rows=False)))
    codes = estimator.transform(rows).toarray()
    clear = is_clear(np.abs(pre_activations(estimator, rows)), n_selected(estimator))
    order = np.array(data.draw(st.permutations(range(len(rows)))))
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, len(rows) - 1)), max_size=4)))
    parts = [part for part in np.split(rows[order], cuts) if len(part)]
    apart = np.vstack([estimator.transform(part).toarray() for part in parts])
    together = codes[order]
    # Values are fitted per row, so where the selection agrees they are the same bits; the activations themselves are
    # float32 products, whose rounding may depend on the batch's size.
    tolerance = 1e-5 if estimator.coding == "activations" else 0
    sizes = np.abs(together).max(axis=1, keepdims=True)
    assert (np.abs(apart - together) <= tolerance * sizes)[clear[order]].all()


@laws
@given(data=st.data())
def test_activations_are_those_of_a_naive_stable_top_k_in_float64(data):
    estimator = data.draw(compressors(coding="activations", norm=None))
    rows = data.draw(rows_for(estimator, zero_rows=False))
    exact = pre_activations(estimator, rows)
    codes = estimator.transform(rows)
    support = codes.indices.reshape(len(rows), estimator.k)
    np.testing.assert_allclose(codes.data.reshape(support.shape), np.take_along_axis(exact, support, 1), atol=1e-5)
    magnitudes = np.abs(exact)
    expected = naive_support(magnitudes, estimator.k)
    clear = is_clear(magnitudes, estimator.k)
    np.testing.assert_array_equal(support[clear], expected[clear])
    # and a near tie gives up no more than a near tie
    least = np.take_along_axis(magnitudes, support, 1).min(axis=1)
    assert (least >= np.take_along_axis(magnitudes, expected, 1).min(axis=1) - NEAR_TIE).all()


@laws
@given(data=st.data())
def test_fitted_values_stand_on_the_largest_activations(data):
    estimator = data.draw(compressors(coding=data.draw(st.sampled_from(["pursuit", "least_squares"])), norm=None))
    rows = data.draw(rows_for(estimator, zero_rows=False))
    magnitudes = np.abs(pre_activations(estimator, rows))
    candidates = naive_support(magnitudes, n_selected(estimator))
    codes = estimator.transform(rows)
    for i in np.flatnonzero(is_clear(magnitudes, n_selected(estimator))):
        assert set(codes.indices[codes.indptr[i] : codes.indptr[i + 1]]) <= set(candidates[i])


@pytest.mark.parametrize("coding", ["pursuit", "least_squares", "activations"])
def test_equal_latents_tie_to_the_lowest_index(coding):
    estimator = variant(compressor(16, 40, 3), coding=coding, norm=None)
    # Latents 10 to 39 repeat latents 0 to 9, so every magnitude comes four times.
    for name in ("encoder_weights_", "encoder_bias_", "components_"):
        array = getattr(estimator, name)
        setattr(estimator, name, np.concatenate([array[:10]] * 4))
    rows = make_embeddings(n_rows=40, n_features=16, seed=3)
    support = estimator.set_params(k=4, candidate_factor=1.0).transform(rows).indices.reshape(-1, 4)
    assert (support[:, 0] < 10).all()
    np.testing.assert_array_equal(support, support[:, :1] + [0, 10, 20, 30])
    # k = 2 takes two of the four equal ones: the first two
    support = estimator.set_params(k=2).transform(rows).indices.reshape(-1, 2)
    np.testing.assert_array_equal(support, support[:, :1] + [0, 10])


def test_fitted_values_reconstruct_better_than_activations(fitted, embeddings):
    codings = "activations", "least_squares", "pursuit", "refined_pursuit"
    scores = [variant(fitted, coding=coding).score(embeddings) for coding in codings]
    assert scores == sorted(set(scores))


@laws
@given(data=st.data(), a=st.floats(-5, 5), b=st.floats(-5, 5))
def test_decoding_is_linear(data, a, b):
    estimator = data.draw(compressors())
    random_state = np.random.RandomState(data.draw(st.integers(0, 2**31)))
    n_rows = data.draw(st.integers(1, 12))
    s, t = (sp.random(n_rows, estimator.n_components, 0.3, format="csr", random_state=random_state) for _ in range(2))
    combined = estimator.inverse_transform(sp.csr_matrix(a * s + b * t))
    parts = a * estimator.inverse_transform(s) + b * estimator.inverse_transform(t)
    np.testing.assert_allclose(combined, parts, atol=1e-10)
    np.testing.assert_allclose(estimator.inverse_transform(s), s.toarray() @ estimator.components_, atol=1e-10)
    np.testing.assert_allclose(estimator.inverse_transform(s.toarray()), estimator.inverse_transform(s), atol=1e-12)


@laws
@given(data=st.data())
def test_score_is_the_mean_cosine_of_rows_and_reconstructions(data):
    estimator = data.draw(compressors())
    rows = data.draw(rows_for(estimator))
    exact = np.asarray(rows, dtype=np.float64)
    x_hat = estimator.inverse_transform(estimator.transform(exact))
    cosines = np.ones(len(exact))
    live = exact.any(axis=1)
    lengths = np.linalg.norm(exact[live], axis=1) * np.linalg.norm(x_hat[live], axis=1)
    cosines[live] = (exact[live] * x_hat[live]).sum(axis=1) / lengths
    assert estimator.score(rows) == pytest.approx(cosines.mean(), abs=1e-4)


@laws
@given(data=st.data())
def test_expanded_queries_score_as_reconstructions_do(data):
    estimator = data.draw(compressors(norm="unit"))
    documents = data.draw(rows_for(estimator, zero_rows=False))
    queries = data.draw(rows_for(estimator, zero_rows=False))
    codes = estimator.transform(documents)
    expanded = estimator.transform_query(queries)
    scores = (expanded.astype(np.float64) @ codes.astype(np.float64).T).toarray()
    x_hat = codes.toarray().astype(np.float64) @ estimator.components_.astype(np.float64)
    exact = np.asarray(queries, dtype=np.float64)
    cosines = (exact / np.linalg.norm(exact, axis=1, keepdims=True)) @ x_hat.T
    np.testing.assert_allclose(scores, cosines, atol=1e-4)
    assert expanded.dtype == queries.dtype


def test_cut_queries_keep_the_entries_that_weigh_most(fitted, embeddings):
    complete = fitted.transform_query(embeddings[:50]).toarray()
    cut = fitted.transform_query(embeddings[:50], n_nonzero=7)
    np.testing.assert_array_equal(np.diff(cut.indptr), 7)
    assert cut.has_canonical_format
    queries = embeddings[:50] / np.linalg.norm(embeddings[:50], axis=1, keepdims=True)
    pre_activations = queries @ fitted.encoder_weights_.T + fitted.encoder_bias_
    weight = np.abs(complete) * np.sqrt(fitted.latent_rms_) * np.abs(pre_activations) ** 0.25
    np.testing.assert_array_equal(cut.indices.reshape(50, 7), naive_support(weight, 7))
    kept = cut.toarray() != 0
    np.testing.assert_allclose(cut.toarray()[kept], complete[kept], rtol=1e-5, atol=1e-6)
    alone = sp.vstack([fitted.transform_query(embeddings[i : i + 1], n_nonzero=7) for i in range(50)])
    np.testing.assert_array_equal(alone.toarray(), cut.toarray())  # to the last digit, whatever is beside a row
    everything = fitted.transform_query(embeddings[:50], n_nonzero=10_000)
    np.testing.assert_array_equal(everything.toarray(), complete)


@laws
@given(data=st.data())
def test_k_can_be_lowered_after_fitting(data):
    estimator = data.draw(compressors(coding="activations", norm=None))
    rows = data.draw(rows_for(estimator, zero_rows=False))
    wide = estimator.transform(rows).toarray()
    k = data.draw(st.integers(1, estimator.k))
    narrow = estimator.set_params(k=k).transform(rows).toarray()
    expected = np.zeros_like(wide)
    support = naive_support(np.abs(wide), k)
    np.put_along_axis(expected, support, np.take_along_axis(wide, support, axis=1), axis=1)
    np.testing.assert_array_equal(narrow, expected)


@pytest.mark.parametrize("coding", CODINGS)
def test_lowering_k_needs_no_training(fitted, embeddings, coding):
    estimator = variant(fitted, coding=coding)
    before = estimator.transform(embeddings).toarray()
    scores = [estimator.set_params(k=k).score(embeddings) for k in (1, 2, 4, 6)]
    assert scores == sorted(scores)
    assert (np.diff(estimator.set_params(k=2).transform(embeddings).indptr) == 2).all()
    assert estimator.k_ == 6
    np.testing.assert_array_equal(estimator.set_params(k=6).transform(embeddings).toarray(), before)


def test_blocks_of_rows_join_without_seams(fitted):
    rows = make_embeddings(n_rows=9000)
    codes = fitted.transform(rows)
    assert (np.diff(codes.indptr) == 6).all()
    pieces = sp.vstack([fitted.transform(rows[start : start + 1000]) for start in range(0, 9000, 1000)])
    np.testing.assert_array_equal(codes.indices, pieces.indices)
    np.testing.assert_allclose(codes.data, pieces.data, rtol=1e-6)
    dense = variant(fitted, sparse_output=False).transform(rows)
    np.testing.assert_array_equal(dense, codes.toarray())
    np.testing.assert_allclose(fitted.inverse_transform(codes), dense @ fitted.components_, atol=1e-4)


def test_nested_model_serves_an_eighth_of_its_k_better(embeddings):
    parameters = {"n_components": 64, "k": 16, "max_iter": 150, "random_state": 0, "early_stopping": False}
    plain, nested = (
        CompresSAETransformer(nested=nested, **parameters).fit(embeddings).set_params(k=2).score(embeddings)
        for nested in (False, True)
    )
    assert nested > plain + 0.02


@pytest.mark.parametrize("coding", ["pursuit", "refined_pursuit", "least_squares", "activations"])
def test_rows_narrower_than_codes_are_encoded(coding):
    rows = np.random.RandomState(0).standard_normal((200, 4)).astype(np.float32)
    model = CompresSAETransformer(128, k=32, max_iter=5, random_state=0, coding=coding).fit(rows)
    codes = model.transform(rows)
    assert np.isfinite(codes.data).all()
    if coding != "activations":
        assert model.score(rows) > 0.99


@pytest.mark.parametrize("coding", ["pursuit", "refined_pursuit", "least_squares"])
@pytest.mark.parametrize(("n_features", "k"), [(8, 7), (8, 8), (24, 22), (24, 24)])
def test_flattening_leaves_values_that_cancel_one_another(coding, n_features, k):
    rows = make_embeddings(n_rows=600, n_features=n_features)
    model = CompresSAETransformer(4 * n_features, k=4, max_iter=50, norm="unit", random_state=0).fit(rows)
    model.set_params(coding=coding, k=k)
    cosines = {}
    for flattening in (0.0, 0.2):
        x_hat = model.set_params(flattening=flattening).inverse_transform(model.transform(rows))
        cosines[flattening] = (x_hat * rows).sum(axis=1) / np.linalg.norm(rows, axis=1)
    assert cosines[0.2].min() > cosines[0.0].min() - 0.05
    assert cosines[0.2].mean() > cosines[0.0].mean() - 0.001
