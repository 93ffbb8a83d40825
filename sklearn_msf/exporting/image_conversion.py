"""Images in the dtype, layout and range of X to tensors and back, in operations that ONNX has."""

import math

import numpy as np
import torch
from torch import Tensor

from sklearn_msf.data.images import ImageFormat

__all__ = ["exact", "from_field", "native_dtype", "to_field"]


def native_dtype(image_format: ImageFormat) -> np.dtype:
    """Return the dtype of X in the byte order of the machine.

    Raises
    ------
    ValueError
        For a dtype that ONNX lacks.
    """
    dtype = image_format.dtype.newbyteorder("=")
    if dtype not in _TORCH_DTYPES:
        raise ValueError(
            f"The model was fitted on X of dtype {image_format.dtype}, which ONNX lacks: fit on "
            "float32, uint8 or another common dtype."
        )
    return dtype


_TORCH_DTYPES = {
    np.dtype(name): getattr(torch, name)
    for name in (
        *("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"),
        *("float16", "float32", "float64"),
    )
}


def exact(value: float) -> Tensor:
    """Make a number a float64 tensor; as a plain number it would be rounded to float32."""
    return torch.tensor(value, dtype=torch.float64)


def to_field(X: Tensor, image_format: ImageFormat) -> Tensor:
    """Scale images as :meth:`ImageFormat.to_numpy_images` does.

    Parameters
    ----------
    X : Tensor of shape (n, H, W), (n, H, W, C) or (n, n_features)
        Images in the dtype, layout and range of the training X.
    image_format : ImageFormat
        Layout and range of the training X.

    Returns
    -------
    Tensor of shape (n, C, H, W), float32
        In [-1, 1], or beyond up to the limit at which values are clipped.
    """
    images = X.reshape(X.shape[0], *image_format.size, image_format.n_channels).movedim(-1, 1)
    if image_format.dtype == np.uint8:
        return ImageFormat.normalise(images)
    low, high = image_format.low, image_format.high
    # In float32 a large offset would cost the last digits.
    middle, half = exact((low + high) / 2), exact(max((high - low) / 2, 1e-300))
    scaled = (images.double() - middle) / half
    return scaled.clamp(-image_format.clip, image_format.clip).float()


def from_field(images: Tensor, image_format: ImageFormat) -> Tensor:
    """Convert images as :meth:`ImageFormat.from_tensor` does.

    Parameters
    ----------
    images : Tensor of shape (n, C, H, W)
        Values are clipped to [-1, 1].
    image_format : ImageFormat
        Layout and range of the training X.

    Returns
    -------
    Tensor of shape (n, H, W), (n, H, W, C) or (n, n_features)
        In the dtype, layout and range of the training X.
    """
    low, high, dtype = image_format.low, image_format.high, native_dtype(image_format)
    values = (images.clamp(-1, 1).movedim(1, -1).double() + 1) / 2 * exact(high - low) + exact(low)
    if dtype.kind in "iu":
        # float64 rounds the largest 64-bit integers up to a number that their dtype cannot hold.
        most = np.iinfo(dtype).max
        limit = float(most) if float(most) <= most else math.nextafter(float(most), 0)
        values = values.minimum(exact(limit))
    if dtype.kind in "iub":
        values = values.round()
    shape = (-1,) if image_format.flat else image_format.shape
    return values.reshape(values.shape[0], *shape).to(_TORCH_DTYPES[dtype])
