"""The quantiser of what a sparse code leaves of its embedding."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from skcompressae._core._residual import (
    balanced_rotation,
    decode_pq,
    encode_pq,
    learn_pq,
    lookup_tables,
    padding,
)
from skcompressae.packed._quantizer import is_int

__all__ = ["ResidualQuantizer", "check_residual_codes", "random_state_from", "training_rows"]

_MAX_TRAINING_ROWS = 32768
# Numbers in the rows that a quantiser is learned on (64 MB, of which learning holds two), unless 32 rows a centroid
# have more.
_MAX_TRAINING_VALUES = 2**24
_MIN_TRAINING_ROWS = 8192
# Entries of a rotated row, and the sums that they come of, are at most as long as the row; rotations are orthogonal to
# a thousandth.
_LARGEST_NORM = 0.99 * float(np.finfo(np.float32).max)


def _check_lengths(residuals: NDArray[np.float32]) -> None:
    """Refuse residuals that are not finite, or that a rotation could take out of float32."""
    if not np.isfinite(residuals).all():
        raise ValueError("residuals must be finite, got NaN or infinity")
    norm = np.sqrt(np.einsum("...j,...j->...", residuals, residuals, dtype=np.float64).max(initial=0.0))
    if norm > _LARGEST_NORM:
        raise ValueError(f"residuals must have norms of at most {_LARGEST_NORM:.3g}, got {norm:.3g}; rescale them")


def random_state_from(random_state: Any) -> np.random.RandomState:
    """Return what scikit-learn's `check_random_state` would, which packed codes do without."""
    if isinstance(random_state, np.random.RandomState):
        return random_state
    if random_state is None or (is_int(random_state) and 0 <= random_state < 2**32):
        return np.random.RandomState(random_state)
    raise ValueError(f"random_state must be an int from 0 to 2**32 - 1, a RandomState or None, got {random_state!r}")


def training_rows(n_rows: int, n_features: int, random_state: int | np.random.RandomState | None) -> NDArray[np.intp]:
    """Return which of `n_rows` a quantiser is learned on, ascending: all, or as many as it takes drawn at random."""
    n_most = min(_MAX_TRAINING_ROWS, max(_MIN_TRAINING_ROWS, _MAX_TRAINING_VALUES // n_features))
    if n_rows <= n_most:
        return np.arange(n_rows)
    return np.sort(random_state_from(random_state).permutation(n_rows)[:n_most])


class ResidualQuantizer:
    """Product quantiser of the residuals ``x - x_hat``, with an optional rotation.

    Residuals are cut into `n_bytes` parts, and each part becomes the number of its nearest centroid. The rotation
    spreads what is left over the parts.

    Parameters
    ----------
    centroids : float32 array of shape (n_bytes, n_centroids, width)
        At most 256 centroids a byte.
    rotation : float32 array of shape (n_bytes * width, d), default=None
        Of orthonormal columns, so that it keeps lengths; applied as ``residual @ rotation.T``. It may have more rows
        than columns, where `n_bytes` does not divide d. None where it does and parts are cut from residuals as they
        are.

    See Also
    --------
    skcompressae.PackedCodes.with_residual_of : Fits one and encodes.
    skcompressae.packed.ValueQuantizer : The quantiser of the values themselves.

    Examples
    --------
    >>> import numpy as np
    >>> from skcompressae.packed import ResidualQuantizer
    >>> residuals = np.random.RandomState(0).standard_normal((300, 8))
    >>> quantizer = ResidualQuantizer.fit(residuals, n_bytes=4, n_iter=5)
    >>> quantizer
    ResidualQuantizer(n_bytes=4, n_features=8, rotation=True)
    >>> quantizer.encode(residuals).shape
    (300, 4)
    """

    __slots__ = ("_centroids", "_rotation")
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, centroids: NDArray[Any], rotation: NDArray[Any] | None = None) -> None:
        centroids = np.array(centroids, dtype=np.float32, order="C")
        if centroids.ndim != 3 or not 1 <= centroids.shape[1] <= 256 or 0 in centroids.shape:
            raise ValueError(f"centroids must have shape (n_bytes, 1 to 256, d / n_bytes), got {centroids.shape}")
        if not np.isfinite(centroids).all():
            raise ValueError("centroids contain NaN or infinity")
        n_rows = centroids.shape[0] * centroids.shape[2]
        if rotation is not None:
            rotation = np.array(rotation, dtype=np.float32, order="C")
            if rotation.ndim != 2 or rotation.shape[0] != n_rows or not 1 <= rotation.shape[1] <= n_rows:
                raise ValueError(f"rotation must have shape ({n_rows}, 1 to {n_rows}), got {rotation.shape}")
            errors = rotation.T @ rotation if np.isfinite(rotation).all() else np.array([[np.inf]])
            errors.flat[:: len(errors) + 1] -= 1
            if np.abs(errors, out=errors).max() > 1e-3:
                raise ValueError("rotation must have orthonormal columns")
            del errors
            rotation.setflags(write=False)
        centroids.setflags(write=False)
        self._centroids: NDArray[np.float32] = centroids
        self._rotation: NDArray[np.float32] | None = rotation

    @classmethod
    def fit(
        cls,
        residuals: NDArray[Any],
        n_bytes: int,
        *,
        method: Literal["pq", "opq"] = "opq",
        n_iter: int = 20,
        random_state: int | np.random.RandomState | None = 0,
    ) -> ResidualQuantizer:
        """Learn centroids, and a rotation, on residuals.

        By k-means in each part; "opq" turns residuals to their principal axes first and gives every part a fair share
        of them, which keeps more at the same bytes.

        Parameters
        ----------
        residuals : float array of shape (n, d)
            Finite; a sample of 32,768 rows is used if there are more, of wide ones fewer (2**24 numbers, but at least
            8,192 rows).
        n_bytes : int
            Bytes of a code, at most d. Parts differ in width where it does not divide d.
        method : {"pq", "opq"}, default="opq"
            With "opq" a rotation is learned too: the parametric solution of optimized product quantization (T. Ge et
            al., CVPR 2013).
        n_iter : int, default=20
            Steps of k-means.
        random_state : int, RandomState instance or None, default=0
            Of the sample and of the first centroids; None draws others every time.

        Returns
        -------
        ResidualQuantizer
            For residuals like these.

        Raises
        ------
        ValueError
            If residuals are not finite or longer than float32 can hold, or a parameter is out of its range.

        See Also
        --------
        encode : Uses it.
        skcompressae.PackedCodes.with_residual_of : Fits one to packed codes.

        Examples
        --------
        >>> import numpy as np
        >>> from skcompressae.packed import ResidualQuantizer
        >>> residuals = np.random.RandomState(0).standard_normal((300, 8))
        >>> quantizer = ResidualQuantizer.fit(residuals, n_bytes=4, n_iter=5)
        >>> decoded = quantizer.decode(quantizer.encode(residuals))
        >>> bool(np.linalg.norm(residuals - decoded) < np.linalg.norm(residuals))
        True
        """
        data = np.asarray(residuals, dtype=np.float32)
        if data.ndim != 2 or 0 in data.shape:
            raise ValueError(f"residuals must be a nonempty 2-dimensional array, got shape {data.shape}")
        _check_lengths(data)
        if not is_int(n_bytes) or not 1 <= n_bytes <= data.shape[1]:
            raise ValueError(f"n_bytes must be an int in [1, {data.shape[1]}], the dimensions; got {n_bytes!r}")
        if not is_int(n_iter) or n_iter < 0:
            raise ValueError(f"n_iter must be an int of at least 0, got {n_iter!r}")
        if method not in ("pq", "opq"):
            raise ValueError(f"method must be 'pq' or 'opq', got {method!r}")
        rng = random_state_from(random_state)
        chosen = training_rows(len(data), data.shape[1], rng)
        data = data[chosen] if len(chosen) < len(data) else data
        rotation = None
        if method == "opq":
            rotation = balanced_rotation(data, n_bytes)
        elif data.shape[1] % n_bytes:
            rotation = padding(data.shape[1], n_bytes)
        return cls(learn_pq(data if rotation is None else data @ rotation.T, n_bytes, n_iter, rng), rotation)

    @property
    def centroids(self) -> NDArray[np.float32]:
        """Centroids, float32 of shape (n_bytes, n_centroids, width).

        Part by part, in the rotated space; `width` is d / n_bytes, rounded up. They are read-only.

        See Also
        --------
        rotation : What turns residuals into that space.
        nbytes : What both take.

        Examples
        --------
        >>> import numpy as np
        >>> from skcompressae.packed import ResidualQuantizer
        >>> residuals = np.random.RandomState(0).standard_normal((300, 8))
        >>> quantizer = ResidualQuantizer.fit(residuals, n_bytes=4, n_iter=5)
        >>> quantizer.centroids.shape
        (4, 256, 2)
        """
        return self._centroids

    @property
    def rotation(self) -> NDArray[np.float32] | None:
        """Rotation, float32 of shape (n_bytes * width, d), or None.

        Applied before the parts are cut, as ``residual @ rotation.T``; of orthonormal columns and read-only. With
        ``method="pq"`` None, or, where `n_bytes` does not divide d, what puts zeros at the end of the narrower parts.

        See Also
        --------
        centroids : What comes after it.
        fit : Learns it.

        Examples
        --------
        >>> import numpy as np
        >>> from skcompressae.packed import ResidualQuantizer
        >>> residuals = np.random.RandomState(0).standard_normal((300, 8))
        >>> quantizer = ResidualQuantizer.fit(residuals, n_bytes=4, n_iter=5)
        >>> bool(np.allclose(quantizer.rotation @ quantizer.rotation.T, np.eye(8), atol=1e-4))
        True
        """
        return self._rotation

    @property
    def n_bytes(self) -> int:
        """Bytes of a residual code.

        The number of parts: one byte names one of up to 256 centroids.

        See Also
        --------
        n_features : Width of the residuals.
        skcompressae.PackedCodes.bytes_per_row : What a row takes with them.

        Examples
        --------
        >>> import numpy as np
        >>> from skcompressae.packed import ResidualQuantizer
        >>> residuals = np.random.RandomState(0).standard_normal((300, 8))
        >>> quantizer = ResidualQuantizer.fit(residuals, n_bytes=4, n_iter=5)
        >>> quantizer.n_bytes
        4
        """
        return int(self._centroids.shape[0])

    @property
    def n_features(self) -> int:
        """Dimensions d of the residuals.

        That of the embeddings.

        See Also
        --------
        n_bytes : Parts that it is cut into.
        centroids : Centroids of the parts.

        Examples
        --------
        >>> import numpy as np
        >>> from skcompressae.packed import ResidualQuantizer
        >>> residuals = np.random.RandomState(0).standard_normal((300, 8))
        >>> quantizer = ResidualQuantizer.fit(residuals, n_bytes=4, n_iter=5)
        >>> quantizer.n_features
        8
        """
        if self._rotation is not None:
            return int(self._rotation.shape[1])
        return int(self._centroids.shape[0] * self._centroids.shape[2])

    @property
    def nbytes(self) -> int:
        """Bytes of the codebooks.

        Centroids and rotation. They do not grow with the rows, but for few rows they are the larger part.

        See Also
        --------
        n_bytes : Bytes of one code.
        skcompressae.PackedCodes.nbytes : Counts them.

        Examples
        --------
        >>> import numpy as np
        >>> from skcompressae.packed import ResidualQuantizer
        >>> residuals = np.random.RandomState(0).standard_normal((300, 8))
        >>> quantizer = ResidualQuantizer.fit(residuals, n_bytes=4, n_iter=5)
        >>> quantizer.nbytes == quantizer.centroids.nbytes + quantizer.rotation.nbytes
        True
        """
        return self._centroids.nbytes + (0 if self._rotation is None else self._rotation.nbytes)

    def _rotated(self, data: NDArray[np.float32]) -> NDArray[np.float32]:
        return data if self._rotation is None else data @ self._rotation.T

    def encode(self, residuals: NDArray[Any]) -> NDArray[np.uint8]:
        """Encode residuals.

        Each part becomes the number of its nearest centroid, after the rotation.

        Parameters
        ----------
        residuals : float array of shape (n, d)
            What the sparse codes leave of the rows.

        Returns
        -------
        uint8 array of shape (n, n_bytes)
            The nearest centroid of each part.

        Raises
        ------
        ValueError
            If residuals have another width, are not finite, or longer than float32 can hold.

        See Also
        --------
        decode : The way back.
        fit : Learns the centroids.

        Examples
        --------
        >>> import numpy as np
        >>> from skcompressae.packed import ResidualQuantizer
        >>> residuals = np.random.RandomState(0).standard_normal((300, 8))
        >>> quantizer = ResidualQuantizer.fit(residuals, n_bytes=4, n_iter=5)
        >>> codes = quantizer.encode(residuals)
        >>> codes.shape, codes.dtype
        ((300, 4), dtype('uint8'))
        """
        data = np.asarray(residuals, dtype=np.float32)
        if data.ndim not in (1, 2) or data.shape[-1] != self.n_features:
            raise ValueError(f"residuals must have {self.n_features} dimensions, got shape {data.shape}")
        _check_lengths(data)
        return encode_pq(self._rotated(np.atleast_2d(data)), self._centroids)

    def decode(self, codes: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Decode residual codes.

        The centroids that the codes name, put together and rotated back.

        Parameters
        ----------
        codes : uint8 array of shape (n, n_bytes)
            As `encode` returns them.

        Returns
        -------
        float32 array of shape (n, d)
            Their centroids, rotated back.

        Raises
        ------
        ValueError
            If the codes have another shape or dtype, or name centroids that are not there.

        See Also
        --------
        encode : The way here.
        tables : Scores without decoding.

        Examples
        --------
        >>> import numpy as np
        >>> from skcompressae.packed import ResidualQuantizer
        >>> residuals = np.random.RandomState(0).standard_normal((300, 8))
        >>> quantizer = ResidualQuantizer.fit(residuals, n_bytes=4, n_iter=5)
        >>> quantizer.decode(quantizer.encode(residuals)).shape
        (300, 8)
        """
        decoded = decode_pq(check_residual_codes(codes, self, "codes"), self._centroids)
        return decoded if self._rotation is None else decoded @ self._rotation

    def tables(self, query: NDArray[Any]) -> NDArray[np.float32]:
        """Return the inner products of a query with all centroids.

        A code's inner product with the query is the sum of one entry for each of its bytes, so that codes are scored
        without being decoded.

        Parameters
        ----------
        query : float array of shape (d,)
            A dense query.

        Returns
        -------
        float32 array of shape (n_bytes, 256)
            One row a byte of a code.

        Raises
        ------
        ValueError
            If the query is no vector of the residuals' width, or it or its products are not finite in float32.

        See Also
        --------
        decode : What it saves.
        skcompressae.CodeNearestNeighbors : Its `rerank` scores so.

        Examples
        --------
        >>> import numpy as np
        >>> from skcompressae.packed import ResidualQuantizer
        >>> residuals = np.random.RandomState(0).standard_normal((300, 8))
        >>> quantizer = ResidualQuantizer.fit(residuals, n_bytes=4, n_iter=5)
        >>> query = residuals[0]
        >>> codes = quantizer.encode(residuals[:1])
        >>> score = quantizer.tables(query)[np.arange(4), codes[0]].sum()
        >>> bool(np.isclose(score, quantizer.decode(codes)[0] @ query, atol=1e-4))
        True
        """
        vector = np.asarray(query, dtype=np.float32)
        if vector.shape != (self.n_features,):
            raise ValueError(f"query must be a vector of {self.n_features} dimensions, got shape {vector.shape}")
        with np.errstate(over="ignore", invalid="ignore"):
            tables = lookup_tables(self._rotated(vector), self._centroids)
        if not np.isfinite(tables).all():
            raise ValueError("query must be finite, as must be its products with the centroids in float32; rescale it")
        return tables

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ResidualQuantizer):
            return NotImplemented
        same_rotation = (
            np.array_equal(self._rotation, other._rotation)
            if self._rotation is not None and other._rotation is not None
            else self._rotation is other._rotation
        )
        return same_rotation and np.array_equal(self._centroids, other._centroids)

    def __repr__(self) -> str:
        return (
            f"ResidualQuantizer(n_bytes={self.n_bytes}, n_features={self.n_features}, "
            f"rotation={self._rotation is not None})"
        )

    def __getstate__(self) -> tuple[Any, Any]:
        return self._centroids, self._rotation

    def __setstate__(self, state: tuple[Any, Any]) -> None:
        self.__init__(*state)  # type: ignore[misc]


def check_residual_codes(codes: Any, quantizer: ResidualQuantizer, name: str) -> NDArray[np.uint8]:
    """Return codes as an array if they are such as `quantizer` makes."""
    codes = np.asarray(codes)
    if codes.dtype != np.uint8 or codes.ndim != 2 or codes.shape[1] != quantizer.n_bytes:
        raise ValueError(f"{name} must be uint8 of shape (n, {quantizer.n_bytes}), got {codes.dtype} {codes.shape}")
    n_centroids = quantizer.centroids.shape[1]
    if codes.size and codes.max() >= n_centroids:
        raise ValueError(f"{name} must be below the {n_centroids} centroids, got {codes.max()}")
    return codes
