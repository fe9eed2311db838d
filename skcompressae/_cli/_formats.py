"""Kinds of files: what is read is recognised by its content, what is written is named by its suffix."""

from __future__ import annotations

import argparse
import os
import stat
import struct
import zipfile
import zlib
from pathlib import Path

from skcompressae._cli._errors import CommandError, UsageError, is_of_the_system

__all__ = ["ZIP_ERRORS", "check_apart", "check_output", "kind_of", "output_kind"]

# What `zipfile` raises on a damaged archive. OSError: a damaged directory sends it to places before the start of the
# file; NotImplementedError: a damaged field names a method of compression that there is not.
ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    OSError,
    RuntimeError,
    NotImplementedError,
    ValueError,
    OverflowError,
)
_MAGICS = (
    (b"\x93NUMPY", "npy"),
    (b"PK\x03\x04", "zip"),
    (b"PAR1", "parquet"),
    (b"SKCPACK", "packed"),
    (b"SKCAENNI", "index"),
)
_SUFFIXES = {
    ".npy": "npy",
    ".npz": "npz",
    ".parquet": "parquet",
    ".skc": "packed",
    ".ska": "archive",
    ".safetensors": "model",
    ".pt": "reference",
    ".onnx": "onnx",
    ".tsv": "tsv",
    ".json": "json",
    ".png": "png",
    ".svg": "svg",
    ".pdf": "pdf",
}
# Arguments of the commands that name files.
_READ, _WRITTEN = ("model", "input", "codes", "queries"), ("output", "save_index", "json", "picture")
# What pickles of the protocols in use begin with.
_PICKLES = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def kind_of(path: str | os.PathLike[str]) -> str:
    """Return what a file holds by its first bytes.

    Returns
    -------
    kind : {"npy", "npz", "parquet", "packed", "index", "model", "reference"}
        "packed" stands for packed codes and for their archives, "reference" for a checkpoint of PyTorch.

    Raises
    ------
    CommandError
        If it is none of these, no regular file, or a damaged zip archive.
    OSError
        If it cannot be read.
    """
    mode = os.stat(path).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # what a folder is, opening it says
        raise CommandError(f"{path} is no regular file, and files are read more than once; save what it gives to one")
    with open(path, "rb") as stream:
        head = stream.read(16)
    for magic, kind in _MAGICS:
        if head.startswith(magic):
            return _kind_of_zip(path) if kind == "zip" else kind
    if len(head) >= 9 and head[8:9] == b"{":
        return "model"
    if head.startswith(_PICKLES):
        raise CommandError(
            f"{path} is a pickle, which runs code when it is opened; save a model with its save() method, embeddings "
            "with numpy.save"
        )
    raise CommandError(
        f"{path} is no file that this command knows: .npy, .npz (SciPy), Parquet, packed codes, a search index or a "
        f"model; it begins with {head[:8]!r}. Embeddings in text can be rewritten with numpy.save."
    )


def _kind_of_zip(path: str | os.PathLike[str]) -> str:
    """Tell a checkpoint of PyTorch from the arrays of SciPy: both are zip archives, and a damaged one may be either."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except ZIP_ERRORS as error:
        if is_of_the_system(error):
            raise
        raise CommandError(f"{path} is damaged: {error}") from error
    return "reference" if any(name.endswith("data.pkl") for name in names) else "npz"


def output_kind(path: str | os.PathLike[str], allowed: tuple[str, ...]) -> str:
    """Return the kind of file that the suffix of an output names.

    Raises
    ------
    UsageError
        If the suffix names none of the kinds in `allowed`.
    ImportError
        If writing that kind needs a package that is not installed: better now than after hours of work.
    """
    suffix = Path(path).suffix.lower()
    kind = _SUFFIXES.get(suffix)
    if kind not in allowed:
        known = ", ".join(suffix for suffix, known in _SUFFIXES.items() if known in allowed)
        which = f"one of {known}" if len(allowed) > 1 else known
        raise UsageError(f"the output {path} must end in {which}; got {suffix or 'no suffix'}")
    if kind == "parquet":
        from skcompressae._arrow_columns import import_pyarrow

        import_pyarrow("Parquet files")
    if kind == "onnx":
        from skcompressae._onnx_nodes import import_onnx

        import_onnx()
    if kind in ("png", "svg", "pdf"):
        from skcompressae._plot._axes import require_matplotlib

        require_matplotlib(f"a {suffix} picture")
    return kind


def check_apart(arguments: argparse.Namespace) -> None:
    """Refuse a command that would write over one of its own inputs, or two of its outputs to one file.

    Raises
    ------
    UsageError
        If two of the files are one, by whatever names.
    """
    inputs, outputs = (
        [path for name in names if isinstance(path := getattr(arguments, name, None), str)]
        for names in (_READ, _WRITTEN)
    )
    for n, output in enumerate(outputs):
        if any(_is_same(output, path) for path in inputs):
            raise UsageError(f"the output {output} is an input of this command; give another name")
        if any(_is_same(output, path) for path in outputs[:n]):
            raise UsageError(f"two outputs of this command would be the file {output}; give another name to one")


def _is_same(one: str, other: str) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:  # one of them is not there
        return Path(one).resolve() == Path(other).resolve()


def check_output(path: str | os.PathLike[str], *, force: bool) -> None:
    """Refuse an output before any work is done: one that exists, or whose folder does not.

    Raises
    ------
    CommandError
        If there is a file and not `force`, the folder is missing or may not be written to.
    """
    target = Path(path)
    if target.is_dir():
        raise CommandError(f"the output {path} is a folder")
    if target.exists() and not target.is_file():
        raise CommandError(f"the output {path} is no regular file")
    if target.exists() and not force:
        raise CommandError(f"the output {path} exists; give --force to replace it, or another name")
    if not target.parent.is_dir():
        raise CommandError(f"the folder of the output {path} does not exist")
    if not os.access(target.parent, os.W_OK):
        raise CommandError(f"the folder of the output {path} may not be written to")
