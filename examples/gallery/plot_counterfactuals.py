"""
Counterfactuals: what was changed where
=======================================

A counterfactual is an image changed towards another class, with as much of the rest kept as the
noise of the flow holds. It shows what the model has learned about the classes. It does not show
what would happen to a patient, nor a cause, and not every change is enough for the other class.
"""

# %%
# Images with a known difference
# ------------------------------
# Each image is a smooth background of its own; half of them have a bright spot somewhere. So it is
# known what should change: the spot, and nothing else.

import matplotlib.pyplot as plt
import numpy as np
from scipy.ndimage import gaussian_filter
from sklearn.ensemble import ExtraTreesClassifier

from sklearn_msf import MedSymmFlowClassifier
from sklearn_msf.plotting import CounterfactualDisplay


def draw(n, rng):
    """Draw n images, every second one with a spot; return images, labels and places of spots."""
    images, places = [], []
    grid = np.mgrid[:16, :16]
    labels = np.arange(n) % 2
    for label in labels:
        background = gaussian_filter(rng.normal(size=(16, 16)), 3, mode="wrap")
        place = rng.uniform(4, 12, 2)
        spot = np.exp(-np.sum((grid - place[:, None, None]) ** 2, axis=0) / 4)
        images.append(90 + 25 * background / background.std() + 110 * label * spot)
        places.append(place)
    return np.clip(images, 0, 255).astype(np.uint8), labels, np.array(places)


rng = np.random.default_rng(0)
X, y, _ = draw(600, rng)
X_test, y_test, places = draw(32, rng)

# %%
# Both directions
# ---------------
# The title of each column is what the model takes image and counterfactual for; where both are the
# same class, the change was not enough. Red is higher in the counterfactual, blue lower. With more
# guidance more images change their class, and more of each image changes. Ten steps of the solver
# in each direction are enough here; more come closer to the image.

classifier = MedSymmFlowClassifier(
    channels=16,
    network_params={"channel_mult": (1, 2, 2)},
    max_epochs=100,
    random_state=0,
).fit(X, y)
print(f"accuracy {classifier.score(X_test, y_test):.3f}")

predicted = classifier.predict(X_test)
names = ["clear", "spot"]
CounterfactualDisplay.from_estimator(
    classifier, X_test[:8], 1 - predicted[:8], n_steps=10, guidance=2.0, class_names=names
)

# %%
# Of all test images: to take a spot away is easier than to add one, which needs a place for it.

counterfactuals = classifier.counterfactual(X_test, 1 - predicted, n_steps=10, guidance=2.0)
reached = classifier.predict(counterfactuals) == 1 - predicted
for label, name in enumerate(names):
    print(f"from {name}: {reached[predicted == label].mean():.0%} change their class")

# %%
# Does it change the right place?
# -------------------------------
# Of images with a spot: the mean change around the spot, and elsewhere. `reconstruct` makes the
# same way to noise and back without another class; what it changes is what the solver and the model
# lose, and no difference of classes.

spots = y_test == 1
changed = counterfactuals[spots].astype(float) - X_test[spots]
lost = classifier.reconstruct(X_test[spots], n_steps=10).astype(float) - X_test[spots]
grid = np.mgrid[:16, :16]
near = np.sum((grid - places[spots][:, :, None, None]) ** 2, axis=1) < 3**2
for name, difference in (("counterfactual", changed), ("reconstruction", lost)):
    print(
        f"{name}: mean change {difference[near].mean():+.1f} at the spot, "
        f"{np.abs(difference[~near]).mean():.1f} (absolute) elsewhere"
    )

# %%
# Ask another classifier
# ----------------------
# That the model itself takes its counterfactual for the other class says little. A second
# classifier, which was trained on the same images and never saw a counterfactual, is a better
# judge. More guidance convinces it more often.

judge = ExtraTreesClassifier(300, random_state=0).fit(X.reshape(len(X), -1), y)
guidances, convinced = [0.0, 0.5, 2.0, 4.0], []
for guidance in guidances:
    other = classifier.counterfactual(X_test, 1 - y_test, n_steps=10, guidance=guidance)
    convinced.append(np.mean(judge.predict(other.reshape(len(other), -1)) == 1 - y_test))
print(f"the judge is right on {judge.score(X_test.reshape(len(X_test), -1), y_test):.0%} of images")

figure, ax = plt.subplots(figsize=(5, 3), layout="constrained")
ax.plot(guidances, convinced, marker="o")
ax.set(xlabel="guidance", ylabel="counterfactuals that\nconvince the judge", ylim=(0, 1.02))
