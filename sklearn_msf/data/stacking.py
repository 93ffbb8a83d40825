"""Lists and object arrays of images as one array."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

__all__ = ["stack_images"]


def stack_images(X: Any) -> Any:
    """Stack a list of images, or an object array of them, to one array.

    Parameters
    ----------
    X : array-like
        Images in any form. Elements of a list may be arrays, tensors, images of Pillow or nested
        lists.

    Returns
    -------
    array-like
        One array of a list of images or rows; a single image of Pillow as an array; X itself
        otherwise.

    Raises
    ------
    ValueError
        If the images have several shapes, or dtypes that mean several ranges, for masked values,
        and for tensors of a dtype that numpy does not have.
    """
    _check_convertible(X, "X")
    if hasattr(X, "__array_interface__") and not hasattr(X, "shape"):
        return _array(X, "X")
    X = _only_column(X)
    if (
        not (isinstance(X, (list, tuple)) or _is_object_row(X))
        or not len(X)
        or all(np.isscalar(element) for element in X)
    ):
        return X
    images = [_array(image, f"image {i} of X") for i, image in enumerate(X)]
    shapes = [image.shape for image in images]
    other = next((i for i, shape in enumerate(shapes) if shape != shapes[0]), None)
    if other is not None:
        raise ValueError(
            f"X must hold images of one size, got {shapes[0]} for image 0 and {shapes[other]} for "
            f"image {other}: bring all images to one size and one number of channels."
        )
    if images[0].ndim == 0:
        return X
    _check_dtypes([image for given, image in zip(X, images, strict=True) if _has_dtype(given)])
    return np.stack(images)


def _check_convertible(values: Any, name: str) -> None:
    """Refuse what numpy would convert without its mask, or cannot convert."""
    if isinstance(values, np.ma.MaskedArray) and np.ma.is_masked(values):
        raise ValueError(
            f"{name} is a masked array with {np.ma.count_masked(values)} masked values, which "
            "would be taken for data: fill them in, for example X.filled(X.min())."
        )
    dtype = str(getattr(values, "dtype", "")).removeprefix("torch.")
    if isinstance(values, torch.Tensor) and dtype.startswith(("bfloat16", "float8", "float4")):
        raise ValueError(
            f"{name} is a tensor of {dtype}, a dtype that numpy does not have: pass X.float()."
        )


def _array(image: Any, name: str) -> np.ndarray:
    _check_convertible(image, name)
    if getattr(image, "mode", None) in ("P", "PA") and hasattr(image, "convert"):
        raise ValueError(
            f"{name} is a Pillow image of mode {image.mode!r}, whose values are indices into a "
            "palette: pass image.convert('RGB') or image.convert('L')."
        )
    try:
        return np.asarray(image)
    except ValueError as error:
        if "inhomogeneous" not in str(error):
            raise
        raise ValueError(
            f"{name} is not a rectangle: its rows have several lengths. Pass images of one size."
        ) from error


def _only_column(X: Any) -> Any:
    """Return the column of a table of one column of Python objects; anything else as it is."""
    if len(getattr(X, "shape", ())) != 2 or X.shape[1] != 1:
        return X
    if not hasattr(X, "iloc") and getattr(getattr(X, "dtype", None), "kind", None) != "O":
        return X
    column = X.iloc[:, 0] if hasattr(X, "iloc") else X[:, 0]
    is_of_images = _is_object_row(column) and len(column) and np.ndim(next(iter(column))) > 0
    return column if is_of_images else X


def _is_object_row(X: Any) -> bool:
    """Tell a one-dimensional array, or a column of pandas, of Python objects."""
    kind = getattr(getattr(X, "dtype", None), "kind", None)
    return kind == "O" and len(X.shape) == 1


def _has_dtype(image: Any) -> bool:
    """Tell images of a type from lists of Python's numbers, which may be of any."""
    return not isinstance(image, (list, tuple))


def _check_dtypes(images: Sequence[np.ndarray]) -> None:
    """Refuse unsigned integers of several widths, and integers beside floats."""
    kinds: dict[Any, np.dtype] = {}
    for image in images:
        dtype = image.dtype
        # Floats, and integers with a sign, mean the same in every width.
        kinds.setdefault(dtype.kind if dtype.kind in "fi" else (dtype.kind, dtype.itemsize), dtype)
    if len(kinds) > 1:
        example = ""
        if all(dtype.kind == "u" for dtype in kinds.values()):
            example = ", for example [image / np.iinfo(image.dtype).max for image in X]"
        raise ValueError(
            "X must hold images of one dtype and range, got "
            f"{' and '.join(map(str, kinds.values()))}: bring all images to one range and dtype "
            f"first{example}."
        )
