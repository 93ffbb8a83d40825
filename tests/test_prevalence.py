import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.exceptions import ConvergenceWarning

from sklearn_msf.prevalence import adjust_to_prior, estimate_prior

OLD = np.array([0.5, 0.3, 0.2])
MEANS = np.array([-1.5, 0.0, 2.0])


def drawn(prior, n, seed=0):
    """Points of three normal distributions, and their labels."""
    rng = np.random.default_rng(seed)
    y = rng.choice(3, n, p=prior)
    return rng.normal(MEANS[y]), y


def posterior(x, prior):
    joint = norm.pdf(x[:, None], MEANS) * prior
    return joint / joint.sum(axis=1, keepdims=True)


def test_adjusting_gives_the_posterior_under_the_other_prior():
    new = np.array([0.05, 0.15, 0.8])
    x, _ = drawn(new, 200)
    adjusted = adjust_to_prior(posterior(x, OLD), old_prior=OLD, new_prior=new)
    np.testing.assert_allclose(adjusted, posterior(x, new))


@given(st.lists(st.floats(0.01, 1), min_size=6, max_size=6))
def test_adjusting_back_and_to_the_same_prior_change_nothing(values):
    p, new = np.array(values[:3]), np.array(values[3:])
    p, new = p[None] / p.sum(), new / new.sum()
    there = adjust_to_prior(p, old_prior=OLD, new_prior=new)
    np.testing.assert_allclose(adjust_to_prior(there, old_prior=new, new_prior=OLD), p)
    np.testing.assert_allclose(adjust_to_prior(p, old_prior=new, new_prior=new), p)


def test_a_class_that_is_absent_gets_no_probability():
    p = adjust_to_prior([[0.2, 0.2, 0.6]], old_prior=OLD, new_prior=[0.5, 0.5, 0])
    # 0.2 / 0.5 against 0.2 / 0.3.
    np.testing.assert_allclose(p, [[0.375, 0.625, 0]])


@pytest.mark.parametrize("new", [[0.1, 0.1, 0.8], [0.3, 0.65, 0.05], [0.5, 0.3, 0.2]])
def test_the_prior_of_unlabelled_samples_is_found(new):
    x, y = drawn(new, 20_000)
    estimate = estimate_prior(posterior(x, OLD), old_prior=OLD)
    np.testing.assert_allclose(estimate, np.bincount(y) / len(y), atol=0.015)
    assert estimate.sum() == pytest.approx(1)


def test_the_estimate_is_of_the_largest_likelihood():
    x, _ = drawn([0.2, 0.2, 0.6], 300)
    p = posterior(x, OLD)
    estimate = estimate_prior(p, old_prior=OLD)

    def likelihood(prior):
        return np.log((p * (prior / OLD)).sum(axis=1)).sum()

    rng = np.random.default_rng(0)
    for step in rng.normal(0, 0.02, (100, 3)):
        other = np.abs(estimate + step)
        assert likelihood(other / other.sum()) <= likelihood(estimate) + 1e-6


def test_an_absent_class_is_estimated_as_absent():
    p = [[1.0, 0.0, 0.0]] * 3_000 + [[0.0, 1.0, 0.0]] * 1_000
    np.testing.assert_allclose(estimate_prior(p, old_prior=OLD), [0.75, 0.25, 0])


@pytest.mark.parametrize(
    ("p", "message"),
    [
        ([[0.9, 0.05, 0.05]], r"In 1 samples .* 2 of the 3 classes \(columns 1, 2\).* up to 0.95"),
        (
            [[0.9, 0.1, 0]] * 15 + [[0, 0.9, 0.1]] * 15,
            r"In 30 samples .* 1 of the 3 classes \(columns 2\).* up to 0.095",
        ),
    ],
)
def test_few_samples_without_a_class_are_warned_of(p, message):
    with pytest.warns(UserWarning, match=message):
        estimate_prior(p, old_prior=OLD)


def test_an_estimate_that_does_not_settle_is_warned_of(monkeypatch):
    monkeypatch.setattr("sklearn_msf.prevalence._MAX_ITER", 2)
    with pytest.warns(ConvergenceWarning, match="still change after 2 steps"):
        estimate_prior(posterior(drawn([0.1, 0.1, 0.8], 50)[0], OLD), old_prior=OLD)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"probabilities": [0.5, 0.5]}, r"probabilities must be of shape \(n, K\).*got \(2,\)"),
        ({"probabilities": [[1.0]]}, r"probabilities must be of shape \(n, K\).*got \(1, 1\)"),
        (
            {"probabilities": [[0.5, 0.5], [0.2, 0.2]]},
            "must sum to 1 in each row, got 0.4 in row 1",
        ),
        ({"probabilities": [[-0.5, 1.5]]}, r"must be in \[0, 1\], got \[-0.5, 1.5\] in row 0"),
        ({"probabilities": [[np.nan, 0.5]]}, r"must be in \[0, 1\]"),
        ({"old_prior": [0.5, 0.3, 0.2]}, r"old_prior must be of shape \(2,\).*got \(3,\)"),
        (
            {"old_prior": {"a": 0.5, "b": 0.5}},
            r"old_prior must be 2 numbers in the order.*classes_",
        ),
        ({"new_prior": pd.Series({"b": 0.9, "a": 0.1})}, "a Series may have another order"),
        ({"new_prior": {0.9, 0.1}}, "new_prior must be 2 numbers in the order of the columns.*set"),
        (
            {"new_prior": ["0.9", "0.1"]},
            r"new_prior must be an array of numbers, got \['0.9', '0.1'\]",
        ),
        ({"old_prior": [True, False]}, "old_prior must be an array of numbers"),
        ({"probabilities": {"a": 1.0}}, "probabilities must be an array of numbers"),
        ({"probabilities": [["0.5", "0.5"]]}, "probabilities must be an array of numbers"),
        ({"new_prior": None}, r"new_prior must be of shape \(2,\).*got \(\)"),
        ({"old_prior": [1, 0]}, "old_prior must be above 0 for each class"),
        ({"old_prior": [30, 70]}, "old_prior must be above 0.*with sum 1; got .* with sum 100"),
        ({"old_prior": [0.5, 0.3]}, "old_prior must be above 0.*with sum 1; got .* with sum 0.8"),
        (
            {"new_prior": [0.9, 0.2]},
            "new_prior must be at least 0.*with sum 1; got .* with sum 1.1",
        ),
        ({"new_prior": [1.5, -0.5]}, "new_prior must be at least 0"),
        ({"new_prior": [np.nan, 0.5]}, "new_prior must be at least 0"),
        (
            {"probabilities": [[0, 1]], "new_prior": [1, 0]},
            r"new_prior=\[1.0, 0.0\] is 0 for every class that probabilities allow in row 0",
        ),
    ],
)
def test_what_cannot_be_adjusted_is_named(changed, message):
    arguments = {
        "probabilities": [[0.5, 0.5]],
        "old_prior": [0.5, 0.5],
        "new_prior": [0.9, 0.1],
    }
    with pytest.raises(ValueError, match=message):
        adjust_to_prior(**{**arguments, **changed})
    if "new_prior" not in changed:
        arguments.pop("new_prior")
        with pytest.raises(ValueError, match=message):
            estimate_prior(**{**arguments, **changed})
