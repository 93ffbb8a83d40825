"""The training engine: steps, schedule, moving average, validation and resumed runs."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sklearn_msf.exceptions import DivergenceError
from sklearn_msf.flow.velocity_field import VelocityField
from sklearn_msf.persistence.archives import ArchiveError, check_tensors
from sklearn_msf.runtime.device_queue import DeviceQueue
from sklearn_msf.runtime.out_of_memory import naming_what_takes_memory
from sklearn_msf.runtime.process_group import ProcessGroup
from sklearn_msf.runtime.user_warnings import warn_user
from sklearn_msf.training.batches import TrainingData
from sklearn_msf.training.early_stopping import BestWeights
from sklearn_msf.training.epoch_logs import count_images
from sklearn_msf.training.fraction import FractionChoice
from sklearn_msf.training.optimizer import AveragedOptimizer
from sklearn_msf.training.schedule import TimeBudget, learning_rate_factor
from sklearn_msf.training.settings import TrainingSettings
from sklearn_msf.training.state import CheckpointStore, EpochCallback, TrainingState
from sklearn_msf.training.state_checks import check_generator_state, check_numbers
from sklearn_msf.training.step import TrainingStep

__all__ = ["Trainer"]

# After a loss that is not finite: how often to restart, and the factor on the learning rate for
# each restart.
_MAX_RESTARTS = 2
_RESTART_RATE = 0.25


class _NotFiniteError(Exception):
    """Loss or weights are not finite after a step."""


class Trainer:
    """Trains a velocity field and keeps the moving average of its weights.

    Parameters
    ----------
    field : VelocityField
        The field to train, on its device; changed in place.
    settings : TrainingSettings
        Settings of the training.
    generator : torch.Generator
        Source of order, times, noise, dropout and augmentation, on the device of the field.
    started : float, optional
        Time on `time.perf_counter`'s clock from which the time budget counts.
    group : ProcessGroup, optional
        The processes that train together; this process by itself by default. All have the same
        field, settings, generator and data; what else decides about the run is taken from the
        first one.

    Attributes
    ----------
    average : VelocityField
        The field with averaged weights, which is used for predictions.
    history : list of dict
        One epoch log per epoch.
    budget : TimeBudget
        Time budget of the run.
    interrupted : bool
        Whether a KeyboardInterrupt ended training.
    was_ended : bool
        Whether a callback ended training, as far as a run that is called again can tell: with a
        time budget it cannot.
    was_cut_short : bool
        Whether the time budget ended the run before its last epoch.
    n_steps : int
        Steps that this call of :meth:`fit` has made.
    n_called_back : int
        Epochs at whose ends the callback was called in this call of :meth:`fit`.
    callback_seconds : float
        Seconds that it took there and at the beginnings of epochs.
    """

    def __init__(
        self,
        field: VelocityField,
        settings: TrainingSettings,
        generator: torch.Generator,
        started: float | None = None,
        group: ProcessGroup | None = None,
    ):
        self.group = group or ProcessGroup()
        self.field = field
        self.average = copy.deepcopy(field).requires_grad_(False).eval()
        self.history: list[dict[str, Any]] = []
        self._generator = generator
        self._device = generator.device
        self.budget = TimeBudget(settings.time_budget, started)
        self._optimizer = AveragedOptimizer(
            field,
            self.average,
            optimizer=settings.optimizer,
            weight_decay=settings.weight_decay,
            max_grad_norm=settings.max_grad_norm,
            ema_decay=settings.ema_decay,
        )
        self._step = TrainingStep(field, self._optimizer, settings, generator, self.group)
        self._queue = DeviceQueue(self._device)
        self._n_restarts = 0
        # While the first steps are measured to choose the fraction at t = 1.
        self._choice: FractionChoice | None = None
        self._best = BestWeights(settings.n_iter_no_change) if settings.early_stopping else None
        self._last_good: TrainingState | None = None
        self.interrupted, self.was_ended, self.was_cut_short = False, False, False
        self.n_steps = 0
        self.n_called_back, self.callback_seconds = 0, 0.0
        self._report: Callable[[float, dict[str, Any] | None], None] | None = None

    @property
    def settings(self) -> TrainingSettings:
        """Settings of the steps, of which the fraction at t = 1 may change during a run."""
        return self._step.settings

    # State

    def state(self) -> TrainingState:
        """Copy everything that is needed to resume this run."""
        tensors = {"generator": self._generator.get_state(), **self._optimizer.tensors()}
        metadata = {
            "n_steps": self._optimizer.n_steps,
            "n_restarts": self._n_restarts,
            "elapsed": self.budget.elapsed,
            "begun": self.budget.begun,
            "history": [dict(epoch_log) for epoch_log in self.history],
        }
        if self._best is not None:
            tensors |= self._best.tensors()
            metadata["best"] = self._best.metadata()
        return TrainingState(tensors, metadata)

    def load_weights(self, state: TrainingState) -> None:
        """Start from the weights, averages and moments of another run."""
        self._optimizer.load(state.tensors, state.metadata["n_steps"])
        self._step.forget()

    def begin_after(self, n_steps: int) -> None:
        """Divide batches as after so many steps more than the state knows of.

        Steps of few samples would else never have one at t = 1, if each run makes one of them and
        keeps no state.
        """
        self._step.n_steps_before = n_steps

    @property
    def n_steps_before(self) -> int:
        """Steps before those that the state knows of."""
        return self._step.n_steps_before

    def resume(self, state: TrainingState) -> None:
        """Restore the exact state of another run, except for the time it took."""
        self.load_weights(state)
        self._generator.set_state(state.tensors["generator"].cpu())
        self._n_restarts = state.metadata["n_restarts"]
        self.history = [dict(epoch_log) for epoch_log in state.metadata["history"]]
        if self._best is not None:
            self._best.load(state.tensors, state.metadata["best"])

    def check(self, state: TrainingState) -> None:
        """Check that a state from a file, which may have been changed, is one of this run.

        Raises
        ------
        ArchiveError
            For the first value that does not fit.
        """
        tensors, metadata = state
        settings, best = self.settings, self._best
        check_numbers(
            metadata,
            max_epochs=settings.max_epochs,
            max_restarts=_MAX_RESTARTS,
            early_stopping=best is not None,
        )
        wanted = {"generator": self._generator.get_state(), **self._optimizer.wanted(tensors)}
        if best is not None:
            wanted |= best.wanted(metadata["best"], self.average)
        check_tensors(tensors, wanted, "it")
        check_generator_state(tensors["generator"], self._device)
        self._optimizer.check_moments(tensors, metadata["n_steps"])

    @property
    def n_epochs_unused(self) -> int:
        """Number of the last epochs whose weights early stopping does not keep."""
        return 0 if self._best is None else self._best.n_epochs_since

    @property
    def is_at_its_best(self) -> bool:
        """Whether the averaged weights are those of the last epoch, and not of an earlier one."""
        return self._best is None or not (self.n_epochs_unused or self.interrupted)

    # Training

    def fit(
        self,
        data: TrainingData,
        *,
        validate: Callable[[VelocityField], float] | None = None,
        report: Callable[[float, dict[str, Any] | None], None] | None = None,
        callback: EpochCallback | None = None,
        checkpoints: CheckpointStore | None = None,
        survives_interrupts: bool = True,
    ) -> None:
        """Train to the end of the schedule.

        Parameters
        ----------
        data : TrainingData
            Training data.
        validate : callable, optional
            Computes the score of a field, higher is better; called after each epoch.
        report : callable, optional
            Called after each step with the fraction of the training that is done and None, and
            after each epoch with that fraction and the epoch log.
        callback : EpochCallback, optional
            Called at the beginning and the end of every epoch; may end training.
        checkpoints : CheckpointStore, optional
            Has the state to resume from, if any, and stores new states.
        survives_interrupts : bool, default=True
            Whether a KeyboardInterrupt after the first step ends training early, with a warning,
            instead of being raised. With several processes it is always raised.

        Raises
        ------
        DivergenceError
            If loss or weights are still not finite after two restarts at lower rates. The
            trainer then has the weights from before the failed epoch; with early stopping the
            average has the best weights.
        """
        self._report = report
        n_steps_before = self._optimizer.n_steps
        self.budget.begin()
        finished = self._resume_latest(checkpoints)
        with self._step.running():
            try:
                if not finished:
                    self._run_epochs(data, validate, callback, checkpoints)
            except KeyboardInterrupt:
                has_steps = self._optimizer.n_steps > n_steps_before
                # Of several processes each stops elsewhere, and would wait for the others.
                if self.group.size > 1 or not (has_steps and survives_interrupts):
                    raise
                self._after_interrupt()
            finally:
                if self._best is not None:
                    self._best.restore(self.average)

    def _resume_latest(self, checkpoints: CheckpointStore | None) -> bool:
        """Resume the newest usable state, if there is one; return whether its run was finished."""
        state = self.group.of_first(self._latest_usable(checkpoints))
        if state is None:
            return False
        self.resume(state)
        fraction = self.history[-1]["classification_fraction"]
        if self.settings.raises_fraction and fraction != self.settings.classification_fraction:
            self._use_fraction(fraction)
        self.budget.resume(state.metadata["elapsed"], state.metadata["begun"])
        is_finished = bool(state.metadata["finished"])
        # The time of a budget ends a run too, and early stopping has no calibration run.
        has_epochs_left = len(self.history) < self.settings.max_epochs
        self.was_ended = is_finished and has_epochs_left and self.settings.time_budget is None
        return is_finished

    def _latest_usable(self, checkpoints: CheckpointStore | None) -> TrainingState | None:
        while checkpoints is not None and (state := checkpoints.take_latest()) is not None:
            try:
                self.check(state)
            except ArchiveError as error:
                checkpoints.pass_over(error)
                continue
            return state
        return None

    def reserve_time_of(self, final: Callable[[VelocityField], Any]) -> None:
        """Reserve time for a final use of the averaged field, and measure that time by a trial."""
        self.budget.reserve(self._seconds_of(final))

    def _seconds_of(self, use: Callable[[VelocityField], Any]) -> float:
        """Measure how long a use of the averaged field takes."""
        if self._device.type == "cuda":
            # The first time graphs are captured.
            use(self.average)
        start = self.budget.elapsed
        use(self.average)
        return self.budget.elapsed - start

    def _run_epochs(
        self,
        data: TrainingData,
        validate: Callable[[VelocityField], float] | None,
        callback: EpochCallback | None,
        checkpoints: CheckpointStore | None,
    ) -> None:
        settings = self.settings
        if validate is not None and settings.time_budget is not None:
            # Validate once to learn how long it takes, so that time can be reserved for it.
            before = self.budget.elapsed
            self.budget.end_pause(self._seconds_of(validate))
            self.budget.leave_out(self.budget.elapsed - before)
        self._choice = self._fraction_choice()
        self.budget.start_steps()
        finished = False
        while not finished:
            epoch = len(self.history)
            if callback is not None:
                start = self.budget.elapsed
                callback.begin_epoch()
                self.callback_seconds += self.budget.elapsed - start
            epoch_log = self._restarting_epoch(data, epoch)
            if epoch_log is None:
                continue
            start = self.budget.elapsed
            ends = True
            if epoch_log["n_images"]:
                ends = self._take_epoch(epoch_log, validate, callback)
            elif callback is not None:
                # An epoch in which no step ran does not count.
                callback.leave_epoch()
            self.budget.end_pause(self.budget.elapsed - start)
            finished = self.group.of_first(ends) or self._time_is_up()
            if checkpoints is not None:
                checkpoints.save(self.state, n_epochs=len(self.history), finished=finished)
            # Reserve time for validation and checkpointing.
            self.budget.end_pause(self.budget.elapsed - start)

    def _take_epoch(
        self,
        epoch_log: dict[str, Any],
        validate: Callable[[VelocityField], float] | None,
        callback: EpochCallback | None,
    ) -> bool:
        """Add an epoch to the history, and return whether training ends with it."""
        if validate is not None:
            epoch_log["validation_score"] = self.group.of_first(validate(self.average))
        self.history.append(epoch_log)
        ends = [len(self.history) >= self.settings.max_epochs]
        # Before all that a user may interrupt: the history has the epoch already.
        if self._best is not None:
            ends.append(self._best.ends_with(self.history, self.average))
        if self._report is not None:
            done = self._progress(len(self.history) / self.settings.max_epochs)
            self._report(done, epoch_log)
        self.was_ended = callback is not None and self._ends_by(callback)
        return any([*ends, self.was_ended])

    def _ends_by(self, callback: EpochCallback) -> bool:
        """Tell whether the callback ends training; keep time for its call at the end of the run."""
        start = self.budget.elapsed
        ends = callback.end_epoch()
        seconds = self.budget.elapsed - start
        if not self.n_called_back:
            self.budget.reserve(seconds)
        self.n_called_back += 1
        self.callback_seconds += seconds
        return ends

    def _after_interrupt(self) -> None:
        self.interrupted = True
        self._optimizer.count_broken_step()
        if not bool(self._optimizer.is_finite()) and self._last_good is not None:
            self.resume(self._last_good)
        warn_user(
            f"Training was interrupted after {len(self.history)} whole epochs; the model is that "
            "of the moment, with early stopping that of the best whole epoch.",
        )

    def fit_epoch(self, data: TrainingData) -> None:
        """Train for one epoch at the full learning rate."""
        self.budget.start_steps()
        with self._step.running():
            epoch_log = None
            while epoch_log is None:
                epoch_log = self._restarting_epoch(data, epoch=None)
        self.history.append(epoch_log)

    def _restarting_epoch(self, data: TrainingData, epoch: int | None) -> dict[str, Any] | None:
        """Run one epoch; undo it and return None if loss or weights are not finite."""
        advice = (
            f"A copy of weights and moments ran out of memory on {self._device}: lower batch_size "
            f"({self.settings.batch_size}) or channels"
        )
        with naming_what_takes_memory(advice):
            self._last_good = self.state()
        settings, measured = self.settings, self._choice is not None
        try:
            return self._epoch(data, epoch=epoch)
        except _NotFiniteError as error:
            n_restarts = self._n_restarts
            self.resume(self._last_good)
            if n_restarts >= _MAX_RESTARTS:
                raise DivergenceError(
                    f"{error}, also after {n_restarts} restarts at "
                    f"lower rates: learning_rate={self.settings.learning_rate} is too high "
                    "for these data; lower it."
                ) from None
            self._n_restarts = n_restarts + 1
            if measured:
                # The epoch may have chosen the fraction: measure its steps anew.
                self._step.settings = settings
                self._choice = self._fraction_choice()
            # Use other noise, because the same noise may fail again.
            self._generator.manual_seed(self._generator.initial_seed() + self._n_restarts)
            warn_user(
                f"{error}. The epoch is repeated at {_RESTART_RATE**self._n_restarts:g} times the "
                "learning rate.",
            )
            return None

    def _epoch(self, data: TrainingData, *, epoch: int | None) -> dict[str, Any]:
        """Run one epoch, or as much of it as the time budget allows, and return its log.

        `epoch` counts from 0 and sets the position in the schedule. If it is None, the learning
        rate is constant.
        """
        start = self.budget.elapsed
        self._step.seed_global_generators()
        batches = list(
            data.epoch(self.settings.batch_size, self._generator, even=self.settings.even_batches)
        )
        losses: list[Tensor] = []
        rates: list[float] = []
        n_images = 0
        peak_rate = rate = self.settings.learning_rate * _RESTART_RATE**self._n_restarts
        for step, rows in enumerate(batches):
            # The first epoch makes at least one step, even if the time is up.
            if (step or epoch) and self._time_is_up():
                break
            if epoch is not None:
                # Use the rate at the middle of the step: the schedule is zero at both ends, which
                # would waste the first or the last step.
                passed = (epoch + (step + 0.5) / len(batches)) / self.settings.max_epochs
                progress = self._common_progress(passed)
                rate = peak_rate * learning_rate_factor(progress, self.settings.warmup)
            rates.append(rate)
            before = self.budget.elapsed if self.settings.compile_network else 0.0
            is_usual = self._make_step(data, rows, rate)
            self.n_steps += 1
            n_images += len(rows)
            if self._choice is not None:
                self._measure_for_fraction(self._choice, data, len(rows), is_usual)
            if self.settings.compile_network and not is_usual:
                # The step includes compilation: its time is none of training, and no estimate.
                self.budget.leave_out(self.budget.elapsed - before)
                self.budget.start_steps()
            if len(rates) % self._step.capacity == 0:
                losses.append(self._checked_losses(rates))
            if self._report is not None and epoch is not None:
                self._report(self._progress(passed), None)
        losses.append(self._checked_losses(rates))
        seconds = self.budget.end_step() - start
        image_loss, label_loss = (torch.cat(losses).sum(dim=0) / max(len(rates), 1)).tolist()
        return {
            "epoch": len(self.history) + 1,
            "loss": image_loss + label_loss,
            "image_loss": image_loss,
            "label_loss": label_loss,
            "learning_rate": rate,
            "n_images": n_images,
            "classification_fraction": self.settings.classification_fraction,
            "seconds": seconds,
        }

    def _fraction_choice(self) -> FractionChoice | None:
        """Prepare the choice of the fraction at t = 1, unless it is settled."""
        settings = self.settings
        if not settings.raises_fraction or self.budget.seconds is None:
            return None
        least, n_seen = settings.classification_fraction, count_images(self.history)
        return FractionChoice(least, self.budget.seconds, self._device.type, n_seen)

    def _measure_for_fraction(
        self, choice: FractionChoice, data: TrainingData, n_images: int, is_usual: bool
    ) -> None:
        """Take note of a step, and use the fraction at t = 1 if it is chosen after this step."""
        # The CPU must not run ahead of the device, whose time is measured.
        self._queue.wait()
        elapsed, size = self.budget.elapsed, data.epoch_size
        fraction = choice.after_step(n_images, elapsed, size, is_usual=is_usual)
        fraction = self.group.of_first(fraction)
        if fraction is not None:
            self._use_fraction(fraction)
            self._choice = None

    def _use_fraction(self, fraction: float) -> None:
        """Use a fraction at t = 1 to the end of the run."""
        self._step.settings = replace(
            self.settings, classification_fraction=fraction, raises_fraction=False
        )

    def _make_step(self, data: TrainingData, rows: Tensor, rate: float) -> bool:
        """Make a step, and return whether it took as long as later ones of its kind will."""
        advice = (
            f"Training ran out of memory on {self._device} with {len(rows)} samples a step "
            f"(batch_size={self.settings.batch_size}) of the shape "
            f"{tuple(data.images.shape[1:])}: lower batch_size, or {data.smaller_samples}"
        )
        with naming_what_takes_memory(advice):
            is_usual = self._step(data, rows, rate)
            if self.settings.time_budget is not None:
                self._queue.add()
        return is_usual

    def _checked_losses(self, rates: list[float]) -> Tensor:
        """Take the losses of the last steps of an epoch, (n, 2), and check them and the weights.

        Raise an error that names the first step after which loss or weights are not finite. If
        only the weights are not finite, it names the last step.
        """
        # Before the losses are waited for: a GPU has work meanwhile.
        weights_are_finite = self._optimizer.is_finite()
        losses = self._step.take_losses()
        finite = losses.sum(dim=1).isfinite()
        if bool(finite.all()) and bool(weights_are_finite):
            return losses
        bad = finite.logical_not().nonzero()
        step = len(rates) - len(losses) + int(bad[0]) if len(bad) else len(rates) - 1
        what = "loss is" if len(bad) else "weights are"
        raise _NotFiniteError(
            f"The {what} not finite in epoch {len(self.history) + 1}, step {step + 1}, at "
            f"learning rate {rates[step]:.2g}"
        )

    def _time_is_up(self) -> bool:
        if self.settings.time_budget is None:
            return False
        is_up = self.group.of_first(self.budget.is_up(n_running=self._queue.wait()))
        self.was_cut_short = self.was_cut_short or is_up
        return is_up

    def _common_progress(self, fraction_of_epochs: float) -> float:
        progress = self._progress(fraction_of_epochs)
        return progress if self.settings.time_budget is None else self.group.of_first(progress)

    def _progress(self, fraction_of_epochs: float) -> float:
        """Return the fraction of the training done: the larger one of epochs and time."""
        return min(1.0, max(fraction_of_epochs, self.budget.fraction_passed()))
