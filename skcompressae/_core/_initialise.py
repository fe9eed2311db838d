"""Where training starts from: latents seeded with data, or the paper's random weights."""

from __future__ import annotations

import math

import numpy as np

from skcompressae._core._arrays import FloatArray, aligned

__all__ = ["check_memory", "data_weights", "is_anisotropic", "kaiming_weights"]

# Norm of the mean of unit rows above which they count as strongly anisotropic: a quarter of their energy is then one
# and the same vector.
_ANISOTROPIC_MEAN_NORM = 0.5
# What training holds of float32 numbers for each latent and feature: encoder, decoder, and Adam's two moments of both.
_N_TABLES = 6


def _normalise(rows: FloatArray) -> None:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    np.divide(rows, norms, out=rows, where=norms > 0)


def check_memory(n_components: int, n_features: int) -> None:
    """Refuse more latents than memory can hold, before a random number is drawn for any of them.

    Raises
    ------
    MemoryError
    """
    shape = (_N_TABLES, n_components, n_features)
    try:
        np.empty(shape, dtype=np.float32)  # which touches no page, and is given back at once
    except MemoryError as error:
        size = 4 * math.prod(shape) / 2**30
        raise MemoryError(
            f"n_components={n_components} latents of {n_features} features take {size:.0f} GiB in training, which "
            "cannot be had; lower n_components."
        ) from error


def is_anisotropic(sample: FloatArray) -> bool:
    """Tell whether unit rows share so much of one direction that a latent of its own must carry it.

    The decoder then keeps that latent fixed and all others orthogonal to it. Were they free, every latent would learn
    some of the mean, and scores over few latents (cut queries, code-to-code cosines) would drown in it.
    """
    return bool(np.linalg.norm(sample.mean(axis=0, dtype=np.float64)) > _ANISOTROPIC_MEAN_NORM)


def data_weights(
    sample: FloatArray, n_components: int, noise: float, random_state: np.random.RandomState
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Start one latent at the mean direction and every other at a centred training row blended with noise.

    An anisotropic embedding shares one direction among all its rows. One latent takes it over; the others describe
    differences between rows: their decoder rows are orthogonal to the mean, so that the encoder, tied to the decoder
    at the start, sees ``W (x / ||x|| - mean)`` without any bias and decoding stays linear.

    Parameters
    ----------
    sample : array of shape (n_rows, n_features), unit rows
    n_components : int
    noise : float in [0, 1]
        Share of a random direction in each latent's row.
    random_state : RandomState

    Returns
    -------
    encoder, bias, decoder : float32 arrays, (n_components, n_features), (n_components,), (n_components, n_features)
    """
    n_rows, n_features = sample.shape
    # Every row once before any row twice.
    picks = np.empty(n_components, dtype=np.intp)
    for start in range(0, n_components, n_rows):
        picks[start : start + n_rows] = random_state.permutation(n_rows)[: n_components - start]
    mean = sample.mean(axis=0, dtype=np.float64).astype(np.float32)
    directions = sample[picks] - mean
    _normalise(directions)
    random_directions = random_state.standard_normal((n_components, n_features)).astype(np.float32)
    _normalise(random_directions)
    decoder = ((1 - noise) * directions + noise * random_directions).astype(np.float32)
    mean_norm = np.linalg.norm(mean)
    if mean_norm > 0:
        mean_direction = mean / mean_norm
        if n_features > 1:  # in one dimension nothing is orthogonal to the mean
            decoder -= np.outer(decoder @ mean_direction, mean_direction)
        decoder[0] = mean_direction
    # A blend can cancel to nothing (of one feature every other one does); a zero latent would never learn.
    is_nothing = ~decoder.any(axis=1)
    decoder[is_nothing] = random_directions[is_nothing]
    _normalise(decoder)
    return aligned(decoder.copy()), np.zeros(n_components, dtype=np.float32), aligned(decoder)


def kaiming_weights(
    n_features: int, n_components: int, random_state: np.random.RandomState
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Start as the paper does: untied Kaiming-uniform weights (He et al. 2015), zero bias, unit decoder rows."""
    bound = np.sqrt(6.0 / n_features)
    encoder = random_state.uniform(-bound, bound, (n_components, n_features)).astype(np.float32)
    decoder = random_state.uniform(-1.0, 1.0, (n_components, n_features)).astype(np.float32)
    _normalise(decoder)
    return aligned(encoder), np.zeros(n_components, dtype=np.float32), aligned(decoder)
