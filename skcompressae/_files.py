"""Files that are either the old one or the new one, whole: every writer of this package goes through here."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

__all__ = ["FULL", "FileAppearedError", "atomic_write", "put_in_place", "remove_leftovers"]

#: What a write says, without naming its file, where a disk, a quota or a limit is exhausted.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class FileAppearedError(FileExistsError):
    """A file of the wanted name was made while its content was written, and may not be replaced."""


@contextmanager
def atomic_write(path: str | os.PathLike[str], *, replaces: bool = True) -> Iterator[BinaryIO]:
    """Open a temporary file beside `path` that takes its place when the block ends without an error.

    The bytes reach the disk before the name does, so that after a crash or a power cut `path` is the old file or the
    new one, never a mixture. After an error the temporary file is removed and `path` is as it was; a killed process
    leaves its temporary file, a hidden one ending in ``.tmp``, behind.

    Parameters
    ----------
    path : path-like
        The file to write or replace, which keeps its permissions; a symbolic link is replaced itself. Its folder must
        exist.
    replaces : bool, default=True
        Whether a file of that name that is there when the block ends is replaced.

    Yields
    ------
    stream : binary file, open for writing and seeking

    Raises
    ------
    FileAppearedError
        If there is a file of that name and not `replaces`; the temporary file, which the message names, stays.
    FileExistsError
        If there is a device, a pipe or a folder of that name.

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
    _check_replaceable(target)
    # Not tempfile's: its files are private, and what is saved follows the umask like any other file. The name is cut,
    # so that what is added to it cannot make it too long.
    temporary = target.parent / f"{_temporary_start(target)}{secrets.token_hex(8)}.tmp"
    try:
        with _naming(target):
            stream = temporary.open("xb")
        with stream:
            _keep_permissions(temporary, target)  # before it holds anything
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        put_in_place(temporary, target, replaces=replaces)
    except FileAppearedError:
        raise
    except BaseException as error:
        with suppress(OSError):  # there may be none; the error is what matters
            temporary.unlink()
        if isinstance(error, OSError) and error.errno in FULL and error.filename is None:
            raise OSError(error.errno, error.strerror, str(target)) from error
        raise


def put_in_place(temporary: Path, target: Path, *, replaces: bool) -> None:
    """Give a whole file its name in one step; the name reaches the disk before the return, where folders can be synced.

    Raises
    ------
    FileAppearedError
        If there is a file of that name and not `replaces`; `temporary` stays.
    FileExistsError
        If there is a device, a pipe or a folder of that name.
    """
    _check_replaceable(target)
    with _naming(target):
        if replaces:
            _keep_permissions(temporary, target)
            os.replace(temporary, target)
        else:
            _take_free_name(temporary, target)
    if os.name == "posix":
        with suppress(OSError):  # the file is in place: a folder that may not be read, or not be synced, is no failure
            _sync_folder(target.parent)


def _sync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _check_replaceable(target: Path) -> None:
    if target.exists() and not target.is_file():
        raise FileExistsError(errno.EEXIST, "is no regular file, and not replaced", str(target))


def _keep_permissions(temporary: Path, target: Path) -> None:
    """Give a file the permissions of the one that it is to replace, as writing into that would."""
    if os.name == "posix" and target.exists():
        permissions = target.stat().st_mode & 0o777
        # only a change: some file systems allow none
        if stat.S_IMODE(temporary.stat().st_mode) != permissions:
            temporary.chmod(permissions)


def _take_free_name(temporary: Path, target: Path) -> None:
    try:
        os.link(temporary, target)  # unlike a renaming, it replaces nothing
    except OSError as error:  # the name is taken, or the file system has no links
        if target.exists():
            kept = f"appeared meanwhile and is not replaced; what was to become it is {temporary}"
            raise FileAppearedError(errno.EEXIST, kept, str(target)) from error
        os.replace(temporary, target)  # also of a symbolic link that leads nowhere
    else:
        temporary.unlink()


@contextmanager
def _naming(target: Path) -> Iterator[None]:
    """Raise errors of the system in the name of the file that was asked for, not of the temporary one."""
    try:
        yield
    except FileAppearedError:
        raise
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
