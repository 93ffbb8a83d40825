"""What pretrained networks have in common that convert images and are never trained here.

A network is fixed when it is wrapped: evaluation mode, float32 weights, one memory layout, no
gradients. It is identified by a digest, and computes in passes of a constant number of images.
"""

import copy
import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from sklearn_msf.exceptions import AutoencoderError, BackboneError
from sklearn_msf.persistence.measured_values import same_but_for_rounding
from sklearn_msf.runtime.batch_sizes import padded
from sklearn_msf.runtime.device import to_channels_last
from sklearn_msf.runtime.out_of_memory import is_out_of_memory

__all__ = [
    "FrozenNetwork",
    "config_entry",
    "copy_to_pickle",
    "equal_passes",
    "fixed_image",
    "images_a_pass",
    "is_same_output",
    "own_copy",
    "plain_config",
    "some_values",
    "update_digest",
    "update_with",
]

# Every pass is padded to the same number of images, because kernels round differently for other
# batch sizes; a small number keeps the padding of a single image cheap.
_MAX_ROWS_A_PASS = 16
# Waves along the columns and the rows of a fixed image, and of one that differs from it.
_WAVES, _OTHER_WAVES = (9.0, 5.0), (4.0, 11.0)
# Values of a map by which runs are compared.
_N_VALUES = 256
# By this attribute transformers knows that a model has its hooks.
_HOOKS_INSTALLED = "_output_capturing_hooks_installed"


class FrozenNetwork:
    """A pretrained network, or another object that converts images, with fixed weights.

    Parameters
    ----------
    module : object
        The network. A torch module is changed: the caller passes a copy.
    source : dict
        Its origin as plain data: {"kind": "hub", "id": ..., "revision": ...}.

    Attributes
    ----------
    module, source :
        The parameters.
    """

    def __init__(self, module: Any, source: dict[str, Any]):
        self.module = module
        self.source = source
        self._device = torch.device("cpu")
        self._fingerprint: tuple[str, Tensor] | None = None
        if isinstance(module, nn.Module):
            # Fix precision and memory layout, so that a copy from a file computes the same.
            nn.Module.float(module.eval().requires_grad_(False))
            to_channels_last(module, self._device)

    @property
    def device(self) -> torch.device:
        """Device of the inputs: the CPU for an object that is not a torch module."""
        return self._device

    def to(self, device: torch.device) -> Self:
        """Move a torch module to a device; anything else stays on the CPU."""
        if isinstance(self.module, nn.Module):
            self.module.to(device)
            self._device = device
        return self

    def on(self, device: torch.device) -> Self:
        """Return the network on a device: itself if it stays where it is, else a copy."""
        if not isinstance(self.module, nn.Module) or self._device == device:
            return self
        # With a module of its own, as in a pickle.
        return copy.copy(self).to(device)

    def __getstate__(self) -> dict[str, Any]:
        """Return the attributes of a copy, or for other processes: its module is on the CPU."""
        module = copy_to_pickle(self.module)
        return {**vars(self), "module": module, "_device": torch.device("cpu")}

    def fingerprint(self) -> tuple[str, Tensor]:
        """Identify the network by a digest, and by what it makes of a fixed image."""
        if self._fingerprint is None:
            self._fingerprint = self._digest(), self.of_fixed_image()
        return self._fingerprint

    def of_fixed_image(self) -> Tensor:
        """Return what the network makes of a fixed image, on the CPU."""
        raise NotImplementedError

    def _digest(self) -> str:
        """Compute a digest; each kind of network describes itself."""
        raise NotImplementedError

    def is_made_of(self, given: Any) -> bool:
        """Tell whether this one wraps an object, or a copy of a module that computes the same.

        The copy is in float32 and in evaluation mode, whatever the module is in.
        """
        if given is self.module or not isinstance(given, nn.Module):
            return given is self.module
        mine, its = self.module.state_dict(), given.state_dict()
        return (
            type(given) is type(self.module)
            and plain_config(given) == plain_config(self.module)
            and _plain_attributes(given, but=_OF_NO_COPY)
            == _plain_attributes(self.module, but=_OF_NO_COPY)
            and mine.keys() == its.keys()
            and all(torch.equal(v.cpu(), its[name].to(v.dtype).cpu()) for name, v in mine.items())
            and self._computes_as(given)
        )

    def _computes_as(self, given: nn.Module) -> bool:
        """Tell whether a module of the same weights makes the same of a fixed image."""
        try:
            copied = copy.deepcopy(given).cpu()
        # Errors can be of any class. What cannot be copied could not be pickled either.
        except Exception as error:
            return not is_out_of_memory(error)
        try:
            other = self._wrapped(copied)
        # It is refused now, so it computes something else.
        except (AutoencoderError, BackboneError):
            return False
        return is_same_output(other.of_fixed_image(), self.of_fixed_image())

    def _wrapped(self, module: nn.Module) -> "FrozenNetwork":
        """Wrap another module as this one; each kind of network has its own parameters."""
        raise NotImplementedError


def own_copy(module: nn.Module, name: str, error: type[Exception]) -> nn.Module:
    """Copy a module of the user; refuse one that cannot be copied."""
    if any(isinstance(part, torch.jit.ScriptModule) for part in module.modules()):
        # Copies of it share tensors with it, and do not know all methods of modules.
        raise error(
            f"{name}={type(module).__name__} is or holds a TorchScript module: pass the torch "
            "module that it was made of."
        )
    try:
        return copy.deepcopy(module)
    # A module can hold anything, and what cannot be copied raises errors of many classes.
    except Exception as reason:
        if is_out_of_memory(reason):
            raise
        raise error(
            f"{name}={type(module).__name__} cannot be copied ({reason}): let forward return what "
            "it makes and keep nothing in attributes, above all no tensors with gradients."
        ) from reason


def fixed_image(n_channels: int, size: tuple[int, int], *, other: bool = False) -> Tensor:
    """Make an image of waves, (1, n_channels, H, W) in [-1, 1], or another one."""
    along_columns, along_rows = _OTHER_WAVES if other else _WAVES
    rows, columns = (torch.linspace(-1, 1, side) for side in size)
    waves = torch.sin(along_columns * rows[:, None] * torch.arange(1, n_channels + 1))
    return waves.T[None, :, :, None] * torch.cos(along_rows * columns)


def is_same_output(found: Tensor, wanted: Tensor) -> bool:
    """Compare what an encoder makes of a fixed image with what it made before."""
    return same_but_for_rounding(found.numpy(), wanted.numpy())


def some_values(made: Tensor) -> list[float]:
    """Take values from all parts of what a network makes of an image."""
    values = made.flatten()
    # In float32 the last place could be rounded to one behind it.
    places = torch.linspace(0, len(values) - 1, min(len(values), _N_VALUES), dtype=torch.float64)
    return [float(value) for value in values[places.long()]]


def copy_to_pickle(module: Any) -> Any:
    """Copy a torch module to the CPU; return any other object as it is.

    A pickle from a GPU must open on a machine without one. Hooks by which transformers records what
    layers return are left out: they are local functions, which no pickle takes, and it installs
    them again when they are needed.
    """
    if not isinstance(module, nn.Module):
        return module
    copied = copy.deepcopy(module).cpu()
    for part in copied.modules():
        for number, hook in list(part._forward_hooks.items()):
            if getattr(hook, "__module__", "").startswith("transformers."):
                del part._forward_hooks[number]
        vars(part).pop(_HOOKS_INSTALLED, None)
    return copied


def config_entry(network: Any, name: str, default: Any) -> Any:
    """Look up a value in a network's configuration, or else in its attributes."""
    config = getattr(network, "config", None)
    if isinstance(config, Mapping) and name in config:
        return config[name]
    value = getattr(config, name, None)
    return getattr(network, name, default) if value is None else value


def update_digest(digest: "hashlib._Hash", module: nn.Module, weights: dict[str, Tensor]) -> None:
    """Add the attributes of a module, and those of its weights that count, to a digest."""
    digest.update(repr(_plain_attributes(module)).encode())
    for name, value in weights.items():
        digest.update(name.encode())
        update_with(digest, value)


def update_with(digest: "hashlib._Hash", value: Tensor) -> None:
    """Add the values of a tensor to a digest."""
    digest.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


def plain_config(module: Any) -> dict[str, Any]:
    """Describe a network of diffusers by its class and its configuration."""
    config = getattr(module, "config", None)
    entries = config.items() if isinstance(config, Mapping) else ()
    plain = {name: value for name, value in entries if not str(name).startswith("_")}
    return {"class": type(module).__name__, "config": json.loads(json.dumps(plain, default=_text))}


# Where transformers opened a model from, and what is turned off in the copies of autoencoders.
_OF_NO_MEANING = ("name_or_path", "use_tiling")
# What may differ between a module and the copy of it that is used. Digests contain it.
_OF_NO_COPY = ("training", "use_slicing")


def _plain_attributes(module: nn.Module, but: tuple[str, ...] = ()) -> dict[str, Any]:
    """Collect the plain values, besides the weights, that a module may compute with."""
    return {
        f"{path}.{name}": value if _is_plain(value) else _without_addresses(value)
        for path, part in module.named_modules()
        for name, value in vars(part).items()
        if isinstance(value, (bool, int, float, str, tuple)) and not name.startswith("_")
        if name not in (*but, *_OF_NO_MEANING)
    }


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))


def _without_addresses(value: Any) -> Any:
    """Describe a value by text that is the same in every process."""
    if isinstance(value, (tuple, list)):
        return [_without_addresses(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted(str(_without_addresses(item)) for item in value)
    if isinstance(value, Mapping):
        return [[_without_addresses(key), _without_addresses(value[key])] for key in value]
    return _text(repr(value))


def _text(value: Any) -> str:
    """Convert a value to text without its address in memory, which each process changes."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", str(value))


def images_a_pass(pixels_an_image: int, pixels_a_pass: int) -> int:
    """Count the images of the passes that :func:`equal_passes` makes."""
    return max(1, min(_MAX_ROWS_A_PASS, pixels_a_pass // pixels_an_image))


def equal_passes(batch: Tensor, pixels_an_image: int, pixels_a_pass: int) -> list[Tensor]:
    """Split a batch into passes of one size; pad the last one with the first sample.

    Parameters
    ----------
    batch : Tensor of shape (n, C, H, W)
        What the network gets.
    pixels_an_image : int
        Pixels of one image, of which the memory of a pass depends.
    pixels_a_pass : int
        Largest number of pixels in a pass, if that is more than one image.
    """
    n_rows = images_a_pass(pixels_an_image, pixels_a_pass)
    missing = -len(batch) % n_rows
    if missing:
        batch = padded(batch, len(batch) + missing)
    return list(batch.split(n_rows))
