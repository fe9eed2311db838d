"""Fitted compressors as ONNX models, for onnxruntime and other engines without Python or PyTorch."""

from __future__ import annotations

import json
import os
from typing import Any

from skcompressae._checks import check_compressor
from skcompressae._files import atomic_write
from skcompressae._model_weights import check_finite, code_settings, coding_weights, settings_digest
from skcompressae._onnx_graph import encoder_model
from skcompressae._onnx_nodes import import_onnx
from skcompressae._transformer import CompresSAETransformer
from skcompressae._version import __version__

__all__ = ["FORMAT_VERSION", "to_onnx"]

# Of inputs, outputs and metadata. A change of what they mean raises it.
FORMAT_VERSION = 1
# Protobuf's limit of a message, less room for the graph and the metadata, which take some ten kilobytes.
_MAX_WEIGHTS_BYTES = 2**31 - 2**20


def to_onnx(model: CompresSAETransformer, path: str | os.PathLike[str]) -> None:
    """Write a fitted model's encoder as an ONNX file, atomically.

    The graph takes ``embeddings``, float32 of shape (n_rows, n_features), any number of rows of any scale, and gives
    ``indices``, int32, ascending in each row, and ``values``, float32, both of shape (n_rows, k): what
    :meth:`~skcompressae.CompresSAETransformer.transform` gives with the model's `k`, `coding` and `norm` of now. An
    entry whose value is 0 is no part of the code; all values of a zero row are 0. The graph is made of standard
    operators of opset 18 and needs no custom ones.

    Parameters
    ----------
    model : CompresSAETransformer
        Fitted.
    path : path-like
        The file; by convention its name ends in ".onnx". One that exists is replaced.

    Raises
    ------
    TypeError
        If `model` is no CompresSAETransformer.
    sklearn.exceptions.NotFittedError
        If it is not fitted.
    ValueError
        If its weights are not finite, or too large for one file of the ONNX format.
    ImportError
        If onnx is not installed.
    OSError
        If the file cannot be written.

    See Also
    --------
    skcompressae.save_model : Writes the whole model, for skcompressae itself.
    skcompressae.sentence_transformers.CompresSAEModule : The encoder as a module of PyTorch.

    Notes
    -----
    The graph computes in float32, as ``precision="float32"`` does, whatever the model's `precision` is. It sums in
    another order than `transform`: values agree to rounding, and one of two latents may be chosen for the other where
    their activations are equal to rounding. Where a code has more latents than it takes to reconstruct a row exactly
    (`k` near or above n_features), its values are not determined well, and only what they decode to agrees.

    It refuses nothing: all values of a row with NaN or infinity are NaN, at indices that mean nothing, and the rows
    beside it are encoded all the same. Rows whose norm is beyond float32 have infinite values with ``norm="input"``.

    The metadata entry "skcompressae" of the file is a JSON object with ``format``, ``format_version``,
    ``n_components``, ``n_features``, ``k``, ``coding``, ``candidate_factor``, ``norm``, ``flattening`` (0 where values
    stay as they are), ``model_hash`` (see :func:`~skcompressae.model_hash`; that of the model with
    ``precision="float32"``) and ``version`` of skcompressae.

    Examples
    --------
    >>> import numpy as np
    >>> import onnxruntime
    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> from skcompressae import CompresSAETransformer
    >>> from skcompressae.onnx import to_onnx
    >>> X = np.random.RandomState(0).standard_normal((200, 8)).astype(np.float32)
    >>> compressor = CompresSAETransformer(n_components=16, k=3, max_iter=5, random_state=0).fit(X)
    >>> with TemporaryDirectory() as folder:
    ...     path = Path(folder) / "encoder.onnx"
    ...     to_onnx(compressor, path)
    ...     session = onnxruntime.InferenceSession(path)
    >>> indices, values = session.run(["indices", "values"], {"embeddings": X})
    >>> codes = compressor.transform(X)
    >>> bool((indices == codes.indices.reshape(-1, 3)).all()), bool(np.allclose(values.ravel(), codes.data, atol=1e-4))
    (True, True)
    """
    check_compressor(model)
    model._check_encoding_parameters()
    onnx = import_onnx()
    weights = coding_weights(model)
    check_finite(weights)
    n_bytes = sum(array.nbytes for array in weights.values())
    if n_bytes > _MAX_WEIGHTS_BYTES:
        raise ValueError(
            f"model must have weights of at most {_MAX_WEIGHTS_BYTES} bytes, as an ONNX file holds no more than 2 GB; "
            f"got {n_bytes} bytes for n_components={len(model.components_)}. Fit with fewer components, or encode with "
            "skcompressae itself."
        )
    k = model._effective_k(len(model.components_))  # warns like transform
    settings = {**code_settings(model), "k": k, "precision": "float32"}
    proto = encoder_model(onnx, weights, settings)
    proto.producer_name, proto.producer_version = "skcompressae", __version__
    onnx.helper.set_model_props(proto, {"skcompressae": json.dumps(_header(model, weights, settings))})
    data = proto.SerializeToString()
    onnx.checker.check_model(data, full_check=True)
    with atomic_write(path) as stream:
        stream.write(data)


def _header(model: CompresSAETransformer, weights: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    n_components, n_features = model.components_.shape
    return {
        "format": "skcompressae onnx encoder",
        "format_version": FORMAT_VERSION,
        "n_components": n_components,
        "n_features": n_features,
        **{name: settings[name] for name in ("k", "coding", "candidate_factor", "norm", "flattening")},
        "model_hash": settings_digest(weights, settings),
        "version": __version__,
    }
