"""Fit, evaluate, reject, generate: the whole package on RetinaMNIST in a few minutes.

Run ``make demo``, or ``python examples/demo.py [--seconds 170] [--output demo.png]``. The
images come from MEDMNIST_ROOT or medmnist's cache, else from the network; where there is
neither, from scikit-learn's bundled digits.
"""

import argparse
import time

import matplotlib
import numpy as np
from sklearn.datasets import load_digits
from sklearn.metrics import accuracy_score, roc_auc_score
from sklearn.model_selection import train_test_split

from sklearn_msf import MedSymmFlowClassifier
from sklearn_msf.datasets import fetch_medmnist
from sklearn_msf.plotting import SampleGridDisplay
from sklearn_msf.selective import accuracy_rejection_curve

N_COLUMNS = 6
# The defaults show so many images in all, repeated ones included, where there is time (see
# "Training" in docs/guide.md).
IMAGES_FOR_PICTURES = 120_000


def load():
    """Name, augmentation, training part, test part and class names."""
    print("Looking for RetinaMNIST ...", flush=True)
    try:
        train = fetch_medmnist("retinamnist", split="train")
        test = fetch_medmnist("retinamnist", split="test")
    except (OSError, ImportError) as error:
        reason = str(error).splitlines()[0]
        print(f"RetinaMNIST cannot be had, so this is on scikit-learn's digits: {reason}")
        digits = load_digits()
        images = (digits.images * 15.9).astype(np.uint8)
        parts = train_test_split(images, digits.target, test_size=0.3, random_state=0)
        X_train, X_test, y_train, y_test = parts
        # A mirrored digit is no digit, so there is no flip.
        return "digits", "affine", X_train, y_train, X_test, y_test, list("0123456789")
    names = [f"grade {name}" for name in train.target_names]
    return "RetinaMNIST", "auto", train.data, train.target, test.data, test.target, names


def show_beside_real(classifier, X, y, names, path):
    """Write a picture of each class: real images, generated ones, and the nearest real ones."""
    matplotlib.use("Agg")
    display = SampleGridDisplay.from_estimator(
        classifier, X=X, y=y, n_columns=N_COLUMNS, class_names=names
    )
    display.figure_.savefig(path, dpi=100)


def time_for_better_pictures(classifier):
    """Say in one line how long the training would take after which pictures are at their best."""
    n_images = sum(log["n_images"] for log in classifier.history_)
    seen = f"The pictures are of a training on {n_images:,} images"
    if n_images >= IMAGES_FOR_PICTURES:
        return f"{seen}; more of it hardly makes them better."
    seconds = sum(log["seconds"] for log in classifier.history_) * IMAGES_FOR_PICTURES / n_images
    return (
        f"{seen}; the best ones take about {max(seconds / 60, 1):.0f} minutes here: "
        f"--seconds {seconds:.0f}."
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=170, help="training time")
    parser.add_argument("--output", default="demo.png", help="picture to write")
    arguments = parser.parse_args()

    name, augment, X_train, y_train, X_test, y_test, class_names = load()
    print(f"{name}: {len(X_train)} training and {len(X_test)} test images, {X_train.shape[1:]}")

    classifier = MedSymmFlowClassifier(
        augment=augment,
        time_budget=arguments.seconds,
        random_state=0,
        verbose=1,
    ).fit(X_train, y_train)

    print("\nClassifying the test images ...")
    start = time.perf_counter()
    p = classifier.predict_proba(X_test)
    uncertainty = classifier.predict_uncertainty(X_test)
    seconds = time.perf_counter() - start
    y_pred = classifier.classes_[p.argmax(axis=1)]
    auc = roc_auc_score(y_test, p, multi_class="ovr")
    print(f"accuracy {accuracy_score(y_test, y_pred):.3f}, AUC {auc:.3f}, in {seconds:.1f} s")

    print("\nAnswering only the most certain images:")
    print("coverage  accuracy")
    curve = accuracy_rejection_curve(y_test, y_pred, uncertainty)
    for coverage in (1.0, 0.9, 0.8, 0.7, 0.6, 0.5):
        print(f"{coverage:8.1f}  {curve.at(coverage):8.3f}")
    answered = classifier.predict_with_reject(X_test, coverage=0.9)
    print(f"predict_with_reject(X, coverage=0.9) answered {answered.count()} of {len(X_test)}")

    print("\nGenerating images of every class ...")
    start = time.perf_counter()
    show_beside_real(classifier, X_train, y_train, class_names, arguments.output)
    print(f"wrote {arguments.output} in {time.perf_counter() - start:.1f} s")
    print(time_for_better_pictures(classifier))


if __name__ == "__main__":
    main()
