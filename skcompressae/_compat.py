"""The one place that knows what differs between the supported scikit-learn versions, and imports its private names."""

from __future__ import annotations

from typing import Any

import scipy.sparse as sp
from sklearn.base import _fit_context
from sklearn.utils._param_validation import HasMethods, Interval, Options, StrOptions, validate_parameter_constraints

__all__ = [
    "CallbackSupportMixin",
    "HasMethods",
    "Interval",
    "Options",
    "StrOptions",
    "_fit_context",
    "align_sparse_interface",
    "csr_type",
    "validate_parameter_constraints",
    "with_callbacks",
]

try:  # scikit-learn 1.9 and newer, experimental there
    from sklearn.callback import CallbackSupportMixin, with_callbacks
except ImportError:

    class CallbackSupportMixin:  # type: ignore[no-redef]
        """Stand in for scikit-learn's callback support where the installed version has none."""

    def with_callbacks(method: Any) -> Any:
        """Return the method as it is: the installed scikit-learn has no callbacks to manage."""
        return method


def csr_type() -> type[sp.csr_array] | type[sp.csr_matrix]:
    """Return the type of sparse output, array or matrix, that scikit-learn's configuration asks for.

    Versions without the `sparse_interface` setting return matrices, as their own transformers do.
    """
    from sklearn import get_config

    is_array = get_config().get("sparse_interface", "spmatrix") == "sparray"
    return sp.csr_array if is_array else sp.csr_matrix


def align_sparse_interface(codes: sp.csr_array) -> sp.csr_array | sp.csr_matrix:
    """Give canonical codes as :func:`csr_type` says, without a copy of their numbers."""
    if csr_type() is sp.csr_array:
        return codes
    matrix = sp.csr_matrix((codes.data, codes.indices, codes.indptr), shape=codes.shape, copy=False)
    matrix.has_sorted_indices = True
    matrix.has_canonical_format = True
    return matrix
