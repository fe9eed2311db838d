"""What packed codes are not made of: each argument is named, with what was required and what came."""

import copy
from contextlib import nullcontext

import numpy as np
import pytest
import scipy.sparse as sp
from test_packed_search import model

from skcompressae import CompresSAETransformer, PackedCodes
from skcompressae.packed import split_bytes


@pytest.fixture(scope="module")
def made():
    X, decoder, codes = model(np.random.default_rng(1), n_rows=40)
    return X, decoder, PackedCodes.pack(codes)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"X": sp.csr_array}, TypeError, "X must be dense, got a sparse csr_array"),
        ({"X": lambda X: X + 1j}, TypeError, "X must hold real numbers, got complex64"),
        ({"X": lambda X: X.astype(str)}, TypeError, "X must hold real numbers, got <U"),
        ({"X": lambda _: CompresSAETransformer(k=3)}, TypeError, r"X must be the embeddings, .* got CompresSAET.*k=3"),
        (
            {"components": lambda _: CompresSAETransformer(k=3)},
            TypeError,
            "components must be the components_ of the compressor, an array of shape .*, got CompresSAET.*k=3",
        ),
        ({"X": lambda X: X[:-1]}, ValueError, r"X must have shape \(40, 12\), got \(39, 12\)"),
        ({"components": lambda D: D * np.nan}, ValueError, "components must be finite, got NaN or infinity"),
        ({"components": sp.csr_array}, TypeError, "components must be dense, got a sparse csr_array"),
        ({"components": lambda D: D[1:]}, ValueError, r"components must have 60 rows, got shape \(59, 12\)"),
    ],
)
def test_what_residual_codes_cannot_be_made_of(made, change, error, message):
    X, components, packed = made
    arguments = {"X": X, "components": components}
    arguments |= {name: changed(arguments[name]) for name, changed in change.items()}
    with pytest.raises(error, match=message):
        packed.with_residual_of(**arguments, n_bytes=2, n_iter=1)


@pytest.mark.parametrize("name", ["rows", "scales", "residual_codes"])
def test_parts_that_are_no_arrays(made, name):
    X, components, packed = made
    packed = packed.with_residual_of(X, components, n_bytes=2, n_iter=1)
    parts = {"rows": packed.rows, "scales": packed._scales, "residual_codes": packed.residual_codes}
    rest = {"n_components": 60, "k": 5, "quantizer": packed.quantizer}
    assert PackedCodes(**parts, **rest, residual_quantizer=packed.residual_quantizer) == packed
    parts[name] = parts[name].tolist()
    with pytest.raises(TypeError, match=f"{name} must be a NumPy array, got a list"):
        PackedCodes(**parts, **rest, residual_quantizer=packed.residual_quantizer)


@pytest.mark.parametrize("compressor", [CompresSAETransformer, None, np.ones((3, 2))])
def test_what_bytes_are_split_for(made, compressor):
    with pytest.raises(TypeError, match="compressor must be a CompresSAETransformer, got"):
        split_bytes(compressor, made[0], 8)


@pytest.mark.parametrize("norm", ["input", "unit", None])
@pytest.mark.parametrize("length", [1.0, 20.0])
def test_residuals_of_codes_of_other_lengths_than_said_are_warned_of(fitted, embeddings, norm, length):
    X = length * embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    compressor = copy.deepcopy(fitted).set_params(norm=norm)
    packed, right = compressor.transform_packed(X), norm != "input"
    packed.with_residual_of(X, compressor.components_, n_bytes=2, n_iter=1, normalize=right)
    if norm is None:  # projections may be of any length up to 1
        return
    message = f"normalize must be {right} for codes .*; got {not right}"
    with pytest.warns(UserWarning, match=message) if length > 1 else nullcontext():
        packed.with_residual_of(X, compressor.components_, n_bytes=2, n_iter=1, normalize=not right)


@pytest.mark.parametrize(("length", "value"), [(0.0, 1.0), (1.0, 0.0), (1e300, 1.0)])
def test_lengths_that_tell_nothing_are_not_warned_of(length, value):
    X, values = np.full((3, 4), length), np.full((3, 4), value)
    codes = PackedCodes.pack(values).with_residual_of(X, np.eye(4), n_bytes=1, n_iter=1).residual_codes
    assert codes.shape == (3, 1)
