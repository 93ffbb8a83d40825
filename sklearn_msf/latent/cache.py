"""Latents kept for training: in memory, or in a file where they are too many."""

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
    """Compute latents, or find those that were computed before.

    Up to `max_bytes` they are kept in memory. More are written to a file that is mapped into
    memory: one that carries the fingerprint in `folder`, for a run that goes on, or an unnamed
    one that is gone with the process.

    Parameters
    ----------
    shape : tuple of int
        Shape of all latents.
    fill : callable
        Computes them into the tensor that it is given.
    fingerprint : callable
        Tells images, variations and autoencoder apart, by letters and digits.
    folder : Path or None
        Where the checkpoints of the run are.
    max_bytes : int
        Bytes to keep in memory.

    Returns
    -------
    Tensor of the shape asked for, float16

    Raises
    ------
    OSError
        Where there is no room for the file; nothing is left of it.
    """
    n_bytes = int(np.prod(shape, dtype=np.int64)) * 2
    if n_bytes <= max_bytes:
        latents = torch.empty(shape, dtype=torch.float16)
        fill(latents)
        return latents
    if folder is None:
        # On POSIX nothing of it is left once the mapping is gone.
        with tempfile.TemporaryFile() as file:
            array = _map(file, shape, n_bytes)
        latents = torch.from_numpy(array)
        fill(latents)
        return latents
    path = folder / f"{_NAME}-{fingerprint()}.bin"
    folder.mkdir(parents=True, exist_ok=True)
    if path.is_file() and path.stat().st_size == n_bytes:
        # Changes, which nobody makes, would not reach the file.
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
    """Map a new file into memory, with its place on the disk taken at once."""
    if hasattr(os, "posix_fallocate"):
        # Without it a full disk would kill the process at some later write.
        os.posix_fallocate(file.fileno(), 0, n_bytes)
        return np.memmap(file, np.float16, "r+", shape=shape)
    return np.memmap(file, np.float16, "w+", shape=shape)


def _remove_others(folder: Path) -> None:
    """Delete latents of other images or autoencoders, and what was cut off.

    A file that another process has open or mapped stays whole for that process.
    """
    for pattern in (f"{_NAME}-*.bin", f".{_NAME}-*.part"):
        for path in folder.glob(pattern):
            with suppress(OSError):
                path.unlink()
