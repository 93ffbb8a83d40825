"""The symmetrical probability path: interpolants, target velocities, times and losses.

With image x, label mask y, noises e_x, e_y ~ N(0, I) and s = sigma_min (paper, section 3)::

    x_t = (1 - (1 - s) t) e_x + t x        u_x = x - (1 - s) e_x
    y_t = (1 - (1 - s) t) y + t e_y        u_y = e_y - (1 - s) y
    loss = w * mean|v_x - u_x|^2 + (1 - w) * mean|v_y - u_y|^2

The image runs from noise (t = 0) to data (t = 1) while the mask runs from data to noise.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from sklearn_msf.label_codes import LabelCodes

__all__ = [
    "SIGMA_MIN",
    "PathSample",
    "denoise_masks",
    "sample_path",
    "sample_times",
    "velocity_loss",
]

SIGMA_MIN = 1e-4


@dataclass(frozen=True)
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
    """

    t: Tensor
    x_t: Tensor
    y_t: Tensor
    u_x: Tensor
    u_y: Tensor


def sample_path(x: Tensor, y: Tensor, e_x: Tensor, e_y: Tensor, t: Tensor) -> PathSample:
    """Evaluate the path and its velocity.

    Parameters
    ----------
    x, e_x : Tensor of shape (n, C_x, H, W)
        Images in [-1, 1] and their noise.
    y, e_y : Tensor of shape (n, C_y, H, W)
        Label masks and their noise.
    t : Tensor of shape (n,)
        Times in [0, 1].

    Returns
    -------
    PathSample
    """
    time = t[:, None, None, None]
    remaining = 1.0 - (1.0 - SIGMA_MIN) * time
    return PathSample(
        t=t,
        x_t=remaining * e_x + time * x,
        y_t=remaining * y + time * e_y,
        u_x=x - (1.0 - SIGMA_MIN) * e_x,
        u_y=e_y - (1.0 - SIGMA_MIN) * y,
    )


def sample_times(n: int, n_at_one: int, generator: torch.Generator) -> Tensor:
    """Draw times: exactly 1 for the first `n_at_one` of the n, U(0, 1) for the others.

    At t = 1 the image is clean and the mask pure noise: the one point of the path at which
    one Euler step classifies, and one that U(0, 1) hardly ever comes near.
    """
    t = torch.rand(n, generator=generator, device=generator.device)
    t[:n_at_one] = 1.0
    return t


def velocity_loss(v: Tensor, u: Tensor) -> Tensor:
    """Mean squared error between a velocity field and its target; 0 where there are no rows."""
    return F.mse_loss(v.float(), u) if len(u) else v.float().sum()


def denoise_masks(y_t: Tensor, t: Tensor, codes: LabelCodes) -> Tensor:
    """E[code | y_t]: what a mask on the path says about the class, without its noise.

    Given the class, y_t is Gaussian around a code, with a = 1 - (1 - s) t::

        p(y_t | c) = N(y_t; a code_c, t^2 + a^2 jitter^2 / 12)   per pixel and channel
        E[code | y_t] = sum_c p(c | y_t) code_c                  under equal priors

    The jitter's uniform distribution is taken as a Gaussian of the same variance. Early on
    the path this is the code itself, at t = 1 the mean of all codes.

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
    # The mean over pixels is sufficient: what else varies is the same for all classes.
    offsets = y_t.float().mean(dim=(2, 3))[:, None] - a[:, :, None] * codes.codes
    n_pixels = y_t.shape[2] * y_t.shape[3]
    squared = offsets.square().sum(dim=2) * n_pixels
    p = torch.softmax(-squared / (2 * variance.clamp_min(1e-12)), dim=1)
    return codes.mean_codes(p)
