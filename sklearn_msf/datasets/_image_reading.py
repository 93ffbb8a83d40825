"""Headers and pixels of one sample: of an image file, or of the slices of a volume."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sklearn_msf.datasets import _dicom_files, _pillow_files
from sklearn_msf.datasets._dicom_files import Window
from sklearn_msf.datasets._image_headers import ImageHeader

__all__ = ["Sample", "is_image", "read_sample", "read_sample_header"]

# Directions of slices that differ by less are equal but for rounding.
_SAME_DIRECTION = 0.01


@dataclass(frozen=True)
class Sample:
    """One image or one volume.

    Attributes
    ----------
    name : str
        The file, or the folder or other name of several slices; relative to the folder, with "/".
    files : tuple of str
        The file, or the slices in their order.
    label, group : object
        Class and group; None if there are none.
    """

    name: str
    files: tuple[str, ...]
    label: Any = None
    group: Any = None


def is_image(path: Path) -> bool:
    """Tell by its first bytes whether a file is an image of a format that is read."""
    start = _start(path)
    return _is_dicom(start) or start.startswith(_pillow_files.SIGNATURES)


def _start(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(_dicom_files.PREFIX_AT + len(_dicom_files.PREFIX))


def _is_dicom(start: bytes) -> bool:
    return start[_dicom_files.PREFIX_AT :] == _dicom_files.PREFIX


def _read_header(path: Path, window: Window) -> ImageHeader:
    # Opening a file of a network's folder takes longer than reading its start: once is enough.
    start = _start(path)
    if _is_dicom(start):
        return _dicom_files.read_header(path, window)
    if not start.startswith(_pillow_files.SIGNATURES):
        raise ValueError("is neither PNG, JPEG, TIFF nor DICOM with its preamble")
    return _pillow_files.read_header(path)


def _read_pixels(path: Path, window: Window) -> np.ndarray:
    if _is_dicom(_start(path)):
        return _dicom_files.read_pixels(path, window)
    return _pillow_files.read_pixels(path)


def read_sample_header(
    root: Path, sample: Sample, window: Window, *, volumes: bool
) -> tuple[Sample, ImageHeader]:
    """Read the headers of a sample, and bring slices into their order.

    Parameters
    ----------
    root : Path
        Folder that the names of files are relative to.
    sample : Sample
        The image or volume.
    window : tuple, "file" or None
        Window of DICOM files.
    volumes : bool
        Whether several frames are a volume; else they are refused.

    Returns
    -------
    sample : Sample
        With its files in order.
    header : ImageHeader
        Of all slices together.

    Raises
    ------
    ValueError
        With the reason why the sample cannot be read.
    """
    headers = {
        file: _of_file(sample, file, lambda path: _read_header(path, window), root)
        for file in sample.files
    }
    first, *others = headers.values()
    for header in others:
        _check_same_volume(first, header)
    files = _in_order(headers)
    n_frames = sum(header.n_frames for header in headers.values())
    if n_frames > 1 and not volumes:
        raise ValueError(f"has {n_frames} frames: pass volumes=True, or save each as a file")
    return replace(sample, files=files), replace(headers[files[0]], n_frames=n_frames)


def read_sample(root: Path, sample: Sample, header: ImageHeader, window: Window) -> np.ndarray:
    """Read the pixels of a sample.

    Returns
    -------
    ndarray of shape (n_frames, H, W, n_channels)
        In the size and dtype of the header.

    Raises
    ------
    ValueError
        With the reason why the sample cannot be read.
    """
    frames = np.concatenate(
        [
            _of_file(sample, file, lambda path: _read_pixels(path, window), root)
            for file in sample.files
        ]
    )
    expected = (header.n_frames, *header.size, header.n_channels)
    if frames.shape != expected or frames.dtype != header.dtype:
        raise ValueError(
            f"has pixels of shape {frames.shape} and {frames.dtype}, but its header says "
            f"{expected} and {header.dtype}"
        )
    if not np.isfinite(frames).all():
        raise ValueError("has values that are NaN or infinite")
    return frames


def _of_file(sample: Sample, file: str, read: Callable[[Path], Any], root: Path) -> Any:
    """Read a file; name it in the error if it is one of several slices."""
    try:
        return read(root / file)
    except ImportError:
        raise
    except Exception as error:
        if file == sample.name:
            raise
        raise ValueError(f"slice {file!r}: {error}") from error


def _check_same_volume(first: ImageHeader, header: ImageHeader) -> None:
    """Refuse slices that cannot be of one volume."""
    for name in ("size", "n_channels", "dtype", "series", "modality", "bits_without_units"):
        mine, other = getattr(first, name), getattr(header, name)
        if mine != other:
            plurals = {"modality": "modalities", "bits_without_units": "numbers of bits"}
            what = plurals.get(name, name)
            raise ValueError(f"its slices have different {what}: {mine} and {other}")
    axes, others = first.orientation, header.orientation
    if axes and others and not np.allclose(axes, others, atol=_SAME_DIRECTION):
        raise ValueError(f"its slices have different orientations: {axes} and {others}")


def _in_order(headers: dict[str, ImageHeader]) -> tuple[str, ...]:
    """Order slices by their positions, all of the same kind; as they are if none has one."""
    positions = {file: header.position for file, header in headers.items()}
    kinds = {position[0] if position else None for position in positions.values()}
    if len(positions) < 2 or kinds == {None}:
        return tuple(positions)
    if len(kinds) > 1:
        raise ValueError(
            "only some of its slices have a position, or without any the number of an instance, so "
            "their order is unknown"
        )
    if len(set(positions.values())) < len(positions):
        raise ValueError(f"several of its slices have the same {kinds.pop()}")
    return tuple(sorted(positions, key=lambda file: positions[file] or ("", 0.0)))
