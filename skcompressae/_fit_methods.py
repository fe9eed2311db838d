"""The methods that train a compressor: fit, partial_fit, and what they share."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import check_random_state

from skcompressae._checkpoint import FitCheckpoint, SavedFit
from skcompressae._compat import _fit_context, validated_every_time, with_callbacks
from skcompressae._finish_methods import FinishMethodsMixin
from skcompressae._fitting import (
    check_loss_weights,
    count_validation_rows,
    initial_weights,
    split_rows,
)
from skcompressae._model_io import plain_parameter
from skcompressae._model_weights import encoder_scale, weights_digest
from skcompressae._progress import StepReporter
from skcompressae._recipes import RECIPES
from skcompressae._residual_codes import check_residual_bytes
from skcompressae._restoring import restored_on_error
from skcompressae._torch._device_choice import resolve_device
from skcompressae._torch._training import Schedule, TrainingState, train
from skcompressae._torch._weights import Moments, StepSettings

__all__ = ["FitMethodsMixin"]

logger = logging.getLogger(__name__)

# Share of the steps of a nested fit after which only k and k / 2 are trained for, and how many times as many steps it
# takes. Code-to-code search gains by that at these k, and the smallest loses a little (docs/research_notes_sparse.md).
_NARROWS_AFTER = 0.85
_NESTED_STEPS = 1.25
# Share of the recipe's peak rate that blocks are trained at: with no decay to come, the peak is too coarse.
_STREAMED_RATE = 0.5
# The parameters that decide what training does with the rows, beside those that the rows resolve: a checkpoint goes on
# with the same ones only.
_TRAINING_PARAMETERS = (
    "n_components", "k", "recipe", "loss_weights", "nested", "init",
    "learning_rate_schedule", "warmup_fraction", "max_iter", "early_stopping",
    "validation_fraction", "n_iter_no_change", "precision", "random_state",
)  # fmt: skip
# Those that decide what fit makes of the trained weights.
_FINISHING_PARAMETERS = ("coding", "candidate_factor", "usage_power", "n_refits", "residual_bytes")
# What the recipe decides beside them, and no parameter sets: a version that trains in another way goes on with no
# checkpoint of this one.
_TRAINING_RULES = ("beta2", "rests_idle", "full_rate_uses", "min_batches_per_epoch")

Model = TypeVar("Model", bound="FitMethodsMixin")


class FitMethodsMixin(FinishMethodsMixin):
    """How a `CompresSAETransformer` learns."""

    loss_weights: tuple[float, float]
    learning_rate: float | str
    max_iter: int | str
    nested: bool
    batch_size: int | str
    validation_fraction: float
    n_iter_no_change: int
    warm_start: bool
    random_state: int | np.random.RandomState | None
    checkpoint_dir: str | os.PathLike[str] | None
    checkpoint_interval: int | str

    @with_callbacks
    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self: Model, X: ArrayLike, y: Any = None) -> Model:
        """Train the sparse autoencoder on the rows of X.

        Interrupting (Ctrl-C) keeps the weights so far, with an InterruptedFitWarning, and leaves a usable estimator.
        With `checkpoint_dir`, calling it again after whatever ended it goes on from the last checkpoint.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Embeddings, floats of 16, 32 or 64 bits or integers, of any scale. All-zero rows are allowed and hardly
            matter. May be memory-mapped and larger than memory; it is never copied whole, but for unsigned integers of
            more than 8 bits and other types, which are converted to float64.
        y : None
            Ignored.

        Returns
        -------
        CompresSAETransformer
            The fitted estimator.

        Raises
        ------
        ValueError
            If X is not a finite, real, dense 2-d array with at least one row, a parameter is out of its range, or
            `checkpoint_dir` holds the checkpoint of another fit (or a damaged one: ModelFormatError).
        TypeError
            If X is nothing that NumPy can read as an array, such as a LazyFrame.
        MemoryError
            If there is too little for `n_components` latents.

        See Also
        --------
        partial_fit : Trains on one block of rows at a time.
        transform : Encodes rows with what was learned.
        LossCurveDisplay.from_estimator : Shows how the loss fell.

        Examples
        --------
        >>> import numpy as np
        >>> from skcompressae import CompresSAETransformer
        >>> X = np.random.RandomState(0).standard_normal((200, 8)).astype(np.float32)
        >>> compressor = CompresSAETransformer(n_components=16, k=3, max_iter=5, random_state=0)
        >>> compressor.fit(X).components_.shape
        (16, 8)
        >>> compressor.n_iter_, len(compressor.loss_curve_)
        (5, 5)
        """
        with restored_on_error(self):
            is_warm = self.warm_start and hasattr(self, "components_")
            rows = self._check_rows(X, reset=not is_warm)
            check_residual_bytes(self.residual_bytes, rows.shape[1])
            random_state = check_random_state(self.random_state)
            if is_warm:
                self._check_width_unchanged()
            start = weights_digest(self) if is_warm and self.checkpoint_dir is not None else None
            n_training = len(rows) - count_validation_rows(len(rows), self.validation_fraction)
            settings = self._step_settings(n_training)
            if self.nested:
                settings = replace(settings, narrows_after=round(_NARROWS_AFTER * self._n_planned_steps()))
            checkpoint, saved = self._open_checkpoint(rows, start, settings)
            if saved is not None:
                if self.random_state is None:
                    random_state = np.random.RandomState()  # NumPy's global one is not ours to set back
                random_state.set_state(saved.split_start)
                state, has_mean_latent = saved.state, saved.has_mean_latent
                logger.info("fit goes on after step %d of %d", state.n_steps, self._n_planned_steps())
            else:
                if is_warm:
                    weights, has_mean_latent = self._trained_weights(), self.has_mean_latent_
                else:
                    init = self._resolved("init")
                    weights, has_mean_latent = initial_weights(rows, self.n_components, init, random_state)
                state = TrainingState(weights, Moments.zeros_like(weights))
            split_start = random_state.get_state(legacy=False)
            training, validation = split_rows(len(rows), self.validation_fraction, random_state)
            settings = replace(settings, keeps_mean_latent=has_mean_latent)
            schedule = self._schedule(settings)
            early_stopping = self._resolved("early_stopping") and len(validation) > 0

            def save(state: TrainingState) -> None:
                if checkpoint is not None:
                    checkpoint.save(state, has_mean_latent, split_start)

            with StepReporter(self, schedule.max_iter, rows, n_done=state.n_steps) as reporter:
                result = train(
                    rows,
                    training,
                    validation,
                    state,
                    settings,
                    schedule,
                    resolve_device(self.device),
                    random_state,
                    n_iter_no_change=self.n_iter_no_change if early_stopping else None,
                    on_step=reporter,
                    on_checkpoint=None if checkpoint is None else save,
                    checkpoint_interval=None if self.checkpoint_interval == "auto" else int(self.checkpoint_interval),
                    agreed=self._agreed(),
                )
        self._moments: tuple[Any, ...] | None = None
        self.n_iter_ = result.n_iter
        self.loss_curve_ = result.loss_curve
        self.validation_loss_curve_ = result.validation_loss_curve
        self.validation_steps_ = result.validation_steps
        is_finished = self._finish(rows, training, result, settings, random_state, lambda: self._note_start(checkpoint))
        if checkpoint is not None and is_finished:
            checkpoint.remove()
            del self._interrupted
        return self

    @validated_every_time
    @_fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self: Model, X: ArrayLike, y: Any = None) -> Model:
        """Train on one more block of rows.

        One pass over the block, at a constant learning rate. The first call initialises the latents from its block, so
        make that one representative. Adam's moments are kept between calls (twice the size of the weights). The
        statistics of latent use are those of the last block.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            As in :meth:`fit`.
        y : None
            Ignored.

        Returns
        -------
        CompresSAETransformer
            The estimator, trained on one more block.

        Raises
        ------
        ValueError
            If the block is not as :meth:`fit` requires, or has another width than those before it, or `residual_bytes`
            is not None.

        See Also
        --------
        fit : Trains on all rows, several times, and anneals the learning rate.
        save : Keeps the moments too, so that training can go on elsewhere.

        Examples
        --------
        >>> import numpy as np
        >>> from skcompressae import CompresSAETransformer
        >>> X = np.random.RandomState(0).standard_normal((200, 8)).astype(np.float32)
        >>> compressor = CompresSAETransformer(n_components=16, k=3, max_iter=5, random_state=0)
        >>> compressor = compressor.set_params(batch_size=50)
        >>> for block in (X[:100], X[100:]):
        ...     compressor = compressor.partial_fit(block)
        >>> compressor.n_iter_
        4
        """
        with restored_on_error(self):
            is_first = not hasattr(self, "components_")
            if self.residual_bytes is not None:
                raise ValueError(
                    f"residual_bytes must be None in partial_fit, which sees too little to learn residual codes; got "
                    f"{self.residual_bytes}. Give packed codes some by PackedCodes.with_residual_of."
                )
            rows = self._check_rows(X, reset=is_first)
            random_state = check_random_state(self.random_state)
            if is_first:
                weights, has_mean_latent = initial_weights(
                    rows, self.n_components, self._resolved("init"), random_state
                )
                self.n_iter_ = 0
                self.loss_curve_ = np.empty(0)
                self.validation_loss_curve_ = np.empty(0)
                self.validation_steps_ = np.empty(0, dtype=np.int64)
            else:
                self._check_width_unchanged()
                weights, has_mean_latent = self._trained_weights(), self.has_mean_latent_
            moments = Moments.zeros_like(weights)
            if not is_first and self._moments is not None:
                encoder, bias, decoder, n_steps = self._moments
                moments = Moments(encoder.copy(), bias.copy(), decoder.copy(), n_steps)
            training = np.arange(len(rows))
            settings = replace(self._step_settings(len(rows)), keeps_mean_latent=has_mean_latent)
            n_steps = -(-len(rows) // settings.batch_size)
            rate = self._peak_learning_rate(settings)
            if self.learning_rate == "auto" and self._resolved("learning_rate_schedule") != "constant":
                rate *= _STREAMED_RATE
            schedule = Schedule(rate, "constant", 0.0, n_steps)
            with StepReporter(self, n_steps, rows, with_callbacks=False) as reporter:
                result = train(
                    rows,
                    training,
                    training[:0],
                    TrainingState(weights, moments),
                    settings,
                    schedule,
                    resolve_device(self.device),
                    random_state,
                    n_iter_no_change=None,
                    on_step=reporter,
                    keeps_remainder=True,
                    agreed=self._agreed(),
                )
        self._moments = (*result.moments.arrays, result.moments.n_steps)
        self.n_iter_ += result.n_iter
        self.loss_curve_ = np.concatenate([self.loss_curve_, result.loss_curve])
        scale = None if is_first else encoder_scale(self)
        self._store(result, settings, "partial_fit")
        if scale is not None:
            self._scale_encoder(scale)
        self._measure(rows, training, result, random_state, is_partial=True)
        return self

    def _check_width_unchanged(self) -> None:
        if self.components_.shape[0] != self.n_components:
            raise ValueError(
                f"n_components={self.n_components} differs from the {self.components_.shape[0]} latents of the fitted "
                "model; training can only continue at the same width. Fit a clone for another width."
            )

    def _neighborhood_term_weight(self, k: int) -> float:
        if self.neighborhood_weight != "auto":
            return float(self.neighborhood_weight)
        return RECIPES[self.recipe].neighborhood_weight_for(k)

    def _peak_learning_rate(self, settings: StepSettings) -> float:
        if self.learning_rate != "auto":
            return float(self.learning_rate)
        return RECIPES[self.recipe].learning_rate_for(settings.batch_size * settings.n_active / self.n_components)

    def _n_planned_steps(self) -> int:
        """Return the optimiser steps of a fit."""
        if self.max_iter != "auto":
            return int(self.max_iter)
        return round(RECIPES[self.recipe].max_iter * (_NESTED_STEPS if self.nested else 1))

    def _schedule(self, settings: StepSettings) -> Schedule:
        return Schedule(
            self._peak_learning_rate(settings),
            self._resolved("learning_rate_schedule"),
            float(self._resolved("warmup_fraction")),
            self._n_planned_steps(),
        )

    def _open_checkpoint(
        self, rows: NDArray[Any], start: str | None, settings: StepSettings
    ) -> tuple[FitCheckpoint | None, SavedFit | None]:
        """Return the checkpoint of a fit that starts from weights of the digest `start`, and what is saved there.

        Weights that an interrupt left belong to the fit that was interrupted, which may go on.
        """
        if self.checkpoint_dir is None:
            return None, None
        parameters = {name: plain_parameter(name, self._resolved(name)) for name in _TRAINING_PARAMETERS}
        # what "auto" comes to for these rows, too
        parameters["learning_rate"] = self._peak_learning_rate(settings)
        parameters["batch_size"] = settings.batch_size
        parameters["max_iter"] = self._n_planned_steps()
        parameters["narrows_after"] = settings.narrows_after
        parameters["neighborhood_weight"] = settings.neighborhood_weight
        parameters |= {name: getattr(RECIPES[self.recipe], name) for name in _TRAINING_RULES}
        parameters["device"] = resolve_device(self.device).type
        checkpoint = FitCheckpoint(self.checkpoint_dir, parameters, rows, start)
        left, began = getattr(self, "_interrupted", (None, None))
        try:
            return checkpoint, checkpoint.load()
        except ValueError:
            if start is None or start != left:
                raise
            checkpoint = checkpoint.of_start(began)
            return checkpoint, checkpoint.load()

    def _agreed(self) -> str:
        """Describe what all ranks of `data_parallel` must have alike beside what training is given."""
        names = [*_TRAINING_PARAMETERS, *_FINISHING_PARAMETERS]
        names.remove("random_state")  # an instance would differ by where it is
        return repr([(name, self._resolved(name)) for name in names])

    def _note_start(self, checkpoint: FitCheckpoint | None) -> None:
        """Write down which weights a fit with a checkpoint has left so far, and which it began from."""
        if checkpoint is not None:
            self._interrupted = weights_digest(self), checkpoint.start

    def _step_settings(self, n_training_rows: int) -> StepSettings:
        """Return the settings of a step, but for whether a mean latent is kept."""
        k = self._effective_k(self.n_components, is_fitting=True)
        batch_size = self.batch_size
        if batch_size == "auto":
            batch_size = RECIPES[self.recipe].batch_size_for(n_training_rows)
        return StepSettings(
            k=k,
            n_active=min(4 * k, self.n_components),
            loss_weights=check_loss_weights(self.loss_weights),
            batch_size=min(int(batch_size), n_training_rows),
            precision=self.precision,
            neighborhood_weight=self._neighborhood_term_weight(k),
            beta2=RECIPES[self.recipe].beta2,
            rests_idle=RECIPES[self.recipe].rests_idle,
            is_nested=self.nested,
        )
