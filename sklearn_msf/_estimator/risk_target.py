"""The risk that a rejection rule has to keep to."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sklearn_msf._evaluation.confusion import checked_cost_matrix
from sklearn_msf._evaluation.labels import as_labels, check_same_kind, label_indices
from sklearn_msf._evaluation.risk_control import check_class_risks, check_risk
from sklearn_msf._evaluation.validation import check_fraction

__all__ = ["RiskTarget", "checked_target"]


@dataclass(frozen=True, eq=False)
class RiskTarget:
    """Risk that a rule has to keep to.

    Attributes
    ----------
    risk : float or dict
        As `target_risk` of :func:`~sklearn_msf.selective.certified_threshold`; the keys of a dict
        are class labels.
    confidence : float
        Probability that the bound holds.
    cost_matrix : ndarray of shape (K, K) or None
        Costs of which the mean is bounded; None bounds an error rate.
    """

    risk: float | dict[Any, float]
    confidence: float
    cost_matrix: np.ndarray | None = None


def checked_target(
    target_risk: Any, confidence: Any, cost_matrix: Any, classes: np.ndarray
) -> RiskTarget:
    """Check what :meth:`fit_reject` is asked to bound.

    Raises
    ------
    ValueError
        For a risk or confidence outside its range, labels that are not among the classes, a cost
        matrix that cannot be used, and one beside risks of classes.
    """
    check_fraction("confidence", confidence)
    if not isinstance(target_risk, Mapping):
        costs = None if cost_matrix is None else checked_cost_matrix(cost_matrix, len(classes))
        check_risk("target_risk", target_risk, None if costs is None else float(costs.max()))
        return RiskTarget(float(target_risk), float(confidence), costs)
    if cost_matrix is not None:
        raise ValueError(
            f"cost_matrix cannot be used with target_risk={target_risk!r}, which counts wrong "
            "answers: leave one of them out."
        )
    check_class_risks(target_risk)
    named = as_labels("target_risk", list(target_risk))
    check_same_kind("target_risk", named, "the estimator", classes)
    indices = label_indices(named, classes)
    if (indices < 0).any():
        raise ValueError(
            f"target_risk names {named[indices < 0].tolist()}, not among the classes "
            f"{classes.tolist()}."
        )
    labels = classes.tolist()
    risks = {labels[i]: float(r) for i, r in zip(indices, target_risk.values(), strict=True)}
    return RiskTarget(risks, float(confidence))
