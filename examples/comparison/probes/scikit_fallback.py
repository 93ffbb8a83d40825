"""What scikit-fallback does: a reject option around scikit-learn's classifiers."""

import inspect
import pkgutil
from importlib import import_module
from importlib.metadata import metadata

import numpy as np
import skfb
from skfb.ensemble import ThresholdCascadeClassifier
from skfb.estimators import (
    AnomalyFallbackClassifier,
    RateFallbackClassifierCV,
    ThresholdFallbackClassifierCV,
)
from sklearn.datasets import load_digits
from sklearn.ensemble import IsolationForest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.utils.estimator_checks import check_estimator

DISTRIBUTION = "scikit-fallback"
X, y = load_digits(n_class=3, return_X_y=True)
PLAIN = LogisticRegression(max_iter=1000)


def _fallback(**parameters):
    settings = {"fallback_rate": 0.1, "cv": 3, "fallback_label": -1, "fallback_mode": "return"}
    return RateFallbackClassifierCV(PLAIN, **{**settings, **parameters})


def images():
    return "as rows" if tables() else False


def tables():
    return _fallback().fit(X, y).predict(X).shape == y.shape


def any_classifier():
    return tables()


def regression():
    return _has_name("regress")


def segmentation():
    return _has_name("segment")


def estimator_checks():
    results = check_estimator(_fallback(), on_fail=None)
    failed = [r for r in results if r["status"] == "failed"]
    return f"{len(failed)} of {len(results)} fail"


def grid_search():
    grid = GridSearchCV(_fallback(), {"fallback_rate": [0.05, 0.2]}, cv=2).fit(X, y)
    return "fallback_rate" in grid.best_params_


def sample_weight():
    weighted = _fallback().fit(X, y, sample_weight=(y != 2).astype(float))
    return 2 not in weighted.predict(X)


def groups():
    return "groups" in inspect.signature(RateFallbackClassifierCV.fit).parameters


def partial_fit():
    return hasattr(RateFallbackClassifierCV, "partial_fit")


def callbacks():
    return _has_name("callback")


def calibration():
    return _has_name("calibrat", "temperature")


def abstains():
    shares = np.mean(_fallback().fit(X[:300], y[:300]).predict(X[300:]) == -1)
    learned = ThresholdFallbackClassifierCV(PLAIN, thresholds=[0.5, 0.9], cv=3).fit(X, y)
    return "yes, and by learned thresholds" if 0 < shares < 0.3 and learned.threshold_ else False


def certified_risk():
    return _has_name("certif", "confidence_level", "guarant")


def class_risks():
    return _has_name("certif", "confidence_level", "guarant")


def conformal_sets():
    return _has_name("conformal")


def conformal_regression():
    return _has_name("conformal")


def selective_measures():
    names = import_module("skfb.metrics")
    return ", ".join(
        title
        for name, title in {
            "predict_reject_accuracy_score": "accuracy of rejection",
            "fallback_quality_auc_score": "area of fallback against quality",
            "aurc": "AURC",
            "augrc": "AUGRC",
        }.items()
        if hasattr(names, name)
    )


def ensembles():
    cascade = ThresholdCascadeClassifier([PLAIN, LogisticRegression(C=10, max_iter=1000)], 0.9)
    return "cascades and routing" if cascade.fit(X, y).score(X, y) > 0.9 else False


def unusual():
    guarded = AnomalyFallbackClassifier(PLAIN, IsolationForest(random_state=0))
    guarded.set_params(fallback_mode="return").fit(X, y)
    return "rejects them, by any outlier detector" if guarded.predict(X).shape == y.shape else False


def draws():
    return _has_name("generat")


def counterfactuals():
    return _has_name("counterfactual")


def onnx():
    return _has_name("onnx")


def offline():
    return tables()


def python_api():
    return True


def licence():
    return metadata("scikit-fallback")["License"].splitlines()[0]


def _has_name(*words):
    modules = [import_module(m.name) for m in pkgutil.walk_packages(skfb.__path__, "skfb.")]
    names = [name.lower() for module in modules for name in dir(module) if name[0] != "_"]
    return any(word in name for word in words for name in names)
