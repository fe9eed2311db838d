"""What the displays share: axes, colours, plain ticks on log scales, and labels that avoid one another."""

from __future__ import annotations

import importlib.util
from itertools import pairwise
from typing import Any

import numpy as np

__all__ = [
    "COLORS",
    "MARKERS",
    "format_plain",
    "label_points",
    "line_style",
    "make_axes",
    "marker_of_one",
    "require_matplotlib",
    "set_integer_ticks",
    "set_plain_log_scale",
]

# Okabe and Ito's palette, told apart by readers with any common colour blindness; without its yellow and its
# sky blue, which are too faint on white. https://jfly.uni-koeln.de/color/
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")

# Directions in which a label may stand from its point, best first, as (dx, dy) in units of its distance.
_DIRECTIONS = ((0, 1), (0, -1), (1, 0), (-1, 0), (0.8, 0.8), (-0.8, 0.8), (0.8, -0.8), (-0.8, -0.8))
_DISTANCES_POINTS = (6.0, 11.0, 17.0)


def require_matplotlib(caller: str) -> None:
    """Raise ImportError in the name of `caller` if matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ImportError(f"{caller} requires matplotlib: install the extra 'plot' of skcompressae")


def make_axes(ax: Any, caller: str, figsize: tuple[float, float]) -> Any:
    """Return `ax`, or new axes on a figure whose layout leaves room for what stands outside them."""
    require_matplotlib(caller)
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=figsize, layout="constrained")[1]


def marker_of_one(values: Any) -> dict[str, str]:
    """Return the style that shows the line through an array of values also where it is a single point."""
    return {"marker": "o"} if values.size == 1 else {}


def line_style(defaults: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Return the keyword arguments of a line: those given, also by matplotlib's short names, over the defaults."""
    from matplotlib.cbook import normalize_kwargs
    from matplotlib.lines import Line2D

    return {**defaults, **normalize_kwargs(given, Line2D)}


def format_plain(value: float) -> str:
    """Write a number without exponent and without trailing zeros: 0.001, 12.5, 4,096."""
    text = f"{value:,.0f}" if abs(value) >= 100 else f"{value:.6f}".rstrip("0").rstrip(".")
    return text or "0"


def set_integer_ticks(ax: Any) -> None:
    """Put the ticks of the x axis at integers, a single one where only one is in view, with plain labels."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def set_plain_log_scale(ax: Any, which: str, base: int, suffix: str = "") -> None:
    """Make the x or y axis logarithmic with labels a reader need not decode, and at least three of them.

    Parameters
    ----------
    ax : matplotlib Axes
        With its limits set.
    which : {"x", "y"}
        The axis.
    base : {2, 10}
        Ticks at powers of `base`, and between them where fewer than three fall inside the limits.
    suffix : str, default=""
        Unit behind each number.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis = ax.xaxis if which == "x" else ax.yaxis
    getattr(ax, f"set_{which}scale")("log", base=base)
    low, high = sorted(axis.get_view_interval())
    finer = {
        2: ((1.0,), (1.0, 1.5), (1.0, 1.25, 1.5, 1.75)),
        10: ((1.0,), (1.0, 3.0), (1.0, 2.0, 3.0, 5.0, 7.0)),
    }
    for multiples in finer[base]:
        powers = np.arange(np.floor(np.log(low) / np.log(base)), np.ceil(np.log(high) / np.log(base)) + 1)
        ticks = np.outer(float(base) ** powers, multiples).ravel()
        if np.count_nonzero((ticks >= low) & (ticks <= high)) >= 3:
            break
    axis.set_major_locator(LogLocator(base=base, subs=multiples))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: format_plain(value) + suffix))


def label_points(ax: Any, points: list[tuple[float, float, str, str]], lines: list[Any]) -> list[Any]:
    """Write a label beside each ``(x, y, text, color)`` where it covers no marker, line or other label.

    Greedy: each label takes the free place nearest to its point, or the least covered one. Call it last, when
    scales, limits and legend stand.
    """
    figure = ax.figure.figure
    figure.draw_without_rendering()
    renderer = figure.canvas.get_renderer() if hasattr(figure.canvas, "get_renderer") else None
    pixels_per_point = figure.dpi / 72
    places = ax.transData.transform([(x, y) for x, y, _, _ in points])
    obstacles = [_around(place, 4 * pixels_per_point) for place in places]
    for line in lines:
        path = ax.transData.transform(line.get_xydata())
        for start, stop in pairwise(path):
            steps = np.linspace(0, 1, max(2, int(np.hypot(*(stop - start)) / (3 * pixels_per_point))))
            obstacles += [_around(start + step * (stop - start), pixels_per_point) for step in steps]
    frame = ax.get_window_extent(renderer)
    texts = []
    for (x, y, content, color), place in zip(points, places, strict=True):
        text = ax.annotate(
            content,
            (x, y),
            (0, 0),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=8,
            color=color,
        )
        size = text.get_window_extent(renderer)
        half = np.array([size.width, size.height]) / 2
        boxes = np.array(obstacles)
        best_cost, best = np.inf, (0.0, 0.0)
        for distance in _DISTANCES_POINTS:
            for rank, (dx, dy) in enumerate(_DIRECTIONS):
                # the distance is from the edge of the label, so its own half size is added
                shift = np.array([dx, dy]) * distance * pixels_per_point + np.sign([dx, dy]) * half * [1, 0.6]
                box = np.concatenate([place + shift - half, place + shift + half])
                is_outside = box[0] < frame.x0 or box[1] < frame.y0 or box[2] > frame.x1 or box[3] > frame.y1
                cost = 100 * _n_overlaps(box, boxes) + 1000 * is_outside + distance + 0.1 * rank
                if cost < best_cost:
                    best_cost, best = cost, tuple(shift)
        text.set_position((best[0] / pixels_per_point, best[1] / pixels_per_point))
        obstacles.append(np.concatenate([place + best - half, place + best + half]))
        texts.append(text)
    return texts


def _around(center: Any, radius: float) -> Any:
    return np.concatenate([np.asarray(center) - radius, np.asarray(center) + radius])


def _n_overlaps(box: Any, boxes: Any) -> int:
    is_apart = (boxes[:, 2] <= box[0]) | (boxes[:, 0] >= box[2]) | (boxes[:, 3] <= box[1]) | (boxes[:, 1] >= box[3])
    return int(np.count_nonzero(~is_apart))
