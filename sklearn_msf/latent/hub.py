"""Two files of a repository on the Hugging Face hub: an autoencoder's configuration and weights."""

import re
from pathlib import Path
from typing import NamedTuple

from sklearn_msf.exceptions import AutoencoderError

__all__ = ["CONFIG_NAME", "WEIGHTS_NAME", "HubFiles", "fetch_from_hub", "is_commit", "is_hub_id"]

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"
# A hub that cannot be reached must not cost a noticeable part of a time budget. The client itself
# waits ten seconds and asks six times.
_SECONDS_TO_ANSWER = 4
_ONE_PART = r"(?!\.+(?:/|$))[\w.-]+"


class HubFiles(NamedTuple):
    """Files of an autoencoder in the cache of the hub's client.

    Attributes
    ----------
    config : Path
        Configuration.
    weights : Path
        Weights, in safetensors.
    revision : str
        Commit that both are from.
    """

    config: Path
    weights: Path
    revision: str


def is_hub_id(name: str) -> bool:
    """Tell whether a name can be an id on the hub; names with parts of dots only are paths."""
    return re.fullmatch(rf"(?:{_ONE_PART}/)?{_ONE_PART}", name) is not None


def is_commit(revision: object) -> bool:
    """Tell whether a revision is the full name of a commit."""
    return isinstance(revision, str) and re.fullmatch(r"[0-9a-f]{40}", revision) is not None


def fetch_from_hub(name: str, revision: str | None = None) -> HubFiles:
    """Take an autoencoder's two files from the client's cache, or else download them.

    What is in the cache is used without asking the hub. The first question to the hub has a short
    time limit and is asked once.

    Parameters
    ----------
    name : str
        Id on the hub.
    revision : str, optional
        Commit; None stands for the newest one that the cache, or else the hub, knows.

    Returns
    -------
    HubFiles

    Raises
    ------
    AutoencoderError
        If the files cannot be had, for whatever reason.
    """
    try:
        return _from_cache(name, revision) or _downloaded(name, revision)
    # Which errors can come depends on the client's version and its network library (requests,
    # httpx), on the proxy and on the disk. All mean the same here.
    except Exception as error:
        raise AutoencoderError(f"{type(error).__name__}: {_shortened(error)}") from error


def _from_cache(name: str, revision: str | None) -> HubFiles | None:
    from huggingface_hub import try_to_load_from_cache

    config, weights = (
        try_to_load_from_cache(name, file, revision=revision)
        for file in (CONFIG_NAME, WEIGHTS_NAME)
    )
    if not isinstance(config, str) or not isinstance(weights, str):
        return None
    # The folder of a file in the cache has the name of its commit.
    found, same = Path(config).parent.name, Path(weights).parent.name
    return HubFiles(Path(config), Path(weights), found) if found == same else None


def _downloaded(name: str, revision: str | None) -> HubFiles:
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url

    asked_for = constants.HF_HUB_ETAG_TIMEOUT
    is_default = asked_for == constants.DEFAULT_ETAG_TIMEOUT
    seconds = _SECONDS_TO_ANSWER if is_default else asked_for
    # Ask once here, because the download would ask again and again where nobody answers.
    answer = get_hf_file_metadata(hf_hub_url(name, CONFIG_NAME, revision=revision), timeout=seconds)
    commit = answer.commit_hash
    if not is_commit(commit) or revision not in (None, commit):
        raise ValueError(f"What answers is no hub: it names the commit {commit!r}.")
    # Without a revision the client notes which commit is the newest one, for the cache.
    config = Path(hf_hub_download(name, CONFIG_NAME, revision=revision, etag_timeout=seconds))
    commit = config.parent.name
    weights = hf_hub_download(name, WEIGHTS_NAME, revision=commit, etag_timeout=seconds)
    return HubFiles(config, Path(weights), commit)


def _shortened(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or "no reason was given."
