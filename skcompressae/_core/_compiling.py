"""Numba's `njit` for the kernels: what it compiles is kept on disk, where there is a place for it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba.core.types.misc import unliteral
from numpy.typing import NDArray

__all__ = ["contiguous", "njit", "readable"]

_refused: list[str] = []


def _take_constants_as_numbers(kernel: Any) -> Any:
    """Have a kernel that another one calls compiled once for numbers of a type.

    Numba would compile it for each constant that it is called with as well, and once more for every counter that starts
    at 0, while it does not yet know that the counter changes (docs/research_notes_speed.md). LLVM puts the constants in
    where it pays.
    """
    if not hasattr(kernel, "get_call_template"):  # a plain function, with NUMBA_DISABLE_JIT
        return kernel
    resolve = kernel.get_call_template

    def get_call_template(args: Any, kws: Any) -> Any:
        by_name = {name: unliteral(arg) for name, arg in kws.items()}
        return resolve([unliteral(arg) for arg in args], by_name)

    kernel.get_call_template = get_call_template
    return kernel


def njit(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Compile a function as ``numba.njit(cache=True)`` does, or for this process only where nothing can be written.

    Numba keeps compiled kernels beside the module, else in the user's cache folder or in NUMBA_CACHE_DIR; with none of
    these writable, as in a container whose file system is read-only, it would raise an error at import.
    """

    def compiled(function: Callable[..., Any]) -> Any:
        try:
            return _take_constants_as_numbers(numba.njit(cache=True, **options)(function))
        except RuntimeError as error:
            if "cannot cache function" not in str(error):
                raise
            if not _refused:
                warnings.warn(
                    "Kernels are compiled anew in this process, as Numba finds no writable folder to keep them in. Set "
                    "the environment variable NUMBA_CACHE_DIR to one that lasts.",
                    RuntimeWarning,
                    stacklevel=2,
                )
            _refused.append(function.__name__)
            return _take_constants_as_numbers(numba.njit(**options)(function))

    return compiled


class _Memory:
    """Lend an array's memory by NumPy's array interface, and keep the array."""

    def __init__(self, array: NDArray[Any]) -> None:
        self.base = array  # as views call it: joblib looks there for a file that is mapped already
        self.__array_interface__ = {**array.__array_interface__, "data": (array.ctypes.data, False)}


def readable(array: NDArray[Any]) -> NDArray[Any]:
    """Return an array for kernels to read, without copying it.

    Numba compiles a kernel once more for arrays that are read-only, as memory-mapped ones are and the weights that
    joblib hands to its workers: half a minute for all that `transform` takes. Here they look like others. What is
    returned must not be written to.
    """
    return array if array.flags.writeable else np.asarray(_Memory(array))


def contiguous(array: NDArray[Any]) -> NDArray[Any]:
    """Return a plain, contiguous and read-only array, of which there may be no copy: what packed codes are made of."""
    plain = np.ascontiguousarray(array).view(np.ndarray)
    plain.setflags(write=False)
    return plain
