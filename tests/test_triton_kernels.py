"""Triton kernels against plain torch and naive references: compiled where there is a GPU, else in the interpreter."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_embeddings
from hypothesis import given, settings
from hypothesis import strategies as st
from test_device_encoder import assert_same_codes, make_encoder, rows_of
from test_topk import KINDS, draw_pre_activations
from test_training_step import SETTINGS, run_engine

from skcompressae._core._initialise import data_weights
from skcompressae._core._rows import unit_rows
from skcompressae._torch import _devices
from skcompressae._torch._pursuit import GramTable, pursuit_codes_torch
from skcompressae._torch._row_ops import decoded_norms, gathered_dots, unit_rows_torch
from skcompressae._torch._selection import select, select_dense
from skcompressae._torch._step_ops import cosine_gradients
from skcompressae._torch._torch_engine import TorchEngine
from skcompressae._torch._weights import Weights

pytest.importorskip("triton", reason="Triton is not installed")
selection = importlib.import_module("skcompressae._torch._triton_selection")
step_kernels = importlib.import_module("skcompressae._torch._triton_step")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def with_kernels(monkeypatch):
    """Work on any tensor with the kernels, or with plain torch; the kernels where nothing is said."""

    def switch(is_on):
        monkeypatch.setattr(_devices, "uses_triton", lambda tensor: is_on)

    switch(True)
    return switch


def tensors(*arrays):
    return [torch.from_numpy(np.asarray(array)).to(DEVICE) for array in arrays]


def both(switch, work):
    """What work returns, on the CPU, by plain torch and by the kernels."""
    results = []
    for is_on in (False, True):
        switch(is_on)
        results.append([part.cpu() for part in work()])
    return zip(*results, strict=True)


def naive_selection(pre_activations, k, n_active):
    """Stable sort by descending magnitude: the k first, ascending, then the rest of the n_active, ascending."""
    order = np.argsort(-np.abs(pre_activations), axis=1, kind="stable")
    return np.concatenate([np.sort(order[:, :k], axis=1), np.sort(order[:, k:n_active], axis=1)], axis=1)


@settings(deadline=None, max_examples=15)
@given(
    kind=st.sampled_from(KINDS),
    n_rows=st.integers(1, 4),
    n_components=st.integers(1, 90),
    max_width=st.sampled_from([32, 64, 128]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 2**31),
    data=st.data(),
)
def test_selection_is_that_of_a_stable_sort(kind, n_rows, n_components, max_width, dtype, seed, data):
    n_active = data.draw(st.sampled_from([1, n_components, data.draw(st.integers(1, n_components))]), label="n_active")
    k = data.draw(st.integers(1, n_active), label="k")
    if not selection.can_select(n_components, n_active, max_width):
        max_width = 128  # one round
    random_state = np.random.RandomState(seed)
    # halved, so that the bias cannot take the largest numbers to infinity
    drawn = torch.from_numpy(draw_pre_activations(kind, (n_rows, n_components), np.float32, random_state) / 2).to(dtype)
    if dtype == torch.bfloat16:  # whose subnormal numbers Triton's interpreter widens wrongly
        drawn[drawn.abs() < torch.finfo(dtype).tiny] = 0
    bias = (
        random_state.randint(-1, 2, n_components).astype(np.float32) if kind == "ties" else np.zeros(n_components, "f")
    )
    expected = drawn.float().numpy() + bias
    indices, values = selection.select_triton(drawn.to(DEVICE), *tensors(bias), k, n_active, max_width)
    places = naive_selection(expected, k, n_active)
    np.testing.assert_array_equal(indices.cpu(), places)
    np.testing.assert_array_equal(values.cpu(), np.take_along_axis(expected, places, axis=1))


@pytest.mark.parametrize("kind", ["normal", "ties"])
@pytest.mark.parametrize(("n_components", "k", "n_active"), [(4096, 32, 128), (1000, 40, 40), (10_000, 8, 32)])
def test_selection_at_real_widths(kind, n_components, k, n_active):
    random_state = np.random.RandomState(0)
    block = draw_pre_activations(kind, (2, n_components), np.float32, random_state)
    bias = (
        random_state.standard_normal(n_components).astype(np.float32)
        if kind == "normal"
        else np.zeros(n_components, "f")
    )
    assert selection.can_select(n_components, n_active)
    indices, values = selection.select_triton(*tensors(block, bias), k, n_active)
    places = naive_selection(block + bias, k, n_active)
    np.testing.assert_array_equal(indices.cpu(), places)
    np.testing.assert_array_equal(values.cpu(), np.take_along_axis(block + bias, places, axis=1))


@pytest.mark.parametrize("n_active", [3, 8, 20])
def test_what_is_no_number_is_selected_first(n_active):
    """The largest bits of a magnitude: one more of them must not overflow."""
    block = np.random.RandomState(0).standard_normal((3, 20)).astype(np.float32)
    block[1, 7] = np.nan
    block.view(np.uint32)[2, 3:9] = 0x7FFFFFFF
    indices, _ = selection.select_triton(*tensors(block, np.zeros(20, "f")), min(3, n_active), n_active)
    places = naive_selection(np.where(np.isnan(block), np.inf, block), min(3, n_active), n_active)
    np.testing.assert_array_equal(indices.cpu(), places)


def test_what_the_selection_takes():
    assert all(selection.can_select(width, 128) for width in (1, 4096, 8192, 2**17))
    assert not selection.can_select(2**17, 1000)  # too many candidates for a second round
    assert not selection.can_select(2**18, 32)
    assert not selection.can_select(8192 * 2, 9000)
    assert selection.can_select_dense(8192)
    assert not selection.can_select_dense(8193)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("n_components", "k", "n_active"), [(70, 3, 12), (33, 33, 33), (64, 1, 4), (20, 7, 20)])
def test_dense_rows_and_counts_are_those_of_plain_torch(with_kernels, dtype, n_components, k, n_active):
    random_state = np.random.RandomState(0)
    block, bias = random_state.standard_normal((5, n_components)), 0.1 * random_state.standard_normal(n_components)
    block, bias = (part.float() for part in tensors(block, bias))

    def work():
        fired = torch.ones(n_components, dtype=torch.int64, device=DEVICE)
        return *select_dense(block, bias, k, n_active, fired, dtype), fired

    for plain, kernel in both(with_kernels, work):  # the interpreter truncates where a GPU rounds to bfloat16
        assert kernel.dtype == plain.dtype or not plain.is_floating_point()
        np.testing.assert_allclose(kernel.float(), plain.float(), rtol=0 if dtype == torch.float32 else 2**-7)


def test_rows_too_wide_for_one_program_are_spread_by_torch(with_kernels, monkeypatch):
    monkeypatch.setattr(selection, "_MAX_WIDTH", 32)
    monkeypatch.setattr(selection.select_triton, "__defaults__", (32,))
    monkeypatch.setattr(selection.can_select, "__defaults__", (32,))
    block, bias = tensors(np.random.RandomState(0).standard_normal((4, 70)).astype(np.float32), np.zeros(70, "f"))
    for n_active in (10, 40):  # 40 do not fit two rounds of 32
        assert selection.can_select(70, n_active) == (n_active == 10)

        def work(n_active=n_active):
            fired = torch.zeros(70, dtype=torch.int64, device=DEVICE)
            return *select_dense(block, bias, 3, n_active, fired, torch.float32), fired, *select(block, bias, n_active)

        for plain, kernel in both(with_kernels, work):
            np.testing.assert_array_equal(kernel, plain)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_unit_rows(with_kernels, dtype):
    (rows,) = tensors(rows_of(dtype, n_rows=12))
    (unit, kernel_unit), (norms, kernel_norms) = both(with_kernels, lambda: unit_rows_torch(rows))
    np.testing.assert_allclose(kernel_unit, unit, rtol=3e-7)
    np.testing.assert_allclose(kernel_norms, norms, rtol=1e-12)


@pytest.mark.parametrize(("n_features", "n_picks"), [(5, 1), (200, 19), (128, 16)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gathers(with_kernels, n_features, n_picks, dtype):
    random_state = np.random.RandomState(0)
    x, matrix, values = (random_state.standard_normal(shape).astype(np.float32) for shape in
                         ((3, n_features), (40, n_features), (3, n_picks)))  # fmt: skip
    picks = np.array([random_state.choice(40, n_picks, replace=False) for _ in range(3)])
    x, matrix, values, picks = tensors(x, matrix, values, picks)
    matrix = matrix.to(dtype)

    def work():
        return gathered_dots(x, matrix, picks), *decoded_norms(x, values, matrix, picks)

    for plain, kernel in both(with_kernels, work):
        np.testing.assert_allclose(kernel, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("n_candidates", "k"), [(7, 7), (20, 6), (17, 17), (40, 1)])
@pytest.mark.parametrize("has_table", [True, False])
def test_elimination(with_kernels, n_candidates, k, has_table):
    random_state = np.random.RandomState(1)
    decoder = unit_rows(random_state.standard_normal((60, 48)))[0]
    x = unit_rows(random_state.standard_normal((2, 48)))[0]
    x[1] = 0
    decoder[5] = decoder[4]
    candidates = np.array([np.sort(random_state.choice(60, n_candidates, replace=False)) for _ in range(2)])
    activations = random_state.standard_normal((2, n_candidates)).astype(np.float32)
    activations[1] = 0
    x, decoder, candidates, activations = tensors(x, decoder, candidates, activations)

    def work():
        grams = GramTable(decoder)
        if not has_table:
            grams.table = None
        return pursuit_codes_torch(x, grams, candidates, activations, k)

    for plain, kernel in both(with_kernels, work):
        np.testing.assert_allclose(kernel, plain, rtol=1e-4, atol=2e-5)


def test_elimination_picks_k_of_what_is_no_number(with_kernels):
    random_state = np.random.RandomState(1)
    arrays = unit_rows(random_state.standard_normal((60, 48)))[0], unit_rows(random_state.standard_normal((4, 48)))[0]
    candidates = np.tile(np.arange(0, 40, 2), (4, 1))
    activations = random_state.standard_normal((4, 20)).astype(np.float32)
    activations[1, 3] = activations[2] = np.nan
    activations[3, 5] = np.inf
    decoder, x, candidates, activations = tensors(*arrays, candidates, activations)
    for found in both(with_kernels, lambda: pursuit_codes_torch(x, GramTable(decoder), candidates, activations, 6)):
        if not found[0].is_floating_point():
            np.testing.assert_array_equal(*found)
            for indices in found:
                assert (indices.diff(dim=1) > 0).all()
                assert np.isin(indices, np.arange(0, 40, 2)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cosine_gradients(with_kernels, dtype):
    random_state = np.random.RandomState(0)
    x, near, rest = tensors(*(random_state.standard_normal((3, 6, 40)).astype(np.float32)))
    x /= x.norm(dim=1, keepdim=True)
    x[2] = 0
    near[1] = 0
    rest[1] = 0
    near, rest = near.to(dtype), rest.to(dtype)
    for plain, kernel in both(with_kernels, lambda: cosine_gradients(x, near, rest, (0.3, 0.1))):
        assert kernel.dtype == plain.dtype
        np.testing.assert_allclose(kernel.float(), plain.float(), atol=1e-6 if dtype == torch.float32 else 1e-3)


@pytest.mark.parametrize(("k", "n_active"), [(3, 12), (1, 1), (9, 20)])
def test_gathered_gradients_are_those_of_dense_products(with_kernels, k, n_active):
    random_state = np.random.RandomState(0)
    decoder = unit_rows(random_state.standard_normal((30, 40)))[0]
    x = unit_rows(random_state.standard_normal((5, 40)))[0]
    indices = np.array([random_state.choice(30, n_active, replace=False) for _ in range(5)])
    values = random_state.standard_normal((5, n_active)).astype(np.float32)
    values[2] = 0
    near, wide = np.zeros((2, 5, 30), np.float32)
    np.put_along_axis(near, indices[:, :k], values[:, :k], axis=1)
    np.put_along_axis(wide, indices[:, k:], values[:, k:], axis=1)
    arrays = tensors(x, near @ decoder, wide @ decoder, decoder, indices, values)
    with_kernels(False)
    expected = [part.cpu().numpy() for part in cosine_gradients(*arrays[:3], (0.3, 0.1))]
    found = step_kernels.gathered_gradients_triton(arrays[0], *arrays[3:], k, (0.3, 0.1))
    for ours, theirs in zip(found[:3], expected, strict=True):
        np.testing.assert_allclose(ours.cpu(), theirs, atol=1e-5)
    slopes = np.concatenate([np.take_along_axis(expected[1] @ decoder.T, indices[:, :k], axis=1),
                             np.take_along_axis(expected[2] @ decoder.T, indices[:, k:], axis=1)], axis=1)  # fmt: skip
    np.testing.assert_allclose(found[3].cpu(), slopes, atol=1e-5)


# All of them together ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("coding", "precision"),
    [("activations", "float32"), ("least_squares", "float32"), ("pursuit", "float32"), ("least_squares", "bfloat16")],
)
def test_codes_are_those_of_the_cpu(with_kernels, coding, precision):
    x, _ = unit_rows(make_embeddings(n_rows=300, n_features=24))
    weights = Weights(*data_weights(x, 60, 0.5, np.random.RandomState(0)))
    rows = make_embeddings(n_rows=6, seed=3)
    found = make_encoder(weights, coding, DEVICE, precision).encode(rows, 6, norm="input", dtype=np.float32)
    expected = make_encoder(weights, coding, None).encode(rows, 6, norm="input", dtype=np.float32)
    assert_same_codes(found, expected, 1.0 if precision == "float32" else 0.8)


@pytest.mark.parametrize(("precision", "neighborhood_weight"), [("float32", 0.1), ("tf32", 0.0), ("bfloat16", 0.1)])
def test_steps_are_those_of_plain_torch(with_kernels, precision, neighborhood_weight):
    rows = make_embeddings(n_rows=100)
    weights = Weights(*data_weights(unit_rows(rows)[0], 64, 0.5, np.random.RandomState(1)))
    changed = {"batch_size": 8, "precision": precision, "neighborhood_weight": neighborhood_weight}
    step_settings = SETTINGS.__class__(**{**SETTINGS.__dict__, **changed})
    results = []
    for is_on in (False, True):
        with_kernels(is_on)
        engine, losses = run_engine(TorchEngine, rows, weights, 2, step_settings, DEVICE)
        assert engine._gathers == (is_on and precision == "float32")
        results.append((engine.current_weights(), losses[-1].cosine, losses[-1].fired))
    (plain, cosine, fired), (kernel, kernel_cosine, kernel_fired) = results
    is_exact = precision == "float32"
    assert kernel_cosine == pytest.approx(cosine, abs=1e-5 if is_exact else 2e-3)
    assert np.abs(fired - kernel_fired).sum() <= (0 if is_exact else 0.1 * fired.sum())
    for ours, theirs in zip(kernel.arrays, plain.arrays, strict=True):
        assert np.abs(ours - theirs).mean() < (1e-6 if is_exact else 3e-4)


def test_every_kernel_compiles_for_an_h100(tmp_path):
    """The interpreter knows what a kernel means, not whether the compiler takes it."""
    out = tmp_path / "kernels.json"
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}
    environment.pop("TRITON_INTERPRET", None)
    size = ["--n-features", "64", "--n-components", "256", "--k", "8", "--n-rows", "1000"]
    subprocess.run([sys.executable, ROOT / "benchmarks" / "compile_kernels.py", *size, "--out", out],
                   env=environment, check=True, capture_output=True)  # fmt: skip
    results = json.loads(out.read_text(encoding="utf-8"))["results"]
    assert {result["kernel"] for result in results.values()} == {
        "_unit_rows", "_gathered_dots", "_decoded_norms", "_pursue", "_select",
        "_cosine_gradients", "_write_slopes", "_gathered_gradients",
    }  # fmt: skip
    assert all(result["code_bytes"] > 0 for result in results.values())
