"""Arrays as pictures: values in [0, 1], any number of channels as RGB, volumes as slices."""

from collections.abc import Mapping, Sequence, Set
from typing import Any

import numpy as np

from sklearn_msf.data.images import ImageFormat

__all__ = ["central_slices", "check_ordered", "checked_names", "in_colour", "pictures_of"]


def checked_names(classes: np.ndarray, class_names: Sequence[str] | None) -> Sequence[str]:
    """Return a name for each class, the labels by default; refuse another number of names."""
    if class_names is None:
        return [str(label) for label in classes]
    check_ordered("class_names", class_names)
    if len(class_names) != len(classes):
        raise ValueError(f"class_names has {len(class_names)} names for {len(classes)} classes.")
    return class_names


def check_ordered(name: str, names: Any) -> None:
    """Refuse names without the order of the classes.

    Raises
    ------
    ValueError
        For a dict, a set and text; the message says what to pass.
    """
    if isinstance(names, (Mapping, Set, str)):
        raise ValueError(
            f"{name} must be a sequence in the order of the classes, such as a list, not a "
            f"{type(names).__name__}: pass [names[label] for label in classes], with the classes "
            "in their order, such as classifier.classes_."
        )


def in_colour(images: np.ndarray) -> np.ndarray:
    """Convert images to RGB; the last dimension has any number of channels."""
    if images.shape[-1] == 1:
        return np.repeat(images, 3, axis=-1)
    colours = images[..., :3]
    missing = 3 - colours.shape[-1]
    return np.pad(colours, [(0, 0)] * (images.ndim - 1) + [(0, missing)], constant_values=0.5)


def central_slices(images: np.ndarray, n_spatial_dims: int) -> np.ndarray:
    """Put the central slices of each volume below each other; return images as they are.

    Parameters
    ----------
    images : ndarray of shape (n, H, W), (n, H, W, C), (n, D, H, W) or (n, D, H, W, C)
        Images in [0, 1].
    n_spatial_dims : {2, 3}
        2 for images, 3 for volumes.

    Returns
    -------
    ndarray of shape (n, h, w) or (n, h, w, C)
        Of volumes the slices across depth, height and width. White lines are below each slice and
        to the right, and a wider one is below the volume.
    """
    if n_spatial_dims == 2:
        return images
    sides = images.shape[1 : 1 + n_spatial_dims]
    slices = [images.take(side // 2, axis=axis) for axis, side in enumerate(sides, start=1)]
    width = 1 + max(part.shape[2] for part in slices)

    def framed(part: np.ndarray, n_below: int, n_right: int) -> np.ndarray:
        of_channels = [(0, 0)] * (part.ndim - 3)
        return np.pad(part, [(0, 0), (0, n_below), (0, n_right), *of_channels], constant_values=1)

    below = np.concatenate([framed(part, 1, width - part.shape[2]) for part in slices], axis=1)
    return framed(below, 2, 0)


def pictures_of(image_format: ImageFormat, images: np.ndarray) -> np.ndarray:
    """Convert images in the layout and range of X to pictures in [0, 1]."""
    unit = image_format.to_unit_range(images).reshape(len(images), *image_format.shape)
    return central_slices(unit, image_format.n_spatial_dims)
