"""Checkpoints of the paper's reference implementation, in and out."""

import copy
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from cli_cases import refuses
from sklearn.base import clone

from skcompressae import CompresSAETransformer, LatentUsageDisplay, load_model
from skcompressae.exceptions import ModelFormatError
from skcompressae.persistence import from_reference_checkpoint, save_model, to_reference_checkpoint


def make_state(d=12, m=40, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    decoder = torch.randn((m, d), generator=generator)
    drift = 1 + 0.01 * torch.randn((m, 1), generator=generator)  # an optimiser step away from unit norm
    state = {
        "encoder_w": torch.randn((d, m), generator=generator),
        "encoder_b": 0.1 * torch.randn(m, generator=generator),
        "decoder_w": decoder / decoder.norm(dim=1, keepdim=True) * drift,
    }
    return {key: tensor.to(dtype) for key, tensor in state.items()}


def naive_codes(state, X, k):
    """Equations 1 and 2 of the paper on the state's tensors, in float64."""
    weights = {key: tensor.double().numpy() for key, tensor in state.items()}
    codes = X / np.linalg.norm(X, axis=1, keepdims=True) @ weights["encoder_w"] + weights["encoder_b"]
    for row in codes:
        row[np.argsort(-np.abs(row))[k:]] = 0
    return codes, codes @ weights["decoder_w"]


@pytest.fixture
def X():
    return np.random.RandomState(0).standard_normal((50, 12))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_codes_are_the_references(tmp_path, X, dtype):
    state = make_state(dtype=dtype)
    torch.save(state, tmp_path / "model.pt")
    model = from_reference_checkpoint(tmp_path / "model.pt", k=5)
    codes, decoded = naive_codes(state, X, 5)
    np.testing.assert_allclose(model.transform(X).toarray(), codes, atol=1e-5)
    np.testing.assert_allclose(model.inverse_transform(model.transform(X)), decoded, atol=1e-5)
    assert (model.n_components, model.k_, model.n_features_in_, model.n_iter_) == (40, 5, 12, 0)
    refitted = model.set_params(coding="least_squares", norm="input")
    assert refitted.score(X) > np.mean(
        (decoded * X).sum(axis=1) / np.linalg.norm(decoded, axis=1) / np.linalg.norm(X, axis=1)
    )


def test_parameters_with_requires_grad_and_the_old_file_format(tmp_path, X):
    state = {key: torch.nn.Parameter(tensor) for key, tensor in make_state().items()}
    torch.save(state, tmp_path / "model.pt", _use_new_zipfile_serialization=False)
    model = from_reference_checkpoint(tmp_path / "model.pt", k=np.int64(5), norm="unit")
    codes, _ = naive_codes({key: tensor.detach() for key, tensor in state.items()}, X, 5)
    np.testing.assert_array_equal(model.transform(X).toarray() != 0, codes != 0)
    model.partial_fit(X)


def test_statistics_unknown_and_measured(tmp_path, X):
    torch.save(make_state(), tmp_path / "model.pt")
    model = from_reference_checkpoint(tmp_path / "model.pt", k=5)
    queries = model.transform_query(X, n_nonzero=7).toarray()
    full = model.transform_query(X).toarray()
    unit = X / np.linalg.norm(X, axis=1, keepdims=True)
    weights = np.abs(full) * np.abs(unit @ model.encoder_weights_.T + model.encoder_bias_) ** 0.25
    for kept, row in zip(queries, weights, strict=True):
        np.testing.assert_array_equal(np.flatnonzero(kept), np.sort(np.argsort(-row)[:7]))
    pytest.importorskip("matplotlib")
    with pytest.raises(ValueError, match="X must be given"):
        LatentUsageDisplay.from_estimator(model)
    save_model(model, tmp_path / "model.safetensors")
    again = load_model(tmp_path / "model.safetensors")
    assert np.isnan(again.dead_latents_fraction_)

    counted = from_reference_checkpoint(tmp_path / "model.pt", k=5, X=X)
    codes = counted.set_params(norm="unit").transform(X).toarray()
    np.testing.assert_array_equal(counted.latent_counts_, (codes != 0).sum(axis=0))
    np.testing.assert_allclose(counted.latent_rms_, np.sqrt((codes**2).mean(axis=0)), rtol=1e-5)
    assert counted.n_rows_counted_ == 50
    with pytest.raises(ValueError, match="X must have the checkpoint's 12 features; got 5"):
        from_reference_checkpoint(tmp_path / "model.pt", k=5, X=X[:, :5])
    names = [f"x{i}" for i in range(12)]
    named = from_reference_checkpoint(tmp_path / "model.pt", k=5, X=pd.DataFrame(X, columns=names))  # without warnings
    np.testing.assert_array_equal(named.latent_counts_, counted.latent_counts_)
    assert named.feature_names_in_.tolist() == names


def test_export_is_what_import_reads(tmp_path, fitted, embeddings):
    fitted = clone(fitted).set_params(usage_power=0).fit(embeddings)  # a scaled encoder is written without its scale
    to_reference_checkpoint(fitted, tmp_path / "model.pt")
    assert os.listdir(tmp_path) == ["model.pt"]
    state = torch.load(tmp_path / "model.pt", weights_only=True)
    assert {key: tuple(tensor.shape) for key, tensor in state.items()} == {
        "encoder_w": (24, 48),
        "encoder_b": (48,),
        "decoder_w": (48, 24),
    }
    again = from_reference_checkpoint(tmp_path / "model.pt", k=fitted.k, norm=fitted.norm).set_params(
        coding="pursuit", flattening=0.2, device="cpu"
    )
    np.testing.assert_array_equal(again.transform(embeddings).toarray(), fitted.transform(embeddings).toarray())
    with pytest.raises(TypeError, match="model must be a CompresSAETransformer; got dict"):
        to_reference_checkpoint({}, tmp_path / "model.pt")
    broken = copy.deepcopy(fitted)
    broken.components_[3, 5] = np.nan
    with pytest.raises(ValueError, match="The model's components_ holds NaN or infinity; a broken model is not saved"):
        to_reference_checkpoint(broken, tmp_path / "broken.pt")
    assert os.listdir(tmp_path) == ["model.pt"]


class Malicious:
    def __reduce__(self):
        return os.mkdir, ("executed",)


@pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants")  # PyTorch 2.14, of a tensor that is refused
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder_w": None}, r"must hold encoder_w, encoder_b, decoder_w .* got \['decoder_w', 'encoder_b'\]"),
        ({"extra": torch.zeros(2)}, "and nothing else"),
        ({"encoder_w": torch.zeros(40, 12)}, r"got \(40, 12\), \(40,\) and \(40, 12\)"),
        ({"encoder_b": torch.zeros(41)}, r"got \(12, 40\), \(41,\) and \(40, 12\)"),
        ({"encoder_b": torch.zeros(40, dtype=torch.int64)}, "encoder_b must be .* got a tensor of torch.int64"),
        ({"encoder_b": [0.0] * 40}, "encoder_b must be .* got a list"),
        ({"encoder_b": torch.zeros(40).to_sparse()}, "encoder_b must be a dense"),
        ({"encoder_b": torch.full((40,), torch.nan)}, "encoder_b holds NaN"),
        ({"encoder_b": torch.full((40,), 1e300, dtype=torch.float64)}, "encoder_b holds NaN or infinity"),
        ({"encoder_w": torch.zeros(1).expand(10**7, 10**7)}, "does not hold as many numbers"),
        ({"encoder_w": torch.zeros((12, 40), device="meta")}, "does not hold as many numbers"),
        ({"decoder_w": torch.zeros(40, 12)}, "norms near 1; got norms from 0 to 0"),
        ({"decoder_w": torch.zeros(40, 0)}, "must hold encoder_w of shape"),
        ({"encoder_b": Malicious()}, "weights_only=True"),
    ],
)
def test_other_files_are_refused(tmp_path, monkeypatch, change, message):
    monkeypatch.chdir(tmp_path)
    state = {key: value for key, value in {**make_state(), **change}.items() if value is not None}
    torch.save(state, "model.pt")
    with pytest.raises(ModelFormatError, match=message):
        from_reference_checkpoint("model.pt", k=5)
    assert os.listdir(tmp_path) == ["model.pt"]


def test_nobody_is_told_to_let_a_file_execute_code(tmp_path):
    torch.save({**make_state(), "encoder_b": Malicious()}, tmp_path / "model.pt")
    with pytest.raises(ModelFormatError, match=r"weights_only=True, or it is damaged: PyTorch refuses it$") as caught:
        from_reference_checkpoint(tmp_path / "model.pt", k=5)
    assert isinstance(caught.value.__cause__, pickle.UnpicklingError)


def test_damaged_and_foreign_files(tmp_path):
    path = tmp_path / "model.pt"
    torch.save(make_state(d=3, m=4), path)
    data = path.read_bytes()
    for size in range(0, len(data), 23):
        path.write_bytes(data[:size])
        with pytest.raises(ModelFormatError):
            from_reference_checkpoint(path, k=2)
    for content in (b"no model", pickle.dumps({"encoder_w": [1.0]}, 2), pickle.dumps([1, 2], 2), b"\x80\x02."):
        path.write_bytes(content)
        with pytest.raises(ModelFormatError):
            from_reference_checkpoint(path, k=2)
    with pytest.raises(FileNotFoundError):
        from_reference_checkpoint(tmp_path / "nowhere", k=2)


def test_the_command_line_calls_a_truncated_checkpoint_damaged(files, fitted, capsys):
    """The suffix of the output was blamed, as if codes had been given."""
    to_reference_checkpoint(fitted, "model.pt")
    data = Path("model.pt").read_bytes()
    Path("model.pt").write_bytes(data[: len(data) // 2])
    for command in (["export", "model.pt", "new.safetensors", "--k", "6"], ["info", "model.pt"]):
        assert refuses(capsys, *command).startswith("model.pt is damaged: ")


def test_changed_numbers_are_noticed(tmp_path):
    """PyTorch itself reads them."""
    path, state = tmp_path / "model.pt", make_state(d=30, m=40)
    torch.save(state, path)
    data = path.read_bytes()
    at = data.find(state["decoder_w"].numpy().tobytes())
    assert at > 0
    path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    assert set(torch.load(path, weights_only=True)) == set(state)
    with pytest.raises(ModelFormatError, match=r"damaged: the CRC-32 of .*/data/\d is not the one that it records"):
        from_reference_checkpoint(path, k=2)
    entry = data.index(b"PK\1\2", data.rindex(b"/data/1") - 60)
    path.write_bytes(data[: entry + 38] + b"\x10" + data[entry + 39 :])
    with pytest.raises(ModelFormatError, match="/data/1 is a folder"):
        from_reference_checkpoint(path, k=2)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10**6))
    with pytest.raises(ModelFormatError, match="compressed zip file"):
        from_reference_checkpoint(path, k=2)


@pytest.mark.parametrize("k", [0, 41, -1])
def test_k_must_fit(tmp_path, k):
    torch.save(make_state(), tmp_path / "model.pt")
    with pytest.raises(ValueError, match="k == "):
        from_reference_checkpoint(tmp_path / "model.pt", k=k)
    with pytest.raises(TypeError, match="k must be an instance of"):
        from_reference_checkpoint(tmp_path / "model.pt", k=2.5)
    with pytest.raises(TypeError, match="k must be an instance of int, not bool"):
        from_reference_checkpoint(tmp_path / "model.pt", k=True)


def test_norm_is_checked(tmp_path):
    torch.save(make_state(), tmp_path / "model.pt")
    with pytest.raises(ValueError, match="'norm' parameter of CompresSAETransformer"):
        from_reference_checkpoint(tmp_path / "model.pt", k=5, norm="l1")
    assert isinstance(from_reference_checkpoint(tmp_path / "model.pt", k=40, norm="input"), CompresSAETransformer)
