"""Thresholds of uncertainty whose risk is bounded with a given confidence."""

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import beta

from sklearn_msf._evaluation.validation import check_share, checked_rows

__all__ = ["certified_threshold", "count_rows_to_certify"]

# Number of thresholds that are tested.
_N_TESTS = 20


def certified_threshold(
    errors: ArrayLike,
    uncertainty: ArrayLike,
    *,
    target_risk: float,
    confidence: float = 0.95,
) -> float | None:
    """Find a threshold whose selective risk is bounded with a given confidence.

    This is selection with guaranteed risk (Geifman and El-Yaniv, 2017) over 20 thresholds, which
    accept 1/20, 2/20, ... of the samples. Each threshold is tested by the exact binomial bound of
    Clopper and Pearson, at a confidence that is corrected for the number of tests. Of the
    thresholds that pass, the one that accepts most samples is returned. If the calibration samples
    are independent of each other and later samples come from the same distribution, the risk on
    later samples is at most `target_risk` in all but a fraction 1 - `confidence` of calibrations.
    The binary search of the authors tests fewer thresholds, but a single test that fails, for
    example because few samples are accepted, can end it.

    Parameters
    ----------
    errors : array-like of shape (n,)
        1 or True where the prediction for a calibration sample is wrong, else 0. The classifier
        must not have been trained on calibration samples.
    uncertainty : array-like of shape (n,)
        Uncertainty of each sample; lower is more certain.
    target_risk : float
        Fraction of errors that is allowed among the accepted samples, in (0, 1).
    confidence : float, default=0.95
        Probability that the bound holds, over the choice of calibration samples; in (0, 1).

    Returns
    -------
    float or None
        Threshold: accept a sample if its uncertainty is at most this. None if no threshold can be
        certified.

    Raises
    ------
    ValueError
        If `target_risk` or `confidence` is outside (0, 1), or an error is neither 0 nor 1; for
        arrays that are empty, not 1-d or of different lengths, and for NaN or infinity.
    """
    check_share("target_risk", target_risk)
    check_share("confidence", confidence)
    wrong, scores, _ = checked_rows(errors, uncertainty, None)
    if not np.isin(wrong, (0, 1)).all():
        raise ValueError("errors must be 0 or 1 for a certified threshold.")
    # The thresholds depend on the scores alone, not on the errors, so that all tests are valid.
    counts = np.ceil(len(scores) * np.arange(1, _N_TESTS + 1) / _N_TESTS).astype(int)
    thresholds = np.unique(np.sort(scores)[counts - 1])
    for threshold in thresholds[::-1]:
        accepted = scores <= threshold
        n_wrong, n_accepted = wrong[accepted].sum(), accepted.sum()
        if _error_bound(n_wrong, n_accepted, _allowed(confidence)) <= target_risk:
            return float(threshold)
    return None


def count_rows_to_certify(*, target_risk: float, confidence: float = 0.95) -> int:
    """Count the calibration samples without an error that are needed to certify a target.

    Parameters
    ----------
    target_risk, confidence : float
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
    check_share("target_risk", target_risk)
    check_share("confidence", confidence)
    return 1 + math.ceil(math.log(_allowed(confidence)) / math.log1p(-target_risk))


def _allowed(confidence: float) -> float:
    """Divide the allowed chance of a false certificate by the number of tests, ties ignored."""
    return (1 - confidence) / _N_TESTS


def _error_bound(n_wrong: int, n_accepted: int, allowed: float) -> float:
    """Compute an upper bound of an error rate that fails with a chance of at most `allowed`."""
    # The sample whose score is the threshold is not a random one among those below: leave it out.
    n = n_accepted - 1
    return 1.0 if n_wrong >= n else float(beta.ppf(1 - allowed, n_wrong + 1, n - n_wrong))
