"""What the benchmark scripts share: command lines, data, scores, time, runs, a ResNet-18.

Budgets are reference seconds: seconds of a machine whose float32 matrix product reaches 150
GFLOP/s on all cores. A script measures its own machine and scales.
"""

import argparse
import ast
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import nn
from torch.nn import functional as F

from sklearn_msf._estimator.parameters import GROUPS, PARAMETERS
from sklearn_msf.datasets import fetch_medmnist

REFERENCE_GFLOPS = 150.0


# Command lines


def make_parser(doc: str, output: str, seeds: Sequence[int]) -> argparse.ArgumentParser:
    """Parser with the options of nearly every script: seeds, and the file of the runs.

    Parameters
    ----------
    doc : str
        Docstring of the script; its first line is the description.
    output : str
        Name of the JSON file in docs/benchmarks.
    seeds : sequence of int
        Seeds by default.
    """
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--seeds", nargs="+", type=int, default=list(seeds))
    parser.add_argument("--output", type=Path, default=Path("docs/benchmarks") / output)
    return parser


def add_data_options(parser: argparse.ArgumentParser, datasets: Sequence[str]) -> None:
    """Options for the data sets: names of MedMNIST, and files in its format."""
    parser.add_argument("--datasets", nargs="*", default=list(datasets))
    add_npz_option(parser)


def add_npz_option(parser: argparse.ArgumentParser) -> None:
    """Option for files in MedMNIST's npz format; ``dict(arguments.npz)`` has name and path."""
    parser.add_argument("--npz", nargs="*", type=_name_and_path, default=[], metavar="NAME=PATH")


def add_settings_option(parser: argparse.ArgumentParser) -> None:
    """Options for parameters of the classifier and for the guidance of the generated images.

    Entries of the dict parameters are named like other parameters. :func:`settings_of` collects
    what was given.
    """
    parser.add_argument(
        "--set", nargs="*", type=_name_and_value, default=[], metavar="PARAMETER=VALUE"
    )
    parser.add_argument("--guidance", type=float, help="of the images; the classifier's by default")


def settings_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """Parameters, entries and the guidance that were given, side by side."""
    guidance = {} if arguments.guidance is None else {"guidance": arguments.guidance}
    return {**dict(arguments.set), **guidance}


def split_settings(settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split settings into constructor parameters and arguments of the sampling methods."""
    parameters = {name: value for name, value in settings.items() if name != "guidance"}
    return group_parameters(parameters), {"guidance": settings.get("guidance")}


def _name_and_path(item: str) -> tuple[str, str]:
    name, separator, path = item.partition("=")
    if not separator:
        raise argparse.ArgumentTypeError(f"must be NAME=PATH, got {item!r}")
    return name, path


def _name_and_value(item: str) -> tuple[str, Any]:
    name, separator, value = item.partition("=")
    if not separator or name not in (*PARAMETERS, *GROUPS):
        raise argparse.ArgumentTypeError(
            f"must be PARAMETER=VALUE with a parameter of the classifier, got {item!r}"
        )
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError) as error:
        raise argparse.ArgumentTypeError(
            f"{name} must have a Python literal, strings in quotes, got {value!r}"
        ) from error


def group_parameters(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Constructor parameters of a classifier from parameters and entries side by side.

    Entries move into their dict parameters: ``image_weight=0.5`` becomes
    ``flow_params={"image_weight": 0.5}``.
    """
    grouped: dict[str, Any] = {}
    for name, value in parameters.items():
        group = PARAMETERS[name].group if name in PARAMETERS else None
        if name in GROUPS:
            grouped[name] = {**grouped.get(name, {}), **(value or {})}
        elif group is None:
            grouped[name] = value
        else:
            grouped[group] = {**grouped.get(group, {}), name: value}
    return grouped


# Data


def load(name: str, files: Mapping[str, str]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Images and labels of each split of a data set of MedMNIST, or of a file in its format."""
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


def as_tensor(X: np.ndarray) -> torch.Tensor:
    """Images of shape (n, C, H, W) in [-1, 1]."""
    X = X[..., None] if X.ndim == 3 else X
    return torch.from_numpy(X).permute(0, 3, 1, 2).float() / 127.5 - 1


# Scores, as the Evaluator of the medmnist package computes them


def auc_score(y_true: np.ndarray, p: np.ndarray) -> float:
    """Area under the ROC curve: of the positive class, or one against the rest, averaged."""
    if p.shape[1] == 2:
        return float(roc_auc_score(y_true, p[:, 1]))
    return float(np.mean([roc_auc_score(y_true == c, p[:, c]) for c in range(p.shape[1])]))


def accuracy(y_true: np.ndarray, p: np.ndarray) -> float:
    """Fraction of the samples whose most probable class is the label."""
    predicted = p[:, 1] > 0.5 if p.shape[1] == 2 else p.argmax(axis=1)
    return float(np.mean(predicted == y_true))


def mean_and_spread(values: Sequence[float], digits: int) -> str:
    """Mean ± standard deviation of the values of several seeds; of one seed the value alone."""
    spread = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{spread}"


# Reference seconds


def gemm_gflops(size: int = 2048, n_repeats: int = 12) -> float:
    """Best float32 matrix product rate of this machine, all cores, in GFLOP/s."""
    a, b = torch.randn(2, size, size)
    best = np.inf
    for _ in range(n_repeats):
        start = time.perf_counter()
        _ = a @ b
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best / 1e9


def local_seconds(reference_seconds: float, gflops: float) -> float:
    """Seconds that reference seconds take on a machine of this rate."""
    return reference_seconds * REFERENCE_GFLOPS / gflops


def reference_seconds(seconds: float, gflops: float) -> float:
    """Reference seconds of seconds on a machine of this rate."""
    return seconds * gflops / REFERENCE_GFLOPS


# Memory


def peak_memory_mib() -> float:
    """Largest memory that this process has had so far; not to be had on Windows."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # In bytes on macOS, in KiB elsewhere.
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


# Runs


def read_records(path: Path) -> Any:
    """What a JSON file has recorded; an empty list where there is no file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []


def write_records(path: Path, records: Any, table: Callable[[Any], str]) -> None:
    """Write what was recorded as JSON, and its table as Markdown beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(table(records), encoding="utf-8")


def shown_settings(settings: Mapping[str, Any]) -> dict[str, str]:
    """Settings as a record has them."""
    return {name: repr(value) for name, value in settings.items()}


def same_settings(record: Mapping[str, Any], settings: Mapping[str, Any]) -> bool:
    """Tell whether a run was made with these settings."""
    return bool(record["settings"] == shown_settings(settings))


class Runs:
    """Runs in a JSON file, with their table in Markdown beside it.

    Each run is written as it ends, and a script skips those that the file has, so that a
    benchmark can be stopped and continued.

    Parameters
    ----------
    path : Path
        The JSON file.
    identity : sequence of str
        Keys of a record that tell runs apart. Names of parameters in their values are compared
        as they are now.
    table : callable
        Makes the Markdown of all records.
    """

    def __init__(self, path: Path, identity: Sequence[str], table: Callable[[list[dict]], str]):
        self._path, self._identity, self._table = path, identity, table
        self.records: list[dict] = read_records(path)

    def __contains__(self, values: tuple) -> bool:
        """Tell whether there is a run with these values of the identity."""
        wanted = tuple(value for value in values)
        return any(
            tuple(record.get(key) for key in self._identity) == wanted for record in self.records
        )

    def add(self, record: dict) -> None:
        """Add a run and write the files."""
        self.records.append(record)
        write_records(self._path, self.records, self._table)

    def show(self) -> None:
        """Print the table."""
        print(self._table(self.records))


# ResNet-18


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
            # Thin the image out before the convolution, which gives the same as a strided
            # convolution: with fewer than eight channels the weight gradient of a strided 1x1
            # convolution never ends (oneDNN on AVX2, torch 2.13).
            self.shortcut = nn.Sequential(
                nn.AvgPool2d(1, stride),
                nn.Conv2d(n_in, n_out, 1, bias=False),
                nn.BatchNorm2d(n_out),
            )

    def forward(self, h: torch.Tensor) -> torch.Tensor:
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
            progress = now / seconds
            rate = 1e-3 * (0.1 if progress >= 0.5 else 1) * (0.1 if progress >= 0.75 else 1)
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
