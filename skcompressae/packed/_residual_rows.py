"""What packed codes leave of the rows that they stand for, and its codes."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from skcompressae._core._callers import caller_level
from skcompressae._core._rows import unit_rows
from skcompressae._core._threads import row_blocks
from skcompressae.packed._residual import ResidualQuantizer, training_rows

__all__ = ["residual_codes_of", "residuals_of"]

_BLOCK_ROWS = 4096
# Reconstructions are as long as what they stand for if they are so within the one factor, and are not beyond the other;
# so many rows tell.
_AS_LONG, _OF_OTHER_LENGTH = 1.2, 1.5
_ROWS_COMPARED = 1024


def residuals_of(store: Any, X: NDArray[Any], components: NDArray[Any], *, normalize: bool) -> NDArray[np.float32]:
    """Return what the rows of a packed store leave of embeddings, or, with `normalize`, of unit rows."""
    rows = unit_rows(X)[0] if normalize and np.isfinite(X).all() else np.asarray(X, dtype=np.float32)
    if not np.isfinite(rows).all():
        raise ValueError("X must be finite in float32, but is not")
    return np.asarray(rows - store.to_csr() @ components, dtype=np.float32)


def _real(name: str, wanted: str, given: Any) -> NDArray[Any]:
    """Return an argument as an array of real numbers; `wanted` tells whoever gave something else what it is."""
    if sp.issparse(given):
        raise TypeError(f"{name} must be dense, got a sparse {type(given).__name__}")
    array = np.asarray(given)
    if array.ndim == 0:
        raise TypeError(f"{name} must be {wanted}, got {given!r}")
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{name} must hold real numbers, got {array.dtype}")
    return array


def residual_codes_of(
    store: Any,
    X: Any,
    components: Any,
    *,
    n_bytes: int | None,
    quantizer: ResidualQuantizer | None,
    normalize: bool,
    n_iter: int,
    random_state: int | np.random.RandomState | None,
) -> tuple[NDArray[np.uint8], ResidualQuantizer]:
    """Return the residual codes of the rows of a packed store and their quantiser; see `with_residual_of`."""
    X = _real("X", "the embeddings, an array of shape (n, n_features)", X)
    decoder = "the components_ of the compressor, an array of shape (n_components, n_features)"
    components = _real("components", decoder, components)
    if components.ndim != 2 or components.shape[0] != store.n_components:
        raise ValueError(f"components must have {store.n_components} rows, got shape {components.shape}")
    if not np.isfinite(components).all():
        raise ValueError("components must be finite, got NaN or infinity")
    if X.shape != (len(store), components.shape[1]):
        raise ValueError(f"X must have shape {(len(store), components.shape[1])}, got {X.shape}")
    if (n_bytes is None) == (quantizer is None):
        raise ValueError(f"give either n_bytes or quantizer, got n_bytes={n_bytes!r} and quantizer={quantizer!r}")
    if quantizer is not None and not isinstance(quantizer, ResidualQuantizer):
        raise TypeError(f"quantizer must be a ResidualQuantizer or None, got {quantizer!r}")

    def residuals(rows: NDArray[np.intp]) -> NDArray[np.float32]:
        try:
            return residuals_of(store.take(rows), X[rows], components, normalize=normalize)
        except ValueError as error:
            raise ValueError(f"{error} in the rows from {rows[0]} to {rows[-1]}") from error

    if quantizer is None and n_bytes is not None:
        sample = training_rows(len(store), components.shape[1], random_state)
        learned_on = np.empty((len(sample), X.shape[1]), dtype=np.float32)
        for start, stop in row_blocks(len(sample), _BLOCK_ROWS):
            learned_on[start:stop] = residuals(sample[start:stop])
        quantizer = ResidualQuantizer.fit(learned_on, n_bytes, n_iter=n_iter, random_state=random_state)
    if quantizer is None or quantizer.n_features != components.shape[1]:
        raise ValueError(f"quantizer must have {components.shape[1]} features, got {quantizer!r}")
    codes = np.empty((len(store), quantizer.n_bytes), dtype=np.uint8)
    for start, stop in row_blocks(len(store), _BLOCK_ROWS):
        codes[start:stop] = quantizer.encode(residuals(np.arange(start, stop)))
    _warn_of_other_lengths(store, X, components, normalize=normalize)
    return codes, quantizer


def _warn_of_other_lengths(store: Any, X: NDArray[Any], components: NDArray[Any], *, normalize: bool) -> None:
    """Warn where codes are as long as what `normalize` says that they do not stand for, and not as what it says."""
    rows = np.unique(np.linspace(0, len(store) - 1, min(len(store), _ROWS_COMPARED)).astype(np.intp))
    with np.errstate(over="ignore"):  # of lengths beyond float64, which tell nothing
        lengths = np.linalg.norm(X[rows].astype(np.float64), axis=1)
        hats = np.linalg.norm(store.take(rows).to_csr() @ components.astype(np.float64), axis=1)
    is_usable = (lengths > 0) & np.isfinite(lengths) & (hats > 0) & np.isfinite(hats)
    if not is_usable.any():
        return
    of_rows, of_unit_rows = (
        float(np.exp(np.median(np.abs(np.log(hats[is_usable]) - np.log(whole))))) for whole in (lengths[is_usable], 1.0)
    )
    said, other = (of_unit_rows, of_rows) if normalize else (of_rows, of_unit_rows)
    if said > _OF_OTHER_LENGTH and other < _AS_LONG:
        is_as_long = "the rows of X, as at norm='input'" if normalize else "rows divided by their norm"
        warnings.warn(
            f"normalize must be {not normalize} for codes whose reconstructions are as long as {is_as_long}; got "
            f"{normalize}. What residual codes then keep is mostly the difference in length (a factor of {said:.3g}), "
            "and a search that reranks by them may find less than without.",
            UserWarning,
            stacklevel=caller_level(),
        )
