"""Sample weights relative to each other, and the number of images in an epoch that follows."""

import math

import numpy as np

from sklearn_msf._evaluation.validation import scaled_weights
from sklearn_msf.runtime.user_warnings import warn_user

__all__ = ["relative_weights"]

# Largest number of images in an epoch for each sample: more repetitions teach little in the time of
# an epoch, at whose ends the learning rate, checkpoints and callbacks are.
_MAX_REPETITIONS = 10


def relative_weights(weights: np.ndarray) -> tuple[np.ndarray, int]:
    """Divide sample weights by what they have in common, and count the images of an epoch.

    Whole weights are divided by their greatest common divisor and count as repetitions, so that a
    sample of weight k and the sample k times are the same fit. Other weights are divided by their
    mean: they are shares of an epoch in which each sample counts once on average. Whole weights are
    shares too, with a warning, if an epoch would have more than 10 images for each sample.

    Parameters
    ----------
    weights : ndarray of shape (n,), float64
        Positive, finite weights.

    Returns
    -------
    relative : ndarray of shape (n,), float64
    n_images : int
        Images in an epoch: the sum of weights that are repetitions, else n.
    """
    n_samples = len(weights)
    if (weights == np.rint(weights)).all():
        # As Python's integers, because numpy's end at 2**63.
        divisor = math.gcd(*(int(weight) for weight in np.unique(weights)))
        weights = weights / divisor
        with np.errstate(over="ignore"):
            n_images = weights.sum()
        if n_images <= _MAX_REPETITIONS * n_samples:
            return weights, round(n_images)
        warn_user(
            f"sample_weight: as repetitions, weights from {weights.min():g} to {weights.max():g} "
            f"would make an epoch of {n_images:.3g} images of {n_samples} samples, more than "
            f"{_MAX_REPETITIONS} for each. They are taken as shares of an epoch of {n_samples} "
            "images; if repetitions are meant, pass smaller whole numbers.",
        )
    # A power of two, so that the sum is finite, and is rounded as without it.
    shares = scaled_weights(weights)
    return shares / shares.mean(), n_samples
