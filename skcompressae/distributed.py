"""Training on several GPUs of one machine."""

from __future__ import annotations

from skcompressae._torch._ranks import data_parallel

__all__ = ["data_parallel"]
