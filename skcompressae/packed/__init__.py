"""Packed codes: the same sparse codes in about two bytes per nonzero."""

from __future__ import annotations

from skcompressae.packed._quantizer import ValueQuantizer
from skcompressae.packed._residual import ResidualQuantizer
from skcompressae.packed._splitting import ByteSplit, split_bytes
from skcompressae.packed._store import PackedCodes

__all__ = ["ByteSplit", "PackedCodes", "ResidualQuantizer", "ValueQuantizer", "split_bytes"]
