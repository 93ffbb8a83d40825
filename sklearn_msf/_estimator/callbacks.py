"""Support of scikit-learn's callbacks (1.9 and later), called at every epoch."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from sklearn.base import BaseEstimator

from sklearn_msf.training.trainer import Trainer

if TYPE_CHECKING:
    # scikit-learn has no types: those of a decorated method would be lost.
    Method = TypeVar("Method", bound=Callable[..., Any])

    class CallbackSupportMixin: ...

    def with_callbacks(method: Method) -> Method: ...
else:
    try:
        from sklearn.callback import CallbackSupportMixin, with_callbacks
    except ImportError:  # scikit-learn before 1.9

        class CallbackSupportMixin:
            """Replacement in versions of scikit-learn without callbacks."""

        def with_callbacks(method):
            """Return the method unchanged."""
            return method


__all__ = [
    "CallbackSupportMixin",
    "FitCallbacks",
    "all_or_nothing",
    "is_in_a_fit",
    "with_callbacks",
    "without_fit_context",
]

# Attributes in which scikit-learn keeps the callbacks of a fit; scikit-learn removes them itself,
# from the estimator but not from its copies.
_CONTEXT, _TO_TEARDOWN = "_callback_fit_ctx", "_skl_callbacks_to_teardown"
# And that of the fit of a pipeline or search around it.
_OF_PARENT, _CALLBACKS = "_parent_callback_ctx", "_skl_callbacks"


def is_in_a_fit(estimator: BaseEstimator) -> bool:
    """Tell whether scikit-learn's callbacks accompany a fit of the estimator now."""
    return _CONTEXT in vars(estimator)


def without_fit_context(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attributes that a copy may have, which is in no fit."""
    of_fit = (_CONTEXT, _TO_TEARDOWN, _OF_PARENT)
    kept = {name: value for name, value in attributes.items() if name not in of_fit}
    # Those of the pipeline or search, which scikit-learn adds to the estimator for its fit.
    added = getattr(attributes.get(_OF_PARENT), "_propagated_callbacks", [])
    if added:
        own = [each for each in kept.pop(_CALLBACKS, []) if not any(each is one for one in added)]
        kept |= {_CALLBACKS: own} if own else {}
    return kept


@contextmanager
def all_or_nothing(estimator: BaseEstimator) -> Iterator[None]:
    """Restore the attributes of the estimator if fitting fails."""
    before = dict(vars(estimator))
    try:
        yield
    except BaseException:
        # scikit-learn still needs these to tell the callbacks that fit has ended.
        of_callbacks = (_CONTEXT, _TO_TEARDOWN)
        kept = {key: value for key, value in vars(estimator).items() if key in of_callbacks}
        estimator.__dict__ = before | kept
        raise


class FitCallbacks:
    """The callbacks of one fit.

    Parameters
    ----------
    estimator : BaseEstimator
        The estimator that is fitted.
    X, y, sample_weight : array-like
        Training data, as the user passed them.
    trainer : Trainer
        Trains the field of the estimator.
    attributes : callable
        Returns the fitted attributes with which the estimator can predict at that moment.
    """

    def __init__(
        self,
        estimator: BaseEstimator,
        X: Any,
        y: Any,
        sample_weight: Any,
        trainer: Trainer,
        attributes: Callable[[], dict[str, Any]],
    ):
        self._estimator = estimator
        self._attributes = attributes
        metadata = None if sample_weight is None else {"sample_weight": sample_weight}
        self._data = {"X": X, "y": y, "metadata": metadata}
        self._fit: Any = None
        self._epoch: Any = None
        if getattr(estimator, _CALLBACKS, None):
            self._fit = estimator._init_callback_context(max_subtasks=trainer.settings.max_epochs)
            self._fit.call_on_fit_task_begin(estimator=estimator, **self._data)

    @property
    def are_there(self) -> bool:
        """Whether the estimator has any callbacks."""
        return self._fit is not None

    def begin_epoch(self) -> None:
        """Tell the callbacks that an epoch begins; only once if the epoch is repeated."""
        if self._fit is not None and self._epoch is None:
            self._epoch = self._fit.subcontext(task_name="epoch")
            self._epoch.call_on_fit_task_begin(estimator=self._estimator, **self._data)

    def end_epoch(self) -> bool:
        """Tell the callbacks that the epoch has ended; True if one of them stops training."""
        if self._epoch is None:
            return False
        ended, self._epoch = self._epoch, None
        return bool(self._end(ended, self._attributes))

    def leave_epoch(self) -> None:
        """Forget the epoch: there was no time for it."""
        self._epoch = None

    def end(self, attributes: Callable[[], dict[str, Any]]) -> None:
        """Tell the callbacks that the fit has ended, with the fitted attributes of its end."""
        if self._fit is not None:
            # An interrupt can end training in the middle of an epoch.
            self.end_epoch()
            self._end(self._fit, attributes)

    def _end(self, context: Any, attributes: Callable[[], dict[str, Any]]) -> Any:
        return context.call_on_fit_task_end(
            estimator=self._estimator, reconstruction_attributes=attributes, **self._data
        )
