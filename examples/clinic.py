"""What a clinic asks: operating points, another prevalence, risks of classes, one answer a patient.

    python -m pip install "sklearn-msf[medmnist,plot]"
    python examples/clinic.py [--epochs 10] [--output clinic.png]

Fits the classifier on PneumoniaMNIST, whose test images have another prevalence than its training
images, and look different too. The images come from MEDMNIST_ROOT or medmnist's cache, else from
the network. This is no medical device.
"""

import argparse

import matplotlib
import numpy as np
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import make_scorer, recall_score, roc_auc_score
from sklearn.model_selection import FixedThresholdClassifier, TunedThresholdClassifierCV

from sklearn_msf import MedSymmFlowClassifier
from sklearn_msf.datasets import fetch_medmnist
from sklearn_msf.operating_points import operating_point
from sklearn_msf.plotting import RejectionConfusionMatrixDisplay
from sklearn_msf.prevalence import adjust_to_prior, estimate_prior
from sklearn_msf.selective import aggregate_by_group, labels_by_group


def specificity_at_sensitivity(y_true, y_pred, *, sensitivity):
    """Specificity, or less than 0 where the sensitivity is less than wanted; class 1 is ill."""
    found = recall_score(y_true, y_pred, pos_label=1)
    return recall_score(y_true, y_pred, pos_label=0) if found >= sensitivity else found - 1


def tune_threshold(classifier, X, y, sensitivity):
    """The classifier with the most specific threshold of the wanted sensitivity on X, y.

    X, y are images that training did not see, hence cv="prefit".
    """
    scorer = make_scorer(specificity_at_sensitivity, sensitivity=sensitivity)
    # Log-odds spread out the probabilities near 0 and 1, so that 200 thresholds are enough.
    return TunedThresholdClassifierCV(
        classifier,
        scoring=scorer,
        response_method="decision_function",
        thresholds=200,
        cv="prefit",
        refit=False,
    ).fit(X, y)


def show(name, estimate):
    print(f"  {name}: {estimate.value:.3f} ({estimate.low:.3f} to {estimate.high:.3f})")


def operating_points(classifier, X_cal, y_cal, X_test, y_test):
    tuned = tune_threshold(classifier, X_cal, y_cal, sensitivity=0.97)
    scores = classifier.decision_function(X_test)
    print(f"Threshold for a sensitivity of 0.97 on held-out images: {tuned.best_threshold_:.2f}")
    point = operating_point(
        y_test, scores, threshold=tuned.best_threshold_, pos_label=1, prevalence=0.05
    )
    show("sensitivity on test images", point.sensitivity)
    show("specificity", point.specificity)
    show("positive predictive value at a prevalence of 5 %", point.positive_predictive_value)
    show("negative predictive value at a prevalence of 5 %", point.negative_predictive_value)
    # A threshold that a protocol prescribes; frozen, because the classifier is fitted already.
    fixed = FixedThresholdClassifier(
        FrozenEstimator(classifier), threshold=0.5, response_method="predict_proba"
    ).fit(X_cal, y_cal)
    found = recall_score(y_test, fixed.predict(X_test))
    print(f"  sensitivity at the fixed threshold p = 0.5: {found:.3f}")
    return point


def other_prevalence(classifier, y, X_test, y_test):
    p = classifier.predict_proba(X_test)
    frequencies = {
        "training": np.bincount(y) / len(y),
        "test, known": np.bincount(y_test) / len(y_test),
    }
    frequencies["test, estimated without labels"] = estimate_prior(
        p, old_prior=frequencies["training"]
    )
    print(f"Another prevalence; AUC {roc_auc_score(y_test, p[:, 1]):.3f} whatever it is")
    accuracies = {}
    for name, prior in frequencies.items():
        adjusted = adjust_to_prior(p, old_prior=frequencies["training"], new_prior=prior)
        accuracies[name] = np.mean(adjusted.argmax(axis=1) == y_test)
        print(f"  {name}: {prior[1]:.3f} ill, accuracy {accuracies[name]:.3f}")
    return accuracies


def risks_of_classes(classifier, X_cal, y_cal, X_test, y_test, ax=None):
    classifier.fit_reject(X_cal, y_cal, target_risk={0: 0.1, 1: 0.03})
    answers = classifier.predict_with_reject(X_test)
    print(f"Answered {answers.count()} of {len(X_test)} test images")
    display = RejectionConfusionMatrixDisplay.from_predictions(
        y_test,
        answers,
        labels=[0, 1],
        normalize="true",
        display_labels=["normal", "pneumonia"],
        values_format=".1%",
        cmap="Blues",
        ax=ax,
    )
    well, ill = display.confusion_matrix[0, 1], display.confusion_matrix[1, 0]
    print(f"  answered wrongly: {well:.3f} of the normal ones (certified 0.1 if test images")
    print(f"  were like those of the calibration), {ill:.3f} of those with pneumonia (0.03)")
    return display


def patients(classifier, X_test, y_test):
    # The files name no patients, so three images of one class play a patient here. Images of a
    # real patient resemble each other more, and help each other less.
    order = np.argsort(y_test, kind="stable")
    groups = np.empty(len(y_test), dtype=int)
    groups[order] = np.arange(len(y_test)) // 3
    mixed = [g for g in np.unique(groups) if len(np.unique(y_test[groups == g])) > 1]
    kept = ~np.isin(groups, mixed)
    p, _ = aggregate_by_group(classifier.predict_proba(X_test[kept]), groups[kept])
    labels = labels_by_group(y_test[kept], groups[kept])
    accuracy = np.mean(p.argmax(axis=1) == labels)
    print(f"One answer for three images: accuracy {accuracy:.3f} of {len(labels)} answers")
    return accuracy


def main(parts, output, **settings):
    matplotlib.use("Agg")
    (X, y), cal, test = parts
    classifier = MedSymmFlowClassifier(random_state=0, **settings).fit(X, y)
    operating_points(classifier, *cal, *test)
    other_prevalence(classifier, y, *test)
    display = risks_of_classes(classifier, *cal, *test)
    display.figure_.savefig(output, dpi=80, bbox_inches="tight")
    patients(classifier, *test)
    print(f"wrote {output}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=10, help="epochs of training")
    parser.add_argument("--output", default="clinic.png", help="picture to write")
    arguments = parser.parse_args()
    main(
        [
            fetch_medmnist("pneumoniamnist", split=split, return_X_y=True)
            for split in ("train", "val", "test")
        ],
        arguments.output,
        max_epochs=arguments.epochs,
        classification_fraction=0.8,
        calibration="temperature",
    )
