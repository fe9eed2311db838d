"""Encode Spark data frames and Parquet files; Spark reads, schedules, retries and writes, this module only maps."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from numbers import Integral
from pathlib import PurePath
from typing import Any

from sklearn.utils import check_scalar

from skcompressae._arrow_columns import import_pyarrow
from skcompressae._core._threads import exactly_n_threads
from skcompressae._transformer import CompresSAETransformer
from skcompressae.arrow import ArrowEncoder

__all__ = ["encode_dataframe", "encode_parquet"]


def encode_dataframe(
    model: CompresSAETransformer,
    df: Any,
    column: str = "embedding",
    *,
    n_threads: int = 1,
    split_signs: bool = False,
    code_columns: tuple[str, str] | None = None,
    keep_embedding: bool = False,
) -> Any:
    """Encode the embedding column of a Spark data frame.

    Lazily: rows and other columns stay as they are. The model is broadcast: every executor fetches it once, every
    Python worker process reads it once and keeps it.

    Parameters
    ----------
    model : CompresSAETransformer
        Fitted. Its state of now is used, whatever happens to it before the result is computed.
    df : pyspark.sql.DataFrame
        Of a classic session (Spark Connect has no broadcast variables). Its embedding column is an ``array<float>`` or
        ``array<double>`` without nulls.
    column : str, default="embedding"
        The embedding column.
    n_threads : int, default=1
        Threads of one task. Spark runs a task per core (``spark.task.cpus``), so 1 fills every core.
    split_signs : bool, default=False
        As in :class:`~skcompressae.arrow.ArrowEncoder`.
    code_columns : tuple of two str or None, default=None
        Names of the new columns; None means ``("indices", "values")``.
    keep_embedding : bool, default=False
        Whether the embedding column stays too.

    Returns
    -------
    pyspark.sql.DataFrame
        The other columns, ``indices: array<int>`` and ``values: array<float>``. What the codes are stands in the
        metadata of the first, which Spark writes to Parquet and :func:`~skcompressae.arrow.codes_from_arrow` finds.

    Raises
    ------
    TypeError
        If `model` is no CompresSAETransformer, `df` no data frame of a classic session, or its column no array of
        floats.
    KeyError
        If there is no such column.
    ValueError
        If an option has no such value, a column that is kept has the name of a new one, or both new ones have the
        same, whatever their case, or the name of a column holds a dot. Embeddings that are null, of another width or
        not finite fail the job, with a message that says in which row of a partition.

    See Also
    --------
    encode_parquet : From files to files.
    skcompressae.arrow.codes_from_arrow : Reads the columns back.
    skcompressae.arrow.ArrowEncoder : The function that Spark maps.

    Examples
    --------
    >>> from skcompressae.spark import encode_dataframe
    >>> embeddings = spark.read.parquet("s3a://lake/embeddings")  # doctest: +SKIP
    >>> encode_dataframe(compressor, embeddings).write.parquet("s3a://lake/codes")  # doctest: +SKIP
    """
    sql = _import_spark()
    pa = import_pyarrow("Spark data frames of codes")
    encoder = ArrowEncoder(
        model,
        column,
        layout="int32",
        split_signs=split_signs,
        code_columns=code_columns,
        keep_embedding=keep_embedding,
    )
    check_scalar(n_threads, "n_threads", Integral, min_val=1)
    if not isinstance(df, sql.DataFrame):
        raise TypeError(f"df must be a pyspark.sql.DataFrame; got {type(df).__name__}.")
    context = getattr(df.sparkSession, "sparkContext", None)
    if context is None:
        raise TypeError("df must belong to a classic Spark session; Spark Connect has no broadcast variables.")
    encoder.output_schema(pa.schema([(name, pa.null()) for name in df.columns]))
    _check_names(df.columns if keep_embedding else [name for name in df.columns if name != column], encoder)
    types = sql.types
    kind = df.schema[column].dataType
    if not isinstance(kind, types.ArrayType) or not isinstance(kind.elementType, (types.FloatType, types.DoubleType)):
        raise TypeError(
            f"column {column!r} must be an array<float> or array<double>; got {kind.simpleString()}. Cast it first, a "
            "vector of pyspark.ml by pyspark.ml.functions.vector_to_array."
        )
    schema = types.StructType(
        [
            *(field for field in df.schema.fields if keep_embedding or field.name != column),
            types.StructField(encoder.code_columns[0], types.ArrayType(types.IntegerType())),
            types.StructField(encoder.code_columns[1], types.ArrayType(types.FloatType())),
        ]
    )
    shared = context.broadcast(encoder)

    def encode(batches: Iterable[Any]) -> Iterator[Any]:
        first_row = 0
        for batch in batches:
            with exactly_n_threads(n_threads):
                encoded = shared.value(batch, first_row)
            first_row += len(batch)
            yield encoded

    metadata = {key.decode(): text.decode() for key, text in encoder.metadata.items()}
    return df.mapInArrow(encode, schema).withMetadata(encoder.code_columns[0], metadata)


def _check_names(kept: list[str], encoder: ArrowEncoder) -> None:
    """Refuse names that Spark would resolve to another column, or to none, once the job runs."""
    names = [*kept, encoder.column, *encoder.code_columns]
    if dotted := [name for name in names if "." in name]:
        raise ValueError(
            f"column {dotted[0]!r} must have no dot in its name, which mapInArrow cannot resolve; rename it."
        )
    folded = {name.casefold() for name in encoder.code_columns}
    if len(folded) != len(encoder.code_columns):
        raise ValueError(
            "code_columns must be names that differ not only in case, which Spark does not tell apart; got "
            f"{encoder.code_columns!r}."
        )
    if taken := [name for name in kept if name.casefold() in folded]:
        raise ValueError(
            f"column {taken[0]!r} is there already but for its case, which Spark does not tell apart; rename it or "
            "choose other names by code_columns."
        )


def encode_parquet(
    model: CompresSAETransformer,
    spark: Any,
    source: str,
    target: str,
    column: str = "embedding",
    *,
    mode: str = "error",
    **options: Any,
) -> None:
    """Encode Parquet files into Parquet files.

    Spark reads, encodes and writes block by block, and tries failed tasks again, so neither side has to fit in memory.

    Parameters
    ----------
    model : CompresSAETransformer
        Fitted.
    spark : pyspark.sql.SparkSession
        The session that reads and writes.
    source : str
        File or folder, local or of any file system that the session knows, with an embedding column of float32 or
        float64 lists.
    target : str
        Folder to write. It has a file ``_SUCCESS`` once all of it is there.
    column : str, default="embedding"
        The embedding column.
    mode : {"error", "overwrite", "append", "ignore"}, default="error"
        What to do where `target` exists, as in ``DataFrameWriter.mode``. "overwrite" removes it before a row is read.
    **options
        Further parameters of :func:`encode_dataframe`.

    Raises
    ------
    pyspark.errors.PySparkException
        If Spark cannot read, encode or write.
    TypeError, KeyError
        As in :func:`encode_dataframe`.
    ValueError
        As there, and, before anything is touched, if `mode` is "overwrite" and `target` is `source`, holds it or lies
        in it.

    See Also
    --------
    encode_dataframe : The step in between.
    skcompressae.arrow.codes_from_arrow : Reads the files back.

    Examples
    --------
    >>> from skcompressae.spark import encode_parquet
    >>> encode_parquet(compressor, spark, "s3a://lake/embeddings", "s3a://lake/codes")  # doctest: +SKIP
    """
    codes = encode_dataframe(model, spark.read.parquet(str(source)), column, **options)
    if str(mode).lower() == "overwrite":  # Spark takes it in any case
        _check_apart(spark, str(source), str(target))
    codes.write.mode(mode).parquet(str(target))


def _check_apart(spark: Any, source: str, target: str) -> None:
    """Refuse to overwrite what is still to be read, as Spark removes the target first."""
    if hasattr(spark, "_jsparkSession"):
        folders, written = _places(spark, source), _places(spark, target, is_pattern=False)
    else:  # of Spark Connect, whose client sees no file systems: the paths as they are written must do
        folders, written = [(PurePath(source),)], [(PurePath(target),)]
    for *where_to, folder in written:
        for *where_from, read in folders:
            if where_from == where_to and (read.is_relative_to(folder) or folder.is_relative_to(read)):
                raise ValueError(
                    'target must neither be nor hold nor lie in the source with mode="overwrite", which removes the '
                    f"target before a row is read; got source {source!r} and target {target!r}. Write to another "
                    "folder."
                )


def _places(spark: Any, path: str, *, is_pattern: bool = True) -> list[tuple[Any, ...]]:
    """Return the scheme, authority and path of all that a path stands for, as Hadoop qualifies them."""
    configuration = spark._jsparkSession.sessionState().newHadoopConf()
    given = spark.sparkContext._jvm.org.apache.hadoop.fs.Path(path)
    system = given.getFileSystem(configuration)
    found = (
        [status.getPath() for status in system.globStatus(given) or ()] if is_pattern else [system.makeQualified(given)]
    )
    places = []
    for qualified in found:
        uri = qualified.toUri()
        local = os.path.realpath(uri.getPath()) if uri.getScheme() == "file" else uri.getPath()
        places.append((uri.getScheme(), uri.getAuthority(), PurePath(local)))
    return places


def _import_spark() -> Any:
    try:
        import pyspark.sql.types
    except ImportError as error:
        raise ImportError("skcompressae.spark needs pyspark: install the extra 'spark' of skcompressae") from error
    return pyspark.sql
