"""Losses and uncertainties of rows, checked, and tie by tie."""

from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

__all__ = ["by_score", "check_share", "checked_rows", "is_number"]


def by_score(
    errors: ArrayLike, uncertainty: ArrayLike, sample_weight: ArrayLike | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Different scores, rising; share of the weight, and of it times loss, that each has."""
    losses, scores, weights = checked_rows(errors, uncertainty, sample_weight)
    weights = weights / weights.max()
    threshold, group = np.unique(scores, return_inverse=True)
    weight = np.bincount(group, weights=weights)
    loss = np.bincount(group, weights=weights * losses)
    return threshold, weight / weight.sum(), loss / weight.sum()


def checked_rows(
    errors: ArrayLike, uncertainty: ArrayLike, sample_weight: ArrayLike | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Losses, scores and weights of the rows that count, in float64."""
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


def is_number(value: Any) -> bool:
    """Tell real numbers from truth values and everything else."""
    return isinstance(value, Real) and not isinstance(value, (bool, np.bool_))


def check_share(name: str, value: float, *, includes_one: bool = False) -> None:
    """Refuse what is not a share in (0, 1), or in (0, 1]."""
    if not (is_number(value) and (0 < value < 1 or (includes_one and value == 1))):
        closing = "]" if includes_one else ")"
        raise ValueError(f"{name} must be a number in (0, 1{closing}, got {value!r}.")
