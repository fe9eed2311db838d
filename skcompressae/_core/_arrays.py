"""The array types that the pure layer passes around."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["FloatArray", "IndexArray", "WordArray"]

FloatArray: TypeAlias = NDArray[np.floating[Any]]
IndexArray: TypeAlias = NDArray[np.int32]
WordArray: TypeAlias = NDArray[np.uint32]  # two columns rounded to bfloat16 in each, see `_words.py`
