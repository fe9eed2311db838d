"""How many of a row's bytes go to nonzeros, and how many to what they leave."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from skcompressae._core._rows import unit_rows
from skcompressae._core._threads import row_blocks
from skcompressae.packed._quantizer import KINDS, MAX_RANKED_BITS, Kind, ValueQuantizer, is_int
from skcompressae.packed._residual import ResidualQuantizer, random_state_from
from skcompressae.packed._residual_rows import residuals_of
from skcompressae.packed._rows import PackingError, row_bytes

if TYPE_CHECKING:
    from skcompressae.packed._store import PackedCodes

__all__ = ["ByteSplit", "split_bytes"]

# Rows that are drawn: a fifth is held out, the rest learned on.
_N_ROWS = 10_240
# Steps of k-means: enough to see which split is the best.
_N_ITER = 4
# Held-out rows that look for their neighbours at a time.
_QUERIES_AT_ONCE = 256
# Rows of larger entries, or smaller than one over it, are not packed: their codes may be beyond what scales can be.
_LONG = 2.0**90


class ByteSplit(NamedTuple):
    """How the bytes of a row are split between nonzeros, their scale and what they leave.

    The first two fields are parameters of `CompresSAETransformer`, the third is one of its `transform_packed`.

    Parameters
    ----------
    k : int
        Nonzeros of a code.
    residual_bytes : int or None
        Bytes of its residual code; None where nonzeros take all.
    kind : {"auto", "ranked", "uniform", "fixed"}, default="auto"
        Of the quantiser of values.

    See Also
    --------
    split_bytes : Finds the one that keeps most.

    Examples
    --------
    >>> from skcompressae.packed import ByteSplit
    >>> ByteSplit(k=15, residual_bytes=32)
    ByteSplit(k=15, residual_bytes=32, kind='auto')
    """

    k: int
    residual_bytes: int | None
    kind: Kind = "auto"


def split_bytes(
    compressor: Any,
    X: Any,
    n_bytes: int,
    *,
    value_bits: int = 4,
    kind: Kind | Literal["best"] = "auto",
    n_neighbors: int = 100,
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
    kind : {"auto", "ranked", "uniform", "fixed", "best"}, default="auto"
        Of the quantiser of values, see :class:`ValueQuantizer`: "fixed" leaves the bytes of scales to others. "best"
        looks for a split with "auto" and for one with "fixed", where the bytes hold a scale and the rows that are drawn
        can be packed without, and takes the one whose codes find more of the nearest rows of these, for held-out rows
        as dense queries and by ``metric="geometric"``.
    n_neighbors : int, default=100
        Neighbours that searches of all of X will ask for; with "best" only. Of the rows that are drawn, the same share
        is looked for.
    random_state : int, RandomState instance or None, default=0
        Which rows are drawn; None draws others every time.

    Returns
    -------
    ByteSplit
        A named tuple ``(k, residual_bytes, kind)``; the second is None where nonzeros take all bytes, the third "auto"
        or "fixed" where `kind` is "best".

    Raises
    ------
    ValueError
        If `n_bytes` do not hold a nonzero, there are fewer than two rows, `value_bits`, `kind` or `n_neighbors` is out
        of range, or X is not as `transform_packed` requires.
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
    >>> split = split_bytes(compressor, X, n_bytes=8)
    >>> packed = compressor.set_params(k=split.k).transform_packed(X, kind=split.kind)
    >>> if split.residual_bytes is not None:
    ...     packed = packed.with_residual_of(X, compressor.components_, n_bytes=split.residual_bytes)
    >>> packed.bytes_per_row
    8
    """
    if not is_int(n_bytes):
        raise TypeError(f"n_bytes must be an int, got {n_bytes!r}")
    if isinstance(compressor, type) or not hasattr(compressor, "transform_packed"):
        raise TypeError(f"compressor must be a CompresSAETransformer, got {compressor!r}")
    if not is_int(n_neighbors) or n_neighbors < 1:
        raise ValueError(f"n_neighbors must be an int of at least 1, got {n_neighbors!r}")
    if kind not in ("auto", *KINDS, "best"):
        raise ValueError(f"kind must be 'auto', 'ranked', 'uniform', 'fixed' or 'best', got {kind!r}")
    model = compressor._as_it_is().set_params(residual_bytes=None)
    rows = model._check_rows(X, reset=False)
    vars(model).pop("feature_names_in_", None)  # from here on rows come as arrays
    trials = [_Trial(model, int(n_bytes), value_bits, "auto" if kind == "best" else kind)]
    if kind == "best" and model.norm != "input" and value_bits <= MAX_RANKED_BITS:
        trials.append(_Trial(model, int(n_bytes), value_bits, "fixed"))
    trials[-1].check_room()  # before rows are drawn, which may have to be read
    drawn, numbers = _drawn(rows, model.norm, random_state, kind)
    sample, row_numbers = _parts(drawn), _parts(numbers)
    if len(trials) == 2 and not all(part.any(axis=1).all() for part in sample):
        del trials[1]  # which cannot tell zeros
    trials[-1].check_room()
    if not trials[0].has_room():  # for scales
        del trials[0]
    trials[0].run(*sample, row_numbers)
    if len(trials) == 2:
        try:
            trials[1].run(*sample, row_numbers)
        except ValueError:  # a value far beyond its levels
            return trials[0].split
        n_looked_for = max(1, round(int(n_neighbors) * sum(map(len, sample)) / len(rows)))
        recalls = _recalls([trial.left for trial in trials], *sample, n_looked_for)
        return trials[int(np.argmax(recalls))].split  # of equal ones "auto", the first
    return trials[0].split


class _Trial:
    """The search for the split of one kind of quantiser: what was best so far, and what it left of the rows."""

    def __init__(self, model: Any, n_bytes: int, value_bits: int, kind: Kind) -> None:
        self._model, self._n_bytes, self._value_bits, self._kind = model, n_bytes, value_bits, kind
        self._n_components, self._n_features = model.components_.shape
        self._scale_bytes = ValueQuantizer.fit(np.ones((1, 1)), value_bits=value_bits, kind=kind)._scale_bytes
        self._least = np.inf

    def has_room(self) -> bool:
        """Tell whether the bytes hold a nonzero."""
        return self._bytes_left(1) >= 0

    def check_room(self) -> None:
        """Raise unless they do."""
        if not self.has_room():
            least = self._n_bytes - self._bytes_left(1)
            what = "a nonzero and a scale" if self._scale_bytes else "a nonzero"
            raise ValueError(f"n_bytes must be at least {least}, {what}; got {self._n_bytes}")

    def _bytes_left(self, k: int) -> int:
        return self._n_bytes - self._scale_bytes - row_bytes(self._n_components, k, self._value_bits)

    def _residual_bytes(self, k: int) -> int:
        return min(self._bytes_left(k), self._n_features)

    def _residuals(self, packed: PackedCodes, rows: NDArray[Any]) -> NDArray[np.float32]:
        return residuals_of(packed, rows, self._model.components_, normalize=self._model.norm != "input")

    def run(self, learned: NDArray[Any], held_out: NDArray[Any], numbers: Sequence[NDArray[np.intp]]) -> None:
        """Try numbers of nonzeros, and keep the one whose errors are least; `numbers` are those of both in X."""
        self._numbers = numbers
        for k in _numbers_of_nonzeros(self._bytes_left, self._n_components, self._n_features):
            left = self._left_by(k, learned, held_out)
            error = sum(map(_mean_square, left))
            if error < self._least:
                self._least, self.left = error, left
                self.split = ByteSplit(k, self._residual_bytes(k) or None, self._kind)

    def _left_by(
        self, k: int, learned: NDArray[Any], held_out: NDArray[Any]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return what codes of k nonzeros and their residual codes leave of rows that teach quantisers, and others."""
        model = self._model.set_params(k=k)
        with _numbered(self._numbers[0]):
            packed = model.transform_packed(learned, value_bits=self._value_bits, kind=self._kind)
        with _numbered(self._numbers[1]):
            packed_others = model.transform_packed(held_out, quantizer=packed.quantizer)
        known, others = self._residuals(packed, learned), self._residuals(packed_others, held_out)
        if self._residual_bytes(k) > 0:
            quantizer = ResidualQuantizer.fit(known, self._residual_bytes(k), n_iter=_N_ITER)
            known, others = (left - quantizer.decode(quantizer.encode(left)) for left in (known, others))
        return known, others


@contextmanager
def _numbered(numbers: NDArray[np.intp]) -> Iterator[None]:
    """Have the error of a row that cannot be packed tell its number in X, one of these."""
    try:
        yield
    except PackingError as error:
        raise ValueError(error.text.format(f"{numbers[error.row]} of X")) from error


def _recalls(
    left: list[tuple[NDArray[np.float32], NDArray[np.float32]]],
    learned: NDArray[Any],
    held_out: NDArray[Any],
    n_neighbors: int,
) -> list[float]:
    """Return which share of the nearest rows, but their own, held-out rows find among codes of all that leave this."""
    rows, queries = unit_rows(np.concatenate((learned, held_out)))[0], unit_rows(held_out)[0]
    n_neighbors = min(n_neighbors, len(rows) - 1)
    codes = [rows - np.concatenate(parts) for parts in left]
    for of_rows in codes:
        lengths = np.linalg.norm(of_rows, axis=1, keepdims=True)
        of_rows /= np.sqrt(np.maximum(lengths, np.finfo(np.float32).tiny))
    n_found = [0] * len(codes)
    for start, stop in row_blocks(len(queries), _QUERIES_AT_ONCE):
        own = len(learned) + np.arange(start, stop)
        nearest = _largest(queries[start:stop] @ rows.T, own, n_neighbors)
        for i, of_rows in enumerate(codes):
            found = _largest(queries[start:stop] @ of_rows.T, own, n_neighbors)
            n_found[i] += sum(map(_n_common, nearest, found))
    return [n / (len(queries) * n_neighbors) for n in n_found]


def _largest(scores: NDArray[np.float32], own: NDArray[np.intp], n: int) -> NDArray[np.intp]:
    """Return the columns of the n largest of each row, but for one of its own."""
    scores[np.arange(len(scores)), own] = -np.inf
    return np.argpartition(-scores, n - 1, axis=1)[:, :n]


def _n_common(a: NDArray[np.intp], b: NDArray[np.intp]) -> int:
    return len(np.intersect1d(a, b, assume_unique=True))


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


def _drawn(
    rows: NDArray[Any], norm: str | None, random_state: int | np.random.RandomState | None, kind: str
) -> tuple[NDArray[Any], NDArray[np.intp]]:
    """Return rows that are drawn, and their numbers, without those of lengths that packed codes do not hold."""
    drawn = np.sort(random_state_from(random_state).permutation(len(rows))[:_N_ROWS])
    sample = np.asarray(rows[drawn])
    if kind == "fixed" and norm != "input":
        zeros = drawn[~sample.any(axis=1)]
        if len(zeros):  # whose number among those that are drawn would say nothing
            raise ValueError(f"kind='fixed' stores no scale per row, and row {zeros[0]} of X is all zeros")
    if norm == "input":
        # not of float16 or int8, which hold neither such lengths nor that of -128
        lengths = np.maximum(sample.max(axis=1).astype(np.float64), -sample.min(axis=1).astype(np.float64))
        is_kept = (lengths == 0) | ((lengths > 1 / _LONG) & (lengths < _LONG))
        drawn, sample = drawn[is_kept], sample[is_kept]
    if len(sample) < 2:
        raise ValueError(f"X must have at least 2 rows whose codes can be packed, got {len(sample)}")
    return sample, drawn


def _parts(drawn: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return what to learn on and what to measure on."""
    is_held_out = np.arange(len(drawn)) % 5 == 4 if len(drawn) > 4 else np.arange(len(drawn)) == 1
    return drawn[~is_held_out], drawn[is_held_out]


def _mean_square(rows: NDArray[np.float32]) -> float:
    return float(np.einsum("ij,ij->", rows, rows, dtype=np.float64)) / len(rows)
