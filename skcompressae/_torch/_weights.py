"""What every engine trains: the autoencoder's weights, Adam's moments, and the settings of a step, all in NumPy."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from skcompressae._core._arrays import FloatArray, aligned_empty

__all__ = ["Engine", "Losses", "Moments", "StepLosses", "StepSettings", "Weights", "adam_rates"]


@dataclass
class Weights:
    """Encoder (n_components, n_features), bias (n_components,) and decoder with unit-norm rows, float32."""

    encoder: FloatArray
    bias: FloatArray
    decoder: FloatArray

    @property
    def n_components(self) -> int:
        """Number of latents."""
        return self.decoder.shape[0]

    @property
    def arrays(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Encoder, bias and decoder."""
        return self.encoder, self.bias, self.decoder

    def copy(self) -> Weights:
        """Return an independent copy."""
        return Weights(*(array.copy() for array in self.arrays))


@dataclass
class Moments:
    """Adam's first and second moments of each weight array, stacked on a leading axis of length 2."""

    encoder: FloatArray
    bias: FloatArray
    decoder: FloatArray
    n_steps: int = 0

    @classmethod
    def zeros_like(cls, weights: Weights) -> Moments:
        """Return moments before the first step."""
        encoder, bias, decoder = (aligned_empty((2, *array.shape), array.dtype) for array in weights.arrays)
        for moments in (encoder, bias, decoder):
            moments.fill(0)
        return cls(encoder, bias, decoder)

    @property
    def arrays(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Moments of encoder, bias and decoder."""
        return self.encoder, self.bias, self.decoder


# Nested training halves k at most so often.
_MAX_HALVINGS = 3


@dataclass(frozen=True)
class StepSettings:
    """What one optimiser step needs to know beside the rows and the learning rate."""

    k: int
    n_active: int  # latents of the second loss term: 4k, clipped to n_components
    loss_weights: tuple[float, float]
    batch_size: int
    precision: str = "float32"
    # Latent 0 decodes to the mean direction of strongly anisotropic rows; see `data_weights`.
    keeps_mean_latent: bool = False
    # The neighbourhood term (see `_core/_neighborhood.py`), on the first rows of each batch. Its weight is this times
    # the batch's mean cosine distance, so that it neither drowns a good reconstruction nor vanishes beside a poor one.
    neighborhood_weight: float = 0.0
    # Of the rows' and of the codes' similarities, in units of the spread of the rows' cosines (at least 0.1), so that
    # isotropic and anisotropic embeddings see the same neighbourhoods. More for the codes leaves room for the values to
    # be refitted afterwards (docs/research_notes_sparse.md).
    neighborhood_temperatures: tuple[float, float] = (0.5, 0.75)
    neighborhood_rows: int = 512
    # Kingma and Ba (2015), the values the paper's reference uses too; the default recipe has another beta2.
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    # Latents that no row of a batch uses keep their weights and moments; see `apply_adam`.
    rests_idle: bool = False
    # Train for k, k/2, k/4 and k/8 in turn, one of them each step: of eight steps four, two, one and one. After so many
    # steps only for k and k/2, in turn.
    is_nested: bool = False
    narrows_after: int | None = None

    def of_step(self, n_steps: int) -> StepSettings:
        """Return the settings of the step that follows `n_steps` others."""
        if not self.is_nested:
            return self
        # as often as the number of the step can be halved: as a ruler is marked
        number = n_steps + 1
        is_narrow = self.narrows_after is not None and n_steps >= self.narrows_after
        n_halvings = min(1 if is_narrow else _MAX_HALVINGS, (number & -number).bit_length() - 1)
        k = max(1, self.k >> n_halvings)
        return replace(self, k=k, n_active=min(4 * k, self.n_active), is_nested=False)


class Losses(Protocol):
    """Mean cosine similarity with k latents and with n_active, and how often each latent was among the k.

    Asking may wait for a device that still works on the step.
    """

    @property
    def cosine(self) -> float:
        """Mean cosine similarity with k latents."""

    @property
    def fired(self) -> NDArray[np.int64]:
        """How often each latent was among the k."""

    def loss(self, weights: tuple[float, float]) -> float:
        """Weighted sum of the two cosine distances."""


@dataclass(frozen=True)
class StepLosses:
    """:class:`Losses` that are known."""

    cosine: float
    cosine_wide: float
    fired: NDArray[np.int64]

    def loss(self, weights: tuple[float, float]) -> float:
        """Weighted sum of the two cosine distances."""
        return weights[0] * (1 - self.cosine) + weights[1] * (1 - self.cosine_wide)


def adam_rates(learning_rate: float, settings: StepSettings, n_steps: int) -> FloatArray:
    """Fold Adam's bias corrections after `n_steps` steps into the five rates that the update kernel takes."""
    return np.array(
        [
            learning_rate / (1 - settings.beta1**n_steps),
            settings.beta1,
            settings.beta2,
            np.sqrt(1 - settings.beta2**n_steps),
            settings.epsilon,
        ],
        dtype=np.float32,
    )


class Engine(Protocol):
    """One device's way to train: :class:`CpuEngine`, :class:`TorchEngine`."""

    def step(self, row_indices: NDArray[np.intp], learning_rate: float) -> Losses:
        """Take one optimiser step on a batch of rows; a device may still be at it afterwards."""

    def losses(self, row_indices: NDArray[np.intp]) -> Losses:
        """Evaluate rows without training."""

    def current_weights(self) -> Weights:
        """Return the weights in NumPy; they may change at the next step."""

    def current_moments(self) -> Moments:
        """Return the moments in NumPy; they may change at the next step."""
