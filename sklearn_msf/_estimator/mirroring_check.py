"""Warning of a fit that mirrors images although mirror images show another class."""

from typing import Any

import numpy as np
import torch

from sklearn_msf._estimator.auto_settings import initial_fraction
from sklearn_msf._estimator.data_validation import TrainingSamples
from sklearn_msf._estimator.parameters import Parameters
from sklearn_msf.data.augmentation import flipped_axes
from sklearn_msf.data.images import ImageFormat
from sklearn_msf.data.mirroring import (
    MirroringEffect,
    compare_mirroring,
    comparison_cost,
    shrink_images,
)
from sklearn_msf.data.parts import parts_of
from sklearn_msf.flow.velocity_field import VelocityField
from sklearn_msf.runtime.user_warnings import warn_user
from sklearn_msf.training.trainer import Trainer

__all__ = ["warn_of_mirroring"]

# Largest fraction of the fit that the check may take.
_FRACTION_OF_OPERATIONS = 0.05
# Numbers of images to compare; the first one that is affordable is taken.
_SIZES = (2000, 1000, 500, 200, 100, 50)
_MOST_OF_A_CLASS = 500
# Operations that stand for the fixed cost of the check, and for each value of an image that is
# read.
_FIXED_COST = 1e8
_COST_OF_VALUE = 20
# Operations a second that the check makes at least.
_RATE = 5e9
# So many times faster than the check, which runs on the CPU, a GPU may be.
_SPEED_OF_GPU = 10
# So many classes the warning names one by one.
_MOST_NAMED = 6


def warn_of_mirroring(
    p: Parameters,
    samples: TrainingSamples,
    augment: str | None,
    trainer: Trainer,
    n_images: int,
    shape: tuple[int, ...],
) -> None:
    """Warn if the augmentation flips images although classes are then mixed up.

    The check draws no random numbers and takes the same images each time. It is left out if it
    would take more than a twentieth of the fit.

    Parameters
    ----------
    p : Parameters
        Checked parameters.
    samples : TrainingSamples
        Training data.
    augment : str or None
        Resolved kind of variation.
    trainer : Trainer
        Trainer of the fit.
    n_images : int
        Number of images that training will see, repeated ones included.
    shape : tuple of int
        Shape (C, H, W) of what the field gets of an image; (C, D, H, W) of a volume.
    """
    if augment is None or not flipped_axes(augment, len(shape) - 1):
        return
    operations = _affordable_operations(p, trainer, n_images, shape)
    rows = _affordable_rows(samples, augment, operations)
    if rows is None:
        return
    effect = compare_mirroring(_small_images(samples, rows), samples.labels[rows], augment)
    if effect.harmed:
        warn_user(_message(p.augment, samples.classes, effect))


def _affordable_operations(
    p: Parameters, trainer: Trainer, n_images: int, shape: tuple[int, ...]
) -> float:
    """Compute the floating-point operations that are a twentieth of the fit, or fewer."""
    # Forwards and backwards. At t = 1 the image branch, about half of the network, is not run.
    of_an_image = 3 * _forward_operations(trainer.average, shape)
    operations = of_an_image * n_images * (1 - initial_fraction(p) / 2)
    if trainer.field.device.type != "cpu":
        operations /= _SPEED_OF_GPU
    if p.time_budget is not None:
        operations = min(operations, _RATE * float(p.time_budget))
    return _FRACTION_OF_OPERATIONS * operations


def _forward_operations(field: VelocityField, shape: tuple[int, ...]) -> int:
    """Count the operations of all convolutions and linear layers for one image."""
    counted = 0

    def count(layer: Any, _: Any, output: torch.Tensor) -> None:
        nonlocal counted
        weight = getattr(layer, "weight", None)
        if weight is not None and weight.ndim > 1:
            # Each weight is used once at each position, or with others by their sum.
            counted += 2 * weight.numel() * (output.numel() // weight.shape[0])

    hooks = [layer.register_forward_hook(count) for layer in field.modules()]
    try:
        with torch.no_grad():
            x = torch.zeros(1, *shape, device=field.device)
            label = torch.zeros(1, dtype=torch.int64, device=field.device)
            masks = field.codes.masks(label, shape[1:])
            field.image_velocity(x, masks, torch.full((1,), 0.5, device=field.device))
    finally:
        for hook in hooks:
            hook.remove()
    return counted


def _affordable_rows(
    samples: TrainingSamples, augment: str, operations: float
) -> np.ndarray | None:
    """Choose images, as many as are affordable; None if they are too few."""
    shape = (samples.image_format.n_channels, *samples.image_format.size)
    candidates = np.arange(len(samples.labels))
    if samples.groups is not None:
        # Images of one group resemble each other: one of them would give the other away.
        by_class = samples.groups * (samples.labels.max() + 1) + samples.labels
        _, candidates = np.unique(by_class, return_index=True)
    for size in _SIZES:
        rows = candidates[_balanced_rows(samples.labels[candidates], size)]
        cost = comparison_cost(len(rows), shape, augment)
        cost += _FIXED_COST + _COST_OF_VALUE * len(rows) * np.prod(shape)
        if cost <= operations:
            return rows if len(rows) >= _SIZES[-1] else None
    return None


def _balanced_rows(labels: np.ndarray, size: int) -> np.ndarray:
    """Choose about `size` images, evenly over each class and at most equally many of each."""
    counts = np.bincount(labels)
    limits = np.arange(1, _MOST_OF_A_CLASS + 1)
    totals = np.minimum(counts, limits[:, None]).sum(axis=1)
    limit = max(1, int(np.searchsorted(totals, size, side="right")))
    chosen = [
        np.flatnonzero(labels == c)[np.arange(n) * count // n]
        for c, count in enumerate(counts)
        if (n := min(count, limit))
    ]
    return np.concatenate(chosen)


def _small_images(samples: TrainingSamples, rows: np.ndarray) -> torch.Tensor:
    """Convert some images to small ones, in parts because large images need much memory."""
    images = samples.take(rows).images
    parts = (ImageFormat.normalise(torch.from_numpy(images[part])) for part in parts_of(images))
    return torch.cat([shrink_images(part) for part in parts])


def _message(augment: str, classes: np.ndarray, effect: MirroringEffect) -> str:
    names = classes.tolist()
    told = [
        f"{names[c]!r} {effect.plain[c]:.2f} and {effect.mirrored[c]:.2f}"
        for c in effect.harmed[:_MOST_NAMED]
    ]
    if len(effect.harmed) > _MOST_NAMED:
        told.append(f"and {len(effect.harmed) - _MOST_NAMED} more classes")
    return (
        f"augment={augment!r} shows mirror images, and some classes are mixed up by them. Held-out "
        f"accuracy of a small classifier without and with mirror images: {', '.join(told)}. "
        "If a mirror image has another meaning, set augment='affine' or augment=None."
    )
