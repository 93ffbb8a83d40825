"""ODE integration of velocity fields.

Adaptive methods are torchdiffeq's. Fixed-step methods are loops of our own, with torchdiffeq's
results to the last bit: torchdiffeq compares times on the CPU, so it waits for a GPU in every step
and cannot be captured as a CUDA graph.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torchdiffeq import odeint

from sklearn_msf.runtime.device import has_float64

__all__ = [
    "ODE_SOLVERS",
    "Evaluation",
    "OdeSettings",
    "evaluations",
    "integrate",
]

State = tuple[Tensor, ...]
Velocity = Callable[[Tensor, State], State]

_ADAPTIVE = {"dopri5": {"rtol": 1e-4, "atol": 1e-4}}
# Fields that have been trained need some tens; a field from elsewhere could ask for any number.
_MAX_ADAPTIVE_STEPS = 500
# Evaluations in a step of it.
_ADAPTIVE_EVALUATIONS = 6


def _euler(v: Velocity, t: Tensor, dt: Tensor, t_end: Tensor, z: State) -> State:
    return _moved(z, dt, v(t, z))


def _midpoint(v: Velocity, t: Tensor, dt: Tensor, t_end: Tensor, z: State) -> State:
    half = 0.5 * dt
    middle = _moved(z, half, v(t, z))
    return _moved(z, dt, v(t + half, middle))


def _rk4(v: Velocity, t: Tensor, dt: Tensor, t_end: Tensor, z: State) -> State:
    """Make a step by Kutta's 3/8 rule, which has smaller errors than the classical method."""
    third = 1 / 3
    k1 = v(t, z)
    k2 = v(t + dt * third, tuple(p + dt * a * third for p, a in zip(z, k1, strict=True)))
    k3 = v(
        t + dt * (2 / 3),
        tuple(p + dt * (b - a * third) for p, a, b in zip(z, k1, k2, strict=True)),
    )
    k4 = v(t_end, tuple(p + dt * (a - b + c) for p, a, b, c in zip(z, k1, k2, k3, strict=True)))
    return tuple(
        p + (a + 3 * (b + c) + d) * dt * 0.125
        for p, a, b, c, d in zip(z, k1, k2, k3, k4, strict=True)
    )


def _moved(z: State, dt: Tensor, velocity: State) -> State:
    return tuple(part + dt * v for part, v in zip(z, velocity, strict=True))


# A step of each fixed-step method, and its number of function evaluations.
_FIXED_STEPS = {"euler": (_euler, 1), "midpoint": (_midpoint, 2), "rk4": (_rk4, 4)}
ODE_SOLVERS = (*_FIXED_STEPS, *_ADAPTIVE)


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
        return self.method in _ADAPTIVE

    @property
    def n_evaluations(self) -> int | None:
        """Number of function evaluations; None if an adaptive method chooses it."""
        return None if self.is_adaptive else self.n_steps * _FIXED_STEPS[self.method][1]

    @property
    def most_evaluations(self) -> int:
        """Number of function evaluations after which the result is there, or an error."""
        return self.n_evaluations or _MAX_ADAPTIVE_STEPS * _ADAPTIVE_EVALUATIONS

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
class Evaluation:
    """One evaluation of the velocity v within the steps of a method, as a loop can repeat it.

    The loop keeps the state at the beginning of a step, and the state z at which v is evaluated.
    The next z is that beginning plus `ahead` times v, and the next beginning is it plus `moved`
    times v.

    Attributes
    ----------
    time : float
        Time of the evaluation.
    ahead, moved : float
        Factors of v; `moved` is 0 within a step.
    """

    time: float
    ahead: float
    moved: float


def evaluations(start: float, end: float, method: str) -> list[Evaluation]:
    """Divide a step of "euler" or "midpoint" into its evaluations."""
    length = end - start
    if method == "euler":
        return [Evaluation(start, length, length)]
    if method == "midpoint":
        half = 0.5 * length
        return [Evaluation(start, half, 0.0), Evaluation(start + half, length, length)]
    raise NotImplementedError(f"{method!r} needs more than the last velocity.")


def integrate(velocity: Velocity, state: State, ode: OdeSettings) -> State:
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
    tuple of Tensor
        State at the end time.

    Raises
    ------
    ValueError
        If an adaptive method does not come to the end.
    """
    n_steps = 1 if ode.is_adaptive else ode.n_steps
    times = torch.linspace(ode.start, ode.end, n_steps + 1, device=state[0].device)
    if not ode.is_adaptive:
        step, _ = _FIXED_STEPS[ode.method]
        for start, end in pairwise(times.unbind()):
            state = step(velocity, start, end - start, end, state)
        return state
    # Without this it steps past the end, where there is no field, and interpolates.
    options: dict[str, Any] = {"step_t": times[1:], "max_num_steps": _MAX_ADAPTIVE_STEPS}
    if not has_float64(times.device):
        # Times and tolerances are float64 otherwise.
        options["dtype"] = torch.float32
    tolerances = _ADAPTIVE[ode.method]
    try:
        path = odeint(velocity, state, times, method=ode.method, options=options, **tolerances)
    # So torchdiffeq says that there are too many steps, too short ones, or values without end.
    except AssertionError as error:
        raise ValueError(
            f"ode_solver={ode.method!r} cannot follow this field ({error}): set 'euler', "
            "'midpoint' or 'rk4'."
        ) from error
    return tuple(part[-1] for part in path)
