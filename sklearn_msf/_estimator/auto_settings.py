"""From constructor parameters to the settings of network and training."""

import math
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from torch import Tensor

from sklearn_msf._estimator.data_validation import TrainingRows
from sklearn_msf.data.images import ImageFormat
from sklearn_msf.flow.label_codes import EncodedLabelCodes, LabelCodes, make_label_codes
from sklearn_msf.flow.parameterizations import make_field
from sklearn_msf.flow.velocity_field import VelocityField
from sklearn_msf.nn.precision import resolve_precision
from sklearn_msf.runtime.device import seeded_weights
from sklearn_msf.training.settings import TrainingSettings

__all__ = [
    "build_field",
    "check_classless",
    "check_layout",
    "network_layout",
    "resolve_augmentation",
    "training_settings",
    "training_targets",
]

# "auto" epochs: as many as show this many images at t = 1, but each at least and at most so often.
_AUTO_IMAGES_AT_ONE = 36_000
_AUTO_TIMES_AT_ONE = (15, 90)
# A smaller share at t = 1 counts as this one: training has to end.
_MIN_AUTO_SHARE = 0.05
# Smallest side at which moving an image by a few percent is a variation of it.
_MIN_SIDE_TO_AUGMENT = 8
# Muon learns the same from half as many images, but in short runs it is not dependable.
_MUON_SHARE = 0.5
_MIN_STEPS_FOR_MUON = 500
# Steps of a GPU that are worth a minute or two of compilation.
_MIN_STEPS_TO_COMPILE = 10_000
_MIN_SECONDS_TO_COMPILE = 900.0


def network_layout(estimator: BaseEstimator, n_channels: int) -> dict[str, Any]:
    """Everything that the shapes of the weights depend on, as plain data."""
    return {
        "label_encoding": estimator.label_encoding,
        "beta": float(estimator.beta),
        "n_classes": len(estimator.classes_),
        "form": estimator.label_prediction,
        "image_prediction": estimator.image_prediction,
        "image_channels": n_channels,
        "channels": int(estimator.channels),
        "channel_mult": tuple(int(n) for n in estimator.channel_mult),
        "n_blocks": int(estimator.n_blocks),
        "attention_levels": tuple(int(n) for n in estimator.attention_levels),
        "patch_size": int(estimator.patch_size),
        "dropout": float(estimator.dropout),
    }


def check_classless(estimator: BaseEstimator) -> None:
    """Refuse rows without a class where their masks look like those of a class.

    To the posterior form a mask without a class shows the mean code.
    """
    gray = (estimator.label_encoding, estimator.label_prediction) == ("grayscale", "posterior")
    if estimator.class_dropout and gray and len(estimator.classes_) % 2:
        raise ValueError(
            f"class_dropout={estimator.class_dropout!r} needs codes whose mean is no code; with "
            f"label_encoding='grayscale' and {len(estimator.classes_)} classes it is that of the "
            "middle class: set class_dropout=0 and guidance=0, or take another label_encoding or "
            "label_prediction='velocity'."
        )


def check_layout(fitted: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Refuse to go on with a network of another layout than the parameters ask for."""
    changed = [name for name in fitted if fitted[name] != wanted[name]]
    if changed:
        raise ValueError(
            f"Training cannot go on with another {', '.join(changed)} than the model was fitted "
            "with; set them back, or fit anew with warm_start=False."
        )


def build_field(
    layout: dict[str, Any], seed: int, mask_codes: Tensor | None = None
) -> VelocityField:
    """Make the field of a layout with weights drawn from a seed; torch's own state is kept.

    With `mask_codes`, (K, C_y, H, W), it carries these masks instead of plain colours.
    """
    layout = dict(layout)
    encoding, n_classes, beta = (layout.pop(k) for k in ("label_encoding", "n_classes", "beta"))
    codes: LabelCodes | EncodedLabelCodes
    if mask_codes is None:
        codes = make_label_codes(encoding, n_classes, beta)
    else:
        codes = EncodedLabelCodes(mask_codes)
    with seeded_weights(seed):
        return make_field(layout.pop("form"), codes, layout.pop("image_channels"), **layout)


def training_settings(
    estimator: BaseEstimator, n_images: int, device: torch.device, trained_by: str | None = None
) -> TrainingSettings:
    """Resolve every "auto" into the settings of the training engine.

    `trained_by` is the optimiser that trained a field so far, which "auto" keeps to.
    """
    optimizer, max_epochs = _optimizer_and_epochs(estimator, n_images, trained_by)
    n_steps = max_epochs * max(1, round(n_images / estimator.batch_size))
    return TrainingSettings(
        max_epochs=max_epochs,
        time_budget=estimator.time_budget,
        batch_size=int(estimator.batch_size),
        optimizer=optimizer,
        learning_rate=float(estimator.learning_rate),
        weight_decay=float(estimator.weight_decay),
        max_grad_norm=estimator.max_grad_norm,
        ema_decay=float(estimator.ema_decay),
        image_weight=float(estimator.image_weight),
        t1_share=float(estimator.t1_share),
        class_dropout=float(estimator.class_dropout),
        precision=resolve_precision(estimator.precision, device),
        compile_network=_compilation(estimator, device, n_steps),
        early_stopping=bool(estimator.early_stopping),
        n_iter_no_change=int(estimator.n_iter_no_change),
    )


def _optimizer_and_epochs(
    estimator: BaseEstimator, n_images: int, trained_by: str | None
) -> tuple[str, int]:
    wanted = str(estimator.optimizer)
    if wanted == "auto" and trained_by is None:
        max_epochs = _max_epochs(estimator, n_images, "muon")
        if max_epochs * n_images >= _MIN_STEPS_FOR_MUON * estimator.batch_size:
            return "muon", max_epochs
        wanted = "adamw"
    elif wanted == "auto":
        wanted = str(trained_by)
    return wanted, _max_epochs(estimator, n_images, wanted)


def _max_epochs(estimator: BaseEstimator, n_images: int, optimizer: str) -> int:
    if estimator.max_epochs != "auto":
        return int(estimator.max_epochs)
    low, high = _AUTO_TIMES_AT_ONE
    times_at_one = min(high, max(low, _AUTO_IMAGES_AT_ONE / n_images))
    if optimizer == "muon":
        times_at_one *= _MUON_SHARE
    # Without a share at t = 1 every row classifies.
    share = max(estimator.t1_share, _MIN_AUTO_SHARE) if estimator.t1_share else 1.0
    return math.ceil(times_at_one / share)


def resolve_augmentation(estimator: BaseEstimator, image_format: ImageFormat) -> str | None:
    """Kind of random variation that "auto" means for images of this size."""
    if estimator.augment != "auto":
        return estimator.augment
    return "hflip+affine" if min(image_format.size) >= _MIN_SIDE_TO_AUGMENT else None


def _compilation(estimator: BaseEstimator, device: torch.device, n_steps: int) -> bool:
    if estimator.compile_network != "auto":
        return bool(estimator.compile_network)
    long_enough = estimator.time_budget is None or estimator.time_budget >= _MIN_SECONDS_TO_COMPILE
    return device.type == "cuda" and n_steps >= _MIN_STEPS_TO_COMPILE and long_enough


def training_targets(data: TrainingRows) -> tuple[Tensor, Tensor, int]:
    """Labels and weights as tensors, and the number of images of an epoch."""
    labels = torch.from_numpy(data.labels.astype(np.int64))
    return labels, torch.from_numpy(data.weights), data.n_images
