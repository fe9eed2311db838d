"""Lucene itself, in this process: what Elasticsearch and OpenSearch do with our bulk files and queries.

Both engines index an entry of a ``sparse_vector`` or ``rank_features`` field as one Lucene ``FeatureField``, and search
by a Boolean query of linear feature queries, one per entry of the query vector. This module does the same with the
files that `write_elasticsearch_bulk` writes and the bodies that `elasticsearch_query` returns; no server is involved,
nor its analysis of requests.

Needs Java, the PyPI package JPype1 and a jar of Lucene 8 or 9: that of Debian's liblucene8-java, or one that the
environment's LUCENE_JAR names, such as the jar in the source distribution of the PyPI package pyserini.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

# one clause per entry of a query; the default of 1,024 is what `indices.query.bool.max_clause_count` raises
MAX_CLAUSES = 1 << 16


class LuceneUnavailable(RuntimeError):
    """There is no Java, JPype1 or Lucene here."""


def lucene_jar() -> Path:
    """Return the jar of Lucene."""
    named = os.environ.get("LUCENE_JAR")
    found = [Path(named)] if named else sorted(Path("/usr/share/java").glob("lucene-core-*.jar"))
    if not found or not found[-1].exists():
        raise LuceneUnavailable(f"no Lucene ({named}): apt-get install liblucene8-java, or set LUCENE_JAR")
    return found[-1]


class LuceneIndex:
    """An index in a folder, of one field of features.

    Parameters
    ----------
    folder : path-like
        Empty or new.
    """

    def __init__(self, folder: str | Path) -> None:
        try:
            import jpype
        except ImportError as error:
            raise LuceneUnavailable("no JPype1: pip install jpype1") from error
        jar = lucene_jar()
        if not jpype.isJVMStarted():
            try:
                jpype.startJVM("-Xmx2g", classpath=[str(jar)], convertStrings=True)
            except jpype.JVMNotFoundException as error:
                raise LuceneUnavailable("no Java") from error
        self._folder = Path(folder)
        lucene = jpype.JPackage("org").apache.lucene
        self._document = lucene.document
        self._index = lucene.index
        self._search = lucene.search
        self._directory = lucene.store.FSDirectory.open(jpype.JClass("java.nio.file.Paths").get(str(folder)))
        self.version = str(lucene.util.Version.LATEST)
        self.java = str(jpype.JClass("java.lang.System").getProperty("java.version"))
        limited = self._search.IndexSearcher  # moved there by Lucene 9
        (limited if hasattr(limited, "setMaxClauseCount") else self._search.BooleanQuery).setMaxClauseCount(MAX_CLAUSES)
        self._searcher: Any = None

    def add_bulk(self, path: str | Path) -> int:
        """Index a bulk file, one segment in the end; return the number of documents."""
        writer = self._index.IndexWriter(self._directory, self._index.IndexWriterConfig())
        n_documents = 0
        with Path(path).open() as stream:
            for action, line in zip(stream, stream, strict=True):
                ((field, features),) = json.loads(line).items()
                document = self._document.Document()
                stored = self._document.StoredField("id", int(json.loads(action)["index"]["_id"]))
                document.add(stored)
                for name, value in features.items():
                    document.add(self._document.FeatureField(field, name, value))
                writer.addDocument(document)
                n_documents += 1
        writer.forceMerge(1)
        writer.close()
        self._searcher = self._search.IndexSearcher(self._index.DirectoryReader.open(self._directory))
        return n_documents

    @property
    def size_bytes(self) -> int:
        """Bytes of the index's files."""
        return sum(file.stat().st_size for file in self._folder.iterdir())

    def query(self, body: dict[str, Any]) -> Any:
        """Turn the value of ``"query"`` into the query that the server makes of it."""
        builder = self._search.BooleanQuery.Builder()
        should = self._search.BooleanClause.Occur.SHOULD
        feature_query = self._document.FeatureField.newLinearQuery
        if "bool" in body:  # rank_feature: weight 1, boosted
            for clause in body["bool"]["should"]:
                of = clause["rank_feature"]
                field, _, name = of["field"].partition(".")
                builder.add(self._search.BoostQuery(feature_query(field, name, 1.0), of["boost"]), should)
        else:  # sparse_vector, neural_sparse: the weight itself
            if "sparse_vector" in body:
                field, weights = body["sparse_vector"]["field"], body["sparse_vector"]["query_vector"]
            else:
                ((field, tokens),) = body["neural_sparse"].items()
                weights = tokens["query_tokens"]
            for name, weight in weights.items():
                builder.add(feature_query(field, name, weight), should)
        return builder.build()

    def search(self, body: dict[str, Any], n_neighbors: int) -> tuple[np.ndarray, np.ndarray]:
        """Return scores and ids of the best documents, -inf and -1 where there are fewer."""
        scores, ids = np.full(n_neighbors, -np.inf, np.float32), np.full(n_neighbors, -1, np.int64)
        stored = (
            self._searcher.storedFields().document if hasattr(self._searcher, "storedFields") else self._searcher.doc
        )
        for rank, hit in enumerate(self._searcher.search(self.query(body), n_neighbors).scoreDocs):
            scores[rank] = hit.score
            ids[rank] = int(stored(hit.doc).getField("id").numericValue())
        return scores, ids

    def close(self) -> None:
        """Close the files."""
        if self._searcher is not None:
            self._searcher.getIndexReader().close()
        self._directory.close()
