"""Volumes: classify AdrenalMNIST3D, abstain, and draw new volumes.

    python -m pip install "sklearn-msf[medmnist,plot]"
    python examples/volumes.py [--epochs 20] [--output volumes.png]

AdrenalMNIST3D has the shapes of 1,584 adrenal glands, from CT, as masks of 28 x 28 x 28 voxels:
normal ones and ones with a mass. They come from MEDMNIST_ROOT or medmnist's cache, else from the
network. Without --epochs training is as long as for images, which takes about twenty minutes on two
cores.
"""

import argparse

import matplotlib
import numpy as np
from sklearn.metrics import accuracy_score, roc_auc_score

from sklearn_msf import MedSymmFlowClassifier
from sklearn_msf.datasets import fetch_medmnist
from sklearn_msf.plotting import SampleGridDisplay


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=None, help="passes over the training volumes")
    parser.add_argument("--output", default="volumes.png", help="picture to write")
    arguments = parser.parse_args()
    matplotlib.use("Agg")
    train, test = (fetch_medmnist("adrenalmnist3d", split=split) for split in ("train", "test"))
    print(f"{len(train.data)} training and {len(test.data)} test volumes of {train.data.shape[1:]}")

    classifier = MedSymmFlowClassifier(
        # Said, not guessed: four axes could also be images with 28 channels.
        n_spatial_dims=3,
        max_epochs="auto" if arguments.epochs is None else arguments.epochs,
        random_state=0,
        verbose=1,
    ).fit(train.data, train.target)

    p = classifier.predict_proba(test.data)[:, 1]
    accuracy = accuracy_score(test.target, classifier.predict(test.data))
    print(f"test AUC {roc_auc_score(test.target, p):.3f}, accuracy {accuracy:.3f}")
    labels, rejected = classifier.predict_with_reject(test.data, coverage=0.8, return_mask=True)
    right = labels[~rejected] == test.target[~rejected]
    print(f"of the {len(right)} most certain volumes {np.mean(right):.3f} are right")

    display = SampleGridDisplay.from_estimator(
        classifier, X=train.data, y=train.target, n_columns=4, class_names=train.target_names
    )
    display.figure_.savefig(arguments.output, dpi=100)
    print(f"wrote {arguments.output}")


if __name__ == "__main__":
    main()
