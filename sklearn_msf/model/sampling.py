"""Generation of images, and their change from one class to another, in batches."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from sklearn_msf.flow.ode_solver import OdeSettings
from sklearn_msf.model.captured_integration import captured, shortened
from sklearn_msf.model.classification import images_a_pass
from sklearn_msf.model.fitted_model import FittedModel
from sklearn_msf.model.image_space import FieldInputs
from sklearn_msf.runtime.batch_sizes import padded
from sklearn_msf.runtime.batching import in_batches
from sklearn_msf.runtime.device import autocast
from sklearn_msf.runtime.torch_state import standard_torch

__all__ = ["change_class", "image_noise", "sample", "sample_trajectory"]

# Number of images in a pass. Every pass is padded to it, so on a CPU it is small, because a single
# image pays for the padding. On a GPU a pass takes as long for one image as for many.
_MAX_SAMPLED = 16
_MAX_SAMPLED_ON_GPU = 64
_32_BITS = 2**32 - 1
# Sampling repeats a pass many times, and rounding errors add up.
_PRECISION = "float32"


@standard_torch()
def sample(
    model: FittedModel,
    labels: np.ndarray,
    seed: int,
    ode: OdeSettings,
    first: int = 0,
    report: Callable[[int], object] | None = None,
) -> np.ndarray:
    """Generate one image for each label.

    Parameters
    ----------
    model : FittedModel
        A model with a trained image branch.
    labels : ndarray of shape (n,), int
        Class indices.
    seed : int
        Seed of the noise. Image i of a seed is the same, to the last bit, whatever the number and
        the classes of the other images.
    ode : OdeSettings
        Integration from t = 0 to 1.
    first : int, default=0
        Number, counted from 0, of the first image of the seed to generate.
    report : callable, optional
        Called with the number of images generated since the last call.

    Returns
    -------
    ndarray of shape (n, ...)
        Images in the dtype, layout and range of the training X.
    """
    field, n_channels = model.field, model.space.shape[0]
    classes = _as_classes(labels)

    images = model.image_format.empty(len(classes))

    def run(start: int, size: int) -> None:
        part = classes[start : start + size]
        n_real, part = len(part), padded(part, size)
        noise = image_noise(model, seed, first + start, n_real, size)
        images[start : start + n_real] = _as_in_x(
            model, _generate(model, part, noise, ode)[:n_real]
        )

    def trial(_: None, size: int) -> None:
        noise = model.noise(1, n_channels + field.n_mask_noise)
        noise = noise.expand(size, *noise.shape[1:])
        _generate(model, torch.zeros(size, dtype=torch.int64), noise, shortened(ode))

    # A trial needs none of the images.
    small = model.small_batches(("generate", _kind_of(ode)), lambda start, n: None, trial)
    in_batches(run, len(classes), _batch_size(model, ode), model.device, report, small)
    return images


@standard_torch()
@torch.inference_mode()
def sample_trajectory(
    model: FittedModel, label: int, seed: int, ode: OdeSettings
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Generate the first image of a seed, and return it and its mask after every step.

    Parameters
    ----------
    model, seed, ode :
        As in :func:`sample`.
    label : int
        Class index.

    Returns
    -------
    images : ndarray of shape (n_steps + 1, ...)
        From noise to the image, in the dtype, layout and range of the training X.
    masks : ndarray of shape (n_steps + 1, H, W, C), float32
        From the code of the class to noise.
    times : ndarray of shape (n_steps + 1,)
        Times of the images and masks.
    """
    device, field = model.device, model.field
    n_channels, *size = model.space.shape
    noise = image_noise(model, seed, 0, 1)
    classes = torch.tensor([label], device=device)
    masks, e_y = field.masks_and_noise(classes, size, noise[:, n_channels:])
    with autocast(device, _PRECISION):
        points = field.trajectory(noise[:, :n_channels], masks, e_y, ode)
    on_path, masks = (torch.cat(part).float() for part in zip(*points, strict=True))
    images = model.image_format.from_tensor(model.space.images(on_path))
    colours = model.space.masks(masks).movedim(1, -1).cpu().numpy()
    return images, colours, np.array(field.path_times(ode.n_steps))


@standard_torch()
def change_class(
    model: FittedModel,
    inputs: FieldInputs,
    sources: np.ndarray,
    targets: np.ndarray,
    ode: OdeSettings,
) -> np.ndarray:
    """Integrate each image to noise under one class, and back to an image under another.

    Parameters
    ----------
    model : FittedModel
        A model with a trained image branch.
    inputs : FieldInputs
        The n images.
    sources, targets : ndarray of shape (n,), int
        Class indices for the integration to noise and for the one back.
    ode : OdeSettings
        Integration from noise to image, t = 0 to 1. The integration to noise has the same steps
        and method, but no guidance.

    Returns
    -------
    ndarray of shape (n, ...)
        Images in the dtype, layout and range of the training X.
    """
    field, n_images = model.field, len(inputs)
    # Only the integration back is guided: guidance would change the noise that encodes the image.
    to_noise = replace(ode, start=ode.end, end=ode.start, guidance=0.0)
    ways = ((_as_classes(sources), to_noise), (_as_classes(targets), ode))
    e_y = model.noise(1, field.codes.n_channels)

    images = model.image_format.empty(n_images)

    def prepare(start: int, n: int) -> tuple[Tensor, list[Tensor]]:
        # Before the first integration: a copy to a GPU waits for all that it has to do.
        parts = [classes[start : start + n].to(e_y.device) for classes, _ in ways]
        return inputs.batch(start, n), parts

    def change(
        prepared: tuple[Tensor, list[Tensor]],
        size: int,
        shorten: Callable[[OdeSettings], OdeSettings] = _unchanged,
    ) -> Tensor:
        x, parts = prepared
        n_real, x = len(x), padded(x, size)
        for part, (_, way) in zip(parts, ways, strict=True):
            masks = field.codes.masks(padded(part, size), e_y.shape[2:])
            with autocast(x.device, _PRECISION):
                x = captured(field, field.carry_images, shorten(way), _PRECISION)(x, masks, e_y)
        return x[:n_real]

    def run(start: int, size: int) -> None:
        x = change(prepare(start, min(size, n_images - start)), size)
        images[start : start + len(x)] = _as_in_x(model, x)

    kind = "change", _kind_of(ode), type(inputs)
    small = model.small_batches(kind, prepare, partial(change, shorten=shortened))
    in_batches(run, n_images, _batch_size(model, ode), model.device, small=small)
    return images


def _unchanged(ode: OdeSettings) -> OdeSettings:
    return ode


def _kind_of(ode: OdeSettings) -> OdeSettings:
    """Return the integration that stands for all with its kernels: guided ones, or the others."""
    return replace(shortened(ode), guidance=float(ode.guidance != 0))


def _generate(model: FittedModel, classes: Tensor, noise: Tensor, ode: OdeSettings) -> Tensor:
    """Generate an image of each class index from noise for image and mask."""
    n_channels, *size = model.space.shape
    field = model.field
    masks, e_y = field.masks_and_noise(classes.to(noise.device), size, noise[:, n_channels:])
    with autocast(noise.device, _PRECISION):
        return captured(field, field.generate, ode, _PRECISION)(noise[:, :n_channels], masks, e_y)


def _as_in_x(model: FittedModel, x: Tensor) -> np.ndarray:
    """Convert a batch of the field's outputs to images in the dtype, layout and range of X."""
    return model.image_format.from_tensor(model.space.images(x.float()).float().cpu())


def _batch_size(model: FittedModel, ode: OdeSettings) -> int:
    on_cpu = model.device.type == "cpu"
    return images_a_pass(model, ode=ode, max_rows=_MAX_SAMPLED if on_cpu else _MAX_SAMPLED_ON_GPU)


def _as_classes(labels: np.ndarray) -> Tensor:
    return torch.from_numpy(labels.astype(np.int64))


def image_noise(
    model: FittedModel, seed: int, start: int, n: int, n_rows: int | None = None
) -> Tensor:
    """Draw the noise of the images start, ..., start + n - 1 of a seed.

    It is of shape (n, C_x + n_mask_noise, H, W), the noise of the mask last. With `n_rows` there
    are so many rows, and those after the first n are zeros.

    Image i has a generator of its own, with another seed than all others. The noise is drawn on the
    CPU, so that it is the same on every device.
    """
    n_channels, *size = model.space.shape
    noise = torch.zeros(n_rows or n, n_channels + model.field.n_mask_noise, *size)
    generator = torch.Generator()
    first = int(np.random.SeedSequence(seed).generate_state(1)[0])
    for i, image in enumerate(noise[:n], start):
        image.normal_(generator=generator.manual_seed(_scattered(first + i)))
    return noise.to(model.device)


def _scattered(number: int) -> int:
    """Map the numbers of 32 bits to each other, neighbours far apart (MurmurHash3's last steps).

    torch's generator on a CPU takes 32 bits of a seed. Random ones would soon be drawn twice; these
    are different for 2^32 numbers in a row.
    """
    number &= _32_BITS
    number ^= number >> 16
    number = number * 0x85EBCA6B & _32_BITS
    number ^= number >> 13
    number = number * 0xC2B2AE35 & _32_BITS
    return number ^ number >> 16
