"""Checks of X, y and weights that are passed to an estimator."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import column_or_1d, validate_data

from sklearn_msf._estimator.parameters import START_ANEW
from sklearn_msf._estimator.weights import (
    WHERE_NUMBERED,
    are_numbers_of_classes,
    checked_weights,
    class_weights,
    relative_weights,
)
from sklearn_msf._evaluation.groups import group_numbers
from sklearn_msf._evaluation.labels import (
    as_labels,
    check_same_kind,
    label_indices,
)
from sklearn_msf._evaluation.validation import scaled_weights
from sklearn_msf.data.axes import (
    NOUNS,
    as_array,
    axes_hint,
    check_channels_last,
    differing_sides,
    squeezed,
)
from sklearn_msf.data.images import (
    ImageFormat,
    check_finite,
    flatten_images,
    learn_format,
    row_shape,
)
from sklearn_msf.data.on_demand import ImagesOnDemand, RowsOnDemand
from sklearn_msf.runtime.user_warnings import warn_user, warnings_about

__all__ = [
    "OF_FEATURES",
    "TrainingSamples",
    "check_partial_classes",
    "check_prediction_rows",
    "check_training_samples",
    "check_validation_samples",
]


# NaN is refused by `check_finite`, whatever scikit-learn's `assume_finite` is.
_NUMBERS = {"dtype": "numeric", "ensure_all_finite": False}
# Fitted attributes that scikit-learn's validation sets.
OF_FEATURES = ("n_features_in_", "feature_names_in_")


class _OtherLabelsError(ValueError):
    """Labels are not among the known classes, which may be their numbers."""


@dataclass(frozen=True, eq=False)
class TrainingSamples:
    """Checked training data without samples of zero weight, sorted by class and content.

    Attributes
    ----------
    rows : RowsOnDemand of shape (n, n_features)
        Flattened images, which stay in the X of the user until they are asked for.
    labels : ndarray of shape (n,)
        Indices into `classes`.
    weights : ndarray of shape (n,)
        Positive weights relative to each other, class weights included.
    n_images : int
        Images in an epoch, as :func:`~sklearn_msf._estimator.weights.relative_weights` counts them.
    classes : ndarray of shape (K,)
        Sorted class labels.
    image_format : ImageFormat
        Layout and range of X.
    features : dict
        Fitted attributes of scikit-learn about the columns of X.
    groups : ndarray of shape (n,) or None
        Number of the group of each sample: samples of one group are never split.
    """

    rows: RowsOnDemand
    labels: np.ndarray
    weights: np.ndarray
    n_images: int
    classes: np.ndarray
    image_format: ImageFormat
    features: dict[str, Any]
    groups: np.ndarray | None = None

    @property
    def images(self) -> ImagesOnDemand:
        """The images in the form of tensors."""
        return ImagesOnDemand(self.image_format, self.rows)

    @property
    def images_of_an_epoch(self) -> ImagesOnDemand:
        """Each of the images as often as its weight says, so that weights equal repetitions."""
        cumulative = np.cumsum(self.weights) / np.sum(self.weights)
        places = (np.arange(self.n_images) + 0.5) / self.n_images
        repeated = np.searchsorted(cumulative, places).clip(max=len(self.weights) - 1)
        return ImagesOnDemand(self.image_format, self.rows.take(repeated))

    def take(self, indices: np.ndarray) -> "TrainingSamples":
        """Return some of the samples."""
        return replace(
            self,
            rows=self.rows.take(indices),
            labels=self.labels[indices],
            weights=self.weights[indices],
            groups=None if self.groups is None else self.groups[indices],
            n_images=max(1, round(self.n_images * len(indices) / len(self.rows))),
        )


def check_training_samples(
    estimator: BaseEstimator,
    X: Any,
    y: Any,
    sample_weight: Any,
    *,
    image_shape: Sequence[int] | None,
    n_spatial_dims: int,
    class_weight: Any,
    classes: np.ndarray | None,
    image_format: ImageFormat | None,
    groups: Any = None,
    of_training: bool = True,
) -> TrainingSamples:
    """Check the arguments of fit; learn classes, shape and range, or compare them with known ones.

    Parameters
    ----------
    estimator : BaseEstimator
        Used for scikit-learn's checks; stays as it is.
    X, y, sample_weight : array-like
        As in fit.
    image_shape, n_spatial_dims, class_weight :
        Parameters of the estimator.
    classes : ndarray of shape (K,) or None
        All known classes; None learns them from y.
    image_format : ImageFormat or None
        Known layout and range of the images; None learns them from X.
    groups : array-like, optional
        As in fit.
    of_training : bool, default=True
        Whether the samples are trained on; a validation set is only predicted.

    Returns
    -------
    TrainingSamples
    """
    goes_on = False
    if image_format is not None:
        goes_on = of_training and n_spatial_dims == image_format.n_spatial_dims
        n_spatial_dims = image_format.n_spatial_dims
    rows, shape, order = flatten_images(X, n_spatial_dims)
    whole_shape = _whole_shape(rows, shape)
    if image_format is None:
        _check_not_one_image(X, whole_shape, y, n_spatial_dims)
        check_channels_last(X, whole_shape, image_shape, n_spatial_dims)
    else:
        if goes_on:
            _check_same_image_shape(image_format, image_shape, are_rows=shape is None)
        # Before scikit-learn's check, whose message would name only the number of features.
        _check_shape(estimator, image_format, X, rows, shape)
    rows, y, features = _checked_arrays(estimator, rows, y, reset=image_format is None)
    dtype, rows = rows.dtype, _numbers(rows)
    # Before rows of weight zero are left out: a class of which nothing is learned stays a class.
    learns_classes = classes is None
    classes = _checked_classes(np.unique(y), classes)
    numbers = None if groups is None else group_numbers("groups", groups, len(y))
    weights = checked_weights(sample_weight, rows)
    every_row, kept = RowsOnDemand(rows, shape, order), np.flatnonzero(weights > 0)
    if len(kept) < len(rows):
        rows, y, weights = rows[kept], y[kept], weights[kept]
        if learns_classes:
            _check_n_classes(np.unique(y))
    if image_format is None:
        image_format = _learn_images(
            X, whole_shape, rows, shape, image_shape, dtype, n_spatial_dims
        )
    else:
        image_format.check(rows, dtype)
    # If some samples have no weight, this is a copy, which is not to meet the sorted one.
    del rows
    labels = label_indices(y, classes)
    used, combined, n_images = _combined_weights(
        weights, class_weight, classes, labels, of_training=of_training
    )
    kept = kept[used]
    samples = TrainingSamples(
        every_row.take(kept),
        labels[used],
        combined,
        n_images,
        classes,
        image_format,
        features,
        groups=None if numbers is None else numbers[kept],
    )
    if not combined.all():
        # The product of a small sample weight and a small class weight can be rounded to zero.
        samples = samples.take(np.flatnonzero(combined))
    return samples.take(_own_order(samples))


def _checked_arrays(
    estimator: BaseEstimator, rows: Any, y: Any, *, reset: bool
) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Check rows and labels as scikit-learn does; return them, and its attributes of columns."""
    # It sets attributes, of which the estimator itself must know nothing before fit has ended.
    shell = object.__new__(type(estimator))
    vars(shell).update(vars(estimator))
    y = _column(y)
    rows, y = validate_data(shell, rows, y, reset=reset, **_NUMBERS)
    # With scikit-learn's array_api_dispatch tensors stay tensors.
    rows = np.asarray(rows)
    check_finite(rows)
    y = as_labels("y", y)
    _check_no_objects("y", y)
    check_classification_targets(y)
    return rows, y, {name: vars(shell)[name] for name in OF_FEATURES if name in vars(shell)}


def _combined_weights(
    weights: np.ndarray,
    class_weight: Any,
    classes: np.ndarray,
    labels: np.ndarray,
    *,
    of_training: bool,
) -> tuple[np.ndarray, np.ndarray, int]:
    """Combine the weights of samples and of classes.

    Returns a mask of the samples that are used, their weights, and the images in an epoch.
    """
    per_sample = class_weights(class_weight, classes, labels, scaled_weights(weights))
    used = per_sample > 0
    if not used.any():
        raise ValueError(f"class_weight={class_weight!r} gives weight zero to every sample of y.")
    # Class weights change the fractions of the classes in an epoch; its length only if one is 0.
    relative, n_images = relative_weights(weights[used], of_training=of_training)
    return used, relative * scaled_weights(per_sample[used]), n_images


def check_validation_samples(
    estimator: BaseEstimator,
    X_val: Any,
    y_val: Any,
    sample_weight_val: Any,
    *,
    training: TrainingSamples,
    class_weight: Any,
) -> TrainingSamples:
    """Check the validation set of fit against the training samples.

    Parameters
    ----------
    estimator : BaseEstimator
        Used for scikit-learn's checks; stays as it is.
    X_val, y_val, sample_weight_val : array-like
        As in fit.
    training : TrainingSamples
        The samples of X and y.
    class_weight : dict, "balanced" or None
        Weights of the classes, as in the part that fit would hold out; "balanced" is for `y_val`.

    Returns
    -------
    TrainingSamples

    Raises
    ------
    ValueError
        For images of another shape or range than X, for labels that y lacks, and as in fit.

    Warns
    -----
    UserWarning
        If it has no image of some classes.
    """
    if y_val is None or X_val is None:
        missing, given = ("y_val", "X_val") if y_val is None else ("X_val", "y_val")
        raise ValueError(f"{missing} is missing: pass it together with {given}.")
    shell = object.__new__(type(estimator))
    # Names of the columns in an earlier fit say nothing of these.
    others = {name: value for name, value in vars(estimator).items() if name not in OF_FEATURES}
    vars(shell).update({**others, **training.features})
    try:
        # The checks name X, y and sample_weight.
        with warnings_about("The validation set X_val, y_val, here called X, y"):
            samples = check_training_samples(
                shell,
                X_val,
                y_val,
                sample_weight_val,
                image_shape=None,
                n_spatial_dims=training.image_format.n_spatial_dims,
                class_weight=class_weight,
                classes=training.classes,
                image_format=training.image_format,
                of_training=False,
            )
    except ValueError as error:
        numbered = ""
        if isinstance(error, _OtherLabelsError) and are_numbers_of_classes(training.classes):
            numbered = f" {WHERE_NUMBERED}, pass y_val as such numbers too."
        raise ValueError(
            f"The validation set X_val, y_val does not fit X, y: {error}{numbered}"
        ) from error
    absent = np.setdiff1d(training.labels, samples.labels)
    if len(absent):
        classes = training.classes[absent].tolist()
        warn_user(
            f"The validation set X_val, y_val has no image of the classes {classes}: what is "
            "chosen on it knows nothing of them."
        )
    return samples


def check_prediction_rows(
    estimator: BaseEstimator, X: Any, image_format: ImageFormat
) -> RowsOnDemand:
    """Check X against the images of fit, and return it as rows (n, n_features)."""
    rows, shape, order = flatten_images(X, image_format.n_spatial_dims)
    # Before scikit-learn's check, whose message would name only the number of features.
    _check_shape(estimator, image_format, X, rows, shape)
    rows = np.asarray(validate_data(estimator, rows, reset=False, **_NUMBERS))
    check_finite(rows)
    dtype, rows = rows.dtype, _numbers(rows)
    image_format.check(rows, dtype)
    return RowsOnDemand(rows, shape, order)


def check_partial_classes(given: Any, class_weight: Any, fitted: np.ndarray | None) -> np.ndarray:
    """Learn the classes in the first call of partial_fit, and compare them in later calls."""
    if isinstance(class_weight, str):
        raise ValueError(
            f"class_weight={class_weight!r} is not supported by partial_fit, which does not see "
            "all labels: pass a dict of weights or sample_weight."
        )
    if given is None:
        if fitted is None:
            raise ValueError("classes must be passed on the first call to partial_fit.")
        return fitted
    labels = as_labels("classes", given)
    _check_no_objects("classes", labels)
    classes = np.unique(labels)
    if fitted is None:
        _check_n_classes(classes)
        return classes
    check_same_kind("classes", classes, "the model that partial_fit goes on with", fitted)
    if not np.array_equal(classes, fitted):
        raise ValueError(
            f"classes={given!r} are not those of the model that partial_fit goes on with, "
            f"{fitted.tolist()}: leave classes out, or {START_ANEW}."
        )
    return fitted


def _check_n_classes(classes: np.ndarray) -> None:
    """Refuse fewer than two classes."""
    if len(classes) < 2:
        raise ValueError(
            f"y must have at least 2 classes; got {len(classes)} class: {classes.tolist()}."
        )


def _column(y: Any) -> Any:
    """Convert labels to one dimension; refuse several label columns.

    scikit-learn would make floats of the nullable integers and booleans of pandas, and cannot take
    numpy's text of variable width.
    """
    if y is None or not np.asarray(y).shape:
        return y
    labels = as_labels("y", y)
    if labels.ndim == 2 and labels.shape[1] > 1:
        raise ValueError(
            f"y must be of shape (n,) or (n, 1), got {labels.shape}: several label columns "
            "(multi-label) are not supported."
        )
    return column_or_1d(labels, warn=True) if labels.ndim == 2 else labels


def _check_no_objects(name: str, labels: np.ndarray) -> None:
    """Refuse objects that are no text, as in a joined table: scikit-learn's scores would too."""
    first = labels.ravel()[:1].tolist() if labels.dtype.kind == "O" else []
    if first and not isinstance(first[0], (str, bytes)):
        kind = type(first[0]).__name__
        wanted = kind if kind in ("int", "bool", "float") else "str"
        raise ValueError(
            f"Unknown label type: {name} holds objects of the type {kind}. Convert it, for example "
            f"by np.asarray({name}, dtype={wanted})."
        )


def _numbers(rows: np.ndarray) -> np.ndarray:
    """View booleans as 8-bit integers 0 and 1; refuse dates; return numbers unchanged."""
    if rows.dtype.kind not in "biuf":
        raise ValueError(
            f"X must hold numbers, got {rows.dtype}: leave dates and times out, or convert them, "
            "for example X.astype('int64')."
        )
    if rows.dtype != bool:
        return rows
    as_bytes = rows.view(np.uint8)
    # Any other byte than 0 is true: images of one bit that Pillow converts have 255.
    if as_bytes.size and as_bytes.max() > 1:
        as_bytes = (as_bytes != 0).view(np.uint8)
    return as_bytes.view(np.int8)


def _checked_classes(present: np.ndarray, classes: np.ndarray | None) -> np.ndarray:
    """Learn the classes if none are known, else refuse labels that are not among them."""
    if classes is None:
        _check_n_classes(present)
        return present
    try:
        check_same_kind("y", present, "the estimator", classes)
    except ValueError as error:
        raise _OtherLabelsError(str(error)) from error
    unknown = present[label_indices(present, classes) < 0]
    if len(unknown):
        # Numbers of classes begin with 0; others are labels as they are.
        kind = ValueError if 0 in present.tolist() else _OtherLabelsError
        raise kind(
            f"y has labels {unknown.tolist()} that are not among the classes {classes.tolist()}."
        )
    return classes


def _learn_images(
    X: Any,
    whole_shape: tuple[int, ...],
    rows: np.ndarray,
    shape: tuple[int, ...] | None,
    image_shape: Sequence[int] | None,
    dtype: np.dtype,
    n_spatial_dims: int,
) -> ImageFormat:
    """Learn shape, layout and range of the images."""
    images = f"{NOUNS[n_spatial_dims]}s"
    wanted = None if image_shape is None else tuple(int(n) for n in image_shape)
    hint = None if wanted is None else axes_hint(X, whole_shape, wanted, n_spatial_dims)
    is_other = shape is not None and wanted is not None and _differ(shape, wanted, n_spatial_dims)
    if is_other:
        raise ValueError(
            f"X has {images} of shape {shape}, but image_shape={wanted}; "
            f"{hint or f'leave image_shape out for {images} that have their shape.'}"
        )
    flat = shape is None
    shape = shape or wanted or row_shape(rows.shape[1], n_spatial_dims)
    if math.prod(shape) != rows.shape[1]:
        raise ValueError(
            f"image_shape={wanted} has {math.prod(shape)} values, but X has "
            f"{rows.shape[1]} features.{f' {hint}' if hint else ''}"
        )
    return learn_format(rows, shape, flat=flat, dtype=dtype, n_spatial_dims=n_spatial_dims)


def _whole_shape(rows: Any, shape: tuple[int, ...] | None) -> tuple[int, ...]:
    """Return the shape of X as one array."""
    if shape is not None:
        return (len(rows), *shape)
    return tuple(rows.shape if hasattr(rows, "shape") else np.asarray(rows).shape)


def _check_not_one_image(X: Any, shape: tuple[int, ...], y: Any, n_spatial_dims: int) -> None:
    """Refuse a single image with one label, but without an axis for the images."""
    if y is None or np.asarray(y).size != 1:
        return
    noun = NOUNS[n_spatial_dims]
    if len(shape) in (n_spatial_dims, n_spatial_dims + 1) and shape[0] > 1:
        raise ValueError(
            f"X has the shape {shape}, which is {shape[0]} {noun}s, but y has one label; of a "
            f"single {noun} pass {as_array(X)}[None]."
        )


def _check_shape(
    estimator: BaseEstimator,
    image_format: ImageFormat,
    X: Any,
    rows: Any,
    shape: tuple[int, ...] | None,
) -> None:
    """Refuse images of another shape than those of fit, with what to write if that is known."""
    fitted, n_spatial_dims = image_format.shape, image_format.n_spatial_dims
    images, whole_shape = f"{NOUNS[n_spatial_dims]}s", _whole_shape(rows, shape)
    hint = axes_hint(X, whole_shape, fitted, n_spatial_dims)
    is_other = shape is not None and _differ(shape, fitted, n_spatial_dims)
    if hint is not None or is_other:
        has = f"the shape {whole_shape}" if shape is None else f"{images} of shape {shape}"
        sides = differing_sides(shape or (), fitted, n_spatial_dims)
        resized = f"resized if need be ({sides})" if sides else "resized if need be"
        raise ValueError(
            f"X has {has}, but {type(estimator).__name__} was fitted on {images} of shape "
            f"{fitted}: {hint or f'pass {images} of that shape, {resized}.'}"
        )


def _check_same_image_shape(
    image_format: ImageFormat, image_shape: Sequence[int] | None, *, are_rows: bool
) -> None:
    """Refuse to go on with another parameter image_shape than that of the first fit."""
    n_dims = image_format.n_spatial_dims
    wanted = None if image_shape is None else tuple(int(n) for n in image_shape)
    # Without it rows are images of one line.
    default = row_shape(math.prod(image_format.shape), n_dims)
    shape = wanted or (default if are_rows and image_format.flat else None)
    if shape is not None and _differ(shape, image_format.shape, n_dims):
        raise ValueError(
            f"Training cannot go on with image_shape={wanted}: the model was fitted on "
            f"{NOUNS[n_dims]}s of shape {image_format.shape}. Set it back, or {START_ANEW}."
        )


def _differ(shape: tuple[int, ...], wanted: tuple[int, ...], n_spatial_dims: int) -> bool:
    return squeezed(shape, n_spatial_dims) != squeezed(wanted, n_spatial_dims)


def _own_order(samples: TrainingSamples) -> np.ndarray:
    """Order by class and content, so that training does not depend on the order of X."""
    if samples.groups is None:
        order = samples.rows.order_of_content()
    else:
        # Equal images of several groups are not interchangeable.
        by_group = np.argsort(samples.groups, kind="stable")
        order = by_group[samples.rows.take(by_group).order_of_content()]
    return order[np.argsort(samples.labels[order], kind="stable")]
