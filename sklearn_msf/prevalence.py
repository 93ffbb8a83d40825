"""Class probabilities where classes are more or less frequent than in training.

All of this assumes **label shift**: the classes have other frequencies, but the images within each
class look the same. Then p(class | image) changes by the ratio of the frequencies alone. Where the
images look different too (another device, other patients, other views, another idea of what counts
as a class), it does not, and neither the probabilities nor the estimated frequencies can be
trusted; nothing here can notice it. The probabilities must be calibrated.
"""

from collections.abc import Mapping, Set

import numpy as np
from numpy.typing import ArrayLike
from sklearn.exceptions import ConvergenceWarning

from sklearn_msf._evaluation.validation import as_numbers, checked_probabilities
from sklearn_msf.runtime.user_warnings import warn_user

__all__ = ["adjust_to_prior", "estimate_prior"]

_MAX_ITER = 10_000
_TOLERANCE = 1e-6
# A class of which fewer samples than this are found may be there or not.
_FEWEST = 0.5
# Frequency of a class that may be missed without a warning.
_NEGLIGIBLE = 1e-3


def adjust_to_prior(
    probabilities: ArrayLike, *, old_prior: ArrayLike, new_prior: ArrayLike
) -> np.ndarray:
    """Adjust class probabilities to other frequencies of the classes.

    By Bayes' theorem, for image x and class c,

        p_new(c | x) = p_old(c | x) * new_c / old_c, divided by the sum over the classes

    (Saerens, Latinne and Decaestecker, 2002, equation 4), if p(x | c) is the same for both.

    Parameters
    ----------
    probabilities : array-like of shape (n, K)
        Class probabilities, as of `predict_proba`.
    old_prior : array-like of shape (K,)
        Frequency of each class in training, in the order of the columns, each above 0, with sum 1:
        ``np.unique(y_train, return_counts=True)[1] / len(y_train)``, or equal frequencies for a
        classifier that was trained with ``class_weight="balanced"``.
    new_prior : array-like of shape (K,)
        Frequency of each class where the classifier is used, at least 0, with sum 1.

    Returns
    -------
    ndarray of shape (n, K), float64
        Adjusted probabilities; rows sum to 1. The predicted classes are
        ``classes_[adjusted.argmax(axis=1)]``.

    Raises
    ------
    ValueError
        For probabilities that are not of shape (n, K), outside [0, 1] or with rows that do not sum
        to 1; for frequencies that are no sequence of numbers, of another shape, out of range, or
        that do not sum to 1; and if all classes that are possible for a sample have the new
        frequency 0.

    Examples
    --------
    >>> from sklearn_msf.prevalence import adjust_to_prior
    >>> p = adjust_to_prior([[0.5, 0.5]], old_prior=[0.5, 0.5], new_prior=[0.99, 0.01])
    >>> p.round(2)
    array([[0.99, 0.01]])
    """
    p = checked_probabilities("probabilities", probabilities)
    old = _checked_prior("old_prior", old_prior, p.shape[1])
    new = _checked_prior("new_prior", new_prior, p.shape[1], may_be_zero=True)
    possible = (p @ new) > 0
    if not possible.all():
        row = int(np.argmin(possible))
        raise ValueError(
            f"new_prior={new.tolist()} is 0 for every class that probabilities allow in row {row}, "
            f"{p[row].tolist()}."
        )
    return _adjusted(p, old, new)


def estimate_prior(probabilities: ArrayLike, *, old_prior: ArrayLike) -> np.ndarray:
    """Estimate how frequent the classes are among unlabelled samples.

    This is the maximum-likelihood estimate by expectation maximisation (Saerens, Latinne and
    Decaestecker, 2002): probabilities are adjusted to the present estimate, and their mean is the
    next one. The likelihood has no local maximum but the global one.

    Parameters
    ----------
    probabilities : array-like of shape (n, K)
        Class probabilities of the unlabelled samples, as of `predict_proba`, from a calibrated
        classifier. With few samples the estimate is rough; a class that the classifier hardly
        distinguishes from another is estimated badly.
    old_prior : array-like of shape (K,)
        Frequency of each class in training, as in :func:`adjust_to_prior`.

    Returns
    -------
    ndarray of shape (K,), float64
        Estimated frequencies, with sum 1, for `new_prior` of :func:`adjust_to_prior`.

    Raises
    ------
    ValueError
        As in :func:`adjust_to_prior`.

    Warns
    -----
    UserWarning
        If less than half a sample of some class is found among so few samples that they do not
        exclude a frequency of 0.001.
    ConvergenceWarning
        If the estimate still changes after 10,000 steps.

    Examples
    --------
    Seven of ten samples are clearly of the second class, as against half in training:

    >>> from sklearn_msf.prevalence import estimate_prior
    >>> p = [[0.99, 0.01]] * 3 + [[0.01, 0.99]] * 7
    >>> estimate_prior(p, old_prior=[0.5, 0.5]).round(2)
    array([0.3, 0.7])
    """
    p = checked_probabilities("probabilities", probabilities)
    old = _checked_prior("old_prior", old_prior, p.shape[1])
    estimate = old
    for _ in range(_MAX_ITER):
        before, estimate = estimate, _adjusted(p, old, estimate).mean(axis=0)
        if np.abs(estimate - before).sum() < _TOLERANCE:
            _warn_of_absent(estimate, len(p))
            return estimate
    warn_user(
        f"The estimated frequencies still change after {_MAX_ITER} steps, by "
        f"{np.abs(estimate - before).sum():.1g} in the last one: the probabilities hardly "
        "distinguish some classes.",
        ConvergenceWarning,
    )
    return estimate


def _warn_of_absent(estimate: np.ndarray, n: int) -> None:
    """Warn of classes that too few samples cannot tell to be rare from being absent."""
    absent = np.flatnonzero(estimate * n < _FEWEST)
    # The largest frequency at which none of n samples is of a class in one of 20 draws.
    largest = 1 - 0.05 ** (1 / n)
    if len(absent) and largest > _NEGLIGIBLE:
        shown = ", ".join(map(str, absent[:5])) + ", ..." * (len(absent) > 5)
        warn_user(
            f"In {n} samples fewer than {_FEWEST:g} are estimated to be of {len(absent)} of the "
            f"{len(estimate)} classes (columns {shown}): so few samples cannot tell rare classes "
            f"from absent ones, and do not exclude frequencies up to {largest:.2g}. Estimate from "
            "more samples, or set the frequencies yourself."
        )


def _adjusted(p: np.ndarray, old: np.ndarray, new: np.ndarray) -> np.ndarray:
    joint = p * (new / old)
    return np.asarray(joint / joint.sum(axis=1, keepdims=True))


def _checked_prior(
    name: str, prior: ArrayLike, n_classes: int, *, may_be_zero: bool = False
) -> np.ndarray:
    """Check frequencies of classes, and return them in float64 with sum 1."""
    if isinstance(prior, (Mapping, Set)) or hasattr(prior, "iloc"):
        raise ValueError(
            f"{name} must be {n_classes} numbers in the order of the columns of probabilities; a "
            f"{type(prior).__name__} may have another order. Pass "
            f"[{name}[label] for label in classifier.classes_]."
        )
    values = as_numbers(name, prior)
    if values.shape != (n_classes,):
        raise ValueError(
            f"{name} must be of shape ({n_classes},), a frequency for each column of "
            f"probabilities; got {values.shape}."
        )
    least = "at least 0" if may_be_zero else "above 0"
    if (
        not ((values >= 0) if may_be_zero else (values > 0)).all()
        or not abs(values.sum() - 1) < 1e-3
    ):
        raise ValueError(
            f"{name} must be {least} for each class, with sum 1; got {values.tolist()} with sum "
            f"{values.sum():g}. Divide numbers of samples by their sum."
        )
    return np.asarray(values / values.sum())
