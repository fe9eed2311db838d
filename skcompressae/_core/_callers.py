"""Where a warning points to: the line outside of the libraries that called.

Invariant: the level counts from the function that warns, as `warnings.warn` does, however many decorators, wrappers
and workers of these libraries stand in between.
"""

from __future__ import annotations

import sys

__all__ = ["caller_level"]

# This one, and what calls its estimators on behalf of others: meta-estimators, their threads and their decorators.
_LIBRARIES = ("skcompressae", "sklearn", "joblib", "contextlib")


def caller_level() -> int:
    """Return the `stacklevel` of a warning for the first frame outside of the libraries, the outermost if all are in.

    Returns
    -------
    level : int
        At least 1, the function that calls this one.
    """
    level = 1
    frame = sys._getframe(1)
    while frame.f_globals.get("__name__", "").partition(".")[0] in _LIBRARIES and frame.f_back is not None:
        frame = frame.f_back
        level += 1
    return level
