"""The paper's reference checkpoints, torch state dicts of three tensors, in and out.

========= ============ ==============================================================================
key       shape        here
========= ============ ==============================================================================
encoder_w (d, m)       `encoder_weights_`, transposed
encoder_b (m,)         `encoder_bias_`
decoder_w (m, d)       `components_`; its rows are near unit norm, as the reference normalises them before a step
========= ============ ==============================================================================
"""

from __future__ import annotations

import errno
import io
import os
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import check_scalar

from skcompressae._checks import check_compressor
from skcompressae._files import atomic_write
from skcompressae._fitting import measure_usage
from skcompressae._model_weights import check_finite, stored_weights, unscaled_encoder
from skcompressae._state_dicts import DAMAGED_STATE_ERRORS, reason_of, state_array
from skcompressae._transformer import CompresSAETransformer
from skcompressae.exceptions import ModelFormatError

__all__ = ["from_reference_checkpoint", "to_reference_checkpoint"]

_KEYS = ("encoder_w", "encoder_b", "decoder_w")
# A row drifts from norm 1 by one optimiser step at most; beyond these it is another kind of model.
_DECODER_NORMS = (0.5, 2.0)
_DOS_FOLDER = 0x10  # among the attributes of an entry of a zip file


def from_reference_checkpoint(
    path: str | os.PathLike[str], *, k: int, norm: str | None = None, X: ArrayLike | None = None
) -> CompresSAETransformer:
    """Read a checkpoint of the paper's reference implementation as a fitted compressor.

    The model has ``recipe="paper"``, so that its codes are the reference's: the encoder's own activations, and with
    ``norm=None`` at the reference's scale. Set ``coding="least_squares"`` for better reconstructions from the same
    weights. The file is read with torch's ``weights_only=True``: nothing in it is executed.

    Parameters
    ----------
    path : path-like
        A state dict written by ``torch.save``: `encoder_w` of shape (n_features, n_components), `encoder_b` of shape
        (n_components,) and `decoder_w` of shape (n_components, n_features).
    k : int
        Nonzeros per code that the model was trained with; the file does not say.
    norm : {"input", "unit", None}, default=None
        As in :class:`~skcompressae.CompresSAETransformer`.
    X : array-like of shape (n_samples, n_features) or None, default=None
        Rows like the training rows, to measure `latent_counts_` and `latent_rms_` on; names of their columns become the
        model's. Without them `n_rows_counted_` is
        0, `latent_counts_` all 0, `dead_latents_fraction_` NaN and `latent_rms_` all 1:
        ``transform_query(n_nonzero=...)`` then keeps the entries of largest magnitude, and weighs no latent by its use.

    Returns
    -------
    CompresSAETransformer
        Fitted. Its `n_iter_` is 0 and its loss curves are empty.

    Raises
    ------
    skcompressae.exceptions.ModelFormatError
        If the file is no such checkpoint, or damaged.
    TypeError
        If `k` is no integer.
    ValueError
        If `k` is not from 1 to n_components, or X does not fit the weights.
    OSError
        If the file cannot be read.

    See Also
    --------
    to_reference_checkpoint : Writes one.
    skcompressae.load_model : Reads our own format, which loses nothing.

    Examples
    --------
    >>> import numpy as np
    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> from skcompressae import CompresSAETransformer
    >>> from skcompressae.persistence import from_reference_checkpoint, to_reference_checkpoint
    >>> X = np.random.RandomState(0).standard_normal((200, 8)).astype(np.float32)
    >>> model = CompresSAETransformer(n_components=16, k=3, recipe="paper", norm=None, max_iter=5, random_state=0)
    >>> codes = model.fit_transform(X)
    >>> with TemporaryDirectory() as folder:
    ...     path = Path(folder) / "model.pt"
    ...     to_reference_checkpoint(model, path)
    ...     again = from_reference_checkpoint(path, k=3)
    >>> bool((again.transform(X) != codes).nnz == 0)
    True
    """
    encoder, bias, decoder = _read(Path(path))
    n_components, n_features = decoder.shape
    if isinstance(k, bool):  # an int to Python
        raise TypeError("k must be an instance of int, not bool.")
    check_scalar(k, "k", (int, np.integer), min_val=1, max_val=n_components)
    model = CompresSAETransformer(n_components=n_components, k=int(k), recipe="paper", norm=norm)
    model._validate_params()
    model.encoder_weights_ = np.ascontiguousarray(encoder.T)
    model.encoder_bias_ = bias
    model.components_ = decoder
    model.n_features_in_ = n_features
    model.k_ = int(k)
    model.has_mean_latent_ = model.scales_mean_apart_ = False
    model.encoder_scale_ = None
    model.residual_quantizer_, model.residual_norm_ = None, model.norm
    model.n_iter_ = 0
    model.loss_curve_ = np.empty(0)
    model.validation_loss_curve_ = np.empty(0)
    model.validation_steps_ = np.empty(0, dtype=np.int64)
    model._moments = None
    model.latent_counts_ = np.zeros(n_components, dtype=np.int64)
    model.latent_rms_ = np.ones(n_components)
    model.n_rows_counted_ = 0
    model.dead_latents_fraction_ = float("nan")
    if X is not None:
        rows = model._check_rows(X, reset=True)
        if rows.shape[1] != n_features:
            raise ValueError(f"X must have the checkpoint's {n_features} features; got {rows.shape[1]}.")
        usage = measure_usage(rows, np.arange(len(rows)), model._encoder(), model.k_, np.random.RandomState(0))
        model.latent_counts_, model.latent_rms_ = usage.counts, usage.rms
        model.n_rows_counted_, model.dead_latents_fraction_ = usage.n_rows, usage.dead_fraction
    return model


def to_reference_checkpoint(model: CompresSAETransformer, path: str | os.PathLike[str]) -> None:
    """Write a fitted model's weights as a checkpoint of the paper's reference implementation, atomically.

    The reference computes the codes of ``coding="activations", norm=None``; `k` is its constructor's to know. Other
    parameters, statistics, the scale of the encoder (`usage_power`) and names of features are lost.

    Parameters
    ----------
    model : CompresSAETransformer
        Fitted.
    path : path-like
        The file; one that exists is replaced.

    Raises
    ------
    TypeError
        If `model` is no CompresSAETransformer.
    sklearn.exceptions.NotFittedError
        If it is not fitted.
    ValueError
        If its weights are not finite.

    See Also
    --------
    from_reference_checkpoint : Reads one.
    skcompressae.save_model : Our own format, which loses nothing.

    Examples
    --------
    >>> import numpy as np
    >>> import torch
    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> from skcompressae import CompresSAETransformer
    >>> from skcompressae.persistence import to_reference_checkpoint
    >>> X = np.random.RandomState(0).standard_normal((200, 8)).astype(np.float32)
    >>> model = CompresSAETransformer(n_components=16, k=3, recipe="paper", max_iter=5, random_state=0).fit(X)
    >>> with TemporaryDirectory() as folder:
    ...     to_reference_checkpoint(model, Path(folder) / "model.pt")
    ...     state = torch.load(Path(folder) / "model.pt", weights_only=True)
    >>> {key: tuple(tensor.shape) for key, tensor in state.items()}
    {'encoder_w': (8, 16), 'encoder_b': (16,), 'decoder_w': (16, 8)}
    """
    import torch

    check_compressor(model)
    encoder, bias = unscaled_encoder(model)  # the reference's values are activations
    check_finite({**stored_weights(model), "encoder_weights": encoder, "encoder_bias": bias})
    arrays = (encoder.T, bias, model.components_)
    tensors = (torch.tensor(np.ascontiguousarray(array), device="cpu") for array in arrays)
    state = dict(zip(_KEYS, tensors, strict=True))
    written = io.BytesIO()  # torch hides why a stream of a file fails, such as a full disk
    torch.save(state, written)
    with atomic_write(path) as stream:
        stream.write(written.getbuffer())


def _read(path: Path) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Return encoder_w, encoder_b and decoder_w, finite and of shapes that fit each other."""
    import torch

    with path.open("rb") as stream:
        try:
            _check_sums(stream)
            stream.seek(0)
            state: Any = torch.load(stream, map_location="cpu", weights_only=True)
        except OSError:
            raise
        except DAMAGED_STATE_ERRORS as error:
            raise ModelFormatError(
                f"{path} is no torch state dict that loads with weights_only=True, or it is damaged: {reason_of(error)}"
            ) from error
    if not isinstance(state, dict) or set(state) != set(_KEYS):
        keys = sorted(map(str, state))[:8] if isinstance(state, dict) else type(state).__name__
        raise ModelFormatError(f"{path} must hold {', '.join(_KEYS)} and nothing else; got {keys}.")
    arrays = [state_array(path, key, state[key]) for key in _KEYS]
    encoder, bias, decoder = arrays
    shapes = [array.shape for array in arrays]
    if decoder.ndim != 2 or 0 in decoder.shape or shapes != [decoder.shape[::-1], decoder.shape[:1], decoder.shape]:
        raise ModelFormatError(
            f"{path} must hold encoder_w of shape (d, m), encoder_b of shape (m,) and decoder_w of shape (m, d); got "
            f"{shapes[0]}, {shapes[1]} and {shapes[2]}."
        )
    norms = np.linalg.norm(decoder.astype(np.float64), axis=1)
    if norms.min() < _DECODER_NORMS[0] or norms.max() > _DECODER_NORMS[1]:
        raise ModelFormatError(
            f"{path}: the rows of decoder_w must have norms near 1; got norms from {norms.min():.3g} to "
            f"{norms.max():.3g}. It is no checkpoint of the reference, which normalises them at every step."
        )
    return encoder, bias, decoder


def _check_sums(stream: BinaryIO) -> None:
    """Compare the checksums of a zip file, as torch does not; the older format of torch.save has none."""
    if not zipfile.is_zipfile(stream):
        return
    try:
        with zipfile.ZipFile(stream) as archive:
            for entry in archive.infolist():
                # torch.save compresses nothing, and what is not compressed cannot grow
                if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
                    raise zipfile.BadZipFile("it is a compressed zip file")
                # where one is called a folder, torch reads nothing and gives memory as it was
                if entry.external_attr & _DOS_FOLDER:
                    raise zipfile.BadZipFile(f"it says that {entry.filename} is a folder")
            if (name := archive.testzip()) is not None:
                raise zipfile.BadZipFile(f"the CRC-32 of {name} is not the one that it records")
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise zipfile.BadZipFile("an entry lies before the beginning of the file") from error
