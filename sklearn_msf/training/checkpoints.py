"""Checkpoints: the states of a training run in a folder, for a run that was cut off."""

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sklearn_msf.persistence.archives import (
    RecordError,
    RecordVersionError,
    read_document,
    read_record,
    remove_leftovers,
    remove_record,
    write_record,
)
from sklearn_msf.training.state import TrainingState

__all__ = ["CheckpointMismatchError", "Checkpoints"]

# The newest and one to fall back to.
_N_KEPT = 2
_PROBE = "checkpoint-probe"
_PATTERN = r"checkpoint-\d{7}"
_NAME = re.compile(rf"{_PATTERN}\.json")


class CheckpointMismatchError(ValueError):
    """The folder holds checkpoints of another run."""


class Checkpoints:
    """The checkpoints of one run.

    Parameters
    ----------
    folder : Path
        Holds the checkpoints of this run and of no other.
    every : int
        Epochs between two checkpoints.
    fingerprint : dict
        Plain data that tells runs apart, by the names that an error is to call them.
    seed : int
        Seed of a run that starts anew.

    Attributes
    ----------
    seed : int
        Seed of the run: that of its checkpoints, where there are any.

    Raises
    ------
    CheckpointMismatchError
        Where the folder holds checkpoints of other data or parameters.
    ValueError
        Where the folder cannot be written to.
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
        """Give the checkpoints of a part of the run, which has its own."""
        fingerprint = {**self._fingerprint, "seed of the run": self.seed}
        return Checkpoints(self._folder / name, self._every, fingerprint, self.seed)

    def _prepare(self) -> None:
        """Make the folder ready now: at the first checkpoint it would be too late."""
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

    def latest(self) -> TrainingState | None:
        """Give the newest state that is whole, if there is any; once, as it takes memory."""
        latest, self._latest = self._latest, None
        return latest

    def save(self, state: Callable[[], TrainingState], *, n_epochs: int, finished: bool) -> None:
        """Write a checkpoint every so many epochs, and the last one.

        Where that fails, as on a full disk, training goes on with a warning and the
        checkpoints there are stay.
        """
        if n_epochs % self._every and not finished:
            return
        tensors, document = state()
        content = {
            "fingerprint": self._fingerprint,
            "seed": self.seed,
            "state": {**document, "finished": finished},
        }
        try:
            self._refuse_another_run()
            write_record(self._folder, f"checkpoint-{n_epochs:07d}", tensors, content)
        except (OSError, CheckpointMismatchError) as error:
            if not self._warned:
                warnings.warn(
                    f"The checkpoint of epoch {n_epochs} could not be written to "
                    f"{self._folder} ({error}). Training goes on without.",
                    stacklevel=2,
                )
            self._warned = True
            remove_leftovers(self._folder, _PATTERN)
            return
        # Later ones were damaged, or this run would have gone on from them.
        later = [name for name in self._names() if int(name[-7:]) > n_epochs]
        for name in [*later, *self._names()[len(later) + _N_KEPT :]]:
            remove_record(self._folder, name)

    def _refuse_another_run(self) -> None:
        """Check that no other run has begun to use the folder."""
        for name in self._names()[:1]:
            try:
                document = read_document(self._folder, name)
            except (RecordError, OSError):
                return
            self._check(document.get("fingerprint", {}))

    def _names(self) -> list[str]:
        """Names of the checkpoints, newest first."""
        if not self._folder.is_dir():
            return []
        names = [path.name for path in self._folder.iterdir() if _NAME.fullmatch(path.name)]
        return sorted((name.removesuffix(".json") for name in names), reverse=True)

    def _find_latest(self) -> None:
        for name in self._names():
            try:
                tensors, document = read_record(self._folder, name)
                found, seed = dict(document["fingerprint"]), int(document["seed"])
                state = dict(document["state"])
            except RecordVersionError:
                raise
            except (RecordError, KeyError, TypeError, ValueError) as error:
                warnings.warn(f"{name} is damaged and passed over: {error}", stacklevel=2)
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
