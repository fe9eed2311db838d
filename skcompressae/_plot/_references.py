"""Reference compressors of the trade-off: PCA of scikit-learn, PQ and OPQ of FAISS.

Each is given as reconstructions of the documents, and is searched by the dense query against them: the best
that its bytes can do, without approximation by an index. Of the two ways to score a reconstruction of a unit
row we take the one that serves the reference best: on 384-dimensional text embeddings at 64 to 260 bytes, PCA
found up to 0.03 more of 100 neighbours with the plain product, PQ 0.005 to 0.02 more with the cosine.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.decomposition import PCA
from sklearn.utils import check_random_state

__all__ = ["MIN_PQ_DOCUMENTS", "REFERENCES", "has_faiss", "reference_points"]

REFERENCES = ("pca", "pq", "opq")
# One centroid for each value of a byte, and k-means takes no fewer points than centroids.
MIN_PQ_DOCUMENTS = 256
# The number of points per centroid below which FAISS warns: enough training rows, and OPQ stays a matter of
# minutes.
_MAX_TRAINING_ROWS = 39 * 256
FloatArray = npt.NDArray[np.float32]


def has_faiss() -> bool:
    """Tell whether FAISS can be imported."""
    return importlib.util.find_spec("faiss") is not None


def reference_points(
    name: str, rows: FloatArray, sizes_bytes: list[float], random_state: Any
) -> Iterator[tuple[str, float, FloatArray]]:
    """Yield ``(label, bytes per vector, reconstructions)`` for the settings nearest to the sizes asked for.

    Parameters
    ----------
    name : {"pca", "pq", "opq"}
        The compressor. It is fitted on `rows`.
    rows : ndarray of shape (n_documents, n_features), dtype float32
        The documents.
    sizes_bytes : list of float
        Sizes to come near to. Those not below the size of a float32 row are left out.
    random_state : int, RandomState instance or None
        Seed of the fit.
    """
    n_features = rows.shape[1]
    sizes_bytes = [size for size in sizes_bytes if size < 4 * n_features]
    seed = int(check_random_state(random_state).randint(2**31 - 1))
    if name == "pca":
        most = min(rows.shape[0], n_features - 1)
        dimensions = sorted({min(max(1, round(size / 4)), most) for size in sizes_bytes})
        if dimensions:
            with np.errstate(invalid="ignore"):  # equal rows have no variance that components could explain a share of
                pca = PCA(n_components=dimensions[-1], random_state=seed).fit(rows)
            projected = pca.transform(rows)
        for n_dimensions in dimensions:
            kept = projected[:, :n_dimensions] @ pca.components_[:n_dimensions] + pca.mean_
            yield f"{n_dimensions} dim", 4.0 * n_dimensions, kept.astype(np.float32)
        return
    divisors = [width for width in range(1, n_features + 1) if n_features % width == 0]
    nearest = {min(divisors, key=lambda width: abs(np.log(width / size))) for size in sizes_bytes}
    for n_subquantizers in sorted(nearest):
        yield (
            f"{n_subquantizers} B",
            float(n_subquantizers),
            _quantize(rows, n_subquantizers, name == "opq", seed),
        )


def _quantize(rows: FloatArray, n_subquantizers: int, is_rotated: bool, seed: int) -> FloatArray:
    import faiss

    quantizer = faiss.IndexPQ(rows.shape[1], n_subquantizers, 8)
    quantizer.pq.cp.seed = seed
    # FAISS prints to standard error where there are fewer than 39 points a centroid
    quantizer.pq.cp.min_points_per_centroid = 1
    index: Any = quantizer
    if is_rotated:
        rotation = faiss.OPQMatrix(rows.shape[1], n_subquantizers)
        rotation.pq = quantizer.pq
        index = faiss.IndexPreTransform(rotation, quantizer)
    n_training = min(rows.shape[0], _MAX_TRAINING_ROWS)
    chosen = np.random.default_rng(seed).choice(rows.shape[0], n_training, replace=False)
    index.train(rows[np.sort(chosen)])
    return index.sa_decode(index.sa_encode(rows))
