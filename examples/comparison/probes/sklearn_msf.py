"""What this package does."""

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
    by_default = MedSymmFlowClassifier(max_epochs=1, device="cpu").fit(IMAGES[:32], y[:32])
    by_default.predict(IMAGES[:1])  # The first call also looks for a batch size.
    field, n_samples = by_default.model_.field, []
    encode = field.encode
    field.encode = lambda x, *others: (n_samples.append(len(x)), encode(x, *others))[1]
    by_default.predict(IMAGES[:1])
    return f"{sum(n_samples)}, half of the network each"


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
    if rejected.all():
        return False
    # One certified mean cost, with errors of class 0 twice as dear.
    costs = 1.0 - np.eye(3)
    costs[0] *= 2
    FITTED.fit_reject(IMAGES[300:], y[300:], target_risk=0.6, cost_matrix=costs)
    rejected = FITTED.predict_with_reject(IMAGES[300:], return_mask=True)[1]
    certified = "the error rate" if rejected.all() else "the error rate or a mean cost"
    return f"{certified}, any number of classes"


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
            "coverage_at_risk": "coverage at a risk",
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
    if count == 40:
        os._exit(9)
    return step(self, *arguments)
TrainingStep.__call__ = step_or_die
_small(checkpoint_dir={runs!r}, checkpoint_every=1).fit(IMAGES, y)
"""


def resumes():
    with tempfile.TemporaryDirectory() as folder:
        runs = str(Path(folder) / "runs")
        died = _run(_INTERRUPTED.format(folder=folder, runs=runs), folder)
        if died.returncode != 9:
            raise RuntimeError(f"the run was not interrupted: {died.stderr[-300:]}")
        resumed = _small(checkpoint_dir=runs, checkpoint_every=1).fit(IMAGES, y)
        whole = _small().fit(IMAGES, y)
        same = np.array_equal(resumed.predict_proba(IMAGES), whole.predict_proba(IMAGES))
    return same and "bit by bit, on a CPU"


def files_without_code():
    with tempfile.TemporaryDirectory() as folder:
        FITTED.save_pretrained(folder)
        names = {path.suffix for path in Path(folder).iterdir()}
    return "safetensors and JSON" if names == {".safetensors", ".json", ".md"} else False


_TOGETHER = """
import os, sys
import numpy as np
sys.path.insert(0, {folder!r})
from probes_of_sklearn_msf import IMAGES, _small, y
answers = _small().fit(IMAGES, y).predict_proba(IMAGES)
np.save(os.path.join({folder!r}, os.environ["RANK"] + ".npy"), answers)
"""


def several_devices():
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    with tempfile.TemporaryDirectory() as folder:
        ended = _run(_TOGETHER.format(folder=folder), folder, *torchrun)
        if ended.returncode != 0:
            raise RuntimeError(f"torchrun failed: {ended.stderr[-300:]}")
        first, second = (np.load(Path(folder) / f"{rank}.npy") for rank in (0, 1))
    alone = _small().fit(IMAGES, y).predict_proba(IMAGES)
    same = np.array_equal(first, second) and np.allclose(first, alone, atol=0.01)
    return same and "by torchrun, tried on CPUs"


def onnx():
    return hasattr(MedSymmFlowClassifier, "export_onnx")


def offline():
    return images()


def python_api():
    return True


def licence():
    return metadata("sklearn-msf")["License-Expression"]


def _run(code, folder, *options):
    """Run a script beside a copy of these probes, in another process."""
    probes = Path(__file__).read_text(encoding="utf-8")
    (Path(folder) / "probes_of_sklearn_msf.py").write_text(probes, encoding="utf-8")
    script = Path(folder) / "script.py"
    script.write_text(code, encoding="utf-8")
    command = [sys.executable, *options, str(script)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _has_name(word):
    names = [name for module in (sklearn_msf, selective) for name in dir(module)]
    return any(word in name.lower() for name in names)
