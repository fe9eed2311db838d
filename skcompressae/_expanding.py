"""Queries in code space, cut to the entries that matter most: what `transform_query` returns."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from skcompressae._core._arrays import FloatArray, IndexArray
from skcompressae._core._compiling import readable
from skcompressae._core._few_queries import expand_few
from skcompressae._core._kept_rounding import FEW_ROWS, NOT_KEPT, OTHER_WEIGHTS, encoder_role, keeper_of
from skcompressae._core._rows import unit_rows
from skcompressae._core._supports import candidate_activations
from skcompressae._core._threads import effective_n_threads, row_blocks
from skcompressae._core._topk import top_k
from skcompressae._torch._cpu_engine import PreActivations
from skcompressae._torch._weights import Weights

__all__ = ["expand_queries"]


def expand_queries(
    rows: NDArray[Any],
    weights: Weights,
    importance: FloatArray,
    n_kept: int,
    *,
    divisors: FloatArray | None = None,
) -> tuple[IndexArray, FloatArray]:
    """Compute ``t = D q / ||q||`` and keep the entries that matter most.

    Those are the ones with the largest ``|t_j| importance_j |p_j|^(1/4)``, p the query's own pre-activations: documents
    near the query use the latents that it would use itself (docs/research_notes_sparse.md).

    Parameters
    ----------
    rows : array of shape (n_queries, n_features)
    weights : Weights
    importance : array of shape (n_components,), float32, non-negative
        Weight of each latent in the choice.
    n_kept : int in [1, n_components]
    divisors : array of shape (n_components,), optional
        Of p, as in :class:`Encoder`.

    Returns
    -------
    indices, values : arrays of shape (n_queries, n_kept), indices ascending in each row
    """
    if len(rows) <= FEW_ROWS and n_kept < weights.n_components:
        found = _expand_by_kept(rows, weights, importance, n_kept, divisors)
        if found is not None:
            return found
    n_threads = effective_n_threads()
    indices = np.empty((len(rows), n_kept), dtype=np.int32)
    values = np.empty((len(rows), n_kept), dtype=np.float32)
    bias, no_bias = weights.bias if divisors is None else weights.bias / divisors, np.zeros_like(weights.bias)
    expand, activate = PreActivations(weights.decoder), PreActivations(weights.encoder, divisors=divisors)
    for start, stop in row_blocks(len(rows), expand.block_rows):
        queries, _ = unit_rows(rows[start:stop])
        expanded = expand(queries, n_threads)
        if n_kept == weights.n_components:
            indices[start:stop] = np.arange(n_kept, dtype=np.int32)
            values[start:stop] = expanded
            continue
        magnitudes = np.abs(activate(queries, n_threads) + bias)
        weighed = expanded * importance * np.sqrt(np.sqrt(magnitudes))
        chosen, _ = top_k(weighed, n_kept, n_threads=n_threads)
        indices[start:stop] = chosen
        # the last digits of the product may depend on the rows beside a row, and on what other threads let BLAS use
        values[start:stop] = candidate_activations(queries, weights.decoder, no_bias, chosen, n_threads=n_threads)
    return indices, values


def _expand_by_kept(
    rows: NDArray[Any], weights: Weights, importance: FloatArray, n_kept: int, divisors: FloatArray | None
) -> tuple[IndexArray, FloatArray] | None:
    """Do what `expand_queries` does with what is kept of the weights; None without, or where that is of no use."""
    of_encoder, of_decoder = keeper_of(weights.encoder, encoder_role(divisors)), keeper_of(weights.decoder, "decoder")
    if of_encoder is None or of_decoder is None or not (of_encoder.pays and of_decoder.pays):
        return None
    encoder, bias, decoder = map(readable, weights.arrays)
    if divisors is not None:
        divisors = readable(divisors)
        bias = bias / divisors
    kept = of_encoder.rounded(encoder, bias, divisors)
    kept_decoder = of_decoder.rounded(decoder, np.zeros_like(bias), None)
    if kept is NOT_KEPT or kept_decoder is NOT_KEPT:
        return None
    queries, _ = unit_rows(rows)
    indices, values, outcome = expand_few(
        queries, encoder, bias, divisors, kept, decoder, kept_decoder, importance, n_kept
    )
    of_decoder.learn(outcome)
    if outcome == OTHER_WEIGHTS:
        of_encoder.learn(outcome)  # near ties of weights tell nothing of activations
    return (indices, values) if outcome >= 0 else None
