"""The paper's Figure 2 as an example: accuracy against rejection, all systems in one axes.

    python examples/rejection.py [--output rejection.png]

Fits the classifier and two plain ones on RetinaMNIST, plots accuracy-rejection and risk-coverage
curves and a calibration curve, and certifies a risk. The images come from
MEDMNIST_ROOT or medmnist's cache, else from the network.
"""

import argparse
import os

from sklearn.calibration import CalibrationDisplay
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_msf import MedSymmFlowClassifier
from sklearn_msf.datasets import fetch_medmnist
from sklearn_msf.plotting import AccuracyRejectionDisplay, RiskCoverageDisplay


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", default="rejection.png", help="picture to write")
    parser.add_argument("--seconds", type=float, default=None, help="training time at most")
    arguments = parser.parse_args()
    os.environ.setdefault("MPLBACKEND", "Agg")
    import matplotlib.pyplot as plt

    (X, y), (X_cal, y_cal), (X_test, y_test) = (
        fetch_medmnist("retinamnist", split=split, return_X_y=True)
        for split in ("train", "val", "test")
    )
    rows, test_rows = (images.reshape(len(images), -1) for images in (X, X_test))
    ours = MedSymmFlowClassifier(
        calibration="temperature", time_budget=arguments.seconds, random_state=0
    ).fit(X, y)
    trees = ExtraTreesClassifier(300, random_state=0).fit(rows, y)
    linear = make_pipeline(StandardScaler(), LogisticRegression(C=1e-4, max_iter=1000)).fit(rows, y)

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(16, 5))
    for display, axes in ((AccuracyRejectionDisplay, left), (RiskCoverageDisplay, middle)):
        display.from_estimator(ours, X_test, y_test, ax=axes, name="MedSymmFlow, margin")
        distance = ours.predict_uncertainty(X_test, "distance")
        display.from_predictions(
            y_test, ours.predict(X_test), distance, ax=axes, name="MedSymmFlow, distance (paper)"
        )
        display.from_estimator(trees, test_rows, y_test, ax=axes)
        display.from_estimator(linear, test_rows, y_test, ax=axes, name="LogisticRegression")
    # Calibration curves are for two classes: a healthy retina, or one of any grade.
    healthy = {
        "MedSymmFlow": ours.predict_proba(X_test)[:, 0],
        "ExtraTreesClassifier": trees.predict_proba(test_rows)[:, 0],
        "LogisticRegression": linear.predict_proba(test_rows)[:, 0],
    }
    for name, p in healthy.items():
        CalibrationDisplay.from_predictions(y_test == 0, p, n_bins=8, ax=right, name=name)
    figure.tight_layout()
    figure.savefig(arguments.output, dpi=70)
    print(f"wrote {arguments.output}")

    ours.fit_reject(X_cal, y_cal, target_risk=0.4, confidence=0.9)
    labels, rejected = ours.predict_with_reject(X_test, return_mask=True)
    answered = labels[~rejected]
    risk = (answered != y_test[~rejected]).mean() if len(answered) else float("nan")
    print(f"certified risk 0.4: answered {len(answered)} of {len(X_test)}, risk {risk:.2f}")


if __name__ == "__main__":
    main()
