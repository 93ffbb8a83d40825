"""Axes of tensors: samples, then channels, then the spatial axes.

Images, features and masks have the shape (n, C, H, W), those of volumes (n, C, D, H, W). Where a
docstring says (n, C, H, W), volumes have the additional axis.
"""

import torch
from torch import Tensor

__all__ = ["align_axes", "channels_last", "spatial_axes"]


def spatial_axes(x: Tensor) -> tuple[int, ...]:
    """Return the numbers of the spatial axes: (2, 3) of images, (2, 3, 4) of volumes."""
    return tuple(range(2, x.ndim))


def align_axes(values: Tensor, x: Tensor) -> Tensor:
    """Append axes of length 1 to values of shape (n,) or (n, C), to broadcast them over `x`."""
    return values[(..., *[None] * (x.ndim - values.ndim))]


def channels_last(n_axes: int) -> torch.memory_format:
    """Return the layout for convolutions of tensors or weights with so many axes."""
    return torch.channels_last_3d if n_axes == 5 else torch.channels_last
