"""Sums over decoder rows in 16-bit integers are those over the rows themselves, but for rounding."""

import numpy as np
import pytest
from conftest import needs_avx2
from hypothesis import given, settings
from hypothesis import strategies as st
from test_screening import fitted, transform

from skcompressae import _encoding
from skcompressae._core import _integer_rows
from skcompressae._core._deciding import MANY
from skcompressae._core._integer_rows import (
    add_integer_rows,
    dot_integer_rows,
    gram_of_integers,
    round_decoder,
    rounded_decoder_pays,
)
from skcompressae._core._pursuit import least_squares_codes, pursuit_codes
from skcompressae._core._rows import unit_rows
from skcompressae._torch._screened import ScreenedActivations

pytestmark = needs_avx2

# Half a step, for each of two factors, times the norm of the other; products of such errors; and float32's own.
ENTRY = 0.5 / 32766


def decoder_of(n_components, n_features, random_state, *, is_sparse=False):
    rows = random_state.standard_normal((n_components, n_features))
    if is_sparse:  # some rows have one entry, of 1
        rows *= np.arange(n_features) == random_state.randint(n_features, size=(n_components, 1))
    rows[0] = 0
    return unit_rows(rows)[0]


@settings(deadline=None, max_examples=60)
@given(
    n_features=st.integers(1, 200),
    n=st.integers(1, 40),
    first_share=st.floats(0, 1),
    is_sparse=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_products_and_sums_are_within_rounding(n_features, n, first_share, is_sparse, seed):
    random_state = np.random.RandomState(seed)
    decoder = decoder_of(50, n_features, random_state, is_sparse=is_sparse)
    integers = round_decoder(decoder, n_threads=1)
    assert integers.shape == (50, -(-n_features // 16) * 16)
    picks = random_state.permutation(50)[:n].astype(np.int32)
    first = min(n - 1, int(first_share * n))
    tolerance = 2 * np.sqrt(n_features) * ENTRY * (1 + np.sqrt(n_features) * ENTRY) + 1e-6
    chosen = decoder[picks].astype(np.float64)
    gram = np.full((n, n), np.nan, dtype=np.float32)
    gram_of_integers(integers, picks, first, n, gram)
    np.testing.assert_allclose(gram[first:], chosen[first:] @ chosen.T, atol=tolerance)
    np.testing.assert_array_equal(gram[:first, first:], gram[first:, :first].T)
    row = (random_state.standard_normal(n_features) * 10.0 ** random_state.randint(-6, 7)).astype(np.float32)
    products = np.full(n + 3, np.nan, dtype=np.float32)
    dot_integer_rows(row, integers, picks, n, products)
    assert np.isnan(products[n:]).all()
    np.testing.assert_allclose(products[:n], chosen @ row.astype(np.float64), atol=tolerance * np.linalg.norm(row))
    coefficients = random_state.standard_normal(n).astype(np.float32)
    total = row.copy()
    add_integer_rows(total, integers, coefficients, picks, n)
    bound = ENTRY * abs(coefficients).sum() + 1e-5 * (1 + abs(row) + abs(coefficients).sum())
    assert (abs(total - (row + coefficients.astype(np.float64) @ chosen)) <= bound).all()


def test_products_with_a_row_of_zeros_are_zeros():
    integers = round_decoder(decoder_of(8, 20, np.random.RandomState(0)), n_threads=1)
    products = np.full(8, np.nan, dtype=np.float32)
    dot_integer_rows(np.zeros(20, dtype=np.float32), integers, np.arange(8, dtype=np.int32), 8, products)
    np.testing.assert_array_equal(products, 0)


@pytest.mark.parametrize("spoilt", [1.5, np.inf, np.nan])
def test_a_decoder_whose_sums_might_overflow_is_not_rounded(spoilt):
    decoder = decoder_of(300, 20, np.random.RandomState(0))
    assert round_decoder(decoder, n_threads=2) is not None
    decoder[299] *= np.float32(spoilt)
    assert round_decoder(decoder, n_threads=2) is None


@pytest.mark.parametrize("norms", ["equal rows", "axes"])
def test_sums_stay_within_32_bits(norms):
    decoder = np.full((5, 4000), 1 / np.sqrt(4000), dtype=np.float32) if norms == "equal rows" else np.eye(5, 4000)
    integers = round_decoder(np.ascontiguousarray(decoder, dtype=np.float32), n_threads=1)
    gram = np.empty((5, 5), dtype=np.float32)
    gram_of_integers(integers, np.arange(5, dtype=np.int32), 0, 5, gram)
    np.testing.assert_allclose(gram, decoder @ decoder.T, atol=2e-3)


@pytest.mark.parametrize("k", [1, 7, 32])
def test_codes_hardly_differ(k):
    random_state = np.random.RandomState(k)
    decoder = decoder_of(300, 192, random_state)
    x, _ = unit_rows(random_state.standard_normal((400, 192)))
    activations = x @ decoder.T
    candidates = np.sort(np.argsort(-abs(activations), axis=1)[:, : 2 * k].astype(np.int32), axis=1)
    proposed = np.take_along_axis(activations, candidates, 1)
    integers = round_decoder(decoder, n_threads=1)
    exact = least_squares_codes(x, decoder, candidates, n_threads=1)
    rounded = least_squares_codes(x, integers, candidates, n_threads=1)
    for found, expected in zip(rounded, exact, strict=True):
        np.testing.assert_allclose(found, expected, atol=2e-3)
    picked, values, norms = pursuit_codes(x, decoder, candidates, proposed, k, n_threads=1)
    picked_again, values_again, norms_again = pursuit_codes(x, integers, candidates, proposed, k, n_threads=1)
    is_same = (picked == picked_again).all(axis=1)
    assert is_same.mean() > 0.9
    np.testing.assert_allclose(values_again[is_same], values[is_same], atol=1e-3)
    np.testing.assert_allclose(norms_again, norms, atol=0.02)


def test_it_is_for_many_long_rows_on_processors_that_multiply_such_integers(monkeypatch):
    assert rounded_decoder_pays(1024, 160)
    assert not rounded_decoder_pays(1023, 768)
    assert not rounded_decoder_pays(4096, 159)
    monkeypatch.setattr(_integer_rows, "HAS_AVX2", False)
    assert not rounded_decoder_pays(4096, 768)


@pytest.mark.parametrize("norm", ["input", "unit"])
@pytest.mark.parametrize("has_mean", [False, True])
def test_reduced_precision_rounds_the_decoder_but_not_the_norms(monkeypatch, norm, has_mean):
    random_state = np.random.RandomState(6)
    X = (random_state.standard_normal((1200, 200)) * (2 if has_mean else 1) + 3 * has_mean).astype(np.float32)
    model = fitted("least_squares", X).set_params(norm=norm)
    assert model.has_mean_latent_ == has_mean
    exact = transform(model, X, monkeypatch, roundings=["int16"])
    rounded, computes = [], []
    rounding, largest = _encoding.round_decoder, ScreenedActivations.largest
    monkeypatch.setattr(
        _encoding, "round_decoder", lambda *given, **named: rounded.append(1) or rounding(*given, **named)
    )
    monkeypatch.setattr(
        ScreenedActivations,
        "largest",
        lambda *given, **named: computes.append(named["computes"]) or largest(*given, **named),
    )
    model.set_params(precision="bfloat16")
    codes = transform(model, X, monkeypatch, roundings=["int16"])
    assert len(rounded) == 1
    assert computes == [MANY]
    assert (codes != exact).nnz > 0.9 * exact.nnz
    norms = np.linalg.norm(codes.astype(np.float64) @ model.components_.astype(np.float64), axis=1)
    wanted = np.linalg.norm(X.astype(np.float64), axis=1) if norm == "input" else 1
    np.testing.assert_allclose(norms / wanted, 1, atol=1e-4)
