"""Training that fails: memory that ends, on a device played on the CPU; weights that leave the numbers."""

import numpy as np
import pytest
import torch
from conftest import make_embeddings
from test_usage_power import small
from torch.utils._python_dispatch import TorchDispatchMode

from skcompressae._core._initialise import data_weights
from skcompressae._core._random_states import plain_random_state
from skcompressae._core._rows import unit_rows
from skcompressae._torch import _training
from skcompressae._torch._torch_engine import TorchEngine
from skcompressae._torch._weights import Moments, StepSettings, Weights


@pytest.fixture
def on_torch(monkeypatch):
    """Let fits on the CPU take the steps of devices."""
    monkeypatch.setattr(_training, "_make_engine", TorchEngine)


class Updates(TorchDispatchMode):
    """Notes operations that make an array of at least a size while a step's update is being done."""

    def __init__(self, size):
        super().__init__()
        self.size, self.has_begun, self.made = size, False, []

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        name = function.overloadpacket.__name__
        self.has_begun |= name == "lerp_"
        given = [*arguments, *(options or {}).values()]
        known = {each.untyped_storage().data_ptr() for each in given if isinstance(each, torch.Tensor)}
        found = function(*arguments, **(options or {}))
        is_new = isinstance(found, torch.Tensor) and found.untyped_storage().data_ptr() not in known
        if self.has_begun and is_new and found.numel() >= self.size:
            self.made.append(name)
        return found


@pytest.mark.parametrize("keeps_mean_latent", [False, True])
def test_memory_cannot_end_amid_an_update(keeps_mean_latent):
    """Encoder and bias would have taken a step that the decoder has not, and take it again with the next batch."""
    rows = make_embeddings(n_rows=100)
    decoder = np.linalg.qr(np.random.RandomState(0).standard_normal((24, 24)))[0].astype(np.float32)
    weights = Weights(decoder.copy(), np.zeros(24, np.float32), decoder)
    settings = StepSettings(
        k=4,
        n_active=16,
        loss_weights=(1.0, 0.125),
        batch_size=50,
        precision="float32",
        keeps_mean_latent=keeps_mean_latent,
        rests_idle=True,
    )
    engine = TorchEngine(rows, weights, Moments.zeros_like(weights), settings, torch.device("cpu"))
    with Updates(decoder.size) as updates:
        engine.step(np.arange(50), 0.01)
    assert updates.has_begun
    assert updates.made == []


@pytest.mark.filterwarnings("ignore::skcompressae.exceptions.DeviceMemoryWarning")
@pytest.mark.parametrize("n_rows", [400, 390])
def test_a_block_is_seen_whole_though_its_batches_were_halved(on_torch, monkeypatch, n_rows):
    step, seen = TorchEngine.step, []

    def limited(self, row_indices, rate):
        if len(row_indices) > 60:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        seen.append(row_indices)
        return step(self, row_indices, rate)

    monkeypatch.setattr(TorchEngine, "step", limited)
    model = small(batch_size=200).partial_fit(make_embeddings(n_rows=n_rows))
    np.testing.assert_array_equal(np.sort(np.concatenate(seen)), np.arange(n_rows))
    assert model.n_iter_ == len(seen) == -(-n_rows // 50)


@pytest.mark.parametrize("early_stopping", [False, True])
def test_a_fit_that_diverges_says_so_and_leaves_the_last_good_checkpoint(
    on_torch, embeddings, tmp_path, monkeypatch, early_stopping
):
    parameters = {"max_iter": 40, "early_stopping": early_stopping, "checkpoint_interval": 5}
    expected = small(**parameters).fit(embeddings)
    step, n_steps = TorchEngine.step, []

    def diverging(self, *given):
        n_steps.append(1)
        if len(n_steps) == 13:
            self._parameters[0].fill_(torch.inf)
        return step(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(TorchEngine, "step", diverging)
        with pytest.raises(ValueError, match="Training diverged: weights are no longer finite"):
            small(**parameters, checkpoint_dir=tmp_path).fit(embeddings)
    assert len(n_steps) < 20
    resumed = small(**parameters, checkpoint_dir=tmp_path).fit(embeddings)
    np.testing.assert_allclose(resumed.components_, expected.components_, atol=1e-5)


def test_ranks_compare_all_that_random_numbers_come_from():
    states = [np.random.RandomState(0) for _ in range(2)]
    states[1].rand(1)
    states += [np.random.RandomState(np.random.PCG64(seed)) for seed in (0, 1)]
    described = {str(plain_random_state(state.get_state(legacy=False))) for state in states}
    assert len(described) == 4
    assert "..." not in "".join(described)


@pytest.mark.parametrize("init", ["data", "kaiming"])
@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_more_components_than_memory_can_hold_are_refused_at_once(init, method):
    model = small(n_components=2**31 - 1, init=init)
    with pytest.raises(MemoryError, match=r"n_components=2147483647 latents of 20000 features .* lower n_components"):
        getattr(model, method)(np.ones((3, 20_000), dtype=np.float32))
    assert not hasattr(model, "n_features_in_")


@pytest.mark.parametrize("n_components", [5, 10, 37])
def test_latents_start_at_every_row_once_before_any_row_twice(n_components):
    sample = unit_rows(make_embeddings(n_rows=10))[0]
    random_state = np.random.RandomState(0)
    picks = np.concatenate([random_state.permutation(10) for _ in range(4)])[:n_components]
    centred = sample[picks] - sample.mean(axis=0, dtype=np.float64).astype(np.float32)
    decoder = data_weights(sample, n_components, 0.0, np.random.RandomState(0))[2]
    mean = decoder[0]
    expected = centred - np.outer(centred @ mean, mean)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(decoder[1:], expected[1:], atol=1e-5)
