"""Screening by a rounded product finds what activations computed in float32 say, whatever the rounding did."""

from threading import Thread

import numpy as np
import pytest
import torch
from conftest import needs_avx2
from hypothesis import given, settings
from hypothesis import strategies as st

from skcompressae import CompresSAETransformer, _encoding
from skcompressae._core import _int16_products
from skcompressae._core._deciding import ALL, MANY, OPEN, decide
from skcompressae._core._int16_products import ROWS_PER_PANEL, ROWS_PER_TILE, multiply_int16, round_to_int16
from skcompressae._core._integer_products import IntegerProducts, dithers, products_of_sums, round_rows
from skcompressae._core._processor import HAS_AVX2
from skcompressae._core._rows import unit_rows
from skcompressae._core._screening import (
    RoundedRows,
    error_bounds,
    integer_error_bounds,
    n_computed,
    room_for,
    survive,
)
from skcompressae._core._supports import activation_codes
from skcompressae._torch import _rounded_products, _screened
from skcompressae._torch._screened import ScreenedActivations

INT16 = pytest.param("int16", marks=needs_avx2)
ROUNDINGS = ["int8", INT16, "bfloat16"]


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
    rounding=st.sampled_from(["int8", "int16", "bfloat16"]),
    n_features=st.sampled_from([1, 7, 33, 100]),
    n_components=st.integers(1, 70),
    has_ties=st.booleans(),
    is_divided=st.booleans(),
    seed=st.integers(0, 2**31),
    data=st.data(),
)
def test_errors_as_large_as_the_bounds_change_nothing(
    rounding, n_features, n_components, has_ties, is_divided, seed, data
):
    n = data.draw(st.integers(1, n_components), label="n")
    random_state = np.random.RandomState(seed)
    x, encoder, bias, divisors = draw(
        5, n_features, n_components, random_state, has_ties=has_ties, is_divided=is_divided
    )
    if rounding == "bfloat16":
        bounds = error_bounds(encoder, rounded(encoder), bias, divisors, n_threads=1)
        distances = np.linalg.norm(x - rounded(x), axis=1).astype(np.float32)
        rows = RoundedRows(distances, *np.zeros((2, 5), dtype=np.float32))
    else:
        dither, other = dithers(n_features)
        if rounding == "int8":
            of_encoder = round_rows(encoder, other, dither, n_threads=1)
            of_x = round_rows(x, dither, other, n_threads=1)
        else:
            of_encoder = round_to_int16(encoder, ROWS_PER_PANEL, other, dither, n_threads=1)
            of_x = round_to_int16(x, ROWS_PER_TILE, dither, other, n_threads=1)
        bounds = integer_error_bounds(of_encoder, n_features, bias, divisors)
        rows = RoundedRows(of_x.distances, of_x.steps, of_x.norms)
    exact = x @ encoder.T if divisors is None else x @ encoder.T / divisors
    signs = random_state.choice([-1, 1], exact.shape)
    noise = np.hypot(bounds.spread * rows.steps[:, None], bounds.own * rows.norms[:, None])
    products = (exact + 0.99 * signs * (bounds.fixed + bounds.slope * rows.distances[:, None] + noise)).astype(
        np.float32
    )
    survivors = room_for(5, n, n_components)
    survive(products, rows, bias, bounds, n, survivors, n_threads=1)
    indices, values, errors, n_violations = decide(
        x, encoder, bias, rows, bounds, survivors, n, n_threads=1, divisors=divisors
    )
    expected = expected_codes(x, encoder, bias, divisors, n)
    np.testing.assert_array_equal(indices, expected[0])
    np.testing.assert_array_equal(values, expected[1])
    assert n_violations == 0
    assert 5 * n <= n_computed(survivors, n_components) <= 5 * n_components
    assert not errors.any()
    settled, nearly, errors, n_violations = decide(
        x, encoder, bias, rows, bounds, survivors, n, n_threads=1, divisors=divisors, computes=OPEN
    )
    np.testing.assert_array_equal(settled, expected[0])
    assert (abs(nearly - expected[1]) <= 1.001 * errors[:, None]).all()
    assert n_violations == 0


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("scale", [1e-36, 3e-33, 1e-30, 1e-3, 1.0, 1e20])
@pytest.mark.parametrize("n_features", [3, 100, 768, 2000])
def test_products_are_within_the_bounds(monkeypatch, n_features, scale, rounding):
    monkeypatch.setattr(_screened, "_MAX_RECOMPUTED", np.inf)  # whether it pays is not the question
    x, encoder, bias, _ = draw(60, n_features, 300, np.random.RandomState(n_features))
    encoder, bias = encoder * np.float32(scale), bias * np.float32(scale)
    screened = ScreenedActivations(encoder, bias, rounding=rounding, n_threads=1)
    indices, values, _ = screened.largest(x, 20, 16, 1)
    expected = expected_codes(x, encoder, bias, None, 20)
    np.testing.assert_array_equal(indices, expected[0])
    np.testing.assert_array_equal(values, expected[1])
    indices, values, errors = screened.largest(x, 20, 16, 1, computes=OPEN)
    np.testing.assert_array_equal(indices, expected[0])
    assert (abs(values - expected[1]) <= 1.001 * errors[:, None]).all()


def spiky(n_rows, n_features, random_state):
    """Rows that a few columns dominate, so that most others are fractions of a step."""
    return unit_rows(random_state.standard_normal((n_rows, n_features)) * np.where(np.arange(n_features) < 3, 50, 0.1))


@pytest.mark.parametrize("kind", ["normal", "spiky", "constant", "on a grid"])
@pytest.mark.parametrize("n_features", [64, 1500])
def test_integer_products_are_those_of_the_rounded_rows_and_rarely_off_by_much(kind, n_features):
    random_state = np.random.RandomState(n_features)
    x, encoder, _, _ = draw(40, n_features, 200, random_state)
    if kind == "spiky":
        x, _ = spiky(40, n_features, random_state)
        encoder = spiky(200, n_features, random_state)[0]
    elif kind == "constant":
        x[:], encoder[:] = n_features**-0.5, 0.3
    elif kind == "on a grid":
        x, encoder = np.round(x, 2), np.round(encoder, 1)
    dither, other = dithers(n_features)
    of_x = round_rows(x, dither, other, n_threads=1)
    of_encoder = round_rows(encoder, other, dither, n_threads=2)
    for rows, exact, own in ((of_x, x, dither), (of_encoder, encoder, other)):
        errors = exact - rows.steps[:, None] * (rows.integers.astype(np.float64) - own)
        assert (abs(errors) <= 0.501 * rows.steps[:, None]).all()
        np.testing.assert_allclose(rows.distances, np.linalg.norm(errors, axis=1), rtol=1e-3, atol=1e-12)
    sums = of_x.integers.astype(np.int32) @ of_encoder.integers.astype(np.int32).T
    offsets = (of_encoder.offsets - dither.astype(np.float64) @ other).astype(np.float32)
    products = np.empty(sums.shape, dtype=np.float32)
    integers = IntegerProducts(sums, of_encoder.steps, offsets, of_x.offsets)
    for i, row in enumerate(products):
        products_of_sums(integers, i, of_x.steps[i], row)
    multiplied = (of_x.steps[:, None] * (of_x.integers - dither.astype(np.float64))) @ (
        of_encoder.steps[:, None] * (of_encoder.integers - other.astype(np.float64))
    ).T
    scale = np.linalg.norm(encoder, axis=1).max()
    np.testing.assert_allclose(products, multiplied, rtol=1e-5, atol=1e-5 * scale)
    errors = products - x.astype(np.float64) @ encoder.astype(np.float64).T
    bounds = integer_error_bounds(of_encoder, n_features, np.zeros(200, dtype=np.float32), None)
    noise = np.hypot(bounds.spread * of_x.steps[:, None], bounds.own * of_x.norms[:, None])
    # nine standard deviations are the bound; one is what a typical error has
    assert (abs(errors) <= 0.7 * noise).all()
    assert (abs(errors).max() > noise.max() / 50) or kind == "constant"


def integers_of(rounded, n_rows, n_columns):
    """The integers of a row in a row, and what fills the groups up."""
    pairs = rounded.integers.transpose(0, 2, 1, 3)
    flat = pairs.reshape(pairs.shape[0] * pairs.shape[1], -1)
    assert not flat[n_rows:].any()
    assert not flat[:, n_columns:].any()
    return flat[:n_rows, :n_columns].astype(np.float64)


@needs_avx2
@pytest.mark.parametrize("kind", ["normal", "spiky", "constant", "one entry", "on a grid"])
@pytest.mark.parametrize(
    ("n_rows", "n_features", "n_components"), [(1, 1, 1), (6, 64, 16), (13, 1501, 37), (40, 768, 200), (7, 9000, 17)]
)
def test_int16_products_are_those_of_the_rounded_rows_and_rarely_off_by_much(kind, n_rows, n_features, n_components):
    random_state = np.random.RandomState(n_features)
    x, encoder, _, _ = draw(n_rows, n_features, n_components, random_state)
    if kind == "spiky":
        x, _ = spiky(n_rows, n_features, random_state)
    elif kind == "constant":  # the largest sums
        x[:], encoder[:] = n_features**-0.5, 0.3
    elif kind == "one entry":  # the largest products
        x[:], encoder[:] = 0, 0
        x[:, -1], encoder[:, -1] = -1, -5
    elif kind == "on a grid":
        x, encoder = np.round(x, 2), np.round(encoder, 1)
    dither, other = dithers(n_features)
    of_x = round_to_int16(x, ROWS_PER_TILE, dither, other, n_threads=1)
    of_encoder = round_to_int16(encoder, ROWS_PER_PANEL, other, dither, n_threads=2)
    multiplied = []
    for rows, exact, own in ((of_x, x, dither), (of_encoder, encoder, other)):
        integers = integers_of(rows, *exact.shape)
        assert (np.linalg.norm(integers, axis=1) < 2**15.5).all()
        assert (abs(integers) <= 2**15 - 1).all()
        restored = rows.steps[:, None] * (integers - own)
        multiplied.append(restored)
        # beyond half a step by the rounding of multiples of up to 2^15
        assert (abs(exact - restored) <= 0.505 * rows.steps[:, None]).all()
        np.testing.assert_allclose(rows.distances, np.linalg.norm(exact - restored, axis=1), rtol=0.01, atol=1e-6)
        np.testing.assert_allclose(rows.norms, np.linalg.norm(exact, axis=1), rtol=1e-5)
    products = np.empty((n_rows, n_components), dtype=np.float32)
    offsets = (of_encoder.offsets - dither.astype(np.float64) @ other).astype(np.float32)
    bias = random_state.standard_normal(n_components).astype(np.float32)
    multiply_int16(of_x, of_encoder, offsets, of_encoder.steps, bias, products, n_threads=2)
    products -= bias
    scale = max(abs(bias).max(), np.linalg.norm(encoder, axis=1).max())
    np.testing.assert_allclose(products, multiplied[0] @ multiplied[1].T, rtol=2e-6, atol=2e-6 * scale)
    errors = products - x.astype(np.float64) @ encoder.astype(np.float64).T
    bounds = integer_error_bounds(of_encoder, n_features, np.zeros(n_components, dtype=np.float32), None)
    noise = np.hypot(bounds.spread * of_x.steps[:, None], bounds.own * of_x.norms[:, None])
    # nine standard deviations are the bound; one is what a typical error has
    assert (abs(errors) <= 0.7 * noise + 2e-6 * scale).all()


def test_weights_that_are_not_finite_are_not_taken_for_zeros():
    dither, other = dithers(9)
    rows = np.ones((3, 9), dtype=np.float32)
    rows[1, 4], rows[2, 8] = np.nan, np.inf
    rounded = round_to_int16(rows, 16, dither, other, n_threads=1)
    np.testing.assert_array_equal(np.isnan(rounded.steps), [False, True, True])


def test_rows_and_weights_of_zeros_are_rounded_to_zeros():
    dither, other = dithers(9)
    zeros = np.zeros((2, 9), dtype=np.float32)
    for rows in (round_rows(zeros, dither, other, n_threads=1), round_to_int16(zeros, 6, dither, other, n_threads=1)):
        assert not any(array.any() for array in rows)


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_most_latents_are_not_computed_again(rounding):
    x, encoder, bias, _ = draw(60, 384, 2048, np.random.RandomState(0))
    screened = ScreenedActivations(encoder, bias, rounding=rounding, n_threads=2)
    screened.largest(x[x.any(axis=1)], 32, 16, 2)
    assert screened.pays
    assert screened._n_recomputed < 3 * screened._n_asked


@pytest.mark.parametrize("rounding", ["int8", INT16])
@pytest.mark.parametrize("kind", ["positive", "a column far from 0"])
def test_what_rows_have_in_common_does_not_coarsen_integers(kind, rounding):
    random_state = np.random.RandomState(6)
    x, encoder, bias, _ = draw(400, 384, 1024, random_state)
    x = x[x.any(axis=1)]
    x, _ = unit_rows(abs(x) if kind == "positive" else x + (np.arange(384) == 7))
    screened = ScreenedActivations(encoder, bias, rounding=rounding, n_threads=1)
    indices, values, _ = screened.largest(x, 20, 64, 1)
    expected = expected_codes(x, encoder, bias, None, 20)
    np.testing.assert_array_equal(indices, expected[0])
    np.testing.assert_array_equal(values, expected[1])
    assert screened._n_recomputed < 3 * screened._n_asked


def test_rows_that_integers_tell_too_little_of_are_not_screened(monkeypatch):
    random_state = np.random.RandomState(8)
    _, encoder, bias, _ = draw(1, 384, 4096, random_state)
    x, _ = unit_rows(random_state.standard_normal((2000, 384)) * (random_state.uniform(size=(2000, 384)) < 0.01))
    screened = ScreenedActivations(encoder, bias, rounding="int8", n_threads=1)
    monkeypatch.setattr(_screened, "decide", lambda *given, **named: pytest.fail("computed again"))
    assert screened.largest(x, 4, 512, 1) is None
    assert screened.largest(x, 4, 512, 1, computes=OPEN) is None
    assert not screened.pays
    assert screened._n_asked < 4 * 300


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_weights_that_could_overflow_are_not_screened(rounding):
    _, encoder, bias, _ = draw(1, 10, 30, np.random.RandomState(0))
    assert ScreenedActivations(encoder, bias, rounding=rounding, n_threads=1).pays
    assert not ScreenedActivations(encoder * np.float32(1e38), bias, rounding=rounding, n_threads=1).pays


@pytest.mark.parametrize("spoil", ["noise", "infinity"])
def test_products_beyond_the_bounds_are_noticed(monkeypatch, spoil):
    x, encoder, bias, _ = draw(60, 100, 300, np.random.RandomState(1))
    screened = ScreenedActivations(encoder, bias, rounding="bfloat16", n_threads=1)
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


def spoil_integers(monkeypatch, factor):
    multiply, multiply_short = torch._int_mm, _int16_products.multiply_int16

    def spoiled(rows, latents, offsets, factors, *given, n_threads):
        multiply_short(rows, latents, offsets, np.float32(factor) * factors, *given, n_threads=n_threads)

    monkeypatch.setattr(torch, "_int_mm", lambda a, b, out: multiply(a, b, out=out).mul_(factor))
    monkeypatch.setattr(_int16_products, "multiply_int16", spoiled)


@pytest.mark.parametrize("computes", [ALL, OPEN, MANY])
@pytest.mark.parametrize("rounding", ["int8", INT16])
def test_sums_of_integers_beyond_the_bounds_are_noticed(monkeypatch, rounding, computes):
    x, encoder, bias, _ = draw(60, 100, 300, np.random.RandomState(1))
    screened = ScreenedActivations(encoder, bias, rounding=rounding, n_threads=1)
    spoil_integers(monkeypatch, 2)
    assert screened.largest(x, 20, 16, 1, computes=computes) is None
    assert not screened.pays


def fitted(coding, X):
    return CompresSAETransformer(
        96, k=8, max_iter=20, batch_size=128, coding=coding, usage_power=0.3, device="cpu", random_state=0
    ).fit(X)


def transform(model, X, monkeypatch, *, roundings):
    monkeypatch.setattr(_encoding, "roundings_worth_screening", lambda n_rows, n_features: roundings)
    return model.transform(X)


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("coding", ["pursuit", "refined_pursuit", "least_squares", "activations"])
@pytest.mark.parametrize("n_features", [24, 200])
def test_codes_are_those_of_a_float32_product(monkeypatch, coding, n_features, rounding):
    X = np.random.RandomState(2).standard_normal((700, n_features)).astype(np.float32)
    X[3] = 0
    model = fitted(coding, X)
    calls = []
    screen = ScreenedActivations._screen
    monkeypatch.setattr(ScreenedActivations, "_screen", lambda *given: calls.append(1) or screen(*given))
    expected = transform(model, X, monkeypatch, roundings=[])
    assert not calls
    codes = transform(model, X, monkeypatch, roundings=[rounding])
    assert calls
    np.testing.assert_array_equal(codes.indices, expected.indices)
    np.testing.assert_allclose(codes.data, expected.data, rtol=1e-4, atol=1e-5)


def test_a_product_that_cannot_be_trusted_or_does_not_pay_is_done_in_float32(monkeypatch):
    X = np.random.RandomState(3).standard_normal((700, 24)).astype(np.float32)
    model = fitted("pursuit", X)
    expected = transform(model, X, monkeypatch, roundings=[])
    multiply = torch.mm
    monkeypatch.setattr(torch, "mm", lambda a, b, out: multiply(a, b, out=out).mul_(1.05))
    spoil_integers(monkeypatch, 2)
    roundings = ["int8", *(["int16"] if HAS_AVX2 else []), "bfloat16"]
    spoiled = transform(model, X, monkeypatch, roundings=roundings)
    monkeypatch.undo()
    monkeypatch.setattr(_screened, "_MAX_RECOMPUTED", 0)
    unpaid = transform(model, X, monkeypatch, roundings=roundings)
    for codes in (spoiled, unpaid):
        np.testing.assert_array_equal(codes.indices, expected.indices)
        np.testing.assert_array_equal(codes.data, expected.data)


def test_what_is_screened_is_what_the_processor_multiplies_fast(monkeypatch):
    monkeypatch.setattr(_screened, "MULTIPLIES_BFLOAT16", True)
    monkeypatch.setattr(_screened, "MULTIPLIES_INT8", True)
    monkeypatch.setattr(_screened, "MULTIPLIES_INT16", False)
    monkeypatch.setattr(_rounded_products, "has_integer_product", lambda: True)
    assert _screened.roundings_worth_screening(4096, 768) == ["int8", "bfloat16"]
    assert _screened.roundings_worth_screening(64, 768) == []
    assert _screened.roundings_worth_screening(4096, 159) == []
    assert _screened.roundings_worth_screening(4096, 160) == ["int8", "bfloat16"]
    # sums of so many products might leave 32 bits
    assert _screened.roundings_worth_screening(4096, 140_000) == ["bfloat16"]
    monkeypatch.setattr(_rounded_products, "has_integer_product", lambda: False)
    assert _screened.roundings_worth_screening(4096, 768) == ["bfloat16"]
    monkeypatch.setattr(_screened, "MULTIPLIES_BFLOAT16", False)
    assert _screened.roundings_worth_screening(4096, 768) == []
    monkeypatch.setattr(_screened, "MULTIPLIES_INT16", True)
    assert _screened.roundings_worth_screening(4096, 768) == ["int16"]
    assert _screened.roundings_worth_screening(200, 768) == ["int16"]
    assert _screened.roundings_worth_screening(100, 768) == []
    assert _screened.roundings_worth_screening(4096, 159) == []
    assert _screened.roundings_worth_screening(4096, 140_000) == []


@pytest.mark.parametrize("fault", ["saturated", "refused", "none"])
def test_integer_products_are_tried_before_they_are_trusted(monkeypatch, fault):
    def multiply(a, b):
        if fault == "refused":
            raise NotImplementedError("CUDA only")  # as torch before 2.4
        exact = a.to(torch.int32) @ b.to(torch.int32)
        return exact if fault == "none" else exact.clamp(-(2**15), 2**15 - 1)

    monkeypatch.setattr(torch, "_int_mm", multiply)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    assert _rounded_products.has_integer_product.__wrapped__() == (fault == "none")


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_threads_that_start_later_find_torch_as_it_was(monkeypatch, rounding):
    X = np.random.RandomState(7).standard_normal((3000, 24)).astype(np.float32)
    model = fitted("activations", X)
    before = torch.get_num_threads()
    found = []
    try:
        # threads of the pool keep the number of an earlier call
        transform(model, X, monkeypatch, roundings=[rounding])
        torch.set_num_threads(3)
        for _ in range(10):
            transform(model, X, monkeypatch, roundings=[rounding])
            later = Thread(target=lambda: found.append(torch.get_num_threads()))
            later.start()
            later.join()
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert found == [3] * 10


@pytest.mark.parametrize("rounding", ["int8", INT16])
@pytest.mark.parametrize("coding", ["pursuit", "refined_pursuit", "least_squares", "activations"])
def test_reduced_precision_takes_integers_where_they_are_faster(monkeypatch, coding, rounding):
    X = np.random.RandomState(4).standard_normal((1200, 200)).astype(np.float32)
    X[3] = 0
    model = fitted(coding, X)
    model.set_params(precision="float32")
    exact = transform(model, X, monkeypatch, roundings=[])
    model.set_params(precision="bfloat16")
    codes = transform(model, X, monkeypatch, roundings=[rounding, "bfloat16"])
    cosines = cosines_with(X, exact @ model.components_), cosines_with(X, codes @ model.components_)
    np.testing.assert_allclose(cosines[1].mean(), cosines[0].mean(), atol=5e-4)
    assert (cosines[1] > cosines[0] - 0.05).all()
    assert codes[3].nnz == 0
    assert (codes.indices == exact.indices).mean() > 0.95


def cosines_with(X, x_hat):
    norms = np.linalg.norm(X, axis=1) * np.linalg.norm(x_hat, axis=1)
    return (X * x_hat).sum(axis=1)[norms > 0] / norms[norms > 0]


def test_reduced_precision_needs_no_screening_by_its_own_rounding(monkeypatch):
    X = np.random.RandomState(4).standard_normal((200, 24)).astype(np.float32)
    model = fitted("pursuit", X).set_params(precision="bfloat16")
    monkeypatch.setattr(ScreenedActivations, "largest", lambda *given: pytest.fail("screened"))
    transform(model, X, monkeypatch, roundings=["bfloat16"])


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("n", [1, 12, 40])
def test_rounded_activations_decide_where_they_rule_out_nearly_all_others(monkeypatch, rounding, n):
    monkeypatch.setattr(_screened, "_MAX_RECOMPUTED", np.inf)
    random_state = np.random.RandomState(9)
    x, encoder, bias, _ = draw(300, 64, 200, random_state)
    # in these every latent is a near tie of the others
    x[:100] = 0
    encoder[:, 60:] = 0
    x[:100, 60:] = 1e-3
    x[:100, 0] = 1e-6
    bias[:] = np.float32(0.01)
    x, _ = unit_rows(x)
    screened = ScreenedActivations(encoder, bias, rounding=rounding, n_threads=1)
    exact_indices, exact_values, _ = screened.largest(x, n, 64, 1)
    survivors = screened._survivors(x, n, 0, 64, 1)[1]
    is_many = survivors.counts > 3 * n
    assert is_many[:100].all()
    assert n == 40 or not is_many[100:].all()
    indices, values, errors = screened.largest(x, n, 64, 1, computes=MANY)
    assert not errors.any()
    np.testing.assert_array_equal(indices[is_many], exact_indices[is_many])
    np.testing.assert_array_equal(values[is_many], exact_values[is_many])
    for i in np.flatnonzero(~is_many):
        where = i, slice(survivors.counts[i])
        found = dict(zip(survivors.latents[where].tolist(), survivors.activations[where], strict=True))
        np.testing.assert_array_equal(values[i], [found[j] for j in indices[i].tolist()])
        left_out = [abs(value) for j, value in found.items() if j not in indices[i]]
        assert max(left_out, default=0) <= abs(values[i]).min()
