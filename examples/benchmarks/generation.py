"""How well the classifier generates: metrics in the features of an independent judge.

The judge is a ResNet-18 of half the width, trained on the real training images; its pooled
features are the space of precision, recall, density, coverage and kernel distance, its
predictions the class fidelity. The classifier accuracy score trains extremely randomised trees on
generated images and tests them on real ones. Beside every figure stands that of real images that
nothing has learned from (the validation split), or for coverage and accuracy score that of as
many training images; beside the classification that of a model trained for it alone. Runs that
the JSON file has are not repeated.

    python examples/benchmarks/generation.py --datasets retinamnist breastmnist

Further data in MedMNIST's npz format: ``--npz bloodcells=PATH``. Other settings of the classifier,
also entries of its dict parameters: ``--set max_epochs=200 image_weight=0.5``, under a name of its
own, ``--name long``.
"""

import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from _common import (
    DEFAULT_SAMPLER,
    PAPERS_SAMPLER,
    Benchmark,
    Records,
    accuracy,
    add_data_options,
    add_settings_option,
    as_tensor,
    asked_parameters,
    auc_score,
    counts_of,
    describe_data,
    described,
    gemm_gflops,
    grouped,
    load,
    machines,
    make_imagenet_features,
    make_parser,
    make_resnet,
    mean_and_spread,
    quality,
    read_settings,
    reference_seconds,
    resolved_parameters,
    sample_images,
    sampler_of,
    settings_of,
    shown_settings,
    split_settings,
)
from sklearn.metrics import log_loss
from torch import nn
from torch.nn import functional as F

from sklearn_msf import MedSymmFlowClassifier
from sklearn_msf.generation_metrics import (
    class_fidelity,
    classifier_accuracy_score,
    copying_check,
)
from sklearn_msf.plotting import SampleGridDisplay, TrajectoryDisplay

N_GENERATED = 400
N_REAL = 1500
N_TRAINED = 2000
N_CHANGED = 128
JUDGE_IMAGES = 40_000
# Half of the width of a ResNet-18, which takes a quarter of the time.
JUDGE_WIDTH = 32
# Solvers and steps. Those of the first row make 24, 23 and 21 evaluations: the last step to a
# denoised image is a single one.
SAMPLERS = (
    *(("euler", 24), ("midpoint", 12), ("rk4", 6)),
    *(("euler", n_steps) for n_steps in (1, 2, 4, 8, 12, 25, 50, 100)),
    *(("midpoint", n_steps) for n_steps in (2, 3, 5, 6)),
)
# On the way back of counterfactuals.
GUIDANCES = (0.0, 0.5, 2.0)
# Name of the recipe without settings.
DEFAULTS = "defaults"
IMAGENET_KINDS = ("generated", "fresh", "training")


def parameters(record: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that a record must have to count today."""
    constructor, sampling = split_settings(read_settings(record["settings"]))
    ours = asked_parameters(MedSymmFlowClassifier(**constructor))
    measured = {"generated": N_GENERATED, "trained on": N_TRAINED, "real": N_REAL}
    measured["sampler"] = DEFAULT_SAMPLER
    judge = {"images of the judge": JUDGE_IMAGES, "width of the judge": JUDGE_WIDTH}
    return {**ours, **sampling, **measured, **judge}


class Judge:
    """ResNet-18 of a width that classifies real images and gives their features.

    As many images are seen as `n_images`, or eight times all; `class_weights`, (K,), weigh the
    loss.
    """

    def __init__(self, X, y, seed=0, *, width=None, n_images=None, class_weights=None):
        torch.manual_seed(seed)
        x, labels = as_tensor(X), torch.from_numpy(y.astype(np.int64))
        net = make_resnet(x.shape[1], len(np.unique(y)), x.shape[2], width=width or JUDGE_WIDTH)
        net = net.to(memory_format=torch.channels_last)
        if class_weights is not None:
            class_weights = torch.as_tensor(class_weights, dtype=torch.float32)
        n_steps = (n_images or max(8 * len(x), JUDGE_IMAGES)) // 64
        optimizer = torch.optim.AdamW(net.parameters(), 1e-3, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=n_steps)
        for _ in range(n_steps):
            rows = torch.randint(len(x), (64,))
            batch = x[rows].flip(3) if torch.rand(1) < 0.5 else x[rows]
            loss = F.cross_entropy(
                net(batch), labels[rows], weight=class_weights, label_smoothing=0.05
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        self._head = net[-1].eval()
        self._body = nn.Sequential(*list(net.children())[:-1]).eval()

    @torch.inference_mode()
    def features(self, X):
        """Pooled features, (n, 8 * width)."""
        return torch.cat([self._body(part) for part in as_tensor(X).split(256)]).numpy()

    @torch.inference_mode()
    def predict_proba(self, X):
        """Class probabilities, (n, K)."""
        return torch.softmax(self._head(torch.from_numpy(self.features(X))), dim=1).numpy()

    def predict(self, X):
        """Class indices."""
        return self.predict_proba(X).argmax(axis=1)


def balanced_fidelity(judge, images, labels):
    """Class fidelity, averaged over the classes."""
    parts = [class_fidelity(judge, images[labels == c], labels[labels == c]) for c in set(labels)]
    return float(np.mean(parts))


def changed_classes(judge, classifier, X):
    """How often images follow into another class, and how near they stay."""
    classes = classifier.classes_
    target = classes[(np.searchsorted(classes, classifier.predict(X)) + 1) % len(classes)]

    def root_mean_square(images):
        return float(np.sqrt(np.mean((images.astype(float) - X) ** 2)))

    record = {
        "rms_reconstructed": root_mean_square(classifier.reconstruct(X)),
        "rms_between_images": root_mean_square(np.roll(X, 1, axis=0)),
        "guidance": {},
    }
    for guidance in GUIDANCES if classifier.model_.generates_unconditionally else (0.0,):
        images = classifier.counterfactual(X, target, guidance=guidance)
        record["guidance"][str(guidance)] = {
            "follows": class_fidelity(classifier, images, target),
            "judge_follows": class_fidelity(judge, images, target),
            "rms": root_mean_square(images),
        }
    return record


def fitted(identity, data, settings):
    """Fit the classifier; returns it and the beginning of its record."""
    name, seed = identity["dataset"], identity["seed"]
    constructor, _ = split_settings({**settings, "random_state": seed})
    gflops = gemm_gflops()
    X, y = data["train"]
    start = time.perf_counter()
    classifier = MedSymmFlowClassifier(**constructor).fit(X, y)
    seconds = time.perf_counter() - start
    record = described(
        identity,
        parameters=parameters(identity),
        data=describe_data(name, data),
        gflops=gflops,
        seconds=seconds,
        seed=seed,
        resolved=resolved_parameters(classifier, len(y)),
    )
    return classifier, record | {"reference_seconds": reference_seconds(seconds, gflops)}


def classification(classifier, data, settings, seed):
    """Scores on test images: of the classifier, and of one that learns to classify alone."""
    X_test, y_test = data["test"]

    def scores(prefix, classifier):
        p = classifier.predict_proba(X_test)
        return {
            f"{prefix}_auc": 100 * auc_score(y_test, p),
            f"{prefix}_acc": 100 * accuracy(y_test, p),
            f"{prefix}_log_loss": float(log_loss(y_test, p, labels=range(p.shape[1]))),
        }

    # For classification alone, as long as "auto" finds right for it.
    without = {"classification_fraction": 1.0, "class_dropout": 0.0, "max_epochs": "auto"}
    constructor, _ = split_settings({**settings, **without, "random_state": seed})
    alone = MedSymmFlowClassifier(**constructor).fit(*data["train"])
    return scores("test", classifier) | scores("alone", alone)


@dataclass(frozen=True)
class RealImages:
    """What generated images are compared with, and real images that stand beside them.

    Attributes
    ----------
    features : ndarray
        Features of test images by the judge.
    of_imagenet : ndarray or None
        ImageNet features of the same images, where these are measured.
    fresh : ndarray
        Validation images, from which neither the judge nor the classifier has learned.
    some : ndarray
        Training images, as many as are generated.
    as_many : tuple of ndarray
        Training images and labels, as many as the generated ones on which the trees are trained.
    """

    features: np.ndarray
    of_imagenet: np.ndarray | None
    fresh: np.ndarray
    some: np.ndarray
    as_many: tuple[np.ndarray, np.ndarray]


def real_images(data, judge, imagenet, seed):
    """Draw the real images; `imagenet` gives features of images, or is None."""
    (X, y), (X_test, _) = data["train"], data["test"]
    rng = np.random.default_rng(seed)
    shown = X_test[rng.permutation(len(X_test))[:N_REAL]]
    order = rng.permutation(len(X))
    as_many = order[:N_TRAINED]
    return RealImages(
        features=judge.features(shown),
        of_imagenet=None if imagenet is None else imagenet(shown),
        fresh=data["val"][0][:N_GENERATED],
        some=X[order[:N_GENERATED]],
        as_many=(X[as_many], y[as_many]),
    )


def real_figures(real, judge, X_test, y_test):
    """Figures of real images, which stand beside those of generated ones."""
    return {
        **quality(judge.features, real.features, real.fresh),
        "n": len(real.fresh),
        "coverage_by_training": quality(judge.features, real.features, real.some)["coverage"],
        "fidelity": balanced_fidelity(judge, X_test, y_test),
        "accuracy_score": classifier_accuracy_score(*real.as_many, X_test, y_test),
    }


def sampler_figures(classifier, counts, sampling, real, judge, imagenet):
    """Figures of the images of each solver and number of steps."""
    figures = {"samplers": {}, "imagenet_samplers": {}}
    for solver, n_steps in SAMPLERS:
        start = time.perf_counter()
        images, labels = sample_images(
            classifier, counts, n_steps=n_steps, ode_solver=solver, **sampling
        )
        seconds_to_draw = time.perf_counter() - start
        sampler = f"{solver} {n_steps}"
        figures["samplers"][sampler] = {
            **quality(judge.features, real.features, images),
            "fidelity": balanced_fidelity(judge, images, labels),
            "seconds": seconds_to_draw,
        }
        if imagenet is None:
            continue
        seen = quality(imagenet, real.of_imagenet, images)
        figures["imagenet_samplers"][sampler] = seen
        if sampler == DEFAULT_SAMPLER:
            figures["imagenet"] = {
                "generated": seen,
                "fresh": quality(imagenet, real.of_imagenet, real.fresh),
                "training": quality(imagenet, real.of_imagenet, real.some),
            }
    return figures


def generated_figures(classifier, data, sampling, judge):
    """Figures of as many images as the trees learn from: accuracy score, copies, other classes."""
    (X, y), (X_test, y_test) = data["train"], data["test"]
    # As many as the real ones that the same trees are trained on, in the same proportions.
    counts = counts_of(y, min(len(X), N_TRAINED))
    start = time.perf_counter()
    images, labels = sample_images(classifier, counts, **sampling)
    seconds = time.perf_counter() - start
    check = copying_check(images, X, X_test)
    return {
        "seconds_of_64_a_class": seconds * 64 * len(counts) / counts.sum(),
        "accuracy_score": classifier_accuracy_score(images, labels, X_test, y_test),
        "fidelity": balanced_fidelity(judge, images, labels),
        "near_duplicates": check.near_duplicates,
        "duplicates_of_training": check.duplicates_of_training,
        "duplicates_of_held_out": check.duplicates_of_held_out,
        "singled_out": check.singled_out,
        "expected_without_copies": check.quantile,
        "closer": check.closer,
        "changed_classes": changed_classes(judge, classifier, X_test[:N_CHANGED]),
    }


def run(identity, data, judge, imagenet, pictures):
    """Fit, generate, measure; one record.

    The settings of `identity` are text of :func:`shown_settings`: entries of the dict parameters
    stand beside other parameters, and the guidance where it is not the classifier's own.
    """
    seed, settings = identity["seed"], read_settings(identity["settings"])
    _, sampling = split_settings(settings)
    X, y = data["train"]
    classifier, record = fitted(identity, data, settings)
    record |= classification(classifier, data, settings, seed)
    real = real_images(data, judge, imagenet, seed)
    record["real"] = real_figures(real, judge, *data["test"])
    counts = counts_of(y, N_GENERATED)
    record |= sampler_figures(classifier, counts, sampling, real, judge, imagenet)
    record |= generated_figures(classifier, data, sampling, judge)
    if pictures is not None:
        save_pictures(classifier, X, y, pictures / picture_name(identity), **sampling)
    return record


def picture_name(identity):
    """Begin the names of the pictures of a run; those of the defaults stand in the README."""
    title = "" if identity["title"] == DEFAULTS else "_" + re.sub(r"\W+", "_", identity["title"])
    return f"generation_{identity['dataset']}{title}"


def save_pictures(classifier, X, y, path, **sampling):
    """Grid of real and generated images, and the trajectory of an image and its mask."""
    save_grid(classifier, X, y, f"{path}_grid.png", **sampling)
    display = TrajectoryDisplay.from_estimator(classifier, classifier.classes_[-1], **sampling)
    save(display, f"{path}_trajectory.png")


def save_grid(classifier, X, y, path, **sampling):
    """Real images, generated ones, nearest training images."""
    os.environ.setdefault("MPLBACKEND", "Agg")
    save(SampleGridDisplay.from_estimator(classifier, X=X, y=y, n_columns=6, **sampling), path)


def save(display, path):
    """Write the picture of a display."""
    import matplotlib.pyplot as plt

    display.figure_.savefig(path, dpi=100)
    plt.close(display.figure_)


def seen_by_imagenet(groups):
    """Groups of which every record has figures in ImageNet features."""
    return {key: group for key, group in groups.items() if all("imagenet" in r for r in group)}


def seeds_of(records):
    """Cell: the seeds."""
    return " ".join(str(r["seed"]) for r in records)


def lines_of(title, columns, groups):
    """Markdown: one line for each data set and recipe, cells from functions of its records."""
    lines = [f"**{title}**", "", "| data | recipe | " + " | ".join(columns) + " |"]
    lines.append("|" + "---|" * (len(columns) + 2))
    for (name, recipe), records in groups.items():
        cells = [cell(records) for cell in columns.values()]
        lines.append(f"| {name} | {recipe} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def mean_of(get, digits=2):
    """Cell: mean over the seeds, with their standard deviation."""
    return lambda records: mean_and_spread([get(record) for record in records], digits)


def beside(get, reference, digits=2):
    """Cell: mean over the seeds, and that of real images in brackets."""
    first, second = mean_of(get, digits), mean_of(reference, digits)
    return lambda records: f"{first(records)} ({second(records)})"


def where_measured(key, cell):
    """Cell of those records only that have a figure."""

    def some(records):
        records = [r for r in records if key in r]
        return f"{cell(records)}, seeds {seeds_of(records)}" if records else "-"

    return some


def sampler_cell(records, sampler):
    """Cell: means over those seeds that were measured with a solver and number of steps."""
    records = [record for record in records if sampler in record["samplers"]]
    if not records:
        return "-"
    seen = all(sampler in record["imagenet_samplers"] for record in records)

    def mean(part, key):
        return np.mean([record[part][sampler][key] for record in records])

    part = "imagenet_samplers" if seen else "samplers"
    text = f"{mean(part, 'coverage'):.2f}, {mean(part, 'kernel_distance'):.2f}"
    if all("fidelity" in record["samplers"][sampler] for record in records):
        text += f" ({mean('samplers', 'fidelity'):.2f})"
    return text


def time_of(records, sampler):
    """Cell: time of a sampler as a multiple of the paper's; earlier records lack it."""
    samplers = [r["samplers"] for r in records if "seconds" in r["samplers"].get(sampler, {})]
    times = [s[sampler]["seconds"] / s[PAPERS_SAMPLER]["seconds"] for s in samplers]
    return f"{np.mean(times):.2f}" if times else "-"


def sampler_lines(groups):
    """Markdown: time, coverage, KID and class fidelity of each solver and number of steps."""
    titles = [f"{name}, {recipe}" for name, recipe in groups]
    lines = ["**Solvers and steps: coverage, KID (class fidelity)**", ""]
    lines.append("| solver, steps | time | " + " | ".join(titles) + " |")
    lines.append("|" + "---|" * (len(titles) + 2))
    every = [record for records in groups.values() for record in records]
    samplers = {sampler for record in every for sampler in record["samplers"]}
    for sampler in sorted(samplers, key=lambda s: (s.split()[0], int(s.split()[1]))):
        cells = [sampler_cell(records, sampler) for records in groups.values()]
        lines.append("| " + " | ".join([sampler, time_of(every, sampler), *cells]) + " |")
    text = (
        "Coverage and KID: in ImageNet features where they were measured, else in the judge's. "
        f"Time: as a multiple of that of {PAPERS_SAMPLER}."
    )
    return [*lines, "", text, ""]


def imagenet_view(key):
    """Cell: a figure of generated images, and those of validation and training images."""
    kinds = [mean_of(lambda r, of=of: r["imagenet"][of][key]) for of in IMAGENET_KINDS]
    return lambda records: "{} ({}, {})".format(*(kind(records) for kind in kinds))


def changed_lines(groups):
    """Markdown: how near images stay on a round trip, and how often they follow into a class."""

    def by_guidance(records):
        texts = []
        for guidance in records[0]["changed_classes"]["guidance"]:
            changed = [r["changed_classes"]["guidance"][guidance] for r in records]
            far = [r["changed_classes"]["rms_between_images"] for r in records]
            follows, judged = (
                np.mean([c[key] for c in changed]) for key in ("follows", "judge_follows")
            )
            distance = np.mean([c["rms"] / f for c, f in zip(changed, far, strict=True)])
            texts.append(f"{guidance}: {follows:.2f} ({judged:.2f}), {distance:.2f}")
        return "; ".join(texts)

    def round_trip(record):
        changed = record["changed_classes"]
        return changed["rms_reconstructed"] / changed["rms_between_images"]

    return lines_of(
        "Counterfactuals: distances over those between images",
        {
            "there and back": mean_of(round_trip, 3),
            "guidance: the classifier (the judge) follows, distance": by_guidance,
        },
        groups,
    )


def table(records):
    """Markdown of everything, over seeds."""
    groups = grouped(records, "dataset", "title")
    generated, real = (lambda r: r["samplers"][sampler_of(r)]), (lambda r: r["real"])
    lines = lines_of(
        "Beside real images",
        {
            "seeds": seeds_of,
            "reference seconds": mean_of(lambda r: r["reference_seconds"], 0),
            "coverage (training)": beside(
                lambda r: generated(r)["coverage"], lambda r: real(r)["coverage_by_training"]
            ),
            "precision (validation)": beside(
                lambda r: generated(r)["precision"], lambda r: real(r)["precision"]
            ),
            "recall (validation)": beside(
                lambda r: generated(r)["recall"], lambda r: real(r)["recall"]
            ),
            "KID (validation)": beside(
                lambda r: generated(r)["kernel_distance"], lambda r: real(r)["kernel_distance"]
            ),
            "class fidelity (test)": beside(lambda r: r["fidelity"], lambda r: real(r)["fidelity"]),
            "accuracy score (training)": beside(
                lambda r: r["accuracy_score"], lambda r: real(r)["accuracy_score"]
            ),
        },
        groups,
    )
    lines += lines_of(
        "Copies",
        {
            "near-duplicates (0.05 expected)": mean_of(lambda r: r["near_duplicates"], 3),
            "those of as many training (held-out) images": where_measured(
                "duplicates_of_held_out",
                beside(
                    lambda r: r["duplicates_of_training"], lambda r: r["duplicates_of_held_out"], 3
                ),
            ),
            "singled out (0.05 expected)": mean_of(lambda r: r["singled_out"], 3),
            "nearer than held-out images (0.5 expected)": mean_of(lambda r: r["closer"]),
        },
        groups,
    )
    lines += lines_of(
        "Classification (and that of a model trained for it alone)",
        {
            "AUC": beside(lambda r: r["test_auc"], lambda r: r["alone_auc"], 1),
            "ACC": beside(lambda r: r["test_acc"], lambda r: r["alone_acc"], 1),
            "log loss": beside(lambda r: r["test_log_loss"], lambda r: r["alone_log_loss"], 3),
            "seconds to draw 64 a class": mean_of(lambda r: r["seconds_of_64_a_class"], 0),
        },
        groups,
    )
    views = {
        f"{name} (validation, training images)": imagenet_view(key)
        for name, key in (
            ("precision", "precision"),
            ("coverage", "coverage"),
            ("KID", "kernel_distance"),
        )
    }
    lines += lines_of("In ImageNet features", views, seen_by_imagenet(groups))
    lines += sampler_lines(groups)
    lines += changed_lines(groups)
    lines.append(
        "Test splits; mean ± standard deviation over seeds, in brackets real images of the split "
        "named: of the training split as many, of the validation split 400 or all. "
        f"{machines(records)}."
    )
    return "\n".join(lines) + "\n"


BENCHMARK = Benchmark("generation", ("dataset", "seed", "title"), parameters, table)


def main():
    parser = make_parser(__doc__, "generation.json", [0])
    add_data_options(parser, ["retinamnist", "breastmnist"])
    add_settings_option(parser)
    parser.add_argument("--name", default=DEFAULTS, help="name of the recipe")
    arguments = parser.parse_args()

    files, settings = dict(arguments.npz), settings_of(arguments)
    records = Records(BENCHMARK, arguments.output)
    imagenet, judges = make_imagenet_features(), {}
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    title = arguments.name
    for seed in arguments.seeds:
        for name in [*arguments.datasets, *files]:
            data = load(name, files)
            shown = shown_settings(settings)
            identity = {"dataset": name, "seed": seed, "title": title, "settings": shown}
            if records.has(identity, describe_data(name, data)):
                continue
            if name not in judges:
                judges[name] = Judge(*data["train"])
            records.add(
                run(
                    identity,
                    data,
                    judge=judges[name],
                    imagenet=imagenet,
                    # Of the first seed of all, whichever is the first of this call.
                    pictures=arguments.output.parent if seed == 0 else None,
                )
            )
            print(name, seed, flush=True)
    records.show()


if __name__ == "__main__":
    main()
