"""The profile, memory and scaling benchmarks on tiny input."""

import contextlib
import json
import os
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from skcompressae import _encoding

linux_only = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads Linux's process status")


def test_profile_covers_the_hot_paths(benchmark, tmp_path, monkeypatch):
    monkeypatch.setattr(_encoding, "roundings_worth_screening", lambda n_rows, n_features: [])
    n_threads, out = torch.get_num_threads(), tmp_path / "profile.json"
    size = ["--batch-size", "64", "--n-samples", "600", "--n-features", "16", "--n-components", "64", "--k", "4"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a fit of two steps leaves latents unused
        benchmark("profile_step").main([*size, "--threads", "1", "--n-repeats", "1", "--out", str(out)])
    torch.set_num_threads(n_threads)
    results = json.loads(out.read_text(encoding="utf-8"))["results"]
    assert len(results) == 14
    assert {"product", "top_k", "sum_gradients", "apply_adam"} <= set(results["step_float32"]["stages_s"])
    assert {"product", "supports", "least_squares_codes"} <= set(results["transform_least_squares_float32"]["stages_s"])
    assert {"product", "top_k", "pursuit_codes"} <= set(results["transform_pursuit_float32"]["stages_s"])
    for result in results.values():
        assert 0 < sum(result["stages_s"].values()) <= 1.05 * result["total_s"]


@linux_only
def test_peak_memory_sees_what_is_allocated_and_freed(benchmark):
    def work():
        array = np.ones(40_000_000, dtype=np.uint8)
        time.sleep(0.05)
        return int(array[::1000].sum())

    record, total = benchmark("_peak").measure(work)
    assert total == 40_000
    assert 35e6 < record["private_growth_bytes"] < 80e6
    assert 35e6 < record["resident_growth_bytes"] < 80e6


@linux_only
def test_memory_and_scaling_tasks_measure_fit_and_transform(benchmark, tmp_path):
    memory, scaling = benchmark("memory"), benchmark("scaling")
    path = tmp_path / "rows.npy"
    scaling.make_rows(path, 1000, 16, 0)
    task = {"path": str(path), "n_components": 48, "k": 4, "n_steps": 2, "batch_size": 256}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for what in ("fit", "transform"):
            record = memory.run_task({**task, "what": what, "is_mapped": True})
            assert record["is_within_budget"] is True
            assert record["X_bytes"] == 64_000
            assert record["weights_bytes"] == 4 * (2 * 48 * 16 + 48)
        point = {"n": 1000, "m": 48, "k": 4, "threads": 1}
        record = scaling.run_task({**task, **point})
    assert record["transform"]["output_bytes"] == 1000 * 4 * 8 + 1001 * 4
    rows = [{**point, "axis": axis, **record} for axis in scaling.AXES]
    scaling.plot(rows, {"n_features": 16, "n_steps": 2, "batch_size": 256}, tmp_path / "figures")
    assert len(list((tmp_path / "figures").glob("scaling_*.png"))) == 4


def test_first_calls_are_timed_without_and_with_kept_kernels(benchmark, tmp_path, monkeypatch):
    first_calls, out, folders = benchmark("first_calls"), tmp_path / "calls.json", []

    def run_here(script, task):
        assert script == first_calls.__file__
        folders.append(os.environ["NUMBA_CACHE_DIR"])
        assert Path(folders[-1]).is_dir()
        return first_calls.run_task(task)

    monkeypatch.setattr(first_calls, "run_child", run_here)
    monkeypatch.setattr(first_calls, "N_SAMPLES", 600)
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    first_calls.main(["--n-repeats", "2", "--out", str(out)])
    assert os.environ["NUMBA_CACHE_DIR"] == str(tmp_path)
    assert folders[0] == folders[1] != folders[2] == folders[3]
    result = json.loads(out.read_text(encoding="utf-8"))
    assert [row["call"] for row in result["rows"]] == list(first_calls.CALLS)
    for row in result["rows"]:
        assert len(row["compiled_s"]) == len(row["kept_s"]) == 2
        assert min(row["compiled_s"] + row["kept_s"]) > 0


def test_gpu_suite_runs_its_benchmarks(benchmark, tmp_path, monkeypatch):
    suite = benchmark("gpu_suite")

    def run_here(command, log, limit_s):
        """Run a script in this process, which has imported all it needs."""
        with contextlib.redirect_stdout(log):
            benchmark(Path(command[1]).stem).main(command[2:])
        return 0

    monkeypatch.setattr(suite, "run_part", run_here)
    assert suite.main(["--out", str(tmp_path), "--device", "cpu", "--tiny", "--skip-tests"]) == 0
    names = ("training", "encoding", "search")
    training, encoding, search = (json.loads((tmp_path / f"gpu_{name}.json").read_text()) for name in names)
    assert {row["precision"] for row in training["steps"] if row["who"] == "ours"} == {"float32", "tf32", "bfloat16"}
    assert [fit["n_steps"] for fit in training["fits"] if fit["recipe"] == "paper"] == [3, 3]
    assert [row["precision"] for row in training["recall"]] == ["float32", "tf32", "bfloat16"]
    assert training["speedups"]["bfloat16_over_plain_tf32"] > 0
    assert "select_s" in training["stages"]["bfloat16_plain"]
    assert len(encoding["on_device"]) == 2 + 12
    exact = [row for row in encoding["transform"] if row.get("precision") == "float32" and row["who"] == "ours"]
    assert all(row["equal_supports"] > 0.9 for row in exact)
    assert {row["n_rows"] for row in encoding["small_batches"]} == {1, 16, 256, 1024}
    assert "correlations_and_refit" in encoding["stages_s_per_million_rows"]["plain"]
    assert {row["who"] for row in search["rows"]} == {"dense float32", "dense tf32", "codes cpu"}
    assert [part["settings"]["seed"] for part in (training, encoding, search)] == [0, 0, 0]
    assert json.loads((tmp_path / "suite.json").read_text())["parts"]["gpu_encoding"]["ended"] == 0


def test_gpu_launches_says_that_there_is_no_such_device(benchmark):
    pytest.importorskip("triton")
    with pytest.raises(ValueError, match=r"device='cuda:99' was asked for, but torch sees \d+ CUDA device"):
        benchmark("gpu_launches").main(["--device", "cuda:99"])


def test_gpu_suite_stops_what_runs_too_long(benchmark, tmp_path):
    with (tmp_path / "log.txt").open("w") as log:
        assert benchmark("gpu_suite").run_part([sys.executable, "-c", "print(1)"], log, 60) == 0
        assert benchmark("gpu_suite").run_part(["sleep", "60"], log, 0.1) == "out of time"
    assert (tmp_path / "log.txt").read_text() == "1\n"


def test_onnx_latency_is_measured_for_every_coding_and_batch(benchmark, tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    latency, out = benchmark("onnx_latency"), tmp_path / "latency.json"
    monkeypatch.setattr(latency, "N_TRAINING_ROWS", 600)
    arguments = ["--n-features", "16", "--n-components", "64", "--k", "4", "--n-steps", "3", "--n-repeats", "1"]
    n_threads = torch.get_num_threads()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a fit of three steps leaves latents unused
        latency.main([*arguments, "--batch-sizes", "1", "40", "--threads", "1", "--out", str(out)])
    torch.set_num_threads(n_threads)
    result = json.loads(out.read_text(encoding="utf-8"))
    assert result["environment"]["versions"]["onnxruntime"]
    assert [(row["coding"], row["n_rows"]) for row in result["rows"]] == [
        (coding, n_rows) for coding in ("activations", "least_squares", "pursuit") for n_rows in (1, 40)
    ]
    for row in result["rows"]:
        assert min(row["load_s"], row["onnxruntime_s"], row["transform_s"], row["torch_s"]) > 0
        assert row["equal_supports"] > 0.9
        assert row["largest_difference"] < 1e-4
