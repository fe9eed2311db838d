"""
Encode a table in chunks with Dask
==================================

Are some parts of a large table compressed worse than others?

Dask schedules, skcompressae maps: :func:`~skcompressae.dask.encode_array` turns a chunked array of embeddings,
of any size, into a chunked array of codes, in threads here, in processes or on a cluster with a
``distributed.Client``.
"""

# %%
# A chunked table
# ---------------
# Rows are docstrings in the order of scikit-learn's modules, so a chunk is a part of the library. The model is
# fitted on a sample: encoding needs every row, training does not.
import dask.array as da
import numpy as np
from docstring_corpus import embedded_docstrings

from skcompressae import CompresSAETransformer
from skcompressae.dask import encode_array

entries, X, _ = embedded_docstrings()
table = da.from_array(X, chunks=(200, X.shape[1]))
sample = X[np.random.RandomState(0).choice(len(X), 1000, replace=False)]
compressor = CompresSAETransformer(n_components=192, k=8, max_iter=200, random_state=0).fit(sample)
print(table)

# %%
# Encode lazily
# -------------
# Nothing is computed until it is asked for; the chunks are the same codes as in one piece.
codes = encode_array(compressor, table)
print(codes)
computed = codes.compute(scheduler="threads")
assert (computed != compressor.transform(X)).nnz == 0


# %%
# A measure for each chunk
# ------------------------
# Work on codes and rows together stays in chunks too: here the mean cosine of each chunk's reconstructions.
def mean_cosine(block_codes, rows):
    """Return the mean cosine of the rows of a chunk and their reconstructions, as an array of one."""
    restored = compressor.inverse_transform(block_codes)
    norms = np.linalg.norm(restored, axis=1) * np.linalg.norm(rows, axis=1)
    return np.array([[np.mean(np.einsum("ij,ij->i", restored, rows) / norms)]])


cosines = da.map_blocks(mean_cosine, codes, table, chunks=(1, 1), meta=np.empty((0, 0)))
cosines = cosines.compute(scheduler="threads").ravel()

import matplotlib.pyplot as plt

names = [entries[200 * i].name.split(".")[1] for i in range(len(cosines))]
figure, axis = plt.subplots(figsize=(5.5, 3.6), layout="constrained")
axis.barh(range(len(cosines)), cosines, color="#0072B2")
axis.axvline(cosines.mean(), color="0.3", linestyle="--", label="mean")
axis.set_yticks(range(len(cosines)), [f"from {name} on" for name in names])
axis.invert_yaxis()
axis.set(xlabel="mean cosine of rows and reconstructions", xlim=(0.7, 1))
axis.set(ylabel="chunks, by their first module", title="Chunks of 200 rows")
axis.legend(loc="lower right")
plt.show()
