"""The kernels against a naive float64 search."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix

from skcompressae._core._few_products import multiply_few, multiply_rows
from skcompressae._core._search import search, within
from skcompressae._core._search_kernels import merge_heaps, row_norms, sort_heaps
from skcompressae._core._search_postings import build_postings, postings_to_rows
from skcompressae._core._search_store import (
    CodeStore,
    CsrBlock,
    PackedStore,
    PostingStore,
    RowStore,
    block_to_csr,
    make_chunk,
    reconstruction_norms,
)
from skcompressae._core._search_vectors import LANES
from skcompressae.packed import PackedCodes


def ragged_codes(rng, n_rows, n_components=37, longest=9, dtype=np.float32, levels=None):
    """Rows of 0 to `longest` entries; few `levels` make many exact ties."""
    dense = np.zeros((n_rows, n_components), dtype)
    for row in dense:
        columns = rng.choice(n_components, rng.integers(0, longest + 1), replace=False)
        if levels is None:
            row[columns] = rng.standard_normal(len(columns))
        else:
            row[columns] = rng.choice(levels, len(columns))
    return csr_matrix(dense)


def naive_search(codes, scale, targets, n_neighbors, exclude):
    """Score in float64; best first, ties by the lowest row."""
    scores = (codes.toarray().astype(np.float64) @ targets.astype(np.float64)).T * scale
    scores[exclude >= 0, exclude[exclude >= 0]] = -np.inf
    rows = np.argsort(-scores, axis=1, kind="stable")[:, :n_neighbors]
    return np.take_along_axis(scores, rows, axis=1), rows


def chunks_of(codes, kind, metric, cuts):
    bounds = [0, *sorted(cuts), codes.shape[0]]
    return [make_chunk(kind.from_csr(codes[a:b]), metric=metric) for a, b in pairwise(bounds) if b > a]


@pytest.mark.parametrize("n_threads", [1, 2, 3])
@pytest.mark.parametrize("n_queries", [1, 2, LANES, LANES + 1, 3 * LANES + 5])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dense_targets_find_what_a_naive_search_finds(n_queries, dtype, n_threads):
    rng = np.random.default_rng(n_queries)
    codes = ragged_codes(rng, 200, dtype=dtype)
    targets = rng.standard_normal((37, n_queries)).astype(dtype)
    exclude = rng.integers(-1, 200, n_queries)
    chunks = chunks_of(codes, RowStore, "cosine", [3, 77, 140])
    scale = np.concatenate([chunk.scale for chunk in chunks])
    scores, rows = search(chunks, targets, 13, exclude=exclude, n_threads=n_threads)
    expected_scores, expected_rows = naive_search(codes, scale, targets, 13, exclude)
    np.testing.assert_array_equal(rows, expected_rows)
    np.testing.assert_allclose(scores, expected_scores, rtol=0, atol=1e-14)


@pytest.mark.parametrize("n_queries", [1, LANES])
@pytest.mark.parametrize("is_packed", [False, True])
def test_more_equal_rows_than_a_list_of_candidates_holds(n_queries, is_packed):
    rng = np.random.default_rng(6)
    few = ragged_codes(rng, 5)
    codes = csr_matrix(few[rng.integers(0, 5, 3_000)])
    store = PackedStore(PackedCodes.pack(codes, value_bits=4)) if is_packed else RowStore.from_csr(codes)
    chunk = make_chunk(store, metric="dot")
    codes = block_to_csr(store.block(0, 3_000), 37)
    targets = rng.standard_normal((37, n_queries)).astype(np.float32)
    _, rows = search([chunk], targets, 4)
    scores = (codes.toarray().astype(np.float64) @ targets.astype(np.float64)).T.round(12)
    np.testing.assert_array_equal(rows, np.argsort(-scores, axis=1, kind="stable")[:, :4])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("step", [1, 1_500])
@pytest.mark.parametrize("lengths", [[1], [3], [16], [20], [32], [45], [0, 32], [16, 17, 18], [5, 32, 33]])
def test_one_query_of_runs_of_rows_of_one_length(lengths, step, dtype):
    """Runs of one to nine rows, so that any number is left after those that are scored together."""
    rng = np.random.default_rng(len(lengths))
    for n_rows in (1, 2, 3, 4, 5, 6, 7, 8, 150):
        row_lengths = np.repeat(rng.choice(lengths, n_rows), rng.integers(1, 10, n_rows))[:n_rows]
        indices = [np.sort(rng.choice(50, length, replace=False)) for length in row_lengths]
        indptr = np.append(0, np.cumsum(row_lengths))
        # small integers: many ties, and float64 sums without error
        values = rng.choice([-2, -1, 1, 3], indptr[-1]).astype(dtype)
        narrow = csr_matrix((values, np.concatenate(indices), indptr), shape=(n_rows, 50))
        target = rng.integers(-3, 4, (50, 1)).astype(dtype)
        codes = csr_matrix((values, narrow.indices * step, indptr), shape=(n_rows, 50 * step))
        spread = np.zeros((50 * step, 1), dtype)
        spread[::step] = target
        exclude = rng.integers(-1, n_rows, 1)
        for metric in ("cosine", "geometric", "dot"):
            chunk = make_chunk(RowStore.from_csr(codes), metric=metric)
            n_neighbors = max(1, min(11, n_rows - 1))
            scores, rows = search([chunk], spread, n_neighbors, exclude=exclude)
            expected_scores, expected_rows = naive_search(narrow, chunk.scale, target, n_neighbors, exclude)
            np.testing.assert_array_equal(scores, expected_scores)
            is_there = scores > -np.inf
            np.testing.assert_array_equal(rows[is_there], expected_rows[is_there])


@pytest.mark.parametrize("n_neighbors", [1, 2, 6])
def test_rows_after_the_one_that_fills_the_list_of_candidates(n_neighbors):
    """Every row is a little better than the one before, by less than float32 tells."""
    for n_rows in range(60, 95):
        codes = csr_matrix(np.column_stack([np.ones(n_rows), np.arange(1, n_rows + 1) * 1e-12]))
        _, rows = search([make_chunk(RowStore.from_csr(codes), metric="dot")], np.ones((2, 1)), n_neighbors)
        np.testing.assert_array_equal(rows[0], np.arange(n_rows - 1, n_rows - 1 - n_neighbors, -1))


@pytest.mark.parametrize("n_queries", [1, 5])
def test_targets_of_any_size_find_what_a_naive_search_finds(n_queries):
    rng = np.random.default_rng(8)
    codes = ragged_codes(rng, 500)
    # one component swamps the others: scores differ by less than the errors of the scanned targets
    targets = rng.standard_normal((37, n_queries)) * 1e-6
    targets[0] = 1e9
    codes = csr_matrix(codes.multiply(np.arange(37) > 0), dtype=np.float32)
    codes.eliminate_zeros()
    for factor in (1.0, 1e-30, 1e30):
        chunk = make_chunk(RowStore.from_csr(codes), metric="cosine")
        scores, rows = search([chunk], targets * factor, 9)
        expected_scores, expected_rows = naive_search(codes, chunk.scale, targets * factor, 9, np.full(n_queries, -1))
        np.testing.assert_array_equal(rows, expected_rows)
        np.testing.assert_allclose(scores, expected_scores, rtol=1e-12)


@pytest.mark.parametrize("n_threads", [1, 2, 5])
@pytest.mark.parametrize("metric", ["cosine", "geometric", "dot"])
def test_code_queries_find_what_a_naive_search_finds(metric, n_threads):
    rng = np.random.default_rng(4)
    codes, queries = ragged_codes(rng, 300), ragged_codes(rng, 7)
    exclude = np.array([-1, 0, 5, 299, -1, 17, 3])
    chunks = chunks_of(codes, PostingStore, metric, [64, 65, 200])
    scale = np.concatenate([chunk.scale for chunk in chunks])
    scores, rows = search(chunks, queries, 20, exclude=exclude, n_threads=n_threads)
    expected_scores, expected_rows = naive_search(codes, scale, queries.toarray().T, 20, exclude)
    np.testing.assert_array_equal(rows, expected_rows)
    np.testing.assert_allclose(scores, expected_scores, rtol=0, atol=1e-14)


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    n_rows=st.integers(1, 90),
    n_queries=st.integers(1, 40),
    kind=st.sampled_from([RowStore, PostingStore]),
    n_threads=st.integers(1, 3),
    data=st.data(),
)
def test_ties_go_to_the_lowest_row(seed, n_rows, n_queries, kind, n_threads, data):
    """Small integers make every score exact and most of them equal."""
    rng = np.random.default_rng(seed)
    codes = ragged_codes(rng, n_rows, 6, 3, levels=[-2, -1, 1, 2])
    queries = ragged_codes(rng, n_queries, 6, 3, levels=[-1, 1])
    n_neighbors = data.draw(st.integers(1, n_rows))
    cuts = data.draw(st.lists(st.integers(0, n_rows), max_size=3))
    exclude = np.full(n_queries, -1)
    chunks = chunks_of(codes, kind, "dot", cuts)
    given_queries = queries if kind is PostingStore else np.ascontiguousarray(queries.toarray().T)
    scores, rows = search(chunks, given_queries, n_neighbors, n_threads=n_threads)
    expected_scores, expected_rows = naive_search(codes, np.ones(n_rows), queries.toarray().T, n_neighbors, exclude)
    np.testing.assert_array_equal(rows, expected_rows)
    np.testing.assert_array_equal(scores, expected_scores)


def test_near_ties_below_float32_resolution_are_ordered_in_float64():
    """Scores that float32 cannot tell apart still come in the order of float64."""
    n_rows = 500
    rng = np.random.default_rng(0)
    nudges = rng.permutation(n_rows)
    codes = csr_matrix(np.column_stack([np.ones(n_rows), nudges * 1e-12]))
    targets = np.ones((2, 40))
    _, rows = search([make_chunk(RowStore.from_csr(codes), metric="dot")], targets, 50)
    np.testing.assert_array_equal(rows, np.tile(np.argsort(-nudges)[:50], (40, 1)))


@pytest.mark.parametrize("n_queries", [1, 5])
@pytest.mark.parametrize("exponent", [-90, -30, 30, 90])
def test_the_scale_of_float64_targets_does_not_matter(exponent, n_queries):
    rng = np.random.default_rng(1)
    codes = ragged_codes(rng, 100, dtype=np.float64)
    targets = rng.standard_normal((37, n_queries))
    chunks = [make_chunk(RowStore.from_csr(codes), metric="cosine")]
    _, expected = search(chunks, targets, 10)
    _, rows = search(chunks, targets * 2.0**exponent, 10)
    np.testing.assert_array_equal(rows, expected)


@pytest.mark.parametrize("kind", [RowStore, PostingStore])
@pytest.mark.parametrize("n_threads", [1, 2])
def test_within_finds_all_rows_above_the_limit(kind, n_threads):
    rng = np.random.default_rng(2)
    codes, queries = ragged_codes(rng, 150), ragged_codes(rng, 35)
    chunks = chunks_of(codes, kind, "dot", [40])
    given_queries = queries if kind is PostingStore else np.ascontiguousarray(queries.toarray().T)
    limits = rng.uniform(-0.5, 2.0, 35)
    found = within(chunks, given_queries, limits, n_threads=n_threads)
    scores = (queries.astype(np.float64) @ codes.T.astype(np.float64)).toarray()
    assert sum(len(rows) for rows, _ in found) > 100
    for query, (rows, got) in enumerate(found):
        np.testing.assert_array_equal(rows, np.flatnonzero(scores[query] >= limits[query]))
        np.testing.assert_allclose(got, scores[query, rows], rtol=0, atol=1e-14)


def test_postings_transpose_and_back():
    codes = ragged_codes(np.random.default_rng(3), 50)
    parts = build_postings(codes.indptr, codes.indices, codes.data, 37)
    assert parts[1].dtype == np.uint16
    np.testing.assert_array_equal(np.diff(parts[0]), codes.getnnz(axis=0))
    indptr, indices, values = postings_to_rows(*parts, 50)
    np.testing.assert_array_equal(indptr, codes.indptr)
    np.testing.assert_array_equal(indices, codes.indices)
    np.testing.assert_array_equal(values, codes.data)


def test_a_block_of_postings_gives_its_rows():
    codes = ragged_codes(np.random.default_rng(3), 50)
    block = PostingStore.from_csr(codes).block(10, 30)
    np.testing.assert_array_equal(block_to_csr(block, 37).toarray(), codes[10:30].toarray())


def test_merging_and_sorting_heaps():
    scores, rows = np.full((1, 3), -np.inf), np.full((1, 3), np.iinfo(np.int64).max)
    merge_heaps(scores, rows, np.array([[1.0, 5.0, 5.0, 2.0]]), np.array([[0, 9, 4, 7]]))
    sort_heaps(scores, rows, 0, 1)
    np.testing.assert_array_equal(scores, [[5.0, 5.0, 2.0]])
    np.testing.assert_array_equal(rows, [[4, 9, 7]])


def test_norms_of_rows_and_of_reconstructions():
    rng = np.random.default_rng(5)
    codes, decoder = ragged_codes(rng, 60), rng.standard_normal((37, 11))
    np.testing.assert_allclose(row_norms(codes.indptr, codes.data), np.linalg.norm(codes.toarray(), axis=1))
    got = reconstruction_norms(RowStore.from_csr(codes), decoder, n_threads=2)
    np.testing.assert_allclose(got, np.linalg.norm(codes @ decoder, axis=1))


def test_a_row_store_refers_to_the_values_and_narrows_the_columns():
    codes = ragged_codes(np.random.default_rng(6), 10)
    store = RowStore.from_csr(codes)
    assert store.values is codes.data
    assert store.indices.dtype == np.uint16
    wide = csr_matrix((codes.data, codes.indices, codes.indptr), shape=(10, 70_000))
    assert RowStore.from_csr(wide).indices.dtype == np.int32
    assert store.nbytes == 4 * 11 + 6 * codes.nnz


@pytest.mark.parametrize("n_queries", [1, 3])
def test_more_components_than_uint16_can_number(n_queries):
    rng = np.random.default_rng(7)
    codes = ragged_codes(rng, 40)
    wide = csr_matrix((codes.data, codes.indices * 2_000, codes.indptr), shape=(40, 80_000))
    targets = np.zeros((80_000, n_queries), np.float32)
    targets[: 37 * 2_000 : 2_000] = rng.standard_normal((37, n_queries))
    _, rows = search([make_chunk(RowStore.from_csr(wide), metric="dot")], targets, 5)
    none = np.full(n_queries, -1)
    expected = naive_search(codes, np.ones(40), targets[: 37 * 2_000 : 2_000], 5, none)[1]
    np.testing.assert_array_equal(rows, expected)


class Doubles:
    """A store of another kind: small integers, kept as int8."""

    def __init__(self, dense):
        self.dense = dense.astype(np.int8)
        self.n_rows, self.n_components = dense.shape
        self.dtype, self.nbytes = np.dtype(np.float32), self.dense.nbytes

    def block(self, start, stop):
        rows = csr_matrix(self.dense[start:stop].astype(np.float32))
        return CsrBlock(rows.indptr, rows.indices, rows.data)


def test_any_store_can_be_searched():
    rng = np.random.default_rng(8)
    codes = ragged_codes(rng, 80, levels=[-3, -1, 2])
    store = Doubles(codes.toarray())
    assert isinstance(store, CodeStore)
    targets = rng.standard_normal((37, 6)).astype(np.float32)
    got = search([make_chunk(store, metric="cosine")], targets, 9)
    expected = search([make_chunk(RowStore.from_csr(codes), metric="cosine")], targets, 9)
    np.testing.assert_array_equal(got[1], expected[1])


def test_code_queries_need_postings():
    codes = ragged_codes(np.random.default_rng(9), 10)
    with pytest.raises(TypeError, match="need a PostingStore, got RowStore"):
        search([make_chunk(RowStore.from_csr(codes), metric="dot")], codes, 2)


def test_overlong_codes_are_refused():
    codes = csr_matrix(np.array([[1e31, 0.0]]))
    with pytest.raises(ValueError, match=r"norms below 1e\+30, got 1e\+31"):
        make_chunk(RowStore.from_csr(codes), metric="cosine")


def test_rows_are_visited_in_any_number_of_pieces(monkeypatch):
    """Results do not depend on the block size."""
    rng = np.random.default_rng(10)
    codes, targets = ragged_codes(rng, 100), rng.standard_normal((37, 4)).astype(np.float32)
    chunks = [make_chunk(RowStore.from_csr(codes), metric="cosine")]
    expected = search(chunks, targets, 8)
    everything = within(chunks, targets, np.full(4, -np.inf))
    monkeypatch.setattr("skcompressae._core._search.BLOCK_ROWS", 7)
    monkeypatch.setattr("skcompressae._core._search._COLLECT_ROWS", 9)
    for n_threads in (1, 2):
        got = search(chunks, targets, 8, n_threads=n_threads)
        np.testing.assert_array_equal(got[1], expected[1])
        np.testing.assert_array_equal(got[0], expected[0])
        again = within(chunks, targets, np.full(4, -np.inf), n_threads=n_threads)
        for (rows, scores), (other_rows, other_scores) in zip(everything, again, strict=True):
            np.testing.assert_array_equal(rows, other_rows)
            np.testing.assert_array_equal(scores, other_scores)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n_vectors", [1, 2, 3, 6])
@pytest.mark.parametrize(("first", "last"), [(0, 11), (2, 11), (3, 6), (4, 8), (5, 5), (0, 1), (1, 150)])
def test_products_of_few_vectors_fill_the_rows_asked_for(first, last, n_vectors, dtype):
    rng = np.random.default_rng(first + last)
    rows, vectors = rng.standard_normal((150, 37)).astype(dtype), rng.standard_normal((n_vectors, 37)).astype(dtype)
    expected = np.full((n_vectors, 150), np.nan)
    expected[:, first:last] = vectors.astype(np.float64) @ rows[first:last].T.astype(np.float64)
    for order in "CF":
        products = np.full((n_vectors, 150), np.nan, dtype, order)
        multiply_rows(vectors, rows, first, last, products)
        np.testing.assert_allclose(products, expected, rtol=0, atol=3e-5 if dtype == np.float32 else 1e-13)
    products = np.empty((n_vectors, 150), dtype)
    multiply_few(vectors, rows, products, n_threads=2)
    np.testing.assert_allclose(products, vectors @ rows.T, rtol=0, atol=3e-5 if dtype == np.float32 else 1e-13)
