"""Fitting the decoder anew to the codes of training rows: the equations, what it keeps, when `fit` does it."""

import os

import numpy as np
import pytest
from cli_cases import interrupt_fits
from conftest import make_embeddings
from test_usage_power import small

from skcompressae import CompresSAETransformer, _finish_methods
from skcompressae._core import _refit
from skcompressae._core._refit import refitted_decoder
from skcompressae._core._rows import unit_rows
from skcompressae._fitting import refit_components
from skcompressae.exceptions import InterruptedFitWarning


def unit(rows):
    return unit_rows(rows)[0]


def refit(decoder, rows, indices, values, keeps_mean=False, n_threads=1):
    return refitted_decoder(
        decoder,
        lambda start, stop: rows[start:stop].copy(),
        indices,
        values,
        keeps_mean=keeps_mean,
        n_threads=n_threads,
    )


@pytest.fixture
def problem():
    """A decoder, rows, and codes that never use the last latent."""
    random_state = np.random.RandomState(0)
    rows = unit(make_embeddings(n_rows=5000, n_features=40))
    decoder = unit(random_state.standard_normal((30, 40)).astype(np.float32))
    indices = np.sort(np.argsort(random_state.uniform(size=(5000, 29)), axis=1)[:, :5], axis=1).astype(np.int32)
    return decoder, rows, indices, random_state.standard_normal(indices.shape).astype(np.float32)


def normal_equations(decoder, rows, indices, values):
    """Solve them in float64, and scale the solution's rows."""
    codes = np.zeros((len(rows), len(decoder)))
    np.put_along_axis(codes, indices.astype(np.int64), values, axis=1)
    system = codes.T @ codes + _refit._RIDGE * np.eye(len(decoder))
    solution = np.linalg.solve(system, codes.T @ rows + _refit._RIDGE * decoder.astype(np.float64))
    return solution / np.linalg.norm(solution, axis=1, keepdims=True)


def test_it_solves_the_normal_equations(problem, monkeypatch):
    expected = normal_equations(*problem)
    found = refit(*problem)
    moved = np.linalg.norm(expected - problem[0])
    assert np.linalg.norm(found - expected) < 0.02 * moved
    np.testing.assert_allclose(found[29], problem[0][29], atol=1e-6)  # no code says anything of it
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    monkeypatch.setattr(_refit, "_N_STEPS", 100)
    np.testing.assert_allclose(refit(*problem), expected, atol=1e-4)
    np.testing.assert_array_equal(refit(*problem, n_threads=2), refit(*problem, n_threads=1))


def test_a_mean_latent_stays_and_the_others_orthogonal_to_it(problem):
    decoder, rows, indices, values = problem
    mean = decoder[0].copy()
    decoder -= (decoder @ mean)[:, None] * mean
    decoder[0] = mean
    decoder = unit(decoder)
    found = refit(decoder, rows, indices, values, keeps_mean=True)
    np.testing.assert_allclose(found[0], decoder[0], atol=1e-6)
    assert np.abs(found[1:] @ mean).max() < 1e-5
    # what is left is a problem of its own
    without = rows - (rows @ mean)[:, None] * mean
    expected = normal_equations(decoder, without, indices, np.where(indices == 0, 0, values))
    assert np.linalg.norm(found[1:] - expected[1:]) < 0.02 * np.linalg.norm(expected[1:] - decoder[1:])


def test_codes_of_zeros_and_no_rows_change_nothing(problem):
    decoder, rows, indices, values = problem
    np.testing.assert_allclose(refit(decoder, rows, indices, np.zeros_like(values)), decoder, atol=1e-6)
    np.testing.assert_allclose(refit(decoder, rows[:0], indices[:0], values[:0]), decoder, atol=1e-6)


@pytest.mark.parametrize("coding", ["pursuit", "refined_pursuit", "least_squares", "activations"])
def test_rows_are_reconstructed_better(embeddings, coding):
    plain, refitted = (small(coding=coding, n_refits=n, validation_fraction=0).fit(embeddings) for n in (0, 2))
    assert refitted.score(embeddings) > plain.score(embeddings) + 0.002
    np.testing.assert_array_equal(refitted.encoder_weights_, plain.encoder_weights_)
    np.testing.assert_array_equal(refitted.loss_curve_, plain.loss_curve_)
    np.testing.assert_allclose(np.linalg.norm(refitted.components_, axis=1), 1, atol=1e-6)
    # the statistics are those of the codes as they are now
    codes = refitted.transform(embeddings)
    np.testing.assert_array_equal(refitted.latent_counts_, np.bincount(codes.indices, minlength=32))


@pytest.mark.parametrize(("coding", "norm"), [("activations", "unit"), ("pursuit", None)])
def test_codes_are_scaled_where_their_scale_is_the_encoders(embeddings, monkeypatch, coding, norm):
    norms = []
    monkeypatch.setattr(
        _finish_methods, "refit_components", lambda *given, norm, **rest: norms.append(norm) or given[3].copy()
    )
    small(coding=coding, n_refits=1).fit(embeddings)
    assert norms == [norm]


@pytest.mark.parametrize(
    ("parameters", "expected"), [({}, 0), ({"recipe": "paper"}, 0), ({"recipe": "dense"}, 3), ({"n_refits": 1}, 1)]
)
def test_what_auto_stands_for(embeddings, monkeypatch, parameters, expected):
    calls = []
    monkeypatch.setattr(
        _finish_methods, "refit_components", lambda *given, **rest: calls.append(1) or refit_components(*given, **rest)
    )
    model = small(**parameters).fit(embeddings)
    assert len(calls) == expected
    model.partial_fit(embeddings)
    assert len(calls) == expected


def test_the_dense_recipe_reconstructs_best(embeddings):
    scores = [small(recipe=recipe, max_iter=100).fit(embeddings).score(embeddings) for recipe in ("default", "dense")]
    assert scores[1] > scores[0] + 0.02


def test_anisotropic_rows_keep_their_mean_latent():
    rows = make_embeddings(n_rows=500) + 5
    plain, refitted = (small(n_refits=n).fit(rows) for n in (0, 2))
    assert refitted.has_mean_latent_
    np.testing.assert_allclose(refitted.components_[0], plain.components_[0], atol=1e-6)
    assert np.abs(refitted.components_[1:] @ refitted.components_[0]).max() < 1e-5
    assert refitted.score(rows) > plain.score(rows)


def test_rows_beyond_the_sample_are_not_encoded(embeddings, monkeypatch):
    monkeypatch.setattr("skcompressae._fitting._MAX_REFIT_ROWS", 100)
    seen = []
    monkeypatch.setattr(
        "skcompressae._fitting.refitted_decoder",
        lambda *given, **rest: seen.append(given[2].shape) or refitted_decoder(*given, **rest),
    )
    models = [small(n_refits=1).fit(embeddings) for _ in range(2)]
    assert seen == [(100, 4)] * 2
    np.testing.assert_array_equal(models[0].components_, models[1].components_)


def ends_at_the_second(error):
    """A refit whose second call raises."""
    calls = []

    def refit_or_raise(*given, **rest):
        calls.append(1)
        if len(calls) == 2:
            raise error
        return refit_components(*given, **rest)

    return refit_or_raise


def test_an_interrupt_keeps_what_is_done_and_the_checkpoint(embeddings, monkeypatch, tmp_path):
    once = small(n_refits=1).fit(embeddings)
    model = small(n_refits=3, checkpoint_dir=tmp_path, checkpoint_interval=3)
    with monkeypatch.context() as patch:
        patch.setattr(_finish_methods, "refit_components", ends_at_the_second(KeyboardInterrupt))
        with pytest.warns(InterruptedFitWarning, match=r"fitted the decoder anew; 1 of 3 times \(n_refits\) were done"):
            model.fit(embeddings)
    np.testing.assert_array_equal(model.components_, once.components_)
    assert os.listdir(tmp_path)
    resumed = model.fit(embeddings)
    assert not os.listdir(tmp_path)
    np.testing.assert_array_equal(resumed.components_, small(n_refits=3).fit(embeddings).components_)


def test_a_fit_that_is_interrupted_is_not_refitted(embeddings, monkeypatch):
    interrupt_fits(monkeypatch)
    monkeypatch.setattr(_finish_methods, "refit_components", lambda *_, **__: pytest.fail("refitted"))
    with pytest.warns(InterruptedFitWarning, match="fit was interrupted after 3 step"):
        small(n_refits=2).fit(embeddings)


@pytest.mark.filterwarnings("ignore::skcompressae.exceptions.DeadLatentsWarning")
def test_an_error_keeps_the_checkpoint_of_a_warm_start(embeddings, monkeypatch, tmp_path):
    parameters = {"n_refits": 2, "checkpoint_interval": 3, "warm_start": True}
    expected = small(**parameters).fit(embeddings).fit(embeddings)
    model = small(**parameters).fit(embeddings).set_params(checkpoint_dir=tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(_finish_methods, "refit_components", ends_at_the_second(MemoryError))
        with pytest.raises(MemoryError):
            model.fit(embeddings)
    np.testing.assert_array_equal(model.fit(embeddings).components_, expected.components_)


def test_a_pickle_without_the_parameter_is_read(embeddings):
    model = small().fit(embeddings)
    state = model.__getstate__()
    del state["n_refits"]
    again = CompresSAETransformer.__new__(CompresSAETransformer)
    again.__setstate__(state)
    assert again.n_refits == "auto"
    assert again.fit(embeddings).n_refits == "auto"
