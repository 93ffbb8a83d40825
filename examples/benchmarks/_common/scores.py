"""Scores as the Evaluator of the medmnist package computes them, their intervals and spreads.

And how well a score tells images of another kind, and probabilities are calibrated.
"""

from collections.abc import Callable, Sequence

import numpy as np
from sklearn.metrics import roc_auc_score

__all__ = [
    "accuracy",
    "auc_score",
    "auroc",
    "calibration_error",
    "chance_calibration_error",
    "mean_and_spread",
    "resampled_interval",
]

N_RESAMPLES = 500


def auc_score(y_true: np.ndarray, p: np.ndarray) -> float:
    """Area under the ROC curve: of the positive class, or one against the rest, averaged."""
    if p.shape[1] == 2:
        return float(roc_auc_score(y_true, p[:, 1]))
    return float(np.mean([roc_auc_score(y_true == c, p[:, c]) for c in range(p.shape[1])]))


def auroc(typical: np.ndarray, other: np.ndarray) -> float:
    """Chance that an image of another kind scores lower than a typical one."""
    truth = np.r_[np.zeros(len(typical)), np.ones(len(other))]
    return float(roc_auc_score(truth, -np.r_[typical, other]))


def accuracy(y_true: np.ndarray, p: np.ndarray) -> float:
    """Fraction of the samples whose most probable class is the label."""
    predicted = p[:, 1] > 0.5 if p.shape[1] == 2 else p.argmax(axis=1)
    return float(np.mean(predicted == y_true))


def calibration_error(y_true: np.ndarray, p: np.ndarray, n_bins: int = 15) -> float:
    """Expected calibration error of the largest probability, bins of equal width."""
    confidence, correct = p.max(axis=1), p.argmax(axis=1) == y_true
    bins = np.clip(np.ceil(confidence * n_bins).astype(int) - 1, 0, n_bins - 1)
    gaps = np.bincount(bins, weights=correct - confidence, minlength=n_bins)
    return float(np.abs(gaps).sum() / len(y_true))


def chance_calibration_error(p: np.ndarray, seed: int = 0, n_repeats: int = 200) -> float:
    """Calibration error that these probabilities would have were they exactly right."""
    rng = np.random.default_rng(seed)
    cumulative = p.cumsum(axis=1)
    draws = [(rng.random((len(p), 1)) > cumulative[:, :-1]).sum(axis=1) for _ in range(n_repeats)]
    return float(np.mean([calibration_error(y, p) for y in draws]))


def resampled_interval(
    score: Callable[[np.ndarray, np.ndarray], float],
    y_true: np.ndarray,
    p: np.ndarray,
    seed: int = 0,
) -> tuple[float, float]:
    """95 % interval of a score over test sets: percentiles of resampled test images.

    Resamples that lack a class are left out, because they have no AUC.
    """
    rng, n_classes = np.random.default_rng(seed), len(np.unique(y_true))
    resamples = (rng.integers(len(y_true), size=len(y_true)) for _ in range(N_RESAMPLES))
    scores = [
        score(y_true[rows], p[rows]) for rows in resamples if len(set(y_true[rows])) == n_classes
    ]
    low, high = np.percentile(scores, (2.5, 97.5))
    return float(low), float(high)


def mean_and_spread(values: Sequence[float], digits: int) -> str:
    """Mean ± standard deviation of the values of several seeds; of one seed the value alone."""
    spread = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{spread}"
