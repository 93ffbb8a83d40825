"""What skorch does: torch networks as scikit-learn estimators."""

import pickle
import tempfile
from importlib.metadata import metadata
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import skorch
import skorch.helper
import torch
from mapie.classification import SplitConformalClassifier
from mapie.regression import SplitConformalRegressor
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, GroupKFold
from sklearn.utils.estimator_checks import check_estimator
from skorch import NeuralNetClassifier, NeuralNetRegressor
from skorch.callbacks import Checkpoint, EarlyStopping, LoadInitState
from skorch.dataset import ValidSplit
from torch import nn

DISTRIBUTION = "skorch"
X, y = load_digits(n_class=3, return_X_y=True)
IMAGES = X.reshape(-1, 1, 8, 8).astype(np.float32)


class _Network(nn.Module):
    def __init__(self, n_outputs=3):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.LazyLinear(32), nn.ReLU())
        self.last = nn.Linear(32, n_outputs)

    def forward(self, X):
        return self.last(self.layers(X.float()))


class _OneOutput(_Network):
    def __init__(self):
        super().__init__(n_outputs=1)

    def forward(self, X):
        return super().forward(X)[:, 0]


class _WeightedNetwork(_Network):
    def forward(self, X, sample_weight):
        return super().forward(X)


def _net(**parameters):
    torch.manual_seed(0)
    settings = {"criterion": nn.CrossEntropyLoss, "max_epochs": 5, "lr": 0.05, "verbose": 0}
    return NeuralNetClassifier(_Network, **{**settings, **parameters})


def images():
    return _net().fit(IMAGES[:300], y[:300]).score(IMAGES[300:], y[300:]) > 0.8


def tables():
    return _net().fit(X[:300].astype(np.float32), y[:300]).score(X[300:], y[300:]) > 0.8


def regression():
    target = X[:, :1].astype(np.float32)
    network = NeuralNetRegressor(_Network, module__n_outputs=1, max_epochs=1, verbose=0)
    return network.fit(IMAGES, target).predict(IMAGES).shape == target.shape


def own_network():
    return images()


def any_classifier():
    try:
        NeuralNetClassifier(LogisticRegression().fit(X, y), verbose=0).initialize()
    except TypeError:
        return False
    return True


def pretrained():
    llm = find_spec("skorch.llm") is not None
    return "text, by language models" if llm else False


def passes():
    calls, net = [], _net(max_epochs=1).fit(IMAGES, y)
    net.module_.register_forward_hook(lambda *_: calls.append(1))
    net.predict(IMAGES[:1])
    return str(len(calls))


def estimator_checks():
    results = check_estimator(_net(), on_fail=None)
    failed = [r for r in results if r["status"] == "failed"]
    return f"{len(failed)} of {len(results)} fail with a plain network"


def grid_search():
    return GridSearchCV(_net(), {"lr": [0.01, 0.05]}, cv=2).fit(IMAGES, y).best_score_ > 1 / 3


def sample_weight():
    class Weighted(NeuralNetClassifier):
        def get_loss(self, y_pred, y_true, X=None, **settings):
            losses = super().get_loss(y_pred, y_true, X, **settings)
            return (losses * X["sample_weight"]).mean()

    settings = {"criterion__reduction": "none", "criterion": nn.CrossEntropyLoss, "verbose": 0}
    net = Weighted(_WeightedNetwork, lr=0.05, train_split=None, **settings)
    weights = (y != 2).astype(np.float32)
    predicted = net.fit({"X": IMAGES, "sample_weight": weights}, y).predict(
        {"X": IMAGES, "sample_weight": weights}
    )
    return "by a loss of the user's own" if 2 not in predicted else False


def groups():
    seen = []

    class Watching(GroupKFold):
        def split(self, X, y=None, groups=None):
            seen.append(groups)
            return super().split(X, y, groups)

    patients = np.arange(len(y)) // 4
    split = ValidSplit(Watching(5))
    train, valid = split(skorch.dataset.Dataset(IMAGES, y), y, groups=patients)
    return not set(patients[train.indices]) & set(patients[valid.indices])


def partial_fit():
    return len(_net(max_epochs=2).fit(IMAGES, y).partial_fit(IMAGES, y).history) == 4


def callbacks():
    net = _net(callbacks=[EarlyStopping(patience=1)], max_epochs=3).fit(IMAGES, y)
    return f"{len(skorch.callbacks.__all__)} kinds, and the user's own" if net.history else False


def calibration():
    return _has_name("calibrat", "temperature")


def abstains():
    return _has_name("reject", "abstain", "fallback")


def certified_risk():
    return _has_name("risk")


def class_risks():
    return _has_name("risk")


def conformal_sets():
    net = _net(predict_nonlinearity="auto").fit(X[:300].astype(np.float32), y[:300])
    conformal = SplitConformalClassifier(net, confidence_level=0.9, prefit=True)
    conformal.conformalize(X[300:450].astype(np.float32), y[300:450])
    sets = conformal.predict_set(X[450:].astype(np.float32))[1]
    return "through MAPIE" if sets.shape[1] == 3 else False


def conformal_regression():
    rows, target = X.astype(np.float32), X[:, 10].astype(np.float32)
    net = NeuralNetRegressor(_OneOutput, max_epochs=2, lr=1e-4, verbose=0)
    net.fit(rows[:300], target[:300])
    conformal = SplitConformalRegressor(net, confidence_level=0.9, prefit=True)
    conformal.conformalize(rows[300:450], target[300:450])
    return "through MAPIE" if len(conformal.predict_interval(rows[450:])[1]) else False


def selective_measures():
    return _has_name("aurc", "coverage")


def ensembles():
    gaussian = find_spec("skorch.probabilistic") is not None
    return "Gaussian processes, by GPyTorch" if gaussian else _has_name("ensemble", "bayes")


def draws():
    return hasattr(NeuralNetClassifier, "sample")


def counterfactuals():
    return _has_name("counterfactual")


def resumes():
    with tempfile.TemporaryDirectory() as folder:
        settings = {"optimizer": torch.optim.Adam, "lr": 0.01, "train_split": None}
        kept = Checkpoint(dirname=folder, monitor=None)
        _net(callbacks=[kept], max_epochs=3, **settings).fit(IMAGES, y)
        kept = Checkpoint(dirname=folder, monitor=None)
        resumed = _net(callbacks=[LoadInitState(kept)], max_epochs=3, **settings).fit(IMAGES, y)
        whole = _net(max_epochs=6, **settings).fit(IMAGES, y)
    same = np.array_equal(resumed.predict_proba(IMAGES), whole.predict_proba(IMAGES))
    return "yes, for max_epochs more" if same else "it goes on; the result was another"


def files_without_code():
    net = _net(max_epochs=1).fit(IMAGES, y)
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "weights.safetensors")
        net.save_params(f_params=path, use_safetensors=True)
        again = _net().initialize()
        again.module_(torch.zeros(1, 1, 8, 8))
        again.load_params(f_params=path, use_safetensors=True)
    same = np.array_equal(net.predict_proba(IMAGES), again.predict_proba(IMAGES))
    whole = len(pickle.dumps(net)) > 0
    return "the weights as safetensors; settings by pickle" if same and whole else False


def onnx():
    return _has_name("onnx")


def offline():
    return images()


def python_api():
    return True


def licence():
    return metadata("skorch")["License-Expression"]


def _has_name(*words):
    modules = (skorch, skorch.callbacks, skorch.utils, skorch.helper, NeuralNetClassifier)
    names = [name.lower() for module in modules for name in dir(module) if name[0] != "_"]
    return any(word in name for word in words for name in names)
