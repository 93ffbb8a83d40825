"""
Rejecting uncertain images
==========================

Accuracy against the fraction of images that are answered: the paper's Figure 2, beside two plain
classifiers. If a classifier knows when it is wrong, accuracy rises as the least certain images are
left out.

The paper's own figures, on its data sets, are in :doc:`/comparison`.
"""

# %%
# Images that are hard enough
# ---------------------------
# Digits under noise, because a classifier that makes no errors has nothing to reject.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_msf import MedSymmFlowClassifier
from sklearn_msf.plotting import AccuracyRejectionDisplay, RiskCoverageDisplay

digits = load_digits()
noise = np.random.default_rng(0).normal(0, 70, digits.images.shape)
images = np.clip(digits.images * 15.9 + noise, 0, 255).astype(np.uint8)
X, X_test, y, y_test = train_test_split(images, digits.target, train_size=600, random_state=0)
rows, test_rows = (part.reshape(len(part), -1) for part in (X, X_test))

# %%
# Three classifiers
# -----------------

ours = MedSymmFlowClassifier(
    channels=16,
    network_params={"patch_size": 1, "channel_mult": (1, 2)},
    augment="affine",
    max_epochs=80,
    random_state=0,
).fit(X, y)
trees = ExtraTreesClassifier(300, random_state=0).fit(rows, y)
linear = make_pipeline(StandardScaler(), LogisticRegression(C=1e-2, max_iter=1000)).fit(rows, y)

# %%
# Two views of the same
# ---------------------
# The displays take any classifier. Of ours they ask `predict_uncertainty`, of others 1 minus the
# largest probability. ``kind="distance"`` is the paper's uncertainty, the distance between the
# predicted mask and the code of its class (equation 2); the default is the margin of the
# probabilities. AURC is the area under the risk-coverage curve: the lower, the better. Here the
# trees are level with our classifier; after 40 epochs instead of 80 it was behind both others.

figure, axes = plt.subplots(1, 2, figsize=(10, 4.5), layout="constrained")
for display, ax in zip((AccuracyRejectionDisplay, RiskCoverageDisplay), axes, strict=True):
    display.from_estimator(ours, X_test, y_test, ax=ax, name="MedSymmFlow, margin")
    distance = ours.predict_uncertainty(X_test, "distance")
    display.from_predictions(
        y_test, ours.predict(X_test), distance, ax=ax, name="MedSymmFlow, distance"
    )
    display.from_estimator(trees, test_rows, y_test, ax=ax)
    display.from_estimator(linear, test_rows, y_test, ax=ax, name="LogisticRegression")

# %%
# Answering a part of a batch
# ---------------------------
# With a coverage, which images are answered depends on the other images of the batch. For a
# decision on each image by itself, with a guarantee, see
# :ref:`sphx_glr_gallery_plot_certified_risk.py`.

for coverage in (1.0, 0.9, 0.7, 0.5):
    answers = ours.predict_with_reject(X_test, coverage=coverage)
    right = answers.compressed() == y_test[~np.ma.getmaskarray(answers)]
    print(f"coverage {coverage:.1f}: accuracy {right.mean():.3f} of {answers.count()} answers")
