"""How long does an ONNX encoder take in onnxruntime, beside transform, for one row and for batches?

    python benchmarks/onnx_latency.py --out benchmarks/results/onnx_latency.json

Beside them the batched encoder in torch that a SparseEncoder of sentence-transformers runs. All in one process on the
same rows and weights, a model of a few steps on the synthetic set of clusters. Each record also says how well the codes
agree with those of transform: the share of rows with equal supports, and the largest difference of a value among
them, relative to the largest value of its row.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
import scipy.sparse as sp
import torch
from _common import agreement, environment, median_seconds, stopwatch, write_json
from _data import clustered
from threadpoolctl import threadpool_limits

from skcompressae import CompresSAETransformer
from skcompressae._core._rows import scales_apart
from skcompressae._model_weights import flattening
from skcompressae._torch._codes import encode_batch
from skcompressae.onnx import to_onnx

N_TRAINING_ROWS = 8192
CODINGS = ("activations", "least_squares", "pursuit")


def open_session(path, n_threads):
    """Open a session that computes on so many threads."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = n_threads
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def in_torch(compressor, coding):
    """Return a function of rows that encodes them as CompresSAEModule does."""
    names = ("encoder_weights_", "encoder_bias_", "components_")
    weights = [torch.tensor(getattr(compressor, name)) for name in names]
    settings = {"coding": coding, "candidate_factor": compressor.candidate_factor, "norm": compressor.norm}
    settings["flattening"] = flattening(copy.copy(compressor).set_params(coding=coding))
    settings["keeps_mean"] = scales_apart(compressor.scales_mean_apart_, coding, compressor.norm)

    def encode(rows):
        with torch.inference_mode():
            return encode_batch(torch.from_numpy(rows), *weights, compressor.k, **settings)

    return encode


def measure(options, compressor, X, coding, n_threads, folder):
    """Measure one coding at one number of threads, for every batch size."""
    compressor.set_params(coding=coding)
    path = folder / f"{coding}.onnx"
    to_onnx(compressor, path)
    with stopwatch() as seconds:
        session = open_session(path, n_threads)
    shared = {"coding": coding, "n_threads": n_threads, "file_bytes": path.stat().st_size, "load_s": seconds()}
    indices, values = session.run(["indices", "values"], {"embeddings": X})
    places = np.arange(0, indices.size + 1, indices.shape[1])
    codes = sp.csr_matrix((values.ravel(), indices.ravel(), places), shape=(len(X), options.n_components))
    shared |= agreement(codes, compressor.transform(X), options.k)
    by_torch = in_torch(compressor, coding)
    rows = []
    for n_rows in options.batch_sizes:
        batch = X[:n_rows]
        n_repeats = max(options.n_repeats, options.n_repeats * 64 // n_rows)
        rows.append(
            {
                **shared,
                "n_rows": n_rows,
                "onnxruntime_s": median_seconds(lambda: session.run(None, {"embeddings": batch}), n_repeats),  # noqa: B023
                "transform_s": median_seconds(lambda: compressor.transform(batch), n_repeats),  # noqa: B023
                "torch_s": median_seconds(lambda: by_torch(batch), n_repeats),  # noqa: B023
            }
        )
    return rows


def main(arguments=None):
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n-features", type=int, default=768)
    parser.add_argument("--n-components", type=int, default=4096)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8, 32, 256, 1024])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--n-steps", type=int, default=100, help="of the fit")
    parser.add_argument("--n-repeats", type=int, default=5, help="more for small batches")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    n_rows = max(options.batch_sizes)
    data = clustered(options.n_features, n_samples=N_TRAINING_ROWS + n_rows)
    compressor = CompresSAETransformer(
        options.n_components, k=options.k, max_iter=options.n_steps, device="cpu", random_state=options.seed
    ).fit(data[:-n_rows])
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for n_threads in options.threads:
            torch.set_num_threads(n_threads)
            with threadpool_limits(n_threads):
                for coding in CODINGS:
                    rows += measure(options, compressor, data[-n_rows:], coding, n_threads, Path(folder))
    for row in rows:
        print({name: round(value, 7) if isinstance(value, float) else value for name, value in row.items()})
    if options.out is not None:
        settings = {name: value for name, value in vars(options).items() if name != "out"}
        write_json(options.out, {"environment": environment(), "settings": settings, "rows": rows})


if __name__ == "__main__":
    main()
