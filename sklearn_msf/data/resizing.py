"""Resizing of images, larger and smaller."""

from torch import Tensor
from torch.nn import functional as F

__all__ = ["resize_bilinear", "resize_images"]


def resize_images(images: Tensor, size: tuple[int, ...]) -> Tensor:
    """Resize images, (n, C, H, W) in [-1, 1], without aliasing."""
    if tuple(images.shape[2:]) == tuple(size):
        return images
    resized = F.interpolate(images, size=size, mode="bicubic", antialias=True, align_corners=False)
    return resized.clamp(-1, 1)


def resize_bilinear(images: Tensor, size: tuple[int, ...]) -> Tensor:
    """Resize images, (n, C, H, W) of any range, without aliasing by the filter "bilinear".

    It is Pillow's filter of that name. On a CPU uint8 images are rounded to bytes as Pillow does:
    to the same values where squares of 28, 64, 128 or 224 pixels become squares of 32, and to
    values that differ by at most 1 elsewhere.
    """
    if tuple(images.shape[2:]) == tuple(size):
        return images
    return F.interpolate(images, size=size, mode="bilinear", antialias=True, align_corners=False)
