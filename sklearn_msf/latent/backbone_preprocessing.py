"""What the images of a backbone are to be: their size, mean and deviation.

Of a model of transformers they are in its preprocessor_config.json (in a folder also in the
processor_config.json that newer versions write instead), which is read as plain JSON: the image
processors of transformers need torchvision. Of other modules they are attributes.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from sklearn_msf.exceptions import BackboneError, PretrainedModelError
from sklearn_msf.latent.backbone import Preprocessing, vision_model
from sklearn_msf.latent.model_files import ModelKind, find_folder, read_json
from sklearn_msf.persistence.archives import UNEXPECTED_VALUE_ERRORS
from sklearn_msf.persistence.hub import fetch_from_hub, is_commit

__all__ = [
    "PREPROCESSOR_NAME",
    "as_preprocessing",
    "note_preprocessing",
    "own_preprocessing",
    "preprocessing_of_object",
    "preprocessor_entries",
]

PREPROCESSOR_NAME, _PROCESSOR_NAME = "preprocessor_config.json", "processor_config.json"
# Limit for an image's side in a file.
_MAX_SIDE = 8192
_N_COLOURS = 3
# Attribute of a model that was opened from files: what these say of its images.
_READ = "_preprocessing_of_files"


def own_preprocessing(module: nn.Module) -> Preprocessing:
    """Read what a module says of its images: its size, if it takes only one, and its channels."""
    n_channels = int(getattr(module, "in_channels", _N_COLOURS))
    size = getattr(module, "image_size", None)
    return Preprocessing(_as_size(size), (0.0,) * n_channels, (1.0,) * n_channels)


def note_preprocessing(module: nn.Module, preprocessing: Preprocessing) -> None:
    """Note in a model that was opened from files what these say of its images.

    The model does not know its files, and the fitted `backbone_` can be passed to another fit.
    """
    setattr(module, _READ, preprocessing)


def preprocessing_of_object(kind: ModelKind, model: nn.Module) -> Preprocessing:
    """Find the preprocessor_config.json of where a model of transformers was opened from."""
    name, origin = type(model).__name__, getattr(model.config, "_name_or_path", "")
    if str(getattr(model.config, "model_type", "")).startswith("mobilevit"):
        raise _wants_bgr(name)
    mean, deviation = getattr(model, "image_mean", None), getattr(model, "image_std", None)
    if mean is not None and deviation is not None:
        # Only of a file the name of its class tells it.
        divides_twice = getattr(model.config, "model_type", "") == "efficientnet"
        own = {"image_mean": mean, "image_std": deviation, "include_top": divides_twice}
        size = getattr(model, "image_size", getattr(vision_model(model).config, "image_size", None))
        own = own if size is None else {**own, "size": size}
        try:
            return _converted(own)
        except UNEXPECTED_VALUE_ERRORS as error:
            raise BackboneError(
                f"The attributes image_mean, image_std and image_size of backbone={name} cannot be "
                f"used ({error}): expected two lists with a number for each channel, deviations "
                "above 0, and a side or (height, width)."
            ) from error
    read = getattr(model, _READ, None)
    if isinstance(read, Preprocessing):
        return read
    if not origin:
        raise BackboneError(
            f"backbone={name} does not say how its images are to be normalised: open it by its id "
            "or its folder, or set its attributes image_mean and image_std, as in "
            f"{PREPROCESSOR_NAME} (for images in [0, 1]), and image_size."
        )
    try:
        folder = find_folder(kind, origin)
        if folder is not None:
            path = folder / PREPROCESSOR_NAME
        else:
            # Not all versions of transformers note the commit; without it the newest is meant.
            commit = getattr(model.config, "_commit_hash", None)
            revision = commit if is_commit(commit) else None
            found = fetch_from_hub(origin, revision, [PREPROCESSOR_NAME])
            path = found.files[PREPROCESSOR_NAME]
        entries = preprocessor_entries(kind, origin, path)
    except PretrainedModelError as error:
        raise BackboneError(
            f"backbone={name} was opened from {origin!r}, where {PREPROCESSOR_NAME} cannot be had "
            f"now: set its attributes image_mean and image_std (for images in [0, 1]), and "
            f"image_size. {error}"
        ) from error
    return as_preprocessing(origin, entries)


def preprocessor_entries(kind: ModelKind, name: str, path: Path) -> Mapping[str, Any]:
    """Read a preprocessor_config.json, or what of a file of all modalities replaces it."""
    if path.is_file():
        return read_json(kind, name, path)
    whole = path.with_name(_PROCESSOR_NAME)
    # Since version 5 transformers saves processors of several modalities in this file alone.
    entries = read_json(kind, name, whole).get("image_processor") if whole.is_file() else None
    if isinstance(entries, dict):
        return entries
    raise BackboneError(
        f"backbone={name!r} has no {PREPROCESSOR_NAME}, which says how its images are to be "
        "resized and normalised: take it from the model's repository, or pass the model as an "
        "object with the attributes image_mean, image_std and image_size."
    )


def as_preprocessing(name: str, entries: Mapping[str, Any]) -> Preprocessing:
    """Convert the entries of a preprocessor_config.json."""
    if entries.get("do_flip_channel_order", _class_of(entries).startswith("MobileViT")):
        raise _wants_bgr(name)
    try:
        return _converted(entries)
    except UNEXPECTED_VALUE_ERRORS as error:
        raise BackboneError(
            f"backbone={name!r} has a {PREPROCESSOR_NAME} that cannot be used ({error}): expected "
            "size or crop_size, image_mean and image_std. Pass the model as an object with the "
            "attributes image_mean, image_std and image_size."
        ) from error


def _converted(entries: Mapping[str, Any]) -> Preprocessing:
    """Convert entries, of any types and values, or raise one of `UNEXPECTED_VALUE_ERRORS`.

    The whole image is resized to the size that the model gets after any cropping: what lies at the
    border of a medical image may matter.
    """
    cropped = entries.get("do_center_crop", "size" not in entries)
    size = entries.get("crop_size") if cropped else None
    size = _as_size(entries.get("size") if size is None else size)
    mean, deviation = [0.0] * _N_COLOURS, [1.0] * _N_COLOURS
    if entries.get("do_normalize", True):
        mean, deviation = list(entries["image_mean"]), list(entries["image_std"])
    factor = entries.get("rescale_factor", 1 / 255) if entries.get("do_rescale", True) else 1
    numbers = [*mean, *deviation, factor]
    is_usable = len(mean) == len(deviation) and all(d > 0 for d in deviation) and factor > 0
    if not is_usable or not mean or not all(math.isfinite(value) for value in numbers):
        raise ValueError(f"mean {mean}, deviation {deviation}, rescale_factor {factor}")
    if entries.get("rescale_offset"):
        mean = [value + 1 for value in mean]
    if entries.get("include_top", _class_of(entries).startswith("EfficientNet")):
        # EfficientNet's images are divided by the deviation twice.
        deviation = [value**2 for value in deviation]
    # From units of the file to units of images in [-1, 1].
    half = 255 * factor / 2
    return Preprocessing(
        size, tuple(m / half - 1 for m in mean), tuple(d / half for d in deviation)
    )


def _class_of(entries: Mapping[str, Any]) -> str:
    return str(entries.get("image_processor_type", ""))


def _wants_bgr(name: str) -> BackboneError:
    return BackboneError(
        f"backbone={name!r} is for images whose channels are blue, green and red: pass a torch "
        "module whose forward(x) returns the map of the model for such images, as in "
        "model(pixel_values=((x + 1) / 2).flip(1)).last_hidden_state."
    )


def _as_size(size: Any) -> tuple[int, int] | None:
    """Convert a side, a pair, or a dict of a preprocessor_config.json to height and width."""
    if size is None:
        return None
    if isinstance(size, Mapping):
        side = size.get("shortest_edge")
        size = (size.get("height", side), size.get("width", side))
    sides = tuple(size) if isinstance(size, (tuple, list)) else (size, size)
    if len(sides) != 2 or not all(type(n) is int and 0 < n <= _MAX_SIDE for n in sides):
        raise BackboneError(
            f"The image size of a backbone must be a side or (height, width), in integers from 1 "
            f"to {_MAX_SIDE:,}, got {size!r}."
        )
    return sides
