"""Codes of strongly anisotropic rows: scaling keeps the row's own share of the mean and stretches the rest."""

from pathlib import Path

import numpy as np
import pytest
import torch

from skcompressae import CompresSAETransformer, load_model, model_hash, save_model
from skcompressae._core._adam import apply_adam
from skcompressae._core._pursuit import RIDGE
from skcompressae._core._rows import scale_codes, unit_rows
from skcompressae._torch._codes import encode_batch, scale_factors
from skcompressae._torch._weights import Moments, Weights
from skcompressae.metrics import mean_cosine_similarity


def anisotropic_rows(n_rows=2000, n_features=24, mean=1.5, seed=0):
    rng = np.random.RandomState(seed)
    rows = rng.standard_normal((n_rows, n_features)) * np.linspace(1.5, 0.3, n_features) + mean
    return (rows * rng.uniform(0.5, 2, (n_rows, 1))).astype(np.float32)


@pytest.fixture(scope="module")
def rows():
    return anisotropic_rows()


@pytest.fixture(scope="module")
def fitted(rows):
    model = CompresSAETransformer(64, k=6, max_iter=150, random_state=0).fit(rows)
    assert model.has_mean_latent_
    return model


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("coding", ["pursuit", "refined_pursuit", "least_squares"])
@pytest.mark.parametrize("norm", ["input", "unit"])
def test_the_share_of_the_mean_is_exact_and_the_rest_is_stretched(fitted, rows, coding, norm):
    fitted.set_params(coding=coding, norm=norm, flattening=0)
    codes = fitted.transform(rows).toarray()
    flat = fitted.set_params(flattening=0.3).transform(rows).toarray()
    projections = fitted.set_params(norm=None, flattening=0).transform(rows).toarray()
    wanted = np.linalg.norm(rows, axis=1) if norm == "input" else np.ones(len(rows))
    np.testing.assert_allclose(np.linalg.norm(codes @ fitted.components_, axis=1), wanted, rtol=1e-4)
    assert (projections[:, 0] > 0).all()
    np.testing.assert_allclose(codes[:, 0], projections[:, 0] * wanted, rtol=1e-4)
    np.testing.assert_allclose(codes[:, 0] / wanted, unit(rows) @ fitted.components_[0], rtol=1e-5)
    # the other values all have one factor, which shortens none of them
    is_stored = projections[:, 1:] != 0
    factors = np.where(is_stored, codes[:, 1:], 1) / np.where(is_stored, projections[:, 1:], 1) / wanted[:, None]
    factors = np.where(is_stored, factors, np.nan)
    assert (np.nanmin(factors, axis=1) > 0.999).all()
    np.testing.assert_allclose(np.nanmin(factors, axis=1), np.nanmax(factors, axis=1), rtol=1e-4)
    # flattening changes the others only
    np.testing.assert_allclose(flat[:, 0], codes[:, 0], rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(flat @ fitted.components_, axis=1), wanted, rtol=1e-4)
    explained = np.linalg.norm(projections @ fitted.components_, axis=1) ** 2
    amounts = 0.3 * np.sqrt(1 - explained) * np.minimum(1, explained / (projections**2).sum(axis=1))
    powers = np.where(is_stored, np.abs(projections[:, 1:]), 0) ** (1 - amounts[:, None])
    factors = np.where(is_stored, np.abs(flat[:, 1:]) / np.where(is_stored, powers, 1), np.nan)
    np.testing.assert_allclose(np.nanmin(factors, axis=1), np.nanmax(factors, axis=1), rtol=1e-4)


@pytest.mark.parametrize("coding", ["pursuit", "refined_pursuit", "activations"])
@pytest.mark.parametrize("norm", ["input", "unit", None])
def test_the_score_is_the_cosine_of_what_codes_decode_to(fitted, rows, coding, norm):
    fitted.set_params(coding=coding, norm=norm)
    decoded = fitted.inverse_transform(fitted.transform(rows))
    assert fitted.score(rows) == pytest.approx(mean_cosine_similarity(rows, decoded), abs=1e-5)


@pytest.mark.parametrize("spread", [0.1, 0.03, 0.02])
def test_rows_close_to_the_mean_keep_their_distance_to_it(spread):
    rng = np.random.RandomState(0)
    mean = unit(np.ones((1, 32)))
    rows = (mean + spread * rng.standard_normal((600, 32)) / np.sqrt(32)).astype(np.float32)
    model = CompresSAETransformer(48, k=6, max_iter=50, norm="unit", random_state=0).fit(rows)
    codes = model.transform(rows).toarray().astype(np.float64)
    codes[:, 0] = 0
    decoded = np.linalg.norm(codes @ model.components_, axis=1)
    direction = model.components_[0].astype(np.float64)
    expected = unit(rows.astype(np.float64))
    expected -= np.outer(expected @ direction, direction)
    np.testing.assert_allclose(decoded, np.linalg.norm(expected, axis=1), rtol=0.02)


def test_activations_are_scaled_alike(fitted, rows):
    raw = fitted.set_params(coding="activations", norm=None).transform(rows).toarray()
    codes = fitted.set_params(norm="unit").transform(rows).toarray()
    norms = np.linalg.norm(raw @ fitted.components_, axis=1, keepdims=True)
    np.testing.assert_allclose(codes, raw / norms, rtol=1e-4, atol=1e-6)


def test_neighbours_by_cosine_are_found_better_than_with_one_factor():
    documents, queries = (anisotropic_rows(n, n_features=48, mean=3, seed=n) for n in (2000, 100))
    model = CompresSAETransformer(64, k=4, max_iter=150, random_state=0).fit(documents)

    def nearest(vectors):
        return np.argsort(-(unit(queries) @ unit(vectors).T), axis=1)[:, :20]

    def recall(norm):
        model.set_params(norm=norm)
        found = nearest(model.inverse_transform(model.transform(documents)))
        return np.mean([np.isin(best, true).mean() for best, true in zip(found, nearest(documents), strict=True)])

    assert recall("unit") > recall(None) + 0.02


def test_torch_gives_the_same_on_every_path(fitted, rows):
    fitted.set_params(coding="pursuit", norm="input", flattening=0.3)
    expected = fitted.transform(rows).toarray()
    arrays = (fitted.encoder_weights_, fitted.encoder_bias_, fitted.components_)
    weights = [torch.from_numpy(array) for array in arrays]
    batch = torch.from_numpy(rows).requires_grad_()
    indices, values = encode_batch(
        batch, *weights, 6, coding="pursuit", candidate_factor=2.0, norm="input", flattening=0.3, keeps_mean=True
    )
    found = np.zeros_like(expected)
    np.put_along_axis(found, indices.numpy(), values.detach().numpy(), axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
    values.square().sum().backward()
    assert torch.isfinite(batch.grad).all()


@pytest.mark.parametrize("coding", ["pursuit", "refined_pursuit", "least_squares", "activations"])
def test_a_zero_row_has_no_gradient(fitted, coding):
    weights = [torch.from_numpy(a) for a in (fitted.encoder_weights_, fitted.encoder_bias_, fitted.components_)]
    batch = torch.zeros((2, 24), requires_grad=True)
    _, values = encode_batch(
        batch, *weights, 6, coding=coding, candidate_factor=2.0, norm="unit", flattening=0.3, keeps_mean=True
    )
    values.square().sum().backward()
    assert not values.any()
    assert torch.isfinite(batch.grad).all()


def test_rows_without_a_rest_or_without_the_mean_are_scaled_alike():
    indices = np.array([[0, 3], [0, 3], [1, 3], [0, 3], [0, 3], [0, 3]], np.int32)
    # the mean alone; longer than 1; no mean latent; it has no value; an ordinary row; nothing at all
    values = np.array([[0.8, 0], [1.2, 0.5], [0.3, 0.4], [0, 0.5], [0.6 / (1 + RIDGE), 0.4], [0, 0]], np.float32)
    decoded = np.sqrt((values.astype(np.float64) ** 2).sum(axis=1))
    wanted = np.array([1.0, 2.0, 1.0, 1.0, 3.0, 1.0])
    out = np.empty_like(values)
    scale_codes(indices, values, decoded, wanted, out, keeps_mean=True)
    expected = [[1, 0], [2 * 12 / 13, 2 * 5 / 13], [0.6, 0.8], [0, 1], [1.8, 2.4], [0, 0]]
    np.testing.assert_allclose(out, expected, rtol=1e-6)
    tensors = (torch.from_numpy(indices), torch.from_numpy(values).double(), torch.from_numpy(decoded)[:, None])
    factors = scale_factors(*tensors, keeps_mean=True).numpy()
    np.testing.assert_allclose(values * factors * wanted[:, None], expected, rtol=1e-6)


def test_the_hash_tells_which_scaling_made_the_codes(fitted, rows):
    fitted.set_params(coding="pursuit", norm="unit")
    stretched = model_hash(fitted)
    fitted.scales_mean_apart_ = False
    try:
        assert model_hash(fitted) != stretched
        fitted.set_params(norm=None)
        alike = model_hash(fitted)
    finally:
        fitted.scales_mean_apart_ = True
    assert model_hash(fitted) == alike


def test_pickles_that_do_not_know_give_the_codes_that_they_gave(fitted, rows):
    fitted.set_params(coding="pursuit", norm="unit")
    state = dict(fitted.__getstate__())
    del state["scales_mean_apart_"], state["flattening"]
    old = CompresSAETransformer.__new__(CompresSAETransformer)
    old.__setstate__(state)
    codes = old.transform(rows[:50]).toarray()
    projections = old.set_params(norm=None).transform(rows[:50]).toarray()
    norms = np.linalg.norm(projections @ old.components_, axis=1, keepdims=True)
    np.testing.assert_allclose(codes, projections / norms, rtol=1e-4, atol=1e-6)
    assert model_hash(old) == model_hash(fitted.set_params(norm=None))


def test_files_remember_how_codes_were_scaled(fitted, rows, tmp_path):
    fitted.set_params(coding="pursuit", norm="unit")
    codes = fitted.transform(rows[:50])
    save_model(fitted, tmp_path / "new.safetensors")
    new = load_model(tmp_path / "new.safetensors")
    assert new.scales_mean_apart_
    assert (new.transform(rows[:50]) != codes).nnz == 0
    old = load_model(Path(__file__).parent / "data" / "model_v1.safetensors")
    assert old.has_mean_latent_
    assert not old.scales_mean_apart_


@pytest.mark.parametrize("n_features", [33, 256])
def test_threads_do_not_meet_a_mean_that_is_half_written(n_features):
    """Its row is of norm 1 but for rounding; normalised again, other threads would read old numbers and new ones."""
    random_state = np.random.RandomState(0)
    decoder, _ = unit_rows(random_state.standard_normal((4096, n_features)))
    decoder[0] *= 1 + 1e-6
    encoder, bias = random_state.standard_normal((4096, n_features)), random_state.standard_normal(4096)
    start = Weights(encoder.astype(np.float32), bias.astype(np.float32), decoder)
    gradients = [random_state.standard_normal(array.shape).astype(np.float32) for array in start.arrays]
    rates = np.array([0.01, 0.9, 0.99, 1.0, 1e-8], np.float32)
    found = []
    for n_threads in (1, 2):
        weights = start.copy()
        moments = Moments.zeros_like(weights)
        given = weights.arrays, tuple(gradient.copy() for gradient in gradients), moments.arrays, rates
        apply_adam(*given, keeps_mean_latent=True, n_threads=n_threads)
        np.testing.assert_array_equal(weights.decoder[0], start.decoder[0])
        found.append(weights)
    for one, other in zip(*(weights.arrays for weights in found), strict=True):
        np.testing.assert_array_equal(one, other)
