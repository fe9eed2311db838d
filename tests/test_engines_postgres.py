"""pgvector in a real PostgreSQL, started for these tests, against exact products."""

import numpy as np
import pytest
import scipy.sparse as sp
from documented_examples import run_documented_examples

from skcompressae.engines import PostgresIndex

psycopg = pytest.importorskip("psycopg")


@pytest.fixture
def codes(fitted, embeddings):
    return fitted.transform(embeddings)


def test_the_server_is_what_the_adapter_asks_for(connection):
    PostgresIndex(connection, 3)
    (version,) = connection.execute("SELECT extversion FROM pg_extension WHERE extname = 'vector'").fetchone()
    assert tuple(map(int, version.split(".")))[:2] >= (0, 7)


@pytest.mark.parametrize("metric", ["dot", "cosine"])
def test_the_scan_is_exact(connection, codes, fitted, embeddings, metric):
    index = PostgresIndex(connection, 48, metric=metric)
    index.add(codes)
    assert len(index) == 400
    queries = fitted.transform_query(embeddings[:10]) if metric == "dot" else codes[:10]
    scores, ids = index.search(queries, n_neighbors=15)
    exact = (queries @ codes.T).toarray()
    if metric == "cosine":
        exact /= sp.linalg.norm(queries, axis=1)[:, np.newaxis] * sp.linalg.norm(codes, axis=1)
    np.testing.assert_allclose(scores, -np.sort(-exact, axis=1)[:, :15], rtol=1e-5)
    np.testing.assert_allclose(scores, np.take_along_axis(exact, ids, axis=1), rtol=1e-5)


def test_binary_copy_keeps_every_bit(connection):
    rng = np.random.default_rng(0)
    stored = sp.random(300, 1000, density=0.02, format="csr", random_state=0, dtype=np.float32)
    stored.data = (rng.standard_normal(stored.nnz) * 10.0 ** rng.integers(-30, 30, stored.nnz)).astype(np.float32)
    stored.data[stored.indptr[7] : stored.indptr[8]] = 0
    stored.eliminate_zeros()
    ids = rng.permutation(300) * 2**53
    index = PostgresIndex(connection, 1000)
    index.add(stored, ids=ids)
    rows = dict(connection.execute("SELECT id, code::text FROM codes").fetchall())
    assert set(rows) == set(ids.tolist())
    for row, id_ in enumerate(ids.tolist()):
        entries, width = rows[id_].split("/")
        found = dict(entry.split(":") for entry in entries.strip("{}").split(",") if entry)
        assert width == "1000"
        np.testing.assert_array_equal([int(i) - 1 for i in found], stored[row].indices)
        np.testing.assert_array_equal(np.array(list(found.values()), dtype=np.float32), stored[row].data)


def n_index_scans(connection):
    connection.execute("SELECT pg_stat_force_next_flush()")
    connection.commit()
    query = "SELECT idx_scan FROM pg_stat_user_indexes WHERE indexrelname = 'codes_code_idx'"
    (count,) = connection.execute(query).fetchone()
    connection.commit()
    return count


def test_hnsw_finds_most_neighbours_and_is_really_used(connection, codes):
    index = PostgresIndex(connection, 48)
    index.add(codes)
    with pytest.raises(ValueError, match=r"ef_search needs an HNSW index for metric='dot': call create_hnsw\(\)"):
        index.search(codes[:1], ef_search=40)
    index.create_hnsw(m=8, ef_construction=32)
    # so many that a prepared statement would have settled on the plan of the scan
    _, true = index.search(codes[:50], n_neighbors=10)
    before = n_index_scans(connection)
    recalls = []
    for ef_search in (10, 200):
        scores, ids = index.search(codes[:50], n_neighbors=10, ef_search=ef_search)
        np.testing.assert_allclose(scores, np.take_along_axis((codes[:50] @ codes.T).toarray(), ids, 1), rtol=1e-5)
        recalls.append(np.mean([np.isin(found, own).mean() for found, own in zip(ids, true, strict=True)]))
    assert 0.3 < recalls[0] <= recalls[1]
    assert recalls[1] > 0.9
    assert n_index_scans(connection) - before == 100
    np.testing.assert_array_equal(index.search(codes[:50], n_neighbors=10)[1], true)
    # the settings of a search end with it
    assert connection.execute("SHOW enable_seqscan").fetchone() == ("on",)
    with pytest.raises(ValueError, match="metric='cosine'"):
        PostgresIndex(connection, 48, metric="cosine").search(codes[:1], ef_search=40)
    with pytest.raises(ValueError, match="ef_search=5 must be at least n_neighbors=10"):
        index.search(codes[:1], ef_search=5)
    with pytest.raises(ValueError, match="ef_search must be at most 1000; got 1001"):
        index.search(codes[:1], ef_search=1001)
    with pytest.raises(ValueError, match=r"ef_construction at least 2 \* m; got 16 and 20"):
        index.create_hnsw(ef_construction=20)


def test_plans_hold_whatever_was_set_before(connection, codes):
    """A setting of a transaction within the caller's lasts as long as the caller's."""
    index = PostgresIndex(connection, 48)
    index.add(codes)
    index.create_hnsw(m=2, ef_construction=4)
    _, true = index.search(codes[:20], n_neighbors=10)
    settings = ("enable_seqscan", "enable_sort", "enable_indexscan")
    before = n_index_scans(connection)
    connection.commit()
    connection.execute("SELECT 1")  # opens a transaction
    index.search(codes[:20], n_neighbors=10, ef_search=10)
    np.testing.assert_array_equal(index.search(codes[:20], n_neighbors=10)[1], true)
    assert [connection.execute(f"SHOW {name}").fetchone() for name in settings] == [("on",)] * 3
    connection.commit()
    for value in ("off", "on"):
        for name in settings:
            connection.execute(f"SET {name} = {value}")
        np.testing.assert_array_equal(index.search(codes[:20], n_neighbors=10)[1], true)
        index.search(codes[:20], n_neighbors=10, ef_search=10)
        assert [connection.execute(f"SHOW {name}").fetchone() for name in settings] == [(value,)] * 3
        connection.commit()
    assert n_index_scans(connection) - before == 60


@pytest.mark.parametrize("kind", ["Cursor", "ClientCursor", "RawCursor"])
def test_connections_with_cursors_of_their_own(server, connection, kind):
    if not hasattr(psycopg, kind):  # raw cursors came with 3.2, and 3.1 is supported
        pytest.skip(f"psycopg has no {kind} yet")
    options = {"row_factory": psycopg.rows.dict_row, "cursor_factory": getattr(psycopg, kind)}
    with psycopg.connect(server, dbname="codes", **options) as other:
        index = PostgresIndex(other, 3, table="docs 50%", schema="public")
        index.add(np.eye(3))
        index.create_hnsw()
        assert len(index) == 3
        for ef_search in (None, 10):
            np.testing.assert_array_equal(
                index.search(np.eye(3), n_neighbors=1, ef_search=ef_search)[1], [[0], [1], [2]]
            )


def test_a_database_without_an_encoding(server):
    """Its texts arrive as bytes."""
    with psycopg.connect(server, autocommit=True) as admin:
        admin.execute("DROP DATABASE IF EXISTS bytes")
        admin.execute("CREATE DATABASE bytes ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0")
    with psycopg.connect(server, dbname="bytes") as other:
        assert other.execute("SELECT 'text'").fetchone() == (b"text",)
        index = PostgresIndex(other, 3)
        index.add(np.eye(3))
        index.create_hnsw()
        for ef_search in (None, 10):
            found = PostgresIndex(other, 3).search(np.eye(3), n_neighbors=1, ef_search=ef_search)[1]
            np.testing.assert_array_equal(found, [[0], [1], [2]])
        with pytest.raises(ValueError, match=r"must have the columns .*; got .*'code': 'sparsevec\(3\)'"):
            PostgresIndex(other, 4)


def test_an_index_of_other_rows_or_columns_does_not_serve(connection):
    connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
    connection.execute("CREATE TABLE items (id bigint PRIMARY KEY, other sparsevec(3), code sparsevec(3))")
    connection.execute("CREATE INDEX ON items USING hnsw (other sparsevec_ip_ops)")
    connection.execute("CREATE INDEX ON items USING hnsw (code sparsevec_ip_ops) WHERE id < 10")
    index = PostgresIndex(connection, 3, table="items")
    with pytest.raises(ValueError, match="ef_search needs an HNSW index for metric='dot'"):
        index.search(np.eye(3), n_neighbors=1, ef_search=10)


def test_a_table_that_is_there_is_searched_by_who_may_only_read(connection):
    PostgresIndex(connection, 3).add(np.eye(3))
    connection.commit()
    connection.execute("SET default_transaction_read_only = on")
    connection.commit()
    index = PostgresIndex(connection, 3)
    np.testing.assert_array_equal(index.search(np.eye(3), n_neighbors=1)[1], [[0], [1], [2]])
    connection.rollback()


def test_hnsw_takes_a_thousand_nonzeros_and_longer_queries(connection):
    index = PostgresIndex(connection, 2000)
    index.add(sp.eye(20, 2000, format="csr"))
    index.create_hnsw()
    connection.commit()
    with pytest.raises(psycopg.errors.ProgramLimitExceeded, match="1000 non-zero"):
        index.add(np.ones((1, 2000)), ids=[99])
    scores, _ = index.search(np.ones((1, 2000)), n_neighbors=5, ef_search=20)
    np.testing.assert_array_equal(scores, np.ones((1, 5)))


def test_a_failed_load_stores_nothing(connection):
    index = PostgresIndex(connection, 3)
    index.add(np.eye(3))
    with pytest.raises(psycopg.errors.UniqueViolation):
        index.add(np.eye(3), ids=[5, 6, 2])
    with pytest.raises(ValueError, match="Input codes contains NaN"):
        index.add(np.array([[np.nan, 0.0, 0.0]]), ids=[9])
    with pytest.raises(ValueError, match=r"holds documents \(3 here\)"):
        index.add(np.eye(3))
    assert len(index) == 3


def test_work_in_an_open_transaction_is_the_callers_to_commit(connection):
    index = PostgresIndex(connection, 3)
    connection.execute("SELECT 1")
    index.add(np.eye(3))
    connection.rollback()
    assert len(index) == 0
    index.add(np.eye(3))
    connection.rollback()
    assert len(index) == 3


def test_names_are_quoted(connection):
    connection.execute('CREATE SCHEMA "my ""schema"')
    connection.commit()
    table = 'codes"; DROP TABLE bystander; --'
    connection.execute("CREATE TABLE bystander ()")
    index = PostgresIndex(connection, 3, table=table, schema='my "schema')
    index.add(np.eye(3))
    index.create_hnsw()
    assert index.search(np.eye(3)[:1], n_neighbors=1, ef_search=10)[1] == 0
    names = connection.execute("SELECT schemaname, tablename FROM pg_tables WHERE tableowner = 'postgres'").fetchall()
    assert ('my "schema', table) in names
    assert ("public", "bystander") in names
    with pytest.raises(ValueError, match="table must be a non-empty string"):
        PostgresIndex(connection, 3, table="")
    with pytest.raises(ValueError, match="schema must be a non-empty string without NUL"):
        PostgresIndex(connection, 3, schema="a\0b")


def test_tables_of_another_form_are_refused(connection):
    PostgresIndex(connection, 3)
    with pytest.raises(ValueError, match=r"must have the columns .*sparsevec\(4\).*; got .*sparsevec\(3\)"):
        PostgresIndex(connection, 4)
    connection.execute("CREATE TABLE named (id integer, code sparsevec(3))")
    with pytest.raises(ValueError, match=r"'id': 'integer'"):
        PostgresIndex(connection, 3, table="named")
    connection.execute("CREATE TABLE items (name text, id bigint PRIMARY KEY, code sparsevec(3))")
    wide = PostgresIndex(connection, 3, table="items")
    wide.add(np.eye(3))
    assert len(wide) == 3
    with pytest.raises(TypeError, match=r"connection must be a psycopg\.Connection; got str"):
        PostgresIndex("host=nowhere", 3)
    with pytest.raises(ValueError, match="metric must be 'dot' or 'cosine'; got 'l2'"):
        PostgresIndex(connection, 3, metric="l2")


def test_zero_rows_and_fewer_documents_than_asked_for(connection):
    documents = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [-1.0, 0.0, 0.0]])
    by_dot, by_cosine = PostgresIndex(connection, 3), PostgresIndex(connection, 3, metric="cosine")
    by_dot.add(documents)
    scores, ids = by_dot.search(documents[:1], n_neighbors=4)
    np.testing.assert_array_equal(ids, [[0, 1, 2, -1]])
    np.testing.assert_array_equal(scores, [[1.0, 0.0, -1.0, -np.inf]])
    np.testing.assert_array_equal(by_cosine.search(documents[:2], n_neighbors=3)[1], [[0, 2, -1], [-1, -1, -1]])
    assert by_dot.search(np.zeros((0, 3)), n_neighbors=2)[0].shape == (0, 2)
    wide = PostgresIndex(connection, 20_000, table="wide")
    with pytest.raises(ValueError, match=r"queries must have at most 16000 nonzeros per row, .*; got 20000"):
        wide.search(np.ones((1, 20_000)))


@pytest.mark.parametrize("metric", ["dot", "cosine"])
def test_rows_without_a_code_are_not_found(connection, metric):
    connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
    connection.execute("CREATE TABLE items (id bigint PRIMARY KEY, title text, code sparsevec(3))")
    connection.execute("INSERT INTO items (id, title) VALUES (0, 'not encoded yet'), (9, 'nor this')")
    index = PostgresIndex(connection, 3, table="items", metric=metric)
    with pytest.raises(ValueError, match=r"holds documents \(2 here\)"):
        index.add(np.eye(3))
    index.add(np.eye(3), ids=[1, 2, 3])
    index.create_hnsw()
    assert len(index) == 5
    for ef_search in (None, 10):
        scores, ids = index.search(np.array([[3.0, 0.0, 4.0]]), n_neighbors=5, ef_search=ef_search)
        np.testing.assert_array_equal(ids, [[3, 1, 2, -1, -1]])
        expected = np.array([4.0, 3.0, 0.0]) / (1.0 if metric == "dot" else 5.0)
        np.testing.assert_allclose(scores, [[*expected, -np.inf, -np.inf]], rtol=1e-6)


@pytest.mark.parametrize(
    "documented",
    [PostgresIndex, PostgresIndex.add, PostgresIndex.create_hnsw, PostgresIndex.search],
    ids=lambda documented: documented.__qualname__,
)
def test_documented_examples(connection, monkeypatch, documented):
    monkeypatch.setattr(psycopg, "connect", lambda conninfo: connection)
    run_documented_examples(documented)
