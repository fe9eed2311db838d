"""Packed codes without a scale per row: the laws of other packed codes, a row's bytes, and what cannot be packed so."""

import pickle

import numpy as np
import pytest
import scipy.sparse as sp
from conftest import make_embeddings
from hypothesis import given, settings
from hypothesis import strategies as st
from test_packed import naive_decode, same_support
from test_packed_search import model
from test_splitting import held_out_error

from skcompressae import CodeNearestNeighbors, CompresSAETransformer, PackedCodes
from skcompressae.exceptions import CodesFormatError
from skcompressae.packed import ByteSplit, ValueQuantizer, split_bytes
from skcompressae.packed._quantizer import stored_quantizer


def codes_without_zero_rows(n, m, k, seed=0, short=True):
    """Return float32 CSR of rows of about one length, of one to k signed nonzeros."""
    rng = np.random.default_rng(seed)
    dense = np.zeros((n, m), np.float32)
    for row in dense:
        chosen = rng.choice(m, size=rng.integers(1, k + 1) if short else k, replace=False)
        row[chosen] = rng.uniform(0.2, 1, chosen.size) * rng.choice([-1, 1], chosen.size)
    return sp.csr_matrix(dense)


@pytest.fixture(scope="module")
def hybrid():
    X, decoder, codes = model(np.random.default_rng(3), n_rows=400)
    packed = PackedCodes.pack(codes, kind="fixed")
    return X, decoder, packed.with_residual_of(X, decoder, n_bytes=4, n_iter=3)


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 12),
    k=st.integers(1, 9),
    spare=st.sampled_from([0, 1, 7, 300]),
    value_bits=st.integers(1, 8),
    seed=st.integers(0, 2**16),
    short=st.booleans(),
)
def test_round_trip_laws(n, k, spare, value_bits, seed, short):
    codes = codes_without_zero_rows(n, k + spare, k, seed, short)
    packed = PackedCodes.pack(codes, value_bits=value_bits, k=k, kind="fixed")
    back = packed.to_csr()
    assert same_support(back, codes)
    np.testing.assert_array_equal(np.sign(back.data), np.sign(codes.data))
    np.testing.assert_array_equal(back.toarray(), naive_decode(packed))
    assert PackedCodes.pack(back, k=k, quantizer=packed.quantizer) == packed
    assert set(np.abs(back.data)) <= set(packed.quantizer.levels.ravel())
    assert PackedCodes.from_archive(packed.to_archive()) == packed
    assert packed.bytes_per_row == packed.rows.shape[1]


def test_values_are_the_nearest_levels_of_their_ranks():
    codes = codes_without_zero_rows(3_000, 40, 5, short=False)
    packed = PackedCodes.pack(codes, value_bits=6, kind="fixed")
    magnitudes = -np.sort(-np.abs(codes.data.reshape(-1, 5)), axis=1)
    found = -np.sort(-np.abs(packed.to_csr().data.reshape(-1, 5)), axis=1)
    steps = np.diff(packed.quantizer.levels, axis=1).max(axis=1)
    is_inside = (magnitudes >= packed.quantizer.levels[:, 0]) & (magnitudes <= packed.quantizer.levels[:, -1])
    assert is_inside.mean() > 0.95
    assert (np.abs(found - magnitudes) <= 0.51 * steps)[is_inside].mean() > 0.99  # the others were not to rise
    np.testing.assert_array_equal(packed.scales, np.ones(3_000, np.float32))


def test_stores_behave_as_others(hybrid, tmp_path):
    _, _, packed = hybrid
    plain = packed._with(packed.rows, packed._scales, None, None)
    for store in (packed, plain):
        store.save(tmp_path / "codes.skc")
        for mmap in (False, True):
            assert PackedCodes.load(tmp_path / "codes.skc", mmap=mmap) == store
        store[:7].append_to(tmp_path / "codes.skc")
        assert PackedCodes.load(tmp_path / "codes.skc") == PackedCodes.concatenate([store, store[:7]])
        assert PackedCodes.from_archive(store.to_archive()) == store
        assert pickle.loads(pickle.dumps(store)) == store
        assert store[::3] == store.take(np.arange(0, len(store), 3))
        assert PackedCodes.from_arrow(store.to_arrow()) == store
    ranked = PackedCodes.pack(plain.to_csr(), value_bits=4)
    assert plain.bytes_per_row == ranked.bytes_per_row - 2
    assert plain.nbytes == len(plain) * plain.bytes_per_row + plain.quantizer.levels.nbytes
    assert len(pickle.dumps(plain)) - len(pickle.dumps(plain[:200])) == pytest.approx(200 * plain.bytes_per_row, abs=20)
    sizes = []
    for store in (plain, plain[:200]):
        store.save(tmp_path / "plain.skc")
        sizes.append((tmp_path / "plain.skc").stat().st_size)
    assert sizes[0] - sizes[1] == pytest.approx(200 * plain.bytes_per_row, abs=128)  # sections begin at whole lines


@pytest.mark.parametrize("mode", ["sparse", "reconstructed", "asymmetric"])
def test_searches_find_what_unpacked_codes_find(hybrid, mode, tmp_path):
    X, decoder, packed = hybrid
    queries = X[:30] if mode == "asymmetric" else packed[:30].to_csr()
    expected = CodeNearestNeighbors(7, compressor=decoder, mode=mode).fit(packed.to_csr()).kneighbors(queries)
    index = CodeNearestNeighbors(7, compressor=decoder, mode=mode).fit(packed[:100]).partial_fit(packed[100:])
    index.save(tmp_path / "index")
    for found in (index, CodeNearestNeighbors.load(tmp_path / "index")):
        distances, indices = found.kneighbors(queries)
        np.testing.assert_array_equal(indices, expected[1])
        np.testing.assert_allclose(distances, expected[0], rtol=0, atol=1e-6)


def test_residual_codes_mend_what_levels_lose(hybrid, tmp_path):
    X, decoder, packed = hybrid
    sums = packed.to_csr() @ decoder + packed.residual_quantizer.decode(packed.residual_codes)
    expected = X[:20] @ (sums / np.linalg.norm(sums, axis=1, keepdims=True)).T
    index = CodeNearestNeighbors(5, compressor=decoder, rerank=len(packed)).fit(packed)
    index.save(tmp_path / "index")
    for found in (index, CodeNearestNeighbors.load(tmp_path / "index")):
        distances, indices = found.kneighbors(X[:20])
        np.testing.assert_allclose(1 - distances, -np.sort(-expected, axis=1)[:, :5], atol=2e-6)
        np.testing.assert_allclose(np.take_along_axis(expected, indices, axis=1), 1 - distances, atol=2e-6)


def test_a_compressor_packs_and_splits_without_scales():
    X = make_embeddings(2_000)
    compressor = CompresSAETransformer(64, k=6, norm=None, max_iter=100, random_state=0, device="cpu").fit(X)
    packed = compressor.transform_packed(X, kind="fixed")
    assert packed.quantizer.kind == "fixed"
    assert packed.bytes_per_row == compressor.transform_packed(X).bytes_per_row - 2
    codes = compressor.transform(X)
    packed_values, values = packed.to_csr().toarray(), codes.toarray()
    norms = np.linalg.norm(packed_values, axis=1) * np.linalg.norm(values, axis=1)
    cosines = np.einsum("ij,ij->i", packed_values, values) / norms
    assert np.mean(cosines) > 0.99
    more = compressor.transform_packed(X[:50], quantizer=packed.quantizer)
    assert more == packed[:50]
    for n_bytes in (5, 12):
        split = split_bytes(compressor, X, n_bytes, kind="fixed")
        ranked = split_bytes(compressor, X, n_bytes)
        with_two_more = ByteSplit(ranked.k, (ranked.residual_bytes or 0) + 2)
        assert held_out_error(compressor, X, with_two_more) < 1.2 * held_out_error(compressor, X, ranked)
        model = compressor._as_it_is().set_params(k=split.k)
        small = model.transform_packed(X, kind="fixed")
        if split.residual_bytes:
            small = small.with_residual_of(X, compressor.components_, n_bytes=split.residual_bytes)
        assert small.bytes_per_row == n_bytes
    with pytest.raises(ValueError, match="no scale per row, so norm must be None or 'unit'; got norm='input'"):
        compressor._as_it_is().set_params(norm="input").transform_packed(X, kind="fixed")
    with pytest.raises(ValueError, match="no scale per row, so norm must be None or 'unit'; got norm='input'"):
        compressor._as_it_is().set_params(norm="input").transform_packed(X, quantizer=packed.quantizer)
    with pytest.raises(ValueError, match=r"codes have a row of zeros, which .* kind='ranked' \(row 2\)"):
        compressor.transform_packed(np.vstack([X[:2], np.zeros_like(X[:1])]), kind="fixed")


@pytest.mark.parametrize("length", [1.0, 0.01, 0.002])
@pytest.mark.parametrize("k", [1, 3, 64])
def test_values_of_very_different_length(k, length):
    """Levels keep their least distance, and the largest values their precision."""
    codes = codes_without_zero_rows(200, 300, k, short=False)
    codes.data *= np.exp(3 * np.random.default_rng(1).standard_normal(codes.nnz)).astype(np.float32)
    norms = np.sqrt(codes.power(2).sum(axis=1).A1)
    codes.data *= np.repeat(length / norms, k).astype(np.float32)
    packed = PackedCodes.pack(codes, value_bits=6, kind="fixed")
    assert same_support(packed.to_csr(), codes)
    assert packed.quantizer.levels.min() >= 2.0**-20
    assert abs(packed.to_csr() - codes).max() < 0.2 * length
    assert PackedCodes.pack(packed.to_csr(), quantizer=packed.quantizer) == packed


def test_what_cannot_be_packed_without_scales():
    codes = codes_without_zero_rows(50, 20, 4)
    packed = PackedCodes.pack(codes, kind="fixed")
    longer = codes.copy()
    longer.data[longer.indptr[7] :] *= 100
    with pytest.raises(ValueError, match=r"are longer than what the quantizer of kind='fixed' .* \(row 7: "):
        PackedCodes.pack(longer, k=packed.k, quantizer=packed.quantizer)
    with pytest.raises(ValueError, match="kind='fixed' needs codes of rows of about unit norm, got a value of"):
        ValueQuantizer.fit(1e5 * codes, kind="fixed")
    with pytest.raises(ValueError, match="value_bits must be an int from 1 to 8 for kind='fixed', got 9"):
        ValueQuantizer.fit(codes, value_bits=9, kind="fixed")
    parts = {"n_components": 20, "k": packed.k, "quantizer": packed.quantizer}
    with pytest.raises(ValueError, match="scales must be None for a quantizer of kind 'fixed'"):
        PackedCodes(packed.rows, packed._scales, **parts)
    assert PackedCodes(packed.rows, None, **parts) == packed
    ranked = PackedCodes.pack(codes)
    with pytest.raises(TypeError, match="scales must be a NumPy array, got a NoneType"):
        PackedCodes(ranked.rows, None, n_components=20, k=ranked.k, quantizer=ranked.quantizer)
    assert PackedCodes.pack(sp.csr_matrix((0, 20), dtype=np.float32), kind="fixed").shape == (0, 20)


def test_files_that_say_another_kind_are_refused(tmp_path, monkeypatch):
    codes = codes_without_zero_rows(50, 20, 4)
    packed = PackedCodes.pack(codes, kind="fixed")
    others = ValueQuantizer("ranked", 4, packed.quantizer.levels)
    monkeypatch.setattr("skcompressae.packed._files.stored_quantizer", lambda *given: others)
    packed.save(tmp_path / "codes.skc")
    with pytest.raises(CodesFormatError, match="scales"):
        PackedCodes.load(tmp_path / "codes.skc")
    monkeypatch.undo()
    assert stored_quantizer("fixed", 4, lambda: packed.quantizer.levels) == packed.quantizer
    assert packed.quantizer != others
