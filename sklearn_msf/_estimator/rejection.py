"""Rejection of uncertain predictions by a rule that is learned on calibration images."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np

from sklearn_msf._estimator.parameters import Parameters, affecting
from sklearn_msf._estimator.splitting import draw_one_of_each
from sklearn_msf._evaluation.confusion import checked_cost_matrix
from sklearn_msf._evaluation.labels import as_labels, check_same_kind, label_indices
from sklearn_msf._evaluation.risk_control import (
    certified_threshold,
    check_class_risks,
    check_risk,
    count_class_rows_to_certify,
    count_rows_to_certify,
)
from sklearn_msf._evaluation.validation import check_fraction
from sklearn_msf.model.classification import Prediction
from sklearn_msf.model.uncertainty import UNCERTAINTIES
from sklearn_msf.nn.precision import PRECISIONS
from sklearn_msf.persistence.archives import UNEXPECTED_VALUE_ERRORS, ArchiveError
from sklearn_msf.persistence.json_data import from_plain, to_plain
from sklearn_msf.runtime.user_warnings import warn_user
from sklearn_msf.selective import accept_most_certain, confusion_matrix_with_reject

__all__ = [
    "RejectionRule",
    "RiskTarget",
    "calibration_labels",
    "check_numbers",
    "check_reject_label",
    "check_rule",
    "checked_target",
    "images_that_count",
    "learn_rule",
    "mark_rejected",
    "prediction_parameters",
    "rejects",
    "warn_of_precision",
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
    target_risk : float, dict or None
        Fraction of wrong answers, or mean cost, that is allowed among the answers given. Or, for
        each label of the dict, the fraction of its images that may be answered wrongly. This and
        what follows make the certificate one that can be checked later; None in rules of older
        files.
    confidence : float or None
        Probability that the risk is kept to, over the choice of calibration images.
    cost_matrix : tuple of tuples of float, or None
        Cost of each answer (columns) for the images of each class (rows), if a mean cost is
        bounded.
    confusion_matrix : tuple of tuples of int, or None
        Calibration images that count, by class (rows) and by answer under this rule (columns, the
        last one for rejected images), as of
        :func:`~sklearn_msf.selective.confusion_matrix_with_reject`.
    precision : {"float32", "bfloat16"} or None
        Precision in which the uncertainties were computed; None in rules of older files.
    """

    threshold: float | None
    kind: str
    settings: dict[str, Any]
    target_risk: float | dict[Any, float] | None = None
    confidence: float | None = None
    cost_matrix: tuple[tuple[float, ...], ...] | None = None
    confusion_matrix: tuple[tuple[int, ...], ...] | None = None
    precision: str | None = None

    @property
    def n_images(self) -> int | None:
        """Number of calibration images that count."""
        return None if self.confusion_matrix is None else sum(map(sum, self.confusion_matrix))

    @property
    def n_accepted(self) -> int | None:
        """Number of these images that the rule accepts."""
        if self.confusion_matrix is None:
            return None
        return sum(sum(row[:-1]) for row in self.confusion_matrix)

    @property
    def n_wrong(self) -> int | None:
        """Number of accepted images that are answered wrongly."""
        if self.confusion_matrix is None:
            return None
        return sum(sum(row[:-1]) - row[i] for i, row in enumerate(self.confusion_matrix))

    def to_plain(self) -> dict[str, Any]:
        """Turn the rule into data that JSON can hold; the settings are plain already."""
        return {n: v if n == "settings" else to_plain(v) for n, v in vars(self).items()}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any], classes: np.ndarray) -> "RejectionRule":
        """Read the output of :meth:`to_plain`; older files have no certificate.

        Raises
        ------
        ArchiveError
            For a rule that cannot have been learned with these classes.
        """
        threshold, kind, settings = plain["threshold"], plain["kind"], plain["settings"]
        precision = plain.get("precision")
        certified = threshold is None or (type(threshold) is float and math.isfinite(threshold))
        known = kind in UNCERTAINTIES and precision in (None, *PRECISIONS)
        if not certified or not known or not isinstance(settings, dict):
            raise ArchiveError(f"The model has an invalid rejection rule: {plain!r}.")
        certificate = _certificate(plain, classes)
        return cls(threshold, kind, settings, precision=precision, **certificate)


def _certificate(plain: Mapping[str, Any], classes: np.ndarray) -> dict[str, Any]:
    """Read what a certificate can be checked by; None in files of older versions."""
    target, confidence, costs, counts = (
        from_plain(plain.get(name))
        for name in ("target_risk", "confidence", "cost_matrix", "confusion_matrix")
    )
    if target is None and confidence is None and costs is None and counts is None:
        return {}
    try:
        checked = checked_target(target, confidence, costs, classes)
        valid = counts is None or _are_counts(counts, len(classes))
    except UNEXPECTED_VALUE_ERRORS:
        valid = False
    if not valid:
        raise ArchiveError(f"The model has an invalid rejection rule: {plain!r}.")
    return {
        "target_risk": checked.risk,
        "confidence": checked.confidence,
        "cost_matrix": costs,
        "confusion_matrix": counts,
    }


def _are_counts(matrix: Any, n_classes: int) -> bool:
    """Tell whether a value is a confusion matrix with a column of rejected images."""
    rows = matrix if isinstance(matrix, tuple) else ()
    shaped = len(rows) == n_classes and all(
        isinstance(row, tuple) and len(row) == n_classes + 1 for row in rows
    )
    return shaped and all(type(n) is int and n >= 0 for row in rows for n in row)


@dataclass(frozen=True, eq=False)
class RiskTarget:
    """Risk that a rule has to keep to.

    Attributes
    ----------
    risk : float or dict
        As `target_risk` of :func:`~sklearn_msf.selective.certified_threshold`; the keys of a dict
        are class labels.
    confidence : float
        Probability that the bound holds.
    cost_matrix : ndarray of shape (K, K) or None
        Costs of which the mean is bounded; None bounds an error rate.
    """

    risk: float | dict[Any, float]
    confidence: float
    cost_matrix: np.ndarray | None = None


def checked_target(
    target_risk: Any, confidence: Any, cost_matrix: Any, classes: np.ndarray
) -> RiskTarget:
    """Check what :meth:`fit_reject` is asked to bound.

    Raises
    ------
    ValueError
        For a risk or confidence outside its range, labels that are not among the classes, a cost
        matrix that cannot be used, and one beside risks of classes.
    """
    check_fraction("confidence", confidence)
    if not isinstance(target_risk, Mapping):
        costs = None if cost_matrix is None else checked_cost_matrix(cost_matrix, len(classes))
        check_risk("target_risk", target_risk, None if costs is None else float(costs.max()))
        return RiskTarget(float(target_risk), float(confidence), costs)
    if cost_matrix is not None:
        raise ValueError(
            f"cost_matrix cannot be used with target_risk={target_risk!r}, which counts wrong "
            "answers: leave one of them out."
        )
    check_class_risks(target_risk)
    named = as_labels("target_risk", list(target_risk))
    check_same_kind("target_risk", named, "the estimator", classes)
    indices = label_indices(named, classes)
    if (indices < 0).any():
        raise ValueError(
            f"target_risk names {named[indices < 0].tolist()}, not among the classes "
            f"{classes.tolist()}."
        )
    labels = classes.tolist()
    risks = {labels[i]: float(r) for i, r in zip(indices, target_risk.values(), strict=True)}
    return RiskTarget(risks, float(confidence))


def prediction_parameters(p: Parameters) -> dict[str, Any]:
    """Return the parameters on which uncertainties depend, as plain data."""
    values = vars(p)
    return {name: to_plain(values[name]) for name in affecting("prediction") if name in values}


def calibration_labels(
    y: Any, classes: np.ndarray, n_images: int, target: RiskTarget
) -> np.ndarray:
    """Check the labels of calibration images.

    For risks of classes the images may be of one class: each class is tested by itself.

    Returns
    -------
    ndarray of shape (n_images,)
        Class indices.

    Raises
    ------
    ValueError
        For labels of another shape or kind, unknown labels, or a single class with one risk for
        all classes.
    """
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
    if not isinstance(target.risk, dict) and len(np.unique(indices)) < 2:
        raise ValueError(
            f"y_cal has the one class {y.tolist()[0]!r}: the risk for other classes stays unknown. "
            "Calibrate on images with the same distribution as future ones."
        )
    return indices


def images_that_count(
    labels: np.ndarray, groups: np.ndarray | None, target: RiskTarget, seed: int
) -> np.ndarray:
    """Choose calibration images that are independent of each other.

    Without groups these are all images. With groups it is one of each group, drawn at random; for
    risks of classes one of each class in each group, because each class is tested by itself.

    Parameters
    ----------
    labels : ndarray of shape (n,)
        Class indices.
    groups : ndarray of shape (n,), int, or None
        Number of each image's group.
    target : RiskTarget
        What the rule has to keep to.
    seed : int
        Seed of the draw.

    Returns
    -------
    ndarray of int
        Indices of the images.
    """
    if groups is None:
        return np.arange(len(labels))
    if isinstance(target.risk, dict):
        groups = groups * (labels.max() + 1) + labels
    return draw_one_of_each(groups, seed)


def check_numbers(
    labels: np.ndarray, classes: np.ndarray, *, in_groups: bool, target: RiskTarget
) -> None:
    """Refuse so few calibration images or groups that nothing can be certified.

    Parameters
    ----------
    labels : ndarray of shape (n,)
        Class indices of the images that count.
    classes : ndarray of shape (K,)
        Class labels.
    in_groups : bool
        Whether each of these images stands for a group.
    target : RiskTarget
        What the rule has to keep to.

    Raises
    ------
    ValueError
        If no threshold could be certified even without an error.
    """
    if isinstance(target.risk, dict):
        _check_numbers_of_classes(labels, classes, in_groups, target.risk, target.confidence)
        return
    risk = target.risk if target.cost_matrix is None else target.risk / target.cost_matrix.max()
    n_needed = count_rows_to_certify(target_risk=float(risk), confidence=target.confidence)
    found = f"{len(labels)} images"
    if in_groups:
        found = f"images of {len(labels)} groups, of which one image each counts"
    if len(labels) < n_needed:
        raise ValueError(
            f"X_cal has {found}; target_risk={target.risk} at "
            f"confidence={target.confidence} needs at least {n_needed}, even if every answer is "
            f"right. Use more {'groups' if in_groups else 'images'}, a larger target_risk or a "
            "lower confidence."
        )


def _check_numbers_of_classes(
    labels: np.ndarray,
    classes: np.ndarray,
    in_groups: bool,
    risks: dict[Any, float],
    confidence: float,
) -> None:
    counts = dict(zip(classes.tolist(), np.bincount(labels, minlength=len(classes)), strict=True))
    things = "groups" if in_groups else "images"
    for label, risk in risks.items():
        n_needed = count_class_rows_to_certify(target_risk=risk, confidence=confidence)
        if counts[label] < n_needed:
            raise ValueError(
                f"X_cal has {counts[label]} {things} with images of the class {label!r}; "
                f"target_risk[{label!r}]={risk} at confidence={confidence} needs at least "
                f"{n_needed}, even if every answer is right. Use more {things} of this class, a "
                "larger target_risk or a lower confidence."
            )


def learn_rule(
    prediction: Prediction,
    labels: np.ndarray,
    independent: np.ndarray,
    kind: str,
    settings: dict[str, Any],
    *,
    classes: np.ndarray,
    target: RiskTarget,
) -> RejectionRule:
    """Learn the rule that accepts most among those that are certified.

    Parameters
    ----------
    prediction : Prediction
        Prediction for the calibration images.
    labels : ndarray of shape (n,)
        Class indices.
    independent : ndarray of int
        The images that the certificate counts.
    kind : str
        Kind of the uncertainty.
    settings : dict
        Parameters of prediction, to be kept in the rule.
    classes : ndarray of shape (K,)
        Class labels.
    target : RiskTarget
        What the rule has to keep to.

    Returns
    -------
    RejectionRule
        If no threshold can be certified there is a warning, and the rule accepts nothing. There is
        a warning too if every predicted label is right.
    """
    if (prediction.class_indices == labels).all():
        warn_user(
            f"y_cal has {len(labels)} labels and no answer on X_cal is wrong, as on images that "
            "training saw: of those the certificate would be worth nothing. Calibrate on images "
            "that training did not see.",
        )
    uncertainty = UNCERTAINTIES[kind](prediction)[independent]
    labels, predicted = labels[independent], prediction.class_indices[independent]
    threshold = _certify(labels, predicted, uncertainty, classes, target)
    costs = target.cost_matrix
    if threshold is None:
        warn_user(
            f"None can be certified: no threshold of kind={kind!r} keeps to "
            f"target_risk={target.risk} at confidence={target.confidence}"
            f"{'' if costs is None else ' with this cost_matrix'} on these {len(labels)} "
            "images. predict_with_reject will reject every image.",
        )
    rejected = ~(uncertainty <= (-np.inf if threshold is None else threshold))
    matrix = confusion_matrix_with_reject(
        labels, np.ma.MaskedArray(predicted, mask=rejected), labels=np.arange(len(classes))
    )
    return RejectionRule(
        threshold,
        kind,
        settings,
        target_risk=target.risk,
        confidence=target.confidence,
        cost_matrix=None if costs is None else tuple(map(tuple, costs.tolist())),
        confusion_matrix=tuple(map(tuple, matrix.tolist())),
    )


def _certify(
    labels: np.ndarray,
    predicted: np.ndarray,
    uncertainty: np.ndarray,
    classes: np.ndarray,
    target: RiskTarget,
) -> float | None:
    """Find the threshold for one of the three kinds of target."""
    wrong, confidence = predicted != labels, target.confidence
    if isinstance(target.risk, dict):
        return certified_threshold(
            wrong,
            uncertainty,
            target_risk=target.risk,
            confidence=confidence,
            y_true=classes[labels],
        )
    if target.cost_matrix is None:
        return certified_threshold(
            wrong, uncertainty, target_risk=target.risk, confidence=confidence
        )
    costs, largest = target.cost_matrix[labels, predicted], float(target.cost_matrix.max())
    if np.isin(target.cost_matrix, (0, largest)).all():
        # A cost that is paid or not is an error, whose exact bound is tighter.
        return certified_threshold(
            costs > 0, uncertainty, target_risk=target.risk / largest, confidence=confidence
        )
    return certified_threshold(
        costs, uncertainty, target_risk=target.risk, confidence=confidence, max_loss=largest
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
        if name == "precision" and value == rule.precision:
            # What "auto" was.
            continue
        if value != before:
            raise ValueError(
                f"{name}={value!r} was {before!r} when fit_reject learned its threshold: set "
                "it back, or call fit_reject again."
            )


def warn_of_precision(rule: RejectionRule, precision: str) -> None:
    """Warn where the uncertainties of a rule were computed in another precision than this one.

    ``precision="auto"`` depends on the machine, so a model that is moved may compute in another
    one, and images near the threshold may be decided otherwise.
    """
    if rule.precision not in (None, precision):
        warn_user(
            f"fit_reject computed in {rule.precision}, and this machine computes in {precision}: "
            "images near the threshold may be decided otherwise, and what fit_reject promised is "
            "not proved here. Call fit_reject again on this machine."
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
