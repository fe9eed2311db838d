"""
Item-to-item recommendations
============================

Who uses this function also uses ...?

Source files are baskets, the functions they call are items. A factorisation of the co-occurrences gives each item
an embedding, as in a recommender; codes of the embeddings then recommend. The files are those of the installed
scikit-learn and SciPy.
"""

# %%
# Baskets
# -------
import itertools
import re
from collections import Counter

import numpy as np
import scipy.sparse as sp
from docstring_corpus import package_folder, source_files

baskets = []
for package in ("sklearn", "scipy"):
    for path in source_files(package_folder(package)):
        baskets.append(set(re.findall(r"\b([a-z_]\w{3,})\(", path.read_text(encoding="utf-8"))))
counts = Counter(name for basket in baskets for name in basket)
names = sorted(name for name, count in counts.items() if count >= 5)
column = {name: i for i, name in enumerate(names)}
pairs = [(row, column[name]) for row, basket in enumerate(baskets) for name in sorted(basket) if name in column]
rows, columns = np.array(pairs).T
uses = sp.csr_matrix((np.ones(len(pairs), dtype=np.float32), (rows, columns)), shape=(len(baskets), len(names)))
print(f"{uses.shape[0]} files call {uses.shape[1]} functions {uses.nnz} times")

# %%
# Embeddings of the items
# -----------------------
# Factorise the positive pointwise mutual information of pairs.
from sklearn.decomposition import TruncatedSVD

together = (uses.T @ uses).tocoo()
of_one = uses.sum(axis=0).A1
information = np.log(together.data * uses.shape[0] / (of_one[together.row] * of_one[together.col]))
kept = (information > 0) & (together.row != together.col)
ppmi = sp.csr_matrix((information[kept], (together.row[kept], together.col[kept])), shape=together.shape)
items = TruncatedSVD(64, random_state=0).fit_transform(ppmi).astype(np.float32)

# %%
# Recommend from codes
# --------------------
# Items among items: both sides exist as codes, so the reconstructed mode compares them. Without queries,
# `kneighbors` gives the neighbours of each item, itself left out.
from skcompressae import CodeNearestNeighbors, CompresSAETransformer

compressor = CompresSAETransformer(n_components=128, k=8, max_iter=200, learning_rate=1e-3, random_state=0)
codes = compressor.fit_transform(items)
search = CodeNearestNeighbors(n_neighbors=5, compressor=compressor, mode="reconstructed").fit(codes)
recommended = search.kneighbors(return_distance=False)
for name in ("roc_auc_score", "lu_factor", "train_test_split", "rfft"):
    if name in column:
        print(f"{name}: " + ", ".join(names[i] for i in recommended[column[name]]))

# %%
# Do rare items suffer?
# ---------------------
# Share of an item's ten true neighbours that the codes find, by how many files call it.
import matplotlib.pyplot as plt

from skcompressae.metrics import exact_neighbors

true = exact_neighbors(items, items, 11)
found = search.kneighbors(n_neighbors=10, return_distance=False)
recall = np.array([np.isin(f, t[t != i][:10]).mean() for i, (f, t) in enumerate(zip(found, true, strict=True))])
edges = np.quantile(of_one, [0, 0.2, 0.4, 0.6, 0.8, 1.0])
groups = np.clip(np.searchsorted(edges, of_one, side="right") - 1, 0, 4)
means = [recall[groups == g].mean() if (groups == g).any() else 0 for g in range(5)]
figure, axis = plt.subplots(figsize=(5.5, 3.6), layout="constrained")
axis.bar(range(5), means, color="#0072B2")
axis.set_xticks(range(5), [f"{low:.0f} to {high:.0f}" for low, high in itertools.pairwise(edges)])
axis.set(xlabel="files that call the item", ylabel="recall@10", ylim=(0, 1), title="Kept, by popularity")
plt.show()
