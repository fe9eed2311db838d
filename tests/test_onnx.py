"""ONNX encoders in onnxruntime: the codes of transform, for every coding, norm, shape and batch size."""

import copy
import json
import sys

import numpy as np
import pytest
from cli_cases import refuses, refuses_usage
from conftest import make_embeddings
from hypothesis import example, given, settings
from hypothesis import strategies as st
from naive_pursuit import naive_flattening, naive_pursuit, naive_refinement, naive_values
from sklearn.exceptions import NotFittedError

from skcompressae import CompresSAETransformer, load_model, model_hash
from skcompressae._cli._main import main
from skcompressae._core._pursuit import RIDGE
from skcompressae._core._refinement import N_REFINEMENTS

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
reference = pytest.importorskip("onnx.reference")

from skcompressae import onnx as onnx_module  # noqa: E402
from skcompressae.onnx import to_onnx  # noqa: E402

CODINGS = ["activations", "least_squares", "pursuit", "refined_pursuit"]
NORMS = ["input", "unit", None]
# In what follows a choice is a near tie where float32 could make it otherwise.
NEAR_TIE = 1e-5


def make_model(n_features, n_components, seed=0, **parameters):
    """A model of random weights: fitting would only cost time."""
    random_state = np.random.RandomState(seed)
    decoder = random_state.standard_normal((n_components, n_features))
    decoder /= np.linalg.norm(decoder, axis=1, keepdims=True)
    model = CompresSAETransformer(n_components, device="cpu", **parameters)
    model.components_ = decoder.astype(np.float32)
    model.encoder_weights_ = (decoder + 0.2 * random_state.standard_normal(decoder.shape)).astype(np.float32)
    model.encoder_bias_ = (0.1 * random_state.standard_normal(n_components)).astype(np.float32)
    model.scales_mean_apart_ = False
    model.n_features_in_, model.k_ = n_features, model.k
    return model


def open_session(path):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def run(session, rows):
    return session.run(["indices", "values"], {"embeddings": rows})


def export(model, folder):
    to_onnx(model, folder / "encoder.onnx")
    return open_session(folder / "encoder.onnx")


def naive_code(x, model, coding):
    """Encode a row in float64; return the least difference that a choice was made by and float32's error, too."""
    weights, bias, decoder = (
        array.astype(np.float64) for array in (model.encoder_weights_, model.encoder_bias_, model.components_)
    )
    k, n = model.k, model.k
    if coding in ("pursuit", "refined_pursuit"):
        n = min(len(bias), max(k, round(model.candidate_factor * k)))
    length = np.linalg.norm(x.astype(np.float64))
    unit = x / length
    activations = weights @ unit + bias
    order = np.argsort(-abs(activations), kind="stable")
    gaps = [abs(activations[order[n - 1]]) - abs(activations[order[n]])] if n < len(order) else []
    chosen = np.sort(order[:k])
    if n > k:
        candidates = np.sort(order[:n])
        chosen, _, gap = naive_pursuit(unit, decoder, candidates, activations[candidates], k)
        gaps.append(gap)
    for _ in range(N_REFINEMENTS if coding == "refined_pursuit" else 0):
        chosen, _, gap = naive_refinement(unit, decoder, chosen, naive_values(unit, decoder[chosen]))
        gaps.append(gap)
    atoms = decoder[chosen]
    values = activations[chosen] if coding == "activations" else naive_values(unit, atoms)
    # products with unit rows are right to some 1e-7, whatever their own size, and fitting multiplies by the condition
    condition = 1 if coding == "activations" else np.linalg.cond(atoms @ atoms.T + RIDGE * np.eye(k))
    error = 1e-6 * condition / min(1, abs(values).max())
    if model.norm is not None:
        if coding != "activations":
            values = naive_flattening(values, atoms, model.flattening)
        values *= (length if model.norm == "input" else 1) / np.linalg.norm(values @ atoms)
    return chosen, values, min(gaps, default=1), error * abs(values).max()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("onnx")


@given(
    n_features=st.integers(2, 40),
    n_components=st.integers(2, 60),
    k=st.integers(1, 12),
    coding=st.sampled_from(CODINGS),
    candidate_factor=st.sampled_from([1.0, 1.5, 3.0]),
    norm=st.sampled_from(NORMS),
    n_rows=st.sampled_from([0, 1, 2, 17]),
    scale=st.sampled_from([1e-25, 1.0, 1e15]),
    seed=st.integers(0, 2**16),
)
@example(20, 11, 10, "least_squares", 1.0, "input", 17, 1.0, 12)
@settings(max_examples=80, deadline=None)
def test_codes_are_those_of_transform_and_of_the_formulas(
    folder, n_features, n_components, k, coding, candidate_factor, norm, n_rows, scale, seed
):
    # more latents than half the features are fitted badly conditioned; see the test of the extreme
    k = min(k, n_components, max(1, n_features // 2))
    parameters = {"k": k, "coding": coding, "candidate_factor": candidate_factor, "norm": norm}
    model = make_model(n_features, n_components, seed, **parameters)
    rows = (scale * np.random.RandomState(seed).standard_normal((n_rows, n_features))).astype(np.float32)
    indices, values = run(export(model, folder), rows)
    assert (indices.shape, values.shape) == ((n_rows, k), (n_rows, k))
    assert (indices.dtype, values.dtype) == (np.int32, np.float32)
    assert (np.diff(indices, axis=1) > 0).all()
    for row, row_indices, row_values in zip(rows, indices, values, strict=True):
        chosen, expected, gap, within = naive_code(row, model, coding)
        if gap < NEAR_TIE:
            continue
        np.testing.assert_array_equal(row_indices, chosen)
        np.testing.assert_allclose(row_values, expected, rtol=0, atol=within)
        transformed = model.transform(row[None])
        # a value that is nothing but rounding, as all but one are where a row lies on a latent, may be 0 in one of them
        assert np.isin(transformed.indices, row_indices).all()
        np.testing.assert_allclose(transformed.toarray()[0, row_indices], row_values, rtol=0, atol=within)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("coding", CODINGS)
def test_a_fitted_model_agrees_to_a_ten_thousandth(tmp_path, fitted, embeddings, coding, norm):
    model = copy.copy(fitted).set_params(coding=coding, norm=norm)
    rows = np.vstack([make_embeddings(60, seed=5), np.zeros((2, 24), np.float32)])
    session = export(model, tmp_path)
    indices, values = run(session, rows)
    assert not values[-2:].any()
    dense = np.zeros((len(rows), 48), dtype=np.float32)
    np.put_along_axis(dense, indices.astype(np.int64), values, axis=1)
    expected = model.transform(rows).toarray()
    np.testing.assert_array_equal(dense != 0, expected != 0)
    np.testing.assert_allclose(dense, expected, rtol=0, atol=1e-4 * abs(expected).max())
    # a row's code does not depend on the rows beside it, but for rounding
    for start, stop in ((0, 1), (7, 19)):
        alone = run(session, rows[start:stop])
        np.testing.assert_array_equal(alone[0], indices[start:stop])
        np.testing.assert_allclose(alone[1], values[start:stop], rtol=0, atol=1e-5 * abs(values).max())


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("coding", CODINGS)
def test_a_mean_latent_is_scaled_as_transform_does(tmp_path, coding, norm):
    rows = make_embeddings(300) + np.float32(1.5)
    model = CompresSAETransformer(48, k=5, max_iter=30, coding=coding, norm=norm, random_state=0).fit(rows)
    assert model.has_mean_latent_
    indices, values = run(export(model, tmp_path), rows)
    dense = np.zeros((len(rows), 48), dtype=np.float32)
    np.put_along_axis(dense, indices.astype(np.int64), values, axis=1)
    expected = model.transform(rows).toarray()
    np.testing.assert_allclose(dense, expected, rtol=0, atol=1e-4 * abs(expected).max())


@pytest.mark.parametrize("coding", CODINGS)
def test_codes_of_every_latent_decode_alike(tmp_path, coding):
    """With more latents than features, values are anybody's guess, but what they decode to is not."""
    model = make_model(12, 30, k=30, coding=coding, norm="input")
    rows = np.random.RandomState(1).standard_normal((20, 12)).astype(np.float32)
    indices, values = run(export(model, tmp_path), rows)
    np.testing.assert_array_equal(indices, np.tile(np.arange(30), (20, 1)))
    decoded = values @ model.components_
    np.testing.assert_allclose(decoded, model.inverse_transform(model.transform(rows)), rtol=0, atol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(decoded, axis=1), np.linalg.norm(rows, axis=1), rtol=1e-4)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("coding", CODINGS)
def test_rows_that_are_not_finite_spoil_no_others(tmp_path, coding, norm):
    model = make_model(12, 30, k=4, coding=coding, norm=norm)
    rows = np.random.RandomState(3).standard_normal((7, 12)).astype(np.float32)
    is_good = np.array([True, False, True, False, True, False, False])
    rows[1] = np.nan
    rows[[3, 5, 6], [0, 11, 4]] = np.nan, np.inf, -np.inf
    session = export(model, tmp_path)
    indices, values = run(session, rows)
    evaluator = reference.ReferenceEvaluator(onnx.load(tmp_path / "encoder.onnx"))
    alone = run(session, rows[is_good])
    np.testing.assert_array_equal(indices[is_good], alone[0])
    np.testing.assert_allclose(values[is_good], alone[1], rtol=0, atol=1e-5)
    found = evaluator.run(["indices", "values"], {"embeddings": rows})
    for places, numbers in ((indices, values), found):
        assert np.isnan(numbers[~is_good]).all()
        assert np.isfinite(numbers[is_good]).all()
        assert ((places >= 0) & (places < 30)).all()
        assert (np.diff(places, axis=1) > 0).all()


def test_twins_among_the_latents_share_a_value(tmp_path):
    model = make_model(8, 10, k=4, coding="least_squares", norm=None)
    for weights in (model.components_, model.encoder_weights_, model.encoder_bias_[:, None]):
        weights[1] = weights[0]
    rows = model.components_[:1] + 0.1 * model.components_[5:6]
    indices, values = run(export(model, tmp_path), rows)
    assert list(indices[0, :2]) == [0, 1]
    np.testing.assert_allclose(values[0, 0], values[0, 1], rtol=1e-2)
    np.testing.assert_allclose(values @ model.components_[indices[0]], rows / np.linalg.norm(rows), atol=0.1)


@pytest.mark.parametrize("coding", CODINGS)
def test_the_graph_means_in_the_standard_what_it_means_in_onnxruntime(tmp_path, coding):
    model = make_model(9, 20, k=4, coding=coding)
    rows = np.random.RandomState(2).standard_normal((5, 9)).astype(np.float32)
    indices, values = run(export(model, tmp_path), rows)
    evaluator = reference.ReferenceEvaluator(onnx.load(tmp_path / "encoder.onnx"))
    found = evaluator.run(["indices", "values"], {"embeddings": rows})
    np.testing.assert_array_equal(found[0], indices)
    np.testing.assert_allclose(found[1], values, rtol=0, atol=1e-4)


def test_the_graph_is_standard_small_and_of_one_size(tmp_path):
    n_nodes = set()
    for k in (4, 16):
        to_onnx(make_model(40, 64, k=k), tmp_path / "a.onnx")
        proto = onnx.load(tmp_path / "a.onnx")
        onnx.checker.check_model(proto, full_check=True)
        assert [(entry.domain, entry.version) for entry in proto.opset_import] == [("", 18)]
        bodies = [node.attribute[0].g for node in proto.graph.node if node.op_type == "Loop"]
        n_nodes.add(len(proto.graph.node) + sum(len(body.node) for body in bodies))
    assert len(n_nodes) == 1
    assert n_nodes.pop() < 120
    # activations at their own scale need no decoder, which is half of the file
    to_onnx(make_model(40, 64, k=4, coding="activations", norm=None), tmp_path / "a.onnx")
    names = {tensor.name for tensor in onnx.load(tmp_path / "a.onnx").graph.initializer}
    assert "encoder_weights" in names
    assert "components" not in names


@pytest.mark.parametrize("norm", NORMS)
def test_metadata_tell_what_the_graph_computes(tmp_path, norm):
    model = make_model(9, 20, k=30, coding="pursuit", candidate_factor=2, norm=norm, precision="bfloat16")
    session = export(model, tmp_path)
    metadata = json.loads(session.get_modelmeta().custom_metadata_map["skcompressae"])
    version = metadata.pop("version")
    assert session.get_modelmeta().producer_name == "skcompressae"
    assert onnx.load(tmp_path / "encoder.onnx").producer_version == version
    assert metadata == {
        "format": "skcompressae onnx encoder",
        "format_version": 1,
        "n_components": 20,
        "n_features": 9,
        "k": 20,
        "coding": "pursuit",
        "candidate_factor": 2.0,
        "norm": norm,
        "flattening": 0.0 if norm is None else 0.2,
        "model_hash": model_hash(model.set_params(precision="float32")),
    }


def test_what_cannot_be_exported_is_refused_and_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "encoder.onnx"
    path.write_bytes(b"old")
    model = make_model(6, 8, k=2)
    with pytest.raises(TypeError, match="must be a CompresSAETransformer; got dict"):
        to_onnx({}, path)
    with pytest.raises(NotFittedError):
        to_onnx(CompresSAETransformer(), path)
    with pytest.raises(ValueError, match="The 'coding' parameter"):
        to_onnx(make_model(6, 8, k=2, coding="mean"), path)
    monkeypatch.setattr(onnx_module, "_MAX_WEIGHTS_BYTES", 300)
    with pytest.raises(ValueError, match=r"at most 300 bytes.*no more than 2 GB; got 416 bytes for n_components=8"):
        to_onnx(model, path)
    monkeypatch.undo()

    def refuse(*_, **__):
        raise onnx.checker.ValidationError("no such graph")

    monkeypatch.setattr(onnx.checker, "check_model", refuse)
    with pytest.raises(onnx.checker.ValidationError, match="no such graph"):
        to_onnx(model, path)
    monkeypatch.undo()
    model.components_[1, 1] = np.nan
    with pytest.raises(ValueError, match="components_ holds NaN or infinity"):
        to_onnx(model, path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_k_above_the_width_is_clipped_with_a_warning(tmp_path):
    model = make_model(6, 8, k=2).set_params(k=9)
    with pytest.warns(UserWarning, match="k=9 is above n_components=8"):
        session = export(model, tmp_path)
    assert run(session, np.ones((2, 6), np.float32))[0].shape == (2, 8)


def test_a_missing_package_is_named_with_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match="onnx: install the extra 'onnx' of skcompressae"):
        to_onnx(make_model(6, 8, k=2), tmp_path / "encoder.onnx")


def test_the_command_line_exports_with_its_own_settings(files, embeddings, capsys, monkeypatch):
    command = ["export", "model.safetensors", "encoder.onnx"]
    assert main([*command, "--k", "3", "--norm", "unit", "--coding", "activations", "-q"]) == 0
    indices, values = run(open_session("encoder.onnx"), embeddings)
    model = load_model("model.safetensors").set_params(k=3, norm="unit", coding="activations")
    codes = model.transform(embeddings)
    np.testing.assert_array_equal(indices.ravel(), codes.indices)
    np.testing.assert_allclose(values.ravel(), codes.data, rtol=0, atol=1e-5)
    assert "exists; give --force" in refuses(capsys, *command)
    assert "must end in one of .npz" in refuses_usage(capsys, "export", "x.npy", "encoder.onnx")
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert "install the extra 'onnx'" in refuses(capsys, *command, "--force")
