"""Product quantisation of residuals: k-means per subspace, encoding, decoding, scores by lookup.

Layout: `centroids` is float32 of shape (n_bytes, n_centroids <= 256, width); byte s of a code names the centroid of
dimensions ``[s * width, (s + 1) * width)`` of the residual, after ``residual @ rotation.T`` if there is a rotation (of
orthonormal columns, so inner products with a rotated query are those with the residual). Where n_bytes does not divide
the dimensions, the rotation leaves the last dimensions of some parts 0.

References
----------
H. Jegou et al., "Product quantization for nearest neighbor search", TPAMI 33, 2011; T. Ge et al., "Optimized product
quantization", CVPR 2013 (the parametric solution: principal axes, allotted by the product of their variances; here
these are relative to the error that is left, as in the rate-distortion theory of Gaussians).
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh
from scipy.linalg.blas import dsyrk

from skcompressae._core._compiling import njit
from skcompressae._core._gathers import FAST
from skcompressae._core._threads import effective_n_threads, row_blocks, run_blocks, single_threaded_blas

__all__ = ["add_residuals", "balanced_rotation", "decode_pq", "encode_pq", "learn_pq", "lookup_tables", "padding"]

Array: TypeAlias = NDArray[Any]
# Points that one thread takes at a time.
_CHUNK = 1024
# Rows that are float64 at a time.
_BLOCK_ROWS = 1024
# The smallest variance of an axis, as a share of the largest, that is not taken for rounding.
_LEAST_VARIANCE = 1e-7
# Between these, products of points and centroids of thousands of dimensions are normal numbers of float32.
_MODERATE = (2.0**-30, 2.0**30)


def _exponents(peaks: Any) -> Array:
    """Return the powers of two that magnitudes are divided by to be near 1; 0 where they are moderate."""
    exponents: Array = np.where((peaks < _MODERATE[0]) | (peaks > _MODERATE[1]), np.frexp(peaks)[1], 0)
    return exponents


@njit(nogil=True, fastmath=FAST)
def _write_nearest(points: Any, columns: Any, halves: Any, factors: Any, start: int, stop: int, labels: Any) -> None:
    """Write the centroids of largest ``c . x - factor |c|^2 / 2``, the first of equal ones; `columns` are theirs."""
    n_centroids = columns.shape[1]
    scores = np.empty(n_centroids, dtype=points.dtype)
    for i in range(start, stop):
        point = points[i]
        for c in range(n_centroids):
            scores[c] = -factors[i] * halves[c]
        n_quads = len(point) - len(point) % 4
        for j in range(0, n_quads, 4):  # scores pass through memory once for four of them
            for c in range(n_centroids):
                scores[c] += (
                    point[j] * columns[j, c]
                    + point[j + 1] * columns[j + 1, c]
                    + point[j + 2] * columns[j + 2, c]
                    + point[j + 3] * columns[j + 3, c]
                )
        for j in range(n_quads, len(point)):
            for c in range(n_centroids):
                scores[c] += point[j] * columns[j, c]
        largest = scores[0]
        for c in range(n_centroids):
            largest = max(largest, scores[c])
        first = np.int32(n_centroids - 1)
        for c in range(n_centroids):  # without a branch, so that it is in vector instructions
            first = min(first, np.int32(c) if scores[c] == largest else np.int32(n_centroids - 1))
        labels[i] = first


def _assign(points: NDArray[np.float32], centroids: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the nearest centroid of every point.

    Centroids, and each point, of extreme length are divided by powers of two, which keeps the order of distances: their
    products would overflow, or underflow to those of zeros.
    """
    largest = np.abs(centroids).max()
    exponent = _exponents(largest)
    scaled = np.ldexp(centroids, -exponent)
    factors = np.ones(len(points), dtype=np.float32)
    if exponent or np.abs(points).max(initial=0.0) > _MODERATE[1]:
        exponents = _exponents(np.maximum(np.abs(points).max(axis=1), largest))
        factors = np.ldexp(np.float32(1.0), exponent - exponents)
        points = np.ldexp(points, -exponents[:, None])
    shared = (
        np.ascontiguousarray(points),
        np.ascontiguousarray(scaled.T),
        0.5 * np.einsum("ij,ij->i", scaled, scaled),
        factors,
    )
    labels = np.empty(len(points), dtype=np.int64)
    run_blocks(
        lambda start, stop: _write_nearest(*shared, start, stop, labels), len(points), _CHUNK, effective_n_threads()
    )
    return labels


@njit(nogil=True)
def _add_points(points: Any, labels: Any, sums: Any, counts: Any) -> None:
    for i in range(points.shape[0]):
        counts[labels[i]] += 1
        for j in range(points.shape[1]):
            sums[labels[i], j] += points[i, j]


def _improve(
    points: NDArray[np.float32], centroids: NDArray[np.float32], rng: np.random.RandomState
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Assign points and return their labels and the means of those; an empty cluster restarts at a random point."""
    labels = _assign(points, centroids)
    sums, counts = np.zeros(centroids.shape), np.zeros(len(centroids), dtype=np.int64)
    _add_points(points, labels, sums, counts)
    means = (sums / np.maximum(counts, 1)[:, None]).astype(np.float32)
    empty = np.flatnonzero(counts == 0)
    means[empty] = points[rng.randint(len(points), size=empty.size)]
    return labels, means


def _width(d: int, n_bytes: int) -> int:
    """Return the dimensions of the widest of n_bytes parts of d."""
    return -(-d // n_bytes)


def padding(d: int, n_bytes: int) -> NDArray[np.float32]:
    """Return the rotation (n_bytes * width, d) that cuts d dimensions as they come, with 0 after the narrower parts."""
    width = _width(d, n_bytes)
    is_used = np.ones((n_bytes, width), dtype=bool)
    is_used[d - n_bytes * (width - 1) :, -1] = False
    rotation = np.zeros((n_bytes * width, d), dtype=np.float32)
    rotation[np.flatnonzero(is_used), np.arange(d)] = 1
    return rotation


def _part(rows: NDArray[np.float32], s: int, width: int) -> NDArray[np.float32]:
    """Return a copy of part s of rows (n, n_bytes * width)."""
    return np.ascontiguousarray(rows[:, s * width : (s + 1) * width])


def learn_pq(
    residuals: NDArray[np.float32], n_bytes: int, n_iter: int, rng: np.random.RandomState
) -> NDArray[np.float32]:
    """Learn centroids of shape (n_bytes, min(256, n), d / n_bytes) on residuals (n, d); n_bytes divides d."""
    n, d = residuals.shape
    n_centroids = min(256, n)
    centroids = np.empty((n_bytes, n_centroids, d // n_bytes), dtype=np.float32)
    for s in range(n_bytes):
        points = _part(residuals, s, d // n_bytes)
        centroids[s] = points[rng.permutation(n)[:n_centroids]]
        for _ in range(n_iter):
            _, centroids[s] = _improve(points, centroids[s], rng)
    return centroids


def _principal_axes(residuals: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Return the variances along the principal axes, times a power of two, the largest first, and the axes as rows."""
    # Fortran order, so that BLAS adds to it in place; the lower triangle, as the matrix is symmetric
    total = np.zeros((residuals.shape[1], residuals.shape[1]), order="F")
    for start, stop in row_blocks(len(residuals), _BLOCK_ROWS):
        block = residuals[start:stop].astype(np.float64)
        total = dsyrk(1.0, block.T, beta=1.0, c=total, lower=1, overwrite_c=1)
    np.ldexp(total, -np.frexp(total.diagonal().max())[1], out=total)
    moments = total.astype(np.float32)  # whose decomposition takes half the memory
    del total
    with single_threaded_blas():  # beside other work, threads that wait for one another took ten times as long
        variances, vectors = eigh(moments, lower=True, overwrite_a=True, check_finite=False, driver="evd")
    return variances[::-1].astype(np.float64), vectors.T[::-1]


def _balanced_parts(variances: NDArray[np.float64], n_bytes: int, width: int) -> NDArray[np.intp]:
    """Return the part of each axis, which are in order of falling variance, so that every part asks for as many bits.

    An axis asks for half the logarithm to base 2 of its variance over the error that all axes are left with, those of
    smaller variance for none, and all of them for 8 bits a part.
    """
    if variances[0] <= 0:  # rows of zeros
        variances = np.ones(len(variances))
    logarithms = np.log2(np.maximum(variances, _LEAST_VARIANCE * variances[0]))
    levels = (np.cumsum(logarithms) - 2 * 8 * n_bytes) / np.arange(1, len(variances) + 1)
    bits = np.maximum(logarithms - levels[np.flatnonzero(levels < logarithms)[-1]], 0) / 2
    parts = np.empty(len(variances), dtype=np.intp)
    asked, counts = np.zeros(n_bytes), np.zeros(n_bytes, dtype=np.intp)
    for axis, of_axis in enumerate(bits):
        room = np.flatnonzero(counts < width)
        part = room[np.lexsort((counts[room], asked[room]))[0]]
        parts[axis] = part
        asked[part] += of_axis
        counts[part] += 1
    return parts


def balanced_rotation(residuals: NDArray[np.float32], n_bytes: int) -> NDArray[np.float32]:
    """Return the rotation (n_bytes * width, d) to the principal axes, dealt out to parts that ask for as many bits."""
    variances, axes = _principal_axes(residuals)
    d = residuals.shape[1]
    width = _width(d, n_bytes)
    parts = _balanced_parts(variances, n_bytes, width)
    order = np.argsort(parts, kind="stable")
    starts = np.searchsorted(parts[order], parts[order])
    rotation = np.zeros((n_bytes * width, d), dtype=np.float32)
    rotation[parts[order] * width + np.arange(d) - starts] = axes[order]
    return rotation


def encode_pq(residuals: NDArray[np.float32], centroids: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return the nearest centroids, uint8 of shape (n, n_bytes), of (rotated) residuals (n, d)."""
    codes = np.empty((len(residuals), len(centroids)), dtype=np.uint8)
    for s, book in enumerate(centroids):
        codes[:, s] = _assign(_part(residuals, s, centroids.shape[2]), book)
    return codes


def decode_pq(codes: NDArray[np.uint8], centroids: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the (rotated) residuals, float32 of shape (n, d), that codes (n, n_bytes) stand for."""
    n_bytes, _, width = centroids.shape
    return centroids[np.arange(n_bytes), codes].reshape(len(codes), n_bytes * width)


def lookup_tables(query: NDArray[np.float32], centroids: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return inner products of a (rotated) query (d,) with all centroids, float32 of shape (n_bytes, 256).

    The tables have all 256 columns, zeros where there are fewer centroids, so that no byte reads out of bounds.
    """
    n_bytes, n_centroids, width = centroids.shape
    tables = np.zeros((n_bytes, 256), dtype=np.float32)
    tables[:, :n_centroids] = np.matmul(centroids, query.reshape(n_bytes, width, 1))[:, :, 0]
    return tables


@njit(nogil=True)
def add_residuals(codes: Any, begin: int, which: Any, tables: Any, unit: float, factors: Any, products: Any) -> Any:
    """Return the inner products r of residual codes with the query of `tables`, float32 of shape (n_bytes, 256).

    Of the rows ``begin + which``, whose `products` become ``(products + r * unit) * factor``.
    """
    n_bytes = codes.shape[1]
    n_quads = n_bytes - n_bytes % 4
    residuals = np.empty(which.shape[0], np.float32)
    for i in range(which.shape[0]):
        row = begin + which[i]
        # in four sums: one addition waits for the one before
        first, second, third, fourth = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
        for part in range(0, n_quads, 4):
            first += tables[part, codes[row, part]]
            second += tables[part + 1, codes[row, part + 1]]
            third += tables[part + 2, codes[row, part + 2]]
            fourth += tables[part + 3, codes[row, part + 3]]
        for part in range(n_quads, n_bytes):
            first += tables[part, codes[row, part]]
        residuals[i] = (first + second) + (third + fourth)
        products[i] = (products[i] + np.float64(residuals[i]) * unit) * np.float64(factors[row])
    return residuals
