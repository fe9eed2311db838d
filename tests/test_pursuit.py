"""Matching pursuit and least squares on a support, against NumPy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_pursuit import naive_flattening, naive_pursuit, naive_values

from skcompressae._core._flattening import AS_FITTED, Flattening
from skcompressae._core._pursuit import RIDGE, Inexact, count_candidates, least_squares_codes, pursuit_codes
from skcompressae._core._rows import unit_rows
from skcompressae._core._supports import candidate_activations


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def draw(n_rows, n_features, n_components, n_candidates, seed, dtype=np.float64):
    """Unit rows, unit decoder rows, distinct ascending candidates and their activations."""
    random_state = np.random.RandomState(seed)
    x = unit(random_state.standard_normal((n_rows, n_features))).astype(dtype)
    decoder = unit(random_state.standard_normal((n_components, n_features))).astype(dtype)
    candidates = [np.sort(random_state.choice(n_components, n_candidates, replace=False)) for _ in range(n_rows)]
    activations = random_state.standard_normal((n_rows, n_candidates)).astype(dtype)
    return x, decoder, np.array(candidates, dtype=np.int32), activations


def explained(x, decoder, indices, values):
    """Squared norm of what each row's code leaves unexplained."""
    x_hat = np.einsum("ij,ijd->id", values.astype(np.float64), decoder.astype(np.float64)[indices])
    return ((x.astype(np.float64) - x_hat) ** 2).sum(axis=1)


@settings(deadline=None, max_examples=50)
@given(
    n_rows=st.integers(1, 6),
    n_features=st.integers(32, 70),
    k=st.integers(1, 9),
    n_spare=st.integers(0, 20),
    seed=st.integers(0, 2**31),
)
def test_values_on_a_given_support_are_least_squares(n_rows, n_features, k, n_spare, seed):
    x, decoder, support, activations = draw(n_rows, n_features, k + n_spare, k, seed)
    values, norms = least_squares_codes(x, decoder, support, n_threads=1)
    for found, expected in zip(
        pursuit_codes(x, decoder, support, activations, k, n_threads=1), (support, values, norms), strict=True
    ):
        np.testing.assert_array_equal(found, expected)  # nothing to choose
    for i in range(n_rows):
        rows = decoder[support[i]]
        np.testing.assert_allclose(values[i], naive_values(x[i], rows), atol=1e-10)
        # The ridge moves the solution by at most ridge / (smallest eigenvalue) of its length.
        exact = np.linalg.lstsq(rows.T, x[i], rcond=None)[0]
        bound = RIDGE / np.linalg.eigvalsh(rows @ rows.T)[0] * np.linalg.norm(exact)
        assert np.linalg.norm(values[i] - exact) <= bound + 1e-10


@settings(deadline=None, max_examples=50)
@given(
    n_rows=st.integers(1, 5),
    n_features=st.integers(24, 60),
    k=st.integers(1, 19),
    n_more=st.integers(1, 15),
    seed=st.integers(0, 2**31),
)
def test_pursuit_is_that_of_a_naive_loop(n_rows, n_features, k, n_more, seed):
    x, decoder, candidates, activations = draw(n_rows, n_features, k + n_more + 5, k + n_more, seed)
    indices, values, _ = pursuit_codes(x, decoder, candidates, activations, k, n_threads=1)
    for i in range(n_rows):
        expected_indices, expected_values, _ = naive_pursuit(x[i], decoder, candidates[i], activations[i], k)
        np.testing.assert_array_equal(indices[i], expected_indices)
        np.testing.assert_allclose(values[i], expected_values, atol=1e-9)


@settings(deadline=None, max_examples=40)
@given(
    n_features=st.integers(1, 12),
    k=st.integers(1, 24),
    n_more=st.integers(0, 12),
    dtype=st.sampled_from([np.float32, np.float64]),
    seed=st.integers(0, 2**31),
)
def test_duplicates_zero_rows_and_more_latents_than_features_stay_finite(n_features, k, n_more, dtype, seed):
    x, decoder, candidates, activations = draw(5, n_features, k + n_more, k + n_more, seed, dtype)
    decoder[::2] = decoder[0]
    decoder[3::5] = 0
    decoder[4::6] *= -1
    x[2] = 0
    activations[2] = 0
    activations[3] = 1
    indices, values, _ = pursuit_codes(x, decoder, candidates, activations, k, n_threads=1)
    assert np.isfinite(values).all()
    assert (np.diff(indices, axis=1) > 0).all()
    np.testing.assert_array_equal(values[2], 0)
    left = explained(x, decoder, indices, values)
    # float32 rounding of the Gram matrix against a ridge of 1e-5
    slack = 2e-3 if dtype == np.float32 else 1e-9
    for i in range(len(x)):
        rows = decoder[indices[i]].astype(np.float64)
        best = np.linalg.lstsq(rows.T, x[i].astype(np.float64), rcond=1e-10)[0]
        best_left = ((x[i] - best @ rows) ** 2).sum()
        assert left[i] <= best_left + RIDGE * (best**2).sum() + slack


@pytest.mark.parametrize("n_features", [16, 48])
def test_pursuit_explains_more_than_the_largest_activations(n_features):
    x, decoder, everything, _ = draw(50, n_features, 64, 64, 0)
    activations = x @ decoder.T
    chosen = explained(x, decoder, *pursuit_codes(x, decoder, everything, activations, 6, n_threads=1)[:2])
    top = np.sort(np.argsort(-np.abs(activations), axis=1)[:, :6], axis=1).astype(np.int32)
    largest = explained(x, decoder, top, least_squares_codes(x, decoder, top, n_threads=1)[0])
    assert chosen.mean() < largest.mean()


@pytest.mark.parametrize(("factor", "expected"), [(1.0, 32), (2.0, 64), (2.01, 64), (31.3, 1000), (1e308, 1000)])
def test_candidates_are_at_most_all_latents(factor, expected):
    assert count_candidates(32, factor, 1000) == expected


def test_the_largest_activations_are_in_the_code():
    x, decoder, candidates, activations = draw(80, 24, 60, 40, 5)
    indices, _, _ = pursuit_codes(x, decoder, candidates, activations, 9, n_threads=1)
    for i in range(80):
        assert set(candidates[i, np.argsort(-np.abs(activations[i]))[:4]]) <= set(indices[i])


def test_float32_agrees_with_float64():
    x, decoder, candidates, activations = draw(200, 64, 256, 48, 1, np.float32)
    indices, values, _ = pursuit_codes(x, decoder, candidates, activations, 32, n_threads=1)
    x64, decoder64, activations64 = (array.astype(np.float64) for array in (x, decoder, activations))
    wide = pursuit_codes(x64, decoder64, candidates, activations64, 32, n_threads=1)[:2]
    np.testing.assert_allclose(
        explained(x, decoder, indices, values), explained(x, decoder, *wide), atol=1e-3, err_msg="unexplained share"
    )
    same = (indices == wide[0]).all(axis=1)
    assert same.mean() > 0.95
    np.testing.assert_allclose(values[same], wide[1][same], atol=1e-3)


def test_threads_change_nothing():
    x, decoder, candidates, activations = draw(300, 24, 80, 24, 3, np.float32)
    one = pursuit_codes(x, decoder, candidates, activations, 16, n_threads=1)
    many = pursuit_codes(x, decoder, candidates, activations, 16, n_threads=3)
    np.testing.assert_array_equal(one[0], many[0])
    np.testing.assert_array_equal(one[1], many[1])


@pytest.mark.parametrize(("n_features", "k", "n_candidates"), [(3, 32, 38), (4, 32, 64), (8, 27, 40), (15, 38, 50)])
@pytest.mark.parametrize("has_twins", [False, True])
def test_more_latents_than_features_leave_no_number_undefined(n_features, k, n_candidates, has_twins):
    x, decoder, candidates, activations = draw(60, n_features, 64, n_candidates, k, np.float32)
    if has_twins:
        decoder[32:] = decoder[0]
    indices, values, norms = pursuit_codes(x, decoder, candidates, activations, k, n_threads=1)
    assert (np.diff(indices, axis=1) > 0).all()
    assert np.isfinite(values).all()
    assert np.isfinite(norms).all()
    if not has_twins:
        assert explained(x, decoder, indices, values).max() < 0.05  # nearly all of the row


def test_scores_that_are_no_numbers_fill_a_code():
    x, decoder, candidates, _ = draw(5, 20, 40, 30, 0, np.float32)
    activations = np.full((5, 30), np.nan, dtype=np.float32)
    indices, _, _ = pursuit_codes(x, decoder, candidates, activations, 12, n_threads=1)
    assert (np.diff(indices, axis=1) > 0).all()


def test_norms_are_those_of_the_reconstructions():
    random_state = np.random.RandomState(3)
    x, _ = unit_rows(random_state.standard_normal((40, 12)))
    decoder, _ = unit_rows(random_state.standard_normal((30, 12)))
    candidates = np.tile(np.arange(10, dtype=np.int32), (40, 1))
    activations = random_state.standard_normal((40, 10)).astype(np.float32)
    indices, values, norms = pursuit_codes(x, decoder, candidates, activations, 6, n_threads=1)
    expected = np.linalg.norm(np.einsum("ij,ijd->id", values, decoder[indices]), axis=1)
    np.testing.assert_allclose(norms, expected, rtol=1e-5)


@pytest.mark.parametrize("keeps_mean", [False, True])
@pytest.mark.parametrize(("n_features", "n_candidates", "k"), [(60, 20, 9), (60, 9, 9), (12, 11, 11), (12, 16, 11)])
def test_values_are_drawn_together_and_norms_are_those_that_they_decode_to(n_features, n_candidates, k, keeps_mean):
    # of 11 latents in 12 dimensions many values cancel one another
    x, decoder, candidates, activations = draw(50, n_features, 24, n_candidates, k, np.float32)
    indices, fitted, _ = pursuit_codes(x, decoder, candidates, activations, k, n_threads=1)
    flattening = Flattening(0.3, keeps_mean)
    chosen, values, norms = pursuit_codes(x, decoder, candidates, activations, k, n_threads=2, flattening=flattening)
    np.testing.assert_array_equal(chosen, indices)
    for i in range(50):
        rows = decoder[indices[i]].astype(np.float64)
        expected = naive_flattening(fitted[i].astype(np.float64), rows, 0.3)
        if keeps_mean and indices[i, 0] == 0:
            assert values[i, 0] == fitted[i, 0]
            expected[0] = fitted[i, 0]
        # the rest of a row is known to a few epsilons times the squares of the values
        np.testing.assert_allclose(values[i], expected, rtol=1e-4)
        assert norms[i] == pytest.approx(np.linalg.norm(values[i].astype(np.float64) @ rows), rel=1e-5)
    if n_features == 12:
        assert (np.linalg.norm(fitted, axis=1) > 2.5 * norms).any()
    same = pursuit_codes(x, decoder, candidates, activations, k, n_threads=1, flattening=AS_FITTED)
    np.testing.assert_array_equal(same[1], fitted)


@settings(deadline=None, max_examples=60)
@given(
    k=st.integers(1, 20),
    n_more=st.integers(1, 20),
    has_ties=st.booleans(),
    has_twins=st.booleans(),
    size=st.sampled_from([1e-6, 1e-5, 1e-3, 0.05, 1.0]),
    seed=st.integers(0, 2**31),
)
def test_codes_by_inexact_activations_are_those_by_exact_ones(k, n_more, has_ties, has_twins, size, seed):
    """To the last bit, whatever the errors are, up to what is said of them."""
    n_components = k + n_more + 5
    x, decoder, candidates, _ = draw(4, 40, n_components, k + n_more, seed, np.float32)
    random_state = np.random.RandomState(seed)
    encoder = (decoder + 0.1 * random_state.standard_normal(decoder.shape)).astype(np.float32)
    bias = 0.1 * random_state.standard_normal(n_components).astype(np.float32)
    if has_twins:  # so that scores are nearly equal
        decoder[1::2] = decoder[: n_components // 2]
    if has_ties:
        encoder[1::2], bias[1::2] = -encoder[: n_components // 2], -bias[: n_components // 2]
    exact = candidate_activations(x, encoder, bias, candidates, n_threads=1)
    errors = np.array([0, size, size, size], dtype=np.float32)
    signs = random_state.choice([-1, 1], exact.shape)
    proposed = exact + (0.8 * signs * errors[:, None]).astype(np.float32)  # with room for the sum's rounding
    expected = pursuit_codes(x, decoder, candidates, exact, k, n_threads=1)
    found = pursuit_codes(x, decoder, candidates, proposed, k, n_threads=1, inexact=Inexact(errors, encoder, bias))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_errors_larger_than_said_end_in_a_code_nevertheless():
    x, decoder, candidates, activations = draw(20, 40, 60, 30, 0, np.float32)
    inexact = Inexact(np.full(20, 1e-4, dtype=np.float32), 100 * decoder, np.zeros(60, dtype=np.float32))
    indices, values, _ = pursuit_codes(x, decoder, candidates, activations, 12, n_threads=1, inexact=inexact)
    assert (np.diff(indices, axis=1) > 0).all()
    assert np.isfinite(values).all()


@pytest.mark.parametrize("k", [2, 5, 9, 16])
def test_ties_go_to_the_lowest_index(k):
    """Activations of few sizes, and every latent twice: half by activation, half by correlation tie."""
    x, decoder, candidates, _ = draw(20, 40, 60, 44, k)
    decoder[1::2] = decoder[::2]
    candidates = np.tile(np.arange(8, 52, dtype=np.int32), (20, 1))
    activations = np.repeat(np.random.RandomState(k).randint(1, 4, (20, 22)), 2, axis=1).astype(np.float64)
    activations[:, -1] = -5  # larger than what ties before it
    indices, _, _ = pursuit_codes(x, decoder, candidates, activations, k, n_threads=1)
    for i in range(20):
        expected, _, _ = naive_pursuit(x[i], decoder, candidates[i], activations[i], k)
        np.testing.assert_array_equal(indices[i], expected)


def test_values_of_rows_that_are_explained_stay_as_they_are():
    x, decoder, candidates, activations = draw(20, 40, 24, 20, 0)
    activations[:] = 0.1
    activations[:, :9] = 1.0
    x = unit(np.einsum("ij,ijd->id", np.random.RandomState(1).uniform(1, 2, (20, 4)), decoder[candidates[:, :4]]))
    fitted = pursuit_codes(x, decoder, candidates, activations, 9, n_threads=1)[1]
    values = pursuit_codes(x, decoder, candidates, activations, 9, n_threads=1, flattening=Flattening(0.9, False))[1]
    np.testing.assert_array_equal(values, fitted)
