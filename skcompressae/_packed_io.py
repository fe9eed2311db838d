"""The container file of packed codes: checked header, aligned sections, atomic writes.

Layout, all integers little-endian
----------------------------------
====== ================ ====================================================================================
offset type             content
====== ================ ====================================================================================
0      8 bytes          ``SKCPACK`` and the format version, one byte
8      uint64           header size H: a multiple of 64, from offset 0 to the first section
16     uint32           CRC-32 of bytes 0 to 16 followed by bytes 20 to H
20     uint32           0
24     JSON, UTF-8      ``{"meta": ..., "sections": [{name, dtype, shape, offset, nbytes, crc32}], "file_size": n}``,
                        filled up with spaces to H
H      sections         in the listed order, each at a multiple of 64, zero bytes between (a reader checks)
====== ================ ====================================================================================

The header is authenticated against damage before it is parsed, and every size in it against the file before anything
is allocated. Every section has a CRC-32 of its own; reading it whole is left to the caller for sections that are
memory-mapped. A format change raises `FORMAT_VERSION`, keeps a reader for the old one and adds a golden file.
"""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray

from skcompressae._files import atomic_write
from skcompressae.exceptions import CodesFormatError

__all__ = ["FORMAT_VERSION", "Container", "SectionSource", "container_bytes", "write_container"]

Array: TypeAlias = NDArray[Any]
FORMAT_VERSION = 1
_MAGIC = b"SKCPACK"
_ALIGNMENT = 64
_PRELUDE = 24
# Far above any real header (a few hundred bytes): a bound on what is read before the checksum.
_MAX_HEADER = 1 << 20
_DTYPES = ("|u1", "<u2", "<u4", "<f4", "<i8")
_CHUNK = 1 << 24


@dataclass(frozen=True)
class SectionSource:
    """What to write: a dtype, the full shape and the arrays that follow each other along the first axis."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    parts: Iterable[Array]


@dataclass(frozen=True)
class _Section:
    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int
    nbytes: int
    crc32: int


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _header(meta: Mapping[str, Any], sections: list[dict[str, Any]], size: int, file_size: int) -> bytes:
    text = json.dumps({"meta": dict(meta), "sections": sections, "file_size": file_size}, sort_keys=True).encode()
    body = b"\0\0\0\0" + text.ljust(size - _PRELUDE)
    start = _MAGIC + bytes([FORMAT_VERSION]) + size.to_bytes(8, "little")
    return start + zlib.crc32(body, zlib.crc32(start)).to_bytes(4, "little") + body


def _write(stream: BinaryIO, meta: Mapping[str, Any], sources: list[SectionSource]) -> None:
    def listing(base: int, checksums: list[int]) -> tuple[list[dict[str, Any]], int]:
        entries, offset, end = [], base, base
        for source, checksum in zip(sources, checksums, strict=True):
            nbytes = math.prod(source.shape) * np.dtype(source.dtype).itemsize
            entries.append(
                {
                    "name": source.name,
                    "dtype": source.dtype,
                    "shape": list(source.shape),
                    "offset": offset,
                    "nbytes": nbytes,
                    "crc32": f"{checksum:08x}",
                }
            )
            end = offset + nbytes
            offset = _aligned(end)
        return entries, end

    # the numbers of a listing take more digits with a larger base, so the base is found from above
    zeros = [0] * len(sources)
    draft, end = listing(1 << 20, zeros)
    base = _aligned(_PRELUDE + len(_header(meta, draft, _PRELUDE, end)))
    entries, end = listing(base, zeros)
    stream.write(_header(meta, entries, base, end))
    checksums = []
    for source, entry in zip(sources, entries, strict=True):
        stream.write(b"\0" * (entry["offset"] - stream.tell()))
        checksum = 0
        for part in source.parts:
            data = np.ascontiguousarray(part, dtype=source.dtype).reshape(-1).view(np.uint8).data
            checksum = zlib.crc32(data, checksum)
            stream.write(data)
        if stream.tell() != entry["offset"] + entry["nbytes"]:
            raise ValueError(
                f"section {source.name!r} should hold {entry['nbytes']} bytes, its parts hold "
                f"{stream.tell() - entry['offset']}"
            )
        checksums.append(checksum)
    entries, end = listing(base, checksums)
    stream.seek(0)
    stream.write(_header(meta, entries, base, end))


def write_container(path: str | os.PathLike[str], meta: Mapping[str, Any], sources: list[SectionSource]) -> None:
    """Write a container atomically: after a crash `path` holds the old file or the new one, never a mixture."""
    with atomic_write(path) as stream:
        _write(stream, meta, sources)


def container_bytes(meta: Mapping[str, Any], sources: list[SectionSource]) -> bytes:
    """Return a container as bytes."""
    import io

    stream = io.BytesIO()
    _write(stream, meta, sources)
    return stream.getvalue()


class Container:
    """A container whose header has been checked; sections are read or mapped one by one.

    A file is opened once and closed by ``with``: sections come from the file whose header was checked, also where
    another has taken its name since.

    Parameters
    ----------
    source : path or bytes-like
        File, or the bytes of one.

    Raises
    ------
    CodesFormatError
        If it is not a container, is damaged or truncated, or was written by a newer version.
    """

    def __init__(self, source: str | os.PathLike[str] | bytes | bytearray | memoryview) -> None:
        self._stream: BinaryIO | None = None
        self._buffer = memoryview(b"")
        self._mapped: Array | None = None
        self.name = "the buffer"
        if isinstance(source, (bytes, bytearray, memoryview)):
            self._buffer = memoryview(source).cast("B")
            self._check_header(self._buffer.nbytes)
            return
        self.name = str(Path(source))
        self._stream = Path(source).open("rb")  # noqa: SIM115 - closed by __exit__
        try:
            self._check_header(os.fstat(self._stream.fileno()).st_size)
        except BaseException:
            self._stream.close()
            raise

    def __enter__(self) -> Container:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._stream is not None:
            self._stream.close()

    def _check_header(self, size: int) -> None:
        head = self._read(0, min(size, _PRELUDE))
        if len(head) < _PRELUDE or head[:7] != _MAGIC:
            raise CodesFormatError(f"{self.name} is no file of packed codes: it starts with {head[:8]!r}")
        if head[7] != FORMAT_VERSION:
            raise CodesFormatError(
                f"{self.name} has format version {head[7]}; this skcompressae reads version {FORMAT_VERSION}"
            )
        header_size = int.from_bytes(head[8:16], "little")
        if not _PRELUDE < header_size <= min(size, _MAX_HEADER) or header_size % _ALIGNMENT:
            raise CodesFormatError(f"{self.name}: header size {header_size} does not fit a file of {size} bytes")
        rest = self._read(20, header_size - 20)
        if zlib.crc32(rest, zlib.crc32(head[:16])) != int.from_bytes(head[16:20], "little"):
            raise CodesFormatError(f"{self.name}: the checksum of the header does not match; the file is damaged")
        try:
            header = json.loads(rest[4:].decode())
            self.meta: dict[str, Any] = dict(header["meta"])
            self._sections = self._parse(header, header_size, size)
        except (KeyError, TypeError, ValueError, RecursionError, OverflowError) as error:
            if isinstance(error, CodesFormatError):
                raise
            raise CodesFormatError(f"{self.name}: the header is malformed: {error!r}") from error

    def _parse(self, header: dict[str, Any], header_size: int, size: int) -> dict[str, _Section]:
        sections: dict[str, _Section] = {}
        gaps: list[tuple[int, int]] = []
        end = header_size
        for entry in header["sections"]:
            name, dtype, shape = entry["name"], entry["dtype"], entry["shape"]
            offset, nbytes, checksum = entry["offset"], entry["nbytes"], int(entry["crc32"], 16)
            if dtype not in _DTYPES or not isinstance(name, str) or name in sections:
                raise CodesFormatError(f"{self.name}: section {name!r} of dtype {dtype!r} is not allowed")
            if not all(type(v) is int and v >= 0 for v in (*shape, offset, nbytes)) or len(shape) > 3:
                raise CodesFormatError(f"{self.name}: section {name!r} has an impossible size {entry}")
            if nbytes != math.prod(shape) * np.dtype(dtype).itemsize or offset != _aligned(end):
                raise CodesFormatError(f"{self.name}: section {name!r} contradicts itself: {entry}")
            gaps.append((end, offset - end))
            sections[name] = _Section(name, np.dtype(dtype), tuple(shape), offset, nbytes, checksum)
            end = offset + nbytes
        if header["file_size"] != end or size != end:
            raise CodesFormatError(
                f"{self.name} has {size} bytes where its header announces {end}; it is truncated or damaged"
            )
        # no checksum covers the gaps, so they are compared with what they must hold
        if any(self._read(*gap).strip(b"\0") for gap in gaps if gap[1]):
            raise CodesFormatError(f"{self.name}: a byte between two sections is not zero; the file is damaged")
        return sections

    def _read(self, offset: int, nbytes: int) -> bytes:
        if self._stream is None:
            data = bytes(self._buffer[offset : offset + nbytes])
        else:
            self._stream.seek(offset)
            data = self._stream.read(nbytes)
        if len(data) != nbytes:
            raise CodesFormatError(f"{self.name} ended while it was read")
        return data

    def __contains__(self, name: str) -> bool:
        return name in self._sections

    def check(self, name: str, dtype: str, shape: tuple[int, ...]) -> None:
        """Raise unless section `name` has this dtype and shape (-1 stands for any length)."""
        section = self._sections.get(name)
        if section is None:
            raise CodesFormatError(f"{self.name}: section {name!r} is missing")
        fits = len(section.shape) == len(shape) and all(
            want in (-1, got) for want, got in zip(shape, section.shape, strict=True)
        )
        if section.dtype != np.dtype(dtype) or not fits:
            raise CodesFormatError(
                f"{self.name}: section {name!r} must be {dtype} {shape}, got {section.dtype.str} {section.shape}"
            )

    def array(self, name: str, *, mmap: bool = False, verify: bool = True) -> Array:
        """Return a section, read-only; its checksum is compared when `verify`, which reads all of it."""
        section = self._sections[name]
        if section.nbytes == 0:
            return np.zeros(section.shape, section.dtype)
        array: Array
        if mmap and self._stream is not None:
            if self._mapped is None:  # once: each map holds a descriptor of the file
                self._mapped = np.memmap(self._stream, mode="r")
            mapped = self._mapped[section.offset : section.offset + section.nbytes]
            array = mapped.view(section.dtype).reshape(section.shape)
        else:
            data = self._read(section.offset, section.nbytes)
            array = np.frombuffer(data, dtype=section.dtype).reshape(section.shape)
        if verify:
            flat = array.reshape(-1).view(np.uint8)
            checksum = 0
            for start in range(0, flat.size, _CHUNK):
                checksum = zlib.crc32(flat[start : start + _CHUNK].data, checksum)
            if checksum != section.crc32:
                raise CodesFormatError(f"{self.name}: the checksum of section {name!r} does not match")
        return array
