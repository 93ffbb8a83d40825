"""Accuracy at equal time: our defaults, the paper's settings, a ResNet-18, boosted trees.

Budgets are reference seconds: seconds of a machine whose float32 matrix product reaches 150
GFLOP/s on all cores. The script measures its own machine and scales. Every run is added to a
JSON file as it ends, and runs that the file already has are not repeated, so the benchmark
can be stopped and continued; a Markdown table is written beside it.

    python examples/benchmarks/accuracy.py --datasets retinamnist breastmnist --seeds 0 1 2

Further data in MedMNIST's npz format: ``--npz bloodcells=PATH``.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import sklearn
import torch
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score
from torch import nn
from torch.nn import functional as F

from sklearn_msf import MedSymmFlowClassifier
from sklearn_msf.datasets import fetch_medmnist

REFERENCE_GFLOPS = 150.0
SECONDS = {"retinamnist": 200.0}
DEFAULT_SECONDS = 300.0
# Data sets that the paper did not train on borrow the settings of the most similar one.
PAPER_SETTINGS = {"breastmnist": "pneumoniamnist"}


# Scores, as the Evaluator of the medmnist package computes them


def auc_score(y_true: np.ndarray, p: np.ndarray) -> float:
    """Area under the ROC curve: of the positive class, or one against the rest, averaged."""
    if p.shape[1] == 2:
        return float(roc_auc_score(y_true, p[:, 1]))
    return float(np.mean([roc_auc_score(y_true == c, p[:, c]) for c in range(p.shape[1])]))


def accuracy(y_true: np.ndarray, p: np.ndarray) -> float:
    """Share of rows whose most probable class is the label."""
    predicted = p[:, 1] > 0.5 if p.shape[1] == 2 else p.argmax(axis=1)
    return float(np.mean(predicted == y_true))


# Systems: each takes training data, seconds and a seed and returns a function of images


def defaults(name, X, y, seconds, seed):
    """MedSymmFlowClassifier as it comes."""
    classifier = MedSymmFlowClassifier(time_budget=seconds, random_state=seed)
    return classifier.fit(X, y).predict_proba


def paper(name, X, y, seconds, seed):
    """MedSymmFlowClassifier with the paper's settings, stopped after the same time."""
    settings = PAPER_SETTINGS.get(name, name)
    known = {"pneumoniamnist", "bloodmnist", "dermamnist", "retinamnist"}
    classifier = MedSymmFlowClassifier.from_paper(
        settings if settings in known else "bloodmnist", time_budget=seconds, random_state=seed
    )
    return classifier.fit(X, y).predict_proba


class ResidualBlock(nn.Module):
    """Basic block of ResNet-18."""

    def __init__(self, n_in: int, n_out: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(n_out)
        self.shortcut = nn.Sequential()
        if stride != 1 or n_in != n_out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out)
            )

    def forward(self, h):
        """Map (n, n_in, H, W) to (n, n_out, H / stride, W / stride)."""
        r = F.relu(self.norm1(self.conv1(h)))
        return F.relu(self.norm2(self.conv2(r)) + self.shortcut(h))


def make_resnet18(n_channels: int, n_classes: int, width: int = 64) -> nn.Module:
    """ResNet-18 for 28 px as in MedMNIST's own baselines: 3x3 stem, no pooling after it."""
    layers: list[nn.Module] = [
        nn.Conv2d(n_channels, width, 3, 1, 1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
    ]
    n_in = width
    for n_out, stride in ((width, 1), (2 * width, 2), (4 * width, 2), (8 * width, 2)):
        layers += [ResidualBlock(n_in, n_out, stride), ResidualBlock(n_out, n_out, 1)]
        n_in = n_out
    head = nn.Linear(8 * width, n_classes)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)


def as_tensor(X: np.ndarray) -> torch.Tensor:
    """Images of shape (n, C, H, W) in [-1, 1]."""
    X = X[..., None] if X.ndim == 3 else X
    return torch.from_numpy(X).permute(0, 3, 1, 2).float() / 127.5 - 1


def resnet18(name, X, y, seconds, seed, make=make_resnet18, batch_size=128):
    """ResNet-18 in plain torch with MedMNIST's recipe: Adam, rate falling at 1/2 and 3/4."""
    start = time.perf_counter()
    torch.manual_seed(seed)
    x, labels = as_tensor(X), torch.from_numpy(y.astype(np.int64))
    net = make(x.shape[1], len(np.unique(y))).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    step_seconds = 0.0
    while True:
        for rows in torch.randperm(len(x)).split(batch_size):
            now = time.perf_counter() - start
            if now + 1.5 * step_seconds > seconds:
                net.eval()
                return lambda images: resnet_probabilities(net, images)
            if len(rows) < 2:
                continue
            share = now / seconds
            rate = 1e-3 * (0.1 if share >= 0.5 else 1) * (0.1 if share >= 0.75 else 1)
            optimizer.param_groups[0]["lr"] = rate
            loss = F.cross_entropy(net(x[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step_seconds = time.perf_counter() - start - now


@torch.inference_mode()
def resnet_probabilities(net: nn.Module, images: np.ndarray) -> np.ndarray:
    logits = torch.cat(
        [net(batch) for batch in as_tensor(images).split(32 if images.shape[1] > 64 else 256)]
    )
    return logits.softmax(dim=1).double().numpy()


def boosting(name, X, y, seconds, seed):
    """Histogram gradient boosting on pixels, a round at a time until the time is up."""
    start = time.perf_counter()
    rows = X.reshape(len(X), -1)
    model = HistGradientBoostingClassifier(
        max_iter=1, warm_start=True, early_stopping=False, random_state=seed
    )
    round_seconds = 0.0
    while True:
        now = time.perf_counter() - start
        if model.max_iter > 1 and (now + round_seconds > seconds or model.max_iter > 500):
            return lambda images: model.predict_proba(images.reshape(len(images), -1))
        model.fit(rows, y)
        model.max_iter += 1
        round_seconds = time.perf_counter() - start - now


SYSTEMS: dict[str, Callable] = {
    "defaults": defaults,
    "paper": paper,
    "resnet18": resnet18,
    "boosting": boosting,
}
TITLES = {
    "defaults": "MedSymmFlowClassifier()",
    "paper": "the paper's settings",
    "resnet18": "ResNet-18",
    "boosting": "gradient boosting on pixels",
}


# Measuring


def gemm_gflops(size: int = 2048, n_repeats: int = 12) -> float:
    """Best float32 matrix product rate of this machine, all cores, in GFLOP/s."""
    a, b = torch.randn(2, size, size)
    best = np.inf
    for _ in range(n_repeats):
        start = time.perf_counter()
        _ = a @ b
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best / 1e9


def load(name: str, files: dict[str, str]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Training and test part of a data set."""
    if name not in files:
        return {
            split: fetch_medmnist(name, split=split, return_X_y=True)
            for split in ("train", "val", "test")
        }
    with np.load(files[name], allow_pickle=False) as arrays:
        return {
            split: (arrays[f"{split}_images"], arrays[f"{split}_labels"].ravel())
            for split in ("train", "val", "test")
        }


def read_records(path: Path) -> list[dict]:
    """Runs that a JSON file has; none where there is no file."""
    return json.loads(path.read_text()) if path.exists() else []


def write_records(path: Path, records: list[dict], table) -> None:
    """Write runs as JSON, and their table as Markdown beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(records, indent=1) + "\n")
    path.with_suffix(".md").write_text(table(records))


def run(system, name, data, reference_seconds, seed):
    """One run: measure the machine, train for its share of seconds, score on the test split."""
    gflops = gemm_gflops()
    seconds = reference_seconds * REFERENCE_GFLOPS / gflops
    start = time.perf_counter()
    predict_proba = SYSTEMS[system](name, *data["train"], seconds, seed)
    fit_seconds = time.perf_counter() - start
    record = {
        "dataset": name,
        "system": system,
        "seed": seed,
        "reference_seconds": reference_seconds,
        "gemm_gflops": round(gflops, 1),
        "budget_seconds": round(seconds, 2),
        "fit_seconds": round(fit_seconds, 2),
    }
    for split in ("val", "test"):
        X, y = data[split]
        p = predict_proba(X)
        record[f"{split}_auc"] = round(100 * auc_score(y, p), 2)
        record[f"{split}_acc"] = round(100 * accuracy(y, p), 2)
    return record


def table(records: list[dict]) -> str:
    """Markdown table of mean and standard deviation over seeds of the test scores."""
    lines = [
        "| data | reference seconds | system | seeds | AUC | ACC |",
        "|---|---|---|---|---|---|",
    ]
    keys = dict.fromkeys((r["dataset"], r["reference_seconds"], r["system"]) for r in records)
    for dataset, seconds, system in sorted(
        keys, key=lambda k: (k[0], k[1], list(SYSTEMS).index(k[2]))
    ):
        chosen = [
            r
            for r in records
            if (r["dataset"], r["reference_seconds"], r["system"]) == (dataset, seconds, system)
        ]
        cells = []
        for score in ("test_auc", "test_acc"):
            values = [r[score] for r in chosen]
            spread = f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
            cells.append(f"{np.mean(values):.1f}{spread}")
        title = TITLES[system]
        lines.append(
            f"| {dataset} | {seconds:g} | {title} | {len(chosen)} | {cells[0]} | {cells[1]} |"
        )
    gflops = [r["gemm_gflops"] for r in records]
    machine = (
        f"{platform.machine()}, {torch.get_num_threads()} CPU threads, float32 matrix product "
        f"{min(gflops):.0f} to {max(gflops):.0f} GFLOP/s before the runs, torch "
        f"{torch.__version__}, scikit-learn {sklearn.__version__}"
    )
    lines += ["", f"Test splits; mean ± standard deviation over seeds. {machine}."]
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--datasets", nargs="*", default=["retinamnist", "breastmnist"])
    parser.add_argument("--npz", nargs="*", default=[], metavar="NAME=PATH")
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS), choices=list(SYSTEMS))
    parser.add_argument("--seconds", type=float, help="reference seconds of every data set")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=Path("docs/benchmarks/accuracy.json"))
    arguments = parser.parse_args()

    files = dict(item.split("=", 1) for item in arguments.npz)
    records = read_records(arguments.output)
    identity = ("dataset", "system", "seed", "reference_seconds")
    done = {tuple(r[key] for key in identity) for r in records}
    for seed in arguments.seeds:
        for name in [*arguments.datasets, *files]:
            data = load(name, files)
            seconds = arguments.seconds or SECONDS.get(name, DEFAULT_SECONDS)
            for system in arguments.systems:
                if (name, system, seed, seconds) in done:
                    continue
                records.append(run(system, name, data, seconds, seed))
                print(records[-1], flush=True)
                write_records(arguments.output, records, table)
    print(table(records))


if __name__ == "__main__":
    main()
