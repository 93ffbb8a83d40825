"""Images as latents: encoded for classification, encoded once for training, decoded."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sklearn_msf.data.augmentation import augment_images, mirror_images
from sklearn_msf.data.images import ImageFormat
from sklearn_msf.flow.label_codes import EncodedLabelCodes, LabelCodes, PixelReading
from sklearn_msf.latent.autoencoder import AutoencoderError, Encoded, ImageAutoencoder
from sklearn_msf.latent.scaling import (
    ENCODED_AT_ONCE,
    LatentFormat,
    prepare_images,
    resize_images,
)
from sklearn_msf.model.inference import FieldInputs, PixelInputs
from sklearn_msf.runtime.batching import in_batches
from sklearn_msf.training.batches import TrainingData

__all__ = [
    "LatentRepresentation",
    "LatentTrainingData",
    "encode_variations",
]


class LatentRepresentation:
    """The step before the field, encoding, and the step after it, decoding.

    Parameters
    ----------
    image_format : ImageFormat
        Layout and range of X.
    autoencoder : ImageAutoencoder
        Encodes and decodes.
    latent_format : LatentFormat
        Size and scaling.
    precision : {"float32", "bfloat16"}
        Precision in which images are encoded.
    palette : LabelCodes, optional
        Colours of the classes, where masks are decoded before they are compared with them.
    """

    def __init__(
        self,
        image_format: ImageFormat,
        autoencoder: ImageAutoencoder,
        latent_format: LatentFormat,
        precision: str,
        palette: LabelCodes | None = None,
    ):
        self._format = image_format
        self._autoencoder = autoencoder
        self._latent_format = latent_format
        self._precision = precision
        self._palette = palette

    @property
    def shape(self) -> tuple[int, int, int]:
        """(c, h, w) of the latents."""
        height, width = (n // self._autoencoder.factor for n in self._latent_format.size)
        return self._autoencoder.latent_channels, height, width

    @property
    def precision(self) -> str:
        """Precision in which images are encoded."""
        return self._precision

    @property
    def device(self) -> torch.device:
        """Where the autoencoder computes."""
        return self._autoencoder.device

    def inputs(self, rows: np.ndarray, device: torch.device) -> FieldInputs:
        """Images, encoded batch by batch."""
        return LatentInputs(self, PixelInputs(self._format.to_numpy_images(rows), device))

    def kept_inputs(self, rows: np.ndarray, device: torch.device, *, mirrored: bool) -> FieldInputs:
        """Images, encoded now."""
        inputs = self.inputs(rows, device)
        views = []
        for mirror in (False, True) if mirrored else (False,):

            def encode(start: int, size: int, mirror: bool = mirror) -> Tensor:
                x = inputs.batch(start, size, mirrored=mirror)
                return x[: len(inputs) - start].cpu()

            views.append(torch.cat(in_batches(encode, len(inputs), ENCODED_AT_ONCE, device)))
        return KeptInputs(views, device)

    def codes(
        self, field_codes: LabelCodes | EncodedLabelCodes
    ) -> LabelCodes | EncodedLabelCodes | PixelReading:
        """Give what predicted masks are compared with."""
        if self._palette is None:
            return field_codes
        return PixelReading(self._palette, self._decoded)

    def images(self, drawn: Tensor) -> Tensor:
        """Decode what the field draws, at the size and in the channels of X."""
        images = self._decoded(drawn)
        if self._format.n_channels == 1:
            images = images.mean(dim=1, keepdim=True)
        return resize_images(images, self._format.size)

    def masks(self, drawn: Tensor) -> Tensor:
        """Decode masks where the field carries encoded ones."""
        return drawn if self._latent_format.mask_codes is None else self._decoded(drawn)

    def encode(self, x: Tensor) -> Tensor:
        """Normalised posterior means of images, (n, C, H, W) in [-1, 1]."""
        return self.normalise(self.posterior(self.resized(x)).mean)

    def resized(self, x: Tensor) -> Tensor:
        """Images in the size and the channels of the autoencoder."""
        return prepare_images(x, self._latent_format.size, self._autoencoder.image_channels)

    def normalise(self, latents: Tensor) -> Tensor:
        """Latents of the autoencoder as the field takes them."""
        return self._latent_format.normalise(latents)

    def normalised_posterior(self, images: Tensor) -> Tensor:
        """Means as the field takes them, and behind them deviations where there are any."""
        mean, deviation = self.posterior(images)
        _, scale = self._latent_format.factors(mean.device)
        mean = self.normalise(mean)
        return mean if deviation is None else torch.cat([mean, deviation * scale], dim=1)

    def posterior(self, images: Tensor) -> Encoded:
        """Latents of images in the size and the channels of the autoencoder."""
        return self._autoencoder.encode(images, self._precision)

    def _decoded(self, latents: Tensor) -> Tensor:
        return self._autoencoder.decode(self._latent_format.restore(latents)).clamp(-1, 1)


class LatentInputs:
    """Images, encoded when they are needed.

    Parameters
    ----------
    representation : LatentRepresentation
        Encodes.
    pixels : PixelInputs
        The images.
    """

    def __init__(self, representation: LatentRepresentation, pixels: PixelInputs):
        self._representation = representation
        self._pixels = pixels

    def __len__(self) -> int:
        """Count the images."""
        return len(self._pixels)

    def batch(self, start: int, size: int, *, mirrored: bool) -> Tensor:
        """Latents of `size` images; of the mirror images where `mirrored`."""
        # What only fills up need not be encoded.
        n_real = min(size, len(self) - start)
        x = self._pixels.batch(start, n_real, mirrored=mirrored)
        return _filled_up(self._representation.encode(x), size)


class KeptInputs:
    """Latents that were encoded before.

    Parameters
    ----------
    views : sequence of Tensor of shape (n, c, h, w)
        Latents of the images and, if need be, of their mirror images.
    device : torch.device
        Where the field is.
    """

    def __init__(self, views: Sequence[Tensor], device: torch.device):
        self._views = views
        self._device = device

    def __len__(self) -> int:
        """Count the images."""
        return len(self._views[0])

    def batch(self, start: int, size: int, *, mirrored: bool) -> Tensor:
        """Latents of `size` images, the last batch filled up with its first."""
        x = self._views[mirrored][start : start + size]
        return _filled_up(x.to(self._device), size)


def _filled_up(x: Tensor, size: int) -> Tensor:
    """Fill a batch up to exactly `size` rows."""
    return torch.cat([x, x[:1].expand(size - len(x), -1, -1, -1)])


class LatentTrainingData(TrainingData):
    """Latents of several variations of each image, with posterior deviations.

    Every batch takes one variation of each of its images, and a fresh sample of its posterior.

    Parameters
    ----------
    latents : Tensor of shape (n, n_variations, c, h, w) or (n, n_variations, 2 c, h, w)
        Normalised means, and behind them deviations where there are any.
    n_drawable : int
        Variations, from the first on, that images to draw may look like.
    n_channels : int
        Channels c of the latents.
    labels, weights, epoch_size, device :
        As in :class:`TrainingData`.
    """

    def __init__(
        self,
        latents: Tensor,
        n_drawable: int,
        n_channels: int,
        labels: Tensor,
        weights: Tensor,
        epoch_size: int,
        device: torch.device,
    ):
        super().__init__(latents.flatten(0, 1), labels, weights, epoch_size, device)
        self._n_variations = latents.shape[1]
        self._n_drawable = n_drawable
        self._n_channels = n_channels

    def _inputs(self, rows: Tensor, n_varied: int, generator: torch.Generator) -> Tensor:
        """Take a variation of each image, and a sample of its posterior."""
        device = self.labels.device
        n_choices = torch.full((len(rows),), self._n_drawable, device=device)
        n_choices[:n_varied] = self._n_variations
        chosen = torch.rand(len(rows), generator=generator, device=device)
        # Rows that are needed now: copied with waiting.
        variations = (chosen * n_choices).long().to(rows.device)
        stored = self._on_device(rows * self._n_variations + variations).float()
        x = stored[:, : self._n_channels]
        if stored.shape[1] > self._n_channels:
            noise = torch.randn(x.shape, generator=generator, device=device)
            x = x + stored[:, self._n_channels :] * noise
        return x


def encode_variations(
    latents: Tensor,
    images: np.ndarray,
    representation: LatentRepresentation,
    augment: str | None,
    seed: int,
) -> None:
    """Encode variations of images, posterior deviations too.

    The first ones are the image itself and its flips; the others are random, flipped and moved.

    Parameters
    ----------
    latents : Tensor of shape (n, n_variations, channels, h, w)
        Where to write them.
    images : ndarray of shape (n, C, H, W)
        Training images.
    representation : LatentRepresentation
        Encodes.
    augment : str or None
        Kind of the variations.
    seed : int
        Seed of the random ones. Those of an image do not depend on other images.
    """
    n_variations = latents.shape[1]
    seeds = np.random.SeedSequence(seed).generate_state(len(images), np.uint64)

    def encode(start: int, size: int) -> None:
        part = torch.from_numpy(images[start : start + size])
        x = representation.resized(ImageFormat.normalise(part))
        plain = mirror_images(x, augment)[:n_variations]
        for i in range(n_variations):
            if i < len(plain):
                varied = plain[i]
            else:
                varied = torch.cat(
                    [
                        augment_images(x[j : j + 1], augment, 1, _generator(seeds, start + j, i))
                        for j in range(len(x))
                    ]
                )
            encoded = representation.normalised_posterior(varied)
            if not bool(encoded.isfinite().all()):
                raise AutoencoderError("The autoencoder makes latents that are not finite.")
            latents[start : start + len(x), i] = encoded.to(latents)

    in_batches(encode, len(images), ENCODED_AT_ONCE, representation.device)


def _generator(seeds: np.ndarray, image: int, variation: int) -> torch.Generator:
    return torch.Generator().manual_seed(int(seeds[image] >> np.uint64(1)) ^ variation)
