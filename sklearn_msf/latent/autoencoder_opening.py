"""Opening of autoencoders: an object, a folder, or an id on the hub.

Wherever an autoencoder comes from, it is built from a configuration within limits and from weights
in safetensors; of the hub a README.md is read for the licence, and nothing else is opened.
"""

import inspect
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sklearn_msf.exceptions import AutoencoderError
from sklearn_msf.latent.autoencoder import (
    AUTOENCODER_CLASSES,
    ImageAutoencoder,
    build_autoencoder,
    diffusers_class,
)
from sklearn_msf.latent.frozen_network import own_copy, plain_config
from sklearn_msf.latent.model_files import (
    CARD_NAME,
    CONFIG_NAME,
    ModelKind,
    fetch_model,
    find_folder,
    read_json,
    read_weights,
    stated_licence,
)
from sklearn_msf.persistence.archives import (
    UNEXPECTED_VALUE_ERRORS,
    ArchiveError,
    check_tensors,
)
from sklearn_msf.persistence.limits import check_blocks
from sklearn_msf.runtime.user_warnings import warn_user

__all__ = [
    "MAX_SIZE",
    "as_autoencoder",
    "build_checked",
    "check_layout",
    "open_autoencoder",
    "open_hub_autoencoder",
]

# Limits for the configuration in a file: any integer, factor of enlargement of a level.
MAX_SIZE = 8192
_MAX_UPSAMPLING = 128
# The two halves of an AutoencoderTiny, as its configuration calls them.
_SIDES = ("encoder", "decoder")
# Entries that a constructor adds to its configuration, but does not take.
_DERIVED_ENTRIES = {"AutoencoderTiny": ("block_out_channels",)}
_KIND = ModelKind(
    "autoencoder",
    "diffusers",
    "diffusion_pytorch_model.safetensors",
    "Instead, use autoencoder='fit' to train a small one on X, autoencoder='path/to/folder' for "
    "one that diffusers saved (with safetensors), or pass an object with encode and decode.",
    AutoencoderError,
)
# Names that attention had in files of diffusers before version 0.15, as that of the paper.
_FORMER_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def as_autoencoder(given: Any) -> ImageAutoencoder:
    """Open the autoencoder that a user passes: an object, a folder, or an id on the hub.

    A torch module is copied, because the copy is moved to another device and loses its gradients.
    """
    if isinstance(given, (str, PathLike)):
        return open_autoencoder(given)
    if isinstance(given, nn.Module):
        given = own_copy(given, "autoencoder", AutoencoderError)
        tiled = [part for part in given.modules() if getattr(part, "use_tiling", False) is True]
        for part in given.modules():
            if getattr(part, "use_slicing", False) is True:
                # Passes are small anyway, and a graph for ONNX must not depend on their number.
                part.use_slicing = False
        for part in tiled:
            # It is in no configuration, so a saved model would have other latents.
            part.use_tiling = False
        if tiled:
            warn_user(
                "autoencoder: tiling is turned off in the copy that is used. Passes are so small "
                "that whole images fit into the memory."
            )
    opened = ImageAutoencoder(given)
    if opened.source["kind"] == "embedded" and not _fits_its_config(opened):
        opened.source = {"kind": "object"}
    return opened


def _fits_its_config(opened: ImageAutoencoder) -> bool:
    """Tell whether a file can hold a module of diffusers: nothing in it was fused or replaced.

    Paddings, activations, hooks and methods are in no configuration: one that is built of it has to
    convert images alike.
    """
    described = plain_config(opened.module)
    weights = {name: value.float() for name, value in opened.module.state_dict().items()}
    try:
        check_layout(described["class"], described["config"], weights)
        built = build_checked(described["class"], described["config"], weights)
    except UNEXPECTED_VALUE_ERRORS:
        return False
    return opened.converts_as(built)


def open_autoencoder(name: str | PathLike[str]) -> ImageAutoencoder:
    """Open an autoencoder of diffusers from a folder or from the hub.

    Parameters
    ----------
    name : str or Path
        Folder, or id on the Hugging Face hub. A Path is always a folder.

    Returns
    -------
    ImageAutoencoder

    Raises
    ------
    AutoencoderError
        If there is no such folder and the hub does not have it either, or if it cannot be used, see
        :func:`open_hub_autoencoder`.
    ImportError
        If diffusers is not installed.
    """
    folder = find_folder(_KIND, name)
    if folder is None:
        return open_hub_autoencoder(str(name))
    return _from_files(str(name), folder / CONFIG_NAME, folder / _KIND.weights_name)


def open_hub_autoencoder(
    name: str, revision: str | None = None, *, of_model: bool = False
) -> ImageAutoencoder:
    """Open an autoencoder of diffusers from the hub or its cache, never from another folder.

    Parameters
    ----------
    name : str
        Id on the Hugging Face hub.
    revision : str, optional
        Commit on the hub.
    of_model : bool, default=False
        Whether a saved model needs it, which changes what errors advise.

    Returns
    -------
    ImageAutoencoder

    Raises
    ------
    AutoencoderError
        If it cannot be had, has its weights not in one file of safetensors, or is of another class
        than those of `AUTOENCODER_CLASSES`.
    ImportError
        If diffusers is not installed.
    """
    diffusers_class(AUTOENCODER_CLASSES[0])
    kind = _KIND.of_a_saved_model if of_model else _KIND
    found = fetch_model(kind, name, revision, optional=[CARD_NAME])
    opened = _from_files(name, found.files[CONFIG_NAME], found.files[_KIND.weights_name])
    opened.source = {"kind": "hub", "id": name, "revision": found.revision}
    licence = stated_licence(found.files.get(CARD_NAME))
    if licence is not None:
        opened.source["licence"] = licence
    return opened


def _from_files(name: str, config_path: Path, weights_path: Path) -> ImageAutoencoder:
    """Build an autoencoder from the two files in which diffusers saves it."""
    config = read_json(_KIND, name, config_path)
    kind = config.get("_class_name")
    if kind not in AUTOENCODER_CLASSES:
        raise AutoencoderError(
            f"autoencoder={name!r} is a {kind!r}; expected one of {AUTOENCODER_CLASSES}. Open "
            "another one, or a part of a pipeline, with diffusers and pass the object."
        )
    if config.get("quantization_config") is not None:
        raise AutoencoderError(
            f"autoencoder={name!r} has quantized weights (quantization_config in {config_path}); "
            "open it with diffusers and pass the object, or take one in float32 or float16."
        )
    tensors = read_weights(_KIND, name, weights_path)
    weights = {_present_name(key): value for key, value in tensors.items()}
    try:
        completed = _completed(kind, config)
        check_layout(kind, completed, weights)
        return build_checked(kind, completed, weights)
    except AutoencoderError as error:
        raise AutoencoderError(f"autoencoder={name!r} cannot be used: {error}") from error
    except UNEXPECTED_VALUE_ERRORS as error:
        raise AutoencoderError(
            f"autoencoder={name!r} cannot be built from {config_path} and {weights_path}: {error}"
        ) from error


def _present_name(name: str) -> str:
    module, _, weight = name.rpartition(".")
    parent, _, part = module.rpartition(".")
    return f"{parent}.{_FORMER_NAMES[part]}.{weight}" if part in _FORMER_NAMES else name


def _completed(kind: str, config: dict[str, Any]) -> dict[str, Any]:
    """Select the entries that the class takes, and add its defaults for those that are missing."""
    taken = inspect.signature(diffusers_class(kind).__init__).parameters
    entries = {
        name: config.get(name, parameter.default)
        for name, parameter in taken.items()
        if name != "self"
    }
    return {name: list(v) if isinstance(v, tuple) else v for name, v in entries.items()}


# Building within limits


def build_checked(
    kind: str, config: dict[str, Any], tensors: dict[str, Tensor]
) -> ImageAutoencoder:
    """Build an autoencoder whose description has been checked."""
    # Weights that are about to be overwritten are not drawn, which takes longer than the rest.
    with torch.device("meta"):
        module = build_autoencoder(kind, _taken_entries(kind, config))
    module.to_empty(device="cpu").load_state_dict(tensors)
    return ImageAutoencoder(module, {"kind": "embedded"})


def _taken_entries(kind: str, config: dict[str, Any]) -> dict[str, Any]:
    """Leave out the entries that the constructor does not take."""
    return {name: v for name, v in config.items() if name not in _DERIVED_ENTRIES.get(kind, ())}


def check_layout(kind: Any, config: Any, tensors: dict[str, Tensor]) -> None:
    """Refuse a configuration that is not bounded by the weights that are there."""
    if kind not in AUTOENCODER_CLASSES or not isinstance(config, dict):
        raise ArchiveError(f"The model has an autoencoder of class {kind!r}.")
    config = _taken_entries(kind, config)
    for name, value in config.items():
        if not _is_bounded(value):
            raise ArchiveError(
                f"The autoencoder of the model has {name}={value!r}; integers from 0 to "
                f"{MAX_SIZE:,} can be opened."
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
    return not isinstance(value, int) or 0 <= value <= MAX_SIZE
