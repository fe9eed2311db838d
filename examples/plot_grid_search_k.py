"""
Choose k by grid search
=======================

Where does another nonzero stop being worth its bytes?

The compressor is an ordinary transformer, so :class:`~sklearn.model_selection.GridSearchCV` searches over its
parameters. The rows are embeddings of scikit-learn's docstrings, 64 numbers each.
"""

# %%
# Search over k and n_components
# ------------------------------
# :class:`~skcompressae.metrics.RetrievalRecallScorer` scores what matters: the share of true neighbours that search
# over the codes of the validation fold finds.
import warnings

import numpy as np
from docstring_corpus import embedded_docstrings
from sklearn.model_selection import GridSearchCV

from skcompressae import CompresSAETransformer
from skcompressae.exceptions import DeadLatentsWarning
from skcompressae.metrics import RetrievalRecallScorer

warnings.simplefilter("ignore", DeadLatentsWarning)  # two nonzeros for each of 1,000 rows need few latents
_, X, _ = embedded_docstrings()
grid = GridSearchCV(
    CompresSAETransformer(max_iter=60, random_state=0),
    {"k": [2, 4, 8, 16], "n_components": [64, 128]},
    scoring=RetrievalRecallScorer(mode="asymmetric", n_neighbors=10),
    cv=2,
    refit=False,
).fit(X)

# %%
# More is always better by this score
# -----------------------------------
# so the best is the largest `k`; what to look at is the slope. A rule that scikit-learn's users know: the smallest
# model within one standard error of the best.
results = grid.cv_results_
k, width = (np.asarray(results[f"param_{name}"].data, dtype=int) for name in ("k", "n_components"))
mean, error = results["mean_test_score"], results["std_test_score"] / np.sqrt(grid.n_splits_)
best = mean.argmax()
enough = k[mean >= mean[best] - error[best]].min()
print(f"best: k={k[best]}, n_components={width[best]}, recall@10 {mean[best]:.3f}")
print(f"within one standard error of it: k={enough}")

# %%
# The curve
# ---------
import matplotlib.pyplot as plt

figure, axis = plt.subplots(figsize=(5.5, 3.6), layout="constrained")
for value, marker in ((64, "o"), (128, "s")):
    of_width = width == value
    style = {"marker": marker, "capsize": 3, "label": f"n_components={value}"}
    axis.errorbar(8 * k[of_width], mean[of_width], yerr=error[of_width], **style)
axis.axhline(mean[best] - error[best], color="0.5", linestyle=":", label="one standard error below the best")
axis.set(xlabel="bytes of a code: 8 for each nonzero", ylabel="recall@10, validation folds", title="Docstrings")
axis.set_xticks(sorted({8 * value for value in k}))
axis.grid(alpha=0.3)
axis.legend(loc="lower right")
plt.show()
