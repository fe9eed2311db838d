"""
Fit on a stream from Parquet
============================

How to train on a file that does not fit in memory?

`partial_fit` takes one block of rows at a time. The file is written here from docstring embeddings; its row
groups come back in an order drawn at random.
"""

# %%
# A Parquet file with an embedding column
# ---------------------------------------
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from docstring_corpus import embedded_docstrings

_, X, _ = embedded_docstrings()
order = np.random.RandomState(0).permutation(len(X))  # rows beside each other should not be alike
X, held_out = X[order[200:]], X[order[:200]]
embedding = pa.FixedSizeListArray.from_arrays(pa.array(X.ravel()), X.shape[1])
folder = tempfile.TemporaryDirectory()
path = Path(folder.name) / "embeddings.parquet"
pq.write_table(pa.table({"id": order[200:], "embedding": embedding}), path, row_group_size=300)


# %%
# Stream it
# ---------
# At no time more than one block is in memory. Several passes see every row several times, in another order each.
def blocks(file, random_state):
    """Yield the embeddings of each row group, in random order."""
    for group in random_state.permutation(file.num_row_groups):
        column = file.read_row_group(group, columns=["embedding"])["embedding"].combine_chunks()
        yield column.flatten().to_numpy().reshape(len(column), -1)


from skcompressae import CompresSAETransformer

compressor = CompresSAETransformer(n_components=192, k=8, batch_size=60, learning_rate=1e-3, random_state=0)
random_state, scores = np.random.RandomState(0), []
with pq.ParquetFile(path) as file:
    for _ in range(8):
        for block in blocks(file, random_state):
            compressor.partial_fit(block)
        scores.append(compressor.score(held_out))
print(f"{compressor.n_iter_} steps, held-out mean cosine {scores[-1]:.3f}")

# %%
# Beside fitting at once
# ----------------------
# `fit` needs all rows (a memory-mapped array will do) and anneals the learning rate.
whole = CompresSAETransformer(n_components=192, k=8, batch_size=60, max_iter=240, random_state=0).fit(X)

import matplotlib.pyplot as plt

figure, axis = plt.subplots(figsize=(5.5, 3.6), layout="constrained")
axis.plot(range(1, 9), scores, "o-", label="partial_fit, block by block")
axis.axhline(whole.score(held_out), color="0.4", linestyle="--", label="fit, 240 steps")
axis.set(xlabel="passes over the file", ylabel="mean cosine of held-out rows", title="Streaming from Parquet")
axis.grid(alpha=0.3)
axis.legend(loc="lower right")
plt.show()

# %%
# The codes go back into Parquet as columns of indices and values.
from skcompressae.arrow import ArrowEncoder

encode = ArrowEncoder(compressor)
with pq.ParquetFile(path) as file:
    batches = [encode(batch) for batch in file.iter_batches()]
print(batches[0].schema.to_string(show_schema_metadata=False))
folder.cleanup()
