"""Adam on the autoencoder's weights, fused with the normalisation of the decoder: every array is read once.

Invariant: each latent is updated by one thread, from its own rows, so results do not depend on the number of threads.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from skcompressae._core._arrays import FloatArray
from skcompressae._core._compiling import njit
from skcompressae._core._gathers import FAST, dot
from skcompressae._core._threads import run_blocks

__all__ = ["apply_adam"]


# error_model: a division that may raise keeps a loop from becoming vector instructions
@njit(nogil=True, fastmath=FAST, error_model="numpy")
def _adam(parameter: Any, gradient: Any, first: Any, second: Any, rates: Any) -> None:
    """Update one row in place; `rates` is (step size, beta1, beta2, sqrt of the second bias correction, eps)."""
    step, beta1, beta2, correction, eps = rates[0], rates[1], rates[2], rates[3], rates[4]
    one = parameter.dtype.type(1)
    for j in range(parameter.shape[0]):
        first[j] = beta1 * first[j] + (one - beta1) * gradient[j]
        second[j] = beta2 * second[j] + (one - beta2) * gradient[j] * gradient[j]
        parameter[j] -= step * first[j] / (np.sqrt(second[j]) / correction + eps)


@njit(nogil=True, fastmath=FAST, inline="always")
def _take_out(row: Any, direction: Any) -> None:
    """Subtract from a row its component along a unit vector."""
    along = dot(row, direction)
    for j in range(row.shape[0]):
        row[j] -= along * direction[j]


@njit(nogil=True, fastmath=FAST, error_model="numpy")
def _apply_adam_rows(
    encoder: Any,
    bias: Any,
    decoder: Any,
    encoder_gradient: Any,
    bias_gradient: Any,
    decoder_gradient: Any,
    encoder_moments: Any,
    bias_moments: Any,
    decoder_moments: Any,
    rates: Any,
    keeps_mean_latent: bool,
    rests_idle: bool,
    start: int,
    stop: int,
) -> None:
    mean_direction = decoder[0]
    for latent in range(start, stop):
        if rests_idle and bias_gradient[latent] == 0:
            continue
        row, gradient = decoder[latent], decoder_gradient[latent]
        encoder_row, encoder_slope = encoder[latent], encoder_gradient[latent]
        is_mean = keeps_mean_latent and latent == 0
        is_across = keeps_mean_latent and not is_mean
        # The component along the row would be undone by the normalisation; Adam must not see it.
        _take_out(gradient, row)
        if is_across:
            # All rows of x share the mean: along it a gradient is large, noisy, and a bias in disguise.
            _take_out(gradient, mean_direction)
            _take_out(encoder_slope, mean_direction)
        _adam(encoder_row, encoder_slope, encoder_moments[0, latent], encoder_moments[1, latent], rates)
        if not is_mean:
            _adam(row, gradient, decoder_moments[0, latent], decoder_moments[1, latent], rates)
        _adam(
            bias[latent : latent + 1],
            bias_gradient[latent : latent + 1],
            bias_moments[0, latent : latent + 1],
            bias_moments[1, latent : latent + 1],
            rates,
        )
        if is_across:
            _take_out(row, mean_direction)
            _take_out(encoder_row, mean_direction)
        norm = np.sqrt(dot(row, row))
        if norm > 0 and not is_mean:  # which other threads read, and would meet half written
            for j in range(row.shape[0]):
                row[j] /= norm


def apply_adam(
    parameters: tuple[FloatArray, FloatArray, FloatArray],
    gradients: tuple[FloatArray, FloatArray, FloatArray],
    moments: tuple[FloatArray, FloatArray, FloatArray],
    rates: FloatArray,
    *,
    keeps_mean_latent: bool = False,
    rests_idle: bool = False,
    n_threads: int,
) -> None:
    """Apply one Adam step to the encoder, its bias and the decoder, and normalise the decoder rows, in place.

    Parameters
    ----------
    parameters : encoder (n_components, n_features), bias (n_components,), decoder (n_components, n_features)
    gradients : arrays of the same shapes
        The decoder's loses its component along the decoder's rows; where a mean latent is kept, both lose theirs along
        it.
    moments : first and second moments of each, stacked on a leading axis of length 2
    rates : array of shape (5,)
        Step size divided by the first bias correction, beta1, beta2, square root of the second bias
        correction, epsilon (Kingma and Ba 2015, algorithm 1, in PyTorch's arrangement).
    keeps_mean_latent : bool, default=False
        Leave decoder row 0 as it is and keep every other one, and the encoder rows beside them, orthogonal to it.
    rests_idle : bool, default=False
        Leave a latent that has no gradient as it is, weights and moments. Otherwise its momentum carries it on, the
        further the rarer it is used (its second moments have decayed by then), until no row uses it any more.
    n_threads : int
    """
    run_blocks(
        lambda start, stop: _apply_adam_rows(
            *parameters, *gradients, *moments, rates, keeps_mean_latent, rests_idle, start, stop
        ),
        len(parameters[1]),
        64,
        n_threads,
    )  # fmt: skip
