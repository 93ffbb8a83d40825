"""Systems: everything that the benchmarks train on the same data, in one registry.

A system says how it is trained, what identifies its settings, on which images it works, and which
kinds of runs it has: for a given time ("equal"), or to the end of its own recipe ("complete").
"""

import importlib.util
import itertools
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from sklearn.ensemble import HistGradientBoostingClassifier, VotingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.nn import functional as F

from _common.command_line import group_parameters
from _common.data import as_tensor
from _common.generated import DEFAULT_SAMPLING, PAPERS_SAMPLING, make_imagenet_features
from _common.networks import MEDMNIST_RECIPE, Recipe, make_resnet, make_vit, train_network
from _common.records import asked_parameters, resolved_parameters
from sklearn_msf import LatentMedSymmFlowClassifier, MedSymmFlowClassifier
from sklearn_msf.latent.backbone_opening import as_backbone
from sklearn_msf.prevalence import adjust_to_prior, estimate_prior

__all__ = [
    "ADJUSTED",
    "ALONE_MUON",
    "BALANCED",
    "RESNET18",
    "SYSTEMS",
    "VOTING",
    "System",
    "Task",
    "Trained",
    "equal_seconds",
    "frozen_backbone",
    "paper_name",
]

Arrays = tuple[np.ndarray, np.ndarray]
Probabilities = Callable[[np.ndarray], np.ndarray]

# Images of more pixels a side are "large": systems over pixels do not take them, those over latents
# take no others.
_SMALL = 64


@dataclass(frozen=True)
class Task:
    """What a system is trained on.

    Attributes
    ----------
    name : str
        Name of the data set.
    train, validation : tuple of ndarray
        uint8 images, and labels from 0. What the validation part is for depends on the system.
    seconds : float or None
        Time after which training ends; None for a complete run.
    seed : int
        Seed of the training.
    """

    name: str
    train: Arrays
    validation: Arrays
    seconds: float | None
    seed: int


@dataclass(frozen=True)
class Trained:
    """A trained system.

    Attributes
    ----------
    predict_proba : callable
        Maps uint8 images to class probabilities, (n, K).
    estimator : object or None
        The fitted estimator, if it is one of the package.
    images_seen : int or None
        Number of images that a network saw in all training steps, or of which it computed
        features; None for trees and searches over pixels.
    resolved : dict
        What "auto" became, and what validation chose.
    """

    predict_proba: Probabilities
    estimator: Any = None
    images_seen: int | None = None
    resolved: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class System:
    """A system of the registry.

    Attributes
    ----------
    title : str
        Name in tables.
    train : callable
        Maps a :class:`Task` to a :class:`Trained`.
    parameters : callable
        Maps the name of a data set to the settings that identify a run.
    chosen_on : {"validation", "unknown"}
        On what settings and weights were chosen. Our defaults were chosen on validation splits;
        nobody knows this of the settings that are the paper's.
    takes : {"small", "large", "any"}
        Images that it works on: sides of up to 64 pixels, larger ones, or both.
    runs : tuple of {"equal", "complete"}
        Kinds of runs that it has.
    images_of_complete : callable, optional
        Maps name and number of training images to the number of images that a complete run sees;
        None where nobody knows before.
    package : str, optional
        Module that must be importable, where it is no dependency of this package.
    published : str, optional
        Name of the system whose published figures stand beside.
    sampling : mapping
        Arguments of ``sample``: its defaults, or those of the paper's figures.
    """

    title: str
    train: Callable[[Task], Trained]
    parameters: Callable[[str], Mapping[str, Any]]
    chosen_on: str = "validation"
    takes: str = "small"
    runs: tuple[str, ...] = ("equal",)
    images_of_complete: Callable[[str, int], int] | None = None
    package: str | None = None
    published: str | None = None
    sampling: Mapping[str, Any] = field(default_factory=lambda: DEFAULT_SAMPLING)

    def works_on(self, side: int) -> bool:
        """Whether it takes images of this side."""
        return self.takes == "any" or (self.takes == "small") == (side <= _SMALL)

    @property
    def is_installed(self) -> bool:
        """Whether the package that it needs is there."""
        return self.package is None or importlib.util.find_spec(self.package) is not None


_EQUAL_SECONDS = {"retinamnist": 200.0}
_DEFAULT_EQUAL_SECONDS = 300.0


def equal_seconds(name: str) -> float:
    """Reference seconds of the runs of equal time on a data set."""
    return _EQUAL_SECONDS.get(name.partition("@")[0], _DEFAULT_EQUAL_SECONDS)


# Estimators of the package


def _estimator_system(title: str, make: Callable[[str], Any], **kwargs: Any) -> System:
    """System of an estimator that `make` makes for the name of a data set."""

    def train(task: Task) -> Trained:
        estimator = make(task.name)
        estimator.set_params(time_budget=task.seconds, random_state=task.seed)
        estimator.fit(*task.train)
        resolved = resolved_parameters(estimator, len(task.train[1]))
        return Trained(estimator.predict_proba, estimator, resolved["images_seen"], resolved)

    return System(
        title, train, lambda name: asked_parameters(make(name), has_budget=True), **kwargs
    )


def _ours(title: str, **parameters: Any) -> System:
    """Our classifier over pixels; entries of its dict parameters stand beside the others."""
    constructor = group_parameters(parameters)
    return _estimator_system(title, lambda name: MedSymmFlowClassifier(**constructor))


def paper_name(name: str) -> str:
    """Data set of the paper whose settings a data set takes: the most similar one."""
    similar = {
        "retina": "retinamnist",
        "derma": "dermamnist",
        "ham": "dermamnist",
        "pneumonia": "pneumoniamnist",
        "breast": "pneumoniamnist",
        "busi": "pneumoniamnist",
    }
    found = (known for start, known in similar.items() if name.lower().startswith(start))
    return next(found, "bloodmnist")


def _papers(title: str, make: Callable[[str], Any], **kwargs: Any) -> System:
    def images_of_complete(name: str, n_images: int) -> int:
        return int(make(name).max_epochs) * n_images

    return _estimator_system(
        title,
        make,
        chosen_on="unknown",
        runs=("equal", "complete"),
        images_of_complete=images_of_complete,
        sampling=PAPERS_SAMPLING,
        **kwargs,
    )


def _from_paper(label_encoding: str) -> Callable[[str], Any]:
    return lambda name: MedSymmFlowClassifier.from_paper(
        paper_name(name), label_encoding=label_encoding
    )


# Plain networks


def _network_system(
    title: str,
    make: Callable[[int, int, int], nn.Module],
    recipe: Recipe,
    settings: Mapping[str, Any],
    **kwargs: Any,
) -> System:
    """System of a network; `settings` says what `make` makes."""

    def train(task: Task) -> Trained:
        trained = train_network(
            make,
            *task.train,
            task.seed,
            recipe=recipe,
            seconds=task.seconds,
            validation=task.validation,
        )
        return Trained(trained.predict_proba, None, trained.images_seen)

    return System(
        title,
        train,
        lambda name: {**settings, **asdict(recipe)},
        runs=("equal", "complete"),
        images_of_complete=lambda name, n_images: recipe.epochs * n_images,
        **kwargs,
    )


def _resnet(title: str, depth: int, side: int, **kwargs: Any) -> System:
    large = side > _SMALL
    return _network_system(
        title,
        partial(make_resnet, depth=depth),
        replace(MEDMNIST_RECIPE, side=side) if large else MEDMNIST_RECIPE,
        {"network": f"ResNet-{depth}", "width": 64},
        takes="any" if large else "small",
        **kwargs,
    )


RESNET18 = _resnet("ResNet-18", 18, 28, published="ResNet-18 (28)")

_VIT = {"patch": 4, "width": 192, "depth": 6, "n_heads": 3}


# Trees and searches over pixels


def _rows(X: np.ndarray) -> np.ndarray:
    return X.reshape(len(X), -1)


_MOST_ROUNDS = 500


def _train_boosting(task: Task) -> Trained:
    """Boost until the time is up; validation images choose how many of the rounds are used."""
    start = time.perf_counter()
    (X, y), (X_val, y_val) = task.train, task.validation
    rows = _rows(X)
    model = HistGradientBoostingClassifier(
        max_iter=1, warm_start=True, early_stopping=False, random_state=task.seed
    ).fit(rows, y)
    n_new = 1
    while model.max_iter < _MOST_ROUNDS:
        spent = time.perf_counter() - start
        # Each call bins the images and predicts with all earlier trees: few calls, of ever more
        # rounds, as many as fit.
        affordable = int((task.seconds - spent) * model.max_iter / spent)
        n_new = min(2 * n_new, affordable, _MOST_ROUNDS - model.max_iter)
        if n_new < 1:
            break
        model.max_iter += n_new
        model.fit(rows, y)
    losses = [
        log_loss(y_val, p, labels=model.classes_) for p in model.staged_predict_proba(_rows(X_val))
    ]
    n_used = int(np.argmin(losses)) + 1

    def predict_proba(images: np.ndarray) -> np.ndarray:
        return next(itertools.islice(model.staged_predict_proba(_rows(images)), n_used - 1, None))

    return Trained(predict_proba, resolved={"rounds": model.n_iter_, "rounds used": n_used})


def _train_automl(task: Task) -> Trained:
    """FLAML's search over trees and linear models; each candidate is scored on validation."""
    from flaml import AutoML

    (X, y), (X_val, y_val) = task.train, task.validation
    search = AutoML()
    search.fit(
        _rows(X),
        y,
        X_val=_rows(X_val),
        y_val=y_val,
        task="classification",
        metric="log_loss",
        time_budget=task.seconds,
        n_jobs=torch.get_num_threads(),
        seed=task.seed,
        # The winner as it was scored: the others do not learn from validation images either.
        retrain_full=False,
        verbose=0,
    )
    return Trained(
        lambda images: search.predict_proba(_rows(images)),
        resolved={"chosen": search.best_estimator},
    )


# Frozen features

_STRENGTHS = (1e-5, 1e-4, 1e-3, 0.01, 0.1, 1.0, 10.0)


def _train_on_features(features: Probabilities, task: Task) -> Trained:
    """Logistic regression on features of a network; log loss on validation chooses its C.

    Not AUC, which does not see that a very small C answers the most frequent class to all.
    """
    (X, y), (X_val, y_val) = task.train, task.validation
    of_train, of_val = features(X), features(X_val)

    def fitted(strength: float) -> Any:
        linear = LogisticRegression(C=strength, max_iter=2000, random_state=task.seed)
        return make_pipeline(StandardScaler(), linear).fit(of_train, y)

    models = {strength: fitted(strength) for strength in _STRENGTHS}

    def validation_loss(strength: float) -> float:
        model = models[strength]
        return float(log_loss(y_val, model.predict_proba(of_val), labels=model.classes_))

    best = min(models, key=validation_loss)
    return Trained(
        lambda images: models[best].predict_proba(features(images)),
        images_seen=len(X) + len(X_val),
        resolved={"C": best},
    )


_ENLARGED = 224


def _frozen(
    title: str,
    make_features: Callable[[], Any],
    network: str,
    side: int | None = _ENLARGED,
    **kwargs: Any,
) -> System:
    return System(
        title,
        lambda task: _train_on_features(make_features(), task),
        lambda name: {"features": network, "side": side, "C": _STRENGTHS, "chosen by": "log loss"},
        takes="any",
        runs=("complete",),
        **kwargs,
    )


def frozen_backbone(hub_id: str) -> System:
    """Logistic regression on the features of a network of transformers.

    Parameters
    ----------
    hub_id : str
        Id on the Hugging Face hub, or a folder.
    """
    return _frozen(
        f"{hub_id}, frozen, logistic regression",
        lambda: _backbone_features(hub_id),
        hub_id,
        # That of its own files.
        side=None,
        package="transformers",
    )


def _backbone_features(hub_id: str) -> Probabilities:
    """Features of a network of transformers: the mean over its map.

    Size, mean and deviation of the images are those of its own files.
    """
    backbone = as_backbone(hub_id)
    size = backbone.preprocessing.size or (_ENLARGED, _ENLARGED)

    @torch.inference_mode()
    def features(X: np.ndarray) -> np.ndarray:
        parts = []
        for x in as_tensor(X).split(32):
            x = F.interpolate(x.expand(-1, 3, -1, -1), size, mode="bilinear")
            parts.append(backbone.encode(x).mean(dim=(2, 3)))
        return torch.cat(parts).double().numpy()

    return features


# Systems outside the registry, which only accuracy.py compares

_N_VOTING = 3


def _train_voting(task: Task) -> Trained:
    """Train a few of our classifiers, each in its share of the time, and average them."""
    ours = [
        MedSymmFlowClassifier(
            time_budget=task.seconds / _N_VOTING, random_state=_N_VOTING * task.seed + i
        )
        for i in range(_N_VOTING)
    ]
    vote = VotingClassifier([(f"ours_{i}", one) for i, one in enumerate(ours)], voting="soft")
    vote.fit(*task.train)
    of_each = [resolved_parameters(one, len(task.train[1])) for one in vote.estimators_]
    n_seen = sum(resolved["images_seen"] for resolved in of_each)
    return Trained(vote.predict_proba, None, n_seen, of_each[0] | {"images_seen": n_seen})


# Whether the mean of several short runs is better than one long run.
VOTING = System(
    "ours: three that vote, a third of the time each",
    _train_voting,
    lambda name: {
        "voting": _N_VOTING,
        **asked_parameters(MedSymmFlowClassifier(), has_budget=True),
    },
)

# For data whose classes are of different size.
BALANCED = _ours('ours: `class_weight="balanced"`', class_weight="balanced")


def _train_adjusted(task: Task) -> Trained:
    """Train the defaults, and adjust to the class frequencies that unlabelled images tell."""
    ours = MedSymmFlowClassifier(time_budget=task.seconds, random_state=task.seed).fit(*task.train)
    old = np.bincount(task.train[1]) / len(task.train[1])

    def predict_proba(X: np.ndarray) -> np.ndarray:
        p = ours.predict_proba(X)
        new = estimate_prior(p, old_prior=old)
        return adjust_to_prior(p, old_prior=old, new_prior=new)

    resolved = resolved_parameters(ours, len(task.train[1]))
    return Trained(predict_proba, None, resolved["images_seen"], resolved)


# For images whose class frequencies are not those of training.
ADJUSTED = System(
    "ours: defaults, frequencies estimated on the unlabelled images",
    _train_adjusted,
    lambda name: {
        "prior": "estimated on the images to predict",
        **asked_parameters(MedSymmFlowClassifier(), has_budget=True),
    },
)

# Has the optimizer of the defaults, where fewer epochs make "auto" take another one.
ALONE_MUON = _ours(
    'ours: `classification_fraction=0.8, optimizer="muon"`',
    classification_fraction=0.8,
    optimizer="muon",
)

# The registry

SYSTEMS: dict[str, System] = {
    "symmflow": _papers(
        "SymmFlow, grayscale (`from_paper`)", _from_paper("grayscale"), published="SymmFlow (28)"
    ),
    "msf": _papers("MSF, RGB (`from_paper`)", _from_paper("rgb"), published="MSF (28)"),
    "msf_simplex": _papers("MSF, simplex codes (`from_paper`)", _from_paper("simplex")),
    "latmsf": _papers(
        "LatMSF, the paper's autoencoder (`from_paper`)",
        lambda name: LatentMedSymmFlowClassifier.from_paper(paper_name(name)),
        takes="large",
        package="diffusers",
        published="LatMSF (224)",
    ),
    "latmsf_fit": _papers(
        "LatMSF's field, autoencoder trained on the data",
        lambda name: LatentMedSymmFlowClassifier.from_paper(paper_name(name), autoencoder="fit"),
        takes="large",
        package="diffusers",
    ),
    "defaults": _ours("ours: defaults"),
    "alone_08": _ours("ours: `classification_fraction=0.8`", classification_fraction=0.8),
    "alone": _ours("ours: classification alone", classification_fraction=1.0, class_dropout=0.0),
    "wide": _ours("ours: `channels=64`", channels=64),
    "latents": _estimator_system(
        'ours: latents of `autoencoder="fit"`',
        lambda name: LatentMedSymmFlowClassifier("fit"),
        takes="large",
        package="diffusers",
    ),
    "resnet18": RESNET18,
    "resnet50": _resnet("ResNet-50", 50, 28, published="ResNet-50 (28)"),
    "resnet18_224": _resnet("ResNet-18 at 224 px", 18, 224, published="ResNet-18 (224)"),
    "resnet50_224": _resnet("ResNet-50 at 224 px", 50, 224, published="ResNet-50 (224)"),
    "vit": _network_system(
        "ViT of 6 layers, from scratch (stands for MedViT-S)",
        partial(make_vit, **_VIT),
        Recipe(learning_rate=5e-4),
        {"network": "ViT", **_VIT},
    ),
    "automl": System(
        "AutoML (FLAML) on pixels",
        _train_automl,
        lambda name: {"search": "flaml", "metric": "log_loss", "on": "pixels"},
        package="flaml",
    ),
    "boosting": System(
        "gradient boosting on pixels",
        _train_boosting,
        lambda name: {
            "trees": "HistGradientBoostingClassifier",
            "rounds": _MOST_ROUNDS,
            "chosen by": "log loss",
        },
    ),
    "frozen": _frozen(
        "EfficientNet-Lite0 (ImageNet), frozen, logistic regression",
        lambda: make_imagenet_features(_ENLARGED),
        "efficientnet-lite0",
        package="efficientnet_lite_pytorch",
    ),
}
