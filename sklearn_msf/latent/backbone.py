"""One interface to all backbones: frozen pretrained encoders, from images to feature maps.

Two kinds of torch modules can be used:

- a vision model of transformers. Its tokens are arranged as a map: class and register tokens are
  dropped, and what is left lies in rows and columns as the patches do. What is already a map stays
  one. Of a model of images and text the vision tower is used, of one with a head what is below it.
- any module whose forward makes a map (n, C, h, w) of images (n, 3, H, W) in [-1, 1], such as one
  stage of a network. It may have the attributes ``image_size``, a side or (height, width), if it
  takes images of one size only, and ``in_channels`` (3 without it).

Inputs and weights are float32; the forward may run under bfloat16 autocast. It may be called from
several threads at the same time.
"""

import hashlib
import inspect
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sklearn_msf.exceptions import BackboneError
from sklearn_msf.latent.frozen_network import (
    FrozenNetwork,
    equal_passes,
    fixed_image,
    images_a_pass,
    update_digest,
)
from sklearn_msf.runtime.device import autocast
from sklearn_msf.runtime.out_of_memory import is_out_of_memory

__all__ = [
    "ImageBackbone",
    "Preprocessing",
    "is_behind_the_map",
    "is_of_transformers",
    "vision_model",
]

# An encoder keeps far fewer values of an image than an autoencoder does.
_PIXELS_A_PASS = 4 * 224 * 224
# Side of the fixed image for a backbone that takes any size.
_PROBE_SIDE = 64
# Tokens before those of the patches, besides registers: none, a class token, and the one from which
# a model of transformers was distilled.
_EXTRA_TOKENS = (0, 1, 2)
# Largest factor between the patches of a hierarchical model and its last tokens: 2 to this power.
_MAX_HALVINGS = 6
# Two axes of a map are its height and width if it is smaller than the image by factors that differ
# at most by this one.
_UNEVEN_STRIDES = 1.5


# Layers of models of transformers behind the map of features; class heads are left out of it.
_BEHIND_THE_MAP = ("pooler.", "head.", "vision_model.head.")


def is_behind_the_map(name: str) -> bool:
    """Tell by its name whether a weight of a model of transformers is behind its map."""
    return name.startswith(_BEHIND_THE_MAP)


@dataclass(frozen=True)
class Preprocessing:
    """What a backbone expects of its images.

    Attributes
    ----------
    size : tuple of int or None
        Height and width; None for any size.
    mean, deviation : tuple of float
        Of each channel, in units of images in [-1, 1]; a backbone gets (image - mean) / deviation.
    """

    size: tuple[int, int] | None
    mean: tuple[float, ...]
    deviation: tuple[float, ...]


class ImageBackbone(FrozenNetwork):
    """Wrap any backbone in one interface.

    Parameters
    ----------
    module : nn.Module
        See the docstring of this file. The module is changed: pass a copy.
    preprocessing : Preprocessing
        What it expects of its images.
    source : dict, optional
        Origin of the backbone as plain data: {"kind": "hub", "id": ..., "revision": ...}.

    Attributes
    ----------
    preprocessing : Preprocessing
        The parameter.
    image_channels : int
        Channels of the images.
    n_features : int
        Channels C of the maps.

    Raises
    ------
    BackboneError
        For a module that cannot be used as a backbone.
    """

    module: nn.Module

    def __init__(
        self, module: nn.Module, preprocessing: Preprocessing, source: dict[str, Any] | None = None
    ):
        super().__init__(module, source or {"kind": "object"})
        self.preprocessing = preprocessing
        self.image_channels = len(preprocessing.mean)
        self._of_transformers = is_of_transformers(module)
        if self._of_transformers:
            # Recording what layers return changes the model, and threads would do it at once.
            for name in ("output_hidden_states", "output_attentions"):
                setattr(module.config, name, False)
        # Without it a model of transformers refuses every other size than it was trained with.
        self._options = {}
        if self._of_transformers and "interpolate_pos_encoding" in _arguments(module):
            self._options["interpolate_pos_encoding"] = True
        features = self._probe()
        if not bool(features.isfinite().all()):
            raise BackboneError(
                f"backbone={self.name} makes NaN or infinite features of an image in [-1, 1]: use "
                "another one."
            )
        if not torch.equal(features, self._probe()):
            raise BackboneError(
                f"backbone={self.name} makes another map of the same image in each call, as models "
                "that mask patches at random do: pass one whose forward is not random."
            )
        if torch.equal(features, self._probe(other=True)):
            raise BackboneError(
                f"backbone={self.name} makes the same map of different images. A copy of the "
                "module is used: if hooks collect its maps, let them write to the module that they "
                "are called with, or better, let forward return the maps."
            )
        self.n_features = features.shape[1]

    @property
    def name(self) -> str:
        """Name for messages: id on the hub, or class."""
        return repr(self.source["id"]) if "id" in self.source else type(self.module).__name__

    def images_a_pass(self, size: tuple[int, int]) -> int:
        """Count the images of this height and width that one pass takes."""
        return images_a_pass(math.prod(size), _PIXELS_A_PASS)

    def passes(self, images: Tensor) -> list[Tensor]:
        """Split images, (n, C, H, W), into passes that bound the memory; pad the last one."""
        return equal_passes(images, math.prod(images.shape[2:]), _PIXELS_A_PASS)

    def encode(self, images: Tensor, precision: str = "float32") -> Tensor:
        """Make maps, (n, C, h, w), of the images of one pass, (n, 3, H, W) in [-1, 1]."""
        device, expected = self.device, self.preprocessing
        mean, deviation = (
            torch.tensor(values).to(device)[:, None, None]
            for values in (expected.mean, expected.deviation)
        )
        x = (images.to(device) - mean) / deviation
        try:
            with torch.no_grad(), autocast(device, precision):
                if self._of_transformers:
                    output = self.module(pixel_values=x, **self._options)
                    output = getattr(output, "last_hidden_state", output)
                else:
                    output = self.module(x)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise BackboneError(
                f"backbone={self.name} cannot encode images of shape {tuple(images.shape)}: "
                f"{error}. If it takes images of one size only, set its attribute image_size, a "
                "side or (height, width); if it takes another number of channels, set its "
                "attribute in_channels."
            ) from error
        return self._as_map(output, images).float().to(images.device)

    def of_fixed_image(self) -> Tensor:
        """Make the map of a fixed image."""
        return self._probe().cpu()

    def _digest(self) -> str:
        digest = hashlib.sha256(f"{type(self.module).__name__} {self.preprocessing}".encode())
        update_digest(digest, self.module, self._weights())
        return digest.hexdigest()[:16]

    def digest_of_weights(self) -> str:
        """Compute a digest of the weights that does not depend on their names and order.

        Versions of transformers give the same weights other names.
        """
        digests = sorted(
            hashlib.sha256(
                repr(tuple(value.shape)).encode()
                + value.float().cpu().contiguous().numpy().tobytes()
            ).digest()
            for value in self._weights().values()
        )
        return hashlib.sha256(b"".join(digests)).hexdigest()

    def _weights(self) -> dict[str, Tensor]:
        """Return the weights that the map depends on.

        A file may lack the others, and then transformers draws them at random.
        """
        weights = self.module.state_dict()
        if not self._of_transformers:
            return weights
        return {name: value for name, value in weights.items() if not is_behind_the_map(name)}

    def _as_map(self, output: Any, images: Tensor) -> Tensor:
        """Arrange tokens as a map; refuse what is none."""
        found: Any = output
        if self._of_transformers and isinstance(output, Tensor) and output.ndim == 3:
            found = _tokens_as_map(output, images.shape[2:], self.module.config)
        elif isinstance(output, Tensor) and output.ndim == 4:
            found = _with_channels_first(output, images.shape[2:])
        is_map = isinstance(found, Tensor) and found.ndim == 4 and found.numel() > 0
        if is_map and len(found) == len(images):
            return found
        shape = list(getattr(output, "shape", []))
        raise BackboneError(
            f"backbone={self.name} makes {type(output).__name__}{shape} of images of shape "
            f"{tuple(images.shape)}, which is no map of features (n, C, h, w): pass a module that "
            "ends before pooling and before any head, such as one stage of the network, or a "
            "vision model of transformers whose tokens are those of patches."
        )

    def _wrapped(self, module: nn.Module) -> FrozenNetwork:
        return ImageBackbone(module, self.preprocessing)

    def _probe(self, *, other: bool = False) -> Tensor:
        """Make a map of a fixed image, or of another one."""
        size = self.preprocessing.size or (_PROBE_SIDE, _PROBE_SIDE)
        return self.encode(fixed_image(self.image_channels, size, other=other))


def is_of_transformers(module: Any) -> bool:
    """Tell whether a module is a model of transformers, or of a subclass."""
    return any(kind.__module__.startswith("transformers.") for kind in type(module).__mro__)


def vision_model(module: nn.Module) -> nn.Module:
    """Return the part of a model of transformers that makes tokens of images."""
    tower = getattr(module, "vision_model", None)
    if isinstance(tower, nn.Module) and hasattr(module.config, "vision_config"):
        return tower
    # Some models call a part of theirs that takes no images their base.
    base = getattr(module, "base_model", None)
    return base if isinstance(base, nn.Module) and "pixel_values" in _arguments(base) else module


def _arguments(module: nn.Module) -> set[str]:
    return set(inspect.signature(module.forward).parameters)


def _with_channels_first(output: Tensor, size: torch.Size) -> Tensor:
    """Bring a map to (n, C, h, w): a few models, above all Swin, return (n, h, w, C)."""

    def has_aspect(sides: torch.Size) -> bool:
        strides = [n / max(1, of_map) for n, of_map in zip(size, sides, strict=True)]
        return max(strides) <= _UNEVEN_STRIDES * min(strides)

    is_last = has_aspect(output.shape[1:3]) and not has_aspect(output.shape[2:])
    return output.permute(0, 3, 1, 2) if is_last else output


def _tokens_as_map(tokens: Tensor, size: torch.Size, config: Any) -> Tensor | None:
    """Arrange tokens, (n, L, C), in the rows and columns of the patches; None if they do not fit.

    The tokens of a hierarchical model are those of its patches, halved several times.
    """
    patch = getattr(config, "patch_size", None)
    sides = (patch, patch) if isinstance(patch, int) else patch
    if not isinstance(sides, (tuple, list)) or len(sides) != 2:
        return None
    n_registers = getattr(config, "num_register_tokens", None) or 0
    grid = [side // patch for side, patch in zip(size, sides, strict=True)]
    n_extra = tokens.shape[1] - math.prod(grid)
    if n_extra in {n_registers + n for n in _EXTRA_TOKENS}:
        return tokens[:, n_extra:].transpose(1, 2).unflatten(2, grid)
    # These models fill up the last patches, where others cut them off.
    grid = [math.ceil(side / patch) for side, patch in zip(size, sides, strict=True)]
    for _ in range(_MAX_HALVINGS):
        grid = [math.ceil(side / 2) for side in grid]
        if math.prod(grid) == tokens.shape[1]:
            return tokens.transpose(1, 2).unflatten(2, grid)
    return None
