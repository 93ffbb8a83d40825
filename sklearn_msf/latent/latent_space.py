"""The space of latents: images are encoded for the field, and its outputs are decoded.

The channels of the field are the latent of an autoencoder, the features of a backbone, or the
latent and beside it the features. Only the latent is decoded.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
from sklearn_msf.latent.autoencoder_io import (
    autoencoder_from_plain,
    autoencoder_to_plain,
    check_autoencoder,
)
from sklearn_msf.latent.autoencoder_latents import ENCODED_AT_ONCE, AutoencoderLatents
from sklearn_msf.latent.backbone import ImageBackbone, Preprocessing
from sklearn_msf.latent.backbone_features import BackboneFeatures
from sklearn_msf.latent.backbone_io import features_from_plain, features_to_plain
from sklearn_msf.latent.frozen_network import (
    FrozenNetwork,
    copy_to_pickle,
    is_same_output,
    update_with,
)
from sklearn_msf.latent.model_files import KNOWN_LICENCES
from sklearn_msf.model.image_space import FieldInputs, PixelInputs
from sklearn_msf.persistence.archives import ArchiveError, check_shapes, part_of
from sklearn_msf.persistence.json_data import is_size
from sklearn_msf.persistence.limits import check_resized_size
from sklearn_msf.runtime.batching import in_batches

__all__ = ["GivenEncoders", "LatentSpace", "check_channels"]

# Images that are to be encoded have about so many bytes, at their own size or that of an encoder.
_BYTES_AT_ONCE = 2**26
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
        if name == "autoencoder":
            return self.autoencoder
        return None if self.features is None else self.features.backbone

    @property
    def _encoders(self) -> list[FrozenNetwork]:
        found = (self._encoder("autoencoder"), self._encoder("backbone"))
        return [encoder for encoder in found if encoder is not None]

    def inputs(self, rows: RowsOnDemand, device: torch.device, precision: str) -> FieldInputs:
        """Prepare images that are encoded batch by batch, when a batch is needed."""
        pixels = PixelInputs(ImagesOnDemand(self.image_format, rows), device)
        return LatentInputs(self, pixels, precision)

    def kept_inputs(
        self,
        rows: RowsOnDemand,
        device: torch.device,
        precision: str,
        flips: Sequence[tuple[int, ...]],
    ) -> FieldInputs:
        """Encode images and their flips now, and keep their latents."""
        inputs = self.inputs(rows, device, precision)
        views = {}
        for flip in flips:

            def encode(start: int, size: int, flip: tuple[int, ...] = flip) -> Tensor:
                return inputs.batch(start, min(size, len(inputs) - start), flip).cpu()

            views[flip] = torch.cat(in_batches(encode, len(inputs), ENCODED_AT_ONCE, device))
        return KeptInputs(views, device)

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
            autoencoder = self.latents.autoencoder
            metadata, weights = autoencoder_to_plain(autoencoder, by_name=True)
            tensors = {f"autoencoder.{name}": value for name, value in weights.items()}
            tensors |= {"shift": self.latents.shift, "scale": self.latents.scale}
            if self.latents.mask_codes is not None:
                tensors["mask_codes"] = self.latents.mask_codes
            _, tensors["probe"] = autoencoder.fingerprint()
            plain = {"autoencoder": metadata, "encoded_size": list(self.latents.size)}
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
            opened = None if known is None else known.autoencoder
            latents = _latents_from_plain(
                plain, tensors, image_format, palette, given.autoencoder, opened
            )
        space = cls(image_format, latents, palette)
        if not has_backbone:
            return space
        own = None if known is None or known.features is None else known.features.backbone
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
            learned = dict(vars(self.latents))
            autoencoder = learned.pop("autoencoder")
            metadata, tensors = autoencoder_to_plain(autoencoder, by_name=False)
            check_autoencoder(metadata, tensors)
            is_object = metadata["kind"] == "object"
            module = copy_to_pickle(autoencoder.module) if is_object else None
            state |= {"autoencoder": [metadata, tensors, module], "scaling": learned}
        if self.features is not None:
            backbone = self.features.backbone
            state["features"] = {
                **vars(self.features),
                "backbone": [
                    copy_to_pickle(backbone.module),
                    dict(vars(backbone.preprocessing)),
                    dict(backbone.source),
                ],
            }
        return state

    @classmethod
    def from_state(cls, state: dict[str, Any], image_format: ImageFormat) -> "LatentSpace":
        """Restore the space that :meth:`to_state` described."""
        latents, features = None, None
        if state["autoencoder"] is not None:
            metadata, tensors, module = state["autoencoder"]
            autoencoder = autoencoder_from_plain(metadata, tensors, module)
            size = tuple(state["scaling"]["size"])
            latents = AutoencoderLatents(autoencoder, **{**state["scaling"], "size": size})
        palette = None if state["palette"] is None else LabelCodes(**state["palette"])
        # Pickles from before there were backbones have no features.
        plain = state.get("features")
        if plain is not None:
            module, expected, source = plain["backbone"]
            as_tuples = {name: None if v is None else tuple(v) for name, v in expected.items()}
            preprocessing = Preprocessing(**as_tuples)  # type: ignore[arg-type]
            sides = {name: tuple(plain[name]) for name in ("size", "grid")}
            backbone = ImageBackbone(module, preprocessing, source)
            features = BackboneFeatures(**{**plain, **sides, "backbone": backbone})
        return cls(image_format, latents, palette, features)

    def move_to(self, device: torch.device) -> None:
        """Move the encoders."""
        for encoder in self._encoders:
            encoder.to(device)


def _latents_from_plain(
    plain: Any,
    tensors: dict[str, Tensor],
    image_format: ImageFormat,
    palette: LabelCodes | None,
    given: Any,
    opened: ImageAutoencoder | None,
) -> AutoencoderLatents:
    """Restore the latents; see :meth:`LatentSpace.from_plain`."""
    size = plain["encoded_size"]
    if not is_size(size):
        raise ArchiveError(f"The model has encoded_size={size!r}.")
    check_resized_size("encoded_size", size, image_format.size)
    height, width = size
    description, weights = plain["autoencoder"], part_of(tensors, "autoencoder")
    if opened is None:
        autoencoder = autoencoder_from_plain(description, weights, given)
    else:
        check_autoencoder(description, weights)
        autoencoder = opened
    _check_probe(autoencoder, tensors["probe"])
    check_channels(image_format, autoencoder, encodes_masks=palette is not None)
    factor, n_channels = autoencoder.factor, autoencoder.latent_channels
    if height % factor or width % factor:
        raise ArchiveError(f"The model has encoded_size={size!r}.")
    shift, scale, codes = tensors["shift"], tensors["scale"], tensors.get("mask_codes")
    found = {"shift": shift, "scale": scale, "probe": tensors["probe"]}
    shapes = {"shift": (n_channels,), "scale": (n_channels,), "probe": found["probe"].shape}
    if codes is not None:
        found["mask_codes"] = codes
        shapes["mask_codes"] = (len(codes), n_channels, height // factor, width // factor)
    check_shapes(found, shapes, "The scaling of the latents")
    if not bool((scale > 0).all()):
        raise ArchiveError("The scale factors of the latents must be positive.")
    return AutoencoderLatents(autoencoder, (height, width), shift, scale, codes)


class LatentInputs:
    """Images that are encoded when they are needed.

    Parameters
    ----------
    space : LatentSpace
        Encodes the images.
    pixels : PixelInputs
        The images.
    precision : {"float32", "bfloat16"}
        Precision of the encoder.
    """

    def __init__(self, space: LatentSpace, pixels: PixelInputs, precision: str):
        self._space = space
        self._pixels = pixels
        self._precision = precision

    def __len__(self) -> int:
        """Count the images."""
        return len(self._pixels)

    def batch(self, start: int, n: int, flip: tuple[int, ...] = ()) -> Tensor:
        """Encode `n` images from the index `start` on, flipped along axes.

        Encode a few at a time: a batch that suits small latents may hold hundreds of large images.
        """
        # Passes of encoders are padded, so that slices must not be small.
        n_at_once = max(ENCODED_AT_ONCE, _BYTES_AT_ONCE // self._space.bytes_of_image)
        parts = []
        for first in range(start, start + n, n_at_once):
            size = min(n_at_once, start + n - first)
            images = self._pixels.batch(first, size, flip)
            parts.append(self._space.encode(images, self._precision))
        return torch.cat(parts)


class KeptInputs:
    """Latents that are already encoded.

    Parameters
    ----------
    views : dict of Tensor of shape (n, c, h, w)
        Latents of the images and of their flips, by the axes of the flip.
    device : torch.device
        Device of the field.
    """

    def __init__(self, views: Mapping[tuple[int, ...], Tensor], device: torch.device):
        self._views = views
        self._device = device

    def __len__(self) -> int:
        """Count the images."""
        return len(self._views[()])

    def batch(self, start: int, n: int, flip: tuple[int, ...] = ()) -> Tensor:
        """Return the latents of `n` images from the index `start` on, flipped along axes."""
        return self._views[flip][start : start + n].to(self._device)


def check_channels(
    image_format: ImageFormat, encoder: ImageAutoencoder | ImageBackbone, *, encodes_masks: bool
) -> None:
    """Refuse images or masks whose channels an encoder does not take.

    Raises
    ------
    ValueError
        If the channels do not fit. The message says what to change.
    """
    n_channels = image_format.n_channels
    if encodes_masks and encoder.image_channels != 3:
        raise ValueError(
            f"label_prediction='velocity' encodes colours, but the autoencoder takes images "
            f"of {encoder.image_channels} channels: use label_prediction='posterior' "
            "in flow_params."
        )
    if n_channels in (1, encoder.image_channels):
        return
    named, remedy = "backbone", "pass a backbone for such images"
    if isinstance(encoder, ImageAutoencoder):
        named, remedy = "autoencoder", "train one with autoencoder='fit'"
        if encodes_masks:
            remedy += " and label_prediction='posterior' in flow_params"
    raise ValueError(
        f"X has images of {n_channels} channels; the {named} takes {encoder.image_channels} (gray "
        f"images are repeated). Select or convert channels, or {remedy}."
    )


def check_colours(image_format: ImageFormat, *, encodes_masks: bool) -> None:
    """Refuse images for which no autoencoder that encodes colours can be trained.

    Raises
    ------
    ValueError
        If masks are to be encoded, and the images are neither gray nor of three channels.
    """
    n_channels = image_format.n_channels
    if encodes_masks and n_channels not in (1, 3):
        raise ValueError(
            f"label_prediction='velocity' encodes colours beside images, but X has images of "
            f"{n_channels} channels: use label_prediction='posterior' in flow_params, or gray or "
            "RGB images."
        )


def _check_probe(autoencoder: ImageAutoencoder, wanted: Tensor) -> None:
    """Refuse an autoencoder that encodes a fixed image to other latents."""
    _, found = autoencoder.fingerprint()
    if not is_same_output(found, wanted):
        raise AutoencoderError(
            "The autoencoder makes other latents than the one that the model was fitted with "
            f"({tuple(found.shape)} and {tuple(wanted.shape)}, or other values): pass that one, "
            "from_pretrained(folder, autoencoder=...)."
        )
