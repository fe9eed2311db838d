"""Milvus Lite through pymilvus: split codes in, candidates out, signed order back."""

import numpy as np
import pytest
import scipy.sparse as sp
import sklearn
from documented_examples import run_documented_examples

from skcompressae.engines import MilvusIndex, join_signs, rerank_signed, split_signs

pymilvus = pytest.importorskip("pymilvus")
pytest.importorskip("milvus_lite")


@pytest.fixture(scope="module")
def codes(fitted, embeddings):
    return fitted.transform(embeddings)


@pytest.fixture(scope="module")
def index(milvus_client, codes):
    index = MilvusIndex(milvus_client, 48, collection="fitted")
    index.add(split_signs(codes))
    return index


def test_products_of_split_rows_are_exact(index, codes):
    queries = split_signs(codes[:20])
    scores, ids = index.search(queries, n_neighbors=20)
    assert len(index) == 400
    exact = (queries @ split_signs(codes).T).toarray()
    np.testing.assert_allclose(scores, -np.sort(-exact, axis=1)[:, :20], rtol=1e-5)
    np.testing.assert_allclose(scores, np.take_along_axis(exact, ids, axis=1), rtol=1e-5)
    index.optimize()
    np.testing.assert_allclose(index.search(queries, n_neighbors=20)[0], scores, rtol=1e-5)


@pytest.mark.parametrize("source", ["codes at hand", "codes of the engine"])
def test_rerank_restores_the_signed_order(index, codes, fitted, embeddings, source):
    queries = fitted.transform_query(embeddings[:20], n_nonzero=16)
    _, candidates = index.search(split_signs(queries), n_neighbors=300)
    stored = codes if source == "codes at hand" else lambda ids: join_signs(index.fetch(ids))
    scores, ids = rerank_signed(queries, candidates, stored, n_neighbors=10)
    exact = (queries @ codes.T).toarray()
    np.testing.assert_allclose(scores, -np.sort(-exact, axis=1)[:, :10], rtol=1e-4)
    np.testing.assert_allclose(scores, np.take_along_axis(exact, ids, axis=1), rtol=1e-4)


def test_fetched_codes_are_those_stored(index, codes):
    np.testing.assert_array_equal(join_signs(index.fetch([7, 399, 0])).toarray(), codes[[7, 399, 0]].toarray())
    assert index.fetch([]).shape == (0, 96)
    with pytest.raises(ValueError, match=r"ids must be in collection 'fitted'; 2 are not: \[400, 500\]"):
        index.fetch([400, 1, 500])


@pytest.mark.skipif(
    "sparse_interface" not in sklearn.get_config(), reason="this scikit-learn has no sparse_interface setting"
)
def test_fetched_codes_obey_the_sparse_interface_setting(index):
    for setting, expected in (("sparray", sp.csr_array), ("spmatrix", sp.csr_matrix)):
        with sklearn.config_context(sparse_interface=setting):
            assert type(index.fetch([7])) is expected


def test_signed_codes_are_refused_with_the_way_out(index, codes):
    for call, name in ((index.add, "codes"), (index.search, "queries")):
        with pytest.raises(ValueError, match=rf"refuses negative values.*split_signs\({name}\), with 96 columns"):
            call(codes)
        with pytest.raises(ValueError, match=rf"those of split_signs\({name}\); got 48"):
            call(abs(codes))
        with pytest.raises(ValueError, match=f"{name} must not be negative"):
            call(sp.hstack([codes, codes]))
        with pytest.raises(ValueError, match="columns; got 5"):
            call(np.ones((1, 5)))
    assert len(index) == 400


def test_ids_replace_and_empty_rows_are_named(milvus_client):
    index = MilvusIndex(milvus_client, 2, collection="small")
    index.add(split_signs(np.array([[1.0, 0.0], [-1.0, 2.0]])), ids=[5, 2**62])
    index.add(split_signs(np.array([[3.0, 0.0]])), ids=[5])
    assert len(MilvusIndex(milvus_client, 2, collection="small")) == 2
    scores, ids = index.search(split_signs(np.array([[1.0, 0.0], [0.0, -1.0], [0.0, 0.0], [-1.0, 1.0]])), n_neighbors=2)
    np.testing.assert_array_equal(ids, [[5, -1], [-1, -1], [-1, -1], [2**62, -1]])
    np.testing.assert_array_equal(scores[[0, 3], 0], [3.0, 3.0])
    with pytest.raises(ValueError, match=r"nonzero in every row.*leave out 2 row\(s\): 0, 2"):
        index.add(split_signs(np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 0.0]])), ids=[1, 2, 3])
    with pytest.raises(ValueError, match=r"holds documents \(2 here\)"):
        index.add(split_signs(np.eye(2)))


def test_other_collections_and_clients_are_refused(milvus_client):
    milvus_client.create_collection("dense", dimension=4)
    with pytest.raises(ValueError, match="collection 'dense' must have the fields"):
        MilvusIndex(milvus_client, 2, collection="dense")
    with pytest.raises(TypeError, match=r"client must be a pymilvus\.MilvusClient; got str"):
        MilvusIndex("codes.db", 2)
    with pytest.raises(ValueError, match="n_neighbors must be at most 16384; got 20000"):
        MilvusIndex(milvus_client, 2, collection="limits").search(split_signs(np.eye(2)), n_neighbors=20_000)


class LaggingServer(pymilvus.MilvusClient):
    """Stands in for a server that shows a write only to reads whose consistency level asks for it."""

    def __init__(self):
        self.level, self.rows = None, {}

    def has_collection(self, name):
        return self.level is not None

    def describe_collection(self, name):
        types = {"id": pymilvus.DataType.INT64, "code": pymilvus.DataType.SPARSE_FLOAT_VECTOR}
        return {"fields": [{"name": field, "type": type_} for field, type_ in types.items()]}

    def create_collection(self, name, *, schema, index_params, consistency_level="Bounded"):
        self.level = consistency_level

    def load_collection(self, name):
        pass

    def upsert(self, name, rows):
        self.rows.update((row["id"], row["code"]) for row in rows)

    def seen(self, level):
        return self.rows if (level or self.level) in ("Strong", "Session") else {}

    def query(self, name, *, filter, output_fields, consistency_level=None):
        return [{"count(*)": len(self.seen(consistency_level))}]

    def get(self, name, ids, *, output_fields, consistency_level=None):
        seen = self.seen(consistency_level)
        return [{"id": id_, "code": seen[id_]} for id_ in ids if id_ in seen]

    def search(self, name, *, data, limit, consistency_level=None, **options):
        return [[{"id": id_, "distance": 1.0} for id_ in self.seen(consistency_level)][:limit] for _ in data]


@pytest.mark.parametrize("level", [None, "Bounded"], ids=["collection of ours", "collection of the caller's"])
def test_writes_are_seen_at_once_by_a_server_that_lags(level):
    server = LaggingServer()
    server.level = level
    index = MilvusIndex(server, 2)
    split = split_signs(np.eye(2))
    index.add(split)
    assert len(index) == 2
    with pytest.raises(ValueError, match=r"holds documents \(2 here\)"):
        index.add(split)
    np.testing.assert_array_equal(index.fetch([1, 0]).toarray(), split.toarray()[::-1])
    # the caller's level is that of the caller's searches
    np.testing.assert_array_equal(index.search(split[:1], 2)[1], [[0, 1]] if level is None else [[-1, -1]])


@pytest.mark.parametrize(
    "documented",
    [MilvusIndex, MilvusIndex.add, MilvusIndex.search, MilvusIndex.optimize, MilvusIndex.fetch],
    ids=lambda documented: documented.__qualname__,
)
def test_documented_examples(tmp_path, monkeypatch, documented):
    monkeypatch.chdir(tmp_path)
    run_documented_examples(documented)["client"].close()
