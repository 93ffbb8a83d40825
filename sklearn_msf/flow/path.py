"""The symmetrical probability path: interpolants, target velocities, times and losses.

With image x, label mask y, noises e_x, e_y ~ N(0, I) and s = sigma_min (paper, section 3)::

    x_t = (1 - (1 - s) t) e_x + t x        u_x = x - (1 - s) e_x
    y_t = (1 - (1 - s) t) y + t e_y        u_y = e_y - (1 - s) y
    loss = w * mean|v_x - u_x|^2 + (1 - w) * mean|v_y - u_y|^2

The image runs from noise (t = 0) to data (t = 1) while the mask runs from data to noise.
"""

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional as F

from sklearn_msf.flow.label_codes import LabelCodes
from sklearn_msf.runtime.tensor_axes import align_axes, spatial_axes

__all__ = [
    "SIGMA_MIN",
    "PathSample",
    "denoise_masks",
    "sample_path",
    "sample_times",
    "velocity_loss",
]

SIGMA_MIN = 1e-4


@dataclass(frozen=True, eq=False)
class PathSample:
    """Points of the path with their target velocities.

    Attributes
    ----------
    t : Tensor of shape (n,)
        Times in [0, 1].
    x_t, u_x : Tensor of shape (n, C_x, H, W)
        Images on the path and their velocities.
    y_t, u_y : Tensor of shape (n, C_y, H, W)
        Masks on the path and their velocities.
    mask_t : Tensor of shape (n,)
        Times of the masks: `t`, but 1 for samples that are trained unconditionally.
    """

    t: Tensor
    x_t: Tensor
    y_t: Tensor
    u_x: Tensor
    u_y: Tensor
    mask_t: Tensor

    def take(self, rows: Tensor) -> "PathSample":
        """Select points by index, (k,) int64."""
        return PathSample(*(getattr(self, field.name)[rows] for field in fields(self)))


def sample_path(
    x: Tensor, y: Tensor, e_x: Tensor, e_y: Tensor, t: Tensor, mask_t: Tensor | None = None
) -> PathSample:
    """Evaluate the path and its velocity.

    Parameters
    ----------
    x, e_x : Tensor of shape (n, C_x, H, W)
        Images in [-1, 1] and their noise.
    y, e_y : Tensor of shape (n, C_y, H, W)
        Label masks and their noise.
    t : Tensor of shape (n,)
        Times in [0, 1].
    mask_t : Tensor of shape (n,), optional
        Times of the masks; `t` by default.

    Returns
    -------
    PathSample
    """
    mask_t = t if mask_t is None else mask_t
    time, mask_time = align_axes(t, x), align_axes(mask_t, x)
    return PathSample(
        t=t,
        x_t=(1.0 - (1.0 - SIGMA_MIN) * time) * e_x + time * x,
        y_t=(1.0 - (1.0 - SIGMA_MIN) * mask_time) * y + mask_time * e_y,
        u_x=x - (1.0 - SIGMA_MIN) * e_x,
        u_y=e_y - (1.0 - SIGMA_MIN) * y,
        mask_t=mask_t,
    )


def sample_times(
    n: int,
    n_at_one: int,
    n_unconditional: int,
    generator: torch.Generator,
    shift: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Draw times of images and of masks, two tensors of shape (n,).

    The times are exactly 1 for the first `n_at_one` samples and U(0, 1), shifted, for the others.
    At t = 1 the image is clean and the mask is pure noise. Classification with one Euler step uses
    only this point of the path, and U(0, 1) hardly ever comes near it. The next `n_unconditional`
    samples also have masks at t = 1, which have no information about the class. From them the
    field learns the unconditional velocity for guidance.

    `shift` is above 0. Above 1 it moves times towards noise, as for larger images (Esser et al.,
    2024, arXiv 2403.03206, equation 23): the odds of noise against image, (1 - t) / t, are
    multiplied by it.
    """
    t = torch.rand(n, generator=generator, device=generator.device)
    if shift != 1:
        t = t / (t + shift * (1 - t))
    t[:n_at_one] = 1.0
    mask_t = t.clone()
    mask_t[n_at_one : n_at_one + n_unconditional] = 1.0
    return t, mask_t


def velocity_loss(v: Tensor, u: Tensor, channel_parts: tuple[int, ...] = ()) -> Tensor:
    """Compute the mean squared error of velocities v with targets u; 0 without any samples.

    `channel_parts` are the numbers of channels of parts that have equal shares in the error,
    however many channels each has; by default there is one part.
    """
    if not len(u):
        return v.float().sum()
    if not channel_parts:
        return F.mse_loss(v.float(), u)
    pairs = zip(v.float().split(channel_parts, dim=1), u.split(channel_parts, dim=1), strict=True)
    return torch.stack([F.mse_loss(mine, target) for mine, target in pairs]).mean()


def denoise_masks(y_t: Tensor, t: Tensor, codes: LabelCodes) -> Tensor:
    """Compute E[code | y_t], the denoised code of a mask on the path.

    Given the class, y_t is Gaussian around a code, with a = 1 - (1 - s) t::

        p(y_t | c) = N(y_t; a code_c, t^2 + a^2 jitter^2 / 12)   per pixel and channel
        E[code | y_t] = sum_c p(c | y_t) code_c                  under equal priors

    The uniform distribution of the jitter is approximated by a Gaussian of the same variance.
    Near t = 0 the result is the code itself, at t = 1 exactly the mean of all codes.

    Parameters
    ----------
    y_t : Tensor of shape (n, C_y, H, W)
        Masks on the path.
    t : Tensor of shape (n,)
        Times in [0, 1].
    codes : LabelCodes
        Codes of the K classes.

    Returns
    -------
    Tensor of shape (n, C_y)
    """
    a = (1.0 - (1.0 - SIGMA_MIN) * t)[:, None]
    variance = t[:, None].square() + (a * codes.jitter).square() / 12
    # The mean over pixels is sufficient: all else in the likelihood is equal for all classes.
    offsets = y_t.float().mean(dim=spatial_axes(y_t))[:, None] - a[:, :, None] * codes.codes
    n_pixels = math.prod(y_t.shape[2:])
    squared = offsets.square().sum(dim=2) * n_pixels
    logits = -squared / (2 * variance.clamp_min(1e-12))
    # What is left of a mask at t = 1, s y, would tell the class of training images over many
    # pixels, and predictions begin with noise alone.
    logits = torch.where(t[:, None] == 1, 0.0, logits)
    p = torch.softmax(logits, dim=1)
    return codes.mean_codes(p)
