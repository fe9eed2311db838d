"""The gradients of a batch on the CPU, by gathers over the active latents only.

Of the eight dense products of a plain implementation one remains, the encoder's. Everything else touches the
at most 4k active latents of a row:

- :func:`reconstruction_gradients` walks the rows: decode with k and with 4k latents, cosine distances, and their
  gradients with respect to the reconstructions and to the active latents.
- :func:`sum_gradients` walks the latents: the gradients of the encoder, its bias and the decoder, tile by tile of
  columns (see `_tiles.py`). What an optimiser does with them is in `_adam.py`.

Rows that are gathered, those of the decoder and of the tiles, are in the dtype of the batch or rounded to bfloat16 (see
`_words.py`); all sums are in the dtype of the batch.

Invariant: each output element is summed in a fixed order by one thread, so results do not depend on the number
of threads.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from skcompressae._core._arrays import FloatArray, IndexArray, WordArray
from skcompressae._core._chosen_rows import add_rows, dot_rows
from skcompressae._core._compiling import njit
from skcompressae._core._gathers import FAST, dot
from skcompressae._core._threads import run_blocks
from skcompressae._core._tiles import TILE_COLUMNS, TILE_ROWS, add_tile_rows, empty_tiles, fill_tile, write_part
from skcompressae._core._topk import kth_largest

__all__ = [
    "BATCH_ROWS",
    "add_tile_sums",
    "count_leading",
    "group_by_latent",
    "reconstruction_gradients",
    "sum_gradients",
]

# Rows whose gradients are best summed at once: larger batches are cut into as many, so that a tile fits the cache and
# the working memory does not grow with the batch.
BATCH_ROWS = TILE_ROWS


@njit(nogil=True, fastmath=FAST)
def _cosine_gradient(x: Any, x_hat: Any, weight: Any, gradient: Any) -> Any:
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


@njit(nogil=True, fastmath=FAST)
def _reconstruction_gradients_rows(
    x: Any,
    decoder: Any,
    indices: Any,
    values: Any,
    k: Any,
    weights: Any,
    start: Any,
    stop: Any,
    width: Any,
    latent_gradients: Any,
    is_leading: Any,
    x_gradients: Any,
    cosines: Any,
) -> None:
    n_features = x.shape[1]
    n_active = indices.shape[1]
    kind = x.dtype.type
    magnitudes = np.empty(n_active, dtype=x.dtype)
    x_hat = np.empty(width, dtype=x.dtype)
    # Leading entries fill these from the front, the others after position k.
    order = np.empty(n_active, dtype=np.int32)
    picks = np.empty(n_active, dtype=np.int32)
    coefficients = np.empty(n_active, dtype=x.dtype)
    products = np.empty(n_active, dtype=x.dtype)
    gradient = np.zeros(width, dtype=x.dtype)  # reaches the k leading latents (both loss terms)
    gradient_wide = np.zeros(width, dtype=x.dtype)  # reaches the others
    for i in range(start, stop):
        for a in range(n_active):
            magnitudes[a] = abs(values[i, a])
        kth = kth_largest(magnitudes, n_active, k)
        n_ties = k
        for a in range(n_active):
            n_ties -= abs(values[i, a]) > kth
        n_leading, n_others = 0, 0
        for a in range(n_active):  # without a branch on what is not foreseen
            magnitude = abs(values[i, a])
            is_tie = int(magnitude == kth) & int(n_ties > 0)
            n_ties -= is_tie
            leads = int(magnitude > kth) | is_tie | int(n_others == n_active - k)  # the last: too few are numbers
            is_leading[i, a] = leads
            position = leads * n_leading + (1 - leads) * (k + n_others)
            n_leading += leads
            n_others += 1 - leads
            order[position] = a
            picks[position] = indices[i, a]
            coefficients[position] = values[i, a]
        x_hat[:] = kind(0)
        add_rows(x_hat, decoder, coefficients, picks, k)
        cosines[i, 0] = _cosine_gradient(x[i], x_hat, weights[0], gradient)
        add_rows(x_hat, decoder, coefficients[k:], picks[k:], n_active - k)
        cosines[i, 1] = _cosine_gradient(x[i], x_hat, weights[1], gradient_wide)
        for j in range(n_features):
            gradient[j] += gradient_wide[j]
        dot_rows(gradient, decoder, picks, k, products)
        dot_rows(gradient_wide, decoder, picks[k:], n_active - k, products[k:])
        for tile in range(x_gradients.shape[0]):
            write_part(gradient[:n_features], tile, x_gradients[tile, 0, i])
            write_part(gradient_wide[:n_features], tile, x_gradients[tile, 1, i])
        for position in range(n_active):
            latent_gradients[i, order[position]] = products[position]


def reconstruction_gradients(
    x: FloatArray,
    decoder: FloatArray | WordArray,
    indices: IndexArray,
    values: FloatArray,
    k: int,
    loss_weights: tuple[float, float],
    *,
    n_threads: int,
) -> tuple[FloatArray, NDArray[np.bool_], FloatArray | WordArray, FloatArray]:
    """Decode a batch with its k and with all its active latents; differentiate the two cosine distances.

    Parameters
    ----------
    x : array of shape (n_rows, n_features), unit-norm (or zero) rows
    decoder : array of shape (n_components, n_features), or as :func:`_words.round_rows` rounds it
        Rounded, it makes `x_gradients` rounded.
    indices, values : arrays of shape (n_rows, n_active)
        Active latents of each row in ascending order and their activations, finite.
    k : int in [1, n_active]
    loss_weights : weights of the distance with k latents and of that with all n_active, divided by n_rows
    n_threads : int

    Returns
    -------
    latent_gradients : array of shape (n_rows, n_active)
        Gradient of the loss with respect to `values`.
    is_leading : bool array of shape (n_rows, n_active)
        Whether the latent is among the k of largest magnitude.
    x_gradients : array of shape (n_tiles, 2, n_rows, columns or words of a tile)
        Tiles (see `_tiles.py`) of the gradient with respect to the decoded row that reaches leading (0) and other (1)
        latents.
    cosines : array of shape (n_rows, 2)
        Cosine similarity of x with both reconstructions.
    """
    n_rows, n_active = indices.shape
    latent_gradients = np.empty_like(values)
    is_leading = np.empty((n_rows, n_active), dtype=np.bool_)
    is_rounded = decoder.dtype == np.uint32
    width = 2 * decoder.shape[1] if is_rounded else x.shape[1]
    x_gradients = empty_tiles((2, n_rows), x.shape[1], decoder.dtype)
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
            width,
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


@njit(nogil=True)
def count_leading(indices: Any, is_leading: Any, counts: Any) -> None:
    """Add to `counts`, (n_components,), how often each latent leads a row."""
    for i in range(indices.shape[0]):
        for a in range(indices.shape[1]):
            counts[indices[i, a]] += is_leading[i, a]


@njit(nogil=True)
def _group_by_latent(indices: Any, starts: Any, positions: Any) -> None:
    n_rows, n_active = indices.shape
    for i in range(n_rows):
        for a in range(n_active):
            starts[indices[i, a] + 1] += 1
    for j in range(starts.shape[0] - 1):
        starts[j + 1] += starts[j]
    following = starts[:-1].copy()
    for i in range(n_rows):
        for a in range(n_active):
            latent = indices[i, a]
            positions[i, a] = following[latent]
            following[latent] += 1


def group_by_latent(indices: IndexArray, n_components: int) -> tuple[IndexArray, IndexArray]:
    """Find where the batch's active entries go, latent by latent (a counting sort; rows stay in order within a latent).

    Returns
    -------
    starts : array of shape (n_components + 1,), int32
        Latent j owns the places ``[starts[j], starts[j + 1])``.
    positions : array of shape (n_rows, n_active), int32
        The place of every entry.
    """
    starts = np.zeros(n_components + 1, dtype=np.int32)
    positions = np.empty(indices.shape, dtype=np.int32)
    _group_by_latent(indices, starts, positions)
    return starts, positions


@njit(nogil=True)
def _lay_out_entries(
    values: Any,
    latent_gradients: Any,
    is_leading: Any,
    positions: Any,
    start: Any,
    stop: Any,
    rows: Any,
    gradient_rows: Any,
    activations: Any,
    slopes: Any,
) -> None:
    """Write the entries of rows [start, stop) to their places, as the sums over tiles read them."""
    n_rows, n_active = values.shape
    for i in range(start, stop):
        for a in range(n_active):
            place = positions[i, a]
            rows[place] = i
            gradient_rows[place] = i if is_leading[i, a] else n_rows + i
            activations[place] = values[i, a]
            slopes[place] = latent_gradients[i, a]


@njit(nogil=True)
def _add_slopes(slopes: Any, starts: Any, start: Any, stop: Any, bias_gradient: Any) -> None:
    for latent in range(start, stop):
        total = bias_gradient[latent]
        for place in range(starts[latent], starts[latent + 1]):
            total += slopes[place]
        bias_gradient[latent] = total


@njit(nogil=True)
def add_tile_sums(tile: Any, picks: Any, coefficients: Any, starts: Any, number: Any, gradient: Any) -> None:
    """Add every latent's sum over one tile to its columns of `gradient`."""
    first = number * TILE_COLUMNS
    width = min(TILE_COLUMNS, gradient.shape[1] - first)
    if width == TILE_COLUMNS:
        for latent in range(gradient.shape[0]):
            total = gradient[latent, first : first + TILE_COLUMNS]
            add_tile_rows(total, tile, picks, coefficients, starts[latent], starts[latent + 1])
        return
    total = np.empty(TILE_COLUMNS, dtype=gradient.dtype)
    for latent in range(gradient.shape[0]):
        total[:] = 0
        add_tile_rows(total, tile, picks, coefficients, starts[latent], starts[latent + 1])
        for j in range(width):
            gradient[latent, first + j] += total[j]


def sum_gradients(
    x: FloatArray,
    values: FloatArray,
    latent_gradients: FloatArray,
    is_leading: NDArray[np.bool_],
    x_gradients: FloatArray | WordArray,
    starts: IndexArray,
    positions: IndexArray,
    gradients: tuple[FloatArray, FloatArray, FloatArray],
    *,
    n_threads: int,
) -> None:
    """Add a batch's gradients of the encoder, its bias and the decoder to `gradients`.

    Parameters
    ----------
    x : array of shape (n_rows, n_features)
        At most :data:`BATCH_ROWS` rows for full speed.
    values, latent_gradients, is_leading, x_gradients
        As :func:`reconstruction_gradients` takes and gives them; rounded gradients have `x` rounded too.
    starts, positions
        As :func:`group_by_latent` gives them.
    gradients : encoder (n_components, n_features), bias (n_components,), decoder (n_components, n_features)
    n_threads : int
    """
    encoder_gradient, bias_gradient, decoder_gradient = gradients
    rows, gradient_rows = np.empty((2, positions.size), dtype=np.int32)
    activations, slopes = np.empty((2, positions.size), dtype=x.dtype)
    run_blocks(
        lambda start, stop: _lay_out_entries(
            values, latent_gradients, is_leading, positions, start, stop, rows, gradient_rows, activations, slopes
        ),
        len(x),
        256,
        n_threads,
    )
    run_blocks(
        lambda start, stop: _add_slopes(slopes, starts, start, stop, bias_gradient), len(bias_gradient), 1024, n_threads
    )
    n_tiles = len(x_gradients)

    def add_tiles(start: int, stop: int) -> None:
        tile = np.empty(x_gradients.shape[2:], dtype=x_gradients.dtype)
        for number in range(start, stop):
            if number < n_tiles:
                fill_tile(x, number, tile)
                add_tile_sums(tile, rows, slopes, starts, number, encoder_gradient)
            else:
                number -= n_tiles
                tile_gradients = x_gradients[number].reshape(2 * len(x), -1)
                add_tile_sums(tile_gradients, gradient_rows, activations, starts, number, decoder_gradient)

    run_blocks(add_tiles, 2 * n_tiles, 1, n_threads)
