"""The state of a training run, and the interfaces for checkpoints and callbacks."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from torch import Tensor

__all__ = ["CheckpointStore", "EpochCallback", "TrainingState"]


class TrainingState(NamedTuple):
    """Everything that is needed to resume a run.

    Attributes
    ----------
    tensors : dict of str to Tensor
        Weights, averages, best weights of early stopping, moments of the optimizer and the state
        of the random generator.
    metadata : dict
        The rest, as plain data.
    """

    tensors: dict[str, Tensor]
    metadata: dict[str, Any]


class CheckpointStore(Protocol):
    """Stores states of a run so that the run can be resumed."""

    def take_latest(self) -> TrainingState | None:
        """Return the newest undamaged state, if there is one."""

    def pass_over(self, error: Exception) -> None:
        """Warn that the latest state is damaged; the one before becomes the latest."""

    def save(self, state: Callable[[], TrainingState], *, n_epochs: int, finished: bool) -> None:
        """Store the state after `n_epochs` epochs, if a checkpoint is due."""


class EpochCallback(Protocol):
    """Is called at the beginning and the end of every epoch of a run."""

    def begin_epoch(self) -> None:
        """Handle the beginning of an epoch; called again if the epoch is repeated."""

    def end_epoch(self) -> bool:
        """Handle the end of an epoch; return True to end training."""

    def leave_epoch(self) -> None:
        """Forget an epoch that was begun, and in which there was no time for a step."""
