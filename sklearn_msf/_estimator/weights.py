"""Weights of samples and classes, and the number of images in an epoch that follows from them."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.validation import _check_sample_weight

from sklearn_msf._evaluation.labels import as_labels, check_same_kind, label_indices
from sklearn_msf._evaluation.validation import scaled_weights
from sklearn_msf.runtime.user_warnings import warn_user

__all__ = [
    "WHERE_NUMBERED",
    "are_numbers_of_classes",
    "checked_weights",
    "class_weights",
    "indices_of_named",
    "relative_weights",
]

# Meta-estimators that pass y as the numbers of its classes.
WHERE_NUMBERED = (
    "Where scikit-learn fits on the numbers of classes (cross_val_predict with predict_proba, "
    "VotingClassifier, StackingClassifier, BaggingClassifier, CalibratedClassifierCV with "
    "'temperature' or ensemble=False)"
)
_IF_NUMBERED = f"{WHERE_NUMBERED}, pass class_weight='balanced' or sample_weight."

# Largest number of images in an epoch for each sample: more repetitions teach little in the time of
# an epoch, at whose ends the learning rate, checkpoints and callbacks are.
_MAX_REPETITIONS = 10


def relative_weights(weights: np.ndarray, *, of_training: bool = True) -> tuple[np.ndarray, int]:
    """Divide sample weights by what they have in common, and count the images of an epoch.

    Whole weights are divided by their greatest common divisor and count as repetitions, so that a
    sample of weight k and the sample k times are the same fit. Other weights are divided by their
    mean: they are shares of an epoch in which each sample counts once on average. Whole weights are
    shares too, with a warning, if an epoch would have more than 10 images for each sample.

    Parameters
    ----------
    weights : ndarray of shape (n,), float64
        Positive, finite weights.
    of_training : bool, default=True
        Whether epochs are made of the samples, so that a long one is warned of.

    Returns
    -------
    relative : ndarray of shape (n,), float64
    n_images : int
        Images in an epoch: the sum of weights that are repetitions, else n.
    """
    n_samples = len(weights)
    if (weights == np.rint(weights)).all():
        # As Python's integers, because numpy's end at 2**63.
        divisor = math.gcd(*(int(weight) for weight in np.unique(weights)))
        # Divisors of floats are exact as floats; numpy 1 would make objects of integers this large.
        weights = weights / float(divisor)
        with np.errstate(over="ignore"):
            n_images = weights.sum()
        if n_images <= _MAX_REPETITIONS * n_samples:
            return weights, round(n_images)
        if of_training:
            _warn_of_shares(weights, float(n_images))
    # A power of two, so that the sum is finite, and is rounded as without it.
    shares = scaled_weights(weights)
    return shares / shares.mean(), n_samples


def _warn_of_shares(weights: np.ndarray, n_images: float) -> None:
    n_samples = len(weights)
    warn_user(
        f"sample_weight: as repetitions, weights from {weights.min():g} to {weights.max():g} "
        f"would make an epoch of {n_images:.3g} images of {n_samples} samples, more than "
        f"{_MAX_REPETITIONS} for each. They are taken as shares of an epoch of {n_samples} "
        "images; if repetitions are meant, pass smaller whole numbers.",
    )


def checked_weights(sample_weight: Any, rows: np.ndarray) -> np.ndarray:
    """Return the sample weights in float64; 1 for each sample if there are none."""
    if np.ma.is_masked(sample_weight):
        raise ValueError(
            "sample_weight is a masked array with masked values, which would be taken for weights: "
            "fill them in, for example sample_weight.filled(0)."
        )
    if sample_weight is not None and not np.asarray(sample_weight).any():
        raise ValueError("sample_weight must not be zero for every sample, got only zeros.")
    weights: np.ndarray = _check_sample_weight(
        sample_weight, rows, dtype=np.float64, ensure_non_negative=True
    )
    # Under `assume_finite` scikit-learn does not look.
    finite = np.isfinite(weights)
    if not finite.all():
        raise ValueError(
            f"sample_weight contains NaN or infinity in {int((~finite).sum())} of {len(weights)} "
            "rows: give finite weights, and 0 to rows that must not count."
        )
    return weights


def class_weights(
    class_weight: Any, classes: np.ndarray, labels: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """Return the weight of the class of each sample, whose labels are class indices."""
    if isinstance(class_weight, Mapping):
        return _weights_of_classes(class_weight, classes)[labels]
    present, indices = np.unique(labels, return_inverse=True)
    with np.errstate(over="ignore"):
        per_class = compute_class_weight(
            class_weight, classes=present, y=labels, sample_weight=weights
        )
    if not np.isfinite(per_class).all():
        raise ValueError(
            f"sample_weight differs too much between classes for class_weight={class_weight!r}: "
            "leave rows of negligible weight out."
        )
    return per_class[indices]


def are_numbers_of_classes(classes: np.ndarray) -> bool:
    """Tell whether classes are 0 to K - 1, by which scikit-learn may have replaced labels."""
    return classes.dtype.kind in "iu" and np.array_equal(classes, np.arange(len(classes)))


def indices_of_named(class_weight: Mapping[Any, Any], classes: np.ndarray) -> np.ndarray:
    """Find the index of each class that `class_weight` names; -1 for those that y lacks."""
    names = list(class_weight)
    labels = as_labels("class_weight", names)
    try:
        check_same_kind("class_weight", names, "y", classes)
    except ValueError as error:
        numbered = f" {_IF_NUMBERED}" if are_numbers_of_classes(classes) else ""
        raise ValueError(f"{error}{numbered}") from error
    return label_indices(labels, classes)


def _weights_of_classes(class_weight: Mapping[Any, Any], classes: np.ndarray) -> np.ndarray:
    """Return weights in the order of the classes; 1 for classes that are not named.

    Weights of absent classes are ignored, because a cross-validation fold may lack a class. As in
    scikit-learn they are refused where another class is not named: then a name is wrong, or
    scikit-learn has numbered the classes, as `cross_val_predict` of probabilities and ensembles do.
    """
    named = indices_of_named(class_weight, classes)
    labels = classes.tolist()
    try:
        weights = np.array([float(weight) for weight in class_weight.values()])
    except (TypeError, ValueError):
        weights = np.full(len(named), np.nan)
    values = np.ones(len(labels))
    values[named[named >= 0]] = weights[named >= 0]
    known = (named >= 0).any() or not class_weight
    usable = np.isfinite(weights).all() and (weights >= 0).all()
    if not known or not usable or not values.any():
        raise ValueError(
            f"class_weight must map classes out of {labels} to finite weights >= 0, not all zero, "
            f"got {class_weight!r}."
        )
    unknown = [label for label, index in zip(class_weight, named, strict=True) if index < 0]
    unnamed = [label for index, label in enumerate(labels) if index not in named]
    if unknown and unnamed:
        raise ValueError(
            f"class_weight={class_weight!r} names {unknown}, which are not in y, and does not "
            f"name {unnamed}, which are. Name the classes of y. {_IF_NUMBERED}"
        )
    return values
