"""The example for clinics, on digits in place of X-rays."""

import matplotlib
import numpy as np
import pytest
from conftest import tiny_classifier
from imported_scripts import EXAMPLES, script_at
from sklearn.datasets import load_digits
from sklearn.metrics import recall_score

matplotlib.use("agg")
clinic = script_at(EXAMPLES / "clinic.py")


@pytest.fixture(scope="module")
def parts():
    """Digits below 5 are well, others ill: images for training, calibration and test."""
    digits = load_digits()
    X, y = digits.images, (digits.target >= 5).astype(int)
    return (X[:600], y[:600]), (X[600:1200], y[600:1200]), (X[1200:], y[1200:])


@pytest.fixture(scope="module")
def classifier(parts):
    settings = {"channels": 16, "max_epochs": 8, "classification_fraction": 0.8}
    return tiny_classifier(**settings).fit(*parts[0])


@pytest.mark.parametrize("sensitivity", [0.8, 0.95])
def test_the_threshold_has_the_wanted_sensitivity_and_no_more_than_it_takes(
    classifier, parts, sensitivity
):
    X, y = parts[1]
    tuned = clinic.tune_threshold(classifier, X, y, sensitivity)
    found = recall_score(y, tuned.predict(X))
    assert sensitivity <= found <= sensitivity + 0.05


def test_the_operating_point_is_that_of_the_threshold(classifier, parts):
    point = clinic.operating_points(classifier, *parts[1], *parts[2])
    tuned = clinic.tune_threshold(classifier, *parts[1], 0.97)
    X, y = parts[2]
    assert point.sensitivity.value == recall_score(y, tuned.predict(X))
    assert point.prevalence == 0.05


def test_probabilities_are_adjusted_to_the_frequencies_of_the_test(classifier, parts):
    (_, y), _, (X, y_test) = parts
    # Nine of ten are ill now.
    kept = (y_test == 1) | (np.arange(len(y_test)) % 9 == 0)
    X, y_test = X[kept], y_test[kept]
    accuracies = clinic.other_prevalence(classifier, y, X, y_test)
    assert accuracies["training"] == np.mean(classifier.predict(X) == y_test)
    # In log-odds adjusting is a shift of the threshold.
    shift = np.log(y_test.mean() / (1 - y_test.mean())) - np.log(y.mean() / (1 - y.mean()))
    called = classifier.decision_function(X) + shift > 0
    assert accuracies["test, known"] == np.mean(called == y_test)


def test_the_risks_that_were_certified_are_shown(classifier, parts):
    X, y = parts[2]
    display = clinic.risks_of_classes(classifier, *parts[1], X, y)
    # Digits of both parts look the same; some chance on top of the certified risks.
    assert display.confusion_matrix[0, 1] < 0.15
    assert display.confusion_matrix[1, 0] < 0.06
    assert display.confusion_matrix.shape == (2, 3)


def test_three_images_are_right_more_often_than_one(classifier, parts):
    X, y = parts[2]
    assert clinic.patients(classifier, X, y) > np.mean(classifier.predict(X) == y)


def test_the_script_answers_all_that_it_promises(parts, tmp_path, capsys):
    settings = {"channels": 8, "max_epochs": 2, "device": "cpu"}
    clinic.main(parts, tmp_path / "clinic.png", **settings)
    assert (tmp_path / "clinic.png").read_bytes().startswith(b"\x89PNG")
    shown = capsys.readouterr().out
    assert "sensitivity" in shown
    assert shown.endswith(f"wrote {tmp_path / 'clinic.png'}\n")
