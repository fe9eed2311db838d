"""The methods that use a fitted compressor: transform and its kin, validation of rows, the effective parameters."""

from __future__ import annotations

import warnings
from copy import copy
from numbers import Integral
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn import get_config
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_scalar
from sklearn.utils.validation import assert_all_finite, check_array, check_is_fitted, validate_data

from skcompressae import _encoding
from skcompressae._compat import csr_type, validate_parameters
from skcompressae._core._callers import caller_level
from skcompressae._core._threads import copy_rows, effective_n_threads, row_blocks, run_blocks
from skcompressae._expanding import expand_queries
from skcompressae._model_weights import encoder_scale, flattening, scales_mean_apart
from skcompressae._plain_rows import (
    ROW_DTYPES,
    are_plain_codes,
    are_plain_rows,
    code_dtype,
    own_dtype_first,
    refuse_column_of_lists,
    refuse_unread_lists,
)
from skcompressae._recipes import RECIPES
from skcompressae._residual_codes import with_residual_codes
from skcompressae._restoring import twin_of
from skcompressae._torch._device_choice import CPU, resolve_device
from skcompressae._torch._weights import Weights
from skcompressae.packed import PackedCodes, ResidualQuantizer, ValueQuantizer
from skcompressae.packed._quantizer import Kind, quantizer_rows
from skcompressae.packed._rows import counted_from

__all__ = ["TransformMethodsMixin"]

# Rows whose finiteness is checked all at once.
_FEW_ROWS = 32
_ENCODING_PARAMETERS = (
    "k", "recipe", "coding", "candidate_factor", "norm", "flattening", "residual_bytes", "precision", "sparse_output",
    "device",
)  # fmt: skip


# TransformerMixin must be a base of the class that defines `transform`: only there is it wrapped for `set_output`.
class TransformMethodsMixin(ClassNamePrefixFeaturesOutMixin, TransformerMixin):
    """What a fitted `CompresSAETransformer` does with rows and codes."""

    _parameter_constraints: dict[str, list[Any]]
    k: int
    recipe: str
    coding: str
    candidate_factor: float
    norm: str | None
    residual_bytes: int | None
    precision: str
    sparse_output: bool
    device: str
    encoder_weights_: NDArray[np.float32]
    encoder_bias_: NDArray[np.float32]
    components_: NDArray[np.float32]
    latent_rms_: NDArray[np.float64]
    residual_quantizer_: ResidualQuantizer | None
    residual_norm_: str | None
    k_: int

    def transform(self, X: ArrayLike) -> Any:
        """Encode rows as sparse codes.

        The encoder's product, a choice of `k` latents and, in the default recipe, a least-squares fit of their values.
        A row's code does not depend on the rows beside it; with ``precision="bfloat16"`` the rows of a call may decide
        between latents that rounding cannot tell apart.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            May be memory-mapped; it is read block by block.

        Returns
        -------
        CSR matrix (or array) or ndarray of shape (n_samples, n_components)
            Of dtype float32 for float32 and float16 input, else float64. Canonical: ascending indices, no explicit
            zeros, at most k entries a row; an all-zero row has none. Exactly k, but where a fitted value is zero: k
            latents can be more than it takes to reconstruct a row exactly, as where k exceeds n_features.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            If called before fit.
        ValueError
            If X is not a finite, real, dense 2-d array of `n_features_in_` columns.
        TypeError
            If X is nothing that NumPy can read as an array, such as a tensor on another device or of bfloat16.

        See Also
        --------
        transform_packed : The same codes in about a quarter of the bytes.
        transform_query : What to send to an engine that compares by sparse dot products.
        inverse_transform : The way back.

        Examples
        --------
        >>> import numpy as np
        >>> from skcompressae import CompresSAETransformer
        >>> X = np.random.RandomState(0).standard_normal((200, 8)).astype(np.float32)
        >>> compressor = CompresSAETransformer(n_components=16, k=3, max_iter=5, random_state=0).fit(X)
        >>> codes = compressor.transform(X)
        >>> codes.shape, codes.dtype, codes.nnz // len(X)
        ((200, 16), dtype('float32'), 3)
        """
        model = self._as_it_is()
        rows = model._check_rows(X, reset=False)
        encoder = model._encoder()
        k = model._effective_k(encoder.n_components)
        dtype = code_dtype(rows)
        if not model.sparse_output:
            dense = np.zeros((len(rows), encoder.n_components), dtype=dtype)
        indices = np.empty((len(rows) if model.sparse_output else 0, k), dtype=np.int32)
        values = np.empty((indices.shape[0], k), dtype=dtype)
        for where, block_indices, block_values in encoder.encode_blocks(rows, k, norm=model.norm, dtype=dtype):
            if model.sparse_output:
                copy_rows(indices[where], block_indices)
                copy_rows(values[where], block_values)
            else:
                np.put_along_axis(dense[where], block_indices, block_values, axis=1)
        if not model.sparse_output:
            return dense
        return _encoding.codes_to_csr(indices, values, encoder.n_components, csr_type())

    def transform_packed(
        self, X: ArrayLike, *, value_bits: int = 4, quantizer: ValueQuantizer | None = None, kind: Kind = "auto"
    ) -> PackedCodes:
        """Encode rows straight into packed codes, with residual codes where `residual_bytes` asks for them.

        Rows go from embeddings to words block by block, so no CSR matrix of all codes is ever in memory.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            As in :meth:`transform`.
        value_bits : int, default=4
            Bits per value, sign included; ignored where `quantizer` is given.
        quantizer : ValueQuantizer or None, default=None
            How values are rounded. None learns one from up to 4,096 evenly spaced rows of X. Pass
            ``first.quantizer`` when packing further blocks that are to be concatenated with `first`.
        kind : {"auto", "ranked", "uniform", "fixed"}, default="auto"
            Of the quantiser that is learned. "fixed" stores no scale per row: not for ``norm="input"`` or zero rows.

        Returns
        -------
        PackedCodes of shape (n_samples, n_components)
            One code a row of X.

        Raises
        ------
        ValueError
            If X is not as :meth:`transform` requires, `value_bits` is out of range, `quantizer` was learned at another
            k, or the largest magnitude of a code lies outside [2**-100, 2**100], as it can for ``norm="input"``; if
            `residual_bytes` or `norm` is not what the model was fitted with, where there are residual codes.
        TypeError
            If `quantizer` is no ValueQuantizer.

        See Also
        --------
        transform : Codes as a SciPy matrix.
        PackedCodes.with_residual_of : Adds residual codes to codes that have none.
        PackedCodes.concatenate : Joins blocks packed with one quantiser.

        Examples
        --------
        >>> import numpy as np
        >>> from skcompressae import CompresSAETransformer
        >>> X = np.random.RandomState(0).standard_normal((200, 8)).astype(np.float32)
        >>> compressor = CompresSAETransformer(n_components=16, k=3, max_iter=5, random_state=0).fit(X)
        >>> first = compressor.transform_packed(X[:100])
        >>> second = compressor.transform_packed(X[100:], quantizer=first.quantizer)
        >>> first.concatenate([first, second]).shape
        (200, 16)
        """
        model = self._as_it_is()
        rows = model._check_rows(X, reset=False)
        if quantizer is not None and not isinstance(quantizer, ValueQuantizer):
            raise TypeError(f"quantizer must be a ValueQuantizer or None; got {quantizer!r}.")
        if model.norm == "input" and "fixed" in (kind, getattr(quantizer, "kind", None)):
            raise ValueError("kind='fixed' stores no scale per row, so norm must be None or 'unit'; got norm='input'.")
        encoder = model._encoder()
        k = model._effective_k(encoder.n_components)
        if quantizer is None:
            sample = rows[quantizer_rows(len(rows))]
            codes = _encoding.codes_to_csr(
                *encoder.encode(sample, k, norm=model.norm, dtype=np.float32), encoder.n_components
            )
            quantizer = ValueQuantizer.fit(codes, value_bits=value_bits, k=k, kind=kind)
        blocks, n_threads = [], effective_n_threads()
        for where, indices, values in encoder.encode_blocks(rows, k, norm=model.norm, dtype=np.float32):
            try:
                block = PackedCodes.from_topk(
                    indices, values, encoder.n_components, quantizer=quantizer, n_threads=n_threads
                )
                blocks.append(with_residual_codes(block, rows[where], model))
            except ValueError as error:
                if where.start == 0:
                    raise
                raise counted_from(where.start, error) from error
        return PackedCodes.concatenate(blocks)

    def inverse_transform(self, X: Any) -> NDArray[np.floating[Any]]:
        """Decode codes into embeddings.

        The reconstruction ``X @ components_``. It points where the row pointed; its length is what `norm` says.

        Parameters
        ----------
        X : sparse matrix, array-like or PackedCodes of shape (n_samples, n_components)
            Codes, of this estimator or any other source of the right width.

        Returns
        -------
        ndarray of shape (n_samples, n_features)
            Of dtype float32 for float32 codes, else float64.

        Raises
        ------
        ValueError
            If the codes have another width than n_components, are not finite, or are a sparse matrix with indices
            outside of it.
        TypeError
            If X is nothing that NumPy can read as an array.

        See Also
        --------
        transform : Makes codes.
        score : How well directions are kept.
        skcompressae.metrics.mean_cosine_similarity : The same of any two tables.

        Examples
        --------
        >>> import numpy as np
        >>> from skcompressae import CompresSAETransformer
        >>> X = np.random.RandomState(0).standard_normal((200, 8)).astype(np.float32)
        >>> compressor = CompresSAETransformer(n_components=16, k=3, max_iter=5, random_state=0).fit(X)
        >>> x_hat = compressor.inverse_transform(compressor.transform(X))
        >>> x_hat.shape
        (200, 8)
        >>> bool(np.allclose(np.linalg.norm(x_hat, axis=1), np.linalg.norm(X, axis=1), rtol=1e-4))
        True
        """
        model = self._as_it_is()
        if isinstance(X, PackedCodes):
            X = X.to_csr()
        codes = model._check_codes(X)
        device = resolve_device(model.device)
        # float64 codes are decoded in float64, which MPS does not have.
        on_device = device.type == "cuda" or (device.type == "mps" and codes.dtype == np.float32)
        return model._encoder(device if on_device else CPU).decode(codes)

    def transform_query(self, X: ArrayLike, n_nonzero: int | None = None) -> Any:
        """Expand dense queries into code space, for engines of sparse dot products.

        The row of a query q is ``t = D q / ||q||``. Its dot product with a code stored under ``norm="unit"`` is the
        cosine of q and the reconstruction, exactly; the query itself is never compressed.

        Parameters
        ----------
        X : array-like of shape (n_queries, n_features)
            Dense queries.
        n_nonzero : int or None, default=None
            Entries kept per query: those with the largest ``|t_j| * sqrt(latent_rms_[j]) * |p_j| ** 0.25``, between
            what an entry is worth to the documents that have it, how many have it, and, by the query's own
            pre-activation p_j, how many of the query's neighbours do. None keeps all n_components.

        Returns
        -------
        CSR matrix (or array) of shape (n_queries, n_components)
            Expanded queries, with the queries' dtype as in :meth:`transform`.

        Raises
        ------
        TypeError
            If `n_nonzero` is no integer.
        ValueError
            If `n_nonzero` is below 1, or X is not as :meth:`transform` requires.

        See Also
        --------
        transform : Codes, which documents are stored as.
        CodeNearestNeighbors : Does this inside, in its asymmetric mode.
        skcompressae.engines.QdrantIndex : An engine that takes such queries.

        Examples
        --------
        >>> import numpy as np
        >>> from skcompressae import CompresSAETransformer
        >>> X = np.random.RandomState(0).standard_normal((200, 8)).astype(np.float32)
        >>> compressor = CompresSAETransformer(n_components=16, k=3, max_iter=5, random_state=0).fit(X)
        >>> documents = compressor.set_params(norm="unit").transform(X)
        >>> scores = compressor.transform_query(X[:3]) @ documents.T
        >>> compressor.transform_query(X[:3], n_nonzero=6).nnz
        18
        >>> x_hat = compressor.inverse_transform(documents)
        >>> bool(np.allclose(scores.toarray(), X[:3] @ x_hat.T / np.linalg.norm(X[:3], axis=1)[:, None], atol=1e-5))
        True
        """
        model = self._as_it_is()
        if isinstance(n_nonzero, bool):  # an Integral
            raise TypeError("n_nonzero must be an instance of int, not bool.")
        if n_nonzero is not None:
            check_scalar(n_nonzero, "n_nonzero", Integral, min_val=1)
        rows = model._check_rows(X, reset=False)
        dtype = code_dtype(rows)
        n_kept = min(n_nonzero or model.components_.shape[0], model.components_.shape[0])
        indices = np.empty((len(rows), n_kept), dtype=np.int32)
        values = np.empty((len(rows), n_kept), dtype=dtype)
        importance = np.sqrt(model.latent_rms_).astype(np.float32)
        weights, divisors = model._weights(), model._encoder_divisors()
        for start, stop in row_blocks(len(rows), _encoding.BLOCK_ROWS):
            indices[start:stop], values[start:stop] = expand_queries(
                rows[start:stop], weights, importance, n_kept, divisors=divisors
            )
        return _encoding.codes_to_csr(indices, values, model.components_.shape[0], csr_type())

    def score(self, X: ArrayLike, y: Any = None) -> float:
        """Return the mean cosine similarity of the rows of X and their reconstructions.

        All-zero rows, which come back exactly, count as 1.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows to encode and reconstruct.
        y : None
            Ignored.

        Returns
        -------
        float
            At most 1; larger is better.

        See Also
        --------
        skcompressae.metrics.RetrievalRecallScorer : Scores the neighbours that are found.
        skcompressae.metrics.mean_cosine_similarity : The same of any two tables.

        Examples
        --------
        >>> import numpy as np
        >>> from skcompressae import CompresSAETransformer
        >>> X = np.random.RandomState(0).standard_normal((200, 8)).astype(np.float32)
        >>> compressor = CompresSAETransformer(n_components=16, k=3, max_iter=5, random_state=0).fit(X)
        >>> score = compressor.score(X)
        >>> bool(0 < score < 1)
        True
        """
        model = self._as_it_is()
        rows = model._check_rows(X, reset=False)
        encoder = model._encoder()
        k = model._effective_k(encoder.n_components)
        return float(encoder.cosines(rows, k, norm=model.norm).sum()) / len(rows)

    @property
    def _n_features_out(self) -> int:
        return int(self.components_.shape[0])

    def __sklearn_is_fitted__(self) -> bool:
        """Tell scikit-learn whether there are weights; validation alone leaves attributes too."""
        return hasattr(self, "components_")

    def _as_it_is(self) -> TransformMethodsMixin:
        """Return a fitted estimator of valid parameters that stays as this one is now.

        Other threads may set parameters or fit it again meanwhile.
        """
        self._check_is_fitted()
        twin = twin_of(self)
        twin._check_encoding_parameters()
        return twin

    def _check_is_fitted(self) -> None:
        if not hasattr(self, "components_"):  # scikit-learn asks for the tags first, which takes 20 microseconds
            check_is_fitted(self)

    def _check_rows(self, X: ArrayLike, *, reset: bool) -> NDArray[Any]:
        """Validate rows without copying them whole: dtype, shape, names at once, finiteness block by block."""
        has_names = hasattr(self, "feature_names_in_")  # then scikit-learn warns of rows without
        if not reset and not has_names and are_plain_rows(X, ROW_DTYPES, self.n_features_in_):
            rows = cast("NDArray[Any]", X)
        else:
            try:
                rows = validate_data(
                    self, X, reset=reset, dtype=own_dtype_first(X, ROW_DTYPES), ensure_all_finite=False
                )
            except ValueError as error:
                refuse_unread_lists(X, error)
                raise
            if len(getattr(X, "shape", rows.shape)) == 1:  # a Series of arrays, whose features would not be counted
                refuse_column_of_lists()
        if not reset and rows.shape[1] != self.encoder_weights_.shape[1]:  # kernels would read beyond the rows
            raise ValueError(
                f"X has {rows.shape[1]} features, but the weights have {self.encoder_weights_.shape[1]}: another "
                "thread is fitting the compressor again."
            )
        if rows.dtype.kind == "f" and not get_config()["assume_finite"]:  # which other threads would not know of
            self._check_finite(rows)
        return rows

    def _check_finite(self, rows: NDArray[Any]) -> None:
        if len(rows) <= _FEW_ROWS and np.isfinite(rows).all():  # for one row, a sum's errors and threads take longer
            return
        bad: list[int] = []

        def check(start: int, stop: int) -> None:
            with np.errstate(over="ignore", invalid="ignore"):
                if np.isfinite(rows[start:stop].sum()):
                    return
            is_finite = np.isfinite(rows[start:stop]).all(axis=1)
            if not is_finite.all():  # or the sum is too large
                bad.append(start + int(np.argmin(is_finite)))

        run_blocks(check, len(rows), _encoding.BLOCK_ROWS, effective_n_threads())
        if bad:
            row = min(bad)
            try:
                # without the estimator's name, with which scikit-learn would recommend estimators of targets
                assert_all_finite(rows[row : row + 1], input_name="X")
            except ValueError as error:
                raise ValueError(f"{str(error).rstrip('.')}, first in row {row}.") from None

    def _check_codes(self, X: Any) -> Any:
        """Validate codes: dtype, shape, finiteness and, of sparse ones, that every index is one of a latent."""
        dtypes: list[type] = [np.float64, np.float32]
        n_components = self.components_.shape[0]
        if not are_plain_codes(X, dtypes, n_components):
            dtypes = own_dtype_first(X, dtypes)
            X = check_array(X, accept_sparse="csr", dtype=dtypes, ensure_all_finite=False, estimator=self)
        if not get_config()["assume_finite"]:
            assert_all_finite(X, input_name="X")  # without the estimator's name, as of rows
        if X.shape[1] != n_components:
            raise ValueError(
                f"X has {X.shape[1]} columns, but the codes of this {type(self).__name__} have "
                f"n_components={n_components}."
            )
        if not isinstance(X, np.ndarray):
            try:
                copy(X).check_format(full_check=True)  # of a shallow copy: SciPy cuts spare room off what it checks
            except ValueError as error:
                raise ValueError(f"X must be a well-formed sparse matrix; SciPy says of it: {error}.") from error
        return X

    def _check_encoding_parameters(self) -> None:
        """Validate the parameters that may change after fit; all would take longer than encoding a row."""
        validate_parameters(self, _ENCODING_PARAMETERS)

    def _resolved(self, name: str) -> Any:
        value = getattr(self, name)
        return getattr(RECIPES[self.recipe], name) if value == "auto" else value

    def _effective_k(self, n_components: int, *, is_fitting: bool = False) -> int:
        """Return `k`, clipped to n_components with a warning; fit's is not repeated afterwards."""
        if self.k > n_components and (is_fitting or self.k_ < n_components):
            warnings.warn(
                f"k={self.k} is above n_components={n_components}; every latent will be in every code. "
                f"Using k={n_components}.",
                UserWarning,
                stacklevel=caller_level(),
            )
        return int(min(self.k, n_components))

    def _weights(self) -> Weights:
        """Return the weights as kernels read them, whatever arrays a user has set: they take them for float32."""
        return Weights(*map(_as_float32, (self.encoder_weights_, self.encoder_bias_, self.components_)))

    def _encoder_divisors(self) -> NDArray[np.float32] | None:
        """Return what pre-activations are divided by: the encoder's scale, where they are the values of a code."""
        scale = encoder_scale(self) if self._resolved("coding") == "activations" else None
        return None if scale is None else _as_float32(scale)

    def _encoder(self, device: Any = None) -> _encoding.Encoder:
        return _encoding.Encoder(
            self._weights(),
            coding=self._resolved("coding"),
            candidate_factor=self.candidate_factor,
            precision=self.precision,
            device=device or resolve_device(self.device),
            scales_mean_apart=scales_mean_apart(self),
            flattening=flattening(self),
            divisors=self._encoder_divisors(),
        )


def _as_float32(array: NDArray[Any]) -> NDArray[np.float32]:
    """Return the array itself, if it is a C-contiguous one of float32, as devices keep what they know again."""
    is_fit = array.dtype == np.float32 and array.flags.c_contiguous
    return array if is_fit else np.ascontiguousarray(array, dtype=np.float32)
