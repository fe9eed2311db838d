"""LossCurveDisplay: the loss during training."""

from __future__ import annotations

from numbers import Integral
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.utils import check_scalar
from sklearn.utils.validation import check_is_fitted

from skcompressae._plot._axes import COLORS, line_style, make_axes, marker_of_one, set_integer_ticks
from skcompressae.metrics import enter_compressor

__all__ = ["LossCurveDisplay"]


class LossCurveDisplay:
    """Training and validation loss against optimiser steps.

    Make it with :meth:`from_estimator`; draw it again with :meth:`plot`.

    Parameters
    ----------
    training_loss : array-like of shape (n_steps,)
        Loss of each optimiser step.
    validation_loss : array-like of shape (n_evaluations,) or None, default=None
        Loss on held-out rows at each evaluation.
    validation_steps : array-like of shape (n_evaluations,) or None, default=None
        Step, from 1, after which each evaluation took place. None spreads them evenly up to the last step.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Axes with the curves.
    figure_ : matplotlib Figure
        Figure of the axes.
    lines_ : list of matplotlib Line2D
        Every step of the training loss, its running mean, and the validation loss; the last two where there
        are any.

    See Also
    --------
    LatentUsageDisplay : How often each latent fires.
    CompressionTradeoffDisplay : Recall against size.

    Examples
    --------
    >>> from skcompressae import LossCurveDisplay
    >>> LossCurveDisplay(training_loss=[0.9, 0.5, 0.4, 0.3], validation_loss=[0.6, 0.4]).validation_steps
    array([2., 4.])
    """

    def __init__(
        self,
        *,
        training_loss: npt.ArrayLike,
        validation_loss: npt.ArrayLike | None = None,
        validation_steps: npt.ArrayLike | None = None,
    ) -> None:
        self.training_loss = np.asarray(training_loss, dtype=np.float64)
        self.validation_loss = np.asarray([] if validation_loss is None else validation_loss, dtype=np.float64)
        if self.training_loss.ndim != 1 or self.training_loss.size == 0:
            raise ValueError(f"training_loss must be a non-empty vector, got shape {self.training_loss.shape}.")
        if self.validation_loss.ndim != 1:
            raise ValueError(f"validation_loss must be a vector, got shape {self.validation_loss.shape}.")
        n_evaluations = self.validation_loss.size
        if validation_steps is None:
            last = self.training_loss.size
            self.validation_steps = np.arange(1, n_evaluations + 1) * (last / max(1, n_evaluations))
        else:
            self.validation_steps = np.asarray(validation_steps, dtype=np.float64)
        if self.validation_steps.shape != self.validation_loss.shape:
            raise ValueError(
                f"validation_steps must have one step for each of the {n_evaluations} values of "
                f"validation_loss, got shape {self.validation_steps.shape}."
            )

    @classmethod
    def from_estimator(cls, estimator: Any, *, ax: Any = None, **kwargs: Any) -> LossCurveDisplay:
        """Draw the loss curves of a fitted compressor.

        The validation loss is that of the rows that `fit` held out by `validation_fraction`. `partial_fit` adds none: a
        model that it started has none.

        Parameters
        ----------
        estimator : fitted CompresSAETransformer, or Pipeline that ends in one
            The compressor, with `loss_curve_`, `validation_loss_curve_` and `validation_steps_`.
        ax : matplotlib Axes or None, default=None
            Axes to draw on. None makes a new figure.
        **kwargs : dict
            Passed on to :meth:`plot`.

        Returns
        -------
        LossCurveDisplay
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
            If it has no loss curve: models from reference checkpoints have none.

        See Also
        --------
        plot : Draws again, on other axes or in another style.
        LatentUsageDisplay.from_estimator : The latents of the same estimator.

        Examples
        --------
        >>> import matplotlib.pyplot as plt
        >>> import numpy as np
        >>> from skcompressae import CompresSAETransformer, LossCurveDisplay
        >>> X = np.random.RandomState(0).standard_normal((200, 8)).astype(np.float32)
        >>> compressor = CompresSAETransformer(n_components=16, k=3, max_iter=5, random_state=0).fit(X)
        >>> display = LossCurveDisplay.from_estimator(compressor)
        >>> display.training_loss.shape, len(display.lines_)
        ((5,), 2)
        >>> plt.close(display.figure_)
        """
        (compressor,) = enter_compressor(estimator)
        check_is_fitted(compressor, "loss_curve_")
        if len(compressor.loss_curve_) == 0:
            raise ValueError(
                "estimator must have been trained by fit or partial_fit; its loss_curve_ is empty, as that of models "
                "from reference checkpoints is."
            )
        display = cls(
            training_loss=compressor.loss_curve_,
            validation_loss=compressor.validation_loss_curve_,
            validation_steps=compressor.validation_steps_,
        )
        return display.plot(ax, **kwargs)

    def plot(
        self, ax: Any = None, *, window: int | None = None, yscale: str = "linear", **kwargs: Any
    ) -> LossCurveDisplay:
        """Draw training and validation loss against optimiser steps.

        Losses of single steps jump with the rows of their batch, so from a hundred steps on their running mean is drawn
        over them.

        Parameters
        ----------
        ax : matplotlib Axes or None, default=None
            Axes to draw on. None makes a new figure.
        window : int or None, default=None
            Steps in the running mean of the training loss. None takes a fiftieth of the steps, and draws no
            running mean where that is a single step.
        yscale : {"linear", "log"}, default="linear"
            Scale of the loss axis.
        **kwargs : dict
            Keyword arguments for every line, over the defaults.

        Returns
        -------
        LossCurveDisplay
            This display.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        TypeError
            If `window` is no integer.
        ValueError
            If `window` is not from 1 to the number of steps, or `yscale` is unknown.

        See Also
        --------
        from_estimator : Makes the display from a fitted compressor.

        Examples
        --------
        >>> import matplotlib.pyplot as plt
        >>> from skcompressae import LossCurveDisplay
        >>> display = LossCurveDisplay(training_loss=[0.9, 0.5, 0.4, 0.3]).plot(window=2, yscale="log")
        >>> [line.get_label() for line in display.lines_]
        ['training, each step', 'training, mean of 2 steps']
        >>> plt.close(display.figure_)
        """
        n_steps = self.training_loss.size
        if window is not None:
            check_scalar(window, "window", Integral, min_val=1, max_val=n_steps)
        if yscale not in ("linear", "log"):
            raise ValueError(f"yscale must be 'linear' or 'log', got {yscale!r}.")
        ax = make_axes(ax, f"{type(self).__name__}.plot", (7.0, 4.2))
        length = max(1, n_steps // 50) if window is None else int(window)
        steps = np.arange(1, n_steps + 1)
        is_smoothed = length > 1
        style = {
            "color": COLORS[0],
            "linewidth": 0.8 if is_smoothed else 1.8,
            "alpha": 0.3 if is_smoothed else 1.0,
            **marker_of_one(self.training_loss),
        }
        name = "training, each step" if is_smoothed else "training"
        self.lines_ = ax.plot(steps, self.training_loss, **line_style({**style, "label": name}, kwargs))
        if n_steps == 1:
            ax.update_datalim([(0, 0), (2, 0)], updatey=False)  # or the view is narrower than a step
        if is_smoothed:
            sums = np.cumsum(np.concatenate([[0.0], self.training_loss]))
            # drawn at the middle of its window, or it would lag behind the loss
            means = (sums[length:] - sums[:-length]) / length
            style = {"color": COLORS[0], "linewidth": 1.8, **marker_of_one(means)}
            name = f"training, mean of {length:,} steps"
            self.lines_ += ax.plot(
                steps[length - 1 :] - (length - 1) / 2, means, **line_style({**style, "label": name}, kwargs)
            )
        if self.validation_loss.size:
            style = {
                "color": COLORS[1],
                "linewidth": 1.8,
                "marker": "o",
                "markersize": 4.5,
                "label": "validation",
            }
            self.lines_ += ax.plot(self.validation_steps, self.validation_loss, **line_style(style, kwargs))
        ax.set_yscale(yscale)
        set_integer_ticks(ax)
        ax.set(xlabel="Optimiser step", ylabel="Loss")
        ax.grid(alpha=0.3)
        ax.legend(loc="best")
        self.ax_, self.figure_ = ax, ax.figure
        return self
