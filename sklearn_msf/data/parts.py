"""Large arrays of images, part by part: temporary arrays stay small beside them."""

import math
from collections.abc import Iterator
from typing import Any

__all__ = ["parts_of"]

_VALUES_AT_ONCE = 2**18


def parts_of(images: Any) -> Iterator[slice]:
    """Divide images, (n, ...), into parts that are small beside the memory."""
    n_at_once = max(1, _VALUES_AT_ONCE // max(1, math.prod(images.shape[1:])))
    for start in range(0, len(images), n_at_once):
        yield slice(start, start + n_at_once)
