"""A few rows in one kernel: the codes of the stages that blocks pass, and who is sent there."""

from copy import deepcopy

import numpy as np
import pytest
from conftest import stored_as
from test_usage_power import small
from threadpoolctl import threadpool_limits

from skcompressae import CompresSAETransformer, _encoding
from skcompressae._core import _few_products, _few_rows

CODINGS = "pursuit", "least_squares", "activations"
# Two kernels of the same source: the compiler may contract products and sums of one and not of the other.
LAST_DIGITS = 1e-5


@pytest.fixture
def calls(monkeypatch):
    """Count the calls of the kernel for few rows."""
    made, encode_few = [], _encoding.encode_few

    def counted(rows, *arguments, **options):
        made.append(len(rows))
        return encode_few(rows, *arguments, **options)

    monkeypatch.setattr(_encoding, "encode_few", counted)
    return made


def by_stages(monkeypatch, model, rows):
    with monkeypatch.context() as patched:
        patched.setattr(_encoding.Encoder, "_is_few", lambda *_: False)
        return model.transform(rows)


def check_codes(monkeypatch, model, rows):
    """Check that rows of many lengths, one of them all zeros, have the codes of the stages, one by one and together."""
    rows = rows * np.logspace(-3, 3, len(rows), dtype=np.float32)[:, None]
    rows[4] = 0
    for few in (rows[:1], rows[4:5], rows):
        found, expected = model.transform(few), by_stages(monkeypatch, model, few)
        np.testing.assert_array_equal(found.indptr, expected.indptr)
        np.testing.assert_array_equal(found.indices, expected.indices)
        np.testing.assert_allclose(found.data, expected.data, rtol=LAST_DIGITS)
        assert found.dtype == expected.dtype == np.float32


@pytest.mark.parametrize("norm", ["input", "unit", None])
@pytest.mark.parametrize("k", [1, 5, 24])
@pytest.mark.parametrize("coding", CODINGS)
def test_codes_are_those_of_the_stages(embeddings, calls, monkeypatch, coding, k, norm):
    """Also where the encoder is scaled, which divides activations, and where there are no more candidates than k."""
    model = small(coding=coding, usage_power=0.5).fit(embeddings).set_params(k=k, norm=norm)
    check_codes(monkeypatch, model, embeddings[:9])
    assert calls == [1, 1, 9]


def test_a_mean_latent_is_scaled_apart(embeddings, calls, monkeypatch):
    rows = embeddings + 2 * embeddings.std()
    model = small().fit(rows)
    assert model.scales_mean_apart_
    found, expected = model.transform(rows[:8]), by_stages(monkeypatch, model, rows[:8])
    assert (found[:, [0]].toarray() != 0).any()
    np.testing.assert_allclose(found.data, expected.data, rtol=LAST_DIGITS)
    assert calls == [8]


@pytest.mark.parametrize("coding", CODINGS)
def test_values_beyond_float32_are_refused(embeddings, calls, coding):
    model = small(coding=coding).fit(embeddings).set_params(k=1)
    with pytest.raises(ValueError, match="beyond float32"):
        model.transform(np.full((1, 24), 3e38, np.float32))
    assert calls == [1]


@pytest.mark.parametrize("dtype", [np.float64, np.float16])
def test_rows_of_another_dtype_pass_the_stages(fitted, embeddings, calls, dtype):
    rows = embeddings[:5].astype(dtype)
    np.testing.assert_allclose(fitted.transform(rows).data, fitted.transform(embeddings[:5]).data, rtol=2e-2)
    assert calls == [5]


@pytest.mark.parametrize("layout", ["F", "strided", "memmap"])
def test_rows_stored_otherwise_have_the_same_codes(fitted, embeddings, calls, layout):
    """To the last digit, which another processor's kernels may compute otherwise in the stages."""
    rows = stored_as(embeddings[:5], layout)
    np.testing.assert_array_equal(fitted.transform(rows).data, fitted.transform(embeddings[:5]).data)
    assert calls == [5, 5]


def test_refined_pursuits_and_many_rows_pass_the_stages(fitted, embeddings, calls):
    fitted.transform(embeddings[:33])
    deepcopy(fitted).set_params(coding="refined_pursuit").transform(embeddings[:1])
    assert calls == []


def test_a_second_thread_is_used_where_there_is_one(fitted, embeddings, calls, monkeypatch):
    monkeypatch.setattr(_few_products, "_PRODUCTS_PER_THREAD", fitted.encoder_weights_.size)
    with threadpool_limits(2, user_api="blas"):
        fitted.transform(embeddings[:2])  # two rows meet the encoder at once
        fitted.transform(embeddings[:4])
    with threadpool_limits(1, user_api="blas"):
        fitted.transform(embeddings[:4])
    assert calls == [2, 4]


def test_a_row_that_is_not_finite_is_refused(fitted, embeddings):
    rows = embeddings[:3].copy()
    rows[1, 2] = np.nan
    with pytest.raises(ValueError, match="first in row 1"):
        fitted.transform(rows)


def test_rows_whose_sum_is_not_finite_are_encoded(embeddings):
    model = CompresSAETransformer(n_components=48, k=3, max_iter=3, norm="unit", random_state=0).fit(embeddings)
    rows = np.full((2, 24), 3e38, np.float32)
    assert model.transform(rows).nnz == 6


@pytest.mark.parametrize("kernel", [_few_rows._pursue_few, _few_rows._choose_few])
def test_kernels_are_not_compiled_anew_for_rows_that_are_read_only(fitted, embeddings, kernel):
    model = deepcopy(fitted).set_params(coding="pursuit" if kernel is _few_rows._pursue_few else "least_squares")
    expected = model.transform(embeddings[:2])
    compiled = len(kernel.signatures)
    rows = np.frombuffer(embeddings[:2].tobytes(), np.float32).reshape(2, -1)
    np.testing.assert_array_equal(model.transform(rows).data, expected.data)
    assert len(kernel.signatures) == compiled > 0
