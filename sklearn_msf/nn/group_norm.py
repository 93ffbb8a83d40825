"""Group normalisation and modulation in one step.

A residual block normalises its input, scales and shifts it. PyTorch's kernels do the three
in separate passes over memory, and on CPUs their bfloat16 version is many times slower than
the convolution next to it. Here the statistics of every image and channel are computed first.
The rest is one multiply-add in the forward pass and two in the backward pass::

    y = a * (x - mean) / sqrt(var + eps) + b = x * (a * r) + (b - mean * a * r)
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sklearn_msf.runtime.tensor_axes import align_axes, spatial_axes

__all__ = ["modulated_group_norm"]


def _sums(x: Tensor, factor: Tensor) -> Tensor:
    """Sum x and x * factor, (n, C, H, W) each, over the positions: (2, n, C)."""
    axes = spatial_axes(x)
    return torch.stack([x.sum(dim=axes), (x * factor).sum(dim=axes)])


def _group_means(sums: Tensor, n_groups: int, n_positions: int) -> Tensor:
    """Average over the positions and channels of each group, repeated per channel: (2, n, C)."""
    two, n, channels = sums.shape
    if n_groups < channels:
        grouped = sums.view(two, n, n_groups, channels // n_groups)
        sums = grouped.mean(dim=3, keepdim=True).expand_as(grouped).reshape(two, n, channels)
    return sums / n_positions


def _multiply_add(x: Tensor, factor: Tensor, summand: Tensor) -> Tensor:
    """Compute x * factor + summand with a factor of shape (n, C)."""
    return torch.addcmul(summand, x, align_axes(factor, x))


def _widened(x: Tensor) -> Tensor:
    """Convert x to float32, or keep a wider dtype.

    In bfloat16 the rounding errors of the squares alone exceed the variance of a nearly constant
    feature, and the gradient is multiplied by the reciprocal of that variance.
    """
    return x.to(torch.promote_types(x.dtype, torch.float32))


class _ModulatedGroupNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, shift: Tensor, n_groups: int, eps: float
    ) -> Tensor:
        wide = _widened(x)
        means = _group_means(_sums(wide, wide), n_groups, math.prod(x.shape[2:]))
        mean, second = means.unbind()
        variance = torch.addcmul(second, mean, mean, value=-1).clamp_min_(0)
        inverse_deviation = variance.add_(eps).rsqrt_()
        factor = scale * inverse_deviation
        ctx.save_for_backward(x, scale, mean, inverse_deviation)
        ctx.n_groups = n_groups
        summand = align_axes(torch.addcmul(shift, mean, factor, value=-1), x)
        # Overwrite the widened copy, which is not needed any more. If x already was wide, there
        # is no copy: `wide` is x, which the backward pass needs.
        out = None if wide is x else wide
        return torch.addcmul(summand, wide, align_axes(factor, x), out=out).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        x, scale, mean, inverse_deviation = ctx.saved_tensors
        wide, grad = _widened(x), _widened(grad)
        n_positions = math.prod(x.shape[2:])
        grad_shift, grad_dot = _sums(grad, wide).unbind()
        grad_scale = torch.addcmul(grad_dot, mean, grad_shift, value=-1).mul_(inverse_deviation)
        # d loss / d x = r * (g - mean(g) - x_hat * mean(g * x_hat)) with g = scale * grad
        # and the means over each group. The code collects its terms by powers of x.
        sums = scale * torch.stack([grad_shift, grad_scale])
        mean_g, mean_gx = _group_means(sums, ctx.n_groups, n_positions).unbind()
        x_factor = mean_gx.mul(inverse_deviation.square()).neg_()
        constant = torch.addcmul(mean_g * inverse_deviation, mean, x_factor).neg_()
        partial = _multiply_add(wide, x_factor, align_axes(constant, x))
        grad_x = _multiply_add(grad, scale * inverse_deviation, partial)
        return grad_x.to(x.dtype), grad_scale, grad_shift, None, None


def modulated_group_norm(
    x: Tensor, scale: Tensor, shift: Tensor, n_groups: int, eps: float = 1e-5
) -> Tensor:
    """Normalise each image over groups of channels, then scale and shift each channel.

    Parameters
    ----------
    x : Tensor of shape (n, C, H, W)
        Features; their statistics are computed in float32 or a wider dtype.
    scale, shift : Tensor of shape (n, C)
        Modulation of every image, in float32 or a wider dtype.
    n_groups : int
        Number of groups; divides C.
    eps : float, default=1e-5
        Added to the variance.

    Returns
    -------
    Tensor of shape (n, C, H, W)
        In the dtype of `x`.
    """
    if torch.compiler.is_dynamo_compiling():
        return _as_formula(x, scale, shift, n_groups, eps)
    return _ModulatedGroupNorm.apply(x, scale, shift, n_groups, eps)


def _as_formula(x: Tensor, scale: Tensor, shift: Tensor, n_groups: int, eps: float) -> Tensor:
    """Compute the same by torch's operations, which a compiler joins to few kernels.

    On a GPU the compiled network is twice as fast with this as with the function above.
    """
    normalised = F.group_norm(_widened(x), n_groups, eps=eps)
    return (normalised * align_axes(scale, x) + align_axes(shift, x)).to(x.dtype)
