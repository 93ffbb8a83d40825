"""Learning of a rejection rule on calibration images."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from sklearn_msf._estimator.rejection import RejectionRule
from sklearn_msf._estimator.risk_target import RiskTarget
from sklearn_msf._estimator.splitting import draw_one_of_each
from sklearn_msf._evaluation.groups import group_numbers
from sklearn_msf._evaluation.labels import as_labels, check_same_kind, label_indices
from sklearn_msf._evaluation.risk_control import (
    certified_threshold,
    count_class_rows_to_certify,
    count_rows_to_certify,
)
from sklearn_msf.model.classification import Prediction
from sklearn_msf.model.fitted_model import FittedModel
from sklearn_msf.model.uncertainty import UNCERTAINTIES
from sklearn_msf.runtime.user_warnings import warn_user
from sklearn_msf.selective import confusion_matrix_with_reject

__all__ = ["CalibrationLabels", "check_calibration", "images_that_count", "learn_rule"]


@dataclass(frozen=True, eq=False)
class CalibrationLabels:
    """Labels of calibration images, and which of the images a certificate counts.

    Attributes
    ----------
    indices : ndarray of shape (n,)
        Class index of each image.
    counted : ndarray of int
        Images that are independent of each other.
    """

    indices: np.ndarray
    counted: np.ndarray


def check_calibration(
    y: Any, groups: Any, model: FittedModel, n_images: int, target: RiskTarget
) -> CalibrationLabels:
    """Check that a rule could be certified on images with these labels and groups.

    Parameters
    ----------
    y, groups : array-like of shape (n_images,)
        Labels, and groups or None, as the user passed them.
    model : FittedModel
        The model.
    n_images : int
        Number of calibration images.
    target : RiskTarget
        What the rule has to keep to.

    Raises
    ------
    ValueError
        For labels or groups that cannot be used, and for so few images or groups that nothing
        could be certified even without an error.
    """
    numbers = None if groups is None else group_numbers("groups", groups, n_images)
    labels = _class_indices(y, model.classes, n_images, target)
    counted = images_that_count(labels, numbers, target, model.noise_seed)
    _check_numbers(labels[counted], model.classes, in_groups=groups is not None, target=target)
    return CalibrationLabels(labels, counted)


def _class_indices(y: Any, classes: np.ndarray, n_images: int, target: RiskTarget) -> np.ndarray:
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


def _check_numbers(
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
    calibration: CalibrationLabels,
    kind: str,
    settings: dict[str, Any],
    *,
    precision: str,
    classes: np.ndarray,
    target: RiskTarget,
) -> RejectionRule:
    """Learn the rule that accepts most among those that are certified.

    Parameters
    ----------
    prediction : Prediction
        Prediction for the calibration images.
    calibration : CalibrationLabels
        Labels of these images.
    kind : str
        Kind of the uncertainty.
    settings : dict
        Parameters of prediction, to be kept in the rule.
    precision : {"float32", "bfloat16"}
        Precision of the prediction, to be kept too.
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
    labels, counted = calibration.indices, calibration.counted
    if (prediction.class_indices == labels).all():
        warn_user(
            f"y_cal has {len(labels)} labels and no answer on X_cal is wrong, as on images that "
            "training saw: of those the certificate would be worth nothing. Calibrate on images "
            "that training did not see.",
        )
    uncertainty = UNCERTAINTIES[kind](prediction)[counted]
    labels, predicted = labels[counted], prediction.class_indices[counted]
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
        precision=precision,
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
