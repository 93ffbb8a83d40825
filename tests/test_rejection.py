"""Kinds of uncertainty, calibration and rejection as methods of the estimators."""

import contextlib
import dataclasses
import datetime
import functools
import itertools
import pickle
import time
import warnings
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import skops.io
from conftest import fitted_classifier, three_digits, tiny_classifier
from sklearn import config_context
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler

from sklearn_msf._estimator import base
from sklearn_msf._estimator.calibration import HeldOut, temperature_of
from sklearn_msf._estimator.rejection import RejectionRule, rejects
from sklearn_msf.exceptions import DivergenceError
from sklearn_msf.model.temperature import apply_temperature
from sklearn_msf.model.uncertainty import UNCERTAINTIES
from sklearn_msf.runtime.process_group import ProcessGroup
from sklearn_msf.selective import certified_threshold, confusion_matrix_with_reject, costs_of
from sklearn_msf.training.checkpoints import Checkpoints
from sklearn_msf.training.trainer import Trainer


@functools.cache
def calibration_labels(fitted):
    X, y = three_digits()
    unsure = fitted.predict_uncertainty(X).argsort()[-len(y) // 3 :]
    y = y.copy()
    y[unsure] = np.where(y[unsure] == "one", "two", "one")
    return y


@pytest.fixture
def calibration(digits, fitted):
    """Images and labels, of which the wrong ones are where the classifier is least certain."""
    return digits[0], calibration_labels(fitted).copy()


@functools.cache
def pickled_that_rejects(fitted):
    X, y = three_digits()[0], calibration_labels(fitted)
    copy = pickle.loads(pickle.dumps(fitted))
    copy.fit_reject(X, y, target_risk=0.15)
    assert 0 < copy.predict_with_reject(X).count() < len(X)
    return pickle.dumps(copy)


@pytest.fixture
def rejecting(fitted):
    """A copy of the fitted classifier that learned to abstain, and sometimes does."""
    return pickle.loads(pickled_that_rejects(fitted))


@functools.cache
def fitted_without_calibration(make_classifier):
    return make_classifier().fit(*three_digits())


# Uncertainty


@pytest.mark.parametrize("kind", UNCERTAINTIES)
def test_every_kind_gives_a_number_for_each_sample_whatever_is_beside_it(fitted, digits, kind):
    X = digits[0][:40]
    together = fitted.predict_uncertainty(X, kind)
    assert together.shape == (40,)
    assert np.isfinite(together).all()
    np.testing.assert_array_equal(fitted.predict_uncertainty(X[[30, 5]], kind), together[[30, 5]])


def test_the_default_kind_is_the_margin(fitted, digits):
    X = digits[0][:40]
    ranked = np.sort(fitted.predict_proba(X), axis=1)
    np.testing.assert_allclose(fitted.predict_uncertainty(X), 1 - ranked[:, -1] + ranked[:, -2])


def test_a_single_draw_cannot_disagree(fitted, digits):
    one = pickle.loads(pickle.dumps(fitted)).set_params(n_draws=1)
    with pytest.raises(ValueError, match="kind='draws'.*n_draws >= 2, got 1"):
        one.predict_uncertainty(digits[0][:3], "draws")


def test_training_images_are_more_usual_than_noise(fitted, digits):
    X = digits[0][:40]
    noise = np.random.default_rng(0).uniform(0, 16, X.shape)
    scores = np.concatenate([fitted.score_samples(X), fitted.score_samples(noise)])
    assert roc_auc_score(np.arange(80) < 40, scores) > 0.9


def test_a_pipeline_passes_score_samples_on(fitted, digits):
    X = digits[0][:5]
    pipeline = make_pipeline("passthrough", fitted)
    np.testing.assert_array_equal(pipeline.score_samples(X), fitted.score_samples(X))


# Calibration


def test_calibration_changes_the_probabilities_and_nothing_else(make_classifier, digits):
    X, y = digits
    plain = fitted_without_calibration(make_classifier)
    calibrated = make_classifier(calibration="temperature").fit(X, y)
    assert calibrated.model_.temperature != 1
    assert calibrated.history_[-1]["n_images"] == len(X)
    np.testing.assert_array_equal(calibrated.predict(X), plain.predict(X))
    np.testing.assert_array_equal(
        calibrated.sample("one", random_state=0), plain.sample("one", random_state=0)
    )
    p = apply_temperature(plain.predict_proba(X), calibrated.model_.temperature)
    np.testing.assert_array_equal(calibrated.predict_proba(X), p)


def test_a_seed_has_one_temperature(make_classifier, digits):
    fits = [make_classifier(calibration="temperature").fit(*digits) for _ in range(2)]
    assert fits[0].model_.temperature == fits[1].model_.temperature


def test_labels_that_are_noise_soften_the_probabilities(make_classifier, digits):
    X, y = digits
    noise = np.random.default_rng(0).permutation(y)
    settings = {"max_epochs": 50, "channels": 16, "calibration": "temperature"}
    classifier = make_classifier(**settings).fit(X, noise)
    assert classifier.model_.temperature > 1.3


def test_without_calibration_the_temperature_is_one(fitted):
    assert fitted.model_.temperature == 1


def test_calibration_and_early_stopping_share_their_samples(make_classifier, digits):
    X, y = digits
    classifier = make_classifier(calibration="temperature", early_stopping=True).fit(X, y)
    assert classifier.model_.temperature != 1
    assert classifier.history_[-1]["n_images"] == round(0.9 * len(X))
    assert "validation_score" in classifier.history_[-1]


def test_time_is_left_to_calibrate(make_classifier, digits, monkeypatch):
    settings = {"max_epochs": 10**6, "calibration": "temperature"}
    # A clock that does not depend on how busy the machine is.
    ticks = itertools.count()
    monkeypatch.setattr(time, "perf_counter", lambda: 0.005 * next(ticks))
    started = time.perf_counter()
    classifier = make_classifier(time_budget=2.0, **settings).fit(*digits)
    assert classifier.model_.temperature != 1
    # The whole budget was meant to be used, three fifths of it for the model.
    trained = sum(epoch_log["seconds"] for epoch_log in classifier.history_)
    assert trained < 0.7 * (time.perf_counter() - started)


def test_a_threshold_of_auto_holds_for_the_precision_that_auto_was(rejecting, calibration):
    X, y = calibration
    classifier = rejecting.set_params(precision="auto").fit_reject(X, y, target_risk=0.15)
    rejected = np.ma.getmaskarray(classifier.predict_with_reject(X))
    classifier.set_params(precision=classifier.rejection_.precision)
    found = np.ma.getmaskarray(classifier.predict_with_reject(X))
    np.testing.assert_array_equal(found, rejected)
    (other,) = {"float32", "bfloat16"} - {classifier.rejection_.precision}
    with pytest.raises(ValueError, match=f"precision='{other}' was 'auto'"):
        classifier.set_params(precision=other).predict_with_reject(X)


def test_a_part_that_cannot_be_split_off_is_named_before_training(make_classifier, digits):
    X, y = digits
    lonely = np.where(np.arange(len(y)) == 3, "lonely", y)
    classifier = make_classifier(calibration="temperature", max_epochs=10**9)
    with pytest.raises(
        ValueError, match="calibration cannot hold out a fraction of 0.333 of 240 samples"
    ):
        classifier.fit(X, lonely)


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), DivergenceError("nan"), MemoryError(), OSError("disk full")]
)
def test_a_calibration_that_fails_leaves_the_model(make_classifier, digits, monkeypatch, error):
    X, y = digits
    plain = fitted_without_calibration(make_classifier)
    fit = Trainer.fit

    def failing(trainer, *arguments, **settings):
        if not settings.get("survives_interrupts", True):
            raise error
        return fit(trainer, *arguments, **settings)

    monkeypatch.setattr(Trainer, "fit", failing)
    with pytest.warns(UserWarning, match="The model was trained, but .* not calibrated"):
        classifier = make_classifier(calibration="temperature").fit(X, y)
    assert classifier.model_.temperature == 1
    np.testing.assert_array_equal(classifier.predict_proba(X), plain.predict_proba(X))


@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError(), RuntimeError("no device")])
def test_a_calibration_on_a_validation_set_that_fails_leaves_the_model(
    make_classifier, digits, monkeypatch, error
):
    X, y = digits
    plain = fitted_without_calibration(make_classifier)

    def failing(*arguments):
        raise error

    monkeypatch.setattr("sklearn_msf._estimator.calibration.fit_temperature", failing)
    with pytest.warns(UserWarning, match="not calibrated: predicting the validation images"):
        classifier = make_classifier(calibration="temperature").fit(X, y, X_val=X, y_val=y)
    assert classifier.model_.temperature == 1
    np.testing.assert_array_equal(classifier.predict_proba(X), plain.predict_proba(X))


def test_an_interrupt_of_a_calibration_is_one_where_others_would_wait():
    def interrupted(field):
        raise KeyboardInterrupt

    samples = SimpleNamespace(weights=np.ones(2), labels=np.arange(2))
    held_out = HeldOut(samples, interrupted)
    alone, one_of_two = (
        SimpleNamespace(average=None, group=ProcessGroup(0, size)) for size in (1, 2)
    )
    with pytest.warns(UserWarning, match="was interrupted"):
        assert temperature_of(held_out, alone) is None
    with pytest.raises(KeyboardInterrupt):
        temperature_of(held_out, one_of_two)


def test_a_calibration_that_was_cut_off_goes_on(make_classifier, digits, tmp_path, monkeypatch):
    settings = {"calibration": "temperature", "checkpoint_every": 1, "max_epochs": 3}
    whole = make_classifier(**settings).fit(*digits)
    epochs = []
    save = Checkpoints.save

    def cut_off(checkpoints, state, *, n_epochs, finished):
        save(checkpoints, state, n_epochs=n_epochs, finished=finished)
        epochs.append(n_epochs)
        if len(epochs) == 5:
            raise SystemExit

    monkeypatch.setattr(Checkpoints, "save", cut_off)
    for _ in range(2):
        with contextlib.suppress(SystemExit):
            classifier = make_classifier(checkpoint_dir=tmp_path, **settings).fit(*digits)
    assert epochs == [1, 2, 3, 1, 2, 3]
    assert classifier.model_.temperature == whole.model_.temperature


def test_a_second_warm_fit_keeps_the_temperature(make_classifier, digits):
    classifier = make_classifier(calibration="temperature", warm_start=True).fit(*digits)
    before = classifier.model_.temperature
    assert classifier.fit(*digits).model_.temperature == before != 1
    assert classifier.set_params(calibration=None).fit(*digits).model_.temperature == 1
    # There is none to keep now, and no samples that the model does not know.
    with pytest.warns(UserWarning, match="calibration='temperature' is left out: warm_start"):
        classifier.set_params(calibration="temperature").fit(*digits)
    assert classifier.model_.temperature == 1


def test_partial_fit_holds_out_nothing(make_classifier, digits):
    X, y = digits
    with pytest.raises(ValueError, match="calibration='temperature' is not supported by partial"):
        make_classifier(calibration="temperature").partial_fit(X, y, classes=np.unique(y))


# A fitted threshold


def test_answers_come_up_to_the_threshold(rejecting, digits):
    X = digits[0]
    answers = rejecting.predict_with_reject(X)
    uncertainty = rejecting.predict_uncertainty(X)
    np.testing.assert_array_equal(answers.mask, uncertainty > rejecting.rejection_.threshold)
    np.testing.assert_array_equal(answers.compressed(), rejecting.predict(X)[~answers.mask])


def test_a_batch_of_one_is_answered_as_it_is_among_others(rejecting, digits):
    X = digits[0][:30]
    together = rejecting.predict_with_reject(X)
    assert 0 < together.count() < 30
    alone = [rejecting.predict_with_reject(X[i : i + 1]) for i in range(30)]
    np.testing.assert_array_equal(np.ma.concatenate(alone).mask, together.mask)


def test_the_certified_risk_holds_on_the_calibration_samples(rejecting, calibration):
    X, y = calibration
    answers = rejecting.predict_with_reject(X)
    assert np.mean(answers.compressed() != y[~answers.mask]) <= 0.15
    assert np.mean(rejecting.predict(X) != y) > 0.15


def test_coverage_overrides_the_threshold(rejecting, digits):
    assert rejecting.predict_with_reject(digits[0], coverage=0.5).count() == len(digits[0]) // 2


def test_without_a_threshold_nine_tenths_are_answered(fitted, digits):
    X = digits[0]
    assert fitted.predict_with_reject(X).count() == int(0.9 * len(X))


def test_another_kind_can_decide(fitted, digits):
    X = digits[0]
    answers = fitted.predict_with_reject(X, 0.5, kind="distance")
    uncertainty = fitted.predict_uncertainty(X, "distance")
    assert uncertainty[~answers.mask].max() <= uncertainty[answers.mask].min()


def test_what_cannot_be_certified_is_said_and_never_answered(rejecting, digits):
    X, y = digits
    wrong = np.where(y == "one", "two", "one")
    with pytest.warns(UserWarning, match="None can be certified.*target_risk=0.05"):
        rejecting.fit_reject(X, wrong)
    assert rejecting.rejection_.threshold is None
    assert rejecting.predict_with_reject(X).count() == 0
    assert rejecting.predict_with_reject(X[:1]).count() == 0


def test_samples_without_an_error_certify_all_with_a_warning(rejecting, digits):
    """59 right answers of 59 certify 5 %, but those of training images promise nothing."""
    X = digits[0]
    y = rejecting.predict(X)
    with pytest.warns(UserWarning, match="y_cal has 240 labels and no answer on X_cal is wrong"):
        rejecting.fit_reject(X, y)
    largest = rejecting.predict_uncertainty(X).max()
    assert rejecting.rejection_.threshold == largest
    with pytest.warns(UserWarning, match="no answer on X_cal is wrong"):
        rejecting.fit_reject(X, y, target_risk=dict.fromkeys(rejecting.classes_, 0.1))
    assert rejecting.rejection_.threshold == largest


NOT_FINITE = np.array([0.1, np.nan, 0.2, np.inf, -np.inf, 0.9])


@pytest.mark.parametrize(
    ("threshold", "coverage", "answered"),
    [
        (0.5, None, [0, 2]),
        (0.05, None, []),
        (None, None, []),
        ("no rule", 1 / 6, [0]),
        ("no rule", 0.5, [0, 2, 5]),
        # Three of six have no uncertainty to be ranked by.
        ("no rule", 1.0, [0, 2, 5]),
        ("no rule", None, [0, 2, 5]),
    ],
)
def test_what_has_no_finite_uncertainty_is_never_answered(threshold, coverage, answered):
    rule = None if threshold == "no rule" else RejectionRule(threshold, "margin", {})
    rejected = rejects(NOT_FINITE, rule, coverage)
    assert np.flatnonzero(~rejected).tolist() == answered


@pytest.mark.parametrize("kind", UNCERTAINTIES)
def test_a_network_whose_values_are_not_finite_answers_nothing(rejecting, calibration, kind):
    X, y = (part[:60] for part in calibration)
    rejecting.fit_reject(X, y, target_risk=0.8, kind=kind)
    broken = pickle.loads(pickle.dumps(rejecting))
    for parameter in broken.model_.field.parameters():
        parameter.data.fill_(np.nan)
    for coverage in (None, 1.0):
        assert rejecting.predict_with_reject(X[:20], coverage).count() > 0
        answers, rejected = broken.predict_with_reject(X[:20], coverage, return_mask=True)
        assert rejected.all()
        assert answers.count() == 0
        labels = broken.predict_with_reject(X[:20], coverage, reject_label="unsure")
        assert (labels == "unsure").all()


@pytest.mark.parametrize(
    "method",
    [
        "predict",
        "predict_proba",
        "predict_log_proba",
        "decision_function",
        "predict_uncertainty",
        "predict_with_reject",
        "score_samples",
        "reconstruct",
    ],
)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_images_that_are_not_finite_are_refused_by_a_certified_rule(
    rejecting, digits, method, value
):
    X = digits[0][:4].astype(np.float32)
    X[2, 0, 0] = value
    with config_context(assume_finite=True):
        with pytest.raises(ValueError, match=r"X contains .*1 of 4 images"):
            getattr(rejecting, method)(X)
        with pytest.raises(ValueError, match=r"X contains .*1 of 4 images"):
            rejecting.counterfactual(X, "one")
        with pytest.raises(ValueError, match=r"X contains .*1 of 4 images"):
            rejecting.fit_reject(X, digits[1][:4])


def test_a_threshold_of_another_precision_is_used_with_a_warning(rejecting, calibration, digits):
    X = digits[0]
    assert rejecting.rejection_.precision == "float32"
    moved = pickle.loads(pickle.dumps(rejecting))
    # As a machine on which precision="auto" is bfloat16 would have learned it.
    moved.rejection_ = replace(rejecting.rejection_, precision="bfloat16")
    with pytest.warns(UserWarning, match=r"fit_reject computed in bfloat16.* in float32.* again"):
        labels = moved.predict_with_reject(X)
    assert labels.mask.tolist() == rejecting.predict_with_reject(X).mask.tolist()
    # A coverage needs no threshold.
    moved.predict_with_reject(X, coverage=0.5)
    moved.fit_reject(*calibration, target_risk=0.15)
    moved.predict_with_reject(X)


def test_fitting_anew_forgets_the_threshold(rejecting, digits):
    assert not hasattr(clone(rejecting), "rejection_")
    again = pickle.loads(pickle.dumps(rejecting))
    again.partial_fit(*digits, classes=rejecting.classes_)
    assert not hasattr(again, "rejection_")
    rejecting.set_params(max_epochs=1).fit(*digits)
    assert not hasattr(rejecting, "rejection_")


def test_a_threshold_is_saved_with_numbers_of_numpy(rejecting, calibration, tmp_path):
    rejecting.set_params(n_draws=np.int64(2)).fit_reject(*calibration, target_risk=0.15)
    rejecting.save_pretrained(tmp_path)
    opened = type(rejecting).from_pretrained(tmp_path)
    X = calibration[0]
    np.testing.assert_array_equal(
        opened.predict_with_reject(X).mask, rejecting.predict_with_reject(X).mask
    )


@pytest.mark.parametrize("certified", [True, False])
def test_threshold_and_temperature_are_saved(fitted, calibration, tmp_path, certified):
    X = calibration[0]
    model = pickle.loads(pickle.dumps(fitted))
    model.model_ = dataclasses.replace(model.model_, temperature=1.7)
    model.fit_reject(*calibration, target_risk=0.3, kind="entropy")
    if not certified:
        model.rejection_ = dataclasses.replace(model.rejection_, threshold=None)
    model.save_pretrained(tmp_path)
    opened = type(model).from_pretrained(tmp_path)
    for other in (opened, pickle.loads(pickle.dumps(model))):
        np.testing.assert_array_equal(other.predict_proba(X), model.predict_proba(X))
        assert (other.rejection_.kind, other.rejection_.threshold) == (
            "entropy",
            model.rejection_.threshold,
        )


# Risks of classes, and costs


def outputs(classifier, images):
    return classifier.predict(images), classifier.predict_uncertainty(images)


def test_risks_of_classes_have_the_threshold_of_the_function(rejecting, calibration):
    X, y = calibration
    target = {"one": 0.2, "zero": 0.15}
    rejecting.fit_reject(X, y, target_risk=target, confidence=0.9)
    answers, uncertainty = outputs(rejecting, X)
    threshold = certified_threshold(
        answers != y, uncertainty, target_risk=target, y_true=y, confidence=0.9
    )
    rule = rejecting.rejection_
    assert rule.threshold == threshold is not None
    assert (rule.target_risk, rule.confidence) == (target, 0.9)
    masked = rejecting.predict_with_reject(X)
    assert 0 < masked.count() < len(X)
    for label, risk in target.items():
        assert np.mean((masked.data != y)[y == label] & ~masked.mask[y == label]) <= risk


def test_the_rule_counts_answers_by_class(rejecting, calibration):
    X, y = calibration
    rejecting.fit_reject(X, y, target_risk=0.3)
    rule, answers = rejecting.rejection_, rejecting.predict_with_reject(X)
    expected = confusion_matrix_with_reject(y, answers, labels=rejecting.classes_)
    np.testing.assert_array_equal(rule.confusion_matrix, expected)
    assert (rule.n_images, rule.n_accepted) == (len(X), answers.count())
    assert rule.n_wrong == np.sum(answers.compressed() != y[~answers.mask])


COSTS = [[0.0, 1.0, 8.0], [1.0, 0.0, 1.0], [2.0, 1.0, 0.0]]


def test_costs_have_the_threshold_of_the_function(rejecting, calibration):
    X, y = calibration
    rejecting.fit_reject(X, y, target_risk=1.5, cost_matrix=COSTS)
    answers, uncertainty = outputs(rejecting, X)
    costs = costs_of(y, answers, COSTS, labels=rejecting.classes_)
    threshold = certified_threshold(costs, uncertainty, target_risk=1.5, max_loss=8)
    assert rejecting.rejection_.threshold == threshold is not None
    assert rejecting.rejection_.cost_matrix == tuple(map(tuple, COSTS))


def test_one_cost_for_every_error_is_bounded_exactly(rejecting, calibration):
    X, y = calibration
    plain = rejecting.rejection_.threshold
    rejecting.fit_reject(X, y, target_risk=0.15 * 4, cost_matrix=4 * (1 - np.eye(3)))
    assert rejecting.rejection_.threshold == plain


def test_classes_that_cannot_be_certified_are_never_answered(rejecting, digits):
    X = digits[0]
    # Every answer is wrong, and about 80 images of a class may have no error among those answered.
    wrong = np.roll(rejecting.classes_, 1)[rejecting.predict_proba(X).argmax(axis=1)]
    target = dict.fromkeys(["one", "two", "zero"], 0.05)
    with pytest.warns(UserWarning, match="None can be certified.*target_risk={'one': 0.05, 'two'"):
        rejecting.fit_reject(X, wrong, target_risk=target)
    assert rejecting.rejection_.threshold is None
    assert rejecting.predict_with_reject(X).count() == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_risk": {"seven": 0.1}}, r"target_risk names \['seven'\], not among the classes"),
        ({"target_risk": {1: 0.1}}, "target_risk has labels that are numbers"),
        ({"target_risk": {}}, "target_risk={} names no class"),
        ({"target_risk": {"one": 0}}, r"target_risk\['one'\] must be a number in \(0, 1\), got 0"),
        (
            {"target_risk": {"one": 0.1}, "cost_matrix": COSTS},
            "cost_matrix cannot be used with target_risk={'one': 0.1}",
        ),
        (
            {"target_risk": 8, "cost_matrix": COSTS},
            r"must be a number in \(0, max_loss=8.0\), got 8",
        ),
        ({"target_risk": 0.1, "cost_matrix": [[0, 1], [1, 0]]}, r"must be of shape \(3, 3\)"),
        (
            {"target_risk": {"one": 0.01}},
            r"images of the class 'one'; target_risk\['one'\]=0.01 .* needs at least 299",
        ),
        ({"target_risk": 0.05, "cost_matrix": COSTS}, r"X_cal has 240 images.* at least 9\d\d"),
    ],
)
def test_targets_that_cannot_be_kept_to_are_named(fitted, calibration, settings, message):
    with pytest.raises(ValueError, match=message):
        fitted.fit_reject(*calibration, **settings)
    assert not hasattr(fitted, "rejection_")


# Inside scikit-learn


def test_the_last_step_of_a_pipeline_abstains(make_classifier, calibration):
    X, y = calibration
    rows = X.reshape(len(X), -1)
    pipeline = make_pipeline(MinMaxScaler(), make_classifier(image_shape=(8, 8))).fit(rows, y)
    before, last = pipeline[:-1], pipeline[-1]
    last.fit_reject(before.transform(rows), y, target_risk=0.9)
    answers = last.predict_with_reject(before.transform(rows), coverage=0.5, reject_label="?")
    answered = answers != "?"
    assert answered.sum() == len(X) // 2
    np.testing.assert_array_equal(answers[answered], pipeline.predict(rows)[answered])


def test_a_frozen_classifier_abstains(rejecting, calibration):
    X, y = calibration
    frozen = FrozenEstimator(rejecting)
    frozen.fit_reject(X, y, target_risk=0.15)
    np.testing.assert_array_equal(
        frozen.predict_with_reject(X).mask, rejecting.predict_with_reject(X).mask
    )


# Labels of rejected samples


def test_a_reject_label_stands_for_rejected_samples(fitted, digits):
    X = digits[0]
    labels, rejected = fitted.predict_with_reject(X, 0.5, reject_label="unsure", return_mask=True)
    assert type(labels) is np.ndarray
    np.testing.assert_array_equal(labels == "unsure", rejected)
    np.testing.assert_array_equal(labels[~rejected], fitted.predict(X)[~rejected])


def test_the_mask_comes_with_masked_labels_too(fitted, digits):
    labels, rejected = fitted.predict_with_reject(digits[0], 0.5, return_mask=True)
    np.testing.assert_array_equal(labels.mask, rejected)
    # Filling in labels by hand leaves the mask that came beside them.
    n_rejected = rejected.sum()
    labels[rejected] = "zero"
    assert not labels.mask.any()
    assert rejected.sum() == n_rejected > 0


@pytest.mark.parametrize(
    ("labels", "sentinel"),
    [
        (np.array([0, 1, 2], dtype=np.uint8), -1),
        (np.array([0, 1, 2**63 + 1], dtype=np.uint64), -1),
        (np.array([0.5, 1.5, 2.5]), np.nan),
        (np.array(["a", "b", "c"], dtype=object), "other"),
        (np.array(["2024-01", "2024-02", "2024-03"], dtype="M8[D]"), np.datetime64("1900-01-01")),
        (np.array(["2024-01", "2024-02", "2024-03"], dtype="M8[s]"), np.datetime64("NaT")),
        (np.array([1, 2, 3], dtype="m8[D]"), np.timedelta64(-1, "s")),
    ],
)
def test_labels_of_every_type_have_a_sentinel(fitted, digits, labels, sentinel):
    other = pickle.loads(pickle.dumps(fitted))
    other.model_ = replace(other.model_, classes=labels)
    X = digits[0][:24]
    answers, rejected = other.predict_with_reject(X, 0.5, reject_label=sentinel, return_mask=True)
    np.testing.assert_array_equal(answers[rejected], np.full(12, sentinel))
    np.testing.assert_array_equal(answers[~rejected], other.predict(X)[~rejected])


@pytest.mark.parametrize("sentinel", [datetime.date(1900, 1, 1), datetime.datetime(1900, 1, 1)])
def test_a_date_of_python_stands_for_rejected_samples(fitted, digits, sentinel):
    other = pickle.loads(pickle.dumps(fitted))
    classes = np.array(["2024-01", "2024-02", "2024-03"], dtype="M8[s]")
    other.model_ = replace(other.model_, classes=classes)
    X = digits[0][:24]
    answers = other.predict_with_reject(X, 0.5, reject_label=sentinel)
    assert answers.dtype.kind == "M"
    assert (answers == np.datetime64("1900-01-01")).sum() == 12
    with pytest.raises(ValueError, match="is one of the classes"):
        other.predict_with_reject(X, 0.5, reject_label=np.datetime64("2024-02-01"))
    # In nanoseconds it would not go beside the last class.
    other.model_ = replace(other.model_, classes=np.append(classes[:2], np.datetime64("9999-01")))
    in_ns = np.datetime64("1900-01-01", "ns")
    answers, rejected = other.predict_with_reject(X, 0.5, reject_label=in_ns, return_mask=True)
    assert set(answers[~rejected]) <= set(other.classes_)
    missing = other.predict_with_reject(X, 0.5, reject_label=pd.NaT)
    np.testing.assert_array_equal(np.isnat(missing), rejected)
    other.model_ = replace(other.model_, classes=np.array([1, 2, 3], dtype="m8[D]"))
    with pytest.raises(ValueError, match="have no common unit of time"):
        other.predict_with_reject(X, 0.5, reject_label=np.timedelta64(1, "Y"))


# Bad input


@pytest.mark.parametrize("name", ["target_risk", "confidence"])
@pytest.mark.parametrize("value", [0, 1, -0.1, 1.5, np.nan, "0.5", None])
def test_fractions_are_inside_zero_and_one(fitted, calibration, name, value):
    with pytest.raises(ValueError, match=rf"{name} must be a number in \(0, 1\), got"):
        fitted.fit_reject(*calibration, **{name: value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda X, y: (X, np.full(len(y), "one")), "y_cal has the one class 'one'"),
        (lambda X, y: (X, np.where(y == "one", "seven", y)), r"y_cal has labels \['seven'\]"),
        (
            lambda X, y: (X[:30], y[:30]),
            r"X_cal has 30 images; target_risk=0.05.*needs at least \d+",
        ),
        (lambda X, y: (X, y[:-1]), r"y_cal must be of shape \(240,\)"),
        (lambda X, y: (X[:, :4], y), "X has images of shape"),
    ],
)
def test_calibration_data_that_cannot_be_used_are_named(fitted, calibration, change, message):
    with pytest.raises(ValueError, match=message):
        fitted.fit_reject(*change(*calibration))
    assert not hasattr(fitted, "rejection_")


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("one", "reject_label='one' is one of the classes"),
        (-1, "reject_label=-1 must be a label of the type of the classes"),
        (["?"], "must be a label of the type"),
    ],
)
def test_a_reject_label_is_a_label_and_no_class(fitted, digits, label, message):
    with pytest.raises(ValueError, match=message):
        fitted.predict_with_reject(digits[0], reject_label=label)


@pytest.mark.parametrize(
    ("classes", "label", "message"),
    [
        ([0, 1, 2], True, "reject_label=True must be a label of the type"),
        ([0, 1, 2], 0.5, "reject_label=0.5 must be a label of the type"),
        ([0, 1, 2], 2, "reject_label=2 is one of the classes"),
        ([False, True], True, "boolean classes leave no label.*masked array"),
    ],
)
def test_reject_labels_are_of_the_type_of_the_classes(fitted, digits, classes, label, message):
    other = pickle.loads(pickle.dumps(fitted))
    other.model_ = replace(other.model_, classes=np.array(classes))
    with pytest.raises(ValueError, match=message):
        other.predict_with_reject(digits[0], reject_label=label)


def test_a_threshold_is_for_the_parameters_it_was_learned_with(rejecting, digits):
    rejecting.set_params(n_draws=5)
    with pytest.raises(ValueError, match="n_draws=5 was 2 when fit_reject learned its threshold"):
        rejecting.predict_with_reject(digits[0])
    assert rejecting.predict_with_reject(digits[0], coverage=0.5).count() == 120


@pytest.mark.parametrize(("name", "value"), [("n_steps", 2), ("ode_solver", "midpoint")])
def test_a_threshold_is_for_the_steps_it_was_learned_with(rejecting, digits, name, value):
    rejecting.set_params(**{name: value})
    with pytest.raises(ValueError, match=f"{name}={value!r} was .* when fit_reject learned"):
        rejecting.predict_with_reject(digits[0])


def test_a_threshold_over_latents_is_for_the_decoding_it_was_learned_with(digits):
    classifier = pickle.loads(pickle.dumps(fitted_classifier("latents")))
    X, y = digits
    # Without a wrong answer fit_reject would warn.
    noisy = np.where(np.arange(len(y)) % 12 == 0, np.roll(y, 1), y)
    classifier.fit_reject(X, noisy, target_risk=0.9).set_params(label_decoding="pixel")
    with pytest.raises(ValueError, match="label_decoding='pixel' was 'latent' when"):
        classifier.predict_with_reject(X)


@pytest.mark.parametrize("kind", UNCERTAINTIES)
def test_the_threshold_of_each_kind_is_certified_for_that_kind(rejecting, calibration, kind):
    X, y = (part[:60] for part in calibration)
    rejecting.fit_reject(X, y, target_risk=0.8, kind=kind)
    uncertainty = rejecting.predict_uncertainty(X, kind)
    threshold = certified_threshold(rejecting.predict(X) != y, uncertainty, target_risk=0.8)
    assert threshold is not None
    assert rejecting.rejection_.threshold == threshold
    # Such a risk is met without a rejection: another threshold shows which answers it rejects.
    middle = float(np.median(uncertainty))
    rejecting.rejection_ = replace(rejecting.rejection_, threshold=middle)
    mask = np.ma.getmaskarray(rejecting.predict_with_reject(X))
    np.testing.assert_array_equal(mask, uncertainty > middle)


def test_the_kind_of_fit_reject_also_ranks_for_a_coverage(rejecting, calibration):
    X = calibration[0]
    rejecting.fit_reject(*calibration, target_risk=0.5, kind="entropy")
    np.testing.assert_array_equal(
        rejecting.predict_with_reject(X, 0.5).mask,
        rejecting.predict_with_reject(X, 0.5, kind="entropy").mask,
    )


@pytest.mark.parametrize(("name", "value"), [("image_weight", 0), ("classification_fraction", 1)])
def test_an_untrained_image_branch_is_not_asked(make_classifier, digits, name, value):
    X, y = digits
    classifier = make_classifier(max_epochs=1, **{name: value}).fit(X, y)
    for ask in (classifier.score_samples, lambda X: classifier.predict_uncertainty(X, "image")):
        with pytest.raises(ValueError, match=f"needs the image branch, which .*{name}={value}"):
            ask(X)
    # What is set now trains nothing.
    trains = {**classifier.flow_params, "image_weight": 0.5}
    classifier.set_params(flow_params=trains, classification_fraction=0.5)
    with pytest.raises(ValueError, match="not trained because image_weight=0"):
        classifier.score_samples(X)


def test_a_threshold_of_another_kind_is_not_used(rejecting, digits):
    with pytest.raises(ValueError, match="kind='entropy' is not that of the threshold, 'margin'"):
        rejecting.predict_with_reject(digits[0], kind="entropy")


def test_an_unknown_calibration_is_named(make_classifier, digits):
    with pytest.raises(ValueError, match="calibration must be one of None, 'temperature'"):
        make_classifier(calibration="platt").fit(*digits)


@pytest.mark.parametrize("labels", [[False, True], ["1999-01-01", "2000-01-01"]])
def test_risks_of_classes_whose_labels_are_no_text_come_back_from_skops(labels):
    X, y = three_digits()
    labels = np.array(labels, dtype=bool if labels == [False, True] else "M8[D]")
    y = labels[(y == "one").astype(int)]
    classifier = tiny_classifier(max_epochs=1).fit(X, y)
    risks = dict(zip(classifier.classes_.tolist(), [0.9, 0.8], strict=True))
    with warnings.catch_warnings():
        # Whatever so short a training can certify.
        warnings.simplefilter("ignore", UserWarning)
        classifier.fit_reject(X, y, target_risk=risks)
    data = skops.io.dumps(classifier)
    opened = skops.io.loads(data, trusted=skops.io.get_untrusted_types(data=data))
    assert opened.rejection_ == classifier.rejection_
    assert opened.rejection_.target_risk == risks


# Threads


@pytest.mark.filterwarnings("ignore:None can be certified")
def test_a_threshold_is_of_one_model_even_if_another_thread_fits_meanwhile(
    rejecting, digits, calibration, monkeypatch
):
    X, y = digits

    def as_in_another_thread(name):
        function = getattr(base, name)

        def fitted_meanwhile(*arguments, **settings):
            monkeypatch.setattr(base, name, function)
            rejecting.partial_fit(X[:30], y[:30])
            return function(*arguments, **settings)

        monkeypatch.setattr(base, name, fitted_meanwhile)

    as_in_another_thread("check_rule")
    with pytest.raises(RuntimeError, match="fitted the estimator meanwhile"):
        rejecting.predict_with_reject(X)
    as_in_another_thread("learn_rule")
    with pytest.raises(RuntimeError, match="fitted the estimator meanwhile"):
        rejecting.fit_reject(*calibration, target_risk=0.15)
    assert not hasattr(rejecting, "rejection_")
