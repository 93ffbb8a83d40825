"""What an independent classifier says of drawn images."""

from typing import Any

import numpy as np

__all__ = ["judge_agrees"]


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
    known = getattr(judge, "classes_", None)
    if known is not None:
        unknown = sorted(set(labels.tolist()) - set(np.asarray(known).tolist()), key=str)
        if unknown:
            raise ValueError(
                f"judge does not know the classes {unknown}, only {np.asarray(known).tolist()}: "
                "fit it on the same labels."
            )
    predicted = np.asarray(judge.predict(images))
    if predicted.size != len(labels):
        raise ValueError(
            f"judge.predict must return one label for each of the {len(labels)} images, got an "
            f"array of shape {predicted.shape}."
        )
    return np.asarray(predicted.ravel() == labels)
