"""How bytes are split between nonzeros and what they leave."""

import copy

import numpy as np
import pytest
from conftest import make_embeddings
from sklearn.exceptions import NotFittedError

from skcompressae import CompresSAETransformer
from skcompressae.packed import ByteSplit, ResidualQuantizer, _splitting, split_bytes


@pytest.fixture(scope="module")
def projecting():
    """A fitted compressor whose codes are projections, and rows like those that it was fitted to."""
    X = make_embeddings(2000)
    return CompresSAETransformer(64, k=6, norm=None, max_iter=150, random_state=0, device="cpu").fit(X), X


def held_out_error(compressor, X, split, n_learned=1500):
    """The squared error of rows that no quantiser has seen, from the public pieces."""
    model = copy.copy(compressor).set_params(k=split.k)
    unit = X / np.linalg.norm(X, axis=1, keepdims=True)
    packed = model.transform_packed(X[:n_learned])
    left, others = (
        rows - model.transform_packed(rows, quantizer=packed.quantizer).to_csr() @ model.components_
        for rows in (unit[:n_learned], unit[n_learned:])
    )
    if split.residual_bytes:
        quantizer = ResidualQuantizer.fit(left, split.residual_bytes)
        others = others - quantizer.decode(quantizer.encode(others))
    return float(np.mean(others**2))


@pytest.mark.parametrize("n_bytes", [5, 12, 24])
def test_no_other_split_is_much_better(projecting, n_bytes):
    compressor, X = projecting
    found = split_bytes(compressor, X, n_bytes)
    sizes = {k: compressor.set_params(k=k).transform_packed(X[:5]).bytes_per_row for k in range(1, 21)}
    compressor.set_params(k=6)
    errors = {
        split: held_out_error(compressor, X, split)
        for split in (ByteSplit(k, min(n_bytes - size, 24) or None) for k, size in sizes.items() if size <= n_bytes)
    }
    assert found in errors
    assert errors[found] <= 1.15 * min(errors.values())
    assert errors[found] < 0.8 * max(errors.values())


def test_mixtures_of_directions_get_nonzeros_and_even_rows_residual_codes():
    random_state = np.random.RandomState(0)
    mixed, chosen = np.zeros((3000, 48)), np.argsort(random_state.uniform(size=(3000, 48)), axis=1)[:, :2]
    np.put_along_axis(mixed, chosen, random_state.uniform(0.5, 1, size=(3000, 2)), axis=1)
    mixtures = mixed @ random_state.standard_normal((48, 40))
    splits = []
    for rows in (mixtures, random_state.standard_normal((3000, 40))):
        X = rows.astype(np.float32)
        compressor = CompresSAETransformer(64, k=4, norm=None, max_iter=300, random_state=0, device="cpu").fit(X)
        splits.append(split_bytes(compressor, X, 8))
    assert splits[0].k >= 3
    assert splits[1].k == 1


def test_the_compressor_is_as_it_was_and_a_seed_repeats(projecting):
    compressor, X = projecting
    before = compressor.get_params()
    first = split_bytes(compressor, X, 12, random_state=3)
    assert first == split_bytes(compressor, list(X), 12, random_state=np.random.RandomState(3))
    assert compressor.get_params() == before
    assert isinstance(split_bytes(compressor, X, np.int64(12), random_state=None), ByteSplit)


def test_residual_codes_have_no_more_bytes_than_features(projecting):
    compressor, X = projecting
    split = split_bytes(compressor, X, 200)
    assert split.residual_bytes is None or split.residual_bytes <= 24


def test_one_nonzero_that_fits_is_all_there_is(projecting):
    compressor, X = projecting
    size = compressor.set_params(k=1).transform_packed(X[:5]).bytes_per_row
    compressor.set_params(k=6)
    assert split_bytes(compressor, X, size) == (1, None)
    with pytest.raises(ValueError, match=f"n_bytes must be at least {size}, a nonzero and a scale; got {size - 1}"):
        split_bytes(compressor, X, size - 1)


def test_models_with_residual_codes_and_other_norms_are_split_too(embeddings):
    for norm in ("input", "unit"):
        parameters = {"n_components": 48, "k": 6, "max_iter": 30, "random_state": 0, "device": "cpu"}
        compressor = CompresSAETransformer(norm=norm, residual_bytes=4, **parameters).fit(embeddings)
        quantizer = compressor.residual_quantizer_
        assert isinstance(split_bytes(compressor, embeddings, 12), ByteSplit)
        assert compressor.residual_bytes == 4
        assert compressor.residual_quantizer_ is quantizer


def test_bad_input_is_refused(projecting, embeddings):
    compressor, X = projecting
    for n_bytes in (12.0, "12", True, None):
        with pytest.raises(TypeError, match="n_bytes must be an int, got"):
            split_bytes(compressor, X, n_bytes)
    with pytest.raises(ValueError, match="X must have at least 2 rows, got 1"):
        split_bytes(compressor, X[:1], 12)
    with pytest.raises(ValueError, match="value_bits must be an int from 1 to 16, got 17"):
        split_bytes(compressor, X, 12, value_bits=17)
    with pytest.raises(ValueError, match="X has 5 features, but CompresSAETransformer is expecting 24"):
        split_bytes(compressor, X[:, :5], 12)
    with pytest.raises(ValueError, match="random_state must be an int"):
        split_bytes(compressor, X, 12, random_state="now")
    with pytest.raises(NotFittedError):
        split_bytes(CompresSAETransformer(), X, 12)
    assert isinstance(split_bytes(compressor, X[:2], 12), ByteSplit)


@pytest.mark.parametrize("start", range(7))
def test_the_walk_ends_in_the_least_of_a_valley_and_sees_no_place_twice(start):
    heights, seen = [9.0, 5.0, 4.0, 4.0, 4.5, 6.0, 8.0], []

    def height(place):
        seen.append(place)
        return heights[place]

    assert heights[_splitting._walk_to_least(height, start, len(heights))] == 4.0
    assert len(seen) == len(set(seen))
    assert _splitting._walk_to_least(height, 0, 1) == 0
