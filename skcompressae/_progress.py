"""What a user sees of training: a progress bar, and scikit-learn's callbacks where the installed version has them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from skcompressae._compat import callback_context, has_callbacks
from skcompressae._torch._weights import Engine, Losses

__all__ = ["StepReporter"]


class StepReporter:
    """Report every optimiser step; used as a context manager and called by the training loop.

    Parameters
    ----------
    estimator : CompresSAETransformer
        Its `verbose` turns the bar on; its callbacks, if any were set, are called.
    n_steps : int
        Steps planned.
    rows : array of shape (n_samples, n_features)
        Passed on to callbacks.
    with_callbacks : bool, default=True
        Whether scikit-learn's fit callbacks apply to this training.
    n_done : int, default=0
        Steps that an earlier process took.
    """

    def __init__(
        self, estimator: Any, n_steps: int, rows: NDArray[Any], *, with_callbacks: bool = True, n_done: int = 0
    ) -> None:
        self._estimator = estimator
        self._n_steps = n_steps
        self._rows = rows
        self._context: Any = None
        self._with_callbacks = with_callbacks
        self._bar: Any = None
        self._n_done = n_done
        self._last_fired: NDArray[np.int64] | None = None

    def __enter__(self) -> StepReporter:
        if self._with_callbacks:
            self._context = callback_context(self._estimator, self._n_steps)
        if self._context is not None:
            self._context.call_on_fit_task_begin(estimator=self._estimator, X=self._rows)
        if self._estimator.verbose:
            from tqdm.auto import tqdm

            self._bar = tqdm(
                total=self._n_steps, initial=self._n_done, desc=type(self._estimator).__name__, unit="step"
            )
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.close()
        if self._context is not None and exception[0] is None:
            self._context.call_on_fit_task_end(estimator=self._estimator, X=self._rows)

    def __call__(self, step: int, losses: Losses, engine: Engine) -> bool:
        """Show one step; return True where a callback asks to stop."""
        if self._bar is not None:
            self._show(step, losses)
        # A context per step costs; without callbacks nobody reads it.
        if self._context is None or not has_callbacks(self._estimator):
            return False
        context = self._context.subcontext(task_name="step")
        context.call_on_fit_task_begin(estimator=self._estimator, X=self._rows)

        def fitted_attributes() -> dict[str, Any]:
            weights = engine.current_weights().copy()
            names = ("encoder_weights_", "encoder_bias_", "components_")
            return dict(zip(names, weights.arrays, strict=True))

        return bool(
            context.call_on_fit_task_end(
                estimator=self._estimator, X=self._rows, reconstruction_attributes=fitted_attributes
            )
        )

    def _show(self, step: int, losses: Losses) -> None:
        if self._last_fired is None:
            self._last_fired = np.full(len(losses.fired), self._n_done, dtype=np.int64)
        self._last_fired[losses.fired > 0] = step
        # Silent for the last 100 steps: dead as far as one can tell during training.
        dead = np.mean(self._last_fired <= max(step - 100, self._n_done))
        self._bar.update(1)
        self._bar.set_postfix(
            loss=f"{losses.loss(tuple(self._estimator.loss_weights)):.4f}",
            cosine=f"{losses.cosine:.4f}",
            dead=f"{dead:.1%}",
            refresh=False,
        )
