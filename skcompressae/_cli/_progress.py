"""Progress on stderr, for people: nothing where stderr is a file or a pipe, or `--quiet` was given."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

__all__ = ["progress_bar", "wants_progress"]


def wants_progress(is_quiet: bool) -> bool:
    """Return whether anybody would see a bar."""
    return not is_quiet and sys.stderr.isatty()


def progress_bar(n_rows: int, what: str, *, n_done: int, is_quiet: bool) -> Any:
    """Return a bar of rows; its ``update(n)`` advances it."""
    return tqdm(
        total=n_rows,
        initial=n_done,
        desc=what,
        unit="row",
        unit_scale=True,
        file=sys.stderr,
        disable=not wants_progress(is_quiet),
    )
