"""Rows in and rows out: L2 normalisation, decoding of codes, and CSR assembly.

Invariant: a unit row is x / ||x|| computed without overflow or underflow whatever the scale of x; an all-zero row stays
all zero and has norm 0. Codes travel as pairs of (n_rows, k) arrays and become CSR once, without explicit zeros.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from skcompressae._core._arrays import FloatArray, IndexArray
from skcompressae._core._compiling import njit, readable
from skcompressae._core._gathers import add_combination, dot
from skcompressae._core._pursuit import RIDGE
from skcompressae._core._threads import run_blocks

__all__ = [
    "MIN_STRETCHED",
    "canonical_csr",
    "codes_to_csr",
    "decode_csr",
    "decode_norms",
    "divide_by_norms",
    "scale_code_rows",
    "scale_codes",
    "scales_apart",
    "unit_rows",
    "write_decoded_norms",
]

# Squared norm, of a unit row, that the latents beside the mean's must decode to before they are stretched alone: a
# hundred times what float32 leaves of it when the mean's share is taken away.
MIN_STRETCHED = 3e-5
# Rows up to which a SciPy matrix is made of an empty one, whose shape is known to be right.
_FEW_ROWS = 32


# Of numpy's error model, and without assuming numbers: a row that has NaN or infinity gets the norm NaN, to be refused
# before other kernels, which do assume them, choose by it.
@njit(nogil=True, fastmath={"reassoc", "contract", "nsz"}, error_model="numpy")
def divide_by_norms(x: Any, unit: Any, norms: Any) -> None:
    """Write unit rows and the norms that rows were divided by; an all-zero row stays all zero."""
    for i in range(x.shape[0]):
        largest = 0.0
        for j in range(x.shape[1]):
            magnitude = abs(np.float64(x[i, j]))
            largest = largest if magnitude <= largest else magnitude  # NaN goes on
        if largest == 0.0:
            norms[i] = 0.0
            for j in range(x.shape[1]):
                unit[i, j] = 0
            continue
        # Squares and reciprocals of float64 are safe well inside its range; the few rows outside go the longer way.
        is_moderate = 1e-140 < largest < 1e140
        divisor = 1.0 if is_moderate else largest
        squares = 0.0
        if is_moderate:
            for j in range(x.shape[1]):
                squares += np.float64(x[i, j]) * np.float64(x[i, j])
        else:
            for j in range(x.shape[1]):
                squares += (np.float64(x[i, j]) / divisor) ** 2
        root = np.sqrt(squares)
        norms[i] = divisor * root
        if is_moderate:
            inverse = 1.0 / root
            for j in range(x.shape[1]):
                unit[i, j] = np.float64(x[i, j]) * inverse
        else:
            for j in range(x.shape[1]):
                unit[i, j] = np.float64(x[i, j]) / divisor / root


def unit_rows(
    x: NDArray[np.generic], dtype: type[np.floating] = np.float32, out: FloatArray | None = None
) -> tuple[FloatArray, NDArray[np.float64]]:
    """Divide each row by its L2 norm.

    Parameters
    ----------
    x : array of shape (n_rows, n_features), any real dtype, finite
    dtype : float32 or float64, the dtype of the unit rows
    out : C-contiguous array of the shape of `x`, optional
        Where the unit rows go; `dtype` is then its own.

    Returns
    -------
    unit : C-contiguous array of shape (n_rows, n_features)
    norms : array of shape (n_rows,), float64

    Raises
    ------
    ValueError
        If a row is not finite after all.
    """
    if x.dtype not in (np.float32, np.float64):
        x = np.asarray(x, dtype=np.float32 if x.dtype.itemsize <= 2 else np.float64)
    block = readable(np.ascontiguousarray(x))
    unit = np.empty(block.shape, dtype=dtype) if out is None else out
    norms = np.empty(block.shape[0], dtype=np.float64)
    divide_by_norms(block, unit, norms)
    if np.isnan(norms).any():  # where scikit-learn was told to assume that there are none
        raise ValueError("Input X contains NaN or infinity.")
    return unit, norms


@njit(nogil=True)
def write_decoded_norms(decoder: Any, indices: Any, values: Any, start: Any, stop: Any, norms: Any) -> None:
    """Write the norms of the reconstructions of the rows ``start:stop``."""
    x_hat = np.empty(decoder.shape[1], dtype=decoder.dtype)
    scaled = np.empty(values.shape[1], dtype=values.dtype)
    for i in range(start, stop):
        peak = np.abs(values[i]).max()
        if peak == 0:
            norms[i] = 0
            continue
        for j in range(len(scaled)):  # squares of activations of an encoder of any scale may leave float32
            scaled[j] = values[i, j] / peak
        x_hat[:] = 0
        add_combination(x_hat, decoder, scaled, indices[i], indices.shape[1])
        norms[i] = np.float64(peak) * np.sqrt(dot(x_hat, x_hat))


def decode_norms(
    decoder: FloatArray, indices: IndexArray, values: FloatArray, *, n_threads: int
) -> NDArray[np.float64]:
    """Compute the L2 norm of each row's reconstruction ``values @ decoder[indices]``, shape (n_rows,)."""
    norms = np.empty(indices.shape[0], dtype=np.float64)
    run_blocks(
        lambda start, stop: write_decoded_norms(decoder, indices, values, start, stop, norms),
        indices.shape[0],
        64,
        n_threads,
    )
    return norms


@njit(nogil=True)
def _decode_csr(decoder: Any, indptr: Any, indices: Any, values: Any, start: int, stop: int, x_hat: Any) -> None:
    for i in range(start, stop):
        first, last = indptr[i], indptr[i + 1]
        x_hat[i] = 0
        add_combination(x_hat[i], decoder, values[first:last], indices[first:last], last - first)


def decode_csr(codes: Any, decoder: FloatArray, *, n_threads: int) -> FloatArray:
    """Compute ``codes @ decoder``.

    Parameters
    ----------
    codes : CSR matrix or array of shape (n_rows, n_components), float32 or float64
        Entries in any order; those of the same place are added.
    decoder : array of shape (n_components, n_features), of the dtype of `codes` or float32
    n_threads : int

    Returns
    -------
    x_hat : array of shape (n_rows, n_features), of the dtype of `codes`
    """
    x_hat = np.empty((codes.shape[0], decoder.shape[1]), dtype=codes.dtype)
    indptr, indices, values = map(readable, (codes.indptr, codes.indices, codes.data))
    run_blocks(
        lambda start, stop: _decode_csr(decoder, indptr, indices, values, start, stop, x_hat),
        len(x_hat),
        64,
        n_threads,
    )
    return x_hat


def scales_apart(scales_mean_apart: bool, coding: str, norm: str | None) -> bool:
    """Return whether scaling a code to a norm leaves latent 0 as it is and stretches the others.

    For models that do so at all: those with a mean latent, but for files of versions that scaled all alike. The fitted
    value of the mean latent, but for the ridge, is the row's own share of the mean, as the other latents are orthogonal
    to it. Scaled with the others it would say that rows that are fitted badly are nearer to the mean
    (docs/research_notes_sparse.md).
    """
    return scales_mean_apart and coding != "activations" and norm is not None


@njit(nogil=True)
def scale_code_rows(indices: Any, values: Any, decoded: Any, wanted: Any, keeps_mean: bool, out: Any) -> None:
    for i in range(values.shape[0]):
        factor = 1.0 / np.float64(decoded[i]) if decoded[i] > 0 else 1.0
        first = 0
        if keeps_mean and indices[i, 0] == 0:
            fitted = np.float64(values[i, 0])
            share = fitted * (1.0 + RIDGE)
            stretched = np.float64(decoded[i]) ** 2 - fitted**2
            if fitted != 0 and stretched > MIN_STRETCHED and share**2 < 1:
                factor = np.sqrt((1.0 - share**2) / stretched)
                out[i, 0] = share * wanted[i]
                first = 1
        for a in range(first, values.shape[1]):
            out[i, a] = values[i, a] * (factor * wanted[i])


def scale_codes(
    indices: IndexArray,
    values: FloatArray,
    decoded: FloatArray,
    wanted: NDArray[np.float64],
    out: FloatArray,
    *,
    keeps_mean: bool,
) -> None:
    """Scale codes of unit rows so that they decode to other norms.

    With `keeps_mean` the entry of latent 0 becomes the row's share c of the mean, its fitted value s without the ridge,
    and the others are stretched by what is missing to the norm: as they decode orthogonally to it, by
    ``sqrt((1 - c**2) / (decoded**2 - s**2))``.

    Parameters
    ----------
    indices, values : arrays of shape (n_rows, k), indices ascending in each row
    decoded : array of shape (n_rows,)
        Norms of what the values decode to. Where they are 0, values are multiplied by 1.
    wanted : array of shape (n_rows,), float64
        Norms; 0 makes a code of zeros.
    out : array of shape (n_rows, k)
        The scaled values.
    keeps_mean : bool
    """
    scale_code_rows(indices, values, decoded, wanted, keeps_mean, out)


@lru_cache(maxsize=16)
def _no_codes(n_rows: int, n_components: int, csr_type: Any) -> Any:
    return csr_type((n_rows, n_components))


def codes_to_csr(
    indices: NDArray[np.integer], values: FloatArray, n_components: int, csr_type: Any = sp.csr_array
) -> Any:
    """Assemble canonical CSR from rows of k ascending indices; entries whose value is zero are not stored.

    Parameters
    ----------
    indices, values : arrays of shape (n_rows, k)
    n_components : int
    csr_type : csr_array or csr_matrix
        Made at once: one made of the other would be checked a second time.

    Returns
    -------
    codes : `csr_type` of shape (n_rows, n_components), dtype of `values`, int32 indices where they suffice
    """
    n_rows, k = values.shape
    index_dtype = np.int32 if max(n_rows * k, n_components) <= np.iinfo(np.int32).max else np.int64
    is_stored = values != 0
    if is_stored.all():
        indptr = np.arange(0, n_rows * k + 1, k, dtype=index_dtype)
        flat_indices, flat_values = indices.reshape(-1), values.reshape(-1)
    else:
        indptr = np.zeros(n_rows + 1, dtype=index_dtype)
        np.cumsum(is_stored.sum(axis=1), out=indptr[1:])
        flat_indices, flat_values = indices[is_stored], values[is_stored]
    flat_indices = flat_indices.astype(index_dtype, copy=False)
    if n_rows <= _FEW_ROWS:  # SciPy's checks would take a tenth of the time that encoding a row does
        codes = object.__new__(csr_type)
        codes.__dict__.update(_no_codes(n_rows, n_components, csr_type).__dict__)
        codes.data, codes.indices, codes.indptr = flat_values, flat_indices, indptr
    else:
        codes = csr_type((flat_values, flat_indices, indptr), shape=(n_rows, n_components))
    codes.has_sorted_indices = True
    codes.has_canonical_format = True
    return codes


def canonical_csr(codes: Any, name: str = "X") -> Any:
    """Return `codes` as CSR with sorted, unique columns; the matrix of the caller is not changed.

    Raises
    ------
    ValueError
        If columns or row starts lie outside the matrix: kernels and SciPy alike would read and write beyond arrays.
    """
    if not sp.issparse(codes):
        return sp.csr_matrix(codes)
    # a matrix of its own over the same arrays: SciPy's cached flags of the caller's matrix stay as they are
    own: Any = codes
    own = sp.csr_matrix((own.data, own.indices, own.indptr), shape=own.shape, copy=False)
    if (own.indptr[1:] < own.indptr[:-1]).any():
        raise ValueError(f"{name} must be a valid CSR matrix, got an indptr that decreases")
    if own.indices.size and not (own.indices.min() >= 0 and own.indices.max() < own.shape[1]):
        raise ValueError(
            f"{name} must be a valid CSR matrix, got column indices from {own.indices.min()} to {own.indices.max()} "
            f"for {own.shape[1]} components"
        )
    if not own.has_canonical_format:
        own = own.copy()
        own.sum_duplicates()
    return own
