"""
Serve codes from PostgreSQL
===========================

What does the approximate index of pgvector lose, beside the exact scan?

pgvector's type ``sparsevec`` holds signed codes. A scan of the table is exact; an HNSW index is faster on large
tables and loses neighbours. The server is started here for the moment; pass
:class:`~skcompressae.engines.PostgresIndex` a connection to yours.
"""

# %%
# Compress documents
# ------------------
import docstring_corpus
from sklearn.model_selection import train_test_split

from skcompressae import CompresSAETransformer

_, X, _ = docstring_corpus.embedded_docstrings()
documents, queries = train_test_split(X, test_size=100, random_state=0)
compressor = CompresSAETransformer(n_components=256, k=8, norm="unit", max_iter=200, random_state=0)
codes = compressor.fit_transform(documents)
expanded = compressor.transform_query(queries, n_nonzero=64)

# %%
# Store, search by scan, build the index, search by index
# -------------------------------------------------------
# `ef_search` is how many candidates HNSW keeps; without it the table is scanned.
import sys
from pathlib import Path

import psycopg

from skcompressae.engines import PostgresIndex
from skcompressae.metrics import exact_neighbors, neighbor_recall_score

sys.path.append(str(Path(docstring_corpus.__file__).resolve().parents[1] / "benchmarks"))
from _postgres_server import temporary_server

true = exact_neighbors(documents, queries, 10)
candidates, recalls, agreements = (10, 20, 40, 80, 160, 320), [], []
with temporary_server() as address, psycopg.connect(address) as connection:
    index = PostgresIndex(connection, n_components=256)
    index.add(codes)
    _, scanned = index.search(expanded, n_neighbors=10)
    index.create_hnsw(m=16, ef_construction=64)
    for ef_search in candidates:
        _, found = index.search(expanded, n_neighbors=10, ef_search=ef_search)
        recalls.append(neighbor_recall_score(true, found))
        agreements.append(neighbor_recall_score(scanned, found))
    print(f"{len(index)} documents")

# %%
# Two different losses
# --------------------
# What the index loses against the scan, and what codes (with a query of 64 nonzeros) lose against the dense vectors.
import matplotlib.pyplot as plt

figure, axis = plt.subplots(figsize=(5.5, 3.6), layout="constrained")
axis.plot(candidates, agreements, "s--", label="of the neighbours by scan")
axis.plot(candidates, recalls, "o-", label="of the dense neighbours")
by_scan = neighbor_recall_score(true, scanned)
axis.axhline(by_scan, color="0.4", linestyle=":", label="scan, of the dense neighbours")
axis.set(xscale="log", xlabel="ef_search", ylabel="recall@10", ylim=(0, 1.03), title="pgvector, HNSW")
axis.set_xticks(candidates, [str(value) for value in candidates])
axis.grid(alpha=0.3)
axis.legend(loc="lower right")
plt.show()
