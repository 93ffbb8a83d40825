"""Quality of generated images: realism, variety, class fidelity, and freedom from copies.

:func:`manifold_metrics` and :func:`kernel_distance` compare features. Take these from a classifier
that was trained separately on the real data, or from one trained on ImageNet, but never from the
model that generated the images. Given images they compare pixels, whose distances say little.
:func:`class_fidelity` needs such a separate classifier. The other functions are for images as for
features. The module needs only numpy, scipy and scikit-learn.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import hypergeom
from sklearn.base import clone
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.metrics import balanced_accuracy_score, pairwise_distances_chunked, roc_auc_score
from sklearn.metrics.pairwise import polynomial_kernel
from sklearn.neighbors import NearestNeighbors
from sklearn.utils import gen_batches

from sklearn_msf._evaluation.external_classifier import judge_agrees
from sklearn_msf._evaluation.labels import as_labels, check_same_kind, check_unmasked
from sklearn_msf._evaluation.nearest_images import (
    NearestImages,
    distances_by_parts,
    without_duplicates,
)
from sklearn_msf._evaluation.validation import check_fraction

__all__ = [
    "CopyingCheck",
    "KernelDistance",
    "ManifoldMetrics",
    "class_fidelity",
    "classifier_accuracy_score",
    "copying_check",
    "kernel_distance",
    "manifold_metrics",
]
# How much two ways to compute a distance may differ, as a fraction of it.
_ROUNDING = 1e-9
# Images that are checked, or whose kernel with all others is held, at once.
_ROWS_AT_ONCE = 256


@dataclass(frozen=True)
class ManifoldMetrics:
    """Overlap of two sets of features. Around each image is a ball that reaches its k-th neighbour.

    Attributes
    ----------
    precision : float
        Fraction of generated images inside the ball of a real image (Kynkäänniemi et al., 2019).
    recall : float
        Fraction of real images inside the ball of a generated image.
    density : float
        Mean number of balls of real images that a generated image lies in, divided by k (Naeem et
        al., 2020). It is about 1 for real images in place of the generated ones, and higher if
        generated images crowd where real images are dense.
    coverage : float
        Fraction of real images whose ball contains a generated image. It is about 1 - 2^-k for the
        same number of real images in place of the generated ones.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def manifold_metrics(real: ArrayLike, generated: ArrayLike, *, k: int = 5) -> ManifoldMetrics:
    """Measure precision, recall, density and coverage.

    Parameters
    ----------
    real : array-like of shape (n, n_features)
        Features of real images.
    generated : array-like of shape (m, n_features)
        Features of generated images.
    k : int, default=5
        Number of the neighbour that a ball reaches.

    Returns
    -------
    ManifoldMetrics

    Raises
    ------
    ValueError
        For features of different widths or fewer than two dimensions, for values that are not
        finite, and for k that is not an integer, less than 1, or not less than both numbers of
        images.
    """
    real, generated = _checked_features(real=real, generated=generated)
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 1:
        raise ValueError(f"k must be an integer >= 1, got {k!r}.")
    if k >= min(len(real), len(generated)):
        raise ValueError(
            f"k={k} neighbours need more than k images; there are {len(real)} real and "
            f"{len(generated)} generated ones."
        )
    radius_real, radius_generated = _radii(real, k), _radii(generated, k)
    in_real = np.zeros(len(generated), dtype=int)
    in_generated = np.zeros(len(real), dtype=bool)
    covered = np.zeros(len(real), dtype=bool)
    start = 0
    for distances in pairwise_distances_chunked(real, generated):
        rows = slice(start, start + len(distances))
        inside = distances <= radius_real[rows, None]
        in_real += inside.sum(axis=0)
        covered[rows] = inside.any(axis=1)
        in_generated[rows] = (distances <= radius_generated).any(axis=1)
        start = rows.stop
    return ManifoldMetrics(
        precision=float(np.mean(in_real > 0)),
        recall=float(in_generated.mean()),
        density=float(in_real.mean() / k),
        coverage=float(covered.mean()),
    )


@dataclass(frozen=True)
class KernelDistance:
    """Squared distance of two distributions in the feature space of a kernel.

    Attributes
    ----------
    value : float
        Unbiased estimate. For two sets from one distribution it is 0 on average, so it can be
        negative.
    standard_error : float
        Standard error of `value`, estimated from blocks of the images. It is too large rather than
        too small if both distributions are the same.
    """

    value: float
    standard_error: float


def kernel_distance(
    real: ArrayLike, generated: ArrayLike, *, n_blocks: int = 8, random_state: int = 0
) -> KernelDistance:
    """Measure the kernel distance, KID (Binkowski et al., 2018): cubic kernel, unbiased.

    Parameters
    ----------
    real : array-like of shape (n, n_features)
        Features of real images.
    generated : array-like of shape (m, n_features)
        Features of generated images.
    n_blocks : int, default=8
        Number of blocks, without common images, from which the standard error is estimated; at
        least 2.
    random_state : int, default=0
        Seed of the random division of the images into blocks.

    Returns
    -------
    KernelDistance

    Raises
    ------
    ValueError
        For features of different widths or fewer than two dimensions, for values that are not
        finite, for `n_blocks` that is not an integer >= 2, and for fewer than two real or two
        generated images per block.
    """
    real, generated = _checked_features(real=real, generated=generated)
    n_least = min(len(real), len(generated))
    if not isinstance(n_blocks, (int, np.integer)) or n_blocks < 2 or n_least < 2 * n_blocks:
        raise ValueError(
            f"n_blocks must be an integer >= 2 with two images of a kind for each block; got "
            f"{n_blocks!r} for {len(real)} real and {len(generated)} generated images."
        )
    rng = np.random.default_rng(random_state)
    parts = (np.array_split(rng.permutation(len(rows)), n_blocks) for rows in (real, generated))
    of_blocks = [_kernel_distance(real[a], generated[b]) for a, b in zip(*parts, strict=True)]
    error = np.std(of_blocks, ddof=1) / np.sqrt(n_blocks)
    return KernelDistance(_kernel_distance(real, generated), float(error))


def classifier_accuracy_score(
    generated: ArrayLike,
    labels: ArrayLike,
    real: ArrayLike,
    real_labels: ArrayLike,
    *,
    classifier: Any = None,
) -> float:
    """Train on generated images, test on real ones (Ravuri and Vinyals, 2019).

    Parameters
    ----------
    generated, real : array-like of shape (n, ...)
        Images or features; they are flattened.
    labels, real_labels : array-like of shape (n,)
        Their classes.
    classifier : object, default=None
        Unfitted scikit-learn classifier. None is an ExtraTreesClassifier with 300 trees.

    Returns
    -------
    float
        Balanced accuracy on the real images.

    Raises
    ------
    ValueError
        If the number of labels differs from the number of images, if `labels` are numbers and
        `real_labels` text, for masked images, and whenever the classifier raises it: for images of
        different sizes, for infinity, and for NaN unless the classifier accepts NaN, as the default
        does.
    """
    labels = _checked_labels("labels", labels, generated)
    real_labels = _checked_labels("real_labels", real_labels, real)
    check_same_kind("labels", labels, "real_labels", real_labels)
    check_unmasked("generated", generated)
    check_unmasked("real", real)
    rows, real_rows = (
        np.reshape(x, (len(x), -1)) for x in (np.asarray(generated), np.asarray(real))
    )
    model = ExtraTreesClassifier(300, random_state=0) if classifier is None else clone(classifier)
    model.fit(rows, labels)
    return float(balanced_accuracy_score(real_labels, model.predict(real_rows)))


def class_fidelity(judge: Any, generated: ArrayLike, labels: ArrayLike) -> float:
    """Fraction of generated images whose class an independent classifier predicts.

    Parameters
    ----------
    judge : object
        Classifier with `predict`, trained on real images only.
    generated : array-like of shape (n, ...)
        Generated images in the form that the judge accepts.
    labels : array-like of shape (n,)
        Classes that the images were generated for.

    Returns
    -------
    float
        Fraction in [0, 1]; compare it with the accuracy of the judge on real images.

    Raises
    ------
    ValueError
        If the numbers of labels and images differ, if the judge lacks a class, and if it does not
        predict exactly one label for each image.
    """
    labels = _checked_labels("labels", labels, generated)
    return float(np.mean(judge_agrees(judge, generated, labels)))


@dataclass(frozen=True, eq=False)
class CopyingCheck:
    """Distances of generated and of held-out images to the nearest training image.

    Attributes
    ----------
    generated : ndarray of shape (m,)
        Distance of each generated image to the nearest training image.
    nearest : ndarray of shape (m,)
        Index of the training image that is nearest to each generated image.
    held_out : ndarray of shape (n,)
        Distance of each held-out image to the nearest training image.
    near_duplicates : float
        Fraction of generated images whose distance is at most the `quantile` of the distances of
        held-out images, the near distance. Without copying about `quantile` is expected; of fewer
        than 1 / `quantile` - 1 held-out images the near distance is the smallest one, and one in
        n + 1 is. Images that are more typical than real ones are near to many images without being
        copies.
    duplicates_of_training, duplicates_of_held_out : float
        Fraction of generated images within the near distance of one of n training images chosen
        at random, on average over the choice, and the same for n held-out images. n is the size of
        the smaller of the two sets, without duplicates. Without copying both are about equal,
        however typical the images are. If the generated images are copies of the N training
        images, and these are far from each other, they are n / N and 0.
    singled_out : float
        Like `near_duplicates`, with a ratio instead of the distance: the distance to the nearest
        training image divided by the distance to the second nearest. The ratio is small for a copy
        and close to 1 for a typical image.
    quantile : float
        The quantile that was passed, which is the expected value of `near_duplicates` and
        `singled_out` without copying.
    closer : float
        Probability that a random generated image is nearer to the training images than a random
        held-out image; 0.5 without copying, 1 for copies.
    """

    generated: np.ndarray
    nearest: np.ndarray
    held_out: np.ndarray
    near_duplicates: float
    duplicates_of_training: float
    duplicates_of_held_out: float
    singled_out: float
    quantile: float
    closer: float


def copying_check(
    generated: ArrayLike,
    training: ArrayLike,
    held_out: ArrayLike,
    *,
    quantile: float = 0.05,
    flipped_axes: Sequence[int] = (),
) -> CopyingCheck:
    """Compare how near generated and held-out images come to the training images.

    Parameters
    ----------
    generated, training, held_out : array-like of shape (n, ...)
        Images or features; they are flattened. At least two training images must differ. Of
        images with fill values or hot pixels, which `fit` leaves out of its range, clip the real
        ones to this range first.
    quantile : float, default=0.05
        Quantile of the distances of held-out images, in (0, 1). Generated images that are nearer
        to a training image count as near duplicates.
    flipped_axes : sequence of int, default=()
        Axes of the images along which training flipped them, as a field that memorises draws
        flipped copies too: (2,) for images (n, H, W) or (n, H, W, C) with ``augment="hflip"`` (or
        "auto", from 8 px on), (1, 2) with "flip"; for volumes (3,) and (1, 2, 3). A generated or
        held-out image counts with that of its flips that is nearest to a training image.

    Returns
    -------
    CopyingCheck

    Raises
    ------
    ValueError
        For images of different sizes or with values that are not finite, fewer than two different
        training images, a `quantile` outside (0, 1), and `flipped_axes` that the images lack.
    """
    check_fraction("quantile", quantile)
    shapes = [np.shape(images) for images in (generated, held_out)]
    flips = _flips(flipped_axes, len(shapes[0]))
    if len(flips) > 1 and shapes[0][1:] != shapes[1][1:]:
        raise ValueError(
            "With flipped_axes generated and held_out must have images of one shape, got "
            f"{shapes[0][1:]} and {shapes[1][1:]}."
        )
    generated, training, held_out = _checked_rows(
        generated=generated, training=training, held_out=held_out
    )
    views, held_out_views = (
        [np.flip(rows.reshape(shape), axes).reshape(rows.shape) for axes in flips]
        for rows, shape in zip((generated, held_out), shapes, strict=True)
    )
    nearest = NearestImages(training)
    distances, ratios, indices = _of_nearest_view(nearest, views)
    held_out_distances, held_out_ratios, _ = _of_nearest_view(nearest, held_out_views)
    truth = np.r_[np.ones(len(distances)), np.zeros(len(held_out_distances))]
    near = _expected_quantile(held_out_distances, quantile)
    different_training, different_held_out = nearest.different, without_duplicates(held_out)
    n = min(len(different_training), len(different_held_out))
    return CopyingCheck(
        generated=distances,
        nearest=indices,
        held_out=held_out_distances,
        near_duplicates=float(np.mean(distances <= near)),
        duplicates_of_training=_near_any_of(views, different_training, near, n),
        duplicates_of_held_out=_near_any_of(views, different_held_out, near, n),
        singled_out=float(np.mean(ratios <= _expected_quantile(held_out_ratios, quantile))),
        quantile=quantile,
        closer=float(roc_auc_score(truth, -np.r_[distances, held_out_distances])),
    )


def _expected_quantile(values: np.ndarray, quantile: float) -> float:
    """Compute the value that another one of the same kind is below in a fraction `quantile`.

    This is so in expectation, because the j-th of n values has the place j / (n + 1).
    """
    return float(np.quantile(values, quantile, method="weibull"))


def _checked_labels(name: str, labels: ArrayLike, images: ArrayLike) -> np.ndarray:
    """Check labels of n images, and return them in the shape (n,)."""
    checked = as_labels(name, labels)
    n = len(np.asarray(images))
    if checked.shape not in ((n,), (n, 1)):
        raise ValueError(
            f"{name} must be of shape ({n},), one for each image; got {checked.shape}."
        )
    return checked.ravel()


def _checked_features(**named: ArrayLike) -> list[np.ndarray]:
    """Convert arrays to float64 of shape (n, n_features), with one width and finite values."""
    return [rows.astype(float, copy=False) for rows in _checked_rows(**named)]


def _checked_rows(**named: ArrayLike) -> list[np.ndarray]:
    """Convert arrays to numbers of shape (n, n_features), with one width and finite values."""
    checked: list[np.ndarray] = []
    for name, values in named.items():
        check_unmasked(name, values)
        rows = np.asarray(values)
        # Objects and complex numbers become floats here, or an error.
        rows = rows if rows.dtype.kind in "biuf" else rows.astype(float)
        if rows.ndim < 2 or not len(rows):
            raise ValueError(f"{name} must be of shape (n, ...), n >= 1, got {rows.shape}.")
        rows = rows.reshape(len(rows), -1)
        batches = gen_batches(len(rows), _ROWS_AT_ONCE) if rows.dtype.kind == "f" else ()
        if not all(np.isfinite(rows[part]).all() for part in batches):
            raise ValueError(f"{name} contains NaN or infinity.")
        if checked and rows.shape[1] != checked[0].shape[1]:
            raise ValueError(
                f"{name} has {rows.shape[1]} features, {next(iter(named))} has "
                f"{checked[0].shape[1]}."
            )
        checked.append(rows)
    return checked


def _radii(features: np.ndarray, k: int) -> np.ndarray:
    """Compute the distance of each sample to its k-th neighbour among the others, rounded up.

    Its search rounds otherwise than distances between all samples, and the neighbour is inside.
    """
    distances, _ = NearestNeighbors(n_neighbors=k).fit(features).kneighbors()
    return np.asarray(distances[:, -1] * (1 + _ROUNDING))


def _flips(axes: Sequence[int], n_axes: int) -> list[tuple[int, ...]]:
    """Return all flips along some axes of images, first none."""
    if not isinstance(axes, (Sequence, np.ndarray)) or isinstance(axes, str):
        raise ValueError(f"flipped_axes must be a sequence of axes, such as (2,), got {axes!r}.")
    axes = [int(axis) if isinstance(axis, np.integer) else axis for axis in axes]
    known = [type(axis) is int and 0 < axis < n_axes for axis in axes]
    if not all(known) or len(set(axes)) < len(axes):
        raise ValueError(
            f"flipped_axes must be different axes of the images, from 1 to {n_axes - 1}, got "
            f"{axes!r}."
        )
    return [flip for n in range(len(axes) + 1) for flip in combinations(axes, n)]


def _of_nearest_view(
    nearest: NearestImages, views: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Measure each image in the view of it that is nearest to a training image."""
    distances, ratios, indices = (np.stack(v) for v in zip(*map(nearest, views), strict=True))
    chosen = distances.argmin(axis=0), np.arange(distances.shape[1])
    return distances[chosen], ratios[chosen], indices[chosen]


def _near_any_of(views: Sequence[np.ndarray], others: np.ndarray, distance: float, n: int) -> float:
    """Compute the fraction of images near one of n random others, averaged over their choice.

    An image is near another one if one of its views is.
    """
    n_near = np.zeros(len(views[0]), dtype=int)
    for of_views in zip(*(distances_by_parts(others, rows) for rows in views), strict=True):
        part = of_views[0][0]
        is_near = np.any([distances <= distance for *_, distances in of_views], axis=0)
        n_near[part] += is_near.sum(axis=1)
    return float(np.mean(1 - hypergeom.pmf(0, len(others), n_near, n)))


def _kernel_distance(real: np.ndarray, generated: np.ndarray) -> float:
    """Estimate the squared distance of two sets of features in the space of the kernel."""
    within = _mean_kernel(real) + _mean_kernel(generated)
    return within - 2 * _mean_kernel(real, generated)


def _mean_kernel(features: np.ndarray, others: np.ndarray | None = None) -> float:
    """Average the kernel over all pairs of two sets, or over those of different images of one.

    The kernel of a few images at a time is held: that of 50,000 has 20 GB.
    """
    same = others is None
    others = features if others is None else others
    total = 0.0
    for part in gen_batches(len(features), _ROWS_AT_ONCE):
        kernel = polynomial_kernel(features[part], others)
        total += kernel.sum()
        if same:
            total -= kernel[np.arange(len(kernel)), np.arange(part.start, part.stop)].sum()
    return float(total / (len(features) * (len(others) - same)))
