"""Data sets, and the digest by which a record knows them again."""

import hashlib
import io
import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

__all__ = [
    "SPLITS",
    "as_bytes",
    "as_tensor",
    "describe_data",
    "first_images",
    "load",
    "name_of_first",
    "resized",
]

SPLITS = ("train", "val", "test")
Splits = dict[str, tuple[np.ndarray, np.ndarray]]

# Sets of which a class has only its first training images: name, class and number.
_FEWER = {"pneumoniamnist_unbalanced": ("pneumoniamnist", 0, 388)}


def load(name: str, files: Mapping[str, str]) -> Splits:
    """Images and labels of each split of a data set.

    Parameters
    ----------
    name : str
        Name of MedMNIST, for another size than 28 px with it as in "retinamnist@224", of one of
        the files, or "pneumoniamnist_unbalanced": PneumoniaMNIST with the first 388 of its 1,214
        normal training images.
    files : mapping of str to str
        Names and paths of npz files. They hold arrays as MedMNIST's (``train_images``,
        ``train_labels`` and so on), or encoded images: ``bytes`` (uint8) and ``offsets`` (n + 1) of
        the image files in it, ``labels``, and ``split`` (0 training, 1 validation, 2 test).

    Returns
    -------
    dict of str to (ndarray of shape (n, H, W) or (n, H, W, 3), ndarray of shape (n,))
    """
    if name in _FEWER:
        whole, label, n_kept = _FEWER[name]
        splits = load(whole, files)
        X, y = splits["train"]
        kept = (y != label) | (np.cumsum(y == label) <= n_kept)
        return {**splits, "train": (X[kept], y[kept])}
    if name not in files:
        # Not needed for files, nor is pooch, which machines with a GPU may lack.
        from sklearn_msf.datasets import fetch_medmnist

        name, _, size = name.partition("@")
        return {
            split: fetch_medmnist(name, size=int(size or 28), split=split, return_X_y=True)
            for split in SPLITS
        }
    with np.load(files[name], allow_pickle=False) as arrays:
        if "offsets" in arrays:
            return _decoded(arrays)
        return {
            split: (arrays[f"{split}_images"], arrays[f"{split}_labels"].ravel())
            for split in SPLITS
        }


def _decoded(arrays: Any) -> Splits:
    """Decode the image files that an npz file holds, and split them."""
    from PIL import Image

    content, offsets = arrays["bytes"].tobytes(), arrays["offsets"]
    images = np.stack(
        [
            np.asarray(Image.open(io.BytesIO(content[start:end])))
            for start, end in itertools.pairwise(offsets)
        ]
    )
    labels, split = arrays["labels"], arrays["split"]
    return {name: (images[split == i], labels[split == i]) for i, name in enumerate(SPLITS)}


def describe_data(name: str, data: Mapping[str, tuple[np.ndarray, ...]]) -> dict[str, Any]:
    """Describe the arrays of a data set, as a record has them.

    Parameters
    ----------
    name : str
        Name of the data set.
    data : mapping of str to tuple of ndarray
        Arrays of each split.

    Returns
    -------
    dict
        name; arrays: shape and dtype of each; digest of names, shapes, dtypes and bytes.
    """
    digest, arrays = hashlib.sha256(), {}
    for split, parts in data.items():
        for what, array in zip(("images", "labels"), parts, strict=False):
            arrays[f"{split}_{what}"] = f"{array.shape} {array.dtype}"
            digest.update(f"{split}_{what} {array.shape} {array.dtype.str}".encode())
            digest.update(np.ascontiguousarray(array).data)
    return {"name": name, "digest": digest.hexdigest()[:16], "arrays": arrays}


def as_tensor(X: np.ndarray) -> torch.Tensor:
    """Images of shape (n, C, H, W) in [-1, 1] of uint8 ones, (n, H, W) or (n, H, W, C)."""
    X = X[..., None] if X.ndim == 3 else X
    return torch.from_numpy(X).permute(0, 3, 1, 2).float() / 127.5 - 1


def as_bytes(x: torch.Tensor) -> np.ndarray:
    """Images (n, C, H, W) in [-1, 1] as uint8."""
    return ((x + 1) * 127.5).round().clamp(0, 255).byte().numpy()


def resized(X: np.ndarray, side: int) -> np.ndarray:
    """Images of uint8 at another size."""
    x = F.interpolate(as_tensor(X), (side, side), mode="bicubic", antialias=True)
    images = as_bytes(x.clamp(-1, 1)).transpose(0, 2, 3, 1)
    return images[..., 0] if X.ndim == 3 else images


def first_images(
    data: Mapping[str, tuple[np.ndarray, np.ndarray]], n_images: int | None
) -> Mapping[str, tuple[np.ndarray, np.ndarray]]:
    """Select the first images of each class, about `n_images` of each split; None means all."""
    if n_images is None:
        return data
    chosen = {}
    for split, (X, y) in data.items():
        each = -(-n_images // len(np.unique(y)))
        rows = np.sort(np.concatenate([np.flatnonzero(y == c)[:each] for c in np.unique(y)]))
        chosen[split] = X[rows], y[rows]
    return chosen


def name_of_first(name: str, n_images: int | None) -> str:
    """Name of what :func:`first_images` selects of a data set."""
    return name if n_images is None else f"{name}, {n_images} images"
