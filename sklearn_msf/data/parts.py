"""Large arrays of images, part by part: temporary arrays stay small beside them."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

__all__ = ["parts_of", "parts_of_shape"]

_VALUES_AT_ONCE = 2**18


def parts_of(images: Any) -> Iterator[slice]:
    """Divide images, (n, ...), into parts that are small beside the memory."""
    return parts_of_shape(len(images), images.shape[1:])


def parts_of_shape(n_images: int, shape: Sequence[int]) -> Iterator[slice]:
    """Divide so many images of a shape into parts that are small beside the memory."""
    n_at_once = max(1, _VALUES_AT_ONCE // max(1, math.prod(shape)))
    for start in range(0, n_images, n_at_once):
        yield slice(start, start + n_at_once)
