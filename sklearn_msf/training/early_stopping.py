"""The best validated weights, and when to stop waiting for better ones."""

import copy
import math
from typing import Any

from torch import Tensor

from sklearn_msf.flow.velocity_field import VelocityField
from sklearn_msf.training.state import part_of

__all__ = ["BestWeights"]


class BestWeights:
    """The weights of the epoch with the best validation score.

    Parameters
    ----------
    n_iter_no_change : int
        Epochs without a better score after which training stops.
    """

    def __init__(self, n_iter_no_change: int):
        self._patience = n_iter_no_change
        self._score = -math.inf
        self._n_worse = 0
        self._weights: dict[str, Tensor] = {}

    def ends_with(self, record: dict[str, Any], average: VelocityField) -> bool:
        """Take note of an epoch; tell whether it was the last worth waiting for."""
        score = record.get("validation_score")
        if score is None:
            return False
        self._n_worse += 1
        if score > self._score:
            self._score, self._n_worse = score, 0
            self._weights = copy.deepcopy(average.state_dict())
        return self._n_worse >= self._patience

    def restore(self, average: VelocityField) -> None:
        """Load the best weights, where there were any."""
        if self._weights:
            average.load_state_dict(self._weights)

    def tensors(self) -> dict[str, Tensor]:
        """Copy the weights, for another run to go on with."""
        return {f"best.{name}": value.clone() for name, value in self._weights.items()}

    def document(self) -> dict[str, Any]:
        """Score and epochs since, as plain data."""
        score = self._score if self._weights else None
        return {"score": score, "n_worse": self._n_worse}

    def load(self, tensors: dict[str, Tensor], document: dict[str, Any]) -> None:
        """Go on where another run was."""
        score = document["score"]
        self._score = -math.inf if score is None else score
        self._n_worse = document["n_worse"]
        weights = part_of(tensors, "best")
        self._weights = {name: value.clone() for name, value in weights.items()}
