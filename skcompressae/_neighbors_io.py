"""One-file container of named arrays: a magic, a JSON header, then the raw arrays, each on a 64-byte
boundary.

Layout, little-endian: 8 bytes ``SKCAENNI``; uint64 length of the header; uint64 CRC-32 of these 16 bytes and of the
header; the header, UTF-8 JSON with ``format_version``, ``data_bytes``, ``meta`` and ``arrays`` (name -> dtype, shape,
offset, crc32); the arrays in C order, one after the other as listed, zero bytes between (a reader checks). Nothing is
pickled, so a file from elsewhere can do no more than fail to validate.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted

from skcompressae._compat import validate_parameters
from skcompressae._core._search_store import BLOCK_ROWS, Chunk, CodeStore, PackedStore, PostingStore, RowStore
from skcompressae._files import atomic_write
from skcompressae._neighbors_build import SEARCH_PARAMETERS
from skcompressae._neighbors_rerank import check_residuals
from skcompressae.exceptions import CodesFormatError
from skcompressae.packed._files import from_parts, to_parts

__all__ = ["IndexFileMixin", "dump_chunks", "load_chunks", "read_arrays", "read_model_hash", "write_arrays"]

_MAGIC = b"SKCAENNI"
# Version 1 had no checksums and was in no release.
_FORMAT_VERSION = 2
_PREFIX = struct.Struct("<8sQQ")
_ALIGNMENT = 64
_DTYPES = ("<f4", "<f8", "|u1", "<u2", "<i4", "<i8")
_LARGEST_HEADER = 1 << 26
_CHUNK = 1 << 24
# As in packed codes; row factors of norms down to 1e-30 are below it.
_LARGEST = 2.0**100


def _aligned(offset: int) -> int:
    return -(-offset // _ALIGNMENT) * _ALIGNMENT


def _checksum(array: NDArray[Any]) -> int:
    flat = array.reshape(-1).view(np.uint8)
    checksum = 0
    for start in range(0, flat.size, _CHUNK):
        checksum = zlib.crc32(flat[start : start + _CHUNK].data, checksum)
    return checksum


def _header_checksum(length: int, encoded: bytes) -> int:
    return zlib.crc32(encoded, zlib.crc32(_MAGIC + length.to_bytes(8, "little")))


def write_arrays(path: str | os.PathLike[str], meta: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> None:
    """Write the file beside `path` under a temporary name, then move it there in one step."""
    stored = {}
    for name, array in arrays.items():
        stored[name] = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    entries: dict[str, dict[str, Any]] = {}
    offset = 0
    for name, array in stored.items():
        offset = _aligned(offset)
        shape, checksum = list(array.shape), _checksum(array)
        entries[name] = {"dtype": array.dtype.str, "shape": shape, "offset": offset, "crc32": checksum}
        offset += array.nbytes
    header = {"format_version": _FORMAT_VERSION, "data_bytes": offset, "meta": meta, "arrays": entries}
    encoded = json.dumps(header).encode()
    with atomic_write(path) as file:
        file.write(_PREFIX.pack(_MAGIC, len(encoded), _header_checksum(len(encoded), encoded)))
        file.write(encoded)
        base = _aligned(file.tell())
        for name, array in stored.items():
            file.write(bytes(base + entries[name]["offset"] - file.tell()))
            file.write(array.reshape(-1).view(np.uint8).data)


def _read_header(file: BinaryIO, path: Path) -> tuple[dict[str, Any], int]:
    prefix = file.read(_PREFIX.size)
    if len(prefix) < _PREFIX.size or prefix[:8] != _MAGIC:
        raise CodesFormatError(f"{path} is not a saved search index: it does not begin with {_MAGIC!r}")
    length, checksum = _PREFIX.unpack(prefix)[1:]
    if length > min(_LARGEST_HEADER, os.fstat(file.fileno()).st_size - _PREFIX.size):
        raise CodesFormatError(f"{path} is truncated: its header should have {length} bytes")
    encoded = file.read(length)
    if _header_checksum(length, encoded) != checksum:
        raise CodesFormatError(f"{path} has a damaged header: its checksum does not match")
    try:
        header = json.loads(encoded)
    except (ValueError, RecursionError) as error:
        raise CodesFormatError(f"{path} has a damaged header: {error}") from error
    if not isinstance(header, dict) or not isinstance(header.get("format_version"), int):
        raise CodesFormatError(f"{path} has a damaged header: no format_version")
    if header["format_version"] != _FORMAT_VERSION:
        raise CodesFormatError(
            f"{path} has format version {header['format_version']}; this release reads {_FORMAT_VERSION}"
        )
    return header, _PREFIX.size + length


def read_arrays(
    path: str | os.PathLike[str], *, mmap: bool, verify: bool
) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Read or map the arrays of a file written by `write_arrays`.

    Mapped arrays are private (copy on write): the file never changes. `verify` compares the checksums of the arrays,
    which reads all of them.

    Raises
    ------
    CodesFormatError
        If the file is foreign, truncated, damaged or of another format version.
    """
    # opened once: arrays come from the file whose header was checked, also where another has taken its name since
    with Path(path).open("rb") as file:
        return _read_arrays(file, Path(path), mmap=mmap, verify=verify)


def _read_arrays(
    file: BinaryIO, path: Path, *, mmap: bool, verify: bool
) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    header, end = _read_header(file, path)
    base = _aligned(end)
    size = os.fstat(file.fileno()).st_size
    try:
        entries = dict(header["arrays"])
        meta = dict(header["meta"])
        expected = base + int(header["data_bytes"])
        layout = {
            name: (
                str(entry["dtype"]),
                tuple(int(n) for n in entry["shape"]),
                base + int(entry["offset"]),
                int(entry["crc32"]),
            )
            for name, entry in entries.items()
        }
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise CodesFormatError(f"{path} has a damaged header: {error!r}") from error
    if layout and size != expected:
        raise CodesFormatError(f"{path} is truncated or damaged: {size} bytes, its header says {expected}")
    # once: each map holds a descriptor of the file
    mapped = np.memmap(file, np.uint8, "c", shape=(size,)) if mmap else None
    arrays: dict[str, NDArray[Any]] = {}
    for name, (dtype, shape, offset, checksum) in layout.items():
        if dtype not in _DTYPES or any(not 0 <= n <= size for n in shape):
            raise CodesFormatError(f"{path}: array {name!r} has dtype {dtype!r} and shape {shape}")
        length = prod(shape) * np.dtype(dtype).itemsize
        # one after the other: arrays that share bytes could take many times the file's size
        if offset != _aligned(end) or offset + length > size:
            raise CodesFormatError(f"{path}: array {name!r} lies outside of its place in the file")
        file.seek(end)
        if file.read(offset - end).strip(b"\0"):  # no checksum covers them
            raise CodesFormatError(f"{path} is damaged: a byte before array {name!r} is not zero")
        end = offset + length
        if length == 0:
            arrays[name] = np.empty(shape, dtype)
        elif mapped is not None:
            arrays[name] = mapped[offset:end].view(dtype).reshape(shape).view(np.ndarray)
        else:
            file.seek(offset)
            arrays[name] = np.fromfile(file, dtype, prod(shape)).reshape(shape)
        if verify and _checksum(arrays[name]) != checksum:
            raise CodesFormatError(f"{path} is damaged: the checksum of array {name!r} does not match")
    return meta, arrays


def read_model_hash(path: str | os.PathLike[str]) -> str | None:
    """Return the hash of the model whose codes a saved index holds, None where the file does not tell.

    Raises
    ------
    CodesFormatError
        If the header is damaged.
    """
    with Path(path).open("rb") as file:
        header, _ = _read_header(file, Path(path))
    meta = header.get("meta")
    found = meta.get("model_hash") if isinstance(meta, dict) else None
    if found is not None and not isinstance(found, str):
        raise CodesFormatError(f"{path} has a damaged header: its model_hash is {found!r}")
    return found


def dump_chunks(chunks: Sequence[Chunk]) -> tuple[dict[str, NDArray[Any]], list[dict[str, Any]]]:
    """Return the arrays of the chunks by name, and their headers."""
    arrays: dict[str, NDArray[Any]] = {}
    entries: list[dict[str, Any]] = []
    for i, chunk in enumerate(chunks):
        store = chunk.store
        layout: dict[str, Any] = {}
        names: tuple[str, ...]
        if isinstance(store, RowStore):
            kind, names = "rows", ("indptr", "indices", "values")
        elif isinstance(store, PostingStore):
            kind, names = "postings", ("offsets", "rows", "values")
        elif isinstance(store, PackedStore):
            kind, names = "packed", ()
            layout, parts = to_parts(store.packed)
            arrays.update({f"{i}.{name}": part for name, part in parts.items()})
        else:
            raise TypeError(f"save writes codes of the kinds it knows, got documents in {type(store).__name__}")
        arrays.update({f"{i}.{name}": getattr(store, name) for name in names})
        arrays[f"{i}.scale"] = chunk.scale
        entries.append({"kind": kind, **layout, "n_rows": store.n_rows, "reach": chunk.reach, "longest": chunk.longest})
    return arrays, entries


def load_chunks(entries: Sequence[dict[str, Any]], arrays: dict[str, NDArray[Any]], n_components: int) -> list[Chunk]:
    """Undo `dump_chunks`; check all that the kernels take on trust."""
    if not entries:
        raise CodesFormatError("it holds no documents")
    return [_load_chunk(entry, arrays, i, n_components) for i, entry in enumerate(entries)]


def _load_chunk(entry: dict[str, Any], arrays: dict[str, Any], number: int, n_components: int) -> Chunk:
    """Build a chunk from a file; check all that the kernels take on trust."""
    n_rows, scale = int(entry["n_rows"]), arrays[f"{number}.scale"]
    reach, longest = float(entry["reach"]), int(entry["longest"])
    if scale.dtype != np.float64 or scale.shape != (n_rows,) or n_rows == 0:
        raise CodesFormatError(f"chunk {number} has arrays that do not fit each other")
    if not (0 <= reach <= _LARGEST) or longest < 0 or not _is_finite(scale) or scale.min() < 0:
        raise CodesFormatError(f"chunk {number} has row factors that are negative, not finite or beyond 2**100")
    if entry["kind"] == "packed":
        start = f"{number}."
        parts = {name.removeprefix(start): part for name, part in arrays.items() if name.startswith(start)}
        packed = from_parts(entry, parts, n_components)
        if len(packed) != n_rows:
            raise CodesFormatError(f"chunk {number} has arrays that do not fit each other")
        return Chunk(PackedStore(packed), scale, reach, longest)
    values = arrays[f"{number}.values"]
    if entry["kind"] == "rows":
        starts, numbers = arrays[f"{number}.indptr"], arrays[f"{number}.indices"]
        n_starts, limit = n_rows + 1, n_components
        store: CodeStore = RowStore(starts, numbers, values, n_components)
    elif entry["kind"] == "postings":
        if n_rows > BLOCK_ROWS:  # the room that the scan has for sums
            raise CodesFormatError(f"chunk {number} has posting lists of {n_rows} rows, above {BLOCK_ROWS}")
        starts, numbers = arrays[f"{number}.offsets"], arrays[f"{number}.rows"]
        n_starts, limit = n_components + 1, n_rows
        store = PostingStore(starts, numbers, values, n_rows)
    else:
        raise CodesFormatError(f"chunk {number} has kind {entry['kind']!r}")
    if any(array.ndim != 1 for array in (starts, numbers, values, scale)):
        raise CodesFormatError(f"chunk {number} has arrays that are not one-dimensional")
    sizes = len(starts) == n_starts and len(scale) == n_rows and len(numbers) == len(values)
    if not sizes or values.dtype.kind != "f" or numbers.dtype.kind not in "iu" or starts.dtype.kind != "i":
        raise CodesFormatError(f"chunk {number} has arrays that do not fit each other")
    if starts[0] != 0 or starts[-1] != len(values) or (np.diff(starts) < 0).any():
        raise CodesFormatError(f"chunk {number} has row starts out of order")
    if len(numbers) and (int(numbers.max()) >= limit or int(numbers.min()) < 0):
        raise CodesFormatError(f"chunk {number} has numbers outside of range({limit})")
    if not _is_finite(values):
        raise CodesFormatError(f"chunk {number} has values that are not finite or beyond 2**100")
    return Chunk(store, scale, reach, longest)


def _is_finite(array: NDArray[Any]) -> bool:
    """Tell without a copy: a NaN makes the smallest entry NaN. Beyond 2**100 sums of products may overflow."""
    return not len(array) or bool(array.min() >= -_LARGEST and array.max() <= _LARGEST)


def _plain(parameter: Any) -> Any:
    """Return a parameter as JSON knows it; a range of NumPy hands out NumPy's own numbers."""
    return parameter.item() if isinstance(parameter, np.generic) else parameter


def _check_components(components: NDArray[Any], n_components: int) -> None:
    if components.ndim != 2 or components.dtype.kind != "f" or components.shape[0] != n_components:
        raise CodesFormatError(f"the components are {components.dtype} of shape {components.shape}")
    if components.size == 0 or not _is_finite(components):
        raise CodesFormatError("the components are not finite or beyond 2**100")


class IndexFileMixin:
    """`save` and `load` of a fitted `CodeNearestNeighbors`."""

    n_features_in_: int
    components_: NDArray[Any] | None
    _chunks: list[Chunk]
    _refined: list[NDArray[np.float32]]
    _built_for: tuple[str, str]
    _check_parameters: Any
    _check_refined: Any

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the index to one file.

        The file holds the parameters, the codes and `components_`, but not the compressor, which is saved by its own
        means. It is replaced in one step: whatever happens, `path` is the old file or the new one.

        Parameters
        ----------
        path : path-like
            The file.

        Raises
        ------
        TypeError
            If documents came as a store of another kind than CSR and `PackedCodes`.
        ValueError
            If a parameter was set since fitting to what is not allowed, or `rerank` where nothing was fitted for it.

        See Also
        --------
        load : Reads the file.
        CompresSAETransformer.save : Saves the compressor.

        Examples
        --------
        >>> import numpy as np
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from skcompressae import CodeNearestNeighbors
        >>> index = CodeNearestNeighbors(n_neighbors=1).fit(np.eye(3))
        >>> with TemporaryDirectory() as folder:
        ...     index.save(Path(folder) / "documents.index")
        ...     again = CodeNearestNeighbors.load(Path(folder) / "documents.index", mmap=False)
        >>> again.kneighbors(np.eye(3)[:1], return_distance=False)
        array([[0]])
        """
        self._save(path)

    def _save(self, path: str | os.PathLike[str], *, model_hash: str | None = None) -> None:
        """Write the index, and the hash of the model of its codes where it is known."""
        check_is_fitted(self)
        self._check_parameters()
        self._check_refined()
        arrays, chunks = dump_chunks(self._chunks)
        arrays.update({f"{i}.refined": scales for i, scales in enumerate(self._refined)})
        if self.components_ is not None:
            arrays["components"] = self.components_
        meta = {
            "params": {name: _plain(getattr(self, name)) for name in SEARCH_PARAMETERS},
            "n_features_in": self.n_features_in_,
            "feature_names_in": list(getattr(self, "feature_names_in_", [])) or None,
            "built_for": list(self._built_for),
            "chunks": chunks,
        }
        if model_hash is not None:
            meta["model_hash"] = model_hash
        write_arrays(path, meta, arrays)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        mmap: bool = True,
        verify: bool | None = None,
        compressor: Any = None,
    ) -> Any:
        """Read an index written by `save`.

        Nothing in the file is executed, and everything that the search takes on trust is checked before it is used.

        Parameters
        ----------
        path : path-like
            The file.
        mmap : bool, default=True
            Whether to map the arrays into memory, shared among processes and read as needed, or to read them.
            The mapped file must stay in place, and is never written to.
        verify : bool, default=None
            Whether to compare the checksums of the arrays, which reads all of them; None is ``not mmap``. That of the
            header is always compared.
        compressor : fitted transformer, default=None
            The compressor of the index; needed only to compress dense queries. Without it, the saved
            `components_` serve.

        Returns
        -------
        CodeNearestNeighbors
            The fitted index.

        Raises
        ------
        CodesFormatError
            If the file is foreign, truncated, damaged or of another version.
        ValueError
            If `compressor` has other components than the index.

        See Also
        --------
        save : Writes the file.
        fit : Makes an index from codes.

        Examples
        --------
        >>> import numpy as np
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from skcompressae import CodeNearestNeighbors
        >>> index = CodeNearestNeighbors(n_neighbors=1).fit(np.eye(3))
        >>> with TemporaryDirectory() as folder:
        ...     index.save(Path(folder) / "documents.index")
        ...     again = CodeNearestNeighbors.load(Path(folder) / "documents.index", mmap=False)
        >>> again.kneighbors(np.eye(3)[:1], return_distance=False)
        array([[0]])
        """
        meta, arrays = read_arrays(path, mmap=mmap, verify=not mmap if verify is None else verify)
        try:
            index: Any = cls(**meta["params"])
            validate_parameters(index, SEARCH_PARAMETERS)
            index.n_features_in_ = int(meta["n_features_in"])
            if meta["feature_names_in"] is not None:
                index.feature_names_in_ = np.array(meta["feature_names_in"], dtype=object)
            index.components_ = arrays.get("components")
            index.compressor = index.components_ if compressor is None else compressor
            mode, metric = meta["built_for"][:2]  # files of earlier versions say the kind of device, too
            index._built_for, index.effective_mode_ = (str(mode), str(metric)), str(mode)
            index._chunks = load_chunks(meta["chunks"], arrays, index.n_features_in_)
            if index.components_ is not None:
                _check_components(index.components_, index.n_features_in_)
            index._refined = []
            if index.rerank is not None:
                for i, chunk in enumerate(index._chunks):
                    check_residuals(chunk.store, index.components_)
                    refined = arrays[f"{i}.refined"]
                    is_whole = refined.dtype == np.float32 and refined.shape == (chunk.store.n_rows,)
                    if not is_whole or not _is_finite(refined) or (refined < 0).any():
                        raise CodesFormatError(f"chunk {i} has arrays that do not fit each other")
                    index._refined.append(refined)
        except (KeyError, TypeError, IndexError, ValueError, OverflowError, AttributeError) as error:
            if isinstance(error, CodesFormatError):
                raise CodesFormatError(f"{path} is damaged: {error}") from error
            raise CodesFormatError(f"{path} has a damaged header: {error!r}") from error
        if compressor is not None:
            found = index._validate_components()
            if index.components_ is None:
                raise ValueError("compressor must be None, as the saved index has no components_")
            if not np.array_equal(found, index.components_):
                raise ValueError("compressor must have the components_ of the saved index, got others")
        index._device_index = None
        index.n_samples_fit_ = sum(chunk.store.n_rows for chunk in index._chunks)
        return index
