"""Latents kept for training: in memory, or in a file if they are too large for it."""

import hashlib
import os
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sklearn_msf.persistence.whole_files import remove, whole_file
from sklearn_msf.runtime.user_warnings import warn_user

__all__ = ["keep_latents"]

_NAME = "latents"
_KEPT = re.compile(rf"{_NAME}-[0-9a-f]{{16}}\.bin")
# The digest lies behind the latents, so that both appear at once.
_DIGEST_BYTES = hashlib.sha256().digest_size
_ZEROS_AT_ONCE = 2**22
_RENAMES_MAPPED_FILES = os.name != "nt"


def keep_latents(
    shape: tuple[int, ...],
    fill: Callable[[Tensor], None],
    *,
    fingerprint: Callable[[], str],
    folder: Path | None,
    max_bytes: int,
) -> Tensor:
    """Compute latents, or reuse those that an earlier call wrote to a file.

    Latents of up to `max_bytes` are kept in memory. Larger ones are written to a file that is
    mapped into memory. In `folder` the name of the file contains the fingerprint, so that a resumed
    run finds it, and a digest behind the latents shows whether they are still the same; without
    `folder` the file is temporary and disappears with the process.

    Parameters
    ----------
    shape : tuple of int
        Shape of all latents.
    fill : callable
        Writes the latents into the tensor that it is given.
    fingerprint : callable
        Returns 16 hexadecimal digits that identify images, variations and autoencoder.
    folder : Path or None
        Folder with the checkpoints of the run.
    max_bytes : int
        Largest size of the latents to keep in memory.

    Returns
    -------
    Tensor of the shape asked for, float16

    Raises
    ------
    OSError
        If the disk has no space for the file; the partial file is removed.
    """
    n_bytes = int(np.prod(shape, dtype=np.int64)) * 2
    if n_bytes <= max_bytes:
        latents = torch.empty(shape, dtype=torch.float16)
        fill(latents)
        return latents
    if folder is None:
        # POSIX frees the disk space as soon as the mapping is gone.
        with _naming(Path(tempfile.gettempdir()), n_bytes), tempfile.TemporaryFile() as file:
            array = _map(file, shape, n_bytes)
        latents = torch.from_numpy(array)
        fill(latents)
        return latents
    name = fingerprint()
    path = folder / f"{_NAME}-{name}.bin"
    folder.mkdir(parents=True, exist_ok=True)
    found = _undamaged(path, shape, n_bytes, name)
    if found is not None:
        return _tensor(found)
    _remove_others(folder)
    with whole_file(path, f".{_NAME}-") as file:
        with _naming(folder, n_bytes):
            array = _map(file, shape, n_bytes + _DIGEST_BYTES)
        fill(torch.from_numpy(array))
        array.flush()
        file.seek(n_bytes)
        file.write(_digest(array, name))
        # Keep the map open where that is allowed: another process could delete the file before it
        # is opened again.
        mapped = array if _RENAMES_MAPPED_FILES else None
        del array
    if mapped is None:
        mapped = np.memmap(path, np.float16, "r", shape=shape)
    return _tensor(mapped)


def _tensor(array: np.ndarray) -> Tensor:
    """View latents as a tensor, which nothing writes to."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(array)


@contextmanager
def _naming(folder: Path, n_bytes: int) -> Iterator[None]:
    """Say in an error of the file system what was written, where, and what to do."""
    try:
        yield
    except OSError as error:
        raise OSError(
            error.errno,
            f"{error.strerror}: the latents of all variations need {n_bytes / 2**20:,.0f} MiB in "
            f"{str(folder)!r}, as they are larger than cache_bytes. Make space there, name "
            "another folder (checkpoint_dir, or TMPDIR without one), or set a smaller "
            "n_variations or a larger cache_bytes",
        ) from error


def _undamaged(path: Path, shape: tuple[int, ...], n_bytes: int, name: str) -> np.memmap | None:
    """Map the latents of a file; None if there is none, or if it does not hold what was written."""
    if not path.is_file():
        return None
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size != n_bytes + _DIGEST_BYTES:
            return None
        # A map that can be written to, even copy-on-write, would have to fit into the memory.
        array = np.memmap(file, np.float16, "r", shape=shape)
        file.seek(n_bytes)
        if file.read() == _digest(array, name):
            return array
    warn_user(f"{path} is damaged: the images are encoded again.")
    return None


def _digest(array: np.ndarray, name: str) -> bytes:
    digest = hashlib.sha256(f"{name} {array.shape}".encode())
    digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.digest()


def _map(file: Any, shape: tuple[int, ...], n_bytes: int) -> np.memmap:
    """Map a new file into memory, and reserve its disk space at once.

    Without the reservation a full disk would kill the process at a later write.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, n_bytes)
    else:  # macOS and Windows
        zeros = bytes(min(n_bytes, _ZEROS_AT_ONCE))
        for start in range(0, n_bytes, _ZEROS_AT_ONCE):
            file.write(zeros[: n_bytes - start])
        file.flush()
    return np.memmap(file, np.float16, "r+", shape=shape)


def _remove_others(folder: Path) -> None:
    """Delete files with latents of other images or autoencoders.

    A process that has such a file open or mapped can go on reading it.
    """
    for path in list(folder.iterdir()):
        if _KEPT.fullmatch(path.name):
            remove(path)
