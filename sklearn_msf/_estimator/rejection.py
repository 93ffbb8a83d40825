"""Rejection of uncertain predictions by a rule that is learned on calibration images."""

from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np

from sklearn_msf._estimator.parameters import Parameters, affecting
from sklearn_msf._evaluation.labels import as_labels, check_same_kind, label_indices
from sklearn_msf._evaluation.risk_control import certified_threshold, count_rows_to_certify
from sklearn_msf.model.classification import Prediction
from sklearn_msf.model.uncertainty import UNCERTAINTIES
from sklearn_msf.persistence.json_data import to_plain
from sklearn_msf.runtime.user_warnings import warn_user
from sklearn_msf.selective import accept_most_certain

__all__ = [
    "RejectionRule",
    "check_calibration",
    "check_reject_label",
    "check_rule",
    "learn_rule",
    "mark_rejected",
    "prediction_parameters",
    "rejects",
]

_DEFAULT_COVERAGE = 0.9
# Types that a reject label may have, by the kind of the dtype of the classes.
_SAME_TYPES: dict[str, tuple[type, ...]] = {
    "i": (Integral,),
    "u": (Integral,),
    "f": (Real,),
}


@dataclass(frozen=True)
class RejectionRule:
    """Rule that rejects predictions above a threshold of uncertainty.

    Attributes
    ----------
    threshold : float or None
        Accept a prediction if its uncertainty is at most this. None accepts no prediction: no
        threshold could be certified.
    kind : str
        Kind of the uncertainty.
    settings : dict
        Parameters of prediction with which the threshold was learned, as plain data.
    target_risk : float or None
        Fraction of wrong answers that is allowed among those given. This and what follows make
        the certificate one that can be checked later; None in rules of older files.
    confidence : float or None
        Probability that the fraction is kept to, over the choice of calibration images.
    n_images, n_accepted, n_wrong : int or None
        Number of calibration images, of those that the rule accepts, and of these the number that
        are answered wrongly.
    """

    threshold: float | None
    kind: str
    settings: dict[str, Any]
    target_risk: float | None = None
    confidence: float | None = None
    n_images: int | None = None
    n_accepted: int | None = None
    n_wrong: int | None = None


def prediction_parameters(p: Parameters) -> dict[str, Any]:
    """Return the parameters on which uncertainties depend, as plain data."""
    values = vars(p)
    return {name: to_plain(values[name]) for name in affecting("prediction") if name in values}


def check_calibration(
    y: Any,
    groups: np.ndarray | None,
    classes: np.ndarray,
    n_images: int,
    *,
    target_risk: float,
    confidence: float,
) -> np.ndarray:
    """Check the labels of calibration images, and that there are enough images or groups.

    Returns
    -------
    ndarray of shape (n_images,)
        Class indices.

    Raises
    ------
    ValueError
        For labels of another shape or kind, unknown labels or a single class, and if there are so
        few images, or groups, that no threshold can be certified even without an error.
    """
    labels = _calibration_labels(y, classes, n_images)
    n_needed = count_rows_to_certify(target_risk=target_risk, confidence=confidence)
    independent = f"{n_images} images"
    n_independent = n_images
    if groups is not None:
        n_independent = len(np.unique(groups))
        independent = f"images of {n_independent} groups, of which one image each counts"
    if n_independent < n_needed:
        raise ValueError(
            f"X_cal has {independent}; target_risk={target_risk} at "
            f"confidence={confidence} needs at least {n_needed}, even if every answer is right. "
            f"Use more {'images' if groups is None else 'groups'}, a larger target_risk or a lower "
            "confidence."
        )
    return labels


def learn_rule(
    prediction: Prediction,
    wrong: np.ndarray,
    independent: np.ndarray | slice,
    kind: str,
    settings: dict[str, Any],
    *,
    target_risk: float,
    confidence: float,
) -> RejectionRule:
    """Learn the rule that accepts most among those that are certified.

    Parameters
    ----------
    prediction : Prediction
        Prediction for the calibration images.
    wrong : ndarray of shape (n,), bool
        Which predicted labels are wrong.
    independent : ndarray of int or slice
        The images that the certificate counts: all, or one of each group.
    kind : str
        Kind of the uncertainty.
    settings : dict
        Parameters of prediction, to be kept in the rule.
    target_risk, confidence : float
        As in :func:`~sklearn_msf.selective.certified_threshold`.

    Returns
    -------
    RejectionRule
        If no threshold can be certified there is a warning, and the rule accepts nothing.

    Raises
    ------
    ValueError
        If every predicted label is right.
    """
    if not wrong.any():
        raise ValueError(
            f"y_cal has {len(wrong)} labels and no answer on X_cal is wrong, as on images "
            "that training saw: calibrate on others, or on more. A classifier that makes no "
            "errors needs no threshold: coverage=1.0 accepts all."
        )
    uncertainty = UNCERTAINTIES[kind](prediction)[independent]
    counted = wrong[independent]
    threshold = certified_threshold(
        counted, uncertainty, target_risk=target_risk, confidence=confidence
    )
    if threshold is None:
        warn_user(
            f"None can be certified: no threshold of kind={kind!r} keeps to "
            f"target_risk={target_risk} at confidence={confidence} on these {len(counted)} "
            "images. predict_with_reject will reject every image.",
        )
    accepted = uncertainty <= (-np.inf if threshold is None else threshold)
    return RejectionRule(
        threshold,
        kind,
        settings,
        target_risk=float(target_risk),
        confidence=float(confidence),
        n_images=len(counted),
        n_accepted=int(accepted.sum()),
        n_wrong=int(counted[accepted].sum()),
    )


def check_rule(rule: RejectionRule, kind: Any, settings: dict[str, Any]) -> None:
    """Refuse a rule that was learned for another kind or with other parameters of prediction."""
    if kind not in (None, rule.kind):
        raise ValueError(
            f"kind={kind!r} is not that of the threshold, {rule.kind!r}: leave it "
            "out, set coverage, or call fit_reject with it."
        )
    for name, value in settings.items():
        before = rule.settings.get(name)
        if value != before:
            raise ValueError(
                f"{name}={value!r} was {before!r} when fit_reject learned its threshold: set "
                "it back, or call fit_reject again."
            )


def rejects(
    uncertainty: np.ndarray, rule: RejectionRule | None, coverage: float | None
) -> np.ndarray:
    """Tell which images to reject: those above the threshold of a rule, or all but a fraction.

    An image whose uncertainty is not finite, as of a network whose values overflow, is rejected by
    every rule, and counts as the least certain one for a coverage.
    """
    known = np.isfinite(uncertainty)
    if rule is None:
        last = np.where(known, uncertainty, np.finfo(np.float64).max)
        return ~(
            accept_most_certain(last, _DEFAULT_COVERAGE if coverage is None else coverage) & known
        )
    if rule.threshold is None:
        return np.ones(len(uncertainty), dtype=bool)
    # Not ">", which is false for NaN.
    return ~(known & (uncertainty <= rule.threshold))


def mark_rejected(labels: np.ndarray, rejected: np.ndarray, reject_label: Any) -> Any:
    """Mask rejected labels, or replace them by `reject_label`."""
    if reject_label is None:
        return np.ma.MaskedArray(labels, mask=rejected)
    # As an array with its own dtype, because unsigned labels cannot hold -1.
    sentinel = np.asarray(reject_label)
    common = np.result_type(sentinel, labels)
    if labels.dtype.kind in "iu" and common.kind == "f":
        # No integer dtype can hold both.
        common = np.dtype(object)
    return np.where(rejected, sentinel.astype(common), labels.astype(common))


def check_reject_label(label: Any, classes: np.ndarray) -> None:
    """Refuse a label for rejected images that is a class or of another type."""
    known = classes.tolist()
    types = _SAME_TYPES.get(classes.dtype.kind, tuple({type(c) for c in known}))
    if classes.dtype.kind == "b":
        raise ValueError(
            f"reject_label={label!r}: boolean classes leave no label for rejected rows; use "
            "the masked array, or return_mask=True."
        )
    truth = isinstance(label, (bool, np.bool_)) and bool not in types
    if np.ndim(label) != 0 or not isinstance(label, types) or truth:
        raise ValueError(
            f"reject_label={label!r} must be a label of the type of the classes {known}; "
            "without one rejected rows are masked."
        )
    if label in known:
        raise ValueError(f"reject_label={label!r} is one of the classes {known}: choose another.")


def _calibration_labels(y: Any, classes: np.ndarray, n_images: int) -> np.ndarray:
    y = as_labels("y_cal", y)
    if y.shape not in ((n_images,), (n_images, 1)):
        raise ValueError(f"y_cal must be of shape ({n_images},), as X_cal; got {y.shape}.")
    y = y.ravel()
    check_same_kind("y_cal", y, "the estimator", classes)
    indices = label_indices(y, classes)
    unknown = sorted(set(y[indices < 0].tolist()), key=str)
    if unknown:
        raise ValueError(
            f"y_cal has labels {unknown} that are not among the classes "
            f"{classes.tolist()}: leave their images out, or fit with them."
        )
    if len(np.unique(indices)) < 2:
        raise ValueError(
            f"y_cal has the one class {y.tolist()[0]!r}: the risk for other classes stays unknown. "
            "Calibrate on images with the same distribution as future ones."
        )
    return indices
