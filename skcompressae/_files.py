"""Files that are either the old one or the new one, whole: every writer of this package goes through here."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

__all__ = ["atomic_write", "remove_leftovers"]


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a temporary file beside `path` that takes its place when the block ends without an error.

    The bytes reach the disk before the name does, so that after a crash or a power cut `path` is the old file or the
    new one, never a mixture. After an error the temporary file is removed and `path` is as it was; a killed process
    leaves its temporary file, a hidden one ending in ``.tmp``, behind.

    Parameters
    ----------
    path : path-like
        The file to write or replace; a symbolic link is replaced itself. Its folder must exist.

    Yields
    ------
    stream : binary file, open for writing and seeking

    Examples
    --------
    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> from skcompressae._files import atomic_write
    >>> with TemporaryDirectory() as folder:
    ...     path = Path(folder) / "greeting"
    ...     with atomic_write(path) as stream:
    ...         _ = stream.write(b"hello")
    ...     path.read_bytes()
    b'hello'
    """
    target = Path(path)
    # Not tempfile's: its files are private, and what is saved follows the umask like any other file. The name is cut,
    # so that what is added to it cannot make it too long.
    temporary = target.parent / f"{_temporary_start(target)}{secrets.token_hex(8)}.tmp"
    with _naming(target):
        stream = temporary.open("xb")
    try:
        with stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        with _naming(target):
            os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if os.name == "posix":
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the new name
        finally:
            os.close(folder)


@contextmanager
def _naming(target: Path) -> Iterator[None]:
    """Raise errors of the system in the name of the file that was asked for, not of the temporary one."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(target)) from error


def remove_leftovers(path: str | os.PathLike[str]) -> None:
    """Remove the temporary files that killed writers of `path` left behind; nobody may be writing it meanwhile."""
    target = Path(path)
    start = _temporary_start(target)
    for entry in target.parent.iterdir():
        if entry.name.startswith(start) and entry.name.endswith(".tmp"):
            entry.unlink(missing_ok=True)


def _temporary_start(target: Path) -> str:
    return f".{target.name[:40]}."
