"""Files of pretrained models: found in a folder or on the hub, and read without running code.

Configurations are JSON of bounded size, weights are one file of safetensors. Nothing else is
opened. Every error names the parameter, what it was and the ways out.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from sklearn_msf.exceptions import PretrainedModelError
from sklearn_msf.persistence.archives import UNEXPECTED_VALUE_ERRORS
from sklearn_msf.persistence.hub import HubFiles, fetch_from_hub, form_of_id, is_hub_id

__all__ = [
    "CARD_NAME",
    "CONFIG_NAME",
    "KNOWN_LICENCES",
    "ModelKind",
    "fetch_model",
    "find_folder",
    "is_licence",
    "read_json",
    "read_weights",
    "stated_licence",
]

CONFIG_NAME = "config.json"
CARD_NAME = "README.md"
# Licences of weights that this package names itself, as their cards on the hub state them.
KNOWN_LICENCES = {"stabilityai/sd-vae-ft-mse": "mit"}
_MAX_CONFIG_BYTES = 2**20
_MAX_CARD_BYTES, _MAX_LICENCE = 2**20, 100


@dataclass(frozen=True)
class ModelKind:
    """A kind of pretrained models.

    Attributes
    ----------
    parameter : str
        Name of the parameter that takes such a model.
    library : str
        Name of the library that saves them.
    weights_name : str
        File name of their weights.
    ways_out : str
        What a user can do where one cannot be opened.
    error : type
        Class of the errors.
    """

    parameter: str
    library: str
    weights_name: str
    ways_out: str
    error: type[PretrainedModelError]

    @property
    def of_a_saved_model(self) -> "ModelKind":
        """The same kind with the way out of a saved model, which needs the very same weights."""
        way_out = (
            "Instead, pass a folder or an object with the same weights: "
            f"from_pretrained(folder, {self.parameter}=...)."
        )
        return replace(self, ways_out=way_out)


def find_folder(kind: ModelKind, name: str | PathLike[str]) -> Path | None:
    """Return the folder that a name stands for, or None for an id on the hub.

    Parameters
    ----------
    kind : ModelKind
        Kind of the model.
    name : str or Path
        Folder, or id on the Hugging Face hub. A Path is always a folder.

    Raises
    ------
    PretrainedModelError
        For a path at which there is no folder.
    """
    path = os.fspath(name)
    folder = Path(os.path.expanduser(path))
    if folder.is_dir():
        return folder
    if isinstance(name, PathLike) or not is_hub_id(path):
        raise kind.error(
            f"{kind.parameter}={name!r} is a path, and there is no such folder (the working "
            f"directory is {str(Path.cwd())!r}).{form_of_id(name)} {kind.ways_out}"
        )
    return None


def fetch_model(
    kind: ModelKind,
    name: str,
    revision: str | None,
    others: Sequence[str] = (),
    optional: Sequence[str] = (),
) -> HubFiles:
    """Fetch configuration and weights, and `others`, from the hub or its cache.

    Parameters
    ----------
    kind : ModelKind
        Kind of the model.
    name : str
        Id on the Hugging Face hub.
    revision : str or None
        Commit; None stands for the newest one.
    others, optional : sequence of str
        More files that are needed, and files that may be missing.

    Raises
    ------
    PretrainedModelError
        If the files cannot be had.
    """
    needed = (CONFIG_NAME, kind.weights_name, *others)
    try:
        return fetch_from_hub(name, revision, needed, optional)
    except PretrainedModelError as error:
        raise kind.error(
            f"{kind.parameter}={name!r} is taken for an id on the Hugging Face hub, which does not "
            f"give {', '.join(needed[:-1])} and {needed[-1]} (pickles are not opened): {error}. "
            f"{kind.ways_out}"
        ) from error


def read_json(kind: ModelKind, name: str, path: Path) -> dict[str, Any]:
    """Read an object of JSON, such as a configuration."""
    if not path.is_file():
        of_cache = ""
        if path.with_name("snapshots").is_dir():
            of_cache = (
                " It is a folder of the hub's cache: pass that of a commit inside of its folder "
                "snapshots, copied with what its links lead to."
            )
        raise kind.error(
            f"{kind.parameter}={name!r} is a folder without {path.name}: it holds no "
            f"{kind.parameter} that {kind.library} saved.{of_cache} {kind.ways_out}"
        )
    try:
        if path.stat().st_size > _MAX_CONFIG_BYTES:
            raise ValueError(f"it has more than {_MAX_CONFIG_BYTES:,} bytes")
        config = json.loads(path.read_bytes())
        if not isinstance(config, dict):
            raise ValueError(f"expected an object of JSON, got a {type(config).__name__}")
    except (OSError, ValueError, RecursionError) as error:
        raise kind.error(
            f"{kind.parameter}={name!r} has a configuration that cannot be read, {path}: {error}."
        ) from error
    return config


def read_weights(kind: ModelKind, name: str, path: Path) -> dict[str, Tensor]:
    """Read weights, those that are floats in float32."""
    index = path.parent / f"{path.name}.index.json"
    if index.exists():
        raise kind.error(
            f"{kind.parameter}={name!r} has weights in several files ({index}), which are not "
            f"opened: open it with {kind.library} and save it as one file. {kind.ways_out}"
        )
    if not path.is_file():
        raise kind.error(
            f"{kind.parameter}={name!r} has no {path.name}, and pickles are not opened: open it "
            f"with {kind.library} and save it as safetensors. {kind.ways_out}"
        )
    try:
        tensors = safetensors.torch.load_file(path)
    # A dtype that safetensors knows and torch lacks raises a KeyError.
    except (SafetensorError, OSError, *UNEXPECTED_VALUE_ERRORS) as error:
        # In the hub's cache the path is a link, and without it the same file is linked anew.
        raise kind.error(
            f"{kind.parameter}={name!r} has weights that are not safetensors, or were cut off: "
            f"{error}. Remove {path.resolve()} and get it anew."
        ) from error
    return {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}


def stated_licence(card: Path | None) -> str | None:
    """Read the licence that a model card names; None if there is no card or no licence in it."""
    if card is None or not card.is_file() or card.stat().st_size > _MAX_CARD_BYTES:
        return None
    try:
        from huggingface_hub import metadata_load

        licence = (metadata_load(card) or {}).get("license")
    # A card is written by hand, and can hold anything. It is not worth an error.
    except Exception:
        return None
    return licence[:_MAX_LICENCE] if licence is not None and is_licence(licence) else None


def is_licence(value: object) -> bool:
    """Tell whether a value from a file can be the name of a licence, or None for an unknown one."""
    return value is None or (isinstance(value, str) and value.isprintable())
