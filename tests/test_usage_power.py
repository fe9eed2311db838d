"""Scaling encoder rows by how much their latents are used: the formula, what it changes, when `fit` does it."""

import copy

import numpy as np
import pytest
from conftest import make_embeddings

from skcompressae import CompresSAETransformer, _fit_methods, _fitting
from skcompressae._fitting import count_uses, usage_factors


def small(**parameters):
    defaults = {"n_components": 32, "k": 4, "max_iter": 20, "batch_size": 64, "random_state": 0, "device": "cpu"}
    return CompresSAETransformer(**{**defaults, **parameters})


def popular_rows():
    """Rows of Zipf popularity: some recur often, with noise."""
    rng = np.random.default_rng(0)
    rows = make_embeddings(n_rows=2000)[rng.zipf(1.5, 3000).clip(max=2000) - 1]
    return (rows + 0.3 * np.abs(rows).mean() * rng.standard_normal(rows.shape)).astype(np.float32)


def test_factors_follow_the_formula():
    factors = usage_factors(np.array([0, 3, 6, 15]), 0.5, keeps_mean_latent=False)
    expected = np.sqrt([1.0, 1.5, 2.0, 3.5])  # counts over their mean, 6, plus 1
    np.testing.assert_allclose(factors, expected / np.median(expected), rtol=1e-6)
    assert factors.dtype == np.float32
    held = usage_factors(np.array([100, 3, 6, 15]), 0.5, keeps_mean_latent=True)
    assert held[0] == 1
    assert held[3] > held[2] > held[1]
    unused = usage_factors(np.zeros(4, dtype=np.int64), 0.5, keeps_mean_latent=False)
    np.testing.assert_array_equal(unused, np.ones(4))


@pytest.mark.parametrize("coding", ["pursuit", "least_squares", "activations"])
def test_fit_scales_encoder_and_bias_in_the_end(embeddings, coding):
    plain = small(usage_power=0, coding=coding, validation_fraction=0).fit(embeddings)
    scaled = small(usage_power=0.4, coding=coding, validation_fraction=0).fit(embeddings)
    factors = usage_factors(plain.latent_counts_, 0.4, keeps_mean_latent=plain.has_mean_latent_)
    assert factors.max() > 1.05
    np.testing.assert_allclose(scaled.encoder_weights_, plain.encoder_weights_ * factors[:, None], rtol=1e-6)
    np.testing.assert_allclose(scaled.encoder_bias_, plain.encoder_bias_ * factors, rtol=1e-6)
    np.testing.assert_array_equal(scaled.components_, plain.components_)
    np.testing.assert_array_equal(scaled.loss_curve_, plain.loss_curve_)
    # the statistics are those of the codes as they are now
    codes = scaled.transform(embeddings)
    np.testing.assert_array_equal(scaled.latent_counts_, np.bincount(codes.indices, minlength=32))


def test_the_mean_latent_keeps_its_scale():
    rows = make_embeddings(n_rows=400)
    rows += 20 * np.abs(rows).max()
    plain, scaled = (small(usage_power=power).fit(rows) for power in (0, 0.5))
    assert scaled.has_mean_latent_
    np.testing.assert_array_equal(scaled.encoder_weights_[0], plain.encoder_weights_[0])
    assert not np.array_equal(scaled.encoder_weights_[1:], plain.encoder_weights_[1:])


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({}, 0.15),
        ({"coding": "least_squares"}, 0.15),
        ({"coding": "activations"}, 0),
        ({"recipe": "paper"}, 0),
        ({"recipe": "paper", "coding": "pursuit"}, 0),
        ({"coding": "activations", "usage_power": 0.2}, 0.2),
        ({"recipe": "paper", "usage_power": 0.1}, 0.1),
    ],
)
def test_what_auto_is(embeddings, monkeypatch, parameters, expected):
    powers = []

    def record(counts, power, **rest):
        powers.append(power)
        return usage_factors(counts, power, **rest)

    monkeypatch.setattr(_fit_methods, "usage_factors", record)
    small(**parameters).fit(embeddings)
    assert powers == ([expected] if expected else [])


def test_uses_are_counted_on_evenly_spaced_rows(embeddings, monkeypatch):
    model = small(usage_power=0).fit(embeddings)
    monkeypatch.setattr(_fitting, "_MAX_COUNTED_ROWS", 100)
    monkeypatch.setattr(_fitting, "BLOCK_ROWS", 64)
    rows = np.arange(10, 400)
    counts = count_uses(embeddings, rows, model._encoder(), 4)
    picked = embeddings[rows[np.linspace(0, 389, 100).astype(int)]]
    np.testing.assert_array_equal(counts, np.bincount(model.transform(picked).indices, minlength=32))


def test_popular_latents_are_used_more():
    def concentration(usage_power):
        counts = small(n_components=64, max_iter=100, usage_power=usage_power).fit(popular_rows()).latent_counts_
        return np.sum((counts / counts.sum()) ** 2)

    assert concentration(0.5) > 1.1 * concentration(0.0)


@pytest.mark.parametrize("method", ["partial_fit", "fit"])
def test_continued_training_scales_nothing(embeddings, method):
    start = small(usage_power=0).fit(embeddings).set_params(warm_start=True)
    ends = []
    for usage_power in (0, 0.5):
        model = copy.deepcopy(start).set_params(usage_power=usage_power)
        ends.append(getattr(model, method)(embeddings))
    np.testing.assert_array_equal(ends[0].encoder_weights_, ends[1].encoder_weights_)


def test_an_interrupt_while_uses_are_counted_scales_nothing(embeddings, monkeypatch):
    plain = small(usage_power=0).fit(embeddings)

    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(_fit_methods, "count_uses", interrupt)
    with pytest.warns(UserWarning, match="interrupted while it measured how the latents are used"):
        model = small(usage_power=0.5).fit(embeddings)
    np.testing.assert_array_equal(model.encoder_weights_, plain.encoder_weights_)
    assert model.transform(embeddings).shape == (400, 32)
