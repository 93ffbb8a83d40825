"""Conversion of autoencoders to plain data and tensors, and back."""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sklearn_msf.exceptions import AutoencoderError
from sklearn_msf.latent.autoencoder import (
    AUTOENCODER_CLASSES,
    ImageAutoencoder,
    as_autoencoder,
    build_autoencoder,
    open_autoencoder,
    plain_config,
)
from sklearn_msf.persistence.archives import (
    ArchiveError,
    check_tensors,
    read_archive,
    write_archive,
)
from sklearn_msf.runtime.device import seeded_weights
from sklearn_msf.runtime.user_warnings import warn_user

__all__ = [
    "autoencoder_from_plain",
    "autoencoder_to_plain",
    "read_autoencoder",
    "write_autoencoder",
]

_NAME = "autoencoder"
# Limits for the configuration in a file: number of levels and of blocks in a level, any integer.
_MAX_LAYERS = 64
_MAX_SIZE = 8192


def autoencoder_to_plain(
    autoencoder: ImageAutoencoder, *, by_name: bool
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Describe an autoencoder.

    Parameters
    ----------
    autoencoder : ImageAutoencoder
        The autoencoder.
    by_name : bool
        Whether to name an autoencoder from the hub instead of copying its weights.

    Returns
    -------
    metadata : dict
        Plain data.
    tensors : dict of str to Tensor
        Weights in float32 on the CPU; empty if the autoencoder is only named.
    """
    source = autoencoder.source
    if source["kind"] == "object" or (by_name and source["kind"] == "hub"):
        return dict(source), {}
    module = autoencoder.module
    weights = {name: value.float().cpu() for name, value in module.state_dict().items()}
    return {"kind": "embedded", **plain_config(module)}, weights


def autoencoder_from_plain(
    metadata: dict[str, Any], tensors: dict[str, Tensor], given: Any = None
) -> ImageAutoencoder:
    """Restore an autoencoder from its description.

    Parameters
    ----------
    metadata : dict
        Plain data, from a file that may have been changed.
    tensors : dict of str to Tensor
        Its weights.
    given : object, optional
        Autoencoder to use if the file has only a name, or not even that.

    Returns
    -------
    ImageAutoencoder

    Raises
    ------
    ArchiveError
        If the description is invalid, or the weights do not fit it.
    AutoencoderError
        If the autoencoder is not in the file and cannot be loaded, or if one was passed although
        the file holds it.
    """
    kind = metadata["kind"]
    if kind == "embedded":
        if given is not None:
            raise AutoencoderError(
                "The files contain the autoencoder: call from_pretrained without autoencoder."
            )
        return _embedded(metadata, tensors)
    if tensors:
        raise ArchiveError("The model names its autoencoder but also contains weights for it.")
    if given is not None:
        return as_autoencoder(given)
    if kind == "hub":
        name, revision = metadata["id"], metadata["revision"]
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or not re.fullmatch(
            r"[0-9a-f]{40}", revision
        ):
            raise ArchiveError(
                f"The model names an invalid autoencoder: id {name!r}, revision {revision!r}."
            )
        return open_autoencoder(name, revision)
    if kind == "object":
        raise AutoencoderError(
            "The model was fitted with an autoencoder of the user's own, which files cannot "
            "hold: pass it, from_pretrained(folder, autoencoder=...)."
        )
    raise ArchiveError(f"The model has an autoencoder of kind {kind!r}.")


def _embedded(metadata: dict[str, Any], tensors: dict[str, Tensor]) -> ImageAutoencoder:
    kind, config = metadata["class"], metadata["config"]
    if kind not in AUTOENCODER_CLASSES or not isinstance(config, dict):
        raise ArchiveError(f"The model has an autoencoder of class {kind!r}.")
    if not all(_is_bounded(value) for value in config.values()):
        raise ArchiveError("The autoencoder of the model has an invalid layout.")
    n_levels = max(len(v) for v in config.values() if isinstance(v, list))
    blocks = [config.get("layers_per_block", 1), config.get("upsampling_scaling_factor", 2) // 2]
    for name in ("num_encoder_blocks", "num_decoder_blocks"):
        blocks += config.get(name, [])
    if not all(type(n) is int and 0 < n <= _MAX_LAYERS for n in (n_levels, *blocks)):
        raise ArchiveError("The autoencoder of the model has an invalid layout.")
    # On the meta device no memory is allocated, whatever sizes the file asks for.
    with torch.device("meta"):
        wanted = build_autoencoder(kind, config).state_dict()
    check_tensors(tensors, wanted, "The autoencoder")
    with seeded_weights(0):
        module = build_autoencoder(kind, config)
    module.load_state_dict(tensors)
    return ImageAutoencoder(module, {"kind": "embedded"})


def _is_bounded(value: Any) -> bool:
    if isinstance(value, list):
        return all(_is_bounded(item) for item in value)
    return not isinstance(value, int) or 0 <= value <= _MAX_SIZE


def write_autoencoder(folder: Path, key: str, autoencoder: ImageAutoencoder) -> None:
    """Save a fitted autoencoder beside the checkpoints; warn if that fails."""
    metadata, tensors = autoencoder_to_plain(autoencoder, by_name=False)
    try:
        write_archive(folder, _NAME, tensors, {"key": key, "autoencoder": metadata})
    except OSError as error:
        warn_user(
            f"The autoencoder could not be written to {folder} ({error}): this run "
            "cannot be resumed if it is interrupted.",
        )


def read_autoencoder(folder: Path, key: str) -> ImageAutoencoder | None:
    """Read the autoencoder that was saved under a key; None if there is none."""
    try:
        tensors, metadata = read_archive(folder, _NAME)
    except (FileNotFoundError, ArchiveError):
        return None
    if metadata.get("key") != key:
        return None
    return autoencoder_from_plain(metadata["autoencoder"], tensors)
