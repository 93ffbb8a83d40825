"""Conversion of the user's images to tensors of shape (n, C, H, W) in [-1, 1], and back.

Volumes have an axis more, (n, D, H, W) or (n, D, H, W, C) in X and (n, C, D, H, W) as tensors.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sklearn_msf.data.axes import NOUNS, check_n_axes
from sklearn_msf.data.parts import parts_of
from sklearn_msf.data.ranges import (
    CLIP,
    ValueRange,
    check_flatness,
    check_scale,
    is_whole,
    learn_range,
    warn_of_low_contrast,
    warn_of_several_scales,
    warn_of_unused_range,
)
from sklearn_msf.data.stacking import stack_images
from sklearn_msf.persistence.json_data import number_dtype

__all__ = [
    "FlatImages",
    "ImageFormat",
    "check_finite",
    "flatten_images",
    "learn_format",
    "row_shape",
]

# Up to this value uint8 images for training, or those to predict, look as if they were masks.
_BYTES_WITHOUT_CONTRAST, _BYTES_OF_MASKS = 5, 1


class FlatImages(NamedTuple):
    """Images as rows, and what to make images of them again.

    Attributes
    ----------
    rows : array-like of shape (n, n_features)
        The pixels of each image in the order in which they lie in memory.
    shape : tuple of int or None
        (H, W) or (H, W, C) of images, None for rows.
    order : tuple of int
        :func:`memory_order` of the images; () for rows.
    """

    rows: Any
    shape: tuple[int, ...] | None
    order: tuple[int, ...]


def flatten_images(X: Any, n_spatial_dims: int = 2) -> FlatImages:
    """Flatten images to rows.

    Parameters
    ----------
    X : array-like of shape (n, H, W), (n, H, W, C) or (n, n_features)
        Images or rows.
    n_spatial_dims : {2, 3}, default=2
        2 for images, 3 for volumes, (n, D, H, W) or (n, D, H, W, C).

    Returns
    -------
    FlatImages
        The rows are X itself if it is already flat, a list of rows as one array, and else a view
        of X if possible.
    """
    X = stack_images(X)
    shape = tuple(getattr(X, "shape", ()))
    check_n_axes(shape, n_spatial_dims)
    if len(shape) <= 2:
        return FlatImages(X, None, ())
    if 0 in shape:
        raise ValueError(
            f"X must hold at least one image of at least one pixel, got X of shape {shape} "
            f"with 0 sample(s) or pixels; a minimum of 1 is required."
        )
    # Stacking keeps the order in which the images of a list lie in memory.
    images = np.asarray(X)
    order = memory_order(images)
    return FlatImages(images.transpose(0, *order).reshape(shape[0], -1), shape[1:], order)


def memory_order(images: np.ndarray) -> tuple[int, ...]:
    """Order the axes of the images from the one with the longest way in memory to the shortest.

    Parameters
    ----------
    images : ndarray of shape (n, H, W) or (n, H, W, C), for volumes (n, D, H, W) or (n, D, H, W, C)
        The images.

    Returns
    -------
    tuple of int
        (1, 2), (1, 2, 3), ... for images that lie in memory one pixel after the other, other orders
        for arrays in Fortran's order or with exchanged axes.
    """
    strides = images.strides
    return tuple(sorted(range(1, len(strides)), key=lambda axis: -abs(strides[axis])))


def check_finite(rows: np.ndarray) -> None:
    """Refuse images with NaN or infinity.

    Parameters
    ----------
    rows : ndarray of shape (n, n_features)
        Images as rows, of any numbers.

    Raises
    ------
    ValueError
        With the number of such images and the first of them.
    """
    if rows.dtype.kind != "f":
        return
    # The sum is finite if all values are, unless it overflows: then each is looked at.
    with np.errstate(over="ignore", invalid="ignore"):
        total = rows.sum(dtype=np.float64)
    if np.isfinite(total):
        return
    bad = np.concatenate([~np.isfinite(rows[part]).all(axis=1) for part in parts_of(rows)])
    if bad.any():
        first = int(np.argmax(bad))
        what = "NaN" if np.isnan(rows[first]).any() else "infinity"
        raise ValueError(
            f"Input X contains {what}: {int(bad.sum())} of {len(rows)} images have values that "
            f"are not finite, first image {first}. Leave these images out, or fill the values in."
        )


def row_shape(n_features: int, n_spatial_dims: int = 2) -> tuple[int, ...]:
    """Return the image shape of rows without `image_shape`: one line of n_features pixels."""
    return (*[1] * (n_spatial_dims - 1), n_features)


@dataclass(frozen=True)
class ImageFormat:
    """Layout and range of X, as learned by fit.

    Attributes
    ----------
    shape : tuple of int
        (H, W) or (H, W, C) of one image; (D, H, W) or (D, H, W, C) of a volume.
    flat : bool
        Whether X came as rows of shape (n, n_features).
    dtype : numpy.dtype
        dtype of the training X.
    low, high : float
        Values that map to -1 and 1.
    clip : float
        Limit for scaled values, except of uint8: 8, or 1 if the training X had outliers.
    n_spatial_dims : {2, 3}
        2 for images, 3 for volumes.
    """

    shape: tuple[int, ...]
    flat: bool
    dtype: np.dtype
    low: float
    high: float
    clip: float = CLIP
    n_spatial_dims: int = 2

    def __post_init__(self) -> None:
        """Refuse a range in which images cannot be scaled, learned or read from a file."""
        width, twice_the_middle = self.high - self.low, self.high + self.low
        if not math.isfinite(width) or not math.isfinite(twice_the_middle) or width < 0:
            raise ValueError(
                f"X has values from {self.low:g} to {self.high:g}, a range beyond what float64 "
                "holds: divide X, for example X / 1e10, or leave out the pixels that are so large."
            )

    @property
    def size(self) -> tuple[int, ...]:
        """Height and width; of volumes depth, height and width."""
        return self.shape[: self.n_spatial_dims]

    @property
    def n_channels(self) -> int:
        """Number of channels."""
        return math.prod(self.shape[self.n_spatial_dims :])

    def to_plain(self) -> dict[str, Any]:
        """Turn the format into data that JSON can hold."""
        plain = {
            "shape": list(self.shape),
            "flat": self.flat,
            "dtype": self.dtype.str,
            "low": self.low,
            "high": self.high,
        }
        # Files of models of images without outliers stay as they were.
        unusual = {"clip": (self.clip, CLIP), "n_spatial_dims": (self.n_spatial_dims, 2)}
        return plain | {name: value for name, (value, usual) in unusual.items() if value != usual}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> "ImageFormat":
        """Make a format from the output of :meth:`to_plain`.

        Raises
        ------
        ValueError
            If the data do not describe an image format.
        """
        shape, flat = plain["shape"], plain["flat"]
        low, high = float(plain["low"]), float(plain["high"])
        n_dims = plain.get("n_spatial_dims", 2)
        if type(n_dims) is not int or n_dims not in NOUNS:
            raise ValueError(f"n_spatial_dims={n_dims!r} is not a valid number of spatial axes")
        is_list = isinstance(shape, list) and len(shape) in (n_dims, n_dims + 1)
        sizes = is_list and all(type(n) is int and n > 0 for n in shape)
        if not sizes or not isinstance(flat, bool):
            raise ValueError(f"shape={shape!r}, flat={flat!r} is not a valid image format")
        clip = plain.get("clip", CLIP)
        if clip not in (1.0, CLIP):
            raise ValueError(f"clip={clip!r} is not a valid limit of scaled images")
        dtype = number_dtype(plain["dtype"])
        return cls(tuple(shape), flat, dtype, low, high, float(clip), n_dims)

    def check(self, rows: np.ndarray, dtype: np.dtype | None = None) -> None:
        """Refuse or warn of rows whose number format or scale differs from the training X.

        Parameters
        ----------
        rows : ndarray of shape (n, n_features)
            Images.
        dtype : numpy.dtype, optional
            dtype of X if `rows` has a different one.

        Raises
        ------
        ValueError
            If the model was fitted on uint8 and the values cannot be 8-bit pixels, if it was
            fitted on another dtype and the rows are uint8, or if the values are on another scale,
            see :func:`~sklearn_msf.data.ranges.check_scale`.
        """
        dtype, learned = dtype or rows.dtype, ValueRange(self.dtype, self.low, self.high)
        if self.dtype == np.uint8 and rows.dtype == np.uint8:
            if not warn_of_low_contrast(rows, _BYTES_OF_MASKS):
                found = ValueRange(rows.dtype, float(rows.min()), float(rows.max()))
                check_flatness(rows, found, learned)
            return
        if self.dtype == np.uint8:
            self._check_whole_pixels(rows, dtype)
        if rows.dtype == np.uint8:
            raise ValueError(
                f"X is uint8, but the model was fitted on {learned}: "
                "convert X as the training images were."
            )
        check_scale(rows, dtype, learned, has_outliers=self.clip != CLIP)

    def _check_whole_pixels(self, rows: np.ndarray, dtype: np.dtype) -> None:
        found = ValueRange(dtype, float(rows.min()), float(rows.max()))
        if found.low < 0 or found.high > 255 or not is_whole(rows) or found.high == 1.0:
            raise ValueError(
                f"X is {found}, but the model was fitted on uint8 "
                "in [0, 255]: pass uint8, for example np.rint(255 * X).astype(np.uint8) for X "
                "in [0, 1]."
            )

    def to_numpy_images(self, rows: np.ndarray) -> np.ndarray:
        """Convert rows to a channels-first array.

        Parameters
        ----------
        rows : ndarray of shape (n, n_features)
            Checked rows.

        Returns
        -------
        ndarray of shape (n, C, H, W)
            uint8 in [0, 255] if the model was fitted on uint8. Otherwise float32, scaled so that
            the training range becomes [-1, 1], and clipped to [-clip, clip].
        """
        if self.dtype == np.uint8:
            values = rows.astype(np.uint8, copy=False)
        else:
            values = np.empty(rows.shape, dtype=np.float32)
            for part in parts_of(rows):
                values[part] = self._scaled(rows[part])
        images = values.reshape(len(rows), *self.size, self.n_channels)
        # torch takes only arrays that can be written to, which a file mapped into memory is not.
        return np.require(np.moveaxis(images, -1, 1), requirements=["C", "W"])

    def _scaled(self, rows: np.ndarray) -> np.ndarray:
        """Scale rows so that the training range becomes [-1, 1], in float64."""
        # In float32 a large offset would cost the last digits.
        middle, half = (self.low + self.high) / 2, max((self.high - self.low) / 2, 1e-300)
        values = rows.astype(np.float64)
        values -= middle
        values /= half
        return np.clip(values, -self.clip, self.clip, out=values)

    @staticmethod
    def normalise(images: Tensor) -> Tensor:
        """Convert uint8 images to float32 in [-1, 1], and return float images as they are."""
        if images.dtype == torch.uint8:
            return images.float() / 127.5 - 1.0
        return images

    def to_unit_range(self, images: np.ndarray) -> np.ndarray:
        """Convert images in the range of X to float64 in [0, 1], for plots."""
        width = self.high - self.low
        return np.clip((np.asarray(images, dtype=float) - self.low) / (width or 1), 0, 1)

    def within_range(self, images: np.ndarray) -> np.ndarray:
        """Return images of X with the values that generated images can have, clipped to them.

        Outliers that were left out of the range are values which no generated image has.
        """
        if not images.size or (images.min() >= self.low and images.max() <= self.high):
            return images
        # In their own dtype, in which they are smallest.
        low, high = np.array([self.low, self.high]).astype(images.dtype)
        return np.clip(images, low, high)

    def from_tensor(self, images: Tensor) -> np.ndarray:
        """Convert images in [-1, 1] to arrays in the dtype, layout and range of the training X.

        Parameters
        ----------
        images : Tensor of shape (n, C, H, W)
            Values are clipped to [-1, 1].

        Returns
        -------
        ndarray of shape (n, H, W), (n, H, W, C) or (n, n_features)
        """
        made = self.empty(len(images))
        for part in parts_of(images):
            values = images[part].clamp(-1, 1).movedim(1, -1).cpu().double().numpy()
            values = (values + 1) / 2 * (self.high - self.low) + self.low
            if self.dtype.kind in "iub":
                values = np.rint(values)
            made[part] = _in_dtype(values, self.dtype).reshape(len(values), *made.shape[1:])
        return made

    def empty(self, n_images: int) -> np.ndarray:
        """Make an array for so many images in the dtype and layout of the training X."""
        shape = (math.prod(self.shape),) if self.flat else self.shape
        return np.empty((n_images, *shape), self.dtype)


def _in_dtype(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Convert float64 values in the range of a dtype to that dtype."""
    most = np.iinfo(dtype).max if dtype.kind in "iu" else 0
    if float(most) <= most:
        return values.astype(dtype)
    # float64 rounds the largest 64-bit integers up to a number that their dtype cannot hold.
    beyond = values >= float(most)
    converted = np.where(beyond, 0.0, values).astype(dtype)
    converted[beyond] = most
    return converted


def learn_format(
    rows: np.ndarray,
    shape: tuple[int, ...],
    *,
    flat: bool,
    dtype: np.dtype | None = None,
    n_spatial_dims: int = 2,
) -> ImageFormat:
    """Learn layout and range from the training X.

    The range of uint8 is [0, 255]. For other dtypes it is [0, 1] if all values are in [0, 1],
    and otherwise goes from the minimum to the maximum of the training X. Outliers are left out, see
    :func:`~sklearn_msf.data.ranges.inlying_range`.

    Parameters
    ----------
    rows : ndarray of shape (n, n_features)
        Training images.
    shape : tuple of int
        (H, W) or (H, W, C) of images, (D, H, W) or (D, H, W, C) of volumes.
    flat : bool
        Whether X came as rows.
    dtype : numpy.dtype, optional
        dtype of X if `rows` has a different one.
    n_spatial_dims : {2, 3}, default=2
        2 for images, 3 for volumes.

    Returns
    -------
    ImageFormat
    """
    low, high, clip = 0.0, 255.0, CLIP
    if rows.dtype == np.uint8:
        if not warn_of_low_contrast(rows, _BYTES_WITHOUT_CONTRAST):
            warn_of_unused_range(rows, low, high)
    else:
        low, high, clip = learn_range(rows)
        warn_of_several_scales(rows, rows.max(axis=1))
    shape = tuple(int(n) for n in shape)
    return ImageFormat(shape, flat, dtype or rows.dtype, low, high, clip, int(n_spatial_dims))
