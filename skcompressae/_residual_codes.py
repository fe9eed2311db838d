"""Residual codes of an estimator: the quantiser that `fit` learns, and whether it suits what is packed."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from skcompressae._core._pack_rows import MAX_SCALE, MIN_SCALE
from skcompressae._core._threads import row_blocks
from skcompressae._encoding import Encoder, codes_to_csr
from skcompressae.packed import PackedCodes, ResidualQuantizer, ValueQuantizer
from skcompressae.packed._quantizer import quantizer_rows
from skcompressae.packed._residual import training_rows
from skcompressae.packed._residual_rows import residuals_of

__all__ = [
    "check_residual_bytes",
    "checked_quantizer",
    "fitted_quantizer",
    "learned_quantizer",
    "with_residual_codes",
]

# Rows that are packed at a time.
_BLOCK_ROWS = 4096
# Those of values in transform_packed, if nothing else is asked for there.
_VALUE_BITS = 4


def check_residual_bytes(n_bytes: int | None, n_features: int) -> None:
    """Raise ValueError unless rows have as many features as their residual codes would have bytes."""
    if isinstance(n_bytes, bool) or (n_bytes is not None and n_bytes > n_features):
        raise ValueError(f"residual_bytes must be an int of at most the {n_features} features of X; got {n_bytes}.")


def fitted_quantizer(model: Any) -> ResidualQuantizer | None:
    """Return a fitted model's `residual_quantizer_`, which pickles of versions without it lack."""
    quantizer: ResidualQuantizer | None = getattr(model, "residual_quantizer_", None)
    return quantizer


def learned_quantizer(model: Any, rows: NDArray[Any], row_numbers: NDArray[np.intp]) -> ResidualQuantizer | None:
    """Learn a quantiser of what packed codes leave of (a sample of) the rows; None if none of them can be packed.

    Parameters
    ----------
    model : CompresSAETransformer
        With weights, and `residual_bytes` that are not None.
    rows : array of shape (n_samples, n_features)
    row_numbers : array of those that may be sampled
    """
    # random numbers of its own: with or without this, the fit draws the same
    row_numbers = row_numbers[training_rows(len(row_numbers), rows.shape[1], 0)]
    encoder = model._encoder()
    spread = row_numbers[quantizer_rows(len(row_numbers))]
    _, indices, magnitudes = _packable(model, encoder, rows[spread])
    if len(indices) == 0:
        return None
    codes = codes_to_csr(indices, magnitudes, encoder.n_components)
    values = ValueQuantizer.fit(codes, value_bits=_VALUE_BITS, k=indices.shape[1])
    left = np.empty((len(row_numbers), rows.shape[1]), dtype=np.float32)
    n_left = 0
    for start, stop in row_blocks(len(row_numbers), _BLOCK_ROWS):
        block, indices, magnitudes = _packable(model, encoder, rows[row_numbers[start:stop]])
        packed = PackedCodes.from_topk(indices, magnitudes, encoder.n_components, quantizer=values)
        left[n_left : n_left + len(block)] = residuals_of(
            packed, block, model.components_, normalize=model.norm != "input"
        )
        n_left += len(block)
    return ResidualQuantizer.fit(left[:n_left], model.residual_bytes)


def _packable(
    model: Any, encoder: Encoder, rows: NDArray[Any]
) -> tuple[NDArray[Any], NDArray[np.int32], NDArray[np.floating[Any]]]:
    """Return the rows whose codes can be packed, all but those of extreme lengths, and their indices and values."""
    k = model._effective_k(encoder.n_components)
    indices, values = encoder.encode(rows, k, norm=model.norm, dtype=np.float64)  # of rows beyond float32, too
    peaks = np.abs(values).max(axis=1)
    fits = (peaks == 0) | ((peaks >= MIN_SCALE) & (peaks <= MAX_SCALE))
    return rows[fits], indices[fits], values[fits].astype(np.float32)


def checked_quantizer(model: Any) -> ResidualQuantizer | None:
    """Return the quantiser of the residual codes that `residual_bytes` asks for, None if for none.

    Raises
    ------
    ValueError
        If `fit` has learned none, or one for other codes.
    """
    if model.residual_bytes is None:
        return None
    quantizer = fitted_quantizer(model)
    if quantizer is None:
        raise ValueError(
            f"residual_bytes={model.residual_bytes}, but the model was fitted without residual codes; fit it anew, or "
            "set residual_bytes=None and give the packed codes some by PackedCodes.with_residual_of."
        )
    fitted = {"residual_bytes": quantizer.n_bytes, "norm": model.residual_norm_}
    for name, value in fitted.items():
        if getattr(model, name) != value:
            raise ValueError(
                f"{name} must be {value!r}, as it was when the residual codes were learned; got "
                f"{getattr(model, name)!r}. Set it back, fit anew, or set residual_bytes=None."
            )
    return quantizer


def with_residual_codes(packed: PackedCodes, rows: NDArray[Any], model: Any) -> PackedCodes:
    """Return packed codes of rows with the residual codes that `residual_bytes` asks for, as `checked_quantizer`."""
    quantizer = checked_quantizer(model)
    if quantizer is None:
        return packed
    return packed.with_residual_of(rows, model.components_, quantizer=quantizer, normalize=model.norm != "input")
