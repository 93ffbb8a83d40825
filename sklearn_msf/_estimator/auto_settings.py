"""Conversion of constructor parameters to settings of network, training and prediction."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch

from sklearn_msf._estimator.parameters import (
    Parameters,
    affecting,
    has_features_alone,
    is_over_latents,
)
from sklearn_msf.data.images import ImageFormat
from sklearn_msf.flow.ode_solver import OdeSettings
from sklearn_msf.flow.velocity_field import FieldLayout
from sklearn_msf.model.classification import ClassificationSettings
from sklearn_msf.nn.patches import count_positions
from sklearn_msf.nn.precision import resolve_precision
from sklearn_msf.nn.unet import count_groups
from sklearn_msf.runtime.user_warnings import warn_user
from sklearn_msf.training.batches import count_batches
from sklearn_msf.training.settings import TrainingSettings

__all__ = [
    "check_steps",
    "classification_ode",
    "classification_settings",
    "default_levels",
    "field_layout",
    "initial_fraction",
    "resolve_augmentation",
    "training_settings",
    "warn_of_one_position",
]

# "auto" epochs: so many that training shows this many images at t = 1, but each image at least and
# at most so many times.
_AUTO_IMAGES_AT_ONE = 36_000
_AUTO_TIMES_AT_ONE = (15, 90)
# A field over the features of a backbone alone has to learn less, and memorises sooner.
_AUTO_FEATURES_AT_ONE = 20_000
_AUTO_TIMES_OF_FEATURES = (15, 25)
# A smaller fraction at t = 1 counts as this one: the number of epochs would grow without bound.
_MIN_AUTO_FRACTION = 0.05
# The fraction at t = 1 that "auto" stands for where time is not short, and over the features of a
# backbone alone, from which nothing is drawn.
_AUTO_FRACTION = 0.15
_AUTO_FRACTION_OF_FEATURES = 0.8
# Side of the squares, or cubes, of "auto": the smallest power of 2, over pixels from 2 and over
# latents from 1 on, that leaves at most so many positions. 28 pixels a side are folded by 2, 64
# pixels and 28 voxels by 4, 224 by 16, latents of 28 x 28 by 2. From 2 on it is no longer than the
# shortest side, which would have to be padded.
_MOST_POSITIONS = 512
# Levels of the U-Net that "auto" stands for, and over the features of a backbone alone.
_AUTO_LEVELS = (1, 2, 2, 2)
_AUTO_LEVELS_OF_FEATURES = (1, 2)
# Smallest side of images in pixels at which shifts by a few percent have an effect.
_MIN_SIDE_TO_AUGMENT = 8
# Muon learns as much from half as many images, but is not reliable in short runs.
_MUON_FRACTION = 0.5
_MIN_STEPS_FOR_MUON = 500
# Smallest number of steps, and smallest time budget, for which compilation on a GPU, which takes a
# minute or two, is worth its time.
_MIN_STEPS_TO_COMPILE = 10_000
_MIN_SECONDS_TO_COMPILE = 900.0


def field_layout(
    p: Parameters,
    n_classes: int,
    shape: Sequence[int],
    continued: FieldLayout | None = None,
) -> FieldLayout:
    """Collect the layout of the field.

    Parameters
    ----------
    p : Parameters
        Checked parameters.
    n_classes : int
        Number of classes.
    shape : sequence of int
        (C, H, W) of the images or latents, (C, D, H, W) of volumes.
    continued : FieldLayout or None
        Layout of the field whose training goes on: "auto" levels and patches are those that it has.

    Raises
    ------
    ValueError
        If masks without a class would look like those of a class.
    """
    _check_unconditional(p, n_classes)
    given = {name: getattr(p, name) for name in affecting("network")}
    given["patch_size"] = _resolve_patch_size(p, shape[1:], continued)
    if isinstance(p.channel_mult, str):
        levels: Sequence[int] = default_levels(vars(p))
        if continued is not None:
            levels = continued.channel_mult
        elif len(shape) == 3:
            # Volumes were measured with all levels.
            levels = _levels_with_positions(levels, shape[1:], given["patch_size"])
        given["channel_mult"] = levels
    entries = _typed(FieldLayout, given)
    return FieldLayout(n_classes=n_classes, image_channels=shape[0], **entries)


def default_levels(parameters: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the levels that "auto" stands for, for images that are not too small for them."""
    return _AUTO_LEVELS_OF_FEATURES if has_features_alone(parameters) else _AUTO_LEVELS


def _resolve_patch_size(
    p: Parameters, size: Sequence[int], continued: FieldLayout | None = None
) -> int:
    """Choose how many pixels a side are folded into channels; "auto" depends on the size."""
    if p.patch_size != "auto":
        return int(p.patch_size)
    if continued is not None:
        return continued.patch_size
    # A network of one position could learn linear functions only.
    patch_size = 1 if is_over_latents(vars(p)) or count_positions(size, 2) == 1 else 2
    while count_positions(size, patch_size) > _MOST_POSITIONS and 2 * patch_size <= min(size):
        patch_size *= 2
    return patch_size


def _levels_with_positions(
    channel_mult: Sequence[int], size: Sequence[int], patch_size: int
) -> Sequence[int]:
    """Leave out levels of a single position, but the first level.

    There a group norm keeps little more of each channel than its sign, and small images are
    recognised less well (docs/trials.md).
    """
    return [
        m
        for level, m in enumerate(channel_mult)
        if level == 0 or count_positions(size, patch_size * 2**level) > 1
    ]


def warn_of_one_position(layout: FieldLayout, size: Sequence[int]) -> None:
    """Warn of images that are a single position of a network whose norms keep nothing of one.

    With as many groups as channels a group norm returns its bias there, whatever it gets.
    """
    widths = [m * layout.channels for m in layout.channel_mult]
    keeps_nothing = [count_groups(width) == width for width in widths]
    # The norms of the first level come last.
    if count_positions(size, layout.patch_size) == 1 and keeps_nothing[0]:
        shown = " x ".join(map(str, size))
        linear = "It can learn nothing but linear functions of them. " * all(keeps_nothing)
        warn_user(
            f"Images of {shown} are one position of a network with patch_size={layout.patch_size}. "
            f"{linear}What it generates is always the same. Set a smaller patch_size in "
            "network_params, or use another classifier."
        )


def _typed(record: type[Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Convert numbers of numpy and sequences to the types of the fields of a dataclass."""
    types = {field.name: field.type for field in fields(record)}
    return {name: _CONVERSIONS.get(types[name], _unchanged)(v) for name, v in values.items()}


def _integers(values: Sequence[Any]) -> tuple[int, ...]:
    return tuple(int(value) for value in values)


def _unchanged(value: Any) -> Any:
    return value


_CONVERSIONS: dict[Any, Callable[[Any], Any]] = {
    int: int,
    float: float,
    bool: bool,
    tuple[int, ...]: _integers,
}


def _check_unconditional(p: Parameters, n_classes: int) -> None:
    """Refuse class dropout if masks without a class look like those of a class.

    The network of the class posterior sees the mean of all codes for a mask without a class. With
    grayscale codes and an odd number of classes this is the code of the middle class.
    """
    gray = (p.label_encoding, p.label_prediction) == ("grayscale", "posterior")
    # Over latents that needs masks that are images, which gray codes are not.
    or_velocity = "" if is_over_latents(vars(p)) else " or label_prediction='velocity'"
    if p.class_dropout and gray and n_classes % 2:
        raise ValueError(
            f"class_dropout={p.class_dropout!r} cannot be used with label_encoding='grayscale' "
            f"and an odd number of classes ({n_classes}), where a mask without a class equals the "
            "code of the middle class: set class_dropout=0 in flow_params, or take another "
            f"label_encoding{or_velocity} there."
        )


def training_settings(
    p: Parameters,
    n_images: int,
    device: torch.device,
    trained_by: str | None = None,
    n_epochs: int | None = None,
) -> TrainingSettings:
    """Make the settings of the training engine, with every "auto" resolved.

    Parameters
    ----------
    p : Parameters
        Checked parameters.
    n_images : int
        Number of images in an epoch.
    device : torch.device
        Device of the training.
    trained_by : str, optional
        Optimizer that has trained the field so far; "auto" keeps it.
    n_epochs : int, optional
        Number of epochs that compilation has to pay for; `max_epochs` by default.
    """
    optimizer, max_epochs = _optimizer_and_epochs(p, n_images, trained_by)
    n_batches = count_batches(n_images, int(p.batch_size), even=p.even_batches)
    n_steps = (n_epochs or max_epochs) * n_batches
    names = {field.name for field in fields(TrainingSettings)} & vars(p).keys()
    resolved = {
        "classification_fraction": initial_fraction(p),
        "raises_fraction": p.classification_fraction == "auto" and p.time_budget is not None,
        "max_epochs": max_epochs,
        "optimizer": optimizer,
        "precision": resolve_precision(p.precision, device),
        "compile_network": _compilation(p, device, n_steps),
    }
    given = {name: getattr(p, name) for name in names}
    return TrainingSettings(**_typed(TrainingSettings, {**given, **resolved}))


def initial_fraction(p: Parameters) -> float:
    """Return the fraction at t = 1 of the first steps: for "auto" the smallest one."""
    if p.classification_fraction != "auto":
        return float(p.classification_fraction)
    return _AUTO_FRACTION_OF_FEATURES if has_features_alone(vars(p)) else _AUTO_FRACTION


def _optimizer_and_epochs(p: Parameters, n_images: int, trained_by: str | None) -> tuple[str, int]:
    wanted = str(p.optimizer)
    if wanted == "auto" and trained_by is None:
        max_epochs = _max_epochs(p, n_images, "muon")
        if max_epochs * n_images >= _MIN_STEPS_FOR_MUON * int(p.batch_size):
            return "muon", max_epochs
        wanted = "adamw"
    elif wanted == "auto":
        wanted = str(trained_by)
    return wanted, _max_epochs(p, n_images, wanted)


def _max_epochs(p: Parameters, n_images: int, optimizer: str) -> int:
    if p.max_epochs != "auto":
        return int(p.max_epochs)
    at_one, (low, high) = _AUTO_IMAGES_AT_ONE, _AUTO_TIMES_AT_ONE
    if has_features_alone(vars(p)):
        at_one, (low, high) = _AUTO_FEATURES_AT_ONE, _AUTO_TIMES_OF_FEATURES
    times_at_one = min(high, max(low, at_one / n_images))
    if optimizer == "muon":
        times_at_one *= _MUON_FRACTION
    # With a fraction of 0 all samples, at any t, teach classification: it counts as 1.
    fraction = initial_fraction(p)
    return math.ceil(times_at_one / (max(fraction, _MIN_AUTO_FRACTION) if fraction else 1.0))


def resolve_augmentation(p: Parameters, image_format: ImageFormat) -> str | None:
    """Choose the kind of random variation; "auto" depends on the size of the images."""
    if p.augment != "auto":
        kind: str | None = p.augment
        return kind
    return "hflip+affine" if min(image_format.size) >= _MIN_SIDE_TO_AUGMENT else None


def _compilation(p: Parameters, device: torch.device, n_steps: int) -> bool:
    if p.compile_network != "auto":
        return bool(p.compile_network)
    long_enough = p.time_budget is None or p.time_budget >= _MIN_SECONDS_TO_COMPILE
    return device.type == "cuda" and n_steps >= _MIN_STEPS_TO_COMPILE and long_enough


def classification_ode(p: Parameters) -> OdeSettings:
    """Return the steps by which a model classifies."""
    return OdeSettings(1.0, 0.0, int(p.n_steps), p.ode_solver)


def classification_settings(p: Parameters, device: torch.device) -> ClassificationSettings:
    """Make the settings with which a fitted model on a device classifies."""
    ode = classification_ode(p)
    return ClassificationSettings(
        ode=ode,
        n_draws=int(p.n_draws),
        # An adaptive solver would take bfloat16 rounding for curvature and shorten its steps.
        precision="float32" if ode.is_adaptive else resolve_precision(p.precision, device),
        label_decoding=getattr(p, "label_decoding", "latent"),
    )


def check_steps(ode: OdeSettings, label_prediction: str, *, generates: bool) -> None:
    """Check the steps by which to classify.

    Several steps move the image by the image branch, and are refused if that was not trained. With
    the class posterior there is a warning: from the second evaluation on the network sees a mask
    that was made of its own probabilities, and takes the code next to it for the class.
    """
    # The class posterior is read at the beginning of a step.
    is_one_step = ode.n_steps == 1 and not ode.is_adaptive
    if ode.n_evaluations == 1 or (is_one_step and label_prediction == "posterior"):
        return
    named = f"n_steps={ode.n_steps} and ode_solver={ode.method!r}"
    if not generates:
        raise ValueError(
            f"{named} move the image by the image branch, which is not trained with image_weight=0 "
            "(in flow_params) or classification_fraction=1: set n_steps=1 and ode_solver='euler', "
            "or fit with other values."
        )
    if label_prediction == "posterior":
        warn_user(
            f"{named} classify worse than one step with label_prediction='posterior', and give "
            "probabilities too near 0 and 1: the network takes the mask that the first step made "
            "for the class. Set n_steps=1 and ode_solver='euler'."
        )
