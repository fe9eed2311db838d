"""What becomes of trained weights: attributes, an encoder scaled by use, a refitted decoder, statistics of use."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from copy import copy, deepcopy
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skcompressae._core._arrays import aligned
from skcompressae._core._callers import caller_level
from skcompressae._encoding import Encoder
from skcompressae._fitting import BLOCK_ROWS, MAX_SCALING_ROWS, measure_usage, refit_components, usage_factors
from skcompressae._model_weights import unscaled_encoder
from skcompressae._residual_codes import learned_quantizer
from skcompressae._torch._training import TrainingResult
from skcompressae._torch._weights import StepSettings, Weights
from skcompressae._transform_methods import TransformMethodsMixin
from skcompressae.exceptions import DeadLatentsWarning, InterruptedFitWarning
from skcompressae.packed import ResidualQuantizer

__all__ = ["FinishMethodsMixin"]

logger = logging.getLogger(__name__)

# Share of latents that never fire above which fit warns.
_DEAD_SHARE_WARNED = 0.1
# Encoder rows of latents without use are lengthened by this factor, at most so often, while their share is above one
# bound and not above the other: data that half of the latents describe gain nothing by more.
_REVIVING_FACTOR, _MAX_REVIVALS = 1.2, 4
_DEAD_SHARE_LEFT, _DEAD_SHARE_TAKEN_AS_UNNEEDED = 0.01, 0.5


class FinishMethodsMixin(TransformMethodsMixin):
    """How a `CompresSAETransformer` takes over what training gives."""

    n_components: int
    usage_power: float | str
    n_refits: int | str

    def _store(self, result: TrainingResult, settings: StepSettings, method: str) -> None:
        """Make the trained weights, which `method` made, the fitted ones."""
        encoder, bias, components = result.weights.arrays
        self.__dict__.update(  # all at once: other threads may be encoding
            encoder_weights_=encoder,
            encoder_bias_=bias,
            components_=components,
            encoder_scale_=None,
            k_=settings.k,
            has_mean_latent_=settings.keeps_mean_latent,
            scales_mean_apart_=settings.keeps_mean_latent,
            # until they are measured, should that fail: of no rows, as those of weights from elsewhere
            latent_counts_=np.zeros(len(components), dtype=np.int64),
            n_rows_counted_=0,
            latent_rms_=np.ones(len(components)),
            dead_latents_fraction_=np.nan,
            # of other weights; that of fit goes when there is another
            **({"residual_quantizer_": None, "residual_norm_": self.norm} if method == "partial_fit" else {}),
        )
        if result.was_interrupted:
            warnings.warn(
                f"{method} was interrupted after {result.n_iter} step(s); the weights so far are kept.",
                InterruptedFitWarning,
                stacklevel=caller_level(),
            )

    def _finish(
        self,
        rows: NDArray[Any],
        training: NDArray[np.intp],
        result: TrainingResult,
        settings: StepSettings,
        random_state: np.random.RandomState,
        note_weights: Callable[[], None],
    ) -> bool:
        """Do what `fit` does with the weights of its training; ``note_weights()`` is called as they change.

        Returns
        -------
        bool
            False if an interrupt cut the training or this short.
        """
        residual_quantizer = None
        try:
            self._store(result, settings, "fit")
            note_weights()
            try:
                is_finished = self._scale_by_usage(rows, training) and not result.was_interrupted
                if is_finished:  # who ends a fit early does not wait for that
                    is_finished = self._refit_decoder(rows, training)
            finally:
                note_weights()
            try:
                # the code of activations does without the scale, so that nothing would come of it
                revives = is_finished and self._usage_power() > 0 and self._resolved("coding") != "activations"
                is_measured = self._measure(rows, training, result, random_state, revives=revives)
            finally:
                note_weights()
            if self.residual_bytes is not None:
                residual_quantizer, is_finished = self._learn_residuals(rows, training, is_finished and is_measured)
        finally:  # until then the one before: other threads may be packing
            self.__dict__.update(residual_quantizer_=residual_quantizer, residual_norm_=self.norm)
        return is_finished

    def _usage_power(self) -> float:
        if self.usage_power == "auto" and self._resolved("coding") == "activations":
            return 0.0  # such codes do without, and dividing it out takes time
        return float(self._resolved("usage_power"))

    def _scale_by_usage(self, rows: NDArray[Any], training: NDArray[np.intp]) -> bool:
        """Scale encoder rows by a power of their latents' use, so that codes prefer latents that many rows use.

        Returns
        -------
        bool
            False if an interrupt came before that was done.
        """
        power = self._usage_power()
        if power == 0:
            return True
        try:
            # random numbers of its own: with or without this, the fit draws the same
            usage = measure_usage(
                rows, training, self._encoder(), self.k_, np.random.RandomState(0), max_rows=MAX_SCALING_ROWS
            )
        except KeyboardInterrupt:
            warnings.warn(
                "fit was interrupted while it counted how the latents are used; the encoder is not scaled by that "
                "(usage_power).",
                InterruptedFitWarning,
                stacklevel=caller_level(),
            )
            return False
        self._scale_encoder(usage_factors(usage.counts, power, keeps_mean_latent=self.has_mean_latent_))
        return True

    def _refit_decoder(self, rows: NDArray[Any], training: NDArray[np.intp]) -> bool:
        """Fit the decoder to the codes of training rows, as often as `n_refits` says.

        Returns
        -------
        bool
            False if an interrupt came before that was done.
        """
        n_refits = self._resolved("n_refits")
        norm = "unit" if self._resolved("coding") == "activations" else None  # their scale is the encoder's
        for n_done in range(n_refits):
            try:
                self.components_ = refit_components(
                    rows,
                    training,
                    self._encoder(),
                    self.components_,
                    self.k_,
                    norm=norm,
                    keeps_mean=self.has_mean_latent_,
                )
            except KeyboardInterrupt:
                warnings.warn(
                    f"fit was interrupted while it fitted the decoder anew; {n_done} of {n_refits} times (n_refits) "
                    "were done.",
                    InterruptedFitWarning,
                    stacklevel=caller_level(),
                )
                return False
        return True

    def _learn_residuals(
        self, rows: NDArray[Any], training: NDArray[np.intp], is_finished: bool
    ) -> tuple[ResidualQuantizer | None, bool]:
        """Return the quantiser of residual codes, None with a warning if there is none, and False if interrupted.

        `is_finished` is False if an interrupt came before.
        """
        quantizer = None
        if is_finished:
            try:
                quantizer = learned_quantizer(self, rows, training)
            except KeyboardInterrupt:
                is_finished = False
        if not is_finished:
            warnings.warn(
                "fit was interrupted before it had learned residual codes (residual_bytes); the model has none.",
                InterruptedFitWarning,
                stacklevel=caller_level(),
            )
        elif quantizer is None:
            warnings.warn(
                f"fit learned no residual codes (residual_bytes={self.residual_bytes}): all rows are too short or too "
                "long for their codes to be packed at norm='input'. Set norm='unit' or None, or rescale the rows.",
                UserWarning,
                stacklevel=caller_level(),
            )
        return quantizer, is_finished

    def _scale_encoder(self, factors: NDArray[np.float32]) -> None:
        """Multiply the encoder, which may have a scale already."""
        self.__dict__.update(  # all at once: an interrupt between them must not leave one scaled
            encoder_weights_=aligned(self.encoder_weights_ * factors[:, None]),
            encoder_bias_=self.encoder_bias_ * factors,
            encoder_scale_=factors if self.encoder_scale_ is None else self.encoder_scale_ * factors,
        )

    def _trained_weights(self) -> Weights:
        """Return a copy of the weights that training continues from: the encoder without its scale."""
        encoder, bias = unscaled_encoder(self)
        return Weights(encoder, bias, self.components_).copy()

    def _measure(
        self,
        rows: NDArray[Any],
        training: NDArray[np.intp],
        result: TrainingResult,
        random_state: np.random.RandomState,
        *,
        is_partial: bool = False,
        revives: bool = False,
    ) -> bool:
        """Measure how the latents are used, in codes of norm="unit"; False if an interrupt cut that short.

        With `revives`, encoder rows of latents that no code has are lengthened, and all is measured again.
        """

        def unit_encoder() -> Encoder:
            unit = copy(self)
            unit.norm = "unit"
            return unit._encoder()

        is_finished = True
        as_before = deepcopy(random_state)  # for the same rows again
        try:
            usage = measure_usage(rows, training, unit_encoder(), self.k_, random_state)
            for _ in range(_MAX_REVIVALS if revives else 0):
                if not _DEAD_SHARE_LEFT < usage.dead_fraction <= _DEAD_SHARE_TAKEN_AS_UNNEEDED:
                    break
                self._scale_encoder(np.where(usage.counts == 0, np.float32(_REVIVING_FACTOR), np.float32(1)))
                usage = measure_usage(rows, training, unit_encoder(), self.k_, deepcopy(as_before))
        except KeyboardInterrupt:
            is_finished = False
            warnings.warn(
                f"{'partial_fit' if is_partial else 'fit'} was interrupted while it measured how the latents are used; "
                f"the statistics are those of {BLOCK_ROWS} rows.",
                InterruptedFitWarning,
                stacklevel=caller_level(),
            )
            usage = measure_usage(rows, training[:BLOCK_ROWS], unit_encoder(), self.k_, random_state)
        self.latent_counts_ = usage.counts
        self.latent_rms_ = usage.rms
        self.n_rows_counted_ = usage.n_rows
        self.dead_latents_fraction_ = usage.dead_fraction
        logger.info(
            "trained %d steps: loss %.4f, dead latents %.1f %%",
            result.n_iter,
            result.loss_curve[-1] if len(result.loss_curve) else np.nan,
            100 * self.dead_latents_fraction_,
        )
        # A block of partial_fit may be too small to tell a dead latent from a rare one.
        can_tell = not is_partial or self.k_ * usage.n_rows >= 10 * self.n_components
        if usage.dead_fraction > _DEAD_SHARE_WARNED and can_tell:
            warnings.warn(
                f"{usage.dead_fraction:.0%} of the {self.n_components} latents are in no code of {usage.n_rows} "
                "training rows. Lower n_components (the data may not need as many), train on more rows, "
                "or change learning_rate or init.",
                DeadLatentsWarning,
                stacklevel=caller_level(),
            )
        return is_finished
