"""ODE integration of velocity fields with torchdiffeq, counting function evaluations."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torchdiffeq import odeint

__all__ = ["ADAPTIVE_SOLVERS", "ODE_SOLVERS", "OdeSettings", "Solution", "integrate"]

Velocity = Callable[[Tensor, tuple[Tensor, ...]], tuple[Tensor, ...]]

_ADAPTIVE = {"dopri5": {"rtol": 1e-4, "atol": 1e-4}}
ADAPTIVE_SOLVERS = tuple(_ADAPTIVE)
# Function evaluations of one step of each fixed-step method.
_EVALUATIONS = {"euler": 1, "midpoint": 2, "rk4": 4}
ODE_SOLVERS = (*_EVALUATIONS, *ADAPTIVE_SOLVERS)


@dataclass(frozen=True)
class OdeSettings:
    """Settings of an integration.

    Attributes
    ----------
    start, end : float
        Times in [0, 1]; start > end integrates backwards.
    n_steps : int
        Number of equal steps of the fixed-step methods; adaptive methods choose their own.
    method : {"euler", "midpoint", "rk4", "dopri5"}
        One Euler step has one function evaluation, a midpoint step two, an rk4 step four.
    guidance : float
        How far the velocity of images goes beyond that of their class, away from the
        unconditional one, in units of the difference of the two (classifier-free guidance, Ho
        and Salimans, 2022).
    """

    start: float
    end: float
    n_steps: int = 1
    method: str = "euler"
    guidance: float = 0.0

    @property
    def is_adaptive(self) -> bool:
        """Whether the method chooses its own steps."""
        return self.method in ADAPTIVE_SOLVERS

    def last_step(self, least: float) -> tuple["OdeSettings | None", float]:
        """Separate the last step, with a length of at least `least`.

        Parameters
        ----------
        least : float
            Minimum length of the last step. With an adaptive method it is exactly that long.

        Returns
        -------
        before : OdeSettings or None
            Settings of the integration up to the last step; None if there is only one step.
        start : float
            Time at which the last step starts.
        """
        span = abs(self.end - self.start)
        if self.is_adaptive:
            length, n_before = least, 1
        else:
            length, n_before = max(least, span / self.n_steps), self.n_steps - 1
        backwards = self.end < self.start
        last = self.end + length if backwards else self.end - length
        last = min(self.start, last) if backwards else max(self.start, last)
        if not n_before or last == self.start:
            return None, last
        return replace(self, end=last, n_steps=n_before), last


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


def integrate(velocity: Velocity, state: tuple[Tensor, ...], ode: OdeSettings) -> Solution:
    """Integrate d state / dt = velocity(t, state).

    Parameters
    ----------
    velocity : callable
        Maps a time (0-d Tensor) and a state to the velocity of each part of the state.
    state : tuple of Tensor
        State at the start time.
    ode : OdeSettings
        Times, steps and method.

    Returns
    -------
    Solution
    """
    times = torch.linspace(ode.start, ode.end, ode.n_steps + 1, device=state[0].device)
    if not ode.is_adaptive:
        path = odeint(velocity, state, times, method=ode.method)
        return Solution(tuple(part[-1] for part in path), ode.n_steps * _EVALUATIONS[ode.method])
    nfe = 0

    def counted(t: Tensor, z: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        nonlocal nfe
        nfe += 1
        return velocity(t, z)

    ends = times[[0, -1]]
    # Without this it steps past the end, where there is no field, and interpolates.
    options = {"step_t": ends[1:]}
    path = odeint(counted, state, ends, method=ode.method, options=options, **_ADAPTIVE[ode.method])
    return Solution(tuple(part[-1] for part in path), nfe)
