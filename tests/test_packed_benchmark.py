"""The packing benchmark runs on tiny input and reports what it promises."""

import importlib.util
import json
from pathlib import Path

import numpy as np


def test_benchmark_smoke(tmp_path):
    path = Path(__file__).parent.parent / "benchmarks" / "packing.py"
    spec = importlib.util.spec_from_file_location("benchmark_packing", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((400, 16)).astype(np.float16))
    arguments = ["--data", str(tmp_path / "x.npy"), "--queries", "20", "--components", "64", "--k", "6"]
    arguments += ["--bits", "4", "--repeats", "1", "--output", str(tmp_path / "out.json")]
    module.main(arguments)
    report = json.loads((tmp_path / "out.json").read_text())
    ranked, uniform = report["results"]
    assert ranked["bytes_per_row"] == uniform["bytes_per_row"] == 10
    assert abs(ranked["recall"] - ranked["recall_float32"]) < 0.05
    assert ranked["archive"]["bytes"] > 0
    assert report["n_neighbors"] == 100
