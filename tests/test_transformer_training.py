"""How fit, partial_fit, warm starts, interruptions, early stopping and memory-mapped files behave."""

import copy
import tracemalloc

import numpy as np
import pytest
from conftest import make_embeddings
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from threadpoolctl import threadpool_limits

from skcompressae import CompresSAETransformer
from skcompressae._torch._cpu_engine import CpuEngine
from skcompressae._torch._weights import StepLosses
from skcompressae.exceptions import DeadLatentsWarning, InterruptedFitWarning

STATE = ["encoder_weights_", "encoder_bias_", "components_", "loss_curve_", "validation_loss_curve_", "latent_counts_"]


def small(**params):
    defaults = {"n_components": 32, "k": 4, "max_iter": 30, "random_state": 0, "device": "cpu"}
    return CompresSAETransformer(**{**defaults, **params})


def assert_same_state(a, b):
    for name in STATE:
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


def record_steps(monkeypatch, before_step=lambda n_steps: None):
    """Record (batch size, learning rate) of every step; `before_step` may raise."""
    steps = []
    original = CpuEngine.step

    def step(self, row_indices, learning_rate):
        before_step(len(steps) + 1)
        steps.append((row_indices.copy(), learning_rate))
        return original(self, row_indices, learning_rate)

    monkeypatch.setattr(CpuEngine, "step", step)
    return steps


# Reproducibility -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("params", [{}, {"recipe": "paper"}, {"validation_fraction": 0}])
def test_refit_with_the_same_seed_is_bit_identical(embeddings, params):
    estimator = small(**params).fit(embeddings)
    assert_same_state(estimator, clone(estimator).fit(embeddings))
    again = copy.deepcopy(estimator).fit(embeddings)
    assert_same_state(estimator, again)
    other = small(**{**params, "random_state": 1}).fit(embeddings)
    assert np.abs(other.components_ - estimator.components_).max() > 1e-3


def test_number_of_threads_does_not_change_the_codes(embeddings):
    results = []
    for n_threads in (1, 3):
        with threadpool_limits(n_threads):
            results.append(small().fit(embeddings))
    one, many = results
    # Kernels sum in a fixed order; the BLAS library's product may not, so here it is rounding, not bits.
    np.testing.assert_allclose(one.components_, many.components_, atol=2e-3)
    assert one.score(embeddings) == pytest.approx(many.score(embeddings), abs=1e-3)
    with threadpool_limits(1):
        codes = one.transform(embeddings)
    with threadpool_limits(3):
        again = one.transform(embeddings)
    np.testing.assert_allclose(codes.toarray(), again.toarray(), rtol=1e-4, atol=1e-4)


def test_fit_leaves_its_input_and_parameters_alone(embeddings):
    rows = embeddings.copy()
    rows.setflags(write=False)
    estimator = small()
    params = estimator.get_params()
    estimator.fit(rows)
    np.testing.assert_array_equal(rows, embeddings)
    assert estimator.get_params() == params


# What is learned -----------------------------------------------------------------------------------------------------


def test_training_learns(embeddings):
    held_out = make_embeddings(n_rows=600)[400:]
    short, long = (small(max_iter=n).fit(embeddings) for n in (1, 300))
    assert long.score(held_out) > short.score(held_out) + 0.005
    assert long.score(held_out) > 0.9
    assert long.loss_curve_[-20:].mean() < long.loss_curve_[:5].mean()
    assert long.validation_loss_curve_[-1] < long.validation_loss_curve_[0]


def test_fitted_state_is_consistent(embeddings):
    estimator = small().fit(embeddings)
    for name in ("encoder_weights_", "components_"):
        assert getattr(estimator, name).shape == (32, 24)
        assert getattr(estimator, name).dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(estimator.components_, axis=1), 1, atol=1e-5)
    assert estimator.encoder_bias_.shape == (32,)
    assert estimator.n_iter_ == len(estimator.loss_curve_) <= 30
    assert len(estimator.validation_loss_curve_) == len(estimator.validation_steps_)
    assert estimator.validation_steps_[-1] == estimator.n_iter_
    assert estimator.n_rows_counted_ == 400 - 20
    assert estimator.latent_counts_.sum() == estimator.n_rows_counted_ * estimator.k_
    assert estimator.dead_latents_fraction_ == np.mean(estimator.latent_counts_ == 0)
    # root mean square over the codes of the rows that were counted: all of them, with nothing held out
    estimator = small(validation_fraction=0, norm="unit").fit(embeddings)
    codes = estimator.transform(embeddings).toarray().astype(np.float64)
    np.testing.assert_allclose(estimator.latent_rms_, np.sqrt((codes**2).mean(axis=0)), rtol=1e-4)
    np.testing.assert_array_equal(estimator.latent_counts_, (codes != 0).sum(axis=0))


def test_float64_float16_and_integer_rows_train_as_float32_ones(embeddings):
    whole = np.round(2 * embeddings)
    reference = small().fit(whole)
    for dtype in (np.float64, np.float16, np.int64, np.int32, np.int16, np.int8):
        assert_same_state(reference, small().fit(whole.astype(dtype)))
    assert_same_state(reference, small().fit(np.asfortranarray(whole)))
    assert_same_state(reference, small().fit(whole * 2.0**-70))


def test_all_zero_rows_can_be_fitted():
    nothing = pytest.warns(UserWarning, match="all 50 rows that it looked at are zero. Training starts from random")
    with nothing, pytest.warns(DeadLatentsWarning, match="100% of the 32 latents"):
        estimator = small().fit(np.zeros((50, 6)))
    with pytest.warns(UserWarning, match="begin partial_fit with a block of other rows"):
        small().partial_fit(np.zeros((5, 6)))
    assert estimator.score(np.zeros((5, 6))) == 1
    assert estimator.transform(np.zeros((5, 6))).nnz == 0
    assert np.isfinite(estimator.transform(np.ones((2, 6))).data).all()


def test_rows_that_are_all_alike_can_be_fitted():
    rows = np.tile(np.arange(1.0, 7.0), (50, 1))
    with pytest.warns(DeadLatentsWarning, match="Lower n_components"):
        estimator = small().fit(rows)
    assert estimator.score(rows) > 0.99


@pytest.mark.parametrize("n_rows", [1, 2, 3])
@pytest.mark.filterwarnings("ignore::skcompressae.exceptions.DeadLatentsWarning")
def test_a_handful_of_rows_can_be_fitted(n_rows):
    rows = make_embeddings(n_rows=n_rows, n_features=5)
    for estimator in (small().fit(rows), small(validation_fraction=0.9).fit(rows), small().partial_fit(rows)):
        assert np.isfinite(estimator.transform(rows).data).all()


@pytest.mark.filterwarnings("ignore::skcompressae.exceptions.DeadLatentsWarning")
def test_one_feature_keeps_unit_decoder_rows():
    estimator = small(max_iter=2).fit(make_embeddings(n_rows=60, n_features=1))
    np.testing.assert_allclose(np.abs(estimator.components_), 1, atol=1e-6)
    assert estimator.score(make_embeddings(n_rows=60, n_features=1)) == pytest.approx(1, abs=1e-5)


def test_k_above_n_components_warns_and_is_clipped(embeddings):
    with pytest.warns(UserWarning, match="k=50 is above n_components=8"):
        estimator = small(n_components=8, k=50).fit(embeddings)
    assert estimator.k_ == 8
    assert (np.diff(estimator.transform(embeddings).indptr) == 8).all()


def test_dead_latents_warn_and_say_what_to_change(embeddings):
    with pytest.warns(DeadLatentsWarning, match="Lower n_components") as record:
        estimator = small(n_components=2048).fit(embeddings[:100])
    assert f"{estimator.dead_latents_fraction_:.0%} of the 2048 latents" in str(record[0].message)


# Recipes -------------------------------------------------------------------------------------------------------------


def test_paper_recipe_is_the_papers(embeddings, monkeypatch):
    steps = record_steps(monkeypatch)
    estimator = small(recipe="paper", max_iter=60, n_iter_no_change=1).fit(embeddings)
    assert len(steps) == 60  # never stops early
    assert len({rate for _, rate in steps}) == 1
    raw = estimator.set_params(norm=None).transform(embeddings).toarray()
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    activations = unit @ estimator.encoder_weights_.T + estimator.encoder_bias_
    np.testing.assert_allclose(raw[raw != 0], activations[raw != 0], atol=1e-5)
    assert estimator.get_params()["max_iter"] == 60
    start = small(recipe="paper", max_iter=1, learning_rate=1e-9).fit(embeddings)
    assert np.abs(start.encoder_weights_ - start.components_).max() > 0.1  # untied
    assert np.abs(start.encoder_weights_).max() <= np.sqrt(6 / 24) + 1e-6


def test_data_start_ties_the_encoder_to_the_decoder(embeddings):
    start = small(init="data", max_iter=1, learning_rate=1e-9, usage_power=0).fit(embeddings)
    np.testing.assert_allclose(start.encoder_weights_, start.components_, atol=1e-6)


def test_explicit_parameters_override_the_recipe(embeddings, monkeypatch):
    steps = record_steps(monkeypatch)
    params = {"learning_rate": 0.02, "learning_rate_schedule": "linear", "warmup_fraction": 0.5, "batch_size": 50}
    for recipe in ("default", "paper"):
        steps.clear()
        small(recipe=recipe, max_iter=10, early_stopping=False, **params).fit(embeddings)
        assert [len(rows) for rows, _ in steps] == [50] * 10
        rates = [rate for _, rate in steps]
        assert rates[:5] == pytest.approx([0.004, 0.008, 0.012, 0.016, 0.02])
        assert (np.diff(rates[4:]) < 0).all()
        assert rates[-1] > 0


@pytest.mark.filterwarnings("ignore::skcompressae.exceptions.DeadLatentsWarning")
def test_the_rate_falls_with_the_root_of_uses_below_96(embeddings, monkeypatch):
    steps = record_steps(monkeypatch)
    for params, peak in (
        ({"batch_size": 350, "n_components": 50}, 6e-3),  # 350 * 16 / 50 uses of a latent
        ({"batch_size": 75, "n_components": 50}, 3e-3),
        ({"batch_size": 75, "n_components": 50, "recipe": "paper"}, 1e-3),
    ):
        steps.clear()
        small(**params, warmup_fraction=0, learning_rate_schedule="constant").fit(embeddings)
        assert [rate for _, rate in steps] == pytest.approx([peak] * 30)
    steps.clear()
    small(batch_size=75, n_components=50).partial_fit(embeddings[:300])
    assert [rate for _, rate in steps] == pytest.approx([1.5e-3] * 4)


def test_an_epoch_visits_rows_without_replacement(embeddings, monkeypatch):
    steps = record_steps(monkeypatch)
    small(batch_size=95, max_iter=4, early_stopping=False).fit(embeddings)
    visited = np.concatenate([rows for rows, _ in steps])
    assert len(np.unique(visited)) == 380


# partial_fit and warm_start ------------------------------------------------------------------------------------------


def test_partial_fit_continues_and_improves():
    rows = make_embeddings(n_rows=1200)
    held_out = make_embeddings(n_rows=1500)[1200:]
    estimator = small(batch_size=50, random_state=0)
    scores, n_iter = [], []
    for start in range(0, 1200, 200):
        assert estimator.partial_fit(rows[start : start + 200]) is estimator
        scores.append(estimator.score(held_out))
        n_iter.append(estimator.n_iter_)
    assert n_iter == [4, 8, 12, 16, 20, 24]
    assert len(estimator.loss_curve_) == 24
    assert scores[-1] > scores[0] + 0.003


@pytest.mark.parametrize("batch_size", [7, 64, 100, 1000])
def test_partial_fit_passes_over_its_block_once(monkeypatch, batch_size):
    steps = record_steps(monkeypatch)
    small(batch_size=batch_size).partial_fit(make_embeddings(n_rows=100))
    assert sorted(np.concatenate([rows for rows, _ in steps])) == list(range(100))


def test_partial_fit_keeps_adams_moments(embeddings):
    estimator = small(batch_size=400).partial_fit(embeddings)
    with_moments = copy.deepcopy(estimator).partial_fit(embeddings)
    estimator._moments = None
    without = estimator.partial_fit(embeddings)
    assert np.abs(with_moments.components_ - without.components_).max() > 1e-4


def test_partial_fit_follows_fit_and_refuses_other_widths(embeddings):
    estimator = small().fit(embeddings)
    before = estimator.n_iter_
    estimator.partial_fit(embeddings)
    assert estimator.n_iter_ > before
    with pytest.raises(ValueError, match="X has 7 features, but CompresSAETransformer is expecting 24"):
        estimator.partial_fit(np.ones((10, 7)))
    with pytest.raises(ValueError, match="n_components=64 differs from the 32 latents"):
        estimator.set_params(n_components=64).partial_fit(embeddings)


def test_warm_start_continues_from_the_fitted_weights(embeddings):
    estimator = small(warm_start=True, max_iter=150).fit(embeddings)
    first = estimator.components_.copy()
    estimator.set_params(max_iter=1, learning_rate=1e-9).fit(embeddings)
    np.testing.assert_allclose(estimator.components_, first, atol=1e-6)
    estimator.set_params(warm_start=False).fit(embeddings)
    assert np.abs(estimator.components_ - first).max() > 0.1
    estimator.set_params(warm_start=True, n_components=16)
    with pytest.raises(ValueError, match="n_components=16 differs from the 32 latents"):
        estimator.fit(embeddings)
    with pytest.raises(ValueError, match="X has 7 features"):
        estimator.set_params(n_components=32).fit(np.ones((10, 7)))


# Stopping ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["fit", "partial_fit"])
@pytest.mark.parametrize("at_step", [1, 4])
def test_interrupting_keeps_the_weights_so_far(embeddings, monkeypatch, method, at_step):
    def interrupt(n_steps):
        if n_steps == at_step:
            raise KeyboardInterrupt

    record_steps(monkeypatch, interrupt)
    estimator = small(batch_size=40)
    with pytest.warns(InterruptedFitWarning, match=rf"interrupted after {at_step - 1} step\(s\)"):
        getattr(estimator, method)(embeddings)
    assert estimator.n_iter_ == at_step - 1
    assert estimator.transform(embeddings).shape == (400, 32)
    assert 0 < estimator.score(embeddings) <= 1


def test_early_stopping_keeps_the_best_weights(embeddings, monkeypatch):
    seen = []

    def losses(self, row_indices):
        seen.append(self.current_weights().copy())
        cosine = [0.5, 0.8, 0.9, 0.7, 0.6, 0.85, 0.95][len(seen) - 1]
        return StepLosses(cosine, cosine, fired=np.zeros(32, dtype=np.int64))

    monkeypatch.setattr(CpuEngine, "losses", losses)
    estimator = small(early_stopping=True, n_iter_no_change=2, max_iter=7, usage_power=0).fit(embeddings)
    assert estimator.n_iter_ == 5
    assert len(estimator.validation_loss_curve_) == 5
    np.testing.assert_array_equal(estimator.components_, seen[2].decoder)
    np.testing.assert_array_equal(estimator.encoder_weights_, seen[2].encoder)
    seen.clear()
    estimator = small(early_stopping=False, n_iter_no_change=2, max_iter=7).fit(embeddings)
    assert estimator.n_iter_ == 7


# Memory-mapped files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int8])
def test_memory_mapped_rows_are_never_copied_whole(tmp_path, dtype):
    n_rows, n_features = 40_000_000 // (160 * np.dtype(dtype).itemsize), 160
    path = tmp_path / "rows.npy"
    rows = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=(n_rows, n_features))
    block = np.round(make_embeddings(n_rows=2500, n_features=n_features), 0 if dtype is np.int8 else 4).astype(dtype)
    for start in range(0, n_rows, 2500):
        rows[start : start + 2500] = block
    rows.flush()
    del rows
    rows = np.load(path, mmap_mode="r")
    estimator = small(max_iter=3, batch_size=256, coding="activations")
    tracemalloc.start()
    try:
        estimator.fit(rows)
        fit_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        codes = estimator.transform(rows)
        transform_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert codes.shape == (n_rows, 32)
    assert codes.dtype == (np.float64 if dtype is np.int8 else np.float32)
    code_bytes = codes.data.nbytes + codes.indices.nbytes + codes.indptr.nbytes
    assert transform_bytes < 15e6 + 2 * code_bytes
    assert fit_bytes < 30e6


def test_memory_mapped_rows_train_as_well_as_rows_in_memory(tmp_path):
    rows = make_embeddings(n_rows=2000)
    np.save(tmp_path / "rows.npy", rows)
    mapped = small(max_iter=100).fit(np.load(tmp_path / "rows.npy", mmap_mode="r"))
    assert mapped.score(rows) == pytest.approx(small(max_iter=100).fit(rows).score(rows), abs=0.01)


def test_batches_of_a_memory_mapped_file_keep_to_batch_size(tmp_path, monkeypatch):
    np.save(tmp_path / "rows.npy", make_embeddings(n_rows=500))
    rows = np.load(tmp_path / "rows.npy", mmap_mode="r")
    steps = record_steps(monkeypatch)
    for batch_size in (1, 10, 100, 256):
        steps.clear()
        small(batch_size=batch_size, max_iter=8).fit(rows)
        assert max(len(picks) for picks, _ in steps) <= batch_size


def test_interrupting_the_usage_statistics_leaves_a_whole_estimator(embeddings, monkeypatch):
    from skcompressae import _finish_methods

    measure, calls = _finish_methods.measure_usage, []

    def interrupted_once(*arguments):
        calls.append(arguments)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return measure(*arguments)

    monkeypatch.setattr(_finish_methods, "measure_usage", interrupted_once)
    compressor = CompresSAETransformer(n_components=32, k=4, max_iter=20, usage_power=0, random_state=0, device="cpu")
    with pytest.warns(InterruptedFitWarning, match="interrupted while it measured how the latents are used"):
        compressor.fit(embeddings)
    assert compressor.transform_query(embeddings[:3], n_nonzero=5).nnz == 15


def test_codes_beyond_the_range_of_the_dtype_are_an_error(fitted):
    X = np.full((1, fitted.n_features_in_), 3e38, dtype=np.float32)
    with pytest.raises(ValueError, match=r"norm='input' scales codes .* beyond float32"):
        fitted.transform(X)


def test_packed_codes_decode_as_their_csr(fitted, embeddings):
    packed = fitted.transform_packed(embeddings[:20], value_bits=6)
    np.testing.assert_array_equal(fitted.inverse_transform(packed), fitted.inverse_transform(packed.to_csr()))
    with pytest.raises(TypeError, match="quantizer must be a ValueQuantizer or None; got 'x'"):
        fitted.transform_packed(embeddings[:20], quantizer="x")


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({"k": 2}, 4.0),
        ({"k": 8}, 2.0),
        ({"k": 32}, 1.0),
        ({"k": 64}, 1.0),
        ({"k": 8, "neighborhood_weight": 0.7}, 0.7),
        ({"k": 8, "recipe": "paper"}, 0.0),
    ],
)
def test_the_neighbourhood_term_weighs_more_for_short_codes(embeddings, monkeypatch, parameters, expected):
    seen = []
    original = CpuEngine.__init__

    def record(self, rows, weights, moments, settings, *rest):
        seen.append(settings.neighborhood_weight)
        original(self, rows, weights, moments, settings, *rest)

    monkeypatch.setattr(CpuEngine, "__init__", record)
    small(n_components=64, max_iter=1, **parameters).fit(embeddings)
    assert seen == [pytest.approx(expected)]


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
@pytest.mark.parametrize("learning_rate", [1e38, 3e38])
def test_training_that_diverges_says_so(learning_rate):
    model = CompresSAETransformer(16, k=3, max_iter=20, learning_rate=learning_rate, random_state=0, device="cpu")
    with pytest.raises(ValueError, match="Training diverged: activations are no longer finite"):
        model.fit(np.random.RandomState(0).standard_normal((300, 8)))


def test_a_fit_that_is_refused_changes_nothing(embeddings):
    model = small().fit(embeddings)
    expected = model.transform(embeddings)
    for rows in (np.full((100, 8), np.nan, np.float32), np.ones((5, 8)) * np.inf):
        for method in (model.fit, model.set_params(warm_start=True).fit, model.partial_fit):
            with pytest.raises(ValueError, match=r"NaN|infinity|features"):
                method(rows)
            model.set_params(warm_start=False)
    with pytest.raises(ValueError, match="loss_weights must be"):
        model.set_params(loss_weights=(0, 0)).fit(embeddings[:, :8])
    assert (model.transform(embeddings) != expected).nnz == 0
    for method in ("fit", "partial_fit"):
        never = small(loss_weights=(0, 0))
        for rows in (np.full((10, 4), np.nan), embeddings):
            with pytest.raises(ValueError, match=r"NaN|loss_weights"):
                getattr(never, method)(rows)
            with pytest.raises(NotFittedError):
                never.transform(embeddings)
            with pytest.raises(NotFittedError):
                never.score(embeddings)


def test_a_fit_that_cannot_be_measured_keeps_its_weights(embeddings, monkeypatch):
    def fail(*_, **__):
        raise MemoryError

    monkeypatch.setattr("skcompressae._finish_methods.measure_usage", fail)
    model = small(usage_power=0)
    with pytest.raises(MemoryError):
        model.fit(embeddings)
    assert model.transform_query(embeddings[:2], n_nonzero=5).nnz == 10
    assert model.n_rows_counted_ == 0
    assert np.isnan(model.dead_latents_fraction_)


def test_divergence_at_the_last_step_is_noticed(embeddings):
    model = small(max_iter=1, learning_rate=3e38, learning_rate_schedule="constant", validation_fraction=0)
    with np.errstate(all="ignore"), pytest.raises(ValueError, match=r"Training diverged: .* Lower learning_rate"):
        model.fit(embeddings)
    assert not hasattr(model, "components_")


def test_latent_rms_is_that_of_unit_codes(embeddings):
    fits = [small(norm=norm).fit(embeddings) for norm in ("unit", "input", None)]
    for model in fits[1:]:
        np.testing.assert_array_equal(model.latent_rms_, fits[0].latent_rms_)
