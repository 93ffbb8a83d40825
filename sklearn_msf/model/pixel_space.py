"""What the field works on: the images themselves, or something made of them."""

from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from sklearn_msf.data.images import ImageFormat
from sklearn_msf.flow.label_codes import EncodedLabelCodes, LabelCodes, PixelReading
from sklearn_msf.model.inference import FieldInputs, PixelInputs

__all__ = ["PixelRepresentation", "Representation"]


class Representation(Protocol):
    """The step before the field and the one after it."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of what the field works on."""

    def inputs(self, rows: np.ndarray, device: torch.device) -> FieldInputs:
        """Make rows of images ready for classification."""

    def kept_inputs(self, rows: np.ndarray, device: torch.device, *, mirrored: bool) -> FieldInputs:
        """Make rows of images ready to be classified again and again."""

    def codes(
        self, field_codes: LabelCodes | EncodedLabelCodes
    ) -> LabelCodes | EncodedLabelCodes | PixelReading:
        """Give what predicted masks are compared with."""

    def images(self, drawn: Tensor) -> Tensor:
        """Make images (n, C, H, W) in about [-1, 1] of what the field draws."""

    def masks(self, drawn: Tensor) -> Tensor:
        """Make masks of colours of the masks that the field carries."""


class PixelRepresentation:
    """Images as they are.

    Parameters
    ----------
    image_format : ImageFormat
        Layout and range of X.
    """

    def __init__(self, image_format: ImageFormat):
        self._format = image_format

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images."""
        return (self._format.n_channels, *self._format.size)

    def inputs(self, rows: np.ndarray, device: torch.device) -> FieldInputs:
        """Images, brought to the device batch by batch."""
        return PixelInputs(self._format.to_numpy_images(rows), device)

    def kept_inputs(self, rows: np.ndarray, device: torch.device, *, mirrored: bool) -> FieldInputs:
        """Images, as for a single time."""
        return self.inputs(rows, device)

    def codes(
        self, field_codes: LabelCodes | EncodedLabelCodes
    ) -> LabelCodes | EncodedLabelCodes | PixelReading:
        """Codes of the field."""
        return field_codes

    def images(self, drawn: Tensor) -> Tensor:
        """Return what the field draws."""
        return drawn

    def masks(self, drawn: Tensor) -> Tensor:
        """Return the masks that the field carries."""
        return drawn
