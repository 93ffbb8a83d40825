"""The benchmark scripts: each figure is of the split that it names.

The splits differ in how many labels are wrong, and the systems tell the class by the brightness of
an image, whatever they learned: so the accuracy of each split is known.
"""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import tiny_classifier
from imported_scripts import benchmark_script

from sklearn_msf import MedSymmFlowClassifier

N = 20
N_WRONG = {"train": 0, "val": 2, "test": 6}
ACCURACY = {split: 100 * (1 - n_wrong / N) for split, n_wrong in N_WRONG.items()}
SMALL = {"channels": 8, "channel_mult": (1,), "attention_levels": ()}


def images(seed, n=N, side=8):
    """Dark and bright RGB images in turn, uint8 (n, side, side, 3), and their classes."""
    y = np.arange(n) % 2
    X = np.random.default_rng(seed).integers(0, 100, (n, side, side, 3), dtype=np.uint8)
    X[y == 1] += 120
    return X, y


def tell_brightness(X):
    """Probabilities, (n, 2): bright images are of class 1."""
    bright = np.asarray(X).reshape(len(X), -1).mean(axis=1) > 110
    return np.where(bright[:, None], [0.1, 0.9], [0.9, 0.1])


@pytest.fixture
def splits():
    parts = {}
    for seed, (split, n_wrong) in enumerate(N_WRONG.items()):
        X, y = images(seed)
        y[:n_wrong] = 1 - y[:n_wrong]
        parts[split] = X, y
    return parts


@pytest.fixture(autouse=True)
def _brightness(monkeypatch):
    def predict(self, X):
        return self.classes_[tell_brightness(X).argmax(axis=1)]

    fit, of_test = MedSymmFlowClassifier.fit, {image.tobytes() for image in images(2)[0]}

    def watched_fit(self, X, *others, **named):
        assert not of_test & {image.tobytes() for image in X}
        return fit(self, X, *others, **named)

    monkeypatch.setattr(MedSymmFlowClassifier, "fit", watched_fit)
    monkeypatch.setattr(MedSymmFlowClassifier, "predict", predict)
    monkeypatch.setattr(MedSymmFlowClassifier, "predict_proba", lambda self, X: tell_brightness(X))


def benchmark(name, monkeypatch):
    """Script whose machine needs no measurement."""
    module = benchmark_script(name)
    monkeypatch.setattr(module, "gemm_gflops", lambda: 150.0)
    return module


TOLD = SimpleNamespace(predict_proba=tell_brightness, resolved={}, images_seen=N, estimator=None)


def test_accuracy_at_equal_time_is_of_the_split_that_it_names(splits, monkeypatch):
    module = benchmark("accuracy", monkeypatch)

    def train(task):
        assert task.train is splits["train"]
        assert task.validation is splits["val"]
        return TOLD

    system = replace(module.COMPARED["resnet18"], train=train)
    monkeypatch.setitem(module.COMPARED, "resnet18", system)
    identity = {"dataset": "toy", "system": "resnet18", "seed": 0, "reference_seconds": 1.0}
    record = module.run(identity, splits)
    assert (record["val_acc"], record["test_acc"]) == (ACCURACY["val"], ACCURACY["test"])


def test_the_tables_of_the_paper_are_of_the_test_split(splits, monkeypatch):
    module = benchmark("paper", monkeypatch)

    def train(task):
        assert task.train is splits["train"]
        assert task.validation is splits["val"]
        return TOLD

    system = replace(module.system_of("resnet18"), train=train)
    monkeypatch.setattr(module, "system_of", lambda key: system)
    identity = {"dataset": "toy", "run": "equal", "reference_seconds": 1.0, "seed": 0}
    record = module.run({**identity, "system": "resnet18"}, splits, official=False, pictures=None)
    assert (record["val_acc"], record["test_acc"]) == (ACCURACY["val"], ACCURACY["test"])


def test_systems_over_a_backbone_are_scored_on_test_images(splits, monkeypatch):
    module = benchmark("backbone", monkeypatch)
    identity = {"dataset": "toy", "system": module.REFERENCE, "seed": 0}
    record = module.measure(
        identity,
        splits,
        {},
        lambda data, seed, limits: (tell_brightness, None, {}),
        lambda gflops: {},
        {},
    )
    assert record["acc"] == ACCURACY["test"]
    assert record["labels"] == splits["test"][1].tolist()


def test_the_ablation_is_scored_on_validation_images(splits, monkeypatch):
    module = benchmark("ablation", monkeypatch)
    monkeypatch.setitem(module.VARIANTS, "tiny", {**SMALL, "max_epochs": N})
    identity = {"dataset": "toy", "variant": "tiny", "seed": 0, "reference_seconds": 1000.0}
    record = module.run({**identity, "n_folds": 0}, splits)
    assert record["acc"] == ACCURACY["val"]
    assert record["images_seen"] == N
    pooled = module.run({**identity, "n_folds": 2}, splits)
    assert pooled["acc"] == (ACCURACY["train"] + ACCURACY["val"]) / 2


def test_volumes_are_scored_on_both_held_out_splits_or_on_folds(splits, monkeypatch):
    module = benchmark("volumes", monkeypatch)
    monkeypatch.setattr(module, "VOLUMES", {**SMALL, "max_epochs": 1})
    identity = {"variant": "default", "seed": 0, "precision": "float32"}
    record = module.run({**identity, "n_folds": 0}, splits)
    assert (record["val ACC"], record["test ACC"]) == (ACCURACY["val"], ACCURACY["test"])
    folds = module.run({**identity, "n_folds": 2}, splits)
    assert folds["fold ACC"] == (ACCURACY["train"] + ACCURACY["val"]) / 2


def test_uncertainty_is_scored_split_by_split_for_both_systems(splits, monkeypatch):
    module = benchmark("uncertainty", monkeypatch)
    monkeypatch.setattr(module, "MedSymmFlowClassifier", tiny_classifier)
    monkeypatch.setattr(module, "N_SIMULATIONS", 5)
    tasks, asked = [], []

    def train(task):
        tasks.append(task)
        return SimpleNamespace(predict_proba=lambda X: asked.append(X) or tell_brightness(X))

    def tempered(self, X):
        powers = tell_brightness(X) ** (1 / self.model_.temperature)
        return powers / powers.sum(axis=1, keepdims=True)

    monkeypatch.setattr(module, "RESNET18", replace(module.RESNET18, train=train))
    monkeypatch.setattr(MedSymmFlowClassifier, "predict_proba", tempered)
    record = module.run({"dataset": "toy", "seed": 0}, splits)
    for system in ("ours", "resnet18"):
        for split in ("val", "test"):
            assert record[system][split]["acc"] == pytest.approx(ACCURACY[split])
    assert record["ours"]["test"]["raw_log_loss"] != record["ours"]["test"]["log_loss"]
    assert set(record["ours"]["test"]["kinds"]) == set(module.KINDS)
    assert record["certified"]["target_risk"] == module.DEFAULT_TARGET
    # The temperature of the network has images that it was not trained on, none of them held out
    # for the scores.
    (task,) = tasks
    given = np.concatenate([task.train[0], task.validation[0]])
    assert asked[0] is task.validation[0]
    assert len(task.validation[1]) == N * module.HELD_OUT
    assert sorted(i.tobytes() for i in given) == sorted(i.tobytes() for i in splits["train"][0])


COPIES = (
    "near_duplicates",
    "duplicates_of_training",
    "duplicates_of_held_out",
    "singled_out",
    "quantile",
    "closer",
)


def test_generation_is_scored_with_test_images(splits, monkeypatch):
    module = benchmark("generation", monkeypatch)
    for name in ("N_GENERATED", "N_TRAINED", "N_REAL", "N_CHANGED"):
        monkeypatch.setattr(module, name, 16)
    monkeypatch.setattr(module, "SAMPLERS", module.SAMPLERS[-1:])
    seen, scored, compared = [], [], []
    nothing = SimpleNamespace(**dict.fromkeys(COPIES, 0))
    monkeypatch.setattr(module, "copying_check", lambda *parts: seen.append(parts) or nothing)
    monkeypatch.setattr(module, "changed_classes", lambda *parts: None)
    monkeypatch.setattr(
        module, "classifier_accuracy_score", lambda *parts: scored.append(parts) or 0
    )
    monkeypatch.setattr(module, "JUDGE_IMAGES", 64)
    monkeypatch.setattr(module, "JUDGE_WIDTH", 4)
    shown = module.shown_settings({**SMALL, "max_epochs": 1})
    judge = module.Judge(*splits["train"])
    features = judge.features
    judge.features = lambda images: compared.append(images) or features(images)
    identity = {"dataset": "toy", "seed": 0, "title": "tiny", "settings": shown}
    record = module.run(identity, splits, judge, imagenet=None, pictures=None)
    assert record["test_acc"] == record["alone_acc"] == pytest.approx(ACCURACY["test"])
    ((_, training, held_out),) = seen
    np.testing.assert_array_equal(training, splits["train"][0])
    np.testing.assert_array_equal(held_out, splits["test"][0])
    assert len(scored) == 2
    for *_, of_scores, labels in scored:
        assert (of_scores is splits["test"][0], labels is splits["test"][1]) == (True, True)
    # What generated images are compared with, and real ones that stand beside them.
    for found, split in zip(compared, ("test", "val"), strict=False):
        assert {i.tobytes() for i in found} <= {i.tobytes() for i in splits[split][0]}


def test_added_images_are_judged_by_test_images(splits, monkeypatch):
    module = benchmark("augmentation", monkeypatch)

    class Judge:
        def __init__(self, X, y, *arguments, **settings):
            assert set(np.unique(y)) == {0, 1}

        def predict_proba(self, X):
            return tell_brightness(X)

    monkeypatch.setattr(module, "Judge", Judge)
    monkeypatch.setattr(module, "augment_with_samples", lambda classifier, X, y, **settings: (X, y))
    shown = module.shown_settings({**SMALL, "max_epochs": 1})
    record = module.run({"dataset": "toy", "seed": 0, "settings": shown}, splits)
    for scores in record["scores"].values():
        assert scores["balanced_accuracy"] == pytest.approx(ACCURACY["test"])


def test_systems_over_latents_are_scored_on_the_split_that_is_asked_for(splits, monkeypatch):
    module = benchmark("latent", monkeypatch)

    def train(X, y, seconds, seed, taef2):
        assert (X is splits["train"][0], y is splits["train"][1]) == (True, True)
        return tell_brightness, None

    records = []
    monkeypatch.setattr(module, "add", lambda kept, record: records.append(record))
    for split in ("val", "test"):
        arguments = SimpleNamespace(
            split=split, seeds=[0], seconds=1.0, systems=None, taef2=None, models=None
        )
        chosen = {"toy": module.LatentSystem(train, {})}
        module.measure_systems("toy", splits, chosen, arguments, Kept())
    assert [record["acc"] for record in records] == [ACCURACY["val"], ACCURACY["test"]]


def test_images_generated_over_latents_stand_beside_test_images(splits, monkeypatch):
    module = benchmark("latent_drawing", monkeypatch)
    (X, y), (X_test, _) = splits["train"], splits["test"]

    class Classifier:
        def fit(self, X, y):
            assert (X is splits["train"][0], y is splits["train"][1]) == (True, True)
            return self

        def predict_proba(self, X):
            return tell_brightness(X)

    decoded, compared = [], []
    monkeypatch.setattr(module, "LatentMedSymmFlowClassifier", lambda **settings: Classifier())
    monkeypatch.setattr(module, "parameters", lambda record: {})
    monkeypatch.setattr(module, "resolved_parameters", lambda *_: {})
    monkeypatch.setattr(module, "reconstructed", lambda clf, X: decoded.append(X) or X)
    monkeypatch.setattr(module, "sample_images", lambda clf, counts, **sampling: (X, y))
    monkeypatch.setattr(
        module,
        "copying_check",
        lambda *images: compared.append(images) or SimpleNamespace(near_duplicates=0.0),
    )
    measures = module.Measures(splits, 8, lambda X: X.reshape(len(X), -1) / 255)
    identity = {"dataset": "toy", "side": 8, "system": "TAEF2", "seed": 0}
    record = module.measure(identity, splits, {}, lambda gflops: {}, measures, {}, None)
    assert record["acc"] == ACCURACY["test"]
    of_test = sorted(image.tobytes() for image in X_test)
    for images in (measures.real[0], decoded[0]):
        assert sorted(image.tobytes() for image in images) == of_test
    # The judge has learned the training images, on which it makes no error.
    assert measures(X, y)["fidelity"] == 1.0
    assert record["real"]["fidelity"] == pytest.approx(ACCURACY["test"] / 100)
    _, of_training, others = compared[0]
    np.testing.assert_array_equal(of_training, module.resized(X, 28))
    np.testing.assert_array_equal(others, module.resized(X_test, 28))


# Images of other kinds


class Kept:
    """Records that are kept in a list."""

    def __init__(self):
        self.records = []

    def has(self, identity, data):
        return any(identity.items() <= record.items() for record in self.records)

    def add(self, record):
        self.records.append(record)


@pytest.fixture
def unusual(monkeypatch):
    module = benchmark("unusual", monkeypatch)
    parts = {split: images(seed, 8, 28) for seed, split in enumerate(N_WRONG)}
    gray = {"breastmnist": 8, "pneumoniamnist": 8}
    monkeypatch.setattr(module, "load", lambda name, files: parts)
    monkeypatch.setattr(
        module,
        "fetch_medmnist",
        lambda name, split, return_X_y: (np.full((gray[name], 28, 28), 90, np.uint8), None),
    )
    for name, value in {"N_IMAGES": 8, "N_LIKELIHOODS": 2, "N_STEPS": 2}.items():
        monkeypatch.setattr(module, name, value)
    make = partial(tiny_classifier)
    # Bright images are usual.
    make.score_samples = lambda classifier, X: X.reshape(len(X), -1).mean(axis=1)
    monkeypatch.setattr(module, "MedSymmFlowClassifier", make)
    return module


def test_images_of_other_kinds_are_compared_with_test_images(unusual, capsys):
    records, seen = Kept(), []
    score = unusual.MedSymmFlowClassifier.score_samples
    unusual.MedSymmFlowClassifier.score_samples = lambda *given: (
        seen.append(given[1]) or score(*given)
    )
    unusual.compare_kinds([0], records)
    unusual.compare_kinds([0], records)
    (record,) = records.records
    np.testing.assert_array_equal(seen[0], unusual.load("", {})["test"][0])
    assert set(record["score_samples"]) == set(record["likelihood"]) == set(record["max p"])
    # Chances that an image of another kind is darker than a test image.
    found = record["score_samples"]
    assert found["BreastMNIST"] == 0.5
    assert found["retinas upside down"] == 0.5
    assert found["inverted retinas"] == 0.25
    assert all(0 <= record["likelihood"][kind] <= 1 for kind in found)


def test_the_accuracy_of_corrupted_images_is_of_the_test_split(unusual, monkeypatch, capsys):
    changed = images(5, 8, 28)
    changed[1][:2] = 1 - changed[1][:2]
    parts = unusual.load("", {}) | {"test": changed}
    monkeypatch.setattr(unusual, "load", lambda name, files: parts)
    monkeypatch.setattr(unusual, "SEVERITIES", (1,))
    records = Kept()
    unusual.corrupt(["toy"], {}, 0, records)
    (record,) = records.records
    rows = record["corrupted"]
    assert [(row["kind"], row["severity"]) for row in rows] == [
        (kind, severity) for kind in unusual.CORRUPTIONS for severity in (0, 1)
    ]
    assert all(row["acc"] == 75 for row in rows if row["severity"] == 0)
    for as_they_are, corrupted in zip(rows[::2], rows[1::2], strict=True):
        assert corrupted["usual"] != as_they_are["usual"]
    assert unusual.table(records.records).count("| toy, 0, ") == len(unusual.CORRUPTIONS)
