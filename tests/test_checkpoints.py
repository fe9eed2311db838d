"""Checkpoints of fit: what is cut off goes on to the very same model, and no fit goes on from another one's."""

import dataclasses
import errno
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from skcompressae import CompresSAETransformer, _fit_methods, load_model
from skcompressae._checkpoint import _KIND, _VERSION, CHECKPOINT_NAME, FitCheckpoint
from skcompressae._files import atomic_write
from skcompressae._model_format import read_model_file, write_model_file
from skcompressae._recipes import RECIPES, Recipe
from skcompressae._torch import _training
from skcompressae.exceptions import ModelFormatError

# Some fits here are cut short, or stop early; how well they use their latents is not the question.
pytestmark = pytest.mark.filterwarnings("ignore::skcompressae.exceptions.DeadLatentsWarning")


class Killed(BaseException):
    """Stands for the end of the process."""


def small(**parameters):
    defaults = {"n_components": 24, "k": 3, "max_iter": 60, "batch_size": 64, "random_state": 0, "device": "cpu"}
    return CompresSAETransformer(**{**defaults, **parameters})


def cut_off(model, X, monkeypatch, n_saves):
    """Fit until the checkpoint was written `n_saves` times."""
    save = FitCheckpoint.save

    def save_and_die(self, state, *rest):
        save(self, state, *rest)
        nonlocal n_saves
        n_saves -= 1
        if n_saves == 0:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(FitCheckpoint, "save", save_and_die)
        with pytest.raises(Killed):
            model.fit(X)


def assert_same_fit(one, other):
    for name in ("encoder_weights_", "encoder_bias_", "components_", "latent_counts_", "latent_rms_"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
    for name in ("loss_curve_", "validation_loss_curve_", "validation_steps_", "n_iter_", "k_", "has_mean_latent_"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)


@pytest.mark.parametrize(
    ("parameters", "n_saves"),
    [
        ({}, [1, 7, 3]),
        ({"checkpoint_interval": 1}, [29, 1]),
        ({"checkpoint_interval": 7, "norm": None}, [2, 2]),
        ({"recipe": "paper", "batch_size": "auto"}, [5]),
        ({"validation_fraction": 0}, [20]),
        ({"precision": "bfloat16", "coding": "pursuit"}, [11]),
        ({"nested": True, "k": 8, "checkpoint_interval": 1}, [18]),
    ],
)
def test_resumed_fits_end_in_the_same_bits(embeddings, tmp_path, monkeypatch, parameters, n_saves):
    expected = small(**parameters).fit(embeddings)
    for number in n_saves:
        cut_off(small(**parameters, checkpoint_dir=tmp_path), embeddings, monkeypatch, number)
        assert os.listdir(tmp_path) == [CHECKPOINT_NAME]
    resumed = small(**parameters, checkpoint_dir=tmp_path).fit(embeddings)
    assert_same_fit(resumed, expected)
    assert os.listdir(tmp_path) == []


def test_early_stopping_goes_on_counting(embeddings, tmp_path, monkeypatch):
    parameters = {"early_stopping": True, "learning_rate": 0.3, "max_iter": 100, "n_iter_no_change": 6}
    expected = small(**parameters).fit(embeddings)
    best = int(np.argmin(expected.validation_loss_curve_))
    assert expected.n_iter_ < 100, "this should stop early"
    # in the middle of the steps without gain: the best weights are older than the checkpoint
    cut_off(small(**parameters, checkpoint_dir=tmp_path), embeddings, monkeypatch, best + 4)
    assert_same_fit(small(**parameters, checkpoint_dir=tmp_path).fit(embeddings), expected)


def test_memory_mapped_rows(embeddings, tmp_path, monkeypatch):
    np.save(tmp_path / "rows.npy", embeddings)
    rows = np.load(tmp_path / "rows.npy", mmap_mode="r")
    assert_same_fit(small().fit(rows), small().fit(embeddings))  # as small files are drawn from as if in memory
    monkeypatch.setattr(_training, "_MIN_RUN_BYTES", embeddings.nbytes)
    expected = small().fit(rows)
    assert not np.array_equal(expected.components_, small().fit(embeddings).components_)
    cut_off(small(checkpoint_dir=tmp_path / "a" / "b"), rows, monkeypatch, 9)
    with pytest.raises(ValueError, match=r"X of shape \(400, 24\), float32 memory-mapped, there, .* float32, here"):
        small(checkpoint_dir=tmp_path / "a" / "b").fit(embeddings)
    assert_same_fit(small(checkpoint_dir=tmp_path / "a" / "b").fit(rows), expected)


def test_random_states_are_set_back(embeddings, tmp_path, monkeypatch):
    expected = small(random_state=np.random.RandomState(3)).fit(embeddings)
    cut_off(small(random_state=np.random.RandomState(3), checkpoint_dir=tmp_path), embeddings, monkeypatch, 5)
    random_state = np.random.RandomState(4)
    assert_same_fit(small(random_state=random_state, checkpoint_dir=tmp_path).fit(embeddings), expected)
    after = np.random.RandomState(3)
    small(random_state=after).fit(embeddings)
    assert random_state.uniform() == after.uniform()


def test_fits_without_a_seed_go_on_too(embeddings, tmp_path, monkeypatch):
    np.random.seed(5)  # noqa: NPY002
    expected = small(random_state=None).fit(embeddings)
    np.random.seed(5)  # noqa: NPY002
    cut_off(small(random_state=None, checkpoint_dir=tmp_path), embeddings, monkeypatch, 5)
    np.random.seed(6)  # noqa: NPY002
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    assert_same_fit(small(random_state=None, checkpoint_dir=tmp_path).fit(embeddings), expected)
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002


def test_warm_starts(embeddings, tmp_path, monkeypatch):
    def first(seed=0, **parameters):
        return small(random_state=seed, max_iter=10).fit(embeddings).set_params(warm_start=True, **parameters)

    expected = first(max_iter=30).fit(embeddings)
    cut_off(first(max_iter=30, checkpoint_dir=tmp_path), embeddings, monkeypatch, 15)
    other = first(seed=1, max_iter=30, checkpoint_dir=tmp_path).set_params(random_state=0)
    with pytest.raises(ValueError, match=r"another fit, .*: training starts from other weights"):
        other.fit(embeddings)
    assert_same_fit(first(max_iter=30, checkpoint_dir=tmp_path).fit(embeddings), expected)


@pytest.mark.parametrize("is_continued", [False, True])
def test_an_interrupted_fit_keeps_its_checkpoint(embeddings, tmp_path, monkeypatch, is_continued):
    """With warm_start too: the weights that the interrupt left belong to the fit that goes on."""

    def model(**parameters):
        if not is_continued:
            return small(warm_start=True, **parameters)
        return small(warm_start=True, max_iter=10).fit(embeddings).set_params(max_iter=60, **parameters)

    expected = model().fit(embeddings)
    save = FitCheckpoint.save

    def save_and_interrupt(self, state, *rest):
        save(self, state, *rest)
        if state.n_steps == 20:
            raise KeyboardInterrupt

    interrupted = model(checkpoint_dir=tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(FitCheckpoint, "save", save_and_interrupt)
        with pytest.warns(UserWarning, match="fit was interrupted after 20 step"):
            interrupted.fit(embeddings)
    assert interrupted.n_iter_ == 20
    assert_same_fit(interrupted.fit(embeddings), expected)


def test_progress_goes_on(embeddings, tmp_path, monkeypatch, capsys):
    cut_off(small(checkpoint_dir=tmp_path), embeddings, monkeypatch, 40)
    small(checkpoint_dir=tmp_path, verbose=1).fit(embeddings)
    shown = capsys.readouterr().err
    assert "40/60" in shown
    assert "60/60" in shown


# Checkpoints of other fits ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameters", "change", "message"),
    [
        ({"k": 4}, None, "k=3 there, 4 here"),
        ({"max_iter": 61}, None, "max_iter=60 there, 61 here"),
        ({"random_state": 1, "loss_weights": (1, 1)}, None, r"loss_weights=\[1.0, 0.125\] there, .*; random_state=0"),
        ({"n_components": 25}, None, "n_components=24 there, 25 here"),
        ({"recipe": "paper"}, None, "recipe='default' there"),
        # the recipe's own values, which "auto" is below for so few rows
        ({"learning_rate": RECIPES["default"].learning_rate}, None, r"learning_rate=0\.00\d+ there, 0\.006 here"),
        ({"batch_size": RECIPES["default"].batch_size}, None, "batch_size=64 there, 380 here"),
        ({}, lambda X: X[:-1], r"X of shape \(400, 24\), float32, there, of shape \(399, 24\), float32, here"),
        ({}, lambda X: X[:, :-1], r"of shape \(400, 23\)"),
        ({}, lambda X: X.astype(np.float64), "float64, here"),
        ({}, lambda X: np.vstack([X[:-1], 2 * X[-1:]]), "X has other values"),
    ],
)
def test_other_fits_are_refused(embeddings, tmp_path, monkeypatch, parameters, change, message):
    cut_off(small(checkpoint_dir=tmp_path), embeddings, monkeypatch, 1)
    rows = embeddings if change is None else change(embeddings)
    with pytest.raises(ValueError, match=f"checkpoint_dir holds the checkpoint of another fit, .*{message}"):
        small(**parameters, checkpoint_dir=tmp_path).fit(rows)
    assert os.listdir(tmp_path) == [CHECKPOINT_NAME]


def test_a_version_that_trains_otherwise_does_not_go_on(embeddings, tmp_path, monkeypatch):
    parameters = {"learning_rate": 0.001, "early_stopping": True, "checkpoint_dir": tmp_path}  # all that a recipe sets
    earlier = dataclasses.replace(RECIPES["default"], beta2=0.999, rests_idle=False)
    with monkeypatch.context() as patch:
        patch.setitem(RECIPES, "default", earlier)
        cut_off(small(**parameters), embeddings, monkeypatch, 1)
    with pytest.raises(ValueError, match=r"another fit, .*: beta2=0.999 there, 0.99 here; rests_idle=False there"):
        small(**parameters).fit(embeddings)


def test_a_version_that_weighs_the_neighborhood_term_otherwise_does_not_go_on(embeddings, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Recipe, "neighborhood_weight_for", lambda self, k: self.neighborhood_weight_at_32)
        cut_off(small(checkpoint_dir=tmp_path), embeddings, monkeypatch, 1)
    with pytest.raises(ValueError, match=r"another fit, .*: neighborhood_weight=1.0 there, 3.26"):
        small(checkpoint_dir=tmp_path).fit(embeddings)


def test_what_does_not_change_training_may_change(embeddings, tmp_path, monkeypatch):
    cut_off(small(checkpoint_dir=tmp_path), embeddings, monkeypatch, 1)
    others = {"verbose": 1, "sparse_output": False, "norm": "unit", "coding": "pursuit", "checkpoint_interval": 3}
    others["usage_power"] = 0.3
    resumed = small(**others, checkpoint_dir=str(tmp_path)).fit(embeddings)
    np.testing.assert_array_equal(resumed.components_, small().fit(embeddings).components_)
    np.testing.assert_array_equal(resumed.encoder_weights_, small(usage_power=0.3).fit(embeddings).encoder_weights_)


def test_damaged_and_foreign_checkpoints(embeddings, tmp_path, monkeypatch):
    cut_off(small(checkpoint_dir=tmp_path), embeddings, monkeypatch, 2)
    path = tmp_path / CHECKPOINT_NAME
    data = path.read_bytes()
    for size in (0, 5, 900, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:size])
        with pytest.raises(ModelFormatError, match=r"truncated|damaged"):
            small(checkpoint_dir=tmp_path).fit(embeddings)
    small().fit(embeddings).save(path)
    with pytest.raises(ModelFormatError, match="its header says it is a 'skcompressae model'"):
        small(checkpoint_dir=tmp_path).fit(embeddings)
    path.write_bytes(data)
    with pytest.raises(ModelFormatError, match="its header says it is a 'skcompressae fit checkpoint'"):
        load_model(path)


@pytest.mark.parametrize("best_loss", ["x", [1.0], True])
def test_a_checkpoint_without_a_number_for_the_best_loss_is_damaged(embeddings, tmp_path, monkeypatch, best_loss):
    cut_off(small(checkpoint_dir=tmp_path), embeddings, monkeypatch, 1)
    path = tmp_path / CHECKPOINT_NAME
    header, arrays = read_model_file(path, _KIND, _VERSION)
    kind, version = header.pop("format"), header.pop("format_version")
    write_model_file(path, kind, version, {**header, "best_loss": best_loss}, arrays)
    with pytest.raises(ModelFormatError, match=r"is damaged: its header has a best loss of"):
        small(checkpoint_dir=tmp_path).fit(embeddings)


@pytest.mark.parametrize("below", ["", "deeper"])
def test_a_file_in_the_place_of_the_folder_is_refused(embeddings, tmp_path, below):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(NotADirectoryError, match=r"^checkpoint_dir must be a folder, .*file"):
        small(checkpoint_dir=tmp_path / "file" / below).fit(embeddings)


@pytest.mark.parametrize("refused", ["mkdir", "TemporaryFile"])
def test_a_folder_that_cannot_be_written_to_is_refused_before_training(embeddings, tmp_path, monkeypatch, refused):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", "some file")

    monkeypatch.setattr(Path if refused == "mkdir" else tempfile, refused, refuse)
    monkeypatch.setattr(_fit_methods, "train", lambda *_, **__: pytest.fail("training was begun"))
    with pytest.raises(PermissionError) as caught:
        small(checkpoint_dir=tmp_path).fit(embeddings)
    assert caught.value.strerror == ("checkpoint_dir must be a folder in which files can be made (Permission denied)")
    assert caught.value.filename == str(tmp_path)


def test_partial_fit_writes_none(embeddings, tmp_path):
    small(checkpoint_dir=tmp_path).partial_fit(embeddings)
    assert os.listdir(tmp_path) == []


# Processes that are killed ------------------------------------------------------------------------------------------


STUCK = """
import itertools, os, sys, time
from conftest import make_embeddings
from skcompressae import CompresSAETransformer, load_model

folder, n_calls, fsync = sys.argv[1], itertools.count(), os.fsync

def stuck(descriptor):
    # called twice a file: for its bytes, which are under a temporary name then, and for its folder
    if next(n_calls) == 10:
        print("stuck", flush=True)
        time.sleep(600)
    fsync(descriptor)

os.fsync = stuck
"""


def killed(code, folder):
    """Run code in a process of its own and kill it, with no chance to clean up, in the middle of its sixth write."""
    process = subprocess.Popen(
        [sys.executable, "-c", STUCK + code, str(folder)], cwd=Path(__file__).parent, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "stuck\n"
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL


FIT = """
CompresSAETransformer(
    n_components=24, k=3, max_iter=60, batch_size=64, random_state=0, device="cpu", checkpoint_dir=folder,
    checkpoint_interval=2,
).fit(make_embeddings())
"""


@pytest.mark.skipif(os.name != "posix", reason="kills with SIGKILL")
def test_a_killed_fit_goes_on(embeddings, tmp_path, monkeypatch):
    killed(FIT, tmp_path)
    left = os.listdir(tmp_path)
    assert len(left) == 2, "a checkpoint and a temporary file"
    loaded = []
    load = FitCheckpoint.load
    with monkeypatch.context() as patch:
        patch.setattr(FitCheckpoint, "load", lambda self: loaded.append(load(self)) or loaded[0])
        resumed = small(checkpoint_dir=tmp_path).fit(embeddings)
    assert loaded[0].state.n_steps == 10
    assert_same_fit(resumed, small().fit(embeddings))
    assert os.listdir(tmp_path) == []


SAVE = """
model = load_model(folder + "/model")
while True:
    model.set_params(k=1 + model.k % 3).save(folder + "/model")
"""


@pytest.mark.skipif(os.name != "posix", reason="kills with SIGKILL")
def test_a_killed_save_leaves_a_whole_file(embeddings, tmp_path):
    model = small().fit(embeddings)
    model.save(tmp_path / "model")
    killed(SAVE, tmp_path)
    assert load_model(tmp_path / "model").k == 2, "5 writes later"
    (left,) = set(os.listdir(tmp_path)) - {"model"}
    assert left.startswith(".model.")
    assert left.endswith(".tmp")


def test_files_follow_the_umask_and_long_names_fit(tmp_path):
    name = "n" * 250
    before = os.umask(0o027)
    try:
        with atomic_write(tmp_path / name) as stream:
            stream.write(b"x")
    finally:
        os.umask(before)
    if os.name == "posix":
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o640
    assert os.listdir(tmp_path) == [name]


def test_errors_name_the_file_that_was_to_be_written(tmp_path):
    target = tmp_path / "nowhere" / "name"
    with pytest.raises(FileNotFoundError, match=r"nowhere.+name'$") as caught, atomic_write(target):
        pass
    assert (caught.value.filename, caught.value.filename2) == (str(target), None)
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match=r"folder'$") as caught, atomic_write(tmp_path / "folder") as stream:
        stream.write(b"x")
    assert (caught.value.filename, caught.value.filename2) == (str(tmp_path / "folder"), None)
    assert os.listdir(tmp_path) == ["folder"]
