"""Epoch logs: what the history of a run says, as a list, as a tensor, and read from a file."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from sklearn_msf.persistence.archives import ArchiveError
from sklearn_msf.persistence.json_data import is_finite_number

__all__ = [
    "check_history",
    "check_history_of_model",
    "count_images",
    "count_images_of_image_branch",
    "history_as_tensor",
    "history_from_tensor",
]

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
# Those that logs of every version have.
_ALWAYS_THERE = ("epoch", "loss", "image_loss", "label_loss", "n_images", "seconds")
# Only where there is validation.
_SCORE = "validation_score"


def count_images(history: Iterable[Mapping[str, Any]]) -> int:
    """Count the images that a run has seen, repeated ones included."""
    return int(sum(log["n_images"] for log in history))


def count_images_of_image_branch(history: Iterable[Mapping[str, Any]]) -> float:
    """Count the images that the image branch has learned from, repeated ones included.

    Parameters
    ----------
    history : iterable of mapping
        Log of each epoch, as in `history_`. Logs of earlier versions lack the fraction of samples
        that taught classification alone, which then counts as 0.

    Returns
    -------
    float
        Expected number: in a step the fraction is rounded.
    """
    return sum(
        log["n_images"] * (1 - log.get("classification_fraction", 0.0))
        for log in history
        # It is exactly 0 in epochs with image_weight=0.
        if log["image_loss"]
    )


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
    """Check the epoch logs of a checkpoint, which may have been changed in any way.

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


def check_history_of_model(history: Any) -> None:
    """Check the epoch logs of a saved model, of which those of older versions lack entries.

    Raises
    ------
    ArchiveError
        For what are no logs, and for the first one with an entry that is no finite number.
    """
    if not isinstance(history, list) or not all(isinstance(log, dict) for log in history):
        raise ArchiveError("The history of the model is not a list of epoch logs.")
    for log in history:
        values = [log.get(name) for name in _ALWAYS_THERE]
        values.append(log.get("classification_fraction", 0.0))
        if not all(map(is_finite_number, values)):
            raise ArchiveError(f"The history of the model has an invalid epoch log: {log!r}.")


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
