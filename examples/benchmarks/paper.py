"""The paper's Tables 2 and 6 and Figures 2 and 3, with everyone beside it, by one command.

    python examples/benchmarks/paper.py                    # whatever is missing, then everything
    python examples/benchmarks/paper.py --list             # only say what is missing, and how long
    python examples/benchmarks/paper.py --npz bloodcells_pbc=PATH ham10000=PATH
    python examples/benchmarks/paper.py --datasets retinamnist@224 --backbones facebook/dinov2-base

Systems are in ``_common/systems.py``. Each trains for the same reference seconds ("equal"), and
those that have an end of their own also train to it ("complete") if that is expected to take no
more than ``--hours``. Each run has a process of its own, is added to docs/benchmarks/paper.json as
it ends, and is not repeated, so the command can be stopped and called again. On a GPU take
``--runs complete``: runs of equal time are those of a CPU. ``NAME@224`` is
MedMNIST's file of 224 px. Sets of ``--npz`` are rebuilt ones: no published figure stands beside
them. Data sets and packages that are not there are named and left out.

The figures go to docs/benchmarks/paper_*.png; ``tables.py`` then puts the tables into
docs/comparison.md and the README.
"""

import argparse
import itertools
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _common import (
    SYSTEMS,
    Benchmark,
    Records,
    System,
    Task,
    Trained,
    accuracy,
    add_data_options,
    auc_score,
    counts_of,
    describe_data,
    describe_picture,
    described,
    equal_seconds,
    frozen_backbone,
    gemm_gflops,
    in_own_process,
    load,
    local_seconds,
    make_imagenet_features,
    make_parser,
    median_milliseconds,
    name_sampler,
    quality,
    resampled_interval,
    sample_images,
)
from paper_report import RUNS, about, images_a_second, paper_tables, save_figure_2, summary_table

from sklearn_msf.runtime.batch_sizes import padded
from sklearn_msf.runtime.device import autocast
from sklearn_msf.selective import accuracy_rejection_curve, augrc, aurc

PAPERS_DATASETS = ("retinamnist", "pneumoniamnist", "bloodmnist", "dermamnist")
DATASETS = (*PAPERS_DATASETS, "breastmnist", *(f"{name}@224" for name in PAPERS_DATASETS))
N_INFERENCE_RUNS = 5
# Single images that are classified and generated to time it.
N_SINGLE_IMAGES = 100
N_SINGLE_SAMPLES = 10
N_GENERATED = 400
# Fractions of the test images that are rejected, in Figure 2.
REJECTED = tuple(np.round(np.arange(0, 1, 0.05), 2).tolist())
# Systems whose generated images are measured, and those that are shown in Figure 3.
MEASURED_IMAGES = ("defaults", "wide")
SHOWN_IMAGES = ("msf", "defaults", "latmsf", "latmsf_fit")
BACKBONE = "frozen:"


def system_of(key: str) -> System | None:
    """System of a key of the registry, or of the id of a backbone; None for another key."""
    if key.startswith(BACKBONE):
        return frozen_backbone(key.removeprefix(BACKBONE))
    return SYSTEMS.get(key)


def parameters(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """Settings that a record must have to count today."""
    system = system_of(record["system"])
    if system is None:
        return None
    found = {
        **system.parameters(record["dataset"]),
        "inference runs": N_INFERENCE_RUNS,
        "images generated": N_GENERATED,
    }
    # Estimators of the package draw, which is timed too.
    if "estimator" in found:
        found["sampler"] = name_sampler(**system.sampling)
    return found


BENCHMARK = Benchmark(
    "paper",
    ("dataset", "system", "run", "reference_seconds", "seed"),
    parameters,
    paper_tables,
    shows_missing=True,
)

SUMMARY = replace(BENCHMARK, name="summary", table=summary_table)


# One run


def run(
    identity: Mapping[str, Any],
    data: Mapping[str, tuple[np.ndarray, np.ndarray]],
    official: bool,
    pictures: Path | None,
) -> dict[str, Any]:
    """Train a system once and measure everything that the tables and figures show.

    Parameters
    ----------
    identity : mapping
        dataset, system, run ("equal" or "complete"), reference_seconds (None for a complete run)
        and seed.
    data : mapping of str to tuple of ndarray
        Images and labels of each split.
    official : bool
        Whether these are MedMNIST's own files.
    pictures : Path or None
        Folder for a picture of generated images.
    """
    system = system_of(identity["system"])
    name, seed = identity["dataset"], identity["seed"]
    gflops = gemm_gflops()
    budget = identity["reference_seconds"]
    seconds = None if budget is None else local_seconds(budget, gflops)
    start = time.perf_counter()
    trained = system.train(Task(name, data["train"], data["val"], seconds, seed))
    record = described(
        identity,
        parameters=parameters(identity),
        data=describe_data(name, data),
        gflops=gflops,
        seconds=time.perf_counter() - start,
        seed=seed,
        resolved=trained.resolved,
    )
    record |= {
        "official": official,
        "side": int(data["train"][0].shape[1]),
        "n_train": len(data["train"][1]),
        "images_seen": trained.images_seen,
        **test_scores(trained, *data["test"]),
        **latencies(trained, data["test"][0], system.sampling),
    }
    X_val, y_val = data["val"]
    p = trained.predict_proba(X_val)
    record |= {
        "val_auc": round(100 * auc_score(y_val, p), 2),
        "val_acc": round(100 * accuracy(y_val, p), 2),
    }
    if generates(trained):
        if identity["system"] in MEASURED_IMAGES:
            record["imagenet"] = image_quality(trained.estimator, data, system.sampling)
        if pictures is not None and identity["system"] in SHOWN_IMAGES:
            of_run = "" if identity["run"] == "equal" else f"_{identity['run']}"
            if budget not in (None, equal_seconds(name)):
                # The name without is that of the budget that the page shows.
                of_run += f"_{budget:g}s"
            of_system = f"{name.replace('@', '_')}_{identity['system']}"
            path = pictures / f"paper_samples_{of_system}{of_run}.png"
            record["picture"] = save_samples(trained.estimator, path, system.sampling)
    return record


def generates(trained: Trained) -> bool:
    """Whether a system has learned to generate images."""
    return trained.estimator is not None and trained.estimator.model_.generates


def test_scores(trained: Trained, X: np.ndarray, y: np.ndarray) -> dict[str, Any]:
    """Scores of the test split: means over inference runs, their spread, intervals, rejection.

    Returns
    -------
    dict
        test_auc and test_acc in percent, each with two standard deviations over the inference
        runs (..._spread; 0 for systems without noise) and the 95 % interval of the test set
        (..._interval); rejection: accuracy at each fraction of REJECTED, aurc, augrc and the kind
        of uncertainty; test_auc_by_distance where the paper's distances are the scores.
    """
    predictions, kind = inference_runs(trained, X)
    scores: dict[str, Any] = {}
    for name, score in (("auc", auc_score), ("acc", accuracy)):
        values = [100 * score(y, p) for p, *_ in predictions]
        spread = 2 * float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
        low, high = resampled_interval(score, y, predictions[0][0])
        scores |= {
            f"test_{name}": round(float(np.mean(values)), 2),
            f"test_{name}_spread": round(spread, 2),
            f"test_{name}_interval": [round(100 * low, 2), round(100 * high, 2)],
        }
    curves, areas, generalised = [], [], []
    for p, uncertainty, _ in predictions:
        predicted = p.argmax(axis=1)
        curve = accuracy_rejection_curve(y, predicted, uncertainty)
        curves.append([curve.at(1 - rejected) for rejected in REJECTED])
        areas.append(aurc(predicted != y, uncertainty))
        generalised.append(augrc(predicted != y, uncertainty))
    scores["rejection"] = {
        "kind": kind,
        "rejected": list(REJECTED),
        "accuracy": np.mean(curves, axis=0).round(4).tolist(),
        "aurc": round(float(np.mean(areas)), 4),
        "augrc": round(float(np.mean(generalised)), 4),
    }
    if kind == "distance":
        # As the published code scores: by distances, for two classes the mean of both.
        of_runs = [
            np.mean([auc_score(y == c, np.c_[d[:, c], -d[:, c]]) for c in range(d.shape[1])])
            for *_, d in predictions
        ]
        scores["test_auc_by_distance"] = round(100 * float(np.mean(of_runs)), 2)
    return scores


Prediction = tuple[np.ndarray, np.ndarray, np.ndarray | None]


def inference_runs(trained: Trained, X: np.ndarray) -> tuple[list[Prediction], str]:
    """Predict the test images, several times where predictions depend on noise.

    Returns
    -------
    predictions : list of (probabilities, uncertainties, distances or None)
        One for each inference run.
    kind : str
        Kind of the uncertainty: the distance (paper, section 4.4) of a model that regresses masks,
        the margin of our defaults, 1 - max p of all others.
    """
    if trained.estimator is None:
        p = trained.predict_proba(X)
        return [(p, 1 - p.max(axis=1), None)], "1 - max p"
    posterior = trained.estimator._parameters().label_prediction == "posterior"
    predictions = []
    for seed in range(N_INFERENCE_RUNS):
        p, distances = predict_with_fresh_noise(trained.estimator, X, seed)
        ranked = np.sort(p, axis=1)
        margin = 1 - (ranked[:, -1] - ranked[:, -2])
        distance = distances[np.arange(len(p)), p.argmax(axis=1)]
        predictions.append((p, margin if posterior else distance, distances))
    return predictions, "margin" if posterior else "distance"


@torch.inference_mode()
def predict_with_fresh_noise(
    estimator: Any, X: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities and distances, (n, K), with mask noise of its own for every image.

    The estimator's own predictions have the same noise for all images, so that they do not depend
    on each other; the published code draws it anew for each, and its spread is over that.
    """
    model, inputs, settings = estimator._prepared(X)
    reader = model.space.reader(model.field.codes, settings.label_decoding)
    generator = torch.Generator().manual_seed(seed)
    batch_size = 64 if max(model.space.shape[1:]) <= 64 else 8
    flips = model.flips(settings.n_draws)
    parts = []
    for start in range(0, len(inputs), batch_size):
        n_real = min(batch_size, len(inputs) - start)
        evidence = []
        for draw in range(settings.n_draws):
            x = padded(inputs.batch(start, n_real, flips[draw % len(flips)]), batch_size)
            shape = len(x), model.field.codes.n_channels, *x.shape[2:]
            e_y = torch.randn(shape, generator=generator).to(x.device)
            with autocast(x.device, settings.precision):
                evidence.append(model.field.class_evidence(x, e_y, settings.ode).float())
        mean = reader.prepare(torch.stack(evidence).mean(dim=0), n_real).cpu().double()
        parts.append([part[:n_real] for part in model.field.decode(mean, reader)])
    p, distances = (torch.cat(part).numpy() for part in zip(*parts, strict=True))
    return p, distances


def latencies(trained: Trained, X: np.ndarray, sampling: Mapping[str, Any]) -> dict[str, Any]:
    """Median milliseconds to classify one image alone, and to generate one."""
    found = {
        "milliseconds_for_one": median_milliseconds(
            lambda i: trained.predict_proba(X[i % len(X)][None]), N_SINGLE_IMAGES
        )
    }
    if generates(trained):
        label = trained.estimator.classes_[0]
        found["milliseconds_to_sample_one"] = median_milliseconds(
            lambda i: trained.estimator.sample(label, random_state=i, **sampling), N_SINGLE_SAMPLES
        )
    return found


def image_quality(
    estimator: Any, data: Mapping[str, Any], sampling: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Generated images, and as many training images, beside test images in ImageNet features.

    None without the package of the features.
    """
    features_of = make_imagenet_features()
    if features_of is None:
        return None
    (X, y), (X_test, _) = data["train"], data["test"]
    rng = np.random.default_rng(0)
    real = features_of(X_test[rng.permutation(len(X_test))[:1500]])
    images, _ = sample_images(estimator, counts_of(y, N_GENERATED), **sampling)
    some = X[rng.permutation(len(X))[:N_GENERATED]]
    return {
        kind: {key: round(value, 4) for key, value in quality(features_of, real, of).items()}
        for kind, of in (("generated", images), ("training", some))
    }


def save_samples(estimator: Any, path: Path, sampling: Mapping[str, Any]) -> dict[str, str]:
    """Write a picture of generated images, a row a class; returns its name and digest."""
    os.environ.setdefault("MPLBACKEND", "Agg")
    import matplotlib.pyplot as plt

    n_columns, labels = 6, estimator.classes_
    images = estimator.sample(n_samples=n_columns, random_state=0, **sampling)
    size = (n_columns, len(labels))
    figure, axes = plt.subplots(len(labels), n_columns, figsize=size, squeeze=False)
    for axis, image in zip(axes.ravel(), images, strict=True):
        axis.imshow(image, cmap="gray", vmin=0, vmax=255)
        axis.axis("off")
    figure.tight_layout(pad=0.1)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)
    plt.close(figure)
    return describe_picture(path)


# What is missing


def wanted_runs(
    systems: Sequence[str], kinds: Sequence[str], name: str, side: int, seed: int, seconds: float
) -> Iterator[dict[str, Any]]:
    """Identities of the runs of a data set: first all of equal time, then the complete ones."""
    for kind in RUNS:
        for key in systems if kind in kinds else ():
            system = system_of(key)
            if system is not None and kind in system.runs and system.works_on(side):
                yield {
                    "dataset": name,
                    "system": key,
                    "run": kind,
                    "reference_seconds": seconds if kind == "equal" else None,
                    "seed": seed,
                }


def expected_seconds(
    identity: Mapping[str, Any], n_train: int, records: Sequence[dict]
) -> float | None:
    """Reference seconds that the training of a run will take; None where nobody knows."""
    if identity["run"] == "equal":
        return float(identity["reference_seconds"])
    if torch.cuda.is_available():
        return None
    images_of_complete = system_of(identity["system"]).images_of_complete
    rate = images_a_second(records, identity["system"], identity["dataset"])
    if images_of_complete is None or rate is None:
        return None
    return images_of_complete(identity["dataset"], n_train) / rate


@dataclass(frozen=True)
class DataSet:
    """What the command keeps of a data set; the images are loaded again for each run."""

    name: str
    description: dict[str, Any]
    side: int
    n_train: int


def data_at_hand(names: Sequence[str], files: Mapping[str, str]) -> list[DataSet]:
    """Find the data sets that are there or can be fetched, and name the others."""
    found = []
    for name in dict.fromkeys(names):
        try:
            data = load(name, files)
        except (OSError, ImportError) as error:
            print(f"left out: {name}: {str(error).splitlines()[0]}", flush=True)
            continue
        X, y = data["train"]
        found.append(DataSet(name, describe_data(name, data), X.shape[1], len(y)))
    return found


def missing_runs(
    records: Records, data_sets: Sequence[DataSet], arguments: argparse.Namespace
) -> Iterator[tuple[dict[str, Any], float | None]]:
    """Identities of the runs to make, with their expected reference seconds if they are known.

    Runs that need a package that is not there, and complete ones that take too long, are named
    and left out.
    """
    systems = [*arguments.systems, *(BACKBONE + hub_id for hub_id in arguments.backbones)]
    for seed, data in itertools.product(arguments.seeds, data_sets):
        seconds = arguments.seconds or equal_seconds(data.name)
        for identity in wanted_runs(systems, arguments.runs, data.name, data.side, seed, seconds):
            if records.has(identity, data.description):
                continue
            system = system_of(identity["system"])
            expected = expected_seconds(identity, data.n_train, records.current)
            reason = reason_to_leave_out(system, identity["run"], expected, arguments)
            if reason:
                print(f"left out: {named(identity)}: {reason}", flush=True)
            else:
                yield identity, expected


def reason_to_leave_out(
    system: System, kind: str, expected: float | None, arguments: argparse.Namespace
) -> str | None:
    """Why a run is not made, if it is not."""
    if not system.is_installed:
        return f"needs the package {system.package}"
    if kind == "equal" or torch.cuda.is_available():
        return None
    if expected is not None and expected > 3600 * arguments.hours:
        return f"{about(expected)}, more than --hours"
    if expected is None and system.images_of_complete is not None and not arguments.list:
        return "how long it takes is known after a run of equal time"
    return None


def named(identity: Mapping[str, Any]) -> str:
    """Name of a run in messages."""
    return "{dataset}, {system}, {run}, seed {seed}".format(**identity)


def run_loaded(
    identity: Mapping[str, Any], files: Mapping[str, str], pictures: Path | None
) -> dict[str, Any]:
    """Load the data and run, in a process that has done nothing else."""
    name = identity["dataset"]
    return run(identity, load(name, files), name not in files, pictures)


def measure(
    records: Records, identity: dict[str, Any], files: Mapping[str, str], pictures: Path | None
) -> None:
    """Run in a process of its own and record; a run that cannot be made is named."""
    print(named(identity), flush=True)
    try:
        records.add(in_own_process(run_loaded, identity, files, pictures))
    except (OSError, ValueError, RuntimeError, ImportError, MemoryError) as error:
        # A hub that cannot be reached, or too little memory: the other runs are still worth it.
        print(f"failed: {named(identity)}: {type(error).__name__}: {error}", flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser(__doc__, "paper.json", [0, 1, 2])
    add_data_options(parser, DATASETS)
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS), choices=list(SYSTEMS))
    parser.add_argument("--backbones", nargs="*", default=[], metavar="ID", help="of transformers")
    parser.add_argument("--runs", nargs="+", default=list(RUNS), choices=list(RUNS))
    parser.add_argument("--seconds", type=float, help="reference seconds of equal runs")
    parser.add_argument("--hours", type=float, default=0.5, help="longest complete run")
    parser.add_argument("--list", action="store_true", help="list what is missing, run nothing")
    arguments = parser.parse_args(argv)
    files = dict(arguments.npz)
    if torch.cuda.is_available() and "equal" in arguments.runs:
        parser.error(
            "Reference seconds are those of a CPU: use --runs complete, or set "
            "CUDA_VISIBLE_DEVICES= for runs of equal time."
        )
    if clash := set(files) & set(DATASETS):
        parser.error(f"{min(clash)} is MedMNIST's own: give the file of --npz another name.")

    records = Records(BENCHMARK, arguments.output)
    data_sets = data_at_hand([*arguments.datasets, *files], files)
    total = 0.0
    descriptions = {data.name: data.description for data in data_sets}
    for identity, expected in missing_runs(records, data_sets, arguments):
        if arguments.list:
            total += expected or 0.0
            how_long = "unknown time" if expected is None else about(expected)
            print(f"missing: {named(identity)}: {how_long}")
            continue
        is_pictured = records.has_picture(identity, descriptions[identity["dataset"]])
        folder = None if is_pictured else arguments.output.parent
        measure(records, identity, files, folder)
    if arguments.list:
        print(f"in all {about(total)} of training on a machine of 150 GFLOP/s, and scoring")
        return
    save_figure_2(records.current, arguments.output.parent)
    records.show()
    print("python examples/benchmarks/tables.py puts the tables into README and docs.")


if __name__ == "__main__":
    main()
