"""Fitted models on the Hugging Face hub: found there or in its cache, and uploaded."""

import os
import re
import tempfile
from importlib.util import find_spec
from os import PathLike
from pathlib import Path
from typing import Any

from sklearn_msf._estimator.model_card import card_to_write, is_card
from sklearn_msf._estimator.serialization import CARD_NAME, MODEL_NAME
from sklearn_msf.exceptions import HubError
from sklearn_msf.persistence.archives import name_of_weights
from sklearn_msf.persistence.hub import (
    fetch_from_hub,
    form_of_id,
    is_hub_id,
    note_commit,
    shortened,
)
from sklearn_msf.persistence.paths import as_path
from sklearn_msf.runtime.optional_imports import importing
from sklearn_msf.runtime.user_warnings import warn_user

__all__ = ["check_upload", "find_model", "upload_model"]

_MODEL_FILE = f"{MODEL_NAME}.json"
_WEIGHTS = re.compile(rf"{MODEL_NAME}-[0-9a-f]{{16}}\.safetensors")


def find_model(given: Any, revision: str | None) -> tuple[Path, dict[str, str] | None]:
    """Find the folder of a model that is given by its folder or by its id on the hub.

    Parameters
    ----------
    given : str or Path
        A Path is always a folder, and so is a str that names one if there is no revision.
    revision : str or None
        Commit, branch or tag on the hub.

    Returns
    -------
    folder : Path
        Folder with the files of the model.
    source : dict or None
        Id and commit of a model from the hub.

    Raises
    ------
    HubError
        If the hub and its cache do not have the model.
    FileNotFoundError
        If there is no such folder, and the name cannot be an id on the hub.
    ValueError
        For a revision of what cannot be an id on the hub, and one that is no text or empty.
    ImportError
        If the hub's client is needed and not installed.
    """
    folder = as_path("folder", given)
    name = os.fspath(given)
    can_be_id = not isinstance(given, PathLike) and _is_model_id(name)
    if revision is None and (not can_be_id or folder.is_dir()):
        if not folder.exists():
            raise FileNotFoundError(
                f"folder={name!r} holds no model: there is no such folder (the working directory "
                f"is {str(Path.cwd())!r}).{form_of_id(given)}"
            )
        return folder, None
    if not can_be_id:
        raise ValueError(
            f"revision={revision!r} is for models on the hub, and {given!r} is not the id of one, "
            "such as 'user/model': leave revision out."
        )
    if revision is not None and not (isinstance(revision, str) and revision):
        raise ValueError(
            f"revision must be None or a commit, branch or tag such as 'main', got {revision!r}."
        )
    is_folder = folder.is_dir()
    _check_client(no_folder=None if is_folder else name)
    try:
        files, commit = fetch_from_hub(name, revision, (_MODEL_FILE,), is_all=False)
        folder = files[_MODEL_FILE].parent
        fetch_from_hub(name, commit, (name_of_weights(folder, MODEL_NAME),))
        note_commit(files[_MODEL_FILE], revision)
    except ValueError as error:
        at = "" if revision is None else f" at revision {revision!r}"
        if is_folder:
            raise HubError(
                f"With a revision {name!r} is an id on the Hugging Face hub, which does not give "
                f"{_MODEL_FILE} and its weights{at}: {error} To open the folder of this name leave "
                "revision out."
            ) from error
        raise HubError(
            f"{name!r} is no folder here, and as an id on the Hugging Face hub it does not give "
            f"{_MODEL_FILE} and its weights{at}: {error} If you mean a folder, check the path (the "
            f"working directory is {str(Path.cwd())!r}) or pass a Path."
        ) from error
    return folder, {"id": name, "revision": commit}


def check_upload(name: Any, license: Any) -> None:
    """Refuse what is not the id of a model or the name of a licence, before any work.

    Raises
    ------
    ValueError
        For either.
    ImportError
        If the hub's client is not installed.
    """
    if not isinstance(name, str) or not _is_model_id(name):
        raise ValueError(f"repo_id must be an id on the hub such as 'user/model', got {name!r}.")
    # It is written into the card as it is.
    is_text = isinstance(license, str)
    if license is not None and not (is_text and re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", license)):
        raise ValueError(
            f"license must be an identifier of the hub such as 'mit' or 'cc-by-4.0', got "
            f"{license!r}."
        )
    _check_client()


def upload_model(
    folder: Path, name: str, *, private: bool | None, license: str | None, message: str
) -> str:
    """Upload a saved model in one commit, which replaces the model that is there.

    Parameters
    ----------
    folder : Path
        Folder of the saved model.
    name : str
        Id on the hub; the repository is created if it is missing.
    private : bool or None
        Whether a new repository is private; None is the default of the user's account.
    license : str or None
        Licence of the weights, which the card is to state; None is that of the card that is there.
    message : str
        Message of the commit.

    Returns
    -------
    str
        The commit.

    Raises
    ------
    HubError
        If the hub cannot be reached or refuses. A model that was there is kept.

    Warns
    -----
    UserWarning
        If a card that is there is kept, and was changed or does not state the licence.
    """
    import huggingface_hub as hub

    api = hub.HfApi()
    try:
        api.create_repo(name, private=private, exist_ok=True)
        there = set(api.list_repo_files(name))
        files = {path.name for path in folder.iterdir()}
        old_card = _card(name) if CARD_NAME in there else None
        new_card = card_to_write((folder / CARD_NAME).read_bytes(), old_card, license)
        if new_card is None:
            files.remove(CARD_NAME)
        else:
            (folder / CARD_NAME).write_bytes(new_card)
        old = {file for file in there - files if _WEIGHTS.fullmatch(file)}
        operations: list[Any] = [
            *[hub.CommitOperationAdd(file, folder / file) for file in sorted(files)],
            *[hub.CommitOperationDelete(file) for file in sorted(old)],
        ]
        commit: str = api.create_commit(name, operations, commit_message=message).oid
    # Which errors can come depends on the client's version, its network library and the hub.
    except Exception as error:
        # Of an upload only the cause says what went wrong.
        cause = "" if error.__cause__ is None else f" {shortened(error.__cause__)}"
        reason = f"{type(error).__name__}: {shortened(error)}{cause}"
        raise HubError(
            f"The model was not pushed to {name!r}: {reason} Check the name, the network, and that "
            "a token with write access is set (hf auth login, or HF_TOKEN)."
        ) from error
    if old_card is not None and new_card is None:
        _warn_of_kept(old_card, name, license)
    return commit


def _warn_of_kept(card: bytes, name: str, license: str | None) -> None:
    """Say what is wrong with a card that is kept."""
    if is_card(card):
        warn_user(
            f"The {CARD_NAME} of {name!r} was changed since it was pushed, and is kept: it "
            "describes the model that was pushed then. To get a new one, delete it and push again."
        )
    if license is not None and not _states(card, license):
        warn_user(
            f"{name!r} has a {CARD_NAME} of its own, which is kept and does not state "
            f"license={license!r}: write 'license: {license}' between the lines '---' at its "
            "beginning."
        )


def _card(name: str) -> bytes:
    from huggingface_hub import hf_hub_download

    # Into the cache it would bring a commit of which no model is there.
    with tempfile.TemporaryDirectory() as folder:
        return Path(hf_hub_download(name, CARD_NAME, local_dir=folder)).read_bytes()


def _states(card: bytes, license: str) -> bool:
    """Tell whether the metadata at the beginning of a card name a licence."""
    metadata = re.match(rb"\s*---[ \t]*\r?\n(.*?)^---", card, re.DOTALL | re.MULTILINE)
    line = rf"^license:[ \t]*['\"]?{re.escape(license)}['\"]?[ \t]*(?:#.*)?\r?$"
    return metadata is not None and bool(re.search(line.encode(), metadata[1], re.MULTILINE))


def _is_model_id(name: str) -> bool:
    """Tell whether a name has the two parts of a model's id."""
    return "/" in name and is_hub_id(name)


def _check_client(no_folder: str | None = None) -> None:
    """Check that the hub's client is there; `no_folder` may have been meant as a folder."""
    is_none = ""
    if no_folder is not None and find_spec("huggingface_hub") is None:
        is_none = f"{no_folder!r} is no folder (the working directory is {str(Path.cwd())!r}). "
    needed = "Models on the hub need huggingface_hub: python -m pip install"
    with importing(f'{is_none}{needed} "sklearn-msf[hub]".'):
        import huggingface_hub  # noqa: F401
