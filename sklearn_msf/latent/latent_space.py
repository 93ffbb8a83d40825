"""The space of latents: images are encoded for the field, and its outputs are decoded."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from sklearn_msf.data.images import ImageFormat
from sklearn_msf.data.on_demand import ImagesOnDemand, RowsOnDemand
from sklearn_msf.data.resizing import resize_images
from sklearn_msf.exceptions import AutoencoderError
from sklearn_msf.flow.label_codes import (
    CodeReader,
    EncodedLabelCodes,
    LabelCodes,
    MaskReader,
    PixelReader,
)
from sklearn_msf.latent.autoencoder import Encoded, ImageAutoencoder
from sklearn_msf.latent.autoencoder_io import (
    autoencoder_from_plain,
    autoencoder_to_plain,
    check_autoencoder,
)
from sklearn_msf.latent.hub import KNOWN_LICENSES
from sklearn_msf.latent.scaling import ENCODED_AT_ONCE, LatentScaling, prepare_images
from sklearn_msf.model.image_space import FieldInputs, PixelInputs
from sklearn_msf.persistence.archives import ArchiveError, check_tensors, part_of
from sklearn_msf.persistence.limits import check_resized_size
from sklearn_msf.runtime.batching import in_batches

__all__ = ["LatentSpace", "check_channels"]

# Allowed error of the fixed image's latents, in standard deviations: machines round differently.
_PROBE_TOLERANCE = 0.01


@dataclass(frozen=True)
class LatentSpace:
    """The latents of an autoencoder, scaled for the field.

    Attributes
    ----------
    image_format : ImageFormat
        Layout and range of X.
    autoencoder : ImageAutoencoder
        Encodes and decodes images.
    scaling : LatentScaling
        Size of the encoded images, scaling of the latents, encoded masks of the classes.
    palette : LabelCodes or None
        Colours of the classes, if the field carries encoded masks of them.
    """

    image_format: ImageFormat
    autoencoder: ImageAutoencoder
    scaling: LatentScaling
    palette: LabelCodes | None

    @property
    def shape(self) -> tuple[int, int, int]:
        """(c, h, w) of the latents."""
        height, width = (n // self.autoencoder.factor for n in self.scaling.size)
        return self.autoencoder.latent_channels, height, width

    @property
    def mask_codes(self) -> Tensor | None:
        """Encoded masks of the classes, (K, c, h, w), if the field carries them, else None."""
        return self.scaling.mask_codes

    @property
    def autoencoder_source(self) -> dict[str, Any]:
        """Class and origin of the autoencoder, with the licence of its weights if it is known."""
        source = {"class": type(self.autoencoder.module).__name__, **self.autoencoder.source}
        known = KNOWN_LICENSES.get(source.get("id", ""))
        return source if known is None else {**source, "license": known}

    def inputs(self, rows: RowsOnDemand, device: torch.device, precision: str) -> FieldInputs:
        """Prepare images that are encoded batch by batch, when a batch is needed."""
        pixels = PixelInputs(ImagesOnDemand(self.image_format, rows), device)
        return LatentInputs(self, pixels, precision)

    def kept_inputs(
        self, rows: RowsOnDemand, device: torch.device, precision: str, *, mirrored: bool
    ) -> FieldInputs:
        """Encode images now, and keep their latents."""
        inputs = self.inputs(rows, device, precision)
        views = []
        for mirror in (False, True) if mirrored else (False,):

            def encode(start: int, size: int, mirror: bool = mirror) -> Tensor:
                x = inputs.batch(start, size, mirrored=mirror)
                return x[: len(inputs) - start].cpu()

            views.append(torch.cat(in_batches(encode, len(inputs), ENCODED_AT_ONCE, device)))
        return KeptInputs(views, device)

    def reader(self, codes: LabelCodes | EncodedLabelCodes, label_decoding: str) -> MaskReader:
        """Return a reader that compares masks as latents, or one that decodes them first."""
        if self.palette is not None and label_decoding == "pixel":
            return PixelReader(self.palette, self._decoded)
        return CodeReader(codes.to("cpu"))

    def images(self, sampled: Tensor) -> Tensor:
        """Decode generated latents to the size and the channels of X."""
        images = self._decoded(sampled)
        if self.image_format.n_channels == 1:
            images = images.mean(dim=1, keepdim=True)
        height, width = self.image_format.size
        return resize_images(images, (height, width))

    def masks(self, carried: Tensor) -> Tensor:
        """Decode masks if the field carries encoded ones."""
        return carried if self.mask_codes is None else self._decoded(carried)

    def encode(self, x: Tensor, precision: str) -> Tensor:
        """Encode images, (n, C, H, W) in [-1, 1], to normalised posterior means."""
        return self.scaling.normalise(self.posterior(self.resized(x), precision).mean)

    def resized(self, x: Tensor) -> Tensor:
        """Convert images to the size and the channels of the autoencoder."""
        return prepare_images(x, self.scaling.size, self.autoencoder.image_channels)

    def normalised_posterior(self, images: Tensor, precision: str) -> Tensor:
        """Encode resized images to normalised means, followed by deviations if there are any."""
        mean, deviation = self.posterior(images, precision)
        _, scale = self.scaling.factors(mean.device)
        mean = self.scaling.normalise(mean)
        return mean if deviation is None else torch.cat([mean, deviation * scale], dim=1)

    def posterior(self, images: Tensor, precision: str) -> Encoded:
        """Encode images that have the size and the channels of the autoencoder."""
        return self.autoencoder.encode(images, precision)

    def _decoded(self, latents: Tensor) -> Tensor:
        return self.autoencoder.decode(self.scaling.restore(latents)).clamp(-1, 1)

    def for_graphs(self) -> "LatentSpace":
        """Return the space with a copy of the autoencoder on the CPU that splits no batch."""
        return replace(self, autoencoder=self.autoencoder.in_one_pass())

    # Files and pickles

    def to_plain(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Describe the space for a file: plain data and tensors.

        An autoencoder from the hub is named by id and revision instead of copied.
        """
        metadata, weights = autoencoder_to_plain(self.autoencoder, by_name=True)
        tensors = {f"autoencoder.{name}": value for name, value in weights.items()}
        tensors |= {"shift": self.scaling.shift, "scale": self.scaling.scale}
        if self.mask_codes is not None:
            tensors["mask_codes"] = self.mask_codes
        _, tensors["probe"] = self.autoencoder.fingerprint()
        return {"autoencoder": metadata, "encoded_size": list(self.scaling.size)}, tensors

    @classmethod
    def from_plain(
        cls,
        plain: Any,
        tensors: dict[str, Tensor],
        image_format: ImageFormat,
        palette: LabelCodes | None,
        given: Any,
        opened: ImageAutoencoder | None = None,
    ) -> "LatentSpace":
        """Restore the space from the data of a file, which may have been tampered with.

        The same checks are for data that are about to be written: then the autoencoder is at hand,
        and only its description is checked.

        Parameters
        ----------
        plain, tensors :
            As :meth:`to_plain` returns them.
        image_format : ImageFormat
            Layout and range of X.
        palette : LabelCodes or None
            Colours of the classes, if the field carries encoded masks of them.
        given : object
            Autoencoder to use if the file has only a name, or not even that; else None.
        opened : ImageAutoencoder, optional
            The autoencoder itself.

        Raises
        ------
        ArchiveError
            For data that :meth:`to_plain` cannot have returned.
        AutoencoderError
            If the autoencoder cannot be opened, or makes other latents than the original one.
        ValueError
            If the images have other channels than the autoencoder takes.
        """
        size = plain["encoded_size"]
        is_pair = isinstance(size, list) and len(size) == 2
        if not is_pair or not all(type(n) is int and n > 0 for n in size):
            raise ArchiveError(f"The model has encoded_size={plain['encoded_size']!r}.")
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
            raise ArchiveError(f"The model has encoded_size={plain['encoded_size']!r}.")
        shift, scale, codes = tensors["shift"], tensors["scale"], tensors.get("mask_codes")
        found = {"shift": shift, "scale": scale, "probe": tensors["probe"]}
        shapes = {"shift": (n_channels,), "scale": (n_channels,), "probe": found["probe"].shape}
        if codes is not None:
            found["mask_codes"] = codes
            shapes["mask_codes"] = (len(codes), n_channels, height // factor, width // factor)
        # On the meta device, because a tensor without values can claim any shape.
        wanted = {n: torch.empty(shape, device="meta") for n, shape in shapes.items()}
        check_tensors(found, wanted, "The scaling of the latents")
        if not bool((scale > 0).all()):
            raise ArchiveError("The scale factors of the latents must be positive.")
        scaling = LatentScaling((height, width), shift, scale, codes)
        return cls(image_format, autoencoder, scaling, palette)

    def to_state(self) -> dict[str, Any]:
        """Describe the space for a pickle: plain data and tensors.

        An autoencoder object of the user's own is added as it is, a torch module on the CPU. One
        whose description could not be opened again is refused.
        """
        metadata, tensors = autoencoder_to_plain(self.autoencoder, by_name=False)
        check_autoencoder(metadata, tensors)
        module = None
        if metadata["kind"] == "object":
            module = self.autoencoder.module
            if isinstance(module, nn.Module):
                # A pickle from a GPU must open on a machine without one.
                module = copy.deepcopy(module).cpu()
        return {
            "autoencoder": [metadata, tensors, module],
            "scaling": dict(vars(self.scaling)),
            "palette": None if self.palette is None else dict(vars(self.palette)),
        }

    @classmethod
    def from_state(cls, state: dict[str, Any], image_format: ImageFormat) -> "LatentSpace":
        """Restore the space that :meth:`to_state` described."""
        metadata, tensors, module = state["autoencoder"]
        autoencoder = autoencoder_from_plain(metadata, tensors, module)
        scaling = LatentScaling(**{**state["scaling"], "size": tuple(state["scaling"]["size"])})
        palette = None if state["palette"] is None else LabelCodes(**state["palette"])
        return cls(image_format, autoencoder, scaling, palette)

    def move_to(self, device: torch.device) -> None:
        """Move the autoencoder."""
        self.autoencoder.to(device)


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

    def batch(self, start: int, size: int, *, mirrored: bool) -> Tensor:
        """Encode `size` images, or their mirror images; pad the last batch with its first."""
        # Encode the images alone, not the padding.
        n_real = min(size, len(self) - start)
        x = self._pixels.batch(start, n_real, mirrored=mirrored)
        return _filled_up(self._space.encode(x, self._precision), size)


class KeptInputs:
    """Latents that are already encoded.

    Parameters
    ----------
    views : sequence of Tensor of shape (n, c, h, w)
        Latents of the images and, if training saw mirror images, of their mirror images.
    device : torch.device
        Device of the field.
    """

    def __init__(self, views: Sequence[Tensor], device: torch.device):
        self._views = views
        self._device = device

    def __len__(self) -> int:
        """Count the images."""
        return len(self._views[0])

    def batch(self, start: int, size: int, *, mirrored: bool) -> Tensor:
        """Return the latents of `size` images; pad the last batch with its first."""
        x = self._views[mirrored][start : start + size]
        return _filled_up(x.to(self._device), size)


def _filled_up(x: Tensor, size: int) -> Tensor:
    """Pad a batch to exactly `size` samples with copies of its first one."""
    return torch.cat([x, x[:1].expand(size - len(x), -1, -1, -1)])


def check_channels(
    image_format: ImageFormat, autoencoder: ImageAutoencoder, *, encodes_masks: bool
) -> None:
    """Refuse images or masks whose channels the autoencoder does not take.

    Raises
    ------
    ValueError
        If the channels do not fit. The message says what to change.
    """
    n_channels = image_format.n_channels
    if encodes_masks and autoencoder.image_channels != 3:
        raise ValueError(
            f"label_prediction='velocity' encodes colours, but the autoencoder takes images "
            f"of {autoencoder.image_channels} channels: use label_prediction='posterior' "
            "in flow_params."
        )
    if n_channels not in (1, autoencoder.image_channels):
        raise ValueError(
            f"X has images of {n_channels} channels; the autoencoder takes "
            f"{autoencoder.image_channels} (gray images are repeated). Select or convert "
            "channels, or train one with autoencoder='fit'."
        )


def _check_probe(autoencoder: ImageAutoencoder, wanted: Tensor) -> None:
    """Refuse an autoencoder that encodes a fixed image to other latents."""
    _, found = autoencoder.fingerprint()
    same = found.shape == wanted.shape
    # "not <=" instead of ">", so that NaN is refused too.
    if not same or not bool((found - wanted).abs().max() <= _PROBE_TOLERANCE * wanted.std()):
        raise AutoencoderError(
            "The autoencoder makes other latents than the one that the model was fitted with "
            f"({tuple(found.shape)} and {tuple(wanted.shape)}, or other values): pass that one, "
            "from_pretrained(folder, autoencoder=...)."
        )
