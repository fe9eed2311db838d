"""Model files: what is saved comes back, and what is no model file says so."""

import copy
import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import make_embeddings
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from skcompressae import CompresSAETransformer, load_model, model_hash, save_model
from skcompressae._model_format import read_model_file, write_model_file
from skcompressae._model_io import _KIND, FORMAT_VERSION
from skcompressae.exceptions import ModelFormatError

DATA = Path(__file__).parent / "data"


def small(**parameters):
    defaults = {"n_components": 16, "k": 3, "max_iter": 8, "random_state": 0, "device": "cpu"}
    return CompresSAETransformer(**{**defaults, **parameters})


@pytest.fixture(scope="module")
def tiny():
    return small(n_components=3, k=2, max_iter=3).fit(make_embeddings(n_rows=80, n_features=4))


def assert_same_state(one, other):
    mine, theirs = vars(one), vars(other)
    assert set(mine) == set(theirs)
    for name, value in mine.items():
        if isinstance(value, np.ndarray):
            assert value.dtype == theirs[name].dtype
            np.testing.assert_array_equal(value, theirs[name])
        elif name == "_moments" and value is not None:
            for array, array_too in zip(value[:3], theirs[name][:3], strict=True):
                np.testing.assert_array_equal(array, array_too)
            assert value[3] == theirs[name][3]
        else:
            assert value == theirs[name], name
            assert type(value) is type(theirs[name]), name


@pytest.mark.parametrize("how", ["fit", "partial_fit"])
@pytest.mark.parametrize(
    "parameters", [{}, {"recipe": "paper", "norm": None, "batch_size": 50}, {"coding": "pursuit", "norm": "unit"}]
)
def test_everything_comes_back_and_trains_on(embeddings, tmp_path, how, parameters):
    model = getattr(small(**parameters), how)(embeddings)
    path = tmp_path / "model.safetensors"
    save_model(model, path)
    assert os.listdir(tmp_path) == ["model.safetensors"]
    again = load_model(path)
    if model.coding == "auto":  # files say what it stands for
        model.set_params(coding="activations" if model.recipe == "paper" else "pursuit")
    assert model.flattening == "auto"
    model.set_params(flattening=0.0 if model.recipe == "paper" else 0.2)
    assert_same_state(model, again)
    assert model_hash(again) == model_hash(model)
    np.testing.assert_array_equal(again.transform(embeddings).toarray(), model.transform(embeddings).toarray())
    np.testing.assert_array_equal(
        again.transform_query(embeddings, n_nonzero=5).toarray(),
        model.transform_query(embeddings, n_nonzero=5).toarray(),
    )
    assert again.score(embeddings) == model.score(embeddings)
    np.testing.assert_array_equal(again.get_feature_names_out(), model.get_feature_names_out())
    np.testing.assert_array_equal(again.partial_fit(embeddings).components_, model.partial_fit(embeddings).components_)
    again.save(path)
    assert_same_state(load_model(path), again)


def test_names_of_features_come_back(tmp_path):
    columns = ['"quoted"', "back\\slash", "ünïcode \U0001f600", "line\nbreak", '"sha256":"' + "0" * 64]
    frame = pd.DataFrame(make_embeddings(n_rows=60, n_features=len(columns)), columns=columns)
    model = small().fit(frame)
    model.save(tmp_path / "model")
    again = CompresSAETransformer.load(tmp_path / "model")
    assert again.feature_names_in_.tolist() == columns
    assert again.feature_names_in_.dtype == object
    np.testing.assert_array_equal(again.transform(frame).toarray(), model.transform(frame).toarray())
    with pytest.raises(ValueError, match="feature names"):
        again.transform(frame[columns[::-1]])


def test_parameters_in_numpy_types_and_random_states(tmp_path, embeddings):
    model = small(k=np.int64(3), candidate_factor=np.float32(2), random_state=np.random.RandomState(0)).fit(embeddings)
    model.save(tmp_path / "model")
    again = load_model(tmp_path / "model")
    assert (again.k, again.candidate_factor, again.random_state) == (3, 2.0, None)


def test_moments_may_stay_behind(tmp_path, embeddings):
    model = small().partial_fit(embeddings)
    model.save(tmp_path / "with")
    model.save(tmp_path / "without", with_moments=False)
    assert load_model(tmp_path / "without")._moments is None
    assert (tmp_path / "without").stat().st_size < 0.5 * (tmp_path / "with").stat().st_size


def test_hash_follows_codes_and_nothing_else(tiny):
    def hash_with(**parameters):
        model = load_saved(tiny)
        return model_hash(model.set_params(**parameters))

    def load_saved(model):
        again = clone(model)
        vars(again).update(vars(model))
        return again

    same = [{"verbose": 1}, {"device": "auto"}, {"sparse_output": False}, {"coding": "pursuit"}, {"max_iter": 9}]
    assert {hash_with(**parameters) for parameters in same} == {model_hash(tiny)}
    # k above n_components is n_components
    assert hash_with(k=3) == hash_with(k=300)
    others = [{"k": 1}, {"norm": None}, {"norm": "unit"}, {"coding": "activations"}, {"precision": "bfloat16"}]
    others += [{"coding": "least_squares"}, {"candidate_factor": 3.0}, {"flattening": 0.0}]
    hashes = {hash_with(**parameters) for parameters in others}
    assert len(hashes) == len(others)
    assert model_hash(tiny) not in hashes
    changed = load_saved(tiny)
    changed.encoder_bias_ = changed.encoder_bias_ + 1
    assert model_hash(changed) != model_hash(tiny)


def test_what_cannot_be_saved(tmp_path, tiny):
    with pytest.raises(NotFittedError):
        small().save(tmp_path / "model")
    with pytest.raises(TypeError, match="model must be a CompresSAETransformer; got list"):
        save_model([], tmp_path / "model")
    broken = clone(tiny)
    vars(broken).update(vars(tiny), encoder_bias_=np.full(3, np.nan, dtype=np.float32))
    with pytest.raises(ValueError, match="encoder_bias_ holds NaN"):
        broken.save(tmp_path / "model")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("attribute", "value", "message"),
    [
        ("components_", np.zeros((3, 4)), r"'components' must be float32 of shape \(any, 4\); got float64"),
        ("encoder_bias_", np.zeros(2, np.float32), r"'encoder_bias' must be float32 of shape \(3\)"),
        ("latent_counts_", np.zeros(3, np.int32), "'latent_counts' must be int64 .* got int32"),
        ("latent_rms_", np.full(3, np.nan), "'latent_rms' holds NaN or infinity"),
        ("loss_curve_", np.zeros(5, np.float32), "'loss_curve' must be float64 .* got float32"),
        ("k_", 4, "a count of 4"),
    ],
)
def test_models_that_could_not_be_loaded_are_not_saved(tmp_path, tiny, attribute, value, message):
    model = copy.deepcopy(tiny)
    setattr(model, attribute, value)
    with pytest.raises(ValueError, match=f"A model that cannot be loaded again is not saved: the model.*{message}"):
        model.save(tmp_path / "model")
    assert os.listdir(tmp_path) == []


def test_names_of_features_may_take_16_mib(tmp_path, tiny):
    model = copy.deepcopy(tiny)
    model.feature_names_in_ = np.array(["a" * (4 << 20) + str(i) for i in range(4)], dtype=object)
    with pytest.raises(ValueError, match=r"with the names of features, must take at most 16777216 bytes; got 1677"):
        model.save(tmp_path / "model")
    assert os.listdir(tmp_path) == []
    model.feature_names_in_ = np.array([name[9 << 10 :] for name in model.feature_names_in_], dtype=object)
    model.save(tmp_path / "model")
    assert list(load_model(tmp_path / "model").feature_names_in_) == list(model.feature_names_in_)


# Files that are none ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "parameters",
    [{"n_iter_no_change": 0}, {"k": 0}, {"norm": "l2"}, {"device": None}, {"recipe": "best"}, {"flattening": [1]}],
)
def test_parameters_that_a_file_cannot_have_are_not_saved(tmp_path, tiny, parameters):
    model = copy.deepcopy(tiny)
    model.save(tmp_path / "model")
    before = (tmp_path / "model").read_bytes()
    model.set_params(**parameters)
    (name,) = parameters
    with pytest.raises(ValueError, match=f"The '{name}' parameter of CompresSAETransformer must be"):
        model.save(tmp_path / "model")
    assert (tmp_path / "model").read_bytes() == before
    if name not in ("n_iter_no_change",):
        with pytest.raises(ValueError, match=f"The '{name}' parameter of CompresSAETransformer must be"):
            model_hash(model)


@pytest.mark.parametrize(
    ("loss_weights", "message"),
    [
        (("a", 1), r"must be two numbers; got \('a', 1\)"),
        ((1, 2, 3), r"must be two numbers; got \(1, 2, 3\)"),
        ((np.array([1, 2]), 1), r"must be two numbers; got \(array\(\[1, 2\]\), 1\)"),
        ((-1, 0), r"must be finite, at least 0 and not both 0; got \(-1, 0\)"),
    ],
)
def test_loss_weights_that_fit_refuses_are_not_saved(tmp_path, tiny, loss_weights, message):
    model = copy.deepcopy(tiny).set_params(loss_weights=loss_weights)
    with pytest.raises(ValueError, match=f"loss_weights {message}"):
        model.save(tmp_path / "model")
    assert os.listdir(tmp_path) == []


def test_truncation_at_every_byte_and_every_changed_byte(tmp_path, tiny):
    path = tmp_path / "model"
    tiny.save(path)
    data = path.read_bytes()
    for size in range(len(data)):
        path.write_bytes(data[:size])
        with pytest.raises(ModelFormatError, match="model"):
            load_model(path)
    for i, byte in enumerate(data):
        path.write_bytes(data[:i] + bytes([byte ^ (1 << i % 8)]) + data[i + 1 :])
        with pytest.raises(ModelFormatError, match="model"):
            load_model(path)
    path.write_bytes(data + b"\0")
    with pytest.raises(ModelFormatError, match="damaged or truncated"):
        load_model(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no skcompressae model file, or a truncated one: it has 0 bytes"),
        (b"\x80\x04K\x01." * 9, "no skcompressae model file"),
        (b"\xff" * 8 + b"{}", "no skcompressae model file"),
        ((2).to_bytes(8, "little") + b"{}", "without an entry 'skcompressae'"),
        ((2).to_bytes(8, "little") + b"[]", "not in the safetensors format"),
        ((10**5).to_bytes(8, "little") + b"[" * 10**5, "not in the safetensors format"),
        ((20).to_bytes(8, "little") + b'{"__metadata__":[1]}', "not in the safetensors format"),
    ],
)
def test_foreign_files(tmp_path, content, message):
    path = tmp_path / "model"
    path.write_bytes(content)
    with pytest.raises(ModelFormatError, match=message):
        load_model(path)


def test_missing_files_are_missing_files(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_model(tmp_path / "nowhere")
    with pytest.raises(OSError, match="directory"):
        load_model(tmp_path)


def changed(path, **changes):
    """Write the file anew, with a right digest, after changing entries of its header and its arrays."""
    header, arrays = read_model_file(path, _KIND, FORMAT_VERSION)
    kind, version = header.pop("format"), header.pop("format_version")
    for name, value in changes.items():
        if name in ("kind", "version"):
            kind, version = (value, version) if name == "kind" else (kind, value)
        elif name in arrays or isinstance(value, np.ndarray):
            arrays[name] = value
        else:
            *parents, last = name.split("__")
            entry = header
            for parent in parents:
                entry = entry[parent]
            entry[last] = value
    write_model_file(path, kind, version, header, {name: array for name, array in arrays.items() if array is not None})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, "format version 2, and this skcompressae reads versions up to 1. Upgrade"),
        ({"version": True}, "its format version is True"),
        ({"kind": "another thing"}, "its header says it is a 'another thing'"),
        ({"class": "PCA"}, "holds a PCA; it cannot be loaded as a CompresSAETransformer"),
        ({"parameters__temperature": 1}, r"parameter\(s\) temperature, unknown to skcompressae"),
        ({"parameters__k": -1}, "The 'k' parameter"),
        ({"parameters__k": 1}, "do not have the hash"),
        ({"parameters__loss_weights": [1, 2, 3]}, "loss_weights must be two numbers"),
        ({"parameters": 5}, "does not describe a model"),
        ({"parameters__checkpoint_dir": "x"}, "parameter.s. checkpoint_dir, unknown"),
        ({"training__n_iter": -1}, "a count of -1"),
        ({"training__k": 4}, "a count of 4"),
        ({"training": {}}, "does not describe a model"),
        ({"n_features_in": 5}, "'components' must be float32 of shape .any, 5.; got float32 of shape .3, 4."),
        ({"feature_names_in": ["a"]}, "feature names are not 4 texts"),
        ({"feature_names_in": [1, 2, 3, 4]}, "feature names are not 4 texts"),
        ({"components": None}, "'components' is missing"),
        ({"components": np.zeros((0, 4), np.float32)}, "no latents"),
        ({"encoder_bias": np.zeros(3)}, "'encoder_bias' must be float32 .* got float64"),
        ({"encoder_bias": np.zeros(3, np.float32)}, "weights are not those that its header describes"),
        ({"encoder_bias": np.full(3, np.inf, np.float32)}, "'encoder_bias' holds NaN or infinity"),
        ({"latent_counts": np.full(3, -1)}, "negative"),
        ({"latent_rms": np.full(3, np.nan)}, "'latent_rms' holds NaN"),
        ({"validation_steps": np.arange(7)}, "different lengths"),
        ({"surplus": np.arange(7)}, "arrays that no model has: 'surplus'"),
        ({"training__moments_n_steps": 3}, "'encoder_moments' is missing"),
    ],
)
def test_files_that_contradict_themselves(tmp_path, tiny, changes, message):
    path = tmp_path / "model"
    tiny.save(path)
    changed(path, **changes)
    with pytest.raises(ModelFormatError, match=message):
        load_model(path)


def test_parameters_of_later_versions_default(tmp_path, tiny):
    """A file written before a parameter existed lacks it."""
    path = tmp_path / "model"
    tiny.save(path)
    header, _ = read_model_file(path, _KIND, FORMAT_VERSION)
    del header["parameters"]["candidate_factor"]
    changed(path, parameters=header["parameters"])
    assert load_model(path).candidate_factor == CompresSAETransformer().candidate_factor


def test_models_of_before_flattening_keep_their_codes(tmp_path, tiny):
    path = tmp_path / "model"
    as_fitted = copy.copy(tiny).set_params(flattening=0.0)
    as_fitted.save(path)
    header, _ = read_model_file(path, _KIND, FORMAT_VERSION)
    del header["parameters"]["flattening"]
    changed(path, parameters=header["parameters"])
    assert load_model(path).flattening == 0
    state = dict(tiny.__getstate__())
    del state["flattening"]
    old = CompresSAETransformer.__new__(CompresSAETransformer)
    old.__setstate__(state)
    assert model_hash(old) == model_hash(as_fitted) != model_hash(tiny)


def test_a_failed_write_leaves_the_old_file(tmp_path, tiny, monkeypatch):
    path = tmp_path / "model"
    tiny.save(path)
    before = path.read_bytes()

    def fail(descriptor):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        clone(tiny).fit(make_embeddings(n_rows=50, n_features=4)).save(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["model"]


# Golden files -------------------------------------------------------------------------------------------------------


def test_golden_file_of_version_1():
    model = load_model(DATA / "model_v1.safetensors")
    expected = json.loads((DATA / "model_v1.json").read_text())
    assert model.get_params()["loss_weights"] == (1.0, 0.125)
    assert model.coding == "least_squares"  # what "auto" meant then
    assert model.feature_names_in_.tolist() == ["a", "b", "c", "d"]
    assert model_hash(model) == expected["model_hash"]
    assert model._moments[3] == expected["moments_n_steps"]
    rows = pd.DataFrame(expected["rows"], columns=list("abcd"))
    np.testing.assert_allclose(model.transform(rows).toarray(), expected["codes"], rtol=1e-5)
