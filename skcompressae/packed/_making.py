"""How packed codes come about: from matrices, from top-k pairs, from one another, with residual codes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from skcompressae.packed._quantizer import ValueQuantizer, as_packable_csr
from skcompressae.packed._residual import ResidualQuantizer, residual_codes_of
from skcompressae.packed._rows import MAX_COMPONENTS, check_sizes, pack_arrays

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
        kind: Literal["auto", "ranked", "uniform"] = "auto",
        n_threads: int = 1,
    ) -> PackedCodes:
        """Pack sparse or dense codes.

        Parameters
        ----------
        codes : sparse matrix or array of shape (n, n_components)
            Real and finite; values are taken as float32. Duplicates are summed, stored zeros dropped; the caller's
            arrays are not changed.
        value_bits : int, default=None
            Bits of a value with its sign; None takes the quantizer's, or 4. Up to 8 when ranked, 16 when uniform.
        k : int, default=None
            Entries a row can hold; None takes the quantizer's ranks, or the longest row.
        quantizer : ValueQuantizer, default=None
            None learns one on `codes`. Stores must share one to be concatenated. Repacking reproduces a store
            exactly only with its own: ``pack(p.to_csr(), k=p.k, quantizer=p.quantizer) == p``.
        kind : {"auto", "ranked", "uniform"}, default="auto"
            Quantiser to learn: "auto" is ranked up to 6 bits and uniform above.
        n_threads : int, default=1
            Threads that pack blocks of rows.

        Returns
        -------
        packed : PackedCodes

        Raises
        ------
        ValueError
            If the codes are not finite, a row has more than `k` nonzeros, its largest magnitude lies outside
            [2**-100, 2**100], or the arguments contradict each other.
        """
        csr = as_packable_csr(codes)
        n_components = csr.shape[1]
        if quantizer is not None and value_bits not in (None, quantizer.value_bits):
            raise ValueError(f"value_bits={value_bits} contradicts the quantizer's {quantizer.value_bits}")
        longest = max(1, int(np.diff(csr.indptr).max(initial=0)))
        if k is None:
            k = len(quantizer.levels) if quantizer is not None and quantizer.kind == "ranked" else longest
        check_sizes(n_components, k)
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
        packed : PackedCodes
        """
        indices = np.ascontiguousarray(indices)
        values = np.ascontiguousarray(values, dtype=np.float32)
        if indices.ndim != 2 or indices.dtype.kind not in "iu" or indices.shape != values.shape:
            raise ValueError(
                "indices and values must be 2-dimensional, of one shape, indices integers; got "
                f"{indices.dtype} {indices.shape} and {values.shape}"
            )
        n, k = indices.shape
        check_sizes(n_components, k)
        rows, scales = pack_arrays(
            np.arange(0, n * k + 1, k),
            # out of range stays out of range: a cast must not wrap an index into it
            np.clip(indices, -1, MAX_COMPONENTS).reshape(-1),
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

        Parameters
        ----------
        stores : sequence of PackedCodes
            At least one; with the same n_components, k, quantizer and residual quantizer.

        Returns
        -------
        packed : PackedCodes
        """
        stores = list(stores)
        if not stores:
            raise ValueError("stores must hold at least one PackedCodes, got none")
        first = stores[0]
        for i, other in enumerate(stores):
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
        """Return this store with a residual code per row; the words are shared, not copied.

        Parameters
        ----------
        residual_codes : uint8 array of shape (n, residual_quantizer.n_bytes)
            One residual code a row.
        residual_quantizer : ResidualQuantizer
            What the codes mean.

        Returns
        -------
        packed : PackedCodes
            A new store; this one is unchanged.
        """
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
        random_state: int = 0,
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
            Bytes of a residual code for a quantiser fitted here; divides n_features.
        quantizer : ResidualQuantizer, default=None
            A quantiser fitted before; exactly one of this and `n_bytes` is given. Stores share one to be concatenated.
        normalize : bool, default=True
            Whether codes stand for rows divided by their norm; False for codes at ``norm="input"`` and dot products.
        n_iter, random_state : int
            As for `ResidualQuantizer.fit`.

        Returns
        -------
        packed : PackedCodes
            A new store; this one is unchanged.

        Raises
        ------
        ValueError
            If shapes do not fit, or both or none of `n_bytes` and `quantizer` are given.
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
