"""Screening by a rounded product finds what activations computed in float32 say, whatever the rounding did."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from skcompressae import CompresSAETransformer, _encoding
from skcompressae._core._rows import unit_rows
from skcompressae._core._screening import decide, error_bounds, room_for, survive
from skcompressae._core._supports import activation_codes
from skcompressae._torch import _screened
from skcompressae._torch._screened import ScreenedActivations


def rounded(array):
    return torch.from_numpy(array).to(torch.bfloat16).to(torch.float32).numpy()


def draw(n_rows, n_features, n_components, random_state, *, has_ties=False, is_divided=False):
    is_zero = random_state.uniform(size=(n_rows, 1)) < 0.1
    x, _ = unit_rows(np.where(is_zero, 0.0, random_state.standard_normal((n_rows, n_features))))
    encoder = random_state.standard_normal((n_components, n_features)) * np.exp(random_state.standard_normal())
    bias = 0.1 * random_state.standard_normal(n_components)
    if has_ties:
        half = n_components // 2
        encoder[half : 2 * half], bias[half : 2 * half] = encoder[:half], -bias[:half]
    divisors = random_state.uniform(0.5, 2, n_components).astype(np.float32) if is_divided else None
    return x, encoder.astype(np.float32), bias.astype(np.float32), divisors


def expected_codes(x, encoder, bias, divisors, n):
    everything = np.tile(np.arange(len(encoder), dtype=np.int32), (len(x), 1))
    return activation_codes(x, encoder, bias, everything, n, n_threads=1, divisors=divisors)


@settings(deadline=None, max_examples=80)
@given(
    n_features=st.sampled_from([1, 7, 33, 100]),
    n_components=st.integers(1, 70),
    has_ties=st.booleans(),
    is_divided=st.booleans(),
    seed=st.integers(0, 2**31),
    data=st.data(),
)
def test_errors_as_large_as_the_bounds_change_nothing(n_features, n_components, has_ties, is_divided, seed, data):
    n = data.draw(st.integers(1, n_components), label="n")
    random_state = np.random.RandomState(seed)
    x, encoder, bias, divisors = draw(
        5, n_features, n_components, random_state, has_ties=has_ties, is_divided=is_divided
    )
    bounds = error_bounds(encoder, rounded(encoder), bias, divisors, n_threads=1)
    distances = np.linalg.norm(x - rounded(x), axis=1, keepdims=True)
    exact = x @ encoder.T if divisors is None else x @ encoder.T / divisors
    signs = random_state.choice([-1, 1], exact.shape)
    products = (exact + 0.99 * signs * (bounds.fixed + bounds.slope * distances)).astype(np.float32)
    survivors = room_for(5, n, n_components)
    survive(products, x, rounded(x), bias, bounds, n, survivors, n_threads=1)
    indices, values, n_recomputed, n_violations = decide(
        x, encoder, bias, bounds, survivors, n, n_threads=1, divisors=divisors
    )
    expected = expected_codes(x, encoder, bias, divisors, n)
    np.testing.assert_array_equal(indices, expected[0])
    np.testing.assert_array_equal(values, expected[1])
    assert n_violations == 0
    assert 5 * n <= n_recomputed <= 5 * n_components


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0, 1e20])
@pytest.mark.parametrize("n_features", [3, 100, 768])
def test_products_of_torch_are_within_the_bounds(n_features, scale):
    x, encoder, bias, _ = draw(60, n_features, 300, np.random.RandomState(n_features))
    encoder, bias = encoder * np.float32(scale), bias * np.float32(scale)
    screened = ScreenedActivations(encoder, bias, n_threads=1)
    indices, values = screened.largest(x, 20, 16, 1)
    expected = expected_codes(x, encoder, bias, None, 20)
    np.testing.assert_array_equal(indices, expected[0])
    np.testing.assert_array_equal(values, expected[1])


def test_most_latents_are_not_computed_again():
    x, encoder, bias, _ = draw(60, 384, 2048, np.random.RandomState(0))
    screened = ScreenedActivations(encoder, bias, n_threads=2)
    screened.largest(x[x.any(axis=1)], 32, 16, 2)
    assert screened.pays
    assert screened._n_recomputed < 3 * screened._n_asked


def test_weights_that_could_overflow_are_not_screened():
    _, encoder, bias, _ = draw(1, 10, 30, np.random.RandomState(0))
    assert ScreenedActivations(encoder, bias, n_threads=1).pays
    assert not ScreenedActivations(encoder * np.float32(1e38), bias, n_threads=1).pays


@pytest.mark.parametrize("spoil", ["noise", "infinity"])
def test_products_beyond_the_bounds_are_noticed(monkeypatch, spoil):
    x, encoder, bias, _ = draw(60, 100, 300, np.random.RandomState(1))
    screened = ScreenedActivations(encoder, bias, n_threads=1)
    multiply = torch.mm

    def spoiled(a, b, out):
        multiply(a, b, out=out)
        if spoil == "noise":
            return out.mul_(1.05)
        out[:, 7] = np.inf
        return out

    monkeypatch.setattr(torch, "mm", spoiled)
    assert screened.largest(x, 20, 16, 1) is None
    assert not screened.pays


def fitted(coding, X):
    return CompresSAETransformer(
        96, k=8, max_iter=20, batch_size=128, coding=coding, usage_power=0.3, device="cpu", random_state=0
    ).fit(X)


def transform(model, X, monkeypatch, *, is_screened):
    monkeypatch.setattr(_encoding, "is_worth_screening", lambda n_rows: is_screened)
    return model.transform(X)


@pytest.mark.parametrize("coding", ["pursuit", "least_squares", "activations"])
@pytest.mark.parametrize("n_features", [24, 200])
def test_codes_are_those_of_a_float32_product(monkeypatch, coding, n_features):
    X = np.random.RandomState(2).standard_normal((700, n_features)).astype(np.float32)
    X[3] = 0
    model = fitted(coding, X)
    calls = []
    largest = ScreenedActivations.largest
    monkeypatch.setattr(ScreenedActivations, "largest", lambda *given: calls.append(1) or largest(*given))
    expected = transform(model, X, monkeypatch, is_screened=False)
    assert not calls
    codes = transform(model, X, monkeypatch, is_screened=True)
    assert calls
    np.testing.assert_array_equal(codes.indices, expected.indices)
    np.testing.assert_allclose(codes.data, expected.data, rtol=1e-4, atol=1e-5)


def test_a_product_that_cannot_be_trusted_or_does_not_pay_is_done_in_float32(monkeypatch):
    X = np.random.RandomState(3).standard_normal((700, 24)).astype(np.float32)
    model = fitted("pursuit", X)
    expected = transform(model, X, monkeypatch, is_screened=False)
    multiply = torch.mm
    monkeypatch.setattr(torch, "mm", lambda a, b, out: multiply(a, b, out=out).mul_(1.05))
    spoiled = transform(model, X, monkeypatch, is_screened=True)
    monkeypatch.undo()
    monkeypatch.setattr(_screened, "_MAX_RECOMPUTED", 1)
    unpaid = transform(model, X, monkeypatch, is_screened=True)
    for codes in (spoiled, unpaid):
        np.testing.assert_array_equal(codes.indices, expected.indices)
        np.testing.assert_array_equal(codes.data, expected.data)


def test_few_rows_and_reduced_precision_are_not_screened(monkeypatch):
    monkeypatch.setattr(_screened, "MULTIPLIES_BFLOAT16", True)
    assert _screened.is_worth_screening(4096)
    assert not _screened.is_worth_screening(64)
    monkeypatch.setattr(_screened, "MULTIPLIES_BFLOAT16", False)
    assert not _screened.is_worth_screening(4096)
    X = np.random.RandomState(4).standard_normal((200, 24)).astype(np.float32)
    model = fitted("pursuit", X).set_params(precision="bfloat16")
    monkeypatch.setattr(ScreenedActivations, "largest", lambda *given: pytest.fail("screened"))
    transform(model, X, monkeypatch, is_screened=True)
