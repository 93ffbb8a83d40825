"""The scorers of selective prediction in searches and cross-validations, with metadata routing."""

import copy
import pickle

import numpy as np
import pytest
from conftest import tiny_classifier
from sklearn import config_context
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import check_scoring, make_scorer
from sklearn.model_selection import (
    GridSearchCV,
    RandomizedSearchCV,
    TunedThresholdClassifierCV,
    cross_val_score,
    cross_validate,
    permutation_test_score,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_msf.selective import (
    augrc,
    aurc,
    excess_aurc,
    neg_augrc_scorer,
    neg_aurc_scorer,
    neg_excess_aurc_scorer,
    uncertainty_of,
)

SCORERS = {
    "aurc": (neg_aurc_scorer, aurc),
    "excess_aurc": (neg_excess_aurc_scorer, excess_aurc),
    "augrc": (neg_augrc_scorer, augrc),
}


@pytest.fixture(scope="module")
def data():
    """Rows and labels that a linear model gets wrong in part, with weights that matter."""
    X, y = load_breast_cancer(return_X_y=True)
    X = StandardScaler().fit_transform(X[:, :2])
    return X, y, np.random.default_rng(0).uniform(0, 10, len(y))


def linear():
    return LogisticRegression()


def by_hand(metric, model, X, y, sample_weight=None):
    """The score without a scorer."""
    errors = model.predict(X) != y
    return -metric(errors, uncertainty_of(model, X), sample_weight=sample_weight)


@pytest.mark.parametrize("name", SCORERS)
def test_a_scorer_is_minus_its_metric(data, name):
    X, y, w = data
    scorer, metric = SCORERS[name]
    model = linear().fit(X, y)
    assert scorer(model, X, y) == by_hand(metric, model, X, y)
    assert scorer(model, X, y, sample_weight=w) == by_hand(metric, model, X, y, w)
    assert scorer(model, X, y, sample_weight=w) != scorer(model, X, y)
    assert repr(scorer) == scorer.__name__ == f"neg_{name}_scorer"
    assert f"Negative {name}" in scorer.__doc__


@pytest.mark.parametrize("name", SCORERS)
def test_a_copy_of_a_scorer_scores_the_same(data, name):
    X, y, w = data
    scorer, _ = SCORERS[name]
    model = linear().fit(X, y)
    for other in (pickle.loads(pickle.dumps(scorer)), copy.deepcopy(scorer)):
        assert other(model, X, y, sample_weight=w) == scorer(model, X, y, sample_weight=w)
    assert check_scoring(model, scoring=scorer) is scorer


def test_weights_of_a_search_reach_the_fit_beside_several_scorers(data):
    X, y, w = data
    scoring = {"acc": "accuracy", **{name: scorer for name, (scorer, _) in SCORERS.items()}}
    half = np.arange(len(y)) % 2 == 0
    search = GridSearchCV(linear(), {"C": [1.0]}, scoring=scoring, refit="aurc", cv=[(half, ~half)])
    search.fit(X, y, sample_weight=w)
    model = linear().fit(X[half], y[half], sample_weight=w[half])
    for name, (_, metric) in SCORERS.items():
        score = search.cv_results_[f"mean_test_{name}"][0]
        # Without routing scikit-learn passes the weights to every scorer that takes them.
        expected = by_hand(metric, model, X[~half], y[~half], w[~half])
        assert score == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("asked", [True, False])
def test_routed_weights_reach_a_scorer_that_asks_for_them(data, asked):
    X, y, w = data
    half = np.arange(len(y)) % 2 == 0
    with config_context(enable_metadata_routing=True):
        scoring = {"acc": make_scorer(lambda y, p: 0.0)}
        for name, (scorer, _) in SCORERS.items():
            scoring[name] = copy.deepcopy(scorer).set_score_request(sample_weight=asked)
        estimator = linear().set_fit_request(sample_weight=True)
        found = cross_validate(
            estimator, X, y, scoring=scoring, cv=[(half, ~half)], params={"sample_weight": w}
        )
        search = GridSearchCV(
            estimator, {"C": [1.0]}, scoring=scoring, refit="aurc", cv=[(half, ~half)]
        ).fit(X, y, sample_weight=w)
    model = linear().fit(X[half], y[half], sample_weight=w[half])
    for name, (_, metric) in SCORERS.items():
        expected = by_hand(metric, model, X[~half], y[~half], w[~half] if asked else None)
        assert found[f"test_{name}"][0] == pytest.approx(expected, rel=1e-9)
        assert search.cv_results_[f"mean_test_{name}"][0] == pytest.approx(expected, rel=1e-9)


def test_a_scorer_that_was_not_told_what_to_do_with_weights_says_so(data):
    X, y, w = data
    with config_context(enable_metadata_routing=True):
        estimator = linear().set_fit_request(sample_weight=True)
        with pytest.raises(ValueError, match="sample_weight.* are passed but are not explicitly"):
            cross_validate(
                estimator, X, y, scoring=neg_aurc_scorer, params={"sample_weight": w}, cv=2
            )


@pytest.mark.parametrize("routing", [True, False])
def test_a_scorer_alone_works_with_every_search(data, routing):
    X, y, _ = data
    expected = cross_val_score(linear(), X, y, scoring=neg_aurc_scorer, cv=3)
    pipeline = make_pipeline(StandardScaler(), linear())
    with config_context(enable_metadata_routing=routing):
        for search in (
            GridSearchCV(linear(), {"C": [1.0]}, scoring=neg_aurc_scorer, cv=3),
            RandomizedSearchCV(linear(), {"C": [1.0]}, n_iter=1, scoring=neg_aurc_scorer, cv=3),
        ):
            assert search.fit(X, y).best_score_ == pytest.approx(expected.mean())
        score, _, _ = permutation_test_score(
            linear(), X, y, scoring=neg_aurc_scorer, cv=3, n_permutations=1
        )
        assert score == pytest.approx(expected.mean())
        assert len(cross_val_score(pipeline, X, y, scoring=neg_aurc_scorer, cv=3)) == 3


@pytest.mark.parametrize("routing", [True, False])
def test_a_search_over_a_classifier_of_images_takes_weights(digits, routing):
    X, y = digits[0][:60], digits[1][:60]
    w = 1.0 + np.arange(60) % 3
    with config_context(enable_metadata_routing=routing):
        estimator, scorer = tiny_classifier(max_epochs=1), copy.deepcopy(neg_aurc_scorer)
        scoring = {"aurc": scorer, "acc": "accuracy"}
        if routing:
            estimator.set_fit_request(sample_weight=True)
            scorer.set_score_request(sample_weight=True)
            accuracy = make_scorer(lambda y, p: float(np.mean(y == p)))
            scoring["acc"] = accuracy
        search = GridSearchCV(
            estimator, {"learning_rate": [1e-3]}, scoring=scoring, refit="aurc", cv=2
        ).fit(X, y, sample_weight=w)
        scores = search.cv_results_["mean_test_aurc"]
    assert np.isfinite(scores).all()
    assert search.best_score_ == scores[0]
    refitted = tiny_classifier(max_epochs=1, learning_rate=1e-3).fit(X, y, sample_weight=w)
    np.testing.assert_array_equal(search.predict(X), refitted.predict(X))


@pytest.mark.parametrize("name", SCORERS)
@pytest.mark.parametrize("text", [False, True])
def test_a_threshold_of_classes_is_not_tuned_by_a_ranking(data, name, text):
    X, y, _ = data
    y = np.where(y == 1, "ill", "well") if text else y
    tuned = TunedThresholdClassifierCV(linear(), scoring=SCORERS[name][0])
    with pytest.raises(ValueError, match="pass TunedThresholdClassifierCV another scoring"):
        tuned.fit(X, y)
