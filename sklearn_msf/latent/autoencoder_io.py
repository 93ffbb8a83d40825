"""Autoencoders as plain data and tensors, and back."""

import re
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sklearn_msf.latent.autoencoder import (
    AUTOENCODER_CLASSES,
    AutoencoderError,
    ImageAutoencoder,
    as_autoencoder,
    build_autoencoder,
    open_autoencoder,
    plain_config,
)
from sklearn_msf.persistence.archives import RecordError, check_tensors, read_record, write_record
from sklearn_msf.runtime.device import seeded_weights

__all__ = [
    "autoencoder_from_record",
    "autoencoder_to_record",
    "read_autoencoder",
    "write_autoencoder",
]

_NAME = "autoencoder"
# Levels, and blocks of a level, beyond which a file is no autoencoder.
_MAX_LAYERS = 64
_MAX_SIZE = 8192


def autoencoder_to_record(
    autoencoder: ImageAutoencoder, *, by_name: bool
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Describe an autoencoder.

    Parameters
    ----------
    autoencoder : ImageAutoencoder
        The autoencoder.
    by_name : bool
        Whether one from the hub is named instead of copied.

    Returns
    -------
    document : dict
        Plain data.
    tensors : dict of str to Tensor
        Weights, where they belong to the description; float32, on the CPU.
    """
    source = autoencoder.source
    if source["kind"] == "object" or (by_name and source["kind"] == "hub"):
        return dict(source), {}
    module = autoencoder.module
    weights = {name: value.float().cpu() for name, value in module.state_dict().items()}
    return {"kind": "embedded", **plain_config(module)}, weights


def autoencoder_from_record(
    document: dict[str, Any], tensors: dict[str, Tensor], given: Any = None
) -> ImageAutoencoder:
    """Make the autoencoder that was described.

    Parameters
    ----------
    document : dict
        Plain data, from a file that may have been changed.
    tensors : dict of str to Tensor
        Its weights.
    given : object, optional
        An autoencoder to take where the file has only a name or nothing.

    Returns
    -------
    ImageAutoencoder

    Raises
    ------
    RecordError
        Where the description is none, or its weights do not fit.
    AutoencoderError
        Where it is not in the file and cannot be had.
    """
    kind = document["kind"]
    if kind == "embedded":
        if given is not None:
            raise AutoencoderError("The model holds its autoencoder: leave autoencoder out.")
        return _embedded(document, tensors)
    if tensors:
        raise RecordError("The model has weights of an autoencoder that it only names.")
    if given is not None:
        return as_autoencoder(given)
    if kind == "hub":
        name, revision = document["id"], document["revision"]
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or not re.fullmatch(
            r"[0-9a-f]{40}", revision
        ):
            raise RecordError(f"The model names an autoencoder {name!r} at {revision!r}.")
        return open_autoencoder(name, revision)
    if kind == "object":
        raise AutoencoderError(
            "The model was fitted with an autoencoder of the user's own, which files cannot "
            "hold: pass it, from_pretrained(folder, autoencoder=...)."
        )
    raise RecordError(f"The model has an autoencoder of kind {kind!r}.")


def _embedded(document: dict[str, Any], tensors: dict[str, Tensor]) -> ImageAutoencoder:
    kind, config = document["class"], document["config"]
    if kind not in AUTOENCODER_CLASSES or not isinstance(config, dict):
        raise RecordError(f"The model has an autoencoder of class {kind!r}.")
    if not all(_is_bounded(value) for value in config.values()):
        raise RecordError("The model has an autoencoder of a layout that nobody has.")
    n_levels = max(len(v) for v in config.values() if isinstance(v, list))
    blocks = [config.get("layers_per_block", 1), config.get("upsampling_scaling_factor", 2) // 2]
    for name in ("num_encoder_blocks", "num_decoder_blocks"):
        blocks += config.get(name, [])
    if not all(type(n) is int and 0 < n <= _MAX_LAYERS for n in (n_levels, *blocks)):
        raise RecordError("The model has an autoencoder of a layout that nobody has.")
    # Without memory, and not slower than the number of weights allows.
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
    """Keep a fitted autoencoder beside checkpoints."""
    document, tensors = autoencoder_to_record(autoencoder, by_name=False)
    try:
        write_record(folder, _NAME, tensors, {"key": key, "autoencoder": document})
    except OSError as error:
        warnings.warn(
            f"The autoencoder could not be written to {folder} ({error}): a run that is cut off "
            "cannot go on.",
            stacklevel=2,
        )


def read_autoencoder(folder: Path, key: str) -> ImageAutoencoder | None:
    """Find the autoencoder that was kept under a key; None where there is none."""
    try:
        tensors, document = read_record(folder, _NAME)
    except (FileNotFoundError, RecordError):
        return None
    if document.get("key") != key:
        return None
    return autoencoder_from_record(document["autoencoder"], tensors)
