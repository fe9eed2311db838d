"""What the GPU benchmarks share: timing of queued work, the ceilings of the device, switching the kernels off."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from skcompressae._torch import _devices
from skcompressae._torch._device_choice import resolve_device
from skcompressae._torch._products import Products


def device_of(name: str) -> torch.device:
    """Return the device of a name, as the estimator takes it, if it exists."""
    return _devices.torch_device(resolve_device(name))


def wait(device: torch.device) -> None:
    """Wait until the device has done all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def queued_seconds(work: Callable[[], Any], device: torch.device, n_repeats: int, n_calls: int = 5) -> float:
    """Return the time of one call: the median over repetitions of the mean over calls queued one after the other.

    Two calls before warm compilers and caches up.
    """
    for _ in range(2):
        work()
    times = []
    for _ in range(n_repeats):
        wait(device)
        start = time.perf_counter()
        for _ in range(n_calls):
            work()
        wait(device)
        times.append((time.perf_counter() - start) / n_calls)
    return float(np.median(times))


def ceilings(device: torch.device, n_rows: int, n_features: int, n_components: int, n_repeats: int) -> dict[str, Any]:
    """Measure what bounds the rest in this run: products of the shape, copies on the device and to it."""
    x, matrix = (torch.randn(n, n_features, device=device) for n in (n_rows, n_components))
    record: dict[str, Any] = {}
    n_operations = 2 * n_rows * n_features * n_components
    for precision in ("float32", "tf32", "bfloat16"):
        products = Products(precision, device)
        a, b = x.to(products.dtype), matrix.to(products.dtype)
        seconds = queued_seconds(lambda p=products, a=a, b=b: p.multiply(a, b.T), device, n_repeats)
        record[f"product_{precision}_s"] = seconds
        record[f"product_{precision}_tflops"] = n_operations / seconds / 1e12
    target = torch.empty_like(x)
    seconds = queued_seconds(lambda: target.copy_(x), device, n_repeats)
    record["copy_bytes_per_s"] = 2 * x.numel() * 4 / seconds
    if device.type == "cuda":
        pinned = torch.empty(x.shape, pin_memory=True)
        seconds = queued_seconds(lambda: target.copy_(pinned, non_blocking=True), device, n_repeats)
        record["upload_bytes_per_s"] = x.numel() * 4 / seconds
    return record


def kernel_choices(device: torch.device) -> tuple[bool, ...]:
    """Return whether the Triton kernels can be on and off here, or off only."""
    has_kernels = device.type == "cuda" and importlib.util.find_spec("triton") is not None
    return (True, False) if has_kernels else (False,)


@contextmanager
def kernels(is_on: bool) -> Iterator[None]:
    """Work with the Triton kernels, as the library would, or without them."""
    if is_on:
        yield
        return
    with patch.object(_devices, "uses_triton", lambda tensor: False):
        yield


def peak_bytes(device: torch.device, work: Callable[[], Any]) -> int | None:
    """Return the most device memory in use during a call."""
    if device.type != "cuda":
        work()
        return None
    torch.cuda.reset_peak_memory_stats(device)
    work()
    wait(device)
    return torch.cuda.max_memory_allocated(device)


def describe(device: torch.device) -> dict[str, Any]:
    """Return what the device is."""
    record: dict[str, Any] = {"type": device.type, "kernels": kernel_choices(device)[0]}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        record |= {
            "name": properties.name,
            "memory_bytes": properties.total_memory,
            "n_multiprocessors": properties.multi_processor_count,
            "cuda": torch.version.cuda,
        }
        if importlib.util.find_spec("triton") is not None:
            import triton

            record["triton"] = triton.__version__
    return record
