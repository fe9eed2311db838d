"""A training term that keeps neighbours neighbours in code space, so that the cosine of two codes ranks as rows do.

A dictionary that reconstructs ever better splits close rows over different latents, and code-to-code search loses what
reconstruction gains. For n rows of a batch, with cosines G of the rows and C of their codes, the term is

    (w / n) * sum_i KL(softmax_j(G_ij / T) || softmax_j(C_ij / T')),   j != i,

the objective of stochastic neighbour embedding (Hinton and Roweis 2002) with cosines for distances. Its gradient with
respect to the codes reaches the active latents only, so beside the product G the work is one walk over the inverted
lists of the batch in each direction.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from skcompressae._core._arrays import FloatArray, IndexArray
from skcompressae._core._gathers import FAST
from skcompressae._core._sparse_step import group_by_latent
from skcompressae._core._threads import run_blocks

__all__ = ["MIN_SPREAD", "neighborhood_gradients"]

# Floor of the spread that temperatures are in units of: below it, on strongly anisotropic rows, the term would look at
# so few neighbours that it stops helping (docs/research_notes_sparse.md).
MIN_SPREAD = 0.1


@njit(cache=True, nogil=True, fastmath=FAST)
def _softmax(logits, scale, skipped, probabilities):  # type: ignore[no-untyped-def]
    """Write ``softmax(logits * scale)`` with entry `skipped` left out; return the log of its normaliser."""
    kind = logits.dtype.type
    largest = kind(-2)  # below any cosine; an infinity has no meaning under the fast-math flags
    for j in range(logits.shape[0]):
        if j != skipped and logits[j] > largest:
            largest = logits[j]
    total = kind(0)
    for j in range(logits.shape[0]):
        probabilities[j] = np.exp((logits[j] - largest) * scale)
    probabilities[skipped] = kind(0)
    for j in range(logits.shape[0]):
        total += probabilities[j]
    for j in range(logits.shape[0]):
        probabilities[j] /= total
    return np.log(total) + largest * scale


@njit(cache=True, nogil=True, fastmath=FAST)
def _pair_gradients(  # type: ignore[no-untyped-def]
    cosines, indices, unit_values, starts, entries, inverse_temperatures, weight, start, stop, pair_gradients, losses
):
    n_rows, k = indices.shape
    kind = cosines.dtype.type
    code_cosines = np.empty(n_rows, dtype=cosines.dtype)
    wanted = np.empty(n_rows, dtype=cosines.dtype)
    found = np.empty(n_rows, dtype=cosines.dtype)
    flat_values = unit_values.reshape(-1)
    for i in range(start, stop):
        code_cosines[:] = kind(0)
        for a in range(k):
            value = unit_values[i, a]
            latent = indices[i, a]
            for e in range(starts[latent], starts[latent + 1]):
                code_cosines[entries[e] // k] += value * flat_values[entries[e]]
        wanted_log = _softmax(cosines[i], inverse_temperatures[0], i, wanted)
        found_log = _softmax(code_cosines, inverse_temperatures[1], i, found)
        loss = kind(0)
        for j in range(n_rows):
            difference = cosines[i, j] * inverse_temperatures[0] - code_cosines[j] * inverse_temperatures[1]
            loss += wanted[j] * (difference - wanted_log + found_log)
            pair_gradients[i, j] = weight * inverse_temperatures[1] * (found[j] - wanted[j])
        losses[i] = loss


@njit(cache=True, nogil=True, fastmath=FAST)
def _latent_gradients(  # type: ignore[no-untyped-def]
    pair_gradients, indices, unit_values, norms, starts, entries, start, stop, latent_gradients
):
    k = indices.shape[1]
    kind = unit_values.dtype.type
    flat_values = unit_values.reshape(-1)
    for i in range(start, stop):
        along = kind(0)
        for a in range(k):
            latent = indices[i, a]
            total = kind(0)
            for e in range(starts[latent], starts[latent + 1]):
                total += pair_gradients[i, entries[e] // k] * flat_values[entries[e]]
            latent_gradients[i, a] = total
            along += total * unit_values[i, a]
        for a in range(k):
            # Through the normalisation of the code: only the part across it counts.
            if norms[i] > 0:
                latent_gradients[i, a] = (latent_gradients[i, a] - along * unit_values[i, a]) / norms[i]
            else:
                latent_gradients[i, a] = kind(0)


def neighborhood_gradients(
    x: FloatArray,
    indices: IndexArray,
    values: FloatArray,
    n_components: int,
    temperatures: tuple[float, float],
    weight: float,
    *,
    n_threads: int,
) -> tuple[FloatArray, float]:
    """Differentiate the neighbourhood term with respect to the codes of a (part of a) batch.

    Parameters
    ----------
    x : array of shape (n_rows, n_features), unit-norm rows, at least two
    indices, values : arrays of shape (n_rows, k)
        Codes of the rows, indices ascending.
    n_components : int
    temperatures : tuple of two floats
        T of the rows' and T' of the codes' distribution, in units of the standard deviation of the rows' cosines.
    weight : float
        w of the term.
    n_threads : int

    Returns
    -------
    latent_gradients : array of shape (n_rows, k)
    loss : float
        Mean divergence over the rows, without the weight.
    """
    n_rows = len(x)
    cosines = x @ x.T
    norms = np.sqrt(np.einsum("ij,ij->i", values, values))
    unit_values = values / np.where(norms > 0, norms, 1)[:, None]
    starts, entries = group_by_latent(indices, n_components)
    pair_gradients = np.empty_like(cosines)
    losses = np.empty(n_rows, dtype=x.dtype)
    latent_gradients = np.empty_like(values)
    kind = x.dtype.type
    n_pairs = n_rows * (n_rows - 1)
    mean = (cosines.sum(dtype=np.float64) - np.trace(cosines)) / n_pairs
    squares = np.einsum("ij,ij->", cosines, cosines, dtype=np.float64) - np.einsum("ii,ii->", cosines, cosines)
    spread = max(np.sqrt(max(squares / n_pairs - mean**2, 0.0)), MIN_SPREAD)
    inverse_temperatures = (1 / (spread * np.asarray(temperatures))).astype(x.dtype)
    run_blocks(
        lambda start, stop: _pair_gradients(
            cosines,
            indices,
            unit_values,
            starts,
            entries,
            inverse_temperatures,
            kind(weight / n_rows),
            start,
            stop,
            pair_gradients,
            losses,
        ),
        n_rows,
        64,
        n_threads,
    )
    pair_gradients += pair_gradients.T.copy()  # row i pulls on code j as row j pulls on code i
    run_blocks(
        lambda start, stop: _latent_gradients(
            pair_gradients, indices, unit_values, norms, starts, entries, start, stop, latent_gradients
        ),
        n_rows,
        64,
        n_threads,
    )
    return latent_gradients, float(losses.mean(dtype=np.float64))
