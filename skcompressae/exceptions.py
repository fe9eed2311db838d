"""The family of errors and warnings that skcompressae raises beside scikit-learn's own."""

from __future__ import annotations

__all__ = ["CodesFormatError", "DeadLatentsWarning", "DeviceMemoryWarning", "ModelFormatError"]


class DeadLatentsWarning(UserWarning):
    """Many latents never fire: the fitted model uses less of its code space than it pays for."""


class DeviceMemoryWarning(UserWarning):
    """The device ran out of memory and a batch was made smaller."""


class CodesFormatError(ValueError):
    """A file or buffer of packed codes is damaged, truncated, foreign or of a newer format version."""


class ModelFormatError(ValueError):
    """A file of a fitted model or a checkpoint is damaged, truncated, foreign or of a newer format version."""
