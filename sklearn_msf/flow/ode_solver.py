"""ODE integration of velocity fields over torchdiffeq, counting function evaluations."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torchdiffeq import odeint

__all__ = ["ADAPTIVE_SOLVERS", "ODE_SOLVERS", "Solution", "integrate", "last_step"]

_ADAPTIVE = {"dopri5": {"rtol": 1e-4, "atol": 1e-4}}
ADAPTIVE_SOLVERS = tuple(_ADAPTIVE)
ODE_SOLVERS = ("euler", "midpoint", "rk4", *ADAPTIVE_SOLVERS)


@dataclass(frozen=True)
class Solution:
    """End of a trajectory.

    Attributes
    ----------
    state : tuple of Tensor
        The state at the end time.
    nfe : int
        Number of function evaluations.
    """

    state: tuple[Tensor, ...]
    nfe: int


def last_step(span: float, n_steps: int, method: str, least: float) -> tuple[float, int]:
    """Length of the last step of a way that is not to be shorter than `least`, and steps before it.

    Parameters
    ----------
    span : float
        Length of the way.
    n_steps, method :
        As in :func:`integrate`; what an adaptive method does before the last step counts as one.
    least : float
        Shortest last step.
    """
    if method in ADAPTIVE_SOLVERS:
        return least, 1
    return max(least, span / n_steps), n_steps - 1


def integrate(
    velocity: Callable[[Tensor, tuple[Tensor, ...]], tuple[Tensor, ...]],
    state: tuple[Tensor, ...],
    *,
    start: float,
    end: float,
    n_steps: int,
    method: str = "euler",
) -> Solution:
    """Integrate d state / dt = velocity(t, state) from `start` to `end`.

    Parameters
    ----------
    velocity : callable
        Maps a time (0-d Tensor) and a state to the velocity of each part of the state.
    state : tuple of Tensor
        State at the start time.
    start, end : float
        Times; start > end integrates backwards.
    n_steps : int
        Equal steps of the fixed-step methods; adaptive ones choose their own.
    method : {"euler", "midpoint", "rk4", "dopri5"}, default="euler"
        One Euler step has one function evaluation, a midpoint step two, an rk4 step four.

    Returns
    -------
    Solution
    """
    nfe = 0

    def counted(t: Tensor, z: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        nonlocal nfe
        nfe += 1
        return velocity(t, z)

    times = torch.linspace(start, end, n_steps + 1, device=state[0].device)
    tolerances, options = _ADAPTIVE.get(method, {}), None
    if method in _ADAPTIVE:
        times = times[[0, -1]]
        # Else it steps past the end, where there is no field, and interpolates.
        options = {"step_t": times[1:]}
    path = odeint(counted, state, times, method=method, options=options, **tolerances)
    return Solution(tuple(part[-1] for part in path), nfe)
