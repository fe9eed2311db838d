"""Modes and defaults of torch that the caller has set change nothing that is computed in torch."""

from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import make_embeddings
from scipy.sparse import csr_array, csr_matrix

from skcompressae import CompresSAETransformer
from skcompressae._core._initialise import data_weights
from skcompressae._core._rows import unit_rows
from skcompressae._core._search_store import RowStore, make_chunk
from skcompressae._torch import _cpu_engine, _devices, _encode_graph, _training
from skcompressae._torch._codes import encode_batch
from skcompressae._torch._device_encoder import DeviceEncoder
from skcompressae._torch._search import DeviceIndex
from skcompressae._torch._torch_engine import TorchEngine
from skcompressae._torch._weights import Weights

CPU = torch.device("cpu")


@contextmanager
def default_dtype(dtype):
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


MODES = {
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "inference mode": torch.inference_mode,
    "no gradients": torch.no_grad,
    "another device": lambda: torch.device("meta"),
    "float16": lambda: default_dtype(torch.float16),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "float64": lambda: default_dtype(torch.float64),
}
mode = pytest.mark.parametrize("mode", MODES.values(), ids=MODES)


@pytest.fixture(scope="module")
def weights():
    x, _ = unit_rows(make_embeddings(n_rows=300))
    encoder, _, decoder = data_weights(x, 60, 0.5, np.random.RandomState(0))
    return Weights(encoder, (0.05 * np.random.RandomState(1).standard_normal(60)).astype(np.float32), decoder)


ROWS = make_embeddings(n_rows=40, seed=3)
DENSE = np.where(np.random.RandomState(2).uniform(size=(40, 60)) < 0.1, np.float32(1.2345), np.float32(0))


def all_of(encoder):
    """What an encoder finds, as a list of arrays."""
    found = encoder.encode_blocks(ROWS, 6, 18, norm="input", dtype=np.float32)
    parts = [np.concatenate(part) for part in zip(*(block[1:] for block in found), strict=True)]
    cosines = encoder.cosines(ROWS, 6, 18, norm="unit")
    return [*parts, cosines, encoder.decode(DENSE), encoder.decode(csr_array(DENSE))]


def assert_all_equal(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


@mode
@pytest.mark.parametrize("coding", ["pursuit", "refined_pursuit", "activations"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_device_encodes_and_decodes_alike(weights, mode, coding, precision):
    settings = weights, CPU, precision, coding, True, 0.3
    expected = all_of(DeviceEncoder(*settings))
    with mode():
        encoder = DeviceEncoder(*settings)
        assert_all_equal(all_of(encoder), expected)
    assert_all_equal(all_of(encoder), expected)  # what is kept, too
    encoder = DeviceEncoder(*settings)
    with mode():
        assert_all_equal(all_of(encoder), expected)


def test_a_mode_may_change_between_blocks(weights):
    encoder = DeviceEncoder(weights, CPU, "float32", "pursuit", False, 0.3)
    expected = list(encoder.encode_blocks(ROWS, 6, 18, norm="unit", dtype=np.float32))
    encoder.block_rows = 16
    blocks, values = encoder.encode_blocks(ROWS, 6, 18, norm="unit", dtype=np.float32), []
    for mode in (torch.inference_mode, nullcontext, MODES["autocast"]):
        with mode():
            values.append(next(blocks)[2])
            assert torch.is_inference_mode_enabled() == (mode is torch.inference_mode)
    np.testing.assert_array_equal(np.concatenate(values), expected[0][2])


@mode
def test_few_rows_are_encoded_alike_by_a_graph(monkeypatch, weights, mode):
    class Recorder:
        has_failed = False

        def __init__(self, device):
            pass

        def record(self, work, *, runs_first):
            found = tuple(part.clone() for part in work())

            def replay():
                for target, part in zip(found, work(), strict=True):
                    target.copy_(part)

            return SimpleNamespace(replay=replay), found

    monkeypatch.setattr(_encode_graph, "GraphRecorder", Recorder)
    monkeypatch.setattr(DeviceEncoder, "_is_recorded", lambda self, n_candidates: True)
    encoder = DeviceEncoder(weights, CPU, "float32", "pursuit", False, 0.3)
    expected = all_of(encoder)
    with mode():
        for _ in range(2 * _encode_graph.N_PLAIN):
            assert_all_equal(all_of(encoder), expected)
    assert encoder._graphs._graphs
    assert_all_equal(all_of(encoder), expected)


@mode
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_training_in_torch_ends_alike(monkeypatch, mode, precision):
    made = []

    def make_engine(rows, weights, moments, settings, device, ranks=None):
        made.append(TorchEngine(rows, weights, moments, settings, device))
        return made[-1]

    monkeypatch.setattr(_training, "_make_engine", make_engine)
    X = make_embeddings(n_rows=300)
    settings = {"n_components": 48, "k": 4, "max_iter": 20, "batch_size": 64, "validation_fraction": 0.1}
    model = CompresSAETransformer(**settings, precision=precision, random_state=0, device="cpu")
    expected = model.fit(X).components_.copy()
    with mode():
        model.fit(X)
    np.testing.assert_array_equal(model.components_, expected)
    made[1].step(np.arange(64), 1e-3)  # parameters can be written to afterwards
    assert np.isfinite(made[1].losses(np.arange(64)).cosine)


@mode
def test_the_cpu_fits_and_encodes_alike(monkeypatch, mode):
    monkeypatch.setattr(_cpu_engine, "MULTIPLIES_INT16", False)  # so that products are torch's where they may be
    X = make_embeddings(n_rows=300)
    model = CompresSAETransformer(48, k=4, max_iter=20, precision="bfloat16", random_state=0, device="cpu")
    codes = model.fit(X).transform(X)
    expected = [model.components_.copy(), codes.toarray(), model.inverse_transform(codes), model.score(X)]
    for array in (model.encoder_weights_, model.encoder_bias_, model.components_):
        array.setflags(write=False)
    with mode():
        encoded = model.transform(X)
        found = [model.fit(X).components_, encoded.toarray(), model.inverse_transform(encoded), model.score(X)]
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_other_autocasts_do_not_reach_products_of_the_cpu(monkeypatch):
    """Where processors multiply bfloat16, autocast to float16 would take such factors for ones to be rounded."""
    monkeypatch.setattr(_cpu_engine, "MULTIPLIES_INT16", False)
    monkeypatch.setattr(_cpu_engine, "MULTIPLIES_BFLOAT16", True)
    random_state = np.random.RandomState(0)
    encoder, x = (1e3 * random_state.standard_normal((n, 8)).astype(np.float32) for n in (20, 70))
    products = _cpu_engine.PreActivations(encoder, "bfloat16")
    products.round_for(70)
    expected = products(x, 1).copy()
    with torch.autocast("cpu", dtype=torch.float16):
        np.testing.assert_array_equal(products(x, 1), expected)
    assert np.isfinite(expected).all()


@mode
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta state")
def test_a_device_finds_the_same_neighbors(mode):
    # of several clusters, so that many scores are near ties
    random_state = np.random.RandomState(0)
    centres = random_state.standard_normal((4, 30)) * (random_state.uniform(size=(4, 30)) < 0.3)
    codes = centres[random_state.randint(4, size=400)]
    codes *= 1 + 0.02 * random_state.standard_normal(codes.shape)
    chunk = make_chunk(RowStore.from_csr(csr_matrix(codes.astype(np.float32))), metric="cosine")
    targets = np.ascontiguousarray(codes[:20].T.astype(np.float32))
    expected = DeviceIndex([chunk], "cpu")._candidates(torch.from_numpy(targets), 37, None)
    with mode():
        index = DeviceIndex([chunk], "cpu")
        found = index.search(targets, 5)
    again = index._candidates(torch.from_numpy(targets), 37, None)
    for ours, theirs in zip(again, expected, strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)
    for ours, theirs in zip(found, DeviceIndex([chunk], "cpu").search(targets, 5), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def batch_codes(rows, weights, coding="pursuit"):
    given = [torch.from_numpy(array) for array in weights.arrays]
    return encode_batch(
        rows, *given, 6, coding=coding, candidate_factor=3.0, norm="unit", flattening=0.3, keeps_mean=True
    )


@mode
@pytest.mark.parametrize("coding", ["pursuit", "refined_pursuit", "activations"])
def test_batches_are_encoded_alike(weights, mode, coding):
    rows = torch.from_numpy(ROWS)
    expected = batch_codes(rows, weights, coding)
    with mode():
        indices, values = batch_codes(rows, weights, coding)
    assert torch.equal(indices, expected[0])
    assert values.dtype == torch.float32
    assert torch.equal(values, expected[1])


def test_gradients_pass_where_they_are_on(weights):
    def gradient(mode):
        rows = torch.from_numpy(ROWS.copy()).requires_grad_()
        with mode():
            values = batch_codes(rows, weights)[1]
        if values.requires_grad:
            (values * torch.arange(6)).sum().backward()
        return rows.grad

    expected = gradient(nullcontext)
    assert expected.abs().max() > 0
    assert torch.equal(gradient(MODES["autocast"]), expected)
    assert gradient(torch.no_grad) is gradient(torch.inference_mode) is None


def test_modes_are_as_they_were_afterwards():
    def modes():
        product = torch.ones((2, 2), device="cpu") @ torch.ones((2, 2), device="cpu")
        return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), product.dtype

    for mode in (nullcontext, torch.no_grad, torch.inference_mode, MODES["autocast"]):
        with mode():
            before = modes()
            with _devices.own_modes(CPU):
                assert modes() == (before[0], False, torch.float32)
            assert modes() == before


@pytest.mark.filterwarnings("ignore:User provided device_type of 'cuda'")  # older torch, without CUDA
@pytest.mark.parametrize("kind", ["mps", "meta", "cuda"])
def test_devices_without_autocast_are_no_trouble(kind):
    with torch.inference_mode():
        with _devices.own_modes(torch.device(kind)):
            assert not torch.is_inference_mode_enabled()
        assert torch.is_inference_mode_enabled()


def test_a_device_without_float64_keeps_norms_off_it(monkeypatch, weights):
    """As MPS does, which takes no tensor of that kind."""
    encoder = DeviceEncoder(weights, CPU, "float32", "pursuit", False, 0.3)
    rows = ROWS.copy()
    rows[5] = 0
    expected = encoder.cosines(rows, 6, 18, norm="unit")
    original = torch.Tensor.to

    def to(tensor, target, *rest, **options):
        if tensor.dtype == torch.float64 and isinstance(target, torch.device):
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        return original(tensor, target, *rest, **options)

    monkeypatch.setattr("skcompressae._torch._staging.has_float64", lambda device: False)
    monkeypatch.setattr(torch.Tensor, "to", to)
    found = encoder.cosines(rows, 6, 18, norm="unit")
    assert found[5] == 1
    np.testing.assert_allclose(found, expected, atol=1e-6)
