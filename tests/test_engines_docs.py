"""The page on engines runs and shows the committed figures; the benchmark that makes them runs on tiny input."""

import json
import warnings

import numpy as np
import pytest
import scipy.sparse as sp
from conftest import DOCS
from documented_examples import code_blocks

from skcompressae.engines import elasticsearch_query, split_signs, write_elasticsearch_bulk
from skcompressae.exceptions import DeadLatentsWarning

pytest.importorskip("qdrant_client")
pytest.importorskip("psycopg")
pytest.importorskip("pymilvus")

PAGE = DOCS / "engines.md"


def test_the_page_runs(benchmark, tmp_path, monkeypatch):
    module = benchmark("_postgres_server")
    snippets = code_blocks(PAGE, "python")
    assert len(snippets) >= 6
    monkeypatch.chdir(tmp_path)
    try:
        with module.temporary_server() as conninfo:
            namespace = {"conninfo": conninfo}
            for snippet in snippets:
                exec(compile(snippet, str(PAGE), "exec"), namespace)
                if "scores" in namespace:
                    assert namespace["scores"].shape == (10, 5)
    except module.ServerUnavailable as error:
        pytest.skip(f"no PostgreSQL with pgvector could be started here: {error}")
    assert len((tmp_path / "codes.jsonl").read_text().splitlines()) == 4000


def test_lucene_itself_takes_the_files_and_queries(benchmark, tmp_path):
    module = benchmark("_lucene")
    random_state = np.random.RandomState(0)
    codes = sp.random(300, 64, 0.15, "csr", np.float32, random_state, random_state.standard_normal)
    queries = sp.random(4, 64, 0.5, "csr", np.float32, random_state, random_state.standard_normal)
    exact = (split_signs(queries) @ split_signs(codes).T).toarray()
    write_elasticsearch_bulk(tmp_path / "codes.jsonl", split_signs(codes), 64)
    try:
        index = module.LuceneIndex(tmp_path / "index")
    except module.LuceneUnavailable as error:
        pytest.skip(str(error))
    assert index.add_bulk(tmp_path / "codes.jsonl") == 300
    for query_type in ("sparse_vector", "neural_sparse", "rank_feature"):
        for query, products in zip(queries, exact, strict=True):
            body = elasticsearch_query(split_signs(query), 64, query_type=query_type)
            scores, ids = index.search(body, 20)
            np.testing.assert_allclose(scores, products[ids], rtol=2**-8)  # of nine significant bits
            np.testing.assert_allclose(scores, np.sort(products)[::-1][:20], rtol=2**-8)
    # the bounds of values that we refuse are Lucene's own
    single = {"query_vector": {"3": 64.0}, "field": "code"}
    assert index.search({"sparse_vector": single}, 1)[1][0] >= 0
    with pytest.raises(Exception, match="weight must be in"):
        index.search({"sparse_vector": {**single, "query_vector": {"3": 64.1}}}, 1)
    (tmp_path / "tiny.jsonl").write_text('{"index": {"_id": "0"}}\n{"code": {"1": 1e-38}}\n')
    with pytest.raises(Exception, match="must be a positive normal float"):
        index.add_bulk(tmp_path / "tiny.jsonl")
    index.close()


def test_the_table_of_the_page_is_that_of_the_committed_results(benchmark):
    engines = benchmark("engines")
    content = json.loads(engines.RESULTS.read_text(encoding="utf-8"))
    assert engines.table(content) in PAGE.read_text(encoding="utf-8")
    assert content["data"]["n_documents"] >= 50_000
    lucene = json.loads(engines.RESULTS.with_name("engines_lucene.json").read_text(encoding="utf-8"))
    assert engines.table(lucene) in PAGE.read_text(encoding="utf-8")
    assert lucene["data"] == content["data"]


def test_benchmark_measures_every_engine(benchmark, tmp_path, capsys):
    engines = benchmark("engines")
    out = tmp_path / "engines.json"
    arguments = ["--data", "tiny", "--n-components", "64", "--k", "8", "--steps", "20", "--n-nonzero", "8", "complete"]
    arguments += ["--n-queries", "6", "--n-timed", "2", "--cache-dir", str(tmp_path), "--out", str(out)]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeadLatentsWarning)
            engines.main([*arguments, "--engines", "qdrant", "milvus"])
            engines.main([*arguments, "--engines", "postgres", "--measure", "recall"])
    except benchmark("_postgres_server").ServerUnavailable as error:
        pytest.skip(f"no PostgreSQL with pgvector could be started here: {error}")
    content = json.loads(out.read_text())
    assert set(content["engines"]) == {"qdrant", "postgres", "milvus"}
    rows = {(row["engine"], row["variant"], row["n_nonzero"]): row for row in content["results"]}
    assert len(rows) == len(content["results"]) == 12
    for (engine, variant, n_nonzero), row in rows.items():
        if "exact" in variant:
            assert row["share_of_exact_order"] == 1.0
            assert row["recall_at_100"] == rows["qdrant", "embedded, exact", n_nonzero]["recall_at_100"]
        assert 0.3 < row["recall_at_100"] < 1.0
        assert ("median_ms" in row) == (engine != "postgres" and "not reranked" not in variant)
    capsys.readouterr()
    engines.main(["--table", "--out", str(out)])
    printed = capsys.readouterr().out
    assert printed.count("\n| ") == 6
    assert printed.startswith("| engine | 8 | complete |\n")
    with pytest.raises(ValueError, match="holds results of another setup"):
        engines.main([*arguments, "--seed", "1", "--engines", "qdrant"])
