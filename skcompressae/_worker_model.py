"""A fitted model as workers of other engines need it, and encoding there."""

from __future__ import annotations

from typing import Any

import numpy as np

from skcompressae._checks import check_compressor
from skcompressae._compat import callback_attributes, copy_of_plain_output
from skcompressae._plain_rows import code_dtype
from skcompressae._transformer import CompresSAETransformer

__all__ = ["bare_model", "encode_rows"]


def bare_model(model: CompresSAETransformer) -> CompresSAETransformer:
    """Return a fitted model as engines need it: sharing weights, without optimiser state, columns' names, own output.

    Raises
    ------
    TypeError
        If `model` is no CompresSAETransformer.
    sklearn.exceptions.NotFittedError
        If it is not fitted.
    """
    check_compressor(model)
    bare: CompresSAETransformer = copy_of_plain_output(model)  # a data frame of codes would be dense
    # the columns of a list have no names to compare, callbacks watch fits only
    for attribute in ("feature_names_in_", *callback_attributes(bare)):
        bare.__dict__.pop(attribute, None)
    bare._moments = None
    return bare.set_params(sparse_output=True)


def encode_rows(model: CompresSAETransformer, rows: Any, name: str, *, first_row: int = 0) -> Any:
    """Encode rows, none of them too; say in which row of which column the first NaN or infinity is.

    `first_row` is the number of the first of them in the column.

    Returns
    -------
    codes : CSR matrix (or array) of shape (n_rows, n_components)
    """
    if len(rows) == 0:
        return model.transform(np.zeros((1, rows.shape[1]), code_dtype(rows)))[:0]
    try:
        return model.transform(rows)
    except ValueError:
        is_bad = ~np.isfinite(rows).all(axis=1)
        if not is_bad.any():
            raise
        raise ValueError(
            f"{name!r} holds NaN or infinity in {is_bad.sum()} row(s), the first of them row "
            f"{first_row + np.argmax(is_bad)}; drop or fill them first."
        ) from None
