"""Images unlike those of training: what score_samples and the uncertainty say of them.

First a model of RetinaMNIST against images of other kinds, beside two other ways to tell them:
the likelihood, by the instantaneous change of variables with torchdiffeq, and 1 - max p. Then
test images corrupted in the manner of MedMNIST-C, by Pillow, in five severities.

    python examples/benchmarks/unusual.py
    python examples/benchmarks/unusual.py --npz bloodcells=PATH   # corruptions of these too
"""

import io
import os
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from _common import (
    Benchmark,
    Records,
    add_npz_option,
    as_tensor,
    asked_parameters,
    auroc,
    describe_data,
    described,
    gemm_gflops,
    load,
    make_parser,
    resolved_parameters,
)
from PIL import Image, ImageEnhance, ImageFilter
from sklearn.datasets import load_digits
from torchdiffeq import odeint

from sklearn_msf import MedSymmFlowClassifier
from sklearn_msf.datasets import fetch_medmnist

N_IMAGES = 400
N_LIKELIHOODS = 100
N_STEPS = 25
SEVERITIES = (1, 2, 3, 4, 5)


def parameters(record: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that a record must have to count today."""
    measured = {"images": N_IMAGES, "likelihoods": N_LIKELIHOODS, "steps": N_STEPS}
    return {**asked_parameters(MedSymmFlowClassifier()), **measured}


def fitted(identity, data, described_data, seed):
    """Fit the defaults; returns the classifier and the beginning of its record."""
    gflops = gemm_gflops()
    start = time.perf_counter()
    classifier = MedSymmFlowClassifier(random_state=seed).fit(*data["train"])
    record = described(
        identity,
        parameters=parameters(identity),
        data=described_data,
        gflops=gflops,
        seconds=time.perf_counter() - start,
        seed=seed,
        resolved=resolved_parameters(classifier, len(data["train"][1])),
    )
    return classifier, record


# Images of other kinds


def tripled(images, side=28):
    """Gray or coloured uint8 images in RGB, resized to a side."""
    return np.stack(
        [np.asarray(Image.fromarray(i).convert("RGB").resize((side, side))) for i in images]
    )


def other_images(test_images, seed=0):
    """Sets of images, (n, 28, 28, 3) uint8, that are no retinas."""
    rng = np.random.default_rng(seed)
    shape = (N_IMAGES, 28, 28, 3)
    breast = fetch_medmnist("breastmnist", split="train", return_X_y=True)[0][:N_IMAGES]
    pneumonia = fetch_medmnist("pneumoniamnist", split="test", return_X_y=True)[0][:N_IMAGES]
    digits = (load_digits().images[:N_IMAGES] * 15.9).astype(np.uint8)
    return {
        "uniform noise": rng.integers(0, 256, shape, dtype=np.uint8),
        "constant": np.broadcast_to(
            rng.integers(0, 256, (N_IMAGES, 1, 1, 3), dtype=np.uint8), shape
        ).copy(),
        "BreastMNIST": tripled(breast),
        "PneumoniaMNIST": tripled(pneumonia),
        "digits": tripled(digits),
        "inverted retinas": 255 - test_images,
        "retinas upside down": test_images[:, ::-1].copy(),
        "retinas, validation split": load("retinamnist", {})["val"][0],
    }


def log_likelihood(classifier, X, seed=0):
    """Log-likelihood of images under their predicted class, nats a dimension.

    The field's own ODE from t = 1 to 0 with the trace of its Jacobian estimated by one random
    direction (Hutchinson), the mask on its straight path.
    """
    field = classifier.model_.field
    device = field.codes.codes.device
    labels = torch.from_numpy(classifier.predict_proba(X).argmax(axis=1)).to(device)
    x = as_tensor(X).to(device)
    generator = torch.Generator().manual_seed(seed)
    direction = torch.randn(x.shape, generator=generator).sign().to(device)
    e_y = torch.randn((1, field.codes.n_channels, *x.shape[2:]), generator=generator).to(device)
    masks = field.codes.masks(labels, tuple(x.shape[2:]))

    def velocity(t, state):
        with torch.enable_grad():
            x_t = state[0].requires_grad_(True)
            v_x = field(x_t, torch.lerp(masks, e_y, t), t.expand(len(x_t)))[0]
            (product,) = torch.autograd.grad((v_x * direction).sum(), x_t)
        return v_x.detach(), (product * direction).flatten(1).sum(dim=1)

    times = torch.linspace(1, 0, N_STEPS + 1, device=device)
    ends = odeint(velocity, (x, torch.zeros(len(x), device=device)), times, method="euler")
    x_0, change = ends[0][-1], ends[1][-1]
    n_dimensions = x[0].numel()
    log_normal = -0.5 * x_0.square().flatten(1).sum(dim=1) - n_dimensions * np.log(2 * np.pi) / 2
    # The divergence was integrated backwards: change = -(integral from 0 to 1).
    return ((log_normal + change) / n_dimensions).detach().cpu().numpy()


def largest_probability(classifier, X):
    """Confidence of the predictions."""
    return classifier.predict_proba(X).max(axis=1)


def compare_kinds(seeds, records):
    """AUROC of three scores for each set of other images."""
    data = load("retinamnist", {})
    X_test = data["test"][0]
    others = other_images(X_test)
    with_others = {**data, **{kind: (images,) for kind, images in others.items()}}
    described_data = describe_data("retinamnist and other images", with_others)
    for seed in seeds:
        identity = {"part": "kinds", "seed": seed}
        if records.has(identity, described_data):
            continue
        classifier, record = fitted(identity, data, described_data, seed)
        scores = {
            "score_samples": (MedSymmFlowClassifier.score_samples, N_IMAGES),
            "likelihood": (log_likelihood, N_LIKELIHOODS),
            "max p": (largest_probability, N_IMAGES),
        }
        for name, (score, n) in scores.items():
            typical = score(classifier, X_test[:n])
            record[name] = {
                kind: auroc(typical, score(classifier, X[:n])) for kind, X in others.items()
            }
        records.add(record)
        print(record, flush=True)


# Corruptions in the manner of MedMNIST-C


def _jpeg(image, severity):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=(40, 25, 15, 8, 4)[severity - 1])
    return Image.open(buffer).convert(image.mode)


def _noise(image, severity):
    deviation = (8, 16, 26, 40, 60)[severity - 1]
    pixels = np.asarray(image, dtype=float)
    # The same noise whatever was corrupted before.
    noise = np.random.default_rng(int(pixels.sum())).normal(0, deviation, pixels.shape)
    return Image.fromarray(np.clip(pixels + noise, 0, 255).astype(np.uint8))


CORRUPTIONS = {
    "blur": lambda image, s: image.filter(
        ImageFilter.GaussianBlur((0.4, 0.7, 1.0, 1.5, 2.2)[s - 1])
    ),
    "brightness": lambda image, s: ImageEnhance.Brightness(image).enhance(1 + 0.2 * s),
    "contrast": lambda image, s: ImageEnhance.Contrast(image).enhance(1 - 0.17 * s),
    "JPEG": _jpeg,
    "noise": _noise,
}


def corrupted(X, kind, severity):
    """Images (n, H, W) or (n, H, W, 3), uint8, each corrupted by itself."""
    if severity == 0:
        return X
    return np.stack([np.asarray(CORRUPTIONS[kind](Image.fromarray(i), severity)) for i in X])


def corrupt(names, files, seed, records):
    """Accuracy, uncertainty and score of corrupted test images."""
    for name in names:
        data = load(name, files)
        described_data = describe_data(name, data)
        identity = {"part": "corruptions", "dataset": name, "seed": seed}
        if records.has(identity, described_data):
            continue
        classifier, record = fitted(identity, data, described_data, seed)
        X, y = data["test"][0][:2000], data["test"][1][:2000]
        record["corrupted"] = []
        for kind in CORRUPTIONS:
            for severity in (0, *SEVERITIES):
                images = corrupted(X, kind, severity)
                record["corrupted"].append(
                    {
                        "kind": kind,
                        "severity": severity,
                        "acc": 100 * float(classifier.score(images, y)),
                        "margin": float(classifier.predict_uncertainty(images).mean()),
                        "usual": float(classifier.score_samples(images).mean()),
                    }
                )
            print(name, kind, flush=True)
        records.add(record)


# Output


SCORES = ("score_samples", "likelihood", "max p")


def table(records):
    """Markdown of the AUROC, and of the corruptions' ends."""
    of_kinds = [r for r in records if r["part"] == "kinds"]
    of_corruptions = [r for r in records if r["part"] == "corruptions"]
    lines = []
    if of_kinds:
        lines += ["| RetinaMNIST against | " + " | ".join(SCORES) + " |", "|---" * 4 + "|"]
        for kind in of_kinds[0][SCORES[0]]:
            cells = []
            for score in SCORES:
                values = [r[score][kind] for r in of_kinds]
                spread = f" ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else ""
                cells.append(f"{np.median(values):.3f}{spread}")
            lines.append(f"| {kind} | " + " | ".join(cells) + " |")
        seeds = sorted(r["seed"] for r in of_kinds)
        lines += [
            "",
            f"AUROC on test images, median and range of seeds {seeds}; `likelihood` on "
            f"{N_LIKELIHOODS} images a set, {N_STEPS} Euler steps.",
            "",
        ]
    if of_corruptions:
        lines += [
            "| data, seed, corruption | accuracy, severity 0 to 5 | mean margin uncertainty "
            "| mean score |"
        ]
        lines += ["|---" * 4 + "|"]
    for record in of_corruptions:
        for kind in CORRUPTIONS:
            rows = [r for r in record["corrupted"] if r["kind"] == kind]
            cells = [
                " ".join(f"{r[value]:.{digits}f}" for r in rows)
                for value, digits in (("acc", 1), ("margin", 2), ("usual", 2))
            ]
            lines.append(
                f"| {record['dataset']}, {record['seed']}, {kind} | " + " | ".join(cells) + " |"
            )
    return "\n".join(lines) + "\n"


def plot(records, path):
    """Accuracy, uncertainty and score against severity."""
    os.environ.setdefault("MPLBACKEND", "Agg")
    import matplotlib.pyplot as plt

    of_corruptions = [r for r in records if r["part"] == "corruptions"]
    values = {"acc": "accuracy, %", "margin": "mean margin uncertainty", "usual": "score_samples"}
    size = (4 * len(values), 3.2 * len(of_corruptions))
    figure, axes = plt.subplots(len(of_corruptions), len(values), figsize=size, squeeze=False)
    for row, record in zip(axes, of_corruptions, strict=True):
        for axis, (value, title) in zip(row, values.items(), strict=True):
            for kind in CORRUPTIONS:
                rows = [r for r in record["corrupted"] if r["kind"] == kind]
                axis.plot([r["severity"] for r in rows], [r[value] for r in rows], "o-", label=kind)
            axis.set(xlabel="severity", ylabel=title, title=record["dataset"])
    axes[0, 0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    plt.close(figure)


BENCHMARK = Benchmark("unusual", ("part", "dataset", "seed"), parameters, table)


def main():
    parser = make_parser(__doc__, "unusual.json", [3, 4, 5])
    add_npz_option(parser)
    arguments = parser.parse_args()

    files = dict(arguments.npz)
    records = Records(BENCHMARK, arguments.output)
    compare_kinds(arguments.seeds, records)
    corrupt(["retinamnist", *files], files, arguments.seeds[0], records)
    plot(records.current, arguments.output.with_suffix(".png"))
    records.show()


if __name__ == "__main__":
    main()
