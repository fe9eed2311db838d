"""Leave an estimator as it was where a method that changes it fails."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from skcompressae._compat import callback_attributes

__all__ = ["restored_on_error"]


@contextmanager
def restored_on_error(estimator: Any) -> Iterator[None]:
    """Set back all attributes where the block raises or is interrupted; arrays that it wrote to stay as they are.

    But for those of scikit-learn's callbacks, which are torn down by them.
    """
    before = dict(estimator.__dict__)
    try:
        yield
    except BaseException:
        of_callbacks = callback_attributes(estimator)
        estimator.__dict__.clear()
        estimator.__dict__.update(before | of_callbacks)
        raise
