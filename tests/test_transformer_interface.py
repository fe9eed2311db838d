"""What surrounds the mathematics: validation, output containers, persistence, progress, callbacks."""

import copy
import logging
import pickle
import warnings

import joblib
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import sklearn
from conftest import make_embeddings
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from skcompressae import CompresSAETransformer
from skcompressae._torch._cpu_engine import CpuEngine


def small(**params):
    defaults = {"n_components": 32, "k": 4, "max_iter": 10, "random_state": 0, "device": "cpu"}
    return CompresSAETransformer(**{**defaults, **params})


# Input that is refused -----------------------------------------------------------------------------------------------


def spoiled(value):
    rows = np.ones((5000, 24))
    rows[4321, 7] = value
    return rows


REFUSED = {
    "NaN": (spoiled(np.nan), ValueError, "Input X contains NaN"),
    "inf": (spoiled(np.inf), ValueError, "Input X contains infinity"),
    "-inf float32": (spoiled(-np.inf).astype(np.float32), ValueError, "Input X contains infinity"),
    "inf float16": (spoiled(np.inf).astype(np.float16), ValueError, "Input X contains infinity"),
    "complex": (np.ones((5, 24)) * 1j, ValueError, "Complex data not supported"),
    "sparse": (sp.csr_matrix(np.ones((5, 24))), TypeError, "Sparse data was passed.*dense data is required"),
    "1-d": (np.ones(24), ValueError, "Expected 2D array, got 1D array instead"),
    "3-d": (np.ones((5, 24, 2)), ValueError, "Found array with dim 3"),
    "no rows": (np.ones((0, 24)), ValueError, r"Found array with 0 sample\(s\)"),
    "no columns": (np.ones((5, 0)), ValueError, r"Found array with 0 feature\(s\)"),
    "strings": (np.full((5, 24), "a"), ValueError, "could not convert string to float|dtype='numeric'"),
}


@pytest.mark.parametrize("method", ["fit", "partial_fit", "transform", "transform_query", "score"])
@pytest.mark.parametrize("case", REFUSED)
def test_rows_that_cannot_be_used_are_refused(fitted, method, case):
    rows, error, message = REFUSED[case]
    estimator = small() if "fit" in method else fitted
    with pytest.raises(error, match=message):
        getattr(estimator, method)(rows)


@pytest.mark.parametrize("method", ["transform", "transform_query", "score"])
def test_wrong_width_is_refused(fitted, method):
    with pytest.raises(ValueError, match="X has 7 features, but CompresSAETransformer is expecting 24 features"):
        getattr(fitted, method)(np.ones((3, 7)))


@pytest.mark.parametrize("method", ["transform", "transform_query", "score", "inverse_transform"])
def test_unfitted_estimators_say_so(method):
    with pytest.raises(NotFittedError, match="CompresSAETransformer instance is not fitted yet"):
        getattr(small(), method)(np.ones((3, 7)))


def test_codes_that_cannot_be_decoded_are_refused(fitted):
    with pytest.raises(ValueError, match=r"X has 7 columns, but the codes of this .* have n_components=48"):
        fitted.inverse_transform(sp.csr_matrix((3, 7)))
    with pytest.raises(ValueError, match=r"^Input X contains NaN\.$"):  # and recommends no estimators of targets
        fitted.inverse_transform(np.full((3, 48), np.nan))
    with pytest.raises(ValueError, match="Expected 2D array, got 1D array instead"):
        fitted.inverse_transform(np.ones(48))
    with pytest.raises(ValueError, match="Complex data not supported"):
        fitted.inverse_transform(np.ones((2, 48)) * 1j)
    codes = fitted.transform(make_embeddings(5, 24))
    codes.data[3] = np.inf
    with pytest.raises(ValueError, match="Input X contains infinity"):
        fitted.inverse_transform(codes)
    codes.data[3] = np.nan
    with pytest.raises(ValueError, match=r"^Input X contains NaN\.$"):
        fitted.inverse_transform(codes)


@pytest.mark.parametrize(("part", "value"), [("indices", 48), ("indices", -1), ("indptr", 100)])
def test_codes_that_point_outside_themselves_are_refused(fitted, part, value):
    codes = fitted.transform(make_embeddings(5, 24))
    getattr(codes, part)[2] = value
    with pytest.raises(ValueError, match="X must be a well-formed sparse matrix; SciPy says of it"):
        fitted.inverse_transform(codes)


@pytest.mark.parametrize("n_spare", [0, 3])
def test_decoding_leaves_codes_as_they_are(fitted, n_spare):
    codes = fitted.transform(make_embeddings(5, 24))
    expected = fitted.inverse_transform(codes.copy())
    codes.data = np.append(codes.data, np.ones(n_spare, dtype=np.float32))
    codes.indices = np.append(codes.indices, np.zeros(n_spare, dtype=codes.indices.dtype))
    before = codes.data, codes.indices, codes.indptr
    np.testing.assert_array_equal(fitted.inverse_transform(codes), expected)
    assert all(now is then for now, then in zip((codes.data, codes.indices, codes.indptr), before, strict=True))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("index_dtype", [np.int32, np.int64])
def test_codes_in_any_order_and_in_parts_are_decoded(fitted, dtype, index_dtype):
    codes = fitted.transform(make_embeddings(200, 24)).astype(dtype)
    expected = codes.toarray().astype(np.float64) @ fitted.components_
    order = np.arange(codes.nnz).reshape(200, -1)[:, ::-1].ravel()  # backwards, and every entry in two halves
    parts = sp.csr_array((np.repeat(codes.data[order] / 2, 2), np.repeat(codes.indices[order], 2), codes.indptr * 2))
    parts.resize(codes.shape)
    parts.indices, parts.indptr = parts.indices.astype(index_dtype), parts.indptr.astype(index_dtype)
    decoded = fitted.inverse_transform(parts)
    assert decoded.dtype == dtype
    np.testing.assert_allclose(decoded, expected, atol=1e-5 if dtype == np.float32 else 1e-12)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n_components", 0),
        ("n_components", 2.5),
        ("k", 0),
        ("k", "all"),
        ("recipe", "papers"),
        ("coding", "omp"),
        ("candidate_factor", 0.5),
        ("candidate_factor", np.inf),
        ("norm", "l2"),
        ("flattening", -0.1),
        ("flattening", 1.0),
        ("flattening", np.nan),
        ("loss_weights", 1.0),
        ("loss_weights", (1.0,)),
        ("loss_weights", (1.0, -0.5)),
        ("loss_weights", (0.0, 0.0)),
        ("loss_weights", (1.0, np.nan)),
        ("loss_weights", (1.0, "half")),
        ("neighborhood_weight", -1.0),
        ("neighborhood_weight", np.nan),
        ("usage_power", -0.1),
        ("usage_power", 1.5),
        ("usage_power", np.nan),
        ("n_refits", -1),
        ("n_refits", 1.5),
        ("residual_bytes", 0),
        ("residual_bytes", 2.5),
        ("nested", "yes"),
        ("init", "zeros"),
        ("learning_rate", 0.0),
        ("learning_rate", np.nan),
        ("learning_rate", np.inf),
        ("learning_rate", "adaptive"),
        ("learning_rate_schedule", "step"),
        ("warmup_fraction", 1.5),
        ("batch_size", 0),
        ("batch_size", 2.0),
        ("max_iter", 0),
        ("early_stopping", "yes"),
        ("validation_fraction", 1.0),
        ("validation_fraction", -0.1),
        ("n_iter_no_change", 0),
        ("precision", "float16"),
        ("sparse_output", "csr"),
        ("device", None),
        ("device", "gpu"),
        ("device", "cuda:99"),
        ("device", "meta"),
        ("warm_start", "yes"),
        ("random_state", "seed"),
        ("verbose", -1),
        ("checkpoint_dir", 3),
        ("checkpoint_interval", 0),
        ("checkpoint_interval", "often"),
    ],
)
def test_invalid_parameters_are_named(embeddings, name, value):
    with pytest.raises(ValueError, match=name):
        small(**{name: value}).fit(embeddings)


def test_blocks_after_the_first_are_refused_invalid_parameters_too(embeddings):
    model = small().partial_fit(embeddings)
    weights = model.components_.copy()
    for name, value in test_invalid_parameters_are_named.pytestmark[0].args[1]:
        with pytest.raises(ValueError, match=name):
            copy.deepcopy(model).set_params(**{name: value}).partial_fit(embeddings)
    np.testing.assert_array_equal(model.components_, weights)
    with sklearn.config_context(skip_parameter_validation=True):
        copy.deepcopy(model).set_params(max_iter=-1).partial_fit(embeddings)


def test_every_parameter_has_an_invalid_value_above():
    cases = test_invalid_parameters_are_named.pytestmark[0].args[1]
    assert {name for name, _ in cases} == set(CompresSAETransformer().get_params())


def test_parameters_changed_after_fitting_are_checked_too(fitted, embeddings):
    estimator = copy.deepcopy(fitted).set_params(k=0)
    for method in (estimator.transform, estimator.score):
        with pytest.raises(ValueError, match="'k' parameter of CompresSAETransformer"):
            method(embeddings)
    estimator.set_params(k=1).transform(embeddings)
    for no_k in (1.0, [1], np.ones(2)):  # one equal to what was valid, two that no cache can hold
        with pytest.raises(ValueError, match="'k' parameter of CompresSAETransformer"):
            estimator.set_params(k=no_k).transform(embeddings)
    with pytest.raises(ValueError, match="n_nonzero == 0, must be >= 1"):
        fitted.transform_query(embeddings, n_nonzero=0)
    with pytest.raises(TypeError, match="n_nonzero must be an instance of int"):
        fitted.transform_query(embeddings, n_nonzero=2.5)
    model = small().fit(embeddings).set_params(recipe="best")
    for call in (model.transform, model.transform_query, model.score, model.inverse_transform, model.transform_packed):
        rows = model.components_[:, :3].T if call == model.inverse_transform else embeddings
        with pytest.raises(ValueError, match="The 'recipe' parameter"):
            call(rows)


def test_finite_rows_of_a_sum_beyond_float32_cause_no_warning(embeddings):
    rows = (embeddings / np.abs(embeddings).max() * 3e37).astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        codes = small(norm="unit").fit(embeddings).transform(np.abs(rows))
    assert codes.nnz


# Output --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (np.float32, np.float32),
        (np.float64, np.float64),
        (np.float16, np.float32),
        *((dtype, np.float64) for dtype in (np.int8, np.int16, np.int32, np.int64, np.uint16, np.uint64)),
    ],
)
@pytest.mark.parametrize("sparse_output", [True, False])
def test_dtype_of_codes_follows_the_input(fitted, embeddings, dtype, expected, sparse_output):
    estimator = copy.deepcopy(fitted).set_params(sparse_output=sparse_output)
    rows = np.round(embeddings if np.dtype(dtype).kind != "u" else np.abs(embeddings)).astype(dtype)
    codes = estimator.transform(rows)
    assert codes.dtype == expected
    assert estimator.inverse_transform(codes).dtype == expected
    np.testing.assert_allclose(
        sp.csr_matrix(codes).toarray(), fitted.transform(rows.astype(np.float64)).toarray(), rtol=1e-5
    )


def test_rows_may_come_as_lists_and_data_frames(fitted, embeddings):
    expected = fitted.transform(embeddings[:5].astype(np.float64)).toarray()
    np.testing.assert_array_equal(fitted.transform(embeddings[:5].astype(np.float64).tolist()).toarray(), expected)
    names = [f"dim{i}" for i in range(24)]
    frame = pd.DataFrame(embeddings, columns=names)
    estimator = small().fit(frame)
    assert estimator.feature_names_in_.tolist() == names
    np.testing.assert_array_equal(
        estimator.transform(frame).toarray(), small().fit(embeddings).transform(embeddings).toarray()
    )
    with pytest.raises(ValueError, match="feature names should match"):
        estimator.transform(frame.rename(columns={"dim3": "other"}))


def test_codes_are_matrices_unless_configured_otherwise(fitted, embeddings):
    codes = fitted.transform(embeddings)
    assert sp.isspmatrix_csr(codes)
    np.testing.assert_allclose(
        fitted.inverse_transform(sp.csr_array(codes)), fitted.inverse_transform(codes), rtol=1e-6
    )
    np.testing.assert_allclose(fitted.inverse_transform(codes.tocoo()), fitted.inverse_transform(codes), rtol=1e-6)


@pytest.mark.skipif(
    "sparse_interface" not in sklearn.get_config(), reason="this scikit-learn has no sparse_interface setting"
)
def test_sparse_interface_setting_is_obeyed(fitted, embeddings):
    with sklearn.config_context(sparse_interface="sparray"):
        for codes in (fitted.transform(embeddings), fitted.transform_query(embeddings, n_nonzero=5)):
            assert isinstance(codes, sp.csr_array)
            assert codes.has_canonical_format
    with sklearn.config_context(sparse_interface="spmatrix"):
        assert isinstance(fitted.transform(embeddings), sp.csr_matrix)


def test_set_output_refuses_sparse_codes_and_names_dense_ones(fitted, embeddings):
    estimator = copy.deepcopy(fitted).set_output(transform="pandas")
    with pytest.raises(ValueError, match=r"outputs a scipy sparse matrix.*set_output\(transform='default'\)"):
        estimator.transform(embeddings)
    frame = estimator.set_params(sparse_output=False).transform(pd.DataFrame(embeddings, index=range(5, 405)))
    assert isinstance(frame, pd.DataFrame)
    assert frame.columns.tolist() == estimator.get_feature_names_out().tolist()
    assert frame.index.tolist() == list(range(5, 405))
    np.testing.assert_array_equal(frame.to_numpy(), fitted.transform(embeddings).toarray())


def test_feature_names_out(fitted):
    names = fitted.get_feature_names_out()
    assert names.tolist() == [f"compressaetransformer{i}" for i in range(48)]


def test_fit_transform_is_fit_then_transform(embeddings):
    np.testing.assert_array_equal(
        small().fit_transform(embeddings).toarray(), small().fit(embeddings).transform(embeddings).toarray()
    )


@pytest.mark.parametrize(
    ("row", "message"), [(904, r"\(row 904: 1\S+\)$"), (5000, r"\(row 904: 1\S+\), counted from row 4096 of X$")]
)
def test_rows_whose_codes_cannot_be_packed_are_named(fitted, embeddings, row, message):
    rows = np.tile(embeddings, (13, 1))
    rows[row] *= np.float32(1e33)
    with pytest.raises(ValueError, match=message):
        fitted.transform_packed(rows)


def test_packed_codes_are_the_codes_rounded(fitted):
    rows = make_embeddings(n_rows=5000)
    packed = fitted.transform_packed(rows, value_bits=8)
    codes = fitted.transform(rows)
    assert packed.shape == codes.shape
    unpacked = packed.to_csr()
    np.testing.assert_array_equal(unpacked.indices, codes.indices)
    np.testing.assert_array_equal(unpacked.indptr, codes.indptr)
    sizes = np.repeat(np.abs(codes).max(axis=1).toarray().ravel(), np.diff(codes.indptr))
    assert (np.abs(unpacked.data - codes.data) <= 0.02 * sizes).all()
    further = fitted.transform_packed(rows[:10], quantizer=packed.quantizer)
    np.testing.assert_array_equal(further.to_csr().toarray(), unpacked[:10].toarray())


# Persistence ---------------------------------------------------------------------------------------------------------


def through_skops(estimator, tmp_path):
    skops_io = pytest.importorskip("skops.io")
    dumped = skops_io.dumps(estimator)
    # The class itself and nothing else: all fitted state is of types that skops trusts.
    untrusted = skops_io.get_untrusted_types(data=dumped)
    assert untrusted == ["skcompressae._transformer.CompresSAETransformer"]
    return skops_io.loads(dumped, trusted=untrusted)


def through_joblib(estimator, tmp_path, mmap_mode=None):
    joblib.dump(estimator, tmp_path / "estimator.joblib")
    return joblib.load(tmp_path / "estimator.joblib", mmap_mode=mmap_mode)


ROUND_TRIPS = {
    "pickle": lambda estimator, _: pickle.loads(pickle.dumps(estimator)),
    "joblib": through_joblib,
    "joblib memory-mapped": lambda estimator, path: through_joblib(estimator, path, "r"),
    "skops": through_skops,
    "deepcopy": lambda estimator, _: copy.deepcopy(estimator),
}


@pytest.mark.parametrize("trip", ROUND_TRIPS)
@pytest.mark.parametrize("how", ["fit", "partial_fit"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_persisted_estimators_encode_alike_and_train_on(embeddings, tmp_path, trip, how, precision):
    estimator = getattr(small(precision=precision), how)(embeddings)
    again = ROUND_TRIPS[trip](estimator, tmp_path)
    np.testing.assert_array_equal(again.transform(embeddings).toarray(), estimator.transform(embeddings).toarray())
    assert again.get_params() == estimator.get_params()
    np.testing.assert_array_equal(
        again.partial_fit(embeddings).components_, estimator.partial_fit(embeddings).components_
    )
    np.testing.assert_array_equal(
        again.set_params(warm_start=True).fit(embeddings).components_,
        estimator.set_params(warm_start=True).fit(embeddings).components_,
    )


def test_fitted_state_is_numpy_and_plain_python(embeddings):
    def types_in(value):
        if isinstance(value, (tuple, list)):
            return set().union(*map(types_in, value))
        return {type(value)}

    estimator = small().fit(embeddings).partial_fit(embeddings)
    allowed = {np.ndarray, int, float, str, bool, type(None)}
    assert types_in(list(vars(estimator).values())) <= allowed


def test_clone_keeps_parameters_and_drops_state(fitted):
    copied = clone(fitted)
    assert copied.get_params() == fitted.get_params()
    assert not hasattr(copied, "components_")


# Progress ------------------------------------------------------------------------------------------------------------


def test_silent_by_default(embeddings, capsys):
    small().fit(embeddings).partial_fit(embeddings).transform(embeddings)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == ""


@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_verbose_shows_a_bar_on_stderr(embeddings, capsys, method):
    getattr(small(verbose=1, max_iter=120, early_stopping=False), method)(embeddings)
    captured = capsys.readouterr()
    assert captured.out == ""
    for part in ("CompresSAETransformer", "100%", "loss=", "cosine=", "dead="):
        assert part in captured.err


def test_training_is_logged(embeddings, caplog):
    with caplog.at_level(logging.INFO, logger="skcompressae"):
        small().fit(embeddings)
    assert "trained 10 steps: loss" in caplog.text


# Callbacks, scikit-learn 1.9 and newer -------------------------------------------------------------------------------

has_callbacks = hasattr(CompresSAETransformer, "set_callbacks")
needs_callbacks = pytest.mark.skipif(not has_callbacks, reason="this scikit-learn has no callbacks")


class Recorder:
    """Record every hook; stop or interrupt at a step where asked to."""

    def __init__(self, stop_at=None, interrupt_at=None):
        self.stop_at = stop_at
        self.interrupt_at = interrupt_at
        self.events = []

    def setup(self, estimator, context):
        self.events.append(("setup", context.task_name, context.max_subtasks))

    def on_fit_task_begin(self, estimator, context, *, X=None):
        self.events.append(("begin", context.task_name, context.task_id))
        if context.task_name == "step" and context.task_id == self.interrupt_at:
            raise KeyboardInterrupt

    def on_fit_task_end(self, estimator, context, *, X=None):
        assert X.shape == (400, 24)
        self.events.append(("end", context.task_name, context.task_id))
        return context.task_name == "step" and context.task_id == self.stop_at

    def teardown(self, estimator, context):
        self.events.append(("teardown", context.task_name, context.max_subtasks))


@needs_callbacks
def test_callbacks_see_every_step(embeddings):
    recorder = Recorder()
    estimator = small(max_iter=3).set_callbacks(recorder).fit(embeddings)
    steps = [(hook, "step", step) for step in range(3) for hook in ("begin", "end")]
    assert recorder.events == [
        ("setup", "fit", 3), ("begin", "fit", 0), *steps, ("end", "fit", 0), ("teardown", "fit", 3)
    ]  # fmt: skip
    np.testing.assert_array_equal(estimator.components_, small(max_iter=3).fit(embeddings).components_)


@needs_callbacks
def test_callbacks_can_stop_and_interrupt_training(embeddings):
    estimator = small().set_callbacks(Recorder(stop_at=3)).fit(embeddings)
    assert estimator.n_iter_ == 4
    recorder = Recorder(interrupt_at=2)
    with pytest.warns(UserWarning, match="interrupted after 3 step"):
        estimator = small().set_callbacks(recorder).fit(embeddings)
    assert recorder.events[-1] == ("teardown", "fit", 10)
    assert estimator.transform(embeddings).shape == (400, 32)


@needs_callbacks
def test_callbacks_are_torn_down_when_training_fails(embeddings, monkeypatch):
    def step(self, row_indices, learning_rate):
        raise RuntimeError("device lost")

    monkeypatch.setattr(CpuEngine, "step", step)
    recorder = Recorder()
    with pytest.raises(RuntimeError, match="device lost"):
        small().set_callbacks(recorder).fit(embeddings)
    assert recorder.events[-1] == ("teardown", "fit", 10)
    assert not hasattr(small(), "_callback_fit_ctx")


@needs_callbacks
def test_scikit_learns_progress_bar_works(embeddings, capsys):
    pytest.importorskip("rich")
    from sklearn.callback import ProgressBar

    estimator = small().set_callbacks(ProgressBar()).fit(embeddings)
    assert estimator.n_iter_ == 10
    assert "CompresSAETransformer" in capsys.readouterr().out


def test_a_truth_value_is_no_number_of_nonzeros(fitted, embeddings):
    with pytest.raises(TypeError, match=r"^n_nonzero must be an instance of int, not bool\.$"):
        fitted.transform_query(embeddings, n_nonzero=True)
