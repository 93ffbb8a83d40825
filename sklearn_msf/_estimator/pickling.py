"""What a fitted estimator is made of: moved, put back after a failure, pickled.

Pickles hold weights as arrays: a model from a GPU opens on a machine without.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator

from sklearn_msf._estimator.auto_settings import build_field
from sklearn_msf.data.images import ImageFormat
from sklearn_msf.flow.velocity_field import VelocityField
from sklearn_msf.runtime.device import resolve_device, to_channels_last
from sklearn_msf.training.state import TrainingState

__all__ = [
    "PortableEstimator",
    "all_or_nothing",
    "arrays_to_tensors",
    "move_field",
    "tensors_to_arrays",
]

# Where scikit-learn keeps the callbacks of a fit; it removes them itself.
_OF_CALLBACKS = ("_callback_fit_ctx", "_skl_callbacks_to_teardown")


class PortableEstimator(BaseEstimator):
    """Turns the network of an estimator into arrays when it is pickled, and back."""

    def _plain_parameters(self) -> dict[str, Any]:
        """Describe the constructor parameters by what plain data can hold."""
        parameters: dict[str, Any] = self.get_params(deep=False)
        return parameters

    def _fingerprint_parameters(self, *, warm: bool) -> dict[str, Any]:
        """Describe the constructor parameters, to tell runs apart."""
        return self._plain_parameters()

    def _mask_codes(self) -> torch.Tensor | None:
        """Masks of the classes, (K, C_y, H, W), where they are not plain colours."""
        return None

    def __getstate__(self) -> dict[str, Any]:
        """State with every tensor as an array."""
        # A copy: what comes is the estimator's own dictionary.
        state = dict(super().__getstate__())
        if "field_" in state:
            state["_weights"] = tensors_to_arrays(state.pop("field_").state_dict())
        state["_training_state"] = tensors_to_arrays(state.get("_training_state"))
        if "_image_format" in state:
            state["_image_format"] = self._image_format.to_plain()
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Rebuild the network around the weights."""
        state = dict(state)
        weights = state.pop("_weights", None)
        training_state = arrays_to_tensors(state.get("_training_state"))
        if training_state is not None:
            training_state = TrainingState(*training_state)
        state["_training_state"] = training_state
        if "_image_format" in state:
            state["_image_format"] = ImageFormat.from_plain(state["_image_format"])
        super().__setstate__(state)
        if weights is not None:
            field = build_field(self._field_layout, 0, self._mask_codes())
            field.load_state_dict(arrays_to_tensors(weights))
            field.requires_grad_(False).eval()
            self.field_ = move_field(field, _device_at_hand(self.device))


@contextmanager
def all_or_nothing(estimator: BaseEstimator) -> Iterator[None]:
    """Put the estimator back as it was where fitting it fails."""
    before = dict(vars(estimator))
    try:
        yield
    except BaseException:
        # Callbacks have still to be told that fit has ended.
        kept = {key: value for key, value in vars(estimator).items() if key in _OF_CALLBACKS}
        vars(estimator).clear()
        vars(estimator).update(before | kept)
        raise


def move_field(field: VelocityField, device: torch.device) -> VelocityField:
    """Move a field and its codes, convolutions in the layout that is fast for them."""
    field.codes = field.codes.to(device)
    return to_channels_last(field, device)


def _device_at_hand(device: Any) -> torch.device:
    """Device asked for, or the CPU where this machine lacks it."""
    try:
        return resolve_device(device)
    except ValueError:
        warnings.warn(
            f"device={device!r} is not available here; the model was opened on the CPU.",
            stacklevel=3,
        )
        return torch.device("cpu")


def tensors_to_arrays(value: Any) -> Any:
    """Nested state with every tensor as an array."""
    if isinstance(value, torch.Tensor):
        return value.cpu().numpy()
    if isinstance(value, dict):
        return {key: tensors_to_arrays(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [tensors_to_arrays(item) for item in value]
    return value


def arrays_to_tensors(value: Any) -> Any:
    """Nested state with every array as a tensor."""
    if isinstance(value, np.ndarray):
        return torch.tensor(value)
    if isinstance(value, dict):
        return {key: arrays_to_tensors(item) for key, item in value.items()}
    if isinstance(value, list):
        return [arrays_to_tensors(item) for item in value]
    return value
