"""Selective prediction: which rows to answer and what that does to the accuracy.

Numpy only, and for the scores of any classifier.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

__all__ = ["AccuracyRejectionCurve", "accept_most_certain", "accuracy_rejection_curve"]


def accept_most_certain(uncertainty: ArrayLike, coverage: float) -> np.ndarray:
    """Accept the most certain share of a batch.

    Parameters
    ----------
    uncertainty : array-like of shape (n,)
        Uncertainty of each row; lower is more certain.
    coverage : float
        Share to accept, in (0, 1].

    Returns
    -------
    ndarray of shape (n,), bool
        True for exactly floor(coverage * n) rows, at least one; of rows that tie, the
        earlier ones.
    """
    uncertainty = np.asarray(uncertainty)
    # 0.57 * 100 is a little less than 57 in floating point.
    n_accepted = max(1, int(np.floor(coverage * len(uncertainty) + 1e-9)))
    accepted = np.zeros(len(uncertainty), dtype=bool)
    accepted[np.argsort(uncertainty, kind="stable")[:n_accepted]] = True
    return accepted


@dataclass(frozen=True)
class AccuracyRejectionCurve:
    """Accuracy among the most certain rows, for every number of them.

    Attributes
    ----------
    coverage : ndarray of shape (n,)
        Share accepted: 1/n, 2/n, ..., 1.
    accuracy : ndarray of shape (n,)
        Accuracy among the accepted.
    """

    coverage: np.ndarray
    accuracy: np.ndarray

    def at(self, coverage: float) -> float:
        """Accuracy among the most certain floor(coverage * n) rows."""
        n = len(self.coverage)
        return float(self.accuracy[max(1, int(np.floor(coverage * n + 1e-9))) - 1])


def accuracy_rejection_curve(
    y_true: ArrayLike, y_pred: ArrayLike, uncertainty: ArrayLike
) -> AccuracyRejectionCurve:
    """Accuracy of the accepted rows as the most uncertain are rejected (paper, section 4.4).

    Rows of equal uncertainty are accepted together: each counts with the mean correctness
    of its tie, so that the order of the rows does not matter.

    Parameters
    ----------
    y_true, y_pred : array-like of shape (n,)
        Labels and predictions.
    uncertainty : array-like of shape (n,)
        Uncertainty of each prediction; lower is more certain.

    Returns
    -------
    AccuracyRejectionCurve
    """
    correct = (np.asarray(y_true) == np.asarray(y_pred)).astype(float)
    uncertainty = np.asarray(uncertainty)
    _, group, sizes = np.unique(uncertainty, return_inverse=True, return_counts=True)
    share_correct = np.bincount(group, weights=correct) / sizes
    n_accepted = np.arange(1, len(correct) + 1)
    expected_correct = np.cumsum(share_correct[np.sort(group)])
    return AccuracyRejectionCurve(n_accepted / len(correct), expected_correct / n_accepted)
