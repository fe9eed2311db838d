"""Rows and codes that scikit-learn's validation would hand back as they are, recognised in a microsecond.

`validate_data` and `check_array` ask what an argument might be: a data frame, an array of another library, sparse,
complex. For one row that takes longer than the kernels. What is certain to pass is told here by its type, dtype and
shape; everything else goes to scikit-learn, which converts it or raises.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp

__all__ = ["are_plain_codes", "are_plain_rows"]


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
