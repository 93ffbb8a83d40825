"""Checkpoints: states of a training run in a folder, to resume an interrupted run."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sklearn_msf.exceptions import CheckpointMismatchError
from sklearn_msf.persistence.archives import (
    ArchiveError,
    ArchiveVersionError,
    read_archive,
    read_metadata,
    remove_archive,
    remove_leftovers,
    write_archive,
)
from sklearn_msf.runtime.user_warnings import warn_user
from sklearn_msf.training.state import TrainingState

__all__ = ["Checkpoints"]

# The newest checkpoint, and one to fall back to if it is damaged.
_N_KEPT = 2
_PROBE = "checkpoint-probe"
_PATTERN = r"checkpoint-\d{7}"
_NAME = re.compile(rf"{_PATTERN}\.json")


class Checkpoints:
    """The checkpoints of one run.

    Parameters
    ----------
    folder : Path
        Folder for the checkpoints of this run only.
    every : int
        Epochs between two checkpoints.
    fingerprint : dict
        Plain data that identify the run. Error messages show the keys as names.
    seed : int
        Seed of the run if the folder has no checkpoint to resume from.

    Attributes
    ----------
    seed : int
        Seed of the run: that of its newest undamaged checkpoint if there is one.

    Raises
    ------
    CheckpointMismatchError
        If the folder holds checkpoints of other data or parameters.
    ValueError
        If the folder cannot be written to.
    """

    def __init__(self, folder: Path, every: int, fingerprint: dict[str, Any], seed: int):
        self._folder = folder
        self._every = every
        self._fingerprint = fingerprint
        self._latest: TrainingState | None = None
        self.seed = seed
        self._warned = False
        self._find_latest()
        self._prepare()

    def part(self, name: str) -> "Checkpoints":
        """Open the checkpoints of a part of the run, in a subfolder."""
        fingerprint = {**self._fingerprint, "seed of the run": self.seed}
        return Checkpoints(self._folder / name, self._every, fingerprint, self.seed)

    def _prepare(self) -> None:
        """Create the folder and check that it is writable, before any time goes into training."""
        probe = self._folder / f".{_PROBE}"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as error:
            raise ValueError(
                f"checkpoint_dir={str(self._folder)!r} cannot be written to: {error}."
            ) from error
        remove_leftovers(self._folder, _PATTERN)

    def take_latest(self) -> TrainingState | None:
        """Return the newest undamaged state, if any, at the first call and None afterwards.

        The state is not kept because it takes memory.
        """
        latest, self._latest = self._latest, None
        return latest

    def save(self, state: Callable[[], TrainingState], *, n_epochs: int, finished: bool) -> None:
        """Write a checkpoint if `n_epochs` is a multiple of `every` or the run is finished.

        If this fails, for example on a full disk, there is one warning, training goes on and
        the existing checkpoints are kept.
        """
        if n_epochs % self._every and not finished:
            return
        tensors, metadata = state()
        content = {
            "fingerprint": self._fingerprint,
            "seed": self.seed,
            "state": {**metadata, "finished": finished},
        }
        try:
            self._refuse_another_run()
            write_archive(self._folder, f"checkpoint-{n_epochs:07d}", tensors, content)
        except (OSError, CheckpointMismatchError) as error:
            if not self._warned:
                warn_user(
                    f"The checkpoint of epoch {n_epochs} could not be written to "
                    f"{self._folder} ({error}). Training continues without it.",
                )
            self._warned = True
            remove_leftovers(self._folder, _PATTERN)
            return
        # Checkpoints of later epochs are damaged: otherwise this run would have resumed from them.
        later = [name for name in self._names() if int(name[-7:]) > n_epochs]
        for name in [*later, *self._names()[len(later) + _N_KEPT :]]:
            remove_archive(self._folder, name)

    def _refuse_another_run(self) -> None:
        """Check that no other run has started to use the folder."""
        for name in self._names()[:1]:
            try:
                metadata = read_metadata(self._folder, name)
            except (ArchiveError, OSError):
                return
            self._check(metadata.get("fingerprint", {}))

    def _names(self) -> list[str]:
        """Names of the checkpoints, newest first."""
        if not self._folder.is_dir():
            return []
        names = [path.name for path in self._folder.iterdir() if _NAME.fullmatch(path.name)]
        return sorted((name.removesuffix(".json") for name in names), reverse=True)

    def _find_latest(self) -> None:
        for name in self._names():
            try:
                tensors, metadata = read_archive(self._folder, name)
                found, seed = dict(metadata["fingerprint"]), int(metadata["seed"])
                state = dict(metadata["state"])
            except ArchiveVersionError:
                raise
            except (ArchiveError, KeyError, TypeError, ValueError) as error:
                warn_user(
                    f"Checkpoint {name} is damaged and ignored: {error}",
                )
                continue
            self._check(found)
            self._latest, self.seed = TrainingState(tensors, state), seed
            return

    def _check(self, found: dict[str, Any]) -> None:
        names = [*self._fingerprint, *(name for name in found if name not in self._fingerprint)]
        wanted = self._fingerprint
        differing = [name for name in names if found.get(name) != wanted.get(name)]
        if differing:
            details = "; ".join(
                f"{name} is {wanted.get(name)!r} here and {found.get(name)!r} there"
                for name in differing
            )
            raise CheckpointMismatchError(
                f"checkpoint_dir={str(self._folder)!r} holds checkpoints of another run: "
                f"{details}. Use another folder, or delete this one to start anew."
            )
