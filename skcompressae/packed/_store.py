"""`PackedCodes`: an immutable, array-like store of sparse codes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from skcompressae._core._compiling import contiguous
from skcompressae._core._packing import expand_bits, max_word_dtype
from skcompressae.packed._formats import PackedFormatsMixin
from skcompressae.packed._layout import PackedLayoutMixin
from skcompressae.packed._making import PackedMakingMixin
from skcompressae.packed._quantizer import ValueQuantizer, is_int
from skcompressae.packed._residual import ResidualQuantizer
from skcompressae.packed._rows import BLOCK_ROWS, check_sizes, row_bytes, unpack_csr

__all__ = ["PackedCodes"]

Array: TypeAlias = NDArray[Any]
# A scale of 1 as it is stored in 16 bits.
_ONE = np.uint16(0x3F800000 >> 15)


class PackedCodes(PackedMakingMixin, PackedLayoutMixin, PackedFormatsMixin):
    """Sparse codes with each nonzero in one fixed-width word, and a scale per row.

    Make one with `pack`, `from_topk`, `load`, `from_arrow` or `from_archive`; the constructor takes the raw parts.
    The byte layout is documented in ``skcompressae/_core/_packing.py``.

    Parameters
    ----------
    rows : uint8 array of shape (n, ceil(k * word_bits / 8))
        The words, ``index << value_bits | sign << (value_bits - 1) | code``, bit-packed, least significant first.
    scales : uint16 or float32 array of shape (n,), or None
        What the levels are multiplied with; see `ValueQuantizer.scale_dtype`. None for a quantizer of kind "fixed".
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

    See Also
    --------
    CompresSAETransformer.transform_packed : Makes them from embeddings.
    CodeNearestNeighbors : Searches them as they are.
    skcompressae.packed.ValueQuantizer : How values are rounded.

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
        scales: Array | None,
        *,
        n_components: int,
        k: int,
        quantizer: ValueQuantizer,
        residual_codes: NDArray[np.uint8] | None = None,
        residual_quantizer: ResidualQuantizer | None = None,
    ) -> None:
        n_components, k = check_sizes(n_components, k)
        if quantizer._is_ranked and len(quantizer.levels) != k:
            raise ValueError(f"k must be {len(quantizer.levels)}, the ranks of the quantizer's codebook, got {k}")
        if scales is not None and not quantizer._has_scales:
            raise ValueError("scales must be None for a quantizer of kind 'fixed', which has none")
        given: dict[str, Any] = {"rows": rows, **({"scales": scales} if quantizer._has_scales else {})}
        if residual_codes is not None:
            given["residual_codes"] = residual_codes
        for name, part in given.items():
            if not isinstance(part, np.ndarray):
                raise TypeError(f"{name} must be a NumPy array, got a {type(part).__name__}")
        row_scales: Array = given.get("scales", np.broadcast_to(_ONE, len(rows)))
        width = row_bytes(n_components, k, quantizer.value_bits)
        if rows.dtype != np.uint8 or rows.ndim != 2 or rows.shape[1] != width:
            raise ValueError(f"rows must be uint8 of shape (n, {width}), got {rows.dtype} {rows.shape}")
        if row_scales.dtype != quantizer.scale_dtype or row_scales.shape != (len(rows),):
            raise ValueError(
                f"scales must be {quantizer.scale_dtype} of shape ({len(rows)},), got {row_scales.dtype} "
                f"{row_scales.shape}"
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
            "_scales": _frozen(row_scales),
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
        return partial(PackedCodes, **rest), (np.asarray(self._rows), self._stored_scales)

    @property
    def _stored_scales(self) -> Array | None:
        """The scales as the constructor takes them."""
        return np.asarray(self._scales) if self._quantizer._has_scales else None

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
            scales if self._quantizer._has_scales else None,
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
        if isinstance(key, tuple) and len(key) == 2 and key[1] is Ellipsis:
            key = key[0]  # as scikit-learn chooses rows, in train_test_split too
        if isinstance(key, tuple):
            raise IndexError("PackedCodes are indexed by row only; unpack rows with to_csr() to choose columns")
        if is_int(key):
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

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        # NumPy would otherwise take rows of rows, and fail by its limit of dimensions
        raise TypeError("PackedCodes are no NumPy array; unpack them with to_csr()")

    def take(self, indices: Any) -> PackedCodes:
        """Return chosen rows as a new store.

        As NumPy's method of that name: the same as indexing by an array, with a copy of the rows.

        Parameters
        ----------
        indices : int array of shape (n_taken,)
            Rows, in the order wanted; negative ones count from the end.

        Returns
        -------
        PackedCodes
            The rows.

        Raises
        ------
        IndexError
            If a row does not exist, or `indices` are no integers.

        See Also
        --------
        iter_blocks : Consecutive rows, without a copy.
        concatenate : Puts stores together.

        Examples
        --------
        >>> import numpy as np
        >>> from skcompressae import PackedCodes
        >>> packed = PackedCodes.pack(np.array([[0.0, 3.0, 0.0, -1.0], [0.5, 0.0, 2.0, 0.0]]))
        >>> packed.take([1, 0, 1]).to_csr().indices
        array([0, 2, 1, 3, 0, 2], dtype=int32)
        """
        rows = np.asarray(indices)
        if rows.size and rows.dtype.kind not in "iu":
            raise IndexError(f"indices must be integers, got {rows.dtype}; a boolean mask goes into brackets")
        return self[rows.astype(np.intp)]

    def iter_blocks(self, n_rows: int = BLOCK_ROWS) -> Iterator[PackedCodes]:
        """Yield consecutive parts of the store, sharing its memory.

        For work on more rows than should be unpacked at once. The last block is shorter where `n_rows` does not divide
        the rows.

        Parameters
        ----------
        n_rows : int, default=8192
            Rows of a block, at least 1.

        Yields
        ------
        packed : PackedCodes
            The next rows.

        Raises
        ------
        ValueError
            If `n_rows` is below 1.

        See Also
        --------
        words : The entries of a range of rows.
        take : Any rows, as a copy.

        Examples
        --------
        >>> import numpy as np
        >>> from skcompressae import PackedCodes
        >>> packed = PackedCodes.pack(np.array([[0.0, 3.0, 0.0, -1.0], [0.5, 0.0, 2.0, 0.0]]))
        >>> [len(block) for block in packed.iter_blocks(n_rows=1)]
        [1, 1]
        """
        if n_rows < 1:
            raise ValueError(f"n_rows must be at least 1, got {n_rows}")
        for start in range(0, len(self), n_rows):
            yield self[start : start + n_rows]

    def words(self, start: int = 0, stop: int | None = None) -> Array:
        """Return the words of a range of rows.

        For kernels that score packed rows: the index of an entry is ``word >> value_bits``, its value is looked up in
        `signed_levels`. A row with fewer than k nonzeros repeats its last word.

        Parameters
        ----------
        start : int, default=0
            First row.
        stop : int, default=None
            Row after the last; None takes all that follow.

        Returns
        -------
        uint16 or uint64 array of shape (stop - start, k)
            A view without a copy where a word has 16 bits, otherwise expanded: ask for a block at a time.

        See Also
        --------
        signed_levels : Values of words.
        to_csr : All of it decoded.

        Examples
        --------
        >>> import numpy as np
        >>> from skcompressae import PackedCodes
        >>> packed = PackedCodes.pack(np.array([[0.0, 3.0, 0.0, -1.0], [0.5, 0.0, 2.0, 0.0]]))
        >>> packed.words() >> packed.value_bits
        array([[1, 3],
               [2, 0]], dtype=uint16)
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

        Magnitudes are the levels that values were rounded to when they were packed; indices and signs are those of the
        codes.

        Parameters
        ----------
        n_threads : int, default=1
            Threads that unpack blocks of rows.

        Returns
        -------
        CSR matrix of shape (n, n_components)
            Of dtype float32, with ascending indices and no stored zeros. A matrix also where scikit-learn's
            ``sparse_interface`` asks for arrays: packed codes do without scikit-learn.

        Raises
        ------
        CodesFormatError
            If a row is none that packing writes (a damaged file opened without verification).

        See Also
        --------
        pack : The way here.
        iter_blocks : For unpacking block by block.

        Examples
        --------
        >>> import numpy as np
        >>> from skcompressae import PackedCodes
        >>> packed = PackedCodes.pack(np.array([[0.0, 3.0, 0.0, -1.0], [0.5, 0.0, 2.0, 0.0]]))
        >>> packed.to_csr().toarray().round(1)
        array([[ 0. ,  3. ,  0. , -1. ],
               [ 0.5,  0. ,  2. ,  0. ]], dtype=float32)
        """
        return unpack_csr(self, n_threads)


def _frozen(array: Array) -> Array:
    view = np.asarray(array).view() if not isinstance(array, np.memmap) else array.view()
    view.setflags(write=False)
    return view
