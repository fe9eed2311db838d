"""How many nonzeros does an expanded query need, and which entries should it keep?

One model per data set; documents are codes stored at unit reconstruction norm; queries are ``t = D q / ||q||`` cut to
`n_nonzero` entries by four rules, by which entries of largest ``|t_j|``, ``|t_j| rms_j``, ``|t_j| sqrt(rms_j)`` or
``|t_j| sqrt(rms_j) |p_j|^0.25`` stay (rms_j: `latent_rms_`; p_j: the query's activations). The last is what
``transform_query`` does. Recall@100 of the true dense neighbours of held-out queries; code-to-code cosine and the
complete query stand beside them.

    python benchmarks/query_expansion.py --data docstring_lsa embeddings.npy --out results --figure curve.png
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
from _common import Array, code_neighbors, cosine_neighbors, environment, recall, unit_codes, unit_rows, write_json
from _data import DEFAULT_CACHE_DIR, N_QUERIES, checksum, load, split

from skcompressae import CompresSAETransformer

N_NEIGHBORS = 100
# What weighs |t_j|: the powers of rms_j and |p_j|, and a colour of Okabe and Ito's.
RULES = {
    "|t|": (0.0, 0.0, "#E69F00"),
    "|t| rms": (1.0, 0.0, "#009E73"),
    "|t| sqrt(rms)": (0.5, 0.0, "#D55E00"),
    "|t| sqrt(rms) |p|^0.25": (0.5, 0.25, "#0072B2"),
}


def cut(T: Array, importance: Array, n_nonzero: int) -> sp.csr_matrix:
    """Return the `n_nonzero` entries of largest ``|t_j| * importance_j`` of each row."""
    if n_nonzero >= T.shape[1]:
        return sp.csr_matrix(T)
    kept = np.argpartition(-np.abs(T) * importance, n_nonzero - 1, axis=1)[:, :n_nonzero]
    indptr = np.arange(0, kept.size + 1, n_nonzero)
    return sp.csr_matrix((np.take_along_axis(T, kept, axis=1).ravel(), kept.ravel(), indptr), shape=T.shape)


def measure(name: str, X: Array, options: argparse.Namespace) -> dict[str, Any]:
    """Return the curves of one data set."""
    data = split(name, X, options.max_queries, options.max_documents)
    parameters = {} if options.steps is None else {"max_iter": options.steps}
    if options.model is not None:
        model = CompresSAETransformer.load(options.model).set_params(norm="unit")
        options.n_components, options.k = model.n_components, model.k  # what the result file says
    else:
        model = CompresSAETransformer(
            options.n_components, k=options.k, norm="unit", random_state=options.seed, **parameters
        ).fit(data.documents)
    stored = sp.csr_matrix(model.transform(data.documents))
    true = cosine_neighbors(data.queries, data.documents, N_NEIGHBORS)

    def score(queries: Any, documents: sp.csr_matrix) -> float:
        return recall(code_neighbors(queries, documents, N_NEIGHBORS), true, N_NEIGHBORS)

    T = model.transform_query(data.queries).toarray()
    P = np.abs(unit_rows(data.queries) @ model.encoder_weights_.T + model.encoder_bias_)
    rows = [
        {"rule": rule, "n_nonzero": n, "recall_at_100": score(cut(T, model.latent_rms_**of_rms * P**of_p, n), stored)}
        for rule, (of_rms, of_p, _) in RULES.items()
        for n in sorted({min(n, model.n_components) for n in options.n_nonzeros})
    ]
    result = {
        "data": {"name": name, "sha256": checksum(X), "n_features": X.shape[1], "n_documents": len(data.documents)},
        "model": {"k": model.k_, "n_components": model.n_components, "n_iter": model.n_iter_, "coding": model.coding},
        "code_to_code": score(sp.csr_matrix(model.transform(data.queries)), unit_codes(stored)),
        "complete": score(T, stored),
        "rows": rows,
    }
    print(json.dumps(result), flush=True)
    return result


def write_figure(results: list[dict[str, Any]], path: Path) -> None:
    """Draw recall against the nonzeros of a query, one panel per data set."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(6.4, 4.6 * len(results)), 4.6), layout="constrained")
    axes = figure.subplots(1, len(results), squeeze=False, sharey=True)[0]
    for axis, result in zip(axes, results, strict=True):
        for rule, (_, _, color) in RULES.items():
            points = [(row["n_nonzero"], row["recall_at_100"]) for row in result["rows"] if row["rule"] == rule]
            axis.plot(*zip(*points, strict=True), marker="o", color=color, label=f"largest {rule}")
        axis.axhline(result["complete"], color="#444444", linestyle="--", label="complete query")
        axis.axhline(result["code_to_code"], color="#999999", linestyle=":", label="code to code (query compressed)")
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.set_title(f"{result['data']['name']} ({result['data']['n_documents']:,} x {result['data']['n_features']})")
        axis.set_xlabel("nonzeros of a query")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("recall@100 of the dense neighbours")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2 if len(results) == 1 else 3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", required=True, help=".npy files or names (see _data.py)")
    parser.add_argument("--model", type=Path, default=None, help="a saved model, instead of fitting one")
    parser.add_argument("--n-components", type=int, default=2048)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--steps", type=int, default=None, help="training steps; default: the estimator's")
    parser.add_argument("--n-nonzeros", type=int, nargs="+", default=[16, 32, 64, 128, 256, 512, 1024])
    parser.add_argument("--max-queries", type=int, default=N_QUERIES)
    parser.add_argument("--max-documents", type=int, default=None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache-dir", type=Path, default=DEFAULT_CACHE_DIR)
    parser.add_argument("--out", type=Path, default=Path("benchmark-results"))
    parser.add_argument("--figure", type=Path, default=None)
    options = parser.parse_args(arguments)
    results = [measure(*load(data, options.cache_dir), options) for data in options.data]
    settings = {key: value for key, value in vars(options).items() if key != "data" and not isinstance(value, Path)}
    content = {"environment": environment(), "settings": settings, "results": results}
    write_json(options.out / "query_expansion.json", content)
    if options.figure is not None:
        write_figure(results, options.figure)


if __name__ == "__main__":
    main()
