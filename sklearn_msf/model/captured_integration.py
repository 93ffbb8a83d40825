"""Integrations of the field that are captured as CUDA graphs, one for all their steps."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from torch import Tensor

from sklearn_msf.flow.ode_solver import OdeSettings
from sklearn_msf.flow.velocity_field import VelocityField
from sklearn_msf.runtime.cuda_graphs import replay

__all__ = ["captured", "shortened"]

# A longer integration runs without a graph, which would have a hundred thousand kernels.
_MAX_EVALUATIONS = 100


def captured(
    field: VelocityField, integrate: Callable[..., Tensor], ode: OdeSettings, precision: str
) -> Callable[..., Tensor]:
    """Make a function of tensors that integrates, on CUDA as one graph.

    Parameters
    ----------
    field : VelocityField
        The field.
    integrate : callable
        Method of the field, of tensors and `ode`.
    ode : OdeSettings
        The integration; adaptive ones, and those of more than 100 evaluations, have no graph.
    precision : {"float32", "bfloat16"}
        Precision in which it runs.
    """
    whole = partial(integrate, ode=ode)
    if ode.n_evaluations is None or ode.n_evaluations > _MAX_EVALUATIONS:
        return whole
    key = integrate.__name__, ode, precision
    return partial(replay, field, key, whole, warm_up=partial(integrate, ode=shortened(ode)))


def shortened(ode: OdeSettings) -> OdeSettings:
    """Make two steps of it, which have all kernels: those of the first steps and of the last."""
    return replace(ode, n_steps=min(ode.n_steps, 2))
