"""Does transform in reduced precision find what transform in float32 finds?

One model per data set and k, fitted in float32, encodes documents and held-out queries in either precision. Recall@100
of the true dense neighbours, code to code, with reconstructions on both sides, and with queries that are not
compressed; mean cosine with reconstructions; and the share of documents that keep all of their latents.

    python benchmarks/precision_recall.py --data embeddings.npy identifiers --out benchmarks/results
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from _common import (
    code_neighbors,
    cosine_neighbors,
    environment,
    mean_cosine,
    recall,
    stopwatch,
    unit_codes,
    write_json,
)
from _data import DEFAULT_CACHE_DIR, N_QUERIES, Split, checksum, load, split

from skcompressae import CompresSAETransformer

N_NEIGHBORS = 100
PRECISIONS = ("float32", "bfloat16")
CODINGS = ("pursuit", "least_squares", "activations", "refined_pursuit")


def measure(model: CompresSAETransformer, data: Split, true: np.ndarray) -> list[dict[str, Any]]:
    """Return a row for each precision of one coding."""
    rows: list[dict[str, Any]] = []
    exact = None
    for precision in PRECISIONS:
        model.set_params(precision=precision)
        model.transform(data.documents[:2048])  # kernels are compiled
        with stopwatch() as seconds:
            codes = model.transform(data.documents)
        of_queries = model.transform(data.queries)
        x_hat, q_hat = model.inverse_transform(codes), model.inverse_transform(of_queries)
        found = {
            "sparse": code_neighbors(unit_codes(of_queries), unit_codes(codes), N_NEIGHBORS),
            "reconstructed": cosine_neighbors(q_hat, x_hat, N_NEIGHBORS),
            "asymmetric": cosine_neighbors(data.queries, x_hat, N_NEIGHBORS),
        }
        exact = codes if exact is None else exact
        latents = [c.indices.reshape(len(data.documents), -1) for c in (codes, exact)]
        rows.append(
            {
                "coding": model.coding,
                "k": model.k,
                "precision": precision,
                "encode_s": seconds(),
                "cosine": mean_cosine(data.documents, x_hat),
                "same_latents": float((latents[0] == latents[1]).all(axis=1).mean()),
                "recall_at_100": {mode: recall(neighbors, true, N_NEIGHBORS) for mode, neighbors in found.items()},
            }
        )
        print(data.name, rows[-1], flush=True)
    return rows


def main(arguments: list[str] | None = None) -> None:
    """Measure all sets and write `precision_recall.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", required=True, help=".npy files or names (see _data.py)")
    parser.add_argument("--k", nargs="+", type=int, default=[32])
    parser.add_argument("--n-components", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=None, help="training steps; default: the estimator's")
    parser.add_argument("--max-queries", type=int, default=N_QUERIES)
    parser.add_argument("--max-documents", type=int, default=None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache-dir", type=Path, default=DEFAULT_CACHE_DIR)
    parser.add_argument("--out", type=Path, default=Path("benchmark-results"))
    options = parser.parse_args(arguments)
    steps = {} if options.steps is None else {"max_iter": options.steps}
    results = []
    for given in options.data:
        name, X = load(given, options.cache_dir)
        data = split(name, X, options.max_queries, options.max_documents)
        true = cosine_neighbors(data.queries, data.documents, N_NEIGHBORS)
        rows = []
        for k in options.k:
            model = CompresSAETransformer(options.n_components, k=k, random_state=options.seed, **steps)
            model.fit(data.documents)
            for coding in CODINGS:
                rows += measure(model.set_params(coding=coding), data, true)
        results.append({"data": name, "sha256": checksum(X), "shape": list(X.shape), "rows": rows})
    settings = {name: getattr(options, name) for name in ("k", "n_components", "steps", "max_queries", "seed")}
    write_json(
        options.out / "precision_recall.json",
        {"environment": environment(), "settings": settings, "results": results},
    )


if __name__ == "__main__":
    main()
