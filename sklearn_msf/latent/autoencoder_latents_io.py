"""Conversion of an autoencoder's latents to what files and pickles hold, and back."""

from typing import Any

from torch import Tensor

from sklearn_msf.data.images import ImageFormat
from sklearn_msf.exceptions import AutoencoderError
from sklearn_msf.latent.autoencoder import ImageAutoencoder
from sklearn_msf.latent.autoencoder_io import (
    autoencoder_from_plain,
    autoencoder_to_plain,
    check_autoencoder,
)
from sklearn_msf.latent.autoencoder_latents import AutoencoderLatents
from sklearn_msf.latent.channel_checks import check_channels
from sklearn_msf.latent.frozen_network import copy_to_pickle, is_same_output
from sklearn_msf.persistence.archives import ArchiveError, check_shapes, part_of
from sklearn_msf.persistence.json_data import is_size
from sklearn_msf.persistence.limits import check_resized_size

__all__ = [
    "latents_from_plain",
    "latents_from_state",
    "latents_to_plain",
    "latents_to_state",
]

# Prefix of the autoencoder's tensors.
_AUTOENCODER = "autoencoder"


def latents_to_plain(latents: AutoencoderLatents) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Describe latents for a file: plain data and tensors.

    An autoencoder from the hub is named by id and revision instead of copied.
    """
    metadata, weights = autoencoder_to_plain(latents.autoencoder, by_name=True)
    tensors = {f"{_AUTOENCODER}.{name}": value for name, value in weights.items()}
    tensors |= {"shift": latents.shift, "scale": latents.scale}
    if latents.mask_codes is not None:
        tensors["mask_codes"] = latents.mask_codes
    _, tensors["probe"] = latents.autoencoder.fingerprint()
    decoded = latents.autoencoder.decoded_fixed_image()
    if decoded is not None:
        tensors["probe_image"] = decoded
    return {"autoencoder": metadata, "encoded_size": list(latents.size)}, tensors


def latents_from_plain(
    plain: Any,
    tensors: dict[str, Tensor],
    image_format: ImageFormat,
    given: Any,
    known: ImageAutoencoder | None,
    *,
    encodes_masks: bool,
) -> AutoencoderLatents:
    """Restore latents from the data of a file, which may have been tampered with.

    Parameters
    ----------
    plain, tensors :
        As :func:`latents_to_plain` returns them.
    image_format : ImageFormat
        Layout and range of X.
    given : object
        Autoencoder to use if the file has only a name, or not even that; else None.
    known : ImageAutoencoder or None
        The autoencoder itself: then only the description is checked.
    encodes_masks : bool
        Whether the field carries encoded masks.

    Raises
    ------
    ArchiveError
        For data that :func:`latents_to_plain` cannot have returned.
    PretrainedModelError
        If the autoencoder cannot be opened, or is not the original one.
    ValueError
        If the images have other channels than the autoencoder takes.
    """
    size = plain["encoded_size"]
    if not is_size(size):
        raise ArchiveError(f"The model has encoded_size={size!r}.")
    check_resized_size("encoded_size", size, image_format.size)
    height, width = size
    description, weights = plain["autoencoder"], part_of(tensors, _AUTOENCODER)
    if known is None:
        autoencoder = autoencoder_from_plain(description, weights, given)
    else:
        check_autoencoder(description, weights)
        autoencoder = known
    way_out = (
        "open the model with the version of diffusers that it was fitted with, or fit anew."
        if given is None
        else "pass that one, from_pretrained(folder, autoencoder=...)."
    )
    _check_probes(autoencoder, tensors, way_out)
    check_channels(image_format, autoencoder, encodes_masks=encodes_masks)
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


def latents_to_state(latents: AutoencoderLatents) -> tuple[list[Any], dict[str, Any]]:
    """Describe the autoencoder, and what was learned of its latents, for a pickle.

    An autoencoder object of the user's own is added as it is, a torch module on the CPU. One whose
    description could not be opened again is refused.
    """
    learned = dict(vars(latents))
    autoencoder = learned.pop("autoencoder")
    metadata, tensors = autoencoder_to_plain(autoencoder, by_name=False)
    check_autoencoder(metadata, tensors)
    module = copy_to_pickle(autoencoder.module) if metadata["kind"] == "object" else None
    return [metadata, tensors, module], learned


def latents_from_state(described: list[Any], learned: dict[str, Any]) -> AutoencoderLatents:
    """Restore the latents that :func:`latents_to_state` described."""
    metadata, tensors, module = described
    autoencoder = autoencoder_from_plain(metadata, tensors, module)
    return AutoencoderLatents(autoencoder, **{**learned, "size": tuple(learned["size"])})


def _check_probes(autoencoder: ImageAutoencoder, tensors: dict[str, Tensor], way_out: str) -> None:
    """Refuse an autoencoder that makes other latents of a fixed image, or decodes them otherwise.

    Older files have the latents alone, as have those of autoencoders that do not decode.
    """
    _, latents = autoencoder.fingerprint()
    _check_same("latents", latents, tensors["probe"], way_out)
    if "probe_image" in tensors:
        _check_same("images", autoencoder.decoded_fixed_image(), tensors["probe_image"], way_out)


def _check_same(made: str, found: Tensor | None, wanted: Tensor, way_out: str) -> None:
    if found is None or not is_same_output(found, wanted):
        shapes = f"{None if found is None else tuple(found.shape)} and {tuple(wanted.shape)}"
        raise AutoencoderError(
            f"The autoencoder makes other {made} than the one that the model was fitted with "
            f"({shapes}, or other values): {way_out}"
        )
