"""Cut a few expanded queries where both encoder and decoder are kept in 8 bits: a query waits for them to be read.

What an entry of ``t = D q`` weighs is ``|t_j| importance_j |p_j|^(1/4)``. With both products rounded, it is between two
bounds; entries whose upper one is below the n-th largest of the lower ones are not among the n, and both products of
the others are computed in float32, as in `_kept_rounding.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from skcompressae._core._arrays import FloatArray, IndexArray
from skcompressae._core._compiling import njit
from skcompressae._core._gathers import FAST
from skcompressae._core._kept_rounding import (
    MAX_RECOMPUTED,
    NEAR_TIES,
    OTHER_WEIGHTS,
    KeptEncoder,
    bounds_of,
    is_kept,
    multiply_kept,
)
from skcompressae._core._screening import RoundedRows, activation_error
from skcompressae._core._supports import compute_activations
from skcompressae._core._topk import collect_at_least, kth_largest, write_largest

__all__ = ["expand_few"]

# What the bounds of a weight may be off by themselves.
_SLACK = np.float32(1 - 1e-6)


@njit(nogil=True, fastmath=FAST)
def _weigh(
    targets: Any, target: Any, activations: Any, activation: Any, importance: Any, least: Any, most: Any
) -> None:
    """Write between what the weights of the entries are; `target` and `activation` are bounds and rounded rows."""
    zero = np.float32(0)
    for j in range(targets.shape[0]):
        t, p = abs(targets[j]), abs(activations[j])
        t_error = activation_error(target[0], j, target[1], 0, t)
        p_error = activation_error(activation[0], j, activation[1], 0, p)
        least[j] = max(zero, t - t_error) * importance[j] * np.sqrt(np.sqrt(max(zero, p - p_error)))
        most[j] = (t + t_error) * importance[j] * np.sqrt(np.sqrt(p + p_error))


@njit(nogil=True)
def _expand_few(
    queries: Any, encoder: Any, bias: Any, divisors: Any, kept: Any, decoder: Any, no_bias: Any, none: Any,
    kept_decoder: Any, importance: Any, indices: Any, values: Any,
) -> int:  # fmt: skip
    kind = np.float32
    n, n_components = indices.shape[1], encoder.shape[0]
    if not (is_kept(kept, encoder, bias, divisors) and is_kept(kept_decoder, decoder, no_bias, none)):
        return OTHER_WEIGHTS
    activations, targets = np.empty((1, n_components), dtype=kind), np.empty((1, n_components), dtype=kind)
    rounded = RoundedRows(np.empty(1, dtype=kind), np.empty(1, dtype=kind), np.empty(1, dtype=kind))
    rounded_again = RoundedRows(np.empty(1, dtype=kind), np.empty(1, dtype=kind), np.empty(1, dtype=kind))
    activation, target = (bounds_of(kept), rounded), (bounds_of(kept_decoder), rounded_again)
    least, most = np.empty(n_components, dtype=kind), np.empty(n_components, dtype=kind)
    left = np.empty(n_components, dtype=np.int32)
    p, t = np.empty(n_components, dtype=kind), np.empty(n_components, dtype=kind)
    n_computed = 0
    for q in range(queries.shape[0]):
        query = queries[q : q + 1]
        multiply_kept(query, kept, rounded, activations)
        multiply_kept(query, kept_decoder, rounded_again, targets)
        for j in range(n_components):
            activations[0, j] += bias[j]
        _weigh(targets[0], target, activations[0], activation, importance, least, most)
        n_left = collect_at_least(most, kth_largest(least, n_components, n) * _SLACK, left)
        if n_left > MAX_RECOMPUTED * n:
            return NEAR_TIES
        compute_activations(query[0], encoder, bias, divisors, left, n_left, p)
        compute_activations(query[0], decoder, no_bias, none, left, n_left, t)
        for c in range(n_left):
            j = left[c]
            p_error = activation_error(activation[0], j, rounded, 0, abs(activations[0, j]))
            t_error = activation_error(target[0], j, rounded_again, 0, abs(targets[0, j]))
            if abs(p[c] - activations[0, j]) > p_error or abs(t[c] - targets[0, j]) > t_error:
                return OTHER_WEIGHTS
            least[c] = abs(t[c]) * importance[j] * np.sqrt(np.sqrt(abs(p[c])))
        write_largest(left, t, least, n_left, n, most, indices[q], values[q])
        n_computed += n_left
    return n_computed


def expand_few(
    queries: FloatArray,
    encoder: FloatArray,
    bias: FloatArray,
    divisors: FloatArray | None,
    kept: KeptEncoder,
    decoder: FloatArray,
    kept_decoder: KeptEncoder,
    importance: FloatArray,
    n_kept: int,
) -> tuple[IndexArray, NDArray[np.float32], int]:
    """Return the entries of expanded queries that weigh most, and the outcome.

    Parameters
    ----------
    queries : float32 array of shape (n_queries, n_features)
        Unit (or zero) rows.
    encoder, decoder : C-contiguous arrays of shape (n_components, n_features), float32
    bias, importance : arrays of shape (n_components,), float32
    divisors : array of shape (n_components,), float32, or None
        Of products with the encoder, before the bias is added.
    kept, kept_decoder : KeptEncoder
        The latter of the decoder, without bias and divisors.
    n_kept : int in [1, n_components]

    Returns
    -------
    indices, values : arrays of shape (n_queries, n_kept), indices ascending in each row
    outcome : int
        How many entries were computed again; or OTHER_WEIGHTS or NEAR_TIES, and the arrays hold nothing of use.
    """
    indices = np.empty((len(queries), n_kept), dtype=np.int32)
    values = np.empty((len(queries), n_kept), dtype=np.float32)
    none = np.empty(0, dtype=np.float32)
    no_bias = np.zeros_like(bias)
    of_encoder = encoder, bias, none if divisors is None else divisors, kept
    outcome = _expand_few(queries, *of_encoder, decoder, no_bias, none, kept_decoder, importance, indices, values)
    return indices, values, outcome
