"""Convolutions over images and over volumes."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["CONVOLUTIONS", "Conv3d", "convolve_volumes"]

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


# By the number of spatial axes.
CONVOLUTIONS: dict[int, type[nn.Conv2d] | type[nn.Conv3d]] = {2: nn.Conv2d, 3: Conv3d}
