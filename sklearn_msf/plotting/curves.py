"""Displays of accuracy and risk when uncertain predictions are rejected."""

from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from sklearn_msf.plotting.pyplot import pyplot_for
from sklearn_msf.selective import (
    accuracy_rejection_curve,
    aurc,
    errors_of,
    risk_coverage_curve,
    uncertainty_of,
)

__all__ = ["AccuracyRejectionDisplay", "RiskCoverageDisplay"]

Display = TypeVar("Display", bound="_CurveDisplay")
# Points of the curve within a tie of all samples.
_POINTS_OF_A_TIE = 100


class _CurveDisplay:
    """Base of displays of a curve that is computed from predictions and their uncertainties."""

    name: str | None
    aurc: float | None
    _labels: tuple[str, str]

    def _points(self) -> tuple[np.ndarray, np.ndarray]:
        raise NotImplementedError

    def plot(self: Display, ax: Any = None, *, name: str | None = None, **kwargs: Any) -> Display:
        """Plot the curve.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to plot on; None makes a new figure.
        name : str, default=None
            Name in the legend; None is the name of the display.
        **kwargs : dict
            Arguments of matplotlib's `plot`.

        Returns
        -------
        self : object
            The display, with `ax_`, `figure_` and `line_`.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        """
        if ax is None:
            _, ax = pyplot_for(type(self)).subplots()
        name = self.name if name is None else name
        area = None if self.aurc is None else f"AURC = {self.aurc:.3f}"
        label = f"{name} ({area})" if name and area else name or area
        line_kwargs = {"label": label, **kwargs} if label else kwargs
        x, y = self._points()
        (self.line_,) = ax.plot(x, y, **line_kwargs)
        ax.set(xlabel=self._labels[0], ylabel=self._labels[1], xlim=(-0.01, 1.01))
        if label:
            ax.legend()
        self.ax_, self.figure_ = ax, ax.figure
        return self

    @classmethod
    def from_estimator(
        cls: type[Display],
        estimator: Any,
        X: Any,
        y: ArrayLike,
        *,
        sample_weight: ArrayLike | None = None,
        name: str | None = None,
        ax: Any = None,
        **kwargs: Any,
    ) -> Display:
        """Plot the curve of a fitted classifier.

        The uncertainty is the result of its `predict_uncertainty`. For a classifier without this
        method it is 1 - max p.

        Parameters
        ----------
        estimator : object
            Fitted classifier.
        X : array-like
            Samples that the classifier accepts.
        y : array-like of shape (n,)
            Labels.
        sample_weight : array-like of shape (n,), default=None
            Weights.
        name : str, default=None
            Name in the legend; None is the name of the estimator's class.
        ax : matplotlib Axes, default=None
            Axes to plot on; None makes a new figure.
        **kwargs : dict
            Arguments of matplotlib's `plot`.

        Returns
        -------
        display : object

        Raises
        ------
        ValueError
            For labels of another kind or number than the predictions, and as the methods of the
            estimator.
        ImportError
            If matplotlib is not installed.
        """
        # Before the slow predictions.
        pyplot_for(cls)
        return cls.from_predictions(
            y,
            estimator.predict(X),
            uncertainty_of(estimator, X),
            sample_weight=sample_weight,
            name=type(estimator).__name__ if name is None else name,
            ax=ax,
            **kwargs,
        )

    @classmethod
    def from_predictions(
        cls: type[Display],
        y_true: ArrayLike,
        y_pred: ArrayLike,
        uncertainty: ArrayLike,
        *,
        sample_weight: ArrayLike | None = None,
        name: str | None = None,
        ax: Any = None,
        **kwargs: Any,
    ) -> Display:
        """Plot the curve of predictions.

        Parameters
        ----------
        y_true, y_pred : array-like of shape (n,)
            Labels and predictions.
        uncertainty : array-like of shape (n,)
            Uncertainty of each prediction; lower is more certain.
        sample_weight : array-like of shape (n,), default=None
            Weights.
        name : str, default=None
            Name in the legend.
        ax : matplotlib Axes, default=None
            Axes to plot on; None makes a new figure.
        **kwargs : dict
            Arguments of matplotlib's `plot`.

        Returns
        -------
        display : object
        """
        area = aurc(errors_of(y_true, y_pred), uncertainty, sample_weight=sample_weight)
        # Subclasses have their own constructor arguments, so mypy cannot check the call.
        make: Any = cls
        display: Display = make(
            **cls._values(y_true, y_pred, uncertainty, sample_weight), name=name, aurc=area
        )
        return display.plot(ax=ax, **kwargs)

    @staticmethod
    def _values(
        y_true: ArrayLike,
        y_pred: ArrayLike,
        uncertainty: ArrayLike,
        sample_weight: ArrayLike | None,
    ) -> dict[str, np.ndarray]:
        """Compute the curve, as arguments of the constructor."""
        raise NotImplementedError


class AccuracyRejectionDisplay(_CurveDisplay):
    """Accuracy of the accepted samples against the rejected fraction (paper, Figure 2).

    Make a display by :meth:`from_estimator` or :meth:`from_predictions`. To compare several curves,
    plot them on the same `ax`.

    Parameters
    ----------
    rejection : ndarray of shape (n,)
        Rejected fraction of the samples.
    accuracy : ndarray of shape (n,)
        Accuracy among the accepted samples.
    name : str, default=None
        Name in the legend.
    aurc : float, default=None
        Area under the risk-coverage curve, for the legend.

    Attributes
    ----------
    ax_, figure_, line_ : matplotlib objects
        Axes, figure and curve; set by :meth:`plot`.

    Examples
    --------
    >>> from sklearn_msf.plotting import AccuracyRejectionDisplay
    >>> display = AccuracyRejectionDisplay.from_predictions(
    ...     [0, 0, 1, 1], [0, 1, 1, 1], uncertainty=[0.3, 0.4, 0.1, 0.2]
    ... )
    >>> display.accuracy[display.rejection >= 0.25].tolist()
    [1.0, 1.0, 1.0]
    """

    _labels = "Rejected fraction", "Accuracy of the accepted"

    def __init__(
        self,
        *,
        rejection: np.ndarray,
        accuracy: np.ndarray,
        name: str | None = None,
        aurc: float | None = None,
    ):
        self.rejection = rejection
        self.accuracy = accuracy
        self.name = name
        self.aurc = aurc

    def _points(self) -> tuple[np.ndarray, np.ndarray]:
        return self.rejection, self.accuracy

    @staticmethod
    def _values(
        y_true: ArrayLike,
        y_pred: ArrayLike,
        uncertainty: ArrayLike,
        sample_weight: ArrayLike | None,
    ) -> dict[str, np.ndarray]:
        curve = accuracy_rejection_curve(y_true, y_pred, uncertainty, sample_weight=sample_weight)
        return {"rejection": 1 - curve.coverage, "accuracy": curve.accuracy}


class RiskCoverageDisplay(_CurveDisplay):
    """Error rate of the accepted samples against the accepted fraction.

    Make a display by :meth:`from_estimator` or :meth:`from_predictions`. To compare several curves,
    plot them on the same `ax`.

    Parameters
    ----------
    coverage : ndarray of shape (m,)
        Accepted fraction of the samples.
    risk : ndarray of shape (m,)
        Fraction of errors among the accepted samples.
    name : str, default=None
        Name in the legend.
    aurc : float, default=None
        Area under the curve, for the legend.

    Attributes
    ----------
    ax_, figure_, line_ : matplotlib objects
        Axes, figure and curve; set by :meth:`plot`.

    Examples
    --------
    >>> from sklearn_msf.plotting import RiskCoverageDisplay
    >>> display = RiskCoverageDisplay.from_predictions(
    ...     [0, 0, 1, 1], [0, 1, 1, 1], uncertainty=[0.3, 0.4, 0.1, 0.2]
    ... )
    >>> display.risk.tolist()
    [0.0, 0.0, 0.0, 0.25]
    """

    _labels = "Coverage", "Selective risk"

    def __init__(
        self,
        *,
        coverage: np.ndarray,
        risk: np.ndarray,
        name: str | None = None,
        aurc: float | None = None,
    ):
        self.coverage = coverage
        self.risk = risk
        self.name = name
        self.aurc = aurc

    def _points(self) -> tuple[np.ndarray, np.ndarray]:
        # Up to the first threshold the samples have one uncertainty, and so one risk. Within later
        # ties the errors grow evenly with the coverage, so that their ratio, the risk, is no line.
        given, risk = np.asarray(self.coverage, float), np.asarray(self.risk, float)
        grid = np.arange(1, _POINTS_OF_A_TIE) / _POINTS_OF_A_TIE
        coverage = np.union1d(given, grid[(grid > given[0]) & (grid < given[-1])])
        lost = np.interp(coverage, np.r_[0.0, given], np.r_[0.0, given * risk])
        return np.r_[0.0, coverage], np.r_[risk[:1], lost / coverage]

    @staticmethod
    def _values(
        y_true: ArrayLike,
        y_pred: ArrayLike,
        uncertainty: ArrayLike,
        sample_weight: ArrayLike | None,
    ) -> dict[str, np.ndarray]:
        errors = errors_of(y_true, y_pred)
        curve = risk_coverage_curve(errors, uncertainty, sample_weight=sample_weight)
        return {"coverage": curve.coverage, "risk": curve.risk}
