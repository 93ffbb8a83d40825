"""Generating images, and carrying them into other classes, over latents.

LatentMedSymmFlowClassifier is fitted twice: as one that classifies only, and with the settings
that generate over pixels. The metrics are those of generation.py; its judge sees all images at 28
px, the network of ImageNet at 64. Runs that the JSON file has are not repeated.

    python examples/benchmarks/latent_drawing.py retina
    python examples/benchmarks/latent_drawing.py busi --data BUSI_224.npz --taef2 FOLDER
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from _common import (
    DEFAULT_SAMPLER,
    Benchmark,
    Records,
    accuracy,
    asked_parameters,
    auc_score,
    counts_of,
    describe_data,
    described,
    gemm_gflops,
    group_parameters,
    load,
    machines,
    make_imagenet_features,
    make_parser,
    quality,
    reference_seconds,
    resized,
    resolved_parameters,
    sample_images,
)
from generation import (
    N_GENERATED,
    Judge,
    balanced_fidelity,
    beside,
    changed_classes,
    changed_lines,
    grouped,
    lines_of,
    mean_of,
    save_grid,
    seeds_of,
    seen_by_imagenet,
)
from sklearn.metrics import log_loss
from taef2 import TAEF2

from sklearn_msf import LatentMedSymmFlowClassifier
from sklearn_msf.generation_metrics import copying_check

SIDE = 28
IMAGENET_SIDE = 64
N_CHANGED = 64
# Entries of the dict parameters stand beside the other parameters. The recorded runs have the names
# of the recipes, so these stay.
RECIPES = {
    "classifies": {
        "image_prediction": "velocity",
        "classification_fraction": 0.8,
        "image_weight": 0.5,
        "class_dropout": 0.0,
        "dropout": 0.1,
        "upsampling": "adm",
    },
    "draws too": {
        "image_prediction": "denoised",
        "classification_fraction": 0.15,
        "image_weight": 0.7,
        "class_dropout": 0.1,
        "dropout": 0.2,
    },
}


def parameters(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """Settings that a record must have to count today."""
    if record["recipe"] not in RECIPES:
        return None
    grouped = group_parameters(RECIPES[record["recipe"]])
    # Of an autoencoder that is passed as an object the name of the data set tells which it is.
    settings = asked_parameters(LatentMedSymmFlowClassifier(**grouped))
    del settings["autoencoder"], settings["encoded_size"]
    measured = {"generated": N_GENERATED, "changed": N_CHANGED, "side": SIDE}
    return {**settings, **measured, "sampler": DEFAULT_SAMPLER}


class SmallJudge(Judge):
    """Judge that sees images of any size at SIDE pixels."""

    def features(self, X):
        """Pooled features of the small images."""
        return super().features(resized(X, SIDE))


def imagenet_at_one_size(imagenet):
    """Features of images without aliasing."""
    return lambda X: imagenet(resized(X, IMAGENET_SIDE))


def run(name, data, seed, recipe, settings, judge, imagenet, pictures=None):
    """Fit, classify, generate, carry into another class; one record.

    `settings` has entries of the dict parameters beside other parameters.
    """
    gflops = gemm_gflops()
    (X, y), (X_test, y_test) = data["train"], data["test"]
    start = time.perf_counter()
    grouped_settings = group_parameters({**settings, "random_state": seed})
    classifier = LatentMedSymmFlowClassifier(**grouped_settings).fit(X, y)
    seconds = time.perf_counter() - start
    identity = {"dataset": name, "recipe": recipe, "seed": seed}
    record = described(
        identity,
        parameters=parameters(identity),
        data=describe_data(name, data),
        gflops=gflops,
        seconds=seconds,
        seed=seed,
        resolved=resolved_parameters(classifier, len(y)),
    )
    record["reference_seconds"] = reference_seconds(seconds, gflops)
    for split in ("val", "test"):
        p = classifier.predict_proba(data[split][0])
        record[split] = {
            "auc": 100 * auc_score(data[split][1], p),
            "acc": 100 * accuracy(data[split][1], p),
            "log_loss": float(log_loss(data[split][1], p, labels=range(p.shape[1]))),
        }
    start = time.perf_counter()
    images, labels = sample_images(classifier, counts_of(y, N_GENERATED))
    some = np.random.default_rng(seed).permutation(len(X))[:N_GENERATED]
    record |= {
        "seconds_an_image": (time.perf_counter() - start) / N_GENERATED,
        "fidelity": balanced_fidelity(judge, images, labels),
        "real_fidelity": balanced_fidelity(judge, X_test, y_test),
    }
    for view, features_of in {"judge": judge.features, "imagenet": imagenet}.items():
        if features_of is None:
            continue
        of_real = features_of(X_test)
        record[view] = {
            "drawn": quality(features_of, of_real, images),
            "fresh": quality(features_of, of_real, data["val"][0][:N_GENERATED]),
            "training": quality(features_of, of_real, X[some]),
        }
    small = [resized(part, SIDE) for part in (images, X, X_test)]
    record["near_duplicates"] = copying_check(*small).near_duplicates
    record["changed_classes"] = changed_classes(judge, classifier, X_test[:N_CHANGED])
    if pictures is not None:
        save_grid(classifier, X, y, pictures)
    return record


def table(records):
    """Markdown of everything, over seeds."""
    groups = grouped(records, "recipe")

    def view(name, key):
        return beside(lambda r: r[name]["drawn"][key], lambda r: r[name]["fresh"][key])

    lines = lines_of(
        "Classification",
        {
            "seeds": seeds_of,
            "reference seconds": mean_of(lambda r: r["reference_seconds"], 0),
            **{
                f"{split} {key.replace('_', ' ')}": mean_of(
                    lambda r, split=split, key=key: r[split][key], digits
                )
                for split in ("val", "test")
                for key, digits in (("auc", 1), ("acc", 1), ("log_loss", 2))
            },
        },
        groups,
    )
    lines += lines_of(
        "Drawn images (validation images)",
        {
            "coverage": view("judge", "coverage"),
            "KID": view("judge", "kernel_distance"),
            "class fidelity": beside(lambda r: r["fidelity"], lambda r: r["real_fidelity"]),
            "near-duplicates": mean_of(lambda r: r["near_duplicates"], 3),
            "seconds an image": mean_of(lambda r: r["seconds_an_image"]),
        },
        groups,
    )
    views = {key: view("imagenet", key) for key in ("precision", "coverage")}
    views["KID"] = view("imagenet", "kernel_distance")
    lines += lines_of("In ImageNet features (validation images)", views, seen_by_imagenet(groups))
    lines += changed_lines(groups)
    lines.append(f"{machines(records)}.")
    return "\n".join(lines) + "\n"


BENCHMARK = Benchmark("latent_drawing", ("dataset", "recipe", "seed"), parameters, table)


def main():
    parser = make_parser(__doc__, "latent_drawing.json", [0])
    parser.add_argument("data_set", choices=["retina", "busi"])
    parser.add_argument("--data", type=Path, help="npz with images of 224 px")
    parser.add_argument("--taef2", type=Path, help="folder of a small pretrained autoencoder")
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), choices=list(RECIPES))
    arguments = parser.parse_args()
    if arguments.data_set == "retina":
        name, data = "RetinaMNIST 28 at 64, fit", load("retinamnist", {})
        settings = {"autoencoder": "fit", "encoded_size": 64}
    else:
        if arguments.data is None or arguments.taef2 is None:
            parser.error("busi needs --data and --taef2.")
        name, data = "BUSI 224, TAEF2", load("busi", {"busi": str(arguments.data)})
        settings = {"autoencoder": TAEF2(arguments.taef2)}
    records = Records(BENCHMARK, arguments.output)
    described_data = describe_data(name, data)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    X, y = data["train"]
    judge = SmallJudge(resized(X, SIDE), y)
    imagenet = make_imagenet_features()
    if imagenet is not None:
        imagenet = imagenet_at_one_size(imagenet)
    for seed in arguments.seeds:
        for recipe in arguments.recipes:
            identity = {"dataset": name, "recipe": recipe, "seed": seed}
            if records.has(identity, described_data):
                continue
            path = f"latent_drawing_{arguments.data_set}_{recipe.replace(' ', '_')}.png"
            records.add(
                run(
                    name,
                    data,
                    seed,
                    recipe,
                    settings | RECIPES[recipe],
                    judge,
                    imagenet,
                    arguments.output.with_name(path) if seed == arguments.seeds[0] else None,
                )
            )
            print(name, recipe, seed, flush=True)
    records.show()


if __name__ == "__main__":
    main()
