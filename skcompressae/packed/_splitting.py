"""How many of a row's bytes go to nonzeros, and how many to what they leave."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from skcompressae.packed._quantizer import Kind, ValueQuantizer, is_int
from skcompressae.packed._residual import ResidualQuantizer, random_state_from
from skcompressae.packed._residual_rows import residuals_of
from skcompressae.packed._rows import row_bytes

if TYPE_CHECKING:
    from skcompressae.packed._store import PackedCodes

__all__ = ["ByteSplit", "split_bytes"]

# Rows that are drawn: a fifth is held out, the rest learned on.
_N_ROWS = 10_240
# Steps of k-means: enough to see which split is the best.
_N_ITER = 4
# Rows of larger entries, or smaller than one over it, are not packed: their codes may be beyond what scales can be.
_LONG = 2.0**90


class ByteSplit(NamedTuple):
    """How the bytes of a row are split between nonzeros and what they leave.

    Its fields are parameters of `CompresSAETransformer`, so ``set_params(**split._asdict())`` takes them before a fit.

    Parameters
    ----------
    k : int
        Nonzeros of a code.
    residual_bytes : int or None
        Bytes of its residual code; None where nonzeros take all.

    See Also
    --------
    split_bytes : Finds the one that keeps most.

    Examples
    --------
    >>> from skcompressae.packed import ByteSplit
    >>> ByteSplit(k=15, residual_bytes=32)._asdict()
    {'k': 15, 'residual_bytes': 32}
    """

    k: int
    residual_bytes: int | None


def split_bytes(
    compressor: Any,
    X: Any,
    n_bytes: int,
    *,
    value_bits: int = 4,
    kind: Kind = "auto",
    random_state: int | np.random.RandomState | None = 0,
) -> ByteSplit:
    """Find how many nonzeros, and how many bytes for what they leave, keep most of the rows in packed codes of a size.

    Nonzeros suit rows near mixtures of a few directions, residual codes rows that are spread evenly over few
    dimensions. For each of some numbers of nonzeros, quantisers are learned on four fifths of a sample, and the squared
    errors ``|x - x_hat - r_hat|^2`` of these rows and of the other fifth are averaged, as those are too small and these
    too large for what quantisers do that are learned on more; the least decides. On the sets that were tried, that
    split had the best recall or one within 0.002 of it (docs/research_notes_packing.md).

    Parameters
    ----------
    compressor : CompresSAETransformer
        Fitted; best with ``norm=None``, and at a k that is not far from what may be found. It is not changed.
    X : array-like of shape (n_samples, n_features)
        At least two embeddings; 10,240 of them are drawn if there are more. Those of ``norm="input"`` whose entries
        are beyond 2**90 in length are left out.
    n_bytes : int
        Bytes of a row of `PackedCodes`, with its scale and residual code. What residual codes cannot take, as they have
        no more bytes than there are features, is left.
    value_bits : int, default=4
        Bits of a packed value.
    kind : {"auto", "ranked", "uniform", "fixed"}, default="auto"
        Of the quantiser of values, see :class:`ValueQuantizer`: "fixed" leaves the bytes of scales to others.
    random_state : int, RandomState instance or None, default=0
        Which rows are drawn; None draws others every time.

    Returns
    -------
    ByteSplit
        A named tuple ``(k, residual_bytes)``; the second is None where nonzeros take all bytes.

    Raises
    ------
    ValueError
        If `n_bytes` do not hold a nonzero, there are fewer than two rows, `value_bits` is out of range, or X is not as
        `transform_packed` requires.
    TypeError
        If `n_bytes` is no int or the compressor none.
    sklearn.exceptions.NotFittedError
        If the compressor is not fitted.

    See Also
    --------
    skcompressae.PackedCodes.with_residual_of : Adds residual codes of so many bytes.
    skcompressae.CompresSAETransformer.transform_packed : Packs codes of so many nonzeros.

    Examples
    --------
    >>> import numpy as np
    >>> from skcompressae import CompresSAETransformer
    >>> from skcompressae.packed import split_bytes
    >>> X = np.random.RandomState(0).standard_normal((600, 8)).astype(np.float32)
    >>> compressor = CompresSAETransformer(n_components=32, k=4, norm=None, max_iter=20, random_state=0).fit(X)
    >>> k, residual_bytes = split_bytes(compressor, X, n_bytes=8)
    >>> packed = compressor.set_params(k=k).transform_packed(X)
    >>> if residual_bytes is not None:
    ...     packed = packed.with_residual_of(X, compressor.components_, n_bytes=residual_bytes)
    >>> packed.bytes_per_row
    8
    """
    if not is_int(n_bytes):
        raise TypeError(f"n_bytes must be an int, got {n_bytes!r}")
    if isinstance(compressor, type) or not hasattr(compressor, "transform_packed"):
        raise TypeError(f"compressor must be a CompresSAETransformer, got {compressor!r}")
    n_bytes = int(n_bytes)
    model = compressor._as_it_is().set_params(residual_bytes=None)
    rows = model._check_rows(X, reset=False)
    vars(model).pop("feature_names_in_", None)  # from here on rows come as arrays
    n_components, n_features = model.components_.shape
    scale_bytes = ValueQuantizer.fit(np.ones((1, 1)), value_bits=value_bits, kind=kind)._scale_bytes

    def bytes_left(k: int) -> int:
        return n_bytes - scale_bytes - row_bytes(n_components, k, value_bits)

    if bytes_left(1) < 0:
        raise ValueError(f"n_bytes must be at least {n_bytes - bytes_left(1)}, a nonzero and a scale; got {n_bytes}")
    learned, held_out = _samples(rows, model.norm, random_state)

    def residuals(packed: PackedCodes, rows: NDArray[Any]) -> NDArray[np.float32]:
        return residuals_of(packed, rows, model.components_, normalize=model.norm != "input")

    def error_of(k: int) -> float:
        model.set_params(k=k)
        packed = model.transform_packed(learned, value_bits=value_bits, kind=kind)
        known = residuals(packed, learned)
        others = residuals(model.transform_packed(held_out, quantizer=packed.quantizer), held_out)
        n_left = min(bytes_left(k), n_features)
        if n_left > 0:
            quantizer = ResidualQuantizer.fit(known, n_left, n_iter=_N_ITER)
            known, others = (left - quantizer.decode(quantizer.encode(left)) for left in (known, others))
        return _mean_square(known) + _mean_square(others)

    k = min(_numbers_of_nonzeros(bytes_left, n_components, n_features), key=error_of)
    return ByteSplit(k, min(bytes_left(k), n_features) or None)


def _numbers_of_nonzeros(bytes_left: Callable[[int], int], n_components: int, n_features: int) -> list[int]:
    """Return what is tried, ascending: all of the bytes, steps of about the square root of two, and before edges.

    Where residual codes have as many bytes as there are features, or half as many, their parts are of one width, and
    the error has a dip.
    """
    most = min(n_components, 2 * n_features)  # as many as features give any row

    def largest(n_left: int) -> int:
        """The most nonzeros that leave so many bytes, or 0."""
        return bisect_right(range(1, most + 1), -n_left, key=lambda k: -bytes_left(k))

    steps = {round(2 ** (step / 2)) for step in range(2 * most.bit_length())}
    edges = {largest(n_left) for n_left in (0, n_features // 2, n_features)}
    return sorted(k for k in steps | edges if 1 <= k <= largest(0))


def _samples(
    rows: NDArray[Any], norm: str | None, random_state: int | np.random.RandomState | None
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return rows to learn on and others to measure on, without those of lengths that packed codes do not hold."""
    drawn = np.sort(random_state_from(random_state).permutation(len(rows))[:_N_ROWS])
    sample = np.asarray(rows[drawn])
    if norm == "input":
        lengths = np.abs(sample).max(axis=1)
        sample = sample[(lengths == 0) | ((lengths > 1 / _LONG) & (lengths < _LONG))]
    if len(sample) < 2:
        raise ValueError(f"X must have at least 2 rows whose codes can be packed, got {len(sample)}")
    is_held_out = np.arange(len(sample)) % 5 == 4 if len(sample) > 4 else np.arange(len(sample)) == 1
    return sample[~is_held_out], sample[is_held_out]


def _mean_square(rows: NDArray[np.float32]) -> float:
    return float(np.einsum("ij,ij->", rows, rows, dtype=np.float64)) / len(rows)
