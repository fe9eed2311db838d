"""LatentUsageDisplay: how often each latent fires."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.utils.validation import check_is_fitted

from skcompressae._compat import transform_plainly
from skcompressae._plot._axes import (
    COLORS,
    format_plain,
    line_style,
    make_axes,
    marker_of_one,
    require_matplotlib,
    set_integer_ticks,
    set_plain_log_scale,
)
from skcompressae.metrics import enter_compressor

__all__ = ["LatentUsageDisplay"]


class LatentUsageDisplay:
    """Share of rows in which each latent fires, in descending order.

    Make it with :meth:`from_estimator`; draw it again with :meth:`plot`.

    Parameters
    ----------
    usage : ndarray of shape (n_components,), dtype float64
        Share of rows, from 0 to 1, in which each latent is nonzero. A latent at 0 is dead.

    Attributes
    ----------
    dead_fraction_ : float
        Share of latents that never fire.
    ax_ : matplotlib Axes
        Axes with the curve.
    figure_ : matplotlib Figure
        Figure of the axes.
    line_ : matplotlib Line2D
        The sorted usage of the latents that fire.

    See Also
    --------
    LossCurveDisplay : The loss during training.
    CompressionTradeoffDisplay : Recall against size.
    sklearn.inspection.DecisionBoundaryDisplay : A display of scikit-learn, which has the same interface.

    Examples
    --------
    >>> import numpy as np
    >>> from skcompressae import LatentUsageDisplay
    >>> LatentUsageDisplay(usage=np.array([0.5, 0.0, 0.25, 0.25])).dead_fraction_
    0.25
    """

    def __init__(self, *, usage: npt.ArrayLike) -> None:
        self.usage = np.asarray(usage, dtype=np.float64)
        if self.usage.ndim != 1 or self.usage.size == 0:
            raise ValueError(f"usage must be a non-empty vector, got shape {self.usage.shape}.")
        if not ((self.usage >= 0) & (self.usage <= 1)).all():
            raise ValueError(
                f"usage must be between 0 and 1, got values from {self.usage.min()} to {self.usage.max()}."
            )
        self.dead_fraction_ = float(np.mean(self.usage == 0))

    @classmethod
    def from_estimator(cls, estimator: Any, X: Any = None, *, ax: Any = None, **kwargs: Any) -> LatentUsageDisplay:
        """Draw the usage of the latents of a fitted compressor.

        Usage is counted on the training rows, when the estimator is fitted; pass X to count it on other rows, for
        instance on those of another source.

        Parameters
        ----------
        estimator : fitted CompresSAETransformer, or Pipeline that ends in one
            The compressor.
        X : array-like of shape (n_samples, n_features) or None, default=None
            Rows to encode and count. None takes the counts of the training rows, `latent_counts_` over
            `n_rows_counted_`.
        ax : matplotlib Axes or None, default=None
            Axes to draw on. None makes a new figure.
        **kwargs : dict
            Passed on to :meth:`plot`.

        Returns
        -------
        LatentUsageDisplay
            The drawn display.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        NotFittedError
            If `estimator` is not fitted.
        TypeError
            If `estimator` is not a compressor.
        ValueError
            If `X` has no rows, or is None where the training rows were not counted.

        See Also
        --------
        plot : Draws again, on other axes or in another style.
        LossCurveDisplay.from_estimator : The loss of the same estimator.

        Examples
        --------
        >>> import matplotlib.pyplot as plt
        >>> import numpy as np
        >>> from skcompressae import CompresSAETransformer, LatentUsageDisplay
        >>> X = np.random.RandomState(0).standard_normal((200, 8)).astype(np.float32)
        >>> compressor = CompresSAETransformer(n_components=16, k=3, max_iter=5, random_state=0).fit(X)
        >>> display = LatentUsageDisplay.from_estimator(compressor)
        >>> display.usage.shape, display.line_.get_xdata().size
        ((16,), 16)
        >>> plt.close(display.figure_)
        """
        require_matplotlib(f"{cls.__name__}.from_estimator")
        if X is not None:
            codes = transform_plainly(*enter_compressor(estimator, X))
            if codes.shape[0] == 0:
                raise ValueError("X must have at least one row, got 0.")
            latents = codes.nonzero()[1]
            usage = np.bincount(latents, minlength=codes.shape[1]) / codes.shape[0]
        else:
            (compressor,) = enter_compressor(estimator)
            check_is_fitted(compressor, "latent_counts_")
            if compressor.n_rows_counted_ == 0:
                raise ValueError("X must be given: the model comes from a checkpoint that counts no training rows.")
            counts = np.asarray(compressor.latent_counts_, dtype=np.float64)
            usage = counts / compressor.n_rows_counted_
        return cls(usage=usage).plot(ax, **kwargs)

    def plot(self, ax: Any = None, **kwargs: Any) -> LatentUsageDisplay:
        """Draw the sorted usage of the latents.

        Latents stand in the order of their usage, so that a steep curve shows that few latents do most of the work.
        Dead latents, which a logarithmic axis cannot show, are a shaded band. On axes that hold lines, the limits take
        these in too; give `color` and `label` to tell displays apart.

        Parameters
        ----------
        ax : matplotlib Axes or None, default=None
            Axes to draw on. None makes a new figure.
        **kwargs : dict
            Keyword arguments for the line, over the defaults.

        Returns
        -------
        LatentUsageDisplay
            This display.

        Raises
        ------
        ImportError
            If matplotlib is not installed.

        See Also
        --------
        from_estimator : Makes the display from a fitted compressor.

        Examples
        --------
        >>> import matplotlib.pyplot as plt
        >>> import numpy as np
        >>> from skcompressae import LatentUsageDisplay
        >>> display = LatentUsageDisplay(usage=np.array([0.5, 0.0, 0.25, 0.25])).plot(color="black")
        >>> display.line_.get_ydata()
        array([50., 25., 25.])
        >>> plt.close(display.figure_)
        """
        ax = make_axes(ax, f"{type(self).__name__}.plot", (7.0, 4.2))
        percent = 100 * np.sort(self.usage)[::-1]
        n_latents, n_alive = percent.size, int(np.count_nonzero(percent))
        n_dead, alive = n_latents - n_alive, percent[:n_alive]
        style = {"color": COLORS[0], "linewidth": 2.0, "label": "latents, most used first", **marker_of_one(alive)}
        (self.line_,) = ax.plot(np.arange(1, n_alive + 1), alive, **line_style(style, kwargs))
        if n_alive:
            ax.axhline(
                percent.mean(),
                color="0.35",
                linestyle="--",
                linewidth=1.2,
                label=f"mean usage, {percent.mean():.2g} %",
            )
        dead = f"dead: {format_plain(round(100 * self.dead_fraction_, 2))} % ({n_dead:,} of {n_latents:,})"
        if n_dead:
            ax.axvspan(n_alive + 0.5, n_latents + 0.5, color=COLORS[1], alpha=0.25, linewidth=0, label=dead)
        else:
            ax.plot([], [], linestyle="none", label=dead)
        ax.update_datalim([(0.5, 0), (n_latents + 0.5, 0)], updatey=False)
        _show_all(ax)
        set_plain_log_scale(ax, "y", 10, " %")
        set_integer_ticks(ax)
        ax.set(xlabel="Latents, sorted by usage", ylabel="Rows in which the latent fires")
        ax.grid(alpha=0.3)
        # the curve falls, so this corner is free
        ax.legend(loc="upper right")
        self.ax_, self.figure_ = ax, ax.figure
        return self


def _show_all(ax: Any) -> None:
    """Set limits around all that the axes, and those that share an axis with them, hold; the y axis is logarithmic."""
    boxes = [each.dataLim for each in ax.get_shared_x_axes().get_siblings(ax)]
    ax.set_xlim(min(box.x0 for box in boxes), max(box.x1 for box in boxes))
    boxes = [each.dataLim for each in ax.get_shared_y_axes().get_siblings(ax)]
    low, high = min(box.minposy for box in boxes), max(box.y1 for box in boxes)
    if low > high:  # there is nothing but dead latents
        low, high = 1.0, 100.0
    ax.set_yscale("log")
    ax.set_ylim(low / 1.6, high * 1.6)
