"""Calibration: a temperature, fitted to a second model that was trained without some samples."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch

from sklearn_msf._estimator.data_validation import TrainingSamples
from sklearn_msf._estimator.parameters import draw_seed
from sklearn_msf._estimator.splitting import split_samples
from sklearn_msf.exceptions import ProcessGroupError
from sklearn_msf.flow.velocity_field import VelocityField, build_field
from sklearn_msf.model.temperature import fit_temperature
from sklearn_msf.runtime.process_group import ProcessGroup
from sklearn_msf.runtime.progress import training_progress
from sklearn_msf.runtime.user_warnings import warn_user
from sklearn_msf.training.batches import TrainingData
from sklearn_msf.training.checkpoints import Checkpoints
from sklearn_msf.training.epoch_logs import count_images
from sklearn_msf.training.trainer import Trainer

__all__ = [
    "MODEL_FRACTION",
    "CalibrationPlan",
    "HeldOut",
    "check_several_classes",
    "learn_temperature",
    "plan_calibration",
    "temperature_of",
]

# Smallest time budget, for a run that has no time left.
_NO_TIME = 1e-9
# Fraction of the samples that the calibration run does not see. A temperature needs some hundred
# samples. With the same number of epochs a model trained on fewer samples is as confident.
_HELD_OUT_FRACTION = 1 / 3
# Fraction of a time budget, after the preparation, for training the model itself.
MODEL_FRACTION = 1 / (2 - _HELD_OUT_FRACTION)
# Smallest fraction of the epochs of the model that the calibration run must have: after fewer its
# probabilities tell little about those of the model.
_MIN_FRACTION_OF_EPOCHS = 0.5


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Samples that a field is not trained on, and what it makes of them.

    Attributes
    ----------
    samples : TrainingSamples
        The samples.
    probabilities : callable
        Maps a field to its class probabilities of the samples, (n, K), without a temperature.
    """

    samples: TrainingSamples
    probabilities: Callable[[VelocityField], np.ndarray]

    def accuracy(self, field: VelocityField) -> float:
        """Compute the weighted accuracy of a field."""
        correct = self.probabilities(field).argmax(axis=1) == self.samples.labels
        return float(np.average(correct, weights=self.samples.weights))

    def temperature(self, field: VelocityField) -> float:
        """Fit the temperature of a field."""
        weights = self.samples.weights / self.samples.weights.mean()
        return fit_temperature(self.probabilities(field), self.samples.labels, weights)


@dataclass(frozen=True, eq=False)
class CalibrationPlan:
    """A calibration run: training without some samples, on which the temperature is then fitted.

    Attributes
    ----------
    kept, held_out : ndarray of int
        Indices of the samples to train on, and of the others.
    seed : int
        Seed of the run.
    checkpoints : Checkpoints or None
        Checkpoints of the run.
    """

    kept: np.ndarray
    held_out: np.ndarray
    seed: int
    checkpoints: Checkpoints | None


def plan_calibration(
    samples: TrainingSamples, seed: int, checkpoints: Checkpoints | None
) -> CalibrationPlan:
    """Choose the samples of the calibration run.

    The run has its own random numbers, so that the model is the same with and without calibration.
    """
    own = np.random.RandomState(np.random.SeedSequence([seed, 1]).generate_state(4))
    kept, held_out = split_samples("calibration", samples, _HELD_OUT_FRACTION, own)
    check_several_classes(samples.take(held_out))
    part = None if checkpoints is None else checkpoints.part("calibration")
    return CalibrationPlan(kept, held_out, draw_seed(own), part)


def check_several_classes(held_out: TrainingSamples) -> None:
    """Refuse to learn a temperature from images of one class, which any temperature serves."""
    present = np.unique(held_out.labels)
    if len(present) == 1:
        [label] = held_out.classes[present].tolist()
        raise ValueError(
            "calibration='temperature' needs held-out images of several classes, and all of them "
            f"are of the class {label!r}: pass X_val and y_val with "
            "images of all classes, or more groups."
        )


def learn_temperature(
    name: str,
    verbose: int,
    trainer: Trainer,
    data: TrainingData,
    plan: CalibrationPlan,
    held_out_of: Callable[[np.ndarray], HeldOut],
    mask_codes: torch.Tensor | None,
) -> float | None:
    """Train a second model without some of the samples, and fit the temperature on these.

    The model itself is already trained. If the run fails or is interrupted, the model is kept.

    Parameters
    ----------
    name : str
        Name of the estimator, for the progress bar.
    verbose : int
        Whether to show a progress bar.
    trainer : Trainer
        The trainer that trained the model.
    data : TrainingData
        Training data of the model.
    plan : CalibrationPlan
        The calibration run.
    held_out_of : callable
        Maps indices of the samples of which `data` was made to these samples, to be classified.
    mask_codes : Tensor or None
        Encoded masks that the field carries.

    Returns
    -------
    float or None
        Temperature. None, with a warning, if the run was too short, failed or was interrupted.
    """
    if trainer.interrupted:
        _warn_not_calibrated("training was interrupted")
        return None
    for_steps = _seconds_for_steps(trainer)
    with _keeping_the_model("its run", trainer.group):
        held_out = held_out_of(plan.held_out)
        left = None
        if trainer.settings.time_budget is not None:
            left = max(trainer.settings.time_budget - trainer.budget.elapsed, _NO_TIME)
        field = build_field(trainer.field.layout, plan.seed, mask_codes)
        device = trainer.field.device
        calibrating = Trainer(
            field.move_to(device),
            # With the model's fraction at t = 1: another one would teach another confidence.
            replace(trainer.settings, time_budget=left, raises_fraction=False),
            torch.Generator(device).manual_seed(plan.seed),
            group=trainer.group,
        )
        if left is not None:
            calibrating.reserve_time_of(held_out.probabilities)
            # The callbacks of the fit are called once more after this run.
            calibrating.budget.reserve(trainer.budget.reserved)
            kept_fraction = len(plan.kept) / (len(plan.kept) + len(plan.held_out))
            calibrating.budget.limit(kept_fraction * for_steps)
        as_long = _AsLong(trainer, calibrating) if trainer.was_ended else None
        with training_progress(f"{name}, calibration", verbose=verbose) as report:
            part = data.take(torch.from_numpy(plan.kept))
            calibrating.fit(
                part,
                report=report,
                callback=as_long,
                checkpoints=plan.checkpoints,
                survives_interrupts=False,
            )
        n_epochs = count_images(calibrating.history) / part.epoch_size
        if n_epochs >= _MIN_FRACTION_OF_EPOCHS * count_images(trainer.history) / data.epoch_size:
            return held_out.temperature(calibrating.average)
        _warn_not_calibrated("the time budget left too little for its run")
    return None


def temperature_of(held_out: HeldOut, trainer: Trainer) -> float | None:
    """Fit the temperature of the field that a trainer has trained; keep the model if that fails.

    Returns
    -------
    float or None
        Temperature. None, with a warning, if predicting them failed or was interrupted.
    """
    with _keeping_the_model("predicting the validation images", trainer.group):
        return held_out.temperature(trainer.average)
    return None


@contextmanager
def _keeping_the_model(what: str, group: ProcessGroup) -> Iterator[None]:
    """Warn of an interrupt or a failure instead of losing the model, which is trained."""
    try:
        yield
    except KeyboardInterrupt:
        if group.size > 1:
            # The others would wait for this process, which stops elsewhere.
            raise
        _warn_not_calibrated(f"{what} was interrupted")
    except ProcessGroupError:
        raise
    except (ValueError, OSError, MemoryError, RuntimeError) as error:
        if group.size > 1 and not isinstance(error, ValueError):
            # It may be the failure of this process alone.
            raise
        _warn_not_calibrated(f"{what} failed ({type(error).__name__}: {error})")


def _warn_not_calibrated(reason: str) -> None:
    warn_user(
        f"The model was trained, but its probabilities are not calibrated: {reason}. Fit again, or "
        "calibrate it on images that it did not see by CalibratedClassifierCV(FrozenEstimator(clf),"
        ' method="sigmoid"), or method="temperature" (scikit-learn 1.8, with an array of labels '
        "that are text or 0 to K - 1).",
    )


def _seconds_for_steps(trainer: Trainer) -> float:
    """Return the seconds that the schedule of a run had for steps, without pauses for callbacks.

    Of a run that was resumed, the epochs since then stand for all, and if there are none nothing is
    known of pauses. Without a limit it is infinite.
    """
    budget, n_epochs = trainer.budget, trainer.n_called_back
    if budget.seconds is None:
        return math.inf
    of_steps = sum(epoch_log["seconds"] for epoch_log in trainer.history)
    of_callbacks = trainer.callback_seconds * len(trainer.history) / max(n_epochs, 1)
    passed = max(budget.elapsed - budget.begun, of_steps + of_callbacks)
    fraction = 1 - of_callbacks / passed if passed > 0 else 1.0
    return fraction * (budget.seconds - budget.begun)


@dataclass(frozen=True)
class _AsLong:
    """Ends the calibration run after as many epochs as the run of the model, which was ended."""

    model_run: Trainer
    calibration_run: Trainer

    def begin_epoch(self) -> None:
        """Do nothing."""

    def end_epoch(self) -> bool:
        """Tell whether the run has had as many epochs."""
        return len(self.calibration_run.history) >= len(self.model_run.history)

    def leave_epoch(self) -> None:
        """Do nothing."""
