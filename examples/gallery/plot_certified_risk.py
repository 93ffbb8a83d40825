"""
A certified risk
================

`fit_reject` learns a threshold from calibration images: a new image is answered if its uncertainty
is below it. The guarantee is about the error rate among answered images. This example certifies a
risk, then checks the guarantee by repeating the calibration many times.
"""

# %%
# One calibration
# ---------------
# Calibration images must be independent, from the same source as later images, and unseen in
# training.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from sklearn_msf import MedSymmFlowClassifier
from sklearn_msf.plotting import RejectionConfusionMatrixDisplay
from sklearn_msf.selective import certified_threshold, errors_of

digits = load_digits()
noise = np.random.default_rng(0).normal(0, 50, digits.images.shape)
images = np.clip(digits.images * 15.9 + noise, 0, 255).astype(np.uint8)
X, X_rest, y, y_rest = train_test_split(images, digits.target, train_size=500, random_state=0)
X_cal, X_test, y_cal, y_test = train_test_split(X_rest, y_rest, train_size=400, random_state=0)

classifier = MedSymmFlowClassifier(
    channels=16,
    network_params={"patch_size": 1, "channel_mult": (1, 2)},
    augment="affine",
    max_epochs=60,
    random_state=0,
).fit(X, y)
print(f"risk if everything is answered: {1 - classifier.score(X_test, y_test):.3f}")

classifier.fit_reject(X_cal, y_cal, target_risk=0.05, confidence=0.9)
answers = classifier.predict_with_reject(X_test)
answered = ~np.ma.getmaskarray(answers)
risk = np.mean(answers.compressed() != y_test[answered])
print(f"certified 0.05: answered {answers.count()} of {len(X_test)}, risk {risk:.3f}")

# %%
# Which classes are rejected, and what the answers of each class are:

display = RejectionConfusionMatrixDisplay.from_estimator(
    classifier, X_test, y_test, cmap="Blues", colorbar=False
)
display.figure_.set_size_inches(6.5, 5.5)

# %%
# What the guarantee means
# ------------------------
# With a confidence of 0.9 a calibration may fail, but at most one in ten. Here the images outside
# of training are divided 300 times into 400 for calibration and the rest, and the risk on the rest
# is measured. Where no threshold can be certified nothing is answered, and there is no risk. The
# rest is a sample as well, so its error rate scatters around the true risk; bars beyond
# the line may be due to that alone.

errors = errors_of(y_rest, classifier.predict(X_rest))
uncertainty = classifier.predict_uncertainty(X_rest)
rng = np.random.default_rng(0)
risks = []
for _ in range(300):
    order = rng.permutation(len(errors))
    cal, rest = order[:400], order[400:]
    threshold = certified_threshold(errors[cal], uncertainty[cal], target_risk=0.05, confidence=0.9)
    accepted = np.zeros(0, bool) if threshold is None else uncertainty[rest] <= threshold
    risks.append(errors[rest][accepted].mean() if accepted.any() else 0.0)

figure, ax = plt.subplots(figsize=(6, 3.5), layout="constrained")
ax.hist(risks, bins=30)
ax.axvline(0.05, color="black", linestyle="--", label="target risk")
ax.set(xlabel="Risk of the answers on the rest", ylabel="Calibrations")
ax.legend()
print(f"above the target: {np.mean(np.array(risks) > 0.05):.3f} of the calibrations")

# %%
# Risks of single classes, costs and one answer for each patient are in :doc:`/clinic`.
