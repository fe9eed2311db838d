"""What do the neighbourhood term and the rule that cuts expanded queries buy, and what do they cost?

    python benchmarks/sparse_mode_study.py DATA.npy --out benchmarks/results/sparse_mode.json

One model per weight of the term, all else equal; activations and least-squares values; recall@100 of the true
neighbours by code-to-code cosine, reconstructed, asymmetric, and with expanded queries of few nonzeros.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import scipy.sparse as sp
from _common import Array, code_neighbors, cosine_neighbors, environment, recall, unit_codes, unit_rows, write_json
from _data import load, split

from skcompressae import CompresSAETransformer

N_NEIGHBORS = 100
# Added to the diagonal of the covariance of the kept latents, relative to it.
RIDGE = 0.03


def kept_entries(T: Array, importance: Array, n_nonzero: int) -> Array:
    """Return the positions of the `n_nonzero` entries of largest ``|t_j| * importance_j``, per row."""
    return np.argpartition(-np.abs(T) * importance, n_nonzero - 1, axis=1)[:, :n_nonzero]


def cut(T: Array, positions: Array) -> Array:
    """Return T with all but `positions` set to zero."""
    Z = np.zeros_like(T)
    np.put_along_axis(Z, positions, np.take_along_axis(T, positions, axis=1), axis=1)
    return Z


def least_squares_cut(T: Array, positions: Array, covariance: Array) -> Array:
    """Return the queries on `positions` whose scores deviate least from those of T: z_S = C_SS^-1 (C t)_S."""
    wanted, Z = T @ covariance, np.zeros_like(T)
    for i, chosen in enumerate(positions):
        block = covariance[np.ix_(chosen, chosen)]
        ridge = np.diag(RIDGE * np.diag(block) + 1e-9)
        Z[i, chosen] = np.linalg.solve(block + ridge, wanted[i, chosen])
    return Z


def score_codes(model: CompresSAETransformer, documents: Array, queries: Array, sizes: list[int]) -> dict[str, float]:
    """Return recall in every mode with the values that ``model.coding`` gives."""
    true = cosine_neighbors(queries, documents, N_NEIGHBORS)
    codes, query_codes = sp.csr_matrix(model.transform(documents)), sp.csr_matrix(model.transform(queries))
    decoder = np.asarray(model.components_, dtype=np.float32)

    def score(code_queries: Array, stored: sp.csr_matrix) -> float:
        return recall(code_neighbors(code_queries, stored, N_NEIGHBORS), true, N_NEIGHBORS)

    X_hat = codes @ decoder
    norms = np.linalg.norm(X_hat, axis=1)
    stored = sp.csr_matrix(sp.diags(1.0 / np.where(norms > 0, norms, 1.0)) @ codes)
    T = unit_rows(queries) @ decoder.T
    moment, mean = (stored.T @ stored).toarray() / stored.shape[0], np.asarray(stored.mean(axis=0)).ravel()
    covariance, rms = moment - np.outer(mean, mean), np.sqrt(np.diag(moment))
    row = {
        "cosine": float(np.einsum("ij,ij->i", unit_rows(X_hat), unit_rows(documents)).mean()),
        "dead": float(np.mean(np.bincount(codes.indices, minlength=len(decoder)) == 0)),
        "sparse": score(query_codes, unit_codes(codes)),
        "reconstructed": score((query_codes @ decoder) @ decoder.T, stored),
        "asymmetric": score(T, stored),
    }
    for n_nonzero in sizes:
        positions = kept_entries(T, np.sqrt(rms), n_nonzero)
        row[f"{n_nonzero} by |t| rms"] = score(cut(T, kept_entries(T, rms, n_nonzero)), stored)
        row[f"{n_nonzero} by |t| sqrt(rms)"] = score(cut(T, positions), stored)
        row[f"{n_nonzero} least squares"] = score(least_squares_cut(T, positions, covariance), stored)
    return row


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--n-documents", type=int, default=12_000)
    parser.add_argument("--n-queries", type=int, default=400)
    parser.add_argument("--n-components", type=int, default=1024)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--max-iter", type=int, default=400)
    parser.add_argument("--batch-size", type=int, default=1024)
    parser.add_argument("--weights", type=float, nargs="+", default=[0.0, 0.02, 0.05, 0.1])
    parser.add_argument("--n-nonzeros", type=int, nargs="+", default=[32, 64, 128, 256])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    name, X = load(options.data)
    data = split(name, X, options.n_queries, options.n_documents)
    rows = []
    for weight in options.weights:
        model = CompresSAETransformer(
            n_components=options.n_components, k=options.k, max_iter=options.max_iter, early_stopping=False, norm=None,
            batch_size=options.batch_size, neighborhood_weight=weight, usage_power=0, random_state=options.seed,
        ).fit(data.documents)  # fmt: skip
        for coding in ("activations", "least_squares"):
            model.set_params(coding=coding)
            row = score_codes(model, data.documents, data.queries, options.n_nonzeros)
            rows.append({"data": name, "weight": weight, "coding": coding, **row})
            print({key: round(value, 3) if isinstance(value, float) else value for key, value in rows[-1].items()})
    settings = {key: value for key, value in vars(options).items() if key != "out"}
    write_json(options.out, {"environment": environment(), "settings": settings, "rows": rows})


if __name__ == "__main__":
    main()
