"""How packed codes come about: from matrices, from top-k pairs, from one another, with residual codes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from skcompressae.packed._quantizer import Kind, ValueQuantizer, as_packable_csr
from skcompressae.packed._residual import ResidualQuantizer, check_residual_codes
from skcompressae.packed._residual_rows import residual_codes_of
from skcompressae.packed._rows import check_sizes, pack_arrays

if TYPE_CHECKING:
    from skcompressae.packed._store import PackedCodes

__all__ = ["PackedMakingMixin"]

Array: TypeAlias = NDArray[Any]


class PackedMakingMixin:
    """What makes `PackedCodes`."""

    __slots__ = ()

    @classmethod
    def pack(
        cls: Any,
        codes: Any,
        *,
        value_bits: int | None = None,
        k: int | None = None,
        quantizer: ValueQuantizer | None = None,
        kind: Kind = "auto",
        n_threads: int = 1,
    ) -> PackedCodes:
        """Pack sparse or dense codes.

        Indices and signs are kept exactly; magnitudes are rounded to the levels of `quantizer`, which keeps their order
        within a row. The input is not changed.

        Parameters
        ----------
        codes : sparse matrix or array of shape (n, n_components)
            Real and finite; values are taken as float32. Duplicates are summed, stored zeros dropped; the caller's
            arrays are not changed.
        value_bits : int, default=None
            Bits of a value with its sign; None takes the quantizer's, or 4. Up to 16 when uniform, else up to 8.
        k : int, default=None
            Entries a row can hold; None takes the quantizer's ranks, or the longest row.
        quantizer : ValueQuantizer, default=None
            None learns one on `codes`. Stores must share one to be concatenated. Repacking reproduces a store
            exactly only with its own: ``pack(p.to_csr(), k=p.k, quantizer=p.quantizer) == p``.
        kind : {"auto", "ranked", "uniform", "fixed"}, default="auto"
            Quantiser to learn: "auto" is ranked up to 6 bits and uniform above.
        n_threads : int, default=1
            Threads that pack blocks of rows.

        Returns
        -------
        PackedCodes
            One row for each row of `codes`.

        Raises
        ------
        TypeError
            If `quantizer` is no ValueQuantizer, or a size no int.
        ValueError
            If the codes are not finite, a row has more than `k` nonzeros, its largest magnitude lies outside
            [2**-100, 2**100], or the arguments contradict each other; of kind "fixed", if a row has none, or is far
            longer than those that were learned on.

        See Also
        --------
        from_topk : The same from pairs, without a matrix in between.
        to_csr : The way back.
        skcompressae.CompresSAETransformer.transform_packed : From embeddings.

        Examples
        --------
        >>> import scipy.sparse as sp
        >>> from skcompressae import PackedCodes
        >>> codes = sp.csr_array([[0.0, 3.0, 0.0, -1.0], [0.5, 0.0, 2.0, 0.0]])
        >>> PackedCodes.pack(codes, value_bits=8).to_csr().toarray().round(2)
        array([[ 0.  ,  3.  ,  0.  , -1.01],
               [ 0.5 ,  0.  ,  2.  ,  0.  ]], dtype=float32)
        """
        _check_quantizer(quantizer, is_optional=True)
        csr = as_packable_csr(codes)
        n_components = csr.shape[1]
        if quantizer is not None and kind not in ("auto", quantizer.kind):
            raise ValueError(f"kind={kind!r} contradicts the quantizer's {quantizer.kind!r}")
        if quantizer is not None and value_bits not in (None, quantizer.value_bits):
            raise ValueError(f"value_bits={value_bits} contradicts the quantizer's {quantizer.value_bits}")
        longest = max(1, int(np.diff(csr.indptr).max(initial=0)))
        if k is None:
            k = len(quantizer.levels) if quantizer is not None and quantizer._is_ranked else longest
        n_components, k = check_sizes(n_components, k)
        if longest > k:
            raise ValueError(f"codes have a row of {longest} nonzeros, more than k={k}")
        if quantizer is None:
            bits = 4 if value_bits is None else value_bits
            quantizer = ValueQuantizer.fit(csr, value_bits=bits, k=k, kind=kind)
        rows, scales = pack_arrays(
            csr.indptr,
            csr.indices,
            csr.data,
            n_components,
            k,
            quantizer,
            check_duplicates=False,
            n_threads=n_threads,
        )
        return cls(rows, scales, n_components=n_components, k=k, quantizer=quantizer)

    @classmethod
    def from_topk(
        cls: Any,
        indices: Array,
        values: Array,
        n_components: int,
        *,
        quantizer: ValueQuantizer,
        n_threads: int = 1,
    ) -> PackedCodes:
        """Pack top-k pairs as an encoder emits them, without building CSR.

        The quantiser has to exist already, since its ranks are learned from whole codes; its k is the width of
        `indices`.

        Parameters
        ----------
        indices : int array of shape (n, k)
            In any order, no index twice among the nonzero values of a row.
        values : float32 array of shape (n, k)
            Zeros are dropped.
        n_components : int
            Width of the code space.
        quantizer : ValueQuantizer
            How values are rounded.
        n_threads : int, default=1
            Threads that pack blocks of rows.

        Returns
        -------
        PackedCodes
            One row for each row of pairs.

        Raises
        ------
        TypeError
            If `quantizer` is no ValueQuantizer, or a size no int.
        ValueError
            If shapes or dtypes do not fit, an index is out of range or occurs twice, a value is not finite, the
            largest magnitude of a row lies outside [2**-100, 2**100], or `quantizer` was learned at another k.

        See Also
        --------
        pack : From a matrix, with a quantiser learned on it.
        skcompressae.packed.ValueQuantizer.fit : Learns one.

        Examples
        --------
        >>> import numpy as np
        >>> from skcompressae import PackedCodes
        >>> from skcompressae.packed import ValueQuantizer
        >>> indices, values = np.array([[1, 3], [2, 0]]), np.array([[3.0, -1.0], [2.0, 0.5]])
        >>> quantizer = ValueQuantizer.fit(np.array([[0.0, 3.0, 0.0, -1.0], [0.5, 0.0, 2.0, 0.0]]), value_bits=4)
        >>> packed = PackedCodes.from_topk(indices, values, 4, quantizer=quantizer)
        >>> packed.to_csr().indices
        array([1, 3, 0, 2], dtype=int32)
        """
        _check_quantizer(quantizer)
        indices = np.ascontiguousarray(indices)
        values = np.ascontiguousarray(values, dtype=np.float32)
        if indices.ndim != 2 or indices.dtype.kind not in "iu" or indices.shape != values.shape:
            raise ValueError(
                "indices and values must be 2-dimensional, of one shape, indices integers; got "
                f"{indices.dtype} {indices.shape} and {values.shape}"
            )
        n, k = indices.shape
        n_components, k = check_sizes(n_components, k)
        rows, scales = pack_arrays(
            np.arange(0, n * k + 1, k),
            indices.reshape(-1),
            values.reshape(-1),
            n_components,
            k,
            quantizer,
            check_duplicates=True,
            n_threads=n_threads,
        )
        return cls(rows, scales, n_components=n_components, k=k, quantizer=quantizer)

    @classmethod
    def concatenate(cls: Any, stores: Sequence[PackedCodes]) -> PackedCodes:
        """Join stores of one layout, row after row.

        Bytes are copied as they are, nothing is rounded again, so the rows decode to what they decoded to before.

        Parameters
        ----------
        stores : sequence of PackedCodes
            At least one; with the same n_components, k, quantizer and residual quantizer.

        Returns
        -------
        PackedCodes
            All rows, in the order of `stores`.

        Raises
        ------
        TypeError
            If one is no PackedCodes.
        ValueError
            If there are none, or one differs from the first in its layout.

        See Also
        --------
        pack : With `quantizer`, makes stores that can be joined.
        append_to : Joins a store to a file.

        Examples
        --------
        >>> import numpy as np
        >>> from skcompressae import PackedCodes
        >>> packed = PackedCodes.pack(np.array([[0.0, 3.0, 0.0, -1.0], [0.5, 0.0, 2.0, 0.0]]))
        >>> more = PackedCodes.pack(np.array([[0.0, 0.0, 1.0, 2.5]]), quantizer=packed.quantizer)
        >>> joined = PackedCodes.concatenate([packed, more])
        >>> len(joined), joined[:2] == packed
        (3, True)
        """
        stores = list(stores)
        if not stores:
            raise ValueError("stores must hold at least one PackedCodes, got none")
        first = stores[0]
        for i, other in enumerate(stores):
            if not isinstance(other, PackedMakingMixin):
                raise TypeError(f"stores[{i}] must be PackedCodes, got {type(other).__name__}; pack it first")
            difference = first._layout_difference(other)
            if difference:
                raise ValueError(f"stores[{i}] differs from stores[0] in {difference}; repack it first")
        residual = (
            None if first._residual_codes is None else np.concatenate([np.asarray(s._residual_codes) for s in stores])
        )
        rows, scales = np.concatenate([s._rows for s in stores]), np.concatenate([s._scales for s in stores])
        return first._with(rows, scales, residual, first._residual_quantizer)

    def with_residual(
        self: Any, residual_codes: NDArray[np.uint8], residual_quantizer: ResidualQuantizer
    ) -> PackedCodes:
        """Return this store with a residual code per row.

        For residual codes that exist already, such as those read back from elsewhere; :meth:`with_residual_of` computes
        them from the embeddings. The words are shared, not copied.

        Parameters
        ----------
        residual_codes : uint8 array of shape (n, residual_quantizer.n_bytes)
            One residual code a row.
        residual_quantizer : ResidualQuantizer
            What the codes mean.

        Returns
        -------
        PackedCodes
            A new store; this one is unchanged.

        Raises
        ------
        TypeError
            If `residual_quantizer` is no ResidualQuantizer.
        ValueError
            If the codes have another shape or dtype, or name centroids that are not there.

        See Also
        --------
        with_residual_of : Computes the codes.
        skcompressae.packed.ResidualQuantizer.encode : Encodes residuals.

        Examples
        --------
        >>> import numpy as np
        >>> from skcompressae import PackedCodes
        >>> rng = np.random.RandomState(0)
        >>> components = rng.standard_normal((16, 4))
        >>> codes = rng.standard_normal((50, 16)) * (rng.uniform(size=(50, 16)) < 0.2)
        >>> X = codes @ components + 0.1 * rng.standard_normal((50, 4))
        >>> from skcompressae.packed import ResidualQuantizer
        >>> packed = PackedCodes.pack(codes)
        >>> residuals = X - packed.to_csr() @ components
        >>> quantizer = ResidualQuantizer.fit(residuals, n_bytes=2, n_iter=5)
        >>> packed.with_residual(quantizer.encode(residuals), quantizer)
        PackedCodes(n=50, n_components=16, k=7, value_bits=4, residual_bytes=2, bytes_per_row=11)
        """
        if not isinstance(residual_quantizer, ResidualQuantizer):
            raise TypeError(f"residual_quantizer must be a ResidualQuantizer, got {residual_quantizer!r}")
        residual_codes = check_residual_codes(residual_codes, residual_quantizer, "residual_codes")
        return self._with(self._rows, self._scales, residual_codes, residual_quantizer)

    def with_residual_of(
        self: Any,
        X: Any,
        components: Any,
        *,
        n_bytes: int | None = None,
        quantizer: ResidualQuantizer | None = None,
        normalize: bool = True,
        n_iter: int = 20,
        random_state: int | np.random.RandomState | None = 0,
    ) -> PackedCodes:
        """Return this store with codes of what its rows leave of the embeddings, for reranking.

        The residual is ``x / ||x|| - x_hat`` with ``x_hat = code @ components`` as unpacked, so it also carries what
        quantising the values lost. It is smallest for codes stored at ``norm=None``.

        Parameters
        ----------
        X : float array of shape (n, n_features)
            The embeddings whose codes these are, in order.
        components : float array of shape (n_components, n_features)
            The decoder.
        n_bytes : int, default=None
            Bytes of a residual code, at most n_features, for a quantiser fitted here.
        quantizer : ResidualQuantizer, default=None
            A quantiser fitted before; exactly one of this and `n_bytes` is given. Stores share one to be concatenated.
        normalize : bool, default=True
            Whether codes stand for rows divided by their norm; must be False for codes at ``norm="input"``, the default
            of the compressor. A warning says so where the lengths of the reconstructions tell.
        n_iter : int, default=20
            As for `ResidualQuantizer.fit`.
        random_state : int, RandomState instance or None, default=0
            As for `ResidualQuantizer.fit`.

        Returns
        -------
        PackedCodes
            A new store; this one is unchanged.

        Raises
        ------
        TypeError
            If `quantizer` is no ResidualQuantizer, or `X` or `components` are no arrays, sparse or not of real numbers.
        ValueError
            If shapes do not fit, both or none of `n_bytes` and `quantizer` are given, `X` or `components` are not
            finite, or what is left is too long for float32.

        See Also
        --------
        with_residual : Takes codes that exist already.
        skcompressae.CodeNearestNeighbors : Its `rerank` uses them.

        Examples
        --------
        >>> import numpy as np
        >>> from skcompressae import PackedCodes
        >>> rng = np.random.RandomState(0)
        >>> components = rng.standard_normal((16, 4))
        >>> codes = rng.standard_normal((50, 16)) * (rng.uniform(size=(50, 16)) < 0.2)
        >>> X = codes @ components + 0.1 * rng.standard_normal((50, 4))
        >>> packed = PackedCodes.pack(codes).with_residual_of(X, components, n_bytes=2, normalize=False)
        >>> left = np.linalg.norm(X - packed.to_csr() @ components)
        >>> refined = packed.to_csr() @ components + packed.residual_quantizer.decode(packed.residual_codes)
        >>> bool(np.linalg.norm(X - refined) < left)
        True
        """
        codes, fitted = residual_codes_of(
            self,
            X,
            components,
            n_bytes=n_bytes,
            quantizer=quantizer,
            normalize=normalize,
            n_iter=n_iter,
            random_state=random_state,
        )
        return self.with_residual(codes, fitted)


def _check_quantizer(quantizer: Any, *, is_optional: bool = False) -> None:
    if not isinstance(quantizer, ValueQuantizer) and not (is_optional and quantizer is None):
        wanted = "a ValueQuantizer or None" if is_optional else "a ValueQuantizer"
        raise TypeError(f"quantizer must be {wanted}, got {quantizer!r}")
