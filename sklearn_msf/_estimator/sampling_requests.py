"""Checks of what users ask of generated images, and of the field that generates them."""

from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from sklearn_msf._estimator.parameters import check_ode_solver, check_positive_integer
from sklearn_msf._evaluation.labels import label_indices
from sklearn_msf._evaluation.validation import is_number
from sklearn_msf.flow.ode_solver import OdeSettings
from sklearn_msf.model.fitted_model import FittedModel
from sklearn_msf.runtime.user_warnings import warn_user

__all__ = ["class_indices", "sampling_ode", "warn_of_few_images"]

# Default if the field learned unconditional samples; otherwise the default is 0.
_DEFAULT_GUIDANCE = 0.5
_MAX_GUIDANCE = 100
# Images that the image branch sees, repeated ones included, before it draws what was learned:
# so many of each class, and of images from some side on so many in all (docs/trials.md, "How many
# images before it draws").
_FEWEST_OF_A_CLASS = 4_000
_FEWEST, _SIDE_OF_FEWEST = 20_000, 16


def sampling_ode(model: FittedModel, n_steps: Any, ode_solver: Any, guidance: Any) -> OdeSettings:
    """Check the settings of sampling, and choose the guidance if it is None.

    Parameters
    ----------
    model : FittedModel
        The model that generates.
    n_steps, ode_solver, guidance :
        As in :meth:`MedSymmFlowClassifier.sample`.

    Returns
    -------
    OdeSettings
        Integration from t = 0 to 1.

    Raises
    ------
    ValueError
        For `n_steps` that is not a positive integer, an unknown solver, a guidance outside
        [0, 100], and a guidance above 0 if the field did not learn unconditional samples.
    """
    check_positive_integer("n_steps", n_steps)
    check_ode_solver(ode_solver)
    if guidance is None:
        guidance = _DEFAULT_GUIDANCE if model.generates_unconditionally else 0.0
    if not (is_number(guidance) and 0 <= guidance <= _MAX_GUIDANCE):
        raise ValueError(
            f"guidance must be a number in [0, {_MAX_GUIDANCE}] or None, got {guidance!r}."
        )
    if guidance and not model.generates_unconditionally:
        raise ValueError(
            f"guidance={guidance!r} needs a field that learned unconditional samples: fit with "
            "flow_params={'class_dropout': 0.1}, or pass guidance=0."
        )
    return OdeSettings(0.0, 1.0, int(n_steps), ode_solver, float(guidance))


def class_indices(name: str, labels: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Return the class index of each label; refuse labels that are not among the classes."""
    found = label_indices(labels, classes)
    unknown = labels[found < 0].tolist()
    if unknown:
        raise ValueError(
            f"{name} must be one or more of the classes {classes.tolist()}, got {unknown[0]!r}."
        )
    return found


def warn_of_few_images(model: FittedModel, n_images: float) -> None:
    """Warn if the image branch has seen too few images to generate new ones.

    Parameters
    ----------
    model : FittedModel
        The model that generates.
    n_images : float
        Number of images that its image branch has learned from, repeated ones included.
    """
    fewest = _FEWEST_OF_A_CLASS * len(model.classes)
    if min(model.image_format.size) >= _SIDE_OF_FEWEST:
        fewest = max(fewest, _FEWEST)
    if n_images < fewest:
        warn_user(
            f"The image branch has seen {n_images:,.0f} images, repeated ones included. With less "
            f"than about {fewest:,} it mostly generates blotches: train for longer (max_epochs, "
            "time_budget, or more calls of partial_fit), or with a smaller "
            "classification_fraction if it is above 0.",
            ConvergenceWarning,
        )
