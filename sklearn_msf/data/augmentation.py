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
    "augment_each",
    "augment_images",
    "flipped_axes",
    "flips_along",
    "mirror_images",
    "seen_variations",
    "varies_beyond_flips",
]

# _MAX_SHIFT is in the units of grid_sample, in which an image has the size 2: it is 5 %.
_MAX_ROTATION = math.radians(15.0)
_MAX_SCALING = 0.1
_MAX_SHIFT = 0.1


def _flip(x: Tensor, axes: tuple[int, ...], draws: Sequence[Tensor]) -> Tensor:
    """Flip each of some axes of each image with probability 1/2."""
    for axis, of_axis in zip(axes, draws, strict=True):
        x = torch.where(of_axis.view(-1, *[1] * (x.ndim - 1)) < 0.5, x.flip(axis), x)
    return x


def _draw_flips(
    n: int, axes: tuple[int, ...], generator: torch.Generator, device: torch.device
) -> list[Tensor]:
    """Draw for each axis uniform numbers in [0, 1), (n,)."""
    return [torch.rand(n, generator=generator, device=device) for _ in axes]


def _draw_changes(n: int, n_axes: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """Draw uniform numbers in [0, 1) for affine changes, (angles + scales + shifts, n)."""
    n_planes = math.comb(n_axes, 2)
    return torch.rand(n_planes + 2 * n_axes, n, generator=generator, device=device)


def _affine_matrices(draws: Tensor, proportions: Sequence[int]) -> Tensor:
    """Rotate by up to 15 degrees, scale each axis by up to 10 %, shift by up to 5 %.

    Volumes are rotated by up to 15 degrees in each of the three planes; where one side of a plane
    is shorter, by as much less, because few slices would be turned out of the volume.
    """
    n_axes = len(proportions)
    # The axes of theta are x, y, z: the last axis of the image comes first.
    planes = list(combinations(range(n_axes), 2))
    sides = list(reversed(proportions))
    angles, scales, shifts = (2 * draws - 1).split([len(planes), n_axes, n_axes])
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
    return torch.cat([theta, _MAX_SHIFT * shifts.T[:, :, None]], dim=2)


def _move(x: Tensor, theta: Tensor) -> Tensor:
    """Move the pixels of images as affine matrices say, and repeat the border."""
    return F.grid_sample(x, _grid(theta, x.shape[2:]), padding_mode="border", align_corners=False)


def _grid(theta: Tensor, size: Sequence[int]) -> Tensor:
    """Find where in the image each pixel of the result lies, (n, H, W, 2).

    The positions are those of torch's affine_grid, but for rounding. That one multiplies a matrix
    of all positions, which takes longer than to move the image.
    """
    n_axes = len(size)
    shape = [len(theta), *[1] * n_axes, n_axes]
    grid = theta[:, :, n_axes].reshape(shape)
    # x comes first in theta and is the last axis of the image. Only the last sum is large.
    for i, side in enumerate(reversed(size)):
        centres = (2 * torch.arange(side, device=theta.device) + 1) / side - 1
        along = centres.view([-1 if axis == n_axes - i else 1 for axis in range(n_axes + 2)])
        grid = grid + along * theta[:, :, i].reshape(shape)
    return grid


def _max_rotation(plane: tuple[int, int], sides: Sequence[int]) -> float:
    """Return the largest angle in the plane of two axes of an image or a volume."""
    short, long = sorted(sides[axis] for axis in plane)
    return _MAX_ROTATION * (short / long if len(sides) == 3 else 1.0)


def _rotation(angles: Tensor, plane: tuple[int, int], n_axes: int) -> Tensor:
    """Make rotations in the plane of two axes, (n, n_axes, n_axes), from angles (n,)."""
    i, j = plane
    matrices = torch.eye(n_axes, dtype=angles.dtype, device=angles.device).repeat(len(angles), 1, 1)
    matrices[:, i, i] = matrices[:, j, j] = angles.cos()
    matrices[:, i, j], matrices[:, j, i] = -angles.sin(), angles.sin()
    return matrices


AUGMENTATIONS = ("hflip", "flip", "affine", "hflip+affine", "flip+affine")
_FLIPS = ("hflip", "flip")


def _parts(kind: str | None) -> list[str]:
    """Split a kind of variation into those that it consists of."""
    return kind.split("+") if kind else []


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
    parts = _parts(kind)
    if "flip" in parts:
        # Paper: Blood, Derma, Retina.
        return tuple(range(-1, -n_spatial_dims - 1, -1))
    return (-1,) if "hflip" in parts else ()


def varies_beyond_flips(kind: str | None) -> bool:
    """Tell whether a kind of variation changes images otherwise than by flips.

    Parameters
    ----------
    kind : {"hflip", "flip", "affine", "hflip+affine", "flip+affine"} or None
        Variations.
    """
    return any(part not in _FLIPS for part in _parts(kind))


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
    return "+".join("hflip" if part == "flip" and len(axes) == 1 else part for part in _parts(kind))


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
    axes = flipped_axes(kind, x.ndim - 2)
    x = _flip(x, axes, _draw_flips(len(x), axes, generator, x.device))
    if _has_affine_changes(kind) and n_varied:
        draws = _draw_changes(min(n_varied, len(x)), x.ndim - 2, generator, x.device)
        theta = _affine_matrices(draws, x.shape[2:] if proportions is None else proportions)
        x = torch.cat([_move(x[:n_varied], theta), x[n_varied:]])
    return x


def augment_each(
    x: Tensor, kind: str | None, generators: Sequence[torch.Generator], proportions: Sequence[int]
) -> Tensor:
    """Vary images at random, each by numbers of its own: the others of a batch change nothing.

    Parameters
    ----------
    x : Tensor of shape (n, C, H, W)
        Images in [-1, 1], on the CPU.
    kind : {"hflip", "flip", "affine", "hflip+affine", "flip+affine"} or None
        Variations, see :func:`augment_images`.
    generators : sequence of torch.Generator
        One for each image.
    proportions : sequence of int
        Height and width of what the images show, see :func:`augment_images`.

    Returns
    -------
    Tensor of shape (n, C, H, W)
    """
    axes = flipped_axes(kind, x.ndim - 2)
    of_each = [_draw_flips(1, axes, generator, x.device) for generator in generators]
    flips = [torch.cat(of_axis) for of_axis in zip(*of_each, strict=True)]
    if not _has_affine_changes(kind):
        return _flip(x, axes, flips)
    draws = [_draw_changes(1, x.ndim - 2, generator, x.device) for generator in generators]
    # The last bits of a sine can depend on its neighbours in memory: float64 rounds them away.
    theta = _affine_matrices(torch.cat(draws, dim=1).double(), proportions)
    # To flip an image is to read it from the other end.
    for axis, of_axis in zip(axes, flips, strict=True):
        theta[:, -1 - axis] *= torch.where(of_axis < 0.5, -1, 1)[:, None]
    theta = theta.float()
    varied = torch.empty_like(x)
    # One image after another stays in the cache of the processor.
    for i in range(len(x)):
        varied[i : i + 1] = _move(x[i : i + 1], theta[i : i + 1])
    return varied


def _has_affine_changes(kind: str | None) -> bool:
    return "affine" in _parts(kind)


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
