"""What a training run is made of, so that it can be put aside and go on."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from torch import Tensor

__all__ = ["EpochWatcher", "StateStore", "TrainingState", "part_of"]


class TrainingState(NamedTuple):
    """Everything a run needs to go on.

    Attributes
    ----------
    tensors : dict of str to Tensor
        Weights, averages, moments of the optimiser, state of the random numbers.
    document : dict
        The rest, as plain data.
    """

    tensors: dict[str, Tensor]
    document: dict[str, Any]


class StateStore(Protocol):
    """Keeps the states of a run where they outlive it."""

    def latest(self) -> TrainingState | None:
        """Read the newest state that is whole, if there is any."""

    def save(self, state: Callable[[], TrainingState], *, n_epochs: int, finished: bool) -> None:
        """Keep the state after so many epochs, if it is time to."""


class EpochWatcher(Protocol):
    """Is told of every epoch of a run."""

    def begin_epoch(self) -> None:
        """Hear of an epoch, again where it has to be repeated."""

    def end_epoch(self) -> bool:
        """Hear of its end; True ends training."""


def part_of(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Take the tensors whose names start with a prefix, without it."""
    start = f"{prefix}."
    return {name[len(start) :]: value for name, value in tensors.items() if name.startswith(start)}
