"""What every MedSymmFlow estimator shares: fitting, predicting, rejecting, sampling."""

import copy
import time
from typing import Any

import numpy as np
import torch
from sklearn.base import ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from sklearn_msf._data import (
    TrainingRows,
    check_partial_classes,
    check_prediction_rows,
    check_training_rows,
    hold_out,
)
from sklearn_msf._parameters import (
    check_coverage,
    check_parameters,
    check_positive_integer,
    make_random_state,
)
from sklearn_msf._recipe import (
    build_field,
    check_layout,
    network_layout,
    training_settings,
    training_tensors,
)
from sklearn_msf._state import PortableEstimator, all_or_nothing, move_field
from sklearn_msf.device import resolve_device
from sklearn_msf.fields import VelocityField
from sklearn_msf.inference import InferenceSettings, Prediction, classify, generate
from sklearn_msf.progress import training_progress
from sklearn_msf.selective import accept_most_certain
from sklearn_msf.solver import ADAPTIVE_SOLVERS
from sklearn_msf.training import Trainer, TrainingData
from sklearn_msf.uncertainty import UNCERTAINTIES

_MAX_SEED = np.iinfo(np.int32).max
# Rows of an inference batch: large enough to be fast, the same for one row as for many.
_BATCH_SIZE = 64
_TINY = np.finfo(np.float64).tiny


class BaseMedSymmFlowClassifier(ClassifierMixin, PortableEstimator):
    """Base of the MedSymmFlow classifiers.

    Subclasses define the constructor.
    """

    # Fitted attributes; documented on the subclasses.
    classes_: np.ndarray
    n_features_in_: int
    image_shape_: tuple[int, ...]
    n_iter_: int
    history_: list[dict[str, Any]]
    field_: VelocityField

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        tags.non_deterministic = False
        return tags

    # Fitting

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> "BaseMedSymmFlowClassifier":
        """Train the velocity field.

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
            For parameters, images, labels or weights that cannot be used; the message names
            what came and what is expected.
        """
        with all_or_nothing(self):
            return self._fit(X, y, sample_weight)

    def _fit(self, X: Any, y: Any, sample_weight: Any) -> "BaseMedSymmFlowClassifier":
        started = time.perf_counter()
        check_parameters(self.get_params(deep=False))
        warm = self.warm_start and hasattr(self, "field_")
        data = check_training_rows(
            self, X, y, sample_weight, reset=not warm, learn_classes=not warm
        )
        random_state = make_random_state(self.random_state)
        held_out = None
        if self.early_stopping:
            data, held_out = hold_out(data, self.validation_fraction, random_state)
        tensors = training_tensors(data, self._image_format, resolve_device(self.device))
        trainer = self._make_trainer(tensors, random_state, started, warm=warm)
        label = type(self).__name__
        with training_progress(label, verbose=int(self.verbose)) as report:
            trainer.fit(
                tensors,
                validate=None
                if held_out is None
                else lambda field: self._accuracy(held_out, field),
                report=report,
            )
        self._finish(trainer, keep_state=self.warm_start)
        return self

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
        check_partial_classes(self, classes, first=first)
        data = check_training_rows(self, X, y, sample_weight, reset=first, learn_classes=False)
        random_state = make_random_state(self.random_state)
        tensors = training_tensors(data, self._image_format, resolve_device(self.device))
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
        device = resolve_device(self.device)
        seed = int(random_state.randint(_MAX_SEED))
        if not warm:
            self._field_layout = network_layout(self, self._image_format)
            self._noise_seed = int(random_state.randint(_MAX_SEED))
            self._n_continued = 0
            field = build_field(self._field_layout, seed)
        else:
            check_layout(self._field_layout, network_layout(self, self._image_format))
            field = copy.deepcopy(self.field_).requires_grad_(True).train()
            # An integer random_state starts anew at each call; the noise must not.
            self._n_continued += 1
            seed = int(np.random.SeedSequence([seed, self._n_continued]).generate_state(1)[0])
        generator = torch.Generator(device).manual_seed(seed)
        settings = training_settings(self, self._image_format, data.epoch_size, device)
        # A model that learned from mirror images may look at them.
        self._mirror_draws = "flip" in (settings.augment or "")
        trainer = Trainer(move_field(field, device), settings, generator, started)
        state = getattr(self, "_training_state", None) if warm else None
        if state is not None:
            trainer.load_state_dict(state)
        return trainer

    def _finish(self, trainer: Trainer, *, keep_state: bool) -> None:
        """Take over what training made."""
        self.field_ = trainer.average
        self.history_ = trainer.history
        self.n_iter_ = len(trainer.history)
        self._training_state = trainer.state_dict() if keep_state else None

    def _accuracy(self, data: TrainingRows, field: VelocityField) -> float:
        """Weighted accuracy of a field on held-out rows."""
        predicted = self._classify_rows(data.rows, field).probabilities.argmax(axis=1)
        return float(np.average(predicted == data.labels, weights=data.weights))

    # Predicting

    @property
    def loss_curve_(self) -> list[float]:
        """Training loss of each epoch."""
        return [record["loss"] for record in self.history_]

    def _classify_rows(self, rows: np.ndarray, field: VelocityField) -> Prediction:
        device = next(field.parameters()).device
        generator = torch.Generator().manual_seed(self._noise_seed)
        shape = (int(self.n_draws), field.codes.n_channels, *self._image_format.size)
        noise = torch.randn(shape, generator=generator).to(device)
        images = self._image_format.to_numpy_images(rows)
        return classify(field, images, noise, self._inference_settings(int(self.n_steps)))

    def _inference_settings(self, n_steps: int) -> InferenceSettings:
        return InferenceSettings(
            n_steps=n_steps,
            ode_solver=self.ode_solver,
            # An adaptive solver looks at its whole batch to choose its steps.
            batch_size=1 if self.ode_solver in ADAPTIVE_SOLVERS else _BATCH_SIZE,
            precision="float32",
            mirror_draws=self._mirror_draws,
        )

    def _predict(self, X: Any) -> Prediction:
        """Check X against fit and classify it."""
        check_is_fitted(self)
        check_parameters(self.get_params(deep=False))
        return self._classify_rows(check_prediction_rows(self, X), self.field_)

    def predict(self, X: Any) -> np.ndarray:
        """Predict the most probable class of each image.

        With ``label_prediction="velocity"`` that is the class of the nearest label code
        (paper, eq. 2).

        Parameters
        ----------
        X : array-like of shape (n, H, W), (n, H, W, C) or (n, n_features)
            Images as in :meth:`fit`.

        Returns
        -------
        ndarray of shape (n,)
            Labels out of `classes_`.
        """
        prediction = self._predict(X)
        return self.classes_[prediction.probabilities.argmax(axis=1)]

    def predict_proba(self, X: Any) -> np.ndarray:
        """Predict class probabilities.

        With ``label_prediction="posterior"`` the network's own posterior; with "velocity"
        read off the predicted mask (see :meth:`LabelCodes.probabilities
        <sklearn_msf.label_codes.LabelCodes.probabilities>`). A row's result does not depend
        on the other rows of X.

        Parameters
        ----------
        X : array-like of shape (n, H, W), (n, H, W, C) or (n, n_features)
            Images as in :meth:`fit`.

        Returns
        -------
        ndarray of shape (n, K), float64
            Columns in the order of `classes_`; rows sum to 1.
        """
        return self._predict(X).probabilities

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """Predict the logarithms of the class probabilities.

        Parameters
        ----------
        X : array-like of shape (n, H, W), (n, H, W, C) or (n, n_features)
            Images as in :meth:`fit`.

        Returns
        -------
        ndarray of shape (n, K), float64
            Finite: probabilities are cut off at the smallest normal number.
        """
        return np.log(np.maximum(self.predict_proba(X), _TINY))

    def decision_function(self, X: Any) -> np.ndarray:
        """Confidence scores: log-odds of the second of two classes, else log-probabilities.

        Parameters
        ----------
        X : array-like of shape (n, H, W), (n, H, W, C) or (n, n_features)
            Images as in :meth:`fit`.

        Returns
        -------
        ndarray of shape (n,) for two classes, (n, K) for more
        """
        scores = self.predict_log_proba(X)
        return scores[:, 1] - scores[:, 0] if len(self.classes_) == 2 else scores

    def predict_uncertainty(self, X: Any, kind: str = "distance") -> np.ndarray:
        """Tell how unsure each prediction is.

        Parameters
        ----------
        X : array-like of shape (n, H, W), (n, H, W, C) or (n, n_features)
            Images as in :meth:`fit`.
        kind : {"distance"}, default="distance"
            "distance": distance between the predicted mask and the code of the predicted
            class (paper, eq. 2 and section 4.4); 0 or more, in units of the codes.

        Returns
        -------
        ndarray of shape (n,), float64
            Higher is less certain.
        """
        if kind not in UNCERTAINTIES:
            raise ValueError(f"kind must be one of {sorted(UNCERTAINTIES)}, got {kind!r}.")
        return UNCERTAINTIES[kind](self._predict(X))

    def predict_with_reject(self, X: Any, coverage: float = 0.9) -> np.ma.MaskedArray:
        """Answer the most certain share of X and abstain on the rest.

        Parameters
        ----------
        X : array-like of shape (n, H, W), (n, H, W, C) or (n, n_features)
            Images as in :meth:`fit`.
        coverage : float, default=0.9
            Share to answer, in (0, 1]: exactly floor(coverage * n) rows, at least one, those
            of the smallest :meth:`predict_uncertainty`.

        Returns
        -------
        numpy.ma.MaskedArray of shape (n,)
            Labels; the rows not answered are masked.
        """
        check_coverage(coverage)
        prediction = self._predict(X)
        labels = self.classes_[prediction.probabilities.argmax(axis=1)]
        accepted = accept_most_certain(UNCERTAINTIES["distance"](prediction), coverage)
        return np.ma.MaskedArray(labels, mask=~accepted)

    def sample(
        self, class_id: Any, n_samples: int = 1, *, n_steps: int = 25, random_state: Any = None
    ) -> np.ndarray:
        """Draw new images.

        Parameters
        ----------
        class_id : label or sequence of labels
            Class or classes to draw, out of `classes_`.
        n_samples : int, default=1
            Images of each class asked for.
        n_steps : int, default=25
            Steps of the ODE solver; the paper's figures have 25 Euler steps.
        random_state : int, RandomState instance or None, default=None
            Seed of the noise.

        Returns
        -------
        ndarray of shape (n_classes_asked * n_samples, ...)
            Images in the dtype, layout and range of the training X, in the order asked for.
        """
        check_is_fitted(self)
        check_parameters(self.get_params(deep=False))
        check_positive_integer("n_samples", n_samples)
        check_positive_integer("n_steps", n_steps)
        asked = np.atleast_1d(np.asarray(class_id))
        unknown = [label for label in asked.tolist() if label not in self.classes_.tolist()]
        if unknown or asked.ndim != 1 or not len(asked):
            raise ValueError(
                f"class_id must be one or more of the classes {self.classes_.tolist()}, "
                f"got {class_id!r}."
            )
        labels = np.repeat(np.searchsorted(self.classes_, asked), n_samples)
        seed = int(make_random_state(random_state).randint(_MAX_SEED))
        size = self._image_format.size
        images = generate(
            self.field_,
            torch.from_numpy(labels.astype(np.int64)),
            (self._image_format.n_channels, *size),
            seed,
            self._inference_settings(n_steps),
        )
        return self._image_format.from_tensor(images)
