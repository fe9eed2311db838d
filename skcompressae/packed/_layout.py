"""What packed codes are: sizes, parts and bytes."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from skcompressae._core._packing import decode_scales, index_bits_for
from skcompressae.packed._quantizer import ValueQuantizer
from skcompressae.packed._residual import ResidualQuantizer

__all__ = ["PackedLayoutMixin"]

Array: TypeAlias = NDArray[Any]


class PackedLayoutMixin:
    """Read-only properties of `PackedCodes`."""

    __slots__ = ()
    _k: int
    _n_components: int
    _quantizer: ValueQuantizer
    _residual_codes: NDArray[np.uint8] | None
    _residual_quantizer: ResidualQuantizer | None
    _rows: NDArray[np.uint8]
    _scales: Array

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def shape(self) -> tuple[int, int]:
        """Number of codes and width of the code space, (n, n_components).

        Rows and columns as those of the matrix that :meth:`to_csr` unpacks, so that NumPy's idioms work on a store.

        See Also
        --------
        n_components : The second of the two alone.
        ndim : Its length, 2.

        Examples
        --------
        >>> import numpy as np
        >>> from skcompressae import PackedCodes
        >>> packed = PackedCodes.pack(np.array([[0.0, 3.0, 0.0, -1.0], [0.5, 0.0, 2.0, 0.0]]))
        >>> packed.shape, len(packed)
        ((2, 4), 2)
        """
        return len(self._rows), self._n_components

    @property
    def ndim(self) -> int:
        """Number of dimensions, always 2.

        A store is a matrix of codes, also where it holds a single row: indexing by an int gives a store of one.

        See Also
        --------
        shape : Rows and columns.

        Examples
        --------
        >>> import numpy as np
        >>> from skcompressae import PackedCodes
        >>> packed = PackedCodes.pack(np.array([[0.0, 3.0, 0.0, -1.0], [0.5, 0.0, 2.0, 0.0]]))
        >>> packed[0].ndim, packed[0].shape
        (2, (1, 4))
        """
        return 2

    @property
    def dtype(self) -> np.dtype[np.float32]:
        """Dtype of the unpacked values.

        Magnitudes are stored in fewer bits than that; float32 is what :meth:`to_csr` makes of them.

        See Also
        --------
        value_bits : Bits that a stored value has.
        scales : What stored levels are multiplied with.

        Examples
        --------
        >>> import numpy as np
        >>> from skcompressae import PackedCodes
        >>> packed = PackedCodes.pack(np.array([[0.0, 3.0, 0.0, -1.0], [0.5, 0.0, 2.0, 0.0]]))
        >>> packed.dtype, packed.to_csr().dtype
        (dtype('float32'), dtype('float32'))
        """
        return np.dtype(np.float32)

    @property
    def n_components(self) -> int:
        """Width of the code space.

        The number of latents of the model that made the codes; every index is below it. It decides `index_bits`.

        See Also
        --------
        k : Nonzeros a row can hold.
        index_bits : Bits that an index takes.

        Examples
        --------
        >>> import numpy as np
        >>> from skcompressae import PackedCodes
        >>> packed = PackedCodes.pack(np.array([[0.0, 3.0, 0.0, -1.0], [0.5, 0.0, 2.0, 0.0]]))
        >>> packed.n_components
        4
        """
        return self._n_components

    @property
    def k(self) -> int:
        """Entries a row can hold.

        Rows with fewer nonzeros take the same bytes; what they do not use is filled.

        See Also
        --------
        n_components : Width of the code space.
        bytes_per_row : What a row takes.

        Examples
        --------
        >>> import numpy as np
        >>> from skcompressae import PackedCodes
        >>> packed = PackedCodes.pack(np.array([[0.0, 3.0, 0.0, -1.0], [0.5, 0.0, 2.0, 0.0]]))
        >>> packed.k, np.diff(packed.to_csr().indptr)
        (2, array([2, 2], dtype=int32))
        """
        return self._k

    @property
    def quantizer(self) -> ValueQuantizer:
        """The value quantiser: the levels that values are rounded to.

        Stores can be joined and compared only where they share one, so pass it on when you pack further rows.

        See Also
        --------
        pack : Takes a quantiser.
        skcompressae.packed.ValueQuantizer : What it is.

        Examples
        --------
        >>> import numpy as np
        >>> from skcompressae import PackedCodes
        >>> packed = PackedCodes.pack(np.array([[0.0, 3.0, 0.0, -1.0], [0.5, 0.0, 2.0, 0.0]]))
        >>> more = PackedCodes.pack(np.array([[0.0, 0.0, 1.0, 2.5]]), quantizer=packed.quantizer)
        >>> len(PackedCodes.concatenate([packed, more]))
        3
        """
        return self._quantizer

    @property
    def value_bits(self) -> int:
        """Bits of a value with its sign.

        One bit is the sign, so magnitudes have ``2 ** (value_bits - 1)`` levels.

        See Also
        --------
        index_bits : The other part of a word.
        skcompressae.packed.ValueQuantizer : Decides the levels.

        Examples
        --------
        >>> import numpy as np
        >>> from skcompressae import PackedCodes
        >>> packed = PackedCodes.pack(np.array([[0.0, 3.0, 0.0, -1.0], [0.5, 0.0, 2.0, 0.0]]))
        >>> packed.value_bits, PackedCodes.pack(packed.to_csr(), value_bits=8).value_bits
        (4, 8)
        """
        return self._quantizer.value_bits

    @property
    def index_bits(self) -> int:
        """Bits of an index.

        The fewest bits that can hold any index below `n_components`. Tables that are looked up by index need ``2 **
        index_bits`` entries.

        See Also
        --------
        word_bits : Index and value together.
        n_components : What it follows from.

        Examples
        --------
        >>> import numpy as np
        >>> from skcompressae import PackedCodes
        >>> packed = PackedCodes.pack(np.array([[0.0, 3.0, 0.0, -1.0], [0.5, 0.0, 2.0, 0.0]]))
        >>> packed.index_bits, 2**packed.index_bits
        (2, 4)
        """
        return index_bits_for(self._n_components)

    @property
    def word_bits(self) -> int:
        """Bits of one entry.

        An entry is an index and a value, ``index_bits + value_bits``. Where that is 16, rows are read as they lie,
        without expanding them.

        See Also
        --------
        index_bits : Bits of the index.
        value_bits : Bits of the value.
        words : The words themselves.

        Examples
        --------
        >>> import numpy as np
        >>> from skcompressae import PackedCodes
        >>> packed = PackedCodes.pack(np.array([[0.0, 3.0, 0.0, -1.0], [0.5, 0.0, 2.0, 0.0]]))
        >>> packed.word_bits == packed.index_bits + packed.value_bits
        True
        """
        return self.index_bits + self.value_bits

    @property
    def rows(self) -> NDArray[np.uint8]:
        """The bit-packed words, uint8 of shape (n, row bytes).

        Words follow each other without gaps, least significant bit first, and each row begins at a byte. They are
        read-only; `words` gives them one by one.

        See Also
        --------
        words : The same, one number for each entry.
        scales : The other part of a row.

        Examples
        --------
        >>> import numpy as np
        >>> from skcompressae import PackedCodes
        >>> packed = PackedCodes.pack(np.array([[0.0, 3.0, 0.0, -1.0], [0.5, 0.0, 2.0, 0.0]]))
        >>> packed.rows.shape, packed.rows.dtype, packed.rows.flags.writeable
        ((2, 2), dtype('uint8'), False)
        """
        return self._rows

    @property
    def scales(self) -> NDArray[np.float32]:
        """The scale of every row, float32 of shape (n,).

        What a row's levels are multiplied with. It is a copy where scales are stored in 16 bits; 0 marks a row without
        nonzeros.

        See Also
        --------
        signed_levels : What they are multiplied by.
        skcompressae.packed.ValueQuantizer.scale_dtype : How they are stored.

        Examples
        --------
        >>> import numpy as np
        >>> from skcompressae import PackedCodes
        >>> packed = PackedCodes.pack(np.array([[0.0, 3.0, 0.0, -1.0], [0.5, 0.0, 2.0, 0.0]]))
        >>> packed.scales.shape, packed.scales.dtype
        ((2,), dtype('float32'))
        >>> PackedCodes.pack(np.zeros((1, 4))).scales
        array([0.], dtype=float32)
        """
        return decode_scales(self._scales)

    @property
    def signed_levels(self) -> NDArray[np.float32]:
        """Table of values before the scale, float32 of shape (n_ranks, 2 ** value_bits).

        The value of a word is ``signed_levels[min(rank, last), word & mask] * scale``, where rank is its place in the
        row (largest magnitude first) and mask keeps the bits of the value.

        See Also
        --------
        scales : The other factor.
        words : What is looked up.

        Examples
        --------
        >>> import numpy as np
        >>> from skcompressae import PackedCodes
        >>> packed = PackedCodes.pack(np.array([[0.0, 3.0, 0.0, -1.0], [0.5, 0.0, 2.0, 0.0]]))
        >>> mask = 2**packed.value_bits - 1
        >>> value = packed.signed_levels[0, packed.words()[0, 0] & mask] * packed.scales[0]
        >>> bool(value == packed.to_csr()[0].max())
        True
        """
        return self._quantizer.signed_levels

    @property
    def residual_codes(self) -> NDArray[np.uint8] | None:
        """Residual code of every row, uint8 of shape (n, n_bytes), or None.

        They let a search order candidates better than the sparse codes alone: see `rerank` of `CodeNearestNeighbors`.
        None where the store has none.

        See Also
        --------
        with_residual_of : Makes them.
        residual_quantizer : What they mean.

        Examples
        --------
        >>> import numpy as np
        >>> from skcompressae import PackedCodes
        >>> rng = np.random.RandomState(0)
        >>> components = rng.standard_normal((16, 4))
        >>> codes = rng.standard_normal((50, 16)) * (rng.uniform(size=(50, 16)) < 0.2)
        >>> X = codes @ components + 0.1 * rng.standard_normal((50, 4))
        >>> packed = PackedCodes.pack(codes).with_residual_of(X, components, n_bytes=2, normalize=False)
        >>> packed.residual_codes.shape, PackedCodes.pack(codes).residual_codes is None
        ((50, 2), True)
        """
        return self._residual_codes

    @property
    def residual_quantizer(self) -> ResidualQuantizer | None:
        """The quantiser that decodes the residual codes, or None.

        Stores with residual codes can be joined only where they share it.

        See Also
        --------
        residual_codes : The codes.
        skcompressae.packed.ResidualQuantizer : What it is.

        Examples
        --------
        >>> import numpy as np
        >>> from skcompressae import PackedCodes
        >>> rng = np.random.RandomState(0)
        >>> components = rng.standard_normal((16, 4))
        >>> codes = rng.standard_normal((50, 16)) * (rng.uniform(size=(50, 16)) < 0.2)
        >>> X = codes @ components + 0.1 * rng.standard_normal((50, 4))
        >>> packed = PackedCodes.pack(codes).with_residual_of(X, components, n_bytes=2, normalize=False)
        >>> packed.residual_quantizer
        ResidualQuantizer(n_bytes=2, n_features=4, rotation=True)
        """
        return self._residual_quantizer

    @property
    def bytes_per_row(self) -> int:
        """Bytes that one row takes.

        What one more row adds: its words, its scale and, where there is one, its residual code. Codebooks, which do not
        grow with the rows, are in `nbytes`.

        See Also
        --------
        nbytes : Bytes of the whole store.
        skcompressae.metrics.bytes_per_vector : The mean, codebooks included.

        Examples
        --------
        >>> import numpy as np
        >>> from skcompressae import PackedCodes
        >>> packed = PackedCodes.pack(np.array([[0.0, 3.0, 0.0, -1.0], [0.5, 0.0, 2.0, 0.0]]))
        >>> packed.bytes_per_row == packed.rows.shape[1] + 2
        True
        """
        residual = 0 if self._residual_codes is None else self._residual_codes.shape[1]
        return self._rows.shape[1] + self._quantizer._scale_bytes + residual

    @property
    def nbytes(self) -> int:
        """Bytes of all rows and of the codebooks.

        A file that :meth:`save` writes is hardly larger.

        See Also
        --------
        bytes_per_row : What grows with the rows.
        save : Writes them.

        Examples
        --------
        >>> import numpy as np
        >>> from skcompressae import PackedCodes
        >>> packed = PackedCodes.pack(np.array([[0.0, 3.0, 0.0, -1.0], [0.5, 0.0, 2.0, 0.0]]))
        >>> packed.nbytes - len(packed) * packed.bytes_per_row == packed.quantizer.levels.nbytes
        True
        """
        residual = 0 if self._residual_quantizer is None else self._residual_quantizer.nbytes
        return len(self) * self.bytes_per_row + self._quantizer.levels.nbytes + residual

    def __repr__(self) -> str:
        residual = "" if self._residual_codes is None else f", residual_bytes={self._residual_codes.shape[1]}"
        return (
            f"PackedCodes(n={len(self)}, n_components={self._n_components}, k={self._k}, "
            f"value_bits={self.value_bits}{residual}, bytes_per_row={self.bytes_per_row})"
        )
