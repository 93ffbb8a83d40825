"""Axes of X: images, then height and width, then channels if there are any."""

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

__all__ = ["as_array", "axes_hint", "check_channels_last", "check_not_volumes", "squeezed"]

# Gray, RGB, and both with transparency. More channels are allowed where image_shape names them.
_MAX_CHANNELS = 4


def check_not_volumes(shape: Sequence[int]) -> None:
    """Refuse arrays of more than four dimensions.

    Parameters
    ----------
    shape : tuple of int
        Shape of X.
    """
    if len(shape) > 4:
        raise ValueError(
            f"X has the shape {tuple(shape)} with {len(shape)} dimensions, but images are "
            "(n, height, width) or (n, height, width, channels); volumes are not supported. "
            "Pass their slices as images."
        )


def check_channels_last(X: Any, shape: tuple[int, ...], image_shape: Sequence[int] | None) -> None:
    """Refuse images whose last axis does not look like channels, unless image_shape names it.

    Parameters
    ----------
    X : array-like
        Images as the user passed them.
    shape : tuple of int
        Shape of X as one array.
    image_shape : tuple of int or None
        Parameter of the estimator.

    Raises
    ------
    ValueError
        With the axes that X seems to have, and what to write.
    """
    if image_shape is not None or len(shape) != 4 or shape[3] <= _MAX_CHANNELS:
        return
    has = f"X has the shape {shape}, which looks like"
    if shape[1] <= _MAX_CHANNELS:
        raise ValueError(
            f"{has} (n, channels, height, width); images are (n, height, width, channels): "
            f"pass {_moved(X, (0, 2, 3, 1))}. If its images really have {shape[3]} channels, set "
            f"image_shape={shape[1:]}."
        )
    ways = f"If the images have {shape[3]} channels, set image_shape={shape[1:]}"
    if shape[1] != shape[3]:
        moved = (*shape[2:], shape[1])
        ways += (
            f"; if they have {shape[1]} channels, pass {_moved(X, (0, 2, 3, 1))} and set "
            f"image_shape={moved}"
        )
    raise ValueError(
        f"{has} volumes (n, depth, height, width), which are not supported; images are "
        f"(n, height, width) or (n, height, width, channels). To classify slices, pass "
        f"{as_array(X)}.reshape(-1, {shape[2]}, {shape[3]}) with a label for each. {ways}."
    )


def axes_hint(X: Any, shape: tuple[int, ...], image_shape: tuple[int, ...]) -> str | None:
    """Find out how X has to be changed so that its images have a shape.

    Parameters
    ----------
    X : array-like
        Images as the user passed them.
    shape : tuple of int
        Shape of X as one array.
    image_shape : tuple of int
        (H, W) or (H, W, C) that the images should have.

    Returns
    -------
    str or None
        What X is and what to write; None if X fits, or if nothing is known to help.
    """
    fits = (
        math.prod(shape[1:]) == math.prod(image_shape)
        if len(shape) == 2
        else (squeezed(shape[1:]) == squeezed(image_shape))
    )
    if fits or not shape:
        return None
    height, width, channels = (*image_shape, 1)[:3]
    if squeezed(shape) == squeezed(image_shape):
        return f"X of shape {shape} is a single image: pass {as_array(X)}[None]."
    if shape == (channels, height, width):
        moved = _moved(X, (1, 2, 0))
        return f"X of shape {shape} is a single image with its channels first: pass {moved}[None]."
    if shape[1:] == (channels, height, width):
        moved = _moved(X, (0, 2, 3, 1))
        return f"X of shape {shape} is (n, channels, height, width): pass {moved}."
    return None


def squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """(H, W) for (H, W, 1)."""
    return tuple(shape[:2]) if len(shape) == 3 and shape[2] == 1 else tuple(shape)


def as_array(X: Any) -> str:
    """Write an expression for X as one array, for messages."""
    if isinstance(X, (list, tuple)):
        return "torch.stack(X)" if isinstance(X[0], Tensor) else "np.stack(X)"
    return "X" if hasattr(X, "reshape") else "np.asarray(X)"


def _moved(X: Any, order: tuple[int, ...]) -> str:
    """Write an expression for X with its axes in another order."""
    tensors = isinstance(X[0] if isinstance(X, (list, tuple)) else X, Tensor)
    return f"{as_array(X)}.{'permute' if tensors else 'transpose'}{order}"
