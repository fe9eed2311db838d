"""The speed benchmark of search on tiny input, and the codes it makes."""

from __future__ import annotations

import json

import numpy as np
import pytest


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:Sparse CSR tensor support is in beta state")
@pytest.mark.filterwarnings("ignore:WARNING clustering:UserWarning")
def test_the_speed_benchmark_runs(benchmark, tmp_path):
    """On tiny input, all peers that are installed; a second run keeps the rows of the first."""
    search_speed = benchmark("search_speed")
    sizes = "--n-docs 400 --n-components 64 --n-features 16 --k 4 --top 5 --batches 1 3 --pq-train 400 --pq-bits 2"
    output = tmp_path / "speed.json"
    arguments = [*sizes.split(), "--seconds", "0.01", "--output", str(output), "--cache", str(tmp_path)]
    search_speed.main([*arguments, "--threads", "1"])
    search_speed.main([*arguments, "--threads", "2", "--parts", "own", "flat"])
    report = json.loads(output.read_text())
    own = [row for row in report["results"] if row["name"].startswith("skcompressae")]
    assert len(own) == 5 * 2 * 2
    assert {row["n_threads"] for row in own} == {1, 2}
    assert all(row["first_call_s"] > 0 and row["per_query_ms"] > 0 for row in report["results"])
    assert report["settings"]["seed"] == 0
    assert report["environment"]["n_cpus"] >= 1
    assert report["environment"]["versions"]["numba"]
    assert str(tmp_path) not in output.read_text()
    assert report["limits"]["kernel_ms"] > 0


def test_benchmark_codes_have_distinct_sorted_latents_and_skewed_use(benchmark):
    make_codes = benchmark("search_speed").make_codes
    codes = make_codes(500, 100, 20, 1.2, 0)
    assert codes.has_canonical_format
    np.testing.assert_array_equal(np.diff(codes.indptr), 20)
    uses = np.sort(codes.getnnz(axis=0))
    assert uses[-10:].sum() > 5 * uses[:10].sum()
    assert (make_codes(500, 100, 20, 1.2, 0) != codes).nnz == 0
