"""scikit-learn's callbacks (1.9 and later), told of every epoch."""

import copy
from typing import Any

from sklearn.base import BaseEstimator

from sklearn_msf.training.trainer import Trainer

try:
    from sklearn.callback import CallbackSupportMixin, with_callbacks
except ImportError:  # scikit-learn before 1.9

    class CallbackSupportMixin:  # type: ignore[no-redef]
        """Stands in where scikit-learn has no callbacks."""

    def with_callbacks(method: Any) -> Any:
        """Leave the method as it is."""
        return method


__all__ = ["CallbackSupportMixin", "FitCallbacks", "with_callbacks"]


class FitCallbacks:
    """The callbacks of one fit.

    Parameters
    ----------
    estimator : BaseEstimator
        The estimator that is fitted.
    X, y, sample_weight : array-like
        What it is fitted on, as the user gave it.
    trainer : Trainer
        Trains its field.
    """

    def __init__(
        self, estimator: BaseEstimator, X: Any, y: Any, sample_weight: Any, trainer: Trainer
    ):
        self._estimator = estimator
        self._trainer = trainer
        metadata = None if sample_weight is None else {"sample_weight": sample_weight}
        self._data = {"X": X, "y": y, "metadata": metadata}
        self._fit: Any = None
        self._epoch: Any = None
        if getattr(estimator, "_skl_callbacks", None):
            self._fit = estimator._init_callback_context(max_subtasks=trainer.settings.max_epochs)
            self._fit.call_on_fit_task_begin(estimator=estimator, **self._data)

    def begin_epoch(self) -> None:
        """Tell the callbacks of an epoch; once, where it has to be repeated."""
        if self._fit is not None and self._epoch is None:
            self._epoch = self._fit.subcontext(task_name="epoch")
            self._epoch.call_on_fit_task_begin(estimator=self._estimator, **self._data)

    def end_epoch(self) -> bool:
        """Tell the callbacks of its end; True where one of them ends training."""
        if self._epoch is None:
            return False
        ended, self._epoch = self._epoch, None
        return bool(self._end(ended))

    def end(self) -> None:
        """Tell the callbacks that training has ended."""
        if self._fit is not None:
            # An interrupt leaves an epoch open.
            self.end_epoch()
            self._end(self._fit)

    def _end(self, context: Any) -> Any:
        return context.call_on_fit_task_end(
            estimator=self._estimator, reconstruction_attributes=self._fitted, **self._data
        )

    def _fitted(self) -> dict[str, Any]:
        """Attributes with which the estimator is one that predicts."""
        history = list(self._trainer.history)
        return {
            "field_": copy.deepcopy(self._trainer.average),
            "history_": history,
            "n_iter_": len(history),
        }
