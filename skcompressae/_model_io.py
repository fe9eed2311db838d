"""What a model file holds: the fitted state of a compressor, checked both ways. The container is `_model_format`."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted

from skcompressae._core._arrays import aligned
from skcompressae._fitting import check_loss_weights
from skcompressae._model_format import array_digest, check_array, read_model_file, write_model_file
from skcompressae._model_weights import (
    WEIGHT_NAMES,
    check_finite,
    code_digest,
    encoder_scale,
    scales_mean_apart,
    stored_weights,
    weights_digest,
)
from skcompressae._residual_codes import fitted_quantizer
from skcompressae._torch._device_choice import torch_version
from skcompressae._version import __version__
from skcompressae.exceptions import ModelFormatError
from skcompressae.packed import ResidualQuantizer

__all__ = ["FORMAT_VERSION", "RESOLVED_PARAMETERS", "ModelFileMixin", "library_versions", "plain_parameter"]

# A change of what the header or an array means raises this, keeps a reader for the old version, and adds a golden file
# to tests/data. A new parameter or a new optional entry does not: readers take what is absent at its default.
FORMAT_VERSION = 1
_KIND = "skcompressae model"
# Where and when checkpoints are written is a matter of the machine that fits, not of the model.
_UNSAVED_PARAMETERS = ("checkpoint_dir", "checkpoint_interval")
# What "auto" means may change with a version; the codes of a saved model may not. So files hold what it stands for.
RESOLVED_PARAMETERS = ("coding", "flattening")
_CURVES = {
    "loss_curve": ("loss_curve_", "float64"),
    "validation_loss_curve": ("validation_loss_curve_", "float64"),
    "validation_steps": ("validation_steps_", "int64"),
}
# What coding="auto" meant when files still held it.
_FIRST_CODINGS = {"default": "least_squares", "paper": "activations"}
_MOMENTS = ("encoder_moments", "bias_moments", "decoder_moments")

Model = TypeVar("Model", bound="ModelFileMixin")


def library_versions() -> dict[str, str]:
    """Return the versions that a file records, of what computed it."""
    import safetensors
    import sklearn

    return {
        "python": platform.python_version(),
        "skcompressae": __version__,
        "numpy": np.__version__,
        "scikit-learn": sklearn.__version__,
        "torch": torch_version(),
        "safetensors": safetensors.__version__,
    }


def plain_parameter(name: str, value: Any) -> Any:
    """Return a parameter as JSON can hold it."""
    if isinstance(value, (tuple, list)):
        return [plain_parameter(name, item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if name == "random_state" and not isinstance(value, (int, type(None))):
        return None
    if not isinstance(value, (bool, int, float, str, type(None))):
        raise TypeError(f"{name}={value!r} cannot be written to a model file; only numbers, texts and None can.")
    return value


class ModelFileMixin:
    """`save` and `load` of a fitted compressor."""

    def save(self, path: str | os.PathLike[str], *, with_moments: bool = True) -> None:
        """Write the fitted model to one file, which :meth:`load` reads without executing anything in it.

        The file is in the safetensors format and replaced in one step: whatever happens, `path` is the old file or the
        new one. It holds parameters (for `coding` and `flattening` what "auto" stands for), weights, names of features,
        statistics of latent use and loss curves. It does not hold a `random_state` that is a RandomState instance (None
        takes its place), `checkpoint_dir` and `checkpoint_interval`, callbacks, nor what :meth:`set_output` set.

        Parameters
        ----------
        path : path-like
            The file; by convention its name ends in ".safetensors".
        with_moments : bool, default=True
            Whether to keep Adam's moments, which are there after :meth:`partial_fit` only and are twice the size of the
            weights. Without them, further training starts from zero moments.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            If the model is not fitted.
        ValueError
            If :meth:`load` would refuse the file: weights are not finite, an attribute was set to an array of another
            dtype or shape, a parameter to what it cannot be, or the names of features take more than 16 MiB.

        See Also
        --------
        load : Reads the file.
        skcompressae.persistence.to_reference_checkpoint : Writes the weights alone, for the paper's implementation.

        Examples
        --------
        >>> import numpy as np
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from skcompressae import CompresSAETransformer
        >>> X = np.random.RandomState(0).standard_normal((200, 8))
        >>> compressor = CompresSAETransformer(n_components=16, k=3, max_iter=5, random_state=0).fit(X)
        >>> with TemporaryDirectory() as folder:
        ...     path = Path(folder) / "compressor.safetensors"
        ...     compressor.save(path)
        ...     again = CompresSAETransformer.load(path)
        >>> bool((again.transform(X) != compressor.transform(X)).nnz == 0)
        True
        """
        check_is_fitted(self)
        model: Any = self
        model._validate_params()  # `load` would refuse them, and call the file damaged
        check_loss_weights(model.loss_weights)
        weights = stored_weights(model)
        check_finite(weights)
        arrays: dict[str, NDArray[Any]] = {
            **weights,
            "latent_counts": model.latent_counts_,
            "latent_rms": model.latent_rms_,
            **{name: getattr(model, attribute) for name, (attribute, _) in _CURVES.items()},
        }
        scale = encoder_scale(model)
        if scale is not None:
            arrays["encoder_scale"] = scale
        residual = fitted_quantizer(model)
        if residual is not None:
            arrays["residual_centroids"] = residual.centroids
            if residual.rotation is not None:
                arrays["residual_rotation"] = residual.rotation
        moments = model._moments if with_moments else None
        if moments is not None:
            arrays.update(zip(_MOMENTS, moments[:3], strict=True))
        names = getattr(model, "feature_names_in_", None)
        parameters = {
            name: plain_parameter(name, value)
            for name, value in model.get_params(deep=False).items()
            if name not in _UNSAVED_PARAMETERS
        }
        for name in RESOLVED_PARAMETERS:
            parameters[name] = plain_parameter(name, model._resolved(name))
        header = {
            "class": type(model).__name__,
            "versions": library_versions(),
            "parameters": parameters,
            "n_features_in": int(model.n_features_in_),
            "feature_names_in": None if names is None else [str(name) for name in names],
            "training": {
                "k": int(model.k_),
                "has_mean_latent": bool(model.has_mean_latent_),
                "scales_mean_apart": scales_mean_apart(model),
                "n_iter": int(model.n_iter_),
                "loss": _last_finite(model.loss_curve_),
                "validation_loss": _last_finite(model.validation_loss_curve_),
                "n_rows_counted": int(model.n_rows_counted_),
                "dead_latents_fraction": float(model.dead_latents_fraction_) if model.n_rows_counted_ else None,
                "moments_n_steps": None if moments is None else int(moments[3]),
                **({} if residual is None else {"residual_norm": model.residual_norm_}),
            },
            "weights_sha256": weights_digest(model),
            "model_hash": code_digest(model),
        }
        try:
            _build(type(model), "the model", header, arrays)
        except ModelFormatError as error:
            raise ValueError(f"A model that cannot be loaded again is not saved: {error}") from error
        write_model_file(path, _KIND, FORMAT_VERSION, header, arrays)

    @classmethod
    def load(cls: type[Model], path: str | os.PathLike[str]) -> Model:
        """Read a model written by :meth:`save`.

        A SHA-256 digest of the file is compared first, then shapes, dtypes and parameters, and only then is a model
        made of it.

        Parameters
        ----------
        path : path-like
            The file.

        Returns
        -------
        CompresSAETransformer
            Fitted; encodes as the saved one does, and trains on from where that was.

        Raises
        ------
        skcompressae.exceptions.ModelFormatError
            If the file is damaged, truncated, foreign, or written by a newer version that this one cannot read.
        OSError
            If the file cannot be read.

        See Also
        --------
        save : Writes the file.
        skcompressae.model_hash : Tells whether two models give the same codes, up to rounding.

        Examples
        --------
        >>> import numpy as np
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from skcompressae import CompresSAETransformer
        >>> X = np.random.RandomState(0).standard_normal((200, 8))
        >>> compressor = CompresSAETransformer(n_components=16, k=3, max_iter=5, random_state=0).fit(X)
        >>> with TemporaryDirectory() as folder:
        ...     compressor.save(Path(folder) / "compressor.safetensors")
        ...     again = CompresSAETransformer.load(Path(folder) / "compressor.safetensors")
        >>> again.k, again.n_features_in_
        (3, 8)
        """
        header, arrays = read_model_file(path, _KIND, FORMAT_VERSION)
        try:
            return _build(cls, path, header, arrays)
        except ModelFormatError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise ModelFormatError(f"{path} is damaged: its header does not describe a model ({error!r}).") from error


def _last_finite(curve: NDArray[np.float64]) -> float | None:
    return float(curve[-1]) if len(curve) and np.isfinite(curve[-1]) else None


def _build(
    cls: type[Model], path: str | os.PathLike[str], header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]
) -> Model:
    """Make the estimator of a file's header and arrays, checking everything that its methods take on trust.

    `path` is what errors name.
    """
    if header["class"] != cls.__name__:
        raise ModelFormatError(f"{path} holds a {header['class']}; it cannot be loaded as a {cls.__name__}.")
    model: Any = cls()
    parameters = dict(header["parameters"])
    unknown = sorted(set(parameters) - (set(model.get_params(deep=False)) - set(_UNSAVED_PARAMETERS)))
    if unknown:
        raise ModelFormatError(
            f"{path} has the parameter(s) {', '.join(unknown)}, unknown to skcompressae {__version__}; it was "
            f"written by skcompressae {header['versions']['skcompressae']}."
        )
    if isinstance(parameters.get("loss_weights"), list):
        parameters["loss_weights"] = tuple(parameters["loss_weights"])
    if parameters.get("coding") == "auto":
        parameters["coding"] = _FIRST_CODINGS[parameters["recipe"]]
    parameters.setdefault("flattening", 0.0)  # files that do not know it hold models whose codes were as fitted
    model.set_params(**parameters)
    model._validate_params()
    check_loss_weights(model.loss_weights)

    def count(value: Any, smallest: int, largest: int | None = None) -> int:
        if type(value) is not int or value < smallest or (largest is not None and value > largest):
            raise ModelFormatError(f"{path} is damaged: its header has a count of {value!r}.")
        return value

    training = header["training"]
    n_features = count(header["n_features_in"], 1)
    components = check_array(path, arrays, "components", "float32", (None, n_features))
    n_components = len(components)
    if n_components == 0:
        raise ModelFormatError(f"{path} holds no latents.")
    shapes = {"encoder_weights": (n_components, n_features), "encoder_bias": (n_components,)}
    weights = {name: check_array(path, arrays, name, "float32", shape) for name, shape in shapes.items()}
    weights["components"] = components
    if array_digest(weights) != header["weights_sha256"]:
        raise ModelFormatError(f"{path} is damaged: its weights are not those that its header describes.")
    for name, attribute in WEIGHT_NAMES.items():
        setattr(model, attribute, aligned(weights[name]))
    model.n_features_in_ = n_features
    if header["feature_names_in"] is not None:
        names = header["feature_names_in"]
        if len(names) != n_features or not all(isinstance(name, str) for name in names):
            raise ModelFormatError(f"{path} is damaged: its feature names are not {n_features} texts.")
        model.feature_names_in_ = np.array(names, dtype=object)

    model.k_ = count(training["k"], 1, n_components)
    model.has_mean_latent_ = bool(training["has_mean_latent"])
    # the codes of a model that was saved before there was this way of scaling stay what they were
    model.scales_mean_apart_ = bool(training.get("scales_mean_apart", False))
    model.n_iter_ = count(training["n_iter"], 0)
    model.n_rows_counted_ = count(training["n_rows_counted"], 0)
    dead_fraction = training["dead_latents_fraction"]
    model.dead_latents_fraction_ = float("nan") if dead_fraction is None else float(dead_fraction)
    model.latent_counts_ = check_array(path, arrays, "latent_counts", "int64", (n_components,))
    model.latent_rms_ = check_array(path, arrays, "latent_rms", "float64", (n_components,))
    if model.latent_counts_.min() < 0 or model.latent_rms_.min() < 0:
        raise ModelFormatError(f"{path} is damaged: its statistics of latent use are negative.")
    for name, (attribute, dtype) in _CURVES.items():
        setattr(model, attribute, check_array(path, arrays, name, dtype, (None,), is_finite=False))
    if len(model.validation_steps_) != len(model.validation_loss_curve_):
        raise ModelFormatError(f"{path} is damaged: its validation curves have different lengths.")
    model.encoder_scale_ = None
    if "encoder_scale" in arrays:
        model.encoder_scale_ = check_array(path, arrays, "encoder_scale", "float32", (n_components,))
        if model.encoder_scale_.min() <= 0:
            raise ModelFormatError(f"{path} is damaged: its encoder's scale is not positive.")
    model.residual_quantizer_, model.residual_norm_ = None, model.norm
    if "residual_centroids" in arrays:
        shapes_of = {"residual_centroids": (None, None, None), "residual_rotation": (None, n_features)}
        residual = [check_array(path, arrays, name, "float32", shapes_of[name]) for name in shapes_of if name in arrays]
        model.residual_quantizer_ = ResidualQuantizer(*residual)
        model.residual_norm_ = training["residual_norm"]
        if model.residual_quantizer_.n_features != n_features or model.residual_norm_ not in ("input", "unit", None):
            raise ModelFormatError(f"{path} is damaged: its residual codes are not of {n_features} features.")
    known = {*WEIGHT_NAMES, *_CURVES, "latent_counts", "latent_rms", "encoder_scale"}
    known |= {"residual_centroids", "residual_rotation"}
    model._moments = None
    if training["moments_n_steps"] is not None:
        known.update(_MOMENTS)
        moment_shapes = ((2, n_components, n_features), (2, n_components), (2, n_components, n_features))
        moments = (
            check_array(path, arrays, name, "float32", shape)
            for name, shape in zip(_MOMENTS, moment_shapes, strict=True)
        )
        model._moments = (*moments, count(training["moments_n_steps"], 0))
    if unexpected := sorted(set(arrays) - known):
        raise ModelFormatError(f"{path} holds arrays that no model has: {', '.join(map(repr, unexpected))}.")
    # Last, as it reads the parameters: they may name a recipe or a coding that the weights were not saved with.
    if code_digest(model) != header["model_hash"]:
        raise ModelFormatError(f"{path} is damaged: parameters and weights do not have the hash in its header.")
    return model
