"""Thresholds of uncertainty whose risk is bounded with a confidence."""

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import beta

from sklearn_msf._evaluation.validation import check_share, checked_rows

__all__ = ["certified_threshold", "count_rows_to_certify"]

# Thresholds that are tested.
_N_TESTS = 20


def certified_threshold(
    errors: ArrayLike,
    uncertainty: ArrayLike,
    *,
    target_risk: float,
    confidence: float = 0.95,
) -> float | None:
    """Find a threshold whose selective risk is bounded with a confidence.

    Selection with guaranteed risk (Geifman and El-Yaniv, 2017), over thresholds that accept a
    twentieth of the rows, two, and so on: each is tested by the exact binomial bound of Clopper
    and Pearson at a confidence that allows for all tests, and the one that accepts most is taken.
    Where later rows are drawn as these were, and these independently of each other, their risk is
    at most `target_risk` in all but 1 - `confidence` of calibrations. The binary search of the
    authors tests fewer thresholds, but ends at a first that fails, be it for want of rows.

    Parameters
    ----------
    errors : array-like of shape (n,)
        1 or True where the prediction of a calibration row is wrong, else 0. Rows that trained
        the classifier are no calibration rows.
    uncertainty : array-like of shape (n,)
        Uncertainty of each row; lower is more certain.
    target_risk : float
        Share of errors among accepted rows that is allowed, in (0, 1).
    confidence : float, default=0.95
        In (0, 1).

    Returns
    -------
    float or None
        Accept where uncertainty <= it; None where nothing can be certified.

    Raises
    ------
    ValueError
        For a target or a confidence outside (0, 1), and errors other than 0 and 1.
    """
    check_share("target_risk", target_risk)
    check_share("confidence", confidence)
    wrong, scores, _ = checked_rows(errors, uncertainty, None)
    if not np.isin(wrong, (0, 1)).all():
        raise ValueError("errors must be 0 or 1 for a certified threshold.")
    # Of scores alone, so that it is no matter which of them pass.
    counts = np.ceil(len(scores) * np.arange(1, _N_TESTS + 1) / _N_TESTS).astype(int)
    thresholds = np.unique(np.sort(scores)[counts - 1])
    for threshold in thresholds[::-1]:
        accepted = scores <= threshold
        n_wrong, n_accepted = wrong[accepted].sum(), accepted.sum()
        if _error_bound(n_wrong, n_accepted, _allowed(confidence)) <= target_risk:
            return float(threshold)
    return None


def count_rows_to_certify(*, target_risk: float, confidence: float = 0.95) -> int:
    """Count the rows without an error that it takes to certify a target.

    Parameters
    ----------
    target_risk, confidence : float
        As in :func:`certified_threshold`.

    Returns
    -------
    int
        Fewer calibration rows certify nothing, however few of them are wrong.

    Raises
    ------
    ValueError
        For a target or a confidence outside (0, 1).
    """
    check_share("target_risk", target_risk)
    check_share("confidence", confidence)
    return 1 + math.ceil(math.log(_allowed(confidence)) / math.log1p(-target_risk))


def _allowed(confidence: float) -> float:
    """Chance of a false certificate that each test may have; ties do not make tests fewer."""
    return (1 - confidence) / _N_TESTS


def _error_bound(n_wrong: int, n_accepted: int, allowed: float) -> float:
    """Upper bound of an error rate that is too low with a chance of `allowed` at most."""
    # The row whose score is the threshold was not drawn at random below it.
    n = n_accepted - 1
    return 1.0 if n_wrong >= n else float(beta.ppf(1 - allowed, n_wrong + 1, n - n_wrong))
