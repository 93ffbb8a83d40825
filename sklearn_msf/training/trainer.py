"""The training engine: steps, schedule, moving average, validation, and runs that go on."""

import copy
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from sklearn_msf.flow.path import PathSample, sample_path, sample_times
from sklearn_msf.flow.velocity_field import VelocityField
from sklearn_msf.nn.dropout import Dropout
from sklearn_msf.runtime.compilation import compile_or_not
from sklearn_msf.runtime.device import autocast, float32_rounding
from sklearn_msf.training.batches import TrainingData
from sklearn_msf.training.early_stopping import BestWeights
from sklearn_msf.training.optimizer import AveragedOptimiser
from sklearn_msf.training.schedule import TimeBudget, learning_rate_factor
from sklearn_msf.training.settings import TrainingSettings
from sklearn_msf.training.state import EpochWatcher, StateStore, TrainingState

__all__ = ["DivergenceError", "Trainer"]

# Losses are looked at this often: looking waits for the device.
_STEPS_BETWEEN_CHECKS = 100
# After a loss that is not finite: how often to go on, and at what share of the rate.
_MAX_RESTARTS = 2
_RESTART_RATE = 0.25


class DivergenceError(ValueError):
    """Loss or weights were not finite, and lower learning rates did not help."""


class _NotFiniteError(Exception):
    """Loss or weights are not finite after a step."""


class Trainer:
    """Trains a velocity field and keeps the moving average of its weights.

    Parameters
    ----------
    field : VelocityField
        The field to train, on its device; changed in place.
    settings : TrainingSettings
        How to train.
    generator : torch.Generator
        Source of order, times, noise, dropout and augmentation, on the device of the field.
    started : float, optional
        Time on `time.perf_counter`'s clock from which the time budget counts.

    Attributes
    ----------
    average : VelocityField
        The field with averaged weights: the one to predict with.
    history : list of dict
        One record an epoch.
    budget : TimeBudget
        Clock of the run.
    interrupted, survives_interrupts : bool
        Whether a KeyboardInterrupt ended training, and whether it may, or is passed on.
    """

    def __init__(
        self,
        field: VelocityField,
        settings: TrainingSettings,
        generator: torch.Generator,
        started: float | None = None,
    ):
        self.field = field
        self.settings = settings
        self.average = copy.deepcopy(field).requires_grad_(False).eval()
        self.history: list[dict[str, Any]] = []
        self._generator = generator
        self._device = generator.device
        self.budget = TimeBudget(settings.time_budget, started)
        self._optimizer = AveragedOptimiser(
            field,
            self.average,
            optimizer=settings.optimizer,
            weight_decay=settings.weight_decay,
            max_grad_norm=settings.max_grad_norm,
            ema_decay=settings.ema_decay,
        )
        self._field_losses = (
            compile_or_not(field.losses) if settings.compile_network else field.losses
        )
        self._n_restarts = 0
        self._best = BestWeights(settings.n_iter_no_change) if settings.early_stopping else None
        self._last_good: TrainingState | None = None
        self.interrupted, self.survives_interrupts = False, True
        self._report: Callable[[float, dict[str, Any] | None], None] | None = None

    # State

    def state(self) -> TrainingState:
        """Copy everything this run needs to go on."""
        tensors = {"generator": self._generator.get_state(), **self._optimizer.tensors()}
        document = {
            "n_steps": self._optimizer.n_steps,
            "n_restarts": self._n_restarts,
            "elapsed": self.budget.elapsed,
            "history": [dict(record) for record in self.history],
        }
        if self._best is not None:
            tensors |= self._best.tensors()
            document["best"] = self._best.document()
        return TrainingState(tensors, document)

    def load_weights(self, state: TrainingState) -> None:
        """Start from the weights, averages and moments of another run."""
        self._optimizer.load(state.tensors, state.document["n_steps"])

    def resume(self, state: TrainingState) -> None:
        """Go on exactly where another run was."""
        self.load_weights(state)
        self._generator.set_state(state.tensors["generator"].cpu())
        self._n_restarts = state.document["n_restarts"]
        self.history = [dict(record) for record in state.document["history"]]
        if self._best is not None:
            self._best.load(state.tensors, state.document["best"])

    # Training

    def fit(
        self,
        data: TrainingData,
        *,
        validate: Callable[[VelocityField], float] | None = None,
        report: Callable[[float, dict[str, Any] | None], None] | None = None,
        watcher: EpochWatcher | None = None,
        store: StateStore | None = None,
    ) -> None:
        """Train to the end of the schedule.

        A KeyboardInterrupt ends training early, with a warning.

        Parameters
        ----------
        data : TrainingData
            What to train on.
        validate : callable, optional
            Score of a field, higher is better; called after each epoch.
        report : callable, optional
            Called with the share of the training done: after each step with None, after each
            epoch with its record.
        watcher : EpochWatcher, optional
            Is told of every epoch and may end training.
        store : StateStore, optional
            Where to go on from, and where to keep states.

        Raises
        ------
        DivergenceError
            Where loss or weights are not finite, also after two restarts at lower rates. The
            trainer then holds the last good weights.
        """
        self._report = report
        finished = False
        if store is not None and (state := store.latest()) is not None:
            self.resume(state)
            self.budget.resume(state.document["elapsed"])
            finished = state.document["finished"]
        with self._own_state():
            try:
                if not finished:
                    self._run_epochs(data, validate, watcher, store)
            except KeyboardInterrupt:
                if not (self._optimizer.n_steps and self.survives_interrupts):
                    raise
                self._after_interrupt()
            finally:
                if self._best is not None:
                    self._best.restore(self.average)

    def reserve_time_of(self, final: Callable[[VelocityField], Any]) -> None:
        """Keep the time that a last use of the averages takes, by doing it once."""
        start = self.budget.elapsed
        final(self.average)
        self.budget.reserve(self.budget.elapsed - start)

    def _run_epochs(
        self,
        data: TrainingData,
        validate: Callable[[VelocityField], float] | None,
        watcher: EpochWatcher | None,
        store: StateStore | None,
    ) -> None:
        settings = self.settings
        if validate is not None and settings.time_budget is not None:
            # How long it takes must be known before the time is up.
            start = self.budget.elapsed
            validate(self.average)
            self.budget.end_pause(self.budget.elapsed - start)
        self.budget.start_steps()
        finished = False
        while not finished:
            epoch = len(self.history)
            if watcher is not None:
                watcher.begin_epoch()
            record = self._restarting_epoch(data, epoch)
            if record is None:
                continue
            start = self.budget.elapsed
            # An epoch for which there was no time is none.
            ends = [not record["n_images"]]
            if not ends[0]:
                if validate is not None:
                    record["validation_score"] = validate(self.average)
                self.history.append(record)
                if self._report is not None:
                    self._report(self._progress((epoch + 1) / settings.max_epochs), record)
                # Each has to hear of the epoch.
                ends += [
                    epoch + 1 >= settings.max_epochs,
                    self._best is not None and self._best.ends_with(record, self.average),
                    watcher is not None and watcher.end_epoch(),
                ]
            self.budget.end_pause(self.budget.elapsed - start)
            finished = any(ends) or self._time_is_up()
            if store is not None:
                store.save(self.state, n_epochs=len(self.history), finished=finished)
            # Scores and checkpoints take time that the next step has to leave.
            self.budget.end_pause(self.budget.elapsed - start)

    def _after_interrupt(self) -> None:
        self.interrupted = True
        if not self._optimizer.is_finite() and self._last_good is not None:
            self.resume(self._last_good)
        warnings.warn(
            f"Training was interrupted after {len(self.history)} whole epochs; the model is that "
            "of the moment, with early stopping that of the best whole epoch.",
            stacklevel=3,
        )

    def fit_epoch(self, data: TrainingData) -> None:
        """Train for one epoch at the full learning rate."""
        self.budget.start_steps()
        with self._own_state():
            record = None
            while record is None:
                record = self._restarting_epoch(data, epoch=None)
        self.history.append(record)

    def _restarting_epoch(self, data: TrainingData, epoch: int | None) -> dict[str, Any] | None:
        """Run one epoch; None where it ended in numbers that are not finite and is undone."""
        self._last_good = self.state()
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
            # Other noise: the same would lead to the same end.
            self._generator.manual_seed(self._generator.initial_seed() + self._n_restarts)
            warnings.warn(
                f"{error}. The epoch starts anew at {_RESTART_RATE**self._n_restarts:g} of the "
                "rate.",
                stacklevel=4,
            )
            return None

    def _epoch(self, data: TrainingData, *, epoch: int | None) -> dict[str, Any]:
        """Run one epoch, or as much of it as the time budget allows, and return its record.

        `epoch` counts from 0 and places the epoch in the schedule; without it the learning
        rate is constant.
        """
        start = self.budget.elapsed
        if self.settings.compile_network:
            self._seed_global_generators()
        batches = list(data.epoch(self.settings.batch_size, self._generator))
        losses = torch.zeros(len(batches), 2, device=self._device)
        n_steps = n_images = n_checked = 0
        peak_rate = rate = self.settings.learning_rate * _RESTART_RATE**self._n_restarts
        rates = []
        for step, rows in enumerate(batches):
            # Every call trains, if only for one step.
            if (step or epoch) and self._time_is_up():
                break
            if epoch is not None:
                # The middle of the step: neither the first nor the last one is lost at zero.
                share = (epoch + (step + 0.5) / len(batches)) / self.settings.max_epochs
                rate = peak_rate * learning_rate_factor(self._progress(share))
            rates.append(rate)
            losses[step] = self._step(data, rows, rate)
            n_steps += 1
            n_images += len(rows)
            if self.settings.compile_network and self._optimizer.n_steps == 1:
                # It took as long as compiling takes; no other will.
                self.budget.start_steps()
            if n_steps - n_checked >= _STEPS_BETWEEN_CHECKS:
                self._check(losses[:n_steps], rates)
                n_checked = n_steps
            if self._report is not None and epoch is not None:
                self._report(self._progress(share), None)
        self._check(losses[:n_steps], rates)
        image_loss, label_loss = (losses.sum(dim=0) / max(n_steps, 1)).tolist()
        return {
            "epoch": len(self.history) + 1,
            "loss": image_loss + label_loss,
            "image_loss": image_loss,
            "label_loss": label_loss,
            "learning_rate": rate,
            "n_images": n_images,
            "seconds": self.budget.elapsed - start,
        }

    def _check(self, losses: Tensor, rates: list[float]) -> None:
        """Find the first step of an epoch after which numbers are not finite."""
        finite = losses.sum(dim=1).isfinite()
        if bool(finite.all()) and self._optimizer.is_finite():
            return
        bad = finite.logical_not().nonzero()
        step = int(bad[0]) if len(bad) else len(rates) - 1
        what = "loss is" if len(bad) else "weights are"
        raise _NotFiniteError(
            f"The {what} not finite in epoch {len(self.history) + 1}, step {step + 1}, at "
            f"learning rate {rates[step]:.2g}"
        )

    def _step(self, data: TrainingData, rows: Tensor, rate: float) -> Tensor:
        """One optimiser step; returns the weighted image and label losses, detached."""
        n_at_one = self._n_rows(self.settings.t1_share, len(rows))
        # Moved images and dropout are for what classifies: without a share at t = 1 all rows.
        n_varied = n_at_one if self.settings.t1_share > 0 else len(rows)
        x, labels = data.batch(rows, n_varied, self._generator)
        losses = self._losses(self._sample(x, labels, n_at_one), labels, n_at_one, n_varied)
        losses.sum().backward()
        self._optimizer.step(rate)
        return losses.detach()

    def _sample(self, x: Tensor, labels: Tensor, n_at_one: int) -> PathSample:
        """Draw a point of the path for each image."""
        generator = self._generator
        y = self.field.codes.masks(labels, (x.shape[2], x.shape[3]), generator)
        e_x = torch.randn(x.shape, generator=generator, device=self._device)
        e_y = torch.randn(y.shape, generator=generator, device=self._device)
        n_classless = self._n_rows(self.settings.classless_share, len(x))
        return sample_path(x, y, e_x, e_y, *sample_times(len(x), n_at_one, n_classless, generator))

    def _losses(self, sample: PathSample, labels: Tensor, n_at_one: int, n_varied: int) -> Tensor:
        """Weighted image and label losses of one batch."""
        with autocast(self._device, self.settings.precision):
            image_loss, label_loss = self._field_losses(sample, labels, n_at_one, n_varied)
        w = self.settings.image_weight
        return torch.stack([w * image_loss, (1 - w) * label_loss])

    def _n_rows(self, share: float, n: int) -> int:
        """Rows of this step such that they are a share over the steps."""
        rows, n_steps = share * n, self._optimizer.n_steps
        return math.floor((n_steps + 1) * rows) - math.floor(n_steps * rows)

    @contextmanager
    def _own_state(self) -> Iterator[None]:
        """Leave torch's global state alone: random numbers and the rounding of products.

        Dropout draws from the trainer's generator. What is compiled cannot, and draws from
        the global ones, which are seeded for every epoch and put back.
        """
        layers = [module for module in self.field.modules() if isinstance(module, Dropout)]
        cuda = [self._device] if self._device.type == "cuda" else []
        tf32 = float32_rounding(self._device, self.settings.precision)
        with torch.random.fork_rng(devices=cuda, enabled=self.settings.compile_network), tf32:
            try:
                for layer in layers:
                    layer.generator = None if self.settings.compile_network else self._generator
                yield
            finally:
                for layer in layers:
                    layer.generator = None

    def _seed_global_generators(self) -> None:
        # Nothing is drawn: noise and order stay those of a run that is not compiled.
        seed = (self._generator.initial_seed() + self._optimizer.n_steps) % 2**63
        torch.default_generator.manual_seed(seed)
        if self._device.type == "cuda":
            with torch.cuda.device(self._device):
                torch.cuda.manual_seed(seed)

    def _time_is_up(self) -> bool:
        if self.settings.time_budget is not None and self._device.type == "cuda":
            # Launching a step takes no time; the step does.
            torch.cuda.synchronize(self._device)
        return self.budget.is_up()

    def _progress(self, share_of_epochs: float) -> float:
        """Share of the training done: of the epochs or of the time, whichever is further."""
        return min(1.0, max(share_of_epochs, self.budget.share()))
