"""CompressionTradeoffDisplay: recall against compression factor."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Any

import numpy as np

from skcompressae._plot._axes import (
    COLORS,
    MARKERS,
    label_points,
    line_style,
    make_axes,
    require_matplotlib,
    set_plain_log_scale,
)
from skcompressae._plot._tradeoff_points import measure_tradeoff

__all__ = ["CompressionTradeoffDisplay"]

_X_LABELS = {
    "compression_factor": "Compression factor (float32 bytes / code bytes)",
    "bytes_per_vector": "Bytes per vector",
}


class CompressionTradeoffDisplay:
    """Recall of retrieval against the compression factor.

    Make it with :meth:`from_estimator` or :meth:`from_results`; draw it again with :meth:`plot`.

    Parameters
    ----------
    results : list of dict
        One dict per point, with the keys `series` (str, the curve it belongs to), `compression_factor`
        (float) and `recall` (float from 0 to 1). Optional keys: `label` (str, written beside the point),
        `bytes_per_vector` (float), `n_neighbors` (int, the n of recall@n) and `is_reference` (bool, drawn
        dashed). As everywhere in matplotlib, text between two "$" is mathematics unless a backslash
        escapes them, and a series whose name begins with "_" is left out of the legend.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes with the curves.
    figure_ : matplotlib Figure
        Figure of the axes.
    lines_ : list of matplotlib Line2D
        One line per series, in the order of their first points.
    texts_ : list of matplotlib Annotation
        The labels of the points.

    See Also
    --------
    LatentUsageDisplay : How often each latent fires.
    LossCurveDisplay : The loss during training.
    skcompressae.metrics.neighbor_recall_score : What the vertical axis shows.

    Examples
    --------
    >>> from skcompressae import CompressionTradeoffDisplay
    >>> display = CompressionTradeoffDisplay(
    ...     results=[{"series": "PCA", "compression_factor": 12.0, "recall": 0.6, "label": "64 dim"}]
    ... )
    >>> display.results[0]["recall"]
    0.6
    """

    def __init__(self, *, results: list[dict[str, Any]]) -> None:
        self.results = results

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        *,
        X_queries: Any = None,
        k: Iterable[int] | int = (8, 16, 32),
        modes: Iterable[str] | str = ("asymmetric", "reconstructed", "sparse"),
        n_neighbors: int = 100,
        metric: str = "cosine",
        reference: Iterable[str] | str | None = "auto",
        random_state: Any = 0,
        ax: Any = None,
        **kwargs: Any,
    ) -> CompressionTradeoffDisplay:
        """Measure a fitted compressor at several `k` and draw the trade-off.

        The same model serves every `k`: a copy with another `k` encodes the documents again. Sizes are those
        of the CSR codes in memory, against float32 vectors. Model weights and codebooks, which do not grow
        with the number of documents, are not counted for any method.

        Parameters
        ----------
        estimator : fitted CompresSAETransformer, or Pipeline that ends in one
            The compressor. In a pipeline, everything is measured in the space that enters the last step.
        X : array-like of shape (n_samples, n_features)
            Rows to search in; best rows that the estimator has not been fitted on.
        X_queries : array-like of shape (n_queries, n_features) or None, default=None
            Queries. None takes a fifth of the rows of `X`, at most 1,000, out of the documents.
        k : int or iterable of int, default=(8, 16, 32)
            Numbers of nonzeros to measure. Those above the number of latents are that number, measured once.
        modes : {"asymmetric", "reconstructed", "sparse"} or iterable of them, default=all three
            Search modes, one curve for each.
        n_neighbors : int, default=100
            The n of recall@n.
        metric : {"cosine", "dot"}, default="cosine"
            Similarity of the true neighbours and of the search. By cosine, codes of ``norm="input"`` are taken at
            ``norm="unit"``, as lengths do not matter.
        reference : iterable of {"pca", "pq", "opq"}, "auto" or None, default="auto"
            Reference curves at about the same bytes, each searched by dense queries and fitted on the
            documents themselves (which favours it). "auto" is PCA, and PQ and OPQ where FAISS is installed
            and there are at least 256 documents. PQ and OPQ train on up to 9,984 documents: for each
            size PQ may take a minute of one core and OPQ ten times that. Sizes that do not compress are left out.
        random_state : int, RandomState instance or None, default=0
            Seed of the split into queries and documents, and of the references.
        ax : matplotlib Axes or None, default=None
            Axes to draw on. None makes a new figure.
        **kwargs : dict
            Passed on to :meth:`plot`.

        Returns
        -------
        CompressionTradeoffDisplay
            The drawn display.

        Raises
        ------
        ImportError
            If matplotlib is not installed, or FAISS where "pq" or "opq" is asked for by name.
        TypeError
            If `estimator` is not a compressor, or `k` or `n_neighbors` is no integer.
        ValueError
            If a parameter is out of its range, or there are too few rows.

        See Also
        --------
        from_results : Draws points that were measured before.
        plot : Draws again, on other axes or against bytes.

        Examples
        --------
        >>> import matplotlib.pyplot as plt
        >>> import numpy as np
        >>> from skcompressae import CompresSAETransformer, CompressionTradeoffDisplay
        >>> X = np.random.RandomState(0).standard_normal((200, 8)).astype(np.float32)
        >>> compressor = CompresSAETransformer(n_components=16, k=3, max_iter=5, random_state=0).fit(X)
        >>> display = CompressionTradeoffDisplay.from_estimator(
        ...     compressor, X, k=(1, 3), modes=("asymmetric",), n_neighbors=5, reference=None
        ... )
        >>> [point["label"] for point in display.results]
        ['k=1', 'k=3']
        >>> plt.close(display.figure_)
        """
        require_matplotlib(f"{cls.__name__}.from_estimator")
        results = measure_tradeoff(
            estimator,
            X,
            X_queries=X_queries,
            k=k,
            modes=modes,
            n_neighbors=n_neighbors,
            metric=metric,
            reference=reference,
            random_state=random_state,
        )
        return cls(results=results).plot(ax, **kwargs)

    @classmethod
    def from_results(cls, results: Any, *, ax: Any = None, **kwargs: Any) -> CompressionTradeoffDisplay:
        """Draw the trade-off from results measured before.

        For points of a benchmark, of another method, or of several displays put together. Every record is checked
        before anything is drawn.

        Parameters
        ----------
        results : iterable of dict, DataFrame of pandas or Polars, or path of a JSON file
            One record per point, with the keys (columns) that :class:`CompressionTradeoffDisplay` describes;
            more are ignored. A JSON file holds a list of records, or an object with the list under "results".
            Missing values (None, NaN) of optional keys count as absent.
        ax : matplotlib Axes or None, default=None
            Axes to draw on. None makes a new figure.
        **kwargs : dict
            Passed on to :meth:`plot`.

        Returns
        -------
        CompressionTradeoffDisplay
            The drawn display.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        ValueError
            If there are no records, or one lacks a key or holds a value out of its range.

        See Also
        --------
        from_estimator : Measures a compressor and draws it.
        plot : Draws again, on other axes or against bytes.

        Examples
        --------
        >>> import matplotlib.pyplot as plt
        >>> from skcompressae import CompressionTradeoffDisplay
        >>> results = [
        ...     {"series": "PQ", "compression_factor": 24.0, "recall": 0.8, "n_neighbors": 100},
        ...     {"series": "PQ", "compression_factor": 12.0, "recall": 0.9, "n_neighbors": 100},
        ... ]
        >>> display = CompressionTradeoffDisplay.from_results(results)
        >>> display.ax_.get_ylabel()
        'Recall@100 of the exact neighbours'
        >>> plt.close(display.figure_)
        """
        if isinstance(results, (str, os.PathLike)):
            with open(results, encoding="utf-8") as file:
                results = json.load(file)
        if isinstance(results, Mapping):
            if "results" not in results:
                raise ValueError(f"results must have a list under 'results', got the keys {sorted(results)}.")
            results = results["results"]
        if hasattr(results, "to_dicts"):
            results = results.to_dicts()
        elif hasattr(results, "to_dict"):
            results = results.to_dict(orient="records")
        return cls(results=[_check_record(record, at) for at, record in enumerate(results)]).plot(ax, **kwargs)

    def plot(
        self,
        ax: Any = None,
        *,
        x: str = "compression_factor",
        show_labels: bool = True,
        line_kw: dict[str, Any] | None = None,
    ) -> CompressionTradeoffDisplay:
        """Draw a curve for each series.

        One curve a series, in the order of their first points; references are dashed, with open markers. Colours and
        markers tell curves apart also in print and for colour-blind readers. On axes that hold lines they go on
        after those.

        Parameters
        ----------
        ax : matplotlib Axes or None, default=None
            Axes to draw on. None makes a new figure, with the legend outside the axes.
        x : {"compression_factor", "bytes_per_vector"}, default="compression_factor"
            What the horizontal, logarithmic axis shows.
        show_labels : bool, default=True
            Whether to write the label of each point beside it.
        line_kw : dict or None, default=None
            Keyword arguments for each line, over the defaults.

        Returns
        -------
        CompressionTradeoffDisplay
            This display.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        ValueError
            If `x` is unknown, there are no results, or results lack what `x` asks for.

        See Also
        --------
        from_estimator : Measures a compressor and draws it.
        from_results : Draws points that were measured before.

        Examples
        --------
        >>> import matplotlib.pyplot as plt
        >>> from skcompressae import CompressionTradeoffDisplay
        >>> point = {"series": "PQ", "compression_factor": 24.0, "bytes_per_vector": 64.0, "recall": 0.8}
        >>> display = CompressionTradeoffDisplay(results=[point]).plot(x="bytes_per_vector")
        >>> display.ax_.get_xlabel()
        'Bytes per vector'
        >>> plt.close(display.figure_)
        """
        if x not in _X_LABELS:
            raise ValueError(f"x must be one of {', '.join(map(repr, _X_LABELS))}, got {x!r}.")
        if not self.results:
            raise ValueError("results must hold at least one point, got none.")
        if any(x not in point for point in self.results):
            raise ValueError(f"results must have {x!r} in every record to be drawn against it.")
        is_own_figure = ax is None
        ax = make_axes(ax, f"{type(self).__name__}.plot", (8.0, 4.8))

        series: dict[str, list[dict[str, Any]]] = {}
        for point in self.results:
            series.setdefault(point["series"], []).append(point)
        self.lines_, labels = [], []
        for at, (name, points) in enumerate(series.items(), start=len(ax.lines)):
            points = sorted(points, key=lambda point: point[x])
            is_reference = any(point.get("is_reference", False) for point in points)
            style = {
                "color": COLORS[at % len(COLORS)],
                "marker": MARKERS[at % len(MARKERS)],
                "linestyle": "--" if is_reference else "-",
                "markerfacecolor": "white" if is_reference else COLORS[at % len(COLORS)],
                "label": name,
            }
            x_values, recalls = [p[x] for p in points], [p["recall"] for p in points]
            self.lines_ += ax.plot(x_values, recalls, **line_style(style, line_kw or {}))
            color = self.lines_[-1].get_color()
            labels += [(p[x], p["recall"], p["label"], color) for p in points if p.get("label")]

        ax.margins(x=0.08, y=0.08)
        ax.set_xscale("log")
        ax.autoscale_view()
        ax.set_ylim(top=min(ax.get_ylim()[1], 1.02), auto=None)  # the next curves on these axes may need more
        set_plain_log_scale(ax, "x", 2, "\N{MULTIPLICATION SIGN}" if x == "compression_factor" else "")
        n_neighbors = {point.get("n_neighbors") for point in self.results}
        rank = f"@{n_neighbors.pop()}" if len(n_neighbors) == 1 and None not in n_neighbors else ""
        ax.set(xlabel=_X_LABELS[x], ylabel=f"Recall{rank} of the exact neighbours")
        ax.grid(alpha=0.3)
        if is_own_figure:
            ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, handlelength=3.0)
        else:
            ax.legend(loc="best", handlelength=3.0)
        self.ax_, self.figure_ = ax, ax.figure
        self.texts_ = label_points(ax, labels, self.lines_) if show_labels and labels else []
        return self


def _check_record(record: Any, at: int) -> dict[str, Any]:
    if not isinstance(record, Mapping):
        raise ValueError(f"results must hold dicts, got {type(record).__name__} at place {at}.")
    # a data frame writes NaN where a record has no such key
    known = {
        key: value
        for key, value in record.items()
        if value is not None and not (isinstance(value, Real) and value != value)
    }
    for key in ("series", "compression_factor", "recall"):
        if key not in known:
            raise ValueError(f"results must have {key!r} in every record, got {sorted(known)} at place {at}.")
    for key in ("compression_factor", "bytes_per_vector"):
        if key in known and not (isinstance(known[key], Real) and 0 < known[key] < np.inf):
            raise ValueError(f"{key} must be positive and finite, got {known[key]!r} at place {at}.")
    if not (isinstance(known["recall"], Real) and 0 <= float(known["recall"]) <= 1):
        raise ValueError(f"recall must be between 0 and 1, got {known['recall']!r} at place {at}.")
    return known
