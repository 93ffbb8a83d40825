"""Selective prediction: which predictions to accept, and how that changes the error rate.

The functions work with the uncertainties of any classifier; nothing here needs torch. A sample is
accepted if its uncertainty is at most a threshold, so samples of equal uncertainty are accepted
together. In the curves and metrics, a coverage that cuts through such a tie accepts the same
fraction of each of its samples; therefore the order of the samples does not matter. Only
:func:`accept_most_certain` breaks ties by the order.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike
from sklearn.metrics._scorer import _BaseScorer
from sklearn.utils.metadata_routing import UNUSED

from sklearn_msf._evaluation.confusion import confusion_matrix_with_reject, costs_of
from sklearn_msf._evaluation.groups import aggregate_by_group, labels_by_group
from sklearn_msf._evaluation.labels import differing_labels
from sklearn_msf._evaluation.risk_control import certified_threshold
from sklearn_msf._evaluation.validation import (
    by_score,
    check_fraction,
    checked_column,
    checked_rows,
    is_number,
)

__all__ = [
    "AccuracyRejectionCurve",
    "RiskCoverageCurve",
    "accept_most_certain",
    "accuracy_rejection_curve",
    "aggregate_by_group",
    "augrc",
    "aurc",
    "certified_threshold",
    "confusion_matrix_with_reject",
    "costs_of",
    "coverage_at_risk",
    "errors_of",
    "excess_aurc",
    "labels_by_group",
    "neg_augrc_scorer",
    "neg_aurc_scorer",
    "neg_excess_aurc_scorer",
    "risk_at_coverage",
    "risk_coverage_curve",
    "uncertainty_of",
]


def accept_most_certain(uncertainty: ArrayLike, coverage: float) -> np.ndarray:
    """Accept the most certain fraction of a batch.

    Parameters
    ----------
    uncertainty : array-like of shape (n,)
        Uncertainty of each sample; lower is more certain.
    coverage : float
        Fraction to accept, in (0, 1].

    Returns
    -------
    ndarray of shape (n,), bool
        True for exactly floor(coverage * n) samples, at least one. Of samples with equal
        uncertainty the earlier ones are accepted.

    Raises
    ------
    ValueError
        For uncertainties that are not finite, no samples, and a coverage outside (0, 1].
    """
    check_fraction("coverage", coverage, includes_one=True)
    uncertainty = checked_column("uncertainty", uncertainty)
    # The addend is needed because 0.57 * 100 is a little less than 57 in floating point.
    n_accepted = max(1, int(np.floor(coverage * len(uncertainty) + 1e-9)))
    accepted = np.zeros(len(uncertainty), dtype=bool)
    accepted[np.argsort(uncertainty, kind="stable")[:n_accepted]] = True
    return accepted


@dataclass(frozen=True, eq=False)
class AccuracyRejectionCurve:
    """Accuracy among the most certain samples, for every number of accepted samples.

    Attributes
    ----------
    coverage : ndarray of shape (n,)
        Accepted fraction of the weight, rising to 1: 1/n, 2/n, ... for equal weights.
    accuracy : ndarray of shape (n,)
        Accuracy among the accepted samples.
    """

    coverage: np.ndarray
    accuracy: np.ndarray

    def at(self, coverage: float) -> float:
        """Accuracy at a coverage in (0, 1], among the most certain samples, at least one."""
        check_fraction("coverage", coverage, includes_one=True)
        within = int(np.searchsorted(self.coverage, coverage + 1e-9, side="right"))
        return float(self.accuracy[max(1, within) - 1])


def accuracy_rejection_curve(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    uncertainty: ArrayLike,
    *,
    sample_weight: ArrayLike | None = None,
) -> AccuracyRejectionCurve:
    """Accuracy of the accepted samples as the most uncertain are rejected (paper, section 4.4).

    Each of several samples with equal uncertainty counts with their mean correctness, so that the
    order of the samples does not matter.

    Parameters
    ----------
    y_true, y_pred : array-like of shape (n,)
        Labels and predictions.
    uncertainty : array-like of shape (n,)
        Uncertainty of each prediction; lower is more certain.
    sample_weight : array-like of shape (n,), optional
        Weights; samples of weight zero are left out.

    Returns
    -------
    AccuracyRejectionCurve

    Raises
    ------
    ValueError
        For arrays of different lengths or not of shape (n,), labels and predictions of different
        kinds, uncertainties or weights that are not finite, negative weights, and no samples.
    """
    wrong, scores, weights = checked_rows(errors_of(y_true, y_pred), uncertainty, sample_weight)
    _, group = np.unique(scores, return_inverse=True)
    share_wrong = np.bincount(group, weights * wrong) / np.bincount(group, weights)
    # Sort ties by weight, so that the curve does not depend on the order of the samples.
    order = np.lexsort((weights, scores))
    accepted = np.cumsum(weights[order])
    wrong_accepted = np.cumsum(weights[order] * share_wrong[group[order]])
    return AccuracyRejectionCurve(accepted / accepted[-1], 1 - wrong_accepted / accepted)


@dataclass(frozen=True, eq=False)
class RiskCoverageCurve:
    """Selective risk at every threshold.

    Attributes
    ----------
    threshold : ndarray of shape (m,)
        The different uncertainties, rising. At each threshold the samples whose uncertainty is
        at most this are accepted.
    coverage : ndarray of shape (m,)
        Accepted fraction of the weight, rising to 1.
    risk : ndarray of shape (m,)
        Mean loss of the accepted samples.
    """

    threshold: np.ndarray
    coverage: np.ndarray
    risk: np.ndarray


def risk_coverage_curve(
    errors: ArrayLike, uncertainty: ArrayLike, *, sample_weight: ArrayLike | None = None
) -> RiskCoverageCurve:
    """Risk of the accepted samples at every threshold (El-Yaniv and Wiener, 2010).

    Parameters
    ----------
    errors : array-like of shape (n,)
        Loss of each sample, finite and not negative: for example True or 1 if the prediction is
        wrong.
    uncertainty : array-like of shape (n,)
        Uncertainty of each sample; lower is more certain.
    sample_weight : array-like of shape (n,), optional
        Weights; samples of weight zero are left out.

    Returns
    -------
    RiskCoverageCurve

    Raises
    ------
    ValueError
        For arrays of different lengths or not of shape (n,), NaN, infinity, negative losses or
        weights, and no samples.
    """
    threshold, weight, loss = by_score(errors, uncertainty, sample_weight)
    accepted = np.cumsum(weight)
    # The last sum is 1 up to rounding; the whole weight is exactly 1.
    return RiskCoverageCurve(threshold, accepted / accepted[-1], np.cumsum(loss) / accepted)


def aurc(
    errors: ArrayLike, uncertainty: ArrayLike, *, sample_weight: ArrayLike | None = None
) -> float:
    """Area under the risk-coverage curve (Geifman, Uziel and El-Yaniv, 2019); lower is better.

    The area is exact. The sums over samples that are often reported differ from it by about 1 / n.

    Parameters
    ----------
    errors, uncertainty, sample_weight :
        As in :func:`risk_coverage_curve`.

    Returns
    -------
    float
        Between 0 and the largest loss; the mean loss if the uncertainty carries no information.
    """
    _, weight, loss = by_score(errors, uncertainty, sample_weight)
    start, before = np.cumsum(weight) - weight, np.cumsum(loss) - loss
    # Integral of (before + rate * (c - start)) / c over the coverages c of each tie.
    log_growth = np.log1p(np.divide(weight, start, out=np.zeros_like(weight), where=start > 0))
    return float(np.sum(loss + (before - loss / weight * start) * log_growth))


def excess_aurc(
    errors: ArrayLike, uncertainty: ArrayLike, *, sample_weight: ArrayLike | None = None
) -> float:
    """AURC minus that of samples ranked by their losses; 0 is perfect.

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

    The generalised risk is the chance that a sample is accepted and its prediction is wrong.
    Unlike AURC it does not give large weights to the few most certain samples.

    Parameters
    ----------
    errors, uncertainty, sample_weight :
        As in :func:`risk_coverage_curve`.

    Returns
    -------
    float
        Between 0 and the mean loss; half the mean loss if the uncertainty carries no information.
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
    """Mean loss of the most certain fraction of the samples.

    Parameters
    ----------
    errors, uncertainty, sample_weight :
        As in :func:`risk_coverage_curve`.
    coverage : float
        Fraction of the weight to accept, in (0, 1].

    Returns
    -------
    float
    """
    check_fraction("coverage", coverage, includes_one=True)
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

    This is an estimate without a guarantee; for one with a guarantee see
    :func:`certified_threshold`.

    Parameters
    ----------
    errors, uncertainty, sample_weight :
        As in :func:`risk_coverage_curve`.
    risk : float
        Largest allowed risk, at least 0.

    Returns
    -------
    float
        0.0 if the risk is larger at every threshold.
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
        If the numbers of labels and predictions differ, if the ones are numbers and the others
        text, and for NaN and masked predictions, which are neither right nor wrong.
    """
    return differing_labels("y_true", y_true, "y_pred", y_pred)


def uncertainty_of(estimator: Any, X: Any) -> np.ndarray:
    """Compute the uncertainty of any classifier.

    Parameters
    ----------
    estimator : object
        Fitted classifier.
    X : array-like
        Samples that the classifier accepts.

    Returns
    -------
    ndarray of shape (n,)
        Result of its `predict_uncertainty`. For a classifier without this method, for example a
        pipeline, it is 1 - max p, which says how sure the most probable class is: of a classifier
        that answers by another rule, as FixedThresholdClassifier does, pass uncertainties of your
        own to the functions of this module.

    Raises
    ------
    ValueError
        If the classifier has neither `predict_uncertainty` nor `predict_proba`.
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


def _no_metric_of_labels(
    errors: ArrayLike, uncertainty: ArrayLike, *, sample_weight: ArrayLike | None = None
) -> float:
    """Refuse to score labels: TunedThresholdClassifierCV calls the metric of a scorer on them."""
    raise ValueError(
        "This scorer scores how uncertainties rank errors, and no labels that depend on a "
        "threshold: pass TunedThresholdClassifierCV another scoring, such as 'balanced_accuracy'."
    )


class _UncertaintyScorer(_BaseScorer):
    """Scorer of a classifier's uncertainty, for ``scoring=``: a metric of selective prediction.

    scikit-learn's own class is the base, because searches with several scorers and metadata routing
    ask a scorer for more than a function has. ``make_scorer`` knows only metrics of one output.

    Parameters
    ----------
    metric : callable
        Takes errors, uncertainties and `sample_weight`; smaller is better.
    """

    # Since scikit-learn 1.8 a scorer asks for the arguments of its metric, of which the scorer
    # itself computes one. Before that it has to say that it takes weights.
    __metadata_request__score: ClassVar[dict[str, Any]] = (
        {"uncertainty": UNUSED}
        if "_get_metadata_request" in vars(_BaseScorer)
        else {"sample_weight": None}
    )

    def __init__(self, metric: Callable[..., float]):
        super().__init__(_no_metric_of_labels, -1, {}, "predict")
        self._metric = metric
        self.__name__ = self.__qualname__ = f"neg_{metric.__name__}_scorer"
        self.__doc__ = (
            f"Negative {metric.__name__} of a classifier's uncertainty, for ``scoring=``; of 1 - "
            "max p where it has no `predict_uncertainty`, as pipelines have none."
        )

    def __repr__(self) -> str:
        return self.__name__

    def _score(
        self,
        method_caller: Callable[..., Any],
        estimator: Any,
        X: Any,
        y_true: ArrayLike,
        sample_weight: ArrayLike | None = None,
    ) -> float:
        """Score a classifier, whose predictions `method_caller` may share with other scorers."""
        errors = errors_of(y_true, method_caller(estimator, "predict", X))
        uncertainty = uncertainty_of(estimator, X)
        return -float(self._metric(errors, uncertainty, sample_weight=sample_weight))


neg_aurc_scorer = _UncertaintyScorer(aurc)
neg_excess_aurc_scorer = _UncertaintyScorer(excess_aurc)
neg_augrc_scorer = _UncertaintyScorer(augrc)
