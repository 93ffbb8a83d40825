"""Whether mirror images still show the class: held-out accuracy with and without them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import bdtrc
from torch import Tensor
from torch.nn import functional as F

from sklearn_msf.data.augmentation import mirror_images

__all__ = ["MirroringEffect", "compare_mirroring", "comparison_cost", "shrink_images"]

# Side in pixels to which images are averaged: enough to see sides, and few values to compare.
_SIDE = 14
# Ridge penalty. Results hardly change from a third to three times this value.
_PENALTY = 0.1
# A class with fewer images tells nothing.
_MIN_IMAGES = 10
# Mirroring harms a class if it costs so much of its accuracy, and if chance alone would make such
# a difference with less than this probability, over all classes.
_MIN_FALL = 0.1
_SIGNIFICANCE = 1e-4


@dataclass(frozen=True, eq=False)
class MirroringEffect:
    """Held-out accuracy of each class with and without mirror images.

    Attributes
    ----------
    plain, mirrored : ndarray of shape (K,)
        Fraction of the images of each class that are recognised without and with mirror images;
        NaN for a class without images.
    harmed : list of int
        Classes that mirroring harms, and those that they are then taken for.
    """

    plain: np.ndarray
    mirrored: np.ndarray
    harmed: list[int]


def shrink_images(images: Tensor) -> Tensor:
    """Average images, (n, C, H, W), down to at most 14 pixels a side."""
    return F.interpolate(images, size=_shrunk(images.shape[2:]), mode="area")


def _shrunk(size: Sequence[int]) -> list[int]:
    return [min(side, _SIDE) for side in size]


def comparison_cost(n_images: int, shape: Sequence[int], kind: str) -> float:
    """Estimate the floating-point operations of :func:`compare_mirroring`.

    Parameters
    ----------
    n_images : int
        Number of images.
    shape : sequence of int
        (C, H, W) before they are shrunk; (C, D, H, W) of volumes.
    kind : str
        Kind of variation.
    """
    n_values = shape[0] * math.prod(_shrunk(shape[1:]))
    n_views = len(mirror_images(torch.empty(0, *shape, device="cpu"), kind))
    # A product and an exponential for each pair of images, and the inverses of two matrices.
    return 2 * n_views * n_images**2 * (n_values + 20) + 2 * n_images**3


def compare_mirroring(images: Tensor, labels: np.ndarray, kind: str) -> MirroringEffect:
    """Classify each image by all others, with and without mirror images, and compare.

    The classifier is a kernel ridge regression on the classes, whose prediction of an image by all
    others has a closed form. With the mean of the kernel over the mirror images of one argument
    it equals the regression on all images and their mirror images. So nothing is drawn at random,
    and both classifiers differ in mirroring alone.

    Parameters
    ----------
    images : Tensor of shape (n, C, H, W)
        Small images on the CPU.
    labels : ndarray of shape (n,), int64
        Class indices.
    kind : str
        Kind of variation with a flip, see :func:`~sklearn_msf.data.augmentation.augment_images`.

    Returns
    -------
    MirroringEffect
    """
    views = [view.flatten(1).double() for view in mirror_images(images, kind)]
    plain_kernel, mirrored_kernel = _kernels(views)
    plain = _held_out_predictions(plain_kernel, labels)
    mirrored = _held_out_predictions(mirrored_kernel, labels)
    return MirroringEffect(
        _recalls(plain, labels), _recalls(mirrored, labels), _harmed(plain, mirrored, labels)
    )


def _kernels(views: list[Tensor]) -> tuple[Tensor, Tensor]:
    r"""Compute the kernel of the images, and its mean over mirror images.

    .. math::
        k(x, x') = \exp(-\lVert x - x' \rVert^2 / s), \qquad
        \bar k(x, x') = \frac{1}{|G|} \sum_{g \in G} k(x, g x')

    where s is the mean squared distance of two images and G are the flips (Haasdonk and Burkhardt,
    Invariant kernel functions, 2007).
    """
    images = views[0]
    # Flips do not change the norm.
    norms = images.square().sum(dim=1)

    def distances(view: Tensor) -> Tensor:
        return (norms[:, None] + norms - 2 * images @ view.T).clamp_min_(0)

    plain = distances(images)
    scale = float(plain.mean()) or 1.0
    plain = plain.div_(-scale).exp_()
    mean = plain / len(views)
    for view in views[1:]:
        mean += distances(view).div_(-scale).exp_() / len(views)
    return plain, mean


def _held_out_predictions(kernel: Tensor, labels: np.ndarray) -> np.ndarray:
    r"""Predict the class of each image from all other images.

    With A the inverse of the kernel matrix plus the penalty, the regression on Y without image i
    predicts :math:`y_i - (A Y)_i / A_{ii}` for it. All classes have the same total weight.

    Parameters
    ----------
    kernel : Tensor of shape (n, n), float64
        Kernel of the images.
    labels : ndarray of shape (n,)
        Class indices.
    """
    targets = F.one_hot(torch.from_numpy(labels)).double()
    n_present = int((targets.sum(dim=0) > 0).sum())
    penalties = _PENALTY * n_present * (targets @ targets.sum(dim=0)) / len(labels)
    # 1 added to the kernel stands for an intercept.
    factor = torch.linalg.cholesky(kernel + 1 + torch.diag(penalties))
    inverse = torch.cholesky_inverse(factor)
    scores = targets - inverse @ targets / inverse.diagonal()[:, None]
    scores[:, targets.sum(dim=0) == 0] = -torch.inf
    return scores.argmax(dim=1).numpy()


def _recalls(predicted: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Compute the fraction of the images of each class that are recognised; NaN without images."""
    counts = np.bincount(labels)
    correct = np.bincount(labels[predicted == labels], minlength=len(counts))
    return np.where(counts > 0, correct / np.maximum(counts, 1), np.nan)


def _harmed(plain: np.ndarray, mirrored: np.ndarray, labels: np.ndarray) -> list[int]:
    """Find the classes that mirroring harms, with those that they are then taken for.

    Two classes count together, because one of them alone can also lose what the other one wins.
    """
    counts = np.bincount(labels)
    before, after = _recalls(plain, labels), _recalls(mirrored, labels)
    fall = before - after
    harmed: set[int] = set()
    for c in np.flatnonzero((counts >= _MIN_IMAGES) & (fall >= _MIN_FALL)).tolist():
        lost = (labels == c) & (plain == c) & (mirrored != c)
        other = int(np.bincount(mirrored[lost]).argmax())
        of_both = (labels == c) | (labels == other)
        if (
            counts[other] >= _MIN_IMAGES
            and (fall[c] + fall[other]) / 2 >= _MIN_FALL
            and _chance(plain[of_both], mirrored[of_both], labels[of_both])
            < _SIGNIFICANCE / (counts > 0).sum()
        ):
            harmed |= {c, other}
    return sorted(harmed)


def _chance(plain: np.ndarray, mirrored: np.ndarray, labels: np.ndarray) -> float:
    """Compute the probability of at least so many lost images if mirroring made no difference.

    This is the sign test on images that only one of the two classifiers recognises (McNemar).
    """
    lost = int(((plain == labels) & (mirrored != labels)).sum())
    won = int(((plain != labels) & (mirrored == labels)).sum())
    return float(bdtrc(lost - 1, lost + won, 0.5)) if lost else 1.0
