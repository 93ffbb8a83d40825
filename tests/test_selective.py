import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.svm import LinearSVC

from sklearn_msf._evaluation.risk_control import count_rows_to_certify
from sklearn_msf.selective import (
    accept_most_certain,
    accuracy_rejection_curve,
    augrc,
    aurc,
    certified_threshold,
    coverage_at_risk,
    excess_aurc,
    neg_augrc_scorer,
    neg_aurc_scorer,
    neg_excess_aurc_scorer,
    risk_at_coverage,
    risk_coverage_curve,
    uncertainty_of,
)

SCORES = st.lists(st.floats(0, 1), min_size=1, max_size=50)


@given(SCORES, st.floats(0.001, 1))
def test_the_most_certain_fraction_is_accepted(uncertainty, coverage):
    accepted = accept_most_certain(uncertainty, coverage)
    assert accepted.sum() == max(1, int(coverage * len(uncertainty) + 1e-9))
    u = np.array(uncertainty)
    if not accepted.all():
        assert u[accepted].max() <= u[~accepted].min()


def test_fractions_that_floating_point_misses_are_met():
    assert accept_most_certain(np.arange(100), 0.57).sum() == 57


def test_ties_go_to_the_earlier_samples():
    np.testing.assert_array_equal(
        accept_most_certain([0.5, 0.1, 0.5, 0.5], 0.5), [True, True, False, False]
    )


def test_the_curve_is_the_one_worked_by_hand():
    curve = accuracy_rejection_curve([0, 0, 1, 1], [0, 1, 1, 1], [0.3, 0.4, 0.1, 0.2])
    np.testing.assert_allclose(curve.coverage, [0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(curve.accuracy, [1, 1, 1, 0.75])
    assert curve.at(1.0) == 0.75
    for coverage in (0, -1, 2, np.nan):
        with pytest.raises(ValueError, match=r"coverage must be a number in \(0, 1\]"):
            curve.at(coverage)
    assert curve.at(0.75) == 1.0
    # Less than one sample: the most certain one counts.
    assert curve.at(0.1) == 1.0


@given(
    st.lists(
        st.tuples(st.booleans(), st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=20
    ).filter(lambda rows: any(weight for *_, weight in rows))
)
def test_weights_of_the_curve_count_as_copies(rows):
    correct, scores, weights = (np.array(column) for column in zip(*rows, strict=True))
    right = np.ones(len(rows), dtype=bool)
    weighted = accuracy_rejection_curve(right, correct, scores, sample_weight=weights)
    copies = np.repeat(np.arange(len(rows)), weights)
    copied = accuracy_rejection_curve(right[copies], correct[copies], scores[copies])
    for coverage, accuracy in zip(weighted.coverage, weighted.accuracy, strict=True):
        assert copied.at(coverage) == pytest.approx(accuracy)


@pytest.mark.parametrize(
    ("y_pred", "scores", "message"),
    [
        ([0, 1], [0.1, 0.2, 0.3], "uncertainty must be of shape"),
        ([0], [0.1], "y_true has 2 labels and y_pred 1"),
        ([0, 1], [0.1, np.nan], "uncertainty contains NaN"),
    ],
)
def test_a_curve_of_what_is_none_is_refused(y_pred, scores, message):
    with pytest.raises(ValueError, match=message):
        accuracy_rejection_curve([0, 1], y_pred, scores)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 3)), min_size=1, max_size=30))
def test_the_curve_does_not_depend_on_the_order_of_samples_with_ties(rows):
    correct, uncertainty = (np.array(column) for column in zip(*rows, strict=True))
    order = np.random.default_rng(0).permutation(len(rows))
    curve = accuracy_rejection_curve(np.ones(len(rows)), correct, uncertainty)
    other = accuracy_rejection_curve(np.ones(len(rows)), correct[order], uncertainty[order])
    np.testing.assert_allclose(curve.accuracy, other.accuracy)
    assert curve.accuracy[-1] == pytest.approx(correct.mean())


# Risk and coverage

# (wrong, uncertainty with many ties, weight)
ROWS = st.lists(
    st.tuples(st.integers(0, 1), st.integers(0, 4), st.integers(1, 3)), min_size=1, max_size=25
)


def columns(rows):
    return tuple(np.array(column) for column in zip(*rows, strict=True))


def accepted_in_parts(errors, uncertainty, weights, n_parts=400):
    """Loss and weight as samples are accepted part by part, ties side by side."""
    parts = []
    for u in np.unique(uncertainty):
        tie = uncertainty == u
        share = np.repeat(weights[tie].sum() / n_parts, n_parts)
        loss = share * np.average(errors[tie], weights=weights[tie])
        parts.append((loss, share))
    loss, share = (np.concatenate(p) for p in zip(*parts, strict=True))
    return np.cumsum(loss), np.cumsum(share), share


def test_the_risk_coverage_curve_is_the_one_worked_by_hand():
    curve = risk_coverage_curve([0, 1, 1, 0], [0.1, 0.3, 0.3, 0.2])
    np.testing.assert_allclose(curve.threshold, [0.1, 0.2, 0.3])
    np.testing.assert_allclose(curve.coverage, [0.25, 0.5, 1])
    np.testing.assert_allclose(curve.risk, [0, 0, 0.5])


@given(ROWS)
def test_areas_are_those_of_samples_accepted_part_by_part(rows):
    errors, uncertainty, weights = columns(rows)
    loss, weight, share = accepted_in_parts(errors, uncertainty, weights)
    total = weights.sum()
    expected = np.sum(loss / weight * share) / total
    assert aurc(errors, uncertainty, sample_weight=weights) == pytest.approx(expected, abs=0.01)
    expected = np.sum(loss * share) / total**2
    assert augrc(errors, uncertainty, sample_weight=weights) == pytest.approx(expected, abs=0.01)


@given(ROWS)
def test_a_weight_is_as_many_samples(rows):
    errors, uncertainty, weights = columns(rows)
    repeated = [np.repeat(values, weights) for values in (errors, uncertainty)]
    for metric in (aurc, excess_aurc, augrc):
        weighted = metric(errors, uncertainty, sample_weight=weights)
        assert weighted == pytest.approx(metric(*repeated), abs=1e-9)


@given(ROWS)
def test_the_order_of_samples_does_not_matter(rows):
    errors, uncertainty, weights = columns(rows)
    order = np.random.default_rng(0).permutation(len(rows))
    for metric in (aurc, excess_aurc, augrc):
        one = metric(errors, uncertainty, sample_weight=weights)
        other = metric(errors[order], uncertainty[order], sample_weight=weights[order])
        assert one == pytest.approx(other, abs=1e-9)


@given(ROWS)
def test_no_ranking_is_better_than_that_by_the_errors(rows):
    errors, uncertainty, weights = columns(rows)
    assert excess_aurc(errors, uncertainty, sample_weight=weights) >= -1e-9
    assert excess_aurc(errors, errors + 0.1, sample_weight=weights) == pytest.approx(0, abs=1e-9)
    rate = np.average(errors, weights=weights)
    if rate < 1:
        best = rate + (1 - rate) * np.log(1 - rate)
        assert aurc(errors, errors, sample_weight=weights) == pytest.approx(best, abs=1e-9)


def test_very_unequal_weights_are_no_trouble():
    unequal = ([1, 1e-20], [1e-20, 1], [1e308, 1e-308], [1e-308, 1e308])
    for weights in (*unequal, [1e308, 1e308], [1e-320, 1e-320]):
        assert 0 <= aurc([0, 1], [0.1, 0.2], sample_weight=weights) <= 1
        assert 0 <= augrc([0, 1], [0.1, 0.2], sample_weight=weights) <= 1


def test_weights_that_are_nothing_beside_others_leave_the_curve_finite():
    weights = [1e-300, 1e300, 1e300]
    scores = [0.1, 0.2, 0.3]
    curve = accuracy_rejection_curve([0, 1, 1], [0, 1, 0], scores, sample_weight=weights)
    np.testing.assert_allclose(curve.accuracy, [1, 0.5])


@pytest.mark.parametrize("n", [3, 10, 1000])
def test_the_whole_weight_is_a_coverage_of_exactly_one(n):
    uncertainty = np.arange(float(n))
    assert risk_coverage_curve(np.zeros(n), uncertainty).coverage[-1] == 1
    whole = coverage_at_risk(np.zeros(n), uncertainty, risk=0.05)
    assert accept_most_certain(uncertainty, whole).all()


def test_uncertainty_that_says_nothing_leaves_the_mean_loss():
    errors = np.array([0, 1, 1, 0, 0])
    assert aurc(errors, np.ones(5)) == pytest.approx(0.4)
    assert augrc(errors, np.ones(5)) == pytest.approx(0.2)


def test_sums_over_samples_come_close_for_many_samples():
    rng = np.random.default_rng(0)
    uncertainty = rng.random(5000)
    errors = rng.random(5000) < uncertainty / 2
    risks = np.cumsum(errors[np.argsort(uncertainty)]) / np.arange(1, 5001)
    assert aurc(errors, uncertainty) == pytest.approx(risks.mean(), abs=1e-3)


@given(ROWS, st.floats(0.01, 1))
def test_risk_at_a_coverage_is_that_of_samples_accepted_part_by_part(rows, coverage):
    errors, uncertainty, weights = columns(rows)
    loss, weight, _ = accepted_in_parts(errors, uncertainty, weights, n_parts=2000)
    at = np.searchsorted(weight, coverage * weights.sum() - 1e-9)
    risk = risk_at_coverage(errors, uncertainty, coverage=coverage, sample_weight=weights)
    assert risk == pytest.approx(loss[at] / weight[at], abs=0.05)


@given(ROWS, st.floats(0, 1))
def test_coverage_at_a_risk_is_the_largest_of_a_threshold(rows, risk):
    errors, uncertainty, _ = columns(rows)
    reached = [
        (uncertainty <= u).mean()
        for u in uncertainty
        if errors[uncertainty <= u].mean() <= risk + 1e-12
    ]
    assert coverage_at_risk(errors, uncertainty, risk=risk) == pytest.approx(
        max(reached, default=0.0)
    )


def test_weights_of_the_coverage_at_a_risk_count_as_copies():
    # With weights 3 and 1 the risk of all is 0.25; without, 0.5.
    errors, uncertainty, weights = [0, 1], [0.1, 0.2], [3, 1]
    assert coverage_at_risk(errors, uncertainty, risk=0.25, sample_weight=weights) == 1.0
    assert coverage_at_risk(errors, uncertainty, risk=0.2, sample_weight=weights) == 0.75


# Certified thresholds


@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 30)), min_size=1, max_size=200),
    st.floats(0.05, 0.5),
    st.floats(0.5, 0.99),
)
def test_a_certified_threshold_passes_the_binomial_test(rows, target_risk, confidence):
    errors, uncertainty = columns(rows)
    threshold = certified_threshold(
        errors, uncertainty, target_risk=target_risk, confidence=confidence
    )
    if threshold is None:
        return
    accepted = errors[uncertainty <= threshold]
    # So few errors had a chance of at most 1 - confidence, were the risk above the target.
    assert binom.cdf(accepted.sum(), len(accepted), target_risk) <= 1 - confidence + 1e-9


@pytest.mark.parametrize("n_wrong", [0, 1, 5, 17])
def test_the_bound_of_an_error_rate_is_exact(n_wrong):
    errors = np.arange(201) >= 201 - n_wrong
    # One tie, of which one sample is left out.
    for risk in np.linspace(0.013, 0.313, 61):
        found = certified_threshold(errors, np.zeros(201), target_risk=risk)
        assert (found is not None) == (binom.cdf(n_wrong, 200, risk) <= 0.05 / 20)


def test_a_certificate_allows_for_every_threshold_that_was_tested():
    # A chance of 0.95 ** 60 = 0.046 is small enough for one threshold, 0.95 ** 119 = 0.0022 for
    # twenty of them, and 0.95 ** 109 = 0.0037 is not. Ties do not make the tests fewer.
    def certify(n, uncertainty):
        return certified_threshold(np.zeros(n), uncertainty, target_risk=0.05)

    assert certify(60, np.zeros(60)) is None
    assert certify(60, np.arange(60)) is None
    assert certify(120, np.zeros(120)) == 0
    assert certify(120, np.arange(120)) == 119
    assert certify(110, np.arange(110)) is None


def test_the_most_that_can_be_certified_is_taken():
    # Half of the samples are too few for a certificate, all of them are not.
    assert certified_threshold(np.zeros(150), np.arange(150), target_risk=0.05) == 149
    # Errors among the most certain samples do not end the search.
    errors = np.zeros(2000)
    errors[:20] = 1
    assert certified_threshold(errors, np.arange(2000), target_risk=0.05) == 1999


@pytest.mark.parametrize("n_levels", [10, 10**6])
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_the_promise_is_broken_no_more_often_than_allowed(n_levels, confidence):
    rng = np.random.default_rng(0)
    broken = certified = 0
    for _ in range(600):
        # With uniform uncertainty u an answer is wrong with a chance of u / 2.
        u = np.ceil(rng.random(300) * n_levels) / n_levels
        errors = rng.random(300) < u / 2
        threshold = certified_threshold(errors, u, target_risk=0.2, confidence=confidence)
        certified += threshold is not None
        # The mean of u / 2 over the levels up to the threshold.
        broken += threshold is not None and (threshold + 1 / n_levels) / 4 > 0.2
    assert broken / 600 <= 1 - confidence
    assert certified > 150


def test_the_promise_holds_where_errors_sit_in_a_rare_tie():
    # Few samples of the rare score make the frequent one look better than it is.
    rng = np.random.default_rng(0)
    broken = found = 0
    for _ in range(2000):
        rare = rng.random(200) < 0.1
        errors = rare | (rng.random(200) < 0.02)
        scores = np.where(rare, 0.0, 1.0)
        threshold = certified_threshold(errors, scores, target_risk=0.11, confidence=0.9)
        # All are accepted, and 0.118 of them are wrong.
        broken += threshold == 1.0
        found += certified_threshold(errors, scores, target_risk=0.3, confidence=0.9) == 1.0
    # One test of one in twenty that are allowed for.
    assert broken <= 2000 * 0.1 / 20
    assert found > 1900


@pytest.mark.parametrize(
    ("scores", "coverage", "message"),
    [
        ([0.1, np.nan], 0.5, "uncertainty contains NaN"),
        ([], 0.5, "uncertainty must be of shape"),
        ([[0.1, 0.2]], 0.5, r"uncertainty must be of shape \(n,\) with n >= 1, got \(1, 2\)"),
        ([0.1, 0.2], 0, r"coverage must be a number in \(0, 1\]"),
        ([0.1, 0.2], -1, "coverage must be"),
        ([0.1, 0.2], "0.5", "coverage must be"),
        ([0.1, 0.2], True, "coverage must be"),
    ],
)
def test_what_cannot_be_accepted_is_named(scores, coverage, message):
    with pytest.raises(ValueError, match=message):
        accept_most_certain(scores, coverage)


def test_without_errors_enough_samples_certify_everything():
    assert certified_threshold(np.zeros(1000), np.arange(1000), target_risk=0.05) == 999
    assert certified_threshold(np.zeros(20), np.arange(20), target_risk=0.05) is None
    assert certified_threshold(np.ones(1000), np.arange(1000), target_risk=0.5) is None


# Scorers


def test_scorers_choose_in_a_search():
    X, y = load_breast_cancer(return_X_y=True)
    X = (X - X.mean(axis=0)) / X.std(axis=0)
    scoring = {
        "aurc": neg_aurc_scorer,
        "excess": pickle.loads(pickle.dumps(neg_excess_aurc_scorer)),
        "augrc": neg_augrc_scorer,
    }
    search = GridSearchCV(
        LogisticRegression(), {"C": [1e-6, 1.0]}, scoring=scoring, refit="aurc", cv=3
    ).fit(X, y)
    results = search.cv_results_
    best = search.best_index_
    for name in scoring:
        assert results[f"mean_test_{name}"][best] == max(results[f"mean_test_{name}"])
    model = search.best_estimator_
    uncertainty = 1 - model.predict_proba(X).max(axis=1)
    expected = -aurc(model.predict(X) != y, uncertainty)
    assert neg_aurc_scorer(model, X, y) == pytest.approx(expected)
    assert neg_aurc_scorer(model, X, y[:, None]) == pytest.approx(expected)


def test_scorers_ask_for_predict_uncertainty_first(fitted, digits):
    X, y = digits
    errors = fitted.predict(X[:60]) != y[:60]
    expected = -aurc(errors, fitted.predict_uncertainty(X[:60]))
    assert neg_aurc_scorer(fitted, X[:60], y[:60]) == pytest.approx(expected)


# Bad input

MASKED = np.ma.MaskedArray([0.0, 1.0], mask=[True, False])


@pytest.mark.parametrize(
    ("errors", "uncertainty", "weight", "message"),
    [
        ([0, 1], [0.1], None, r"uncertainty must be of shape \(2,\), got \(1,\)"),
        ([], [], None, "errors must be of shape"),
        ([[0, 1]], [0.1, 0.2], None, "errors must be of shape"),
        ([0, 1], [0.1, np.nan], None, "uncertainty contains NaN"),
        ([0, np.inf], [0.1, 0.2], None, "errors contains NaN or infinity"),
        ([0, -1], [0.1, 0.2], None, "errors must not be negative"),
        ([0, 1], [0.1, 0.2], [1, -1], "sample_weight must not be negative"),
        ([0, 1], [0.1, 0.2], [0, 0], "sample_weight must not be zero for all"),
        ([0, 1], [0.1, 0.2], [1], "sample_weight must be of shape"),
        (MASKED, [0.1, 0.2], None, "errors is a masked array with 1 masked values"),
        ([0, 1], MASKED, None, "uncertainty is a masked array"),
        ([0, 1], [0.1, 0.2], MASKED, "sample_weight is a masked array"),
    ],
)
def test_unusable_samples_are_named(errors, uncertainty, weight, message):
    with pytest.raises(ValueError, match=message):
        aurc(errors, uncertainty, sample_weight=weight)


@pytest.mark.parametrize("value", [0, 1, -0.1, 1.5, np.nan])
def test_targets_and_confidences_outside_their_range_are_named(value):
    with pytest.raises(ValueError, match=r"target_risk must be a number in \(0, 1\)"):
        certified_threshold([0, 1], [0.1, 0.2], target_risk=value)
    with pytest.raises(ValueError, match=r"confidence must be a number in \(0, 1\)"):
        certified_threshold([0, 1], [0.1, 0.2], target_risk=0.1, confidence=value)


def test_other_values_are_named():
    with pytest.raises(ValueError, match="errors must be 0 or 1"):
        certified_threshold([0.5, 1], [0.1, 0.2], target_risk=0.1)
    with pytest.raises(ValueError, match=r"coverage must be a number in \(0, 1\]"):
        risk_at_coverage([0, 1], [0.1, 0.2], coverage=0)
    with pytest.raises(ValueError, match="risk must be a finite number >= 0"):
        coverage_at_risk([0, 1], [0.1, 0.2], risk=-1)


@pytest.mark.parametrize("target_risk", [0.02, 0.05, 0.1])
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_the_samples_needed_are_just_enough_with_and_without_ties(target_risk, confidence):
    targets = {"target_risk": target_risk, "confidence": confidence}
    needed = count_rows_to_certify(**targets)
    for n, certified in ((needed, True), (needed - 1, False)):
        for scores in (np.arange(float(n)), np.zeros(n)):
            assert (certified_threshold(np.zeros(n), scores, **targets) is not None) == certified


def test_any_classifier_tells_its_uncertainty():
    X, y = load_breast_cancer(return_X_y=True)
    classifier = LogisticRegression(max_iter=5000).fit(X[:, :3], y)
    p = classifier.predict_proba(X[:, :3])
    np.testing.assert_allclose(uncertainty_of(classifier, X[:, :3]), 1 - p.max(axis=1))


def test_a_classifier_without_probabilities_has_no_uncertainty():
    with pytest.raises(ValueError, match="LinearSVC has neither predict_uncertainty nor"):
        uncertainty_of(LinearSVC(), np.zeros((2, 2)))


@pytest.mark.parametrize("risk", ["0.1", None, -0.1, np.nan, True])
def test_a_risk_is_a_number(risk):
    with pytest.raises(ValueError, match="risk must be a finite number >= 0, got"):
        coverage_at_risk([0, 1], [0.1, 0.2], risk=risk)
