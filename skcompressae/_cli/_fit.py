"""`fit`: train a model on a file of embeddings."""

from __future__ import annotations

import argparse
import ast
import contextlib
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy_format

from skcompressae._cli._errors import CommandError, UsageError
from skcompressae._cli._formats import check_output, output_kind
from skcompressae._cli._messages import say
from skcompressae._cli._models import checked_model
from skcompressae._cli._npy import NpyRows
from skcompressae._cli._progress import progress_bar, wants_progress
from skcompressae._cli._sources import RowSource, block_rows_for, check_column, check_finite, open_rows
from skcompressae.exceptions import InterruptedFitWarning

__all__ = ["fit"]

_INTERRUPTED = 130
# Beside a checkpoint: which file the interrupted fit saved its weights to.
_NOTE = "fit.output"


def fit(arguments: argparse.Namespace) -> int:
    """Run ``skcompressae fit``; return 130 where Ctrl-C ended it early, with the weights so far saved."""
    output_kind(arguments.output, ("model",))
    model = _make_model(arguments)
    arguments.checkpoint_dir = model.checkpoint_dir  # it may have come by --param
    check_output(arguments.output, force=arguments.force or _was_left(arguments))
    check_column(arguments.column, arguments.input)
    source = open_rows(arguments.input, arguments.column)
    from skcompressae._checkpoint import kept_until_saved
    from skcompressae._residual_codes import check_residual_bytes

    _as_usage(check_residual_bytes, model.residual_bytes, source.n_features)
    with kept_until_saved():
        with _whole(source, arguments) as rows, warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("default")
            _fit(model, rows, source)
        was_interrupted = False
        for warning in caught:
            was_interrupted |= issubclass(warning.category, InterruptedFitWarning)
            warnings.showwarning(warning.message, warning.category, warning.filename, warning.lineno)
        output = _free_output(arguments)
        model.set_params(verbose=0).save(output)
    if output != arguments.output:
        raise CommandError(
            f"the output {arguments.output} appeared meanwhile and is not replaced; the model is saved as {output}"
        )
    if arguments.checkpoint_dir is not None:
        _note(arguments, was_interrupted=was_interrupted)
    say(
        f"{arguments.output}: {model.n_iter_} steps on {source.n_rows} rows, "
        f"{model.dead_latents_fraction_:.1%} of {len(model.components_)} latents unused",
        is_quiet=arguments.quiet,
    )
    return _INTERRUPTED if was_interrupted else 0


def _was_left(arguments: argparse.Namespace) -> bool:
    """Tell whether the output is what an interrupted fit left there: it gives way to the fit that goes on."""
    if arguments.checkpoint_dir is None:
        return False
    try:
        return json.loads((Path(arguments.checkpoint_dir) / _NOTE).read_text()) == _identity(arguments.output)
    except (OSError, ValueError):  # there is no such note, or no output
        return False


def _free_output(arguments: argparse.Namespace) -> str:
    """Return where to save: the output, or a name beside it where a file of its own has appeared meanwhile."""
    output = Path(arguments.output)
    if arguments.force or not output.exists() or _was_left(arguments):
        return str(arguments.output)
    names = (output.with_stem(f"{output.stem}-{number}") for number in count(2))
    return str(next(name for name in names if not name.exists()))


def _note(arguments: argparse.Namespace, *, was_interrupted: bool) -> None:
    """Write down, beside the checkpoint, what an interrupted fit left; forget it when a fit is done."""
    note = Path(arguments.checkpoint_dir) / _NOTE
    if was_interrupted:
        note.write_text(json.dumps(_identity(arguments.output)))
    else:
        note.unlink(missing_ok=True)


def _identity(path: str) -> list[Any]:
    """Return what tells a file from another one, and from a later one of its name."""
    status = os.stat(path)
    return [str(Path(path).resolve()), status.st_size, status.st_mtime_ns]


def _fit(model: Any, rows: Any, source: RowSource) -> None:
    try:
        model.fit(rows)
    except ValueError as error:
        n_block_rows = block_rows_for(source.n_features, source.dtype)
        for start in range(0, source.n_rows, n_block_rows):
            check_finite(rows[start : start + n_block_rows], source, start, error)
        raise


def _make_model(arguments: argparse.Namespace) -> Any:
    """Return the estimator that the options and ``--param`` describe."""
    from skcompressae import CompresSAETransformer
    from skcompressae._fitting import check_loss_weights

    model: Any = CompresSAETransformer()
    known = model.get_params()
    given: dict[str, Any] = {}
    for text in arguments.param:
        name, equals, value = text.partition("=")
        if not equals or name not in known:
            raise UsageError(f"--param takes NAME=VALUE with one of the names {', '.join(sorted(known))}; got {text!r}")
        given[name] = _value(value)
    options = {name: value for name in known if (value := getattr(arguments, name, None)) is not None}
    if twice := sorted(set(given) & set(options)):
        raise UsageError(f"{twice[0]} is given twice, by --param and by an option of its own")
    given.update(options)
    if given.get("norm") == "none":
        given["norm"] = None
    if isinstance(given.get("loss_weights"), list):
        given["loss_weights"] = tuple(given["loss_weights"])
    model = checked_model(model, {"verbose": int(wants_progress(arguments.quiet)), **given})
    _as_usage(check_loss_weights, model.loss_weights)
    return model


def _as_usage(check: Callable[..., Any], *values: Any) -> None:
    """Have what a check of parameters refuses be an error of the arguments."""
    try:
        check(*values)
    except ValueError as error:
        raise UsageError(str(error)) from error


def _value(text: str) -> Any:
    """Return a value that is written as in JSON or Python, or as a word, such as data in ``init=data``."""
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # the latter where parentheses nest
            continue
    return text


@contextlib.contextmanager
def _whole(source: RowSource, arguments: argparse.Namespace) -> Iterator[Any]:
    """Give the rows as one array on disk: the file itself, or a temporary .npy beside the output."""
    if isinstance(source, NpyRows):
        yield source.map_rows()
        return
    folder = Path(arguments.output).resolve().parent
    with tempfile.TemporaryDirectory(prefix=".fit-", dir=folder) as scratch:
        path = Path(scratch) / "rows.npy"
        # written, not stored through a map: of that a full disk is a signal that ends the process
        with path.open("wb") as stream:
            shape = source.n_rows, source.n_features
            header = {"descr": source.dtype.str, "fortran_order": False, "shape": shape}
            npy_format.write_array_header_1_0(stream, header)
            with progress_bar(source.n_rows, "read", n_done=0, is_quiet=arguments.quiet) as bar:
                for block in source.blocks(0, block_rows_for(source.n_features, source.dtype)):
                    stream.write(np.ascontiguousarray(block, dtype=source.dtype).data)
                    bar.update(len(block))
        rows = np.load(path, mmap_mode="r")
        if os.name == "posix":  # the map keeps the file, and a process that is killed leaves its bytes to nobody
            path.unlink()
        yield rows
        del rows
