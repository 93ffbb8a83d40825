"""How good generated images are: like real ones, as varied, of their class, and no copies.

The overlap of two sets and the kernel distance compare features: of a classifier that was trained
on the real data by itself, or of one of ImageNet; never of the model that drew. Class fidelity
asks such a classifier; the others take images as well. Numpy, scipy, scikit-learn only.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import hypergeom
from sklearn.base import clone
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.metrics import balanced_accuracy_score, pairwise_distances_chunked, roc_auc_score
from sklearn.metrics.pairwise import polynomial_kernel
from sklearn.neighbors import NearestNeighbors

from sklearn_msf._evaluation.external_classifier import judge_agrees
from sklearn_msf._evaluation.nearest_images import NearestImages

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


@dataclass(frozen=True)
class ManifoldMetrics:
    """Overlap of two sets of features, by balls around each that reach its k-th neighbour.

    Attributes
    ----------
    precision : float
        Share of generated images inside a ball of a real one (Kynkäänniemi et al., 2019).
    recall : float
        Share of real images inside a ball of a generated one.
    density : float
        Balls of real images that a generated one lies in, on average over k (Naeem et al., 2020);
        about 1 for real images, and more where they crowd.
    coverage : float
        Share of real images with a generated one inside their ball; for as many real images
        about 1 - 2^-k.
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
        Neighbour that a ball reaches.

    Returns
    -------
    ManifoldMetrics

    Raises
    ------
    ValueError
        For features of other shapes or that are not finite, and for k < 1 or not fewer than
        the images.
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
    """Squared distance of two distributions in the space of a kernel.

    Attributes
    ----------
    value : float
        Unbiased: 0 on average for samples of one distribution, and then negative as often.
    standard_error : float
        Of `value`, from blocks of the images; on the large side where both distributions are
        the same.
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
        Blocks without common images from which the standard error is estimated; at least 2.
    random_state : int, default=0
        Seed by which images are dealt out to the blocks.

    Returns
    -------
    KernelDistance

    Raises
    ------
    ValueError
        For features of other shapes or that are not finite, and for fewer than two images of a
        kind in each block.
    """
    real, generated = _checked_features(real=real, generated=generated)
    n_least = min(len(real), len(generated))
    if not isinstance(n_blocks, (int, np.integer)) or n_blocks < 2 or n_least < 2 * n_blocks:
        raise ValueError(
            f"n_blocks must be an integer >= 2 with two images of a kind for each block; got "
            f"{n_blocks!r} for {len(real)} real and {len(generated)} generated images."
        )
    within = polynomial_kernel(real), polynomial_kernel(generated)
    across = polynomial_kernel(real, generated)
    value = _mean_off_diagonal(within[0]) + _mean_off_diagonal(within[1]) - 2 * across.mean()
    rng = np.random.default_rng(random_state)
    parts = (np.array_split(rng.permutation(len(rows)), n_blocks) for rows in (real, generated))
    of_blocks = [
        _mean_off_diagonal(within[0][np.ix_(a, a)])
        + _mean_off_diagonal(within[1][np.ix_(b, b)])
        - 2 * across[np.ix_(a, b)].mean()
        for a, b in zip(*parts, strict=True)
    ]
    error = np.std(of_blocks, ddof=1) / np.sqrt(n_blocks)
    return KernelDistance(float(value), float(error))


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
        Images, or features of them; flattened.
    labels, real_labels : array-like of shape (n,)
        Their classes.
    classifier : object, default=None
        Unfitted scikit-learn classifier; 300 extremely randomised trees by default.

    Returns
    -------
    float
        Balanced accuracy on the real images.

    Raises
    ------
    ValueError
        For images of other shapes or that are not finite, and for other numbers of labels.
    """
    labels = _checked_labels("labels", labels, generated)
    real_labels = _checked_labels("real_labels", real_labels, real)
    rows, real_rows = (
        np.reshape(x, (len(x), -1)) for x in (np.asarray(generated), np.asarray(real))
    )
    model = ExtraTreesClassifier(300, random_state=0) if classifier is None else clone(classifier)
    model.fit(rows, labels)
    return float(balanced_accuracy_score(real_labels, model.predict(real_rows)))


def class_fidelity(judge: Any, generated: ArrayLike, labels: ArrayLike) -> float:
    """Share of generated images that an independent classifier takes for the class asked for.

    Parameters
    ----------
    judge : object
        Classifier with `predict`, trained on real images only.
    generated : array-like of shape (n, ...)
        Images as the judge takes them.
    labels : array-like of shape (n,)
        Classes that were asked for.

    Returns
    -------
    float
        In [0, 1]; compare with the judge's accuracy on real images.

    Raises
    ------
    ValueError
        For another number of labels than of images, and a judge of other classes.
    """
    labels = _checked_labels("labels", labels, generated)
    return float(np.mean(judge_agrees(judge, generated, labels)))


@dataclass(frozen=True)
class CopyingCheck:
    """Distances of generated and of held-out images to the nearest training image.

    Attributes
    ----------
    generated : ndarray of shape (m,)
        Distance of each generated image.
    nearest : ndarray of shape (m,)
        Index of the training image that it is nearest to.
    held_out : ndarray of shape (n,)
        Distance of each held-out image.
    near_duplicates : float
        Share of generated images that are as near to a training image as `quantile` of the
        held-out ones are, or nearer. Images that are more typical than real ones are near to all.
    duplicates_of_training, duplicates_of_held_out : float
        Share of generated images that are as near to one of n training images, on average over
        their choice, and to one of n held-out images; n is the size of the smaller set. Alike
        without copying, however typical the images are; n / N and 0 for copies of N training
        images that stand apart.
    singled_out : float
        The same of the distance to the nearest training image over that to the next nearest,
        which is small for a copy and close to 1 for a typical image.
    quantile : float
        That quantile, which is the share of either expected without copying.
    closer : float
        Chance that a generated image is nearer to the training images than a held-out one;
        0.5 without copying, 1 for copies.
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
    generated: ArrayLike, training: ArrayLike, held_out: ArrayLike, *, quantile: float = 0.05
) -> CopyingCheck:
    """Compare how near generated and held-out images come to the training images.

    Parameters
    ----------
    generated, training, held_out : array-like of shape (n, ...)
        Images, or features of them; flattened. At least two different training images.
    quantile : float, default=0.05
        Of the distances of held-out images: nearer ones are near-duplicates. In (0, 1).

    Returns
    -------
    CopyingCheck

    Raises
    ------
    ValueError
        For images of different sizes or with values that are not finite, fewer than two different
        training images, and a `quantile` outside (0, 1).
    """
    if not 0 < quantile < 1:
        raise ValueError(f"quantile must be a number in (0, 1), got {quantile!r}.")
    generated, training, held_out = _checked_features(
        generated=generated, training=training, held_out=held_out
    )
    nearest = NearestImages(training)
    distances, ratios, indices = nearest(generated)
    usual, usual_ratios, _ = nearest(held_out)
    truth = np.r_[np.ones(len(distances)), np.zeros(len(usual))]
    near = float(np.quantile(usual, quantile))
    training, held_out = nearest.different, np.unique(held_out, axis=0)
    n = min(len(training), len(held_out))
    return CopyingCheck(
        generated=distances,
        nearest=indices,
        held_out=usual,
        near_duplicates=float(np.mean(distances <= near)),
        duplicates_of_training=_near_any_of(generated, training, near, n),
        duplicates_of_held_out=_near_any_of(generated, held_out, near, n),
        singled_out=float(np.mean(ratios <= np.quantile(usual_ratios, quantile))),
        quantile=quantile,
        closer=float(roc_auc_score(truth, -np.r_[distances, usual])),
    )


def _checked_labels(name: str, labels: ArrayLike, images: ArrayLike) -> np.ndarray:
    """Labels of shape (n,) for n images."""
    checked = np.asarray(labels)
    n = len(np.asarray(images))
    if checked.shape not in ((n,), (n, 1)):
        raise ValueError(
            f"{name} must be of shape ({n},), one for each image; got {checked.shape}."
        )
    return checked.ravel()


def _checked_features(**named: ArrayLike) -> list[np.ndarray]:
    """Arrays as rows of float64, all of one width and finite."""
    checked: list[np.ndarray] = []
    for name, values in named.items():
        rows = np.asarray(values, dtype=float)
        if rows.ndim < 2 or not len(rows):
            raise ValueError(f"{name} must be of shape (n, ...), n >= 1, got {rows.shape}.")
        rows = rows.reshape(len(rows), -1)
        if not np.isfinite(rows).all():
            raise ValueError(f"{name} contains NaN or infinity.")
        if checked and rows.shape[1] != checked[0].shape[1]:
            raise ValueError(
                f"{name} has {rows.shape[1]} features, {next(iter(named))} has "
                f"{checked[0].shape[1]}."
            )
        checked.append(rows)
    return checked


def _radii(features: np.ndarray, k: int) -> np.ndarray:
    """Distance of each row to its k-th neighbour among the others."""
    return np.asarray(NearestNeighbors(n_neighbors=k).fit(features).kneighbors()[0][:, -1])


def _near_any_of(images: np.ndarray, others: np.ndarray, distance: float, n: int) -> float:
    """Share of images that one of n others is near to, on average over the choice of these."""
    rows = (
        NearestNeighbors(radius=distance)
        .fit(others)
        .radius_neighbors(images, return_distance=False)
    )
    n_near = np.array([len(row) for row in rows])
    return float(np.mean(1 - hypergeom.pmf(0, len(others), n_near, n)))


def _mean_off_diagonal(kernel: np.ndarray) -> float:
    n = len(kernel)
    return float((kernel.sum() - np.trace(kernel)) / (n * (n - 1)))
