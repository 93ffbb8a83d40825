"""Checkpoints: states of a training run in a folder, to resume an interrupted run."""

import re
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor

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
from sklearn_msf.persistence.json_data import is_seed
from sklearn_msf.runtime.user_warnings import warn_user
from sklearn_msf.training.epoch_logs import history_as_tensor, history_from_tensor
from sklearn_msf.training.fingerprints import START, differences
from sklearn_msf.training.state import TrainingState

__all__ = ["Checkpoints", "stored_fingerprint"]

# The newest checkpoint, and one to fall back to if it is damaged.
_N_KEPT = 2
# Epochs have seven digits, or more from 10,000,000 on.
_PREFIX = "checkpoint-"
_PATTERN = rf"{_PREFIX}(?:[0-9]{{7}}|[1-9][0-9]{{7,}})"
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
    any_seed : bool, default=True
        Whether the run may have had another seed, because none was asked for.

    Attributes
    ----------
    seed : int
        Seed of the run: that of its newest undamaged checkpoint if there is one.

    Raises
    ------
    CheckpointMismatchError
        If the folder holds checkpoints of other data or parameters.
    ValueError
        If the folder cannot be read or written to.
    """

    def __init__(
        self,
        folder: Path,
        every: int,
        fingerprint: dict[str, Any],
        seed: int,
        *,
        any_seed: bool = True,
    ):
        self._folder = folder
        self._every = every
        self._fingerprint = fingerprint
        self._latest: TrainingState | None = None
        self.seed = seed
        self._any_seed = any_seed
        self._warned = False
        # Names of checkpoints that were not read yet, newest first, and of damaged ones.
        self._unread: list[str] = []
        self._read = ""
        self._damaged: list[str] = []
        try:
            self._unread = _names(folder)
            self._find_latest()
        except OSError as error:
            raise ValueError(f"checkpoint_dir={str(folder)!r} cannot be read: {error}.") from error
        self._prepare()

    def part(self, name: str) -> "Checkpoints":
        """Open the checkpoints of a part of the run, in a subfolder."""
        fingerprint = {**self._fingerprint, "seed of the run": self.seed}
        return Checkpoints(self._folder / name, self._every, fingerprint, self.seed, any_seed=False)

    def _prepare(self) -> None:
        """Create the folder and check that it is writable, before any time goes into training."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            # A new file under a random name, so that no other file or link is touched.
            with tempfile.TemporaryFile(dir=self._folder):
                pass
        except OSError as error:
            raise ValueError(
                f"checkpoint_dir={str(self._folder)!r} cannot be written to: {error}."
            ) from error
        remove_leftovers(self._folder, _PATTERN)

    @property
    def holds_a_state(self) -> bool:
        """Whether there is a state to resume from that was not taken yet."""
        return self._latest is not None

    def take_latest(self) -> TrainingState | None:
        """Return the newest undamaged state, if any, at the first call and None afterwards.

        The state is not kept because it takes memory.
        """
        latest, self._latest = self._latest, None
        return latest

    def pass_over(self, error: Exception) -> None:
        """Warn that the state taken last is damaged, and find the one before for the next call."""
        self._set_aside(self._read, error)
        # The run has begun with the seed of the damaged checkpoint.
        self._any_seed = False
        self._find_latest()

    def save(self, state: Callable[[], TrainingState], *, n_epochs: int, finished: bool) -> None:
        """Write a checkpoint if `n_epochs` is a multiple of `every` or the run is finished.

        If this fails, for example on a full disk, there is one warning, training goes on and
        the existing checkpoints are kept.
        """
        if n_epochs % self._every and not finished:
            return
        tensors, metadata = state()
        if "history" in metadata:
            metadata = dict(metadata)
            tensors = {**tensors, "history": history_as_tensor(metadata.pop("history"))}
        content = {
            "fingerprint": self._fingerprint,
            "seed": self.seed,
            "state": {**metadata, "finished": finished},
        }
        name = f"{_PREFIX}{n_epochs:07d}"
        try:
            self._refuse_another_run()
            write_archive(self._folder, name, tensors, content)
            self._remove_others(name)
        except (OSError, ArchiveError, CheckpointMismatchError) as error:
            if not self._warned:
                warn_user(
                    f"The checkpoint of epoch {n_epochs} could not be written to "
                    f"{self._folder} ({error}). Training continues without it.",
                )
            self._warned = True
            with suppress(OSError):
                remove_leftovers(self._folder, _PATTERN)

    def _remove_others(self, name: str) -> None:
        """Delete damaged checkpoints, and old ones, after the one of this name was written."""
        damaged = [other for other in self._damaged if other != name]
        kept = [other for other in _names(self._folder) if other not in damaged]
        for other in [*damaged, *kept[_N_KEPT:]]:
            remove_archive(self._folder, other)
        # A folder of the name of a checkpoint stays, and never counts as one.
        self._damaged = [other for other in _names(self._folder) if other in damaged]

    def _refuse_another_run(self) -> None:
        """Check that no other run has started to use the folder."""
        for name in _names(self._folder):
            if name in self._damaged:
                continue
            try:
                metadata = read_metadata(self._folder, name)
            except (ArchiveError, OSError):
                continue
            self._check(metadata.get("fingerprint"))
            if metadata.get("seed") != self.seed:
                raise CheckpointMismatchError(
                    f"checkpoint_dir={str(self._folder)!r} holds checkpoints of another run, "
                    f"which has another seed. Use a folder for each run."
                )
            return

    def _find_latest(self) -> None:
        """Read the newest checkpoint that is not damaged, of those that were not read yet."""
        while self._unread and self._latest is None:
            name = self._read = self._unread.pop(0)
            try:
                tensors, metadata = read_archive(self._folder, name)
                seed, state = self._content(tensors, metadata)
            except FileNotFoundError:
                # Another process has removed it meanwhile.
                continue
            except ArchiveVersionError:
                raise
            except ArchiveError as error:
                self._set_aside(name, error)
                continue
            self._latest, self.seed = state, seed

    def _content(
        self, tensors: dict[str, Tensor], metadata: dict[str, Any]
    ) -> tuple[int, TrainingState]:
        """Take seed and state out of an archive of this run that may have been changed."""
        found, seed, state = (metadata.get(name) for name in ("fingerprint", "seed", "state"))
        if not isinstance(found, dict) or not isinstance(state, dict):
            raise ArchiveError("its fingerprint or its state is missing")
        self._check(found)
        if not is_seed(seed):
            raise ArchiveError(f"its seed is {repr(seed)[:100]}")
        if seed != self.seed and not self._any_seed:
            raise ArchiveError(f"its seed is {seed}, and that of the run {self.seed}")
        if "history" in state:
            raise ArchiveError("its history is not a tensor")
        tensors, state = dict(tensors), dict(state)
        if "history" in tensors:
            state["history"] = history_from_tensor(tensors.pop("history"))
        return seed, TrainingState(tensors, state)

    def _set_aside(self, name: str, error: Exception) -> None:
        self._damaged.append(name)
        warn_user(f"Checkpoint {name} is damaged and ignored: {error}")

    def _check(self, found: Any) -> None:
        """Refuse the fingerprint of another run."""
        found = found if isinstance(found, dict) else {}
        differing = differences(found, self._fingerprint)
        if differing:
            details = "; ".join(differing.values())
            ways_out = "Use another folder, or delete this one to start anew."
            if list(differing) == [START] and START not in found:
                ways_out = (
                    "With warm_start=True fit goes on from the fitted model, in another folder. To "
                    "go on with an interrupted run, fit a clone of the estimator."
                )
            elif list(differing) == [START]:
                ways_out += (
                    " The run in it had begun with another model (warm_start), and goes on if fit "
                    "begins with that one."
                )
            raise CheckpointMismatchError(
                f"checkpoint_dir={str(self._folder)!r} holds checkpoints of another run: "
                f"{details}. {ways_out}"
            )


def stored_fingerprint(folder: Path) -> dict[str, Any]:
    """Read the fingerprint of the run that has checkpoints in a folder; empty without any."""
    # Opening the checkpoints says what is wrong with those that cannot be read.
    with suppress(OSError):
        for name in _names(folder):
            with suppress(ArchiveError):
                found = read_metadata(folder, name).get("fingerprint")
                if isinstance(found, dict):
                    return found
    return {}


def _names(folder: Path) -> list[str]:
    """Names of the checkpoints in a folder, newest first."""
    if not folder.is_dir():
        return []
    names = [path.name for path in folder.iterdir() if _NAME.fullmatch(path.name)]
    stems = (name.removesuffix(".json") for name in names)
    return sorted(stems, key=lambda stem: int(stem.removeprefix(_PREFIX)), reverse=True)
