"""Images that a user gives beside those that a fitted estimator generates."""

import warnings
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.exceptions import ConvergenceWarning

from sklearn_msf._evaluation.labels import label_column
from sklearn_msf.data.augmentation import flips_along
from sklearn_msf.data.stacking import stack_images

__all__ = ["as_generated", "check_like", "check_pairs", "mirrored"]


def check_pairs(X: ArrayLike, y: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Convert images and labels, (n,), to arrays.

    Raises
    ------
    ValueError
        If the numbers of images and labels differ, and for labels of several kinds.
    """
    X, y = np.asarray(stack_images(X)), label_column("y", y)
    if len(X) != len(y):
        raise ValueError(f"X has {len(X)} images and y {len(y)} labels: pass one for each image.")
    return X, y


def check_like(X: np.ndarray, estimator: Any) -> None:
    """Refuse images whose shape or dtype differs from the images that the estimator generates.

    Raises
    ------
    ValueError
        If they differ; the message names both.
    """
    with warnings.catch_warnings():
        # Those who draw the images that are asked for are warned of too short a training.
        warnings.simplefilter("ignore", ConvergenceWarning)
        generated = estimator.sample(estimator.classes_[0], 1, n_steps=1, random_state=0)
    if X.shape[1:] != generated.shape[1:] or X.dtype != generated.dtype:
        raise ValueError(
            f"X has {X.dtype} images of shape {X.shape[1:]}, but the estimator generates "
            f"{generated.dtype} of shape {generated.shape[1:]}: pass X in the format of its "
            "training images."
        )


def as_generated(estimator: Any, images: np.ndarray) -> np.ndarray:
    """Return images with their values clipped to those that generated images can have.

    Fill values and hot pixels, which the range leaves out, would hide what is alike.
    """
    model = getattr(estimator, "model_", None)
    return images if model is None else model.image_format.within_range(images)


def mirrored(estimator: Any, images: np.ndarray) -> list[np.ndarray]:
    """Return images and all flips of them that training made, in the shape of the images.

    A field that memorises an image draws it flipped as often as training has flipped it.
    """
    model = getattr(estimator, "model_", None)
    if model is None:
        return [images]
    shape, n_axes = model.image_format.shape, model.image_format.n_spatial_dims
    whole = images.reshape(len(images), *shape)
    # Axes are counted from the last one of an image without channels.
    flips = flips_along(model.ever_flipped_axes)
    flips = [tuple(1 + n_axes + a for a in axes) for axes in flips]
    return [np.flip(whole, axes).reshape(images.shape) for axes in flips]
