import importlib.util
import json
from copy import deepcopy

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from conftest import tick_labels
from scipy import sparse
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skcompressae._plot import CompressionTradeoffDisplay, LatentUsageDisplay, LossCurveDisplay
from skcompressae._plot import _references as references
from skcompressae._plot import _tradeoff_points as points_module
from skcompressae._plot._references import reference_points
from skcompressae.metrics import RetrievalRecallScorer

matplotlib.use("Agg")


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


class TopKCompressor(TransformerMixin, BaseEstimator):
    """A compressor with what the displays ask of one: the largest projections on random unit vectors."""

    def __init__(self, k=4, n_components=24):
        self.k = k
        self.n_components = n_components

    def fit(self, X, y=None):
        D = np.random.default_rng(0).normal(size=(self.n_components, X.shape[1]))
        self.components_ = D / np.linalg.norm(D, axis=1, keepdims=True)
        self.latent_counts_ = np.bincount(self.transform(X).indices, minlength=self.n_components)
        self.n_rows_counted_ = len(X)
        self.loss_curve_ = list(np.linspace(1.0, 0.2, 200))
        self.validation_loss_curve_, self.validation_steps_ = [0.7, 0.5, 0.3, 0.25], [50, 90, 150, 200]
        return self

    def transform(self, X):
        latents = (np.asarray(X) @ self.components_.T).astype(np.float32)
        order = np.argsort(-np.abs(latents), axis=1)
        np.put_along_axis(latents, order[:, self.k :], 0.0, axis=1)
        codes = sparse.csr_array(latents)
        codes.indices, codes.indptr = codes.indices.astype(np.int32), codes.indptr.astype(np.int32)
        return codes

    def transform_query(self, X):
        return sparse.csr_array(np.asarray(X) @ self.components_.T)


@pytest.fixture
def without_matplotlib(monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "matplotlib" else find_spec(name, *rest),
    )


def make_rows(n_rows=400, n_features=16):
    rng = np.random.default_rng(1)
    return rng.normal(size=(n_rows, n_features)) * np.linspace(1, 3, n_features)


def make_results():
    results = []
    for series, shift in (("ours", 0.0), ("theirs", -0.02), ("PCA", -0.3)):
        for k, recall in ((8, 0.5), (16, 0.7), (32, 0.9)):
            results.append(
                {
                    "series": series,
                    "label": f"k={k}",
                    "compression_factor": 192 / k,
                    "bytes_per_vector": 8 * k,
                    "recall": recall + shift,
                    "n_neighbors": 100,
                    "is_reference": series == "PCA",
                }
            )
    return results


# --- trade-off ---


def test_tradeoff_draws_one_curve_per_series_sorted_along_x():
    display = CompressionTradeoffDisplay.from_results(make_results())
    assert [line.get_label() for line in display.lines_] == ["ours", "theirs", "PCA"]
    np.testing.assert_allclose(display.lines_[0].get_xydata(), [[6, 0.9], [12, 0.7], [24, 0.5]])
    assert [line.get_linestyle() for line in display.lines_] == ["-", "-", "--"]
    assert len({(line.get_color(), line.get_marker()) for line in display.lines_}) == 3
    assert display.ax_.get_ylabel() == "Recall@100 of the exact neighbours"
    assert display.ax_.get_xlabel() == "Compression factor (float32 bytes / code bytes)"
    assert display.figure_ is display.ax_.figure
    assert [text.get_text() for text in display.texts_] == 3 * ["k=32", "k=16", "k=8"]


def test_tradeoff_ticks_are_plain_numbers():
    display = CompressionTradeoffDisplay.from_results(make_results())
    assert tick_labels(display.ax_.xaxis) == ["6×", "8×", "12×", "16×", "24×"]
    assert tick_labels(display.plot(x="bytes_per_vector").ax_.xaxis) == ["64", "128", "256"]


def test_tradeoff_labels_cover_no_marker_and_no_other_label():
    display = CompressionTradeoffDisplay.from_results(make_results())
    display.figure_.canvas.draw()
    boxes = [text.get_window_extent() for text in display.texts_]
    frame = display.ax_.get_window_extent()
    markers = np.concatenate([display.ax_.transData.transform(line.get_xydata()) for line in display.lines_])
    for at, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:at])
        assert not any(box.contains(x, y) for x, y in markers)
        assert frame.contains(box.x0, box.y0)
        assert frame.contains(box.x1, box.y1)
    legend = display.ax_.get_legend().get_window_extent()
    assert legend.x0 >= frame.x1
    assert legend.x1 <= display.figure_.bbox.x1


def test_tradeoff_reads_every_container_alike(tmp_path):
    results = make_results()
    (tmp_path / "list.json").write_text(json.dumps(results))
    (tmp_path / "object.json").write_text(json.dumps({"host": "x", "results": results}))
    for source in (
        iter(results),
        pd.DataFrame(results),
        {"results": results},
        tmp_path / "list.json",
        str(tmp_path / "object.json"),
    ):
        assert CompressionTradeoffDisplay.from_results(source).results == results


def test_tradeoff_takes_gaps_of_a_data_frame_as_absent_keys():
    table = pd.DataFrame(make_results())
    table.loc[0, ["label", "bytes_per_vector"]] = [None, np.nan]
    display = CompressionTradeoffDisplay.from_results(table)
    assert set(display.results[0]) == set(make_results()[0]) - {"label", "bytes_per_vector"}
    assert len(display.texts_) == 8
    with pytest.raises(ValueError, match="results must have 'bytes_per_vector' in every record"):
        display.plot(x="bytes_per_vector")


def test_tradeoff_draws_on_given_axes_with_given_style():
    _, ax = plt.subplots()
    display = CompressionTradeoffDisplay.from_results(
        make_results(), ax=ax, show_labels=False, line_kw={"linewidth": 4.0}
    )
    assert display.ax_ is ax
    assert display.texts_ == []
    assert {line.get_linewidth() for line in display.lines_} == {4.0}


def test_tradeoff_of_one_point_still_has_ticks():
    display = CompressionTradeoffDisplay.from_results(make_results()[:1])
    assert len(tick_labels(display.ax_.xaxis)) >= 3


@pytest.mark.parametrize(
    ("results", "match"),
    [
        ([], "results must hold at least one point"),
        ({"rows": []}, r"list under 'results', got the keys \['rows'\]"),
        (["a"], "results must hold dicts, got str at place 0"),
        ([{"series": "a", "recall": 0.5}], "'compression_factor' in every record, got .* at place 0"),
        ([{"series": "a", "recall": 50, "compression_factor": 2}], "recall must be between 0 and 1, got 50"),
        ([{"series": "a", "recall": "0.5", "compression_factor": 2}], "recall must be between 0 and 1, got '0.5'"),
        ([{"series": "a", "recall": 0.5, "compression_factor": 0}], "compression_factor must be positive"),
        ([{"series": "a", "recall": 0.5, "compression_factor": "2"}], "compression_factor must be positive .* got '2'"),
        (
            [{"series": "a", "recall": 0.5, "compression_factor": 2, "bytes_per_vector": -1}],
            "bytes_per_vector must be positive and finite, got -1",
        ),
    ],
)
def test_tradeoff_names_what_is_wrong_in_results(results, match):
    with pytest.raises(ValueError, match=match):
        CompressionTradeoffDisplay.from_results(results)


def test_tradeoff_ignores_other_keys_of_results():
    record = {"series": "a", "recall": 0.5, "compression_factor": 2.0, "times": np.arange(3), "seed": np.float32("nan")}
    (point,) = CompressionTradeoffDisplay.from_results([record]).results
    assert sorted(point) == ["compression_factor", "recall", "series", "times"]


def test_tradeoff_takes_single_values_as_lists_of_one():
    X = make_rows()
    model = TopKCompressor(k=4).fit(X)

    def results(**options):
        return CompressionTradeoffDisplay.from_estimator(model, X, n_neighbors=10, reference=None, **options).results

    assert results(k=2, modes="sparse") == results(k=[2], modes=["sparse"])
    with pytest.raises(TypeError, match=r"k must be an instance of .* not float"):
        results(k=2.0)


def test_tradeoff_measures_what_the_metrics_measure():
    X = make_rows()
    model = TopKCompressor(k=4).fit(X)
    display = CompressionTradeoffDisplay.from_estimator(
        model, X, k=(1, 2, 4), n_neighbors=10, reference=None, random_state=7
    )
    assert len(display.results) == 9
    display.figure_.canvas.draw()
    assert display.ax_.get_legend().get_window_extent().x0 >= display.ax_.get_window_extent().x1
    assert model.k == 4
    for point in display.results:
        k = int(point["label"].removeprefix("k="))
        # float32 values, int32 indices, and one more int32 pointer than the 320 documents
        assert point["bytes_per_vector"] == pytest.approx(8 * k + 4 * 321 / 320)
        assert point["compression_factor"] == pytest.approx(64 / point["bytes_per_vector"])
        scorer = RetrievalRecallScorer(point["series"].split(", ")[1], n_neighbors=10, random_state=7)
        assert point["recall"] == pytest.approx(scorer(TopKCompressor(k=k).fit(X), X), abs=0.002)
    recalls = [p["recall"] for p in display.results if p["series"] == "CompresSAE, asymmetric"]
    assert recalls == sorted(recalls)


def test_sizes_are_those_of_sparse_float32_codes(fitted, embeddings):
    """Whatever the compressor gives: dense arrays, data frames, codes of float64."""
    options = {"k": (2, 4), "modes": ["sparse"], "n_neighbors": 5, "reference": None, "random_state": 0}
    expected = CompressionTradeoffDisplay.from_estimator(fitted, embeddings, **options).results
    assert expected[0]["bytes_per_vector"] < 8 * 2 + 5
    dense = deepcopy(fitted).set_params(sparse_output=False)
    for model, rows in (
        (dense, embeddings),
        (deepcopy(dense).set_output(transform="pandas"), embeddings),
        (fitted, embeddings.astype(np.float64)),
    ):
        assert CompressionTradeoffDisplay.from_estimator(model, rows, **options).results == expected
    framed = deepcopy(dense).set_output(transform="pandas")
    CompressionTradeoffDisplay.from_estimator(framed, embeddings, **options)
    assert isinstance(framed.transform(embeddings[:2]), pd.DataFrame)
    expected = LatentUsageDisplay.from_estimator(fitted, embeddings).usage
    sparse_framed = deepcopy(fitted).set_output(transform="pandas")
    for model in (dense, framed, sparse_framed, make_pipeline(sparse_framed)):
        np.testing.assert_array_equal(LatentUsageDisplay.from_estimator(model, embeddings).usage, expected)


def test_tradeoff_takes_queries_and_pipelines():
    X = make_rows()
    pipeline = make_pipeline(StandardScaler(), TopKCompressor()).fit(X)
    kwargs = {"k": [2], "n_neighbors": 10, "modes": ["sparse"], "reference": "pca"}
    display = CompressionTradeoffDisplay.from_estimator(pipeline, X[50:], X_queries=X[:50], **kwargs)
    scaled = pipeline[0].transform(X)
    direct = CompressionTradeoffDisplay.from_estimator(pipeline[-1], scaled[50:], X_queries=scaled[:50], **kwargs)
    assert display.results == direct.results
    assert [point["series"] for point in display.results] == ["CompresSAE, sparse", "PCA"]


def test_tradeoff_adds_references_of_about_the_same_bytes(monkeypatch):
    pytest.importorskip("faiss")
    X = make_rows()
    model = TopKCompressor().fit(X)
    kwargs = {"k": [2], "n_neighbors": 10, "modes": ["asymmetric"]}
    display = CompressionTradeoffDisplay.from_estimator(model, X, **kwargs)
    assert [(p["series"], p["label"], p["bytes_per_vector"]) for p in display.results[1:]] == [
        ("PCA", "5 dim", 20.0),
        ("PQ (FAISS)", "16 B", 16.0),
        ("OPQ (FAISS)", "16 B", 16.0),
    ]
    assert all(point["is_reference"] for point in display.results[1:])
    # one byte for each of 16 coordinates is nearly lossless; five of 16 dimensions are not
    assert display.results[2]["recall"] > 0.9 > display.results[1]["recall"] > 0.3
    # fewer documents than centroids: left out of "auto", an error by name
    few = CompressionTradeoffDisplay.from_estimator(model, X[:300], **kwargs)
    assert [point["series"] for point in few.results] == ["CompresSAE, asymmetric", "PCA"]
    with pytest.raises(ValueError, match="need at least 256 documents, got 240"):
        CompressionTradeoffDisplay.from_estimator(model, X[:300], reference=["pq"], **kwargs)
    monkeypatch.setattr(points_module, "has_faiss", lambda: False)
    bare = CompressionTradeoffDisplay.from_estimator(model, X, **kwargs)
    assert [point["series"] for point in bare.results] == ["CompresSAE, asymmetric", "PCA"]
    with pytest.raises(ImportError, match=r"'pq' and 'opq' require FAISS.*extra 'benchmark' of skcompressae"):
        CompressionTradeoffDisplay.from_estimator(model, X, reference="opq", **kwargs)


@pytest.mark.parametrize("metric", ["cosine", "dot"])
@pytest.mark.parametrize(("dtype", "exponent"), [("f4", -80), ("f4", 80), ("f8", -170), ("f8", 170)])
def test_tradeoff_is_that_of_rows_of_any_length(fitted, embeddings, metric, dtype, exponent):
    options = {"k": [4], "modes": ["asymmetric"], "n_neighbors": 5, "metric": metric, "reference": "pca"}
    rows = np.ldexp(embeddings.astype(dtype), exponent)
    if metric == "dot" and exponent == 170:
        with pytest.raises(ValueError, match=r"codes must have norms below 1e\+30, got .*; rescale them"):
            CompressionTradeoffDisplay.from_estimator(fitted, rows, **options)
        return
    expected = CompressionTradeoffDisplay.from_estimator(fitted, embeddings.astype(dtype), **options).results
    assert [point["series"] for point in expected] == ["CompresSAE, asymmetric", "PCA"]
    assert CompressionTradeoffDisplay.from_estimator(fitted, rows, **options).results == expected
    assert fitted.norm == "input"


def test_pca_reference_is_the_best_linear_reconstruction_of_its_rank():
    rows = make_rows().astype(np.float32)
    ((label, size_bytes, kept),) = reference_points("pca", rows, [24.0, 64.0, 100.0], 0)
    assert (label, size_bytes) == ("6 dim", 24.0)
    centered = rows - rows.mean(axis=0)
    left, values, right = np.linalg.svd(centered.astype(np.float64), full_matrices=False)
    best = (left[:, :6] * values[:6]) @ right[:6] + rows.mean(axis=0)
    np.testing.assert_allclose(kept, best, atol=1e-4)


def test_pca_reference_of_equal_rows_is_these():
    rows = np.zeros((60, 12), np.float32)
    ((_, _, kept),) = reference_points("pca", rows, [24.0], 0)
    np.testing.assert_array_equal(kept, rows)


def test_quantized_references_repeat_with_a_seed_and_rotation_does_no_harm(capfd):
    pytest.importorskip("faiss")
    # correlated coordinates are what a rotation is for
    rows = make_rows(600, 8) @ np.random.default_rng(2).normal(size=(8, 8))
    rows = rows.astype(np.float32)
    errors = {}
    for name in ("pq", "opq"):
        ((label, size_bytes, kept),) = reference_points(name, rows, [2.0], 0)
        assert (label, size_bytes) == ("2 B", 2.0)
        ((_, _, again),) = reference_points(name, rows, [2.0], 0)
        np.testing.assert_array_equal(kept, again)
        errors[name] = np.sum((kept - rows) ** 2) / np.sum((rows - rows.mean(axis=0)) ** 2)
    assert errors["opq"] < errors["pq"] < 0.2
    assert capfd.readouterr().err == ""
    assert references.has_faiss()


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"k": []}, "k must hold at least one"),
        ({"k": [0]}, "k == 0, must be >= 1"),
        ({"modes": ["dense"]}, r"modes must be some of .* got \['dense'\]"),
        ({"modes": []}, r"modes must be some of .* got \[\]"),
        ({"modes": "dense"}, r"modes must be some of .* got \['dense'\]"),
        ({"k": 0}, "k == 0, must be >= 1"),
        ({"n_neighbors": 0}, "n_neighbors == 0"),
        ({"n_neighbors": 390}, r"n_queries \+ n_neighbors = 80 \+ 390 rows, got 400"),
        ({"reference": ["lsh"]}, r"reference must be 'auto', None or some of .* got \['lsh'\]"),
        ({"metric": "l2"}, "metric must be one of .* got 'l2'"),
    ],
)
def test_tradeoff_checks_its_parameters(kwargs, match):
    X = make_rows()
    kwargs = {"k": [2], "n_neighbors": 10, **kwargs}
    with pytest.raises(ValueError, match=match):
        CompressionTradeoffDisplay.from_estimator(TopKCompressor().fit(X), X, **kwargs)


def test_tradeoff_refuses_an_unknown_axis():
    with pytest.raises(ValueError, match=r"x must be one of .* got 'k'"):
        CompressionTradeoffDisplay(results=make_results()).plot(x="k")


# --- latent usage ---


def test_usage_from_counts_and_from_rows_agree():
    X = make_rows()
    model = TopKCompressor().fit(X)
    stored = LatentUsageDisplay.from_estimator(model)
    counted = LatentUsageDisplay.from_estimator(model, X)
    np.testing.assert_allclose(stored.usage, counted.usage, rtol=1e-12)
    np.testing.assert_allclose(counted.usage, model.latent_counts_ / 400)
    piped = LatentUsageDisplay.from_estimator(make_pipeline(StandardScaler(), model))
    np.testing.assert_array_equal(piped.usage, stored.usage)
    np.testing.assert_allclose(stored.line_.get_ydata(), 100 * np.sort(stored.usage)[::-1])


def test_usage_shades_and_counts_dead_latents():
    usage = np.array([0.0, 0.5, 0.001, 0.0, 0.1, 0.02, 0.0, 0.3])
    display = LatentUsageDisplay(usage=usage).plot()
    assert display.dead_fraction_ == 3 / 8
    np.testing.assert_allclose(display.line_.get_xydata()[:, 1], [50, 30, 10, 2, 0.1])
    labels = [text.get_text() for text in display.ax_.get_legend().get_texts()]
    assert labels == ["latents, most used first", "mean usage, 12 %", "dead: 37.5 % (3 of 8)"]
    (span,) = display.ax_.patches
    corners = span.get_patch_transform().transform(span.get_path().vertices)  # whichever patch Matplotlib draws
    assert set(corners[:, 0]) == {5.5, 8.5}
    assert tick_labels(display.ax_.yaxis) == ["0.1 %", "1 %", "10 %"]


@pytest.mark.parametrize("usage", [np.zeros(4), np.full(4, 0.25)])
def test_usage_of_all_or_no_dead_latents_is_drawn(usage):
    display = LatentUsageDisplay(usage=usage).plot(plt.subplots()[1], color="k")
    dead = int(np.sum(usage == 0))
    last = display.ax_.get_legend().get_texts()[-1].get_text()
    assert last == f"dead: {25 * dead} % ({dead} of 4)"
    assert display.line_.get_color() == "k"


@pytest.mark.parametrize(
    ("usage", "match"),
    [
        ([], "usage must be a non-empty vector"),
        ([[0.5]], r"usage must be a non-empty vector, got shape \(1, 1\)"),
        ([0.5, 2.0], "usage must be between 0 and 1, got values from 0.5 to 2.0"),
        ([np.nan], "usage must be between 0 and 1"),
    ],
)
def test_usage_names_what_is_wrong(usage, match):
    with pytest.raises(ValueError, match=match):
        LatentUsageDisplay(usage=usage)


def test_usage_needs_a_fitted_estimator_and_rows():
    with pytest.raises(NotFittedError, match="TopKCompressor instance is not fitted"):
        LatentUsageDisplay.from_estimator(TopKCompressor())
    model = TopKCompressor().fit(make_rows())
    with pytest.raises(ValueError, match="X must have at least one row"):
        LatentUsageDisplay.from_estimator(model, np.empty((0, 16)))


# --- loss curve ---


def test_loss_curve_draws_every_step_a_centered_mean_and_validation():
    model = TopKCompressor().fit(make_rows())
    display = LossCurveDisplay.from_estimator(make_pipeline(StandardScaler(), model))
    raw, mean, validation = display.lines_
    np.testing.assert_array_equal(raw.get_xdata(), np.arange(1, 201))
    np.testing.assert_array_equal(raw.get_ydata(), model.loss_curve_)
    # the centered mean of a straight line is the line itself
    np.testing.assert_allclose(
        mean.get_ydata(), np.interp(mean.get_xdata(), raw.get_xdata(), raw.get_ydata()), rtol=1e-12
    )
    assert mean.get_label() == "training, mean of 4 steps"
    np.testing.assert_allclose(validation.get_xydata(), [[50, 0.7], [90, 0.5], [150, 0.3], [200, 0.25]])
    assert display.ax_.get_xlabel() == "Optimiser step"


def test_loss_curve_of_a_short_run_has_no_mean_and_needs_no_validation():
    display = LossCurveDisplay(training_loss=[3.0, 2.0, 1.0]).plot(yscale="log")
    assert [line.get_label() for line in display.lines_] == ["training"]
    assert display.ax_.get_yscale() == "log"
    display = LossCurveDisplay(training_loss=[3.0, 2.0, 1.0]).plot(window=2)
    np.testing.assert_allclose(display.lines_[1].get_xydata(), [[1.5, 2.5], [2.5, 1.5]])


def test_loss_curve_places_validation_at_given_steps():
    display = LossCurveDisplay(training_loss=[1.0] * 9, validation_loss=[2.0, 1.0], validation_steps=[1, 7])
    np.testing.assert_array_equal(display.plot().lines_[-1].get_xdata(), [1, 7])


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: LossCurveDisplay(training_loss=[]), "training_loss must be a non-empty vector"),
        (
            lambda: LossCurveDisplay(training_loss=[1.0], validation_loss=[[1.0]]),
            r"validation_loss must be a vector, got shape \(1, 1\)",
        ),
        (
            lambda: LossCurveDisplay(training_loss=[1.0], validation_loss=[1.0], validation_steps=[1, 2]),
            r"one step for each of the 1 values of validation_loss, got shape \(2,\)",
        ),
        (lambda: LossCurveDisplay(training_loss=[1.0]).plot(window=2), "window == 2, must be <= 1"),
        (lambda: LossCurveDisplay(training_loss=[1.0]).plot(yscale="sqrt"), "yscale must be .* got 'sqrt'"),
    ],
)
def test_loss_curve_names_what_is_wrong(call, match):
    with pytest.raises(ValueError, match=match):
        call()


def test_loss_curve_needs_a_fitted_estimator():
    with pytest.raises(NotFittedError, match="TopKCompressor instance is not fitted"):
        LossCurveDisplay.from_estimator(TopKCompressor())
    untrained = TopKCompressor().fit(make_rows())
    untrained.loss_curve_ = np.empty(0)
    with pytest.raises(ValueError, match="its loss_curve_ is empty, as that of models from reference checkpoints is"):
        LossCurveDisplay.from_estimator(untrained)


# --- without matplotlib ---


@pytest.mark.parametrize(
    ("call", "caller"),
    [
        (lambda: CompressionTradeoffDisplay.from_results(make_results()), "CompressionTradeoffDisplay.plot"),
        (
            lambda: CompressionTradeoffDisplay.from_estimator(None, None),
            "CompressionTradeoffDisplay.from_estimator",
        ),
        (lambda: LatentUsageDisplay.from_estimator(None), "LatentUsageDisplay.from_estimator"),
        (lambda: LossCurveDisplay(training_loss=[1.0]).plot(), "LossCurveDisplay.plot"),
    ],
)
def test_missing_matplotlib_is_said_before_any_work(without_matplotlib, call, caller):
    with pytest.raises(ImportError, match=rf"{caller} requires matplotlib.*extra 'plot' of skcompressae"):
        call()
