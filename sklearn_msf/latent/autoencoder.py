"""One interface to all autoencoders: images to latents, latents to images.

Any object with `encode` and `decode` can be used: an autoencoder of diffusers for single images, or
an object of the user's own. Images are tensors (n, C, H, W) in [-1, 1]. `encode` returns the
latents, a pair of their means and standard deviations, or the output of a diffusers model; `decode`
returns the images, or the output of a diffusers model. Both may be called from several threads at
the same time. A torch module gets its inputs on the device of the model, any other object gets them
on the CPU. Inputs and weights are float32; `encode` may run under bfloat16 autocast.

Attributes are read from the object's `config` or from the object itself: ``in_channels`` (3 without
it; 1 for gray images), and ``scaling_factor`` and ``shift_factor`` if the latents have a published
scaling.
"""

import copy
import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sklearn_msf.exceptions import AutoencoderError
from sklearn_msf.runtime.device import autocast, to_channels_last

__all__ = [
    "AUTOENCODER_CLASSES",
    "Encoded",
    "ImageAutoencoder",
    "build_autoencoder",
    "diffusers_class",
    "plain_config",
]

AUTOENCODER_CLASSES = ("AutoencoderKL", "AutoencoderTiny")
# Classes of diffusers whose images are in [0, 1] instead of [-1, 1].
_OF_UNIT_RANGE = ("AutoencoderRAE",)
# Limits of one pass. Every pass is padded to the same number of images, because kernels round
# differently for other batch sizes; a small number keeps the padding of a single image cheap.
_PIXELS_A_PASS = 2 * 256 * 256
_MAX_ROWS_A_PASS = 16
_PROBE_SIDE = 64


class Encoded(NamedTuple):
    """Latents of images.

    Attributes
    ----------
    mean : Tensor of shape (n, c, h, w)
        Posterior means, or the latents of an autoencoder without a posterior.
    deviation : Tensor of shape (n, c, h, w) or None
        Posterior standard deviations, if the autoencoder returns any.
    """

    mean: Tensor
    deviation: Tensor | None


class ImageAutoencoder:
    """Wrap any autoencoder in one interface.

    Parameters
    ----------
    autoencoder : object
        Has `encode` and `decode`, see the docstring of the module.
    source : dict, optional
        Origin of the autoencoder as plain data: {"kind": "hub", "id": ..., "revision": ...}.

    Attributes
    ----------
    image_channels : int
        Channels of the images.
    factor : int
        Side of an image divided by the side of its latents.
    latent_channels : int
        Channels of the latents.
    has_deviation : bool
        Whether `encode` returns posterior deviations.
    published_scaling : tuple of float or None
        Shift and factor of the latents, if the autoencoder names them.

    Raises
    ------
    AutoencoderError
        For an object that cannot be used as an autoencoder.
    """

    def __init__(self, autoencoder: Any, source: dict[str, Any] | None = None):
        for name in ("encode", "decode"):
            if not callable(getattr(autoencoder, name, None)):
                raise AutoencoderError(
                    f"autoencoder must have the methods encode and decode; "
                    f"{type(autoencoder).__name__} has no {name}."
                )
        self.module = autoencoder
        self.source = source or {"kind": _kind_of(autoencoder)}
        self._has_unit_range = _is_of_diffusers(autoencoder, _OF_UNIT_RANGE)
        self._device = torch.device("cpu")
        self._splits_batches = True
        self._fingerprint: tuple[str, Tensor] | None = None
        if isinstance(autoencoder, nn.Module):
            # Fix precision and memory layout, so that a copy from a file computes the same.
            nn.Module.float(autoencoder.eval().requires_grad_(False))
            to_channels_last(autoencoder, self._device)
        self.image_channels = int(_entry(autoencoder, "in_channels", 3))
        scaling = float(_entry(autoencoder, "scaling_factor", None) or 1)
        shift = float(_entry(autoencoder, "shift_factor", None) or 0)
        # A factor of 1 is the default and means that none was measured.
        self.published_scaling = None if (shift, scaling) == (0.0, 1.0) else (shift, scaling)
        encoded = self._probe()
        self.latent_channels = encoded.mean.shape[1]
        self.has_deviation = encoded.deviation is not None
        self.factor = _PROBE_SIDE // encoded.mean.shape[2]

    @property
    def device(self) -> torch.device:
        """Device of the inputs: the CPU for an object that is not a torch module."""
        return self._device

    def to(self, device: torch.device) -> "ImageAutoencoder":
        """Move a torch module to a device; anything else stays on the CPU."""
        if isinstance(self.module, nn.Module):
            self.module.to(device)
            self._device = device
        return self

    def is_made_of(self, given: Any) -> bool:
        """Tell whether this one wraps an object, or a copy of a module that has not changed since.

        The copy is in float32 and in evaluation mode, whatever the module is in.
        """
        if given is self.module or not isinstance(given, nn.Module):
            return given is self.module
        mine, its = self.module.state_dict(), given.state_dict()
        return (
            type(given) is type(self.module)
            and plain_config(given) == plain_config(self.module)
            and _plain_attributes(given, but="training")
            == _plain_attributes(self.module, but="training")
            and mine.keys() == its.keys()
            and all(torch.equal(v.cpu(), its[name].to(v.dtype).cpu()) for name, v in mine.items())
        )

    def encode(self, images: Tensor, precision: str = "float32") -> Encoded:
        """Encode images, (n, C, H, W) in [-1, 1], in passes that bound the memory."""
        passes = self._passes(images, 1)
        parts = [self._encode(part, precision) for part in passes]
        means = torch.cat([part.mean for part in parts])[: images.shape[0]]
        self._check_sides(images, means)
        if not self.has_deviation:
            return Encoded(means, None)
        deviations = torch.cat([part.deviation for part in parts if part.deviation is not None])
        return Encoded(means, deviations[: images.shape[0]])

    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents, (n, c, h, w), to images, (n, C, H, W), in float32."""
        passes = self._passes(latents, self.factor)
        parts = [self._decode(part) for part in passes]
        return torch.cat(parts)[: latents.shape[0]].to(latents.device)

    def in_one_pass(self) -> "ImageAutoencoder":
        """Return a copy on the CPU that takes every batch in one pass, whatever memory that needs.

        What `encode` and `decode` do then does not depend on the size of the batch.
        """
        copied = copy.copy(self)
        copied._splits_batches = False
        if isinstance(self.module, nn.Module):
            copied.module = copy.deepcopy(self.module)
        return copied.to(torch.device("cpu"))

    def _passes(self, batch: Tensor, factor: int) -> list[Tensor]:
        return _passes(batch, _rows_a_pass(batch, factor)) if self._splits_batches else [batch]

    def fingerprint(self) -> tuple[str, Tensor]:
        """Identify this autoencoder by a digest, and by the latents of a fixed image."""
        if self._fingerprint is None:
            encoded = self._probe()
            digest = hashlib.sha256(json.dumps(plain_config(self.module)).encode())
            if isinstance(self.module, nn.Module):
                digest.update(repr(_plain_attributes(self.module)).encode())
                for name, value in self.module.state_dict().items():
                    digest.update(name.encode())
                    digest.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
            else:
                for value in (*encoded, self.decode(encoded.mean)):
                    digest.update(b"" if value is None else value.cpu().numpy().tobytes())
            self._fingerprint = digest.hexdigest()[:16], encoded.mean.cpu()
        return self._fingerprint

    def _check_sides(self, images: Tensor, latents: Tensor) -> None:
        """Refuse an encoder that resizes images to a size of its own first."""
        sides = [n // self.factor for n in images.shape[2:]]
        if list(latents.shape[2:]) != sides:
            fitting = tuple(n * self.factor for n in latents.shape[2:])
            raise AutoencoderError(
                f"autoencoder={type(self.module).__name__} makes latents of "
                f"{list(latents.shape[2:])} of images of {list(images.shape[2:])}; expected "
                f"{sides}: use encoded_size={fitting}, or pass another autoencoder."
            )

    def _encode(self, images: Tensor, precision: str) -> Encoded:
        device = self.device
        if self._has_unit_range:
            images = (images + 1) / 2
        with torch.no_grad(), autocast(device, precision):
            return _read_encoded(self.module.encode(images.to(device)), images.device)

    def _decode(self, latents: Tensor) -> Tensor:
        with torch.no_grad(), autocast(self.device, "float32"):
            decoded = self.module.decode(latents.float().to(self.device))
        images = getattr(decoded, "sample", decoded)
        if not isinstance(images, Tensor) or images.ndim != 4:
            raise AutoencoderError(
                f"autoencoder.decode must return images of shape (n, C, H, W), got "
                f"{type(images).__name__}{list(getattr(images, 'shape', []))}."
            )
        return 2 * images.float() - 1 if self._has_unit_range else images.float()

    def _probe(self) -> Encoded:
        """Encode a fixed image and check the shape of its latents."""
        ramp = torch.linspace(-1, 1, _PROBE_SIDE)
        waves = torch.sin(9 * ramp[:, None] * torch.arange(1, self.image_channels + 1))
        image = waves.T[None, :, :, None] * torch.cos(5 * ramp)
        try:
            encoded = self._encode(image, "float32")
        except AutoencoderError:
            raise
        except Exception as error:
            raise AutoencoderError(
                f"autoencoder={type(self.module).__name__} cannot encode an image of shape "
                f"{tuple(image.shape)}: {error}. If it needs another number of channels, set its "
                "attribute in_channels."
            ) from error
        _, channels, height, width = encoded.mean.shape
        if height != width or not height or _PROBE_SIDE % height or not channels:
            raise AutoencoderError(
                f"autoencoder.encode makes latents of shape {tuple(encoded.mean.shape)} of an "
                f"image of {_PROBE_SIDE} x {_PROBE_SIDE} pixels; both sides must be divided by the "
                "same integer."
            )
        return encoded


def _read_encoded(encoded: Any, device: torch.device) -> Encoded:
    """Convert the return value of `encode` to means and deviations."""
    distribution = getattr(encoded, "latent_dist", None)
    if distribution is not None:
        encoded = (distribution.mean, distribution.std)
    for name in ("latents", "latent"):
        encoded = getattr(encoded, name, encoded)
    mean, deviation = encoded if isinstance(encoded, (tuple, list)) else (encoded, None)
    for value in (mean, deviation):
        if value is not None and (not isinstance(value, Tensor) or value.ndim != 4):
            raise AutoencoderError(
                "autoencoder.encode must return latents of shape (n, c, h, w), or a pair of "
                f"their means and deviations, got {type(value).__name__}"
                f"{list(getattr(value, 'shape', []))}."
            )
    deviation = None if deviation is None else deviation.float().to(device)
    return Encoded(mean.float().to(device), deviation)


def _kind_of(autoencoder: Any) -> str:
    """Return "embedded" if files can hold the autoencoder, else "object"."""
    return "embedded" if _is_of_diffusers(autoencoder, AUTOENCODER_CLASSES) else "object"


def _is_of_diffusers(autoencoder: Any, names: tuple[str, ...]) -> bool:
    kind = type(autoencoder)
    return kind.__name__ in names and kind.__module__.startswith("diffusers.")


def _entry(autoencoder: Any, name: str, default: Any) -> Any:
    """Look up a value in an autoencoder's configuration, or else in its attributes."""
    config = getattr(autoencoder, "config", None)
    if isinstance(config, Mapping) and name in config:
        return config[name]
    return getattr(config, name, None) or getattr(autoencoder, name, default)


def _plain_attributes(module: nn.Module, but: str = "") -> dict[str, Any]:
    """Collect the plain values, besides the weights, that a module may compute with."""
    return {
        f"{path}.{name}": value if _is_plain(value) else _without_addresses(value)
        for path, part in module.named_modules()
        for name, value in vars(part).items()
        if isinstance(value, (bool, int, float, str, tuple)) and not name.startswith("_")
        if name != but
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


def _rows_a_pass(batch: Tensor, factor: int) -> int:
    n_pixels = batch.shape[2] * batch.shape[3] * factor**2
    return max(1, min(_MAX_ROWS_A_PASS, _PIXELS_A_PASS // n_pixels))


def _passes(batch: Tensor, n_rows: int) -> list[Tensor]:
    """Split a batch into parts of exactly n_rows; pad the last one with the first sample."""
    missing = -len(batch) % n_rows
    if missing:
        batch = torch.cat([batch, batch[:1].expand(missing, -1, -1, -1)])
    return list(batch.split(n_rows))


def plain_config(module: Any) -> dict[str, Any]:
    """Describe an autoencoder of diffusers by its class and its configuration."""
    config = getattr(module, "config", None)
    entries = config.items() if isinstance(config, Mapping) else ()
    plain = {name: value for name, value in entries if not str(name).startswith("_")}
    return {"class": type(module).__name__, "config": json.loads(json.dumps(plain, default=_text))}


def build_autoencoder(kind: str, config: dict[str, Any]) -> nn.Module:
    """Make an untrained autoencoder of diffusers."""
    module: nn.Module = diffusers_class(kind)(**config)
    return module


def diffusers_class(kind: str) -> Any:
    """Return one of `AUTOENCODER_CLASSES`.

    Raises
    ------
    AutoencoderError
        For another class.
    ImportError
        If diffusers is not installed.
    """
    if kind not in AUTOENCODER_CLASSES:
        raise AutoencoderError(f"{kind!r} is none of {AUTOENCODER_CLASSES}.")
    try:
        import diffusers
    except ImportError as error:
        raise ImportError(
            "Latents need diffusers: python -m pip install 'sklearn-msf[latent]'. An object "
            "with encode and decode works without."
        ) from error
    return getattr(diffusers, kind)
