"""How the principal axes of residuals are dealt out to the bytes of their codes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skcompressae._core._residual import _balanced_parts, balanced_rotation
from skcompressae.packed import ResidualQuantizer


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.floats(0, 1e6), min_size=1, max_size=60).map(lambda values: np.array(sorted(values)[::-1])),
    st.integers(1, 60),
)
def test_every_axis_has_its_place(variances, n_bytes):
    n_bytes = min(n_bytes, len(variances))
    width = -(-len(variances) // n_bytes)
    parts = _balanced_parts(variances, n_bytes, width)
    assert parts.min() >= 0
    assert parts.max() < n_bytes
    assert np.bincount(parts, minlength=n_bytes).max() <= width


@pytest.mark.parametrize("n_bytes", [7, 10, 46])
def test_axes_of_one_variance_are_dealt_out_in_turn(n_bytes):
    counts = np.bincount(_balanced_parts(np.full(100, 3.0), n_bytes, -(-100 // n_bytes)), minlength=n_bytes)
    assert counts.max() - counts.min() <= 1


def test_parts_ask_for_as_many_bits():
    variances = 0.99 ** np.arange(96)
    width = 8
    parts = _balanced_parts(variances, 12, width)
    # all axes take part: a bit each leaves an error below the smallest variance
    logarithms = np.bincount(parts, weights=np.log2(variances))
    assert np.ptp(logarithms) < 0.5
    dealt = np.bincount(np.arange(96) % 12, weights=np.log2(variances))
    assert np.ptp(logarithms) < np.ptp(dealt) / 2


def test_few_large_variances_are_apart():
    """Axes below the error that is left ask for nothing, so they go where there is room."""
    variances = np.r_[np.full(4, 1e4), np.full(12, 1.0)]
    parts = _balanced_parts(variances, 4, 4)
    assert sorted(parts[:4]) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("n_features", "n_bytes", "rank"), [(24, 6, 24), (20, 7, 20), (20, 7, 5), (9, 9, 9), (12, 1, 12)]
)
def test_rotations_lead_to_the_principal_axes(n_features, n_bytes, rank):
    random_state = np.random.RandomState(0)
    residuals = random_state.standard_normal((500, rank)) @ random_state.standard_normal((rank, n_features))
    residuals = np.asarray(residuals, dtype=np.float32)
    rotation = balanced_rotation(residuals, n_bytes)
    assert rotation.shape == (n_bytes * -(-n_features // n_bytes), n_features)
    np.testing.assert_allclose(rotation.T @ rotation, np.eye(n_features), atol=1e-5)
    rotated = (residuals @ rotation.T).astype(np.float64)
    moments = rotated.T @ rotated
    off_axes = moments - np.diag(np.diag(moments))
    assert np.abs(off_axes).max() < 1e-4 * moments.max()


def test_rows_of_zeros_are_learned_too():
    quantizer = ResidualQuantizer.fit(np.zeros((300, 10)), 4)
    decoded = quantizer.decode(quantizer.encode(np.zeros((5, 10))))
    np.testing.assert_array_equal(decoded, np.zeros((5, 10)))


def test_unequal_axes_lose_less_than_dealt_out_in_turn():
    """What the balance is for: some axes of large variance beside many small ones."""
    random_state = np.random.RandomState(0)
    scales = np.r_[np.full(3, 8.0), np.linspace(1.5, 0.1, 37)]
    residuals, held_out = (random_state.standard_normal((4000, 40)).astype(np.float32) * scales for _ in range(2))
    held_out = held_out.astype(np.float32)
    quantizer = ResidualQuantizer.fit(residuals, 10, n_iter=10)
    in_turn = np.zeros((40, 40), dtype=np.float32)
    in_turn[np.arange(40) % 10 * 4 + np.arange(40) // 10, np.arange(40)] = 1
    rotated = residuals @ in_turn.T.astype(np.float32)
    other = ResidualQuantizer(ResidualQuantizer.fit(rotated, 10, method="pq", n_iter=10).centroids, in_turn)
    errors = [np.mean((held_out - q.decode(q.encode(held_out))) ** 2) for q in (quantizer, other)]
    assert errors[0] < 0.95 * errors[1]
