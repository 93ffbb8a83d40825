"""What MAPIE does: conformal prediction and risk control around fitted models."""

import contextlib
import pkgutil
from importlib import import_module
from importlib.metadata import metadata

import mapie
import numpy as np
from mapie import risk_control
from mapie.calibration import TopLabelCalibrator
from mapie.classification import CrossConformalClassifier, SplitConformalClassifier
from mapie.regression import JackknifeAfterBootstrapRegressor, SplitConformalRegressor
from mapie.risk_control import (
    BinaryRisk,
    MultiClassificationLTTController,
    abstention_rate,
)
from mapie.risk_control.risks import build_precision_ovr
from sklearn.base import BaseEstimator
from sklearn.datasets import load_digits
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.model_selection import GroupKFold

DISTRIBUTION = "mapie"
X, y = load_digits(n_class=3, return_X_y=True)
X = X + np.random.default_rng(0).normal(scale=3, size=X.shape)
PLAIN = LogisticRegression(max_iter=1000).fit(X[:200], y[:200])


def images():
    return "as rows" if tables() else False


def tables():
    return conformal_sets()


def any_classifier():
    return conformal_sets()


def regression():
    return conformal_regression()


def segmentation():
    return _has_name("semanticsegmentation") and "guarantees for it"


def estimator_checks():
    is_estimator = issubclass(SplitConformalClassifier, BaseEstimator)
    return is_estimator or "not an estimator"


def grid_search():
    return hasattr(SplitConformalClassifier, "get_params")


def sample_weight():
    conformal = SplitConformalClassifier(LogisticRegression(max_iter=1000), prefit=False)
    weights = (y[:200] != 2).astype(float)
    conformal.fit(X[:200], y[:200], fit_params={"sample_weight": weights})
    conformal.conformalize(X[200:400], y[200:400])
    return 2 not in conformal.predict(X[400:])


def groups():
    patients = np.arange(300) // 4
    conformal = CrossConformalClassifier(LogisticRegression(max_iter=1000), cv=GroupKFold(5))
    conformal.fit_conformalize(X[:300], y[:300], groups=patients)
    return True


def partial_fit():
    return hasattr(SplitConformalClassifier, "partial_fit")


def callbacks():
    return _has_name("callback")


def calibration():
    calibrated = TopLabelCalibrator(PLAIN, cv="prefit").fit(X[200:400], y[200:400])
    return "top label, Venn-Abers" if calibrated.predict_proba(X).shape == (len(X), 3) else False


def abstains():
    controller = _controller([abstention_rate], [0.2])
    answered = np.isfinite(controller.predict(X[400:]).astype(float))
    return "with a bound on the share" if answered.mean() > 0.5 else False


def certified_risk():
    risks = {id(value) for value in vars(risk_control).values() if isinstance(value, BinaryRisk)}
    return f"{len(risks)} risks by name, and own ones" if class_risks() else False


def class_risks():
    controller = _controller(build_precision_ovr([0, 1, 2]), [0.6] * 3)
    predicted = controller.predict(X[400:]).astype(float)
    return "precision and recall of each class" if np.isfinite(predicted).any() else False


def _controller(risks, levels):
    controller = MultiClassificationLTTController(
        PLAIN.predict_proba, risks, target_level=levels, confidence_level=0.9, classes=[0, 1, 2]
    )
    controller.calibrate(X[200:400], y[200:400])
    return controller


def conformal_sets():
    conformal = SplitConformalClassifier(PLAIN, confidence_level=0.9, prefit=True)
    conformal.conformalize(X[200:400], y[200:400])
    sets = conformal.predict_set(X[400:])[1][:, :, 0]
    return bool(sets[np.arange(len(sets)), y[400:]].mean() > 0.8)


def conformal_regression():
    target = X[:, 10]
    model = LinearRegression().fit(X[:200, :5], target[:200])
    conformal = SplitConformalRegressor(model, confidence_level=0.9, prefit=True)
    conformal.conformalize(X[200:400, :5], target[200:400])
    low, high = conformal.predict_interval(X[400:, :5])[1][:, :, 0].T
    return bool(np.mean((low <= target[400:]) & (target[400:] <= high)) > 0.8)


def selective_measures():
    return _has_name("aurc", "risk_coverage")


def ensembles():
    resampled = JackknifeAfterBootstrapRegressor(LinearRegression(), resampling=5, random_state=0)
    resampled.fit_conformalize(X[:100, :5], X[:100, 10])
    intervals = resampled.predict_interval(X[100:110, :5])[1]
    return "resampled models, for intervals" if len(intervals) == 10 else False


def unusual():
    return _has_name("exchangeability") and "tests of exchangeability"


def draws():
    return _has_name("generative")


def counterfactuals():
    return _has_name("counterfactual")


def onnx():
    return _has_name("onnx")


def offline():
    return conformal_sets()


def python_api():
    return True


def licence():
    found = metadata("mapie")
    return found["License-Expression"] or found["License"].splitlines()[0]


def _has_name(*words):
    modules = [m.name for m in pkgutil.walk_packages(mapie.__path__, "mapie.")]
    names = [*modules]
    for module in modules:
        # Some need packages that are not required.
        with contextlib.suppress(ImportError):
            names += dir(import_module(module))
    return any(word in name.lower() for word in words for name in names)
