import math

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import precision_score, recall_score

from sklearn_msf.operating_points import operating_point

Y = np.array(["ill"] * 20 + ["well"] * 30)
SCORES = np.concatenate([np.full(18, 0.9), [0.5, 0.4], np.full(3, 0.8), np.full(27, 0.1)])


def test_a_score_at_the_threshold_is_positive():
    assert operating_point(Y, SCORES, threshold=0.5, pos_label="ill").sensitivity.value == 0.95
    assert operating_point(Y, SCORES, threshold=0.51, pos_label="ill").sensitivity.value == 0.9


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_scores_are_compared_in_their_own_precision(dtype):
    scores = np.array([0.7, 0.1], dtype)
    point = operating_point([1, 0], scores, threshold=0.7, pos_label=1)
    assert point.sensitivity.value == 1


def test_the_values_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    y, scores = rng.integers(0, 3, 200), rng.random(200)
    point = operating_point(y, scores, threshold=0.3, pos_label=2)
    positive, called = y == 2, scores >= 0.3
    assert point.sensitivity.value == recall_score(positive, called)
    assert point.specificity.value == recall_score(~positive, ~called)
    assert point.positive_predictive_value.value == precision_score(positive, called)
    assert point.negative_predictive_value.value == precision_score(~positive, ~called)
    assert point.prevalence == positive.mean()
    assert (point.n_positive, point.n_negative) == (positive.sum(), (~positive).sum())


def test_the_intervals_are_those_of_clopper_and_pearson():
    point = operating_point(Y, SCORES, threshold=0.6, pos_label="ill", confidence=0.9)
    # 18 of 20 ill ones, 27 of 30 well ones, 18 of 21 alarms, 27 of 29 all-clears.
    for estimate, k, n in (
        (point.sensitivity, 18, 20),
        (point.specificity, 27, 30),
        (point.positive_predictive_value, 18, 21),
        (point.negative_predictive_value, 27, 29),
    ):
        assert estimate.value == k / n
        interval = binomtest(k, n).proportion_ci(0.9, method="exact")
        assert estimate[1:] == pytest.approx((interval.low, interval.high))


@pytest.mark.parametrize(("threshold", "k"), [(2, 0), (0, 20)])
def test_intervals_of_none_and_of_all_have_one_end(threshold, k):
    estimate = operating_point(Y, SCORES, threshold=threshold, pos_label="ill").sensitivity
    interval = binomtest(k, 20).proportion_ci(0.95, method="exact")
    assert estimate == pytest.approx((k / 20, interval.low, interval.high))


def test_predictive_values_at_a_prevalence_follow_by_bayes():
    point = operating_point(Y, SCORES, threshold=0.6, pos_label="ill", prevalence=0.02)
    # Sensitivity and specificity are 0.9: of 1000, 18 of 20 ill and 98 of 980 well are called ill.
    assert point.positive_predictive_value.value == pytest.approx(18 / (18 + 98))
    assert point.negative_predictive_value.value == pytest.approx(882 / (882 + 2))
    assert point.prevalence == 0.02
    same = operating_point(Y, SCORES, threshold=0.6, pos_label="ill", prevalence=0.4)
    own = operating_point(Y, SCORES, threshold=0.6, pos_label="ill")
    assert same.positive_predictive_value.value == pytest.approx(
        own.positive_predictive_value.value
    )
    assert same.sensitivity == own.sensitivity


@pytest.mark.parametrize("prevalence", [0.05, 0.7])
def test_intervals_at_a_prevalence_hold_the_truth_often_enough(prevalence):
    rng = np.random.default_rng(0)
    sensitivity, specificity = 0.9, 0.8
    y = np.repeat([1, 0], [40, 60])
    ppv = sensitivity * prevalence
    ppv /= ppv + (1 - specificity) * (1 - prevalence)
    npv = specificity * (1 - prevalence)
    npv /= npv + (1 - sensitivity) * prevalence
    held = np.zeros(2)
    for _ in range(300):
        called = rng.random(100) < np.where(y == 1, sensitivity, 1 - specificity)
        point = operating_point(
            y, called, threshold=0.5, pos_label=1, prevalence=prevalence, confidence=0.9
        )
        for i, (estimate, truth) in enumerate(
            [(point.positive_predictive_value, ppv), (point.negative_predictive_value, npv)]
        ):
            held[i] += estimate.low <= truth <= estimate.high
    assert (held / 300 >= 0.9).all()


@pytest.mark.parametrize("prevalence", [None, 0.1])
def test_a_fraction_of_nothing_is_unknown(prevalence):
    settings = {"pos_label": "ill", "prevalence": prevalence}
    point = operating_point(Y, SCORES, threshold=2, **settings)
    assert point.sensitivity.value == 0
    assert math.isnan(point.positive_predictive_value.value)
    assert point.positive_predictive_value[1:] == (0, 1)
    point = operating_point(Y, SCORES, threshold=-np.inf, **settings)
    assert point.sensitivity.value == 1
    assert math.isnan(point.negative_predictive_value.value)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"pos_label": "sick"}, "y_true has no sample of pos_label='sick'"),
        ({"y_true": ["ill"] * 50}, "y_true has only samples of pos_label='ill'"),
        ({"pos_label": 1}, "pos_label has labels that are numbers"),
        ({"scores": SCORES[:-1]}, r"scores must be of shape \(50,\).*got \(49,\)"),
        ({"scores": np.full(50, np.nan)}, "scores contains NaN or infinity in 50 of 50 rows"),
        ({"scores": np.ma.MaskedArray(SCORES, [True] + [False] * 49)}, "scores is a masked array"),
        ({"scores": np.zeros((50, 2))}, r"scores must be of shape \(50,\)"),
        ({"threshold": "0.5"}, "threshold must be a number, got '0.5'"),
        ({"threshold": np.nan}, "threshold must be a number, got nan"),
        ({"prevalence": 1}, r"prevalence must be a number in \(0, 1\), got 1"),
        ({"confidence": 95}, r"confidence must be a number in \(0, 1\), got 95"),
    ],
)
def test_what_has_no_operating_point_is_named(changed, message):
    arguments = {"y_true": Y, "scores": SCORES, "threshold": 0.5, "pos_label": "ill"}
    with pytest.raises(ValueError, match=message):
        operating_point(**{**arguments, **changed})
