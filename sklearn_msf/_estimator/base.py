"""What every MedSymmFlow estimator shares: fitting, and going on with it."""

import copy
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sklearn.base import ClassifierMixin

from sklearn_msf._estimator.auto_settings import (
    build_field,
    check_classless,
    check_layout,
    network_layout,
    resolve_augmentation,
    training_settings,
    training_targets,
)
from sklearn_msf._estimator.calibration import (
    MODEL_SHARE,
    CalibratingEstimator,
    Probabilities,
    temperature_of,
)
from sklearn_msf._estimator.callbacks import CallbackSupportMixin, FitCallbacks, with_callbacks
from sklearn_msf._estimator.data_validation import (
    TrainingRows,
    check_partial_classes,
    check_training_rows,
    hold_out,
)
from sklearn_msf._estimator.parameters import check_parameters, draw_seed, make_random_state
from sklearn_msf._estimator.pickling import all_or_nothing, move_field
from sklearn_msf._estimator.rejection import RejectingEstimator
from sklearn_msf._estimator.run_fingerprint import open_checkpoints
from sklearn_msf._estimator.sampling import DrawingEstimator
from sklearn_msf.data.images import ImageFormat
from sklearn_msf.flow.velocity_field import VelocityField
from sklearn_msf.runtime.device import resolve_device
from sklearn_msf.runtime.progress import training_progress
from sklearn_msf.training.batches import TrainingData
from sklearn_msf.training.trainer import DivergenceError, Trainer


class BaseMedSymmFlowClassifier(
    CallbackSupportMixin,
    ClassifierMixin,
    RejectingEstimator,
    DrawingEstimator,
    CalibratingEstimator,
):
    """Base of the MedSymmFlow classifiers.

    Subclasses define the constructor.
    """

    # Fitted attributes; documented on the subclasses.
    classes_: np.ndarray
    n_features_in_: int
    image_shape_: tuple[int, ...]
    _image_format: ImageFormat
    n_iter_: int
    history_: list[dict[str, Any]]
    field_: VelocityField
    temperature_: float

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        tags.non_deterministic = False
        return tags

    @property
    def loss_curve_(self) -> list[float]:
        """Training loss of each epoch."""
        return [record["loss"] for record in self.history_]

    # Fitting

    @with_callbacks
    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> "BaseMedSymmFlowClassifier":
        """Train the velocity field.

        Ctrl-C ends training early, with a warning and a usable model.

        Parameters
        ----------
        X : array-like of shape (n, H, W), (n, H, W, C) or (n, n_features)
            Training images. uint8 has the range [0, 255]; other numbers inside [0, 1] have
            the range [0, 1]; of anything else the minimum and the maximum of X are learned.
            Rows are images of `image_shape`, or one line of pixels without it.
        y : array-like of shape (n,) or (n, 1)
            Class labels, of any kind that sorts.
        sample_weight : array-like of shape (n,), optional
            Weights; an integer weight k counts as k copies of the image.

        Returns
        -------
        self : object
            The fitted estimator.

        Raises
        ------
        ValueError
            For parameters, images, labels or weights that cannot be used, and for a
            `checkpoint_dir` of another run; the message names what came and what is expected.
        DivergenceError
            A ValueError: loss or weights were not finite, and starting the epoch anew at lower
            learning rates did not help. Where there are whole epochs before, the estimator is
            fitted with what they gave.
        """
        with all_or_nothing(self):
            failure = self._fit(X, y, sample_weight)
        if failure is not None:
            raise failure
        return self

    def _fit(self, X: Any, y: Any, sample_weight: Any) -> DivergenceError | None:
        """Fit; returns a failure that left a usable model."""
        started = time.perf_counter()
        check_parameters(self.get_params(deep=False))
        warm = self.warm_start and hasattr(self, "field_")
        data = check_training_rows(
            self, X, y, sample_weight, reset=not warm, learn_classes=not warm
        )
        random_state = make_random_state(self.random_state)
        store = open_checkpoints(self, data, random_state, warm=warm)
        # A run that goes on has the seed it started with, whatever random_state is.
        seed = draw_seed(random_state) if store is None else store.seed
        random_state = np.random.RandomState(seed)
        held_out = None
        if self.early_stopping:
            data, held_out = hold_out(data, self.validation_fraction, random_state)
        calibrates = self._calibrates(warm=warm)
        run = None
        if calibrates and held_out is None:
            # Before training, which a part or a folder that cannot be had must not waste.
            run = self._plan_calibration(data, seed, store)
        device = resolve_device(self.device)
        if not warm:
            self._learn_representation(data, random_state, started)
        tensors = self._training_data(data, device, started)
        of_held_out = None if held_out is None else self._probabilities_of(held_out, device)
        trainer = self._make_trainer(tensors, random_state, started, warm=warm)
        if run is not None and self.time_budget is not None:
            # What is left is for the run that calibrates.
            prepared = self._preparing_share()
            share = prepared + (1 - prepared) * MODEL_SHARE
            trainer.budget.seconds = share * self.time_budget
        if of_held_out is not None and calibrates and self.time_budget is not None:
            trainer.reserve_time_of(of_held_out)
        callbacks = FitCallbacks(self, X, y, sample_weight, trainer)
        failure = None
        with training_progress(type(self).__name__, verbose=int(self.verbose)) as report:
            try:
                trainer.fit(
                    tensors,
                    validate=None if of_held_out is None else _accuracy(held_out, of_held_out),
                    report=report,
                    watcher=callbacks,
                    store=store,
                )
            except DivergenceError as error:
                if not trainer.history:
                    raise
                failure = error
        callbacks.end()
        self._finish(trainer, keep_state=self.warm_start)
        if failure is None and run is not None:
            self._calibrate(trainer, data, tensors, run)
        elif failure is None and calibrates and held_out is not None and of_held_out is not None:
            self.temperature_ = temperature_of(held_out, of_held_out(self.field_))
        return failure

    def partial_fit(
        self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None
    ) -> "BaseMedSymmFlowClassifier":
        """Train for one epoch on a part of the data, at the full learning rate.

        Parameters
        ----------
        X : array-like of shape (n, H, W), (n, H, W, C) or (n, n_features)
            Images. The first call fixes shape and range.
        y : array-like of shape (n,) or (n, 1)
            Class labels, all in `classes`.
        classes : array-like of shape (K,)
            All classes that any call will see; required at the first call.
        sample_weight : array-like of shape (n,), optional
            Weights as in :meth:`fit`.

        Returns
        -------
        self : object
            The fitted estimator.

        Raises
        ------
        ValueError
            Where the first call has no `classes`, or a later one other classes or images.
        """
        with all_or_nothing(self):
            return self._partial_fit(X, y, classes, sample_weight)

    def _partial_fit(
        self, X: Any, y: Any, classes: Any, sample_weight: Any
    ) -> "BaseMedSymmFlowClassifier":
        started = time.perf_counter()
        first = not hasattr(self, "field_")
        check_parameters(self.get_params(deep=False))
        if self.calibration is not None:
            raise ValueError(
                f"calibration={self.calibration!r} is not supported by partial_fit, which holds "
                "out nothing: set calibration=None, and calibrate afterwards by scikit-learn's "
                "CalibratedClassifierCV(FrozenEstimator(clf), method='temperature')."
            )
        check_partial_classes(self, classes, first=first)
        data = check_training_rows(self, X, y, sample_weight, reset=first, learn_classes=False)
        random_state = make_random_state(self.random_state)
        if first:
            self._learn_representation(data, random_state, started)
        tensors = self._training_data(data, resolve_device(self.device), started)
        trainer = self._make_trainer(tensors, random_state, started, warm=not first)
        trainer.history = [] if first else list(self.history_)
        trainer.fit_epoch(tensors)
        self._finish(trainer, keep_state=True)
        return self

    def _make_trainer(
        self,
        data: TrainingData,
        random_state: np.random.RandomState,
        started: float,
        *,
        warm: bool,
    ) -> Trainer:
        """Make a trainer over a new field, or over the present one."""
        device, representation = resolve_device(self.device), self._representation
        if not warm or self.calibration is None:
            self.temperature_ = 1.0
        self._forget_rejection()
        check_classless(self)
        seed = draw_seed(random_state)
        if not warm:
            self._field_layout = network_layout(self, representation.shape[0])
            self._noise_seed = draw_seed(random_state)
            self._n_continued = 0
            field = build_field(self._field_layout, seed, self._mask_codes())
        else:
            check_layout(self._field_layout, network_layout(self, representation.shape[0]))
            field = copy.deepcopy(self.field_).requires_grad_(True).train()
            # An integer random_state starts anew at each call; the noise must not.
            self._n_continued += 1
            seed = int(np.random.SeedSequence([seed, self._n_continued]).generate_state(1)[0])
        generator = torch.Generator(device).manual_seed(seed)
        trained_by = getattr(self, "_trained_by", None) if warm else None
        settings = training_settings(self, data.epoch_size, device, trained_by)
        self._trained_by = settings.optimizer
        draws, classless = settings.trains_images, settings.trains_classless
        self._can_draw = draws or (warm and self._can_draw)
        self._can_draw_classless = classless or (warm and self._can_draw_classless)
        trainer = Trainer(move_field(field, device), settings, generator, started)
        state = getattr(self, "_training_state", None) if warm else None
        if state is not None:
            trainer.load_weights(state)
        return trainer

    def _finish(self, trainer: Trainer, *, keep_state: bool) -> None:
        """Take over what training made."""
        self.field_ = trainer.average
        self.history_ = trainer.history
        self.n_iter_ = len(trainer.history)
        self._training_state = trainer.state() if keep_state else None

    def _learn_representation(
        self, data: TrainingRows, random_state: np.random.RandomState, started: float
    ) -> None:
        """Learn what stands between images and field: nothing, where it works on pixels."""

    def _training_data(
        self, data: TrainingRows, device: torch.device, started: float
    ) -> TrainingData:
        """Make images ready for training."""
        images = torch.from_numpy(self._image_format.to_numpy_images(data.rows))
        return TrainingData(images, *training_targets(data), device, self._augmentation())

    def _augmentation(self) -> str | None:
        """Random variation of the training images."""
        kind = resolve_augmentation(self, self._image_format)
        # A model that learned from mirror images may look at them.
        self._mirror_draws = "flip" in (kind or "")
        return kind


def _accuracy(data: TrainingRows | None, of: Probabilities) -> Callable[[VelocityField], float]:
    """Weighted accuracy of a field on held-out rows."""
    assert data is not None

    def accuracy(field: VelocityField) -> float:
        return float(np.average(of(field).argmax(axis=1) == data.labels, weights=data.weights))

    return accuracy
