"""Does any damaged file crash, hang, exhaust memory or give a wrong answer?

Valid files of every loader are mutated at random: bytes and bits changed, cut, inserted, deleted, repeated, filled or
appended, and header fields edited, with the checksum left wrong or made right again. Each mutated file is read in
a worker process under a limit of CPU time per file (a hang kills the worker) and of address space (runaway allocation
fails), so that crashes are seen. A file must be refused by the documented error, or give

- the content of the valid file, where a checksum vouches for it;
- what an independent reader (NumPy, SciPy, plain Arrow) gives for the same bytes, where the format has no checksum;
- any well-formed content, where the edit made the checksum right again, or checksums were not compared.

    python benchmarks/fuzz_files.py --n-files 100000
"""

from __future__ import annotations

import argparse
import collections
import faulthandler
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from _common import environment, write_json
from _fuzz_mutations import BLIND
from _fuzz_targets import TARGETS, Target, write_valid_files

CPU_SECONDS = 20
SPARE_BYTES = 1 << 30
MUTATIONS = [*BLIND, "edit_header", "edit_header_repaired"]
OUTCOMES = ["refused", "identical", "as_independent_reader", "well_formed"]
FAULTS = ["undocumented_error", "wrong_answer", "runaway_allocation"]
_CODES = [*OUTCOMES, *FAULTS]


def mutate(target: Target, folder: Path, case: int) -> tuple[bytes, Path, int]:
    """Return the mutated file of a case, the valid file and the number of the mutation; the same in every process."""
    random = np.random.default_rng([TARGETS.index(target), case])
    valid = sorted(folder.glob(f"[0-9]{target.suffix}"))
    path = valid[random.integers(len(valid))]
    chosen = int(random.integers(len(MUTATIONS) if target.edit is not None else len(BLIND)))
    if chosen < len(BLIND):
        return BLIND[MUTATIONS[chosen]](path.read_bytes(), random), path, chosen
    return target.edit(path.read_bytes(), random, MUTATIONS[chosen] == "edit_header_repaired"), path, chosen


def judge(target: Target, mutated: Path, expected: bytes, mutation: int) -> tuple[str, str]:
    """Read a mutated file; return the outcome and what there is to say about a fault."""
    # an edited header may lead to settings that only the use of what was loaded refuses
    is_repaired = MUTATIONS[mutation] == "edit_header_repaired"
    refusals = (
        (*target.refusals, ValueError, TypeError) if is_repaired and ".index" in target.suffix else target.refusals
    )
    try:
        found = target.read(mutated)
    except refusals:
        return "refused", ""
    except MemoryError as error:
        return "runaway_allocation", repr(error)
    except Exception as error:
        return "undocumented_error", repr(error)
    if found == expected:
        return "identical", ""
    if target.truth is not None:
        try:
            is_same = target.truth(mutated) == found
        except Exception as error:
            return "wrong_answer", f"accepted what the independent reader refuses: {error!r}"
        return ("as_independent_reader", "") if is_same else ("wrong_answer", "another content than the bytes say")
    if is_repaired or not target.is_verified:
        return "well_formed", ""
    return "wrong_answer", "another content"


def work(folder: Path, number: int, start: int, stop: int, record: Path) -> None:
    """Judge cases [start, stop) of a target; one byte of `record` for each."""
    faulthandler.enable()
    warnings.simplefilter("ignore")
    target = TARGETS[number]
    truth = {path: target.read(path) for path in sorted(folder.glob(f"[0-9]{target.suffix}"))}
    if target.truth is not None and any(target.truth(path) != content for path, content in truth.items()):
        raise RuntimeError(f"{target.name}: the independent reader does not agree on a valid file")
    with open("/proc/self/statm") as stream:
        used = int(stream.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + SPARE_BYTES, used + SPARE_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    mutated = folder / f"mutated-{number}-{start}{target.suffix}"
    descriptor = os.open(record, os.O_WRONLY)
    for case in range(start, stop):
        data, path, mutation = mutate(target, folder, case)
        mutated.write_bytes(data)
        # SIGXCPU ends a worker that computes for too long, inside a library too
        resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time()) + CPU_SECONDS, hard))
        os.pwrite(descriptor, bytes([0xFF]), case)
        outcome, note = judge(target, mutated, truth[path], mutation)
        if outcome in FAULTS:
            print(
                json.dumps(
                    {
                        "target": target.name,
                        "case": case,
                        "mutation": MUTATIONS[mutation],
                        "fault": outcome,
                        "note": note[:500],
                    }
                ),
                flush=True,
            )
        os.pwrite(descriptor, bytes([1 + _CODES.index(outcome) + 16 * mutation]), case)


def run_target(folder: Path, number: int, n_cases: int) -> list[dict[str, Any]]:
    """Judge all cases of a target in worker processes; return the faults, crashes and hangs among them."""
    record = folder / f"record-{number}"
    record.write_bytes(bytes(n_cases))
    faults: list[dict[str, Any]] = []
    start = 0
    while start < n_cases:
        command = [
            sys.executable,
            __file__,
            "--worker",
            str(folder),
            str(number),
            str(start),
            str(n_cases),
            str(record),
        ]
        worker = subprocess.run(command, capture_output=True, text=True, check=False)
        faults += [json.loads(line) for line in worker.stdout.splitlines()]
        if worker.returncode == 0:
            break
        case = record.read_bytes().find(0xFF)
        if case < 0:
            raise RuntimeError(f"the worker of {TARGETS[number].name} failed: {worker.stderr[-2000:]}")
        mutation = MUTATIONS[mutate(TARGETS[number], folder, case)[2]]
        fault = "hang" if worker.returncode == -signal.SIGXCPU else "crash"
        faults.append(
            {
                "target": TARGETS[number].name,
                "case": case,
                "mutation": mutation,
                "fault": fault,
                "note": f"exit code {worker.returncode}: {worker.stderr[-800:]}",
            }
        )
        with record.open("r+b") as stream:
            stream.seek(case)
            stream.write(bytes([1 + len(_CODES) + 16 * MUTATIONS.index(mutation)]))
        start = case + 1
    return faults


def tally(folder: Path, number: int) -> dict[str, Any]:
    """Return the outcomes of a target, in all and for each mutation."""
    codes = np.frombuffer((folder / f"record-{number}").read_bytes(), dtype=np.uint8).astype(int)
    names = [*_CODES, "crash_or_hang"]
    outcomes = collections.Counter(names[code % 16 - 1] for code in codes)
    per_mutation = {
        mutation: dict(collections.Counter(names[code % 16 - 1] for code in codes if code // 16 == i))
        for i, mutation in enumerate(MUTATIONS)
        if (codes // 16 == i).any()
    }
    return {
        "target": TARGETS[number].name,
        "n_files": len(codes),
        "outcomes": dict(outcomes),
        "mutations": per_mutation,
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n-files", type=int, default=100_000, help="mutated files, shared evenly by the loaders")
    parser.add_argument("--targets", type=int, nargs="+", default=list(range(len(TARGETS))), help="numbers of loaders")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="worker processes at a time")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "fuzz_files.json")
    parser.add_argument("--worker", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.worker is not None:
        folder, number, start, stop, record = options.worker
        work(Path(folder), int(number), int(start), int(stop), Path(record))
        return
    n_cases = -(-options.n_files // len(options.targets))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_valid_files(folder)

        def run(number: int) -> list[dict[str, Any]]:
            found = run_target(folder, number, n_cases)
            print(f"{TARGETS[number].name}: {tally(folder, number)['outcomes']}", flush=True)
            return found

        with ThreadPoolExecutor(options.jobs) as pool:
            faults = [fault for found in pool.map(run, options.targets) for fault in found]
        results = [tally(folder, number) for number in options.targets]
    if options.out.exists() and len(options.targets) < len(TARGETS):
        # some loaders were run anew: the others keep what was found
        kept, names = json.loads(options.out.read_text()), {result["target"] for result in results}
        results += [result for result in kept["results"] if result["target"] not in names]
        faults += [fault for fault in kept["faults"] if fault["target"] not in names]
    write_json(
        options.out,
        {
            "environment": environment(),
            "options": {
                "cpu_seconds_per_file": CPU_SECONDS,
                "address_space_beyond_start_bytes": SPARE_BYTES,
                "seed": "the number of the loader and of the file",
            },
            "n_files": sum(result["n_files"] for result in results),
            "n_faults": len(faults),
            "results": results,
            "faults": faults,
        },
    )
    for fault in faults[:50]:
        print(fault)
    print(f"{sum(result['n_files'] for result in results)} files, {len(faults)} faults")


if __name__ == "__main__":
    main()
