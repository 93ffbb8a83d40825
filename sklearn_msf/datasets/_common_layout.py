"""The shape and the dtype that all images of a folder have or get."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from sklearn_msf.datasets._folder_request import FolderRequest
from sklearn_msf.datasets._image_headers import MAX_VALUES, ImageHeader
from sklearn_msf.datasets._image_reading import Sample
from sklearn_msf.datasets._shortened_lists import first_of

__all__ = ["Described", "common_layout", "sample_size"]

Described = tuple[Sample, ImageHeader]

# Sizes and kinds of pixels that a message lists.
_N_LISTED = 10
_EXAMPLE_SIZE = 224


def sample_size(header: ImageHeader, request: FolderRequest) -> tuple[int, ...]:
    """Size of a sample: (height, width), or (depth, height, width) of a volume."""
    return (header.n_frames, *header.size) if request.volumes else header.size


def common_layout(
    described: list[Described], request: FolderRequest
) -> tuple[tuple[int, ...], np.dtype]:
    """Return the shape and the dtype that all images get.

    Raises
    ------
    ValueError
        If the images have several dtypes, or several sizes that `size` does not change.
    """
    dtypes = _by(described, lambda header: header.dtype)
    if len(dtypes) > 1:
        raise ValueError(
            f"The images have several bit depths or units: {_listed(dtypes)}. Load each kind by "
            "itself, or convert the files to one; DICOM files become uint8 with "
            "window=(center, width)."
        )
    size = _common_size(described, request)
    is_rgb = request.color == "rgb" or (
        request.color == "auto" and any(header.n_channels == 3 for _, header in described)
    )
    shape = (*size, 3) if is_rgb else size
    if math.prod(shape) > MAX_VALUES:
        raise ValueError(
            f"Images of shape {shape} have {math.prod(shape):,} values, and at most "
            f"{MAX_VALUES:,} are possible: pass a smaller size."
        )
    (dtype,) = dtypes
    return shape, dtype


def _common_size(described: list[Described], request: FolderRequest) -> tuple[int, ...]:
    if request.size is None:
        sizes = _by(described, lambda header: sample_size(header, request))
        if len(sizes) > 1:
            raise ValueError(
                f"size=None, but the images have {len(sizes)} sizes: {_listed(sizes)}. Pass size, "
                f"for example size={_EXAMPLE_SIZE}, to resize them."
            )
        (size,) = sizes
        return size
    if request.volumes and len(request.size) == 2:
        depths = _by(described, lambda header: header.n_frames)
        if len(depths) > 1:
            raise ValueError(
                f"size={request.size} keeps the depth, but the volumes have {len(depths)} depths: "
                f"{_listed(depths)}. Pass size=(depth, height, width)."
            )
        (depth,) = depths
        return (depth, *request.size)
    return request.size


def _by(described: list[Described], key: Callable[[ImageHeader], Any]) -> dict[Any, list[str]]:
    """Names of the samples that have the same in their headers, the most frequent first."""
    names: dict[Any, list[str]] = {}
    for sample, header in described:
        names.setdefault(key(header), []).append(sample.name)
    return dict(sorted(names.items(), key=lambda item: -len(item[1])))


def _listed(names: dict[Any, list[str]]) -> str:
    texts = [f"{key} ({len(files)}, such as {files[0]!r})" for key, files in names.items()]
    return first_of(texts, _N_LISTED)
