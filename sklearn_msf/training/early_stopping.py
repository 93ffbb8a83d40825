"""The weights with the best validation score, and the decision when to stop training."""

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from sklearn_msf.flow.velocity_field import VelocityField
from sklearn_msf.persistence.archives import part_of

__all__ = ["BestWeights"]

# A restart quarters the rate, which in the warm-up would have risen: mostly a quarter is missing.
_RESTARTED = 0.75


class BestWeights:
    """The weights of the epoch with the best validation score.

    Of epochs of one score the first counts from the peak of the learning rate on. An earlier one
    gives way to every later one: while the rate rises many scores are that of the largest class,
    and so equal, and these epochs have learned next to nothing.

    Parameters
    ----------
    n_iter_no_change : int
        Epochs without a better score after which training stops. Those in which the learning rate
        rises do not count.
    """

    def __init__(self, n_iter_no_change: int):
        self._patience = n_iter_no_change
        self._score = -math.inf
        self._n_worse = 0
        self._weights: dict[str, Tensor] = {}

    def ends_with(self, history: Sequence[Mapping[str, Any]], average: VelocityField) -> bool:
        """Take the score of the last epoch into account, and return whether to stop training."""
        score = history[-1].get("validation_score")
        if score is None:
            return False
        n_since_peak = _epochs_since_peak([epoch_log["learning_rate"] for epoch_log in history])
        self._n_worse += 1
        is_before_peak = self._n_worse > n_since_peak
        if score > self._score or (score == self._score and is_before_peak):
            self._score, self._n_worse = score, 0
            self._weights = copy.deepcopy(average.state_dict())
        return min(self._n_worse, n_since_peak) >= self._patience

    @property
    def n_epochs_since(self) -> int:
        """Number of epochs after the one whose weights are the best; 0 if there are none."""
        return self._n_worse if self._weights else 0

    def restore(self, average: VelocityField) -> None:
        """Load the best weights into `average`, if there are any."""
        if self._weights:
            average.load_state_dict(self._weights)

    def tensors(self) -> dict[str, Tensor]:
        """Copy the best weights, so that another run can resume."""
        return {f"best.{name}": value.clone() for name, value in self._weights.items()}

    def metadata(self) -> dict[str, Any]:
        """Return the best score and the number of epochs since then, as plain data."""
        score = self._score if self._weights else None
        return {"score": score, "n_worse": self._n_worse}

    def wanted(self, metadata: dict[str, Any], average: VelocityField) -> dict[str, Tensor]:
        """Return tensors of the names, shapes and dtypes that belong to the metadata of a run."""
        weights = {} if metadata["score"] is None else average.state_dict()
        return {f"best.{name}": value for name, value in weights.items()}

    def load(self, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
        """Restore the best weights, the score and the number of epochs of another run."""
        score = metadata["score"]
        self._score = -math.inf if score is None else score
        self._n_worse = metadata["n_worse"]
        weights = part_of(tensors, "best")
        self._weights = {name: value.clone() for name, value in weights.items()}


def _epochs_since_peak(rates: Sequence[float]) -> int:
    """Count the epochs since the warm-up, in which the learning rate rises.

    A restart lowers all rates that follow, and the warm-up goes on. Of a run that was resumed with
    a time budget the rate can rise after it too, but not twice in a row.
    """
    peak, rises = 0, True
    for i in range(1, len(rates)):
        # From the first epoch to the second the rate may rise to four times its value.
        least = rates[i - 1] * (_RESTARTED if i > 1 else 1)
        if rates[i] <= least:
            rises = True
            continue
        rises = rates[i] > rates[i - 1] and (rises or (i > 1 and rates[i - 1] > rates[i - 2]))
        if rises:
            peak = i
    return len(rates) - 1 - peak
