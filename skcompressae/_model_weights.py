"""A fitted compressor as files hold it: its weights by name, what else decides its codes, and their fingerprints."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skcompressae._core._rows import scales_apart
from skcompressae._model_format import array_digest
from skcompressae._recipes import RECIPES

__all__ = [
    "WEIGHT_NAMES",
    "code_digest",
    "code_settings",
    "finite_weights",
    "scales_mean_apart",
    "settings_digest",
    "weights_digest",
]

WEIGHT_NAMES = {"encoder_weights": "encoder_weights_", "encoder_bias": "encoder_bias_", "components": "components_"}


def _weights_of(model: Any) -> dict[str, NDArray[np.float32]]:
    return {name: getattr(model, attribute) for name, attribute in WEIGHT_NAMES.items()}


def finite_weights(model: Any) -> dict[str, NDArray[np.float32]]:
    """Return a fitted model's weights as files name them.

    Raises
    ------
    ValueError
        If they are not finite.
    """
    weights = _weights_of(model)
    for name, array in weights.items():
        if not np.isfinite(array).all():
            raise ValueError(f"The model's {WEIGHT_NAMES[name]} holds NaN or infinity; a broken model is not saved.")
    return weights


def weights_digest(model: Any) -> str:
    """Return the SHA-256 of a fitted model's weights."""
    return array_digest(_weights_of(model))


def scales_mean_apart(model: Any) -> bool:
    """Return a fitted model's `scales_mean_apart_`, which pickles of versions that scaled all latents alike lack."""
    return bool(getattr(model, "scales_mean_apart_", False))


def code_settings(model: Any) -> dict[str, Any]:
    """Return what decides a fitted model's codes beside its weights, "auto" resolved."""
    coding = RECIPES[model.recipe].coding if model.coding == "auto" else model.coding
    return {
        "k": int(min(model.k, model.components_.shape[0])),
        "coding": coding,
        "candidate_factor": float(model.candidate_factor) if coding == "pursuit" else None,
        "norm": model.norm,
        "precision": model.precision,
        "keeps_mean": scales_apart(scales_mean_apart(model), coding, model.norm),
    }


def settings_digest(weights: Mapping[str, NDArray[Any]], settings: Mapping[str, Any]) -> str:
    """Return the SHA-256 of weights, by the names of `finite_weights`, and of `code_settings`."""
    # false is left out: the hashes of all such models are what they were before there was such a setting
    hashed = {name: value for name, value in settings.items() if name != "keeps_mean" or value}
    return array_digest(weights, "skcompressae codes 1", json.dumps(hashed, sort_keys=True))


def code_digest(model: Any) -> str:
    """Return the SHA-256 of all that decides a fitted model's codes, as `persistence.model_hash` documents it."""
    return settings_digest(_weights_of(model), code_settings(model))
