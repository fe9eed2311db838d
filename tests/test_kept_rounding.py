"""An encoder kept in 8 bits says what the encoder itself says, for as long as it is the same."""

import gc
import weakref
from copy import deepcopy
from threading import Thread

import numba
import numpy as np
import pytest
from conftest import needs_avx2
from hypothesis import given, settings
from hypothesis import strategies as st
from test_few_rows import CODINGS, check_codes
from test_screening import draw, expected_codes
from test_usage_power import small
from threadpoolctl import threadpool_limits

from skcompressae import _encoding
from skcompressae._core import _few_products, _kept_rounding
from skcompressae._core._few_rows import encode_few
from skcompressae._core._flattening import AS_FITTED
from skcompressae._core._integer_products import round_rows
from skcompressae._core._kept_rounding import (
    NEAR_TIES,
    NOT_KEPT,
    OTHER_WEIGHTS,
    Keeper,
    encoder_role,
    keeper_of,
    multiply_kept,
)
from skcompressae._core._rows import unit_rows
from skcompressae._core._screening import ErrorBounds, RoundedRows, error_bound

SHAPES = {
    "n_rows": st.integers(1, 3),
    "n_features": st.sampled_from([1, 7, 16, 33, 100]),
    "n_components": st.integers(1, 70),
    "share": st.floats(0.02, 1),
    "is_divided": st.booleans(),
    "seed": st.integers(0, 2**32 - 1),
}

pytestmark = pytest.mark.usefixtures("keeps_small_encoders")


@pytest.fixture
def computed(monkeypatch):
    """List the outcome of the kernel for few rows, one number for each call, and None without a kept encoder."""
    counts = []

    def counted(*arguments, **options):
        codes = encode_few(*arguments, **options)
        counts.append(codes.outcome if options["kept"] is not NOT_KEPT else None)
        return codes

    monkeypatch.setattr(_encoding, "encode_few", counted)
    return counts


def kept(encoder, bias, divisors=None):
    keeper = Keeper(weakref.ref(encoder), encoder_role(divisors))
    assert keeper.rounded(encoder, bias, divisors) is NOT_KEPT
    return keeper.rounded(encoder, bias, divisors)


def bounds_of(of):
    return ErrorBounds(*of.per_latent[2:6], of.share)


def activation_codes(x, encoder, bias, divisors, n, of):
    return encode_few(
        x, encoder, bias, encoder, n, n, n, coding="activations", divisors=divisors, flattening=AS_FITTED, norm=None,
        kept=of,
    )  # fmt: skip


@pytest.mark.parametrize("has_avx2", [pytest.param(True, marks=needs_avx2), False])
@pytest.mark.parametrize(("n_components", "n_features"), [(1, 1), (3, 16), (4, 17), (6, 40), (130, 70)])
def test_products_of_integers(monkeypatch, has_avx2, n_components, n_features):
    """On processors without AVX2 as well, where kernels that hold them are compiled too."""
    monkeypatch.setattr(_kept_rounding, "HAS_AVX2", has_avx2)
    random_state = np.random.RandomState(0)
    x, encoder, bias, _ = draw(5, n_features, n_components, random_state)
    of = kept(encoder, bias)
    rounded = RoundedRows(*(np.empty(len(x), np.float32) for _ in range(3)))
    products = np.full((len(x), n_components), np.nan, np.float32)
    numba.njit(multiply_kept.py_func)(x, of, rounded, products)
    errors = np.array([[error_bound(bounds_of(of), j, rounded, i) for j in range(n_components)] for i in range(len(x))])
    exact = x.astype(np.float64) @ encoder.T.astype(np.float64)
    assert (np.abs(products - exact) <= errors + of.share * np.abs(exact)).all()
    assert np.median(errors) < 0.1 * np.median(np.linalg.norm(encoder, axis=1))


@settings(deadline=None, max_examples=80)
@given(**SHAPES, has_ties=st.booleans())
def test_latents_and_activations_are_those_of_the_encoder(
    n_rows, n_features, n_components, share, is_divided, seed, has_ties
):
    random_state = np.random.RandomState(seed)
    x, *weights = draw(n_rows, n_features, n_components, random_state, has_ties=has_ties, is_divided=is_divided)
    n = max(1, int(share * n_components))
    codes = activation_codes(x, *weights, n, kept(*weights))
    unit, norms = unit_rows(x)
    expected_indices, expected_activations = expected_codes(unit, *weights, n)
    expected_activations[norms == 0] = 0
    if codes.outcome == NEAR_TIES:  # which can only be where some latents were not proposed
        assert _kept_rounding.MAX_RECOMPUTED * n < n_components
        return  # the encoder itself proposed n then, no more
    assert n * n_rows <= codes.outcome <= n_components * n_rows
    np.testing.assert_array_equal(codes.indices, expected_indices)
    np.testing.assert_array_equal(codes.values, expected_activations)


def test_most_latents_are_ruled_out():
    x, encoder, bias, _ = draw(8, 384, 2048, np.random.RandomState(0))
    x = x[(x != 0).any(axis=1)]
    codes = activation_codes(x, encoder, bias, None, 32, kept(encoder, bias))
    assert 32 * len(x) <= codes.outcome < 2 * 32 * len(x)
    np.testing.assert_array_equal(codes.indices, expected_codes(unit_rows(x)[0], encoder, bias, None, 32)[0])


@pytest.mark.parametrize("norm", ["input", "unit", None])
@pytest.mark.parametrize("k", [1, 5, 24])
@pytest.mark.parametrize("coding", CODINGS)
def test_codes_are_those_of_the_stages(embeddings, computed, monkeypatch, coding, k, norm):
    """Also where the encoder is scaled, which divides activations, and where there are no more candidates than k."""
    model = small(coding=coding, usage_power=0.5).fit(embeddings).set_params(k=k, norm=norm)
    model.transform(embeddings[:1])
    check_codes(monkeypatch, model, embeddings[:8])
    assert computed[0] is None
    assert all(n > 0 for n in computed[1:])


@pytest.mark.parametrize("coding", CODINGS)
def test_a_row_has_the_same_code_in_every_call(embeddings, computed, coding):
    """By the encoder itself at first, by what is kept of it then."""
    model = small(coding=coding).fit(embeddings)
    first, *others = (model.transform(embeddings[:1]) for _ in range(3))
    for other in others:
        np.testing.assert_array_equal(other.indices, first.indices)
        np.testing.assert_array_equal(other.data, first.data)
    assert computed[0] is None
    assert computed[1] == computed[2] > 0


@pytest.mark.parametrize(("n_threads", "expected"), [(1, [3, 8]), (2, [3])])
def test_rows_that_are_screened(fitted, embeddings, computed, monkeypatch, n_threads, expected):
    """More rows pass the encoder itself, and all threads where there are several."""
    monkeypatch.setattr(_few_products, "_PRODUCTS_PER_THREAD", 1)
    model, screened = deepcopy(fitted), []
    with threadpool_limits(n_threads, user_api="blas"):
        model.transform(embeddings[:1])
        for n_rows in (3, 8, 9):
            computed.clear()
            model.transform(embeddings[:n_rows])
            screened += [n_rows] * (computed not in ([], [None]))
    assert screened == expected


@pytest.mark.parametrize("written", ["encoder_weights_", "encoder_bias_", "a row", "a finer change"])
def test_weights_that_are_written_to_are_seen(fitted, embeddings, computed, written):
    model, rows = deepcopy(fitted), embeddings[:3]
    for _ in range(3):
        before = model.transform(rows)
    if written == "a row":
        model.encoder_weights_[before.indices[0]] = 0
    elif written == "a finer change":  # of a latent that the first row has, so that its activation is computed again
        latent, column = before.indices[0], np.argmax(np.abs(rows[0]))
        column += column == latent % rows.shape[1]  # which is remembered
        model.encoder_weights_[latent, column] += 5
    else:
        getattr(model, written)[...] *= -2
    expected = deepcopy(model).transform(rows)
    for _ in range(3):
        found = model.transform(rows)
        np.testing.assert_array_equal(found.indices, expected.indices)
        np.testing.assert_array_equal(found.data, expected.data)
    assert (before != expected).nnz > 0
    assert computed[3] is None  # by the copy's own array
    assert computed[4] == OTHER_WEIGHTS
    assert computed[5] == computed[6] > 0


def test_what_is_written_while_it_is_rounded_counts_from_the_next_call_on(fitted, embeddings, monkeypatch):
    """Also where none of the latents whose activations are computed again has another one."""
    model, row = deepcopy(fitted), embeddings[:1]
    indices = model.transform(row).indices
    latent = np.setdiff1d(np.arange(model.n_components), indices)[0]

    def round_meanwhile(*arguments, **options):
        rounded = round_rows(*arguments, **options)
        model.encoder_weights_[latent] = 100 * row[0]
        return rounded

    with monkeypatch.context() as patched:
        patched.setattr(_kept_rounding, "round_rows", round_meanwhile)
        model.transform(row)
    expected = deepcopy(model).transform(row)
    assert latent in expected.indices
    for _ in range(3):
        np.testing.assert_array_equal(model.transform(row).indices, expected.indices)


def test_codings_take_turns(embeddings, computed):
    model = small(usage_power=0.5).fit(embeddings)
    for _ in range(3):
        for coding in CODINGS:
            found = model.set_params(coding=coding).transform(embeddings[:2])
            expected = deepcopy(model).transform(embeddings[:2])
            np.testing.assert_array_equal(found.indices, expected.indices)
            np.testing.assert_array_equal(found.data, expected.data)
    ours = computed[::2]  # without the copies'
    assert OTHER_WEIGHTS not in ours
    assert ours.count(None) == 2  # with divisors, for the activations, and without


def test_other_divisors_are_seen(embeddings, computed):
    model = small(usage_power=0.5, coding="activations").fit(embeddings)
    for _ in range(2):
        model.transform(embeddings[:2])
    model.encoder_scale_ = model.encoder_scale_ * np.linspace(0.5, 2, model.n_components).astype(np.float32)
    expected = deepcopy(model).transform(embeddings[:2])
    found = model.transform(embeddings[:2])
    np.testing.assert_array_equal(found.indices, expected.indices)
    np.testing.assert_array_equal(found.data, expected.data)
    assert computed[-1] == OTHER_WEIGHTS


def test_near_ties_end_it(embeddings, computed):
    """Where most latents may be among the largest, the encoder itself is read sooner."""
    model = small(coding="activations", usage_power=0.0).fit(embeddings)
    model.encoder_weights_ = np.tile(model.encoder_weights_[:1], (model.n_components, 1))
    model.encoder_weights_ += 1e-6 * np.random.RandomState(0).standard_normal(model.encoder_weights_.shape)
    model.encoder_bias_ = np.zeros(model.n_components, np.float32)
    model.set_params(k=1)
    expected = model.transform(embeddings[:1])
    for _ in range(_kept_rounding._N_PROBED + 3):
        found = model.transform(embeddings[:1])
        np.testing.assert_array_equal(found.indices, expected.indices)
    assert computed[1] == NEAR_TIES
    assert computed[-1] is None


@pytest.mark.parametrize(("n_calls_between", "is_kept"), [(1, False), (2, False), (40, True)])
def test_weights_that_are_written_to_again_and_again_end_it(fitted, embeddings, computed, n_calls_between, is_kept):
    """Where rounding them takes longer than it saves."""
    model = deepcopy(fitted)
    for _ in range(10):
        model.encoder_bias_[0] += 0.1
        expected = deepcopy(model).transform(embeddings[:1])
        for _ in range(n_calls_between):
            found = model.transform(embeddings[:1])
            np.testing.assert_array_equal(found.indices, expected.indices)
            np.testing.assert_array_equal(found.data, expected.data)
    assert computed.count(OTHER_WEIGHTS) == (9 if is_kept else 3)
    assert (computed[-1] is not None) == is_kept


def test_weights_too_large_are_not_kept():
    encoder = np.full((4, 3), 1e38, np.float32)
    assert kept(encoder, np.zeros(4, np.float32)) is NOT_KEPT


def test_what_is_kept_leaves_with_its_array(monkeypatch):
    monkeypatch.setattr(_kept_rounding, "_N_KEPT", 8)
    encoders = [np.zeros((4, 3), np.float32) for _ in range(10)]
    keepers = [keeper_of(encoder, "encoder") for encoder in encoders]
    assert _kept_rounding._keepers == keepers[-8:]
    assert keeper_of(encoders[5], "encoder") is keepers[5]
    del encoders[3]
    gc.collect()
    assert _kept_rounding._keepers == [keepers[2], *keepers[4:]]


def test_what_is_not_kept(monkeypatch):
    encoder = np.zeros((4, 3), np.float32)
    with monkeypatch.context() as patched:
        patched.setattr(_kept_rounding, "_MIN_BYTES", encoder.nbytes + 1)
        assert keeper_of(encoder, "encoder") is None
    with monkeypatch.context() as patched:
        patched.setattr(_kept_rounding, "_PAYS_HERE", False)
        assert keeper_of(encoder, "encoder") is None
    assert keeper_of(np.zeros((1, 2**16 + 1), np.float32), "encoder") is None
    assert keeper_of(encoder, "encoder") is not None


def test_threads_share_what_is_kept(fitted, embeddings):
    model = deepcopy(fitted)
    expected = deepcopy(fitted).transform(embeddings[:16])
    found = {}

    def encode(start):
        for i in range(start, 16, 4):
            found[i] = model.transform(embeddings[i : i + 1])

    threads = [Thread(target=encode, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, code in found.items():
        np.testing.assert_array_equal(code.indices, expected[i].indices)
        np.testing.assert_array_equal(code.data, expected[i].data)
    assert len(found) == 16
