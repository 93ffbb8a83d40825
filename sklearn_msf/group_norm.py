"""Group normalisation and modulation in one step.

A residual block normalises its input, scales and shifts it. PyTorch's kernels do the three
in separate passes over memory, and on CPUs their bfloat16 version is many times slower than
the convolution beside it. Here the statistics of every image and channel are gathered first
and the rest is one multiply-add, forwards, and two, backwards::

    y = a * (x - mean) / sqrt(var + eps) + b = x * (a * r) + (b - mean * a * r)
"""

from typing import Any

import torch
from torch import Tensor

__all__ = ["modulated_group_norm"]


def _channel_sums(x: Tensor) -> Tensor:
    """Sum (n, C, H, W) over the positions: (n, C)."""
    return x.sum(dim=(2, 3))


def _group_means(per_channel: Tensor, n_groups: int, n_positions: int) -> Tensor:
    """Mean over each group of channels, written back to each of its channels: (n, C)."""
    n, channels = per_channel.shape
    grouped = per_channel.view(n, n_groups, channels // n_groups)
    means = grouped.mean(dim=2, keepdim=True) / n_positions
    return means.expand_as(grouped).reshape(n, channels)


def _multiply_add(x: Tensor, factor: Tensor, summand: Tensor) -> Tensor:
    """X * factor + summand with factor of shape (n, C)."""
    return torch.addcmul(summand, x, factor[:, :, None, None])


def _widened(x: Tensor) -> Tensor:
    """X in float32 or better.

    In bfloat16 the squares alone round by more than the variance of a flat feature, and the
    reciprocal of that variance multiplies the gradient.
    """
    return x.to(torch.promote_types(x.dtype, torch.float32))


class _ModulatedGroupNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, shift: Tensor, n_groups: int, eps: float
    ) -> Tensor:
        wide = _widened(x)
        n_positions = x.shape[2] * x.shape[3]
        mean = _group_means(_channel_sums(wide), n_groups, n_positions)
        second = _group_means(_channel_sums(wide * wide), n_groups, n_positions)
        inverse_deviation = ((second - mean * mean).clamp_min(0) + eps).rsqrt()
        factor = scale * inverse_deviation
        ctx.save_for_backward(x, scale, mean, inverse_deviation)
        ctx.n_groups = n_groups
        summand = (shift - mean * factor)[:, :, None, None]
        return _multiply_add(wide, factor, summand).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        x, scale, mean, inverse_deviation = ctx.saved_tensors
        wide, grad = _widened(x), _widened(grad)
        n_positions = x.shape[2] * x.shape[3]
        grad_shift = _channel_sums(grad)
        grad_scale = (_channel_sums(grad * wide) - mean * grad_shift) * inverse_deviation
        # d loss / d x = r * (g - mean(g) - x_hat * mean(g * x_hat)) with g = scale * grad
        # and the means over each group; gathered by powers of x.
        mean_g = _group_means(scale * grad_shift, ctx.n_groups, n_positions)
        mean_gx = _group_means(scale * grad_scale, ctx.n_groups, n_positions)
        x_factor = -mean_gx * inverse_deviation.square()
        constant = (-mean_g * inverse_deviation - mean * x_factor)[:, :, None, None]
        partial = _multiply_add(wide, x_factor, constant)
        grad_x = _multiply_add(grad, scale * inverse_deviation, partial)
        return grad_x.to(x.dtype), grad_scale, grad_shift, None, None


def modulated_group_norm(
    x: Tensor, scale: Tensor, shift: Tensor, n_groups: int, eps: float = 1e-5
) -> Tensor:
    """Normalise each image over groups of channels, then scale and shift each channel.

    Parameters
    ----------
    x : Tensor of shape (n, C, H, W)
        Features; statistics are taken in float32 or better.
    scale, shift : Tensor of shape (n, C)
        Modulation of every image, in float32 or better.
    n_groups : int
        Number of groups; divides C.
    eps : float, default=1e-5
        Added to the variance.

    Returns
    -------
    Tensor of shape (n, C, H, W)
        In the dtype of `x`.
    """
    return _ModulatedGroupNorm.apply(x, scale, shift, n_groups, eps)
