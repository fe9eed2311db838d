"""The encoder's product on the CPU: what is rounded, what it is divided by, on any processor."""

import numpy as np
import pytest
import torch
from conftest import needs_avx2

from skcompressae._torch import _cpu_engine
from skcompressae._torch._cpu_engine import PreActivations


def factors(dtype, n_rows=100):
    rng = np.random.default_rng(0)
    x, encoder = rng.standard_normal((n_rows, 20)), rng.standard_normal((30, 20))
    return x.astype(dtype), encoder.astype(dtype)


def rounded(array):
    return torch.from_numpy(array).to(torch.bfloat16).to(torch.float64).numpy()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("multiplies_bfloat16", "tolerance"), [(False, 1e-6), (True, 2**-8)])
def test_factors_are_rounded_to_bfloat16_on_any_processor(monkeypatch, dtype, multiplies_bfloat16, tolerance):
    monkeypatch.setattr(_cpu_engine, "MULTIPLIES_BFLOAT16", multiplies_bfloat16)
    monkeypatch.setattr(_cpu_engine, "MULTIPLIES_INT16", False)
    x, encoder = factors(dtype)
    multiply = PreActivations(encoder, "bfloat16")
    multiply.round_for(len(x))
    for factor in (1.0, 3.3):  # also after the weights have changed
        encoder *= factor
        multiply.refresh()
        products = multiply(x, 1)
        assert products.dtype == dtype
        expected = rounded(x) @ rounded(encoder).T
        # one that is native is itself rounded to bfloat16
        np.testing.assert_allclose(products, expected, rtol=tolerance, atol=1e-5)
        assert np.abs(products - x @ encoder.T).max() > 1e-3


@needs_avx2
@pytest.mark.parametrize("is_divided", [False, True])
def test_factors_are_rounded_to_16_bits_where_those_are_multiplied_fast(monkeypatch, is_divided):
    monkeypatch.setattr(_cpu_engine, "MULTIPLIES_INT16", True)
    x, encoder = factors(np.float32)
    divisors = np.linspace(0.5, 2, 30, dtype=np.float32) if is_divided else None
    multiply = PreActivations(encoder, "bfloat16", divisors)
    multiply.round_for(len(x))
    for factor in (1.0, 3.3):
        encoder *= factor
        multiply.refresh()
        exact = x.astype(np.float64) @ encoder.T / (1 if divisors is None else divisors)
        errors = abs(multiply(x, 2) - exact) / np.outer(np.linalg.norm(x, axis=1), np.linalg.norm(encoder, axis=1))
        assert 1e-6 < errors.max() < 1e-4  # bfloat16's are 1e-3


def test_few_rows_are_not_rounded():
    x, encoder = factors(np.float32, n_rows=40)
    multiply = PreActivations(encoder, "bfloat16")
    multiply.round_for(len(x))
    np.testing.assert_allclose(multiply(x, 1), x @ encoder.T, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("n_rows", [1, 40, 100])
def test_products_are_divided(precision, n_rows):
    x, encoder = factors(np.float32, n_rows)
    divisors = np.linspace(0.5, 2, 30, dtype=np.float32)
    plain, divided = PreActivations(encoder, precision), PreActivations(encoder, precision, divisors)
    for multiply in (plain, divided):
        multiply.round_for(n_rows)
    np.testing.assert_allclose(divided(x, 1), plain(x, 1) / divisors, rtol=1e-6)
