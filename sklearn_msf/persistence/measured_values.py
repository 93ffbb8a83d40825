"""Comparison of measured values, which every machine rounds in its own way."""

import numpy as np

__all__ = ["same_but_for_rounding"]

# Allowed difference, in standard deviations of the values.
_TOLERANCE = 0.01


def same_but_for_rounding(found: np.ndarray, wanted: np.ndarray) -> bool:
    """Tell whether values are those that were measured before, on this or another machine."""
    if found.shape != wanted.shape:
        return False
    # "<=", so that NaN is not the same.
    return bool(np.abs(found - wanted).max(initial=0.0) <= _TOLERANCE * wanted.std())
