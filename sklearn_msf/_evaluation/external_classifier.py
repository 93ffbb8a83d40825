"""What an independent classifier says of drawn images."""

from typing import Any

import numpy as np

__all__ = ["check_judge", "judge_agrees"]


def check_judge(judge: Any, labels: np.ndarray) -> None:
    """Refuse a judge that says that it knows other classes than those asked for.

    Raises
    ------
    ValueError
        With the classes that it does not know.
    """
    if not hasattr(judge, "classes_"):
        return
    known = np.asarray(judge.classes_).tolist()
    unknown = sorted(set(labels.tolist()) - set(known), key=str)
    if unknown:
        raise ValueError(
            f"judge does not know the classes {unknown}, only {known}: fit it on the same labels."
        )


def judge_agrees(judge: Any, images: Any, labels: np.ndarray) -> np.ndarray:
    """Tell which images a judge takes for the class asked for.

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
        For a judge of other classes, or one that does not predict one label an image.
    """
    check_judge(judge, labels)
    predicted = np.asarray(judge.predict(images))
    if predicted.size != len(labels):
        raise ValueError(
            f"judge.predict must return one label for each of the {len(labels)} images, got an "
            f"array of shape {predicted.shape}."
        )
    return np.asarray(predicted.ravel() == labels)
