"""Fitted models as plain state for pickles, so that a machine without a GPU can open them."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from os import PathLike
from typing import Any

import numpy as np
import torch

from sklearn_msf._estimator.fit_result import Continuation
from sklearn_msf._estimator.latent_preparation import (
    ENCODERS,
    OBJECT,
    LatentOrigin,
    encoder_parameter,
)
from sklearn_msf._estimator.rejection import RejectionRule
from sklearn_msf._estimator.restoring import (
    flipped_axes_from_plain,
    layout_from_plain,
    restored_model,
)
from sklearn_msf.data.images import ImageFormat
from sklearn_msf.latent.frozen_network import copy_to_pickle
from sklearn_msf.latent.latent_space import LatentSpace
from sklearn_msf.model.fitted_model import FittedModel
from sklearn_msf.model.image_space import ImageSpace, PixelSpace
from sklearn_msf.runtime.torch_state import standard_torch
from sklearn_msf.training.state import TrainingState

__all__ = ["fitted_state", "restore_fitted_state"]


@standard_torch()
def fitted_state(state: Mapping[str, Any]) -> dict[str, Any]:
    """Replace fitted attributes by plain data and arrays.

    Parameters
    ----------
    state : mapping
        Attributes of an estimator.

    Returns
    -------
    dict
    """
    state = _with_encoders_once(dict(state))
    if "model_" in state:
        state["model_"] = _model_to_state(state["model_"])
    if "rejection_" in state:
        state["rejection_"] = rule = dict(vars(state["rejection_"]))
        if isinstance(rule["target_risk"], Mapping):
            # JSON, to which skops writes dicts, has no keys but text: True would become "true".
            rule["target_risk"] = [list(pair) for pair in rule["target_risk"].items()]
    if "_continuation" in state:
        continuation = state["_continuation"]
        origin = continuation.origin
        plain = {**vars(continuation), "origin": None if origin is None else dict(vars(origin))}
        state["_continuation"] = _tensors_to_arrays(plain)
    return state


@standard_torch()
def restore_fitted_state(state: Mapping[str, Any], device: Any) -> dict[str, Any]:
    """Restore attributes from the state that :func:`fitted_state` returned.

    Parameters
    ----------
    state : mapping
        Attributes in plain form.
    device : str or torch.device
        Device of the model. If this machine lacks it, the CPU is used, with a warning.

    Returns
    -------
    dict
    """
    state = dict(state)
    if "_weights" in state:
        raise ValueError("The pickle was made by an unreleased version of sklearn_msf: fit again.")
    if "model_" in state:
        state["model_"] = _model_from_state(state["model_"], device)
    if "rejection_" in state:
        rule = dict(state["rejection_"])
        # Older pickles have a dict.
        if isinstance(rule.get("target_risk"), list):
            rule["target_risk"] = dict(rule["target_risk"])
        state["rejection_"] = RejectionRule(**rule)
    if "_continuation" in state:
        plain = _arrays_to_tensors(state["_continuation"])
        training_state = plain["training_state"]
        if training_state is not None:
            plain["training_state"] = TrainingState(*training_state)
        if plain["origin"] is not None:
            plain["origin"] = LatentOrigin(**plain["origin"])
        state["_continuation"] = Continuation(**plain)
    return _with_its_encoders(state)


def _with_encoders_once(state: dict[str, Any]) -> dict[str, Any]:
    """Write a placeholder where a parameter is the object that the space wraps or has copied.

    The space holds its weights. Another module comes to the CPU, so that a machine without a GPU
    can open it.
    """
    replaced: dict[int, Any] = {}
    space = state["model_"].space if "model_" in state else None

    def lean(name: str, given: Any) -> Any:
        if given is None or isinstance(given, (str, PathLike)):
            return given
        if id(given) not in replaced:
            if isinstance(space, LatentSpace) and space.wraps(name, given):
                replaced[id(given)] = OBJECT
            else:
                replaced[id(given)] = copy_to_pickle(given)
        return replaced[id(given)]

    for name in ENCODERS:
        if name in state:
            state[name] = lean(name, state[name])
    continuation = state.get("_continuation")
    if continuation is not None and continuation.origin is not None:
        origin = continuation.origin
        changes = {name: lean(name, getattr(origin, name)) for name in ENCODERS}
        state["_continuation"] = replace(continuation, origin=replace(origin, **changes))
    return state


def _with_its_encoders(state: dict[str, Any]) -> dict[str, Any]:
    """Put the encoders of the space in the place of the placeholders."""
    if "model_" not in state or not isinstance(state["model_"].space, LatentSpace):
        return state
    space = state["model_"].space

    def whole(name: str, value: Any) -> Any:
        return encoder_parameter(value, None, space.module_of(name))

    for name in ENCODERS:
        # Pickles from before there were backbones have none.
        state[name] = whole(name, state.get(name))
    continuation = state["_continuation"]
    if continuation.origin is not None:
        changes = {name: whole(name, getattr(continuation.origin, name)) for name in ENCODERS}
        origin = replace(continuation.origin, **changes)
        state["_continuation"] = replace(continuation, origin=origin)
    return state


def _model_to_state(model: FittedModel) -> dict[str, Any]:
    state = dict(vars(model))
    state["layout"] = asdict(model.field.layout)
    state["field"] = _tensors_to_arrays(model.field.state_dict())
    state["image_format"] = plain = model.image_format.to_plain()
    # A pickle that could not be opened is refused while the model is still there.
    ImageFormat.from_plain(plain)
    space = model.space
    if isinstance(space, LatentSpace):
        state["space"] = _tensors_to_arrays(space.to_state())
    else:
        state["space"], _ = space.to_plain()
    return state


def _model_from_state(state: Mapping[str, Any], device: Any) -> FittedModel:
    state = dict(state)
    image_format = ImageFormat.from_plain(state["image_format"])
    space: ImageSpace
    if state["space"] is None or "input_size" in state["space"]:
        space = PixelSpace.from_plain(state["space"], image_format)
    else:
        space = LatentSpace.from_state(_arrays_to_tensors(state["space"]), image_format)
    state |= flipped_axes_from_plain(state)
    state.pop("mirrored", None)
    layout = layout_from_plain(state.pop("layout"))
    weights = _arrays_to_tensors(state.pop("field"))
    state |= {"space": space, "image_format": image_format}
    return restored_model(layout, weights, device, **state)


def _tensors_to_arrays(value: Any) -> Any:
    """Convert every tensor in a nested state to an array."""
    if isinstance(value, torch.Tensor):
        return value.cpu().numpy()
    if _is_nested(value, dict):
        return {key: _tensors_to_arrays(item) for key, item in value.items()}
    if _is_nested(value, (list, tuple)):
        return [_tensors_to_arrays(item) for item in value]
    return value


def _arrays_to_tensors(value: Any) -> Any:
    """Convert every array in a nested state to a tensor."""
    if isinstance(value, np.ndarray):
        return torch.tensor(value)
    if _is_nested(value, dict):
        return {key: _arrays_to_tensors(item) for key, item in value.items()}
    if _is_nested(value, list):
        return [_arrays_to_tensors(item) for item in value]
    return value


def _is_nested(value: Any, kinds: type | tuple[type, ...]) -> bool:
    """Tell whether a value is a container, and no autoencoder of the user's that is one too."""
    return isinstance(value, kinds) and not hasattr(value, "encode")
