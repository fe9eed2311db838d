"""Dask arrays and data frames: the codes of a single process, on a real cluster of processes, one of them killed."""

import os
import pickle
import signal
import warnings

import numpy as np
import pytest
import scipy.sparse as sp

from skcompressae._core._threads import effective_n_threads
from skcompressae._worker_model import encode_rows
from skcompressae.arrow import ArrowEncoder, codes_from_arrow

dask = pytest.importorskip("dask")
da = pytest.importorskip("dask.array")
dd = pytest.importorskip("dask.dataframe")
distributed = pytest.importorskip("distributed")
cloudpickle = pytest.importorskip("cloudpickle")
pa = pytest.importorskip("pyarrow")
pd = pytest.importorskip("pandas")
pq = pytest.importorskip("pyarrow.parquet")

from skcompressae.dask import encode_array, encode_dataframe  # noqa: E402

# distributed leaves sockets of its closed cluster to the garbage collector
pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")


@pytest.fixture(scope="module")
def client():
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=2, processes=True, dashboard_address=None, memory_limit=None
        ) as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        client.wait_for_workers(2, timeout=60)
        yield client


def assert_same(codes, expected):
    assert sp.issparse(codes)
    assert codes.shape == expected.shape
    assert abs(codes - expected).max() <= 1e-5 * abs(expected).max()


def frame_of(rows):
    column = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows.shape[1])
    return pd.DataFrame({"id": np.arange(len(rows)), "embedding": pd.arrays.ArrowExtensionArray(column)})


def die_once(block, marker, block_info=None):
    """In the fourth block, end this process as the kernel does when memory is short, unless the marker is there."""
    if block_info[0]["chunk-location"][0] == 3 and not os.path.exists(marker):
        open(marker, "x").close()
        os.kill(os.getpid(), signal.SIGKILL)
    return block


def test_arrays_on_a_cluster_of_processes(client, fitted, embeddings):
    earlier = set(client.futures)
    codes = encode_array(fitted, da.from_array(embeddings, chunks=(70, 10)), client=client)
    assert codes.chunks == ((70, 70, 70, 70, 70, 50), (48,))
    assert type(codes._meta) is type(fitted.transform(embeddings))
    (model_key,) = set(client.futures) - earlier
    assert_same(client.compute(codes, sync=True), fitted.transform(embeddings))
    naming = [task for task in dict(codes.__dask_graph__()).values() if model_key in getattr(task, "dependencies", ())]
    assert len(naming) == 6  # the tasks of the blocks name the model, none holds it
    assert b"CompresSAETransformer" not in cloudpickle.dumps(dict(codes.__dask_graph__()))


def test_a_large_model_is_sent_without_warnings_and_outlives_its_worker(client, fitted, embeddings):
    X = da.from_array(embeddings, chunks=(100, -1))
    earlier = set(client.futures)
    with dask.config.set({"distributed.admin.large-graph-warning-threshold": "1kiB"}), warnings.catch_warnings():
        warnings.simplefilter("error")
        codes = encode_array(fitted, X, client=client)
    (model_key,) = set(client.futures) - earlier
    distributed.Future(model_key, client).result(timeout=60)
    (holder,) = client.who_has()[model_key]
    client.restart_workers([holder])
    assert_same(client.compute(codes, sync=True), fitted.transform(embeddings))


def test_a_killed_worker_loses_nothing(client, fitted, embeddings, tmp_path):
    before = set(client.run(os.getpid).values())
    X = da.from_array(embeddings, chunks=(40, -1)).map_blocks(die_once, str(tmp_path / "killed"), meta=embeddings)
    codes = client.compute(encode_array(fitted, X, client=client), sync=True)
    assert_same(codes, fitted.transform(embeddings))
    client.wait_for_workers(2, timeout=30)
    assert len(before - set(client.run(os.getpid).values())) == 1


def test_data_frames_to_parquet_on_a_cluster(client, fitted, embeddings, tmp_path):
    df = dd.from_pandas(frame_of(embeddings), npartitions=3)
    codes = encode_dataframe(fitted, df, client=client, layout="int32")
    assert list(codes.columns) == ["id", "indices", "values"]
    assert codes.dtypes["indices"] == pd.ArrowDtype(pa.list_(pa.int32()))
    assert codes.divisions == df.divisions
    write = codes.to_parquet(tmp_path / "codes", custom_metadata=ArrowEncoder(fitted).metadata, compute=False)
    client.compute(write, sync=True)
    table = pq.read_table(tmp_path / "codes").sort_by("id")
    assert table.column("id").to_pylist() == list(range(len(embeddings)))
    assert_same(codes_from_arrow(table), fitted.transform(embeddings))


def test_without_a_cluster(fitted, embeddings):
    model = pickle.loads(pickle.dumps(fitted))
    X = da.from_array(embeddings.astype(np.float64), chunks=(150, -1))
    codes = encode_array(model, X[X[:, 0] > 0], n_threads=2)  # of unknown length
    framed = encode_dataframe(model, dd.from_pandas(frame_of(embeddings), npartitions=2))
    model.set_params(k=2)  # too late to change anything
    model.components_ *= -1
    assert codes.dtype == np.float64
    for scheduler in ("threads", "synchronous"):
        expected = fitted.transform(embeddings[embeddings[:, 0] > 0].astype(np.float64))
        assert_same(codes.compute(scheduler=scheduler), expected)
    table = pa.Table.from_pandas(framed.compute(scheduler="synchronous"))
    assert_same(codes_from_arrow(table, n_components=48), fitted.transform(embeddings))
    empty = encode_array(fitted, X[:, :][X[:, 0] > 1e9])
    assert empty.compute(scheduler="synchronous").shape == (0, 48)

    objects = pd.DataFrame({"embedding": list(embeddings), "keep": np.arange(len(embeddings)) < 10})
    with dask.config.set({"dataframe.convert-string": False}):
        df = dd.from_pandas(objects, npartitions=3)
        encoded = encode_dataframe(fitted, df[df["keep"]], layout="struct").compute(scheduler="synchronous")
    table = pa.table({"code": pa.array(encoded["code"])})
    codes = codes_from_arrow(table, n_components=48, code_columns=("code",))
    assert_same(codes, fitted.transform(embeddings[:10]))


def test_bad_input_is_named(fitted, embeddings):
    X = da.from_array(embeddings, chunks=(100, -1))
    with pytest.raises(TypeError, match=r"must be a dask.array.Array of float16, float32 or float64; got ndarray"):
        encode_array(fitted, embeddings)
    with pytest.raises(TypeError, match="got a Dask array of int64"):
        encode_array(fitted, X.astype(np.int64))
    with pytest.raises(ValueError, match=r"X must have shape \(n_samples, 24\), as the model; got \(400, 23\)"):
        encode_array(fitted, X[:, 1:])
    with pytest.raises(ValueError, match="n_threads == 0"):
        encode_array(fitted, X, n_threads=0)
    bad = embeddings.copy()
    bad[105, 3] = np.nan
    with pytest.raises(ValueError, match=r"in chunk \(1, 0\) of X: .* in 1 row\(s\), the first of them row 5;"):
        encode_array(fitted, da.from_array(bad, chunks=(100, -1))).compute(scheduler="synchronous")

    frame = frame_of(embeddings)
    df = dd.from_pandas(frame, npartitions=2)
    halves = dd.from_pandas(frame_of(np.where(np.arange(400)[:, None] == 203, np.nan, embeddings)), npartitions=2)
    with pytest.raises(ValueError, match=r"in the partition of 200 rows from index 200 on: .* first of them row 3;"):
        encode_dataframe(fitted, halves).compute(scheduler="synchronous")
    with pytest.raises(TypeError, match=r"df must be a dask.dataframe.DataFrame; got DataFrame"):
        encode_dataframe(fitted, frame)
    with pytest.raises(KeyError, match="column='vector' is not among the columns"):
        encode_dataframe(fitted, df, "vector")
    with pytest.raises(ValueError, match=r"column\(s\) 'id' are there already"):
        encode_dataframe(fitted, df, code_columns=("id", "values"))
    with pytest.raises(TypeError, match=r"got string. Dask turns columns of objects into strings unless"):
        encode_dataframe(fitted, dd.from_pandas(pd.DataFrame({"embedding": list(embeddings)}), npartitions=2))


def test_tasks_take_the_threads_that_they_are_given(fitted, embeddings, monkeypatch):
    seen = []
    encode_column = ArrowEncoder.encode_column
    monkeypatch.setattr(
        "skcompressae.dask.encode_rows", lambda *rest: seen.append(effective_n_threads()) or encode_rows(*rest)
    )
    codes = encode_array(fitted, da.from_array(embeddings, chunks=(200, -1)), n_threads=3)
    del seen[:]
    codes.compute(scheduler="synchronous")
    assert seen == [3, 3]
    monkeypatch.setattr(
        ArrowEncoder, "encode_column", lambda *rest: seen.append(effective_n_threads()) or encode_column(*rest)
    )
    codes = encode_dataframe(fitted, dd.from_pandas(frame_of(embeddings), npartitions=2), n_threads=3)
    del seen[:]
    codes.compute(scheduler="synchronous")
    assert set(seen) == {3}


def test_embeddings_may_stay(fitted, embeddings):
    df = dd.from_pandas(frame_of(embeddings), npartitions=2)
    codes = encode_dataframe(fitted, df, keep_embedding=True)
    assert (
        list(codes.columns)
        == list(codes.compute(scheduler="synchronous").columns)
        == ["id", "embedding", "indices", "values"]
    )
