"""`fit`: what its exit code says of the training, and what is left of it where the model cannot be saved."""

import errno
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
from cli_cases import refuses, refuses_usage

from skcompressae import CompresSAETransformer, _finish_methods
from skcompressae._checkpoint import CHECKPOINT_NAME
from skcompressae._cli._main import main
from skcompressae._torch._cpu_engine import CpuEngine
from skcompressae.exceptions import InterruptedFitWarning

FIT = ["fit", "x.npy", "new.safetensors", "--n-components", "32", "--k", "4", "--max-iter", "3", "--device", "cpu"]


@pytest.mark.parametrize(("when", "said"), [(1, "it counted how the latents"), (2, "it measured how the latents")])
def test_a_fit_that_was_interrupted_after_its_steps_is_told_by_the_exit_code(files, monkeypatch, capsys, when, said):
    measure, calls = _finish_methods.measure_usage, []

    def interrupted(*arguments, **options):
        calls.append(arguments)
        if len(calls) == when:
            raise KeyboardInterrupt
        return measure(*arguments, **options)

    monkeypatch.setattr(_finish_methods, "measure_usage", interrupted)
    assert main(FIT) == 130
    assert f"skcompressae: warning: fit was interrupted while {said}" in capsys.readouterr().err
    assert Path("new.safetensors").exists()


@pytest.mark.parametrize(
    ("category", "text", "code"), [(UserWarning, "fit was interrupted", 0), (InterruptedFitWarning, "stopped", 130)]
)
def test_the_category_of_a_warning_decides(files, monkeypatch, capsys, category, text, code):
    fit = CompresSAETransformer.fit

    def warned(self, X):
        warnings.warn(text, category, stacklevel=2)
        return fit(self, X)

    monkeypatch.setattr(CompresSAETransformer, "fit", warned)
    assert main(FIT) == code
    assert f"skcompressae: warning: {text}\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device"),
            1,
            "error: new.safetensors could not be written: No space left on device",
        ),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_a_model_that_could_not_be_saved_is_not_trained_again(files, monkeypatch, capsys, error, code, said):
    command = [*FIT, "--random-state", "0", "-q"]
    assert main(command) == 0
    expected = CompresSAETransformer.load("new.safetensors")
    Path("new.safetensors").unlink()

    def fail(*_):
        raise error

    command += ["--checkpoint-dir", "training", "--param", "checkpoint_interval=2"]
    with monkeypatch.context() as patch:
        patch.setattr(CompresSAETransformer, "save", fail)
        assert main(command) == code
    how = "; the same command goes on from the last checkpoint, if there is one"
    assert capsys.readouterr().err.endswith(f"skcompressae: {said}{how}\n")
    assert os.listdir("training") == [CHECKPOINT_NAME]
    monkeypatch.setattr(CpuEngine, "step", lambda *_: pytest.fail("a step was taken twice"))
    assert main(command) == 0
    found = CompresSAETransformer.load("new.safetensors")
    np.testing.assert_array_equal(found.components_, expected.components_)
    np.testing.assert_array_equal(found.latent_counts_, expected.latent_counts_)
    assert os.listdir("training") == []


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("learning_rate", ".01", 0.01),
        ("learning_rate", "1e-2", 0.01),
        ("learning_rate", "1.", 1.0),
        ("learning_rate", "auto", "auto"),
        ("early_stopping", "True", True),
        ("early_stopping", "false", False),
        ("norm", "None", None),
        ("norm", "null", None),
        ("norm", "none", None),
        ("norm", "'unit'", "unit"),
        ("loss_weights", "(1, .5)", (1, 0.5)),
        ("loss_weights", "[1, 0.5]", (1, 0.5)),
        ("init", "data", "data"),
    ],
)
def test_values_are_written_as_in_json_or_python_or_as_words(files, monkeypatch, name, text, value):
    made = []

    def fit(self, X):
        made.append(self.get_params()[name])
        raise KeyboardInterrupt

    monkeypatch.setattr(CompresSAETransformer, "fit", fit)
    assert main([*FIT, "--param", f"{name}={text}"]) == 130
    assert made == [value]
    assert type(made[0]) is type(value)


@pytest.mark.parametrize("text", ["cuda:x", "1 +", "a b", "{", "..", 10_000 * "(", 10_000 * "[", "'unended", ""])
def test_what_is_neither_is_a_word(files, capsys, text):
    assert "'init' parameter" in refuses_usage(capsys, *FIT, "--param", f"init={text}")


def test_more_residual_bytes_than_features_are_an_error_of_the_arguments(files, capsys):
    message = refuses_usage(capsys, *FIT, "--param", "residual_bytes=9999")
    assert message == "residual_bytes must be an int of at most the 24 features of X; got 9999."


def test_more_components_than_indices_or_memory_can_hold(files, capsys):
    np.save("wide.npy", np.ones((3, 20_000), dtype=np.float32))
    command = ["fit", "wide.npy", "new.safetensors", "--n-components"]
    message = refuses_usage(capsys, *command, "99999999999")
    assert "'n_components' parameter of CompresSAETransformer must be an int in the range [1, 2147483647]" in message
    message = refuses(capsys, *command, str(2**31 - 1))
    assert message == (
        "not enough memory: n_components=2147483647 latents of 20000 features take 960000 GiB in training, which "
        "cannot be had; lower n_components."
    )


@pytest.mark.skipif(os.name != "posix", reason="a file that is mapped cannot be deleted")
def test_a_process_that_is_killed_in_training_leaves_no_copy_of_the_rows(files, monkeypatch):
    fit, found = CompresSAETransformer.fit, []

    def fit_and_look(self, X):
        found.append((X.copy(), [path for folder in Path().glob(".fit-*") for path in folder.iterdir()]))
        return fit(self, X)

    monkeypatch.setattr(CompresSAETransformer, "fit", fit_and_look)
    assert main(["fit", "x.parquet", *FIT[2:]]) == 0
    ((rows, left),) = found
    np.testing.assert_array_equal(rows, np.load("x.npy"))
    assert left == []
