"""Top-k selection against a naive stable sort."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skcompressae._core._topk import add_max_and_count, kth_largest, max_and_count, partition_largest, top_k


def naive_top_k(pre_activations, k):
    """Sort by descending magnitude, ties by index; keep k; put them in ascending order of index."""
    order = np.argsort(-np.abs(pre_activations), axis=1, kind="stable")[:, :k]
    indices = np.sort(order, axis=1)
    return indices, np.take_along_axis(pre_activations, indices, axis=1)


def draw_pre_activations(kind, shape, dtype, random_state):
    tiny, huge = np.finfo(dtype).smallest_subnormal, np.finfo(dtype).max
    normal = random_state.standard_normal(shape).astype(dtype)
    if kind == "normal":
        return normal
    if kind == "ties":
        return random_state.randint(-2, 3, shape).astype(dtype)
    if kind == "constant":
        return np.full(shape, -1.5, dtype=dtype)
    if kind == "mostly zero":
        return np.where(random_state.uniform(size=shape) < 0.05, normal, dtype(0))
    if kind == "denormal":
        return random_state.randint(-3, 4, shape).astype(dtype) * tiny
    if kind == "huge":
        return np.where(random_state.uniform(size=shape) < 0.3, np.sign(normal) * huge, normal)
    # one sample of every order of magnitude, so that no halving of a threshold ever isolates k entries
    exponents = random_state.randint(np.finfo(dtype).minexp, np.finfo(dtype).maxexp, shape)
    return np.ldexp(np.sign(normal), exponents).astype(dtype)


KINDS = ["normal", "ties", "constant", "mostly zero", "denormal", "huge", "all magnitudes"]


@settings(deadline=None, max_examples=150)
@given(
    kind=st.sampled_from(KINDS),
    n_rows=st.integers(0, 9),
    n_components=st.integers(1, 200),
    dtype=st.sampled_from([np.float32, np.float64]),
    seed=st.integers(0, 2**31),
    data=st.data(),
)
def test_selection_is_that_of_a_stable_sort(kind, n_rows, n_components, dtype, seed, data):
    k = data.draw(st.integers(1, n_components), label="k")
    random_state = np.random.RandomState(seed)
    pre_activations = draw_pre_activations(kind, (n_rows, n_components), dtype, random_state)
    indices, values = top_k(pre_activations, k, n_threads=1)
    expected_indices, expected_values = naive_top_k(pre_activations, k)
    np.testing.assert_array_equal(indices, expected_indices)
    np.testing.assert_array_equal(values, expected_values)
    assert indices.dtype == np.int32
    assert values.dtype == dtype


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n_components", "k"), [(4096, 32), (4097, 128), (1000, 999)])
def test_selection_at_real_widths(kind, n_components, k):
    pre_activations = draw_pre_activations(kind, (20, n_components), np.float32, np.random.RandomState(1))
    indices, values = top_k(pre_activations, k, n_threads=1)
    expected_indices, expected_values = naive_top_k(pre_activations, k)
    np.testing.assert_array_equal(indices, expected_indices)
    np.testing.assert_array_equal(values, expected_values)


def test_rows_of_different_scale_do_not_disturb_each_other():
    # The first threshold tried for a row comes from the row before it, here off by dozens of orders of magnitude.
    random_state = np.random.RandomState(2)
    scales = 10.0 ** random_state.randint(-30, 30, (64, 1))
    pre_activations = (random_state.standard_normal((64, 300)) * scales).astype(np.float32)
    pre_activations[::7] = 0
    indices, _ = top_k(pre_activations, 8, n_threads=1)
    np.testing.assert_array_equal(indices, naive_top_k(pre_activations, 8)[0])


@settings(deadline=None, max_examples=20)
@given(n_threads=st.integers(2, 4), block_size=st.integers(1, 40), seed=st.integers(0, 2**31))
def test_threads_and_block_sizes_change_nothing(n_threads, block_size, seed):
    pre_activations = draw_pre_activations("ties", (67, 90), np.float32, np.random.RandomState(seed))
    indices, values = top_k(pre_activations, 7, n_threads=n_threads, block_size=block_size)
    expected_indices, expected_values = naive_top_k(pre_activations, 7)
    np.testing.assert_array_equal(indices, expected_indices)
    np.testing.assert_array_equal(values, expected_values)


def test_ties_go_to_the_lowest_index():
    indices, values = top_k(np.array([[1.0, -2.0, 2.0, 2.0, -2.0, 0.5]]), 2, n_threads=1)
    assert indices.tolist() == [[1, 2]]
    assert values.tolist() == [[-2.0, 2.0]]


def draw_magnitudes(kind, n, dtype, random_state):
    """Magnitudes, some infinite where the kind says so."""
    magnitudes = np.abs(draw_pre_activations("normal" if kind == "infinite" else kind, n, dtype, random_state))
    return np.where((kind == "infinite") & (random_state.uniform(size=n) < 0.4), dtype(np.inf), magnitudes)


@settings(deadline=None, max_examples=300)
@given(
    kind=st.sampled_from([*KINDS, "infinite"]),
    n=st.integers(1, 90),
    dtype=st.sampled_from([np.float32, np.float64]),
    seed=st.integers(0, 2**31),
    data=st.data(),
)
def test_kth_largest_is_that_of_a_sort(kind, n, dtype, seed, data):
    k = data.draw(st.integers(1, n), label="k")
    magnitudes = draw_magnitudes(kind, n, dtype, np.random.RandomState(seed))
    expected = np.sort(magnitudes)[::-1]
    assert kth_largest(magnitudes, n, k) == expected[k - 1]
    reordered = magnitudes.copy()
    assert partition_largest(reordered, n, k) == expected[k - 1]
    np.testing.assert_array_equal(np.sort(reordered[:k])[::-1], expected[:k])


def test_kth_largest_leaves_out_what_is_no_number():
    magnitudes = np.array([np.nan, 2.0, np.nan, 1.0, 3.0], dtype=np.float32)
    assert [kth_largest(magnitudes, 5, k) for k in range(1, 6)] == [3, 2, 1, 0, 0]
    assert kth_largest(np.full(20, np.nan), 20, 3) == 0


@settings(deadline=None, max_examples=100)
@given(
    kind=st.sampled_from(["normal", "ties", "mostly zero"]),
    n=st.integers(1, 90),
    dtype=st.sampled_from([np.float32, np.float64]),
    seed=st.integers(0, 2**31),
)
def test_largest_magnitude_and_how_many_reach_a_threshold(kind, n, dtype, seed):
    random_state = np.random.RandomState(seed)
    row, bias = draw_pre_activations(kind, n, dtype, random_state), random_state.randint(-2, 3, n).astype(dtype)
    total = row + bias
    threshold = abs(random_state.choice(total))
    assert max_and_count(total, threshold) == (np.abs(total).max(), (np.abs(total) >= threshold).sum())
    assert add_max_and_count(row, bias, threshold) == (np.abs(total).max(), (np.abs(total) >= threshold).sum())
    np.testing.assert_array_equal(row, total)


def test_what_is_no_number_is_selected_where_there_is_nothing_else():
    rows = np.full((3, 40), np.nan, dtype=np.float32)
    rows[1, 5] = 1
    indices, values = top_k(rows, 4, n_threads=1)
    assert ((indices >= 0) & (indices < 40)).all()
    assert (np.diff(indices, axis=1) > 0).all()
    np.testing.assert_array_equal(values, np.take_along_axis(rows, indices.astype(np.intp), axis=1))
