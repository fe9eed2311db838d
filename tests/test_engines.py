"""What all engine adapters share: validation, signs and their rerank, files for Elasticsearch, missing extras."""

import json
import subprocess
import sys

import numpy as np
import pytest
import scipy.sparse as sp
import sklearn
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from skcompressae.engines import (
    MilvusIndex,
    PostgresIndex,
    QdrantIndex,
    elasticsearch_mapping,
    elasticsearch_query,
    join_signs,
    rerank_signed,
    split_signs,
    write_elasticsearch_bulk,
)
from skcompressae.engines._validation import check_codes, check_ids

CODES = sp.csr_matrix(np.array([[1.0, -2.0, 0.0], [0.0, 0.5, 3.0], [0.0, 0.0, 0.0]], dtype=np.float32))
VALUES = st.floats(-1e3, 1e3, width=32).filter(lambda value: value == 0 or abs(value) > 1e-3)


def matrices(n_rows, n_columns=5):
    return arrays(np.float32, (n_rows, n_columns), elements=VALUES)


@settings(max_examples=50, deadline=None)
@given(codes=matrices(4), queries=matrices(3))
def test_split_and_join_are_inverse_and_products_split_by_sign(codes, queries):
    split = split_signs(codes)
    assert split.shape == (4, 10)
    assert split.dtype == np.float32
    assert split.has_canonical_format
    assert (split.data > 0).all()
    np.testing.assert_array_equal(join_signs(split).toarray(), codes)
    agreeing, opposing = split_signs(queries) @ split.T, split_signs(-queries) @ split.T
    expected = queries.astype(np.float64) @ codes.T.astype(np.float64)
    np.testing.assert_allclose((agreeing - opposing).toarray(), expected, rtol=1e-4, atol=1.0)


def test_split_takes_what_transform_gives(fitted, embeddings):
    codes = fitted.transform(embeddings[:20])
    packed = fitted.transform_packed(embeddings[:20])
    for given_codes in (codes, sp.csr_array(codes), codes.tocsc(), codes.toarray()):
        np.testing.assert_array_equal(join_signs(split_signs(given_codes)).toarray(), codes.toarray())
    np.testing.assert_array_equal(join_signs(split_signs(packed)).toarray(), packed.to_csr().toarray())


@pytest.mark.skipif(
    "sparse_interface" not in sklearn.get_config(), reason="this scikit-learn has no sparse_interface setting"
)
def test_split_and_joined_codes_obey_the_sparse_interface_setting():
    for setting, expected in (("sparray", sp.csr_array), ("spmatrix", sp.csr_matrix)):
        with sklearn.config_context(sparse_interface=setting):
            split = split_signs(CODES)
            joined = join_signs(split)
            assert type(split) is type(joined) is expected
            np.testing.assert_array_equal(joined.toarray(), CODES.toarray())
            np.testing.assert_array_equal(rerank_signed(CODES[:1], [[1, 0]], joined, 2)[1], [[0, 1]])


@settings(max_examples=50, deadline=None)
@given(codes=matrices(6), queries=matrices(3))
def test_rerank_of_all_documents_is_the_signed_order(codes, queries):
    candidates = np.tile(np.arange(6), (3, 1))
    candidates[1, 2:] = -1
    scores, ids = rerank_signed(queries, candidates, sp.csr_matrix(codes), n_neighbors=4)
    np.testing.assert_array_equal(rerank_signed(queries, candidates, sp.coo_matrix(codes), n_neighbors=4)[1], ids)
    expected = queries @ codes.T
    for row in (0, 2):
        assert len(set(ids[row])) == 4
        np.testing.assert_allclose(scores[row], np.sort(expected[row])[::-1][:4], rtol=1e-4, atol=1.0)
        np.testing.assert_allclose(scores[row], expected[row, ids[row]], rtol=1e-4, atol=1.0)
    assert set(ids[1, :2]) == {0, 1}
    assert (ids[1, 2:] == -1).all()
    assert (scores[1, 2:] == -np.inf).all()


def test_more_candidates_restore_more_of_the_signed_order(fitted, embeddings):
    codes, queries = fitted.transform(embeddings[50:]), fitted.transform_query(embeddings[:50], n_nonzero=12)
    true = np.argsort(-(queries @ codes.T).toarray(), axis=1)[:, :10]
    order = np.argsort(-(split_signs(queries) @ split_signs(codes).T).toarray(), axis=1, kind="stable")

    def recall(n_candidates):
        _, ids = rerank_signed(queries, order[:, :n_candidates], codes, n_neighbors=10)
        return np.mean([np.isin(found, own).mean() for found, own in zip(ids, true, strict=True)])

    recalls = [recall(n) for n in (10, 30, 350)]
    assert recalls[0] < recalls[1] <= recalls[2]
    assert recalls[2] == 1.0


def test_rerank_asks_for_distinct_ids_once():
    asked = []

    def fetch(ids):
        asked.append(ids.tolist())
        return CODES[ids // 100]

    scores, ids = rerank_signed(CODES[:2], [[200, 0, -1], [100, 0, 0]], fetch, n_neighbors=2)
    assert asked == [[0, 100, 200]]
    np.testing.assert_array_equal(ids, [[0, 200], [100, 0]])
    np.testing.assert_allclose(scores, [[5.0, 0.0], [9.25, -1.0]])


def test_rerank_takes_rows_of_data_frames_by_their_place():
    frame = pytest.importorskip("pandas").DataFrame(CODES.toarray(), index=[2, 1, 0])
    asked = CODES[:2], [[2, 0], [0, 2]]
    expected = rerank_signed(*asked, CODES, 2)
    for codes in (frame, lambda ids: frame.iloc[ids]):
        for found, wanted in zip(rerank_signed(*asked, codes, 2), expected, strict=True):
            np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((CODES, [[0], [1]], CODES, 1), r"candidates must be integers of shape \(n_queries=3, n_candidates\)"),
        ((CODES[:1], [[0.5]], CODES, 1), "candidates must be integers"),
        ((CODES[:1], [[7]], CODES, 1), r"candidates must be rows of codes, 0 \.\. 2; got 7"),
        ((CODES[:1], [[0]], CODES, 2), "n_neighbors=2 must be at most the 1 candidates"),
        ((CODES[:1], [[0]], CODES, 0), "n_neighbors must be a positive integer; got 0"),
        ((CODES[:1], [[0]], CODES[:, :2], 1), "codes must have n_components=3 columns; got 2"),
        ((CODES[:1], [[0, 1]], lambda ids: CODES[:1], 1), "codes gave 1 rows for 2 ids"),
        ((np.zeros(3), [[0]], CODES, 1), r"queries must be two-dimensional; got shape \(3,\)"),
    ],
)
def test_rerank_names_what_is_wrong(arguments, message):
    with pytest.raises(ValueError, match=message):
        rerank_signed(*arguments)


def test_join_refuses_what_no_split_gives():
    with pytest.raises(ValueError, match=r"even number of columns, .* got 3"):
        join_signs(CODES)
    with pytest.raises(ValueError, match=r"split must not be negative, .* got -1. Codes that were never split"):
        join_signs(np.array([[1.0, -1.0]]))


def with_indices(indices):
    codes = CODES.copy()
    codes.indices = np.array(indices, dtype=np.int32)
    return codes


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (np.array([[1.0, np.nan, 0.0]]), "Input codes contains NaN"),
        (sp.csr_matrix(np.array([[np.inf, 0.0, 0.0]])), "Input codes contains infinity"),
        (np.array([[1e300, 0.0, 0.0]]), r"codes must fit into float32, .* got 1e\+300"),
        (np.zeros((2, 4)), "codes must have n_components=3 columns; got 4"),
        (np.zeros(3), "Expected 2D array, got 1D array"),
        (np.array([["a", "b", "c"]]), "could not convert string to float"),
        (with_indices([0, 5, 1, 2]), "must be < 3"),
        (with_indices([0, -1, 1, 2]), "must be >= 0"),
    ],
)
def test_codes_are_checked(codes, message):
    with pytest.raises(ValueError, match=message):
        check_codes(codes, 3)


def test_checked_codes_are_canonical_and_the_callers_stay():
    messy = sp.csr_matrix((np.array([1.0, 2.0, 0.0, 1e-60]), np.array([2, 2, 0, 1]), np.array([0, 4, 4])), shape=(2, 3))
    checked = check_codes(messy, 3)
    np.testing.assert_array_equal(checked.toarray(), [[0, 0, 3], [0, 0, 0]])
    assert checked.nnz == 1  # the stored zero, and what float32 makes one, are gone
    np.testing.assert_array_equal(messy.indices, [2, 2, 0, 1])
    np.testing.assert_array_equal(messy.data, [1.0, 2.0, 0.0, 1e-60])


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([0, 1], r"one entry per row, shape \(3,\); got shape \(2,\)"),
        ([0, 1, -1], "must lie in 0 .*; got -1"),
        (np.array([0, 1, 2**63], dtype=np.uint64), "must lie in 0 .*; got 9223372036854775808"),
        ([4, 1, 4], "distinct; got 4 2 times"),
    ],
)
def test_ids_are_checked(ids, message):
    with pytest.raises(ValueError, match=message):
        check_ids(ids, 3)


def test_ids_must_be_integers_and_default_to_row_numbers():
    with pytest.raises(TypeError, match="ids must be integers; got dtype float64"):
        check_ids([0.0, 1.0], 2)
    np.testing.assert_array_equal(check_ids(None, 2), [0, 1])
    with pytest.raises(ValueError, match=r"holds documents \(5 here\).*np.arange\(5, 7\)"):
        check_ids(None, 2, n_stored=5)


def test_bulk_file_has_an_action_and_the_features_of_every_row(tmp_path):
    path = tmp_path / "codes.jsonl"
    write_elasticsearch_bulk(path, split_signs(CODES), 3, ids=[7, 2**62, 9], index="items", field="sae")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines[::2] == [{"index": {"_index": "items", "_id": id_}} for id_ in ("7", str(2**62), "9")]
    assert lines[1::2] == [{"sae": {"0": 1.0, "4": 2.0}}, {"sae": {"1": 0.5, "2": 3.0}}, {"sae": {}}]
    assert path.read_bytes().endswith(b"}\n")
    with pytest.raises(ValueError, match="must be distinct"):
        write_elasticsearch_bulk(path, split_signs(CODES), 3, ids=[1, 1, 1])
    assert len(path.read_text().splitlines()) == 6
    assert [entry.name for entry in tmp_path.iterdir()] == ["codes.jsonl"]


def test_bulk_values_come_back_exactly(tmp_path, fitted, embeddings):
    split = split_signs(fitted.transform(embeddings[:50]))
    write_elasticsearch_bulk(tmp_path / "codes.jsonl", split, 48)
    lines = (tmp_path / "codes.jsonl").read_text().splitlines()
    back = np.zeros(split.shape, dtype=np.float32)
    for row, line in enumerate(lines[1::2]):
        for column, value in json.loads(line)["code"].items():
            back[row, int(column)] = value
    np.testing.assert_array_equal(back, split.toarray())


def test_elasticsearch_queries_carry_the_weights():
    query = split_signs(CODES[0])
    weights = {"0": 1.0, "4": 2.0}
    assert elasticsearch_query(query, 3) == {
        "sparse_vector": {"field": "code", "query_vector": weights, "prune": False}
    }
    assert elasticsearch_query(query, 3, query_type="neural_sparse") == {
        "neural_sparse": {"code": {"query_tokens": weights}}
    }
    assert elasticsearch_query(query, 3, query_type="rank_feature", field="sae")["bool"]["should"] == [
        {"rank_feature": {"field": f"sae.{feature}", "linear": {}, "boost": boost}}
        for feature, boost in weights.items()
    ]
    assert elasticsearch_mapping("sae") == {"mappings": {"properties": {"sae": {"type": "sparse_vector"}}}}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: elasticsearch_mapping("a.b"), "field must be a non-empty string without dots; got 'a.b'"),
        (lambda: elasticsearch_mapping(field_type="dense"), "field_type must be one of .*; got 'dense'"),
        (lambda: elasticsearch_query(split_signs(CODES), 3), r"one row with a nonzero; got 3 row\(s\)"),
        (lambda: elasticsearch_query(split_signs(CODES[2]), 3), "one row with a nonzero; got .* 0 nonzeros"),
        (lambda: elasticsearch_query(CODES[0], 3), r"Elasticsearch refuses negative.*-2\. Pass split_signs\(query\)"),
        (lambda: elasticsearch_query(abs(CODES[0]), 3), r"2 \* n_components=6 columns, those of split_signs"),
        (lambda: write_elasticsearch_bulk("unwritten", CODES, 3), r"Pass split_signs\(codes\), with 6 columns"),
        (
            lambda: elasticsearch_query(split_signs(40 * CODES[0]), 3),
            r"no value above 64 for .*; got 80\. Divide it by",
        ),
        (lambda: write_elasticsearch_bulk("unwritten", split_signs(1e-39 * CODES), 3), "no value below 1.18e-38, the"),
        (lambda: write_elasticsearch_bulk("unwritten", CODES, 4), r"must have 2 \* n_components=8 columns; got 3"),
        (lambda: elasticsearch_query(split_signs(CODES[0]), 4), r"query must have 2 \* n_components=8 columns; got 6"),
        (lambda: write_elasticsearch_bulk("unwritten", sp.hstack([CODES, CODES]), 3), "codes must not be negative"),
    ],
)
def test_elasticsearch_names_what_is_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("module", "extra", "call"),
    [
        ("qdrant_edge", "qdrant", lambda: QdrantIndex("folder", 3)),
        ("qdrant_client", "qdrant", lambda: QdrantIndex(object(), 3)),
        ("psycopg", "postgres", lambda: PostgresIndex(object(), 3)),
        ("pymilvus", "milvus", lambda: MilvusIndex(object(), 3)),
    ],
)
def test_missing_engines_name_their_extra(monkeypatch, module, extra, call):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=f"install the extra '{extra}' of skcompressae"):
        call()


def test_adapters_import_no_engine():
    code = (
        "import sys, skcompressae.engines\n"
        "print([m for m in ('qdrant_edge', 'qdrant_client', 'psycopg', 'pymilvus', 'torch') if m in sys.modules])"
    )
    finished = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert finished.stdout.strip() == "[]", finished.stderr
