"""Plain classifiers in torch: ResNets and a small vision transformer, and one loop for all.

They are written here because torchvision and timm have no build for every torch.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from _common.data import as_tensor
from _common.scores import auc_score
from sklearn_msf.runtime.device import resolve_device

__all__ = [
    "MEDMNIST_RECIPE",
    "Recipe",
    "ResidualBlock",
    "TrainedNetwork",
    "make_resnet",
    "make_vit",
    "train_network",
]


class ResidualBlock(nn.Module):
    """Basic block of ResNet-18."""

    expansion = 1

    def __init__(self, n_in: int, n_out: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(n_out)
        self.shortcut = _shortcut(n_in, n_out, stride)

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        """Map (n, n_in, H, W) to (n, n_out, H / stride, W / stride)."""
        r = F.relu(self.norm1(self.conv1(h)))
        return F.relu(self.norm2(self.conv2(r)) + self.shortcut(h))


class Bottleneck(nn.Module):
    """Block of ResNet-50: the 3x3 convolution has a quarter of the channels."""

    expansion = 4

    def __init__(self, n_in: int, width: int, stride: int):
        super().__init__()
        n_out = self.expansion * width
        self.conv1 = nn.Conv2d(n_in, width, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, n_out, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(n_out)
        self.shortcut = _shortcut(n_in, n_out, stride)

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        """Map (n, n_in, H, W) to (n, 4 * width, H / stride, W / stride)."""
        r = F.relu(self.norm1(self.conv1(h)))
        r = F.relu(self.norm2(self.conv2(r)))
        return F.relu(self.norm3(self.conv3(r)) + self.shortcut(h))


def _shortcut(n_in: int, n_out: int, stride: int) -> nn.Sequential:
    if stride == 1 and n_in == n_out:
        return nn.Sequential()
    # Thin the image out before the convolution, which gives the same as a strided convolution:
    # with fewer than eight channels the weight gradient of a strided 1x1 convolution never ends
    # (oneDNN on AVX2, torch 2.13).
    return nn.Sequential(
        nn.AvgPool2d(1, stride), nn.Conv2d(n_in, n_out, 1, bias=False), nn.BatchNorm2d(n_out)
    )


_BLOCKS: dict[int, tuple[type[nn.Module], tuple[int, ...]]] = {
    18: (ResidualBlock, (2, 2, 2, 2)),
    50: (Bottleneck, (3, 4, 6, 3)),
}


def make_resnet(
    n_channels: int, n_classes: int, side: int = 28, depth: int = 18, width: int = 64
) -> nn.Sequential:
    """ResNet-18 or -50 as in MedMNIST's own baselines.

    Images of up to 64 px have a 3x3 stem and no pooling after it; larger ones ImageNet's stem, 7x7
    of stride 2 and pooling.
    """
    block, counts = _BLOCKS[depth]
    layers: list[nn.Module] = [
        nn.Conv2d(n_channels, width, *((3, 1, 1) if side <= 64 else (7, 2, 3)), bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
    ]
    if side > 64:
        layers.append(nn.MaxPool2d(3, 2, 1))
    n_in = width
    for level, count in enumerate(counts):
        for i in range(count):
            layers.append(block(n_in, width * 2**level, 2 if level and not i else 1))
            n_in = width * 2**level * block.expansion
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(n_in, n_classes))


class _Tokens(nn.Module):
    """Patches of an image as tokens with their places, and one token more for the class."""

    def __init__(self, n_channels: int, side: int, patch: int, width: int):
        super().__init__()
        self.patches = nn.Conv2d(n_channels, width, patch, patch)
        self.first = nn.Parameter(torch.zeros(1, 1, width))
        self.places = nn.Parameter(0.02 * torch.randn(1, 1 + (side // patch) ** 2, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (n, C, side, side) to (n, 1 + number of patches, width)."""
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        return torch.cat([self.first.expand(len(x), -1, -1), tokens], dim=1) + self.places


class _FirstToken(nn.Module):
    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Map (n, tokens, width) to (n, width)."""
        return tokens[:, 0]


def make_vit(
    n_channels: int,
    n_classes: int,
    side: int = 28,
    *,
    patch: int = 4,
    width: int = 192,
    depth: int = 6,
    n_heads: int = 3,
) -> nn.Sequential:
    """Small vision transformer: the width of DeiT-Ti (Touvron et al., 2021), half of its depth."""
    layer = nn.TransformerEncoderLayer(
        width, n_heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True
    )
    return nn.Sequential(
        _Tokens(n_channels, side, patch, width),
        nn.TransformerEncoder(layer, depth, enable_nested_tensor=False),
        nn.LayerNorm(width),
        _FirstToken(),
        nn.Linear(width, n_classes),
    )


@dataclass(frozen=True)
class Recipe:
    """How a network is trained: Adam, whose rate falls to a tenth at 1/2 and at 3/4 of the run.

    Attributes
    ----------
    learning_rate : float
        First learning rate.
    batch_size : int
        Images of a step.
    epochs : int
        Length of a complete run, whose best epoch on validation data counts; a run that ends with
        its time has its last weights.
    side : int or None
        Side to which images are enlarged (nearest pixel); None leaves them.
    """

    learning_rate: float = 1e-3
    batch_size: int = 128
    epochs: int = 100
    side: int | None = None


MEDMNIST_RECIPE = Recipe()


@dataclass(frozen=True)
class TrainedNetwork:
    """A network after its training.

    Attributes
    ----------
    net : nn.Module
        The network.
    recipe : Recipe
        How it was trained.
    images_seen : int
        Number of images in all steps.
    """

    net: nn.Module
    recipe: Recipe
    images_seen: int

    @torch.inference_mode()
    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        """Class probabilities, (n, K), float64."""
        self.net.eval()
        device = next(self.net.parameters()).device
        parts = as_tensor(X).split(256 if (self.recipe.side or X.shape[1]) <= 64 else 32)
        logits = [self.net(_enlarged(part.to(device), self.recipe.side)) for part in parts]
        return torch.cat(logits).softmax(dim=1).double().cpu().numpy()


def _enlarged(x: torch.Tensor, side: int | None) -> torch.Tensor:
    return x if side is None else F.interpolate(x, size=(side, side), mode="nearest-exact")


class _BestEpoch:
    """Weights of the epoch with the largest AUC on validation data."""

    def __init__(self, validation: tuple[np.ndarray, np.ndarray]):
        self._X, self._y = validation
        self._auc, self._weights = -1.0, {}

    def see(self, trained: TrainedNetwork) -> None:
        auc = auc_score(self._y, trained.predict_proba(self._X))
        if auc > self._auc:
            weights = trained.net.state_dict()
            self._auc = auc
            self._weights = {name: value.clone() for name, value in weights.items()}

    def restore(self, net: nn.Module) -> None:
        net.load_state_dict(self._weights)


def train_network(
    make: Callable[[int, int, int], nn.Module],
    X: np.ndarray,
    y: np.ndarray,
    seed: int,
    *,
    recipe: Recipe = MEDMNIST_RECIPE,
    seconds: float | None = None,
    validation: tuple[np.ndarray, np.ndarray] | None = None,
) -> TrainedNetwork:
    """Train a network for some seconds, or a complete run.

    Parameters
    ----------
    make : callable
        Makes the network of a number of channels, a number of classes and a side of the images.
    X, y : ndarray
        uint8 images, and labels from 0.
    seed : int
        Seed of the weights and the order.
    recipe : Recipe
        How to train.
    seconds : float, optional
        Time after which to stop; None is a complete run.
    validation : tuple of ndarray, optional
        Images and labels that choose the epoch of a complete run.
    """
    start = time.perf_counter()
    torch.manual_seed(seed)
    device = resolve_device("auto")
    x, labels = as_tensor(X), torch.from_numpy(y.astype(np.int64))
    net = make(x.shape[1], len(np.unique(y)), recipe.side or x.shape[2])
    net = net.to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(net.parameters(), lr=recipe.learning_rate)
    best = None if seconds is not None or validation is None else _BestEpoch(validation)
    n_seen, step_seconds, epoch = 0, 0.0, 0
    while seconds is not None or epoch < recipe.epochs:
        net.train()
        for i, rows in enumerate(batches := torch.randperm(len(x)).split(recipe.batch_size)):
            now = time.perf_counter() - start
            if seconds is not None and now + 1.5 * step_seconds > seconds:
                return TrainedNetwork(net, recipe, n_seen)
            if len(rows) < 2:
                # Batch normalisation needs two images.
                continue
            of_epochs = (epoch + i / len(batches)) / recipe.epochs
            progress = of_epochs if seconds is None else now / seconds
            decay = (0.1 if progress >= 0.5 else 1) * (0.1 if progress >= 0.75 else 1)
            optimizer.param_groups[0]["lr"] = recipe.learning_rate * decay
            logits = net(_enlarged(x[rows].to(device), recipe.side))
            loss = F.cross_entropy(logits, labels[rows].to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            n_seen += len(rows)
            step_seconds = time.perf_counter() - start - now
        epoch += 1
        if best is not None:
            best.see(TrainedNetwork(net, recipe, n_seen))
    if best is not None:
        best.restore(net)
    return TrainedNetwork(net, recipe, n_seen)
