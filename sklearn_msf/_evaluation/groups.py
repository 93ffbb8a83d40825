"""Groups of samples, such as the images of one patient, and one answer for each of them."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import softmax

from sklearn_msf._evaluation.labels import as_labels, label_column, warn_of_alike
from sklearn_msf._evaluation.validation import checked_probabilities

__all__ = ["aggregate_by_group", "group_numbers", "labels_by_group"]

_TINY = np.finfo(np.float64).tiny


def group_numbers(name: str, groups: Any, n_samples: int) -> np.ndarray:
    """Give the groups of n samples numbers, in the order of their names.

    Raises
    ------
    ValueError
        For groups of another shape than (n,) or (n, 1), of several kinds, and for NaN.

    Warns
    -----
    UserWarning
        If the names of two groups differ in case, spaces or forms of letters alone.
    """
    checked = as_labels(name, groups)
    if checked.shape not in ((n_samples,), (n_samples, 1)):
        raise ValueError(
            f"{name} must be of shape ({n_samples},), the group of each image; got {checked.shape}."
        )
    names, numbers = np.unique(checked.ravel(), return_inverse=True)
    warn_of_alike(name, names.tolist(), "group")
    return numbers


def aggregate_by_group(
    probabilities: ArrayLike, groups: ArrayLike, *, rule: str = "mean"
) -> tuple[np.ndarray, np.ndarray]:
    """Combine the class probabilities of the samples of each group, such as a patient's images.

    Both rules assume that all samples of a group show the class of the group. They are not for a
    group that has the class of its worst sample, as a patient with one malignant lesion of several.

    Parameters
    ----------
    probabilities : array-like of shape (n, K)
        Class probabilities of each sample, as of `predict_proba`.
    groups : array-like of shape (n,)
        Group of each sample.
    rule : {"mean", "geometric"}, default="mean"
        - "mean": the mean of the probabilities (soft voting): what is known of a sample drawn at
          random from the group. Its largest probability is never above that of the surest sample.
          Means of calibrated probabilities are, if anything, less certain than they need to be
          (Ranjan and Gneiting, 2010).
        - "geometric": the geometric mean, divided by its sum, which is the softmax of the mean
          logarithms. A sample that excludes a class weighs more. It treats samples as repeats of
          one observation; it is not the product, which would take them as independent.

    Returns
    -------
    group_probabilities : ndarray of shape (m, K), float64
        A row for each group, in the order in which the groups first appear; rows sum to 1.
    group_names : ndarray of shape (m,)
        The group of each row.

    Raises
    ------
    ValueError
        For probabilities that are not of shape (n, K), outside [0, 1] or with rows that do not sum
        to 1, for groups of another length, several kinds or NaN, and for another rule.

    Warns
    -----
    UserWarning
        If the names of two groups differ in case, spaces or forms of letters alone.

    See Also
    --------
    labels_by_group : The label of each group, in the same order.

    Examples
    --------
    >>> from sklearn_msf.selective import aggregate_by_group
    >>> p, patients = aggregate_by_group([[0.6, 0.4], [0.1, 0.9], [0.2, 0.8]], ["b", "a", "b"])
    >>> patients.tolist(), p.round(2).tolist()
    (['b', 'a'], [[0.4, 0.6], [0.1, 0.9]])
    """
    p = checked_probabilities("probabilities", probabilities)
    if rule not in ("mean", "geometric"):
        raise ValueError(f"rule must be 'mean' or 'geometric', got {rule!r}.")
    first, numbers = _in_order_of_appearance(groups, len(p))
    values = p if rule == "mean" else np.log(np.maximum(p, _TINY))
    means = np.zeros((len(first), p.shape[1]))
    np.add.at(means, numbers, values)
    means /= np.bincount(numbers)[:, None]
    names = as_labels("groups", groups).ravel()[first]
    return means if rule == "mean" else softmax(means, axis=1), names


def labels_by_group(y: ArrayLike, groups: ArrayLike) -> np.ndarray:
    """Return the label of each group, all samples of which must have the same.

    Parameters
    ----------
    y : array-like of shape (n,) or (n, 1)
        Label of each sample.
    groups : array-like of shape (n,)
        Group of each sample.

    Returns
    -------
    ndarray of shape (m,)
        A label for each group, in the order in which the groups first appear.

    Raises
    ------
    ValueError
        If a group has two labels, and for labels or groups of different lengths, of several kinds
        or NaN.

    Warns
    -----
    UserWarning
        If the names of two groups differ in case, spaces or forms of letters alone.

    Examples
    --------
    >>> from sklearn_msf.selective import labels_by_group
    >>> labels_by_group([1, 0, 1], ["b", "a", "b"])
    array([1, 0])
    """
    labels = label_column("y", y)
    first, numbers = _in_order_of_appearance(groups, len(labels))
    of_group = labels[first]
    differs = labels != of_group[numbers]
    if differs.any():
        row = int(np.argmax(differs))
        name = as_labels("groups", groups).ravel().tolist()[row]
        one, other = of_group[numbers[row : row + 1]].tolist() + labels[row : row + 1].tolist()
        raise ValueError(
            f"group {name!r} has the labels {one!r} and {other!r}: give its samples one label, or "
            "divide the group."
        )
    return of_group


def _in_order_of_appearance(groups: Any, n_samples: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the first sample of each group, and the number of each sample's group."""
    numbers = group_numbers("groups", groups, n_samples)
    _, first = np.unique(numbers, return_index=True)
    order = np.argsort(first)
    return first[order], np.argsort(order)[numbers]
