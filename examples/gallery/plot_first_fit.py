"""
First fit
=========

The classifier is used as any other classifier of scikit-learn, except that `X` may keep the shape
of images. It also says how sure it is, leaves out images of which it is not sure, and draws new
ones.
"""

# %%
# Images
# ------
# scikit-learn's digits, 8 x 8 pixels, as bytes. Nothing has to be scaled: the classifier learns the
# range of the values and expects new images in the same range.

import tempfile

import numpy as np
from sklearn.datasets import load_digits
from sklearn.metrics import accuracy_score, roc_auc_score
from sklearn.model_selection import train_test_split

from sklearn_msf import MedSymmFlowClassifier
from sklearn_msf.plotting import SampleGridDisplay

digits = load_digits()
images = (digits.images * 15.9).astype(np.uint8)
X, X_test, y, y_test = train_test_split(images, digits.target, train_size=600, random_state=0)
print(X.shape, X.dtype, X.min(), X.max())

# %%
# Training
# --------
# The defaults work for images of any size. To be quick, this example sets a smaller network by
# hand: 16 channels and two levels. ``augment="affine"`` leaves out mirror images, because a
# mirrored digit is no digit.

classifier = MedSymmFlowClassifier(
    channels=16,
    network_params={"patch_size": 1, "channel_mult": (1, 2)},
    augment="affine",
    max_epochs=80,
    random_state=0,
).fit(X, y)
print(f"{classifier.n_iter_} epochs, loss {classifier.loss_curve_[-1]:.3f}")

# %%
# Predicting
# ----------

p = classifier.predict_proba(X_test)
y_pred = classifier.predict(X_test)
print(f"accuracy {accuracy_score(y_test, y_pred):.3f}")
print(f"AUC {roc_auc_score(y_test, p, multi_class='ovr'):.3f}")

# %%
# Leaving out what is uncertain
# -----------------------------
# Of the test images the most certain 90 % are answered; the others are masked.

answers = classifier.predict_with_reject(X_test, coverage=0.9)
answered = ~answers.mask
print(f"answered {answers.count()} of {len(X_test)}")
print(f"accuracy of the answers {accuracy_score(y_test[answered], answers.compressed()):.3f}")

# %%
# Drawing
# -------
# The same model draws new images of each class. Beside each of them is the training image whose
# pixels are nearest: a model that copies would show the same image twice.

SampleGridDisplay.from_estimator(classifier, X=X, y=y, n_columns=4)

# %%
# Saving
# ------
# A saved model is a folder of safetensors and JSON. Opening it runs no code, and predictions are
# the same to the bit.

with tempfile.TemporaryDirectory() as folder:
    classifier.save_pretrained(folder)
    opened = MedSymmFlowClassifier.from_pretrained(folder)
print(np.array_equal(opened.predict_proba(X_test), p))
