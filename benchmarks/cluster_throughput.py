"""How many rows a second do Dask, Spark and Ray Data encode beside one process, on the same machine, rows and model?

    python benchmarks/cluster_throughput.py --out benchmarks/results/cluster_throughput.json

Every engine reads the same Parquet files of float32 embeddings and writes Parquet files of codes; one process is also
timed on an array in memory. Engines run on this machine alone, as many tasks at a time as there are processes. Time to
start an engine, its workers and the imports in them is reported apart. Codes are compared with one process's. pyarrow
writes without dictionaries here, which numbers that hardly repeat only make larger. Ray is measured where it is
installed and asked for, with `--engines single ray`.

Beside the time on the clock stands that on the processors, of the engine with all its processes: it hardly depends on
what else the machine does, and the sizing of large collections is worked out from it.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import shutil
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from _common import environment, peak_memory_bytes, stopwatch, write_json
from _data import clustered

from skcompressae import CompresSAETransformer
from skcompressae._core._threads import exactly_n_threads
from skcompressae.arrow import ArrowEncoder, codes_from_arrow

VERSIONED = ("pyarrow", "pandas", "dask", "distributed", "pyspark", "ray")
ENGINES = ("single", "dask", "spark", "ray")
# Ray makes a task of 128 MiB by default, which is all of the 40,000 rows: too few tasks for two processes.
RAY_BLOCK_BYTES = 2**24


def write_source(folder, X, n_files):
    """Write the rows as Parquet files of equal size; return their bytes."""
    for i, part in enumerate(np.array_split(np.arange(len(X)), n_files)):
        column = pa.FixedSizeListArray.from_arrays(pa.array(X[part].reshape(-1)), X.shape[1])
        table = pa.table({"id": pa.array(part), "embedding": column})
        pq.write_table(table, folder / f"part-{i:03}.parquet", use_dictionary=False)
    return sum(file.stat().st_size for file in folder.glob("*.parquet"))


@contextmanager
def single(model, source, options):
    """Yield a function that encodes file after file in this process, on `n_processes` threads."""
    encoder = ArrowEncoder(model)

    def work(target):
        target.mkdir()
        for file in sorted(source.glob("*.parquet")):
            with exactly_n_threads(options.n_processes):
                table = encoder(pq.read_table(file))
            pq.write_table(table, target / file.name, use_dictionary=False)

    yield work


@contextmanager
def dask(model, source, options):
    """Yield a function that encodes on a cluster of processes with one thread each."""
    import dask.dataframe as dd
    from distributed import Client, LocalCluster

    from skcompressae.dask import encode_dataframe

    metadata = ArrowEncoder(model).metadata
    with (
        LocalCluster(
            n_workers=options.n_processes, threads_per_worker=1, processes=True, dashboard_address=None
        ) as cluster,
        Client(cluster) as client,
    ):

        def work(target):
            df = dd.read_parquet(str(source), dtype_backend="pyarrow", split_row_groups=False, blocksize=None)
            codes = encode_dataframe(model, df, client=client)
            codes.to_parquet(str(target), custom_metadata=metadata, write_index=False, use_dictionary=False)

        yield work


@contextmanager
def spark(model, source, options):
    """Yield a function that encodes in a local session of `n_processes` tasks at a time."""
    os.environ["PYSPARK_PYTHON"] = sys.executable
    from pyspark.sql import SparkSession

    from skcompressae.spark import encode_parquet

    builder = SparkSession.builder.master(f"local[{options.n_processes}]").config("spark.ui.enabled", "false")
    builder = builder.config("spark.driver.host", "localhost").config("spark.driver.bindAddress", "127.0.0.1")
    session = builder.config("spark.driver.memory", "2g").config("spark.log.level", "ERROR").getOrCreate()
    try:
        yield lambda target: encode_parquet(model, session, source, target)
    finally:
        session.stop()


@contextmanager
def ray(model, source, options):
    """Yield a function that encodes in Ray Data's stateless tasks, `n_processes` at a time."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - Ray's own spelling; they get niceness 15 otherwise
    import ray

    ray.init(num_cpus=options.n_processes, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.target_max_block_size = RAY_BLOCK_BYTES
    encoder = ArrowEncoder(model)

    def work(target):
        embeddings = ray.data.read_parquet(str(source))
        codes = embeddings.map_batches(encoder, batch_format="pyarrow", batch_size=8192)
        codes.write_parquet(str(target), use_dictionary=False)

    try:
        yield work
    finally:
        ray.shutdown()


def version_of(package):
    """Return the version of a package, None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def cpu_seconds():
    """Return the processor time of this process and all its descendants, those that have ended included."""
    this = psutil.Process()
    times = [process.cpu_times() for process in [this, *this.children(recursive=True)]]
    return sum(t.user + t.system + t.children_user + t.children_system for t in times)


def timed(work, n_repeats):
    """Return seconds on the clock and on the processors, of the fastest run: others' work can only slow one down."""
    runs = []
    for _ in range(n_repeats):
        before = cpu_seconds()
        with stopwatch() as seconds:
            work()
        runs.append((seconds(), max(cpu_seconds() - before, 0.01)))  # the processors' clock ticks every 10 ms
    return min(runs)


def measure(name, model, source, expected, options, folder):
    """Time one engine; return a row of the report."""
    target = folder / name

    def run():
        shutil.rmtree(target, ignore_errors=True)
        work(target)

    with stopwatch() as seconds, globals()[name](model, source, options) as work:
        run()
        first_s = seconds()
        time_s, cpu_s = timed(run, options.n_repeats)
    table = pq.read_table(target).sort_by("id")
    codes = codes_from_arrow(table)
    return {
        "engine": name,
        "n_processes": 1 if name == "single" else options.n_processes,
        "n_threads": options.n_processes if name == "single" else 1,
        "parquet_to_parquet_s": time_s,
        "cpu_s": cpu_s,
        "rows_per_s": len(table) / time_s,
        "rows_per_cpu_s": len(table) / cpu_s,
        "start_and_first_run_s": first_s,
        "code_bytes_per_row": sum(file.stat().st_size for file in target.glob("*.parquet")) / len(table),
        "max_relative_deviation": float(abs(codes - expected).max() / abs(expected).max()),
    }


def sizing(row, options, source_bytes_per_row):
    """Work out hours and bytes of large collections from one engine's measured rows per second of a core."""
    per_core = row["rows_per_cpu_s"]
    return [
        {
            "engine": row["engine"],
            "n_rows": n_rows,
            "core_hours": n_rows / per_core / 3600,
            "hours_on_64_cores": n_rows / per_core / 3600 / 64,
            "embedding_bytes": n_rows * 4 * options.n_features,
            "embedding_parquet_bytes": n_rows * source_bytes_per_row,
            "code_parquet_bytes": n_rows * row["code_bytes_per_row"],
            "csr_bytes": n_rows * (8 * options.k + 4),
        }
        for n_rows in (10**8, 10**9)
    ]


def main(arguments=None):
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n-samples", type=int, default=40_000)
    parser.add_argument("--n-features", type=int, default=768)
    parser.add_argument("--n-components", type=int, default=4096)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--n-processes", type=int, default=2)
    parser.add_argument("--n-files", type=int, default=12)
    parser.add_argument("--n-repeats", type=int, default=4)
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=ENGINES[:3])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)

    X = clustered(options.n_features, options.n_samples)
    model = CompresSAETransformer(
        options.n_components, k=options.k, max_iter=2, batch_size=1024, device="cpu", random_state=options.seed
    ).fit(X[:4096])
    expected = model.transform(X)
    in_memory = []
    for n_threads in sorted({1, options.n_processes}):
        with exactly_n_threads(n_threads):
            time_s, cpu_s = timed(lambda: model.transform(X), options.n_repeats)
        in_memory.append({"n_threads": n_threads, "rows_per_s": len(X) / time_s, "rows_per_cpu_s": len(X) / cpu_s})
        print(in_memory[-1])
    rows, sizes = [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = folder / "source"
        source.mkdir()
        source_bytes_per_row = write_source(source, X, options.n_files) / len(X)
        for engine in options.engines:
            rows.append(measure(engine, model, source, expected, options, folder))
            sizes += sizing(rows[-1], options, source_bytes_per_row)
            print({key: round(value, 4) if isinstance(value, float) else value for key, value in rows[-1].items()})
    content = {
        "environment": environment(),
        "engine_versions": {package: version_of(package) for package in VERSIONED},
        "settings": {name: value for name, value in vars(options).items() if name != "out"},
        "data": f"clustered, {options.n_samples} x {options.n_features}, float32",
        "transform_in_memory": in_memory,
        "source_parquet_bytes_per_row": source_bytes_per_row,
        "rows": rows,
        "sizing": sizes,
        "gpu": "not measured",
        "peak_memory_bytes": peak_memory_bytes(),
    }
    if options.out is not None:
        write_json(options.out, content)


if __name__ == "__main__":
    main()
