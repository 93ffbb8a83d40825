"""Fitted models saved as folders with safetensors and JSON files."""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sklearn_msf._estimator.fit import Continuation, Fit
from sklearn_msf._estimator.model_card import CARD_START, model_card
from sklearn_msf._estimator.parameters import (
    GROUPS,
    PARAMETERS,
    Parameters,
    resolve_parameters,
    with_defaults,
)
from sklearn_msf._estimator.pickling import layout_from_plain, move_model
from sklearn_msf._estimator.rejection import RejectionRule
from sklearn_msf._version import __version__
from sklearn_msf.data.images import ImageFormat
from sklearn_msf.exceptions import AutoencoderError
from sklearn_msf.flow.label_codes import count_code_channels
from sklearn_msf.flow.velocity_field import FieldLayout, build_field
from sklearn_msf.model.fitted_model import FittedModel
from sklearn_msf.model.image_space import ImageSpace
from sklearn_msf.model.temperature import MAX_LOG_TEMPERATURE
from sklearn_msf.model.uncertainty import UNCERTAINTIES
from sklearn_msf.persistence.archives import (
    ArchiveError,
    check_tensors,
    part_of,
    read_archive,
    remove_leftovers,
    write_archive,
    write_file,
)
from sklearn_msf.persistence.json_data import (
    from_plain,
    labels_from_plain,
    labels_to_plain,
    to_plain,
)
from sklearn_msf.runtime.torch_state import standard_torch

__all__ = ["SavedModel", "SpaceReader", "open_model", "save_model"]

_NAME = "model"
_SPACE = "space"
_CARD = "README.md"
_MAX_SEED = 2**32
# Largest n_draws and n_steps in a file, so that a file cannot make predictions endless.
_MAX_REPETITIONS = 10_000
_MAX_SIDE = 2**14
_NUMBERS_OF_AN_EPOCH = ("epoch", "loss", "image_loss", "label_loss", "n_images", "seconds")
# Errors that invalid values in a file can raise. torch raises a RuntimeError for sizes beyond its
# limits.
_NOT_A_MODEL = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
)


# Restores the space of an estimator class, and the `origin` of a continuation, from a file's data.
SpaceReader = Callable[
    [Any, dict[str, Tensor], ImageFormat, Parameters, int], tuple[ImageSpace, Any]
]


class SavedModel(NamedTuple):
    """Content of a folder with a model.

    Attributes
    ----------
    parameters : dict
        Constructor parameters.
    fit : Fit
        The fitted model with classes, history and continuation.
    rejection : RejectionRule or None
        Rule for rejecting predictions, if one was learned.
    """

    parameters: dict[str, Any]
    fit: Fit
    rejection: RejectionRule | None


@standard_torch()
def save_model(
    folder: Any,
    class_name: str,
    parameters: Mapping[str, Any],
    fit: Fit,
    rejection: RejectionRule | None,
) -> None:
    """Write a fitted model and its card to a folder.

    Parameters
    ----------
    folder : str or Path
        Folder to write to; created if it is missing.
    class_name : str
        Name of the estimator class.
    parameters : mapping
        Constructor parameters.
    fit : Fit
        The fitted model.
    rejection : RejectionRule or None
        Rule for rejecting predictions, if one was learned.
    """
    path, model = Path(folder), fit.model
    names = fit.features.get("feature_names_in_")
    card = model_card(class_name, fit)
    metadata: dict[str, Any] = {
        "class": class_name,
        "library_version": __version__,
        "parameters": {
            name: to_plain(value) for name, value in parameters.items() if _is_saved(name)
        },
        "layout": {name: to_plain(value) for name, value in asdict(model.field.layout).items()},
        "classes": labels_to_plain(model.classes),
        "feature_names": None if names is None else names.tolist(),
        "image_format": model.image_format.to_plain(),
        "noise_seed": model.noise_seed,
        "n_continued": fit.continuation.n_continued,
        "mirrored": model.mirrored,
        "generates": model.generates,
        "generates_unconditionally": model.generates_unconditionally,
        "temperature": model.temperature,
        "rejection": None if rejection is None else dict(vars(rejection)),
        "history": fit.history,
    }
    tensors = dict(model.field.state_dict())
    space, of_space = model.space.to_plain()
    if space is not None:
        metadata["space"] = space
        tensors |= {f"{_SPACE}.{name}": value for name, value in of_space.items()}
    write_archive(path, _NAME, tensors, metadata)
    remove_leftovers(path, _NAME)
    if not (path / _CARD).exists() or (path / _CARD).read_bytes().startswith(CARD_START):
        write_file(path / _CARD, card.encode())


def _is_saved(name: str) -> bool:
    return name in GROUPS or "folder" not in PARAMETERS[name].affects


@standard_torch()
def open_model(
    folder: Any,
    class_name: str,
    default_parameters: Mapping[str, Any],
    group_defaults: Mapping[str, Mapping[str, Any]],
    read_space: SpaceReader,
) -> SavedModel:
    """Read a model that :func:`save_model` wrote.

    Parameters
    ----------
    folder : str or Path
        Folder of the model.
    class_name : str
        Name of the estimator class that opens the model.
    default_parameters : mapping
        Constructor parameters of the class with their defaults.
    group_defaults : mapping
        Entries of its dict parameters with their defaults.
    read_space : callable
        Restores the space of the class.

    Returns
    -------
    SavedModel

    Raises
    ------
    FileNotFoundError
        If the folder holds no model.
    ValueError
        For files that were cut off, changed or exchanged, and for a model of another class.
    """
    path = Path(folder)
    if not (path / f"{_NAME}.json").is_file():
        raise FileNotFoundError(
            f"folder={str(folder)!r} holds no model: {_NAME}.json is missing. "
            "save_pretrained writes it."
        )
    tensors, metadata = read_archive(path, _NAME)
    try:
        return _from_metadata(
            metadata, tensors, class_name, default_parameters, group_defaults, read_space
        )
    except (ArchiveError, AutoencoderError):
        raise
    # A changed file can hold any value in any place.
    except _NOT_A_MODEL as error:
        raise ArchiveError(f"{path / _NAME}.json is not a usable model: {error}.") from error


def _from_metadata(
    metadata: dict[str, Any],
    tensors: dict[str, Tensor],
    class_name: str,
    default_parameters: Mapping[str, Any],
    group_defaults: Mapping[str, Mapping[str, Any]],
    read_space: SpaceReader,
) -> SavedModel:
    if metadata["class"] != class_name:
        raise ArchiveError(
            f"The folder holds a {metadata['class']!r}, not a {class_name}: open it with "
            "that class."
        )
    given = {name: from_plain(value) for name, value in metadata["parameters"].items()}
    unknown = [n for n in given if n not in default_parameters or not _is_saved(n)]
    if unknown:
        raise ArchiveError(f"The model has parameters {unknown} that cannot be set from a file.")
    parameters = {**default_parameters, **given}
    p = resolve_parameters(parameters, group_defaults)
    if max(p.n_draws, p.n_steps) > _MAX_REPETITIONS:
        raise ArchiveError(
            f"The model has n_draws={p.n_draws} and n_steps={p.n_steps}; at most "
            f"{_MAX_REPETITIONS:,} are opened."
        )
    classes = labels_from_plain(metadata["classes"])
    if classes.ndim != 1 or len(classes) < 2 or not (classes[:-1] < classes[1:]).all():
        raise ArchiveError(
            "The model must have two or more classes, sorted and without duplicates."
        )
    image_format = ImageFormat.from_plain(metadata["image_format"])
    if max(image_format.shape) > _MAX_SIDE:
        raise ArchiveError(f"The model has images of shape {image_format.shape}.")
    of_space = part_of(tensors, _SPACE)
    weights = {n: value for n, value in tensors.items() if not n.startswith(f"{_SPACE}.")}
    space, origin = read_space(metadata.get("space"), of_space, image_format, p, len(classes))
    plain_layout = {name: from_plain(value) for name, value in metadata["layout"].items()}
    layout = _checked_layout(plain_layout, parameters, group_defaults, len(classes), space, weights)
    field = build_field(layout, 0, space.mask_codes)
    field.load_state_dict(weights)
    field.requires_grad_(False).eval()
    model = FittedModel(
        field=field,
        classes=classes,
        space=space,
        image_format=image_format,
        noise_seed=_integer("noise_seed", metadata["noise_seed"]),
        temperature=_temperature(metadata["temperature"]),
        mirrored=bool(metadata["mirrored"]),
        generates=bool(metadata["generates"]),
        generates_unconditionally=bool(metadata["generates_unconditionally"]),
    )
    n_continued = _integer("n_continued", metadata["n_continued"])
    features: dict[str, Any] = {"n_features_in_": math.prod(image_format.shape)}
    if metadata["feature_names"] is not None:
        names = _feature_names(metadata["feature_names"], features["n_features_in_"])
        features["feature_names_in_"] = names
    fit = Fit(
        model=move_model(model, p.device),
        history=_history(metadata["history"]),
        continuation=Continuation(None, n_continued, None, origin),
        features=features,
    )
    return SavedModel(parameters, fit, _rejection(metadata["rejection"]))


def _checked_layout(
    plain: dict[str, Any],
    parameters: Mapping[str, Any],
    group_defaults: Mapping[str, Mapping[str, Any]],
    n_classes: int,
    space: ImageSpace,
    weights: dict[str, Tensor],
) -> FieldLayout:
    """Make the layout, or refuse one that is invalid or does not fit the weights.

    A number in the file on which time or memory depends is compared with the size of the weights
    before it is used.
    """
    wanted = {field.name for field in fields(FieldLayout)}
    if plain.keys() != wanted:
        raise ArchiveError(f"The layout must have the entries {sorted(wanted)}.")
    flat = with_defaults(parameters, group_defaults)
    for name in wanted & flat.keys():
        PARAMETERS[name].check(name, plain[name])
    n_channels = space.shape[0]
    counts = plain["n_classes"], plain["image_channels"]
    if counts != (n_classes, n_channels):
        raise ArchiveError(
            f"The layout is for {counts[0]!r} classes and {counts[1]!r} channels; the model "
            f"has {n_classes} and {n_channels}."
        )
    layout = layout_from_plain(plain)
    if layout.n_blocks * len(layout.channel_mult) > len(weights):
        raise ArchiveError("The layout has more blocks than there are weights.")
    mask_codes = space.mask_codes
    if mask_codes is None:
        n_inputs = n_channels + count_code_channels(layout.label_encoding, n_classes)
    elif layout.label_prediction == "velocity" and len(mask_codes) == n_classes:
        n_inputs = n_channels + mask_codes.shape[1]
    else:
        raise ArchiveError("The model has encoded masks that its label branch does not use.")
    first = weights.get("unet.conv_in.weight")
    shape = () if first is None else tuple(first.shape)
    widths = [layout.channels * multiple for multiple in layout.channel_mult]
    wanted_shape = (widths[0], n_inputs * layout.patch_size**2, 3, 3)
    if shape != wanted_shape or max(widths) > sum(value.numel() for value in weights.values()):
        raise ArchiveError(f"The layout does not fit a first convolution of shape {shape}.")
    # The meta device allocates no memory; the checks above bound the time by the number of weights.
    with torch.device("meta"):
        field = build_field(layout, 0, mask_codes)
    check_tensors(weights, field.state_dict(), "The model")
    return layout


def _history(plain: Any) -> list[dict[str, Any]]:
    if not isinstance(plain, list) or not all(isinstance(log, dict) for log in plain):
        raise ArchiveError("The history of the model is not a list of epoch logs.")
    for log in plain:
        values = [log.get(name) for name in _NUMBERS_OF_AN_EPOCH]
        if not all(type(value) in (int, float) and math.isfinite(value) for value in values):
            raise ArchiveError(f"The history of the model has an invalid epoch log: {log!r}.")
    return plain


def _integer(name: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < _MAX_SEED:
        raise ArchiveError(f"The model has {name}={value!r}; expected an integer >= 0.")
    return value


def _temperature(value: Any) -> float:
    if type(value) not in (int, float) or not abs(math.log(value)) <= MAX_LOG_TEMPERATURE:
        raise ArchiveError(f"The model has temperature={value!r}.")
    return float(value)


def _rejection(plain: Any) -> RejectionRule | None:
    """Restore the rejection rule, if the model has one."""
    if plain is None:
        return None
    threshold, kind, settings = plain["threshold"], plain["kind"], plain["settings"]
    certified = threshold is None or (type(threshold) is float and math.isfinite(threshold))
    if not certified or kind not in UNCERTAINTIES or not isinstance(settings, dict):
        raise ArchiveError(f"The model has an invalid rejection rule: {plain!r}.")
    return RejectionRule(threshold, kind, settings)


def _feature_names(plain: Any, n_features: int) -> np.ndarray:
    names = np.array([str(name) for name in plain], dtype=object)
    if len(names) != n_features:
        raise ArchiveError(f"The model has {len(names)} feature names for {n_features} features.")
    return names
