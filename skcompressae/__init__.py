"""Compress embeddings into sparse codes with a sparse autoencoder, and search them without decompressing."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from skcompressae._version import __version__

if TYPE_CHECKING:
    from skcompressae._neighbors import CodeNearestNeighbors
    from skcompressae._plot import CompressionTradeoffDisplay, LatentUsageDisplay, LossCurveDisplay
    from skcompressae._transformer import CompresSAETransformer
    from skcompressae.packed import PackedCodes
    from skcompressae.persistence import load_model, model_hash, save_model

__all__ = [
    "CodeNearestNeighbors",
    "CompresSAETransformer",
    "CompressionTradeoffDisplay",
    "LatentUsageDisplay",
    "LossCurveDisplay",
    "PackedCodes",
    "__version__",
    "load_model",
    "model_hash",
    "save_model",
]

# Where each public name lives. Loaded when first asked for, so that packed codes do not wait for scikit-learn.
_HOMES = {
    "CodeNearestNeighbors": "skcompressae._neighbors",
    "CompresSAETransformer": "skcompressae._transformer",
    "CompressionTradeoffDisplay": "skcompressae._plot",
    "LatentUsageDisplay": "skcompressae._plot",
    "LossCurveDisplay": "skcompressae._plot",
    "PackedCodes": "skcompressae.packed",
    "load_model": "skcompressae.persistence",
    "model_hash": "skcompressae.persistence",
    "save_model": "skcompressae.persistence",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the names that are loaded and those that would be."""
    return sorted({*globals(), *__all__})
