"""Labels of two sources: compared as in Python, and refused where they are of different kinds."""

import datetime
import pickle
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import config_context
from sklearn.model_selection import cross_val_predict

from sklearn_msf._evaluation.labels import as_labels, check_same_kind, label_indices
from sklearn_msf.generation_metrics import class_fidelity, classifier_accuracy_score
from sklearn_msf.plotting import AccuracyRejectionDisplay, RiskCoverageDisplay, SampleGridDisplay
from sklearn_msf.sample_augmentation import augment_with_samples
from sklearn_msf.selective import (
    accuracy_rejection_curve,
    certified_threshold,
    confusion_matrix_with_reject,
    costs_of,
    errors_of,
)

NUMBERS_AND_TEXT = "y_true has labels that are text, such as '0', but y_pred has numbers, such as 0"
IMAGES = 16 * np.random.default_rng(0).random((40, 8, 8))


class Judge:
    """Says of every image the same."""

    def __init__(self, label):
        self.label = label

    def predict(self, images):
        return np.full(len(images), self.label)


@pytest.fixture
def numbered(fitted):
    """A classifier of the classes 0, 1 and 2."""
    copy = pickle.loads(pickle.dumps(fitted))
    copy.model_ = replace(copy.model_, classes=np.arange(3))
    return copy


# Predictions and labels


@pytest.mark.parametrize("text", [["0", "1"], np.array(["0", "1"]), pd.Series(["0", "1"])])
def test_text_is_not_compared_with_numbers(text):
    for compare in (
        errors_of,
        lambda y, p: accuracy_rejection_curve(y, p, [0.1, 0.2]),
        lambda y, p: AccuracyRejectionDisplay.from_predictions(y, p, [0.1, 0.2]),
        lambda y, p: RiskCoverageDisplay.from_predictions(y, p, [0.1, 0.2]),
    ):
        with pytest.raises(ValueError, match=NUMBERS_AND_TEXT):
            compare(text, [0, 1])
        with pytest.raises(ValueError, match="y_true has labels that are numbers.* y_pred has te"):
            compare([0, 1], text)


@pytest.mark.parametrize(
    ("y_true", "y_pred"),
    [
        ([0, 1, 1], [False, True, False]),
        ([0, 1, 1], [0.0, 1.0, 0.0]),
        (np.array([0, 1, 1], dtype=object), np.array([0, 1, 0], dtype=np.uint8)),
        (np.array(["a", "b", "b"], dtype=object), ["a", "b", "a"]),
        (np.array(["a", "b", "b"]), pd.Series(["a", "b", "a"])),
        (pd.Series(["a", "b", "b"]).astype("category"), ["a", "b", "a"]),
    ],
)
def test_labels_that_are_equal_in_python_are_equal(y_true, y_pred):
    assert errors_of(y_true, y_pred).tolist() == [False, False, True]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, "1"], "y_pred mixes numbers, such as 0, and text, such as '1'"),
        (np.array([0, "1"], dtype=object), "y_pred mixes numbers, such as 0, and text"),
        (np.array(["0", None], dtype=object), "y_pred contains NaN or None in 1 of 2 labels"),
        ([0.0, np.nan], "y_pred contains NaN or None in 1 of 2 labels"),
        (np.ma.MaskedArray([0, 1], mask=[True, False]), "y_pred is a masked array with 1 masked"),
    ],
)
def test_predictions_that_are_neither_right_nor_wrong_are_named(labels, message):
    with pytest.raises(ValueError, match=message):
        errors_of([0, 1], labels)


def test_a_mask_that_hides_nothing_is_no_trouble():
    answers = np.ma.MaskedArray([0, 1], mask=[False, False])
    assert errors_of([0, 0], answers).tolist() == [False, True]


@given(
    st.lists(
        st.sampled_from([0, 1, True, 2.0, 0.5, 2**53, 2**53 + 1, -1, np.int8(1), np.float32(0.5)])
    ),
    st.sampled_from([[0, 1, 2], [False, True], [0.5, 2.0], [2**53, 2**53 + 1]]),
)
def test_an_index_is_that_of_the_equal_class(labels, classes):
    found = label_indices(np.array(labels, dtype=object), np.array(classes))
    known = np.array(classes).tolist()
    assert found.tolist() == [known.index(v) if v in known else -1 for v in labels]


def test_dates_of_any_unit_are_equal_if_they_are_one_day():
    days = np.array(["2024-01-01", "2024-01-03"], dtype="datetime64[D]")
    assert label_indices(days[[1, 0, 1]].astype("datetime64[ns]"), days).tolist() == [1, 0, 1]
    of_python = np.array([datetime.date(2024, 1, 3), datetime.date(2024, 1, 1)], dtype=object)
    assert label_indices(of_python, days.astype("datetime64[s]")).tolist() == [1, 0]
    assert label_indices(days.astype("datetime64[s]"), of_python).tolist() == [1, 0]
    check_same_kind("y", [datetime.date(2024, 1, 1)], "classes", days)
    with pytest.raises(ValueError, match="y has labels that are numbers.*classes has dates"):
        check_same_kind("y", [1], "classes", days)


@pytest.mark.parametrize("function", [errors_of, confusion_matrix_with_reject])
def test_a_column_for_each_class_is_refused(function):
    Y = np.eye(3)[[0, 1, 2, 2]]
    with pytest.raises(ValueError, match=r"y_true must be of shape.*got \(4, 3\).*argmax"):
        function(Y, Y)
    with pytest.raises(ValueError, match=r"y_pred must be of shape.*got \(4, 3\)"):
        function(Y.argmax(axis=1), np.ma.MaskedArray(Y, mask=False))
    with pytest.raises(ValueError, match=r"y_true must be of shape.*got \(4, 3\)"):
        costs_of(Y, Y, np.ones((3, 3)), labels=[0, 1, 2])


@pytest.mark.skipif(not hasattr(np.dtypes, "StringDType"), reason="numpy 2 has this dtype")
def test_text_of_variable_width_is_text():
    y = np.array(["a", "b", "a"], dtype=np.dtypes.StringDType())
    assert errors_of(y, ["a", "a", "a"]).tolist() == [False, True, False]
    assert confusion_matrix_with_reject(y, y).tolist() == [[2, 0, 0], [0, 1, 0]]
    with pytest.raises(ValueError, match="labels of different kinds never match"):
        errors_of(y, [0, 1, 0])
    missing = np.array(["a", None], dtype=np.dtypes.StringDType(na_object=None))
    with pytest.raises(ValueError, match="contains NaN or None in 1 of 2"):
        errors_of(missing, missing)


def test_no_labels_are_of_no_kind():
    check_same_kind("y", [], "classes", ["a"])
    assert as_labels("y", []).shape == (0,)


# Fitting


def test_labels_of_later_parts_are_of_the_kind_of_the_classes(make_classifier):
    numbers = np.arange(40) % 20
    classifier = make_classifier(max_epochs=1, warm_start=True)
    classifier.partial_fit(IMAGES, numbers, classes=range(20))
    before = classifier.predict_proba(IMAGES)
    message = "y has labels that are text, such as '0', but the estimator has numbers, such as 0"
    for text in (numbers.astype(str), numbers.astype(str).astype(object), list(map(str, numbers))):
        for go_on in (classifier.partial_fit, classifier.fit):
            with pytest.raises(ValueError, match=message):
                go_on(IMAGES, text)
    with pytest.raises(ValueError, match="classes has labels that are text"):
        classifier.partial_fit(IMAGES, numbers, classes=[str(n) for n in range(20)])
    np.testing.assert_array_equal(classifier.predict_proba(IMAGES), before)


def test_numbers_of_another_type_are_the_same_classes(make_classifier):
    numbers = np.arange(40) % 2
    expected, given = make_classifier(), make_classifier()
    expected.partial_fit(IMAGES, numbers, classes=[0, 1]).partial_fit(IMAGES, numbers)
    given.partial_fit(IMAGES, numbers.astype(bool), classes=[0, 1])
    given.partial_fit(IMAGES, numbers.astype(float))
    np.testing.assert_array_equal(given.predict_proba(IMAGES), expected.predict_proba(IMAGES))


@pytest.mark.parametrize("fit", ["fit", "partial_fit"])
def test_labels_of_two_kinds_are_not_made_text(make_classifier, fit):
    mixed = [0, "1"] * 20
    arguments = {"classes": [0, 1]} if fit == "partial_fit" else {}
    for labels in (mixed, np.array(mixed, dtype=object), pd.Series(mixed)):
        with pytest.raises(ValueError, match="y mixes numbers, such as 0, and text, such as '1'"):
            getattr(make_classifier(), fit)(IMAGES, labels, **arguments)
    with pytest.raises(ValueError, match="classes mixes numbers"):
        make_classifier().partial_fit(IMAGES, mixed, classes=[0, "1"])


@pytest.mark.parametrize("column", [False, True])
def test_masked_labels_are_not_taken_for_labels(make_classifier, column):
    labels = np.ma.MaskedArray(np.arange(40) % 2, np.arange(40) < 3)
    labels = labels[:, None] if column else labels
    y = np.arange(40) % 2
    with pytest.raises(ValueError, match="^y is a masked array with 3 masked values, as of reject"):
        make_classifier().fit(IMAGES, labels)
    with pytest.raises(ValueError, match="^y is a masked array with 3 masked values"):
        make_classifier().partial_fit(IMAGES, labels, classes=[0, 1])
    with pytest.raises(ValueError, match="does not fit X, y: y is a masked array with 3 masked"):
        make_classifier(early_stopping=True).fit(IMAGES, y, X_val=IMAGES, y_val=labels)


@pytest.mark.parametrize(
    ("labels", "kind"),
    [
        ([0, 1], "int"),
        ([False, True], "bool"),
        ([datetime.date(2026, 1, 1), datetime.date(2026, 1, 2)], "date"),
    ],
)
def test_objects_are_named_with_a_remedy(make_classifier, labels, kind):
    column = pd.Series(labels * 20, dtype=object)
    with pytest.raises(
        ValueError, match=f"^Unknown label type: y holds objects of the type {kind}. .*dtype="
    ):
        make_classifier().fit(IMAGES, column)
    with pytest.raises(
        ValueError, match=f"^Unknown label type: classes holds objects of the type {kind}"
    ):
        make_classifier().partial_fit(IMAGES, column, classes=column[:2])


def test_text_may_be_an_object_column(make_classifier):
    column = pd.Series(["a", "b"] * 20, dtype=object)
    classifier = make_classifier(max_epochs=1).fit(IMAGES, column)
    assert classifier.classes_.tolist() == ["a", "b"]
    assert 0 <= classifier.score(IMAGES, column) <= 1


def test_labels_that_are_missing_are_refused_although_scikit_learn_assumes_none(make_classifier):
    with config_context(assume_finite=True), pytest.raises(ValueError, match="y contains NaN"):
        make_classifier().fit(IMAGES, np.where(np.arange(40) == 3, np.nan, np.arange(40) % 2))


@pytest.mark.parametrize("missing", [None, np.nan, pd.NA])
@pytest.mark.parametrize("fit", ["fit", "partial_fit"])
def test_missing_text_is_called_missing_and_no_other_kind(make_classifier, fit, missing):
    labels = pd.Series(["a", "b"] * 19 + ["a", missing], dtype=object)
    arguments = {"classes": ["a", "b"]} if fit == "partial_fit" else {}
    with pytest.raises(ValueError, match="y contains NaN or None in 1 of 40 labels"):
        getattr(make_classifier(), fit)(IMAGES, labels, **arguments)


def test_a_class_weight_that_misses_a_class_and_names_another_is_refused(make_classifier):
    labels = np.array([1, 2] * 20)
    wrong = make_classifier(class_weight={1: 1, 3: 10})
    with pytest.raises(
        ValueError, match=r"names \[3\], which are not in y, and does not name \[2\]"
    ):
        wrong.fit(IMAGES, labels)
    # scikit-learn numbers the classes here, so that the weights would be those of others.
    shifted = make_classifier(class_weight={1: 1, 2: 10}, max_epochs=1)
    with pytest.raises(ValueError, match=r"names \[2\], .* does not name \[0\]"):
        cross_val_predict(shifted, IMAGES, labels, cv=2, method="predict_proba")


def test_labels_of_text_are_explained_where_scikit_learn_has_numbered_them(make_classifier):
    labels = np.array(["a", "b"] * 20)
    numbered = "Where scikit-learn fits on the numbers of classes"
    weighted = make_classifier(class_weight={"a": 1, "b": 10})
    with pytest.raises(ValueError, match=f"class_weight has labels .*{numbered}"):
        cross_val_predict(weighted, IMAGES, labels, cv=2, method="predict_proba")
    stopping = make_classifier(early_stopping=True)
    validation = {"X_val": IMAGES, "y_val": labels}
    with pytest.raises(ValueError, match=f"does not fit X, y: y has labels .*{numbered}"):
        cross_val_predict(stopping, IMAGES, labels, cv=2, method="predict_proba", params=validation)
    with pytest.raises(ValueError, match="does not fit X, y: y has labels") as caught:
        stopping.fit(IMAGES, labels, X_val=IMAGES, y_val=np.arange(40) % 2)
    assert numbered not in str(caught.value)


def test_dates_of_pandas_are_dates_of_python_after_a_fit(make_classifier):
    days = pd.Series(pd.to_datetime(["2020-01-01", "2020-02-01"] * 20)).astype("M8[ns]")
    classifier = make_classifier(max_epochs=1).fit(IMAGES, days)
    assert classifier.classes_.tolist() == [datetime.datetime(2020, m, 1) for m in (1, 2)]
    assert 0 <= classifier.score(IMAGES, days) <= 1


@pytest.mark.parametrize(
    ("class_weight", "message"),
    [
        ({0: 5, "1": 10}, "class_weight mixes numbers, such as 0, and text, such as '1'"),
        (
            {"0": 5, "1": 10},
            "class_weight has labels that are text, such as '0', but y has numbers",
        ),
        ({0: 5, 7: np.inf}, "class_weight must map .* to finite weights >= 0"),
        ({0: 5, 7: np.nan}, "class_weight must map .* to finite weights >= 0"),
        ({0: 5, 7: -1}, "class_weight must map .* to finite weights >= 0"),
        ({0: np.inf}, "class_weight must map .* to finite weights >= 0"),
    ],
)
def test_a_class_weight_is_finite_and_of_a_label(make_classifier, class_weight, message):
    with pytest.raises(ValueError, match=message):
        make_classifier(class_weight=class_weight).fit(IMAGES, np.arange(40) % 2)


# A fitted classifier


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda c: c.sample("1"), r"class_id must be one or more of .*\[0, 1, 2\], got '1'"),
        (lambda c: c.sample([1, "1"]), "class_id mixes numbers, such as 1, and text"),
        (lambda c: c.iter_samples("1"), "class_id must be one or more"),
        (lambda c: c.sample_trajectory("1"), "class_id must be one or more"),
        (lambda c: c.counterfactual(IMAGES[:2], "1"), "to_class must be one or more"),
        (lambda c: c.counterfactual(IMAGES[:2], [1, "1"]), "to_class mixes numbers"),
        (
            lambda c: c.fit_reject(IMAGES, ["0", "1"] * 20, target_risk=0.5),
            "y_cal has labels that are text, such as '0', but the estimator has numbers",
        ),
        (
            lambda c: augment_with_samples(c, IMAGES, ["0", "1"] * 20),
            "y has labels that are text, such as '0', but the estimator has numbers",
        ),
        (
            lambda c: augment_with_samples(c, IMAGES, [0, 1] * 20, n_per_class={"1": 2}),
            "n_per_class must be",
        ),
        (
            lambda c: SampleGridDisplay.from_estimator(c, X=IMAGES, y=["0", "1"] * 20),
            "y has labels that are text, such as '0', but the estimator has numbers",
        ),
    ],
)
def test_text_is_no_label_of_a_classifier_of_numbers(numbered, ask, message):
    with pytest.raises(ValueError, match=message):
        ask(numbered)


def test_labels_that_are_equal_to_a_class_are_that_class(numbered):
    expected = numbered.sample(1, n_steps=1, random_state=0)
    for label in (True, 1.0, np.uint8(1), [1.0]):
        np.testing.assert_array_equal(numbered.sample(label, n_steps=1, random_state=0), expected)


# Independent classifiers


def test_a_judge_speaks_of_the_labels_asked_for():
    assert class_fidelity(Judge(1), IMAGES[:4], [0, 1, 1.0, True]) == 0.75
    with pytest.raises(
        ValueError, match="judge.predict has labels that are text, such as '1', but"
    ):
        class_fidelity(Judge("1"), IMAGES[:4], [0, 1, 1, 1])
    judge = Judge(1)
    judge.classes_ = ["0", "1"]
    with pytest.raises(ValueError, match="labels has labels that are numbers.*judge.classes_ has"):
        class_fidelity(judge, IMAGES[:4], [0, 1, 1, 1])


def test_generated_and_real_images_have_labels_of_one_kind():
    with pytest.raises(ValueError, match="labels has labels that are text.*real_labels has number"):
        classifier_accuracy_score(IMAGES, ["0", "1"] * 20, IMAGES, [0, 1] * 20)


@pytest.mark.parametrize("missing", [None, np.nan, float("nan")])
def test_missing_labels_among_objects_are_refused(missing):
    with pytest.raises(ValueError, match="y_true contains NaN or None in 1 of 2"):
        errors_of(np.array([1, missing], dtype=object), [1, 2])


def test_dates_of_python_and_of_numpy_are_compared_as_dates():
    days = [datetime.datetime(2020, 1, 1), datetime.datetime(2020, 1, 2)]
    wrong = errors_of(days, np.array(["2020-01-01", "2020-01-03"], dtype="M8[ns]"))
    assert wrong.tolist() == [False, True]


def test_durations_of_python_and_numpy_are_the_same_labels():
    days = np.array([1, 2], dtype="m8[D]")
    assert errors_of(days.tolist(), days[[0, 0]]).tolist() == [False, True]
    right, risks = np.zeros(100), {days[0].item(): 0.1}
    threshold = certified_threshold(
        right, np.arange(100.0), y_true=np.tile(days, 50), target_risk=risks
    )
    assert threshold == 99
