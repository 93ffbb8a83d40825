"""Opening of autoencoders: an object, a folder, or an id on the hub.

Wherever an autoencoder comes from, it is built from a configuration within limits and from weights
in safetensors; nothing else is opened.
"""

import copy
import inspect
import json
import os
from os import PathLike
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from sklearn_msf.exceptions import AutoencoderError
from sklearn_msf.latent.autoencoder import (
    AUTOENCODER_CLASSES,
    ImageAutoencoder,
    build_autoencoder,
    diffusers_class,
)
from sklearn_msf.latent.hub import CONFIG_NAME, WEIGHTS_NAME, fetch_from_hub, is_hub_id
from sklearn_msf.persistence.archives import (
    UNEXPECTED_VALUE_ERRORS,
    ArchiveError,
    check_tensors,
)
from sklearn_msf.persistence.limits import check_blocks
from sklearn_msf.runtime.device import seeded_weights

__all__ = [
    "as_autoencoder",
    "build_checked",
    "check_layout",
    "open_autoencoder",
    "open_hub_autoencoder",
]

# Limits for the configuration in a file: factor of enlargement of a level, any integer.
_MAX_UPSAMPLING = 128
_MAX_SIZE = 8192
# The two halves of an AutoencoderTiny, as its configuration calls them.
_SIDES = ("encoder", "decoder")
# Entries that a constructor adds to its configuration, but does not take.
_DERIVED_ENTRIES = {"AutoencoderTiny": ("block_out_channels",)}
_MAX_CONFIG_BYTES = 2**20
_INDEX_NAME = f"{WEIGHTS_NAME}.index.json"
_WAYS_OUT = (
    "Instead, use autoencoder='fit' to train a small one on X, autoencoder='path/to/folder' for "
    "one that diffusers saved (with safetensors), or pass an object with encode and decode."
)
# Names that attention had in files of diffusers before version 0.15, as that of the paper.
_FORMER_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def as_autoencoder(given: Any) -> ImageAutoencoder:
    """Open the autoencoder that a user passes: an object, a folder, or an id on the hub.

    A torch module is copied, because the copy is moved to another device and loses its gradients.
    """
    if isinstance(given, (str, PathLike)):
        return open_autoencoder(given)
    return ImageAutoencoder(copy.deepcopy(given) if isinstance(given, nn.Module) else given)


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
    path = os.fspath(name)
    if Path(path).is_dir():
        return _from_files(path, Path(path) / CONFIG_NAME, Path(path) / WEIGHTS_NAME)
    if isinstance(name, PathLike) or not is_hub_id(path):
        raise AutoencoderError(
            f"autoencoder={name!r} is a path, and there is no such folder (the working directory "
            f"is {str(Path.cwd())!r}). {_WAYS_OUT}"
        )
    return open_hub_autoencoder(path)


def open_hub_autoencoder(name: str, revision: str | None = None) -> ImageAutoencoder:
    """Open an autoencoder of diffusers from the hub or its cache, never from another folder.

    Parameters
    ----------
    name : str
        Id on the Hugging Face hub.
    revision : str, optional
        Commit on the hub.

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
    try:
        files, commit = fetch_from_hub(name, revision, (CONFIG_NAME, WEIGHTS_NAME))
    except AutoencoderError as error:
        raise AutoencoderError(
            f"autoencoder={name!r} is taken for an id on the Hugging Face hub, which does not give "
            f"{CONFIG_NAME} and {WEIGHTS_NAME} (pickles are not opened): {error}. {_WAYS_OUT}"
        ) from error
    opened = _from_files(name, files[CONFIG_NAME], files[WEIGHTS_NAME])
    opened.source = {"kind": "hub", "id": name, "revision": commit}
    return opened


def _from_files(name: str, config_path: Path, weights_path: Path) -> ImageAutoencoder:
    """Build an autoencoder from the two files in which diffusers saves it."""
    config = _read_config(name, config_path)
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
    weights = _read_weights(name, weights_path)
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


def _read_config(name: str, path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise AutoencoderError(
            f"autoencoder={name!r} is a folder without {CONFIG_NAME}: it holds no autoencoder that "
            f"diffusers saved. {_WAYS_OUT}"
        )
    try:
        if path.stat().st_size > _MAX_CONFIG_BYTES:
            raise ValueError(f"it has more than {_MAX_CONFIG_BYTES:,} bytes")
        config = json.loads(path.read_bytes())
        if not isinstance(config, dict):
            raise ValueError(f"expected an object of JSON, got a {type(config).__name__}")
    except (OSError, ValueError, RecursionError) as error:
        raise AutoencoderError(
            f"autoencoder={name!r} has a configuration that cannot be read, {path}: {error}."
        ) from error
    return config


def _read_weights(name: str, path: Path) -> dict[str, Tensor]:
    """Read weights in float32, under their present names."""
    index = path.parent / _INDEX_NAME
    if index.exists():
        raise AutoencoderError(
            f"autoencoder={name!r} has weights in several files ({index}), which are not opened: "
            f"open it with diffusers and save it as one file. {_WAYS_OUT}"
        )
    if not path.is_file():
        raise AutoencoderError(
            f"autoencoder={name!r} has no {WEIGHTS_NAME}, and pickles are not opened: open it with "
            f"diffusers and save it as safetensors. {_WAYS_OUT}"
        )
    try:
        tensors = safetensors.torch.load_file(path)
    # A dtype that safetensors knows and torch lacks raises a KeyError.
    except (safetensors.SafetensorError, OSError, *UNEXPECTED_VALUE_ERRORS) as error:
        raise AutoencoderError(
            f"autoencoder={name!r} has weights that are not safetensors, or were cut off: {error}. "
            f"Remove {path} and get it anew."
        ) from error
    return {_present_name(key): value.float() for key, value in tensors.items()}


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
    with seeded_weights(0):
        module = build_autoencoder(kind, _taken_entries(kind, config))
    module.load_state_dict(tensors)
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
