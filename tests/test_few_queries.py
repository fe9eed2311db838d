"""A few queries cut by weights that are kept in 8 bits keep what queries cut by the weights themselves keep."""

import weakref
from copy import deepcopy

import numpy as np
import pytest
from hypothesis import given, settings
from test_kept_rounding import SHAPES
from test_screening import draw
from test_usage_power import small

from skcompressae import _expanding
from skcompressae._core import _kept_rounding
from skcompressae._core._few_queries import _weigh, expand_few
from skcompressae._core._kept_rounding import (
    NEAR_TIES,
    OTHER_WEIGHTS,
    Keeper,
    bounds_of,
    encoder_role,
    multiply_kept,
)
from skcompressae._core._rows import unit_rows
from skcompressae._core._screening import RoundedRows
from skcompressae._core._supports import candidate_activations

pytestmark = pytest.mark.usefixtures("keeps_small_encoders")


@pytest.fixture
def outcomes(monkeypatch):
    """List the outcome of each call of the kernel."""
    found = []

    def counted(*arguments):
        indices, values, outcome = expand_few(*arguments)
        found.append(outcome)
        return indices, values, outcome

    monkeypatch.setattr(_expanding, "expand_few", counted)
    return found


def by_the_weights(monkeypatch, model, queries, n_nonzero):
    with monkeypatch.context() as patched:
        patched.setattr(_expanding, "FEW_ROWS", 0)
        return model.transform_query(queries, n_nonzero=n_nonzero)


def assert_same(found, expected):
    np.testing.assert_array_equal(found.indptr, expected.indptr)
    np.testing.assert_array_equal(found.indices, expected.indices)
    np.testing.assert_array_equal(found.data, expected.data)


def kept(matrix, bias, divisors=None):
    keeper = Keeper(weakref.ref(matrix), encoder_role(divisors))
    keeper.rounded(matrix, bias, divisors)
    return keeper.rounded(matrix, bias, divisors)


@settings(deadline=None, max_examples=80)
@given(**SHAPES)
def test_entries_are_those_of_largest_weight(n_rows, n_features, n_components, share, is_divided, seed):
    random_state = np.random.RandomState(seed)
    x, encoder, bias, divisors = draw(n_rows, n_features, n_components, random_state, is_divided=is_divided)
    queries, _ = unit_rows(x)
    decoder, _ = unit_rows(random_state.standard_normal((n_components, n_features)))
    importance = random_state.uniform(0, 1, n_components).astype(np.float32)
    importance[random_state.uniform(size=n_components) < 0.1] = 0
    n, no_bias = max(1, int(share * n_components)), np.zeros_like(bias)
    of_encoder = encoder, bias, divisors, kept(encoder, bias, divisors)
    of_decoder = decoder, kept(decoder, no_bias), importance
    indices, values, outcome = expand_few(queries, *of_encoder, *of_decoder, n)
    if outcome == NEAR_TIES:
        return
    assert n * n_rows <= outcome <= n_components * n_rows
    np.testing.assert_array_equal(values, candidate_activations(queries, decoder, no_bias, indices, n_threads=1))
    activations = queries.astype(np.float64) @ encoder.T / (1 if divisors is None else divisors) + bias
    weights = np.abs(queries.astype(np.float64) @ decoder.T) * importance * np.abs(activations) ** 0.25
    assert (np.diff(indices, axis=1) > 0).all()
    # what is kept weighs as much as the largest, but for the rounding of float32, whose fourth root is coarse near 0
    found = np.sort(np.take_along_axis(weights, indices, axis=1))
    np.testing.assert_allclose(found, np.sort(weights)[:, n_components - n :], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("coding", ["pursuit", "activations"])
@pytest.mark.parametrize("n_nonzero", [1, 7, 20])
def test_queries_are_those_of_the_weights(embeddings, outcomes, monkeypatch, coding, n_nonzero):
    """Also where the encoder is scaled, which divides the activations."""
    model = small(coding=coding, usage_power=0.5).fit(embeddings)
    queries = embeddings[:4] * np.logspace(-3, 3, 4, dtype=np.float32)[:, None]
    expected = by_the_weights(monkeypatch, model, queries, n_nonzero)
    for _ in range(3):
        assert_same(model.transform_query(queries, n_nonzero=n_nonzero), expected)
    assert_same(model.transform_query(queries[:1], n_nonzero=n_nonzero), expected[:1])
    assert len(outcomes) == 3  # from the second call on
    assert min(outcomes) > 0


def test_complete_queries_and_more_of_them_are_not_cut_so(fitted, embeddings, outcomes):
    model = deepcopy(fitted)
    for _ in range(3):
        model.transform_query(embeddings[:4])
        model.transform_query(embeddings[:5], n_nonzero=3)
    assert outcomes == []


@pytest.mark.parametrize("written", ["encoder_weights_", "encoder_bias_", "components_"])
def test_weights_that_are_written_to_are_seen(fitted, embeddings, outcomes, monkeypatch, written):
    model = deepcopy(fitted)
    for _ in range(2):
        before = model.transform_query(embeddings[:2], n_nonzero=5)
    weights = getattr(model, written)
    weights += np.random.RandomState(0).standard_normal(weights.shape).astype(np.float32)
    expected = by_the_weights(monkeypatch, model, embeddings[:2], 5)
    for _ in range(2):
        assert_same(model.transform_query(embeddings[:2], n_nonzero=5), expected)
    assert (before != expected).nnz > 0
    assert outcomes[1] == OTHER_WEIGHTS
    assert outcomes[2] > 0


@pytest.mark.parametrize("changed", ["encoder", "decoder"])
def test_changes_beside_what_is_remembered_are_seen_by_what_they_do(changed):
    random_state = np.random.RandomState(5)
    x, encoder, bias, _ = draw(3, 40, 300, random_state)
    queries, _ = unit_rows(x[x.any(axis=1)])
    decoder, _ = unit_rows(random_state.standard_normal((300, 40)))
    weights = {"encoder": encoder, "decoder": decoder}
    both = kept(encoder, bias), kept(decoder, np.zeros_like(bias))
    importance = np.ones(300, dtype=np.float32)

    def outcome():
        return expand_few(queries, encoder, bias, None, both[0], decoder, both[1], importance, 20)[2]

    assert outcome() > 0
    rows = np.arange(300)
    remembered = weights[changed][rows, rows % 40].copy()
    weights[changed] *= np.float32(1.5)
    weights[changed][rows, rows % 40] = remembered
    assert outcome() == OTHER_WEIGHTS


@pytest.mark.parametrize("n_features", [5, 100, 769])
def test_weights_lie_between_their_bounds(n_features):
    random_state = np.random.RandomState(n_features)
    x, encoder, bias, divisors = draw(6, n_features, 3000, random_state, is_divided=True)
    queries, _ = unit_rows(x)
    decoder, _ = unit_rows(random_state.standard_normal((3000, n_features)))
    importance = random_state.uniform(0, 1, 3000).astype(np.float32)
    kept_encoder, kept_decoder = kept(encoder, bias, divisors), kept(decoder, np.zeros_like(bias))
    for query in queries.reshape(6, 1, -1):
        found = []
        for kept_matrix in (kept_encoder, kept_decoder):
            rounded = RoundedRows(*np.empty((3, 1), dtype=np.float32))
            products = np.empty((1, 3000), dtype=np.float32)
            multiply_kept(query, kept_matrix, rounded, products)
            found.append((products[0], (bounds_of(kept_matrix), rounded)))
        (activations, of_activations), (targets, of_targets) = found
        activations = activations + bias
        least, most = np.empty((2, 3000), dtype=np.float32)
        _weigh(targets, of_targets, activations, of_activations, importance, least, most)
        exact_activations = query[0].astype(np.float64) @ encoder.T / divisors + bias
        exact_targets = query[0].astype(np.float64) @ decoder.T
        weights = np.abs(exact_targets) * importance * np.abs(exact_activations) ** 0.25
        assert (least <= weights * (1 + 1e-6)).all()
        assert (most >= weights * (1 - 1e-6)).all()
        if query.any():
            assert (most[weights > 0] < 2 * weights[weights > 0]).mean() > 0.5


def test_tied_weights_are_kept_in_either_role(fitted, embeddings, outcomes, monkeypatch):
    model = deepcopy(fitted)
    model.encoder_weights_ = model.components_
    expected = by_the_weights(monkeypatch, model, embeddings[:1], 5)
    for _ in range(4):
        assert_same(model.transform_query(embeddings[:1], n_nonzero=5), expected)
        model.transform(embeddings[:1])
    assert len(outcomes) == 3
    assert min(outcomes) > 0
    assert all(keeper.pays for keeper in _kept_rounding._keepers)


def test_codes_and_queries_share_the_encoder(fitted, embeddings, outcomes):
    model = deepcopy(fitted)
    for _ in range(2):
        model.transform(embeddings[:1])
        model.transform_query(embeddings[:1], n_nonzero=5)
    assert len(_kept_rounding._keepers) == 2
    assert len(outcomes) == 1


def test_near_ties_end_it(fitted, embeddings, outcomes, monkeypatch):
    """And not what is kept for codes."""
    model = deepcopy(fitted)
    model.components_ = np.tile(model.components_[:1], (model.n_components, 1))
    model.latent_rms_ = np.full(model.n_components, 0.0)
    expected = by_the_weights(monkeypatch, model, embeddings[:1], 1)
    for _ in range(_kept_rounding._N_PROBED + 3):
        assert_same(model.transform_query(embeddings[:1], n_nonzero=1), expected)
    assert outcomes == [NEAR_TIES] * _kept_rounding._N_PROBED
    assert [keeper.pays for keeper in _kept_rounding._keepers] == [True, False]
