"""What this package does."""

import pkgutil
import subprocess
import sys
import tempfile
from importlib.metadata import metadata
from pathlib import Path

import numpy as np
from mapie.classification import SplitConformalClassifier
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV
from sklearn.utils.estimator_checks import check_estimator

import sklearn_msf
from sklearn_msf import MedSymmFlowClassifier, selective

DISTRIBUTION = "sklearn-msf"
X, y = load_digits(n_class=3, return_X_y=True)
IMAGES = X.reshape(-1, 8, 8)
SMALL = {
    "channels": 16,
    "network_params": {
        "channel_mult": (1,),
        "n_blocks": 1,
        "attention_levels": (),
        "patch_size": 1,
        "dropout": 0.0,
    },
    "flow_params": {"image_weight": 0.1},
    "classification_fraction": 0.8,
    "max_epochs": 4,
    "learning_rate": 1e-2,
    "batch_size": 32,
    "augment": None,
    "device": "cpu",
    "precision": "float32",
    "random_state": 0,
}
FITTED = MedSymmFlowClassifier(**{**SMALL, "max_epochs": 20}).fit(IMAGES[:300], y[:300])


def _small(**parameters):
    return MedSymmFlowClassifier(**{**SMALL, **parameters})


def images():
    return FITTED.score(IMAGES[300:], y[300:]) > 0.8


def tables():
    rows = np.random.default_rng(0).normal(size=(200, 5))
    labels = (rows[:, 0] > 0).astype(int)
    works = _small(max_epochs=20).fit(rows, labels).score(rows, labels) > 0.8
    return "yes, but made for images" if works else False


def regression():
    return any("Regress" in name for name in sklearn_msf.__all__)


def segmentation():
    return any("Segment" in name for name in sklearn_msf.__all__)


def own_network():
    return any("module" in name for name in FITTED.get_params())


def any_classifier():
    errors = np.arange(100) > 90
    threshold = selective.certified_threshold(errors, np.arange(100.0), target_risk=0.3)
    return "its measures and thresholds" if threshold > 0 else False


def pretrained():
    return hasattr(MedSymmFlowClassifier, "from_pretrained") and "only what a user has saved"


def passes():
    # The draws of an image go through the network as rows of one batch.
    by_default = MedSymmFlowClassifier().get_params()
    return str(by_default["n_draws"] * by_default["n_steps"])


def estimator_checks():
    results = check_estimator(_small(max_epochs=20), on_fail=None)
    failed = [r for r in results if r["status"] == "failed"]
    return f"{len(failed)} of {len(results)} fail with a small network"


def grid_search():
    grid = GridSearchCV(_small(), {"learning_rate": [1e-3, 1e-2]}, cv=2).fit(IMAGES, y)
    return grid.best_score_ > 1 / 3


def sample_weight():
    only_two = (y != 2).astype(float)
    return 2 not in _small(max_epochs=20).fit(IMAGES, y, sample_weight=only_two).predict(IMAGES)


def groups():
    patients = np.arange(len(y)) // 4
    _small(early_stopping=True).fit(IMAGES, y, groups=patients)
    return True


def partial_fit():
    return _small().partial_fit(IMAGES, y, classes=[0, 1, 2]).predict(IMAGES).shape == y.shape


def callbacks():
    return hasattr(MedSymmFlowClassifier, "set_callbacks") and "those of scikit-learn 1.9"


def calibration():
    calibrated = _small(calibration="temperature").fit(IMAGES, y)
    return "by a temperature" if calibrated.model_.temperature != 1 else False


def abstains():
    return int(FITTED.predict_with_reject(IMAGES[:100], coverage=0.9).count()) == 90


def certified_risk():
    FITTED.fit_reject(IMAGES[300:], y[300:], target_risk=0.3)
    rejected = FITTED.predict_with_reject(IMAGES[300:], return_mask=True)[1]
    return "the error rate, any number of classes" if not rejected.all() else False


def class_risks():
    try:
        FITTED.fit_reject(IMAGES[300:], y[300:], target_risk={0: 0.3})
    except (TypeError, ValueError):
        return False
    return True


def conformal_sets():
    classifier = _small(image_shape=(8, 8), max_epochs=10).fit(X[:300], y[:300])
    conformal = SplitConformalClassifier(classifier, confidence_level=0.9, prefit=True)
    conformal.conformalize(X[300:450], y[300:450])
    return "through MAPIE" if conformal.predict_set(X[450:])[1].shape[1] == 3 else False


def conformal_regression():
    return _has_name("interval")


def selective_measures():
    return ", ".join(
        name
        for title, name in {
            "aurc": "AURC",
            "excess_aurc": "excess AURC",
            "augrc": "AUGRC",
            "risk_at_coverage": "risk at a coverage",
            "accuracy_rejection_curve": "curves",
        }.items()
        if hasattr(selective, title)
    )


def ensembles():
    spread = _small(n_draws=3).fit(IMAGES, y).predict_uncertainty(IMAGES[:5], kind="draws")
    return "several noise draws of one model" if np.isfinite(spread).all() else False


def unusual():
    noise = np.random.default_rng(0).uniform(0, 16, IMAGES[:20].shape)
    return bool(FITTED.score_samples(IMAGES[:20]).mean() > FITTED.score_samples(noise).mean())


def draws():
    return FITTED.sample(class_id=2, n_samples=3, random_state=0).shape == (3, 8, 8)


def counterfactuals():
    return FITTED.counterfactual(IMAGES[:2], to_class=1).shape == (2, 8, 8)


_INTERRUPTED = """
import os, sys
sys.path.insert(0, {folder!r})
from probes_of_sklearn_msf import IMAGES, _small, y
from sklearn_msf.training.step import TrainingStep
step, count = TrainingStep.__call__, 0
def step_or_die(self, *arguments):
    global count
    count += 1
    if count == 8:
        os._exit(9)
    return step(self, *arguments)
TrainingStep.__call__ = step_or_die
_small(checkpoint_dir={runs!r}, checkpoint_every=1).fit(IMAGES, y)
"""


def resumes():
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "probes_of_sklearn_msf.py"
        copy.write_text(Path(__file__).read_text(encoding="utf-8"), encoding="utf-8")
        runs = str(Path(folder) / "runs")
        code = _INTERRUPTED.format(folder=folder, runs=runs)
        died = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
        resumed = _small(checkpoint_dir=runs, checkpoint_every=1).fit(IMAGES, y)
        whole = _small().fit(IMAGES, y)
        same = np.array_equal(resumed.predict_proba(IMAGES), whole.predict_proba(IMAGES))
    return died.returncode == 9 and same and "bit by bit, on a CPU"


def files_without_code():
    with tempfile.TemporaryDirectory() as folder:
        FITTED.save_pretrained(folder)
        names = {path.suffix for path in Path(folder).iterdir()}
    return "safetensors and JSON" if names == {".safetensors", ".json", ".md"} else False


def several_devices():
    modules = pkgutil.walk_packages(sklearn_msf.__path__, "sklearn_msf.")
    return any("process_group" in module.name for module in modules)


def onnx():
    return hasattr(MedSymmFlowClassifier, "export_onnx")


def offline():
    return images()


def python_api():
    return True


def licence():
    return metadata("sklearn-msf")["License-Expression"]


def _has_name(word):
    names = [name for module in (sklearn_msf, selective) for name in dir(module)]
    return any(word in name.lower() for name in names)
