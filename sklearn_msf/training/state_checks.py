"""Checks of a training state from a file, which may have been changed in any way.

A state that passes can be resumed without harm: tensors that do not fit would let kernels write
beyond their ends, and numbers out of range would end training with an error that says nothing.
"""

import math
import struct
from typing import Any

import torch
from torch import Tensor

from sklearn_msf.persistence.archives import ArchiveError
from sklearn_msf.persistence.json_data import is_finite_number
from sklearn_msf.training.epoch_logs import check_history

__all__ = ["check_generator_state", "check_numbers"]

# Up to here every integer is exact as a float, too.
_MAX_STEPS = 2**53
_ENTRIES = frozenset({"n_steps", "n_restarts", "elapsed", "begun", "history", "finished"})
# The state of a CPU generator begins with the seed, how many numbers are left before the next 624
# are made, whether it is seeded, and the position of the next number.
_CPU_GENERATOR = struct.Struct("=QiiQ")
_N_NUMBERS = 624


def check_numbers(
    metadata: dict[str, Any], *, max_epochs: int, max_restarts: int, early_stopping: bool
) -> None:
    """Check the plain data of a state.

    Parameters
    ----------
    metadata : dict
        Plain data of a state.
    max_epochs, max_restarts : int
        Largest numbers of epochs and of restarts of the run.
    early_stopping : bool
        Whether the run keeps its best weights.

    Raises
    ------
    ArchiveError
        For the first value that no run with these settings has.
    """
    wanted = _ENTRIES | ({"best"} if early_stopping else set())
    if metadata.keys() != wanted:
        names = sorted(metadata.keys() ^ wanted)
        raise ArchiveError(f"entries are missing or unknown: {repr(names)[:100]}")
    history, finished = metadata["history"], metadata["finished"]
    check_history(history)
    _require(type(finished) is bool, "finished", finished)
    # Not a whole epoch is left where training has finished.
    most = max_epochs if finished else max_epochs - 1
    _require(1 <= len(history) <= most, "number of epochs", len(history))
    n_steps, n_restarts = metadata["n_steps"], metadata["n_restarts"]
    _require(_is_count(n_steps, _MAX_STEPS) and n_steps >= len(history), "n_steps", n_steps)
    _require(_is_count(n_restarts, max_restarts), "n_restarts", n_restarts)
    for name in ("elapsed", "begun"):
        seconds = metadata[name]
        _require(type(seconds) is float and 0 <= seconds < math.inf, name, seconds)
    if early_stopping:
        _check_best(metadata["best"], len(history))


def check_generator_state(state: Tensor, device: torch.device) -> None:
    """Check the state of a generator, uint8 of the right length, before it is used.

    Raises
    ------
    ArchiveError
        If no generator has this state.
    """
    try:
        torch.Generator(device).set_state(state.cpu())
    except RuntimeError as error:
        raise ArchiveError(f"the state of its generator is invalid: {error}") from error
    if device.type == "cpu":
        # torch looks at both numbers alone, and would read beyond the end where they do not fit.
        _, left, _, position = _CPU_GENERATOR.unpack_from(state.numpy().tobytes())
        if (left, position) != (1, 0) and left + position != _N_NUMBERS + 1:
            raise ArchiveError("the state of its generator is invalid")


def _require(is_valid: bool, name: str, value: Any) -> None:
    if not is_valid:
        # Only the beginning, because a file can hold values of any length.
        raise ArchiveError(f"its {name} is {repr(value)[:100]}")


def _is_count(value: Any, largest: int) -> bool:
    return type(value) is int and 0 <= value <= largest


def _check_best(best: Any, n_epochs: int) -> None:
    _require(isinstance(best, dict) and best.keys() == {"score", "n_worse"}, "best", best)
    score, n_worse = best["score"], best["n_worse"]
    is_score = score is None or is_finite_number(score)
    _require(is_score, "best score", score)
    _require(_is_count(n_worse, n_epochs), "n_worse", n_worse)
