"""What a fitted MedSymmFlow estimator does about its doubts: abstain."""

import warnings
from numbers import Integral, Real
from typing import Any

import numpy as np

from sklearn_msf._estimator.prediction import PredictingEstimator
from sklearn_msf._evaluation.risk_control import certified_threshold, count_rows_to_certify
from sklearn_msf._evaluation.validation import check_share
from sklearn_msf.model.uncertainty import UNCERTAINTIES
from sklearn_msf.persistence.json_data import to_plain
from sklearn_msf.selective import accept_most_certain

__all__ = ["RejectingEstimator"]

_DEFAULT_COVERAGE = 0.9
# Types of a label by the kind of the classes' dtype.
_SAME_TYPES: dict[str, tuple[type, ...]] = {
    "i": (Integral,),
    "u": (Integral,),
    "f": (Real,),
}


class RejectingEstimator(PredictingEstimator):
    """Answers only where it is certain enough."""

    # What fit_reject learns.
    reject_threshold_: float | None
    reject_kind_: str
    _reject_settings: dict[str, Any]

    def fit_reject(
        self,
        X_cal: Any,
        y_cal: Any,
        *,
        target_risk: float = 0.05,
        confidence: float = 0.95,
        kind: str = "margin",
    ) -> "RejectingEstimator":
        """Learn from which uncertainty on to abstain, so that a risk holds.

        The threshold that answers most among those whose share of errors is certified, see
        :func:`~sklearn_msf.selective.certified_threshold`: on new images drawn as those of
        the calibration were, the error rate of the answers is at most `target_risk`, but for a
        share 1 - `confidence` of calibrations. The images must be independent: of a patient
        with several take one, and for each of several kinds or targets that are tried others.
        `fit` and `partial_fit` forget the threshold.

        Parameters
        ----------
        X_cal : array-like of shape (n, H, W), (n, H, W, C) or (n, n_features)
            Images that fit did not see.
        y_cal : array-like of shape (n,) or (n, 1)
            Their labels, two or more of `classes_`.
        target_risk : float, default=0.05
            Share of the answers that may be wrong, in (0, 1).
        confidence : float, default=0.95
            In (0, 1).
        kind : {"margin", "entropy", "distance", "draws", "image"}, default="margin"
            Uncertainty to compare with the threshold, see :meth:`predict_uncertainty`.

        Returns
        -------
        self : object
            With `reject_threshold_`, and with a warning where no threshold can be certified:
            it is None then, and :meth:`predict_with_reject` abstains always.

        Raises
        ------
        ValueError
            For a target or a confidence outside (0, 1), for labels of one class or of one that
            fit did not see, for so few images that nothing could be certified even if every
            answer was right, and where every answer is right, as on images that training saw.
        """
        check_share("target_risk", target_risk)
        check_share("confidence", confidence)
        self._check_kind(kind)
        inputs = self._checked_inputs(X_cal)
        y_cal = self._checked_calibration_labels(y_cal, len(inputs))
        targets = {"target_risk": target_risk, "confidence": confidence}
        n_needed = count_rows_to_certify(**targets)
        if len(inputs) < n_needed:
            raise ValueError(
                f"X_cal has {len(inputs)} images; target_risk={target_risk} at "
                f"confidence={confidence} takes {n_needed} even where every answer is right. "
                "Take more, or ask for less."
            )
        prediction = self._predict_inputs(inputs, kind)
        errors = self._labels(prediction) != y_cal
        if not errors.any():
            raise ValueError(
                f"y_cal has {len(errors)} labels and no answer on X_cal is wrong, as on images "
                "that training saw: calibrate on others, or on more. A classifier that makes no "
                "errors needs no threshold: coverage=1.0 answers always."
            )
        uncertainty = UNCERTAINTIES[kind](prediction)
        threshold = certified_threshold(errors, uncertainty, **targets)
        if threshold is None:
            warnings.warn(
                f"None can be certified: no threshold of the {kind} keeps to "
                f"target_risk={target_risk} at confidence={confidence} on these {len(errors)} "
                "images. predict_with_reject abstains always.",
                stacklevel=2,
            )
        self.reject_threshold_, self.reject_kind_ = threshold, kind
        self._reject_settings = self._decision_settings()
        return self

    def predict_with_reject(
        self,
        X: Any,
        coverage: float | None = None,
        *,
        kind: str | None = None,
        reject_label: Any = None,
        return_mask: bool = False,
    ) -> Any:
        """Answer where the prediction is certain enough and abstain elsewhere.

        Parameters
        ----------
        X : array-like of shape (n, H, W), (n, H, W, C) or (n, n_features)
            Images as in :meth:`fit`.
        coverage : float, default=None
            Share of X to answer, in (0, 1]: exactly floor(coverage * n) rows, at least one,
            the most certain ones, of rows that tie the earlier ones (paper, section 4.4). None
            answers up to the threshold of :meth:`fit_reject`, for which it is no matter what
            else is in X; where that was not called it is 0.9.
        kind : {"margin", "entropy", "distance", "draws", "image"}, default=None
            Uncertainty that decides, see :meth:`predict_uncertainty`. None is that of
            :meth:`fit_reject`, or "margin" where that was not called.
        reject_label : label, default=None
            Stands for a rejected row; of the type of the labels, and none of them.
        return_mask : bool, default=False
            Whether to return also which rows are rejected.

        Returns
        -------
        labels : numpy.ma.MaskedArray of shape (n,), or ndarray where `reject_label` is given
            Labels; of the rejected rows masked, or `reject_label`. What makes a plain array of
            a masked one, as metrics do, takes the mask off: give them
            ``labels.compressed()`` and the rows ``~labels.mask``.
        rejected : ndarray of shape (n,), bool
            Only with ``return_mask=True``.

        Raises
        ------
        ValueError
            For a `reject_label` that is a class or of another type, for a coverage outside
            (0, 1], for another `kind` than that of the threshold that is asked for, and where
            `n_draws` or another parameter of predictions has changed since :meth:`fit_reject`.
        """
        if coverage is not None:
            check_share("coverage", coverage, includes_one=True)
        self._check_fitted()
        if reject_label is not None:
            self._check_reject_label(reject_label)
        certified = coverage is None and hasattr(self, "reject_threshold_")
        if certified:
            self._check_threshold(kind)
        if kind is None:
            kind = getattr(self, "reject_kind_", "margin")
        prediction = self._predict(X, kind)
        uncertainty = UNCERTAINTIES[kind](prediction)
        if certified:
            threshold = -np.inf if self.reject_threshold_ is None else self.reject_threshold_
            rejected = uncertainty > threshold
        else:
            share = _DEFAULT_COVERAGE if coverage is None else coverage
            rejected = ~accept_most_certain(uncertainty, share)
        labels: Any = self._labels(prediction)
        if reject_label is None:
            labels = np.ma.MaskedArray(labels, mask=rejected)
        else:
            # As an array: a plain -1 would not fit beside unsigned labels.
            sentinel = np.asarray(reject_label)
            common = np.result_type(sentinel, labels)
            if labels.dtype.kind in "iu" and common.kind == "f":
                # No integer type holds both.
                common = np.dtype(object)
            labels = np.where(rejected, sentinel.astype(common), labels.astype(common))
        return (labels, rejected) if return_mask else labels

    def _forget_rejection(self) -> None:
        """Drop a threshold that belongs to another field."""
        for name in ("reject_threshold_", "reject_kind_", "_reject_settings"):
            self.__dict__.pop(name, None)

    def _decision_settings(self) -> dict[str, Any]:
        """Parameters on which uncertainties depend, as plain data."""
        names = ("n_draws", "n_steps", "ode_solver", "precision", "label_decoding")
        return {name: to_plain(getattr(self, name)) for name in names if hasattr(self, name)}

    def _check_threshold(self, kind: Any) -> None:
        """Refuse to use the threshold for other uncertainties than it was learned for."""
        if kind not in (None, self.reject_kind_):
            raise ValueError(
                f"kind={kind!r} is not that of the threshold, {self.reject_kind_!r}: leave it "
                "out, set coverage, or call fit_reject with it."
            )
        for name, value in self._decision_settings().items():
            before = self._reject_settings.get(name)
            if value != before:
                raise ValueError(
                    f"{name}={value!r} was {before!r} when fit_reject learned its threshold: set "
                    "it back, or call fit_reject again."
                )

    def _checked_calibration_labels(self, y: Any, n_rows: int) -> np.ndarray:
        y = np.asarray(y)
        if y.shape not in ((n_rows,), (n_rows, 1)):
            raise ValueError(f"y_cal must be of shape ({n_rows},), as X_cal; got {y.shape}.")
        y = y.ravel()
        unknown = sorted(set(y.tolist()) - set(self.classes_.tolist()), key=str)
        if unknown:
            raise ValueError(
                f"y_cal has labels {unknown} that are not among the classes "
                f"{self.classes_.tolist()}: leave their images out, or fit with them."
            )
        if len(np.unique(y)) < 2:
            raise ValueError(
                f"y_cal has the one class {y.tolist()[0]!r}: the risk on it says nothing of the "
                "others. Calibrate on images drawn as those to come."
            )
        return y

    def _check_reject_label(self, label: Any) -> None:
        classes = self.classes_.tolist()
        types = _SAME_TYPES.get(self.classes_.dtype.kind, tuple({type(c) for c in classes}))
        if self.classes_.dtype.kind == "b":
            raise ValueError(
                f"reject_label={label!r}: boolean classes leave no label for rejected rows; use "
                "the masked array, or return_mask=True."
            )
        truth = isinstance(label, (bool, np.bool_)) and bool not in types
        if np.ndim(label) != 0 or not isinstance(label, types) or truth:
            raise ValueError(
                f"reject_label={label!r} must be a label of the type of the classes {classes}; "
                "without one rejected rows are masked."
            )
        if label in classes:
            raise ValueError(
                f"reject_label={label!r} is one of the classes {classes}: choose another."
            )
