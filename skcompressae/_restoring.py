"""Leave an estimator as it was: where a method that changes it fails, and for whoever uses it meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from skcompressae._compat import callback_attributes

__all__ = ["restored_on_error", "twin_of"]

Estimator = TypeVar("Estimator")


@contextmanager
def restored_on_error(estimator: Any) -> Iterator[None]:
    """Set back all attributes where the block raises or is interrupted; arrays that it wrote to stay as they are.

    But for those of scikit-learn's callbacks, which are torn down by them.
    """
    before = dict(estimator.__dict__)
    try:
        yield
    except BaseException:
        kept = before | callback_attributes(estimator)
        estimator.__dict__.update(kept)  # first: other threads that use it meanwhile find all that there was
        for name in set(estimator.__dict__) - set(kept):
            estimator.__dict__.pop(name, None)
        raise


def twin_of(estimator: Estimator) -> Estimator:
    """Return another estimator of the same attributes, all of one moment, whatever other threads set.

    Unlike a copy it has those, too, that a pickle leaves out.
    """
    twin = object.__new__(type(estimator))
    twin.__dict__.update(estimator.__dict__)
    return twin
