"""What the header of an image file says of its pixels, whatever the format."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

__all__ = ["MAX_FILE_BYTES", "MAX_VALUES", "ImageHeader", "check_file_size"]

# Values of one file, over all frames, pixels and channels, as for the images of a saved model
# (persistence.limits, which imports torch). Colour images of more are refused by Pillow as well.
MAX_VALUES = 2**28
# Room for so many values of eight bytes.
MAX_FILE_BYTES = 8 * MAX_VALUES
# Modalities whose values are in units however many bits are stored, such as Hounsfield units, or on
# a scale of their own in every image.
_ON_ONE_SCALE = ("CT", "PT", "MR")


@dataclass(frozen=True)
class ImageHeader:
    """Size and kind of the pixels of a file, or of the slices of a volume together.

    Attributes
    ----------
    size : tuple of int
        Height and width, after the orientation that the file names.
    n_frames : int
        Number of frames, pages or slices.
    n_channels : int
        1 for gray, 3 for RGB.
    dtype : numpy.dtype
        dtype of the pixels when they are read.
    bit_depth : int
        Bits that the file uses for a value.
    mode : str
        Pillow's mode of the image, or DICOM's photometric interpretation.
    modality, patient, series : str or None
        DICOM's Modality, PatientID and SeriesInstanceUID.
    position : tuple of (str, float) or None
        What orders the slices of a DICOM series, and the place of this one.
    orientation : tuple of float or None
        DICOM's ImageOrientationPatient: the directions of the rows and of the columns.
    """

    size: tuple[int, int]
    n_frames: int
    n_channels: int
    dtype: np.dtype
    bit_depth: int
    mode: str
    modality: str | None = None
    patient: str | None = None
    series: str | None = None
    position: tuple[str, float] | None = None
    orientation: tuple[float, ...] | None = None

    @property
    def bits_without_units(self) -> int | None:
        """Bits of a gray DICOM image whose values have no scale of their own; None for others."""
        is_gray_dicom = self.dtype == np.float32 and self.mode.startswith("MONOCHROME")
        return self.bit_depth if is_gray_dicom and self.modality not in _ON_ONE_SCALE else None

    def __post_init__(self) -> None:
        """Refuse images that are empty, or too large to be read without danger."""
        shape = (self.n_frames, *self.size, self.n_channels)
        if min(shape) < 1:
            raise ValueError(f"has no pixels: frames, height, width and channels are {shape}")
        if math.prod(shape) > MAX_VALUES:
            raise ValueError(
                f"has {math.prod(shape):,} values (frames, height, width and channels are "
                f"{shape}); at most {MAX_VALUES:,} are read"
            )


def check_file_size(path: Path) -> None:
    """Refuse files that are too large for the largest image that is read."""
    n_bytes = path.stat().st_size
    if n_bytes > MAX_FILE_BYTES:
        raise ValueError(f"has {n_bytes:,} bytes; at most {MAX_FILE_BYTES:,} are read")
