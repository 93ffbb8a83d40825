"""What to make of each image: the parameters of load_image_folder, checked."""

import math
import os
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np

from sklearn_msf.datasets._dicom_files import Window
from sklearn_msf.datasets._resizing import FITS
from sklearn_msf.persistence.paths import as_path

__all__ = ["FolderRequest", "checked_file", "checked_request"]

_COLORS = ("auto", "gray", "rgb")


@dataclass(frozen=True)
class FolderRequest:
    """What to make of each image."""

    size: tuple[int, ...] | None
    color: str
    fit: str
    window: Window
    volumes: bool


def checked_request(size: Any, color: str, fit: str, window: Any, volumes: bool) -> FolderRequest:
    """Check what to make of each image."""
    for name, value, allowed in (("color", color, _COLORS), ("fit", fit, FITS)):
        if value not in allowed:
            raise ValueError(f"{name} must be one of {allowed}, got {value!r}.")
    return FolderRequest(_checked_size(size, volumes), color, fit, _checked_window(window), volumes)


def _checked_size(size: Any, volumes: bool) -> tuple[int, ...] | None:
    if size is None:
        return None
    if isinstance(size, int | np.integer):
        size = (size,) * (3 if volumes else 2)
    is_whole = isinstance(size, tuple | list) and all(
        isinstance(n, int | np.integer) and not isinstance(n, bool) and n > 0 for n in size
    )
    if not is_whole or len(size) not in ((2, 3) if volumes else (2,)):
        forms = "(height, width)" + (" or (depth, height, width)" if volumes else "")
        raise ValueError(f"size must be None, a number of pixels or {forms}, got {size!r}.")
    return tuple(int(n) for n in size)


def _checked_window(window: Any) -> Window:
    if window is None or (isinstance(window, str) and window == "file"):
        return window
    if isinstance(window, tuple | list) and len(window) == 2:
        center, width = (float(n) if isinstance(n, Real) else math.nan for n in window)
        if math.isfinite(center) and 0 < width < math.inf:
            return center, width
    raise ValueError(
        f"window must be None, 'file' or (center, width) with a width above 0, got {window!r}."
    )


def checked_file(mmap_file: str | os.PathLike[str] | None, root: Path) -> Path | None:
    """Refuse a file that exists, or that would be taken for an image."""
    if mmap_file is None:
        return None
    file = as_path("mmap_file", mmap_file)
    if os.path.lexists(file):
        raise FileExistsError(
            f"mmap_file={str(file)!r} exists: delete it, name another file, or open it with "
            "np.load(mmap_file, mmap_mode='r')."
        )
    if not file.parent.is_dir():
        raise FileNotFoundError(f"The folder of mmap_file={str(file)!r} does not exist.")
    if file.resolve().is_relative_to(root.resolve()):
        raise ValueError(f"mmap_file={str(file)!r} must not be inside the folder that is read.")
    return file
