"""What latents give: accuracy at equal time, what encoding loses, what caching saves.

    python examples/benchmarks/latent.py accuracy --data BUSI_224.npz --taef2 FOLDER
    python examples/benchmarks/latent.py retina
    python examples/benchmarks/latent.py reconstruction --data BUSI_224.npz --taef2 FOLDER
    python examples/benchmarks/latent.py speed
    python examples/benchmarks/latent.py encoding --taef2 FOLDER
    python examples/benchmarks/latent.py smoke
    python examples/benchmarks/latent.py sample --data BUSI_224.npz --models FOLDER/NAME

Each part adds what it measured to docs/benchmarks/latent.json. Runs of ``accuracy`` and ``retina``
that the file already has are not repeated; the other parts, which take minutes, are. Budgets are
reference seconds, as in accuracy.py, and count everything: training an autoencoder, encoding,
training the field. ``sample`` takes a model that ``accuracy --models FOLDER`` has saved. Give other
data than BUSI a name of their own: ``--name``.
"""

import itertools
import re
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from _common import (
    MEDMNIST_RECIPE,
    Benchmark,
    Records,
    accuracy,
    as_bytes,
    as_tensor,
    asked_parameters,
    auc_score,
    describe_data,
    described,
    gemm_gflops,
    group_parameters,
    grouped,
    load,
    local_seconds,
    make_parser,
    make_resnet,
    markdown,
    peak_memory_mib,
    refuse_gpu,
    resized,
    resolved_parameters,
    train_network,
)
from backbone import EfficientNetStage
from taef2 import TAEF2
from torch.nn import functional as F

from sklearn_msf import LatentMedSymmFlowClassifier, MedSymmFlowClassifier
from sklearn_msf._estimator.latent_preparation import LatentPreparation
from sklearn_msf._version import RECIPES
from sklearn_msf.data.images import ImageFormat
from sklearn_msf.data.on_demand import ImagesOnDemand
from sklearn_msf.latent import autoencoder_training
from sklearn_msf.latent.autoencoder import ImageAutoencoder, build_autoencoder
from sklearn_msf.latent.latent_batches import LatentTrainingData, encode_variations
from sklearn_msf.latent.latent_space import LatentSpace
from sklearn_msf.nn.precision import resolve_precision
from sklearn_msf.runtime.batching import in_batches

CPU = torch.device("cpu")
# The architecture of stabilityai/sd-vae-ft-mse.
SD_VAE = {
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "latent_channels": 4,
    "norm_num_groups": 32,
    "sample_size": 256,
    "scaling_factor": 0.18215,
}


# Accuracy at equal time


class FlippingPreparation(LatentPreparation):
    """Flips latents instead of encoding flipped images."""

    def training_data(self, space, samples, augment, run, part=None):
        kept = super().training_data(space, samples, augment, run, part)
        # There are two variations of each image: itself, and its flip.
        kept.images[1::2] = kept.images[::2].flip(-1)
        return kept


class FlippingLatents(LatentMedSymmFlowClassifier):
    """Flips latents instead of encoding flipped images."""

    _preparation = FlippingPreparation


TAEF2_NAME = "TAEF2"


@dataclass(frozen=True)
class LatentSystem:
    """A system: what trains it, and the settings that identify it.

    Attributes
    ----------
    train : callable
        Takes images, labels, seconds, a seed and the folder of TAEF2; returns a function of images
        and the classifier, None if it is not one of the package.
    settings : dict
        Settings that a record must have to count today.
    needs_taef2 : bool
        Whether it needs TAEF2.
    """

    train: Callable[..., tuple[Callable[[np.ndarray], np.ndarray], Any]]
    settings: Mapping[str, Any]
    needs_taef2: bool = False


def latent(autoencoder, cls=LatentMedSymmFlowClassifier, **settings):
    """System of settings, with entries of the dict parameters beside other parameters."""
    constructor = group_parameters(settings)
    needs_taef2 = autoencoder == TAEF2_NAME

    def train(X, y, seconds, seed, taef2):
        opened = TAEF2(taef2) if needs_taef2 else autoencoder
        classifier = cls(opened, time_budget=seconds, random_state=seed, **constructor)
        return classifier.fit(X, y).predict_proba, classifier

    return LatentSystem(
        train, asked_parameters(cls(autoencoder, **constructor), has_budget=True), needs_taef2
    )


def pixels(side):
    """System over pixels of a smaller image."""

    def train(X, y, seconds, seed, taef2):
        classifier = MedSymmFlowClassifier(time_budget=seconds, random_state=seed)
        classifier.fit(resized(X, side), y)
        return lambda X: classifier.predict_proba(resized(X, side)), classifier

    return LatentSystem(
        train, {**asked_parameters(MedSymmFlowClassifier(), has_budget=True), "side": side}
    )


def _train_resnet(X, y, seconds, seed, taef2):
    return train_network(make_resnet, X, y, seed, seconds=seconds).predict_proba, None


SYSTEMS = {
    "latents, TAEF2": latent(TAEF2_NAME),
    "latents, fit": latent("fit"),
    "pixels at 28": pixels(28),
    "pixels at 64": pixels(64),
    "ResNet-18 at 224": LatentSystem(
        _train_resnet, {"network": "ResNet-18", **asdict(MEDMNIST_RECIPE)}
    ),
    **{
        f"latents, TAEF2, velocity form, {decoding}": latent(
            TAEF2_NAME, label_prediction="velocity", label_decoding=decoding, n_draws=8
        )
        for decoding in ("latent", "pixel")
    },
    "latents, TAEF2, flipped images encoded": latent(TAEF2_NAME, augment="hflip", n_variations=2),
    "latents, TAEF2, latents flipped": latent(
        TAEF2_NAME, FlippingLatents, augment="hflip", n_variations=2
    ),
}
# In so little time only small batches make enough steps.
RECONSTRUCTION_RECIPE = replace(MEDMNIST_RECIPE, batch_size=32)
# Over pixels and over latents the defaults have other channels.
SPEED_SETTINGS = {"max_epochs": 4, "augment": None, "channels": 64}
# The model whose encoder is timed is not trained itself.
ENCODING_SETTINGS = {"max_epochs": 1, "channels": 16, "augment": None}
ENCODED_SIDE, N_ENCODED, N_TIMED = 224, 64, 2
ALONE, SIZES_ALONE = "the encoder alone", (2, 8, 16)
# Settings of the parts that have one system.
PART_SETTINGS = {
    "reconstruction": {"network": "ResNet-18", **asdict(RECONSTRUCTION_RECIPE)},
    "speed": SPEED_SETTINGS,
    "encoding": {"n_images": N_ENCODED, **ENCODING_SETTINGS},
    "smoke": {"autoencoder": SD_VAE, "max_epochs": 1},
}
BUSI, RETINA = "BUSI 224 (rebuilt)", "RetinaMNIST 28 at 64"
RETINA_SYSTEMS = {"latents, fit": latent("fit", encoded_size=64)}


def parameters(record: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Settings that a record must have to count today."""
    if record["part"] != "accuracy":
        settings = PART_SETTINGS.get(record["part"], {})
        recipe = RECIPES[LatentMedSymmFlowClassifier.__name__]
        return {"part": record["part"], "recipe": recipe, **settings}
    of_data = RETINA_SYSTEMS if record["dataset"] == RETINA else SYSTEMS
    system = of_data.get(record["system"])
    return None if system is None else system.settings


def measure_accuracy(arguments, records, gflops):
    data = load("busi", {"busi": str(arguments.data)})
    chosen = {
        title: system
        for title, system in SYSTEMS.items()
        if arguments.taef2 is not None or not system.needs_taef2
    }
    measure_systems(arguments.name, data, chosen, arguments, records)


def measure_retina(arguments, records, gflops):
    measure_systems(RETINA, load("retinamnist", {}), RETINA_SYSTEMS, arguments, records)


def measure_systems(name, data, chosen, arguments, records):
    X_train, y_train = data["train"]
    X_test, y_test = data[arguments.split]
    described_data = describe_data(name, data)
    for title, system in chosen.items():
        for seed in arguments.seeds:
            identity = {
                "part": "accuracy",
                "dataset": name,
                "system": title,
                "split": arguments.split,
                "seed": seed,
                "reference_seconds": arguments.seconds,
            }
            if arguments.systems and title not in arguments.systems:
                continue
            if records.has(identity, described_data):
                continue
            # A machine may be slower hours later.
            gflops = gemm_gflops()
            start = time.perf_counter()
            budget = local_seconds(arguments.seconds, gflops)
            predict, classifier = system.train(X_train, y_train, budget, seed, arguments.taef2)
            seconds = time.perf_counter() - start
            # The first call of a number of images prepares.
            predict(X_test)
            start = time.perf_counter()
            p = predict(X_test)
            rate = len(p) / (time.perf_counter() - start)
            resolved = {} if classifier is None else resolved_parameters(classifier, len(y_train))
            record = described(
                identity,
                parameters=system.settings,
                data=described_data,
                gflops=gflops,
                seconds=seconds,
                seed=seed,
                resolved=resolved,
            )
            record |= {
                "auc": round(100 * auc_score(y_test, p), 2),
                "acc": round(100 * accuracy(y_test, p), 2),
                "classified_per_second": round(rate, 1),
            }
            is_latent = isinstance(classifier, LatentMedSymmFlowClassifier)
            if is_latent and arguments.models is not None:
                folder = re.sub(r"\W+", "-", f"{name} {title} {seed}").strip("-")
                classifier.save_pretrained(arguments.models / folder)
            add(records, record)


# What encoding loses


def measure_reconstruction(arguments, records, gflops):
    """PSNR of reconstructions, and what a plain classifier loses on them."""
    if arguments.data is None:
        name, data, side = "PneumoniaMNIST 28 at 64", load("pneumoniamnist", {}), 64
        data = {split: (resized(X, side), y) for split, (X, y) in data.items()}
    else:
        name, side = arguments.name, 224
        data = load("busi", {"busi": str(arguments.data)})
    (X, y), (X_test, y_test) = data["train"], data["test"]
    described_data = describe_data(name, data)
    seconds = local_seconds(arguments.seconds, gflops)
    x, x_test = ImageFormat.normalise(as_tensor(X)), ImageFormat.normalise(as_tensor(X_test))
    fitted = autoencoder_training.fit_autoencoder(
        as_bytes(x),
        (side, side),
        weights=np.ones(len(x)),
        seed=0,
        device=CPU,
        precision=resolve_precision("auto", CPU),
        seconds=seconds / 2,
    )
    autoencoders = {"fit": fitted}
    if arguments.taef2 is not None:
        autoencoders["TAEF2"] = ImageAutoencoder(TAEF2(arguments.taef2))
    versions = {"the images themselves": (X, X_test, None)}
    for title, autoencoder in autoencoders.items():
        decoded = [reconstruct(autoencoder, images) for images in (x, x_test)]
        psnr = peak_signal_to_noise(decoded[1], x_test)
        versions[title] = (*(as_bytes(d)[:, 0] for d in decoded), psnr)
    train = partial(train_network, recipe=RECONSTRUCTION_RECIPE)
    for title, (images, images_test, psnr) in versions.items():
        start = time.perf_counter()
        p = train(make_resnet, images, y, 0, seconds=seconds).predict_proba(images_test)
        identity = {"part": "reconstruction", "dataset": name, "images": title}
        record = of_part(identity, described_data, gflops, time.perf_counter() - start) | {
            "psnr": None if psnr is None else round(float(psnr.median()), 1),
            "resnet_auc": round(100 * auc_score(y_test, p), 2),
            "resnet_acc": round(100 * accuracy(y_test, p), 2),
            "reference_seconds": arguments.seconds,
        }
        add(records, record)


@torch.inference_mode()
def reconstruct(autoencoder: ImageAutoencoder, x: torch.Tensor) -> torch.Tensor:
    """Images that were encoded and decoded, in [-1, 1]."""
    parts = []
    for part in x.split(8):
        images = part.expand(-1, autoencoder.image_channels, -1, -1)
        decoded = autoencoder.decode(autoencoder.encode(images).mean)
        parts.append(decoded.mean(dim=1, keepdim=True) if x.shape[1] == 1 else decoded)
    return torch.cat(parts).clamp(-1, 1)


def peak_signal_to_noise(decoded: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """In dB, of each image in [-1, 1]."""
    squared = F.mse_loss(decoded, images, reduction="none").mean(dim=(1, 2, 3))
    return 10 * torch.log10(4 / squared)


# What caching saves


class EncodingData:
    """Training data that encodes in every step, as a loop without a cache has to."""

    def __init__(
        self,
        data: LatentTrainingData,
        images: np.ndarray,
        space: LatentSpace,
        precision: str,
        *,
        masks: bool,
    ):
        self._data = data
        self._images = torch.from_numpy(images)
        self._space = space
        self._precision = precision
        self._masks = masks

    def __getattr__(self, name):
        """Have everything else of the cached data."""
        return getattr(self._data, name)

    def select(self, rows, n_varied, generator):
        """Choose the images of a step by their indices."""
        return (rows,)

    def batch(self, selected, n_varied, n_at_one, generator):
        """Encode images, and as the published loop does a mask for each."""
        (rows,) = selected
        (x,) = self._space.resized(ImageFormat.normalise(self._images[rows]))
        if self._masks:
            self._space.autoencoder.encode(x, self._precision)
        mean, deviation = self._space.autoencoder.encode(x, self._precision)
        x = mean + deviation * torch.randn(mean.shape, generator=generator)
        return self._space.latents.normalise(x), self._data.labels[rows]


class EncodingPreparation(LatentPreparation):
    """Makes training data that runs the autoencoder in every step."""

    masks = False

    def training_data(self, space, samples, augment, run, part=None):
        cached = super().training_data(space, samples, augment, run, part)
        images = samples.images.to_array()
        precision = resolve_precision("auto", CPU)
        return EncodingData(cached, images, space, precision, masks=self.masks)


class EncodingMasksPreparation(EncodingPreparation):
    """Makes training data that runs the autoencoder on images and masks in every step."""

    masks = True


class EncodingInTheLoop(LatentMedSymmFlowClassifier):
    """Runs the autoencoder in every training step."""

    _preparation = EncodingPreparation


class EncodingMasksToo(LatentMedSymmFlowClassifier):
    """Runs the autoencoder on images and masks in every training step."""

    _preparation = EncodingMasksPreparation


def measure_speed(arguments, records, gflops):
    """Images a second of training: cached latents, the autoencoder in the loop, pixels."""
    quarter = {**SD_VAE, "block_out_channels": [32, 64, 128, 128], "scaling_factor": 1.0}
    for side, n_images, layout in ((64, 640, "fit"), (64, 640, "SD / 4"), (224, 128, "fit")):
        rng = np.random.default_rng(0)
        X = rng.integers(0, 256, (n_images, side, side, 3), dtype=np.uint8)
        y = np.arange(n_images) % 4
        fitted = autoencoder_training.layout_for
        with mock.patch.object(
            autoencoder_training,
            "layout_for",
            lambda *a, fitted=fitted, layout=layout: fitted(*a) if layout == "fit" else quarter,
        ):
            autoencoder = autoencoder_training.fit_autoencoder(
                np.ascontiguousarray(X.transpose(0, 3, 1, 2)),
                (side, side),
                weights=np.ones(n_images),
                seed=0,
                device=CPU,
                precision=resolve_precision("auto", CPU),
                seconds=1.0,
            ).module
        common = {**SPEED_SETTINGS, "random_state": 0}
        classifiers = {
            "cached latents": LatentMedSymmFlowClassifier(autoencoder, **common),
            "images encoded in every step": EncodingInTheLoop(autoencoder, **common),
            "images and masks encoded in every step": EncodingMasksToo(autoencoder, **common),
        }
        rates = {what: images_per_second(c.fit(X, y)) for what, c in classifiers.items()}
        model = classifiers["cached latents"].model_
        channels, height, width = model.space.shape
        same_size = rng.random((n_images, height, width, channels)).astype(np.float32)
        plain = MedSymmFlowClassifier(
            **common,
            network_params={"patch_size": model.field.layout.patch_size},
            image_shape=(height, width, channels),
        )
        rates["the same tensors as pixels"] = images_per_second(plain.fit(same_size, y))
        for what, rate in rates.items():
            identity = {"part": "speed", "side": side, "autoencoder": layout, "what": what}
            data = describe_data(f"random images of {side} px", {"train": (X, y)})
            record = of_part(identity, data, gflops, n_images / rate) | {
                "images_per_second": round(rate, 1),
                "share_of_cached": round(rate / rates["cached latents"], 3),
            }
            add(records, record)


def images_per_second(classifier) -> float:
    """Best epoch but the first."""
    return max(r["n_images"] / r["seconds"] for r in classifier.history_[1:])


# What encoding costs beside the encoder itself


@dataclass(frozen=True)
class Encoding:
    """One way to encode images, and how many it encodes."""

    what: str
    n_images: int
    run: Callable[[], object]


def measure_encoding(arguments, records, gflops):
    """Images a second of an encoder alone, on ready tensors, and of all that `fit` does."""
    rng = np.random.default_rng(0)
    X = rng.integers(0, 256, (N_ENCODED, ENCODED_SIDE, ENCODED_SIDE, 3), dtype=np.uint8)
    y = np.arange(N_ENCODED) % 2
    data = describe_data(f"{N_ENCODED} random images of {ENCODED_SIDE} px", {"train": (X, y)})
    encoders = {"EfficientNet-Lite0": {"backbone": EfficientNetStage()}}
    if arguments.taef2 is not None:
        encoders["TAEF2"] = {"autoencoder": TAEF2(arguments.taef2)}
    for title, given in encoders.items():
        settings = {"autoencoder": None, "encoded_size": ENCODED_SIDE, **given}
        small = LatentMedSymmFlowClassifier(**settings, **ENCODING_SETTINGS).fit(X[:2], y[:2])
        ways = ways_to_encode(small.model_, X)
        seconds = dict.fromkeys((way.what for way in ways), np.inf)
        # In turn, so that whatever else slows the machine slows all of them.
        for _, way in itertools.product(range(N_TIMED), ways):
            start = time.perf_counter()
            way.run()
            seconds[way.what] = min(seconds[way.what], time.perf_counter() - start)
        rates = {way.what: way.n_images / seconds[way.what] for way in ways}
        alone = max(rate for what, rate in rates.items() if what.startswith(ALONE))
        for what, rate in rates.items():
            identity = {
                "part": "encoding",
                "side": ENCODED_SIDE,
                "autoencoder": title,
                "what": what,
            }
            record = of_part(identity, data, gflops, seconds[what]) | {
                "images_per_second": round(rate, 1),
                "share_of_encoder": round(rate / alone, 3),
            }
            add(records, record)


def ways_to_encode(model, X) -> list[Encoding]:
    """The encoder of a fitted model alone, in several ways, and as `fit` runs it."""
    precision = resolve_precision("auto", CPU)
    space, images = model.space, ImagesOnDemand(model.image_format, X)
    (ready,) = space.resized(ImageFormat.normalise(as_tensor(X)))
    encoder = space.autoencoder if space.backbone is None else space.backbone

    def of_batch(start: int, size: int) -> None:
        encoder.encode(ready[start : start + size], precision)

    @torch.inference_mode()
    def on_all_cores(size: int) -> None:
        for start in range(0, len(X), size):
            of_batch(start, size)

    def alone(size: int) -> list[Encoding]:
        side_by_side = partial(in_batches, of_batch, len(X), size, CPU)
        named = f"{ALONE}, {size} images at a time on"
        return [
            Encoding(f"{named} all cores", len(X), partial(on_all_cores, size)),
            Encoding(f"{named} each core", len(X), side_by_side),
        ]

    def as_fit(augment: str, n_variations: int) -> Encoding:
        latents = torch.empty(
            len(X), n_variations, space.shape[0] + space.n_deviations, *space.shape[1:]
        )
        run = partial(encode_variations, latents, images, space, augment, 0, precision)
        return Encoding(f"in fit, {augment}", len(X) * n_variations, run)

    return [
        *(way for size in SIZES_ALONE for way in alone(size)),
        as_fit("flip", 4),
        as_fit("flip+affine", 8),
    ]


# The architecture of the paper's autoencoder


def measure_smoke(arguments, records, gflops):
    """One epoch on 32 images of 224 px with sd-vae-ft-mse's layout and random weights."""
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        build_autoencoder("AutoencoderKL", SD_VAE).save_pretrained(folder)
        rng = np.random.default_rng(0)
        X = rng.integers(0, 256, (32, 224, 224, 3), dtype=np.uint8)
        y = np.arange(32) % 2
        classifier = LatentMedSymmFlowClassifier(folder, max_epochs=1, augment=None, random_state=0)
        seconds = {}
        for name, call in (
            ("fit", lambda: classifier.fit(X, y)),
            ("predict", lambda: classifier.predict(X)),
            ("sample", lambda: classifier.sample(0, 2, random_state=0)),
        ):
            start = time.perf_counter()
            call()
            seconds[name] = round(time.perf_counter() - start, 1)
    peak = peak_memory_mib() / 1024
    data = describe_data("random images of 224 px", {"train": (X, y)})
    record = of_part({"part": "smoke"}, data, gflops, seconds["fit"]) | {
        "parameters": sum(p.numel() for p in classifier.autoencoder_.parameters()),
        **{f"{name}_seconds": value for name, value in seconds.items()},
        "peak_memory_gib": round(peak, 2),
    }
    add(records, record)


# Generated images


def measure_sampling(arguments, records, gflops):
    """Ten images of each class by a saved model, above real ones."""
    import matplotlib.pyplot as plt

    data = load("busi", {"busi": str(arguments.data)})
    X, y = data["train"]
    given = None if arguments.taef2 is None else TAEF2(arguments.taef2)
    classifier = LatentMedSymmFlowClassifier.from_pretrained(arguments.models, autoencoder=given)
    start = time.perf_counter()
    generated = classifier.sample(classifier.classes_, 10, random_state=0)
    seconds = time.perf_counter() - start
    n_classes = len(classifier.classes_)
    figure, axes = plt.subplots(2 * n_classes, 10, figsize=(12, 2.5 * n_classes))
    for k, label in enumerate(classifier.classes_):
        rows = (generated[10 * k : 10 * (k + 1)], X[y == label][:10])
        for i, (title, images) in enumerate(zip(("generated", "real"), rows, strict=True)):
            for axis, image in zip(axes[2 * k + i], images, strict=True):
                axis.imshow(image, cmap="gray", vmin=0, vmax=255)
                axis.set_xticks([])
                axis.set_yticks([])
            axes[2 * k + i, 0].set_ylabel(f"{title}, class {label}")
    figure.tight_layout(pad=0.3)
    figure.savefig(arguments.output.with_name("latent_samples.png"), dpi=90)
    described_data = describe_data(arguments.name, data)
    record = of_part({"part": "sample"}, described_data, gflops, seconds)
    add(records, record | {"n_images": len(generated), "seconds": round(seconds, 1)})


# Output


def add(records, record):
    print(record, flush=True)
    records.add(record)


def of_part(identity, data, gflops, seconds):
    """Record of a part that has one setting."""
    return described(
        identity,
        parameters=parameters(identity),
        data=data,
        gflops=gflops,
        seconds=seconds,
        seed=0,
        precision=resolve_precision("auto", CPU),
    )


def tables(records) -> str:
    """Markdown tables of what was measured."""
    return "\n".join(filter(None, (table(records) for table in TABLES)))


def table_if_any(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table, or nothing where there are no rows."""
    return markdown(header, rows) + "\n" if rows else ""


def accuracy_table(records) -> str:
    records = [r for r in records if r["part"] == "accuracy" and r["split"] == "test"]
    runs = grouped(records, "dataset", "system", "reference_seconds")
    rows = []
    for (dataset, system, seconds), same in runs.items():
        auc, acc, rate = (
            np.mean([r[k] for r in same]) for k in ("auc", "acc", "classified_per_second")
        )
        seeds = ", ".join(str(r["seed"]) for r in same)
        row = [dataset, system, f"{seconds:g}", seeds, f"{auc:.1f}", f"{acc:.1f}"]
        rows.append([*row, str(epochs_of(same[0])), f"{rate:.0f}"])
    header = ["data", "system", "reference seconds", "seeds", "AUC", "ACC", "epochs"]
    return table_if_any([*header, "images/s classified"], rows)


def epochs_of(record) -> int | str:
    """Number of epochs; earlier records have it beside the scores."""
    resolved = record.get("provenance", {}).get("resolved", record)
    return resolved.get("epochs", "-")


def table_of_part(
    part: str, header: Sequence[str], row: Callable[[dict], Sequence[str]]
) -> Callable[..., str]:
    """Make a function of records to the table of a part that has a row for each record."""
    return lambda records: table_if_any(header, [row(r) for r in records if r["part"] == part])


reconstruction_table = table_of_part(
    "reconstruction",
    ("data", "images", "median PSNR, dB", "ResNet-18 AUC", "ACC"),
    lambda r: (
        r["dataset"],
        r["images"],
        "-" if r["psnr"] is None else str(r["psnr"]),
        f"{r['resnet_auc']:.1f}",
        f"{r['resnet_acc']:.1f}",
    ),
)
speed_table = table_of_part(
    "speed",
    ("side", "autoencoder", "training step", "images/s", "cached is faster by"),
    lambda r: (
        str(r["side"]),
        r["autoencoder"],
        r["what"],
        f"{r['images_per_second']:.0f}",
        f"{1 / r['share_of_cached']:.2f}",
    ),
)
encoding_table = table_of_part(
    "encoding",
    ("side", "encoder", "what", "images/s", "of the encoder alone"),
    lambda r: (
        str(r["side"]),
        r["autoencoder"],
        r["what"],
        f"{r['images_per_second']:.1f}",
        f"{r['share_of_encoder']:.2f}",
    ),
)
smoke_table = table_of_part(
    "smoke",
    ("parameters", "fit, one epoch of 32 images", "predict 32", "sample 2", "peak memory"),
    lambda r: (
        f"{r['parameters']:,}",
        f"{r['fit_seconds']} s",
        f"{r['predict_seconds']} s",
        f"{r['sample_seconds']} s",
        f"{r['peak_memory_gib']} GiB",
    ),
)
TABLES = (accuracy_table, reconstruction_table, speed_table, encoding_table, smoke_table)
PARTS = {
    "accuracy": measure_accuracy,
    "retina": measure_retina,
    "reconstruction": measure_reconstruction,
    "speed": measure_speed,
    "encoding": measure_encoding,
    "smoke": measure_smoke,
    "sample": measure_sampling,
}
OF_DATA = ("accuracy", "sample")
OF_REFERENCE_SECONDS = ("accuracy", "retina", "reconstruction")


BENCHMARK = Benchmark(
    "latent",
    (
        *("part", "dataset", "system", "split", "seed", "reference_seconds"),
        *("images", "side", "autoencoder", "what"),
    ),
    parameters,
    tables,
)


def main():
    parser = make_parser(__doc__, "latent.json", [0])
    parser.add_argument("part", choices=list(PARTS))
    parser.add_argument("--data", type=Path, help="npz with images of 224 px")
    parser.add_argument("--name", default=BUSI, help="under which records of --data are filed")
    parser.add_argument("--taef2", type=Path, help="folder of a small pretrained autoencoder")
    parser.add_argument("--systems", nargs="*", help="only these")
    parser.add_argument("--split", default="test", choices=["val", "test"])
    parser.add_argument("--seconds", type=float, default=1500.0, help="reference seconds")
    parser.add_argument(
        "--models",
        type=Path,
        help="where accuracy and retina save models over latents; for sample, the folder of one",
    )
    arguments = parser.parse_args()
    if unknown := set(arguments.systems or ()) - SYSTEMS.keys() - RETINA_SYSTEMS.keys():
        parser.error(f"there is no system {min(unknown)!r}: {[*SYSTEMS, *RETINA_SYSTEMS]}")
    if arguments.part in OF_DATA and arguments.data is None:
        parser.error(f"{arguments.part} needs --data")
    if arguments.part == "sample" and arguments.models is None:
        parser.error("sample needs --models")
    if arguments.part in OF_REFERENCE_SECONDS:
        refuse_gpu()
    records = Records(BENCHMARK, arguments.output)
    PARTS[arguments.part](arguments, records, gemm_gflops())
    records.show()


if __name__ == "__main__":
    main()
