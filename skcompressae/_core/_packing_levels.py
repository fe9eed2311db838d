"""Learn the magnitudes that packed values may take: one Lloyd-Max codebook for every rank of a row.

Invariants of a ranked codebook `levels` of shape (k, n_levels): positive; increasing along a row by at
least 0.1 % a step; never increasing down a column, so a code that fits the monotone
order of magnitudes exists for every rank. Magnitudes are relative to the root mean square of the row.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["learn_ranked_levels", "lloyd_max", "signed_levels", "thresholds_of", "uniform_levels"]

_MIN_LEVEL = 2.0**-20
_MIN_RATIO = 1.0 + 2.0**-10
# Fewer samples than this per level and the prior shape is mixed in, so a tiny sample gives a usable codebook.
_SAMPLES_PER_LEVEL = 8
_MIN_RATIO_STEP = 2.0**-8
_MAX_GRID = 4096
# Steps of the first grid, relative to the codebooks' own; the best of them is kept.
_STRETCHES = (0.8, 1.0, 1.25)
_GRID_ITERATIONS = 6
# Of Lloyd's steps, which end before where no level moves by more than this share of the largest.
_LLOYD_ITERATIONS, _LLOYD_TOLERANCE = 100, 1e-5
# How far sums of squared errors may be off, as a share of the sum of squares that they are taken from.
_ROUNDING = 1e-13


def lloyd_max(sample: NDArray[np.float64], n_levels: int) -> NDArray[np.float64]:
    """Return the n_levels magnitudes of least squared error over a sorted one-dimensional sample.

    References
    ----------
    S. Lloyd, "Least squares quantization in PCM", IEEE Transactions on Information Theory 28, 1982.
    """
    levels = np.quantile(sample, (np.arange(n_levels) + 0.5) / n_levels)
    sums = np.concatenate([[0.0], np.cumsum(sample)])
    for _ in range(_LLOYD_ITERATIONS):
        edges = np.searchsorted(sample, (levels[1:] + levels[:-1]) / 2)
        edges = np.concatenate([[0], edges, [sample.size]])
        counts = np.diff(edges)
        moved = np.where(counts > 0, np.diff(sums[edges]) / np.maximum(counts, 1), levels)
        done = np.max(np.abs(moved - levels)) <= _LLOYD_TOLERANCE * np.max(moved)
        levels = moved
        if done:
            break
    return levels


def _prior(k: int, n_levels: int) -> NDArray[np.float64]:
    """Return the shape assumed without data: exponential order statistics, 1.5 octaves wide."""
    centre = np.log((k + 1.0) / (np.arange(k) + 0.5))
    centre /= np.sqrt(np.mean(centre**2))
    return centre[:, None] * 2.0 ** np.linspace(-0.75, 0.75, n_levels)


class _Sample(NamedTuple):
    """Sorted magnitudes of one rank, and the sums of the first n of them and of their squares, n = 0, 1, ..."""

    magnitudes: NDArray[np.float64]
    sums: NDArray[np.float64]
    squares: NDArray[np.float64]

    def error(self, begin: Any, end: Any, level: Any) -> Any:
        """Return the summed squared error of the magnitudes ``begin:end`` where they are rounded to a level."""
        sums = self.sums[end] - self.sums[begin]
        return self.squares[end] - self.squares[begin] - 2 * level * sums + level**2 * (end - begin)


def _sample(magnitudes: NDArray[np.float64]) -> _Sample:
    ascending = np.sort(magnitudes)
    sums, squares = (np.concatenate([[0.0], np.cumsum(terms)]) for terms in (ascending, ascending**2))
    return _Sample(ascending, sums, squares)


def _first_grid(ladders: NDArray[np.float64], stretch: float, least: float) -> NDArray[np.float64]:
    """Return a grid whose local step is that of the Lloyd-Max codebooks, `ladders`, of the ranks that live there."""
    n_levels = ladders.shape[1]
    centres = ladders.mean(axis=1)
    spans = ladders[:, -1] - ladders[:, 0]
    steps = np.maximum(stretch * spans / max(n_levels - 1, 1), _MIN_RATIO_STEP * centres)
    order = np.argsort(centres)
    bottom = max(float(ladders.min()), least)
    grid = [bottom]
    while (grid[-1] < ladders.max() or len(grid) < n_levels) and len(grid) < _MAX_GRID:
        step = np.interp(grid[-1], centres[order], steps[order])
        grid.append(grid[-1] + max(float(step), grid[-1] * _MIN_RATIO_STEP))
    return np.array(grid)


class _Fit(NamedTuple):
    """How a grid fits the samples.

    Attributes
    ----------
    starts : int64 array of shape (n_ranks,)
        The start of the window of each rank that loses least, nonincreasing.
    loss : float
        Squared error, summed over the ranks' means.
    sums, weights : float64 arrays of shape (n_grid,)
        Of the magnitudes that are rounded to each point, every rank counting as one.
    """

    starts: NDArray[np.int64]
    loss: float
    sums: NDArray[np.float64]
    weights: NDArray[np.float64]


def _fit_windows(samples: list[_Sample], grid: NDArray[np.float64], n_levels: int) -> _Fit:
    """Find the window of each rank, and what is rounded to each point of the grid then."""
    middles = (grid[1:] + grid[:-1]) / 2
    starts = np.empty(len(samples), dtype=np.int64)
    sums, weights = np.zeros(len(grid)), np.zeros(len(grid))
    loss = 0.0
    ceiling = len(grid) - n_levels
    for j, sample in enumerate(samples):
        n = sample.magnitudes.size
        # the magnitudes edges[g]:edges[g + 1] are nearest to point g
        edges = np.concatenate([[0], np.searchsorted(sample.magnitudes, middles, side="right"), [n]])
        inside = np.concatenate([[0.0], np.cumsum(sample.error(edges[:-1], edges[1:], grid))])
        median = np.searchsorted(middles, sample.magnitudes[[(n - 1) // 2, n // 2]]).mean()
        guess = int(median) - n_levels // 2
        tried = np.arange(min(max(guess - n_levels, 0), ceiling), min(max(guess + n_levels, 0), ceiling) + 1)
        last = tried + n_levels - 1
        below, above = sample.error(0, edges[tried], grid[tried]), sample.error(edges[last + 1], n, grid[last])
        errors = below + (inside[last + 1] - inside[tried]) + above
        # of those that are equal but for rounding, as where no magnitude is beyond either end, the lowest
        best = int(np.argmax(errors <= errors.min() + _ROUNDING * sample.squares[-1]))
        start = starts[j] = ceiling = int(tried[best])
        loss += max(float(errors[best]), 0.0) / n
        bounds = np.concatenate([[0], edges[start + 1 : start + n_levels], [n]])
        window = slice(start, start + n_levels)
        sums[window] += np.diff(sample.sums[bounds]) / n
        weights[window] += np.diff(bounds) / n
    return _Fit(starts, loss, sums, weights)


def learn_ranked_levels(
    magnitudes: NDArray[Any], k: int, value_bits: int, *, by_row: bool = True
) -> NDArray[np.float32]:
    """Learn a codebook per rank: windows into one grid.

    With codebooks independent of each other the nearest levels of neighbouring ranks often stand in the wrong order,
    and correcting that costs more than the codebooks gain (1 - cosine 0.0032 at 4 bits against 0.0006). Rounding to one
    grid is monotone, and so is clipping to windows that move downwards.

    Parameters
    ----------
    magnitudes : array of shape (n_sample, k)
        Absolute values of sample rows, descending, zero after the last entry of a short row.
    k : int
    value_bits : int
        Bits of a value with its sign.
    by_row : bool, default=True
        Whether levels are relative to the root mean square of each row, or they are the magnitudes themselves.

    Returns
    -------
    levels : float32 array of shape (k, 2 ** (value_bits - 1))
    """
    n_levels = 2 ** (value_bits - 1)
    rows = np.asarray(magnitudes, dtype=np.float64)
    rows = rows[rows[:, 0] > 0]
    counts = np.count_nonzero(rows, axis=1)
    root = np.sqrt(np.sum(rows**2, axis=1) / np.maximum(counts, 1))
    unit, least = 1.0, _MIN_LEVEL
    if not by_row and root.size:
        unit = float(np.sqrt(np.mean(root**2)))
        root = np.full_like(root, unit)
        least = 1.001 * _MIN_LEVEL / unit  # also when it is rounded to float32
    relative = rows / root[:, None]
    prior = _prior(k, n_levels)
    samples = []
    for j in range(k):
        sample = relative[counts > j, j]
        if sample.size < _SAMPLES_PER_LEVEL * n_levels:
            sample = np.concatenate([sample, prior[j]])
        samples.append(_sample(sample))
    ladders = np.array([lloyd_max(sample.magnitudes, n_levels) for sample in samples])
    fits = []
    for stretch in _STRETCHES:
        grid = _first_grid(ladders, stretch, least)
        for _ in range(_GRID_ITERATIONS):
            fit = _fit_windows(samples, grid, n_levels)
            fits.append((grid, fit))
            grid = np.maximum(np.where(fit.weights > 0, fit.sums / np.maximum(fit.weights, 1e-300), grid), least)
            for c in range(1, len(grid)):
                grid[c] = max(grid[c], grid[c - 1] * _MIN_RATIO)
    best, best_fit = min(fits, key=lambda tried: tried[1].loss)
    return np.stack([unit * best[start : start + n_levels] for start in best_fit.starts]).astype(np.float32)


def uniform_levels(value_bits: int) -> NDArray[np.float32]:
    """Return equal steps of the row's largest magnitude, shape (1, 2 ** (value_bits - 1))."""
    n_levels = 2 ** (value_bits - 1)
    return (np.arange(1, n_levels + 1) / n_levels).astype(np.float32)[None, :]


def thresholds_of(levels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the midpoints between neighbouring levels, shape (n_ranks, n_levels - 1)."""
    return np.ascontiguousarray((levels[:, :-1] + levels[:, 1:]) / np.float32(2), dtype=np.float32)


def signed_levels(levels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the table that scoring indexes with sign and code, shape (n_ranks, 2 ** value_bits)."""
    return np.ascontiguousarray(np.concatenate([levels, -levels], axis=1))
