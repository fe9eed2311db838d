"""`PackedCodes`: an immutable, array-like store of sparse codes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from skcompressae._core._packing import (
    PACK_ERRORS,
    compress_bits,
    decode_scales,
    expand_bits,
    index_bits_for,
    max_word_dtype,
    pack_ranked,
    pack_uniform,
    row_lengths,
    unpack_rows,
)
from skcompressae._core._threads import run_blocks
from skcompressae.exceptions import CodesFormatError
from skcompressae.packed._quantizer import ValueQuantizer, as_packable_csr
from skcompressae.packed._residual import ResidualQuantizer

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["PackedCodes"]

Array: TypeAlias = NDArray[Any]
_MAX_COMPONENTS = 1 << 20
# 8,192 rows of k = 32 are 0.5 MB of words and 2 MB of CSR: a bounded working set for each thread
_BLOCK_ROWS = 8192


class PackedCodes:
    """Sparse codes with each nonzero in one fixed-width word, and a scale per row.

    Make one with `pack`, `from_topk`, `load`, `from_arrow` or `from_archive`; the constructor takes the raw parts.
    The byte layout is documented in ``skcompressae/_core/_packing.py``.

    Parameters
    ----------
    rows : uint8 array of shape (n, ceil(k * word_bits / 8))
        The words, ``index << value_bits | sign << (value_bits - 1) | code``, bit-packed, least significant first.
    scales : uint16 or float32 array of shape (n,)
        What the levels are multiplied with; see `ValueQuantizer.scale_dtype`.
    n_components : int
        Width of the code space, 1 to 2**20.
    k : int
        Entries a row can hold, at most n_components.
    quantizer : ValueQuantizer
    residual_codes : uint8 array of shape (n, n_bytes), default=None
    residual_quantizer : ResidualQuantizer, default=None
        What `residual_codes` mean; both are given or neither.

    Examples
    --------
    >>> import scipy.sparse as sp
    >>> from skcompressae.packed import PackedCodes
    >>> codes = sp.csr_array([[0.0, 3.0, 0.0, -1.0], [0.5, 0.0, 2.0, 0.0]], dtype="float32")
    >>> packed = PackedCodes.pack(codes, value_bits=8)
    >>> packed
    PackedCodes(n=2, n_components=4, k=2, value_bits=8, bytes_per_row=5)
    >>> packed[1].to_csr().toarray().round(2)
    array([[0.5, 0. , 2. , 0. ]], dtype=float32)
    >>> PackedCodes.pack(packed.to_csr(), quantizer=packed.quantizer) == packed
    True
    """

    __slots__ = (
        "_k",
        "_n_components",
        "_quantizer",
        "_residual_codes",
        "_residual_quantizer",
        "_rows",
        "_scales",
    )
    _k: int
    _n_components: int
    _quantizer: ValueQuantizer
    _residual_codes: NDArray[np.uint8] | None
    _residual_quantizer: ResidualQuantizer | None
    _rows: NDArray[np.uint8]
    _scales: Array
    __hash__ = None  # type: ignore[assignment]

    def __init__(
        self,
        rows: NDArray[np.uint8],
        scales: Array,
        *,
        n_components: int,
        k: int,
        quantizer: ValueQuantizer,
        residual_codes: NDArray[np.uint8] | None = None,
        residual_quantizer: ResidualQuantizer | None = None,
    ) -> None:
        _check_sizes(n_components, k)
        if quantizer.kind == "ranked" and len(quantizer.levels) != k:
            raise ValueError(f"k must be {len(quantizer.levels)}, the ranks of the quantizer's codebook, got {k}")
        width = row_bytes(n_components, k, quantizer.value_bits)
        if rows.dtype != np.uint8 or rows.ndim != 2 or rows.shape[1] != width:
            raise ValueError(f"rows must be uint8 of shape (n, {width}), got {rows.dtype} {rows.shape}")
        if scales.dtype != quantizer.scale_dtype or scales.shape != (len(rows),):
            raise ValueError(
                f"scales must be {quantizer.scale_dtype} of shape ({len(rows)},), got {scales.dtype} {scales.shape}"
            )
        if (residual_codes is None) != (residual_quantizer is None):
            raise ValueError("residual_codes and residual_quantizer must be given together")
        if residual_codes is not None and residual_quantizer is not None:
            shape = (len(rows), residual_quantizer.n_bytes)
            if residual_codes.dtype != np.uint8 or residual_codes.shape != shape:
                raise ValueError(
                    f"residual_codes must be uint8 of shape {shape}, got {residual_codes.dtype} {residual_codes.shape}"
                )
        parts = {
            "_rows": _frozen(rows),
            "_scales": _frozen(scales),
            "_n_components": n_components,
            "_k": k,
            "_quantizer": quantizer,
            "_residual_codes": None if residual_codes is None else _frozen(residual_codes),
            "_residual_quantizer": residual_quantizer,
        }
        for name, value in parts.items():
            object.__setattr__(self, name, value)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"PackedCodes is immutable; {name!r} cannot be set")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"PackedCodes is immutable; {name!r} cannot be deleted")

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (
            np.asarray(self._rows),
            np.asarray(self._scales),
            self._n_components,
            self._k,
            self._quantizer,
            None if self._residual_codes is None else np.asarray(self._residual_codes),
            self._residual_quantizer,
        )

    # -- making ---------------------------------------------------------------------------------------------

    @classmethod
    def pack(
        cls,
        codes: Any,
        *,
        value_bits: int | None = None,
        k: int | None = None,
        quantizer: ValueQuantizer | None = None,
        kind: Literal["auto", "ranked", "uniform"] = "auto",
        n_threads: int = 1,
    ) -> PackedCodes:
        """Pack sparse or dense codes.

        Parameters
        ----------
        codes : sparse matrix or array of shape (n, n_components)
            Real and finite; values are taken as float32. Duplicates are summed, stored zeros dropped; the caller's
            arrays are not changed.
        value_bits : int, default=None
            Bits of a value with its sign; None takes the quantizer's, or 4. Up to 8 when ranked, 16 when uniform.
        k : int, default=None
            Entries a row can hold; None takes the quantizer's ranks, or the longest row.
        quantizer : ValueQuantizer, default=None
            None learns one on `codes`. Stores must share one to be concatenated, and repacking reproduces a store
            exactly with its own: ``pack(p.to_csr(), k=p.k, quantizer=p.quantizer) == p``.
        kind : {"auto", "ranked", "uniform"}, default="auto"
            Quantiser to learn: "auto" is ranked up to 6 bits and uniform above.
        n_threads : int, default=1

        Returns
        -------
        packed : PackedCodes

        Raises
        ------
        ValueError
            If the codes are not finite, a row has more than `k` nonzeros, its largest magnitude lies outside
            [2**-100, 2**100], or the arguments contradict each other.
        """
        csr = as_packable_csr(codes)
        n_components = csr.shape[1]
        if quantizer is not None and value_bits not in (None, quantizer.value_bits):
            raise ValueError(f"value_bits={value_bits} contradicts the quantizer's {quantizer.value_bits}")
        longest = max(1, int(np.diff(csr.indptr).max(initial=0)))
        if k is None:
            k = len(quantizer.levels) if quantizer is not None and quantizer.kind == "ranked" else longest
        _check_sizes(n_components, k)
        if longest > k:
            raise ValueError(f"codes have a row of {longest} nonzeros, more than k={k}")
        if quantizer is None:
            bits = 4 if value_bits is None else value_bits
            quantizer = ValueQuantizer.fit(csr, value_bits=bits, k=k, kind=kind)
        return cls._pack_arrays(
            csr.indptr.astype(np.int64),
            csr.indices.astype(np.int32, copy=False),
            csr.data,
            n_components,
            k,
            quantizer,
            check_duplicates=False,
            n_threads=n_threads,
        )

    @classmethod
    def from_topk(
        cls,
        indices: Array,
        values: Array,
        n_components: int,
        *,
        quantizer: ValueQuantizer,
        n_threads: int = 1,
    ) -> PackedCodes:
        """Pack top-k pairs as an encoder emits them, without building CSR.

        Parameters
        ----------
        indices : int array of shape (n, k)
            In any order, no index twice among the nonzero values of a row.
        values : float32 array of shape (n, k)
            Zeros are dropped.
        n_components : int
        quantizer : ValueQuantizer
        n_threads : int, default=1

        Returns
        -------
        packed : PackedCodes
        """
        indices = np.ascontiguousarray(indices)
        values = np.ascontiguousarray(values, dtype=np.float32)
        if indices.ndim != 2 or indices.dtype.kind not in "iu" or indices.shape != values.shape:
            raise ValueError(
                "indices and values must be 2-dimensional, of one shape, indices integers; got "
                f"{indices.dtype} {indices.shape} and {values.shape}"
            )
        n, k = indices.shape
        _check_sizes(n_components, k)
        return cls._pack_arrays(
            np.arange(0, n * k + 1, k, dtype=np.int64),
            # out of range stays out of range: a cast must not wrap an index into it
            np.clip(indices, -1, _MAX_COMPONENTS).astype(np.int32, copy=False).reshape(-1),
            values.reshape(-1),
            n_components,
            k,
            quantizer,
            check_duplicates=True,
            n_threads=n_threads,
        )

    @classmethod
    def _pack_arrays(
        cls,
        indptr: Array,
        indices: Array,
        data: Array,
        n_components: int,
        k: int,
        quantizer: ValueQuantizer,
        *,
        check_duplicates: bool,
        n_threads: int,
    ) -> PackedCodes:
        if quantizer.kind == "ranked" and len(quantizer.levels) != k:
            raise ValueError(f"k must be {len(quantizer.levels)}, the ranks of the quantizer's codebook, got {k}")
        n = len(indptr) - 1
        value_bits = quantizer.value_bits
        word_bits = index_bits_for(n_components) + value_bits
        rows = np.empty((n, row_bytes(n_components, k, value_bits)), dtype=np.uint8)
        scales = np.empty(n, dtype=quantizer.scale_dtype)
        bits = np.ascontiguousarray(data, dtype=np.float32).view(np.uint32)
        dtype = max_word_dtype(word_bits)
        direct = rows.view(dtype) if word_bits == dtype.itemsize * 8 else None
        # made here, not by the worker threads: a cached property has no lock
        levels, thresholds = quantizer.levels, quantizer.thresholds

        def work(start: int, stop: int) -> None:
            words = np.empty((stop - start, k), dtype) if direct is None else direct[start:stop]
            pointer = indptr[start : stop + 1]
            head = (pointer, indices, bits, n_components)
            tail = (value_bits, check_duplicates, words, scales[start:stop])
            if quantizer.kind == "ranked":
                error, row = pack_ranked(*head, levels, thresholds, *tail)
            else:
                error, row = pack_uniform(*head, levels.shape[1], *tail)
            if error:
                raise ValueError(f"codes {PACK_ERRORS[error]} (row {start + row})")
            if direct is None:
                compress_bits(words, word_bits, rows[start:stop])

        run_blocks(work, n, _BLOCK_ROWS, n_threads)
        return cls(rows, scales, n_components=n_components, k=k, quantizer=quantizer)

    @classmethod
    def concatenate(cls, stores: Sequence[PackedCodes]) -> PackedCodes:
        """Join stores of one layout, row after row.

        Parameters
        ----------
        stores : sequence of PackedCodes
            At least one; with the same n_components, k, quantizer and residual quantizer.

        Returns
        -------
        packed : PackedCodes
        """
        stores = list(stores)
        if not stores:
            raise ValueError("stores must hold at least one PackedCodes, got none")
        first = stores[0]
        for i, other in enumerate(stores):
            difference = first._layout_difference(other)
            if difference:
                raise ValueError(f"stores[{i}] differs from stores[0] in {difference}; repack it first")
        residual = (
            None if first._residual_codes is None else np.concatenate([np.asarray(s._residual_codes) for s in stores])
        )
        return first._with(
            np.concatenate([s._rows for s in stores]), np.concatenate([s._scales for s in stores]), residual
        )

    def with_residual(self, residual_codes: NDArray[np.uint8], residual_quantizer: ResidualQuantizer) -> PackedCodes:
        """Return this store with a residual code per row; the words are shared, not copied.

        Parameters
        ----------
        residual_codes : uint8 array of shape (n, residual_quantizer.n_bytes)
        residual_quantizer : ResidualQuantizer

        Returns
        -------
        packed : PackedCodes
        """
        return PackedCodes(
            self._rows,
            self._scales,
            n_components=self._n_components,
            k=self._k,
            quantizer=self._quantizer,
            residual_codes=residual_codes,
            residual_quantizer=residual_quantizer,
        )

    def _with(self, rows: NDArray[np.uint8], scales: Array, residual: NDArray[np.uint8] | None) -> PackedCodes:
        return PackedCodes(
            rows,
            scales,
            n_components=self._n_components,
            k=self._k,
            quantizer=self._quantizer,
            residual_codes=residual,
            residual_quantizer=self._residual_quantizer,
        )

    # -- what it is -----------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def shape(self) -> tuple[int, int]:
        """(n, n_components)."""
        return len(self._rows), self._n_components

    @property
    def ndim(self) -> int:
        """Always 2."""
        return 2

    @property
    def dtype(self) -> np.dtype[np.float32]:
        """Dtype of the unpacked values."""
        return np.dtype(np.float32)

    @property
    def n_components(self) -> int:
        """Width of the code space."""
        return self._n_components

    @property
    def k(self) -> int:
        """Entries a row can hold."""
        return self._k

    @property
    def quantizer(self) -> ValueQuantizer:
        """The value quantiser."""
        return self._quantizer

    @property
    def value_bits(self) -> int:
        """Bits of a value with its sign."""
        return self._quantizer.value_bits

    @property
    def index_bits(self) -> int:
        """Bits of an index; tables looked up by index need ``2 ** index_bits`` entries."""
        return index_bits_for(self._n_components)

    @property
    def word_bits(self) -> int:
        """Bits of one entry."""
        return self.index_bits + self.value_bits

    @property
    def rows(self) -> NDArray[np.uint8]:
        """The bit-packed words, read-only uint8 of shape (n, row bytes)."""
        return self._rows

    @property
    def scales(self) -> NDArray[np.float32]:
        """The scale of every row as float32 (a copy if stored in 16 bits); 0 marks a zero row."""
        return decode_scales(self._scales)

    @property
    def signed_levels(self) -> NDArray[np.float32]:
        """Table of values before the scale: ``value = signed_levels[min(rank, last), word & mask] * scale``."""
        return self._quantizer.signed_levels

    @property
    def residual_codes(self) -> NDArray[np.uint8] | None:
        """Residual code per row, uint8 of shape (n, n_bytes), or None."""
        return self._residual_codes

    @property
    def residual_quantizer(self) -> ResidualQuantizer | None:
        """What the residual codes mean, or None."""
        return self._residual_quantizer

    @property
    def bytes_per_row(self) -> int:
        """Words, scale and residual code of one row in bytes."""
        residual = 0 if self._residual_codes is None else self._residual_codes.shape[1]
        return self._rows.shape[1] + self._scales.itemsize + residual

    @property
    def nbytes(self) -> int:
        """Bytes of the rows and of the codebooks."""
        residual = 0 if self._residual_quantizer is None else self._residual_quantizer.nbytes
        return len(self) * self.bytes_per_row + self._quantizer.levels.nbytes + residual

    def __repr__(self) -> str:
        residual = "" if self._residual_codes is None else f", residual_bytes={self._residual_codes.shape[1]}"
        return (
            f"PackedCodes(n={len(self)}, n_components={self._n_components}, k={self._k}, "
            f"value_bits={self.value_bits}{residual}, bytes_per_row={self.bytes_per_row})"
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PackedCodes):
            return NotImplemented
        return (
            len(self) == len(other)
            and not self._layout_difference(other)
            and np.array_equal(self._scales, other._scales)
            and np.array_equal(self._rows, other._rows)
            and (
                self._residual_codes is None or np.array_equal(self._residual_codes, np.asarray(other._residual_codes))
            )
        )

    def _layout_difference(self, other: PackedCodes) -> str:
        """Return the name of the first part of the layout in which two stores differ, or ''."""
        for name in ("n_components", "k", "quantizer", "residual_quantizer"):
            if getattr(self, name) != getattr(other, name):
                return name
        return ""

    # -- reading --------------------------------------------------------------------------------------------

    def __getitem__(self, key: Any) -> PackedCodes:
        """Return the chosen rows: an int (one row), slice, int array or boolean mask. A slice shares memory."""
        if isinstance(key, tuple):
            raise IndexError("PackedCodes are indexed by row only; unpack rows with to_csr() to choose columns")
        if isinstance(key, (int, np.integer)):
            i = int(key)
            if not -len(self) <= i < len(self):
                raise IndexError(f"row {i} is out of range for {len(self)} rows")
            key = slice(i % len(self), i % len(self) + 1)
        elif not isinstance(key, slice):
            key = np.asarray(key)
            if key.ndim != 1 or key.dtype.kind not in "biu":
                if key.size or key.ndim != 1:
                    raise IndexError(
                        f"rows must be chosen by an int, a slice, a 1-dimensional int array or a boolean mask, got "
                        f"{key.dtype} of shape {key.shape}"
                    )
                key = key.astype(np.intp)
        residual = None if self._residual_codes is None else self._residual_codes[key]
        return self._with(self._rows[key], self._scales[key], residual)

    def take(self, indices: Any) -> PackedCodes:
        """Return the rows `indices` (int array of shape (n_taken,)) as a new store."""
        return self[np.asarray(indices, dtype=np.intp)]

    def iter_blocks(self, n_rows: int = _BLOCK_ROWS) -> Iterator[PackedCodes]:
        """Yield consecutive stores of up to `n_rows` rows that share this one's memory."""
        if n_rows < 1:
            raise ValueError(f"n_rows must be at least 1, got {n_rows}")
        for start in range(0, len(self), n_rows):
            yield self[start : start + n_rows]

    def words(self, start: int = 0, stop: int | None = None) -> Array:
        """Return the words of rows start to stop, for kernels that score packed rows.

        Returns
        -------
        words : uint16, uint32 or uint64 array of shape (stop - start, k)
            A view without a copy where a word has 16 or 32 bits, otherwise expanded: ask for a block at a time.
        """
        rows = _contiguous(self._rows[start:stop])
        dtype = max_word_dtype(self.word_bits)
        if self.word_bits == dtype.itemsize * 8:
            return rows.view(dtype)
        words = np.empty((len(rows), self._k), dtype)
        expand_bits(rows, self.word_bits, words)
        words.setflags(write=False)
        return words

    def to_csr(self, *, n_threads: int = 1) -> sp.csr_matrix:
        """Return the codes as canonical CSR, float32 of shape (n, n_components).

        Raises
        ------
        CodesFormatError
            If a row is none that packing writes (a damaged file opened without verification).
        """
        n = len(self)
        lengths = np.empty(n, dtype=np.int64)

        def measure(start: int, stop: int) -> None:
            row_lengths(self.words(start, stop), _contiguous(self._scales[start:stop]), lengths[start:stop])

        run_blocks(measure, n, _BLOCK_ROWS, n_threads)
        indptr = np.zeros(n + 1, dtype=np.int64)
        np.cumsum(lengths, out=indptr[1:])
        nnz = int(indptr[-1])
        indices = np.empty(nnz, dtype=np.int32)
        data = np.empty(nnz, dtype=np.float32)
        levels = self.signed_levels

        def work(start: int, stop: int) -> None:
            scales = decode_scales(self._scales[start:stop])
            if not (scales >= 0).all() or not np.isfinite(scales).all():
                raise CodesFormatError(f"a scale in rows {start} to {stop} is not finite or negative")
            bad = unpack_rows(
                self.words(start, stop),
                scales,
                levels,
                self.value_bits,
                self._n_components,
                indptr[start : stop + 1],
                indices,
                data,
            )
            if bad >= 0:
                raise CodesFormatError(f"row {start + bad} is damaged: an index is out of range or repeated")

        run_blocks(work, n, _BLOCK_ROWS, n_threads)
        if nnz <= np.iinfo(np.int32).max:
            indptr = indptr.astype(np.int32)
        csr = sp.csr_matrix((data, indices, indptr), shape=self.shape, copy=False)
        csr.has_sorted_indices = True
        csr.has_canonical_format = True
        return csr

    # -- to and from other forms ----------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the store to a file, atomically; read it with `load`."""
        from skcompressae.packed import _files

        _files.save(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, mmap: bool = False, verify: bool | None = None) -> PackedCodes:
        """Read a store written by `save`.

        Parameters
        ----------
        path : path-like
        mmap : bool, default=False
            Map the rows instead of reading them: opening takes milliseconds whatever the size.
        verify : bool, default=None
            Compare the checksums of the rows, which reads all of them; None is ``not mmap``. Header and codebooks
            are always verified.

        Returns
        -------
        packed : PackedCodes

        Raises
        ------
        CodesFormatError
            If the file is damaged, truncated, foreign or newer.
        """
        from skcompressae.packed import _files

        return _files.load(path, mmap=mmap, verify=not mmap if verify is None else verify)

    def append_to(self, path: str | os.PathLike[str]) -> None:
        """Add these rows to the end of a saved store, atomically.

        The file is written anew (it takes its size in free space meanwhile), so a reader that has it mapped keeps its
        old rows and a crash leaves the old file.
        """
        from skcompressae.packed import _files

        _files.append(self, path)

    def to_archive(self) -> bytes:
        """Return the store entropy-coded, lossless, for cold storage; read it with `from_archive`."""
        from skcompressae.packed import _archiving

        return _archiving.to_archive(self)[0]

    def archive_report(self) -> dict[str, float]:
        """Return the bytes of the archive per nonzero beside the entropy of what it encodes.

        Returns
        -------
        report : dict
            ``bytes`` of the whole archive; and, per nonzero, ``bytes_per_nonzero``, ``entropy_bytes``
            (empirical entropy of words under the archive's contexts, with raw bits and scales, without
            tables) and ``set_bytes`` (``log2(binomial(n_components, k))`` for the indices of each row as a
            set, equally likely).
        """
        from skcompressae.packed import _archiving

        return _archiving.to_archive(self)[1]

    @classmethod
    def from_archive(cls, archive: bytes | bytearray | memoryview | str | os.PathLike[str]) -> PackedCodes:
        """Read the bytes of `to_archive`, or a file that holds them; every checksum is verified."""
        from skcompressae.packed import _archiving

        return _archiving.from_archive(archive)

    def to_arrow(self) -> pa.Table:
        """Return an Arrow table with list columns "indices" and "values"; needs pyarrow (extra ``arrow``)."""
        from skcompressae.packed import _arrow

        return _arrow.to_arrow(self)

    @classmethod
    def from_arrow(cls, table: pa.Table, *, n_threads: int = 1) -> PackedCodes:
        """Pack a table of `to_arrow` again, also after a round trip through Parquet; the store comes back equal."""
        from skcompressae.packed import _arrow

        return _arrow.from_arrow(table, n_threads=n_threads)


def _contiguous(array: Array) -> Array:
    """Return a plain, contiguous, read-only array: kernels are compiled for this one kind."""
    plain = np.ascontiguousarray(array).view(np.ndarray)
    plain.setflags(write=False)
    return plain


def row_bytes(n_components: int, k: int, value_bits: int) -> int:
    """Return the bytes of the words of one row."""
    return -(-k * (index_bits_for(n_components) + value_bits) // 8)


def _check_sizes(n_components: int, k: int) -> None:
    if not 1 <= n_components <= _MAX_COMPONENTS:
        raise ValueError(f"n_components must be from 1 to {_MAX_COMPONENTS}, got {n_components}")
    if not 1 <= k <= n_components:
        raise ValueError(f"k must be from 1 to n_components={n_components}, got {k}")


def _frozen(array: Array) -> Array:
    view = np.asarray(array).view() if not isinstance(array, np.memmap) else array.view()
    view.setflags(write=False)
    return view


def _rebuild(
    rows: NDArray[np.uint8],
    scales: Array,
    n_components: int,
    k: int,
    quantizer: ValueQuantizer,
    residual_codes: NDArray[np.uint8] | None,
    residual_quantizer: ResidualQuantizer | None,
) -> PackedCodes:
    return PackedCodes(
        rows,
        scales,
        n_components=n_components,
        k=k,
        quantizer=quantizer,
        residual_codes=residual_codes,
        residual_quantizer=residual_quantizer,
    )
