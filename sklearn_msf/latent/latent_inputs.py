"""Inputs of the field made of latents: encoded when they are needed, or before."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from sklearn_msf.model.image_space import PixelInputs

__all__ = ["EncodedInputs", "KeptInputs"]


class EncodedInputs:
    """Images that are encoded when they are needed.

    Parameters
    ----------
    pixels : PixelInputs
        The images.
    encode : callable
        Makes latents of images, (n, C, H, W) in [-1, 1].
    n_at_once : int
        Number of images to encode at a time: a batch that suits small latents may hold hundreds of
        large images.
    """

    def __init__(self, pixels: PixelInputs, encode: Callable[[Tensor], Tensor], n_at_once: int):
        self._pixels = pixels
        self._encode = encode
        self._n_at_once = n_at_once

    def __len__(self) -> int:
        """Count the images."""
        return len(self._pixels)

    def batch(self, start: int, n: int, flip: tuple[int, ...] = ()) -> Tensor:
        """Encode `n` images from the index `start` on, flipped along axes."""
        parts = []
        for first in range(start, start + n, self._n_at_once):
            size = min(self._n_at_once, start + n - first)
            parts.append(self._encode(self._pixels.batch(first, size, flip)))
        return torch.cat(parts)


class KeptInputs:
    """Latents of images, and of their flips, that are encoded already.

    Parameters
    ----------
    latents : Tensor of shape (n, n_variations, c + d, h, w)
        Latents of all variations of all images, followed by d channels that are no inputs.
    indices : Tensor of shape (m,), int64
        Indices of the images that are the inputs.
    numbers : mapping
        Number of the variation of each flip, by its axes.
    n_channels : int
        Channels c.
    device : torch.device
        Device of the field.
    """

    def __init__(
        self,
        latents: Tensor,
        indices: Tensor,
        numbers: Mapping[tuple[int, ...], int],
        n_channels: int,
        device: torch.device,
    ):
        self._latents = latents
        self._indices = indices
        self._numbers = numbers
        self._n_channels = n_channels
        self._device = device

    def __len__(self) -> int:
        """Count the images."""
        return len(self._indices)

    def batch(self, start: int, n: int, flip: tuple[int, ...] = ()) -> Tensor:
        """Return the latents of `n` images from the index `start` on, flipped along axes."""
        rows = self._indices[start : start + n]
        found = self._latents[rows, self._numbers[flip], : self._n_channels]
        return found.to(self._device).float()
