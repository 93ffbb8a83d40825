"""Spaces: conversion between images and what the field works on.

This module has the protocol of all spaces and the space of pixels, in which the field works on the
images themselves. The space of latents is in `sklearn_msf.latent`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from sklearn_msf.data.images import ImageFormat
from sklearn_msf.data.on_demand import ImagesOnDemand, RowsOnDemand
from sklearn_msf.data.resizing import resize_images
from sklearn_msf.flow.label_codes import CodeReader, EncodedLabelCodes, LabelCodes, MaskReader
from sklearn_msf.persistence.archives import ArchiveError
from sklearn_msf.persistence.json_data import is_size
from sklearn_msf.persistence.limits import check_resized_size

__all__ = ["FieldInputs", "ImageSpace", "PixelInputs", "PixelSpace"]


class FieldInputs(Protocol):
    """Images in the form that the field takes, prepared when a batch is needed."""

    def __len__(self) -> int:
        """Count the images."""

    def batch(self, start: int, n: int, flip: tuple[int, ...] = ()) -> Tensor:
        """Make `n` images from the index `start` on, (n, C, H, W), flipped along axes."""


class ImageSpace(Protocol):
    """Conversion of images to inputs of the field, and of its outputs to images."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape (C, H, W) of the field's inputs; (C, D, H, W) of volumes."""

    @property
    def mask_codes(self) -> Tensor | None:
        """Masks of the classes, (K, C_y, H, W), or None if they are plain colours."""

    @property
    def autoencoder_source(self) -> dict[str, Any] | None:
        """Class and origin of the autoencoder as plain data, or None if there is none."""

    @property
    def makes_images(self) -> bool:
        """Whether outputs of the field can be converted to images."""

    def inputs(
        self,
        rows: RowsOnDemand,
        device: torch.device,
        precision: str,
        flips: Sequence[tuple[int, ...]],
        *,
        repeated: bool = False,
    ) -> FieldInputs:
        """Prepare images, (n, n_features), and their `flips` for one or repeated classification."""

    def reader(self, codes: LabelCodes | EncodedLabelCodes, label_decoding: str) -> MaskReader:
        """Return the reader that computes class probabilities from predicted masks."""

    def to_plain(self) -> tuple[dict[str, Any] | None, dict[str, Tensor]]:
        """Describe the space for a file: plain data and tensors."""

    def encode(self, x: Tensor, precision: str) -> Tensor:
        """Convert images (n, C, H, W) in [-1, 1] to inputs of the field."""

    def images(self, sampled: Tensor) -> Tensor:
        """Convert outputs of the field to images (n, C, H, W) in about [-1, 1]."""

    def masks(self, carried: Tensor) -> Tensor:
        """Convert the masks of the field to masks of colours."""

    def move_to(self, device: torch.device) -> None:
        """Move what converts images."""

    def on(self, device: torch.device) -> "ImageSpace":
        """Return the space with what converts images on a device; this one stays as it is."""

    def digest(self) -> str:
        """Identify all that the inputs of the field depend on besides the images."""

    def for_graphs(self) -> "ImageSpace":
        """Return the space on the CPU, with operations that do not depend on the batch size."""


class PixelInputs:
    """Images that are converted, moved to a device and scaled to [-1, 1] batch by batch.

    Parameters
    ----------
    images : ImagesOnDemand or ndarray of shape (n, C, H, W)
        uint8 in [0, 255] or float32 in [-1, 1].
    device : torch.device
        Device of the field.
    """

    def __init__(self, images: ImagesOnDemand | np.ndarray, device: torch.device):
        self._images = images
        self._device = device

    def __len__(self) -> int:
        """Count the images."""
        return len(self._images)

    def batch(self, start: int, n: int, flip: tuple[int, ...] = ()) -> Tensor:
        """Make `n` images from the index `start` on, flipped along axes."""
        images = self._images[start : start + n]
        x = ImageFormat.normalise(torch.from_numpy(images).to(self._device))
        return x.flip(flip) if flip else x


@dataclass(frozen=True)
class PixelSpace:
    """The space of a field that works on the images themselves, resized or as they are.

    Attributes
    ----------
    image_format : ImageFormat
        Layout and range of X.
    input_size : tuple of int or None
        Height and width to which images are resized for the field; None leaves them as they are.
    """

    image_format: ImageFormat
    input_size: tuple[int, int] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape (C, H, W) of the images that the field gets; (C, D, H, W) of volumes."""
        return (self.image_format.n_channels, *(self.input_size or self.image_format.size))

    @property
    def mask_codes(self) -> Tensor | None:
        """None, because masks are plain colours."""
        return None

    @property
    def autoencoder_source(self) -> None:
        """None, because there is no autoencoder."""
        return None

    @property
    def makes_images(self) -> bool:
        """True, because outputs of the field are images."""
        return True

    def digest(self) -> str:
        """Identify the sizes, as nothing is learned."""
        return f"{self.shape}"

    def inputs(
        self,
        rows: RowsOnDemand,
        device: torch.device,
        precision: str,
        flips: Sequence[tuple[int, ...]],
        *,
        repeated: bool = False,
    ) -> FieldInputs:
        """Prepare images that are converted and moved to the device batch by batch, each time."""
        return PixelInputs(self.resized(rows), device)

    def resized(self, rows: RowsOnDemand) -> ImagesOnDemand:
        """Prepare images, (n, n_features), in the size that the field gets."""
        return ImagesOnDemand(self.image_format, rows, self.input_size)

    def move_to(self, device: torch.device) -> None:
        """Move nothing."""

    def on(self, device: torch.device) -> "PixelSpace":
        """Return the space."""
        return self

    def reader(self, codes: LabelCodes | EncodedLabelCodes, label_decoding: str) -> MaskReader:
        """Return a reader that compares masks with the codes."""
        return CodeReader(codes.to("cpu"))

    def to_plain(self) -> tuple[dict[str, Any] | None, dict[str, Tensor]]:
        """Return the size if images are resized; the image format is saved elsewhere."""
        return None if self.input_size is None else {"input_size": list(self.input_size)}, {}

    @classmethod
    def from_plain(cls, plain: Any, image_format: ImageFormat) -> "PixelSpace":
        """Restore the space from the plain data that :meth:`to_plain` returned.

        Raises
        ------
        ArchiveError
            For data that :meth:`to_plain` cannot have returned.
        """
        if plain is None:
            return cls(image_format)
        size = plain["input_size"]
        if image_format.n_spatial_dims != 2 or not is_size(size):
            raise ArchiveError(f"The model has input_size={size!r}.")
        check_resized_size("input_size", size, image_format.size)
        return cls(image_format, (size[0], size[1]))

    def encode(self, x: Tensor, precision: str) -> Tensor:
        """Return the images unchanged."""
        return x

    def images(self, sampled: Tensor) -> Tensor:
        """Bring generated images to the size of X."""
        return resize_images(sampled, self.image_format.size)

    def masks(self, carried: Tensor) -> Tensor:
        """Return the masks unchanged."""
        return carried

    def for_graphs(self) -> "PixelSpace":
        """Return the space itself."""
        return self
