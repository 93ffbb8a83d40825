"""Checks of losses, uncertainties and weights, and their sums over ties."""

from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from sklearn_msf._evaluation.labels import check_unmasked

__all__ = [
    "as_numbers",
    "by_score",
    "check_fraction",
    "checked_column",
    "checked_probabilities",
    "checked_rows",
    "checked_weights",
    "is_number",
    "scaled_weights",
]

# How far the sum of the probabilities of a row may be from 1: those of float16 are rounded so much.
_TOLERANCE = 1e-2


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
    threshold, group = np.unique(scores, return_inverse=True)
    weight = np.bincount(group, weights=weights)
    loss = np.bincount(group, weights=weights * losses)
    return threshold, weight / weight.sum(), loss / weight.sum()


def checked_rows(
    errors: ArrayLike, uncertainty: ArrayLike, sample_weight: ArrayLike | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Check losses, scores and weights, and return those of positive weight in float64.

    Weights are scaled by :func:`scaled_weights`; what is 0 then beside the largest one counts for
    nothing.

    Raises
    ------
    ValueError
        For arrays that are empty, not 1-d or of different lengths, for NaN and infinity, for
        negative losses or weights, and if all weights are zero.
    """
    losses = checked_column("errors", errors)
    scores = checked_column("uncertainty", uncertainty, len(losses))
    _check_not_negative("errors", losses)
    if sample_weight is None:
        return losses, scores, np.ones_like(losses)
    weights = checked_weights(sample_weight, len(losses))
    counts = weights > 0
    return losses[counts], scores[counts], weights[counts]


def checked_column(name: str, values: ArrayLike, n: int | None = None) -> np.ndarray:
    """Check numbers of n samples, of any number of samples if n is None; return them in float64.

    Raises
    ------
    ValueError
        For masked values, for another shape, for no samples, for NaN and infinity.
    """
    check_unmasked(name, values)
    column = np.asarray(values, dtype=float)
    if column.ndim != 1 or not len(column):
        raise ValueError(f"{name} must be of shape (n,) with n >= 1, got {column.shape}.")
    if n is not None and len(column) != n:
        raise ValueError(f"{name} must be of shape ({n},), got {column.shape}.")
    finite = np.isfinite(column)
    if not finite.all():
        raise ValueError(
            f"{name} contains NaN or infinity in {int(np.sum(~finite))} of {len(column)} rows, "
            f"first in row {int(np.argmin(finite))}: leave these rows out."
        )
    return column


def checked_weights(sample_weight: ArrayLike, n: int) -> np.ndarray:
    """Check the weights of n samples, and return them scaled by :func:`scaled_weights`.

    Raises
    ------
    ValueError
        As :func:`checked_column`; for negative weights, and if all are zero.
    """
    weights = checked_column("sample_weight", sample_weight, n)
    _check_not_negative("sample_weight", weights)
    if not weights.any():
        raise ValueError("sample_weight must not be zero for all rows.")
    return scaled_weights(weights)


def _check_not_negative(name: str, column: np.ndarray) -> None:
    if (column < 0).any():
        raise ValueError(f"{name} must not be negative, got {column.min()}.")


def as_numbers(name: str, values: ArrayLike, *, may_be_bool: bool = False) -> np.ndarray:
    """Return values in float64; with `may_be_bool` truth values as 0 and 1.

    Raises
    ------
    ValueError
        For what is no array of numbers: sets and dicts, text, truth values, times.
    """
    check_unmasked(name, values)
    try:
        array = np.asarray(values)
        if array.dtype.kind not in ("biufO" if may_be_bool else "iufO"):
            raise TypeError(f"it is of {array.dtype}")
        return array.astype(float)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be an array of numbers, got {values!r}: {error}.") from error


def checked_probabilities(name: str, probabilities: ArrayLike) -> np.ndarray:
    """Check class probabilities, and return them in float64 with rows that sum to 1.

    Raises
    ------
    ValueError
        For what are no numbers, for another shape than (n, K) with n >= 1 and K >= 2, for values
        that are not in [0, 1], and for rows that do not sum to 1.
    """
    p = as_numbers(name, probabilities)
    if p.ndim != 2 or not len(p) or p.shape[1] < 2:
        raise ValueError(
            f"{name} must be of shape (n, K), a column for each of two or more classes; got "
            f"{p.shape}."
        )
    inside = ((p >= 0) & (p <= 1)).all(axis=1)
    if not inside.all():
        row = int(np.argmin(inside))
        raise ValueError(f"{name} must be in [0, 1], got {p[row].tolist()} in row {row}.")
    sums = p.sum(axis=1)
    row = int(np.argmax(np.abs(sums - 1)))
    if abs(sums[row] - 1) > _TOLERANCE:
        raise ValueError(f"{name} must sum to 1 in each row, got {sums[row]} in row {row}.")
    return np.asarray(p / sums[:, None])


def scaled_weights(weights: np.ndarray) -> np.ndarray:
    """Divide weights by a power of two, so that the largest is in [1, 2) and sums are finite.

    Sums and ratios of the result are rounded as those of the weights.
    """
    _, exponent = np.frexp(weights.max())
    return np.ldexp(weights, 1 - exponent)


def is_number(value: Any) -> bool:
    """Tell whether a value is a real number; booleans are not."""
    return isinstance(value, Real) and not isinstance(value, (bool, np.bool_))


def check_fraction(name: str, value: float, *, includes_one: bool = False) -> None:
    """Refuse a value that is not a number in (0, 1), or in (0, 1] with `includes_one`."""
    if not (is_number(value) and (0 < value < 1 or (includes_one and value == 1))):
        closing = "]" if includes_one else ")"
        raise ValueError(f"{name} must be a number in (0, 1{closing}, got {value!r}.")
