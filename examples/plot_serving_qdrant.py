"""
Serve codes from Qdrant
=======================

How many nonzeros does a query need in an engine that knows sparse dot products only?

Documents are stored as codes whose reconstruction has length 1; queries are expanded by
:meth:`~skcompressae.CompresSAETransformer.transform_query`, and cut to their most valuable entries. Qdrant runs
embedded in this process, in a folder; give the adapter a ``qdrant_client.QdrantClient`` instead to use a
server.
"""

# %%
# Compress documents
# ------------------
from docstring_corpus import embedded_docstrings
from sklearn.model_selection import train_test_split

from skcompressae import CodeNearestNeighbors, CompresSAETransformer

_, X, _ = embedded_docstrings()
documents, queries = train_test_split(X, test_size=200, random_state=0)
compressor = CompresSAETransformer(n_components=256, k=8, norm="unit", max_iter=200, random_state=0)
codes = compressor.fit_transform(documents)

# %%
# Store and search
# ----------------
# Higher scores are better; here they are cosines.
import tempfile

from skcompressae.engines import QdrantIndex
from skcompressae.metrics import exact_neighbors, neighbor_recall_score

true = exact_neighbors(documents, queries, 10)
sizes, recalls = (4, 8, 16, 32, 64, 128, 256), []
with tempfile.TemporaryDirectory() as folder, QdrantIndex(folder, n_components=256) as index:
    index.add(codes)
    for n_nonzero in sizes:
        scores, ids = index.search(compressor.transform_query(queries, n_nonzero=n_nonzero), n_neighbors=10)
        recalls.append(neighbor_recall_score(true, ids))
    print(f"{len(index)} documents; scores of the first query: {scores[0, :3].round(3)}")

# %%
# Beside the search of this package
# ---------------------------------
# With all entries of the query, the engine finds what :class:`~skcompressae.CodeNearestNeighbors` finds in
# asymmetric mode.
import matplotlib.pyplot as plt

search = CodeNearestNeighbors(10, compressor=compressor).fit(codes)
own = neighbor_recall_score(true, search.kneighbors(queries, return_distance=False))
figure, axis = plt.subplots(figsize=(5.5, 3.6), layout="constrained")
axis.plot(sizes, recalls, "o-", label="Qdrant, expanded query")
axis.axhline(own, color="0.4", linestyle="--", label="CodeNearestNeighbors, asymmetric")
axis.set(xscale="log", xlabel="nonzeros of the query", ylabel="recall@10 of the dense neighbours")
axis.set(title="k = 8 of 256 latents, 64 dimensions")
axis.set_xticks(sizes, [str(size) for size in sizes])
axis.grid(alpha=0.3)
axis.legend(loc="lower right")
plt.show()
