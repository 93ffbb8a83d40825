"""Images unlike those of training: what score_samples and the uncertainty say of them.

First a model of RetinaMNIST against images of other kinds, beside two other ways to tell them:
the likelihood, by the instantaneous change of variables with torchdiffeq, and 1 - max p. Then
test images corrupted in the manner of MedMNIST-C, by Pillow, in five severities.

    python examples/benchmarks/unusual.py
    python examples/benchmarks/unusual.py --npz bloodcells=PATH   # corruptions of these too
"""

import io
import os

import numpy as np
import torch
from _common import add_npz_option, as_tensor, load, make_parser, read_records, write_records
from PIL import Image, ImageEnhance, ImageFilter
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score
from torchdiffeq import odeint

from sklearn_msf import MedSymmFlowClassifier
from sklearn_msf.datasets import fetch_medmnist

N_IMAGES = 400
N_LIKELIHOODS = 100
N_STEPS = 25
SEVERITIES = (1, 2, 3, 4, 5)


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


def auroc(typical, other):
    """Chance that an image of another kind scores lower than a typical one."""
    truth = np.r_[np.zeros(len(typical)), np.ones(len(other))]
    return float(roc_auc_score(truth, -np.r_[typical, other]))


def compare_kinds(seeds, records, output):
    """AUROC of three scores for each set of other images."""
    data = load("retinamnist", {})
    X_test = data["test"][0]
    for seed in seeds:
        if any(r["seed"] == seed for r in records["kinds"]):
            continue
        classifier = MedSymmFlowClassifier(random_state=seed).fit(*data["train"])
        scores = {
            "score_samples": (MedSymmFlowClassifier.score_samples, N_IMAGES),
            "likelihood": (log_likelihood, N_LIKELIHOODS),
            "max p": (largest_probability, N_IMAGES),
        }
        record = {"seed": seed}
        for name, (score, n) in scores.items():
            typical = score(classifier, X_test[:n])
            record[name] = {
                kind: auroc(typical, score(classifier, X[:n]))
                for kind, X in other_images(X_test).items()
            }
        records["kinds"].append(record)
        write_records(output, records, table)
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


def corrupt(names, files, seed, records, output):
    """Accuracy, uncertainty and score of corrupted test images."""
    for name in names:
        if any(r["dataset"] == name for r in records["corruptions"]):
            continue
        data = load(name, files)
        classifier = MedSymmFlowClassifier(random_state=seed).fit(*data["train"])
        X, y = data["test"][0][:2000], data["test"][1][:2000]
        for kind in CORRUPTIONS:
            for severity in (0, *SEVERITIES):
                images = corrupted(X, kind, severity)
                records["corruptions"].append(
                    {
                        "dataset": name,
                        "seed": seed,
                        "kind": kind,
                        "severity": severity,
                        "acc": 100 * float(classifier.score(images, y)),
                        "margin": float(classifier.predict_uncertainty(images).mean()),
                        "usual": float(classifier.score_samples(images).mean()),
                    }
                )
            print(name, kind, flush=True)
        write_records(output, records, table)


# Output


def table(records):
    """Markdown of the AUROC, and of the corruptions' ends."""
    kinds = list(records["kinds"][0]["score_samples"])
    scores = [key for key in records["kinds"][0] if key != "seed"]
    lines = ["| RetinaMNIST against | " + " | ".join(scores) + " |", "|---" * 4 + "|"]
    for kind in kinds:
        cells = []
        for score in scores:
            values = [r[score][kind] for r in records["kinds"]]
            spread = f" ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else ""
            cells.append(f"{np.median(values):.3f}{spread}")
        lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    seeds = sorted(r["seed"] for r in records["kinds"])
    lines += [
        "",
        f"AUROC on test images, median and range of seeds {seeds}; `likelihood` on "
        f"{N_LIKELIHOODS} images a set, {N_STEPS} Euler steps.",
        "",
    ]
    lines += ["| data, corruption | accuracy, severity 0 to 5 | mean margin | mean score |"]
    lines += ["|---" * 4 + "|"]
    for key in dict.fromkeys((r["dataset"], r["kind"]) for r in records["corruptions"]):
        rows = [r for r in records["corruptions"] if (r["dataset"], r["kind"]) == key]
        cells = [
            " ".join(f"{r[value]:.{digits}f}" for r in rows)
            for value, digits in (("acc", 1), ("margin", 2), ("usual", 2))
        ]
        lines.append(f"| {key[0]}, {key[1]} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def plot(records, path):
    """Accuracy, uncertainty and score against severity."""
    os.environ.setdefault("MPLBACKEND", "Agg")
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(r["dataset"] for r in records["corruptions"]))
    values = {"acc": "accuracy, %", "margin": "mean margin uncertainty", "usual": "score_samples"}
    size = (4 * len(values), 3.2 * len(names))
    figure, axes = plt.subplots(len(names), len(values), figsize=size, squeeze=False)
    for row, name in zip(axes, names, strict=True):
        for axis, (value, title) in zip(row, values.items(), strict=True):
            for kind in CORRUPTIONS:
                rows = [
                    r for r in records["corruptions"] if (r["dataset"], r["kind"]) == (name, kind)
                ]
                axis.plot([r["severity"] for r in rows], [r[value] for r in rows], "o-", label=kind)
            axis.set(xlabel="severity", ylabel=title, title=name)
    axes[0, 0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    plt.close(figure)


def main():
    parser = make_parser(__doc__, "unusual.json", [3, 4, 5])
    add_npz_option(parser)
    arguments = parser.parse_args()

    files = dict(arguments.npz)
    records = read_records(arguments.output) or {"kinds": [], "corruptions": []}
    compare_kinds(arguments.seeds, records, arguments.output)
    corrupt(["retinamnist", *files], files, arguments.seeds[0], records, arguments.output)
    write_records(arguments.output, records, table)
    plot(records, arguments.output.with_suffix(".png"))
    print(table(records))


if __name__ == "__main__":
    main()
