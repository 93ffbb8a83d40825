"""Epoch logs: the history of a run as a list, as a tensor, and read from a file."""

import math
from typing import Any

import torch
from torch import Tensor

from sklearn_msf.persistence.archives import ArchiveError
from sklearn_msf.persistence.json_data import is_finite_number

__all__ = ["check_history", "history_as_tensor", "history_from_tensor"]

_ENTRIES = (
    "epoch",
    "loss",
    "image_loss",
    "label_loss",
    "learning_rate",
    "n_images",
    "classification_fraction",
    "seconds",
)
_COUNTS = ("epoch", "n_images")
# Only where there is validation.
_SCORE = "validation_score"


def history_as_tensor(history: list[dict[str, Any]]) -> Tensor:
    """Turn epoch logs into a tensor, (n_epochs, 9), float64, which holds all values exactly.

    Plain data grow with the number of epochs until they are too large to be read; a tensor has no
    such limit. An epoch without a validation score has NaN in the last column.
    """
    rows = [[*(log[name] for name in _ENTRIES), log.get(_SCORE, math.nan)] for log in history]
    return torch.tensor(rows, dtype=torch.float64).reshape(len(rows), len(_ENTRIES) + 1)


def history_from_tensor(columns: Tensor) -> list[dict[str, Any]]:
    """Turn the output of :func:`history_as_tensor` back into epoch logs.

    Raises
    ------
    ArchiveError
        If it has another shape or dtype.
    """
    width = len(_ENTRIES) + 1
    if columns.dtype != torch.float64 or columns.ndim != 2 or columns.shape[1] != width:
        raise ArchiveError(f"its history is {columns.dtype} of shape {tuple(columns.shape)}")
    history = []
    for *values, score in columns.tolist():
        log = dict(zip(_ENTRIES, values, strict=True))
        for name in _COUNTS:
            log[name] = int(log[name]) if log[name].is_integer() else log[name]
        history.append(log if math.isnan(score) else {**log, _SCORE: score})
    return history


def check_history(history: Any) -> None:
    """Check the epoch logs of a file, which may have been changed in any way.

    Raises
    ------
    ArchiveError
        For the first log that no epoch has.
    """
    if not isinstance(history, list):
        raise ArchiveError("its history is not a list")
    for epoch, log in enumerate(history, start=1):
        if not isinstance(log, dict) or not _is_log(log, epoch):
            # Only the beginning, because a file can hold values of any length.
            raise ArchiveError(f"its log of epoch {epoch} is {repr(log)[:200]}")


def _is_log(log: dict[str, Any], epoch: int) -> bool:
    if log.keys() - {_SCORE} != set(_ENTRIES):
        return False
    counts = [log[name] for name in _COUNTS]
    numbers = [value for name, value in log.items() if name not in _COUNTS]
    return (
        all(type(count) is int for count in counts)
        and log["epoch"] == epoch
        and log["n_images"] > 0
        and all(map(is_finite_number, numbers))
        and 0 <= log["classification_fraction"] <= 1
    )
