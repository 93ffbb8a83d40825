"""What TabPFN does without a network, which is little: its weights are downloaded at first use."""

import inspect
from importlib.metadata import metadata

import numpy as np
import tabpfn
from sklearn.base import BaseEstimator
from tabpfn import TabPFNClassifier, TabPFNRegressor

DISTRIBUTION = "tabpfn"


def regression():
    return issubclass(TabPFNRegressor, BaseEstimator)


def segmentation():
    return _has_name("segment")


def own_network():
    return "module" in inspect.signature(TabPFNClassifier).parameters


def sample_weight():
    return "sample_weight" in inspect.signature(TabPFNClassifier.fit).parameters


def groups():
    return "groups" in inspect.signature(TabPFNClassifier.fit).parameters


def partial_fit():
    return hasattr(TabPFNClassifier, "partial_fit")


def callbacks():
    return _has_name("callback")


def abstains():
    return _has_name("reject", "abstain")


def certified_risk():
    return _has_name("certif", "reject", "abstain")


def class_risks():
    return _has_name("certif", "reject", "abstain")


def conformal_sets():
    return _has_name("conformal")


def selective_measures():
    return _has_name("aurc", "selective")


def counterfactuals():
    return _has_name("counterfactual")


def offline():
    rows = np.random.default_rng(0).normal(size=(40, 5))
    try:
        TabPFNClassifier(device="cpu").fit(rows, rows[:, 0] > 0).predict(rows)
    except Exception as error:
        return f"no: `{type(error).__name__}`, as there are no weights"
    return True


def python_api():
    return True


def licence():
    return metadata("tabpfn")["License-Expression"]


def _has_name(*words):
    names = [*dir(tabpfn), *dir(TabPFNClassifier), *dir(TabPFNRegressor)]
    return any(word in name.lower() for word in words for name in names)
