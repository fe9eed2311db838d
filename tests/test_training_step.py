"""One training step against the paper's equations in plain torch autograd, and the engines against each other."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import make_embeddings
from hypothesis import given, settings
from hypothesis import strategies as st

from skcompressae import CompresSAETransformer
from skcompressae._core._adam import apply_adam
from skcompressae._core._initialise import data_weights, kaiming_weights
from skcompressae._core._neighborhood import MIN_SPREAD, neighborhood_gradients
from skcompressae._core._rows import unit_rows
from skcompressae._core._sparse_step import group_by_latent, reconstruction_gradients, sum_gradients
from skcompressae._core._topk import top_k
from skcompressae._torch import _device_encoder
from skcompressae._torch._cpu_engine import CpuEngine
from skcompressae._torch._torch_engine import TorchEngine, is_out_of_memory
from skcompressae._torch._weights import Moments, StepSettings, Weights, adam_rates
from skcompressae.exceptions import DeviceMemoryWarning

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8


def naive_mask(pre_activations, k):
    """1 for the k entries of largest magnitude of each row, else 0."""
    order = torch.argsort(pre_activations.detach().abs(), dim=1, descending=True, stable=True)[:, :k]
    return torch.zeros_like(pre_activations).scatter_(1, order, 1.0)


def naive_cosine(x, x_hat):
    """Cosine of unit (or zero) rows x with x_hat, 0 where x_hat is 0."""
    norm = x_hat.norm(dim=1)
    return (x * x_hat).sum(dim=1) / torch.where(norm > 0, norm, torch.ones_like(norm))


def naive_loss(x, encoder, bias, decoder, k, n_active, loss_weights):
    """Equations 1 to 4 of the paper: both cosine distances, averaged over the batch, weighted, added."""
    pre_activations = x @ encoder.T + bias
    loss = 0.0
    for weight, n_kept in zip(loss_weights, (k, n_active), strict=True):
        x_hat = (pre_activations * naive_mask(pre_activations, n_kept)) @ decoder
        loss = loss + weight * (1 - naive_cosine(x, x_hat)).mean()
    return loss, pre_activations


class NaiveTraining:
    """The whole step: autograd, no gradient along decoder rows, torch's Adam, decoder rows renormalised."""

    def __init__(self, weights, learning_rate):
        self.parameters = [torch.tensor(array, dtype=torch.float64, requires_grad=True) for array in weights.arrays]
        self.adam = torch.optim.Adam(self.parameters, lr=learning_rate, betas=(BETA1, BETA2), eps=EPSILON)

    def step(self, x, k, n_active, loss_weights):
        self.adam.zero_grad()
        loss, _ = naive_loss(torch.tensor(x, dtype=torch.float64), *self.parameters, k, n_active, loss_weights)
        loss.backward()
        decoder = self.parameters[2]
        with torch.no_grad():
            decoder.grad -= (decoder.grad * decoder).sum(dim=1, keepdim=True) * decoder
        self.adam.step()
        with torch.no_grad():
            decoder /= decoder.norm(dim=1, keepdim=True)
        return loss.item()


def draw_weights(n_components, n_features, random_state, dtype=np.float64):
    decoder = random_state.standard_normal((n_components, n_features))
    decoder /= np.linalg.norm(decoder, axis=1, keepdims=True)
    arrays = (
        random_state.standard_normal((n_components, n_features)),
        0.2 * random_state.standard_normal(n_components),
        decoder,
    )
    return Weights(*(array.astype(dtype) for array in arrays))


def kernel_step(x, weights, moments, k, n_active, loss_weights, learning_rate, n_threads=1):
    """What CpuEngine.step does, in the dtype of the arrays."""
    indices, values = top_k(x @ weights.encoder.T + weights.bias, n_active, n_threads=n_threads)
    scaled = (loss_weights[0] / len(x), loss_weights[1] / len(x))
    gradients = reconstruction_gradients(x, weights.decoder, indices, values, k, scaled, n_threads=n_threads)
    latent_gradients, is_leading, x_gradients, cosines = gradients
    moments.n_steps += 1
    rates = np.array(
        [
            learning_rate / (1 - BETA1**moments.n_steps),
            BETA1,
            BETA2,
            np.sqrt(1 - BETA2**moments.n_steps),
            EPSILON,
        ],
        dtype=x.dtype,
    )
    sums = tuple(np.zeros_like(array) for array in weights.arrays)
    grouped = group_by_latent(indices, weights.n_components)
    sum_gradients(x, values, latent_gradients, is_leading, x_gradients, *grouped, sums, n_threads=n_threads)
    apply_adam(weights.arrays, sums, moments.arrays, rates, n_threads=n_threads)
    means = cosines.mean(axis=0)
    return loss_weights[0] * (1 - means[0]) + loss_weights[1] * (1 - means[1])


problems = st.fixed_dictionaries(
    {
        "n_rows": st.integers(1, 20),
        "n_features": st.sampled_from([2, 7, 20, 64, 70, 130]),  # below, at and across the borders of tiles
        "n_components": st.integers(1, 40),
        "k": st.integers(1, 12),
        "loss_weights": st.sampled_from([(1.0, 0.125), (1.0, 0.0), (0.0, 2.0), (0.3, 0.7)]),
        "has_zero_row": st.booleans(),
        "seed": st.integers(0, 2**31),
    }
)


def realise(problem):
    random_state = np.random.RandomState(problem["seed"])
    x = random_state.standard_normal((problem["n_rows"], problem["n_features"]))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    if problem["has_zero_row"]:
        x[0] = 0
    k = min(problem["k"], problem["n_components"])
    n_active = min(4 * k, problem["n_components"])
    weights = draw_weights(problem["n_components"], problem["n_features"], random_state)
    return x, weights, k, n_active, problem["loss_weights"]


@settings(deadline=None, max_examples=60)
@given(problem=problems)
def test_loss_and_gradients_are_those_of_autograd(problem):
    x, weights, k, n_active, loss_weights = realise(problem)
    parameters = [torch.tensor(array, requires_grad=True) for array in weights.arrays]
    loss, pre_activations = naive_loss(torch.tensor(x), *parameters, k, n_active, loss_weights)
    pre_activations.retain_grad()
    loss.backward()

    product = x @ weights.encoder.T + weights.bias
    indices, values = top_k(product, n_active, n_threads=1)
    scaled = (loss_weights[0] / len(x), loss_weights[1] / len(x))
    latent_gradients, is_leading, x_gradients, cosines = reconstruction_gradients(
        x, weights.decoder, indices, values, k, scaled, n_threads=1
    )
    distances = 1 - cosines.mean(axis=0)
    assert loss_weights[0] * distances[0] + loss_weights[1] * distances[1] == pytest.approx(loss.item(), abs=1e-12)

    expected = pre_activations.grad.numpy()
    ours = np.zeros_like(expected)
    np.put_along_axis(ours, indices, latent_gradients, axis=1)
    np.testing.assert_allclose(ours, expected, atol=1e-12)

    leading = np.zeros_like(expected)
    np.put_along_axis(leading, indices, is_leading.astype(float), axis=1)
    np.testing.assert_array_equal(leading, naive_mask(torch.tensor(product), k).numpy())

    sums = tuple(np.ones_like(array) for array in weights.arrays)
    grouped = group_by_latent(indices, weights.n_components)
    sum_gradients(x, values, latent_gradients, is_leading, x_gradients, *grouped, sums, n_threads=1)
    for ours, parameter in zip(sums, parameters, strict=True):
        np.testing.assert_allclose(ours - 1, parameter.grad.numpy(), atol=1e-12)


@settings(deadline=None, max_examples=40)
@given(problem=problems, learning_rate=st.sampled_from([1e-3, 3e-2]))
def test_weights_after_one_and_three_steps_are_those_of_the_naive_step(problem, learning_rate):
    x, weights, k, n_active, loss_weights = realise(problem)
    naive = NaiveTraining(weights, learning_rate)
    moments = Moments.zeros_like(weights)
    for _ in range(3):
        loss = kernel_step(x, weights, moments, k, n_active, loss_weights, learning_rate)
        assert loss == pytest.approx(naive.step(x, k, n_active, loss_weights), abs=1e-9)
        for ours, expected in zip(weights.arrays, naive.parameters, strict=True):
            np.testing.assert_allclose(ours, expected.detach().numpy(), atol=1e-7)
    np.testing.assert_allclose(np.linalg.norm(weights.decoder, axis=1), 1, atol=1e-12)


def test_a_step_moves_every_kind_of_weight():
    x, weights, k, n_active, loss_weights = realise(
        {"n_rows": 20, "n_features": 8, "n_components": 30, "k": 3, "loss_weights": (1.0, 0.125),
         "has_zero_row": False, "seed": 0}
    )  # fmt: skip
    before = weights.copy()
    kernel_step(x, weights, Moments.zeros_like(weights), k, n_active, loss_weights, 1e-2)
    for old, new in zip(before.arrays, weights.arrays, strict=True):
        assert np.abs(new - old).max() > 1e-3


def test_threads_do_not_change_a_step():
    random_state = np.random.RandomState(4)
    x, _ = unit_rows(random_state.standard_normal((300, 16)))
    results = []
    for n_threads in (1, 3):
        weights = draw_weights(200, 16, np.random.RandomState(5), np.float32)
        moments = Moments.zeros_like(weights)
        kernel_step(x, weights, moments, 8, 32, (1.0, 0.125), 1e-2, n_threads=n_threads)
        results.append((*weights.arrays, *moments.arrays))
    for one, many in zip(*results, strict=True):
        np.testing.assert_array_equal(one, many)


def test_adam_rates_fold_in_the_bias_corrections():
    rates = adam_rates(0.01, StepSettings(k=2, n_active=8, loss_weights=(1.0, 0.125), batch_size=4), 3)
    expected = [0.01 / (1 - 0.9**3), 0.9, 0.999, np.sqrt(1 - 0.999**3), 1e-8]
    np.testing.assert_allclose(rates, expected, rtol=1e-6)


def naive_neighborhood(x, codes, temperatures):
    """Mean over rows of KL(softmax(row cosines / T) || softmax(code cosines / T')), each row's own entry left out."""
    itself = torch.eye(len(x), dtype=torch.bool)
    spread = max((x @ x.T)[~itself].std(correction=0).item(), MIN_SPREAD)
    norms = codes.norm(dim=1, keepdim=True)
    unit_codes = codes / torch.where(norms > 0, norms, torch.ones_like(norms))
    wanted, found = (
        torch.log_softmax((rows @ rows.T / (temperature * spread)).masked_fill(itself, -torch.inf), dim=1)
        for rows, temperature in zip((x, unit_codes), temperatures, strict=True)
    )
    return (wanted.exp() * (wanted - found).masked_fill(itself, 0.0)).sum(dim=1).mean()


@settings(deadline=None, max_examples=40)
@given(
    n_rows=st.integers(2, 20),
    n_components=st.integers(1, 30),
    k=st.integers(1, 6),
    temperatures=st.tuples(st.sampled_from([0.5, 2.0]), st.sampled_from([0.7, 1.0])),
    has_empty_code=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_neighborhood_term_is_that_of_autograd(n_rows, n_components, k, temperatures, has_empty_code, seed):
    random_state = np.random.RandomState(seed)
    x, _ = unit_rows(random_state.standard_normal((n_rows, 8)), np.float64)
    k = min(k, n_components)
    indices, values = top_k(random_state.standard_normal((n_rows, n_components)), k, n_threads=1)
    if has_empty_code:
        values[0] = 0
    dense = np.zeros((n_rows, n_components))
    np.put_along_axis(dense, indices, values, axis=1)
    codes = torch.tensor(dense, requires_grad=True)
    loss = naive_neighborhood(torch.tensor(x), codes, temperatures)
    (0.3 * loss).backward()
    gradients, ours = neighborhood_gradients(x, indices, values, n_components, temperatures, 0.3, n_threads=1)
    assert ours == pytest.approx(loss.item(), abs=1e-10)
    expected = np.take_along_axis(codes.grad.numpy(), indices, axis=1)
    if has_empty_code:  # an empty code has no direction to turn
        assert not gradients[0].any()
        gradients, expected = gradients[1:], expected[1:]
    np.testing.assert_allclose(gradients, expected, atol=1e-10)


def test_neighborhood_term_does_not_depend_on_how_numpy_treats_underflow():
    x, _ = unit_rows(np.random.RandomState(0).standard_normal((30, 8)))
    indices, values = top_k(x @ x.T, 3, n_threads=1)
    arguments = x, indices, values, 30, (1e-3, 1e-3), 1.0
    with np.errstate(all="raise"):
        found, loss = neighborhood_gradients(*arguments, n_threads=1)
    expected, expected_loss = neighborhood_gradients(*arguments, n_threads=1)
    np.testing.assert_array_equal(found, expected)
    assert loss == expected_loss


# The engines ---------------------------------------------------------------------------------------------------------

SETTINGS = StepSettings(k=4, n_active=16, loss_weights=(1.0, 0.125), batch_size=128)


def run_engine(engine_type, rows, weights, n_steps, settings, *device):
    engine = engine_type(rows, weights.copy(), Moments.zeros_like(weights), settings, *device)
    random_state = np.random.RandomState(0)
    losses = [
        engine.step(np.sort(random_state.choice(len(rows), settings.batch_size, replace=False)), 1e-3)
        for _ in range(n_steps)
    ]
    return engine, losses


@pytest.mark.parametrize("start", ["data", "kaiming"])
@pytest.mark.parametrize(("neighborhood_weight", "is_nested"), [(0.0, False), (0.1, False), (0.1, True)])
def test_torch_engine_agrees_with_the_cpu_engine(device, start, neighborhood_weight, is_nested):
    settings = replace(SETTINGS, neighborhood_weight=neighborhood_weight, neighborhood_rows=100, is_nested=is_nested)
    settings = replace(settings, rests_idle=is_nested)
    rows = make_embeddings(n_rows=500)
    if start == "data":
        weights = Weights(*data_weights(unit_rows(rows)[0], 64, 0.5, np.random.RandomState(1)))
    else:
        weights = Weights(*kaiming_weights(rows.shape[1], 64, np.random.RandomState(1)))
    cpu, cpu_losses = run_engine(CpuEngine, rows, weights, 6, settings)
    other, other_losses = run_engine(TorchEngine, rows, weights, 6, settings, torch.device(device))
    for ours, theirs in zip(cpu_losses, other_losses, strict=True):
        assert ours.cosine == pytest.approx(theirs.cosine, abs=2e-5)
        assert ours.cosine_wide == pytest.approx(theirs.cosine_wide, abs=2e-5)
        # A latent may change places with a near tie; nearly all do not.
        assert np.abs(ours.fired - theirs.fired).sum() <= 0.01 * ours.fired.sum()
    np.testing.assert_array_equal(cpu_losses[0].fired.sum(), SETTINGS.batch_size * SETTINGS.k)
    # Adam divides by the gradient's own size, so rounding moves single entries by up to the learning rate.
    for ours, theirs in zip(cpu.current_weights().arrays, other.current_weights().arrays, strict=True):
        difference = np.abs(ours - theirs)
        assert difference.max() < 3e-3
        assert np.mean(difference) < 1e-5
    evaluated = [engine.losses(np.arange(len(rows))) for engine in (cpu, other)]
    assert evaluated[0].cosine == pytest.approx(evaluated[1].cosine, abs=2e-5)
    assert cpu.current_moments().n_steps == other.current_moments().n_steps == 6


@pytest.mark.parametrize("engine_type", [CpuEngine, TorchEngine])
@pytest.mark.parametrize("rests_idle", [True, False])
def test_latents_that_a_batch_does_not_use_rest(engine_type, rests_idle):
    settings = replace(SETTINGS, k=1, n_active=2, batch_size=8, rests_idle=rests_idle)
    rows = make_embeddings(n_rows=200)
    weights = Weights(*kaiming_weights(rows.shape[1], 64, np.random.RandomState(1)))
    device = [torch.device("cpu")] if engine_type is TorchEngine else []
    engine = engine_type(rows, weights.copy(), Moments.zeros_like(weights), settings, *device)
    engine.step(np.arange(8), 1e-2)
    before, moments = engine.current_weights().copy(), [array.copy() for array in engine.current_moments().arrays]
    engine.step(np.arange(8, 16), 1e-2)
    after = engine.current_weights()
    activations = unit_rows(rows[8:16])[0] @ before.encoder.T + before.bias
    idle = np.setdiff1d(np.arange(64), np.argsort(-abs(activations), axis=1)[:, :2])
    moved = idle[abs(before.encoder[idle] - weights.encoder[idle]).max(axis=1) > 0]  # by the first batch
    assert len(moved) > 0
    assert len(idle) < 64
    for array, earlier in zip((after.encoder, after.bias), (before.encoder, before.bias), strict=True):
        assert np.array_equal(array[idle], earlier[idle]) == rests_idle
        assert not np.isclose(array, earlier, atol=1e-5).all()
    for array, earlier in zip(engine.current_moments().arrays, moments, strict=True):
        assert np.array_equal(array[:, moved], earlier[:, moved]) == rests_idle


def test_nested_training_visits_smaller_k_in_turn():
    settings = replace(SETTINGS, k=8, n_active=30, is_nested=True)
    steps = [settings.of_step(n_steps) for n_steps in range(16)]
    assert [step.k for step in steps] == 2 * [8, 4, 8, 2, 8, 4, 8, 1]
    assert [step.n_active for step in steps[:8]] == [30, 16, 30, 8, 30, 16, 30, 4]
    assert replace(settings, k=2).of_step(7).k == 1
    narrow = replace(settings, narrows_after=6)
    assert [narrow.of_step(n_steps).k for n_steps in range(16)] == [8, 4, 8, 2, 8, 4, *(5 * [8, 4])]
    assert SETTINGS.of_step(3) is SETTINGS
    rows = make_embeddings(n_rows=300)
    weights = Weights(*kaiming_weights(rows.shape[1], 32, np.random.RandomState(1)))
    engine, losses = run_engine(CpuEngine, rows, weights, 8, replace(settings, k=4, n_active=16))
    assert [loss.fired.sum() / settings.batch_size for loss in losses] == [4, 2, 4, 1, 4, 2, 4, 1]
    assert engine.losses(np.arange(300)).fired.sum() == 300 * 4


def test_torch_engine_does_not_write_to_the_arrays_it_is_given():
    rows = make_embeddings(n_rows=200)
    weights = Weights(*kaiming_weights(rows.shape[1], 32, np.random.RandomState(1)))
    before = weights.copy()
    engine = TorchEngine(rows, weights, Moments.zeros_like(weights), SETTINGS, torch.device("cpu"))
    engine.step(np.arange(50), 1e-2)
    for old, new in zip(before.arrays, weights.arrays, strict=True):
        np.testing.assert_array_equal(old, new)


def test_blocks_of_a_batch_sum_to_the_batch(device):
    rows = make_embeddings(n_rows=300)
    weights = Weights(*kaiming_weights(rows.shape[1], 32, np.random.RandomState(1)))
    results = []
    for block_rows in (300, 37):
        engine = TorchEngine(rows, weights, Moments.zeros_like(weights), SETTINGS, torch.device(device))
        engine._block_rows = block_rows
        losses = engine.step(np.arange(300), 1e-3)
        results.append((losses, engine.current_weights()))
    (whole, weights_whole), (parts, weights_parts) = results
    assert whole.cosine == pytest.approx(parts.cosine, abs=1e-6)
    np.testing.assert_array_equal(whole.fired, parts.fired)
    for a, b in zip(weights_whole.arrays, weights_parts.arrays, strict=True):
        assert np.mean(np.abs(a - b)) < 1e-5


@pytest.mark.parametrize("engine_type", [CpuEngine, TorchEngine])
def test_bfloat16_products_train_too(engine_type):
    rows = make_embeddings(n_rows=400)
    weights = Weights(*data_weights(unit_rows(rows)[0], 64, 0.5, np.random.RandomState(1)))
    settings = StepSettings(k=4, n_active=16, loss_weights=(1.0, 0.125), batch_size=128, precision="bfloat16")
    device = () if engine_type is CpuEngine else (torch.device("cpu"),)
    _, losses = run_engine(engine_type, rows, weights, 60, settings, *device)
    _, exact = run_engine(engine_type, rows, weights, 60, SETTINGS, *device)
    assert losses[-1].cosine > losses[0].cosine + 0.02
    assert losses[-1].cosine == pytest.approx(exact[-1].cosine, abs=0.01)


# Out of memory -------------------------------------------------------------------------------------------------------

small = {"n_components": 32, "k": 4, "max_iter": 6, "validation_fraction": 0.1, "random_state": 0, "device": "cpu"}


def fail_once(monkeypatch, error, at_step=1):
    """Let the engine's step fail once; return the list of batch sizes that reached it."""
    sizes = []
    original = CpuEngine.step

    def step(self, row_indices, learning_rate):
        sizes.append(len(row_indices))
        if len(sizes) == at_step:
            raise error
        return original(self, row_indices, learning_rate)

    monkeypatch.setattr(CpuEngine, "step", step)
    return sizes


@pytest.mark.parametrize(
    "error",
    [torch.cuda.OutOfMemoryError("CUDA out of memory."), RuntimeError("MPS backend out of memory (allocated: 9 GB)")],
)
@pytest.mark.parametrize("at_step", [1, 3])
def test_out_of_memory_halves_the_batch_and_training_completes(monkeypatch, error, at_step):
    sizes = fail_once(monkeypatch, error, at_step)
    estimator = CompresSAETransformer(batch_size=64, **small)
    with pytest.warns(DeviceMemoryWarning, match="batch_size is now 32"):
        estimator.fit(make_embeddings(n_rows=300))
    assert sizes == [64] * at_step + [32] * (7 - at_step)
    assert estimator.n_iter_ == 6
    assert np.isfinite(estimator.components_).all()


def test_out_of_memory_drops_kept_encoders_first(monkeypatch):
    sizes = fail_once(monkeypatch, torch.cuda.OutOfMemoryError("CUDA out of memory."), 2)
    dropped = []
    monkeypatch.setattr(_device_encoder, "drop_kept_encoders", lambda device: not dropped.append(device))
    CompresSAETransformer(batch_size=64, **small).fit(make_embeddings(n_rows=300))
    assert sizes == [64] * 7
    assert [device.type for device in dropped] == ["cpu"]


@pytest.mark.filterwarnings("ignore::skcompressae.exceptions.DeviceMemoryWarning")
def test_out_of_memory_at_a_batch_of_one_is_raised(monkeypatch):
    def step(self, row_indices, learning_rate):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(CpuEngine, "step", step)
    with pytest.raises(torch.cuda.OutOfMemoryError, match="CUDA out of memory"):
        CompresSAETransformer(batch_size=8, **small).fit(make_embeddings(n_rows=100))


def test_other_runtime_errors_are_not_taken_for_out_of_memory(monkeypatch):
    fail_once(monkeypatch, RuntimeError("CUDA error: device-side assert triggered"))
    with pytest.raises(RuntimeError, match="device-side assert"):
        CompresSAETransformer(batch_size=64, **small).fit(make_embeddings(n_rows=100))
    assert not is_out_of_memory(ValueError("out of memory"))
