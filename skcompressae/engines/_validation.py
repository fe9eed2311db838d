"""What every adapter checks before it hands anything to an engine, since engines check little or late."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_matrix, issparse
from sklearn.utils import check_array

from skcompressae._core._rows import canonical_csr
from skcompressae._neighbors_queries import is_packed

__all__ = [
    "check_codes",
    "check_count",
    "check_ids",
    "check_nonnegative",
    "check_split",
    "import_engine",
    "name_rows",
    "rows_of",
    "to_arrays",
]

_MAX_ID = 2**63 - 1


def import_engine(module: str, *, package: str, extra: str, caller: str) -> Any:
    """Import an engine's client, or say which extra installs it."""
    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(f"{caller} requires {package}: install the extra {extra!r} of skcompressae") from error


def check_codes(codes: Any, width: int, *, name: str = "codes", width_name: str = "n_components") -> csr_matrix:
    """Return codes as canonical CSR of finite float32 without stored zeros; the caller's matrix is not changed.

    Parameters
    ----------
    codes : sparse matrix or array, PackedCodes, or array-like of shape (n_rows, width)
    width : int
    name : str, default="codes"
        The argument's name, for messages.
    width_name : str, default="n_components"
        The width in terms of what the caller was given, for messages.

    Returns
    -------
    codes : CSR matrix of shape (n_rows, width), float32

    Raises
    ------
    ValueError
        If `codes` is not two-dimensional, has another width, indices out of range, or values that are not finite,
        as they are or in float32.
    """
    if is_packed(codes):
        codes = codes.to_csr()
    if issparse(codes):
        matrix: Any = codes
        codes = matrix.tocsr()
        codes.check_format(full_check=True)
    checked = check_array(
        codes, accept_sparse="csr", dtype=[np.float64, np.float32], ensure_min_samples=0, input_name=name
    )
    if checked.shape[1] != width:
        raise ValueError(f"{name} must have {width_name}={width} columns; got {checked.shape[1]}.")
    canonical = canonical_csr(checked)
    with np.errstate(over="ignore"):
        data = canonical.data.astype(np.float32)  # a copy: what follows changes it
    if not np.isfinite(data).all():
        raise ValueError(f"{name} must fit into float32, as engines store it; got {np.abs(canonical.data).max():g}.")
    result = csr_matrix((data, canonical.indices.copy(), canonical.indptr.copy()), shape=canonical.shape)
    result.eliminate_zeros()
    return result


def check_nonnegative(codes: csr_matrix, n_components: int, *, name: str, engine: str) -> None:
    """Raise where codes have negative values, and say what to do instead."""
    if codes.nnz and codes.data.min() < 0:
        raise ValueError(
            f"{name} must not be negative, since {engine} refuses negative values; got {codes.data.min():g}. Pass "
            f"split_signs({name}), with {2 * n_components} columns for {n_components} signed ones, and restore the "
            "signed order of what is found with rerank_signed."
        )


def check_split(codes: Any, n_components: int, *, name: str, engine: str) -> csr_matrix:
    """Check codes that went through `split_signs`; signed ones are refused whatever their width."""
    if getattr(codes, "shape", ())[1:] == (n_components,):
        # The commonest mistake is to forget the split; a non-negative matrix of that width is one too.
        checked = check_codes(codes, n_components, name=name)
        check_nonnegative(checked, n_components, name=name, engine=engine)
        raise ValueError(
            f"{name} must have 2 * n_components={2 * n_components} columns, those of split_signs({name}); "
            f"got {n_components}."
        )
    checked = check_codes(codes, 2 * n_components, name=name, width_name="2 * n_components")
    check_nonnegative(checked, n_components, name=name, engine=engine)
    return checked


def check_ids(ids: ArrayLike | None, n_rows: int, *, n_stored: int = 0) -> NDArray[np.int64]:
    """Return one id per row.

    Parameters
    ----------
    ids : array-like of int of shape (n_rows,) or None
        None numbers the rows from 0.
    n_rows : int
    n_stored : int, default=0
        Documents that the index already holds; numbering from 0 would take their ids.

    Returns
    -------
    ids : ndarray of shape (n_rows,), int64

    Raises
    ------
    ValueError
        If there is not one id per row, one is repeated or out of range, or None is given for an index in use.
    TypeError
        If ids are not integers.
    """
    if ids is None:
        if n_stored:
            raise ValueError(
                f"ids must be given for an index that holds documents ({n_stored} here): numbering from 0 would take "
                f"their ids. To continue, pass np.arange({n_stored}, {n_stored + n_rows})."
            )
        return np.arange(n_rows, dtype=np.int64)
    given = np.asarray(ids)
    if given.shape != (n_rows,):
        raise ValueError(f"ids must have one entry per row, shape ({n_rows},); got shape {given.shape}.")
    if given.dtype.kind not in "iu" and n_rows:
        raise TypeError(f"ids must be integers; got dtype {given.dtype}.")
    if n_rows:
        least, largest = int(given.min()), int(given.max())  # NumPy 1 compares uint64 with an int in float64
        if least < 0 or largest > _MAX_ID:
            raise ValueError(f"ids must lie in 0 .. 2**63 - 1; got {least if least < 0 else largest}.")
    unique, counts = np.unique(given, return_counts=True)
    if len(unique) < n_rows:
        raise ValueError(f"ids must be distinct; got {unique[counts > 1][0]} {counts.max()} times.")
    return given.astype(np.int64)


def check_count(value: Any, name: str, *, max_value: int | None = None) -> int:
    """Return a positive integer, or raise with its name."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"{name} must be a positive integer; got {value!r}.")
    if max_value is not None and value > max_value:
        raise ValueError(f"{name} must be at most {max_value}; got {value}.")
    return int(value)


def name_rows(rows: NDArray[np.intp]) -> str:
    """Name the first few of the rows that something is wrong with."""
    named = ", ".join(str(row) for row in rows[:5])
    return f"{len(rows)} row(s): {named}{', ...' if len(rows) > 5 else ''}"


def rows_of(codes: csr_matrix) -> Iterator[tuple[NDArray[np.int32], NDArray[np.float32]]]:
    """Yield indices and values of every row, as views."""
    for start, stop in zip(codes.indptr[:-1], codes.indptr[1:], strict=True):
        yield codes.indices[start:stop], codes.data[start:stop]


def to_arrays(
    hits: Iterable[Iterable[tuple[float, Any]]], n_queries: int, n_neighbors: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return hits, best first, as rectangular arrays; where a query has fewer, the score is -inf and the id -1.

    Raises
    ------
    ValueError
        If an id is not one that :func:`check_ids` takes, but of a document that others stored.
    """
    scores = np.full((n_queries, n_neighbors), -np.inf, dtype=np.float32)
    ids = np.full((n_queries, n_neighbors), -1, dtype=np.int64)
    for row, found in enumerate(hits):
        for column, (score, id_) in enumerate(found):
            if not isinstance(id_, int) or id_ > _MAX_ID:
                raise ValueError(
                    f"ids of the documents searched must be integers below 2**63; found {str(id_)!r}, which add() "
                    "did not store. Keep such documents in a collection of their own."
                )
            scores[row, column], ids[row, column] = score, id_
    return scores, ids
