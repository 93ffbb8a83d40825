"""Selective prediction: which rows to answer and what that does to the errors.

Numpy and scipy only, and for the scores of any classifier. A row is accepted where its
uncertainty is at most a threshold, so rows of equal uncertainty are accepted together; a coverage
that cuts through such a tie accepts a part of each of its rows, and the order of rows never
matters.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from sklearn_msf._evaluation.risk_control import certified_threshold
from sklearn_msf._evaluation.validation import by_score, check_share, checked_rows, is_number

__all__ = [
    "AccuracyRejectionCurve",
    "RiskCoverageCurve",
    "accept_most_certain",
    "accuracy_rejection_curve",
    "augrc",
    "aurc",
    "certified_threshold",
    "coverage_at_risk",
    "errors_of",
    "excess_aurc",
    "neg_augrc_scorer",
    "neg_aurc_scorer",
    "neg_excess_aurc_scorer",
    "risk_at_coverage",
    "risk_coverage_curve",
    "uncertainty_of",
]


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

    Raises
    ------
    ValueError
        For uncertainties that are not finite, no rows, and coverages outside (0, 1].
    """
    check_share("coverage", coverage, includes_one=True)
    uncertainty = np.asarray(uncertainty, dtype=float)
    _, uncertainty, _ = checked_rows(np.zeros(uncertainty.shape), uncertainty, None)
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
        Share accepted, rising to 1: 1/n, 2/n, ... where all weigh the same.
    accuracy : ndarray of shape (n,)
        Accuracy among the accepted.
    """

    coverage: np.ndarray
    accuracy: np.ndarray

    def at(self, coverage: float) -> float:
        """Accuracy among the most certain rows that make up a share in (0, 1]; at least one."""
        check_share("coverage", coverage, includes_one=True)
        within = int(np.searchsorted(self.coverage, coverage + 1e-9, side="right"))
        return float(self.accuracy[max(1, within) - 1])


def accuracy_rejection_curve(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    uncertainty: ArrayLike,
    *,
    sample_weight: ArrayLike | None = None,
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
    sample_weight : array-like of shape (n,), optional
        Weights; rows of weight zero are left out.

    Returns
    -------
    AccuracyRejectionCurve

    Raises
    ------
    ValueError
        For arrays of other shapes, uncertainties or weights that are not finite, and no rows.
    """
    wrong, scores, weights = checked_rows(errors_of(y_true, y_pred), uncertainty, sample_weight)
    _, group = np.unique(scores, return_inverse=True)
    share_wrong = np.bincount(group, weights * wrong) / np.bincount(group, weights)
    # Within a tie by weight, so that the order of the rows is no matter there either.
    order = np.lexsort((weights, scores))
    accepted = np.cumsum(weights[order])
    wrong_accepted = np.cumsum(weights[order] * share_wrong[group[order]])
    return AccuracyRejectionCurve(accepted / accepted[-1], 1 - wrong_accepted / accepted)


@dataclass(frozen=True)
class RiskCoverageCurve:
    """Selective risk at every threshold.

    Attributes
    ----------
    threshold : ndarray of shape (m,)
        The different uncertainties, rising; rows up to one are accepted.
    coverage : ndarray of shape (m,)
        Share of the weight accepted, rising to 1.
    risk : ndarray of shape (m,)
        Mean loss of the accepted rows.
    """

    threshold: np.ndarray
    coverage: np.ndarray
    risk: np.ndarray


def risk_coverage_curve(
    errors: ArrayLike, uncertainty: ArrayLike, *, sample_weight: ArrayLike | None = None
) -> RiskCoverageCurve:
    """Risk of the accepted rows at every threshold (El-Yaniv and Wiener, 2010).

    Parameters
    ----------
    errors : array-like of shape (n,)
        Loss of each row, finite and not negative: True or 1 where the prediction is wrong.
    uncertainty : array-like of shape (n,)
        Uncertainty of each row; lower is more certain.
    sample_weight : array-like of shape (n,), optional
        Weights; rows of weight zero are left out.

    Returns
    -------
    RiskCoverageCurve

    Raises
    ------
    ValueError
        For arrays of other shapes, NaN, infinity, negative losses or weights, and no rows.
    """
    threshold, weight, loss = by_score(errors, uncertainty, sample_weight)
    coverage = np.cumsum(weight)
    return RiskCoverageCurve(threshold, coverage, np.cumsum(loss) / coverage)


def aurc(
    errors: ArrayLike, uncertainty: ArrayLike, *, sample_weight: ArrayLike | None = None
) -> float:
    """Area under the risk-coverage curve (Geifman, Uziel and El-Yaniv, 2019); lower is better.

    The area is exact; sums over rows, as others print them, differ from it by about 1 / n.

    Parameters
    ----------
    errors, uncertainty, sample_weight :
        As in :func:`risk_coverage_curve`.

    Returns
    -------
    float
        Between 0 and the largest loss; the mean loss where uncertainty says nothing.
    """
    _, weight, loss = by_score(errors, uncertainty, sample_weight)
    start, before = np.cumsum(weight) - weight, np.cumsum(loss) - loss
    # Integral of (before + rate * (c - start)) / c over the coverages of each tie.
    log_growth = np.log1p(np.divide(weight, start, out=np.zeros_like(weight), where=start > 0))
    return float(np.sum(loss + (before - loss / weight * start) * log_growth))


def excess_aurc(
    errors: ArrayLike, uncertainty: ArrayLike, *, sample_weight: ArrayLike | None = None
) -> float:
    """AURC above that of rows ranked by their losses; 0 is perfect.

    Parameters
    ----------
    errors, uncertainty, sample_weight :
        As in :func:`risk_coverage_curve`.

    Returns
    -------
    float
    """
    best = aurc(errors, errors, sample_weight=sample_weight)
    return aurc(errors, uncertainty, sample_weight=sample_weight) - best


def augrc(
    errors: ArrayLike, uncertainty: ArrayLike, *, sample_weight: ArrayLike | None = None
) -> float:
    """Area under the generalised risk-coverage curve (Traub et al., 2024); lower is better.

    The generalised risk is the chance that a row is answered, and wrongly: unlike AURC it does
    not weigh the first few rows heavily.

    Parameters
    ----------
    errors, uncertainty, sample_weight :
        As in :func:`risk_coverage_curve`.

    Returns
    -------
    float
        Between 0 and the mean loss; half of it where uncertainty says nothing.
    """
    _, weight, loss = by_score(errors, uncertainty, sample_weight)
    return float(np.sum(weight * (np.cumsum(loss) - loss / 2)))


def risk_at_coverage(
    errors: ArrayLike,
    uncertainty: ArrayLike,
    *,
    coverage: float,
    sample_weight: ArrayLike | None = None,
) -> float:
    """Mean loss of the most certain share.

    Parameters
    ----------
    errors, uncertainty, sample_weight :
        As in :func:`risk_coverage_curve`.
    coverage : float
        Share to accept, in (0, 1].

    Returns
    -------
    float
    """
    check_share("coverage", coverage, includes_one=True)
    curve = risk_coverage_curve(errors, uncertainty, sample_weight=sample_weight)
    lost = np.interp(coverage, [0, *curve.coverage], [0, *(curve.coverage * curve.risk)])
    return float(lost / coverage)


def coverage_at_risk(
    errors: ArrayLike,
    uncertainty: ArrayLike,
    *,
    risk: float,
    sample_weight: ArrayLike | None = None,
) -> float:
    """Largest coverage of a threshold at which the risk is at most a given one.

    An estimate and no promise: see :func:`certified_threshold`.

    Parameters
    ----------
    errors, uncertainty, sample_weight :
        As in :func:`risk_coverage_curve`.
    risk : float
        Risk to stay at or below, at least 0.

    Returns
    -------
    float
        0.0 where no threshold reaches it.
    """
    if not is_number(risk) or not 0 <= risk < np.inf:
        raise ValueError(f"risk must be a finite number >= 0, got {risk!r}.")
    curve = risk_coverage_curve(errors, uncertainty, sample_weight=sample_weight)
    reached = curve.coverage[curve.risk <= risk + 1e-12]
    return float(reached[-1]) if len(reached) else 0.0


def errors_of(y_true: ArrayLike, y_pred: ArrayLike) -> np.ndarray:
    """Tell which predictions are wrong.

    Parameters
    ----------
    y_true, y_pred : array-like of shape (n,) or (n, 1)
        Labels and predictions.

    Returns
    -------
    ndarray of shape (n,), bool

    Raises
    ------
    ValueError
        For as many predictions as there are no labels.
    """
    labels, predictions = np.ravel(np.asarray(y_true)), np.ravel(np.asarray(y_pred))
    if labels.shape != predictions.shape:
        raise ValueError(
            f"y_true has {len(labels)} labels and y_pred {len(predictions)} predictions: give one "
            "for each row."
        )
    return np.asarray(labels != predictions)


def uncertainty_of(estimator: Any, X: Any) -> np.ndarray:
    """Ask any classifier for its uncertainty.

    Parameters
    ----------
    estimator : object
        Fitted classifier.
    X : array-like
        What it takes.

    Returns
    -------
    ndarray of shape (n,)
        What its `predict_uncertainty` says; 1 - max p where it has none, as pipelines have
        none.

    Raises
    ------
    ValueError
        For a classifier without probabilities too.
    """
    if hasattr(estimator, "predict_uncertainty"):
        return np.asarray(estimator.predict_uncertainty(X))
    if not hasattr(estimator, "predict_proba"):
        raise ValueError(
            f"{type(estimator).__name__} has neither predict_uncertainty nor predict_proba: give "
            "its uncertainties yourself, as from_predictions and the functions of "
            "sklearn_msf.selective take them."
        )
    return np.asarray(1 - estimator.predict_proba(X).max(axis=1))


def _uncertainty_scorer(metric: Callable[..., float]) -> Callable[..., float]:
    def score(estimator: Any, X: Any, y: Any, sample_weight: ArrayLike | None = None) -> float:
        errors = errors_of(y, estimator.predict(X))
        return -metric(errors, uncertainty_of(estimator, X), sample_weight=sample_weight)

    score.__name__ = score.__qualname__ = f"neg_{metric.__name__}_scorer"
    score.__doc__ = (
        f"Negative {metric.__name__} of a classifier's uncertainty, for ``scoring=``; of 1 - max p "
        "where it has no `predict_uncertainty`, as pipelines have none."
    )
    return score


neg_aurc_scorer = _uncertainty_scorer(aurc)
neg_excess_aurc_scorer = _uncertainty_scorer(excess_aurc)
neg_augrc_scorer = _uncertainty_scorer(augrc)
