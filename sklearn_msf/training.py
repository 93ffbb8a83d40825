"""The training engine: batches on the device, optimiser, schedule, EMA, validation."""

import copy
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sklearn_msf.augmentation import augment_images
from sklearn_msf.device import autocast
from sklearn_msf.fields import VelocityField
from sklearn_msf.flow import sample_path, sample_times
from sklearn_msf.images import ImageFormat

__all__ = ["Trainer", "TrainingData", "TrainingSettings", "learning_rate_factor"]

# Tables 3 to 5: 100 warm-up epochs of 1000, 200 of 2000.
_WARMUP_SHARE = 0.1


@dataclass(frozen=True)
class TrainingSettings:
    """How to train.

    Attributes
    ----------
    max_epochs : int
        Passes over the data at most.
    time_budget : float or None
        Seconds after which training has ended, schedule included.
    batch_size : int
        Images a step; an epoch is split evenly into steps of about this size.
    learning_rate, weight_decay : float
        Of AdamW.
    max_grad_norm : float or None
        Norm to which longer gradients are cut.
    ema_decay : float
        Share of the weights' moving average kept at each step.
    image_weight : float
        w, weight of the image half in the loss; the label half has 1 - w.
    t1_share : float
        Share of each batch at t = 1.
    augment : str or None
        Random variation of the images.
    precision : {"float32", "bfloat16"}
        Precision of convolutions and products.
    early_stopping : bool
        Whether to keep the best validated weights and to stop when they stay the best.
    n_iter_no_change : int
        Epochs without a better validation score after which training stops.
    """

    max_epochs: int
    time_budget: float | None
    batch_size: int
    learning_rate: float
    weight_decay: float
    max_grad_norm: float | None
    ema_decay: float
    image_weight: float
    t1_share: float
    augment: str | None
    precision: str
    early_stopping: bool
    n_iter_no_change: int


class TrainingData:
    """Images and labels on the device, with weights that act as repetitions.

    Parameters
    ----------
    images : Tensor of shape (n, C, H, W)
        uint8 in [0, 255] or float32 in [-1, 1].
    labels : Tensor of shape (n,), int64
        Class indices.
    weights : Tensor of shape (n,), float64
        Positive weights: the share of each row in an epoch.
    epoch_size : int
        Images of an epoch. With the sum of integer weights a row of weight k is seen k times
        an epoch, as k copies of it would be.
    """

    def __init__(self, images: Tensor, labels: Tensor, weights: Tensor, epoch_size: int):
        self.images = images
        self.labels = labels
        self.epoch_size = epoch_size
        self._cumulative = weights.cumsum(0) / weights.sum()

    def epoch(self, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
        """Yield the row indices of each batch of one epoch, in random order.

        Systematic resampling: evenly spaced points on the cumulated weights, so that unit
        weights visit every row exactly once.
        """
        n, device = self.epoch_size, self.labels.device
        offset = torch.rand(1, generator=generator, device=device, dtype=torch.float64)
        points = (torch.arange(n, device=device, dtype=torch.float64) + offset) / n
        rows = torch.searchsorted(self._cumulative, points).clamp_max(len(self.labels) - 1)
        order = torch.randperm(n, generator=generator, device=device)
        yield from rows[order].tensor_split(max(1, round(n / batch_size)))


def learning_rate_factor(progress: float) -> float:
    """Linear warm-up over the first tenth of training, then a cosine to zero.

    Parameters
    ----------
    progress : float
        Share of the training done, in [0, 1].
    """
    if progress < _WARMUP_SHARE:
        return progress / _WARMUP_SHARE
    return 0.5 * (1 + math.cos(math.pi * (progress - _WARMUP_SHARE) / (1 - _WARMUP_SHARE)))


class _BestWeights:
    """The weights of the epoch with the best validation score."""

    def __init__(self, n_iter_no_change: int):
        self._patience = n_iter_no_change
        self._score = -math.inf
        self._weights: dict[str, Tensor] | None = None
        self._n_worse = 0

    def ends_with(self, record: dict[str, Any], average: VelocityField) -> bool:
        """Take note of an epoch; tell whether it was the last worth waiting for."""
        score = record.get("validation_score")
        if score is None:
            return False
        self._n_worse += 1
        if score > self._score:
            self._score, self._n_worse = score, 0
            self._weights = copy.deepcopy(average.state_dict())
        return self._n_worse >= self._patience

    def restore(self, average: VelocityField) -> None:
        """Load the best weights, where there were any."""
        if self._weights is not None:
            average.load_state_dict(self._weights)


class Trainer:
    """Trains a velocity field and keeps the moving average of its weights.

    Parameters
    ----------
    field : VelocityField
        The field to train, on its device; changed in place.
    settings : TrainingSettings
        How to train.
    generator : torch.Generator
        Source of order, times, noise and augmentation, on the device of the field.
    started : float, optional
        Time on `time.perf_counter`'s clock from which the time budget counts.

    Attributes
    ----------
    average : VelocityField
        The field with averaged weights: the one to predict with.
    history : list of dict
        One record an epoch.
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
        self._started = time.perf_counter() if started is None else started
        self._n_steps = 0
        self._report: Callable[[float, dict[str, Any] | None], None] | None = None
        # Running estimates of what must still fit into the time budget.
        self._checked = self._started
        self._step_seconds = self._validation_seconds = 0.0
        self._parameters: list[Tensor] = list(field.parameters())
        self._averages: list[Tensor] = list(self.average.parameters())
        self._optimizer = torch.optim.AdamW(
            self._parameters,
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
            fused=True,
        )

    def state_dict(self) -> dict[str, Any]:
        """Collect what another trainer needs to go on where this one is."""
        return {
            "field": self.field.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "n_steps": self._n_steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where another trainer was."""
        self.field.load_state_dict(state["field"])
        self.average.load_state_dict(state["average"])
        # The optimizer would share tensors with the state and change them in place.
        self._optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        for parameter, moments in self._optimizer.state.items():
            for name, value in moments.items():
                if value.shape == parameter.shape:
                    # The fused kernel walks through memory: the layouts must be the same.
                    moments[name] = torch.empty_like(parameter).copy_(value)
        # Loading brings the old settings back with the old moments.
        self._optimizer.param_groups[0]["weight_decay"] = self.settings.weight_decay
        self._n_steps = state["n_steps"]

    def fit(
        self,
        data: TrainingData,
        *,
        validate: Callable[[VelocityField], float] | None = None,
        report: Callable[[float, dict[str, Any] | None], None] | None = None,
    ) -> None:
        """Train to the end of the schedule.

        Parameters
        ----------
        data : TrainingData
            What to train on.
        validate : callable, optional
            Score of a field, higher is better; called after each epoch.
        report : callable, optional
            Called with the share of the training done: after each step with None, after each
            epoch with its record.
        """
        with self._seeded_dropout():
            self._fit(data, validate, report)

    def _fit(
        self,
        data: TrainingData,
        validate: Callable[[VelocityField], float] | None,
        report: Callable[[float, dict[str, Any] | None], None] | None,
    ) -> None:
        settings = self.settings
        best = _BestWeights(settings.n_iter_no_change) if settings.early_stopping else None
        if validate is not None and settings.time_budget is not None:
            # How long it takes must be known before the time is up.
            self._validate(validate)
        self._checked = time.perf_counter()
        self._report = report
        for epoch in range(settings.max_epochs):
            record = self._epoch(data, epoch=epoch)
            if not record["n_images"]:
                break
            if validate is not None:
                record["validation_score"] = self._validate(validate)
            self.history.append(record)
            if report is not None:
                report(self._progress((epoch + 1) / settings.max_epochs), record)
            if best is not None and best.ends_with(record, self.average):
                break
            if self._time_is_up():
                break
        if best is not None:
            best.restore(self.average)

    def fit_epoch(self, data: TrainingData) -> None:
        """Train for one epoch at the full learning rate."""
        self._checked = time.perf_counter()
        with self._seeded_dropout():
            self.history.append(self._epoch(data, epoch=None))

    @contextmanager
    def _seeded_dropout(self) -> Iterator[None]:
        """Seed torch's global generators, which dropout draws from, and put them back."""
        seed = torch.randint(2**62, (1,), generator=self._generator, device=self._device)
        cuda = [self._device] if self._device.type == "cuda" else []
        with torch.random.fork_rng(devices=cuda):
            torch.default_generator.manual_seed(int(seed))
            for device in cuda:
                with torch.cuda.device(device):
                    torch.cuda.manual_seed(int(seed))
            yield

    def _epoch(self, data: TrainingData, *, epoch: int | None) -> dict[str, Any]:
        """Run one epoch, or as much of it as the time budget allows, and return its record.

        `epoch` counts from 0 and places the epoch in the schedule; without it the learning
        rate is constant.
        """
        start = time.perf_counter()
        batches = list(data.epoch(self.settings.batch_size, self._generator))
        losses = torch.zeros(2, device=self._device)
        n_steps = n_images = 0
        rate = self.settings.learning_rate
        for step, rows in enumerate(batches):
            # Every call trains, if only for one step.
            if (step or epoch) and self._time_is_up():
                break
            if epoch is not None:
                # The middle of the step: neither the first nor the last one is lost at zero.
                share = (epoch + (step + 0.5) / len(batches)) / self.settings.max_epochs
                rate = self.settings.learning_rate * learning_rate_factor(self._progress(share))
            losses += self._step(data.images[rows], data.labels[rows], rate)
            n_steps += 1
            n_images += len(rows)
            if self._report is not None and epoch is not None:
                self._report(self._progress(share), None)
        seconds = time.perf_counter() - start
        image_loss, label_loss = (losses / max(n_steps, 1)).tolist()
        if not math.isfinite(image_loss + label_loss):
            raise ValueError(
                f"The loss is not finite in epoch {len(self.history) + 1}: learning_rate="
                f"{self.settings.learning_rate} is too high for these data; lower it."
            )
        return {
            "epoch": len(self.history) + 1,
            "loss": image_loss + label_loss,
            "image_loss": image_loss,
            "label_loss": label_loss,
            "learning_rate": rate,
            "n_images": n_images,
            "seconds": seconds,
        }

    def _step(self, images: Tensor, labels: Tensor, rate: float) -> Tensor:
        """One optimiser step; returns the weighted image and label losses, detached."""
        self._optimizer.param_groups[0]["lr"] = rate
        losses = self._losses(images, labels)
        losses.sum().backward()
        if self.settings.max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(self._parameters, self.settings.max_grad_norm)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._n_steps += 1
        # A young average has little past to keep.
        decay = min(self.settings.ema_decay, self._n_steps / (self._n_steps + 9))
        with torch.no_grad():
            torch._foreach_lerp_(self._averages, self._parameters, 1.0 - decay)
        return losses.detach()

    def _losses(self, images: Tensor, labels: Tensor) -> Tensor:
        """Weighted image and label losses of one batch."""
        settings, generator = self.settings, self._generator
        n_at_one = self._n_at_one(len(images))
        x = ImageFormat.normalise(images)
        # Without rows at t = 1 all rows classify and draw alike.
        n_varied = n_at_one if settings.t1_share > 0 else len(x)
        x = augment_images(x, settings.augment, n_varied, generator)
        y = self.field.codes.masks(labels, (x.shape[2], x.shape[3]), generator)
        e_x = torch.randn(x.shape, generator=generator, device=self._device)
        e_y = torch.randn(y.shape, generator=generator, device=self._device)
        t = sample_times(len(x), n_at_one, generator)
        sample = sample_path(x, y, e_x, e_y, t)
        with autocast(self._device, settings.precision):
            image_loss, label_loss = self.field.losses(sample, labels, n_at_one)
        w = settings.image_weight
        return torch.stack([w * image_loss, (1 - w) * label_loss])

    def _n_at_one(self, n: int) -> int:
        """Rows of this step at t = 1, such that the share holds over the steps."""
        share = self.settings.t1_share * n
        return math.floor((self._n_steps + 1) * share) - math.floor(self._n_steps * share)

    def _progress(self, share_of_epochs: float) -> float:
        """Share of the training done: of the epochs or of the time, whichever is further."""
        if self.settings.time_budget is None:
            return min(1.0, share_of_epochs)
        elapsed = time.perf_counter() - self._started
        return min(1.0, max(share_of_epochs, elapsed / self.settings.time_budget))

    def _validate(self, validate: Callable[[VelocityField], float]) -> float:
        """Score the average and remember how long that takes."""
        start = time.perf_counter()
        score = validate(self.average)
        self._checked = time.perf_counter()
        self._validation_seconds = max(self._validation_seconds, self._checked - start)
        return score

    def _time_is_up(self) -> bool:
        """Whether one more step and what follows it could end after the time budget.

        To be called before every step: the time between two calls is that of a step.
        """
        if self.settings.time_budget is None:
            return False
        now = time.perf_counter()
        self._step_seconds = max(0.9 * self._step_seconds, now - self._checked)
        self._checked = now
        needed = 1.5 * self._step_seconds + self._validation_seconds
        return now - self._started + needed > self.settings.time_budget
