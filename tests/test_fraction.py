"""The fraction of samples at t = 1: larger where a time budget is short."""

import itertools
import warnings
from types import SimpleNamespace

import pytest
from conftest import tiny_classifier
from hypothesis import given
from hypothesis import strategies as st
from sklearn.exceptions import ConvergenceWarning

from sklearn_msf._estimator import fit as fitting
from sklearn_msf.training.fraction import FractionChoice, fraction_within
from sklearn_msf.training.trainer import Trainer, _NotFiniteError


@given(st.integers(1, 10**6), st.floats(1, 1e9), st.floats(0.15, 1))
def test_each_image_is_seen_five_times_at_one_or_half_as_often_where_that_takes_most_samples(
    n_images, n_affordable, least
):
    fraction = fraction_within(n_images, n_affordable, least)
    assert least <= fraction <= max(least, 0.8)
    times = fraction * n_affordable / n_images
    assert times >= 5 * (1 - 1e-9) or fraction >= 0.4
    assert times >= 2.5 * (1 - 1e-9) or fraction >= 0.8
    # No larger than it must be.
    assert times <= 5 * (1 + 1e-9) or fraction == least
    assert times <= 2.5 * (1 + 1e-9) or fraction <= max(least, 0.4)


@pytest.mark.parametrize(
    ("device_type", "first_seconds", "n_before", "n_steps"),
    [("cpu", 5.0, 1, 3), ("cuda", 400.0, 5, 25)],
)
def test_the_first_steps_do_not_count_because_they_take_longer(
    device_type, first_seconds, n_before, n_steps
):
    choice = FractionChoice(0.15, 1000.0, device_type)
    elapsed = first_seconds
    for step in itertools.count(1):
        if step > n_before:
            elapsed += 0.5
        fraction = choice.after_step(100, elapsed, epoch_size=8_000)
        if fraction is not None:
            break
    assert step == n_steps
    # Those that were seen, and what 200 images a second see in the seconds that are left.
    n_affordable = 100 * n_steps + 200 * (1000 - elapsed)
    assert fraction == pytest.approx(5 * 8_000 / n_affordable)


def test_steps_that_capture_a_graph_are_not_measured():
    choice, elapsed, n_seen = FractionChoice(0.15, 2000.0, "cuda"), 0.0, 0
    for _ in range(25):
        # A minute for a capture, and half a second for a replay.
        for seconds, is_usual in ((60.0, False), (0.5, True)):
            elapsed, n_seen = elapsed + seconds, n_seen + 100
            fraction = choice.after_step(100, elapsed, epoch_size=8_000, is_usual=is_usual)
    assert fraction == pytest.approx(5 * 8_000 / (n_seen + 200 * (2000 - elapsed)))


def test_no_time_left_gives_the_largest_fraction():
    choice = FractionChoice(0.15, 1.0, "cpu")
    found = [choice.after_step(10, elapsed, epoch_size=1000) for elapsed in (5.0, 6.0, 7.0)]
    assert found == [None, None, 0.8]


def fractions(classifier, digits):
    X, y = digits
    classifier.fit(X[:90], y[:90])
    return [log["classification_fraction"] for log in classifier.history_]


def on_cpu(**settings):
    """A tiny classifier on the CPU: a GPU measures more steps, and only those of graphs."""
    return tiny_classifier(device="cpu", **settings)


class Clock(list):
    """Time that passes only in steps, and where a test moves `now` on."""

    now = 0.0


@pytest.fixture
def clock(monkeypatch):
    """A clock on which each step takes one second; those in the list are the first ones."""
    clock, whole = Clock(), Trainer._make_step

    def timed(self, data, rows, rate):
        is_usual = whole(self, data, rows, rate)
        clock.now += clock.pop(0) if clock else 1.0
        return is_usual

    monkeypatch.setattr(Trainer, "_make_step", timed)
    for module in ("training.schedule", "_estimator.fit"):
        fake = SimpleNamespace(perf_counter=lambda: clock.now)
        monkeypatch.setattr(f"sklearn_msf.{module}.time", fake)
    return clock


@pytest.mark.parametrize(
    ("settings", "has_validation", "seconds"),
    [
        ({"early_stopping": True}, False, 60.0),
        ({"early_stopping": True}, True, 60.0),
        ({"calibration": "temperature"}, False, 120.0),
        ({"calibration": "temperature"}, True, 120.0),
    ],
)
def test_a_budget_includes_predicting_held_out_images(
    clock, digits, monkeypatch, settings, has_validation, seconds
):
    whole = fitting.classify

    def slow(*arguments, **named):
        clock.now += 5.0
        return whole(*arguments, **named)

    monkeypatch.setattr(fitting, "classify", slow)
    X, y = digits
    validation = {"X_val": X[90:], "y_val": y[90:]} if has_validation else {}
    # Of 81 or 90 steps in an epoch 60 are not all.
    classifier = on_cpu(time_budget=seconds, max_epochs=10**6, batch_size=1, **settings)
    classifier.fit(X[:90], y[:90], **validation)
    assert 0.75 * seconds < clock.now <= seconds


# Of 90 images, batches of 62 are one step, as 90 / 62 is nearer to one.
@pytest.mark.parametrize("batch_size", [16, 62])
@pytest.mark.parametrize("seconds", [9.0, 1.0])
def test_a_budget_that_one_step_uses_up_is_told(clock, digits, seconds, batch_size):
    clock.append(seconds)
    classifier = on_cpu(time_budget=10.0, max_epochs=3, batch_size=batch_size)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        classifier.fit(*(part[:90] for part in digits))
    messages = [str(w.message) for w in told if w.category is ConvergenceWarning]
    expected = "time_budget=10.0 was over after one step:"
    assert [m.startswith(expected) for m in messages] == ([True] if seconds == 9.0 else [])


@pytest.mark.usefixtures("clock")
@pytest.mark.filterwarnings("error::sklearn.exceptions.ConvergenceWarning")
def test_a_run_of_few_steps_that_ended_by_itself_is_not_told_of_its_budget(digits):
    X, y = (part[:40] for part in digits)
    stopping = {"early_stopping": True, "n_iter_no_change": 1}
    on_cpu(time_budget=3600.0, max_epochs=9, batch_size=64, **stopping).fit(X, y)
    on_cpu(time_budget=3600.0, max_epochs=1, batch_size=64).fit(X, y)


def let_diverge(monkeypatch):
    """Let the next epoch end with a loss that is not finite."""
    n_left = itertools.count(1, -1)
    whole = Trainer._checked_losses

    def checked(self, rates):
        losses = whole(self, rates)
        if next(n_left) > 0:
            raise _NotFiniteError("The loss is not finite")
        return losses

    monkeypatch.setattr(Trainer, "_checked_losses", checked)


def cut_off(classifier, digits, monkeypatch, n_steps):
    """Fit, but end before the step after so many."""
    n_left = itertools.count(n_steps, -1)
    whole = Trainer._make_step

    def stopping(self, data, rows, rate):
        if not next(n_left):
            raise InterruptedError
        return whole(self, data, rows, rate)

    with monkeypatch.context() as stopped:
        stopped.setattr(Trainer, "_make_step", stopping)
        with pytest.raises(InterruptedError):
            fractions(classifier, digits)


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(18, 2.5 / 6), (24, 0.4), (60, 5 / 20), (300, 0.15), (4, 0.8)],
    ids=["some", "more", "still more", "much", "little"],
)
def test_a_short_budget_raises_the_fraction_of_auto_and_the_history_says_so(
    digits, seconds, expected
):
    # Three steps of 30 images an epoch.
    classifier = on_cpu(
        classification_fraction="auto", time_budget=seconds, max_epochs=10, batch_size=30
    )
    found = fractions(classifier, digits)
    assert found == [pytest.approx(expected)] * len(found)


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize("wanted", [0.3, 0.0])
def test_a_fraction_that_was_named_stays(digits, wanted):
    classifier = on_cpu(classification_fraction=wanted, time_budget=5, max_epochs=10, batch_size=30)
    assert set(fractions(classifier, digits)) == {wanted}


def test_without_a_time_budget_auto_is_the_smallest_fraction(digits):
    classifier = on_cpu(classification_fraction="auto", max_epochs=2)
    assert fractions(classifier, digits) == [0.15, 0.15]
    same = on_cpu(classification_fraction=0.15, max_epochs=2)
    assert fractions(same, digits) == [0.15, 0.15]
    assert same.loss_curve_ == classifier.loss_curve_


@pytest.mark.usefixtures("clock")
def test_steps_of_several_epochs_are_measured_where_an_epoch_has_fewer(digits):
    # One step of 90 images an epoch. The third is the last one measured.
    classifier = on_cpu(
        classification_fraction="auto", time_budget=10, max_epochs=20, batch_size=90
    )
    found = fractions(classifier, digits)
    assert found == pytest.approx([0.15] * 2 + [0.4] * (len(found) - 2))
    assert len(found) > 5


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize(
    ("settings", "n_steps", "begins", "chosen"),
    [
        ({"batch_size": 30, "time_budget": 18}, 7, [], 2.5 / 6),
        ({"batch_size": 90, "time_budget": 10}, 5, [0.15] * 2, 0.4),
        # Those that are left are measured, from the first one on.
        ({"batch_size": 90, "time_budget": 10}, 1, [0.15] * 3, 0.4),
    ],
    ids=["chosen in the first epoch", "chosen in a later one", "not yet chosen"],
)
def test_a_run_that_goes_on_keeps_the_fraction_that_it_chose(
    digits, tmp_path, monkeypatch, settings, n_steps, begins, chosen
):
    settings = {
        "classification_fraction": "auto",
        "max_epochs": 20,
        "checkpoint_dir": tmp_path,
        "checkpoint_every": 1,
        **settings,
    }
    cut_off(on_cpu(**settings), digits, monkeypatch, n_steps)
    found = fractions(on_cpu(**settings), digits)
    assert len(found) > 4
    assert found == pytest.approx(begins + [chosen] * (len(found) - len(begins)))


def test_an_epoch_that_is_repeated_is_measured_anew(digits, clock, monkeypatch):
    classifier = on_cpu(classification_fraction="auto", time_budget=60, max_epochs=3, batch_size=30)
    # With these the fraction would be 0.4.
    clock += [5, 5, 5]
    let_diverge(monkeypatch)
    with pytest.warns(UserWarning, match="The epoch is repeated"):
        found = fractions(classifier, digits)
    # Three steps an epoch; 42 seconds are left after the third of the repeated ones.
    assert found == [pytest.approx(5 / 15)] * 3


@pytest.mark.parametrize("logged", [True, False])
def test_a_repeated_epoch_of_partial_fit_has_its_own_fraction(digits, monkeypatch, logged):
    X, y = digits
    classifier = on_cpu(classification_fraction=0.5, max_epochs=1).fit(X[:30], y[:30])
    if not logged:
        # As in models that an earlier version has saved.
        del classifier.history_[0]["classification_fraction"]
    let_diverge(monkeypatch)
    with pytest.warns(UserWarning, match="The epoch is repeated"):
        classifier.set_params(classification_fraction=0.25).partial_fit(X[:30], y[:30])
    assert classifier.history_[-1]["classification_fraction"] == 0.25


def test_a_calibration_run_has_the_fraction_of_the_model(digits, clock, monkeypatch):
    runs = []
    whole = Trainer.fit

    def noted(self, data, **arguments):
        runs.append(self)
        # Measured anew, its steps would seem so long that it needs a larger fraction.
        clock.extend([1, 1, 1] if len(runs) == 1 else [1, 2, 2])
        whole(self, data, **arguments)

    monkeypatch.setattr(Trainer, "fit", noted)
    classifier = on_cpu(
        classification_fraction="auto",
        time_budget=40,
        max_epochs=20,
        batch_size=18,
        calibration="temperature",
    )
    found = fractions(classifier, digits)
    # The model has three fifths of the time, 24 steps of 18 images.
    assert found == [pytest.approx(2.5 / 4.8)] * len(found)
    assert len(runs) == 2
    assert {log["classification_fraction"] for log in runs[1].history} == set(found)


def test_the_model_card_says_what_was_chosen(digits, tmp_path):
    X, y = digits
    classifier = on_cpu(classification_fraction=0.25, max_epochs=1).fit(X[:30], y[:30])
    classifier.save_pretrained(tmp_path)
    assert "25 % of each batch at t = 1" in (tmp_path / "README.md").read_text()
