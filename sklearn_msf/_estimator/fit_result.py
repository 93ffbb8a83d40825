"""What a fit gives: a model, its history, and the state that a later fit needs to continue it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sklearn_msf._estimator.data_validation import OF_FEATURES
from sklearn_msf._estimator.restoring import integer_from_plain
from sklearn_msf.model.fitted_model import FittedModel
from sklearn_msf.persistence.archives import ArchiveError
from sklearn_msf.persistence.json_data import is_finite_number
from sklearn_msf.training.epoch_logs import count_images_of_image_branch
from sklearn_msf.training.optimizer import OPTIMIZERS
from sklearn_msf.training.state import TrainingState

__all__ = ["Continuation", "FitResult"]


@dataclass(frozen=True)
class Continuation:
    """State, besides the model, that a later fit needs to continue this one.

    Attributes
    ----------
    optimizer : str or None
        Optimizer that has trained the field so far; None if unknown, as in older files.
    n_continued : int
        How many times training was continued.
    training_state : TrainingState or None
        Weights, averages and moments; None if they were not kept.
    origin : object
        State that the preparation of the images needs.
    n_images_before : float, default=0.0
        Number of images that the image branch has learned from before the history begins, as
        :func:`~sklearn_msf.training.epoch_logs.count_images_of_image_branch` counts them.
    split_seed : int or None, default=None
        Seed by which early stopping held out images; None if it held out none.
    split_of : str, default=""
        Digest of what it was split by that seed; empty if the model was trained on others too.
    lacks_epochs : bool, default=False
        Whether the history is that of the last of several calls of fit alone.
    n_images_unused : float, default=0.0
        Number of images in the history from which the image branch had learned, and whose epochs
        early stopping did not keep.
    n_steps_before : int, default=0
        Steps before those of `training_state`, over all of which samples at t = 1 are spread.
    """

    optimizer: str | None
    n_continued: int
    training_state: TrainingState | None
    origin: Any
    n_images_before: float = 0.0
    split_seed: int | None = None
    split_of: str = ""
    lacks_epochs: bool = False
    n_images_unused: float = 0.0
    n_steps_before: int = 0

    def to_plain(self) -> dict[str, Any]:
        """Return what files hold: all but the moments."""
        return {
            "optimizer": self.optimizer,
            "origin": None if self.origin is None else self.origin.to_plain(),
            "n_continued": self.n_continued,
            "n_images_before": self.n_images_before,
            "split_seed": self.split_seed,
            "split_of": self.split_of,
            "lacks_epochs": self.lacks_epochs,
            "n_images_unused": self.n_images_unused,
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any], origin: Any) -> "Continuation":
        """Read the output of :meth:`to_plain`, of which older files lack some entries.

        Raises
        ------
        ArchiveError
            For entries that no fit writes.
        """
        split_seed, split_of = plain.get("split_seed"), plain.get("split_of", "")
        if not isinstance(split_of, str):
            raise ArchiveError(f"The model has split_of={split_of!r}; expected a digest.")
        optimizer = plain.get("optimizer")
        if optimizer not in (None, *OPTIMIZERS):
            expected = f"expected one of {OPTIMIZERS}"
            raise ArchiveError(f"The model has optimizer={optimizer!r}; {expected}.")
        return cls(
            optimizer=optimizer,
            n_continued=integer_from_plain("n_continued", plain["n_continued"]),
            training_state=None,
            origin=origin,
            n_images_before=_number_from_plain(plain, "n_images_before"),
            split_seed=None if split_seed is None else integer_from_plain("split_seed", split_seed),
            split_of=split_of,
            lacks_epochs=bool(plain.get("lacks_epochs", False)),
            n_images_unused=_number_from_plain(plain, "n_images_unused"),
        )


def _number_from_plain(plain: Mapping[str, Any], name: str) -> float:
    """Read a number of images, which older files lack."""
    n_images = plain.get(name, 0.0)
    if not is_finite_number(n_images) or n_images < 0:
        raise ArchiveError(f"The model has {name}={n_images!r}; expected a number >= 0.")
    return float(n_images)


@dataclass(frozen=True)
class FitResult:
    """Result of a fit: the model, its history, and what a later fit needs.

    Attributes
    ----------
    model : FittedModel
        The model for predictions.
    history : list of dict
        Log of each epoch.
    continuation : Continuation
        State for a later fit that continues this one.
    features : dict
        Fitted attributes of scikit-learn about the columns of X.
    """

    model: FittedModel
    history: list[dict[str, Any]]
    continuation: Continuation
    features: dict[str, Any]

    @property
    def n_images_of_image_branch(self) -> float:
        """Number of images that the image branch has learned from, repeated ones included."""
        of_history = count_images_of_image_branch(self.history)
        of_history = max(0.0, of_history - self.continuation.n_images_unused)
        return self.continuation.n_images_before + of_history

    def attributes(self) -> dict[str, Any]:
        """Return the fitted attributes of the estimator."""
        return {
            **self.features,
            "model_": self.model,
            "image_shape_": self.model.image_format.shape,
            "history_": self.history,
            "n_iter_": len(self.history),
            "_continuation": self.continuation,
        }

    @classmethod
    def from_attributes(cls, attributes: Mapping[str, Any]) -> "FitResult | None":
        """Collect the result of a fit from the attributes of an estimator; None before a fit."""
        if "model_" not in attributes:
            return None
        features = {name: attributes[name] for name in OF_FEATURES if name in attributes}
        model, history = attributes["model_"], attributes["history_"]
        return cls(model, history, attributes["_continuation"], features)
