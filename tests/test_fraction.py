"""The fraction of samples at t = 1: larger where a time budget is short."""

import itertools

import pytest
from conftest import tiny_classifier
from hypothesis import given
from hypothesis import strategies as st

from sklearn_msf.training.fraction import FractionChoice, fraction_within
from sklearn_msf.training.trainer import Trainer


@given(st.integers(1, 10**6), st.floats(1, 1e9), st.floats(0.15, 1))
def test_each_image_is_seen_two_and_a_half_times_at_one_if_the_fraction_allows_it(
    n_images, n_affordable, least
):
    fraction = fraction_within(n_images, n_affordable, least)
    assert least <= fraction <= max(least, 0.8)
    times = fraction * n_affordable / n_images
    assert times >= 2.5 * (1 - 1e-9) or fraction >= 0.8
    assert times <= 2.5 * (1 + 1e-9) or fraction == least


@pytest.mark.parametrize(
    ("device_type", "first_seconds", "n_before", "n_steps"),
    [("cpu", 5.0, 1, 3), ("cuda", 400.0, 40, 60)],
)
def test_the_first_steps_do_not_count_because_they_take_longer(
    device_type, first_seconds, n_before, n_steps
):
    choice = FractionChoice(0.15, 1000.0, device_type)
    elapsed = first_seconds
    for step in itertools.count(1):
        if step > n_before:
            elapsed += 0.5
        fraction = choice.after_step(100, elapsed, epoch_size=20_000)
        if fraction is not None:
            break
    assert step == n_steps
    # Those that were seen, and what 200 images a second see in the seconds that are left.
    n_affordable = 100 * n_steps + 200 * (1000 - elapsed)
    assert fraction == pytest.approx(2.5 * 20_000 / n_affordable)


def test_no_time_left_gives_the_largest_fraction():
    choice = FractionChoice(0.15, 1.0, "cpu")
    found = [choice.after_step(10, elapsed, epoch_size=1000) for elapsed in (5.0, 6.0, 7.0)]
    assert found == [None, None, 0.8]


def fractions(classifier, digits):
    X, y = digits
    classifier.fit(X[:90], y[:90])
    return [log["classification_fraction"] for log in classifier.history_]


@pytest.fixture
def steps_of_a_second(monkeypatch):
    """Let the time pass by the number of steps: one second each."""
    n_steps = itertools.count(1)
    elapsed = {"now": 0.0}
    whole = Trainer._make_step

    def timed(self, data, rows, rate):
        whole(self, data, rows, rate)
        elapsed["now"] = float(next(n_steps))

    monkeypatch.setattr(Trainer, "_make_step", timed)
    monkeypatch.setattr(
        "sklearn_msf.training.schedule.TimeBudget.elapsed",
        property(lambda self: elapsed["now"]),
    )


@pytest.mark.usefixtures("steps_of_a_second")
@pytest.mark.parametrize(
    ("seconds", "expected"), [(18, 2.5 / 6), (300, 0.15), (4, 0.8)], ids=["some", "much", "little"]
)
def test_a_short_budget_raises_the_fraction_of_auto_and_the_history_says_so(
    digits, seconds, expected
):
    # Three steps of 30 images an epoch.
    classifier = tiny_classifier(
        classification_fraction="auto", time_budget=seconds, max_epochs=10, batch_size=30
    )
    found = fractions(classifier, digits)
    assert found == [pytest.approx(expected)] * len(found)


@pytest.mark.usefixtures("steps_of_a_second")
@pytest.mark.parametrize("wanted", [0.3, 0.0])
def test_a_fraction_that_was_named_stays(digits, wanted):
    classifier = tiny_classifier(
        classification_fraction=wanted, time_budget=5, max_epochs=10, batch_size=30
    )
    assert set(fractions(classifier, digits)) == {wanted}


def test_without_a_time_budget_auto_is_the_smallest_fraction(digits):
    classifier = tiny_classifier(classification_fraction="auto", max_epochs=2)
    assert fractions(classifier, digits) == [0.15, 0.15]
    same = tiny_classifier(classification_fraction=0.15, max_epochs=2)
    assert fractions(same, digits) == [0.15, 0.15]
    assert same.loss_curve_ == classifier.loss_curve_


@pytest.mark.usefixtures("steps_of_a_second")
def test_a_run_that_goes_on_keeps_the_fraction_that_it_chose(digits, tmp_path, monkeypatch):
    settings = {
        "classification_fraction": "auto",
        "time_budget": 18,
        "max_epochs": 10,
        "batch_size": 30,
        "checkpoint_dir": tmp_path,
        "checkpoint_every": 1,
    }

    n_left = itertools.count(7, -1)
    whole = Trainer._make_step

    def stopping(self, data, rows, rate):
        if not next(n_left):
            raise InterruptedError
        whole(self, data, rows, rate)

    with monkeypatch.context() as stopped:
        stopped.setattr(Trainer, "_make_step", stopping)
        with pytest.raises(InterruptedError):
            fractions(tiny_classifier(**settings), digits)
    found = fractions(tiny_classifier(**settings), digits)
    assert len(found) > 2
    assert found == [pytest.approx(2.5 / 6)] * len(found)


def test_the_model_card_says_what_was_chosen(digits, tmp_path):
    X, y = digits
    classifier = tiny_classifier(classification_fraction=0.25, max_epochs=1).fit(X[:30], y[:30])
    classifier.save_pretrained(tmp_path)
    assert "25 % of each batch at t = 1" in (tmp_path / "README.md").read_text()
