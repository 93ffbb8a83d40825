"""Latents for training: several variations of each image, encoded once."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sklearn_msf.data.augmentation import augment_each, flipped_axes, flips_along
from sklearn_msf.data.images import ImageFormat
from sklearn_msf.data.on_demand import ImagesOnDemand
from sklearn_msf.exceptions import AutoencoderError, BackboneError
from sklearn_msf.latent.autoencoder_latents import ENCODED_AT_ONCE
from sklearn_msf.latent.latent_inputs import KeptInputs
from sklearn_msf.latent.latent_space import LatentSpace
from sklearn_msf.runtime.batching import in_batches
from sklearn_msf.training.batches import TrainingData

__all__ = ["LatentTrainingData", "encode_variations"]

# Number of features whose noise has deviation 1. Each of them had deviation 1 before the rotation.
_FEATURES_OF_UNIT_NOISE = 160


class LatentTrainingData(TrainingData):
    """Latents of several variations of each image, with posterior deviations if there are any.

    Every batch takes one random variation of each of its images, and a new draw of its posterior.
    Where a backbone's features are among the channels, samples at t = 1, which teach nothing but
    classes, see them with noise: the class can be read from features within few steps, and without
    noise the network goes on to memorise the training images. The more features there are, the more
    of an image each position tells, so the deviation of the noise grows with the root of their
    number.

    Parameters
    ----------
    latents : Tensor of shape (n, n_variations, c + d, h, w)
        Normalised means and features, followed by the deviations of the first d channels.
    n_flips : int
        Number of flips of each image, the unflipped one included. They are its first variations,
        and the only ones for the samples that teach generation: generated images look like them.
    n_channels : int
        Channels c of the means and features.
    n_features : int
        How many of these, the last ones, are features.
    labels, weights, epoch_size, device :
        As in :class:`TrainingData`.
    """

    def __init__(
        self,
        latents: Tensor,
        n_flips: int,
        n_channels: int,
        n_features: int,
        labels: Tensor,
        weights: Tensor,
        epoch_size: int,
        device: torch.device,
    ):
        super().__init__(latents.flatten(0, 1), labels, weights, epoch_size, device)
        self._n_variations = latents.shape[1]
        self.n_flips = n_flips
        # Flips are the first variations: 2 along one axis, 4 along two.
        self.n_flipped_axes = n_flips.bit_length() - 1
        self._n_channels = n_channels
        self._n_features = n_features
        n_latent = n_channels - n_features
        # Only the latent is decoded. A mean over channels would leave it the share of its few
        # channels, and generated images would be far worse (docs/trials.md).
        self.channel_parts = (n_latent, n_features) if n_latent and n_features else ()

    @property
    def smaller_samples(self) -> str:
        """How a user gets samples that need less memory."""
        if self._n_features == self._n_channels:
            return "set a smaller encoded_size, or take a backbone with a coarser map"
        return "take an autoencoder with smaller latents"

    def select(self, rows: Tensor, n_varied: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Collect what :meth:`batch` needs; streamed latents need their variations now."""
        if self._is_resident:
            return (rows,)
        # A blocking copy, because the lookup needs the values at once.
        stored = self._variations(self._on_device(rows), n_varied, generator).to(rows.device)
        return self._streamed(stored), self._on_device(rows)

    def batch(
        self,
        selected: tuple[Tensor, ...],
        n_varied: int,
        n_at_one: int,
        generator: torch.Generator,
    ) -> tuple[Tensor, Tensor]:
        """Choose a variation of each image, and draw from its posterior."""
        rows = selected[-1]
        if self._is_resident:
            stored = self.images[self._variations(rows, n_varied, generator)].float()
        else:
            stored = selected[0].float()
        x = stored[:, : self._n_channels]
        deviations = stored[:, self._n_channels :]
        n_deviations = deviations.shape[1]
        if n_deviations:
            noise = torch.randn(deviations.shape, generator=generator, device=stored.device)
            drawn = x[:, :n_deviations] + deviations * noise
            x = torch.cat([drawn, x[:, n_deviations:]], dim=1)
        return self._with_noise(x, n_at_one, generator), self.labels[rows]

    def inputs_of(self, indices: Tensor, flips: Sequence[tuple[int, ...]]) -> KeptInputs:
        """Return the latents of some images and of their flips, which training has encoded.

        Parameters
        ----------
        indices : Tensor of shape (m,), int64
            Indices of the images.
        flips : sequence of tuple of int
            Axes of each flip; the first one is none.

        Returns
        -------
        KeptInputs
            Inputs of the field.
        """
        latents = self.images.unflatten(0, (-1, self._n_variations))
        rows = indices.to(latents.device)
        numbers = {flip: number for number, flip in enumerate(flips)}
        return KeptInputs(latents, rows, numbers, self._n_channels, self.labels.device)

    def _with_noise(self, x: Tensor, n: int, generator: torch.Generator) -> Tensor:
        """Add noise to the features of the first n samples."""
        if not self._n_features or not n:
            return x
        features = x[:n, -self._n_features :]
        noise = torch.randn(features.shape, generator=generator, device=x.device)
        deviation = math.sqrt(self._n_features / _FEATURES_OF_UNIT_NOISE)
        noisy = torch.cat([x[:n, : -self._n_features], features + deviation * noise], dim=1)
        return torch.cat([noisy, x[n:]])

    def _variations(self, rows: Tensor, n_varied: int, generator: torch.Generator) -> Tensor:
        """Choose the index of a variation of each image."""
        n_choices = torch.full((len(rows),), self.n_flips, device=rows.device)
        n_choices[:n_varied] = self._n_variations
        chosen = torch.rand(len(rows), generator=generator, device=rows.device)
        return rows * self._n_variations + (chosen * n_choices).long()


def encode_variations(
    latents: Tensor,
    images: ImagesOnDemand,
    space: LatentSpace,
    augment: str | None,
    seed: int,
    precision: str,
) -> None:
    """Encode variations of images, with posterior deviations if there are any.

    The first variations are the image itself and its flips, the others are random.

    Parameters
    ----------
    latents : Tensor of shape (n, n_variations, channels, h, w)
        Tensor to write the latents to.
    images : ImagesOnDemand of shape (n, C, H, W)
        Training images.
    space : LatentSpace
        Encodes the images.
    augment : str or None
        Kind of the variations.
    seed : int
        Seed of the random variations. Those of an image do not depend on the other images.
    precision : {"float32", "bfloat16"}
        Precision of the encoder.
    """
    n_variations = latents.shape[1]
    seeds = np.random.SeedSequence(seed).generate_state(len(images), np.uint64)

    def encode(start: int, size: int) -> None:
        part = torch.from_numpy(images[start : start + size])
        # One batch for each encoder, all of which see the same variations.
        batches = space.resized(ImageFormat.normalise(part))
        for i in range(n_variations):
            of_part = seeds[start : start + size]
            varied = [_variation(x, augment, i, of_part, images.shape[2:]) for x in batches]
            encoded = space.normalised_posterior(varied, precision)
            _check_finite(encoded, space)
            latents[start : start + len(part), i] = _stored(encoded, latents.dtype, space)

    in_batches(encode, len(images), ENCODED_AT_ONCE, space.device)


def _stored(encoded: Tensor, dtype: torch.dtype, space: LatentSpace) -> Tensor:
    """Convert encoded images to the dtype in which they are kept, which has less range."""
    stored = encoded.to(dtype)
    beyond = stored.isinf().flatten(2).any(dim=2).any(dim=0).nonzero().flatten().tolist()
    if not beyond:
        return stored
    most = f"{float(encoded.abs().max()):.2g}, and at most {torch.finfo(dtype).max:.2g} can be kept"
    is_feature = space.n_latent <= beyond[0] < space.shape[0]
    error = BackboneError if is_feature else AutoencoderError
    what = "backbone: the features" if is_feature else "autoencoder: the latents"
    raise error(
        f"{what} of some images have values of up to {most}. Of most images they are nearly the "
        "same: use another one, or leave out the images that differ."
    )


def _check_finite(encoded: Tensor, space: LatentSpace) -> None:
    features = encoded[:, space.n_latent : space.shape[0]]
    if space.backbone is not None and not bool(features.isfinite().all()):
        raise BackboneError(
            f"backbone={space.backbone.name} returned NaN or infinite features: use another one, "
            "or, if it computed in bfloat16, precision='float32'."
        )
    if not bool(encoded.isfinite().all()):
        raise AutoencoderError(
            "The autoencoder returned NaN or infinite latents: use another one, or, if it computed "
            "in bfloat16, precision='float32'."
        )


def _variation(
    x: Tensor, augment: str | None, number: int, seeds: np.ndarray, proportions: Sequence[int]
) -> Tensor:
    """Make a variation of each image: first the flips, then random ones.

    Neither the random numbers nor what they do to an image depend on the size that it was resized
    to, which each encoder has its own of; `proportions` are height and width before.
    """
    flips = flips_along(flipped_axes(augment, x.ndim - 2))
    if number < len(flips):
        return x.flip(flips[number])
    generators = [_generator(seed, number) for seed in seeds]
    return augment_each(x, augment, generators, proportions)


def _generator(seed: np.uint64, variation: int) -> torch.Generator:
    return torch.Generator().manual_seed(int(seed >> np.uint64(1)) ^ variation)
