"""Checks of X, y and weights on the way into an estimator."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.model_selection import train_test_split
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, column_or_1d, validate_data

from sklearn_msf.data.images import flatten_images, learn_format, row_shape

__all__ = [
    "TrainingRows",
    "check_partial_classes",
    "check_prediction_rows",
    "check_training_rows",
    "hold_out",
    "split_rows",
]


@dataclass(frozen=True)
class TrainingRows:
    """Checked training data, without rows of zero weight, in an order of its own.

    Attributes
    ----------
    rows : ndarray of shape (n, n_features)
        Images as rows.
    labels : ndarray of shape (n,)
        Indices into `classes_`.
    weights : ndarray of shape (n,)
        Positive weights, class weights included.
    n_images : int
        Images of an epoch: the sum of integer sample weights, else the number of rows.
    """

    rows: np.ndarray
    labels: np.ndarray
    weights: np.ndarray
    n_images: int

    def take(self, indices: np.ndarray) -> "TrainingRows":
        """Keep some of the rows."""
        n_images = max(1, round(self.n_images * len(indices) / len(self.rows)))
        return TrainingRows(
            self.rows[indices], self.labels[indices], self.weights[indices], n_images
        )


def check_training_rows(
    estimator: BaseEstimator,
    X: Any,
    y: Any,
    sample_weight: Any,
    *,
    reset: bool,
    learn_classes: bool,
) -> TrainingRows:
    """Check everything fit takes; learn classes, shape and range, or compare with them.

    Parameters
    ----------
    estimator : BaseEstimator
        Gets `classes_`, `image_shape_`, `n_features_in_` and its image format.
    X, y, sample_weight : array-like
        As in fit.
    reset : bool
        Whether to learn shape and range of the images.
    learn_classes : bool
        Whether the labels of y are all classes there are.

    Returns
    -------
    TrainingRows
    """
    rows, shape = flatten_images(X)
    if not reset:
        # Named before scikit-learn counts the features of images that have another shape.
        _check_shape(estimator, shape)
    rows, y = validate_data(estimator, rows, _column(y), reset=reset, dtype="numeric")
    dtype, rows = rows.dtype, _numbers(rows)
    check_classification_targets(y)
    if sample_weight is not None and not np.asarray(sample_weight).any():
        raise ValueError("sample_weight must not be zero for every sample, got only zeros.")
    weights = _check_sample_weight(sample_weight, rows, dtype=np.float64, ensure_non_negative=True)
    kept = weights > 0
    if not kept.all():
        rows, y, weights = rows[kept], y[kept], weights[kept]
    _check_classes(estimator, np.unique(y), learn=learn_classes)
    if reset:
        _learn_images(estimator, rows, shape, dtype)
    else:
        _check_images(estimator, rows, shape)
    per_row = _class_weights(estimator, y, weights)
    used = per_row > 0
    if not used.any():
        raise ValueError(
            f"class_weight={estimator.class_weight!r} gives weight zero to every sample of y."
        )
    # Class weights change the shares of the classes, not the length of an epoch.
    sample_weights = weights[used]
    whole = bool((sample_weights == np.rint(sample_weights)).all())
    n_images = round(sample_weights.sum()) if whole else len(sample_weights)
    labels = np.searchsorted(estimator.classes_, y)[used]
    data = TrainingRows(rows[used], labels, sample_weights * per_row[used], n_images)
    return data.take(_own_order(data))


def check_prediction_rows(estimator: BaseEstimator, X: Any) -> np.ndarray:
    """Check X against the images of fit: rows of shape (n, n_features)."""
    rows, shape = flatten_images(X)
    # Named before scikit-learn counts the features of images that have another shape.
    _check_shape(estimator, shape)
    rows = _numbers(validate_data(estimator, rows, reset=False, dtype="numeric"))
    _check_images(estimator, rows, shape)
    return rows


def check_partial_classes(estimator: BaseEstimator, classes: Any, *, first: bool) -> None:
    """Fix the classes at the first call of partial_fit, compare with them later."""
    if estimator.class_weight == "balanced":
        raise ValueError(
            "class_weight='balanced' is not supported by partial_fit, which does not see all "
            "labels: pass a dict of weights or sample_weight."
        )
    if first:
        if classes is None:
            raise ValueError("classes must be passed on the first call to partial_fit.")
        estimator.classes_ = np.unique(classes)
        _check_n_classes(estimator.classes_)
    elif classes is not None and not np.array_equal(np.unique(classes), estimator.classes_):
        raise ValueError(
            f"classes={classes!r} is not the same as on the first call to partial_fit: "
            f"{estimator.classes_.tolist()}."
        )


def _check_n_classes(classes: np.ndarray) -> None:
    """Refuse to learn a single class."""
    if len(classes) < 2:
        raise ValueError(
            f"y must have at least 2 classes; got {len(classes)} class: {classes.tolist()}."
        )


def hold_out(
    data: TrainingRows, share: float, random_state: np.random.RandomState
) -> tuple[TrainingRows, TrainingRows]:
    """Split off a stratified validation part, as :func:`split_rows` does."""
    train, valid = split_rows("early_stopping", data, share, random_state)
    return data.take(train), data.take(valid)


def split_rows(
    purpose: str, data: TrainingRows, share: float, random_state: np.random.RandomState
) -> tuple[np.ndarray, np.ndarray]:
    """Split the numbers of the rows, stratified, into those to train on and a share of others.

    Raises
    ------
    ValueError
        Where a class has too few samples to be split.
    """
    try:
        train, valid = train_test_split(
            np.arange(len(data.rows)),
            test_size=share,
            stratify=data.labels,
            random_state=random_state,
        )
    except ValueError as error:
        raise ValueError(
            f"{purpose} cannot hold out a share of {share:.3g} of {len(data.rows)} samples by "
            f"class: {error}"
        ) from error
    return np.sort(train), np.sort(valid)


def _column(y: Any) -> Any:
    """Labels as one dimension; refuses several label columns."""
    if y is None:
        return None
    shape = np.asarray(y).shape
    if len(shape) == 2 and shape[1] > 1:
        raise ValueError(
            f"y must be of shape (n,) or (n, 1), got {shape}: several label columns "
            "(multi-label) are not supported."
        )
    return column_or_1d(y, warn=True) if len(shape) == 2 else y


def _numbers(rows: np.ndarray) -> np.ndarray:
    """Booleans as 8-bit numbers 0 and 1, anything else as it is."""
    return rows.astype(np.int8) if rows.dtype == bool else rows


def _check_classes(estimator: BaseEstimator, present: np.ndarray, *, learn: bool) -> None:
    if learn:
        _check_n_classes(present)
        estimator.classes_ = present
    unknown = np.setdiff1d(present, estimator.classes_)
    if len(unknown):
        raise ValueError(
            f"y has labels {unknown.tolist()} that are not among the classes "
            f"{estimator.classes_.tolist()}."
        )


def _class_weights(estimator: BaseEstimator, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weight of each row's class."""
    if isinstance(estimator.class_weight, Mapping):
        per_class = _weights_of_classes(estimator.class_weight, estimator.classes_)
        return per_class[np.searchsorted(estimator.classes_, y)]
    present = np.unique(y)
    per_class = compute_class_weight(
        estimator.class_weight, classes=present, y=y, sample_weight=weights
    )
    return per_class[np.searchsorted(present, y)]


def _weights_of_classes(class_weight: Mapping[Any, Any], classes: np.ndarray) -> np.ndarray:
    """Weights in the order of the classes, 1 for those not named.

    Classes that are not there are passed over: a fold may lack one.
    """
    labels = classes.tolist()
    known = any(label in labels for label in class_weight) or not class_weight
    try:
        values = np.array([class_weight.get(label, 1.0) for label in labels], dtype=float)
    except (TypeError, ValueError):
        known, values = False, np.ones(len(labels))
    if not known or not np.isfinite(values).all() or (values < 0).any() or not values.any():
        raise ValueError(
            f"class_weight must map classes out of {labels} to weights >= 0, not all zero, "
            f"got {class_weight!r}."
        )
    return values


def _learn_images(
    estimator: BaseEstimator, rows: np.ndarray, shape: tuple[int, ...] | None, dtype: np.dtype
) -> None:
    """Fix shape, layout and range of the images."""
    wanted = estimator.image_shape
    wanted = None if wanted is None else tuple(int(n) for n in wanted)
    if shape is not None and wanted is not None and _squeezed(shape) != _squeezed(wanted):
        raise ValueError(
            f"X has images of shape {shape}, but image_shape={wanted}; "
            "leave image_shape out for images that have their shape."
        )
    flat = shape is None
    shape = shape or wanted or row_shape(rows.shape[1])
    if math.prod(shape) != rows.shape[1]:
        raise ValueError(
            f"image_shape={wanted} has {math.prod(shape)} values, but X has "
            f"{rows.shape[1]} features."
        )
    estimator.image_shape_ = tuple(int(n) for n in shape)
    estimator._image_format = learn_format(rows, estimator.image_shape_, flat=flat, dtype=dtype)


def _check_images(
    estimator: BaseEstimator, rows: np.ndarray, shape: tuple[int, ...] | None
) -> None:
    """Refuse images unlike those of fit."""
    _check_shape(estimator, shape)
    estimator._image_format.check(rows)


def _check_shape(estimator: BaseEstimator, shape: tuple[int, ...] | None) -> None:
    fitted = estimator.image_shape_
    if shape is not None and _squeezed(shape) != _squeezed(fitted):
        raise ValueError(
            f"X has images of shape {shape}, but {type(estimator).__name__} was fitted on "
            f"images of shape {fitted}: resize them; of a single image pass X[np.newaxis]."
        )


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """(H, W) for (H, W, 1)."""
    return tuple(shape[:2]) if len(shape) == 3 and shape[2] == 1 else tuple(shape)


def _own_order(data: TrainingRows) -> np.ndarray:
    """Order by content, so that training does not depend on the order of the rows."""
    rows = np.ascontiguousarray(data.rows)
    as_bytes = rows.view(np.dtype((np.void, rows.dtype.itemsize * rows.shape[1]))).ravel()
    order = np.argsort(as_bytes, kind="stable")
    return order[np.argsort(data.labels[order], kind="stable")]
