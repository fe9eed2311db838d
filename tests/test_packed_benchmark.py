"""The packing benchmark runs on tiny input and reports what it promises."""

import json

import numpy as np
import pytest


def test_benchmark_smoke(benchmark, tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((400, 16)).astype(np.float16))
    arguments = ["--data", str(tmp_path / "x.npy"), "--queries", "20", "--components", "64", "--k", "6"]
    arguments += ["--bits", "4", "--repeats", "1", "--output", str(tmp_path / "out.json")]
    arguments += ["--file-gigabytes", "1e-4"]
    benchmark("packing").main(arguments)
    report = json.loads((tmp_path / "out.json").read_text())
    ranked, uniform = report["results"]
    assert ranked["bytes_per_row"] == uniform["bytes_per_row"] == 10
    assert abs(ranked["recall"] - ranked["recall_float32"]) < 0.05
    assert ranked["archive"]["bytes"] > 0
    assert report["n_neighbors"] == 100
    assert report["file"]["bytes"] > 9e4
    assert report["file"]["open_ms"] > 0
    assert ranked["search"].keys() == {f"{name}_batch_{n}_ms" for name in ("csr", "packed") for n in (1, 20)}
    assert str(tmp_path) not in (tmp_path / "out.json").read_text()


def test_packing_takes_the_codes_of_a_model(benchmark, tmp_path, fitted, embeddings):
    np.save(tmp_path / "x.npy", embeddings)
    fitted.save(tmp_path / "model.safetensors")
    arguments = ["--data", str(tmp_path / "x.npy"), "--model", str(tmp_path / "model.safetensors"), "--queries", "20"]
    report = benchmark("packing").main([*arguments, "--k", "3", "--bits", "6", "--repeats", "1"])
    assert report["n_components"] == fitted.n_components
    assert report["results"][0]["recall"] > 0.5
    assert "a model of" in report["dictionary"]


def test_hybrid_benchmark_smoke(benchmark, tmp_path):
    module = benchmark("hybrid")
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((400, 48)).astype(np.float32))
    arguments = ["--data", str(tmp_path / "x.npy"), "--out", str(tmp_path), "--sizes", "8", "64", "--steps", "3"]
    module.main([*arguments, "--n-components", "64", "--max-queries", "10"])
    (path,) = tmp_path.glob("hybrid-*.json")
    rows = json.loads(path.read_text())["results"]
    assert {"pq", "opq"} <= {row["method"] for row in rows if row["budget_bytes"] == 8}
    small, large = (row for row in rows if row["method"] in ("sparse", "hybrid"))
    assert 6 <= small["size_bytes"] <= 8
    assert 48 < large["size_bytes"] <= 64
    assert large["method"] == "hybrid"
    assert large["params"]["rerank"] == 390
    assert large["recall_at_100"] > small["recall_at_100"] + 0.1
    peers = [row for row in rows if row not in (small, large) and row["budget_bytes"] == 8]
    module.main(
        [*arguments, "--n-components", "64", "--max-queries", "10", "--keep-peers", "--sizes", "8", "--kind", "fixed"]
    )
    again = json.loads(path.read_text())
    assert [row for row in again["results"] if row["method"] not in ("sparse", "hybrid")] == peers
    (ours,) = (row for row in again["results"] if row["method"] in ("sparse", "hybrid"))
    assert ours["params"]["kind"] == "fixed"
    assert ours["size_bytes"] <= 8
    assert "kind" not in small["params"]
    assert len(again["results"]) == len(peers) + 1
    assert again["environment_of_peers"].keys() == again["environment"].keys()
    np.save(tmp_path / "x.npy", np.random.default_rng(1).standard_normal((400, 48)).astype(np.float32))
    with pytest.raises(SystemExit, match="its peers cannot be kept"):
        module.main([*arguments, "--n-components", "64", "--max-queries", "10", "--keep-peers"])
