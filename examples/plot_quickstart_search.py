"""
Search compressed embeddings
============================

Does search over the codes find what search over the embeddings finds?

The embeddings are those of scikit-learn's docstrings: real text, nothing to download.
"""

# %%
# Embed 2,000 docstrings
# -----------------------
# Any embeddings will do; here they are made by latent semantic analysis.
from docstring_corpus import embedded_docstrings

entries, X, embedder = embedded_docstrings()
print(X.shape, X.dtype)

# %%
# Compress them
# -------------
# Each row becomes 8 signed nonzeros of 256.
from skcompressae import CodeNearestNeighbors, CompresSAETransformer
from skcompressae.metrics import bytes_per_vector, exact_neighbors, neighbor_recall_score

compressor = CompresSAETransformer(n_components=256, k=8, max_iter=200, random_state=0)
codes = compressor.fit_transform(X)
packed = compressor.transform_packed(X)
for name, table in {"dense": X, "codes": codes, "packed codes": packed}.items():
    print(f"{name}: {bytes_per_vector(table):.0f} bytes a vector")

# %%
# Search
# ------
# A dense query against compressed documents; the documents are never decompressed.
questions = ["nearest neighbors of a point", "confusion matrix", "cross-validated score"]
queries = embedder.transform(questions).astype("float32")
search = CodeNearestNeighbors(n_neighbors=3, compressor=compressor).fit(packed)
for question, row in zip(questions, search.kneighbors(queries, return_distance=False), strict=True):
    print(f"\n{question}:")
    for i in row:
        print(f"  {entries[i].name}")

# %%
# How many of the true neighbours are found?
# ------------------------------------------
# Of the first n found by the codes, the share that is among the first n by the embeddings.
import matplotlib.pyplot as plt
import numpy as np

rows = np.random.RandomState(0).choice(len(X), 300, replace=False)
true = exact_neighbors(X, X[rows], 100)
curves = {}
for mode in ("asymmetric", "reconstructed", "sparse"):
    search = CodeNearestNeighbors(n_neighbors=100, compressor=compressor, mode=mode).fit(codes)
    found = search.kneighbors(X[rows] if mode == "asymmetric" else codes[rows], return_distance=False)
    curves[mode] = [neighbor_recall_score(true, found, n_neighbors=n) for n in (1, 5, 10, 20, 50, 100)]

figure, axis = plt.subplots(figsize=(5.5, 3.6), layout="constrained")
for (mode, recalls), marker in zip(curves.items(), "os^", strict=True):
    axis.plot((1, 5, 10, 20, 50, 100), recalls, marker + "-", label=mode)
axis.set(xscale="log", xlabel="n", ylabel="recall@n", ylim=(0, 1.02), title="Neighbours kept, by search mode")
axis.set_xticks((1, 5, 10, 20, 50, 100), ("1", "5", "10", "20", "50", "100"))
axis.grid(alpha=0.3)
axis.legend()
plt.show()
