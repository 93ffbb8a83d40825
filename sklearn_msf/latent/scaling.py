"""The size and the scaling of latents, learned from the training images."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sklearn_msf.data.images import ImageFormat
from sklearn_msf.flow.label_codes import LabelCodes
from sklearn_msf.latent.autoencoder import ImageAutoencoder
from sklearn_msf.runtime.batching import in_batches

__all__ = [
    "ENCODED_AT_ONCE",
    "LatentFormat",
    "learn_latent_format",
    "prepare_images",
    "resize_images",
]

# Training images whose latents are looked at for their means and deviations.
_N_MEASURED = 256
# Images that one worker encodes at a time; the autoencoder's own passes may be shorter.
ENCODED_AT_ONCE = 16


@dataclass(frozen=True)
class LatentFormat:
    """What fit learned about the latents.

    Attributes
    ----------
    size : tuple of int
        Height and width to which images are resized before they are encoded.
    shift, scale : Tensor of shape (c,)
        The field works on (latent - shift) * scale.
    mask_codes : Tensor of shape (K, c, h, w) or None
        Normalised latents of the class masks, where the field carries these.
    """

    size: tuple[int, int]
    shift: Tensor
    scale: Tensor
    mask_codes: Tensor | None

    def normalise(self, latents: Tensor) -> Tensor:
        """Latents (n, c, h, w) of the autoencoder as the field takes them."""
        shift, scale = self.factors(latents.device)
        return (latents - shift) * scale

    def restore(self, latents: Tensor) -> Tensor:
        """Latents (n, c, h, w) of the field as the autoencoder takes them."""
        shift, scale = self.factors(latents.device)
        return latents / scale + shift

    def factors(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Shift and scale, (c, 1, 1), on a device."""
        return self.shift.to(device)[:, None, None], self.scale.to(device)[:, None, None]


def learn_latent_format(
    images: np.ndarray,
    autoencoder: ImageAutoencoder,
    size: tuple[int, int],
    precision: str,
    palette: LabelCodes | None,
) -> LatentFormat:
    """Learn the scaling of latents, and encode a mask for each class where asked to.

    The autoencoder's published factor where it has one, else the mean and the deviation of each
    channel over up to 256 training images.

    Parameters
    ----------
    images : ndarray of shape (n, C, H, W)
        Training images.
    autoencoder : ImageAutoencoder
        On its device.
    size : tuple of int
        Height and width to which images are resized.
    precision : {"float32", "bfloat16"}
        Precision in which images are encoded.
    palette : LabelCodes, optional
        Colours of the classes, where the field carries encoded masks.

    Returns
    -------
    LatentFormat
        On the CPU.
    """
    n_channels = autoencoder.latent_channels
    if autoencoder.published_scaling is not None:
        shift, scale = (torch.full((n_channels,), value) for value in autoencoder.published_scaling)
    else:
        shift, scale = _measure(images, autoencoder, size, precision)
    latent_format = LatentFormat(size, shift, scale, None)
    if palette is None:
        return latent_format
    masks = palette.masks(torch.arange(palette.n_classes), size)
    encoded = autoencoder.encode(masks.contiguous()).mean
    # In the layout that files give back: sums over channels round differently in another.
    return LatentFormat(size, shift, scale, latent_format.normalise(encoded).contiguous())


def _measure(
    images: np.ndarray, autoencoder: ImageAutoencoder, size: tuple[int, int], precision: str
) -> tuple[Tensor, Tensor]:
    """Mean and inverse deviation of each channel of the latents."""
    chosen = np.linspace(0, len(images) - 1, min(len(images), _N_MEASURED)).astype(int)

    def encode(start: int, n: int) -> Tensor:
        x = ImageFormat.normalise(torch.from_numpy(images[chosen[start : start + n]]))
        x = prepare_images(x, size, autoencoder.image_channels)
        return autoencoder.encode(x, precision).mean

    parts = in_batches(encode, len(chosen), ENCODED_AT_ONCE, autoencoder.device)
    latents = torch.cat(parts).double()
    deviation = latents.std(dim=(0, 2, 3), correction=0)
    # A channel that never changes says nothing, whatever it is divided by.
    deviation = torch.where(deviation > 1e-6, deviation, 1.0)
    return latents.mean(dim=(0, 2, 3)).float(), (1 / deviation).float()


def prepare_images(images: Tensor, size: tuple[int, int], n_channels: int) -> Tensor:
    """Images in the size, the range and the channels of an autoencoder; gray is repeated."""
    return resize_images(images, size).clamp(-1, 1).expand(-1, n_channels, -1, -1)


def resize_images(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize images, (n, C, H, W) in [-1, 1], without aliasing."""
    if tuple(images.shape[2:]) == tuple(size):
        return images
    resized = F.interpolate(images, size=size, mode="bicubic", antialias=True, align_corners=False)
    return resized.clamp(-1, 1)
