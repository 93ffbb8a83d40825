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
from sklearn_msf.persistence.limits import check_blocks
from sklearn_msf.runtime.device import seeded_weights
from sklearn_msf.runtime.user_warnings import warn_user

__all__ = [
    "autoencoder_from_plain",
    "autoencoder_to_plain",
    "check_autoencoder",
    "read_autoencoder",
    "write_autoencoder",
]

_NAME = "autoencoder"
# Limits for the configuration in a file: factor of enlargement of a level, any integer.
_MAX_UPSAMPLING = 128
_MAX_SIZE = 8192
# The two halves of an AutoencoderTiny, as its configuration calls them.
_SIDES = ("encoder", "decoder")


def autoencoder_to_plain(
    autoencoder: ImageAutoencoder, *, by_name: bool
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Describe an autoencoder.

    Parameters
    ----------
    autoencoder : ImageAutoencoder
        The autoencoder.
    by_name : bool
        Whether to name an autoencoder from the hub instead of copying its weights, if its id and
        commit are known.

    Returns
    -------
    metadata : dict
        Plain data.
    tensors : dict of str to Tensor
        Weights in float32 on the CPU; empty if the autoencoder is only named.
    """
    source = autoencoder.source
    if source["kind"] == "object" or (by_name and source["kind"] == "hub" and _is_pinned(source)):
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
    check_autoencoder(metadata, tensors)
    kind = metadata["kind"]
    if kind == "embedded":
        if given is not None:
            raise AutoencoderError(
                "The files contain the autoencoder: call from_pretrained without autoencoder."
            )
        with seeded_weights(0):
            module = build_autoencoder(metadata["class"], metadata["config"])
        module.load_state_dict(tensors)
        return ImageAutoencoder(module, {"kind": "embedded"})
    if given is not None:
        return as_autoencoder(given)
    if kind == "hub":
        return open_autoencoder(metadata["id"], metadata["revision"])
    raise AutoencoderError(
        "The model was fitted with an autoencoder of the user's own, which files cannot "
        "hold: pass it, from_pretrained(folder, autoencoder=...)."
    )


def check_autoencoder(metadata: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Check the description of an autoencoder, before it is written and before it is opened.

    Parameters
    ----------
    metadata, tensors : dict
        As :func:`autoencoder_to_plain` returns them.

    Raises
    ------
    ArchiveError
        If the description is invalid, or the weights do not fit it.
    """
    try:
        kind = metadata["kind"]
        if kind == "embedded":
            _check_embedded(metadata["class"], metadata["config"], tensors)
        elif tensors:
            raise ArchiveError("The model names its autoencoder but also contains weights for it.")
        elif kind == "hub" and not _is_pinned(metadata):
            name, revision = metadata["id"], metadata["revision"]
            raise ArchiveError(
                f"The model names an invalid autoencoder: id {name!r}, revision {revision!r}."
            )
        elif kind not in ("hub", "object"):
            raise ArchiveError(f"The model has an autoencoder of kind {kind!r}.")
    except ArchiveError:
        raise
    # A changed file can hold any value in any place. torch and diffusers raise a RuntimeError, or
    # what Python raises, for sizes and types that they cannot use.
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError) as e:
        raise ArchiveError(f"The model has an invalid autoencoder: {e}") from e


def _is_pinned(source: dict[str, Any]) -> bool:
    """Tell whether an id on the hub and a commit are named, so that a file needs no weights."""
    name, revision = source["id"], source["revision"]
    return (
        isinstance(name, str)
        and isinstance(revision, str)
        and re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None
        and re.fullmatch(r"[0-9a-f]{40}", revision) is not None
    )


def _check_embedded(kind: Any, config: Any, tensors: dict[str, Tensor]) -> None:
    """Refuse a configuration that is not bounded by the weights that are there."""
    if kind not in AUTOENCODER_CLASSES or not isinstance(config, dict):
        raise ArchiveError(f"The model has an autoencoder of class {kind!r}.")
    for name, value in config.items():
        if not _is_bounded(value):
            raise ArchiveError(
                f"The autoencoder of the model has {name}={value!r}; integers from 0 to "
                f"{_MAX_SIZE:,} can be opened."
            )
    if not 1 < config.get("upsampling_scaling_factor", 2) <= _MAX_UPSAMPLING:
        raise ArchiveError("The autoencoder of the model has an invalid layout.")
    check_blocks(_blocks(kind, config), tensors)
    # On the meta device no memory is allocated, whatever sizes the file asks for.
    with torch.device("meta"):
        wanted = build_autoencoder(kind, config).state_dict()
    check_tensors(tensors, wanted, "The autoencoder")


def _blocks(kind: str, config: dict[str, Any]) -> list[tuple[int, int]]:
    """List the numbers and the widths of the residual blocks of each level."""
    if kind == "AutoencoderKL":
        names: tuple[str, ...] = ("down_block_types", "up_block_types", "block_out_channels")
        # The decoder has one more than the encoder.
        n_blocks = 2 * config["layers_per_block"] + 1
        levels = [(n_blocks, width) for width in config["block_out_channels"]]
    else:
        sides = [(f"num_{side}_blocks", f"{side}_block_out_channels") for side in _SIDES]
        names = tuple(name for side in sides for name in side)
        levels = [pair for n, width in sides for pair in zip(config[n], config[width], strict=True)]
    is_valid = len({len(config[name]) for name in names}) == 1
    if not is_valid or not all(type(n) is int and n > 0 for level in levels for n in level):
        raise ArchiveError("The autoencoder of the model has an invalid layout.")
    return levels


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
    try:
        return autoencoder_from_plain(metadata["autoencoder"], tensors)
    except (ArchiveError, LookupError):
        return None
