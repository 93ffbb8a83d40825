"""scikit-learn's own checks, and the tools of scikit-learn that users put a classifier into."""

import pickle
import subprocess
import sys

import joblib
import numpy as np
import pytest
import sklearn
import skops.io
from conftest import tiny_classifier, tiny_latent_classifier
from numpy.testing import assert_array_equal
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import BaggingClassifier, StackingClassifier, VotingClassifier
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_predict, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

# The checks classify, and have a second for it.
FOR_CHECKS = {
    "max_epochs": 20,
    "learning_rate": 1e-2,
    "batch_size": 32,
    "patch_size": 1,
    "t1_share": 0.8,
}


@parametrize_with_checks(
    [
        tiny_classifier(**FOR_CHECKS),
        tiny_latent_classifier(**FOR_CHECKS, encoded_size=(4, 16)),
    ]
)
def test_scikit_learns_checks(estimator, check):
    check(estimator)


def test_a_pipeline_scales_and_classifies(digits, make_classifier):
    X, y = digits
    flat = X.reshape(len(X), -1)
    pipeline = make_pipeline(MinMaxScaler(), make_classifier(image_shape=(8, 8)))
    assert pipeline.fit(flat, y).predict(flat).shape == y.shape


def test_grid_search_runs_in_two_processes_over_a_nested_parameter(digits, make_classifier):
    X, y = digits
    pipeline = make_pipeline(MinMaxScaler(), make_classifier(image_shape=(8, 8), max_epochs=1))
    grid = {f"{pipeline.steps[-1][0]}__learning_rate": [1e-3, 1e-2]}
    search = GridSearchCV(pipeline, grid, cv=2, n_jobs=2).fit(X.reshape(len(X), -1), y)
    assert set(search.best_params_) == set(grid)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()


def test_cross_validation_takes_images(digits, make_classifier):
    X, y = digits
    assert len(cross_val_score(make_classifier(), X, y, cv=2)) == 2
    p = cross_val_predict(make_classifier(), X, y, cv=2, method="predict_proba")
    assert p.shape == (len(X), 3)


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
    drawn = (model.sample("one", random_state=0, n_steps=2) for model in (opened, classifier))
    assert_array_equal(*drawn)


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
        "import joblib, numpy as np\n"
        "p = joblib.load('model.joblib').predict_proba(np.load('X.npy'))\n"
        "np.save('p.npy', p)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
    np.testing.assert_allclose(np.load(tmp_path / "p.npy"), fitted.predict_proba(X), rtol=1e-6)


def test_a_model_for_an_absent_device_opens_on_the_cpu_with_a_warning(fitted, digits):
    state = pickle.dumps(
        clone(fitted).set_params(device="cpu").fit(*digits).set_params(device="cuda:99")
    )
    with pytest.warns(UserWarning, match="device='cuda:99' is not available here"):
        opened = pickle.loads(state)
    assert opened.predict(digits[0][:3]).shape == (3,)


def test_probabilities_are_calibrated_by_scikit_learn(digits, fitted, make_classifier):
    X, y = digits
    calibrated = CalibratedClassifierCV(FrozenEstimator(fitted), method="sigmoid").fit(X, y)
    assert calibrated.predict_proba(X).shape == (len(X), 3)
    nested = CalibratedClassifierCV(make_classifier(), cv=2).fit(X, y)
    assert nested.predict(X).shape == y.shape


@pytest.mark.parametrize("make", [StackingClassifier, VotingClassifier])
def test_it_is_a_member_of_ensembles(digits, make, make_classifier):
    X, y = digits
    members = [("flow", make_classifier(image_shape=(8, 8))), ("linear", LogisticRegression())]
    flat = X.reshape(len(X), -1) / 16
    assert make(members).fit(flat, y).predict(flat).shape == y.shape


def test_bagging_takes_rows(digits, make_classifier):
    X, y = digits
    flat = X.reshape(len(X), -1)
    bag = BaggingClassifier(make_classifier(image_shape=(8, 8)), n_estimators=2, random_state=0)
    assert bag.fit(flat, y).predict(flat).shape == y.shape


def test_sample_weight_is_routed_through_a_search(digits, make_classifier):
    X, y = digits
    # All the weight on one class in training: the search must then know only that class best.
    weights = np.where(y == "one", 50.0, 0.02)
    with sklearn.config_context(enable_metadata_routing=True):
        classifier = make_classifier(max_epochs=8)
        classifier.set_fit_request(sample_weight=True).set_score_request(sample_weight=True)
        search = GridSearchCV(classifier, {"beta": [2.0, 4.0]}, cv=2)
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
