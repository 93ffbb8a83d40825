"""A fitted model: everything that predictions need, and nothing else."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from sklearn_msf.data.augmentation import flips_along
from sklearn_msf.data.images import ImageFormat
from sklearn_msf.flow.ode_solver import OdeSettings
from sklearn_msf.flow.velocity_field import VelocityField
from sklearn_msf.model.image_space import ImageSpace
from sklearn_msf.runtime.batch_sizes import Prepared, SmallBatches

__all__ = ["FittedModel"]


@dataclass(frozen=True, eq=False)
class FittedModel:
    """Result of a fit that is needed for predictions.

    Attributes
    ----------
    field : VelocityField
        The velocity field with averaged weights, in evaluation mode.
    classes : ndarray of shape (K,)
        Class labels, in order.
    space : ImageSpace
        Converts between images and what the field works on: pixels, or latents of an autoencoder.
    image_format : ImageFormat
        Layout, dtype and range of the training X.
    noise_seed : int
        Seed of the mask noise, the same for every image.
    temperature : float
        Temperature of the probabilities; 1 without calibration.
    flipped_axes : tuple of int
        Axes along which the last training flipped images, as negative numbers, the last axis
        first.
    ever_flipped_axes : tuple of int
        The same of all trainings together: a field can go on to draw flipped images.
    generates : bool
        Whether the image branch was trained.
    generates_unconditionally : bool
        Whether the image branch was also trained without a class, which guidance needs.
    """

    field: VelocityField
    classes: np.ndarray
    space: ImageSpace
    image_format: ImageFormat
    noise_seed: int
    temperature: float
    flipped_axes: tuple[int, ...]
    ever_flipped_axes: tuple[int, ...]
    generates: bool
    generates_unconditionally: bool

    @property
    def device(self) -> torch.device:
        """Device of the field."""
        return self.field.device

    def with_field(self, field: VelocityField, temperature: float = 1.0) -> "FittedModel":
        """Return a copy of the model with another field."""
        return replace(self, field=field, temperature=temperature)

    def small_batches(
        self,
        kind: Hashable,
        prepare: Callable[[int, int], Prepared],
        trial: Callable[[Prepared, int], object],
    ) -> SmallBatches[Prepared]:
        """Find the sizes to which batches may be padded that are not full.

        Parameters
        ----------
        kind : hashable
            What the operations depend on besides the field, its device and the format of images.
        prepare, trial : callable
            As in :class:`~sklearn_msf.runtime.batch_sizes.SmallBatches`.
        """
        field, images = self.field, self.image_format
        of_field = field.layout, type(field.codes), self.space.shape, self.device
        of_images = images.shape, images.flat, images.dtype
        return SmallBatches(field, (kind, of_field, of_images), prepare, trial)

    def flips(self, n_draws: int) -> list[tuple[int, ...]]:
        """Return the flips that draws see in turn: those of training, first the image as it is.

        Masks are not flipped, because all pixels of a mask have one colour.
        """
        return flips_along(self.flipped_axes)[:n_draws]

    def mask_noise(self, n_draws: int, ode: OdeSettings) -> Tensor:
        """Draw the noise of the masks of different draws, (n, C, H, W), the same in every call.

        One pass of the posterior depends on the noise in no way, only on the flip, so that draws
        beyond the number of flips repeat the first ones. One pixel, (n, C, 1, 1), stands for all.
        """
        n_channels = self.field.codes.n_channels
        if not self.field.is_one_pass(ode):
            return self.noise(n_draws, n_channels)
        one_pixel = [1] * len(self.space.shape[1:])
        return torch.zeros(len(self.flips(n_draws)), n_channels, *one_pixel, device=self.device)

    def noise(self, n: int, n_channels: int) -> Tensor:
        """Draw noise, (n, n_channels, H, W), the same for every image and in every call."""
        generator = torch.Generator().manual_seed(self.noise_seed)
        shape = (n, n_channels, *self.space.shape[1:])
        return torch.randn(shape, generator=generator).to(self.device)
