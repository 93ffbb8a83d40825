"""Convolutions over images and over volumes."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sklearn_msf.runtime.tensor_axes import align_axes, channels_last

__all__ = [
    "CONVOLUTIONS",
    "INPUT_CONVOLUTIONS",
    "Conv3d",
    "InputConvolution",
    "convolve_volumes",
    "convolve_with_constants",
    "summed_weights",
]

# Side of the kernels.
_SIDE = 3


def convolve_volumes(h: Tensor, weight: Tensor, bias: Tensor | None, **settings: Any) -> Tensor:
    """Convolve volumes, in float32 where bfloat16 gradients would be wrong.

    On a CPU, for volumes with a side of less than 3 voxels, oneDNN leaves parts of the bfloat16
    weight gradient unwritten, or writes beyond it (seen in torch 2.13).

    Parameters
    ----------
    h : Tensor of shape (n, C, D, H, W)
        Features.
    weight, bias : Tensor
        As in :func:`torch.nn.functional.conv3d`.
    **settings : dict
        Its stride and padding.

    Returns
    -------
    Tensor of shape (n, C', D', H', W')
    """
    if h.device.type != "cpu" or min(h.shape[2:]) >= _SIDE:
        return F.conv3d(h, weight, bias, **settings)
    with torch.autocast("cpu", enabled=False):
        return F.conv3d(h.float(), weight, bias, **settings).to(h.dtype)


class Conv3d(nn.Conv3d):
    """:class:`torch.nn.Conv3d` with right gradients at every size."""

    def forward(self, h: Tensor) -> Tensor:
        """Map (n, C, D, H, W) to (n, C', D', H', W')."""
        return convolve_volumes(h, self.weight, self.bias, stride=self.stride, padding=self.padding)


class InputConvolution(nn.Module):
    """Convolution of an image, and of values that are the same at all of its pixels.

    The weights are those of a convolution of both as images, folded into patches. All pixels of a
    patch then have the same value, and the sum of their weights does what each of them would: of a
    mask of one colour C channels are convolved instead of C times the pixels of a patch.
    """

    weight: Tensor
    bias: Tensor | None

    def forward(self, z: Tensor, constant: Tensor | None = None) -> Tensor:
        """Map z, (n, C, H, W), and constants, (n, C'), to (n, C_out, H, W)."""
        weight = self.weight
        if constant is not None:
            weight = summed_weights(weight, z.shape[1], constant.shape[1])
        return convolve_with_constants(z, constant, weight, self.bias)


def summed_weights(weight: Tensor, n_channels: int, n_constants: int) -> Tensor:
    """Sum the weights of each constant, which come after those of the other input channels."""
    of_constants = weight[:, n_channels:].unflatten(1, (n_constants, -1)).sum(dim=2)
    return torch.cat([weight[:, :n_channels], of_constants], dim=1)


def convolve_with_constants(
    z: Tensor, constant: Tensor | None, weight: Tensor, bias: Tensor | None
) -> Tensor:
    """Convolve z, (n, C, H, W), and constants, (n, C'), with weights for C + C' channels."""
    if constant is not None:
        missing = -weight.shape[1] % _channels_multiple(z)
        if missing:
            weight = torch.cat(
                [weight, weight.new_zeros(len(weight), missing, *weight.shape[2:])], 1
            )
            constant = F.pad(constant, (0, missing))
        constant = align_axes(constant.to(z.dtype), z)
        z = torch.cat([z, constant.expand(z.shape[0], -1, *z.shape[2:])], dim=1)
    layout = channels_last(z.ndim)
    z, weight = z.contiguous(memory_format=layout), weight.contiguous(memory_format=layout)
    if z.ndim == 4:
        return F.conv2d(z, weight, bias, padding=1)
    return convolve_volumes(z, weight, bias, padding=1)


def _channels_multiple(z: Tensor) -> int:
    """Return the multiple of channels that kernels want: tensor cores 8 of 16 bits."""
    return 8 if z.device.type == "cuda" and z.element_size() == 2 else 1


class _InputConvolution2d(InputConvolution, nn.Conv2d):
    """Of images."""


class _InputConvolution3d(InputConvolution, nn.Conv3d):
    """Of volumes."""


# By the number of spatial axes.
CONVOLUTIONS: dict[int, type[nn.Conv2d] | type[nn.Conv3d]] = {2: nn.Conv2d, 3: Conv3d}
INPUT_CONVOLUTIONS: dict[int, type[_InputConvolution2d] | type[_InputConvolution3d]] = {
    2: _InputConvolution2d,
    3: _InputConvolution3d,
}
