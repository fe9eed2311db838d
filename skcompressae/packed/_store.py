"""`PackedCodes`: an immutable, array-like store of sparse codes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Literal, TypeAlias

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from skcompressae._core._packing import expand_bits, max_word_dtype
from skcompressae.packed._formats import PackedFormatsMixin
from skcompressae.packed._layout import PackedLayoutMixin
from skcompressae.packed._quantizer import ValueQuantizer, as_packable_csr
from skcompressae.packed._residual import ResidualQuantizer, residual_codes_of
from skcompressae.packed._rows import (
    BLOCK_ROWS,
    MAX_COMPONENTS,
    check_sizes,
    contiguous,
    pack_arrays,
    row_bytes,
    unpack_csr,
)

__all__ = ["PackedCodes"]

Array: TypeAlias = NDArray[Any]


class PackedCodes(PackedLayoutMixin, PackedFormatsMixin):
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
        How values were rounded.
    residual_codes : uint8 array of shape (n, n_bytes), default=None
        One residual code a row, for reranking.
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
        check_sizes(n_components, k)
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
        residual = None if self._residual_codes is None else np.asarray(self._residual_codes)
        rest: dict[str, Any] = {
            "n_components": self._n_components,
            "k": self._k,
            "quantizer": self._quantizer,
            "residual_codes": residual,
            "residual_quantizer": self._residual_quantizer,
        }
        return partial(PackedCodes, **rest), (np.asarray(self._rows), np.asarray(self._scales))

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
            None learns one on `codes`. Stores must share one to be concatenated. Repacking reproduces a store
            exactly only with its own: ``pack(p.to_csr(), k=p.k, quantizer=p.quantizer) == p``.
        kind : {"auto", "ranked", "uniform"}, default="auto"
            Quantiser to learn: "auto" is ranked up to 6 bits and uniform above.
        n_threads : int, default=1
            Threads that pack blocks of rows.

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
        check_sizes(n_components, k)
        if longest > k:
            raise ValueError(f"codes have a row of {longest} nonzeros, more than k={k}")
        if quantizer is None:
            bits = 4 if value_bits is None else value_bits
            quantizer = ValueQuantizer.fit(csr, value_bits=bits, k=k, kind=kind)
        rows, scales = pack_arrays(
            csr.indptr,
            csr.indices,
            csr.data,
            n_components,
            k,
            quantizer,
            check_duplicates=False,
            n_threads=n_threads,
        )
        return cls(rows, scales, n_components=n_components, k=k, quantizer=quantizer)

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
            Width of the code space.
        quantizer : ValueQuantizer
            How values are rounded.
        n_threads : int, default=1
            Threads that pack blocks of rows.

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
        check_sizes(n_components, k)
        rows, scales = pack_arrays(
            np.arange(0, n * k + 1, k),
            # out of range stays out of range: a cast must not wrap an index into it
            np.clip(indices, -1, MAX_COMPONENTS).reshape(-1),
            values.reshape(-1),
            n_components,
            k,
            quantizer,
            check_duplicates=True,
            n_threads=n_threads,
        )
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
        rows, scales = np.concatenate([s._rows for s in stores]), np.concatenate([s._scales for s in stores])
        return first._with(rows, scales, residual, first._residual_quantizer)

    def with_residual(self, residual_codes: NDArray[np.uint8], residual_quantizer: ResidualQuantizer) -> PackedCodes:
        """Return this store with a residual code per row; the words are shared, not copied.

        Parameters
        ----------
        residual_codes : uint8 array of shape (n, residual_quantizer.n_bytes)
            One residual code a row.
        residual_quantizer : ResidualQuantizer
            What the codes mean.

        Returns
        -------
        packed : PackedCodes
            A new store; this one is unchanged.
        """
        return self._with(self._rows, self._scales, residual_codes, residual_quantizer)

    def with_residual_of(
        self,
        X: Any,
        components: Any,
        *,
        n_bytes: int | None = None,
        quantizer: ResidualQuantizer | None = None,
        normalize: bool = True,
        n_iter: int = 20,
        random_state: int = 0,
    ) -> PackedCodes:
        """Return this store with codes of what its rows leave of the embeddings, for reranking.

        The residual is ``x / ||x|| - x_hat`` with ``x_hat = code @ components`` as unpacked, so it also carries what
        quantising the values lost. It is smallest for codes stored at ``norm=None``.

        Parameters
        ----------
        X : float array of shape (n, n_features)
            The embeddings whose codes these are, in order.
        components : float array of shape (n_components, n_features)
            The decoder.
        n_bytes : int, default=None
            Bytes of a residual code for a quantiser fitted here; divides n_features.
        quantizer : ResidualQuantizer, default=None
            A quantiser fitted before; exactly one of this and `n_bytes` is given. Stores share one to be concatenated.
        normalize : bool, default=True
            Whether codes stand for rows divided by their norm; False for codes at ``norm="input"`` and dot products.
        n_iter, random_state : int
            As for `ResidualQuantizer.fit`.

        Returns
        -------
        packed : PackedCodes
            A new store; this one is unchanged.

        Raises
        ------
        ValueError
            If shapes do not fit, or both or none of `n_bytes` and `quantizer` are given.
        """
        codes, fitted = residual_codes_of(
            self,
            X,
            components,
            n_bytes=n_bytes,
            quantizer=quantizer,
            normalize=normalize,
            n_iter=n_iter,
            random_state=random_state,
        )
        return self.with_residual(codes, fitted)

    def _with(
        self,
        rows: NDArray[np.uint8],
        scales: Array,
        residual_codes: NDArray[np.uint8] | None,
        residual_quantizer: ResidualQuantizer | None,
    ) -> PackedCodes:
        """Return other rows in this store's layout."""
        return PackedCodes(
            rows,
            scales,
            n_components=self._n_components,
            k=self._k,
            quantizer=self._quantizer,
            residual_codes=residual_codes,
            residual_quantizer=residual_quantizer,
        )

    # -- comparing ----------------------------------------------------------------------------------------------

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
        return self._with(self._rows[key], self._scales[key], residual, self._residual_quantizer)

    def take(self, indices: Any) -> PackedCodes:
        """Return chosen rows as a new store.

        Parameters
        ----------
        indices : int array of shape (n_taken,)
            Rows, in the order wanted; negative ones count from the end.

        Returns
        -------
        packed : PackedCodes
            The rows.
        """
        return self[np.asarray(indices, dtype=np.intp)]

    def iter_blocks(self, n_rows: int = BLOCK_ROWS) -> Iterator[PackedCodes]:
        """Yield consecutive stores of up to `n_rows` rows that share this one's memory.

        Parameters
        ----------
        n_rows : int, default=8192
            Rows of a block, at least 1.

        Yields
        ------
        packed : PackedCodes
            The next rows.
        """
        if n_rows < 1:
            raise ValueError(f"n_rows must be at least 1, got {n_rows}")
        for start in range(0, len(self), n_rows):
            yield self[start : start + n_rows]

    def words(self, start: int = 0, stop: int | None = None) -> Array:
        """Return the words of rows start to stop, for kernels that score packed rows.

        Parameters
        ----------
        start : int, default=0
            First row.
        stop : int, default=None
            Row after the last; None takes all that follow.

        Returns
        -------
        words : uint16 or uint64 array of shape (stop - start, k)
            A view without a copy where a word has 16 bits, otherwise expanded: ask for a block at a time.
        """
        rows = contiguous(self._rows[start:stop])
        dtype = max_word_dtype(self.word_bits)
        if self.word_bits == dtype.itemsize * 8:
            return rows.view(dtype)
        words = np.empty((len(rows), self._k), dtype)
        expand_bits(rows, self.word_bits, words)
        words.setflags(write=False)
        return words

    def to_csr(self, *, n_threads: int = 1) -> sp.csr_matrix:
        """Return the codes as canonical CSR.

        Parameters
        ----------
        n_threads : int, default=1
            Threads that unpack blocks of rows.

        Returns
        -------
        codes : CSR matrix of shape (n, n_components)
            Of dtype float32, with ascending indices and no stored zeros.

        Raises
        ------
        CodesFormatError
            If a row is none that packing writes (a damaged file opened without verification).
        """
        return unpack_csr(self, n_threads)


def _frozen(array: Array) -> Array:
    view = np.asarray(array).view() if not isinstance(array, np.memmap) else array.view()
    view.setflags(write=False)
    return view
