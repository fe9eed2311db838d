"""Encode Dask arrays and data frames, in threads, processes or on a cluster; Dask schedules, this module only maps."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from numbers import Integral
from typing import Any

import numpy as np
from sklearn.utils import check_scalar

from skcompressae._core._threads import exactly_n_threads
from skcompressae._transformer import CompresSAETransformer
from skcompressae._worker_model import bare_model, encode_rows
from skcompressae.arrow import ArrowEncoder

__all__ = ["encode_array", "encode_dataframe"]


def encode_array(model: CompresSAETransformer, X: Any, *, client: Any = None, n_threads: int = 1) -> Any:
    """Encode the rows of a Dask array.

    Nothing is computed until the result is asked for, and then chunk by chunk. On a cluster the model travels to each
    worker once, and again to one that takes the place of a lost one.

    Parameters
    ----------
    model : CompresSAETransformer
        Fitted. Its state of now is used, whatever happens to it before the result is computed.
    X : dask.array.Array of shape (n_samples, n_features)
        Of float16, float32 or float64; row chunks of any size, known or not. Columns in several chunks are merged.
    client : distributed.Client or None, default=None
        The cluster to send the model to, at once. None means the current client; where there is none, the model
        becomes part of the graph.
    n_threads : int, default=1
        Threads of one task. Dask runs as many tasks at a time as its workers have threads, so 1 fills every core.

    Returns
    -------
    dask.array.Array of shape (n_samples, n_components)
        Chunks are SciPy CSR matrices (or arrays, as scikit-learn is configured), float32 for float32 and float16 rows,
        else float64. ``compute()`` stacks them.

    Raises
    ------
    TypeError
        If `model` is no CompresSAETransformer or `X` no Dask array of floats.
    ValueError
        If `X` is not two-dimensional or has another width than the model. NaN or infinity in `X` raise one when
        computed.

    See Also
    --------
    encode_dataframe : For an embedding column.
    skcompressae.CompresSAETransformer.transform : In one process.

    Examples
    --------
    >>> import dask.array as da, numpy as np
    >>> from skcompressae import CompresSAETransformer
    >>> from skcompressae.dask import encode_array
    >>> X = np.random.RandomState(0).standard_normal((200, 8)).astype(np.float32)
    >>> compressor = CompresSAETransformer(n_components=16, k=3, max_iter=5, random_state=0).fit(X)
    >>> codes = encode_array(compressor, da.from_array(X, chunks=(50, 8)))
    >>> codes
    dask.array<..., shape=(200, 16), dtype=float32, chunksize=(50, 16), chunktype=scipy.csr_matrix>
    >>> bool((codes.compute(scheduler="synchronous") != compressor.transform(X)).nnz == 0)
    True
    """
    da = _import_dask("array")
    model = bare_model(model)
    check_scalar(n_threads, "n_threads", Integral, min_val=1)
    if not isinstance(X, da.Array) or X.dtype not in (np.float16, np.float32, np.float64):
        what = f"a Dask array of {X.dtype}" if isinstance(X, da.Array) else type(X).__name__
        raise TypeError(f"X must be a dask.array.Array of float16, float32 or float64; got {what}.")
    if X.ndim != 2 or X.shape[1] != model.n_features_in_:
        raise ValueError(f"X must have shape (n_samples, {model.n_features_in_}), as the model; got {X.shape}.")
    if X.numblocks[1] > 1:
        X = X.rechunk({1: -1})
    n_components = model.components_.shape[0]
    meta = encode_rows(model, np.empty((0, model.n_features_in_), dtype=X.dtype), "X")
    return da.map_blocks(
        _encode_block,
        X,
        _shared(model, client),
        n_threads,
        meta=meta,
        dtype=meta.dtype,
        chunks=(X.chunks[0], (n_components,)),
        name=None,
    )


def encode_dataframe(
    model: CompresSAETransformer,
    df: Any,
    column: str = "embedding",
    *,
    client: Any = None,
    n_threads: int = 1,
    **options: Any,
) -> Any:
    """Encode the embedding column of a Dask data frame.

    Lazily: index, partitions and other columns stay as they are, and the code columns are Arrow lists. Write them by
    ``to_parquet`` with the encoder's `metadata`, and :func:`~skcompressae.arrow.codes_from_arrow` reads them back.

    Parameters
    ----------
    model : CompresSAETransformer
        Fitted. Its state of now is used, whatever happens to it before the result is computed.
    df : dask.dataframe.DataFrame
        Its embedding column holds Arrow lists, or NumPy arrays or lists of floats as objects.
    column : str, default="embedding"
        The embedding column.
    client : distributed.Client or None, default=None
        As in :func:`encode_array`.
    n_threads : int, default=1
        As in :func:`encode_array`.
    **options
        `layout`, `value_type`, `split_signs`, `code_columns` and `keep_embedding` of
        :class:`~skcompressae.arrow.ArrowEncoder`.

    Returns
    -------
    dask.dataframe.DataFrame
        The other columns and Arrow-backed columns of the codes. What the codes are is in ``ArrowEncoder(model,
        column, **options).metadata``: pass it to ``to_parquet`` as `custom_metadata`, and
        :func:`~skcompressae.arrow.codes_from_arrow` reads the files without being told.

    Raises
    ------
    TypeError
        If `model` is no CompresSAETransformer, `df` no Dask data frame, or its column holds strings.
    KeyError
        If there is no such column.
    ValueError
        If an option has no such value or a column that is kept has the name of a new one. Embeddings that are null,
        of another width or not finite raise one when computed.

    See Also
    --------
    encode_array : For rows of an array.
    skcompressae.arrow.ArrowEncoder : Explains the options.

    Examples
    --------
    >>> import numpy as np, pandas as pd, pyarrow as pa
    >>> import dask.dataframe as dd
    >>> from skcompressae import CompresSAETransformer
    >>> from skcompressae.dask import encode_dataframe
    >>> X = np.random.RandomState(0).standard_normal((200, 8)).astype(np.float32)
    >>> compressor = CompresSAETransformer(n_components=16, k=3, max_iter=5, random_state=0).fit(X)
    >>> lists = pd.arrays.ArrowExtensionArray(pa.array(list(X)))
    >>> table = dd.from_pandas(pd.DataFrame({"id": range(200), "embedding": lists}), npartitions=2)
    >>> codes = encode_dataframe(compressor, table)
    >>> list(codes.columns), codes.npartitions
    (['id', 'indices', 'values'], 2)
    >>> len(codes.compute(scheduler="synchronous"))
    200
    """
    dd = _import_dask("dataframe")
    import pandas as pd
    import pyarrow as pa

    encoder = ArrowEncoder(model, column, **options)
    check_scalar(n_threads, "n_threads", Integral, min_val=1)
    if not isinstance(df, dd.DataFrame):
        raise TypeError(f"df must be a dask.dataframe.DataFrame; got {type(df).__name__}.")
    encoder.output_schema(pa.schema([(str(name), pa.null()) for name in df.columns]))
    if isinstance(df.dtypes[column], pd.StringDtype):
        raise TypeError(
            f"column {column!r} must hold lists of floats; got {df.dtypes[column]}. Dask turns columns of objects into "
            "strings unless dask.config.set({'dataframe.convert-string': False}); columns of Arrow lists it leaves."
        )
    empty = df._meta.iloc[:0]
    return df.map_partitions(
        _encode_partition, _shared(encoder, client), n_threads, meta=_encode_partition(empty, encoder, 1)
    )


def _encode_block(
    rows: Any, model: CompresSAETransformer, n_threads: int, block_id: tuple[int, ...] | None = None
) -> Any:
    """Encode a chunk, whose place Dask gives by the name `block_id`."""
    with exactly_n_threads(n_threads), _within(f"chunk {block_id} of X"):
        return encode_rows(model, np.asarray(rows), "X")


def _encode_partition(part: Any, encoder: ArrowEncoder, n_threads: int) -> Any:
    import pandas as pd
    import pyarrow as pa

    series = part[encoder.column]
    # no rows, no type: a partition of objects may be empty
    column = pa.array(series, from_pandas=True) if len(series) else pa.array([], pa.list_(pa.float32()))
    place = f"the partition of {len(part)} rows from index {next(iter(part.index), None)!r} on"
    with exactly_n_threads(n_threads), _within(place):
        arrays = encoder.encode_column(column)
    kept = part if encoder.keep_embedding else part.drop(columns=encoder.column)
    new = {
        name: pd.Series(pd.arrays.ArrowExtensionArray(array), index=part.index)
        for name, array in zip(encoder.code_columns, arrays, strict=True)
    }
    return kept.assign(**new)


@contextmanager
def _within(place: str) -> Iterator[None]:
    """Let errors name the block that they number the rows of."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"in {place}: {error}") from error


def _shared(value: Any, client: Any) -> Any:
    """Return a stand-in for a value in a graph: the result of one task, which every worker fetches once.

    A task, not scattered data: of that the scheduler's memory manager keeps one copy only, which dies with its worker.
    A task runs again.
    """
    import dask

    if client is None:
        client = _current_client()
    if client is None:
        # a copy, as the client's is: weights that are changed in place are not those of the call
        return dask.delayed(deepcopy(value), pure=True, traverse=False)
    with warnings.catch_warnings():
        # advises futures, which this makes one of
        warnings.filterwarnings("ignore", "Sending large graph", UserWarning)
        return dask.delayed(client.submit(pickle.loads, pickle.dumps(value), pure=False))


def _current_client() -> Any:
    try:
        from distributed import default_client
    except ImportError:  # a single-machine scheduler then
        return None
    try:
        return default_client()
    except ValueError:
        return None


def _import_dask(part: str) -> Any:
    from importlib import import_module

    try:
        return import_module(f"dask.{part}")
    except ImportError as error:
        raise ImportError(f"skcompressae.dask needs dask.{part}: install the extra 'dask' of skcompressae") from error
