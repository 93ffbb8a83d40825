"""Images as users have them, to tensors of shape (n, C, H, W) in [-1, 1], and back."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sklearn_msf.persistence.json_data import number_dtype

__all__ = ["ImageFormat", "flatten_images", "learn_format", "row_shape"]

# Floats far outside the training range would drown the noise or overflow.
_CLIP = 8.0


def flatten_images(X: Any) -> tuple[Any, tuple[int, ...] | None]:
    """Flatten images to rows and tell their shape.

    Parameters
    ----------
    X : array-like of shape (n, H, W), (n, H, W, C) or (n, n_features)
        Images or rows.

    Returns
    -------
    rows : array-like of shape (n, n_features)
        X itself where it is already flat.
    shape : tuple of int or None
        (H, W) or (H, W, C) of images, None for rows.
    """
    if isinstance(X, (list, tuple)) and len(X) and np.ndim(X[0]) > 1:
        if len({np.shape(image) for image in X}) > 1:
            raise ValueError("X must hold images of one size, got a list of several sizes.")
        X = np.asarray(X)
    shape = tuple(getattr(X, "shape", ()))
    if len(shape) not in (3, 4):
        return X, None
    if 0 in shape:
        raise ValueError(
            f"X must hold at least one image of at least one pixel, got X of shape {shape} "
            f"with 0 sample(s) or pixels; a minimum of 1 is required."
        )
    return np.asarray(X).reshape(shape[0], -1), shape[1:]


def row_shape(n_features: int) -> tuple[int, int]:
    """Shape in which rows without `image_shape` are seen: one line of n_features pixels."""
    return (1, n_features)


@dataclass(frozen=True)
class ImageFormat:
    """What fit learned about the layout and the range of X.

    Attributes
    ----------
    shape : tuple of int
        (H, W) or (H, W, C) of one image.
    flat : bool
        Whether X came as rows of shape (n, n_features).
    dtype : numpy.dtype
        dtype of the training X.
    low, high : float
        Values that map to -1 and 1.
    """

    shape: tuple[int, ...]
    flat: bool
    dtype: np.dtype
    low: float
    high: float

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.shape[0], self.shape[1]

    @property
    def n_channels(self) -> int:
        """Number of channels."""
        return self.shape[2] if len(self.shape) == 3 else 1

    def to_plain(self) -> dict[str, Any]:
        """Turn the format into data that JSON holds."""
        return {
            "shape": list(self.shape),
            "flat": self.flat,
            "dtype": self.dtype.str,
            "low": self.low,
            "high": self.high,
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> "ImageFormat":
        """Make the format that :meth:`to_plain` described.

        Raises
        ------
        ValueError
            For anything else.
        """
        shape, flat = tuple(plain["shape"]), plain["flat"]
        low, high = float(plain["low"]), float(plain["high"])
        sizes = all(type(n) is int and n > 0 for n in shape)
        if not sizes or len(shape) not in (2, 3) or not isinstance(flat, bool):
            raise ValueError(f"shape={plain['shape']!r}, flat={flat!r} is no image format")
        if not math.isfinite(high - low) or low > high:
            raise ValueError(f"images from {low} to {high} are no image format")
        return cls(shape, flat, number_dtype(plain["dtype"]), low, high)

    def check(self, rows: np.ndarray) -> None:
        """Refuse rows in another number format than the training X.

        Raises
        ------
        ValueError
            For floats that cannot be 8-bit pixels where the model was fitted on uint8, and
            for uint8 where it was fitted on anything else.
        """
        fitted_on_bytes = self.dtype == np.uint8
        if fitted_on_bytes and rows.dtype != np.uint8:
            self._check_whole_pixels(rows)
        if not fitted_on_bytes and rows.dtype == np.uint8:
            raise ValueError(
                f"X is uint8, but the model was fitted on {self.dtype} in "
                f"[{self.low:g}, {self.high:g}]: convert X as the training images were."
            )
        if not fitted_on_bytes and (self.low, self.high) == (0.0, 1.0):
            self._check_near_unit_range(rows)

    @staticmethod
    def _check_near_unit_range(rows: np.ndarray) -> None:
        low, high = float(rows.min()), float(rows.max())
        if low < -_CLIP or high > _CLIP:
            raise ValueError(
                f"X is {rows.dtype} in [{low:g}, {high:g}], but the model was fitted on values "
                "in [0, 1]: scale X as the training images were, for example X / 255."
            )

    def _check_whole_pixels(self, rows: np.ndarray) -> None:
        low, high = float(rows.min()), float(rows.max())
        whole = np.issubdtype(rows.dtype, np.integer) or bool(np.all(rows == np.rint(rows)))
        if low < 0 or high > 255 or not whole or (high == 1.0 and rows.dtype.kind == "f"):
            raise ValueError(
                f"X is {rows.dtype} in [{low:g}, {high:g}], but the model was fitted on uint8 "
                "in [0, 255]: pass uint8, for example np.rint(255 * X).astype(np.uint8) for X "
                "in [0, 1]."
            )

    def to_numpy_images(self, rows: np.ndarray) -> np.ndarray:
        """Rows as a channels-first array, uint8 kept as it is and anything else float32.

        Parameters
        ----------
        rows : ndarray of shape (n, n_features)
            Checked rows.

        Returns
        -------
        ndarray of shape (n, C, H, W)
            uint8 in [0, 255], or float32 in [-1, 1] (training range).
        """
        height, width = self.size
        if self.dtype == np.uint8:
            values = rows.astype(np.uint8, copy=False)
        else:
            # In float64, so that large offsets do not cost the last digits.
            middle, half = (self.low + self.high) / 2, max((self.high - self.low) / 2, 1e-300)
            values = np.clip((rows.astype(np.float64) - middle) / half, -_CLIP, _CLIP)
            values = values.astype(np.float32)
        images = values.reshape(len(rows), height, width, self.n_channels)
        return np.ascontiguousarray(images.transpose(0, 3, 1, 2))

    @staticmethod
    def normalise(images: Tensor) -> Tensor:
        """uint8 or float images of (n, C, H, W) as float32 in [-1, 1]."""
        if images.dtype == torch.uint8:
            return images.float() / 127.5 - 1.0
        return images

    def to_unit_range(self, images: np.ndarray) -> np.ndarray:
        """Images in the range of X as float64 in [0, 1], for pictures."""
        width = self.high - self.low
        return np.clip((np.asarray(images, dtype=float) - self.low) / (width or 1), 0, 1)

    def from_tensor(self, images: Tensor) -> np.ndarray:
        """Images in [-1, 1] as arrays in the dtype, layout and range of the training X.

        Parameters
        ----------
        images : Tensor of shape (n, C, H, W)
            Values are clipped to [-1, 1].

        Returns
        -------
        ndarray of shape (n, H, W), (n, H, W, C) or (n, n_features)
        """
        values = images.clamp(-1, 1).permute(0, 2, 3, 1).double().cpu().numpy()
        values = (values + 1) / 2 * (self.high - self.low) + self.low
        if self.dtype.kind in "iub":
            values = np.rint(values)
        shape = (len(values), -1) if self.flat else (len(values), *self.shape)
        return values.astype(self.dtype).reshape(shape)


def learn_format(
    rows: np.ndarray, shape: tuple[int, ...], *, flat: bool, dtype: np.dtype | None = None
) -> ImageFormat:
    """Learn layout and range from the training X.

    uint8 has the range [0, 255]. Other numbers inside [0, 1] have the range [0, 1], and
    everything else the minimum and the maximum of the training X.

    Parameters
    ----------
    rows : ndarray of shape (n, n_features)
        Training images.
    shape : tuple of int
        (H, W) or (H, W, C).
    flat : bool
        Whether X came as rows.
    dtype : numpy.dtype, optional
        dtype of X where `rows` has another.

    Returns
    -------
    ImageFormat
    """
    if rows.dtype == np.uint8:
        low, high = 0.0, 255.0
    else:
        low, high = float(rows.min()), float(rows.max())
        if low >= 0.0 and high <= 1.0:
            low, high = 0.0, 1.0
    return ImageFormat(tuple(int(n) for n in shape), flat, dtype or rows.dtype, low, high)
