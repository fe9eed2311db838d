"""The cluster benchmark on tiny input, in this process alone; its engines are tested in their own files."""

import json

import pytest


def test_benchmark_smoke(benchmark, tmp_path):
    for package in ("psutil", "pyarrow"):
        pytest.importorskip(package)
    arguments = ["--n-samples", "600", "--n-features", "16", "--n-components", "32", "--k", "4", "--n-repeats", "1"]
    benchmark("cluster_throughput").main(
        [*arguments, "--n-files", "3", "--engines", "single", "--out", str(tmp_path / "out.json")]
    )
    report = json.loads((tmp_path / "out.json").read_text())
    (row,) = report["rows"]
    assert row["engine"] == "single"
    assert row["max_relative_deviation"] < 1e-5
    small, large = report["sizing"]
    assert large["core_hours"] == pytest.approx(10 * small["core_hours"])
    assert small["core_hours"] == pytest.approx(1e8 / row["rows_per_cpu_s"] / 3600)
    assert small["csr_bytes"] == 1e8 * (4 * 8 + 4)
