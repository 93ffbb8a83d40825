"""Displays of generated images; volumes are shown by their central slices."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils.validation import check_is_fitted

from sklearn_msf._estimator.given_images import as_generated, check_like, check_pairs, mirrored
from sklearn_msf._estimator.parameters import check_positive_integer
from sklearn_msf._evaluation.labels import check_same_kind, label_indices
from sklearn_msf._evaluation.nearest_images import find_nearest
from sklearn_msf.plotting.pictures import central_slices, checked_names, in_colour, pictures_of
from sklearn_msf.plotting.pyplot import pyplot_for

__all__ = ["SampleGridDisplay", "TrajectoryDisplay"]

# Times of a trajectory that are shown by default.
_SHOWN_TIMES = 6


class SampleGridDisplay:
    """Generated images in one row for each class, next to real images.

    Of a volume :meth:`from_estimator` shows the central slices across depth, height and width, one
    below the other; the titles of the blocks then say so.

    Parameters
    ----------
    blocks : dict of str to ndarray of shape (K, n, H, W) or (K, n, H, W, C)
        Blocks of images in [0, 1], which are placed side by side. The keys are their titles.
    class_names : sequence of str
        Names of the K rows.

    Attributes
    ----------
    ax_, figure_ : matplotlib objects
        Axes and figure; set by :meth:`plot`.
    """

    def __init__(self, *, blocks: dict[str, np.ndarray], class_names: Sequence[str]):
        self.blocks = blocks
        self.class_names = class_names

    def plot(self, ax: Any = None) -> "SampleGridDisplay":
        """Plot the images.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to plot on; None makes a new figure.

        Returns
        -------
        self : object
            The display, with `ax_` and `figure_`.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        """
        plt = pyplot_for(type(self))
        parts, centres, column = [], [], 0
        for images in self.blocks.values():
            n_classes, n, height, width = images.shape[:4]
            tiles = in_colour(images.reshape(n_classes, n, height, width, -1))
            block = tiles.transpose(0, 2, 1, 3, 4).reshape(n_classes * height, n * width, 3)
            gap = np.ones((len(block), width // 2, 3))
            parts += [block, gap]
            centres.append(column + block.shape[1] / 2)
            column += block.shape[1] + gap.shape[1]
        picture = np.concatenate(parts[:-1], axis=1)
        if ax is None:
            rows, columns = len(picture) / width, picture.shape[1] / width
            _, ax = plt.subplots(figsize=(0.6 * columns + 1, 0.6 * rows + 0.6), layout="tight")
        ax.imshow(picture, interpolation="nearest")
        ax.set_xticks(centres, list(self.blocks))
        ax.set_yticks((np.arange(n_classes) + 0.5) * height, self.class_names)
        ax.tick_params(length=0, labeltop=True, labelbottom=False)
        for spine in ax.spines.values():
            spine.set_visible(False)
        self.ax_, self.figure_ = ax, ax.figure
        return self

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        *,
        X: ArrayLike | None = None,
        y: ArrayLike | None = None,
        n_columns: int = 8,
        n_steps: int = 5,
        guidance: float | None = None,
        class_names: Sequence[str] | None = None,
        random_state: Any = 0,
        ax: Any = None,
    ) -> "SampleGridDisplay":
        """Plot generated images of every class, and with X and y also real images.

        Parameters
        ----------
        estimator : object
            Fitted MedSymmFlow classifier.
        X : array-like of shape (n, ...), default=None
            Training images. With X there are three blocks: real images, generated images, and for
            each generated image the training image whose pixels are nearest to it or, where
            training flipped images, to a mirror image of it.
        y : array-like of shape (n,), default=None
            Labels of X.
        n_columns : int, default=8
            Number of images of each class.
        n_steps : int, default=5
            Number of midpoint steps.
        class_names : sequence of str, default=None
            Names of the classes, in their order; None means the labels.
        guidance : float, default=None
            As in :meth:`~sklearn_msf.MedSymmFlowClassifier.sample`.
        random_state : int, RandomState instance or None, default=0
            Seed of the noise.
        ax : matplotlib Axes, default=None
            Axes to plot on; None makes a new figure.

        Returns
        -------
        SampleGridDisplay

        Raises
        ------
        ValueError
            If only one of X and y is given, if X has another shape or dtype than the generated
            images, if a class has fewer than `n_columns` images in X, if `n_columns` is not a
            positive integer, and if the number of `class_names` is wrong.
        ImportError
            If matplotlib is not installed.
        """
        # Before the slow generation.
        pyplot_for(cls)
        check_is_fitted(estimator, "classes_")
        classes = estimator.classes_
        names = checked_names(classes, class_names)
        if (X is None) != (y is None):
            raise ValueError("X and y must be given together.")
        check_positive_integer("n_columns", n_columns)
        if X is not None and y is not None:
            images, labels = check_pairs(X, y)
            check_same_kind("y", labels, "the estimator", classes)
            check_like(images, estimator)
            indices = label_indices(labels, classes)
            chosen = [np.flatnonzero(indices == i)[:n_columns] for i in range(len(classes))]
            # Names may occur twice.
            counts = zip(names, map(len, chosen), strict=True)
            few = [f"{name!r}: {n}" for name, n in counts if n < n_columns]
            if few:
                raise ValueError(
                    f"n_columns={n_columns} is more than the images that X has of some classes: "
                    f"{', '.join(few)}. Lower n_columns, or pass more images."
                )
        generated = estimator.sample(
            n_samples=n_columns, n_steps=n_steps, guidance=guidance, random_state=random_state
        )
        blocks = {"generated": generated}
        if X is not None:
            searched = as_generated(estimator, images).reshape(len(images), -1)
            found = [
                find_nearest(searched, each.reshape(len(each), -1))
                for each in mirrored(estimator, generated)
            ]
            distances, rows = (np.stack(of_flips)[..., 0] for of_flips in zip(*found, strict=True))
            nearest = rows[distances.argmin(axis=0), np.arange(len(generated))]
            blocks = {
                "real": images[np.concatenate(chosen)],
                "generated": generated,
                "nearest training image": images[nearest],
            }
        image_format = estimator.model_.image_format
        suffix = "" if image_format.n_spatial_dims == 2 else "\n(central slices)"
        shown = {
            f"{name}{suffix}": pictures_of(image_format, images) for name, images in blocks.items()
        }
        by_class = {
            name: pictures.reshape(len(classes), n_columns, *pictures.shape[1:])
            for name, pictures in shown.items()
        }
        return cls(blocks=by_class, class_names=names).plot(ax)


class TrajectoryDisplay:
    """Trajectories of an image and its mask from t = 0 to 1 (paper, Figure 1).

    Of a volume :meth:`from_estimator` shows the central slices across depth, height and width, one
    below the other, and those of its mask.

    Parameters
    ----------
    images : ndarray of shape (T, H, W) or (T, H, W, C)
        Image at each time, in [0, 1].
    masks : ndarray of shape (T, h, w, 3)
        Mask at each time, in [0, 1].
    times : ndarray of shape (T,)
        Times of the images and masks.

    Attributes
    ----------
    axes_, figure_ : matplotlib objects
        Axes, an array of shape (2, T), and figure; set by :meth:`plot`.
    """

    def __init__(self, *, images: np.ndarray, masks: np.ndarray, times: np.ndarray):
        self.images = images
        self.masks = masks
        self.times = times

    def plot(self) -> "TrajectoryDisplay":
        """Plot the images in a row above the masks.

        Returns
        -------
        self : object
            The display, with `axes_` and `figure_`.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        """
        n = len(self.times)
        heights = [values.shape[1] / values.shape[2] for values in (self.images, self.masks)]
        figure, axes = pyplot_for(type(self)).subplots(
            2,
            n,
            figsize=(1.1 * n, 1.1 * sum(heights) + 0.4),
            height_ratios=heights,
            layout="tight",
            squeeze=False,
        )
        for column, time in enumerate(self.times):
            for row, values in enumerate((self.images, self.masks)):
                image = values[column]
                image = in_colour(image[..., None] if image.ndim == 2 else image)
                axes[row, column].imshow(image, interpolation="nearest")
                axes[row, column].set_axis_off()
            axes[0, column].set_title(f"t = {time:.2f}", fontsize=9)
        self.axes_, self.figure_ = axes, figure
        return self

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        class_id: Any,
        *,
        n_columns: int | None = None,
        n_steps: int = 5,
        guidance: float | None = None,
        random_state: Any = 0,
    ) -> "TrajectoryDisplay":
        """Generate an image of a class and plot its trajectory.

        Of masks with more than three channels, as ``label_encoding="simplex"`` has them for more
        than four classes, the first three are shown.

        Parameters
        ----------
        estimator : object
            Fitted MedSymmFlow classifier.
        class_id : label
            Class of the image.
        n_columns : int, default=None
            Number of times that are shown, including the first and the last; at least 2, and at
            most `n_steps` + 1. None shows six, or all if there are fewer.
        n_steps : int, default=5
            Number of midpoint steps.
        guidance : float, default=None
            As in :meth:`~sklearn_msf.MedSymmFlowClassifier.sample`.
        random_state : int, RandomState instance or None, default=0
            Seed of the noise.

        Returns
        -------
        TrajectoryDisplay

        Raises
        ------
        ValueError
            For fewer than two columns or more than `n_steps` + 1, and for `class_id` and `n_steps`
            as in `sample_trajectory` of the estimator.
        ImportError
            If matplotlib is not installed.
        """
        # Before the slow generation.
        pyplot_for(cls)
        check_positive_integer("n_steps", n_steps)
        if n_columns is None:
            n_columns = min(_SHOWN_TIMES, n_steps + 1)
        check_positive_integer("n_columns", n_columns, least=2)
        if n_columns > n_steps + 1:
            raise ValueError(
                f"n_columns={n_columns} needs n_steps={n_columns - 1} or more, got "
                f"n_steps={n_steps}: a trajectory has a time for each step and the first one."
            )
        images, masks, times = estimator.sample_trajectory(
            class_id, n_steps=n_steps, guidance=guidance, random_state=random_state
        )
        shown = np.linspace(0, n_steps, n_columns).round().astype(int)
        image_format = estimator.model_.image_format
        # Scale by the range of the code at t = 0; noise outside it is clipped.
        colours = 0.5 + 0.5 * masks[shown] / max(1.0, float(np.abs(masks[0]).max()))
        return cls(
            images=pictures_of(image_format, images[shown]),
            masks=central_slices(in_colour(np.clip(colours, 0, 1)), image_format.n_spatial_dims),
            times=times[shown],
        ).plot()
