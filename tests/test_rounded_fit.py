"""A fit to a decoder in integers leaves to the decoder itself what rounding would tell."""

import numpy as np
import pytest
from conftest import needs_avx2
from hypothesis import given, settings
from hypothesis import strategies as st

from skcompressae._core._flattening import AS_FITTED, Flattening
from skcompressae._core._integer_rows import round_decoder
from skcompressae._core._pursuit import RIDGE, least_squares_codes, pursuit_codes
from skcompressae._core._rounded_fit import fit_codes
from skcompressae._core._rows import unit_rows

N_ROWS, N_LATENTS, N_FEATURES, K = 300, 80, 200, 8


def draw(seed, *, pair=None, has_mean=False, noise=1.0):
    """Return unit rows, a decoder and supports of K latents, of which latents 0 and 1 are in the first 100 rows.

    The cosine of those two is `pair`. With `has_mean` latent 0 is orthogonal to all others, and all rows lie near it.
    """
    random_state = np.random.RandomState(seed)
    decoder, _ = unit_rows(random_state.standard_normal((N_LATENTS, N_FEATURES)))
    x = noise * random_state.standard_normal((N_ROWS, N_FEATURES)) / np.sqrt(N_FEATURES)
    if pair is not None:
        decoder[1] -= decoder[1] @ decoder[0] * decoder[0]
        decoder[1] *= np.sqrt(1 - pair**2) / np.linalg.norm(decoder[1])
        decoder[1] += np.float32(pair) * decoder[0]
    if has_mean:
        decoder[1:] -= np.outer(decoder[1:] @ decoder[0], decoder[0])
        x += decoder[0]
    supports = np.array([np.sort(2 + random_state.permutation(N_LATENTS - 2)[:K]) for _ in range(N_ROWS)])
    supports[: N_ROWS if has_mean else 100, :2] = [0, 1]
    return unit_rows(x)[0], unit_rows(decoder)[0], supports.astype(np.int32)


def fit_both(x, decoder, supports, flattening=AS_FITTED):
    """Return what is fitted to the decoder, and what with integers besides."""
    rounded = round_decoder(decoder, n_threads=1)
    return (fit_codes(x, decoder, by, supports, None, K, n_threads=1, flattening=flattening) for by in (None, rounded))


@settings(deadline=None, max_examples=30)
@given(pair=st.floats(0, 0.9999), k=st.integers(1, K), seed=st.integers(0, 1000))
def test_pivots_are_squared_distances_to_the_span_of_those_before(pair, k, seed):
    x, decoder, supports = draw(seed, pair=pair)
    pivots = np.empty(N_ROWS, dtype=np.float32)
    least_squares_codes(x, decoder, supports[:, :k].copy(), n_threads=1, pivots=pivots)
    rows = decoder.astype(np.float64)[supports[:, :k]]
    distances = np.abs(np.diagonal(np.linalg.qr(rows.transpose(0, 2, 1))[1], axis1=1, axis2=2)).min(axis=1)
    np.testing.assert_allclose(pivots, distances**2 + RIDGE, rtol=0.02, atol=2 * RIDGE)


def test_pivots_of_a_pursuit_tell_of_picked_latents_that_nearly_coincide():
    x, decoder, _ = draw(0, pair=0.9999)
    activations = x @ decoder.T
    candidates = np.argsort(-abs(activations[:, 2:]), axis=1)[:, : 2 * K] + 2
    candidates[:100, :2] = [0, 1]
    candidates = np.sort(candidates, axis=1).astype(np.int32)
    proposed = np.take_along_axis(activations, candidates, 1)
    proposed[:100, :2] = [2, -2]  # they are taken first
    pivots = np.empty(N_ROWS, dtype=np.float32)
    indices, _, _ = pursuit_codes(x, decoder, candidates, proposed, K, n_threads=1, pivots=pivots)
    np.testing.assert_array_equal(indices[:100, :2], [[0, 1]] * 100)
    np.testing.assert_allclose(pivots[:100], 1 - 0.9999**2 + RIDGE, rtol=0.3)
    assert (pivots[100:] > 0.5).all()


@needs_avx2
@pytest.mark.parametrize("strength", [0.0, 0.3])
def test_latents_that_nearly_coincide_share_a_value_as_in_float32(strength):
    x, decoder, supports = draw(1, pair=1 - 5e-7)
    flattening = Flattening(strength, False)
    (_, values, _), (indices, found, norms) = fit_both(x, decoder, supports, flattening)
    np.testing.assert_array_equal(indices, supports)
    np.testing.assert_array_equal(found[:100], values[:100])
    assert (found[100:] != values[100:]).any(axis=1).mean() > 0.99
    np.testing.assert_allclose(found, values, atol=1e-3)
    decoded = np.einsum("ik,ikj->ij", found.astype(np.float64), decoder[supports])
    np.testing.assert_allclose(norms[100:], np.linalg.norm(decoded[100:], axis=1), rtol=1e-4)
    integers = round_decoder(decoder, n_threads=1)
    blind, _ = least_squares_codes(x, integers, supports, n_threads=1, flattening=flattening)
    assert abs(blind - values)[:100].max() > 0.05


@needs_avx2
def test_norms_of_values_that_cancel_are_those_of_the_decoder_itself():
    x, decoder, supports = draw(2, pair=0.95)
    x[:100] = decoder[0] - decoder[1] + 0.1 * x[:100]
    x, _ = unit_rows(x)
    (_, values, norms), (_, found, found_norms) = fit_both(x, decoder, supports)
    assert ((values**2).sum(axis=1)[:100] > 4 * norms[:100] ** 2).all()
    np.testing.assert_array_equal(found[:100], values[:100])
    np.testing.assert_array_equal(found_norms[:100], norms[:100])
    assert (found[100:] != values[100:]).any(axis=1).mean() > 0.99


@needs_avx2
@pytest.mark.parametrize("keeps_mean", [False, True])
def test_rows_near_a_mean_that_is_scaled_apart_are_fitted_to_the_decoder_itself(keeps_mean):
    x, decoder, supports = draw(3, has_mean=True, noise=0.05)
    (_, values, _), (_, found, _) = fit_both(x, decoder, supports, Flattening(0.2, keeps_mean))
    is_same = (found == values).all(axis=1)
    assert is_same.all() if keeps_mean else is_same.mean() < 0.1
    x, decoder, supports = draw(3, has_mean=True)
    (_, values, norms), (_, found, found_norms) = fit_both(x, decoder, supports, Flattening(0.2, keeps_mean))
    assert (found == values).all(axis=1).mean() < 0.1
    others, expected = (np.sqrt(n**2 - v[:, 0] ** 2) for n, v in ((found_norms, found), (norms, values)))
    np.testing.assert_allclose(others, expected, rtol=5e-3)


@needs_avx2
def test_a_pursuit_is_done_again_where_rounding_tells():
    x, decoder, _ = draw(4, pair=1 - 5e-7)
    activations = x @ decoder.T
    candidates = np.sort(np.argsort(-abs(activations), axis=1)[:, : 2 * K], axis=1).astype(np.int32)
    proposed = np.take_along_axis(activations, candidates, 1)
    named = {"n_threads": 1, "flattening": AS_FITTED}
    expected = pursuit_codes(x, decoder, candidates, proposed, K, n_threads=1)
    found = fit_codes(x, decoder, round_decoder(decoder, n_threads=1), candidates, proposed, K, **named)
    has_both = (expected[0] <= 1).sum(axis=1) == 2
    assert has_both.sum() > 3
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours[has_both], theirs[has_both])
