"""Agreement of an independent classifier with the classes of generated images."""

from typing import Any

import numpy as np

from sklearn_msf._evaluation.labels import (
    as_labels,
    check_same_kind,
    differing_labels,
    label_indices,
)

__all__ = ["check_judge", "judge_agrees"]


def check_judge(judge: Any, labels: np.ndarray) -> None:
    """Refuse a judge whose `classes_` lack a class that was asked for.

    Raises
    ------
    ValueError
        If a class is missing, or the judge has text for numbers; the message names it.
    """
    if not hasattr(judge, "classes_"):
        return
    check_same_kind("labels", labels, "judge.classes_", judge.classes_)
    known = as_labels("judge.classes_", judge.classes_)
    unknown = labels[label_indices(labels, known) < 0]
    if len(unknown):
        raise ValueError(
            f"judge does not know the classes {sorted(set(unknown.tolist()), key=str)}, only "
            f"{known.tolist()}: fit it on the same labels."
        )


def judge_agrees(judge: Any, images: Any, labels: np.ndarray) -> np.ndarray:
    """Tell for which images a judge predicts the class that was asked for.

    Parameters
    ----------
    judge : object
        Classifier with `predict`.
    images : array-like of shape (n, ...)
        Images as the judge takes them.
    labels : ndarray of shape (n,)
        Classes that were asked for.

    Returns
    -------
    ndarray of shape (n,), bool

    Raises
    ------
    ValueError
        If the judge lacks a class, or does not predict exactly one label for each image, of the
        kind of the labels.
    """
    check_judge(judge, labels)
    predicted = np.asarray(judge.predict(images))
    if predicted.size != len(labels):
        raise ValueError(
            f"judge.predict must return one label for each of the {len(labels)} images, got an "
            f"array of shape {predicted.shape}."
        )
    return ~differing_labels("judge.predict", predicted, "labels", labels)
