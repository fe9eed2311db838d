"""Residual codes as a parameter of the estimator: learned in fit, added in packing, saved, and of the command line."""

import os
import pickle
import warnings
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
from cli_cases import interrupt_fits, refuses, refuses_usage
from conftest import make_embeddings
from numpy.testing import assert_array_equal
from sklearn.base import clone

from skcompressae import CodeNearestNeighbors, CompresSAETransformer, PackedCodes, _finish_methods, _residual_codes
from skcompressae._cli import _sources
from skcompressae._cli._main import main
from skcompressae._cli._spool import Spool
from skcompressae._fitting import initial_weights, split_rows
from skcompressae._model_format import read_model_file, write_model_file
from skcompressae._residual_codes import learned_quantizer
from skcompressae.exceptions import InterruptedFitWarning, ModelFormatError
from skcompressae.metrics import exact_neighbors, neighbor_recall_score
from skcompressae.packed import ResidualQuantizer, _residual
from skcompressae.packed._residual_rows import residuals_of

SMALL = {"n_components": 48, "k": 4, "max_iter": 60, "random_state": 0, "device": "cpu"}


def small(**parameters):
    return CompresSAETransformer(**{**SMALL, "norm": None, "residual_bytes": 5, **parameters})


@pytest.fixture(scope="module")
def model(embeddings):
    """A fitted compressor with residual codes of 5 bytes, a number that does not divide the 24 features."""
    return small().fit(embeddings)


@pytest.fixture(scope="module")
def packed(model, embeddings):
    return model.transform_packed(embeddings)


def test_training_is_that_without_residual_codes(model, embeddings):
    plain = clone(model).set_params(residual_bytes=None).fit(embeddings)
    assert plain.residual_quantizer_ is None
    for name in ("components_", "encoder_weights_", "latent_rms_", "latent_counts_"):
        assert_array_equal(getattr(model, name), getattr(plain, name))
    assert (model.transform(embeddings) != plain.transform(embeddings)).nnz == 0


def test_packed_codes_carry_what_they_leave(model, packed, embeddings):
    assert packed.residual_codes.shape == (400, 5)
    bare = deepcopy(model).set_params(residual_bytes=None).transform_packed(embeddings)
    assert bare.residual_codes is None
    assert packed == bare.with_residual_of(embeddings, model.components_, quantizer=model.residual_quantizer_)
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    left = unit - packed.to_csr() @ model.components_
    refined = left - packed.residual_quantizer.decode(packed.residual_codes)
    assert np.linalg.norm(refined) < 0.6 * np.linalg.norm(left)


@pytest.mark.parametrize("n_rows", [10, 1000])
def test_the_sample_is_of_training_rows(monkeypatch, embeddings, n_rows):
    seen = []

    def noting(store, X, *given, **named):
        seen.extend(np.asarray(X))
        return residuals_of(store, X, *given, **named)

    monkeypatch.setattr(_residual_codes, "residuals_of", noting)
    monkeypatch.setattr(_residual, "_MAX_TRAINING_ROWS", n_rows)
    small(max_iter=3, validation_fraction=0.1).fit(embeddings)
    training, validation = (embeddings[part] for part in split_of(embeddings, 0.1))
    assert len(seen) == min(n_rows, 360)
    assert {row.tobytes() for row in seen} <= {row.tobytes() for row in training}
    assert not {row.tobytes() for row in seen} & {row.tobytes() for row in validation}
    # not simply the first ones
    assert n_rows > 360 or any(row.tobytes() not in {first.tobytes() for first in training[:10]} for row in seen)


def split_of(embeddings, validation_fraction):
    """The split that a fit with random_state=0 makes: after the starting weights were drawn."""
    random_state = np.random.RandomState(0)
    initial_weights(embeddings, SMALL["n_components"], "data", random_state)
    return split_rows(len(embeddings), validation_fraction, random_state)


def test_reranking_finds_more(model, packed, embeddings):
    queries = make_embeddings(60, seed=1)
    true = exact_neighbors(embeddings, queries, 10)
    recalls = [
        neighbor_recall_score(
            true,
            CodeNearestNeighbors(10, compressor=model, rerank=rerank)
            .fit(packed)
            .kneighbors(queries, return_distance=False),
        )
        for rerank in (None, 100)
    ]
    assert recalls[1] > recalls[0] + 0.1


def test_blocks_packed_with_one_quantizer_are_joined(model, packed, embeddings):
    blocks = [model.transform_packed(X, quantizer=packed.quantizer) for X in (embeddings[:150], embeddings[150:])]
    assert PackedCodes.concatenate(blocks) == packed


def test_residuals_at_the_length_of_the_rows():
    X = make_embeddings() * np.float32(100)
    model = small(norm="input").fit(X)
    packed = model.transform_packed(X)
    left = X - packed.to_csr() @ model.components_
    refined = left - packed.residual_quantizer.decode(packed.residual_codes)
    assert np.linalg.norm(refined) < 0.6 * np.linalg.norm(left)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int8])
def test_rows_of_other_types(dtype, tmp_path):
    X = np.clip(10 * make_embeddings(), -128, 127).astype(dtype)
    np.save(tmp_path / "x.npy", X)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    packed = small(max_iter=20).fit(mapped).transform_packed(mapped)
    as_float32 = small(max_iter=20).fit(X.astype(np.float32)).transform_packed(X.astype(np.float32))
    assert packed.residual_codes.shape == (400, 5)
    assert np.mean(packed.residual_codes == as_float32.residual_codes) > 0.9


def test_copies_and_files(model, packed, embeddings, tmp_path):
    path = tmp_path / "model.safetensors"
    model.save(path)
    for again in (CompresSAETransformer.load(path), pickle.loads(pickle.dumps(model)), deepcopy(model)):
        assert again.residual_quantizer_ == model.residual_quantizer_
        assert again.transform_packed(embeddings) == packed
    assert clone(model).residual_bytes == 5
    plain = small(residual_bytes=None, max_iter=5).fit(embeddings)
    plain.save(path)
    assert CompresSAETransformer.load(path).residual_quantizer_ is None


def test_pickles_of_versions_without_residual_codes(model, embeddings):
    state = dict(model.__getstate__())
    for name in ("residual_bytes", "residual_quantizer_", "residual_norm_"):
        del state[name]
    old = CompresSAETransformer.__new__(CompresSAETransformer)
    old.__setstate__(state)
    assert old.transform_packed(embeddings).residual_codes is None
    with pytest.raises(ValueError, match="fitted without residual codes"):
        old.set_params(residual_bytes=5).transform_packed(embeddings)


@pytest.mark.parametrize(
    ("array", "make", "message"),
    [
        ("residual_centroids", lambda a: a[:, :, :2], "header does not describe a model|not of 24 features"),
        ("residual_rotation", lambda a: 2 * a, "header does not describe a model"),
        ("residual_rotation", lambda a: a.astype(np.float64), "must be float32"),
        ("residual_norm", lambda a: "length", "its residual codes are not of 24 features"),
    ],
)
def test_damaged_residual_codes_of_a_model_file(model, tmp_path, array, make, message):
    path = tmp_path / "model.safetensors"
    model.save(path)
    header, arrays = read_model_file(path, "skcompressae model", 1)
    holder = header["training"] if array == "residual_norm" else arrays
    holder[array] = make(holder[array])
    version = header.pop("format_version")
    del header["format"]
    write_model_file(path, "skcompressae model", version, header, arrays)
    with pytest.raises(ModelFormatError, match=message):
        CompresSAETransformer.load(path)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"residual_bytes": 5.0}, "The 'residual_bytes' parameter of CompresSAETransformer must be"),
        ({"residual_bytes": 6}, "residual_bytes must be 5, as it was when the residual codes were learned; got 6"),
        ({"norm": "unit"}, "norm must be None, as it was when the residual codes were learned; got 'unit'"),
    ],
)
def test_codes_that_were_not_learned_are_refused(model, embeddings, changed, message):
    changed_model = deepcopy(model).set_params(**changed)
    with pytest.raises(ValueError, match=message):
        changed_model.transform_packed(embeddings)
    assert changed_model.set_params(residual_bytes=None).transform_packed(embeddings).residual_codes is None


def test_fewer_nonzeros_than_fitted(model, embeddings):
    packed = deepcopy(model).set_params(k=2).transform_packed(embeddings)
    assert packed.k == 2
    assert packed.residual_codes.shape == (400, 5)


def test_too_many_bytes_are_refused_before_training(embeddings, monkeypatch):
    monkeypatch.setattr("skcompressae._fit_methods.train", lambda *_, **__: pytest.fail("trained"))
    with pytest.raises(ValueError, match="residual_bytes must be an int of at most the 24 features of X; got 25"):
        small(residual_bytes=25).fit(embeddings)
    with pytest.raises(ValueError, match="residual_bytes must be an int of at most the 24 features of X; got True"):
        small(residual_bytes=True).fit(embeddings)


def test_partial_fit_learns_none(model, embeddings):
    with pytest.raises(ValueError, match="residual_bytes must be None in partial_fit"):
        small().partial_fit(embeddings)
    further = deepcopy(model)
    with pytest.raises(ValueError, match="residual_bytes must be None in partial_fit"):
        further.partial_fit(embeddings)
    further.set_params(residual_bytes=None).partial_fit(embeddings)
    assert further.residual_quantizer_ is None
    with pytest.raises(ValueError, match="fitted without residual codes"):
        further.set_params(residual_bytes=5).transform_packed(embeddings)


def interrupt(*_, **__):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    "cut_off_at",
    [(_finish_methods, "learned_quantizer"), (_residual_codes, "residuals_of"), (_finish_methods, "refit_components")],
)
def test_an_interrupt_keeps_the_model_and_the_checkpoint(embeddings, monkeypatch, tmp_path, cut_off_at):
    parameters = {"n_refits": 1, "checkpoint_dir": tmp_path, "checkpoint_interval": 20}
    whole, cut_off = small(n_refits=1).fit(embeddings), small(**parameters)
    with monkeypatch.context() as patch:
        patch.setattr(*cut_off_at, interrupt)
        with pytest.warns(InterruptedFitWarning) as warned:
            cut_off.fit(embeddings)
    assert "before it had learned residual codes (residual_bytes); the model has none" in str(warned[-1].message)
    assert cut_off.residual_quantizer_ is None
    assert os.listdir(tmp_path)
    assert cut_off.fit(embeddings).residual_quantizer_ == whole.residual_quantizer_
    assert not os.listdir(tmp_path)


def test_who_ends_a_fit_early_does_not_wait_for_residual_codes(embeddings, monkeypatch):
    measure_usage, calls = _finish_methods.measure_usage, []

    def interrupted_once(*given, **named):
        calls.append(1)
        if len(calls) == 2:  # the first is of usage_power
            raise KeyboardInterrupt
        return measure_usage(*given, **named)

    monkeypatch.setattr(_finish_methods, "learned_quantizer", lambda *_: pytest.fail("learned"))
    with monkeypatch.context() as patch:
        patch.setattr(_finish_methods, "measure_usage", interrupted_once)
        with pytest.warns(InterruptedFitWarning) as first:
            small(max_iter=5).fit(embeddings)
    interrupt_fits(monkeypatch)
    with pytest.warns(InterruptedFitWarning) as second:
        assert small().fit(embeddings).residual_quantizer_ is None
    for warned in (first, second):
        assert len(warned) == 2
        assert "before it had learned residual codes" in str(warned[1].message)


def test_other_threads_pack_while_a_fit_goes_on(model, embeddings, monkeypatch):
    refitted = deepcopy(model)
    sizes = []

    def packing(*given, **named):
        sizes.append(refitted.transform_packed(embeddings[:20]).residual_codes.shape)
        return learned_quantizer(*given, **named)

    monkeypatch.setattr(_finish_methods, "learned_quantizer", packing)
    assert refitted.set_params(max_iter=5).fit(embeddings).residual_quantizer_ != model.residual_quantizer_
    assert sizes == [(20, 5)]


def test_a_failure_leaves_no_quantizer_of_other_weights(model, embeddings, monkeypatch):
    def fail(*_, **__):
        raise MemoryError

    failed = deepcopy(model)
    monkeypatch.setattr(_finish_methods, "learned_quantizer", fail)
    with pytest.raises(MemoryError):
        failed.fit(embeddings)
    assert failed.residual_quantizer_ is None


@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_a_warning_that_is_an_error_leaves_none_either(model, embeddings, monkeypatch, method):
    failed = deepcopy(model).set_params(residual_bytes=5 if method == "fit" else None)
    interrupt_fits(monkeypatch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(InterruptedFitWarning):
            getattr(failed.set_params(random_state=1, batch_size=50), method)(embeddings)
    assert not np.array_equal(failed.components_, model.components_)
    assert failed.residual_quantizer_ is None


def test_rows_that_cannot_be_packed(embeddings, tmp_path):
    X = embeddings.astype(np.float64) * 1e60
    model = small(norm="input", max_iter=5, checkpoint_dir=tmp_path)
    with pytest.warns(UserWarning, match=r"fit learned no residual codes \(residual_bytes=5\): all rows are too short"):
        model.fit(X)
    assert model.residual_quantizer_ is None
    assert not os.listdir(tmp_path)
    assert model.set_params(norm="unit", residual_bytes=None).transform_packed(X).shape == (400, 48)
    for factor in (1e-27, 1e27):  # which can
        assert small(norm="input", max_iter=5).fit(embeddings * np.float32(factor)).residual_quantizer_ is not None
    few = embeddings.copy()
    few[[3, 50]] *= np.float32(1e-33)
    assert small(norm="input", max_iter=5).fit(few).residual_quantizer_ is not None


def test_zero_rows_only():
    X = np.zeros((300, 6), dtype=np.float32)
    with pytest.warns(UserWarning, match="all 300 rows that it looked at are zero|in no code"):
        packed = small(n_components=8, k=2, max_iter=3).fit(X).transform_packed(X)
    decoded = packed.residual_quantizer.decode(packed.residual_codes)
    np.testing.assert_allclose(decoded, 0, atol=1e-6)


@pytest.mark.parametrize("method", ["pq", "opq"])
@pytest.mark.parametrize("n_bytes", [1, 5, 7, 16, 23, 24])
def test_parts_of_any_number_of_dimensions(method, n_bytes):
    residuals = np.random.default_rng(5).standard_normal((500, 24)).astype(np.float32)
    quantizer = ResidualQuantizer.fit(residuals, n_bytes, method=method, n_iter=3)
    codes = quantizer.encode(residuals)
    decoded = quantizer.decode(codes)
    assert (quantizer.n_bytes, quantizer.n_features) == (n_bytes, 24)
    assert codes.shape == (500, n_bytes)
    assert np.mean((residuals - decoded) ** 2) < 0.95 * np.mean(residuals**2)
    scores = quantizer.tables(residuals[0])[np.arange(n_bytes), codes].sum(axis=1)
    np.testing.assert_allclose(scores, decoded @ residuals[0], rtol=1e-4, atol=1e-4)
    assert pickle.loads(pickle.dumps(quantizer)) == quantizer


def test_more_bytes_lose_less():
    residuals = np.random.default_rng(6).standard_normal((900, 10)).astype(np.float32)
    errors = []
    for n_bytes in range(1, 11):
        quantizer = ResidualQuantizer.fit(residuals, n_bytes, n_iter=4)
        errors.append(np.mean((residuals - quantizer.decode(quantizer.encode(residuals))) ** 2))
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("factor", [1e-40, 1e-22, 1e22, 1e37])
def test_residuals_of_any_scale(factor):
    residuals = np.random.default_rng(6).standard_normal((500, 24)).clip(-3, 3)
    scaled = (factor * residuals).astype(np.float32)
    quantizer = ResidualQuantizer.fit(scaled, 5, n_iter=2)
    decoded = quantizer.decode(quantizer.encode(scaled)) / factor
    assert np.mean((residuals - decoded) ** 2) < 0.7 * np.mean(residuals**2)


def test_files_of_parts_of_two_widths(packed, tmp_path):
    packed.save(tmp_path / "codes.skc")
    assert PackedCodes.load(tmp_path / "codes.skc") == packed
    assert PackedCodes.from_arrow(packed.to_arrow()) == packed
    assert PackedCodes.from_archive(packed.to_archive()) == packed


def test_rotations_that_do_not_keep_lengths_are_refused():
    centroids = np.random.default_rng(7).standard_normal((3, 8, 2)).astype(np.float32)
    with pytest.raises(ValueError, match=r"rotation must have shape \(6, 1 to 6\), got \(5, 5\)"):
        ResidualQuantizer(centroids, np.eye(5))
    for rotation in (np.ones((6, 5)), np.full((6, 5), np.nan)):
        with pytest.raises(ValueError, match="rotation must have orthonormal columns"):
            ResidualQuantizer(centroids, rotation)
    assert ResidualQuantizer(centroids, np.eye(6)[:, :5]).n_features == 5


# the command line


@pytest.fixture
def files_of_residuals(model, embeddings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(_sources, "_MAX_BLOCK_ROWS", 150)
    model.save("model.safetensors")
    np.save("x.npy", embeddings)


@pytest.mark.usefixtures("files_of_residuals")
def test_encode_writes_residual_codes(packed, capsys):
    assert main(["encode", "model.safetensors", "x.npy", "codes.skc", "-q"]) == 0
    assert PackedCodes.load("codes.skc") == packed
    assert main(["info", "codes.skc"]) == 0
    assert "residual_bytes_per_row  5" in capsys.readouterr().out
    assert main(["search", "codes.skc", "x.npy", "--model", "model.safetensors", "--rerank", "50", "found.npz"]) == 0
    with np.load("found.npz") as found:
        assert np.mean(found["indices"][:, 0] == np.arange(400)) > 0.95


@pytest.mark.usefixtures("files_of_residuals")
def test_encode_names_a_remedy_that_works(embeddings, capsys):
    small(norm="input", max_iter=5).fit(embeddings).save("input.safetensors")
    X = embeddings.copy()
    X[7] *= np.float32(1e-33)
    np.save("x.npy", X)
    command = ["encode", "input.safetensors", "x.npy", "codes.skc", "-q"]
    error = refuses(capsys, *command)
    assert error.endswith("give --norm unit --no-residual")
    assert main([*command, *error.split()[-3:], "--restart"]) == 0


@pytest.mark.usefixtures("files_of_residuals")
def test_encode_leaves_them_out_or_refuses(capsys):
    command = ["encode", "model.safetensors", "x.npy"]
    assert main([*command, "bare.skc", "-q", "--no-residual", "--norm", "unit"]) == 0
    assert PackedCodes.load("bare.skc").residual_codes is None
    error = refuses_usage(capsys, *command, "codes.skc", "--norm", "unit")
    assert error.startswith("norm must be None, as it was when the residual codes were learned; got 'unit'.")
    assert error.endswith("Or give --no-residual.")
    assert not Path("codes.skc.partial").exists()
    error = refuses_usage(capsys, *command, "codes.npz", "--no-residual")
    assert error == "--no-residual is for packed codes, an output that ends in .skc"


@pytest.mark.usefixtures("files_of_residuals")
def test_evaluate_shows_what_they_bring(capsys):
    command = ["evaluate", "model.safetensors", "x.npy", "--n-queries", "50", "--modes", "packed", "-n", "10"]
    assert main([*command, "--nonzeros", "4", "--references"]) == 0
    lines = capsys.readouterr().out.splitlines()
    bare, reranked = (next(line.split() for line in lines if line.endswith(name)) for name in ("packed", "codes"))
    assert int(reranked[0]) == int(bare[0]) + 5
    assert float(reranked[2]) > float(bare[2])


@pytest.mark.usefixtures("files_of_residuals")
@pytest.mark.parametrize("option", [["--norm", "unit"], []])
def test_evaluate_without_them(capsys, option):
    model = CompresSAETransformer.load("model.safetensors")
    if not option:
        model.residual_quantizer_ = None
    model.save("model.safetensors")
    command = ["evaluate", "model.safetensors", "x.npy", "--n-queries", "50", "--modes", "packed", "-n", "10"]
    assert main([*command, "--nonzeros", "4", "--references", *option]) == 0
    printed = capsys.readouterr()
    assert "reranked" not in printed.out
    assert "residual codes are left out: " in printed.err


@pytest.mark.usefixtures("files_of_residuals")
def test_an_interrupted_encode_goes_on_with_the_same_quantizer_only(packed, embeddings, monkeypatch, capsys):
    command = ["encode", "model.safetensors", "x.npy", "codes.skc", "-q"]
    append = Spool.append

    def interrupted(self, n_rows, arrays):
        if self.n_rows:
            raise KeyboardInterrupt
        append(self, n_rows, arrays)

    with monkeypatch.context() as patch:
        patch.setattr(Spool, "append", interrupted)
        assert main(command) == 130
    saved = Path("model.safetensors").read_bytes()
    other = CompresSAETransformer.load("model.safetensors")
    other.residual_quantizer_ = ResidualQuantizer(other.residual_quantizer_.centroids * 2, np.eye(25)[:, :24])
    other.save("model.safetensors")
    capsys.readouterr()
    assert "unfinished work with another options" in refuses(capsys, *command)
    error = refuses(capsys, *command, "--no-residual")
    assert "residual" in error
    Path("model.safetensors").write_bytes(saved)
    assert main(command) == 0
    assert PackedCodes.load("codes.skc") == packed


@pytest.mark.usefixtures("files_of_residuals")
def test_export_at_another_norm_leaves_them_out(capsys):
    assert main(["export", "model.safetensors", "unit.safetensors", "--norm", "unit"]) == 0
    assert "residual codes are left out: they were learned at another norm" in capsys.readouterr().err
    exported = CompresSAETransformer.load("unit.safetensors")
    assert (exported.norm, exported.residual_bytes, exported.residual_quantizer_) == ("unit", None, None)
    without = CompresSAETransformer.load("model.safetensors")
    without.residual_quantizer_ = None
    without.save("without.safetensors")
    assert main(["export", "without.safetensors", "unit2.safetensors", "--norm", "unit"]) == 0
    assert "residual codes" not in capsys.readouterr().err
    assert main(["export", "model.safetensors", "same.safetensors", "--k", "3"]) == 0
    assert CompresSAETransformer.load("same.safetensors").residual_quantizer_ is not None
