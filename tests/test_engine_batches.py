"""Codes that go to engines in many requests, and the limits that engines set."""

import numpy as np
import pytest
import scipy.sparse as sp
from test_engines import CODES

from skcompressae.engines import (
    MilvusIndex,
    PostgresIndex,
    _milvus,
    _postgres,
    _qdrant,
    elasticsearch_query,
    join_signs,
    rerank_signed,
    split_signs,
    write_elasticsearch_bulk,
)


def test_qdrant_in_many_requests(open_index, fitted, embeddings, monkeypatch):
    monkeypatch.setattr(_qdrant, "_BATCH_ROWS", 70)
    monkeypatch.setattr(_qdrant, "_BATCH_QUERIES", 7)
    codes = fitted.transform(embeddings)
    queries = sp.vstack([codes[:9], sp.csr_matrix((2, 48), dtype=np.float32), codes[9:20]]).tocsr()
    ids_of = np.arange(400)[::-1] + 7
    with open_index(48) as index:
        index.add(codes, ids=ids_of)
        scores, ids = index.search(queries, n_neighbors=10)
    asked = np.diff(queries.indptr) > 0
    exact = (queries @ codes.T).toarray()[asked]
    np.testing.assert_allclose(scores[asked], -np.sort(-exact, axis=1)[:, :10], rtol=1e-5)
    np.testing.assert_allclose(scores[asked], np.take_along_axis(exact, 406 - ids[asked], axis=1), rtol=1e-5)
    assert (ids[~asked] == -1).all()


def test_milvus_in_many_requests(milvus_client, fitted, embeddings, monkeypatch):
    monkeypatch.setattr(_milvus, "_BATCH_ROWS", 7)
    codes = fitted.transform(embeddings[:40])
    index = MilvusIndex(milvus_client, 48, collection="requests")
    index.add(split_signs(codes), ids=np.arange(40)[::-1])
    assert len(index) == 40
    np.testing.assert_array_equal(join_signs(index.fetch(np.arange(40))).toarray(), codes.toarray()[::-1])


def test_postgres_in_many_blocks(connection, fitted, embeddings, monkeypatch):
    monkeypatch.setattr(_postgres, "_COPY_ROWS", 70)
    codes = fitted.transform(embeddings)
    index = PostgresIndex(connection, 48)
    index.add(codes)
    scores, ids = index.search(codes[:5], n_neighbors=10)
    exact = (codes[:5] @ codes.T).toarray()
    np.testing.assert_allclose(scores, -np.sort(-exact, axis=1)[:, :10], rtol=1e-5)
    np.testing.assert_allclose(scores, np.take_along_axis(exact, ids, axis=1), rtol=1e-5)


def test_postgres_parameters_of_hnsw_arrive(connection):
    index = PostgresIndex(connection, 3)
    index.create_hnsw(m=7, ef_construction=23)
    (options,) = connection.execute("SELECT reloptions FROM pg_class WHERE relname = 'codes_code_idx'").fetchone()
    assert set(options) == {"m=7", "ef_construction=23"}


def test_lucenes_limits_are_within(tmp_path):
    row = split_signs(np.array([[64.0, -np.finfo(np.float32).tiny]], np.float32))
    assert elasticsearch_query(row, 2)["sparse_vector"]["query_vector"]["0"] == 64
    write_elasticsearch_bulk(tmp_path / "codes.jsonl", row, 2)


def test_a_candidate_just_beyond_the_rows():
    with pytest.raises(ValueError, match=r"candidates must be rows of codes, 0 \.\. 2; got 3"):
        rerank_signed(CODES[:1], [[3]], CODES, 1)


def test_split_rows_must_be_rows():
    with pytest.raises(ValueError, match=r"Expected 2D array|two-dimensional"):
        elasticsearch_query(np.ones(6), 3)
