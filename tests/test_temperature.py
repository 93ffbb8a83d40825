import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import log_loss

from sklearn_msf.model.temperature import apply_temperature, fit_temperature


def sharpened(n, temperature, seed=0):
    """Probabilities too sharp by a temperature, and labels drawn from the right ones."""
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.ones(3), size=n)
    labels = (rng.random((n, 1)) > p.cumsum(axis=1)[:, :-1]).sum(axis=1)
    return apply_temperature(p, 1 / temperature), labels


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_that_was_applied_is_found(temperature):
    p, labels = sharpened(4000, temperature)
    found = fit_temperature(p, labels, np.ones(len(labels)))
    assert found == pytest.approx(temperature, rel=0.1)


def test_held_out_log_loss_falls():
    p, labels = sharpened(1000, 4.0)
    calibrated = apply_temperature(p, fit_temperature(p, labels, np.ones(len(labels))))
    assert log_loss(labels, calibrated) < 0.8 * log_loss(labels, p)


def test_weights_count_as_copies():
    p, labels = sharpened(50, 2.0)
    weights = np.arange(50) % 3 + 1
    copies = np.repeat(np.arange(50), weights)
    once = fit_temperature(p, labels, weights.astype(float))
    assert once == pytest.approx(fit_temperature(p[copies], labels[copies], np.ones(len(copies))))


def test_without_errors_the_temperature_is_finite():
    p = np.tile([0.9, 0.1], (60, 1))
    found = fit_temperature(p, np.zeros(60, dtype=int), np.ones(60))
    assert 0.05 < found < 1


def test_few_samples_say_little():
    one_error = fit_temperature(np.array([[0.9, 0.1]]), np.array([1]), np.ones(1))
    many = fit_temperature(np.tile([0.9, 0.1], (50, 1)), np.ones(50, dtype=int), np.ones(50))
    assert 1 < one_error < many


@given(
    st.lists(st.floats(0, 1), min_size=2, max_size=6).filter(lambda p: sum(p) > 0),
    st.floats(0.05, 20),
)
def test_the_order_of_classes_is_kept(raw, temperature):
    p = np.array([raw]) / sum(raw)
    q = apply_temperature(p, temperature)
    assert q.sum() == pytest.approx(1)
    assert q[0, p[0].argmax()] == q.max()


def test_at_one_the_bits_are_kept():
    p, _ = sharpened(20, 2.0)
    assert apply_temperature(p, 1.0) is p
