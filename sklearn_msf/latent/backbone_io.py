"""Conversion of a backbone's features to what files and pickles hold, and back.

Files name a backbone of the hub by id and commit, and hold a digest of its weights; any other one
has to be passed when the model is opened. Its weights are never copied into a file.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from sklearn_msf.exceptions import BackboneError
from sklearn_msf.latent.backbone import ImageBackbone, Preprocessing
from sklearn_msf.latent.backbone_features import BackboneFeatures
from sklearn_msf.latent.backbone_opening import as_backbone, open_hub_backbone
from sklearn_msf.latent.frozen_network import copy_to_pickle, is_same_output
from sklearn_msf.latent.model_files import is_licence
from sklearn_msf.persistence.archives import (
    UNEXPECTED_VALUE_ERRORS,
    ArchiveError,
    check_shapes,
    read_archive,
    write_archive,
)
from sklearn_msf.persistence.hub import is_commit, is_hub_id
from sklearn_msf.persistence.json_data import is_size
from sklearn_msf.persistence.limits import check_resized_size
from sklearn_msf.runtime.user_warnings import warn_user

__all__ = [
    "features_from_plain",
    "features_from_state",
    "features_to_plain",
    "features_to_state",
    "read_features",
    "write_features",
]

# What comes of a file that is missing.
_ANEW = "a run that goes on measures it anew, which on another machine may give other components"
_PASS_IT = "pass that one, from_pretrained(folder, backbone=...)"


def features_to_plain(features: BackboneFeatures) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Describe features for a file: plain data and tensors."""
    backbone = features.backbone
    plain = {
        "source": dict(backbone.source),
        "digest": backbone.digest_of_weights(),
        "size": list(features.size),
        "grid": list(features.grid),
    }
    tensors = {"mean": features.mean, "scale": features.scale, "probe": backbone.fingerprint()[1]}
    if features.components is not None:
        tensors["components"] = features.components
    return plain, tensors


def features_from_plain(
    plain: dict[str, Any],
    tensors: dict[str, Tensor],
    image_size: Sequence[int],
    given: Any,
    known: ImageBackbone | None,
) -> BackboneFeatures:
    """Restore features from the data of a file, which may have been tampered with.

    Parameters
    ----------
    plain, tensors :
        As :func:`features_to_plain` returns them.
    image_size : sequence of int
        Height and width of the images of X.
    given : object
        Backbone to use if the file has only a name, or not even that; else None.
    known : ImageBackbone or None
        The backbone itself: then only the description is checked.

    Raises
    ------
    ArchiveError
        For data that :func:`features_to_plain` cannot have returned.
    BackboneError
        If the backbone cannot be opened, or is not the original one.
    """
    source, digest = plain["source"], plain["digest"]
    _check_source(source, digest)
    size, grid = _as_pair("size", plain["size"]), _as_pair("grid", plain["grid"])
    check_resized_size("size", size, image_size)
    # Maps are no finer than the images they are made of, of the backbone or of X.
    check_resized_size("grid", grid, image_size)
    backbone = _opened(source, given) if known is None else known
    found, (_, probe) = backbone.digest_of_weights(), backbone.fingerprint()
    if found != digest:
        raise BackboneError(
            f"backbone={backbone.name} has other weights than the one that the model was fitted "
            f"with (digest {found[:16]}, expected {digest[:16]}): {_PASS_IT}, or fit anew."
        )
    if not is_same_output(probe, tensors["probe"]):
        raise BackboneError(
            f"backbone={backbone.name} makes other features than the one that the model was "
            f"fitted with, although its weights are the same: {_PASS_IT}, in the version of its "
            "library and with the preprocessing of then."
        )
    _check_tensors(backbone.n_features, tensors)
    return BackboneFeatures(
        backbone, size, grid, tensors["mean"], tensors["scale"], tensors.get("components")
    )


def write_features(folder: Path, key: str, features: BackboneFeatures) -> None:
    """Save what was learned of features beside the checkpoints.

    Principal components of nearly equal variance turn into each other, or change their sign, where
    another machine rounds differently; a field goes on only with those that it was trained with.
    """
    plain, tensors = features_to_plain(features)
    try:
        write_archive(folder, _name(key), tensors, plain)
    except OSError as error:
        warn_user(
            f"The scaling of the features could not be written to {folder} ({error}): {_ANEW}."
        )


def read_features(
    folder: Path,
    key: str,
    image_size: Sequence[int],
    backbone: ImageBackbone,
    *,
    is_expected: bool,
) -> BackboneFeatures | None:
    """Read the features that were saved under a key; None if there are none, or damaged ones.

    There is a warning of damaged ones, and of none where some are expected.
    """
    try:
        tensors, plain = read_archive(folder, _name(key))
        return features_from_plain(plain, tensors, image_size, None, backbone)
    except FileNotFoundError:
        if is_expected:
            warn_user(f"The scaling of the features of this run is not in {folder}: {_ANEW}.")
        return None
    # A changed file can hold any value in any place.
    except (OSError, *UNEXPECTED_VALUE_ERRORS) as error:
        warn_user(f"The scaling of the features in {folder} is damaged ({error}): {_ANEW}.")
        return None


def _name(key: str) -> str:
    """Name the files: a run of another seed, or on other images, has others."""
    return f"features-{key}"


def features_to_state(features: BackboneFeatures) -> dict[str, Any]:
    """Describe features for a pickle; a torch module is copied to the CPU."""
    backbone = features.backbone
    module, preprocessing = copy_to_pickle(backbone.module), dict(vars(backbone.preprocessing))
    return {**vars(features), "backbone": [module, preprocessing, dict(backbone.source)]}


def features_from_state(state: dict[str, Any]) -> BackboneFeatures:
    """Restore the features that :func:`features_to_state` described."""
    module, expected, source = state["backbone"]
    as_tuples = {name: None if v is None else tuple(v) for name, v in expected.items()}
    preprocessing = Preprocessing(**as_tuples)  # type: ignore[arg-type]
    sides = {name: tuple(state[name]) for name in ("size", "grid")}
    backbone = ImageBackbone(module, preprocessing, source)
    return BackboneFeatures(**{**state, **sides, "backbone": backbone})


def _opened(source: dict[str, Any], given: Any) -> ImageBackbone:
    if given is not None:
        return as_backbone(given)
    if source["kind"] == "hub":
        return open_hub_backbone(source["id"], source["revision"], of_model=True)
    raise BackboneError(
        "The model was fitted with a backbone of a folder or of the user's own, which files do not "
        f"hold: {_PASS_IT}."
    )


def _check_source(source: Any, digest: Any) -> None:
    kind, licence = source["kind"], source.get("licence")
    is_named = kind != "hub" or (is_hub_id(source["id"]) and is_commit(source["revision"]))
    if kind not in ("hub", "folder", "object") or not is_named:
        raise ArchiveError(f"The model names an invalid backbone: {source!r}.")
    if not isinstance(digest, str) or not is_licence(licence):
        raise ArchiveError(f"The model describes its backbone by {digest!r} and {licence!r}.")


def _as_pair(name: str, value: Any) -> tuple[int, int]:
    if not is_size(value):
        raise ArchiveError(f"The features of the model have {name}={value!r}.")
    return value[0], value[1]


def _check_tensors(n_features: int, tensors: dict[str, Tensor]) -> None:
    shapes: dict[str, Sequence[int]] = {
        "mean": (n_features,),
        "scale": (n_features,),
        "probe": tensors["probe"].shape,
    }
    components = tensors.get("components")
    if components is not None:
        if not 0 < len(components) < n_features:
            raise ArchiveError(f"The features of the model have {len(components)} components.")
        shapes["components"] = (len(components), n_features)
    check_shapes(tensors, shapes, "The features of the backbone")
    if not bool((tensors["scale"] > 0).all()):
        raise ArchiveError("The scale factors of the features must be positive.")
