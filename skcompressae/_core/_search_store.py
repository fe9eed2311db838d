"""Documents of an index, in the form in which the kernels read them.

A *store* is an immutable run of code rows. Two forms are built here:

- `RowStore`: CSR rows, ``indptr`` and ``values`` as they came, ``indices`` as uint16 where ``n_components``
  fits (int32 else). 6 bytes per float32 nonzero. Serves every mode whose query is dense in code space.
- `PostingStore`: the transpose of at most 65,536 rows, ``rows`` as uint16. 6 bytes per float32 nonzero and
  8 bytes per component. Serves queries that are themselves sparse.

`PackedStore` wraps packed codes, whose words are scanned as they are. Whatever else satisfies `CodeStore` is scanned
block by block through `CodeStore.block`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from skcompressae._core._compiling import contiguous, readable
from skcompressae._core._packed_search import (
    RAGGED_ROWS,
    Polynomials,
    Words,
    fit_polynomials,
    mark_ragged,
    n_terms_of,
    packed_kernels,
)
from skcompressae._core._refined_rows import RefinedRows
from skcompressae._core._search_kernels import row_norms
from skcompressae._core._search_postings import build_postings, postings_to_rows
from skcompressae._core._threads import row_blocks, run_blocks

__all__ = [
    "BLOCK_ROWS",
    "Chunk",
    "CodeStore",
    "CsrBlock",
    "PackedStore",
    "PostingStore",
    "RowStore",
    "block_to_csr",
    "make_chunk",
    "norm_factors",
    "reconstruction_norms",
]

# Row numbers inside a block are uint16. Smaller blocks measured slower for postings (0.16 ms a query at
# 65,536 rows, 0.8 ms at 8,192: short lists wait for memory); a row block of this size is decoded once for all
# query groups.
BLOCK_ROWS = 65_536
# Rows whose norm is below this are zero rows: their cosine could not be formed in float32.
_TINY_NORM = 1e-30
_LARGEST_VALUE = 1e30
_NORM_BLOCK_ROWS = 2_048


class CsrBlock(NamedTuple):
    """Rows in CSR layout; ``indptr`` need not begin at 0."""

    indptr: NDArray[Any]
    indices: NDArray[Any]
    values: NDArray[Any]


@runtime_checkable
class CodeStore(Protocol):
    """What the search asks of a store of codes: sizes, and any block of rows as CSR."""

    @property
    def n_rows(self) -> int:
        """Number of rows."""

    @property
    def n_components(self) -> int:
        """Width of the code space."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the values, float32 or float64."""

    @property
    def nbytes(self) -> int:
        """Bytes the store occupies."""

    def block(self, start: int, stop: int) -> CsrBlock:
        """Return the rows ``start:stop`` in CSR layout, columns ascending and unique in each row."""


class _Readable:
    """A dataclass whose arrays, also those of a pickle or a file that is memory-mapped, look alike to kernels."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, np.ndarray):
                object.__setattr__(self, name, readable(value))

    def __reduce__(self) -> Any:
        return type(self), tuple(vars(self).values())


@dataclass(frozen=True)
class RowStore(_Readable):
    """CSR rows with the narrowest column type."""

    indptr: NDArray[Any]
    indices: NDArray[Any]
    values: NDArray[Any]
    n_components: int

    @classmethod
    def from_csr(cls, codes: csr_matrix) -> RowStore:
        """Refer to the ``indptr`` and ``data`` of canonical `codes`; narrow the column numbers."""
        n_components = codes.shape[1]
        kind = np.uint16 if n_components <= 65_536 else np.int32
        return cls(codes.indptr, codes.indices.astype(kind), codes.data, n_components)

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return len(self.indptr) - 1

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the values."""
        return self.values.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of the three arrays."""
        return self.indptr.nbytes + self.indices.nbytes + self.values.nbytes

    def block(self, start: int, stop: int) -> CsrBlock:
        """Return a view of the rows ``start:stop``."""
        return CsrBlock(self.indptr[start : stop + 1], self.indices, self.values)


@dataclass(frozen=True)
class PostingStore(_Readable):
    """At most `BLOCK_ROWS` rows, listed by component."""

    offsets: NDArray[Any]
    rows: NDArray[Any]
    values: NDArray[Any]
    n_rows: int

    @classmethod
    def from_csr(cls, codes: csr_matrix) -> PostingStore:
        """Transpose canonical `codes`."""
        offsets, rows, values = build_postings(codes.indptr, codes.indices, codes.data, codes.shape[1])
        return cls(offsets, rows, values, codes.shape[0])

    @property
    def n_components(self) -> int:
        """Width of the code space."""
        return len(self.offsets) - 1

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the values."""
        return self.values.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of the three arrays."""
        return self.offsets.nbytes + self.rows.nbytes + self.values.nbytes

    def block(self, start: int, stop: int) -> CsrBlock:
        """Return the rows ``start:stop``, transposed back."""
        indptr, indices, values = postings_to_rows(self.offsets, self.rows, self.values, self.n_rows)
        return CsrBlock(indptr[start : stop + 1], indices, values)


class PackedStore:
    """Packed codes, scanned as they are where their words fit the vector kernels, else unpacked block by block.

    Parameters
    ----------
    packed : PackedCodes
        Told by what it has: a length, slices, `to_csr`, the layout of its words and `residual_codes`.
    """

    def __init__(self, packed: Any) -> None:
        self.packed = packed
        self._rows = contiguous(packed.rows).reshape(-1)
        self._row_scales = contiguous(packed._scales)
        codes = packed.residual_codes
        self._residual_codes: Any = None if codes is None else contiguous(codes)
        self._row_bytes = int(packed.rows.shape[1])
        self._levels = packed.signed_levels.copy()
        # in the unit in which `score_lanes` takes values
        self._codebook = self._levels * np.float32(2.0**-31)
        n_terms = n_terms_of(packed.quantizer.levels)
        self._prepared: tuple[Polynomials, NDArray[np.bool_]] | None = None
        # of the energy that the codes leave, what residual codes keep; found where an index asks for it
        self.kept_share: float | None = None
        self.kernels = packed_kernels(packed.word_bits, packed.value_bits, n_terms, self._row_scales.dtype.str)

    def __getstate__(self) -> Any:
        return self.packed

    def __setstate__(self, packed: Any) -> None:
        self.__init__(packed)  # type: ignore[misc]

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return len(self.packed)

    @property
    def n_components(self) -> int:
        """Width of the code space."""
        return int(self.packed.n_components)

    @property
    def n_targets(self) -> int:
        """Rows a target must have: one for every index that a word can hold."""
        return 1 << int(self.packed.index_bits)

    @property
    def rounding(self) -> float:
        """Error of a float32 score of words at scale 1 for the rounding of a target of norm 1, and more."""
        return 2.0**-20 * float(np.abs(self._levels).max()) * float(np.sqrt(self.packed.k))

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the unpacked values."""
        return np.dtype(self.packed.dtype)

    @property
    def nbytes(self) -> int:
        """Bytes of the packed codes."""
        return int(self.packed.nbytes)

    def block(self, start: int, stop: int) -> CsrBlock:
        """Unpack the rows ``start:stop``."""
        rows = self.packed[start:stop].to_csr()
        return CsrBlock(rows.indptr, rows.indices, rows.data)

    def words_of(self, start: int, stop: int) -> Words | None:
        """Return what `kernels` ask of the rows ``start:stop``, or None where there are none."""
        if self.kernels is None:
            return None
        polynomials, ragged = self.prepare()
        return Words(
            self._rows[start * self._row_bytes :],
            self._row_bytes,
            int(self.packed.k),
            self._row_scales[start:stop],
            self._levels,
            self._codebook,
            *polynomials,
            ragged,
            start,
        )

    def refined_rows(self, factors: NDArray[np.float32]) -> RefinedRows:
        """Return what a search by residual codes asks of all rows, which must have such codes."""
        packed = self.packed
        return RefinedRows(
            self._rows,
            self._row_bytes,
            int(packed.k),
            int(packed.word_bits),
            int(packed.value_bits),
            self._row_scales,
            self._levels,
            self._residual_codes,
            readable(factors),
        )

    def prepare(self, n_threads: int = 1) -> tuple[Polynomials, NDArray[np.bool_]]:
        """Return the polynomials of the codebook, and which runs of `RAGGED_ROWS` rows hold a short one.

        Found out once: before threads search, so that not each of them does it.
        """
        if self._prepared is None:
            ragged = np.zeros(-(-self.n_rows // RAGGED_ROWS), np.bool_)
            k, word_bits = int(self.packed.k), int(self.packed.word_bits)

            def mark(start: int, stop: int) -> None:
                mark_ragged(self._rows, self._row_bytes, k, word_bits, start, stop, ragged)

            run_blocks(mark, self.n_rows, BLOCK_ROWS, n_threads)
            self._prepared = (fit_polynomials(self.packed.quantizer.levels, k), ragged)
        return self._prepared


@dataclass(frozen=True)
class Chunk(_Readable):
    """A store with what turns its dot products into scores.

    Attributes
    ----------
    store : CodeStore
        The codes.
    scale : ndarray of shape (n_rows,), dtype=float64
        Factor of each row: one over the norm for cosine, 1 for dot, 0 for rows without direction.
    reach : float
        Largest ``norm(code) * scale``: bounds every score by ``reach * norm(target)``.
    longest : int
        Largest number of nonzeros in a row.
    """

    store: CodeStore
    scale: NDArray[np.float64]
    reach: float
    longest: int

    @property
    def nbytes(self) -> int:
        """Bytes of the store and of the factors."""
        return self.store.nbytes + self.scale.nbytes


def block_to_csr(block: CsrBlock, n_components: int) -> csr_matrix:
    """Wrap a block as a SciPy matrix."""
    start, stop = int(block.indptr[0]), int(block.indptr[-1])
    indices = block.indices[start:stop]
    indices = indices.astype(np.int32) if indices.dtype == np.uint16 else indices
    shape = (len(block.indptr) - 1, n_components)
    return csr_matrix((block.values[start:stop], indices, block.indptr - start), shape=shape)


def reconstruction_norms(store: CodeStore, components: NDArray[Any], n_threads: int = 1) -> NDArray[np.float64]:
    """Return the Euclidean norms of the reconstructions ``code @ components``, a block of rows at a time."""
    norms = np.empty(store.n_rows, np.float64)

    def work(start: int, stop: int) -> None:
        rows = block_to_csr(store.block(start, stop), store.n_components) @ components
        norms[start:stop] = np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64))

    run_blocks(work, store.n_rows, _NORM_BLOCK_ROWS, n_threads)
    return norms


def _blocks(store: CodeStore) -> Iterator[CsrBlock]:
    for start, stop in row_blocks(store.n_rows, BLOCK_ROWS):
        yield store.block(start, stop)


def norm_factors(norms: NDArray[Any], metric: str) -> NDArray[np.float64]:
    """Return what inner products with rows of these norms are multiplied by; 0 for rows that count as zero.

    One over the norm for cosine, over its square root for the geometric mean of cosine and inner product.
    """
    divisors = np.sqrt(norms, dtype=np.float64) if metric == "geometric" else norms
    return np.divide(1.0, divisors, out=np.zeros(len(norms)), where=norms > _TINY_NORM)


def make_chunk(
    store: CodeStore,
    *,
    metric: str,
    components: NDArray[Any] | None = None,
    n_threads: int = 1,
) -> Chunk:
    """Compute the row factors of a store.

    Parameters
    ----------
    store : CodeStore
        The codes.
    metric : {"cosine", "geometric", "dot"}
        ``"dot"`` needs no norms.
    components : ndarray of shape (n_components, n_features), default=None
        Decoder; given, norms are those of reconstructions, else of codes.
    n_threads : int, default=1
        Threads for the norms of reconstructions.

    Raises
    ------
    ValueError
        If a norm or a factor times it exceeds 1e30, where float32 scores would overflow, or a reconstruction overflows.
    """
    code_norms = [np.zeros(0)]
    longest = 0
    for block in _blocks(store):
        code_norms.append(row_norms(block.indptr, block.values))
        longest = max(longest, int(np.diff(block.indptr).max(initial=0)))
    lengths = np.concatenate(code_norms)
    if lengths.max(initial=0.0) > _LARGEST_VALUE:
        raise ValueError(f"codes must have norms below {_LARGEST_VALUE:g}, got {lengths.max():g}; rescale them")
    if metric == "dot":
        scale = np.ones(store.n_rows)
    else:
        norms = lengths if components is None else reconstruction_norms(store, components, n_threads)
        if not np.isfinite(norms).all():
            raise ValueError(f"reconstructions must have norms within {store.dtype}; rescale codes or components")
        scale = norm_factors(norms, metric)
    reach = float((lengths * scale).max(initial=0.0))
    if reach > _LARGEST_VALUE:
        raise ValueError(
            f"reconstructions must have norms above {1 / _LARGEST_VALUE:g} of those of their codes, got {1 / reach:g}; "
            "rescale the components"
        )
    return Chunk(store, scale, reach, longest)
