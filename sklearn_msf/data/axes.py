"""Axes of X: images, then their spatial axes, then channels if there are any.

The parameter `n_spatial_dims` says how many spatial axes there are, 2 of images and 3 of volumes.
The number is never guessed from the shape of X.
"""

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

__all__ = [
    "NOUNS",
    "OTHERS",
    "as_array",
    "axes_hint",
    "check_channels_last",
    "check_n_axes",
    "differing_sides",
    "shape_names",
    "squeezed",
]

# Gray, RGB, and both with transparency. More channels are allowed where image_shape names them.
_MAX_CHANNELS = 4

# What has so many spatial axes, and their names.
NOUNS = {2: "image", 3: "volume"}
_AXES = {2: ("height", "width"), 3: ("depth", "height", "width")}
# What to do with the other kind; only one estimator takes volumes.
OTHERS = {
    2: "for volumes fit MedSymmFlowClassifier with n_spatial_dims=3",
    3: "for images fit with n_spatial_dims=2",
}


def shape_names(n_spatial_dims: int, *before: str) -> str:
    """Write the two shapes of images by their axes, without channels and with them."""
    axes = (*before, *_AXES[n_spatial_dims])
    return f"{_listed(axes)} or {_listed((*axes, 'channels'))}"


def check_n_axes(shape: Sequence[int], n_spatial_dims: int) -> None:
    """Refuse arrays that are neither rows nor images with so many spatial axes.

    Parameters
    ----------
    shape : tuple of int
        Shape of X.
    n_spatial_dims : {2, 3}
        2 for images, 3 for volumes.
    """
    if len(shape) <= 2 or len(shape) in (n_spatial_dims + 1, n_spatial_dims + 2):
        return
    noun = NOUNS[n_spatial_dims]
    single = f"of a single {noun} pass X[None]; " if len(shape) == n_spatial_dims else ""
    raise ValueError(
        f"X has the shape {tuple(shape)} with {len(shape)} dimensions, but {noun}s are "
        f"{shape_names(n_spatial_dims, 'n')}: {single}{OTHERS[n_spatial_dims]}."
    )


def check_channels_last(
    X: Any, shape: tuple[int, ...], image_shape: Sequence[int] | None, n_spatial_dims: int
) -> None:
    """Refuse X whose last axis does not look like what it is, unless image_shape names it.

    The last axis of images with channels must be short, and that of volumes without channels must
    not be.

    Parameters
    ----------
    X : array-like
        Images as the user passed them.
    shape : tuple of int
        Shape of X as one array.
    image_shape : tuple of int or None
        Parameter of the estimator.
    n_spatial_dims : {2, 3}
        Parameter of the estimator.

    Raises
    ------
    ValueError
        With the axes that X seems to have, and what to write.
    """
    if image_shape is not None or len(shape) <= n_spatial_dims:
        return
    looks_like_channels = shape[-1] <= _MAX_CHANNELS
    if len(shape) == n_spatial_dims + 1:
        if n_spatial_dims > 2 and looks_like_channels:
            raise ValueError(
                f"X has the shape {shape}, which looks like images (n, height, width, channels), "
                f"but n_spatial_dims={n_spatial_dims} declares volumes: {OTHERS[n_spatial_dims]}. "
                f"If its volumes really have a width of {shape[-1]}, set image_shape={shape[1:]}."
            )
    elif not looks_like_channels:
        raise ValueError(f"X has the shape {shape}, {_without_channels(X, shape, n_spatial_dims)}")


def _without_channels(X: Any, shape: tuple[int, ...], n_spatial_dims: int) -> str:
    """Say what X seems to be instead of images with channels last, and what to write."""
    images, axes, n_channels = f"{NOUNS[n_spatial_dims]}s", _AXES[n_spatial_dims], shape[-1]
    moved = _channels_moved(X, n_spatial_dims)
    if shape[1] <= _MAX_CHANNELS:
        return (
            f"which looks like {_listed(('n', 'channels', *axes))}; {images} are "
            f"{_listed(('n', *axes, 'channels'))}: pass {moved}. If its {images} really have "
            f"{n_channels} channels, set image_shape={shape[1:]}."
        )
    ways = f"If the {images} have {n_channels} channels, set image_shape={shape[1:]}"
    if shape[1] != n_channels:
        ways += (
            f"; if they have {shape[1]} channels, pass {moved} and set "
            f"image_shape={(*shape[2:], shape[1])}"
        )
    if n_spatial_dims > 2:
        return f"whose last axis is longer than channels usually are. {ways}."
    return (
        f"which looks like volumes (n, depth, height, width), but images are "
        f"{shape_names(2, 'n')}: {OTHERS[2]}. To classify slices, pass "
        f"{as_array(X)}.reshape(-1, {shape[2]}, {shape[3]}) with a label for each. {ways}."
    )


def axes_hint(
    X: Any, shape: tuple[int, ...], image_shape: tuple[int, ...], n_spatial_dims: int
) -> str | None:
    """Find out how X has to be changed so that its images have a shape.

    Parameters
    ----------
    X : array-like
        Images as the user passed them.
    shape : tuple of int
        Shape of X as one array.
    image_shape : tuple of int
        Shape that the images should have: sizes of the spatial axes, then channels if there are
        any.
    n_spatial_dims : {2, 3}
        2 for images, 3 for volumes.

    Returns
    -------
    str or None
        What X is and what to write; None if X fits, or if nothing is known to help.
    """
    n = n_spatial_dims
    fits = (
        math.prod(shape[1:]) == math.prod(image_shape)
        if len(shape) == 2
        else (squeezed(shape[1:], n) == squeezed(image_shape, n))
    )
    if fits or not shape:
        return None
    first = (*(image_shape[n:] or (1,)), *image_shape[:n])
    single = f"X of shape {shape} is a single {NOUNS[n]}"
    if squeezed(shape, n) == squeezed(image_shape, n):
        return f"{single}: pass {as_array(X)}[None]."
    if shape == first:
        moved = _channels_moved(X, n, of_one=True)
        return f"{single} with its channels first: pass {moved}[None]."
    if shape[1:] == first:
        axes = _listed(("n", "channels", *_AXES[n]))
        return f"X of shape {shape} is {axes}: pass {_channels_moved(X, n)}."
    return None


def differing_sides(shape: Sequence[int], wanted: Sequence[int], n_spatial_dims: int) -> str:
    """Name the sides of images that are not as wanted, such as "depth 20, not 28"."""
    sides = zip(_AXES[n_spatial_dims], shape, wanted, strict=False)
    return ", ".join(f"{axis} {found}, not {side}" for axis, found, side in sides if found != side)


def squeezed(shape: tuple[int, ...], n_spatial_dims: int) -> tuple[int, ...]:
    """(H, W) for (H, W, 1), and (D, H, W) for (D, H, W, 1)."""
    return tuple(shape[:-1] if shape[n_spatial_dims:] == (1,) else shape)


def as_array(X: Any) -> str:
    """Write an expression for X as one array, for messages."""
    if isinstance(X, (list, tuple)):
        return "torch.stack(X)" if isinstance(X[0], Tensor) else "np.stack(X)"
    return "X" if hasattr(X, "reshape") else "np.asarray(X)"


def _listed(axes: Sequence[str]) -> str:
    return f"({', '.join(axes)})"


def _channels_moved(X: Any, n_spatial_dims: int, *, of_one: bool = False) -> str:
    """Write an expression for X, or for one image, with its first axis of channels moved last."""
    order = (*range(1, n_spatial_dims + 1), 0) if of_one else (0, *range(2, n_spatial_dims + 2), 1)
    tensors = isinstance(X[0] if isinstance(X, (list, tuple)) else X, Tensor)
    return f"{as_array(X)}.{'permute' if tensors else 'transpose'}{order}"
