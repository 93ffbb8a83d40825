"""Lists and object arrays of images as one array."""

from collections.abc import Sequence
from typing import Any

import numpy as np

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
        If the images have several shapes, or dtypes that mean several ranges.
    """
    if hasattr(X, "__array_interface__") and not hasattr(X, "shape"):
        return _array(X, "X")
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


def _array(image: Any, name: str) -> np.ndarray:
    if getattr(image, "mode", None) == "P" and hasattr(image, "convert"):
        raise ValueError(
            f"{name} is a Pillow image of mode 'P', whose values are indices into a palette: pass "
            "image.convert('RGB') or image.convert('L')."
        )
    try:
        return np.asarray(image)
    except ValueError as error:
        if "inhomogeneous" not in str(error):
            raise
        raise ValueError(
            f"{name} is not a rectangle: its rows have several lengths. Pass images of one size."
        ) from error


def _is_object_row(X: Any) -> bool:
    """Tell a one-dimensional array, or a column of pandas, of Python objects."""
    kind = getattr(getattr(X, "dtype", None), "kind", None)
    return kind == "O" and len(X.shape) == 1


def _has_dtype(image: Any) -> bool:
    """Tell images of a type from lists of Python's numbers, which may be of any."""
    return not isinstance(image, (list, tuple))


def _check_dtypes(images: Sequence[np.ndarray]) -> None:
    """Refuse integers of several widths, or integers beside floats: their ranges differ."""
    kinds: dict[Any, np.dtype] = {}
    for image in images:
        dtype = image.dtype
        # Floats mean the same in every width.
        kinds.setdefault("f" if dtype.kind == "f" else (dtype.kind, dtype.itemsize), dtype)
    if len(kinds) > 1:
        raise ValueError(
            "X must hold images of one dtype and range, got "
            f"{' and '.join(map(str, kinds.values()))}: bring all images to one range first, for "
            "example [image / np.iinfo(image.dtype).max for image in X] of unsigned integers."
        )
