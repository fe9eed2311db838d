"""Product quantisation of residuals: k-means per subspace, encoding, decoding, scores by lookup.

Layout: `centroids` is float32 of shape (n_bytes, n_centroids <= 256, d / n_bytes); byte s of a code names the centroid
of dimensions ``[s * d_sub, (s + 1) * d_sub)`` of the residual, after ``residual @ rotation.T`` if there is a rotation
(orthogonal, so inner products with a rotated query are those with the residual).

References
----------
H. Jegou et al., "Product quantization for nearest neighbor search", TPAMI 33, 2011; T. Ge et al., "Optimized product
quantization", CVPR 2013 (the alternation that learns the rotation).
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from skcompressae._core._compiling import njit

__all__ = ["decode_pq", "encode_pq", "learn_opq", "learn_pq", "lookup_tables", "score_pq"]

Array: TypeAlias = NDArray[Any]
_CHUNK = 8192
# Between these, products of points and centroids of thousands of dimensions are normal numbers of float32.
_MODERATE = (2.0**-30, 2.0**30)


def _exponents(peaks: Any) -> Array:
    """Return the powers of two that magnitudes are divided by to be near 1; 0 where they are moderate."""
    exponents: Array = np.where((peaks < _MODERATE[0]) | (peaks > _MODERATE[1]), np.frexp(peaks)[1], 0)
    return exponents


def _assign(points: NDArray[np.float32], centroids: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the nearest centroid of every point, in chunks so that distances stay small.

    Centroids, and each point, of extreme length are divided by powers of two, which keeps the order of distances: their
    products would overflow, or underflow to those of zeros.
    """
    largest = np.abs(centroids).max()
    exponent = _exponents(largest)
    scaled = np.ldexp(centroids, -exponent)
    half = 0.5 * np.einsum("ij,ij->i", scaled, scaled)
    labels = np.empty(len(points), dtype=np.int64)
    for start in range(0, len(points), _CHUNK):
        chunk = points[start : start + _CHUNK]
        exponents = _exponents(np.maximum(np.abs(chunk).max(axis=1), largest))
        if exponent or exponents.any():
            factors = np.ldexp(np.float32(1.0), exponent - exponents)
            affinity = np.ldexp(chunk, -exponents[:, None]) @ scaled.T - factors[:, None] * half
        else:
            affinity = chunk @ scaled.T - half
        labels[start : start + _CHUNK] = affinity.argmax(axis=1)
    return labels


def _refine(
    points: NDArray[np.float32], centroids: NDArray[np.float32], n_iter: int, rng: np.random.RandomState
) -> NDArray[np.float32]:
    """Run Lloyd iterations; an empty cluster restarts at a random point."""
    for _ in range(n_iter):
        labels = _assign(points, centroids)
        counts = np.bincount(labels, minlength=len(centroids))
        sums = np.stack(
            [np.bincount(labels, points[:, c], minlength=len(centroids)) for c in range(points.shape[1])],
            axis=1,
        )
        centroids = (sums / np.maximum(counts, 1)[:, None]).astype(np.float32)
        empty = np.flatnonzero(counts == 0)
        centroids[empty] = points[rng.randint(len(points), size=empty.size)]
    return centroids


def learn_pq(
    residuals: NDArray[np.float32],
    n_bytes: int,
    n_iter: int,
    rng: np.random.RandomState,
    start: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Learn centroids of shape (n_bytes, min(256, n), d / n_bytes) on residuals (n, d)."""
    n, d = residuals.shape
    width = d // n_bytes
    n_centroids = min(256, n)
    centroids = np.empty((n_bytes, n_centroids, width), dtype=np.float32)
    for s in range(n_bytes):
        points = np.ascontiguousarray(residuals[:, s * width : (s + 1) * width])
        first = points[rng.permutation(n)[:n_centroids]] if start is None else start[s]
        centroids[s] = _refine(points, first, n_iter, rng)
    return centroids


def learn_opq(
    residuals: NDArray[np.float32], n_bytes: int, n_iter: int, rng: np.random.RandomState
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Learn (rotation (d, d), centroids): k-means steps alternate with the best rotation for their codes."""
    d = residuals.shape[1]
    # principal axes dealt out in turn balance the variance of the subspaces, a far better start than the axes as given
    _, vectors = np.linalg.eigh(residuals.T.astype(np.float64) @ residuals)
    order = np.arange(d)[::-1].reshape(d // n_bytes, n_bytes).T.reshape(-1)
    rotation = np.ascontiguousarray(vectors.T[order], dtype=np.float32)
    centroids = learn_pq(residuals @ rotation.T, n_bytes, 2, rng)
    for _ in range(n_iter):
        rotated = residuals @ rotation.T
        centroids = learn_pq(rotated, n_bytes, 1, rng, start=centroids)
        decoded = decode_pq(encode_pq(rotated, centroids), centroids)
        left, _, right = np.linalg.svd(decoded.T.astype(np.float64) @ residuals)
        rotation = np.ascontiguousarray(left @ right, dtype=np.float32)
    return rotation, learn_pq(residuals @ rotation.T, n_bytes, 5, rng, start=centroids)


def encode_pq(residuals: NDArray[np.float32], centroids: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return the nearest centroids, uint8 of shape (n, n_bytes), of (rotated) residuals (n, d)."""
    n_bytes, _, width = centroids.shape
    codes = np.empty((len(residuals), n_bytes), dtype=np.uint8)
    for s in range(n_bytes):
        codes[:, s] = _assign(np.ascontiguousarray(residuals[:, s * width : (s + 1) * width]), centroids[s])
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
