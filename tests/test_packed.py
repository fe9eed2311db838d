"""Packed codes: the layout against a bit-by-bit decoder, round trips, array behaviour, errors."""

import pickle

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import train_test_split
from sklearn.neighbors import NearestNeighbors

from skcompressae.packed import PackedCodes, ResidualQuantizer, ValueQuantizer, _residual

UNIFORM = ValueQuantizer.fit(np.eye(2), value_bits=8)


def random_codes(n, m, k, seed=0, short=True):
    """Return float32 CSR with signed heavy-tailed values, up to k nonzeros a row, some rows empty."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, k + 1, n) if short else np.full(n, k)
    indices = [np.sort(rng.choice(m, size=length, replace=False)) for length in lengths]
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    data = rng.standard_normal(indptr[-1]) * np.exp(rng.standard_normal(indptr[-1]))
    data[data == 0] = 1.0
    flat = np.concatenate(indices) if n else np.empty(0, int)
    return sp.csr_matrix((data.astype(np.float32), flat.astype(np.int32), indptr), shape=(n, m))


def naive_decode(packed):
    """Read the documented layout one bit at a time, in Python integers."""
    index_bits = max(1, (packed.n_components - 1).bit_length())
    v = packed.quantizer.value_bits
    width = index_bits + v
    levels = packed.quantizer.levels
    dense = np.zeros(packed.shape, np.float32)
    for i, row in enumerate(packed.rows):
        bits = [(int(byte) >> b) & 1 for byte in row for b in range(8)]
        words = [sum(bit << p for p, bit in enumerate(bits[j * width : (j + 1) * width])) for j in range(packed.k)]
        while len(words) > 1 and words[-1] == words[-2]:
            words.pop()
        raw = packed._scales[i]
        scale = np.uint32(int(raw) << 15).view(np.float32) if packed._scales.dtype == np.uint16 else raw
        if scale == 0:
            continue
        for j, word in enumerate(words):
            level = levels[min(j, len(levels) - 1), word & (2 ** (v - 1) - 1)]
            sign = -1 if (word >> (v - 1)) & 1 else 1
            dense[i, word >> v] = sign * np.float32(level * np.float32(scale))
    return dense


def same_support(a, b):
    return np.array_equal(a.indptr, b.indptr) and np.array_equal(a.indices, b.indices)


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(0, 12),
    k=st.integers(1, 9),
    spare=st.sampled_from([0, 1, 7, 300]),
    value_bits=st.integers(1, 16),
    kind=st.sampled_from(["auto", "ranked", "uniform"]),
    seed=st.integers(0, 2**16),
    short=st.booleans(),
)
def test_round_trip_laws(n, k, spare, value_bits, kind, seed, short):
    """Support and signs survive, repacking reproduces the store, and a naive decoder reads the same."""
    if kind == "ranked":
        value_bits = min(value_bits, 8)
    codes = random_codes(n, k + spare, k, seed, short)
    packed = PackedCodes.pack(codes, value_bits=value_bits, k=k, kind=kind)
    back = packed.to_csr()
    assert same_support(back, codes)
    assert back.has_canonical_format
    np.testing.assert_array_equal(np.sign(back.data), np.sign(codes.data))
    np.testing.assert_array_equal(back.toarray(), naive_decode(packed))
    assert PackedCodes.pack(back, k=k, quantizer=packed.quantizer) == packed
    if packed.quantizer.kind == "uniform":
        scale = np.repeat(packed.scales, np.diff(codes.indptr))
        # a level is never 0, so what lies below half a step becomes one step
        bound = scale * np.where(np.abs(codes.data) < scale / 2**value_bits, 2.0, 1.0) / 2**value_bits
        assert (np.abs(back.data - codes.data) <= bound * (1 + 1e-5)).all()


@settings(max_examples=25, deadline=None)
@given(
    data=st.lists(
        st.lists(
            st.floats(-(2.0**80), 2.0**80, allow_nan=False).filter(lambda v: v == 0 or abs(v) > 2.0**-90),
            min_size=3,
            max_size=3,
        ),
        min_size=1,
        max_size=6,
    ),
    value_bits=st.integers(1, 16),
    order=st.sampled_from("CF"),
    dtype=st.sampled_from([np.float32, np.float64]),
)
def test_any_finite_values(data, value_bits, order, dtype):
    """Values of any magnitude keep support and sign; memory order and float width do not matter."""
    dense = np.asarray(data, dtype=dtype, order=order)
    before = dense.copy()
    packed = PackedCodes.pack(dense, value_bits=value_bits, k=3)
    np.testing.assert_array_equal(dense, before)
    back = packed.to_csr()
    np.testing.assert_array_equal(np.sign(back.toarray()), np.sign(dense))
    assert PackedCodes.pack(back, quantizer=packed.quantizer, k=3) == packed


@pytest.mark.parametrize("dtype", ["float16", ">f4", ">f8", "int8", "uint64", "bool", "longdouble"])
@pytest.mark.parametrize("form", [np.asarray, sp.csr_array, sp.csc_matrix])
def test_any_dtype_of_codes(dtype, form):
    dense = np.array([[0, 3, 0, 1], [2, 0, 0, 0]])
    if form is not np.asarray and dtype in ("float16", ">f4", ">f8"):
        pytest.skip("SciPy has no matrices of this dtype")
    codes = dense.astype(dtype)
    packed = PackedCodes.pack(form(codes), value_bits=np.int64(8))
    assert packed == PackedCodes.pack(codes.astype(np.float32), value_bits=8)


def test_sums_of_duplicates_do_not_wrap_around():
    codes = sp.csr_array((np.array([100, 100], np.int8), np.array([1, 1]), np.array([0, 2])), shape=(1, 4))
    np.testing.assert_array_equal(PackedCodes.pack(codes, value_bits=16).to_csr().toarray(), [[0, 200, 0, 0]])


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint32, np.uint64])
def test_pairs_with_indices_of_any_integer_type(dtype):
    indices, values = np.array([[3, 1], [0, 2]]), np.array([[1.0, -2.0], [0.5, 0.25]])
    expected = PackedCodes.from_topk(indices, values, 8, quantizer=UNIFORM)
    assert PackedCodes.from_topk(indices.astype(dtype), values, np.int64(8), quantizer=UNIFORM) == expected


@pytest.mark.parametrize("k", [1, 2, 31, 128, 129, 300])
@pytest.mark.parametrize("value_bits", [1, 4, 16])
def test_long_rows(k, value_bits):
    """Rows on both sides of the switch from counting to sorting; constant rows are all ties."""
    codes = random_codes(20, 400, k, seed=k)
    codes.data[: codes.indptr[5]] = 0.25
    packed = PackedCodes.pack(codes, value_bits=value_bits, k=k)
    assert same_support(packed.to_csr(), codes)
    assert PackedCodes.pack(packed.to_csr(), k=k, quantizer=packed.quantizer) == packed


@pytest.mark.parametrize("m", [1, 2, 3, 4096, 65537, 2**20])
def test_widths_of_the_code_space(m):
    codes = random_codes(8, m, min(m, 7), seed=1)
    codes = sp.vstack([codes, sp.csr_matrix(([1.0], ([0], [m - 1])), shape=(1, m))]).tocsr()
    packed = PackedCodes.pack(codes, value_bits=16)
    np.testing.assert_allclose(packed.to_csr().data, codes.data, atol=1e-4 * np.abs(codes.data).max())
    assert same_support(packed.to_csr(), codes)


def test_bytes_and_precision_at_the_target():
    """At k = 32 and m = 4096 four bits cost 2.0625 bytes per nonzero and keep the cosine above 0.999."""
    codes = random_codes(3000, 4096, 32, seed=2, short=False)
    packed = PackedCodes.pack(codes)
    assert packed.bytes_per_row == 66
    assert packed.rows.nbytes + 2 * len(packed) == 3000 * 66
    back = packed.to_csr()
    cosine = np.asarray(back.multiply(codes).sum(axis=1)).ravel() / (
        sp.linalg.norm(back, axis=1) * sp.linalg.norm(codes, axis=1)
    )
    assert cosine.mean() > 0.999
    one_codebook = PackedCodes.pack(codes, kind="uniform").to_csr()
    plain = np.asarray(one_codebook.multiply(codes).sum(axis=1)).ravel() / (
        sp.linalg.norm(one_codebook, axis=1) * sp.linalg.norm(codes, axis=1)
    )
    assert 1 - cosine.mean() < 0.1 * (1 - plain.mean())


def test_ranked_levels_are_windows_of_one_grid():
    levels = ValueQuantizer.fit(random_codes(500, 256, 16, seed=3), value_bits=4).levels
    assert levels.shape == (16, 8)
    assert (np.diff(levels, axis=1) > 0).all()
    assert (np.diff(levels, axis=0) <= 0).all()
    grid = np.unique(levels)
    for row in levels:
        start = np.searchsorted(grid, row[0])
        np.testing.assert_array_equal(row, grid[start : start + 8])


def test_threads_and_from_topk_agree_with_pack():
    codes = random_codes(20000, 512, 5, seed=5, short=False)
    packed = PackedCodes.pack(codes)
    assert PackedCodes.pack(codes, quantizer=packed.quantizer, n_threads=2) == packed
    assert np.array_equal(packed.to_csr(n_threads=2).data, packed.to_csr().data)
    shuffle = np.random.default_rng(0).permutation(5)
    pairs = codes.indices.reshape(-1, 5)[:, shuffle], codes.data.reshape(-1, 5)[:, shuffle]
    assert PackedCodes.from_topk(*pairs, 512, quantizer=packed.quantizer) == packed
    zeroed = pairs[1].copy()
    zeroed[0] = 0
    assert PackedCodes.from_topk(pairs[0], zeroed, 512, quantizer=packed.quantizer)[0].to_csr().nnz == 0


def test_array_behaviour():
    codes = random_codes(40, 64, 6, seed=6)
    packed = PackedCodes.pack(codes)
    assert len(packed) == 40
    assert packed.shape == (40, 64)
    dense = packed.to_csr().toarray()
    mask = np.arange(40) % 3 == 0
    for key in (slice(3, 9), slice(None, None, -2), [5, -1, 5], mask, 7, np.int64(-2), []):
        rows = np.atleast_1d(np.arange(40)[np.array([], int) if isinstance(key, list) and not key else key])
        np.testing.assert_array_equal(packed[key].to_csr().toarray(), dense[rows])
    np.testing.assert_array_equal(packed.take([1, 0]).to_csr().toarray(), dense[[1, 0]])
    assert np.shares_memory(packed[2:5].rows, packed.rows)
    blocks = list(packed.iter_blocks(16))
    assert [len(block) for block in blocks] == [16, 16, 8]
    assert PackedCodes.concatenate(blocks) == packed
    assert pickle.loads(pickle.dumps(packed)) == packed
    assert packed != packed[:39]
    assert packed != 3
    assert repr(packed) == "PackedCodes(n=40, n_components=64, k=6, value_bits=4, bytes_per_row=10)"
    assert packed.nbytes == 400 + packed.quantizer.levels.nbytes
    with pytest.raises(TypeError, match="unhashable"):
        hash(packed)
    with pytest.raises(AttributeError, match="immutable"):
        packed._k = 3
    with pytest.raises(ValueError, match="read-only"):
        packed.rows[0] = 0


def test_callers_arrays_are_not_changed():
    codes = sp.csr_matrix((np.array([1.0, 2.0, 0.0, 4.0]), np.array([3, 1, 2, 3]), np.array([0, 4])), shape=(1, 8))
    before = codes.data.copy(), codes.indices.copy()
    packed = PackedCodes.pack(codes, value_bits=16)
    np.testing.assert_array_equal(codes.data, before[0])
    np.testing.assert_array_equal(codes.indices, before[1])
    np.testing.assert_allclose(packed.to_csr().toarray(), [[0, 2, 0, 5, 0, 0, 0, 0]], rtol=1e-4)


@pytest.mark.parametrize(
    ("codes", "arguments", "message"),
    [
        (np.array([[np.nan, 1.0]]), {}, "codes contain NaN, infinity or a value beyond float32"),
        (np.array([[1e300, 1.0]]), {"value_bits": 8}, r"infinity or a value beyond float32 \(row 0\)"),
        (np.array([[1e-35, 0.0]]), {}, r"; rescale them, or encode at norm='unit' \(row 0: 1e-35\)$"),
        (np.array([1.0]), {}, "2-dimensional"),
        (np.array([[1j]]), {}, "real numbers"),
        # SciPy has sparse arrays of one dimension from 1.13 on
        *([(sp.coo_array(np.ones(3)), {}, r"array, got shape \(3,\)")] if sp.coo_array(np.ones(3)).ndim == 1 else []),
        # 2**32 + 3 would be 3 in 32 bits
        (
            sp.csr_array((np.ones(1), np.array([2**32 + 3]), np.array([0, 1])), shape=(1, 8)),
            {},
            "codes must be a valid CSR matrix, got column indices from 4294967299",
        ),
        (np.ones((2, 3)), {"kind": "other"}, "kind must be 'auto', 'ranked', 'uniform' or 'fixed', got 'other'"),
        (np.eye(3), {"kind": "ranked", "quantizer": UNIFORM}, "kind='ranked' contradicts the quantizer's 'uniform'"),
        (np.ones((2, 3)), {"value_bits": True}, "value_bits must be an int from 1 to 16"),
        (np.ones((2, 3)), {"k": 2}, "3 nonzeros, more than k=2"),
        (np.ones((2, 3)), {"k": 4}, "k must be from 1 to n_components=3"),
        (np.ones((2, 3)), {"value_bits": 17}, "^value_bits must be an int from 1 to 16, got 17"),
        (np.ones((2, 3)), {"value_bits": 9, "kind": "ranked"}, "from 1 to 8 for kind='ranked'"),
        (sp.csr_matrix((1, 2**20 + 1)), {}, "n_components must be from 1 to 1048576"),
    ],
)
def test_pack_errors(codes, arguments, message):
    with pytest.raises(ValueError, match=message):
        PackedCodes.pack(codes, **arguments)


def test_matrices_whose_flags_are_stale():
    """SciPy remembers what it found; row starts that go back would have kernels write beyond their arrays."""
    codes = sp.csr_matrix(np.ones((400, 5), np.float32))
    assert codes.has_canonical_format
    codes.indptr[201:] = np.minimum(np.arange(200) * 5, 2000)
    for quantizer in (UNIFORM, None):
        with pytest.raises(ValueError, match="codes must be a valid CSR matrix, got an indptr that decreases"):
            PackedCodes.pack(codes, k=5, quantizer=quantizer)
    codes = sp.csr_matrix([[0, 1.0, 2, 0], [3, 0, 0, 4]])
    assert codes.has_canonical_format
    codes.indices[:] = [1, 1, 0, 3]
    np.testing.assert_allclose(PackedCodes.pack(codes).to_csr().toarray(), [[0, 3, 0, 0], [3, 0, 0, 4]], rtol=0.02)
    np.testing.assert_array_equal(codes.indices, [1, 1, 0, 3])


@pytest.mark.parametrize("form", ["csc", "coo", "bsr"])
def test_matrices_of_other_formats_that_point_outside(form):
    codes = sp.csr_matrix(np.eye(6, dtype=np.float32)).asformat(form)
    (codes.row if form == "coo" else codes.indices)[:] = 100_000
    with pytest.raises(ValueError, match=r"index|indices|exceeds matrix dimension"):
        PackedCodes.pack(codes)


def test_codes_are_no_array_but_are_split_as_one():
    packed = PackedCodes.pack(random_codes(20, 16, 3, seed=7), k=3)
    for use in (np.asarray, NearestNeighbors().fit):
        with pytest.raises(TypeError, match=r"^PackedCodes are no NumPy array; unpack them with to_csr\(\)$"):
            use(packed)
    train, test = train_test_split(packed, random_state=0)
    rows = train_test_split(np.arange(20), random_state=0)
    assert train == packed[rows[0]]
    assert test == packed[rows[1]]


def test_other_errors():
    packed = PackedCodes.pack(random_codes(4, 16, 3, seed=7), k=3)
    other = PackedCodes.pack(random_codes(4, 16, 3, seed=7), k=3, value_bits=5)
    with pytest.raises(ValueError, match="differs from stores\\[0\\] in quantizer"):
        PackedCodes.concatenate([packed, other])
    with pytest.raises(ValueError, match="at least one"):
        PackedCodes.concatenate([])
    with pytest.raises(IndexError, match="row 4 is out of range for 4 rows"):
        packed[4]
    with pytest.raises(IndexError, match="indexed by row only"):
        packed[0, 1]
    with pytest.raises(ValueError, match="index twice"):
        PackedCodes.from_topk(np.zeros((1, 3), int), np.ones((1, 3)), 16, quantizer=packed.quantizer)
    with pytest.raises(ValueError, match="outside \\[0, n_components\\)"):
        PackedCodes.from_topk(np.array([[0, 1, 16]]), np.ones((1, 3)), 16, quantizer=packed.quantizer)
    with pytest.raises(ValueError, match="k must be 3"):
        PackedCodes.pack(np.eye(4), k=2, quantizer=packed.quantizer)
    with pytest.raises(TypeError, match=r"stores\[1\] must be PackedCodes, got ndarray; pack it first"):
        PackedCodes.concatenate([packed, np.ones((1, 16))])
    with pytest.raises(TypeError, match="quantizer must be a ValueQuantizer or None, got 'uniform'"):
        PackedCodes.pack(np.eye(4), quantizer="uniform")
    with pytest.raises(TypeError, match="quantizer must be a ValueQuantizer, got None"):
        PackedCodes.from_topk(np.array([[0, 1, 2]]), np.ones((1, 3)), 16, quantizer=None)
    with pytest.raises(TypeError, match=r"k must be an int, got 3\.0"):
        PackedCodes.pack(np.eye(4), k=3.0)
    with pytest.raises(IndexError, match=r"rows must be chosen by an int, .* got bool"):
        packed[True]
    for rows in ([1.7], [True, False, True, False]):
        with pytest.raises(IndexError, match="indices must be integers, got"):
            packed.take(rows)
    for k in (0, -1, 2.5, True):
        with pytest.raises(ValueError, match=f"k must be an int of at least 1 or None, got {k}"):
            ValueQuantizer.fit(np.eye(4), k=k)
    with pytest.raises(ValueError, match="no ranked codebook"):
        ValueQuantizer("ranked", 2, np.array([[2.0, 1.0]], np.float32))


def test_residual_travels_with_the_rows():
    rng = np.random.default_rng(8)
    residuals = rng.standard_normal((600, 16)) @ rng.standard_normal((16, 16))
    packed = PackedCodes.pack(random_codes(600, 64, 4, seed=8))
    errors = {}
    for method in ("pq", "opq"):
        quantizer = ResidualQuantizer.fit(residuals, 4, method=method, n_iter=5)
        errors[method] = np.mean((quantizer.decode(quantizer.encode(residuals)) - residuals) ** 2)
    assert errors["opq"] < errors["pq"] < np.mean(residuals**2)
    store = packed.with_residual(quantizer.encode(residuals), quantizer)
    assert store.bytes_per_row == packed.bytes_per_row + 4
    assert PackedCodes.concatenate([store[:100], store[100:]]) == store
    np.testing.assert_array_equal(store[[5, 3]].residual_codes, store.residual_codes[[5, 3]])
    assert pickle.loads(pickle.dumps(store)) == store
    assert store != packed
    with pytest.raises(ValueError, match="residual_codes must be uint8 of shape"):
        packed.with_residual(store.residual_codes[:10], quantizer)


@pytest.mark.parametrize("factor", [1e-300, 1e-38, 1e-25, 1e20, 1e200])
def test_residuals_of_rows_of_any_length(factor):
    rng = np.random.default_rng(9)
    components = rng.standard_normal((32, 8)).astype(np.float32)
    X = rng.standard_normal((300, 8)).astype(np.float32)
    packed = PackedCodes.pack(random_codes(300, 32, 4, seed=9))
    expected = packed.with_residual_of(X, components, n_bytes=4)
    quantizer = expected.residual_quantizer
    scaled = X.astype(np.float64) * factor
    for rows in (scaled, scaled.astype(np.float32)) if 1e-38 <= factor <= 1e38 else (scaled,):
        codes = packed.with_residual_of(rows, components, quantizer=quantizer).residual_codes
        np.testing.assert_array_equal(codes, expected.residual_codes)
    X[7, 2] = np.nan
    with pytest.raises(ValueError, match="X must be finite in float32, but is not in the rows from 0 to 299"):
        packed.with_residual_of(X, components, quantizer=quantizer)
    with pytest.raises(ValueError, match="residuals must be finite, got NaN or infinity"):
        quantizer.encode(X)
    assert quantizer.decode(np.empty((0, 4), np.uint8)).shape == (0, 8)


@pytest.mark.parametrize("exponent", [-100, -80, 70, 120])
@pytest.mark.parametrize("method", ["pq", "opq"])
def test_residuals_of_any_scale_are_quantized_alike(method, exponent):
    residuals = np.random.default_rng(10).standard_normal((600, 8)).astype(np.float32)
    expected = ResidualQuantizer.fit(residuals, 4, method=method, n_iter=3)
    scaled = np.ldexp(residuals, exponent)
    quantizer = ResidualQuantizer.fit(scaled, 4, method=method, n_iter=3)
    np.testing.assert_allclose(np.ldexp(quantizer.centroids, -exponent), expected.centroids, rtol=1e-4, atol=1e-4)
    codes = quantizer.encode(scaled)
    if method == "pq":
        np.testing.assert_array_equal(codes, expected.encode(residuals))
    errors = np.ldexp(quantizer.decode(codes), -exponent) - residuals
    assert np.linalg.norm(errors) < 0.2 * np.linalg.norm(residuals)
    # one row far longer than those it was learned on changes no other
    scaled[0] = 2.0**125
    np.testing.assert_array_equal(quantizer.encode(scaled)[1:], codes[1:])


def test_the_nearest_centroid_of_points_of_any_length():
    rng = np.random.default_rng(11)
    centroids = rng.standard_normal((1, 16, 4)).astype(np.float32)
    points = rng.standard_normal((200, 4)).astype(np.float32)
    for centroid_exponent in (-110, -40, 0, 40, 110):
        for exponent in (-110, -3, 0, 50, 110):
            book, rows = np.ldexp(centroids, centroid_exponent), np.ldexp(points, exponent)
            exact = book[0].astype(np.float64)
            # half of what the squared distance leaves of the squared length of the point
            nearness = rows @ exact.T - 0.5 * np.einsum("ij,ij->i", exact, exact)
            chosen = nearness[np.arange(200), ResidualQuantizer(book).encode(rows)[:, 0]]
            best = nearness.max(axis=1)
            assert (best - chosen <= 1e-6 * np.abs(nearness).max(axis=1)).all()


def test_residuals_of_long_rows_at_their_length():
    rng = np.random.default_rng(12)
    components = rng.standard_normal((32, 8)).astype(np.float32)
    codes = random_codes(300, 32, 4, seed=9) * 2.0**66
    X = np.ldexp(rng.standard_normal((300, 8)).astype(np.float32), 66)
    packed = PackedCodes.pack(codes)
    refined = packed.with_residual_of(X, components, n_bytes=4, normalize=False)
    left = X - packed.to_csr() @ components
    missing = left - refined.residual_quantizer.decode(refined.residual_codes)
    assert np.linalg.norm(missing.astype(np.float64)) < 0.2 * np.linalg.norm(left.astype(np.float64))


def test_residual_errors():
    residuals = np.random.default_rng(13).standard_normal((40, 8)).astype(np.float32)
    for n_bytes in (2.0, True, "4", 9, 0):
        with pytest.raises(ValueError, match=rf"n_bytes must be an int in \[1, 8\], the dimensions; got {n_bytes!r}"):
            ResidualQuantizer.fit(residuals, n_bytes)
    for n_iter in (-3, 1.5, None):
        with pytest.raises(ValueError, match=f"n_iter must be an int of at least 0, got {n_iter}"):
            ResidualQuantizer.fit(residuals, 4, n_iter=n_iter)
    long = np.full((40, 8), 2e38, np.float32)
    with pytest.raises(ValueError, match=r"residuals must have norms of at most 3\.37e\+38, got 5\.66e\+38; rescale"):
        ResidualQuantizer.fit(long, 4)
    quantizer = ResidualQuantizer.fit(residuals, 4, n_iter=2)
    with pytest.raises(ValueError, match="residuals must have norms of at most"):
        quantizer.encode(long)
    with pytest.raises(ValueError, match=r"query must be a vector of 8 dimensions, got shape \(2, 8\)"):
        quantizer.tables(residuals[:2])
    for query in (np.full(8, np.nan), long[0]):
        with pytest.raises(ValueError, match="query must be finite, as must be its products with the centroids"):
            quantizer.tables(query)
    packed = PackedCodes.pack(random_codes(40, 16, 4, seed=8))
    codes = quantizer.encode(residuals)
    with pytest.raises(ValueError, match="residual_codes must be below the 40 centroids, got 40"):
        packed.with_residual(np.full((40, 4), 40, np.uint8), quantizer)
    with pytest.raises(ValueError, match=r"residual_codes must be uint8 of shape \(n, 4\), got int64 \(40, 4\)"):
        packed.with_residual(codes.astype(np.int64).tolist(), quantizer)
    for other in (None, "pq"):
        with pytest.raises(TypeError, match=f"residual_quantizer must be a ResidualQuantizer, got {other!r}"):
            packed.with_residual(None, other)
    with pytest.raises(TypeError, match="quantizer must be a ResidualQuantizer or None, got 'pq'"):
        packed.with_residual_of(residuals, np.ones((16, 8)), quantizer="pq")


@pytest.mark.parametrize("max_rows", [32_768, 100], ids=["all rows", "sample"])
def test_random_states_of_residual_quantizers(monkeypatch, max_rows):
    monkeypatch.setattr(_residual, "_MAX_TRAINING_ROWS", max_rows)
    residuals = np.random.default_rng(13).standard_normal((400, 8)).astype(np.float32)

    def centroids(random_state):
        return ResidualQuantizer.fit(residuals, 4, n_iter=1, random_state=random_state).centroids

    of_seed = centroids(np.int64(5))
    rng = np.random.RandomState(5)
    np.testing.assert_array_equal(centroids(rng), of_seed)
    assert not np.array_equal(centroids(rng), of_seed)  # it goes on from where it was
    assert not np.array_equal(centroids(None), centroids(None))
    packed, components = PackedCodes.pack(random_codes(400, 16, 4, seed=8)), np.ones((16, 8))
    for random_state in (np.random.RandomState(5), None):
        refined = packed.with_residual_of(residuals, components, n_bytes=2, n_iter=1, random_state=random_state)
        assert refined.residual_codes.shape == (400, 2)
    for random_state in (-1, 2**32, True, 1.0, "a"):
        with pytest.raises(ValueError, match=rf"random_state must be an int .*, got {random_state!r}"):
            centroids(random_state)


def test_residual_scores_are_inner_products():
    rng = np.random.default_rng(9)
    residuals = rng.standard_normal((300, 8)).astype(np.float32)
    quantizer = ResidualQuantizer.fit(residuals, 2, n_iter=3)
    codes = quantizer.encode(residuals)
    query = rng.standard_normal(8).astype(np.float32)
    scores = quantizer.tables(query)[np.arange(2), codes].sum(axis=1)
    np.testing.assert_allclose(scores, quantizer.decode(codes) @ query, rtol=1e-4, atol=1e-4)
