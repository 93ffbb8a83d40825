"""What each process of a group runs in test_process_group.py: fits, and their results in a file."""

import os
import sys
import warnings
from pathlib import Path

import numpy as np
from conftest import (
    Averages,
    three_digits,
    tiny_classifier,
    tiny_joint_classifier,
    tiny_latent_classifier,
)

from sklearn_msf.training import trainer
from sklearn_msf.training.step import TrainingStep

X, Y = three_digits()
X, Y = X[:40], Y[:40]


COMMON = {
    # Processes of one machine share its CPU; GPUs they would need one each.
    "device": "cpu",
    "max_epochs": 2,
    "batch_size": 13,
    "dropout": 0.2,
    "class_dropout": 0.2,
    "classification_fraction": 0.3,
    "optimizer": "muon",
    "random_state": 0,
}
KINDS = {
    "pixels": {"calibration": "temperature", "augment": "affine"},
    "velocity": {"label_prediction": "velocity"},
    "one kind of sample": {"classification_fraction": 0.0},
    "velocity at one": {
        "label_prediction": "velocity",
        "classification_fraction": 0.8,
        "batch_size": 2,
    },
    "early stopping": {"early_stopping": True},
    "writes": {"verbose": 1, "checkpoint_every": 1},
    "latents": {},
    "joint latents": {"time_shift": 3.0},
    "part": {},
    "whole": {"max_epochs": 4},
    "cut off": {"max_epochs": 4},
    "goes on": {"max_epochs": 4},
    "time": {"max_epochs": 10**6, "time_budget": 3.0, "random_state": None},
    "other data": {},
    "fewer data": {},
    "other parameters": {},
    "first is refused": {},
    "second is refused": {},
    "refused later": {},
    "bad parameter": {},
    "warnings are errors": {},
    "uneven": {"batch_size": 10, "even_batches": False, "early_stopping": True},
    "tiny batches": {"batch_size": 1},
    "tiny batches of the rest": {
        "batch_size": 10,
        "even_batches": False,
        "calibration": "temperature",
    },
    "no pickle": {},
    "dies": {},
    "parts of latents": {},
    "rounded otherwise": {"warm_start": True},
    "opened": {"warm_start": True},
    "other model": {"warm_start": True},
    "one has a model": {"warm_start": True},
    "weights in any order": {},
}


N_STEPS, DIES_AFTER = [0], []


class CountedStep(TrainingStep):
    def __call__(self, *arguments):
        N_STEPS[0] += 1
        if N_STEPS[0] in DIES_AFTER:
            os._exit(3)
        super().__call__(*arguments)


# The number of a process that is refused.
REFUSED = {
    "first is refused": 0,
    "second is refused": 1,
    "refused later": 1,
    "warnings are errors": 1,
}
# The step in which a process ends without a word, and which one.
DIES = {"cut off": (7, 0), "dies": (2, 1)}


def images_of(kind, rank):
    if REFUSED.get(kind) == rank:
        return np.full_like(X, np.nan)
    if kind == "other data":
        return X + rank
    # Of 31 images one would be left over, were none of them held out; of 32 calibration keeps 21.
    numbers = {"fewer data": 40 - rank, "uneven": 31, "tiny batches of the rest": 32}
    return X[: numbers.get(kind, 40)]


def settings_of(kind, rank, folder):
    settings = {**COMMON, **KINDS[kind]}
    if kind in ("cut off", "goes on", "tiny batches"):
        settings |= {"checkpoint_dir": folder / "checkpoints", "checkpoint_every": 1}
    if kind == "writes":
        settings["checkpoint_dir"] = folder / f"run-{rank}"
    if kind == "other parameters":
        settings["dropout"] = 0.2 + 0.1 * rank
    if kind == "bad parameter" and rank == 1:
        settings["learning_rate"] = -1.0
    return settings


def fitted_before(kind, rank, folder):
    """Fit the model that training goes on with, before the processes meet."""
    settings = settings_of(kind, rank, folder)
    if kind == "one has a model" and rank:
        return tiny_classifier(**settings)
    seed = rank if kind == "other model" else 0
    launched = {name: os.environ.pop(name, None) for name in ("RANK", "WORLD_SIZE")}
    try:
        classifier = tiny_classifier(**{**settings, "random_state": seed}).fit(X, Y)
    finally:
        os.environ.update({name: value for name, value in launched.items() if value is not None})
    if kind == "opened":
        classifier.save_pretrained(folder / f"model-{rank}")
        classifier = type(classifier).from_pretrained(folder / f"model-{rank}")
    if kind in ("rounded otherwise", "opened") and rank:
        state = classifier._continuation.training_state
        weights = [] if state is None else state.tensors.values()
        for weight in (*classifier.model_.field.parameters(), *weights):
            if weight.is_floating_point():
                weight.data.mul_(1.5)
    return classifier.set_params(random_state=0)


def fitted(kind, folder):
    rank = int(os.environ.get("RANK", "0"))
    images, settings = images_of(kind, rank), settings_of(kind, rank, folder)
    step, of = DIES.get(kind, (0, None))
    if of == rank:
        DIES_AFTER.append(step)
    if kind == "warnings are errors":
        warnings.simplefilter("error")
    if kind == "refused later":
        tiny_classifier(**settings).fit(X, Y)
    if kind == "no pickle":
        settings["autoencoder"] = encoder = Averages()
        encoder.scale = lambda: 1.0
    over_latents = {
        "latents": tiny_latent_classifier,
        "joint latents": tiny_joint_classifier,
        "no pickle": tiny_latent_classifier,
        "parts of latents": tiny_latent_classifier,
    }
    make = over_latents.get(kind, tiny_classifier)
    n = len(images)
    if kind == "weights in any order":
        names = np.unique(Y)[:: -1 if rank else 1]
        return make(**settings, class_weight=dict.fromkeys(names, 1.5)).fit(images, Y)
    if kind == "part":
        return make(**settings).partial_fit(images, Y, np.unique(Y), np.linspace(0.5, 2, 40))
    if kind == "parts of latents":
        classifier = make(**settings).partial_fit(images, Y, np.unique(Y))
        return classifier.partial_fit(images[::-1], Y[::-1])
    return make(**settings).fit(images, Y[:n], sample_weight=np.linspace(0.5, 2, 40)[:n])


def main(folder, kinds):
    warnings.simplefilter("ignore")
    trainer.TrainingStep = CountedStep
    rank = int(os.environ.get("RANK", "0"))
    goes_on = [kind for kind in kinds if KINDS[kind].get("warm_start")]
    before = {kind: fitted_before(kind, rank, folder) for kind in goes_on}
    for kind in kinds:
        classifier = before[kind].fit(X, Y) if kind in before else fitted(kind, folder)
        found = {
            "probabilities": classifier.predict_proba(X),
            "images": classifier.sample("one", n_samples=2, n_steps=2, random_state=0),
            "n_steps": N_STEPS[0],
            "losses": [log["loss"] for log in classifier.history_],
        }
        np.savez(folder / f"{kind}-{os.environ.get('RANK', 'alone')}.npz", **found)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
