"""
Recall against bytes
====================

How many neighbours survive at which size, beside other ways to make vectors small?

:class:`~skcompressae.CompressionTradeoffDisplay` measures one fitted model at several `k`, and PCA (and, on
request, product quantisation) at about the same bytes, on your own rows.
"""

# %%
# Embeddings of docstrings
# ------------------------
from docstring_corpus import embedded_docstrings

_, X, _ = embedded_docstrings()

# %%
# One model, several sizes
# ------------------------
# Trained at the largest `k`; smaller ones keep fewer nonzeros of the same model.
from sklearn.model_selection import train_test_split

from skcompressae import CompresSAETransformer

documents, queries = train_test_split(X, test_size=200, random_state=0)
compressor = CompresSAETransformer(n_components=256, k=16, max_iter=200, random_state=0).fit(documents)

# %%
# Draw
# ----
# The references search with dense queries too. PCA keeps principal components as float32.
import matplotlib.pyplot as plt

from skcompressae import CompressionTradeoffDisplay

below = {"loc": "outside lower center", "ncols": 2}
figure, axis = plt.subplots(figsize=(5.5, 4.5), layout="constrained")
display = CompressionTradeoffDisplay.from_estimator(
    compressor, documents, X_queries=queries, k=(2, 4, 8, 16), n_neighbors=10, reference="pca", ax=axis
)
axis.set_title("Docstrings, 64 dimensions")
axis.get_legend().remove()
figure.legend(handles=display.lines_, **below)
plt.show()

# %%
# Against bytes instead of factors
# --------------------------------
# The measured points are plain records, so they can be drawn again, saved, or joined with points of your own.
# Packed codes take about a quarter of the bytes of those in memory.
from skcompressae import CodeNearestNeighbors
from skcompressae.metrics import bytes_per_vector, exact_neighbors, neighbor_recall_score

points = [point for point in display.results if point["series"] in ("CompresSAE, asymmetric", "PCA")]
true = exact_neighbors(documents, queries, 10)
for k in (2, 4, 8, 16):
    packed = compressor.set_params(k=k).transform_packed(documents)
    search = CodeNearestNeighbors(10, compressor=compressor).fit(packed)
    recall = neighbor_recall_score(true, search.kneighbors(queries, return_distance=False))
    size = bytes_per_vector(packed)
    points.append(
        {"series": "CompresSAE, asymmetric, packed", "label": f"k={k}", "bytes_per_vector": size}
        | {"compression_factor": 4 * X.shape[1] / size, "recall": recall, "n_neighbors": 10}
    )
figure, axis = plt.subplots(figsize=(5.5, 4.5), layout="constrained")
display = CompressionTradeoffDisplay(results=points).plot(axis, x="bytes_per_vector")
axis.get_legend().remove()
figure.legend(handles=display.lines_, **below)
plt.show()
