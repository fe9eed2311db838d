"""Which rows quantizers learn from, blocks of queries and of cosines, and finiteness that is taken for granted."""

import copy

import numpy as np
import pytest
import scipy.sparse as sp
from conftest import make_embeddings
from sklearn import config_context
from test_packed_search import model
from test_usage_power import small

from skcompressae import CompresSAETransformer, PackedCodes, _transform_methods
from skcompressae._cli._main import main
from skcompressae.metrics import mean_cosine_similarity
from skcompressae.packed import ResidualQuantizer, ValueQuantizer, _quantizer, _residual

pytest.importorskip("pyarrow")


def zeros_first(embeddings):
    return np.vstack([np.zeros((100, 24), np.float32), embeddings])


def test_the_quantizer_learns_from_evenly_spaced_rows(fitted, embeddings, monkeypatch):
    monkeypatch.setattr(_quantizer, "_SAMPLE_ROWS", 50)
    rows = zeros_first(embeddings)
    codes = fitted.transform(rows[np.linspace(0, 499, 50).astype(int)])
    assert fitted.transform_packed(rows).quantizer == ValueQuantizer.fit(codes, value_bits=4, k=6)


def test_the_commands_quantizer_learns_from_the_same_rows(files, fitted, embeddings, monkeypatch):
    monkeypatch.setattr(_quantizer, "_SAMPLE_ROWS", 50)
    np.save("zeros.npy", zeros_first(embeddings))
    assert main(["encode", "model.safetensors", "zeros.npy", "codes.skc", "-q"]) == 0
    assert PackedCodes.load("codes.skc") == fitted.transform_packed(zeros_first(embeddings))


def test_queries_are_cut_by_the_activations_of_the_encoder_as_trained(embeddings):
    plain, scaled = (small(usage_power=power, coding="activations").fit(embeddings) for power in (0, 0.5))
    scaled.latent_rms_ = plain.latent_rms_
    found, expected = (model.transform_query(embeddings, n_nonzero=5) for model in (scaled, plain))
    np.testing.assert_array_equal(found.indices, expected.indices)


def test_blocks_of_queries_and_cosines_join_without_seams(fitted):
    rows = make_embeddings(n_rows=9000)
    whole = fitted.transform_query(rows, n_nonzero=7)
    pieces = sp.vstack(
        [fitted.transform_query(rows[start : start + 700], n_nonzero=7) for start in range(0, 9000, 700)]
    )
    assert abs(whole - pieces).max() < 1e-5
    x_hat = fitted.inverse_transform(fitted.transform(rows))
    assert fitted.score(rows) == pytest.approx(mean_cosine_similarity(rows, x_hat), abs=1e-6)


def test_assume_finite_is_obeyed(fitted, embeddings, monkeypatch):
    codes = fitted.transform(embeddings[:3])

    def fail(*_, **__):
        raise AssertionError("looked at")

    monkeypatch.setattr(CompresSAETransformer, "_check_finite", fail)
    monkeypatch.setattr(_transform_methods, "assert_all_finite", fail)
    for call in (lambda: fitted.score(embeddings), lambda: fitted.inverse_transform(codes)):
        with pytest.raises(AssertionError, match="looked at"):
            call()
        with config_context(assume_finite=True):
            call()


def test_residual_quantizers_learn_from_rows_of_all_of_a_table(monkeypatch):
    monkeypatch.setattr(_residual, "_MAX_TRAINING_ROWS", 200)
    X, decoder, codes = model(np.random.default_rng(4), n_rows=600)
    X[:200], codes[:200] = 0, 0
    residuals = X - codes @ decoder
    for quantizer in (
        ResidualQuantizer.fit(residuals, 4, n_iter=2),
        PackedCodes.pack(codes).with_residual_of(X, decoder, n_bytes=4, n_iter=2).residual_quantizer,
    ):
        off = quantizer.decode(quantizer.encode(residuals)) - residuals
        assert np.mean(off**2) < 0.7 * np.mean(residuals**2)


@pytest.mark.parametrize("factor", [1e-25, 1e25])
def test_activations_of_an_encoder_of_any_scale_are_scaled(embeddings, factor):
    model = small(coding="activations", norm="unit").fit(embeddings)
    expected = model.transform(embeddings), model.score(embeddings)
    model.encoder_weights_ = model.encoder_weights_ * np.float32(factor)
    model.encoder_bias_ = model.encoder_bias_ * np.float32(factor)
    codes = model.transform(embeddings)
    np.testing.assert_array_equal(codes.indices, expected[0].indices)
    np.testing.assert_allclose(codes.data, expected[0].data, rtol=1e-4)
    assert model.score(embeddings) == pytest.approx(expected[1], abs=1e-6)


@pytest.mark.parametrize("name", ["encoder_weights_", "encoder_bias_", "components_"])
@pytest.mark.parametrize("change", [np.float64, np.float16, np.asfortranarray])
@pytest.mark.parametrize("n_rows", [1, 300])
def test_weights_that_a_user_sets_may_be_of_another_dtype_or_layout(fitted, embeddings, name, change, n_rows):
    """Kernels take them for rows of float32: where rows are screened, those of others gave wrong codes."""
    model, expected = copy.deepcopy(fitted), copy.deepcopy(fitted)
    weights = getattr(model, name).astype(np.float16).astype(np.float32)
    setattr(expected, name, weights)
    setattr(model, name, change(weights))
    for coding in ("pursuit", "activations"):
        codes = [each.set_params(coding=coding).transform(embeddings[:n_rows]) for each in (model, expected)]
        assert (codes[0] != codes[1]).nnz == 0


@pytest.mark.parametrize("n_rows", [5, 300])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("columns", [[3], [23], range(24)])
def test_a_row_that_was_wrongly_assumed_finite_is_refused(fitted, embeddings, n_rows, value, columns):
    """Kernels that choose by numbers that are none would read beyond their arrays."""
    rows = embeddings[:n_rows].copy()
    rows[3, list(columns)] = value
    with config_context(assume_finite=True), pytest.raises(ValueError, match="Input X contains NaN or infinity"):
        fitted.transform(rows)
