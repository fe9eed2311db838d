"""Numba's `njit` for the kernels: what it compiles is kept on disk, where there is a place for it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numba

__all__ = ["njit"]

_refused: list[str] = []


def njit(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Compile a function as ``numba.njit(cache=True)`` does, or for this process only where nothing can be written.

    Numba keeps compiled kernels beside the module, else in the user's cache folder or in NUMBA_CACHE_DIR; with none of
    these writable, as in a container whose file system is read-only, it would raise an error at import.
    """

    def compiled(function: Callable[..., Any]) -> Any:
        try:
            return numba.njit(cache=True, **options)(function)
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
            return numba.njit(**options)(function)

    return compiled
