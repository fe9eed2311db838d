"""Warnings point to the line that called, whatever of scikit-learn and joblib stands in between."""

import inspect
import threading
import warnings
from copy import copy

import numpy as np
import pytest
import torch
from conftest import make_embeddings
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skcompressae import CompresSAETransformer, _finish_methods
from skcompressae._core._callers import caller_level
from skcompressae._torch import _graph_recorder, _training
from skcompressae._torch._cpu_engine import CpuEngine
from skcompressae._torch._graph_recorder import GraphRecorder
from skcompressae._torch._torch_engine import TorchEngine
from skcompressae.exceptions import DeadLatentsWarning, DeviceMemoryWarning, InterruptedFitWarning
from skcompressae.metrics import RetrievalRecallScorer

ROWS = make_embeddings(n_rows=120, n_features=12)
ZEROS = np.zeros((120, 12), dtype=np.float32)


def small(**parameters):
    return CompresSAETransformer(**{"n_components": 16, "k": 3, "max_iter": 3, "random_state": 0, **parameters})


def caught_from(call, *arguments):
    """Return the warnings of a call by their categories, and the line of the call."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        line = inspect.currentframe().f_lineno + 1
        call(*arguments)
    assert caught
    for warning in caught:
        assert (warning.filename, warning.lineno) == (__file__, line), warning
    return {warning.category for warning in caught}


METHODS = ["fit", "fit_transform", "partial_fit"]


@pytest.mark.parametrize("method", METHODS)
def test_more_nonzeros_than_latents(method):
    assert caught_from(getattr(small(k=20), method), ROWS) == {UserWarning}


@pytest.mark.parametrize("method", METHODS)
def test_rows_that_are_all_zero(method):
    assert caught_from(getattr(small(), method), ZEROS) == {UserWarning, DeadLatentsWarning}


@pytest.mark.parametrize("method", ["fit", "fit_transform"])
def test_rows_without_residual_codes(method):
    model = small(residual_bytes=4, norm="input")
    assert UserWarning in caught_from(getattr(model, method), ROWS.astype(np.float64) * 1e60)


@pytest.mark.parametrize(
    ("method", "owner", "name", "at"),
    [
        *((method, CpuEngine, "step", 1) for method in METHODS),
        ("partial_fit", _finish_methods, "measure_usage", 1),
        ("fit", _finish_methods, "measure_usage", 1),
        ("fit_transform", _finish_methods, "measure_usage", 2),
        ("fit", _finish_methods, "refit_components", 1),
        ("fit", _finish_methods, "learned_quantizer", 1),
    ],
)
def test_interrupts(monkeypatch, method, owner, name, at):
    work, calls = getattr(owner, name), []

    def interrupted(*arguments, **options):
        calls.append(arguments)
        if len(calls) == at:
            raise KeyboardInterrupt
        return work(*arguments, **options)

    monkeypatch.setattr(owner, name, interrupted)
    model = small(n_refits=1, residual_bytes=None if method == "partial_fit" else 4)
    assert InterruptedFitWarning in caught_from(getattr(model, method), ROWS)


@pytest.mark.parametrize("method", METHODS)
def test_device_memory(monkeypatch, method):
    step = TorchEngine.step

    def limited(self, rows, rate):
        if len(rows) > 40:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return step(self, rows, rate)

    monkeypatch.setattr(_training, "_make_engine", TorchEngine)
    monkeypatch.setattr(TorchEngine, "step", limited)
    assert DeviceMemoryWarning in caught_from(getattr(small(batch_size=50), method), ROWS)


def test_graphs(monkeypatch):
    def refused(*_):
        raise RuntimeError("none here")

    monkeypatch.setattr(_graph_recorder, "_abandoned", [])
    monkeypatch.setattr(GraphRecorder, "_record", refused)
    assert caught_from(GraphRecorder(torch.device("cpu")).record, refused) == {RuntimeWarning}


@pytest.mark.parametrize("method", ["transform", "transform_packed", "score"])
def test_encoding(method):
    model = small(n_components=48).fit(ROWS).set_params(k=50)
    assert caught_from(getattr(model, method), ROWS) == {UserWarning}


def test_scorer(fitted, embeddings):
    scorer = RetrievalRecallScorer(metric="dot")
    assert caught_from(scorer, copy(fitted).set_params(norm="unit"), embeddings) == {UserWarning}


def test_meta_estimators():
    assert caught_from(make_pipeline(StandardScaler(), small(k=20)).fit, ROWS) == {UserWarning}
    assert caught_from(make_pipeline(StandardScaler(), small(k=20)).fit_transform, ROWS) == {UserWarning}
    search = GridSearchCV(small(k=20), {"max_iter": [2, 3]}, cv=2)
    assert UserWarning in caught_from(search.fit, ROWS)


def test_levels_of_frames_inside_and_outside():
    found = []
    code = compile("found.append(caller_level())", "<outside>", "exec")
    exec(code, {"__name__": "other", "found": found, "caller_level": caller_level})
    exec(code, {"__name__": "sklearn.inside", "found": found, "caller_level": caller_level})
    assert found == [1, 2]
    thread = threading.Thread(target=lambda: found.append(caller_level()))
    thread.start()
    thread.join()
    assert found[2] == 1
