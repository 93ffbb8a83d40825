"""
Calibrated probabilities
========================

Probabilities are calibrated if, of all images that are answered with a probability of 80 %, 80 %
are answered rightly. ``calibration="temperature"`` divides the logits by one number that is found
on held-out images. It changes no prediction.
"""

# %%
# Three ways
# ----------
# Without calibration; with the parameter, which needs no images beside the training images but 5/3
# of the time; and by scikit-learn with images of your own, for a classifier that is fitted already.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.calibration import CalibratedClassifierCV, CalibrationDisplay
from sklearn.datasets import load_digits
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split

from sklearn_msf import MedSymmFlowClassifier

digits = load_digits()
noise = np.random.default_rng(0).normal(0, 50, digits.images.shape)
images = np.clip(digits.images * 15.9 + noise, 0, 255).astype(np.uint8)
X, X_rest, y, y_rest = train_test_split(images, digits.target, train_size=500, random_state=0)
X_cal, X_test, y_cal, y_test = train_test_split(X_rest, y_rest, train_size=400, random_state=0)

settings = {
    "channels": 16,
    "network_params": {"patch_size": 1, "channel_mult": (1, 2)},
    "augment": "affine",
    "max_epochs": 50,
    "random_state": 0,
}
plain = MedSymmFlowClassifier(**settings).fit(X, y)
tempered = MedSymmFlowClassifier(**settings, calibration="temperature").fit(X, y)
by_sklearn = CalibratedClassifierCV(FrozenEstimator(plain), method="sigmoid").fit(X_cal, y_cal)
print(f"temperature {tempered.model_.temperature:.2f}")

# %%
# What they give
# --------------
# The curves are about the predicted class: how often it is right, against its probability.

probabilities = {
    "none": plain.predict_proba(X_test),
    '"temperature"': tempered.predict_proba(X_test),
    "CalibratedClassifierCV": by_sklearn.predict_proba(X_test),
}
figure, ax = plt.subplots(figsize=(5.5, 5), layout="constrained")
for name, p in probabilities.items():
    right = plain.classes_[p.argmax(axis=1)] == y_test
    CalibrationDisplay.from_predictions(right, p.max(axis=1), n_bins=8, ax=ax, name=name)
    print(f"{name}: log loss {log_loss(y_test, p):.3f}, accuracy {right.mean():.3f}")
ax.set(xlabel="Probability of the predicted class", ylabel="Fraction of right answers")
