"""The container of models and checkpoints: a safetensors file that carries a JSON header and a digest of itself.

Layout
------
A safetensors file (8 bytes length, JSON listing, raw arrays) with two entries in its ``__metadata__``:

- "skcompressae": the header, JSON: ``format`` (which kind of file), ``format_version``, and whatever the kind needs;
- "sha256": SHA-256, in hexadecimal, of the whole file with this entry's 64 digits replaced by zeros.

Reading never executes anything. Length of the file, length and form of the listing, kind and version are checked before
the arrays are read, the digest before they are interpreted; what is allocated is bounded by the size of the file.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as parse_arrays
from safetensors.numpy import save as serialise_arrays

from skcompressae._files import atomic_write
from skcompressae.exceptions import ModelFormatError

__all__ = ["array_digest", "check_array", "check_format_version", "read_model_file", "write_model_file"]

# Far above any real listing: half a million feature names of 30 characters.
_LARGEST_LISTING = 1 << 24
_PREFIX_BYTES = 8
_METADATA_KEY = "skcompressae"
# Inside a JSON string every quote is escaped, so these bytes occur in a listing as the entry itself only.
_DIGEST_START = b'"sha256":"'
_NO_DIGEST = "0" * 64


def array_digest(arrays: Mapping[str, NDArray[Any]], *parts: str) -> str:
    """Return the SHA-256, in hexadecimal, of texts and of arrays with their names, dtypes and shapes."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{part}\n".encode())
    for name, array in sorted(arrays.items()):
        stored = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
        digest.update(f"{name} {stored.dtype.str} {stored.shape}\n".encode())
        digest.update(stored.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def write_model_file(
    path: str | os.PathLike[str], kind: str, version: int, header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]
) -> None:
    """Write arrays under a header, atomically.

    Parameters
    ----------
    path : path-like
    kind : str
        What the file is, for people and readers, such as "skcompressae model".
    version : int
        Of what this kind's header and arrays mean.
    header : mapping
        What JSON can hold; no infinities.
    arrays : mapping of str to array

    Raises
    ------
    ValueError
        If the header is longer than `read_model_file` takes.
    """
    text = json.dumps({"format": kind, "format_version": version, **header}, allow_nan=False, ensure_ascii=False)
    data = serialise_arrays(
        {name: np.ascontiguousarray(array) for name, array in arrays.items()},
        metadata={_METADATA_KEY: text, "sha256": _NO_DIGEST},
    )
    listing_bytes = int.from_bytes(data[:_PREFIX_BYTES], "little")
    if listing_bytes > _LARGEST_LISTING:
        raise ValueError(
            f"the header of {path}, with the names of features, must take at most {_LARGEST_LISTING} bytes; got "
            f"{listing_bytes}. Shorten the names."
        )
    at = data.index(_DIGEST_START) + len(_DIGEST_START)
    with atomic_write(path) as stream:
        stream.write(data)
        stream.seek(at)
        stream.write(hashlib.sha256(data).hexdigest().encode())


def read_model_file(
    path: str | os.PathLike[str], kind: str, version: int
) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Read a file written by `write_model_file`; return its header and its arrays.

    Raises
    ------
    ModelFormatError
        If the file is foreign, truncated, damaged, of another kind or of a newer version.
    OSError
        If it cannot be read.
    """
    path = Path(path)
    with path.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        prefix = stream.read(_PREFIX_BYTES)
        length = int.from_bytes(prefix, "little")
        if len(prefix) < _PREFIX_BYTES or not 2 <= length <= min(size - _PREFIX_BYTES, _LARGEST_LISTING):
            raise ModelFormatError(
                f"{path} is no {kind} file, or a truncated one: it has {size} bytes, the first of them {prefix!r}."
            )
        listing = stream.read(length)
        header = _read_header(path, listing, kind, version)
        stream.seek(0)
        data = stream.read(size)
    at = data.find(_DIGEST_START) + len(_DIGEST_START)
    end = at + len(_NO_DIGEST)
    digest = hashlib.sha256(memoryview(data)[:at])
    digest.update(_NO_DIGEST.encode())
    digest.update(memoryview(data)[end:])
    if digest.hexdigest().encode() != data[at:end]:
        raise ModelFormatError(f"{path} is damaged or truncated: its SHA-256 is not the one that it records.")
    try:
        return header, parse_arrays(data)
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise ModelFormatError(f"{path} is damaged: {error}") from error


def _read_header(path: Path, listing: bytes, kind: str, version: int) -> dict[str, Any]:
    """Return the header from a safetensors listing once its kind and version are known to be readable."""
    try:
        metadata = _parse_object(listing).get("__metadata__", {})
        text = metadata.get(_METADATA_KEY)
    except (ValueError, RecursionError, AttributeError) as error:
        raise ModelFormatError(
            f"{path} is no {kind} file: it is not in the safetensors format, or damaged ({error})."
        ) from error
    if not isinstance(text, str):
        raise ModelFormatError(
            f"{path} is no {kind} file: it is a safetensors file without an entry {_METADATA_KEY!r} in its metadata."
        )
    try:
        header = _parse_object(text)
    except (ValueError, RecursionError) as error:
        raise ModelFormatError(f"{path} is damaged: its header cannot be read ({error}).") from error
    if header.get("format") != kind:
        raise ModelFormatError(f"{path} is no {kind} file: its header says it is a {header.get('format')!r}.")
    check_format_version(path, header.get("format_version"), version)
    return header


def check_format_version(name: object, found: Any, newest: int) -> None:
    """Refuse what is no version, or one above the newest that is read; `name` is of what has it."""
    if type(found) is not int or found < 1:
        raise ModelFormatError(f"{name} is damaged: its format version is {found!r}.")
    if found > newest:
        raise ModelFormatError(
            f"{name} has format version {found}, and this skcompressae reads versions up to {newest}. "
            "Upgrade skcompressae to read it."
        )


def _parse_object(text: str | bytes) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON")

    value = json.loads(text, parse_constant=refuse)
    if not isinstance(value, dict):
        raise ValueError("no JSON object")
    return value


def check_array(
    path: str | os.PathLike[str],
    arrays: Mapping[str, NDArray[Any]],
    name: str,
    dtype: str,
    shape: Sequence[int | None],
    *,
    is_finite: bool = True,
) -> NDArray[Any]:
    """Return an array of a file once its dtype and shape (None stands for any length) are what they must be."""
    if name not in arrays:
        raise ModelFormatError(f"{path} is damaged: the array {name!r} is missing.")
    array = arrays[name]
    fits = len(array.shape) == len(shape) and all(
        want in (None, got) for want, got in zip(shape, array.shape, strict=True)
    )
    if array.dtype != np.dtype(dtype) or not fits:
        wanted = ", ".join("any" if n is None else str(n) for n in shape)
        raise ModelFormatError(
            f"{path}: the array {name!r} must be {dtype} of shape ({wanted}); got {array.dtype} of shape {array.shape}."
        )
    if is_finite and not np.isfinite(array).all():
        raise ModelFormatError(f"{path}: the array {name!r} holds NaN or infinity.")
    return array
