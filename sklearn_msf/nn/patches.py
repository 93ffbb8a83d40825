"""Patches: squares or cubes of pixels folded into channels, as pixel_unshuffle does for images."""

import math
from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

__all__ = ["count_positions", "fold_patches", "unfold_patches"]


def count_positions(size: Sequence[int], patch_size: int) -> int:
    """Count the patches that cover an image of a size (H, W), or a volume of (D, H, W)."""
    return math.prod(math.ceil(side / patch_size) for side in size)


def fold_patches(z: Tensor, patch_size: int) -> Tensor:
    """Fold the pixels of each patch into channels.

    Parameters
    ----------
    z : Tensor of shape (n, C, H, W) or (n, C, D, H, W)
        Sides are multiples of `patch_size`.
    patch_size : int
        Side P of a patch.

    Returns
    -------
    Tensor of shape (n, C * P**2, H / P, W / P) or (n, C * P**3, D / P, H / P, W / P)
        Of each channel first the pixels of a patch, the last axis changing fastest.
    """
    if z.ndim == 4:
        return F.pixel_unshuffle(z, patch_size)
    n, channels, *size = z.shape
    n_axes, coarse = len(size), [side // patch_size for side in size]
    z = z.reshape(n, channels, *[part for side in coarse for part in (side, patch_size)])
    # Channels last, as the convolution wants them.
    z = z.permute(0, *range(2, 2 + 2 * n_axes, 2), 1, *range(3, 3 + 2 * n_axes, 2))
    return z.reshape(n, *coarse, channels * patch_size**n_axes).movedim(-1, 1)


def unfold_patches(h: Tensor, patch_size: int) -> Tensor:
    """Unfold channels into the pixels of each patch: the inverse of :func:`fold_patches`."""
    if h.ndim == 4:
        return F.pixel_shuffle(h, patch_size)
    n, channels, *coarse = h.shape
    n_axes, channels = len(coarse), channels // patch_size ** len(coarse)
    h = h.movedim(1, -1).reshape(n, *coarse, channels, *[patch_size] * n_axes)
    pairs = [axis for i in range(n_axes) for axis in (1 + i, 2 + n_axes + i)]
    return h.permute(0, 1 + n_axes, *pairs).reshape(
        n, channels, *[side * patch_size for side in coarse]
    )
