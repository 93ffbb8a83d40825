"""Sizes to which images are resized for the encoders of a latent space."""

import math
from typing import Any

import numpy as np

from sklearn_msf.data.images import ImageFormat
from sklearn_msf.persistence.limits import check_resized_size

__all__ = ["as_sides", "size_for_autoencoder", "size_for_backbone"]


def size_for_autoencoder(
    asked: Any, image_format: ImageFormat, factor: int, only: tuple[int, int] | None = None
) -> tuple[int, int]:
    """Compute the size to which images are resized for an autoencoder.

    Parameters
    ----------
    asked : int, pair of int or None
        The parameter `encoded_size`; None is the images' own size, or the next larger multiple.
    image_format : ImageFormat
        Layout of the images.
    factor : int
        How many times larger than its latents the autoencoder's images are.
    only : tuple of int, optional
        The size to which the autoencoder resizes everything, if it has one.

    Raises
    ------
    ValueError
        If the size is not a multiple of the factor, or too large, or if the images are smaller than
        the factor.
    """
    if asked is None and only is not None:
        return only
    if asked is None:
        height, width = image_format.size
        if min(height, width) < factor:
            raise ValueError(
                f"X has images of {height} x {width} pixels, but the autoencoder needs at "
                f"least {factor} x {factor}: set encoded_size to enlarge them"
                f"{', and image_shape for rows' if image_format.flat else ''}."
            )
        return factor * math.ceil(height / factor), factor * math.ceil(width / factor)
    height, width = as_sides(asked)
    check_resized_size("encoded_size", (height, width), image_format.size)
    if height % factor or width % factor:
        raise ValueError(
            f"encoded_size={asked!r} must be a multiple of the autoencoder's factor {factor}."
        )
    return height, width


def size_for_backbone(
    asked: Any, image_format: ImageFormat, own: tuple[int, int] | None
) -> tuple[int, int]:
    """Compute the size to which images are resized for a backbone.

    Parameters
    ----------
    asked : int, pair of int or None
        The parameter `encoded_size` if it is meant for the backbone, which it is without an
        autoencoder.
    image_format : ImageFormat
        Layout of the images.
    own : tuple of int or None
        Size of the images that the backbone was trained on, if it names one.
    """
    height, width = (own or image_format.size) if asked is None else as_sides(asked)
    return height, width


def as_sides(size: Any) -> tuple[int, int]:
    """Return height and width of a size that may be one number for both."""
    height, width = np.broadcast_to(size, 2).tolist()
    return height, width
