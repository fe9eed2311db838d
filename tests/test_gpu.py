"""What only a CUDA device can show: that steps are only queued, graphs, and rows that stay on the host."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import assert_goes_with_its_last_reference, make_embeddings
from test_training_step import SETTINGS

from skcompressae import CompresSAETransformer
from skcompressae._core._initialise import data_weights
from skcompressae._core._rows import unit_rows
from skcompressae._torch import _devices, _step_graph, _torch_engine
from skcompressae._torch._torch_engine import TorchEngine
from skcompressae._torch._weights import Moments, Weights

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
DEVICE = torch.device("cuda")


def make_engine(rows, settings=SETTINGS, **choices):
    weights = Weights(*data_weights(unit_rows(rows)[0], 64, 0.5, np.random.RandomState(1)))
    return TorchEngine(rows, weights, Moments.zeros_like(weights), settings, DEVICE, **choices)


def take_steps(engine, n_rows, n_steps=6):
    random_state = np.random.RandomState(0)
    return [engine.step(random_state.choice(n_rows, 128, replace=False), 1e-3) for _ in range(n_steps)]


def assert_alike(one, other, tolerance=1e-5):
    for ours, theirs in zip(one.current_weights().arrays, other.current_weights().arrays, strict=True):
        assert np.abs(ours - theirs).mean() < tolerance


@pytest.fixture
def recorded_at_once(monkeypatch):
    """The second step of a kind is a graph's."""
    monkeypatch.setattr(_step_graph, "N_PLAIN", 1)


@pytest.fixture(params=[True, False], ids=["kernels", "plain"])
def with_or_without_kernels(request, monkeypatch):
    if not request.param:
        monkeypatch.setattr(_devices, "uses_triton", lambda tensor: False)


@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
@pytest.mark.parametrize("is_resident", [True, False])
@pytest.mark.parametrize("captures", [True, False])
def test_a_step_asks_the_device_for_nothing(
    monkeypatch, recorded_at_once, with_or_without_kernels, precision, is_resident, captures
):
    if not is_resident:
        monkeypatch.setattr(_torch_engine, "_RESIDENT_SHARE", 0.0)
    rows = make_embeddings(n_rows=500)
    settings = replace(SETTINGS, precision=precision, neighborhood_weight=0.1, neighborhood_rows=50)
    engine = make_engine(rows, settings, captures=captures)
    take_steps(engine, 500, 2)
    torch.cuda.set_sync_debug_mode("error")
    try:
        losses = take_steps(engine, 500)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert losses[-1].cosine > losses[0].cosine


@pytest.mark.parametrize("is_nested", [True, False])
def test_graphs_take_the_steps_that_launches_do(recorded_at_once, with_or_without_kernels, is_nested):
    rows = make_embeddings(n_rows=500)
    settings = replace(SETTINGS, neighborhood_weight=0.1, neighborhood_rows=50, is_nested=is_nested)
    engines = [make_engine(rows, settings, captures=captures) for captures in (False, True)]
    losses = [take_steps(engine, 500, 16) for engine in engines]
    for one, other in zip(*losses, strict=True):
        assert one.cosine == pytest.approx(other.cosine, abs=1e-4)
        assert np.abs(one.fired - other.fired).sum() <= 0.02 * one.fired.sum()
    assert_alike(*engines, 1e-4)


def test_rows_that_stay_on_the_host_train_alike(monkeypatch):
    rows = make_embeddings(n_rows=500)
    resident = make_engine(rows)
    monkeypatch.setattr(_torch_engine, "_RESIDENT_SHARE", 0.0)
    streamed = make_engine(rows)
    assert streamed._resident is None
    assert resident._resident is not None
    streamed._block_rows = 50  # three blocks through two buffers
    for engine in (resident, streamed):
        take_steps(engine, 500)
    assert_alike(resident, streamed)


def test_wide_rows_and_many_latents_agree_with_the_cpu():
    X = make_embeddings(n_rows=3000, n_features=768)
    model = CompresSAETransformer(10_000, k=16, max_iter=5, batch_size=512, random_state=0, device="cuda").fit(X)
    for coding in ("activations", "least_squares", "pursuit"):
        model.set_params(coding=coding)
        on_device = model.set_params(device="cuda").transform(X)
        difference = abs(on_device - model.set_params(device="cpu").transform(X))
        rows = np.asarray(difference.max(axis=1).todense()).ravel()
        assert np.mean(rows < 1e-4 * abs(on_device).max()) > 0.99


@pytest.mark.parametrize("coding", ["activations", "least_squares", "pursuit", "refined_pursuit"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_few_rows_have_the_codes_of_many(coding, dtype):
    X = make_embeddings(n_rows=2000, n_features=64).astype(dtype)
    model = CompresSAETransformer(300, k=8, max_iter=20, random_state=0, device="cuda", coding=coding).fit(X)
    expected = model.transform(X)
    for n_rows in (1, 5, 1000):
        for call in range(12):  # as they are, and then by a graph
            these = slice(10 * call, 10 * call + n_rows)
            found, wanted = model.transform(X[these]), expected[these]
            assert (found.indices == wanted.indices).mean() > 0.999
            np.testing.assert_allclose(found.toarray(), wanted.toarray(), atol=1e-4 * abs(expected).max())


def test_an_engine_leaves_the_device_with_its_last_reference(recorded_at_once):
    engine = make_engine(make_embeddings(n_rows=500), captures=True)
    take_steps(engine, 500)
    holder = [engine]
    del engine
    assert_goes_with_its_last_reference(holder)


@pytest.mark.filterwarnings("error")
def test_threads_record_graphs_beside_each_other():
    X = make_embeddings(n_rows=600, n_features=64)
    models = [CompresSAETransformer(200, k=8, max_iter=1, random_state=seed, device="cuda").fit(X) for seed in range(3)]
    expected = [model.transform(X[:200]).toarray() for model in models]

    def work(number):
        model, wanted = models[number % 3], expected[number % 3]
        if number % 4 == 0:
            CompresSAETransformer(64, k=4, max_iter=30, batch_size=128, random_state=0, device="cuda").fit(X)
        for n_rows in (1, 5, 30, 120):
            for _ in range(12):
                np.testing.assert_allclose(model.transform(X[:n_rows]).toarray(), wanted[:n_rows], atol=1e-3)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(12)))
