"""
A service with ONNX
===================

A fitted classifier leaves the machine on which it was trained as one ONNX file. The service that
runs it needs onnxruntime and numpy, neither torch nor this package.

Needs ``python -m pip install "sklearn-msf[onnx,plot]"`` for the export. What is and is not in
the file: :doc:`/deployment`.
"""

# %%
# Train, certify, export
# ----------------------
# `export_onnx` compares the file with the model and writes it only if they agree. The rejection
# threshold goes into the metadata of the file.

import json
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import onnxruntime
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from sklearn_msf import MedSymmFlowClassifier

digits = load_digits(n_class=4)
noise = np.random.default_rng(0).normal(0, 45, digits.images.shape)
images = np.clip(digits.images * 15.9 + noise, 0, 255).astype(np.uint8)
X, X_rest, y, y_rest = train_test_split(images, digits.target, train_size=300, random_state=0)
X_cal, X_new, y_cal, _ = train_test_split(X_rest, y_rest, train_size=300, random_state=0)

classifier = MedSymmFlowClassifier(
    channels=16,
    network_params={"patch_size": 1, "channel_mult": (1, 2)},
    augment="affine",
    max_epochs=30,
    precision="float32",  # as the file computes, so that the threshold holds for it
    random_state=0,
).fit(X, y)
classifier.fit_reject(X_cal, y_cal, target_risk=0.05, confidence=0.9)

temporary = tempfile.TemporaryDirectory()
path = Path(temporary.name) / "classifier.onnx"
classifier.export_onnx(path)
print(f"{path.stat().st_size / 1e6:.1f} MB")

# %%
# The service
# -----------
# From here on nothing uses the classifier. Images go in as they were in training: normalisation is
# inside.

session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
entries = session.get_modelmeta().custom_metadata_map
metadata = {key: json.loads(value) for key, value in entries.items()}
print(metadata["classes"], metadata["image_format"], metadata["rejection"]["threshold"])

probabilities, uncertainty = session.run(None, {"images": X_new})
labels = np.array(metadata["classes"])[probabilities.argmax(axis=1)]
# Where no threshold could be certified nothing is answered.
threshold = metadata["rejection"]["threshold"]
answered = uncertainty <= (-np.inf if threshold is None else threshold)
print(f"answered {answered.sum()} of {len(X_new)}")

# %%
# ``examples/onnx_service.py`` of the repository is the same as a script, with checks of what comes
# in.

rejected, sure = np.flatnonzero(~answered)[:5], np.flatnonzero(answered)[:5]
shown = np.concatenate([sure, rejected])
figure, axes = plt.subplots(1, len(shown), figsize=(9, 1.6), layout="constrained")
for ax, i in zip(axes, shown, strict=True):
    ax.imshow(X_new[i], cmap="gray_r")
    ax.set_title(labels[i] if answered[i] else "abstains", fontsize=9)
    ax.set_axis_off()
temporary.cleanup()
