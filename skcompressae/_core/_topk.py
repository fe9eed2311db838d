"""Select the k entries of largest magnitude of each row of a block of pre-activations.

Invariant: the selection is exactly that of a stable sort by descending magnitude, so ties go to the lowest
index (as in ONNX TopK), and the selected indices come out in ascending order, ready for canonical CSR.

A row is read twice by vectorised passes: one that adds the bias and counts entries above a guessed magnitude, until
between k and a small multiple of k pass, one that collects those. The k-th largest is searched among these few hundred.
The guess starts from the row before; it changes the time only, never the result.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from skcompressae._core._arrays import FloatArray, IndexArray
from skcompressae._core._compiling import njit
from skcompressae._core._lanes import (
    N_LANES,
    add_max_and_count_lanes,
    count_lanes,
    lanes_at_least,
    lowest_lane,
    max_and_count_lanes,
    midway,
)
from skcompressae._core._threads import run_blocks

__all__ = [
    "GUESS",
    "SLACK",
    "add_max_and_count",
    "candidate_threshold",
    "collect_at_least",
    "kth_largest",
    "leading",
    "max_and_count",
    "n_at_least",
    "partition_largest",
    "top_k",
    "top_k_rows",
    "write_largest",
]

# Survivors allowed per selected entry before the threshold is refined again: quickselect on 3k entries costs
# less than one more pass over the row for every (k, m) timed by benchmarks/training_speed.py.
SLACK = 3
_MAX_REFINEMENTS = 24
# Times a threshold is doubled or halved, as most of what is selected from is of like size, before it is bisected.
_MAX_GUESSES = 4
# The threshold tried first for a row, as a share of the k-th magnitude of the row before: some 2k entries of a normal
# row pass. And the factors by which it moves once where too few or too many do, before it is bisected.
GUESS = 0.9
_LOWERED = 0.85
_RAISED = 1.1


@njit(nogil=True)
def partition_largest(values: Any, n: int, k: int) -> Any:
    """Reorder ``values[:n]`` and return its k-th largest entry (k counts from 1)."""
    left, right = 0, n - 1
    target = k - 1
    while left < right:
        mid = (left + right) >> 1
        if values[mid] > values[left]:
            values[mid], values[left] = values[left], values[mid]
        if values[right] > values[left]:
            values[right], values[left] = values[left], values[right]
        if values[right] > values[mid]:
            values[right], values[mid] = values[mid], values[right]
        pivot = values[mid]
        i, j = left, right
        while i <= j:
            while values[i] > pivot:
                i += 1
            while values[j] < pivot:
                j -= 1
            if i <= j:
                values[i], values[j] = values[j], values[i]
                i += 1
                j -= 1
        if target <= j:
            right = j
        elif target >= i:
            left = i
        else:
            break
    return values[target]


@njit(nogil=True)
def n_at_least(values: Any, n: int, threshold: Any) -> int:
    """Count the magnitudes among ``values[:n]`` of at least `threshold`."""
    n_grouped = n - n % N_LANES
    count = 0
    for group in range(0, n_grouped, N_LANES):
        count += count_lanes(lanes_at_least(values, group, threshold))
    for j in range(n_grouped, n):
        count += int(abs(values[j]) >= threshold)
    return count


@njit(nogil=True)
def kth_largest(values: Any, n: int, k: int) -> Any:
    """Return the k-th largest of ``values[:n]``, none of them negative (k counts from 1); 0 where fewer are numbers.

    A threshold that k of them reach is bracketed by counting, sixteen values at a time. :func:`partition_largest`
    branches on every comparison, and takes several times as long.
    """
    kind = values.dtype.type
    low, high = kind(0), kind(np.inf)  # more than k reach the one (or are NaN), fewer the other (or are infinite)
    probe = values[0]
    n_guesses = 0
    while True:
        if not low < probe < high:
            probe = midway(low, high)
            if probe == low:
                return high if n_at_least(values, n, high) >= k else low
        reached = n_at_least(values, n, probe)
        if reached == k:
            break
        if reached > k:
            low = probe
        else:
            high = probe
        n_guesses += 1
        if n_guesses > _MAX_GUESSES or (low > 0 and high < np.inf):
            probe = midway(low, high)
        else:
            probe = kind(2) * low if low > 0 else kind(0.5) * high
    least = kind(np.inf)
    for j in range(n):
        if probe <= values[j] < least:
            least = values[j]
    return least


@njit(nogil=True)
def max_and_count(row: Any, threshold: Any) -> Any:
    """Return the largest magnitude and the number of magnitudes of at least `threshold`."""
    n_groups = row.shape[0] // N_LANES
    largest, count = row.dtype.type(0), 0
    if n_groups > 0:
        largest, count = max_and_count_lanes(row, n_groups, threshold)
    for j in range(n_groups * N_LANES, row.shape[0]):
        value = abs(row[j])
        largest = value if value > largest else largest
        count += int(value >= threshold)
    return largest, count


@njit(nogil=True)
def add_max_and_count(row: Any, bias: Any, threshold: Any) -> Any:
    """Add the bias to the row, then as :func:`max_and_count`."""
    n_groups = row.shape[0] // N_LANES
    largest, count = row.dtype.type(0), 0
    if n_groups > 0:
        largest, count = add_max_and_count_lanes(row, bias, n_groups, threshold)
    for j in range(n_groups * N_LANES, row.shape[0]):
        row[j] += bias[j]
        value = abs(row[j])
        largest = value if value > largest else largest
        count += int(value >= threshold)
    return largest, count


@njit(nogil=True)
def candidate_threshold(row: Any, k: int, threshold: Any, count: int, largest: Any, largest_count: int) -> Any:
    """Return a magnitude that at least k and, where ties allow, at most `largest_count` entries reach.

    `count` entries reach the first `threshold` that is tried, and the largest magnitude is `largest`.
    """
    kind = row.dtype.type
    low, high = kind(0), largest  # count(low) >= k always; count(high) < k or unknown
    best = low
    if not (low < threshold < high):
        threshold = kind(0.5) * high
        count = n_at_least(row, row.shape[0], threshold)
    for _ in range(_MAX_REFINEMENTS):
        if count >= k:
            best = threshold
            if count <= largest_count:
                break
            threshold = kind(_RAISED) * threshold if low == 0 else kind(0.5) * (threshold + high)
            low = best
        else:
            high = threshold
            threshold = kind(_LOWERED) * high if low == 0 and high != largest else kind(0.5) * (low + high)
        if not (low < threshold < high):
            threshold = kind(0.5) * (low + high)
            if not (low < threshold < high):
                break
        count = n_at_least(row, row.shape[0], threshold)
    return best


@njit(nogil=True)
def collect_at_least(row: Any, threshold: Any, indices: Any) -> int:
    """Write the indices, ascending, of the magnitudes of at least `threshold`, and return how many there are."""
    n_components = row.shape[0]
    n_grouped = n_components - n_components % (4 * N_LANES)
    n_found = 0
    for group in range(0, n_grouped, 4 * N_LANES):
        # as one word, since where a loop over bits ends is not foreseen
        lanes = np.uint64(0)
        for part in range(4):
            found = np.uint64(lanes_at_least(row, group + part * N_LANES, threshold))
            lanes |= found << np.uint64(part * N_LANES)
        while lanes:
            indices[n_found] = group + lowest_lane(lanes)
            lanes &= lanes - np.uint64(1)
            n_found += 1
    for j in range(n_grouped, n_components):
        if abs(row[j]) >= threshold:
            indices[n_found] = j
            n_found += 1
    return n_found


@njit(nogil=True)
def leading(picks: Any, magnitudes: Any, n_picks: int, kth: Any, k: int) -> int:
    """Move the picks of the k largest magnitudes to the front, in their order, of equals the first; return how many.

    `kth` is the k-th largest. Without a branch, as which of them lead is not foreseen.
    """
    n_ties = k
    for c in range(n_picks):
        n_ties -= int(magnitudes[c] > kth)
    n_found = 0
    for c in range(n_picks):
        is_tie = int(magnitudes[c] == kth) & int(n_ties > 0)
        n_ties -= is_tie
        picks[n_found] = picks[c]
        n_found += int(magnitudes[c] > kth) | is_tie
    return n_found


@njit(nogil=True)
def write_largest(
    picks: Any, activations: Any, magnitudes: Any, n_picks: int, n: int, scratch: Any, indices: Any, values: Any
) -> None:
    """Write the n picks of largest magnitude, in their order, and their activations; of equals the first."""
    for c in range(n_picks):
        scratch[c] = magnitudes[c]
    kth = kth_largest(scratch, n_picks, n)
    n_ties = n
    for c in range(n_picks):
        n_ties -= magnitudes[c] > kth
    written = 0
    for c in range(n_picks):
        if magnitudes[c] > kth or (magnitudes[c] == kth and n_ties > 0):
            n_ties -= magnitudes[c] == kth
            indices[written], values[written] = picks[c], activations[c]
            written += 1
    if written < n:  # too few are numbers
        for c in range(n):
            indices[c], values[c] = picks[c], activations[c]


@njit(nogil=True)
def top_k_rows(
    pre_activations: Any, bias: Any, has_bias: bool, k: int, start: int, stop: int, indices: Any, values: Any
) -> None:
    n_components = pre_activations.shape[1]
    kind = pre_activations.dtype.type
    candidates = np.empty(n_components, dtype=np.int32)
    magnitudes = np.empty(n_components, dtype=pre_activations.dtype)
    guess = kind(0)
    largest_count = min(n_components, SLACK * k)
    for i in range(start, stop):
        row = pre_activations[i]
        largest, count = add_max_and_count(row, bias, guess) if has_bias else max_and_count(row, guess)
        threshold = candidate_threshold(row, k, guess, count, largest, largest_count)
        n_candidates = collect_at_least(row, threshold, candidates)
        for c in range(n_candidates):
            magnitudes[c] = abs(row[candidates[c]])
        kth = kth_largest(magnitudes, n_candidates, k)
        n_found = leading(candidates, magnitudes, n_candidates, kth, k)
        for c in range(k):
            j = candidates[c] if n_found == k else c  # too few are numbers
            indices[i, c], values[i, c] = j, row[j]
        guess = kind(GUESS) * kth


def top_k(
    pre_activations: FloatArray, k: int, *, n_threads: int, bias: FloatArray | None = None, block_size: int = 64
) -> tuple[IndexArray, FloatArray]:
    """Select the k entries of largest magnitude in each row, with their signs.

    Parameters
    ----------
    pre_activations : C-contiguous array of shape (n_rows, n_components), float32 or float64, finite
    k : int in [1, n_components]
    bias : array of shape (n_components,), optional
        Added to every row of `pre_activations`, in place, before the selection.
    n_threads : int
        Threads to spread blocks of rows over.
    block_size : int
        Rows per block.

    Returns
    -------
    indices : array of shape (n_rows, k), int32, ascending in each row
    values : array of shape (n_rows, k), of the input's dtype
    """
    n_rows = pre_activations.shape[0]
    indices = np.empty((n_rows, k), dtype=np.int32)
    values = np.empty((n_rows, k), dtype=pre_activations.dtype)
    added = np.ascontiguousarray(() if bias is None else bias, dtype=pre_activations.dtype)  # as vectors are read
    run_blocks(
        lambda start, stop: top_k_rows(pre_activations, added, bias is not None, k, start, stop, indices, values),
        n_rows,
        block_size,
        n_threads,
    )
    return indices, values
