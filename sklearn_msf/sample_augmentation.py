"""Generated images to balance or enlarge training data."""

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.validation import check_is_fitted

from sklearn_msf._estimator.given_images import as_generated, check_like, check_pairs, mirrored
from sklearn_msf._estimator.parameters import draw_seed, make_random_state
from sklearn_msf._evaluation.external_classifier import check_judge, judge_agrees
from sklearn_msf._evaluation.labels import check_same_kind, label_indices
from sklearn_msf._evaluation.nearest_images import NearestImages
from sklearn_msf.runtime.user_warnings import warn_user

__all__ = ["augment_with_samples"]

# A generated image is a copy if its distance to a training image is at most this quantile of the
# distances of training images to their nearest neighbours,
_COPY_QUANTILE = 0.01
# and at most this fraction of its distance to the second nearest training image.
_COPY_RATIO = 0.8
# Largest number of images to generate for each image that is wanted.
_MAX_GENERATED_EACH = 4


def augment_with_samples(
    estimator: Any,
    X: ArrayLike,
    y: ArrayLike,
    *,
    n_per_class: int | Mapping[Any, int] | str = "balance",
    judge: Any = None,
    remove_copies: bool = True,
    n_steps: int = 5,
    guidance: float | None = None,
    random_state: Any = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Add generated images to training images.

    Parameters
    ----------
    estimator : object
        Fitted MedSymmFlow classifier that generates the images. Fit it on X and on no other images,
        so that generated images carry no information from held-out images into the training data.
    X : array-like of shape (n, ...)
        Training images in the form that the estimator accepts.
    y : array-like of shape (n,)
        Their labels.
    n_per_class : int, dict or "balance", default="balance"
        Number of generated images to add: the same number for every class, a number for each
        class in a dict, or with "balance" so many that every class is as large as the largest.
    judge : object, default=None
        Classifier with `predict` that was trained separately, on real images with the same labels.
        Generated images for which it predicts another class are left out.
    remove_copies : bool, default=True
        Whether to leave out copies of training images. An image is a copy if it, or a mirror image
        of it where training flipped images, is nearer to a training image than 99 % of the
        training images are to their nearest neighbour, and if this distance is at most 0.8 times
        the distance to the second nearest training image.
    n_steps : int, default=5
        Number of midpoint steps.
    guidance : float, default=None
        As in :meth:`~sklearn_msf.MedSymmFlowClassifier.sample`.
    random_state : int, RandomState instance or None, default=None
        Seed of the noise.

    Returns
    -------
    X_augmented : ndarray of shape (n + n_generated, ...)
        X, followed by the generated images. At most 4 images are generated for each one wanted;
        if too few of them pass, fewer are added, with a warning.
    y_augmented : ndarray of shape (n + n_generated,)
        y, followed by the classes of the generated images.

    Raises
    ------
    NotFittedError
        If the estimator is not fitted.
    ValueError
        For `n_per_class` that is not "balance" or integers >= 0, for labels and classes that the
        estimator was not fitted on, for different numbers of images and labels, for images whose
        shape or dtype differs from the generated ones, for a judge that lacks a class, and with
        `remove_copies` for fewer than two different images.

    Warns
    -----
    ConvergenceWarning
        As :meth:`~sklearn_msf.MedSymmFlowClassifier.sample`, once.
    UserWarning
        If fewer images are added than wanted, and if X has values that no generated image has, as
        fill values and hot pixels that `fit` left out of its range.
    """
    check_is_fitted(estimator, "classes_")
    X, y = check_pairs(X, y)
    check_same_kind("y", y, "the estimator", estimator.classes_)
    indices = label_indices(y, estimator.classes_)
    if unknown := set(y[indices < 0].tolist()):
        raise ValueError(
            f"y has labels {sorted(unknown, key=str)} that the estimator was not fitted on; leave "
            f"their images out. Its classes are {estimator.classes_.tolist()}."
        )
    wanted = _counts(n_per_class, indices, estimator.classes_)
    random_state = make_random_state(random_state)
    is_copy = None
    if any(wanted.values()):
        # Check before the slow generation.
        if judge is not None:
            check_judge(judge, np.array([label for label, n in wanted.items() if n]))
        check_like(X, estimator)
        comparable = _comparable(estimator, X)
        is_copy = _CopyFilter(comparable) if remove_copies else None
    images, labels = [X], [y]
    # The first call of `sample` may warn of too short a training, the others would repeat it.
    warned = False
    for label, n_wanted in wanted.items():
        kept: list[np.ndarray] = []
        n_generated = n_kept = 0
        while n_kept < n_wanted and n_generated < _MAX_GENERATED_EACH * n_wanted:
            n = min(n_wanted - n_kept, _MAX_GENERATED_EACH * n_wanted - n_generated)
            seed = draw_seed(random_state)
            with warnings.catch_warnings():
                if warned:
                    warnings.simplefilter("ignore", ConvergenceWarning)
                generated = estimator.sample(
                    label, n, n_steps=n_steps, guidance=guidance, random_state=seed
                )
            warned = True
            n_generated += n
            good = np.ones(n, dtype=bool)
            if judge is not None:
                good &= judge_agrees(judge, generated, np.full(n, label))
            if is_copy is not None:
                good &= ~np.any([is_copy(each) for each in mirrored(estimator, generated)], axis=0)
            kept.append(generated[good])
            n_kept += int(good.sum())
        if n_kept < n_wanted:
            warn_user(
                f"Class {label!r}: of {n_generated} generated images only {n_kept} passed, "
                f"{n_wanted} were "
                "wanted.",
            )
        images += kept
        labels.append(np.full(n_kept, label, dtype=estimator.classes_.dtype))
    return np.concatenate(images), np.concatenate(labels)


def _counts(n_per_class: Any, indices: np.ndarray, classes: np.ndarray) -> dict[Any, int]:
    """Count the images to add to each class; `indices` are those of the classes of the images."""
    names = classes.tolist()
    numbers = np.bincount(indices, minlength=len(names)).tolist()
    present = dict(zip(names, numbers, strict=True))
    if isinstance(n_per_class, str) and n_per_class == "balance":
        return {label: max(present.values()) - n for label, n in present.items()}
    counts = n_per_class if isinstance(n_per_class, Mapping) else dict.fromkeys(names, n_per_class)
    for label, n in counts.items():
        whole = isinstance(n, (int, np.integer)) and not isinstance(n, bool)
        if label not in names or not whole or n < 0:
            raise ValueError(
                "n_per_class must be 'balance', an integer >= 0, or such integers for classes out "
                f"of {names}; got {n_per_class!r}."
            )
    return {label: int(n) for label, n in counts.items()}


def _comparable(estimator: Any, X: np.ndarray) -> np.ndarray:
    """Return images within the range of generated ones; warn if they have values beyond it."""
    within = as_generated(estimator, X)
    if within is not X:
        image_format = estimator.model_.image_format
        warn_user(
            f"X has values from {X.min()} to {X.max()}, and generated images only those from "
            f"{image_format.low:g} to {image_format.high:g}: a classifier could tell real and "
            "generated images apart by that. Clip X to them for whatever learns from the result.",
        )
    return within


class _CopyFilter:
    """Find copies: images nearer to a training image than nearly all training images are.

    A copy must also be clearly nearer to it than to the second nearest training image, because
    typical images are near to many training images without being copies.
    """

    def __init__(self, X: np.ndarray):
        self._nearest = NearestImages(X.reshape(len(X), -1))
        self._distance = float(np.quantile(self._nearest.distances_apart(), _COPY_QUANTILE))

    def __call__(self, images: np.ndarray) -> np.ndarray:
        distances, ratios, _ = self._nearest(images.reshape(len(images), -1))
        return np.asarray((distances <= self._distance) & (ratios <= _COPY_RATIO))
