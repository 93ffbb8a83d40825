"""Conversion of autoencoders to plain data and tensors, and back."""

from pathlib import Path
from typing import Any

from torch import Tensor

from sklearn_msf.exceptions import AutoencoderError
from sklearn_msf.latent.autoencoder import ImageAutoencoder
from sklearn_msf.latent.autoencoder_opening import (
    as_autoencoder,
    build_checked,
    check_layout,
    open_hub_autoencoder,
)
from sklearn_msf.latent.frozen_network import plain_config
from sklearn_msf.latent.model_files import is_licence
from sklearn_msf.persistence.archives import (
    UNEXPECTED_VALUE_ERRORS,
    ArchiveError,
    read_archive,
    write_archive,
)
from sklearn_msf.persistence.hub import is_commit, is_hub_id
from sklearn_msf.runtime.user_warnings import warn_user

__all__ = [
    "autoencoder_from_plain",
    "autoencoder_to_plain",
    "check_autoencoder",
    "read_autoencoder",
    "write_autoencoder",
]


def _name(key: str) -> str:
    """Name the files of an autoencoder: a run of another seed has others."""
    return f"autoencoder-{key}"


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
    described = {"kind": "embedded", **plain_config(module)}
    if source["kind"] == "hub" and _is_pinned(source):
        described["source"] = dict(source)
    return described, weights


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
        built = build_checked(metadata["class"], metadata["config"], tensors)
        built.source = dict(metadata.get("source", built.source))
        return built
    if given is not None:
        return as_autoencoder(given)
    if kind == "hub":
        return open_hub_autoencoder(metadata["id"], metadata["revision"], of_model=True)
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
            check_layout(metadata["class"], metadata["config"], tensors)
            if "source" in metadata:
                source = metadata["source"]
                if source["kind"] != "hub" or not _is_pinned(source):
                    raise ArchiveError(
                        f"The model has an autoencoder from another place, {source}."
                    )
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
    except UNEXPECTED_VALUE_ERRORS as e:
        raise ArchiveError(f"The model has an invalid autoencoder: {e}") from e


def _is_pinned(source: dict[str, Any]) -> bool:
    """Tell whether an id on the hub and a commit are named, so that a file needs no weights."""
    name, revision = source["id"], source["revision"]
    return is_hub_id(name) and is_commit(revision) and is_licence(source.get("licence"))


def write_autoencoder(folder: Path, key: str, autoencoder: ImageAutoencoder) -> None:
    """Save a fitted autoencoder beside the checkpoints; warn if that fails."""
    metadata, tensors = autoencoder_to_plain(autoencoder, by_name=False)
    try:
        write_archive(folder, _name(key), tensors, {"key": key, "autoencoder": metadata})
    except OSError as error:
        warn_user(
            f"The autoencoder could not be written to {folder} ({error}): this run "
            "cannot be resumed if it is interrupted.",
        )


def read_autoencoder(folder: Path, key: str) -> ImageAutoencoder | None:
    """Read the autoencoder that was saved under a key; None if there is none, or a damaged one."""
    try:
        tensors, metadata = read_archive(folder, _name(key))
        if metadata.get("key") != key:
            return None
        described = metadata["autoencoder"]
        check_autoencoder(described, tensors)
        if described["kind"] != "embedded":
            raise ArchiveError(f"its autoencoder is of kind {described['kind']!r}")
        return build_checked(described["class"], described["config"], tensors)
    except FileNotFoundError:
        return None
    # A changed file can hold any value in any place.
    except UNEXPECTED_VALUE_ERRORS as error:
        warn_user(f"The autoencoder in {folder} is damaged and ignored: {error}")
        return None
