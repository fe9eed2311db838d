"""Spark: the codes of a single process from a real local session, a Python worker killed on the way."""

import copy
import os
import signal
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from documented_examples import run_documented_examples

from skcompressae import CompresSAETransformer
from skcompressae._core._threads import effective_n_threads
from skcompressae.arrow import codes_from_arrow

sql = pytest.importorskip("pyspark.sql")
pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

from skcompressae.spark import _check_apart, encode_dataframe, encode_parquet  # noqa: E402

pytestmark = [
    # of pyspark's own check of the pandas version; no pandas is involved here
    pytest.mark.filterwarnings("ignore:PySpark does not yet fully support pandas:FutureWarning"),
    # pyspark leaves sockets to its JVM, and the JVM's process, to the garbage collector
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning"),
]


class Mortal(CompresSAETransformer):
    """A compressor that ends its process while it encodes, as the kernel does when memory is short; but once."""

    def transform(self, X):
        codes = super().transform(X)
        if not os.path.exists(self.marker):
            Path(self.marker).touch(exist_ok=False)
            os.kill(os.getpid(), signal.SIGKILL)
        return codes


@pytest.fixture(scope="module")
def spark():
    tests = Path(__file__).resolve().parent
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PYSPARK_PYTHON", sys.executable)
        environment.setenv("PYTHONPATH", os.pathsep.join([str(tests.parent), str(tests)]))  # workers import Mortal
        # a task may fail once; each failure starts a worker anew
        builder = sql.SparkSession.builder.master("local[2,2]")
        for name, value in {
            "spark.driver.host": "localhost",
            "spark.driver.bindAddress": "127.0.0.1",
            "spark.ui.enabled": "false",
            "spark.log.level": "ERROR",
            "spark.sql.files.maxPartitionBytes": "16k",
            "spark.sql.execution.arrow.maxRecordsPerBatch": "30",
        }.items():
            builder = builder.config(name, value)
        session = builder.getOrCreate()
        yield session
        session.stop()


@pytest.fixture(scope="module")
def source(embeddings, tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    for i, rows in enumerate(np.array_split(embeddings, 4)):
        column = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows.shape[1])
        table = pa.table({"id": pa.array(np.arange(100) + 100 * i), "embedding": column, "part": [f"p{i}"] * 100})
        pq.write_table(table, folder / f"part-{i}.parquet")
    return str(folder)


def read_codes(folder):
    table = pq.read_table(folder).sort_by("id")
    assert table.column("id").to_pylist() == list(range(400))
    assert table.schema.names == ["id", "part", "indices", "values"]
    return codes_from_arrow(table)


def assert_same(codes, expected):
    assert codes.shape == expected.shape
    assert abs(codes - expected).max() <= 1e-5 * abs(expected).max()


def test_parquet_to_parquet(spark, source, fitted, embeddings, tmp_path):
    target = tmp_path / "codes"
    encode_parquet(fitted, spark, source, target)
    assert (target / "_SUCCESS").exists()
    assert len(list(target.glob("*.parquet"))) > 1
    assert_same(read_codes(target), fitted.transform(embeddings))
    written = spark.read.parquet(str(target))
    assert dict(written.dtypes)["indices"] == "array<int>"
    assert dict(written.dtypes)["values"] == "array<float>"
    with pytest.raises(sql.utils.AnalysisException, match="already exists"):
        encode_parquet(fitted, spark, source, target)


@pytest.mark.parametrize(
    ("read", "written"),
    [
        ("data", "data"),
        ("data", "file:{}/link/"),
        ("file:{}/data/part=1", "data"),
        ("data/part=*", "data/part=1"),
        ("data/part=1/rows.parquet", "."),
        ("data", "data/part=1/codes"),
    ],
)
def test_the_source_is_never_overwritten(spark, fitted, embeddings, tmp_path, monkeypatch, read, written):
    file = tmp_path / "data" / "part=1" / "rows.parquet"
    file.parent.mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "data")
    pq.write_table(pa.table({"id": range(400), "embedding": list(embeddings)}), file)
    before = file.read_bytes()
    read, written = (
        path.format(tmp_path) if path.startswith("file:") else str(tmp_path / path) for path in (read, written)
    )
    with pytest.raises(ValueError, match='target must neither be nor hold nor lie in the source with mode="overwrite"'):
        encode_parquet(fitted, spark, read, written, mode="Overwrite")
    assert [path for path in (tmp_path / "data").rglob("*") if path.is_file()] == [file]
    assert file.read_bytes() == before


def test_a_neighbour_of_the_source_may_be_overwritten(spark, source, fitted, embeddings):
    target = f"{source}-codes"
    for _ in range(2):
        encode_parquet(fitted, spark, source, target, mode="overwrite")
    assert_same(read_codes(target), fitted.transform(embeddings))


@pytest.mark.parametrize("target", ["s3a://lake/rows", "s3a://lake/rows/", "s3a://lake", "s3a://lake/rows/codes"])
def test_a_session_without_file_systems_compares_paths_as_they_are_written(target):
    session = types.SimpleNamespace()  # of Spark Connect
    with pytest.raises(ValueError, match="target must neither be nor hold nor lie in the source"):
        _check_apart(session, "s3a://lake/rows", target)
    _check_apart(session, "s3a://lake/rows", "s3a://lake/rows-codes")


def test_a_killed_worker_loses_nothing(spark, source, fitted, embeddings, tmp_path):
    model = copy.copy(fitted)
    model.__class__ = Mortal
    model.marker = str(tmp_path / "killed")
    encode_parquet(model, spark, source, tmp_path / "codes", n_threads=2)
    assert os.path.exists(model.marker)
    assert_same(read_codes(tmp_path / "codes"), fitted.transform(embeddings))


def test_data_frames(spark, fitted, embeddings):
    rows = [(i, row.tolist()) for i, row in enumerate(embeddings[:50])]
    df = spark.createDataFrame(rows, "key int, vector array<double>")
    model = copy.copy(fitted)
    codes = encode_dataframe(model, df, "vector", code_columns=("i", "v"), keep_embedding=True)
    model.set_params(k=2)  # too late to change anything
    assert codes.columns == ["key", "vector", "i", "v"]
    found = codes.toArrow().sort_by("key")
    expected = fitted.transform(embeddings[:50])
    assert_same(codes_from_arrow(found, n_components=48, code_columns=("i", "v")), expected)
    assert encode_dataframe(fitted, df.filter("key < 0"), "vector").count() == 0


def test_bad_input_is_named(spark, fitted):
    df = spark.createDataFrame([(0, [1.0] * 23, "a")], "id int, embedding array<float>, text string")
    with pytest.raises(KeyError, match="column='vector' is not among the columns 'id', 'embedding', 'text'"):
        encode_dataframe(fitted, df, "vector")
    with pytest.raises(TypeError, match=r"must be an array<float> or array<double>; got string"):
        encode_dataframe(fitted, df, "text")
    with pytest.raises(TypeError, match=r"df must be a pyspark.sql.DataFrame; got dict"):
        encode_dataframe(fitted, {})
    with pytest.raises(ValueError, match=r"column\(s\) 'text' are there already"):
        encode_dataframe(fitted, df, code_columns=("text", "values"))
    with pytest.raises(ValueError, match="column 'text' is there already but for its case"):
        encode_dataframe(fitted, df, code_columns=("Text", "values"))
    with pytest.raises(ValueError, match=r"differ not only in case, .* got \('a', 'A'\)"):
        encode_dataframe(fitted, df, code_columns=("a", "A"))
    with pytest.raises(ValueError, match=r"column 'a\.b' must have no dot in its name"):
        encode_dataframe(fitted, df.withColumnRenamed("text", "a.b"))
    with pytest.raises(ValueError, match="n_threads == 0"):
        encode_dataframe(fitted, df, n_threads=0)
    rows = [(i, [1.0] * (24 if i < 3 else 23), "a") for i in range(5)]
    spark.conf.set("spark.sql.execution.arrow.maxRecordsPerBatch", 2)
    try:
        with pytest.raises(sql.utils.PythonException, match="the model's 24 features in every row; got 23 in row 3"):
            encode_dataframe(fitted, spark.createDataFrame(rows, df.schema).coalesce(1)).collect()
    finally:
        spark.conf.unset("spark.sql.execution.arrow.maxRecordsPerBatch")


def test_documented_examples(spark, fitted, embeddings, tmp_path):
    lists = pa.array(list(embeddings[:20]))
    pq.write_table(pa.table({"id": range(20), "embedding": lists}), tmp_path / "embeddings.parquet")
    for documented in (encode_dataframe, encode_parquet):
        target = tmp_path / documented.__name__
        paths = {"s3a://lake/embeddings": tmp_path / "embeddings.parquet", "s3a://lake/codes": target}
        run_documented_examples(documented, {"compressor": fitted, "spark": spark}, paths=paths)
        assert_same(codes_from_arrow(pq.read_table(target)), fitted.transform(embeddings[:20]))


class Counting(CompresSAETransformer):
    def transform(self, X):
        Path(self.marker, str(effective_n_threads())).touch()
        return super().transform(X)


def test_options_arrive(spark, source, fitted, embeddings, tmp_path):
    model = copy.copy(fitted)
    model.__class__ = Counting
    model.marker = str(tmp_path / "threads")
    os.mkdir(model.marker)
    target = tmp_path / "codes"
    encode_parquet(model, spark, source, target, n_threads=3, split_signs=True)
    assert "3" in os.listdir(model.marker)
    assert_same(read_codes(target), fitted.transform(embeddings))
    table = pq.read_table(target)
    assert min(min(row) for row in table.column("values").to_pylist()) > 0
    encode_parquet(fitted, spark, source, target, mode="overwrite", keep_embedding=True)
    assert "embedding" in pq.read_table(target).schema.names
