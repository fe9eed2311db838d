"""The training loop: batches, learning-rate schedule, validation, early stopping, interruption."""

from __future__ import annotations

import math
import warnings
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from skcompressae._core._callers import caller_level
from skcompressae._core._random_states import plain_random_state
from skcompressae._torch._cpu_engine import CpuEngine
from skcompressae._torch._device_choice import Device
from skcompressae._torch._sharing import is_shared
from skcompressae._torch._weights import Engine, Losses, Moments, StepSettings, Weights
from skcompressae.exceptions import DeviceMemoryWarning

if TYPE_CHECKING:
    from skcompressae._torch._ranks import Ranks

__all__ = ["Schedule", "TrainingResult", "TrainingState", "reads_in_runs", "train"]

# Rows that training visits in random order are drawn as short runs of consecutive rows where X is a large mapped
# file: one seek then serves a whole run, and a batch still mixes dozens of places of the file.
_MEMMAP_RUN_ROWS = 32
# Smaller files are soon in memory whole, and joblib maps what it sends to other processes: that must change no model.
_MIN_RUN_BYTES = 2**30
# Steps that may be queued on a device before the loss of the first is asked for: enough that the device never waits for
# the host, few enough that an interrupt is soon heeded and little memory is held.
_STEPS_AHEAD = 4
_DIVERGED = "Training diverged: weights are no longer finite. Lower learning_rate."
# Validation is looked at this many times over the planned steps.
_N_EVALUATIONS = 50


@dataclass(frozen=True)
class Schedule:
    """Learning rate as a function of the step: linear warm-up, then constant, linear or cosine decay to zero."""

    learning_rate: float
    kind: str
    warmup_fraction: float
    max_iter: int

    def __call__(self, step: int) -> float:
        """Return the learning rate of a step, counted from 1."""
        warmup_steps = self.warmup_fraction * self.max_iter
        if step < warmup_steps:
            return self.learning_rate * step / warmup_steps
        progress = (step - warmup_steps) / max(1.0, self.max_iter - warmup_steps)
        if self.kind == "cosine":
            # The last step still moves: progress 1 is never quite reached.
            return self.learning_rate * 0.5 * (1 + math.cos(math.pi * progress * self.max_iter / (self.max_iter + 1)))
        if self.kind == "linear":
            return self.learning_rate * (1 - progress * self.max_iter / (self.max_iter + 1))
        return self.learning_rate


@dataclass
class TrainingState:
    """Where training stands after a step: all that the steps to come depend on, beside the rows and the settings."""

    weights: Weights
    moments: Moments
    loss_curve: list[float] = field(default_factory=list)
    validation_curve: list[float] = field(default_factory=list)
    validation_steps: list[int] = field(default_factory=list)
    best_loss: float = math.inf
    best_weights: Weights | None = None
    n_without_gain: int = 0
    batch_size: int | None = None  # halved where a device ran out of memory; None is that of the settings
    # The random numbers before the running epoch's order was drawn (`RandomState.get_state(legacy=False)`), and the
    # rows of it that are used up. The order itself may be many times larger than the model.
    epoch_start: dict[str, Any] | None = None
    epoch_position: int = 0

    @property
    def n_steps(self) -> int:
        """Steps taken."""
        return len(self.loss_curve)


@dataclass
class TrainingResult:
    """Trained weights and the record of the training."""

    weights: Weights
    moments: Moments
    n_iter: int
    loss_curve: NDArray[np.float64]
    validation_loss_curve: NDArray[np.float64]
    validation_steps: NDArray[np.int64]
    was_interrupted: bool


def _make_engine(
    rows: NDArray[Any],
    weights: Weights,
    moments: Moments,
    settings: StepSettings,
    device: Device,
    ranks: Ranks | None = None,
) -> Engine:
    if device.type == "cpu":
        return CpuEngine(rows, weights, moments, settings, ranks)
    from skcompressae._torch._torch_engine import TorchEngine

    return TorchEngine(rows, weights, moments, settings, device, ranks)


def _current_ranks(device: Device) -> Ranks | None:
    """Return the ranks that share the training inside `data_parallel`, else None."""
    if not is_shared.get():
        return None
    from skcompressae._torch._ranks import Ranks

    return Ranks(device)


class _BatchSampler:
    """Draw batches of row indices without replacement, epoch after epoch, in short runs of consecutive rows.

    The rows that are left when an epoch has no whole batch any more are the next batch where `keeps_remainder` says so,
    else they wait for the next epoch's order.
    """

    def __init__(
        self,
        row_indices: NDArray[np.intp],
        run_rows: int,
        random_state: np.random.RandomState,
        *,
        keeps_remainder: bool = False,
    ) -> None:
        self._row_indices = row_indices
        self._run_rows = run_rows
        self._random_state = random_state
        self._keeps_remainder = keeps_remainder
        self._order = np.empty(0, dtype=np.intp)
        self.epoch_start: dict[str, Any] | None = None
        self.position = 0

    def resume(self, epoch_start: dict[str, Any], position: int) -> None:
        """Draw the order of an epoch again and go on from a position in it."""
        self._random_state.set_state(epoch_start)
        self._begin_epoch()
        self.position = position

    def draw(self, batch_size: int) -> NDArray[np.intp]:
        n_left = len(self._order) - self.position
        if n_left == 0 or (n_left < batch_size and not self._keeps_remainder):
            self._begin_epoch()
        picks = self._order[self.position : self.position + batch_size]
        self.position += len(picks)
        return self._row_indices[picks]

    def give_back(self, n_rows: int) -> None:
        """Let the last rows that were drawn be drawn again."""
        self.position -= n_rows

    @property
    def has_remainder(self) -> bool:
        """Whether the epoch has rows left that are to be drawn in it."""
        return self._keeps_remainder and self.position < len(self._order)

    def _begin_epoch(self) -> None:
        self.epoch_start = self._random_state.get_state(legacy=False)
        self._order, self.position = self._shuffle(), 0

    def _shuffle(self) -> NDArray[np.intp]:
        n_rows = len(self._row_indices)
        runs = self._random_state.permutation(-(-n_rows // self._run_rows))
        if self._run_rows == 1:
            return runs
        order = (runs[:, None] * self._run_rows + np.arange(self._run_rows)).reshape(-1)
        return order[order < n_rows]


def train(
    rows: NDArray[Any],
    training_indices: NDArray[np.intp],
    validation_indices: NDArray[np.intp],
    state: TrainingState,
    settings: StepSettings,
    schedule: Schedule,
    device: Device,
    random_state: np.random.RandomState,
    *,
    n_iter_no_change: int | None,
    on_step: Callable[[int, Losses, Engine], bool],
    keeps_remainder: bool = False,
    on_checkpoint: Callable[[TrainingState], None] | None = None,
    checkpoint_interval: int | None = None,
    agreed: str = "",
) -> TrainingResult:
    """Train weights on rows until the schedule ends, validation stops improving, or the user interrupts.

    Parameters
    ----------
    rows : array of shape (n_samples, n_features), may be memory-mapped
    training_indices, validation_indices : arrays of row numbers; the latter may be empty
    state : TrainingState
        Starting point, or where an earlier training was; its arrays are updated in place on the CPU.
    settings : StepSettings
    schedule : Schedule
    device : Device
    random_state : RandomState
    n_iter_no_change : int or None
        Evaluations without a new best validation loss after which training stops, and the best weights are kept;
        None never stops early.
    on_step : callable
        Called with the number of steps taken, the last losses and the engine; returns True to stop.
    keeps_remainder : bool, default=False
        End each epoch with a smaller batch rather than leave out rows that fill none.
    on_checkpoint : callable or None, default=None
        Called with the state between steps; valid until it returns. Training continued from that state ends with the
        same bits, on the CPU.
    checkpoint_interval : int or None, default=None
        Steps between those calls, beside the one after the last step; None calls as often as validation is looked at.
    agreed : str, default=""
        What else must be alike on all ranks of `data_parallel`.

    Returns
    -------
    TrainingResult
    """
    if state.batch_size is not None:
        settings = replace(settings, batch_size=state.batch_size)
    ranks = _current_ranks(device)
    if ranks is not None:
        drawn = plain_random_state(random_state.get_state(legacy=False))
        ranks.check_alike(
            f"{agreed} {settings} {schedule} {n_iter_no_change} {keeps_remainder} {state.moments.n_steps} {drawn}",
            rows,
            *state.weights.arrays,
            *state.moments.arrays,
            training_indices,
            validation_indices,
        )
        if ranks.rank > 0:
            on_checkpoint = None
    engine = _make_engine(rows, state.weights, state.moments, settings, device, ranks)
    run_rows = _MEMMAP_RUN_ROWS if reads_in_runs(rows) else 1
    sampler = _BatchSampler(training_indices, run_rows, random_state, keeps_remainder=keeps_remainder)
    if state.epoch_start is not None:
        sampler.resume(state.epoch_start, state.epoch_position)
    loss_curve, validation_curve = list(state.loss_curve), list(state.validation_curve)
    validation_steps = list(state.validation_steps)
    best_loss, best_weights, n_without_gain = state.best_loss, state.best_weights, state.n_without_gain
    evaluate_every = max(1, schedule.max_iter // _N_EVALUATIONS)
    checkpoint_interval = checkpoint_interval or evaluate_every
    was_interrupted = False
    queued: deque[Losses] = deque()

    def settle(n_left: int) -> None:
        """Move the losses of all steps but the last few to the curve, waiting for the device where it is behind."""
        while len(queued) > n_left:
            loss = queued[0].loss(settings.loss_weights)
            loss_curve.append(loss)
            queued.popleft()
            check_loss(loss)

    def check_loss(loss: float) -> None:
        """Raise where training has diverged, before weights that are still finite are taken for its result."""
        if not math.isfinite(loss) and not was_interrupted:
            raise ValueError(_DIVERGED)

    def shrinking(work: Callable[[], Losses]) -> Losses:
        """Do the work; out of device memory, drop kept encoders, or else halve the batch, and try again."""
        nonlocal engine, settings
        while True:
            try:
                return work()
            except RuntimeError as error:
                import torch

                from skcompressae._torch._device_encoder import drop_kept_encoders
                from skcompressae._torch._torch_engine import is_out_of_memory

                if not is_out_of_memory(error) or settings.batch_size <= 1 or ranks is not None:
                    raise
            if not drop_kept_encoders(device):
                settings = replace(settings, batch_size=max(1, settings.batch_size // 2))
                warnings.warn(
                    f"The device ran out of memory; batch_size is now {settings.batch_size}. "
                    "Set batch_size to this or less to avoid the retry.",
                    DeviceMemoryWarning,
                    stacklevel=caller_level(),
                )
            kept = engine.current_weights(), engine.current_moments()
            del engine
            torch.cuda.empty_cache()
            engine = _make_engine(rows, *kept, settings, device)

    try:
        step = state.n_steps
        while step < schedule.max_iter or sampler.has_remainder:
            step += 1
            batch, rate = sampler.draw(settings.batch_size), schedule(step)
            # The lambda runs before the loop goes on; it reads `settings` anew after each halving.
            losses = shrinking(lambda: engine.step(batch[: settings.batch_size], rate))  # noqa: B023
            sampler.give_back(max(0, len(batch) - settings.batch_size))  # what a batch that was halved leaves
            queued.append(losses)
            settle(_STEPS_AHEAD)
            if len(validation_indices) and (step % evaluate_every == 0 or step == schedule.max_iter):
                loss = shrinking(lambda: engine.losses(validation_indices)).loss(settings.loss_weights)
                check_loss(loss)
                validation_curve.append(loss)
                validation_steps.append(step)
                if loss < best_loss:
                    best_loss, n_without_gain = loss, 0
                    best_weights = engine.current_weights().copy() if n_iter_no_change is not None else None
                else:
                    n_without_gain += 1
            if on_step(step, losses, engine):
                break
            if n_iter_no_change is not None and n_without_gain >= n_iter_no_change:
                break
            is_due = step % checkpoint_interval == 0 or step == schedule.max_iter
            if on_checkpoint is not None and is_due:
                settle(0)
                on_checkpoint(
                    TrainingState(
                        engine.current_weights(),
                        engine.current_moments(),
                        loss_curve,
                        validation_curve,
                        validation_steps,
                        best_loss,
                        best_weights,
                        n_without_gain,
                        settings.batch_size,
                        sampler.epoch_start,
                        sampler.position,
                    )
                )
    except KeyboardInterrupt:
        was_interrupted = True
    settle(0)
    final = engine.current_weights()
    if best_weights is not None and n_without_gain > 0 and not was_interrupted:
        final = best_weights
    if not all(np.isfinite(array).all() for array in final.arrays):  # the last step is looked at by none after it
        raise ValueError(_DIVERGED)
    return TrainingResult(
        weights=final,
        moments=engine.current_moments(),
        n_iter=len(loss_curve),
        loss_curve=np.array(loss_curve),
        validation_loss_curve=np.array(validation_curve),
        validation_steps=np.array(validation_steps, dtype=np.int64),
        was_interrupted=was_interrupted,
    )


def reads_in_runs(rows: NDArray[Any]) -> bool:
    """Tell whether batches are runs of consecutive rows: where an array is a large mapped file, or views one."""
    if rows.nbytes < _MIN_RUN_BYTES:
        return False
    base: Any = rows
    while base is not None:
        if isinstance(base, np.memmap):
            return True
        base = getattr(base, "base", None)
    return False
