"""Sets of classes that hold the label with a chosen probability: MAPIE and crepes.

    python -m pip install "sklearn-msf[medmnist]" mapie crepes
    python examples/conformal.py

Both take the classifier as it is and calibrate on images that it did not see. The images come
from MEDMNIST_ROOT or medmnist's cache, else from the network.
"""

import warnings

import numpy as np
from crepes import WrapClassifier
from mapie.classification import SplitConformalClassifier

from sklearn_msf import MedSymmFlowClassifier
from sklearn_msf.datasets import fetch_medmnist


def mapie_sets(classifier, X_cal, y_cal, X, confidence):
    """Sets by MAPIE, (n, K) of bool."""
    conformal = SplitConformalClassifier(
        classifier, confidence_level=confidence, conformity_score="aps", prefit=True
    )
    conformal.conformalize(X_cal, y_cal)
    return conformal.predict_set(X)[1][:, :, 0]


def crepes_sets(classifier, X_cal, y_cal, X, confidence):
    """Sets by crepes, (n, K) of bool; class_cond=True holds for each class by itself."""
    conformal = WrapClassifier(classifier)
    conformal.calibrate(X_cal, y_cal, class_cond=True, seed=0)
    return np.array(conformal.predict_set(X, labels=False, confidence=confidence, seed=0), bool)


def main(confidence=0.9, **settings):
    # MAPIE takes X of shape (n, n_features) only; image_shape tells the classifier its images.
    parts = {
        split: fetch_medmnist("retinamnist", split=split, return_X_y=True)
        for split in ("train", "val", "test")
    }
    rows = {split: X.reshape(len(X), -1) for split, (X, _) in parts.items()}
    y = {split: labels for split, (_, labels) in parts.items()}
    classifier = MedSymmFlowClassifier(
        image_shape=(28, 28, 3), calibration="temperature", random_state=0, **settings
    ).fit(rows["train"], y["train"])
    print(f"RetinaMNIST, sets that hold the label with a probability of {confidence:.0%}:")
    for name, make in (("MAPIE", mapie_sets), ("crepes, by class", crepes_sets)):
        with warnings.catch_warnings():
            # MAPIE warns of its own future defaults.
            warnings.simplefilter("ignore", FutureWarning)
            sets = make(classifier, rows["val"], y["val"], rows["test"], confidence)
        held = sets[np.arange(len(sets)), y["test"]]
        print(f"  {name}: hold {held.mean():.1%}, mean size {sets.sum(axis=1).mean():.2f} of 5")
    return sets


if __name__ == "__main__":
    main()
