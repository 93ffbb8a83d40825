"""Latents of an autoencoder, converted for the field: their size and scaling are learned."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from sklearn_msf.data.images import ImageFormat
from sklearn_msf.data.on_demand import ImagesOnDemand
from sklearn_msf.data.resizing import resize_images
from sklearn_msf.flow.label_codes import LabelCodes
from sklearn_msf.latent.autoencoder import Encoded, ImageAutoencoder
from sklearn_msf.runtime.batching import in_batches

__all__ = [
    "ENCODED_AT_ONCE",
    "AutoencoderLatents",
    "learn_latents",
    "measured_rows",
    "prepare_images",
]

# Number of training images from which the means and deviations of latents are measured.
_N_MEASURED = 256
# Images that one worker encodes at a time; the autoencoder may split them into smaller passes.
ENCODED_AT_ONCE = 16


@dataclass(frozen=True, eq=False)
class AutoencoderLatents:
    """Latents of an autoencoder, converted for the field.

    Attributes
    ----------
    autoencoder : ImageAutoencoder
        Encodes and decodes images.
    size : tuple of int
        Height and width to which images are resized before they are encoded.
    shift, scale : Tensor of shape (c,)
        The field works on (latent - shift) * scale.
    mask_codes : Tensor of shape (K, c, h, w) or None
        Normalised latents of the class masks, if the field carries them.
    """

    autoencoder: ImageAutoencoder
    size: tuple[int, int]
    shift: Tensor
    scale: Tensor
    mask_codes: Tensor | None

    @property
    def n_channels(self) -> int:
        """Channels of the latents."""
        return self.autoencoder.latent_channels

    @property
    def n_deviations(self) -> int:
        """Number of channels, all or none, that have a posterior deviation."""
        return self.n_channels if self.autoencoder.has_deviation else 0

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width (h, w) of the latents."""
        height, width = (side // self.autoencoder.factor for side in self.size)
        return height, width

    @property
    def images_a_pass(self) -> int:
        """Number of images that one pass encodes."""
        return self.autoencoder.images_a_pass(self.size)

    @property
    def constants(self) -> list[Tensor]:
        """What latents are computed with."""
        return [self.shift, self.scale]

    def resized(self, x: Tensor) -> Tensor:
        """Convert images, (n, C, H, W) in [-1, 1], to the size and channels of the autoencoder."""
        return prepare_images(x, self.size, self.autoencoder.image_channels)

    def encode(self, images: Tensor, precision: str) -> Encoded:
        """Encode resized images to normalised means and deviations."""
        mean, deviation = self.autoencoder.encode(images, precision)
        _, scale = self._factors(mean.device)
        return Encoded(self.normalise(mean), None if deviation is None else deviation * scale)

    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents (n, c, h, w) of the field."""
        return self.autoencoder.decode(self.restore(latents))

    def normalise(self, latents: Tensor) -> Tensor:
        """Convert latents (n, c, h, w) of the autoencoder to those of the field."""
        shift, scale = self._factors(latents.device)
        return (latents - shift) * scale

    def restore(self, latents: Tensor) -> Tensor:
        """Convert latents (n, c, h, w) of the field to those of the autoencoder."""
        shift, scale = self._factors(latents.device)
        return latents / scale + shift

    def _factors(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return shift and scale, (c, 1, 1), on a device."""
        return self.shift.to(device)[:, None, None], self.scale.to(device)[:, None, None]


def learn_latents(
    images: ImagesOnDemand,
    autoencoder: ImageAutoencoder,
    size: tuple[int, int],
    precision: str,
    palette: LabelCodes | None,
) -> AutoencoderLatents:
    """Learn the scaling of latents, and encode a mask for each class if there is a palette.

    The scaling is the shift and factor that the autoencoder publishes. If it publishes none, the
    mean and the standard deviation of each channel are measured over up to 256 training images; of
    posteriors the deviation is that of samples.

    Parameters
    ----------
    images : ImagesOnDemand of shape (n, C, H, W)
        Training images of an epoch, repeated as their weights say.
    autoencoder : ImageAutoencoder
        The autoencoder, on its device.
    size : tuple of int
        Height and width to which images are resized.
    precision : {"float32", "bfloat16"}
        Precision of the encoder for images; masks are encoded in float32.
    palette : LabelCodes, optional
        Colours of the classes, if the field carries encoded masks.

    Returns
    -------
    AutoencoderLatents
        With tensors on the CPU.
    """
    n_channels = autoencoder.latent_channels
    if autoencoder.published_scaling is not None:
        shift, scale = (torch.full((n_channels,), value) for value in autoencoder.published_scaling)
    else:
        shift, scale = _measure(images, autoencoder, size, precision)
    latents = AutoencoderLatents(autoencoder, size, shift, scale, None)
    if palette is None:
        return latents
    masks = palette.masks(torch.arange(palette.n_classes), size)
    encoded = autoencoder.encode(masks.contiguous()).mean
    # Contiguous, as files restore it: sums over channels round differently in other layouts.
    return replace(latents, mask_codes=latents.normalise(encoded).contiguous())


def _measure(
    images: ImagesOnDemand, autoencoder: ImageAutoencoder, size: tuple[int, int], precision: str
) -> tuple[Tensor, Tensor]:
    """Measure the mean and the inverse deviation of each channel of the posteriors."""
    chosen = measured_rows(len(images))

    def encode(start: int, n: int) -> Encoded:
        x = ImageFormat.normalise(torch.from_numpy(images[chosen[start : start + n]]))
        x = prepare_images(x, size, autoencoder.image_channels)
        return autoencoder.encode(x, precision)

    parts = in_batches(encode, len(chosen), ENCODED_AT_ONCE, autoencoder.device)
    latents = torch.cat([part.mean for part in parts]).double()
    variance = latents.var(dim=(0, 2, 3), correction=0)
    if autoencoder.has_deviation:
        # Of what training draws. The means alone may hardly differ where a channel is not used.
        drawn = torch.cat([part.deviation for part in parts if part.deviation is not None])
        variance += drawn.double().square().mean(dim=(0, 2, 3))
    deviation = variance.sqrt()
    # A constant channel carries no information: divide it by 1 instead of 0.
    deviation = torch.where(deviation > 1e-6, deviation, 1.0)
    return latents.mean(dim=(0, 2, 3)).float(), (1 / deviation).float()


def measured_rows(n_images: int) -> np.ndarray:
    """Choose the training images on which means and deviations are measured, evenly spaced."""
    return np.linspace(0, n_images - 1, min(n_images, _N_MEASURED)).astype(int)


def prepare_images(images: Tensor, size: tuple[int, int], n_channels: int) -> Tensor:
    """Convert images to the size, range and channels of an encoder; gray is repeated."""
    return resize_images(images, size).clamp(-1, 1).expand(-1, n_channels, -1, -1)
