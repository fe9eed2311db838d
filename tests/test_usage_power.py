"""Scaling encoder rows by how much their latents are used: the formula, what it changes, when `fit` does it."""

import os
import pickle
from functools import partial

import numpy as np
import pytest
import torch
from conftest import make_embeddings

from skcompressae import CompresSAETransformer, _finish_methods, _fitting, model_hash
from skcompressae._fitting import measure_usage, usage_factors
from skcompressae._model_format import read_model_file, write_model_file
from skcompressae._model_io import _KIND, FORMAT_VERSION
from skcompressae.exceptions import InterruptedFitWarning, ModelFormatError
from skcompressae.persistence import to_reference_checkpoint


def small(**parameters):
    defaults = {"n_components": 32, "k": 4, "max_iter": 20, "batch_size": 64, "random_state": 0, "device": "cpu"}
    return CompresSAETransformer(**{**defaults, **parameters})


def popular_rows():
    """Rows of Zipf popularity: some recur often, with noise."""
    rng = np.random.default_rng(0)
    rows = make_embeddings(n_rows=2000)[rng.zipf(1.5, 3000).clip(max=2000) - 1]
    return (rows + 0.3 * np.abs(rows).mean() * rng.standard_normal(rows.shape)).astype(np.float32)


def test_factors_follow_the_formula():
    # counts over their mean, 10: 0, 0.1, 0.8, 0.8, 0.8, 3.5; the median is 0.8
    factors = usage_factors(np.array([0, 1, 8, 8, 8, 35]), 0.5, keeps_mean_latent=False)
    np.testing.assert_allclose(factors, np.sqrt([4.0, 4.0, 1.0, 1.0, 1.0, 4.5 / 1.8]), rtol=1e-6)
    assert factors.dtype == np.float32
    rare = usage_factors(np.array([2, 8, 8, 8, 14]), 0.5, keeps_mean_latent=False)  # a quarter of the median
    assert rare[0] == pytest.approx(2**0.5)
    held = usage_factors(np.array([100, 3, 6, 15]), 0.5, keeps_mean_latent=True)
    assert held[0] == 1
    few = usage_factors(np.array([0, 0, 0, 1]), 0.5, keeps_mean_latent=False)
    np.testing.assert_allclose(few, [1, 1, 1, 2**0.5], rtol=1e-6)  # relative to one use, not to a quarter
    unused = usage_factors(np.zeros(4, dtype=np.int64), 0.5, keeps_mean_latent=False)
    np.testing.assert_array_equal(unused, np.ones(4))


@pytest.mark.parametrize("coding", ["pursuit", "refined_pursuit", "least_squares", "activations"])
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

    monkeypatch.setattr(_finish_methods, "usage_factors", record)
    small(**parameters).fit(embeddings)
    assert powers == ([expected] if expected else [])


def test_uses_are_counted_on_a_sample_of_all_rows(monkeypatch):
    kinds = make_embeddings(n_rows=4000)
    kinds[1::2] = kinds[1::2, ::-1]
    model = small(usage_power=0).fit(kinds)
    rows = np.arange(len(kinds))
    everything = np.bincount(model.transform(kinds).indices, minlength=32)
    monkeypatch.setattr(_fitting, "BLOCK_ROWS", 64)

    def count(row_numbers, max_rows=2000):
        random_state = np.random.RandomState(0)
        return measure_usage(kinds, row_numbers, model._encoder(), 4, random_state, max_rows=max_rows).counts

    np.testing.assert_array_equal(count(rows, max_rows=4000), everything)
    sample = count(rows)
    np.testing.assert_array_equal(sample, count(rows))
    assert sample.sum() == 2000 * 4
    # every other row would be of one kind
    assert np.corrcoef(sample, everything)[0, 1] > 0.98
    assert np.corrcoef(count(rows[::2]), everything)[0, 1] < 0.9


def test_popular_latents_are_used_more():
    def concentration(usage_power):
        counts = small(n_components=64, max_iter=100, usage_power=usage_power).fit(popular_rows()).latent_counts_
        return np.sum((counts / counts.sum()) ** 2)

    assert concentration(0.5) > 1.1 * concentration(0.0)


def test_partial_fit_keeps_the_scale_and_trains_without(embeddings):
    plain, scaled = (small(usage_power=power).fit(embeddings) for power in (0, 0.5))
    scale = scaled.encoder_scale_
    for _ in range(2):
        plain.partial_fit(embeddings)
        scaled.partial_fit(embeddings)
        np.testing.assert_array_equal(scaled.encoder_scale_, scale)
        np.testing.assert_allclose(
            scaled.encoder_weights_, plain.encoder_weights_ * scale[:, None], rtol=1e-3, atol=1e-5
        )
    assert plain.encoder_scale_ is None


def test_warm_starts_train_without_the_scale_and_scale_anew(embeddings):
    parameters = {"validation_fraction": 0, "warm_start": True}
    plain, scaled = (small(usage_power=power, **parameters).fit(embeddings) for power in (0, 0.5))
    first = scaled.encoder_scale_
    for _ in range(3):
        scaled.set_params(max_iter=1, learning_rate=1e-9).fit(embeddings)
    np.testing.assert_allclose(scaled.encoder_scale_, first, rtol=1e-5)
    np.testing.assert_allclose(scaled.encoder_weights_, plain.encoder_weights_ * first[:, None], rtol=1e-4, atol=1e-6)
    scaled.set_params(usage_power=0).fit(embeddings)
    assert scaled.encoder_scale_ is None
    np.testing.assert_allclose(scaled.encoder_weights_, plain.encoder_weights_, rtol=1e-4, atol=1e-6)


def test_activations_are_those_of_the_encoder_as_trained(embeddings, tmp_path):
    plain, scaled = (small(usage_power=power).fit(embeddings) for power in (0, 0.5))
    expected = plain.set_params(coding="activations").transform(embeddings)
    assert (scaled.transform(embeddings) != plain.set_params(coding="pursuit").transform(embeddings)).nnz
    scaled.set_params(coding="activations").save(tmp_path / "model.safetensors")
    again = CompresSAETransformer.load(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(again.encoder_scale_, scaled.encoder_scale_)
    for model in (scaled, again, pickle.loads(pickle.dumps(scaled))):
        codes = model.transform(embeddings)
        np.testing.assert_array_equal(codes.indices, expected.indices)
        np.testing.assert_allclose(codes.data, expected.data, rtol=1e-5)
    to_reference_checkpoint(scaled, tmp_path / "model.pt")
    state = torch.load(tmp_path / "model.pt", weights_only=True)
    np.testing.assert_allclose(state["encoder_w"].numpy().T, plain.encoder_weights_, rtol=1e-5)
    np.testing.assert_allclose(state["encoder_b"].numpy(), plain.encoder_bias_, rtol=1e-5)


def test_models_without_a_scale_stay_what_they_were(embeddings, tmp_path):
    model = small().fit(embeddings)
    codes, before = model.transform(embeddings), model_hash(model)
    del model.__dict__["encoder_scale_"]  # as in pickles and files of before
    model.save(tmp_path / "model.safetensors")
    again = CompresSAETransformer.load(tmp_path / "model.safetensors")
    assert again.encoder_scale_ is None
    assert model_hash(model) == model_hash(again) == before
    assert (again.transform(embeddings) != codes).nnz == 0
    model.partial_fit(embeddings)


def test_damaged_scales_are_refused(embeddings, tmp_path):
    model, path = small().fit(embeddings), tmp_path / "model.safetensors"
    model.save(path)
    header, arrays = read_model_file(path, _KIND, FORMAT_VERSION)
    for scale, message in (
        (np.zeros(32), "not positive"),
        (np.full(32, np.nan), "encoder_scale"),
        (np.ones(31), "encoder_scale"),
    ):
        model.encoder_scale_ = scale.astype(np.float32)
        with pytest.raises(ValueError, match=message):
            model.save(path)
        write_model_file(path, _KIND, FORMAT_VERSION, header, {**arrays, "encoder_scale": model.encoder_scale_})
        with pytest.raises(ModelFormatError, match=message):
            CompresSAETransformer.load(path)


def test_the_first_block_of_a_stream_scales_nothing(embeddings):
    plain, scaled = (small(usage_power=power).partial_fit(embeddings) for power in (0, 0.5))
    np.testing.assert_array_equal(plain.encoder_weights_, scaled.encoder_weights_)


def with_rare_latents(monkeypatch, n_revivals=None, **parameters):
    """A model of rows of which few are of a kind of their own, so that some latents die."""
    if n_revivals is not None:
        monkeypatch.setattr(_finish_methods, "_MAX_REVIVALS", n_revivals)
    return small(n_components=128, k=2, max_iter=150, validation_fraction=0, **parameters).fit(popular_rows())


def test_encoder_rows_of_dead_latents_are_lengthened(monkeypatch):
    before = with_rare_latents(monkeypatch, 0)
    assert 0.05 < before.dead_latents_fraction_ < 0.5
    once = with_rare_latents(monkeypatch, 1)
    factors = np.where(before.latent_counts_ == 0, 1.2, 1)
    np.testing.assert_allclose(once.encoder_scale_, before.encoder_scale_ * factors, rtol=1e-6)
    np.testing.assert_allclose(once.encoder_weights_, before.encoder_weights_ * factors[:, None], rtol=1e-6)
    np.testing.assert_allclose(once.encoder_bias_, before.encoder_bias_ * factors, rtol=1e-6)
    np.testing.assert_array_equal(once.components_, before.components_)
    # the statistics are those of the codes as they are now
    codes = once.transform(popular_rows())
    np.testing.assert_array_equal(once.latent_counts_, np.bincount(codes.indices, minlength=128))
    four = with_rare_latents(monkeypatch, 4)
    assert four.dead_latents_fraction_ < 0.5 * before.dead_latents_fraction_
    assert four.score(popular_rows()) > before.score(popular_rows()) - 0.01


def test_latents_stay_dead_where_few_or_most_are_or_nothing_is_scaled(monkeypatch):
    before = with_rare_latents(monkeypatch, 0)
    for name in ("_DEAD_SHARE_LEFT", "_DEAD_SHARE_TAKEN_AS_UNNEEDED"):
        with monkeypatch.context() as patch:
            patch.setattr(
                _finish_methods, name, before.dead_latents_fraction_ + (1e-9 if name.endswith("LEFT") else -1e-9)
            )
            same = with_rare_latents(patch, 4)
        np.testing.assert_array_equal(same.encoder_scale_, before.encoder_scale_)
    assert with_rare_latents(monkeypatch, 4, usage_power=0).encoder_scale_ is None
    # codes that divide the scale out would gain nothing
    scales = [with_rare_latents(monkeypatch, n, usage_power=0.15, coding="activations").encoder_scale_ for n in (0, 4)]
    np.testing.assert_array_equal(*scales)


@pytest.mark.filterwarnings("ignore::skcompressae.exceptions.DeadLatentsWarning")  # in so few rows
def test_a_sample_is_the_same_after_reviving(monkeypatch):
    """The counted rows, and what is drawn after them, do not depend on how often they are counted."""
    monkeypatch.setattr(_finish_methods, "measure_usage", partial(measure_usage, max_rows=500))
    states = [np.random.RandomState(3) for _ in range(2)]
    for n_revivals, state in zip((0, 4), states, strict=True):
        assert with_rare_latents(monkeypatch, n_revivals, random_state=state).n_rows_counted_ == 500
    assert states[0].randint(1 << 30) == states[1].randint(1 << 30)


def interrupt_once(at_call=1):
    """Stand in for `measure_usage`: an interrupt at one of its calls."""
    calls = []

    def measure(*arguments, **rest):
        calls.append(1)
        if len(calls) == at_call:
            raise KeyboardInterrupt
        return measure_usage(*arguments, **rest)

    return measure


def test_an_interrupt_while_uses_are_counted_scales_nothing_and_keeps_the_checkpoint(embeddings, monkeypatch, tmp_path):
    plain = small(usage_power=0).fit(embeddings)
    model = small(usage_power=0.5, checkpoint_dir=tmp_path, checkpoint_interval=3)
    with monkeypatch.context() as patch:
        patch.setattr(_finish_methods, "measure_usage", interrupt_once())
        with pytest.warns(InterruptedFitWarning, match="counted how the latents are used; the encoder is not scaled"):
            model.fit(embeddings)
    np.testing.assert_array_equal(model.encoder_weights_, plain.encoder_weights_)
    assert model.transform(embeddings).shape == (400, 32)
    assert os.listdir(tmp_path)
    resumed = model.fit(embeddings)
    assert not os.listdir(tmp_path)
    np.testing.assert_array_equal(resumed.encoder_weights_, small(usage_power=0.5).fit(embeddings).encoder_weights_)


def test_an_interrupt_while_usage_is_measured_leaves_the_encoder_scaled(embeddings, monkeypatch):
    expected = small(usage_power=0.5).fit(embeddings)
    monkeypatch.setattr(_finish_methods, "measure_usage", interrupt_once(at_call=2))
    with pytest.warns(UserWarning, match="the statistics are those of"):
        model = small(usage_power=0.5).fit(embeddings)
    np.testing.assert_array_equal(model.encoder_weights_, expected.encoder_weights_)


@pytest.mark.filterwarnings("ignore::skcompressae.exceptions.DeadLatentsWarning")
def test_early_stopping_scales_the_best_weights(embeddings):
    parameters = {"early_stopping": True, "learning_rate": 0.3, "max_iter": 100, "n_iter_no_change": 4}
    plain, scaled = (small(usage_power=power, **parameters).fit(embeddings) for power in (0, 0.4))
    assert plain.n_iter_ < 100, "this should stop early"
    np.testing.assert_array_equal(plain.components_, scaled.components_)
    ratios = scaled.encoder_weights_ / plain.encoder_weights_
    assert np.ptp(ratios, axis=1).max() < 1e-5
    assert np.ptp(ratios) > 0.05
