"""
Drawing images
==============

Integrated from noise to data, the field draws images of the class asked for: the paper's Figure 3,
and on the way there its Figure 1.
"""

# %%
# A model
# -------
# By default most of each batch teaches to draw, and a smaller part to classify.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

from sklearn_msf import MedSymmFlowClassifier
from sklearn_msf.generation_metrics import copying_check
from sklearn_msf.plotting import SampleGridDisplay, TrajectoryDisplay

digits = load_digits(n_class=5)
images = (digits.images * 15.9).astype(np.uint8)
X, y, X_held_out = images[:500], digits.target[:500], images[500:]
classifier = MedSymmFlowClassifier(
    channels=16,
    network_params={"patch_size": 1, "channel_mult": (1, 2)},
    augment="affine",
    max_epochs=60,
    random_state=0,
).fit(X, y)

# %%
# Images of every class (Figure 3)
# --------------------------------
# Each row is a class. `random_state` fixes the noise, which is another one for each image. To see
# all classes made of the same noise, call ``sample(label, 10, random_state=0)`` for each of them.

SampleGridDisplay.from_estimator(classifier, n_columns=10)

# %%
# From noise to an image, from a code to noise (Figure 1)
# -------------------------------------------------------
# Above, the image from t = 0 to t = 1. Below, the mask on its way from the colour of the class to
# noise. Classification goes the opposite way: from the image and a mask of noise at t = 1 to the
# colour of a class.

TrajectoryDisplay.from_estimator(classifier, 3)

# %%
# Guidance
# --------
# With more guidance images are more typical of their class, and more alike.

figure, axes = plt.subplots(3, 1, figsize=(6, 5.5), layout="constrained")
for ax, guidance in zip(axes, (0.0, 0.5, 3.0), strict=True):
    SampleGridDisplay(
        blocks={
            f"guidance {guidance}": classifier.sample(
                [2, 3], 8, guidance=guidance, random_state=0
            ).reshape(2, 8, 8, 8)
            / 255
        },
        class_names=["2", "3"],
    ).plot(ax)

# %%
# Are they copies?
# ----------------
# Near duplicates of a training image are those that come nearer to it than 19 of 20 real images
# that training did not see come to any. Typical images are near to many others without being
# copies, so the second figure counts those that are as near to one of these real images.

check = copying_check(classifier.sample(n_samples=40, random_state=1), X, X_held_out)
print(f"near duplicates of training images: {check.duplicates_of_training:.2f}")
print(f"of as many images that training did not see: {check.duplicates_of_held_out:.2f}")
