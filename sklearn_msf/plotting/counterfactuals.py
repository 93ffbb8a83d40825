"""Display of images beside their counterfactuals, and of what was changed where."""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils.validation import check_is_fitted

from sklearn_msf.data.stacking import stack_images
from sklearn_msf.plotting.pictures import checked_names, in_colour, pictures_of
from sklearn_msf.plotting.pyplot import pyplot_for

__all__ = ["CounterfactualDisplay"]

_ROWS = ("image", "counterfactual", "difference")


class CounterfactualDisplay:
    """Images, their counterfactuals, and the signed difference of the two.

    Of a volume :meth:`from_estimator` shows the central slices across depth, height and width, one
    below the other.

    Parameters
    ----------
    images, counterfactuals : ndarray of shape (n, H, W) or (n, H, W, C)
        Images and their counterfactuals, in [0, 1].
    titles : sequence of str
        Titles of the n columns.

    Attributes
    ----------
    differences : ndarray of shape (n, H, W)
        Counterfactual minus image, in [-1, 1]. Of several channels it is the change of the one that
        changes most at that pixel, because changes of opposite sign would cancel in a mean.
    axes_, figure_ : matplotlib objects
        Axes, an array of shape (3, n), and figure; set by :meth:`plot`.
    colorbar_ : matplotlib Colorbar
        Scale of the differences; set by :meth:`plot`.

    See Also
    --------
    sklearn_msf.MedSymmFlowClassifier.counterfactual : Change the class of images.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_msf.plotting import CounterfactualDisplay
    >>> images = np.zeros((1, 2, 2))
    >>> display = CounterfactualDisplay(
    ...     images=images, counterfactuals=images + [[0, 0.5], [0, 0]], titles=["0 to 1"]
    ... ).plot()
    >>> display.differences[0].tolist()
    [[0.0, 0.5], [0.0, 0.0]]
    """

    def __init__(
        self, *, images: np.ndarray, counterfactuals: np.ndarray, titles: Sequence[str]
    ) -> None:
        self.images = images
        self.counterfactuals = counterfactuals
        self.titles = titles
        self.differences = _largest_changes(counterfactuals - images)

    def plot(self) -> "CounterfactualDisplay":
        """Plot a column for each image: the image, its counterfactual, and their difference.

        Red is higher and blue lower in the counterfactual; white is unchanged. All differences
        have the scale of the largest one.

        Returns
        -------
        self : object
            The display, with `axes_`, `figure_` and `colorbar_`.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        """
        n, height, width = self.differences.shape
        figure, axes = pyplot_for(type(self)).subplots(
            len(_ROWS),
            n,
            figsize=(1.3 * n + 1.8, 1.3 * len(_ROWS) * height / width + 0.5),
            layout="constrained",
            squeeze=False,
        )
        # Not 0, which no colour scale can have.
        largest = max(float(np.abs(self.differences).max()), 1e-3)
        for column, title in enumerate(self.titles):
            for row, values in enumerate((self.images, self.counterfactuals)):
                picture = in_colour(values[column].reshape(height, width, -1))
                axes[row, column].imshow(picture, interpolation="nearest")
            shown = axes[2, column].imshow(
                self.differences[column],
                cmap="RdBu_r",
                vmin=-largest,
                vmax=largest,
                interpolation="nearest",
            )
            axes[0, column].set_title(title, fontsize=9)
        for ax, name in zip(axes[:, 0], _ROWS, strict=True):
            ax.set_ylabel(name)
        for ax in axes.flat:
            ax.set(xticks=[], yticks=[])
        self.colorbar_ = figure.colorbar(shown, ax=axes[2], label="change")
        self.axes_, self.figure_ = axes, figure
        return self

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: ArrayLike,
        to_class: Any,
        *,
        n_steps: int = 25,
        guidance: float | None = None,
        class_names: Sequence[str] | None = None,
    ) -> "CounterfactualDisplay":
        """Change the class of images, and plot what changes.

        The title of a column is the class that the estimator predicts for the image and the one
        that it predicts for the counterfactual, which need not be `to_class`.

        Parameters
        ----------
        estimator : object
            Fitted MedSymmFlow classifier.
        X : array-like of shape (n, ...)
            At least one image, as in `fit` of the estimator.
        to_class : label, or array-like of shape (n,)
            Class of the counterfactuals: one for all images, or one for each.
        n_steps : int, default=25
            Number of steps of the ODE solver in each direction.
        guidance : float, default=None
            As in :meth:`~sklearn_msf.MedSymmFlowClassifier.counterfactual`.
        class_names : sequence of str, default=None
            Names of the classes, in their order; None means the labels.

        Returns
        -------
        CounterfactualDisplay

        Raises
        ------
        ValueError
            If the number of `class_names` is wrong, and for X, `to_class`, `n_steps` and `guidance`
            as in `counterfactual` of the estimator.
        ImportError
            If matplotlib is not installed.
        """
        # Before the slow integration.
        pyplot_for(cls)
        check_is_fitted(estimator, "classes_")
        classes = estimator.classes_
        names = checked_names(classes, class_names)
        changed = estimator.counterfactual(X, to_class, n_steps=n_steps, guidance=guidance)
        name_of = dict(zip(classes.tolist(), names, strict=True))
        before = estimator.predict(X).tolist()
        with warnings.catch_warnings():
            # X may be a data frame, whose names of columns the counterfactuals lack.
            warnings.filterwarnings("ignore", "X does not have valid feature names")
            after = estimator.predict(changed).tolist()
        image_format = estimator.model_.image_format
        return cls(
            images=pictures_of(image_format, np.asarray(stack_images(X))),
            counterfactuals=pictures_of(image_format, changed),
            titles=[
                f"{name_of[source]} → {name_of[target]}"
                for source, target in zip(before, after, strict=True)
            ],
        ).plot()


def _largest_changes(changes: np.ndarray) -> np.ndarray:
    """Take the largest change over the channels, with its sign: (n, H, W, C) to (n, H, W)."""
    if changes.ndim == 3:
        return changes
    largest = np.abs(changes).argmax(axis=-1, keepdims=True)
    return np.take_along_axis(changes, largest, axis=-1)[..., 0]
