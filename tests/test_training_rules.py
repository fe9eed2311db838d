"""What decides a training: rates, starting latents, what an interrupt keeps, and what a checkpoint compares."""

import dataclasses

import numpy as np
import pytest
import torch
from test_checkpoints import assert_same_fit, cut_off
from test_checkpoints import small as with_checkpoint
from test_transformer_training import record_steps, small

from skcompressae import CompresSAETransformer, _fit_methods
from skcompressae._checkpoint import rows_digest
from skcompressae._fitting import initial_weights, split_rows
from skcompressae._recipes import RECIPES
from skcompressae._torch._cpu_engine import CpuEngine
from skcompressae._torch._training import Schedule, train
from skcompressae._torch._weights import StepLosses

ignores_dead = pytest.mark.filterwarnings("ignore::skcompressae.exceptions.DeadLatentsWarning")


def test_a_given_learning_rate_is_that_of_blocks_too(embeddings, monkeypatch):
    steps = record_steps(monkeypatch)
    small(batch_size=100, learning_rate=0.02).partial_fit(embeddings)
    assert [rate for _, rate in steps] == pytest.approx([0.02] * 4)


def test_fit_forgets_the_moments_of_blocks(embeddings):
    model = small().partial_fit(embeddings).fit(embeddings)
    assert model._moments is None
    expected = small().fit(embeddings).partial_fit(embeddings)
    np.testing.assert_array_equal(model.partial_fit(embeddings).components_, expected.components_)


OTHERS = {
    "n_components": 25,
    "k": 4,
    "recipe": "paper",
    "loss_weights": (1.0, 1.0),
    "neighborhood_weight": 0.5,
    "nested": True,
    "init": "kaiming",
    "learning_rate": 0.001,
    "learning_rate_schedule": "linear",
    "warmup_fraction": 0.3,
    "batch_size": 32,
    "max_iter": 61,
    "early_stopping": True,
    "validation_fraction": 0.2,
    "n_iter_no_change": 3,
    "precision": "bfloat16",
    "random_state": 1,
}


NO_MATTER = {
    "coding",
    "candidate_factor",
    "norm",
    "flattening",
    "usage_power",
    "n_refits",
    "residual_bytes",
    "sparse_output",
    "device",
    "warm_start",
    "verbose",
    "checkpoint_dir",
    "checkpoint_interval",
}


def test_every_parameter_decides_or_does_not():
    assert set(OTHERS) | NO_MATTER == set(CompresSAETransformer().get_params())


@ignores_dead
@pytest.mark.parametrize("name", OTHERS)
def test_whatever_decides_training_must_be_the_same(embeddings, tmp_path, monkeypatch, name):
    cut_off(with_checkpoint(checkpoint_dir=tmp_path), embeddings, monkeypatch, 1)
    with pytest.raises(ValueError, match=f"another fit, .*{name}="):
        with_checkpoint(**{name: OTHERS[name]}, checkpoint_dir=tmp_path).fit(embeddings)


@ignores_dead
def test_a_fit_on_another_kind_of_device_does_not_go_on(embeddings, tmp_path, monkeypatch):
    cut_off(with_checkpoint(checkpoint_dir=tmp_path), embeddings, monkeypatch, 1)
    monkeypatch.setattr("skcompressae._fit_methods.resolve_device", lambda device: torch.device("cuda"))
    with pytest.raises(ValueError, match=r"another fit, .*device='cpu' there, 'cuda' here"):
        with_checkpoint(checkpoint_dir=tmp_path).fit(embeddings)


def test_digests_are_of_all_rows():
    rows = np.zeros((9000, 2), np.float32)
    other = rows.copy()
    other[8999, 1] = 1
    assert rows_digest(rows) != rows_digest(other)


def test_small_blocks_do_not_warn_of_dead_latents(embeddings):
    assert small(n_components=2048).partial_fit(embeddings[:100]).dead_latents_fraction_ > 0.5  # warnings are errors


def test_an_interrupt_keeps_the_last_weights_not_the_best(embeddings, monkeypatch):
    weights = []
    step = CpuEngine.step

    def recorded(self, rows, rate):
        if len(weights) == 5:
            raise KeyboardInterrupt
        losses = step(self, rows, rate)
        weights.append(self.current_weights().copy())
        return losses

    def losses(self, row_indices):
        return StepLosses(*[[0.5, 0.9, 0.6, 0.6, 0.6][len(weights) - 1]] * 2, fired=np.zeros(32, dtype=np.int64))

    monkeypatch.setattr(CpuEngine, "step", recorded)
    monkeypatch.setattr(CpuEngine, "losses", losses)
    with pytest.warns(UserWarning, match="interrupted after 5 step"):
        model = small(early_stopping=True, n_iter_no_change=9, max_iter=9, usage_power=0).fit(embeddings)
    np.testing.assert_array_equal(model.components_, weights[4].decoder)


def test_learning_rates_of_the_schedules():
    cosine, linear, constant = (Schedule(2.0, kind, 0.0, 99) for kind in ("cosine", "linear", "constant"))
    assert [cosine(25), cosine(50), cosine(75)] == pytest.approx([1 + 0.5**0.5, 1.0, 1 - 0.5**0.5], abs=0.03)
    assert 0 < cosine(99) < 1e-3
    assert [linear(50), linear(99)] == pytest.approx([1.0, 0.02])
    assert constant(99) == 2.0


def test_zero_rows_seed_no_latent(embeddings):
    with_zeros = np.vstack([np.zeros((300, 24), np.float32), embeddings])
    expected, _ = initial_weights(embeddings, 32, "data", np.random.RandomState(0))
    found, _ = initial_weights(with_zeros, 32, "data", np.random.RandomState(0))
    for one, other in zip(found.arrays, expected.arrays, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.filterwarnings("ignore::skcompressae.exceptions.DeadLatentsWarning")
@pytest.mark.filterwarnings("ignore::skcompressae.exceptions.DeviceMemoryWarning")
def test_a_fit_whose_batches_were_halved_goes_on_with_halves(embeddings, tmp_path, monkeypatch):
    step = CpuEngine.step

    def limited(self, rows, rate):
        if len(rows) > 40:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return step(self, rows, rate)

    with monkeypatch.context() as patch:
        patch.setattr(CpuEngine, "step", limited)
        expected = with_checkpoint().fit(embeddings)
        cut_off(with_checkpoint(checkpoint_dir=tmp_path), embeddings, patch, 5)
    resumed = with_checkpoint(checkpoint_dir=tmp_path).fit(embeddings)  # where there is memory enough, all the same
    assert_same_fit(resumed, expected)


def test_few_rows_of_many_are_held_out():
    training, validation = split_rows(200_000, 0.1, np.random.RandomState(0))
    assert (len(training), len(validation)) == (200_000 - 4096, 4096)


@pytest.mark.filterwarnings("ignore::skcompressae.exceptions.DeadLatentsWarning")
@pytest.mark.parametrize("name", ["beta2", "rests_idle", "full_rate_uses", "min_batches_per_epoch"])
def test_rules_of_the_recipe_are_part_of_a_fit(embeddings, tmp_path, monkeypatch, name):
    parameters = {"learning_rate": 0.001, "early_stopping": True, "checkpoint_dir": tmp_path}
    recipe = RECIPES["default"]
    value = not recipe.rests_idle if name == "rests_idle" else getattr(recipe, name) * 0.9
    with monkeypatch.context() as patch:
        patch.setitem(RECIPES, "default", dataclasses.replace(recipe, **{name: value}))
        cut_off(with_checkpoint(**parameters), embeddings, monkeypatch, 1)
    with pytest.raises(ValueError, match=f"another fit, .*{name}="):
        with_checkpoint(**parameters).fit(embeddings)


@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_an_interrupt_before_the_first_step_changes_nothing(embeddings, monkeypatch, method):
    fitted = with_checkpoint().fit(embeddings)
    expected = fitted.transform(embeddings)

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(_fit_methods, "resolve_device", interrupt)
    with pytest.raises(KeyboardInterrupt):
        getattr(fitted, method)(embeddings if method == "partial_fit" else embeddings[:, :8])
    monkeypatch.undo()
    assert fitted.n_features_in_ == 24
    assert (fitted.transform(embeddings) != expected).nnz == 0
    never = with_checkpoint()
    monkeypatch.setattr(_fit_methods, "resolve_device", interrupt)
    with pytest.raises(KeyboardInterrupt):
        getattr(never, method)(embeddings)
    assert vars(never) == vars(with_checkpoint())


def test_the_last_step_is_looked_at(embeddings):
    fitted = with_checkpoint(max_iter=101, early_stopping=False).fit(embeddings)
    np.testing.assert_array_equal(fitted.validation_steps_, [*range(2, 101, 2), 101])


def test_files_of_others_in_the_folder_of_checkpoints_stay(embeddings, tmp_path):
    names = {"thesis.tmp", ".thesis.1.tmp", ".fit.checkpoint.backup", "fit.checkpoint.old.tmp"}
    for name in names:
        (tmp_path / name).write_text("mine")
    (tmp_path / ".fit.checkpoint.0123.tmp").write_text("left behind")
    with_checkpoint(checkpoint_dir=tmp_path).fit(embeddings)
    assert {path.name for path in tmp_path.iterdir()} == names


@ignores_dead
def test_a_nested_fit_ends_with_its_two_largest_k(embeddings, monkeypatch):
    narrows_after = []

    def record(*given, **rest):
        narrows_after.append(given[4].narrows_after)
        return train(*given, **rest)

    monkeypatch.setattr(_fit_methods, "train", record)
    model = small(nested=True, max_iter=20).fit(embeddings)
    small(max_iter=20).fit(embeddings)
    model.partial_fit(embeddings)
    assert narrows_after == [17, None, None]
    steps = [CompresSAETransformer(nested=nested)._n_planned_steps() for nested in (False, True)]
    assert steps == [2000, 2500]
    assert CompresSAETransformer(nested=True, max_iter=9)._n_planned_steps() == 9
