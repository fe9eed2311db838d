"""Rows and codes that scikit-learn's validation would hand back as they are, recognised in a microsecond.

`validate_data` and `check_array` ask what an argument might be: a data frame, an array of another library, sparse,
complex. For one row that takes longer than the kernels. What is certain to pass is told here by its type, dtype and
shape; everything else goes to scikit-learn, which converts it or raises.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np
import scipy.sparse as sp

__all__ = [
    "ROW_DTYPES",
    "are_plain_codes",
    "are_plain_rows",
    "code_dtype",
    "own_dtype_first",
    "refuse_column_of_lists",
    "refuse_unread_lists",
]

# What rows are read as they are, block by block; others are converted to the first, whole.
ROW_DTYPES: list[type] = [np.float64, np.float32, np.float16, np.int8, np.uint8, np.int16, np.int32, np.int64]


def code_dtype(rows: np.ndarray[Any, Any]) -> type[np.floating[Any]]:
    """Return the dtype of codes of rows of one of `ROW_DTYPES`: that of scikit-learn's transformers."""
    return np.float32 if rows.dtype in (np.float32, np.float16) else np.float64


def are_plain_rows(X: Any, dtypes: Sequence[type], n_features: int) -> bool:
    """Return whether X is a NumPy array of one of the dtypes and of shape (at least 1, n_features).

    Its finiteness remains to be checked.
    """
    if type(X) is not np.ndarray or X.ndim != 2 or len(X) == 0 or X.shape[1] != n_features:
        return False
    return any(X.dtype == dtype for dtype in dtypes)


def are_plain_codes(X: Any, dtypes: Sequence[type], n_components: int) -> bool:
    """Return whether X is a SciPy CSR matrix or array of one of the dtypes and of shape (at least 1, n_components).

    The finiteness of its entries remains to be checked.
    """
    if type(X) not in (sp.csr_matrix, sp.csr_array) or X.ndim != 2 or X.shape[0] == 0 or X.shape[1] != n_components:
        return False
    return any(X.dtype == dtype for dtype in dtypes)


def refuse_column_of_lists(cause: BaseException | None = None) -> NoReturn:
    """Raise ValueError for X that is a column of lists, or a table of one, and say what to do with it."""
    raise ValueError(
        "X must have one column a feature, got a column of lists; stack them, "
        "as in np.stack(df['embedding'].to_numpy())."
    ) from cause


def refuse_unread_lists(X: Any, error: ValueError) -> None:
    """Raise as `refuse_column_of_lists` if the error of reading X says so; an array of objects may be one, too."""
    of_lists = "setting an array element with a sequence", "X does not contain any features"
    if hasattr(X, "__array__") and str(error).startswith(of_lists[: 1 if isinstance(X, np.ndarray) else None]):
        refuse_column_of_lists(error)


def own_dtype_first(X: Any, dtypes: Sequence[type]) -> list[type]:
    """Return the dtypes, in front that of X as a NumPy array where it is one of them.

    scikit-learn converts to the first where it cannot read the dtype of X, as of tensors, of frames other than pandas'
    and of pandas' own types of floats. This one is read off no rows, so that nothing is copied.

    Raises
    ------
    TypeError
        If NumPy cannot read X.
    """
    # a LazyFrame, which warns when asked for its types
    if hasattr(X, "collect") and not hasattr(X, "__array__"):
        raise TypeError(
            f"X must be an array, or what NumPy can read as one, got a {type(X).__name__}, of which nothing is "
            "computed yet: pass X.collect()."
        )
    if hasattr(getattr(X, "dtypes", None), "__array__"):
        own = _float_of_frame(X.dtypes)
        return list(dtypes) if own is None else sorted(dtypes, key=lambda dtype: own != dtype)
    is_table = hasattr(X, "__array__") and hasattr(X, "__getitem__") and getattr(X, "ndim", 2) == 2
    if isinstance(getattr(X, "dtype", None), np.dtype):
        own = X.dtype.newbyteorder("=")  # numbers of the other byte order keep their precision
        return sorted(dtypes, key=lambda dtype: own != dtype)
    if not is_table:
        return list(dtypes)
    try:
        own = np.asarray(X[:0]).dtype
    except (TypeError, RuntimeError) as error:
        raise TypeError(
            f"X must be an array, or what NumPy can read as one, got a {type(X).__name__} that it cannot: pass a "
            "tensor of PyTorch as X.detach().cpu(), one of bfloat16 as X.detach().cpu().float(). NumPy was told: "
            f"{error}"
        ) from error
    return sorted(dtypes, key=lambda dtype: own != dtype)


def _float_of_frame(types: Any) -> np.dtype[Any] | None:
    """Return the float dtype of a frame of pandas with columns of pandas' or Arrow's numbers, else None.

    Integers are not told of: those of a column with missing values become floats only.
    """
    plain = [getattr(kind, "numpy_dtype", kind) for kind in types]
    if not plain or not all(isinstance(kind, np.dtype) and kind.kind in "biuf" for kind in plain):
        return None
    own = np.result_type(*plain)
    return own if own.kind == "f" else None
