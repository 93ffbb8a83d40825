import math

import pytest
import torch
from torchdiffeq import odeint

from sklearn_msf.flow.ode_solver import (
    ODE_SOLVERS,
    Evaluation,
    OdeSettings,
    evaluations,
    integrate,
)

# Errors over 40 steps of dz/dt = -2 z from 0 to 1, by the order of the method.
TOLERANCE = {"euler": 0.06, "midpoint": 1e-3, "rk4": 1e-6, "dopri5": 1e-3}
N_EVALUATIONS_PER_STEP = {"euler": 1, "midpoint": 2, "rk4": 4}


@pytest.mark.parametrize("method", ODE_SOLVERS)
@pytest.mark.parametrize(("start", "end"), [(0.0, 1.0), (1.0, 0.0)])
def test_a_linear_field_integrates_to_the_closed_form_both_ways(method, start, end):
    z = torch.tensor([1.0, -3.0], dtype=torch.float64)
    ode = OdeSettings(start, end, 40, method)
    (found,) = integrate(lambda t, state: (-2 * state[0],), (z,), ode)
    expected = z * math.exp(-2 * (end - start))
    torch.testing.assert_close(found, expected, rtol=TOLERANCE[method], atol=0)


def test_euler_steps_are_the_ones_worked_by_hand():
    z = torch.tensor([1.0])
    ode = OdeSettings(1.0, 0.0, n_steps=2)
    (found,) = integrate(lambda t, state: (2 * state[0] * t,), (z,), ode)
    # 1 - 0.5 * 2 * 1 * 1 = 0, and from there 0.
    assert found.item() == 0.0


@pytest.mark.parametrize("method", N_EVALUATIONS_PER_STEP)
def test_a_method_evaluates_the_velocity_as_often_as_it_says(method):
    ode, times = OdeSettings(0.0, 1.0, 5, method), []

    def velocity(t, state):
        times.append(t)
        return (torch.ones(1),)

    integrate(velocity, (torch.zeros(1),), ode)
    assert len(times) == ode.n_evaluations == 5 * N_EVALUATIONS_PER_STEP[method]


def test_an_adaptive_method_that_does_not_come_to_the_end_gives_an_error():
    ode, times = OdeSettings(0.0, 1.0, 1, "dopri5"), []

    def velocity(t, state):
        times.append(t)
        return (1e4 * torch.cos(1e6 * t).expand(1),)

    with pytest.raises(ValueError, match="'dopri5' cannot follow this field .*set 'euler'"):
        integrate(velocity, (torch.zeros(1),), ode)
    # Two more choose the first step.
    assert len(times) <= ode.most_evaluations + 2


def test_the_number_of_steps_does_not_count_for_an_adaptive_method():
    few, many = (
        integrate(lambda t, z: z, (torch.ones(1),), OdeSettings(0.0, 1.0, n, "dopri5"))
        for n in (1, 10**15)
    )
    assert torch.equal(*few, *many)


def test_parts_of_the_state_move_together():
    a, b = torch.ones(2), torch.zeros(3)
    _, found = integrate(
        lambda t, state: (torch.zeros(2), state[0].sum().expand(3)),
        (a, b),
        OdeSettings(0.0, 1.0, n_steps=4),
    )
    assert torch.equal(found, torch.full((3,), 2.0))


@pytest.mark.parametrize("method", ODE_SOLVERS)
@pytest.mark.parametrize(("start", "end"), [(0.0, 0.95), (1.0, 0.05)])
def test_no_solver_leaves_the_interval(method, start, end):
    asked = []

    def velocity(t, state):
        asked.append(t.item())
        return (torch.ones_like(state[0]),)

    z = torch.zeros(2, 3)
    (found,) = integrate(velocity, (z,), OdeSettings(start, end, 3, method))
    assert min(asked) >= min(start, end) - 1e-6
    assert max(asked) <= max(start, end) + 1e-6
    torch.testing.assert_close(found, z + (end - start))


@pytest.mark.parametrize(("start", "end"), [(0.0, 1.0), (1.0, 0.0), (0.2, 0.6)])
@pytest.mark.parametrize("method", ["euler", "midpoint", "rk4"])
def test_the_last_of_equal_steps_starts_where_the_others_end(start, end, method):
    ode = OdeSettings(start, end, 4, method, guidance=0.5)
    before, last = ode.last_step(0.05)
    assert last == pytest.approx(end - (end - start) / 4)
    assert before == OdeSettings(start, last, 3, method, guidance=0.5)


@pytest.mark.parametrize(("start", "end", "last"), [(0.0, 1.0, 0.95), (1.0, 0.0, 0.05)])
def test_the_last_step_is_not_shorter_than_the_least(start, end, last):
    before, found = OdeSettings(start, end, 100).last_step(0.05)
    assert found == pytest.approx(last)
    assert before == OdeSettings(start, found, 99)


@pytest.mark.parametrize("method", ["euler", "midpoint", "rk4"])
@pytest.mark.parametrize(("start", "end"), [(0.0, 1.0), (1.0, 0.0)])
def test_one_step_is_the_last_and_nothing_comes_before(start, end, method):
    assert OdeSettings(start, end, 1, method).last_step(0.05) == (None, start)


@pytest.mark.parametrize(("start", "end", "last"), [(0.0, 1.0, 0.95), (1.0, 0.0, 0.05)])
@pytest.mark.parametrize("n_steps", [1, 10])
def test_an_adaptive_method_has_a_last_step_of_exactly_the_least(start, end, last, n_steps):
    before, found = OdeSettings(start, end, n_steps, "dopri5").last_step(0.05)
    assert found == pytest.approx(last)
    assert before == OdeSettings(start, found, 1, "dopri5")


@pytest.mark.parametrize("method", ODE_SOLVERS)
@pytest.mark.parametrize(("start", "end"), [(0.97, 1.0), (0.03, 0.0)])
@pytest.mark.parametrize("n_steps", [1, 3])
def test_a_way_shorter_than_the_least_is_one_step(start, end, method, n_steps):
    assert OdeSettings(start, end, n_steps, method).last_step(0.05) == (None, start)


@pytest.mark.parametrize("method", ["euler", "midpoint", "rk4"])
@pytest.mark.parametrize(("start", "end"), [(0.0, 1.0), (1.0, 0.0), (0.3, 0.95)])
@pytest.mark.parametrize("n_steps", [1, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fixed_steps_are_those_of_torchdiffeq_to_the_last_bit(method, start, end, n_steps, dtype):
    generator = torch.Generator().manual_seed(0)
    state = tuple(torch.randn(shape, generator=generator, dtype=dtype) for shape in [(3, 5), (4,)])

    def velocity(t, z):
        return (z[0].sin() * t + z[1].sum(), (z[1] - t).cos() * z[0].mean())

    found = integrate(velocity, state, OdeSettings(start, end, n_steps, method))
    times = torch.linspace(start, end, n_steps + 1)
    wanted = odeint(velocity, state, times, method=method)
    for one, other in zip(found, wanted, strict=True):
        assert torch.equal(one, other[-1])


def test_evaluations_of_a_step_are_those_of_its_method():
    assert evaluations(0.5, 1.0, "euler") == [Evaluation(0.5, 0.5, 0.5)]
    middle = [Evaluation(0.5, 0.25, 0.0), Evaluation(0.75, 0.5, 0.5)]
    assert evaluations(0.5, 1.0, "midpoint") == middle
    with pytest.raises(NotImplementedError, match="'rk4' needs more than the last velocity"):
        evaluations(0.5, 1.0, "rk4")
