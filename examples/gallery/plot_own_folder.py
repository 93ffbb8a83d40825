"""
Images from a folder of your own
================================

From a folder of files to predictions. The example first writes a folder as a user has it: a folder
for each class, several sizes, gray and coloured, several images of a patient, and a file that is no
image.

Needs ``python -m pip install "sklearn-msf[images,plot]"``. What else can be read, DICOM for
example, is in :doc:`/own_images`.
"""

# %%
# The folder
# ----------
# Each image shows a disc that is smooth or scratched. File names begin with the patient.

import tempfile
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from sklearn_msf import MedSymmFlowClassifier
from sklearn_msf.datasets import load_image_folder


def draw(kind, rng):
    """Draw a disc that is smooth or scratched, in gray or in colour."""
    height, width = rng.integers(40, 70, 2)
    y, x = np.mgrid[:height, :width] / min(height, width)
    disc = (np.hypot(y - y.mean(), x - x.mean()) < 0.35) * 150.0
    if kind == "scratched":
        disc *= np.sin(40 * (x + rng.uniform(-1, 1) * y) + rng.uniform(0, 6)) > -0.3
    gray = np.clip(disc + rng.normal(50, 10, disc.shape), 0, 255).astype(np.uint8)
    return Image.fromarray(gray).convert(rng.choice(["L", "RGB"]))


def write_folders(folder, rng):
    """Write 80 images of 20 patients in two classes, and 6 images of no known class."""
    for kind in ("scratched", "smooth"):
        (folder / "train" / kind).mkdir(parents=True)
        for patient in range(10):
            for image in range(4):
                name = f"{kind[:2]}{patient}_{image}.png"
                draw(kind, rng).save(folder / "train" / kind / name)
    (folder / "train" / "scratched" / "notes.txt").write_text("no image", encoding="utf-8")
    (folder / "new").mkdir()
    for i in range(6):
        draw(["scratched", "smooth"][i % 2], rng).save(folder / "new" / f"{i}.jpg")


temporary = tempfile.TemporaryDirectory()
folder = Path(temporary.name)
write_folders(folder, np.random.default_rng(0))

# %%
# Loading
# -------
# `size` brings all images to one size and `color` to one number of channels; without them several
# sizes are an error that lists them. `groups` says which images belong together. A file that is no
# image is left out, with a warning, and named in the report.


def patient_of(file):
    """Find the patient in a name such as scratched/sc3_1.png."""
    return Path(file).name.split("_")[0]


with warnings.catch_warnings():
    # The warning of the file that is no image.
    warnings.simplefilter("ignore")
    train = load_image_folder(folder / "train", size=32, color="gray", groups=patient_of)
print(train.report)

# %%
# Training
# --------
# Calibration holds out a third of the images for a while. With `groups` no patient is on both
# sides.

classifier = MedSymmFlowClassifier(
    channels=16, max_epochs=30, calibration="temperature", random_state=0
)
classifier.fit(train.data, train.target, groups=train.groups)

# %%
# New images
# ----------
# They are loaded with the same size and colour as in training. This folder has no classes.

new = load_image_folder(folder / "new", size=32, color="gray")
labels = classifier.predict(new.data)
probabilities = classifier.predict_proba(new.data).max(axis=1)
temporary.cleanup()

figure, axes = plt.subplots(1, len(labels), figsize=(9, 2), layout="constrained")
for ax, image, label, probability in zip(axes, new.data, labels, probabilities, strict=True):
    ax.imshow(image, cmap="gray")
    ax.set_title(f"{label}\n{probability:.0%}", fontsize=9)
    ax.set_axis_off()
