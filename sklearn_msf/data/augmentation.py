"""Random variations of training images, computed on the device of the images."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["AUGMENTATIONS", "augment_images", "mirror_images"]

# _MAX_SHIFT is in the units of grid_sample, in which an image has the size 2: it is 5 %.
_MAX_ROTATION = math.radians(15.0)
_MAX_SCALING = 0.1
_MAX_SHIFT = 0.1


def _mirror(x: Tensor, generator: torch.Generator, axis: int) -> Tensor:
    """Flip an axis of each image with probability 1/2."""
    chosen = torch.rand(len(x), 1, 1, 1, generator=generator, device=x.device) < 0.5
    return torch.where(chosen, x.flip(axis), x)


def _horizontal_flip(x: Tensor, generator: torch.Generator) -> Tensor:
    return _mirror(x, generator, 3)


def _flip(x: Tensor, generator: torch.Generator) -> Tensor:
    """Flip each of the two axes with probability 1/2 (paper: Blood, Derma, Retina)."""
    return _mirror(_mirror(x, generator, 3), generator, 2)


def _affine(x: Tensor, generator: torch.Generator) -> Tensor:
    """Rotate by up to 15 degrees, scale each axis by up to 10 %, shift by up to 5 %."""
    n, _, height, width = x.shape
    uniform = 2 * torch.rand(5, n, generator=generator, device=x.device) - 1
    angle = _MAX_ROTATION * uniform[0]
    rows = torch.exp(_MAX_SCALING * uniform[1])
    columns = torch.exp(_MAX_SCALING * uniform[2])
    # Both axes of grid_sample go from -1 to 1, so a rotation in pixels needs the aspect ratio.
    aspect = height / width
    theta = torch.stack(
        [
            torch.stack([angle.cos() * columns, -angle.sin() * aspect * rows]),
            torch.stack([angle.sin() / aspect * columns, angle.cos() * rows]),
        ]
    ).permute(2, 0, 1)
    theta = torch.cat([theta, _MAX_SHIFT * uniform[3:].T[:, :, None]], dim=2)
    grid = F.affine_grid(theta, [n, 1, height, width], align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


_FLIPS = {"hflip": _horizontal_flip, "flip": _flip}
AUGMENTATIONS = ("hflip", "flip", "affine", "hflip+affine", "flip+affine")


def augment_images(
    x: Tensor, kind: str | None, n_varied: int, generator: torch.Generator
) -> Tensor:
    """Vary images at random: flip all, and apply affine changes to the first `n_varied`.

    Affine changes repeat the border of an image, which would also appear in generated images.
    Samples at t = 1 train only the classification, so affine changes can be limited to them.

    Parameters
    ----------
    x : Tensor of shape (n, C, H, W)
        Images in [-1, 1].
    kind : {"hflip", "flip", "affine", "hflip+affine", "flip+affine"} or None
        Variations; None returns `x`.
    n_varied : int
        Number of images, the first ones of the batch, that get affine changes.
    generator : torch.Generator
        On the device of `x`.

    Returns
    -------
    Tensor of shape (n, C, H, W)
    """
    names = kind.split("+") if kind else []
    for name in names:
        if name in _FLIPS:
            x = _FLIPS[name](x, generator)
    if "affine" in names and n_varied:
        x = torch.cat([_affine(x[:n_varied], generator), x[n_varied:]])
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
        1, 2 or 4 batches; the first has the unflipped images.
    """
    names = kind.split("+") if kind else []
    if "flip" in names:
        return [x, x.flip(3), x.flip(2), x.flip(2, 3)]
    return [x, x.flip(3)] if "hflip" in names else [x]
