"""One temperature for the probabilities of a classifier (Guo et al., 2017)."""

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

__all__ = ["MAX_LOG_TEMPERATURE", "apply_temperature", "fit_temperature"]

# Temperatures lie between exp(-3) = 0.05 and exp(3) = 20.
MAX_LOG_TEMPERATURE = 3.0
_TINY = np.finfo(np.float64).tiny


def apply_temperature(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Sharpen or soften probabilities: p^(1 / T), normalised.

    Parameters
    ----------
    probabilities : ndarray of shape (n, K), float64
        Rows sum to 1.
    temperature : float
        T > 0; above 1 softens. At exactly 1 the probabilities are returned as they are.

    Returns
    -------
    ndarray of shape (n, K), float64
        Rows sum to 1; the order within a row is kept.
    """
    if temperature == 1:
        return probabilities
    return np.asarray(softmax(np.log(np.maximum(probabilities, _TINY)) / temperature, axis=1))


def fit_temperature(probabilities: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> float:
    """Find the temperature that gives held-out labels the smallest log loss.

    A standard normal prior on log T counts as much as one sample. It keeps T finite if every
    held-out sample is classified correctly, and near 1 if there are few samples.

    Parameters
    ----------
    probabilities : ndarray of shape (n, K), float64
        Probabilities of samples that training did not see.
    labels : ndarray of shape (n,)
        Indices of their classes.
    weights : ndarray of shape (n,)
        Positive weights; 1 is the weight of one sample.

    Returns
    -------
    float
        Temperature between exp(-3) and exp(3).
    """
    logits = np.log(np.maximum(probabilities, _TINY))
    rows = np.arange(len(labels))

    def negative_log_posterior(log_temperature: float) -> float:
        log_p = log_softmax(logits / np.exp(log_temperature), axis=1)[rows, labels]
        return float(log_temperature**2 / 2 - np.sum(weights * log_p))

    bounds = (-MAX_LOG_TEMPERATURE, MAX_LOG_TEMPERATURE)
    found = minimize_scalar(negative_log_posterior, bounds=bounds, method="bounded")
    return float(np.exp(found.x))
