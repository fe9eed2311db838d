"""States of NumPy's random number generators as text can hold them."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["plain_random_state"]


def plain_random_state(state: Any) -> Any:
    """Return the state of a random number generator, of whatever kind, as JSON can hold it exactly."""
    if isinstance(state, dict):
        return {name: plain_random_state(value) for name, value in state.items()}
    if isinstance(state, np.ndarray):
        return state.tolist()
    return state.item() if isinstance(state, np.generic) else state
