"""How many of a row's bytes go to nonzeros, and how many to what they leave."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from skcompressae.packed._quantizer import ValueQuantizer, is_int
from skcompressae.packed._residual import ResidualQuantizer, random_state_from
from skcompressae.packed._residual_rows import residuals_of
from skcompressae.packed._rows import row_bytes

__all__ = ["ByteSplit", "split_bytes"]

# Rows that quantisers are learned on, and others that their errors are those of.
_N_LEARNED, _N_HELD_OUT = 8192, 2048
# Steps of k-means: enough to see which split is the best.
_N_ITER = 4
# The walk starts where this share of the bytes is nonzeros.
_FIRST_SHARE = 0.5


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
    random_state: int | np.random.RandomState | None = 0,
) -> ByteSplit:
    """Find how many nonzeros, and how many bytes for what they leave, keep most of the rows in packed codes of a size.

    Nonzeros suit rows near mixtures of a few directions, residual codes rows that are spread evenly over few
    dimensions. For numbers of nonzeros of a geometric sequence, quantisers are learned on some rows, and the squared
    error ``|x - x_hat - r_hat|^2`` is that of other rows; a walk to ever smaller errors ends in the least. Which split
    that is agreed with the split of the best recall on every data set that was tried
    (docs/research_notes_packing.md).

    Parameters
    ----------
    compressor : CompresSAETransformer
        Fitted; best with ``norm=None``, and at a k that is not far from what may be found. It is not changed.
    X : array-like of shape (n_samples, n_features)
        At least two embeddings; some 10,000 of them are drawn if there are more.
    n_bytes : int
        Bytes of a row of `PackedCodes`, with its scale and residual code. What residual codes cannot take, as they have
        no more bytes than there are features, is left.
    value_bits : int, default=4
        Bits of a packed value.
    random_state : int, RandomState instance or None, default=0
        Which rows are drawn; None draws others every time.

    Returns
    -------
    ByteSplit
        A named tuple ``(k, residual_bytes)``; the second is None where nonzeros take all bytes.

    Raises
    ------
    ValueError
        If `n_bytes` do not hold a nonzero, there are fewer than two rows, `value_bits` is out of range, or rows cannot
        be encoded and packed as `transform_packed` requires.
    TypeError
        If `n_bytes` is no int.
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
    >>> packed.with_residual_of(X, compressor.components_, n_bytes=residual_bytes).bytes_per_row
    8
    """
    if not is_int(n_bytes):
        raise TypeError(f"n_bytes must be an int, got {n_bytes!r}")
    model = compressor._as_it_is().set_params(residual_bytes=None)
    rows = model._check_rows(X, reset=False)
    if len(rows) < 2:
        raise ValueError(f"X must have at least 2 rows, got {len(rows)}")
    n_components, n_features = model.components_.shape
    scale_bytes = ValueQuantizer.fit(np.ones((1, 1)), value_bits=value_bits).scale_dtype.itemsize
    sizes = {k: scale_bytes + row_bytes(n_components, k, value_bits) for k in range(1, n_components + 1)}
    fitting = [k for k, size in sizes.items() if size <= n_bytes]
    if not fitting:
        raise ValueError(f"n_bytes must be at least {sizes[1]}, a nonzero and a scale; got {n_bytes}")
    # steps of about the square root of two
    ladder = sorted({round(2 ** (step / 2)) for step in range(42)} & set(fitting) | {fitting[-1]})

    drawn = random_state_from(random_state).permutation(len(rows))[: _N_LEARNED + _N_HELD_OUT]
    n_held_out = min(_N_HELD_OUT, max(1, len(drawn) // 5))
    held_out, learned = (np.asarray(rows[np.sort(part)]) for part in (drawn[:n_held_out], drawn[n_held_out:]))

    def error_of(k: int) -> float:
        model.set_params(k=k)
        packed = model.transform_packed(learned, value_bits=value_bits)
        left = _residuals(model, held_out, packed.quantizer)
        n_left = min(n_bytes - sizes[k], n_features)
        if n_left > 0:
            quantizer = ResidualQuantizer.fit(_residuals(model, learned, packed.quantizer), n_left, n_iter=_N_ITER)
            left = left - quantizer.decode(quantizer.encode(left))
        return float(np.einsum("ij,ij->", left, left, dtype=np.float64))

    start = min(range(len(ladder)), key=lambda step: abs(sizes[ladder[step]] - _FIRST_SHARE * n_bytes))
    k = ladder[_walk_to_least(lambda step: error_of(ladder[step]), start, len(ladder))]
    return ByteSplit(k, min(n_bytes - sizes[k], n_features) or None)


def _residuals(model: Any, rows: NDArray[Any], quantizer: ValueQuantizer) -> NDArray[np.float32]:
    """Return what packed codes leave of rows."""
    packed = model.transform_packed(rows, quantizer=quantizer)
    return residuals_of(packed, rows, model.components_, normalize=model.norm != "input")


def _walk_to_least(value_at: Callable[[int], float], start: int, n: int) -> int:
    """Return a place in ``range(n)`` from which neither neighbour is smaller, reached from `start` downhill."""
    known: dict[int, float] = {}

    def value(place: int) -> float:
        if place not in known:
            known[place] = value_at(place)
        return known[place]

    while True:
        neighbors = [place for place in (start - 1, start + 1) if 0 <= place < n]
        best = min(neighbors, key=value, default=start)
        if value(best) >= value(start):
            return start
        start = best
