"""What each answer costs, and confusion matrices with a column of rejected samples."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.metrics import confusion_matrix

from sklearn_msf._evaluation.labels import (
    as_labels,
    check_one_column,
    check_same_kind,
    label_column,
    label_indices,
    with_dates_of_one_type,
)
from sklearn_msf._evaluation.validation import as_numbers, checked_weights

__all__ = [
    "checked_cost_matrix",
    "confusion_matrix_with_reject",
    "costs_of",
    "occurring_classes",
]


def confusion_matrix_with_reject(
    y_true: ArrayLike,
    y_pred: Any,
    *,
    labels: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    normalize: str | None = None,
) -> np.ndarray:
    """Compute a confusion matrix whose last column counts the rejected samples.

    Parameters
    ----------
    y_true : array-like of shape (n,) or (n, 1)
        Labels.
    y_pred : array-like or numpy.ma.MaskedArray of shape (n,) or (n, 1)
        Predictions, masked where they are rejected, as `predict_with_reject` returns them. For
        predictions and uncertainties of another classifier this is
        ``np.ma.MaskedArray(y_pred, mask=~(uncertainty <= threshold))``, which rejects NaN too.
    labels : array-like of shape (K,), default=None
        Classes of the rows and columns, in this order. As in scikit-learn, samples of other classes
        and samples with an answer that is not among these are left out, also of the sums of
        `normalize`: name every class that may be answered. None means all labels that occur,
        sorted.
    sample_weight : array-like of shape (n,), default=None
        Weights, at least 0.
    normalize : {"true", "pred", "all"}, default=None
        Divide by the sums of the rows ("true"), of the columns ("pred") or of all entries. With
        "true" a row says which fraction of the samples of a class is answered how, and which
        fraction is rejected.

    Returns
    -------
    ndarray of shape (K, K + 1)
        Entry (i, j) counts samples of class i that are answered with class j; entry (i, K) those
        of class i that are rejected.

    Raises
    ------
    ValueError
        If the numbers or the kinds of labels and predictions differ, for NaN, for no samples, for
        several columns, for weights that are masked, negative or not finite, for `labels` that
        occur twice, and for another `normalize`.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_msf.selective import confusion_matrix_with_reject
    >>> answers = np.ma.MaskedArray(["a", "b", "b", "a"], mask=[False, False, True, False])
    >>> confusion_matrix_with_reject(["a", "a", "b", "b"], answers)
    array([[1, 1, 0],
           [1, 0, 1]])
    """
    if normalize not in (None, "true", "pred", "all"):
        raise ValueError(f"normalize must be None, 'true', 'pred' or 'all', got {normalize!r}.")
    truth, answers, rejected = _truth_and_answers(y_true, y_pred)
    classes = occurring_classes(y_true, y_pred) if labels is None else _distinct(labels, truth)
    if sample_weight is not None:
        checked_weights(sample_weight, len(truth))
    n_classes = len(classes)
    columns = np.full(len(truth), n_classes)
    columns[~rejected] = label_indices(answers, classes)
    true_classes = label_indices(truth, classes)
    if (true_classes < 0).all():
        # scikit-learn refuses to count nothing: one sample in the row that is cut off below.
        true_classes = columns = np.array([n_classes])
        sample_weight = None if sample_weight is None else np.ones(1)
    # Rejecting is one more class of prediction here, which no sample truly has.
    matrix = confusion_matrix(
        true_classes,
        columns,
        labels=np.arange(n_classes + 1),
        sample_weight=sample_weight,
        normalize=normalize,
    )
    return np.asarray(matrix[:n_classes])


def occurring_classes(y_true: ArrayLike, y_pred: Any) -> np.ndarray:
    """Return all labels that occur in labels and predictions that are not masked, sorted."""
    truth, answers, _ = _truth_and_answers(y_true, y_pred)
    if not len(answers):
        return np.unique(truth)
    return np.unique(np.concatenate(with_dates_of_one_type(truth, answers)))


def costs_of(
    y_true: ArrayLike, y_pred: ArrayLike, cost_matrix: ArrayLike, *, labels: ArrayLike
) -> np.ndarray:
    """Look up what each prediction costs.

    The costs are losses for the other functions, such as :func:`aurc`, and for
    :func:`certified_threshold` with the largest entry of the matrix as its `max_loss`.

    Parameters
    ----------
    y_true, y_pred : array-like of shape (n,) or (n, 1)
        Labels and predictions.
    cost_matrix : array-like of shape (K, K)
        Entry (i, j) is the cost of answering class j for a sample of class i, at least 0; the
        diagonal is usually 0. Axes as in a confusion matrix.
    labels : array-like of shape (K,)
        Classes of the rows and columns, in this order, such as `classes_`.

    Returns
    -------
    ndarray of shape (n,), float64

    Raises
    ------
    ValueError
        For a table, and a matrix of another shape, with entries that are negative or not finite, or
        without a positive entry; for labels or predictions that are not among `labels`, and as in
        :func:`errors_of`.

    Examples
    --------
    A missed melanoma costs ten times as much as a needless excision:

    >>> from sklearn_msf.selective import costs_of
    >>> labels = ["melanoma", "nevus"]
    >>> costs_of(["melanoma", "nevus"], ["nevus", "melanoma"], [[0, 10], [1, 0]], labels=labels)
    array([10.,  1.])
    """
    truth, answers = label_column("y_true", y_true), label_column("y_pred", y_pred)
    if truth.shape != answers.shape:
        raise ValueError(
            f"y_true has {len(truth)} labels and y_pred {len(answers)}: give one for each row."
        )
    classes = _distinct(labels, truth)
    check_same_kind("y_true", truth, "y_pred", answers)
    costs = checked_cost_matrix(cost_matrix, len(classes))
    indices = []
    for name, values in (("y_true", truth), ("y_pred", answers)):
        found = label_indices(values, classes)
        if (found < 0).any():
            raise ValueError(
                f"{name} has the label {values[found < 0].tolist()[0]!r}, which is not among "
                f"labels={classes.tolist()}, so cost_matrix has no cost for it."
            )
        indices.append(found)
    return np.asarray(costs[indices[0], indices[1]])


def checked_cost_matrix(cost_matrix: ArrayLike, n_classes: int) -> np.ndarray:
    """Convert a cost matrix to float64, and refuse one that cannot be used.

    Raises
    ------
    ValueError
        For what are no numbers, masked values, another shape than (n_classes, n_classes), entries
        that are negative or not finite, a matrix without a positive entry, and a table or dict,
        whose classes may have another order.
    """
    is_dict = isinstance(cost_matrix, Mapping)
    # Tables of polars and pyarrow have no names of rows, and no `loc`.
    if is_dict or hasattr(cost_matrix, "columns"):
        in_order = "an array of its rows and columns"
        if is_dict:
            in_order = "[[cost_matrix[a][b] for b in classes] for a in classes]"
        elif hasattr(cost_matrix, "loc"):
            in_order = "cost_matrix.loc[classes, classes].to_numpy()"
        raise ValueError(
            "cost_matrix must be an array in the order of the classes; a "
            f"{type(cost_matrix).__name__} may have another order. Pass {in_order}, with the "
            "classes in that order, such as classes = classifier.classes_, and 0 for right answers."
        )
    costs = as_numbers("cost_matrix", cost_matrix, may_be_bool=True)
    if costs.shape != (n_classes, n_classes):
        raise ValueError(
            f"cost_matrix must be of shape ({n_classes}, {n_classes}), a row for each true class "
            f"and a column for each answer; got {costs.shape}."
        )
    if not np.isfinite(costs).all() or (costs < 0).any() or not (costs > 0).any():
        raise ValueError(
            f"cost_matrix must hold finite costs >= 0, not all zero; got {costs.tolist()}."
        )
    return costs


def _truth_and_answers(y_true: ArrayLike, y_pred: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return n labels, the predictions that are not masked, and which of the n are masked."""
    truth = label_column("y_true", y_true)
    # numpy looks for masks only in what has a dtype of its own, and a column of pandas has others.
    masked = y_pred if np.ma.isMaskedArray(y_pred) else np.asarray(y_pred)
    rejected = np.ma.getmaskarray(masked)
    given = np.ma.getdata(masked)[~rejected] if rejected.any() else y_pred
    check_one_column("y_pred", masked.shape)
    answers, rejected = label_column("y_pred", given), rejected.ravel()
    if not len(truth) or truth.shape != rejected.shape:
        raise ValueError(
            f"y_true has {len(truth)} labels and y_pred {len(rejected)}: give one for each row."
        )
    check_same_kind("y_true", truth, "y_pred", answers)
    return truth, answers, rejected


def _distinct(labels: Any, truth: np.ndarray) -> np.ndarray:
    """Check that labels are different from each other, and of one kind with those that occur."""
    classes = as_labels("labels", labels).ravel()
    check_same_kind("labels", classes, "y_true", truth)
    if len(set(classes.tolist())) != len(classes):
        raise ValueError(f"labels must be different from each other, got {classes.tolist()}.")
    return classes
