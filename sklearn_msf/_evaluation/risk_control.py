"""Thresholds of uncertainty whose risk is bounded with a given confidence."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import rel_entr
from scipy.stats import beta, binom

from sklearn_msf._evaluation.labels import (
    as_labels,
    check_same_kind,
    label_column,
    label_indices,
)
from sklearn_msf._evaluation.validation import check_fraction, checked_rows, is_number

__all__ = [
    "certified_threshold",
    "check_class_risks",
    "check_risk",
    "count_class_rows_to_certify",
    "count_rows_to_certify",
]

# Number of thresholds that are tested.
_N_TESTS = 20


def certified_threshold(
    errors: ArrayLike,
    uncertainty: ArrayLike,
    *,
    target_risk: float | Mapping[Any, float],
    confidence: float = 0.95,
    y_true: ArrayLike | None = None,
    max_loss: float | None = None,
) -> float | None:
    """Find a threshold of uncertainty whose risk is bounded with a given confidence.

    The calibration samples must be independent of each other, and later samples must come from the
    same distribution. The bound then holds in all but a fraction 1 - `confidence` of calibrations.
    What is bounded depends on `target_risk`.

    **A number** bounds the selective risk, the mean loss of the accepted samples. This is selection
    with guaranteed risk (Geifman and El-Yaniv, 2017) over 20 thresholds, which accept 1/20, 2/20,
    ... of the samples. Each threshold is tested at a confidence that is corrected for the number of
    tests: by the exact binomial bound of Clopper and Pearson if losses are 0 or 1, and by the
    Hoeffding-Bentkus bound (Bates et al., 2021) if they are costs up to `max_loss`. Of the
    thresholds that pass, the one that accepts most samples is returned. The binary search of the
    authors tests fewer thresholds, but a single test that fails, for example because few samples
    are accepted, can end it.

    **A mapping** ``{label: risk}`` bounds, for each class it names, the probability that a sample
    of this class is accepted and its prediction is wrong, over all samples of the class. All these
    bounds hold at once with the given confidence. This risk only grows with the threshold, so the
    test is exact and needs no correction, neither for thresholds nor for classes; "What a
    clinic asks" in the documentation has the proof. The bounds stay valid if classes are more or
    less frequent later than among the calibration samples, as long as the samples within each class
    come from the same distribution.

    Parameters
    ----------
    errors : array-like of shape (n,)
        Loss of each calibration sample: 1 or True where the prediction is wrong, else 0; with
        `max_loss` any number from 0 to `max_loss`, such as a cost of :func:`costs_of`. The
        classifier must not have been trained on calibration samples.
    uncertainty : array-like of shape (n,)
        Uncertainty of each sample; lower is more certain.
    target_risk : float or mapping of labels to floats
        Largest mean loss of the accepted samples, in (0, 1) or, with `max_loss`, in (0, max_loss).
        Or, for each class to bound, the largest fraction of its samples that may be accepted with
        a wrong prediction, in (0, 1).
    confidence : float, default=0.95
        Probability that the bound holds, over the choice of calibration samples; in (0, 1).
    y_true : array-like of shape (n,), default=None
        Labels of the samples; required with a mapping, and refused without one.
    max_loss : float, default=None
        Largest loss that a sample can have, which must be known beforehand, such as the largest
        entry of a cost matrix. None means that losses are 0 or 1.

    Returns
    -------
    float or None
        Threshold: accept a sample if its uncertainty is at most this. None if no threshold can be
        certified.

    Raises
    ------
    ValueError
        If `target_risk`, `confidence` or `max_loss` is outside its range, or a loss is neither 0
        nor 1 without `max_loss` or larger than it; for a mapping that is empty or names a class
        without samples, without `y_true` or with `max_loss`; for arrays that are empty, not 1-d or
        of different lengths, and for NaN or infinity.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_msf.selective import certified_threshold
    >>> rng = np.random.default_rng(0)
    >>> uncertainty = rng.random(2000)
    >>> errors = rng.random(2000) < uncertainty / 2
    >>> round(certified_threshold(errors, uncertainty, target_risk=0.1), 2)
    0.25

    At most 2 % of the melanomas may be answered wrongly:

    >>> y_true = rng.choice(["melanoma", "nevus"], 2000)
    >>> threshold = certified_threshold(
    ...     errors, uncertainty, target_risk={"melanoma": 0.02}, y_true=y_true
    ... )
    >>> round(threshold, 2)
    0.19
    """
    check_fraction("confidence", confidence)
    if isinstance(target_risk, Mapping):
        if max_loss is not None:
            raise ValueError(
                f"max_loss={max_loss!r} cannot be used with target_risk={target_risk!r}, which "
                "counts wrong predictions: leave one of them out."
            )
        wrong, scores = _wrong_and_scores(errors, uncertainty)
        return _threshold_of_classes(wrong, scores, y_true, target_risk, confidence)
    if y_true is not None:
        raise ValueError(
            f"y_true is used only with a target_risk for each class, got {target_risk!r}: leave "
            "y_true out, or give target_risk={label: risk}."
        )
    check_risk("target_risk", target_risk, max_loss)
    if max_loss is None:
        losses, scores = _wrong_and_scores(errors, uncertainty)
    else:
        losses, scores, _ = checked_rows(errors, uncertainty, None)
        if (losses > max_loss).any():
            raise ValueError(f"errors must be at most max_loss={max_loss!r}, got {losses.max()}.")
    return _threshold_of_mean(losses, scores, target_risk, confidence, max_loss)


def check_risk(name: str, risk: Any, max_loss: Any) -> None:
    """Refuse a risk that is not a number in (0, 1), or in (0, max_loss) where that is given."""
    if max_loss is None:
        check_fraction(name, risk)
        return
    if not is_number(max_loss) or not 0 < max_loss < math.inf:
        raise ValueError(f"max_loss must be a finite number > 0, got {max_loss!r}.")
    if not is_number(risk) or not 0 < risk < max_loss:
        raise ValueError(f"{name} must be a number in (0, max_loss={max_loss!r}), got {risk!r}.")


def check_class_risks(target_risk: Mapping[Any, Any]) -> None:
    """Refuse a mapping that is empty, or has values that are not numbers in (0, 1)."""
    if not target_risk:
        raise ValueError("target_risk={} names no class: give a risk for at least one.")
    for label, risk in target_risk.items():
        check_fraction(f"target_risk[{label!r}]", risk)


def count_rows_to_certify(*, target_risk: float, confidence: float = 0.95) -> int:
    """Count the calibration samples without an error that are needed to certify a target.

    Parameters
    ----------
    target_risk : float
        Mean loss as in :func:`certified_threshold`, divided by the largest loss.
    confidence : float
        As in :func:`certified_threshold`.

    Returns
    -------
    int
        With fewer calibration samples nothing can be certified, even without any error.

    Raises
    ------
    ValueError
        If `target_risk` or `confidence` is outside (0, 1).
    """
    check_fraction("target_risk", target_risk)
    check_fraction("confidence", confidence)
    return 1 + math.ceil(math.log(_allowed(confidence)) / math.log1p(-target_risk))


def count_class_rows_to_certify(*, target_risk: float, confidence: float = 0.95) -> int:
    """Count the samples of a class that are needed to certify a target for this class.

    Parameters
    ----------
    target_risk : float
        Risk of one class as in :func:`certified_threshold`.
    confidence : float
        As in :func:`certified_threshold`.

    Returns
    -------
    int
        With fewer calibration samples of the class nothing can be certified, even without any
        error.
    """
    return math.ceil(math.log(1 - confidence) / math.log1p(-target_risk))


def _wrong_and_scores(errors: ArrayLike, uncertainty: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    wrong, scores, _ = checked_rows(errors, uncertainty, None)
    if not np.isin(wrong, (0, 1)).all():
        raise ValueError(
            "errors must be 0 or 1 for a certified threshold, unless max_loss says how large "
            "they can be."
        )
    return wrong, scores


# The mean loss of the accepted samples


def _threshold_of_mean(
    losses: np.ndarray,
    scores: np.ndarray,
    target_risk: float,
    confidence: float,
    max_loss: float | None,
) -> float | None:
    # The thresholds depend on the scores alone, not on the losses, so that all tests are valid.
    counts = np.ceil(len(scores) * np.arange(1, _N_TESTS + 1) / _N_TESTS).astype(int)
    thresholds = np.unique(np.sort(scores)[counts - 1])
    for threshold in thresholds[::-1]:
        accepted = scores <= threshold
        total, n_accepted = losses[accepted].sum(), accepted.sum()
        if max_loss is None:
            passed = _error_bound(total, n_accepted, _allowed(confidence)) <= target_risk
        else:
            p_value = _p_value_of_mean(total / max_loss, n_accepted, target_risk / max_loss)
            passed = p_value <= _allowed(confidence)
        if passed:
            return float(threshold)
    return None


def _allowed(confidence: float) -> float:
    """Divide the allowed chance of a false certificate by the number of tests, ties ignored."""
    return (1 - confidence) / _N_TESTS


def _error_bound(n_wrong: int, n_accepted: int, allowed: float) -> float:
    """Compute an upper bound of an error rate that fails with a chance of at most `allowed`."""
    # The sample whose score is the threshold is not a random one among those below: leave it out.
    n = n_accepted - 1
    return 1.0 if n_wrong >= n else float(beta.ppf(1 - allowed, n_wrong + 1, n - n_wrong))


def _p_value_of_mean(total: float, n_accepted: int, target: float) -> float:
    """Bound the chance of so small a sum of losses in [0, 1] if their mean exceeds the target.

    This is the smaller one of Hoeffding's bound with the relative entropy and Bentkus' bound
    (Bates et al., 2021, section 3.1).
    """
    n = n_accepted - 1
    if total >= n * target:
        return 1.0
    mean = total / n
    divergence = rel_entr(mean, target) + rel_entr(1 - mean, 1 - target)
    return float(min(np.exp(-n * divergence), np.e * binom.cdf(np.ceil(total), n, target)))


# The classes by themselves


def _threshold_of_classes(
    wrong: np.ndarray,
    scores: np.ndarray,
    y_true: ArrayLike | None,
    target_risk: Mapping[Any, float],
    confidence: float,
) -> float | None:
    check_class_risks(target_risk)
    if y_true is None:
        raise ValueError(f"y_true is missing: target_risk={target_risk!r} needs the labels.")
    labels = label_column("y_true", y_true)
    if labels.shape != scores.shape:
        raise ValueError(f"y_true has {len(labels)} labels and errors {len(scores)}.")
    named = as_labels("target_risk", list(target_risk))
    check_same_kind("target_risk", named, "y_true", labels)
    class_of_sample = label_indices(labels, named)
    limits = []
    for index, (label, risk) in enumerate(target_risk.items()):
        of_class = class_of_sample == index
        if not of_class.any():
            raise ValueError(f"target_risk names {label!r}, but y_true has no such label.")
        wrong_scores = scores[of_class & (wrong == 1)]
        limits.append(_limit_of_class(wrong_scores, int(of_class.sum()), risk, 1 - confidence))
    below = scores[scores < min(limits)]
    return float(below.max()) if len(below) else None


def _limit_of_class(wrong_scores: np.ndarray, n: int, risk: float, allowed: float) -> float:
    """Find the score below which all samples of a class may be accepted.

    It is the k-th smallest score among the wrong predictions for the n samples of the class, with
    the largest k for which Bin(n, risk) is below k with a chance of at most `allowed`: a
    distribution-free tolerance limit (Wilks, 1941).
    """
    k = int(np.searchsorted(binom.cdf(np.arange(n + 1), n, risk), allowed, side="right"))
    if k == 0:
        return -math.inf
    return float(np.sort(wrong_scores)[k - 1]) if k <= len(wrong_scores) else math.inf
