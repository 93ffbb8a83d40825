"""One interface to all autoencoders: images to latents, latents to images.

Any object with `encode` and `decode` can be used: an autoencoder of diffusers for single images, or
an object of the user's own. Images are tensors (n, C, H, W) in [-1, 1]. `encode` returns the
latents, a pair of their means and standard deviations, or the output of a diffusers model; `decode`
returns the images, or the output of a diffusers model. Both may be called from several threads at
the same time. A torch module gets its inputs on the device of the model, any other object gets them
on the CPU. Inputs and weights are float32; `encode` may run under bfloat16 autocast.

Attributes are read from the object's `config` or from the object itself: ``in_channels`` (3 without
it; 1 for gray images), ``encoder_input_size`` if every image is resized to that side, and
``scaling_factor`` and ``shift_factor`` if the latents have a published scaling.
"""

import contextlib
import copy
import hashlib
import json
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sklearn_msf.exceptions import AutoencoderError
from sklearn_msf.latent.frozen_network import (
    FrozenNetwork,
    config_entry,
    equal_passes,
    fixed_image,
    images_a_pass,
    is_same_output,
    plain_config,
    update_digest,
)
from sklearn_msf.runtime.device import autocast
from sklearn_msf.runtime.optional_imports import importing
from sklearn_msf.runtime.out_of_memory import is_out_of_memory

__all__ = [
    "AUTOENCODER_CLASSES",
    "Encoded",
    "ImageAutoencoder",
    "build_autoencoder",
    "diffusers_class",
]

AUTOENCODER_CLASSES = ("AutoencoderKL", "AutoencoderTiny")
# Classes of diffusers whose images are in [0, 1] instead of [-1, 1].
_OF_UNIT_RANGE = ("AutoencoderRAE",)
_PIXELS_A_PASS = 2 * 256 * 256
_PROBE_SIDE, _LARGE_PROBE_SIDE = 64, 256


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


class ImageAutoencoder(FrozenNetwork):
    """Wrap any autoencoder in one interface.

    Parameters
    ----------
    autoencoder : object
        Has `encode` and `decode`, see the docstring of the module.
    source : dict, optional
        Origin of the autoencoder as plain data: {"kind": "hub", "id": ..., "revision": ...}.

    Attributes
    ----------
    image_size : tuple of int or None
        Height and width to which the autoencoder itself resizes every image, if it does.
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
        super().__init__(autoencoder, source or {"kind": _kind_of(autoencoder)})
        self._has_unit_range = _is_of_diffusers(autoencoder, _OF_UNIT_RANGE)
        self._splits_batches = True
        self.image_channels = int(config_entry(autoencoder, "in_channels", 3))
        side = config_entry(autoencoder, "encoder_input_size", None)
        self.image_size = None if side is None else (int(side), int(side))
        scaling = float(config_entry(autoencoder, "scaling_factor", None) or 1)
        shift = float(config_entry(autoencoder, "shift_factor", None) or 0)
        # A factor of 1 means that none was measured. Some autoencoders scale by channel, and one of
        # images in [0, 1] scales by itself.
        by_channel = config_entry(autoencoder, "latents_std", None) is not None
        has_one = (shift, scaling) != (0.0, 1.0) and not (by_channel or self._has_unit_range)
        self.published_scaling = (shift, scaling) if has_one else None
        encoded = self._first_probe()
        if not bool(encoded.mean.isfinite().all()):
            raise AutoencoderError(
                f"autoencoder={type(autoencoder).__name__} makes NaN or infinite latents of an "
                "image in [-1, 1]: use another one."
            )
        if encoded.deviation is not None and bool((encoded.deviation < 0).any()):
            raise AutoencoderError(
                f"autoencoder={type(autoencoder).__name__} makes negative standard deviations: of "
                "a log-variance return (0.5 * logvar).exp() beside the mean."
            )
        if not is_same_output(self._probe().mean, encoded.mean):
            raise AutoencoderError(
                f"autoencoder={type(autoencoder).__name__} makes other latents of the same image "
                "in each call: let encode return the mean of its posterior, or a pair of mean and "
                "standard deviation, and no random draw."
            )
        if torch.equal(encoded.mean, self._probe(other=True).mean):
            raise AutoencoderError(
                f"autoencoder={type(autoencoder).__name__} makes the same latents of different "
                "images: let encode return what it makes of its argument. A copy is used of a "
                "torch module."
            )
        self.latent_channels = encoded.mean.shape[1]
        self.has_deviation = encoded.deviation is not None
        self.factor = self._probe_side // encoded.mean.shape[2]

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

    def converts_as(self, other: "ImageAutoencoder") -> bool:
        """Tell whether another one makes the same latents, and the same images of these."""
        mine, its = self._probe(), other._probe()
        if self.has_deviation != other.has_deviation:
            return False
        pairs = [(mine.mean, its.mean), (self.decode(mine.mean), other.decode(mine.mean))]
        if mine.deviation is not None and its.deviation is not None:
            pairs.append((mine.deviation, its.deviation))
        return all(is_same_output(found, wanted) for found, wanted in pairs)

    def decoded_fixed_image(self) -> Tensor | None:
        """Decode the latents of a fixed image; None if they cannot be decoded, or at random."""
        latents = self._probe().mean
        try:
            # The user's generator stays where it is.
            with torch.random.fork_rng(devices=[]):
                first, second = (self._decode(latents).cpu() for _ in range(2))
        except Exception as error:  # Whatever an object of the user's raises that only classifies.
            if is_out_of_memory(error):
                raise
            return None
        return first if is_same_output(first, second) else None

    def in_one_pass(self) -> "ImageAutoencoder":
        """Return a copy on the CPU that takes every batch in one pass, whatever memory that needs.

        What `encode` and `decode` do then does not depend on the size of the batch.
        """
        # With a module of its own, as in a pickle.
        copied = copy.copy(self)
        copied._splits_batches = False
        return copied

    def images_a_pass(self, size: tuple[int, int]) -> int:
        """Count the images of this height and width that one pass encodes."""
        return images_a_pass(math.prod(size), _PIXELS_A_PASS)

    def _passes(self, batch: Tensor, factor: int) -> list[Tensor]:
        """Split images, or latents whose sides are smaller by a factor, into passes."""
        if not self._splits_batches:
            return [batch]
        n_pixels = math.prod(batch.shape[2:]) * factor**2
        return equal_passes(batch, n_pixels, _PIXELS_A_PASS)

    def of_fixed_image(self) -> Tensor:
        """Make the latents of a fixed image."""
        return self._probe().mean.cpu()

    def _digest(self) -> str:
        digest = hashlib.sha256(json.dumps(plain_config(self.module)).encode())
        if isinstance(self.module, nn.Module):
            update_digest(digest, self.module, self.module.state_dict())
        else:
            encoded = self._probe()
            for value in (*encoded, self.decoded_fixed_image()):
                digest.update(b"" if value is None else value.cpu().numpy().tobytes())
        return digest.hexdigest()[:16]

    def _first_probe(self) -> Encoded:
        """Encode a fixed image, a larger one if an encoder of many levels needs it."""
        self._probe_side = _PROBE_SIDE if self.image_size is None else self.image_size[0]
        try:
            return self._probe()
        except AutoencoderError:
            if self.image_size is None:
                self._probe_side = _LARGE_PROBE_SIDE
                with contextlib.suppress(AutoencoderError):
                    return self._probe()
            raise

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

    def _wrapped(self, module: nn.Module) -> FrozenNetwork:
        return ImageAutoencoder(module)

    def _probe(self, *, other: bool = False) -> Encoded:
        """Encode a fixed image, or another one, and check the shape of its latents."""
        side = self._probe_side
        image = fixed_image(self.image_channels, (side, side), other=other)
        try:
            encoded = self._encode(image, "float32")
        except AutoencoderError:
            raise
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise AutoencoderError(
                f"autoencoder={type(self.module).__name__} cannot encode an image of shape "
                f"{tuple(image.shape)}: {error}. If it needs another number of channels, set its "
                "attribute in_channels."
            ) from error
        _, channels, height, width = encoded.mean.shape
        if height != width or not height or side % height or not channels:
            raise AutoencoderError(
                f"autoencoder.encode makes latents of shape {tuple(encoded.mean.shape)} of an "
                f"image of {side} x {side} pixels; both sides must be divided by the "
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
    needed = (
        'Latents need diffusers: python -m pip install "sklearn-msf[latent]". To fit, an object '
        "with encode and decode works without."
    )
    with importing(needed):
        import diffusers

        # Only this imports the class, and transformers with it where that is installed.
        return getattr(diffusers, kind)
