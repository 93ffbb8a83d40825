"""Images that come one after the other as one array: in memory, or mapped from a file."""

import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from sklearn_msf.persistence.whole_files import whole_file

__all__ = ["collect"]

# A larger fraction of the memory is not filled: fit holds a second copy of the images.
_MEMORY_FRACTION = 0.25
# Memory of a machine that does not say how much it has.
_ASSUMED_MEMORY = 8 * 2**30


def collect(
    images: Iterator[np.ndarray], shape: tuple[int, ...], dtype: np.dtype, file: Path | None
) -> np.ndarray:
    """Put images into one array, in the order in which they come.

    Parameters
    ----------
    images : iterator of ndarray
        At most shape[0] images.
    shape : tuple of int
        Largest number of images, and the shape of each.
    dtype : numpy.dtype
        dtype of the images.
    file : Path or None
        New .npy file for the images. Without one, images that need more than a quarter of the
        memory go to a temporary file, which is deleted when the array is no longer used.

    Returns
    -------
    ndarray of shape (n, ...)
        In memory, or a read-only memory map. An error leaves no file.

    Raises
    ------
    FileExistsError
        If `file` has appeared meanwhile.
    """
    if file is not None:
        return _in_file(images, shape, dtype, file)
    if np.prod(shape, dtype=np.float64) * dtype.itemsize > _MEMORY_FRACTION * _memory():
        return _in_temporary_file(images, shape, dtype)
    data = np.empty(shape, dtype)
    n = 0
    for image in images:
        data[n] = image
        n += 1
    return data[:n]


def _memory() -> int:
    """Size of the memory of this machine."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # For example on Windows.
        return _ASSUMED_MEMORY


def _in_file(
    images: Iterator[np.ndarray], shape: tuple[int, ...], dtype: np.dtype, path: Path
) -> np.ndarray:
    """Write images to an .npy file, and map it."""
    description = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False}
    n = 0
    with whole_file(path) as file:
        np.lib.format.write_array_header_1_0(file, {**description, "shape": shape})
        for image in images:
            file.write(np.ascontiguousarray(image, dtype).data)
            n += 1
        # numpy leaves room in the header for another number of images.
        file.seek(0)
        np.lib.format.write_array_header_1_0(file, {**description, "shape": (n, *shape[1:])})
        if os.path.lexists(path):
            raise FileExistsError(
                f"{path} was written by something else while the images were read, and is kept."
            )
    mapped: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    return mapped


def _in_temporary_file(
    images: Iterator[np.ndarray], shape: tuple[int, ...], dtype: np.dtype
) -> np.ndarray:
    """Map a file that is deleted with the last array that shows it, or with the process."""
    # The folder is open to its owner only. The file needs a name, because joblib's workers open
    # it by that.
    folder = tempfile.mkdtemp(prefix="sklearn_msf-")
    try:
        data = _in_file(images, shape, dtype, Path(folder, "images.npy"))
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    # Parts of the array hold the same mapping.
    weakref.finalize(data.base, shutil.rmtree, folder, ignore_errors=True)
    return data
