"""Random variations of training images, computed on the device of the images.

Volumes have an axis more than images, (n, C, D, H, W), and vary along all three.
"""

import math
from collections.abc import Sequence
from functools import reduce
from itertools import combinations, permutations

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = [
    "AUGMENTATIONS",
    "augment_images",
    "flipped_axes",
    "flips_along",
    "mirror_images",
    "seen_variations",
]

# _MAX_SHIFT is in the units of grid_sample, in which an image has the size 2: it is 5 %.
_MAX_ROTATION = math.radians(15.0)
_MAX_SCALING = 0.1
_MAX_SHIFT = 0.1


def _flip(x: Tensor, generator: torch.Generator, axes: tuple[int, ...]) -> Tensor:
    """Flip each of some axes of each image with probability 1/2."""
    for axis in axes:
        draws = torch.rand(len(x), *[1] * (x.ndim - 1), generator=generator, device=x.device)
        x = torch.where(draws < 0.5, x.flip(axis), x)
    return x


def _affine(x: Tensor, generator: torch.Generator, proportions: Sequence[int]) -> Tensor:
    """Rotate by up to 15 degrees, scale each axis by up to 10 %, shift by up to 5 %.

    Volumes are rotated by up to 15 degrees in each of the three planes; where one side of a plane
    is shorter, by as much less, because few slices would be turned out of the volume.
    """
    n, _, *size = x.shape
    n_axes = len(size)
    # The axes of theta are x, y, z: the last axis of the image comes first.
    planes = list(combinations(range(n_axes), 2))
    sides = list(reversed(proportions))
    uniform = 2 * torch.rand(len(planes) + 2 * n_axes, n, generator=generator, device=x.device) - 1
    angles, scales, shifts = uniform.split([len(planes), n_axes, n_axes])
    theta = reduce(
        torch.matmul,
        [
            _rotation(_max_rotation(plane, sides) * angle, plane, n_axes)
            for angle, plane in zip(angles, planes, strict=True)
        ],
    )
    # All axes of grid_sample go from -1 to 1, so a rotation needs the aspect ratios.
    aspects = [side / sides[0] for side in sides]
    for i, j in permutations(range(n_axes), 2):
        theta[:, i, j] *= aspects[j]
        theta[:, i, j] /= aspects[i]
    theta *= torch.exp(_MAX_SCALING * scales.flip(0)).T[:, None]
    theta = torch.cat([theta, _MAX_SHIFT * shifts.T[:, :, None]], dim=2)
    grid = F.affine_grid(theta, [n, 1, *size], align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def _max_rotation(plane: tuple[int, int], sides: Sequence[int]) -> float:
    """Return the largest angle in the plane of two axes of an image or a volume."""
    short, long = sorted(sides[axis] for axis in plane)
    return _MAX_ROTATION * (short / long if len(sides) == 3 else 1.0)


def _rotation(angles: Tensor, plane: tuple[int, int], n_axes: int) -> Tensor:
    """Make rotations in the plane of two axes, (n, n_axes, n_axes), from angles (n,)."""
    i, j = plane
    matrices = torch.eye(n_axes, device=angles.device).repeat(len(angles), 1, 1)
    matrices[:, i, i] = matrices[:, j, j] = angles.cos()
    matrices[:, i, j], matrices[:, j, i] = -angles.sin(), angles.sin()
    return matrices


AUGMENTATIONS = ("hflip", "flip", "affine", "hflip+affine", "flip+affine")


def flipped_axes(kind: str | None, n_spatial_dims: int) -> tuple[int, ...]:
    """Return the axes along which a kind of variation flips images.

    Parameters
    ----------
    kind : {"hflip", "flip", "affine", "hflip+affine", "flip+affine"} or None
        Variations.
    n_spatial_dims : int
        2 for images, 3 for volumes.

    Returns
    -------
    tuple of int
        Negative numbers of axes, the last axis first.
    """
    names = kind.split("+") if kind else []
    if "flip" in names:
        # Paper: Blood, Derma, Retina.
        return tuple(range(-1, -n_spatial_dims - 1, -1))
    return (-1,) if "hflip" in names else ()


def seen_variations(kind: str | None, axes: Sequence[int]) -> str | None:
    """Return the kind of variation with flips along some of its axes only.

    Parameters
    ----------
    kind : str or None
        Variations, see :func:`flipped_axes`.
    axes : sequence of int
        The first of its axes, those along which images are flipped.

    Returns
    -------
    str or None
        None if nothing is flipped.
    """
    if not kind or not axes:
        return None
    parts = kind.split("+")
    return "+".join("hflip" if part == "flip" and len(axes) == 1 else part for part in parts)


def flips_along(axes: Sequence[int]) -> list[tuple[int, ...]]:
    """Return all flips along some axes, each as its axes: first none, then those of one axis."""
    return [flip for n in range(len(axes) + 1) for flip in combinations(axes, n)]


def augment_images(
    x: Tensor,
    kind: str | None,
    n_varied: int,
    generator: torch.Generator,
    proportions: Sequence[int] | None = None,
) -> Tensor:
    """Vary images at random: flip all, and apply affine changes to the first `n_varied`.

    Affine changes repeat the border of an image, which would also appear in generated images.
    Samples at t = 1 train only the classification, so affine changes can be limited to them.

    Parameters
    ----------
    x : Tensor of shape (n, C, H, W)
        Images in [-1, 1].
    kind : {"hflip", "flip", "affine", "hflip+affine", "flip+affine"} or None
        Variations; None returns `x`. "hflip" flips the last axis, "flip" all spatial axes.
    n_varied : int
        Number of images, the first ones of the batch, that get affine changes.
    generator : torch.Generator
        On the device of `x`.
    proportions : sequence of int, optional
        Height and width of what the images show, in one unit, if they were resized to others: a
        rotation is one of what they show.

    Returns
    -------
    Tensor of shape (n, C, H, W)
    """
    x = _flip(x, generator, flipped_axes(kind, x.ndim - 2))
    if kind is not None and "affine" in kind.split("+") and n_varied:
        shown = x.shape[2:] if proportions is None else proportions
        x = torch.cat([_affine(x[:n_varied], generator, shown), x[n_varied:]])
    return x


def mirror_images(x: Tensor, kind: str | None) -> list[Tensor]:
    """Return images and all flips of them that a kind of variation can make.

    Parameters
    ----------
    x : Tensor of shape (n, C, H, W)
        Images.
    kind : {"hflip", "flip", "affine", "hflip+affine", "flip+affine"} or None
        Variations.

    Returns
    -------
    list of Tensor
        1, 2 or 4 batches, of volumes up to 8; the first has the unflipped images.
    """
    return [x.flip(flip) if flip else x for flip in flips_along(flipped_axes(kind, x.ndim - 2))]
