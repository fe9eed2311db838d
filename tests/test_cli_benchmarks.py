"""The fuzzer and the measurement of memory, in small; the fuzzer sees the faults that it looks for."""

import dataclasses
import json
import sys
import warnings

import numpy as np
import pytest


@pytest.fixture(scope="module")
def valid(benchmark, tmp_path_factory):
    folder = tmp_path_factory.mktemp("valid")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        benchmark("_fuzz_targets").write_valid_files(folder)
    return folder


@pytest.mark.parametrize("number", range(14))
def test_damaged_files_are_refused_or_read_right(benchmark, valid, number):
    fuzz = benchmark("fuzz_files")
    target = fuzz.TARGETS[number]
    truth = {path: target.read(path) for path in sorted(valid.glob(f"[0-9]{target.suffix}"))}
    assert len(truth) >= 1
    assert target.truth is None or all(target.truth(path) == content for path, content in truth.items())
    mutated = valid / f"mutated-{number}{target.suffix}"
    seen = set()
    # cases that the long run does not have, so that every commit looks at new ones too
    for case in range(10**6, 10**6 + 60):
        data, path, mutation = fuzz.mutate(target, valid, case)
        mutated.write_bytes(data)
        outcome, note = fuzz.judge(target, mutated, truth[path], mutation)
        assert outcome in fuzz.OUTCOMES, (target.name, case, fuzz.MUTATIONS[mutation], note)
        seen.add(outcome)
    assert "refused" in seen
    assert len(fuzz.TARGETS) == 14


def test_the_fuzzer_sees_faults(benchmark, valid):
    fuzz = benchmark("fuzz_files")
    target = fuzz.TARGETS[1]
    path = valid / f"0{target.suffix}"

    def raises(error):
        def read(_):
            raise error

        return read

    for read, expected in (
        (raises(MemoryError()), "runaway_allocation"),
        (raises(IndexError()), "undocumented_error"),
        (lambda _: b"other content", "wrong_answer"),
        (lambda _: b"content", "identical"),
        (raises(target.refusals[0]()), "refused"),
    ):
        assert fuzz.judge(dataclasses.replace(target, read=read), path, b"content", 0)[0] == expected


def test_crashes_and_hangs_of_workers_are_counted(benchmark, valid, monkeypatch, tmp_path):
    fuzz = benchmark("fuzz_files")
    script = tmp_path / "worker.py"
    script.write_text(
        "import os, signal, sys\n"
        "_, folder, number, start, stop, record = sys.argv[1:]\n"
        "descriptor = os.open(record, os.O_WRONLY)\n"
        "for case in range(int(start), int(stop)):\n"
        "    os.pwrite(descriptor, b'\\xff', case)\n"
        "    if case in (2, 5):\n"
        "        os.kill(os.getpid(), signal.SIGSEGV if case == 2 else signal.SIGXCPU)\n"
        "    os.pwrite(descriptor, bytes([1]), case)\n"
    )
    monkeypatch.setattr(fuzz, "__file__", str(script))
    faults = fuzz.run_target(valid, 1, 8)
    assert [(fault["case"], fault["fault"]) for fault in faults] == [(2, "crash"), (5, "hang")]
    assert fuzz.tally(valid, 1)["outcomes"] == {"refused": 6, "crash_or_hang": 2}


@pytest.mark.skipif(sys.platform != "linux", reason="limits of address space are Linux's")
def test_memory_is_measured_under_a_limit(benchmark, tmp_path):
    out = tmp_path / "memory.json"
    arguments = ["--gigabytes", "0.006", "--limit-gib", "4", "--n-components", "64", "--k", "4", "--outputs", "skc"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        benchmark("cli_memory").main([*arguments, "--folder", str(tmp_path), "--out", str(out)])
    small, large = json.loads(out.read_text())["results"]
    assert (small["n_rows"], large["n_rows"]) == (1000, 1465)
    assert small["is_right"]
    assert large["is_right"]
    assert np.isfinite(large["peak_resident_bytes"])
