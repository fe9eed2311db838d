"""Measure time and peak memory of a task in a process of its own (Linux only).

The baseline is what the process holds once everything is imported, compiled and loaded. "resident" is the kernel's
high-water mark of the task and counts the pages of memory-mapped files that the task has read; "private" leaves those
out: they are the file's, and the kernel takes them back when memory is short. It is sampled every few milliseconds.
"""

from __future__ import annotations

import ctypes
import gc
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

SAMPLE_SECONDS = 0.003


def memory_bytes(field):
    """Return a field of this process's status, such as VmRSS, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith(field + ":")).split()[1]) * 1024


def measure(work):
    """Run the work; return seconds and the growth of peak resident and peak private memory in bytes, and its result."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:  # else what earlier work freed would be handed out again and not count
        trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the high-water mark starts anew
    resident, private = memory_bytes("VmRSS"), memory_bytes("RssAnon")
    peak, is_done = [private], threading.Event()

    def sample():
        while not is_done.wait(SAMPLE_SECONDS):
            peak[0] = max(peak[0], memory_bytes("RssAnon"))

    sampler = threading.Thread(target=sample, daemon=True)
    sampler.start()
    start = time.perf_counter()
    result = work()
    seconds = time.perf_counter() - start
    is_done.set()
    sampler.join()
    return {
        "seconds": seconds,
        "resident_growth_bytes": memory_bytes("VmHWM") - resident,
        "private_growth_bytes": peak[0] - private,
    }, result


def run_child(script, task):
    """Run ``script --task JSON`` in a new process and return the JSON object it prints last."""
    command = [sys.executable, str(script), "--task", json.dumps(task)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode != 0:
        raise RuntimeError(f"the task {task} failed:\n{finished.stderr}")
    return json.loads(finished.stdout.splitlines()[-1])
