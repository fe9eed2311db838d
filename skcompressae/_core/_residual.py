"""Product quantisation of residuals: k-means per subspace, encoding, decoding, scores by lookup.

Layout: `centroids` is float32 of shape (n_bytes, n_centroids <= 256, width); byte s of a code names the centroid of
dimensions ``[s * width, (s + 1) * width)`` of the residual, after ``residual @ rotation.T`` if there is a rotation (of
orthonormal columns, so inner products with a rotated query are those with the residual). Where n_bytes does not divide
the dimensions, the rotation leaves the last dimension of some parts 0.

References
----------
H. Jegou et al., "Product quantization for nearest neighbor search", TPAMI 33, 2011; T. Ge et al., "Optimized product
quantization", CVPR 2013 (the alternation that learns the rotation).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from skcompressae._core._compiling import njit
from skcompressae._core._gathers import FAST
from skcompressae._core._threads import effective_n_threads, row_blocks, run_blocks, single_threaded_blas

__all__ = ["decode_pq", "encode_pq", "learn_opq", "learn_pq", "lookup_tables", "padding", "score_pq"]

Array: TypeAlias = NDArray[Any]
# Points that one thread takes at a time.
_CHUNK = 1024
# Rows that are float64 at a time.
_BLOCK_ROWS = 1024
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
    residuals: NDArray[np.float32],
    n_bytes: int,
    n_iter: int,
    rng: np.random.RandomState,
    start: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Learn centroids of shape (n_bytes, min(256, n), d / n_bytes) on residuals (n, d); n_bytes divides d."""
    n, d = residuals.shape
    n_centroids = min(256, n)
    centroids = np.empty((n_bytes, n_centroids, d // n_bytes), dtype=np.float32)
    for s in range(n_bytes):
        points = _part(residuals, s, d // n_bytes)
        centroids[s] = points[rng.permutation(n)[:n_centroids]] if start is None else start[s]
        for _ in range(n_iter):
            _, centroids[s] = _improve(points, centroids[s], rng)
    return centroids


def _products(left: Callable[[int, int], NDArray[np.float32]], right: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return ``left.T @ right`` times a power of two, summed in float64; ``left(start, stop)`` gives some of its rows.

    Directions do not depend on that power, and a decomposition of float32 takes half the memory.
    """
    total = np.zeros((left(0, 1).shape[1], right.shape[1]))
    for start, stop in row_blocks(len(right), _BLOCK_ROWS):
        total += left(start, stop).T.astype(np.float64) @ right[start:stop]
    np.ldexp(total, -np.frexp(np.abs(total).max())[1], out=total)
    return total.astype(np.float32)


def learn_opq(
    residuals: NDArray[np.float32], n_bytes: int, n_iter: int, rng: np.random.RandomState
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Learn (rotation (n_bytes * width, d), centroids): k-means steps alternate with the best rotation for them."""
    # principal axes dealt out in turn balance the variance of the subspaces, a far better start than the axes as given
    products = _products(lambda start, stop: residuals[start:stop], residuals)
    with single_threaded_blas():  # beside other work, threads that wait for one another took ten times as long
        _, vectors = np.linalg.eigh(products)
    n, d = residuals.shape
    width = _width(d, n_bytes)
    rotation = np.zeros((n_bytes * width, d), dtype=np.float32)
    rotation[np.arange(d) % n_bytes * width + np.arange(d) // n_bytes] = vectors.T[::-1]
    rotated = residuals @ rotation.T
    centroids = learn_pq(rotated, n_bytes, 2, rng)
    codes = np.empty((n, n_bytes), dtype=np.uint8)
    for _ in range(n_iter):
        for s in range(n_bytes):
            codes[:, s], centroids[s] = _improve(_part(rotated, s, width), centroids[s], rng)
        products = _products(lambda start, stop: decode_pq(codes[start:stop], centroids), residuals)
        with single_threaded_blas():
            left, _, right = np.linalg.svd(products, full_matrices=False)
        rotation = np.ascontiguousarray(left @ right, dtype=np.float32)
        np.matmul(residuals, rotation.T, out=rotated)
    return rotation, learn_pq(rotated, n_bytes, 5, rng, start=centroids)


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
    tables[:, :n_centroids] = np.einsum("scw,sw->sc", centroids, query.reshape(n_bytes, width))
    return tables


@njit(nogil=True)
def score_pq(codes: Array, tables: Array, out: Array) -> None:
    """Add to ``out`` (n,) the inner product of the query of `tables` (n_bytes, 256) with every residual of `codes`."""
    for i in range(codes.shape[0]):
        total = np.float32(0.0)
        for s in range(codes.shape[1]):
            total += tables[s, codes[i, s]]
        out[i] += total
