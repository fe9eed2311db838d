"""What fit does before and after the training loop: starting weights, validation split, statistics of latent use."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skcompressae._core._callers import caller_level
from skcompressae._core._initialise import check_memory, data_weights, is_anisotropic, kaiming_weights
from skcompressae._core._refit import refitted_decoder
from skcompressae._core._rows import unit_rows
from skcompressae._core._threads import effective_n_threads, row_blocks
from skcompressae._encoding import BLOCK_ROWS, Encoder
from skcompressae._torch._weights import Weights

__all__ = [
    "BLOCK_ROWS",
    "MAX_SCALING_ROWS",
    "LatentUsage",
    "check_loss_weights",
    "count_validation_rows",
    "initial_weights",
    "measure_usage",
    "refit_components",
    "split_rows",
    "usage_factors",
]

# Rows encoded after training for the usage statistics; the standard error of a share p is then below sqrt(p / 1e5).
_MAX_STATISTICS_ROWS = 100_000
# Rows encoded before that to scale the encoder by a low power of the latents' use.
MAX_SCALING_ROWS = 16_384
# Rows whose codes the decoder is fitted to.
_MAX_REFIT_ROWS = 65_536
# How far rare latents are preferred: 6 saves more of them, and takes 0.002 from cut queries on one set.
_MAX_RARITY = 4.0
_MAX_VALIDATION_ROWS = 4096
# Numbers in the sample of rows whose mean and members seed the initial latents (8 MB), unless n_components rows hold
# more: a memory-mapped file must not be read whole to seed a few latents.
_MAX_INITIAL_VALUES = 2**21
# Share of a random direction in each initial latent: enough that no latent merely copies one row.
_INITIAL_NOISE = 0.5


@dataclass(frozen=True)
class LatentUsage:
    """How `n_rows` training rows use the latents: counts and root mean squares, both of shape (n_components,)."""

    counts: NDArray[np.int64]
    rms: NDArray[np.float64]
    n_rows: int

    @property
    def dead_fraction(self) -> float:
        """Share of latents that no row uses."""
        return float(np.mean(self.counts == 0))


def check_loss_weights(loss_weights: Any) -> tuple[float, float]:
    """Return the two weights as floats, or raise ValueError."""
    weights = list(loss_weights)
    if len(weights) != 2 or not all(isinstance(weight, Real) for weight in weights):
        raise ValueError(f"loss_weights must be two numbers; got {loss_weights!r}.")
    first, second = (float(weight) for weight in weights)
    if not (np.isfinite([first, second]).all() and min(first, second) >= 0 and first + second > 0):
        raise ValueError(f"loss_weights must be finite, at least 0 and not both 0; got {loss_weights!r}.")
    return first, second


def count_validation_rows(n_samples: int, validation_fraction: float) -> int:
    """Return how many rows :func:`split_rows` sets aside."""
    return min(int(validation_fraction * n_samples), _MAX_VALIDATION_ROWS)


def split_rows(
    n_samples: int, validation_fraction: float, random_state: np.random.RandomState
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Split row numbers into training and validation, both ascending; the latter may be empty."""
    n_validation = count_validation_rows(n_samples, validation_fraction)
    if n_validation == 0:
        return np.arange(n_samples), np.arange(0)
    validation = np.sort(random_state.choice(n_samples, n_validation, replace=False))
    is_training = np.ones(n_samples, dtype=bool)
    is_training[validation] = False
    return np.flatnonzero(is_training), validation


def initial_weights(
    rows: NDArray[Any], n_components: int, init: str, random_state: np.random.RandomState
) -> tuple[Weights, bool]:
    """Return starting weights, seeded with a sample of the rows or at random, and whether latent 0 is the mean's.

    Parameters
    ----------
    rows : array of shape (n_samples, n_features)
    n_components : int
    init : {"data", "kaiming"}
    random_state : RandomState

    Raises
    ------
    MemoryError
        If there is too little for so many components.
    """
    check_memory(n_components, rows.shape[1])
    if init == "data":
        n_picks = max(n_components, _MAX_INITIAL_VALUES // rows.shape[1])
        picks = _sample_rows(len(rows), n_picks, random_state)
        sample, norms = unit_rows(rows[picks])
        sample = sample[norms > 0]
        if len(sample):
            has_mean_latent = n_components > 1 and rows.shape[1] > 1 and is_anisotropic(sample)
            return Weights(*data_weights(sample, n_components, _INITIAL_NOISE, random_state)), has_mean_latent
        warnings.warn(
            f"init='data' found nothing to start from: all {len(picks)} rows that it looked at are zero. Training "
            "starts from random weights; begin partial_fit with a block of other rows.",
            UserWarning,
            stacklevel=caller_level(),
        )
    return Weights(*kaiming_weights(rows.shape[1], n_components, random_state)), False


def measure_usage(
    rows: NDArray[Any],
    row_numbers: NDArray[np.intp],
    encoder: Encoder,
    k: int,
    random_state: np.random.RandomState,
    *,
    max_rows: int = _MAX_STATISTICS_ROWS,
) -> LatentUsage:
    """Encode (a sample of) the rows and count how the latents are used, at unit reconstruction norm."""
    picks = row_numbers[_sample_rows(len(row_numbers), max_rows, random_state)]
    counts = np.zeros(encoder.n_components, dtype=np.int64)
    squares = np.zeros(encoder.n_components)
    for start, stop in row_blocks(len(picks), BLOCK_ROWS):
        indices, values = encoder.encode(rows[picks[start:stop]], k, norm="unit", dtype=np.float32)
        latents, weights = indices.reshape(-1), values.reshape(-1).astype(np.float64)
        counts += np.bincount(latents[weights != 0], minlength=encoder.n_components)
        squares += np.bincount(latents, weights=weights**2, minlength=encoder.n_components)
    return LatentUsage(counts, np.sqrt(squares / len(picks)), len(picks))


def usage_factors(counts: NDArray[np.int64], power: float, *, keeps_mean_latent: bool) -> NDArray[np.float32]:
    """Return by what to scale the encoder row of each latent, so that codes prefer latents that many rows use.

    The factor is ``max((1 + u) / (1 + v), min(4, v / (2 u)))^power``, u the latent's count of uses relative to the mean
    and v the median of that. The first part prefers latents of many rows; the second keeps those of fewer than half the
    median from dying of that. Where latent 0 is the mean's, its factor is 1.

    Parameters
    ----------
    counts : array of shape (n_components,)
    power : float
    keeps_mean_latent : bool

    Returns
    -------
    factors : float32 array of shape (n_components,)
    """
    # few uses in all say little: they are taken relative to one use a latent
    uses = counts / max(1.0, counts.mean())
    median = np.median(uses)
    rarity = np.minimum(_MAX_RARITY, median / (2 * np.maximum(uses, np.finfo(np.float64).tiny)))
    factors = np.maximum((1 + uses) / (1 + median), rarity) ** power
    if keeps_mean_latent:
        factors[0] = 1
    return factors.astype(np.float32)


def refit_components(
    rows: NDArray[Any],
    row_numbers: NDArray[np.intp],
    encoder: Encoder,
    components: NDArray[np.float32],
    k: int,
    *,
    norm: str | None,
    keeps_mean: bool,
) -> NDArray[np.float32]:
    """Encode (a sample of) the rows and return the decoder that reconstructs them best from these codes.

    Parameters
    ----------
    rows : array of shape (n_samples, n_features)
    row_numbers : array of those that may be sampled
    encoder : Encoder
        With `components` as its decoder.
    components : array of shape (n_components, n_features), unit-norm rows
    k : int
    norm : {"unit", None}
        Of the codes.
    keeps_mean : bool
        Whether latent 0 stays as it is and the others orthogonal to it.
    """
    # random numbers of its own: with or without this, the fit draws the same
    picks = row_numbers[_sample_rows(len(row_numbers), _MAX_REFIT_ROWS, np.random.RandomState(0))]
    indices = np.empty((len(picks), k), dtype=np.int32)
    values = np.empty((len(picks), k), dtype=np.float32)
    for start, stop in row_blocks(len(picks), BLOCK_ROWS):
        indices[start:stop], values[start:stop] = encoder.encode(
            rows[picks[start:stop]], k, norm=norm, dtype=np.float32
        )
    return refitted_decoder(
        components,
        lambda start, stop: unit_rows(rows[picks[start:stop]])[0],
        indices,
        values,
        keeps_mean=keeps_mean,
        n_threads=effective_n_threads(),
    )


def _sample_rows(n_rows: int, n_picks: int, random_state: np.random.RandomState) -> NDArray[np.intp]:
    """Draw up to `n_picks` distinct row numbers, ascending so that a memory-mapped file is read forwards."""
    if n_rows <= n_picks:
        return np.arange(n_rows)
    return np.sort(random_state.choice(n_rows, n_picks, replace=False))
