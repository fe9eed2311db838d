"""The order of the examples, and the state each starts from."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

ORDER = (
    "quickstart_search",
    "recall_against_bytes",
    "grid_search_k",
    "recommendations",
    "reading_latents",
    "streaming_parquet",
    "serving_qdrant",
    "serving_postgres",
    "encoding_dask",
)
_FILTERS = warnings.filters[:]


def position(name: str) -> int:
    """Return where an example stands in the gallery; the build fails for one that has no place."""
    return ORDER.index(Path(name).stem.removeprefix("plot_"))


def reset_warnings(gallery_conf: dict[str, Any], fname: str, when: str) -> None:
    """Turn warnings into errors while an example runs, as in the tests, and put Sphinx's own filters back."""
    warnings.filters[:] = _FILTERS
    if when == "before":
        warnings.simplefilter("error")
        # the examples show their figures, the build has no screen
        warnings.filterwarnings("ignore", message=".*non-interactive.*")
