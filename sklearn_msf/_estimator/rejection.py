"""Rejection of uncertain predictions by a rule that is learned on calibration images."""

import datetime
import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np

from sklearn_msf._estimator.parameters import Parameters, affecting
from sklearn_msf._estimator.risk_target import checked_target
from sklearn_msf._evaluation.labels import has_finer_unit, is_missing
from sklearn_msf.model.uncertainty import UNCERTAINTIES
from sklearn_msf.nn.precision import PRECISIONS
from sklearn_msf.persistence.archives import UNEXPECTED_VALUE_ERRORS, ArchiveError
from sklearn_msf.persistence.json_data import from_plain, to_plain
from sklearn_msf.runtime.user_warnings import warn_user
from sklearn_msf.selective import accept_most_certain

__all__ = [
    "RejectionRule",
    "check_reject_label",
    "check_rule",
    "mark_rejected",
    "prediction_parameters",
    "rejects",
    "warn_of_precision",
]

_DEFAULT_COVERAGE = 0.9
# Types that a reject label may have, by the kind of the dtype of the classes.
_SAME_TYPES: dict[str, tuple[type, ...]] = {
    "i": (Integral,),
    "u": (Integral,),
    "f": (Real,),
    "M": (np.datetime64, datetime.date),
    "m": (np.timedelta64, datetime.timedelta),
}


@dataclass(frozen=True)
class RejectionRule:
    """Rule that rejects predictions above a threshold of uncertainty.

    Attributes
    ----------
    threshold : float or None
        Accept a prediction if its uncertainty is at most this. None accepts no prediction: no
        threshold could be certified.
    kind : str
        Kind of the uncertainty.
    settings : dict
        Parameters of prediction with which the threshold was learned, as plain data.
    target_risk : float, dict or None
        Fraction of wrong answers, or mean cost, that is allowed among the answers given. Or, for
        each label of the dict, the fraction of its images that may be answered wrongly. This and
        what follows make the certificate one that can be checked later; None in rules of older
        files.
    confidence : float or None
        Probability that the risk is kept to, over the choice of calibration images.
    cost_matrix : tuple of tuples of float, or None
        Cost of each answer (columns) for the images of each class (rows), if a mean cost is
        bounded.
    confusion_matrix : tuple of tuples of int, or None
        Calibration images that count, by class (rows) and by answer under this rule (columns, the
        last one for rejected images), as of
        :func:`~sklearn_msf.selective.confusion_matrix_with_reject`.
    precision : {"float32", "bfloat16"} or None
        Precision in which the uncertainties were computed; None in rules of older files.
    """

    threshold: float | None
    kind: str
    settings: dict[str, Any]
    target_risk: float | dict[Any, float] | None = None
    confidence: float | None = None
    cost_matrix: tuple[tuple[float, ...], ...] | None = None
    confusion_matrix: tuple[tuple[int, ...], ...] | None = None
    precision: str | None = None

    @property
    def n_images(self) -> int | None:
        """Number of calibration images that count."""
        return None if self.confusion_matrix is None else sum(map(sum, self.confusion_matrix))

    @property
    def n_accepted(self) -> int | None:
        """Number of these images that the rule accepts."""
        if self.confusion_matrix is None:
            return None
        return sum(sum(row[:-1]) for row in self.confusion_matrix)

    @property
    def n_wrong(self) -> int | None:
        """Number of accepted images that are answered wrongly."""
        if self.confusion_matrix is None:
            return None
        return sum(sum(row[:-1]) - row[i] for i, row in enumerate(self.confusion_matrix))

    def to_plain(self) -> dict[str, Any]:
        """Turn the rule into data that JSON can hold; the settings are plain already."""
        return {n: v if n == "settings" else to_plain(v) for n, v in vars(self).items()}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any], classes: np.ndarray) -> "RejectionRule":
        """Read the output of :meth:`to_plain`; older files have no certificate.

        Raises
        ------
        ArchiveError
            For a rule that cannot have been learned with these classes.
        """
        threshold, kind, settings = plain["threshold"], plain["kind"], plain["settings"]
        precision = plain.get("precision")
        certified = threshold is None or (type(threshold) is float and math.isfinite(threshold))
        known = kind in UNCERTAINTIES and precision in (None, *PRECISIONS)
        if not certified or not known or not isinstance(settings, dict):
            raise ArchiveError(f"The model has an invalid rejection rule: {plain!r}.")
        certificate = _certificate(plain, classes)
        return cls(threshold, kind, settings, precision=precision, **certificate)


def _certificate(plain: Mapping[str, Any], classes: np.ndarray) -> dict[str, Any]:
    """Read what a certificate can be checked by; None in files of older versions."""
    target, confidence, costs, counts = (
        from_plain(plain.get(name))
        for name in ("target_risk", "confidence", "cost_matrix", "confusion_matrix")
    )
    if target is None and confidence is None and costs is None and counts is None:
        return {}
    try:
        checked = checked_target(target, confidence, costs, classes)
        valid = counts is None or _are_counts(counts, len(classes))
    except UNEXPECTED_VALUE_ERRORS:
        valid = False
    if not valid:
        raise ArchiveError(f"The model has an invalid rejection rule: {plain!r}.")
    return {
        "target_risk": checked.risk,
        "confidence": checked.confidence,
        "cost_matrix": costs,
        "confusion_matrix": counts,
    }


def _are_counts(matrix: Any, n_classes: int) -> bool:
    """Tell whether a value is a confusion matrix with a column of rejected images."""
    rows = matrix if isinstance(matrix, tuple) else ()
    shaped = len(rows) == n_classes and all(
        isinstance(row, tuple) and len(row) == n_classes + 1 for row in rows
    )
    return shaped and all(type(n) is int and n >= 0 for row in rows for n in row)


def prediction_parameters(p: Parameters) -> dict[str, Any]:
    """Return the parameters on which uncertainties depend, as plain data."""
    values = vars(p)
    return {name: to_plain(values[name]) for name in affecting("prediction") if name in values}


def check_rule(rule: RejectionRule, kind: Any, settings: dict[str, Any]) -> None:
    """Refuse a rule that was learned for another kind or with other parameters of prediction."""
    if kind not in (None, rule.kind):
        raise ValueError(
            f"kind={kind!r} is not that of the threshold, {rule.kind!r}: leave it "
            "out, set coverage, or call fit_reject with it."
        )
    for name, value in settings.items():
        before = rule.settings.get(name)
        if name == "precision" and value == rule.precision:
            # What "auto" was.
            continue
        if value != before:
            raise ValueError(
                f"{name}={value!r} was {before!r} when fit_reject learned its threshold: set "
                "it back, or call fit_reject again."
            )


def warn_of_precision(rule: RejectionRule, precision: str) -> None:
    """Warn where the uncertainties of a rule were computed in another precision than this one.

    ``precision="auto"`` depends on the machine, so a model that is moved may compute in another
    one, and images near the threshold may be decided otherwise.
    """
    if rule.precision not in (None, precision):
        warn_user(
            f"fit_reject computed in {rule.precision}, and this machine computes in {precision}: "
            "images near the threshold may be decided otherwise, and what fit_reject promised is "
            "not proved here. Call fit_reject again on this machine."
        )


def rejects(
    uncertainty: np.ndarray, rule: RejectionRule | None, coverage: float | None
) -> np.ndarray:
    """Tell which images to reject: those above the threshold of a rule, or all but a fraction.

    An image whose uncertainty is not finite, as of a network whose values overflow, is rejected by
    every rule, and counts as the least certain one for a coverage.
    """
    known = np.isfinite(uncertainty)
    if rule is None:
        last = np.where(known, uncertainty, np.finfo(np.float64).max)
        return ~(
            accept_most_certain(last, _DEFAULT_COVERAGE if coverage is None else coverage) & known
        )
    if rule.threshold is None:
        return np.ones(len(uncertainty), dtype=bool)
    # Not ">", which is false for NaN.
    return ~(known & (uncertainty <= rule.threshold))


def mark_rejected(labels: np.ndarray, rejected: np.ndarray, reject_label: Any) -> Any:
    """Mask rejected labels, or replace them by `reject_label`."""
    if reject_label is None:
        # Labels that are assigned end the mask there, which the caller's array is not to share.
        return np.ma.MaskedArray(labels, mask=rejected.copy())
    # As an array with its own dtype, because unsigned labels cannot hold -1.
    kind = labels.dtype.kind
    sentinel = _as_date(reject_label, kind) if kind in "mM" else np.asarray(reject_label)
    common = np.result_type(sentinel, labels)
    if kind in "iu" and common.kind == "f":
        # No integer dtype can hold both.
        common = np.dtype(object)
    return np.where(rejected, sentinel.astype(common), labels.astype(common))


def check_reject_label(label: Any, classes: np.ndarray) -> None:
    """Refuse a label for rejected images that is a class or of another type."""
    known = classes.tolist()
    types = _SAME_TYPES.get(classes.dtype.kind, tuple({type(c) for c in known}))
    if classes.dtype.kind == "b":
        raise ValueError(
            f"reject_label={label!r}: boolean classes leave no label for rejected rows; use "
            "the masked array, or return_mask=True."
        )
    truth = isinstance(label, (bool, np.bool_)) and bool not in types
    if np.ndim(label) != 0 or not isinstance(label, types) or truth:
        raise ValueError(
            f"reject_label={label!r} must be a label of the type of the classes {known}; "
            "without one rejected rows are masked."
        )
    is_known = _is_known_date(label, classes) if classes.dtype.kind in "mM" else label in known
    if is_known:
        raise ValueError(f"reject_label={label!r} is one of the classes {known}: choose another.")


def _as_date(label: Any, kind: str) -> np.ndarray:
    """Convert a date, "M", or a duration, "m", in no finer unit than the classes have."""
    if is_missing(label):
        return np.array("NaT", f"{kind}8[us]")
    value = np.asarray(label, f"{kind}8")
    # numpy counts nanoseconds from 1678 to 2262, and beyond begins anew in silence.
    return value.astype(f"{kind}8[us]") if has_finer_unit(value.dtype) else value


def _is_known_date(label: Any, classes: np.ndarray) -> bool:
    """Tell whether a date is one of the classes; refuse one that no dtype holds beside them."""
    try:
        value = _as_date(label, classes.dtype.kind)
        common = np.result_type(value, classes)
        kept = [array.astype(common).astype(array.dtype) == array for array in (value, classes)]
        holds_both = np.isnat(value) or all(same.all() for same in kept)
    except TypeError:  # Years and months have no number of days.
        holds_both = False
    if not holds_both:
        raise ValueError(
            f"reject_label={label!r} and the classes, {classes.dtype}, have no common unit of "
            "time: give it in theirs, and near them."
        )
    return bool((value == classes).any())
