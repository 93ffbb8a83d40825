"""What a fitted MedSymmFlow estimator does with images: predict, and tell its doubts."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from sklearn_msf._estimator.data_validation import check_prediction_rows
from sklearn_msf._estimator.parameters import check_parameters
from sklearn_msf._estimator.serialization import PretrainedEstimator
from sklearn_msf.flow.ode_solver import ADAPTIVE_SOLVERS
from sklearn_msf.flow.velocity_field import VelocityField
from sklearn_msf.model.denoising_error import image_residuals
from sklearn_msf.model.inference import FieldInputs, InferenceSettings, Prediction, classify
from sklearn_msf.model.pixel_space import PixelRepresentation, Representation
from sklearn_msf.model.temperature import apply_temperature
from sklearn_msf.model.uncertainty import UNCERTAINTIES
from sklearn_msf.nn.precision import resolve_precision

__all__ = ["PredictingEstimator"]

# Rows of a forward pass, all draws of its images: as fast as larger ones. Always the same, for
# one image as for many; fewer where images are larger, so that memory stays bounded.
_MAX_ROWS = 256
_MAX_PIXELS = _MAX_ROWS * 28 * 28
# Where the image half is asked for a second opinion, with its own noise each time, and where it
# tells usual images from others.
_OPINION_TIMES = (0.9, 0.9, 0.9, 0.9)
_USUAL_TIMES = (0.1, 0.2, 0.5)
_TINY = np.finfo(np.float64).tiny


class PredictingEstimator(PretrainedEstimator):
    """Predictions of a fitted velocity field."""

    # Whether the image half was trained, and whether to draw without a class too.
    _can_draw: bool
    _can_draw_classless: bool

    @property
    def _representation(self) -> Representation:
        """What the field works on."""
        return PixelRepresentation(self._image_format)

    def _check_fitted(self) -> None:
        check_is_fitted(self)

    def _classify_inputs(
        self, inputs: FieldInputs, field: VelocityField, *, keep_draws: bool = False
    ) -> Prediction:
        """Classify by what the field says, without a temperature."""
        n_draws, device = int(self.n_draws), field.device
        noise = self._noise(n_draws, field.codes.n_channels).to(device)
        settings = self._classification_settings(n_draws, device)
        codes = self._representation.codes(field.codes)
        return classify(field, inputs, noise, replace(settings, keep_draws=keep_draws), codes)

    def _noise(self, n: int, n_channels: int) -> Tensor:
        """Noise that is the same for every image and in every call, (n, n_channels, H, W)."""
        generator = torch.Generator().manual_seed(self._noise_seed)
        shape = (n, n_channels, *self._representation.shape[1:])
        return torch.randn(shape, generator=generator)

    def _classification_settings(
        self, rows_an_image: int, device: torch.device
    ) -> InferenceSettings:
        # A solver that controls its steps would take rounding for curvature.
        adaptive = self.ode_solver in ADAPTIVE_SOLVERS
        precision = "float32" if adaptive else resolve_precision(self.precision, device)
        batch_size = self._batch_size(_MAX_ROWS, rows_an_image, self.ode_solver)
        return self._inference_settings(int(self.n_steps), precision, batch_size, self.ode_solver)

    def _batch_size(self, max_rows: int, n_draws: int, ode_solver: str) -> int:
        """Images of a batch whose draws are the rows of one forward pass."""
        if ode_solver in ADAPTIVE_SOLVERS:
            # It looks at its whole batch to choose its steps.
            return 1
        _, height, width = self._representation.shape
        return max(1, min(max_rows, _MAX_PIXELS // (height * width)) // n_draws)

    def _inference_settings(
        self, n_steps: int, precision: str, batch_size: int, ode_solver: str
    ) -> InferenceSettings:
        return InferenceSettings(
            n_steps=n_steps,
            ode_solver=ode_solver,
            batch_size=batch_size,
            precision=precision,
            mirror_draws=self._mirror_draws,
        )

    def _checked_inputs(self, X: Any) -> FieldInputs:
        """Check X against fit."""
        check_is_fitted(self)
        check_parameters(self.get_params(deep=False))
        rows, device = check_prediction_rows(self, X), self.field_.device
        return self._representation.inputs(rows, device)

    def _predict(self, X: Any, kind: str = "margin") -> Prediction:
        """Check X and classify it, with what a kind of uncertainty needs."""
        self._check_kind(kind)
        return self._predict_inputs(self._checked_inputs(X), kind)

    def _predict_inputs(self, inputs: FieldInputs, kind: str) -> Prediction:
        """Classify, with what a kind of uncertainty needs."""
        prediction = self._classify_inputs(inputs, self.field_, keep_draws=kind == "draws")
        if kind == "image":
            labels = np.tile(np.arange(len(self.classes_)), (len(inputs), 1))
            residuals = self._image_residuals(inputs, labels, _OPINION_TIMES)
            prediction = replace(prediction, residuals=residuals.mean(axis=2))
        p = apply_temperature(prediction.probabilities, self.temperature_)
        return replace(prediction, probabilities=p)

    def _labels(self, prediction: Prediction) -> np.ndarray:
        """Most probable classes."""
        labels: np.ndarray = self.classes_[prediction.probabilities.argmax(axis=1)]
        return labels

    def _image_residuals(
        self, inputs: FieldInputs, labels: np.ndarray, times: Sequence[float]
    ) -> np.ndarray:
        device = self.field_.device
        n_channels = self._representation.shape[0] + self.field_.codes.n_channels
        noise = self._noise(len(times), n_channels).to(device)
        # No ODE is solved: a batch need not be as small as a solver may want it.
        batch_size = self._batch_size(_MAX_ROWS, 1, "euler")
        settings = replace(self._classification_settings(1, device), batch_size=batch_size)
        return image_residuals(self.field_, inputs, labels, torch.tensor(times), noise, settings)

    def _check_kind(self, kind: Any) -> None:
        if not isinstance(kind, str) or kind not in UNCERTAINTIES:
            raise ValueError(f"kind must be one of {sorted(UNCERTAINTIES)}, got {kind!r}.")
        if kind == "draws" and self.n_draws == 1:
            raise ValueError("kind='draws' compares noise draws: it needs n_draws >= 2, got 1.")
        if kind == "image":
            self._check_image_half("kind='image'")

    def _check_image_half(self, wanted: str) -> None:
        check_is_fitted(self)
        if not self._can_draw:
            raise ValueError(
                f"{wanted} asks the image half, which image_weight=0 or t1_share=1 left untrained: "
                "fit with another value."
            )

    def predict(self, X: Any) -> np.ndarray:
        """Predict the most probable class of each image.

        With ``label_prediction="velocity"`` that is the class of the nearest label code (paper,
        eq. 2), but where the predicted mask is read as a mixture of codes that are not equally
        far apart, RGB codes of three classes and encoded masks: there it is the one of the
        largest weight.

        Parameters
        ----------
        X : array-like of shape (n, H, W), (n, H, W, C) or (n, n_features)
            Images as in :meth:`fit`.

        Returns
        -------
        ndarray of shape (n,)
            Labels out of `classes_`.
        """
        return self._labels(self._predict(X))

    def predict_proba(self, X: Any) -> np.ndarray:
        """Predict class probabilities.

        With ``label_prediction="posterior"`` the network's own posterior, with several `n_steps`
        that at the start of the last one; with "velocity"
        read off the predicted mask (see :meth:`LabelCodes.probabilities
        <sklearn_msf.flow.label_codes.LabelCodes.probabilities>`). A row's result does not depend
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

    def predict_uncertainty(self, X: Any, kind: str = "margin") -> np.ndarray:
        """Tell how unsure each prediction is.

        Parameters
        ----------
        X : array-like of shape (n, H, W), (n, H, W, C) or (n, n_features)
            Images as in :meth:`fit`.
        kind : {"margin", "entropy", "distance", "draws", "image"}, default="margin"
            - "margin": 1 - (largest - second largest probability); in [0, 1].
            - "entropy": of the probabilities, in nats; in [0, log K].
            - "distance": between the predicted mask and the code of the predicted class
              (paper, eq. 2 and section 4.4); 0 or more, in units of the codes.
            - "draws": disagreement between the noise draws, the mutual information of class
              and draw in nats, before any temperature; from 0 to the logarithm of K or of
              `n_draws`, whichever is smaller. Needs ``n_draws >= 2``. Where training included
              mirror images it is mostly about the mirror image.
            - "image": "margin" and a second opinion of the image half: 3 times the logarithm of
              its squared error under the code of the predicted class over the smallest one
              under another. Any number. Takes 4 K passes of the whole network.

            The default ranks errors best for its price on validation data; the user guide has
            the comparison.

        Returns
        -------
        ndarray of shape (n,), float64
            Higher is less certain.

        Raises
        ------
        ValueError
            For another kind, for "draws" with a single draw, and for "image" where
            ``image_weight=0`` or ``t1_share=1`` left the image half untrained.
        """
        prediction = self._predict(X, kind)
        return UNCERTAINTIES[kind](prediction)

    def score_samples(self, X: Any) -> np.ndarray:
        """Tell how usual images are beside those of training.

        Minus the mean logarithm of the squared error of the image half's velocity on the path
        through each image, under the code of its predicted class, at t = 0.1, 0.2 and 0.5 with
        noise that is always the same. Images unlike those of training are uncovered badly.

        Parameters
        ----------
        X : array-like of shape (n, H, W), (n, H, W, C) or (n, n_features)
            Images as in :meth:`fit`.

        Returns
        -------
        ndarray of shape (n,), float64
            Higher is more usual. Compare with scores of images that are known to be usual,
            best of some that training did not see.

        Raises
        ------
        ValueError
            Where ``image_weight=0`` or ``t1_share=1`` left the image half untrained.
        """
        self._check_image_half("score_samples")
        inputs = self._checked_inputs(X)
        prediction = self._classify_inputs(inputs, self.field_)
        labels = prediction.probabilities.argmax(axis=1)[:, None]
        residuals = self._image_residuals(inputs, labels, _USUAL_TIMES)
        return -np.log(np.maximum(residuals, _TINY)).mean(axis=(1, 2))
