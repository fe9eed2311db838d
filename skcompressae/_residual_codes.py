"""Residual codes of an estimator: the quantiser that `fit` learns, and whether it suits what is packed."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from skcompressae.packed import PackedCodes, ResidualQuantizer
from skcompressae.packed._residual import n_training_rows

__all__ = [
    "check_residual_bytes",
    "checked_quantizer",
    "fitted_quantizer",
    "learned_quantizer",
    "with_residual_codes",
]


def check_residual_bytes(n_bytes: int | None, n_features: int) -> None:
    """Raise ValueError if rows have fewer features than their residual codes would have bytes."""
    if n_bytes is not None and n_bytes > n_features:
        raise ValueError(f"residual_bytes must be at most the {n_features} features of X; got {n_bytes}.")


def fitted_quantizer(model: Any) -> ResidualQuantizer | None:
    """Return a fitted model's `residual_quantizer_`, which pickles of versions without it lack."""
    quantizer: ResidualQuantizer | None = getattr(model, "residual_quantizer_", None)
    return quantizer


def learned_quantizer(model: Any, rows: NDArray[Any], row_numbers: NDArray[np.intp]) -> ResidualQuantizer | None:
    """Learn a quantiser of what packed codes leave of (a sample of) the rows.

    Parameters
    ----------
    model : CompresSAETransformer
        With weights and statistics, and `residual_bytes` that are not None.
    rows : array of shape (n_samples, n_features)
    row_numbers : array of those that may be sampled
    """
    n_rows = n_training_rows(rows.shape[1])
    if len(row_numbers) > n_rows:
        # random numbers of its own: with or without this, the fit draws the same
        row_numbers = np.sort(np.random.RandomState(0).choice(row_numbers, n_rows, replace=False))
    sample = rows[row_numbers]
    packed = model._pack(sample)
    return _with_residual(packed, sample, model, n_bytes=model.residual_bytes).residual_quantizer


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
    return packed if quantizer is None else _with_residual(packed, rows, model, quantizer=quantizer)


def _with_residual(packed: PackedCodes, rows: NDArray[Any], model: Any, **how: Any) -> PackedCodes:
    return packed.with_residual_of(rows, model.components_, normalize=model.norm != "input", **how)
