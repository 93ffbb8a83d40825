"""scikit-learn's own checks, and the tools of scikit-learn that users put a classifier into."""

import pickle

import joblib
import numpy as np
import pytest
import sklearn
import skops.io
from conftest import tiny_classifier, tiny_latent_classifier
from forked_scripts import LIBRARIES, run_code
from numpy.testing import assert_array_equal
from sklearn.base import BaseEstimator, clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import BaggingClassifier, StackingClassifier, VotingClassifier
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV, cross_val_predict, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler
from sklearn.utils import estimator_checks
from sklearn.utils.estimator_checks import parametrize_with_checks

# The checks classify, and have a second for it.
FOR_CHECKS = {
    "learning_rate": 1e-2,
    "batch_size": 32,
    "patch_size": 1,
    "classification_fraction": 0.8,
}


CHECKS = parametrize_with_checks(
    [
        tiny_classifier(**FOR_CHECKS),
        tiny_latent_classifier(**FOR_CHECKS, encoded_size=(4, 16)),
    ]
)


def stable_id(value):
    """Names of the class and of the check; all parameters would be the path of a folder too."""
    if isinstance(value, BaseEstimator):
        return type(value).__name__
    return CHECKS.kwargs["ids"](value)


# They compare what is learned; the others look at errors, types and attributes.
CHECKS_OF_WHAT_IS_LEARNED = {
    # Labels, which a model that has learned nothing gives alike to all samples.
    "check_class_weight_classifiers": 20,
    "check_classifier_data_not_an_array": 20,
    "check_classifiers_classes": 20,
    "check_pipeline_consistency": 20,
    "check_supervised_y_2d": 20,
    # It asks for an accuracy, and has ten times as many samples as the others.
    "check_classifiers_train": 8,
    # Probabilities, which differ between samples sooner.
    "check_decision_proba_consistency": 6,
    "check_estimators_pickle": 6,
    "check_fit_idempotent": 6,
    "check_methods_sample_order_invariance": 6,
    "check_methods_subset_invariance": 6,
    "check_sample_weight_equivalence_on_dense_data": 6,
}


@pytest.mark.parametrize(*CHECKS.args, ids=stable_id)
def test_scikit_learns_checks(estimator, check):
    n_epochs = CHECKS_OF_WHAT_IS_LEARNED.get(check.func.__name__, 2)
    check(clone(estimator).set_params(max_epochs=n_epochs))


@pytest.mark.parametrize("name", sorted(CHECKS_OF_WHAT_IS_LEARNED))
def test_the_checks_of_what_is_learned_have_these_names(name):
    assert hasattr(estimator_checks, name)


def test_a_pipeline_scales_and_classifies(digits, make_classifier):
    X, y = digits
    flat = X.reshape(len(X), -1)
    pipeline = make_pipeline(MinMaxScaler(), make_classifier(image_shape=(8, 8))).fit(flat, y)
    scaled = MinMaxScaler().fit_transform(flat)
    alone = make_classifier(image_shape=(8, 8)).fit(scaled, y)
    assert_array_equal(pipeline.predict_proba(flat), alone.predict_proba(scaled))


def test_grid_search_runs_in_two_processes_over_a_nested_parameter(digits):
    X, y = digits
    flat = X.reshape(len(X), -1)
    # One test: both in the same two processes, which take long to start.
    for make_classifier in (tiny_classifier, tiny_latent_classifier):
        pipeline = make_pipeline(MinMaxScaler(), make_classifier(image_shape=(8, 8), max_epochs=1))
        grid = {f"{pipeline.steps[-1][0]}__learning_rate": [1e-3, 1e-2]}
        search = GridSearchCV(pipeline, grid, cv=2, n_jobs=2).fit(flat, y)
        for parameters, found in zip(
            search.cv_results_["params"], search.cv_results_["mean_test_score"], strict=True
        ):
            # Threads of another number round differently, which may turn a row or two.
            here = cross_val_score(clone(pipeline).set_params(**parameters), flat, y, cv=2).mean()
            assert found == pytest.approx(here, abs=2 / len(y))
        assert search.best_score_ == max(search.cv_results_["mean_test_score"])


def test_cross_validation_takes_images(digits, make_classifier):
    X, y = digits
    folds = [(np.arange(120, 240), np.arange(120)), (np.arange(120), np.arange(120, 240))]
    scores = cross_val_score(make_classifier(), X, y, cv=folds)
    p = cross_val_predict(make_classifier(), X, y, cv=folds, method="predict_proba")
    for score, (train, test) in zip(scores, folds, strict=True):
        by_hand = make_classifier().fit(X[train], y[train])
        assert_array_equal(p[test], by_hand.predict_proba(X[test]))
        assert score == by_hand.score(X[test], y[test])


def test_a_clone_has_the_parameters_and_nothing_learned(fitted):
    copy = clone(fitted)
    assert copy.get_params() == fitted.get_params()
    assert not hasattr(copy, "classes_")


@pytest.mark.parametrize("form", ["posterior", "velocity"])
def test_pickle_is_bit_equal(digits, form, make_classifier):
    X, y = digits
    classifier = make_classifier(label_prediction=form).fit(X, y)
    opened = pickle.loads(pickle.dumps(classifier))
    assert_array_equal(opened.predict_proba(X), classifier.predict_proba(X))
    sampled = (model.sample("one", random_state=0, n_steps=2) for model in (opened, classifier))
    assert_array_equal(*sampled)


def test_partial_fit_goes_on_after_a_pickle(digits, make_classifier):
    X, y = digits
    classifier = make_classifier().partial_fit(X, y, classes=np.unique(y))
    opened = pickle.loads(pickle.dumps(classifier))
    for model in (classifier, opened):
        model.partial_fit(X, y)
    assert_array_equal(opened.predict_proba(X), classifier.predict_proba(X))


def test_a_model_opens_in_another_process(fitted, digits, tmp_path):
    X = digits[0][:10]
    joblib.dump(fitted, tmp_path / "model.joblib")
    np.save(tmp_path / "X.npy", X)
    code = (
        "import joblib, numpy as np, sys\n"
        "p = joblib.load(sys.argv[1]).predict_proba(np.load(sys.argv[2]))\n"
        "np.save(sys.argv[3], p)"
    )
    files = [tmp_path / name for name in ("model.joblib", "X.npy", "p.npy")]
    ended = run_code(LIBRARIES, code, *files)
    assert ended.code == 0, ended.errors
    np.testing.assert_allclose(np.load(tmp_path / "p.npy"), fitted.predict_proba(X), rtol=1e-6)


def test_a_model_for_an_absent_device_opens_on_the_cpu_with_a_warning(fitted, digits):
    X = digits[0][:3]
    here = clone(fitted).set_params(max_epochs=1).fit(*digits)
    on_cpu = pickle.loads(pickle.dumps(here.set_params(device="cpu")))
    state = pickle.dumps(here.set_params(device="cuda:99"))
    with pytest.warns(UserWarning, match="device='cuda:99' is not available here"):
        opened = pickle.loads(state)
    assert opened.model_.device.type == "cpu"
    assert_array_equal(opened.predict_proba(X), on_cpu.predict_proba(X))


def test_probabilities_are_calibrated_by_scikit_learn(digits, fitted, make_classifier):
    X, y = digits
    # Labels of which a third are wrong: what was certain has to become less so.
    noisy = np.where(np.arange(len(y)) % 3 == 0, np.roll(y, 1), y)
    calibrated = CalibratedClassifierCV(FrozenEstimator(fitted), method="sigmoid").fit(X, noisy)
    assert log_loss(noisy, calibrated.predict_proba(X)) < log_loss(noisy, fitted.predict_proba(X))
    nested = CalibratedClassifierCV(make_classifier(), cv=2).fit(X, y)
    members = [member.predict_proba(X) for member in nested.calibrated_classifiers_]
    np.testing.assert_allclose(nested.predict_proba(X), np.mean(members, axis=0))


def test_it_votes_with_others(digits, make_classifier):
    X, y = digits
    members = [("flow", make_classifier(image_shape=(8, 8))), ("linear", LogisticRegression())]
    flat = X.reshape(len(X), -1) / 16
    voted = VotingClassifier(members, voting="soft").fit(flat, y).predict_proba(flat)
    alone = [member.fit(flat, y).predict_proba(flat) for _, member in members]
    np.testing.assert_allclose(voted, np.mean(alone, axis=0))


def test_what_it_predicts_is_stacked(digits, make_classifier):
    X, y = digits
    settings = {"max_epochs": 20, "learning_rate": 1e-2, "classification_fraction": 0.5}
    flow = make_classifier(image_shape=(8, 8), **settings)
    flat = X.reshape(len(X), -1) / 16
    stacked = StackingClassifier([("flow", flow)], cv=2).fit(flat, y)
    np.testing.assert_array_equal(stacked.transform(flat), flow.fit(flat, y).predict_proba(flat))
    # A linear model of our probabilities is no worse than the largest of them.
    assert stacked.score(flat, y) >= flow.score(flat, y) - 0.05


def test_bagging_takes_rows(digits, make_classifier):
    X, y = digits
    flat = X.reshape(len(X), -1)
    bag = BaggingClassifier(make_classifier(image_shape=(8, 8)), n_estimators=2, random_state=0)
    p = bag.fit(flat, y).predict_proba(flat)
    members = [member.predict_proba(flat) for member in bag.estimators_]
    np.testing.assert_allclose(p, np.mean(members, axis=0))
    assert np.abs(members[0] - members[1]).max() > 1e-3


def test_sample_weight_is_routed_through_a_search(digits, make_classifier):
    X, y = digits
    # All the weight on one class in training: the search must then know only that class best.
    weights = np.where(y == "one", 50.0, 0.02)
    with sklearn.config_context(enable_metadata_routing=True):
        classifier = make_classifier(max_epochs=8)
        classifier.set_fit_request(sample_weight=True).set_score_request(sample_weight=True)
        flow_params = {**classifier.flow_params, "beta": 2.0}
        search = GridSearchCV(classifier, {"flow_params": [flow_params]}, cv=2)
        routed = search.fit(X, y, sample_weight=weights).predict(X)
        plain = clone(search).fit(X, y).predict(X)
    assert np.mean(routed == "one") > 0.9
    assert np.mean(plain == "one") < 0.9


@pytest.mark.parametrize("warm_start", [False, True])
def test_skops_needs_to_trust_only_the_class_and_gives_the_same_bits(
    digits, warm_start, make_classifier
):
    X, y = digits
    classifier = make_classifier(warm_start=warm_start).fit(X, y)
    dumped = skops.io.dumps(classifier)
    untrusted = skops.io.get_untrusted_types(data=dumped)
    assert untrusted == [f"{type(classifier).__module__}.{type(classifier).__name__}"]
    opened = skops.io.loads(dumped, trusted=untrusted)
    np.testing.assert_array_equal(opened.predict_proba(X), classifier.predict_proba(X))
