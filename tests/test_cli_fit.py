"""`fit`: what its exit code says of the training, and what is left of it where the model cannot be saved."""

import errno
import os
import warnings
from pathlib import Path

import numpy as np
import pytest

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
