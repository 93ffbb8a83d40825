"""The space of latents: images are encoded for the field, and its outputs are decoded.

The channels of the field are the latent of an autoencoder, the features of a backbone, or the
latent and beside it the features. Only the latent is decoded.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sklearn_msf.data.images import ImageFormat
from sklearn_msf.data.on_demand import ImagesOnDemand, RowsOnDemand
from sklearn_msf.data.resizing import resize_images
from sklearn_msf.exceptions import AutoencoderError, BackboneError
from sklearn_msf.flow.label_codes import (
    CodeReader,
    EncodedLabelCodes,
    LabelCodes,
    MaskReader,
    PixelReader,
)
from sklearn_msf.latent.autoencoder import ImageAutoencoder
from sklearn_msf.latent.autoencoder_latents import ENCODED_AT_ONCE, AutoencoderLatents
from sklearn_msf.latent.autoencoder_latents_io import (
    latents_from_plain,
    latents_from_state,
    latents_to_plain,
    latents_to_state,
)
from sklearn_msf.latent.backbone import ImageBackbone
from sklearn_msf.latent.backbone_features import BackboneFeatures
from sklearn_msf.latent.backbone_io import (
    features_from_plain,
    features_from_state,
    features_to_plain,
    features_to_state,
)
from sklearn_msf.latent.channel_checks import check_channels
from sklearn_msf.latent.frozen_network import FrozenNetwork, update_with
from sklearn_msf.latent.latent_inputs import EncodedInputs, KeptInputs
from sklearn_msf.latent.model_files import KNOWN_LICENCES
from sklearn_msf.model.image_space import FieldInputs, PixelInputs
from sklearn_msf.persistence.archives import ArchiveError, part_of
from sklearn_msf.runtime.batching import in_batches
from sklearn_msf.runtime.out_of_memory import naming_what_takes_memory

__all__ = ["GivenEncoders", "LatentSpace"]

# Images that are to be encoded have about so many bytes, at their own size or that of an encoder.
_BYTES_AT_ONCE = 2**26
# So many bytes of latents may be kept during a prediction.
_BYTES_KEPT = 2**26
# Prefix of the features' tensors in files.
_FEATURES = "features"


@dataclass(frozen=True)
class GivenEncoders:
    """What a user passes to open a model whose files do not contain it; None is in the files.

    Attributes
    ----------
    autoencoder, backbone : object
        As the parameters of the estimator.
    """

    autoencoder: Any = None
    backbone: Any = None


@dataclass(frozen=True, eq=False)
class LatentSpace:
    """The latents of an autoencoder, scaled for the field, and the features of a backbone.

    Attributes
    ----------
    image_format : ImageFormat
        Layout and range of X.
    latents : AutoencoderLatents or None
        Latents, which can be decoded; None if the field works on features alone.
    palette : LabelCodes or None
        Colours of the classes, if the field carries encoded masks of them.
    features : BackboneFeatures or None
        Features that are further channels, after those of the latents.
    """

    image_format: ImageFormat
    latents: AutoencoderLatents | None
    palette: LabelCodes | None
    features: BackboneFeatures | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """(c, h, w) of the latents and features."""
        n_channels = sum(part.n_channels for part in self._learned)
        return n_channels, *self._learned[0].grid

    @property
    def n_deviations(self) -> int:
        """Number of channels, the first ones, that have a posterior deviation."""
        return 0 if self.latents is None else self.latents.n_deviations

    @property
    def makes_images(self) -> bool:
        """Whether outputs of the field can be decoded to images."""
        return self.latents is not None

    @property
    def autoencoder(self) -> ImageAutoencoder | None:
        """What encodes and decodes images, if it is there."""
        return None if self.latents is None else self.latents.autoencoder

    @property
    def backbone(self) -> ImageBackbone | None:
        """What makes the features, if it is there."""
        return None if self.features is None else self.features.backbone

    @property
    def mask_codes(self) -> Tensor | None:
        """Encoded masks of the classes, (K, c, h, w), if the field carries them, else None."""
        return None if self.latents is None else self.latents.mask_codes

    @property
    def autoencoder_source(self) -> dict[str, Any] | None:
        """Class and origin of the autoencoder, with its weights' licence if known; or None."""
        if self.autoencoder is None:
            return None
        source = {"class": type(self.autoencoder.module).__name__, **self.autoencoder.source}
        known = KNOWN_LICENCES.get(source.get("id", ""))
        return source if known is None else {**source, "licence": known}

    @property
    def device(self) -> torch.device:
        """Device of what encodes images; the CPU if one of two encoders is there."""
        devices = {encoder.device for encoder in self._encoders}
        return devices.pop() if len(devices) == 1 else torch.device("cpu")

    @property
    def encoded_pixels(self) -> int:
        """Pixels of one image at the sizes at which it is encoded."""
        return sum(math.prod(part.size) for part in self._learned)

    @property
    def bytes_of_image(self) -> int:
        """Bytes of one image in float32, at its own size or at that of an encoder."""
        n_values = [3 * math.prod(part.size) for part in self._learned]
        return torch.float32.itemsize * max(math.prod(self.image_format.shape), *n_values)

    @property
    def encoded_size(self) -> tuple[int, int]:
        """Height and width of the images for the autoencoder, or else for the backbone."""
        return self._learned[0].size

    @property
    def _learned(self) -> list[AutoencoderLatents | BackboneFeatures]:
        """Latents and features, those that there are, in the order of their channels."""
        return [part for part in (self.latents, self.features) if part is not None]

    @property
    def n_latent(self) -> int:
        """Number of channels, the first ones, that are the latent of an autoencoder."""
        return 0 if self.latents is None else self.latents.n_channels

    def module_of(self, name: str) -> Any:
        """Return the module of the "autoencoder" or the "backbone", or None."""
        encoder = self._encoder(name)
        return None if encoder is None else encoder.module

    def wraps(self, name: str, given: Any) -> bool:
        """Tell whether an encoder is an object, or an unchanged copy of it."""
        encoder = self._encoder(name)
        return encoder is not None and encoder.is_made_of(given)

    def _encoder(self, name: str) -> FrozenNetwork | None:
        return self.autoencoder if name == "autoencoder" else self.backbone

    @property
    def _encoders(self) -> list[FrozenNetwork]:
        found = (self._encoder("autoencoder"), self._encoder("backbone"))
        return [encoder for encoder in found if encoder is not None]

    def inputs(
        self,
        rows: RowsOnDemand,
        device: torch.device,
        precision: str,
        flips: Sequence[tuple[int, ...]],
        *,
        repeated: bool = False,
    ) -> FieldInputs:
        """Prepare images that are encoded batch by batch, or now if they are needed repeatedly.

        On a CPU those whose latents take little memory are encoded now too, a few on each core: a
        batch of the field runs on one core, and may hold all of them.
        """
        pixels = PixelInputs(ImagesOnDemand(self.image_format, rows), device)
        n_bytes = len(rows) * len(flips) * math.prod(self.shape) * torch.float32.itemsize
        if repeated:
            advice = (
                f"Latents of {len(rows)} images and their flips, {n_bytes / 1e9:.1f} GB, are kept "
                "in memory to classify them repeatedly: hold out or validate on fewer images, or "
                "set a smaller encoded_size"
            )
            with naming_what_takes_memory(advice):
                return self._kept(pixels, device, precision, flips)
        if device.type == "cpu" and n_bytes <= _BYTES_KEPT:
            return self._kept(pixels, device, precision, flips)
        # Passes of encoders are padded, so that slices must not be small.
        n_at_once = max(ENCODED_AT_ONCE, _BYTES_AT_ONCE // self.bytes_of_image)
        return EncodedInputs(pixels, partial(self.encode, precision=precision), n_at_once)

    def _kept(
        self,
        pixels: PixelInputs,
        device: torch.device,
        precision: str,
        flips: Sequence[tuple[int, ...]],
    ) -> KeptInputs:
        """Encode images and their flips now, and keep their latents."""
        n = len(pixels)
        latents = torch.empty(len(flips) * n, *self.shape)

        # One flip after the other, as if they were images: few of them fill a pass together.
        def encode(start: int, size: int) -> None:
            stop = min(start + size, len(latents))
            parts = []
            for number, flip in enumerate(flips):
                first, end = max(start - number * n, 0), min(stop - number * n, n)
                if first < end:
                    parts.append(pixels.batch(first, end - first, flip))
            latents[start:stop] = self.encode(torch.cat(parts), precision).cpu()

        in_batches(encode, len(latents), self._images_a_task(len(latents), device), device)
        numbers = {flip: number for number, flip in enumerate(flips)}
        by_image = latents.unflatten(0, (len(flips), n)).transpose(0, 1)
        return KeptInputs(by_image, torch.arange(n), numbers, self.shape[0], device)

    def _images_a_task(self, n: int, device: torch.device) -> int:
        """Divide the encoding of n images among the cores, in whole passes of the first encoder."""
        if device.type != "cpu":
            return ENCODED_AT_ONCE
        # The autoencoder is the first and takes longest; a pass of the backbone may be padded.
        n_a_pass = self._learned[0].images_a_pass
        n_passes = math.ceil(n / (n_a_pass * torch.get_num_threads()))
        return n_a_pass * min(n_passes, max(1, ENCODED_AT_ONCE // n_a_pass))

    def reader(self, codes: LabelCodes | EncodedLabelCodes, label_decoding: str) -> MaskReader:
        """Return a reader that compares masks as latents, or one that decodes them first."""
        if self.palette is not None and label_decoding == "pixel":
            # Without limits: distances count how far beyond a colour a prediction is.
            return PixelReader(self.palette, self._checked_latents.decode)
        return CodeReader(codes.to("cpu"))

    def images(self, sampled: Tensor) -> Tensor:
        """Decode the latents of what was generated to the size and the channels of X."""
        images = self._decoded(sampled[:, : self.n_latent])
        if self.image_format.n_channels == 1:
            images = images.mean(dim=1, keepdim=True)
        height, width = self.image_format.size
        return resize_images(images, (height, width))

    def masks(self, carried: Tensor) -> Tensor:
        """Decode masks if the field carries encoded ones."""
        return carried if self.mask_codes is None else self._decoded(carried)

    def encode(self, x: Tensor, precision: str) -> Tensor:
        """Encode images, (n, C, H, W) in [-1, 1], to normalised posterior means and features."""
        encoded = self.normalised_posterior(self.resized(x), precision)
        return encoded[:, : self.shape[0]]

    def resized(self, x: Tensor) -> list[Tensor]:
        """Convert images to the size and the channels of each encoder, the autoencoder first."""
        return [part.resized(x) for part in self._learned]

    def normalised_posterior(self, images: Sequence[Tensor], precision: str) -> Tensor:
        """Encode images that :meth:`resized` returned.

        Parameters
        ----------
        images : sequence of Tensor of shape (n, C, H, W)
            One batch for each encoder.
        precision : {"float32", "bfloat16"}
            Precision of the encoders.

        Returns
        -------
        Tensor of shape (n, c + n_deviations, h, w)
            Normalised means, features, and deviations if there are any.
        """
        means, deviations = [], []
        for_encoder = iter(images)
        if self.latents is not None:
            mean, deviation = self.latents.encode(next(for_encoder), precision)
            means.append(mean)
            if deviation is not None:
                deviations.append(deviation)
        if self.features is not None:
            means.append(self.features.encode(next(for_encoder), precision))
        return torch.cat([*means, *deviations], dim=1)

    def digest(self) -> str:
        """Identify all that latents depend on besides the images and the precision."""
        # What an encoder makes is part of it: its attributes do not tell all that it computes.
        exact = hashlib.sha256()
        digests = []
        for encoder in self._encoders:
            digest, made = encoder.fingerprint()
            digests.append(digest)
            update_with(exact, made)
        # Latents are kept as the field gets them: shifted, scaled and rotated.
        for part in self._learned:
            for value in part.constants:
                update_with(exact, value)
        sizes = [part.size for part in self._learned]
        return " ".join(map(str, (*digests, *sizes, self.shape, exact.hexdigest())))

    def _decoded(self, latents: Tensor) -> Tensor:
        return self._checked_latents.decode(latents).clamp(-1, 1)

    @property
    def _checked_latents(self) -> AutoencoderLatents:
        """The latents where they are needed: nothing is decoded of a space without them."""
        assert self.latents is not None
        return self.latents

    def for_graphs(self) -> "LatentSpace":
        """Return the space with a copy of the autoencoder on the CPU that splits no batch."""
        if self.latents is None:
            return self
        in_one_pass = self.latents.autoencoder.in_one_pass()
        return replace(self, latents=replace(self.latents, autoencoder=in_one_pass))

    # Files and pickles

    def to_plain(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Describe the space for a file: plain data and tensors.

        An autoencoder from the hub is named by id and revision instead of copied, as every backbone
        is.
        """
        plain: dict[str, Any] = {}
        tensors: dict[str, Tensor] = {}
        if self.latents is not None:
            plain, tensors = latents_to_plain(self.latents)
        if self.features is not None:
            plain["backbone"], of_features = features_to_plain(self.features)
            tensors |= {f"{_FEATURES}.{name}": value for name, value in of_features.items()}
        return plain, tensors

    @classmethod
    def from_plain(
        cls,
        plain: Any,
        tensors: dict[str, Tensor],
        image_format: ImageFormat,
        palette: LabelCodes | None,
        given: GivenEncoders,
        known: "LatentSpace | None" = None,
    ) -> "LatentSpace":
        """Restore the space from the data of a file, which may have been tampered with.

        The same checks are for data that are about to be written: then the encoders are at hand,
        and only their descriptions are checked.

        Parameters
        ----------
        plain, tensors :
            As :meth:`to_plain` returns them.
        image_format : ImageFormat
            Layout and range of X.
        palette : LabelCodes or None
            Colours of the classes, if the field carries encoded masks of them.
        given : GivenEncoders
            Encoders to use if the file has only names, or not even these.
        known : LatentSpace, optional
            The space itself.

        Raises
        ------
        ArchiveError
            For data that :meth:`to_plain` cannot have returned.
        PretrainedModelError
            If an encoder cannot be opened, or is another than the original one.
        ValueError
            If the images have other channels than an encoder takes.
        """
        has_autoencoder, has_backbone = "autoencoder" in plain, "backbone" in plain
        if not has_autoencoder and not has_backbone:
            raise ArchiveError("The model has neither an autoencoder nor a backbone.")
        if given.backbone is not None and not has_backbone:
            raise BackboneError(
                "The model was fitted without a backbone: call from_pretrained without backbone."
            )
        if given.autoencoder is not None and not has_autoencoder:
            raise AutoencoderError(
                "The model was fitted without an autoencoder: call from_pretrained without "
                "autoencoder."
            )
        if not has_autoencoder and palette is not None:
            raise ArchiveError("The model has encoded masks, but no autoencoder.")
        latents = None
        if has_autoencoder:
            latents = latents_from_plain(
                plain,
                tensors,
                image_format,
                given.autoencoder,
                None if known is None else known.autoencoder,
                encodes_masks=palette is not None,
            )
        space = cls(image_format, latents, palette)
        if not has_backbone:
            return space
        own = None if known is None else known.backbone
        features = features_from_plain(
            plain["backbone"], part_of(tensors, _FEATURES), image_format.size, given.backbone, own
        )
        check_channels(image_format, features.backbone, encodes_masks=False)
        if has_autoencoder and features.grid != space.shape[1:]:
            raise ArchiveError(f"The features of the model have grid={features.grid}.")
        return replace(space, features=features)

    def to_state(self) -> dict[str, Any]:
        """Describe the space for a pickle: plain data and tensors.

        A backbone, and an autoencoder object of the user's own, are added as they are, a torch
        module on the CPU. An autoencoder whose description could not be opened again is refused.
        """
        state: dict[str, Any] = {
            "autoencoder": None,
            "scaling": None,
            "palette": None if self.palette is None else dict(vars(self.palette)),
        }
        if self.latents is not None:
            state["autoencoder"], state["scaling"] = latents_to_state(self.latents)
        if self.features is not None:
            state["features"] = features_to_state(self.features)
        return state

    @classmethod
    def from_state(cls, state: dict[str, Any], image_format: ImageFormat) -> "LatentSpace":
        """Restore the space that :meth:`to_state` described."""
        latents, features = None, None
        if state["autoencoder"] is not None:
            latents = latents_from_state(state["autoencoder"], state["scaling"])
        palette = None if state["palette"] is None else LabelCodes(**state["palette"])
        # Pickles from before there were backbones have no features.
        plain = state.get("features")
        if plain is not None:
            features = features_from_state(plain)
        return cls(image_format, latents, palette, features)

    def move_to(self, device: torch.device) -> None:
        """Move the encoders."""
        for encoder in self._encoders:
            encoder.to(device)

    def on(self, device: torch.device) -> "LatentSpace":
        """Return the space with encoders on a device: copies of those that are on another one."""
        latents, features = self.latents, self.features
        if latents is not None:
            latents = replace(latents, autoencoder=latents.autoencoder.on(device))
        if features is not None:
            features = replace(features, backbone=features.backbone.on(device))
        return replace(self, latents=latents, features=features)
