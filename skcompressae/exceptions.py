"""The family of errors and warnings that skcompressae raises beside scikit-learn's own."""

from __future__ import annotations

__all__ = [
    "CodesFormatError",
    "DeadLatentsWarning",
    "DeviceMemoryWarning",
    "InterruptedFitWarning",
    "ModelFormatError",
]


class DeadLatentsWarning(UserWarning):
    """Many latents never fire.

    Raised after training when more than a tenth of the latents are in no code of the training rows. Codes are right all
    the same; indices are wider and weights larger than they need to be.

    See Also
    --------
    skcompressae.LatentUsageDisplay : Shows how often each latent fires.
    skcompressae.CompresSAETransformer : Its `dead_latents_fraction_` is the share.

    Examples
    --------
    >>> import warnings
    >>> import numpy as np
    >>> from skcompressae import CompresSAETransformer
    >>> from skcompressae.exceptions import DeadLatentsWarning
    >>> X = np.random.RandomState(0).standard_normal((20, 4))
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("ignore", DeadLatentsWarning)
    ...     compressor = CompresSAETransformer(n_components=64, k=1, max_iter=1, random_state=0).fit(X)
    >>> bool(compressor.dead_latents_fraction_ > 0.1)
    True
    """


class DeviceMemoryWarning(UserWarning):
    """The device ran out of memory and a batch was made smaller.

    Raised while training on a GPU. The step is tried again with half of its batch, and later batches have that size
    too; what was learned before is kept.

    See Also
    --------
    skcompressae.CompresSAETransformer : Its `batch_size` is what was too large.
    skcompressae.distributed.data_parallel : Shares a batch among GPUs.

    Examples
    --------
    >>> import warnings
    >>> from skcompressae.exceptions import DeviceMemoryWarning
    >>> warnings.filterwarnings("once", category=DeviceMemoryWarning)
    >>> issubclass(DeviceMemoryWarning, UserWarning)
    True
    """


class InterruptedFitWarning(UserWarning):
    """Ctrl-C ended a training early.

    Raised by `fit` and `partial_fit` in the place of KeyboardInterrupt. The weights so far are kept, and the message
    says what was left undone.

    See Also
    --------
    skcompressae.CompresSAETransformer : Its `n_iter_` is the number of steps that were made, and with `checkpoint_dir`
        the next `fit` goes on from them.

    Examples
    --------
    >>> import warnings
    >>> from skcompressae.exceptions import InterruptedFitWarning
    >>> warnings.filterwarnings("once", category=InterruptedFitWarning)
    >>> issubclass(InterruptedFitWarning, UserWarning)
    True
    """


class CodesFormatError(ValueError):
    """A file or buffer of codes is damaged, truncated, foreign or of a newer format version.

    Raised before any code is read from it: also the part that is intact is not returned.

    See Also
    --------
    skcompressae.PackedCodes.load : Reads files of packed codes.
    skcompressae.CodeNearestNeighbors.load : Reads saved indexes.
    skcompressae.arrow.codes_from_arrow : Reads code columns.

    Examples
    --------
    >>> from skcompressae import PackedCodes
    >>> from skcompressae.exceptions import CodesFormatError
    >>> try:
    ...     PackedCodes.from_archive(b"something else")
    ... except CodesFormatError as error:
    ...     print("refused")
    refused
    """


class ModelFormatError(ValueError):
    """A file of a fitted model or a checkpoint is damaged, truncated, foreign or of a newer format version.

    Raised before a model is made of it. Checkpoints of `checkpoint_dir` raise it too.

    See Also
    --------
    skcompressae.load_model : Reads files of models.
    skcompressae.persistence.from_reference_checkpoint : Reads the paper's checkpoints.

    Examples
    --------
    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> from skcompressae import load_model
    >>> from skcompressae.exceptions import ModelFormatError
    >>> with TemporaryDirectory() as folder:
    ...     path = Path(folder) / "model.safetensors"
    ...     size = path.write_bytes(b"something else")
    ...     try:
    ...         load_model(path)
    ...     except ModelFormatError as error:
    ...         print("refused")
    refused
    """
