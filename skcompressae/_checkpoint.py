"""Checkpoints of fit: one file with all that the rest of the training depends on, replaced in one step.

The file is a container of `_model_format`. Its header names the fit that it belongs to (parameters that decide the
training, a digest of the rows, the starting weights of a warm start), so that it continues no other one.
"""

from __future__ import annotations

import hashlib
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skcompressae._core._random_states import plain_random_state
from skcompressae._core._threads import row_blocks
from skcompressae._files import remove_leftovers
from skcompressae._fitting import BLOCK_ROWS
from skcompressae._model_format import check_array, read_model_file, write_model_file
from skcompressae._model_io import library_versions
from skcompressae._torch._training import TrainingState, reads_in_runs
from skcompressae._torch._weights import Moments, Weights
from skcompressae.exceptions import ModelFormatError

__all__ = ["CHECKPOINT_NAME", "FitCheckpoint", "SavedFit", "kept_until_saved", "rows_digest"]

CHECKPOINT_NAME = "fit.checkpoint"
_KIND = "skcompressae fit checkpoint"
_VERSION = 1
_WEIGHTS = ("encoder_weights", "encoder_bias", "components")

# Checkpoints of fits that are done in a block of `kept_until_saved`; None outside of one.
_done: ContextVar[list[FitCheckpoint] | None] = ContextVar("skcompressae_done_checkpoints", default=None)


@contextmanager
def kept_until_saved() -> Iterator[None]:
    """Let fits that are done keep their checkpoints until the block, which saves the models, ends without an error."""
    done: list[FitCheckpoint] = []
    token = _done.set(done)
    try:
        yield
    finally:
        _done.reset(token)
    for checkpoint in done:
        checkpoint.remove()


def rows_digest(rows: NDArray[Any]) -> str:
    """Return the SHA-256 of rows with their shape and dtype, reading them block by block."""
    digest = hashlib.sha256(f"{rows.shape} {rows.dtype.str}\n".encode())
    for start, stop in row_blocks(len(rows), BLOCK_ROWS):
        digest.update(np.ascontiguousarray(rows[start:stop]).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


@dataclass(frozen=True)
class SavedFit:
    """A checkpoint as it was read.

    Attributes
    ----------
    state : TrainingState
    has_mean_latent : bool
    split_start : dict
        The random numbers before the rows were split into training and validation.
    """

    state: TrainingState
    has_mean_latent: bool
    split_start: dict[str, Any]


class FitCheckpoint:
    """The checkpoint of one fit in its folder.

    Parameters
    ----------
    folder : path-like
        Made if it is not there.
    parameters : mapping of str to JSON values
        Those that decide the training.
    rows : array of shape (n_samples, n_features)
    start : str or None
        Digest of the weights that training continues from, where there were some.
    """

    def __init__(
        self, folder: str | os.PathLike[str], parameters: Mapping[str, Any], rows: NDArray[Any], start: str | None
    ) -> None:
        self.path = Path(folder) / CHECKPOINT_NAME
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path.parent):  # better refused now than at the first checkpoint
                pass
        except (FileExistsError, NotADirectoryError) as error:
            raise NotADirectoryError(
                f"checkpoint_dir must be a folder, or where one can be made, got {os.fspath(folder)!r}"
            ) from error
        except OSError as error:
            required = f"checkpoint_dir must be a folder in which files can be made ({error.strerror})"
            raise OSError(error.errno, required, os.fspath(folder)) from error
        remove_leftovers(self.path)
        self._n_features = rows.shape[1]
        self._n_components = int(parameters["n_components"])
        self._fit: dict[str, Any] = {
            "parameters": dict(parameters),
            # The order of batches differs between large mapped files and rows in memory.
            "rows": {"shape": list(rows.shape), "dtype": rows.dtype.str, "memory_mapped": reads_in_runs(rows)},
            "rows_sha256": rows_digest(rows),
            "start_sha256": start,
        }

    def of_start(self, start: str | None) -> FitCheckpoint:
        """Return the checkpoint of a fit of the same rows and parameters from other weights."""
        other = copy(self)
        other._fit = {**self._fit, "start_sha256": start}
        return other

    @property
    def start(self) -> str | None:
        """Digest of the weights that the fit began from."""
        start: str | None = self._fit["start_sha256"]
        return start

    def save(self, state: TrainingState, has_mean_latent: bool, split_start: dict[str, Any]) -> None:
        """Replace the checkpoint by this state."""
        arrays = _named("", state.weights.arrays)
        arrays.update(_named("moments_", state.moments.arrays))
        if state.best_weights is not None:
            arrays.update(_named("best_", state.best_weights.arrays))
        arrays["loss_curve"] = np.array(state.loss_curve, dtype=np.float64)
        arrays["validation_loss_curve"] = np.array(state.validation_curve, dtype=np.float64)
        arrays["validation_steps"] = np.array(state.validation_steps, dtype=np.int64)
        header = {
            "versions": library_versions(),
            "fit": self._fit,
            "n_steps": state.n_steps,
            "moments_n_steps": state.moments.n_steps,
            "best_loss": state.best_loss if math.isfinite(state.best_loss) else None,
            "has_best_weights": state.best_weights is not None,
            "n_without_gain": state.n_without_gain,
            "batch_size": state.batch_size,
            "has_mean_latent": has_mean_latent,
            "split_start": plain_random_state(split_start),
            "epoch_start": plain_random_state(state.epoch_start),
            "epoch_position": state.epoch_position,
        }
        write_model_file(self.path, _KIND, _VERSION, header, arrays)

    def load(self) -> SavedFit | None:
        """Return the checkpoint, or None where there is none.

        Raises
        ------
        ValueError
            If it belongs to a fit with other parameters or other rows.
        ModelFormatError
            If it is damaged, foreign, or of a newer version.
        """
        if not self.path.exists():
            return None
        header, arrays = read_model_file(self.path, _KIND, _VERSION)
        try:
            self._check_same_fit(header["fit"])
            return self._parse(header, arrays)
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise ModelFormatError(f"{self.path} is damaged: its header describes no fit ({error!r}).") from error

    def remove(self) -> None:
        """Remove the file: the fit is done; in `kept_until_saved`, when that ends."""
        done = _done.get()
        if done is None:
            self.path.unlink(missing_ok=True)
        else:
            done.append(self)

    def _check_same_fit(self, saved: Mapping[str, Any]) -> None:
        differences = [
            f"{name}={saved['parameters'].get(name)!r} there, {value!r} here"
            for name, value in self._fit["parameters"].items()
            if saved["parameters"].get(name) != value
        ]
        if saved["rows"] != self._fit["rows"]:
            differences.append(f"X {_describe(saved['rows'])} there, {_describe(self._fit['rows'])} here")
        elif saved["rows_sha256"] != self._fit["rows_sha256"]:
            differences.append("X has other values")
        if saved["start_sha256"] != self._fit["start_sha256"]:
            differences.append("training starts from other weights")
        if differences:
            raise ValueError(
                f"checkpoint_dir holds the checkpoint of another fit, {self.path}: {'; '.join(differences)}. "
                "Continue that fit, pass another folder, or delete the file to start anew."
            )

    def _parse(self, header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> SavedFit:
        shapes = ((self._n_components, self._n_features), (self._n_components,), (self._n_components, self._n_features))

        def read(prefix: str, leading: tuple[int, ...] = ()) -> list[NDArray[Any]]:
            # Copied into memory of NumPy's own making, as that of an uninterrupted fit is: aligned and writable.
            return [
                check_array(self.path, arrays, prefix + name, "float32", (*leading, *shape)).copy()
                for name, shape in zip(_WEIGHTS, shapes, strict=True)
            ]

        def curve(name: str, dtype: str, length: int | None) -> list[Any]:
            return check_array(self.path, arrays, name, dtype, (length,), is_finite=False).tolist()

        counts = [header[name] for name in ("n_steps", "moments_n_steps", "n_without_gain", "epoch_position")]
        if not all(type(count) is int and count >= 0 for count in (*counts, header["batch_size"])):
            raise ModelFormatError(f"{self.path} is damaged: its header has impossible counts.")
        validation_curve = curve("validation_loss_curve", "float64", None)
        best_loss = header["best_loss"]
        if best_loss is not None and type(best_loss) is not float:
            raise ModelFormatError(f"{self.path} is damaged: its header has a best loss of {best_loss!r}.")
        encoder, bias, decoder = read("moments_", (2,))
        state = TrainingState(
            weights=Weights(*read("")),
            moments=Moments(encoder, bias, decoder, n_steps=header["moments_n_steps"]),
            loss_curve=curve("loss_curve", "float64", header["n_steps"]),
            validation_curve=validation_curve,
            validation_steps=curve("validation_steps", "int64", len(validation_curve)),
            best_loss=math.inf if best_loss is None else best_loss,
            best_weights=Weights(*read("best_")) if header["has_best_weights"] else None,
            n_without_gain=header["n_without_gain"],
            batch_size=header["batch_size"],
            epoch_start=header["epoch_start"],
            epoch_position=header["epoch_position"],
        )
        return SavedFit(state, bool(header["has_mean_latent"]), header["split_start"])


def _named(prefix: str, arrays: tuple[NDArray[Any], ...]) -> dict[str, NDArray[Any]]:
    return {prefix + name: array for name, array in zip(_WEIGHTS, arrays, strict=True)}


def _describe(rows: Mapping[str, Any]) -> str:
    mapped = " memory-mapped" if rows["memory_mapped"] else ""
    return f"of shape {tuple(rows['shape'])}, {np.dtype(rows['dtype']).name}{mapped},"
