"""Kinds of uncertainty, each a function of a prediction."""

from collections.abc import Callable

import numpy as np

from sklearn_msf.inference import Prediction

__all__ = ["UNCERTAINTIES"]


def _distance(prediction: Prediction) -> np.ndarray:
    """Distance of the predicted mask to the code of the predicted class (paper, eq. 2)."""
    rows = np.arange(len(prediction.distances))
    return prediction.distances[rows, prediction.probabilities.argmax(axis=1)]


UNCERTAINTIES: dict[str, Callable[[Prediction], np.ndarray]] = {"distance": _distance}
