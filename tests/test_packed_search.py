"""Searching packed codes as they are, what residual codes are of, and files of such an index."""

import pickle

import numpy as np
import pytest
import scipy.sparse as sp

from skcompressae._core._packed_search import fit_polynomials, largest_norm, packed_kernels
from skcompressae._core._search import search
from skcompressae._core._search_store import Chunk, PackedStore, PostingStore, RowStore, make_chunk
from skcompressae._neighbors import CodeNearestNeighbors
from skcompressae.exceptions import CodesFormatError
from skcompressae.packed import PackedCodes, ResidualQuantizer, ValueQuantizer


def ragged_codes(rng, n_rows, m, k):
    """Mostly full rows, as trained codes have; some short, some empty."""
    lengths = np.where(rng.random(n_rows) < 0.7, k, rng.integers(0, k + 1, n_rows))
    columns = np.concatenate([np.sort(rng.choice(m, size=n, replace=False)) for n in lengths])
    values = rng.standard_normal(lengths.sum()) * np.exp(rng.standard_normal(lengths.sum()))
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    return sp.csr_matrix((values.astype(np.float32), columns.astype(np.int32), indptr), shape=(n_rows, m))


def model(rng, n_rows=300, m=60, k=5, d=12):
    """Rows, a decoder of unit rows, and the rows' least-squares codes on their largest products."""
    X = rng.standard_normal((n_rows, d)).astype(np.float32)
    X /= np.linalg.norm(X, axis=1, keepdims=True)
    decoder = rng.standard_normal((m, d)).astype(np.float32)
    decoder /= np.linalg.norm(decoder, axis=1, keepdims=True)
    codes = np.zeros((n_rows, m), np.float32)
    for row, x in zip(codes, X, strict=True):
        chosen = np.argsort(-np.abs(decoder @ x))[:k]
        row[chosen] = np.linalg.lstsq(decoder[chosen].T, x, rcond=None)[0]
    return X, decoder, codes


@pytest.mark.parametrize(
    ("m", "k", "value_bits", "kind"),
    [
        (2048, 1, 4, "ranked"),  # one word a row
        (50, 3, 1, "ranked"),  # 7-bit words, one magnitude
        (2048, 20, 4, "ranked"),  # 15-bit words, k no multiple of 16
        (4096, 17, 6, "ranked"),  # 18-bit words
        (32, 17, 10, "uniform"),  # 15-bit words, most of them value, that begin late in a byte
        (5, 4, 8, "uniform"),  # 11-bit words
        (70000, 5, 8, "uniform"),  # 25-bit words: the widest that fit a lane wherever in a byte they begin
        (4096, 33, 16, "uniform"),  # 28-bit words, two a load of 64 bits
        (1 << 16, 7, 16, "uniform"),  # 32-bit words
        (1 << 19, 6, 8, "uniform"),  # 27-bit words, which begin anywhere in a byte: unpacked block by block
        (1 << 20, 6, 16, "uniform"),  # 36-bit words: no lane holds one
    ],
)
@pytest.mark.parametrize("n_queries", [1, 35])
def test_packed_rows_find_what_float64_finds(m, k, value_bits, kind, n_queries):
    rng = np.random.default_rng(m + k)
    codes = ragged_codes(rng, 150, m, k)
    packed = PackedCodes.pack(codes, value_bits=value_bits, kind=kind, k=k)
    assert (PackedStore(packed).kernels is None) == (packed.word_bits in (27, 36))
    targets = rng.standard_normal((m, n_queries)).astype(np.float32)
    exclude = rng.integers(-1, 150, n_queries)
    chunks = [make_chunk(PackedStore(packed[a:b]), metric="cosine") for a, b in ((0, 40), (40, 41), (41, 150))]
    scores, rows = search(chunks, targets, 60, exclude=exclude, n_threads=2)
    scale = np.concatenate([chunk.scale for chunk in chunks])
    expected = (packed.to_csr().astype(np.float64) @ targets.astype(np.float64)).T * scale
    expected[exclude >= 0, exclude[exclude >= 0]] = -np.inf
    best = np.argsort(-expected, axis=1, kind="stable")[:, :60]
    np.testing.assert_allclose(scores, np.take_along_axis(expected, best, axis=1), rtol=0, atol=1e-13)
    # rows differ only where float64 sums in another order tie
    np.testing.assert_allclose(np.take_along_axis(expected, rows, axis=1), scores, rtol=0, atol=1e-13)
    assert all(len(set(row)) == 60 for row in rows)


@pytest.mark.parametrize(("m", "value_bits"), [(32, 10), (8, 12), (4096, 4), (4096, 8)])
def test_one_query_among_many_full_rows(m, value_bits):
    """Most rows are left by their bound alone, whatever the share of the value in a word."""
    rng = np.random.default_rng(8)
    values = rng.standard_normal((3_000, 6)).astype(np.float32)
    columns = np.argsort(rng.random((3_000, m)), axis=1)[:, :6]
    codes = sp.csr_matrix((values.ravel(), columns.ravel(), np.arange(0, 18_001, 6)), shape=(3_000, m))
    packed = PackedCodes.pack(codes, value_bits=value_bits)
    chunk = make_chunk(PackedStore(packed), metric="dot")
    targets = rng.standard_normal((m, 20)).astype(np.float32)
    expected = -np.sort(-(packed.to_csr().astype(np.float64) @ targets.astype(np.float64)).T, axis=1)[:, :10]
    found = [search([chunk], targets[:, [i]], 10)[0][0] for i in range(20)]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("n_queries", [1, 3])
def test_codebooks_that_no_polynomial_is_near_to(n_queries):
    """A codebook made by hand may jump: the scan of one query must allow for what its approximation is off."""
    rng = np.random.default_rng(0)
    codes = ragged_codes(rng, 900, 40, 3)
    levels = np.array([[1, 2, 3, 900, 901, 902, 903, 904], [1, 2, 3, 4, 500, 501, 502, 503], range(1, 9)], np.float32)
    packed = PackedCodes.pack(codes, quantizer=ValueQuantizer("ranked", 4, levels / 904))
    targets = rng.standard_normal((40, n_queries)).astype(np.float32)
    scores, _ = search([make_chunk(PackedStore(packed), metric="dot")], targets, 20)
    expected = -np.sort(-(packed.to_csr().astype(np.float64) @ targets.astype(np.float64)).T, axis=1)[:, :20]
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("kind", ["ranked", "uniform"])
@pytest.mark.parametrize("value_bits", [1, 2, 4, 6, 8])
def test_polynomials_are_off_by_no_more_than_they_say(kind, value_bits):
    rng = np.random.default_rng(value_bits)
    k = 19
    levels = ValueQuantizer.fit(ragged_codes(rng, 500, 64, k), value_bits=value_bits, k=k, kind=kind).levels
    coefficients, error = fit_polynomials(levels, k)
    n_terms = coefficients.shape[1]
    powers = np.arange(levels.shape[1]) ** np.arange(n_terms)[:, None]
    approximate = (coefficients.transpose(0, 2, 1).reshape(-1, n_terms) @ powers.astype(np.float64)).astype(np.float64)
    off = np.abs(approximate[:k] - levels).max(axis=1)
    assert np.linalg.norm(off) <= error
    assert not approximate[k:].any()
    # near enough to leave most rows: a row of scale 1 has a norm of about the square root of k, or up to it
    assert error < (1e-5 if kind == "uniform" else 0.1 * np.sqrt(k))


@pytest.mark.parametrize("n", [1, 5, 63, 64, 1000, 2000])
def test_norm_of_the_largest_entries(n):
    target = np.random.default_rng(n).standard_normal((1_003, 1)).astype(np.float32).round(1)
    expected = np.linalg.norm(np.sort(np.abs(target.astype(np.float64)), axis=0)[-n:])
    assert expected <= largest_norm(target, n) <= expected * (1 + 1e-5)


@pytest.mark.parametrize("n_threads", [1, 3])
@pytest.mark.parametrize("share", [0.0, 0.002, 1.0])
def test_short_rows_anywhere_in_runs_of_rows(share, n_threads):
    """Rows are looked at in runs; a thread's share, or a batch of one, begins anywhere in one."""
    rng = np.random.default_rng(5)
    n_rows, m, k = 1_500, 256, 20
    columns = np.argsort(rng.random((n_rows, m)), axis=1)[:, :k]
    # norms that differ by orders of magnitude
    values = rng.standard_normal((n_rows, k)) * np.exp(3 * rng.standard_normal((n_rows, 1)))
    values[(rng.random(n_rows) < share)[:, None] & (np.arange(k) >= rng.integers(0, k, (n_rows, 1)))] = 0
    codes = sp.csr_matrix((values.ravel(), columns.ravel(), np.arange(0, n_rows * k + 1, k)), shape=(n_rows, m))
    codes.eliminate_zeros()
    packed = PackedCodes.pack(codes.astype(np.float32), k=k)
    for metric in ("dot", "cosine"):
        chunk = make_chunk(PackedStore(packed), metric=metric)
        for n_queries in (1, 2):
            targets = rng.standard_normal((m, n_queries)).astype(np.float32)
            scores, rows = search([chunk], targets, 30, n_threads=n_threads)
            exact = (packed.to_csr().astype(np.float64) @ targets.astype(np.float64)).T * chunk.scale
            np.testing.assert_allclose(scores, -np.sort(-exact, axis=1)[:, :30], rtol=1e-12)
            np.testing.assert_allclose(np.take_along_axis(exact, rows, axis=1), scores, rtol=1e-12)


def test_kernels_take_only_numbers_from_around_them():
    """Numba finds a kernel in its cache on disk only then; else every process compiles it anew."""
    kernels, others = packed_kernels(16, 4, 3, "<u2"), packed_kernels(17, 5, 3, "<u2")
    for kernel, other in zip(kernels, others, strict=True):
        assert all(isinstance(cell.cell_contents, int) for cell in kernel.py_func.__closure__)
        # files of the cache are called by it
        assert kernel.py_func.__qualname__ != other.py_func.__qualname__


@pytest.mark.parametrize("is_packed", [False, True])
def test_scores_beyond_float32_stay_in_their_lanes(is_packed):
    """An index made up by somebody else may have factors that make float32 overflow: answers, not crashes."""
    rng = np.random.default_rng(6)
    codes = ragged_codes(rng, 300, 64, 8)
    store = PackedStore(PackedCodes.pack(codes)) if is_packed else RowStore.from_csr(codes)
    chunk = Chunk(store, np.full(300, 2.0**126), 2.0**130, 8)
    scores, rows = search([chunk], rng.standard_normal((64, 3)), 5)
    assert scores.shape == (3, 5)
    assert ((rows >= 0) & (rows < 300)).all()


def test_factors_beyond_float32_are_refused():
    codes = ragged_codes(np.random.default_rng(7), 20, 64, 8)
    with pytest.raises(ValueError, match="rescale the components"):
        make_chunk(RowStore.from_csr(codes * 1e10), metric="cosine", components=np.full((64, 4), 1e-32))


def test_scores_that_float32_cannot_tell_apart_and_a_strided_slice():
    """Equal rows tie, and ties go to the lowest row; a slice with steps and reversed rows are searched alike."""
    codes = ragged_codes(np.random.default_rng(0), 60, 64, 8)[np.arange(200) % 60]
    packed = PackedCodes.pack(codes)[::-2]
    chunk = make_chunk(PackedStore(packed), metric="dot")
    target = np.random.default_rng(1).standard_normal((64, 1))
    _, rows = search([chunk], target, 100)
    expected = np.argsort(-(packed.to_csr().astype(np.float64) @ target).ravel().round(10), kind="stable")
    np.testing.assert_array_equal(rows[0], expected)


def test_damaged_words_stay_inside_the_tables():
    rng = np.random.default_rng(2)
    packed = PackedCodes.pack(ragged_codes(rng, 40, 33, 9))
    rows = rng.integers(0, 256, packed.rows.shape).astype(np.uint8)
    damaged = PackedCodes(rows, packed._scales, n_components=33, k=9, quantizer=packed.quantizer)
    chunk = make_chunk(PackedStore(packed), metric="dot")
    object.__setattr__(chunk, "store", PackedStore(damaged))
    for n_queries in (1, 4):
        scores, _ = search([chunk], rng.standard_normal((33, n_queries)), 40)
        assert np.isfinite(scores).all()


@pytest.mark.parametrize("metric", ["cosine", "geometric", "dot"])
@pytest.mark.parametrize("mode", ["sparse", "reconstructed", "asymmetric"])
def test_an_index_of_packed_codes_equals_one_of_their_csr(tmp_path, mode, metric):
    rng = np.random.default_rng(3)
    X, decoder, codes = model(rng)
    packed = PackedCodes.pack(codes)
    queries = X[:20] if mode == "asymmetric" else sp.csr_matrix(codes[:20])
    parameters = {"n_neighbors": 9, "compressor": decoder, "mode": mode, "metric": metric}
    index = CodeNearestNeighbors(**parameters).fit(packed[:100]).partial_fit(packed[100:])
    expected = CodeNearestNeighbors(**parameters).fit(packed.to_csr()).kneighbors(queries)
    assert all(isinstance(c.store, PostingStore if mode == "sparse" else PackedStore) for c in index._chunks)
    index.save(tmp_path / "index")
    for other in (
        index,
        pickle.loads(pickle.dumps(index)),
        CodeNearestNeighbors.load(tmp_path / "index"),
        CodeNearestNeighbors.load(tmp_path / "index", mmap=False),
    ):
        distances, indices = other.kneighbors(queries)
        np.testing.assert_array_equal(indices, expected[1])
        np.testing.assert_allclose(distances, expected[0], rtol=0, atol=2e-7)
    assert index.radius_neighbors(queries, 0.5)[1][0].size > 0


def test_the_residual_is_of_the_unit_row_or_of_the_row():
    rng = np.random.default_rng(6)
    X, decoder, codes = model(rng)
    packed = PackedCodes.pack(codes)
    quantizer = ResidualQuantizer.fit(X - packed.to_csr() @ decoder, 3, n_iter=2)
    unit = packed.with_residual_of(7 * X, decoder, quantizer=quantizer)
    plain = packed.with_residual_of(X, decoder, quantizer=quantizer, normalize=False)
    np.testing.assert_array_equal(plain.residual_codes, quantizer.encode(X - packed.to_csr() @ decoder))
    assert (unit.residual_codes == plain.residual_codes).mean() > 0.99
    with pytest.raises(ValueError, match=r"X must have shape \(300, 12\), got \(3, 12\)"):
        packed.with_residual_of(X[:3], decoder, n_bytes=3)
    with pytest.raises(ValueError, match="either n_bytes or quantizer"):
        packed.with_residual_of(X, decoder)
    with pytest.raises(ValueError, match="components must have 60 rows"):
        packed.with_residual_of(X, decoder[:5], n_bytes=3)
    with pytest.raises(ValueError, match="quantizer must have 12 features"):
        packed.with_residual_of(X, decoder, quantizer=ResidualQuantizer(np.zeros((2, 3, 4))))


def test_what_cannot_be_reranked_is_refused(tmp_path):
    X, decoder, codes = model(np.random.default_rng(7))
    packed = PackedCodes.pack(codes)
    full = packed.with_residual_of(X, decoder, n_bytes=4, n_iter=1)
    with pytest.raises(ValueError, match="got PackedCodes without them"):
        CodeNearestNeighbors(compressor=decoder, rerank=50).fit(packed)
    with pytest.raises(ValueError, match="got codes that are not packed"):
        CodeNearestNeighbors(compressor=decoder, rerank=50).fit(codes)
    with pytest.raises(ValueError, match="rerank needs mode='asymmetric'"):
        CodeNearestNeighbors(rerank=50).fit(full)
    with pytest.raises(ValueError, match="residual codes have 12 features, but the compressor has 11"):
        CodeNearestNeighbors(compressor=decoder[:, :11], rerank=50).fit(full)
    index = CodeNearestNeighbors(compressor=decoder).fit(full)
    with pytest.raises(ValueError, match="rerank=50 was set after fitting"):
        index.set_params(rerank=50).kneighbors(X[:2])
    grown = CodeNearestNeighbors(compressor=decoder, rerank=50).fit(full).set_params(rerank=None).partial_fit(full)
    grown.set_params(rerank=50)
    for call in (grown.kneighbors, grown.radius_neighbors, lambda _: grown.partial_fit(full)):
        with pytest.raises(ValueError, match="rerank=50 was set after documents were added with rerank=None; fit the"):
            call(X[:2])
    CodeNearestNeighbors(compressor=decoder, rerank=50).fit(full).save(tmp_path / "index")
    data = (tmp_path / "index").read_bytes()
    for old, new in ((b'"k": 5', b'"k": 6'), (b'"packed"', b'"packet"'), (b'"ranked"', b'"rankew"')):
        (tmp_path / "other").write_bytes(data.replace(old, new))
        with pytest.raises(CodesFormatError, match="damaged"):
            CodeNearestNeighbors.load(tmp_path / "other")
