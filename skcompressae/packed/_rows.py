"""From CSR arrays to packed rows and back, in blocks, on threads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from skcompressae._core._compiling import contiguous, readable
from skcompressae._core._pack_rows import PACK_ERRORS, pack_ranked, pack_uniform
from skcompressae._core._packing import (
    decode_scales,
    index_bits_for,
    row_lengths,
    unpack_rows,
)
from skcompressae._core._threads import run_blocks
from skcompressae.exceptions import CodesFormatError
from skcompressae.packed._quantizer import ValueQuantizer, is_int

if TYPE_CHECKING:
    from skcompressae.packed._store import PackedCodes

__all__ = [
    "BLOCK_ROWS",
    "MAX_COMPONENTS",
    "PackingError",
    "check_sizes",
    "counted_from",
    "pack_arrays",
    "row_bytes",
    "unpack_csr",
]

Array: TypeAlias = NDArray[Any]
MAX_COMPONENTS = 1 << 20
# 8,192 rows of k = 32 are 0.5 MB of words and 2 MB of CSR: a bounded working set for each thread
BLOCK_ROWS = 8192
# Packing them takes a millisecond, ten times as long as to hand them to another thread.
_MIN_ROWS_PER_THREAD = 1024


class PackingError(ValueError):
    """A row of codes cannot be packed: `text` says why, with ``{}`` in place of its number, which `row` is."""

    text: str
    row: int


def _packing_error(message: str, text: str, row: int) -> PackingError:
    error = PackingError(message)  # of one argument, as pickle makes it again
    error.text, error.row = text, row
    return error


def counted_from(start: int, error: ValueError) -> ValueError:
    """Return the error of a block of rows of X as one of X, of which `start` rows come before."""
    message = f"{error}, counted from row {start} of X"
    if isinstance(error, PackingError):
        return _packing_error(message, error.text, start + error.row)
    return ValueError(message)


def row_bytes(n_components: int, k: int, value_bits: int) -> int:
    """Return the bytes of the words of one row."""
    return -(-k * (index_bits_for(n_components) + value_bits) // 8)


def check_sizes(n_components: Any, k: Any) -> tuple[int, int]:
    """Return both as plain ints, as file headers hold them."""
    for name, size in (("n_components", n_components), ("k", k)):
        if not is_int(size):
            raise TypeError(f"{name} must be an int, got {size!r}")
    n_components, k = int(n_components), int(k)
    if not 1 <= n_components <= MAX_COMPONENTS:
        raise ValueError(f"n_components must be from 1 to {MAX_COMPONENTS}, got {n_components}")
    if not 1 <= k <= n_components:
        raise ValueError(f"k must be from 1 to n_components={n_components}, got {k}")
    return n_components, k


def pack_arrays(
    indptr: Array,
    indices: Array,
    data: Array,
    n_components: int,
    k: int,
    quantizer: ValueQuantizer,
    *,
    check_duplicates: bool,
    n_threads: int,
) -> tuple[NDArray[np.uint8], Array | None]:
    """Return the rows and the scales, None for a fixed codebook, of a store of these CSR arrays."""
    if quantizer._is_ranked and len(quantizer.levels) != k:
        raise ValueError(f"k must be {len(quantizer.levels)}, the ranks of the quantizer's codebook, got {k}")
    n = len(indptr) - 1
    value_bits = quantizer.value_bits
    word_bits = index_bits_for(n_components) + value_bits
    rows = np.empty((n, row_bytes(n_components, k, value_bits)), dtype=np.uint8)
    scales = np.empty(n if quantizer._has_scales else 0, dtype=quantizer.scale_dtype)
    pointers = contiguous(indptr.astype(np.int64, copy=False))
    if indices.dtype != np.int32:
        # out of range stays out of range: a cast must not wrap an index into it
        indices = np.clip(indices.astype(np.int64, copy=False), -1, MAX_COMPONENTS).astype(np.int32)
    columns = contiguous(indices)
    bits = contiguous(np.ascontiguousarray(data, dtype=np.float32).view(np.uint32))
    layout = (word_bits, value_bits)
    # made here, not by the worker threads: a cached property has no lock
    levels, thresholds = quantizer.levels, quantizer.thresholds

    def work(start: int, stop: int) -> None:
        head = (pointers[start : stop + 1], columns, bits, n_components)
        if quantizer._is_ranked:
            tail = (layout, check_duplicates, not quantizer._has_scales, rows[start:stop], scales[start:stop])
            error, row = pack_ranked(*head, levels, thresholds, *tail)
        else:
            exact = np.empty(stop - start, np.float32)
            is_narrow = scales.dtype == np.uint16
            steps = (levels.shape[1], k, layout)
            error, row = pack_uniform(*head, *steps, check_duplicates, is_narrow, rows[start:stop], exact)
            scales[start:stop] = exact.view(np.uint32) >> np.uint32(15) if is_narrow else exact
        if error:
            row += start
            largest = f": {np.abs(data[indptr[row] : indptr[row + 1]]).max():.3g}" if error in (2, 7) else ""
            text = f"codes {PACK_ERRORS[error]} (row {{}}{largest})"
            raise _packing_error(text.format(row), text, row)

    # an encoder's blocks are smaller than ours: they too go to all threads
    block_rows = max(_MIN_ROWS_PER_THREAD, min(BLOCK_ROWS, -(-n // max(n_threads, 1))))
    run_blocks(work, n, block_rows, n_threads)
    return rows, scales if quantizer._has_scales else None


def unpack_csr(store: PackedCodes, n_threads: int) -> sp.csr_matrix:
    """Return the codes of a store as canonical CSR; see `PackedCodes.to_csr`."""
    n = len(store)
    lengths = np.empty(n, dtype=np.int64)

    def measure(start: int, stop: int) -> None:
        scales = contiguous(decode_scales(store._scales[start:stop]))
        row_lengths(store.words(start, stop), scales, lengths[start:stop])

    run_blocks(measure, n, BLOCK_ROWS, n_threads)
    indptr = np.zeros(n + 1, dtype=np.int64)
    np.cumsum(lengths, out=indptr[1:])
    nnz = int(indptr[-1])
    indices = np.empty(nnz, dtype=np.int32)
    data = np.empty(nnz, dtype=np.float32)
    levels = readable(store.signed_levels)

    def work(start: int, stop: int) -> None:
        scales = contiguous(decode_scales(store._scales[start:stop]))
        if not (scales >= 0).all() or not np.isfinite(scales).all():
            raise CodesFormatError(f"a scale in rows {start} to {stop} is not finite or negative")
        bad = unpack_rows(
            store.words(start, stop),
            scales,
            levels,
            store.value_bits,
            store._n_components,
            indptr[start : stop + 1],
            indices,
            data,
        )
        if bad >= 0:
            raise CodesFormatError(f"row {start + bad} is damaged: an index is out of range or repeated")

    run_blocks(work, n, BLOCK_ROWS, n_threads)
    if nnz <= np.iinfo(np.int32).max:
        indptr = indptr.astype(np.int32)
    csr = sp.csr_matrix((data, indices, indptr), shape=store.shape, copy=False)
    csr.has_sorted_indices = True
    csr.has_canonical_format = True
    return csr
