"""Displays on axes that hold others, of a single point, and of models whose k is above the number of latents."""

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from conftest import tick_labels

from skcompressae._plot import CompressionTradeoffDisplay, LatentUsageDisplay, LossCurveDisplay

matplotlib.use("Agg")


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def points(series, *pairs):
    return [{"series": series, "compression_factor": float(x), "recall": y} for x, y in pairs]


def is_in_view(line):
    ax = line.axes
    ax.figure.canvas.draw()
    xy = ax.transAxes.inverted().transform(ax.transData.transform(line.get_xydata()))
    return bool(((xy > 0) & (xy < 1)).all())


def falling(n_latents, least=1e-4):
    return np.geomspace(0.5, least, n_latents)


def test_tradeoffs_on_the_same_axes_are_all_in_view_and_told_apart():
    _, ax = plt.subplots()
    displays = [
        CompressionTradeoffDisplay.from_results(points(name, *pairs), ax=ax)
        for name, pairs in (("a", ((3, 0.5), (10, 0.4))), ("b", ((3, 0.9), (10, 0.8))), ("c", ((40, 0.1), (2, 1.0))))
    ]
    lines = [line for display in displays for line in display.lines_]
    assert all(is_in_view(line) for line in lines)
    assert ax.get_ylim()[1] == 1.02
    assert len({(line.get_color(), line.get_marker()) for line in lines}) == 3
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["a", "b", "c"]


def test_tradeoff_keeps_limits_that_were_set():
    _, ax = plt.subplots()
    ax.set(ylim=(0.2, 0.7))
    CompressionTradeoffDisplay.from_results(points("a", (3, 0.5), (10, 0.4)), ax=ax)
    assert ax.get_ylim() == (0.2, 0.7)
    assert not ax.get_autoscaley_on()


@pytest.mark.parametrize("sizes", [(500, 100), (100, 500)])
@pytest.mark.parametrize("shares", [False, True])
def test_usages_on_the_same_or_linked_axes_are_all_in_view(sizes, shares):
    _, axes = plt.subplots(1, 2, sharex=shares, sharey=shares)
    displays = [
        LatentUsageDisplay(usage=falling(size, 10.0 / size**3)).plot(axes[at if shares else 0])
        for at, size in enumerate(sizes)
    ]
    assert all(is_in_view(display.line_) for display in displays)
    assert displays[0].ax_.get_xlim() == (0.5, 500.5)


def test_usage_is_drawn_over_other_lines():
    _, ax = plt.subplots()
    (line,) = ax.plot([1, 700], [90, 0.001])
    assert is_in_view(LatentUsageDisplay(usage=falling(10)).plot(ax).line_)
    low, high = ax.get_ylim()
    assert low < 0.001 < 90 < high
    assert ax.get_xlim() == (0.5, 700)
    assert line.axes is ax


def test_usage_of_dead_latents_leaves_the_limits_of_others():
    _, ax = plt.subplots()
    LatentUsageDisplay(usage=falling(20)).plot(ax)
    before = ax.axis()
    LatentUsageDisplay(usage=np.zeros(5)).plot(ax)
    assert ax.axis() == before


def test_usage_of_dead_latents_only_has_an_axis_of_percentages():
    display = LatentUsageDisplay(usage=np.zeros(4)).plot()
    assert tick_labels(display.ax_.yaxis) == ["1 %", "10 %", "100 %"]
    assert tick_labels(display.ax_.xaxis) == ["1", "2", "3", "4"]


@pytest.mark.parametrize("usage", [[0.25], [0.0, 0.25, 0.0]])
def test_usage_of_a_single_latent_is_a_marker(usage):
    display = LatentUsageDisplay(usage=usage).plot()
    assert display.line_.get_marker() == "o"
    assert is_in_view(display.line_)
    assert tick_labels(display.ax_.xaxis) == [str(at + 1) for at in range(len(usage))]
    assert display.plot(marker="x").line_.get_marker() == "x"


def test_usage_shows_a_mean_below_every_latent_that_fires():
    ax = LatentUsageDisplay(usage=[0.25, *np.zeros(99)]).plot().ax_
    assert ax.get_ylim()[0] < 0.25 < 25 < ax.get_ylim()[1]


@pytest.mark.parametrize("yscale", ["linear", "log"])
def test_loss_of_a_single_step_is_a_marker(yscale):
    display = LossCurveDisplay(training_loss=[0.5]).plot(yscale=yscale)
    assert display.lines_[0].get_marker() == "o"
    assert is_in_view(display.lines_[0])
    assert tick_labels(display.ax_.xaxis) == ["0", "1", "2"]
    longer = LossCurveDisplay(training_loss=np.linspace(1, 0.1, 40)).plot(display.ax_, yscale=yscale)
    assert is_in_view(longer.lines_[0])
    assert longer.lines_[0].get_marker() == "None"


def test_loss_over_a_window_of_all_steps_is_a_marker():
    _, mean = LossCurveDisplay(training_loss=[3.0, 2.0, 1.0]).plot(window=3).lines_
    assert (mean.get_marker(), mean.get_xydata().tolist()) == ("o", [[2.0, 2.0]])


def test_tradeoff_reads_a_polars_data_frame():
    records = [{**point, "label": label} for point, label in zip(points("a", (3, 0.5), (10, 0.4)), "xy", strict=True)]
    table = pytest.importorskip("polars").DataFrame(records)
    assert CompressionTradeoffDisplay.from_results(table).results == records


def test_tradeoff_measures_k_above_the_number_of_latents_once(fitted, embeddings):
    n_latents = len(fitted.components_)
    with pytest.warns(UserWarning, match=rf"Using k={n_latents}"):
        display = CompressionTradeoffDisplay.from_estimator(
            fitted, embeddings, k=(2, n_latents + 1, n_latents, n_latents + 9), modes="sparse", reference=None
        )
    assert [point["label"] for point in display.results] == ["k=2", f"k={n_latents}"]


@pytest.mark.parametrize(
    "draw",
    [
        lambda style: LatentUsageDisplay(usage=falling(9)).plot(**style).line_,
        lambda style: LossCurveDisplay(training_loss=falling(200)).plot(**style).lines_[-1],
        lambda style: CompressionTradeoffDisplay(results=points("a", (3, 0.5), (9, 0.4))).plot(line_kw=style).lines_[0],
    ],
    ids=["usage", "loss", "tradeoff"],
)
def test_styles_are_taken_by_the_short_names_of_matplotlib(draw):
    line = draw({"c": "red", "lw": 3.5, "ls": ":"})
    assert (line.get_color(), line.get_linewidth(), line.get_linestyle()) == ("red", 3.5, ":")
