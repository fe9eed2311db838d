"""Qdrant, embedded and through the client's local mode, against exact dot products."""

import numpy as np
import pytest
import scipy.sparse as sp

from skcompressae.engines import QdrantIndex

qdrant_edge = pytest.importorskip("qdrant_edge")
qdrant_client = pytest.importorskip("qdrant_client")


@pytest.fixture
def small(open_index):
    with open_index(3) as index:
        index.add(sp.csr_matrix([[1.0, -1.0, 0.0], [-1.0, 0.0, 2.0], [0.0, 3.0, 0.0]]))
        yield index


def test_signed_products_are_exact(open_index, fitted, embeddings):
    codes, queries = fitted.transform(embeddings), fitted.transform(embeddings[:30])
    with open_index(48) as index:
        index.add(codes)
        assert len(index) == 400
        scores, ids = index.search(queries, n_neighbors=20)
        exact = (queries @ codes.T).toarray()
        np.testing.assert_allclose(scores, -np.sort(-exact, axis=1)[:, :20], rtol=1e-5)
        np.testing.assert_allclose(scores, np.take_along_axis(exact, ids, axis=1), rtol=1e-5)
        index.optimize()
        np.testing.assert_allclose(index.search(queries, n_neighbors=20)[0], scores, rtol=1e-6)


def test_expanded_queries_score_the_cosine_of_the_reconstruction(open_index, fitted, embeddings):
    compressor = fitted.__class__(**fitted.get_params())
    compressor.__dict__.update(fitted.__dict__)
    documents = compressor.set_params(norm="unit").transform(embeddings)
    queries = embeddings[:10] / np.linalg.norm(embeddings[:10], axis=1, keepdims=True)
    with open_index(48) as index:
        index.add(documents)
        scores, _ = index.search(compressor.transform_query(queries), n_neighbors=5)
    cosines = queries @ compressor.inverse_transform(documents).T
    np.testing.assert_allclose(scores, -np.sort(-cosines, axis=1)[:, :5], atol=1e-5)


def test_documents_without_overlap_are_omitted_and_negative_ones_kept(small):
    scores, ids = small.search(sp.csr_matrix([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]), n_neighbors=3)
    np.testing.assert_array_equal(ids, [[0, 1, -1], [-1, -1, -1]])
    np.testing.assert_array_equal(scores, [[1.0, -1.0, -np.inf], [-np.inf] * 3])


def test_ids_are_the_callers_and_replace(small):
    small.add(np.array([[5.0, 0.0, 0.0], [0.0, 0.0, 0.0]]), ids=[2, 2**62])
    assert len(small) == 4
    _, ids = small.search(np.array([[1.0, 0.0, 0.0]]), n_neighbors=3)
    np.testing.assert_array_equal(ids, [[2, 0, 1]])
    with pytest.raises(ValueError, match=r"holds documents \(4 here\)"):
        small.add(np.eye(3))


def test_what_the_engine_would_swallow_is_refused(small):
    with pytest.raises(ValueError, match="Input codes contains NaN"):
        small.add(np.array([[np.nan, 0.0, 1.0]]), ids=[9])
    with pytest.raises(ValueError, match="columns; got 2"):
        small.add(np.eye(2), ids=[8, 9])
    with pytest.raises(ValueError, match="distinct; got 9 2 times"):
        small.add(np.eye(3)[:2], ids=[9, 9])
    with pytest.raises(ValueError, match="Input queries contains NaN"):
        small.search(np.array([[np.nan, 0.0, 1.0]]))
    with pytest.raises(ValueError, match="n_neighbors must be a positive integer; got -1"):
        small.search(np.eye(3), n_neighbors=-1)
    assert len(small) == 3


@pytest.mark.parametrize("id_", ["5cc13d38-fb7b-4edf-885c-835434bf8d4a", 2**63], ids=["UUID", "beyond int64"])
def test_points_of_others_with_other_ids_are_named(small, id_):
    if isinstance(small.engine, qdrant_client.QdrantClient):
        models = qdrant_client.models
        vector = {"code": models.SparseVector(indices=[0], values=[2.0])}
        small.engine.upsert("codes", [models.PointStruct(id=id_, vector=vector)])
    else:
        point = qdrant_edge.Point(id_, {"code": qdrant_edge.SparseVector([0], [2.0])})
        small.engine.update(qdrant_edge.UpdateOperation.upsert_points([point]))
    np.testing.assert_array_equal(small.search(np.eye(3)[1:2], n_neighbors=1)[1], [[2]])
    with pytest.raises(
        ValueError, match=rf"must be integers below 2\*\*63; found '{id_}', which add\(\) did not store"
    ):
        small.search(np.eye(3), n_neighbors=2)


def test_repeated_indices_are_added_up(open_index):
    repeated = sp.csr_matrix((np.array([1.0, 2.0]), np.array([1, 1]), np.array([0, 2])), shape=(1, 3))
    with open_index(3) as index:
        index.add(repeated)
        np.testing.assert_array_equal(index.search(np.array([[0.0, 1.0, 0.0]]), n_neighbors=1)[0], [[3.0]])


def test_an_index_stays_when_closed(open_index):
    with open_index(3) as index:
        index.add(np.eye(3))
    with open_index(3) as index:
        assert len(index) == 3
        np.testing.assert_array_equal(index.search(np.eye(3)[1:2], n_neighbors=1)[1], [[1]])


@pytest.mark.parametrize("width", [2, 5])
def test_an_index_is_opened_with_its_width_only(open_index, width):
    with open_index(3) as index:
        index.add(np.eye(3))
    with pytest.raises(ValueError, match=f"n_components must be 3, the width of the codes in .*; got {width}"):
        open_index(width)
    with open_index(3) as index:
        assert len(index) == 3


def test_places_of_others_tell_no_width(tmp_path):
    with QdrantIndex(tmp_path / "index", 3) as index:
        index.add(np.eye(3))
    (tmp_path / "index" / "skcompressae_n_components").unlink()
    with QdrantIndex(tmp_path / "index", 4) as index:
        assert len(index) == 3
    client = qdrant_client.QdrantClient(":memory:")
    code = {"code": qdrant_client.models.SparseVectorParams()}
    client.create_collection("codes", vectors_config={}, sparse_vectors_config=code)
    assert len(QdrantIndex(client, 4)) == 0
    client.close()


def test_empty_batches_are_no_error(open_index):
    with open_index(3) as index:
        index.add(np.zeros((0, 3)))
        scores, ids = index.search(np.zeros((0, 3)), n_neighbors=2)
        assert scores.shape == ids.shape == (0, 2)
        assert len(index) == 0


def test_places_that_hold_something_else_are_refused(tmp_path):
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(ValueError, match="must be a new or empty folder"):
        QdrantIndex(tmp_path, 3)
    with QdrantIndex(tmp_path / "index", 3, vector_name="a") as index:
        index.add(np.eye(3))
    with pytest.raises(ValueError, match="could not be opened with the sparse vector 'b'"):
        QdrantIndex(tmp_path / "index", 3, vector_name="b")
    with pytest.raises(TypeError, match="location must be a path or a QdrantClient; got int"):
        QdrantIndex(5, 3)


def test_collections_that_would_score_otherwise_are_refused():
    models = qdrant_client.models
    client = qdrant_client.QdrantClient(":memory:")
    client.create_collection("dense", vectors_config=models.VectorParams(size=3, distance=models.Distance.DOT))
    client.create_collection(
        "idf",
        vectors_config={},
        sparse_vectors_config={"code": models.SparseVectorParams(modifier=models.Modifier.IDF)},
    )
    for name in ("dense", "idf"):
        with pytest.raises(ValueError, match=f"'{name}' must have a sparse vector 'code' without a modifier"):
            QdrantIndex(client, 3, collection=name)
    client.close()
