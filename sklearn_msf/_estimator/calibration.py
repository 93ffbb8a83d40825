"""The run that calibrates: the temperature of a model, learned from another without some rows."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from sklearn_msf._estimator.auto_settings import build_field
from sklearn_msf._estimator.data_validation import TrainingRows, split_rows
from sklearn_msf._estimator.parameters import draw_seed
from sklearn_msf._estimator.pickling import move_field
from sklearn_msf._estimator.prediction import PredictingEstimator
from sklearn_msf.flow.velocity_field import VelocityField
from sklearn_msf.model.temperature import fit_temperature
from sklearn_msf.runtime.progress import training_progress
from sklearn_msf.training.batches import TrainingData
from sklearn_msf.training.checkpoints import Checkpoints
from sklearn_msf.training.trainer import Trainer

__all__ = [
    "MODEL_SHARE",
    "CalibratingEstimator",
    "CalibrationRun",
    "Probabilities",
    "temperature_of",
]

Probabilities = Callable[[VelocityField], np.ndarray]

# The smallest time budget.
_NO_TIME = 1e-9
# Share of the rows that the run does not see: a temperature takes some hundred rows, and with as
# many epochs a run on fewer rows is as sure of itself as the model.
_HELD_OUT_SHARE = 1 / 3
# Share of a time budget, after what prepares for training, that is the model's.
MODEL_SHARE = 1 / (2 - _HELD_OUT_SHARE)
# A run that sees fewer images than this share of those of the model says little of it.
_MIN_SHARE_SEEN = 0.5 * (1 - _HELD_OUT_SHARE)


@dataclass(frozen=True)
class CalibrationRun:
    """A run without some rows, on which a temperature is fitted then.

    Attributes
    ----------
    kept, rows : ndarray of int
        Rows to train on, and the others.
    seed : int
        Seed of the run.
    store : Checkpoints or None
        Its checkpoints.
    """

    kept: np.ndarray
    rows: np.ndarray
    seed: int
    store: Checkpoints | None


class CalibratingEstimator(PredictingEstimator):
    """Fits the temperature of the probabilities."""

    field_: VelocityField
    temperature_: float
    _field_layout: dict[str, Any]

    def _calibrates(self, *, warm: bool) -> bool:
        """Whether this fit gives the probabilities a temperature."""
        if warm and self.calibration is not None and self.temperature_ == 1:
            # Rows to hold out now may be ones that the model knows.
            warnings.warn(
                f"calibration={self.calibration!r} is left out: warm_start goes on with a model "
                "without a temperature. Fit anew with warm_start=False for one.",
                stacklevel=5,
            )
        return self.calibration is not None and not warm

    def _plan_calibration(
        self, data: TrainingRows, seed: int, store: Checkpoints | None
    ) -> CalibrationRun:
        """Choose the rows of the run that calibrates.

        Seeds are of its own, so that the model is the one without calibration.
        """
        own = np.random.RandomState(np.random.SeedSequence([seed, 1]).generate_state(4))
        kept, rows = split_rows("calibration", data, _HELD_OUT_SHARE, own)
        part_store = None if store is None else store.part("calibration")
        return CalibrationRun(kept, rows, draw_seed(own), part_store)

    def _calibrate(
        self, trainer: Trainer, data: TrainingRows, tensors: TrainingData, run: CalibrationRun
    ) -> None:
        """Fit the temperature by a run without some of the rows.

        The model is trained already: whatever happens here, it stays.
        """
        reason: str | None = "training was interrupted"
        try:
            if not trainer.interrupted:
                part = tensors.take(torch.from_numpy(run.kept))
                reason = self._calibrate_by_run(trainer, part, data.take(run.rows), run)
        except KeyboardInterrupt:
            reason = "its run was interrupted"
        except (ValueError, OSError, MemoryError, RuntimeError) as error:
            reason = f"its run failed ({type(error).__name__}: {error})"
        if reason is not None:
            warnings.warn(
                f"The model is whole, but its probabilities have no temperature: {reason}.",
                stacklevel=5,
            )

    def _calibrate_by_run(
        self, trainer: Trainer, part: TrainingData, held_out: TrainingRows, run: CalibrationRun
    ) -> str | None:
        """Train another field on a part of the rows; returns why there is no temperature."""
        device = self.field_.device
        of_held_out = self._probabilities_of(held_out, device)
        left = None
        if self.time_budget is not None:
            left = max(self.time_budget - trainer.budget.elapsed, _NO_TIME)
        field = build_field(self._field_layout, run.seed, self._mask_codes())
        calibrating = Trainer(
            move_field(field, device),
            replace(trainer.settings, time_budget=left),
            torch.Generator(device).manual_seed(run.seed),
        )
        calibrating.survives_interrupts = False
        if left is not None:
            calibrating.reserve_time_of(of_held_out)
        name = f"{type(self).__name__}, calibration"
        with training_progress(name, verbose=int(self.verbose)) as report:
            calibrating.fit(part, report=report, store=run.store)
        if _n_seen(calibrating) < _MIN_SHARE_SEEN * _n_seen(trainer):
            return "the time budget left too little for its run"
        self.temperature_ = temperature_of(held_out, of_held_out(calibrating.average))
        return None

    def _preparing_share(self) -> float:
        """Share of a time budget that is spent before the field is trained."""
        return 0.0

    def _probabilities_of(self, data: TrainingRows, device: torch.device) -> Probabilities:
        """Class probabilities that a field gives rows, without a temperature."""
        inputs = self._representation.kept_inputs(data.rows, device, mirrored=self._mirror_draws)
        return lambda field: self._classify_inputs(inputs, field).probabilities


def temperature_of(data: TrainingRows, p: np.ndarray) -> float:
    """Fit the temperature of the probabilities of held-out rows."""
    return fit_temperature(p, data.labels, data.weights / data.weights.mean())


def _n_seen(trainer: Trainer) -> int:
    """Images that a run has seen."""
    return int(sum(record["n_images"] for record in trainer.history))
