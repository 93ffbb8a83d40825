import math

import pytest
import torch

from sklearn_msf.flow.ode_solver import ODE_SOLVERS, integrate

# Errors over 40 steps of dz/dt = -2 z from 0 to 1, by the order of the method.
TOLERANCE = {"euler": 0.06, "midpoint": 1e-3, "rk4": 1e-6, "dopri5": 1e-3}
NFE_PER_STEP = {"euler": 1, "midpoint": 2, "rk4": 4}


@pytest.mark.parametrize("method", ODE_SOLVERS)
@pytest.mark.parametrize(("start", "end"), [(0.0, 1.0), (1.0, 0.0)])
def test_a_linear_field_integrates_to_the_closed_form_both_ways(method, start, end):
    z = torch.tensor([1.0, -3.0], dtype=torch.float64)
    solution = integrate(
        lambda t, state: (-2 * state[0],), (z,), start=start, end=end, n_steps=40, method=method
    )
    expected = z * math.exp(-2 * (end - start))
    torch.testing.assert_close(solution.state[0], expected, rtol=TOLERANCE[method], atol=0)


def test_euler_steps_are_the_ones_worked_by_hand():
    z = torch.tensor([1.0])
    solution = integrate(lambda t, state: (2 * state[0] * t,), (z,), start=1.0, end=0.0, n_steps=2)
    # 1 - 0.5 * 2 * 1 * 1 = 0, and from there 0.
    assert solution.state[0].item() == 0.0


@pytest.mark.parametrize("method", NFE_PER_STEP)
def test_function_evaluations_are_counted(method):
    z = torch.zeros(1)
    solution = integrate(
        lambda t, state: (torch.ones(1),), (z,), start=0.0, end=1.0, n_steps=5, method=method
    )
    assert solution.nfe == 5 * NFE_PER_STEP[method]


def test_parts_of_the_state_move_together():
    a, b = torch.ones(2), torch.zeros(3)
    solution = integrate(
        lambda t, state: (torch.zeros(2), state[0].sum().expand(3)),
        (a, b),
        start=0.0,
        end=1.0,
        n_steps=4,
    )
    assert torch.equal(solution.state[1], torch.full((3,), 2.0))


@pytest.mark.parametrize("method", ODE_SOLVERS)
@pytest.mark.parametrize(("start", "end"), [(0.0, 0.95), (1.0, 0.05)])
def test_no_solver_leaves_the_interval(method, start, end):
    asked = []

    def velocity(t, state):
        asked.append(t.item())
        return (torch.ones_like(state[0]),)

    z = torch.zeros(2, 3)
    found = integrate(velocity, (z,), start=start, end=end, n_steps=3, method=method)
    assert min(asked) >= min(start, end) - 1e-6
    assert max(asked) <= max(start, end) + 1e-6
    torch.testing.assert_close(found.state[0], z + (end - start))
