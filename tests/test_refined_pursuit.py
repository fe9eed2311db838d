"""Refined pursuit against its formulas in float64, and the parts it is made of."""

import copy

import numpy as np
import pytest
from conftest import make_embeddings
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_pursuit import naive_pursuit, naive_refinement, naive_values

from skcompressae import CompresSAETransformer, model_hash
from skcompressae._core._refinement import N_REFINEMENTS, count_refined, merged_candidates, unexplained_rows

# In what follows a choice is a near tie where float32 could make it otherwise.
NEAR_TIE = 1e-5


def random_model(n_features, n_components, k, seed, **parameters):
    """A model of random weights, whose encoder is far from its decoder: there is much to refine."""
    random_state = np.random.RandomState(seed)
    decoder = random_state.standard_normal((n_components, n_features))
    decoder /= np.linalg.norm(decoder, axis=1, keepdims=True)
    model = CompresSAETransformer(n_components, k=k, coding="refined_pursuit", norm=None, device="cpu", **parameters)
    model.components_ = decoder.astype(np.float32)
    model.encoder_weights_ = (decoder + 0.5 * random_state.standard_normal(decoder.shape)).astype(np.float32)
    model.encoder_bias_ = (0.1 * random_state.standard_normal(n_components)).astype(np.float32)
    model.scales_mean_apart_ = False
    model.n_features_in_, model.k_ = n_features, k
    return model


def naive_code(x, model):
    """Encode a unit row; return indices, values and the least difference that a choice was made by."""
    weights, bias, decoder = (
        array.astype(np.float64) for array in (model.encoder_weights_, model.encoder_bias_, model.components_)
    )
    n_components, k = len(bias), model.k
    activations = weights @ x + bias
    order = np.argsort(-abs(activations), kind="stable")
    n = min(n_components, max(k, round(model.candidate_factor * k)))
    gap = abs(activations[order[n - 1]]) - abs(activations[order[n]]) if n < n_components else np.inf
    chosen, smallest = np.sort(order[:k]), np.inf
    if n > k:
        candidates = np.sort(order[:n])
        chosen, _, smallest = naive_pursuit(x, decoder, candidates, activations[candidates], k)
    gaps = [gap, smallest]
    values = naive_values(x, decoder[chosen])
    for _ in range(N_REFINEMENTS):
        chosen, values, gap = naive_refinement(x, decoder, chosen, values)
        gaps.append(gap)
    return chosen, values, min(gaps)


@given(
    n_features=st.integers(8, 40),
    n_components=st.integers(4, 80),
    k=st.integers(1, 8),
    candidate_factor=st.sampled_from([1.0, 2.0, 3.0]),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=60, deadline=None)
def test_codes_are_those_of_the_formulas(n_features, n_components, k, candidate_factor, seed):
    k = min(k, n_components, n_features // 2)
    model = random_model(n_features, n_components, k, seed, candidate_factor=candidate_factor)
    # of another seed: the first numbers of this one are a decoder row, of which one latent leaves nothing to choose by
    rows = np.random.RandomState(seed + 2**16 + 1).standard_normal((6, n_features))
    codes = model.transform(rows).toarray()
    for row, code in zip(rows, codes, strict=True):
        chosen, values, gap = naive_code(row / np.linalg.norm(row), model)
        if gap < NEAR_TIE:
            continue
        np.testing.assert_array_equal(np.flatnonzero(code), chosen[values != 0])
        np.testing.assert_allclose(code[chosen], values, rtol=0, atol=1e-4 * max(1, abs(values).max()))


def test_it_finds_latents_that_the_encoder_did_not_propose():
    model = random_model(24, 400, 4, 0)
    model.encoder_weights_ = model.encoder_weights_[::-1].copy()  # proposals that have nothing to do with the decoder
    rows = make_embeddings(n_rows=200)
    refined = model.score(rows)
    assert refined > model.set_params(coding="pursuit").score(rows) + 0.1
    assert refined > 0.8


def test_a_model_that_refines_has_a_hash_of_its_own(fitted):
    hashes = {
        model_hash(copy.deepcopy(fitted).set_params(coding=coding, candidate_factor=factor))
        for coding in ("pursuit", "refined_pursuit")
        for factor in (2.0, 3.0)
    }
    assert len(hashes) == 4


@pytest.mark.parametrize("n_threads", [1, 2])
def test_what_codes_leave(n_threads):
    random_state = np.random.RandomState(0)
    decoder = random_state.standard_normal((30, 12)).astype(np.float32)
    x = random_state.standard_normal((150, 12)).astype(np.float32)
    indices = np.sort([random_state.choice(30, 4, replace=False) for _ in x]).astype(np.int32)
    values = random_state.standard_normal(indices.shape).astype(np.float32)
    x[7] = np.einsum("k,kd->d", values[7], decoder[indices[7]])
    x[8], values[8] = 0, 0
    rest, norms = unexplained_rows(x, decoder, indices, values, n_threads=n_threads)
    expected = x - np.einsum("nk,nkd->nd", values, decoder[indices])
    np.testing.assert_allclose(norms, np.linalg.norm(expected, axis=1), atol=1e-5)
    np.testing.assert_allclose(rest * norms[:, None], expected, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(np.delete(rest, [7, 8], axis=0), axis=1), 1, atol=1e-5)
    assert np.isfinite(rest).all()
    assert not rest[8].any()


@given(k=st.integers(1, 6), n_components=st.integers(1, 20), seed=st.integers(0, 2**16))
@settings(max_examples=100, deadline=None)
def test_candidates_are_the_code_and_what_is_proposed(k, n_components, seed):
    k, random_state = min(k, n_components), np.random.RandomState(seed)
    indices, proposed = np.sort(
        [[random_state.choice(n_components, k, replace=False) for _ in range(5)] for _ in range(2)]
    ).astype(np.int32)
    values, correlations = random_state.uniform(1, 2, (2, 5, k)).astype(np.float32)
    norms = np.linspace(0.5, 1, 5, dtype=np.float32)
    candidates, activations = merged_candidates(
        indices, values, proposed, correlations, norms, n_components, n_threads=1
    )
    n_candidates = count_refined(k, n_components)
    assert candidates.shape == activations.shape == (5, n_candidates)
    for i in range(5):
        wanted = dict.fromkeys(range(n_components), np.float32(0))
        wanted.update(zip(proposed[i].tolist(), norms[i] * correlations[i], strict=True))
        wanted.update(zip(indices[i].tolist(), values[i], strict=True))
        named = set(indices[i].tolist()) | set(proposed[i].tolist())
        # the lowest numbers take the places of those that are both
        others = [latent for latent in range(n_components) if latent not in named]
        expected = sorted(named | set(others[: n_candidates - len(named)]))
        assert candidates[i].tolist() == expected
        np.testing.assert_array_equal(activations[i], [wanted[latent] for latent in expected])
