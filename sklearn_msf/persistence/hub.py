"""Files of repositories on the Hugging Face hub, from the cache of its client or downloaded."""

import contextlib
import re
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import NamedTuple, TypeGuard

from sklearn_msf.exceptions import PretrainedModelError
from sklearn_msf.persistence.whole_files import write_file

__all__ = [
    "HubFiles",
    "fetch_from_hub",
    "form_of_id",
    "is_commit",
    "is_hub_id",
    "note_commit",
    "shortened",
]

# A hub that cannot be reached must not cost a noticeable part of a time budget. The client itself
# waits ten seconds and asks six times.
_SECONDS_TO_ANSWER = 4
_ONE_PART = r"(?!\.+(?:/|$))[\w.-]+"


class HubFiles(NamedTuple):
    """Files of one commit in the cache of the hub's client.

    Attributes
    ----------
    files : mapping of str to Path
        Where each file is, by its name in the repository.
    revision : str
        The commit.
    """

    files: Mapping[str, Path]
    revision: str


def is_hub_id(name: str) -> bool:
    """Tell whether a name can be an id on the hub; names with parts of dots only are paths."""
    return re.fullmatch(rf"(?:{_ONE_PART}/)?{_ONE_PART}", name) is not None


def form_of_id(name: str | PathLike[str]) -> str:
    """Say what an id looks like, for errors about text that is neither an id nor a folder."""
    if isinstance(name, PathLike) or ("/" in name and is_hub_id(name)):
        return ""
    return (
        " An id on the Hugging Face hub has the form 'user/model', of letters, digits, '-', '_' "
        "and '.', and is no URL."
    )


def is_commit(revision: object) -> TypeGuard[str]:
    """Tell whether a revision is the full name of a commit."""
    return isinstance(revision, str) and re.fullmatch(r"[0-9a-f]{40}", revision) is not None


def fetch_from_hub(
    name: str,
    revision: str | None,
    needed: Sequence[str],
    optional: Sequence[str] = (),
    *,
    is_all: bool = True,
) -> HubFiles:
    """Take files of a repository from the client's cache, or else download them.

    What is in the cache is used without asking the hub, unless the revision is the name of a branch
    or a tag, which can move: then the cache is used if the hub does not answer. The first question
    to the hub has a short time limit and is asked once.

    Parameters
    ----------
    name : str
        Id on the hub.
    revision : str or None
        Commit, branch or tag; None stands for the newest commit that the cache, or else the hub,
        knows.
    needed : sequence of str
        Names of the files.
    optional : sequence of str
        Names of files that may be missing. If the needed ones are in the cache, the hub is not
        asked for these, unless the revision can move.
    is_all : bool, default=True
        Whether these are all files that are needed of the commit. If not, :func:`note_commit` is to
        be called when all are there: until then the revision stands for the commit before.

    Returns
    -------
    HubFiles

    Raises
    ------
    PretrainedModelError
        If the files cannot be had, for whatever reason.
    """
    can_move = revision is not None and not is_commit(revision)
    try:
        found = None if can_move else _from_cache(name, revision, needed, optional)
        if found is None:
            found = _looked_up(name, revision, needed, optional)
            if is_all:
                note_commit(found.files[needed[0]], revision)
        return found
    # Which errors can come depends on the client's version and its network library (requests,
    # httpx), on the proxy and on the disk. All mean the same here.
    except Exception as error:
        raise PretrainedModelError(f"{type(error).__name__}: {shortened(error)}") from error


def _from_cache(
    name: str, revision: str | None, needed: Sequence[str], optional: Sequence[str]
) -> HubFiles | None:
    from huggingface_hub import try_to_load_from_cache

    found = {
        file: try_to_load_from_cache(name, file, revision=revision) for file in (*needed, *optional)
    }
    # A file that is not there, or is known to be missing, is no string.
    files = {file: Path(path) for file, path in found.items() if isinstance(path, str)}
    # The folder of a file in the cache has the name of its commit.
    commits = {path.parent.name for path in files.values()}
    if len(commits) != 1 or not files.keys() >= set(needed):
        return None
    return HubFiles(files, commits.pop())


def _looked_up(
    name: str, revision: str | None, needed: Sequence[str], optional: Sequence[str]
) -> HubFiles:
    """Take what the hub names: from the hub, or from the cache if that has it or nobody answers."""
    from huggingface_hub.errors import EntryNotFoundError, RevisionNotFoundError

    commit = None
    try:
        commit = _commit_of(name, revision, needed[0])
        # By its commit: the client would note at once what the revision stands for, before a file
        # is there, and could give another commit if it asked again.
        return _downloaded(name, commit, needed, optional)
    except Exception as error:
        cached = _from_cache(name, revision, needed, optional)
        is_gone = isinstance(error, (EntryNotFoundError, RevisionNotFoundError))
        if cached is None or (is_gone and commit is None):
            raise
        if commit not in (None, cached.revision):
            raise ValueError(
                f"Pass revision={cached.revision!r} for the commit in the cache, as the hub names "
                f"{commit}, which could not be downloaded: {type(error).__name__}: {error}"
            ) from error
        return cached


def note_commit(path: Path, revision: str | None) -> None:
    """Note in the cache that a revision stands for the commit that a file is of.

    Parameters
    ----------
    path : Path
        A file in the cache, of the commit that its folder is named by.
    revision : str or None
        A branch or a tag; None is the main branch. Nothing is noted for a commit.
    """
    if is_commit(revision):
        return
    noted, commit = path.parents[2] / "refs" / (revision or "main"), path.parent.name
    # A cache that nobody may write to has its commits noted.
    with contextlib.suppress(OSError):
        if not noted.exists() or noted.read_text("ascii") != commit:
            noted.parent.mkdir(parents=True, exist_ok=True)
            write_file(noted, commit.encode())


def _seconds_to_answer() -> float:
    from huggingface_hub import constants

    asked_for: float = constants.HF_HUB_ETAG_TIMEOUT
    is_default = asked_for == constants.DEFAULT_ETAG_TIMEOUT
    return _SECONDS_TO_ANSWER if is_default else asked_for


def _commit_of(name: str, revision: str | None, file: str) -> str:
    """Ask the hub once, because a download asks again and again where nobody answers."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    url = hf_hub_url(name, file, revision=revision)
    commit = get_hf_file_metadata(url, timeout=_seconds_to_answer()).commit_hash
    if not is_commit(commit) or (is_commit(revision) and revision != commit):
        raise ValueError(f"What answers is no hub: it names the commit {commit!r}.")
    return commit


def _downloaded(name: str, commit: str, needed: Sequence[str], optional: Sequence[str]) -> HubFiles:
    from huggingface_hub import hf_hub_download

    seconds = _seconds_to_answer()
    files = {}
    for file in (*needed, *optional):
        try:
            path = hf_hub_download(name, file, revision=commit, etag_timeout=seconds)
        # Nothing is worth losing the model for that may be missing.
        except Exception:
            if file in needed:
                raise
        else:
            files[file] = Path(path)
    return HubFiles(files, commit)


def shortened(error: BaseException) -> str:
    """Return the message of an error of the client in one line of at most 300 characters."""
    return " ".join(str(error).split())[:300] or "no reason was given."
