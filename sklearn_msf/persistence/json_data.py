"""Conversion of parameters and labels to plain data for JSON, and back."""

import math
from collections.abc import Mapping
from typing import Any, TypeGuard

import numpy as np
import torch

from sklearn_msf.persistence.limits import check_labels

__all__ = [
    "from_plain",
    "is_finite_number",
    "is_seed",
    "is_size",
    "labels_from_plain",
    "labels_to_plain",
    "number_dtype",
    "to_plain",
]

# Seeds are below.
_MAX_SEED = 2**32
# Kinds of numpy arrays whose values JSON holds exactly.
_NUMBER_KINDS = "biuf"


def to_plain(value: Any) -> Any:
    """Turn a parameter into data that JSON can hold.

    Sequences and arrays become lists, mappings lists of pairs, devices and paths strings.
    Instances of ``RandomState`` and the module ``numpy.random`` become None, because the state
    of random numbers is not saved.

    Raises
    ------
    TypeError
        If the value has another type.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, np.generic):
        plain = value.item()
        # A longdouble has no plain counterpart, and item() returns it as it is.
        return float(plain) if isinstance(plain, np.floating) else plain
    if isinstance(value, torch.device):
        return str(value)
    if isinstance(value, np.random.RandomState) or value is np.random:
        return None
    if isinstance(value, Mapping):
        return {"pairs": [[to_plain(key), to_plain(item)] for key, item in value.items()]}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [to_plain(item) for item in value]
    if hasattr(value, "__fspath__"):
        return value.__fspath__()
    raise TypeError(f"{value!r} cannot be saved as plain data.")


def from_plain(value: Any) -> Any:
    """Turn the output of :func:`to_plain` back into a parameter; lists become tuples."""
    if isinstance(value, list):
        return tuple(from_plain(item) for item in value)
    if isinstance(value, dict):
        return {key: from_plain(item) for key, item in value["pairs"]}
    return value


def labels_to_plain(classes: np.ndarray) -> dict[str, Any]:
    """Turn class labels into plain data: their values and their dtype.

    Raises
    ------
    TypeError
        If JSON cannot hold the labels, for example dates.
    """
    if classes.dtype.kind in _NUMBER_KINDS:
        return {"dtype": classes.dtype.str, "values": [to_plain(label) for label in classes]}
    if all(isinstance(label, str) for label in classes.tolist()):
        kind = "str" if classes.dtype.kind == "U" else "object"
        return {"dtype": kind, "values": classes.tolist()}
    raise TypeError(
        f"classes of dtype {classes.dtype} cannot be saved as plain data; use labels that are "
        "numbers or strings, or pickle the estimator."
    )


def labels_from_plain(plain: Mapping[str, Any], n_classes: int) -> np.ndarray:
    """Turn the output of :func:`labels_to_plain` back into `n_classes` class labels.

    Raises
    ------
    ValueError
        If the data do not describe that many class labels.
    """
    values, dtype = plain["values"], plain["dtype"]
    if not isinstance(values, list) or len(values) != n_classes:
        raise ValueError(f"the classes are not a list of {n_classes!r} labels")
    check_labels(values)
    if dtype in ("str", "object"):
        if not all(isinstance(value, str) for value in values):
            raise ValueError("the classes are not all strings")
        return np.array(values, dtype=object if dtype == "object" else None)
    return np.array(values, dtype=number_dtype(dtype))


def number_dtype(name: Any) -> np.dtype:
    """Make a dtype of booleans, integers or floats from its name.

    Raises
    ------
    ValueError
        If it is not the name of such a dtype.
    """
    try:
        dtype = np.dtype(name) if isinstance(name, str) else None
    except (TypeError, SyntaxError, ValueError):
        dtype = None
    if dtype is None or dtype.kind not in _NUMBER_KINDS or dtype.shape or dtype.fields:
        raise ValueError(f"{name!r} is not a dtype of numbers")
    return dtype


def is_finite_number(value: Any) -> bool:
    """Tell whether a value of a file is a number, no truth value, and finite."""
    return type(value) in (int, float) and math.isfinite(value)


def is_seed(value: Any) -> TypeGuard[int]:
    """Tell whether a value of a file is an integer, no truth value, that a seed can be."""
    return type(value) is int and 0 <= value < _MAX_SEED


def is_size(value: Any) -> bool:
    """Tell whether a value of a file is a list of height and width, two positive integers."""
    is_pair = isinstance(value, list) and len(value) == 2
    return is_pair and all(type(side) is int and side > 0 for side in value)
