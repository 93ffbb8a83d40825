"""
Volumes
=======

With ``n_spatial_dims=3`` the classifier takes volumes, such as CT or MR, in place of images.
Everything else is as with images. On real volumes: ``examples/volumes.py``, and :doc:`/volumes`.
"""

# %%
# Balls and rods
# --------------
# Volumes of 12 x 12 x 12 voxels. A single slice may not tell the two apart.

import numpy as np
from sklearn.model_selection import train_test_split

from sklearn_msf import MedSymmFlowClassifier
from sklearn_msf.plotting import CounterfactualDisplay, SampleGridDisplay


def draw(n, rng):
    """Draw n volumes, every second one a rod along a random axis, the others balls."""
    grid = np.mgrid[:12, :12, :12]
    volumes = []
    for number in range(n):
        squares = (grid - rng.uniform(4.5, 6.5, 3)[:, None, None, None]) ** 2
        if number % 2:
            squares[rng.integers(3)] = 0
            inside = squares.sum(axis=0) < rng.uniform(1.5, 2.5) ** 2
        else:
            inside = squares.sum(axis=0) < rng.uniform(2.5, 4.5) ** 2
        volumes.append(150 * inside + rng.normal(60, 15, inside.shape))
    return np.clip(volumes, 0, 255).astype(np.uint8), np.array(["ball", "rod"] * (n // 2))


X, y = draw(200, np.random.default_rng(0))
X, X_test, y, y_test = train_test_split(X, y, test_size=80, random_state=0)
print(X.shape)

# %%
# Training
# --------
# Four axes could also be images with twelve channels, so the number of spatial axes is said, not
# guessed. Cubes of 2 x 2 x 2 voxels are folded into channels.

classifier = MedSymmFlowClassifier(
    n_spatial_dims=3,
    channels=16,
    network_params={"patch_size": 2, "channel_mult": (1, 2)},
    max_epochs=120,
    random_state=0,
).fit(X, y)
print(f"accuracy {classifier.score(X_test, y_test):.3f}")
answers = classifier.predict_with_reject(X_test, coverage=0.8)
print(f"answered {answers.count()} of {len(X_test)}")

# %%
# Displays show the central slices, across depth, height and width, one below the other.

SampleGridDisplay.from_estimator(classifier, X=X, y=y, n_columns=4)

# %%
# Balls that become rods, and rods that become balls. With so little training few volumes get
# there: the titles say what the classifier takes them for.

to_class = np.where(y_test[:6] == "ball", "rod", "ball")
CounterfactualDisplay.from_estimator(classifier, X_test[:6], to_class, n_steps=10)
