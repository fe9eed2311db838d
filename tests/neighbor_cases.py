"""Codes, a stand-in for a compressor and the brute force that the tests of search compare with."""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_matrix
from sklearn.base import BaseEstimator, TransformerMixin

N_COMPONENTS, N_FEATURES = 40, 12


class Compressor(TransformerMixin, BaseEstimator):
    """Keep the `k` largest products with the atoms: a stand-in with the interface of the real one."""

    def __init__(self, k=4, dtype="float64"):
        self.k = k
        self.dtype = dtype

    def fit(self, X, y=None):
        atoms = np.random.default_rng(0).standard_normal((N_COMPONENTS, N_FEATURES))
        self.components_ = (atoms / np.linalg.norm(atoms, axis=1, keepdims=True)).astype(self.dtype)
        return self

    def transform(self, X):
        products = X @ self.components_.T
        small = np.argsort(-np.abs(products), axis=1)[:, self.k :]
        np.put_along_axis(products, small, 0.0, axis=1)
        return csr_matrix(products)


def fitted_compressor(dtype="float64"):
    return Compressor(dtype=dtype).fit(None)


def random_codes(rng, n_rows, n_components=N_COMPONENTS, dtype=np.float64, longest=6):
    """Ragged rows, some of them empty."""
    dense = np.zeros((n_rows, n_components), dtype)
    for row in dense:
        columns = rng.choice(n_components, rng.integers(0, longest + 1), replace=False)
        row[columns] = rng.standard_normal(len(columns))
    return csr_matrix(dense)


def brute_force(queries, documents, metric):
    """Return float64 distances between dense rows, zero rows as scikit-learn's cosine has them."""
    queries, documents = np.asarray(queries, np.float64), np.asarray(documents, np.float64)
    if metric == "dot":
        return -(queries @ documents.T)
    if metric == "geometric":
        lengths = [np.maximum(np.linalg.norm(v, axis=1), 1e-300) for v in (queries, documents)]
        return -(queries @ documents.T) / lengths[0][:, None] / np.sqrt(lengths[1])
    unit = [v / np.maximum(np.linalg.norm(v, axis=1, keepdims=True), 1e-300) for v in (queries, documents)]
    return np.clip(1.0 - unit[0] @ unit[1].T, 0.0, 2.0)


def check_neighbors(expected, distances, indices, n_neighbors, atol=1e-12):
    """The distances are the smallest ones, belong to their indices, and ties do not repeat an index."""
    np.testing.assert_allclose(distances, np.sort(expected, axis=1)[:, :n_neighbors], rtol=0, atol=atol)
    np.testing.assert_allclose(distances, np.take_along_axis(expected, indices, axis=1), rtol=0, atol=atol)
    assert all(len(set(row)) == n_neighbors for row in indices)
