"""A decoder fitted anew to codes that stay as they are: one pass of the method of optimal directions, with a ridge.

The normal equations ``(S^T S + ridge I) (D' - D) = S^T (X - S D)`` (Engan, Aase and Husoy 1999, for D' alone) are
solved by conjugate gradients with the diagonal as preconditioner, all columns at once, each with step sizes of its own.
They need products with S only, so no matrix of all pairs of latents is built.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from skcompressae._core._arrays import FloatArray, IndexArray, aligned_empty
from skcompressae._core._rows import codes_to_csr, decode_csr
from skcompressae._core._sparse_step import BATCH_ROWS, add_tile_sums, group_by_latent
from skcompressae._core._threads import row_blocks, run_blocks
from skcompressae._core._tiles import TILE_COLUMNS, fill_tile

__all__ = ["refitted_decoder"]

# Added to the sums of squared values: as much as a few rows that choose a latent say for it to stay where it is.
_RIDGE = 0.3
# Columns that are solved at once: their working memory is small beside the decoder.
_BLOCK_COLUMNS = 128
# Steps of the solver. More change next to nothing of the recall (docs/research_notes_sparse.md).
_N_STEPS = 8


def refitted_decoder(
    decoder: FloatArray,
    rows: Any,
    indices: IndexArray,
    values: FloatArray,
    *,
    keeps_mean: bool,
    n_threads: int,
) -> FloatArray:
    """Return the decoder that reconstructs rows best from given codes, its rows scaled to norm 1.

    Parameters
    ----------
    decoder : float32 array of shape (n_components, n_features), unit-norm rows
    rows : callable
        ``rows(start, stop)`` returns unit rows, float32 of shape (stop - start, n_features), the caller's to change.
    indices, values : arrays of shape (n_rows, k), indices ascending in each row
        The codes of all rows; values float32.
    keeps_mean : bool
        Whether latent 0 stays as it is and the others orthogonal to it.
    n_threads : int

    Returns
    -------
    refitted : float32 array of shape (n_components, n_features)
    """
    codes = _Codes(indices, values, len(decoder), n_threads, leaves_out_mean=keeps_mean)
    mean = decoder[0]
    refitted = aligned_empty(decoder.shape, decoder.dtype)
    refitted.fill(0)
    for number, (start, stop) in enumerate(codes.blocks):
        x = rows(start, stop)
        if keeps_mean:
            x -= (x @ mean)[:, None] * mean
        x -= codes.decode(number, decoder)
        codes.add_transposed(number, x, refitted)
    diagonal = codes.squares()[:, None] + np.float32(_RIDGE)
    for start, stop in row_blocks(decoder.shape[1], _BLOCK_COLUMNS):
        refitted[:, start:stop] = _solve(codes, refitted[:, start:stop].copy(), diagonal)
    for start, stop in row_blocks(len(decoder), BATCH_ROWS):
        refitted[start:stop] += decoder[start:stop]
        if keeps_mean:
            refitted[start:stop] -= (refitted[start:stop] @ mean)[:, None] * mean
        norms = np.linalg.norm(refitted[start:stop], axis=1, keepdims=True)
        is_usable = norms > np.finfo(np.float32).eps
        np.divide(refitted[start:stop], norms, out=refitted[start:stop], where=is_usable)
        np.copyto(refitted[start:stop], decoder[start:stop], where=~is_usable)
    if keeps_mean:
        refitted[0] = mean
    return refitted


class _Codes:
    """The products with a matrix of codes, a block of rows at a time."""

    def __init__(
        self, indices: IndexArray, values: FloatArray, n_components: int, n_threads: int, *, leaves_out_mean: bool
    ) -> None:
        self._n_threads = n_threads
        self._n_components = n_components
        self.blocks = list(row_blocks(len(indices), BATCH_ROWS))
        self._codes: list[Any] = []
        self._by_latent: list[tuple[IndexArray, IndexArray, FloatArray]] = []
        for start, stop in self.blocks:
            kept = values[start:stop]
            if leaves_out_mean:
                kept = np.where(indices[start:stop] == 0, np.float32(0), kept)
            self._codes.append(codes_to_csr(indices[start:stop], kept, n_components))
            starts, positions = group_by_latent(indices[start:stop], n_components)
            picks, coefficients = np.empty(kept.size, dtype=np.int32), np.empty(kept.size, dtype=np.float32)
            picks[positions] = np.arange(stop - start, dtype=np.int32)[:, None]
            coefficients[positions] = kept
            self._by_latent.append((starts, picks, coefficients))

    def squares(self) -> FloatArray:
        """Return the sum of each latent's squared values."""
        squares = np.zeros(self._n_components)
        for codes in self._codes:
            weights = codes.data.astype(np.float64) ** 2
            squares += np.bincount(codes.indices, weights=weights, minlength=self._n_components)
        return squares.astype(np.float32)

    def decode(self, number: int, decoder: FloatArray) -> FloatArray:
        """Return ``S D`` of the rows of a block."""
        return decode_csr(self._codes[number], decoder, n_threads=self._n_threads)

    def add_transposed(self, number: int, x: FloatArray, total: FloatArray) -> None:
        """Add ``S^T x`` of the rows of a block to `total`."""
        starts, picks, coefficients = self._by_latent[number]

        def add_tiles(first: int, last: int) -> None:
            tile = np.empty((len(x), TILE_COLUMNS), dtype=np.float32)
            for column in range(first, last):
                fill_tile(x, column, tile)
                add_tile_sums(tile, picks, coefficients, starts, column, total)

        run_blocks(add_tiles, -(-x.shape[1] // TILE_COLUMNS), 1, self._n_threads)

    def normal_product(self, matrix: FloatArray) -> FloatArray:
        """Return ``S^T S`` times a matrix of n_components rows."""
        total = np.zeros_like(matrix)
        for number in range(len(self.blocks)):
            self.add_transposed(number, self.decode(number, matrix), total)
        return total


def _column_dots(a: FloatArray, b: FloatArray) -> NDArray[np.float64]:
    dots: NDArray[np.float64] = np.einsum("ij,ij->j", a, b, dtype=np.float64)
    return dots


def _quotients(a: NDArray[np.float64], b: NDArray[np.float64]) -> FloatArray:
    """Return a / b, 0 where b is not positive: those columns are solved."""
    return np.divide(a, b, out=np.zeros_like(a), where=b > 0).astype(np.float32)


def _solve(codes: _Codes, left: FloatArray, diagonal: FloatArray) -> FloatArray:
    """Solve ``(S^T S + ridge I) y = left`` for every column, by a few steps; overwrites `left`."""
    solution = np.zeros_like(left)
    scaled = left / diagonal
    direction = scaled.copy()
    size = _column_dots(left, scaled)
    for _ in range(_N_STEPS):
        product = codes.normal_product(direction)
        product += np.float32(_RIDGE) * direction
        step = _quotients(size, _column_dots(direction, product))
        solution += step * direction
        left -= step * product
        np.divide(left, diagonal, out=scaled)
        before, size = size, _column_dots(left, scaled)
        direction *= _quotients(size, before)
        direction += scaled
    return solution
