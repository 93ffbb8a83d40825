"""Models made of the plain data and weights of pickles and files."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sklearn_msf.flow.velocity_field import FieldLayout, build_field
from sklearn_msf.model.fitted_model import FittedModel
from sklearn_msf.model.image_space import ImageSpace
from sklearn_msf.persistence.archives import ArchiveError
from sklearn_msf.persistence.json_data import is_seed
from sklearn_msf.runtime.device import resolve_device
from sklearn_msf.runtime.user_warnings import warn_user

__all__ = [
    "flipped_axes_from_plain",
    "integer_from_plain",
    "layout_from_plain",
    "restored_model",
]


def restored_model(
    layout: FieldLayout,
    weights: Mapping[str, Tensor],
    device: Any,
    *,
    space: ImageSpace,
    **parts: Any,
) -> FittedModel:
    """Make a model of its weights, on a device, or with a warning on the CPU if that is not here.

    Parameters
    ----------
    layout : FieldLayout
        Layout of the field.
    weights : mapping of str to Tensor
        Weights of the field.
    device : str or torch.device
        Device of the model.
    space : ImageSpace
        Space of the model.
    **parts : dict
        All other attributes of the model but its field.
    """
    field = build_field(layout, 0, space.mask_codes)
    field.load_state_dict(weights)
    field.requires_grad_(False).eval()
    at_hand = _device_at_hand(device)
    space.move_to(at_hand)
    return FittedModel(field=field.move_to(at_hand), space=space, **parts)


def layout_from_plain(plain: Mapping[str, Any]) -> FieldLayout:
    """Make a layout from its entries; convert sequences to tuples."""
    sequences = {key: tuple(v) for key, v in plain.items() if isinstance(v, (list, tuple))}
    return FieldLayout(**{**plain, **sequences})


def integer_from_plain(name: str, value: Any) -> int:
    """Read a seed, or a number of calls.

    Raises
    ------
    ArchiveError
        For what is no integer from 0 on.
    """
    if not is_seed(value):
        raise ArchiveError(f"The model has {name}={value!r}; expected an integer >= 0.")
    return value


def flipped_axes_from_plain(plain: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Read along which axes the last training, and any training, flipped images.

    Models of before know only the last one, and older ones say only whether there were mirror
    images, and predict with no other flips.
    """
    if "flipped_axes" in plain:
        last = tuple(plain["flipped_axes"])
    else:
        last = (-1,) if plain["mirrored"] else ()
    ever = tuple(plain.get("ever_flipped_axes", last))
    return {"flipped_axes": last, "ever_flipped_axes": ever}


def _device_at_hand(device: Any) -> torch.device:
    """Resolve a device; warn and return the CPU if this machine lacks it."""
    try:
        return resolve_device(device)
    except ValueError:
        warn_user(
            f"device={device!r} is not available here; the model was opened on the CPU.",
        )
        return torch.device("cpu")
