"""How codebooks of ranks are learned: windows of a grid."""

import numpy as np
import pytest

from skcompressae._core import _packing_levels as levels_module
from skcompressae._core._packing_levels import learn_ranked_levels


def windows_by_trying(samples, grid, n_levels):
    """The windows that lose least, each start tried on every magnitude; the lowest start of equals."""
    starts, loss, ceiling = [], 0.0, len(grid) - n_levels
    for sample in samples:
        errors = []
        for start in range(ceiling + 1):
            window = grid[start : start + n_levels]
            errors.append(np.mean(np.min((sample[:, None] - window) ** 2, axis=1)))
        ceiling = int(np.argmin(np.round(errors, 12)))
        starts.append(ceiling)
        loss += errors[ceiling]
    return starts, loss


@pytest.mark.parametrize("n_levels", [1, 2, 8])
@pytest.mark.parametrize("n", [1, 9, 400])
def test_windows_lose_least(n_levels, n):
    random_state = np.random.RandomState(n_levels + n)
    # a rank on its own after a gap, and levels that no magnitude needs
    samples = [centre * np.exp(0.1 * random_state.standard_normal(n)) for centre in (9.0, 1.5, 1.2, 0.9)]
    grid = np.sort(np.concatenate([random_state.uniform(0.5, 2, 12), random_state.uniform(7, 12, 10)]))
    fit = levels_module._fit_windows([levels_module._sample(sample) for sample in samples], grid, n_levels)
    starts, loss = windows_by_trying(samples, grid, n_levels)
    assert fit.loss == pytest.approx(loss, rel=1e-9, abs=1e-12)
    if n > n_levels:  # else several windows lose nothing
        np.testing.assert_array_equal(fit.starts, starts)
    nearest = [
        np.abs(s[:, None] - grid[a : a + n_levels]).argmin(axis=1) + a for s, a in zip(samples, fit.starts, strict=True)
    ]
    sums, weights = np.zeros(len(grid)), np.zeros(len(grid))
    for sample, chosen in zip(samples, nearest, strict=True):
        np.add.at(sums, chosen, sample / n)
        np.add.at(weights, chosen, 1 / n)
    np.testing.assert_allclose(fit.sums, sums, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(fit.weights, weights, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("by_row", [True, False])
def test_levels_do_not_follow_the_unit(by_row):
    """Magnitudes times a power of two give the same levels, or those times that power."""
    magnitudes = -np.sort(-np.random.RandomState(0).exponential(size=(300, 5)), axis=1)
    factor = 2.0**20
    levels = learn_ranked_levels(magnitudes, 5, 4, by_row=by_row)
    np.testing.assert_array_equal(
        learn_ranked_levels(factor * magnitudes, 5, 4, by_row=by_row), levels * (1 if by_row else factor)
    )
