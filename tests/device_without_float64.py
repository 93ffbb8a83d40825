"""A device that does not exist: its tensors compute on the CPU, and float64 raises an error.

It stands for GPUs without float64, such as Apple's. It also refuses operations on tensors of two
devices. Its name is torch's "meta".
"""

import contextlib
import sys

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("meta")
_OPTIMIZER = sys.modules["torch.optim.optimizer"]


class _Tensor(torch.Tensor):
    """A tensor that says it is on the device, and keeps its values on the CPU."""

    @staticmethod
    def __new__(cls, values):
        return torch.Tensor._make_wrapper_subclass(
            cls, values.size(), strides=values.stride(), dtype=values.dtype, device=DEVICE
        )

    def __init__(self, values):
        self.values_on_cpu = values

    def tolist(self):
        return self.values_on_cpu.tolist()

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        return _run(operation, args, kwargs or {})


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        return _run(operation, args, kwargs or {})


class _DeviceGenerator(torch.Generator):
    """A generator of the CPU that says it is the device's."""

    device = DEVICE


class _Generator(torch.Generator):
    """Makes generators of the device too."""

    def __new__(cls, device="cpu"):
        if torch.device(device).type == DEVICE.type:
            return _DeviceGenerator()
        return super().__new__(torch.Generator, device)


def _run(operation, args, kwargs):
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    on_device = [tensor for tensor in tensors if isinstance(tensor, _Tensor)]
    on_cpu = [t for t in tensors if not isinstance(t, _Tensor) and t.ndim]
    copies = operation in (torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default)
    if on_device and on_cpu and not copies:
        raise RuntimeError(f"{operation} has tensors of two devices")
    target = kwargs.get("device")
    stays = bool(on_device) if target is None else torch.device(target).type == DEVICE.type
    args, kwargs = tree_map(_to_cpu, (args, kwargs))
    result = operation(*args, **kwargs)
    if not stays:
        return result
    known = {id(tensor.values_on_cpu): tensor for tensor in on_device}

    def to_device(value):
        if not isinstance(value, torch.Tensor):
            return value
        if value.dtype == torch.float64:
            raise TypeError(f"{operation}: the device has no float64")
        return known[id(value)] if id(value) in known else _Tensor(value)

    return tree_map(to_device, result)


def _to_cpu(value):
    if isinstance(value, _Tensor):
        return value.values_on_cpu
    return torch.device("cpu") if isinstance(value, torch.device) else value


@contextlib.contextmanager
def device_without_float64(monkeypatch):
    """Let torch have the device while the context lasts."""
    autocast, is_autocast_enabled = torch.autocast, torch.is_autocast_enabled

    def autocast_or_not(device_type, *args, **kwargs):
        is_ours = device_type == DEVICE.type
        return contextlib.nullcontext() if is_ours else autocast(device_type, *args, **kwargs)

    def is_autocast(device_type):
        return device_type != DEVICE.type and is_autocast_enabled(device_type)

    with monkeypatch.context() as patches, _Mode():
        patches.setattr("torch.Generator", _Generator)
        patches.setattr("torch.autocast", autocast_or_not)
        patches.setattr("torch.is_autocast_enabled", is_autocast)
        # Views of such tensors cannot be made in inference mode.
        patches.setattr("torch.inference_mode", torch.no_grad)
        # The names of the devices for which torch has a fused AdamW.
        patches.setattr(_OPTIMIZER, "_get_fused_kernels_supported_devices", lambda: [DEVICE.type])
        yield DEVICE
