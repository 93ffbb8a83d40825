"""Labels of several sources, compared only if they are of one kind.

numpy compares 1 with "1" in silence: as different, or as equal if it converts both to text first.
Here numbers are equal as in Python, so that 1, 1.0 and True are one label.
"""

import datetime
import unicodedata
from collections.abc import Iterable
from numbers import Number
from typing import Any

import numpy as np

from sklearn_msf.runtime.user_warnings import warn_user

__all__ = [
    "as_labels",
    "check_one_column",
    "check_same_kind",
    "check_unmasked",
    "describe_alike",
    "differing_labels",
    "has_finer_unit",
    "is_missing",
    "label_column",
    "label_indices",
    "names_alike",
    "warn_of_alike",
    "with_dates_of_one_type",
]

# Name of the labels of an array, by the kind of its dtype.
_KINDS = {"U": "text", "S": "bytes", "M": "dates", "m": "durations"}
_FINER_UNITS = ("ns", "ps", "fs", "as")
_KINDS |= dict.fromkeys("biufc", "numbers")


def as_labels(name: str, values: Any) -> np.ndarray:
    """Convert labels to an array; refuse those that equal nothing, not even themselves.

    Dates and durations in finer units than microseconds, which Python's do not have, are rounded
    down to these: pandas counts in nanoseconds.

    Raises
    ------
    ValueError
        For labels of several kinds, NaN, masked labels, and a set or a view of a dict, which have
        no positions; the message names them.
    """
    check_unmasked(name, values)
    labels = _as_array(values)
    if labels.dtype.kind == "O" and labels.ndim == 0 and _is_collection(labels[()]):
        raise ValueError(
            f"{name} must be a label, or a list or an array of labels, got {values!r}."
        )
    n_missing = 0
    if labels.dtype.kind in "fcmM":
        n_missing = int((labels != labels).sum())
    elif labels.dtype.kind == "O":
        n_missing = sum(map(is_missing, labels.ravel().tolist()))
    if n_missing:
        raise ValueError(
            f"{name} contains NaN or None in {n_missing} of {labels.size} labels: leave these rows "
            "out."
        )
    _check_one_kind(name, values)
    if labels.dtype.kind in "mM" and has_finer_unit(labels.dtype):
        labels = labels.astype(f"{labels.dtype.kind}8[us]")
    return labels


def _is_collection(value: object) -> bool:
    return isinstance(value, Iterable) and not isinstance(value, (str, bytes))


def has_finer_unit(dtype: np.dtype) -> bool:
    """Tell whether dates or durations are in a finer unit than microseconds."""
    return np.datetime_data(dtype)[0] in _FINER_UNITS


def label_column(name: str, values: Any) -> np.ndarray:
    """Convert labels of shape (n,) or (n, 1) to an array of shape (n,).

    Raises
    ------
    ValueError
        For labels of another shape, such as a column for each class, and as :func:`as_labels`.
    """
    labels = as_labels(name, values)
    check_one_column(name, labels.shape)
    return labels.ravel()


def check_one_column(name: str, shape: tuple[int, ...]) -> None:
    """Refuse labels of another shape than (n,) or (n, 1).

    Raises
    ------
    ValueError
        With the shape.
    """
    if len(shape) != 1 and shape[1:] != (1,):
        raise ValueError(
            f"{name} must be of shape (n,) or (n, 1), got {shape}: give one label for each row, "
            f"such as {name}.argmax(axis=1) of a column for each class."
        )


def check_unmasked(name: str, values: Any) -> None:
    """Refuse masked values, whose masks numpy and scikit-learn would drop.

    Raises
    ------
    ValueError
        With the number of masked values.
    """
    if np.ma.is_masked(values):
        raise ValueError(
            f"{name} is a masked array with {np.ma.count_masked(values)} masked values, "
            + (
                "as of rejected images: leave their rows out, as by values.compressed() and "
                "y[~values.mask]."
                if np.shape(values)[1:] in ((), (1,))
                else "which would be taken for data: fill them in, or leave out their rows."
            )
        )


def names_alike(names: Iterable[str]) -> tuple[str, str] | None:
    """Find two names that differ in nothing but case, blanks around them or Unicode's forms."""
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(unicodedata.normalize("NFKC", name).strip().casefold(), name)
        if other != name:
            return other, name
    return None


def describe_alike(names: tuple[str, str]) -> str:
    """Describe two names of :func:`names_alike`, so that the difference is seen."""
    shown = list(map(repr, names))
    if shown[0] == shown[1] or len({unicodedata.normalize("NFC", name) for name in names}) == 1:
        shown = list(map(ascii, names))
    return f"{shown[0]} and {shown[1]}, the same name but for case, spaces or forms of letters"


def warn_of_alike(what: str, names: Iterable[Any], kind: str) -> None:
    """Warn if two names that are text are nearly the same; `kind` is what they are names of."""
    alike = names_alike(name for name in names if isinstance(name, str))
    if alike is not None:
        warn_user(
            f"{what} has {describe_alike(alike)}, which count as different {kind}s: give one "
            f"{kind} one name."
        )


def is_missing(label: Any) -> bool:
    """Tell whether a label is None, NaN, NaT or pandas' NA."""
    # pandas' NA is neither equal to itself nor different from itself.
    return label is None or type(label).__name__ == "NAType" or label != label


def _check_one_kind(name: str, values: Any) -> None:
    """Refuse labels that are numbers in part and text in part, or of other kinds.

    Raises
    ------
    ValueError
        If there are several kinds; the message names two of them.
    """
    kinds = _examples(values)
    if len(kinds) > 1:
        (kind, label), (other_kind, other), *_ = kinds.items()
        raise ValueError(
            f"{name} mixes {kind}, such as {label!r}, and {other_kind}, such as {other!r}: give "
            "all labels one type."
        )


def check_same_kind(name: str, values: Any, other_name: str, others: Any) -> None:
    """Refuse labels of one source that are of another kind than those of another.

    Raises
    ------
    ValueError
        If the kinds differ; the message names both.
    """
    kinds, other_kinds = _examples(values), _examples(others)
    if kinds and other_kinds and kinds.keys() != other_kinds.keys():
        (kind, label), *_ = kinds.items()
        (other_kind, other), *_ = other_kinds.items()
        raise ValueError(
            f"{name} has labels that are {kind}, such as {label!r}, but {other_name} has "
            f"{other_kind}, such as {other!r}: labels of different kinds never match, so convert "
            "one of them."
        )


def label_indices(labels: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Find the index of each label among the classes; -1 for labels that are no class."""
    labels, classes = with_dates_of_one_type(labels, classes)
    if labels.dtype.kind == classes.dtype.kind == "M":
        # Dates of different units are different objects in Python.
        unit = np.promote_types(labels.dtype, classes.dtype)
        labels, classes = labels.astype(unit), classes.astype(unit)
    index = {label: i for i, label in enumerate(classes.tolist())}
    present, inverse = np.unique(labels, return_inverse=True)
    found = np.array([index.get(label, -1) for label in present.tolist()], dtype=np.int64)
    return found[inverse]


def differing_labels(name: str, values: Any, other_name: str, others: Any) -> np.ndarray:
    """Tell which of n labels differ from n others of the same kind.

    Parameters
    ----------
    name, other_name : str
        Names of the two arguments, for messages.
    values, others : array-like of shape (n,) or (n, 1)
        Labels.

    Returns
    -------
    ndarray of shape (n,), bool

    Raises
    ------
    ValueError
        If the numbers or the kinds of the labels differ, and as in :func:`as_labels`.
    """
    labels, compared = label_column(name, values), label_column(other_name, others)
    if labels.shape != compared.shape:
        raise ValueError(
            f"{name} has {len(labels)} labels and {other_name} {len(compared)}: give one for each "
            "row."
        )
    check_same_kind(name, labels, other_name, compared)
    labels, compared = with_dates_of_one_type(labels, compared)
    return np.asarray(labels != compared)


def with_dates_of_one_type(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Convert dates of Python to those of numpy if the other labels are dates of numpy."""
    if "M" in (first.dtype.kind, second.dtype.kind):
        return _as_dates(first), _as_dates(second)
    return first, second


def _as_dates(labels: np.ndarray) -> np.ndarray:
    """Convert dates of Python to those of numpy; return other labels as they are."""
    # numpy compares a date of Python with its own as if that was a number.
    is_of_dates = labels.dtype.kind == "O" and _examples(labels).keys() == {"dates"}
    return labels.astype("M8[us]") if is_of_dates else labels


def _as_array(values: Any) -> np.ndarray:
    """Convert labels to an array; text of variable width, numpy's StringDType, to objects."""
    labels = np.asarray(values)
    return labels.astype(object) if labels.dtype.kind == "T" else labels


def _examples(values: Any) -> dict[str, Any]:
    """Map each kind of label that occurs to one label of this kind."""
    labels = _as_array(values)
    if labels.dtype.kind in "US" and not hasattr(values, "dtype"):
        # numpy has converted the numbers of a mixed list to text.
        labels = np.asarray(values, dtype=object)
    if labels.size == 0:
        return {}
    if labels.dtype.kind != "O":
        kind = _KINDS.get(labels.dtype.kind, str(labels.dtype))
        return {kind: labels.ravel()[0].item()}
    elements = labels.ravel().tolist()
    of_types = dict(zip(map(type, reversed(elements)), reversed(elements), strict=True))
    return {_kind_of_type(kind): label for kind, label in reversed(of_types.items())}


def _kind_of_type(kind: type) -> str:
    # Before numbers, of which numpy takes its durations to be some.
    if issubclass(kind, (datetime.timedelta, np.timedelta64)):
        return "durations"
    if issubclass(kind, (Number, np.bool_)):
        return "numbers"
    if issubclass(kind, (datetime.date, np.datetime64)):
        return "dates"
    return "text" if issubclass(kind, str) else kind.__name__
