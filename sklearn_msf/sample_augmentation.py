"""Training data balanced or enlarged by generated images."""

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils.validation import check_is_fitted

from sklearn_msf._estimator.parameters import draw_seed, make_random_state
from sklearn_msf._evaluation.external_classifier import check_judge, judge_agrees
from sklearn_msf._evaluation.nearest_images import NearestImages

__all__ = ["augment_with_samples", "check_like", "check_pairs"]

# Nearer to a training image than this quantile of the distances between training images: a copy.
_COPY_QUANTILE = 0.01
# And that much nearer than to the next one.
_COPY_RATIO = 0.8
# How many images may be drawn for each that is wanted.
_MAX_DRAWN_EACH = 4


def augment_with_samples(
    estimator: Any,
    X: ArrayLike,
    y: ArrayLike,
    *,
    n_per_class: int | Mapping[Any, int] | str = "balance",
    judge: Any = None,
    remove_copies: bool = True,
    n_steps: int = 25,
    random_state: Any = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Add generated images to training images.

    Parameters
    ----------
    estimator : object
        Fitted MedSymmFlow classifier, which draws. Fit it on X: images that it saw and others
        must not mix.
    X : array-like of shape (n, ...)
        Training images as the estimator takes them.
    y : array-like of shape (n,)
        Their labels.
    n_per_class : int, dict or "balance", default="balance"
        Generated images to add: as many to every class, as many as a dict has for each, or so
        many that every class is as large as the largest.
    judge : object, default=None
        Classifier with `predict` that was trained by itself on real images with the same labels:
        what it takes for another class than the one asked for is left out.
    remove_copies : bool, default=True
        Whether to leave out what is nearer to a training image than training images are to each
        other, but for one in a hundred, and clearly nearer than to the next one.
    n_steps : int, default=25
        Steps of the ODE solver.
    random_state : int, RandomState instance or None, default=None
        Seed of the noise.

    Returns
    -------
    X_augmented : ndarray of shape (n + n_generated, ...)
        X, and behind it the generated images.
    y_augmented : ndarray of shape (n + n_generated,)
        y, and behind it the classes asked for.

    Raises
    ------
    NotFittedError
        For an estimator that is not fitted.
    ValueError
        For counts that are none, for labels and classes that the estimator does not know, for
        images of another shape or dtype than it draws, and for fewer than two different images
        where copies are to be removed.
    """
    check_is_fitted(estimator, "classes_")
    X, y = check_pairs(X, y)
    unknown = sorted(set(y.tolist()) - set(estimator.classes_.tolist()), key=str)
    if unknown:
        raise ValueError(
            f"y has labels {unknown} that the estimator was not fitted on; leave their images out. "
            f"Its classes are {estimator.classes_.tolist()}."
        )
    wanted = _counts(n_per_class, y, estimator.classes_)
    random_state = make_random_state(random_state)
    is_copy = None
    if any(wanted.values()):
        # Before the time is spent.
        if judge is not None:
            check_judge(judge, np.array([label for label, n in wanted.items() if n]))
        check_like(X, estimator)
        is_copy = _CopyFilter(X) if remove_copies else None
    images, labels = [X], [y]
    for label, n_wanted in wanted.items():
        kept: list[np.ndarray] = []
        n_drawn = n_kept = 0
        while n_kept < n_wanted and n_drawn < _MAX_DRAWN_EACH * n_wanted:
            n = min(n_wanted - n_kept, _MAX_DRAWN_EACH * n_wanted - n_drawn)
            drawn = estimator.sample(
                label, n, n_steps=n_steps, random_state=draw_seed(random_state)
            )
            n_drawn += n
            good = np.ones(n, dtype=bool)
            if judge is not None:
                good &= judge_agrees(judge, drawn, np.full(n, label))
            if is_copy is not None:
                good &= ~is_copy(drawn)
            kept.append(drawn[good])
            n_kept += int(good.sum())
        if n_kept < n_wanted:
            warnings.warn(
                f"Class {label!r}: of {n_drawn} images drawn only {n_kept} passed, {n_wanted} were "
                "wanted.",
                stacklevel=2,
            )
        images += kept
        labels.append(np.full(n_kept, label, dtype=estimator.classes_.dtype))
    return np.concatenate(images), np.concatenate(labels)


def check_pairs(X: ArrayLike, y: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Images and as many labels, (n,), as arrays.

    Raises
    ------
    ValueError
        For another number of labels.
    """
    X, y = np.asarray(X), np.asarray(y).ravel()
    if len(X) != len(y):
        raise ValueError(f"X has {len(X)} images and y {len(y)} labels: pass one for each image.")
    return X, y


def check_like(X: np.ndarray, estimator: Any) -> None:
    """Refuse images of another shape or dtype than the estimator draws.

    Raises
    ------
    ValueError
        With both.
    """
    drawn = estimator.sample(estimator.classes_[0], 1, n_steps=1, random_state=0)
    if X.shape[1:] != drawn.shape[1:] or X.dtype != drawn.dtype:
        raise ValueError(
            f"X has {X.dtype} images of shape {X.shape[1:]}, but the estimator draws {drawn.dtype} "
            f"of shape {drawn.shape[1:]}: pass them as those that it was fitted on."
        )


def _counts(n_per_class: Any, y: np.ndarray, classes: np.ndarray) -> dict[Any, int]:
    """Images to add to each class."""
    names = classes.tolist()
    present = {label: int(np.sum(y == label)) for label in names}
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


class _CopyFilter:
    """Tells images that are nearer to one training image than these are to each other.

    And not as near to another: images that are typical are near to many.
    """

    def __init__(self, X: np.ndarray):
        self._nearest = NearestImages(_rows(X))
        self._distance = float(np.quantile(self._nearest.distances_apart(), _COPY_QUANTILE))

    def __call__(self, images: np.ndarray) -> np.ndarray:
        distances, ratios, _ = self._nearest(_rows(images))
        return np.asarray((distances <= self._distance) & (ratios <= _COPY_RATIO))


def _rows(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1).astype(float)
