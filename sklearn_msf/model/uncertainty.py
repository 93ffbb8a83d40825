"""Kinds of uncertainty, each a function of a prediction."""

from collections.abc import Callable

import numpy as np
from scipy.special import entr

from sklearn_msf.model.inference import Prediction

__all__ = ["UNCERTAINTIES"]

# What a unit of log residual counts beside the margin; chosen on validation data.
_OPINION_WEIGHT = 3.0


def _distance(prediction: Prediction) -> np.ndarray:
    """Distance of the predicted mask to the code of the predicted class (paper, eq. 2)."""
    rows = np.arange(len(prediction.distances))
    return prediction.distances[rows, prediction.probabilities.argmax(axis=1)]


def _entropy(prediction: Prediction) -> np.ndarray:
    """Entropy of the class probabilities in nats."""
    return _entropy_of(prediction.probabilities)


def _margin(prediction: Prediction) -> np.ndarray:
    """1 - (largest probability - second largest)."""
    ranked = np.sort(prediction.probabilities, axis=1)
    return 1 - (ranked[:, -1] - ranked[:, -2])


def _draws(prediction: Prediction) -> np.ndarray:
    """Mutual information of class and draw: entropy of the mean less the mean entropy."""
    assert prediction.draws is not None
    of_mean = _entropy_of(prediction.draws.mean(axis=1))
    # Not negative but for rounding.
    return np.maximum(of_mean - _entropy_of(prediction.draws).mean(axis=1), 0.0)


def _entropy_of(p: np.ndarray) -> np.ndarray:
    return np.asarray(entr(p).sum(axis=-1))


def _image(prediction: Prediction) -> np.ndarray:
    """Margin, raised where the image half fits another class better than the predicted one."""
    assert prediction.residuals is not None
    rows = np.arange(len(prediction.residuals))
    predicted = prediction.probabilities.argmax(axis=1)
    log_residuals = np.log(np.maximum(prediction.residuals, np.finfo(float).tiny))
    of_predicted = log_residuals[rows, predicted]
    log_residuals[rows, predicted] = np.inf
    return _margin(prediction) + _OPINION_WEIGHT * (of_predicted - log_residuals.min(axis=1))


UNCERTAINTIES: dict[str, Callable[[Prediction], np.ndarray]] = {
    "margin": _margin,
    "entropy": _entropy,
    "distance": _distance,
    "draws": _draws,
    "image": _image,
}
