"""Kinds of uncertainty, each computed from a prediction."""

from collections.abc import Callable

import numpy as np
from scipy.special import entr

from sklearn_msf.model.classification import Prediction

__all__ = ["UNCERTAINTIES"]

# Weight of the log error ratio relative to the margin; chosen on validation data.
_EVIDENCE_WEIGHT = 3.0


def _distance(prediction: Prediction) -> np.ndarray:
    """Distance between the predicted mask and the code of the predicted class (paper, eq. 2)."""
    rows = np.arange(len(prediction.distances))
    return prediction.distances[rows, prediction.class_indices]


def _entropy(prediction: Prediction) -> np.ndarray:
    """Entropy of the class probabilities in nats."""
    return _entropy_of(prediction.probabilities)


def _margin(prediction: Prediction) -> np.ndarray:
    """1 - (largest probability - second largest)."""
    ranked = np.sort(prediction.probabilities, axis=1)
    return 1 - (ranked[:, -1] - ranked[:, -2])


def _draws(prediction: Prediction) -> np.ndarray:
    """Mutual information of class and draw: entropy of the mean minus mean of the entropies."""
    assert prediction.draws is not None
    of_mean = _entropy_of(prediction.draws.mean(axis=1))
    # Rounding can make it slightly negative.
    return np.maximum(of_mean - _entropy_of(prediction.draws).mean(axis=1), 0.0)


def _entropy_of(p: np.ndarray) -> np.ndarray:
    return np.asarray(entr(p).sum(axis=-1))


def _image(prediction: Prediction) -> np.ndarray:
    """Margin plus the weighted log of the predicted class's error over the smallest other."""
    assert prediction.denoising_errors is not None
    rows = np.arange(len(prediction.denoising_errors))
    predicted = prediction.class_indices
    log_errors = np.log(np.maximum(prediction.denoising_errors, np.finfo(float).tiny))
    of_predicted = log_errors[rows, predicted]
    log_errors[rows, predicted] = np.inf
    return _margin(prediction) + _EVIDENCE_WEIGHT * (of_predicted - log_errors.min(axis=1))


UNCERTAINTIES: dict[str, Callable[[Prediction], np.ndarray]] = {
    "margin": _margin,
    "entropy": _entropy,
    "distance": _distance,
    "draws": _draws,
    "image": _image,
}
