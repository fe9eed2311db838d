"""The one place that knows what differs between the supported scikit-learn versions, and imports its private names."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any, TypeVar, cast

import scipy.sparse as sp
from sklearn import get_config
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
    "callback_attributes",
    "callback_context",
    "copy_of_plain_output",
    "csr_type",
    "has_callbacks",
    "transform_plainly",
    "validate_parameters",
    "validated_every_time",
    "with_callbacks",
]

Method = TypeVar("Method", bound=Callable[..., Any])

try:  # scikit-learn 1.9 and newer, experimental there
    from sklearn.callback import CallbackSupportMixin, with_callbacks
except ImportError:

    class CallbackSupportMixin:  # type: ignore[no-redef]
        """Stand in for scikit-learn's callback support where the installed version has none."""

    def with_callbacks(method: Any) -> Any:
        """Return the method as it is: the installed scikit-learn has no callbacks to manage."""
        return method


# What scikit-learn's callbacks set on an estimator and take away themselves.
_OF_CALLBACKS = ("_callback", "_parent_callback", "_skl_callback")


def callback_attributes(estimator: Any) -> dict[str, Any]:
    """Return the attributes of an estimator that belong to the callbacks that watch its fits."""
    return {name: value for name, value in estimator.__dict__.items() if name.startswith(_OF_CALLBACKS)}


def has_callbacks(estimator: Any) -> bool:
    """Return whether callbacks were set."""
    return bool(getattr(estimator, "_skl_callbacks", None))


def callback_context(estimator: Any, n_steps: int) -> Any:
    """Return scikit-learn's context of a fit of so many steps, None where the installed version has none."""
    if not hasattr(estimator, "_init_callback_context"):
        return None
    return estimator._init_callback_context(max_subtasks=n_steps)


def copy_of_plain_output(transformer: Any) -> Any:
    """Return a shallow copy whose `transform` returns what it makes, whatever `set_output` was told, or globally."""
    plain = copy.copy(transformer)
    plain.__dict__.pop("_sklearn_output_config", None)  # the copy's would be the original's
    return plain.set_output(transform="default") if hasattr(plain, "set_output") else plain


# An online service encodes row after row with the same parameters. Typed: 1 and 1.0 are equal, and not both valid.
@lru_cache(maxsize=64, typed=True)
def _validate(owner: Any, names: tuple[str, ...], *values: Any) -> None:
    validate_parameter_constraints(
        {name: owner._parameter_constraints[name] for name in names},
        dict(zip(names, values, strict=True)),
        caller_name=owner.__name__,
    )


def validate_parameters(estimator: Any, names: tuple[str, ...]) -> None:
    """Raise as scikit-learn does in `fit` unless these parameters are valid; they may have been set since.

    Values that were valid once are not looked at again, which takes two microseconds and not a hundred.

    Raises
    ------
    sklearn.utils._param_validation.InvalidParameterError
        If one is not what the estimator's `_parameter_constraints` allow.
    """
    owner: Any = type(estimator)
    values = tuple(getattr(estimator, name) for name in names)
    try:
        hash(values)
    except TypeError:  # some array or list: refused
        _validate.__wrapped__(owner, names, *values)
    else:
        _validate(owner, names, *values)


def validated_every_time(method: Method) -> Method:
    """Have a `partial_fit` refuse invalid parameters in every call; under `_fit_context` only the first one does."""

    @wraps(method)
    def checked(estimator: Any, *arguments: Any, **options: Any) -> Any:
        if not get_config()["skip_parameter_validation"]:
            estimator._validate_params()
        return method(estimator, *arguments, **options)

    return cast("Method", checked)


def csr_type() -> type[sp.csr_array] | type[sp.csr_matrix]:
    """Return the type of sparse output, array or matrix, that scikit-learn's configuration asks for.

    Versions without the `sparse_interface` setting return matrices, as their own transformers do.
    """
    is_array = get_config().get("sparse_interface", "spmatrix") == "sparray"
    return sp.csr_array if is_array else sp.csr_matrix


def transform_plainly(transformer: Any, X: Any) -> Any:
    """Return what a transformer's `transform` itself returns, whatever `set_output` or the configuration ask for.

    Codes that are used inside are no outputs, and sparse ones fit into no data frame.
    """
    method = transformer.transform
    owner = getattr(method, "__self__", None)  # of a frozen estimator's method, the estimator within
    if "transform" in getattr(type(owner), "_sklearn_auto_wrap_output_keys", ()) and hasattr(method, "__wrapped__"):
        return method.__wrapped__(owner, X)
    return method(X)


def align_sparse_interface(codes: sp.csr_array) -> sp.csr_array | sp.csr_matrix:
    """Give canonical codes as :func:`csr_type` says, without a copy of their numbers."""
    if csr_type() is sp.csr_array:
        return codes
    matrix = sp.csr_matrix((codes.data, codes.indices, codes.indptr), shape=codes.shape, copy=False)
    matrix.has_sorted_indices = True
    matrix.has_canonical_format = True
    return matrix
