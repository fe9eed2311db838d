"""The check that functions over a fitted compressor begin with."""

from __future__ import annotations

from typing import Any

from sklearn.utils.validation import check_is_fitted

from skcompressae._transformer import CompresSAETransformer

__all__ = ["check_compressor"]


def check_compressor(model: Any) -> None:
    """Refuse what is no fitted compressor.

    Raises
    ------
    TypeError
        If `model` is no CompresSAETransformer.
    sklearn.exceptions.NotFittedError
        If it is not fitted.
    """
    if not isinstance(model, CompresSAETransformer):
        raise TypeError(f"model must be a CompresSAETransformer; got {type(model).__name__}.")
    check_is_fitted(model)
