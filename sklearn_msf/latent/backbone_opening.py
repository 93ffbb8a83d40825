"""Opening of backbones: an object, a folder, or an id on the hub.

A model of transformers is built by a class that transformers itself has, from a configuration
within limits and from weights in safetensors, and no code of a repository is run. What its images
are to be is in a file beside them, which `backbone_preprocessing` reads. A README.md is read for
the licence. Nothing else is opened.
"""

import contextlib
from collections.abc import Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sklearn_msf.exceptions import BackboneError
from sklearn_msf.latent.backbone import (
    ImageBackbone,
    is_behind_the_map,
    is_of_transformers,
    vision_model,
)
from sklearn_msf.latent.backbone_preprocessing import (
    PREPROCESSOR_NAME,
    as_preprocessing,
    note_preprocessing,
    own_preprocessing,
    preprocessing_of_object,
    preprocessor_entries,
)
from sklearn_msf.latent.frozen_network import own_copy
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
from sklearn_msf.runtime.device import seeded_weights
from sklearn_msf.runtime.optional_imports import first_cause, importing

__all__ = ["as_backbone", "open_backbone", "open_hub_backbone"]

_NEEDED = (
    'A backbone by its name needs transformers: python -m pip install "sklearn-msf[backbones]". A '
    "torch module that makes feature maps works without."
)
_KIND = ModelKind(
    "backbone",
    "transformers",
    "model.safetensors",
    "Instead, use backbone='path/to/folder' for a vision model that transformers saved (with "
    "safetensors) beside its preprocessor_config.json, pass a torch module that makes feature maps "
    "of images, or leave it out with backbone=None.",
    BackboneError,
)
# Limit for any number in a configuration.
_MAX_NUMBER = 2**20
# Entries of a configuration that name code (kernels for attention are fetched by their name), that
# say where it came from, or that are about class heads.
_IGNORED_ENTRIES = ("auto_map", "name_or_path", "num_labels", "id2label", "label2id")
_NAMING_CODE = "_implementation"
# What the name of a number of layers contains.
_OF_LAYERS = ("layer", "depth", "block", "stage")
# Entries with which transformers would open another model, from another place.
_OTHER_MODELS = ("backbone", "use_timm_backbone", "use_pretrained_backbone", "backbone_config")
# Models of timm, which opens whatever files and repositories a configuration names.
_OF_TIMM = ("timm_wrapper", "timm_backbone")
# Longest list in a configuration.
_MAX_LENGTH = 1024


def as_backbone(given: Any) -> ImageBackbone:
    """Open the backbone that a user passes: an object, a folder, or an id on the hub.

    A module is copied, because the copy is moved to another device and loses its gradients.

    Raises
    ------
    BackboneError
        If it cannot be opened or used; the message says what came and what to do.
    ImportError
        If transformers is needed and not installed.
    """
    if isinstance(given, (str, PathLike)):
        return open_backbone(given)
    if not isinstance(given, nn.Module):
        raise BackboneError(
            "backbone must be an id on the Hugging Face hub, a folder or a torch module that makes "
            f"feature maps of images, got an object of type {type(given).__name__}."
        )
    if not is_of_transformers(given):
        copied = own_copy(given, "backbone", BackboneError)
        return ImageBackbone(copied, own_preprocessing(given))
    preprocessing = preprocessing_of_object(_KIND, given)
    copied = own_copy(vision_model(given), "backbone", BackboneError)
    return ImageBackbone(copied, preprocessing)


def open_backbone(name: str | PathLike[str]) -> ImageBackbone:
    """Open a vision model of transformers from a folder or from the hub.

    Parameters
    ----------
    name : str or Path
        Folder, or id on the Hugging Face hub. A Path is always a folder.

    Returns
    -------
    ImageBackbone

    Raises
    ------
    BackboneError
        If there is no such folder and the hub does not have it either, or if it cannot be used.
    ImportError
        If transformers is not installed.
    """
    folder = find_folder(_KIND, name)
    if folder is None:
        return open_hub_backbone(str(name))
    names = (CONFIG_NAME, _KIND.weights_name, PREPROCESSOR_NAME, CARD_NAME)
    return _from_files(str(name), {file: folder / file for file in names}, {"kind": "folder"})


def open_hub_backbone(
    name: str, revision: str | None = None, *, of_model: bool = False
) -> ImageBackbone:
    """Open a vision model of transformers from the hub or its cache, never from another folder.

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
    ImageBackbone

    Raises
    ------
    BackboneError
        If it cannot be had or cannot be used.
    ImportError
        If transformers is not installed.
    """
    _transformers()
    kind = _KIND.of_a_saved_model if of_model else _KIND
    found = fetch_model(kind, name, revision, [PREPROCESSOR_NAME], [CARD_NAME])
    source = {"kind": "hub", "id": name, "revision": found.revision}
    return _from_files(name, found.files, source, kind)


def _transformers() -> Any:
    with importing(_NEEDED):
        import transformers
    return transformers


def _from_files(
    name: str, files: Mapping[str, Path], source: dict[str, Any], kind: ModelKind = _KIND
) -> ImageBackbone:
    """Build a backbone from the files in which transformers saves it."""
    config_path, weights_path = files[CONFIG_NAME], files[kind.weights_name]
    config = _vision_config(name, read_json(kind, name, config_path), kind.ways_out)
    entries = preprocessor_entries(kind, name, files[PREPROCESSOR_NAME])
    preprocessing = as_preprocessing(name, entries)
    weights = read_weights(kind, name, weights_path)
    try:
        module = _built(config, weights)
    # The files are not to blame.
    except ImportError as error:
        raise ImportError(f"{_NEEDED} ({first_cause(error)})") from error
    # transformers checks configurations by error classes of its own, which differ by version.
    except Exception as error:
        raise BackboneError(
            f"backbone={name!r} cannot be built from {config_path} and {weights_path}: {error}"
        ) from error
    source["licence"] = stated_licence(files.get(CARD_NAME))
    note_preprocessing(module, preprocessing)
    return ImageBackbone(module, preprocessing, source)


# Configuration and weights


def _vision_config(name: str, config: dict[str, Any], ways_out: str) -> dict[str, Any]:
    """Select the configuration of the images' part, and refuse what would open something else."""
    is_quantized = config.get("quantization_config") is not None
    if isinstance(config.get("vision_config"), dict):
        # A model of images and text has one configuration for each.
        own_type = f"{config.get('model_type')}_vision_model"
        config = {"model_type": own_type, **config["vision_config"]}
    if is_quantized or config.get("quantization_config") is not None:
        raise BackboneError(
            f"backbone={name!r} has quantized weights (quantization_config in {CONFIG_NAME}); open "
            "it with transformers and pass the object, or take one in float32 or float16."
        )
    kinds = _transformers().models.auto.configuration_auto.CONFIG_MAPPING_NAMES
    kind = config.get("model_type")
    others = _other_models(config)
    if not isinstance(kind, str) or kind not in kinds or others:
        reason = f"names other models ({', '.join(others)})" if others else "is not one of its own"
        raise BackboneError(
            f"backbone={name!r} has model_type={kind!r}, which {reason}: expected a vision model "
            f"that the installed transformers has. No code of a repository is run. {ways_out}"
        )
    described: dict[str, Any] = _without_code(config)
    return described


def _other_models(config: Any) -> list[str]:
    """List the entries, at any depth, with which transformers would open another model."""
    if not isinstance(config, Mapping):
        return []
    others = [entry for entry in _OTHER_MODELS if config.get(entry)]
    if config.get("model_type") in _OF_TIMM:
        others.append(str(config["model_type"]))
    return others + [name for value in config.values() for name in _other_models(value)]


def _without_code(value: Any) -> Any:
    """Leave out entries that are not about the layers, at any depth."""
    if not isinstance(value, dict):
        return value
    return {
        key: _without_code(item)
        for key, item in value.items()
        if not key.startswith("_") and not key.endswith(_NAMING_CODE)
        if key not in _IGNORED_ENTRIES
    }


def _built(config: dict[str, Any], weights: dict[str, Tensor]) -> nn.Module:
    """Build a model and load its weights; refuse sizes that the weights do not bear out."""
    transformers = _transformers()
    if not _is_bounded(config, sum(value.numel() > 0 for value in weights.values())):
        raise ValueError("its configuration has numbers beyond the limits")
    entries = {key: value for key, value in config.items() if key != "model_type"}
    described = transformers.AutoConfig.for_model(config["model_type"], **entries)
    # Entries that are left out have defaults, some of which name other models.
    if others := _other_models(described.to_dict()):
        raise ValueError(f"its configuration names other models ({', '.join(others)})")
    # On the meta device no memory is allocated, whatever sizes the file asks for.
    with torch.device("meta"), _quiet(transformers):
        model = transformers.AutoModel.from_config(described, trust_remote_code=False)
    kind, wanted = type(model), model.state_dict()
    of_the_map = sum(v.numel() for key, v in wanted.items() if not is_behind_the_map(key))
    there = sum(value.numel() for value in weights.values())
    if of_the_map > there:
        raise ValueError(f"it needs {of_the_map:,} weights, and its file has {there:,}")
    for key, value in weights.items():
        if not bool(value.isfinite().all()):
            raise ValueError(f"it has values in {key} that are not finite")
    with seeded_weights(0), _quiet(transformers):
        # The weights are passed, so nothing is looked for; names of older versions are understood.
        module, found = kind.from_pretrained(
            None,
            config=described,
            state_dict=weights,
            dtype=torch.float32,
            output_loading_info=True,
        )
    missing = sorted(found["missing_keys"])
    lacking = [key for key in missing if not is_behind_the_map(key)]
    if lacking or found["mismatched_keys"]:
        named = lacking or [str(key) for key in found["mismatched_keys"]]
        raise ValueError(
            f"{len(named)} of its weights are missing or have another shape ({named[0]!r})"
        )
    return vision_model(module)


def _is_bounded(value: Any, n_tensors: int, name: str = "") -> bool:
    """Check numbers, and numbers of layers against the number of weights: each layer has some."""
    if isinstance(value, dict):
        return all(_is_bounded(item, n_tensors, str(key)) for key, item in value.items())
    counts_layers = any(word in name for word in _OF_LAYERS)
    if isinstance(value, (list, tuple)):
        numbers = [item for item in value if isinstance(item, (int, float))]
        is_short = len(value) <= _MAX_LENGTH
        few_layers = not counts_layers or sum(map(abs, numbers)) <= n_tensors
        return is_short and few_layers and all(_is_bounded(v, n_tensors, name) for v in value)
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return True
    return abs(value) <= (n_tensors if counts_layers else _MAX_NUMBER)


@contextlib.contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Silence progress bars and reports of transformers, whose settings are global."""
    logging = transformers.utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
