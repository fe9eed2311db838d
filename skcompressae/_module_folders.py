"""The folder of a CompresSAEModule within a saved SparseEncoder: config.json and the weights beside it."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError

from skcompressae._model_format import check_format_version
from skcompressae._state_dicts import DAMAGED_STATE_ERRORS, reason_of, state_array
from skcompressae.exceptions import ModelFormatError

__all__ = ["FORMAT_VERSION", "HEADER", "MODULE_SETTINGS", "MODULE_WEIGHTS", "read_folder", "write_folder"]

# Of config.json and the weights beside it. A change of what they mean raises it and keeps a reader for the old one.
FORMAT_VERSION = 1
_KIND = "skcompressae sparse encoder module"
HEADER = {"format": _KIND, "format_version": FORMAT_VERSION}
MODULE_WEIGHTS = ("encoder_weights", "encoder_bias", "components")
MODULE_SETTINGS = ("k", "coding", "candidate_factor", "norm", "flattening", "keeps_mean")


def write_folder(module: Any, folder: str, *, safe_serialization: bool) -> None:
    """Write what `read_folder` reads, by way of sentence-transformers, and remove the weights of an earlier save.

    Parameters
    ----------
    module : Module
        Of the package, with the methods `save_config` and `save_torch_weights`.
    folder : str
        It exists.
    safe_serialization : bool
        Whether weights are written as safetensors rather than as a torch state dict.
    """
    module.save_config(folder)
    module.save_torch_weights(folder, safe_serialization=safe_serialization)
    # The two have different names, and the reader takes the safetensors where it finds both.
    Path(folder, "pytorch_model.bin" if safe_serialization else "model.safetensors").unlink(missing_ok=True)


def read_folder(
    module_type: Any, model_name_or_path: str, place: dict[str, Any]
) -> tuple[dict[str, NDArray[np.float32]], dict[str, Any], str]:
    """Return what a folder holds, by way of sentence-transformers, which finds it on a disk or on the Hub.

    Parameters
    ----------
    module_type : type
        Of the module, with the methods `load_config` and `load_torch_weights`.
    model_name_or_path : str
    place : dict
        Further arguments of these.

    Returns
    -------
    weights : dict of `MODULE_WEIGHTS` to arrays, finite; their shapes are not checked
    settings : dict of `MODULE_SETTINGS` to what the folder says, not checked
    model_hash : what the folder says is the hash of both

    Raises
    ------
    ModelFormatError
        If the folder is foreign, damaged, or written by a newer version.
    """
    subfolder = place["subfolder"]
    name = f"{model_name_or_path}/{subfolder}" if subfolder else model_name_or_path
    try:
        config = module_type.load_config(model_name_or_path, **place)
    except (ValueError, RecursionError) as error:
        raise ModelFormatError(f"{name} is damaged: its config.json cannot be read ({error}).") from error
    if not isinstance(config, dict) or config.get("format") != _KIND:
        found = (
            f"the format in its config.json is {config.get('format')!r}"
            if isinstance(config, dict)
            else (f"its config.json is a {type(config).__name__}")
        )
        raise ModelFormatError(f"{name} holds no CompresSAEModule: {found}.")
    check_format_version(name, config.get("format_version"), FORMAT_VERSION)
    try:
        state = module_type.load_torch_weights(model_name_or_path, **place)
    except (OSError, SafetensorError, *DAMAGED_STATE_ERRORS) as error:
        # what torch raises where a file is cut and it looks for a part of it before the beginning
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        raise ModelFormatError(f"{name} is damaged: its weights cannot be read ({reason_of(error)}).") from error
    if not isinstance(state, dict):
        raise ModelFormatError(f"{name} is damaged: its weights are a {type(state).__name__}.")
    # earlier versions left fitted values as they are and scaled all latents alike, and did not say so
    config = {"flattening": 0.0, "keeps_mean": False, **config}
    try:
        weights = {key: state_array(name, key, state[key]) for key in MODULE_WEIGHTS}
        return weights, {key: config[key] for key in MODULE_SETTINGS}, config["model_hash"]
    except KeyError as error:
        raise ModelFormatError(f"{name} is damaged: {error} is missing.") from error
