"""Groups, such as patients, are never split; a validation set replaces what would be held out."""

import numpy as np
import pandas as pd
import pytest
from conftest import CLASSIFIERS, tiny_classifier
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from scipy.stats import beta
from sklearn import config_context
from sklearn.model_selection import GridSearchCV, GroupKFold, cross_validate
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler

from sklearn_msf._estimator import fit, splitting
from sklearn_msf._estimator.rejection_learning import images_that_count
from sklearn_msf._estimator.risk_target import RiskTarget
from sklearn_msf._estimator.splitting import draw_one_of_each, split_groups
from sklearn_msf._evaluation.groups import group_numbers
from sklearn_msf.exceptions import CheckpointMismatchError
from sklearn_msf.model.temperature import fit_temperature
from sklearn_msf.selective import aggregate_by_group, certified_threshold, labels_by_group

RNG = np.random.default_rng(0)
# 20 patients with 3 images each; a patient has one label.
PATIENTS = np.repeat(np.arange(20), 3)
X, Y = RNG.random((60, 8, 8)), PATIENTS // 2 % 2
X_VAL, Y_VAL = RNG.random((30, 8, 8)), np.arange(30) % 2


@pytest.fixture
def held_out(monkeypatch):
    """What each split of a fit keeps and holds out, as (groups kept, groups held out)."""
    splits = []
    split = splitting.split_groups

    def spy(groups, *arguments):
        train, valid = split(groups, *arguments)
        splits.append((set(groups[train]), set(groups[valid])))
        return train, valid

    monkeypatch.setattr(splitting, "split_groups", spy)
    return splits


# Splits


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 2)), min_size=4, max_size=60),
    st.sampled_from([0.1, 0.25, 1 / 3, 0.5, 0.8]),
    st.integers(0, 100),
)
def test_a_group_is_on_one_side_and_every_class_is_trained_on(rows, fraction, seed):
    groups, labels = np.array(rows).T
    try:
        train, valid = split_groups(groups, labels, fraction, np.random.RandomState(seed))
    except ValueError:
        # Too few groups.
        return
    assert sorted([*train, *valid]) == list(range(len(rows)))
    assert len(valid) > 0
    assert not set(groups[train]) & set(groups[valid])
    assert set(labels[train]) == set(labels)


@pytest.mark.parametrize("fraction", [0.1, 0.2, 1 / 3, 0.5])
def test_classes_are_held_out_evenly_although_groups_are_unequal(fraction):
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(200), rng.integers(1, 8, 200))
    labels = np.where(rng.random(200) < 0.1, 1, 0)[groups]
    _, valid = split_groups(groups, labels, fraction, np.random.RandomState(0))
    for label in (0, 1):
        assert np.mean(labels[valid] == label) == pytest.approx(np.mean(labels == label), abs=0.03)
        assert np.isin(np.flatnonzero(labels == label), valid).mean() == pytest.approx(
            fraction, abs=0.05
        )


@pytest.mark.parametrize("settings", [{"early_stopping": True}, {"calibration": "temperature"}])
@pytest.mark.parametrize("names", [PATIENTS, PATIENTS.astype(str), PATIENTS[:, None]])
def test_fit_never_splits_a_group(make_classifier, held_out, settings, names):
    classifier = make_classifier(**settings).fit(X, Y, groups=names)
    assert len(held_out) == 1
    kept, out = held_out[0]
    assert kept | out == set(range(20))
    assert not kept & out
    # A tenth of 20 patients, or a third of them.
    assert len(out) == (2 if "early_stopping" in settings else 7)
    n_trained = 54 if "early_stopping" in settings else 60
    assert classifier.history_[-1]["n_images"] == n_trained


def test_the_order_of_the_images_does_not_matter_beside_groups(make_classifier):
    repeated = np.repeat(X[::3], 3, axis=0)
    order = RNG.permutation(60)
    first, second = (make_classifier(early_stopping=True) for _ in range(2))
    first.fit(repeated, Y, groups=PATIENTS)
    second.fit(repeated[order], Y[order], groups=PATIENTS[order])
    assert_array_equal(first.predict_proba(X), second.predict_proba(X))


def test_groups_of_rows_without_weight_are_left_out_with_them(make_classifier, held_out):
    weights = (PATIENTS != 3).astype(float)
    make_classifier(early_stopping=True).fit(X, Y, weights, groups=PATIENTS)
    kept, out = held_out[0]
    assert kept | out == set(range(20)) - {3}


def test_groups_change_nothing_where_nothing_is_held_out(make_classifier):
    expected = make_classifier().fit(X, Y).predict_proba(X)
    assert_array_equal(make_classifier().fit(X, Y, groups=PATIENTS).predict_proba(X), expected)


def test_a_fraction_that_leaves_no_group_to_train_on_is_named(make_classifier):
    classifier = make_classifier(early_stopping=True, validation_fraction=0.9)
    with pytest.raises(ValueError, match=r"has 5 groups only, .*: lower validation_fraction, or"):
        classifier.fit(X, Y, groups=np.arange(len(Y)) % 5)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (PATIENTS[:-1], r"groups must be of shape \(60,\), the group of each image; got \(59,\)"),
        ([*PATIENTS[:-1].tolist(), "a"], "groups mixes numbers, such as 0, and text, such as 'a'"),
        (np.where(PATIENTS == 4, np.nan, PATIENTS), "groups contains NaN or None in 3 of 60"),
        (np.zeros(60), "early_stopping cannot hold out a fraction of 0.1 of 60 samples by class"),
        (Y, "the class with index 1 in classes_ has samples of 1 of 2 groups only"),
    ],
)
def test_groups_that_cannot_be_used_are_named(make_classifier, groups, message):
    with pytest.raises(ValueError, match=message):
        make_classifier(early_stopping=True).fit(X, Y, groups=groups)


# A validation set


@pytest.mark.parametrize("other", ["P7 ", "p7", "\uff30\uff17"])
def test_groups_whose_names_are_nearly_the_same_are_warned_of(other):
    groups = np.array(["P7", "P8", other])
    with pytest.warns(UserWarning, match="groups has .*'P7'.* count as different groups"):
        assert len(set(group_numbers("groups", groups, 3))) == 3
    with pytest.warns(UserWarning, match="count as different groups"):
        tiny_classifier(max_epochs=1, early_stopping=True).fit(
            X, Y, groups=np.where(PATIENTS < 2, np.array(["P7", other])[PATIENTS % 2], PATIENTS)
        )


def test_a_validation_set_leaves_all_images_for_training(make_classifier):
    classifier = make_classifier(early_stopping=True).fit(X, Y, X_val=X_VAL, y_val=Y_VAL)
    assert [log["n_images"] for log in classifier.history_] == [60, 60]
    # Two epochs, of which the better one is kept.
    best = max(log["validation_score"] for log in classifier.history_)
    assert best == np.mean(classifier.predict(X_VAL) == Y_VAL)


def test_weights_of_the_validation_set_weigh_its_accuracy(make_classifier):
    weights = np.where(Y_VAL == 1, 9.0, 1.0)
    classifier = make_classifier(early_stopping=True, max_epochs=1)
    classifier.fit(X, Y, X_val=X_VAL, y_val=Y_VAL, sample_weight_val=weights)
    right = classifier.predict(X_VAL) == Y_VAL
    score = np.average(right, weights=weights)
    assert classifier.history_[0]["validation_score"] == pytest.approx(score)
    assert score != pytest.approx(right.mean())


def test_class_weights_weigh_the_validation_set_too(make_classifier):
    classifier = make_classifier(early_stopping=True, max_epochs=1, class_weight={0: 1.0, 1: 9.0})
    classifier.fit(X, Y, X_val=X_VAL, y_val=Y_VAL)
    right = classifier.predict(X_VAL) == Y_VAL
    score = np.average(right, weights=np.where(Y_VAL == 1, 9.0, 1.0))
    assert classifier.history_[0]["validation_score"] == pytest.approx(score)
    assert score != pytest.approx(right.mean())


def test_the_temperature_is_that_of_the_validation_set_without_a_second_model(
    make_classifier, monkeypatch
):
    monkeypatch.setattr(fit, "learn_temperature", None)
    plain = make_classifier().fit(X, Y)
    calibrated = make_classifier(calibration="temperature").fit(X, Y, X_val=X_VAL, y_val=Y_VAL)
    wanted = fit_temperature(plain.predict_proba(X_VAL), Y_VAL, np.ones(30))
    assert calibrated.model_.temperature == pytest.approx(wanted) != 1
    assert_array_equal(calibrated.predict(X), plain.predict(X))
    assert "validation_score" not in calibrated.history_[-1]


def test_a_model_that_goes_on_is_calibrated_anew_on_a_validation_set(make_classifier):
    classifier = make_classifier(calibration="temperature", warm_start=True)
    before = classifier.fit(X, Y, X_val=X_VAL, y_val=Y_VAL).model_.temperature
    after = classifier.fit(X, Y, X_val=X_VAL, y_val=Y_VAL).model_.temperature
    assert 1 != after != before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"X_val": X_VAL}, "y_val is missing: pass it together with X_val"),
        ({"y_val": Y_VAL}, "X_val is missing: pass it together with y_val"),
        ({"sample_weight_val": np.ones(30)}, "y_val is missing"),
        ({"X_val": X_VAL[:, :4], "y_val": Y_VAL}, "does not fit X, y: X has images of shape"),
        ({"X_val": X_VAL * 255, "y_val": Y_VAL}, "does not fit X, y: .*values"),
        ({"X_val": X_VAL, "y_val": Y_VAL + 1}, r"does not fit X, y: y has labels \[2\]"),
        ({"X_val": X_VAL, "y_val": Y_VAL.astype(str)}, "y has labels that are text"),
        ({"X_val": X_VAL, "y_val": Y_VAL[:-1]}, "does not fit X, y: Found input variables"),
        (
            {"X_val": X_VAL * np.nan, "y_val": Y_VAL},
            "does not fit X, y: .*X contains NaN",
        ),
        (
            {"X_val": X_VAL, "y_val": Y_VAL, "sample_weight_val": -np.ones(30)},
            "does not fit X, y: .*[Nn]egative",
        ),
    ],
)
def test_validation_sets_that_do_not_fit_are_named(make_classifier, arguments, message):
    with pytest.raises(ValueError, match=message):
        make_classifier(early_stopping=True).fit(X, Y, **arguments)


def test_a_warning_of_the_validation_set_names_it(make_classifier):
    pixels, masks = (255 * X).astype(np.uint8), (X_VAL > 0.5).astype(np.uint8)
    message = r"^The validation set X_val, y_val, here called X, y: X is uint8 in \[0, 1\]"
    classifier = make_classifier(early_stopping=True, max_epochs=1)
    with pytest.warns(UserWarning, match=message):
        classifier.fit(pixels, Y, X_val=masks, y_val=Y_VAL)
    with pytest.warns(UserWarning, match="^X is uint8"):
        classifier.predict(masks)


def test_a_validation_set_that_would_not_be_used_is_refused(make_classifier):
    with pytest.raises(ValueError, match="X_val and y_val would not be used, as early_stopping=Fa"):
        make_classifier().fit(X, Y, X_val=X_VAL, y_val=Y_VAL)


def test_validation_images_of_one_class_teach_no_temperature(make_classifier):
    of_one = {"X_val": X_VAL[Y_VAL == 0], "y_val": Y_VAL[Y_VAL == 0]}
    missing = r"X_val, y_val has no image of the classes \[1\]"
    for early_stopping in (False, True):
        refused = make_classifier(calibration="temperature", early_stopping=early_stopping)
        with (
            pytest.warns(UserWarning, match=missing),
            pytest.raises(ValueError, match="needs held-out images of several classes.* class 0"),
        ):
            refused.fit(X, Y, **of_one)
    with pytest.warns(UserWarning, match=missing):
        make_classifier(early_stopping=True, max_epochs=1).fit(X, Y, **of_one)


@pytest.mark.filterwarnings("ignore:.* X_val, y_val has no image")
def test_the_one_class_of_validation_images_may_be_an_object(make_classifier):
    named = np.array(["well", "ill"], dtype=object)
    one = Y_VAL == 0
    refused = make_classifier(calibration="temperature")
    with pytest.raises(ValueError, match="several classes.* class 'well'"):
        refused.fit(X, named[Y], X_val=X_VAL[one], y_val=named[Y_VAL[one]])


@pytest.mark.filterwarnings("ignore:.* holds out no image")
@pytest.mark.parametrize("early_stopping", [False, True])
def test_held_out_groups_of_one_class_teach_no_temperature(early_stopping, make_classifier):
    # One patient has all images of a class: it stays with the images to train on.
    groups = np.where(Y == 0, 0, 1 + np.arange(len(Y)))
    refused = make_classifier(calibration="temperature", early_stopping=early_stopping)
    with pytest.raises(ValueError, match="needs held-out images of several classes.* class 1"):
        refused.fit(X, Y, groups=groups)


def test_few_large_groups_teach_a_temperature_by_what_they_leave(make_classifier, recwarn):
    # Only the large hospital can be held out: the third class is in the small one alone.
    y, hospitals = np.array([0, 1] * 20 + [0, 0, 0, 1, 1, 1, 2, 2]), np.repeat([0, 1], [40, 8])
    classifier = make_classifier(calibration="temperature", max_epochs=2)
    classifier.fit(RNG.random((48, 8, 8)), y, groups=hospitals)
    assert classifier.model_.temperature != 1
    assert not [w for w in recwarn if "not calibrated" in str(w.message)]


# Checkpoints


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"groups": PATIENTS[::-1]}, "groups'? is"),
        ({}, "groups'? is"),
        ({"groups": PATIENTS, "X_val": X_VAL, "y_val": Y_VAL}, "validation set is"),
    ],
)
def test_checkpoints_are_of_the_groups_and_the_validation_set(tmp_path, changed, message):
    make = CLASSIFIERS["pixels"]
    settings = {"early_stopping": True, "checkpoint_dir": tmp_path, "checkpoint_every": 1}
    first = make(**settings).fit(X, Y, groups=PATIENTS)
    again = make(**settings).fit(X, Y, groups=PATIENTS)
    assert_array_equal(again.predict_proba(X), first.predict_proba(X))
    with pytest.raises(CheckpointMismatchError, match=message):
        make(**settings).fit(X, Y, **changed)


@pytest.mark.parametrize(
    "changed", [{"y_val": 1 - Y_VAL}, {"sample_weight_val": 1 + np.arange(30) % 3}]
)
def test_checkpoints_are_of_the_labels_and_weights_of_the_validation_set(tmp_path, changed):
    settings = {"early_stopping": True, "checkpoint_dir": tmp_path, "checkpoint_every": 1}
    validation = {"X_val": X_VAL, "y_val": Y_VAL}
    tiny_classifier(**settings).fit(X, Y, **validation)
    with pytest.raises(CheckpointMismatchError, match="validation set is"):
        tiny_classifier(**settings).fit(X, Y, **{**validation, **changed})


# Metadata routing


@pytest.mark.filterwarnings("ignore:.*holds out no image:UserWarning")
def test_groups_reach_the_fits_of_a_search(make_classifier, held_out):
    with config_context(enable_metadata_routing=True):
        estimator = make_classifier(early_stopping=True, max_epochs=1).set_fit_request(groups=True)
        GridSearchCV(estimator, {"learning_rate": [1e-3]}, cv=GroupKFold(2)).fit(
            X, Y, groups=PATIENTS
        )
        cross_validate(estimator, X, Y, cv=GroupKFold(2), params={"groups": PATIENTS})
    # Two folds and the fit of all in the search, two folds of the cross-validation.
    assert [len(kept | out) for kept, out in held_out] == [10, 10, 20, 10, 10]
    assert not any(kept & out for kept, out in held_out)


def test_without_routing_the_groups_of_a_search_are_for_its_folds(make_classifier, held_out):
    estimator = make_classifier(early_stopping=True, max_epochs=1)
    search = GridSearchCV(estimator, {"learning_rate": [1e-3]}, cv=GroupKFold(2))
    search.fit(X, Y, groups=PATIENTS)
    assert held_out == []


def test_a_pipeline_transforms_the_validation_set(make_classifier):
    rows, rows_val = X.reshape(60, -1) * 9, X_VAL.reshape(30, -1) * 9
    settings = {"early_stopping": True, "image_shape": (8, 8)}
    with config_context(enable_metadata_routing=True):
        last = make_classifier(**settings).set_fit_request(groups=True, X_val=True, y_val=True)
        pipeline = make_pipeline(MinMaxScaler(clip=True), last, transform_input=["X_val"])
        pipeline.fit(rows, Y, groups=PATIENTS, X_val=rows_val, y_val=Y_VAL)
    scaler = MinMaxScaler(clip=True).fit(rows)
    alone = make_classifier(**settings)
    alone.fit(scaler.transform(rows), Y, X_val=scaler.transform(rows_val), y_val=Y_VAL)
    assert_array_equal(pipeline.predict_proba(rows), alone.predict_proba(scaler.transform(rows)))


# A certificate


def test_one_image_of_each_group_is_drawn_with_equal_chances():
    groups = np.array([5, 5, 5, 2, 7, 7])
    drawn = [draw_one_of_each(groups, seed) for seed in range(3000)]
    assert all(groups[rows].tolist() in ([5, 2, 7],) for rows in map(sorted, drawn))
    counts = np.bincount(np.concatenate(drawn), minlength=6)
    np.testing.assert_allclose(counts / 3000, [1 / 3, 1 / 3, 1 / 3, 1, 1 / 2, 1 / 2], atol=0.03)


def test_the_promise_holds_for_an_image_of_a_new_group():
    # 40 images of each patient, of whom 3 in 10 are hard: all their answers are wrong. As if they
    # were independent the images would certify a risk of 0.25 in about a fifth of calibrations.
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(60), 40)
    broken = {"rows": 0, "groups": 0}
    for seed in range(300):
        errors = (rng.random(60) < 0.3)[groups]
        scores = np.zeros(len(groups))
        drawn = draw_one_of_each(groups, seed)
        for name, rows in (("rows", slice(None)), ("groups", drawn)):
            threshold = certified_threshold(
                errors[rows], scores[rows], target_risk=0.25, confidence=0.9
            )
            broken[name] += threshold is not None
    assert broken["groups"] <= 30 < broken["rows"]


def test_the_certificate_counts_one_image_of_each_group(fitted, digits):
    images, labels = digits
    groups = np.arange(240) // 2
    wrong = np.where(np.arange(240) % 12 == 0, np.roll(labels, 1), labels)
    fitted_again = type(fitted)(**fitted.get_params())
    fitted_again.__dict__.update(vars(fitted))
    fitted_again.fit_reject(images, wrong, groups=groups, target_risk=0.3)
    drawn = draw_one_of_each(groups, fitted.model_.noise_seed)
    assert len(drawn) == 120
    errors = fitted.predict(images) != wrong
    expected = certified_threshold(
        errors[drawn], fitted.predict_uncertainty(images)[drawn], target_risk=0.3
    )
    assert fitted_again.rejection_.threshold == expected is not None
    alone = fitted_again.rejection_.threshold
    fitted_again.fit_reject(images, wrong, groups=groups.astype(str), target_risk=0.3)
    assert fitted_again.rejection_.threshold is not None
    fitted_again.fit_reject(images, wrong, groups=np.arange(240), target_risk=0.3)
    of_each = fitted_again.rejection_.threshold
    fitted_again.fit_reject(images, wrong, target_risk=0.3)
    assert fitted_again.rejection_.threshold == of_each
    assert np.isfinite(alone)


def test_too_few_groups_are_named(fitted, digits):
    images, labels = digits
    # With no error n images certify 0.05 at 0.95 in 20 tests from n - 1 = ln(0.05 / 20) / ln(0.95)
    # on, which is 117.
    assert beta.ppf(1 - 0.05 / 20, 1, 117) <= 0.05 < beta.ppf(1 - 0.05 / 20, 1, 116)
    message = "X_cal has images of 80 groups, of which one image each counts.* at least 118.*groups"
    with pytest.raises(ValueError, match=message):
        fitted.fit_reject(images, labels, groups=np.arange(240) // 3)
    with pytest.raises(ValueError, match=r"groups must be of shape \(240,\)"):
        fitted.fit_reject(images, labels, groups=np.arange(80))


@pytest.mark.parametrize("groups", [[None] * 30, np.array([1.0, np.nan] * 15, dtype=object)])
def test_missing_groups_are_refused(groups):
    with pytest.raises(ValueError, match="groups .*(NaN or None|mixes)"):
        group_numbers("groups", groups, 30)


def test_a_single_group_cannot_be_divided():
    with pytest.raises(ValueError, match="groups has only one group"):
        split_groups(np.zeros(30, int), np.arange(30) % 2, 0.1, np.random.RandomState(0))


@pytest.mark.parametrize("fraction", [0.5, 0.7])
def test_a_class_of_one_group_is_kept_for_training_however_much_is_held_out(fraction):
    labels = np.r_[1, np.zeros(9, int)]
    for seed in range(10):
        train, _ = split_groups(np.arange(10), labels, fraction, np.random.RandomState(seed))
        assert 0 in train


def test_classes_of_too_few_groups_to_be_held_out_are_named():
    groups = np.repeat(np.arange(30), 4)
    y = np.where(groups < 2, "rare", "usual")
    X = np.random.default_rng(0).random((120, 8, 8))
    classifier = tiny_classifier(max_epochs=1, early_stopping=True, validation_fraction=0.1)
    with pytest.warns(
        UserWarning, match=r"early_stopping holds out no image of the classes \['rare'\]"
    ):
        classifier.fit(X, y, groups=groups)


def test_names_of_columns_of_an_earlier_fit_say_nothing_of_a_validation_set(recwarn):
    frame = pd.DataFrame(X.reshape(len(X), -1)).add_prefix("pixel ")
    settings = {"max_epochs": 1, "early_stopping": True, "image_shape": X.shape[1:]}
    classifier = tiny_classifier(**settings).fit(frame, Y)
    classifier.fit(frame.to_numpy(), Y, X_val=frame.to_numpy(), y_val=Y)
    others = frame.rename(columns=lambda name: f"other {name}")
    assert not [w for w in recwarn if "feature names" in str(w.message)]
    classifier.fit(frame, Y)
    with pytest.warns(UserWarning, match="X has feature names, but .* was fitted without"):
        classifier.fit(frame.to_numpy(), Y, X_val=others, y_val=Y)


def test_weights_of_a_validation_set_make_no_epoch(recwarn):
    weights = np.where(np.arange(len(X_VAL)) == 0, 10**6, 1)
    classifier = tiny_classifier(max_epochs=1, calibration="temperature")
    classifier.fit(X, Y, X_val=X_VAL, y_val=Y_VAL, sample_weight_val=weights)
    assert not [w for w in recwarn if "sample_weight" in str(w.message)]


def test_for_risks_of_classes_one_image_of_each_class_in_each_group_counts():
    groups, labels = np.array([0, 0, 0, 1, 1]), np.array([0, 0, 1, 1, 1])
    drawn = {
        tuple(images_that_count(labels, groups, RiskTarget({"a": 0.1}, 0.9), seed))
        for seed in range(100)
    }
    assert drawn == {(i, 2, j) for i in (0, 1) for j in (3, 4)}
    of_groups = images_that_count(labels, groups, RiskTarget(0.1, 0.9), 0)
    assert groups[of_groups].tolist() == [0, 1]
    assert images_that_count(labels, None, RiskTarget(0.1, 0.9), 0).tolist() == [0, 1, 2, 3, 4]


def test_the_promise_for_a_class_holds_for_an_image_of_a_new_group():
    # As above, and half of the images of each patient are of each class.
    rng = np.random.default_rng(0)
    groups, labels = np.repeat(np.arange(60), 40), np.tile([0, 1], 1200)
    target = RiskTarget({1: 0.25}, 0.9)
    broken = {"rows": 0, "groups": 0}
    for seed in range(300):
        errors = (rng.random(60) < 0.3)[groups]
        drawn = images_that_count(labels, groups, target, seed)
        for name, rows in (("rows", slice(None)), ("groups", drawn)):
            threshold = certified_threshold(
                errors[rows],
                np.zeros(len(groups))[rows],
                target_risk=target.risk,
                y_true=labels[rows],
                confidence=0.9,
            )
            broken[name] += threshold is not None
    assert broken["groups"] <= 30 < broken["rows"]


def test_too_few_groups_of_a_class_are_named(fitted, digits):
    images, labels = digits
    with pytest.raises(ValueError, match=r"X_cal has \d+ groups with images of the class 'one'"):
        fitted.fit_reject(images, labels, groups=np.arange(240) // 6, target_risk={"one": 0.05})


# One answer for each group


def test_groups_come_in_the_order_of_their_first_images():
    p = np.array([[0.8, 0.2], [0.5, 0.5], [0.4, 0.6], [0.1, 0.9]])
    groups = ["z", "a", "z", "m"]
    means, names = aggregate_by_group(p, groups)
    assert names.tolist() == ["z", "a", "m"]
    np.testing.assert_allclose(means, [[0.6, 0.4], [0.5, 0.5], [0.1, 0.9]])
    assert labels_by_group([1, 0, 1, 2], groups).tolist() == [1, 0, 2]


def test_the_geometric_mean_weighs_doubts_more():
    # sqrt(0.9 * 0.1) = 0.3 and sqrt(0.1 * 0.4) = 0.2 and 0 for the class that one image excludes.
    p = [[0.9, 0.1, 0.0], [0.1, 0.4, 0.5]]
    geometric, _ = aggregate_by_group(p, [7, 7], rule="geometric")
    np.testing.assert_allclose(geometric, [[0.6, 0.4, 0]], atol=1e-12)
    # Images that exclude every class leave probabilities, too.
    undecided, _ = aggregate_by_group([[1, 0], [0, 1]], [7, 7], rule="geometric")
    np.testing.assert_allclose(undecided, [[0.5, 0.5]])


@given(st.lists(st.tuples(st.integers(0, 4), st.floats(0, 1)), min_size=1, max_size=30))
def test_a_group_of_equal_images_has_their_probabilities(rows):
    groups = [group for group, _ in rows]
    of_group = dict(rows)
    p = np.array([of_group[group] for group in groups])
    for rule in ("mean", "geometric"):
        together, names = aggregate_by_group(np.stack([p, 1 - p], axis=1), groups, rule=rule)
        np.testing.assert_allclose(together.sum(axis=1), 1)
        np.testing.assert_allclose(
            together[:, 0], [of_group[name] for name in names.tolist()], atol=1e-9
        )


def test_the_promise_holds_for_new_patients_who_are_answered_as_a_whole():
    rng = np.random.default_rng(0)

    def patients(n):
        """Errors and uncertainties of n patients with 1 to 5 images that resemble each other."""
        groups = np.repeat(np.arange(n), rng.integers(1, 6, n))
        y = rng.integers(0, 2, n)
        logits = (1.2 * (2 * y - 1) + rng.normal(0, 1, n))[groups] + rng.normal(0, 1, len(groups))
        p = 1 / (1 + np.exp(-2 * logits))
        together, names = aggregate_by_group(np.stack([1 - p, p], axis=1), groups)
        labels = labels_by_group(y[groups], groups)
        assert names.tolist() == list(range(n))
        return together.argmax(axis=1) != labels, 1 - together.max(axis=1)

    errors, uncertainty = patients(100_000)
    assert errors.mean() > 0.12
    broken = certified = 0
    for _ in range(300):
        threshold = certified_threshold(*patients(400), target_risk=0.1, confidence=0.8)
        if threshold is not None:
            certified += 1
            broken += errors[uncertainty <= threshold].mean() > 0.1
    assert certified > 250
    assert broken / 300 <= 0.2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([[0.5, 0.5]], [1, 2]), r"groups must be of shape \(1,\)"),
        (([[0.5, 0.6]], [1]), "probabilities must sum to 1 in each row"),
        (([0.5, 0.5], [1, 2]), r"probabilities must be of shape \(n, K\)"),
        (([[0.5, 0.5]], [None]), "groups contains NaN or None"),
    ],
)
def test_what_cannot_be_combined_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        aggregate_by_group(*arguments)


def test_other_rules_are_refused():
    with pytest.raises(ValueError, match="rule must be 'mean' or 'geometric', got 'max'"):
        aggregate_by_group([[0.5, 0.5]], [1], rule="max")


def test_a_group_with_two_labels_is_named():
    with pytest.raises(ValueError, match="group 'b' has the labels 'ill' and 'well'"):
        labels_by_group(["ill", "ill", "well"], ["a", "b", "b"])


def test_weights_of_the_validation_set_count_for_the_temperature(make_classifier):
    plain = make_classifier().fit(X, Y)
    p = plain.predict_proba(X_VAL)
    weights = np.where(plain.predict(X_VAL) == Y_VAL, 1.0, 5.0)
    calibrated = make_classifier(calibration="temperature")
    calibrated.fit(X, Y, X_val=X_VAL, y_val=Y_VAL, sample_weight_val=weights)
    wanted = fit_temperature(p, Y_VAL, weights / weights.mean())
    assert calibrated.model_.temperature == pytest.approx(wanted)
    assert wanted != pytest.approx(fit_temperature(p, Y_VAL, np.ones(30)), rel=1e-3)
