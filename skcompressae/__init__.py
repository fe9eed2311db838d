"""Compress embeddings into sparse codes with a sparse autoencoder, and search them without decompressing."""

from skcompressae._transformer import CompresSAETransformer
from skcompressae._version import __version__

__all__ = ["CompresSAETransformer", "__version__"]
