"""What recall does a byte budget buy: sparse codes, alone or with a residual code, beside PQ, OPQ and RaBitQ?

How many nonzeros and how many bytes of the residual a budget holds is found on the documents by
`skcompressae.packed.split_bytes`, with values of `--value-bits` by a quantiser of `--kind`. One model per data set is
trained at `--k`; every budget encodes with its own k. Scores are the geometric mean of cosine and inner product; where
there are residual codes, they put all documents in order, or the first `--rerank`. Protocol: the first `--max-queries`
rows of ``RandomState(0).permutation(n)`` are queries, the rest documents; truth is their exact cosine; dense queries.

    python benchmarks/hybrid.py --data embeddings.npy --out results
"""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path
from typing import Any

import _peers as peers
import numpy as np
from _common import cosine_neighbors, cpu_stopwatch, environment, peak_memory_bytes, recall, unit_rows, write_json
from _data import DEFAULT_CACHE_DIR, N_QUERIES, checksum, load, split

from skcompressae import CompresSAETransformer
from skcompressae._neighbors import CodeNearestNeighbors
from skcompressae.packed import split_bytes
from skcompressae.packed._quantizer import KINDS

N_NEIGHBORS = 100
Row = dict[str, Any]


def ours(
    model: CompresSAETransformer,
    documents: np.ndarray,
    queries: np.ndarray,
    true: np.ndarray,
    size: int,
    options: argparse.Namespace,
) -> Row:
    """Split, encode and search one budget, with `options.rerank` candidates of residual codes, or all for 0."""
    with cpu_stopwatch() as split_s:
        k, n_residual, kind = split_bytes(model, documents, size, value_bits=options.value_bits, kind=options.kind)
    values: dict[str, Any] = {"value_bits": options.value_bits, "kind": kind}
    model = copy.copy(model).set_params(k=k)
    with cpu_stopwatch() as encode_s:
        packed = model.transform_packed(documents, **values)
    with cpu_stopwatch() as residual_s:
        if n_residual:
            packed = packed.with_residual_of(documents, model.components_, n_bytes=n_residual)
    n_candidates = (options.rerank or len(documents)) if n_residual else None
    index = CodeNearestNeighbors(
        N_NEIGHBORS, compressor=model.components_, mode="asymmetric", metric="geometric", rerank=n_candidates
    ).fit(packed)
    n_neighbors = min(N_NEIGHBORS, len(documents))
    with cpu_stopwatch() as search_s:
        found = index.kneighbors(queries, n_neighbors, return_distance=False)
    return {
        "method": "hybrid" if n_residual else "sparse",
        "params": {"k": k, "residual_bytes": n_residual or 0, "rerank": n_candidates, **_unusual(values)},
        "size_bytes": packed.bytes_per_row,
        "split_s": split_s(),
        "encode_s": encode_s(),
        "residual_s": residual_s(),
        "cpu_ms_per_query": 1e3 * search_s() / len(queries),
        "recall_at_10": recall(found, true, 10),
        "recall_at_100": recall(found, true, 100),
    }


def _unusual(values: dict[str, Any]) -> dict[str, Any]:
    """Return what is not as in other files, whose points then carry the same name."""
    return {name: value for name, value in values.items() if value != {"value_bits": 4, "kind": "auto"}[name]}


PEERS = {
    "pq": peers.product_quantization,
    "opq": peers.optimized_product_quantization,
    "rabitq": peers.rabitq,
}


def peer_rows(
    names: list[str], documents: np.ndarray, queries: np.ndarray, true: np.ndarray, size_bytes: int, seed: int
) -> list[Row]:
    """Measure what the peers make of a budget; one that is out of a method's reach is left out."""
    rows = []
    for name in names:
        peer = PEERS[name](documents, size_bytes, seed)
        if peer is None:
            continue
        found = peer.neighbors(queries, min(N_NEIGHBORS, len(documents)))
        recalls = {f"recall_at_{n}": recall(found, true, n) for n in (10, 100)}
        rows.append({"method": peer.method, "params": peer.params, "size_bytes": peer.size_bytes, **recalls})
    return rows


def kept_peers(path: Path, data: dict[str, Any]) -> tuple[list[Row], dict[str, Any]]:
    """Return the peers' rows of an earlier run on the same data, and what that ran on."""
    content = json.loads(path.read_text(encoding="utf-8"))
    if content["data"] != data:
        raise SystemExit(f"{path} is of {content['data']}, not of {data}; its peers cannot be kept")
    rows = [row for row in content["results"] if row["method"] not in ("hybrid", "sparse")]
    return rows, content.get("environment_of_peers", content["environment"])


def run_study(name: str, X: np.ndarray, options: argparse.Namespace) -> dict[str, Any]:
    """Measure every budget on one data set and write its result file."""
    data = split(name, X, options.max_queries, options.max_documents)
    documents = unit_rows(data.documents)
    true = cosine_neighbors(data.queries, documents, min(N_NEIGHBORS, len(documents)))
    rows: list[Row] = []
    measured = {"name": name, "sha256": checksum(X), "n_features": X.shape[1], "n_documents": len(documents)}
    path = options.out / f"{options.prefix}{name}.json"
    kept, environment_of_peers = kept_peers(path, measured) if options.keep_peers else ([], {})
    content = {
        "data": measured,
        "environment": environment(),
        # no paths of the machine: "data" says what was measured
        "options": {
            key: value for key, value in vars(options).items() if key != "data" and not isinstance(value, Path)
        },
        "results": rows,
    }
    if options.keep_peers:
        content["environment_of_peers"] = environment_of_peers
    for seed in options.seeds:
        parameters = {"max_iter": options.steps} if options.steps is not None else {}
        # the projection as it comes: its residual is smaller than that of a unit reconstruction
        model = CompresSAETransformer(
            options.n_components,
            k=options.k,
            norm=None,
            random_state=seed,
            **parameters,
            **options.ours,
        )
        with cpu_stopwatch() as fit_s:
            model.fit(documents)
        for size in options.sizes:
            mine = {
                **ours(model, documents, data.queries, true, size, options),
                "fit_s": fit_s(),
            }
            mine["params"] |= options.ours
            for row in (mine, *peer_rows(options.peers, documents, data.queries, true, size, seed)):
                rows.append({**row, "budget_bytes": size, "seed": seed})
                print(json.dumps(rows[-1], default=lambda value: value.item()), flush=True)
            rows += [row for row in kept if (row["budget_bytes"], row["seed"]) == (size, seed)]
        content["peak_memory_bytes"] = peak_memory_bytes()
        write_json(path, content)
    return content


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", required=True, help=".npy files or names (see _data.py)")
    parser.add_argument("--sizes", nargs="+", type=int, default=[16, 32, 64, 128, 256], help="bytes per vector")
    parser.add_argument("--peers", nargs="*", choices=list(PEERS), default=list(PEERS))
    parser.add_argument(
        "--keep-peers", action="store_true", help="instead of measuring peers, keep those of the file in --out"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--n-components", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=None, help="training steps; default: the estimator's")
    parser.add_argument("--ours", type=json.loads, default={}, help="more estimator parameters, as a JSON object")
    parser.add_argument("--k", type=int, default=16, help="nonzeros that the model is trained with")
    parser.add_argument("--value-bits", type=int, default=4, help="of a packed value, with its sign")
    parser.add_argument("--kind", choices=[*KINDS, "auto", "best"], default="auto", help="of quantiser")
    parser.add_argument("--rerank", type=int, default=0, help="candidates that the residual codes order; 0 for all")
    parser.add_argument("--max-queries", type=int, default=N_QUERIES)
    parser.add_argument("--max-documents", type=int, default=None)
    parser.add_argument("--cache-dir", type=Path, default=DEFAULT_CACHE_DIR)
    parser.add_argument("--prefix", default="hybrid-", help="of the names of the result files")
    parser.add_argument("--out", type=Path, default=Path("benchmark-results"))
    options = parser.parse_args(arguments)
    if options.keep_peers:
        options.peers = []
    if {"k", "residual_bytes"} & set(options.ours):
        parser.error("--ours must not hold k or residual_bytes, which --k and the split decide")
    return options


def main(arguments: list[str] | None = None) -> None:
    options = parse_options(arguments)
    for data in options.data:
        run_study(*load(data, options.cache_dir), options)


if __name__ == "__main__":
    main()
