"""Work that survives being killed: streams that only grow, and a journal that says how much of them counts.

A folder beside the output, ``<output>.partial``, holds one file per stream and ``journal``: a CRC-32 in hexadecimal on
one line, then JSON. A step appends to the streams, flushes them to the disk, then replaces the journal in one step.
Whatever a killed process wrote after its last journal is cut off, so the streams are those of a process that was never
killed.
"""

from __future__ import annotations

import json
import os
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from skcompressae._cli._errors import CommandError
from skcompressae._cli._formats import check_output
from skcompressae._files import FileAppearedError, atomic_write, put_in_place

__all__ = ["Spool", "SpoolReader"]

_VERSION = 1
_CHUNK_BYTES = 1 << 24
# Each further one needs another process that ends its work in the microseconds between a folder and its lock.
_LOCK_ATTEMPTS = 10
_AT_WORK = "another process is at work on {}; wait for it, or end it"
# Of a model or an input, what tells a reader nothing.
_DIGESTS = ("hash", "sha256_of_samples", "modified_ns")


class Spool:
    """Streams of arrays in a folder beside an output.

    Parameters
    ----------
    output : path-like
        What the streams will become.
    identity : mapping
        What the work depends on, JSON: a leftover with another identity is refused.
    streams : mapping of str to dtype
    restart : bool
        Whether to throw a leftover away.
    force : bool
        Whether an output that exists is replaced.

    Attributes
    ----------
    n_rows : int
        Rows that the streams hold.
    state : dict
        What the caller keeps in the journal, JSON.

    Raises
    ------
    CommandError
        If there is a leftover of other work, a damaged one, another process is at work on this output, or it exists.
    """

    def __init__(
        self,
        output: str | os.PathLike[str],
        identity: Mapping[str, Any],
        streams: Mapping[str, np.dtype[Any]],
        *,
        restart: bool,
        force: bool,
    ) -> None:
        self.folder = Path(f"{os.fspath(output)}.partial")
        self._identity = json.loads(json.dumps(identity))
        self._dtypes = dict(streams)
        self._force = force
        self.n_rows = 0
        self.state: dict[str, Any] = {}
        self._checksums = dict.fromkeys(streams, 0)
        self._sizes = dict.fromkeys(streams, 0)
        self._files: dict[str, BinaryIO] = {}
        self._is_closed = False
        self._lock = _locked_folder(self.folder)
        try:
            check_output(output, force=force)  # another process may have made it before it let go of the lock
            if restart:
                self._clear()
            self._resume()
            for name in streams:
                self._files[name] = self._path(name).open("r+b" if self._path(name).exists() else "xb")
                self._files[name].truncate(self._sizes[name])
                self._files[name].seek(0, os.SEEK_END)
        except BaseException:
            self.close()
            raise

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.bin"

    @property
    def _journal(self) -> Path:
        return self.folder / "journal"

    def _clear(self) -> None:
        self._check_content()
        self._journal.unlink(missing_ok=True)
        for path in self.folder.glob("*.bin"):
            path.unlink()

    def _check_content(self) -> None:
        strange = [
            path.name
            for path in self.folder.iterdir()
            if path.name not in ("journal", "lock") and path.suffix not in (".bin", ".tmp")
        ]
        if strange:
            raise CommandError(f"{self.folder} holds {strange[0]}, which no unfinished work leaves; it is left alone")

    def _resume(self) -> None:
        self._check_content()
        if not self._journal.exists():
            self._clear()  # killed before its first step was whole
            return
        again = "give --restart to throw the unfinished work away, or another output"
        try:
            checksum, _, text = self._journal.read_bytes().partition(b"\n")
            if checksum != _text_checksum(text):
                raise ValueError("its checksum does not match")
            journal = json.loads(text)
            found, n_rows, state = dict(journal["identity"]), journal["n_rows"], dict(journal["state"])
            sizes, checksums = dict(journal["sizes"]), dict(journal["crc32"])
            counts = [n_rows, *sizes.values(), *checksums.values()]
            if journal["version"] != _VERSION or not all(type(count) is int and count >= 0 for count in counts):
                raise ValueError("impossible numbers, or a newer version")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise CommandError(f"{self._journal} is damaged ({error}); {again}") from error
        if found != self._identity:
            different = [
                key + _differences(found.get(key), self._identity.get(key))
                for key in {**found, **self._identity}
                if found.get(key) != self._identity.get(key)
            ]
            raise CommandError(
                f"{self.folder} holds unfinished work with another {' and another '.join(different)}; {again}"
            )
        if set(sizes) != set(self._dtypes) or set(checksums) != set(self._dtypes):
            raise CommandError(f"{self._journal} is damaged (its streams are {sorted(sizes)}); {again}")
        for name, size in sizes.items():
            if _checksum(self._path(name), size) != checksums[name]:
                raise CommandError(f"{self._path(name)} is damaged; {again}")
        self.n_rows, self.state, self._sizes, self._checksums = n_rows, state, sizes, checksums

    def append(self, n_rows: int, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Add rows to every stream and make them count."""
        for name, array in arrays.items():
            data = np.ascontiguousarray(array, self._dtypes[name]).reshape(-1).view(np.uint8).data
            self._files[name].write(data)
            self._checksums[name] = zlib.crc32(data, self._checksums[name])
            self._sizes[name] += data.nbytes
        self.n_rows += n_rows
        self.commit()

    def commit(self) -> None:
        """Make all that was appended count, whatever happens next."""
        for stream in self._files.values():
            stream.flush()
            os.fsync(stream.fileno())
        journal = {
            "version": _VERSION,
            "identity": self._identity,
            "n_rows": self.n_rows,
            "state": self.state,
            "sizes": self._sizes,
            "crc32": self._checksums,
        }
        with atomic_write(self._journal) as stream:
            text = json.dumps(journal).encode()
            stream.write(_text_checksum(text) + b"\n" + text)

    def dtype(self, name: str) -> np.dtype[Any]:
        """Return the dtype of a stream."""
        return self._dtypes[name]

    def n_items(self, name: str) -> int:
        """Return how many items a stream holds."""
        return self._sizes[name] // self._dtypes[name].itemsize

    def map_stream(self, name: str) -> NDArray[Any]:
        """Return a stream, mapped and read-only."""
        if not self._sizes[name]:
            return np.empty(0, self._dtypes[name])
        return np.memmap(self._path(name), self._dtypes[name], mode="r", shape=(self.n_items(name),))

    def pieces(self, name: str) -> Iterator[NDArray[Any]]:
        """Yield a stream from its start, in pieces of some MiB."""
        reader = SpoolReader(self._path(name), self._dtypes[name])
        n_left = self.n_items(name)
        while n_left:
            piece = reader.read(min(n_left, _CHUNK_BYTES // self._dtypes[name].itemsize))
            n_left -= len(piece)
            yield piece

    def reader(self, name: str) -> SpoolReader:
        """Return a stream to be read from its start."""
        return SpoolReader(self._path(name), self._dtypes[name])

    def finish(self, output: str | os.PathLike[str], write: Callable[[Path], None]) -> None:
        """Let `write` make a file of the streams, put it in the place of `output` in one step, and end the work.

        A process killed in between leaves the streams, and the next one makes the file again.

        Raises
        ------
        CommandError
            If a file has appeared in that place and not `force`; the work stays.
        """
        result = self.folder / "result.tmp"
        result.unlink(missing_ok=True)
        write(result)
        with result.open("r+b") as stream:
            os.fsync(stream.fileno())
        try:
            put_in_place(result, Path(output), replaces=self._force)
        except FileAppearedError as error:
            result.unlink()  # the streams stay
            raise CommandError(
                f"the output {output} appeared meanwhile and is not replaced; move it away or give --force, and the "
                f"same command makes it of the finished work in {self.folder}"
            ) from error
        self.remove()

    def close(self) -> None:
        """Close the streams; the work stays, where there is any."""
        if self._is_closed:  # the folder may be another process's by now
            return
        self._is_closed = True
        for stream in self._files.values():
            with suppress(OSError):  # where the disk is full: what is not flushed yet does not count
                stream.close()
        try:
            if not self._journal.exists():
                self._remove_untouched()
        finally:
            self._lock.release()

    def _remove_untouched(self) -> None:
        for name in self._files:
            self._path(name).unlink(missing_ok=True)
        with suppress(OSError):  # of another's files, which stay
            (self.folder / "lock").unlink(missing_ok=True)
            self.folder.rmdir()

    def remove(self) -> None:
        """Delete the work, which its output has replaced."""
        self._journal.unlink(missing_ok=True)  # first: streams without it are no work
        for path in self.folder.glob("*.tmp"):
            path.unlink()
        self.close()


class SpoolReader:
    """A stream, read from front to back."""

    def __init__(self, path: Path, dtype: np.dtype[Any]) -> None:
        self._path = path
        self._dtype = dtype
        self._offset = 0

    def read(self, n_items: int) -> NDArray[Any]:
        """Return the next items."""
        items = np.fromfile(self._path, self._dtype, n_items, offset=self._offset)
        if len(items) != n_items:
            raise CommandError(f"{self._path} ended while it was read")
        self._offset += items.nbytes
        return items


def _differences(there: Any, here: Any) -> str:
    """Return in brackets which entries of two mappings differ, but for digests."""
    if not isinstance(there, dict) or not isinstance(here, dict):
        return ""
    named = [
        f"{key}={there.get(key)!r} there, {here.get(key)!r} here"
        for key in {**here, **there}
        if key not in _DIGESTS and there.get(key) != here.get(key)
    ]
    return f" ({'; '.join(named)})" if named else ""


def _text_checksum(text: bytes) -> bytes:
    return b"%08x" % zlib.crc32(text)


def _checksum(path: Path, size: int) -> int | None:
    """Return the CRC-32 of the first `size` bytes of a file, None where it has fewer."""
    checksum, left = 0, size
    if not path.exists():
        return 0 if size == 0 else None
    with path.open("rb") as stream:
        while left:
            data = stream.read(min(left, _CHUNK_BYTES))
            if not data:
                return None
            checksum, left = zlib.crc32(data, checksum), left - len(data)
    return checksum


def _locked_folder(folder: Path) -> _Lock:
    """Make a folder, unless there is one, and lock it, whatever a process does that deletes it meanwhile."""
    for _ in range(_LOCK_ATTEMPTS):
        try:
            folder.mkdir(exist_ok=True)
            lock = _Lock(folder / "lock")
        except FileExistsError as error:
            if os.path.lexists(folder):
                raise CommandError(f"{folder} is in the way; it is where unfinished work is kept") from error
        except FileNotFoundError:
            if not folder.parent.is_dir():
                raise
        else:
            if lock.is_in_place():
                return lock
            lock.release()
    raise CommandError(_AT_WORK.format(folder))


class _Lock:
    """A file that one process holds at a time; a killed process lets go of it. Windows has none of this."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None
        if sys.platform == "win32":
            return
        import fcntl

        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._descriptor)
            self._descriptor = None
            raise CommandError(_AT_WORK.format(path.parent)) from error

    def is_in_place(self) -> bool:
        """Return whether the file was not deleted between its opening and its locking, which locks nothing."""
        if self._descriptor is None:
            return True
        try:
            return os.path.samestat(os.fstat(self._descriptor), os.stat(self._path))
        except FileNotFoundError:
            return False

    def release(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
