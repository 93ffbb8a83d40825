"""Checks of losses, uncertainties and weights, and their sums over ties."""

from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

__all__ = ["by_score", "check_share", "checked_rows", "is_number", "scaled_weights"]


def by_score(
    errors: ArrayLike, uncertainty: ArrayLike, sample_weight: ArrayLike | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sum weights and weighted losses over the samples of each score.

    Returns
    -------
    threshold : ndarray of shape (m,)
        The different scores, rising.
    weight : ndarray of shape (m,)
        Weight of the samples of each score, as a fraction of the total weight.
    loss : ndarray of shape (m,)
        Weighted loss of the samples of each score, divided by the total weight.
    """
    losses, scores, weights = checked_rows(errors, uncertainty, sample_weight)
    weights = weights / weights.max()
    threshold, group = np.unique(scores, return_inverse=True)
    weight = np.bincount(group, weights=weights)
    loss = np.bincount(group, weights=weights * losses)
    return threshold, weight / weight.sum(), loss / weight.sum()


def checked_rows(
    errors: ArrayLike, uncertainty: ArrayLike, sample_weight: ArrayLike | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Check losses, scores and weights, and return those of positive weight in float64.

    Raises
    ------
    ValueError
        For arrays that are empty, not 1-d or of different lengths, for NaN and infinity, for
        negative losses or weights, and if all weights are zero.
    """
    losses, scores = (np.asarray(v, dtype=float) for v in (errors, uncertainty))
    weights = np.ones_like(losses) if sample_weight is None else np.asarray(sample_weight, float)
    named = {"errors": losses, "uncertainty": scores, "sample_weight": weights}
    for name, values in named.items():
        if values.ndim != 1 or len(values) != len(losses) or not len(values):
            raise ValueError(
                f"{name} must be of shape (n,) with n >= 1, the same for all; got "
                f"{values.shape} beside errors of {losses.shape}."
            )
        if not np.isfinite(values).all():
            n_bad = int(np.sum(~np.isfinite(values)))
            raise ValueError(
                f"{name} contains NaN or infinity in {n_bad} of {len(values)} rows, first in row "
                f"{int(np.argmin(np.isfinite(values)))}: leave these rows out."
            )
        if name != "uncertainty" and (values < 0).any():
            raise ValueError(f"{name} must not be negative, got {values.min()}.")
    counts = weights > 0
    if not counts.any():
        raise ValueError("sample_weight must not be zero for all rows.")
    return losses[counts], scores[counts], weights[counts]


def scaled_weights(weights: np.ndarray) -> np.ndarray:
    """Divide weights by a power of two, so that the largest is in [1, 2) and sums are finite.

    Sums and ratios of the result are rounded as those of the weights.
    """
    _, exponent = np.frexp(weights.max())
    return np.ldexp(weights, 1 - exponent)


def is_number(value: Any) -> bool:
    """Tell whether a value is a real number; booleans are not."""
    return isinstance(value, Real) and not isinstance(value, (bool, np.bool_))


def check_share(name: str, value: float, *, includes_one: bool = False) -> None:
    """Refuse a value that is not a number in (0, 1), or in (0, 1] with `includes_one`."""
    if not (is_number(value) and (0 < value < 1 or (includes_one and value == 1))):
        closing = "]" if includes_one else ")"
        raise ValueError(f"{name} must be a number in (0, 1{closing}, got {value!r}.")
