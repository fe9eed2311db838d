"""How bytes are split between nonzeros and what they leave."""

import copy
import warnings

import numpy as np
import pytest
from conftest import make_embeddings
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skcompressae import CodeNearestNeighbors, CompresSAETransformer
from skcompressae.metrics import exact_neighbors, neighbor_recall_score
from skcompressae.packed import ByteSplit, ResidualQuantizer, _splitting, split_bytes
from skcompressae.packed._rows import row_bytes


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
        quantizer = ResidualQuantizer.fit(left, split.residual_bytes, n_iter=10)
        others = others - quantizer.decode(quantizer.encode(others))
    return float(np.mean(others**2))


@pytest.mark.parametrize("n_bytes", [5, 12, 24])
def test_no_other_split_is_much_better(projecting, n_bytes):
    compressor, X = projecting
    found = split_bytes(compressor, X, n_bytes)
    tried = {*range(1, 7), *range(8, 21, 3), found.k}
    sizes = {k: compressor.set_params(k=k).transform_packed(X[:5]).bytes_per_row for k in tried}
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
    before, attributes = compressor.get_params(), dict(vars(compressor))
    first = split_bytes(compressor, X, 12, random_state=3)
    assert first == split_bytes(compressor, list(X), 12, random_state=np.random.RandomState(3))
    assert compressor.get_params() == before
    assert all(vars(compressor)[name] is value for name, value in attributes.items())
    assert [type(part) for part in split_bytes(compressor, X, np.uint8(12), random_state=None)] == [int, int, str]


def test_residual_codes_have_no_more_bytes_than_features(projecting):
    compressor, X = projecting
    assert split_bytes(compressor, X, 200).residual_bytes == 24


def test_one_nonzero_that_fits_is_all_there_is(projecting):
    compressor, X = projecting
    size = compressor.set_params(k=1).transform_packed(X[:5]).bytes_per_row
    compressor.set_params(k=6)
    assert split_bytes(compressor, X, size) == (1, None, "auto")
    with pytest.raises(ValueError, match=f"n_bytes must be at least {size}, a nonzero and a scale; got {size - 1}"):
        split_bytes(compressor, X, size - 1)
    with pytest.raises(ValueError, match=f"n_bytes must be at least {size - 2}, a nonzero; got {size - 3}"):
        split_bytes(compressor, X, size - 3, kind="fixed")


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
    for not_one in (None, make_pipeline(StandardScaler(), compressor)):
        with pytest.raises(TypeError, match="compressor must be a CompresSAETransformer, got"):
            split_bytes(not_one, X, 12)
    with pytest.raises(ValueError, match="X must have at least 2 rows whose codes can be packed, got 1"):
        split_bytes(compressor, X[:1], 12)
    with pytest.raises(ValueError, match="value_bits must be an int from 1 to 16, got 17"):
        split_bytes(compressor, X, 12, value_bits=17)
    with pytest.raises(ValueError, match="kind must be 'auto', 'ranked', 'uniform', 'fixed' or 'best', got 'worst'"):
        split_bytes(compressor, X, 12, kind="worst")
    for n_neighbors in (0, 2.5, True, None):
        with pytest.raises(ValueError, match="n_neighbors must be an int of at least 1, got"):
            split_bytes(compressor, X, 12, kind="best", n_neighbors=n_neighbors)
    with pytest.raises(ValueError, match="X has 5 features, but CompresSAETransformer is expecting 24"):
        split_bytes(compressor, X[:, :5], 12)
    with pytest.raises(ValueError, match="random_state must be an int"):
        split_bytes(compressor, X, 12, random_state="now")
    with pytest.raises(NotFittedError):
        split_bytes(CompresSAETransformer(), X, 12)
    assert isinstance(split_bytes(compressor, X[:2], 12), ByteSplit)


@pytest.mark.parametrize(
    ("n_bytes", "n_components", "n_features"), [(5, 64, 24), (40, 128, 32), (300, 4096, 100), (9, 8, 50)]
)
def test_what_is_tried_fits_and_holds_the_edges(n_bytes, n_components, n_features):
    def bytes_left(k):
        return n_bytes - 2 - row_bytes(n_components, k, 4)

    tried = _splitting._numbers_of_nonzeros(bytes_left, n_components, n_features)
    most = min(n_components, 2 * n_features)
    fitting = [k for k in range(1, most + 1) if bytes_left(k) >= 0]
    assert tried[0] == 1
    assert tried[-1] == fitting[-1]
    assert set(tried) <= set(fitting)
    for n_left in (n_features // 2, n_features):
        leaving = [k for k in fitting if bytes_left(k) >= n_left]
        assert not leaving or leaving[-1] in tried


def test_the_least_of_several_valleys_is_found():
    """Where residual codes have a byte for each feature, the error falls at once."""
    X = np.random.RandomState(0).standard_normal((2500, 32)).astype(np.float32)
    parameters = {"n_components": 128, "k": 6, "norm": None, "max_iter": 120, "random_state": 0, "device": "cpu"}
    compressor = CompresSAETransformer(**parameters).fit(X)
    assert split_bytes(compressor, X, 40) == (4, 32, "auto")


def test_frames_are_split_without_warnings(embeddings):
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(embeddings, columns=[f"x{i}" for i in range(embeddings.shape[1])])
    parameters = {"n_components": 48, "k": 4, "norm": None, "max_iter": 30, "random_state": 0, "device": "cpu"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compressor = CompresSAETransformer(**parameters).fit(frame)
        split = split_bytes(compressor, frame, 10)
    assert list(compressor.feature_names_in_) == list(frame.columns)
    with pytest.raises(ValueError, match="feature names"):
        split_bytes(compressor, frame.rename(columns=str.upper), 10)
    assert split == split_bytes(CompresSAETransformer(**parameters).fit(embeddings), embeddings, 10)


def test_rows_that_cannot_be_packed_are_left_out(embeddings):
    parameters = {"n_components": 48, "k": 4, "max_iter": 30, "random_state": 0, "device": "cpu"}
    compressor = CompresSAETransformer(**parameters).fit(embeddings)
    X = embeddings.astype(np.float64)
    X[[3, 50]] = X[[3, 50]] * [[1e35], [1e-35]]
    assert isinstance(split_bytes(compressor, X, 10), ByteSplit)
    with pytest.raises(ValueError, match="X must have at least 2 rows whose codes can be packed, got 1"):
        split_bytes(compressor, X[[3, 50, 51]], 10)


@pytest.mark.filterwarnings("error")
def test_rows_of_narrow_types_are_of_lengths_that_these_do_not_hold(embeddings):
    rows = embeddings.astype(np.float16)
    assert [len(part) for part in _splitting._parts(_splitting._drawn(rows, "input", 0, "auto")[0])] == [320, 80]
    rows = np.zeros((5, 3), dtype=np.int8)
    rows[:, 1] = -128
    assert [len(part) for part in _splitting._parts(_splitting._drawn(rows, "input", 0, "auto")[0])] == [4, 1]


def found_share(compressor, split, rows, queries, n_neighbors):
    """How many of the nearest rows the codes of a split find, from the public pieces."""
    model = copy.copy(compressor).set_params(k=split.k)
    packed = model.transform_packed(rows, kind=split.kind)
    if split.residual_bytes:
        packed = packed.with_residual_of(rows, model.components_, n_bytes=split.residual_bytes)
    search = CodeNearestNeighbors(
        n_neighbors, compressor=model, metric="geometric", rerank=len(rows) if split.residual_bytes else None
    ).fit(packed)
    true = exact_neighbors(rows, queries, n_neighbors)
    return neighbor_recall_score(true, search.kneighbors(queries, return_distance=False))


def test_the_best_kind_finds_most():
    X = make_embeddings(1500, n_features=32, n_topics=40, seed=3)
    rows, queries, n_bytes = X[:1300], X[1300:], 9
    compressor = CompresSAETransformer(128, k=6, norm=None, max_iter=100, random_state=0, device="cpu").fit(rows)
    splits = {kind: split_bytes(compressor, rows, n_bytes, kind=kind) for kind in ("auto", "fixed")}
    assert all(split.kind == kind for kind, split in splits.items())
    best = split_bytes(compressor, rows, n_bytes, kind="best", n_neighbors=20)
    assert best in splits.values()
    found = {split: found_share(compressor, split, rows, queries, 20) for split in splits.values()}
    assert found[best] >= max(found.values()) - 0.01


def test_the_nearest_rows_that_are_found_are_counted(projecting):
    """Where codes keep all there is, all are found; where they say nothing, as many as chance finds."""
    _, X = projecting
    learned, held_out = X[:1600], X[1600:]
    nothing = np.zeros_like(learned), np.zeros_like(held_out)
    assert _splitting._recalls([nothing], learned, held_out, 10) == [1]
    noise = np.random.RandomState(0).standard_normal(X.shape).astype(np.float32)
    unit = X / np.linalg.norm(X, axis=1, keepdims=True)
    all_but_noise = (unit - noise)[:1600], (unit - noise)[1600:]
    found, expected = _splitting._recalls([all_but_noise, nothing], learned, held_out, 20), (20 / len(X), 1)
    assert found == pytest.approx(expected, abs=0.004)
    few = learned[:3], held_out[:2]
    assert _splitting._recalls([few], *few, 100) == [1]  # all there are


def test_what_cannot_be_fixed_keeps_its_scales(projecting, monkeypatch):
    compressor, X = projecting
    expected = split_bytes(compressor, X, 12)
    with_zeros = X.copy()
    with_zeros[::7] = 0
    assert split_bytes(compressor, with_zeros, 12, kind="best").kind == "auto"
    lengthy = copy.copy(compressor).set_params(norm="input")
    assert split_bytes(lengthy, X, 12, kind="best").kind == "auto"
    assert split_bytes(compressor, X, 24, value_bits=9, kind="best").kind == "auto"

    def run(trial, *sample):
        if trial._kind == "fixed":
            raise ValueError("a value beyond its levels")
        trial.split = expected

    monkeypatch.setattr(_splitting._Trial, "run", run)
    assert split_bytes(compressor, X, 12, kind="best") == expected


@pytest.mark.parametrize("n_bytes", [2, 3])
def test_too_few_bytes_for_a_scale_are_split_without_one(projecting, n_bytes):
    compressor, X = projecting
    assert split_bytes(compressor, X, n_bytes, kind="best") == split_bytes(compressor, X, n_bytes, kind="fixed")
    with pytest.raises(ValueError, match="n_bytes must be at least 2, a nonzero; got 1"):
        split_bytes(compressor, X, 1, kind="best")
    with_zeros = X.copy()
    with_zeros[::7] = 0
    for model, rows in ((compressor, with_zeros), (copy.copy(compressor).set_params(norm="input"), X)):
        with pytest.raises(ValueError, match=f"n_bytes must be at least 4, a nonzero and a scale; got {n_bytes}"):
            split_bytes(model, rows, n_bytes, kind="best")


@pytest.mark.parametrize("number", [7, 560, 4800])
def test_a_row_of_zeros_that_cannot_be_fixed_is_told_by_its_number(projecting, number):
    compressor, X = projecting
    rows = np.resize(X, (5000, X.shape[1]))
    rows[number] = 0
    with pytest.raises(ValueError, match=f"^kind='fixed' stores no scale per row, and row {number} of X is all zeros$"):
        split_bytes(compressor, rows, 16, kind="fixed")


@pytest.mark.parametrize("position", [3, 4, 6001, 9999])
def test_a_row_whose_code_cannot_be_packed_is_told_by_its_number(embeddings, position):
    """Of rows that teach quantisers and of others, in the first block that is encoded and later."""
    X = embeddings.copy()
    X[:, -1] = 0
    parameters = {"n_components": 48, "k": 4, "norm": None, "max_iter": 30, "random_state": 0, "device": "cpu"}
    compressor = CompresSAETransformer(**parameters).fit(X)
    compressor.components_[:, -1] = compressor.encoder_weights_[:, -1] = 0
    rows = np.resize(X, (12_000, X.shape[1]))
    number = np.sort(np.random.RandomState(0).permutation(len(rows))[:10_240])[position]
    rows[number] = np.eye(X.shape[1])[-1]  # no latent says anything of it
    with pytest.raises(ValueError, match=rf"^codes have a row of zeros, .*='ranked' \(row {number} of X\)$"):
        split_bytes(compressor, rows, 16, kind="fixed")
