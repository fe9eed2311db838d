"""Fixtures that several test files share."""

import gc
import importlib
import os
import sys
import tempfile
import weakref
from contextlib import contextmanager
from pathlib import Path

# Before an OpenMP runtime is loaded: threads that spin while they wait take the cores from the others. Training FAISS's
# OPQ on 320 rows took 100 seconds beside one busy process, and takes 3 like this.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import pytest
import torch

from skcompressae import CodeNearestNeighbors, CompresSAETransformer
from skcompressae._core import _kept_rounding
from skcompressae._core._processor import HAS_AVX2

# Without a GPU, Triton kernels run in Triton's interpreter, which has to be chosen before Triton is imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
# before sentence-transformers is imported: no test reaches for the network
os.environ["HF_HUB_OFFLINE"] = "1"

# The kernel of 16-bit integers is written in instructions of AVX2, so elsewhere there is nothing to test.
needs_avx2 = pytest.mark.skipif(not HAS_AVX2, reason="the kernel is one of AVX2")

ROOT = Path(__file__).resolve().parent.parent
BENCHMARKS, EXAMPLES, DOCS = ROOT / "benchmarks", ROOT / "examples", ROOT / "docs"


# Begun with, in this order. The first example compiles what most other tests take, which two processes would do at
# once, so the other process has tests that need none. Then those that take longest, mostly to start clusters:
# no process is left with one of them at the end.
FIRST = ("examples", "architecture", "docs", "triton_kernels", "spark", "dask", "sharing")


def pytest_collection_modifyitems(items):
    order = {f"test_{name}.py": place for place, name in enumerate(FIRST)}
    items.sort(key=lambda item: order.get(item.path.name, len(FIRST)))


def make_embeddings(n_rows=400, n_features=24, n_topics=12, seed=0, dtype=np.float32):
    """Rows near sparse mixtures of a few directions plus a common mean: what real embeddings look like, in small."""
    random_state = np.random.RandomState(seed)
    topics = random_state.standard_normal((n_topics, n_features))
    mixture = random_state.exponential(size=(n_rows, n_topics)) * (random_state.uniform(size=(n_rows, n_topics)) < 0.3)
    noise = 0.1 * random_state.standard_normal((n_rows, n_features))
    return (mixture @ topics + noise + 0.2).astype(dtype)


def stored_as(rows, layout):
    """The same rows in another layout of memory: "F", "strided" or "memmap"; any other as they are."""
    if layout == "F":
        return np.asfortranarray(rows)
    if layout == "strided":
        return np.repeat(np.repeat(rows, 2, axis=0), 2, axis=1)[::2, ::2]
    if layout == "memmap":
        with tempfile.TemporaryFile() as file:
            mapped = np.memmap(file, dtype=rows.dtype, mode="w+", shape=rows.shape)
        mapped[:] = rows
        return mapped
    return rows


@contextmanager
def importable(*folders):
    """Let what lies in folders be imported by name; afterwards forget it, and what it imported from beside it."""
    before, path = set(sys.modules), list(sys.path)
    sys.path[:0] = map(str, folders)
    try:
        yield importlib.import_module
    finally:
        sys.path[:] = path
        for name in set(sys.modules) - before:
            file = Path(getattr(sys.modules[name], "__file__", None) or "/")
            if {BENCHMARKS, EXAMPLES, DOCS} & set(file.parents):
                del sys.modules[name]


@pytest.fixture(scope="module")
def benchmark():
    """Import a module of the benchmarks by name."""
    with importable(BENCHMARKS) as import_module:
        yield import_module


@pytest.fixture(scope="session")
def embeddings():
    return make_embeddings()


@pytest.fixture(scope="session")
def fitted(embeddings):
    """A fitted compressor that tests must not change; deep-copy it to do so."""
    return CompresSAETransformer(n_components=48, k=6, max_iter=150, random_state=0, device="cpu").fit(embeddings)


@pytest.fixture(params=["cpu", "cuda", "mps"])
def device(request):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device on this machine")
    if request.param == "mps" and not torch.backends.mps.is_available():
        pytest.skip("no MPS device on this machine")
    return request.param


@pytest.fixture
def files(tmp_path, monkeypatch, fitted, embeddings):
    """A folder with a model and embeddings in every form, as the working directory."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    monkeypatch.chdir(tmp_path)
    fitted.save("model.safetensors")
    np.save("x.npy", embeddings)
    np.save("queries.npy", make_embeddings(15, seed=1))
    columns = {"id": pa.array(range(len(embeddings))), "vector": pa.array(list(embeddings))}
    pq.write_table(pa.table(columns), "x.parquet", row_group_size=150)
    return tmp_path


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of 100 rows, so that 400 rows take several steps."""
    from skcompressae._cli import _sources

    monkeypatch.setattr(_sources, "_MAX_BLOCK_ROWS", 100)


@pytest.fixture
def saved(tmp_path):
    """A search index with a compressor, its documents, and the file that it was saved to."""
    from neighbor_cases import fitted_compressor, random_codes

    documents = random_codes(np.random.default_rng(23), 40, dtype=np.float32)
    index = CodeNearestNeighbors(4, compressor=fitted_compressor("float32"), batch_size=9).fit(documents)
    index.save(tmp_path / "index.skc")
    return index, documents, tmp_path / "index.skc"


@pytest.fixture(scope="module")
def milvus_client(tmp_path_factory):
    """A client of Milvus Lite."""
    pymilvus = pytest.importorskip("pymilvus")
    pytest.importorskip("milvus_lite")
    client = pymilvus.MilvusClient(str(tmp_path_factory.mktemp("milvus") / "codes.db"))
    yield client
    client.close()


@pytest.fixture(params=["embedded", "client"])
def open_index(request, tmp_path):
    """Open an index of Qdrant; the same one for the same name."""
    pytest.importorskip("qdrant_edge")
    qdrant_client = pytest.importorskip("qdrant_client")
    from skcompressae.engines import QdrantIndex

    client = qdrant_client.QdrantClient(":memory:") if request.param == "client" else None

    def open_(n_components, name="codes"):
        if client is not None:
            return QdrantIndex(client, n_components, collection=name)
        return QdrantIndex(tmp_path / name, n_components)

    yield open_
    if client is not None:
        client.close()


@pytest.fixture(scope="module")
def server(benchmark):
    """How to reach a PostgreSQL with pgvector that was started for the tests of a module."""
    module = benchmark("_postgres_server")
    context = module.temporary_server()
    try:
        conninfo = context.__enter__()
    except module.ServerUnavailable as error:
        pytest.skip(f"no PostgreSQL with pgvector could be started here: {error}")
    yield conninfo
    context.__exit__(None, None, None)


@pytest.fixture
def connection(server):
    """A connection to a new database there."""
    psycopg = pytest.importorskip("psycopg")
    with psycopg.connect(server, autocommit=True) as admin:
        admin.execute("DROP DATABASE IF EXISTS codes")
        admin.execute("CREATE DATABASE codes")
    with psycopg.connect(server, dbname="codes") as connection:
        yield connection


def assert_goes_with_its_last_reference(holder):
    """Empty a list of one object and see that it is gone without the collector of reference cycles."""
    gone = weakref.ref(holder[0])
    gc.disable()
    try:
        holder.clear()
        assert gone() is None
    finally:
        gc.enable()


def tick_labels(axis):
    """Return the labels of the ticks in view of a matplotlib axis."""
    axis.axes.figure.canvas.draw()
    low, high = sorted(axis.get_view_interval())
    return [t.get_text() for t, at in zip(axis.get_ticklabels(), axis.get_ticklocs(), strict=True) if low <= at <= high]


@pytest.fixture
def keeps_small_encoders(monkeypatch):
    """Keep encoders of any size, on any processor, and none of another test."""
    monkeypatch.setattr(_kept_rounding, "_PAYS_HERE", True)
    monkeypatch.setattr(_kept_rounding, "_MIN_BYTES", 1)
    monkeypatch.setattr(_kept_rounding, "_keepers", [])
