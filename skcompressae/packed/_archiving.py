"""The archive of packed codes: the container of `_files` with the words entropy-coded by `_core._archive`."""

from __future__ import annotations

import math
import os
import zlib
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from skcompressae._core._archive import (
    PROBABILITY_BITS,
    count_symbols,
    decode_block,
    encode_block,
    entropy_bits,
    index_shift_for,
    model_shape,
    normalise_counts,
    slots_of,
)
from skcompressae._core._compiling import contiguous
from skcompressae._core._packing import compress_bits, decode_scales, max_word_dtype, row_lengths
from skcompressae._packed_io import Container, SectionSource, container_bytes
from skcompressae.exceptions import CodesFormatError
from skcompressae.packed._files import (
    check_meta,
    meta_of,
    quantizer_sections,
    read_quantizer,
    read_residual,
)
from skcompressae.packed._rows import row_bytes
from skcompressae.packed._store import PackedCodes

__all__ = ["from_archive", "to_archive"]

Array: TypeAlias = NDArray[Any]
# Bounds what one damaged block could cost and what random access would decode; its overhead is 16 bytes a block.
_BLOCK_ROWS = 16384


def _starts(frequencies: NDArray[np.uint32]) -> NDArray[np.uint32]:
    return (np.cumsum(frequencies, axis=-1, dtype=np.int64) - frequencies).astype(np.uint32)


def _deflated(frequencies: NDArray[np.uint32]) -> NDArray[np.uint8]:
    # byte planes: most high bytes are zero, and deflate sees that only when they stand together
    planes = frequencies.astype("<u4").reshape(-1).view(np.uint8).reshape(-1, 4).T
    return np.frombuffer(zlib.compress(planes.tobytes(), 9), dtype=np.uint8)


def _inflated(section: NDArray[np.uint8], shape: tuple[int, ...], name: str) -> NDArray[np.uint32]:
    size = math.prod(shape) * 4
    stream = zlib.decompressobj()
    try:
        # bounded: a damaged section cannot inflate without limit
        data = stream.decompress(section.tobytes(), size + 1)
    except zlib.error as error:
        raise CodesFormatError(f"{name}: a frequency table cannot be inflated") from error
    if len(data) != size:
        raise CodesFormatError(f"{name}: a frequency table has {len(data)} bytes, expected {size}")
    planes = np.frombuffer(data, dtype=np.uint8).reshape(4, -1)
    table = np.ascontiguousarray(planes.T).reshape(-1).view("<u4").reshape(shape)
    sums = np.atleast_2d(table.astype(np.uint64)).sum(axis=1)
    if not np.isin(sums, (0, 1 << PROBABILITY_BITS)).all():
        raise CodesFormatError(f"{name}: a frequency table does not sum to {1 << PROBABILITY_BITS}")
    return table


def to_archive(store: PackedCodes, record: dict[str, Any] | None = None) -> tuple[bytes, dict[str, float]]:
    """Return the archive, with what is known of the model that made the codes, and what it cost beside the entropy."""
    n, k, value_bits = len(store), store.k, store.value_bits
    shift = index_shift_for(store.index_bits)
    n_index = 1 << (store.index_bits + 1 - shift)
    value_counts = np.zeros(model_shape(k, value_bits), dtype=np.int64)
    index_counts = np.zeros(n_index, dtype=np.int64)
    lengths = np.empty(n, dtype=np.int64)
    scales = store._scales
    for start in range(0, n, _BLOCK_ROWS):
        words = store.words(start, start + _BLOCK_ROWS)
        part = contiguous(decode_scales(scales[start : start + _BLOCK_ROWS]))
        row_lengths(words, part, lengths[start : start + _BLOCK_ROWS])
        count_symbols(words, part, value_bits, shift, value_counts, index_counts)
    value_frequencies, index_frequencies = normalise_counts(value_counts), normalise_counts(index_counts)
    value_starts, index_starts = _starts(value_frequencies), _starts(index_frequencies)
    streams: list[Array] = []
    units = np.empty(2 * min(n, _BLOCK_ROWS) * k + 2, dtype=np.uint32)
    for start in range(0, n, _BLOCK_ROWS):
        used = encode_block(
            store.words(start, start + _BLOCK_ROWS),
            contiguous(decode_scales(scales[start : start + _BLOCK_ROWS])),
            value_bits,
            shift,
            value_frequencies,
            value_starts,
            index_frequencies,
            index_starts,
            units,
        )
        streams.append(units[:used].copy())
    sizes = np.array([s.size for s in streams], dtype=np.int64)
    tables = {"value_model": _deflated(value_frequencies), "index_model": _deflated(index_frequencies)}
    sources = quantizer_sections(store)
    sources += [SectionSource(name, "|u1", table.shape, [table]) for name, table in tables.items()]
    sources.append(SectionSource("block_units", "<i8", sizes.shape, [sizes]))
    if (lengths != k).any():
        sources.append(SectionSource("lengths", "<u4", (n,), [lengths.astype("<u4")]))
    if store.quantizer._has_scales:
        sources.append(SectionSource("scales", scales.dtype.str, (n,), [scales]))
    sources.append(SectionSource("units", "<u4", (int(sizes.sum()),), streams))
    if store.residual_codes is not None:
        residual = store.residual_codes
        sources.append(SectionSource("residual_codes", "|u1", residual.shape, [residual]))
    meta = meta_of(store, "archive", record)
    meta["block_rows"] = _BLOCK_ROWS
    archive = container_bytes(meta, sources)
    nnz = int(lengths.sum())
    raw_bits = float(nnz * shift)
    if value_bits > 4:
        raw_bits += float((value_counts.sum(axis=0) * np.maximum(np.arange(value_counts.shape[1]) - 1, 0)).sum())
    model_bits = entropy_bits(value_counts) + entropy_bits(index_counts) + raw_bits
    log_factorials = np.array([math.lgamma(i + 1.0) for i in range(k + 1)]) / math.log(2)
    m = store.n_components
    log_rest = np.array([math.lgamma(m - i + 1.0) for i in range(k + 1)]) / math.log(2)
    set_bits = (math.lgamma(m + 1.0) / math.log(2) - log_rest - log_factorials)[lengths].sum()
    return archive, {
        "bytes": float(len(archive)),
        "bytes_per_nonzero": len(archive) / max(nnz, 1),
        "entropy_bytes": (model_bits / 8 + n * store.quantizer._scale_bytes) / max(nnz, 1),
        "set_bytes": float(set_bits) / 8 / max(nnz, 1),
    }


def from_archive(archive: bytes | bytearray | memoryview | str | os.PathLike[str]) -> PackedCodes:
    """Decode an archive; what is wrong with it raises CodesFormatError."""
    with Container(archive) as container:
        return _decode(container)


def _decode(container: Container) -> PackedCodes:
    n, n_components, k = check_meta(container, "archive")
    quantizer = read_quantizer(container)
    value_bits = quantizer.value_bits
    block_rows = container.meta.get("block_rows")
    if type(block_rows) is not int or not 1 <= block_rows <= 1 << 24:
        raise CodesFormatError(f"{container.name}: block_rows={block_rows!r} is not allowed")
    index_bits = max(1, (n_components - 1).bit_length())
    shift = index_shift_for(index_bits)
    if quantizer._has_scales:
        container.check("scales", quantizer.scale_dtype.str, (n,))
    container.check("block_units", "<i8", (-(-n // block_rows),))
    container.check("units", "<u4", (-1,))
    container.check("value_model", "|u1", (-1,))
    container.check("index_model", "|u1", (-1,))
    value_frequencies = _inflated(container.array("value_model"), model_shape(k, value_bits), container.name)
    index_frequencies = _inflated(container.array("index_model"), (1 << (index_bits + 1 - shift),), container.name)
    scales = container.array("scales") if quantizer._has_scales else None
    if "lengths" in container:
        container.check("lengths", "<u4", (n,))
        lengths = container.array("lengths").astype(np.int64)
        if (lengths > k).any():
            raise CodesFormatError(f"{container.name}: a row length exceeds k={k}")
    else:
        lengths = np.full(n, k, dtype=np.int64)
    is_empty = np.zeros(n, np.bool_) if scales is None else scales == 0
    sizes = container.array("block_units")
    units = container.array("units")
    ends = np.cumsum(sizes)
    if (sizes < 2).any() or (int(ends[-1]) if n else 0) != units.size or (is_empty != (lengths == 0)).any():
        raise CodesFormatError(f"{container.name}: the blocks do not fit the stream")
    # Indices of a row are distinct, so no model gives its n entries less than n log2(n) bits: a few bytes do not become
    # gigabytes.
    if float((lengths * np.log2(np.maximum(lengths, 1))).sum()) > 33 * units.size:
        raise CodesFormatError(f"{container.name}: the stream is too short for its rows")
    if lengths.any() and not index_frequencies.any():
        raise CodesFormatError(f"{container.name}: the index model is empty")
    value_starts, index_starts = _starts(value_frequencies), _starts(index_frequencies)
    slots = slots_of(index_frequencies)
    residual, residual_quantizer = read_residual(container, n, mmap=False, verify=True)
    word_bits = index_bits + value_bits
    rows = np.empty((n, row_bytes(n_components, k, value_bits)), dtype=np.uint8)
    for block, start in enumerate(range(0, n, block_rows)):
        stop = min(start + block_rows, n)
        words = np.empty((stop - start, k), dtype=max_word_dtype(word_bits))
        fine = decode_block(
            contiguous(units[ends[block] - sizes[block] : ends[block]]),
            lengths[start:stop],
            value_bits,
            shift,
            value_frequencies,
            value_starts,
            index_frequencies,
            index_starts,
            slots,
            n_components,
            words,
        )
        if not fine:
            raise CodesFormatError(f"{container.name}: block {block} does not decode")
        compress_bits(words, word_bits, rows[start:stop])
    return PackedCodes(
        rows,
        scales,
        n_components=n_components,
        k=k,
        quantizer=quantizer,
        residual_codes=residual,
        residual_quantizer=residual_quantizer,
    )
