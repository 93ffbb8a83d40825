"""What a decision threshold means in a clinic: sensitivity, specificity and predictive values.

The functions take the scores of any classifier, for two classes or for one class against the rest.
A sample counts as positive if its score is at least the threshold, as in scikit-learn's
`FixedThresholdClassifier` and `TunedThresholdClassifierCV`, which apply a threshold and choose one.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import beta

from sklearn_msf._evaluation.labels import (
    check_same_kind,
    check_unmasked,
    label_column,
    label_indices,
)
from sklearn_msf._evaluation.validation import check_fraction, is_number

__all__ = ["Estimate", "OperatingPoint", "operating_point"]


class Estimate(NamedTuple):
    """An estimated probability with its confidence interval.

    Attributes
    ----------
    value : float
        The estimate; NaN if it is a fraction of nothing.
    low, high : float
        Ends of the interval.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class OperatingPoint:
    """What a test with a threshold finds and misses.

    Attributes
    ----------
    threshold : float
        A sample is called positive if its score is at least this.
    sensitivity : Estimate
        Fraction of positive samples that are called positive (recall).
    specificity : Estimate
        Fraction of negative samples that are called negative.
    positive_predictive_value : Estimate
        Fraction of positive samples among those called positive (precision).
    negative_predictive_value : Estimate
        Fraction of negative samples among those called negative.
    prevalence : float
        Fraction of positive samples for which the predictive values hold.
    confidence : float
        Confidence of each interval by itself.
    n_positive, n_negative : int
        Numbers of positive and negative samples.
    """

    threshold: float
    sensitivity: Estimate
    specificity: Estimate
    positive_predictive_value: Estimate
    negative_predictive_value: Estimate
    prevalence: float
    confidence: float
    n_positive: int
    n_negative: int


def operating_point(
    y_true: ArrayLike,
    scores: ArrayLike,
    *,
    threshold: float,
    pos_label: Any,
    prevalence: float | None = None,
    confidence: float = 0.95,
) -> OperatingPoint:
    """Estimate sensitivity, specificity and predictive values at a threshold.

    The intervals of sensitivity and specificity are the exact ones of Clopper and Pearson (1934).
    They do not depend on how frequent the positive class is; predictive values do. With
    `prevalence` these follow from sensitivity and specificity by Bayes' theorem, and their
    intervals from the exact intervals of both at the square root of `confidence`. They contain the
    truth with a probability of at least `confidence`, because a predictive value grows with either
    of the two, which are estimated from different samples. Without `prevalence` the samples must be
    drawn as patients come, and the intervals are those of Clopper and Pearson for the samples
    called positive and called negative.

    Several samples of one patient are not independent, and the intervals would be too narrow: take
    one, or combine them by :func:`~sklearn_msf.selective.aggregate_by_group`.

    Parameters
    ----------
    y_true : array-like of shape (n,) or (n, 1)
        Labels. All that are not `pos_label` are negative.
    scores : array-like of shape (n,)
        Score of each sample for the positive class, such as its column of `predict_proba`.
    threshold : float
        Call a sample positive if its score is at least this. Choose it on other samples.
    pos_label : label
        The positive class.
    prevalence : float, default=None
        Fraction of positive patients where the classifier will be used, in (0, 1). None is the
        fraction of positive samples in `y_true`.
    confidence : float, default=0.95
        Confidence of each interval, in (0, 1).

    Returns
    -------
    OperatingPoint

    Raises
    ------
    ValueError
        For labels and scores of different lengths, scores that are not finite, a threshold that is
        not a number, a `prevalence` or `confidence` outside (0, 1), and if no sample is positive or
        none is negative.

    Examples
    --------
    >>> from sklearn_msf.operating_points import operating_point
    >>> y = ["ill"] * 40 + ["well"] * 60
    >>> scores = [0.9] * 36 + [0.2] * 4 + [0.8] * 6 + [0.1] * 54
    >>> point = operating_point(y, scores, threshold=0.5, pos_label="ill", prevalence=0.01)
    >>> "{:.2f} ({:.2f} to {:.2f})".format(*point.sensitivity)
    '0.90 (0.76 to 0.97)'
    >>> "{:.2f} ({:.2f} to {:.2f})".format(*point.positive_predictive_value)
    '0.08 (0.03 to 0.23)'
    """
    check_fraction("confidence", confidence)
    if prevalence is not None:
        check_fraction("prevalence", prevalence)
    positive, called = _checked(y_true, scores, threshold, pos_label)
    n_positive, n_negative = int(positive.sum()), int((~positive).sum())
    found = int((called & positive).sum())
    false_alarms = int((called & ~positive).sum())
    if prevalence is None:
        ppv = _exact(found, found + false_alarms, confidence)
        n_missed, n_excluded = n_positive - found, n_negative - false_alarms
        npv = _exact(n_excluded, n_missed + n_excluded, confidence)
    else:
        sensitivity = _exact(found, n_positive, math.sqrt(confidence))
        specificity = _exact(n_negative - false_alarms, n_negative, math.sqrt(confidence))
        pairs = list(zip(sensitivity, specificity, strict=True))
        ppv = Estimate(*(_predictive_value(a, b, prevalence) for a, b in pairs))
        npv = Estimate(*(_predictive_value(b, a, 1 - prevalence) for a, b in pairs))
    return OperatingPoint(
        threshold=float(threshold),
        sensitivity=_exact(found, n_positive, confidence),
        specificity=_exact(n_negative - false_alarms, n_negative, confidence),
        positive_predictive_value=ppv,
        negative_predictive_value=npv,
        prevalence=n_positive / len(positive) if prevalence is None else float(prevalence),
        confidence=float(confidence),
        n_positive=n_positive,
        n_negative=n_negative,
    )


def _checked(
    y_true: ArrayLike, scores: ArrayLike, threshold: Any, pos_label: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Return which samples are positive, and which are called positive."""
    if not is_number(threshold) or math.isnan(threshold):
        raise ValueError(f"threshold must be a number, got {threshold!r}.")
    check_unmasked("scores", scores)
    labels, given = label_column("y_true", y_true), np.asarray(scores)
    values = given.astype(float)
    if values.shape != labels.shape:
        raise ValueError(
            f"scores must be of shape ({len(labels)},), those of the positive class; got "
            f"{values.shape}."
        )
    if not np.isfinite(values).all():
        n_bad = int((~np.isfinite(values)).sum())
        raise ValueError(f"scores contains NaN or infinity in {n_bad} of {len(values)} rows.")
    check_same_kind("pos_label", [pos_label], "y_true", labels)
    positive = label_indices(labels, np.asarray([pos_label])) == 0
    if not positive.any() or positive.all():
        missing = "has no sample" if not positive.any() else "has only samples"
        raise ValueError(
            f"y_true {missing} of pos_label={pos_label!r}: sensitivity and specificity need both "
            "positive and negative samples."
        )
    # In the precision of the scores, as scikit-learn compares: float32 has no 0.7.
    return positive, (given if given.dtype.kind == "f" else values) >= threshold


def _exact(k: int, n: int, confidence: float) -> Estimate:
    """Estimate a fraction, with the interval of Clopper and Pearson."""
    if n == 0:
        return Estimate(math.nan, 0.0, 1.0)
    tail = (1 - confidence) / 2
    low = 0.0 if k == 0 else float(beta.ppf(tail, k, n - k + 1))
    high = 1.0 if k == n else float(beta.ppf(1 - tail, k + 1, n - k))
    return Estimate(k / n, low, high)


def _predictive_value(right: float, other_right: float, fraction: float) -> float:
    """Apply Bayes' theorem.

    Parameters
    ----------
    right : float
        Chance that a sample of the class in question is called by it.
    other_right : float
        Chance that a sample of the other class is not called by it.
    fraction : float
        Fraction of samples that are of the class in question.
    """
    called_right, called_wrong = right * fraction, (1 - other_right) * (1 - fraction)
    total = called_right + called_wrong
    return called_right / total if total > 0 else math.nan
