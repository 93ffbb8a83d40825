"""From a folder of images to predictions.

    pip install "sklearn-msf[images]"
    python examples/own_folder.py

Writes a small folder of synthetic images, as a user has them: a folder for each class, several
sizes, gray and coloured, several images of a patient, and a file that is no image. Then it loads
the folder, trains, and predicts the images of another folder, which has no classes.
"""

import tempfile
import warnings
from pathlib import Path

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
    (folder / "train" / "scratched" / "notes.txt").write_text("no image")
    (folder / "new").mkdir()
    for i in range(6):
        draw(["scratched", "smooth"][i % 2], rng).save(folder / "new" / f"{i}.jpg")


def patient_of(file):
    """Find the patient in a name such as scratched/sc3_1.png."""
    return Path(file).name.split("_")[0]


def main(folder, **settings):
    write_folders(folder, np.random.default_rng(0))

    with warnings.catch_warnings():
        # The warning of the file that is no image; the report names it too.
        warnings.simplefilter("ignore")
        train = load_image_folder(folder / "train", size=32, color="gray", groups=patient_of)
    print(train.report)
    classifier = MedSymmFlowClassifier(calibration="temperature", random_state=0, **settings)
    classifier.fit(train.data, train.target, groups=train.groups)

    # The same size and color as in training.
    new = load_image_folder(folder / "new", size=32, color="gray")
    probabilities = classifier.predict_proba(new.data).max(axis=1)
    for file, label, probability in zip(
        new.filenames, classifier.predict(new.data), probabilities, strict=True
    ):
        print(f"new/{file}: {label} ({probability:.0%})")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(temporary), channels=16, max_epochs=30)
