"""`fit`: what its exit code says of the training."""

import warnings
from pathlib import Path

import pytest

from skcompressae import CompresSAETransformer, _fit_methods
from skcompressae._cli._main import main
from skcompressae.exceptions import InterruptedFitWarning

FIT = ["fit", "x.npy", "new.safetensors", "--n-components", "32", "--k", "4", "--max-iter", "3", "--device", "cpu"]


@pytest.mark.parametrize(("when", "said"), [(1, "it counted how the latents"), (2, "it measured how the latents")])
def test_a_fit_that_was_interrupted_after_its_steps_is_told_by_the_exit_code(files, monkeypatch, capsys, when, said):
    measure, calls = _fit_methods.measure_usage, []

    def interrupted(*arguments, **options):
        calls.append(arguments)
        if len(calls) == when:
            raise KeyboardInterrupt
        return measure(*arguments, **options)

    monkeypatch.setattr(_fit_methods, "measure_usage", interrupted)
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
