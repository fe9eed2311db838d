"""How fast does a GPU search codes, beside dense search on the same card and the CPU's search of the same codes?

    python benchmarks/gpu_search.py --out benchmarks/results/gpu_search.json

Codes are synthetic: k distinct latents a row, drawn with log-normal popularity, random values. Originals are what they
decode to. Dense search is one product with all originals and torch's top-k. Times are medians, from NumPy queries to
NumPy neighbours, on all of the host's threads; the last results of both devices are compared, and the stages of a
device search are timed apart.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _common import environment, write_json
from _gpu import describe, device_of, wait
from scipy.sparse import csr_matrix

from skcompressae import CodeNearestNeighbors
from skcompressae._torch._devices import matmul_precision
from skcompressae._torch._search import DeviceIndex


def make_codes(n_rows: int, options: argparse.Namespace, device: torch.device, seed: int) -> csr_matrix:
    """Draw codes; the popularity of latents depends on `options.seed` only."""
    popularity = np.random.default_rng(options.seed).standard_normal(options.n_components)
    popularity = (options.skew * torch.from_numpy(popularity)).float().to(device)
    generator = torch.Generator(device).manual_seed(seed)
    parts = []
    for start in range(0, n_rows, 50_000):
        shape = min(50_000, n_rows - start), options.n_components
        noise = -torch.empty(shape, device=device).exponential_(generator=generator).log()
        parts.append((popularity + noise).topk(options.k, dim=1).indices.sort(dim=1).values.int().cpu().numpy())
    indices = np.concatenate(parts)
    values = np.random.default_rng(seed).standard_normal(indices.shape, dtype=np.float32)
    indptr = np.arange(0, indices.size + 1, options.k)
    return csr_matrix((values.ravel(), indices.ravel(), indptr), shape=(n_rows, options.n_components))


def decode(codes: csr_matrix, decoder: torch.Tensor) -> torch.Tensor:
    """Return unit rows on the decoder's device."""
    x = torch.empty((codes.shape[0], decoder.shape[1]), device=decoder.device)
    for start in range(0, len(x), 50_000):
        block = codes[start : start + 50_000]
        picks = torch.from_numpy(block.indices.reshape(block.shape[0], -1).astype(np.int64)).to(decoder.device)
        dense = torch.zeros(block.shape, device=decoder.device)
        dense.scatter_(1, picks, torch.from_numpy(block.data.reshape(block.shape[0], -1)).to(decoder.device))
        x[start : start + 50_000] = torch.nn.functional.normalize(dense @ decoder)
    return x


def timed(work: Callable[[], Any], device: torch.device, n_repeats: int) -> tuple[float, Any]:
    """Return the median time of a call after one that is not counted, and what the last returned."""
    found = work()
    times = []
    for _ in range(n_repeats):
        wait(device)
        start = time.perf_counter()
        found = work()
        wait(device)
        times.append(time.perf_counter() - start)
    return float(np.median(times)), found


def device_stages(index: DeviceIndex, targets: torch.Tensor, options: argparse.Namespace) -> dict[str, float]:
    """Time what the device does for one batch."""
    nobody = torch.full((targets.shape[1],), -1, device=targets.device)
    n_kept = options.top + 32
    work = {
        "candidates on the device": lambda: index._candidates(targets, n_kept, nobody),
        "products on the device": lambda: [block[0] @ targets for block in index._blocks],
    }
    return {name: timed(call, targets.device, options.n_repeats)[0] for name, call in work.items()}


def search_rows(n_documents: int, options: argparse.Namespace, device: torch.device) -> list[dict[str, Any]]:
    """Time all searches of so many documents."""
    shape = options.n_components, options.n_features
    decoder = np.random.default_rng(options.seed + 1).standard_normal(shape, dtype=np.float32)
    decoder /= np.linalg.norm(decoder, axis=1, keepdims=True)
    on_device = torch.from_numpy(decoder).to(device)
    codes = make_codes(n_documents, options, device, options.seed + 2)
    dense = decode(make_codes(max(options.batches), options, device, options.seed + 3), on_device).cpu().numpy()
    originals = decode(codes, on_device)
    found: list[dict[str, Any]] = []

    def record(seconds: float, batch: int, **what: Any) -> None:
        found.append({"n_documents": n_documents, "batch": batch, **what, "per_query_ms": 1e3 * seconds / batch})
        print(found[-1], flush=True)

    indexes = {
        kind: CodeNearestNeighbors(options.top, compressor=decoder, device=kind, n_jobs=-1).fit(codes)
        for kind in ("cpu", options.device)
    }
    for batch in options.batches:
        queries = dense[:batch]
        for precision in ("float32", "tf32"):

            def exact(queries: np.ndarray = queries) -> np.ndarray:
                scores = torch.from_numpy(queries).to(device) @ originals.T
                return torch.topk(scores, options.top, dim=1).indices.cpu().numpy()

            with matmul_precision(precision, device):
                record(timed(exact, device, options.n_repeats)[0], batch, who=f"dense {precision}")
        neighbors = {}
        for kind, index in indexes.items():
            seconds, neighbors[kind] = timed(lambda i=index, q=queries: i.kneighbors(q), device, options.n_repeats)
            record(seconds, batch, who=f"codes {kind}")
        found[-1]["equal_neighbors"] = float(np.mean(neighbors["cpu"][1] == neighbors[options.device][1]))
        index = indexes[options.device]._device_index
        if index is not None:
            targets = torch.from_numpy(decoder @ queries.T).to(device)
            for what, seconds in device_stages(index, targets, options).items():
                record(seconds, batch, who=what)
    return found


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--n-documents", type=int, nargs="+", default=[200_000, 1_000_000])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 64, 1024])
    parser.add_argument("--n-features", type=int, default=768)
    parser.add_argument("--n-components", type=int, default=4096)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--top", type=int, default=100)
    parser.add_argument("--skew", type=float, default=1.2)
    parser.add_argument("--n-repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    device = device_of(options.device)
    rows: list[dict[str, Any]] = []
    result = {
        "environment": environment(),
        "device": describe(device),
        "settings": {name: value for name, value in vars(options).items() if name != "out"},
        "rows": rows,
    }
    for n_documents in options.n_documents:
        rows += search_rows(n_documents, options, device)
        if options.out is not None:
            write_json(options.out, result)


if __name__ == "__main__":
    main()
