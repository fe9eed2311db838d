"""Deciding supports from rounded proposals gives what recomputing every candidate gives."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skcompressae._core._rows import unit_rows
from skcompressae._core._supports import activation_codes, rounding_margin, supports
from skcompressae._core._topk import top_k


@settings(deadline=None, max_examples=60)
@given(
    k=st.integers(1, 12),
    n_extra=st.integers(0, 8),
    noise=st.sampled_from([0.0, 1e-6, 1e-2, 1.0]),
    has_ties=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_supports_are_those_of_the_recomputed_activations(k, n_extra, noise, has_ties, seed):
    random_state = np.random.RandomState(seed)
    x, _ = unit_rows(random_state.standard_normal((6, 10)))
    encoder = random_state.standard_normal((30, 10)).astype(np.float32)
    bias = (0.1 * random_state.standard_normal(30)).astype(np.float32)
    if has_ties:
        encoder[10:20], bias[10:20] = encoder[:10], bias[:10]
    candidates, _ = top_k(x @ encoder.T + bias, k + n_extra, n_threads=1)
    expected, exact = activation_codes(x, encoder, bias, candidates, k + n_extra, n_threads=1)
    np.testing.assert_array_equal(expected, candidates)
    # proposals as wrong as the margin allows
    proposed = exact + (noise * random_state.uniform(-1, 1, exact.shape)).astype(np.float32)
    margin = max(noise, rounding_margin(encoder, bias))
    found = supports(x, encoder, bias, candidates, proposed, margin, k, n_threads=1)
    np.testing.assert_array_equal(found, activation_codes(x, encoder, bias, candidates, k, n_threads=1)[0])


@pytest.mark.parametrize("n_features", [3, 100, 768])
def test_two_orders_of_summation_differ_by_less_than_the_margin(n_features):
    random_state = np.random.RandomState(n_features)
    x, _ = unit_rows(random_state.standard_normal((40, n_features)))
    encoder = random_state.standard_normal((60, n_features)).astype(np.float32)
    bias = random_state.standard_normal(60).astype(np.float32)
    everything = np.tile(np.arange(60, dtype=np.int32), (40, 1))
    _, recomputed = activation_codes(x, encoder, bias, everything, 60, n_threads=1)
    difference = np.abs(recomputed - (x @ encoder.T + bias)).max()
    assert difference <= rounding_margin(encoder, bias) < 1e-3 * n_features
