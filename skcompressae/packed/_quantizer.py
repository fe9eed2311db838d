"""The value quantiser of packed codes, and the checks of what is packed."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeAlias

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from skcompressae._core._pack_rows import PACK_ERRORS
from skcompressae._core._packing_levels import (
    learn_ranked_levels,
    signed_levels,
    thresholds_of,
    uniform_levels,
)
from skcompressae._core._rows import canonical_csr

__all__ = [
    "KINDS",
    "MAX_RANKED_BITS",
    "Kind",
    "ValueQuantizer",
    "as_packable_csr",
    "is_int",
    "quantizer_rows",
    "stored_quantizer",
]

Array: TypeAlias = NDArray[Any]
Kind: TypeAlias = Literal["auto", "ranked", "uniform", "fixed"]
KINDS = ("ranked", "uniform", "fixed")
_SAMPLE_ROWS = 4096
# Equal steps of the maximum lose 0.0012 of recall at 6 bits and 0.0002 at 8 (k = 32); they bound every error.
_RANKED_MAX_BITS = 6
# Of a value with its sign, where each rank has a codebook.
MAX_RANKED_BITS = 8
# The largest value of codes that a fixed codebook is learned on; levels of any codebook are within [2**-20, 2**20].
_LONG = 2.0**10


def quantizer_rows(n_rows: int) -> NDArray[np.intp]:
    """Return which of `n_rows` teach a value quantiser: up to 4,096 of them, evenly spaced."""
    return np.unique(np.linspace(0, n_rows - 1, _SAMPLE_ROWS).astype(np.intp)) if n_rows else np.arange(0)


def as_packable_csr(codes: Any) -> Any:
    """Return codes as float32 CSR without stored zeros or repeated indices; the caller's arrays stay as they are."""
    if not sp.issparse(codes):
        codes = np.asarray(codes)
    if len(codes.shape) != 2:
        raise ValueError(f"codes must be a sparse matrix or a 2-dimensional array, got shape {codes.shape}")
    if codes.dtype.kind not in "biuf":
        raise ValueError(f"codes must be real numbers, got dtype {codes.dtype}")
    if codes.dtype not in (np.float32, np.float64) or not codes.dtype.isnative:
        # sums of duplicates must not wrap around, and SciPy knows neither float16 nor foreign byte orders
        codes = codes.astype(np.float32 if codes.dtype in (np.float16, ">f4", "<f4") else np.float64)
    form = getattr(codes, "format", None)
    if form in ("csc", "bsr"):
        copy(codes).check_format(full_check=True)  # of a shallow copy: SciPy cuts spare room off what it checks
    elif form == "coo":
        codes = sp.coo_array((codes.data, (codes.row, codes.col)), shape=codes.shape)  # which looks at the coordinates
    csr: Any = canonical_csr(codes if form == "csr" else sp.csr_array(codes), "codes")
    if (csr.data == 0).any():
        csr = csr.copy()
        csr.eliminate_zeros()
    if csr.dtype != np.float32:
        with np.errstate(over="ignore"):
            data = csr.data.astype(np.float32)
        lost = (data == 0) & (csr.data != 0)
        if lost.any():
            # float32 has no value this small; the support must survive, and quantising makes it a larger value
            data[lost] = np.copysign(np.finfo(np.float32).tiny, csr.data[lost])
        csr = sp.csr_array((data, csr.indices, csr.indptr), shape=csr.shape)
    return csr


def is_int(value: Any) -> bool:
    """Tell whether a value is an integer of Python or NumPy; truth values are none."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _check_value_bits(value_bits: Any, kind: str) -> int:
    limit = MAX_RANKED_BITS if kind in ("ranked", "fixed") else 16
    if is_int(value_bits) and 1 <= value_bits <= limit:
        return int(value_bits)
    of_kind = "" if kind == "auto" else f" for kind={kind!r}"
    raise ValueError(f"value_bits must be an int from 1 to {limit}{of_kind}, got {value_bits!r}")


def _check_k(k: Any) -> int:
    if is_int(k) and k >= 1:
        return int(k)
    raise ValueError(f"k must be an int of at least 1 or None, got {k!r}")


@dataclass(frozen=True, eq=False)
class ValueQuantizer:
    """What the values of packed codes may be, relative to a scale per row or as they are.

    The magnitudes that packing may give a value are a table; which of them a value becomes is decided by rounding. Make
    one with :meth:`fit`; stores that share one can be joined.

    Parameters
    ----------
    kind : {"ranked", "uniform", "fixed"}
        "ranked": one Lloyd-Max codebook for each rank of a row by magnitude. "uniform": equal steps of the largest
        magnitude of the row. "fixed": as "ranked", but of the magnitudes themselves, without a scale per row and its
        bytes: for codes of rows of one length, as of ``norm=None`` or "unit".
    value_bits : int
        Bits of a value with its sign, 1 to 16 when uniform, else 1 to 8.
    levels : float32 array of shape (k, 2 ** (value_bits - 1)), or (1, ...) when uniform
        Magnitudes, relative to the scale where there is one, increasing along a row; unless uniform, nonincreasing down
        a column.

    See Also
    --------
    skcompressae.PackedCodes : What it serves.
    skcompressae.packed.ResidualQuantizer : The quantiser of what a code leaves.

    Notes
    -----
    Uniform: every value is at most half a step, ``scale / 2 ** value_bits``, off, where `scale` is at most 0.4 % above
    the largest magnitude of the row (equal to it above 8 bits). No nonzero becomes zero: what is below half a step
    becomes one step, and so is less than one step off. Ranked: every magnitude, divided by the root mean square of its
    row, becomes the nearest level of its rank that does not exceed the one before it; then one factor for the row
    gives the least squared error. A ranked codebook knows no bound for rows unlike those it was learned on. Fixed:
    every magnitude becomes the nearest level of its rank in the same way. Rows of zeros, and of values more than eight
    times as large as the largest level, cannot be packed by a fixed codebook.

    Examples
    --------
    >>> import numpy as np
    >>> from skcompressae.packed import ValueQuantizer
    >>> ValueQuantizer("uniform", 3, np.array([[0.25, 0.5, 0.75, 1.0]])).thresholds
    array([[0.375, 0.625, 0.875]], dtype=float32)
    """

    kind: Literal["ranked", "uniform", "fixed"]
    value_bits: int
    levels: NDArray[np.float32]

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind must be 'ranked', 'uniform' or 'fixed', got {self.kind!r}")
        object.__setattr__(self, "value_bits", _check_value_bits(self.value_bits, self.kind))
        levels = np.array(self.levels, dtype=np.float32, order="C")
        if levels.ndim != 2 or levels.shape[1] != 2 ** (self.value_bits - 1) or levels.shape[0] == 0:
            raise ValueError(
                f"levels must have shape (k, {2 ** (self.value_bits - 1)}) for value_bits={self.value_bits}, "
                f"got {levels.shape}"
            )
        if self.kind == "uniform":
            valid = np.array_equal(levels, uniform_levels(self.value_bits))
        else:
            # a millionth keeps the float32 products of neighbouring levels apart, which packing relies on
            steps = levels[:, 1:] >= levels[:, :-1] * np.float32(1 + 2.0**-20)
            falling = levels[1:] <= levels[:-1]
            inside = (levels >= np.float32(2.0**-20)) & (levels <= np.float32(2.0**20))
            valid = bool(inside.all() and steps.all() and falling.all())
        if not valid:
            raise ValueError(
                f"levels are no {self.kind} codebook: they must be positive and finite, increase along a row and "
                "never increase down a column (uniform: equal steps up to 1)"
            )
        levels.setflags(write=False)
        object.__setattr__(self, "levels", levels)

    @classmethod
    def fit(
        cls,
        codes: Any,
        *,
        value_bits: int = 4,
        k: int | None = None,
        kind: Kind = "auto",
    ) -> ValueQuantizer:
        """Learn a quantiser on up to 4,096 rows of codes.

        Rows are evenly spaced, and nothing is drawn at random: the same codes give the same quantiser.

        Parameters
        ----------
        codes : sparse matrix or array of shape (n, n_components)
            Codes like those to be packed.
        value_bits : int, default=4
            Bits of a value, sign included.
        k : int, default=None
            Ranks to learn; None takes the longest row.
        kind : {"auto", "ranked", "uniform", "fixed"}, default="auto"
            "auto" is ranked up to 6 bits and uniform above.

        Returns
        -------
        ValueQuantizer
            For codes like these.

        Raises
        ------
        ValueError
            If a parameter is out of its range, or codes are not finite.

        See Also
        --------
        skcompressae.PackedCodes.pack : Fits one where none is given.
        skcompressae.CompresSAETransformer.transform_packed : Fits one on the rows it encodes.

        Examples
        --------
        >>> import numpy as np
        >>> from skcompressae.packed import ValueQuantizer
        >>> codes = np.array([[0.0, 3.0, 0.0, -1.0], [0.5, 0.0, 2.0, 0.0]])
        >>> quantizer = ValueQuantizer.fit(codes, value_bits=4)
        >>> quantizer.kind, quantizer.levels.shape
        ('ranked', (2, 8))
        """
        if kind not in ("auto", *KINDS):
            raise ValueError(f"kind must be 'auto', 'ranked', 'uniform' or 'fixed', got {kind!r}")
        if kind == "auto":
            kind = "ranked" if _check_value_bits(value_bits, "auto") <= _RANKED_MAX_BITS else "uniform"
        value_bits = _check_value_bits(value_bits, kind)
        if kind == "uniform":
            return cls("uniform", value_bits, uniform_levels(value_bits))
        csr = as_packable_csr(codes)
        lengths = np.diff(csr.indptr)
        k = max(1, int(lengths.max(initial=0))) if k is None else _check_k(k)
        n = csr.shape[0]
        chosen = quantizer_rows(n)
        magnitudes = np.zeros((chosen.size, max(k, int(lengths.max(initial=0)))), dtype=np.float32)
        wanted = lengths[chosen].astype(np.int64)
        within = np.arange(int(wanted.sum())) - np.repeat(np.cumsum(wanted) - wanted, wanted)
        source = np.repeat(csr.indptr[chosen].astype(np.int64), wanted) + within
        magnitudes[np.repeat(np.arange(chosen.size), wanted), within] = np.abs(csr.data[source])
        if not np.isfinite(magnitudes).all():
            raise ValueError(f"codes {PACK_ERRORS[1]}")
        magnitudes = -np.sort(-magnitudes, axis=1)[:, :k]
        if kind == "fixed":
            length = float(magnitudes.max(initial=0.0)) or 1.0
            if not 1 / _LONG <= length <= _LONG:
                raise ValueError(
                    f"kind='fixed' needs codes of rows of about unit norm, got a value of {length:.3g}; take "
                    "kind='ranked', or encode at norm=None"
                )
        return cls(kind, value_bits, learn_ranked_levels(magnitudes, k, value_bits, by_row=kind == "ranked"))

    @cached_property
    def thresholds(self) -> NDArray[np.float32]:
        """Midpoints between levels, float32 of shape (n_ranks, n_levels - 1).

        A magnitude above a threshold is rounded to the level after it.

        See Also
        --------
        signed_levels : The levels, with signs.
        fit : Learns the levels.

        Examples
        --------
        >>> import numpy as np
        >>> from skcompressae.packed import ValueQuantizer
        >>> ValueQuantizer("uniform", 2, np.array([[0.5, 1.0]])).thresholds
        array([[0.75]], dtype=float32)
        """
        return thresholds_of(self.levels)

    @cached_property
    def signed_levels(self) -> NDArray[np.float32]:
        """Levels by sign and code, float32 of shape (n_ranks, 2 ** value_bits).

        The lower half of a row are the positive levels, the upper half the same levels negative: what is looked up is a
        word's sign and code together.

        See Also
        --------
        thresholds : Where rounding goes from one level to the next.
        skcompressae.PackedCodes.signed_levels : The same table, of a store.

        Examples
        --------
        >>> import numpy as np
        >>> from skcompressae.packed import ValueQuantizer
        >>> ValueQuantizer("uniform", 2, np.array([[0.5, 1.0]])).signed_levels
        array([[ 0.5,  1. , -0.5, -1. ]], dtype=float32)
        """
        return signed_levels(self.levels)

    @property
    def scale_dtype(self) -> np.dtype[Any]:
        """Dtype of the stored scales.

        Up to 8 bits of a value, scales are uint16, the 16 bits after a float32's sign; above, float32. Of kind "fixed"
        all are 1 and none is stored.

        See Also
        --------
        skcompressae.PackedCodes.scales : The scales as float32.
        fit : Where `value_bits` is chosen.

        Examples
        --------
        >>> import numpy as np
        >>> from skcompressae.packed import ValueQuantizer
        >>> ValueQuantizer("uniform", 2, np.array([[0.5, 1.0]])).scale_dtype
        dtype('uint16')
        """
        return np.dtype("<u2") if self.value_bits <= 8 else np.dtype("<f4")

    @property
    def _has_scales(self) -> bool:
        """Whether each row has a scale."""
        return self.kind != "fixed"

    @property
    def _is_ranked(self) -> bool:
        """Whether each rank has levels of its own, which are learned and stored; else they are a formula."""
        return self.kind != "uniform"

    @property
    def _scale_bytes(self) -> int:
        """Bytes of the scale of a row."""
        return self.scale_dtype.itemsize if self._has_scales else 0

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ValueQuantizer):
            return NotImplemented
        return (
            self.kind == other.kind
            and self.value_bits == other.value_bits
            and np.array_equal(self.levels, other.levels)
        )

    __hash__ = None  # type: ignore[assignment]


def stored_quantizer(kind: Any, value_bits: Any, read_levels: Callable[[], Any]) -> ValueQuantizer:
    """Return the quantiser that a file describes. Uniform levels are a formula, which is why only ranked ones are read.

    Raises
    ------
    ValueError
        If there is no such quantiser.
    """
    if kind == "uniform":
        return ValueQuantizer.fit(np.zeros((0, 1)), value_bits=value_bits, kind="uniform")
    return ValueQuantizer(kind, value_bits, read_levels())
