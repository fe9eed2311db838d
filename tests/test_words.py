"""Rows rounded to bfloat16 words, against torch's rounding and sums in float64; the training step that reads them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import make_embeddings

from skcompressae._core._initialise import data_weights
from skcompressae._core._rows import unit_rows
from skcompressae._core._sparse_step import group_by_latent, reconstruction_gradients, sum_gradients
from skcompressae._core._tiles import empty_tiles, fill_tile
from skcompressae._core._topk import top_k
from skcompressae._core._words import add_word_rows, dot_word_rows, round_rows
from skcompressae._torch import _cpu_engine
from skcompressae._torch._cpu_engine import CpuEngine
from skcompressae._torch._weights import Moments, StepSettings, Weights


def unpacked(words):
    """Return the columns of rows of words: those of the low halves, then those of the high halves."""
    return np.concatenate([(words << np.uint32(16)).view(np.float32), (words & 0xFFFF0000).view(np.float32)], axis=-1)


def rounded(rows):
    return torch.from_numpy(rows).to(torch.bfloat16).to(torch.float32).numpy()


WIDTHS = [1, 2, 15, 16, 17, 31, 32, 33, 48, 49, 63, 64, 100, 384, 769]


@pytest.mark.parametrize("n_columns", WIDTHS)
def test_rows_are_rounded_to_the_nearest_bfloat16(n_columns):
    rows = np.random.RandomState(n_columns).standard_normal((5, n_columns)).astype(np.float32)
    rows[1] = 0
    rows[2, -1] = np.inf
    rows[3, 0] = -np.nan
    rows[4] *= 1e-39  # subnormal
    columns = unpacked(round_rows(rows, n_threads=2))
    np.testing.assert_array_equal(columns[:, :n_columns], rounded(rows))
    assert not columns[:, n_columns:].any()


@pytest.mark.parametrize("n_columns", WIDTHS)
def test_a_tile_of_words_holds_the_columns_of_one_of_floats(n_columns):
    rows = np.random.RandomState(n_columns).standard_normal((4, n_columns)).astype(np.float32)
    words, floats = (empty_tiles((4,), n_columns, dtype) for dtype in (np.uint32, np.float32))
    for number in range(len(words)):
        fill_tile(rows, number, words[number])
        fill_tile(rows, number, floats[number])
    np.testing.assert_array_equal(unpacked(words), rounded(floats))
    columns = np.concatenate(list(floats), axis=1)
    np.testing.assert_array_equal(columns[:, :n_columns], rows)
    assert not columns[:, n_columns:].any()


@pytest.mark.parametrize("n_picks", [0, 1, 2, 3, 4, 5, 9])
@pytest.mark.parametrize("n_columns", [1, 31, 32, 100])
def test_sums_of_rows_of_words_are_those_of_rounded_rows(n_columns, n_picks):
    random_state = np.random.RandomState(n_picks)
    rows = random_state.standard_normal((20, n_columns)).astype(np.float32)
    words = round_rows(rows, n_threads=1)
    picks = random_state.choice(20, n_picks, replace=False).astype(np.int32)
    coefficients = random_state.standard_normal(n_picks).astype(np.float32)
    total = np.zeros(2 * words.shape[1], dtype=np.float32)
    total[:n_columns] = random_state.standard_normal(n_columns)
    expected = total[:n_columns] + coefficients @ rounded(rows)[picks].astype(np.float64)
    add_word_rows(total, words, coefficients, picks, n_picks)
    np.testing.assert_allclose(total[:n_columns], expected, atol=1e-5)
    assert not total[n_columns:].any()
    products = np.full(n_picks + 1, 7, dtype=np.float32)
    dot_word_rows(total, words, picks, n_picks, products)
    np.testing.assert_allclose(products[:n_picks], rounded(rows)[picks] @ total[:n_columns], rtol=1e-5, atol=1e-4)
    assert products[n_picks] == 7


@pytest.mark.parametrize("n_features", [7, 20, 64, 130])
def test_gradients_of_rounded_rows_are_those_of_a_rounded_decoder(n_features):
    random_state = np.random.RandomState(n_features)
    x, _ = unit_rows(random_state.standard_normal((50, n_features)))
    weights = Weights(*data_weights(x, 80, 0.5, random_state))
    indices, values = top_k(x @ weights.encoder.T, 20, n_threads=1)
    results = []
    for decoder in (round_rows(weights.decoder, n_threads=1), rounded(weights.decoder)):
        found = reconstruction_gradients(x, decoder, indices, values, 5, (0.02, 0.0025), n_threads=2)
        latent_gradients, is_leading, x_gradients, cosines = found
        sums = tuple(np.zeros_like(array) for array in weights.arrays)
        grouped = group_by_latent(indices, 80)
        sum_gradients(x, values, latent_gradients, is_leading, x_gradients, *grouped, sums, n_threads=2)
        results.append((latent_gradients, cosines, *sums))
    for of_words, of_floats in zip(*results, strict=True):
        assert abs(of_floats).max() > 1e-4
        # gradients are rounded once more on their way to the sums
        np.testing.assert_allclose(of_words, of_floats, atol=2**-8 * abs(of_floats).max())
    for exact in (0, 1, 3):  # the slopes, the cosines and the bias are not
        np.testing.assert_allclose(results[0][exact], results[1][exact], atol=1e-5)


def test_a_step_in_bfloat16_reads_a_rounded_decoder_where_rows_are_many(monkeypatch):
    rows = make_embeddings(n_rows=200)
    weights = Weights(*data_weights(unit_rows(rows)[0], 64, 0.5, np.random.RandomState(1)))
    rounded_decoders = []

    def record(decoder, *, n_threads):
        rounded_decoders.append(decoder.copy())
        return round_rows(decoder, n_threads=n_threads)

    monkeypatch.setattr(_cpu_engine, "round_rows", record)
    after = {}
    for precision in ("float32", "bfloat16"):
        settings = StepSettings(k=4, n_active=16, loss_weights=(1.0, 0.125), batch_size=200, precision=precision)
        engine = CpuEngine(rows, weights.copy(), Moments.zeros_like(weights), settings)
        losses = [engine.step(np.arange(200), 1e-3) for _ in range(3)]
        after[precision] = losses[-1].cosine, engine.current_weights().copy()
    assert len(rounded_decoders) == 3
    np.testing.assert_array_equal(rounded_decoders[0], weights.decoder)
    assert abs(rounded_decoders[1] - weights.decoder).max() > 0
    assert after["bfloat16"][0] == pytest.approx(after["float32"][0], abs=5e-4)  # entries keep 8 bits
    for ours, theirs in zip(after["bfloat16"][1].arrays, after["float32"][1].arrays, strict=True):
        assert 0 < abs(ours - theirs).mean() < 1e-4  # of steps of up to 1e-3
    rounded_decoders.clear()
    few = replace(settings, batch_size=20)
    CpuEngine(rows, weights.copy(), Moments.zeros_like(weights), few).step(np.arange(20), 1e-3)
    assert not rounded_decoders
