"""Fitted models in files that execute nothing when they are loaded, and the paper's reference checkpoints."""

from __future__ import annotations

import os

from skcompressae._checks import check_compressor
from skcompressae._model_io import FORMAT_VERSION
from skcompressae._model_weights import code_digest
from skcompressae._reference_checkpoints import from_reference_checkpoint, to_reference_checkpoint
from skcompressae._transformer import CompresSAETransformer

__all__ = [
    "FORMAT_VERSION",
    "from_reference_checkpoint",
    "load_model",
    "model_hash",
    "save_model",
    "to_reference_checkpoint",
]


def save_model(model: CompresSAETransformer, path: str | os.PathLike[str], *, with_moments: bool = True) -> None:
    """Write a fitted model to one safetensors file.

    The same as :meth:`CompresSAETransformer.save`, which says what the file holds.

    Parameters
    ----------
    model : CompresSAETransformer
        Fitted.
    path : path-like
        The file; by convention its name ends in ".safetensors".
    with_moments : bool, default=True
        Whether to keep Adam's moments, which are there after `partial_fit` only and are twice the size of the weights.

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
    load_model : Reads the file.
    skcompressae.persistence.to_reference_checkpoint : The format of the paper's implementation.

    Examples
    --------
    >>> import numpy as np
    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> from skcompressae import CompresSAETransformer, load_model, save_model
    >>> X = np.random.RandomState(0).standard_normal((200, 8))
    >>> compressor = CompresSAETransformer(n_components=16, k=3, max_iter=5, random_state=0).fit(X)
    >>> with TemporaryDirectory() as folder:
    ...     save_model(compressor, Path(folder) / "compressor.safetensors")
    ...     again = load_model(Path(folder) / "compressor.safetensors")
    >>> type(again).__name__
    'CompresSAETransformer'
    """
    check_compressor(model)
    model.save(path, with_moments=with_moments)


def load_model(path: str | os.PathLike[str]) -> CompresSAETransformer:
    """Read a fitted model from a file.

    Nothing in the file is executed, and everything in it is checked before a model is made of it, a SHA-256 digest of
    the file first. The same as :meth:`CompresSAETransformer.load`.

    Parameters
    ----------
    path : path-like
        A file that `save_model` or the estimator's `save` wrote.

    Returns
    -------
    CompresSAETransformer
        Fitted.

    Raises
    ------
    skcompressae.exceptions.ModelFormatError
        If the file is damaged, truncated, foreign, or written by a newer version that this one cannot read.
    OSError
        If the file cannot be read.

    See Also
    --------
    save_model : Writes the file.
    skcompressae.persistence.from_reference_checkpoint : Reads the paper's format.

    Examples
    --------
    >>> import numpy as np
    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> from skcompressae import CompresSAETransformer, load_model, save_model
    >>> X = np.random.RandomState(0).standard_normal((200, 8))
    >>> compressor = CompresSAETransformer(n_components=16, k=3, max_iter=5, random_state=0).fit(X)
    >>> with TemporaryDirectory() as folder:
    ...     save_model(compressor, Path(folder) / "compressor.safetensors")
    ...     again = load_model(Path(folder) / "compressor.safetensors")
    >>> bool((again.transform(X) != compressor.transform(X)).nnz == 0)
    True
    """
    return CompresSAETransformer.load(path)


def model_hash(model: CompresSAETransformer) -> str:
    """Return a fingerprint of a fitted model: two models with the same one give the same codes, up to rounding.

    It is a SHA-256 over the weights and the parameters that change codes: `k`, `coding` (with `candidate_factor` where
    it is a pursuit), `norm` (with `flattening` and `scales_mean_apart_` where they matter) and `precision`, after
    "auto" is resolved.
    How the model was trained, where it runs (`device`) and the container of its codes (`sparse_output`) do not change
    it. With ``coding="activations"`` the encoder is taken without its scale (`encoder_scale_`), which coding divides
    out of its products: codes of models with one hash may then differ in their last bits.

    Parameters
    ----------
    model : CompresSAETransformer
        Fitted.

    Returns
    -------
    str
        64 hexadecimal digits.

    See Also
    --------
    save_model : Writes it into the file's header.
    skcompressae.arrow.ArrowEncoder : Writes it into the metadata of tables.

    Examples
    --------
    >>> import numpy as np
    >>> from skcompressae import CompresSAETransformer
    >>> from skcompressae.persistence import model_hash
    >>> X = np.random.RandomState(0).standard_normal((200, 8))
    >>> compressor = CompresSAETransformer(n_components=16, k=3, max_iter=5, random_state=0).fit(X)
    >>> before = model_hash(compressor)
    >>> len(before), model_hash(compressor.set_params(verbose=1)) == before
    (64, True)
    >>> model_hash(compressor.set_params(k=2)) == before
    False
    """
    check_compressor(model)
    model._check_encoding_parameters()
    return code_digest(model)
