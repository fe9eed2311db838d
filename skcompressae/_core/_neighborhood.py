"""A training term that keeps neighbours neighbours in code space, so that the cosine of two codes ranks as rows do.

A dictionary that reconstructs ever better splits close rows over different latents, and code-to-code search loses what
reconstruction gains. For n rows of a batch, with cosines G of the rows and C of their codes, the term is

    (w / n) * sum_i KL(softmax_j(G_ij / T) || softmax_j(C_ij / T')),   j != i,

the objective of stochastic neighbour embedding (Hinton and Roweis 2002) with cosines for distances. Its gradient with
respect to the codes reaches the active latents only, so beside the product G the work is one walk over the inverted
lists of the batch in each direction.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from skcompressae._core._arrays import FloatArray, IndexArray
from skcompressae._core._compiling import njit
from skcompressae._core._gathers import FAST
from skcompressae._core._sparse_step import group_by_latent
from skcompressae._core._threads import run_blocks

__all__ = ["MIN_SPREAD", "neighborhood_gradients"]

# Floor of the spread that temperatures are in units of: below it, on strongly anisotropic rows, the term would look at
# so few neighbours that it stops helping (docs/research_notes_sparse.md).
MIN_SPREAD = 0.1


def _softmax(
    cosines: FloatArray, first_row: int, inverse_temperature: np.floating[Any]
) -> tuple[FloatArray, FloatArray]:
    """Return the softmax of scaled rows, each row's own entry left out, and the logarithms of its normalisers."""
    logits = cosines * inverse_temperature
    own = np.arange(len(logits))
    logits[own, first_row + own] = -np.inf
    largest = logits.max(axis=1, keepdims=True)
    probabilities = np.exp(logits - largest)
    totals = probabilities.sum(axis=1, keepdims=True)
    probabilities /= totals
    return probabilities, (np.log(totals) + largest)[:, 0]


@njit(nogil=True, fastmath=FAST)
def _code_cosines(
    indices: Any, unit_values: Any, starts: Any, rows: Any, values: Any, start: Any, stop: Any, cosines: Any
) -> None:
    """Write the cosines of the codes of rows [start, stop) with all, by way of the inverted lists `rows`, `values`."""
    for i in range(start, stop):
        cosines[i - start, :] = 0
        for a in range(indices.shape[1]):
            value, latent = unit_values[i, a], indices[i, a]
            for e in range(starts[latent], starts[latent + 1]):
                cosines[i - start, rows[e]] += value * values[e]


@njit(nogil=True, fastmath=FAST)
def _latent_gradients(
    pair_gradients: Any,
    indices: Any,
    unit_values: Any,
    norms: Any,
    starts: Any,
    rows: Any,
    values: Any,
    start: Any,
    stop: Any,
    latent_gradients: Any,
) -> None:
    k = indices.shape[1]
    kind = unit_values.dtype.type
    for i in range(start, stop):
        along = kind(0)
        for a in range(k):
            latent = indices[i, a]
            total = kind(0)
            for e in range(starts[latent], starts[latent + 1]):
                total += pair_gradients[i, rows[e]] * values[e]
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
    starts, positions = group_by_latent(indices, n_components)
    list_rows, list_values = np.empty(positions.size, dtype=np.int32), np.empty(positions.size, dtype=x.dtype)
    list_rows[positions] = np.arange(n_rows, dtype=np.int32)[:, None]
    list_values[positions] = unit_values
    pair_gradients = np.empty_like(cosines)
    losses = np.empty(n_rows, dtype=x.dtype)
    latent_gradients = np.empty_like(values)
    kind = x.dtype.type
    n_pairs = n_rows * (n_rows - 1)
    mean = (cosines.sum(dtype=np.float64) - np.trace(cosines)) / n_pairs
    squares = np.einsum("ij,ij->", cosines, cosines, dtype=np.float64) - np.einsum("ii,ii->", cosines, cosines)
    spread = max(np.sqrt(max(squares / n_pairs - mean**2, 0.0)), MIN_SPREAD)
    inverse_temperatures = (1 / (spread * np.asarray(temperatures))).astype(x.dtype)
    slope = kind(weight / n_rows) * inverse_temperatures[1]

    def compare(start: int, stop: int) -> None:
        """Write the gradients of the codes' cosines, and the divergences."""
        code_cosines = np.empty((stop - start, n_rows), dtype=x.dtype)
        _code_cosines(indices, unit_values, starts, list_rows, list_values, start, stop, code_cosines)
        of_rows, of_codes = inverse_temperatures
        with np.errstate(under="ignore"):  # small probabilities are 0, whatever the caller has NumPy do about it
            wanted, wanted_logs = _softmax(cosines[start:stop], start, of_rows)
            found, found_logs = _softmax(code_cosines, start, of_codes)
            np.subtract(found, wanted, out=pair_gradients[start:stop])
            pair_gradients[start:stop] *= slope
            differences = cosines[start:stop] * of_rows - code_cosines * of_codes
            losses[start:stop] = np.einsum("ij,ij->i", wanted, differences) - wanted_logs + found_logs

    run_blocks(compare, n_rows, 64, n_threads)
    pair_gradients += pair_gradients.T.copy()  # row i pulls on code j as row j pulls on code i
    run_blocks(
        lambda start, stop: _latent_gradients(
            pair_gradients, indices, unit_values, norms, starts, list_rows, list_values, start, stop, latent_gradients
        ),
        n_rows,
        64,
        n_threads,
    )
    return latent_gradients, float(losses.mean(dtype=np.float64))
