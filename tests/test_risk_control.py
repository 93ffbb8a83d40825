"""Certified thresholds for risks of classes and for costs; those of error rates: test_selective."""

import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from sklearn_msf._evaluation.risk_control import (
    count_class_rows_to_certify,
    count_rows_to_certify,
)
from sklearn_msf.selective import certified_threshold, costs_of

# Risks of classes


@pytest.mark.parametrize(
    ("n", "n_wrong"), [(58, None), (59, 0), (92, 0), (93, 1), (123, 1), (124, 2)]
)
def test_as_many_errors_are_allowed_as_in_tables_of_tolerance_limits(n, n_wrong):
    # At 95 % of 95 %: Wilks' numbers are 59, 93, 124.
    target = {"target_risk": {"a": 0.05}, "y_true": ["a"] * n}
    threshold = certified_threshold(np.ones(n), np.arange(n), **target)
    # Every answer is wrong, so the number of accepted ones is the number of errors.
    assert (threshold is None) if not n_wrong else (threshold + 1 == n_wrong)
    for errors in (0, 1, 2, 3):
        wrong = np.arange(n) < errors
        all_accepted = certified_threshold(wrong, np.arange(n), **target) == n - 1
        assert all_accepted == (n_wrong is not None and errors <= n_wrong)


@pytest.mark.parametrize("risk", [0.02, 0.05, 0.3])
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_the_samples_of_a_class_that_are_needed_are_just_enough(risk, confidence):
    needed = count_class_rows_to_certify(target_risk=risk, confidence=confidence)
    for n, certified in ((needed, True), (needed - 1, False)):
        threshold = certified_threshold(
            np.zeros(n), np.arange(n), target_risk={0: risk}, y_true=[0] * n, confidence=confidence
        )
        assert (threshold is not None) == certified


@given(
    st.lists(
        st.tuples(st.booleans(), st.integers(0, 30), st.integers(0, 2)), min_size=1, max_size=200
    ),
    st.floats(0.05, 0.5),
    st.floats(0.5, 0.99),
)
def test_each_class_passes_the_binomial_test_by_itself(rows, risk, confidence):
    errors, uncertainty, y = (np.array(column) for column in zip(*rows, strict=True))
    present = np.unique(y).tolist()
    threshold = certified_threshold(
        errors,
        uncertainty,
        target_risk=dict.fromkeys(present, risk),
        y_true=y,
        confidence=confidence,
    )
    if threshold is None:
        return
    for label in present:
        n_wrong = (errors & (uncertainty <= threshold))[y == label].sum()
        # So few would have had a chance of at most 1 - confidence, were the risk above the target.
        assert binom.cdf(n_wrong, (y == label).sum(), risk) <= 1 - confidence + 1e-9


RISKS = {"rare": 0.05, "frequent": 0.03}


@pytest.mark.parametrize("n_levels", [10, 10**6])
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_the_promise_for_several_classes_is_broken_no_more_often_than_allowed(n_levels, confidence):
    rng = np.random.default_rng(0)
    slope = {"rare": 0.8, "frequent": 0.5, "unbounded": 1.0}
    labels = np.array(list(slope))
    broken = certified = 0
    for _ in range(600):
        y = rng.choice(labels, 500, p=[0.2, 0.5, 0.3])
        u = np.ceil(rng.random(500) * n_levels) / n_levels
        # A sample of uncertainty u is answered wrongly with a chance of slope * u.
        errors = rng.random(500) < u * np.array([slope[label] for label in y.tolist()])
        threshold = certified_threshold(
            errors, u, target_risk=RISKS, y_true=y, confidence=confidence
        )
        if threshold is not None:
            certified += 1
            # The sum of slope * u / n_levels over the levels up to the threshold.
            mean = threshold * (threshold + 1 / n_levels) / 2
            broken += any(slope[label] * mean > risk for label, risk in RISKS.items())
    assert broken / 600 <= 1 - confidence
    assert certified > 300


def test_the_bound_is_exact():
    # A class that is always wrong has the risk that is its accepted fraction. The other class
    # makes the steps between thresholds small. A stricter test would fail less often.
    rng = np.random.default_rng(0)
    y = np.repeat(["a", "b"], [100, 2000])
    broken = 0
    for _ in range(1000):
        u = rng.random(len(y))
        threshold = certified_threshold(
            y == "a", u, target_risk={"a": 0.1}, y_true=y, confidence=0.9
        )
        broken += threshold > 0.1
    # Bin(100, 0.1) is at most 5 with a chance of 0.058, and at most 6 with one of 0.117.
    assert broken / 1000 == pytest.approx(binom.cdf(5, 100, 0.1), abs=0.02)


def test_a_class_that_is_named_too_makes_the_threshold_no_larger():
    rng = np.random.default_rng(0)
    u, y = rng.random(1000), rng.integers(0, 3, 1000)
    errors = rng.random(1000) < u / 2

    def threshold(*labels):
        return certified_threshold(
            errors, u, target_risk=dict.fromkeys(labels, 0.05), y_true=y, confidence=0.9
        )

    assert threshold(0, 1, 2) == min(threshold(0), threshold(1), threshold(2))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"target_risk": {}}, "target_risk={} names no class"),
        ({"target_risk": {"a": 1.5}}, r"target_risk\['a'\] must be a number in \(0, 1\), got 1.5"),
        ({"target_risk": {"c": 0.1}}, "target_risk names 'c', but y_true has no such label"),
        ({"target_risk": {1: 0.1}}, "target_risk has labels that are numbers.*y_true has text"),
        ({"target_risk": {1: 0.1, "a": 0.1}}, "target_risk mixes numbers, such as 1, and text"),
        ({"target_risk": 0.1}, "y_true is used only with a target_risk for each class"),
        ({"y_true": None}, "y_true is missing"),
        ({"y_true": ["a"]}, "y_true has 1 labels and errors 4"),
        ({"max_loss": 2.0}, "max_loss=2.0 cannot be used with target_risk={'a': 0.1}"),
        ({"confidence": 1}, r"confidence must be a number in \(0, 1\), got 1"),
        ({"errors": [0, 1, 0.5, 0]}, "errors must be 0 or 1"),
    ],
)
def test_risks_of_classes_that_cannot_be_used_are_named(changed, message):
    arguments = {
        "errors": [0, 1, 0, 0],
        "uncertainty": [0.1, 0.2, 0.3, 0.4],
        "target_risk": {"a": 0.1},
        "y_true": ["a", "b", "a", "b"],
    }
    with pytest.raises(ValueError, match=message):
        certified_threshold(**{**arguments, **changed})


# Costs


def test_the_promise_for_a_mean_cost_is_broken_no_more_often_than_allowed():
    rng = np.random.default_rng(0)
    broken, found = 0, 0
    for _ in range(300):
        u = rng.random(2000)
        draw = rng.random(2000)
        # At uncertainty u the cost is 5 with a chance of u / 10, and 1 with a chance of u / 5.
        costs = np.select([draw < u / 10, draw < 3 * u / 10], [5.0, 1.0], 0.0)
        threshold = certified_threshold(costs, u, target_risk=0.3, max_loss=5, confidence=0.8)
        found += threshold is not None
        broken += threshold is not None and 0.7 * threshold / 2 > 0.3
    assert broken / 300 <= 0.2
    assert found == 300


def test_the_bound_of_a_mean_is_the_one_worked_by_hand():
    # The mean loss of all 1000 but the last is 0.05; at 0.1, Hoeffding's p-value is
    # exp(-999 * 0.0167) = 6e-8 and that of Bentkus is smaller: both pass 0.05 / 20.
    errors = np.zeros(1000)
    errors[np.arange(0, 999, 10)] = 0.4995
    divergence = 0.05 * math.log(0.5) + 0.95 * math.log(0.95 / 0.9)
    allowed = math.exp(-999 * divergence)
    at_last = {"target_risk": 0.1, "max_loss": 1.0}
    assert certified_threshold(errors, np.arange(1000), **at_last) == 999
    # A single tie of all samples has one threshold.
    one, bentkus = np.zeros(1000), math.e * binom.cdf(50, 999, 0.1)
    best = min(allowed, bentkus)
    for confidence, certified in ((1 - 25 * best, True), (1 - 15 * best, False)):
        threshold = certified_threshold(errors, one, confidence=confidence, **at_last)
        assert (threshold is not None) == certified


@pytest.mark.parametrize("max_loss", [0.5, 1, 40.0])
def test_costs_of_zero_need_as_many_samples_as_no_errors(max_loss):
    needed = count_rows_to_certify(target_risk=0.1)
    for n, certified in ((needed, True), (needed - 1, False)):
        threshold = certified_threshold(
            np.zeros(n), np.arange(n), target_risk=0.1 * max_loss, max_loss=max_loss
        )
        assert (threshold is not None) == certified


@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 30)), min_size=1, max_size=300),
    st.floats(0.05, 0.5),
)
def test_errors_as_costs_certify_no_more_than_errors(rows, risk):
    errors, uncertainty = (np.array(column) for column in zip(*rows, strict=True))
    as_costs = certified_threshold(errors, uncertainty, target_risk=risk, max_loss=1)
    exact = certified_threshold(errors, uncertainty, target_risk=risk)
    assert as_costs is None or as_costs <= exact


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"max_loss": 0}, "max_loss must be a finite number > 0, got 0"),
        ({"max_loss": np.inf}, "max_loss must be a finite number > 0, got inf"),
        ({"max_loss": "5"}, "max_loss must be a finite number > 0, got '5'"),
        ({"max_loss": 4}, "errors must be at most max_loss=4, got 5.0"),
        ({"target_risk": 5}, r"target_risk must be a number in \(0, max_loss=5\), got 5"),
        ({"target_risk": None}, r"target_risk must be a number in \(0, max_loss=5\), got None"),
        ({"errors": [0, np.nan, 1]}, "errors contains NaN"),
    ],
)
def test_costs_that_cannot_be_used_are_named(changed, message):
    arguments = {
        "errors": [0, 5, 1],
        "uncertainty": [0.1, 0.2, 0.3],
        "target_risk": 0.5,
        "max_loss": 5,
    }
    with pytest.raises(ValueError, match=message):
        certified_threshold(**{**arguments, **changed})


def test_costs_are_looked_up_by_label_and_answer():
    matrix = [[0, 1, 2], [3, 0, 4], [5, 6, 0]]
    labels = ["c", "a", "b"]
    costs = costs_of(["a", "b", "c", "c"], ["c", "a", "c", "b"], matrix, labels=labels)
    assert costs.tolist() == [3, 6, 0, 2]


def test_truth_values_are_costs_of_0_and_1():
    costs = costs_of(["a", "b"], ["b", "b"], ~np.eye(2, dtype=bool), labels=["a", "b"])
    assert costs.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"y_pred": ["a"]}, "y_true has 2 labels and y_pred 1"),
        ({"y_pred": ["a", "c"]}, "y_pred has the label 'c', which is not among labels"),
        ({"y_pred": [0, 1]}, "y_true has labels that are text"),
        ({"labels": ["a", "a"]}, "labels must be different from each other"),
        ({"cost_matrix": [0, 1]}, r"cost_matrix must be of shape \(2, 2\).*got \(2,\)"),
        ({"cost_matrix": [[0, -1], [1, 0]]}, "cost_matrix must hold finite costs >= 0"),
        ({"cost_matrix": [[0, np.nan], [1, 0]]}, "cost_matrix must hold finite costs >= 0"),
        ({"cost_matrix": [[0, 0], [0, 0]]}, "not all zero"),
        (
            {"cost_matrix": pd.DataFrame([[0, 10], [1, 0]], ["b", "a"], ["b", "a"])},
            r"a DataFrame may have another order. Pass cost_matrix.loc\[classes, classes\]",
        ),
        (
            {"cost_matrix": SimpleNamespace(columns=["b", "a"], shape=(2, 2))},
            "a SimpleNamespace may have another order. Pass an array of its rows and columns",
        ),
        (
            {"cost_matrix": {"a": {"b": 10}, "b": {"a": 1}}},
            r"a dict may have another order. Pass \[\[cost_matrix\[a\]\[b\] for b in classes\]",
        ),
        ({"cost_matrix": [[0, "much"], [1, 0]]}, "cost_matrix must be an array of numbers"),
        (
            {"cost_matrix": np.ma.MaskedArray([[0, 999], [1, 0]], [[0, 1], [0, 0]])},
            "cost_matrix is a masked array with 1 masked values",
        ),
    ],
)
def test_cost_matrices_that_cannot_be_used_are_named(changed, message):
    arguments = {
        "y_true": ["a", "b"],
        "y_pred": ["b", "b"],
        "cost_matrix": [[0, 1], [1, 0]],
        "labels": ["a", "b"],
    }
    with pytest.raises(ValueError, match=message):
        costs_of(**{**arguments, **changed})
