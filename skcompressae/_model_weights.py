"""A fitted compressor as files hold it: its weights by name, what else decides its codes, and their fingerprints."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skcompressae._core._pursuit import PURSUITS
from skcompressae._core._rows import scales_apart
from skcompressae._model_format import array_digest

__all__ = [
    "RECORDED",
    "WEIGHT_NAMES",
    "check_finite",
    "code_digest",
    "code_settings",
    "coding_record",
    "coding_weights",
    "encoder_scale",
    "flattening",
    "scales_mean_apart",
    "settings_digest",
    "stored_weights",
    "unscaled_encoder",
    "weights_digest",
]

# What files of codes say about the model that made them: enough to know it again with other settings.
RECORDED = ("k", "norm", "flattening", "candidate_factor", "model_hash")
WEIGHT_NAMES = {"encoder_weights": "encoder_weights_", "encoder_bias": "encoder_bias_", "components": "components_"}


def stored_weights(model: Any) -> dict[str, NDArray[np.float32]]:
    """Return a fitted model's weights as its attributes hold them, by their names in files."""
    return {name: getattr(model, attribute) for name, attribute in WEIGHT_NAMES.items()}


def unscaled_encoder(model: Any) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the encoder and bias as they were trained, before rows were scaled by their latents' use."""
    scale = encoder_scale(model)
    if scale is None:
        return model.encoder_weights_, model.encoder_bias_
    return model.encoder_weights_ / scale[:, None], model.encoder_bias_ / scale


def coding_weights(model: Any) -> dict[str, NDArray[np.float32]]:
    """Return a fitted model's weights as its coding uses them, by their names in files.

    Scaled encoder rows choose latents better; where their products are the values themselves, they are as trained.
    Coding divides the scale out of the products instead, so that models of the same weights by this function may give
    codes that differ by rounding.
    """
    weights = stored_weights(model)
    if encoder_scale(model) is not None and model._resolved("coding") == "activations":
        weights["encoder_weights"], weights["encoder_bias"] = unscaled_encoder(model)
    return weights


def check_finite(weights: Mapping[str, NDArray[np.float32]]) -> None:
    """Raise ValueError if weights, by their names in files, are not finite."""
    for name, array in weights.items():
        if not np.isfinite(array).all():
            raise ValueError(f"The model's {WEIGHT_NAMES[name]} holds NaN or infinity; a broken model is not saved.")


def weights_digest(model: Any) -> str:
    """Return the SHA-256 of a fitted model's weights."""
    return array_digest(stored_weights(model))


def encoder_scale(model: Any) -> NDArray[np.float32] | None:
    """Return a fitted model's `encoder_scale_`, which pickles of versions that scaled no encoder lack."""
    return getattr(model, "encoder_scale_", None)


def scales_mean_apart(model: Any) -> bool:
    """Return a fitted model's `scales_mean_apart_`, which pickles of versions that scaled all latents alike lack."""
    return bool(getattr(model, "scales_mean_apart_", False))


def flattening(model: Any) -> float:
    """Return how far values are drawn together: not at all where they are activations, or stay as they are fitted."""
    is_scaled = model.norm is not None and model._resolved("coding") != "activations"
    return float(model._resolved("flattening")) if is_scaled else 0.0


def code_settings(model: Any) -> dict[str, Any]:
    """Return what decides a fitted model's codes beside its weights, "auto" resolved."""
    coding = model._resolved("coding")
    return {
        "k": int(min(model.k, model.components_.shape[0])),
        "coding": coding,
        "candidate_factor": float(model.candidate_factor) if coding in PURSUITS else None,
        "norm": model.norm,
        "precision": model.precision,
        "flattening": flattening(model),
        "keeps_mean": scales_apart(scales_mean_apart(model), coding, model.norm),
    }


def coding_record(model: Any) -> dict[str, Any]:
    """Return what files of codes say about the fitted model that made them, by the names in `RECORDED`."""
    known = {**code_settings(model), "model_hash": code_digest(model)}
    return {name: known[name] for name in RECORDED}


def settings_digest(weights: Mapping[str, NDArray[Any]], settings: Mapping[str, Any]) -> str:
    """Return the SHA-256 of weights, by the names of `coding_weights`, and of `code_settings`."""
    # false and 0 are left out: the hashes of all such models are what they were before there were such settings
    hashed = {name: value for name, value in settings.items() if name not in ("flattening", "keeps_mean") or value}
    return array_digest(weights, "skcompressae codes 1", json.dumps(hashed, sort_keys=True))


def code_digest(model: Any) -> str:
    """Return the SHA-256 of all that decides a fitted model's codes, as `persistence.model_hash` documents it."""
    return settings_digest(coding_weights(model), code_settings(model))
