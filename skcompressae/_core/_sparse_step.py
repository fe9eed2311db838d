"""One optimiser step of the sparse autoencoder on the CPU, by gathers over the active latents only.

Of the eight dense products of a plain implementation one remains, the encoder's. Everything else touches the
at most 4k active latents of a row:

- :func:`reconstruction_gradients` walks the rows: decode with k and with 4k latents, cosine distances, and their
  gradients with respect to the reconstructions and to the active latents.
- :func:`update_latents` walks the latents: sum the gradient of one encoder row and one decoder row while they sit
  in the first-level cache, apply Adam, normalise the decoder row. No gradient array is ever written to memory.

Invariant: each output element is summed in a fixed order by one thread, so results do not depend on the number
of threads.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from skcompressae._core._arrays import FloatArray, IndexArray
from skcompressae._core._gathers import FAST, add_combination, dot, dots
from skcompressae._core._threads import run_blocks
from skcompressae._core._topk import kth_largest

__all__ = ["group_by_latent", "reconstruction_gradients", "update_latents"]

_ENTRIES_AT_ONCE = 64  # entries of one latent whose pointers and factors are laid out before the sums


@njit(cache=True, nogil=True, fastmath=FAST)
def _cosine_gradient(x, x_hat, weight, gradient):  # type: ignore[no-untyped-def]
    """Write the gradient of ``weight * cosdist(x, x_hat)`` for a unit-norm x; return the cosine."""
    kind = x.dtype.type
    overlap = dot(x, x_hat)
    norm = np.sqrt(dot(x_hat, x_hat))
    if norm == 0:
        gradient[:] = kind(0)
        return kind(0)
    cosine = overlap / norm
    along_x = -weight / norm
    along_x_hat = weight * cosine / (norm * norm)
    for j in range(x.shape[0]):
        gradient[j] = along_x * x[j] + along_x_hat * x_hat[j]
    return cosine


@njit(cache=True, nogil=True, fastmath=FAST)
def _reconstruction_gradients_rows(  # type: ignore[no-untyped-def]
    x, decoder, indices, values, k, weights, start, stop, latent_gradients, is_leading, x_gradients, cosines
):
    n_features = x.shape[1]
    n_active = indices.shape[1]
    kind = x.dtype.type
    magnitudes = np.empty(n_active, dtype=x.dtype)
    x_hat = np.empty(n_features, dtype=x.dtype)
    # Leading entries fill these from the front, the others after position k.
    order = np.empty(n_active, dtype=np.int32)
    picks = np.empty(n_active, dtype=np.int32)
    coefficients = np.empty(n_active, dtype=x.dtype)
    products = np.empty(n_active, dtype=x.dtype)
    for i in range(start, stop):
        for a in range(n_active):
            magnitudes[a] = abs(values[i, a])
        kth = kth_largest(magnitudes, n_active, k)
        n_ties = k
        for a in range(n_active):
            n_ties -= abs(values[i, a]) > kth
        n_leading, n_others = 0, 0
        for a in range(n_active):
            magnitude = abs(values[i, a])
            leads = magnitude > kth
            if magnitude == kth and n_ties > 0:
                leads = True
                n_ties -= 1
            is_leading[i, a] = leads
            if leads:
                position = n_leading
                n_leading += 1
            else:
                position = k + n_others
                n_others += 1
            order[position] = a
            picks[position] = indices[i, a]
            coefficients[position] = values[i, a]
        x_hat[:] = kind(0)
        add_combination(x_hat, decoder, coefficients, picks, k)
        # x_gradients[0] reaches the k leading latents (both loss terms), x_gradients[1] the others.
        cosines[i, 0] = _cosine_gradient(x[i], x_hat, weights[0], x_gradients[0, i])
        add_combination(x_hat, decoder, coefficients[k:], picks[k:], n_active - k)
        cosines[i, 1] = _cosine_gradient(x[i], x_hat, weights[1], x_gradients[1, i])
        for j in range(n_features):
            x_gradients[0, i, j] += x_gradients[1, i, j]
        dots(x_gradients[0, i], decoder, picks, k, products)
        dots(x_gradients[1, i], decoder, picks[k:], n_active - k, products[k:])
        for position in range(n_active):
            latent_gradients[i, order[position]] = products[position]


def reconstruction_gradients(
    x: FloatArray,
    decoder: FloatArray,
    indices: IndexArray,
    values: FloatArray,
    k: int,
    loss_weights: tuple[float, float],
    *,
    n_threads: int,
) -> tuple[FloatArray, NDArray[np.bool_], FloatArray, FloatArray]:
    """Decode a batch with its k and with all its active latents; differentiate the two cosine distances.

    Parameters
    ----------
    x : array of shape (n_rows, n_features), unit-norm (or zero) rows
    decoder : array of shape (n_components, n_features)
    indices, values : arrays of shape (n_rows, n_active)
        Active latents of each row in ascending order and their activations.
    k : int in [1, n_active]
    loss_weights : weights of the distance with k latents and of that with all n_active, divided by n_rows
    n_threads : int

    Returns
    -------
    latent_gradients : array of shape (n_rows, n_active)
        Gradient of the loss with respect to `values`.
    is_leading : bool array of shape (n_rows, n_active)
        Whether the latent is among the k of largest magnitude.
    x_gradients : array of shape (2, n_rows, n_features)
        Gradient with respect to the decoded row that reaches leading (0) and other (1) latents.
    cosines : array of shape (n_rows, 2)
        Cosine similarity of x with both reconstructions.
    """
    n_rows, n_active = indices.shape
    latent_gradients = np.empty_like(values)
    is_leading = np.empty((n_rows, n_active), dtype=np.bool_)
    x_gradients = np.empty((2, *x.shape), dtype=x.dtype)
    cosines = np.empty((n_rows, 2), dtype=x.dtype)
    weights = np.asarray(loss_weights, dtype=x.dtype)
    run_blocks(
        lambda start, stop: _reconstruction_gradients_rows(
            x,
            decoder,
            indices,
            values,
            k,
            weights,
            start,
            stop,
            latent_gradients,
            is_leading,
            x_gradients,
            cosines,
        ),
        n_rows,
        64,
        n_threads,
    )
    return latent_gradients, is_leading, x_gradients, cosines


@njit(cache=True, nogil=True)
def _group_by_latent(indices, starts, entries):  # type: ignore[no-untyped-def]
    n_rows, n_active = indices.shape
    for i in range(n_rows):
        for a in range(n_active):
            starts[indices[i, a] + 1] += 1
    for j in range(starts.shape[0] - 1):
        starts[j + 1] += starts[j]
    position = starts[:-1].copy()
    for i in range(n_rows):
        for a in range(n_active):
            j = indices[i, a]
            entries[position[j]] = i * n_active + a
            position[j] += 1


def group_by_latent(indices: IndexArray, n_components: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Sort the batch's active entries by latent (a counting sort; rows stay in order within a latent).

    Returns
    -------
    starts : array of shape (n_components + 1,), int64
        Latent j owns ``entries[starts[j]:starts[j + 1]]``.
    entries : array of shape (n_rows * n_active,), int64
        Flat positions into `indices`.
    """
    starts = np.zeros(n_components + 1, dtype=np.int64)
    entries = np.empty(indices.size, dtype=np.int64)
    _group_by_latent(indices, starts, entries)
    return starts, entries


@njit(cache=True, nogil=True, fastmath=FAST)
def _adam(parameter, gradient, first, second, rates):  # type: ignore[no-untyped-def]
    """Update one row in place; `rates` is (step size, beta1, beta2, sqrt of the second bias correction, eps)."""
    step, beta1, beta2, correction, eps = rates[0], rates[1], rates[2], rates[3], rates[4]
    one = parameter.dtype.type(1)
    for j in range(parameter.shape[0]):
        first[j] = beta1 * first[j] + (one - beta1) * gradient[j]
        second[j] = beta2 * second[j] + (one - beta2) * gradient[j] * gradient[j]
        parameter[j] -= step * first[j] / (np.sqrt(second[j]) / correction + eps)


@njit(cache=True, nogil=True, fastmath=FAST)
def _update_latent_rows(  # type: ignore[no-untyped-def]
    x, values, latent_gradients, is_leading, x_gradients, starts, entries, start, stop,
    encoder, bias, decoder, encoder_moments, bias_moments, decoder_moments, rates, keeps_mean_latent,
):  # fmt: skip
    n_features = x.shape[1]
    n_active = values.shape[1]
    kind = x.dtype.type
    encoder_gradient = np.empty(n_features, dtype=x.dtype)
    decoder_gradient = np.empty(n_features, dtype=x.dtype)
    bias_gradient = np.empty(1, dtype=x.dtype)
    x_picks = np.empty(_ENTRIES_AT_ONCE, dtype=np.int64)
    g_picks = np.empty(_ENTRIES_AT_ONCE, dtype=np.int64)
    slopes = np.empty(_ENTRIES_AT_ONCE, dtype=x.dtype)
    activations = np.empty(_ENTRIES_AT_ONCE, dtype=x.dtype)
    n_rows = x.shape[0]
    flat_x_gradients = x_gradients.reshape(2 * n_rows, n_features)
    for latent in range(start, stop):
        encoder_gradient[:] = kind(0)
        decoder_gradient[:] = kind(0)
        bias_gradient[0] = kind(0)
        first, last = starts[latent], starts[latent + 1]
        for block in range(first, last, _ENTRIES_AT_ONCE):
            n_entries = min(_ENTRIES_AT_ONCE, last - block)
            for e in range(n_entries):
                i = entries[block + e] // n_active
                a = entries[block + e] - i * n_active
                x_picks[e] = i
                g_picks[e] = i if is_leading[i, a] else n_rows + i
                slopes[e] = latent_gradients[i, a]
                activations[e] = values[i, a]
                bias_gradient[0] += slopes[e]
            add_combination(encoder_gradient, x, slopes, x_picks, n_entries)
            add_combination(decoder_gradient, flat_x_gradients, activations, g_picks, n_entries)
        row = decoder[latent]
        # The component along the row would be undone by the normalisation; Adam must not see it.
        along = dot(decoder_gradient, row)
        for j in range(n_features):
            decoder_gradient[j] -= along * row[j]
        _adam(encoder[latent], encoder_gradient, encoder_moments[0, latent], encoder_moments[1, latent], rates)
        is_mean = keeps_mean_latent and latent == 0
        if not is_mean:
            _adam(row, decoder_gradient, decoder_moments[0, latent], decoder_moments[1, latent], rates)
        _adam(
            bias[latent : latent + 1],
            bias_gradient,
            bias_moments[0, latent : latent + 1],
            bias_moments[1, latent : latent + 1],
            rates,
        )
        if keeps_mean_latent and not is_mean:
            mean_direction = decoder[0]
            along = dot(row, mean_direction)
            for j in range(n_features):
                row[j] -= along * mean_direction[j]
        norm = np.sqrt(dot(row, row))
        if norm > 0:
            for j in range(n_features):
                row[j] /= norm


def update_latents(
    x: FloatArray,
    values: FloatArray,
    latent_gradients: FloatArray,
    is_leading: NDArray[np.bool_],
    x_gradients: FloatArray,
    starts: NDArray[np.int64],
    entries: NDArray[np.int64],
    parameters: tuple[FloatArray, FloatArray, FloatArray],
    moments: tuple[FloatArray, FloatArray, FloatArray],
    rates: FloatArray,
    *,
    keeps_mean_latent: bool = False,
    n_threads: int,
) -> None:
    """Apply one Adam step to the encoder, its bias and the decoder, and normalise the decoder rows, in place.

    Parameters
    ----------
    x : array of shape (n_rows, n_features)
    values, latent_gradients, is_leading, x_gradients
        As :func:`reconstruction_gradients` takes and gives them.
    starts, entries
        As :func:`group_by_latent` gives them.
    parameters : encoder (n_components, n_features), bias (n_components,), decoder (n_components, n_features)
    moments : first and second moments of each, stacked on a leading axis of length 2
    rates : array of shape (5,)
        Step size divided by the first bias correction, beta1, beta2, square root of the second bias
        correction, epsilon (Kingma and Ba 2015, algorithm 1, in PyTorch's arrangement).
    keeps_mean_latent : bool, default=False
        Leave decoder row 0 as it is and keep every other orthogonal to it.
    n_threads : int
    """
    encoder, bias, decoder = parameters
    encoder_moments, bias_moments, decoder_moments = moments
    run_blocks(
        lambda start, stop: _update_latent_rows(
            x, values, latent_gradients, is_leading, x_gradients, starts, entries, start, stop,
            encoder, bias, decoder, encoder_moments, bias_moments, decoder_moments, rates, keeps_mean_latent,
        ),
        encoder.shape[0],
        64,
        n_threads,
    )  # fmt: skip
