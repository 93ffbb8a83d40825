"""What a type checker makes of a user's code. mypy reads it in `make lint`; nothing runs it."""

from typing import assert_type

import numpy as np

import sklearn_msf
from sklearn_msf import LatentMedSymmFlowClassifier, MedSymmFlowClassifier


def chain(X: np.ndarray, y: np.ndarray) -> None:
    """Methods that return the estimator return its own class."""
    fitted = MedSymmFlowClassifier().fit(X, y)
    assert_type(fitted, MedSymmFlowClassifier)
    assert_type(fitted.partial_fit(X, y), MedSymmFlowClassifier)
    assert_type(fitted.set_params(max_epochs=3), MedSymmFlowClassifier)
    assert_type(fitted.fit_reject(X, y, target_risk=0.1), MedSymmFlowClassifier)
    assert_type(LatentMedSymmFlowClassifier("fit").fit(X, y), LatentMedSymmFlowClassifier)
    assert_type(MedSymmFlowClassifier.from_pretrained("folder"), MedSymmFlowClassifier)


def wrong_calls(X: np.ndarray, y: np.ndarray) -> None:
    """An ignored error that is none is one, as pyproject.toml sets warn_unused_ignores."""
    MedSymmFlowClassifier().fit()  # type: ignore[call-arg]
    sklearn_msf.MedSymFlowClassifier()  # type: ignore[attr-defined]
