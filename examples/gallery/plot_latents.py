"""
Larger images through an autoencoder
====================================

`LatentMedSymmFlowClassifier` is the same classifier over the latents of an autoencoder: smaller
arrays, so that larger images can be afforded. The paper's autoencoder is downloaded; ``"fit"``
trains a small one on the images instead, which is what this example does.

Needs ``python -m pip install "sklearn-msf[latent,plot]"``.
"""

# %%
# Images
# ------
# Enlarged digits, 32 x 32 pixels. They contain no more than the small ones; real images of this
# size do.

import matplotlib.pyplot as plt
import numpy as np
from scipy.ndimage import zoom
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from sklearn_msf import LatentMedSymmFlowClassifier

digits = load_digits(n_class=3)
large = zoom(digits.images, (1, 4, 4), order=1)
images = np.clip(large * 15.9, 0, 255).astype(np.uint8)
X, X_test, y, y_test = train_test_split(images, digits.target, train_size=200, random_state=0)
print(X.shape)

# %%
# Autoencoder and classifier in one fit
# -------------------------------------
# Every image is encoded once, in several variations; training then never runs the autoencoder. The
# time is limited to half a minute for both, so the figures depend on the machine. Without the limit
# the autoencoder alone takes a minute or two.

classifier = LatentMedSymmFlowClassifier(
    "fit",
    channels=16,
    network_params={"channel_mult": (1, 2)},
    augment="affine",
    n_variations=4,
    max_epochs=40,
    time_budget=30,
    random_state=0,
).fit(X, y)
print(f"accuracy {classifier.score(X_test, y_test):.3f}")

# %%
# What latents lose, and what is drawn
# ------------------------------------
# Forty epochs of 200 images are too few for drawing, and `sample` warns of that: with more of them
# (``max_epochs="auto"``, and no limit of the time) it draws better.

drawn = classifier.sample(n_samples=2, random_state=0)
restored = classifier.reconstruct(X_test[:6])
figure, axes = plt.subplots(3, 6, figsize=(7, 3.8), layout="constrained")
for row, name, shown in zip(
    axes, ("image", "reconstruction", "drawn"), (X_test[:6], restored, drawn), strict=True
):
    row[0].set_ylabel(name)
    for ax, image in zip(row, shown, strict=True):
        ax.imshow(image, cmap="gray", vmin=0, vmax=255)
        ax.set(xticks=[], yticks=[])
