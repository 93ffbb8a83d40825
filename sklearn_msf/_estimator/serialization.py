"""Fitted models saved as folders with safetensors and JSON files."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sklearn_msf._estimator.auto_settings import classification_ode
from sklearn_msf._estimator.fit_result import Continuation, FitResult
from sklearn_msf._estimator.model_card import card_to_write, is_card, model_card
from sklearn_msf._estimator.parameters import (
    GROUPS,
    PARAMETERS,
    Parameters,
    check_positive_integer,
    resolve_parameters,
    with_defaults,
)
from sklearn_msf._estimator.rejection import RejectionRule
from sklearn_msf._estimator.restoring import (
    flipped_axes_from_plain,
    integer_from_plain,
    layout_from_plain,
    restored_model,
)
from sklearn_msf._version import __version__
from sklearn_msf.data.augmentation import AUGMENTATIONS, flipped_axes
from sklearn_msf.data.images import ImageFormat
from sklearn_msf.exceptions import PretrainedModelError
from sklearn_msf.flow.label_codes import count_code_channels, make_label_codes
from sklearn_msf.flow.velocity_field import FieldLayout, build_field
from sklearn_msf.model.fitted_model import FittedModel
from sklearn_msf.model.image_space import ImageSpace
from sklearn_msf.model.temperature import MAX_LOG_TEMPERATURE
from sklearn_msf.nn.unet import count_blocks_up
from sklearn_msf.persistence.archives import (
    UNEXPECTED_VALUE_ERRORS,
    ArchiveError,
    check_is_free,
    check_tensors,
    part_of,
    read_archive,
    remove_leftovers,
    write_archive,
)
from sklearn_msf.persistence.json_data import (
    from_plain,
    labels_from_plain,
    labels_to_plain,
    to_plain,
)
from sklearn_msf.persistence.limits import (
    check_blocks,
    check_image_shape,
    check_metadata_size,
    check_passes,
)
from sklearn_msf.persistence.paths import as_path
from sklearn_msf.persistence.whole_files import write_file
from sklearn_msf.runtime.torch_state import standard_torch
from sklearn_msf.runtime.user_warnings import warn_user
from sklearn_msf.training.epoch_logs import check_history_of_model

__all__ = [
    "CARD_NAME",
    "MODEL_NAME",
    "SavedClass",
    "SavedModel",
    "SpaceReader",
    "open_model",
    "save_model",
]

MODEL_NAME = "model"
_SPACE = "space"
CARD_NAME = "README.md"
_FLAGS = ("generates", "generates_unconditionally")


# Restores the space of an estimator class, and the `origin` of a continuation, from a file's data;
# see `Preparation.read_space`.
SpaceReader = Callable[..., tuple[ImageSpace, Any]]


class SavedClass(NamedTuple):
    """What saving and opening must know of an estimator class.

    Attributes
    ----------
    name : str
        Name of the class.
    default_parameters : mapping
        Constructor parameters with their defaults.
    group_defaults : mapping
        Entries of the dict parameters with their defaults.
    read_space : callable
        Restores the space of the class.
    """

    name: str
    default_parameters: Mapping[str, Any]
    group_defaults: Mapping[str, Mapping[str, Any]]
    read_space: SpaceReader


class SavedModel(NamedTuple):
    """Content of a folder with a model.

    Attributes
    ----------
    parameters : dict
        Constructor parameters.
    fit : FitResult
        The fitted model with classes, history and continuation.
    rejection : RejectionRule or None
        Rule for rejecting predictions, if one was learned.
    """

    parameters: dict[str, Any]
    fit: FitResult
    rejection: RejectionRule | None


@standard_torch()
def save_model(
    folder: Any,
    saved_class: SavedClass,
    parameters: Mapping[str, Any],
    fit: FitResult,
    rejection: RejectionRule | None,
    **of_card: Any,
) -> None:
    """Write a fitted model and its card to a folder.

    Parameters
    ----------
    folder : str or Path
        Folder to write to; created if it is missing.
    saved_class : SavedClass
        The estimator class.
    parameters : mapping
        Constructor parameters.
    fit : FitResult
        The fitted model.
    rejection : RejectionRule or None
        Rule for rejecting predictions, if one was learned.
    **of_card : dict
        What the card says besides, see :func:`~sklearn_msf._estimator.model_card.model_card`.

    Raises
    ------
    ValueError
        For a model that :func:`open_model` would refuse, and for a folder with a file of another
        program; what is in the folder stays.
    """
    path, model = as_path("folder", folder), fit.model
    names = fit.features.get("feature_names_in_")
    new_card = model_card(saved_class.name, fit, parameters, **of_card)
    metadata: dict[str, Any] = {
        "class": saved_class.name,
        "library_version": __version__,
        "parameters": {
            name: to_plain(value) for name, value in parameters.items() if _is_saved(name)
        },
        "layout": {name: to_plain(value) for name, value in asdict(model.field.layout).items()},
        "classes": labels_to_plain(model.classes),
        "feature_names": None if names is None else names.tolist(),
        "image_format": model.image_format.to_plain(),
        "noise_seed": model.noise_seed,
        **fit.continuation.to_plain(),
        "flipped_axes": list(model.flipped_axes),
        "ever_flipped_axes": list(model.ever_flipped_axes),
        "generates": model.generates,
        "generates_unconditionally": model.generates_unconditionally,
        "temperature": model.temperature,
        "rejection": None if rejection is None else rejection.to_plain(),
        "history": fit.history,
    }
    tensors = dict(model.field.state_dict())
    space, of_space = model.space.to_plain()
    if space is not None:
        metadata["space"] = space
        tensors |= {f"{_SPACE}.{name}": value for name, value in of_space.items()}
    tensors = {name: value.detach().cpu() for name, value in tensors.items()}
    _check_opens(metadata, tensors, saved_class, model)
    check_is_free(path, MODEL_NAME)
    # Before anything is written: a card that cannot be read is an error.
    old_card = (path / CARD_NAME).read_bytes() if (path / CARD_NAME).exists() else None
    card = card_to_write(new_card, old_card)
    write_archive(path, MODEL_NAME, tensors, metadata)
    remove_leftovers(path, MODEL_NAME)
    if card is not None:
        try:
            write_file(path / CARD_NAME, card)
        except OSError as error:
            warn_user(
                f"The model was saved in {str(folder)!r}, but its card {CARD_NAME} could not be "
                f"written: {error}."
            )
    elif old_card is not None and is_card(old_card):
        warn_user(
            f"{CARD_NAME} in {str(folder)!r} was changed since it was written, and is kept: it "
            "describes the model that was saved then. To get a new one, delete it and save again."
        )


def _check_opens(
    metadata: dict[str, Any],
    tensors: dict[str, Tensor],
    saved_class: SavedClass,
    model: FittedModel,
) -> None:
    """Refuse a model that could not be opened again, before anything is written.

    The checks are those of the reader, on what it would read.
    """
    try:
        _check_plain(metadata)
        # What JSON makes of the data may differ from them.
        as_read = json.loads(json.dumps(metadata))
        checked = _checked(as_read, tensors, saved_class, known=model.space)
    except UNEXPECTED_VALUE_ERRORS as error:
        raise ValueError(
            f"The model was not saved, because it could not be opened again: {error}"
        ) from error
    if not np.array_equal(checked.classes, model.classes):
        raise TypeError(
            f"classes of dtype {model.classes.dtype} cannot be saved exactly; use labels that are "
            "whole numbers or strings, or pickle the estimator."
        )


def _check_plain(metadata: dict[str, Any]) -> None:
    """Refuse numbers that JSON lacks, by the name of the parameter, and too much data."""
    for name, value in metadata["parameters"].items():
        try:
            json.dumps(value, allow_nan=False)
        except ValueError as error:
            raise ValueError(f"{name} holds numbers that are not finite.") from error
    # Indented as write_archive does.
    n_bytes = {
        name: len(json.dumps({"metadata": {name: value}}, indent=1))
        for name, value in metadata.items()
    }
    check_metadata_size(sum(n_bytes.values()), max(n_bytes, key=lambda name: n_bytes[name]))


def _is_saved(name: str) -> bool:
    return name in GROUPS or "folder" not in PARAMETERS[name].affects


@standard_torch()
def open_model(folder: Any, saved_class: SavedClass) -> SavedModel:
    """Read a model that :func:`save_model` wrote.

    Parameters
    ----------
    folder : str or Path
        Folder of the model.
    saved_class : SavedClass
        The estimator class that opens the model.

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
    if not (path / f"{MODEL_NAME}.json").is_file():
        raise FileNotFoundError(
            f"folder={str(folder)!r} holds no model: {MODEL_NAME}.json is missing. "
            "save_pretrained writes it."
        )
    tensors, metadata = read_archive(path, MODEL_NAME)
    try:
        checked = _checked(metadata, tensors, saved_class)
    except (ArchiveError, PretrainedModelError):
        raise
    except UNEXPECTED_VALUE_ERRORS as error:
        reason = str(error).rstrip(".")
        raise ArchiveError(f"{path / MODEL_NAME}.json is not a usable model: {reason}.") from error
    model = restored_model(
        checked.layout,
        checked.weights,
        checked.parameters["device"],
        space=checked.space,
        classes=checked.classes,
        image_format=checked.image_format,
        **checked.numbers,
    )
    fit = FitResult(
        model=model,
        history=checked.history,
        continuation=checked.continuation,
        features=checked.features,
    )
    return SavedModel(checked.parameters, fit, checked.rejection)


class _Checked(NamedTuple):
    """Content of the files of a model, checked, of which a model can be made."""

    parameters: dict[str, Any]
    layout: FieldLayout
    weights: dict[str, Tensor]
    classes: np.ndarray
    space: ImageSpace
    image_format: ImageFormat
    numbers: dict[str, Any]
    history: list[dict[str, Any]]
    continuation: Continuation
    features: dict[str, Any]
    rejection: RejectionRule | None


def _checked(
    metadata: dict[str, Any],
    tensors: dict[str, Tensor],
    saved_class: SavedClass,
    known: ImageSpace | None = None,
) -> _Checked:
    """Check all that a saved model consists of, whether it was read or is about to be written.

    No number is used on which time or memory depends before it is compared with a limit or with
    the size of the weights. A model to be written has its space already, `known`.
    """
    if metadata["class"] != saved_class.name:
        raise ArchiveError(
            f"The folder holds a {metadata['class']!r}, not a {saved_class.name}: open it with "
            "that class."
        )
    given = {name: from_plain(value) for name, value in metadata["parameters"].items()}
    unknown = [n for n in given if n not in saved_class.default_parameters or not _is_saved(n)]
    if unknown:
        raise ArchiveError(f"The model has parameters {unknown} that cannot be set from a file.")
    parameters = {**saved_class.default_parameters, **given}
    p = resolve_parameters(parameters, saved_class.group_defaults)
    check_passes(p.n_draws, classification_ode(p).most_evaluations)
    image_format = ImageFormat.from_plain(metadata["image_format"])
    check_image_shape(image_format.shape)
    plain_layout = {name: from_plain(value) for name, value in metadata["layout"].items()}
    _check_layout_entries(plain_layout, with_defaults(parameters, saved_class.group_defaults))
    layout = layout_from_plain(plain_layout)
    classes = labels_from_plain(metadata["classes"], layout.n_classes)
    if classes.ndim != 1 or len(classes) < 2 or not (classes[:-1] < classes[1:]).all():
        raise ArchiveError(
            "The model must have two or more classes, sorted and without duplicates."
        )
    of_space = part_of(tensors, _SPACE)
    weights = {n: value for n, value in tensors.items() if not n.startswith(f"{_SPACE}.")}
    # Parameters may have changed since the fit; what the field learned is in its layout.
    fitted = {name: getattr(layout, name) for name in ("label_prediction", "label_encoding")}
    space, origin = saved_class.read_space(
        metadata.get("space"),
        of_space,
        image_format,
        Parameters(**{**vars(p), **fitted}),
        len(classes),
        known=known,
        plain_origin=metadata.get("origin"),
    )
    _check_weights(layout, space, weights)
    features: dict[str, Any] = {"n_features_in_": math.prod(image_format.shape)}
    if metadata["feature_names"] is not None:
        names = _feature_names(metadata["feature_names"], features["n_features_in_"])
        features["feature_names_in_"] = names
    numbers = {
        "noise_seed": integer_from_plain("noise_seed", metadata["noise_seed"]),
        "temperature": _temperature(metadata["temperature"]),
        **_flipped_axes(metadata, len(image_format.size)),
        **{name: bool(metadata[name]) for name in _FLAGS},
    }
    history, rule = metadata["history"], metadata["rejection"]
    check_history_of_model(history)
    return _Checked(
        parameters,
        layout,
        weights,
        classes,
        space,
        image_format,
        numbers,
        history,
        Continuation.from_plain(metadata, origin),
        features,
        None if rule is None else RejectionRule.from_plain(rule, classes),
    )


def _flipped_axes(metadata: Mapping[str, Any], n_spatial_dims: int) -> dict[str, tuple[int, ...]]:
    found = flipped_axes_from_plain(metadata)
    possible = {flipped_axes(kind, n_spatial_dims) for kind in (None, *AUGMENTATIONS)}
    for name, axes in found.items():
        # A float may equal an axis, and no tensor can be flipped along it.
        if axes not in possible or not all(type(axis) is int for axis in axes):
            raise ArchiveError(f"The model has {name}={list(axes)}, along which no image flips.")
    return found


# Entries that the layout got later, in the groups that came together.
_LATER_ENTRIES = ({"time_scale", "time_modulation"}, {"n_spatial_dims"}, {"upsampling"})


def _check_layout_entries(plain: dict[str, Any], parameters: Mapping[str, Any]) -> None:
    """Check each entry of the layout by itself, as the parameter of that name is checked."""
    wanted = {field.name for field in fields(FieldLayout)}
    # Older files lack some groups of entries, in any combination: versions differed in which.
    lacking = wanted - plain.keys()
    part_of_a_group = any(lacking & group not in (set(), group) for group in _LATER_ENTRIES)
    if plain.keys() - wanted or lacking - set().union(*_LATER_ENTRIES) or part_of_a_group:
        raise ArchiveError(f"The layout must have the entries {sorted(wanted)}.")
    for name in plain.keys() & parameters.keys():
        PARAMETERS[name].check(name, plain[name])
    # As parameters the patch size and the levels may also be "auto".
    for name in ("image_channels", "patch_size"):
        check_positive_integer(name, plain[name])
    if isinstance(plain["channel_mult"], str):
        raise ArchiveError(f"The layout has channel_mult={plain['channel_mult']!r}.")
    check_positive_integer("n_classes", plain["n_classes"], least=2)
    make_label_codes(plain["label_encoding"], plain["n_classes"], plain["beta"])


def _check_weights(layout: FieldLayout, space: ImageSpace, weights: dict[str, Tensor]) -> None:
    """Refuse a layout that does not fit the space or the weights."""
    n_classes, (n_channels, *size) = layout.n_classes, space.shape
    if layout.n_spatial_dims != len(size):
        raise ArchiveError(
            f"The layout has n_spatial_dims={layout.n_spatial_dims!r}; the model has images with "
            f"{len(size)} spatial axes."
        )
    if layout.image_channels != n_channels:
        raise ArchiveError(
            f"The layout is for {layout.image_channels} channels; the model has {n_channels}."
        )
    mask_codes = space.mask_codes
    if mask_codes is None:
        n_inputs = n_channels + count_code_channels(layout.label_encoding, n_classes)
    elif layout.label_prediction == "velocity" and len(mask_codes) == n_classes:
        n_inputs = n_channels + mask_codes.shape[1]
    else:
        raise ArchiveError("The model has encoded masks that its label branch does not use.")
    first = weights.get("unet.conv_in.weight")
    shape = () if first is None else tuple(first.shape)
    width = layout.channels * layout.channel_mult[0]
    if shape != (width, n_inputs * layout.patch_size ** len(size), *[3] * len(size)):
        raise ArchiveError(f"The layout does not fit a first convolution of shape {shape}.")
    # On the way down and on the way up.
    n_blocks = layout.n_blocks + count_blocks_up(layout.upsampling, layout.n_blocks)
    check_blocks([(n_blocks, layout.channels * m) for m in layout.channel_mult], weights)
    # The meta device allocates no memory; the checks above bound the time by the number of weights.
    with torch.device("meta"):
        field = build_field(layout, 0, mask_codes)
    check_tensors(weights, field.state_dict(), "The model")


def _temperature(value: Any) -> float:
    if type(value) not in (int, float) or not abs(math.log(value)) <= MAX_LOG_TEMPERATURE:
        raise ArchiveError(f"The model has temperature={value!r}.")
    return float(value)


def _feature_names(plain: Any, n_features: int) -> np.ndarray:
    if not isinstance(plain, list) or len(plain) != n_features:
        raise ArchiveError(f"The model has no list of names for its {n_features} features.")
    return np.array([str(name) for name in plain], dtype=object)
