"""Latents kept for training: in memory, or in a file if they are too large for it."""

import os
import secrets
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["keep_latents"]

_NAME = "latents"


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
    run finds it; without `folder` the file is temporary and disappears with the process.

    Parameters
    ----------
    shape : tuple of int
        Shape of all latents.
    fill : callable
        Writes the latents into the tensor that it is given.
    fingerprint : callable
        Returns letters and digits that identify images, variations and autoencoder.
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
        with tempfile.TemporaryFile() as file:
            array = _map(file, shape, n_bytes)
        latents = torch.from_numpy(array)
        fill(latents)
        return latents
    path = folder / f"{_NAME}-{fingerprint()}.bin"
    folder.mkdir(parents=True, exist_ok=True)
    if path.is_file() and path.stat().st_size == n_bytes:
        # Mode "c" is copy-on-write: the file cannot be changed by accident.
        return torch.from_numpy(np.memmap(path, np.float16, "c", shape=shape))
    _remove_others(folder)
    unfinished = folder / f".{_NAME}-{secrets.token_hex(4)}.part"
    try:
        with open(unfinished, "w+b") as file:
            array = _map(file, shape, n_bytes)
            fill(torch.from_numpy(array))
            array.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except BaseException:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise
    return torch.from_numpy(array)


def _map(file: Any, shape: tuple[int, ...], n_bytes: int) -> np.memmap:
    """Map a new file into memory, and reserve its disk space at once."""
    if hasattr(os, "posix_fallocate"):
        # Without the reservation a full disk would kill the process at a later write.
        os.posix_fallocate(file.fileno(), 0, n_bytes)
        return np.memmap(file, np.float16, "r+", shape=shape)
    return np.memmap(file, np.float16, "w+", shape=shape)


def _remove_others(folder: Path) -> None:
    """Delete files with latents of other images or autoencoders, and unfinished files.

    A process that has such a file open or mapped can go on reading it.
    """
    for pattern in (f"{_NAME}-*.bin", f".{_NAME}-*.part"):
        for path in folder.glob(pattern):
            with suppress(OSError):
                path.unlink()
