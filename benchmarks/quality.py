"""Which method keeps most of the true neighbours, for how many bytes?

Held-out queries, exact dense neighbours, then every method on the same rows: recall@10 and @100, mean
cosine, bytes per vector, fit and encode time in CPU seconds of all threads. One JSON per data set; ``--report DIR``
turns all of them into a picture and a table.

    python benchmarks/quality.py --data docstring_lsa my_embeddings.npy --out results --report docs/results
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp

sys.path.insert(0, str(Path(__file__).resolve().parent))
import _peers as peers
from _common import (
    code_neighbors,
    cosine_neighbors,
    cpu_stopwatch,
    csr_size_bytes,
    environment,
    mean_cosine,
    peak_memory_bytes,
    recall,
    scale_rows,
    top_of_blocks,
    unit_codes,
    write_json,
)
from _data import DEFAULT_CACHE_DIR, N_QUERIES, Split, checksum, load, split
from _report import write_report

from skcompressae import CompresSAETransformer, PackedCodes

Array = np.ndarray
Row = dict[str, Any]
N_NEIGHBORS = 100
QUERY_NONZEROS = 128
BY_BYTES: dict[str, Callable[[Array, int, int], peers.Compressed | None]] = {
    "pca": peers.pca,
    "pca_int8": lambda X, size, seed: peers.pca(X, size, seed, is_int8=True),
    "truncation": peers.truncation,
    "truncation_int8": lambda X, size, seed: peers.truncation(X, size, seed, is_int8=True),
    "pq": peers.product_quantization,
    "opq": peers.optimized_product_quantization,
    "rq": peers.residual_quantization,
}
METHODS = ("ours", "ours_once", "paper", *BY_BYTES, "sq", "rabitq", "signs", "dictionary")
SLOW_METHODS = ("dictionary", "rq")  # ten times as long as the others, or more
DEFAULT_METHODS = tuple(method for method in METHODS if method not in SLOW_METHODS)


class Coder(NamedTuple):
    """A fitted sparse coder, ours or a peer's, as the modes need it."""

    method: str
    params: dict[str, Any]
    k: int
    n_components: int
    codes: sp.csr_matrix
    project: Callable[[], sp.csr_matrix]  # codes whose reconstructions are projections of the unit rows
    encode: Callable[[Array], sp.csr_matrix]
    decode: Callable[[sp.csr_matrix], Array]
    cut_query: Callable[[Array], Any]  # dense queries to code space, at most QUERY_NONZEROS nonzeros
    fit_s: float
    encode_s: float
    dead_fraction: float
    n_steps: int | None = None


def our_coders(data: Split, ks: list[int], seed: int, options: argparse.Namespace, is_once: bool) -> Iterator[Coder]:
    """Fit a model for each k, or one at the largest k up to 64 that is then used at every smaller one."""
    params = {"n_components": options.n_components, "norm": "unit", **options.ours}
    if options.steps is not None:
        params.setdefault("max_iter", options.steps)

    def fit(k: int) -> tuple[Any, float]:
        with cpu_stopwatch() as fit_s:
            model = CompresSAETransformer(k=k, random_state=seed, **params).fit(data.documents)
        return model, fit_s()

    if is_once:
        largest = max([k for k in ks if k <= 64], default=min(ks))
        shared = fit(largest)
        # at its own k it is the model of method "ours", but for one that was trained to serve several
        ks = [k for k in ks if k < largest or (k == largest and options.ours.get("nested"))]
    for k in ks:
        model, fit_s = shared if is_once else fit(k)
        model.set_params(k=k)
        with cpu_stopwatch() as encode_s:
            codes = sp.csr_matrix(model.transform(data.documents))
        yield Coder(
            "ours_once" if is_once else "ours",
            {"k": k, **({"k_fit": largest} if is_once else {}), **options.ours},
            k,
            codes.shape[1],
            codes,
            lambda model=model: sp.csr_matrix(copy.copy(model).set_params(norm=None).transform(data.documents)),
            model.transform,
            model.inverse_transform,
            lambda Q, model=model: model.transform_query(Q, n_nonzero=QUERY_NONZEROS),
            fit_s,
            encode_s(),
            _dead_fraction(codes),
            model.n_iter_,
        )


def peer_coders(
    data: Split, ks: list[int], seed: int, options: argparse.Namespace, method: str, our_fit_s: dict[int, float]
) -> Iterator[Coder]:
    """Fit the paper's recipe, or dictionary learning, for each k."""
    for k in ks:
        if method == "paper":
            params = {"k": k, "learning_rate": options.learning_rate}
            if options.paper_time == "equal" and k not in our_fit_s:
                raise SystemExit("--paper-time equal needs the method 'ours' in the same run, before 'paper'.")
            model = peers.paper_recipe(
                data.documents,
                k,
                options.n_components,
                options.paper_steps,
                options.batch_size,
                options.learning_rate,
                seed,
                our_fit_s[k] if options.paper_time == "equal" else math.inf,
            )
        else:
            params = {"k": k, "n_components": min(options.n_components, 1024)}
            model = peers.dictionary_learning(data.documents, k, params["n_components"], seed)
        yield Coder(
            method,
            params,
            k,
            model.codes.shape[1],
            model.codes,
            lambda model=model: model.codes,
            model.encode,
            lambda codes, model=model: codes @ model.decoder,
            lambda Q, model=model: _keep_largest(Q @ model.decoder.T, QUERY_NONZEROS),
            model.fit_s,
            model.encode_s,
            _dead_fraction(model.codes),
            model.n_steps,
        )


def _dead_fraction(codes: sp.csr_matrix) -> float:
    return float(np.mean(np.bincount(codes.indices, minlength=codes.shape[1]) == 0))


def _keep_largest(T: Array, n_nonzero: int) -> Array:
    if n_nonzero >= T.shape[1]:
        return T
    dropped = np.argpartition(np.abs(T), -n_nonzero, axis=1)[:, :-n_nonzero]
    np.put_along_axis(T, dropped, 0.0, axis=1)
    return T


def measure_coder(coder: Coder, data: Split, true: Array, value_bits: list[int]) -> Iterator[Row]:
    """Score a sparse coder in every mode, and packed at each of `value_bits`."""
    X_hat = np.asarray(coder.decode(coder.codes), dtype=np.float32)
    query_codes = sp.csr_matrix(coder.encode(data.queries))
    # scaled so that inner products with a dense query's projection rank as cosines of reconstructions do
    of_unit_reconstruction = scale_rows(coder.codes, np.linalg.norm(X_hat, axis=1))
    found = {
        "sparse": code_neighbors(query_codes, unit_codes(coder.codes), N_NEIGHBORS),
        f"sparse_query{QUERY_NONZEROS}": code_neighbors(
            coder.cut_query(data.queries), of_unit_reconstruction, N_NEIGHBORS
        ),
        "reconstructed": cosine_neighbors(np.asarray(coder.decode(query_codes)), X_hat, N_NEIGHBORS),
        "asymmetric": cosine_neighbors(data.queries, X_hat, N_NEIGHBORS),
    }
    cosine = mean_cosine(data.documents, X_hat)
    projected = np.asarray(coder.decode(coder.project()), dtype=np.float32)
    found |= {
        # With least-squares values and norm=None a reconstruction is the projection of the unit row: its inner product
        # with a query estimates their cosine without inflating badly reconstructed rows.
        "asymmetric_dot": top_of_blocks(
            lambda rows: data.queries[rows] @ projected.T, len(data.queries), len(projected), N_NEIGHBORS
        ),
    }
    shared = {
        "method": coder.method,
        "params": coder.params,
        "fit_s": coder.fit_s,
        "encode_s": coder.encode_s,
        "dead_fraction": coder.dead_fraction,
        "n_steps": coder.n_steps,
    }
    for mode, indices in found.items():
        yield {**shared, "mode": mode, "size_bytes": csr_size_bytes(coder.k), "cosine": cosine} | _recalls(
            indices, true
        )
    for n_bits in value_bits:
        packed = PackedCodes.pack(coder.codes, value_bits=n_bits, k=coder.k)
        X_hat = np.asarray(coder.decode(packed.to_csr()), dtype=np.float32)
        yield {
            **shared,
            "mode": f"asymmetric_{n_bits}bit",
            "size_bytes": float(packed.bytes_per_row),
            "cosine": mean_cosine(data.documents, X_hat),
        } | _recalls(cosine_neighbors(data.queries, X_hat, N_NEIGHBORS), true)


def _recalls(found: Array, true: Array) -> Row:
    return {f"recall_at_{n}": recall(found, true, n) for n in (10, 100)}


def compressed_peers(method: str, X: Array, seed: int, sizes_bytes: list[int]) -> Iterator[peers.Compressed | None]:
    """Yield one peer at each byte budget, or at each of its own sizes."""
    if method in BY_BYTES:
        yield from (BY_BYTES[method](X, size, seed) for size in sizes_bytes)
    elif method == "sq":
        yield from (peers.scalar_quantization(X, n_bits, seed) for n_bits in (8, 6, 4))
    elif method == "signs":
        yield peers.rotated_signs(X, seed)
    else:
        yield from (peers.rabitq(X, size, seed) for size in sizes_bytes)
        yield from (peers.rabitq(X, None, seed, n_bits) for n_bits in (1, 2, 4))


def measure(
    method: str, data: Split, true: Array, seed: int, options: argparse.Namespace, our_fit_s: dict[int, float]
) -> Iterator[Row]:
    """Yield the result rows of one method and one seed; `our_fit_s` is the time our fit took at each k."""
    if method in ("ours", "ours_once", "paper", "dictionary"):
        coders = (
            our_coders(data, options.k, seed, options, method == "ours_once")
            if method.startswith("ours")
            else peer_coders(data, options.k, seed, options, method, our_fit_s)
        )
        for coder in coders:
            yield from measure_coder(coder, data, true, options.value_bits)
        return
    for peer in compressed_peers(method, data.documents, seed, options.sizes):
        if peer is not None:  # None: this budget is out of the method's reach on this data
            cosine = None if peer.reconstruction is None else mean_cosine(data.documents, peer.reconstruction)
            yield {
                "method": peer.method,
                "params": peer.params,
                "mode": "asymmetric",
                "size_bytes": peer.size_bytes,
                "cosine": cosine,
                "fit_s": peer.fit_s,
                "encode_s": peer.encode_s,
            } | _recalls(peer.neighbors(data.queries, N_NEIGHBORS), true)


def _earlier_rows(path: Path, sha256: str) -> list[Row]:
    earlier = json.loads(path.read_text(encoding="utf-8"))
    if earlier["data"]["sha256"] != sha256:
        raise SystemExit(f"--append: {path} was measured on other data ({earlier['data']['sha256']}, now {sha256}).")
    return earlier["results"]


def run_study(name: str, X: Array, options: argparse.Namespace) -> dict[str, Any]:
    """Run every method and seed on one data set and return the content of its result file."""
    data = split(name, X, options.max_queries, options.max_documents)
    true = cosine_neighbors(data.queries, data.documents, N_NEIGHBORS)
    path = options.out / f"{options.prefix}{name}.json"
    rows: list[Row] = _earlier_rows(path, checksum(X)) if options.append and path.exists() else []
    content = {
        "data": {
            "name": name,
            "sha256": checksum(X),
            "n_features": X.shape[1],
            "n_documents": len(data.documents),
            "n_queries": len(data.queries),
        },
        "environment": environment(),
        # without paths: where a file lay is nobody's business but the machine's
        "options": {
            key: value for key, value in vars(options).items() if key != "data" and not isinstance(value, Path)
        },
        "results": rows,
    }
    origin = {key: content["environment"][key] for key in ("date", "cpu", "commit")}  # rows may be of several runs
    n_earlier = len(rows)
    for method in options.methods:
        for seed in options.seeds:
            our_fit_s = {
                row["params"]["k"]: row["fit_s"]
                for row in rows[n_earlier:]
                if (row["method"], row["seed"]) == ("ours", seed)
            }
            for row in measure(method, data, true, seed, options, our_fit_s):
                rows.append({**row, "seed": seed, **origin})
                print(
                    f"{name} {row['method']} {row['mode']} {json.dumps(row['params'])} seed {seed}: "
                    f"{row['size_bytes']:.0f} bytes, recall@10 {row['recall_at_10']:.3f}, "
                    f"recall@100 {row['recall_at_100']:.3f}, fit {row['fit_s']:.1f} s",
                    flush=True,
                )
            content["peak_memory_bytes"] = peak_memory_bytes()
            write_json(path, content)  # a break loses one method at most
    return content


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="*", default=[], help=".npy files or names (see _data.py)")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(DEFAULT_METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--k", nargs="+", type=int, default=[8, 16, 32, 64, 128])
    parser.add_argument("--n-components", type=int, default=4096)
    parser.add_argument("--sizes", nargs="+", type=int, default=[16, 32, 64, 128, 256], help="peers' bytes per vector")
    parser.add_argument("--value-bits", nargs="*", type=int, default=[4], help="bits per value of the packed sizes")
    parser.add_argument("--steps", type=int, default=None, help="training steps of ours; default: the estimator's")
    parser.add_argument("--ours", type=json.loads, default={}, help="more estimator parameters, as a JSON object")
    parser.add_argument("--paper-steps", type=int, default=2000)
    parser.add_argument(
        "--paper-time", choices=("equal", "any"), default="any", help="'equal' also stops it after our time to fit"
    )
    parser.add_argument("--batch-size", type=int, default=2048, help="rows per training step of the paper's recipe")
    parser.add_argument("--learning-rate", type=float, default=3e-3, help="of the paper's recipe")
    parser.add_argument("--max-queries", type=int, default=N_QUERIES)
    parser.add_argument("--max-documents", type=int, default=None)
    parser.add_argument("--cache-dir", type=Path, default=DEFAULT_CACHE_DIR)
    parser.add_argument("--out", type=Path, default=Path("benchmark-results"))
    parser.add_argument("--prefix", default="quality-", help="result files are OUT/PREFIXdata.json")
    parser.add_argument(
        "--append", action="store_true", help="add to the result files of earlier runs on the same data"
    )
    parser.add_argument("--report", type=Path, default=None, help="folder for picture and table of all results in OUT")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = parse_options(arguments)
    for data in options.data:
        run_study(*load(data, options.cache_dir), options)
    if options.report is not None:
        paths = sorted(options.out.glob(f"{options.prefix}*.json"))
        write_report([json.loads(path.read_text(encoding="utf-8")) for path in paths], options.report)


if __name__ == "__main__":
    main()
