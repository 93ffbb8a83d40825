"""
Variations and generated images for training
============================================

Two ways to train with more than the images at hand: random variations of them (`augment`), and
generated images for another classifier (`augment_with_samples`).
"""

# %%
# Random variations
# -----------------
# "affine" rotates, shifts and scales the images that teach classification. "hflip" would mirror
# them, which makes no digit of a digit; the default "auto" does both, so it must be replaced where
# left and right have a meaning.

import numpy as np
from sklearn.datasets import load_digits
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_msf import MedSymmFlowClassifier
from sklearn_msf.plotting import SampleGridDisplay
from sklearn_msf.sample_augmentation import augment_with_samples

digits = load_digits(n_class=4)
images = (digits.images * 15.9).astype(np.uint8)
X, X_test, y, y_test = train_test_split(images, digits.target, train_size=300, random_state=0)
# Class 3 becomes rare.
kept = (y != 3) | (np.cumsum(y == 3) <= 12)
X, y = X[kept], y[kept]
print(f"images of each class: {np.bincount(y)}")

settings = {
    "channels": 16,
    "network_params": {"patch_size": 1, "channel_mult": (1, 2)},
    "max_epochs": 85,
    "random_state": 0,
}
for augment in (None, "affine"):
    classifier = MedSymmFlowClassifier(**settings, augment=augment).fit(X, y)
    accuracy = balanced_accuracy_score(y_test, classifier.predict(X_test))
    print(f"augment={augment!r}: balanced accuracy {accuracy:.3f}")

# %%
# Generated images of the rare class
# ----------------------------------
# `augment_with_samples` adds images until every class is as large as the largest. Copies of
# training images are left out, and so are images that a judge, another classifier, takes for
# another class.

judge = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", C=0.01))
judge.fit(X.reshape(len(X), -1), y)


class ImageJudge:
    """The judge for images instead of rows."""

    def predict(self, images):
        return judge.predict(images.reshape(len(images), -1))


X_more, y_more = augment_with_samples(classifier, X, y, judge=ImageJudge(), random_state=0)
print(f"images of each class: {np.bincount(y_more)}")
SampleGridDisplay.from_estimator(classifier, X=X, y=y, n_columns=5)

# %%
# Do they help?
# -------------
# Compare with what costs nothing, repeated images and class weights, over several seeds, and never
# add generated images to a validation or test part.


def balanced_accuracies(X, y, **settings):
    """Fit plain classifiers with five seeds; return mean and deviation of their scores."""
    scores = []
    for seed in range(5):
        trees = ExtraTreesClassifier(300, random_state=seed, **settings)
        trees.fit(X.reshape(len(X), -1), y)
        scores.append(
            balanced_accuracy_score(y_test, trees.predict(X_test.reshape(len(X_test), -1)))
        )
    return f"{np.mean(scores):.3f} ± {np.std(scores):.3f}"


# Each class repeated up to the size that generated images bring it to.
sizes = np.bincount(y_more)
repeated = np.concatenate([np.resize(np.flatnonzero(y == c), n) for c, n in enumerate(sizes)])
print(f"as they are:      {balanced_accuracies(X, y)}")
print(f"class weights:    {balanced_accuracies(X, y, class_weight='balanced')}")
print(f"repeated images:  {balanced_accuracies(X[repeated], y[repeated])}")
print(f"generated images: {balanced_accuracies(X_more, y_more)}")

# %%
# What was measured on medical images is in :doc:`/generation`.
