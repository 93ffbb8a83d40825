import numpy as np
import pytest

from sklearn_msf.training.schedule import WARMUPS, TimeBudget, learning_rate_factor


@pytest.fixture
def clock(monkeypatch):
    """A clock to set by hand."""
    times = {"now": 100.0}
    monkeypatch.setattr("sklearn_msf.training.schedule.time.perf_counter", lambda: times["now"])

    def advance(seconds):
        times["now"] += seconds

    return advance


def test_the_learning_rate_warms_up_and_falls_to_zero():
    assert learning_rate_factor(0.0) == 0.0
    assert learning_rate_factor(0.05) == pytest.approx(0.5)
    assert learning_rate_factor(0.1) == pytest.approx(1.0)
    assert learning_rate_factor(0.55) == pytest.approx(0.5)
    assert learning_rate_factor(1.0) == pytest.approx(0.0)


def test_a_warm_up_by_a_cosine_rises_by_half_of_its_period():
    # (1 - cos(pi / 4)) / 2 at a quarter of the warm-up.
    wanted = {0.0: 0.0, 0.025: 0.146447, 0.05: 0.5, 0.075: 0.853553, 0.1: 1.0, 0.55: 0.5, 1.0: 0.0}
    found = {progress: learning_rate_factor(progress, "cosine") for progress in wanted}
    assert found == pytest.approx(wanted, abs=1e-6)


def test_both_warm_ups_have_the_same_mean_rate():
    middles = (np.arange(1000) + 0.5) / 1000
    means = [np.mean([learning_rate_factor(p, warmup) for p in middles]) for warmup in WARMUPS]
    assert means[0] == pytest.approx(means[1], rel=1e-6)


def test_without_a_limit_time_is_never_up(clock):
    budget = TimeBudget(None)
    clock(1e9)
    assert not budget.is_up()
    assert budget.fraction_passed() == 0.0


def test_time_is_up_when_one_more_step_would_end_too_late(clock):
    budget = TimeBudget(10.0)
    answers = []
    for _ in range(10):
        clock(1.0)
        answers.append(budget.is_up())
    # After 9 s a step of 1 s, with half a step to spare, does not fit any more.
    assert answers == [False] * 8 + [True] * 2
    assert budget.fraction_passed() == 1.0


def test_a_step_that_still_runs_has_to_end_in_time_too(clock):
    budget = TimeBudget(10.0)
    answers = []
    for _ in range(9):
        clock(1.0)
        answers.append(budget.is_up(n_running=1))
    # After 8 s one step runs, and one more, with half a step to spare, ends after 10.5 s.
    assert answers == [False] * 7 + [True] * 2


def test_a_pause_for_validation_has_to_fit_in_too(clock):
    budget = TimeBudget(10.0)
    clock(3.0)
    budget.end_pause(3.0)
    answers = []
    for _ in range(4):
        clock(1.0)
        answers.append(budget.is_up())
    assert answers == [False, False, True, True]


def test_a_resumed_run_counts_the_seconds_before(clock):
    budget = TimeBudget(10.0)
    budget.resume(4.0, 0.0)
    clock(1.0)
    assert budget.elapsed == pytest.approx(5.0)
    assert budget.fraction_passed() == pytest.approx(0.5)


def test_the_schedule_begins_with_the_first_step(clock):
    budget = TimeBudget(10.0)
    clock(6.0)
    budget.begin()
    assert budget.fraction_passed() == 0.0
    clock(2.0)
    assert budget.fraction_passed() == pytest.approx(0.5)
    resumed = TimeBudget(10.0)
    clock(1.0)
    resumed.begin()
    resumed.resume(8.0, budget.begun)
    # It goes on where the earlier one was, whatever it took to prepare it again.
    assert resumed.elapsed == pytest.approx(8.0)
    assert resumed.fraction_passed() == pytest.approx(0.5)


def test_a_divided_budget_keeps_its_division_when_it_is_resumed(clock):
    budget = TimeBudget(100.0)
    budget.divide(0.6)
    clock(50.0)
    budget.begin()
    assert budget.seconds == pytest.approx(80.0)
    clock(20.0)
    elapsed = budget.elapsed
    resumed = TimeBudget(100.0)
    resumed.divide(0.6)
    clock(70.0)
    resumed.begin()
    resumed.resume(elapsed, budget.begun)
    assert resumed.seconds == pytest.approx(80.0)
    assert resumed.fraction_passed() == pytest.approx(20 / 30)


def test_a_schedule_for_which_no_time_is_left_is_at_its_beginning(clock):
    budget = TimeBudget(10.0)
    clock(12.0)
    assert budget.is_over()
    budget.begin()
    assert budget.fraction_passed() == 0.0
    assert not TimeBudget(None).is_over()


def test_the_only_step_of_an_epoch_is_measured(clock):
    budget = TimeBudget(10.0)
    budget.start_steps()
    clock(4.0)
    budget.end_step()
    budget.end_pause(0.0)
    # Six seconds are left for a step of about four, with half a step to spare.
    assert not budget.is_up()
    clock(1.5)
    assert budget.is_up()


@pytest.mark.parametrize("warmup", WARMUPS)
def test_the_factor_is_continuous(warmup):
    factors = [learning_rate_factor(p, warmup) for p in np.linspace(0, 1, 1001)]
    # The steepest slope is that of the cosine, pi / 2 times that of the line.
    assert np.abs(np.diff(factors)).max() < 0.016


def test_what_is_reserved_is_left_out_before_the_budget_is_divided(clock):
    budget = TimeBudget(100.0)
    budget.divide(0.6)
    clock(40.0)
    budget.begin()
    budget.reserve(10.0)
    assert budget.seconds == pytest.approx(40 + 0.6 * 50)


def test_steps_may_have_a_limit_of_their_own(clock):
    budget = TimeBudget(100.0)
    clock(40.0)
    budget.begin()
    budget.limit(30.0)
    clock(15.0)
    assert budget.seconds == pytest.approx(70.0)
    assert budget.fraction_passed() == pytest.approx(0.5)
    budget.limit(90.0)
    assert budget.seconds == pytest.approx(100.0)


def test_time_that_is_reserved_is_not_trained_in(clock):
    budget = TimeBudget(10.0)
    budget.reserve(4.0)
    clock(3.0)
    assert budget.fraction_passed() == pytest.approx(0.5)
    TimeBudget(None).reserve(4.0)
