"""Display of a confusion matrix with a column of rejected samples."""

from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils.validation import check_is_fitted

from sklearn_msf._evaluation.confusion import occurring_classes
from sklearn_msf._evaluation.labels import label_column, label_indices
from sklearn_msf._evaluation.validation import is_number
from sklearn_msf.plotting.pictures import check_ordered
from sklearn_msf.plotting.pyplot import pyplot_for
from sklearn_msf.selective import confusion_matrix_with_reject

__all__ = ["RejectionConfusionMatrixDisplay"]

_ANGLES = {"horizontal": 0, "vertical": 90}

Display = TypeVar("Display", bound="RejectionConfusionMatrixDisplay")


class RejectionConfusionMatrixDisplay:
    """Confusion matrix whose last column shows the rejected samples.

    Make a display by :meth:`from_estimator` or :meth:`from_predictions`. It is made in
    the manner of scikit-learn's `ConfusionMatrixDisplay`, with one more column.

    Parameters
    ----------
    confusion_matrix : ndarray of shape (K, K + 1)
        As of :func:`~sklearn_msf.selective.confusion_matrix_with_reject`.
    display_labels : array-like of shape (K,), default=None
        Names of the classes; None numbers them.

    Attributes
    ----------
    im_ : matplotlib AxesImage
        Image of the matrix; set by :meth:`plot`, as all of these.
    text_ : ndarray of shape (K, K + 1) of matplotlib Text
        Values in the cells.
    ax_, figure_ : matplotlib objects
        Axes and figure.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_msf.plotting import RejectionConfusionMatrixDisplay
    >>> answers = np.ma.MaskedArray(["a", "b", "b", "a"], mask=[False, False, True, False])
    >>> display = RejectionConfusionMatrixDisplay.from_predictions(["a", "a", "b", "b"], answers)
    >>> [label.get_text() for label in display.ax_.get_xticklabels()]
    ['a', 'b', 'rejected']
    """

    def __init__(
        self, confusion_matrix: np.ndarray, *, display_labels: ArrayLike | None = None
    ) -> None:
        self.confusion_matrix = confusion_matrix
        self.display_labels = display_labels

    def plot(
        self: Display,
        *,
        ax: Any = None,
        cmap: Any = "viridis",
        values_format: str | None = None,
        xticks_rotation: str | float = "horizontal",
        colorbar: bool = True,
    ) -> Display:
        """Plot the matrix.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to plot on; None makes a new figure.
        cmap : str or matplotlib Colormap, default="viridis"
            Colours of the cells.
        values_format : str, default=None
            Format of the values. None is ".0f" if all are whole numbers, else ".2g".
        xticks_rotation : {"horizontal", "vertical"} or float, default="horizontal"
            Rotation of the names of the columns, in degrees.
        colorbar : bool, default=True
            Whether to add a colour bar.

        Returns
        -------
        self : object
            The display, with `im_`, `text_`, `ax_` and `figure_`.

        Raises
        ------
        ValueError
            If `display_labels` are not one for each class, and for another `xticks_rotation`.
        ImportError
            If matplotlib is not installed.
        """
        matrix = np.asarray(self.confusion_matrix)
        n_classes = len(matrix)
        check_ordered("display_labels", self.display_labels)
        names = np.arange(n_classes) if self.display_labels is None else self.display_labels
        names = [str(name) for name in np.asarray(names).tolist()]
        if len(names) != n_classes:
            raise ValueError(f"display_labels has {len(names)} names for {n_classes} classes.")
        if isinstance(xticks_rotation, str):
            xticks_rotation = _ANGLES.get(xticks_rotation, xticks_rotation)
        if not is_number(xticks_rotation):
            raise ValueError(
                f"xticks_rotation must be one of {sorted(_ANGLES)} or degrees, got "
                f"{xticks_rotation!r}."
            )
        if ax is None:
            _, ax = pyplot_for(type(self)).subplots()
        self.im_ = ax.imshow(matrix, interpolation="nearest", cmap=cmap)
        if values_format is None:
            is_whole = bool((matrix == np.round(matrix)).all())
            values_format = ".0f" if is_whole else ".2g"
        middle = (matrix.max() + matrix.min()) / 2
        self.text_ = np.empty(matrix.shape, dtype=object)
        for (i, j), value in np.ndenumerate(matrix):
            # In the colour of the other end of the scale, so that it can be read.
            color = self.im_.cmap(1.0 if value <= middle else 0.0)
            self.text_[i, j] = ax.text(
                j, i, format(value, values_format), ha="center", va="center", color=color
            )
        ax.set(
            xticks=np.arange(n_classes + 1),
            yticks=np.arange(n_classes),
            xticklabels=[*names, "rejected"],
            yticklabels=names,
            xlabel="Predicted label",
            ylabel="True label",
        )
        ax.tick_params("x", labelrotation=xticks_rotation)
        # Rejecting is not a class: a line sets its column apart.
        ax.axvline(n_classes - 0.5, color="black", linewidth=2)
        if colorbar:
            ax.figure.colorbar(self.im_, ax=ax)
        self.ax_, self.figure_ = ax, ax.figure
        return self

    @classmethod
    def from_estimator(
        cls: type[Display],
        estimator: Any,
        X: Any,
        y: ArrayLike,
        *,
        coverage: float | None = None,
        sample_weight: ArrayLike | None = None,
        normalize: str | None = None,
        display_labels: ArrayLike | None = None,
        **kwargs: Any,
    ) -> Display:
        """Plot the matrix of a fitted classifier that can reject.

        Parameters
        ----------
        estimator : object
            Fitted classifier with `predict_with_reject`.
        X : array-like
            Samples that the classifier accepts.
        y : array-like of shape (n,)
            Labels. Those that the classifier was not fitted on have rows of their own, after its
            classes.
        coverage : float, default=None
            Fraction of X to accept, in (0, 1]. None is the default of `predict_with_reject`: the
            threshold of `fit_reject`, if there is one.
        sample_weight : array-like of shape (n,), default=None
            Weights.
        normalize : {"true", "pred", "all"}, default=None
            As in :func:`~sklearn_msf.selective.confusion_matrix_with_reject`.
        display_labels : array-like of shape (K,), default=None
            Names of the classes; None takes the class labels.
        **kwargs : dict
            Arguments of :meth:`plot`.

        Returns
        -------
        display : object

        Raises
        ------
        NotFittedError
            If the classifier is not fitted.
        ValueError
            If the classifier has no `predict_with_reject`, and as it and
            :meth:`from_predictions`.
        ImportError
            If matplotlib is not installed.
        """
        # Before the slow predictions.
        pyplot_for(cls)
        if not hasattr(estimator, "predict_with_reject"):
            raise ValueError(
                f"{type(estimator).__name__} has no predict_with_reject: mask its predictions "
                "yourself, as in np.ma.MaskedArray(y_pred, mask=~(uncertainty <= threshold)), and "
                "pass them to from_predictions."
            )
        check_is_fitted(estimator, "classes_")
        classes = estimator.classes_
        true = label_column("y", y)
        # Classes that fit did not see, of which every answer is wrong.
        others = np.unique(true[label_indices(true, classes) < 0])
        return cls.from_predictions(
            y,
            estimator.predict_with_reject(X, coverage),
            # In the dtype of the classes: dates of several units are no equal objects.
            labels=np.concatenate([classes, others]) if len(others) else classes,
            sample_weight=sample_weight,
            normalize=normalize,
            display_labels=display_labels,
            **kwargs,
        )

    @classmethod
    def from_predictions(
        cls: type[Display],
        y_true: ArrayLike,
        y_pred: Any,
        *,
        labels: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
        normalize: str | None = None,
        display_labels: ArrayLike | None = None,
        **kwargs: Any,
    ) -> Display:
        """Plot the matrix of predictions, masked where they are rejected.

        Parameters
        ----------
        y_true : array-like of shape (n,)
            Labels.
        y_pred : array-like or numpy.ma.MaskedArray of shape (n,)
            Predictions, masked where they are rejected.
        labels : array-like of shape (K,), default=None
            Classes in order; None means all labels that occur, sorted.
        sample_weight : array-like of shape (n,), default=None
            Weights.
        normalize : {"true", "pred", "all"}, default=None
            As in :func:`~sklearn_msf.selective.confusion_matrix_with_reject`.
        display_labels : array-like of shape (K,), default=None
            Names of the classes; None takes the labels.
        **kwargs : dict
            Arguments of :meth:`plot`.

        Returns
        -------
        display : object

        Raises
        ------
        ValueError
            As :func:`~sklearn_msf.selective.confusion_matrix_with_reject` and :meth:`plot`.
        ImportError
            If matplotlib is not installed.
        """
        if labels is None:
            labels = occurring_classes(y_true, y_pred)
        matrix = confusion_matrix_with_reject(
            y_true, y_pred, labels=labels, sample_weight=sample_weight, normalize=normalize
        )
        names = labels if display_labels is None else display_labels
        return cls(matrix, display_labels=names).plot(**kwargs)
